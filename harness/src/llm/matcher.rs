//! Which requests a responder answers: matchers for both protocols, usable with any wiremock server.

use std::fmt;

use serde_json::Value;
use wiremock::Match;

use super::request::StubRequest;

/// A request is matched if all conditions hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matcher {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
enum Condition {
    Route(&'static str, &'static [&'static str]),
    Model(String),
    UserSays(String),
    Streaming(bool),
    ToolNamed(String),
    At(String, Value),
    Header(String, String),
    Contains(String),
}

/// A chat request of either protocol: `POST …/chat/completions` or `POST /api/chat`.
pub fn chat() -> Matcher {
    Matcher::route("POST", &["/chat/completions", "/api/chat"])
}

/// Any request.
pub fn anything() -> Matcher {
    Matcher::default()
}

impl Matcher {
    /// Requests of this method to a path with one of these ends.
    pub(super) fn route(method: &'static str, paths: &'static [&'static str]) -> Self {
        Self {
            conditions: vec![Condition::Route(method, paths)],
        }
    }

    fn and(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    /// … for this model.
    #[must_use]
    pub fn model(self, name: &str) -> Self {
        self.and(Condition::Model(name.into()))
    }

    /// … whose last user message contains this text.
    #[must_use]
    pub fn user_says(self, text: &str) -> Self {
        self.and(Condition::UserSays(text.into()))
    }

    /// … that wants a stream, or does not.
    #[must_use]
    pub fn streaming(self, streaming: bool) -> Self {
        self.and(Condition::Streaming(streaming))
    }

    /// … that offers a tool of this name.
    #[must_use]
    pub fn tool_named(self, name: &str) -> Self {
        self.and(Condition::ToolNamed(name.into()))
    }

    /// … with this value at a JSON pointer (`/tools/0/type`) or a dotted path (`$.tools[0].type`).
    #[must_use]
    pub fn json_path(self, path: &str, value: impl Into<Value>) -> Self {
        self.and(Condition::At(path.into(), value.into()))
    }

    /// … with this header.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        self.and(Condition::Header(name.to_ascii_lowercase(), value.into()))
    }

    /// … whose body contains this text anywhere (a system prompt's words, the case's nonce).
    #[must_use]
    pub fn body_contains(self, text: &str) -> Self {
        self.and(Condition::Contains(text.into()))
    }

    /// Whether the request is matched.
    pub fn accepts(&self, asked: &StubRequest) -> bool {
        self.conditions
            .iter()
            .all(|condition| condition.holds(asked))
    }

    /// The first condition that does not hold, with what there was instead; `None` if it matches. `met` counts those that hold,
    /// so that the nearest of several matchers can be named.
    pub(super) fn refusal(&self, asked: &StubRequest) -> Option<(usize, String)> {
        let met = self
            .conditions
            .iter()
            .filter(|condition| condition.holds(asked))
            .count();
        let failed = self
            .conditions
            .iter()
            .find(|condition| !condition.holds(asked))?;
        Some((
            met,
            format!("{failed} was wanted, {} came", failed.instead(asked)),
        ))
    }
}

impl Condition {
    fn holds(&self, asked: &StubRequest) -> bool {
        match self {
            Self::Route(method, paths) => {
                asked.method == *method && paths.iter().any(|path| asked.path.ends_with(path))
            }
            Self::Model(name) => asked.model() == name,
            Self::UserSays(text) => asked.user_text().contains(text),
            Self::Streaming(streaming) => asked.streams() == *streaming,
            Self::ToolNamed(name) => tool_names(asked).any(|tool| tool == name),
            Self::At(path, value) => asked.at(path) == Some(value),
            Self::Header(name, value) => asked.header(name) == Some(value),
            Self::Contains(text) => asked.json.to_string().contains(within_json(text).as_str()),
        }
    }

    fn instead(&self, asked: &StubRequest) -> String {
        match self {
            Self::Route(..) => format!("{} {}", asked.method, asked.path),
            Self::Model(_) => format!("model {:?}", asked.model()),
            Self::UserSays(_) => format!("{:?}", asked.user_text()),
            Self::Streaming(_) => format!("stream: {}", asked.streams()),
            Self::ToolNamed(_) => format!("tools {:?}", tool_names(asked).collect::<Vec<_>>()),
            Self::At(path, _) => asked.at(path).map_or("nothing".into(), Value::to_string),
            Self::Header(name, _) => asked
                .header(name)
                .map_or("nothing".into(), |value| format!("{value:?}")),
            Self::Contains(_) => "a body without it".into(),
        }
    }
}

/// The text as it stands within a JSON string.
fn within_json(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(&quoted)
        .to_string()
}

fn tool_names(asked: &StubRequest) -> impl Iterator<Item = &str> {
    asked.json["tools"]
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
            Self::UserSays(text) => write!(f, "a user who says {text:?}"),
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
