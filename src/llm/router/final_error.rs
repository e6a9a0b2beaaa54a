//! The final error: which of many causes the client is told.

use std::collections::HashMap;
use std::time::Duration;

use super::policy::was_sent;
use crate::llm::chat::{Attempt, Candidate, Cause, LlmFailure};

/// The failure that these attempts come to.
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

/// The rule, first match wins:
/// 1. nothing was tried: the deadline was over at the start;
/// 2. any rejection: that is about the request itself;
/// 3. nothing was sent: breaker open if any is, else bulkhead full if any is, else unsupported;
/// 4. everything sent was refused for rate or quota: rate limited if any may pass, else quota exhausted;
/// 5. else the cause of the last attempt that was sent.
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
        .filter(|cause| was_sent(*cause))
        .collect();
    match sent.last() {
        _ if any(Cause::Rejected) => Cause::Rejected,
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

/// The soonest time at which some candidate can be asked again: the least of what each asked for last.
fn soonest(attempts: &[Attempt]) -> Option<Duration> {
    let mut asked: HashMap<&Candidate, Duration> = HashMap::new();
    for attempt in attempts {
        match attempt.error.as_ref().and_then(|error| error.retry_after) {
            Some(wait) => asked.insert(&attempt.candidate, wait),
            None => asked.remove(&attempt.candidate),
        };
    }
    asked.into_values().min()
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
    #[case::not_found_is_not_the_clients(&[NotFound, ServerError], ServerError)]
    #[case::not_found_last(&[ServerError, NotFound], NotFound)]
    #[case::rejection_wins(&[RateLimited, Rejected], Rejected)]
    #[case::all_rate_limited(&[RateLimited, RateLimited], RateLimited)]
    #[case::rate_and_open(&[RateLimited, BreakerOpen], RateLimited)]
    #[case::rate_and_quota(&[RateLimited, QuotaExhausted], RateLimited)]
    #[case::all_quota(&[QuotaExhausted, QuotaExhausted], QuotaExhausted)]
    #[case::rate_then_broken(&[RateLimited, ServerError], ServerError)]
    #[case::all_open(&[BreakerOpen, BreakerOpen], BreakerOpen)]
    #[case::open_and_full(&[BreakerOpen, BulkheadFull], BreakerOpen)]
    #[case::all_full(&[BulkheadFull, BulkheadFull], BulkheadFull)]
    #[case::full_and_unsupported(&[Unsupported, BulkheadFull], BulkheadFull)]
    #[case::unsupported(&[Unsupported], Unsupported)]
    fn the_cause_that_decides(#[case] causes: &[Cause], #[case] told: Cause) {
        let attempts = causes
            .iter()
            .map(|cause| attempt("p", *cause, None))
            .collect();
        assert_eq!(failure(attempts).cause, told);
    }

    #[rstest]
    #[case::the_least_of_the_candidates(&[("a", Some(9)), ("b", Some(4))], Some(4))]
    #[case::the_last_of_one_candidate(&[("a", Some(1)), ("a", Some(9))], Some(9))]
    #[case::forgotten_when_the_last_says_nothing(&[("a", Some(1)), ("a", None)], None)]
    #[case::unknown(&[("a", None)], None)]
    fn the_soonest_return(#[case] asked: &[(&str, Option<u64>)], #[case] told: Option<u64>) {
        let attempts = asked
            .iter()
            .map(|(provider, wait)| attempt(provider, RateLimited, *wait))
            .collect();
        assert_eq!(failure(attempts).retry_after, told.map(Duration::from_secs));
    }
}
