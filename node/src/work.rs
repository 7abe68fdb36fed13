//! The life of a unit: pure, without clock, disk or process.
//!
//! A [`Unit`] takes verbs from its owner and facts from its surroundings, and answers with [`Effect`]s for its
//! task to carry out, in order. Every verb may come again, in any state, and then changes nothing.
//!
//! Ownership: the owner is a cluster; within it, whoever showed the highest epoch. Each acting verb passes
//! [`Unit::claim`] first.

use plexus_proto::id::{Attempt, ClusterId, NodeId, OwnerEpoch};
use plexus_proto::work::{
    Finished, Outcome, Pending, Preparing, Refusal, RefusalCode, Running, UnitStatus, UnitStatusState,
};

/// Who speaks, by certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The cluster of its certificate.
    pub cluster: ClusterId,
    /// Its certified name.
    pub node: NodeId,
}

/// Who may act on a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Never changes.
    pub cluster: ClusterId,
    /// The controller that showed `epoch` first.
    pub node: NodeId,
    /// The highest epoch shown.
    pub epoch: OwnerEpoch,
}

/// Where a unit stands.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Accepted; nothing secret has arrived.
    Pending,
    /// The payload is here. From the synced mark inside this state on, the unit counts as started.
    Preparing {
        /// What is being done, for people.
        step: &'static str,
    },
    /// Its worker runs.
    Running {
        /// The worker, or the client of the container engine.
        pid: u32,
    },
    /// It ended, or never began and never will.
    Finished(Finished),
}

/// What the task must do, in the order given.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Store the owner, synced, before the verb is answered.
    StoreOwner,
    /// Lay out the private block, sync the mark, start the worker.
    Start,
    /// Pass the cancel on to the shim.
    SignalShim,
    /// End the tree at once, without grace.
    KillShim,
    /// Store the outcome, then remove what only a living unit needs.
    Conclude,
    /// Delete acknowledged records.
    Trim,
    /// Store its name among those that never start again, synced; then say [`Unit::on_buried`].
    Bury,
    /// Delete everything, this unit included.
    Erase,
}

/// The state machine of one attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    attempt: Attempt,
    owner: Owner,
    state: State,
    records: u64,
    acked: u64,
    cancel: bool,
    abandoned: bool,
    erased: bool,
}

impl Unit {
    /// A unit as accepted, or as found on disk.
    pub fn new(attempt: Attempt, owner: Owner, state: State, records: u64, acked: u64) -> Self {
        Self { attempt, owner, state, records, acked, cancel: false, abandoned: false, erased: false }
    }

    /// Which one it is.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Who may act on it.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Records in the spool.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Highest record acknowledged.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// True once it was forgotten.
    pub fn is_erased(&self) -> bool {
        self.erased
    }

    /// True when it ended and its owner holds every record of it.
    pub fn is_settled(&self) -> bool {
        matches!(self.state, State::Finished(_)) && self.acked >= self.records
    }

    /// Checks that the caller may act, and notes a higher epoch.
    ///
    /// # Errors
    /// Another cluster; an older epoch; an equal epoch held by another controller.
    pub fn claim(&mut self, caller: &Caller, epoch: OwnerEpoch) -> Result<Vec<Effect>, Refusal> {
        self.check_cluster(caller)?;
        let held = &self.owner;
        if epoch < held.epoch || (epoch == held.epoch && caller.node != held.node) {
            return Err(refusal(
                RefusalCode::OlderEpoch,
                format!(
                    "unit {} is owned by {} with epoch {}.{}; epoch {}.{} of {} is not above it",
                    self.attempt,
                    held.node,
                    held.epoch.incarnation,
                    held.epoch.counter,
                    epoch.incarnation,
                    epoch.counter,
                    caller.node
                ),
            ));
        }
        if epoch == held.epoch {
            return Ok(Vec::new());
        }
        self.owner = Owner { cluster: caller.cluster.clone(), node: caller.node.clone(), epoch };
        Ok(vec![Effect::StoreOwner])
    }

    /// Checks that the caller may see the unit.
    ///
    /// # Errors
    /// Another cluster.
    pub fn check_cluster(&self, caller: &Caller) -> Result<(), Refusal> {
        if caller.cluster == self.owner.cluster {
            return Ok(());
        }
        let message = format!("unit {} belongs to another cluster", self.attempt);
        Err(refusal(RefusalCode::NotOwner, message))
    }

    /// True while the payload is wanted.
    pub fn needs_payload(&self) -> bool {
        self.state == State::Pending
    }

    /// The whole payload is here.
    pub fn on_payload(&mut self) -> Vec<Effect> {
        match self.state {
            State::Pending => {
                self.state = State::Preparing { step: "starting" };
                vec![Effect::Start]
            }
            State::Preparing { .. } | State::Running { .. } | State::Finished(_) => Vec::new(),
        }
    }

    /// The owner wants it to end. Each call signals again.
    pub fn on_cancel(&mut self) -> Vec<Effect> {
        match self.state {
            State::Pending => self.conclude(Finished {
                outcome: Outcome::Canceled.into(),
                reason: "canceled before it was started".to_owned(),
                ..Finished::default()
            }),
            State::Preparing { .. } | State::Running { .. } => {
                self.cancel = true;
                vec![Effect::SignalShim]
            }
            State::Finished(_) => Vec::new(),
        }
    }

    /// The owner has given it up: it must not go on, and nobody waits for its end.
    pub fn on_abandon(&mut self) -> Vec<Effect> {
        match self.state {
            State::Pending => self.conclude(Finished {
                outcome: Outcome::Canceled.into(),
                reason: "abandoned before it was started".to_owned(),
                ..Finished::default()
            }),
            State::Preparing { .. } | State::Running { .. } => {
                (self.cancel, self.abandoned) = (true, true);
                vec![Effect::KillShim]
            }
            State::Finished(_) => Vec::new(),
        }
    }

    /// True when it was given up while it lived.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    /// True when a cancel came while the unit lived: a shim that connects late is told.
    pub fn is_canceled(&self) -> bool {
        self.cancel
    }

    /// The shim has a worker.
    pub fn on_started(&mut self, pid: u32) -> Vec<Effect> {
        if !matches!(self.state, State::Finished(_)) {
            self.state = State::Running { pid };
        }
        Vec::new()
    }

    /// The spool holds this many records.
    pub fn on_records(&mut self, records: u64) {
        self.records = self.records.max(records);
    }

    /// The unit ended; the spool holds this many records and no more will come.
    pub fn on_finished(&mut self, finished: Finished, records: u64) -> Vec<Effect> {
        if matches!(self.state, State::Finished(_)) {
            return Vec::new();
        }
        // Not the maximum: after a loss of power, or a cut, the spool may hold less than was announced.
        self.records = records;
        self.conclude(finished)
    }

    /// The payload could not be laid out, and nothing was started.
    pub fn on_unprepared(&mut self, reason: String) -> Vec<Effect> {
        match self.state {
            State::Finished(_) => Vec::new(),
            State::Pending | State::Preparing { .. } | State::Running { .. } => {
                self.conclude(Finished { outcome: Outcome::Failed.into(), reason, ..Finished::default() })
            }
        }
    }

    /// Records that were not acknowledged are gone from the disk: how the unit ended cannot be proven any more, so
    /// it is open for [`Unit::on_finished`] once again.
    pub fn on_damaged(&mut self) {
        if matches!(self.state, State::Finished(_)) && !self.is_settled() {
            self.state = State::Preparing { step: "closing its damaged spool" };
        }
    }

    /// A controller that already holds records up to `from_record` attaches to a spool that lost its tail: the
    /// lost record, last of the spool, then takes the number that the controller waits for.
    pub fn on_attach(&mut self, from_record: u64) {
        if let State::Finished(finished) = &self.state
            && finished.outcome() == Outcome::Lost
            && !self.is_settled()
        {
            self.records = self.records.max(from_record);
        }
    }

    /// Records up to `up_to` are stored.
    pub fn on_ack(&mut self, up_to: u64) -> Vec<Effect> {
        let up_to = up_to.min(self.records);
        if up_to <= self.acked {
            return Vec::new();
        }
        self.acked = up_to;
        vec![Effect::Trim]
    }

    /// The owner has no more use for it.
    ///
    /// # Errors
    /// It lives, or records of it are not acknowledged.
    pub fn on_forget(&mut self) -> Result<Vec<Effect>, Refusal> {
        if self.is_settled() {
            return Ok(vec![Effect::Bury]);
        }
        let message = match self.state {
            State::Finished(_) => format!(
                "unit {} ended, but only {} of its {} records are acknowledged",
                self.attempt, self.acked, self.records
            ),
            State::Pending | State::Preparing { .. } | State::Running { .. } => {
                format!("unit {} is not finished", self.attempt)
            }
        };
        Err(refusal(RefusalCode::NotFinished, message))
    }

    /// Its name is stored among those that never start again. Only then may what proves that it ran be deleted.
    pub fn on_buried(&mut self) -> Vec<Effect> {
        if !self.is_settled() || self.erased {
            return Vec::new();
        }
        self.erased = true;
        vec![Effect::Erase]
    }

    /// The unit as its owner sees it.
    pub fn status(&self) -> UnitStatus {
        let state = match &self.state {
            State::Pending => UnitStatusState::Pending(Pending { needs_payload: true }),
            State::Preparing { step } => UnitStatusState::Preparing(Preparing { step: (*step).to_owned() }),
            State::Running { pid } => UnitStatusState::Running(Running { pid: *pid }),
            State::Finished(finished) => UnitStatusState::Finished(finished.clone()),
        };
        UnitStatus {
            unit: Some(self.attempt.into()),
            epoch: Some(self.owner.epoch.into()),
            state: Some(state),
            records: self.records,
            acked: self.acked,
            kept: String::new(), // where things lie is not known here
            label: String::new(),
            held: String::new(),
        }
    }

    fn conclude(&mut self, finished: Finished) -> Vec<Effect> {
        self.state = State::Finished(finished);
        vec![Effect::Conclude]
    }
}

/// A refusal with its code and words.
pub fn refusal(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal { code: code.into(), message: message.into(), ..Refusal::default() }
}

#[cfg(test)]
mod tests;
