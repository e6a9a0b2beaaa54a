//! The neutral chat request, completion, stream and error: what every provider codec, the router, the HTTP layer and the
//! orchestrator share. The wire shape is OpenAI's; unknown fields are kept as they came.

use crate::resilience::deadline::Deadline;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

/// Whether the client wants one document or a stream of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One `chat.completion`.
    Plain,
    /// `chat.completion.chunk` events.
    Stream {
        /// `stream_options.include_usage`.
        include_usage: bool,
    },
}

/// A chat request, parsed at the door: an object with a `model`, `messages`, and whatever else the client sent.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// The alias asked for.
    pub model: String,
    /// Plain or streamed.
    pub mode: Mode,
    /// All fields in their order, each as the bytes that came; `model` included.
    pub fields: IndexMap<String, Box<RawValue>>,
}

/// What is wrong with a request, for its sender: becomes a 400 in OpenAI's envelope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidRequest {
    /// A sentence with the field and the value.
    pub message: String,
    /// The field's name, if one is to blame.
    pub param: Option<String>,
}

/// What a call is allowed and how it is told apart.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// The request id, sent on to the provider as `x-request-id`.
    pub request_id: String,
    /// When the call came in: the configured deadline runs from here, so that reading a body counts.
    pub arrived: Instant,
    /// The caller's deadline, made once at the door; the router can only shorten it.
    pub deadline: Option<Deadline>,
    /// The same for every attempt; sent as `Idempotency-Key`.
    pub idempotency_key: String,
    /// W3C trace context to continue, if the client sent one.
    pub traceparent: Option<http::HeaderValue>,
}

/// Token counts as the provider told them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Both.
    #[serde(default)]
    pub total_tokens: u64,
}

/// A complete, valid answer.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The document in OpenAI's shape: the provider's own bytes where it speaks that protocol.
    pub body: Bytes,
    /// The provider's usage, if it told one.
    pub usage: Option<Usage>,
}

impl Completion {
    /// The text of the first choice; `None` where it has none (a tool call, a refusal).
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

/// The provider and model that served, or were tried.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Candidate {
    /// The provider's configured name.
    pub provider: String,
    /// The model's name there.
    pub model: String,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.provider, self.model)
    }
}

/// Why an attempt failed. The policy (retry, fall back, count against the provider) follows from the cause alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Nobody listens, or the name does not resolve.
    Refused,
    /// The connection was reset or closed before the answer began.
    Reset,
    /// The connection did not stand in time.
    ConnectTimeout,
    /// No content came in time.
    FirstTokenTimeout,
    /// Silence between two reads.
    IdleTimeout,
    /// The deadline, or this attempt's share of it, is over.
    DeadlineExceeded,
    /// 429 that may pass.
    RateLimited,
    /// 429 `insufficient_quota`, 402: will not pass by waiting.
    QuotaExhausted,
    /// 503, 529.
    Overloaded,
    /// Any other 5xx.
    ServerError,
    /// 401 or 403 from the provider: our key is bad, not the client's.
    ProviderAuth,
    /// 404, 405 or 410 from the provider: the URL or the model's name there is wrong, and both are the operator's.
    NotFound,
    /// The provider refuses the request itself: 400, 413, 422 and other 4xx.
    Rejected,
    /// 200 with what is not an answer: HTML, broken JSON, empty, no choices, wrong content type.
    BadResponse,
    /// The answer ended in the middle.
    Truncated,
    /// An event or a body beyond the bound.
    Oversized,
    /// An error inside a 200 stream.
    InBand,
    /// The breaker is open: nothing was sent.
    BreakerOpen,
    /// The provider's concurrency limit: nothing was sent.
    BulkheadFull,
    /// The request cannot be told in this provider's protocol.
    Unsupported,
}

/// One failed attempt. Holds no secret: messages are made by us or cleaned of what we sent.
#[derive(Clone, Debug)]
pub struct AttemptError {
    /// Why.
    pub cause: Cause,
    /// A sentence for the client.
    pub message: String,
    /// The provider's status, if one came.
    pub status: Option<u16>,
    /// How long the provider (or the breaker) asks to wait.
    pub retry_after: Option<Duration>,
    /// For [`Cause::Rejected`] and [`Cause::InBand`]: the provider's own type, code and param, where it gave them.
    pub detail: ErrorDetail,
}

impl AttemptError {
    /// An error that no provider's status, hint or detail came with.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self {
            cause,
            message: message.into(),
            status: None,
            retry_after: None,
            detail: ErrorDetail::default(),
        }
    }
}

/// The parts of OpenAI's error envelope that a provider gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// `error.type`
    pub kind: Option<String>,
    /// `error.code`
    pub code: Option<String>,
    /// `error.param`
    pub param: Option<String>,
}

/// One attempt as the final error and the report headers list it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Who was asked (or would have been: breaker open).
    pub candidate: Candidate,
    /// `None` for the attempt that served.
    pub error: Option<AttemptError>,
}

/// Nothing could be served: every attempt in order (never empty unless `cause` is a deadline that was over at the start).
#[derive(Clone, Debug)]
pub struct LlmFailure {
    /// What was tried.
    pub attempts: Vec<Attempt>,
    /// The cause that decides the status: see `llm::router` for the rule.
    pub cause: Cause,
    /// The soonest time at which a candidate can be asked again, if that is known.
    pub retry_after: Option<Duration>,
}

/// A successful call.
pub struct Served {
    /// The answer.
    pub answer: Answer,
    /// Who gave it.
    pub by: Candidate,
    /// Everything that was tried, the serving attempt last.
    pub attempts: Vec<Attempt>,
}

/// A document or a stream past its commit point.
pub enum Answer {
    /// The whole document.
    Plain(Completion),
    /// Starts with real content; everything before the commit point is inside.
    Stream(ChatStream),
}

/// What a committed stream yields: any number of `Chunk`, then exactly one of `Done` and `Failed`, then nothing.
#[derive(Clone, Debug)]
pub enum StreamItem {
    /// The JSON text of one `chat.completion.chunk` (what stands after `data: `), as it came where the protocol is the same.
    Chunk(Bytes),
    /// The provider ended the stream as it should (finish_reason seen, end marker or orderly end). Usage if it told one.
    Done(Option<Usage>),
    /// The stream broke after the commit point: nothing is tried again.
    Failed(AttemptError),
}

/// A committed stream. Dropping it closes the connection to the provider.
pub type ChatStream = Pin<Box<dyn Stream<Item = StreamItem> + Send>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_the_first_choices_or_none() {
        let text = |body: &'static [u8]| {
            Completion {
                body: Bytes::from_static(body),
                usage: None,
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
        for nothing in [
            &br#"{"choices":[]}"#[..],
            br#"{"choices":[{"message":{"content":null}}]}"#,
            br#"{"choices":[{"message":{"content":[1]}}]}"#,
            b"<html>",
        ] {
            assert_eq!(text(nothing), None);
        }
    }
}
