//! Waiting for a fact with a deadline, and saying what was seen when it does not come.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Pause between two looks. Short against anything a person notices, long against what a look costs.
const PAUSE: Duration = Duration::from_millis(20);

/// What one look found.
#[derive(Debug)]
pub enum Seen<T> {
    /// The fact, and what it carries.
    Yes(T),
    /// Not yet, and what is there instead; the last such text ends up in the error.
    NotYet(String),
}

impl Seen<()> {
    /// `Yes` when `fact`, else `NotYet` with the given state.
    pub fn when(fact: bool, state: impl FnOnce() -> String) -> Self {
        if fact { Self::Yes(()) } else { Self::NotYet(state()) }
    }
}

/// Looks again and again until the fact is there.
///
/// # Errors
/// When the deadline passes: names what was awaited, for how long, and the last state seen.
pub async fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut look: impl AsyncFnMut() -> Seen<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        let state = match look().await {
            Seen::Yes(found) => return Ok(found),
            Seen::NotYet(state) => state,
        };
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} for {what}; last seen: {state}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn found_fact_ends_the_wait() {
        let mut looks = 0;
        let found = wait_for("three looks", Duration::from_secs(5), async || {
            looks += 1;
            if looks == 3 { Seen::Yes(looks) } else { Seen::NotYet(format!("{looks} looks")) }
        })
        .await;
        assert_eq!(found.unwrap(), 3);
    }

    #[tokio::test]
    async fn passed_deadline_tells_the_last_state() {
        let error = wait_for("pigs to fly", Duration::from_millis(30), async || {
            Seen::<()>::NotYet("they walk".into())
        })
        .await
        .unwrap_err();
        assert_eq!(error.to_string(), "waited 30ms for pigs to fly; last seen: they walk");
    }
}
