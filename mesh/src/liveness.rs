//! Whether neighbours live: probes as often as something is at stake, and silence noticed.
//!
//! A link on which packets flow is probed every 100 ms and left after three that went unanswered; where sessions are
//! open, and so units may be attached, it is a second, otherwise ten: each probe wakes both ends. One that goes
//! unanswered for a second there raises a doubt, and the link is probed as if packets flowed, so that rest costs little
//! and a cut in it is found in seconds all the same. What is heard in any way counts as an answer.
//! A probe that is late while something is at stake also raises the question whether the neighbour's process is there
//! at all ([`knock`]): its machine says so at once when it was killed, and then nobody waits for three probes.
//! A silent link is first left (its [`Pulse`] says so, the forwarding table takes the backup at once, and whoever dialed it
//! tries TCP), then, if it stays silent, closed. [`Liveness`] decides, and knows no clock; [`watch`] is the task that acts, one for all links.
//!
//! Probes are overlay packets to [`NEIGHBOR`], answered over the link that brought them, so they show that very link,
//! whatever its kind, in both directions.

mod knock;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use plexus_proto::id::Address;
use plexus_proto::packet::{Class, Header, Probe};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::batch::Batch;
use crate::config::LinkKind;
use crate::driver::DriverHandle;
use crate::link::{LinkHandle, code};
use crate::routing::LinkId;

/// The other end of the link, whoever it is; nobody is certified for it.
pub(crate) const NEIGHBOR: Address = Address(0);

/// Between two probes: while packets flow, while something is at stake, otherwise. In milliseconds.
const FLOWING: u64 = 100;
const STAKED: u64 = 1000;
const IDLE: u64 = 10_000;
/// By how much a probe at rest may be early, so that those of several links leave together: each moment at which
/// something is due wakes a thread up to three times.
const EARLY: u64 = IDLE / 8;
/// How long packets are taken to flow after the last, and how long a link is taken to be at stake: longer than a
/// session is quiet.
const FLOWS_FOR: u64 = 2000;
const STAKED_FOR: u64 = 15_000;
/// Packets between two looks that make a flow.
const FLOW: u32 = 8;
/// Probes that may go unanswered before a link is silent.
const MISSES: u64 = 3;
/// How long a probe may go unanswered at leisure before the neighbour is doubted, unless its round trip is longer.
const DOUBTED_AFTER: u64 = 1000;
/// Least silence after which a link is closed.
const CLOSED_AFTER: u64 = 3000;
/// How long a probe may go unanswered, beyond twice the round trip, before the neighbour's machine is asked whether it
/// still has that port: longer than a busy neighbour usually takes.
const LATE_AFTER: u64 = 25;
/// How long a link that was silent has to be heard before it is taken back.
const SOUND_FOR: u64 = 500;

/// Milliseconds since this process first asked.
fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64
}

/// What is known of a link without asking anybody: shared by those who send, receive and watch.
#[derive(Debug)]
pub(crate) struct Pulse {
    heard: AtomicU64,
    /// Packets of sessions since the last look.
    carried: AtomicU32,
    /// Round trip of the last probe that was answered, in milliseconds.
    rtt: AtomicU32,
    silent: AtomicBool,
    /// Told when it has become silent.
    fell: Notify,
    /// The watch looks seldom: a flow has to wake it.
    dozing: AtomicBool,
    wake: Arc<Notify>,
}

impl Pulse {
    pub(crate) fn new(wake: Arc<Notify>) -> Self {
        Self {
            heard: AtomicU64::new(clock()),
            carried: AtomicU32::default(),
            rtt: AtomicU32::default(),
            silent: AtomicBool::default(),
            fell: Notify::new(),
            dozing: AtomicBool::default(),
            wake,
        }
    }

    /// Something came over the link.
    pub(crate) fn heard(&self) {
        self.heard.store(clock(), Ordering::Relaxed);
    }

    /// Packets of sessions went over the link, in either direction.
    pub(crate) fn carried(&self, count: u32) {
        let before = self.carried.fetch_add(count, Ordering::Relaxed);
        if before.saturating_add(count) >= FLOW
            && self.dozing.load(Ordering::Relaxed)
            && self.dozing.swap(false, Ordering::Relaxed)
        {
            self.wake.notify_one();
        }
    }

    /// A probe came back that left at `sent`.
    pub(crate) fn answered(&self, sent: u64) {
        let rtt = clock().saturating_sub(sent).min(60_000);
        self.rtt.store(rtt as u32, Ordering::Relaxed);
    }

    /// Whether nothing is heard any more.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Resolves when nothing is heard any more; for one waiter.
    pub(crate) async fn silence(&self) {
        while !self.is_silent() {
            self.fell.notified().await;
        }
    }

    /// Whether something was heard so lately that a silent link is about to be taken back.
    pub(crate) fn is_heard_again(&self) -> bool {
        clock().saturating_sub(self.heard.load(Ordering::Relaxed)) < 2 * FLOWING
    }

    fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
        if silent {
            self.fell.notify_one();
        }
    }
}

/// What to do about a link now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Verdict {
    probe: bool,
    /// It has become silent, or is heard again.
    silent: Option<bool>,
    dead: bool,
    /// Ask whether the neighbour's port is still there.
    knock: bool,
    /// When to look again.
    next: u64,
}

/// The life of one link. All times are milliseconds of one clock.
#[derive(Debug)]
struct Liveness {
    interval: u64,
    /// Since when probes have gone out at this pace.
    since: u64,
    probe_at: u64,
    /// The first probe after the last sound.
    unanswered: Option<u64>,
    /// When the last probe is late.
    late_at: Option<u64>,
    /// Whether the machine's word that the port is gone counts. Once it was not true, it does not any more: somebody on
    /// the way refuses what he does not know.
    believes: bool,
    flows_until: u64,
    staked_until: u64,
    silent: bool,
    sound_since: Option<u64>,
}

impl Liveness {
    fn new(now: u64) -> Self {
        Self {
            interval: STAKED,
            since: now,
            probe_at: now + STAKED,
            unanswered: None,
            late_at: None,
            believes: true,
            flows_until: 0,
            // Soon after a link came up sessions follow.
            staked_until: now + STAKED_FOR,
            silent: false,
            sound_since: None,
        }
    }

    /// Somebody doubts that the neighbour lives: look closely for a while.
    fn doubt(&mut self, now: u64) {
        self.flows_until = self.flows_until.max(now + FLOWS_FOR);
    }

    /// The machine at the other end says that nobody has the port. Whether the link has become silent by that.
    fn refused(&mut self, heard: u64) -> bool {
        let unheard = self.unanswered.is_some_and(|at| heard < at);
        if self.silent || !self.believes || !unheard {
            return false;
        }
        // Believed again when the link ends with it.
        (self.silent, self.sound_since, self.believes) = (true, None, false);
        true
    }

    /// Looks at the link: when something was `heard` last, how many packets it `carried` since the last look, and its
    /// round trip.
    fn look(&mut self, now: u64, heard: u64, carried: u32, rtt: u64) -> Verdict {
        if carried > 0 {
            self.staked_until = now + STAKED_FOR;
        }
        if carried >= FLOW || (carried > 0 && now < self.flows_until) {
            self.flows_until = now + FLOWS_FOR;
        }
        if self.unanswered.is_some_and(|at| heard >= at) {
            (self.unanswered, self.late_at) = (None, None);
        }
        let doubted_after = DOUBTED_AFTER.max(2 * rtt);
        if self.interval != FLOWING && self.unanswered.is_some_and(|at| now >= at + doubted_after) {
            self.doubt(now);
        }
        self.pace(now);
        let mut verdict = Verdict::default();
        // At leisure it is enough that one of both ends asks.
        if self.interval != FLOWING && !self.silent {
            self.probe_at = self.probe_at.max((heard + self.interval).min(now + self.interval));
        }
        let early = if self.interval == IDLE { EARLY } else { 0 };
        if now + early >= self.probe_at {
            verdict.probe = true;
            self.probe_at = now + self.interval;
            self.unanswered.get_or_insert(now);
            // At rest that would be one more wake-up for each probe.
            self.late_at = (self.interval != IDLE).then_some(now + 2 * rtt + LATE_AFTER);
        }
        if self.late_at.is_some_and(|at| now >= at) {
            self.late_at = None;
            verdict.knock = self.believes && !self.silent;
        }
        let patience = (MISSES * self.interval).max(2 * rtt + self.interval);
        let quiet_from = heard.max(self.since);
        let silent_at =
            self.unanswered.map(|asked| (quiet_from + patience).max(asked + patience - self.interval));
        let dead_at = silent_at.map(|at| at.max(quiet_from + CLOSED_AFTER));
        if !self.silent && silent_at.is_some_and(|at| now >= at) {
            (self.silent, self.sound_since, verdict.silent) = (true, None, Some(true));
        }
        verdict.dead = dead_at.is_some_and(|at| now >= at);
        if self.silent {
            self.regain(now, heard, &mut verdict);
        }
        let doubted_at = self.unanswered.filter(|_| self.interval != FLOWING).map(|at| at + doubted_after);
        let due =
            [silent_at.filter(|_| !self.silent), dead_at, doubted_at, self.late_at].into_iter().flatten();
        verdict.next = due.chain([self.probe_at]).min().unwrap_or(self.probe_at).max(now + 1);
        verdict
    }

    fn pace(&mut self, now: u64) {
        let interval = match now {
            now if now < self.flows_until || self.silent => FLOWING,
            now if now < self.staked_until => STAKED,
            _ => IDLE,
        };
        if interval < self.interval {
            // What went unanswered at leisure says nothing yet.
            (self.since, self.unanswered, self.late_at, self.probe_at) = (now, None, None, now);
        }
        self.interval = interval;
    }

    /// A silent link is taken back when it has been heard for a while.
    fn regain(&mut self, now: u64, heard: u64, verdict: &mut Verdict) {
        if now.saturating_sub(heard) > FLOWING + FLOWING / 2 {
            self.sound_since = None;
            return;
        }
        let since = *self.sound_since.get_or_insert(now);
        if now >= since + SOUND_FOR {
            (self.silent, self.sound_since, verdict.silent) = (false, None, Some(false));
        }
    }
}

/// What the watch is told.
#[derive(Debug)]
pub(crate) enum Notice {
    Up(Arc<LinkHandle>),
    Down(LinkId),
    /// See at once whether the neighbour lives.
    Doubt(LinkId),
}

/// Watches all links of a node until `cancel`.
pub(crate) async fn watch(
    this: Address,
    mut notices: mpsc::UnboundedReceiver<Notice>,
    wake: Arc<Notify>,
    driver: DriverHandle,
    cancel: CancellationToken,
) {
    let mut links: BTreeMap<LinkId, (Arc<LinkHandle>, Liveness)> = BTreeMap::new();
    let mut knocks: JoinSet<Option<LinkId>> = JoinSet::new();
    loop {
        let mut next: Option<u64> = None;
        for (&id, (link, life)) in &mut links {
            let verdict = look(this, link, life, id, &driver);
            next = Some(next.map_or(verdict.next, |at| at.min(verdict.next)));
            // A TCP stream hears of the end of its peer by itself.
            if verdict.knock && link.kind() != LinkKind::Tcp {
                let remote = link.remote_address();
                knocks.spawn(async move { knock::is_refused(remote).await.then_some(id) });
            }
        }
        let wait = next.map(|at| Duration::from_millis(at.saturating_sub(clock())));
        tokio::select! {
            () = cancel.cancelled() => return,
            notice = notices.recv() => match notice {
                Some(Notice::Up(link)) => drop(links.insert(link.id, (link, Liveness::new(clock())))),
                Some(Notice::Down(link)) => drop(links.remove(&link)),
                Some(Notice::Doubt(link)) => {
                    if let Some((_, life)) = links.get_mut(&link) {
                        life.doubt(clock());
                    }
                }
                None => return,
            },
            Some(knocked) = knocks.join_next() => {
                if let Ok(Some(id)) = knocked
                    && let Some((link, life)) = links.get_mut(&id)
                    && life.refused(link.egress.pulse.heard.load(Ordering::Relaxed))
                {
                    info!(peer = %link.neighbor.node, "nobody has the neighbour's port any more");
                    fall_silent(link, id, true, &driver);
                }
            }
            () = wake.notified() => {}
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
}

/// Looks at one link and does what has to be done, but for knocking.
fn look(this: Address, link: &LinkHandle, life: &mut Liveness, id: LinkId, driver: &DriverHandle) -> Verdict {
    let (now, pulse) = (clock(), &link.egress.pulse);
    let carried = pulse.carried.swap(0, Ordering::Relaxed);
    let (heard, rtt) = (pulse.heard.load(Ordering::Relaxed), pulse.rtt.load(Ordering::Relaxed));
    let verdict = life.look(now, heard, carried, rtt.into());
    pulse.dozing.store(life.interval != FLOWING, Ordering::Relaxed);
    if verdict.probe {
        link.egress.offer(packet(this, Probe::Echo { nonce: now }));
    }
    if let Some(silent) = verdict.silent {
        info!(peer = %link.neighbor.node, silent, unheard_ms = now.saturating_sub(heard), "link silence");
        fall_silent(link, id, silent, driver);
    }
    if verdict.dead {
        link.close(code::SILENT, "nothing is heard any more");
    }
    verdict
}

fn fall_silent(link: &LinkHandle, id: LinkId, silent: bool, driver: &DriverHandle) {
    link.egress.pulse.set_silent(silent);
    driver.silent(id, silent);
}

/// A packet for the other end of a link.
pub(crate) fn packet(this: Address, probe: Probe) -> Batch {
    let header = Header {
        class: Class::Probe,
        ecn: 0,
        rekey: false,
        hop_limit: 1,
        source: this,
        destination: NEIGHBOR,
    };
    Batch::one(header, &probe.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lives from 0 to `end` on a link whose neighbour answers in 10 ms until `cut`, while `carried` packets cross it in
    /// each millisecond; what was decided, and when.
    fn check(end: u64, cut: u64, carried: u32) -> (Vec<(u64, bool)>, Option<u64>, usize) {
        let mut life = Liveness::new(0);
        let (mut heard, mut packets, mut probes) = (0, 0, 0);
        let (mut turns, mut dead, mut next, mut answer) = (vec![], None, 0, None);
        for now in 0..end {
            packets += carried;
            if carried > 0 && now < cut {
                heard = now;
            }
            if answer == Some(now) && now < cut {
                heard = now;
            }
            if now < next && !(life.interval != FLOWING && packets >= FLOW) {
                continue;
            }
            let verdict = life.look(now, heard, std::mem::take(&mut packets), 10);
            assert!(verdict.next > now);
            next = verdict.next;
            if verdict.probe {
                probes += 1;
                answer = Some(now + 10);
            }
            turns.extend(verdict.silent.map(|silent| (now, silent)));
            if verdict.dead {
                dead.get_or_insert(now);
            }
        }
        (turns, dead, probes)
    }

    #[test]
    fn a_flow_leaves_a_dead_neighbour_after_three_probes() {
        for cut in [5000, 5030, 5070, 5099] {
            let (turns, dead, _) = check(12_000, cut, 1);
            let [(at, true)] = turns[..] else { panic!("{turns:?}") };
            assert!((cut + 299..=cut + 310).contains(&at), "{at} after {cut}");
            let dead = dead.unwrap();
            assert!((cut + 2999..=cut + 3100).contains(&dead), "{dead} after {cut}");
        }
    }

    #[test]
    fn an_idle_link_is_probed_seldom_and_lost_late() {
        let (turns, dead, probes) = check(120_000, u64::MAX, 0);
        assert_eq!((turns, dead), (vec![], None));
        assert!(probes <= 15 + 105 / 10 + 1, "{probes}");
        for cut in [60_000, 63_000, 69_999] {
            let (turns, dead, _) = check(120_000, cut, 0);
            assert!(turns[0].0 <= cut + 12_000 && dead.unwrap() <= cut + 15_000, "{turns:?} {dead:?}");
        }
    }

    #[test]
    fn one_lost_probe_at_leisure_is_no_silence() {
        let mut life = Liveness::new(0);
        let (mut heard, mut lost, mut next, mut answer) = (0, false, 0, None);
        for now in 0..120_000 {
            if answer == Some(now) {
                heard = now;
            }
            if now < next {
                continue;
            }
            let verdict = life.look(now, heard, 0, 10);
            next = verdict.next;
            if verdict.probe {
                answer =
                    if now > 50_000 && !std::mem::replace(&mut lost, true) { None } else { Some(now + 10) };
            }
            assert_eq!((verdict.silent, verdict.dead), (None, false), "at {now}");
        }
        assert!(lost);
    }

    #[test]
    fn a_flow_that_begins_with_silence_is_given_its_three_probes() {
        let mut life = Liveness::new(0);
        life.staked_until = 0;
        life.look(1, 0, 0, 0);
        let probed = (2..20_000).find(|&now| life.look(now, 0, 0, 0).probe).unwrap();
        assert_eq!(life.look(probed + 10, 0, FLOW, 0).silent, None);
        let silent = (probed + 11..probed + 1000).find(|&now| life.look(now, 0, 1, 0).silent.is_some());
        assert_eq!(silent, Some(probed + 10 + 300));
    }

    #[test]
    fn a_long_way_is_given_more_time() {
        let mut life = Liveness::new(0);
        life.look(1, 1, FLOW, 600);
        let silent = (2..5000).find(|&now| life.look(now, 1, 1, 600).silent.is_some()).unwrap();
        assert!(silent >= 1300, "{silent}");
    }

    #[test]
    fn a_late_answer_asks_for_the_port_once_a_probe_and_a_refusal_is_silence() {
        let mut life = Liveness::new(0);
        let first = life.look(1, 1, FLOW, 0);
        assert!(first.probe && first.next == 1 + LATE_AFTER, "{first:?}");
        let knocks: Vec<u64> = (2..250).filter(|&now| life.look(now, 0, 1, 0).knock).collect();
        assert_eq!(knocks, [1, 101, 201].map(|probed| probed + LATE_AFTER));
        assert!(!life.refused(1), "heard since");
        assert!(life.refused(0) && life.silent);
        let dead = (250..9000).find(|&now| life.look(now, 0, 1, 0).dead).unwrap();
        assert!((CLOSED_AFTER..CLOSED_AFTER + 200).contains(&dead), "{dead}");
    }

    #[test]
    fn who_was_refused_and_lives_is_not_asked_again() {
        let mut life = Liveness::new(0);
        life.look(1, 1, FLOW, 0);
        life.look(30, 0, 1, 0);
        assert!(life.refused(0));
        let back = (31..2000).find(|&now| life.look(now, now, 1, 0).silent == Some(false)).unwrap();
        let later: Vec<Verdict> = (back + 1..back + 250).map(|now| life.look(now, back, 1, 0)).collect();
        assert!(later.iter().any(|verdict| verdict.probe) && !later.iter().any(|verdict| verdict.knock));
        assert!(!life.refused(back));
    }

    #[test]
    fn links_at_rest_are_probed_together() {
        let mut lives = [Liveness::new(0), Liveness::new(900)];
        lives.iter_mut().for_each(|life| life.staked_until = 0);
        let (mut next, mut heard, mut moments) = (0, [0, 900], Vec::new());
        for now in 0..100_000 {
            if now < next {
                continue;
            }
            let (mut together, mut due) = (0, Vec::new());
            for (life, heard) in lives.iter_mut().zip(&mut heard) {
                let verdict = life.look(now, *heard, 0, 10);
                due.push(verdict.next);
                if verdict.probe {
                    (together, *heard) = (together + 1, now);
                }
            }
            next = due.into_iter().min().unwrap();
            moments.extend((together > 0).then_some(together));
        }
        assert!((9..=12).contains(&moments.len()), "{moments:?}");
        assert!(moments[2..].iter().all(|&together| together == 2), "{moments:?}");
    }

    #[test]
    fn at_rest_nobody_asks_for_ports() {
        let mut life = Liveness::new(0);
        life.staked_until = 0;
        let first = (1..20_000).find(|&now| life.look(now, 0, 0, 0).probe).unwrap();
        assert_eq!(life.look(first + 1, 0, 0, 0).next, first + DOUBTED_AFTER);
    }

    #[test]
    fn a_silent_link_is_taken_back_when_it_has_been_heard_for_a_while() {
        let mut life = Liveness::new(0);
        life.look(1, 1, FLOW, 0);
        let silent = (2..5000).find(|&now| life.look(now, 1, 1, 0).silent == Some(true)).unwrap();
        assert_eq!(life.look(silent + 200, silent + 199, 1, 0).silent, None, "a single sound");
        let back = (silent + 200..9000).find(|&now| life.look(now, now, 1, 0).silent == Some(false)).unwrap();
        assert!(back >= silent + 200 + SOUND_FOR);
    }
}
