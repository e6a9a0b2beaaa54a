//! Where answers come from: a wiremock server, or rules in process. Both take the same matchers and
//! responders, use the stub's default where no rule matches, and answer all else with an error.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use wiremock::{Mock, MockServer, Respond, ResponseTemplate};

use super::matcher::{Matcher, chat};
use super::protocol::Protocol;
use super::request::StubRequest;
use super::responder::{ErrorReply, Responder, template};
use crate::plan::Plan;
use crate::wire::http::FAULT_HEADER;
use crate::wire::{Answer, PLAN_HEADER, REUSE_MARK, Request, Source, UNMATCHED_HEADER, WIRE_MARK};

/// Headers that belong to a connection and not to a message (RFC 9110 section 7.6.1), and those
/// that frame a body.
const PER_HOP: [&str; 7] = [
    "connection",
    "content-length",
    "date",
    "expect",
    "host",
    "keep-alive",
    "transfer-encoding",
];

/// What a stub answers when no rule matches: its default to chats, the default answers of its
/// protocols to probes, and an error to all else.
#[derive(Clone)]
pub(super) struct Fallback {
    protocols: Vec<Protocol>,
    default: Arc<RwLock<Option<Responder>>>,
    rules: Arc<Mutex<Vec<Matcher>>>,
}

impl Fallback {
    fn new(protocols: Vec<Protocol>) -> Self {
        Self {
            protocols,
            default: Arc::default(),
            rules: Arc::default(),
        }
    }

    pub(super) fn answers(&self, responder: Responder) {
        *self.default.write().unwrap_or_else(PoisonError::into_inner) = Some(responder);
    }

    /// Remembers a rule, so that the nearest one can be named for a request that none matches.
    fn remember(&self, matcher: Matcher) {
        self.rules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(matcher);
    }

    fn answer(&self, request: &StubRequest) -> Answer {
        let default = self
            .default
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match default {
            Some(responder) if chat().accepts(request) => return responder.render(request),
            _ => {}
        }
        self.protocols
            .iter()
            .find_map(|protocol| protocol.behaviour().default_answer(request))
            .unwrap_or_else(|| Answer::unmatched(self.reason(request)))
    }

    fn reason(&self, request: &StubRequest) -> String {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let nearest = rules
            .iter()
            .filter_map(|rule| Some((rule, rule.refusal(request)?)))
            // of several that are equally near, the first one
            .rev()
            .max_by_key(|(_, (met, _))| *met);
        let request = format!(
            "{} {} for model {:?}",
            request.method,
            request.path,
            request.model()
        );
        match nearest {
            Some((rule, (_, why))) => format!("{request}; the nearest rule is [{rule}]: {why}"),
            None => format!("{request}; the stub has no rule"),
        }
    }
}

/// Takes answers from a wiremock server of its own. They come whole and one after the other; the
/// wire makes their bytes flow.
pub struct WiremockSource {
    server: MockServer,
    client: Client<HttpConnector, Full<Bytes>>,
    fallback: Fallback,
}

/// The last of wiremock's rules: it takes what nothing else matched.
struct CatchAll(Fallback);

impl Respond for CatchAll {
    fn respond(&self, request: &wiremock::Request) -> ResponseTemplate {
        let request = StubRequest::of_wiremock(request);
        template(self.0.answer(&request), request.by_the_wire())
    }
}

impl WiremockSource {
    /// Starts a server for a stub of this protocol on a port of its own. It is never one of
    /// wiremock's pool, whose servers outlive their test.
    ///
    /// # Errors
    /// The system's error when there is no free port.
    pub async fn start(protocol: Protocol) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        // the tape has the requests, so wiremock's own record would only grow
        let server = MockServer::builder()
            .listener(listener)
            .disable_request_recording()
            .start()
            .await;
        let fallback = Fallback::new(vec![protocol]);
        server
            .register(
                Mock::given(wiremock::matchers::any())
                    .respond_with(CatchAll(fallback.clone()))
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

    /// The server itself, for rules made with wiremock's own matchers.
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
        if request.reused {
            forward = forward.header(REUSE_MARK, "1");
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
            fault: None,
        };
        for (name, value) in &head.headers {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            match name.as_str() {
                PLAN_HEADER => {
                    answer.plan = serde_json::from_str(&value)
                        .map_err(|error| format!("the plan {value} cannot be read: {error}"))?
                }
                UNMATCHED_HEADER => answer.unmatched = Some(value),
                FAULT_HEADER => answer.fault = value.parse().ok(),
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

/// Takes answers from rules in process, without a server, a thread or a record of requests.
pub struct ScriptSource {
    rules: RwLock<Vec<(Matcher, Responder)>>,
    as_provider: bool,
    fallback: Fallback,
}

impl ScriptSource {
    /// A source without rules that answers the probes of this protocol.
    pub fn new(protocol: Protocol) -> Self {
        Self::speaking(vec![protocol], false)
    }

    /// A source without rules that answers the probes of every protocol, for a stub that stays up.
    /// Whatever a provider would refuse is refused before any rule is asked, and a request that no
    /// rule answers gets a provider's 404, which clients do not send again. The stubs of a case
    /// have the harness's own status instead and take whatever a gateway sends.
    pub fn of_every_protocol() -> Self {
        Self::speaking(Protocol::all().to_vec(), true)
    }

    fn speaking(protocols: Vec<Protocol>, as_provider: bool) -> Self {
        Self {
            rules: RwLock::new(Vec::new()),
            as_provider,
            fallback: Fallback::new(protocols),
        }
    }

    /// Sets what is answered to every chat request that no rule matches; replaces the answer
    /// before.
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
    pub fn answer_to(&self, request: &StubRequest) -> Answer {
        let protocol = request.protocol().unwrap_or(Protocol::OPENAI);
        if self.as_provider
            && chat().accepts(request)
            && let Some(answer) = protocol.behaviour().early_answer(request)
        {
            return answer;
        }
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        match rules.iter().find(|(matcher, _)| matcher.accepts(request)) {
            Some((_, responder)) => responder.render(request),
            None => match self.fallback.answer(request) {
                Answer {
                    unmatched: Some(reason),
                    ..
                } if self.as_provider => not_found(protocol, reason),
                answer => answer,
            },
        }
    }
}

/// A 404 in the envelope of the protocol for a request that no rule answers.
fn not_found(protocol: Protocol, reason: String) -> Answer {
    let error = ErrorReply {
        status: 404,
        message: Some(format!("gauntlet: no rule answers this request: {reason}")),
        kind: Some("invalid_request_error".into()),
        code: Some("no_rule".into()),
    };
    Answer {
        unmatched: Some(reason),
        ..protocol.behaviour().error(&error)
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
