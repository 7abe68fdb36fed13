//! The start of a unit, from its private block to the launch of its worker.

use std::{fs, io};

use plexus_proto::frame::{PRIVATE_FRAME_MAX, WORK_FRAME_MAX};
use plexus_proto::work::PrivateBlock;
use tracing::{debug, warn};

use super::{Task, chain};
use crate::crash::Point;
use crate::runtime::{Command, Job, Runtime};
use crate::shim::protocol::{Launch, Order, VERSION};
use crate::supervisor::warm::Claim;
use crate::tree::working;
use crate::unit_dir::UnitDir;
use crate::{kept, private};

/// Longest input of a worker: it must fit, with all the rest of a launch, into one frame to the shim.
const STDIN_MAX: usize = PRIVATE_FRAME_MAX - WORK_FRAME_MAX;

impl Task {
    /// Takes a spare shim, or starts one. `fresh` says that the unit never had anything on tmpfs.
    pub(super) async fn take_shim(&mut self, fresh: bool) -> io::Result<()> {
        if !fresh {
            // Whatever an earlier life left there has no shim: the unit was never started.
            self.wipe_runtime_dir().await;
        }
        if let Some(spare) = self.inner.take_spare()
            && let Some(stream) = spare.adopt(&self.runtime_dir)?
        {
            self.talk(stream);
            return Ok(());
        }
        let stream = self.inner.spawn_spare()?.adopt(&self.runtime_dir)?;
        self.talk(stream.ok_or(io::ErrorKind::BrokenPipe)?);
        Ok(())
    }

    /// Takes a container that waits for such a unit, if there is one. What would have to be told at its start, environment for
    /// instance, no waiting one knows.
    async fn take_waiting(&mut self, block: &PrivateBlock, image: Option<&str>) -> Option<Claim> {
        // What is collected lies in a directory of its own from the start.
        if self.shim.is_some() || !block.env.is_empty() || !self.spec.env.is_empty() || self.spec.collect {
            return None;
        }
        let mut claim = self.inner.claim(image?, &self.spec.organization)?;
        self.wipe_runtime_dir().await;
        let (runtime_dir, stage) = (self.runtime_dir.clone(), self.dir.stage());
        let adopted = self.inner.blocking(move || {
            let adopted = claim.adopt(&runtime_dir, &stage);
            (claim, adopted)
        });
        let (claim, adopted) = adopted.await;
        match adopted {
            Ok(Some(stream)) => {
                self.talk(stream);
                return Some(claim);
            }
            Ok(None) => debug!("the container that waited ended"),
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "a waiting container cannot be taken")
            }
        }
        self.inner.clean_slot(&claim.name).await;
        self.wipe_runtime_dir().await;
        None
    }

    /// Lays out the private block, marks the unit as started, and gives the shim its launch.
    pub(super) async fn start(
        &mut self,
        ticket: u64,
        block: &PrivateBlock,
        image: Option<&str>,
    ) -> Result<(), String> {
        if block.spool_key.len() != 32 {
            return Err("the private block has no spool key".to_owned());
        }
        if block.stdin.len() > STDIN_MAX {
            return Err("the worker's input is too long".to_owned());
        }
        let claim = self.take_waiting(block, image).await;
        if self.shim.is_none() {
            self.take_shim(false)
                .await
                .map_err(|error| format!("the unit's shim cannot be started: {error}"))?;
        }
        Point::ShimTaken.hit();
        let slot = claim.as_ref().map(|claim| claim.name.clone());
        let launch = self.lay_out(ticket, block, slot).await?;
        drop(claim);
        Point::Marked.hit();
        self.launched = true;
        if let Some(shim) = &self.shim {
            shim.order(Order::Launch(Box::new(launch))).await;
        }
        if self.inner.spools.is_over() {
            self.tell_quota().await; // the launch does not say why it is so small
        }
        Point::LaunchSent.hit();
        Ok(())
    }

    /// Lays out what the worker needs and, in the same turn, marks the unit as started: from the mark on it counts as started,
    /// whatever happens.
    async fn lay_out(
        &self,
        ticket: u64,
        block: &PrivateBlock,
        slot: Option<String>,
    ) -> Result<Launch, String> {
        let (runtime, dir, runtime_dir) =
            (self.inner.runtime.clone(), self.dir.clone(), self.runtime_dir.clone());
        let (attempt, spec, block) = (self.unit.attempt(), self.spec.clone(), block.clone());
        let quota = self.inner.spools.quota().bytes;
        let mounts = self.inner.cache.has_overlay();
        self.inner
            .blocking(move || {
                let private = runtime_dir.join("private");
                let (project, copy) = (dir.project(), dir.path().join(format!("project.{ticket}")));
                let has_project = copy.exists();
                if has_project {
                    fs::rename(&copy, &project)
                        .map_err(|error| format!("cannot move the working copy: {error}"))?;
                }
                let mut tree = match has_project {
                    true => Some(working::open(&project).map_err(|error| chain(&error))?),
                    false => None,
                };
                if slot.is_some() {
                    // The container is there already: what it sees is whole and has its owner before it is seen.
                    let fresh = runtime_dir.join("fresh");
                    private::lay_out(&fresh, &block.files).map_err(|error| chain(&error))?;
                    runtime.give(&[Some(&fresh), tree.as_deref()]).map_err(|error| chain(&error))?;
                    let stage = dir.stage().join("tree");
                    if let Some(copy) = tree.replace(stage.clone()).filter(|_| has_project) {
                        working::show(&copy, &stage, mounts).map_err(|error| chain(&error))?;
                    }
                    private::move_into(&fresh, &private).map_err(|error| chain(&error))?;
                } else {
                    private::lay_out(&private, &block.files).map_err(|error| chain(&error))?;
                }
                if spec.keep_seconds > 0 {
                    kept::note(&runtime_dir, &block.files)
                        .map_err(|error| format!("cannot note what is secret: {error}"))?;
                }
                let job = Job {
                    attempt,
                    spec: &spec,
                    private: &private,
                    project: tree.as_deref(),
                    runtime_dir: &runtime_dir,
                    secret_env: &block.env,
                    slot: slot.as_deref(),
                };
                let command = runtime.command(&job).map_err(|error| chain(&error))?;
                let launch = launch(&*runtime, &job, command, &block, &dir, quota);
                Point::LaidOut.hit();
                dir.mark_starting(slot.as_deref()).map_err(|error| chain(&error))?;
                Ok(launch)
            })
            .await
    }
}

fn launch(
    runtime: &dyn Runtime,
    job: &Job<'_>,
    command: Command,
    block: &PrivateBlock,
    dir: &UnitDir,
    quota: u64,
) -> Launch {
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    Launch {
        version: VERSION,
        unit: job.attempt.unit.0.as_bytes().to_vec().into(),
        attempt: job.attempt.number,
        spool_dir: text(&dir.spool()),
        spool_key: block.spool_key.clone(),
        spool_key_id: block.spool_key_id,
        spool_quota: quota,
        argv: command.argv,
        env: command.env,
        cwd: text(&command.cwd),
        stdin: block.stdin.clone(),
        grace_seconds: job.spec.grace_seconds,
        timeout_seconds: job.spec.timeout_seconds,
        end_argv: command.end_argv,
        runtime: runtime.kind().as_str().to_owned(),
        image: job.spec.image.clone(),
        pull: job.spec.pull,
        // The shim removes it at the end, unless the agent is to keep it.
        private_dir: if job.spec.keep_seconds > 0 { String::new() } else { text(job.private) },
        owner_deadline_seconds: job.spec.owner_deadline_seconds,
    }
}
