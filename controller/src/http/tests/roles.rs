//! Roles: what they open, what stays shut, and that it costs the same for many objects as for one.

use sea_query::{Expr, ExprTrait, Query};

use super::*;
use crate::registry::roles as fixed;
use crate::store::core::Class;

/// One of two who share an installation and nothing else.
struct Tenant {
    admin: String,
    user: i64,
    organization: i64,
    team: i64,
    template: i64,
    /// An object of each family, by its path.
    objects: Vec<(&'static str, i64)>,
}

impl Tenant {
    async fn new(api: &Api, name: &str) -> Self {
        let organization = api.make("organizations", json!({"name": name})).await;
        let admin = api.ordinary(name).await;
        let users = api.get(&format!("/api/v2/users/?username={name}")).await;
        let user = users.json["results"][0]["id"].as_i64().unwrap();
        let path = format!("/api/v2/organizations/{organization}/admins/");
        assert_eq!(api.post(&path, json!({"id": user})).await.status, 204);
        let make = async |list: &str, body: serde_json::Value| {
            let reply = api.by(&admin, "POST", &format!("/api/v2/{list}/"), body).await;
            assert_eq!(reply.status, 201, "{list}: {}", reply.text);
            reply.json["id"].as_i64().unwrap()
        };
        let owned = |name: &str| json!({"name": name, "organization": organization});
        let team = make("teams", owned(name)).await;
        let mut project = owned(name);
        project["local_path"] = "demo".into();
        let project = make("projects", project).await;
        let inventory = make("inventories", owned(name)).await;
        let host = make("hosts", json!({"name": name, "inventory": inventory})).await;
        let group = make("groups", json!({"name": name, "inventory": inventory})).await;
        let mut credential = owned(name);
        credential["credential_type"] = 1.into();
        let credential = make("credentials", credential).await;
        let vault = api.get("/api/v2/credential_types/?namespace=hashivault_kv").await;
        let vault = vault.json["results"][0]["id"].clone();
        let mut environment = owned(name);
        environment["image"] = format!("{name}-ee").into();
        let environment = make("execution_environments", environment).await;
        let body = json!({"name": name, "project": project, "inventory": inventory, "playbook": "site.yml"});
        let template = make("job_templates", body).await;
        let job = make(&format!("job_templates/{template}/launch"), json!({})).await;
        let external = make(
            "credentials",
            json!({"name": "vault", "organization": organization, "credential_type": vault}),
        )
        .await;
        let body = json!({"target_credential": credential, "source_credential": external, "input_field_name": "password",
                          "metadata": {"secret_path": "kv/a", "secret_key": "b"}});
        let input = make("credential_input_sources", body).await;
        let label = make("labels", owned(name)).await;
        let mut application = owned(name);
        application["client_type"] = "public".into();
        application["authorization_grant_type"] = "password".into();
        let application = make("applications", application).await;
        let token = make("tokens", json!({})).await;
        let mut tx = api.app.db.begin(Class::Bulk).await.unwrap();
        let mut summary = Query::insert();
        summary.into_table("job_host_summaries").columns(["job_id", "host_name", "created", "modified"]);
        summary.values_panic([job.into(), name.into(), 0.into(), 0.into()]);
        let summary = tx.insert(&mut summary).await.unwrap();
        let mut update = Query::insert();
        update.into_table("unified_jobs").columns(["kind", "status", "project_id", "created", "modified"]);
        update.values_panic(["project_update".into(), "failed".into(), project.into(), 0.into(), 0.into()]);
        let update = tx.insert(&mut update).await.unwrap();
        tx.commit().await.unwrap();
        let constructed = make("constructed_inventories", owned(&format!("{name} made"))).await;
        let source = json!({"name": name, "inventory": inventory, "source": "ec2"});
        let source = make("inventory_sources", source).await;
        let reply =
            api.by(&admin, "POST", &format!("/api/v2/inventory_sources/{source}/update/"), json!({})).await;
        assert_eq!(reply.status, 202, "{}", reply.text);
        let import = reply.json["id"].as_i64().unwrap();
        let command = json!({"inventory": inventory, "module_name": "ping", "credential": credential});
        let command = make("ad_hoc_commands", command).await;
        let role = fixed::by_path("inventories").unwrap().id(inventory, "use_role").unwrap();
        let told = "/api/v2/activity_stream/?object1=inventory&operation=create";
        let told = api.by(&admin, "GET", told, json!(null)).await;
        let entry = told.json["results"][0]["id"].as_i64().unwrap();
        // By their administrator, who can give nothing but what is theirs.
        let assigned = async |list: &str, holder: &str, id: i64| {
            let definition = api.get("/api/v2/role_definitions/?name=Inventory%20Use").await;
            let definition = &definition.json["results"][0]["id"];
            let body = json!({"role_definition": definition, holder: id, "object_id": inventory});
            make(list, body).await
        };
        let user_assignment = assigned("role_user_assignments", "user", user).await;
        let team_assignment = assigned("role_team_assignments", "team", team).await;
        let objects = vec![
            ("role_user_assignments", user_assignment),
            ("role_team_assignments", team_assignment),
            ("organizations", organization),
            ("users", user),
            ("teams", team),
            ("projects", project),
            ("project_updates", update),
            ("inventories", inventory),
            ("constructed_inventories", constructed),
            ("inventory_sources", source),
            ("inventory_updates", import),
            ("ad_hoc_commands", command),
            ("hosts", host),
            ("groups", group),
            ("credentials", credential),
            ("execution_environments", environment),
            ("job_templates", template),
            ("unified_job_templates", template),
            ("jobs", job),
            ("unified_jobs", job),
            ("job_host_summaries", summary),
            ("labels", label),
            ("credential_input_sources", input),
            ("applications", application),
            ("tokens", token),
            ("roles", role),
            ("activity_stream", entry),
        ];
        Self { admin, user, organization, team, template, objects }
    }

    fn of(&self, path: &str) -> i64 {
        self.objects.iter().find(|(of, _)| *of == path).unwrap().1
    }
}

fn role(path: &str, object: i64, field: &str) -> i64 {
    fixed::by_path(path).unwrap().id(object, field).unwrap()
}

/// No object has this id, and no role.
const NOBODYS: i64 = 0x00ff_ff7f;

#[tokio::test]
async fn what_is_another_tenants_is_not_there() {
    let api = Api::new().await;
    let one = Tenant::new(&api, "one").await;
    let other = Tenant::new(&api, "other").await;
    for resource in registry::ALL.iter().copied().chain([&registry::JOB_HOST_SUMMARIES]) {
        let shared = matches!(
            resource.path,
            "credential_types"
                | "host_metrics"
                | "instances"
                | "instance_groups"
                | "system_job_templates"
                | "system_jobs"
                | "role_definitions"
        );
        let Some(&(_, theirs)) = other.objects.iter().find(|(path, _)| *path == resource.path) else {
            assert!(shared, "{resource:?} needs an object here");
            continue;
        };
        let mine = api.by(&one.admin, "GET", &resource.url(one.of(resource.path)), json!(null)).await;
        assert_eq!(mine.status, 200, "{resource:?}: {}", mine.text);
        if resource.path != "job_host_summaries" {
            let seen = api.by(&one.admin, "GET", &resource.list_url(), json!(null)).await;
            assert!(seen.json["count"].as_i64().unwrap() > 0, "{resource:?}");
            let ids = seen.json["results"].as_array().unwrap().iter().map(|shown| shown["id"].as_i64());
            assert!(!ids.flatten().any(|id| id == theirs), "{resource:?}: {}", seen.text);
        }
        let below = resource.lists.iter().map(|list| list.name).chain(resource.actions.iter().copied());
        let below = below.chain(registry::later::below(resource.path).map(|(name, _)| name));
        for name in std::iter::once("").chain(below) {
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
                for body in [json!({}), json!({"id": one.user, "name": "x", "limit": "x"})] {
                    let ask = async |id: i64| {
                        let path = format!("{}{name}/", resource.url(id)).replace("//", "/");
                        let reply = api.by(&one.admin, method, &path, body.clone()).await;
                        (reply.status, reply.text)
                    };
                    let (real, absent) = (ask(theirs).await, ask(NOBODYS).await);
                    assert_eq!(real, absent, "{method} {resource:?} {name}");
                    let expected = [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED];
                    // A call back shows a key instead of a user: without it all templates look alike.
                    let calls_back =
                        (name, method) == ("callback", "POST") && real.0 == StatusCode::FORBIDDEN;
                    assert!(
                        calls_back || expected.contains(&real.0),
                        "{method} {resource:?} {name}: {real:?}"
                    );
                }
            }
        }
    }
    // Nothing of it has changed.
    for (path, id) in &other.objects {
        let reply = api.get(&format!("/api/v2/{path}/{id}/")).await;
        assert!(*path == "tokens" || reply.status == 200, "{path}: {}", reply.text);
    }
}

#[tokio::test]
async fn nothing_points_to_what_is_another_tenants() {
    let api = Api::new().await;
    let one = Tenant::new(&api, "one").await;
    let other = Tenant::new(&api, "other").await;
    let by = async |method: &str, path: &str, body| api.by(&one.admin, method, path, body).await;
    for resource in registry::ALL.iter().filter(|resource| resource.verbs.update) {
        let Some(&(_, mine)) = one.objects.iter().find(|(path, _)| *path == resource.path) else { continue };
        for field in resource.fields.iter().filter(|field| field.mode == registry::Mode::ReadWrite) {
            let registry::Kind::Id(of) = field.kind else { continue };
            let Some(&(_, theirs)) = other.objects.iter().find(|(path, _)| *path == of.path) else {
                continue;
            };
            let refused = by("PATCH", &resource.url(mine), json!({field.name: theirs})).await;
            assert_eq!(refused.status, 400, "{resource:?} {}: {}", field.name, refused.text);
        }
    }
    for (list, of) in [("job_templates", "credentials"), ("hosts", "groups"), ("groups", "hosts")] {
        let path = format!("/api/v2/{list}/{}/{of}/", one.of(list));
        let reply = by("POST", &path, json!({"id": other.of(of)})).await;
        assert_eq!(reply.status, 400, "{path}: {}", reply.text);
    }
    let prompted = json!({"ask_inventory_on_launch": true, "ask_credential_on_launch": true, "ask_execution_environment_on_launch": true});
    let template = format!("/api/v2/job_templates/{}/", one.template);
    assert_eq!(by("PATCH", &template, prompted).await.status, 200);
    let launch = format!("{template}launch/");
    for (field, of) in [("inventory", "inventories"), ("execution_environment", "execution_environments")] {
        let reply = by("POST", &launch, json!({field: other.of(of)})).await;
        assert_eq!(reply.status, 400, "{field}: {}", reply.text);
    }
    let reply = by("POST", &launch, json!({"credentials": [other.of("credentials")]})).await;
    assert_eq!(reply.status, 400, "{}", reply.text);
    let body = json!({"name": "n", "project": one.of("projects"), "inventory": one.of("inventories"),
                      "playbook": "site.yml", "credentials": [other.of("credentials")]});
    assert_eq!(by("POST", "/api/v2/job_templates/", body).await.status, 400);
    // Nor is anybody of theirs given a role, nor a role of theirs given.
    let mine = role("inventories", one.of("inventories"), "use_role");
    for (path, id) in [
        (format!("/api/v2/roles/{mine}/users/"), other.user),
        (format!("/api/v2/roles/{mine}/teams/"), other.team),
        (format!("/api/v2/users/{}/roles/", one.user), other.of("roles")),
        (format!("/api/v2/teams/{}/roles/", one.team), other.of("roles")),
        (format!("/api/v2/teams/{}/users/", one.team), other.user),
        (format!("/api/v2/organizations/{}/users/", one.organization), other.user),
    ] {
        assert_eq!(by("POST", &path, json!({"id": id})).await.status, 400, "{path}");
    }
    // A filter does not reach it either, not even by the way of what both see.
    for query in [
        "users/?organizations__name=other",
        "teams/?users__username=other",
        "credential_types/?credentials__name=other",
        "roles/?users__username=other",
    ] {
        let reply = by("GET", &format!("/api/v2/{query}"), json!(null)).await;
        assert_eq!((reply.status, &reply.json["count"]), (StatusCode::OK, &json!(0)), "{query}");
    }
}

#[tokio::test]
async fn each_role_opens_what_it_says_and_no_more() {
    let api = Api::new().await;
    let one = Tenant::new(&api, "one").await;
    let ada = api.ordinary("ada").await;
    let id = api.get("/api/v2/users/?username=ada").await.json["results"][0]["id"].as_i64().unwrap();
    let template = format!("/api/v2/job_templates/{}/", one.template);
    let launch = format!("{template}launch/");
    let by = async |method: &str, path: &str, body| api.by(&ada, method, path, body).await;
    let roles_of = format!("/api/v2/users/{id}/roles/");
    let give = async |role: i64| {
        let reply = api.post(&roles_of, json!({"id": role})).await;
        assert_eq!((reply.status, reply.text.as_str()), (StatusCode::NO_CONTENT, ""));
    };
    assert_eq!(by("GET", &template, json!(null)).await.status, 404);
    give(role("job_templates", one.template, "read_role")).await;
    let shown = by("GET", &template, json!(null)).await;
    assert_eq!(shown.status, 200);
    assert_eq!(
        shown.json["summary_fields"]["user_capabilities"],
        json!({"edit": false, "delete": false, "start": false, "schedule": false, "copy": false})
    );
    assert_eq!(
        shown.json["summary_fields"]["object_roles"]["execute_role"]["id"],
        role("job_templates", one.template, "execute_role")
    );
    for (method, path) in [("PATCH", &template), ("DELETE", &template), ("POST", &launch)] {
        assert_eq!(by(method, path, json!({})).await.status, 403, "{method} {path}");
    }
    give(role("job_templates", one.template, "execute_role")).await;
    let job = by("POST", &launch, json!({})).await;
    assert_eq!(job.status, 201, "{}", job.text);
    let job = job.json["url"].as_str().unwrap().to_owned();
    assert_eq!(by("GET", &format!("{template}?role_level=execute_role"), json!(null)).await.status, 200);
    for (level, count) in [("execute_role", 1), ("admin_role", 0)] {
        let path = format!("/api/v2/job_templates/?role_level={level}");
        assert_eq!(by("GET", &path, json!(null)).await.json["count"], count, "{level}");
    }
    assert_eq!(by("GET", "/api/v2/job_templates/?role_level=none", json!(null)).await.status, 400);
    // Who started a job stops it; who did not, and does not run the template, does not.
    assert_eq!(by("POST", &format!("{job}cancel/"), json!({})).await.status, 202);
    let others = format!("/api/v2/jobs/{}/cancel/", one.of("jobs"));
    assert_eq!(by("POST", &others, json!({})).await.status, 403);
    assert_eq!(by("DELETE", &job, json!(null)).await.status, 403);
    // Using an inventory and a project is enough to make a template of them, which is then one's own.
    let body = json!({"name": "mine", "project": one.of("projects"), "inventory": one.of("inventories"), "playbook": "site.yml"});
    assert_eq!(by("POST", "/api/v2/job_templates/", body.clone()).await.status, 403);
    give(role("projects", one.of("projects"), "use_role")).await;
    let refused = by("POST", "/api/v2/job_templates/", body.clone()).await;
    assert_eq!(refused.status, 400, "{}", refused.text);
    give(role("inventories", one.of("inventories"), "read_role")).await;
    assert_eq!(by("POST", "/api/v2/job_templates/", body.clone()).await.status, 403);
    give(role("inventories", one.of("inventories"), "use_role")).await;
    let made = by("POST", "/api/v2/job_templates/", body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.json["summary_fields"]["user_capabilities"]["edit"], true);
    assert_eq!(by("DELETE", made.json["url"].as_str().unwrap(), json!(null)).await.status, 204);
    // Taken, it is gone.
    let execute = role("job_templates", one.template, "execute_role");
    let listed = api.get(&format!("{roles_of}?role_field=execute_role")).await;
    assert_eq!(listed.json["results"][0]["summary_fields"]["resource_name"], "one");
    for field in ["read_role", "execute_role"] {
        let role = role("job_templates", one.template, field);
        let reply = api.post(&roles_of, json!({"id": role, "disassociate": true})).await;
        assert_eq!(reply.status, 204);
    }
    assert_eq!(by("POST", &launch, json!({})).await.status, 404);
    assert_eq!(api.get(&format!("/api/v2/roles/{execute}/users/")).await.json["count"], 0);
}

#[tokio::test]
async fn roles_come_by_teams_and_organizations() {
    let api = Api::new().await;
    let one = Tenant::new(&api, "one").await;
    let ada = api.ordinary("ada").await;
    let id = api.get("/api/v2/users/?username=ada").await.json["results"][0]["id"].as_i64().unwrap();
    let template = format!("/api/v2/job_templates/{}/", one.template);
    let sees = async || api.by(&ada, "GET", &template, json!(null)).await.status == 200;
    let execute = role("job_templates", one.template, "execute_role");
    let team = format!("/api/v2/teams/{}/", one.team);
    // Who runs the organization does all of this without the superuser.
    let by = async |path: String, body| {
        let reply = api.by(&one.admin, "POST", &path, body).await;
        assert_eq!(reply.status, 204, "{path}: {}", reply.text);
    };
    assert_eq!(
        api.post(&format!("/api/v2/organizations/{}/users/", one.organization), json!({"id": id}))
            .await
            .status,
        204
    );
    by(format!("{team}users/"), json!({"id": id})).await;
    assert!(!sees().await);
    by(format!("{team}roles/"), json!({"id": execute})).await;
    assert!(sees().await);
    let listed = api.by(&ada, "GET", &format!("{team}roles/?role_field=execute_role"), json!(null)).await;
    assert_eq!(listed.json["results"][0]["id"], execute, "{}", listed.text);
    let access =
        api.by(&one.admin, "GET", &format!("{template}access_list/?username=ada"), json!(null)).await;
    let reason = &access.json["results"][0]["summary_fields"]["direct_access"][0];
    assert_eq!(
        (&reason["role"]["team_name"], &reason["role"]["name"]),
        (&json!("one"), &json!("Execute")),
        "{}",
        access.text
    );
    assert_eq!(reason["descendant_roles"], json!(["read_role", "execute_role"]));
    let parents = api.get(&format!("/api/v2/roles/{execute}/parents/")).await;
    let mut fields: Vec<&str> = parents.json["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|role| role["name"].as_str().unwrap())
        .collect();
    fields.sort_unstable();
    assert_eq!(fields, ["Admin", "Execute", "Member"], "{}", parents.text);
    by(format!("{team}users/"), json!({"id": id, "disassociate": true})).await;
    assert!(!sees().await);
    for (field, opens) in [
        ("member_role", false),
        ("project_admin_role", false),
        ("execute_role", true),
        ("auditor_role", true),
    ] {
        let role = role("organizations", one.organization, field);
        // By the superuser: whoever is no member any more is nobody whom the organization's admin could see.
        let holders = format!("/api/v2/roles/{role}/users/");
        assert_eq!(api.post(&holders, json!({"id": id})).await.status, 204);
        assert_eq!(sees().await, opens, "{field}");
        assert_eq!(api.post(&holders, json!({"id": id, "disassociate": true})).await.status, 204);
    }
    // What a team cannot hold, and what only the superuser gives.
    for (role, status) in [
        (role("organizations", one.organization, "admin_role"), 400),
        (role("teams", one.team, "member_role"), 400),
        (fixed::SYSTEM_AUDITOR, 400),
    ] {
        let reply = api.post(&format!("{team}roles/"), json!({"id": role})).await;
        assert_eq!(reply.status, status, "{}", reply.text);
        assert!(reply.json["msg"].is_string());
    }
    let auditor = json!({"id": fixed::SYSTEM_AUDITOR});
    assert_eq!(api.post(&format!("/api/v2/users/{id}/roles/"), auditor).await.status, 204);
    assert!(sees().await);
    assert_eq!(api.by(&ada, "PATCH", &template, json!({"name": "x"})).await.status, 403);
    assert_eq!(api.by(&ada, "GET", "/api/v2/roles/", json!(null)).await.status, 200);
    let held = api.get(&format!("/api/v2/users/{id}/roles/")).await;
    assert_eq!(held.json["results"][0]["name"], "System Auditor");
    assert_eq!(api.post(&format!("/api/v2/users/{id}/roles/"), json!({})).await.status, 400);
}

#[tokio::test]
async fn a_page_costs_the_same_for_many_as_for_one() {
    let api = Api::new().await;
    let one = Tenant::new(&api, "one").await;
    let count = async |path: &str| {
        api.by(&one.admin, "GET", path, json!(null)).await;
        let before = api.app.db.asked();
        let reply = api.by(&one.admin, "GET", path, json!(null)).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
        (api.app.db.asked() - before, reply.json["count"].as_i64().unwrap())
    };
    let mut paths: Vec<String> = registry::ALL.iter().map(|resource| resource.list_url()).collect();
    paths.push(format!("/api/v2/inventories/{}/access_list/", one.of("inventories")));
    paths.push(format!("/api/v2/organizations/{}/users/", one.organization));
    let mut few = Vec::new();
    for path in &paths {
        few.push(count(path).await);
    }
    let mut tx = api.app.db.begin(Class::Bulk).await.unwrap();
    for number in 0..20 {
        let name = format!("more{number}");
        let mut host = Query::insert();
        host.into_table("hosts").columns(["name", "inventory_id", "created", "modified"]);
        host.values_panic([name.clone().into(), one.of("inventories").into(), 0.into(), 0.into()]);
        tx.insert(&mut host).await.unwrap();
        let mut user = Query::insert();
        user.into_table("users").columns(["username", "created", "modified"]);
        user.values_panic([name.clone().into(), 0.into(), 0.into()]);
        let user = tx.insert(&mut user).await.unwrap();
        let family = fixed::by_path("organizations").unwrap();
        crate::http::roles::give(&mut tx, family, one.organization, "member_role", user).await.unwrap();
        for kind in ["project", "job_template"] {
            let mut shared = Query::insert();
            shared.into_table("unified_job_templates").columns([
                "kind",
                "name",
                "organization_id",
                "created",
                "modified",
            ]);
            shared.values_panic([
                kind.into(),
                name.clone().into(),
                one.organization.into(),
                0.into(),
                0.into(),
            ]);
            let id = tx.insert(&mut shared).await.unwrap();
            let table = if kind == "project" { "projects" } else { "job_templates" };
            let mut own = Query::insert();
            tx.execute(own.into_table(table).columns(["id"]).values_panic([id.into()])).await.unwrap();
        }
    }
    tx.commit().await.unwrap();
    let mut longer = 0;
    for (path, (queries, before)) in paths.iter().zip(few) {
        let (now, after) = count(path).await;
        // An empty page has no object whose capabilities could be asked for.
        assert!(
            now <= queries + u64::from(before == 0),
            "{path}: {queries} queries for {before} objects, {now} for {after}"
        );
        longer += i32::from(after > before);
    }
    assert!(longer >= 6, "{longer} lists grew");
    let left = Query::select()
        .column("role_id")
        .from("role_users")
        .and_where(Expr::col("object_id").eq(one.organization))
        .take();
    assert!(!api.app.db.all(&left).await.unwrap().is_empty());
    let gone = api.call("DELETE", &format!("/api/v2/teams/{}/", one.team), json!(null)).await;
    assert_eq!(gone.status, 204);
}

on_postgres_too! {
    roles_come_by_teams_and_organizations,
}
