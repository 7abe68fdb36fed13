//! Ping and trace: probes of this node, and what their answers tell.
//!
//! Probes are overlay packets that every node answers by itself. They take the way that data takes now, so a trace
//! shows the path of packets and not what somebody configured. Answers are not authenticated (a hop on the path could
//! make them up), and nothing but what people read depends on them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use plexus_proto::id::Address;
use plexus_proto::packet::{HOP_LIMIT, LinkNote, Probe};
use tokio::sync::mpsc;

use crate::forward::Overlay;
use crate::node::random_u64;

/// Wait for an answer before the probe is sent again.
const AGAIN: Duration = Duration::from_millis(300);
/// How much later than another a probe may be answered before it counts as lost.
const SLACK: Duration = Duration::from_millis(20);
/// Hops that a round of a trace looks further than the last.
const HORIZON: u8 = 8;
/// Answers that may wait; more than a trace can cause.
const ANSWERS: usize = 256;

/// The destination answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Echoed {
    pub(crate) rtt: Duration,
    /// Links crossed on the way there.
    pub(crate) hops: u32,
}

/// Why nothing came of a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// This node or one on the way has no route.
    NoRoute,
    Timeout,
}

/// The path as far as it answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Traced {
    pub(crate) reached: bool,
    /// The first link, the second, and so on.
    pub(crate) hops: Vec<Step>,
}

/// What is known of one step of a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Links crossed up to here.
    pub(crate) limit: u8,
    /// Who answered first, and how soon; `None` for who kept silent.
    pub(crate) answer: Option<(Address, Duration)>,
    /// What it said of the link to it.
    pub(crate) note: Option<LinkNote>,
    /// Probes that could have been answered by now.
    pub(crate) sent: u32,
    /// Probes that were.
    pub(crate) answered: u32,
}

/// Who waits for answers.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    waiting: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    nonce: u64,
    from: Address,
    reply: Probe,
    note: Option<LinkNote>,
    at: Instant,
}

impl Probes {
    /// Takes an answer from the overlay.
    pub(crate) fn probed(&self, from: Address, reply: Probe, note: Option<LinkNote>) {
        let (Probe::Echo { nonce }
        | Probe::EchoReply { nonce, .. }
        | Probe::HopLimitExceeded { nonce }
        | Probe::NoRoute { nonce, .. }) = reply;
        let waiting = self.waiting.lock().expect("no code panics under this lock");
        if let Some(asker) = waiting.get(&nonce) {
            let _ = asker.try_send(Answer { nonce, from, reply, note, at: Instant::now() });
        }
    }

    /// Probes `destination` until it answers.
    pub(crate) async fn ping(
        &self,
        overlay: &Overlay,
        to: Address,
        timeout: Duration,
    ) -> Result<Echoed, Failure> {
        let mut asking = Asking::new(self);
        let deadline = Instant::now() + timeout;
        loop {
            if !asking.send(overlay, to, HOP_LIMIT) {
                return Err(Failure::NoRoute);
            }
            while let Some((answer, _, rtt)) = asking.answer((Instant::now() + AGAIN).min(deadline)).await {
                match answer.reply {
                    Probe::EchoReply { hops_left, .. } if answer.from == to => {
                        let hops = u32::from(HOP_LIMIT.saturating_sub(hops_left)) + 1;
                        return Ok(Echoed { rtt, hops });
                    }
                    Probe::NoRoute { .. } => return Err(Failure::NoRoute),
                    _ => {}
                }
            }
            if Instant::now() >= deadline {
                return Err(Failure::Timeout);
            }
        }
    }

    /// Finds out who is on the way to `destination`: probes with hop limits 1, 2, and so on end one hop further each,
    /// and whoever lets one end says so. Takes as long as `timeout` only if somebody keeps silent.
    pub(crate) async fn trace(
        &self,
        overlay: &Overlay,
        to: Address,
        timeout: Duration,
    ) -> Result<Traced, Failure> {
        let mut asking = Asking::new(self);
        let mut path = Path::default();
        let deadline = Instant::now() + timeout;
        let mut horizon = 0;
        loop {
            horizon = HOP_LIMIT.min(horizon + HORIZON);
            for limit in path.open(horizon) {
                if !asking.send(overlay, to, limit) {
                    return Err(Failure::NoRoute);
                }
            }
            let round = (Instant::now() + AGAIN).min(deadline);
            while let Some((answer, limit, rtt)) = asking.answer(round).await {
                path.learn(limit, answer.from, rtt, &answer.reply, to);
                if let Some(note) = answer.note {
                    path.notes.entry(limit).or_insert(note);
                }
                if path.is_whole() {
                    return Ok(asking.tally(path.finish()));
                }
            }
            if Instant::now() >= deadline {
                return Ok(asking.tally(path.finish()));
            }
        }
    }
}

/// Probes under way of one ping or trace; their nonces are forgotten with it.
struct Asking<'a> {
    probes: &'a Probes,
    sent: HashMap<u64, (u8, Instant)>,
    answered: HashSet<u64>,
    sender: mpsc::Sender<Answer>,
    answers: mpsc::Receiver<Answer>,
}

impl<'a> Asking<'a> {
    fn new(probes: &'a Probes) -> Self {
        let (sender, answers) = mpsc::channel(ANSWERS);
        Self { probes, sent: HashMap::new(), answered: HashSet::new(), sender, answers }
    }

    /// Sends one probe; false if there is no route.
    fn send(&mut self, overlay: &Overlay, to: Address, limit: u8) -> bool {
        let nonce = random_u64();
        let mut waiting = self.probes.waiting.lock().expect("no code panics under this lock");
        waiting.insert(nonce, self.sender.clone());
        drop(waiting);
        self.sent.insert(nonce, (limit, Instant::now()));
        overlay.probe(to, limit, Probe::Echo { nonce })
    }

    /// Counts what was sent and answered at each step. A probe whose answer may still be on its way is not counted.
    fn tally(&self, mut traced: Traced) -> Traced {
        let now = Instant::now();
        for step in &mut traced.hops {
            let patience = step.answer.map_or(Duration::ZERO, |(_, rtt)| 2 * rtt + SLACK);
            for (nonce, (_, at)) in self.sent.iter().filter(|(_, (limit, _))| *limit == step.limit) {
                let answered = self.answered.contains(nonce);
                step.answered += u32::from(answered);
                step.sent += u32::from(answered || now.saturating_duration_since(*at) >= patience);
            }
        }
        traced
    }

    /// The next answer, with the hop limit of its probe and the time it took; `None` at `deadline`.
    async fn answer(&mut self, deadline: Instant) -> Option<(Answer, u8, Duration)> {
        loop {
            let answer = tokio::time::timeout_at(deadline.into(), self.answers.recv()).await.ok()??;
            if let Some((limit, at)) = self.sent.get(&answer.nonce) {
                self.answered.insert(answer.nonce);
                return Some((answer, *limit, answer.at.saturating_duration_since(*at)));
            }
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut waiting = self.probes.waiting.lock().expect("no code panics under this lock");
        self.sent.keys().for_each(|nonce| drop(waiting.remove(nonce)));
    }
}

/// What a trace has learned.
#[derive(Debug, Default)]
struct Path {
    /// By hop limit.
    hops: BTreeMap<u8, (Address, Duration)>,
    /// By hop limit: what who answered said of the link to it.
    notes: BTreeMap<u8, LinkNote>,
    /// Least limit at which the way ended, and whether at the destination.
    end: Option<(u8, bool)>,
}

impl Path {
    /// Limits up to `horizon` that nobody has answered for.
    fn open(&self, horizon: u8) -> Vec<u8> {
        let last = self.end.map_or(horizon, |(end, _)| end.min(horizon));
        (1..=last).filter(|limit| !self.hops.contains_key(limit)).collect()
    }

    fn learn(&mut self, limit: u8, from: Address, rtt: Duration, reply: &Probe, to: Address) {
        let end = match reply {
            Probe::EchoReply { .. } if from == to => Some(true),
            Probe::NoRoute { .. } => Some(false),
            Probe::HopLimitExceeded { .. } => None,
            Probe::Echo { .. } | Probe::EchoReply { .. } => return,
        };
        self.hops.entry(limit).or_insert((from, rtt));
        if let Some(reached) = end
            && self.end.is_none_or(|(least, _)| limit < least)
        {
            self.end = Some((limit, reached));
        }
    }

    fn is_whole(&self) -> bool {
        self.end.is_some_and(|(end, _)| self.open(end).is_empty())
    }

    fn finish(mut self) -> Traced {
        let (last, reached) = match self.end {
            Some((end, reached)) => (end, reached),
            None => (self.hops.last_key_value().map_or(0, |(limit, _)| *limit), false),
        };
        let step = |limit| Step {
            limit,
            answer: self.hops.remove(&limit),
            note: self.notes.remove(&limit),
            ..Step::default()
        };
        Traced { reached, hops: (1..=last).map(step).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Address = Address(9);
    const RTT: Duration = Duration::from_millis(1);

    fn exceeded() -> Probe {
        Probe::HopLimitExceeded { nonce: 0 }
    }

    fn reply() -> Probe {
        Probe::EchoReply { nonce: 0, hops_left: 1 }
    }

    fn path(answers: &[(u8, u32, Probe)]) -> Path {
        let mut path = Path::default();
        for (limit, from, reply) in answers {
            path.learn(*limit, Address(*from), RTT, reply, TARGET);
        }
        path
    }

    #[test]
    fn a_trace_is_whole_when_every_hop_up_to_the_target_has_answered() {
        let mut path = path(&[(3, 9, reply()), (4, 9, reply()), (1, 1, exceeded())]);
        assert!(!path.is_whole());
        assert_eq!(path.open(8), [2], "what lies behind the target is not asked again");
        path.learn(2, Address(2), RTT, &exceeded(), TARGET);
        assert!(path.is_whole());
        let step =
            |(limit, address)| Step { limit, answer: Some((Address(address), RTT)), ..Step::default() };
        let hops = [(1, 1), (2, 2), (3, 9)].map(step).to_vec();
        assert_eq!(path.finish(), Traced { reached: true, hops });
    }

    #[test]
    fn silence_is_a_gap_and_no_route_is_an_end() {
        let silent = path(&[(1, 1, exceeded()), (3, 3, exceeded())]).finish();
        assert_eq!((silent.reached, silent.hops.len(), silent.hops[1].answer), (false, 3, None));
        let lost = path(&[(1, 1, exceeded()), (2, 2, Probe::NoRoute { nonce: 0, destination: TARGET })]);
        assert!(lost.is_whole());
        assert!(!lost.finish().reached);
        assert_eq!(path(&[]).finish(), Traced::default());
    }

    #[test]
    fn only_the_target_can_answer_for_itself() {
        let path = path(&[(1, 5, reply())]);
        assert_eq!((path.end, path.open(2)), (None, vec![1, 2]));
    }

    #[tokio::test]
    async fn only_what_could_be_answered_counts_as_sent() {
        let probes = Probes::default();
        let mut asking = Asking::new(&probes);
        let past = Instant::now().checked_sub(Duration::from_secs(9)).unwrap_or_else(Instant::now);
        asking.sent =
            HashMap::from([(1, (1, past)), (2, (1, past)), (3, (1, Instant::now())), (4, (2, past))]);
        asking.answered.insert(1);
        let traced = asking.tally(path(&[(1, 1, exceeded()), (3, 3, exceeded())]).finish());
        let counts: Vec<_> = traced.hops.iter().map(|step| (step.sent, step.answered)).collect();
        assert_eq!(counts, [(2, 1), (1, 0), (0, 0)]);
    }

    #[tokio::test]
    async fn answers_find_their_asker_and_nobody_else() {
        let probes = Probes::default();
        probes.probed(TARGET, Probe::EchoReply { nonce: 7, hops_left: 1 }, None);
        let asking = Asking::new(&probes);
        drop(asking);
        assert!(probes.waiting.lock().unwrap().is_empty());
    }
}
