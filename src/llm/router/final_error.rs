//! The final error: which cause the client receives after every candidate has failed.

use std::collections::HashMap;
use std::time::Duration;

use crate::llm::cause::Cause;
use crate::llm::chat::{Attempt, Candidate, LlmFailure};

/// Sums up failed attempts in one failure.
pub(super) fn failure(attempts: Vec<Attempt>) -> LlmFailure {
    let cause = deciding_cause(&attempts);
    LlmFailure {
        cause,
        retry_after: if cause == Cause::Rejected {
            None
        } else {
            soonest(&attempts)
        },
        attempts,
    }
}

/// Decides the cause by the first rule that applies:
/// 1. No attempt was made: the deadline had passed at the start.
/// 2. A provider rejected the request: the request itself is wrong.
/// 3. Nothing was sent: shortage if any attempt failed so, else breaker open, else bulkhead full,
///    else unsupported.
/// 4. Every attempt that was sent hit a rate limit or a quota: rate limited if any attempt failed
///    so, else quota exhausted.
/// 5. Otherwise the cause of the last attempt that was sent decides.
fn deciding_cause(attempts: &[Attempt]) -> Cause {
    let causes: Vec<Cause> = attempts
        .iter()
        .filter_map(|attempt| attempt.error.as_ref())
        .map(|error| error.cause)
        .collect();
    let any = |wanted: Cause| causes.contains(&wanted);
    let sent: Vec<Cause> = causes
        .iter()
        .copied()
        .filter(|cause| cause.was_sent())
        .collect();
    match sent.last() {
        _ if any(Cause::Rejected) => Cause::Rejected,
        None if any(Cause::Shortage) => Cause::Shortage,
        None if any(Cause::BreakerOpen) => Cause::BreakerOpen,
        None if any(Cause::BulkheadFull) => Cause::BulkheadFull,
        None if any(Cause::Unsupported) => Cause::Unsupported,
        None => Cause::DeadlineExceeded,
        Some(_)
            if sent
                .iter()
                .all(|cause| matches!(cause, Cause::RateLimited | Cause::QuotaExhausted)) =>
        {
            if any(Cause::RateLimited) {
                Cause::RateLimited
            } else {
                Cause::QuotaExhausted
            }
        }
        Some(last) => *last,
    }
}

/// The time after which the first candidate can be asked again: the least of the waits that each
/// candidate asked for last.
fn soonest(attempts: &[Attempt]) -> Option<Duration> {
    let mut waits: HashMap<&Candidate, Duration> = HashMap::new();
    for attempt in attempts {
        match attempt.error.as_ref().and_then(|error| error.retry_after) {
            Some(wait) => waits.insert(&attempt.candidate, wait),
            None => waits.remove(&attempt.candidate),
        };
    }
    waits.into_values().min()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::llm::chat::{AttemptError, ErrorDetail};

    fn attempt(provider: &str, cause: Cause, retry_after: Option<u64>) -> Attempt {
        Attempt {
            candidate: Candidate {
                provider: provider.into(),
                model: "m".into(),
            },
            error: Some(AttemptError {
                cause,
                message: String::new(),
                status: None,
                retry_after: retry_after.map(Duration::from_secs),
                no_retry: false,
                detail: ErrorDetail::default(),
            }),
        }
    }

    use Cause::*;

    #[rstest]
    #[case::nothing_tried(&[], DeadlineExceeded)]
    #[case::one(&[ServerError], ServerError)]
    #[case::last_sent_decides(&[ServerError, FirstTokenTimeout], FirstTokenTimeout)]
    #[case::not_sent_does_not_decide(&[ServerError, BreakerOpen], ServerError)]
    #[case::not_found_does_not_stop_the_fallback(&[NotFound, ServerError], ServerError)]
    #[case::not_found_last(&[ServerError, NotFound], NotFound)]
    #[case::rejection_wins(&[RateLimited, Rejected], Rejected)]
    #[case::all_rate_limited(&[RateLimited, RateLimited], RateLimited)]
    #[case::rate_and_open(&[RateLimited, BreakerOpen], RateLimited)]
    #[case::rate_and_quota(&[RateLimited, QuotaExhausted], RateLimited)]
    #[case::all_quota(&[QuotaExhausted, QuotaExhausted], QuotaExhausted)]
    #[case::rate_then_broken(&[RateLimited, ServerError], ServerError)]
    #[case::all_open(&[BreakerOpen, BreakerOpen], BreakerOpen)]
    #[case::open_and_full(&[BreakerOpen, BulkheadFull], BreakerOpen)]
    #[case::short_and_open(&[BreakerOpen, Shortage], Shortage)]
    #[case::all_full(&[BulkheadFull, BulkheadFull], BulkheadFull)]
    #[case::full_and_unsupported(&[Unsupported, BulkheadFull], BulkheadFull)]
    #[case::unsupported(&[Unsupported], Unsupported)]
    fn the_deciding_cause(#[case] causes: &[Cause], #[case] expected: Cause) {
        let attempts = causes
            .iter()
            .map(|cause| attempt("p", *cause, None))
            .collect();
        assert_eq!(failure(attempts).cause, expected);
    }

    #[rstest]
    #[case::least_of_the_candidates(&[("a", Some(9)), ("b", Some(4))], Some(4))]
    #[case::last_of_one_candidate(&[("a", Some(1)), ("a", Some(9))], Some(9))]
    #[case::ignored_when_the_last_attempt_has_none(&[("a", Some(1)), ("a", None)], None)]
    #[case::unknown(&[("a", None)], None)]
    fn the_least_retry_after(#[case] waits: &[(&str, Option<u64>)], #[case] expected: Option<u64>) {
        let attempts = waits
            .iter()
            .map(|(provider, wait)| attempt(provider, RateLimited, *wait))
            .collect();
        assert_eq!(
            failure(attempts).retry_after,
            expected.map(Duration::from_secs)
        );
    }
}
