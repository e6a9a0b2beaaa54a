//! The outcome of a query: one total function from what the steps did to what the reader is told.
//!
//! **Confidence** is a number from 0 to 1, the sum of six parts, each of them 0 when its step failed, was not started, or had nothing
//! to work on:
//!
//! | part | weight | 1 means |
//! |---|---|---|
//! | entities | 0.05 | found by a model |
//! | retrieval | 0.30 | there is a source, and every lane answered (the share of the lanes that did) |
//! | fact check | 0.20 | the share of claims that are supported |
//! | synthesis | 0.25 | written from sources (without sources: 0.4) |
//! | citation | 0.10 | the share of citations that passed the gate |
//! | review | 0.10 | the mean of its scores (support counts 0 without sources) |
//!
//! A failure can therefore never raise it: losing a step counts as the worst that the step could have said. A query without an
//! answer has confidence 0. After an extractive answer citation and review have nothing to do, and count 0.

use serde::Serialize;

use crate::orchestrator::agents::citation::{self, Attribution, Citation, Dropped, Marked, State};
use crate::orchestrator::agents::entities::{self, Entity};
use crate::orchestrator::agents::fact_check::{Claim, Verdict};
use crate::orchestrator::agents::retrieval::Evidence;
use crate::orchestrator::agents::review::Scores;
use crate::orchestrator::agents::{DECLARATIONS, Policy, Source, synthesis};
use crate::orchestrator::step::Step;

/// Why a step gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It was asked and failed.
    Error,
    /// It did not end in its share of the time.
    Timeout,
    /// It answered with what is no answer: not of the schema, empty, out of bounds.
    InvalidOutput,
    /// Every candidate's circuit breaker is open: nothing was sent.
    BreakerOpen,
    /// Less time was left than it needs: nothing was sent.
    Skipped,
    /// The database cannot be reached, has no free connection, or takes no writes.
    StoreUnavailable,
}

impl Cause {
    /// Its name in documents and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::InvalidOutput => "invalid_output",
            Self::BreakerOpen => "breaker_open",
            Self::Skipped => "skipped",
            Self::StoreUnavailable => "store_unavailable",
        }
    }
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub enum StepResult<T> {
    /// It found this.
    Done(T),
    /// It failed.
    Failed(Cause),
    /// It had nothing to work on: no fault of its own.
    NotApplicable,
}

impl<T> StepResult<T> {
    /// What it found.
    pub fn found(&self) -> Option<&T> {
        match self {
            Self::Done(found) => Some(found),
            Self::Failed(_) | Self::NotApplicable => None,
        }
    }

    /// Why it failed.
    pub fn failed(&self) -> Option<Cause> {
        match self {
            Self::Failed(cause) => Some(*cause),
            Self::Done(_) | Self::NotApplicable => None,
        }
    }
}

/// What every step did.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// Entity extraction.
    pub entities: StepResult<Vec<Entity>>,
    /// Retrieval.
    pub retrieval: StepResult<Evidence>,
    /// Fact check.
    pub fact_check: StepResult<Vec<Claim>>,
    /// Synthesis.
    pub synthesis: StepResult<String>,
    /// Citation.
    pub citation: StepResult<Vec<Attribution>>,
    /// Review.
    pub review: StepResult<Scores>,
}

/// How a query ended. Later is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Every step did its part.
    Complete,
    /// There is an answer; `degraded` says what it lacks.
    Degraded,
    /// There is no answer.
    Failed,
    /// The client left before there was one.
    Cancelled,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Complete,
        Self::Degraded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Its name in documents, listings and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One thing that an answer lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Degradation {
    /// The step that failed.
    pub step: Step,
    /// Why.
    pub cause: Cause,
    /// What it costs the reader.
    pub effect: String,
}

/// What the reader is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// The answer, bad marks removed.
    pub answer: Option<String>,
    /// See the module.
    pub confidence: f64,
    /// Fact check found claims, and every one of them is supported.
    pub verified: bool,
    /// The passages.
    pub sources: Vec<Source>,
    /// The citations that passed the gate.
    pub citations: Vec<Citation>,
    /// The citations that did not.
    pub dropped: Dropped,
    /// What the question names.
    pub entities: Vec<Entity>,
    /// What was checked.
    pub claims: Vec<Claim>,
    /// The review's scores.
    pub review: Option<Scores>,
    /// What the answer lacks, in the order of the plan.
    pub degraded: Vec<Degradation>,
}

/// Builds the outcome. Total: every combination of results has one.
#[must_use]
pub fn conclude(question: &str, results: Results) -> Outcome {
    let sources = results
        .retrieval
        .found()
        .map(|evidence| evidence.sources.clone())
        .unwrap_or_default();
    let written = Written::of(&results.synthesis, &sources);
    let degraded = degradations(
        &results,
        if written.answer.is_some() {
            Answered::Yes
        } else {
            Answered::No
        },
    );
    let (citations, dropped) = citations(&results.citation, &written, &sources);
    let confidence = if written.answer.is_some() {
        confidence(&results, &sources, &citations, dropped)
    } else {
        0.0
    };
    let required = DECLARATIONS
        .iter()
        .filter(|declaration| declaration.policy == Policy::Required);
    let lacks_required = required
        .into_iter()
        .any(|declaration| degraded.iter().any(|lost| lost.step == declaration.step));
    let status = match (&written.answer, degraded.is_empty()) {
        (None, _) => Status::Failed,
        _ if lacks_required => Status::Failed,
        (Some(_), true) => Status::Complete,
        (Some(_), false) => Status::Degraded,
    };
    let claims = results.fact_check.found().cloned().unwrap_or_default();
    Outcome {
        status,
        confidence,
        verified: !claims.is_empty()
            && claims
                .iter()
                .all(|claim| claim.verdict == Verdict::Supported),
        sources,
        citations,
        dropped,
        entities: entities_or_rules(question, &results.entities),
        claims,
        review: results.review.found().copied(),
        degraded,
        answer: written.answer,
    }
}

/// The entities found by the model, or by rules where it failed.
#[must_use]
pub fn entities_or_rules(question: &str, did: &StepResult<Vec<Entity>>) -> Vec<Entity> {
    did.found()
        .cloned()
        .unwrap_or_else(|| entities::by_rule(question))
}

struct Written {
    answer: Option<String>,
    marked: Vec<u32>,
    removed: u32,
    quotes: Vec<(u32, String)>,
}

impl Written {
    fn of(synthesis: &StepResult<String>, sources: &[Source]) -> Self {
        if let Some(answer) = synthesis.found() {
            let Marked {
                answer,
                sources: marked,
                removed,
            } = citation::marks(answer, sources);
            return Self {
                answer: Some(answer),
                marked,
                removed,
                quotes: Vec::new(),
            };
        }
        let quotes = synthesis::extract(sources);
        let text: Vec<_> = quotes
            .iter()
            .map(|(n, quote)| format!("{quote} [{n}]"))
            .collect();
        Self {
            answer: (!quotes.is_empty()).then(|| text.join("\n\n")),
            marked: Vec::new(),
            removed: 0,
            quotes,
        }
    }
}

fn citations(
    citation: &StepResult<Vec<Attribution>>,
    written: &Written,
    sources: &[Source],
) -> (Vec<Citation>, Dropped) {
    let (kept, mut dropped) = match citation {
        StepResult::Done(attributions) => citation::gate(attributions, sources),
        StepResult::Failed(_) | StepResult::NotApplicable => {
            let quoted = written.quotes.iter().map(|(source, quote)| Citation {
                source: *source,
                quote: Some(quote.clone()),
                state: State::Found,
            });
            let marked = written.marked.iter().map(|source| Citation {
                source: *source,
                quote: None,
                state: State::Unchecked,
            });
            (quoted.chain(marked).collect(), Dropped::default())
        }
    };
    dropped.unknown_source += written.removed;
    (kept, dropped)
}

fn degradations(results: &Results, answered: Answered) -> Vec<Degradation> {
    let failed = [
        (Step::Entities, results.entities.failed()),
        (Step::Retrieval, results.retrieval.failed()),
        (Step::FactCheck, results.fact_check.failed()),
        (Step::Synthesis, results.synthesis.failed()),
        (Step::Citation, results.citation.failed()),
        (Step::Review, results.review.failed()),
    ];
    let mut degraded: Vec<_> = failed
        .into_iter()
        .filter_map(|(step, cause)| Some(degradation(step, cause?, answered)))
        .collect();
    let lost = results
        .retrieval
        .found()
        .map(|evidence| evidence.lost.as_slice())
        .unwrap_or_default();
    degraded.extend(lost.iter().map(|(lane, cause)| Degradation {
        step: Step::Retrieval,
        cause: *cause,
        effect: format!(
            "The {lane} lane could not be searched: passages that only it would find are missing."
        ),
    }));
    degraded.sort_by_key(|degradation| degradation.step);
    degraded
}

/// Whether there is an answer that could lack something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// There is one.
    Yes,
    /// There is none.
    No,
}

/// A degradation with the effect that the step declares.
#[must_use]
pub fn degradation(step: Step, cause: Cause, answered: Answered) -> Degradation {
    let declared = DECLARATIONS
        .iter()
        .find(|declaration| declaration.step == step);
    let effect = declared.map(|declaration| match answered {
        Answered::Yes => declaration.effect,
        Answered::No => declaration.unanswered,
    });
    Degradation {
        step,
        cause,
        effect: effect.unwrap_or_default().to_owned(),
    }
}

fn confidence(
    results: &Results,
    sources: &[Source],
    citations: &[Citation],
    dropped: Dropped,
) -> f64 {
    let grounded = !sources.is_empty();
    let entities = if results.entities.found().is_some() {
        1.0
    } else {
        0.0
    };
    let retrieval = results
        .retrieval
        .found()
        .filter(|_| grounded)
        .map_or(0.0, |evidence| {
            share(evidence.lanes - evidence.lost.len(), evidence.lanes)
        });
    let fact_check = results.fact_check.found().map_or(0.0, |claims| {
        share(
            claims
                .iter()
                .filter(|claim| claim.verdict == Verdict::Supported)
                .count(),
            claims.len(),
        )
    });
    let synthesis = match results.synthesis {
        StepResult::Done(_) if grounded => 1.0,
        StepResult::Done(_) => 0.4,
        StepResult::Failed(_) | StepResult::NotApplicable => 0.0,
    };
    let citation = results.citation.found().map_or(0.0, |_| {
        share(citations.len(), citations.len() + dropped.total() as usize)
    });
    let review = results.review.found().map_or(0.0, |scores| {
        (scores.coherence + scores.relevance + if grounded { scores.support } else { 0.0 }) / 3.0
    });
    let sum = 0.05 * entities
        + 0.30 * retrieval
        + 0.20 * fact_check
        + 0.25 * synthesis
        + 0.10 * citation
        + 0.10 * review;
    (sum * 1000.0).round() / 1000.0
}

#[allow(clippy::cast_precision_loss, reason = "counts of claims and lanes")]
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::store::Passage;

    /// Every combination of what six steps can have done: found something, failed, had nothing to do.
    fn all_results() -> impl Iterator<Item = [u8; 6]> {
        (0..729_u32).map(|number| {
            std::array::from_fn(|step| {
                u8::try_from(number / 3_u32.pow(u32::try_from(step).unwrap_or(0)) % 3).unwrap_or(0)
            })
        })
    }

    fn did<T>(kind: u8, found: T) -> StepResult<T> {
        match kind {
            0 => StepResult::Done(found),
            1 => StepResult::Failed(Cause::Error),
            _ => StepResult::NotApplicable,
        }
    }

    fn results(kinds: [u8; 6]) -> Results {
        let passage = Passage {
            document: Uuid::nil(),
            title: "t".into(),
            text: "Radium glows.".into(),
            score: 1.0,
        };
        let claim = |verdict| Claim {
            claim: "c".into(),
            source: 1,
            verdict,
            quote: "Radium".into(),
        };
        let attribution = |source| Attribution {
            sentence: 1,
            source,
            quote: "Radium glows.".into(),
        };
        Results {
            entities: did(kinds[0], Vec::new()),
            retrieval: did(
                kinds[1],
                Evidence {
                    sources: vec![Source { n: 1, passage }],
                    lanes: 1,
                    lost: Vec::new(),
                },
            ),
            fact_check: did(
                kinds[2],
                vec![claim(Verdict::Supported), claim(Verdict::Unclear)],
            ),
            synthesis: did(kinds[3], "It glows [1][4].".to_owned()),
            citation: did(kinds[4], vec![attribution(1), attribution(2)]),
            review: did(
                kinds[5],
                Scores {
                    coherence: 0.5,
                    relevance: 0.5,
                    support: 0.5,
                },
            ),
        }
    }

    #[test]
    fn every_combination_has_an_honest_outcome() {
        for kinds in all_results() {
            let outcome = conclude("What glows?", results(kinds));
            assert_eq!(
                outcome.status == Status::Failed,
                outcome.answer.is_none(),
                "{kinds:?}"
            );
            assert_eq!(
                outcome.status == Status::Complete,
                outcome.answer.is_some() && outcome.degraded.is_empty(),
                "{kinds:?}"
            );
            assert_eq!(
                outcome.degraded.len(),
                kinds.iter().filter(|kind| **kind == 1).count(),
                "each failure is told once: {kinds:?}"
            );
            assert!((0.0..=1.0).contains(&outcome.confidence), "{kinds:?}");
            assert!(
                outcome.citations.iter().all(|citation| outcome
                    .sources
                    .iter()
                    .any(|source| source.n == citation.source)),
                "{kinds:?}"
            );
            assert!(!outcome.verified, "one claim is unclear: {kinds:?}");
        }
    }

    #[test]
    fn degr_09_losing_any_step_of_any_combination_improves_nothing() {
        for kinds in all_results() {
            let before = conclude("What glows?", results(kinds));
            for step in 0..6 {
                let mut lost = kinds;
                lost[step] = 1;
                let after = conclude("What glows?", results(lost));
                assert!(
                    after.status >= before.status && after.confidence <= before.confidence,
                    "{kinds:?} without {step}"
                );
            }
        }
    }
}
