//! Waiting for conditions. The only place of the tests that sleeps.

use std::time::{Duration, Instant};

use anyhow::bail;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// What a look at a condition showed.
#[derive(Debug)]
pub enum Seen<T> {
    /// The condition holds.
    Done(T),
    /// Not yet; the text says what was seen instead.
    NotYet(String),
    /// It can never hold any more; the text says why.
    Never(String),
}

impl Seen<()> {
    /// Done if true; `state` says what was seen.
    pub fn when(holds: bool, state: impl std::fmt::Debug) -> Self {
        if holds {
            Self::Done(())
        } else {
            Self::NotYet(format!("{state:?}"))
        }
    }
}

/// Looks again and again until the condition holds. A look that fails counts as "not yet": services come and go
/// in these tests.
///
/// # Errors
/// After `limit`, or when the condition can never hold any more; with the last state seen.
pub async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<Seen<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let mut last = "nothing".to_owned();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match tokio::time::timeout(left.max(INTERVAL), look()).await {
            Ok(Ok(Seen::Done(value))) => return Ok(value),
            Ok(Ok(Seen::NotYet(state))) => last = state,
            Ok(Ok(Seen::Never(state))) => {
                bail!("waited for {what}, but it can never come: {state}")
            }
            Ok(Err(error)) => last = format!("{error:#}"),
            Err(_) => {}
        }
        if start.elapsed() >= limit {
            bail!(
                "waited {:.1} s for {what}; last seen: {last}",
                start.elapsed().as_secs_f64()
            );
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Lets some time pass. Only for choosing the moment of a fault, or for how long something must stay as it is: that is a
/// time, not a condition.
pub async fn moment(after: Duration) {
    tokio::time::sleep(after).await;
}

/// [`wait_for`] where no runtime may be entered.
///
/// # Errors
/// As there.
pub fn wait_for_blocking<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<Seen<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        let last = match look() {
            Ok(Seen::Done(value)) => return Ok(value),
            Ok(Seen::NotYet(state)) => state,
            Ok(Seen::Never(state)) => bail!("waited for {what}, but it can never come: {state}"),
            Err(error) => format!("{error:#}"),
        };
        if start.elapsed() >= limit {
            bail!(
                "waited {:.1} s for {what}; last seen: {last}",
                start.elapsed().as_secs_f64()
            );
        }
        std::thread::sleep(INTERVAL);
    }
}
