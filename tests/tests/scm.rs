//! Projects that come from Subversion and from archives, and content that is signed: real servers, keys and signatures, an update
//! in a real image. What these need, `deploy/setup/setup.sh scm` installs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use plexus_tests::{
    Api, Cluster, Loaded, Repository, ReservedPort, Samples, Seen, cache_dir, demo_image, is_verify, wait_for,
};
use serde_json::{Value, json};

const JOB: Duration = Duration::from_secs(180);
const USER: &str = "ann";
/// Found nowhere else in the world.
const PASSWORD: &str = "canary-scm-7d20be41";
/// The EE image with Subversion and gpg.
const SCM_IMAGE: &str = "localhost/plexus-ee:scm";

fn playbook(says: &str) -> String {
    format!("- hosts: all\n  gather_facts: false\n  tasks:\n    - debug:\n        msg: says-{says}\n")
}

/// Runs a program that must succeed; what it prints.
fn run(dir: &Path, program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = tried(dir, program, args)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn tried(dir: &Path, program: &str, args: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).env("LC_ALL", "C.UTF-8");
    command.output().with_context(|| format!("no {program}: deploy/setup/setup.sh scm installs it"))
}

fn put(dir: &Path, files: &[(&str, &str)]) -> anyhow::Result<()> {
    for (path, content) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().context("no folder")?)?;
        fs::write(path, content)?;
    }
    Ok(())
}

/// A server of a test, killed at its end.
struct Server(Child);

impl Server {
    async fn start(command: &mut Command, port: u16) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Self(child.with_context(|| format!("cannot start {:?}", command.get_program()))?);
        wait_for("the server to listen", JOB, async || {
            Seen::when(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(), || {
                "nobody listens".to_owned()
            })
        })
        .await?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn id(object: &Value) -> i64 {
    object["id"].as_i64().unwrap_or_else(|| panic!("no id in {object}"))
}

/// A cluster with an inventory of one host, and two execution environments: one that has every tool, one that has git only.
struct Site {
    cluster: Cluster,
    organization: i64,
    inventory: i64,
    tools: i64,
    plain: i64,
}

impl Site {
    async fn start(name: &str) -> anyhow::Result<Self> {
        let cluster = Cluster::builder(name).start().await?;
        let samples = Samples::new(&demo_image())?;
        samples.copy_project(&cluster.layout.projects())?;
        let api = cluster.api();
        let loaded = samples.load(api).await?;
        let inventory = samples.load_here(api, loaded).await?;
        let tools = json!({"name": "Tools", "image": SCM_IMAGE, "pull": "never"});
        let tools = id(&api.create("execution_environments/", &tools).await?);
        let Loaded { organization, environment: plain, .. } = loaded;
        Ok(Self { organization, inventory, tools, plain, cluster })
    }

    fn api(&self) -> &Api {
        self.cluster.api()
    }

    async fn credential(&self, kind: &str, name: &str, inputs: Value) -> anyhow::Result<i64> {
        let types = self.api().get(&format!("credential_types/?namespace={kind}")).await?;
        let body = json!({
            "name": name, "organization": self.organization, "credential_type": types["results"][0]["id"],
            "inputs": inputs,
        });
        Ok(id(&self.api().create("credentials/", &body).await?))
    }

    async fn login(&self, name: &str, password: &str) -> anyhow::Result<i64> {
        self.credential("scm", name, json!({"username": USER, "password": password})).await
    }

    /// Makes a project and waits for its first update; both.
    async fn project(&self, name: &str, about: Value) -> anyhow::Result<(i64, Value)> {
        let mut body =
            json!({"name": name, "organization": self.organization, "default_environment": self.tools});
        let all = body.as_object_mut().context("no object")?;
        all.extend(about.as_object().context("no object")?.clone());
        let project = self.api().create("projects/", &body).await?;
        let update = &project["summary_fields"]["current_update"]["id"];
        Ok((id(&project), self.api().over(&format!("project_updates/{update}/"), JOB).await?))
    }

    async fn update(&self, project: i64) -> anyhow::Result<Value> {
        let started = self.api().post(&format!("projects/{project}/update/"), &json!({})).await?;
        self.api().over(&format!("project_updates/{}/", started["project_update"]), JOB).await
    }

    /// The revision of an update that must have gone well.
    async fn revision(&self, update: &Value) -> anyhow::Result<String> {
        let output = self.api().get(&format!("project_updates/{}/stdout/?format=json", id(update))).await?;
        let said = &update["job_explanation"];
        ensure!(update["status"] == "successful", "{} {said}\n{}", update["name"], output["content"]);
        Ok(update["scm_revision"].as_str().unwrap_or_default().to_owned())
    }

    /// Why an update failed, which it must have.
    async fn refusal(&self, update: &Value) -> anyhow::Result<String> {
        let output = self.api().get(&format!("project_updates/{}/stdout/?format=json", id(update))).await?;
        let said = update["job_explanation"].as_str().unwrap_or_default();
        let good = update["status"] == "failed" && !said.is_empty();
        ensure!(good, "{} {} {said}\n{}", update["name"], update["status"], output["content"]);
        Ok(said.to_owned())
    }

    /// What a job of the project's `site.yml` prints.
    async fn output(&self, name: &str, project: i64) -> anyhow::Result<String> {
        let body =
            json!({"name": name, "project": project, "inventory": self.inventory, "playbook": "site.yml"});
        let template = id(&self.api().create("job_templates/", &body).await?);
        let job = id(&self.api().launch(template, &json!({})).await?);
        let done = self.api().finished(job, JOB).await?;
        let output = self.api().stdout(job, "txt").await?;
        ensure!(done["status"] == "successful", "{} {output}", done["job_explanation"]);
        Ok(output)
    }

    /// Ends it all; the password must lie in no file.
    async fn finish(self) -> anyhow::Result<()> {
        self.cluster.clean().await?;
        let hits = self.cluster.found_in_files(&[PASSWORD]);
        ensure!(hits.is_empty(), "{hits:?}");
        self.cluster.finish().await
    }
}

#[tokio::test]
async fn a_project_comes_from_a_subversion_server_with_a_login() {
    if !is_verify() {
        return; // it takes more than 20 s
    }
    let dir = tempfile::tempdir().unwrap();
    let (at, work) = (dir.path(), dir.path().join("work"));
    run(at, "svnadmin", &["create", "repo"]).unwrap();
    let login = format!("[users]\n{USER} = {PASSWORD}\n");
    let rules = "[general]\nanon-access = none\nauth-access = write\npassword-db = passwd\n";
    put(&at.join("repo/conf"), &[("svnserve.conf", rules), ("passwd", &login)]).unwrap();
    let local = format!("file://{}/repo", at.display());
    run(at, "svn", &["mkdir", "--quiet", "--message", "a", &format!("{local}/trunk")]).unwrap();
    run(at, "svn", &["checkout", "--quiet", &format!("{local}/trunk"), "work"]).unwrap();
    put(&work, &[("site.yml", &playbook("one"))]).unwrap();
    run(&work, "svn", &["add", "--quiet", "site.yml"]).unwrap();
    run(&work, "svn", &["commit", "--quiet", "--message", "b"]).unwrap();
    let port = ReservedPort::new().unwrap();
    let number = port.port().to_string();
    let mut command = Command::new("svnserve");
    command.args([
        "--daemon",
        "--foreground",
        "--listen-host",
        "127.0.0.1",
        "--listen-port",
        &number,
        "--root",
    ]);
    let server = Server::start(command.arg(at), port.port()).await.unwrap();

    let site = Site::start("projects-svn").await.unwrap();
    let right = site.login("right", PASSWORD).await.unwrap();
    let url = format!("svn://127.0.0.1:{number}/repo/trunk");
    let about = json!({"scm_type": "svn", "scm_url": url, "credential": right});
    let (project, update) = site.project("svn", about).await.unwrap();
    assert_eq!(site.revision(&update).await.unwrap(), "2");
    let listed = site.api().get(&format!("projects/{project}/playbooks/")).await.unwrap();
    assert_eq!(listed, json!(["site.yml"]));
    assert!(site.output("first", project).await.unwrap().contains("says-one"));

    // The next goes on from the last one; a number asks for what was.
    put(&work, &[("site.yml", &playbook("two"))]).unwrap();
    run(&work, "svn", &["commit", "--quiet", "--message", "c"]).unwrap();
    assert_eq!(site.revision(&site.update(project).await.unwrap()).await.unwrap(), "3");
    assert!(site.output("second", project).await.unwrap().contains("says-two"));
    let about = json!({"scm_type": "svn", "scm_url": url, "credential": right, "scm_branch": "2"});
    let (old, update) = site.project("old", about).await.unwrap();
    assert_eq!(site.revision(&update).await.unwrap(), "2");
    assert!(site.output("old", old).await.unwrap().contains("says-one"));

    let wrong = site.login("wrong", "no").await.unwrap();
    let nobody = ReservedPort::new().unwrap();
    let lacks_svn = format!("execution environment {} lacks svn", demo_image());
    for (name, about, words) in [
        ("login", json!({"credential": wrong}), "refused the login"),
        ("nobody", json!({"credential": null}), "refused the login"),
        ("revision", json!({"scm_branch": "99"}), "no such branch, tag or commit"),
        ("path", json!({"scm_url": url.replace("trunk", "other")}), "no such repository"),
        ("repository", json!({"scm_url": url.replace("repo", "other")}), "no such repository"),
        ("server", json!({"scm_url": url.replace(&number, &nobody.port().to_string())}), "cannot be reached"),
        ("tool", json!({"default_environment": site.plain}), &lacks_svn),
    ] {
        let mut whole = json!({"scm_type": "svn", "scm_url": url, "credential": right});
        whole.as_object_mut().unwrap().extend(about.as_object().unwrap().clone());
        let (_, update) = site.project(name, whole).await.unwrap();
        let said = site.refusal(&update).await.unwrap();
        assert!(said.contains(words), "{name}: {said}");
    }
    site.finish().await.unwrap();
    drop(server);
}

/// Packs the content of `dir`; `top`: the one directory that all of it lies in, or none.
fn pack(dir: &Path, file: &Path, top: Option<&str>) -> anyhow::Result<()> {
    let name = file.display().to_string();
    let script = "import os, sys, tarfile, zipfile\n\
                  source, target, top = sys.argv[1:]\n\
                  names = sorted(os.path.relpath(os.path.join(at, name), source) for at, _, names in os.walk(source) for name in names)\n\
                  made = zipfile.ZipFile(target, 'w') if target.endswith('.zip') else tarfile.open(target, 'w:' + target.rpartition('.')[2])\n\
                  add = made.write if target.endswith('.zip') else made.add\n\
                  [add(os.path.join(source, name), os.path.join(top, name)) for name in names]\n\
                  made.close()\n";
    let source = dir.display().to_string();
    run(dir, "python3", &["-c", script, &source, &name, top.unwrap_or_default()])?;
    Ok(())
}

/// Archives as people and others make them, in the folder it is started in.
const ODD: &str = r#"
import gzip, io, stat, tarfile, zipfile
def tar(name, *members, mode="w"):
    with tarfile.open(name, mode) as made:
        for path, content, kind in members:
            member = tarfile.TarInfo(path)
            member.type = kind
            member.mode = 0o755
            if kind == tarfile.REGTYPE:
                member.size = len(content)
                made.addfile(member, io.BytesIO(content.encode()))
            else:
                member.linkname = content
                made.addfile(member)
FILE, LINK, HARD, DIR, DEVICE = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE
tar("good.tar", ("./", "", DIR), ("./top/", "", DIR), ("./top/a/b.yml", "x", FILE), ("./top/link", "a/b.yml", LINK), ("./top/same", "./top/a/b.yml", HARD))
tar("two.tar.bz2", ("one/a", "x", FILE), ("two", "y", FILE), mode="w:bz2")
tar("up.tar", ("../out", "x", FILE))
tar("absolute.tar", ("/tmp/out", "x", FILE))
tar("away.tar", ("a", "x", FILE), ("link", "../../etc/passwd", LINK))
tar("through.tar", ("link", "/etc", LINK), ("link/passwd", "x", FILE))
tar("device.tar", ("a", "", DEVICE))
tar("nowhere.tar", ("a", "gone", HARD))
open("half.tar.gz", "wb").write(gzip.compress(open("good.tar", "rb").read())[:120])
with zipfile.ZipFile("link.zip", "w") as made:
    link = zipfile.ZipInfo("top/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    made.writestr(link, "a")
    made.writestr("top/a", "x")
open("half.zip", "wb").write(open("link.zip", "rb").read()[:60])
open("empty", "wb").close()
"#;

#[test]
fn an_archive_is_unpacked_within_its_directory_or_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "python3", &["-c", ODD]).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../controller/src/project_update/unpack.py");
    let unpacked = |archive: &str| {
        let target = dir.path().join(format!("of-{archive}"));
        fs::create_dir(&target).unwrap();
        let args = [&script, &dir.path().join(archive), &target].map(|path| path.display().to_string());
        let output = tried(dir.path(), "python3", &args.each_ref().map(String::as_str)).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        (output.status.code(), said, target)
    };
    for (archive, paths) in [
        ("good.tar", &["a/b.yml", "link", "same"][..]),
        ("two.tar.bz2", &["one/a", "two"]),
        ("link.zip", &["a", "link"]),
    ] {
        let (code, said, target) = unpacked(archive);
        assert_eq!(code, Some(0), "{archive}: {said}");
        for path in paths {
            assert!(!fs::read(target.join(path)).unwrap().is_empty(), "{archive}: {path}");
        }
    }
    for (archive, words) in [
        ("up.tar", "a name that leads out of it: ../out"),
        ("absolute.tar", "a name that leads out of it: /tmp/out"),
        ("away.tar", "a link that leads out of it: link"),
        ("through.tar", "link"),
        ("device.tar", "neither file, directory nor link: a"),
        ("nowhere.tar", "the archive is broken"),
        ("half.tar.gz", "the archive is broken"),
        ("half.zip", "no archive: neither zip nor tar"),
        ("empty", "no archive: neither zip nor tar"),
    ] {
        let (code, said, _) = unpacked(archive);
        assert!(
            code == Some(3) && said.contains(words) && !said.contains('\n'),
            "{archive}: {code:?} {said}"
        );
    }
    assert!(!dir.path().join("out").exists() && !Path::new("/tmp/out").exists());
}

#[tokio::test]
async fn a_project_comes_from_archives_of_each_kind_in_an_image_without_their_programs() {
    if !is_verify() {
        return; // it takes more than 20 s
    }
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let (source, served) = (dir.path().join("source"), dir.path().join("served"));
    put(&source, &[("site.yml", &playbook("packed")), ("inventories/dynamic.sh", "#!/bin/sh\n")]).unwrap();
    fs::set_permissions(source.join("inventories/dynamic.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(&served).unwrap();
    let kinds = [
        ("one.tar.gz", Some("site-1.0")),
        ("flat.zip", None),
        ("one.zip", Some("site-1.0")),
        ("flat.tar.xz", None),
    ];
    for (name, top) in kinds {
        pack(&source, &served.join(name), top).unwrap();
    }
    put(&served, &[("page.zip", "<html>log in first</html>")]).unwrap();
    let escape = "import sys, zipfile\nzipfile.ZipFile(sys.argv[1], 'w').writestr('../out.yml', 'no')\n";
    run(&served, "python3", &["-c", escape, "escape.zip"]).unwrap();
    let port = ReservedPort::new().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/archives.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(&served).arg(port.port().to_string()).args([USER, PASSWORD]);
    let server = Server::start(&mut command, port.port()).await.unwrap();

    let site = Site::start("projects-archive").await.unwrap();
    let right = site.login("right", PASSWORD).await.unwrap();
    let base = format!("http://127.0.0.1:{}", port.port());
    let about = |name: &str| {
        json!({
            "scm_type": "archive", "scm_url": format!("{base}/{name}"), "credential": right,
            "default_environment": site.plain,
        })
    };
    let mut last = 0;
    for (name, _) in kinds {
        let (project, update) = site.project(name, about(name)).await.unwrap();
        assert_eq!(site.revision(&update).await.unwrap().len(), 40, "{name}: {update}");
        let listed = site.api().get(&format!("projects/{project}/playbooks/")).await.unwrap();
        assert_eq!(listed, json!(["site.yml"]), "{name}");
        // It may run, or it would be none.
        let listed = site.api().get(&format!("projects/{project}/inventories/")).await.unwrap();
        assert_eq!(listed, json!(["inventories/dynamic.sh"]), "{name}");
        last = project;
    }
    assert!(site.output("packed", last).await.unwrap().contains("says-packed"));

    // What is served changes, and so does the project; what was packed before is gone.
    let before = site.api().get(&format!("projects/{last}/")).await.unwrap();
    fs::remove_file(source.join("inventories/dynamic.sh")).unwrap();
    put(&source, &[("site.yml", &playbook("repacked"))]).unwrap();
    pack(&source, &served.join("flat.tar.xz"), None).unwrap();
    let revision = site.revision(&site.update(last).await.unwrap()).await.unwrap();
    assert_ne!(before["scm_revision"], json!(revision));
    assert!(site.output("repacked", last).await.unwrap().contains("says-repacked"));
    let listed = site.api().get(&format!("projects/{last}/inventories/")).await.unwrap();
    assert_eq!(listed, json!([]));

    // A login in the address is one too.
    let mut open = about("flat.zip");
    open["scm_url"] = json!(format!("http://{USER}:{PASSWORD}@127.0.0.1:{}/flat.zip", port.port()));
    open["credential"] = Value::Null;
    let (_, update) = site.project("login in the address", open).await.unwrap();
    assert!(!site.revision(&update).await.unwrap().is_empty());
    let shown =
        site.api().get(&format!("project_updates/{}/stdout/?format=json", id(&update))).await.unwrap();
    assert!(!shown.to_string().contains(PASSWORD), "{shown}");

    let wrong = site.login("wrong", "no").await.unwrap();
    let nobody = ReservedPort::new().unwrap();
    let gone = format!("http://127.0.0.1:{}/flat.zip", nobody.port());
    for (name, about, words) in [
        ("login", json!({"credential": wrong}), "refused the login"),
        ("path", json!({"scm_url": format!("{base}/other.zip")}), "no such repository or file"),
        ("server", json!({"scm_url": gone}), "cannot be reached"),
        ("page", json!({"scm_url": format!("{base}/page.zip")}), "is no archive: neither zip nor tar"),
        (
            "escape",
            json!({"scm_url": format!("{base}/escape.zip")}),
            "a name that leads out of it: ../out.yml",
        ),
    ] {
        let mut whole = json!({
            "scm_type": "archive", "scm_url": format!("{base}/flat.zip"), "credential": right,
            "default_environment": site.plain,
        });
        whole.as_object_mut().unwrap().extend(about.as_object().unwrap().clone());
        let (_, update) = site.project(name, whole).await.unwrap();
        let said = site.refusal(&update).await.unwrap();
        assert!(said.contains(words), "{name}: {said}");
    }
    site.cluster.finish().await.unwrap();
    drop(server);
}

/// Somebody who signs: a directory of gpg's with one key.
struct Signer(tempfile::TempDir);

/// When a key was made that was good for a day.
const LONG_AGO: [&str; 2] = ["--faked-system-time", "20200101T000000"];

impl Signer {
    fn new(name: &str) -> anyhow::Result<Self> {
        Self::with(name, &[], "0")
    }

    /// `time`: what time it is for gpg; `expires`: as gpg has it, `0` for never.
    fn with(name: &str, time: &[&str], expires: &str) -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        // Short: gpg's agent has its socket there.
        let dir = tempfile::Builder::new().prefix("pgk").tempdir_in("/tmp")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700))?;
        let signer = Self(dir);
        let user = format!("{name} <{name}@example.com>");
        let make =
            ["--passphrase", "", "--pinentry-mode", "loopback", "--quick-generate-key", &user, "ed25519"];
        signer.gpg(&[time, &make[..], &["sign", expires]].concat())?;
        Ok(signer)
    }

    fn gpg(&self, args: &[&str]) -> anyhow::Result<String> {
        let home = self.0.path().display().to_string();
        run(self.0.path(), "gpg", &[&["--batch", "--quiet", "--homedir", &home][..], args].concat())
    }

    fn public(&self) -> anyhow::Result<String> {
        self.gpg(&["--armor", "--export"])
    }

    /// Signs a project as people do.
    fn sign(&self, project: &Path) -> anyhow::Result<()> {
        let home = self.0.path().display().to_string();
        let path = project.display().to_string();
        let mut command = Command::new(ansible_sign());
        command.args(["project", "gpg-sign", "--gnupg-home", &home, &path]).env("GPG_TTY", "none");
        let output = command.output().context("no ansible-sign: deploy/setup/setup.sh scm installs it")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "ansible-sign: {said}{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        let home = self.0.path().display().to_string();
        Command::new("gpgconf").args(["--homedir", &home, "--kill", "all"]).status().ok();
    }
}

fn ansible_sign() -> PathBuf {
    cache_dir().join("ansible-sign-0.1.6/bin/ansible-sign")
}

/// What the rules of the signed content are, and files of which some are left out.
const MANIFEST: &str = "recursive-exclude .git *\ninclude site.yml\nrecursive-include roles *\nprune notes\n";

#[tokio::test]
async fn content_is_taken_only_as_its_signer_left_it() {
    if !is_verify() {
        return; // it takes more than 20 s
    }
    let (signer, stranger) = (Signer::new("signer").unwrap(), Signer::new("stranger").unwrap());
    let repository = Repository::start(None).await.unwrap();
    let work = repository.work();
    let role = "- ansible.builtin.debug:\n    msg: says-role\n";
    let hello = repository
        .beside("hello", &[("tasks/main.yml", role), ("meta/main.yml", "galaxy_info: {}\n")])
        .unwrap();
    repository.git(&["checkout", "--quiet", "--orphan", "main"]).unwrap();
    repository.git(&["rm", "-r", "--quiet", "--force", "."]).unwrap();
    let required = format!("- src: {hello}\n  scm: git\n  name: hello\n  version: main\n");
    let files = [
        ("MANIFEST.in", MANIFEST),
        ("roles/requirements.yml", &required),
        ("notes/todo.txt", "not signed\n"),
    ];
    repository.put(&files).unwrap();
    // `commit` writes the playbook; the signature is of what it wrote.
    repository.commit("main", "signed").unwrap();
    let manifest = format!("{MANIFEST}recursive-include inventories *\n");
    repository.put(&[("MANIFEST.in", &manifest)]).unwrap();
    signer.sign(&work).unwrap();
    let first = repository.commit("main", "signed").unwrap();

    let site = Site::start("projects-signed").await.unwrap();
    let key = json!({"gpg_public_key": signer.public().unwrap()});
    let key = site.credential("gpg_public_key", "signer", key).await.unwrap();
    let other = json!({"gpg_public_key": stranger.public().unwrap()});
    let other = site.credential("gpg_public_key", "stranger", other).await.unwrap();
    let galaxy =
        site.credential("galaxy_api_token", "galaxy", json!({"url": "http://127.0.0.1:9/"})).await.unwrap();
    let own = format!("organizations/{}/galaxy_credentials/", site.organization);
    site.api().post(&own, &json!({"id": galaxy})).await.unwrap();
    let git = |key: i64| json!({"scm_type": "git", "scm_url": repository.url(), "signature_validation_credential": key});
    let (project, update) = site.project("signed", git(key)).await.unwrap();
    assert_eq!(site.revision(&update).await.unwrap(), first);
    assert!(site.output("signed", project).await.unwrap().contains("says-signed"));
    // What was installed beside the content is no part of it.
    assert_eq!(site.revision(&site.update(project).await.unwrap()).await.unwrap(), first);

    let (_, update) = site.project("stranger", git(other)).await.unwrap();
    let said = site.refusal(&update).await.unwrap();
    assert!(said.contains("signed by another key"), "{said}");
    let mut plain = git(key);
    plain["default_environment"] = json!(site.plain);
    let (_, update) = site.project("tool", plain).await.unwrap();
    let said = site.refusal(&update).await.unwrap();
    assert!(said.contains(&format!("execution environment {} lacks gpg", demo_image())), "{said}");

    let broken = |change: &str| repository.commit("main", change).map(drop);
    let reset = || repository.git(&["reset", "--quiet", "--hard", &first]).map(drop);
    // Changed, added, gone, unsigned: each by a commit of its own, and the project stays where it was.
    broken("changed").unwrap();
    let said = site.refusal(&site.update(project).await.unwrap()).await.unwrap();
    assert!(said.contains("files were changed after they were signed: site.yml"), "{said}");
    reset().unwrap();
    repository.put(&[("roles/new/tasks/main.yml", "[]\n")]).unwrap();
    broken("signed").unwrap();
    let said = site.refusal(&site.update(project).await.unwrap()).await.unwrap();
    assert!(said.contains("files are not signed: roles/new/tasks/main.yml"), "{said}");
    reset().unwrap();
    fs::remove_file(work.join("roles/requirements.yml")).unwrap();
    broken("signed").unwrap();
    let said = site.refusal(&site.update(project).await.unwrap()).await.unwrap();
    assert!(said.contains("signed files are missing: roles/requirements.yml"), "{said}");
    reset().unwrap();
    let sums = fs::read_to_string(work.join(".ansible-sign/sha256sum.txt")).unwrap();
    repository.put(&[(".ansible-sign/sha256sum.txt", &format!("{sums}\n"))]).unwrap();
    broken("signed").unwrap();
    let said = site.refusal(&site.update(project).await.unwrap()).await.unwrap();
    assert!(said.contains("was changed after it was signed"), "{said}");
    reset().unwrap();
    fs::remove_dir_all(work.join(".ansible-sign")).unwrap();
    broken("signed").unwrap();
    let said = site.refusal(&site.update(project).await.unwrap()).await.unwrap();
    assert!(said.contains("has no .ansible-sign/sha256sum.txt.sig: sign it with"), "{said}");
    let shown = site.api().get(&format!("projects/{project}/")).await.unwrap();
    assert_eq!(shown["scm_revision"], json!(first));
    assert!(site.output("still", project).await.unwrap().contains("says-signed"));

    // Signed again, all is well again.
    signer.sign(&work).unwrap();
    let last = repository.commit("main", "signed").unwrap();
    assert_eq!(site.revision(&site.update(project).await.unwrap()).await.unwrap(), last);
    site.cluster.finish().await.unwrap();
}

/// Our own check of a project, as an update runs it.
fn checked(project: &Path, key: &Path) -> anyhow::Result<(i32, String)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../controller/src/project_update/signature.py");
    let args = [script.display().to_string(), project.display().to_string(), key.display().to_string()];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = tried(project, "python3", &[&args[..], &[".git"]].concat())?;
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[test]
fn signatures_hold_where_ansible_sign_says_so() {
    if !is_verify() {
        return; // it needs gpg and ansible-sign, which only the longer proofs install
    }
    let (signer, expired) = (Signer::new("signer").unwrap(), Signer::with("late", &LONG_AGO, "1d").unwrap());
    let dir = tempfile::tempdir().unwrap();
    let project = dir.path().join("project");
    let key = dir.path().join("key");
    fs::write(&key, signer.public().unwrap()).unwrap();
    let files = [
        ("site.yml", "a"),
        ("README.md", "b"),
        ("roles/a/tasks/main.yml", "c"),
        ("roles/a/x.pyc", "d"),
        ("docs/deep/er.md", "e"),
        ("docs/a.txt", "f"),
        ("f[1].yml", "g"),
        ("1.yml", "h"),
        ("a b.yml", "i"),
    ];
    put(&project, &files).unwrap();
    let manifests = [
        "global-include *\n",
        "global-include *\nglobal-exclude *.pyc\n",
        "graft roles\nprune docs\nexclude README.md *.yml\n",
        "# a comment\n\ninclude *.yml\nexclude README.md\nrecursive-exclude docs *.md\nrecursive-exclude roles *.pyc\ninclude docs/a.txt\n\
         recursive-include roles *\n",
        "graft roles\nexclude [0-9].yml\nexclude d*s/*.txt\ninclude *\nrecursive-include docs *.m?\n",
        "site.yml\nprune docs\nprune roles\nexclude *\ninclude site.yml\n",
        "include site.yml\nglobal-exclude .yml\nexclude README.md\nprune docs\nrecursive-exclude roles *.pyc\n",
        "prune docs/d*p\nglobal-include *.yml *.txt *.pyc README.*\n",
    ];
    let theirs = |dir: &Path| {
        let home = signer.0.path().display().to_string();
        let path = dir.display().to_string();
        let sign = ansible_sign().display().to_string();
        let output = tried(dir, &sign, &["project", "gpg-verify", "--gnupg-home", &home, &path]).unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let mut seen = [0, 0];
    for manifest in manifests {
        put(&project, &[("MANIFEST.in", manifest)]).unwrap();
        signer.sign(&project).unwrap();
        // As it was signed, then with one file more or other at each place where rules differ.
        let changes = [
            None,
            Some("site.yml"),
            Some("README.md"),
            Some("roles/a/x.pyc"),
            Some("docs/new.md"),
            Some("docs/deep/new.txt"),
            Some("new.yml"),
            Some("7.yml"),
            Some("MANIFEST.in"),
        ];
        for change in changes {
            let path = change.map(|change| project.join(change));
            let before = path.as_ref().and_then(|path| fs::read(path).ok());
            if let Some(path) = &path {
                fs::write(path, [before.clone().unwrap_or_default(), b"\n".to_vec()].concat()).unwrap();
            }
            let (good, said) = theirs(&project);
            let (code, ours) = checked(&project, &key).unwrap();
            assert_eq!(good, code == 0, "{manifest}\n{change:?}: ansible-sign: {said}\nours: {code} {ours}");
            seen[usize::from(good)] += 1;
            match (&path, before) {
                (Some(path), Some(before)) => fs::write(path, before).unwrap(),
                (Some(path), None) => fs::remove_file(path).unwrap(),
                (None, _) => {}
            }
        }
    }
    assert!(seen.iter().all(|count| *count > 10), "both ends were met: {seen:?}");

    // Without rules every file must be signed; a rule that is none is named.
    put(&project, &[("MANIFEST.in", "include site.yml\nfetch roles\n")]).unwrap();
    let (code, said) = checked(&project, &key).unwrap();
    assert!(code == 3 && said.contains("MANIFEST.in"), "{said}");
    // So is a key that is none, and one that has expired since.
    put(&project, &[("MANIFEST.in", "global-include *\n")]).unwrap();
    fs::write(&key, "no key\n").unwrap();
    signer.sign(&project).unwrap();
    let (code, said) = checked(&project, &key).unwrap();
    assert!(code == 3 && said.contains("no public key that gpg can read"), "{said}");
    fs::write(&key, expired.public().unwrap()).unwrap();
    let sums = project.join(".ansible-sign/sha256sum.txt").display().to_string();
    let sign = ["--yes", "--detach-sign", "--output"];
    expired.gpg(&[&LONG_AGO[..], &sign, &[&format!("{sums}.sig"), &sums]].concat()).unwrap();
    let (code, said) = checked(&project, &key).unwrap();
    assert!(code == 3 && said.contains("the key that signed it has expired"), "{said}");
}
