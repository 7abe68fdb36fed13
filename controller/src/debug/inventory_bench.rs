//! Measures an inventory of many hosts: bringing it in beside somebody who writes meanwhile, a page of it, and the document for
//! Ansible. All by the controller's own code, the API by requests without a network.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args as ClapArgs;
use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::auth;
use crate::http::{App, NoMesh, router};
use crate::inventory::changes::Policy;
use crate::inventory::document::{Reading, read};
use crate::inventory::import::import;
use crate::store::core::{Class, CoreDb};
use crate::store::events::EventStore;
use crate::vault::Vault;

/// Pages that are asked for.
const PAGES: usize = 200;
/// How often somebody else writes.
const WRITES: Duration = Duration::from_millis(5);
const PASSWORD: &str = "inventory-bench";

/// Arguments of `inventory-bench`.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Directory for the database; it stays
    #[arg(long)]
    dir: PathBuf,
    /// Hosts
    #[arg(long, default_value_t = 100_000)]
    hosts: usize,
    /// Groups they are spread over
    #[arg(long, default_value_t = 100)]
    groups: usize,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measure(args))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{report}")?;
    Ok(())
}

async fn measure(args: &Args) -> anyhow::Result<Value> {
    let (db, api) = open(&args.dir).await?;
    let body = json!({"name": format!("bench {}", args.hosts), "organization": 1}).to_string();
    let made = whole(&api, Request::post("/api/v2/inventories/"), body).await?;
    let made: Value = serde_json::from_slice(&made)?;
    let inventory = made["id"].as_i64().with_context(|| format!("no inventory: {made}"))?;
    let text = document(args.hosts, args.groups);

    let over = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write(db.clone(), Arc::clone(&over)));
    let begun = Instant::now();
    let reading =
        Reading { enabled_var: "state".to_owned(), enabled_value: "up".to_owned(), ..Reading::default() };
    let found = read(&text, &reading)?;
    let parsed = begun.elapsed();
    let policy = Policy { overwrite: true, overwrite_vars: true };
    import(&db, inventory, None, found.clone(), policy).await?;
    let import_s = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    import(&db, inventory, None, found, policy).await?;
    let again_s = begun.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    let (writes, longest) = writer.await??;

    let mut took = Vec::with_capacity(PAGES);
    for number in 0..PAGES {
        // Pages all over the list, in no order.
        let page = 1 + (number * 7_919) % (args.hosts / 25).max(1);
        let at = format!("/api/v2/inventories/{inventory}/hosts/?page={page}");
        let begun = Instant::now();
        whole(&api, Request::get(at), String::new()).await?;
        took.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    took.sort_by(f64::total_cmp);
    let begun = Instant::now();
    let script = format!("/api/v2/inventories/{inventory}/script/?hostvars=1&towervars=1&all=1");
    let response = api.clone().oneshot(asked(Request::get(script), String::new())?).await?;
    let (mut bytes, mut first) = (0, None);
    let mut pieces = response.into_body().into_data_stream();
    while let Some(piece) = pieces.next().await {
        first.get_or_insert_with(|| begun.elapsed());
        bytes += piece?.len();
    }
    let script_s = begun.elapsed().as_secs_f64();
    ensure!(bytes > args.hosts * 100, "the document has {bytes} bytes only");
    Ok(json!({
        "hosts": args.hosts,
        "document_bytes": text.len(),
        "import_s": import_s,
        "import_parse_s": parsed.as_secs_f64(),
        "import_again_s": again_s,
        "writes_meanwhile": writes,
        "write_longest_ms": longest.as_secs_f64() * 1000.0,
        "list_p50_ms": took[PAGES / 2],
        "list_p99_ms": took[PAGES * 99 / 100],
        "script_s": script_s,
        "script_first_s": first.unwrap_or_default().as_secs_f64(),
        "script_bytes": bytes,
    }))
}

async fn open(dir: &Path) -> anyhow::Result<(CoreDb, Router)> {
    std::fs::create_dir_all(dir.join("projects"))?;
    let db = CoreDb::open(&dir.join("core.sqlite")).await?;
    let vault = Vault::open(&dir.join("secret"))?;
    let events = EventStore::open(&dir.join("events")).await?;
    let (projects, stop) = (dir.join("projects"), CancellationToken::new());
    let app = App::open(db.clone(), vault, events, Arc::new(NoMesh), projects, "bench", stop).await?;
    auth::ensure_admin(&db, &app.auth, Some(PASSWORD)).await?;
    Ok((db, router(app)))
}

fn asked(request: axum::http::request::Builder, body: String) -> anyhow::Result<Request<Body>> {
    let basic = format!("Basic {}", STANDARD.encode(format!("admin:{PASSWORD}")));
    let request =
        request.header(header::AUTHORIZATION, basic).header(header::CONTENT_TYPE, "application/json");
    Ok(request.body(Body::from(body))?)
}

async fn whole(api: &Router, request: axum::http::request::Builder, body: String) -> anyhow::Result<Vec<u8>> {
    let response = api.clone().oneshot(asked(request, body)?).await?;
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 64 << 20).await?;
    ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
    Ok(body.to_vec())
}

/// Somebody whom the import keeps waiting: how many writes, and the longest from asking to having it on disk.
async fn write(db: CoreDb, over: Arc<AtomicBool>) -> anyhow::Result<(usize, Duration)> {
    let (mut writes, mut longest) = (0, Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut tx = db.begin(Class::Intent).await?;
        tx.set_setting("bench", &writes.to_string()).await?;
        tx.commit().await?;
        longest = longest.max(begun.elapsed());
        writes += 1;
        tokio::time::sleep(WRITES).await;
    }
    Ok((writes, longest))
}

/// What `ansible-inventory` would print: each host with ten variables of its own.
fn document(hosts: usize, groups: usize) -> Vec<u8> {
    let name = |number: usize| format!("host-{number:06}.example.com");
    let mut hostvars = Map::new();
    for number in 0..hosts {
        let vars = json!({
            "ansible_host": format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255),
            "ansible_user": "deploy",
            "state": if number % 50 == 0 { "down" } else { "up" },
            "id": format!("i-{number:016x}"),
            "region": format!("region-{}", number % 7),
            "size": number % 11,
            "tags": {"owner": format!("team-{}", number % 23), "stage": "production"},
            "disks": ["/dev/sda", "/dev/sdb"],
            "image": "debian-12",
            "monitored": number % 3 == 0,
        });
        hostvars.insert(name(number), vars);
    }
    let mut document = Map::new();
    document.insert("_meta".to_owned(), json!({"hostvars": hostvars}));
    for group in 0..groups {
        let members: Vec<String> = (group..hosts).step_by(groups).map(name).collect();
        document.insert(format!("group_{group}"), json!({"hosts": members, "vars": {"number": group}}));
    }
    Value::Object(document).to_string().into_bytes()
}
