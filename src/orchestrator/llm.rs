//! The seam to the LLM path: one call, made once. In production the router implements it; tests
//! script it.

use async_trait::async_trait;

use super::cause::{StepCause, StepFailure};
use crate::llm::chat::{Answer, CallContext, ChatRequest, Usage};
use crate::llm::router::{Router, RouterError};

/// The reply of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelReply {
    /// The content of the first choice; empty if there is no choice.
    pub text: String,
    /// The token counts that the provider reported; zero if it reported none.
    pub usage: Usage,
}

/// Asks a model. Retries and fallbacks happen behind this call and within `context.deadline`.
#[async_trait]
pub trait Llm: Send + Sync {
    /// Sends the request to the alias in `request.model` and waits for the whole reply.
    ///
    /// Cancel safe: dropping the future ends the call down to the provider's socket.
    ///
    /// # Errors
    /// Returns a [`StepFailure`] once no further attempt will be made.
    async fn complete(
        &self,
        request: ChatRequest,
        context: CallContext,
    ) -> Result<ModelReply, StepFailure>;
}

#[async_trait]
impl Llm for Router {
    async fn complete(
        &self,
        request: ChatRequest,
        context: CallContext,
    ) -> Result<ModelReply, StepFailure> {
        let served = self.chat(request, context).await.map_err(failure)?;
        match served.answer {
            Answer::Plain(completion) => Ok(ModelReply {
                text: completion.text().unwrap_or_default(),
                usage: completion.usage.unwrap_or_default(),
            }),
            Answer::Stream(_) => Err(StepFailure::new(
                StepCause::Error,
                "the router answered a plain request with a stream",
            )),
        }
    }
}

fn failure(error: RouterError) -> StepFailure {
    match error {
        RouterError::UnknownModel(alias) => StepFailure::new(
            StepCause::Error,
            format!("no model is configured under the alias {alias:?}"),
        ),
        RouterError::Failed(failure) => {
            let tried: Vec<_> = failure
                .attempts
                .iter()
                .filter_map(|attempt| {
                    let error = attempt.error.as_ref()?;
                    Some(format!("{}: {}", attempt.candidate, error.message))
                })
                .collect();
            StepFailure::new(failure.cause.into(), tried.join("; "))
        }
    }
}
