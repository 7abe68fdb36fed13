//! What a fresh controller has: the objects that a fresh AWX has, so that guides and scripts that speak of them work.
//!
//! Written once, in one transaction, when the database is empty. Nothing here is special afterwards: people change and delete
//! these objects like any others, and they do not come back. What the product itself needs (built-in credential types, role
//! definitions, management jobs, instance groups, the organization Default) is not here: it is brought up to date at each start.

use std::path::{Path, PathBuf};

use sea_query::{Expr, ExprTrait, Query, Value};
use serde_json::json;

use crate::config::Fresh;
use crate::job;
use crate::store::core::{Class, CoreDb, Error as StoreError, WriteTx};

/// The one playbook of the demo project.
const PLAYBOOK: &str = "\
---
- name: Hello World Sample
  hosts: all
  tasks:
    - name: Hello Message
      ansible.builtin.debug:
        msg: \"Hello World!\"
";

/// Name of that playbook, which AWX's guides launch.
const PLAYBOOK_NAME: &str = "hello_world.yml";

/// Remembers that a database was fresh once.
const MARK: &str = "fresh";

/// Namespaces of the credential types that are seeded with.
const MACHINE: &str = "ssh";
const GALAXY: &str = "galaxy_api_token";

/// Why a fresh controller does not have all it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database.
    #[error("cannot write what a fresh controller has")]
    Store(#[from] StoreError),
    /// The demo project.
    #[error("cannot write the demo project {}", path.display())]
    Project {
        /// Its directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Fills an empty database; does nothing with any other.
///
/// # Errors
/// See [`Error`]. Nothing was written to the database then.
pub async fn seed(db: &CoreDb, settings: &Fresh, projects: &Path) -> Result<(), Error> {
    if db.setting(MARK).await?.is_some() {
        return Ok(());
    }
    let mut tx = db.begin(Class::Bulk).await?;
    if is_empty(&mut tx).await? {
        let mut seeds = Seeds { tx: &mut tx, now: jiff::Timestamp::now().as_microsecond() };
        seeds.environments(settings).await?;
        let organization = seeds.named("organizations", "Default").await?;
        if let Some(organization) = organization {
            let galaxy = seeds.galaxy().await?;
            seeds.attach_galaxy(organization, galaxy).await?;
            if settings.demo {
                seeds.demo(organization, projects).await?;
            }
        }
    }
    tx.set_setting(MARK, "1").await?;
    Ok(tx.commit().await?)
}

/// Whether nobody made anything yet: a database of an earlier version is left as it is.
async fn is_empty(tx: &mut WriteTx) -> Result<bool, StoreError> {
    for table in ["projects", "job_templates", "inventories", "credentials", "execution_environments"] {
        let mut any = Query::select();
        any.column("id").from(table).limit(1);
        if tx.optional(&any).await?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

struct Seeds<'t> {
    tx: &'t mut WriteTx,
    now: i64,
}

impl Seeds<'_> {
    async fn insert(
        &mut self,
        table: &'static str,
        values: Vec<(&'static str, Value)>,
    ) -> Result<i64, StoreError> {
        let mut insert = Query::insert();
        let stamps = [("created", self.now.into()), ("modified", self.now.into())];
        let all: Vec<_> = values.into_iter().chain(stamps).collect();
        insert.into_table(table).columns(all.iter().map(|(column, _)| *column));
        insert.values_panic(all.into_iter().map(|(_, value)| Expr::val(value)));
        self.tx.insert(&mut insert).await
    }

    /// The row that shares its id with one of `unified_job_templates`.
    async fn child(
        &mut self,
        table: &'static str,
        id: i64,
        values: Vec<(&'static str, Value)>,
    ) -> Result<(), StoreError> {
        let mut insert = Query::insert();
        let all: Vec<_> = [("id", id.into())].into_iter().chain(values).collect();
        insert.into_table(table).columns(all.iter().map(|(column, _)| *column));
        insert.values_panic(all.into_iter().map(|(_, value)| Expr::val(value)));
        self.tx.execute(&insert).await.map(drop)
    }

    async fn named(&mut self, table: &'static str, name: &str) -> Result<Option<i64>, StoreError> {
        let mut query = Query::select();
        query.column("id").from(table).and_where(Expr::col("name").eq(name));
        self.tx.optional(&query).await?.map(|row| row.at(0)).transpose()
    }

    async fn credential_type(&mut self, namespace: &str) -> Result<i64, StoreError> {
        let mut query = Query::select();
        query.column("id").from("credential_types").and_where(Expr::col("namespace").eq(namespace));
        self.tx.optional(&query).await?.map_or(Err(StoreError::Reference), |row| row.at(0))
    }

    /// The execution environments of jobs, which the setting then names, and the controller's own.
    async fn environments(&mut self, settings: &Fresh) -> Result<(), StoreError> {
        let mut named = Vec::new();
        for environment in &settings.execution_environments {
            let (name, image) = (environment.name.as_str(), environment.image.as_str());
            self.insert("execution_environments", vec![("name", name.into()), ("image", image.into())])
                .await?;
            named.push(json!({"name": name, "image": image}));
        }
        if !named.is_empty() {
            let setting = job::setting("GLOBAL_JOB_EXECUTION_ENVIRONMENTS");
            self.tx.set_setting(&setting, &json!(named).to_string()).await?;
        }
        if !settings.control_plane_image.is_empty() {
            let own = vec![
                ("name", "Control Plane Execution Environment".into()),
                ("image", settings.control_plane_image.as_str().into()),
                ("managed", true.into()),
            ];
            self.insert("execution_environments", own).await?;
        }
        Ok(())
    }

    async fn galaxy(&mut self) -> Result<i64, StoreError> {
        let kind = self.credential_type(GALAXY).await?;
        let inputs = json!({"url": "https://galaxy.ansible.com/"}).to_string();
        let values = vec![
            ("name", "Ansible Galaxy".into()),
            ("credential_type_id", kind.into()),
            ("inputs", inputs.into()),
            ("managed", true.into()),
        ];
        self.insert("credentials", values).await
    }

    /// Roles and collections of the organization's projects come from there.
    async fn attach_galaxy(&mut self, organization: i64, credential: i64) -> Result<(), StoreError> {
        let mut pair = Query::insert();
        pair.into_table("organization_galaxy_credentials").columns(["organization_id", "credential_id"]);
        pair.values_panic([organization.into(), credential.into()]);
        self.tx.execute(&pair).await.map(drop)
    }

    async fn demo(&mut self, organization: i64, projects: &Path) -> Result<(), Error> {
        let template = |kind: &str, name: &str| -> Vec<(&'static str, Value)> {
            vec![
                ("kind", kind.into()),
                ("name", name.into()),
                ("organization_id", organization.into()),
                ("status", if kind == "project" { "ok" } else { "never updated" }.into()),
            ]
        };
        let project = self.insert("unified_job_templates", template("project", "Demo Project")).await?;
        let local_path = format!("_{project}__demo_project");
        write(&projects.join(&local_path))?;
        self.child("projects", project, vec![("local_path", local_path.into())]).await?;

        let inventory = vec![("name", "Demo Inventory".into()), ("organization_id", organization.into())];
        let inventory = self.insert("inventories", inventory).await?;
        let local = "ansible_connection: local\nansible_python_interpreter: '{{ ansible_playbook_python }}'";
        let host = vec![
            ("name", "localhost".into()),
            ("inventory_id", inventory.into()),
            ("variables", local.into()),
        ];
        self.insert("hosts", host).await?;

        let mut admin = Query::select();
        admin.column("id").from("users").and_where(Expr::col("is_superuser").eq(true));
        admin.order_by("id", sea_query::Order::Asc).limit(1);
        let admin = self.tx.optional(&admin).await?.map(|row| row.at::<i64>(0)).transpose()?;
        let kind = self.credential_type(MACHINE).await?;
        let credential = vec![
            ("name", "Demo Credential".into()),
            ("credential_type_id", kind.into()),
            ("inputs", json!({"username": "admin"}).to_string().into()),
            ("user_id", admin.into()),
            ("created_by_id", admin.into()),
        ];
        let credential = self.insert("credentials", credential).await?;

        let job_template =
            self.insert("unified_job_templates", template("job_template", "Demo Job Template")).await?;
        let values = vec![
            ("job_type", "run".into()),
            ("playbook", PLAYBOOK_NAME.into()),
            ("project_id", project.into()),
            ("inventory_id", inventory.into()),
        ];
        self.child("job_templates", job_template, values).await?;
        let mut pair = Query::insert();
        pair.into_table("job_template_credentials").columns(["job_template_id", "credential_id"]);
        pair.values_panic([job_template.into(), credential.into()]);
        self.tx.execute(&pair).await?;
        Ok(())
    }
}

fn write(project: &Path) -> Result<(), Error> {
    let written =
        std::fs::create_dir_all(project).and_then(|()| std::fs::write(project.join(PLAYBOOK_NAME), PLAYBOOK));
    written.map_err(|source| Error::Project { path: project.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{Place, on_each_engine};

    on_each_engine! {
        an_empty_database_is_filled_once,
        a_database_in_use_is_left_alone,
        the_demo_objects_can_be_left_out,
    }

    async fn opened(place: &Place) -> CoreDb {
        let db = place.core().await;
        crate::registry::seed(&db).await.unwrap();
        let mut tx = db.begin(Class::Bulk).await.unwrap();
        let mut insert = Query::insert();
        insert.into_table("organizations").columns(["name", "created", "modified"]);
        tx.insert(insert.values_panic(["Default".into(), 0.into(), 0.into()])).await.unwrap();
        tx.commit().await.unwrap();
        db
    }

    async fn names(db: &CoreDb, table: &'static str) -> Vec<String> {
        let mut query = Query::select();
        query.column("name").from(table).order_by("id", sea_query::Order::Asc);
        db.all(&query).await.unwrap().iter().map(|row| row.at(0).unwrap()).collect()
    }

    async fn an_empty_database_is_filled_once(place: Place) {
        let db = opened(&place).await;
        for _ in 0..2 {
            seed(&db, &Fresh::default(), place.dir()).await.unwrap();
            assert_eq!(names(&db, "unified_job_templates").await, ["Demo Project", "Demo Job Template"]);
            assert_eq!(names(&db, "credentials").await, ["Ansible Galaxy", "Demo Credential"]);
            assert_eq!(names(&db, "hosts").await, ["localhost"]);
            let environments = names(&db, "execution_environments").await;
            assert_eq!(environments, ["AWX EE (24.6.1)", "Control Plane Execution Environment"]);
        }
        let setting = db.setting("api.GLOBAL_JOB_EXECUTION_ENVIRONMENTS").await.unwrap().unwrap();
        assert!(setting.contains("quay.io/ansible/awx-ee:24.6.1"), "{setting}");
        let written = std::fs::read_dir(place.dir()).unwrap().flatten();
        let project =
            written.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with("__demo_project"));
        assert!(project.unwrap().join(PLAYBOOK_NAME).is_file());
        // What somebody deletes stays deleted.
        let mut tx = db.begin(Class::Bulk).await.unwrap();
        tx.execute(Query::delete().from_table("hosts")).await.unwrap();
        tx.commit().await.unwrap();
        seed(&db, &Fresh::default(), place.dir()).await.unwrap();
        assert!(names(&db, "hosts").await.is_empty());
    }

    async fn a_database_in_use_is_left_alone(place: Place) {
        let db = opened(&place).await;
        let mut tx = db.begin(Class::Bulk).await.unwrap();
        let mut insert = Query::insert();
        insert.into_table("inventories").columns(["name", "organization_id", "created", "modified"]);
        tx.insert(insert.values_panic(["mine".into(), 1.into(), 0.into(), 0.into()])).await.unwrap();
        tx.commit().await.unwrap();
        seed(&db, &Fresh::default(), place.dir()).await.unwrap();
        assert!(names(&db, "credentials").await.is_empty() && names(&db, "hosts").await.is_empty());
    }

    async fn the_demo_objects_can_be_left_out(place: Place) {
        let db = opened(&place).await;
        let without = Fresh { demo: false, ..Fresh::default() };
        seed(&db, &without, place.dir()).await.unwrap();
        assert!(names(&db, "unified_job_templates").await.is_empty());
        assert_eq!(names(&db, "credentials").await, ["Ansible Galaxy"]);
        assert_eq!(names(&db, "execution_environments").await.len(), 2);
    }
}
