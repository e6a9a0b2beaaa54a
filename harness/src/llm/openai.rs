//! OpenAI's chat completions on the wire, as the provider writes them: bodies, streams, errors, lists of models.
//!
//! Ids and times are fixed, so that snapshots and comparisons need no redaction.

use serde_json::{Value, json};

use super::matcher::Matcher;
use super::request::StubRequest;
use super::responder::{Ending, ErrorReply, Reply};
use crate::wire::Answer;

/// The id of every completion.
pub const ID: &str = "chatcmpl-gauntlet";
/// The `created` of every completion.
pub const CREATED: u64 = 1_767_225_600;

/// `POST …/chat/completions`.
pub fn chat() -> Matcher {
    Matcher::route("POST", &["/chat/completions"])
}

/// `GET …/models`.
pub fn models() -> Matcher {
    Matcher::route("GET", &["/models"])
}

/// `POST …/embeddings`.
pub fn embeddings() -> Matcher {
    Matcher::route("POST", &["/embeddings"])
}

pub(super) fn reply(reply: &Reply, asked: &StubRequest) -> Answer {
    if asked.streams() {
        return Answer::new(
            200,
            "text/event-stream; charset=utf-8",
            stream(reply, asked),
        );
    }
    if let Ending::Error(broken) = &reply.ending {
        return error(broken);
    }
    let calls: Vec<Value> = reply
        .tool_calls
        .iter()
        .enumerate()
        .map(|(at, call)| tool_call(at, call))
        .collect();
    let content = if reply.tokens.is_empty() && !calls.is_empty() {
        Value::Null
    } else {
        reply.text().into()
    };
    let mut message =
        json!({"role": "assistant", "content": content, "refusal": null, "annotations": []});
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    let body = json!({
        "id": ID, "object": "chat.completion", "created": CREATED, "model": asked.model(),
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": reply.finish()}],
        "usage": usage(reply), "service_tier": "default", "system_fingerprint": "fp_gauntlet",
    });
    Answer::new(200, "application/json", body.to_string())
}

/// The events of a streamed reply, each with its blank line.
fn stream(reply: &Reply, asked: &StubRequest) -> String {
    let mut out = String::new();
    let mut chunk = |choices: Value, usage: Value| {
        let mut chunk = json!({
            "id": ID, "object": "chat.completion.chunk", "created": CREATED, "model": asked.model(),
            "system_fingerprint": "fp_gauntlet", "choices": choices,
        });
        if asked.wants_usage() {
            chunk["usage"] = usage;
        }
        event(&mut out, &chunk.to_string());
    };
    let choice = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
    let first = if reply.tokens.is_empty() && !reply.tool_calls.is_empty() {
        Value::Null
    } else {
        "".into()
    };
    chunk(
        choice(
            json!({"role": "assistant", "content": first, "refusal": null}),
            Value::Null,
        ),
        Value::Null,
    );
    for token in &reply.tokens {
        chunk(choice(json!({"content": token}), Value::Null), Value::Null);
    }
    for (at, call) in reply.tool_calls.iter().enumerate() {
        let whole = tool_call(at, call);
        let start = json!({"index": at, "id": whole["id"], "type": "function", "function": {"name": call.0, "arguments": ""}});
        chunk(
            choice(json!({"tool_calls": [start]}), Value::Null),
            Value::Null,
        );
        for piece in pieces(whole["function"]["arguments"].as_str().unwrap_or_default()) {
            let part = json!({"index": at, "function": {"arguments": piece}});
            chunk(
                choice(json!({"tool_calls": [part]}), Value::Null),
                Value::Null,
            );
        }
    }
    match &reply.ending {
        Ending::WithoutFinish => return out,
        Ending::Error(error) => {
            event(&mut out, &envelope(error).to_string());
            return out;
        }
        Ending::Proper | Ending::WithoutDone => {}
    }
    chunk(choice(json!({}), reply.finish().into()), Value::Null);
    if asked.wants_usage() {
        chunk(json!([]), usage(reply));
    }
    if reply.ending == Ending::Proper {
        event(&mut out, "[DONE]");
    }
    out
}

fn event(out: &mut String, data: &str) {
    out.push_str("data: ");
    out.push_str(data);
    out.push_str("\n\n");
}

fn tool_call(at: usize, (name, arguments): &(String, Value)) -> Value {
    json!({"id": format!("call_gauntlet_{}", at + 1), "type": "function", "function": {"name": name, "arguments": arguments.to_string()}})
}

/// Arguments in fragments of a few characters, as providers stream them.
fn pieces(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters
        .chunks(5)
        .map(|piece| piece.iter().collect())
        .collect()
}

fn usage(reply: &Reply) -> Value {
    let (prompt, completion) = (reply.prompt_tokens, reply.completion_tokens());
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
    })
}

pub(super) fn error(error: &ErrorReply) -> Answer {
    let mut answer = Answer::new(
        error.status,
        "application/json",
        envelope(error).to_string(),
    );
    answer
        .headers
        .push(("x-request-id".into(), "req_gauntlet".into()));
    answer
}

/// The envelope with what goes with the status where the case does not say otherwise.
fn envelope(error: &ErrorReply) -> Value {
    let (kind, code, message): (&str, Option<&str>, &str) = match error.status {
        400 => (
            "invalid_request_error",
            Some("invalid_value"),
            "Invalid value.",
        ),
        401 => (
            "invalid_request_error",
            Some("invalid_api_key"),
            "Incorrect API key provided.",
        ),
        403 => (
            "request_forbidden",
            Some("unsupported_country_region_territory"),
            "Country, region, or territory not supported.",
        ),
        404 => (
            "invalid_request_error",
            Some("model_not_found"),
            "The model does not exist or you do not have access to it.",
        ),
        422 => ("invalid_request_error", None, "Unprocessable request."),
        429 => (
            "requests",
            Some("rate_limit_exceeded"),
            "Rate limit reached.",
        ),
        503 => (
            "service_unavailable_error",
            Some("server_is_overloaded"),
            "The server is overloaded. Please try again later.",
        ),
        500..=599 => (
            "server_error",
            None,
            "The server had an error while processing your request.",
        ),
        _ => ("invalid_request_error", None, "The request was refused."),
    };
    let param = if error.status == 404 {
        json!("model")
    } else {
        Value::Null
    };
    json!({"error": {
        "message": error.message.as_deref().unwrap_or(message),
        "type": error.kind.as_deref().unwrap_or(kind),
        "param": param,
        "code": error.code.as_deref().or(code),
    }})
}

/// The list of models that a stub tells by default.
pub(super) fn model_list() -> Answer {
    let body = json!({"object": "list", "data": [{"id": "m-gauntlet", "object": "model", "created": CREATED, "owned_by": "gauntlet"}]});
    Answer::new(200, "application/json", body.to_string())
}
