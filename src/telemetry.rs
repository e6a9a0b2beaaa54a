//! Counters and gauges in Prometheus' text format.
//!
//! A gateway has one [`Metrics`], so that several gateways can run in one process. Labels are plain
//! words and numbers: this module knows nothing of requests, causes or breakers. The words come
//! from the configuration and from the gateway's own vocabulary, never from a client, so that the
//! number of time series is bounded.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// The metrics of one gateway.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RouteStatus, Counter>,
    in_flight: Gauge<u64, AtomicU64>,
    attempts: Family<CandidateWith, Counter>,
    not_sent: Family<CandidateWith, Counter>,
    retries: Family<CandidateLabels, Counter>,
    fallbacks: Family<Alias, Counter>,
    timeouts: Family<CandidateWith, Counter>,
    breakers: Family<CandidateLabels, Gauge>,
    tokens: Family<CandidateWith, Counter>,
    empty_answers: Family<CandidateLabels, Counter>,
    degraded: Family<StepCause, Counter>,
    queries: Family<QueryStatus, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("gauntlet");
        let metrics = Self {
            requests: Family::default(),
            in_flight: Gauge::default(),
            attempts: Family::default(),
            not_sent: Family::default(),
            retries: Family::default(),
            fallbacks: Family::default(),
            timeouts: Family::default(),
            breakers: Family::default(),
            tokens: Family::default(),
            empty_answers: Family::default(),
            degraded: Family::default(),
            queries: Family::default(),
            registry: Mutex::default(),
        };
        registry.register(
            "build",
            "This series carries the version of the running gateway",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register(
            "requests",
            "The gateway answered this many requests, by route and status; status 499 stands for a \
             client that left before the end of its answer",
            metrics.requests.clone(),
        );
        registry.register(
            "requests_in_flight",
            "This many requests are in flight now and hold a permit of the admission limit",
            metrics.in_flight.clone(),
        );
        registry.register(
            "attempts",
            "This many attempts were sent to a provider and have ended, by outcome: success, \
             cancelled, or the cause of the failure",
            metrics.attempts.clone(),
        );
        registry.register(
            "attempts_not_sent",
            "This many attempts were refused before anything was sent to the provider, by cause",
            metrics.not_sent.clone(),
        );
        registry.register(
            "retries",
            "This many attempts repeated an earlier attempt at the same candidate",
            metrics.retries.clone(),
        );
        registry.register(
            "fallbacks",
            "The router asked the next candidate of the model this many times",
            metrics.fallbacks.clone(),
        );
        registry.register(
            "timeouts",
            "This many attempts ended by a timeout or the deadline, by cause",
            metrics.timeouts.clone(),
        );
        registry.register(
            "breaker_state",
            "The breaker of the candidate is closed (0), half-open (1) or open (2)",
            metrics.breakers.clone(),
        );
        registry.register(
            "tokens",
            "The providers reported this many tokens, by kind",
            metrics.tokens.clone(),
        );
        registry.register(
            "empty_answers",
            "This many answers were complete and had no text, tool call, refusal or other content",
            metrics.empty_answers.clone(),
        );
        registry.register(
            "degraded_steps",
            "This many steps of queries were degraded, by step and cause",
            metrics.degraded.clone(),
        );
        registry.register(
            "queries",
            "This many queries have ended, by status",
            metrics.queries.clone(),
        );
        for status in ["complete", "degraded", "failed", "cancelled"] {
            drop(metrics.queries.get_or_create(&QueryStatus { status }));
        }
        Self {
            registry: Mutex::new(registry),
            ..metrics
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Counts a request that the gateway answered, or that its client left (status 499).
    pub fn request(&self, route: &str, status: u16) {
        self.requests
            .get_or_create(&RouteStatus {
                route: route.to_owned(),
                status,
            })
            .inc();
    }

    /// The metrics of one candidate. All its time series start at zero, so that a rate can be
    /// computed from the first event on.
    pub fn candidate(&self, provider: Arc<str>, model: Arc<str>) -> CandidateMetrics {
        let labels = CandidateLabels { provider, model };
        let tokens = |kind| {
            let labels = labels.with("kind", kind);
            self.tokens.get_or_create_owned(&labels)
        };
        CandidateMetrics {
            succeeded: self
                .attempts
                .get_or_create_owned(&labels.with("outcome", "success")),
            prompt_tokens: tokens("prompt"),
            completion_tokens: tokens("completion"),
            empty_answers: self.empty_answers.get_or_create_owned(&labels),
            retries: self.retries.get_or_create_owned(&labels),
            breaker: self.breakers.get_or_create_owned(&labels),
            attempts: self.attempts.clone(),
            not_sent: self.not_sent.clone(),
            timeouts: self.timeouts.clone(),
            labels,
        }
    }

    /// The counter of the fallbacks of one model alias. It starts at zero.
    pub fn alias(&self, alias: &str) -> AliasMetrics {
        AliasMetrics {
            fallbacks: self.fallbacks.get_or_create_owned(&Alias {
                model: alias.into(),
            }),
        }
    }

    /// Sets the number of requests that are in flight now.
    pub fn in_flight(&self, number: u64) {
        self.in_flight.set(number);
    }

    /// Counts a step of a query that was degraded.
    pub fn degraded(&self, step: &'static str, cause: &'static str) {
        self.degraded
            .get_or_create(&StepCause { step, cause })
            .inc();
    }

    /// Counts a query that ended with this status.
    pub fn query(&self, status: &'static str) {
        self.queries.get_or_create(&QueryStatus { status }).inc();
    }

    /// Renders all metrics in Prometheus' text format (OpenMetrics 1.0).
    pub fn render(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a `String` cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

/// The metrics of one candidate. What every request counts is looked up once, when this is made.
#[derive(Clone, Debug)]
pub struct CandidateMetrics {
    labels: CandidateLabels,
    succeeded: Counter,
    prompt_tokens: Counter,
    completion_tokens: Counter,
    empty_answers: Counter,
    retries: Counter,
    breaker: Gauge,
    attempts: Family<CandidateWith, Counter>,
    not_sent: Family<CandidateWith, Counter>,
    timeouts: Family<CandidateWith, Counter>,
}

impl CandidateMetrics {
    /// Creates the time series of a timeout with this cause, at zero.
    pub fn register_timeout(&self, cause: &'static str) {
        drop(
            self.timeouts
                .get_or_create(&self.labels.with("cause", cause)),
        );
    }

    /// Creates the time series of an attempt that was refused with this cause, at zero.
    pub fn register_not_sent(&self, cause: &'static str) {
        drop(
            self.not_sent
                .get_or_create(&self.labels.with("cause", cause)),
        );
    }

    /// Counts an attempt that succeeded.
    pub fn succeeded(&self) {
        self.succeeded.inc();
    }

    /// Counts an answer that was complete and had no content.
    pub fn was_empty(&self) {
        self.empty_answers.inc();
    }

    /// Counts an attempt that was sent and failed with this cause.
    pub fn failed(&self, cause: &'static str) {
        self.attempts
            .get_or_create(&self.labels.with("outcome", cause))
            .inc();
    }

    /// Counts a timeout. The attempt that it ended is counted by [`CandidateMetrics::failed`].
    pub fn timed_out(&self, cause: &'static str) {
        self.timeouts
            .get_or_create(&self.labels.with("cause", cause))
            .inc();
    }

    /// Counts an attempt that was refused before anything was sent. It is no attempt in the sense
    /// of [`CandidateMetrics::failed`]: attempts are what the provider saw.
    pub fn not_sent(&self, cause: &'static str) {
        self.not_sent
            .get_or_create(&self.labels.with("cause", cause))
            .inc();
    }

    /// Counts an attempt that was sent and then dropped, because its client left or its query no
    /// longer needed it.
    pub fn cancelled(&self) {
        self.attempts
            .get_or_create(&self.labels.with("outcome", "cancelled"))
            .inc();
    }

    /// Counts a retry at this candidate.
    pub fn retried(&self) {
        self.retries.inc();
    }

    /// Adds the tokens that the provider reported for one answer.
    pub fn tokens(&self, prompt: u64, completion: u64) {
        self.prompt_tokens.inc_by(prompt);
        self.completion_tokens.inc_by(completion);
    }

    /// Sets the state of the breaker: 0 is closed, 1 half-open, 2 open.
    pub fn breaker(&self, state: i64) {
        self.breaker.set(state);
    }
}

/// The metrics of one model alias.
#[derive(Clone, Debug)]
pub struct AliasMetrics {
    fallbacks: Counter,
}

impl AliasMetrics {
    /// Counts a fallback to the next candidate.
    pub fn fell_back(&self) {
        self.fallbacks.inc();
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteStatus {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CandidateLabels {
    provider: Arc<str>,
    model: Arc<str>,
}

impl CandidateLabels {
    fn with(&self, name: &'static str, value: &'static str) -> CandidateWith {
        CandidateWith {
            candidate: self.clone(),
            label: (name, value),
        }
    }
}

/// The labels of a candidate and one more label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CandidateWith {
    candidate: CandidateLabels,
    label: (&'static str, &'static str),
}

impl EncodeLabelSet for CandidateWith {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), fmt::Error> {
        ("provider", &*self.candidate.provider).encode(encoder.encode_label())?;
        ("model", &*self.candidate.model).encode(encoder.encode_label())?;
        self.label.encode(encoder.encode_label())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Alias {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepCause {
    step: &'static str,
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryStatus {
    status: &'static str,
}
