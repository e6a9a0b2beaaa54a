//! What a case needs of the gateway under test, in terms that no gateway owns.
//!
//! A target file renders a [`Spec`] into the configuration of its gateway. Every setting has a
//! default that suits most cases, so that a target that starts slowly can serve many cases from
//! one process. The default timeouts are short, because the suites run on real sockets, and long
//! enough for a busy machine; a case that examines a timeout sets that timeout itself.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use crate::llm::Protocol;

/// The four timeouts, in milliseconds. `None` leaves the value of the next wider scope: a model
/// overrides its provider, a provider overrides the gateway's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// The maximum time to establish a TCP connection to the provider.
    pub connect_ms: Option<u64>,
    /// The maximum time between the sent request and the first content of a stream.
    pub first_token_ms: Option<u64>,
    /// The maximum time between two events of a stream, or between two reads of a body.
    pub idle_ms: Option<u64>,
    /// The maximum time of the whole request, over all its attempts and candidates.
    pub total_ms: Option<u64>,
}

impl Timeouts {
    /// One minute for each, which is longer than any hang guard: whatever ends a wait within the
    /// guard is none of these timeouts.
    pub const PATIENT: Self = Self {
        connect_ms: None,
        first_token_ms: Some(60_000),
        idle_ms: Some(60_000),
        total_ms: Some(60_000),
    };

    /// Also longer than any hang guard, and a wish alone: the case waits for nothing, so that it
    /// can live with the timeouts that a gateway has already.
    pub const UNHURRIED: Self = Self {
        connect_ms: None,
        first_token_ms: Some(45_000),
        idle_ms: Some(45_000),
        total_ms: Some(45_000),
    };

    /// Returns the four timeouts with their names.
    #[cfg(feature = "runner")]
    pub(crate) fn named(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("connect_ms", self.connect_ms),
            ("first_token_ms", self.first_token_ms),
            ("idle_ms", self.idle_ms),
            ("total_ms", self.total_ms),
        ]
    }

    /// Returns these timeouts, each made from its value here and there.
    pub(crate) fn zipped(
        self,
        other: Self,
        made: impl Fn(Option<u64>, Option<u64>) -> Option<u64>,
    ) -> Self {
        Self {
            connect_ms: made(self.connect_ms, other.connect_ms),
            first_token_ms: made(self.first_token_ms, other.first_token_ms),
            idle_ms: made(self.idle_ms, other.idle_ms),
            total_ms: made(self.total_ms, other.total_ms),
        }
    }

    /// Returns these timeouts, with those of the wider scope where they leave one out.
    #[must_use]
    pub fn or(self, wider: Self) -> Self {
        self.zipped(wider, Option::or)
    }
}

/// One provider that the harness stubs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProviderSpec {
    /// The provider's name, unique in the case: `p1`, `p2`, …
    pub name: String,
    /// The protocol that it speaks.
    pub protocol: Protocol,
    /// The key that the gateway must present to this provider. It is a canary: it must appear
    /// nowhere else.
    pub api_key: String,
    /// `user:password` in the provider's base URL, for a target that declares
    /// [`crate::subject::Capability::UrlCredentials`].
    #[serde(default)]
    pub userinfo: Option<String>,
    /// The largest number of requests that the gateway may have in flight at this provider;
    /// `None` sets no limit.
    pub max_in_flight: Option<u32>,
    /// Timeouts that override the gateway's default for this provider.
    pub timeouts: Timeouts,
}

/// One provider, and the model at that provider, that may serve an alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateSpec {
    /// The name of the provider.
    pub provider: String,
    /// The name of the model at that provider.
    pub model: String,
}

/// A model alias and its candidates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// The name that clients send as `model`.
    pub alias: String,
    /// The candidates, in the order in which the gateway tries them.
    pub candidates: Vec<CandidateSpec>,
    /// Timeouts that override the provider's and the gateway's for this alias.
    pub timeouts: Timeouts,
    /// Retries that override the gateway's for this alias; see
    /// [`crate::subject::AliasSetting::Retry`].
    #[serde(default)]
    pub retry: Option<RetrySpec>,
    /// A breaker that overrides the gateway's for this alias; see
    /// [`crate::subject::AliasSetting::Breaker`].
    #[serde(default)]
    pub breaker: Option<BreakerSpec>,
    /// Whether the case can do without the alias: a gateway that cannot have it, since it does not
    /// speak the provider's protocol or has no address for it, is examined by the rest of the case.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// How requests to providers are retried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetrySpec {
    /// The largest number of attempts at one candidate, the first one included.
    pub max_attempts: u32,
    /// The first backoff, in milliseconds.
    pub base_ms: u64,
    /// The largest backoff, in milliseconds.
    pub max_ms: u64,
    /// The retry budget: how many retries are allowed for each request made (0.2 allows one retry
    /// for five requests) …
    pub budget_ratio: f64,
    /// … and how many retries are allowed on top of that share.
    pub budget_floor: u32,
}

/// The circuit breaker of each pair of provider and model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerSpec {
    /// The number of consecutive failures that opens the breaker.
    pub failure_threshold: u32,
    /// How long the breaker stays open, in milliseconds.
    pub cool_down_ms: u64,
    /// The number of probes that a half-open breaker lets through at once.
    pub half_open_probes: u32,
    /// Whether the gateway decides by the rule that it has by default, whatever stands in the other
    /// settings: a target file then leaves all of them out.
    #[serde(default)]
    pub own_rule: bool,
}

/// The gateway's limits towards its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitSpec {
    /// The largest request body that is accepted, in bytes.
    pub body_bytes: u64,
    /// The largest number of requests in flight; a further one is refused at once.
    pub max_in_flight: u32,
    /// The connection of a client that has not sent its headers after this time, in milliseconds,
    /// is closed.
    pub header_ms: u64,
    /// The connection of a client that has not sent its body after this time, in milliseconds, is
    /// closed.
    pub body_ms: u64,
    /// How long the gateway waits after SIGTERM for requests in flight, in milliseconds.
    pub drain_ms: u64,
}

/// A key that a client may present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySpec {
    /// The tenant to whom the key belongs.
    pub tenant: String,
    /// The bearer token in clear text; the target may store a hash of it.
    pub token: String,
}

/// The database that a case needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseNeed {
    /// The case needs no database: the gateway uses whatever it has by default.
    #[default]
    None,
    /// The case needs a database of its own, of whichever kind the run has.
    Any,
    /// The case needs a Postgres database of its own behind the wire; it is *not run* without one.
    Postgres,
}

/// The settings of a query orchestrator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuerySpec {
    /// Which model alias each agent asks: the agent's name and the alias. The names are those of
    /// the suite; the harness knows none of them.
    pub agents: IndexMap<String, String>,
    /// The deadline of a query, in milliseconds.
    pub deadline_ms: u64,
    /// The upper bound of one step, in milliseconds.
    pub step_ms: u64,
    /// The timeout of one database call, in milliseconds; acquiring a connection is included.
    pub store_ms: u64,
    /// The number of connections in the gateway's database pool.
    pub pool: u32,
}

/// Everything that a case needs of the gateway under test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The stubbed providers; the harness binds a listener for each.
    pub providers: Vec<ProviderSpec>,
    /// The model aliases that clients may ask for.
    pub models: Vec<ModelSpec>,
    /// The default timeouts; all four are set.
    pub timeouts: Timeouts,
    /// How requests are retried.
    pub retry: RetrySpec,
    /// How circuit breakers are set.
    pub breaker: BreakerSpec,
    /// The limits towards clients.
    pub limits: LimitSpec,
    /// The keys of clients; an empty list means that clients need no key.
    pub keys: Vec<KeySpec>,
    /// The database that the case needs.
    pub database: DatabaseNeed,
    /// The query orchestrator, for cases of the `query` profile.
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
                own_rule: false,
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
    /// Returns the timeouts in force for each candidate of each alias: a model overrides its
    /// provider, and a provider the default.
    #[cfg(feature = "runner")]
    pub(crate) fn timeouts_in_force(&self) -> impl Iterator<Item = (&ModelSpec, Timeouts)> {
        self.models.iter().flat_map(move |model| {
            model.candidates.iter().map(move |candidate| {
                let provider = self.provider_of(candidate);
                let provider = provider.map(|provider| provider.timeouts);
                let timeouts = model.timeouts.or(provider.unwrap_or_default());
                (model, timeouts.or(self.timeouts))
            })
        })
    }

    /// Returns the provider of a candidate.
    #[cfg(feature = "runner")]
    pub(crate) fn provider_of(&self, candidate: &CandidateSpec) -> Option<&ProviderSpec> {
        self.providers
            .iter()
            .find(|provider| provider.name == candidate.provider)
    }

    /// Removes each alias with a candidate that is not kept, and the providers that then serve no
    /// alias.
    #[cfg(feature = "runner")]
    pub(crate) fn keep_models(&mut self, kept: impl Fn(&ProviderSpec) -> bool) {
        let removed: Vec<String> = self
            .models
            .iter()
            .filter(|model| {
                let providers = model
                    .candidates
                    .iter()
                    .filter_map(|one| self.provider_of(one));
                !providers.into_iter().all(&kept)
            })
            .map(|model| model.alias.clone())
            .collect();
        if removed.is_empty() {
            return;
        }
        self.models.retain(|model| !removed.contains(&model.alias));
        let models = &self.models;
        self.providers.retain(|provider| {
            let mut candidates = models.iter().flat_map(|model| &model.candidates);
            candidates.any(|candidate| candidate.provider == provider.name)
        });
    }

    /// One provider `p1` that speaks OpenAI's protocol, behind the alias `solo`.
    pub fn solo() -> Self {
        Self::default()
            .provider("p1", Protocol::OPENAI)
            .model("solo", &["p1"])
    }

    /// Two providers that speak OpenAI's protocol behind the alias `pair`: `p1`, then `p2`.
    pub fn pair() -> Self {
        Self::default()
            .provider("p1", Protocol::OPENAI)
            .provider("p2", Protocol::OPENAI)
            .model("pair", &["p1", "p2"])
    }

    /// A query orchestrator with these agents: each asks an alias of its own name, which one
    /// provider of that name serves. The gateway needs a database.
    pub fn query(agents: &[&str]) -> Self {
        let mut spec = Self {
            database: DatabaseNeed::Any,
            query: Some(QuerySpec {
                agents: agents
                    .iter()
                    .map(|agent| (agent.to_string(), agent.to_string()))
                    .collect(),
                deadline_ms: 20_000,
                step_ms: 5_000,
                store_ms: 3_000,
                pool: 4,
            }),
            ..Self::default()
        };
        for agent in agents {
            spec = spec
                .provider(agent, Protocol::OPENAI)
                .model(agent, &[agent]);
        }
        spec
    }

    /// Adds a provider whose canary key is made from its name.
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

    /// Adds an alias whose candidates are `providers`, in this order; the model at provider `p` is
    /// called `m-p`.
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
            retry: None,
            breaker: None,
            optional: false,
        });
        self
    }

    /// Adds an alias, as [`Spec::model`] does, that the case can do without
    /// ([`ModelSpec::optional`]).
    #[must_use]
    pub fn optional_model(mut self, alias: &str, providers: &[&str]) -> Self {
        self = self.model(alias, providers);
        if let Some(model) = self.models.last_mut() {
            model.optional = true;
        }
        self
    }

    /// Returns whether there is an alias of this name.
    pub fn has_model(&self, alias: &str) -> bool {
        self.models.iter().any(|model| model.alias == alias)
    }

    /// Returns the specification without the optional aliases that fulfil this, and without the
    /// providers that only they use.
    #[cfg(feature = "runner")]
    pub(crate) fn without_optional(mut self, such: impl Fn(&Self, &ModelSpec) -> bool) -> Self {
        let goes = |model: &ModelSpec| model.optional && such(&self, model);
        let (gone, kept): (Vec<_>, Vec<_>) = self.models.iter().cloned().partition(goes);
        let uses = |models: &[ModelSpec], name: &str| {
            let mut candidates = models.iter().flat_map(|model| &model.candidates);
            candidates.any(|candidate| candidate.provider == name)
        };
        self.providers
            .retain(|provider| !uses(&gone, &provider.name) || uses(&kept, &provider.name));
        self.models = kept;
        self
    }

    /// Adds a key that a client may present.
    #[must_use]
    pub fn key(mut self, tenant: &str, token: &str) -> Self {
        self.keys.push(KeySpec {
            tenant: tenant.into(),
            token: token.into(),
        });
        self
    }

    /// Changes the settings of the orchestrator, if the specification has one.
    #[must_use]
    pub fn with_query(mut self, change: impl FnOnce(&mut QuerySpec)) -> Self {
        self.query.as_mut().map(change);
        self
    }

    /// Gives the alias timeouts of its own.
    #[must_use]
    pub fn model_timeouts(mut self, alias: &str, timeouts: Timeouts) -> Self {
        self.models
            .iter_mut()
            .filter(|model| model.alias == alias)
            .for_each(|model| model.timeouts = timeouts);
        self
    }

    /// Gives the provider timeouts of its own.
    #[must_use]
    pub fn provider_timeouts(mut self, name: &str, timeouts: Timeouts) -> Self {
        self.providers
            .iter_mut()
            .filter(|provider| provider.name == name)
            .for_each(|provider| provider.timeouts = timeouts);
        self
    }
}
