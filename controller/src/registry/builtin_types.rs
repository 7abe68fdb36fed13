//! The credential types that come with the product, with the names, namespaces, fields and ids that AWX's users know:
//! their guides give the container registry as type 17.
//!
//! They are written at each start whose list differs from what the database last saw, so a new release can add to
//! them. Ids are never given to another type.

use sea_query::{OnConflict, Query};
use serde_json::{Value, json};

use crate::store::core::{Class, CoreDb, Error};

struct Builtin {
    id: i64,
    kind: &'static str,
    namespace: &'static str,
    name: &'static str,
    inputs: Value,
    injectors: Value,
}

/// Brings the built-in types in the database up to date.
///
/// # Errors
/// What the database says.
pub async fn seed(db: &CoreDb) -> Result<(), Error> {
    let types = all();
    let mut digest = blake3::Hasher::new();
    for builtin in &types {
        digest.update(
            format!("{}{}{}{}", builtin.id, builtin.name, builtin.inputs, builtin.injectors).as_bytes(),
        );
    }
    let digest = digest.finalize().to_hex().to_string();
    if db.setting("builtin_credential_types").await? == Some(digest.clone()) {
        return Ok(());
    }
    let now = jiff::Timestamp::now().as_microsecond();
    let mut tx = db.begin(Class::Bulk).await?;
    for builtin in types {
        let mut conflict = OnConflict::column("id");
        conflict.update_columns(["kind", "namespace", "name", "inputs", "injectors", "modified"]);
        let mut insert = Query::insert();
        insert.into_table("credential_types");
        insert.columns([
            "id",
            "kind",
            "namespace",
            "name",
            "inputs",
            "injectors",
            "managed",
            "created",
            "modified",
        ]);
        insert.values_panic([
            builtin.id.into(),
            builtin.kind.into(),
            builtin.namespace.into(),
            builtin.name.into(),
            builtin.inputs.to_string().into(),
            builtin.injectors.to_string().into(),
            true.into(),
            now.into(),
            now.into(),
        ]);
        tx.execute(insert.on_conflict(conflict)).await?;
    }
    tx.ids_were_given("credential_types").await?;
    tx.set_setting("builtin_credential_types", &digest).await?;
    tx.commit().await
}

fn text(id: &str, label: &str) -> Value {
    json!({"id": id, "label": label, "type": "string"})
}

fn secret(id: &str, label: &str) -> Value {
    json!({"id": id, "label": label, "type": "string", "secret": true})
}

fn flag(id: &str, label: &str) -> Value {
    json!({"id": id, "label": label, "type": "boolean"})
}

fn with(mut field: Value, more: Value) -> Value {
    if let (Some(field), Value::Object(more)) = (field.as_object_mut(), more) {
        field.extend(more);
    }
    field
}

fn ssh_key(id: &str, label: &str) -> Value {
    with(secret(id, label), json!({"format": "ssh_private_key", "multiline": true}))
}

fn ask(field: Value) -> Value {
    with(field, json!({"ask_at_runtime": true}))
}

fn url(id: &str, label: &str) -> Value {
    with(text(id, label), json!({"format": "url"}))
}

fn fields<const N: usize, const R: usize>(fields: [Value; N], required: [&str; R]) -> Value {
    let mut inputs = json!({"fields": fields.to_vec()});
    if R > 0 {
        inputs["required"] = json!(required.to_vec());
    }
    inputs
}

/// Looked-up secrets take their place and key as metadata.
fn lookup<const N: usize, const M: usize>(
    fields: [Value; N],
    metadata: [Value; M],
    required: &[&str],
) -> Value {
    json!({"fields": fields.to_vec(), "metadata": metadata.to_vec(), "required": required})
}

fn all() -> Vec<Builtin> {
    let none = || json!({});
    let mut id = 0;
    let mut types = Vec::new();
    let mut add = |kind, namespace, name, inputs, injectors| {
        id += 1;
        types.push(Builtin { id, kind, namespace, name, inputs, injectors });
    };
    let machine = with(
        fields(
            [
                text("username", "Username"),
                ask(secret("password", "Password")),
                ssh_key("ssh_key_data", "SSH Private Key"),
                with(
                    text("ssh_public_key_data", "Signed SSH Certificate"),
                    json!({"multiline": true, "secret": true}),
                ),
                ask(secret("ssh_key_unlock", "Private Key Passphrase")),
                with(
                    text("become_method", "Privilege Escalation Method"),
                    json!({"help_text": "Specify a method for \"become\" operations. This is equivalent to specifying the --become-method Ansible parameter."}),
                ),
                text("become_username", "Privilege Escalation Username"),
                ask(secret("become_password", "Privilege Escalation Password")),
            ],
            [],
        ),
        json!({"dependencies": {"ssh_key_unlock": ["ssh_key_data"]}}),
    );
    add("ssh", "ssh", "Machine", machine, none());
    let scm = fields(
        [
            text("username", "Username"),
            secret("password", "Password"),
            ssh_key("ssh_key_data", "SCM Private Key"),
            secret("ssh_key_unlock", "Private Key Passphrase"),
        ],
        [],
    );
    add("scm", "scm", "Source Control", scm, none());
    let vault = fields(
        [
            ask(secret("vault_password", "Vault Password")),
            with(
                text("vault_id", "Vault Identifier"),
                json!({"format": "vault_id", "help_text": "Specify an (optional) Vault ID. This is equivalent to specifying the --vault-id Ansible parameter for providing multiple Vault passwords."}),
            ),
        ],
        ["vault_password"],
    );
    add("vault", "vault", "Vault", vault, none());
    let net = with(
        fields(
            [
                text("username", "Username"),
                secret("password", "Password"),
                ssh_key("ssh_key_data", "SSH Private Key"),
                secret("ssh_key_unlock", "Private Key Passphrase"),
                flag("authorize", "Authorize"),
                secret("authorize_password", "Authorize Password"),
            ],
            ["username"],
        ),
        json!({"dependencies": {"authorize_password": ["authorize"]}}),
    );
    add("net", "net", "Network", net, none());
    let aws = fields(
        [
            text("username", "Access Key"),
            secret("password", "Secret Key"),
            with(
                secret("security_token", "STS Token"),
                json!({"help_text": "Security Token Service (STS) is a web service that enables you to request temporary, limited-privilege credentials for AWS Identity and Access Management (IAM) users."}),
            ),
        ],
        ["username", "password"],
    );
    add("cloud", "aws", "Amazon Web Services", aws, none());
    let openstack = fields(
        [
            text("username", "Username"),
            secret("password", "Password (API Key)"),
            with(
                url("host", "Host (Authentication URL)"),
                json!({"help_text": "The host to authenticate with. For example, https://openstack.business.com/v2.0/"}),
            ),
            text("project", "Project (Tenant Name)"),
            text("project_domain_name", "Project (Domain Name)"),
            text("domain", "Domain Name"),
            text("region", "Region Name"),
            with(flag("verify_ssl", "Verify SSL"), json!({"default": true})),
        ],
        ["username", "password", "host", "project"],
    );
    add("cloud", "openstack", "OpenStack", openstack, none());
    let vmware = fields(
        [
            with(
                text("host", "VCenter Host"),
                json!({"help_text": "Enter the hostname or IP address that corresponds to your VMware vCenter."}),
            ),
            text("username", "Username"),
            secret("password", "Password"),
        ],
        ["host", "username", "password"],
    );
    add("cloud", "vmware", "VMware vCenter", vmware, none());
    let satellite = fields(
        [
            with(
                url("host", "Satellite 6 URL"),
                json!({"help_text": "Enter the URL that corresponds to your Red Hat Satellite 6 server. For example, https://satellite.example.org"}),
            ),
            text("username", "Username"),
            secret("password", "Password"),
        ],
        ["host", "username", "password"],
    );
    add("cloud", "satellite6", "Red Hat Satellite 6", satellite, none());
    let gce = fields(
        [
            with(
                text("username", "Service Account Email Address"),
                json!({"help_text": "The email address assigned to the Google Compute Engine service account."}),
            ),
            text("project", "Project"),
            ssh_key("ssh_key_data", "RSA Private Key"),
        ],
        ["username", "ssh_key_data"],
    );
    add("cloud", "gce", "Google Compute Engine", gce, none());
    let azure = fields(
        [
            with(
                text("subscription", "Subscription ID"),
                json!({"help_text": "Subscription ID is an Azure construct, which is mapped to a username."}),
            ),
            text("username", "Username"),
            secret("password", "Password"),
            text("client", "Client ID"),
            secret("secret", "Client Secret"),
            text("tenant", "Tenant ID"),
            text("cloud_environment", "Azure Cloud Environment"),
        ],
        ["subscription"],
    );
    add("cloud", "azure_rm", "Microsoft Azure Resource Manager", azure, none());
    let token = |label: &str| fields([secret("token", label)], ["token"]);
    add("token", "github_token", "GitHub Personal Access Token", token("Token"), none());
    add("token", "gitlab_token", "GitLab Personal Access Token", token("Token"), none());
    let insights =
        fields([text("username", "Username"), secret("password", "Password")], ["username", "password"]);
    let insights_out = json!({
        "extra_vars": {"scm_username": "{{username}}", "scm_password": "{{password}}"},
        "env": {"INSIGHTS_USER": "{{username}}", "INSIGHTS_PASSWORD": "{{password}}"},
    });
    add("insights", "insights", "Insights", insights, insights_out);
    let rhv = fields(
        [
            with(
                text("host", "Host (Authentication URL)"),
                json!({"help_text": "The host to authenticate with."}),
            ),
            text("username", "Username"),
            secret("password", "Password"),
            with(
                text("ca_file", "CA File"),
                json!({"help_text": "Absolute file path to the CA file to use (optional)"}),
            ),
        ],
        ["host", "username", "password"],
    );
    let rhv_out = json!({
        "file": {"template": "[ovirt]\novirt_url={{host}}\novirt_username={{username}}\novirt_password={{password}}\n{% if ca_file %}ovirt_ca_file={{ca_file}}{% endif %}"},
        "env": {"OVIRT_INI_PATH": "{{tower.filename}}", "OVIRT_URL": "{{host}}",
                "OVIRT_USERNAME": "{{username}}", "OVIRT_PASSWORD": "{{password}}"},
    });
    add("cloud", "rhv", "Red Hat Virtualization", rhv, rhv_out);
    let controller = fields(
        [
            with(
                text("host", "Red Hat Ansible Automation Platform"),
                json!({"help_text": "Red Hat Ansible Automation Platform base URL to authenticate with."}),
            ),
            with(
                text("username", "Username"),
                json!({"help_text": "Red Hat Ansible Automation Platform username id to authenticate as. This should not be set if an OAuth token is being used."}),
            ),
            secret("password", "Password"),
            with(
                secret("oauth_token", "OAuth Token"),
                json!({"help_text": "An OAuth token to use to authenticate with. This should not be set if username/password are being used."}),
            ),
            flag("verify_ssl", "Verify SSL"),
        ],
        ["host"],
    );
    let controller_out = json!({"env": {
        "TOWER_HOST": "{{host}}", "TOWER_USERNAME": "{{username}}", "TOWER_PASSWORD": "{{password}}",
        "TOWER_VERIFY_SSL": "{{verify_ssl}}", "TOWER_OAUTH_TOKEN": "{{oauth_token}}",
        "CONTROLLER_HOST": "{{host}}", "CONTROLLER_USERNAME": "{{username}}", "CONTROLLER_PASSWORD": "{{password}}",
        "CONTROLLER_VERIFY_SSL": "{{verify_ssl}}", "CONTROLLER_OAUTH_TOKEN": "{{oauth_token}}",
    }});
    add("cloud", "controller", "Red Hat Ansible Automation Platform", controller, controller_out);
    let kubernetes = fields(
        [
            with(
                text("host", "OpenShift or Kubernetes API Endpoint"),
                json!({"help_text": "The OpenShift or Kubernetes API Endpoint to authenticate with."}),
            ),
            secret("bearer_token", "API authentication bearer token"),
            with(flag("verify_ssl", "Verify SSL"), json!({"default": true})),
            with(secret("ssl_ca_cert", "Certificate Authority data"), json!({"multiline": true})),
        ],
        ["host", "bearer_token"],
    );
    add(
        "kubernetes",
        "kubernetes_bearer_token",
        "OpenShift or Kubernetes API Bearer Token",
        kubernetes,
        none(),
    );
    let registry = fields(
        [
            with(
                text("host", "Authentication URL"),
                json!({"default": "quay.io", "help_text": "Authentication endpoint for the container registry."}),
            ),
            text("username", "Username"),
            with(
                secret("password", "Password or Token"),
                json!({"help_text": "A password or token used to authenticate with"}),
            ),
            with(flag("verify_ssl", "Verify SSL"), json!({"default": true})),
        ],
        ["host"],
    );
    add("registry", "registry", "Container Registry", registry, none());
    let galaxy = fields(
        [
            with(
                text("url", "Galaxy Server URL"),
                json!({"help_text": "The URL of the Galaxy instance to connect to."}),
            ),
            with(
                text("auth_url", "Auth Server URL"),
                json!({"help_text": "The URL of a Keycloak server token_endpoint, if using SSO auth."}),
            ),
            with(
                secret("token", "API Token"),
                json!({"help_text": "A token to use for authentication against the Galaxy instance."}),
            ),
        ],
        ["url"],
    );
    add("galaxy", "galaxy_api_token", "Ansible Galaxy/Automation Hub API Token", galaxy, none());
    let gpg = fields(
        [with(
            secret("gpg_public_key", "GPG Public Key"),
            json!({"multiline": true, "help_text": "GPG Public Key used to validate content signatures."}),
        )],
        ["gpg_public_key"],
    );
    add("cryptography", "gpg_public_key", "GPG Public Key", gpg, none());
    let terraform = fields(
        [
            with(
                secret("configuration", "Backend configuration"),
                json!({"multiline": true, "help_text": "Terraform backend config as Hashicorp configuration language."}),
            ),
            with(
                secret("gce_credentials", "Google Cloud Platform account credentials"),
                json!({"multiline": true, "help_text": "Google Cloud Platform account credentials in JSON format."}),
            ),
        ],
        ["configuration"],
    );
    add("cloud", "terraform", "Terraform backend configuration", terraform, none());
    add("token", "bitbucket_dc_token", "Bitbucket Data Center HTTP Access Token", token("Token"), none());
    let aim = lookup(
        [
            url("url", "CyberArk CCP URL"),
            text("webservice_id", "Web Service ID"),
            secret("app_id", "Application ID"),
            with(secret("client_key", "Client Key"), json!({"multiline": true})),
            with(secret("client_cert", "Client Certificate"), json!({"multiline": true})),
            with(flag("verify", "Verify SSL Certificates"), json!({"default": true})),
        ],
        [
            text("object_query", "Object Query"),
            with(
                text("object_query_format", "Object Query Format"),
                json!({"default": "Exact", "choices": ["Exact", "Regexp"]}),
            ),
            text("object_property", "Object Property"),
            text("reason", "Reason"),
        ],
        &["url", "app_id", "object_query"],
    );
    add("external", "aim", "CyberArk Central Credential Provider Lookup", aim, none());
    let aws_secrets = lookup(
        [text("aws_access_key", "AWS Access Key"), secret("aws_secret_key", "AWS Secret Key")],
        [text("region_name", "AWS Secrets Manager Region"), text("secret_name", "AWS Secret Name")],
        &["aws_access_key", "aws_secret_key", "region_name", "secret_name"],
    );
    add("external", "aws_secretsmanager_credential", "AWS Secrets Manager lookup", aws_secrets, none());
    let azure_vault = lookup(
        [
            url("url", "Vault URL (DNS Name)"),
            text("client", "Client ID"),
            secret("secret", "Client Secret"),
            text("tenant", "Tenant ID"),
            with(text("cloud_name", "Cloud Environment"), json!({"default": "AzureCloud"})),
        ],
        [text("secret_field", "Secret Name"), text("secret_version", "Secret Version")],
        &["url", "secret_field"],
    );
    add("external", "azure_kv", "Microsoft Azure Key Vault", azure_vault, none());
    let centrify = lookup(
        [
            url("url", "Centrify Tenant URL"),
            text("client_id", "Centrify API User"),
            secret("client_password", "Centrify API Password"),
            text("oauth_application_id", "OAuth2 Application ID"),
            text("oauth_scope", "OAuth2 Scope"),
        ],
        [text("account-name", "Account Name"), text("system-name", "System Name")],
        &["url", "account-name", "system-name", "client_id", "client_password"],
    );
    add("external", "centrify_vault_kv", "Centrify Vault Credential Provider Lookup", centrify, none());
    let conjur = lookup(
        [
            url("url", "Conjur URL"),
            secret("api_key", "API Key"),
            text("account", "Account"),
            text("username", "Username"),
            with(text("cacert", "Public Key Certificate"), json!({"multiline": true})),
        ],
        [text("secret_path", "Secret Identifier"), text("secret_version", "Secret Version")],
        &["url", "api_key", "account", "username"],
    );
    add("external", "conjur", "CyberArk Conjur Secrets Manager Lookup", conjur, none());
    let hashivault = |metadata: Vec<Value>, required: &[&str]| {
        json!({
            "fields": [
                url("url", "Server URL"),
                secret("token", "Token"),
                with(text("cacert", "CA Certificate"), json!({"multiline": true})),
                with(text("role_id", "AppRole role_id"), json!({"multiline": false})),
                secret("secret_id", "AppRole secret_id"),
                with(text("client_cert_public", "Client Certificate"), json!({"multiline": true})),
                with(secret("client_cert_private", "Client Certificate Key"), json!({"multiline": true})),
                text("client_cert_role", "TLS Authentication Role"),
                text("namespace", "Namespace name (Vault Enterprise only)"),
                text("kubernetes_role", "Kubernetes role"),
                text("username", "Username"),
                secret("password", "Password"),
                with(text("default_auth_path", "Path to Auth"), json!({"default": "approle"})),
            ],
            "metadata": metadata,
            "required": required,
        })
    };
    let mut kv = hashivault(
        vec![
            text("secret_backend", "Name of Secret Backend"),
            text("secret_path", "Path to Secret"),
            text("auth_path", "Path to Auth"),
            text("secret_key", "Key Name"),
            text("secret_version", "Secret Version (v2 only)"),
        ],
        &["url", "secret_path", "api_version", "secret_key"],
    );
    if let Some(fields) = kv["fields"].as_array_mut() {
        fields.push(with(
            text("api_version", "API Version"),
            json!({"choices": ["v1", "v2"], "default": "v1"}),
        ));
    }
    add("external", "hashivault_kv", "HashiCorp Vault Secret Lookup", kv, none());
    let ssh = hashivault(
        vec![
            with(text("public_key", "Unsigned Public Key"), json!({"multiline": true})),
            text("secret_path", "Path to Secret"),
            text("auth_path", "Path to Auth"),
            text("role", "Role Name"),
            text("valid_principals", "Valid Principals"),
        ],
        &["url", "secret_path", "public_key", "role"],
    );
    add("external", "hashivault_ssh", "HashiCorp Vault Signed SSH", ssh, none());
    let dsv = lookup(
        [
            text("tenant", "Tenant"),
            with(
                text("tld", "Top-level Domain (TLD)"),
                json!({"choices": ["ca", "com", "com.au", "eu"], "default": "com"}),
            ),
            text("client_id", "Client ID"),
            secret("client_secret", "Client Secret"),
        ],
        [
            text("path", "Secret Path"),
            text("secret_field", "Secret Field"),
            with(
                text("secret_decoding", "Should the secret be base64 decoded?"),
                json!({"choices": ["No Decoding", "Decode Base64"], "default": "No Decoding"}),
            ),
        ],
        &["tenant", "client_id", "client_secret", "path", "secret_field", "secret_decoding"],
    );
    add("external", "thycotic_dsv", "Thycotic DevOps Secrets Vault", dsv, none());
    let tss = lookup(
        [
            with(
                text("server_url", "Secret Server URL"),
                json!({"help_text": "The Base URL of Secret Server e.g. https://myserver/SecretServer or https://mytenant.secretservercloud.com"}),
            ),
            text("username", "Username"),
            text("domain", "Domain"),
            secret("password", "Password"),
        ],
        [text("secret_id", "Secret ID"), text("secret_field", "Secret Field")],
        &["server_url", "username", "password", "secret_id", "secret_field"],
    );
    add("external", "thycotic_tss", "Thycotic Secret Server", tss, none());
    // Not one of AWX's: whatever answers a GET over HTTPS.
    let https = lookup(
        [
            with(
                url("url", "Server URL"),
                json!({"help_text": "The address below which the secrets are, beginning with https://"}),
            ),
            secret("token", "Token"),
            with(
                text("header", "Header of the token"),
                json!({"help_text": "Name of the HTTP header that brings the token. Without one: Authorization: Bearer TOKEN"}),
            ),
            text("username", "Username"),
            secret("password", "Password"),
            with(text("cacert", "CA Certificate"), json!({"multiline": true})),
            with(text("client_cert_public", "Client Certificate"), json!({"multiline": true})),
            with(secret("client_cert_private", "Client Certificate Key"), json!({"multiline": true})),
        ],
        [
            with(text("path", "Path to Secret"), json!({"help_text": "Below the address of the server."})),
            with(
                text("key", "Key"),
                json!({"help_text": "Where the secret is in an answer of JSON: data.password. Without one the answer is the secret."}),
            ),
        ],
        &["url"],
    );
    add("external", "https_secret", "HTTPS Secret Lookup", https, none());
    types
}

/// The fields of a built-in type.
#[cfg(test)]
pub(crate) fn fields_of(namespace: &str) -> Vec<Value> {
    let found = all().into_iter().find(|builtin| builtin.namespace == namespace);
    found.and_then(|builtin| builtin.inputs["fields"].as_array().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use sea_query::{Expr, ExprTrait};

    use super::*;

    #[test]
    fn ids_are_those_of_the_guides() {
        let types = all();
        let id = |namespace: &str| types.iter().find(|builtin| builtin.namespace == namespace).unwrap().id;
        assert_eq!(
            [id("ssh"), id("scm"), id("vault"), id("net"), id("aws"), id("registry")],
            [1, 2, 3, 4, 5, 17]
        );
    }

    #[test]
    fn every_type_is_whole() {
        for builtin in all() {
            let known = crate::registry::credentials::CREDENTIAL_KINDS;
            assert!(known.iter().any(|(kind, _)| *kind == builtin.kind), "{}", builtin.name);
            let fields = builtin.inputs["fields"].as_array().unwrap();
            let metadata = builtin.inputs["metadata"].as_array().cloned().unwrap_or_default();
            let ids: Vec<&Value> = fields.iter().chain(&metadata).map(|field| &field["id"]).collect();
            for required in builtin.inputs["required"].as_array().into_iter().flatten() {
                assert!(ids.contains(&required), "{}: {required}", builtin.name);
            }
        }
    }

    #[tokio::test]
    async fn seeding_twice_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let db = CoreDb::open(&dir.path().join("core.sqlite")).await.unwrap();
        seed(&db).await.unwrap();
        seed(&db).await.unwrap();
        let mut query = Query::select();
        query.column("namespace").from("credential_types").and_where(Expr::col("id").eq(17));
        let row = db.optional(&query).await.unwrap().unwrap();
        assert_eq!(row.value::<String>("namespace").unwrap(), "registry");
    }
}
