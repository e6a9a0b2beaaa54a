//! Ollama's own API as the provider writes it: chats and completions whole and as NDJSON, errors,
//! embeddings, and the small routes around them.

use serde_json::{Map, Value, json};

use super::{Protocol, ProviderProtocol, Route, RouteKind, openai};
use crate::llm::matcher::Matcher;
use crate::llm::request::StubRequest;
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
