//! Reads Ollama's answers into OpenAI's shapes: it makes ids and times, `done_reason` becomes
//! `finish_reason`, tool calls receive an id, an index and their arguments as JSON text, `thinking`
//! becomes `reasoning_content`, and counts become usage (Ollama leaves a zero out).

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use secrecy::SecretString;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::llm::chat::{AttemptError, Completion, Usage};
use crate::llm::framing::DEFAULT_EVENT_LIMIT;
use crate::llm::framing::ndjson::NdjsonDecoder;
use crate::llm::provider::failure::{self, bad_response};
use crate::llm::provider::{ChunkDecoder, Decoded};

/// Reads a complete answer.
pub(super) fn completion(
    body: &[u8],
    key: Option<&SecretString>,
) -> Result<Completion, AttemptError> {
    let text = std::str::from_utf8(body)
        .map_err(|_| bad_response("The provider's answer is not UTF-8."))?;
    if text.trim_ascii().is_empty() {
        return Err(bad_response("The provider's answer is empty."));
    }
    let record = Record::read(text.trim_ascii(), key)?;
    if !record.done {
        return Err(bad_response("The provider's answer is not finished."));
    }
    let Some(message) = &record.message else {
        return Err(bad_response("The provider's answer has no message."));
    };
    let mut calls = ToolCalls::default().convert(&message.tool_calls);
    // Only the tool calls of a stream have an index.
    calls.iter_mut().for_each(|call| call.index = None);
    let finish_reason = finish_reason(&record, !calls.is_empty())?;
    let content = message.content.as_ref().map_or("", |text| &text.0);
    let usage = record.usage();
    let is_empty = calls.is_empty() && content.is_empty() && message.thinking().is_none();
    let document = Document {
        id: completion_id(),
        object: "chat.completion",
        created: record.created(),
        model: record.model(),
        choices: [Choice {
            index: 0,
            message: Message {
                role: "assistant",
                content: (calls.is_empty() || !content.is_empty()).then_some(content),
                reasoning_content: message.thinking(),
                tool_calls: calls,
            },
            logprobs: (),
            finish_reason,
        }],
        usage,
    };
    Ok(Completion {
        body: to_json_bytes(&document),
        usage: Some(usage),
        is_empty,
    })
}

/// Decodes the records of one stream.
pub(super) struct RecordDecoder {
    records: NdjsonDecoder,
    key: Option<SecretString>,
    include_usage: bool,
    id: String,
    /// The time of the first record, which every chunk repeats; `None` before the first record.
    created: Option<u64>,
    calls: ToolCalls,
    /// Whether no record has had content.
    is_empty: bool,
    ended: bool,
}

impl RecordDecoder {
    pub(super) fn new(key: Option<SecretString>, include_usage: bool) -> Self {
        Self {
            records: NdjsonDecoder::new(DEFAULT_EVENT_LIMIT),
            key,
            include_usage,
            id: completion_id(),
            created: None,
            calls: ToolCalls::default(),
            is_empty: true,
            ended: false,
        }
    }

    fn end(&mut self, with: Decoded, out: &mut VecDeque<Decoded>) {
        self.ended = true;
        out.push_back(with);
    }

    /// Reads one record. `last` marks a record without a newline at the end of the body, which may
    /// be incomplete.
    fn record(&mut self, record: &Bytes, last: bool, out: &mut VecDeque<Decoded>) {
        // The framing has checked that the record is UTF-8.
        let text = std::str::from_utf8(record).unwrap_or_default();
        let record = match Record::read(text, self.key.as_ref()) {
            Ok(record) => record,
            Err(_) if last && is_incomplete(text) => {
                return self.end(Decoded::Failed(failure::truncated()), out);
            }
            Err(error) => return self.end(Decoded::Failed(error), out),
        };
        if record.message.is_none() && !record.done {
            return self.end(
                Decoded::Failed(bad_response(
                    "The provider's stream holds a record without a message.",
                )),
                out,
            );
        }
        let calls = record
            .message
            .as_ref()
            .map(|message| self.calls.convert(&message.tool_calls))
            .unwrap_or_default();
        let ended = match record
            .done
            .then(|| finish_reason(&record, self.calls.any()))
            .transpose()
        {
            Ok(ended) => ended,
            Err(error) => return self.end(Decoded::Failed(error), out),
        };
        let first = self.created.is_none();
        let created = *self.created.get_or_insert_with(|| record.created());
        let chunk = |delta, finish_reason| Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created,
            model: record.model(),
            choices: vec![ChunkChoice {
                index: 0,
                delta,
                logprobs: (),
                finish_reason,
            }],
            usage: self.include_usage.then_some(None),
        };
        if first {
            let delta = Delta {
                role: Some("assistant"),
                content: Some(""),
                ..Delta::default()
            };
            out.push_back(Decoded::Chunk {
                data: to_json_bytes(&chunk(delta, None)),
                content: false,
            });
        }
        let content = record
            .message
            .as_ref()
            .and_then(|message| message.content.as_ref())
            .map(|text| &*text.0)
            .filter(|text| !text.is_empty());
        let delta = Delta {
            role: None,
            content,
            reasoning_content: record.message.as_ref().and_then(RecordMessage::thinking),
            tool_calls: calls,
        };
        if delta.has_content() {
            self.is_empty = false;
            out.push_back(Decoded::Chunk {
                data: to_json_bytes(&chunk(delta, None)),
                content: true,
            });
        }
        if let Some(finish_reason) = ended {
            out.push_back(Decoded::Chunk {
                data: to_json_bytes(&chunk(Delta::default(), Some(finish_reason))),
                content: true,
            });
            let usage = record.usage();
            if self.include_usage {
                let chunk = Chunk {
                    choices: Vec::new(),
                    usage: Some(Some(usage)),
                    ..chunk(Delta::default(), None)
                };
                out.push_back(Decoded::Chunk {
                    data: to_json_bytes(&chunk),
                    content: false,
                });
            }
            self.end(Decoded::Done(Some(usage)), out);
        }
    }
}

impl ChunkDecoder for RecordDecoder {
    fn push(&mut self, bytes: Bytes, out: &mut VecDeque<Decoded>) {
        if self.ended {
            return;
        }
        self.records.push(bytes);
        while !self.ended {
            match self.records.next_record() {
                Some(Ok(record)) => self.record(&record, false, out),
                Some(Err(error)) => self.end(Decoded::Failed(failure::frame(error)), out),
                None => return,
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.is_empty
    }

    fn is_inside_an_event(&self) -> bool {
        self.records.is_inside_a_record()
    }

    fn finish(&mut self, out: &mut VecDeque<Decoded>) {
        if self.ended {
            return;
        }
        match self.records.finish() {
            Some(Ok(record)) => self.record(&record, true, out),
            Some(Err(error)) => self.end(Decoded::Failed(failure::frame(error)), out),
            None => {}
        }
        if !self.ended {
            self.end(Decoded::Failed(failure::truncated()), out);
        }
    }
}

/// Whether a record ends too early, as opposed to being wrong.
fn is_incomplete(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_err_and(|error| error.is_eof())
}

/// One line of a stream, or a complete answer.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    created_at: Option<Text<'a>>,
    #[serde(borrow)]
    message: Option<RecordMessage<'a>>,
    #[serde(default)]
    done: bool,
    #[serde(borrow)]
    done_reason: Option<Text<'a>>,
    prompt_eval_count: Option<u64>,
    eval_count: Option<u64>,
}

#[derive(Deserialize)]
struct RecordMessage<'a> {
    #[serde(borrow)]
    content: Option<Text<'a>>,
    #[serde(borrow)]
    thinking: Option<Text<'a>>,
    #[serde(borrow)]
    tool_calls: Option<Vec<RecordToolCall<'a>>>,
}

#[derive(Deserialize)]
struct RecordToolCall<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    function: RecordFunction<'a>,
}

#[derive(Deserialize)]
struct RecordFunction<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

/// A text, which is borrowed unless it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Record<'a> {
    /// Reads a record. A record that holds an error is an error.
    fn read(text: &'a str, key: Option<&SecretString>) -> Result<Self, AttemptError> {
        if text.starts_with('<') {
            return Err(bad_response("The provider answered with an HTML page."));
        }
        if !text.starts_with('{') {
            return Err(bad_response("The provider's answer is not a JSON object."));
        }
        let record: Self = serde_json::from_str(text).map_err(|error| {
            failure::not_json_of("The provider's answer is not one of Ollama's", &error)
        })?;
        match record.error.map(RawValue::get) {
            None | Some("null" | "false" | "\"\"") => Ok(record),
            Some(error) => Err(failure::in_band(error, key)),
        }
    }

    fn model(&self) -> &str {
        self.model.as_ref().map_or("", |model| &model.0)
    }

    /// The time of the answer in seconds since 1970: the provider's, or the gateway's if it sent
    /// none.
    fn created(&self) -> u64 {
        let created_at = self
            .created_at
            .as_ref()
            .and_then(|text| text.0.parse::<jiff::Timestamp>().ok());
        match created_at.and_then(|time| u64::try_from(time.as_second()).ok()) {
            Some(seconds) => seconds,
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        }
    }

    fn usage(&self) -> Usage {
        let (prompt_tokens, completion_tokens) = (
            self.prompt_eval_count.unwrap_or(0),
            self.eval_count.unwrap_or(0),
        );
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
        }
    }
}

impl RecordMessage<'_> {
    fn thinking(&self) -> Option<&str> {
        self.thinking
            .as_ref()
            .map(|text| &*text.0)
            .filter(|text| !text.is_empty())
    }
}

/// Translates `done_reason` into a finish_reason. Older servers leave it out, and a load of the
/// model is no answer.
fn finish_reason(record: &Record<'_>, called: bool) -> Result<&'static str, AttemptError> {
    match record.done_reason.as_ref().map_or("", |reason| &*reason.0) {
        "load" | "unload" => Err(bad_response(
            "The provider loaded or unloaded its model and sent no answer.",
        )),
        "length" => Ok("length"),
        _ if called => Ok("tool_calls"),
        _ => Ok("stop"),
    }
}

/// The tool calls of one answer, with consecutive indexes and unique ids.
#[derive(Default)]
struct ToolCalls {
    ids: HashSet<String>,
}

impl ToolCalls {
    fn any(&self) -> bool {
        !self.ids.is_empty()
    }

    fn convert<'a>(&mut self, calls: &'a Option<Vec<RecordToolCall<'_>>>) -> Vec<ToolCall<'a>> {
        calls
            .iter()
            .flatten()
            .map(|call| self.convert_one(call))
            .collect()
    }

    fn convert_one<'a>(&mut self, call: &'a RecordToolCall<'_>) -> ToolCall<'a> {
        let index = self.ids.len();
        let given = call
            .id
            .as_ref()
            .map(|id| id.0.to_string())
            .filter(|id| !id.is_empty() && !self.ids.contains(id));
        let id = given.unwrap_or_else(|| format!("call_{}", Uuid::new_v4().simple()));
        self.ids.insert(id.clone());
        let arguments = match call.function.arguments.map(RawValue::get) {
            None => Cow::Borrowed("{}"),
            // The templates of some models yield the arguments as text already.
            Some(text) if text.starts_with('"') => {
                serde_json::from_str(text).map_or(Cow::Borrowed(text), Cow::Owned)
            }
            Some(object) => Cow::Borrowed(object),
        };
        ToolCall {
            index: Some(index),
            id,
            kind: "function",
            function: Function {
                name: &call.function.name.0,
                arguments,
            },
        }
    }
}

fn completion_id() -> String {
    format!("chatcmpl-{}", Uuid::new_v4().simple())
}

fn to_json_bytes(document: &impl Serialize) -> Bytes {
    // The structs hold strings and integers under string keys, which serde_json always accepts.
    #[allow(clippy::expect_used)]
    serde_json::to_vec(document)
        .expect("every document and chunk can be written")
        .into()
}

/// A `chat.completion`.
#[derive(Serialize)]
struct Document<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [Choice<'a>; 1],
    usage: Usage,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Message<'a>,
    logprobs: (),
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall<'a>>,
}

/// A `chat.completion.chunk`.
#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChunkChoice<'a>>,
    /// Absent without `stream_options.include_usage`; with it, null in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: (),
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall<'a>>,
}

impl Delta<'_> {
    fn has_content(&self) -> bool {
        self.content.is_some() || self.reasoning_content.is_some() || !self.tool_calls.is_empty()
    }
}

#[derive(Serialize)]
struct ToolCall<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    arguments: Cow<'a, str>,
}
