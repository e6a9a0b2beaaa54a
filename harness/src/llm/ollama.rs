//! Ollama's own API on the wire: NDJSON streams, whole bodies, errors, and the small routes around them.

use serde_json::{Map, Value, json};

use super::matcher::Matcher;
use super::request::StubRequest;
use super::responder::{Ending, ErrorReply, Reply};
use crate::wire::Answer;

/// The `created_at` of every record.
pub const CREATED_AT: &str = "2026-01-01T00:00:00.000000001Z";
/// The version that a stub tells.
pub const VERSION: &str = "0.33.0";

/// `POST /api/chat`.
pub fn chat() -> Matcher {
    Matcher::route("POST", &["/api/chat"])
}

/// `POST /api/generate`.
pub fn generate() -> Matcher {
    Matcher::route("POST", &["/api/generate"])
}

/// `GET /api/tags`.
pub fn tags() -> Matcher {
    Matcher::route("GET", &["/api/tags"])
}

/// `GET /api/version`.
pub fn version() -> Matcher {
    Matcher::route("GET", &["/api/version"])
}

/// `POST /api/embed`.
pub fn embed() -> Matcher {
    Matcher::route("POST", &["/api/embed"])
}

pub(super) fn reply(reply: &Reply, asked: &StubRequest) -> Answer {
    if asked.streams() {
        return Answer::new(200, "application/x-ndjson", stream(reply, asked));
    }
    if let Ending::Error(broken) = &reply.ending {
        return error(broken);
    }
    let record = last(reply, asked, &reply.text(), calls(reply));
    Answer::new(200, "application/json; charset=utf-8", record.to_string())
}

/// One record a line.
fn stream(reply: &Reply, asked: &StubRequest) -> String {
    let mut lines = Vec::new();
    for token in &reply.tokens {
        let mut record = record(asked, token, Vec::new());
        record.insert("done".into(), false.into());
        lines.push(Value::Object(record).to_string());
    }
    if !reply.tool_calls.is_empty() {
        let mut record = record(asked, "", calls(reply));
        record.insert("done".into(), false.into());
        lines.push(Value::Object(record).to_string());
    }
    match &reply.ending {
        Ending::WithoutFinish => {}
        Ending::Error(error) => lines.push(json!({"error": message(error)}).to_string()),
        // there is no [DONE] to leave away
        Ending::Proper | Ending::WithoutDone => {
            lines.push(last(reply, asked, "", Vec::new()).to_string())
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The record with the counts; a zero is absent, as Ollama has it.
fn last(reply: &Reply, asked: &StubRequest, text: &str, calls: Vec<Value>) -> Value {
    let mut record = record(asked, text, calls);
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

fn record(asked: &StubRequest, text: &str, calls: Vec<Value>) -> Map<String, Value> {
    let mut record = Map::new();
    record.insert("model".into(), asked.model().into());
    record.insert("created_at".into(), CREATED_AT.into());
    if asked.path.ends_with("/api/generate") {
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

pub(super) fn error(error: &ErrorReply) -> Answer {
    Answer::new(
        error.status,
        "application/json; charset=utf-8",
        json!({"error": message(error)}).to_string(),
    )
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

/// What a stub tells by default on the routes around chat; `None` for those it has no answer to.
pub(super) fn around(path: &str) -> Option<Answer> {
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
    Some(Answer::new(
        200,
        "application/json; charset=utf-8",
        body.to_string(),
    ))
}
