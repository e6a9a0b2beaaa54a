//! Counters in Prometheus' format. One [`Metrics`] a gateway, so that several can live in one process. Labels come from
//! configuration and from our own vocabulary, never from a client, so that their number is bounded.

use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::llm::chat::{Candidate, Cause, Usage};

/// The state of a breaker as metrics and health tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Requests pass.
    Closed,
    /// A few probes pass.
    HalfOpen,
    /// Nothing passes.
    Open,
}

/// The counters of one gateway.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RouteStatus, Counter>,
    in_flight: Gauge<u64, AtomicU64>,
    attempts: Family<CandidateWith<Outcome>, Counter>,
    not_sent: Family<CandidateWith<Reason>, Counter>,
    retries: Family<CandidateLabels, Counter>,
    fallbacks: Family<Alias, Counter>,
    timeouts: Family<CandidateWith<Reason>, Counter>,
    breakers: Family<CandidateLabels, Gauge>,
    tokens: Family<CandidateWith<TokenKind>, Counter>,
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
            degraded: Family::default(),
            queries: Family::default(),
            registry: Mutex::default(),
        };
        registry.register(
            "build",
            "The running version",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register(
            "requests",
            "Requests answered, by route and status; 499 is a client that left before the end",
            metrics.requests.clone(),
        );
        registry.register(
            "requests_in_flight",
            "Requests that hold one of the permits at the door",
            metrics.in_flight.clone(),
        );
        registry.register(
            "attempts",
            "Attempts sent to a provider that have ended, by outcome: success, cancelled, or the cause of failure",
            metrics.attempts.clone(),
        );
        registry.register(
            "attempts_not_sent",
            "Attempts that were refused before anything was sent, by cause",
            metrics.not_sent.clone(),
        );
        registry.register(
            "retries",
            "Attempts that repeat one at the same candidate",
            metrics.retries.clone(),
        );
        registry.register(
            "fallbacks",
            "Turns to the next candidate of a model",
            metrics.fallbacks.clone(),
        );
        registry.register(
            "timeouts",
            "Attempts that ended by a time-out, by which",
            metrics.timeouts.clone(),
        );
        registry.register(
            "breaker_state",
            "Each candidate's breaker: 0 closed, 1 half-open, 2 open",
            metrics.breakers.clone(),
        );
        registry.register(
            "tokens",
            "Tokens as the providers counted them",
            metrics.tokens.clone(),
        );
        registry.register(
            "degraded_steps",
            "Steps of queries that degraded, by cause",
            metrics.degraded.clone(),
        );
        registry.register(
            "queries",
            "Queries ended, by status",
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
    /// A request has been answered (or left by its client: status 499).
    pub fn request(&self, route: &'static str, status: u16) {
        self.requests
            .get_or_create(&RouteStatus { route, status })
            .inc();
    }

    /// A configured candidate: its counters are there from the start, and its breaker is closed.
    pub fn known_candidate(&self, candidate: &Candidate) {
        self.breaker(candidate, BreakerState::Closed);
        self.tokens(candidate, Usage::default());
        drop(
            self.attempts
                .get_or_create(&CandidateWith::new(candidate, Outcome("success"))),
        );
        drop(self.retries.get_or_create(&CandidateLabels::new(candidate)));
        drop(self.not_sent.get_or_create(&CandidateWith::new(
            candidate,
            Reason(cause_name(Cause::BreakerOpen)),
        )));
        for cause in TIMEOUTS {
            drop(
                self.timeouts
                    .get_or_create(&CandidateWith::new(candidate, Reason(cause_name(cause)))),
            );
        }
    }

    /// A configured alias: its counters are there from the start.
    pub fn known_alias(&self, alias: &str) {
        drop(self.fallbacks.get_or_create(&Alias {
            model: alias.to_owned(),
        }));
    }

    /// As many requests are in flight now.
    pub fn in_flight(&self, number: u64) {
        self.in_flight.set(number);
    }

    /// An attempt at a candidate has ended; `None` is success. An attempt that was refused before anything was sent (breaker,
    /// bulkhead, not tellable in the protocol) is counted apart, so that attempts are what the provider saw.
    pub fn attempt(&self, candidate: &Candidate, error: Option<Cause>) {
        match error {
            Some(cause @ (Cause::BreakerOpen | Cause::BulkheadFull | Cause::Unsupported)) => {
                self.not_sent
                    .get_or_create(&CandidateWith::new(candidate, Reason(cause_name(cause))))
                    .inc();
            }
            Some(cause) => {
                self.attempts
                    .get_or_create(&CandidateWith::new(candidate, Outcome(cause_name(cause))))
                    .inc();
                if TIMEOUTS.contains(&cause) {
                    self.timeouts
                        .get_or_create(&CandidateWith::new(candidate, Reason(cause_name(cause))))
                        .inc();
                }
            }
            None => drop(
                self.attempts
                    .get_or_create(&CandidateWith::new(candidate, Outcome("success")))
                    .inc(),
            ),
        }
    }

    /// An attempt that was sent has been dropped, because its client left or its query no longer needs it.
    pub fn attempt_cancelled(&self, candidate: &Candidate) {
        self.attempts
            .get_or_create(&CandidateWith::new(candidate, Outcome("cancelled")))
            .inc();
    }

    /// A retry of the same candidate starts.
    pub fn retry(&self, candidate: &Candidate) {
        self.retries
            .get_or_create(&CandidateLabels::new(candidate))
            .inc();
    }

    /// The next candidate is asked.
    pub fn fallback(&self, alias: &str) {
        self.fallbacks
            .get_or_create(&Alias {
                model: alias.to_owned(),
            })
            .inc();
    }

    /// A breaker's state now.
    pub fn breaker(&self, candidate: &Candidate, state: BreakerState) {
        let value = match state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        };
        self.breakers
            .get_or_create(&CandidateLabels::new(candidate))
            .set(value);
    }

    /// A provider told its usage.
    pub fn tokens(&self, candidate: &Candidate, usage: Usage) {
        for (kind, number) in [
            ("prompt", usage.prompt_tokens),
            ("completion", usage.completion_tokens),
        ] {
            self.tokens
                .get_or_create(&CandidateWith::new(candidate, TokenKind(kind)))
                .inc_by(number);
        }
    }

    /// A step of a query degraded.
    pub fn degraded(&self, step: &'static str, cause: &'static str) {
        self.degraded
            .get_or_create(&StepCause { step, cause })
            .inc();
    }

    /// A query ended with this status.
    pub fn query(&self, status: &'static str) {
        self.queries.get_or_create(&QueryStatus { status }).inc();
    }

    /// All of it, in Prometheus' text format (OpenMetrics 1.0).
    pub fn render(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // writing into a string does not fail
        let _ = encode(&mut text, &registry);
        text
    }
}

/// The causes that are time-outs.
const TIMEOUTS: [Cause; 4] = [
    Cause::ConnectTimeout,
    Cause::FirstTokenTimeout,
    Cause::IdleTimeout,
    Cause::DeadlineExceeded,
];

/// A cause's name in metrics, the same as in documents.
fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Refused => "refused",
        Cause::Reset => "reset",
        Cause::ConnectTimeout => "connect_timeout",
        Cause::FirstTokenTimeout => "first_token_timeout",
        Cause::IdleTimeout => "idle_timeout",
        Cause::DeadlineExceeded => "deadline_exceeded",
        Cause::RateLimited => "rate_limited",
        Cause::QuotaExhausted => "quota_exhausted",
        Cause::Overloaded => "overloaded",
        Cause::ServerError => "server_error",
        Cause::ProviderAuth => "provider_auth",
        Cause::NotFound => "not_found",
        Cause::Rejected => "rejected",
        Cause::BadResponse => "bad_response",
        Cause::Truncated => "truncated",
        Cause::Oversized => "oversized",
        Cause::InBand => "in_band",
        Cause::BreakerOpen => "breaker_open",
        Cause::BulkheadFull => "bulkhead_full",
        Cause::Unsupported => "unsupported",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteStatus {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CandidateLabels {
    provider: String,
    model: String,
}

impl CandidateLabels {
    fn new(candidate: &Candidate) -> Self {
        Self {
            provider: candidate.provider.clone(),
            model: candidate.model.clone(),
        }
    }
}

/// A candidate and one more label, whose name follows from its type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CandidateWith<L> {
    candidate: CandidateLabels,
    label: L,
}

impl<L> CandidateWith<L> {
    fn new(candidate: &Candidate, label: L) -> Self {
        Self {
            candidate: CandidateLabels::new(candidate),
            label,
        }
    }
}

/// The name and value of the further label.
trait Label {
    fn pair(&self) -> (&'static str, &'static str);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Outcome(&'static str);
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Reason(&'static str);
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct TokenKind(&'static str);

impl Label for Outcome {
    fn pair(&self) -> (&'static str, &'static str) {
        ("outcome", self.0)
    }
}

impl Label for Reason {
    fn pair(&self) -> (&'static str, &'static str) {
        ("cause", self.0)
    }
}

impl Label for TokenKind {
    fn pair(&self) -> (&'static str, &'static str) {
        ("kind", self.0)
    }
}

impl<L: Label + Clone + fmt::Debug> EncodeLabelSet for CandidateWith<L> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), fmt::Error> {
        use prometheus_client::encoding::EncodeLabel;
        let further = self.label.pair();
        (("provider"), self.candidate.provider.as_str()).encode(encoder.encode_label())?;
        (("model"), self.candidate.model.as_str()).encode(encoder.encode_label())?;
        further.encode(encoder.encode_label())
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
