//! A seeded nemesis over real processes: kills, stops and cuts at random while jobs run, and a pure judge over what is left.
//!
//! `PLEXUS_SEED` and `PLEXUS_MINUTES` choose another run; the seed is printed. Jobs are processes of the node in every run, and in the
//! longer proofs a second system has them in containers, whose engine is killed part by part too.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plexus_tests::history::{Ended, History, check};
use plexus_tests::wire::{Direction, Shape, Wire};
use plexus_tests::{Api, Cluster, Daemon, JobOptions, Layout, Leftovers, Samples, demo_image, essence};
use reqwest::Method;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// Trouble in every run, and in the longer proofs.
const SHORT: Duration = Duration::from_secs(45);
const LONG: Duration = Duration::from_secs(600);
/// Longest time from the end of all faults until every job is over.
const SETTLED: Duration = Duration::from_secs(30);
/// Time without trouble after each fault, in which jobs may begin and end.
const REST: Duration = Duration::from_millis(500);
/// Pause between two looks for a process that lives for moments.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Bytes before the first frame of a spool's segment.
const SEGMENT_HEADER: u64 = 64;
/// Room on the node's disk.
const DISK_MIB: u64 = 64;
/// Jobs that are on their way at the same time.
const JOBS: usize = 3;

/// What runs the jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Process,
    Podman,
}

/// Numbers from a seed (splitmix64): the same seed chooses the same faults.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// A small file system of the node's own. Its mount goes with it.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None without the right to mount; the disk is then never full.
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let options = CString::new(format!("size={DISK_MIB}m,mode=700")).unwrap();
        rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), options.as_c_str()).ok()?;
        Some(Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).ok();
    }
}

/// The system in trouble, and what is known of its jobs.
struct Arena {
    /// Before the cluster, whose folder cannot go while it is mounted there.
    disk: Option<SmallDisk>,
    engine: Engine,
    cluster: Cluster,
    wire: Wire,
    template: i64,
    dice: Dice,
    accepted: Vec<i64>,
    canceled: BTreeSet<i64>,
    struck: BTreeSet<i64>,
    strikes: usize,
    /// Deaths of the agent.
    deaths: usize,
    said: Vec<String>,
}

#[tokio::test]
async fn what_a_nemesis_does_for_a_while_loses_nothing() {
    live_through(Engine::Process).await;
}

#[tokio::test]
async fn what_a_nemesis_does_to_containers_loses_nothing() {
    if plexus_tests::is_verify() {
        live_through(Engine::Podman).await;
    }
}

async fn live_through(engine: Engine) {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = from_env("PLEXUS_SEED").unwrap_or(1);
    let usual = if plexus_tests::is_verify() { LONG } else { SHORT };
    let length = from_env("PLEXUS_MINUTES").map_or(usual, |minutes| Duration::from_secs(60 * minutes));

    let effects = tempfile::NamedTempFile::new().unwrap();
    let mut arena = Arena::start(seed, effects.path(), engine).await;
    let first = arena.launch().await.unwrap();
    arena.cluster.api().finished(first, SETTLED).await.unwrap();
    let expected = events(arena.cluster.api(), first).await;
    assert_eq!(expected.len(), 423, "an undisturbed job");

    let end = Instant::now() + length;
    while Instant::now() < end {
        arena.keep_jobs_coming().await;
        arena.fault().await;
    }
    arena.heal().await;
    let history = arena.history(effects.path(), expected).await;
    let broken = check(&history);
    let tally = |status: &str| history.ended.iter().filter(|ended| ended.status == status).count();
    // Not println!, which the test harness keeps to itself when all is well.
    let line = format!(
        "chaos: {engine:?}, seed {seed}, {} faults, {} starts, {} jobs: {} successful, {} canceled, {} error\n",
        arena.said.len(),
        history.starts.len(),
        history.ended.len(),
        tally("successful"),
        tally("canceled"),
        tally("error"),
    );
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    assert!(
        broken.is_empty(),
        "{engine:?}, seed {seed}:\n{}\nfaults:\n{}",
        broken.join("\n"),
        arena.said.join("\n")
    );
    arena.cluster.clean().await.unwrap();
    arena.cluster.node.stop().await.unwrap();
    drop(arena.disk.take());
    arena.cluster.finish().await.unwrap();
}

impl Arena {
    async fn start(seed: u64, effects: &Path, engine: Engine) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let stream = fixtures.join("runner-streams/ten-hosts/worker.bin");
        let script = fixtures.join("chaos.sh");
        let builder = match engine {
            Engine::Process => {
                let words = [script, stream, effects.to_owned()];
                let mut command: Vec<String> = words.iter().map(|path| path.display().to_string()).collect();
                command.push("{dir}".to_owned());
                Cluster::builder("chaos").process(command)
            }
            Engine::Podman => {
                let worker = fixtures.join("chaos-worker.sh");
                let mounts = [
                    format!("{}:/bin/ansible-runner:ro", worker.display()),
                    format!("{}:/chaos.sh:ro", script.display()),
                    format!("{}:/stream:ro", stream.display()),
                    format!("{}:/effects", effects.display()),
                ];
                Cluster::builder("chaos-podman").podman(&format!("mounts = {}", json!(mounts)))
            }
        };
        let mut cluster = builder.prepare().unwrap();
        let disk = SmallDisk::mount(&cluster.layout.data_dir("node-1"));
        // The execution node reaches its hop over a wire that can be cut.
        let hop = cluster.layout.mesh_port;
        let wire = Wire::to(([127, 0, 0, 1], hop).into(), Shape::default(), seed).unwrap();
        let config = cluster.layout.config("node-1");
        let text = fs::read_to_string(&config).unwrap();
        let wired = text.replace(&format!("127.0.0.1:{hop}"), &wire.address().to_string());
        assert_ne!(text, wired);
        fs::write(&config, wired).unwrap();
        for daemon in [&mut cluster.hop, &mut cluster.controller, &mut cluster.node] {
            daemon.start().unwrap();
        }
        cluster.api_up().await.unwrap();
        cluster.node_ready().await.unwrap();
        let image = match engine {
            Engine::Process => demo_image(),
            Engine::Podman => "localhost/plexus-tiny:2".to_owned(),
        };
        let samples = Samples::new(&image).unwrap();
        samples.copy_project(&cluster.layout.projects()).unwrap();
        let api = cluster.api();
        let loaded = samples.load(api).await.unwrap();
        let inventory = samples.load_inventory(api, loaded, "two-hosts.ini").await.unwrap();
        let options = JobOptions::default();
        let template =
            samples.template(api, loaded, "chaos", "webapp.yml", inventory, &options).await.unwrap();
        Self {
            disk,
            engine,
            cluster,
            wire,
            template,
            dice: Dice(seed),
            accepted: Vec::new(),
            canceled: BTreeSet::new(),
            struck: BTreeSet::new(),
            strikes: 0,
            deaths: 0,
            said: Vec::new(),
        }
    }

    /// Launches one job; none when the controller is down or too slow, which is no promise broken.
    async fn launch(&mut self) -> Option<i64> {
        let body = json!({"allow_simultaneous": true});
        let made = self.cluster.api().launch(self.template, &body).await.ok()?;
        let job = made["id"].as_i64()?;
        self.accepted.push(job);
        Some(job)
    }

    async fn open_jobs(&self) -> Vec<i64> {
        let mut open = Vec::new();
        for &job in self.accepted.iter().rev().take(3 * JOBS) {
            match self.cluster.api().job(job).await {
                Ok(found) if found["finished"].is_null() => open.push(job),
                Ok(_) => {}
                Err(_) => open.push(job),
            }
        }
        open
    }

    async fn keep_jobs_coming(&mut self) {
        let open = self.open_jobs().await;
        for _ in open.len()..JOBS {
            self.launch().await;
        }
        // Any of them: one that was just launched, one that runs.
        let chosen = self.dice.below(3 * JOBS as u64);
        if let Some(&job) = usize::try_from(chosen).ok().and_then(|n| open.get(n)) {
            let path = format!("jobs/{job}/cancel/");
            let answer = self.cluster.api().send(Method::POST, &path, None).await;
            // An answer that was lost may have been a yes.
            if answer.map_or(true, |answer| answer.status == 202) {
                self.canceled.insert(job);
            }
        }
    }

    /// One fault, lived through for up to a second and a half.
    async fn fault(&mut self) {
        let pause = Duration::from_millis(100 + self.dice.below(1_400));
        let kinds = if self.engine == Engine::Podman { 21 } else { 16 };
        let kind = self.dice.below(kinds);
        let name = match kind {
            0..=2 => "kill -9, then start",
            3..=5 => "SIGSTOP, then SIGCONT",
            6 => "both ways cut",
            7 => "cut from node to hop",
            8 => "cut from hop to node",
            9 => "shim killed",
            10 => "agent and shim killed",
            11 => "a byte of a spool flipped",
            12 => "disk full",
            15 => "shims stopped, then continued",
            16 => "the engine's client killed",
            17 => "conmon killed",
            18 => "a container killed",
            19 => "the agent's client of the engine killed",
            20 => "the OCI runtime killed",
            _ => "kill -9, then start in another time",
        };
        self.said.push(format!("{name} ({kind}) for {pause:?}"));
        match kind {
            0..=2 => {
                self.victim(kind).kill();
                self.deaths += usize::from(kind == 2);
                tokio::time::sleep(pause).await;
                self.victim(kind).start().unwrap();
            }
            3..=5 => {
                self.victim(kind - 3).signal(Signal::STOP).unwrap();
                tokio::time::sleep(pause).await;
                self.victim(kind - 3).signal(Signal::CONT).unwrap();
            }
            6..=8 => {
                let ways: &[Direction] = match kind {
                    6 => &[Direction::There, Direction::Back],
                    7 => &[Direction::There],
                    _ => &[Direction::Back],
                };
                for &way in ways {
                    self.wire.change_one(way, |shape| shape.cut = true);
                }
                tokio::time::sleep(pause).await;
                self.wire.cut(false);
            }
            9 => self.kill_a_shim().await,
            10 => {
                self.victim(2).kill();
                self.deaths += 1;
                self.kill_a_shim().await;
                tokio::time::sleep(pause).await;
                self.victim(2).start().unwrap();
            }
            11 => self.flip_a_byte().await,
            12 => self.fill_the_disk(pause).await,
            15 => self.stop_the_shims(pause).await,
            16..=20 => self.kill_of_a_container(kind, pause).await,
            // Agent or controller, and the clock that its timers go by has jumped, either way.
            _ => {
                let later = Duration::from_secs(self.dice.below(100 * 24 * 3600));
                self.deaths += usize::from(kind != 13);
                let victim = self.victim(if kind == 13 { 0 } else { 2 });
                victim.kill();
                victim.set_later(later);
                tokio::time::sleep(pause).await;
                victim.start().unwrap();
            }
        }
        tokio::time::sleep(REST).await;
    }

    fn victim(&mut self, number: u64) -> &mut Daemon {
        match number {
            0 => &mut self.cluster.controller,
            1 => &mut self.cluster.hop,
            _ => &mut self.cluster.node,
        }
    }

    fn shims(&self) -> Vec<u32> {
        let Layout { dir, runtime_dir, .. } = &self.cluster.layout;
        let found = Leftovers::find(&[dir, runtime_dir], runtime_dir, false).processes;
        found.iter().filter(|(_, line)| line.contains("shim")).map(|(pid, _)| *pid).collect()
    }

    async fn kill_a_shim(&mut self) {
        let open = self.open_jobs().await;
        let shims = self.shims();
        if let Some(&pid) = self.one_of(&shims) {
            self.strike(pid, open);
        }
    }

    /// Stops all shims for a while. Their jobs are slower for that and no worse: it strikes none.
    async fn stop_the_shims(&mut self, pause: Duration) {
        let shims = self.shims();
        let signal = |signal| {
            for &pid in &shims {
                kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).ok();
            }
        };
        signal(Signal::STOP);
        tokio::time::sleep(pause).await;
        signal(Signal::CONT);
    }

    /// Kills one of the processes of the engine: the client between a shim and its job (16), conmon (17), the job itself (18), the
    /// client by which the agent asks (19), what makes and ends containers for them (20). The last two live for moments: they are
    /// waited for.
    async fn kill_of_a_container(&mut self, kind: u64, pause: Duration) {
        let open = self.open_jobs().await;
        let agent: Vec<u32> = self.cluster.node.pid().into_iter().collect();
        let give_up = Instant::now() + pause;
        loop {
            let (shims, all) = (self.shims(), running());
            let below = |parents: &[u32], names: &[&str]| -> Vec<u32> {
                let is_it = |process: &&Process| {
                    parents.contains(&process.parent)
                        && names.iter().any(|name| process.name.starts_with(name))
                };
                all.iter().filter(is_it).map(|process| process.pid).collect()
            };
            let found = match kind {
                16 => below(&shims, &["podman"]),
                17 => below(&shims, &["conmon"]),
                18 => below(&below(&shims, &["conmon"]), &[""]),
                19 => below(&agent, &["podman"]),
                _ => below(&below(&shims, &["podman", "conmon"]), &["runc", "crun"]),
            };
            if let Some(&pid) = self.one_of(&found) {
                self.strike(pid, open);
                return;
            }
            if kind < 19 || Instant::now() > give_up {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn strike(&mut self, pid: u32, open: Vec<i64>) {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).ok();
        self.struck.extend(open);
        self.strikes += 1;
    }

    /// Damages one spool behind its header.
    async fn flip_a_byte(&mut self) {
        let open = self.open_jobs().await;
        let units = self.cluster.layout.data_dir("node-1").join("units");
        let folders = fs::read_dir(units).into_iter().flatten().flatten();
        let files =
            folders.flat_map(|unit| fs::read_dir(unit.path().join("spool")).into_iter().flatten().flatten());
        let segments: Vec<_> = files.map(|file| file.path()).collect();
        let Some(path) = self.one_of(&segments).cloned() else { return };
        let Ok(file) = fs::File::options().read(true).write(true).open(path) else { return };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        if length > SEGMENT_HEADER {
            let at = SEGMENT_HEADER + self.dice.below(length - SEGMENT_HEADER);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            self.struck.extend(open);
            self.strikes += 1;
        }
    }

    /// Leaves the node not a byte for a while. What is about to start then may end with that as its reason.
    async fn fill_the_disk(&mut self, pause: Duration) {
        if self.disk.is_none() {
            return;
        }
        let open = self.open_jobs().await;
        let path = self.cluster.layout.data_dir("node-1").join("filler");
        let mut file = fs::File::create(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        tokio::time::sleep(pause).await;
        drop(file);
        fs::remove_file(path).unwrap();
        self.strikes += open.len();
        self.struck.extend(open);
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(all.len()).ok().filter(|&count| count > 0)?;
        all.get(usize::try_from(self.dice.below(count)).ok()?)
    }

    /// Everything runs and every wire is whole again.
    async fn heal(&mut self) {
        self.wire.cut(false);
        for number in 0..3 {
            if !self.victim(number).is_running() {
                self.victim(number).start().unwrap();
            }
        }
        self.cluster.api_up().await.unwrap();
        self.cluster.node_ready().await.unwrap();
    }

    async fn history(&self, effects: &Path, expected: Vec<serde_json::Value>) -> History {
        let api = self.cluster.api();
        let settled = Instant::now() + SETTLED;
        let mut ended = Vec::new();
        for &job in &self.accepted {
            let left = settled.saturating_duration_since(Instant::now());
            api.finished(job, left).await.ok();
            let found = api.job(job).await.unwrap();
            ended.push(Ended {
                job,
                status: found["status"].as_str().unwrap_or_default().to_owned(),
                explanation: found["job_explanation"].as_str().unwrap_or_default().to_owned(),
                canceled: self.canceled.contains(&job),
                struck: self.struck.contains(&job),
                events: events(api, job).await,
            });
        }
        let starts = fs::read_to_string(effects).unwrap().lines().map(str::to_owned).collect();
        let (accepted, strikes, deaths) = (self.accepted.clone(), self.strikes, JOBS * self.deaths);
        History { accepted, ended, starts, strikes, deaths, expected }
    }
}

struct Process {
    pid: u32,
    parent: u32,
    /// Of its program, cut to 15 bytes by the kernel.
    name: String,
}

/// What runs on this machine now.
fn running() -> Vec<Process> {
    let read = |pid: u32| {
        // "pid (name) state parent ..."; a name may hold anything but its own closing bracket.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (start, rest) = stat.rsplit_once(") ")?;
        let (_, name) = start.split_once('(')?;
        Some(Process { pid, parent: rest.split(' ').nth(1)?.parse().ok()?, name: name.to_owned() })
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

async fn events(api: &Api, job: i64) -> Vec<serde_json::Value> {
    api.events(job).await.unwrap().iter().map(essence).collect()
}
