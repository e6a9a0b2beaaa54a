//! A chat request in Ollama's words. Three kinds of fields:
//!
//! * told: `messages` (text, images as data URLs, tool calls and results), sampling, `stop`, lengths, `response_format`, `tools`,
//!   `reasoning_effort`, and Ollama's own `think`, `keep_alive`, `top_k`, `min_p`, `repeat_penalty`, `num_ctx`;
//! * harmless, and left out, since no answer depends on them: `user`, `metadata`, `stream_options` (obeyed by the gateway),
//!   `service_tier`, `safety_identifier`, `prompt_cache_key`, `prompt_cache_retention`, a message's `name` and `annotations`; and whatever
//!   asks for what is so anyway (`n: 1`, `logprobs: false`, `parallel_tool_calls: true`, null);
//! * all others: refused, with their name.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::llm::chat::{AttemptError, ChatRequest, Mode};
use crate::llm::content::clip;
use crate::llm::provider::failure::unsupported;

/// The body of `POST /api/chat`.
pub(super) fn body(request: &ChatRequest, model: &str) -> Result<Bytes, AttemptError> {
    let mut told = Map::new();
    told.insert("model".into(), model.into());
    told.insert("messages".into(), Value::Null);
    told.insert("stream".into(), (request.mode != Mode::Plain).into());
    let mut options = Map::new();
    let mut tools_allowed = true;
    for (name, raw) in &request.fields {
        let value: Value = serde_json::from_str(raw.get()).map_err(|error| {
            unsupported(
                name,
                format!("Field '{name}' cannot be told to Ollama: {error}."),
            )
        })?;
        match (name.as_str(), value) {
            ("model" | "stream" | "stream_options", _) | (_, Value::Null) => {}
            ("messages", value) => {
                told.insert("messages".into(), messages(value)?);
            }
            (
                "user"
                | "metadata"
                | "service_tier"
                | "safety_identifier"
                | "prompt_cache_key"
                | "prompt_cache_retention",
                _,
            ) => {}
            (
                "temperature" | "top_p" | "seed" | "presence_penalty" | "frequency_penalty"
                | "top_k" | "min_p" | "repeat_penalty" | "num_ctx",
                value,
            ) => {
                options.insert(name.clone(), value);
            }
            ("stop", Value::String(stop)) => {
                options.insert("stop".into(), json!([stop]));
            }
            ("stop", value) => {
                options.insert("stop".into(), value);
            }
            // the newer name wins where both are given
            ("max_completion_tokens", value) => {
                options.insert("num_predict".into(), value);
            }
            ("max_tokens", value) => {
                options.entry("num_predict").or_insert(value);
            }
            ("response_format", value) => {
                if let Some(format) = format(&value)? {
                    told.insert("format".into(), format);
                }
            }
            ("tools", value) => {
                told.insert("tools".into(), tools(value)?);
            }
            ("tool_choice", Value::String(choice)) if choice == "auto" => {}
            ("tool_choice", Value::String(choice)) if choice == "none" => tools_allowed = false,
            ("reasoning_effort", Value::String(effort)) => {
                told.insert("think".into(), think(&effort)?);
            }
            ("think" | "keep_alive", value) => {
                told.insert(name.clone(), value);
            }
            ("n", value) if value == json!(1) => {}
            ("logprobs" | "store", Value::Bool(false))
            | ("parallel_tool_calls", Value::Bool(true)) => {}
            ("top_logprobs", value) if value == json!(0) => {}
            ("logit_bias", Value::Object(bias)) if bias.is_empty() => {}
            ("modalities", value) if value == json!(["text"]) => {}
            (name, value) => return Err(refuse(name, &value)),
        }
    }
    if !tools_allowed {
        told.remove("tools");
    }
    if !options.is_empty() {
        told.insert("options".into(), options.into());
    }
    Ok(Value::from(told).to_string().into())
}

/// A field or value that has no words in this protocol.
fn refuse(name: &str, value: &Value) -> AttemptError {
    let shown = clip(&value.to_string(), 60);
    unsupported(
        name,
        format!(
            "'{name}' with the value {shown} cannot be told to this model's provider (Ollama)."
        ),
    )
}

fn format(value: &Value) -> Result<Option<Value>, AttemptError> {
    match value["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some("json".into())),
        Some("json_schema") if value["json_schema"]["schema"].is_object() => {
            Ok(Some(value["json_schema"]["schema"].clone()))
        }
        _ => Err(refuse("response_format", value)),
    }
}

fn tools(value: Value) -> Result<Value, AttemptError> {
    match value.as_array() {
        Some(tools) => match tools.iter().position(|tool| tool["type"] != "function") {
            None => Ok(value),
            Some(index) => Err(refuse(&format!("tools[{index}]"), &tools[index])),
        },
        None => Err(refuse("tools", &value)),
    }
}

fn think(effort: &str) -> Result<Value, AttemptError> {
    match effort {
        "none" => Ok(false.into()),
        "minimal" | "low" => Ok("low".into()),
        "medium" => Ok("medium".into()),
        "high" | "xhigh" => Ok("high".into()),
        other => Err(refuse("reasoning_effort", &other.into())),
    }
}

fn messages(value: Value) -> Result<Value, AttemptError> {
    let Value::Array(messages) = value else {
        return Err(refuse("messages", &value));
    };
    // a result names its call by id; Ollama wants the tool's name as well
    let mut called: Vec<(String, Value)> = Vec::new();
    let mut told = Vec::with_capacity(messages.len());
    for (index, message) in messages.into_iter().enumerate() {
        let at = format!("messages[{index}]");
        let Value::Object(message) = message else {
            return Err(refuse(&at, &message));
        };
        told.push(self::message(&at, message, &mut called)?);
    }
    Ok(told.into())
}

fn message(
    at: &str,
    message: Map<String, Value>,
    called: &mut Vec<(String, Value)>,
) -> Result<Value, AttemptError> {
    let role = match message.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool") => "tool",
        _ => {
            return Err(refuse(
                &format!("{at}.role"),
                message.get("role").unwrap_or(&Value::Null),
            ));
        }
    };
    let mut told = Map::new();
    told.insert("role".into(), role.into());
    told.insert("content".into(), "".into());
    for (name, value) in message {
        match (name.as_str(), value) {
            ("role" | "annotations", _) | (_, Value::Null) => {}
            ("content", Value::String(text)) => {
                told.insert("content".into(), text.into());
            }
            ("content", Value::Array(parts)) => {
                let (text, images) = content(at, parts)?;
                told.insert("content".into(), text.into());
                if !images.is_empty() {
                    told.insert("images".into(), images.into());
                }
            }
            ("refusal", Value::String(text)) if role == "assistant" => {
                if told["content"] == "" {
                    told.insert("content".into(), text.into());
                }
            }
            ("reasoning_content" | "reasoning", Value::String(text)) if role == "assistant" => {
                told.insert("thinking".into(), text.into());
            }
            ("tool_calls", Value::Array(calls)) if role == "assistant" => {
                let calls: Result<Vec<Value>, AttemptError> = calls
                    .into_iter()
                    .enumerate()
                    .map(|(index, call)| {
                        tool_call(&format!("{at}.tool_calls[{index}]"), call, called)
                    })
                    .collect();
                told.insert("tool_calls".into(), calls?.into());
            }
            ("tool_call_id", Value::String(id)) if role == "tool" => {
                if let Some((_, tool)) = called.iter().rev().find(|(known, _)| *known == id) {
                    told.insert("tool_name".into(), tool.clone());
                }
                told.insert("tool_call_id".into(), id.into());
            }
            ("name", value) if role == "tool" => {
                told.entry("tool_name").or_insert(value);
            }
            ("name", _) => {}
            (name, value) => return Err(refuse(&format!("{at}.{name}"), &value)),
        }
    }
    Ok(told.into())
}

/// The text of all parts, a line each, and the images in base64.
fn content(at: &str, parts: Vec<Value>) -> Result<(String, Vec<Value>), AttemptError> {
    let mut texts = Vec::new();
    let mut images = Vec::new();
    for (index, part) in parts.into_iter().enumerate() {
        let at = format!("{at}.content[{index}]");
        match (
            part["type"].as_str(),
            part["text"].as_str(),
            part["refusal"].as_str(),
            part["image_url"]["url"].as_str(),
        ) {
            (Some("text"), Some(text), _, _) | (Some("refusal"), _, Some(text), _) => {
                texts.push(text.to_owned())
            }
            (Some("image_url"), _, _, Some(url)) => match url
                .strip_prefix("data:")
                .and_then(|data| data.split_once(";base64,"))
            {
                Some((_, base64)) => images.push(base64.into()),
                None => {
                    return Err(unsupported(
                        &at,
                        format!(
                            "'{at}': images are told to Ollama as data URLs in base64 only, not fetched from elsewhere."
                        ),
                    ));
                }
            },
            _ => return Err(refuse(&at, &part)),
        }
    }
    Ok((texts.join("\n"), images))
}

/// A call with its arguments as an object, where OpenAI has them as JSON text.
fn tool_call(
    at: &str,
    call: Value,
    called: &mut Vec<(String, Value)>,
) -> Result<Value, AttemptError> {
    let function = &call["function"];
    let (Some(name), Some(arguments)) = (function["name"].as_str(), function["arguments"].as_str())
    else {
        return Err(refuse(at, &call));
    };
    let arguments: Value = match arguments.trim() {
        "" => json!({}),
        text => serde_json::from_str(text)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| refuse(&format!("{at}.function.arguments"), &text.into()))?,
    };
    let mut told = json!({"function": {"name": name, "arguments": arguments}});
    if let Some(id) = call["id"].as_str() {
        called.push((id.to_owned(), name.into()));
        told["id"] = id.into();
    }
    Ok(told)
}
