//! The gateway under test: how it is described, configured, started, found ready, signalled and
//! stopped.

mod behaviour;
mod capability;
mod command;
mod file;
mod keys;
mod prepare;
mod probe;
mod process;
pub(crate) mod reaped;
mod render;
mod shared;
mod stated;
mod surface;
mod timeouts;
mod url;
mod version;
mod words;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::spec::{Protocol, Spec, Timeouts};
use crate::tape::Tape;

pub use behaviour::Behaviour;
pub use capability::Capability;
pub use command::CommandTarget;
pub use file::{Each, FixedSettings, Ready, Start, StartFile, TargetFile};
pub use keys::{IssuedKey, KeyCommands};
pub use prepare::Prepare;
pub use probe::Statuses;
pub use process::ChildProcess;
pub(crate) use process::without_colours;
pub use shared::{merge, settings, share};
pub use surface::{MetricNames, Paths};
pub use url::UrlTarget;

/// Settings that a gateway can give to one alias alone. Cases that differ in nothing else share one
/// process of a shared target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AliasSetting {
    /// The timeouts: the template gives each deployment the timeouts of its alias and provider.
    Timeouts,
    /// The retries: the template reads `model.retry`.
    Retry,
    /// The breaker: the template reads `model.breaker`.
    Breaker,
}

/// What a target declares about itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// The name that reports use: `bundled`, `litellm`, …
    pub name: String,
    /// The version of the gateway, if it is known.
    #[serde(default)]
    pub version: Option<String>,
    /// The capabilities that it declares.
    pub capabilities: BTreeSet<Capability>,
    /// What the gateway always does, whatever is configured.
    #[serde(default)]
    pub behaviour: Behaviour,
    /// Where it answers about itself.
    #[serde(default)]
    pub paths: Paths,
    /// The names of its metrics.
    #[serde(default)]
    pub metrics: MetricNames,
    /// The timeouts of a gateway that the harness does not configure (a plain URL), if its file
    /// states any; those that the file leaves out have the suite's value.
    #[serde(default)]
    pub fixed_timeouts: Option<Timeouts>,
}

/// Everything that a target needs to start a gateway for one case, or for several cases that
/// share it.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Unique in the run; folders, databases and logs are named after it.
    pub id: String,
    /// What the gateway has to be configured with.
    pub spec: Spec,
    /// The base URL of each provider by its name, in the form that the protocol expects (`…/v1`
    /// for OpenAI, the root for Ollama).
    pub endpoints: IndexMap<String, String>,
    /// The URL of the database that the gateway has to use, if the case has one.
    pub database_url: Option<String>,
    /// An empty folder for the configuration and the log of the gateway.
    pub folder: PathBuf,
    /// The tape on which start, exit and signals are recorded.
    pub tape: Tape,
}

/// Why a target does not run. Each message names what failed, the value and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The target file, or a template in it, is wrong.
    #[error("{0}")]
    Definition(String),
    /// The program could not be started.
    #[error("{0}")]
    Start(String),
    /// The gateway never became ready.
    #[error("{0}")]
    NotReady(String),
    /// The gateway ended by itself.
    #[error("{0}")]
    Died(String),
    /// The target cannot provide what is asked of it.
    #[error("{0}")]
    NotSupported(String),
}

/// A way to start gateways.
#[async_trait]
pub trait Target: Send + Sync {
    /// Returns what the target declares.
    fn manifest(&self) -> &Manifest;

    /// Returns whether one running gateway serves many cases (for gateways that start slowly);
    /// otherwise each case has a gateway of its own.
    fn shared(&self) -> bool {
        false
    }

    /// Returns the settings in which the aliases of one process may differ.
    fn per_alias(&self) -> BTreeSet<AliasSetting> {
        BTreeSet::new()
    }

    /// Returns the address at which the provider of that name has to listen; `None` means any free
    /// port. A target with fixed addresses is examined one case after another.
    fn listen(&self, _provider: &str) -> Option<SocketAddr> {
        None
    }

    /// Returns whether the cases have to run one after another.
    fn one_at_a_time(&self) -> bool {
        false
    }

    /// Returns the specification of a case without the aliases with a provider that speaks Ollama's
    /// API, where this gateway does not declare that. A case that is about them needs the
    /// capability; any other case leaves out their instances.
    fn declared(&self, mut spec: Spec) -> Spec {
        if !self.manifest().capabilities.contains(&Capability::Ollama) {
            spec.keep_models(|provider| provider.protocol != Protocol::OLLAMA);
        }
        spec
    }

    /// Checks whether the target can be configured as the specification asks.
    ///
    /// # Errors
    /// A sentence that names the setting that the target cannot be given; the case is then *not
    /// supported*.
    fn accepts(&self, _spec: &Spec) -> Result<(), String> {
        Ok(())
    }

    /// Returns the specification of a case as this gateway can have it: a gateway that the harness
    /// does not configure keeps its own timeouts, a gateway that counts in whole seconds has them
    /// rounded up, and one that declares no keys of clients is given none. [`Target::accepts`]
    /// refuses what a case cannot live with.
    fn adapted(&self, spec: Spec) -> Spec {
        spec
    }

    /// Returns the reason that the target file gives for not declaring a capability, if any.
    fn why_not(&self, _capability: Capability) -> Option<String> {
        None
    }

    /// Makes a key of a client of this tenant, as an operator does while the gateway runs.
    ///
    /// # Errors
    /// [`TargetError::NotSupported`] if the target has no way to make keys; otherwise why the
    /// command failed.
    async fn add_key(
        &self,
        _deployment: &Deployment,
        _tenant: &str,
    ) -> Result<IssuedKey, TargetError> {
        Err(TargetError::NotSupported(
            "this target has no way to make a key while it runs".into(),
        ))
    }

    /// Revokes a key of [`Target::add_key`], as an operator does while the gateway runs.
    ///
    /// # Errors
    /// As [`Target::add_key`].
    async fn revoke_key(
        &self,
        _deployment: &Deployment,
        _key: &IssuedKey,
    ) -> Result<(), TargetError> {
        Err(TargetError::NotSupported(
            "this target has no way to revoke a key while it runs".into(),
        ))
    }

    /// Starts a gateway and waits until it is ready. Dropping the future ends what was started.
    ///
    /// # Errors
    /// See [`TargetError`]; nothing is left running.
    async fn start(&self, deployment: Deployment) -> Result<RunningTarget, TargetError>;
}

/// A process of a gateway. Dropping it kills the process.
#[async_trait]
pub trait Process: Send + Sync {
    /// Sends SIGTERM.
    ///
    /// # Errors
    /// [`TargetError::Died`] if the process has ended before.
    async fn terminate(&self) -> Result<(), TargetError>;
    /// Sends SIGHUP, as a service manager does to have the configuration read again, and as the
    /// kernel does when a terminal is lost.
    ///
    /// # Errors
    /// [`TargetError::NotSupported`] if the target is not a process that can be sent it;
    /// [`TargetError::Died`] if the process has ended before.
    async fn hang_up(&self) -> Result<(), TargetError> {
        Err(TargetError::NotSupported(
            "this target is not a process that the harness started, so it cannot be sent SIGHUP"
                .into(),
        ))
    }
    /// Sends SIGKILL, as the out-of-memory killer does, and waits until the process is gone.
    ///
    /// # Errors
    /// [`TargetError::NotSupported`] if the target is not a process that can be killed.
    async fn kill(&self) -> Result<(), TargetError> {
        Err(TargetError::NotSupported(
            "this target is not a process that the harness started, so it cannot be killed".into(),
        ))
    }
    /// Lets the process open at most `spare` file descriptors more than it has open now, or with
    /// `None` as many as the system allows.
    ///
    /// # Errors
    /// [`TargetError::NotSupported`] if the target is not a process of this machine whose limit can
    /// be set, and [`TargetError::Died`] if it has ended.
    async fn leave_descriptors(&self, _spare: Option<u64>) -> Result<(), TargetError> {
        Err(TargetError::NotSupported(
            "the limit of file descriptors can be set only for a process that the harness started \
             on Linux"
                .into(),
        ))
    }
    /// Waits for the end of the process and returns its exit code, or `None` if a signal ended it.
    /// Cancel safe.
    ///
    /// # Errors
    /// [`TargetError::Died`] if the end can no longer be observed.
    async fn wait(&self) -> Result<Option<i32>, TargetError>;
    /// Returns the last lines of its output, for reports.
    fn log_tail(&self) -> String;
    /// Returns its whole output, in which cases look for canary secrets.
    fn log(&self) -> String;
    /// Returns its process id, if it has one.
    fn id(&self) -> Option<u32>;
}

/// What the harness gave to a gateway that it started: the evidence of how it was configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendered {
    /// The program and its arguments; empty for a gateway that somebody else started.
    pub command: Vec<String>,
    /// The variables that the target file adds to the environment of the program.
    pub env: IndexMap<String, String>,
    /// The configuration files, in the order of the target file.
    pub files: Vec<RenderedFile>,
}

/// A configuration file as the gateway reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedFile {
    /// The name of the file in the folder of the deployment.
    pub name: String,
    /// The text of the file, in clear text: whoever shows it has to mask the secrets in it.
    pub text: String,
}

/// A gateway that is ready.
pub struct RunningTarget {
    /// The root URL without a trailing slash; `/v1/chat/completions` and `/health/live` are below
    /// it.
    pub base_url: String,
    /// The prefix of this case's aliases on a gateway that several cases share; empty otherwise.
    pub model_prefix: String,
    /// Headers that every request needs, for example a master key.
    pub headers: Vec<(String, String)>,
    /// What the gateway was started with. Cases that share the gateway share it, too.
    pub rendered: Arc<Rendered>,
    /// The process of the gateway; `None` for a gateway that somebody else started.
    pub process: Option<Box<dyn Process>>,
}

impl RunningTarget {
    /// Returns the name under which clients ask for the alias.
    pub fn model(&self, alias: &str) -> String {
        format!("{}{alias}", self.model_prefix)
    }
}

/// Returns the specification without the optional aliases that this gateway cannot have: those of a
/// protocol that its target does not declare, those of several candidates where it declares no
/// fallback, and all of them where it does not accept them all.
#[cfg(feature = "runner")]
pub(crate) fn fitted(target: &dyn Target, spec: Spec) -> Spec {
    let declares = |capability| target.manifest().capabilities.contains(&capability);
    let unspoken = |spec: &Spec, model: &crate::spec::ModelSpec| {
        let mut providers = model
            .candidates
            .iter()
            .filter_map(|candidate| spec.provider_of(candidate));
        let of_ollama = providers.any(|provider| provider.protocol == Protocol::OLLAMA);
        (of_ollama && !declares(Capability::Ollama))
            || (model.candidates.len() > 1 && !declares(Capability::Fallback))
    };
    let spec = target.declared(spec).without_optional(unspoken);
    if target.accepts(&spec).is_ok() {
        return spec;
    }
    spec.without_optional(|_, _| true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_gateway_is_given_no_alias_of_a_protocol_that_it_does_not_declare() {
        let spec = Spec::solo()
            .provider("p3", Protocol::OLLAMA)
            .model("local", &["p3", "p1"]);
        let declared = |capabilities: &str| {
            let file = format!(
                "name = \"t\"\ncapabilities = [{capabilities}]\n[start]\ncommand = [\"x\"]\n"
            );
            let file = TargetFile::parse(&file, "t.toml").unwrap();
            let target = CommandTarget::new(file, "gauntlet".into()).unwrap();
            let spec = target.declared(spec.clone());
            let aliases = spec.models.into_iter().map(|model| model.alias);
            let providers = spec.providers.into_iter().map(|provider| provider.name);
            (aliases.collect::<Vec<_>>(), providers.collect::<Vec<_>>())
        };
        assert_eq!(
            declared("\"chat\""),
            (vec!["solo".to_string()], vec!["p1".to_string()])
        );
        let (aliases, providers) = declared("\"chat\", \"ollama\"");
        assert_eq!(aliases, ["solo", "local"]);
        assert_eq!(providers, ["p1", "p3"]);
    }
}
