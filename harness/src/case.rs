//! A case: one requirement, what it needs of a gateway, and how it is shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::BoxFuture;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::database::CaseDatabase;
use crate::gate::Gates;
use crate::llm::Stub;
use crate::spec::Spec;
use crate::subject::{Capability, Deployment, Manifest, Process, RunningTarget, Target};
use crate::tape::Tape;
use crate::wire::postgres::DatabaseWire;

pub use crate::verdict::{
    CaseResult, Failure, FailureMode, Level, Verdict, equal, holds, in_order, silent,
};

/// The surface that a requirement speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// The OpenAI-compatible surface: any gateway.
    Llm,
    /// The orchestrator's API.
    Query,
    /// Needs the database.
    Store,
    /// Process, health, shutdown.
    Ops,
}

/// What a case is given to work with. Everything is stopped when it is dropped.
pub struct Ctx {
    /// The gateway under test, started and ready.
    pub target: Arc<RunningTarget>,
    /// What the target declares.
    pub manifest: Arc<Manifest>,
    /// The specification it was started with.
    pub spec: Spec,
    /// The log of the case.
    pub tape: Tape,
    /// The stubs by provider name.
    pub stubs: IndexMap<String, Stub>,
    /// A client of the gateway.
    pub client: Client,
    /// Gates, rendezvous and interlocks of the case.
    pub gates: Gates,
    /// The case's own database, where the specification asked for one.
    pub database: Option<CaseDatabase>,
    /// The wire in front of that database, where the specification asked for Postgres.
    pub database_wire: Option<DatabaseWire>,
    /// Starts further gateways like the one under test.
    pub(crate) starter: Option<Starter>,
    /// Unique to this run of this case; put into prompts so that requests can be told apart.
    pub nonce: String,
}

/// What it takes to start another gateway like the one under test.
pub(crate) struct Starter {
    pub(crate) target: Arc<dyn Target>,
    pub(crate) deployment: Deployment,
    pub(crate) started: AtomicU32,
}

/// Another gateway of the case. Dropping it ends it.
pub struct Replica {
    /// The gateway, ready.
    pub target: Arc<RunningTarget>,
    /// A client of it, on the case's tape.
    pub client: Client,
}

impl Ctx {
    /// Starts another gateway with the same configuration, stubs and database: a replica, or a restart after the end of the
    /// first one. The case declares [`Capability::Process`].
    ///
    /// # Errors
    /// A failure of the target if it does not become ready; *not run* where the gateway is shared by cases.
    pub async fn start_another(&self) -> Result<Replica, Failure> {
        let Some(starter) = &self.starter else {
            return Err(Failure::NotRun {
                why: "the gateway serves many cases; a case cannot start another".into(),
            });
        };
        let n = starter.started.fetch_add(1, Ordering::Relaxed) + 2;
        let mut deployment = starter.deployment.clone();
        deployment.id = format!("{}-{n}", deployment.id);
        deployment.folder = deployment.folder.join(format!("gateway-{n}"));
        std::fs::create_dir_all(&deployment.folder).map_err(|error| Failure::Harness {
            what: format!("cannot make {}: {error}", deployment.folder.display()),
        })?;
        let running = starter
            .target
            .start(deployment)
            .await
            .map_err(|error| Failure::Target {
                what: error.to_string(),
            })?;
        Ok(Replica {
            client: Client::of(&running, self.tape.clone())?,
            target: Arc::new(running),
        })
    }

    /// The case's own database; the specification of the case asks for one, so it is there.
    ///
    /// # Errors
    /// A harness failure if the specification asks for none.
    pub fn database(&self) -> Result<&CaseDatabase, Failure> {
        self.database.as_ref().ok_or_else(|| Failure::Harness {
            what: "the specification of the case asks for no database".into(),
        })
    }

    /// The wire in front of the database; the specification of the case asks for Postgres, so it is there.
    ///
    /// # Errors
    /// A harness failure if the specification does not ask for Postgres.
    pub fn database_wire(&self) -> Result<&DatabaseWire, Failure> {
        self.database_wire.as_ref().ok_or_else(|| Failure::Harness {
            what: "the specification of the case does not ask for Postgres".into(),
        })
    }

    /// The process of the gateway; the case declares [`Capability::Process`] or [`Capability::Drain`], so it is there.
    ///
    /// # Errors
    /// *Not run* where the harness did not start the gateway.
    pub fn process(&self) -> Result<&dyn Process, Failure> {
        self.target
            .process
            .as_deref()
            .ok_or_else(|| Failure::NotRun {
                why: "the harness did not start this gateway, and cannot signal it".into(),
            })
    }

    /// The stub of that name; the specification of the case names it, so it exists.
    ///
    /// # Errors
    /// A harness failure if the specification has no such provider.
    pub fn stub(&self, name: &str) -> Result<&Stub, Failure> {
        self.stubs.get(name).ok_or_else(|| Failure::Harness {
            what: format!("the case has no provider {name}"),
        })
    }

    /// A chat request for the alias: one user message that holds `text` and the case's nonce.
    pub fn prompt(&self, alias: &str, text: &str) -> serde_json::Value {
        serde_json::json!({ "model": self.model(alias), "messages": [{ "role": "user", "content": format!("{text} [{}]", self.nonce) }] })
    }

    /// The name by which clients ask for the alias of the specification (a target shared by cases prefixes it).
    pub fn model(&self, alias: &str) -> String {
        self.target.model(alias)
    }
}

/// One requirement of the catalogue with its proof.
#[derive(Clone, Copy)]
pub struct Case {
    /// Stable id; never reused.
    pub id: &'static str,
    /// Its weight.
    pub level: Level,
    /// The surfaces it speaks about.
    pub profiles: &'static [Profile],
    /// The catalogue's text.
    pub requirement: &'static str,
    /// Why it matters: a real incident, with its link, where there is one.
    pub why: &'static str,
    /// How it is shown, in the order of time.
    pub shown: &'static str,
    /// What the operator of a failing gateway can do.
    pub remedy: &'static str,
    /// What the target has to declare; otherwise the case is *not supported*.
    pub needs: &'static [Capability],
    /// What the gateway has to be configured with.
    pub spec: fn() -> Spec,
    /// The examination.
    pub run: &'static dyn Examination,
}

/// What a case does with a gateway: any `async fn(&Ctx) -> CaseResult`.
pub trait Examination: Sync {
    /// Examines the gateway of `ctx`. Cancel safe: a dropped examination leaves the gateway as it is.
    fn examine<'a>(&'a self, ctx: &'a Ctx) -> BoxFuture<'a, CaseResult>;
}

impl<F> Examination for F
where
    F: for<'a> Examine<'a> + Sync,
{
    fn examine<'a>(&'a self, ctx: &'a Ctx) -> BoxFuture<'a, CaseResult> {
        Box::pin(self.start(ctx))
    }
}

/// The bound of [`Examination`] for one lifetime: an `async fn` returns another type of future for each.
pub trait Examine<'a> {
    /// The future of the examination.
    type Examining: Future<Output = CaseResult> + Send + 'a;

    /// Starts it.
    fn start(&self, ctx: &'a Ctx) -> Self::Examining;
}

impl<'a, F, Examining> Examine<'a> for F
where
    F: Fn(&'a Ctx) -> Examining,
    Examining: Future<Output = CaseResult> + Send + 'a,
{
    type Examining = Examining;

    fn start(&self, ctx: &'a Ctx) -> Examining {
        self(ctx)
    }
}
