//! The seam to the LLM path: one call, said once. Production is the router; tests script it.

use async_trait::async_trait;

use crate::llm::cause::Cause as LlmCause;
use crate::llm::chat::{Answer, CallContext, ChatRequest, Usage};
use crate::llm::router::{Router, RouterError};
use crate::orchestrator::outcome::Cause;

/// What a model said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelReply {
    /// The content of the first choice; empty if there is none.
    pub text: String,
    /// As the provider told it; zero if it told none.
    pub usage: Usage,
}

/// Why a call gave nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallFailure {
    /// The class that decides what the reader is told.
    pub cause: Cause,
    /// For the log: what was tried and how it failed. Holds no secret.
    pub detail: String,
}

/// Asks a model. Retries and fallbacks, if any, happen behind this call and within `context.deadline`.
#[async_trait]
pub trait Llm: Send + Sync {
    /// Sends the request to the alias in `request.model`.
    ///
    /// Cancel safe: dropping the future ends the call down to the provider's socket.
    ///
    /// # Errors
    /// [`CallFailure`] once nothing more will be tried.
    async fn complete(
        &self,
        request: ChatRequest,
        context: CallContext,
    ) -> Result<ModelReply, CallFailure>;
}

#[async_trait]
impl Llm for Router {
    async fn complete(
        &self,
        request: ChatRequest,
        context: CallContext,
    ) -> Result<ModelReply, CallFailure> {
        let served = self.chat(request, context).await.map_err(failure)?;
        match served.answer {
            Answer::Plain(completion) => Ok(ModelReply {
                text: completion.text().unwrap_or_default(),
                usage: completion.usage.unwrap_or_default(),
            }),
            Answer::Stream(_) => Err(CallFailure {
                cause: Cause::Error,
                detail: "a stream came where a document was asked for".into(),
            }),
        }
    }
}

fn failure(error: RouterError) -> CallFailure {
    match error {
        RouterError::UnknownModel(alias) => CallFailure {
            cause: Cause::Error,
            detail: format!("no model is configured under the alias {alias:?}"),
        },
        RouterError::Failed(failure) => {
            let tried: Vec<_> = failure
                .attempts
                .iter()
                .filter_map(|attempt| {
                    attempt
                        .error
                        .as_ref()
                        .map(|error| format!("{}: {}", attempt.candidate, error.message))
                })
                .collect();
            CallFailure {
                cause: class(failure.cause),
                detail: tried.join("; "),
            }
        }
    }
}

/// The class of an LLM failure: total, so that a new cause cannot be forgotten.
fn class(cause: LlmCause) -> Cause {
    match cause {
        LlmCause::ConnectTimeout
        | LlmCause::FirstTokenTimeout
        | LlmCause::IdleTimeout
        | LlmCause::DeadlineExceeded => Cause::Timeout,
        LlmCause::BadResponse => Cause::InvalidOutput,
        LlmCause::BreakerOpen => Cause::BreakerOpen,
        LlmCause::Refused
        | LlmCause::Reset
        | LlmCause::RateLimited
        | LlmCause::QuotaExhausted
        | LlmCause::Overloaded
        | LlmCause::ServerError
        | LlmCause::ProviderAuth
        | LlmCause::NotFound
        | LlmCause::Rejected
        | LlmCause::Truncated
        | LlmCause::Oversized
        | LlmCause::InBand
        | LlmCause::BulkheadFull
        | LlmCause::Unsupported => Cause::Error,
    }
}
