//! The outcome of a query: one total function from the results of the steps to what the reader
//! gets.
//!
//! A [`Draft`] takes the results in the order of the rows ([`Draft::merge`]) and becomes an
//! [`Outcome`] ([`Draft::conclude`]). Every combination of results has an outcome. What a result
//! adds is known to its step alone: an agent merges its own output into the [`Findings`], and later
//! steps read them.
//!
//! **Confidence** is a number from 0 to 1: each step earns a share, from 0 to 1, of the weight in
//! its row, and the sum is divided by the sum of all weights. Only a step that is done earns
//! anything, so that a failure can never raise the confidence. A query without an answer has
//! confidence 0.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::agents::citation::{Citation, Dropped};
use super::agents::entities::Entity;
use super::agents::fact_check::Claim;
use super::agents::review::Scores;
use super::cause::StepCause;
use super::step::{Policy, Step, StepDef};
use crate::llm::chat::Usage;
use crate::retrieval::Source;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// The step has a result.
    Ok,
    /// The step failed; `cause` gives the reason.
    Failed,
    /// The step was not started, because too little time was left.
    Skipped,
    /// The step had nothing to work on.
    NotApplicable,
}

/// The result of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum StepResult<T> {
    /// The step has an output.
    Done(T),
    /// The step has no output, for this reason.
    Failed(StepCause),
    /// The step had nothing to work on, which is no failure.
    NotApplicable,
}

impl<T> StepResult<T> {
    fn outcome(&self) -> StepOutcome {
        match self {
            Self::Done(_) => StepOutcome::Ok,
            Self::Failed(StepCause::Skipped) => StepOutcome::Skipped,
            Self::Failed(_) => StepOutcome::Failed,
            Self::NotApplicable => StepOutcome::NotApplicable,
        }
    }

    fn cause(&self) -> Option<StepCause> {
        match self {
            Self::Failed(cause) => Some(*cause),
            Self::Done(_) | Self::NotApplicable => None,
        }
    }
}

/// What a result contributes besides its findings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contribution {
    /// The share of the step's weight that is earned, from 0 to 1. It counts only if the step is
    /// done.
    pub share: f64,
    /// What the findings lack although the step is done: the cause, and its effect on the reader as
    /// one sentence.
    pub lacks: Vec<(StepCause, String)>,
}

impl Contribution {
    /// Builds the contribution of a result that earns `share` and lacks nothing.
    #[must_use]
    pub fn of(share: f64) -> Self {
        Self {
            share,
            lacks: Vec::new(),
        }
    }

    /// Builds the contribution of a result that earns `part` of `whole`, or nothing if `whole` is
    /// 0.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        reason = "counts of claims, citations and retrievers are small"
    )]
    pub fn of_count(part: usize, whole: usize) -> Self {
        Self::of(if whole == 0 {
            0.0
        } else {
            part as f64 / whole as f64
        })
    }
}

/// The result of any step, ready to be merged: its type is forgotten, its effect is not.
pub struct Ended {
    pub(super) outcome: StepOutcome,
    pub(super) cause: Option<StepCause>,
    pub(super) usage: Usage,
    merge: Box<dyn FnOnce(&mut Findings) -> Contribution + Send>,
}

impl Ended {
    /// Pairs a result with the function that merges it.
    pub fn new<T: Send + 'static>(
        result: StepResult<T>,
        merge: fn(StepResult<T>, &mut Findings) -> Contribution,
    ) -> Self {
        Self {
            outcome: result.outcome(),
            cause: result.cause(),
            usage: Usage::default(),
            merge: Box::new(move |findings| merge(result, findings)),
        }
    }

    /// Adds the tokens that the step used.
    #[must_use]
    pub fn using(self, usage: Usage) -> Self {
        Self { usage, ..self }
    }
}

/// An answer, and where its text is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A model wrote the answer for the question.
    Written(String),
    /// The answer quotes the best passages, because no model wrote one.
    Quoted(String),
}

impl Answer {
    /// Returns the text, wherever it is from.
    #[must_use]
    pub fn into_text(self) -> String {
        match self {
            Self::Written(text) | Self::Quoted(text) => text,
        }
    }
}

/// What the steps of a query have found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// The question, as the client sent it.
    pub question: String,
    /// What the question names.
    pub entities: Vec<Entity>,
    /// The passages, best first.
    pub sources: Vec<Source>,
    /// The claims that were checked against the passages.
    pub claims: Vec<Claim>,
    /// Whether there are claims and the passages support all of them.
    pub verified: bool,
    /// The answer; every `[n]` in it is the number of a source.
    pub answer: Option<Answer>,
    /// The citations that passed the gate.
    pub citations: Vec<Citation>,
    /// The citations that were refused by the gate.
    pub dropped: Dropped,
    /// The scores of the review.
    pub review: Option<Scores>,
    /// The outputs of steps that have no field of their own, by the name of the step.
    pub further: BTreeMap<&'static str, Value>,
}

impl Findings {
    /// Returns the findings of a query of which nothing but the question is known.
    #[must_use]
    pub fn of(question: &str) -> Self {
        Self {
            question: question.to_owned(),
            ..Self::default()
        }
    }

    /// Returns the answer if a model wrote it.
    #[must_use]
    pub fn written(&self) -> Option<&str> {
        match &self.answer {
            Some(Answer::Written(text)) => Some(text),
            Some(Answer::Quoted(_)) | None => None,
        }
    }

    /// Returns whether there is any source that an answer can rest on.
    #[must_use]
    pub fn is_grounded(&self) -> bool {
        !self.sources.is_empty()
    }
}

/// How a query ended. Later variants are worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// There is an answer and no step failed.
    Complete,
    /// There is an answer; `degraded` lists what it lacks.
    Degraded,
    /// There is no answer.
    Failed,
    /// The client left before there was an answer.
    Cancelled,
}

impl Status {
    /// Every status, the best first.
    pub const ALL: [Self; 4] = [
        Self::Complete,
        Self::Degraded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Returns the name of the status in documents, listings and metrics.
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
    /// The step that failed in whole or in part.
    pub step: Step,
    /// Why it failed.
    pub cause: StepCause,
    /// What the reader loses by it: one sentence.
    pub effect: String,
}

impl Degradation {
    /// Builds the degradation with the effect that the row of the step declares.
    #[must_use]
    pub fn of(step: Step, cause: StepCause, answered: Answered) -> Self {
        let StepDef {
            effect, unanswered, ..
        } = step.def();
        Self {
            step,
            cause,
            effect: match answered {
                Answered::Yes => *effect,
                Answered::No => *unanswered,
            }
            .to_owned(),
        }
    }
}

/// Whether there is an answer that could lack something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// There is an answer.
    Yes,
    /// There is no answer.
    No,
}

/// What the reader of a query gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How the query ended.
    pub status: Status,
    /// How sure the answer is, from 0 to 1.
    pub confidence: f64,
    /// What the answer lacks, in the order of the steps.
    pub degraded: Vec<Degradation>,
    /// What the steps found.
    pub findings: Findings,
}

/// An outcome in the making.
#[derive(Debug)]
pub struct Draft {
    findings: Findings,
    earned: f64,
    /// The failure of a whole step has no text of its own: its effect depends on whether there will
    /// be an answer.
    lacks: Vec<(Step, StepCause, Option<String>)>,
}

impl Draft {
    /// Starts the draft of a query.
    #[must_use]
    pub fn new(question: &str) -> Self {
        Self {
            findings: Findings::of(question),
            earned: 0.0,
            lacks: Vec::new(),
        }
    }

    /// Returns what the merged steps found.
    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Merges the result of `step`. The caller merges every step once, in the order of the rows.
    pub fn merge(&mut self, step: Step, ended: Ended) {
        let contribution = (ended.merge)(&mut self.findings);
        if ended.outcome == StepOutcome::Ok && contribution.share > 0.0 {
            self.earned += f64::from(step.def().weight) * contribution.share.min(1.0);
        }
        self.lacks
            .extend(ended.cause.map(|cause| (step, cause, None)));
        self.lacks.extend(
            contribution
                .lacks
                .into_iter()
                .map(|(cause, effect)| (step, cause, Some(effect))),
        );
    }

    /// Concludes the query: what is not merged by now does not count.
    #[must_use]
    pub fn conclude(self) -> Outcome {
        let Self {
            mut findings,
            earned,
            lacks,
        } = self;
        let is_required = |step: Step| step.def().policy == Policy::Required;
        if lacks.iter().any(|(step, ..)| is_required(*step)) {
            findings.answer = None;
        }
        let (answered, status) = match (&findings.answer, lacks.is_empty()) {
            (None, _) => (Answered::No, Status::Failed),
            (Some(_), true) => (Answered::Yes, Status::Complete),
            (Some(_), false) => (Answered::Yes, Status::Degraded),
        };
        let degraded = lacks.into_iter().map(|(step, cause, effect)| match effect {
            Some(effect) => Degradation {
                step,
                cause,
                effect,
            },
            None => Degradation::of(step, cause, answered),
        });
        Outcome {
            status,
            confidence: match answered {
                Answered::Yes => confidence(earned),
                Answered::No => 0.0,
            },
            degraded: degraded.collect(),
            findings,
        }
    }
}

/// Returns the confidence to three decimals.
fn confidence(earned: f64) -> f64 {
    let total: u32 = Step::all().map(|step| step.def().weight).sum();
    (earned / f64::from(total) * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use uuid::Uuid;

    use super::*;
    use crate::orchestrator::agents::Agent;
    use crate::orchestrator::agents::citation::{Attribution, Citations};
    use crate::orchestrator::agents::entities::Entities;
    use crate::orchestrator::agents::fact_check::{FactCheck, Verdict};
    use crate::orchestrator::agents::review::Review;
    use crate::orchestrator::agents::synthesis::Synthesis;
    use crate::orchestrator::retrieval;
    use crate::retrieval::Evidence;
    use crate::store::Passage;

    /// Returns every combination of what six steps can end with: an output, a failure, nothing to
    /// work on.
    fn all_results() -> impl Iterator<Item = [u8; 6]> {
        (0..729_u32).map(|number| {
            std::array::from_fn(|step| {
                u8::try_from(number / 3_u32.pow(u32::try_from(step).unwrap_or(0)) % 3).unwrap_or(0)
            })
        })
    }

    fn result<T>(kind: u8, output: T) -> StepResult<T> {
        match kind {
            0 => StepResult::Done(output),
            1 => StepResult::Failed(StepCause::Error),
            _ => StepResult::NotApplicable,
        }
    }

    fn agent<A: Agent>(kind: u8, output: A::Output) -> (Step, Ended) {
        let step = Step::named(A::DEF.settings.name).unwrap();
        (step, Ended::new(result(kind, output), A::merge))
    }

    fn outcome(kinds: [u8; 6]) -> Outcome {
        let passage = Passage {
            document: Uuid::nil(),
            title: "t".into(),
            text: "Radium glows.".into(),
            score: 1.0,
        };
        let claim = |verdict| Claim {
            claim: "c".into(),
            source: Some(1),
            verdict,
            quote: Some("Radium".into()),
        };
        let attribution = |source| Attribution {
            sentence: 1,
            source,
            quote: "Radium glows.".into(),
        };
        let evidence = Evidence {
            sources: vec![Source { n: 1, passage }],
            retrievers: 1,
            lost: Vec::new(),
        };
        let scores = Scores {
            coherence: 0.5,
            relevance: 0.5,
            support: 0.5,
        };
        let retrieved = Ended::new(result(kinds[1], evidence), retrieval::merge);
        let mut draft = Draft::new("What glows?");
        for (step, ended) in [
            agent::<Entities>(kinds[0], Vec::new()),
            (Step::named("retrieval").unwrap(), retrieved),
            agent::<FactCheck>(
                kinds[2],
                vec![claim(Verdict::Supported), claim(Verdict::Unclear)],
            ),
            agent::<Synthesis>(kinds[3], "It glows [1][4].".to_owned()),
            agent::<Citations>(kinds[4], vec![attribution(1), attribution(2)]),
            agent::<Review>(kinds[5], scores),
        ] {
            draft.merge(step, ended);
        }
        draft.conclude()
    }

    #[test]
    fn every_combination_of_results_has_an_outcome_that_shows_each_failure_once() {
        for kinds in all_results() {
            let outcome = outcome(kinds);
            let answered = outcome.findings.answer.is_some();
            assert_eq!(outcome.status == Status::Failed, !answered, "{kinds:?}");
            assert_eq!(
                outcome.status == Status::Complete,
                answered && outcome.degraded.is_empty(),
                "{kinds:?}"
            );
            assert_eq!(
                outcome.degraded.len(),
                kinds.iter().filter(|kind| **kind == 1).count(),
                "{kinds:?}"
            );
            assert!((0.0..=1.0).contains(&outcome.confidence), "{kinds:?}");
            let sources = &outcome.findings.sources;
            assert!(
                outcome
                    .findings
                    .citations
                    .iter()
                    .all(|citation| sources.iter().any(|source| source.n == citation.source)),
                "{kinds:?}"
            );
            assert!(
                !outcome.findings.verified,
                "one claim is unclear: {kinds:?}"
            );
        }
    }

    #[test]
    fn degr_09_losing_any_step_of_any_combination_improves_nothing() {
        for kinds in all_results() {
            let before = outcome(kinds);
            for step in 0..6 {
                let mut lost = kinds;
                lost[step] = 1;
                let after = outcome(lost);
                assert!(
                    after.status >= before.status && after.confidence <= before.confidence,
                    "{kinds:?} without {step}"
                );
            }
        }
    }

    #[test]
    fn a_step_earns_its_share_of_its_weight_and_nothing_unless_it_is_done() {
        let total: u32 = Step::all().map(|step| step.def().weight).sum();
        let lost = |step: usize| {
            let mut kinds = [0; 6];
            kinds[step] = 1;
            (outcome([0; 6]).confidence - outcome(kinds).confidence) * f64::from(total)
        };
        for (step, name, share) in [
            (0, "entities", 1.0),
            (2, "fact_check", 0.5),
            (4, "citation", 1.0 / 3.0),
            (5, "review", 0.5),
        ] {
            let weight = f64::from(Step::named(name).unwrap().def().weight);
            let lost = lost(step);
            assert!((lost - weight * share).abs() < 0.2, "{name} counts {lost}");
        }
        let boast = |_: StepResult<()>, _: &mut Findings| Contribution::of(9.0);
        let mut draft = Draft::new("");
        draft.findings.answer = Some(Answer::Written("It glows.".into()));
        for step in Step::all() {
            draft.merge(step, Ended::new(StepResult::NotApplicable, boast));
        }
        assert_eq!(draft.conclude().confidence, 0.0);
    }
}
