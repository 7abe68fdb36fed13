//! What `ansible-inventory --list --export` printed: hosts, groups, and what they are given. Pure.
//!
//! The text is read as a stream: one group or one host's variables at a time, and kept in the shape in which it is compared
//! and stored. Names and shapes are as lenient as Ansible's own scripts: lists or objects of hosts, a port after the name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use regex::Regex;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::stream::normal_json;

/// Longest name of a host or group.
const NAME_MAX: usize = 512;

/// How a source wants its hosts read.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Variables that say whether a host is on, with dots into objects; several, separated by commas, are tried in turn. Empty: none.
    pub enabled_var: String,
    /// The value that means on, whatever its case; empty: any value that is true in Python's sense.
    pub enabled_value: String,
    /// Variables that name a host for ever, written like `enabled_var`. Empty: its name is all there is.
    pub instance_id_var: String,
    /// Names of hosts that are taken, matched from their beginning; all others are left out.
    pub host_filter: Option<Regex>,
    /// Leaves out groups without hosts, children and variables.
    pub exclude_empty_groups: bool,
}

/// A host as the source has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Its variables, a JSON object as text.
    pub variables: String,
    /// What names it for ever; empty: nothing does.
    pub instance_id: String,
    /// Whether it is on, if the source says.
    pub enabled: Option<bool>,
}

/// A group as the source has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// Its variables.
    pub variables: Map<String, Value>,
    /// Its direct hosts.
    pub hosts: BTreeSet<String>,
    /// Its direct children.
    pub children: BTreeSet<String>,
}

/// What a source has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Document {
    /// Variables of all.
    pub variables: Map<String, Value>,
    /// Hosts by name.
    pub hosts: BTreeMap<String, Host>,
    /// Groups by name; never `all` and `ungrouped`.
    pub groups: BTreeMap<String, Group>,
}

/// The text is no inventory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not as a whole an object.
    #[error("what ansible-inventory printed is no inventory")]
    Text(#[source] Option<serde_json::Error>),
    /// A name that cannot be kept.
    #[error("a {what} is named {name:?}, which is empty or longer than 512 characters")]
    Name {
        /// Host or group.
        what: &'static str,
        /// Its beginning.
        name: String,
    },
}

/// Reads what was printed. Python's liberties (NaN, lone surrogates) are as they are in job output.
///
/// # Errors
/// [`Error`].
pub fn read(text: &[u8], reading: &Reading) -> Result<Document, Error> {
    let text = normal_json(text).ok_or(Error::Text(None))?;
    let mut seen = Seen { reading, document: Document::default(), given: BTreeMap::new() };
    let mut json = serde_json::Deserializer::from_slice(&text);
    Top(&mut seen)
        .deserialize(&mut json)
        .and_then(|()| json.end())
        .map_err(|error| Error::Text(Some(error)))?;
    seen.finish()
}

struct Seen<'r> {
    reading: &'r Reading,
    document: Document,
    /// Variables of hosts, as `_meta` or a group gives them.
    given: BTreeMap<String, Map<String, Value>>,
}

impl Seen<'_> {
    fn group(&mut self, name: String, body: Value) {
        let (hosts, vars, children) = match body {
            Value::Object(mut body) => (body.remove("hosts"), body.remove("vars"), body.remove("children")),
            Value::Array(hosts) => (Some(Value::Array(hosts)), None, None),
            _ => (None, None, None),
        };
        let mut members = BTreeSet::new();
        match hosts {
            Some(Value::Object(hosts)) => {
                for (host, variables) in hosts {
                    let Some(host) = self.host(&host) else { continue };
                    if let Value::Object(variables) = variables {
                        self.given.entry(host.clone()).or_default().extend(variables);
                    }
                    members.insert(host);
                }
            }
            Some(Value::Array(hosts)) => {
                members.extend(hosts.iter().filter_map(Value::as_str).filter_map(|host| self.host(host)));
            }
            _ => {}
        }
        let vars = match vars {
            Some(Value::Object(vars)) => vars,
            _ => Map::new(),
        };
        let mut below = BTreeSet::new();
        if let Some(Value::Array(children)) = children {
            for child in children.iter().filter_map(Value::as_str) {
                if !matches!(child, "all" | "ungrouped") && child != name {
                    self.document.groups.entry(child.to_owned()).or_default();
                    below.insert(child.to_owned());
                }
            }
        }
        if matches!(name.as_str(), "all" | "ungrouped") {
            self.document.variables.extend(vars);
        } else {
            let group = self.document.groups.entry(name).or_default();
            group.variables.extend(vars);
            group.hosts.append(&mut members);
            group.children.append(&mut below);
        }
    }

    /// Takes a host in, unless it is filtered out; its name without the port.
    fn host(&mut self, name: &str) -> Option<String> {
        let (name, port) = split_port(name);
        if self.reading.host_filter.as_ref().is_some_and(|filter| !matches_beginning(filter, name)) {
            return None;
        }
        if !self.document.hosts.contains_key(name) {
            self.document.hosts.insert(name.to_owned(), Host::default());
            if let Some(port) = port {
                self.given.entry(name.to_owned()).or_default().insert("ansible_port".to_owned(), port.into());
            }
        }
        Some(name.to_owned())
    }

    fn finish(mut self) -> Result<Document, Error> {
        let check = |what, name: &str| {
            if name.is_empty() || name.chars().count() > NAME_MAX {
                return Err(Error::Name { what, name: name.chars().take(40).collect() });
            }
            Ok(())
        };
        for (name, host) in &mut self.document.hosts {
            check("host", name)?;
            let variables = self.given.remove(name).unwrap_or_default();
            host.instance_id = instance_id(&variables, &self.reading.instance_id_var);
            host.enabled = enabled(&variables, &self.reading.enabled_var, &self.reading.enabled_value);
            host.variables = Value::Object(variables).to_string();
        }
        if self.reading.exclude_empty_groups {
            let empty = |group: &Group| {
                group.hosts.is_empty() && group.children.is_empty() && group.variables.is_empty()
            };
            let gone: BTreeSet<String> = self
                .document
                .groups
                .iter()
                .filter(|(_, group)| empty(group))
                .map(|(name, _)| name.clone())
                .collect();
            self.document.groups.retain(|name, _| !gone.contains(name));
            for group in self.document.groups.values_mut() {
                group.children.retain(|child| !gone.contains(child));
            }
        }
        for name in self.document.groups.keys() {
            check("group", name)?;
        }
        Ok(self.document)
    }
}

/// `host:22` and `[::1]:22` are a name and a port; anything else is a name.
fn split_port(name: &str) -> (&str, Option<i64>) {
    if let Some((address, port)) = name.strip_prefix('[').and_then(|rest| rest.split_once("]:"))
        && address.len() > 2
        && address.chars().all(|c| c.is_ascii_hexdigit() || c == ':')
        && let Ok(port) = port.parse::<u16>()
    {
        return (address, Some(port.into()));
    }
    match name.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, port.parse::<u16>().ok().map(i64::from)),
        _ => (name, None),
    }
}

fn matches_beginning(filter: &Regex, name: &str) -> bool {
    filter.find_at(name, 0).is_some_and(|found| found.start() == 0)
}

/// The first of these paths that leads somewhere.
fn along<'v>(variables: &'v Map<String, Value>, paths: &str) -> Option<&'v Value> {
    paths.split(',').map(str::trim).filter(|path| !path.is_empty()).find_map(|path| {
        let mut steps = path.split('.');
        let mut at = variables.get(steps.next()?)?;
        for step in steps {
            at = at.as_object()?.get(step)?;
        }
        Some(at)
    })
}

fn instance_id(variables: &Map<String, Value>, paths: &str) -> String {
    let found = along(variables, paths).map(shown).unwrap_or_default();
    found.chars().take(1024).collect()
}

fn enabled(variables: &Map<String, Value>, paths: &str, value: &str) -> Option<bool> {
    let found = along(variables, paths)?;
    if !value.is_empty() {
        return Some(shown(found).to_lowercase() == value.to_lowercase());
    }
    Some(match found {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
    })
}

/// A value as Python's `str` writes it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Null => "None".to_owned(),
        other => other.to_string(),
    }
}

/// The document as a whole.
struct Top<'s, 'r>(&'s mut Seen<'r>);

impl<'de> DeserializeSeed<'de> for Top<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of groups")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "_meta" {
                map.next_value_seed(Meta(self.0))?;
            } else {
                let body = map.next_value::<Value>()?;
                self.0.group(key, body);
            }
        }
        Ok(())
    }
}

/// `_meta`: `{"hostvars": {"web1": {…}}}`.
struct Meta<'s, 'r>(&'s mut Seen<'r>);

impl<'de> DeserializeSeed<'de> for Meta<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Meta<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with hostvars")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "hostvars" {
                map.next_value_seed(HostVars(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct HostVars<'s, 'r>(&'s mut Seen<'r>);

impl<'de> DeserializeSeed<'de> for HostVars<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HostVars<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of hosts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            match map.next_value::<Value>()? {
                // What is said of a host that no group has is about nobody, and goes in the end.
                Value::Object(variables) => self.0.given.entry(name).or_default().extend(variables),
                Value::Null => {}
                _ => return Err(de::Error::custom(format!("the variables of host {name:?} are no object"))),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(text: &Value, reading: &Reading) -> Document {
        read(text.to_string().as_bytes(), reading).unwrap()
    }

    fn names(set: &BTreeSet<String>) -> Vec<&str> {
        set.iter().map(String::as_str).collect()
    }

    #[test]
    fn what_ansible_prints_is_read() {
        let text = json!({
            "_meta": {"hostvars": {"web1": {"a": 1}, "lost": {"x": 1}}},
            "all": {"children": ["ungrouped", "web", "site"], "vars": {"all_of": 1}},
            "site": {"children": ["web", "empty"]},
            "ungrouped": {"hosts": ["lone"]},
            "web": {"hosts": ["web1", "web2"], "vars": {"port": 80}},
        });
        let found = document(&text, &Reading::default());
        assert_eq!(found.hosts.keys().collect::<Vec<_>>(), ["lone", "web1", "web2"]);
        assert_eq!(found.hosts["web1"].variables, r#"{"a":1}"#);
        assert_eq!(found.hosts["web2"].variables, "{}");
        assert_eq!(found.groups.keys().collect::<Vec<_>>(), ["empty", "site", "web"]);
        assert_eq!(names(&found.groups["site"].children), ["empty", "web"]);
        assert_eq!(names(&found.groups["web"].hosts), ["web1", "web2"]);
        assert_eq!(
            (&found.groups["web"].variables["port"], &found.variables["all_of"]),
            (&json!(80), &json!(1))
        );
        let without = Reading { exclude_empty_groups: true, ..Reading::default() };
        let found = document(&text, &without);
        assert_eq!(found.groups.keys().collect::<Vec<_>>(), ["site", "web"]);
        assert_eq!(names(&found.groups["site"].children), ["web"]);
    }

    #[test]
    fn other_shapes_of_hosts_and_ports_are_read() {
        let text = json!({
            "web": ["web1:2222", "[::1]:22", "fe80::1"],
            "db": {"hosts": {"db1": {"a": 1}, "db2": null}},
            "odd": 7,
        });
        let found = document(&text, &Reading::default());
        assert_eq!(found.hosts.keys().collect::<Vec<_>>(), ["::1", "db1", "db2", "fe80::1", "web1"]);
        assert_eq!(found.hosts["web1"].variables, r#"{"ansible_port":2222}"#);
        assert_eq!(found.hosts["db1"].variables, r#"{"a":1}"#);
        assert!(found.groups.contains_key("odd"));
    }

    #[test]
    fn hosts_are_on_or_off_and_named_as_the_source_says() {
        let reading = Reading {
            enabled_var: "state.power, status".to_owned(),
            enabled_value: "Running".to_owned(),
            instance_id_var: "meta.id,id".to_owned(),
            host_filter: Some(Regex::new("web|db").unwrap()),
            ..Reading::default()
        };
        let text = json!({
            "_meta": {"hostvars": {
                "web1": {"state": {"power": "running"}, "meta": {"id": 17}},
                "web2": {"status": "stopped", "id": "i-2"},
                "db1": {},
                "xweb": {"status": "running"},
            }},
            "g": {"hosts": ["web1", "web2", "db1", "xweb"]},
        });
        let found = document(&text, &reading);
        let said = |name: &str| (found.hosts[name].enabled, found.hosts[name].instance_id.as_str());
        assert_eq!(said("web1"), (Some(true), "17"));
        assert_eq!(said("web2"), (Some(false), "i-2"));
        assert_eq!(said("db1"), (None, ""));
        assert!(!found.hosts.contains_key("xweb"));
        let truth = |value: Value| enabled(&Map::from_iter([("v".to_owned(), value)]), "v", "");
        assert_eq!(
            [truth(json!(0)), truth(json!("x")), truth(json!(null))],
            [Some(false), Some(true), Some(false)]
        );
        assert_eq!(enabled(&Map::from_iter([("v".to_owned(), json!(true))]), "v", "true"), Some(true));
    }

    #[test]
    fn what_is_no_inventory_is_an_error() {
        for text in ["", "[]", "7", "{", r#"{"_meta": {"hostvars": {"a": 1}}}"#, r#"{"": {"hosts": []}}"#] {
            assert!(read(text.as_bytes(), &Reading::default()).is_err(), "{text}");
        }
        assert!(read(br#"{"g": {"hosts": [""]}}"#, &Reading::default()).is_err());
        assert!(
            read(br#"{"_meta": {"hostvars": {"a": {"x": NaN}}}, "g": ["a"]}"#, &Reading::default()).is_ok()
        );
    }
}
