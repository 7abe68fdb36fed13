//! One pull for all who wait for the same image with the same credential.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Weak};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use plexus_proto::work::{PullPolicy, RegistryAuth};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::Kind;
use super::super::engine::Problem;
use super::{Inner, NotReady};

/// Bytes kept of what the client says, for the reason of a failure.
const SAID: usize = 16 << 10;
/// Longest line that is passed on.
const LINE: usize = 500;
/// Wait for a client that was asked to stop.
const STOP: Duration = Duration::from_secs(3);

/// Which pulls are the same: image, and a digest of the credential.
type Key = (String, [u8; 32]);

/// The pulls of one engine.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    under_way: HashMap<Key, Weak<Pull>>,
    /// How many ended well, of any image.
    pub(super) succeeded: u64,
}

impl Pulls {
    /// Whether somebody waits for a pull of this image.
    pub(super) fn has(&self, name: &str) -> bool {
        self.under_way.iter().any(|((other, _), pull)| other == name && pull.strong_count() > 0)
    }
}

/// A pull that somebody waits for. It ends with the last of these.
#[derive(Debug)]
pub(super) struct Pull {
    state: watch::Receiver<State>,
    cancel: CancellationToken,
}

/// How far it is.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) line: String,
    pub(super) done: Option<Result<(), NotReady>>,
}

impl Pull {
    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.clone()
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Joins a pull that is under way, or starts one.
pub(super) fn join(inner: &Arc<Inner>, name: &str, auth: Option<&RegistryAuth>) -> Arc<Pull> {
    let mut pulls = inner.pulls.lock().expect("no code panics under this lock");
    join_in(&mut pulls, inner, name, auth)
}

/// The same for who found the image missing when `looked` pulls had succeeded: none where one more has by now, as it may
/// have brought the image.
pub(super) fn join_since(
    inner: &Arc<Inner>,
    name: &str,
    auth: Option<&RegistryAuth>,
    looked: u64,
) -> Option<Arc<Pull>> {
    let mut pulls = inner.pulls.lock().expect("no code panics under this lock");
    (pulls.succeeded == looked).then(|| join_in(&mut pulls, inner, name, auth))
}

fn join_in(pulls: &mut Pulls, inner: &Arc<Inner>, name: &str, auth: Option<&RegistryAuth>) -> Arc<Pull> {
    let key = (name.to_owned(), digest(auth));
    pulls.under_way.retain(|_, pull| pull.strong_count() > 0);
    let under_way = pulls.under_way.get(&key).and_then(Weak::upgrade);
    if let Some(pull) = under_way.filter(|pull| pull.state.borrow().done.is_none()) {
        return pull;
    }
    let (report, state) = watch::channel(State::default());
    let cancel = CancellationToken::new();
    let pull = Arc::new(Pull { state, cancel: cancel.clone() });
    pulls.under_way.insert(key, Arc::downgrade(&pull));
    let (inner, name, auth) = (inner.clone(), name.to_owned(), auth.cloned());
    tokio::spawn(async move {
        let done = run(&inner, &name, auth.as_ref(), &report, &cancel).await;
        // Under the lock: whoever looks for this pull finds it under way, or counted.
        let mut pulls = inner.pulls.lock().expect("no code panics under this lock");
        pulls.succeeded += u64::from(done.is_ok());
        report.send_modify(|state| state.done = Some(done));
    });
    pull
}

fn digest(auth: Option<&RegistryAuth>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in auth.iter().flat_map(|auth| [&auth.host, &auth.username, &auth.password]) {
        hasher.update(&(part.len() as u64).to_be_bytes()).update(part.as_bytes());
    }
    hasher.update(&[u8::from(auth.is_some_and(|auth| auth.insecure))]);
    *hasher.finalize().as_bytes()
}

async fn run(
    inner: &Inner,
    name: &str,
    auth: Option<&RegistryAuth>,
    report: &watch::Sender<State>,
    cancel: &CancellationToken,
) -> Result<(), NotReady> {
    let failed = |what: String| NotReady(format!("image {name} cannot be pulled: {what}"));
    let login = auth.filter(|auth| !auth.username.is_empty() || !auth.password.is_empty());
    let file = match login {
        Some(auth) => {
            Some(Login::write(&inner.private, name, auth).map_err(|error| failed(error.to_string()))?)
        }
        None => None,
    };
    let mut words = inner.engine.command.clone();
    match (inner.engine.kind, &file) {
        (Kind::Docker, Some(file)) => {
            words.extend(["--config".to_owned(), text(&file.dir), "pull".to_owned()])
        }
        (_, Some(file)) => {
            words.extend(["pull".to_owned(), "--authfile".to_owned(), text(&file.dir.join("config.json"))]);
        }
        (_, None) => words.push("pull".to_owned()),
    }
    if auth.is_some_and(|auth| auth.insecure) && inner.engine.kind == Kind::Podman {
        words.push("--tls-verify=false".to_owned()); // docker knows that of its daemon alone
    }
    words.push(name.to_owned());
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .env_clear()
        .envs(inner.engine.env())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("{}: {error}", words[0])))?;
    let said = std::sync::Mutex::new(String::new());
    let tell = |line: &str| {
        let line: String = line.trim().chars().take(LINE).collect();
        if !line.is_empty() {
            let mut said = said.lock().expect("no code panics under this lock");
            if said.len() < SAID {
                said.push_str(&line);
                said.push('\n');
            }
            report.send_modify(|state| state.line = line);
        }
    };
    let pid = child.id();
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let seconds = inner.section.pull_timeout_s;
    let ended = tokio::select! {
        (_, _, status) = async { tokio::join!(lines(out, &tell), lines(err, &tell), child.wait()) } => Some(status),
        () = cancel.cancelled() => None,
        () = tokio::time::sleep(Duration::from_secs(seconds)) => None,
    };
    match ended {
        Some(Ok(status)) if status.success() => Ok(()),
        Some(Ok(_)) => {
            let said = said.into_inner().expect("no code panics under this lock");
            let host = login
                .map(|auth| auth.host.clone())
                .map(|host| if host.is_empty() { registry(name) } else { host });
            Err(NotReady(Problem::of(&said).tell(name, PullPolicy::Always, host.as_deref())))
        }
        Some(Err(error)) => Err(failed(error.to_string())),
        None => {
            // Asked first, so that a client behind sudo hears it too; dropped, it is killed.
            if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
                kill_process(pid, Signal::TERM).ok();
                tokio::time::timeout(STOP, child.wait()).await.ok();
            }
            if cancel.is_cancelled() {
                return Err(failed("nobody waits for it any more".to_owned()));
            }
            Err(NotReady(Problem::Timeout(seconds).tell(name, PullPolicy::Always, None)))
        }
    }
}

async fn lines(stream: Option<impl AsyncRead + Unpin>, tell: &impl Fn(&str)) {
    let Some(stream) = stream else { return };
    let mut lines = BufReader::new(stream).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        tell(&String::from_utf8_lossy(&line));
    }
}

/// A credential on tmpfs, in the form that both engines read; gone when dropped.
struct Login {
    dir: PathBuf,
}

impl Login {
    fn write(private: &Path, image: &str, auth: &RegistryAuth) -> std::io::Result<Self> {
        let dir = private.join(uuid::Uuid::new_v4().to_string());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let login = Self { dir };
        let host = if auth.host.is_empty() { registry(image) } else { auth.host.clone() };
        let host = host.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        let pair = STANDARD.encode(format!("{}:{}", auth.username, auth.password));
        let content = json!({"auths": {host: {"auth": pair}}}).to_string();
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(login.dir.join("config.json"))?
            .write_all(content.as_bytes())?;
        Ok(login)
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// The registry in an image's name; docker's own where there is none.
fn registry(image: &str) -> String {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host.to_owned(),
        _ => "docker.io".to_owned(),
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_private_and_goes_with_its_pull() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let auth = RegistryAuth { username: "u".into(), password: "p".into(), ..RegistryAuth::default() };
        let login = Login::write(dir.path(), "reg.example:5000/ee:1", &auth).unwrap();
        let text = fs::read_to_string(login.dir.join("config.json")).unwrap();
        assert_eq!(text, r#"{"auths":{"reg.example:5000":{"auth":"dTpw"}}}"#);
        drop(login);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(registry("library/ee"), "docker.io");
    }
}
