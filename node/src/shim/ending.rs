//! How a worker is brought to its end, and what its end then means: pure.

use std::time::{Duration, Instant};

use plexus_proto::work::{Finished, Outcome};

/// Why the tree is being ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The owner canceled.
    Cancel,
    /// The hard limit on run time passed.
    Timeout,
    /// Nothing was heard of the owner for so long.
    Silence(Duration),
    /// Of what the container engine had left between shim and container, something was killed, and its client never noticed.
    Engine,
}

/// How long an engine's client may take to notice that something of the engine was killed. Podman's never notices the end of
/// `conmon`: it waits for an exit status that nobody will write.
const NOTICES: Duration = Duration::from_secs(10);

/// What the shim does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// SIGTERM to the worker.
    Terminate,
    /// The whole tree, at once.
    Kill,
}

/// How the worker's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// From the first wish to end the worker until its tree is killed.
#[derive(Debug)]
pub struct Ending {
    grace: Duration,
    limit: Option<Instant>,
    silence: Duration,
    silent_at: Option<Instant>,
    broken_at: Option<Instant>,
    cause: Option<Cause>,
    kill_at: Option<Instant>,
    killed: bool,
}

impl Ending {
    /// A worker started at `now`; a `timeout` of zero is none.
    pub fn new(now: Instant, grace: Duration, timeout: Duration) -> Self {
        let limit = (!timeout.is_zero()).then(|| now.checked_add(timeout)).flatten();
        let silence = Duration::ZERO;
        Self {
            grace,
            limit,
            silence,
            silent_at: None,
            broken_at: None,
            cause: None,
            kill_at: None,
            killed: false,
        }
    }

    /// Ends the worker once nothing is heard of its owner for `silence`, from `now` on; zero is never.
    pub fn with_silence(self, silence: Duration, now: Instant) -> Self {
        let mut ending = Self { silence, ..self };
        ending.on_heard(now);
        ending
    }

    /// The owner was heard of.
    pub fn on_heard(&mut self, now: Instant) {
        self.silent_at = (!self.silence.is_zero()).then(|| now.checked_add(self.silence)).flatten();
    }

    /// A process of the container engine was killed, and not by us.
    pub fn on_engine_hurt(&mut self, now: Instant) {
        self.broken_at = self.broken_at.or_else(|| now.checked_add(NOTICES));
    }

    /// Why the tree is being ended, if it is.
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// True when the tree was ended by force.
    pub fn was_forced(&self) -> bool {
        self.killed
    }

    /// The owner wants the end, `at_once` without grace. Signals again each time; the grace runs from the first.
    pub fn on_cancel(&mut self, at_once: bool, now: Instant) -> Option<Action> {
        self.begin(Cause::Cancel, now);
        if at_once {
            self.kill_at = Some(now);
        }
        self.poll(now).or((!self.killed).then_some(Action::Terminate))
    }

    /// What is due at `now`.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        if self.killed {
            return None;
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            self.killed = true;
            return Some(Action::Kill);
        }
        if self.cause.is_none() && self.limit.is_some_and(|limit| limit <= now) {
            self.begin(Cause::Timeout, now);
            return self.poll(now).or(Some(Action::Terminate));
        }
        if self.cause.is_none() && self.silent_at.is_some_and(|at| at <= now) {
            self.begin(Cause::Silence(self.silence), now);
            return self.poll(now).or(Some(Action::Terminate));
        }
        if self.cause.is_none() && self.broken_at.is_some_and(|at| at <= now) {
            // Its client would pass no signal on.
            (self.cause, self.kill_at) = (Some(Cause::Engine), Some(now));
            return self.poll(now);
        }
        None
    }

    /// When [`Ending::poll`] has something to say next.
    pub fn deadline(&self) -> Option<Instant> {
        if self.killed {
            return None;
        }
        if self.cause.is_some() {
            return self.kill_at;
        }
        self.limit.into_iter().chain(self.silent_at).chain(self.broken_at).min()
    }

    fn begin(&mut self, cause: Cause, now: Instant) {
        if self.cause.is_none() {
            self.cause = Some(cause);
            self.kill_at = now.checked_add(self.grace);
        }
    }
}

/// What a worker's end means. `explanation` is the runtime's word on the exit code, or the kernel's on a kill, if there is one; `lost` is set
/// when what ended was only the client of a container that may have gone on.
pub fn conclude(exit: Exit, cause: Option<Cause>, explanation: Option<String>, lost: bool) -> Finished {
    let (exit_code, signal) = match exit {
        Exit::Code(code) => (Some(code), None),
        Exit::Signal(signal) => (None, Some(signal)),
    };
    let (outcome, reason) = match (cause, exit) {
        (None, Exit::Code(0)) => (Outcome::Succeeded, String::new()),
        (Some(Cause::Cancel), Exit::Code(0)) => {
            (Outcome::Succeeded, "canceled, but the worker had already succeeded".to_owned())
        }
        (Some(Cause::Cancel), _) => (Outcome::Canceled, "canceled".to_owned()),
        (Some(Cause::Silence(_)), Exit::Code(0)) => (
            Outcome::Succeeded,
            "its owner was not heard of, but the worker had already succeeded".to_owned(),
        ),
        (Some(Cause::Silence(silence)), _) => (
            Outcome::Lost,
            format!(
                "nothing was heard of the unit's owner for {} s, so the node ended it",
                silence.as_secs()
            ),
        ),
        (Some(Cause::Engine), Exit::Code(0)) => (Outcome::Succeeded, String::new()),
        (Some(Cause::Engine), _) => (
            Outcome::Lost,
            "a process of the container engine that stood between this node and the container was killed"
                .to_owned(),
        ),
        (Some(Cause::Timeout), _) => (Outcome::TimedOut, "the unit's time limit passed".to_owned()),
        (None, Exit::Signal(signal)) if lost => {
            (Outcome::Lost, format!("the container engine's client was killed by signal {signal}"))
        }
        (None, Exit::Code(_)) if lost => {
            let words = explanation.unwrap_or_default();
            (Outcome::Lost, format!("the container engine lost the container: {words}"))
        }
        (None, Exit::Signal(signal)) => (
            Outcome::Failed,
            explanation.unwrap_or_else(|| format!("the worker was killed by {}", signal_words(signal))),
        ),
        (None, Exit::Code(code)) => (
            Outcome::Failed,
            explanation.unwrap_or_else(|| format!("the worker ended with exit code {code}")),
        ),
    };
    Finished { outcome: outcome.into(), exit_code, signal, reason }
}

/// A signal's number, its name, and what is most often behind it.
fn signal_words(signal: i32) -> String {
    let name = match signal {
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS, a file or memory that was not there",
        8 => "SIGFPE",
        9 => "SIGKILL, most often from the kernel, because it ran out of memory",
        11 => "SIGSEGV, a fault in the program",
        15 => "SIGTERM, not from this node",
        24 => "SIGXCPU, its limit of CPU time",
        25 => "SIGXFSZ, its limit of file size",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    #[test]
    fn each_cancel_signals_and_none_restarts_the_grace() {
        let start = Instant::now();
        let mut ending = Ending::new(start, GRACE, Duration::ZERO);
        assert_eq!(ending.deadline(), None);
        assert_eq!(ending.on_cancel(false, start), Some(Action::Terminate));
        assert_eq!(ending.on_cancel(false, start + GRACE / 2), Some(Action::Terminate));
        assert_eq!(ending.deadline(), Some(start + GRACE));
        assert_eq!(ending.poll(start + GRACE - Duration::from_millis(1)), None);
        assert_eq!(ending.poll(start + GRACE), Some(Action::Kill));
        assert_eq!(ending.on_cancel(false, start + GRACE * 2), None);
        assert_eq!(ending.deadline(), None);
    }

    #[test]
    fn without_grace_the_tree_is_killed_at_once() {
        let start = Instant::now();
        let mut ending = Ending::new(start, Duration::ZERO, Duration::ZERO);
        assert_eq!(ending.on_cancel(false, start), Some(Action::Kill));
        let mut ending = Ending::new(start, GRACE, Duration::ZERO);
        assert_eq!(ending.on_cancel(false, start), Some(Action::Terminate));
        assert_eq!(ending.on_cancel(true, start), Some(Action::Kill));
    }

    #[test]
    fn a_limit_terminates_then_kills_and_is_called_timed_out() {
        let start = Instant::now();
        let mut ending = Ending::new(start, GRACE, Duration::from_secs(60));
        assert_eq!(ending.deadline(), Some(start + Duration::from_secs(60)));
        assert_eq!(ending.poll(start + Duration::from_secs(59)), None);
        assert_eq!(ending.poll(start + Duration::from_secs(60)), Some(Action::Terminate));
        assert_eq!(ending.poll(start + Duration::from_secs(69)), None);
        assert_eq!(ending.poll(start + Duration::from_secs(70)), Some(Action::Kill));
        assert_eq!(conclude(Exit::Code(254), ending.cause(), None, false).outcome(), Outcome::TimedOut);
    }

    #[test]
    fn an_owner_that_falls_silent_ends_the_tree_and_each_word_puts_it_off() {
        let (start, silence) = (Instant::now(), Duration::from_secs(60));
        let mut ending = Ending::new(start, GRACE, Duration::ZERO).with_silence(silence, start);
        ending.on_heard(start + silence / 2);
        assert_eq!(ending.poll(start + silence), None);
        let over = start + silence / 2 + silence;
        assert_eq!(ending.deadline(), Some(over));
        assert_eq!(ending.poll(over), Some(Action::Terminate));
        ending.on_heard(over);
        assert_eq!(
            ending.poll(over + GRACE),
            Some(Action::Kill),
            "a word that comes too late changes nothing"
        );
        let finished = conclude(Exit::Signal(15), ending.cause(), None, false);
        assert_eq!(finished.outcome(), Outcome::Lost);
        assert!(finished.reason.contains("60 s"), "{}", finished.reason);
        let never = Ending::new(start, GRACE, Duration::ZERO).with_silence(Duration::ZERO, start);
        assert_eq!(never.deadline(), None);
    }

    #[test]
    fn an_engine_that_does_not_notice_its_loss_is_ended_and_the_unit_lost() {
        let start = Instant::now();
        let mut ending = Ending::new(start, GRACE, Duration::ZERO);
        ending.on_engine_hurt(start);
        ending.on_engine_hurt(start + NOTICES / 2);
        assert_eq!(ending.deadline(), Some(start + NOTICES));
        assert_eq!(ending.poll(start + NOTICES / 2), None);
        assert_eq!(ending.poll(start + NOTICES), Some(Action::Kill));
        assert_eq!(conclude(Exit::Signal(9), ending.cause(), None, true).outcome(), Outcome::Lost);
        // Whoever cancels in the meantime has his grace, and his word.
        let mut ending = Ending::new(start, GRACE, Duration::ZERO);
        ending.on_engine_hurt(start);
        ending.on_cancel(false, start + NOTICES / 2);
        assert_eq!(ending.poll(start + NOTICES), None);
        assert_eq!(conclude(Exit::Signal(15), ending.cause(), None, true).outcome(), Outcome::Canceled);
        let lost = conclude(Exit::Code(125), None, Some("unexpected EOF".to_owned()), true);
        assert_eq!(lost.outcome(), Outcome::Lost);
        assert!(lost.reason.contains("unexpected EOF"), "{}", lost.reason);
    }

    #[test]
    fn success_in_spite_of_a_cancel_is_success_with_a_note() {
        let finished = conclude(Exit::Code(0), Some(Cause::Cancel), None, false);
        assert_eq!(finished.outcome(), Outcome::Succeeded);
        assert!(finished.reason.contains("canceled"));
        assert_eq!(conclude(Exit::Code(254), Some(Cause::Cancel), None, false).outcome(), Outcome::Canceled);
        assert_eq!(conclude(Exit::Signal(9), None, None, true).outcome(), Outcome::Lost);
        assert_eq!(conclude(Exit::Signal(9), None, None, false).outcome(), Outcome::Failed);
    }
}
