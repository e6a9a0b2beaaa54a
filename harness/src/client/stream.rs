//! A streamed answer, read event by event or as a whole transcript.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_openai::types::chat::CreateChatCompletionStreamResponse;
use bytes::{Bytes, BytesMut};
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::sse::{Reader, Sse};
use super::{Exchange, Transport};
use crate::gate;
use crate::tape::{Budget, Event};
use crate::verdict::Failure;
use crate::wire::http::message::{self, Body, ResponseHead};

/// How many events of one answer are read: no client could use more.
const MOST_EVENTS: usize = 1 << 20;

/// How a streamed answer ended for the transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The body ended where its framing says.
    Orderly,
    /// The connection ended before the end of the body, or was reset; the text says how.
    Cut(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Orderly => f.write_str("in order, as if it were complete"),
            Self::Cut(how) => write!(f, "before the end of its body ({how})"),
        }
    }
}

impl Serialize for End {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamEvent {
    /// Its number in the stream, from 1.
    pub n: usize,
    /// Its name (`event:`), if it has one.
    pub name: Option<String>,
    /// Its data with the lines joined.
    pub data: String,
    /// The data, if it is JSON.
    pub json: Option<Value>,
    /// The content of the first choice's delta; empty if there is none.
    pub delta_text: String,
}

impl StreamEvent {
    /// Whether it is `[DONE]`, the end of OpenAI's streams.
    pub fn is_done(&self) -> bool {
        self.data == "[DONE]"
    }

    /// The in-band error, if the event is one: by its name or by a member `error`.
    pub fn error(&self) -> Option<&Value> {
        let json = self.json.as_ref()?;
        match &json["error"] {
            Value::Null if self.name.as_deref() == Some("error") => Some(json),
            Value::Null => None,
            error => Some(error),
        }
    }
}

/// An answer whose head has come. Nothing is read ahead of the case. Dropping it before its end
/// closes the connection, as a client does that leaves.
#[derive(Debug)]
pub struct StreamReply {
    /// The status code.
    pub status: u16,
    /// Names and values in the order and spelling of the gateway.
    pub headers: Vec<(String, String)>,
    exchange: Exchange,
    body: Body,
    raw: BytesMut,
    reader: Reader,
    events: usize,
    end: Option<End>,
    kept: Budget,
}

impl StreamReply {
    pub(super) fn new(exchange: Exchange, head: ResponseHead, body: Body) -> Self {
        Self {
            status: head.status,
            headers: head.headers,
            exchange,
            body,
            raw: BytesMut::new(),
            reader: Reader::default(),
            events: 0,
            end: None,
            kept: Budget::default(),
        }
    }

    /// The first header of that name, whatever its spelling.
    pub fn header(&self, name: &str) -> Option<&str> {
        message::header(&self.headers, name)
    }

    /// The label of the exchange.
    pub fn label(&self) -> &str {
        self.exchange.label()
    }

    /// The number of bytes of the stream that lie in the buffers of the operating system; `None`
    /// where the system does not show them.
    pub fn in_buffers(&self) -> Option<u64> {
        self.exchange.in_buffers()
    }

    /// The bytes of the stream that were read, without their framing.
    pub fn bytes(&self) -> &[u8] {
        &self.raw
    }

    /// Reads until there are more bytes than there were, or the stream has ended; returns whether
    /// there are. This is for streams that are no events, such as coded ones.
    ///
    /// # Errors
    /// A violation by a hang.
    pub async fn more(&mut self) -> Result<bool, Failure> {
        let what = format!("more of the stream to client {}", self.exchange.label());
        let before = self.raw.len();
        let reading = async {
            while self.raw.len() == before && self.end.is_none() {
                self.read_some().await;
            }
        };
        gate::guard("hang.bytes", &what, reading).await?;
        Ok(self.raw.len() > before)
    }

    /// The next event; `None` at the end, of which [`StreamReply::end`] gives the kind.
    ///
    /// # Errors
    /// A violation by a hang, or by an answer that is too large.
    pub async fn next(&mut self) -> Result<Option<StreamEvent>, Failure> {
        let what = format!(
            "event {} of the stream to client {}, or its end",
            self.events + 1,
            self.exchange.label()
        );
        gate::guard("hang.event", &what, self.read_event()).await?
    }

    /// Reads until the text has at least this many characters, and returns it. The text is shorter
    /// only at the end of the stream.
    ///
    /// # Errors
    /// As [`StreamReply::next`]; one hang guard holds for all of it.
    pub async fn text_of(&mut self, characters: usize) -> Result<String, Failure> {
        let what = format!(
            "{characters} characters of the stream to client {}, or its end",
            self.exchange.label()
        );
        let reading = async {
            let mut text = String::new();
            while text.chars().count() < characters {
                match self.read_event().await? {
                    Some(event) => text.push_str(&event.delta_text),
                    None => break,
                }
            }
            Ok(text)
        };
        gate::guard("hang.text", &what, reading).await?
    }

    /// How the stream ended; `None` as long as it has not ended.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Closes the connection, even if more events are coming.
    pub fn leave(self) {}

    /// Reads to the end.
    ///
    /// # Errors
    /// As [`StreamReply::next`]. One hang guard holds for the whole stream, so that a stream
    /// without end is the gateway's violation.
    pub async fn collect(mut self) -> Result<Transcript, Failure> {
        let what = format!("the end of the stream to client {}", self.exchange.label());
        let come = AtomicUsize::new(0);
        let reading = async {
            let mut events = Vec::new();
            while let Some(event) = self.read_event().await? {
                events.push(event);
                come.store(events.len(), Ordering::Relaxed);
            }
            Ok::<_, Failure>(events)
        };
        let events = gate::guard_with("hang.stream", &what, reading, || {
            format!("{} events came and no end", come.load(Ordering::Relaxed))
        })
        .await??;
        let mut transcript = Transcript {
            status: self.status,
            headers: std::mem::take(&mut self.headers),
            rest: self.reader.rest(&self.raw),
            body: self.raw.split().freeze(),
            end: self.end.clone().unwrap_or(End::Orderly),
            events: Vec::new(),
            text: String::new(),
            tool_calls: Vec::new(),
            finish_reasons: Vec::new(),
            usage: None,
            done_count: 0,
            after_done: 0,
            error: None,
        };
        events.into_iter().for_each(|event| transcript.add(event));
        if transcript.events.is_empty() && transcript.error.is_none() {
            transcript.error = serde_json::from_slice::<Value>(&transcript.body)
                .ok()
                .and_then(|json| json.get("error").cloned());
        }
        Ok(transcript)
    }

    async fn read_event(&mut self) -> Result<Option<StreamEvent>, Failure> {
        loop {
            match self.reader.next(&self.raw) {
                Ok(Some(event)) => {
                    let event = self.event(event);
                    return if event.n > MOST_EVENTS {
                        Err(self.too_large(format!("{MOST_EVENTS} events")))
                    } else {
                        Ok(Some(event))
                    };
                }
                Ok(None) => {}
                Err(error) => return Err(self.too_large(error.to_string())),
            }
            if self.end.is_some() {
                return Ok(None);
            }
            if self.raw.len() > self.exchange.most {
                return Err(self.too_large(format!("{} bytes", self.exchange.most)));
            }
            self.read_some().await;
        }
    }

    /// Takes what has come, or else reads once.
    async fn read_some(&mut self) {
        match self.body.take(&mut self.exchange.buffer) {
            Ok(bytes) => {
                self.raw.extend_from_slice(&bytes);
                if !bytes.is_empty() {
                    return;
                }
            }
            Err(error) => return self.ended(End::Cut(error.to_string())),
        }
        if self.body.is_done() {
            return self.ended(End::Orderly);
        }
        match self.exchange.fill().await {
            Ok(true) => {}
            Ok(false) if self.body.may_end_here() => self.ended(End::Orderly),
            Ok(false) => self.ended(End::Cut("end of the connection".into())),
            Err(error) => self.ended(End::Cut(error.to_string())),
        }
    }

    fn event(&mut self, Sse { name, data }: Sse) -> StreamEvent {
        self.events += 1;
        let json: Option<Value> = serde_json::from_str(&data).ok();
        let delta = json
            .as_ref()
            .and_then(|json| json["choices"][0]["delta"]["content"].as_str());
        let delta_text = delta.unwrap_or_default().to_string();
        let kept = self.kept.keep(data.clone());
        self.exchange.record(Event::ClientChunk {
            n: self.events,
            text: delta_text.clone(),
            name: name.clone(),
            data: kept,
        });
        StreamEvent {
            n: self.events,
            name,
            data,
            json,
            delta_text,
        }
    }

    fn too_large(&mut self, most: String) -> Failure {
        let transport = Transport::TooLarge {
            status: self.status,
            most,
        };
        self.ended(End::Cut(transport.to_string()));
        transport.into()
    }

    fn ended(&mut self, end: End) {
        let body = self
            .kept
            .keep(Bytes::copy_from_slice(self.reader.after_events(&self.raw)));
        match &end {
            End::Orderly => self.exchange.finish(Event::ClientAnswered {
                status: self.status,
                body,
            }),
            End::Cut(how) => self.exchange.finish(Event::ClientFailed {
                error: format!("the stream was cut: {how}"),
                body,
            }),
        }
        self.end = Some(end);
    }
}

/// A tool call with its fragments joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// Its index in the message, from 0.
    pub index: u64,
    /// Its id.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments as text.
    pub arguments: String,
}

/// A streamed answer, read to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Transcript {
    /// The status code.
    pub status: u16,
    /// Names and values in the order and spelling of the gateway.
    pub headers: Vec<(String, String)>,
    /// Every event.
    pub events: Vec<StreamEvent>,
    /// The joined content of the first choice.
    pub text: String,
    /// The tool calls of the first choice, their fragments joined by index.
    pub tool_calls: Vec<ToolCall>,
    /// Every finish reason of the first choice.
    pub finish_reasons: Vec<String>,
    /// The last usage that the stream reported.
    pub usage: Option<Value>,
    /// How often `[DONE]` came.
    pub done_count: usize,
    /// How many events came after the first `[DONE]`.
    pub after_done: usize,
    /// The error: an in-band one, or that of an error document.
    pub error: Option<Value>,
    /// How it ended for the transport.
    pub end: End,
    /// The bytes after the last whole event, as text.
    pub rest: String,
    /// The whole body without its framing.
    pub body: Bytes,
}

impl Transcript {
    /// The first header of that name, whatever its spelling.
    pub fn header(&self, name: &str) -> Option<&str> {
        message::header(&self.headers, name)
    }

    /// Whether it looks like a success to a client: it ended in order, with `[DONE]` and without an
    /// error.
    pub fn looks_complete(&self) -> bool {
        self.status == 200
            && self.end == End::Orderly
            && self.done_count > 0
            && self.error.is_none()
    }

    /// The id of every chunk, in order; empty where a chunk has none. In-band errors and `[DONE]`
    /// are left out.
    pub fn ids(&self) -> Vec<String> {
        let id = |json: &Value| json["id"].as_str().unwrap_or_default().to_owned();
        self.events
            .iter()
            .filter(|event| event.error().is_none())
            .filter_map(|event| event.json.as_ref().map(id))
            .collect()
    }

    /// Reads every chunk strictly, by the published types of OpenAI's API. In-band errors and
    /// `[DONE]` are left out, and the ids are not compared (see [`Transcript::ids`]).
    ///
    /// # Errors
    /// A sentence that names the first wrong event and what is wrong with it.
    pub fn strict(&self) -> Result<(), String> {
        for event in self
            .events
            .iter()
            .filter(|event| !event.is_done() && event.error().is_none())
        {
            let wrong = |why: String| format!("event {} ({}): {why}", event.n, event.data);
            let chunk: CreateChatCompletionStreamResponse = serde_json::from_str(&event.data)
                .map_err(|error| wrong(format!("not a chunk: {error}")))?;
            if chunk.object != "chat.completion.chunk" {
                return Err(wrong(format!("object is {:?}", chunk.object)));
            }
        }
        match (self.done_count, self.after_done) {
            (0 | 1, 0) => Ok(()),
            (n, 0) => Err(format!("[DONE] came {n} times")),
            (_, n) => Err(format!("{n} events came after [DONE]")),
        }
    }

    fn add(&mut self, event: StreamEvent) {
        if self.done_count > 0 {
            self.after_done += 1;
        }
        self.done_count += usize::from(event.is_done());
        if let Some(error) = event.error() {
            self.error.get_or_insert_with(|| error.clone());
        }
        if let Some(json) = &event.json {
            if json["usage"].is_object() {
                self.usage = Some(json["usage"].clone());
            }
            let choice = &json["choices"][0];
            self.text.push_str(&event.delta_text);
            if let Some(reason) = choice["finish_reason"].as_str() {
                self.finish_reasons.push(reason.to_string());
            }
            for fragment in choice["delta"]["tool_calls"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default()
            {
                self.add_tool_call(fragment);
            }
        }
        self.events.push(event);
    }

    fn add_tool_call(&mut self, fragment: &Value) {
        let index = fragment["index"].as_u64().unwrap_or_default();
        let at = self
            .tool_calls
            .iter()
            .position(|call| call.index == index)
            .unwrap_or_else(|| {
                self.tool_calls.push(ToolCall {
                    index,
                    ..ToolCall::default()
                });
                self.tool_calls.len() - 1
            });
        let call = &mut self.tool_calls[at];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        call.id.push_str(&text(&fragment["id"]));
        call.name.push_str(&text(&fragment["function"]["name"]));
        call.arguments
            .push_str(&text(&fragment["function"]["arguments"]));
    }
}
