//! The process killed at each crash point, and started again: nothing is lost, nothing doubled, nothing acknowledged
//! that is not stored. The process is this test program itself, started again with the attempt's place in a variable.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use plexus_proto::id::OwnerEpoch;

use super::testing::{Spool, attempt, captured, context, job};
use super::{Ingest, Rc};
use crate::crash::Point;
use crate::store::events::{EventQuery, EventStore};
use crate::store::postgres::Server;
use crate::store::testing::{Place, on_each_engine};

const PLACE: &str = "PLEXUS_TEST_CRASH_PLACE";
/// Address of the database server; empty for files.
const SERVER: &str = "PLEXUS_TEST_CRASH_SERVER";
/// The part of the spool that lies on a node and outlives the controller: what it was told is stored.
const ACKED: &str = "acked";

fn records() -> Vec<plexus_proto::work::SealedRecord> {
    // Pieces of no particular length, so that lines, zip header and zip are cut.
    Spool::whole(attempt(1, 1), &captured("ok-2-hosts"), 1777)
}

fn read_acked(place: &Path) -> u64 {
    std::fs::read_to_string(place.join(ACKED)).map_or(0, |text| text.parse().unwrap())
}

/// What the controller does with an attempt, from attaching to the last acknowledgement.
async fn ingest(place: &Path, url: &str) {
    let epochs = place.join("epochs");
    std::fs::create_dir_all(&epochs).unwrap();
    let counter = std::fs::read_dir(&epochs).unwrap().count() as u64 + 1;
    std::fs::write(epochs.join(counter.to_string()), "").unwrap();
    let store = if url.is_empty() {
        EventStore::open(&place.join("events")).await.unwrap()
    } else {
        EventStore::connect(&Server::new(url, None).unwrap()).await.unwrap()
    };
    let epoch = OwnerEpoch { incarnation: 1, counter };
    let mut session = Ingest::new(store.clone()).open(context(1, 1), epoch).await.unwrap();
    assert!(session.next_record() > read_acked(place), "acknowledged and not stored");
    let records = records();
    let mut acked = session.acked();
    for record in records {
        if record.number < session.next_record() {
            continue;
        }
        let number = record.number;
        session.push(record).await.unwrap();
        // Every other record travels with its successor.
        if number % 2 == 0 || session.is_complete() {
            acked.wait_for(|&stored| stored >= number).await.unwrap();
            std::fs::write(place.join(ACKED), number.to_string()).unwrap();
            Point::AckSent.hit();
        }
    }
    let result = session.result().await.unwrap();
    assert_eq!((result.rc, result.eof, result.events), (Some(Rc::Code(0)), true, 18));
    drop(session);
    store.close().await;
}

/// Not a test of its own: the process that is killed.
#[tokio::test]
async fn child() {
    if let Some(place) = std::env::var_os(PLACE) {
        ingest(&PathBuf::from(place), &std::env::var(SERVER).unwrap()).await;
    }
}

fn run(place: &Place, crash_at: Option<&str>) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "ingest::crash_tests::child"]).env(PLACE, place.dir());
    command.env(SERVER, place.url());
    match crash_at {
        Some(point) => command.env("PLEXUS_CRASH_AT", point),
        None => command.env_remove("PLEXUS_CRASH_AT"),
    };
    let output = command.output().unwrap();
    assert!(
        output.status.success() || output.status.signal() == Some(9),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    output.status
}

async fn stored(place: &Place) -> Vec<String> {
    let store = place.events().await;
    let page = store.events(job(1), EventQuery { limit: 1000, ..EventQuery::default() }).await.unwrap();
    let summary = store.summary(job(1)).await.unwrap();
    store.close().await;
    assert_eq!(summary.gaps, []);
    page.events.iter().map(|event| format!("{event:?}")).chain([format!("{summary:?}")]).collect()
}

async fn killed_at_any_point_it_goes_on_where_it_was(untouched: Place) {
    assert!(run(&untouched, None).success());
    let expected = stored(&untouched).await;
    assert_eq!(expected.len(), 19);
    let engine = untouched.engine();
    for (point, number) in Point::of_a_record().zip(1..) {
        for nth in [1, 2, 5] {
            let place = Place::new(engine);
            let crash_at = format!("{}:{nth}", point.name());
            let died = run(&place, Some(&crash_at));
            assert_eq!(died.signal(), Some(9), "{crash_at} was not passed");
            assert!(run(&place, None).success(), "after {crash_at}");
            assert_eq!(stored(&place).await, expected, "after {crash_at}");
        }
        println!("{number}/{} {}", Point::of_a_record().len(), point.name());
    }
}

async fn killed_again_and_again_it_still_comes_to_the_end(first: Place) {
    for point in [Point::BeforeCommit, Point::AfterCommit, Point::AckSent] {
        let place = Place::new(first.engine());
        let crash_at = format!("{}:3", point.name());
        let mut deaths = 0;
        while run(&place, Some(&crash_at)).signal() == Some(9) {
            deaths += 1;
            assert!(deaths < 100, "{crash_at} makes no progress");
        }
        assert!(deaths >= 2, "{crash_at} was passed {deaths} times only");
        assert_eq!(stored(&place).await.len(), 19);
    }
}

on_each_engine![
    killed_at_any_point_it_goes_on_where_it_was,
    killed_again_and_again_it_still_comes_to_the_end,
];
