//! Lists: pages, filters, orders, and what OPTIONS says of them.

use super::*;

async fn organizations(api: &Api, names: &[&str]) {
    for name in names {
        api.make("organizations", json!({"name": name, "description": format!("of {name}")})).await;
    }
}

fn names(reply: &Reply) -> Vec<&str> {
    reply.json["results"].as_array().unwrap().iter().map(|object| object["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn pages_are_linked_by_paths_with_sorted_parameters() {
    let api = Api::new().await;
    organizations(&api, &["a", "b", "c"]).await;
    let first = api.get("/api/v2/organizations/?page_size=2&order_by=id").await;
    assert_eq!(first.json["count"], 4);
    assert_eq!(first.json["next"], "/api/v2/organizations/?order_by=id&page=2&page_size=2");
    assert!(first.json["previous"].is_null());
    assert_eq!(names(&first), ["Default", "a"]);
    let second = api.get(first.json["next"].as_str().unwrap()).await;
    assert_eq!(names(&second), ["b", "c"]);
    assert_eq!(second.json["previous"], "/api/v2/organizations/?order_by=id&page=1&page_size=2");
    assert!(second.json["next"].is_null());
    for page in ["3", "0", "x", "-1", "99999999999999999999"] {
        let reply = api.get(&format!("/api/v2/organizations/?page_size=2&page={page}")).await;
        assert_eq!(
            (reply.status, &reply.json),
            (StatusCode::NOT_FOUND, &json!({"detail": "Invalid page."})),
            "{page}"
        );
    }
    assert!(api.get("/api/v2/organizations/?count_disabled=1").await.json.get("count").is_none());
    let reply = api.get("/api/v2/organizations?name=a").await;
    assert_eq!(names(&reply), ["a"], "without the slash");
}

#[tokio::test]
async fn a_pattern_is_taken_or_refused_as_each_engine_has_it() {
    let api = Api::new().await;
    for pattern in ["(?P%3Cname%3Ea)", "%5CpL", "%5Bab", "a%7B2,1%7D", "%5B%5B:nosuch:%5D%5D"] {
        for lookup in ["regex", "iregex"] {
            let reply = api.get(&format!("/api/v2/organizations/?name__{lookup}={pattern}")).await;
            let refused = json!({"detail": "Invalid regular expression."});
            let good = reply.status == StatusCode::OK;
            assert!(good || reply.status == StatusCode::BAD_REQUEST, "{pattern}: {}", reply.text);
            assert!(good || reply.json == refused, "{pattern}: {}", reply.text);
        }
    }
}

#[tokio::test]
async fn filters_find_what_they_say() {
    let api = Api::new().await;
    organizations(&api, &["Alpha", "beta", "alphabet", "50%_x"]).await;
    for (query, expected) in [
        ("name=beta", vec!["beta"]),
        ("name__iexact=BETA", vec!["beta"]),
        ("name__contains=lpha", vec!["Alpha", "alphabet"]),
        ("name__contains=LPHA", vec![]),
        ("name__icontains=LPHA", vec!["Alpha", "alphabet"]),
        ("name__startswith=alpha", vec!["alphabet"]),
        ("name__istartswith=alpha", vec!["Alpha", "alphabet"]),
        ("name__endswith=bet", vec!["alphabet"]),
        ("name__endswith=BET", vec![]),
        ("name__iendswith=BET", vec!["alphabet"]),
        ("name__icontains=%25_", vec!["50%_x"]),
        ("name__in=beta,Alpha", vec!["Alpha", "beta"]),
        ("name__regex=^a.*t$", vec!["alphabet"]),
        ("name__iregex=^ALPHA$", vec!["Alpha"]),
        ("id__gt=3", vec!["50%_x", "alphabet"]),
        ("id__gte=2&id__lt=4", vec!["Alpha", "beta"]),
        ("not__name=Default&id__lte=3", vec!["Alpha", "beta"]),
        ("or__name=beta&or__id=1", vec!["Default", "beta"]),
        ("search=OF+alpha", vec!["Alpha", "alphabet"]),
        ("default_environment=none&name=beta", vec!["beta"]),
        ("default_environment__isnull=false", vec![]),
        ("created__gt=2020-01-01T00:00:00Z&name=beta", vec!["beta"]),
        ("created__lt=2020-01-01", vec![]),
        ("created_by__username=admin&name=beta", vec!["beta"]),
    ] {
        let reply = api.get(&format!("/api/v2/organizations/?{query}")).await;
        assert_eq!(reply.status, 200, "{query}: {}", reply.text);
        // Servers sort as they are set up.
        let mut found = names(&reply);
        found.sort_unstable();
        assert_eq!(found, expected, "{query}");
        assert_eq!(reply.json["count"], expected.len(), "{query}");
    }
}

#[tokio::test]
async fn relations_are_filtered_and_ordered() {
    let api = Api::new().await;
    let one = api.make("inventories", json!({"name": "one", "organization": 1})).await;
    let two = api.make("inventories", json!({"name": "two", "organization": 1})).await;
    let a = api.make("hosts", json!({"name": "a", "inventory": two})).await;
    api.make("hosts", json!({"name": "b", "inventory": one})).await;
    let group = api.make("groups", json!({"name": "web", "inventory": two})).await;
    let reply = api.post(&format!("/api/v2/groups/{group}/hosts/"), json!({"id": a})).await;
    assert_eq!(reply.status, 204, "{}", reply.text);
    for (query, expected) in [
        ("inventory__name=two", vec!["a"]),
        ("inventory__organization__name=Default", vec!["a", "b"]),
        ("inventory__id=1", vec!["b"]),
        ("groups__name=web", vec!["a"]),
        ("groups__isnull=true", vec!["b"]),
        ("groups=1", vec!["a"]),
        ("order_by=inventory__name", vec!["b", "a"]),
        ("order_by=-name", vec!["b", "a"]),
    ] {
        let reply = api.get(&format!("/api/v2/hosts/?{query}")).await;
        assert_eq!(reply.status, 200, "{query}: {}", reply.text);
        assert_eq!(names(&reply), expected, "{query}");
    }
}

#[tokio::test]
async fn bad_filters_are_told_in_known_words() {
    let api = Api::new().await;
    for (query, status, words) in [
        ("nosuch=1", 400, "Organization has no field named 'nosuch'"),
        ("order_by=nosuch", 400, "Organization has no field named 'nosuch'"),
        ("id=abc", 400, "Field 'id' expected a number but got 'abc'."),
    ] {
        let reply = api.get(&format!("/api/v2/organizations/?{query}")).await;
        assert_eq!((reply.status.as_u16(), &reply.json), (status, &json!({"detail": words})), "{query}");
    }
    let reply = api.get("/api/v2/users/?password__startswith=a").await;
    assert_eq!(reply.status, 403);
    let reply = api.get("/api/v2/organizations/?created_by__password=a").await;
    assert_eq!(reply.status, 403);
}

#[tokio::test]
async fn options_tell_the_command_line_its_flags() {
    let api = Api::new().await;
    for resource in registry::ALL {
        let list = api.call("OPTIONS", &resource.list_url(), json!(null)).await;
        assert_eq!(list.status, 200, "{resource:?}");
        let actions = list.json["actions"].as_object().unwrap();
        // Anything else than these two is a crash of the command.
        assert!(actions.keys().all(|verb| verb == "GET" || verb == "POST"), "{resource:?}");
        assert_eq!(actions.contains_key("POST"), resource.verbs.create, "{resource:?}");
        assert_eq!(list.headers["allow"], resource.verbs.list());
        // An id that does not exist is asked for its methods all the same.
        let detail = api.call("OPTIONS", &resource.url(987_654), json!(null)).await;
        assert_eq!(detail.status, 200, "{resource:?}");
        assert_eq!(detail.headers["allow"], resource.verbs.detail());
    }
    let launch = api.call("OPTIONS", "/api/v2/job_templates/1/launch/", json!(null)).await;
    assert_eq!(launch.status, 200);
    let post = &launch.json["actions"]["POST"];
    for (name, kind) in [
        ("extra_vars", "json"),
        ("inventory", "id"),
        ("credentials", "list_of_ids"),
        ("limit", "string"),
        ("job_type", "choice"),
        ("diff_mode", "boolean"),
        ("forks", "integer"),
        ("labels", "field"),
    ] {
        assert_eq!(post[name]["type"], kind, "{name}");
        assert_eq!(post[name]["required"], false, "{name}");
    }
    let types = api.call("OPTIONS", "/api/v2/credential_types/", json!(null)).await;
    let kinds = &types.json["actions"]["POST"]["kind"]["choices"];
    assert_eq!(kinds, &json!([["net", "Network"], ["cloud", "Cloud"]]));
    let members = api.call("OPTIONS", "/api/v2/job_templates/1/credentials/", json!(null)).await;
    assert_eq!(members.json["actions"]["POST"]["id"]["type"], "integer");
}

#[tokio::test]
async fn methods_that_are_not_there_are_refused() {
    let api = Api::new().await;
    for (method, path) in [
        ("DELETE", "/api/v2/organizations/"),
        ("POST", "/api/v2/organizations/1/"),
        ("PUT", "/api/v2/ping/"),
        ("DELETE", "/api/v2/roles/1/"),
    ] {
        let reply = api.call(method, path, json!({})).await;
        assert_eq!(reply.status, 405, "{method} {path}");
        assert_eq!(reply.json["detail"], format!("Method \"{method}\" not allowed."));
        assert!(reply.headers["allow"].to_str().unwrap().contains("GET"));
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let api = Api::new().await;
    let reply = api.get("/api/v2/organizations/99/").await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json["detail"]),
        (404, &json!("No Organization matches the given query."))
    );
    for path in [
        "/",
        "/api/v2/nosuch/",
        "/api/v2/organizations/1/nosuch/",
        "/api/v3/",
        "/api/v2/organizations/1/projects/1/",
        "/etc/passwd",
    ] {
        let reply = api.get(path).await;
        assert_eq!(reply.status, if path == "/" { 302 } else { 404 }, "{path}");
    }
}

#[tokio::test]
async fn names_stand_for_ids_in_addresses() {
    let api = Api::new().await;
    api.template("web").await;
    for (path, id) in [
        ("/api/v2/organizations/Default/", 1),
        ("/api/v2/users/admin/", 1),
        ("/api/v2/projects/web++Default/", 1),
        ("/api/v2/job_templates/web++Default/", 2),
        ("/api/v2/inventories/web++Default/", 1),
    ] {
        let reply = api.get(path).await;
        assert_eq!(
            (reply.status.as_u16(), reply.json["id"].as_i64()),
            (200, Some(id)),
            "{path}: {}",
            reply.text
        );
        assert_eq!(reply.json["related"]["named_url"], path);
    }
    api.make("hosts", json!({"name": "h", "inventory": 1})).await;
    assert_eq!(api.get("/api/v2/hosts/h++web++Default/").await.json["name"], "h");
    for path in [
        "/api/v2/projects/web/",
        "/api/v2/projects/web++Nosuch/",
        "/api/v2/projects/web++Default++x/",
        "/api/v2/jobs/x/",
    ] {
        assert_eq!(api.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn every_address_an_object_names_answers() {
    let api = Api::new().await;
    let template = api.template("web").await;
    api.make("hosts", json!({"name": "h", "inventory": 1})).await;
    api.make("groups", json!({"name": "g", "inventory": 1})).await;
    api.make("credentials", json!({"name": "c", "organization": 1, "credential_type": 1})).await;
    api.make("execution_environments", json!({"name": "e", "image": "ee", "organization": 1})).await;
    api.post(&format!("/api/v2/job_templates/{template}/launch/"), json!({})).await;
    for resource in registry::ALL {
        let list = api.get(&resource.list_url()).await;
        for object in list.json["results"].as_array().unwrap() {
            let detail = api.get(object["url"].as_str().unwrap()).await;
            let related = detail.json["related"].as_object().unwrap().iter();
            // An entry of the activity stream names several of a kind.
            let paths = related.flat_map(|(name, path)| match path.as_array() {
                Some(several) => several.iter().map(|path| (name, path)).collect(),
                None => vec![(name, path)],
            });
            for (name, path) in paths {
                let path = &path.as_str().unwrap().replace(' ', "%20");
                for method in ["GET", "OPTIONS"] {
                    let reply = api.call(method, path, json!(null)).await;
                    assert_eq!(reply.status, 200, "{method} {name} of {resource:?}: {path}");
                }
            }
        }
    }
}

#[tokio::test]
async fn pages_by_cursor_show_everything_once_while_objects_come_and_go() {
    let api = Api::new().await;
    let names: Vec<String> = (0..10).map(|n| format!("o{n}")).collect();
    organizations(&api, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for order in ["id", "-id"] {
        let mut path =
            format!("/api/v2/organizations/?name__startswith=o&page_size=3&order_by={order}&cursor=");
        let mut seen = Vec::new();
        loop {
            let page = api.get(&path).await;
            assert_eq!(page.status, 200, "{path}: {}", page.text);
            assert!(page.json.get("count").is_none());
            let results = page.json["results"].as_array().unwrap();
            seen.extend(results.iter().map(|one| one["name"].as_str().unwrap().to_owned()));
            // What goes meanwhile moves no other out of sight.
            if seen.len() == 3 {
                api.call("DELETE", results[0]["url"].as_str().unwrap(), json!(null)).await;
            }
            match page.json["next"].as_str() {
                Some(next) => path = next.to_owned(),
                None => break,
            }
        }
        let mut sorted = seen.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(seen.len(), sorted.len(), "{seen:?}");
        assert_eq!(seen.len(), if order == "id" { 10 } else { 9 }, "{seen:?}");
    }
    assert_eq!(api.get("/api/v2/organizations/?cursor=x").await.status, 400);
    assert_eq!(api.get("/api/v2/organizations/?cursor=&order_by=name").await.status, 400);
    let last = api.get("/api/v2/organizations/?cursor=999999").await.json;
    assert_eq!((&last["next"], &last["results"]), (&json!(null), &json!([])));
}

on_postgres_too! {
    a_pattern_is_taken_or_refused_as_each_engine_has_it,
    filters_find_what_they_say,
    relations_are_filtered_and_ordered,
    pages_by_cursor_show_everything_once_while_objects_come_and_go,
}
