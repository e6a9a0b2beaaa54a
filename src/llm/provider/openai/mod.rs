//! OpenAI's chat completions, which most services and servers offer.
//!
//! The client's fields are sent byte for byte, except that `model` is replaced. The provider's
//! documents and events are passed on byte for byte, and read only for errors, content and the end.
//! Three things are mended in an event, because clients fail over them: a second finish_reason of a
//! choice, a finish_reason that is an empty string, and a surrogate pair that is cut between two
//! events.
//!
//! The usage of a stream is requested only if the client requests it: `stream_options` is never
//! added, because some servers refuse it. A usage event that the client has not requested is read
//! and not passed on, because clients read `choices[0]` of every event.

mod splitter;
mod view;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use secrecy::SecretString;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use self::splitter::{Edits, Splitter};
use self::view::{Answered, Deltas, Document, Finish};
use super::endpoint::Endpoint;
use super::failure::{self, bad_response};
use super::{ChunkDecoder, Codec, Decoded, Discovery, Protocol};
use crate::config::ProviderConfig;
use crate::config::kinds::ProtocolSettings;
use crate::llm::chat::{AttemptError, CallContext, ChatRequest, Completion, Mode, Usage};
use crate::llm::content::media_type;
use crate::llm::framing::DEFAULT_EVENT_LIMIT;
use crate::llm::framing::sse::{SseDecoder, SseEvent};
use crate::llm::transport::UpstreamRequest;

/// The maximum number of choices of a stream. No provider gives more.
const MAX_CHOICES: usize = 1024;

/// OpenAI's protocol.
#[derive(Debug)]
pub(super) struct OpenAi;

impl OpenAi {
    pub(super) const SETTINGS: ProtocolSettings = ProtocolSettings {
        name: "openai",
        default_base_url: "https://api.openai.com/v1",
        description: "OpenAI's chat completions, which most services and servers offer",
    };
}

impl Protocol for OpenAi {
    fn settings(&self) -> &'static ProtocolSettings {
        &Self::SETTINGS
    }

    fn codec(&self, provider: &ProviderConfig) -> Arc<dyn Codec> {
        Arc::new(OpenAiCodec::new(provider))
    }

    fn stream_type(&self) -> &'static str {
        "text/event-stream"
    }

    fn probe_path(&self) -> &'static str {
        "/models"
    }

    fn models_path(&self) -> &'static str {
        "/models"
    }

    fn read_models(&self, body: &[u8]) -> Result<Vec<String>, String> {
        #[derive(serde::Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        #[derive(serde::Deserialize)]
        struct Model {
            id: String,
        }
        let models: Models = serde_json::from_slice(body)
            .map_err(|_| "its answer is not OpenAI's list of models".to_owned())?;
        Ok(models.data.into_iter().map(|model| model.id).collect())
    }

    fn discovery(&self) -> Discovery {
        Discovery::Key {
            key: "OPENAI_API_KEY",
            base_url: "OPENAI_BASE_URL",
            models: &["gpt-4o-mini", "gpt-4o"],
        }
    }
}

/// OpenAI's protocol at one endpoint with one key.
struct OpenAiCodec {
    endpoint: Endpoint,
}

impl OpenAiCodec {
    fn new(provider: &ProviderConfig) -> Self {
        Self {
            endpoint: Endpoint::new(&OpenAi, provider, "/chat/completions"),
        }
    }
}

impl Codec for OpenAiCodec {
    fn encode(
        &self,
        request: &ChatRequest,
        model: &str,
        context: &CallContext,
    ) -> Result<UpstreamRequest, AttemptError> {
        self.endpoint
            .request(request.body_for(model), request.mode, context)
    }

    fn completion(&self, headers: &HeaderMap, body: Bytes) -> Result<Completion, AttemptError> {
        failure::check_encoding(headers)?;
        let text = object(&body)?;
        let document: Document<'_, Answered> = serde_json::from_str(text).map_err(|error| {
            failure::not_json_of("The provider's answer is not a chat completion", &error)
        })?;
        if let Some(error) = document.error() {
            return Err(failure::in_band(error, self.endpoint.key.as_ref()));
        }
        let is_empty = match &document.choices {
            None | Some(Answered { count: 0, .. }) => {
                return Err(bad_response("The provider's answer has no choices."));
            }
            Some(Answered {
                error: Some(error), ..
            }) => return Err(failure::in_band(error, self.endpoint.key.as_ref())),
            Some(answered) => answered.is_empty,
        };
        let usage = document.usage();
        Ok(Completion {
            body,
            usage,
            is_empty,
        })
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
        let key = self.endpoint.key.clone();
        match media_type(headers).as_str() {
            "text/event-stream" => {
                let include_usage = request.mode
                    == Mode::Stream {
                        include_usage: true,
                    };
                Ok(Box::new(EventDecoder::new(
                    key,
                    include_usage,
                    request.field("n").unwrap_or(1),
                )))
            }
            "application/json" => Ok(Box::new(DocumentDecoder {
                key,
                body: Vec::new(),
                ended: false,
            })),
            "" => Err(bad_response(
                "The provider answered without a content type instead of text/event-stream.",
            )),
            other => {
                let other = failure::clean(other, key.as_ref());
                Err(bad_response(format!(
                    "The provider answered with the content type '{other}' instead of text/event-stream."
                )))
            }
        }
    }
}

/// The body as text, if it starts like a JSON object.
fn object(body: &[u8]) -> Result<&str, AttemptError> {
    let text = std::str::from_utf8(body)
        .map_err(|_| bad_response("The provider's answer is not UTF-8."))?;
    match text.trim_ascii_start().as_bytes().first() {
        Some(b'{') => Ok(text),
        Some(b'<') => Err(bad_response("The provider answered with an HTML page.")),
        Some(_) => Err(bad_response("The provider's answer is not a JSON object.")),
        None => Err(bad_response("The provider's answer is empty.")),
    }
}

/// The events of one stream.
struct EventDecoder {
    events: SseDecoder,
    key: Option<SecretString>,
    include_usage: bool,
    /// The number of choices that the request asks for.
    wanted: usize,
    /// The index of each choice that has begun, and whether its finish_reason has arrived.
    choices: Vec<(u64, bool)>,
    /// Whether content came after the finish_reason of its choice, so that no finish_reason of this
    /// provider shows that the answer is complete.
    goes_on: bool,
    /// Whether nothing has come that has content or was ended by a content filter.
    is_empty: bool,
    splitter: Splitter,
    usage: Option<Usage>,
    ended: bool,
}

impl EventDecoder {
    fn new(key: Option<SecretString>, include_usage: bool, wanted: usize) -> Self {
        Self {
            events: SseDecoder::new(DEFAULT_EVENT_LIMIT),
            key,
            include_usage,
            wanted,
            choices: Vec::new(),
            goes_on: false,
            is_empty: true,
            splitter: Splitter::default(),
            usage: None,
            ended: false,
        }
    }

    fn end(&mut self, with: Decoded, out: &mut VecDeque<Decoded>) {
        self.ended = true;
        out.push_back(with);
    }

    /// Whether at least one choice has begun and every such choice has its finish_reason.
    fn all_finished(&self) -> bool {
        !self.choices.is_empty() && self.choices.iter().all(|(_, finished)| *finished)
    }

    fn event(&mut self, event: SseEvent, out: &mut VecDeque<Decoded>) {
        let text = event.text().trim_ascii();
        if text.starts_with("[DONE]") {
            let end = if self.all_finished() {
                Decoded::Done(self.usage)
            } else {
                Decoded::Failed(failure::truncated())
            };
            return self.end(end, out);
        }
        if &event.name[..] == b"error" {
            let error = in_error_event(text);
            return self.end(
                Decoded::Failed(failure::in_band(error, self.key.as_ref())),
                out,
            );
        }
        if text.is_empty() {
            return;
        }
        if !text.starts_with('{') {
            return self.end(
                Decoded::Failed(bad_response(
                    "The provider's stream holds an event that is not a JSON object.",
                )),
                out,
            );
        }
        let chunk: Document<'_, Deltas> = match serde_json::from_str(text) {
            Ok(chunk) => chunk,
            Err(error) => {
                let error = failure::not_json_of(
                    "The provider's stream holds an event that is not a chat completion chunk",
                    &error,
                );
                return self.end(Decoded::Failed(error), out);
            }
        };
        if let Some(error) = chunk.error() {
            let error = failure::in_band(error, self.key.as_ref());
            return self.end(Decoded::Failed(error), out);
        }
        let usage = chunk.usage();
        let Some(deltas) = chunk.choices.or_else(|| usage.map(|_| Deltas::default())) else {
            return self.end(
                Decoded::Failed(bad_response(
                    "The provider's stream holds an event without choices.",
                )),
                out,
            );
        };
        let failed = deltas
            .iter()
            .find(|delta| delta.error.is_some() || delta.finish == Finish::Error);
        if let Some(delta) = failed {
            let error = delta.error.map_or("null", RawValue::get);
            let error = failure::in_band(error, self.key.as_ref());
            return self.end(Decoded::Failed(error), out);
        }
        let only_usage = deltas.is_empty() && usage.is_some();
        let (mut content, mut again) = (false, false);
        let mut edits = Edits::default();
        for delta in deltas.iter() {
            let finished = delta.finish == Finish::Given;
            let known = self
                .choices
                .iter()
                .position(|(known, _)| *known == delta.index);
            let finished_before = known.is_some_and(|known| self.choices[known].1);
            if delta.finish == Finish::Empty || (finished && finished_before) {
                edits.replace(text, delta.finish_reason, "null");
            }
            self.goes_on |= finished_before && delta.content;
            self.is_empty &= !delta.content && !delta.is_filtered;
            again |= finished && finished_before && !delta.content;
            content |= delta.content || (finished && !finished_before);
            self.splitter.join(text, delta, &mut edits);
            match known {
                Some(known) => self.choices[known].1 |= finished,
                None if self.choices.len() < MAX_CHOICES => {
                    self.choices.push((delta.index, finished));
                }
                None => {
                    return self.end(
                        Decoded::Failed(bad_response(format!(
                            "The provider's stream has more than {MAX_CHOICES} choices."
                        ))),
                        out,
                    );
                }
            }
        }
        let carries_usage = usage.is_some() && self.include_usage;
        self.usage = usage.or(self.usage);
        // A second finish_reason of a choice, with nothing beside it, would end the answer twice.
        let nothing = only_usage || (again && !content);
        if !nothing || carries_usage {
            let data = edits.apply(text).unwrap_or(event.data);
            out.push_back(Decoded::Chunk {
                data: one_line(data),
                content,
            });
        }
    }
}

impl ChunkDecoder for EventDecoder {
    fn push(&mut self, bytes: Bytes, out: &mut VecDeque<Decoded>) {
        if self.ended {
            return;
        }
        self.events.push(bytes);
        while !self.ended {
            match self.events.next_event() {
                Some(Ok(event)) => self.event(event, out),
                Some(Err(error)) => self.end(Decoded::Failed(failure::frame(error)), out),
                None => return,
            }
        }
    }

    fn is_complete(&self) -> bool {
        !self.ended && !self.goes_on && self.all_finished() && self.choices.len() >= self.wanted
    }

    fn is_inside_an_event(&self) -> bool {
        self.events.is_inside_data()
    }

    fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// Without `[DONE]` the end of the body is orderly if every requested choice is finished.
    fn finish(&mut self, out: &mut VecDeque<Decoded>) {
        if self.ended {
            return;
        }
        let complete = self.all_finished() && self.choices.len() >= self.wanted;
        let end = if complete {
            Decoded::Done(self.usage)
        } else {
            Decoded::Failed(failure::truncated())
        };
        self.end(end, out);
    }
}

/// The error in an event named `error`: its `error` member, or the whole data.
fn in_error_event(text: &str) -> &str {
    #[derive(serde::Deserialize)]
    struct Wrapped<'a> {
        #[serde(borrow)]
        error: &'a RawValue,
    }
    if !text.starts_with('{') {
        return text;
    }
    serde_json::from_str::<Wrapped<'_>>(text).map_or(text, |wrapped| wrapped.error.get())
}

/// Joins data of several lines into one line. JSON allows a line end only between tokens, where a
/// space means the same.
fn one_line(data: Bytes) -> Bytes {
    if memchr::memchr(b'\n', &data).is_none() {
        return data;
    }
    data.iter()
        .map(|byte| if *byte == b'\n' { b' ' } else { *byte })
        .collect()
}

/// A document instead of the requested stream: an error document with status 200, or no stream at
/// all.
struct DocumentDecoder {
    key: Option<SecretString>,
    body: Vec<u8>,
    ended: bool,
}

impl DocumentDecoder {
    /// The maximum size of an error document, in bytes.
    const LIMIT: usize = 64 * 1024;
}

impl ChunkDecoder for DocumentDecoder {
    fn is_inside_an_event(&self) -> bool {
        true
    }

    fn push(&mut self, bytes: Bytes, out: &mut VecDeque<Decoded>) {
        if self.ended {
            return;
        }
        let room = Self::LIMIT.saturating_sub(self.body.len());
        self.body.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room {
            self.ended = true;
            out.push_back(Decoded::Failed(bad_response(
                "The provider answered with a document instead of the requested stream of events.",
            )));
        }
    }

    fn finish(&mut self, out: &mut VecDeque<Decoded>) {
        if self.ended {
            return;
        }
        self.ended = true;
        let text = std::str::from_utf8(&self.body).unwrap_or_default();
        let document: Option<Document<'_, IgnoredAny>> = text
            .trim_ascii_start()
            .starts_with('{')
            .then(|| serde_json::from_str(text).ok())
            .flatten();
        let error = match document.as_ref().and_then(Document::error) {
            Some(error) => failure::in_band(error, self.key.as_ref()),
            None => bad_response(
                "The provider answered with a document instead of the requested stream of events.",
            ),
        };
        out.push_back(Decoded::Failed(error));
    }
}

#[cfg(test)]
mod tests;
