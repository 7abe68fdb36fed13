//! Ping and trace: probes of this node, and what their answers tell.
//!
//! Probes are overlay packets that every node answers by itself. They take the way that data takes now, so a trace
//! shows the path of packets and not what somebody configured. Answers are not authenticated (a hop on the path could
//! make them up), and nothing but what people read depends on them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use plexus_proto::id::Address;
use plexus_proto::packet::{HOP_LIMIT, Probe};
use tokio::sync::mpsc;

use crate::forward::Overlay;
use crate::node::random_u64;

/// Wait for an answer before the probe is sent again.
const AGAIN: Duration = Duration::from_millis(300);
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
    /// Who answered for the first link, the second, and so on; `None` for who kept silent.
    pub(crate) hops: Vec<Option<(Address, Duration)>>,
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
    at: Instant,
}

impl Probes {
    /// Takes an answer from the overlay.
    pub(crate) fn probed(&self, from: Address, reply: Probe) {
        let (Probe::Echo { nonce }
        | Probe::EchoReply { nonce, .. }
        | Probe::HopLimitExceeded { nonce }
        | Probe::NoRoute { nonce, .. }) = reply;
        let waiting = self.waiting.lock().expect("no code panics under this lock");
        if let Some(asker) = waiting.get(&nonce) {
            let _ = asker.try_send(Answer { nonce, from, reply, at: Instant::now() });
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
                if path.is_whole() {
                    return Ok(path.finish());
                }
            }
            if Instant::now() >= deadline {
                return Ok(path.finish());
            }
        }
    }
}

/// Probes under way of one ping or trace; their nonces are forgotten with it.
struct Asking<'a> {
    probes: &'a Probes,
    sent: HashMap<u64, (u8, Instant)>,
    sender: mpsc::Sender<Answer>,
    answers: mpsc::Receiver<Answer>,
}

impl<'a> Asking<'a> {
    fn new(probes: &'a Probes) -> Self {
        let (sender, answers) = mpsc::channel(ANSWERS);
        Self { probes, sent: HashMap::new(), sender, answers }
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

    /// The next answer, with the hop limit of its probe and the time it took; `None` at `deadline`.
    async fn answer(&mut self, deadline: Instant) -> Option<(Answer, u8, Duration)> {
        loop {
            let answer = tokio::time::timeout_at(deadline.into(), self.answers.recv()).await.ok()??;
            if let Some((limit, at)) = self.sent.get(&answer.nonce) {
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
        let hops = (1..=last).map(|limit| self.hops.remove(&limit)).collect();
        Traced { reached, hops }
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
        let hops = [1, 2, 9].map(|address| Some((Address(address), RTT))).to_vec();
        assert_eq!(path.finish(), Traced { reached: true, hops });
    }

    #[test]
    fn silence_is_a_gap_and_no_route_is_an_end() {
        let silent = path(&[(1, 1, exceeded()), (3, 3, exceeded())]).finish();
        assert_eq!((silent.reached, silent.hops.len(), silent.hops[1]), (false, 3, None));
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
    async fn answers_find_their_asker_and_nobody_else() {
        let probes = Probes::default();
        probes.probed(TARGET, Probe::EchoReply { nonce: 7, hops_left: 1 });
        let asking = Asking::new(&probes);
        drop(asking);
        assert!(probes.waiting.lock().unwrap().is_empty());
    }
}
