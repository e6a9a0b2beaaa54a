//! The response document of a query: what the client gets, what is recorded, what is read again. The same value in all three.

use std::iter::Sum;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::llm::chat::Usage;
use crate::orchestrator::agents::Source;
use crate::orchestrator::agents::citation::{Citation, Dropped};
use crate::orchestrator::agents::entities::Entity;
use crate::orchestrator::agents::fact_check::Claim;
use crate::orchestrator::agents::review::Scores;
use crate::orchestrator::outcome::{Answered, Cause, Degradation, Outcome, Status, degradation};
use crate::orchestrator::step::Step;
use crate::store::Micros;

/// A query and its outcome.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct QueryDocument {
    /// UUID v7.
    #[schema(value_type = String, format = "uuid")]
    pub id: Uuid,
    /// How it ended.
    pub status: Status,
    /// As it was asked.
    pub question: String,
    /// With `[n]` where source n is used; null if there is none.
    pub answer: Option<String>,
    /// 0 to 1; never raised by a failure.
    pub confidence: f64,
    /// Claims were checked against the sources, and each of them is supported.
    pub verified: bool,
    /// The passages used, best first.
    pub sources: Vec<SourceDocument>,
    /// The citations that passed the gate.
    pub citations: Vec<Citation>,
    /// How many did not, by why.
    pub dropped_citations: Dropped,
    /// What the question names.
    pub entities: Vec<Entity>,
    /// What was checked.
    pub claims: Vec<Claim>,
    /// The review's scores; null if there are none.
    pub review: Option<Scores>,
    /// What the answer lacks, and why.
    pub degraded: Vec<Degradation>,
    /// What each step did, in the order of the plan.
    pub steps: Vec<StepReport>,
    /// The sum of what the providers told.
    pub usage: UsageDocument,
    /// Whether it can be read again under its id.
    pub recorded: bool,
    /// When it was accepted, RFC 3339.
    pub created_at: String,
}

/// A passage that was used.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct SourceDocument {
    /// What `[n]` means.
    pub n: u32,
    /// The document it is from.
    #[schema(value_type = String, format = "uuid")]
    pub document_id: Uuid,
    /// The document's title.
    pub title: String,
    /// The text found.
    pub passage: String,
    /// Rank, larger is better.
    pub score: f64,
}

/// Token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct UsageDocument {
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub completion_tokens: u64,
    /// Both.
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

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// It found something.
    Ok,
    /// It failed; `cause` says why.
    Failed,
    /// It was not started: too little time was left.
    Skipped,
    /// It had nothing to work on.
    NotApplicable,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct StepReport {
    /// Which.
    pub step: Step,
    /// How it ended.
    pub outcome: StepOutcome,
    /// Why it failed or was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// What the providers told it used.
    pub usage: UsageDocument,
}

impl StepReport {
    /// The report of a step that ended after `took`; `ended` is its cause where it failed, `None` where it had nothing to do.
    #[must_use]
    pub fn new(
        step: Step,
        ended: Result<StepOutcome, Cause>,
        took: Duration,
        usage: Usage,
    ) -> Self {
        let (outcome, cause) = match ended {
            Ok(outcome) => (outcome, None),
            Err(Cause::Skipped) => (StepOutcome::Skipped, Some(Cause::Skipped)),
            Err(cause) => (StepOutcome::Failed, Some(cause)),
        };
        Self {
            step,
            outcome,
            cause,
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            usage: usage.into(),
        }
    }
}

/// What a query is before anything is known of its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// UUID v7.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: String,
    /// As it was asked.
    pub question: String,
    /// When it was accepted.
    pub created_at: Micros,
}

impl QueryDocument {
    /// The document of a query that ended with `outcome`, as it is recorded.
    #[must_use]
    pub fn new(accepted: &Accepted, outcome: Outcome, steps: Vec<StepReport>) -> Self {
        Self {
            status: outcome.status,
            answer: outcome.answer,
            confidence: outcome.confidence,
            verified: outcome.verified,
            sources: outcome
                .sources
                .into_iter()
                .map(SourceDocument::from)
                .collect(),
            citations: outcome.citations,
            dropped_citations: outcome.dropped,
            entities: outcome.entities,
            claims: outcome.claims,
            review: outcome.review,
            degraded: outcome.degraded,
            ..Self::unanswered(accepted, outcome.status, steps)
        }
    }

    /// The document of a query that came to no outcome; `steps` are those that had ended.
    #[must_use]
    pub fn unanswered(accepted: &Accepted, status: Status, steps: Vec<StepReport>) -> Self {
        Self {
            id: accepted.id,
            status,
            question: accepted.question.clone(),
            answer: None,
            confidence: 0.0,
            verified: false,
            sources: Vec::new(),
            citations: Vec::new(),
            dropped_citations: Dropped::default(),
            entities: Vec::new(),
            claims: Vec::new(),
            review: None,
            degraded: Vec::new(),
            usage: steps.iter().map(|step| step.usage).sum(),
            steps,
            recorded: true,
            created_at: rfc3339(accepted.created_at),
        }
    }

    /// The same query where the record could not be written: a complete answer is degraded by it.
    #[must_use]
    pub fn unrecorded(mut self, cause: Cause) -> Self {
        self.recorded = false;
        self.status = self.status.max(Status::Degraded);
        self.degraded.push(degradation(
            Step::Record,
            cause,
            if self.answer.is_some() {
                Answered::Yes
            } else {
                Answered::No
            },
        ));
        self
    }

    /// The document as JSON. NUL, which no text column of Postgres can hold, becomes U+FFFD: what is sent is what can be recorded.
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
