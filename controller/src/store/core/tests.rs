//! The store's promises. Every test takes an opened database, so that a second engine runs the same ones.

use sea_query::{Expr, ExprTrait, Query};

use super::*;
use crate::store::testing::{Place, cut};

/// Opens an empty database of each engine there is, and runs the check on it.
async fn on_each_engine<F: Future<Output = ()>>(check: impl Fn(CoreDb) -> F) {
    for engine in [Engine::Sqlite, Engine::Postgres] {
        println!("on {engine:?}");
        let place = Place::new(engine);
        check(place.core().await).await;
    }
}

fn insert_user(name: &str) -> InsertStatement {
    Query::insert()
        .into_table("users")
        .columns(["username", "created", "modified"])
        .values_panic([name.into(), 1.into(), 1.into()])
        .take()
}

fn user_named(name: &str) -> SelectStatement {
    Query::select().columns(["id", "created"]).from("users").and_where(Expr::col("username").eq(name)).take()
}

#[tokio::test]
async fn committed_rows_are_read_back_and_dropped_ones_never_were() {
    on_each_engine(|db| async move {
        let mut tx = db.begin(Class::Intent).await.unwrap();
        let id = tx.insert(&mut insert_user("ada")).await.unwrap();
        assert!(tx.optional(user_named("ada")).await.unwrap().is_some());
        assert!(db.optional(user_named("ada")).await.unwrap().is_none(), "not before the commit");
        tx.commit().await.unwrap();
        let row = db.optional(user_named("ada")).await.unwrap().unwrap();
        assert_eq!(row.value::<i64>("id").unwrap(), id);
        assert_eq!(row.time("created").unwrap().as_microsecond(), 1);

        let mut tx = db.begin(Class::Intent).await.unwrap();
        tx.insert(&mut insert_user("bob")).await.unwrap();
        drop(tx);
        let mut tx = db.begin(Class::Intent).await.unwrap();
        assert!(tx.optional(user_named("bob")).await.unwrap().is_none());
    })
    .await;
}

#[tokio::test]
async fn a_second_row_of_a_unique_name_is_a_duplicate() {
    on_each_engine(|db| async move {
        let mut tx = db.begin(Class::Intent).await.unwrap();
        tx.insert(&mut insert_user("ada")).await.unwrap();
        let again = tx.insert(&mut insert_user("ada")).await;
        assert!(matches!(again, Err(Error::Duplicate { columns }) if columns.contains("username")));
    })
    .await;
}

#[tokio::test]
async fn a_row_cannot_point_to_one_that_does_not_exist() {
    on_each_engine(|db| async move {
        let mut tx = db.begin(Class::Intent).await.unwrap();
        let mut orphan = Query::insert();
        orphan.into_table("inventories").columns(["name", "organization_id", "created", "modified"]);
        orphan.values_panic(["x".into(), 99.into(), 1.into(), 1.into()]);
        assert!(matches!(tx.insert(&mut orphan).await, Err(Error::Reference)));
    })
    .await;
}

#[tokio::test]
async fn ids_are_never_given_twice() {
    on_each_engine(|db| async move {
        let mut tx = db.begin(Class::Intent).await.unwrap();
        let first = tx.insert(&mut insert_user("ada")).await.unwrap();
        tx.execute(Query::delete().from_table("users").take()).await.unwrap();
        let second = tx.insert(&mut insert_user("ada")).await.unwrap();
        assert!(second > first);
    })
    .await;
}

#[tokio::test]
async fn a_commit_wakes_the_reconciler_only_when_asked() {
    on_each_engine(|db| async move {
        let mut changed = db.changed();
        let mut tx = db.begin(Class::Intent).await.unwrap();
        tx.set_setting("quiet", "1").await.unwrap();
        tx.commit().await.unwrap();
        assert!(!changed.has_changed().unwrap());
        let mut tx = db.begin(Class::Intent).await.unwrap();
        tx.set_setting("quiet", "2").await.unwrap();
        tx.wake();
        tx.commit().await.unwrap();
        changed.changed().await.unwrap();
        assert_eq!(db.setting("quiet").await.unwrap().as_deref(), Some("2"));
        assert_eq!(db.setting("unset").await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn what_is_committed_here_is_on_the_disk() {
    let place = Place::new(Engine::Sqlite);
    let db = place.core().await;
    let mut tx = db.begin(Class::Intent).await.unwrap();
    tx.insert(&mut insert_user("ada")).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(cut(&place.dir().join("core.sqlite-wal")), 0, "a loss of power would have taken it");
}

#[tokio::test]
async fn a_database_survives_being_opened_again() {
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let place = Place::new(engine);
        let db = place.core().await;
        let mut tx = db.begin(Class::Intent).await.unwrap();
        tx.insert(&mut insert_user("ada")).await.unwrap();
        tx.commit().await.unwrap();
        db.close().await;
        drop(db);
        let db = place.core().await;
        assert!(db.optional(user_named("ada")).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_database_in_use_is_refused() {
    let place = Place::new(Engine::Sqlite);
    let _first = place.core().await;
    let second = CoreDb::open(&place.dir().join("core.sqlite")).await;
    assert!(matches!(second, Err(OpenError::InUse { .. })));
    let place = Place::new(Engine::Postgres);
    let _first = place.core().await;
    let second = CoreDb::connect(&place.server()).await.unwrap_err();
    assert!(matches!(second, OpenError::InUse { .. }), "{second:?}");
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_with_both_versions() {
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let place = Place::new(engine);
        let db = place.core().await;
        let mut tx = db.begin(Class::Bulk).await.unwrap();
        tx.set_schema_version(9000).await.unwrap();
        tx.commit().await.unwrap();
        db.close().await;
        drop(db);
        let error = match engine {
            Engine::Sqlite => CoreDb::open(&place.dir().join("core.sqlite")).await,
            Engine::Postgres => CoreDb::connect(&place.server()).await,
        };
        let error = error.unwrap_err();
        assert!(matches!(error, OpenError::Newer { found: 9000, .. }), "{error:?}");
        assert!(error.to_string().contains("schema version 9000, this controller knows up to"), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("core.sqlite");
    std::fs::write(&path, "this is a letter to a friend, not a database".repeat(50)).unwrap();
    let error = CoreDb::open(&path).await.unwrap_err();
    assert!(matches!(error, OpenError::NotADatabase { .. }), "{error:?}");
    assert!(error.to_string().ends_with("core.sqlite is not a database"), "{error}");
}

#[tokio::test]
async fn an_unwritable_directory_is_named() {
    // Not even root can make a directory below a file.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let error = CoreDb::open(&dir.path().join("file/data/core.sqlite")).await.unwrap_err();
    assert!(matches!(error, OpenError::Unwritable { .. }), "{error:?}");
    assert!(error.to_string().starts_with("cannot write in data directory "), "{error}");
}

#[test]
fn the_schema_speaks_every_engine() {
    for migration in migrations::ALL {
        let sqlite = migration.statements(Engine::Sqlite);
        assert!(sqlite.iter().all(|sql| !sql.contains("ALTER TABLE") || sql.contains(" ADD COLUMN ")));
    }
    let postgres: Vec<_> =
        migrations::ALL.iter().flat_map(|migration| migration.statements(Engine::Postgres)).collect();
    assert!(postgres.iter().any(|sql| sql.starts_with("ALTER TABLE") && sql.contains("FOREIGN KEY")));
    // A word that is SQL's own is quoted.
    let first = migrations::ALL[0].statements(Engine::Sqlite);
    assert!(first.iter().any(|sql| sql.contains("AUTOINCREMENT")));
    assert!(first.iter().any(|sql| sql.contains("\"limit\" text")));
}
