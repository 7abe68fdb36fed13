//! The file of a job's extra variables, which Ansible reads as JSON or YAML.
//!
//! A template in a text that somebody gave at launch must not be evaluated: it would run with the job's credentials. So such
//! texts are tagged `!unsafe`, as AWX tags them; those that stand on the job template, put there by somebody who may change it, are
//! not. Only texts with a brace in them need the tag, so most files stay plain JSON, which Ansible reads fastest.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// The content of the file. Values that equal the one of the same name in `trusted` keep their templates.
pub fn file(variables: &Map<String, Value>, trusted: &Map<String, Value>) -> String {
    let mut out = String::from("{");
    for (place, (name, value)) in variables.iter().enumerate() {
        if place > 0 {
            out.push_str(", ");
        }
        text(&mut out, name);
        out.push_str(": ");
        add(&mut out, value, trusted.get(name) == Some(value));
    }
    out.push('}');
    out
}

fn add(out: &mut String, value: &Value, trusted: bool) {
    match value {
        Value::String(words) => {
            if !trusted && words.contains('{') {
                out.push_str("!unsafe ");
            }
            text(out, words);
        }
        Value::Array(values) => {
            out.push('[');
            for (place, value) in values.iter().enumerate() {
                if place > 0 {
                    out.push_str(", ");
                }
                add(out, value, trusted);
            }
            out.push(']');
        }
        Value::Object(values) => {
            out.push('{');
            for (place, (name, value)) in values.iter().enumerate() {
                if place > 0 {
                    out.push_str(", ");
                }
                text(out, name);
                out.push_str(": ");
                add(out, value, trusted);
            }
            out.push('}');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            let _ = write!(out, "{value}");
        }
    }
}

/// A text that JSON and YAML read alike: what YAML does not take as it is, is escaped.
fn text(out: &mut String, words: &str) {
    out.push('"');
    for letter in words.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\0'..=' '
            | '\u{7f}'..='\u{a0}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}'
                if letter != ' ' =>
            {
                let _ = write!(out, "\\u{:04x}", u32::from(letter));
            }
            _ => out.push(letter),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(variables: Value, trusted: Value) -> String {
        let object = |value: Value| value.as_object().cloned().unwrap_or_default();
        file(&object(variables), &object(trusted))
    }

    #[test]
    fn templates_that_come_at_launch_are_not_evaluated() {
        let given = json!({"a": "{{ lookup('pipe', 'id') }}", "b": [{"c": "{% x %}"}, 1], "d": "plain"});
        let expected = r#"{"a": !unsafe "{{ lookup('pipe', 'id') }}", "b": [{"c": !unsafe "{% x %}"}, 1], "d": "plain"}"#;
        assert_eq!(check(given, json!({})), expected);
    }

    #[test]
    fn templates_of_the_job_template_are_evaluated_unless_the_launch_changes_them() {
        let own = json!({"a": "{{ b }}", "c": {"d": "{{ b }}"}});
        assert_eq!(check(own.clone(), own.clone()), r#"{"a": "{{ b }}", "c": {"d": "{{ b }}"}}"#);
        assert_eq!(check(json!({"a": "{{ c }}"}), own), r#"{"a": !unsafe "{{ c }}"}"#);
    }

    #[test]
    fn what_is_no_template_is_plain_json() {
        let given = json!({"a": "\u{1}\u{7f}\u{85}\u{2028}\t\"\\ü😀", "b": null, "c": true, "d": 1.5, "e": {}, "f": []});
        let file = check(given.clone(), json!({}));
        assert_eq!(serde_json::from_str::<Value>(&file).unwrap(), given);
        assert!(file.contains(r"\u0001\u007f\u0085\u2028\t"), "{file}");
    }
}
