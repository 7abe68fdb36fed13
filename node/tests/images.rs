//! Images and a real private registry: TLS, htpasswd, every pull policy, and what can be wrong.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;

use common::registry::{Image, PASSWORD, Registry, USER, is_empty, run};
use common::*;
use plexus_node::config::{RuntimeName, WarmSection};
use plexus_node::supervisor::Supervisor;
use plexus_proto::work::*;
use serde_json::json;

const TINY: &str = "localhost/plexus-tiny:2";

fn place() -> Place {
    let mut place = Place::new();
    place.work.runtime = RuntimeName::Podman;
    place.work.podman.network = Some("host".to_owned());
    place
}

fn auth(registry: &Registry, password: &str) -> RegistryAuth {
    RegistryAuth {
        host: registry.address.clone(),
        username: USER.to_owned(),
        password: password.to_owned(),
        insecure: true,
    }
}

/// An image with an id of its own: nobody else has a container of it.
fn own(label: &str) -> Image {
    let image = Image(format!("localhost/plexus-{label}-{}:test", std::process::id()));
    let container = run("podman", &["create", TINY, "true"]);
    let change = format!("LABEL {label}={}", std::process::id());
    run("podman", &["commit", "--quiet", "--change", &change, container.trim(), &image.0]);
    run("podman", &["rm", container.trim()]);
    image
}

/// Runs a unit in `image` and says how it ended: what it printed, or why it did not start.
async fn end(
    node: &Supervisor,
    image: &str,
    pull: PullPolicy,
    auth: Option<RegistryAuth>,
) -> Result<String, String> {
    // Waits for the end of standard input, so for the engine's client: what is over before it is attached may lose its output.
    let mut job = Job::script("cat >/dev/null; echo it runs");
    (job.spec.image, job.spec.pull, job.registry) = (image.to_owned(), pull.into(), auth);
    job.submit(node).await;
    let (_, last) = job.payload(node).await;
    let PayloadMessageKind::Done(done) = last else { panic!("{last:?}") };
    let status = done.status.unwrap();
    if let Some(finished) = finished(&status) {
        assert_eq!(finished.outcome(), Outcome::Failed);
        job.forget(node).await.unwrap();
        return Err(finished.reason.clone());
    }
    let digest = done.image.unwrap().digest;
    let mut records = job.attach(node, 1).await;
    let outcome = records.take_all().await;
    assert_eq!(outcome.outcome(), Outcome::Succeeded, "{outcome:?}");
    assert_eq!(records.stdout(), "it runs\n");
    Ok(digest)
}

#[tokio::test]
async fn each_trouble_with_a_registry_has_its_own_words() {
    let registry = Registry::start();
    let image = Image(registry.push(TINY, "ee:1"));
    let place = place();
    let node = place.start().await;
    let missing = PullPolicy::Missing;
    let check = async |image: &str, auth: Option<RegistryAuth>, words: &[&str]| {
        let reason = end(&node, image, missing, auth).await.unwrap_err();
        for word in words {
            assert!(reason.contains(word), "{word:?} in {reason:?}");
        }
        assert!(!reason.contains(PASSWORD), "{reason}");
    };
    let right = auth(&registry, PASSWORD);
    let none = RegistryAuth { insecure: true, ..RegistryAuth::default() };
    check(&image.0, Some(none), &[&image.0, "has none"]).await;
    check(&image.0, Some(auth(&registry, "wrong")), &["refuses access", "user name or password"]).await;
    let elsewhere = RegistryAuth { host: "quay.io".to_owned(), ..right.clone() };
    check(&image.0, Some(elsewhere), &["is for quay.io"]).await;
    let strict = RegistryAuth { insecure: false, ..right.clone() };
    check(&image.0, Some(strict.clone()), &["certificate that this node does not trust", "verify_ssl"]).await;
    let unknown = format!("{}/no-such:1", registry.address);
    check(&unknown, Some(right.clone()), &[&unknown, "does not exist in its registry"]).await;
    check("127.0.0.1:1/ee:1", Some(right.clone()), &["cannot be reached from this node", "refused"]).await;
    check("A B", None, &["no valid image name"]).await;
    check("--help", None, &["no valid image name"]).await;

    let digest = end(&node, &image.0, missing, Some(right)).await.unwrap();
    assert!(digest.starts_with("sha256:"), "{digest}");
    assert!(is_empty(&place.runtime.path().join("run/pulls")), "no credential stays");
    node.shutdown().await;
}

#[tokio::test]
async fn pull_policies_do_what_their_names_say() {
    let registry = Registry::start();
    let image = Image(registry.push(TINY, "policy:1"));
    let place = place();
    let node = place.start().await;
    let right = auth(&registry, PASSWORD);
    let none = RegistryAuth { insecure: true, ..RegistryAuth::default() };
    let reason = end(&node, &image.0, PullPolicy::Never, Some(right.clone())).await.unwrap_err();
    assert!(reason.contains("pull policy is never"), "{reason}");
    let first = end(&node, &image.0, PullPolicy::Unspecified, Some(right.clone())).await.unwrap();
    // It is here now: nobody asks the registry, so a missing credential is no trouble.
    for policy in [PullPolicy::Never, PullPolicy::Missing, PullPolicy::Unspecified] {
        assert_eq!(end(&node, &image.0, policy, Some(none.clone())).await.as_ref(), Ok(&first));
    }
    let reason = end(&node, &image.0, PullPolicy::Always, Some(none)).await.unwrap_err();
    assert!(reason.contains("has none"), "{reason}");
    // A rolling tag: another image under the same name.
    let changed = own("policy");
    registry.push(&changed.0, "policy:1");
    assert_eq!(end(&node, &image.0, PullPolicy::Missing, Some(right.clone())).await, Ok(first.clone()));
    let second = end(&node, &image.0, PullPolicy::Always, Some(right)).await.unwrap();
    assert_ne!(second, first);
    node.shutdown().await;
}

/// A client that takes its time: it notes each pull, waits for a file, and then is podman.
fn slow_client(dir: &std::path::Path) -> Vec<String> {
    let script = r#"
        case " $* " in *" pull "*)
            echo "pull $$" >>"$1/pulls"
            echo "Copying blob one" >&2
            trap 'exit 1' TERM
            until [ -e "$1/go" ]; do sleep 0.05; done
        esac
        shift
        exec podman "$@""#;
    let dir = dir.display().to_string();
    ["sh", "-c", script, "client", &dir].map(str::to_owned).to_vec()
}

#[tokio::test]
async fn many_units_wait_for_one_pull_and_hear_how_it_goes() {
    let registry = Registry::start();
    let image = Image(registry.push(TINY, "shared:1"));
    let mut place = place();
    place.work.podman.command = slow_client(place.data.path());
    let node = place.start().await;
    let pulls = || std::fs::read_to_string(place.data.path().join("pulls")).unwrap_or_default();
    let mut jobs = Vec::new();
    for _ in 0..5 {
        let mut job = Job::script("true");
        job.spec.image = image.0.clone();
        job.registry = Some(auth(&registry, PASSWORD));
        job.submit(&node).await;
        jobs.push(job);
    }
    // The last of them is canceled while it waits; the others do not feel it. The pull ends once each has heard of it.
    let (node_ref, told) = (&node, std::sync::Mutex::new(std::collections::HashSet::new()));
    let canceled = jobs.pop().unwrap();
    let waiting = jobs.iter().map(|job| {
        job.payload_hearing(node_ref, |_| {
            told.lock().unwrap().insert(job.attempt.unit);
        })
    });
    let others = futures_util::future::join_all(waiting);
    let (others, (_, last), ()) = tokio::join!(others, canceled.payload(&node), async {
        wait_for(|| async { told.lock().unwrap().len() }, |told| *told == 4).await;
        let status = canceled.cancel(&node).await;
        assert_eq!(finished(&status).unwrap().outcome(), Outcome::Canceled);
        std::fs::write(place.data.path().join("go"), "").unwrap();
    });
    let PayloadMessageKind::Done(done) = last else { panic!("{last:?}") };
    assert_eq!(finished(&done.status.unwrap()).unwrap().outcome(), Outcome::Canceled);
    for (heard, last) in others {
        assert!(matches!(last, PayloadMessageKind::Done(PayloadDone { image: Some(_), .. })), "{last:?}");
        let lines: Vec<_> = heard
            .iter()
            .filter_map(|kind| match kind {
                PayloadMessageKind::Progress(progress) => Some(progress.line.as_str()),
                _ => None,
            })
            .collect();
        assert!(lines.contains(&"Copying blob one"), "{lines:?}");
    }
    assert_eq!(pulls().lines().count(), 1, "{}", pulls());
    for job in &jobs {
        job.attach(&node, 1).await.take_all().await;
    }
    node.shutdown().await;
}

#[tokio::test]
async fn a_pull_ends_with_the_last_unit_that_waits_for_it() {
    let registry = Registry::start();
    let image = Image(registry.push(TINY, "canceled:1"));
    let mut place = place();
    place.work.podman.command = slow_client(place.data.path());
    let node = place.start().await;
    let pulls = || std::fs::read_to_string(place.data.path().join("pulls")).unwrap_or_default();
    let mut job = Job::script("true");
    job.spec.image = image.0.clone();
    job.registry = Some(auth(&registry, PASSWORD));
    job.submit(&node).await;
    tokio::join!(job.payload(&node), async {
        wait_for(|| async { pulls() }, |pulls| !pulls.is_empty()).await;
        job.cancel(&node).await;
    });
    let pid = pulls().trim().trim_start_matches("pull ").to_owned();
    let client = std::path::Path::new("/proc").join(pid);
    wait_for(|| async { client.exists() }, |exists| !exists).await;
    wait_for(|| async { is_empty(&place.runtime.path().join("run/pulls")) }, |empty| *empty).await;
    node.shutdown().await;
}

#[tokio::test]
async fn images_are_listed_checked_and_only_unwanted_ones_of_ours_go() {
    let registry = Registry::start();
    let source = own("ours");
    let (ours, wanted) = (Image(registry.push(&source.0, "ours:1")), Image(registry.push(TINY, "wanted:1")));
    let mut place = place();
    place.work.images.prune_dangling = false; // other tests' images are nobody's to remove
    let node = place.start().await;
    let images = node.images().engine().unwrap();
    let right = auth(&registry, PASSWORD);
    for image in [&ours, &wanted] {
        images.pull(&image.0, Some(&right), |_| {}).await.unwrap();
    }
    let listed = node.images().list().await.images;
    assert!(listed.iter().any(|image| image.names.contains(&ours.0) && image.size > 1_000_000), "{listed:?}");
    let reply = node.images().check(&ours.0).await;
    assert!(reply.problem.contains("no execution environment"), "{reply:?}");
    assert!(node.images().check("localhost/no-such:1").await.problem.contains("is not on this node"));
    let ee = "localhost/plexus-ee:demo";
    let reply = node.images().check(ee).await;
    assert_eq!(reply.problem, "");
    assert_eq!(reply.versions["ansible-core"], "2.19.14");
    assert_eq!(reply.versions["ansible-runner"], "2.4.3");

    // In use: it stays.
    let container = run("podman", &["create", &ours.0, "true"]);
    let nothing = TidyImagesReply::default();
    let (cluster, other) = (identity().cluster, "other".parse().unwrap());
    assert_eq!(node.images().tidy(&cluster, vec![wanted.0.clone()]).await, nothing);
    run("podman", &["rm", container.trim()]);
    // Units of two clusters used it: it stays until both have given it up.
    images.used_by(&ours.0, &cluster);
    images.used_by(&ours.0, &other);
    assert_eq!(node.images().tidy(&cluster, vec![wanted.0.clone()]).await, nothing);
    let ours_alone = TidyImagesReply { removed: vec![ours.0.clone()], ..nothing };
    assert_eq!(node.images().tidy(&other, vec![wanted.0.clone()]).await, ours_alone);
    assert!(images.find(&ours.0).await.is_none());
    for kept in [&wanted.0, ee, TINY] {
        assert!(images.find(kept).await.is_some(), "{kept}");
    }
    node.shutdown().await;
}

/// Images and containers that no other test sees, and that go with it.
struct OwnStore(tempfile::TempDir);

impl OwnStore {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Options by which podman uses it.
    fn options(&self) -> [String; 4] {
        let at = |name: &str| self.0.path().join(name).display().to_string();
        ["--root".to_owned(), at("root"), "--runroot".to_owned(), at("run")]
    }

    fn podman(&self, args: &[&str]) -> String {
        let options = self.options();
        let words: Vec<&str> = options.iter().map(String::as_str).chain(args.iter().copied()).collect();
        run("podman", &words).trim().to_owned()
    }

    fn load(&self, image: &str) {
        let file = self.0.path().join("image.tar").display().to_string();
        run("podman", &["save", "--quiet", "--output", &file, image]);
        self.podman(&["load", "--quiet", "--input", &file]);
        std::fs::remove_file(file).unwrap();
    }

    fn has(&self, image: &str) -> bool {
        let found =
            self.podman(&["images", "--quiet", "--no-trunc", "--filter", &format!("reference={image}")]);
        !found.is_empty()
    }

    /// Another image under this name.
    fn commit(&self, change: &str, name: &str) -> String {
        let container = self.podman(&["create", TINY, "true"]);
        let id =
            self.podman(&["commit", "--quiet", "--change", &format!("LABEL own={change}"), &container, name]);
        self.podman(&["rm", &container]);
        id
    }

    fn place(&self) -> Place {
        let mut place = place();
        place.work.podman.command = vec!["podman".to_owned()];
        place.work.podman.command.extend(self.options());
        place
    }
}

/// Pushes an image of its own label to the registry.
fn push_own(registry: &Registry, name: &str) -> String {
    let source = own(name);
    registry.push(&source.0, &format!("{name}:1"))
}

#[tokio::test]
async fn what_has_no_name_goes_unless_a_container_has_it() {
    let registry = Registry::start();
    let by_tag = push_own(&registry, "digest");
    let store = OwnStore::new();
    store.load(TINY);
    let node = store.place().start().await;
    let right = auth(&registry, PASSWORD);
    let pulled = node.images().engine().unwrap().pull(&by_tag, Some(&right), |_| {}).await.unwrap();
    store.podman(&["image", "rm", &by_tag]);
    let by_digest = format!("{}@{}", by_tag.rsplit_once(':').unwrap().0, pulled.digest);
    node.images().engine().unwrap().pull(&by_digest, Some(&right), |_| {}).await.unwrap();

    let name = "localhost/rolling:1";
    let unused = store.commit("first", name);
    let used = store.commit("second", name);
    let container = store.podman(&["create", &used, "true"]);
    let named = store.commit("third", name);
    let ids = || store.podman(&["images", "--all", "--quiet", "--no-trunc"]);
    assert!(ids().contains(&unused) && ids().contains(&used));
    let wanted = vec![by_digest.clone()];
    assert_eq!(node.images().tidy(&identity().cluster, wanted.clone()).await, TidyImagesReply::default());
    assert!(!ids().contains(&unused), "nobody can name it any more");
    for kept in [&used, &named, &pulled.id] {
        assert!(ids().contains(kept.as_str()), "{kept}");
    }
    store.podman(&["rm", &container]);
    node.images().tidy(&identity().cluster, wanted).await;
    assert!(!ids().contains(&used), "its container is gone");
    assert!(store.has(TINY) && ids().contains(&pulled.id));
    node.shutdown().await;
}

#[tokio::test]
async fn beyond_the_quota_the_least_recently_used_of_ours_go_first() {
    let registry = Registry::start();
    let used = push_own(&registry, "used");
    // Each of these has two names, and lies there once.
    let [old, new] = ["old", "new"].map(|name| {
        let source = own(name);
        [1, 2].map(|tag| registry.push(&source.0, &format!("{name}:{tag}")))
    });
    let store = OwnStore::new();
    store.load(TINY);
    store.commit("not ours", "localhost/theirs:1");
    let mut place = store.place();
    place.work.images.quota_mib = 5; // two images and a half
    let node = place.start().await;
    let right = auth(&registry, PASSWORD);
    let all = [&used, &old[0], &old[1], &new[0], &new[1]];
    for image in all {
        node.images().engine().unwrap().pull(image, Some(&right), |_| {}).await.unwrap();
    }
    let container = store.podman(&["create", &used, "true"]);
    let last_use = all.into_iter().zip(1..).map(|(name, used)| (name, json!({"used": used, "clusters": []})));
    let last_use: BTreeMap<_, _> = last_use.collect();
    let ledger = place.data.path().join("data/images.json");
    std::fs::write(ledger, serde_json::to_vec(&last_use).unwrap()).unwrap();

    // Three of them are too many; the one that a container has stays, though nobody used it for longer.
    let wanted: Vec<String> = all.into_iter().cloned().collect();
    let tidied = node.images().tidy(&identity().cluster, wanted.clone()).await;
    assert_eq!(tidied, TidyImagesReply { removed: old.to_vec(), ..TidyImagesReply::default() });
    assert_eq!(
        node.images().tidy(&identity().cluster, wanted).await,
        TidyImagesReply::default(),
        "it is within the quota"
    );
    for kept in [&used, &new[0], &new[1], "localhost/theirs:1", TINY] {
        assert!(store.has(kept), "{kept}");
    }
    assert!(!store.has(&old[0]) && !store.has(&old[1]));
    store.podman(&["rm", &container]);
    node.shutdown().await;
}

#[tokio::test]
async fn an_image_that_a_unit_or_a_pull_or_a_waiting_container_needs_is_not_removed() {
    let registry = Registry::start();
    let [of_unit, of_pull, waiting, nobodys] =
        ["of-unit", "of-pull", "waiting", "nobodys"].map(|name| push_own(&registry, name));
    let store = OwnStore::new();
    let mut place = store.place();
    let right = auth(&registry, PASSWORD);
    let node = place.start().await;
    for image in [&of_unit, &of_pull, &waiting, &nobodys] {
        node.images().engine().unwrap().pull(image, Some(&right), |_| {}).await.unwrap();
    }
    node.shutdown().await;

    place.work.podman.command = slow_client(place.data.path());
    place.work.podman.command.extend(store.options());
    place.work.warm = vec![WarmSection { image: waiting.clone(), organization: String::new(), count: 1 }];
    let node = place.start().await;
    let images = node.images().engine().unwrap();
    wait_for(|| async { node.waiting_containers() }, |waiting| waiting.len() == 1).await;
    let tidy = async || node.images().tidy(&identity().cluster, Vec::new()).await.removed;
    // One that was submitted has no container for a while.
    let mut job = Job::script("true");
    job.spec.image = of_unit.clone();
    job.submit(&node).await;
    let pulls = || std::fs::read_to_string(place.data.path().join("pulls")).unwrap_or_default();
    let (pulled, ()) = tokio::join!(images.pull(&of_pull, Some(&right), |_| {}), async {
        wait_for(|| async { pulls() }, |pulls| !pulls.is_empty()).await;
        assert_eq!(tidy().await, [nobodys]);
        std::fs::write(place.data.path().join("go"), "").unwrap();
    });
    pulled.unwrap();
    assert_eq!(tidy().await, [of_pull], "nobody waits for it any more");
    let mut records = job.run(&node).await;
    assert_eq!(records.outcome().outcome(), Outcome::Succeeded, "{:?}", records.outcome());
    records.ack_all().await;
    wait_for(&tidy, |removed| *removed == [of_unit.clone()]).await;

    // Its container goes and comes, and nothing would pull its image.
    node.rest(&caller(), true);
    wait_for(|| async { store.podman(&["ps", "--all", "--quiet"]) }, String::is_empty).await;
    assert_eq!(tidy().await, Vec::<String>::new());
    node.shutdown().await;
}
