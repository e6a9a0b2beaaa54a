//! The deadline of a request, and its split between candidates.
//!
//! A deadline is an instant. It is made once, handed down, and only ever shortened. With the time
//! `remaining` and `later` candidates behind the present one, the present candidate may run until
//!
//! ```text
//! now + max(remaining - reserve * later, remaining / (later + 1))
//! ```
//!
//! so each later candidate keeps its `reserve`. If the time does not suffice for that, the
//! remaining candidates share it equally. The last candidate always has the whole rest.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// The longest amount of time that is added to an instant, 30 years: longer than any request and
/// within the range of the clock.
pub(super) const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 3_600);

/// The instant `after` from `from`. An amount of time beyond 30 years is shortened to that.
pub fn saturating_add(from: Instant, after: Duration) -> Instant {
    from.checked_add(after.min(FOREVER)).unwrap_or(from)
}

/// Who set a request's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetBy {
    /// The configuration set the deadline.
    Configuration,
    /// The caller asked for less time than is configured, so a deadline that passes proves nothing
    /// about a provider.
    Caller,
}

/// The instant by which a request is answered, and who set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// The instant by which the request is answered.
    pub at: Instant,
    /// Who set the deadline.
    pub set_by: SetBy,
}

impl Deadline {
    /// Creates the deadline that a caller asked for.
    pub fn of_caller(at: Instant) -> Self {
        Self {
            at,
            set_by: SetBy::Caller,
        }
    }
}

/// The deadline of a request: `total` after its arrival, or the caller's deadline if that is
/// earlier.
pub fn request_deadline(arrived: Instant, total: Duration, caller: Option<Deadline>) -> Deadline {
    let configured = Deadline {
        at: saturating_add(arrived, total),
        set_by: SetBy::Configuration,
    };
    caller
        .filter(|caller| caller.at < configured.at)
        .unwrap_or(configured)
}

/// The instant until which a candidate may run that has `later` candidates behind it, by the
/// formula in the head of this module.
pub fn candidate_deadline(
    now: Instant,
    deadline: Instant,
    reserve: Duration,
    later: usize,
) -> Instant {
    saturating_add(
        now,
        share_of(deadline.saturating_duration_since(now), reserve, later),
    )
}

/// The share of `remaining` for a candidate that has `later` candidates behind it, by the same
/// formula.
pub fn share_of(remaining: Duration, reserve: Duration, later: usize) -> Duration {
    let later = u32::try_from(later).unwrap_or(u32::MAX);
    let beyond_reserves = remaining.saturating_sub(reserve.saturating_mul(later));
    let fair = remaining / later.saturating_add(1);
    beyond_reserves.max(fair)
}

/// The instant came before the work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

/// Runs `work` until `until`. Work that is ready at exactly that instant still counts.
///
/// Cancel safe if `work` is; on [`Elapsed`] the work is dropped.
///
/// # Errors
/// [`Elapsed`] if the work was not done by that instant.
pub async fn within<T>(until: Instant, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    tokio::time::timeout_at(until, work)
        .await
        .map_err(|_| Elapsed)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::only_one(10_000, 3_000, 0, 10_000)]
    #[case::one_reserve_kept(10_000, 3_000, 1, 7_000)]
    #[case::two_reserves_kept(10_000, 3_000, 2, 4_000)]
    #[case::too_little_for_two(6_000, 3_000, 2, 2_000)]
    #[case::equal_shares_when_the_reserve_exceeds_all(1_000, 3_000, 1, 500)]
    #[case::no_reserve(1_000, 0, 3, 1_000)]
    #[case::nothing_left(0, 3_000, 1, 0)]
    fn a_candidate_leaves_the_reserve_or_shares_equally(
        #[case] remaining: u64,
        #[case] reserve: u64,
        #[case] later: usize,
        #[case] share: u64,
    ) {
        let got = share_of(
            Duration::from_millis(remaining),
            Duration::from_millis(reserve),
            later,
        );
        assert_eq!(got, Duration::from_millis(share));
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_deadline_only_shortens() {
        let now = Instant::now();
        let total = Duration::from_secs(10);
        let configured = Deadline {
            at: now + total,
            set_by: SetBy::Configuration,
        };
        let caller = |seconds| Deadline::of_caller(now + Duration::from_secs(seconds));
        assert_eq!(request_deadline(now, total, None), configured);
        assert_eq!(request_deadline(now, total, Some(caller(3))), caller(3));
        assert_eq!(request_deadline(now, total, Some(caller(30))), configured);
    }

    #[tokio::test(start_paused = true)]
    async fn an_instant_beyond_the_clock_does_not_panic() {
        assert!(saturating_add(Instant::now(), Duration::MAX) > Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_dropped_at_its_instant() {
        let until = saturating_add(Instant::now(), Duration::from_millis(50));
        assert_eq!(
            within(until, std::future::pending::<()>()).await,
            Err(Elapsed)
        );
        assert!(Instant::now() >= until);
        assert_eq!(within(until, async { 7 }).await, Ok(7));
    }
}
