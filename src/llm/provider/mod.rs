//! Provider protocols: how the neutral request is written for a provider, and how its answers are
//! read.
//!
//! One [`Protocol`] implementation in a folder of its own describes a protocol: its name, default
//! base URL and description, its codec, authorization, probe and list of models. [`PROTOCOLS`]
//! lists them once; configuration, health, discovery and documentation read that list.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::config::ProviderConfig;
use crate::config::kinds::ProtocolSettings;
use crate::llm::cause::Cause;
use crate::llm::chat::{AttemptError, CallContext, ChatRequest, Completion, Usage};
use crate::llm::transport::UpstreamRequest;

mod endpoint;
mod failure;
mod ollama;
mod openai;
pub mod probe;

/// Lists the protocols once, for code ([`PROTOCOLS`]) and for the configuration
/// ([`PROTOCOL_SETTINGS`]).
macro_rules! protocols {
    ($($module:ident::$protocol:ident),+ $(,)?) => {
        /// Every protocol that a provider can speak.
        pub static PROTOCOLS: &[&dyn Protocol] = &[$(&$module::$protocol),+];

        /// The settings of every protocol, in the same order, for the configuration loader.
        pub static PROTOCOL_SETTINGS: &[ProtocolSettings] =
             &[$($module::$protocol::SETTINGS),+];
    };
}

protocols![openai::OpenAi, ollama::Ollama];

/// A protocol that providers speak.
pub trait Protocol: fmt::Debug + Send + Sync {
    /// The name, default base URL and description of the protocol.
    fn settings(&self) -> &'static ProtocolSettings;

    /// Creates the codec for one configured provider.
    fn codec(&self, provider: &ProviderConfig) -> Arc<dyn Codec>;

    /// The media type of a streamed answer, which a request accepts.
    fn stream_type(&self) -> &'static str;

    /// The headers that authenticate a request to the provider, probes included. They are marked
    /// sensitive.
    ///
    /// # Errors
    /// A sentence without the key, if no header can carry it.
    fn authorization(&self, provider: &ProviderConfig) -> Result<HeaderMap, String> {
        endpoint::bearer_or_basic(provider)
    }

    /// The path of the cheap GET that shows whether a provider answers.
    fn probe_path(&self) -> &'static str;

    /// Reads the status of an answer to the probe. By default every status is good that shows
    /// neither trouble of the server (5xx) nor a wrong key (401, 403), because some providers lack
    /// the path.
    ///
    /// # Errors
    /// A phrase that names the status.
    fn read_probe(&self, status: StatusCode) -> Result<(), String> {
        match status.as_u16() {
            401 | 403 | 500.. => Err(probe::status_phrase(status)),
            _ => Ok(()),
        }
    }

    /// The path of the GET that lists the models of a provider.
    fn models_path(&self) -> &'static str;

    /// Reads the names of the models in an answer to that GET.
    ///
    /// # Errors
    /// A phrase for an answer that is no list of models in this protocol.
    fn read_models(&self, body: &[u8]) -> Result<Vec<String>, String>;

    /// How `gauntlet serve` finds a provider of this protocol where nobody has configured one.
    fn discovery(&self) -> Discovery;
}

/// How a provider is found without a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// A server on this machine answers at the protocol's default base URL and lists its models.
    Local,
    /// The environment holds a key for a service.
    Key {
        /// The environment variable that holds the key.
        key: &'static str,
        /// The environment variable that replaces the default base URL.
        base_url: &'static str,
        /// The models that become aliases.
        models: &'static [&'static str],
    },
}

/// No protocol has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownProtocol {
    name: String,
}

impl fmt::Display for UnknownProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: Vec<&str> = PROTOCOL_SETTINGS.iter().map(|known| known.name).collect();
        write!(
            f,
            "The protocol '{}' is unknown; write one of: {}.",
            self.name,
            known.join(", ")
        )
    }
}

impl std::error::Error for UnknownProtocol {}

/// The protocol of this name.
///
/// # Errors
/// [`UnknownProtocol`], which lists the known names.
pub fn protocol(name: &str) -> Result<&'static dyn Protocol, UnknownProtocol> {
    PROTOCOLS
        .iter()
        .copied()
        .find(|protocol| protocol.settings().name == name)
        .ok_or_else(|| UnknownProtocol { name: name.into() })
}

/// The codec for a configured provider. The configuration admits known protocols only; a codec for
/// any other name refuses every request, so that no request is sent in a protocol nobody chose.
pub fn codec(provider: &ProviderConfig) -> Arc<dyn Codec> {
    match protocol(provider.protocol) {
        Ok(protocol) => protocol.codec(provider),
        Err(unknown) => Arc::new(unknown),
    }
}

/// A protocol that is bound to a configured endpoint and key.
pub trait Codec: Send + Sync {
    /// Writes `request` for `model` in this protocol: URL, headers with key and context, and body.
    ///
    /// # Errors
    /// [`Cause::Unsupported`] if the protocol cannot express the request.
    fn encode(
        &self,
        request: &ChatRequest,
        model: &str,
        context: &CallContext,
    ) -> Result<UpstreamRequest, AttemptError>;

    /// Reads a complete 2xx body.
    ///
    /// # Errors
    /// [`Cause::InBand`] (or the cause that it names) for an error inside the body, and
    /// [`Cause::BadResponse`] for anything else that is not a valid answer.
    fn completion(&self, headers: &HeaderMap, body: Bytes) -> Result<Completion, AttemptError>;

    /// Reads a non-2xx answer: its cause by status and body, its Retry-After, and the provider's
    /// message without secrets.
    fn error(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> AttemptError;

    /// Creates the decoder for one streamed 2xx answer.
    ///
    /// # Errors
    /// [`Cause::BadResponse`] if the content type shows that the answer is no stream.
    fn decoder(
        &self,
        request: &ChatRequest,
        headers: &HeaderMap,
    ) -> Result<Box<dyn ChunkDecoder>, AttemptError>;
}

impl Codec for UnknownProtocol {
    fn encode(
        &self,
        _: &ChatRequest,
        _: &str,
        _: &CallContext,
    ) -> Result<UpstreamRequest, AttemptError> {
        Err(self.refusal())
    }

    fn completion(&self, _: &HeaderMap, _: Bytes) -> Result<Completion, AttemptError> {
        Err(self.refusal())
    }

    fn error(&self, _: StatusCode, _: &HeaderMap, _: &[u8]) -> AttemptError {
        self.refusal()
    }

    fn decoder(
        &self,
        _: &ChatRequest,
        _: &HeaderMap,
    ) -> Result<Box<dyn ChunkDecoder>, AttemptError> {
        Err(self.refusal())
    }
}

impl UnknownProtocol {
    fn refusal(&self) -> AttemptError {
        AttemptError::new(Cause::Unsupported, self.to_string())
    }
}

/// One item of a decoded stream.
#[derive(Clone, Debug)]
pub enum Decoded {
    /// One `chat.completion.chunk` as JSON text.
    Chunk {
        /// The JSON text, which follows `data: ` in an event.
        data: Bytes,
        /// Whether the chunk carries real content (text, a tool call, a refusal, reasoning or a
        /// finish_reason), so that it is the commit point.
        content: bool,
    },
    /// The stream ended in order after a finish_reason. Later bytes change nothing.
    Done(Option<Usage>),
    /// The stream is broken. Later bytes change nothing.
    Failed(AttemptError),
}

/// Turns the bytes of a streamed answer into chunks. It is total: no input panics, and the result
/// does not depend on how the bytes were split.
pub trait ChunkDecoder: Send {
    /// Takes the next bytes and appends the items that they complete. After `Done` or `Failed` it
    /// appends nothing.
    fn push(&mut self, bytes: Bytes, out: &mut VecDeque<Decoded>);

    /// Whether the answer is complete, so that only its token counts and its end marker may follow.
    fn is_complete(&self) -> bool {
        false
    }

    /// Whether the answer so far has no text, tool call, refusal or other content, and was not
    /// ended by a content filter.
    fn is_empty(&self) -> bool {
        false
    }

    /// Whether a part of an event that carries data has arrived, and its end has not. Comments and
    /// blank lines carry nothing.
    fn is_inside_an_event(&self) -> bool;

    /// Takes the orderly end of the body, or gives up waiting for it. Appends `Done` or `Failed`,
    /// unless one has been appended.
    fn finish(&mut self, out: &mut VecDeque<Decoded>);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use super::*;

    fn provider(protocol: &'static str) -> ProviderConfig {
        ProviderConfig {
            name: "p".into(),
            protocol,
            base_url: http::Uri::from_static("http://127.0.0.1:1"),
            api_key: None,
            user: None,
            max_in_flight: 1,
            queue: 1,
        }
    }

    #[test]
    fn each_protocol_is_found_by_its_name_and_names_are_unique() {
        let mut names = HashSet::new();
        for (settings, listed) in PROTOCOL_SETTINGS.iter().zip(PROTOCOLS) {
            assert_eq!(*listed.settings(), *settings);
            assert_eq!(protocol(settings.name).unwrap().settings(), settings);
            assert!(
                names.insert(settings.name),
                "{} is listed twice",
                settings.name
            );
            assert!(settings.default_base_url.parse::<http::Uri>().is_ok());
        }
    }

    #[test]
    fn an_unknown_protocol_is_refused_with_the_known_names_and_never_read_as_another() {
        let provider = provider("unheard-of");
        let names: Vec<&str> = PROTOCOL_SETTINGS.iter().map(|known| known.name).collect();
        let message = format!(
            "The protocol 'unheard-of' is unknown; write one of: {}.",
            names.join(", ")
        );
        let request = ChatRequest::compose("m", "system", "user");
        let context = CallContext {
            request_id: "r".into(),
            arrived: tokio::time::Instant::now(),
            deadline: None,
            idempotency_key: "k".into(),
            traceparent: None,
        };
        let error = codec(&provider)
            .encode(&request, "m", &context)
            .unwrap_err();
        assert_eq!(
            (error.cause, error.message.as_str()),
            (Cause::Unsupported, message.as_str())
        );
        assert_eq!(probe::ProviderProbe::new(&provider).err(), Some(message));
    }
}
