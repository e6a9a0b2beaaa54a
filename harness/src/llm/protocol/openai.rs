//! OpenAI's API as the provider writes it: chat completions whole and streamed, errors, embeddings,
//! and the list of models. It is also what imitators of OpenAI speak.
//!
//! Each answer has an id of its own, so that a client can see where two answers were mixed. Times
//! are fixed.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::{Protocol, ProviderProtocol, Route, RouteKind, openai_request};
use crate::llm::matcher::Matcher;
use crate::llm::request::StubRequest;
use crate::llm::responder::{Ending, ErrorReply, Reply};
use crate::wire::Answer;

impl Protocol {
    /// OpenAI's API, chat completions above all, and whatever imitates it.
    pub const OPENAI: Self = Self::new(&OpenAi);
}

struct OpenAi;

impl ProviderProtocol for OpenAi {
    fn name(&self) -> &'static str {
        "openai"
    }

    fn title(&self) -> &'static str {
        "OpenAI"
    }

    fn base_path(&self) -> &'static str {
        "/v1"
    }

    fn prefix(&self) -> &'static str {
        "/v1/"
    }

    fn routes(&self) -> &'static [Route] {
        const ROUTES: &[Route] = &[
            Route::new("POST", "/chat/completions", RouteKind::Chat),
            Route::new("POST", "/embeddings", RouteKind::Call),
            Route::new("POST", "/responses", RouteKind::Call),
            Route::new("GET", "/models", RouteKind::Probe),
        ];
        ROUTES
    }

    fn streams_by_default(&self, _path: &str) -> bool {
        false
    }

    fn reply(&self, reply: &Reply, request: &StubRequest) -> Answer {
        if request.streams() {
            let body = stream(reply, request);
            return Answer::new(200, "text/event-stream; charset=utf-8", body);
        }
        match &reply.ending {
            Ending::Error(broken) => self.error(broken),
            _ => Answer::new(
                200,
                "application/json",
                completion(reply, request).to_string(),
            ),
        }
    }

    fn error(&self, error: &ErrorReply) -> Answer {
        let body = envelope(error).to_string();
        let mut answer = Answer::new(error.status, "application/json", body);
        let id = ("x-request-id".into(), "req_gauntlet".into());
        answer.headers.push(id);
        answer
    }

    fn embeddings(&self, request: &StubRequest, inputs: usize) -> Answer {
        let embedding =
            |at: usize| json!({"object": "embedding", "index": at, "embedding": super::vector(at)});
        let body = json!({
            "object": "list",
            "data": (0..inputs).map(embedding).collect::<Vec<_>>(),
            "model": request.model(),
            "usage": {"prompt_tokens": inputs, "total_tokens": inputs},
        });
        Answer::new(200, "application/json", body.to_string())
    }

    fn early_answer(&self, request: &StubRequest) -> Option<Answer> {
        openai_request::refusal(request)
    }

    fn default_answer(&self, request: &StubRequest) -> Option<Answer> {
        (request.is_read() && request.path.ends_with("/models")).then(model_list)
    }
}

/// The id of the completion, plain or streamed, with which a stub answers the request of this
/// number on the tape. All ids have one length, so that equal answers have equal lengths.
pub fn completion_id(request: u64) -> String {
    format!("chatcmpl-gauntlet-{request:08}")
}

/// The id of the completion that answers this request. A request that no wire has numbered gets a
/// number that no other such request gets.
fn id_for(request: &StubRequest) -> String {
    static UNNUMBERED: AtomicU64 = AtomicU64::new(1);
    match request.request {
        Some(request) => completion_id(request),
        None => {
            let n = UNNUMBERED.fetch_add(1, Ordering::Relaxed);
            format!("chatcmpl-gauntlet-w{n:07}")
        }
    }
}

/// The time of every completion that a stub sends, in seconds since 1970.
pub const CREATED: u64 = 1_767_225_600;

/// Matches `POST …/chat/completions`.
pub fn chat() -> Matcher {
    Matcher::route("POST", &["/chat/completions"])
}

/// Matches `GET …/models`.
pub fn models() -> Matcher {
    Matcher::route("GET", &["/models"])
}

/// Matches `POST …/embeddings`.
pub fn embeddings() -> Matcher {
    Matcher::route("POST", &["/embeddings"])
}

fn completion(reply: &Reply, request: &StubRequest) -> Value {
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
    json!({
        "id": id_for(request), "object": "chat.completion", "created": CREATED, "model": request.model(),
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": reply.finish()}],
        "usage": usage(reply), "service_tier": "default", "system_fingerprint": "fp_gauntlet",
    })
}

/// The events of a streamed reply, each with its blank line.
fn stream(reply: &Reply, request: &StubRequest) -> String {
    let mut out = String::new();
    let id = id_for(request);
    let mut chunk = |choices: Value, usage: Value| {
        let mut chunk = json!({
            "id": id, "object": "chat.completion.chunk", "created": CREATED, "model": request.model(),
            "system_fingerprint": "fp_gauntlet", "choices": choices,
        });
        if request.wants_usage() {
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
    if request.wants_usage() {
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

/// The error document; what the case leaves open is what OpenAI sends with the status.
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
    let is_of_model = matches!(error.code.as_deref(), None | Some("model_not_found"));
    let param = if error.status == 404 && is_of_model {
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

/// The list of models that a stub answers with by default.
pub(super) fn model_list() -> Answer {
    let body = json!({"object": "list", "data": [{"id": "m-gauntlet", "object": "model", "created": CREATED, "owned_by": "gauntlet"}]});
    Answer::new(200, "application/json", body.to_string())
}
