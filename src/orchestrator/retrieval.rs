//! The step that finds passages. It is no agent: it asks every retriever for the raw question, so
//! that it needs no model and runs beside entity extraction. A retriever that fails costs its own
//! passages only.

use std::time::Duration;

use futures::future::BoxFuture;

use super::cause::{StepCause, StepFailure};
use super::outcome::{Contribution, Ended, Findings, StepResult};
use super::pipeline::{StepRun, settle};
use super::step::{Phase, Policy, StepDef, StepRow};
use crate::config::kinds::StepSettings;
use crate::retrieval::{Evidence, NoEvidence, find};

/// The row of the step.
pub(super) const ROW: StepRow = StepRow::new(
    StepDef {
        settings: StepSettings {
            name: "retrieval",
            cap: Duration::from_secs(15),
            minimum: Duration::from_millis(20),
            asks_model: false,
        },
        description: "Finds passages in the documents.",
        phase: Phase::Gather,
        policy: Policy::Degrade,
        weight: 30,
        effect: "No documents could be searched: the answer has no sources and rests on what the model \
             knows.",
        unanswered: "No documents could be searched: there is no passage that could stand in for an \
             answer.",
    },
    run,
);

fn run<'a>(run: &'a StepRun<'a>, _: &'a Findings) -> BoxFuture<'a, Ended> {
    Box::pin(async move {
        let found = match run.until() {
            Ok(until) => find(run.retrievers(), run.search(), until)
                .await
                .map_err(|none| failure(&none)),
            Err(skipped) => Err(skipped),
        };
        Ended::new(settle(found), merge)
    })
}

fn failure(none: &NoEvidence) -> StepFailure {
    let NoEvidence { retriever, error } = none;
    StepFailure::new(error.into(), format!("{retriever}: {error}"))
}

/// The step earns the share of the retrievers that answered, or nothing if they found no passage.
pub(super) fn merge(result: StepResult<Evidence>, findings: &mut Findings) -> Contribution {
    let StepResult::Done(Evidence {
        sources,
        retrievers,
        lost,
    }) = result
    else {
        return Contribution::default();
    };
    findings.sources = sources;
    let lacks = lost.iter().map(|(retriever, error)| {
        let effect = format!(
            "The {retriever} retriever could not be searched: passages that only it would find \
             are missing."
        );
        (StepCause::from(error), effect)
    });
    Contribution {
        lacks: lacks.collect(),
        ..if findings.is_grounded() {
            Contribution::of_count(retrievers - lost.len(), retrievers)
        } else {
            Contribution::default()
        }
    }
}
