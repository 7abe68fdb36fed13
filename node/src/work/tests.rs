use plexus_proto::id::UnitId;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn attempt() -> Attempt {
    Attempt { unit: UnitId(Uuid::from_u128(3)), number: 1 }
}

fn caller(node: &str) -> Caller {
    Caller { cluster: "main".parse().unwrap(), node: node.parse().unwrap() }
}

fn epoch(counter: u64) -> OwnerEpoch {
    OwnerEpoch { incarnation: 1, counter }
}

fn unit() -> Unit {
    let Caller { cluster, node } = caller("c1");
    Unit::new(attempt(), Owner { cluster, node, epoch: epoch(5) }, State::Pending, 0, 0)
}

fn succeeded() -> Finished {
    Finished { outcome: Outcome::Succeeded.into(), exit_code: Some(0), ..Finished::default() }
}

fn code(result: Result<Vec<Effect>, Refusal>) -> RefusalCode {
    result.expect_err("refused").code()
}

#[test]
fn a_unit_goes_from_payload_to_forgotten() {
    let mut unit = unit();
    assert!(unit.needs_payload());
    assert_eq!(unit.on_payload(), [Effect::Start]);
    assert_eq!(unit.on_payload(), [], "it starts once");
    unit.on_started(77);
    assert_eq!(unit.state(), &State::Running { pid: 77 });
    unit.on_records(3);
    assert_eq!(code(unit.on_forget()), RefusalCode::NotFinished);
    assert_eq!(unit.on_finished(succeeded(), 4), [Effect::Conclude]);
    assert_eq!(unit.on_finished(Finished::default(), 9), [], "the first end counts");
    assert_eq!(code(unit.on_forget()), RefusalCode::NotFinished);
    assert_eq!(unit.on_ack(9), [Effect::Trim], "an ack reaches no further than the records");
    assert_eq!(unit.acked(), 4);
    assert_eq!(unit.on_ack(4), []);
    assert_eq!(unit.on_forget().unwrap(), [Effect::Bury]);
    assert_eq!(unit.on_forget().unwrap(), [Effect::Bury], "a disk that refused is tried again");
    assert_eq!(unit.on_buried(), [Effect::Erase]);
    assert_eq!(unit.on_buried(), []);
}

#[test]
fn the_highest_epoch_owns_and_only_within_its_cluster() {
    let mut unit = unit();
    assert_eq!(code(unit.claim(&caller("c1"), epoch(4))), RefusalCode::OlderEpoch);
    assert_eq!(unit.claim(&caller("c1"), epoch(5)).unwrap(), []);
    assert_eq!(code(unit.claim(&caller("c2"), epoch(5))), RefusalCode::OlderEpoch, "held by another process");
    assert_eq!(unit.claim(&caller("c2"), epoch(6)).unwrap(), [Effect::StoreOwner]);
    assert_eq!(code(unit.claim(&caller("c1"), epoch(5))), RefusalCode::OlderEpoch);
    let restored = OwnerEpoch { incarnation: 2, counter: 0 };
    assert_eq!(unit.claim(&caller("c1"), restored).unwrap(), [Effect::StoreOwner]);
    let stranger = Caller { cluster: "other".parse().unwrap(), ..caller("c1") };
    let all = OwnerEpoch { incarnation: u64::MAX, counter: u64::MAX };
    assert_eq!(code(unit.claim(&stranger, all)), RefusalCode::NotOwner);
    assert_eq!(unit.check_cluster(&stranger).unwrap_err().code(), RefusalCode::NotOwner);
    assert_eq!(unit.owner().epoch, restored);
}

#[test]
fn a_cancel_before_the_start_prevents_it() {
    let mut unit = unit();
    assert_eq!(unit.on_cancel(), [Effect::Conclude]);
    let State::Finished(finished) = unit.state() else { panic!("not finished") };
    assert_eq!(finished.outcome(), Outcome::Canceled);
    assert_eq!(unit.on_payload(), [], "never started");
    assert_eq!(unit.on_forget().unwrap(), [Effect::Bury], "no records to wait for");
}

#[test]
fn each_cancel_of_a_living_unit_signals() {
    let mut unit = unit();
    unit.on_payload();
    assert_eq!(unit.on_cancel(), [Effect::SignalShim]);
    unit.on_started(1);
    assert_eq!(unit.on_cancel(), [Effect::SignalShim]);
    assert!(unit.is_canceled());
    unit.on_finished(succeeded(), 1);
    assert_eq!(unit.on_cancel(), []);
}

#[test]
fn a_lost_record_takes_the_number_that_is_waited_for() {
    let mut unit = unit();
    unit.on_payload();
    unit.on_records(9);
    let lost = Finished { outcome: Outcome::Lost.into(), ..Finished::default() };
    unit.on_finished(lost, 4);
    assert_eq!(unit.records(), 4, "the tail went with the power");
    unit.on_attach(3);
    assert_eq!(unit.records(), 4);
    unit.on_attach(9);
    assert_eq!(unit.records(), 9);
    unit.on_ack(9);
    unit.on_attach(20);
    assert_eq!(unit.records(), 9, "a settled unit stays as it is");
}

#[derive(Debug, Clone)]
enum Input {
    Claim(u64),
    Payload,
    Cancel,
    Started,
    Records(u64),
    Finished(u64),
    Unprepared,
    Ack(u64),
    Attach(u64),
    Forget,
    Buried,
    Abandon,
    Damaged,
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        (0u64..9).prop_map(Input::Claim),
        Just(Input::Payload),
        Just(Input::Cancel),
        Just(Input::Started),
        (0u64..9).prop_map(Input::Records),
        (0u64..9).prop_map(Input::Finished),
        Just(Input::Unprepared),
        (0u64..12).prop_map(Input::Ack),
        (0u64..12).prop_map(Input::Attach),
        Just(Input::Forget),
        Just(Input::Buried),
        Just(Input::Abandon),
        Just(Input::Damaged),
    ]
}

proptest! {
    #[test]
    fn no_order_of_events_breaks_a_promise(inputs in prop::collection::vec(input(), 0..60)) {
        let mut unit = unit();
        let (mut starts, mut erased, mut highest) = (0, false, epoch(5));
        for input in inputs {
            if erased {
                break; // its task is gone
            }
            let (was_finished, acked) = (matches!(unit.state(), State::Finished(_)), unit.acked());
            let settled = unit.is_settled();
            let effects = match input.clone() {
                Input::Claim(counter) => {
                    let claimed = unit.claim(&caller("c1"), epoch(counter));
                    prop_assert_eq!(claimed.is_ok(), epoch(counter) >= highest);
                    highest = highest.max(epoch(counter));
                    prop_assert_eq!(unit.owner().epoch, highest);
                    claimed.unwrap_or_default()
                }
                Input::Payload => unit.on_payload(),
                Input::Cancel => unit.on_cancel(),
                Input::Started => unit.on_started(1),
                Input::Records(records) => { unit.on_records(records); Vec::new() }
                Input::Finished(records) => unit.on_finished(succeeded(), records),
                Input::Unprepared => unit.on_unprepared("x".to_owned()),
                Input::Ack(up_to) => unit.on_ack(up_to),
                Input::Attach(from) => { unit.on_attach(from); Vec::new() }
                Input::Forget => unit.on_forget().unwrap_or_default(),
                Input::Buried => unit.on_buried(),
                Input::Abandon => unit.on_abandon(),
                Input::Damaged => { unit.on_damaged(); Vec::new() }
            };
            starts += effects.iter().filter(|effect| **effect == Effect::Start).count();
            erased = effects.contains(&Effect::Erase);
            // Every verb is bounded: it never asks for more than one thing, and saying it again asks for no more.
            prop_assert!(effects.len() <= 1);
            if matches!(input, Input::Cancel | Input::Abandon) && was_finished {
                prop_assert!(effects.is_empty(), "what ended is not ended again");
            }
            prop_assert!(starts <= 1, "started twice");
            prop_assert!(!(was_finished && effects.contains(&Effect::Start)), "started after its end");
            prop_assert!(unit.acked() >= acked, "an ack was taken back");
            prop_assert!(!erased || settled, "erased with records that nobody has");
            prop_assert!(!settled || matches!(unit.state(), State::Finished(_)), "an end that was stored is final");
            if was_finished && !matches!(input, Input::Damaged) {
                prop_assert!(matches!(unit.state(), State::Finished(_)));
            }
            prop_assert_eq!(unit.status().state.is_some(), true);
        }
    }
}

#[test]
fn what_is_abandoned_dies_at_once_or_never_starts() {
    let mut pending = unit();
    assert_eq!(pending.on_abandon(), [Effect::Conclude]);
    assert_eq!(pending.on_payload(), [], "never started");
    let mut unit = unit();
    unit.on_payload();
    unit.on_started(1);
    assert_eq!(unit.on_abandon(), [Effect::KillShim]);
    assert_eq!(unit.on_abandon(), [Effect::KillShim], "said again, done again");
    assert!(unit.is_abandoned() && unit.is_canceled());
    unit.on_finished(succeeded(), 2);
    assert_eq!(unit.on_abandon(), []);
    assert_eq!(code(unit.on_forget()), RefusalCode::NotFinished, "its records are still to be had");
}
