//! Ollama's own API as the provider writes it: chats and completions whole and as NDJSON, errors,
//! embeddings, and the small routes around them.

use serde_json::{Map, Value, json};

use super::{Protocol, ProviderProtocol, Route, RouteKind, TypedField, openai};
use crate::llm::matcher::Matcher;
use crate::llm::request::{BodyError, StubRequest};
use crate::llm::responder::{Ending, ErrorReply, Reply};
use crate::wire::Answer;

impl Protocol {
    /// Ollama's own API, whose streams are NDJSON.
    pub const OLLAMA: Self = Self::new(&Ollama);
}

struct Ollama;

impl ProviderProtocol for Ollama {
    fn name(&self) -> &'static str {
        "ollama"
    }

    fn title(&self) -> &'static str {
        "Ollama"
    }

    fn base_path(&self) -> &'static str {
        ""
    }

    fn prefix(&self) -> &'static str {
        "/api/"
    }

    fn routes(&self) -> &'static [Route] {
        const ROUTES: &[Route] = &[
            Route::new("POST", "/api/chat", RouteKind::Chat),
            Route::new("POST", "/api/generate", RouteKind::Call),
            Route::new("POST", "/api/embed", RouteKind::Call),
            Route::new("POST", "/api/embeddings", RouteKind::Call),
            Route::new("GET", "/api/tags", RouteKind::Probe),
            Route::new("GET", "/api/ps", RouteKind::Probe),
            Route::new("GET", "/api/version", RouteKind::Probe),
            Route::new("POST", "/api/show", RouteKind::Probe),
        ];
        ROUTES
    }

    fn streams_by_default(&self, path: &str) -> bool {
        !path.ends_with("/api/embed")
    }

    fn reply(&self, reply: &Reply, request: &StubRequest) -> Answer {
        if request.streams() {
            return Answer::new(200, "application/x-ndjson", stream(reply, request));
        }
        match &reply.ending {
            Ending::Error(broken) => self.error(broken),
            _ => json(200, &last(reply, request, &reply.text(), calls(reply))),
        }
    }

    fn error(&self, error: &ErrorReply) -> Answer {
        json(error.status, &json!({"error": message(error)}))
    }

    fn embeddings(&self, request: &StubRequest, inputs: usize) -> Answer {
        let vectors: Vec<Value> = (0..inputs).map(super::vector).collect();
        json(
            200,
            &json!({"model": request.model(), "embeddings": vectors}),
        )
    }

    fn early_answer(&self, request: &StubRequest) -> Option<Answer> {
        if let Some(refusal) = refusal(request) {
            return Some(json(400, &json!({"error": refusal})));
        }
        // as documented, a chat without messages only loads the model
        let messages = request.json["messages"].as_array();
        messages.is_none_or(Vec::is_empty).then(|| {
            let mut loaded = record(request, "", Vec::new());
            loaded.insert("done_reason".into(), "load".into());
            loaded.insert("done".into(), true.into());
            json(200, &Value::Object(loaded))
        })
    }

    fn default_answer(&self, request: &StubRequest) -> Option<Answer> {
        let path = request.path.as_str();
        match path {
            "/" if request.is_read() => Some(Answer::new(
                200,
                "text/plain; charset=utf-8",
                "Ollama is running",
            )),
            // Ollama serves OpenAI's list of models, too
            _ if request.is_read() && path.ends_with("/models") => Some(openai::model_list()),
            _ if request.is_read() || path == "/api/show" => default_document(path),
            _ => None,
        }
    }
}

/// The `created_at` of every record that a stub sends.
pub const CREATED_AT: &str = "2026-01-01T00:00:00.000000001Z";
/// The version that a stub answers with.
pub const VERSION: &str = "0.33.0";

/// Matches `POST /api/chat`.
pub fn chat() -> Matcher {
    Matcher::route("POST", &["/api/chat"])
}

/// Matches `POST /api/generate`.
pub fn generate() -> Matcher {
    Matcher::route("POST", &["/api/generate"])
}

/// Matches `GET /api/tags`.
pub fn tags() -> Matcher {
    Matcher::route("GET", &["/api/tags"])
}

/// Matches `GET /api/version`.
pub fn version() -> Matcher {
    Matcher::route("GET", &["/api/version"])
}

/// Matches `POST /api/embed`.
pub fn embed() -> Matcher {
    Matcher::route("POST", &["/api/embed"])
}

/// The records of a streamed reply, one a line.
fn stream(reply: &Reply, request: &StubRequest) -> String {
    let mut lines = Vec::new();
    for token in &reply.tokens {
        let mut record = record(request, token, Vec::new());
        record.insert("done".into(), false.into());
        lines.push(Value::Object(record).to_string());
    }
    if !reply.tool_calls.is_empty() {
        let mut record = record(request, "", calls(reply));
        record.insert("done".into(), false.into());
        lines.push(Value::Object(record).to_string());
    }
    match &reply.ending {
        Ending::WithoutFinish => {}
        Ending::Error(error) => lines.push(json!({"error": message(error)}).to_string()),
        // Ollama has no [DONE] that could be missing
        Ending::Proper | Ending::WithoutDone => {
            lines.push(last(reply, request, "", Vec::new()).to_string())
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The record with the counts. As with Ollama, a count of 0 is absent.
fn last(reply: &Reply, request: &StubRequest, text: &str, calls: Vec<Value>) -> Value {
    let mut record = record(request, text, calls);
    record.insert("done".into(), true.into());
    let reason = if reply.finish() == "length" {
        "length"
    } else {
        "stop"
    };
    record.insert("done_reason".into(), reason.into());
    let counts = [
        ("total_duration", 5_000_000),
        ("load_duration", 1_000_000),
        ("prompt_eval_count", reply.prompt_tokens),
        ("prompt_eval_duration", 2_000_000),
        ("eval_count", reply.completion_tokens()),
        ("eval_duration", 2_000_000),
    ];
    for (name, value) in counts {
        if value > 0 {
            record.insert(name.into(), value.into());
        }
    }
    Value::Object(record)
}

fn record(request: &StubRequest, text: &str, calls: Vec<Value>) -> Map<String, Value> {
    let mut record = Map::new();
    record.insert("model".into(), request.model().into());
    record.insert("created_at".into(), CREATED_AT.into());
    if request.path.ends_with("/api/generate") {
        record.insert("response".into(), text.into());
        return record;
    }
    let mut message = json!({"role": "assistant", "content": text});
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    record.insert("message".into(), message);
    record
}

fn calls(reply: &Reply) -> Vec<Value> {
    let call = |(at, (name, arguments)): (usize, &(String, Value))| json!({"function": {"index": at, "name": name, "arguments": arguments}});
    reply.tool_calls.iter().enumerate().map(call).collect()
}

/// Why Ollama refuses a request for a chat, in its words; `None` if it does not.
fn refusal(request: &StubRequest) -> Option<String> {
    match &request.body_error {
        Some(BodyError::Empty) => return Some("missing request body".into()),
        Some(BodyError::Broken(error)) => return Some(format!("invalid JSON: {error}")),
        None => {}
    }
    let Value::Object(body) = &request.json else {
        return Some(format!(
            "json: cannot unmarshal {} into Go value of type api.ChatRequest",
            go_type(&request.json)
        ));
    };
    let wrong = |value: &Value, field: &str, kind: &str| {
        Some(format!(
            "json: cannot unmarshal {} into Go struct field {field} of type {kind}",
            go_type(value)
        ))
    };
    // as in Go, null is the same as nothing
    let given = |name: &str| body.get(name).filter(|value| !value.is_null());
    let fields: [TypedField; 4] = [
        ("model", "string", Value::is_string),
        ("messages", "[]api.Message", Value::is_array),
        ("stream", "bool", Value::is_boolean),
        ("options", "map[string]interface {}", Value::is_object),
    ];
    for (name, kind, fits) in fields {
        if let Some(value) = given(name).filter(|value| !fits(value)) {
            return wrong(value, &format!("ChatRequest.{name}"), kind);
        }
    }
    if request.model().is_empty() {
        return Some("model is required".into());
    }
    let messages = request.json["messages"].as_array().into_iter().flatten();
    for message in messages.filter(|message| !message.is_null()) {
        if !message.is_object() {
            return wrong(message, "ChatRequest.messages", "api.Message");
        }
        for name in ["role", "content"] {
            let value = &message[name];
            if !value.is_null() && !value.is_string() {
                return wrong(value, &format!("Message.messages.{name}"), "string");
            }
        }
    }
    None
}

/// The type of a value as Go's JSON reader names it.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn message(error: &ErrorReply) -> &str {
    let usual = match error.status {
        400 => "invalid request",
        401 => "unauthorized",
        404 => "model 'm-gauntlet' not found",
        429 => "too many requests",
        503 => "server busy, please try again.  maximum pending requests exceeded",
        _ => "an error was encountered while running the model",
    };
    error.message.as_deref().unwrap_or(usual)
}

fn json(status: u16, document: &Value) -> Answer {
    Answer::new(
        status,
        "application/json; charset=utf-8",
        document.to_string(),
    )
}

/// What a stub answers by default on the routes around chat; `None` on all others.
fn default_document(path: &str) -> Option<Answer> {
    let details = json!({"parent_model": "", "format": "gguf", "family": "gauntlet", "families": ["gauntlet"],
        "parameter_size": "1B", "quantization_level": "Q4_0"});
    let model = json!({"name": "m-gauntlet:latest", "model": "m-gauntlet:latest", "modified_at": CREATED_AT, "size": 1,
        "digest": "0000000000000000000000000000000000000000000000000000000000000000", "details": details});
    let body = match path {
        "/api/version" => json!({"version": VERSION}),
        "/api/tags" => json!({"models": [model]}),
        "/api/ps" => json!({"models": []}),
        "/api/show" => {
            json!({"details": details, "model_info": {}, "capabilities": ["completion", "tools"], "modified_at": CREATED_AT})
        }
        _ => return None,
    };
    Some(json(200, &body))
}
