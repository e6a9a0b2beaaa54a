//! What a case asks of the gateway under test, in words that no gateway owns.
//!
//! A target renders a [`Spec`] into its own configuration. Everything has a default that suits most cases, so that
//! targets which start slowly can serve many cases from one process. Times are short, because suites run on real sockets, and long enough
//! for a busy machine: a case that examines a time-out sets it.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// The protocol that a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// OpenAI's chat completions and what imitates them.
    OpenAi,
    /// Ollama's own API (NDJSON).
    Ollama,
}

/// The four time-outs, in milliseconds; `None` leaves the outer default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// Until the connection to the provider stands.
    pub connect_ms: Option<u64>,
    /// Until the first content of a stream.
    pub first_token_ms: Option<u64>,
    /// Between two events of a stream, or two reads of a body.
    pub idle_ms: Option<u64>,
    /// The deadline of the whole request, over all attempts and candidates.
    pub total_ms: Option<u64>,
}

impl Timeouts {
    /// A minute for each, far behind any hang guard: what ends a wait within the guard is not one of them.
    pub const PATIENT: Self = Self {
        connect_ms: None,
        first_token_ms: Some(60_000),
        idle_ms: Some(60_000),
        total_ms: Some(60_000),
    };
}

/// One stubbed provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProviderSpec {
    /// Unique in the case: `p1`, `p2`, …
    pub name: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// The key that the gateway must present to it; a canary that must show up nowhere else.
    pub api_key: String,
    /// `user:password` in its base URL, for a target that takes that ([`crate::subject::Capability::UrlCredentials`]).
    #[serde(default)]
    pub userinfo: Option<String>,
    /// The provider's concurrency limit, if the case needs one.
    pub max_in_flight: Option<u32>,
    /// Overrides of the default time-outs.
    pub timeouts: Timeouts,
}

/// One provider and model that may serve an alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateSpec {
    /// The provider's name.
    pub provider: String,
    /// The model's name at that provider.
    pub model: String,
}

/// A model alias with its candidates, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// The name that clients send.
    pub alias: String,
    /// Tried in this order.
    pub candidates: Vec<CandidateSpec>,
    /// Overrides of the provider's time-outs.
    pub timeouts: Timeouts,
}

/// Retries on the LLM path.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetrySpec {
    /// Attempts at one candidate, the first included.
    pub max_attempts: u32,
    /// The first back-off.
    pub base_ms: u64,
    /// The largest back-off.
    pub max_ms: u64,
    /// The retry budget: retries allowed per request made …
    pub budget_ratio: f64,
    /// … plus this many in any case.
    pub budget_floor: u32,
}

/// The circuit breaker of each provider and model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerSpec {
    /// Consecutive failures that open it.
    pub failure_threshold: u32,
    /// How long it stays open.
    pub cool_down_ms: u64,
    /// Requests that half-open lets through at once.
    pub half_open_probes: u32,
}

/// Bounds at the gateway's door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitSpec {
    /// Largest request body.
    pub body_bytes: u64,
    /// Requests in flight; more are refused at once.
    pub max_in_flight: u32,
    /// A client that has not sent its headers by then is closed.
    pub header_ms: u64,
    /// A client that has not sent its body by then is closed.
    pub body_ms: u64,
    /// How long SIGTERM waits for what is in flight.
    pub drain_ms: u64,
}

/// A key that clients present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySpec {
    /// Whose key it is.
    pub tenant: String,
    /// The bearer token in clear; the target may store a hash.
    pub token: String,
}

/// What the case needs of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseNeed {
    /// None: the gateway may use whatever it has by default.
    #[default]
    None,
    /// Its own store, on whichever database the run has.
    Any,
    /// A Postgres of its own, behind the wire; *not run* without one.
    Postgres,
}

/// The orchestrator's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuerySpec {
    /// Which model alias each agent asks: `entities`, `fact_check`, `synthesis`, `citation`, `review`.
    pub agents: IndexMap<String, String>,
    /// The deadline of a query.
    pub deadline_ms: u64,
    /// The upper bound of one agent's step.
    pub step_ms: u64,
    /// Time-out of one call of the database, acquiring a connection included.
    pub store_ms: u64,
    /// Connections in the gateway's pool.
    pub pool: u32,
}

/// Everything a case asks of the gateway under test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The stubbed providers; the harness binds a wire for each.
    pub providers: Vec<ProviderSpec>,
    /// The aliases; clients ask for these.
    pub models: Vec<ModelSpec>,
    /// Default time-outs; all four are set.
    pub timeouts: Timeouts,
    /// Retries.
    pub retry: RetrySpec,
    /// Breakers.
    pub breaker: BreakerSpec,
    /// Bounds at the door.
    pub limits: LimitSpec,
    /// Client keys; empty means that no key is asked for.
    pub keys: Vec<KeySpec>,
    /// The database.
    pub database: DatabaseNeed,
    /// The orchestrator, for cases of the `query` profile.
    pub query: Option<QuerySpec>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            providers: Vec::new(),
            models: Vec::new(),
            timeouts: Timeouts {
                connect_ms: Some(1_000),
                first_token_ms: Some(3_000),
                idle_ms: Some(3_000),
                total_ms: Some(8_000),
            },
            retry: RetrySpec {
                max_attempts: 1,
                base_ms: 20,
                max_ms: 200,
                budget_ratio: 10.0,
                budget_floor: 100,
            },
            breaker: BreakerSpec {
                failure_threshold: 1_000,
                cool_down_ms: 60_000,
                half_open_probes: 1,
            },
            limits: LimitSpec {
                body_bytes: 16 << 20,
                max_in_flight: 1_024,
                header_ms: 5_000,
                body_ms: 5_000,
                drain_ms: 5_000,
            },
            keys: Vec::new(),
            database: DatabaseNeed::None,
            query: None,
        }
    }
}

impl Spec {
    /// One OpenAI-speaking provider `p1` behind the alias `solo`.
    pub fn solo() -> Self {
        Self::default()
            .provider("p1", Protocol::OpenAi)
            .model("solo", &["p1"])
    }

    /// Two OpenAI-speaking providers behind the alias `pair`: `p1`, then `p2`.
    pub fn pair() -> Self {
        Self::default()
            .provider("p1", Protocol::OpenAi)
            .provider("p2", Protocol::OpenAi)
            .model("pair", &["p1", "p2"])
    }

    /// The orchestrator: each agent asks an alias of its own name at its own provider of that name; needs a store.
    pub fn query() -> Self {
        let agents = ["entities", "fact_check", "synthesis", "citation", "review"];
        let mut spec = Self {
            database: DatabaseNeed::Any,
            ..Self::default()
        };
        for agent in agents {
            spec = spec
                .provider(agent, Protocol::OpenAi)
                .model(agent, &[agent]);
        }
        spec.query = Some(QuerySpec {
            agents: agents
                .iter()
                .map(|agent| (agent.to_string(), agent.to_string()))
                .collect(),
            deadline_ms: 20_000,
            step_ms: 5_000,
            store_ms: 3_000,
            pool: 4,
        });
        spec
    }

    /// Adds a provider with a canary key made from its name.
    #[must_use]
    pub fn provider(mut self, name: &str, protocol: Protocol) -> Self {
        let api_key = format!("sk-canary-provider-{name}-7f3a91c5e2d84b60");
        self.providers.push(ProviderSpec {
            name: name.into(),
            protocol,
            api_key,
            userinfo: None,
            max_in_flight: None,
            timeouts: Timeouts::default(),
        });
        self
    }

    /// Adds an alias whose candidates are `providers`, in order; the model at provider `p` is called `m-p`.
    #[must_use]
    pub fn model(mut self, alias: &str, providers: &[&str]) -> Self {
        let candidates = providers
            .iter()
            .map(|provider| CandidateSpec {
                provider: provider.to_string(),
                model: format!("m-{provider}"),
            })
            .collect();
        self.models.push(ModelSpec {
            alias: alias.into(),
            candidates,
            timeouts: Timeouts::default(),
        });
        self
    }

    /// Adds a key that clients present.
    #[must_use]
    pub fn key(mut self, tenant: &str, token: &str) -> Self {
        self.keys.push(KeySpec {
            tenant: tenant.into(),
            token: token.into(),
        });
        self
    }

    /// Changes the orchestrator's settings, where there is one.
    #[must_use]
    pub fn with_query(mut self, change: impl FnOnce(&mut QuerySpec)) -> Self {
        self.query.as_mut().map(change);
        self
    }

    /// Gives the alias time-outs of its own.
    #[must_use]
    pub fn model_timeouts(mut self, alias: &str, timeouts: Timeouts) -> Self {
        self.models
            .iter_mut()
            .filter(|model| model.alias == alias)
            .for_each(|model| model.timeouts = timeouts);
        self
    }

    /// Gives the provider time-outs of its own.
    #[must_use]
    pub fn provider_timeouts(mut self, name: &str, timeouts: Timeouts) -> Self {
        self.providers
            .iter_mut()
            .filter(|provider| provider.name == name)
            .for_each(|provider| provider.timeouts = timeouts);
        self
    }
}
