//! No case accuses a gateway of what it does not have to do.
//!
//! Correct gateways are examined that do more than what is configured: they retry, or they leave a
//! provider alone after each failure. And where a gateway has one bug, the cases that are about it
//! may mind, and no others.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use gauntlet_harness::case::{Case, Failure, Verdict};
use gauntlet_harness::database::{Database, Require};
use gauntlet_harness::gate::with_hang_guard;
use gauntlet_harness::runner::examine;
use gauntlet_harness::spec::DatabaseNeed;
use gauntlet_harness::subject::{Capability, Target};
use gauntlet_suites::cases;
use gauntlet_suites::defect::Defect;
use gauntlet_suites::reference::Reference;

/// How many cases examine the gateway at once.
const AT_ONCE: usize = 16;

/// Examines a gateway by every such case that needs no database; returns the ids of the cases that
/// passed, and those with another verdict.
async fn examined(
    reference: Reference,
    such: impl Fn(&Case) -> bool,
) -> (Vec<&'static str>, Vec<(&'static str, Verdict)>) {
    let target: Arc<dyn Target> = Arc::new(reference);
    let without_database = |case: &Case| (case.spec)().database == DatabaseNeed::None;
    let cases = cases::all().into_iter().filter(without_database);
    let cases = cases.filter(such);
    let outcomes: Vec<_> = futures::stream::iter(cases)
        .map(|case| {
            let target = Arc::clone(&target);
            async move { (case, examine(&target, &case, None).await.verdict) }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut judged = Vec::new();
    for (case, verdict) in outcomes {
        // as in a run, what does not pass is examined once more, with nothing else beside it here:
        // a busy machine makes every answer later
        let verdict = match verdict {
            Verdict::Passed | Verdict::NotSupported { .. } => verdict,
            _ => examine(&target, &case, None).await.verdict,
        };
        judged.push((case.id, verdict));
    }
    let (passed, other): (Vec<_>, Vec<_>) = judged
        .into_iter()
        .partition(|(_, verdict)| *verdict == Verdict::Passed);
    (passed.into_iter().map(|(id, _)| id).collect(), other)
}

/// The verdicts that speak against the gateway.
fn accusations<'a>(judged: &'a [(&'static str, Verdict)]) -> Vec<&'a (&'static str, Verdict)> {
    let accuses = |verdict: &Verdict| {
        !matches!(
            verdict,
            Verdict::Passed | Verdict::NotSupported { .. } | Verdict::NotExercised { .. }
        )
    };
    let judged = judged.iter();
    judged.filter(|(_, verdict)| accuses(verdict)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_correct_gateway_exercises_every_case() {
    let (_, other) = examined(Reference::new(None), |_| true).await;
    assert!(other.is_empty(), "{other:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_retries_built_in_is_accused_of_nothing() {
    let (passed, other) = examined(Reference::with_built_in_retries(), |_| true).await;
    let accused = accusations(&other);
    assert!(accused.is_empty(), "{accused:#?}");
    for id in [
        "FALL-01", "FALL-02", "FALL-03", "FALL-05", "FALL-08", "TIME-02", "BRKR-01",
    ] {
        assert!(passed.contains(&id), "{id} is not among {passed:?}");
    }
    for case in cases::all() {
        assert!(
            !passed.contains(&case.id) || !case.needs.contains(&Capability::Retry),
            "{} passed although the gateway declares no retries",
            case.id
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_leaves_a_provider_alone_after_a_failure_is_accused_of_nothing() {
    let (passed, other) = examined(Reference::with_a_rest_after_each_failure(), |_| true).await;
    let accused = accusations(&other);
    assert!(accused.is_empty(), "{accused:#?}");
    for id in ["FALL-01", "FALL-02", "FALL-03", "FALL-05", "TIME-09"] {
        assert!(passed.contains(&id), "{id} is not among {passed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_retries_that_are_declared_are_counted() {
    let of_attempts = |case: &Case| ["FALL-01", "FALL-02", "TIME-02"].contains(&case.id);
    let declared = |most: u32| {
        Reference::with_built_in_retries().declaring(|always| always.retries_built_in = most)
    };
    let (passed, other) = examined(declared(2), of_attempts).await;
    assert!(other.is_empty() && passed.len() == 3, "{other:#?}");
    let (_, other) = examined(declared(1), of_attempts).await;
    let accused: Vec<_> = other.iter().map(|(id, _)| *id).collect();
    assert!(accused.contains(&"FALL-01"), "{other:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_declares_a_rest_after_each_failure_is_held_to_no_second_attempt() {
    let declared = [Capability::Retry, Capability::Breaker];
    let rests = Reference::with_a_rest_after_each_failure()
        .with(&declared)
        .declaring(|always| always.benches_after_one_failure = true);
    let such = |case: &Case| {
        [
            "RETRY-01", "RETRY-04", "BRKR-01", "BRKR-04", "BRKR-05", "FALL-01",
        ]
        .contains(&case.id)
    };
    let (mut passed, other) = examined(rests, such).await;
    passed.sort_unstable();
    assert_eq!(
        passed,
        ["BRKR-01", "BRKR-04", "BRKR-05", "FALL-01"],
        "{other:#?}"
    );
    assert!(
        other.iter().all(|(id, _)| id.starts_with("RETRY")),
        "{other:#?}"
    );
    assert!(accusations(&other).is_empty(), "{other:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_left_alone_for_a_while_is_not_forgotten() {
    let choice = "sqlite".parse().unwrap();
    let resolved = Database::resolve(&choice, Require::Nothing).await.unwrap();
    let rests = Reference::with_a_rest_after_each_failure();
    let rests = rests.without(&[Capability::Query, Capability::Store]);
    let target: Arc<dyn Target> = Arc::new(rests);
    let case = cases::all().into_iter().find(|case| case.id == "DEGR-11");
    let outcome = examine(&target, &case.unwrap(), Some(&resolved.database)).await;
    resolved.database.stop().await;
    assert_eq!(outcome.verdict, Verdict::Passed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_that_never_opens_is_charged_once() {
    let target: Arc<dyn Target> = Arc::new(Reference::new(Some(Defect::BreakerNeverOpens)));
    let of_breakers = cases::all()
        .into_iter()
        // BRKR-08 is about a breaker that does not open
        .filter(|case| case.id.starts_with("BRKR-") && case.id != "BRKR-08");
    let outcomes: Vec<_> = futures::stream::iter(of_breakers)
        .map(|case| {
            let target = Arc::clone(&target);
            // the breaker is awaited for as long as a hang takes
            with_hang_guard(Duration::from_secs(4), async move {
                (case.id, examine(&target, &case, None).await.verdict)
            })
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let accused = accusations(&outcomes);
    assert!(matches!(*accused, [("BRKR-01", _)]), "{outcomes:#?}");
    let exercised = |verdict: &Verdict| matches!(verdict, Verdict::NotExercised { .. });
    assert_eq!(
        outcomes
            .iter()
            .filter(|(_, verdict)| exercised(verdict))
            .count(),
        6
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn done_after_an_error_event_is_strm_12_and_nothing_else() {
    let (_, other) = examined(Reference::new(Some(Defect::SendsDoneAfterError)), |_| true).await;
    let accused: Vec<_> = other.iter().map(|(id, _)| *id).collect();
    assert_eq!(accused, ["STRM-12"], "{other:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_is_judged_by_the_coming_of_the_error_and_not_by_its_status() {
    let same_status = Reference::new(Some(Defect::EveryErrorIs500));
    let of_timeouts = |case: &Case| case.id.starts_with("TIME-");
    let (passed, other) = examined(same_status, of_timeouts).await;
    assert!(other.is_empty(), "{other:#?}");
    assert!(passed.contains(&"TIME-02") && passed.contains(&"TIME-09"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_never_retries_is_charged_once() {
    let retry = |case: &Case| case.id.starts_with("RETRY-");
    let (_, other) = examined(Reference::new(Some(Defect::NeverRetries)), retry).await;
    let accused = accusations(&other);
    assert!(matches!(*accused, [("RETRY-01", _)]), "{other:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_fallback_is_not_accused_of_what_it_answers_after_all_candidates() {
    let all_failed = |case: &Case| case.id == "FALL-05";
    let (_, other) = examined(Reference::new(Some(Defect::NoFallback)), all_failed).await;
    assert!(
        matches!(other.as_slice(), [(_, Verdict::NotExercised { .. })]),
        "{other:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_violation_is_reported_although_the_next_row_is_not_exercised() {
    for (defect, id, expected) in [
        (Defect::PassesProviderAuth, "ERR-02", "plain.status"),
        (
            Defect::SendsDoneAfterError,
            "STRM-12",
            "stream.done_after_error",
        ),
    ] {
        let rests = Reference::with_a_rest_after_each_failure().with_defect(defect);
        let target: Arc<dyn Target> = Arc::new(rests);
        let case = cases::all().into_iter().find(|case| case.id == id).unwrap();
        // shorter than the rest
        let guard = Duration::from_millis(800);
        let outcome = with_hang_guard(guard, examine(&target, &case, None)).await;
        let Verdict::Failed {
            failure: Failure::Violated { fact, observed, .. },
        } = outcome.verdict
        else {
            panic!("{id}: {:?}", outcome.verdict)
        };
        assert_eq!(fact, expected);
        assert!(
            observed.contains("the rest was not exercised"),
            "{observed}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_that_passes_once_for_each_attempt_built_in_is_no_default() {
    let repeats = Reference::with_built_in_retries()
        .with_defect(Defect::DeadlinePerRetry)
        .without(&[Capability::TotalDeadline])
        .declaring(|always| always.retries_built_in = 2);
    let target: Arc<dyn Target> = Arc::new(repeats);
    let case = cases::all().into_iter().find(|case| case.id == "TIME-07");
    // one request ends within it, and two do not
    let guard = Duration::from_millis(2_500);
    let outcome = with_hang_guard(guard, examine(&target, &case.unwrap(), None)).await;
    assert_eq!(outcome.verdict, Verdict::Passed);
}
