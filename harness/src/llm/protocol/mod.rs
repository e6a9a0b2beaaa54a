//! The protocols that a stub can speak: one file each, and one list.
//!
//! Whatever depends on a protocol is behind `ProviderProtocol`: its routes, how a reply, an error
//! and embeddings are written, and what is answered by default. A new protocol is a file in this
//! folder with an implementation and its constant, and a row in the list.

pub mod ollama;
pub mod openai;
mod openai_request;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::request::StubRequest;
use super::responder::{ErrorReply, Reply};
use crate::wire::Answer;

/// Every protocol that a stub can speak.
static ALL: [Protocol; 2] = [Protocol::OPENAI, Protocol::OLLAMA];

/// What distinguishes one provider protocol from another.
pub(super) trait ProviderProtocol: Send + Sync {
    /// The name in scripts, specifications and target files, such as `openai`.
    fn name(&self) -> &'static str;

    /// The name for people, such as `OpenAI`.
    fn title(&self) -> &'static str;

    /// What follows the root of a server in the base URL that a client is configured with.
    fn base_path(&self) -> &'static str;

    /// The beginning of every path that belongs to this protocol and to no route of another one.
    fn prefix(&self) -> &'static str;

    /// The routes that are known by name.
    fn routes(&self) -> &'static [Route];

    /// Whether a request to this path asks for a stream if its body does not mention `stream`.
    fn streams_by_default(&self, path: &str) -> bool;

    /// The answer that carries a model's reply, streamed if the request asks for it.
    fn reply(&self, reply: &Reply, request: &StubRequest) -> Answer;

    /// The answer that carries a provider's error.
    fn error(&self, error: &ErrorReply) -> Answer;

    /// The answer that carries one embedding for each of `inputs` inputs.
    fn embeddings(&self, request: &StubRequest, inputs: usize) -> Answer;

    /// The answer that the provider gives to a request for a chat before a model works, such as
    /// the refusal of a body that is not JSON; `None` if a model works.
    fn early_answer(&self, request: &StubRequest) -> Option<Answer>;

    /// The answer of a stub for which no rule matches, on the routes around chat that gateways look
    /// at for health and discovery; `None` for all others.
    fn default_answer(&self, request: &StubRequest) -> Option<Answer>;
}

/// A route of a protocol.
pub(super) struct Route {
    pub(super) method: &'static str,
    /// The end of its path, so that a base URL may have a path of its own.
    pub(super) path_end: &'static str,
    pub(super) kind: RouteKind,
}

/// A field of a request, the provider's word for its type, and whether a value has that type.
type TypedField = (&'static str, &'static str, fn(&Value) -> bool);

/// What a route is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteKind {
    /// A chat request.
    Chat,
    /// Another request that makes a model work.
    Call,
    /// A request that costs nothing: lists of models, versions.
    Probe,
}

impl Route {
    pub(super) const fn new(method: &'static str, path_end: &'static str, kind: RouteKind) -> Self {
        Self {
            method,
            path_end,
            kind,
        }
    }

    fn takes(&self, method: &str, path: &str) -> bool {
        self.method == method && path.ends_with(self.path_end)
    }
}

/// A protocol from the list of those that a stub can speak. Only the list can give one, so that an
/// unknown name is an error and never another protocol.
#[derive(Clone, Copy)]
pub struct Protocol(&'static dyn ProviderProtocol);

impl Protocol {
    const fn new(protocol: &'static dyn ProviderProtocol) -> Self {
        Self(protocol)
    }

    /// Every protocol that a stub can speak.
    pub fn all() -> &'static [Self] {
        &ALL
    }

    /// The protocol of this name, if a stub can speak it.
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// The name in scripts, specifications and target files, such as `openai`.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// The name for people, such as `OpenAI`.
    pub fn title(self) -> &'static str {
        self.0.title()
    }

    /// What follows the root of a server in the base URL that a client is configured with, such as
    /// `/v1`.
    pub fn base_path(self) -> &'static str {
        self.0.base_path()
    }

    /// The protocol to which a path (without namespace and query) belongs: the one with the longest
    /// route at its end, else the one whose prefix it begins with.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        let longest = |protocol: &Self| {
            let ends = protocol.0.routes().iter().map(|route| route.path_end);
            ends.filter(|end| path.ends_with(end)).map(str::len).max()
        };
        let by_route = ALL
            .into_iter()
            .filter_map(|protocol| Some((longest(&protocol)?, protocol)))
            .max_by_key(|(length, _)| *length);
        match by_route {
            Some((_, protocol)) => Some(protocol),
            None => ALL
                .into_iter()
                .find(|protocol| path.starts_with(protocol.0.prefix())),
        }
    }

    /// The ends of its paths that take a chat request.
    pub(super) fn chat_path_ends(self) -> Vec<&'static str> {
        let routes = self.0.routes().iter();
        routes
            .filter(|route| route.kind == RouteKind::Chat)
            .map(|route| route.path_end)
            .collect()
    }

    pub(super) fn behaviour(self) -> &'static dyn ProviderProtocol {
        self.0
    }

    /// The names of all protocols, for a message.
    pub(super) fn names() -> String {
        ALL.map(Self::name).join(", ")
    }
}

/// Whether a request of this method to this path (without query) makes a model work.
pub(super) fn is_call(method: &str, path: &str) -> bool {
    routes().any(|route| route.kind != RouteKind::Probe && route.takes(method, path))
}

/// The embedding of the n-th input (from 0); its first number identifies the input.
fn vector(n: usize) -> Value {
    json!([n as f64, 0.25, -0.5])
}

fn routes() -> impl Iterator<Item = &'static Route> {
    ALL.iter().flat_map(|protocol| protocol.0.routes())
}

impl PartialEq for Protocol {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Protocol {}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "unknown protocol `{name}`; use one of {}",
                Self::names()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_path_belongs_to_the_protocol_with_the_longest_route() {
        for (path, protocol) in [
            ("/v1/chat/completions", Some(Protocol::OPENAI)),
            ("/api/v1/chat/completions", Some(Protocol::OPENAI)),
            ("/openai/deployments/x/embeddings", Some(Protocol::OPENAI)),
            ("/v1/models/m-gauntlet", Some(Protocol::OPENAI)),
            ("/api/chat", Some(Protocol::OLLAMA)),
            ("/proxy/api/chat", Some(Protocol::OLLAMA)),
            ("/api/embeddings", Some(Protocol::OLLAMA)),
            ("/api/blobs/1", Some(Protocol::OLLAMA)),
            ("/v2/chat", None),
            ("/", None),
        ] {
            assert_eq!(Protocol::of_path(path), protocol, "{path}");
        }
    }

    #[test]
    fn every_protocol_of_the_list_has_a_name_of_its_own_and_reads_it_back() {
        for protocol in Protocol::all() {
            let name = serde_json::to_string(protocol).unwrap();
            assert_eq!(serde_json::from_str::<Protocol>(&name).unwrap(), *protocol);
        }
        let unknown = serde_json::from_str::<Protocol>("\"open_ai\"").unwrap_err();
        assert!(
            unknown
                .to_string()
                .starts_with("unknown protocol `open_ai`; use one of openai, "),
            "{unknown}"
        );
    }
}
