//! What a node says of itself.

use std::io;

use plexus_proto::id::StoreId;
use plexus_proto::work::{InfoRequest, NodeInfo};
use tracing::warn;

use super::Supervisor;
use crate::capacity;

/// Images that are named in one answer.
pub(super) const IMAGES_MAX: usize = 64;

impl Supervisor {
    /// Identity of the data directory.
    pub fn store_id(&self) -> StoreId {
        *self.0.store.lock().expect("no code panics under this lock")
    }

    /// The node itself. Who asks may have heard of more starts than this store counts: then it is an old copy, brought back
    /// from a snapshot, and answers with another identity.
    pub async fn info(&self, request: &InfoRequest) -> NodeInfo {
        let own = self.store_id();
        if StoreId::from_slice(&request.store_id) == Ok(own) && request.starts > self.0.start.1 {
            self.renew_store(own, request.starts).await;
        }
        let runtime = self.0.runtime.clone();
        let version = self
            .0
            .runtime_version
            .get_or_init(|| async { self.0.blocking(move || runtime.version()).await })
            .await;
        let capacity = capacity::measure();
        let cpu_millis =
            self.0.options.work.cores.map_or(capacity.cpu_millis, |cores| u32::from(cores) * 1000);
        let memory_bytes =
            self.0.options.work.memory_mib.map_or(capacity.memory_bytes, |mib| u64::from(mib) << 20);
        // What waits takes the place of a fork.
        let (fork_millis, fork_bytes) = (capacity::FORK_CPU_MILLIS, capacity::FORK_MEMORY_BYTES);
        let waiting = self.0.pool.weight();
        NodeInfo {
            store_id: self.store_id().0.as_bytes().to_vec().into(),
            software: crate::SOFTWARE.to_owned(),
            cpu_millis: cpu_millis.saturating_sub(waiting * fork_millis),
            memory_bytes: memory_bytes.saturating_sub(u64::from(waiting) * fork_bytes),
            runtime: self.0.runtime.kind().as_str().to_owned(),
            runtime_version: version.clone(),
            start: self.0.start.0,
            starts: self.0.start.1,
            free_disk_bytes: capacity::free_disk(&self.0.options.data_dir),
            images: self.0.images.as_ref().map_or_else(Vec::new, |images| images.known(IMAGES_MAX)),
            cordoned: self.cordoned(),
        }
    }

    async fn renew_store(&self, before: StoreId, heard: u64) {
        let inner = self.0.clone();
        let renewed = self.0.blocking(move || {
            let mut lock = inner.lock.lock().expect("no code panics under this lock");
            // Nothing to do for who says the same at the same time.
            let Some(store) = lock.as_mut().filter(|store| store.id == before) else { return Ok(()) };
            let id = store.renew()?;
            *inner.store.lock().expect("no code panics under this lock") = id;
            warn!(%before, %id, starts = inner.start.1, heard, "data_dir is an old copy and has a new store id");
            Ok::<_, io::Error>(())
        });
        if let Err(error) = renewed.await {
            // Asked again with the next heartbeat.
            warn!(error = &error as &dyn std::error::Error, "store id cannot be renewed");
        }
    }
}
