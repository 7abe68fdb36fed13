//! Surveys: the questions a template asks at launch, and what counts as an answer.
//!
//! Pure: the specification is JSON as clients send it, answers are JSON values, and secrets are opened and sealed by
//! whoever calls. Words and rules are AWX's, so that scripts that look for them find them.

use serde_json::{Map, Value};

use crate::registry::write::type_of;
use crate::vault::ENCRYPTED;

/// Types of questions.
const TYPES: &[&str] = &["text", "textarea", "password", "multiplechoice", "multiselect", "integer", "float"];

/// One question.
#[derive(Debug, Clone, PartialEq)]
struct Question {
    kind: String,
    variable: String,
    required: bool,
    /// Passwords are sealed.
    default: Option<Value>,
    choices: Vec<String>,
    least: Option<f64>,
    most: Option<f64>,
}

/// The questions of a template.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Survey {
    questions: Vec<Question>,
}

/// What a launch comes to.
#[derive(Debug, Default, PartialEq)]
pub struct Answered {
    /// Values of variables; passwords show as `$encrypted$`.
    pub variables: Map<String, Value>,
    /// The passwords themselves.
    pub secrets: Map<String, Value>,
}

impl Survey {
    /// Reads a specification as it is stored; what does not read is no question.
    pub fn read(spec: &Value) -> Self {
        let questions = spec["spec"].as_array().into_iter().flatten().filter_map(|item| {
            let text = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
            Some(Question {
                kind: text("type"),
                variable: Some(text("variable")).filter(|name| !name.is_empty())?,
                required: item["required"].as_bool().unwrap_or_default(),
                default: item.get("default").filter(|value| !value.is_null()).cloned(),
                choices: choices(&item["choices"]),
                least: bound(&item["min"]),
                most: bound(&item["max"]),
            })
        });
        Self { questions: questions.collect() }
    }

    /// Variables that a launch has to bring.
    pub fn needed(&self) -> Vec<String> {
        let unanswered = |question: &&Question| {
            question.required && question.default.as_ref().is_none_or(|default| default == "")
        };
        self.questions.iter().filter(unanswered).map(|question| question.variable.clone()).collect()
    }

    /// Whether there is no question.
    pub fn is_empty(&self) -> bool {
        self.questions.is_empty()
    }

    /// Whether a variable is one of the survey's.
    pub fn asks(&self, variable: &str) -> bool {
        self.questions.iter().any(|question| question.variable == variable)
    }

    /// Answers from what a launch brought, with defaults for the rest. `open` opens a sealed default.
    ///
    /// # Errors
    /// One sentence for each answer that is missing or wrong.
    pub fn answer(
        &self,
        given: &Map<String, Value>,
        open: impl Fn(&str, &str) -> Option<String>,
    ) -> Result<Answered, Vec<String>> {
        let mut answered = Answered::default();
        let mut wrong = Vec::new();
        for question in &self.questions {
            let secret = question.kind == "password";
            // What a client shows for a secret that it was not told stands for that secret.
            let given = given.get(&question.variable).filter(|value| !(secret && *value == ENCRYPTED));
            let value = match given {
                Some(value) => {
                    wrong.extend(question.errors(value));
                    value.clone()
                }
                None => match question.preset(&open) {
                    Some(default) if question.errors(&default).is_empty() => default,
                    _ if question.required => {
                        wrong.push(format!("'{}' value missing", question.variable));
                        continue;
                    }
                    _ => continue,
                },
            };
            if secret {
                answered.variables.insert(question.variable.clone(), ENCRYPTED.into());
                answered.secrets.insert(question.variable.clone(), value);
            } else {
                answered.variables.insert(question.variable.clone(), value);
            }
        }
        if wrong.is_empty() { Ok(answered) } else { Err(wrong) }
    }
}

impl Question {
    fn preset(&self, open: impl Fn(&str, &str) -> Option<String>) -> Option<Value> {
        let default = self.default.as_ref()?;
        match (self.kind.as_str(), default) {
            // An empty default of a question that must be answered is none.
            (_, Value::String(text)) if text.is_empty() && self.required => None,
            ("password", Value::String(sealed)) if !sealed.is_empty() => {
                open(&self.variable, sealed).map(Value::from)
            }
            ("multiselect", Value::String(lines)) => {
                Some(choices(&Value::from(lines.as_str())).into_iter().map(Value::from).collect())
            }
            ("integer" | "float", Value::String(text)) if text.is_empty() => None,
            _ => Some(default.clone()),
        }
    }

    fn errors(&self, value: &Value) -> Vec<String> {
        let name = &self.variable;
        let shown = if self.kind == "password" { ENCRYPTED.to_owned() } else { plain(value) };
        match (self.kind.as_str(), value) {
            ("text" | "textarea" | "password", Value::String(text)) => {
                let length = text.chars().count() as f64;
                if text.is_empty() && !self.required {
                    return Vec::new();
                }
                if let Some(least) = self.least.filter(|least| length < *least) {
                    return vec![format!(
                        "'{name}' value {shown} is too small (length is {length} must be at least {least})."
                    )];
                }
                self.most
                    .filter(|most| length > *most)
                    .map(|most| format!("'{name}' value {shown} is too large (must be no more than {most})."))
                    .into_iter()
                    .collect()
            }
            ("text" | "textarea" | "password", _) => {
                vec![format!("Value {shown} for '{name}' expected to be a string.")]
            }
            ("integer", Value::Number(number)) if number.is_i64() || number.is_u64() => self.within(value),
            ("integer", _) => vec![format!("Value {shown} for '{name}' expected to be an integer.")],
            ("float", Value::Number(_)) => self.within(value),
            ("float", _) => vec![format!("Value {shown} for '{name}' expected to be a numeric type.")],
            ("multiselect", Value::Array(items)) => {
                items.iter().filter_map(|item| self.choice(item)).collect()
            }
            ("multiselect", _) => vec![format!("'{name}' value is expected to be a list.")],
            ("multiplechoice", value) => {
                if *value == "" && !self.required {
                    return Vec::new();
                }
                self.choice(value).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn within(&self, value: &Value) -> Vec<String> {
        let (name, number) = (&self.variable, value.as_f64().unwrap_or_default());
        if let Some(least) = self.least.filter(|least| number < *least) {
            return vec![format!("'{name}' value {value} is too small (must be at least {least}).")];
        }
        if let Some(most) = self.most.filter(|most| number > *most) {
            return vec![format!("'{name}' value {value} is too large (must be no more than {most}).")];
        }
        Vec::new()
    }

    fn choice(&self, value: &Value) -> Option<String> {
        let known = value.as_str().is_some_and(|text| self.choices.iter().any(|choice| choice == text));
        let all: Vec<String> = self.choices.iter().map(|choice| format!("'{choice}'")).collect();
        (!known).then(|| {
            let (value, name, all) = (plain(value), &self.variable, all.join(", "));
            format!("Value {value} for '{name}' expected to be one of [{all}].")
        })
    }
}

/// The field that a secret default of a survey is bound to.
pub fn field(variable: &str) -> String {
    format!("survey_spec.{variable}")
}

/// Checks a specification. Passwords among the defaults come out sealed; `$encrypted$` stands for the one that `old`
/// has.
///
/// # Errors
/// The sentence for the client.
pub fn checked(
    mut spec: Map<String, Value>,
    old: &Value,
    seal: impl Fn(&str, &str) -> String,
) -> Result<Value, String> {
    for (name, word) in [("name", "string"), ("description", "string"), ("spec", "list of items")] {
        let value = spec.get(name).ok_or_else(|| format!("Field '{name}' is missing from survey spec."))?;
        if !(if name == "spec" { value.is_array() } else { value.is_string() }) {
            let found = type_of(value);
            return Err(format!("Expected {word} for field '{name}', received {found} type."));
        }
    }
    let Some(Value::Array(items)) = spec.get_mut("spec") else { return Err(String::new()) };
    if items.is_empty() {
        return Err("'spec' doesn't contain any items.".to_owned());
    }
    let mut seen: Vec<String> = Vec::new();
    for (at, item) in items.iter_mut().enumerate() {
        let Value::Object(item) = item else {
            return Err(format!("Survey question {at} is not a json object."));
        };
        checked_question(at, item, old, &seal)?;
        let variable = item["variable"].as_str().unwrap_or_default().to_owned();
        if seen.contains(&variable) {
            return Err(format!("'variable' '{variable}' duplicated in survey question {at}."));
        }
        seen.push(variable);
    }
    Ok(Value::Object(spec))
}

fn checked_question(
    at: usize,
    item: &mut Map<String, Value>,
    old: &Value,
    seal: impl Fn(&str, &str) -> String,
) -> Result<(), String> {
    for name in ["type", "question_name", "variable", "required"] {
        let value = item.get(name).ok_or_else(|| format!("'{name}' missing from survey question {at}"))?;
        let (fits, word) = match name {
            "required" => (value.is_boolean(), "boolean"),
            _ => (value.is_string(), "string"),
        };
        if !fits {
            return Err(format!("'{name}' in survey question {at} expected to be {word}."));
        }
    }
    let text = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
    let (kind, variable) = (text("type"), text("variable"));
    if variable.trim().is_empty() {
        return Err(format!("'variable' in survey question {at} must not be blank."));
    }
    if !TYPES.contains(&kind.as_str()) {
        let all = TYPES.join(", ");
        return Err(format!(
            "'{kind}' in survey question {at} is not one of '{all}' allowed question types."
        ));
    }
    if kind.starts_with("multi") && choices(item.get("choices").unwrap_or(&Value::Null)).is_empty() {
        return Err(format!("'choices' missing from survey question {at}"));
    }
    let Some(default) = item.get("default").filter(|value| !value.is_null() && **value != "") else {
        return Ok(());
    };
    let (fits, word) = match kind.as_str() {
        "integer" => (default.is_i64() || default.is_u64(), "int"),
        "float" => (default.is_number(), "float or int"),
        "multiselect" => (default.is_string() || default.is_array(), "str or list"),
        _ => (default.is_string(), "str"),
    };
    if !fits {
        let shown = plain(default);
        return Err(format!("Default value {shown} in survey question {at} expected to be {word}."));
    }
    let reserved = default.as_str().is_some_and(|text| text.starts_with(ENCRYPTED));
    if reserved && kind != "password" {
        return Err(format!(
            "$encrypted$ is a reserved keyword for password question defaults, survey question {at} is type {kind}."
        ));
    }
    if kind == "password" {
        let kept = old["spec"].as_array().into_iter().flatten().find(|item| item["variable"] == *variable);
        let kept = kept.filter(|item| item["type"] == "password").and_then(|item| item["default"].as_str());
        let sealed = match (reserved, kept.filter(|text| !text.is_empty())) {
            (true, Some(kept)) => kept.to_owned(),
            (true, None) => {
                let words = "is a reserved keyword, may not be used for new default in position";
                return Err(format!("$encrypted$ {words} {at}."));
            }
            (false, _) => seal(&variable, default.as_str().unwrap_or_default()),
        };
        item.insert("default".to_owned(), sealed.into());
    }
    Ok(())
}

/// A specification as clients see it: secrets do not show.
pub fn shown(mut spec: Value) -> Value {
    for item in spec["spec"].as_array_mut().into_iter().flatten() {
        let secret =
            item["type"] == "password" && item["default"].as_str().is_some_and(|text| !text.is_empty());
        if secret {
            item["default"] = ENCRYPTED.into();
        }
    }
    spec
}

/// A list, or lines of text.
fn choices(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::String(lines) => {
            lines.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

/// A number, or the text of one; nothing else bounds anything.
fn bound(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn question(kind: &str, variable: &str, more: Value) -> Value {
        let mut item = json!({"type": kind, "question_name": "?", "variable": variable, "required": true});
        let item_map = item.as_object_mut().unwrap();
        item_map.extend(more.as_object().unwrap().clone());
        item
    }

    fn spec(questions: Vec<Value>) -> Map<String, Value> {
        let spec = json!({"name": "", "description": "", "spec": questions});
        spec.as_object().unwrap().clone()
    }

    fn seal(variable: &str, plain: &str) -> String {
        format!("sealed {variable} {plain}")
    }

    fn open(variable: &str, sealed: &str) -> Option<String> {
        sealed.strip_prefix(&format!("sealed {variable} ")).map(str::to_owned)
    }

    fn survey(questions: Vec<Value>) -> Survey {
        Survey::read(&checked(spec(questions), &Value::Null, seal).unwrap())
    }

    fn wrong(survey: &Survey, given: Value) -> Vec<String> {
        survey.answer(given.as_object().unwrap(), open).unwrap_err()
    }

    #[test]
    fn answers_of_every_type_are_judged_in_known_words() {
        let survey = survey(vec![
            question("text", "a", json!({"min": 2, "max": "4"})),
            question("integer", "b", json!({"min": 1, "max": 9})),
            question("float", "c", json!({"max": 2})),
            question("multiplechoice", "d", json!({"choices": ["x", "y"]})),
            question("multiselect", "e", json!({"choices": "x\ny\n\n"})),
            question("password", "f", json!({"min": 3})),
        ]);
        assert_eq!(survey.needed(), ["a", "b", "c", "d", "e", "f"]);
        assert_eq!(
            wrong(&survey, json!({"a": "x", "b": "1", "c": true, "d": "z", "e": ["x", "q"], "f": "ab"})),
            [
                "'a' value x is too small (length is 1 must be at least 2).",
                "Value 1 for 'b' expected to be an integer.",
                "Value true for 'c' expected to be a numeric type.",
                "Value z for 'd' expected to be one of ['x', 'y'].",
                "Value q for 'e' expected to be one of ['x', 'y'].",
                "'f' value $encrypted$ is too small (length is 2 must be at least 3).",
            ]
        );
        assert_eq!(
            wrong(&survey, json!({"a": "xxxxx", "b": 10, "c": 2.5, "d": 1, "e": "x", "f": 1}))[..3],
            [
                "'a' value xxxxx is too large (must be no more than 4).",
                "'b' value 10 is too large (must be no more than 9).",
                "'c' value 2.5 is too large (must be no more than 2).",
            ]
        );
        assert_eq!(wrong(&survey, json!({}))[0], "'a' value missing");
        let given = json!({"a": "abc", "b": 5, "c": 1, "d": "x", "e": ["y"], "f": "geheim", "other": 1});
        let answered = survey.answer(given.as_object().unwrap(), open).unwrap();
        assert_eq!(answered.secrets, *json!({"f": "geheim"}).as_object().unwrap());
        assert_eq!((&answered.variables["f"], answered.variables.get("other")), (&json!(ENCRYPTED), None));
    }

    #[test]
    fn defaults_stand_in_for_answers() {
        let survey = survey(vec![
            question("text", "a", json!({"default": "x"})),
            question("password", "b", json!({"default": "geheim"})),
            question("multiselect", "c", json!({"choices": ["p", "q"], "default": "p\nq"})),
            question("text", "d", json!({"default": "", "required": false})),
            question("integer", "e", json!({"required": false})),
            question("integer", "f", json!({"default": "", "required": false})),
        ]);
        assert!(survey.needed().is_empty());
        for given in [json!({}), json!({"b": "$encrypted$"})] {
            let answered = survey.answer(given.as_object().unwrap(), open).unwrap();
            let expected = json!({"a": "x", "b": ENCRYPTED, "c": ["p", "q"], "d": ""});
            assert_eq!(Value::Object(answered.variables), expected);
            assert_eq!(Value::Object(answered.secrets), json!({"b": "geheim"}));
        }
    }

    #[test]
    fn specifications_are_refused_in_known_words() {
        let refused =
            |spec: Value| checked(spec.as_object().unwrap().clone(), &Value::Null, seal).unwrap_err();
        assert_eq!(
            refused(json!({"name": "", "spec": []})),
            "Field 'description' is missing from survey spec."
        );
        let words = "Expected string for field 'name', received int type.";
        assert_eq!(refused(json!({"name": 1, "description": "", "spec": []})), words);
        let one = |question: Value| refused(Value::Object(spec(vec![question])));
        assert_eq!(refused(Value::Object(spec(vec![]))), "'spec' doesn't contain any items.");
        assert_eq!(one(json!(1)), "Survey question 0 is not a json object.");
        assert_eq!(one(json!({"type": "text"})), "'question_name' missing from survey question 0");
        assert!(
            one(question("date", "a", json!({}))).starts_with("'date' in survey question 0 is not one of")
        );
        assert_eq!(one(question("multiselect", "a", json!({}))), "'choices' missing from survey question 0");
        let default = one(question("integer", "a", json!({"default": "1"})));
        assert_eq!(default, "Default value 1 in survey question 0 expected to be int.");
        let reserved = one(question("password", "a", json!({"default": "$encrypted$"})));
        assert!(reserved.contains("may not be used for new default in position 0"), "{reserved}");
        let twice = vec![question("text", "a", json!({})), question("text", "a", json!({}))];
        let words = "'variable' 'a' duplicated in survey question 1.";
        assert_eq!(refused(Value::Object(spec(twice))), words);
    }

    #[test]
    fn a_secret_default_is_sealed_kept_and_never_shown() {
        let first =
            checked(spec(vec![question("password", "a", json!({"default": "geheim"}))]), &Value::Null, seal);
        let first = first.unwrap();
        assert_eq!(first["spec"][0]["default"], "sealed a geheim");
        let back = shown(first.clone());
        assert_eq!(back["spec"][0]["default"], ENCRYPTED);
        assert_eq!(checked(back.as_object().unwrap().clone(), &first, seal).unwrap(), first);
    }
}
