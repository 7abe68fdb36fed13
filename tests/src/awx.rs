//! The unmodified `awx` command of AWX (PyPI awxkit 24.6.1), as a user of one controller runs it.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::{Api, cache_dir};

/// Longest command: one job with its start.
const COMMAND: Duration = Duration::from_secs(120);

/// The `awx` command for one user of one controller.
#[derive(Debug)]
pub struct Awx {
    host: String,
    user: String,
    password: String,
}

impl Awx {
    /// The command of the user whom `api` speaks for.
    pub fn new(api: &Api, https_port: u16) -> Self {
        Self {
            host: format!("https://127.0.0.1:{https_port}"),
            user: api.user().to_owned(),
            password: api.password().to_owned(),
        }
    }

    /// The same controller as somebody else.
    pub fn of(&self, user: &str, password: &str) -> Self {
        Self { host: self.host.clone(), user: user.to_owned(), password: password.to_owned() }
    }

    /// Runs the command with the password in its environment, as `.demo/env` sets it.
    pub async fn run(&self, args: &[&str]) -> Output {
        self.run_with(args, &[("CONTROLLER_USERNAME", &self.user), ("CONTROLLER_PASSWORD", &self.password)])
            .await
    }

    /// Runs the command with nothing but these variables to say who asks.
    ///
    /// # Panics
    /// If the command is not installed, or does not end in two minutes.
    pub async fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        self.start(args, env, &[]).await
    }

    /// Runs the command as [`Awx::run`] does, with this on its standard input.
    pub async fn run_on(&self, args: &[&str], input: &[u8]) -> Output {
        self.start(
            args,
            &[("CONTROLLER_USERNAME", &self.user), ("CONTROLLER_PASSWORD", &self.password)],
            input,
        )
        .await
    }

    async fn start(&self, args: &[&str], env: &[(&str, &str)], input: &[u8]) -> Output {
        let program = cache_dir().join("awx-24.6.1/bin/awx");
        assert!(
            Path::new(&program).is_file(),
            "the awx command is missing; deploy/setup/setup.sh awx installs it"
        );
        let mut command = tokio::process::Command::new(program);
        command.args(args).kill_on_drop(true);
        for name in [
            "CONTROLLER_OAUTH_TOKEN",
            "CONTROLLER_USERNAME",
            "CONTROLLER_PASSWORD",
            "http_proxy",
            "https_proxy",
        ] {
            command.env_remove(name);
        }
        command
            .env("CONTROLLER_HOST", &self.host)
            .env("CONTROLLER_VERIFY_SSL", "false")
            .env("CONTROLLER_COLOR", "false")
            .env("NO_PROXY", "*");
        command.envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = async {
            let mut child = command.spawn().expect("awx cannot be run");
            let mut stdin = child.stdin.take().expect("its input is a pipe");
            // A command that does not read its input may be gone before all of it is written.
            let write = async move {
                stdin.write_all(input).await.ok();
            };
            let (output, ()) = tokio::join!(child.wait_with_output(), write);
            output.expect("awx ends")
        };
        tokio::time::timeout(COMMAND, run).await.expect("awx hangs")
    }

    /// Runs a command that must succeed, and gives its JSON; null if it prints nothing.
    ///
    /// # Panics
    /// If it does not succeed, or prints something else.
    pub async fn json(&self, args: &[&str]) -> Value {
        let output = self.run(args).await;
        assert!(output.status.success(), "awx {args:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
        if output.stdout.iter().all(u8::is_ascii_whitespace) {
            return Value::Null;
        }
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("awx {args:?} printed no JSON: {}", text(&output.stdout)))
    }
}

/// What a command printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
