//! A request as a provider sees it: what matchers and responders ask about.

use serde_json::Value;

use super::protocol::{self, Protocol};
use crate::wire::{self, REUSE_MARK, WIRE_MARK};

/// A request as matchers and responders see it, whether the wire or a wiremock server of your own
/// passes it on.
#[derive(Clone, Debug)]
pub struct StubRequest {
    /// The method as the sender wrote it.
    pub method: String,
    /// The path without the case's namespace and without the query.
    pub path: String,
    /// The headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body; null if it is not JSON.
    pub json: Value,
    /// Why the body is not JSON; `None` if it is.
    pub(crate) body_error: Option<BodyError>,
    /// Its number on the tape; `None` if something else than the wire passes it on.
    pub(crate) request: Option<u64>,
    /// Whether the connection that carries it had carried a request before; false if something
    /// else than the wire passes it on.
    pub reused: bool,
}

/// Why a body is not JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// There is no byte.
    Empty,
    /// The bytes cannot be read; the text is the reason.
    Broken(String),
}

impl StubRequest {
    fn new(method: &str, path: &str, headers: Vec<(String, String)>, body: &[u8]) -> Self {
        let path = without_namespace(path.split('?').next().unwrap_or_default()).to_string();
        let request = headers
            .iter()
            .find(|(name, _)| name == WIRE_MARK)
            .and_then(|(_, id)| id.parse().ok());
        let reused = headers.iter().any(|(name, _)| name == REUSE_MARK);
        let (json, body_error) = match serde_json::from_slice(body) {
            Ok(json) => (json, None),
            Err(_) if body.is_empty() => (Value::Null, Some(BodyError::Empty)),
            Err(error) => (Value::Null, Some(BodyError::Broken(error.to_string()))),
        };
        Self {
            method: method.to_string(),
            path,
            headers,
            json,
            body_error,
            request,
            reused,
        }
    }

    pub(crate) fn of_wire(request: &wire::Request) -> Self {
        let headers = request
            .headers
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
            .collect();
        let asked = Self::new(&request.method, &request.path, headers, &request.body);
        Self {
            request: Some(request.id),
            reused: request.reused,
            ..asked
        }
    }

    pub(crate) fn of_wiremock(request: &wiremock::Request) -> Self {
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        };
        let headers = request.headers.iter().map(header).collect();
        Self::new(
            request.method.as_str(),
            request.url.path(),
            headers,
            &request.body,
        )
    }

    /// Whether the wire passes it on, which obeys plans.
    pub(crate) fn by_the_wire(&self) -> bool {
        self.request.is_some()
    }

    /// The protocol to which its path belongs; `None` if no protocol of a stub has such a path.
    pub fn protocol(&self) -> Option<Protocol> {
        Protocol::of_path(&self.path)
    }

    /// Whether it makes a model work; a probe of a list of models, for example, does not.
    pub fn is_call(&self) -> bool {
        protocol::is_call(&self.method, &self.path)
    }

    /// Whether it is a GET or a HEAD.
    pub(super) fn is_read(&self) -> bool {
        matches!(self.method.as_str(), "GET" | "HEAD")
    }

    /// The model that is asked for; empty if the body names none.
    pub fn model(&self) -> &str {
        self.json["model"].as_str().unwrap_or_default()
    }

    /// Whether a stream is asked for: by the body's `stream`, else by the protocol's default.
    pub fn streams(&self) -> bool {
        self.json["stream"].as_bool().unwrap_or_else(|| {
            self.protocol()
                .is_some_and(|protocol| protocol.behaviour().streams_by_default(&self.path))
        })
    }

    /// Whether the stream has to end with a chunk that carries the usage.
    pub fn wants_usage(&self) -> bool {
        self.json["stream_options"]["include_usage"]
            .as_bool()
            .unwrap_or(false)
    }

    /// The text of the last message of the user, or of Ollama's `prompt`; text parts are joined.
    pub fn user_text(&self) -> String {
        let messages = self.json["messages"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        match messages
            .iter()
            .rev()
            .find(|message| message["role"] == "user")
        {
            Some(message) => text_of(&message["content"]),
            None => self.json["prompt"].as_str().unwrap_or_default().to_string(),
        }
    }

    /// How many inputs an embeddings request has.
    pub(super) fn inputs(&self) -> usize {
        match &self.json["input"] {
            Value::Array(inputs) => inputs.len(),
            Value::Null => 0,
            _ => 1,
        }
    }

    /// The first header of that name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The value at a JSON pointer (`/tools/0/type`) or at a dotted path (`$.tools[0].type`,
    /// `messages[0].content`).
    pub fn at(&self, path: &str) -> Option<&Value> {
        if path.is_empty() || path.starts_with('/') {
            return self.json.pointer(path);
        }
        let dotted = path
            .trim_start_matches('$')
            .trim_start_matches('.')
            .replace('[', ".")
            .replace(']', "");
        dotted
            .split('.')
            .filter(|key| !key.is_empty())
            .try_fold(&self.json, |value, key| match value {
                Value::Array(items) => items.get(key.parse::<usize>().ok()?),
                Value::Object(fields) => fields.get(key),
                _ => None,
            })
    }
}

/// Content as text: a string, or the text parts of an array.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part["text"].as_str())
            .collect(),
        _ => String::new(),
    }
}

/// The path without the namespace: `/t/CASE/v1/models` becomes `/v1/models`.
pub fn without_namespace(path: &str) -> &str {
    let Some(rest) = path.strip_prefix("/t/") else {
        return path;
    };
    rest.find('/').map_or("/", |end| &rest[end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(path: &str, body: Value) -> StubRequest {
        StubRequest::new("POST", path, Vec::new(), body.to_string().as_bytes())
    }

    #[test]
    fn the_namespace_is_taken_off() {
        assert_eq!(
            asked("/t/TIME-02/v1/chat/completions?x=1", json!({})).path,
            "/v1/chat/completions"
        );
        assert_eq!(asked("/v1/models", json!({})).path, "/v1/models");
    }

    #[test]
    fn a_body_without_stream_streams_with_ollama_only() {
        assert!(asked("/api/chat", json!({})).streams());
        assert!(!asked("/api/chat", json!({"stream": false})).streams());
        assert!(!asked("/v1/chat/completions", json!({})).streams());
    }

    #[test]
    fn paths_reach_into_arrays() {
        let asked = asked("/", json!({"tools": [{"function": {"name": "f"}}]}));
        assert_eq!(asked.at("$.tools[0].function.name"), Some(&json!("f")));
        assert_eq!(asked.at("/tools/0/function/name"), Some(&json!("f")));
        assert_eq!(asked.at("tools.1"), None);
    }

    #[test]
    fn the_last_user_message_counts() {
        let body = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]}]});
        assert_eq!(asked("/", body).user_text(), "cd");
    }
}
