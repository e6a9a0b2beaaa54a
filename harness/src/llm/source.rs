//! Where answers come from: a wiremock server, or rules in process. Both understand the same matchers and responders, fall back
//! to the stub's default, and call an unmatched request an error.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use wiremock::{Mock, MockServer, Respond, ResponseTemplate};

use super::matcher::{Matcher, chat};
use super::request::StubRequest;
use super::responder::{Responder, template};
use super::{ollama, openai};
use crate::plan::Plan;
use crate::spec::Protocol;
use crate::wire::{Answer, PLAN_HEADER, Request, Source, UNMATCHED_HEADER, WIRE_MARK};

/// Headers that belong to a connection and not to a message (RFC 9110 section 7.6.1), and those that tell a length.
const PER_HOP: [&str; 7] = [
    "connection",
    "content-length",
    "date",
    "expect",
    "host",
    "keep-alive",
    "transfer-encoding",
];

/// What a stub says when no rule of the case matches: its default to chats, the usual small routes, else an error.
#[derive(Clone, Default)]
pub(super) struct Fallback {
    default: Arc<RwLock<Option<Responder>>>,
    rules: Arc<Mutex<Vec<Matcher>>>,
}

impl Fallback {
    pub(super) fn answers(&self, responder: Responder) {
        *self.default.write().unwrap_or_else(PoisonError::into_inner) = Some(responder);
    }

    /// Remembers a rule, to name the nearest one for a request that none matches.
    fn remember(&self, matcher: Matcher) {
        self.rules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(matcher);
    }

    pub(super) fn answer(&self, asked: &StubRequest, protocol: Option<Protocol>) -> Answer {
        let default = self
            .default
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match default {
            Some(responder) if chat().accepts(asked) => return responder.render(asked),
            _ => {}
        }
        around(asked, protocol).unwrap_or_else(|| Answer::unmatched(self.reason(asked)))
    }

    fn reason(&self, asked: &StubRequest) -> String {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let nearest = rules
            .iter()
            .filter_map(|rule| Some((rule, rule.refusal(asked)?)))
            .max_by_key(|(_, (met, _))| *met);
        let request = format!(
            "{} {} for model {:?}",
            asked.method,
            asked.path,
            asked.model()
        );
        match nearest {
            Some((rule, (_, why))) => format!("{request}; the nearest rule is [{rule}]: {why}"),
            None => format!("{request}; the stub has no rule"),
        }
    }
}

/// Gateways look at these for health and discovery.
fn around(asked: &StubRequest, protocol: Option<Protocol>) -> Option<Answer> {
    let path = asked.path.as_str();
    let looks = matches!(asked.method.as_str(), "GET" | "HEAD");
    match protocol {
        _ if looks && path.ends_with("/models") => Some(openai::model_list()),
        Some(Protocol::OpenAi) => None,
        _ if looks && path == "/" => Some(Answer::new(
            200,
            "text/plain; charset=utf-8",
            "Ollama is running",
        )),
        _ if looks || path == "/api/show" => ollama::around(path),
        _ => None,
    }
}

/// Answers from a wiremock server of its own. Answers come whole and one after the other; the wire makes them flow.
pub struct WiremockSource {
    server: MockServer,
    client: Client<HttpConnector, Full<Bytes>>,
    fallback: Fallback,
}

/// The last of wiremock's rules: takes what nothing else matched.
struct CatchAll {
    fallback: Fallback,
    protocol: Protocol,
}

impl Respond for CatchAll {
    fn respond(&self, request: &wiremock::Request) -> ResponseTemplate {
        let asked = StubRequest::of_wiremock(request);
        template(
            self.fallback.answer(&asked, Some(self.protocol)),
            asked.by_the_wire(),
        )
    }
}

impl WiremockSource {
    /// Starts a server on a port of its own (never one of wiremock's pool, which live on after their test).
    ///
    /// # Errors
    /// The system's, when there is no port.
    pub async fn start(protocol: Protocol) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        // the tape has the requests; wiremock's own record would only grow
        let server = MockServer::builder()
            .listener(listener)
            .disable_request_recording()
            .start()
            .await;
        let fallback = Fallback::default();
        let catch_all = CatchAll {
            fallback: fallback.clone(),
            protocol,
        };
        server
            .register(
                Mock::given(wiremock::matchers::any())
                    .respond_with(catch_all)
                    .with_priority(255),
            )
            .await;
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Ok(Self {
            server,
            client,
            fallback,
        })
    }

    /// The server itself, for rules in wiremock's own words.
    pub fn server(&self) -> &MockServer {
        &self.server
    }

    pub(super) fn fallback(&self) -> &Fallback {
        &self.fallback
    }

    pub(super) async fn mount(&self, matcher: Matcher, responder: Responder) {
        self.fallback.remember(matcher.clone());
        self.server
            .register(Mock::given(matcher).respond_with(responder))
            .await;
    }

    async fn ask(&self, request: &Request) -> Result<Answer, String> {
        let mut forward = http::Request::builder()
            .method(request.method.as_str())
            .uri(format!("{}{}", self.server.uri(), request.path));
        for (name, value) in &request.headers {
            if !PER_HOP.contains(&name.to_ascii_lowercase().as_str()) {
                forward = forward.header(name, value);
            }
        }
        let forward = forward
            .header(WIRE_MARK, request.id)
            .body(Full::new(request.body.clone()))
            .map_err(|error| error.to_string())?;
        let response = self
            .client
            .request(forward)
            .await
            .map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        let mut answer = Answer {
            status: head.status.as_u16(),
            headers: Vec::new(),
            body,
            plan: Plan::default(),
            unmatched: None,
        };
        for (name, value) in &head.headers {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            match name.as_str() {
                PLAN_HEADER => {
                    answer.plan = serde_json::from_str(&value)
                        .map_err(|error| format!("the plan {value}: {error}"))?
                }
                UNMATCHED_HEADER => answer.unmatched = Some(value),
                per_hop if PER_HOP.contains(&per_hop) => {}
                name => answer.headers.push((name.to_string(), value)),
            }
        }
        Ok(answer)
    }
}

#[async_trait]
impl Source for WiremockSource {
    async fn answer(&self, request: &Request) -> Answer {
        self.ask(request).await.unwrap_or_else(|error| {
            Answer::unmatched(format!("the wiremock server failed: {error}"))
        })
    }

    fn counts(&self, request: &Request) -> bool {
        StubRequest::of_wire(request).is_call()
    }
}

/// Answers from rules in process: no server, no thread, nothing kept. For load, soaks and `gauntlet stub`.
pub struct ScriptSource {
    rules: RwLock<Vec<(Matcher, Responder)>>,
    fallback: Fallback,
    protocol: Option<Protocol>,
}

impl ScriptSource {
    /// No rules yet.
    pub fn new(protocol: Protocol) -> Self {
        Self {
            rules: RwLock::new(Vec::new()),
            fallback: Fallback::default(),
            protocol: Some(protocol),
        }
    }

    /// No rules yet; speaks every protocol on its one port.
    pub fn of_every_protocol() -> Self {
        Self {
            rules: RwLock::new(Vec::new()),
            fallback: Fallback::default(),
            protocol: None,
        }
    }

    /// What is answered to every chat request that no rule matches; replaces the answer given before.
    pub fn answers(&self, responder: Responder) {
        self.fallback.answers(responder);
    }

    /// Adds a rule; the first one that matches answers.
    pub fn rule(&self, matcher: Matcher, responder: Responder) {
        self.fallback.remember(matcher.clone());
        self.rules
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push((matcher, responder));
    }

    /// The answer to a request.
    pub fn answer_to(&self, asked: &StubRequest) -> Answer {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        match rules.iter().find(|(matcher, _)| matcher.accepts(asked)) {
            Some((_, responder)) => responder.render(asked),
            None => self.fallback.answer(asked, self.protocol),
        }
    }
}

#[async_trait]
impl Source for ScriptSource {
    async fn answer(&self, request: &Request) -> Answer {
        self.answer_to(&StubRequest::of_wire(request))
    }

    fn counts(&self, request: &Request) -> bool {
        StubRequest::of_wire(request).is_call()
    }
}
