//! Turns the bytes of a provider's stream into OpenAI's chunks. The result does not depend on how
//! the bytes were split.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem;

use serde_json::{Value, json};

use super::error::{AttemptError, Cause};
use super::protocol::{self, Protocol, Usage};
use crate::defect::Defect;
use crate::utf16;

/// What a stream yields: any number of chunks, then one `Done` or one `Failed`.
#[derive(Debug)]
pub(super) enum Item {
    /// One `chat.completion.chunk` as JSON text, and whether it holds real content (the commit
    /// point).
    Chunk { data: String, content: bool },
    /// The provider ended the stream as it should.
    Done(Option<Usage>),
    /// The provider broke the stream off.
    Failed(AttemptError),
}

/// The largest event (STRM-08).
const EVENT_BOUND: usize = 4 << 20;

/// Reads one stream.
pub(super) struct Decoder {
    protocol: Protocol,
    secret: String,
    include_usage: bool,
    /// The number of choices that the client asks for.
    wanted: usize,
    /// For [`Defect::IgnoresContentType`]: the head is not that of a stream.
    mislabelled: bool,
    defect: Option<Defect>,
    buffer: Vec<u8>,
    data: Option<String>,
    /// The name of the event that is still to be completed.
    name: String,
    after_cr: bool,
    started: bool,
    tools: usize,
    /// For [`Defect::FragmentsGoToLastCall`].
    last_call: u64,
    finished: bool,
    /// The choices that have begun, and whether each is finished.
    choices: BTreeMap<u64, bool>,
    /// The first half of a surrogate pair with which a text ended, by its choice and, in arguments,
    /// its tool call.
    halves: HashMap<(u64, Option<u64>), char>,
    over: bool,
    usage: Option<Usage>,
    text: String,
    has_content: bool,
    held: Option<Item>,
    /// The id and the time of creation of the chunks that the gateway makes itself: the same on
    /// all.
    made: Value,
}

impl Decoder {
    pub(super) fn new(
        protocol: Protocol,
        secret: &str,
        (include_usage, wanted): (bool, usize),
        mislabelled: bool,
        defect: Option<Defect>,
    ) -> Self {
        Self {
            protocol,
            secret: secret.to_owned(),
            include_usage,
            wanted,
            mislabelled,
            defect,
            buffer: Vec::new(),
            data: None,
            name: String::new(),
            after_cr: false,
            started: false,
            tools: 0,
            last_call: 0,
            finished: false,
            choices: BTreeMap::new(),
            halves: HashMap::new(),
            over: false,
            usage: None,
            text: String::new(),
            has_content: false,
            held: None,
            made: protocol::envelope("chat.completion.chunk", "", &json!([])),
        }
    }

    fn chunk(&self, model: &str, choices: Value) -> Value {
        let mut chunk = self.made.clone();
        if self.has(Defect::TranslatesWithFreshIds) {
            chunk["id"] = uuid::Uuid::now_v7().to_string().into();
        }
        if self.has(Defect::TranslatesWithOneId) {
            chunk["id"] = "chatcmpl-1".into();
        }
        chunk["model"] = model.into();
        chunk["choices"] = choices;
        chunk
    }

    fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    /// Whether an answer has content so far: a text, a tool call, a refusal, or a content filter.
    pub(super) fn has_content(&self) -> bool {
        self.has_content
    }

    /// Whether any text has come; for [`Defect::RestartsToolCalls`].
    pub(super) fn has_text(&self) -> bool {
        !self.text.is_empty()
    }

    /// [`Defect::SharesBuffer`]: goes on with what another stream has left.
    pub(super) fn swap_buffer(&mut self, other: &mut Vec<u8>) {
        mem::swap(&mut self.buffer, other);
    }

    /// Takes the next bytes; appends what they complete.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut VecDeque<Item>) {
        let replaced;
        let bytes = if self.has(Defect::DecodesEachRead) {
            replaced = String::from_utf8_lossy(bytes).into_owned();
            replaced.as_bytes()
        } else {
            bytes
        };
        if self.has(Defect::ReadsSseByPrefix) && self.protocol == Protocol::OpenAi {
            return self.push_by_prefix(bytes, out);
        }
        let mut rest = bytes;
        while !rest.is_empty() && !self.over {
            if mem::take(&mut self.after_cr) && rest[0] == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let (piece, end) = match rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
                Some(at) => (&rest[..at], Some(rest[at])),
                None => (rest, None),
            };
            self.buffer.extend_from_slice(piece);
            rest = &rest[piece.len() + usize::from(end.is_some())..];
            if let Some(end) = end {
                self.after_cr = end == b'\r';
                let line = mem::take(&mut self.buffer);
                self.line(&line, out);
            }
            let held = self.buffer.len() + self.data.as_ref().map_or(0, String::len);
            if held > EVENT_BOUND && !self.over && !self.has(Defect::UnboundedEvent) {
                self.fail(
                    AttemptError::new(Cause::Oversized, "an event of the stream is too large"),
                    out,
                );
            }
        }
    }

    /// Whether every choice that was asked for is finished, so that nothing but usage can follow.
    pub(super) fn is_complete(&self) -> bool {
        if self.over || self.protocol == Protocol::Ollama {
            return false;
        }
        if self.has(Defect::OneFinishIsTheEnd) {
            return self.choices.values().any(|finished| *finished);
        }
        self.are_finished() && self.choices.len() >= self.wanted
    }

    fn are_finished(&self) -> bool {
        self.finished
            || (!self.choices.is_empty() && self.choices.values().all(|finished| *finished))
    }

    /// Whether a part of something that is no heartbeat has come, and not its end.
    pub(super) fn is_inside_an_event(&self) -> bool {
        let begun = self.buffer.get(..64).unwrap_or(&self.buffer);
        match self.protocol {
            Protocol::Ollama => !begun.trim_ascii().is_empty(),
            Protocol::OpenAi => {
                let data = begun.strip_prefix(b"data:").unwrap_or_default();
                !data.trim_ascii().is_empty()
                    || self.data.as_ref().is_some_and(|data| !data.is_empty())
            }
        }
    }

    /// Ends the body in order: that is an end only after a finish_reason (STRM-01).
    pub(super) fn finish(&mut self, out: &mut VecDeque<Item>) {
        let unended = self.protocol == Protocol::Ollama && !self.buffer.is_empty();
        if unended && !self.over && !self.has(Defect::LosesUnendedRecord) {
            let line = mem::take(&mut self.buffer);
            self.line(&line, out);
        }
        self.forward_rest(out);
        if self.over {
            return;
        }
        let wanted = self.choices.len() >= self.wanted || self.finished;
        let complete = (self.are_finished() && wanted) || self.is_complete();
        if complete || (self.mislabelled && self.has(Defect::IgnoresContentType)) {
            self.done(out);
        } else if self.has(Defect::InventsFinish) && self.started {
            let choices = json!([{ "index": 0, "delta": {}, "finish_reason": "stop" }]);
            out.push_back(Item::Chunk {
                data: self.chunk("", choices).to_string(),
                content: true,
            });
            self.done(out);
        } else {
            self.fail(
                AttemptError::new(Cause::Truncated, "the stream ended without a finish_reason"),
                out,
            );
        }
    }

    /// Ends a body that was cut: what stands in the buffer is no event (STRM-03).
    pub(super) fn cut(&mut self, error: AttemptError, out: &mut VecDeque<Item>) {
        self.forward_rest(out);
        if !self.over {
            self.fail(error, out);
        }
    }

    fn line(&mut self, line: &[u8], out: &mut VecDeque<Item>) {
        let Ok(line) = std::str::from_utf8(line) else {
            return self.malformed(out);
        };
        match self.protocol {
            Protocol::Ollama if line.trim().is_empty() => {}
            Protocol::Ollama => self.record(line, out),
            Protocol::OpenAi if line.is_empty() => {
                let name = mem::take(&mut self.name);
                match self.data.take() {
                    Some(data) => self.event(&data, &name, out),
                    None if self.has(Defect::HeartbeatEndsStream) && !self.text.is_empty() => {
                        self.done(out)
                    }
                    None => {}
                }
            }
            Protocol::OpenAi
                if line.starts_with(':')
                    && self.text.is_empty()
                    && self.has(Defect::CommentBecomesData) =>
            {
                out.push_back(Item::Chunk {
                    data: line.to_owned(),
                    content: false,
                });
            }
            Protocol::OpenAi => {
                let line = line.strip_prefix('\u{feff}').unwrap_or(line);
                let (field, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.strip_prefix(' ').unwrap_or(value);
                if field == "event" {
                    self.name = value.to_owned();
                }
                if field == "data" {
                    match &mut self.data {
                        Some(data) => *data = format!("{data}\n{value}"),
                        None => self.data = Some(value.to_owned()),
                    }
                }
            }
        }
    }

    /// One event of an OpenAI stream.
    fn event(&mut self, data: &str, name: &str, out: &mut VecDeque<Item>) {
        if data.trim().is_empty() && !self.has(Defect::EmptyDataIsMalformed) {
            return;
        }
        self.started = true;
        if data.trim() == "[DONE]" {
            if self.has(Defect::ReadsPastDone) {
                out.push_back(Item::Chunk {
                    data: "[DONE]".into(),
                    content: false,
                });
                return;
            }
            return match self.are_finished() {
                true => self.done(out),
                false => self.fail(
                    AttemptError::new(Cause::Truncated, "the stream ended without a finish_reason"),
                    out,
                ),
            };
        }
        let readable = if self.has(Defect::HalfPairBreaksStream) {
            data.into()
        } else {
            utf16::readable(data)
        };
        let Ok(mut chunk) = serde_json::from_str::<Value>(&readable) else {
            return self.malformed(out);
        };
        if !chunk.is_object() {
            return self.malformed(out);
        }
        let null_counts = self.has(Defect::NullErrorIsError);
        if chunk
            .get("error")
            .is_some_and(|error| !error.is_null() || null_counts)
        {
            return self.in_band(&chunk, out);
        }
        if name == "error" {
            return self.in_band(&json!({ "error": chunk }), out);
        }
        self.usage = Usage::of(&chunk).or(self.usage);
        let choices = chunk["choices"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        if choices.is_empty() && self.has(Defect::DropsUsageChunk) {
            return;
        }
        let late = self.has_text() && self.has(Defect::IgnoresLateErrors);
        if let Some(choice) = protocol::failed_choice(choices, self.defect).filter(|_| !late) {
            let error = protocol::choice_error(choice, &self.secret, self.defect);
            return self.fail(error, out);
        }
        self.has_content |= choices.iter().any(has_answer);
        let content = choices.iter().any(is_content);
        if self.has(Defect::StopsAtFinish) && content && self.is_complete() {
            return;
        }
        self.text.extend(
            choices
                .iter()
                .filter_map(|choice| choice["delta"]["content"].as_str()),
        );
        let has_partial_arguments = choices.iter().any(has_partial_arguments);
        let mut changed = matches!(readable, std::borrow::Cow::Owned(_));
        let mut again = false;
        for choice in chunk["choices"].as_array_mut().into_iter().flatten() {
            changed |= self.join_halves(choice);
            let (ended, before) = self.end_choice(choice);
            changed |= ended;
            again |= before;
        }
        let takes_usage = again && chunk["usage"].is_object();
        if takes_usage && self.has(Defect::SecondFinishTakesUsage) {
            return;
        }
        if self.has(Defect::DropsPartialArguments) && has_partial_arguments {
            return;
        }
        if self.has(Defect::KeepsOnlyText) {
            strip_to_text(&mut chunk);
        }
        let mut last_call = self.last_call;
        if self.has(Defect::FragmentsGoToLastCall) {
            let choices = chunk["choices"].as_array_mut().into_iter().flatten();
            let calls = choices.filter_map(|choice| choice["delta"]["tool_calls"].as_array_mut());
            for call in calls.flatten() {
                match call["id"].is_string() {
                    true => last_call = call["index"].as_u64().unwrap_or(0),
                    false => call["index"] = last_call.into(),
                }
            }
            self.last_call = last_call;
            changed = true;
        }
        if self.has(Defect::StreamsFirstChoice)
            && let Some(choices) = chunk["choices"].as_array_mut()
        {
            choices.retain(|choice| choice["index"].as_u64().unwrap_or(0) == 0);
            changed = true;
        }
        if self.has(Defect::StreamLosesUsageDetails)
            && let Some(usage) = Usage::of(&chunk)
        {
            chunk["usage"] = usage.document();
            changed = true;
        }
        let guesses = self.has(Defect::GuessesUsage) || self.has(Defect::GuessesUsageOfStreams);
        if guesses && chunk["usage"].is_object() {
            chunk["usage"] = protocol::guess(&self.text).document();
        }
        let rewritten =
            self.has(Defect::KeepsOnlyText) || guesses || changed || data.contains('\n');
        let data = if rewritten {
            chunk.to_string()
        } else {
            data.to_owned()
        };
        self.emit(data, content, &chunk, out);
    }

    /// Joins the halves of surrogate pairs in the texts of a choice. Whether that changed the
    /// choice.
    fn join_halves(&mut self, choice: &mut Value) -> bool {
        let index = if self.has(Defect::JoinsHalvesAcrossChoices) {
            0
        } else {
            choice["index"].as_u64().unwrap_or(0)
        };
        let delta = &mut choice["delta"];
        let mut changed = self.join_text((index, None), delta.get_mut("content"));
        let calls = delta.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            let key = (index, call["index"].as_u64());
            changed |= self.join_text(key, call.pointer_mut("/function/arguments"));
        }
        changed
    }

    /// Keeps back what the text ends with, if it is the first half of a surrogate pair, and puts
    /// what was kept back before it. Whether that changed the text.
    fn join_text(&mut self, key: (u64, Option<u64>), value: Option<&mut Value>) -> bool {
        let Some(Value::String(text)) = value else {
            return false;
        };
        if text.is_empty() {
            return false;
        }
        let waiting = self.halves.remove(&key);
        let mut joined: String = waiting.into_iter().chain(text.chars()).collect();
        let replaces = self.has(Defect::ReplacesHalfPairs)
            || (self.has(Defect::ReplacesHalfPairsOfArguments) && key.1.is_some());
        if joined.ends_with(utf16::is_first_half) && !replaces {
            self.halves.extend(joined.pop().map(|half| (key, half)));
        }
        let mut joined = utf16::joined(&joined);
        if self.has(Defect::UnescapesTwice) {
            joined = joined.replace("\\ud83d", "\u{fffd}");
        }
        let changed = joined != *text;
        *text = joined;
        changed
    }

    /// Notes the finish_reason of a choice. A second one, and one without text, becomes null.
    /// Whether that changed the choice, and whether it was a second one.
    fn end_choice(&mut self, choice: &mut Value) -> (bool, bool) {
        let index = if self.has(Defect::OneFinishForAllChoices) {
            0
        } else {
            choice["index"].as_u64().unwrap_or(0)
        };
        let finished = match choice["finish_reason"].as_str() {
            Some("") if !self.has(Defect::PassesEmptyFinish) => {
                choice["finish_reason"] = Value::Null;
                self.choices.entry(index).or_insert(false);
                return (true, false);
            }
            finish => finish.is_some(),
        };
        let known = self.choices.entry(index).or_insert(false);
        let again = finished && std::mem::replace(known, *known || finished);
        let mends = again && !self.has(Defect::PassesSecondFinish);
        if mends {
            choice["finish_reason"] = Value::Null;
        }
        (mends, again)
    }

    /// One line of an Ollama stream.
    fn record(&mut self, line: &str, out: &mut VecDeque<Item>) {
        let Ok(record) = serde_json::from_str::<Value>(line) else {
            return self.malformed(out);
        };
        if record.get("error").is_some_and(|error| !error.is_null()) {
            return self.in_band(&record, out);
        }
        let model = record["model"].as_str().unwrap_or_default();
        let message = &record["message"];
        let mut delta = json!({});
        if !mem::replace(&mut self.started, true) {
            delta["role"] = "assistant".into();
        }
        let loses_text = record["done"] == true && self.has(Defect::DropsTextOfLastRecord);
        if let Some(text) = message["content"]
            .as_str()
            .filter(|text| !text.is_empty() && !loses_text)
        {
            delta["content"] = text.into();
            self.text.push_str(text);
        }
        let first = if self.has(Defect::IndexRestartsEachRecord) {
            0
        } else {
            self.tools
        };
        let calls = protocol::tool_calls(message, first, self.defect);
        if !calls.is_empty() {
            self.tools += calls.len();
            delta["tool_calls"] = calls.into();
        }
        let done = record["done"] == true;
        let finish = if done {
            protocol::finish_reason(&record, self.tools > 0, self.defect).into()
        } else {
            Value::Null
        };
        let choices = json!([{ "index": 0, "delta": delta, "finish_reason": finish }]);
        let content = is_content(&choices[0]);
        self.has_content |= has_answer(&choices[0]);
        let chunk = self.chunk(model, choices);
        self.emit(chunk.to_string(), content, &chunk, out);
        if done {
            self.finished = true;
            if self.has(Defect::CopiesOllamaFields) {
                return self.done(out);
            }
            let usage = Usage::of_ollama(&record);
            self.usage = Some(if self.has(Defect::GuessesUsage) {
                protocol::guess(&self.text)
            } else {
                usage
            });
            if self.include_usage && !self.has(Defect::DropsUsageChunk) {
                let mut chunk = self.chunk(model, json!([]));
                chunk["usage"] = self.usage.unwrap_or_default().document();
                out.push_back(Item::Chunk {
                    data: chunk.to_string(),
                    content: false,
                });
            }
            self.done(out);
        }
    }

    fn emit(&mut self, data: String, content: bool, chunk: &Value, out: &mut VecDeque<Item>) {
        let item = Item::Chunk { data, content };
        let text = chunk
            .pointer("/choices/0/delta/content")
            .and_then(Value::as_str)
            .is_some_and(|text| !text.is_empty());
        if self.has(Defect::StreamLosesLastText) && text {
            out.extend(self.held.replace(item));
        } else {
            out.push_back(item);
        }
    }

    fn done(&mut self, out: &mut VecDeque<Item>) {
        self.over = true;
        let usage = if self.has(Defect::GuessesUsage) {
            Some(protocol::guess(&self.text))
        } else {
            self.usage
        };
        out.push_back(Item::Done(usage));
    }

    fn fail(&mut self, error: AttemptError, out: &mut VecDeque<Item>) {
        self.over = true;
        out.push_back(Item::Failed(error));
    }

    fn malformed(&mut self, out: &mut VecDeque<Item>) {
        if !self.has(Defect::SkipsMalformed) {
            self.fail(
                AttemptError::new(Cause::BadResponse, "an event of the stream cannot be read"),
                out,
            );
        }
    }

    fn in_band(&mut self, document: &Value, out: &mut VecDeque<Item>) {
        if self.has(Defect::SkipsInBandError) {
            self.finished = true;
            return;
        }
        let secret = match self.has(Defect::PassesErrorEvents) {
            true => "",
            false => &self.secret,
        };
        let error = AttemptError::from_document(Cause::InBand, document, secret);
        self.fail(error, out);
    }

    /// [`Defect::ReadsSseByPrefix`].
    fn push_by_prefix(&mut self, bytes: &[u8], out: &mut VecDeque<Item>) {
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let event = String::from_utf8_lossy(&event).into_owned();
            if let Some(data) = event.trim_end().strip_prefix("data: ")
                && !self.over
            {
                self.event(data, "", out);
            }
        }
    }

    /// [`Defect::ForwardsPartialEvent`].
    fn forward_rest(&mut self, out: &mut VecDeque<Item>) {
        if !self.has(Defect::ForwardsPartialEvent) || self.over {
            return;
        }
        let rest = String::from_utf8_lossy(&self.buffer).into_owned();
        let rest =
            self.data.take().unwrap_or_default() + rest.strip_prefix("data:").unwrap_or(&rest);
        if !rest.trim().is_empty() {
            out.push_back(Item::Chunk {
                data: rest.trim().to_owned(),
                content: true,
            });
        }
    }
}

/// Whether the chunk holds text, a tool call, a refusal, reasoning or a finish: an answer that
/// holds one is known to be good.
fn is_content(choice: &Value) -> bool {
    choice["finish_reason"].is_string() || has_answer(choice)
}

/// Whether the chunk holds something that a client can use, or is filtered.
fn has_answer(choice: &Value) -> bool {
    let delta = &choice["delta"];
    let filled = |key: &str| delta[key].as_str().is_some_and(|text| !text.is_empty());
    choice["finish_reason"] == "content_filter"
        || ["content", "refusal", "reasoning", "reasoning_content"]
            .into_iter()
            .any(filled)
        || delta["tool_calls"]
            .as_array()
            .is_some_and(|calls| !calls.is_empty())
}

fn has_partial_arguments(choice: &Value) -> bool {
    let calls = choice["delta"]["tool_calls"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let partial = |call: &Value| {
        call["function"]["arguments"]
            .as_str()
            .is_some_and(|text| serde_json::from_str::<Value>(text).is_err())
    };
    calls.iter().any(partial)
}

fn strip_to_text(chunk: &mut Value) {
    for choice in chunk["choices"].as_array_mut().into_iter().flatten() {
        if let Some(delta) = choice["delta"].as_object_mut() {
            delta.retain(|key, _| key == "role" || key == "content");
        }
        if choice["finish_reason"].is_string() {
            choice["finish_reason"] = "stop".into();
        }
    }
}
