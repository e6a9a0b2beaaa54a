//! Matchers: which requests a rule answers. They work with stubs and with any wiremock server.

use std::fmt;

use serde_json::Value;
use wiremock::Match;

use super::protocol::Protocol;
use super::request::StubRequest;

/// Conditions on a request; it is matched if all of them hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matcher {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
enum Condition {
    Route(&'static str, Vec<&'static str>),
    Model(String),
    UserSays(String),
    Streaming(bool),
    ToolNamed(String),
    At(String, Value),
    Header(String, String),
    Contains(String),
}

/// Matches a chat request of any protocol: `POST …/chat/completions`, `POST /api/chat`, and so on.
pub fn chat() -> Matcher {
    let ends = Protocol::all()
        .iter()
        .flat_map(|protocol| protocol.chat_path_ends());
    Matcher::route("POST", &ends.collect::<Vec<_>>())
}

/// Matches any request.
pub fn anything() -> Matcher {
    Matcher::default()
}

impl Matcher {
    /// Matches requests of this method to a path with one of these ends.
    pub(super) fn route(method: &'static str, paths: &[&'static str]) -> Self {
        Self {
            conditions: vec![Condition::Route(method, paths.to_vec())],
        }
    }

    /// Matches chat requests of this protocol.
    pub(super) fn chat_of(protocol: Protocol) -> Self {
        Self::route("POST", &protocol.chat_path_ends())
    }

    fn and(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    /// Also asks for this model.
    #[must_use]
    pub fn model(self, name: &str) -> Self {
        self.and(Condition::Model(name.into()))
    }

    /// Also has this text in its last user message.
    #[must_use]
    pub fn user_says(self, text: &str) -> Self {
        self.and(Condition::UserSays(text.into()))
    }

    /// Also wants a stream, or does not want one.
    #[must_use]
    pub fn streaming(self, streaming: bool) -> Self {
        self.and(Condition::Streaming(streaming))
    }

    /// Also offers a tool of this name.
    #[must_use]
    pub fn tool_named(self, name: &str) -> Self {
        self.and(Condition::ToolNamed(name.into()))
    }

    /// Also has this value at a JSON pointer (`/tools/0/type`) or a dotted path
    /// (`$.tools[0].type`).
    #[must_use]
    pub fn json_path(self, path: &str, value: impl Into<Value>) -> Self {
        self.and(Condition::At(path.into(), value.into()))
    }

    /// Also has this header.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        self.and(Condition::Header(name.to_ascii_lowercase(), value.into()))
    }

    /// Also has this text anywhere in its body, for example in a system prompt.
    #[must_use]
    pub fn body_contains(self, text: &str) -> Self {
        self.and(Condition::Contains(text.into()))
    }

    /// Whether the request is matched.
    pub fn accepts(&self, request: &StubRequest) -> bool {
        self.conditions
            .iter()
            .all(|condition| condition.holds(request))
    }

    /// How many conditions hold, and the first that does not, with what there was instead; `None`
    /// if all hold. The count makes it possible to name the nearest of several matchers.
    pub(super) fn refusal(&self, request: &StubRequest) -> Option<(usize, String)> {
        let met = self
            .conditions
            .iter()
            .filter(|condition| condition.holds(request))
            .count();
        let failed = self
            .conditions
            .iter()
            .find(|condition| !condition.holds(request))?;
        Some((
            met,
            format!(
                "it wants {failed}, the request has {}",
                failed.instead(request)
            ),
        ))
    }
}

impl Condition {
    fn holds(&self, request: &StubRequest) -> bool {
        match self {
            Self::Route(method, paths) => {
                request.method == *method && paths.iter().any(|path| request.path.ends_with(path))
            }
            Self::Model(name) => request.model() == name,
            Self::UserSays(text) => request.user_text().contains(text),
            Self::Streaming(streaming) => request.streams() == *streaming,
            Self::ToolNamed(name) => tool_names(request).any(|tool| tool == name),
            Self::At(path, value) => request.at(path) == Some(value),
            Self::Header(name, value) => request.header(name) == Some(value),
            Self::Contains(text) => request
                .json
                .to_string()
                .contains(within_json(text).as_str()),
        }
    }

    fn instead(&self, request: &StubRequest) -> String {
        match self {
            Self::Route(..) => format!("{} {}", request.method, request.path),
            Self::Model(_) => format!("model {:?}", request.model()),
            Self::UserSays(_) => format!("{:?}", request.user_text()),
            Self::Streaming(_) => format!("stream: {}", request.streams()),
            Self::ToolNamed(_) => format!("tools {:?}", tool_names(request).collect::<Vec<_>>()),
            Self::At(path, _) => request.at(path).map_or("nothing".into(), Value::to_string),
            Self::Header(name, _) => request
                .header(name)
                .map_or("nothing".into(), |value| format!("{value:?}")),
            Self::Contains(_) => "a body without it".into(),
        }
    }
}

/// The text as JSON writes it within a string.
fn within_json(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(&quoted)
        .to_string()
}

fn tool_names(request: &StubRequest) -> impl Iterator<Item = &str> {
    request.json["tools"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .filter_map(|tool| tool["function"]["name"].as_str())
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(method, paths) => write!(f, "{method} …{}", paths.join(" or …")),
            Self::Model(name) => write!(f, "model {name:?}"),
            Self::UserSays(text) => write!(f, "a user message with {text:?}"),
            Self::Streaming(streaming) => write!(f, "stream: {streaming}"),
            Self::ToolNamed(name) => write!(f, "a tool {name:?}"),
            Self::At(path, value) => write!(f, "{value} at {path}"),
            Self::Header(name, value) => write!(f, "{name}: {value}"),
            Self::Contains(text) => write!(f, "a body with {text:?}"),
        }
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.conditions.iter().map(Condition::to_string).collect();
        f.write_str(&if parts.is_empty() {
            "anything".to_string()
        } else {
            parts.join(", ")
        })
    }
}

impl Match for Matcher {
    fn matches(&self, request: &wiremock::Request) -> bool {
        self.accepts(&StubRequest::of_wiremock(request))
    }
}

#[cfg(test)]
mod tests {
    use super::within_json;

    #[test]
    fn text_is_looked_for_as_json_writes_it() {
        assert_eq!(within_json("say \"hi\""), "say \\\"hi\\\"");
        assert_eq!(within_json("plain"), "plain");
    }
}
