//! Migrations of the core database, in order. Builder code, not text: each runs on every engine the builder speaks.
//!
//! A released migration is never edited; what it got wrong, the next one puts right.

mod dsl;
mod m0001_first_light;
mod m0002_enrolment;
mod m0003_labels;
mod m0004_roles;
mod m0005_activity;
mod m0006_instance_groups;
mod m0007_idempotency;
mod m0008_facts;
mod m0009_project_updates;
mod m0010_lists_of_jobs;
mod m0011_inventory_sources;
mod m0012_people;
mod m0013_stray_units;

use dsl::Schema;

use super::Engine;

/// One step of the schema.
pub(super) struct Migration {
    /// Counts from 1 without gaps; the database remembers the highest applied.
    pub(super) version: i64,
    /// For logs and for the table that remembers it.
    pub(super) name: &'static str,
    build: fn(&mut Schema),
}

impl Migration {
    /// Statements of this step for `engine`, to be run in order in one transaction.
    pub(super) fn statements(&self, engine: Engine) -> Vec<String> {
        let mut schema = Schema::default();
        (self.build)(&mut schema);
        schema.statements(engine)
    }
}

/// All steps, oldest first.
pub(super) const ALL: &[Migration] = &[
    Migration { version: 1, name: "first light", build: m0001_first_light::build },
    Migration { version: 2, name: "enrolment", build: m0002_enrolment::build },
    Migration { version: 3, name: "labels", build: m0003_labels::build },
    Migration { version: 4, name: "roles", build: m0004_roles::build },
    Migration { version: 5, name: "activity", build: m0005_activity::build },
    Migration { version: 6, name: "instance groups", build: m0006_instance_groups::build },
    Migration { version: 7, name: "idempotency keys", build: m0007_idempotency::build },
    Migration { version: 8, name: "facts", build: m0008_facts::build },
    Migration { version: 9, name: "project updates", build: m0009_project_updates::build },
    Migration { version: 10, name: "lists of jobs", build: m0010_lists_of_jobs::build },
    Migration { version: 11, name: "inventory sources", build: m0011_inventory_sources::build },
    Migration { version: 12, name: "people", build: m0012_people::build },
    Migration { version: 13, name: "stray units", build: m0013_stray_units::build },
];
