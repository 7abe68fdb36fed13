//! Images on this node: found, pulled once for all who wait, checked, and cleaned up.

mod pull;
mod tidy;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant, SystemTime};

use plexus_proto::id::ClusterId;
use plexus_proto::work::{ImageInfo, ImageReply, PullPolicy, RegistryAuth};
use serde::Deserialize;

use super::engine::{Engine, Problem};
use super::{Error, Kind};
use crate::config::ImagesSection;
use pull::{Pull, Pulls};

/// Age from which what is known of an image is looked up again, beside its use, even where the engine's store seems
/// unchanged.
const OLD: Duration = Duration::from_secs(60);
/// The same where nothing shows whether images came or went (docker): it is looked up before its use.
const BLIND: Duration = Duration::from_secs(10);
/// Pause between two looks at the engine's store. A look is one system call while nothing changed.
const WATCH: Duration = Duration::from_secs(2);

/// How often all images are asked for while they come and go.
const TRIES: u32 = 5;

/// The images of one engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Images(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    section: ImagesSection,
    /// Where credentials lie while a pull needs them; on tmpfs.
    private: PathBuf,
    /// What this node pulled for units, and when each was last used.
    ledger: PathBuf,
    found: Mutex<HashMap<String, Found>>,
    /// The store as it was when all of its images were read.
    read: Mutex<Option<Stamp>>,
    store: std::sync::OnceLock<Option<PathBuf>>,
    pulls: Mutex<Pulls>,
    /// Held by whoever removes an image, alone; shared by those who look whether one is here.
    removal: RwLock<()>,
}

#[derive(Debug, Clone)]
struct Found {
    image: ImageInfo,
    stamp: Option<Stamp>,
    at: Instant,
}

/// Changes whenever an image comes or goes.
type Stamp = (u64, Option<SystemTime>, u64);

/// What the engine says of an image. Podman and docker use the same words here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Inspected {
    id: String,
    digest: String,
    repo_tags: Option<Vec<String>>,
    repo_digests: Option<Vec<String>>,
    size: u64,
}

/// Why a unit's image cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotReady(pub String);

impl Images {
    /// The images of `engine`. `private` is a directory on tmpfs for credentials, wiped now; `ledger` a file.
    pub fn new(engine: Engine, section: ImagesSection, private: PathBuf, ledger: PathBuf) -> Self {
        std::fs::remove_dir_all(&private).ok();
        Self(Arc::new(Inner {
            engine,
            section,
            private,
            ledger,
            found: Mutex::default(),
            read: Mutex::default(),
            store: std::sync::OnceLock::new(),
            pulls: Mutex::default(),
            removal: RwLock::default(),
        }))
    }

    /// Sees to it that a unit's image is here, as its policy says: `never` takes only what is here, `missing` and the
    /// engine's default pull what is not, `always` pulls. Who waits for the same pull shares it; it ends when nobody waits
    /// any more. `progress` hears the engine's lines.
    ///
    /// # Errors
    /// What is wrong, for the owner of the job.
    pub async fn ready(
        &self,
        name: &str,
        policy: PullPolicy,
        auth: Option<&RegistryAuth>,
        progress: impl FnMut(String),
    ) -> Result<ImageInfo, NotReady> {
        let image = match policy {
            PullPolicy::Always => self.pull(name, auth, progress).await?,
            PullPolicy::Never => match self.find(name).await {
                Some(image) => image,
                None => return Err(NotReady(Problem::Absent.tell(name, policy, None))),
            },
            PullPolicy::Missing | PullPolicy::Unspecified => self.missing(name, auth, progress).await?,
        };
        self.0.used(name);
        Ok(image)
    }

    /// Says that a unit of this cluster runs in an image.
    pub fn used_by(&self, name: &str, cluster: &ClusterId) {
        self.0.note_cluster(name, cluster);
    }

    /// The image that is here, or else a pull of it.
    async fn missing(
        &self,
        name: &str,
        auth: Option<&RegistryAuth>,
        mut progress: impl FnMut(String),
    ) -> Result<ImageInfo, NotReady> {
        loop {
            let looked = self.0.pulls.lock().expect("no code panics under this lock").succeeded;
            if let Some(image) = self.find(name).await {
                return Ok(image);
            }
            check_name(name)?;
            if let Some(pull) = pull::join_since(&self.0, name, auth, looked) {
                return self.wait(name, &pull, &mut progress).await;
            }
        }
    }

    /// Pulls an image, or waits for a pull of it that is under way.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn pull(
        &self,
        name: &str,
        auth: Option<&RegistryAuth>,
        mut progress: impl FnMut(String),
    ) -> Result<ImageInfo, NotReady> {
        check_name(name)?;
        let pull = pull::join(&self.0, name, auth);
        self.wait(name, &pull, &mut progress).await
    }

    async fn wait(
        &self,
        name: &str,
        pull: &Pull,
        progress: &mut impl FnMut(String),
    ) -> Result<ImageInfo, NotReady> {
        let mut seen = pull.watch();
        loop {
            let state = seen.borrow_and_update().clone();
            if !state.line.is_empty() {
                progress(state.line);
            }
            if let Some(done) = state.done {
                done?;
                self.0.note(name);
                let found = self.find(name).await;
                return found
                    .ok_or_else(|| NotReady(format!("image {name} was pulled, and is gone already")));
            }
            if seen.changed().await.is_err() {
                return Err(NotReady(format!("the pull of image {name} was cut off")));
            }
        }
    }

    /// The image of this name, if it is here.
    pub async fn find(&self, name: &str) -> Option<ImageInfo> {
        let (inner, name) = (self.0.clone(), name.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let _none_goes = inner.removal.read().expect("no code panics under this lock");
            inner.find(&name)
        });
        found.await.ok().flatten()
    }

    /// Keeps in mind which images are here, so that a unit finds its own without asking the engine, which takes a quarter of
    /// a second. Only where the engine's store shows when they change; never ends there.
    pub async fn watch(&self) {
        loop {
            let inner = self.0.clone();
            let read = tokio::task::spawn_blocking(move || inner.read_all()).await;
            if !read.unwrap_or(false) {
                return;
            }
            tokio::time::sleep(WATCH).await;
        }
    }

    /// Images that are here, `limit` at most, without asking the engine: all of them where [`watch`](Self::watch) sees them
    /// come and go, elsewhere those that units asked for.
    pub fn known(&self, limit: usize) -> Vec<ImageInfo> {
        let found = self.0.found.lock().expect("no code panics under this lock");
        let by_id: BTreeMap<&str, &ImageInfo> =
            found.values().map(|found| (found.image.id.as_str(), &found.image)).collect();
        by_id.into_values().take(limit).cloned().collect()
    }

    /// All images that are here.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn list(&self) -> Result<Vec<ImageInfo>, Error> {
        let inner = self.0.clone();
        let listed = tokio::task::spawn_blocking(move || inner.list()).await;
        listed.unwrap_or_else(|error| {
            Err(Error::Helper { command: "image list".to_owned(), reason: error.to_string() })
        })
    }

    /// Starts an image once to see whether it is an execution environment, and of what versions.
    pub async fn check(&self, name: &str) -> ImageReply {
        let (inner, name) = (self.0.clone(), name.to_owned());
        let checked = tokio::task::spawn_blocking(move || inner.check(&name)).await;
        checked.unwrap_or_else(|error| ImageReply { problem: error.to_string(), ..ImageReply::default() })
    }

    /// Takes care of the disk: dangling images, and those that this node pulled for units and nobody wants any more.
    /// `wanted` are the images that execution environments of a cluster name; `None` where that is not known. One that units of
    /// another cluster used stays until that one gives it up too. `needed` tells those that
    /// this node has a use for, whoever wants them: it is asked before each removal. Blocks.
    ///
    /// # Errors
    /// The engine does not answer.
    pub fn tidy(
        &self,
        wanted: Option<(&ClusterId, &[String])>,
        needed: impl Fn() -> BTreeSet<String>,
    ) -> Result<Vec<String>, Error> {
        tidy::tidy(&self.0, wanted, needed)
    }
}

impl Inner {
    /// Should the image be gone in spite of what is known, the engine says so when the container starts.
    fn find(self: &Arc<Self>, name: &str) -> Option<ImageInfo> {
        if name.starts_with('-') {
            return None;
        }
        let stamp = self.stamp();
        let known = self.found.lock().expect("no code panics under this lock").get(name).cloned();
        let age = |known: &Found| known.at.elapsed();
        match known.filter(|known| known.stamp == stamp) {
            Some(known) if age(&known) < if stamp.is_some() { OLD } else { BLIND } => Some(known.image),
            Some(known) if stamp.is_some() => {
                let (inner, name) = (self.clone(), name.to_owned());
                std::thread::spawn(move || inner.look_up(&name));
                Some(known.image)
            }
            _ => self.look_up(name),
        }
    }

    /// Asks the engine, and remembers the answer.
    fn look_up(&self, name: &str) -> Option<ImageInfo> {
        let stamp = self.stamp(); // before the answer: a change meanwhile makes it old
        let image = self.inspect(&[name]).ok().and_then(|images| images.into_iter().next());
        let mut found = self.found.lock().expect("no code panics under this lock");
        match &image {
            Some(image) => {
                found.insert(name.to_owned(), Found { image: image.clone(), stamp, at: Instant::now() });
            }
            None => drop(found.remove(name)),
        }
        image
    }

    /// Reads all images, unless nothing changed since; false where changes do not show.
    fn read_all(&self) -> bool {
        let Some(stamp) = self.stamp() else { return false };
        let read = *self.read.lock().expect("no code panics under this lock");
        if read == Some(stamp) {
            return true;
        }
        if let Ok(images) = self.all() {
            let named = images.into_iter().flat_map(|image| {
                let found = Found { image, stamp: Some(stamp), at: Instant::now() };
                found.image.names.clone().into_iter().map(move |name| (name, found.clone()))
            });
            let all = named.collect();
            *self.found.lock().expect("no code panics under this lock") = all;
            *self.read.lock().expect("no code panics under this lock") = Some(stamp);
        }
        true
    }

    /// Ids of all images.
    fn ids(&self) -> Result<Vec<String>, Error> {
        let text = self.engine.call(&["images", "--quiet", "--no-trunc"])?;
        let mut ids: Vec<String> =
            text.lines().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty()).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn inspect(&self, names: &[&str]) -> Result<Vec<ImageInfo>, Error> {
        let mut args = vec!["image", "inspect"];
        args.extend(names);
        let text = self.engine.call(&args)?;
        let inspected: Vec<Inspected> = serde_json::from_str(&text).map_err(|error| Error::Helper {
            command: "image inspect".to_owned(),
            reason: error.to_string(),
        })?;
        Ok(inspected.into_iter().map(ImageInfo::from).collect())
    }

    /// All images. One that is removed between the two questions fails the second, which is then asked anew.
    fn all(&self) -> Result<Vec<ImageInfo>, Error> {
        let mut tries = 0;
        loop {
            let ids = self.ids()?;
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            tries += 1;
            match self.inspect(&ids.iter().map(String::as_str).collect::<Vec<_>>()) {
                Err(_) if tries < TRIES => {}
                answer => return answer,
            }
        }
    }

    fn list(&self) -> Result<Vec<ImageInfo>, Error> {
        let mut images = self.all()?;
        let used = self.in_use()?;
        for image in &mut images {
            let id = bare(&image.id);
            image.in_use =
                used.iter().filter(|other| id.starts_with(bare(other))).count().try_into().unwrap_or(0);
        }
        Ok(images)
    }

    /// Image ids (docker: perhaps names) of all containers, running or not.
    fn in_use(&self) -> Result<Vec<String>, Error> {
        let ids = match self.engine.kind {
            Kind::Docker => {
                let ids = self.engine.call(&["ps", "--all", "--quiet", "--no-trunc"])?;
                let ids: Vec<&str> = ids.lines().collect();
                if ids.is_empty() {
                    return Ok(Vec::new());
                }
                let mut args = vec!["container", "inspect", "--format", "{{.Image}}"];
                args.extend(ids);
                self.engine.call(&args)?
            }
            Kind::Podman | Kind::Process => self.engine.call(&["ps", "--all", "--format", "{{.ImageID}}"])?,
        };
        Ok(ids.lines().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty()).collect())
    }

    fn check(self: &Arc<Self>, name: &str) -> ImageReply {
        let Some(image) = self.find(name) else {
            return ImageReply {
                problem: Problem::Absent.tell(name, PullPolicy::Missing, None),
                ..ImageReply::default()
            };
        };
        let script = "ansible-runner --version; ansible --version | head -n1; python3 --version; true";
        let run = ["run", "--rm", "--network", "none", "--pull=never", "--", name, "sh", "-c", script];
        let (mut versions, mut problem) = (BTreeMap::new(), String::new());
        match self.engine.call(&run) {
            Ok(text) => {
                let lines: Vec<&str> = text.lines().map(str::trim).collect();
                let find = |start: &str| lines.iter().find_map(|line| line.strip_prefix(start));
                let core = find("ansible [core ").and_then(|rest| rest.split(']').next());
                let runner =
                    lines.first().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).copied();
                let python = find("Python ");
                for (what, version) in
                    [("ansible-core", core), ("ansible-runner", runner), ("python", python)]
                {
                    match version {
                        Some(version) => drop(versions.insert(what.to_owned(), version.trim().to_owned())),
                        None if problem.is_empty() => {
                            problem = format!(
                                "{what} is not in image {name}; the image is no execution environment"
                            );
                        }
                        None => {}
                    }
                }
            }
            Err(error) => problem = format!("image {name} cannot be started: {error}"),
        }
        ImageReply { image: Some(image), problem, versions }
    }

    /// Tells whether images came or went; `None` where that cannot be seen without asking the engine.
    fn stamp(&self) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let index = self.store.get_or_init(|| {
            let format = "{{.Store.GraphRoot}}\t{{.Store.GraphDriverName}}";
            let text = (self.engine.kind == Kind::Podman)
                .then(|| self.engine.call(&["info", "--format", format]).ok())
                .flatten()?;
            let (root, driver) = text.trim().split_once('\t')?;
            Some(Path::new(root).join(format!("{driver}-images/images.json")))
        });
        let meta = std::fs::metadata(index.as_ref()?).ok()?;
        Some((meta.ino(), meta.modified().ok(), meta.len()))
    }
}

impl From<Inspected> for ImageInfo {
    fn from(inspected: Inspected) -> Self {
        let digests = inspected.repo_digests.unwrap_or_default();
        let of_registry =
            digests.first().and_then(|name| name.rsplit_once('@')).map(|(_, digest)| digest.to_owned());
        let digest =
            if inspected.digest.is_empty() { of_registry.unwrap_or_default() } else { inspected.digest };
        let names = inspected.repo_tags.unwrap_or_default();
        Self { names, id: inspected.id, digest, size: inspected.size, in_use: 0 }
    }
}

fn check_name(name: &str) -> Result<(), NotReady> {
    match name.starts_with('-') || name.is_empty() {
        true => Err(NotReady(Problem::Name.tell(name, PullPolicy::Always, None))),
        false => Ok(()),
    }
}

/// An id without its algorithm.
fn bare(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// An engine with one image, `here:1`, that counts what it is asked.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let at = dir.path().display();
            let script = format!(
                "#!/bin/sh\ncase \"$1 $2\" in\n'info --format') printf '{at}\\toverlay\\n' ;;\n'images --quiet') echo abc ;;\n\
                 'image inspect') echo x >>{at}/asked; [ \"$3\" != gone:1 ] && cat {at}/image ;;\nesac\n"
            );
            fs::write(dir.path().join("podman"), script).unwrap();
            fs::set_permissions(dir.path().join("podman"), fs::Permissions::from_mode(0o755)).unwrap();
            let image = r#"[{"Id": "abc", "Digest": "sha256:1", "RepoTags": ["here:1"], "Size": 7}]"#;
            fs::write(dir.path().join("image"), image).unwrap();
            fs::create_dir(dir.path().join("overlay-images")).unwrap();
            let fake = Self(dir);
            fake.change("1");
            fake
        }

        /// As when an image comes or goes.
        fn change(&self, text: &str) {
            fs::write(self.0.path().join("overlay-images/images.json"), text).unwrap();
        }

        fn images(&self, kind: Kind) -> Images {
            let command = vec![self.0.path().join("podman").display().to_string()];
            let dir = |name| self.0.path().join(name);
            Images::new(Engine { kind, command }, ImagesSection::default(), dir("private"), dir("ledger"))
        }

        fn asked(&self) -> usize {
            fs::read_to_string(self.0.path().join("asked")).unwrap_or_default().lines().count()
        }
    }

    #[test]
    fn an_image_that_was_read_with_all_is_found_without_a_question() {
        let fake = Fake::new();
        let images = fake.images(Kind::Podman);
        assert!(images.0.read_all() && images.0.read_all());
        assert_eq!(images.0.find("here:1").map(|image| image.size), Some(7));
        assert_eq!(fake.asked(), 1, "nothing changed since");
        fake.change("other");
        assert!(images.0.find("here:1").is_some());
        assert_eq!(fake.asked(), 2, "something came or went");
        assert!(images.0.find("gone:1").is_none() && images.0.find("gone:1").is_none());
        assert_eq!(fake.asked(), 4, "what is missing may come");
    }

    #[tokio::test]
    async fn a_pull_that_ended_while_one_looked_is_not_made_again() {
        let fake = Fake::new();
        // The second question is answered from before the pull, and only once whoever pulled has asked for the third time.
        let script = r#"#!/bin/sh
            at=$(dirname "$0")
            until_asked() { until [ "$(wc -l <"$at/asked")" -ge "$1" ]; do sleep 0.01; done; }
            case "$1 $2" in
            'image inspect')
                [ -e "$at/here" ] && here=1
                mkdir "$at/first" && first=1
                echo x >>"$at/asked"
                [ "$here$first" ] || until_asked 3
                [ "$here" ] && cat "$at/image" ;;
            'pull here:1')
                echo x >>"$at/pulls"
                until_asked 2
                touch "$at/here" ;;
            esac"#;
        fs::write(fake.0.path().join("podman"), script).unwrap();
        let images = fake.images(Kind::Docker);
        let ready = || images.ready("here:1", PullPolicy::Missing, None, |_| {});
        let (first, second) = tokio::join!(ready(), ready());
        assert_eq!((first.unwrap().size, second.unwrap().size), (7, 7));
        assert_eq!(fs::read_to_string(fake.0.path().join("pulls")).unwrap(), "x\n");
    }

    #[test]
    fn an_engine_that_shows_no_changes_is_asked_again_soon() {
        let fake = Fake::new();
        let images = fake.images(Kind::Docker);
        assert!(!images.0.read_all());
        assert!(images.0.find("here:1").is_some() && images.0.find("here:1").is_some());
        assert_eq!(fake.asked(), 1);
        let mut found = images.0.found.lock().unwrap();
        found.get_mut("here:1").unwrap().at = Instant::now().checked_sub(BLIND).unwrap();
        drop(found);
        assert!(images.0.find("here:1").is_some());
        assert_eq!(fake.asked(), 2);
    }
}
