//! The gateway under test: how it is configured, started, found ready, signalled and stopped.

mod command;
mod file;
mod process;
mod render;
mod shared;
mod url;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::spec::{Spec, Timeouts};
use crate::tape::Tape;

pub use command::CommandTarget;
pub use file::{Ready, Start, StartFile, TargetFile};
pub use process::ChildProcess;
pub use shared::{merge, share};
pub use url::UrlTarget;

/// Something a gateway can or cannot do, declared in its manifest. One variant a capability that some real gateway lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// `POST /v1/chat/completions`, plain.
    Chat,
    /// The same, streamed.
    Stream,
    /// Tool calls.
    Tools,
    /// `GET /v1/models`.
    Models,
    /// An Ollama provider by its own API.
    Ollama,
    /// More than one candidate an alias.
    Fallback,
    /// Retries of one candidate.
    Retry,
    /// A retry budget.
    RetryBudget,
    /// A connect time-out apart from the total.
    ConnectTimeout,
    /// A first-token time-out for streams.
    FirstTokenTimeout,
    /// An idle time-out between events.
    IdleTimeout,
    /// A total deadline over all attempts.
    TotalDeadline,
    /// A time-out of their own for a model or provider.
    TimeoutPerModel,
    /// A client may shorten the deadline with a header (`x-request-timeout-ms`).
    ClientDeadline,
    /// Circuit breakers.
    Breaker,
    /// A concurrency limit a provider.
    Bulkhead,
    /// A limit of requests in flight at the door.
    Admission,
    /// A bound on the body.
    BodyLimit,
    /// Time-outs for slow clients.
    SlowClient,
    /// Client keys with tenants.
    Keys,
    /// Client keys in its store: one that it is not configured with is looked up there.
    StoredKeys,
    /// The gateway presents its own provider keys (a client's 401 is not a provider's).
    OwnProviderKeys,
    /// A provider's base URL may hold a user and a password.
    UrlCredentials,
    /// `x-request-id` accepted, returned and sent on.
    RequestId,
    /// Tells who served a request.
    ServedBy,
    /// An error that lists the attempts.
    AttemptList,
    /// `/api/v1/queries` and documents.
    Query,
    /// `/health/live`, `/health/ready`, `/health`.
    Health,
    /// Prometheus metrics in our names.
    Metrics,
    /// Drains on SIGTERM.
    Drain,
    /// Its own store, on a database that the harness gives it.
    Store,
    /// Is started by the harness, so that it can be signalled and restarted.
    Process,
}

impl Capability {
    /// Its name in target files.
    pub fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|value| value.as_str().map(str::to_string))
            .unwrap_or_else(|| format!("{self:?}"))
    }
}

/// What a target declares about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// `bundled`, `litellm`, …
    pub name: String,
    /// Its version, if it is known.
    #[serde(default)]
    pub version: Option<String>,
    /// What it can do.
    pub capabilities: BTreeSet<Capability>,
    /// Time-outs that it can't be given by a [`Spec`] (a plain URL): what they are instead.
    #[serde(default)]
    pub fixed_timeouts: Option<Timeouts>,
}

/// All that a target needs to start for one case, or for several that share it.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Unique in the run; names folders, databases and logs.
    pub id: String,
    /// What is asked of it.
    pub spec: Spec,
    /// Where each provider listens: name → base URL as the protocol wants it (`…/v1` for OpenAI, the root for Ollama).
    pub endpoints: IndexMap<String, String>,
    /// The database to use, if any.
    pub database_url: Option<String>,
    /// An empty folder for configuration and logs.
    pub folder: PathBuf,
    /// Where start, exit and signals are recorded.
    pub tape: Tape,
}

/// Why a target is not running. Each message says what failed, the value, and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The target's file or template is wrong.
    #[error("{0}")]
    Definition(String),
    /// The program could not be started.
    #[error("{0}")]
    Start(String),
    /// It never became ready.
    #[error("{0}")]
    NotReady(String),
    /// It ended by itself.
    #[error("{0}")]
    Died(String),
    /// It cannot be given what the specification asks.
    #[error("{0}")]
    NotSupported(String),
}

/// A way to start gateways.
#[async_trait]
pub trait Target: Send + Sync {
    /// What it declares.
    fn manifest(&self) -> &Manifest;

    /// Whether one running gateway serves many cases (slow starters), or each case has its own.
    fn shared(&self) -> bool {
        false
    }

    /// Where the provider of that name has to listen; `None` takes a free port. A target with fixed addresses is
    /// examined one case after another.
    fn listen(&self, _provider: &str) -> Option<SocketAddr> {
        None
    }

    /// Whether the cases have to run one after another.
    fn one_at_a_time(&self) -> bool {
        false
    }

    /// Whether the target can be given this specification; a sentence that says what it cannot.
    ///
    /// # Errors
    /// The case is then *not supported*.
    fn accepts(&self, _spec: &Spec) -> Result<(), String> {
        Ok(())
    }

    /// Why the target does not declare a capability, in its own words, if it says so.
    fn why_not(&self, _capability: Capability) -> Option<String> {
        None
    }

    /// Starts a gateway and waits until it is ready.
    ///
    /// # Errors
    /// See [`TargetError`]; nothing is left running.
    async fn start(&self, deployment: Deployment) -> Result<RunningTarget, TargetError>;
}

/// What can be done with a gateway that runs. Dropping it kills it.
#[async_trait]
pub trait Process: Send + Sync {
    /// Sends SIGTERM.
    async fn terminate(&self) -> Result<(), TargetError>;
    /// Kills it at once (SIGKILL), as a crash or an out-of-memory killer would, and waits until it is gone.
    async fn kill(&self) -> Result<(), TargetError> {
        Err(TargetError::NotSupported(
            "this target is no process that can be killed".into(),
        ))
    }
    /// Waits for the end; the exit code, or `None` when a signal ended it.
    async fn wait(&self) -> Result<Option<i32>, TargetError>;
    /// The last lines that it wrote, for reports.
    fn log_tail(&self) -> String;
    /// Everything that it wrote (canary secrets are looked for in it).
    fn log(&self) -> String;
    /// Its process id, where there is a process.
    fn id(&self) -> Option<u32>;
}

/// A gateway that answers.
pub struct RunningTarget {
    /// The root without a trailing slash; `/v1/chat/completions` and `/health/live` are below it.
    pub base_url: String,
    /// Put before aliases where several cases share the gateway.
    pub model_prefix: String,
    /// Headers that every request needs (a shared master key, say).
    pub headers: Vec<(String, String)>,
    /// The process behind it; `None` for a plain URL.
    pub process: Option<Box<dyn Process>>,
}

impl RunningTarget {
    /// The name by which clients ask for the alias.
    pub fn model(&self, alias: &str) -> String {
        format!("{}{alias}", self.model_prefix)
    }
}
