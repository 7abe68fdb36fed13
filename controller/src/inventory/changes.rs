//! From what a source has and what an inventory has to what must be done. Pure.
//!
//! AWX's rules: what is new is added; variables are merged, or replaced with `overwrite_vars`; with `overwrite`, hosts and groups
//! that this source brought before and has no more are deleted, and the groups that it has lose the members that it does not say. What
//! else people or other sources added stays. A host whose lasting name is known keeps its row when its name changes.
//! Done twice, the second time there is nothing to do: an import that was interrupted is simply begun again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value};

use super::document::Document;
use crate::registry::write::parse_variables;

/// How a source and its inventory go together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Delete what the source has no more.
    pub overwrite: bool,
    /// Replace variables instead of merging them.
    pub overwrite_vars: bool,
}

/// A host as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredHost {
    /// Its id.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Its lasting name, if it has one.
    pub instance_id: String,
    /// Whether it is on.
    pub enabled: bool,
    /// Its variables as people wrote them.
    pub variables: String,
    /// Whether this source brought it.
    pub ours: bool,
}

/// A group as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredGroup {
    /// Its id.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Its variables as people wrote them.
    pub variables: String,
    /// Whether this source brought it.
    pub ours: bool,
}

/// What the inventory has.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Variables of all.
    pub variables: String,
    /// Its hosts.
    pub hosts: Vec<StoredHost>,
    /// Its groups.
    pub groups: Vec<StoredGroup>,
    /// Group and host, by id.
    pub members: HashSet<(i64, i64)>,
    /// Group and child, by id.
    pub children: HashSet<(i64, i64)>,
}

/// A host that is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHost {
    /// Its name.
    pub name: String,
    /// Its lasting name.
    pub instance_id: String,
    /// Whether it is on.
    pub enabled: bool,
    /// A JSON object.
    pub variables: String,
}

/// A host that is not as it was: what is `Some` changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostChange {
    /// Which.
    pub id: i64,
    /// Its new name.
    pub name: Option<String>,
    /// Its new lasting name.
    pub instance_id: Option<String>,
    /// Whether it is on.
    pub enabled: Option<bool>,
    /// A JSON object.
    pub variables: Option<String>,
}

/// What must be done, in this order. Hosts and groups that may be new go by name, which is unique within the inventory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Hosts to delete.
    pub gone_hosts: Vec<i64>,
    /// Groups to delete.
    pub gone_groups: Vec<i64>,
    /// Hosts that must give up their name for a moment, because another one takes it.
    pub parked: Vec<i64>,
    /// Variables of all, if they change.
    pub variables: Option<String>,
    /// Groups to make: name and variables.
    pub new_groups: Vec<(String, String)>,
    /// Groups whose variables change.
    pub groups: Vec<(i64, String)>,
    /// Hosts to change; before new ones are made, which may have their names of before.
    pub hosts: Vec<HostChange>,
    /// Hosts to make.
    pub new_hosts: Vec<NewHost>,
    /// Hosts to put into groups: group and host, by name.
    pub joined: Vec<(String, String)>,
    /// Groups to put into groups: group and child, by name.
    pub nested: Vec<(String, String)>,
    /// Hosts to take out of groups, by id.
    pub left: Vec<(i64, i64)>,
    /// Groups to take out of groups, by id.
    pub unnested: Vec<(i64, i64)>,
    /// Hosts of before to note as this source's; new ones are from the start.
    pub our_hosts: Vec<i64>,
    /// Groups of before to note as this source's.
    pub our_groups: Vec<i64>,
    /// Children that would have made a circle: group and child. They are left out.
    pub circles: Vec<(String, String)>,
}

impl Changes {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        *self == Self { circles: self.circles.clone(), ..Self::default() }
    }
}

/// What must be done so that the inventory has what the source has.
pub fn between(stored: &Stored, wanted: &Document, policy: Policy) -> Changes {
    let mut changes =
        Changes { variables: changed(&stored.variables, &wanted.variables, policy), ..Changes::default() };
    hosts(stored, wanted, policy, &mut changes);
    groups(stored, wanted, policy, &mut changes);
    members(stored, wanted, policy, &mut changes);
    nesting(stored, wanted, policy, &mut changes);
    changes
}

/// Variables after an import, if they are others than before.
fn changed(before: &str, wanted: &Map<String, Value>, policy: Policy) -> Option<String> {
    let have = parse_variables(before).unwrap_or_default();
    let want = if policy.overwrite_vars {
        wanted.clone()
    } else {
        let mut merged = have.clone();
        merged.extend(wanted.clone());
        merged
    };
    (want != have).then(|| Value::Object(want).to_string())
}

fn hosts(stored: &Stored, wanted: &Document, policy: Policy, changes: &mut Changes) {
    let by_name: HashMap<&str, &StoredHost> =
        stored.hosts.iter().map(|host| (host.name.as_str(), host)).collect();
    let mut by_instance: HashMap<&str, &StoredHost> = HashMap::new();
    for host in stored.hosts.iter().filter(|host| host.ours && !host.instance_id.is_empty()) {
        by_instance.entry(host.instance_id.as_str()).or_insert(host);
    }
    // Who is who: a lasting name first, then the name, each row once.
    let mut rows: BTreeMap<&str, &StoredHost> = BTreeMap::new();
    let mut taken: HashSet<i64> = HashSet::new();
    for (name, host) in &wanted.hosts {
        let found = by_instance.get(host.instance_id.as_str()).filter(|_| !host.instance_id.is_empty());
        if let Some(&found) = found
            && taken.insert(found.id)
        {
            rows.insert(name, found);
        }
    }
    for name in wanted.hosts.keys() {
        if let Some(&found) = by_name.get(name.as_str())
            && !rows.contains_key(name.as_str())
            && taken.insert(found.id)
        {
            rows.insert(name, found);
        }
    }
    // With overwrite, what this source brought and has no more goes; its name is free then.
    let mut gone: HashSet<i64> = HashSet::new();
    if policy.overwrite {
        for host in stored.hosts.iter().filter(|host| host.ours && !taken.contains(&host.id)) {
            gone.insert(host.id);
            changes.gone_hosts.push(host.id);
        }
    }
    // A name cannot be taken from a row that keeps it: that row is the host then, and who was to be renamed stays what it was.
    let mut conflicts: Vec<&str> =
        rows.iter().filter(|(name, row)| row.name != **name).map(|(name, _)| *name).collect();
    while let Some(name) = conflicts.pop() {
        let (Some(&row), Some(&holder)) = (rows.get(name), by_name.get(name)) else { continue };
        if row.id == holder.id || gone.contains(&holder.id) || taken.contains(&holder.id) {
            continue;
        }
        taken.remove(&row.id);
        taken.insert(holder.id);
        rows.insert(name, holder);
        match wanted.hosts.get_key_value(&row.name) {
            Some((key, _)) if rows.contains_key(key.as_str()) => conflicts.push(key),
            Some((key, _)) => {
                rows.insert(key, row);
                taken.insert(row.id);
            }
            None if policy.overwrite && row.ours => {
                gone.insert(row.id);
                changes.gone_hosts.push(row.id);
            }
            None => {}
        }
    }
    // Of those left, whoever's name another one takes has another one too, so both must let go first.
    let holders =
        rows.iter().filter(|(name, row)| row.name != **name).filter_map(|(name, _)| by_name.get(name));
    changes.parked.extend(holders.filter(|holder| !gone.contains(&holder.id)).map(|holder| holder.id));
    changes.parked.sort_unstable();
    changes.parked.dedup();
    for (name, host) in &wanted.hosts {
        let Some(row) = rows.get(name.as_str()) else {
            changes.new_hosts.push(NewHost {
                name: name.clone(),
                instance_id: host.instance_id.clone(),
                enabled: host.enabled.unwrap_or(true),
                variables: host.variables.clone(),
            });
            continue;
        };
        let mut change = HostChange { id: row.id, ..HostChange::default() };
        if row.name != *name || changes.parked.binary_search(&row.id).is_ok() {
            change.name = Some(name.clone());
        }
        if row.instance_id != host.instance_id {
            change.instance_id = Some(host.instance_id.clone());
        }
        change.enabled = host.enabled.filter(|enabled| *enabled != row.enabled);
        if row.variables != host.variables {
            let variables = serde_json::from_str(&host.variables).unwrap_or_default();
            change.variables = changed(&row.variables, &variables, policy);
        }
        if change != (HostChange { id: row.id, ..HostChange::default() }) {
            changes.hosts.push(change);
        }
        if !row.ours {
            changes.our_hosts.push(row.id);
        }
    }
}

fn groups(stored: &Stored, wanted: &Document, policy: Policy, changes: &mut Changes) {
    let by_name: HashMap<&str, &StoredGroup> =
        stored.groups.iter().map(|group| (group.name.as_str(), group)).collect();
    for (name, group) in &wanted.groups {
        match by_name.get(name.as_str()) {
            None => {
                let variables = Value::Object(group.variables.clone()).to_string();
                changes.new_groups.push((name.clone(), variables));
            }
            Some(row) => {
                if let Some(variables) = changed(&row.variables, &group.variables, policy) {
                    changes.groups.push((row.id, variables));
                }
                if !row.ours {
                    changes.our_groups.push(row.id);
                }
            }
        }
    }
    if policy.overwrite {
        let gone =
            stored.groups.iter().filter(|group| group.ours && !wanted.groups.contains_key(&group.name));
        changes.gone_groups.extend(gone.map(|group| group.id));
    }
}

fn members(stored: &Stored, wanted: &Document, policy: Policy, changes: &mut Changes) {
    // Rows by the names that they will have.
    let mut ids: HashMap<&str, i64> = stored.hosts.iter().map(|host| (host.name.as_str(), host.id)).collect();
    for change in &changes.hosts {
        if let Some(name) = &change.name {
            ids.insert(name.as_str(), change.id);
        }
    }
    for host in &changes.new_hosts {
        ids.remove(host.name.as_str());
    }
    let gone: HashSet<i64> = changes.gone_hosts.iter().copied().collect();
    let gone_groups: HashSet<i64> = changes.gone_groups.iter().copied().collect();
    let groups: HashMap<&str, &StoredGroup> =
        stored.groups.iter().map(|group| (group.name.as_str(), group)).collect();
    let mut kept: HashSet<(i64, i64)> = HashSet::new();
    for (name, group) in &wanted.groups {
        let row = groups.get(name.as_str());
        for host in &group.hosts {
            let pair = row.and_then(|row| Some((row.id, *ids.get(host.as_str())?)));
            match pair.filter(|pair| stored.members.contains(pair)) {
                Some(pair) => drop(kept.insert(pair)),
                None => changes.joined.push((name.clone(), host.clone())),
            }
        }
    }
    if policy.overwrite {
        let ours: HashSet<i64> = stored
            .groups
            .iter()
            .filter(|group| wanted.groups.contains_key(&group.name))
            .map(|group| group.id)
            .collect();
        let left = stored.members.iter().filter(|pair| {
            ours.contains(&pair.0)
                && !kept.contains(pair)
                && !gone.contains(&pair.1)
                && !gone_groups.contains(&pair.0)
        });
        changes.left.extend(left.copied());
        changes.left.sort_unstable();
    }
}

fn nesting(stored: &Stored, wanted: &Document, policy: Policy, changes: &mut Changes) {
    let names: HashMap<i64, &str> =
        stored.groups.iter().map(|group| (group.id, group.name.as_str())).collect();
    let gone: HashSet<i64> = changes.gone_groups.iter().copied().collect();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for &(group, child) in &stored.children {
        let (Some(&parent), Some(&below)) = (names.get(&group), names.get(&child)) else { continue };
        if gone.contains(&group) || gone.contains(&child) {
            continue;
        }
        let wanted = wanted.groups.get(parent);
        let leaves = policy.overwrite && wanted.is_some_and(|wanted| !wanted.children.contains(below));
        if leaves {
            changes.unnested.push((group, child));
        } else {
            edges.entry(parent).or_default().insert(below);
        }
    }
    changes.unnested.sort_unstable();
    let mut new: Vec<(&str, &str)> = Vec::new();
    for (parent, group) in &wanted.groups {
        for child in &group.children {
            if edges.get(parent.as_str()).is_none_or(|below| !below.contains(child.as_str())) {
                new.push((parent, child));
            }
        }
    }
    // Where all of it together has no circle, none of it does. Only what hangs on one is looked at edge by edge.
    let mut all = edges.clone();
    for (parent, child) in &new {
        all.entry(parent).or_default().insert(child);
    }
    let tangled = tangled(&all);
    for (parent, child) in new {
        let circle = tangled.contains(parent) && tangled.contains(child) && leads(&edges, child, parent);
        if circle {
            changes.circles.push((parent.to_owned(), child.to_owned()));
        } else {
            edges.entry(parent).or_default().insert(child);
            changes.nested.push((parent.to_owned(), child.to_owned()));
        }
    }
}

/// The groups that are left when those without parents are taken away, again and again: circles, and what is below them.
fn tangled<'n>(edges: &BTreeMap<&'n str, BTreeSet<&'n str>>) -> HashSet<&'n str> {
    let mut parents: HashMap<&str, usize> = HashMap::new();
    for (parent, children) in edges {
        parents.entry(parent).or_default();
        for child in children {
            *parents.entry(child).or_default() += 1;
        }
    }
    let mut free: Vec<&str> =
        parents.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect();
    let mut left: HashSet<&str> = parents.keys().copied().collect();
    while let Some(name) = free.pop() {
        left.remove(name);
        for child in edges.get(name).into_iter().flatten() {
            let count = parents.entry(child).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                free.push(child);
            }
        }
    }
    left
}

/// Whether there is a way down from one group to another.
fn leads(edges: &BTreeMap<&str, BTreeSet<&str>>, from: &str, to: &str) -> bool {
    let mut seen = HashSet::from([from]);
    let mut fresh = vec![from];
    while let Some(name) = fresh.pop() {
        if name == to {
            return true;
        }
        for child in edges.get(name).into_iter().flatten() {
            if seen.insert(child) {
                fresh.push(child);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests;
