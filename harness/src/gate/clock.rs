//! The hang guard, bounds, lower bounds and pace. No other code waits for time or compares times.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use tokio::task::unconstrained;

use crate::tape::Entry;
use crate::verdict::{CaseResult, Failure, FailureMode};

/// How long anything may take before it counts as hung, unless `GAUNTLET_HANG_GUARD_MS` sets
/// another bound in milliseconds.
const HANG_GUARD: Duration = Duration::from_secs(20);

/// The slack of a lower bound: timers and the tape round by about this much.
const TICK: Duration = Duration::from_millis(2);

tokio::task_local! {
    static OWN_GUARD: Duration;
}

/// Runs `future` with this hang guard; tasks that it spawns keep the usual one. It is for
/// examinations that are expected to hang, such as that of a defective gateway which never answers.
/// Cancel safe if `future` is.
pub async fn with_hang_guard<T>(bound: Duration, future: impl Future<Output = T>) -> T {
    OWN_GUARD.scope(bound, future).await
}

/// The bound after which a wait counts as hung: that of [`with_hang_guard`], else
/// `GAUNTLET_HANG_GUARD_MS`, else 20 s.
pub fn hang_guard() -> Duration {
    if let Ok(bound) = OWN_GUARD.try_with(|bound| *bound) {
        return bound;
    }
    std::env::var("GAUNTLET_HANG_GUARD_MS")
        .ok()
        .and_then(|ms| ms.parse().ok())
        .map_or(HANG_GUARD, Duration::from_millis)
}

/// Waits for `future`. `fact` is the id that the violation carries (`hang.answer`), and `what`
/// names what the case waits for ("the whole answer to client a").
///
/// # Errors
/// After the hang guard: the requirement is violated by a hang, and `future` is dropped.
pub async fn guard<T>(
    fact: &str,
    what: &str,
    future: impl Future<Output = T>,
) -> Result<T, Failure> {
    guard_with(fact, what, future, || "nothing came".to_string()).await
}

/// Waits like [`guard`]. When the guard fires, `observed` gives what has been seen until then
/// ("2 of 4").
///
/// # Errors
/// As [`guard`].
pub async fn guard_with<T>(
    fact: &str,
    what: &str,
    future: impl Future<Output = T>,
    observed: impl FnOnce() -> String,
) -> Result<T, Failure> {
    guard_for(hang_guard(), fact, what, future, observed).await
}

async fn guard_for<T>(
    bound: Duration,
    fact: &str,
    what: &str,
    future: impl Future<Output = T>,
    observed: impl FnOnce() -> String,
) -> Result<T, Failure> {
    // not `tokio::time::timeout`: its timer waits for a share of the task's budget, which a busy
    // neighbour can use up forever
    let end = pin!(unconstrained(tokio::time::sleep(bound)));
    match select(pin!(future), end).await {
        Either::Left((value, _)) => Ok(value),
        Either::Right(_) => Err(Failure::Violated {
            fact: fact.to_string(),
            expected: what.to_string(),
            observed: format!(
                "{} within the hang guard of {} ms",
                observed(),
                bound.as_millis()
            ),
            mode: FailureMode::Hang,
        }),
    }
}

/// The time between two entries of a tape; zero if `later` is the earlier one.
pub fn gap(earlier: &Entry, later: &Entry) -> Duration {
    later.at().saturating_sub(earlier.at())
}

/// Checks a lower bound: `gap` is at least `bound`, but for the rounding of timers.
///
/// This is safe under any load if the gap begins at a cause and ends at its effect: `ClientSent`
/// and `AnswerSent` of [`crate::tape::Event`] are recorded before the bytes are written, and
/// `ClientAnswered`, `RequestRead` and `PeerClosed` after they came.
///
/// # Errors
/// A violation that names both values.
pub fn at_least(fact: &str, what: &str, gap: Duration, bound: Duration) -> CaseResult {
    if gap + TICK >= bound {
        return Ok(());
    }
    Err(Failure::Violated {
        fact: fact.to_string(),
        expected: format!("{what} after {} ms at the earliest", bound.as_millis()),
        observed: format!("{:.1} ms", gap.as_secs_f64() * 1_000.0),
        mode: FailureMode::Visible,
    })
}

/// Waits for the time `every`: the pace of a plan, a dribbling client or a slow reader. It is never
/// a way to wait for a fact. Cancel safe.
pub async fn pace(every: Duration) {
    tokio::time::sleep(every).await;
}

/// Calls `probe` every few milliseconds until it has a value, for facts of the system that notify
/// nobody, such as a socket's queue. It waits forever, so callers add a guard or a bound. Cancel
/// safe.
pub async fn poll_until<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(value) = probe() {
            return value;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// Makes an exchange every few milliseconds until it shows the fact (`Some`), for facts that nobody
/// reports, such as a dependency that is back. `what` names the fact in the words of the
/// requirement.
///
/// # Errors
/// The first failure of an exchange; after the hang guard, a violation by a hang.
pub async fn converge<T, F>(
    fact: &str,
    what: &str,
    mut exchange: impl FnMut() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<Option<T>, Failure>>,
{
    let again = async {
        loop {
            if let Some(fact) = exchange().await? {
                return Ok(fact);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    guard_with(fact, what, again, || "no exchange showed it".to_string()).await?
}

/// Waits until `probe` has given the same value for a third of a second, and returns it. This is
/// safe where more load can only make the value smaller, as with bytes that a gateway takes. Cancel
/// safe.
pub async fn settled<T: PartialEq>(mut probe: impl FnMut() -> T) -> T {
    let mut value = probe();
    let mut same = 0;
    while same < 33 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = probe();
        same = if now == value { same + 1 } else { 0 };
        value = now;
    }
    value
}

/// The value of `future` if it has one within `bound`. It is for the harness's own machinery
/// (stubs, faults, databases, clean-up), whose failure is not a verdict. Drops `future` at the
/// bound.
pub(crate) async fn bounded<T>(bound: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(bound, future).await.ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn the_guard_names_what_was_awaited_and_what_was_seen() {
        let hung = guard_for(
            Duration::from_millis(1),
            "hang.requests",
            "four requests",
            std::future::pending::<()>(),
            || "2 of 4".into(),
        )
        .await;
        let Err(Failure::Violated {
            fact,
            expected,
            observed,
            mode,
        }) = hung
        else {
            unreachable!("{hung:?}")
        };
        assert_eq!(
            (fact.as_str(), expected.as_str(), mode),
            ("hang.requests", "four requests", FailureMode::Hang)
        );
        assert_eq!(observed, "2 of 4 within the hang guard of 1 ms");
    }

    #[test]
    fn a_lower_bound_allows_for_the_rounding_of_timers_only() {
        let ms = Duration::from_millis;
        assert!(at_least("retry.gap", "the retry", ms(99), ms(100)).is_ok());
        assert!(at_least("retry.gap", "the retry", ms(500), ms(100)).is_ok());
        let early = at_least("retry.gap", "the retry", ms(90), ms(100)).unwrap_err();
        assert_eq!(
            early.to_string(),
            "expected the retry after 100 ms at the earliest; observed 90.0 ms"
        );
    }
}
