//! `make demo`: a real playbook in a real execution environment, across a hop, live.
//!
//! Three separate processes on this machine, where controller and execution node each know only the hop; everything else goes
//! through the controller's HTTP API, as a person or a script would do it.

mod job;
mod state;

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use plexus_tests::{Api, Binaries, Daemon, JobOptions, Layout, ReservedPort, Runtime, Samples, wait_for};
use plexus_tests::{Seen, cache_dir, demo_image};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use self::job::Outcome;
use self::state::Running;

/// Ports of the demo; another free one is taken where one is in use.
const HTTPS: u16 = 8043;
const HTTP: u16 = 8052;
const MESH: u16 = 7323;
/// Longest start of the three processes.
const START: Duration = Duration::from_secs(30);
/// How often processes are started again: often enough for a person who tries to kill them, not for ever.
const RESTARTS: u32 = 50;

/// What to run and when to end.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Ends after the job, with its result as exit code, and one line of JSON last.
    #[arg(long, conflicts_with = "serve")]
    once: bool,
    /// Starts everything and launches nothing.
    #[arg(long)]
    serve: bool,
    /// Sample playbook to run.
    #[arg(long, default_value = "webapp.yml")]
    playbook: String,
    /// Sample inventory to run it on.
    #[arg(long, default_value = "two-hosts.ini")]
    inventory: String,
    /// Execution environment image [default: the one that the set-up builds].
    #[arg(long)]
    ee: Option<String>,
    /// Hosts to limit the job to.
    #[arg(long)]
    limit: Option<String>,
    /// Tags to run.
    #[arg(long)]
    tags: Option<String>,
    /// Tags to skip.
    #[arg(long)]
    skip_tags: Option<String>,
    /// Check mode: changes nothing.
    #[arg(long)]
    check: bool,
    /// Shows differences.
    #[arg(long)]
    diff: bool,
    /// Extra variables, a JSON or YAML mapping.
    #[arg(long)]
    extra_vars: Option<String>,
    #[command(flatten)]
    place: StopOptions,
}

/// Where the demo lives.
#[derive(Debug, Args)]
pub(crate) struct StopOptions {
    /// Folder of the demo's data [default: .demo in the source tree].
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl StopOptions {
    fn dir(&self) -> PathBuf {
        let dir = self.dir.clone().unwrap_or_else(|| crate::repository().join(".demo"));
        std::path::absolute(&dir).unwrap_or(dir)
    }
}

/// Runs the demo.
///
/// # Errors
/// When one is running already, or something does not start.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(demo(options))
}

/// Stops a running demo, or clears away what a killed one left.
///
/// # Errors
/// When it does not end.
pub(crate) fn stop(options: &StopOptions) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let dir = options.dir();
        if state::stop_running(&dir).await? {
            say("demo stopped");
            return Ok(ExitCode::SUCCESS);
        }
        let found = state::leftovers(&dir);
        if found.is_empty() {
            say("no demo is running");
        } else {
            state::sweep(&dir);
            say("no demo was running; what a killed one had left is gone");
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn demo(options: &Options) -> anyhow::Result<ExitCode> {
    let dir = options.place.dir();
    let image = options.ee.clone().unwrap_or_else(demo_image);
    let samples = Samples::new(&image)?;
    check_names(&samples, options)?;
    let mut stop = Stop::new()?;

    let mut system = System::prepare(&dir, options)?;
    let result = tokio::select! {
        result = system.show(options, &samples) => result,
        () = stop.asked() => {
            println!();
            system.end().await?;
            return Ok(ExitCode::from(130));
        }
    };
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(error) => {
            eprint!("{}", system.logs());
            system.end().await.ok();
            return Err(error);
        }
    };
    if options.once {
        system.end().await?;
        let outcome = outcome.context("no job was launched")?;
        println!("{}", outcome.line());
        return Ok(if outcome.successful() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    system.tell_where();
    let gone = tokio::select! {
        error = system.keep_alive() => Some(error),
        () = stop.asked() => None,
    };
    if let Some(error) = gone {
        eprint!("{}", system.logs());
        system.end().await.ok();
        return Err(error);
    }
    println!();
    system.end().await?;
    Ok(ExitCode::SUCCESS)
}

fn check_names(samples: &Samples, options: &Options) -> anyhow::Result<()> {
    if !samples.playbooks().contains(&options.playbook) {
        bail!(
            "no such sample playbook: {} (there are: {})",
            options.playbook,
            samples.playbooks().join(", ")
        );
    }
    if !samples.inventories().contains(&options.inventory) {
        bail!(
            "no such sample inventory: {} (there are: {})",
            options.inventory,
            samples.inventories().join(", ")
        );
    }
    Ok(())
}

/// The three processes and what is known of them.
struct System {
    layout: Layout,
    controller: Daemon,
    hop: Daemon,
    node: Daemon,
    api: Option<Api>,
    _ports: Vec<ReservedPort>,
}

impl System {
    /// Clears away an earlier demo, and makes folders, certificates and configuration anew.
    fn prepare(dir: &Path, options: &Options) -> anyhow::Result<Self> {
        if let Some(running) = Running::read(dir).filter(Running::is_alive) {
            bail!("a demo is already running (process {}); stop it with `make demo-stop`", running.pid);
        }
        let runtime_dir = state::runtime_dir(dir);
        state::sweep(dir);
        if dir.exists() {
            say("removing the data of the last demo");
            fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        let ports = [MESH, HTTPS, HTTP].map(ReservedPort::prefer);
        let ports = ports.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let layout = Layout {
            dir: dir.to_owned(),
            runtime_dir,
            binaries: Binaries::of_this_build()?,
            mesh_port: ports[0].port(),
            https_port: ports[1].port(),
            http_port: ports[2].port(),
            runtime: Runtime::Podman,
            database: None,
            direct: false,
            more_hops: Vec::new(),
            memory_mib: None,
            podman: String::new(),
            fresh_image: None,
            cores: None,
            spool_quota: None,
        };
        layout.make_dirs()?;
        Running::of_this_process().write(dir)?;
        say("certificates: plexus ca init, plexus ca issue for controller, hop-1 and node-1");
        layout.certify()?;
        layout.configure()?;
        if swap_is_on() {
            say(
                "this machine has swap: secrets of jobs may reach it (node-1's configuration says allow_swap = true)",
            );
        } else {
            say("allow_swap = true in node-1's configuration; this machine has no swap in use");
        }
        if !options.serve {
            say(&format!("playbook {} on inventory {}", options.playbook, options.inventory));
        }
        let daemon = |name: &str, program: PathBuf| {
            let args = vec!["run".into(), "--config".into(), layout.config(name).into_os_string()];
            Daemon::new(name, program, args, layout.log(name))
        };
        Ok(Self {
            controller: daemon("controller", layout.binaries.controller()),
            hop: daemon("hop-1", layout.binaries.node()),
            node: daemon("node-1", layout.binaries.node()),
            api: None,
            _ports: ports,
            layout,
        })
    }

    /// Starts everything, loads the samples and, unless it only serves, runs the job.
    async fn show(&mut self, options: &Options, samples: &Samples) -> anyhow::Result<Option<Outcome>> {
        let start = Instant::now();
        self.hop.start()?;
        self.controller.start()?;
        self.node.start()?;
        say("started three processes: controller, hop-1, node-1; controller and node-1 each know only hop-1");
        let line = self.controller.logged("admin password: ", 0, START).await?;
        let password = line.rsplit("admin password: ").next().unwrap_or_default().trim().to_owned();
        let api = Api::new(&format!("http://127.0.0.1:{}", self.layout.http_port), "admin", &password)?;
        self.api = Some(api.clone());
        self.write_env(&password)?;
        api.up(START).await?;
        samples.copy_project(&self.layout.projects())?;
        let loaded = samples.load(&api).await?;
        let inventory = samples.load_inventory(&api, loaded, &options.inventory).await?;
        let job_options = JobOptions {
            limit: options.limit.clone(),
            tags: options.tags.clone(),
            skip_tags: options.skip_tags.clone(),
            check: options.check,
            diff: options.diff,
            extra_vars: options.extra_vars.clone(),
        };
        let template = samples
            .template(&api, loaded, "Demo", &options.playbook, inventory, &job_options)
            .await
            .context("template")?;
        say("loaded project, inventory, execution environment and job template through the API");
        self.node_ready(&api).await?;
        say(&format!("node-1 is ready, {:.1} s after the start", start.elapsed().as_secs_f64()));
        if options.serve {
            return Ok(None);
        }
        let outcome = job::run(&api, template, &self.layout).await?;
        outcome.print();
        Ok(Some(outcome))
    }

    async fn node_ready(&mut self, api: &Api) -> anyhow::Result<()> {
        wait_for("node-1 to be ready", START, async || match api.get("instances/?hostname=node-1").await {
            Ok(list) if list["results"][0]["node_state"] == "ready" => Seen::Yes(()),
            Ok(list) => Seen::NotYet(list["results"].to_string()),
            Err(error) => Seen::NotYet(format!("{error:#}")),
        })
        .await
    }

    /// What `awx` and `plexus` need; holds a password, so only the user may read it.
    fn write_env(&self, password: &str) -> anyhow::Result<()> {
        let awx = cache_dir().join("awx-24.6.1").join("bin");
        let text = format!(
            "# For a shell: . {env}\n\
             export CONTROLLER_HOST=https://127.0.0.1:{port}\n\
             export CONTROLLER_USERNAME=admin\n\
             export CONTROLLER_PASSWORD={password}\n\
             export CONTROLLER_VERIFY_SSL=false\n\
             export PLEXUS_SOCKET={socket}\n\
             export PATH={bin}:{awx}:\"$PATH\"\n",
            env = self.env_file().display(),
            port = self.layout.https_port,
            password = shell_quoted(password),
            socket = shell_quoted(&self.layout.socket("controller").display().to_string()),
            bin = shell_quoted(&self.layout.binaries.dir().display().to_string()),
            awx = shell_quoted(&awx.display().to_string()),
        );
        let path = self.env_file();
        fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .context("cannot protect the environment file")?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn env_file(&self) -> PathBuf {
        self.layout.dir.join("env")
    }

    fn tell_where(&self) {
        let Some(api) = &self.api else { return };
        println!();
        println!(
            "The API is at https://127.0.0.1:{}/api/v2/ (self-signed) and {}/api/v2/",
            self.layout.https_port,
            api.base()
        );
        println!("Log in as {} with password {}", api.user(), api.password());
        println!("In another shell:");
        println!("    . {}", self.env_file().display());
        println!("    plexus status");
        println!("    awx job_templates launch Demo --monitor");
        println!(
            "Logs are in {}. Ctrl-C here, or `make demo-stop` anywhere, stops everything.",
            self.layout.dir.join("log").display()
        );
        std::io::stdout().flush().ok();
    }

    /// Starts a process again that ended, as a service manager would. Resolves when one does not stay up.
    async fn keep_alive(&mut self) -> anyhow::Error {
        let mut restarts = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            for daemon in [&mut self.controller, &mut self.hop, &mut self.node] {
                if daemon.is_running() {
                    continue;
                }
                restarts += 1;
                if restarts > RESTARTS {
                    return anyhow::anyhow!("{} ended again", daemon.name());
                }
                say(&format!("{} ended; starting it again", daemon.name()));
                if let Err(error) = daemon.start() {
                    return error;
                }
            }
        }
    }

    /// Cancels what runs, ends the processes in order, and leaves nothing but logs and data.
    async fn end(&mut self) -> anyhow::Result<()> {
        say("stopping");
        if let Some(api) = self.api.take()
            && self.controller.is_running()
        {
            job::cancel_all(&api).await;
        }
        let mut trouble = Vec::new();
        for daemon in [&mut self.node, &mut self.controller, &mut self.hop] {
            if let Err(error) = daemon.stop().await {
                trouble.push(format!("{error:#}"));
                daemon.kill();
            }
        }
        state::sweep(&self.layout.dir);
        Running::remove(&self.layout.dir);
        fs::remove_file(self.env_file()).ok();
        if trouble.is_empty() {
            say("stopped; no process and no container is left");
            return Ok(());
        }
        bail!("not everything stopped well: {}", trouble.join("; "))
    }

    fn logs(&self) -> String {
        [&self.controller, &self.hop, &self.node]
            .iter()
            .map(|daemon| format!("---- end of the log of {}:\n{}\n", daemon.name(), daemon.log_tail(12)))
            .collect()
    }
}

/// Ctrl-C, or SIGTERM from `make demo-stop`.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot wait for signals");
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// One line of progress.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let line =
        if out.is_terminal() { format!("\u{1b}[1m[demo]\u{1b}[0m {text}") } else { format!("[demo] {text}") };
    // A closed output must not keep the demo from cleaning up.
    writeln!(out, "{line}").and_then(|()| out.flush()).ok();
}

fn swap_is_on() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The line that ends `--once`.
pub(super) fn result_line(status: &str, events: u64, path: &[String], times: [u128; 3]) -> String {
    // Built by hand, because the order of the fields is part of the promise.
    format!(
        "{{\"status\":{},\"events\":{events},\"path\":{},\"submit_to_start_ms\":{},\"submit_to_first_event_ms\":{},\"total_ms\":{}}}",
        json!(status),
        json!(path),
        times[0],
        times[1],
        times[2]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_line_keeps_its_order_of_fields() {
        let path = ["controller".to_owned(), "hop-1".to_owned(), "node-1".to_owned()];
        assert_eq!(
            result_line("successful", 60, &path, [1, 2, 3]),
            r#"{"status":"successful","events":60,"path":["controller","hop-1","node-1"],"submit_to_start_ms":1,"submit_to_first_event_ms":2,"total_ms":3}"#
        );
    }

    #[test]
    fn shell_text_survives_quotes() {
        assert_eq!(shell_quoted("it's"), r"'it'\''s'");
    }
}
