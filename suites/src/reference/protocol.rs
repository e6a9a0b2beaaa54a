//! The protocols of the providers: how a request is written in each, and how a whole answer or a
//! refusal is read. Streams are read in `decode`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value, json};

use super::error::{AttemptError, Cause, NO_REASON};
use crate::defect::Defect;

/// Token counts as the provider sent them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub prompt: u64,
    pub completion: u64,
}

impl Usage {
    /// OpenAI's `usage`, if the document has one.
    pub(super) fn of(document: &Value) -> Option<Self> {
        let usage = document.get("usage").filter(|usage| usage.is_object())?;
        let count = |key: &str| usage.get(key).and_then(Value::as_u64).unwrap_or(0);
        Some(Self {
            prompt: count("prompt_tokens"),
            completion: count("completion_tokens"),
        })
    }

    /// Ollama's counts; a zero is absent there.
    pub(super) fn of_ollama(record: &Value) -> Self {
        let count = |key: &str| record.get(key).and_then(Value::as_u64).unwrap_or(0);
        Self {
            prompt: count("prompt_eval_count"),
            completion: count("eval_count"),
        }
    }

    pub(super) fn document(self) -> Value {
        json!({ "prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": self.prompt + self.completion })
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(super) struct Completion {
    /// What the client gets: the provider's own bytes where both speak OpenAI.
    pub bytes: Bytes,
    pub document: Value,
    pub usage: Option<Usage>,
}

impl Completion {
    fn of(document: Value) -> Self {
        Self {
            bytes: document.to_string().into(),
            usage: Usage::of(&document),
            document,
        }
    }

    /// Whether no choice has a text, a tool call, a refusal or a content filter.
    pub(super) fn is_empty(&self, defect: Option<Defect>) -> bool {
        let empty = |choice: &Value| {
            let message = &choice["message"];
            let filled = |key: &str| message[key].as_str().is_some_and(|text| !text.is_empty());
            let calls = message["tool_calls"].as_array();
            let other = filled("refusal")
                || calls.is_some_and(|calls| !calls.is_empty())
                || choice["finish_reason"] == "content_filter";
            !filled("content") && (!other || defect == Some(Defect::DropsAnswersWithoutText))
        };
        let choices = self.document["choices"].as_array();
        defect != Some(Defect::BelievesAnyOllama200)
            && choices.is_some_and(|choices| !choices.is_empty() && choices.iter().all(empty))
    }

    /// The text of the first choice.
    pub(super) fn text(&self) -> &str {
        self.document
            .pointer("/choices/0/message/content")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

/// The protocols that the reference gateway speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    OpenAi,
    Ollama,
}

impl Protocol {
    /// The protocol of this name in a specification, if the gateway speaks it.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "openai" => Some(Self::OpenAi),
            "ollama" => Some(Self::Ollama),
            _ => None,
        }
    }
}

/// Where a provider takes chat requests.
pub(super) fn url(protocol: Protocol, base: &str) -> String {
    let base = base.trim_end_matches('/');
    match protocol {
        Protocol::OpenAi => format!("{base}/chat/completions"),
        Protocol::Ollama => format!("{base}/api/chat"),
    }
}

/// Writes the client's request for `model`.
pub(super) fn encode(
    protocol: Protocol,
    model: &str,
    fields: &Map<String, Value>,
    defect: Option<Defect>,
) -> Result<Bytes, AttemptError> {
    let mut fields = fields.clone();
    fields.insert("model".into(), model.into());
    if defect == Some(Defect::DropsUnknownFields) {
        fields.retain(|name, _| KNOWN.contains(&name.as_str()));
    }
    let body = match protocol {
        Protocol::OpenAi => Value::Object(fields),
        Protocol::Ollama => to_ollama(&fields, defect)?,
    };
    Ok(body.to_string().into())
}

/// Reads a whole 2xx body: whatever is not an answer is a failure (FALL-02).
pub(super) fn completion(
    protocol: Protocol,
    bytes: Bytes,
    secret: &str,
    defect: Option<Defect>,
) -> Result<Completion, AttemptError> {
    let bad = |message: &str| AttemptError::new(Cause::BadResponse, message);
    let parsed: Result<Value, _> = serde_json::from_slice(&bytes);
    if defect == Some(Defect::BelievesAny200) {
        return Ok(Completion {
            bytes,
            usage: None,
            document: parsed.unwrap_or(Value::Null),
        });
    }
    let believed = protocol == Protocol::Ollama && defect == Some(Defect::BelievesAnyOllama200);
    let document = match parsed {
        Err(_) if believed => json!({ "done": true }),
        parsed => parsed.map_err(|_| bad("the provider's answer is not JSON"))?,
    };
    if document.get("error").is_some_and(|error| !error.is_null()) {
        return Err(AttemptError::from_document(
            Cause::InBand,
            &document,
            secret,
        ));
    }
    let mut completion = match protocol {
        Protocol::OpenAi => {
            let choices = document
                .get("choices")
                .and_then(Value::as_array)
                .ok_or_else(|| bad("the provider's answer has no choices"))?;
            if let Some(choice) = failed_choice(choices, defect) {
                return Err(choice_error(choice, secret, defect));
            }
            let none = choices.is_empty() && defect != Some(Defect::BelievesNoChoices);
            if none || choices.iter().any(|choice| !choice["message"].is_object()) {
                return Err(bad("the provider's answer has no message"));
            }
            Completion {
                bytes,
                usage: Usage::of(&document),
                document,
            }
        }
        Protocol::Ollama if document["done"] != true => {
            return Err(bad("the provider's answer is not done"));
        }
        Protocol::Ollama => Completion::of(from_ollama(&document, defect)),
    };
    if defect == Some(Defect::KeepsOnlyText) {
        let message = json!({ "role": "assistant", "content": completion.text() });
        let choices = json!([{ "index": 0, "message": message, "finish_reason": "stop" }]);
        completion = Completion::of(envelope(
            "chat.completion",
            completion.document["model"].as_str().unwrap_or_default(),
            &choices,
        ));
    }
    if matches!(defect, Some(Defect::RenamesCalls | Defect::KeepsFirstCall)) {
        let mut document = completion.document.clone();
        if let Some(calls) = document
            .pointer_mut("/choices/0/message/tool_calls")
            .and_then(Value::as_array_mut)
        {
            match defect {
                Some(Defect::KeepsFirstCall) => calls.truncate(1),
                _ => calls
                    .iter_mut()
                    .zip(1..)
                    .for_each(|(call, n)| call["id"] = format!("call_{n}").into()),
            }
        }
        completion = Completion::of(document);
    }
    if matches!(
        defect,
        Some(Defect::KeepsFirstChoice | Defect::LosesUsageDetails)
    ) {
        let mut document = completion.document.clone();
        if defect == Some(Defect::LosesUsageDetails) {
            document["usage"] = completion.usage.unwrap_or_default().document();
        } else if let Some(choices) = document["choices"].as_array_mut() {
            choices.truncate(1);
        }
        completion = Completion::of(document);
    }
    if defect == Some(Defect::PlainReplacesPairs) {
        let mut document = completion.document.clone();
        if let Some(content) = document.pointer_mut("/choices/0/message/content") {
            let text = content.as_str().unwrap_or_default();
            let replaced = |one: char| if one > '\u{ffff}' { '\u{fffd}' } else { one };
            *content = text.chars().map(replaced).collect::<String>().into();
        }
        completion = Completion::of(document);
    }
    if defect == Some(Defect::GuessesUsage) {
        let mut document = completion.document.clone();
        document["usage"] = guess(completion.text()).document();
        completion = Completion::of(document);
    }
    Ok(completion)
}

/// The first choice that reports an error, by a member `error` or by its finish_reason (FALL-09).
pub(super) fn failed_choice(choices: &[Value], defect: Option<Defect>) -> Option<&Value> {
    let read = match defect {
        Some(Defect::ReadsFirstChoiceAlone) => 1,
        _ => usize::MAX,
    };
    choices.iter().take(read).find(|choice| {
        let error = choice.get("error");
        let written = match defect {
            Some(Defect::IgnoresErrorsInChoices) => false,
            Some(Defect::TakesNullForAnError) => error.is_some(),
            _ => error.is_some_and(|error| !error.is_null()),
        };
        let by_reason =
            choice["finish_reason"] == "error" && defect != Some(Defect::IgnoresFinishReasonError);
        written || by_reason
    })
}

/// The error that a choice reports.
pub(super) fn choice_error(choice: &Value, secret: &str, defect: Option<Defect>) -> AttemptError {
    let error = AttemptError::from_document(Cause::InBand, choice, secret);
    let number = choice["error"]["code"].as_u64();
    let Some(number) = number.filter(|_| defect != Some(Defect::NumbersHaveNoClass)) else {
        return error;
    };
    AttemptError {
        cause: if number == 429 {
            Cause::RateLimited
        } else {
            error.cause
        },
        code: Some(number.to_string()),
        ..error
    }
}

/// Reads a refusal: the cause by status and, for 429, by the provider's code.
pub(super) fn refusal(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    secret: &str,
    defect: Option<Defect>,
) -> AttemptError {
    let document: Value = serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body);
        let is_text = !text.trim_start().starts_with(['<', '{', '[']);
        Value::from(if is_text { text.as_ref() } else { "" })
    });
    let document = match defect {
        Some(Defect::ReadsOpenAiErrorsAlone) => {
            let message = document.pointer("/error/message");
            json!({ "error": {"message": message} })
        }
        _ => document,
    };
    let error = AttemptError::from_document(Cause::Rejected, &document, secret);
    let quota = [&error.kind, &error.code]
        .into_iter()
        .flatten()
        .any(|text| text == "insufficient_quota");
    let cause = match status.as_u16() {
        401 | 403 => Cause::ProviderAuth,
        402 => Cause::QuotaExhausted,
        429 if quota => Cause::QuotaExhausted,
        429 => Cause::RateLimited,
        503 | 529 => Cause::Overloaded,
        500.. => Cause::ServerError,
        400..500 => Cause::Rejected,
        _ => Cause::BadResponse,
    };
    let code = status.as_u16();
    let status = Some(code);
    let retry_after = retry_after(headers, defect);
    let no_retry = headers
        .get("x-should-retry")
        .is_some_and(|value| value == "false");
    match cause {
        Cause::Rejected => AttemptError {
            status,
            retry_after,
            no_retry,
            ..error
        },
        _ => AttemptError {
            status,
            retry_after,
            no_retry,
            ..AttemptError::new(
                cause,
                match error.message.as_str() {
                    NO_REASON => format!("the provider answered {code}"),
                    words => format!("the provider answered {code}: {words}"),
                },
            )
        },
    }
}

/// `retry-after-ms`, or Retry-After in seconds or as an HTTP date (RFC 9110 section 10.2.3).
fn retry_after(headers: &HeaderMap, defect: Option<Defect>) -> Option<Duration> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    };
    if let Some(ms) = text("retry-after-ms").and_then(|text| text.parse().ok()) {
        return Some(Duration::from_millis(ms));
    }
    let text = text("retry-after")?;
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) if defect == Some(Defect::IgnoresRetryAfterDates) => None,
        Err(_) => Some(
            httpdate::parse_http_date(text)
                .ok()?
                .duration_since(SystemTime::now())
                .unwrap_or_default(),
        ),
    }
}

/// A `chat.completion` or `chat.completion.chunk` of our own making.
pub(super) fn envelope(object: &str, model: &str, choices: &Value) -> Value {
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let id = format!("chatcmpl-{}", uuid::Uuid::now_v7().simple());
    json!({ "id": id, "object": object, "created": created, "model": model, "choices": choices })
}

/// For [`Defect::GuessesUsage`].
pub(super) fn guess(text: &str) -> Usage {
    Usage {
        prompt: 1,
        completion: text.len() as u64 / 4 + 1,
    }
}

/// Ollama's tool calls as OpenAI's: arguments as text, ids, indexes from `first`.
pub(super) fn tool_calls(message: &Value, first: usize, defect: Option<Defect>) -> Vec<Value> {
    let calls = message
        .get("tool_calls")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let call = |(index, call): (usize, &Value)| {
        let own = if defect == Some(Defect::TranslatesWithoutId) {
            Some("")
        } else {
            call["id"].as_str()
        };
        let id = own.map_or_else(
            || format!("call_{}", uuid::Uuid::now_v7().simple()),
            str::to_owned,
        );
        let arguments = &call["function"]["arguments"];
        let arguments = if defect == Some(Defect::CopiesOllamaFields) {
            arguments.clone()
        } else {
            arguments.to_string().into()
        };
        json!({ "index": first + index, "id": id, "type": "function", "function": { "name": call["function"]["name"], "arguments": arguments } })
    };
    calls.iter().enumerate().map(call).collect()
}

/// Ollama's `done_reason` as a finish_reason.
pub(super) fn finish_reason(record: &Value, tools: bool, defect: Option<Defect>) -> &str {
    match record["done_reason"].as_str() {
        _ if tools && defect != Some(Defect::CopiesOllamaFields) => "tool_calls",
        Some("length") => "length",
        _ => "stop",
    }
}

fn from_ollama(record: &Value, defect: Option<Defect>) -> Value {
    let message = &record["message"];
    let mut calls = tool_calls(message, 0, defect);
    let finish = finish_reason(record, !calls.is_empty(), defect);
    let mut message =
        json!({ "role": "assistant", "content": message["content"].as_str().unwrap_or_default() });
    if !calls.is_empty() {
        for call in &mut calls {
            call.as_object_mut().map(|call| call.shift_remove("index"));
        }
        if message["content"] == "" {
            message["content"] = Value::Null;
        }
        message["tool_calls"] = calls.into();
    }
    let choices = json!([{ "index": 0, "message": message, "finish_reason": finish }]);
    let mut document = envelope(
        "chat.completion",
        record["model"].as_str().unwrap_or_default(),
        &choices,
    );
    if defect != Some(Defect::CopiesOllamaFields) {
        document["usage"] = Usage::of_ollama(record).document();
    }
    document
}

/// OpenAI's request in Ollama's form. What Ollama cannot express is refused, never dropped
/// (WIRE-08).
fn to_ollama(fields: &Map<String, Value>, defect: Option<Defect>) -> Result<Value, AttemptError> {
    let mut body = json!({ "stream": false });
    let mut options = Map::new();
    for (name, value) in fields {
        match name.as_str() {
            "model" | "tools" => body[name.as_str()] = value.clone(),
            "stream" => body["stream"] = value.as_bool().unwrap_or(false).into(),
            "messages" => body["messages"] = messages_to_ollama(value, defect),
            "temperature" | "top_p" | "seed" | "stop" | "frequency_penalty"
            | "presence_penalty" => {
                options.insert(name.clone(), value.clone());
            }
            "max_tokens" | "max_completion_tokens" => {
                options.insert("num_predict".into(), value.clone());
            }
            "response_format" if value["type"] == "json_object" => body["format"] = "json".into(),
            "response_format" if value["type"] == "json_schema" => {
                body["format"] = value["json_schema"]["schema"].clone()
            }
            "stream_options" | "user" | "response_format" => {}
            "n" if *value == 1 => {}
            "tool_choice" if *value == "auto" => {}
            _ if defect == Some(Defect::DropsUnknownFields) => {}
            _ => {
                let error = AttemptError::new(
                    Cause::Unsupported,
                    format!("an Ollama provider does not understand the field {name}"),
                );
                return Err(AttemptError {
                    param: Some(name.clone()),
                    ..error
                });
            }
        }
    }
    if !options.is_empty() {
        body["options"] = options.into();
    }
    Ok(body)
}

fn messages_to_ollama(messages: &Value, defect: Option<Defect>) -> Value {
    let mut messages = messages.as_array().cloned().unwrap_or_default();
    if defect == Some(Defect::TranslatesLastMessageOnly) {
        messages = messages.pop().into_iter().collect();
    }
    let named = |id: &Value| {
        let calls = messages
            .iter()
            .filter_map(|message| message["tool_calls"].as_array());
        let mut calls = calls.flatten();
        calls
            .find(|call| call["id"] == *id)
            .map(|call| call["function"]["name"].clone())
    };
    let translated = |message: &Value| {
        let mut translated = message_to_ollama(message, defect);
        let result = message.get("tool_call_id");
        if let Some(id) = result.filter(|_| defect != Some(Defect::ResultsWithoutCall)) {
            translated["tool_call_id"] = id.clone();
            translated["tool_name"] = named(id).unwrap_or_default();
        }
        translated
    };
    messages.iter().map(translated).collect()
}

fn message_to_ollama(message: &Value, defect: Option<Defect>) -> Value {
    let mut translated =
        json!({ "role": message["role"], "content": text_of(&message["content"]) });
    if let Some(calls) = message.get("tool_calls").and_then(Value::as_array) {
        let call = |call: &Value| {
            let text = call["function"]["arguments"].as_str().unwrap_or("{}");
            let arguments: Value = serde_json::from_str(text).unwrap_or_else(|_| json!({}));
            json!({ "function": { "name": call["function"]["name"], "arguments": arguments } })
        };
        let most = match defect {
            Some(Defect::TranslatesFirstCallAlone) => 1,
            _ => usize::MAX,
        };
        translated["tool_calls"] = calls.iter().take(most).map(call).collect();
    }
    translated
}

/// The text of a message: a string, or the text parts of an array.
pub(super) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part["text"].as_str())
            .collect(),
        _ => String::new(),
    }
}

/// Whether the head of an answer says that a stream follows (STRM-07).
pub(super) fn is_stream(protocol: Protocol, headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_ascii_lowercase();
    match protocol {
        Protocol::OpenAi => kind.starts_with("text/event-stream"),
        Protocol::Ollama => {
            kind.starts_with("application/x-ndjson") || kind.starts_with("application/json")
        }
    }
}

const KNOWN: &[&str] = &[
    "model",
    "messages",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "max_tokens",
    "tools",
    "tool_choice",
];
