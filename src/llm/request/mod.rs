//! The reading and writing of chat requests. A request is parsed and validated once, kept byte for
//! byte, and written again with the name of another model.
//!
//! The HTTP layer calls [`ChatRequest::parse`], the orchestrator [`ChatRequest::compose`], and
//! codecs [`ChatRequest::body_for`]. No input panics, and nothing here recurses with the depth of
//! the input.

use std::fmt;

use bytes::Bytes;
use indexmap::IndexMap;
use indexmap::map::Entry;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::llm::chat::{ChatRequest, InvalidRequest, Mode};
use crate::llm::content::clip;

/// The maximum number of characters of a value that an error shows.
const MAX_SHOWN: usize = 60;

impl ChatRequest {
    /// Reads a request of a client: a JSON object with `model`, `messages`, and well-known fields
    /// of the right type. An unknown field is kept byte for byte. A field that occurs twice is
    /// refused, because two readers could disagree about its value (RFC 8259 section 4).
    ///
    /// # Errors
    /// [`InvalidRequest`], which names the field and the value.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        let text = std::str::from_utf8(body)
            .map_err(|error| invalid(None, format!("The request body is not UTF-8: {error}.")))?;
        if text.trim_ascii().is_empty() {
            return Err(invalid(
                None,
                "The request body is empty; send a JSON object with 'model' and 'messages'."
                    .to_owned(),
            ));
        }
        let Fields { fields, duplicate } = serde_json::from_str(text).map_err(|error| {
            invalid(
                None,
                format!("The request body is not a valid JSON object: {error}."),
            )
        })?;
        if let Some(name) = duplicate {
            return Err(invalid(
                Some(&name),
                format!(
                    "Field '{}' occurs more than once; send it once.",
                    shown(&name)
                ),
            ));
        }
        let model = model(&fields)?;
        messages(&fields)?;
        for (name, value) in &fields {
            if let Some(shape) = shape_of(name) {
                check(name, shape, value.get())?;
            }
        }
        let mode = mode(&fields)?;
        Ok(Self {
            model,
            mode,
            fields,
        })
    }

    /// Creates a plain request to `model` with a system and a user message. [`ChatRequest::with`]
    /// adds further fields.
    pub fn compose(model: &str, system: &str, user: &str) -> Self {
        let fields = IndexMap::from([
            ("model".to_owned(), raw(&json!(model))),
            (
                "messages".to_owned(),
                raw(
                    &json!([{"role": "system", "content": system}, {"role": "user", "content": user}]),
                ),
            ),
        ]);
        Self {
            model: model.to_owned(),
            mode: Mode::Plain,
            fields,
        }
    }

    /// Sets a field such as `temperature` or `max_tokens`. Do not set `model` or `stream` with it:
    /// [`ChatRequest::model`] and [`ChatRequest::mode`] hold their values as well.
    #[must_use]
    pub fn with(mut self, name: &str, value: &Value) -> Self {
        self.fields.insert(name.to_owned(), raw(value));
        self
    }

    /// Sets `response_format`, so that the answer is JSON of this schema.
    #[must_use]
    pub fn answering_json(self, name: &str, schema: &Value) -> Self {
        self.with("response_format", &json!({"type": "json_schema", "json_schema": {"name": name, "strict": true, "schema": schema}}))
    }

    /// Writes the body for `model`: every field byte for byte and in its order, except that `model`
    /// is replaced.
    pub fn body_for(&self, model: &str) -> Bytes {
        let length: usize = self
            .fields
            .iter()
            .map(|(name, value)| name.len() + value.get().len() + 4)
            .sum();
        let mut body = Vec::with_capacity(length + model.len() + 2);
        for (name, value) in &self.fields {
            body.push(if body.is_empty() { b'{' } else { b',' });
            push_string(&mut body, name);
            body.push(b':');
            if name == "model" {
                push_string(&mut body, model);
            } else {
                body.extend_from_slice(value.get().as_bytes());
            }
        }
        body.push(b'}');
        body.into()
    }

    /// The value of a field; `None` if it is absent, null or not a `T`.
    pub(crate) fn field<'a, T: Deserialize<'a>>(&'a self, name: &str) -> Option<T> {
        self.fields
            .get(name)
            .and_then(|value| serde_json::from_str(value.get()).ok())
    }
}

/// All fields of an object, and the first name that occurs twice.
struct Fields {
    fields: IndexMap<String, Box<RawValue>>,
    duplicate: Option<String>,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut read = Fields {
                    fields: IndexMap::with_capacity(16),
                    duplicate: None,
                };
                while let Some(name) = map.next_key::<String>()? {
                    let value = map.next_value()?;
                    match read.fields.entry(name) {
                        Entry::Vacant(entry) => {
                            entry.insert(value);
                        }
                        Entry::Occupied(entry) => {
                            read.duplicate.get_or_insert_with(|| entry.key().clone());
                        }
                    }
                }
                Ok(read)
            }
        }

        deserializer.deserialize_map(FieldsVisitor)
    }
}

fn model(fields: &IndexMap<String, Box<RawValue>>) -> Result<String, InvalidRequest> {
    let value = fields
        .get("model")
        .ok_or_else(|| missing("model", "the name of a configured model"))?;
    match serde_json::from_str::<String>(value.get()) {
        Ok(model) if !model.is_empty() => Ok(model),
        _ => Err(wrong("model", "a non-empty string", value.get())),
    }
}

fn messages(fields: &IndexMap<String, Box<RawValue>>) -> Result<(), InvalidRequest> {
    /// The parts of a message that every provider needs.
    #[derive(serde::Deserialize)]
    struct Message<'a> {
        #[serde(borrow)]
        role: Option<&'a RawValue>,
        #[serde(borrow)]
        content: Option<&'a RawValue>,
        #[serde(borrow)]
        tool_calls: Option<&'a RawValue>,
    }

    let value = fields
        .get("messages")
        .ok_or_else(|| missing("messages", "a non-empty array of messages"))?;
    let messages: Vec<&RawValue> = match serde_json::from_str(value.get()) {
        Ok(messages) => messages,
        Err(_) => {
            return Err(wrong(
                "messages",
                "a non-empty array of messages",
                value.get(),
            ));
        }
    };
    if messages.is_empty() {
        return Err(wrong(
            "messages",
            "a non-empty array of messages",
            value.get(),
        ));
    }
    for (index, value) in messages.into_iter().enumerate() {
        let at = format!("messages[{index}]");
        if !value.get().starts_with('{') {
            return Err(wrong(
                &at,
                "an object with a role and a content",
                value.get(),
            ));
        }
        let message: Message<'_> = serde_json::from_str(value.get()).map_err(|error| {
            invalid(
                Some(&at),
                format!(
                    "Invalid value for '{at}': {}.",
                    clip(&error.to_string(), 2 * MAX_SHOWN)
                ),
            )
        })?;
        match message
            .role
            .map(|role| (role.get(), serde_json::from_str::<String>(role.get())))
        {
            Some((_, Ok(role))) if !role.is_empty() => {}
            Some((role, _)) => {
                return Err(wrong(&format!("{at}.role"), "a role such as 'user'", role));
            }
            None => return Err(missing(&format!("{at}.role"), "a role such as 'user'")),
        }
        if let Some(content) = message.content {
            check(
                &format!("{at}.content"),
                Shape::StringOrObjects,
                content.get(),
            )?;
        }
        if let Some(calls) = message.tool_calls {
            check(&format!("{at}.tool_calls"), Shape::Objects, calls.get())?;
        }
    }
    Ok(())
}

fn mode(fields: &IndexMap<String, Box<RawValue>>) -> Result<Mode, InvalidRequest> {
    /// The part of `stream_options` that the gateway obeys.
    #[derive(Default, serde::Deserialize)]
    struct StreamOptions<'a> {
        #[serde(borrow)]
        include_usage: Option<&'a RawValue>,
    }

    let options = match fields.get("stream_options") {
        Some(value) => serde_json::from_str::<Option<StreamOptions<'_>>>(value.get())
            .map_err(|error| {
                invalid(
                    Some("stream_options"),
                    format!("Invalid value for 'stream_options': {error}."),
                )
            })?
            .unwrap_or_default(),
        None => StreamOptions::default(),
    };
    if let Some(value) = options.include_usage {
        check("stream_options.include_usage", Shape::Boolean, value.get())?;
    }
    let include_usage = options
        .include_usage
        .is_some_and(|value| value.get() == "true");
    let stream = fields
        .get("stream")
        .is_some_and(|value| value.get() == "true");
    Ok(if stream {
        Mode::Stream { include_usage }
    } else {
        Mode::Plain
    })
}

/// The type that a well-known field must have. Null is the same as an absent field.
#[derive(Clone, Copy)]
enum Shape {
    Boolean,
    Number,
    Integer,
    Positive,
    String,
    Object,
    Objects,
    Strings,
    StringOrStrings,
    StringOrObject,
    StringOrObjects,
}

impl Shape {
    fn expected(self) -> &'static str {
        match self {
            Self::Boolean => "true or false",
            Self::Number => "a finite number",
            Self::Integer => "an integer",
            Self::Positive => "an integer of at least 1",
            Self::String => "a string",
            Self::Object => "an object",
            Self::Objects => "an array of objects",
            Self::Strings => "an array of strings",
            Self::StringOrStrings => "a string or an array of strings",
            Self::StringOrObject => "a string or an object",
            Self::StringOrObjects => "a string or an array of objects",
        }
    }

    /// Whether `value`, which is valid JSON without surrounding space, has this shape.
    fn fits(self, value: &str) -> bool {
        let all = |first: char| {
            value.starts_with('[')
                && serde_json::from_str::<Vec<&RawValue>>(value)
                    .is_ok_and(|all| all.iter().all(|one| one.get().starts_with(first)))
        };
        match self {
            Self::Boolean => value == "true" || value == "false",
            Self::Number => value.parse::<f64>().is_ok_and(f64::is_finite),
            Self::Integer => value.parse::<i64>().is_ok() || value.parse::<u64>().is_ok(),
            Self::Positive => value.parse::<u64>().is_ok_and(|number| number >= 1),
            Self::String => value.starts_with('"'),
            Self::Object => value.starts_with('{'),
            Self::Objects => all('{'),
            Self::Strings => all('"'),
            Self::StringOrStrings => value.starts_with('"') || all('"'),
            Self::StringOrObject => value.starts_with('"') || value.starts_with('{'),
            Self::StringOrObjects => value.starts_with('"') || all('{'),
        }
    }
}

/// The type of a well-known field, from OpenAI's description of `CreateChatCompletionRequest`.
fn shape_of(name: &str) -> Option<Shape> {
    Some(match name {
        "stream" | "store" | "logprobs" | "parallel_tool_calls" => Shape::Boolean,
        "temperature" | "top_p" | "presence_penalty" | "frequency_penalty" => Shape::Number,
        "seed" | "top_logprobs" => Shape::Integer,
        "n" | "max_tokens" | "max_completion_tokens" => Shape::Positive,
        "user" | "reasoning_effort" | "service_tier" | "verbosity" | "safety_identifier"
        | "prompt_cache_key" => Shape::String,
        "stream_options" | "response_format" | "logit_bias" | "metadata" | "audio" => Shape::Object,
        "tools" | "functions" => Shape::Objects,
        "modalities" => Shape::Strings,
        "stop" => Shape::StringOrStrings,
        "tool_choice" | "function_call" => Shape::StringOrObject,
        _ => return None,
    })
}

fn check(name: &str, shape: Shape, value: &str) -> Result<(), InvalidRequest> {
    if value == "null" || shape.fits(value) {
        Ok(())
    } else {
        Err(wrong(name, shape.expected(), value))
    }
}

fn missing(name: &str, expected: &str) -> InvalidRequest {
    invalid(
        Some(name),
        format!("The required field '{name}' is missing; send {expected}."),
    )
}

fn wrong(name: &str, expected: &str, value: &str) -> InvalidRequest {
    invalid(
        Some(name),
        format!(
            "Invalid value for '{name}': expected {expected}, got {}.",
            shown(value)
        ),
    )
}

fn invalid(param: Option<&str>, message: String) -> InvalidRequest {
    InvalidRequest {
        message,
        param: param.map(shown),
    }
}

/// The part of a value that an error shows.
fn shown(value: &str) -> String {
    clip(value, MAX_SHOWN)
}

fn raw(value: &Value) -> Box<RawValue> {
    // The keys of a Value are strings and its numbers are finite, so serde_json always accepts it.
    #[allow(clippy::expect_used)]
    to_raw_value(value).expect("every JSON value can be written")
}

/// Appends `text` as a JSON string.
fn push_string(out: &mut Vec<u8>, text: &str) {
    if text
        .bytes()
        .all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\')
    {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        out.extend_from_slice(Value::from(text).to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests;
