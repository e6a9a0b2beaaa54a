//! Why a step gave nothing: the one vocabulary of documents, logs and metrics, and how the failures
//! of the layers below map to it.

use serde::Serialize;

use crate::llm::cause::Cause;
use crate::retrieval::RetrieverError;
use crate::store::StoreError;

/// The reason why a step of a query has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepCause {
    /// The step was started and failed.
    Error,
    /// The step was still running when its share of the deadline ended.
    Timeout,
    /// The model's reply does not match the schema, is empty, or holds a value out of bounds.
    InvalidOutput,
    /// The circuit breaker of every candidate is open, so that no request was sent.
    BreakerOpen,
    /// Less time was left than the step's minimum, so that it was not started.
    Skipped,
    /// The database cannot be reached, or takes no writes.
    StoreUnavailable,
    /// No connection of the store's pool became free in time.
    StoreBusy,
}

impl StepCause {
    /// Returns the name of the cause in documents, logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::InvalidOutput => "invalid_output",
            Self::BreakerOpen => "breaker_open",
            Self::Skipped => "skipped",
            Self::StoreUnavailable => "store_unavailable",
            Self::StoreBusy => "store_busy",
        }
    }
}

/// Maps the failure of an LLM call. The match is total, so that a new cause cannot be forgotten.
impl From<Cause> for StepCause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::ConnectTimeout
            | Cause::FirstTokenTimeout
            | Cause::IdleTimeout
            | Cause::DeadlineExceeded => Self::Timeout,
            Cause::BadResponse => Self::InvalidOutput,
            Cause::BreakerOpen => Self::BreakerOpen,
            Cause::Refused
            | Cause::Reset
            | Cause::RateLimited
            | Cause::QuotaExhausted
            | Cause::Overloaded
            | Cause::ServerError
            | Cause::ProviderAuth
            | Cause::NotFound
            | Cause::Rejected
            | Cause::Truncated
            | Cause::Oversized
            | Cause::InBand
            | Cause::BulkheadFull
            | Cause::Shortage
            | Cause::Unsupported => Self::Error,
        }
    }
}

impl From<&StoreError> for StepCause {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::NotWritable(_) => Self::StoreUnavailable,
            StoreError::PoolExhausted(_) => Self::StoreBusy,
            StoreError::Timeout(_) => Self::Timeout,
            StoreError::Rejected(_) | StoreError::Failed(_) => Self::Error,
        }
    }
}

impl From<&RetrieverError> for StepCause {
    fn from(error: &RetrieverError) -> Self {
        match error {
            RetrieverError::Store(error) => error.into(),
            RetrieverError::TimedOut => Self::Timeout,
        }
    }
}

/// The failure of a step: its cause for the reader, and the details for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepFailure {
    /// The cause that documents and metrics show.
    pub cause: StepCause,
    /// What was tried and how it failed. It holds no secret and no text of a prompt or reply.
    pub detail: String,
}

impl StepFailure {
    /// Builds a failure from its cause and its details.
    pub fn new(cause: StepCause, detail: impl Into<String>) -> Self {
        Self {
            cause,
            detail: detail.into(),
        }
    }
}
