//! A private registry of a test's own: htpasswd and TLS, below a directory, gone with it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;

pub const USER: &str = "robot";
pub const PASSWORD: &str = "canary-registry-password";

pub struct Registry {
    pub address: String,
    child: Child,
    dir: tempfile::TempDir,
}

impl Registry {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (key, cert) = (at("key.pem"), at("cert.pem"));
        let subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"];
        let mut request = vec!["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
        request.extend(["-keyout", &key, "-out", &cert]);
        request.extend(subject);
        run("openssl", &request);
        let entry = run("htpasswd", &["-Bbn", USER, PASSWORD]);
        fs::write(at("htpasswd"), entry).unwrap();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: \
             127.0.0.1:{port}\n  tls:\n    certificate: {cert}\n    key: {key}\nauth:\n  htpasswd:\n    realm: test\n    \
             path: {}\n",
            at("data"),
            at("htpasswd")
        );
        fs::write(at("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", &at("config.yml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(at("log")).unwrap())
            .spawn()
            .expect("docker-registry is installed by deploy/setup/setup.sh registry");
        let registry = Self { address: format!("127.0.0.1:{port}"), child, dir };
        let give_up = Instant::now() + PATIENCE;
        while TcpStream::connect(&registry.address).is_err() {
            let log = fs::read_to_string(registry.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < give_up, "the registry does not answer: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// Pushes a local image under a name in this registry.
    pub fn push(&self, image: &str, name: &str) -> String {
        let target = format!("{}/{name}", self.address);
        let credential = format!("{USER}:{PASSWORD}");
        run("podman", &["push", "--quiet", "--tls-verify=false", "--creds", &credential, image, &target]);
        target
    }

    /// Where the certificate lies, for those who trust it.
    pub fn certificate(&self) -> std::path::PathBuf {
        self.dir.path().join("cert.pem")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// An image of its own name that goes at the end, so that tests do not meet in the engine's store.
pub struct Image(pub String);

impl Drop for Image {
    fn drop(&mut self) {
        Command::new("podman").args(["image", "rm", "--force", &self.0]).output().ok();
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether a path exists and holds nothing.
pub fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}
