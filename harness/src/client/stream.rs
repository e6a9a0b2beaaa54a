//! A streamed answer: event by event, or as a whole transcript.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_openai::types::chat::CreateChatCompletionStreamResponse;
use bytes::{Bytes, BytesMut};
use serde_json::Value;

use super::sse::{Reader, Sse};
use super::{Exchange, Transport};
use crate::gate;
use crate::tape::Event;
use crate::verdict::Failure;
use crate::wire::http::message::{self, Body, ResponseHead};

/// More events of one answer are none that a client could use.
const MOST_EVENTS: usize = 1 << 20;

/// How a streamed answer ended for the transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The body came to its told end.
    Orderly,
    /// The connection ended before it, or was reset; how.
    Cut(String),
}

/// One event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamEvent {
    /// Its place, from 1.
    pub n: usize,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its data, lines joined.
    pub data: String,
    /// The data, if it is JSON.
    pub json: Option<Value>,
    /// The content of the first choice's delta; empty if there is none.
    pub delta_text: String,
}

impl StreamEvent {
    /// Whether it is `[DONE]`.
    pub fn is_done(&self) -> bool {
        self.data == "[DONE]"
    }

    /// The error in band, if it is one: by its name or by a member `error`.
    pub fn error(&self) -> Option<&Value> {
        let json = self.json.as_ref()?;
        match &json["error"] {
            Value::Null if self.name.as_deref() == Some("error") => Some(json),
            Value::Null => None,
            error => Some(error),
        }
    }
}

/// An answer whose head has come. Nothing is read ahead of the case. Dropping it before its end: the client has left.
#[derive(Debug)]
pub struct StreamReply {
    /// The status code.
    pub status: u16,
    /// In the order and spelling of the gateway.
    pub headers: Vec<(String, String)>,
    exchange: Exchange,
    body: Body,
    raw: BytesMut,
    reader: Reader,
    events: usize,
    end: Option<End>,
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

    /// The next event; `None` at the end ([`StreamReply::end`] says which).
    ///
    /// # Errors
    /// A violation by a hang, or by an answer that is too large to be one.
    pub async fn next(&mut self) -> Result<Option<StreamEvent>, Failure> {
        let what = format!(
            "event {} of the stream to client {}, or its end",
            self.events + 1,
            self.exchange.label()
        );
        gate::guard("hang.event", &what, self.read_event()).await?
    }

    /// Reads until the text so far is at least so many characters, and returns it; less only at the end.
    ///
    /// # Errors
    /// As [`StreamReply::next`]; all of it has one guard.
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

    /// How it ended, once it has.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Closes the connection, whatever is still to come.
    pub fn leave(self) {}

    /// Reads to the end.
    ///
    /// # Errors
    /// As [`StreamReply::next`]; the stream as a whole has one guard, so that one without end is the gateway's violation.
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
            match self.body.take(&mut self.exchange.buffer) {
                Ok(bytes) => {
                    self.raw.extend_from_slice(&bytes);
                    if !bytes.is_empty() {
                        continue;
                    }
                }
                Err(error) => {
                    self.ended(End::Cut(error.to_string()));
                    continue;
                }
            }
            if self.body.is_done() {
                self.ended(End::Orderly);
                continue;
            }
            match self.exchange.fill().await {
                Ok(true) => {}
                Ok(false) if self.body.may_end_here() => self.ended(End::Orderly),
                Ok(false) => self.ended(End::Cut("end of the connection".into())),
                Err(error) => self.ended(End::Cut(error.to_string())),
            }
        }
    }

    fn event(&mut self, Sse { name, data }: Sse) -> StreamEvent {
        self.events += 1;
        let json: Option<Value> = serde_json::from_str(&data).ok();
        let delta = json
            .as_ref()
            .and_then(|json| json["choices"][0]["delta"]["content"].as_str());
        let delta_text = delta.unwrap_or_default().to_string();
        self.exchange.record(Event::ClientChunk {
            n: self.events,
            text: delta_text.clone(),
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
        match &end {
            End::Orderly => self.exchange.finish(Event::ClientAnswered {
                status: self.status,
            }),
            End::Cut(how) => self.exchange.finish(Event::ClientFailed {
                error: format!("the stream was cut: {how}"),
            }),
        }
        self.end = Some(end);
    }
}

/// A tool call, its fragments joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// Its place in the message.
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
    /// In the order and spelling of the gateway.
    pub headers: Vec<(String, String)>,
    /// Every event.
    pub events: Vec<StreamEvent>,
    /// The content of the first choice, joined.
    pub text: String,
    /// The tool calls of the first choice, joined by index.
    pub tool_calls: Vec<ToolCall>,
    /// Every finish reason of the first choice.
    pub finish_reasons: Vec<String>,
    /// The last usage that was told.
    pub usage: Option<Value>,
    /// How often `[DONE]` came.
    pub done_count: usize,
    /// Events after the first `[DONE]`.
    pub after_done: usize,
    /// The error: in band, or the whole answer's (`error` of its envelope).
    pub error: Option<Value>,
    /// How it ended for the transport.
    pub end: End,
    /// What came of an event that never ended.
    pub rest: String,
    /// The whole body, unchunked.
    pub body: Bytes,
}

impl Transcript {
    /// The first header of that name, whatever its spelling.
    pub fn header(&self, name: &str) -> Option<&str> {
        message::header(&self.headers, name)
    }

    /// Whether it looks like a success to a client: ended in order, with `[DONE]` and without an error.
    pub fn looks_complete(&self) -> bool {
        self.status == 200
            && self.end == End::Orderly
            && self.done_count > 0
            && self.error.is_none()
    }

    /// Reads every chunk strictly, by the published types of OpenAI's API; errors in band and `[DONE]` aside.
    ///
    /// # Errors
    /// The first event that is wrong, and why.
    pub fn strict(&self) -> Result<(), String> {
        let mut id: Option<String> = None;
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
            match &id {
                Some(first) if *first != chunk.id => {
                    return Err(wrong(format!("id is not {first:?}")));
                }
                _ => id = Some(chunk.id),
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
