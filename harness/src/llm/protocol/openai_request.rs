//! What OpenAI refuses before a model works: requests for a chat that are broken or incomplete, or
//! have values of a wrong type or out of their range.

use serde_json::{Map, Value, json};

use super::TypedField;
use crate::llm::request::StubRequest;
use crate::wire::Answer;

/// Parameters that are numbers, with their smallest and largest value.
const NUMBERS: [(&str, f64, f64); 4] = [
    ("temperature", 0.0, 2.0),
    ("top_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
];

/// Parameters that are whole numbers, with their smallest and largest value.
const INTEGERS: [(&str, i64, i64); 4] = [
    ("n", 1, 128),
    ("max_tokens", 1, i64::MAX),
    ("max_completion_tokens", 1, i64::MAX),
    ("top_logprobs", 0, 20),
];

/// Parameters of other types, with the words for the type.
const OTHERS: [TypedField; 7] = [
    ("stream", "a boolean", Value::is_boolean),
    ("logprobs", "a boolean", Value::is_boolean),
    ("parallel_tool_calls", "a boolean", Value::is_boolean),
    ("tools", "an array of objects", Value::is_array),
    ("stream_options", "an object", Value::is_object),
    ("response_format", "an object", Value::is_object),
    ("user", "a string", Value::is_string),
];

const ROLES: [&str; 6] = [
    "system",
    "assistant",
    "user",
    "function",
    "tool",
    "developer",
];

/// Why a request is refused, in OpenAI's words.
struct Refusal {
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

impl Refusal {
    /// A refusal that names no parameter and has no code.
    fn plain(message: &str) -> Self {
        Self {
            message: message.into(),
            param: None,
            code: None,
        }
    }

    fn of(param: &str, code: &'static str, message: String) -> Self {
        Self {
            message,
            param: Some(param.into()),
            code: Some(code),
        }
    }

    fn missing(param: &str) -> Self {
        let message = format!("Missing required parameter: '{param}'.");
        Self::of(param, "missing_required_parameter", message)
    }

    fn wrong_type(param: &str, expected: &str, value: &Value) -> Self {
        let message = format!(
            "Invalid type for '{param}': expected {expected}, but got {} instead.",
            type_of(value)
        );
        Self::of(param, "invalid_type", message)
    }
}

/// OpenAI's 400 for a request for a chat that it refuses; `None` if a model may work.
pub(super) fn refusal(request: &StubRequest) -> Option<Answer> {
    let refusal = check(request).err()?;
    let body = json!({"error": {
        "message": refusal.message,
        "type": "invalid_request_error",
        "param": refusal.param,
        "code": refusal.code,
    }});
    Some(Answer::new(400, "application/json", body.to_string()))
}

fn check(request: &StubRequest) -> Result<(), Refusal> {
    if request.body_error.is_some() {
        return Err(Refusal::plain(
            "We could not parse the JSON body of your request. (HINT: This likely means you \
             aren't using your HTTP library correctly. The OpenAI API expects a JSON payload, but \
             what was sent was not valid JSON.)",
        ));
    }
    let Value::Object(body) = &request.json else {
        return Err(Refusal::plain(&format!(
            "Invalid request body: expected an object, but got {} instead.",
            type_of(&request.json)
        )));
    };
    // Azure has the model in the path
    let names_model = request.path.contains("/deployments/");
    match body.get("model") {
        Some(Value::String(model)) if !model.is_empty() => {}
        None | Some(Value::Null) if names_model => {}
        None | Some(Value::Null | Value::String(_)) => {
            return Err(Refusal::plain("you must provide a model parameter"));
        }
        Some(other) => return Err(Refusal::wrong_type("model", "a string", other)),
    }
    match body.get("messages") {
        None => return Err(Refusal::missing("messages")),
        Some(Value::Array(messages)) if messages.is_empty() => {
            return Err(Refusal::of(
                "messages",
                "empty_array",
                "Invalid 'messages': empty array. Expected an array with minimum length 1, but \
                 got an empty array instead."
                    .into(),
            ));
        }
        Some(Value::Array(messages)) => {
            for (at, message) in messages.iter().enumerate() {
                check_message(&format!("messages[{at}]"), message)?;
            }
        }
        Some(other) => {
            return Err(Refusal::wrong_type(
                "messages",
                "an array of objects",
                other,
            ));
        }
    }
    check_parameters(body)
}

fn check_message(param: &str, message: &Value) -> Result<(), Refusal> {
    let Value::Object(message) = message else {
        return Err(Refusal::wrong_type(param, "an object", message));
    };
    let role_param = format!("{param}.role");
    let role = match message.get("role") {
        None => return Err(Refusal::missing(&role_param)),
        Some(Value::String(role)) => role.as_str(),
        Some(other) => return Err(Refusal::wrong_type(&role_param, "a string", other)),
    };
    if !ROLES.contains(&role) {
        let message = format!(
            "Invalid value: '{role}'. Supported values are: 'system', 'assistant', 'user', \
             'function', 'tool', and 'developer'."
        );
        return Err(Refusal::of(&role_param, "invalid_value", message));
    }
    let content_param = format!("{param}.content");
    match message.get("content") {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(parts)) => {
            let wrong = parts.iter().enumerate().find(|(_, part)| !part.is_object());
            wrong.map_or(Ok(()), |(at, part)| {
                let part_param = format!("{content_param}[{at}]");
                Err(Refusal::wrong_type(&part_param, "an object", part))
            })
        }
        // an assistant that has called tools has no content
        None | Some(Value::Null) if matches!(role, "assistant" | "function") => Ok(()),
        None => Err(Refusal::missing(&content_param)),
        Some(other) => Err(Refusal::wrong_type(
            &content_param,
            "one of a string or array of objects",
            other,
        )),
    }
}

fn check_parameters(body: &Map<String, Value>) -> Result<(), Refusal> {
    let given = |name: &str| body.get(name).filter(|value| !value.is_null());
    for (name, least, most) in NUMBERS {
        let Some(value) = given(name) else { continue };
        let Some(number) = value.as_f64() else {
            return Err(Refusal::wrong_type(name, "a decimal", value));
        };
        check_range(
            name,
            "decimal",
            value,
            (number < least, least),
            (number > most, most),
        )?;
    }
    for (name, least, most) in INTEGERS {
        let Some(value) = given(name) else { continue };
        let number = match (value.as_i64(), value.as_u64()) {
            (Some(number), _) => number,
            (None, Some(_)) => i64::MAX,
            (None, None) => return Err(Refusal::wrong_type(name, "an integer", value)),
        };
        check_range(
            name,
            "integer",
            value,
            (number < least, least),
            (number > most, most),
        )?;
    }
    for (name, expected, fits) in OTHERS {
        if let Some(value) = given(name).filter(|value| !fits(value)) {
            return Err(Refusal::wrong_type(name, expected, value));
        }
    }
    Ok(())
}

/// Refuses a value below its least or above its largest; each limit has whether it is broken.
fn check_range(
    name: &str,
    kind: &str,
    value: &Value,
    (below, least): (bool, impl std::fmt::Display),
    (above, most): (bool, impl std::fmt::Display),
) -> Result<(), Refusal> {
    let (code, message) = match (below, above, kind) {
        (true, _, kind) => (
            if kind == "decimal" {
                "decimal_below_min_value"
            } else {
                "integer_below_min_value"
            },
            format!(
                "Invalid '{name}': {kind} below minimum value. Expected a value >= {least}, but \
                 got {value} instead."
            ),
        ),
        (_, true, kind) => (
            if kind == "decimal" {
                "decimal_above_max_value"
            } else {
                "integer_above_max_value"
            },
            format!(
                "Invalid '{name}': {kind} above maximum value. Expected a value <= {most}, but \
                 got {value} instead."
            ),
        ),
        _ => return Ok(()),
    };
    Err(Refusal::of(name, code, message))
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
