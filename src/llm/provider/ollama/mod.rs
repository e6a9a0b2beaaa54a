//! Ollama's own API (`POST /api/chat`): [`request`] tells a chat request in it, [`answer`] reads documents and streams back
//! in OpenAI's shapes. What Ollama cannot be told is refused with the field's name; nothing that changes an answer is dropped in silence.

mod answer;
mod request;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::endpoint::Endpoint;
use super::failure::{self, bad_response};
use super::{ChunkDecoder, Codec};
use crate::config::ProviderConfig;
use crate::llm::chat::{AttemptError, CallContext, ChatRequest, Completion, Mode};
use crate::llm::content::media_type;
use crate::llm::transport::UpstreamRequest;

/// Ollama's protocol at one endpoint.
pub struct Ollama {
    endpoint: Endpoint,
}

impl Ollama {
    /// The codec for this provider.
    pub fn new(provider: &ProviderConfig) -> Self {
        Self {
            endpoint: Endpoint::new(provider, "/api/chat"),
        }
    }
}

impl Codec for Ollama {
    fn encode(
        &self,
        request: &ChatRequest,
        model: &str,
        context: &CallContext,
    ) -> Result<UpstreamRequest, AttemptError> {
        self.endpoint.request(
            request::body(request, model)?,
            request.mode,
            "application/x-ndjson",
            context,
        )
    }

    fn completion(&self, headers: &HeaderMap, body: Bytes) -> Result<Completion, AttemptError> {
        failure::check_encoding(headers)?;
        answer::completion(&body, self.endpoint.key.as_ref())
    }

    fn error(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> AttemptError {
        failure::from_answer(status, headers, body, self.endpoint.key.as_ref())
    }

    fn decoder(
        &self,
        request: &ChatRequest,
        headers: &HeaderMap,
    ) -> Result<Box<dyn ChunkDecoder>, AttemptError> {
        failure::check_encoding(headers)?;
        match media_type(headers).as_str() {
            // an error that came late, and a model that ends at once, are one record as application/json
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/json" => {
                let include_usage = request.mode
                    == Mode::Stream {
                        include_usage: true,
                    };
                Ok(Box::new(answer::RecordDecoder::new(
                    self.endpoint.key.clone(),
                    include_usage,
                )))
            }
            _ => Err(bad_response(
                "The provider answered with something else than the stream of records that was asked for.",
            )),
        }
    }
}

#[cfg(test)]
mod tests;
