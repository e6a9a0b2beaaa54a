//! Every option of the gateway: name, default, unit and bound, in one place.
//!
//! One TOML file, each key overridable by environment (`GAUNTLET_SERVER__LISTEN`: section, two underscores, key). Parsed and
//! validated once; afterwards nothing is re-checked. Durations are milliseconds in the file and [`Duration`] in the types.
//! `options` holds the one table of all keys; `source` places file and environment, `reader` checks values, `resolve` what
//! spans several keys and `print` shows what is in effect.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use indexmap::IndexMap;
use secrecy::SecretString;

pub mod kinds;
mod options;
mod print;
mod reader;
mod resolve;
mod source;
mod value;

pub use value::redact_url;

/// A valid configuration, and what it is made of.
#[derive(Debug)]
pub struct Loaded {
    /// What holds.
    pub config: Config,
    effective: Vec<reader::Effective>,
}

/// Why a configuration is refused: all that is wrong, one sentence each, with key, value, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigError {
    /// One sentence each; never empty.
    pub problems: Vec<String>,
}

impl Config {
    /// Reads a file's text, without any environment.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Loaded::from_text(text, "the configuration", Vec::new()).map(|loaded| loaded.config)
    }
}

impl Loaded {
    /// Reads `file`, with `environment` over it.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_file(file: &Path, environment: Vec<(String, String)>) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError {
            problems: vec![format!(
                "the configuration file {} can't be read ({error}): write the path of a TOML file",
                file.display()
            )],
        })?;
        Self::from_text(&text, &file.display().to_string(), environment)
    }

    /// Reads `text`, with `environment` over it; `origin` names the text in messages.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_text(
        text: &str,
        origin: &str,
        environment: Vec<(String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut table = source::parse(text, origin).map_err(|problem| ConfigError {
            problems: vec![problem],
        })?;
        let mut problems = Vec::new();
        source::overlay(&mut table, environment.iter().cloned(), &mut problems);
        let mut reader = reader::Reader::new(&table, problems);
        let variable = |name: &str| {
            environment
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.clone())
        };
        let config = resolve::resolve(&mut reader, &variable);
        let mut problems: Vec<String> = Vec::new();
        for problem in reader.problems {
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        if problems.is_empty() {
            Ok(Self {
                config,
                effective: reader.effective,
            })
        } else {
            Err(ConfigError { problems })
        }
    }

    /// Every key with its effective value, default, unit and bound, as a configuration file; secrets are left out.
    pub fn print(&self) -> String {
        print::print(&self.effective)
    }
}

/// The whole configuration, valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[store]`
    pub store: StoreConfig,
    /// `[auth]`
    pub auth: Auth,
    /// `[[providers]]`, by name.
    pub providers: IndexMap<String, ProviderConfig>,
    /// `[[models]]`, by alias.
    pub models: IndexMap<String, ModelConfig>,
    /// `[retry]`
    pub retry: Retry,
    /// `[breaker]`
    pub breaker: Breaker,
    /// `[orchestrator]`
    pub orchestrator: OrchestratorConfig,
    /// `[telemetry]`
    pub telemetry: Telemetry,
}

/// The door.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Largest request body, in bytes.
    pub body_limit_bytes: u64,
    /// Requests in flight; more get 503 at once.
    pub max_in_flight: u32,
    /// A client that has not sent its headers by then is closed.
    pub header_timeout: Duration,
    /// A client that has not sent its body by then gets 408 and is closed.
    pub body_timeout: Duration,
    /// A client that takes, for so long, neither 64 KiB of its answer nor all that waits for it is closed.
    pub write_timeout: Duration,
    /// How long SIGTERM waits for what is in flight.
    pub drain: Duration,
    /// What each dependency gets to answer a health probe.
    pub health_timeout: Duration,
    /// How long the result of a health probe is told again without a new probe.
    pub health_cache: Duration,
}

/// The database.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// `postgres://…`, `sqlite://path`, `sqlite::memory:`.
    pub url: SecretString,
    /// Connections in the pool.
    pub max_connections: u32,
    /// Until a connection is had: from the pool, or a new one.
    pub acquire_timeout: Duration,
    /// Until a statement has its answer.
    pub statement_timeout: Duration,
}

/// Who may ask.
#[derive(Clone, Debug)]
pub struct Auth {
    /// Whether a key is asked for. Off: everybody is tenant `default`. `None`: where a key exists when the gateway starts.
    pub required: Option<bool>,
    /// Keys known from the file, hashed, besides those in the store.
    pub keys: Vec<ConfiguredKey>,
    /// How long a key found in the store is remembered.
    pub cache: Duration,
}

/// A key in the configuration file.
#[derive(Clone, Debug)]
pub struct ConfiguredKey {
    /// Whose it is.
    pub tenant: String,
    /// SHA-256 of the token, hex.
    pub sha256: String,
}

/// A provider.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// Its name.
    pub name: String,
    /// The name of the protocol that it speaks, as the matching [`kinds::ProtocolSettings`] gives it.
    pub protocol: &'static str,
    /// `https://api.openai.com/v1`, `http://127.0.0.1:11434`; never with user and password.
    pub base_url: http::Uri,
    /// Its key, if it wants one.
    pub api_key: Option<SecretString>,
    /// `user:password`, where base_url was written with them instead of a key.
    pub user: Option<SecretString>,
    /// Requests at it at once; further ones wait within their time, in a queue.
    pub max_in_flight: u32,
    /// Requests that wait for it; more are refused.
    pub queue: u32,
}

/// The time-outs of one candidate of one model: model over provider over default, resolved at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the connection stands.
    pub connect: Duration,
    /// Until the first content of a stream.
    pub first_token: Duration,
    /// Between two reads.
    pub idle: Duration,
}

/// A model alias.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// What clients ask for.
    pub alias: String,
    /// In order.
    pub candidates: Vec<CandidateConfig>,
    /// The deadline of a request, over all attempts and candidates.
    pub total: Duration,
    /// Kept for each later candidate: candidate i of n must end `reserve * (n-1-i)` before the deadline.
    pub reserve: Duration,
}

/// One candidate of an alias.
#[derive(Clone, Debug)]
pub struct CandidateConfig {
    /// A configured provider.
    pub provider: String,
    /// The model's name there.
    pub model: String,
    /// Its time-outs.
    pub timeouts: Timeouts,
}

/// Retries of one candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Attempts at one candidate, the first included.
    pub max_attempts: u32,
    /// First back-off.
    pub base: Duration,
    /// Largest back-off.
    pub max: Duration,
    /// 0 to 1: how much of a back-off is random (a gap lies in `[backoff * (1 - jitter), backoff]`).
    pub jitter: f64,
    /// Retries allowed per request made, over the last ten seconds, per provider …
    pub budget_ratio: f64,
    /// … plus this many.
    pub budget_floor: u32,
}

/// Circuit breakers, one for each provider and model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Consecutive failures that open it.
    pub failure_threshold: u32,
    /// How long it stays open.
    pub cool_down: Duration,
    /// Requests that half-open lets through at once.
    pub half_open_probes: u32,
}

/// The orchestrator.
#[derive(Clone, Debug)]
pub struct OrchestratorConfig {
    /// The deadline of a query.
    pub deadline: Duration,
    /// Upper bound and least useful time of each step, by name (`entities`, `retrieval`, `fact_check`, `synthesis`, `citation`, `review`).
    pub steps: IndexMap<String, StepConfig>,
    /// The model alias each agent asks.
    pub models: IndexMap<String, String>,
    /// Passages handed to synthesis.
    pub passages: u32,
}

/// The bounds of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepConfig {
    /// It gets no more.
    pub cap: Duration,
    /// With less left it is skipped, and says so.
    pub minimum: Duration,
}

/// Logs.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// A `tracing` filter: `info`, `gauntlet=debug`.
    pub log: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}
