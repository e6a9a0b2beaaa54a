//! The configuration: one TOML file, each key overridable by the environment
//! (`GAUNTLET_SERVER__LISTEN`: section, two underscores, key). It is parsed and validated once;
//! afterwards nothing is checked again. A time is in milliseconds in the file, a [`Duration`] here.
//!
//! `settings` holds one row for each key, in the language that `schema` defines. `walk` checks the
//! written values against the rows, `resolve` does what spans several sections, and `print` shows
//! what is in effect. What steps and protocols bring arrives as [`kinds::Kinds`].

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use indexmap::IndexMap;
use secrecy::SecretString;

mod environment;
pub mod kinds;
mod print;
mod resolve;
mod schema;
mod settings;
mod url;
mod walk;

pub use self::settings::{
    Auth, Breaker, ConfiguredKey, LogFormat, OrchestratorConfig, Retry, Server, StepConfig,
    StoreConfig, Telemetry,
};
pub use self::url::redact_url;

use self::schema::Settings;

/// A valid configuration.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration that is in effect.
    pub config: Config,
    printed: String,
}

/// The reasons for which a configuration is refused. All of them are found at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigError {
    /// One sentence for each problem, with the key, its value, and what to write instead.
    pub problems: Vec<String>,
}

impl Loaded {
    /// Reads the TOML `text`, with `environment` over it, for a gateway that has these `kinds`.
    /// `origin` names the text in messages.
    ///
    /// # Errors
    /// Every problem of the configuration; see [`ConfigError`].
    pub fn with_kinds(
        text: &str,
        origin: &str,
        environment: &[(String, String)],
        kinds: &kinds::Kinds,
    ) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let entries = settings::Written::entries(kinds);
        let mut table = parse(text, origin)?;
        environment::overlay(&entries, &mut table, environment, &mut problems);
        let root = walk::Section::root(&entries, &table);
        let mut walk = walk::Walk {
            root,
            problems,
            lines: Vec::new(),
        };
        let written = walk.run().try_into::<settings::Written>();
        let (problems, derived) = (walk.problems, HashMap::new());
        let mut resolver = resolve::Resolver {
            kinds,
            environment,
            problems,
            derived,
        };
        let config = written.map(|written| resolver.resolve(written));
        let mut problems = resolver.problems;
        let mut seen = HashSet::new();
        problems.retain(|problem| seen.insert(problem.clone()));
        match config {
            Ok(config) if problems.is_empty() => {
                let printed = print::print(&walk.lines, &resolver.derived);
                Ok(Self { config, printed })
            }
            _ => Err(ConfigError { problems }),
        }
    }

    /// Every key with its documentation, unit, bounds, default, variable and effective value, as a
    /// configuration file without secrets.
    #[must_use]
    pub fn print(&self) -> &str {
        &self.printed
    }
}

fn parse(text: &str, origin: &str) -> Result<toml::Table, ConfigError> {
    text.parse::<toml::Table>().map_err(|error| {
        let before = text.bytes().take(error.span().map_or(0, |span| span.start));
        let line = before.filter(|byte| *byte == b'\n').count() + 1;
        let reason = error.message().replace('\n', ", ");
        let problem = format!("{origin}, line {line}, is not TOML ({reason}): correct that line");
        ConfigError {
            problems: vec![problem],
        }
    })
}

/// A whole configuration. Every value is valid, and every default is filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// The section `[server]`.
    pub server: Server,
    /// The section `[store]`.
    pub store: StoreConfig,
    /// The section `[auth]`.
    pub auth: Auth,
    /// The elements of `[[providers]]` by their names.
    pub providers: IndexMap<String, ProviderConfig>,
    /// The elements of `[[models]]` by their aliases.
    pub models: IndexMap<String, ModelConfig>,
    /// The section `[retry]`.
    pub retry: Retry,
    /// The section `[breaker]`.
    pub breaker: Breaker,
    /// The section `[orchestrator]`; each step that asks a model has an alias if there is any.
    pub orchestrator: OrchestratorConfig,
    /// The section `[telemetry]`.
    pub telemetry: Telemetry,
}

/// A provider.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// The provider's name.
    pub name: String,
    /// The name of its protocol, as the matching [`kinds::ProtocolSettings`] gives it.
    pub protocol: &'static str,
    /// The URL before the protocol's paths, without user and password.
    pub base_url: http::Uri,
    /// The key that is sent to the provider, if it needs one.
    pub api_key: Option<SecretString>,
    /// `user:password` of the written URL, which is sent instead of a key.
    pub user: Option<SecretString>,
    /// The provider gets this many requests at a time; further ones wait within their deadlines.
    pub max_in_flight: u32,
    /// This many requests wait for the provider; further ones are refused.
    pub queue: u32,
}

/// The timeouts of one candidate of a model: the model's, else the provider's, else the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The connection to the provider must be open within this time.
    pub connect: Duration,
    /// The first content of a stream must arrive within this time.
    pub first_token: Duration,
    /// No more than this time may pass between two reads of an answer.
    pub idle: Duration,
}

/// An alias for clients.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The model's name for clients.
    pub alias: String,
    /// The candidates in the order in which they are asked.
    pub candidates: Vec<CandidateConfig>,
    /// A request must end within this time, over all attempts and candidates.
    pub total: Duration,
    /// Candidate i of n must end `reserve * (n - 1 - i)` before the request's deadline.
    pub reserve: Duration,
}

/// One candidate of an alias.
#[derive(Clone, Debug)]
pub struct CandidateConfig {
    /// The name of a configured provider.
    pub provider: String,
    /// The model's name at that provider.
    pub model: String,
    /// The timeouts of this candidate.
    pub timeouts: Timeouts,
}
