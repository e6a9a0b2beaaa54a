//! Provider codecs: how the neutral request is told in a provider's protocol, and its answers read back. One file a protocol.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::config::ProviderConfig;
use crate::llm::chat::{AttemptError, CallContext, ChatRequest, Completion, Usage};
use crate::llm::transport::UpstreamRequest;

mod endpoint;
mod failure;
mod ollama;
mod openai;

pub(crate) use self::endpoint::authorization;

/// The codec for a configured provider. A new protocol is one file, and one line here.
pub fn codec(provider: &ProviderConfig) -> Arc<dyn Codec> {
    match provider.protocol {
        "ollama" => Arc::new(ollama::Ollama::new(provider)),
        _ => Arc::new(openai::OpenAi::new(provider)),
    }
}

/// A protocol bound to a configured endpoint and key.
pub trait Codec: Send + Sync {
    /// Tells `request` to `model` in this protocol (URL, headers with key and context, body).
    ///
    /// # Errors
    /// [`crate::llm::cause::Cause::Unsupported`] where the protocol cannot say it.
    fn encode(
        &self,
        request: &ChatRequest,
        model: &str,
        context: &CallContext,
    ) -> Result<UpstreamRequest, AttemptError>;

    /// Reads a whole 2xx body. Whatever is not a valid answer is an error, never a completion.
    ///
    /// # Errors
    /// `BadResponse`, `InBand`, …
    fn completion(&self, headers: &HeaderMap, body: Bytes) -> Result<Completion, AttemptError>;

    /// Reads a non-2xx answer: cause by status and body, Retry-After, the provider's message cleaned of secrets.
    fn error(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> AttemptError;

    /// A decoder for one streamed 2xx answer.
    ///
    /// # Errors
    /// `BadResponse` where the head already shows that this is no stream (content type).
    fn decoder(
        &self,
        request: &ChatRequest,
        headers: &HeaderMap,
    ) -> Result<Box<dyn ChunkDecoder>, AttemptError>;
}

/// One piece of a decoded stream.
#[derive(Clone, Debug)]
pub enum Decoded {
    /// One `chat.completion.chunk` as JSON text.
    Chunk {
        /// What stands after `data: `.
        data: Bytes,
        /// Whether it carries real content (text, tool call, refusal, reasoning, finish_reason): the commit point.
        content: bool,
    },
    /// The end marker after a finish_reason; later bytes change nothing.
    Done(Option<Usage>),
    /// The stream is broken; later bytes change nothing.
    Failed(AttemptError),
}

/// Turns the bytes of a streamed answer into chunks. Total: no input panics; the result does not depend on how bytes were split.
pub trait ChunkDecoder: Send {
    /// Takes the next bytes; appends what they complete. After `Done` or `Failed` nothing more is appended.
    fn push(&mut self, bytes: Bytes, out: &mut VecDeque<Decoded>);

    /// The body has ended in order; appends `Done` or `Failed` unless one of them has been appended.
    fn finish(&mut self, out: &mut VecDeque<Decoded>);
}
