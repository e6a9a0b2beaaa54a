//! Scripted providers under a paused clock, with a configuration and a client for them.
//!
//! They play the same answers and plans on a [`Transport`] that the wire plays on real sockets. The
//! properties and rules of the router use them.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "shared by several test programs, each using a part"
)]

pub mod rules;

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use gauntlet::config::{
    Breaker, CandidateConfig, Config, ModelConfig, ProviderConfig, Retry, Timeouts,
};
use gauntlet::llm::chat::{Answer, CallContext, ChatRequest, LlmFailure, Served, StreamItem};
use gauntlet::llm::provider;
use gauntlet::llm::router::{Router, RouterError};
use gauntlet::llm::transport::{
    Transport, TransportError, UpstreamBody, UpstreamRequest, UpstreamResponse,
};
use gauntlet::resilience::deadline::Deadline;
use gauntlet::telemetry::Metrics;
use gauntlet_harness::plan::{Listen, Step};
use gauntlet_harness::schedule::{ALIAS, Played, Schedule, Settings};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use indexmap::IndexMap;
use secrecy::SecretString;
use tokio::time::Instant;

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

thread_local! {
    static DICE: Cell<u64> = const { Cell::new(SEED) };
}

/// A source of jitter that yields the same numbers in every run (xorshift64). It restarts with each
/// router; every test has a thread of its own.
fn dice() -> f64 {
    let mut state = DICE.get();
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    DICE.set(state);
    (state >> 11) as f64 / (1u64 << 53) as f64
}

/// The action of a provider on a call, by candidate, number of the call, and whether it streams.
type Script = Box<dyn Fn(usize, usize, bool) -> Played + Send + Sync>;

/// The simulated surroundings of a router: all providers of a test, and the calls they received.
pub struct RouterSim {
    script: Script,
    start: Instant,
    calls: Mutex<Vec<ReceivedCall>>,
    open: AtomicUsize,
    most_open: AtomicUsize,
    pub metrics: Arc<Metrics>,
}

/// A call that reached a provider.
#[derive(Clone, Debug)]
pub struct ReceivedCall {
    pub candidate: usize,
    pub call: usize,
    pub at: Duration,
    pub body: Bytes,
    pub headers: HeaderMap,
}

impl RouterSim {
    pub fn new(script: impl Fn(usize, usize, bool) -> Played + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            script: Box::new(script),
            start: Instant::now(),
            calls: Mutex::default(),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
            metrics: Arc::default(),
        })
    }

    /// All calls so far, in order.
    pub fn calls(&self) -> Vec<ReceivedCall> {
        self.calls.lock().unwrap().clone()
    }

    /// The number of the candidate of each call, in order, counted from 1 as in the names.
    pub fn order(&self) -> Vec<usize> {
        self.calls().iter().map(|seen| seen.candidate + 1).collect()
    }

    /// The number of calls that the router has not dropped.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// The maximum number of calls that were open at once.
    pub fn most_open(&self) -> usize {
        self.most_open.load(Ordering::SeqCst)
    }

    /// The time since the start of the simulation.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Creates a router over these providers.
    pub fn router(self: &Arc<Self>, config: &Config) -> Router {
        let transport = |provider: &ProviderConfig| -> Arc<dyn Transport> {
            let candidate = config.providers.get_index_of(&provider.name).unwrap();
            Arc::new(Scripted {
                sim: Arc::clone(self),
                candidate,
            })
        };
        DICE.set(SEED);
        Router::with_parts(config, transport, provider::codec, dice, &self.metrics)
    }
}

struct Scripted {
    sim: Arc<RouterSim>,
    candidate: usize,
}

/// A call that has not ended. It is counted until it is dropped.
struct Open(Arc<RouterSim>);

impl Open {
    fn new(sim: &Arc<RouterSim>) -> Self {
        let open = sim.open.fetch_add(1, Ordering::SeqCst) + 1;
        sim.most_open.fetch_max(open, Ordering::SeqCst);
        Self(Arc::clone(sim))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Transport for Scripted {
    async fn send(&self, request: UpstreamRequest) -> Result<UpstreamResponse, TransportError> {
        let open = Open::new(&self.sim);
        let document: serde_json::Value =
            serde_json::from_slice(&request.body).expect("the gateway sends JSON");
        let stream = document
            .get("stream")
            .and_then(serde_json::Value::as_bool)
            .unwrap_or(false);
        let call = {
            let at = self.sim.now();
            let mut calls = self.sim.calls.lock().unwrap();
            let call = calls
                .iter()
                .filter(|seen| seen.candidate == self.candidate)
                .count();
            calls.push(ReceivedCall {
                candidate: self.candidate,
                call,
                at,
                body: request.body.clone(),
                headers: request.headers.clone(),
            });
            call
        };
        let played = (self.sim.script)(self.candidate, call, stream);
        match played.listen {
            Listen::Refuse => return Err(TransportError::Refused("scripted".into())),
            Listen::NeverAccept => {
                tokio::time::sleep(request.connect_timeout).await;
                return Err(TransportError::ConnectTimeout(request.connect_timeout));
            }
            Listen::Serve => {}
            Listen::Silence => std::future::pending().await,
        }
        let mut steps: VecDeque<Step> = played.plan.steps.into();
        loop {
            match steps.pop_front() {
                Some(Step::Head) => break,
                Some(Step::Pause { ms }) => tokio::time::sleep(Duration::from_millis(ms)).await,
                Some(Step::Stall) => std::future::pending().await,
                Some(Step::Cut | Step::Reset) => {
                    return Err(TransportError::Reset("scripted".into()));
                }
                other => {
                    panic!("a scripted provider cannot play this step before the head: {other:?}")
                }
            }
        }
        let mut headers = HeaderMap::new();
        headers.insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_str(&played.response.content_type).unwrap(),
        );
        for (name, value) in &played.response.headers {
            headers.insert(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let rest = Bytes::from(played.response.body);
        let body = Body {
            steps,
            rest,
            last: Bytes::new(),
            drip: None,
            _open: open,
        };
        let body: UpstreamBody = Box::pin(futures::stream::unfold(Some(body), |body| async move {
            let mut body = body?;
            match body.next().await {
                Some(Ok(bytes)) => Some((Ok(bytes), Some(body))),
                Some(Err(error)) => Some((Err(error), None)),
                None => None,
            }
        }));
        Ok(UpstreamResponse {
            status: StatusCode::from_u16(played.response.status).unwrap(),
            headers,
            body,
        })
    }
}

/// A body that is being sent.
struct Body {
    steps: VecDeque<Step>,
    rest: Bytes,
    last: Bytes,
    drip: Option<(usize, Duration)>,
    _open: Open,
}

impl Body {
    async fn next(&mut self) -> Option<Result<Bytes, TransportError>> {
        loop {
            if let Some((bytes, every)) = self.drip {
                if self.rest.is_empty() {
                    self.drip = None;
                    continue;
                }
                tokio::time::sleep(every).await;
                return Some(Ok(self.rest.split_to(bytes.min(self.rest.len()))));
            }
            let broken = TransportError::Truncated("scripted".into());
            match self.steps.pop_front() {
                Some(Step::Pause { ms }) => tokio::time::sleep(Duration::from_millis(ms)).await,
                Some(Step::Events(count)) => {
                    self.last = self.events(count);
                    if !self.last.is_empty() {
                        return Some(Ok(self.last.clone()));
                    }
                }
                Some(Step::Bytes(count)) => {
                    return Some(Ok(self.rest.split_to(count.min(self.rest.len()))));
                }
                Some(Step::Garbage(bytes)) => return Some(Ok(bytes.into())),
                Some(Step::Rest) => return Some(Ok(std::mem::take(&mut self.rest))),
                Some(Step::Drip { bytes, every_ms }) => {
                    self.drip = Some((bytes, Duration::from_millis(every_ms)))
                }
                Some(Step::RepeatForever { every_ms }) => {
                    tokio::time::sleep(Duration::from_millis(every_ms)).await;
                    self.steps.push_front(Step::RepeatForever { every_ms });
                    let start = self
                        .last
                        .windows(7)
                        .rposition(|part| part.starts_with(b"data: "))
                        .unwrap_or(0);
                    return Some(Ok(self.last.slice(start..)));
                }
                Some(Step::Stall) => std::future::pending().await,
                Some(Step::Cut | Step::Reset) => return Some(Err(broken)),
                Some(other) => {
                    panic!("a scripted provider cannot play this step inside a body: {other:?}")
                }
                None if self.rest.is_empty() => return None,
                None => return Some(Err(broken)),
            }
        }
    }

    /// The next events. Each ends with an empty line.
    fn events(&mut self, count: usize) -> Bytes {
        let mut end = 0;
        for _ in 0..count {
            match self.rest[end..].windows(2).position(|pair| pair == b"\n\n") {
                Some(position) => end += position + 2,
                None => break,
            }
        }
        self.rest.split_to(end)
    }
}

/// A configuration of one alias over the candidates `p1` to `pn`, with the schedule's settings.
pub fn config(settings: &Settings, candidates: usize) -> Config {
    let ms = Duration::from_millis;
    let timeouts = Timeouts {
        connect: ms(settings.connect_ms),
        first_token: ms(settings.first_token_ms),
        idle: ms(settings.idle_ms),
    };
    let names: Vec<String> = (1..=candidates).map(|n| format!("p{n}")).collect();
    let providers: IndexMap<String, ProviderConfig> = names
        .iter()
        .map(|name| {
            let provider = ProviderConfig {
                name: name.clone(),
                protocol: "openai",
                base_url: "http://provider.invalid/v1".parse().unwrap(),
                api_key: Some(SecretString::from("sk-scripted")),
                max_in_flight: 64,
                queue: 16,
                user: None,
            };
            (name.clone(), provider)
        })
        .collect();
    let model = ModelConfig {
        alias: ALIAS.into(),
        candidates: names
            .iter()
            .map(|name| CandidateConfig {
                provider: name.clone(),
                model: format!("m-{name}"),
                timeouts,
            })
            .collect(),
        total: ms(settings.total_ms),
        reserve: ms(settings.reserve_ms),
    };
    Config {
        providers,
        models: IndexMap::from([(ALIAS.to_owned(), model)]),
        retry: Retry {
            max_attempts: settings.max_attempts,
            base: ms(settings.base_ms),
            max: ms(settings.max_ms),
            jitter: f64::from(settings.jitter_percent) / 100.0,
            budget_ratio: f64::from(settings.budget_percent) / 100.0,
            budget_floor: settings.budget_floor,
        },
        // A schedule counts failures in a row, and expects nothing to pass an open breaker.
        breaker: Breaker {
            failure_rate: 0.0,
            window: ms(10_000),
            minimum_attempts: 1_000_000,
            failure_threshold: settings.failure_threshold,
            cool_down: ms(settings.cool_down_ms),
            cool_down_max: ms(settings.cool_down_ms),
            half_open_probes: settings.half_open_probes,
            open_share: 0.0,
        },
        ..Config::from_toml("").unwrap()
    }
}

/// The configuration for a schedule.
pub fn config_of(schedule: &Schedule) -> Config {
    config(&schedule.settings, schedule.candidates.len())
}

/// A request for the alias.
pub fn request(stream: bool) -> ChatRequest {
    let body = serde_json::json!({"model": ALIAS, "messages": [{"role": "user", "content": "hello"}], "stream": stream});
    ChatRequest::parse(body.to_string().as_bytes()).unwrap()
}

/// The context of a call, with or without a caller's deadline.
pub fn context(deadline: Option<Instant>) -> CallContext {
    CallContext {
        request_id: "r-1".into(),
        arrived: Instant::now(),
        deadline: deadline.map(Deadline::of_caller),
        idempotency_key: "k-1".into(),
        traceparent: None,
    }
}

/// What a client received.
#[derive(Clone, Debug, Default)]
pub struct Received {
    pub text: String,
    pub done: usize,
    pub failed: Vec<gauntlet::llm::chat::AttemptError>,
}

/// Reads an answer to its end.
pub async fn read(served: Served) -> Received {
    let mut received = Received::default();
    match served.answer {
        Answer::Plain(completion) => {
            received.text = completion.text().unwrap_or_default();
            received.done = 1;
        }
        Answer::Stream(stream) => {
            let mut stream = stream.items;
            while let Some(item) = stream.next().await {
                match item {
                    StreamItem::Chunk(data) => received.text.push_str(&content_of(&data)),
                    StreamItem::Done(_) => received.done += 1,
                    StreamItem::Failed(error) => received.failed.push(error),
                }
            }
        }
    }
    received
}

/// The text of a chunk.
pub fn content_of(chunk: &[u8]) -> String {
    let chunk: serde_json::Value = serde_json::from_slice(chunk).expect("a chunk is JSON");
    chunk
        .pointer("/choices/0/delta/content")
        .and_then(|content| content.as_str())
        .unwrap_or_default()
        .to_owned()
}

/// The failure of a call that no candidate served.
pub fn failure(result: Result<Served, RouterError>) -> LlmFailure {
    match result {
        Err(RouterError::Failed(failure)) => failure,
        Err(other) => panic!("{other:?}"),
        Ok(served) => panic!("served by {}", served.by),
    }
}
