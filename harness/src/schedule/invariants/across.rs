//! The invariants over all exchanges together: the rest of a breaker and the retry budget.

use super::super::observation::Observation;
use super::super::{Action, Schedule};

/// Whether every gateway takes the action at once for a failure of the provider.
fn is_clear_failure(action: Action) -> bool {
    matches!(
        action,
        Action::Status {
            status: 500..=599,
            ..
        } | Action::Refuse
            | Action::Reset
    )
}

/// Checks that a candidate is not asked before the cool-down is over, after as many clear failures
/// in a row as open a breaker. A half-open breaker with several probes may wait for the failure of
/// all of them before it opens again; such a breaker is judged until it may have opened once. A
/// failure whose client may have left before it was read opens such a breaker or does not.
pub(super) fn breaker_rests(schedule: &Schedule, seen: &Observation) -> Result<(), String> {
    let several_probes = schedule.settings.half_open_probes > 1;
    for candidate in 0..schedule.candidates.len() {
        let (mut in_a_row, mut rests_until, mut certain) = (0, 0, true);
        let calls = seen
            .exchanges
            .iter()
            .flat_map(|exchange| exchange.calls.iter().map(move |call| (exchange, call)));
        for (exchange, call) in calls.filter(|(_, call)| call.candidate == candidate) {
            // a millisecond for rounding
            if call.at_ms + 1 < rests_until {
                return Err(format!(
                    "p{} was asked at {} ms, its breaker was open until {rests_until} ms",
                    candidate + 1,
                    call.at_ms
                ));
            }
            let action = schedule.action(candidate, call.call);
            in_a_row = match is_clear_failure(action) {
                // the client may have left before the gateway had read the answer
                true if exchange.ends.is_empty() => {
                    certain &= !several_probes;
                    in_a_row
                }
                true => in_a_row + 1,
                false => {
                    certain &= !several_probes || action == Action::Answer;
                    0
                }
            };
            if certain && in_a_row >= schedule.settings.failure_threshold {
                rests_until = call.at_ms + schedule.settings.cool_down_ms;
                certain = !several_probes;
            }
        }
    }
    Ok(())
}

/// Checks the retry budget. Retries that were decided and made within nine seconds are surely
/// counted together, and requests of the ten seconds before them may allow them.
pub(super) fn within_budget(schedule: &Schedule, seen: &Observation) -> Result<(), String> {
    let settings = &schedule.settings;
    for candidate in 0..schedule.candidates.len() {
        let mut requests = Vec::new();
        // a retry is decided between the call before it and itself
        let mut retries: Vec<(u64, u64)> = Vec::new();
        for exchange in &seen.exchanges {
            let calls: Vec<u64> = exchange
                .calls
                .iter()
                .filter(|call| call.candidate == candidate)
                .map(|call| call.at_ms)
                .collect();
            requests.extend(calls.first().copied());
            retries.extend(calls.windows(2).map(|pair| (pair[0], pair[1])));
        }
        for (from, _) in &retries {
            let until = from + 9_000;
            let counted = retries
                .iter()
                .filter(|(decided, made)| decided >= from && *made < until)
                .count();
            let allowing = requests
                .iter()
                .filter(|at| **at + 11_000 > *from && **at < until)
                .count();
            let allowed = allowing as f64 * f64::from(settings.budget_percent) / 100.0
                + f64::from(settings.budget_floor);
            if counted as f64 > allowed {
                return Err(format!(
                    "p{}: {counted} retries within nine seconds, the budget allows {allowed}",
                    candidate + 1
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Invariant, Violation, check_only};
    use super::*;
    use crate::schedule::observation::{Call, End, Exchange};

    /// Makes `count` requests, a millisecond apart, that p1 answers with 503, where three failures
    /// open its breaker. All have an end but those in `without_end`.
    fn requests(count: usize, without_end: &[usize], probes: u32) -> Result<(), Violation> {
        let mut schedule = Schedule::from_json(crate::schedule::tests::PLAN).unwrap();
        schedule.settings.half_open_probes = probes;
        schedule.candidates[0].calls = vec![
            Action::Status {
                status: 503,
                retry_after_s: None
            };
            count
        ];
        schedule.requests = vec![schedule.requests[0]; count];
        let exchange = |n: usize| Exchange {
            ends: if without_end.contains(&n) {
                Vec::new()
            } else {
                vec![End::Error]
            },
            calls: vec![Call {
                candidate: 0,
                call: n,
                at_ms: n as u64,
            }],
            ..Exchange::default()
        };
        let seen = Observation {
            exchanges: (0..count).map(exchange).collect(),
            ..Observation::default()
        };
        check_only(&[Invariant::BreakerRests], &schedule, &seen)
    }

    #[test]
    fn a_failure_that_the_gateway_may_not_have_read_opens_no_breaker() {
        assert!(
            requests(4, &[], 1)
                .unwrap_err()
                .what
                .contains("its breaker was open")
        );
        assert_eq!(requests(4, &[1], 1), Ok(()));
    }

    /// A breaker that such a failure has opened may be half-open with one probe left, when the
    /// failures that are certain are enough to open a closed breaker.
    #[test]
    fn with_several_probes_nothing_is_certain_after_a_failure_that_may_not_have_been_read() {
        assert!(requests(5, &[], 2).is_err());
        assert_eq!(requests(5, &[0], 2), Ok(()));
        assert!(requests(5, &[0], 1).is_err());
    }
}
