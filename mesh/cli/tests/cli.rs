//! The built command against stand-ins: a daemon that knows a fixed little mesh, behind a local socket or HTTP.

#![expect(clippy::unwrap_used, reason = "a broken stand-in should stop the test where it broke")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use jiff::Timestamp;
use plexus_mesh::Credentials;
use plexus_mesh::local::{ActError, Action, Answers, LocalSocket};
use plexus_mesh::status::{
    EventKind, MeshEvent, MeshEvents, NodeStatus, Ping, Problem, QueryError, Reloaded, SCHEMA_VERSION,
    Status, Trace, TraceHop,
};
use plexus_proto::id::{Address, NodeId, Role};
use rustls_pki_types::UnixTime;
use tempfile::TempDir;

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    out: String,
    err: String,
}

fn run(args: &[&str], env: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plexus"));
    let ended = command.env_clear().envs(env.iter().copied()).args(args).output().unwrap();
    Ended {
        code: ended.status.code().unwrap(),
        out: String::from_utf8(ended.stdout).unwrap(),
        err: String::from_utf8(ended.stderr).unwrap(),
    }
}

impl Ended {
    fn check(&self, code: i32, out: &str, err: &str) {
        assert_eq!((self.code, self.out.as_str(), self.err.as_str()), (code, out, err));
    }
}

/// A daemon that knows `node-1`, finds no way to `node-2`, and loses every second ping to `flaky`.
struct Daemon {
    problem: bool,
    pings: AtomicU32,
    /// How often the status was asked for.
    looks: AtomicU32,
    /// Whether it knows of a second node beside it.
    company: AtomicBool,
}

fn node(text: &str) -> NodeId {
    text.parse().unwrap()
}

impl Answers for Daemon {
    fn status(&self) -> Status {
        let company = self.company.load(Ordering::SeqCst);
        self.looks.fetch_add(1, Ordering::SeqCst);
        let problem = Problem {
            code: "no_links".into(),
            subject: "me".into(),
            text: "this node has no links".into(),
            advice: "name a peer".into(),
        };
        let me = NodeStatus {
            node: node("me"),
            role: Role::Hop,
            cluster: "main".parse().unwrap(),
            address: Address(0x10_0000),
            this: true,
            reachable: true,
            cost: None,
            hops: None,
            next_hop: None,
            software: "test 1".into(),
            since: Timestamp::now(),
            neighbors: if company { [(node("hop-2"), 10)].into() } else { BTreeMap::new() },
            backup_next_hop: None,
            backup_cost: None,
        };
        Status {
            schema_version: SCHEMA_VERSION,
            node: node("me"),
            role: Role::Hop,
            mesh: "demo".parse().unwrap(),
            cluster: "main".parse().unwrap(),
            address: Address(0x10_0000),
            software: "test 1".into(),
            certificate_expires: "2999-01-01T00:00:00Z".parse().unwrap(),
            listen: vec!["127.0.0.1:7323".parse().unwrap()],
            peers: vec![],
            links: vec![],
            nodes: vec![me],
            packets: plexus_mesh::status::PacketCounts::default(),
            problems: if self.problem { vec![problem] } else { vec![] },
        }
    }

    async fn ping(&self, node: NodeId, timeout: Duration) -> Result<Ping, QueryError> {
        let number = self.pings.fetch_add(1, Ordering::Relaxed);
        match node.as_str() {
            "flaky" if number % 2 == 1 => Err(QueryError::Timeout { node, timeout }),
            "node-1" | "flaky" => {
                Ok(Ping { schema_version: 1, from: "me".parse().unwrap(), node, rtt_ms: 1.5, hops: 2 })
            }
            "node-2" => Err(QueryError::Unreachable(node)),
            _ => Err(QueryError::UnknownNode(node)),
        }
    }

    async fn events(&self, after: u64, wait: Duration) -> Result<MeshEvents, ActError> {
        let event = |number, at: &str, event, text: &str| MeshEvent {
            number,
            at: at.parse().unwrap(),
            event,
            node: Some(node("hop-1")),
            text: text.into(),
        };
        let mut events = vec![
            event(1, "2026-11-20T12:00:00Z", EventKind::LinkUp, "link to hop-1 is up"),
            event(2, "2026-11-20T12:01:00Z", EventKind::LinkDown, "link to hop-1 is down: timed out"),
        ];
        events.retain(|event| event.number > after);
        if events.is_empty() {
            tokio::time::sleep(wait).await;
        }
        let since = "2026-11-20T11:00:00Z".parse().unwrap();
        Ok(MeshEvents {
            schema_version: SCHEMA_VERSION,
            from: node("me"),
            since,
            forgotten: 0,
            events,
            last: 2,
        })
    }

    async fn reload(&self) -> Result<Reloaded, ActError> {
        Ok(Reloaded {
            schema_version: 1,
            changed: vec!["peer hop-2:7323 added".into()],
            needs_restart: vec![],
        })
    }

    async fn act(&self, action: Action) -> Result<serde_json::Value, ActError> {
        match action {
            Action::Cordon { .. } | Action::Drain { .. } => {
                Ok(serde_json::json!({"schema_version": 1, "node": "me", "cordoned": true, "running": 2}))
            }
            other => Err(ActError::NotOffered(other.name())),
        }
    }

    async fn trace(&self, target: NodeId, _timeout: Duration) -> Result<Trace, QueryError> {
        let step = |name: &str, address| TraceHop {
            node: Some(name.parse().unwrap()),
            address: Some(Address(address)),
            rtt_ms: Some(0.5),
            sent: 1,
            answered: 1,
            ..TraceHop::default()
        };
        let (from, mut hops) = (node("me"), vec![step("hop-1", 1)]);
        match target.as_str() {
            "node-1" => {
                hops.push(step("node-1", 2));
                Ok(Trace { schema_version: 1, from, target, reached: true, hops, error: None })
            }
            "node-2" => {
                let error = Some("no route at hop-1".into());
                Ok(Trace { schema_version: 1, from, target, reached: false, hops, error })
            }
            _ => Err(QueryError::UnknownNode(target)),
        }
    }
}

struct Served {
    dir: TempDir,
    daemon: Arc<Daemon>,
    _runtime: tokio::runtime::Runtime,
}

impl Served {
    fn start(problem: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let socket = runtime.block_on(LocalSocket::bind(&dir.path().join("sock"))).unwrap();
        let (pings, looks, company) = Default::default();
        let daemon = Arc::new(Daemon { problem, pings, looks, company });
        runtime.spawn(socket.serve(daemon.clone(), std::future::pending()));
        Self { dir, daemon, _runtime: runtime }
    }

    fn path(&self) -> String {
        self.dir.path().join("sock").to_str().unwrap().to_owned()
    }

    fn run(&self, args: &[&str]) -> Ended {
        run(args, &[("PLEXUS_SOCKET", &self.path())])
    }

    /// Waits until the status was asked for so many more times.
    fn looked(&self, times: u32) {
        let (before, start) = (self.daemon.looks.load(Ordering::SeqCst), std::time::Instant::now());
        while self.daemon.looks.load(Ordering::SeqCst) < before + times {
            assert!(start.elapsed() < Duration::from_secs(60), "nobody looks any more");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn help_tells_the_exit_codes() {
    let help = run(&["--help"], &[]);
    assert_eq!(help.code, 0);
    for line in
        ["  3  degraded: an answer came, and says that something is wrong", "  4  not found: no such node"]
    {
        assert!(help.out.lines().any(|found| found == line), "{}", help.out);
    }
    let commands = ["status", "nodes", "ping", "trace", "ca"];
    let listed = commands.iter().all(|name| help.out.contains(&format!("\n  {name} ")));
    assert!(listed, "{}", help.out);
}

#[test]
fn wrong_usage_is_2() {
    let cases: [(&[&str], &str); 7] = [
        (&[], "Usage: plexus"),
        (&["status", "--socket", "/a", "--controller", "b"], "cannot be used with"),
        (&["ping", "NODE"], "node name \"NODE\" must be 1 to 63 of a-z"),
        (&["ping", "n", "-c", "0"], "0 is not in 1.."),
        (&["trace", "n", "--timeout", "90"], "must be between 0.001 and 60 seconds"),
        (&["ca", "init", "/nonexistent/x", "--mesh", "A", "--cluster", "b"], "mesh name \"A\" must be"),
        (
            &["ca", "issue", "--ca", "x", "--role", "king", "--name", "n", "--out", "o"],
            "role \"king\" is none of controller, execution, hop",
        ),
    ];
    for (args, said) in cases {
        let ended = run(args, &[]);
        assert_eq!(ended.code, 2, "{args:?}");
        assert!(ended.err.contains(said), "{args:?}: {}", ended.err);
    }
}

#[test]
fn an_authority_is_made_once_and_issues() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (ca, out) = (path("ca"), path("node"));
    let init = ["ca", "init", &ca, "--mesh", "demo", "--cluster", "main"];
    run(&init, &[]).check(
        0,
        &format!(
            "made the authority of mesh demo, cluster main, in {ca}\n\
             keep {ca}/root.key offline: only another cluster needs it\n\
             next: plexus ca issue --ca {ca} --role controller --name NAME --out DIR\n"
        ),
        "",
    );
    run(&init, &[]).check(
        1,
        "",
        &format!(
            "error: {ca} already holds a certificate authority\n \
             hint: choose another directory; an authority is never overwritten\n"
        ),
    );

    let issue = |role, name, out: &str, extra: &[&str]| {
        let args = ["ca", "issue", "--ca", &ca, "--role", role, "--name", name, "--out", out];
        run(&[&args, extra].concat(), &[])
    };
    let issued = issue("execution", "node-1", &out, &[]);
    let credentials = Credentials::load(Path::new(&out)).unwrap();
    let expires = credentials.expires();
    let line =
        format!("issued spiffe://demo/main/execution/node-1, address 00100000, until {expires}, in {out}\n");
    issued.check(0, &line, "");

    let issued = issue("execution", "node-1", &out, &["--days", "1", "-o", "json"]);
    let expires = Credentials::load(Path::new(&out)).unwrap().expires();
    let json = format!(
        r#"{{"schema_version":1,"node":"node-1","role":"execution","address":"00100000","uri":"spiffe://demo/main/execution/node-1","certificate_expires":"{expires}","dir":"{out}"}}"#
    );
    issued.check(0, &format!("{json}\n"), "");

    issue("hop", "hop-1", &out, &[]).check(
        1,
        "",
        &format!(
            "error: {out} already holds the identity of spiffe://demo/main/execution/node-1\n \
             hint: choose another --out; each node has its own directory\n"
        ),
    );
    issue("hop", "node-1", &path("other"), &[]).check(
        1,
        "",
        "error: node-1 is already enrolled with role execution, so it cannot have role hop\n \
         hint: choose another name; names are unique in a mesh\n",
    );
    let missing = path("missing");
    let args = ["ca", "issue", "--ca", &missing, "--role", "hop", "--name", "n", "--out", &out];
    run(&args, &[]).check(
        1,
        "",
        &format!("error: {missing} holds no certificate authority; `plexus ca init` makes one\n"),
    );
}

#[test]
fn an_intermediate_is_made_once_with_addresses_of_its_own_and_issues() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (ca, second, third) = (path("ca"), path("ca-2"), path("ca-3"));
    assert_eq!(run(&["ca", "init", &ca, "--mesh", "demo", "--cluster", "main"], &[]).code, 0);
    let make = |cluster: &str, out: &str, extra: &[&str]| {
        run(&[&["ca", "intermediate", "--ca", &ca, "--cluster", cluster, "--out", out], extra].concat(), &[])
    };
    let made = make("main", &second, &[]);
    assert_eq!((made.code, made.err.as_str()), (0, ""));
    let next = format!("in {second}\nnext: set ca_dir = \"{second}\" in [enrolment] of that controller\n");
    let begins = "made an intermediate of mesh demo, cluster main, addresses 002";
    assert!(made.out.starts_with(begins) && made.out.ends_with(&next), "{}", made.out);
    let again = make("main", &second, &[]);
    assert!(again.code == 1 && again.err.contains("already holds a certificate authority"), "{}", again.err);
    let made = make("other", &third, &["-o", "json"]);
    let document: serde_json::Value = serde_json::from_str(&made.out).unwrap();
    assert_eq!((&document["cluster"], &document["mesh"]), (&"other".into(), &"demo".into()));
    assert!(document["first_address"].as_str().unwrap().starts_with("003"), "{document}");

    // Each of them certifies members of one mesh, who believe one another; none of them has the root's key.
    let issue = |ca: &str, name: &str| {
        let out = path(name);
        let args = ["ca", "issue", "--ca", ca, "--role", "controller", "--name", name, "--out", &out];
        assert_eq!(run(&args, &[]).code, 0);
        Credentials::load(Path::new(&out)).unwrap()
    };
    let members = [issue(&ca, "one"), issue(&second, "two"), issue(&third, "three")];
    let told: Vec<_> = members.iter().map(|member| member.identity().uri()).collect();
    let expected = ["main/controller/one", "main/controller/two", "other/controller/three"];
    assert_eq!(told, expected.map(|path| format!("spiffe://demo/{path}")));
    for (one, other) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
        let seen = members[one].verifier().verify(&members[other].chain(), UnixTime::now()).unwrap();
        assert_eq!(&seen, members[other].identity());
    }
    let below = run(&["ca", "intermediate", "--ca", &second, "--cluster", "x", "--out", &path("x")], &[]);
    assert!(below.code == 1 && below.err.contains("bring the root's key"), "{}", below.err);
}

#[test]
fn a_root_is_rolled_over_in_three_steps() {
    let folder = TempDir::new().unwrap();
    let ca = folder.path().join("ca").display().to_string();
    assert_eq!(run(&["ca", "init", &ca, "--mesh", "demo", "--cluster", "main"], &[]).code, 0);
    let step = |step: &str, roots: usize, next: &str| {
        let ended = run(&["ca", "rollover", step, "--ca", &ca], &[]);
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{step}");
        let shown = ended.out.lines().filter(|line| line.len() == 66 && line.starts_with("  ")).count();
        assert_eq!(shown, roots, "{}", ended.out);
        assert!(ended.out.lines().last().unwrap().contains(next), "{}", ended.out);
    };
    let early = run(&["ca", "rollover", "switch", "--ca", &ca], &[]);
    early.check(1, "", "error: no root was introduced: that is the first step\n");
    step("introduce", 2, "the same with switch");
    step("switch", 2, "the same with retire");
    step("retire", 1, "next: nothing");
    let out = folder.path().join("n").display().to_string();
    let issued = run(&["ca", "issue", "--ca", &ca, "--role", "hop", "--name", "n", "--out", &out], &[]);
    assert_eq!(issued.code, 0, "{}", issued.err);
    let ended = run(&["-o", "json", "ca", "rollover", "retire", "--ca", &ca], &[]);
    let document: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((document["mesh"].as_str(), document["roots"].as_array().unwrap().len()), (Some("demo"), 1));
}

#[test]
fn status_is_3_when_something_is_wrong() {
    let text = "\
me  WORD
  role         hop in mesh demo, cluster main
  software     test 1
  listening    127.0.0.1:7323
  certificate  ";
    let well = Served::start(false).run(&["status"]);
    assert!(well.out.starts_with(&text.replace("WORD", "ok")), "{}", well.out);
    let end = " left, until 2999-01-01T00:00:00Z\n  nodes        1 reachable\n  links        0 up\n";
    assert!(well.out.ends_with(end), "{}", well.out);
    assert_eq!((well.code, well.err.as_str()), (0, ""));

    let ill = Served::start(true).run(&["status"]);
    assert!(ill.out.starts_with(&text.replace("WORD", "degraded, 1 problem")), "{}", ill.out);
    let end = "\nPROBLEMS\n  no_links  this node has no links\n    do: name a peer\n";
    assert!(ill.out.ends_with(end), "{}", ill.out);
    assert_eq!((ill.code, ill.err.as_str()), (3, ""));
    assert_eq!(Served::start(true).run(&["status", "-o", "json"]).code, 3);
}

#[test]
fn every_form_of_output_tells_the_same() {
    let served = Served::start(false);
    served.run(&["nodes", "-o", "name"]).check(0, "me\n", "");
    let lines = served.run(&["nodes", "-o", "jsonl"]).out;
    assert!(
        lines.starts_with(r#"{"node":"me","role":"hop","#) && lines.matches('\n').count() == 1,
        "{lines}"
    );
    let yaml = served.run(&["status", "-o", "yaml"]).out;
    assert!(yaml.starts_with("---\nschema_version: 1\nnode: me\n"), "{yaml}");
    served.run(&["routes"]).check(0, "me knows no other node\n", "");
    served.run(&["links"]).check(0, "me knows of no link\n", "");
    let links = r#"{"schema_version":1,"from":"me","links":[]}"#;
    served.run(&["links", "-o", "json"]).check(0, &format!("{links}\n"), "");
}

#[test]
fn events_are_told_and_followed() {
    let served = Served::start(false);
    let first = "2026-11-20T12:00:00.000Z  link_up           link to hop-1 is up\n";
    let second = "2026-11-20T12:01:00.000Z  link_down         link to hop-1 is down: timed out\n";
    served.run(&["events"]).check(0, &format!("{first}{second}"), "");
    served.run(&["events", "--since", "2026-11-20T12:00:30Z"]).check(0, second, "");
    served.run(&["events", "-o", "name"]).check(0, "link_up\nlink_down\n", "");

    let mut command = Command::new(env!("CARGO_BIN_EXE_plexus"));
    let args = ["events", "-f", "--socket", &served.path()];
    let mut child = command.env_clear().args(args).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let told: Vec<String> = (0..2).map(|_| lines.next().unwrap().unwrap() + "\n").collect();
    assert_eq!(told, [first, second]);
    assert!(child.try_wait().unwrap().is_none(), "it follows on");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_watch_in_a_pipe_is_a_line_for_each_change() {
    let served = Served::start(false);
    let mut command = Command::new(env!("CARGO_BIN_EXE_plexus"));
    let args = ["links", "--watch=0.01", "--socket", &served.path()];
    let mut child = command.env_clear().args(args).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), r#"{"schema_version":1,"from":"me","links":[]}"#);
    served.looked(3);
    served.daemon.company.store(true, Ordering::SeqCst);
    let second = lines.next().unwrap().unwrap();
    assert!(second.contains(r#""peer":"hop-2""#), "{second}");
    served.looked(3);
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
    let more: Vec<_> = lines.map(Result::unwrap).collect();
    assert!(more.is_empty(), "what stays as it is gives no line: {more:?}");
}

#[test]
fn acting_verbs_are_for_root_and_say_what_changed() {
    let served = Served::start(false);
    let reload = served.run(&["reload"]);
    if rustix::process::geteuid().is_root() {
        reload.check(0, "changed: peer hop-2:7323 added\n", "");
        served.run(&["node", "cordon"]).check(0, "me takes no new work; 2 units still there\n", "");
        served.run(&["node", "cordon", "me"]).check(0, "me takes no new work; 2 units still there\n", "");
        let other = served.run(&["node", "cordon", "node-7"]);
        assert_eq!(other.code, 2, "{}", other.err);
        assert!(other.err.starts_with("error: node-7 is another node; me answers here\n"), "{}", other.err);
        let nothing = served.run(&["node", "image", "list"]);
        assert_eq!(nothing.code, 1);
        assert!(nothing.err.starts_with("error: this daemon does not offer image list\n"), "{}", nothing.err);
        let drained = served.run(&["node", "drain", "--deadline", "1s"]);
        assert_eq!((drained.code, drained.err.as_str()), (3, ""));
    } else {
        reload.check(5, "", "error: only root of this machine may reload here\n hint: use sudo\n");
    }
}

/// Everybody whom the socket lets in may look, and nobody but root may act, as the kernel vouches for the caller.
#[test]
fn another_user_may_look_and_not_act() {
    use std::os::unix::process::CommandExt as _;

    if !rustix::process::geteuid().is_root() {
        return;
    }
    let served = Served::start(false);
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    open(served.dir.path(), 0o755);
    open(Path::new(&served.path()), 0o666);
    // A copy where nobody may read and run it.
    let program = served.dir.path().join("plexus");
    std::fs::copy(env!("CARGO_BIN_EXE_plexus"), &program).unwrap();
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.env_clear().args(["--socket", &served.path()]).args(args).uid(65534).gid(65534);
        let ended = command.output().unwrap();
        (ended.status.code().unwrap(), String::from_utf8(ended.stderr).unwrap())
    };
    assert_eq!(as_nobody(&["nodes"]), (0, String::new()));
    for (verb, args) in [
        ("reload", &["reload"][..]),
        ("cordon", &["node", "cordon"]),
        ("image pull", &["node", "image", "pull", "x"]),
        ("netcheck", &["netcheck", "node-1"]),
        ("forward", &["forward", "0", "node-1:127.0.0.1:80"]),
    ] {
        let refused = format!("error: only root of this machine may {verb} here\n hint: use sudo\n");
        assert_eq!(as_nobody(args), (5, refused));
    }
}

#[test]
fn what_needs_a_controller_says_so() {
    for args in [&["work", "list"][..], &["token", "list"], &["node", "revoke", "node-7"]] {
        let ended = run(args, &[]);
        assert_eq!(ended.code, 2, "{args:?}");
        assert!(
            ended.err.starts_with("error: this goes through a controller, under a user's name\n"),
            "{}",
            ended.err
        );
    }
}

#[test]
fn work_goes_through_the_api() {
    let job = r#"{"id":42,"type":"job","url":"/api/v2/jobs/42/","name":"deploy","status":"successful","execution_node":"node-7","finished":"2026-11-20T12:00:00Z","event_processing_finished":true,"related":{"job_events":"/api/v2/jobs/42/job_events/","cancel":"/api/v2/jobs/42/cancel/"}}"#;
    let list: &'static str = Box::leak(format!(r#"{{"count":1,"results":[{job}]}}"#).into_boxed_str());
    let host = |address: SocketAddr| format!("http://{address}");
    let ask = |args: &[&str], responses: &[(&'static str, &'static str)]| {
        let (address, asked) = controller(responses);
        let ended = run(args, &[("CONTROLLER_HOST", &host(address))]);
        (ended, asked.try_iter().collect::<Vec<_>>())
    };
    let (ended, asked) = ask(&["work", "list"], &[("200 OK", list)]);
    ended.check(
        0,
        "ID  TYPE  STATUS      NODE    STARTED  NAME\n42  job   successful  node-7  -        deploy\n",
        "",
    );
    assert!(
        asked[0].starts_with("GET /api/v2/unified_jobs/?order_by=-id&page_size=25&status__in=new,"),
        "{asked:?}"
    );

    let events = r#"{"results":[{"counter":1,"stdout":"PLAY [all]"},{"counter":2,"stdout":""}]}"#;
    let answers = [("200 OK", list), ("200 OK", job), ("200 OK", job), ("200 OK", events)];
    let (ended, asked) = ask(&["work", "results", "42", "--follow"], &answers);
    ended.check(0, "PLAY [all]\n", "");
    assert!(asked[3].contains("/job_events/?order_by=counter&counter__gt=0&"), "{asked:?}");

    let can = r#"{"can_cancel":true}"#;
    let answers = [("200 OK", list), ("200 OK", job), ("200 OK", can), ("202 Accepted", "")];
    let (ended, asked) = ask(&["work", "cancel", "42"], &answers);
    ended.check(0, "job 42 is asked to end; plexus work status 42 tells when it has\n", "");
    assert!(asked[3].starts_with("POST /api/v2/jobs/42/cancel/ "), "{asked:?}");

    let (ended, _) = ask(&["work", "status", "7"], &[("200 OK", r#"{"count":0,"results":[]}"#)]);
    ended.check(4, "", "error: there is no job 7\n hint: plexus work list --all shows them\n");
}

#[test]
fn a_controller_cordons_by_its_instances() {
    let found = r#"{"count":1,"results":[{"id":3,"hostname":"node-7","jobs_running":1}]}"#;
    let (address, asked) =
        controller(&[("200 OK", found), ("200 OK", r#"{"hostname":"node-7","enabled":false}"#)]);
    let host = format!("http://{address}");
    let env = [("CONTROLLER_HOST", host.as_str())];
    run(&["node", "cordon", "node-7"], &env).check(0, "node-7 takes no new work; 1 unit still there\n", "");
    let asked: Vec<String> = asked.iter().take(2).collect();
    assert!(asked[0].starts_with("GET /api/v2/instances/?hostname=node-7 "), "{asked:?}");
    assert!(
        asked[1].starts_with("PATCH /api/v2/instances/3/ ") && asked[1].ends_with(r#"{"enabled":false}"#),
        "{asked:?}"
    );
}

/// bash itself, with the script and a daemon behind it.
#[test]
fn bash_completes_commands_and_live_nodes() {
    let served = Served::start(false);
    let program = Path::new(env!("CARGO_BIN_EXE_plexus"));
    let complete = |words: &[&str]| {
        let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
        let script = format!(
            "source <(plexus completion bash); COMP_WORDS=({}); COMP_CWORD={}; _plexus; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            quoted.join(" "),
            words.len() - 1,
        );
        let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).env_clear().env("PATH", path).env("PLEXUS_SOCKET", served.path());
        String::from_utf8(bash.output().unwrap().stdout).unwrap()
    };
    assert_eq!(complete(&["plexus", "ping", ""]), "me\n");
    assert_eq!(complete(&["plexus", "stat"]), "status\n");
    assert_eq!(complete(&["plexus", "node", "im"]), "image\n");
    assert_eq!(complete(&["plexus", "forward", "8080", "m"]), "me:\n");
}

#[test]
fn json_is_what_the_daemon_said() {
    let served = Served::start(false);
    let trace = r#"{"schema_version":1,"from":"me","target":"node-1","reached":true,"hops":[{"node":"hop-1","address":"00000001","rtt_ms":0.5,"sent":1,"answered":1},{"node":"node-1","address":"00000002","rtt_ms":0.5,"sent":1,"answered":1}]}"#;
    served.run(&["trace", "node-1", "-o", "json", "-c", "1"]).check(0, &format!("{trace}\n"), "");
    let ping = r#"{"schema_version":1,"from":"me","node":"node-1","rtt_ms":1.5,"hops":2}"#;
    served.run(&["-o", "json", "ping", "node-1", "-c", "2", "-i", "0"]).check(
        0,
        &format!("{ping}\n{ping}\n"),
        "",
    );
    let nodes = served.run(&["nodes", "-o", "json"]);
    assert!(nodes.out.starts_with(r#"{"schema_version":1,"from":"me","nodes":[{"node":"me","role":"hop","#));
    assert_eq!(nodes.out.matches('\n').count(), 1);
    let status: Status = serde_json::from_str(&served.run(&["status", "-o", "json"]).out).unwrap();
    assert_eq!(status.node, node("me"));
}

#[test]
fn ping_and_trace_end_with_what_they_found() {
    let served = Served::start(false);
    served.run(&["ping", "node-1", "-c", "2", "-i", "0"]).check(
        0,
        "node-1 answered me in 1.50 ms over 2 links\n\
         node-1 answered me in 1.50 ms over 2 links\n\
         2 sent, 2 answered; least 1.50 ms, mean 1.50 ms, most 1.50 ms\n",
        "",
    );
    let flaky = Served::start(false).run(&["ping", "flaky", "-c", "2", "-i", "0", "--timeout", "0.25"]);
    flaky.check(
        3,
        "flaky answered me in 1.50 ms over 2 links\n\
         lost: no answer from node flaky within 250 ms\n\
         2 sent, 1 answered; least 1.50 ms, mean 1.50 ms, most 1.50 ms\n",
        "",
    );
    let unreachable = "error: no route to node node-2\n \
         hint: `plexus nodes` says who is reachable, `plexus status` what is wrong here\n";
    served.run(&["ping", "node-2", "-c", "1"]).check(6, "", unreachable);
    let lost = "lost: no route to node node-2\n";
    let said = format!("{lost}{lost}2 sent, 0 answered\n");
    served.run(&["ping", "node-2", "-c", "2", "-i", "0"]).check(6, &said, unreachable);
    let unknown = "error: node nobody is not known in this mesh\n \
         hint: `plexus nodes` on a hop or a controller lists the nodes that are known\n";
    served.run(&["ping", "nobody"]).check(4, "", unknown);
    served.run(&["trace", "nobody"]).check(4, "", unknown);
    served.run(&["trace", "node-2", "--color", "always"]).check(
        6,
        "\x1b[1mHOP\x1b[0m  \x1b[1mNODE\x1b[0m   \x1b[1mRTT\x1b[0m      \x1b[1mLOSS\x1b[0m  \x1b[1mLINK\x1b[0m  \x1b[1mMTU\x1b[0m\n\
         1    hop-1  0.50 ms  0 %   -     -\n\
         \x1b[31mnot reached:\x1b[0m node-2 by me → hop-1: no route at hop-1\n",
        "",
    );
}

#[test]
fn no_daemon_is_6_and_says_where_it_looked() {
    run(&["status", "--socket", "/nonexistent/sock"], &[]).check(
        6,
        "",
        "error: there is no socket at /nonexistent/sock\n \
         hint: start the daemon, or compare with `socket` in its config\n",
    );
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    run(&["status", "--socket", path.to_str().unwrap()], &[]).check(
        6,
        "",
        &format!(
            "error: no daemon answers at {}\n hint: the daemon that made this socket is gone; start it again\n",
            path.display()
        ),
    );
}

/// A controller that answers each request with the next of `responses` (status line and body); what it was asked
/// comes out of the channel.
fn controller(responses: &[(&'static str, &'static str)]) -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel();
    let responses = responses.to_vec();
    std::thread::spawn(move || {
        for (status, body) in responses {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = sender.send(answer(&mut stream, status, body));
        }
    });
    (address, receiver)
}

/// Reads one request, as first line, authorization and body, and answers it.
fn answer(stream: &mut (impl Read + Write), status: &str, body: &str) -> String {
    let mut reader = BufReader::new(&mut *stream);
    let (mut first, mut authorization, mut length) = (String::new(), String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(": ") {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                authorization = value.to_owned()
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap()
            }
            Some(_) => {}
        }
    }
    let mut request = vec![0; length];
    reader.read_exact(&mut request).unwrap();
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.flush().unwrap();
    format!("{} | {authorization} | {}", first.trim_end(), String::from_utf8(request).unwrap())
}

const PING: &str = r#"{"schema_version":1,"from":"controller","node":"node-1","rtt_ms":1.5,"hops":2}"#;

#[test]
fn a_controller_is_asked_with_the_login_of_the_environment() {
    let (address, asked) = controller(&[("200 OK", PING), ("200 OK", PING)]);
    let host = format!("http://{address}/");
    let password = [
        ("CONTROLLER_HOST", host.as_str()),
        ("CONTROLLER_USERNAME", "admin"),
        ("CONTROLLER_PASSWORD", "pässword"),
    ];
    let args = ["ping", "node-1", "-c", "1", "--timeout", "2"];
    run(&args, &password).check(0, "node-1 answered controller in 1.50 ms over 2 links\n", "");
    let expected = "POST /api/plexus/v1/mesh/ping/ HTTP/1.1 | Basic YWRtaW46cMOkc3N3b3Jk \
                    | {\"node\":\"node-1\",\"timeout_ms\":2000}";
    assert_eq!(asked.recv().unwrap(), expected);

    let token = [password[0], password[1], ("CONTROLLER_OAUTH_TOKEN", "t0ken")];
    assert_eq!(run(&["-o", "json", "trace", "node-1"], &token).code, 1, "a ping is no trace");
    let expected =
        "POST /api/plexus/v1/mesh/trace/ HTTP/1.1 | Bearer t0ken | {\"node\":\"node-1\",\"timeout_ms\":5000}";
    assert_eq!(asked.recv().unwrap(), expected);
}

#[test]
fn a_controller_s_refusals_have_their_codes() {
    let cases = [
        (
            "401 Unauthorized",
            r#"{"detail":"Authentication credentials were not provided."}"#,
            5,
            "not provided",
        ),
        ("403 Forbidden", "", 5, "refuses: 403 Forbidden"),
        (
            "404 Not Found",
            r#"{"detail":"node n is not known in this mesh"}"#,
            4,
            "error: node n is not known",
        ),
        ("404 Not Found", "<html>", 1, "is this a Plexus controller?"),
        ("503 Service Unavailable", r#"{"detail":"no route to node n"}"#, 6, "error: no route to node n\n"),
        ("504 Gateway Timeout", "", 6, "504 Gateway Timeout"),
        ("500 Internal Server Error", "", 1, "500 Internal Server Error"),
        ("308 Permanent Redirect", "", 1, "give the URL that the controller itself uses"),
        ("200 OK", "<html>", 1, "error: the answer is not understood"),
        ("200 OK", r#"{"schema_version":2}"#, 1, "the answer has schema version 2, this plexus knows 1"),
    ];
    for (status, body, code, said) in cases {
        let (address, _asked) = controller(&[(status, body)]);
        let ended = run(&["--controller", &format!("http://{address}"), "trace", "n"], &[]);
        assert_eq!((ended.code, ended.out.as_str()), (code, ""), "{status}: {}", ended.err);
        assert!(ended.err.contains(said), "{status}: {}", ended.err);
    }
}

#[test]
fn a_controller_that_is_not_there_is_6() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let ended = run(&["status", "--controller", &url], &[]);
    assert_eq!(ended.code, 6);
    assert!(ended.err.starts_with(&format!("error: cannot ask controller {url}: ")), "{}", ended.err);
    assert!(ended.err.ends_with("\n hint: is the controller running, and its URL right?\n"), "{}", ended.err);
    for bad in ["http://", "ftp://host", "https://a b"] {
        let ended = run(&["status", "--controller", bad], &[]);
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{bad}: {}", ended.err);
        assert!(ended.err.contains("is not the URL of a controller"), "{bad}: {}", ended.err);
    }
}

#[test]
fn a_self_signed_controller_is_taken_only_when_asked_for() {
    plexus_mesh::install_crypto_provider();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let tls = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(tls, stream.unwrap());
            if stream.conn.complete_io(&mut stream.sock).is_ok() {
                answer(&mut stream, "200 OK", PING);
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    let ask = |verify| {
        let env = [("CONTROLLER_HOST", url.as_str()), ("CONTROLLER_VERIFY_SSL", verify)];
        run(&["ping", "node-1", "-c", "1"], &env)
    };
    let refused = ask("true");
    assert_eq!((refused.code, refused.out.as_str()), (6, ""));
    let said =
        format!("error: cannot ask controller {url}: client error (Connect): invalid peer certificate: ");
    assert!(refused.err.starts_with(&said), "{}", refused.err);
    let hint = "\n hint: if its certificate is self-signed, set CONTROLLER_VERIFY_SSL=false\n";
    assert!(refused.err.ends_with(hint), "{}", refused.err);
    ask("false").check(0, "node-1 answered controller in 1.50 ms over 2 links\n", "");
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let served = Served::start(false);
    let mut command = Command::new(env!("CARGO_BIN_EXE_plexus"));
    command.env_clear().args(["nodes", "--socket", &served.path()]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = command.stdout(writer).output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap()), (Some(0), String::new()));
}
