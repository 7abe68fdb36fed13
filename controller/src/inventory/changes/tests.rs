use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::inventory::document::{Group, Host};

/// What the database does with changes: each in its turn, no name twice.
fn apply(stored: &Stored, changes: &Changes) -> Stored {
    let mut after = stored.clone();
    let mut next = 1 + after
        .hosts
        .iter()
        .map(|host| host.id)
        .chain(after.groups.iter().map(|g| g.id))
        .max()
        .unwrap_or(0);
    let unique = |after: &Stored| {
        let names: HashSet<&String> = after.hosts.iter().map(|host| &host.name).collect();
        assert_eq!(names.len(), after.hosts.len(), "two hosts of one name");
    };
    after.hosts.retain(|host| !changes.gone_hosts.contains(&host.id));
    after.groups.retain(|group| !changes.gone_groups.contains(&group.id));
    after.members.retain(|(g, h)| !changes.gone_groups.contains(g) && !changes.gone_hosts.contains(h));
    after.children.retain(|(g, c)| !changes.gone_groups.contains(g) && !changes.gone_groups.contains(c));
    for host in after.hosts.iter_mut().filter(|host| changes.parked.contains(&host.id)) {
        host.name = format!("parked {}", host.id);
    }
    if let Some(variables) = &changes.variables {
        after.variables.clone_from(variables);
    }
    for (name, variables) in &changes.new_groups {
        assert!(after.groups.iter().all(|group| group.name != *name));
        after.groups.push(StoredGroup {
            id: next,
            name: name.clone(),
            variables: variables.clone(),
            ours: true,
        });
        next += 1;
    }
    for (id, variables) in &changes.groups {
        after.groups.iter_mut().find(|group| group.id == *id).unwrap().variables.clone_from(variables);
    }
    for change in &changes.hosts {
        let host = after.hosts.iter_mut().find(|host| host.id == change.id).unwrap();
        if let Some(name) = &change.name {
            host.name.clone_from(name);
        }
        if let Some(id) = &change.instance_id {
            host.instance_id.clone_from(id);
        }
        host.enabled = change.enabled.unwrap_or(host.enabled);
        if let Some(variables) = &change.variables {
            host.variables.clone_from(variables);
        }
        unique(&after);
    }
    for new in &changes.new_hosts {
        let NewHost { name, instance_id, enabled, variables } = new.clone();
        after.hosts.push(StoredHost { id: next, name, instance_id, enabled, variables, ours: true });
        next += 1;
        unique(&after);
    }
    let group =
        |after: &Stored, name: &String| after.groups.iter().find(|group| group.name == *name).unwrap().id;
    let host = |after: &Stored, name: &String| after.hosts.iter().find(|host| host.name == *name).unwrap().id;
    for (name, member) in &changes.joined {
        let pair = (group(&after, name), host(&after, member));
        assert!(after.members.insert(pair), "{name} has {member} already");
    }
    for (name, child) in &changes.nested {
        let pair = (group(&after, name), group(&after, child));
        after.children.insert(pair);
    }
    for pair in &changes.left {
        assert!(after.members.remove(pair));
    }
    for pair in &changes.unnested {
        assert!(after.children.remove(pair));
    }
    for id in &changes.our_hosts {
        after.hosts.iter_mut().find(|host| host.id == *id).unwrap().ours = true;
    }
    for id in &changes.our_groups {
        after.groups.iter_mut().find(|group| group.id == *id).unwrap().ours = true;
    }
    after
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn vars() -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::btree_map(prop::sample::select(vec!["x", "y"]), 0..3_i64, 0..3)
        .prop_map(|vars| vars.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect())
}

fn instance() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "", "1", "2", "3"]).prop_map(str::to_owned)
}

fn subset() -> impl Strategy<Value = Vec<&'static str>> {
    prop::sample::subsequence(NAMES.to_vec(), 0..=NAMES.len())
}

prop_compose! {
    fn documents()(
        variables in vars(),
        hosts in subset(),
        all in prop::collection::vec((vars(), instance(), prop::option::of(any::<bool>())), 5),
        groups in subset(),
        bodies in prop::collection::vec((vars(), subset(), subset()), 5),
    ) -> Document {
        let mut instances = HashSet::new();
        let hosts: BTreeMap<String, Host> = hosts.iter().zip(all).map(|(name, (variables, instance_id, enabled))| {
            let instance_id = if instances.insert(instance_id.clone()) { instance_id } else { String::new() };
            ((*name).to_owned(), Host { variables: Value::Object(variables).to_string(), instance_id, enabled })
        }).collect();
        let named = |names: Vec<&'static str>, of: &dyn Fn(&str) -> bool| {
            names.into_iter().filter(|name| of(name)).map(str::to_owned).collect::<BTreeSet<String>>()
        };
        let bodies = groups.iter().zip(bodies).map(|(name, (variables, members, children))| {
            let members = named(members, &|host| hosts.contains_key(host));
            let children = named(children, &|child| groups.contains(&child) && child != *name);
            ((*name).to_owned(), Group { variables, hosts: members, children })
        }).collect();
        Document { variables, groups: bodies, hosts }
    }
}

prop_compose! {
    fn inventories()(
        variables in vars(),
        hosts in subset(),
        all in prop::collection::vec((vars(), instance(), any::<bool>(), any::<bool>()), 5),
        groups in subset(),
        bodies in prop::collection::vec((vars(), any::<bool>()), 5),
        members in prop::collection::hash_set((0..5_i64, 0..5_i64), 0..12),
        children in prop::collection::hash_set((0..5_i64, 0..5_i64), 0..8),
    ) -> Stored {
        let hosts: Vec<StoredHost> = (0..).zip(hosts).zip(all).map(|((id, name), (vars, instance_id, enabled, ours))| {
            StoredHost { id: 10 + id, name: name.to_owned(), instance_id, enabled, variables: Value::Object(vars).to_string(), ours }
        }).collect();
        let groups: Vec<StoredGroup> = (0..).zip(groups).zip(bodies).map(|((id, name), (vars, ours))| {
            StoredGroup { id: 50 + id, name: name.to_owned(), variables: Value::Object(vars).to_string(), ours }
        }).collect();
        let (has_host, has_group) = (hosts.len() as i64, groups.len() as i64);
        Stored {
            variables: Value::Object(variables).to_string(),
            members: members.into_iter().filter(|(g, h)| *g < has_group && *h < has_host).map(|(g, h)| (50 + g, 10 + h)).collect(),
            // No circle to begin with: children come after their parents.
            children: children.into_iter().filter(|(g, c)| g < c && *c < has_group).map(|(g, c)| (50 + g, 50 + c)).collect(),
            hosts,
            groups,
        }
    }
}

fn has_circle(stored: &Stored) -> bool {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (group, child) in &stored.children {
        edges.entry(group.to_string()).or_default().insert(child.to_string());
    }
    let edges: BTreeMap<&str, BTreeSet<&str>> = edges
        .iter()
        .map(|(name, below)| (name.as_str(), below.iter().map(String::as_str).collect()))
        .collect();
    !tangled(&edges).is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn an_import_brings_what_the_source_has_and_is_done_once(
        stored in inventories(),
        wanted in documents(),
        overwrite in any::<bool>(),
        overwrite_vars in any::<bool>(),
    ) {
        let policy = Policy { overwrite, overwrite_vars };
        let changes = between(&stored, &wanted, policy);
        let after = apply(&stored, &changes);
        prop_assert!(!has_circle(&after));
        let again = between(&after, &wanted, policy);
        prop_assert!(again.is_empty(), "again: {:?}\nfirst: {:?}", again, changes);

        let id = |name: &str| after.hosts.iter().find(|host| host.name == name).map(|host| host.id);
        for (name, host) in &wanted.hosts {
            let row = after.hosts.iter().find(|row| row.name == *name).expect("every host of the source is there");
            prop_assert!(row.ours);
            prop_assert!(host.enabled.is_none_or(|enabled| enabled == row.enabled));
            let (have, want) = (parse_variables(&row.variables).unwrap(), parse_variables(&host.variables).unwrap());
            for (name, value) in &want {
                prop_assert_eq!(have.get(name), Some(value));
            }
            prop_assert!(!overwrite_vars || have == want);
        }
        for (name, group) in &wanted.groups {
            let row = after.groups.iter().find(|row| row.name == *name).expect("every group of the source is there");
            for host in &group.hosts {
                prop_assert!(after.members.contains(&(row.id, id(host).unwrap())));
            }
            if overwrite {
                let members = after.members.iter().filter(|(group, _)| *group == row.id).count();
                prop_assert_eq!(members, group.hosts.len());
            }
        }
        for before in &stored.hosts {
            let still = after.hosts.iter().find(|host| host.id == before.id);
            if !before.ours || !overwrite {
                prop_assert!(still.is_some(), "{:?} is gone", before);
            }
            if !before.ours {
                prop_assert_eq!(&still.unwrap().name, &before.name);
            }
            if overwrite && before.ours && !wanted.hosts.contains_key(&before.name) {
                prop_assert!(still.is_none_or(|host| wanted.hosts.contains_key(&host.name)));
            }
        }
        for before in &stored.groups {
            let goes = overwrite && before.ours && !wanted.groups.contains_key(&before.name);
            prop_assert_eq!(after.groups.iter().all(|group| group.id != before.id), goes);
        }
    }
}

fn host(id: i64, name: &str, instance_id: &str, ours: bool) -> StoredHost {
    let (name, instance_id) = (name.to_owned(), instance_id.to_owned());
    StoredHost { id, name, instance_id, enabled: true, variables: "{}".to_owned(), ours }
}

fn wanted(hosts: &[(&str, &str)]) -> Document {
    let host = |instance_id: &str| Host {
        variables: "{}".to_owned(),
        instance_id: instance_id.to_owned(),
        enabled: None,
    };
    let hosts = hosts.iter().map(|(name, id)| ((*name).to_owned(), host(id))).collect();
    Document { hosts, ..Document::default() }
}

#[test]
fn hosts_that_trade_names_keep_their_rows() {
    let stored =
        Stored { hosts: vec![host(1, "a", "i-1", true), host(2, "b", "i-2", true)], ..Stored::default() };
    let changes = between(&stored, &wanted(&[("b", "i-1"), ("a", "i-2")]), Policy::default());
    assert_eq!(changes.parked, [1, 2]);
    let after = apply(&stored, &changes);
    let names: Vec<(i64, &str)> = after.hosts.iter().map(|host| (host.id, host.name.as_str())).collect();
    assert_eq!(names, [(1, "b"), (2, "a")]);
}

#[test]
fn a_persons_host_is_not_renamed_away() {
    let stored =
        Stored { hosts: vec![host(1, "a", "i-1", true), host(2, "b", "", false)], ..Stored::default() };
    let changes = between(&stored, &wanted(&[("b", "i-1")]), Policy { overwrite: true, ..Policy::default() });
    assert_eq!(changes.gone_hosts, [1]);
    assert_eq!(
        changes.hosts,
        [HostChange { id: 2, instance_id: Some("i-1".to_owned()), ..HostChange::default() }]
    );
}

#[test]
fn variables_that_say_the_same_stay_as_people_wrote_them() {
    let mut stored = Stored { hosts: vec![host(1, "a", "", true)], ..Stored::default() };
    stored.hosts[0].variables = "x: 1 # of mine\n".to_owned();
    let mut wanted = wanted(&[("a", "")]);
    wanted.hosts.get_mut("a").unwrap().variables = r#"{"x": 1}"#.to_owned();
    let changes = between(&stored, &wanted, Policy { overwrite_vars: true, ..Policy::default() });
    assert!(changes.hosts.is_empty(), "{changes:?}");
}

#[test]
fn a_circle_is_left_out_and_told() {
    let mut wanted = Document::default();
    for (name, child) in [("a", "b"), ("b", "c"), ("c", "a")] {
        let children = BTreeSet::from([child.to_owned()]);
        wanted.groups.insert(name.to_owned(), Group { children, ..Group::default() });
    }
    let changes = between(&Stored::default(), &wanted, Policy::default());
    assert_eq!(changes.circles, [("c".to_owned(), "a".to_owned())]);
    assert_eq!(changes.nested.len(), 2);
}
