//! Extra variables as Ansible reads them. Jinja in what somebody brought at launch is text, not a program: only what stands in
//! the template itself, and what the product says, is rendered. AWX does the same, by the same tag: `!unsafe`. Pure.

use serde_json::{Map, Value};

/// Which of the variables that come with a launch may be Jinja.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// All.
    Always,
    /// Those that stand in the template as they are.
    Template,
    /// None.
    Never,
}

impl Trust {
    /// Of setting `ALLOW_JINJA_IN_EXTRA_VARS`.
    pub fn of(setting: &str) -> Self {
        match setting {
            "always" => Self::Always,
            "never" => Self::Never,
            _ => Self::Template,
        }
    }

    /// The variables whose texts are not rendered, by name: of those of a job, given those of its template.
    pub fn doubted(self, job: &Map<String, Value>, template: &Map<String, Value>) -> Vec<String> {
        let doubted = |(name, value): &(&String, &Value)| match self {
            Self::Always => false,
            Self::Template => template.get(*name) != Some(*value),
            Self::Never => true,
        };
        job.iter().filter(doubted).map(|(name, _)| name.clone()).collect()
    }
}

/// The variables as text: JSON, which is YAML, with a tag at each text that could be Jinja and must not be.
pub fn text(variables: &Map<String, Value>, doubted: &[String]) -> String {
    let marks = |(name, value): (&String, &Value)| doubted.contains(name) && is_jinja(value);
    if !variables.iter().any(marks) {
        return Value::Object(variables.clone()).to_string();
    }
    let mut out = String::from("{");
    for (number, (name, value)) in variables.iter().enumerate() {
        out.push_str(if number == 0 { "" } else { ", " });
        quote(name, &mut out);
        out.push_str(": ");
        write(value, doubted.contains(name), &mut out);
    }
    out + "}\n"
}

/// Whether there is anything in a value that Ansible would render.
fn is_jinja(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('{'),
        Value::Array(items) => items.iter().any(is_jinja),
        Value::Object(map) => map.iter().any(|(name, value)| name.contains('{') || is_jinja(value)),
        _ => false,
    }
}

fn write(value: &Value, doubted: bool, out: &mut String) {
    match value {
        Value::String(text) => {
            if doubted && text.contains('{') {
                out.push_str("!unsafe ");
            }
            quote(text, out);
        }
        Value::Array(items) => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                out.push_str(if number == 0 { "" } else { ", " });
                write(item, doubted, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (number, (name, value)) in map.iter().enumerate() {
                out.push_str(if number == 0 { "" } else { ", " });
                if doubted && name.contains('{') {
                    // A tagged key needs the long form: `? key`.
                    out.push_str("? !unsafe ");
                }
                quote(name, out);
                out.push_str(" : ");
                write(value, doubted, out);
            }
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// A double-quoted text of YAML. All but plain letters is escaped: YAML takes fewer characters as they are than JSON does.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            ' '..='~' => out.push(c),
            c if u32::from(c) <= 0xff => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) <= 0xffff => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn what_a_launch_brought_is_not_rendered() {
        let job =
            object(json!({"own": "{{ a }}", "given": "{{ b }}", "plain": "x", "list": [{"k": "{% c %}"}]}));
        let template = object(json!({"own": "{{ a }}", "given": "{{ a }}"}));
        let doubted = Trust::Template.doubted(&job, &template);
        assert_eq!(doubted, ["given", "plain", "list"]);
        assert_eq!(
            text(&job, &doubted),
            "{\"own\": \"{{ a }}\", \"given\": !unsafe \"{{ b }}\", \"plain\": \"x\", \"list\": [{\"k\" : !unsafe \"{% c %}\"}]}\n"
        );
        assert_eq!(Trust::Always.doubted(&job, &template), Vec::<String>::new());
        assert_eq!(Trust::Never.doubted(&job, &template).len(), 4);
        assert_eq!(Trust::of("template"), Trust::Template);
    }

    #[test]
    fn variables_without_jinja_stay_json() {
        let job = object(json!({"a": "ü\u{7f}", "b": {"c": [1, null, true]}}));
        let written = text(&job, &["a".to_owned(), "b".to_owned()]);
        assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), Value::Object(job));
    }

    #[test]
    fn odd_characters_come_through_as_they_are() {
        let job = object(json!({"a": "{{\"\\\n\u{7f}ü\u{2028}😀"}));
        assert_eq!(
            text(&job, &["a".to_owned()]),
            "{\"a\": !unsafe \"{{\\\"\\\\\\x0a\\x7f\\xfc\\u2028\\U0001f600\"}\n"
        );
    }
}
