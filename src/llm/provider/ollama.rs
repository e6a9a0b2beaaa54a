//! Ollama's own API.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::{ChunkDecoder, Codec, failure};
use crate::config::ProviderConfig;
use crate::llm::chat::{AttemptError, CallContext, ChatRequest, Completion};
use crate::llm::transport::UpstreamRequest;

/// Ollama's protocol at one endpoint.
pub struct Ollama {}

impl Ollama {
    /// The codec for this provider.
    pub fn new(_provider: &ProviderConfig) -> Self {
        Self {}
    }
}

impl Codec for Ollama {
    fn encode(&self, _request: &ChatRequest, _model: &str, _context: &CallContext) -> Result<UpstreamRequest, AttemptError> {
        Err(failure::unsupported("model", "Ollama is not spoken yet."))
    }
    fn completion(&self, _headers: &HeaderMap, _body: Bytes) -> Result<Completion, AttemptError> {
        Err(failure::bad_response("Ollama is not spoken yet."))
    }
    fn error(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> AttemptError {
        failure::from_answer(status, headers, body, None)
    }
    fn decoder(&self, _request: &ChatRequest, _headers: &HeaderMap) -> Result<Box<dyn ChunkDecoder>, AttemptError> {
        Err(failure::bad_response("Ollama is not spoken yet."))
    }
}
