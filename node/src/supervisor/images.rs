//! Images as the node's services and its local door show them.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use plexus_mesh::local::{ActError, Action};
use plexus_proto::id::ClusterId;
use plexus_proto::work::{ImageInfo, ImageReply, ImagesReply, PullProgress, RegistryAuth, TidyImagesReply};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::warn;

use super::{Inner, Supervisor};
use crate::runtime::choice;
use crate::runtime::images::{Images, NotReady};
use crate::unit_dir::UnitDir;

/// Lines of a pull on their way to whoever asked; when it does not listen, the pull's last ones count.
const LINES: usize = 64;

/// The images of a node; a handle.
#[derive(Debug, Clone)]
pub struct NodeImages(Supervisor);

impl Inner {
    /// Images of units that are not over, which may have no container yet, and of containers that are to wait, as nothing pulls
    /// these anew. Blocks.
    fn needed_images(&self) -> BTreeSet<String> {
        let spec = |attempt| UnitDir::new(&self.units_dir(), attempt).load().ok().flatten();
        let of_units = self.unfinished().into_iter().filter_map(spec).map(|(_, spec)| spec.image);
        of_units.chain(self.options.work.warm.iter().map(|entry| entry.image.clone())).collect()
    }
}

impl Supervisor {
    /// The images of this node.
    pub fn images(&self) -> NodeImages {
        NodeImages(self.clone())
    }
}

impl NodeImages {
    /// Those of the engine.
    ///
    /// # Errors
    /// This node needs none.
    pub fn engine(&self) -> Result<Images, NotReady> {
        let none = || NotReady("this node runs units as plain processes and has no images".to_owned());
        self.0.0.images.clone().ok_or_else(none)
    }

    /// All of them.
    pub async fn list(&self) -> ImagesReply {
        let listed = match self.engine() {
            Ok(images) => images.list().await.map_err(|error| error.to_string()),
            Err(NotReady(problem)) => Err(problem),
        };
        match listed {
            Ok(images) => ImagesReply { images, problem: String::new() },
            Err(problem) => ImagesReply { images: Vec::new(), problem },
        }
    }

    /// Whether an image is an execution environment.
    pub async fn check(&self, name: &str) -> ImageReply {
        match self.engine() {
            Ok(images) => images.check(name).await,
            Err(NotReady(problem)) => ImageReply { problem, ..ImageReply::default() },
        }
    }

    /// Pulls an image and tells how it goes; the last item says how it ended.
    pub fn pull<E>(
        &self,
        name: String,
        auth: Option<RegistryAuth>,
    ) -> impl Stream<Item = Result<PullProgress, E>> + Send + use<E> {
        let (lines, inbox) = mpsc::channel(LINES);
        let images = self.engine();
        let pull = async move {
            let said = |line| drop(lines.try_send(PullProgress { line, ..PullProgress::default() }));
            match images {
                Ok(images) => images.pull(&name, auth.as_ref(), said).await,
                Err(error) => Err(error),
            }
        };
        let last = stream::once(pull).map(|done| match done {
            Ok(image) => PullProgress { image: Some(image), ..PullProgress::default() },
            Err(NotReady(problem)) => PullProgress { problem, ..PullProgress::default() },
        });
        let lines = stream::unfold(inbox, |mut inbox| async { Some((inbox.recv().await?, inbox)) });
        // Lines end with the pull, whose sender goes with it.
        stream::select(lines, last).map(Ok)
    }

    /// Removes what a cluster does not want any more, nor anybody else.
    pub async fn tidy(&self, cluster: &ClusterId, wanted: Vec<String>) -> TidyImagesReply {
        match self.tidy_up(Some((cluster.clone(), wanted))).await {
            Ok(removed) => TidyImagesReply { removed, problem: String::new() },
            Err(problem) => TidyImagesReply { removed: Vec::new(), problem },
        }
    }

    async fn tidy_up(&self, wanted: Option<(ClusterId, Vec<String>)>) -> Result<Vec<String>, String> {
        let images = self.engine().map_err(|NotReady(problem)| problem)?;
        let inner = self.0.0.clone();
        let tidied = self.0.0.blocking(move || {
            let wanted = wanted.as_ref().map(|(cluster, wanted)| (cluster, wanted.as_slice()));
            images.tidy(wanted, || inner.needed_images())
        });
        let tidied = tidied.await;
        tidied.map_err(|error| error.to_string())
    }

    /// Looks for images that nobody needs, every few hours.
    pub(super) async fn tidy_for_ever(&self) {
        let hours = self.0.0.options.work.images.tidy_hours;
        if hours == 0 || self.engine().is_err() {
            return;
        }
        loop {
            tokio::time::sleep(Duration::from_secs(hours * 3600)).await;
            if let Err(problem) = self.tidy_up(None).await {
                warn!(problem, "images cannot be cleaned up");
            }
        }
    }

    /// What root of this machine asks of the node's images.
    ///
    /// # Errors
    /// See [`ActError`].
    pub async fn act(&self, action: Action) -> Result<Value, ActError> {
        let failed = |problem: String| ActError::Failed(problem);
        match action {
            Action::ImageList => {
                let ImagesReply { images, problem } = self.list().await;
                if !problem.is_empty() {
                    return Err(failed(problem));
                }
                Ok(json!({"images": images.iter().map(shown).collect::<Vec<_>>()}))
            }
            Action::ImageCheck { image } => {
                let work = self.0.0.options.work.clone();
                let tried = self.0.0.blocking(move || choice::try_all(&work)).await;
                let mut answer = json!({
                    "runtime": self.0.0.runtime.kind().as_str(),
                    "runtimes": tried,
                    "overlay": self.0.0.cache.has_overlay(),
                });
                if let Some(name) = image {
                    let ImageReply { image, problem, versions } = self.check(&name).await;
                    answer["name"] = json!(name);
                    answer["image"] = image.as_ref().map_or(Value::Null, shown);
                    answer["versions"] = json!(versions);
                    answer["problem"] = json!(problem);
                }
                Ok(answer)
            }
            Action::ImagePull { image } => {
                let images = self.engine().map_err(|NotReady(problem)| failed(problem))?;
                let pulled = images.pull(&image, None, |_| {}).await;
                pulled.map(|image| shown(&image)).map_err(|NotReady(problem)| failed(problem))
            }
            other => Err(ActError::NotOffered(other.name())),
        }
    }
}

fn shown(image: &ImageInfo) -> Value {
    json!({
        "name": image.names.first().unwrap_or(&image.id),
        "names": image.names,
        "id": image.id,
        "digest": image.digest,
        "size": image.size,
        "in_use": image.in_use,
    })
}
