//! Role definitions: the newer way to the same roles.

use super::*;
use crate::registry::roles as fixed;

struct World {
    api: Api,
    ada: String,
    user: i64,
    inventory: i64,
}

impl World {
    async fn new() -> Self {
        let api = Api::new().await;
        let inventory = api.make("inventories", json!({"name": "shared", "organization": 1})).await;
        let ada = api.ordinary("ada").await;
        let user = api.get("/api/v2/users/?username=ada").await.json["results"][0]["id"].as_i64().unwrap();
        Self { api, ada, user, inventory }
    }

    async fn definition(&self, name: &str) -> i64 {
        let found = self.api.get(&format!("/api/v2/role_definitions/?name={name}")).await;
        assert_eq!(found.json["count"], 1, "{}", found.text);
        found.json["results"][0]["id"].as_i64().unwrap()
    }

    async fn sees(&self) -> bool {
        let path = format!("/api/v2/inventories/{}/", self.inventory);
        self.api.by(&self.ada, "GET", &path, json!(null)).await.status == 200
    }
}

#[tokio::test]
async fn a_role_is_given_and_taken_by_every_way() {
    let world = World::new().await;
    let api = &world.api;
    let definition = world.definition("Inventory%20Use").await;
    let role = fixed::by_path("inventories").unwrap().id(world.inventory, "use_role").unwrap();
    let holds =
        async || api.get(&format!("/api/v2/users/{}/roles/?id={role}", world.user)).await.json["count"] == 1;
    let body =
        json!({"role_definition": definition, "user": world.user, "object_id": world.inventory.to_string()});
    let made = api.post("/api/v2/role_user_assignments/", body.clone()).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.json["content_type"], "awx.inventory");
    assert_eq!(made.json["object_id"], world.inventory.to_string());
    assert_eq!(made.json["summary_fields"]["role_definition"]["name"], "Inventory Use");
    assert!(world.sees().await && holds().await);
    // Once more is the same one, and it is found as clients look for it.
    let again = api.post("/api/v2/role_user_assignments/", body).await;
    assert_eq!((again.status, &again.json["id"]), (StatusCode::CREATED, &made.json["id"]));
    let query = format!("role_definition={definition}&user={}&object_id={}", world.user, world.inventory);
    let found = api.get(&format!("/api/v2/role_user_assignments/?{query}")).await;
    assert_eq!((&found.json["count"], &found.json["results"][0]["id"]), (&json!(1), &made.json["id"]));
    // Their own is seen by who holds it, and not theirs to take.
    let url = made.json["url"].as_str().unwrap().to_owned();
    assert_eq!(api.by(&world.ada, "GET", &url, json!(null)).await.status, 200);
    assert_eq!(api.by(&world.ada, "DELETE", &url, json!(null)).await.status, 403);
    // Taken at the role, it is no assignment any more.
    let taken = json!({"id": world.user, "disassociate": true});
    assert_eq!(api.post(&format!("/api/v2/roles/{role}/users/"), taken).await.status, 204);
    assert_eq!(api.get(&url).await.status, 404);
    assert!(!world.sees().await);
    // Given at the user, it is one; taken as one, the user holds it no more.
    let given = json!({"id": role});
    assert_eq!(api.post(&format!("/api/v2/users/{}/roles/", world.user), given).await.status, 204);
    assert_eq!(api.get(&url).await.status, 200);
    assert_eq!(api.call("DELETE", &url, json!(null)).await.status, 204);
    assert!(!world.sees().await && !holds().await);
}

#[tokio::test]
async fn a_team_is_given_a_role_as_its_organization_allows() {
    let world = World::new().await;
    let api = &world.api;
    let team = api.make("teams", json!({"name": "ops", "organization": 1})).await;
    let member = json!({"id": world.user});
    assert_eq!(api.post(&format!("/api/v2/teams/{team}/users/"), member).await.status, 204);
    let assign = async |name: &str, object: i64| {
        let definition = world.definition(name).await;
        let body = json!({"role_definition": definition, "team": team, "object_id": object});
        api.post("/api/v2/role_team_assignments/", body).await
    };
    let made = assign("Inventory%20Update", world.inventory).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert!(world.sees().await);
    let definition = made.json["role_definition"].as_i64().unwrap();
    let listed = api.get(&format!("/api/v2/role_definitions/{definition}/team_assignments/")).await;
    assert_eq!(listed.json["results"][0]["team"], team);
    // Members of teams see what their team holds.
    let seen = api.by(&world.ada, "GET", made.json["url"].as_str().unwrap(), json!(null)).await;
    assert_eq!(seen.status, 200);
    assert_eq!(assign("Organization%20Admin", 1).await.status, 400);
    assert_eq!(assign("Inventory%20Use", 4711).await.status, 400);
    let url = made.json["url"].as_str().unwrap();
    assert_eq!(api.call("DELETE", url, json!(null)).await.status, 204);
    assert!(!world.sees().await);
}

#[tokio::test]
async fn a_definition_of_ones_own_is_a_bundle_of_roles() {
    let world = World::new().await;
    let api = &world.api;
    let path = "/api/v2/role_definitions/";
    let bundle = |permissions: &[&str]| json!({"name": "mine", "content_type": "awx.inventory", "permissions": permissions});
    for wrong in [
        json!({"name": "mine", "content_type": "awx.nothing", "permissions": []}),
        bundle(&[]),
        bundle(&["awx.change_inventory"]),
        bundle(&["awx.use_project"]),
        json!({"name": "mine", "content_type": "awx.inventory", "permissions": "all"}),
    ] {
        let refused = api.post(path, wrong.clone()).await;
        assert_eq!(refused.status, 400, "{wrong}: {}", refused.text);
    }
    let use_and_update = ["awx.view_inventory", "awx.use_inventory", "awx.update_inventory"];
    let made = api.post(path, bundle(&use_and_update)).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(
        (&made.json["managed"], &made.json["permissions"][1]),
        (&json!(false), &json!("awx.use_inventory"))
    );
    let mine = made.json["id"].as_i64().unwrap();
    let one = api.make("role_definitions", json!({"name": "use", "content_type": "awx.inventory", "permissions": ["awx.view_inventory", "awx.use_inventory"]})).await;
    let assign = async |definition: i64| {
        let body = json!({"role_definition": definition, "user": world.user, "object_id": world.inventory});
        let made = api.post("/api/v2/role_user_assignments/", body).await;
        assert_eq!(made.status, 201, "{}", made.text);
        made.json["url"].as_str().unwrap().to_owned()
    };
    let (both, only) = (assign(mine).await, assign(one).await);
    assert_ne!(both, only);
    let held = async || {
        let held = api.get(&format!("/api/v2/users/{}/roles/?order_by=id", world.user)).await;
        let names = held.json["results"].as_array().unwrap().iter();
        names.map(|role| role["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(held().await, ["Update", "Use", "Read"]);
    // A definition that is assigned stays what it was.
    let url = format!("{path}{mine}/");
    assert_eq!(api.call("PATCH", &url, json!({"permissions": ["awx.view_inventory"]})).await.status, 409);
    assert_eq!(api.call("PATCH", &url, json!({"description": "x"})).await.status, 200);
    assert_eq!(api.call("DELETE", &url, json!(null)).await.status, 409);
    // What another bundle gives as well stays.
    assert_eq!(api.call("DELETE", &both, json!(null)).await.status, 204);
    assert_eq!(held().await, ["Use", "Read"]);
    assert_eq!(api.call("DELETE", &only, json!(null)).await.status, 204);
    assert_eq!(held().await, Vec::<String>::new());
    assert_eq!(api.call("DELETE", &url, json!(null)).await.status, 204);
    // The fixed ones are nobody's to change, and others than the superuser make none.
    let fixed = world.definition("Inventory%20Use").await;
    for method in ["PATCH", "DELETE"] {
        let reply = api.call(method, &format!("{path}{fixed}/"), json!({"description": "x"})).await;
        assert_eq!(reply.status, 403, "{method}");
    }
    assert_eq!(api.by(&world.ada, "POST", path, bundle(&use_and_update)).await.status, 403);
    // With its object goes what was assigned on it.
    let definition = api.make("role_definitions", bundle(&use_and_update)).await;
    let left = assign(definition).await;
    let gone = api.call("DELETE", &format!("/api/v2/inventories/{}/", world.inventory), json!(null)).await;
    assert_eq!((gone.status, api.get(&left).await.status), (StatusCode::ACCEPTED, StatusCode::NOT_FOUND));
}

#[tokio::test]
async fn a_credential_that_is_made_for_a_team_is_the_teams_to_use() {
    let world = World::new().await;
    let api = &world.api;
    let team = api.make("teams", json!({"name": "ops", "organization": 1})).await;
    let member = json!({"id": world.user});
    assert_eq!(api.post(&format!("/api/v2/teams/{team}/users/"), member).await.status, 204);
    let made = api.make("credentials", json!({"name": "theirs", "team": team, "credential_type": 1})).await;
    let shown = api.by(&world.ada, "GET", &format!("/api/v2/credentials/{made}/"), json!(null)).await;
    assert_eq!((shown.status, &shown.json["organization"]), (StatusCode::OK, &json!(1)), "{}", shown.text);
    assert_eq!(shown.json["summary_fields"]["user_capabilities"]["use"], true);
    assert_eq!(shown.json["summary_fields"]["user_capabilities"]["edit"], false);
    let other = api.make("organizations", json!({"name": "other"})).await;
    let wrong = json!({"name": "x", "team": team, "organization": other, "credential_type": 1});
    assert_eq!(api.post("/api/v2/credentials/", wrong).await.status, 400);
}
