//! What a credential puts into a job beside Ansible's own passwords: environment variables, files, extra variables.
//!
//! Pure: a credential's inputs and its type's injectors come in, what the job gets goes out. Injectors are Jinja
//! templates that people write, so rendering is bounded: a number of steps for each template, and no reach beyond the inputs.
//! The types that come with the product have injectors of their own ([`builtin`]), which the API does not show, as AWX's.

use std::collections::BTreeMap;

use minijinja::value::ValueKind;
use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value, json};

/// Steps a template may take: a thousand times what one that only fills in values takes.
const FUEL: u64 = 100_000;

/// Most bytes that one template may come to; certificates have some kilobytes.
const MAX_RENDERED: usize = 1 << 20;

/// Most templates of a type.
const MAX_TEMPLATES: usize = 200;

/// Variables that a job's environment keeps for itself.
const RESERVED: &[&str] = &[
    "VIRTUAL_ENV",
    "PATH",
    "PYTHONPATH",
    "JOB_ID",
    "INVENTORY_ID",
    "INVENTORY_SOURCE_ID",
    "INVENTORY_UPDATE_ID",
    "AD_HOC_COMMAND_ID",
    "REST_API_URL",
    "REST_API_TOKEN",
    "MAX_EVENT_RES",
    "CALLBACK_QUEUE",
    "CALLBACK_CONNECTION",
    "CACHE",
    "JOB_CALLBACK_DEBUG",
    "INVENTORY_HOSTVARS",
    "AWX_HOST",
    "PROJECT_REVISION",
    "SUPERVISOR_CONFIG_PATH",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
];

/// Why a credential cannot be put into a job, or an injector not be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A template does not parse, or asks for what there is not.
    #[error("{place}: {detail}")]
    Template {
        /// Which: `env.API_TOKEN`.
        place: String,
        /// What is wrong, for people.
        detail: String,
    },
    /// The injectors have another shape.
    #[error("{0}")]
    Shape(String),
}

/// What a job gets of its credentials. `Debug` shows names only.
#[derive(Clone, Default, PartialEq)]
pub struct Injected {
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Files below `env/` of the private data directory: name and content.
    pub files: Vec<(String, String)>,
    /// Extra variables, stronger than the job's own.
    pub extra_vars: Map<String, Value>,
}

impl std::fmt::Debug for Injected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files: Vec<&str> = self.files.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Injected")
            .field("env", &self.env.keys())
            .field("files", &files)
            .field("extra_vars", &self.extra_vars.keys())
            .finish()
    }
}

/// The inputs of one credential, open.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Its id: files are named after it.
    pub id: i64,
    /// `fields` of its type.
    pub fields: &'a [Value],
    /// What it was given: texts and truths. What was not given is empty or false.
    pub values: &'a Map<String, Value>,
}

impl Injected {
    /// Adds what a credential brings by these injectors: `{"env": …, "file": …, "extra_vars": …}`.
    ///
    /// # Errors
    /// [`Error`], naming the template.
    pub fn add(&mut self, injectors: &Value, inputs: Inputs<'_>) -> Result<(), Error> {
        let mut values = given(inputs);
        let engine = engine();
        let mut tower = Map::new();
        let files = injectors["file"].as_object().into_iter().flatten();
        for (number, (label, template)) in files.enumerate() {
            let place = format!("file.{label}");
            let content = render(&engine, &place, template.as_str().unwrap_or_default(), &values)?;
            let name = format!("credential_{}_{number}", inputs.id);
            let path = format!("/runner/env/{name}");
            self.files.push((name, content));
            match label.split_once('.') {
                None => drop(tower.insert("filename".to_owned(), path.into())),
                Some((_, label)) => {
                    let names = tower.entry("filename").or_insert_with(|| json!({}));
                    names[label] = path.into();
                }
            }
        }
        values.insert("tower".to_owned(), tower.into());
        for (name, template) in injectors["env"].as_object().into_iter().flatten() {
            // Types that were made before a name was reserved lose it, not the job.
            if !RESERVED.contains(&name.as_str()) {
                let place = format!("env.{name}");
                let value = render(&engine, &place, template.as_str().unwrap_or_default(), &values)?;
                self.env.insert(name.clone(), value);
            }
        }
        for (name, template) in injectors["extra_vars"].as_object().into_iter().flatten() {
            let value = deep(&engine, &format!("extra_vars.{name}"), template, &values)?;
            self.extra_vars.insert(name.clone(), value);
        }
        Ok(())
    }

    /// Leaves out what is empty: for the types of the product, whose variables are set only where there is a value.
    fn drop_empty(&mut self) {
        self.env.retain(|_, value| !value.is_empty());
    }
}

/// Adds what a credential of one of the product's own types brings; false if the type has no injectors of this kind.
///
/// # Errors
/// As [`Injected::add`].
pub fn builtin(namespace: &str, inputs: Inputs<'_>, into: &mut Injected) -> Result<bool, Error> {
    let text = |name: &str| inputs.values.get(name).and_then(Value::as_str).unwrap_or_default();
    let injectors = match namespace {
        "aws" => json!({"env": {
            "AWS_ACCESS_KEY_ID": "{{ username }}", "AWS_SECRET_ACCESS_KEY": "{{ password }}",
            "AWS_SECURITY_TOKEN": "{{ security_token }}", "AWS_SESSION_TOKEN": "{{ security_token }}",
        }}),
        "gce" => {
            let key = text("ssh_key_data");
            let mut account = json!({
                "type": "service_account", "private_key": key, "client_email": text("username"),
                "project_id": text("project"),
                // The libraries for this cloud ask for it and AWX's users know it.
                "token_uri": "https://oauth2.googleapis.com/token",
            });
            if text("project").is_empty() {
                account["project_id"] = Value::Null;
            }
            let account = account.to_string();
            let number = into.files.len();
            let name = format!("credential_{}_{number}", inputs.id);
            let path = format!("/runner/env/{name}");
            into.files.push((name, account));
            for variable in
                ["GCE_CREDENTIALS_FILE_PATH", "GCP_SERVICE_ACCOUNT_FILE", "GOOGLE_APPLICATION_CREDENTIALS"]
            {
                into.env.insert(variable.to_owned(), path.clone());
            }
            json!({"env": {"GCE_EMAIL": "{{ username }}", "GCE_PROJECT": "{{ project }}", "GCP_AUTH_KIND": "serviceaccount",
                "GCP_PROJECT": "{{ project }}"}})
        }
        "azure_rm" if !text("client").is_empty() && !text("tenant").is_empty() => json!({"env": {
            "AZURE_CLIENT_ID": "{{ client }}", "AZURE_TENANT": "{{ tenant }}", "AZURE_SECRET": "{{ secret }}",
            "AZURE_SUBSCRIPTION_ID": "{{ subscription }}", "AZURE_CLOUD_ENVIRONMENT": "{{ cloud_environment }}",
        }}),
        "azure_rm" => json!({"env": {
            "AZURE_SUBSCRIPTION_ID": "{{ subscription }}", "AZURE_AD_USER": "{{ username }}",
            "AZURE_PASSWORD": "{{ password }}", "AZURE_CLOUD_ENVIRONMENT": "{{ cloud_environment }}",
        }}),
        "vmware" => json!({"env": {
            "VMWARE_USER": "{{ username }}", "VMWARE_PASSWORD": "{{ password }}", "VMWARE_HOST": "{{ host }}",
            "VMWARE_VALIDATE_CERTS": "False",
        }}),
        "satellite6" => json!({"env": {
            "FOREMAN_SERVER": "{{ host }}", "FOREMAN_USER": "{{ username }}", "FOREMAN_PASSWORD": "{{ password }}",
        }}),
        "openstack" => {
            let flag = |name: &str| inputs.values.get(name).and_then(Value::as_bool);
            let mut auth = json!({
                "auth_url": text("host"), "username": text("username"), "password": text("password"),
                "project_name": text("project"),
            });
            for (input, name) in [("project_domain_name", "project_domain_name"), ("domain", "domain_name")] {
                if !text(input).is_empty() {
                    auth[name] = text(input).into();
                }
            }
            let mut cloud = json!({"auth": auth, "verify": flag("verify_ssl").unwrap_or(true)});
            if !text("region").is_empty() {
                cloud["region_name"] = text("region").into();
            }
            // JSON is YAML.
            let clouds = json!({"clouds": {"devstack": cloud}}).to_string();
            let name = format!("credential_{}_{}", inputs.id, into.files.len());
            into.env.insert("OS_CLIENT_CONFIG_FILE".to_owned(), format!("/runner/env/{name}"));
            into.files.push((name, clouds));
            return Ok(true);
        }
        "kubernetes_bearer_token" => {
            let mut env = json!({
                "K8S_AUTH_HOST": "{{ host }}", "K8S_AUTH_API_KEY": "{{ bearer_token }}",
                "K8S_AUTH_VERIFY_SSL": "{{ verify_ssl }}",
            });
            let mut injectors = json!({});
            if !text("ssl_ca_cert").is_empty() && inputs.values.get("verify_ssl") != Some(&Value::Bool(false))
            {
                injectors["file"] = json!({"template": "{{ ssl_ca_cert }}"});
                env["K8S_AUTH_SSL_CA_CERT"] = "{{ tower.filename }}".into();
            }
            injectors["env"] = env;
            injectors
        }
        "terraform" => {
            let mut injectors = json!({
                "file": {"template.config": "{{ configuration }}"},
                "env": {"TF_BACKEND_CONFIG_FILE": "{{ tower.filename.config }}"},
            });
            if !text("gce_credentials").is_empty() {
                injectors["file"]["template.gce"] = "{{ gce_credentials }}".into();
                injectors["env"]["GOOGLE_BACKEND_CREDENTIALS"] = "{{ tower.filename.gce }}".into();
            }
            injectors
        }
        "net" => {
            let mut env = json!({
                "ANSIBLE_NET_USERNAME": "{{ username }}", "ANSIBLE_NET_PASSWORD": "{{ password }}",
                "ANSIBLE_NET_AUTHORIZE": "{% if authorize %}1{% else %}0{% endif %}",
                "ANSIBLE_NET_AUTH_PASS": "{% if authorize %}{{ authorize_password }}{% endif %}",
            });
            let mut injectors = json!({});
            if !text("ssh_key_data").is_empty() {
                injectors["file"] = json!({"template": "{{ ssh_key_data }}"});
                env["ANSIBLE_NET_SSH_KEYFILE"] = "{{ tower.filename }}".into();
            }
            injectors["env"] = env;
            injectors
        }
        _ => return Ok(false),
    };
    let mut own = Injected { files: std::mem::take(&mut into.files), ..Injected::default() };
    let added = own.add(&injectors, inputs);
    own.drop_empty();
    into.files = std::mem::take(&mut own.files);
    into.env.extend(std::mem::take(&mut own.env));
    added.map(|()| true)
}

/// Every input by its name: empty texts are not there, truths that were not given are false.
fn given(inputs: Inputs<'_>) -> Map<String, Value> {
    let mut values = Map::new();
    for field in inputs.fields {
        let Some(id) = field["id"].as_str() else { continue };
        let value = inputs.values.get(id).cloned();
        let value = match (value, field["type"].as_str()) {
            (Some(Value::Bool(flag)), _) => Value::Bool(flag),
            (Some(Value::String(text)), _) if !text.is_empty() => {
                let key = field["format"] == "ssh_private_key" && !text.ends_with('\n');
                if key { format!("{text}\n").into() } else { Value::String(text) }
            }
            (_, Some("boolean")) => field["default"].as_bool().unwrap_or(false).into(),
            _ => match field["default"].as_str() {
                Some(default) => default.into(),
                None => continue,
            },
        };
        values.insert(id.to_owned(), value);
    }
    values
}

fn engine<'s>() -> Environment<'s> {
    let mut engine = Environment::new();
    engine.set_fuel(Some(FUEL));
    engine.set_undefined_behavior(UndefinedBehavior::Chainable);
    engine.set_keep_trailing_newline(true);
    // Truths as Python writes them: that is what variables of the environment were read as.
    engine.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Bool => {
            let word = if value.is_true() { "True" } else { "False" };
            out.write_str(word).map_err(minijinja::Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
    engine
}

fn render(
    engine: &Environment<'_>,
    place: &str,
    template: &str,
    values: &Map<String, Value>,
) -> Result<String, Error> {
    // What a template's engine says of a failure may quote a value, so only its kind is passed on.
    let failed = |error: minijinja::Error| Error::Template {
        place: place.to_owned(),
        detail: error.kind().to_string(),
    };
    let rendered = engine.render_str(template, values).map_err(failed)?;
    if rendered.len() > MAX_RENDERED {
        let detail = format!("comes to more than {MAX_RENDERED} bytes");
        return Err(Error::Template { place: place.to_owned(), detail });
    }
    Ok(rendered)
}

/// Renders the texts of a tree, keys included.
fn deep(
    engine: &Environment<'_>,
    place: &str,
    tree: &Value,
    values: &Map<String, Value>,
) -> Result<Value, Error> {
    Ok(match tree {
        Value::String(template) => render(engine, place, template, values)?.into(),
        Value::Array(items) => {
            items.iter().map(|item| deep(engine, place, item, values)).collect::<Result<Vec<_>, _>>()?.into()
        }
        Value::Object(map) => {
            let mut rendered = Map::new();
            for (key, value) in map {
                rendered.insert(render(engine, place, key, values)?, deep(engine, place, value, values)?);
            }
            rendered.into()
        }
        other => other.clone(),
    })
}

/// Checks injectors that somebody writes, against the `fields` of their type.
///
/// # Errors
/// [`Error`], in words for people.
pub fn check(injectors: &Value, fields: &[Value]) -> Result<(), Error> {
    let shape = |words: String| Err(Error::Shape(words));
    let Some(kinds) = injectors.as_object() else {
        return shape("Expected a dictionary of injectors.".to_owned());
    };
    let known: Vec<&str> = fields.iter().filter_map(|field| field["id"].as_str()).collect();
    let mut left = MAX_TEMPLATES;
    for (kind, templates) in kinds {
        if !matches!(kind.as_str(), "file" | "env" | "extra_vars") {
            return shape(format!("Additional properties are not allowed ('{kind}' was unexpected)"));
        }
        let Some(templates) = templates.as_object() else {
            return shape(format!("{kind}: expected a dictionary."));
        };
        if kind == "file" {
            check_labels(templates)?;
        }
        let several = injectors["file"].as_object().is_some_and(|files| files.contains_key("template"));
        let files: Vec<&str> = injectors["file"]
            .as_object()
            .into_iter()
            .flat_map(|files| files.keys().filter_map(|label| Some(label.split_once('.')?.1)))
            .collect();
        for (name, template) in templates {
            let place = format!("{kind}.{name}");
            if kind == "env" {
                let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let plain = name.chars().all(word) && !name.starts_with(|c: char| c.is_ascii_digit());
                if !plain || name.is_empty() {
                    return shape(format!("{name:?} is not a name of an environment variable."));
                }
                if RESERVED.contains(&name.as_str()) {
                    return shape(format!(
                        "Environment variable {name} is not allowed to be used in credentials."
                    ));
                }
            }
            if kind != "extra_vars" && !template.is_string() {
                return shape(format!("{place}: expected text."));
            }
            let mut texts = Vec::new();
            collect(template, &mut texts);
            for text in texts {
                left = match left.checked_sub(1) {
                    Some(left) => left,
                    None => return shape(format!("At most {MAX_TEMPLATES} templates.")),
                };
                check_template(&place, text, &known, several, &files)?;
            }
        }
    }
    Ok(())
}

fn check_labels(files: &Map<String, Value>) -> Result<(), Error> {
    if files.contains_key("template") && files.len() > 1 {
        let words = "Must use multi-file syntax when using multiple files";
        return Err(Error::Shape(words.to_owned()));
    }
    for label in files.keys().filter(|label| label.as_str() != "template") {
        let named = label.strip_prefix("template.").is_some_and(|name| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        });
        if !named {
            return Err(Error::Shape(format!("'{label}' does not match 'template' or 'template.NAME'")));
        }
    }
    Ok(())
}

fn check_template(
    place: &str,
    text: &str,
    known: &[&str],
    single: bool,
    files: &[&str],
) -> Result<(), Error> {
    let wrong = |detail: String| Err(Error::Template { place: place.to_owned(), detail });
    let engine = engine();
    let template = match engine.template_from_str(text) {
        Ok(template) => template,
        Err(error) => {
            return wrong(format!("Syntax error rendering template for {place} ({})", error.kind()));
        }
    };
    let mut used: Vec<String> = template.undeclared_variables(true).into_iter().collect();
    used.sort();
    for name in used {
        let mut parts = name.split('.');
        match (parts.next().unwrap_or_default(), parts.next(), parts.next()) {
            ("tower", Some("filename"), None) if single => {}
            ("tower", Some("filename"), Some(label)) if files.contains(&label) => {}
            ("tower", Some("filename"), _) => {
                return wrong(format!("{name} names a file that is not declared under 'file'"));
            }
            ("tower", ..) => {
                return wrong("Cannot directly reference reserved `tower` namespace container.".to_owned());
            }
            (first, ..) if known.contains(&first) => {}
            (first, ..) => return wrong(format!("{place} uses an undefined field ({first})")),
        }
    }
    Ok(())
}

fn collect<'v>(value: &'v Value, texts: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect(item, texts)),
        Value::Object(map) => {
            texts.extend(map.keys().map(String::as_str));
            map.values().for_each(|value| collect(value, texts));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn injected(injectors: &Value, fields: &Value, values: Value) -> Result<Injected, Error> {
        let values = values.as_object().unwrap().clone();
        let fields = fields.as_array().unwrap();
        let mut injected = Injected::default();
        injected.add(injectors, Inputs { id: 7, fields, values: &values })?;
        Ok(injected)
    }

    #[test]
    fn a_type_that_people_made_fills_in_variables_files_and_extra_variables() {
        let fields = json!([{"id": "token", "type": "string", "secret": true}, {"id": "tls", "type": "boolean"},
            {"id": "key", "format": "ssh_private_key"}, {"id": "host"}]);
        let injectors = json!({
            "file": {"template.ini": "[api]\ntoken={{ token }}\n", "template.key": "{{ key }}"},
            "env": {"API_TOKEN": "{{ token }}", "API_INI": "{{ tower.filename.ini }}", "API_KEY": "{{tower.filename.key}}",
                    "API_TLS": "{{ tls }}", "API_HOST": "{{ host | default('none') }}", "PATH": "/evil"},
            "extra_vars": {"api": {"hosts": ["{{ host }}", 3], "on": "{% if tls %}yes{% else %}no{% endif %}"}},
        });
        assert_eq!(
            check(&injectors, fields.as_array().unwrap()).unwrap_err().to_string(),
            "Environment variable PATH is not allowed to be used in credentials."
        );
        let out = injected(&injectors, &fields, json!({"token": "s3cret", "key": "KEY"})).unwrap();
        assert_eq!(out.env["API_TOKEN"], "s3cret");
        assert_eq!(out.env["API_TLS"], "False");
        assert_eq!(out.env["API_HOST"], "none");
        assert_eq!(out.env["API_INI"], "/runner/env/credential_7_0");
        assert!(!out.env.contains_key("PATH"));
        assert_eq!(out.files[0], ("credential_7_0".to_owned(), "[api]\ntoken=s3cret\n".to_owned()));
        assert_eq!(out.files[1].1, "KEY\n");
        assert_eq!(out.extra_vars["api"], json!({"hosts": ["", 3], "on": "no"}));
        assert!(!format!("{out:?}").contains("s3cret"));
    }

    #[test]
    fn hostile_templates_end() {
        let fields = json!([{"id": "a"}]);
        for template in [
            "{% for x in range(100000) %}{% for y in range(100000) %}x{% endfor %}{% endfor %}",
            "{{ 'x' * 100000000 }}",
            "{{ range(1000000000) | list }}",
            "{{ a",
        ] {
            let out = injected(&json!({"env": {"A": template}}), &fields, json!({"a": "1"}));
            assert!(out.is_err(), "{template}: {out:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_injectors_is_said() {
        let fields = json!([{"id": "token"}]);
        let said = |injectors: Value| match check(&injectors, fields.as_array().unwrap()) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(said(json!({"env": {"A": "{{ token }}"}})), "");
        assert_eq!(
            said(json!({"file": {"template": "{{ token }}"}, "env": {"A": "{{ tower.filename }}"}})),
            ""
        );
        assert!(said(json!({"env": {"A": "{{ other }}"}})).contains("uses an undefined field (other)"));
        assert!(said(json!({"env": {"A": "{{ token"}})).contains("Syntax error"));
        assert!(said(json!({"env": {"A B": "x"}})).contains("not a name"));
        assert!(said(json!({"env": {"A": "{{ tower.filename }}"}})).contains("not declared"));
        assert!(said(json!({"nope": {}})).contains("'nope' was unexpected"));
        assert!(said(json!({"file": {"template": "a", "template.b": "c"}})).contains("multi-file"));
        assert!(said(json!([])).contains("dictionary"));
    }

    #[test]
    fn the_types_of_the_product_set_what_their_tools_read() {
        let env = |namespace: &str, values: Value| {
            let values = values.as_object().unwrap().clone();
            let types = crate::registry::builtin_fields(namespace);
            let mut out = Injected::default();
            assert!(builtin(namespace, Inputs { id: 1, fields: &types, values: &values }, &mut out).unwrap());
            out
        };
        let out = env("aws", json!({"username": "AK", "password": "SK"}));
        assert_eq!(
            out.env,
            BTreeMap::from([
                ("AWS_ACCESS_KEY_ID".into(), "AK".into()),
                ("AWS_SECRET_ACCESS_KEY".into(), "SK".into())
            ])
        );
        let out = env("aws", json!({"username": "AK", "password": "SK", "security_token": "T"}));
        assert_eq!(out.env["AWS_SESSION_TOKEN"], "T");
        let out = env("vmware", json!({"username": "u", "password": "p", "host": "h"}));
        assert_eq!((out.env["VMWARE_HOST"].as_str(), out.env["VMWARE_USER"].as_str()), ("h", "u"));
        let out = env("azure_rm", json!({"subscription": "s", "client": "c", "tenant": "t", "secret": "x"}));
        assert_eq!((out.env["AZURE_CLIENT_ID"].as_str(), out.env.get("AZURE_AD_USER")), ("c", None));
        let out = env("azure_rm", json!({"subscription": "s", "username": "u", "password": "p"}));
        assert_eq!(out.env["AZURE_AD_USER"], "u");
        let out = env("gce", json!({"username": "a@b", "project": "p", "ssh_key_data": "KEY"}));
        let account: Value = serde_json::from_str(&out.files[0].1).unwrap();
        assert_eq!((&account["client_email"], &account["private_key"]), (&json!("a@b"), &json!("KEY")));
        assert_eq!(out.env["GCE_CREDENTIALS_FILE_PATH"], "/runner/env/credential_1_0");
        let out =
            env("openstack", json!({"username": "u", "password": "p", "host": "https://o", "project": "t"}));
        let clouds: Value = serde_json::from_str(&out.files[0].1).unwrap();
        assert_eq!(clouds["clouds"]["devstack"]["auth"]["auth_url"], "https://o");
        assert_eq!(clouds["clouds"]["devstack"]["verify"], true);
        let out = env(
            "kubernetes_bearer_token",
            json!({"host": "https://k", "bearer_token": "b", "ssl_ca_cert": "CA"}),
        );
        assert_eq!((out.env["K8S_AUTH_VERIFY_SSL"].as_str(), out.files[0].1.as_str()), ("True", "CA"));
        let out = env("terraform", json!({"configuration": "bucket = 1"}));
        assert_eq!(out.env["TF_BACKEND_CONFIG_FILE"], "/runner/env/credential_1_0");
        let out = env(
            "net",
            json!({"username": "n", "password": "p", "authorize": true, "authorize_password": "e"}),
        );
        assert_eq!(
            (out.env["ANSIBLE_NET_AUTHORIZE"].as_str(), out.env["ANSIBLE_NET_AUTH_PASS"].as_str()),
            ("1", "e")
        );
        let out = env("satellite6", json!({"host": "f", "username": "u", "password": "p"}));
        assert_eq!(out.env["FOREMAN_SERVER"], "f");
        let mut none = Injected::default();
        let empty = Map::new();
        assert!(!builtin("insights", Inputs { id: 1, fields: &[], values: &empty }, &mut none).unwrap());
    }
}
