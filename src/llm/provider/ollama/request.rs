//! Writes a chat request for Ollama. There are three kinds of fields:
//!
//! * Expressed: `messages` (text, images as data URLs, tool calls and results), sampling, `stop`,
//!   lengths, `response_format`, `tools`, `reasoning_effort`, and Ollama's own `think`,
//!   `keep_alive`, `top_k`, `min_p`, `repeat_penalty` and `num_ctx`.
//! * Left out, because no answer depends on them: `user`, `metadata`, `stream_options` (the gateway
//!   obeys it), `service_tier`, `safety_identifier`, `prompt_cache_key`, `prompt_cache_retention`,
//!   a message's `name` and `annotations`, and any value that asks for the default (`n: 1`,
//!   `logprobs: false`, `parallel_tool_calls: true`, null).
//! * Refused by name: all others.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::llm::chat::{AttemptError, ChatRequest, Mode};
use crate::llm::content::clip;
use crate::llm::provider::failure::unsupported;

/// The body of `POST /api/chat`.
pub(super) fn body(request: &ChatRequest, model: &str) -> Result<Bytes, AttemptError> {
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    body.insert("messages".into(), Value::Null);
    body.insert("stream".into(), (request.mode != Mode::Plain).into());
    let mut options = Map::new();
    let mut tools_allowed = true;
    for (name, raw) in &request.fields {
        let value: Value = serde_json::from_str(raw.get()).map_err(|error| {
            unsupported(
                name,
                format!("Field '{name}' cannot be converted for Ollama: {error}."),
            )
        })?;
        match (name.as_str(), value) {
            ("model" | "stream" | "stream_options", _) | (_, Value::Null) => {}
            ("messages", value) => {
                body.insert("messages".into(), messages(value)?);
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
            // If the client sends both, the newer name applies.
            ("max_completion_tokens", value) => {
                options.insert("num_predict".into(), value);
            }
            ("max_tokens", value) => {
                options.entry("num_predict").or_insert(value);
            }
            ("response_format", value) => {
                if let Some(format) = format(&value)? {
                    body.insert("format".into(), format);
                }
            }
            ("tools", value) => {
                body.insert("tools".into(), tools(value)?);
            }
            ("tool_choice", Value::String(choice)) if choice == "auto" => {}
            ("tool_choice", Value::String(choice)) if choice == "none" => tools_allowed = false,
            ("reasoning_effort", Value::String(effort)) => {
                body.insert("think".into(), think(&effort)?);
            }
            ("think" | "keep_alive", value) => {
                body.insert(name.clone(), value);
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
        body.remove("tools");
    }
    if !options.is_empty() {
        body.insert("options".into(), options.into());
    }
    Ok(Value::from(body).to_string().into())
}

/// The error for a field or value that this protocol cannot express.
fn refuse(name: &str, value: &Value) -> AttemptError {
    let shown = clip(&value.to_string(), 60);
    unsupported(
        name,
        format!(
            "'{name}' with the value {shown} is not supported by this model's provider (Ollama); leave it \
             out or use another model."
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
    // A tool's result names its call by id, and Ollama requires the name of the tool as well.
    let mut called: Vec<(String, Value)> = Vec::new();
    let mut converted = Vec::with_capacity(messages.len());
    for (index, message) in messages.into_iter().enumerate() {
        let at = format!("messages[{index}]");
        let Value::Object(message) = message else {
            return Err(refuse(&at, &message));
        };
        converted.push(self::message(&at, message, &mut called)?);
    }
    Ok(converted.into())
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
    let mut converted = Map::new();
    converted.insert("role".into(), role.into());
    converted.insert("content".into(), "".into());
    for (name, value) in message {
        match (name.as_str(), value) {
            ("role" | "annotations", _) | (_, Value::Null) => {}
            ("content", Value::String(text)) => {
                converted.insert("content".into(), text.into());
            }
            ("content", Value::Array(parts)) => {
                let (text, images) = content(at, parts)?;
                converted.insert("content".into(), text.into());
                if !images.is_empty() {
                    converted.insert("images".into(), images.into());
                }
            }
            ("refusal", Value::String(text)) if role == "assistant" => {
                if converted["content"] == "" {
                    converted.insert("content".into(), text.into());
                }
            }
            ("reasoning_content" | "reasoning", Value::String(text)) if role == "assistant" => {
                converted.insert("thinking".into(), text.into());
            }
            ("tool_calls", Value::Array(calls)) if role == "assistant" => {
                let calls: Result<Vec<Value>, AttemptError> = calls
                    .into_iter()
                    .enumerate()
                    .map(|(index, call)| {
                        tool_call(&format!("{at}.tool_calls[{index}]"), call, called)
                    })
                    .collect();
                converted.insert("tool_calls".into(), calls?.into());
            }
            ("tool_call_id", Value::String(id)) if role == "tool" => {
                if let Some((_, tool)) = called.iter().rev().find(|(known, _)| *known == id) {
                    converted.insert("tool_name".into(), tool.clone());
                }
                converted.insert("tool_call_id".into(), id.into());
            }
            ("name", value) if role == "tool" => {
                converted.entry("tool_name").or_insert(value);
            }
            ("name", _) => {}
            (name, value) => return Err(refuse(&format!("{at}.{name}"), &value)),
        }
    }
    Ok(converted.into())
}

/// The text of all parts, one line each, and the images in base64.
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
                            "'{at}' holds an image URL, and the gateway fetches no images for Ollama; send the \
                             image as a data URL in base64."
                        ),
                    ));
                }
            },
            _ => return Err(refuse(&at, &part)),
        }
    }
    Ok((texts.join("\n"), images))
}

/// Converts a tool call. Ollama takes the arguments as an object, and OpenAI as JSON text.
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
    let mut converted = json!({"function": {"name": name, "arguments": arguments}});
    if let Some(id) = call["id"].as_str() {
        called.push((id.to_owned(), name.into()));
        converted["id"] = id.into();
    }
    Ok(converted)
}
