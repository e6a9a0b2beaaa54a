//! The response document of a query: what the client gets, what is recorded, and what is read again
//! later. All three are the same value.

use std::collections::BTreeMap;
use std::iter::Sum;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::agents::citation::{Citation, Dropped};
use super::agents::entities::Entity;
use super::agents::fact_check::Claim;
use super::agents::review::Scores;
use super::cause::StepCause;
use super::outcome::{
    Answer, Answered, Degradation, Ended, Findings, Outcome, Status, StepOutcome,
};
use super::step::Step;
use crate::llm::chat::Usage;
use crate::retrieval::Source;
use crate::store::Micros;

/// A query and its outcome.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct QueryDocument {
    /// The id of the query, a UUID of version 7.
    #[schema(value_type = String, format = "uuid")]
    pub id: Uuid,
    /// How the query ended.
    pub status: Status,
    /// The question, as the client sent it.
    pub question: String,
    /// The answer, with `[n]` where source n is used; null if there is none.
    pub answer: Option<String>,
    /// How sure the answer is, from 0 to 1. A failure never raises it.
    pub confidence: f64,
    /// Whether claims were checked against the sources and the sources support each of them.
    pub verified: bool,
    /// The passages that were used, best first.
    pub sources: Vec<SourceDocument>,
    /// The citations that passed the gate.
    pub citations: Vec<Citation>,
    /// The number of citations that were refused by the gate, by reason.
    pub dropped_citations: Dropped,
    /// What the question names.
    pub entities: Vec<Entity>,
    /// The claims that were checked.
    pub claims: Vec<Claim>,
    /// The scores of the review; null if there are none.
    pub review: Option<Scores>,
    /// The outputs of steps that have no field of their own, by the name of the step; absent if
    /// there are none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Object>)]
    pub further: BTreeMap<&'static str, Value>,
    /// What the answer lacks, and why.
    pub degraded: Vec<Degradation>,
    /// The report of each step, in the order of the steps.
    pub steps: Vec<StepReport>,
    /// The sum of the tokens that the providers reported.
    pub usage: UsageDocument,
    /// Whether the query can be read again under its id.
    pub recorded: bool,
    /// The time at which the query was accepted, in RFC 3339.
    pub created_at: String,
}

/// A passage that was used.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct SourceDocument {
    /// The number by which `[n]` in the answer refers to the source.
    pub n: u32,
    /// The id of the document that the passage is from.
    #[schema(value_type = String, format = "uuid")]
    pub document_id: Uuid,
    /// The title of that document.
    pub title: String,
    /// The text of the passage.
    pub passage: String,
    /// The rank of the passage; larger is better.
    pub score: f64,
}

/// Numbers of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct UsageDocument {
    /// The tokens of the prompts.
    pub prompt_tokens: u64,
    /// The tokens of the replies.
    pub completion_tokens: u64,
    /// The tokens of prompts and replies.
    pub total_tokens: u64,
}

impl From<Usage> for UsageDocument {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.total_tokens,
        }
    }
}

impl Sum for UsageDocument {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            prompt_tokens: sum.prompt_tokens.saturating_add(part.prompt_tokens),
            completion_tokens: sum.completion_tokens.saturating_add(part.completion_tokens),
            total_tokens: sum.total_tokens.saturating_add(part.total_tokens),
        })
    }
}

/// The report of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct StepReport {
    /// The step.
    pub step: Step,
    /// How the step ended.
    pub outcome: StepOutcome,
    /// Why the step failed or was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<StepCause>,
    /// The time that the step took, in milliseconds.
    pub duration_ms: u64,
    /// The tokens that the providers reported for the step.
    pub usage: UsageDocument,
}

impl StepReport {
    /// Builds the report of a step that ended after `took`.
    #[must_use]
    pub fn new(step: Step, ended: &Ended, took: Duration) -> Self {
        Self {
            step,
            outcome: ended.outcome,
            cause: ended.cause,
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            usage: ended.usage.into(),
        }
    }
}

/// What is known of a query before it has an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The id of the query, a UUID of version 7.
    pub id: Uuid,
    /// The tenant that asks.
    pub tenant: String,
    /// The question, as the client sent it.
    pub question: String,
    /// The time at which the query was accepted.
    pub created_at: Micros,
}

impl QueryDocument {
    /// Builds the document of a query that ended with `outcome`, as it is recorded.
    #[must_use]
    pub fn new(accepted: &Accepted, outcome: Outcome, steps: Vec<StepReport>) -> Self {
        let Findings {
            question,
            entities,
            sources,
            claims,
            verified,
            answer,
            citations,
            dropped,
            review,
            further,
        } = outcome.findings;
        Self {
            id: accepted.id,
            status: outcome.status,
            question,
            answer: answer.map(Answer::into_text),
            confidence: outcome.confidence,
            verified,
            sources: sources.into_iter().map(SourceDocument::from).collect(),
            citations,
            dropped_citations: dropped,
            entities,
            claims,
            review,
            further,
            degraded: outcome.degraded,
            usage: steps.iter().map(|step| step.usage).sum(),
            steps,
            recorded: true,
            created_at: rfc3339(accepted.created_at),
        }
    }

    /// Builds the document of a query that came to no outcome; `steps` are the reports of the steps
    /// that had ended.
    #[must_use]
    pub fn unanswered(accepted: &Accepted, status: Status, steps: Vec<StepReport>) -> Self {
        let outcome = Outcome {
            status,
            confidence: 0.0,
            degraded: Vec::new(),
            findings: Findings::of(&accepted.question),
        };
        Self::new(accepted, outcome, steps)
    }

    /// Returns the document of the same query if the record could not be written, which degrades
    /// even a complete answer.
    #[must_use]
    pub fn unrecorded(mut self, cause: StepCause) -> Self {
        let answered = if self.answer.is_some() {
            Answered::Yes
        } else {
            Answered::No
        };
        self.recorded = false;
        self.status = self.status.max(Status::Degraded);
        self.degraded
            .push(Degradation::of(Step::RECORD, cause, answered));
        self
    }

    /// Returns the document as JSON. NUL, which no text column of Postgres can hold, becomes
    /// U+FFFD, so that what is sent can be recorded as it is.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        replace_nul(&mut value);
        value
    }
}

impl From<Source> for SourceDocument {
    fn from(source: Source) -> Self {
        let passage = source.passage;
        Self {
            n: source.n,
            document_id: passage.document,
            title: passage.title,
            passage: passage.text,
            score: passage.score,
        }
    }
}

fn replace_nul(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => *text = text.replace('\0', "\u{fffd}"),
        Value::Array(items) => items.iter_mut().for_each(replace_nul),
        Value::Object(fields) => fields.values_mut().for_each(replace_nul),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn rfc3339(micros: Micros) -> String {
    jiff::Timestamp::from_microsecond(micros)
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_string()
}
