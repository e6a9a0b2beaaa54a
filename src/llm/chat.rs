//! The neutral chat request, completion, stream and error. Provider codecs, the router, the HTTP
//! layer and the orchestrator share them. The wire shape is OpenAI's, and unknown fields are kept
//! byte for byte.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::llm::cause::Cause;
use crate::resilience::deadline::Deadline;

/// Whether the client asked for one document or for a stream of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The answer is one `chat.completion` document.
    Plain,
    /// The answer is a stream of `chat.completion.chunk` events.
    Stream {
        /// The value of `stream_options.include_usage`; false if the client left it out.
        include_usage: bool,
    },
}

/// A chat request after validation: an object with `model`, `messages`, and any other field that
/// the client sent.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// The model alias that the client named.
    pub model: String,
    /// Whether the answer is a document or a stream.
    pub mode: Mode,
    /// All fields in their order, `model` included, each as the bytes that the client sent.
    pub fields: IndexMap<String, Box<RawValue>>,
}

/// An invalid request. The HTTP layer answers it with 400 in OpenAI's error envelope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidRequest {
    /// A sentence for the client that names the field and the value.
    pub message: String,
    /// The name of the invalid field; `None` if the request as a whole is invalid.
    pub param: Option<String>,
}

/// The identity and the deadline of one call.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// The request id. It is sent to the provider as `x-request-id`.
    pub request_id: String,
    /// The instant at which the request arrived. The configured deadline runs from here, so that
    /// the time for reading the body counts.
    pub arrived: Instant,
    /// The caller's deadline. The router can only shorten it.
    pub deadline: Option<Deadline>,
    /// The idempotency key. Every attempt carries the same one as `Idempotency-Key`.
    pub idempotency_key: String,
    /// The W3C trace context that the client sent.
    pub traceparent: Option<http::HeaderValue>,
}

/// Token counts as the provider reported them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The number of tokens in the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// The number of tokens in the answer.
    #[serde(default)]
    pub completion_tokens: u64,
    /// The sum of both numbers.
    #[serde(default)]
    pub total_tokens: u64,
}

/// A complete, valid answer.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The document in OpenAI's shape. For a provider of that protocol these are its own bytes.
    pub body: Bytes,
    /// The token counts, if the provider reported them.
    pub usage: Option<Usage>,
    /// Whether no choice has a text, a tool call, a refusal or another content, and none was ended
    /// by a content filter.
    pub is_empty: bool,
}

impl Completion {
    /// The text of the first choice; `None` for a choice without text (a tool call, a refusal).
    pub fn text(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Document {
            choices: Vec<Choice>,
        }
        #[derive(Deserialize)]
        struct Choice {
            message: Message,
        }
        #[derive(Deserialize)]
        struct Message {
            content: Option<String>,
        }
        let document: Document = serde_json::from_slice(&self.body).ok()?;
        document.choices.into_iter().next()?.message.content
    }
}

/// One provider and one model there: what an alias resolves to. Clones share the names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Candidate {
    /// The configured name of the provider.
    pub provider: Arc<str>,
    /// The name of the model at the provider.
    pub model: Arc<str>,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.provider, self.model)
    }
}

/// The failure of one attempt. It holds no secret: the gateway writes its messages itself, or
/// removes keys and passwords from the provider's.
#[derive(Clone, Debug)]
pub struct AttemptError {
    /// The class of the failure.
    pub cause: Cause,
    /// A sentence for the client.
    pub message: String,
    /// The status of the provider's answer, if it sent one.
    pub status: Option<u16>,
    /// The time for which the provider, or the breaker, asks callers to wait.
    pub retry_after: Option<Duration>,
    /// Whether the provider asks not to be asked again (`x-should-retry: false`).
    pub no_retry: bool,
    /// The provider's own type, code and param, as far as it sent them.
    pub detail: ErrorDetail,
}

impl AttemptError {
    /// Creates an error without status, Retry-After and detail.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self {
            cause,
            message: message.into(),
            status: None,
            retry_after: None,
            no_retry: false,
            detail: ErrorDetail::default(),
        }
    }
}

/// The parts of OpenAI's error envelope that a provider filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// The value of `error.type`.
    pub kind: Option<String>,
    /// The value of `error.code`.
    pub code: Option<String>,
    /// The value of `error.param`.
    pub param: Option<String>,
}

/// One attempt, as the final error and the response headers list it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The candidate of the attempt, even if nothing was sent to it.
    pub candidate: Candidate,
    /// The failure; `None` for the attempt that served the request.
    pub error: Option<AttemptError>,
}

/// The failure of a whole request.
#[derive(Clone, Debug)]
pub struct LlmFailure {
    /// The attempts in their order. The list is empty only if the deadline had passed at the start.
    pub attempts: Vec<Attempt>,
    /// The cause that decides the status of the response; `llm::router` holds the rule.
    pub cause: Cause,
    /// The time after which the first candidate can be asked again, if that is known.
    pub retry_after: Option<Duration>,
}

/// A request that a candidate served.
pub struct Served {
    /// The answer.
    pub answer: Answer,
    /// The candidate that served the request.
    pub by: Candidate,
    /// All attempts in their order; the last one served the request.
    pub attempts: Vec<Attempt>,
}

/// The answer to a chat request: a document, or a stream past its commit point.
pub enum Answer {
    /// The complete document.
    Plain(Completion),
    /// The stream, from its first event on.
    Stream(CommittedStream),
}

/// An item of a committed stream. The stream yields any number of `Chunk`, then exactly one `Done`
/// or `Failed`, then nothing.
#[derive(Clone, Debug)]
pub enum StreamItem {
    /// The JSON text of one `chat.completion.chunk` (what follows `data: `). For a provider of
    /// OpenAI's protocol these are its own bytes.
    Chunk(Bytes),
    /// The provider ended the stream in order: it sent a finish_reason and an end marker, or closed
    /// the body after the finish_reason. Holds the token counts, if the provider reported them.
    Done(Option<Usage>),
    /// The stream broke after the commit point, so nothing is tried again.
    Failed(AttemptError),
}

/// A stream past its commit point.
pub struct CommittedStream {
    /// The items of the stream.
    pub items: ChatStream,
    /// Whether the answer is already complete and has no content; see [`Completion::is_empty`].
    pub is_empty: bool,
}

/// A committed stream. Dropping it closes the connection to the provider.
pub type ChatStream = Pin<Box<dyn Stream<Item = StreamItem> + Send>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_the_first_choice_or_none() {
        let text = |body: &'static [u8]| {
            Completion {
                body: Bytes::from_static(body),
                usage: None,
                is_empty: false,
            }
            .text()
        };
        assert_eq!(
            text(
                br#"{"choices":[{"message":{"content":"Paris"}},{"message":{"content":"Lyon"}}]}"#
            )
            .as_deref(),
            Some("Paris")
        );
        for without_text in [
            &br#"{"choices":[]}"#[..],
            br#"{"choices":[{"message":{"content":null}}]}"#,
            br#"{"choices":[{"message":{"content":[1]}}]}"#,
            b"<html>",
        ] {
            assert_eq!(text(without_text), None);
        }
    }
}
