//! Ollama's own API (`POST /api/chat`).
//!
//! [`request`] writes a chat request in it, and [`answer`] reads documents and streams into
//! OpenAI's shapes. A field that Ollama cannot express is refused by name: nothing that changes an
//! answer is dropped silently.

mod answer;
mod request;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::endpoint::Endpoint;
use super::failure::{self, bad_response};
use super::{ChunkDecoder, Codec, Discovery, Protocol};
use crate::config::ProviderConfig;
use crate::config::kinds::ProtocolSettings;
use crate::llm::chat::{AttemptError, CallContext, ChatRequest, Completion, Mode};
use crate::llm::content::media_type;
use crate::llm::transport::UpstreamRequest;

/// Ollama's protocol.
#[derive(Debug)]
pub(super) struct Ollama;

impl Ollama {
    pub(super) const SETTINGS: ProtocolSettings = ProtocolSettings {
        name: "ollama",
        default_base_url: "http://127.0.0.1:11434",
        description: "Ollama's own API",
    };
}

impl Protocol for Ollama {
    fn settings(&self) -> &'static ProtocolSettings {
        &Self::SETTINGS
    }

    fn codec(&self, provider: &ProviderConfig) -> Arc<dyn Codec> {
        Arc::new(OllamaCodec::new(provider))
    }

    fn stream_type(&self) -> &'static str {
        "application/x-ndjson"
    }

    fn probe_path(&self) -> &'static str {
        "/api/version"
    }

    fn models_path(&self) -> &'static str {
        "/api/tags"
    }

    fn read_models(&self, body: &[u8]) -> Result<Vec<String>, String> {
        #[derive(serde::Deserialize)]
        struct Tags {
            models: Vec<Tag>,
        }
        #[derive(serde::Deserialize)]
        struct Tag {
            name: String,
        }
        let tags: Tags = serde_json::from_slice(body)
            .map_err(|_| "its answer is not Ollama's list of models".to_owned())?;
        Ok(tags.models.into_iter().map(|tag| tag.name).collect())
    }

    fn discovery(&self) -> Discovery {
        Discovery::Local
    }
}

/// Ollama's protocol at one endpoint.
struct OllamaCodec {
    endpoint: Endpoint,
}

impl OllamaCodec {
    fn new(provider: &ProviderConfig) -> Self {
        Self {
            endpoint: Endpoint::new(&Ollama, provider, "/api/chat"),
        }
    }
}

impl Codec for OllamaCodec {
    fn encode(
        &self,
        request: &ChatRequest,
        model: &str,
        context: &CallContext,
    ) -> Result<UpstreamRequest, AttemptError> {
        self.endpoint
            .request(request::body(request, model)?, request.mode, context)
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
            // Ollama sends a single record (an error, or an answer that ends at once) as
            // application/json.
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
                "The provider answered with a content type other than application/x-ndjson.",
            )),
        }
    }
}

#[cfg(test)]
mod tests;
