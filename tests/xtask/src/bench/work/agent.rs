//! An agent in this process, and the controller that speaks to it.

use std::path::Path;

use anyhow::{Context as _, bail};
use plexus_node::config::{RuntimeName, WorkSection};
use plexus_node::supervisor::{Options, Supervisor};
use plexus_node::work::Caller;
use plexus_proto::id::{Address, Identity, Role};
use plexus_proto::work::{UnitReply, UnitReplyResult, UnitStatus};
use plexus_tests::Binaries;

/// An agent and who speaks to it.
#[derive(Clone)]
pub(super) struct Agent {
    pub(super) supervisor: Supervisor,
    pub(super) caller: Caller,
}

/// Starts an agent called `name` whose units run `command`, in folders of its own below `data` and `runtime`.
pub(super) async fn start(name: &str, data: &Path, runtime: &Path, command: &str) -> anyhow::Result<Agent> {
    let mut work = WorkSection { runtime: RuntimeName::Process, allow_swap: true, ..WorkSection::default() };
    work.process.command = vec![command.to_owned()];
    let options = Options {
        data_dir: data.join(name),
        runtime_dir: runtime.join(name),
        shim_binary: Binaries::of_this_build()?.node(),
        node: name.parse().context("bad name")?,
        work,
    };
    let identity = Identity {
        mesh: "bench".parse().context("bad name")?,
        cluster: "main".parse().context("bad name")?,
        role: Role::Controller,
        node: "controller".parse().context("bad name")?,
        address: Address(1),
    };
    Ok(Agent {
        supervisor: Supervisor::start(options).await.context("no agent")?,
        caller: Caller::from(&identity),
    })
}

/// The unit as a verb's answer shows it.
pub(super) fn status(reply: UnitReply) -> anyhow::Result<UnitStatus> {
    match reply.result {
        Some(UnitReplyResult::Status(status)) => Ok(status),
        Some(UnitReplyResult::Refusal(refusal)) => bail!("refused: {}", refusal.message),
        None => bail!("an empty answer"),
    }
}
