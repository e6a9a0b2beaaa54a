//! A small correct gateway whose bugs can be switched on, one at a time.
//!
//! Its purpose is to prove that cases can fail. Each case must pass on the correct [`Reference`],
//! and must reject the same gateway with one [`Defect`], by the fact that the defect's row names;
//! the kill matrix (`tests/kill_matrix.rs`) holds for all cases. It proves nothing else: not that
//! the cases are complete, not that they judge other gateways rightly, and nothing about the
//! bundled gateway. It is no model for a gateway in use, and no case may depend on its words.

#![allow(clippy::result_large_err, reason = "errors are values here, and rare")]

mod agents;
mod breaker;
mod chat;
mod decode;
mod error;
mod gateway;
mod ingress;
mod ops;
mod protocol;
mod query;
mod records;
mod route;
mod store;
mod stream;
mod upstream;

use crate::defect::Defect;

use async_trait::async_trait;
use gauntlet_harness::spec::Spec;
use gauntlet_harness::subject::{
    Behaviour, Capability, Deployment, IssuedKey, Manifest, RunningTarget, Target, TargetError,
};

/// A correct gateway in this process, or the same gateway with one bug.
#[derive(Debug)]
pub struct Reference {
    defect: Option<Defect>,
    manifest: Manifest,
    /// Changes what is built in, whatever is configured.
    fix: Option<fn(&mut Spec)>,
}

impl Reference {
    /// The correct gateway for `None`, the one with that single bug otherwise.
    pub fn new(defect: Option<Defect>) -> Self {
        let capabilities = CAPABILITIES.iter().copied().collect();
        // one name for all: they share one schema, and so one template of the case's databases
        Self {
            defect,
            fix: None,
            manifest: Manifest {
                name: "reference".into(),
                version: None,
                capabilities,
                behaviour: Behaviour {
                    goes_on_after_sighup: true,
                    revoked_key_ms: ingress::CACHED.as_millis() as u64,
                    ..Behaviour::default()
                },
                ..Manifest::default()
            },
        }
    }

    /// The correct gateway with three attempts at each candidate built in: nobody can configure
    /// them, and so it does not declare retries.
    pub fn with_built_in_retries() -> Self {
        Self::fixed(&[Capability::Retry, Capability::RetryBudget], |spec| {
            spec.retry.max_attempts = 3;
        })
    }

    /// The correct gateway that leaves a provider alone for a second after each failure: nobody can
    /// configure that, and so it declares neither breakers nor retries.
    pub fn with_a_rest_after_each_failure() -> Self {
        let undeclared = [
            Capability::Breaker,
            Capability::Retry,
            Capability::RetryBudget,
        ];
        Self::fixed(&undeclared, |spec| {
            spec.breaker.failure_threshold = 1;
            spec.breaker.cool_down_ms = 1_000;
        })
    }

    /// The same gateway with this bug.
    #[must_use]
    pub fn with_defect(mut self, defect: Defect) -> Self {
        self.defect = Some(defect);
        self
    }

    /// The same gateway, whose target declares that it always does this.
    #[must_use]
    pub fn declaring(mut self, change: impl FnOnce(&mut Behaviour)) -> Self {
        change(&mut self.manifest.behaviour);
        self
    }

    /// The same gateway, whose target declares these capabilities, too.
    #[must_use]
    pub fn with(mut self, declared: &[Capability]) -> Self {
        self.manifest.capabilities.extend(declared);
        self
    }

    /// The same gateway, whose target does not declare these capabilities.
    #[must_use]
    pub fn without(mut self, undeclared: &[Capability]) -> Self {
        let capabilities = &mut self.manifest.capabilities;
        capabilities.retain(|one| !undeclared.contains(one));
        self
    }

    /// The correct gateway without these capabilities, with a part of the specification fixed.
    fn fixed(undeclared: &[Capability], fix: fn(&mut Spec)) -> Self {
        let mut reference = Self::new(None).without(undeclared);
        reference.fix = Some(fix);
        reference
    }
}

#[async_trait]
impl Target for Reference {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    async fn add_key(
        &self,
        deployment: &Deployment,
        tenant: &str,
    ) -> Result<IssuedKey, TargetError> {
        let token = format!("sk-issued-{}", uuid::Uuid::new_v4().simple());
        let sql = "INSERT INTO keys (token, tenant) VALUES ($1, $2)";
        store::by_hand(deployment, sql, &[&token, tenant]).await?;
        Ok(IssuedKey {
            id: token.clone(),
            token,
        })
    }

    async fn revoke_key(
        &self,
        deployment: &Deployment,
        key: &IssuedKey,
    ) -> Result<(), TargetError> {
        let sql = "DELETE FROM keys WHERE token = $1";
        store::by_hand(deployment, sql, &[&key.token]).await
    }

    async fn start(&self, mut deployment: Deployment) -> Result<RunningTarget, TargetError> {
        if let Some(fix) = self.fix {
            fix(&mut deployment.spec);
        }
        // a task of its own: a case that starts further gateways has little stack left
        let starting = tokio::spawn(gateway::start(deployment, self.defect));
        let started = starting.await;
        started.map_err(|error| TargetError::Start(error.to_string()))?
    }
}

const CAPABILITIES: &[Capability] = &[
    Capability::Chat,
    Capability::Stream,
    Capability::Tools,
    Capability::Models,
    Capability::Ollama,
    Capability::Fallback,
    Capability::Retry,
    Capability::RetryBudget,
    Capability::ConnectTimeout,
    Capability::HeadersTimeout,
    Capability::FirstTokenTimeout,
    Capability::IdleTimeout,
    Capability::TotalDeadline,
    Capability::TimeoutPerModel,
    Capability::ClientDeadline,
    Capability::Breaker,
    Capability::Bulkhead,
    Capability::Admission,
    Capability::BodyLimit,
    Capability::SlowClient,
    Capability::Keys,
    Capability::StoredKeys,
    Capability::RevocableKeys,
    Capability::OwnProviderKeys,
    Capability::UrlCredentials,
    Capability::RequestId,
    Capability::ServedBy,
    Capability::AttemptList,
    Capability::Query,
    Capability::Liveness,
    Capability::Readiness,
    Capability::Health,
    Capability::Metrics,
    Capability::Drain,
    Capability::Store,
    Capability::Process,
];
