//! A case: one requirement, what it needs of a gateway, and the function that examines it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::BoxFuture;
use indexmap::IndexMap;

use crate::client::Client;
use crate::database::CaseDatabase;
use crate::exercise::{Instances, Reached};
use crate::gate::Gates;
use crate::llm::Stub;
use crate::rows::kinds;
use crate::spec::{Protocol, Spec};
use crate::subject::{
    Capability, Deployment, IssuedKey, Manifest, Process, RunningTarget, Target, TargetError,
};
use crate::tape::Tape;
use crate::tape::{Event, Side};
use crate::wire::postgres::DatabaseWire;

pub use crate::exercise::State;
pub use crate::verdict::{
    CaseResult, Deviations, Failure, FailureMode, Level, Verdict, equal, holds, in_order, json,
    silent,
};

#[rustfmt::skip] // a row is a name and a text
kinds! {
    /// The surface of a gateway that a requirement is about.
    Profile;
    /// The surface that the profile covers, in a few words.
    surface;
    Llm "llm" "The OpenAI-compatible API, which every gateway has."
    Query "query" "The API of a query orchestrator."
    Store "store" "What the gateway keeps in a database."
    Ops "ops" "Process, health and shutdown."
}

/// Everything that a case works with. Dropping it stops everything in it.
pub struct Ctx {
    /// The gateway under test, which is ready.
    pub target: Arc<RunningTarget>,
    /// What the target declares.
    pub manifest: Arc<Manifest>,
    /// The specification that the gateway was configured with.
    pub spec: Spec,
    /// The tape of the case.
    pub tape: Tape,
    /// The stubs, by the name of their provider.
    pub stubs: IndexMap<String, Stub>,
    /// A client of the gateway, on the tape of the case.
    pub client: Client,
    /// The gates, rendezvous and interlocks of the case.
    pub gates: Gates,
    /// The database of the case, if its specification needs one.
    pub database: Option<CaseDatabase>,
    /// The wire in front of that database, if the specification needs Postgres.
    pub database_wire: Option<DatabaseWire>,
    /// Starts further gateways like the one under test, if the case has a gateway of its own.
    pub(crate) starter: Option<Starter>,
    /// The states that the case has reached by its own account; see [`Ctx::reached`].
    pub(crate) states: Reached,
    /// The instances of the requirement to which the case has come; see [`Ctx::instance`].
    pub(crate) instances: Instances,
    /// A text that is unique to this examination; prompts hold it, so that each request can be
    /// recognised.
    pub nonce: String,
}

/// What is needed to start another gateway like the one under test.
pub(crate) struct Starter {
    pub(crate) target: Arc<dyn Target>,
    pub(crate) deployment: Deployment,
    pub(crate) started: AtomicU32,
}

/// Another gateway of the case. Dropping it ends the gateway.
pub struct Replica {
    /// The gateway, which is ready.
    pub target: Arc<RunningTarget>,
    /// A client of that gateway, on the tape of the case.
    pub client: Client,
}

impl Ctx {
    /// Starts another gateway with the same configuration, stubs and database: a replica, or a
    /// restart after the end of the first one. The case has to need [`Capability::Process`].
    /// Dropping the future ends what was started.
    ///
    /// # Errors
    /// [`Failure::Target`] if the gateway does not become ready; [`Failure::NotRun`] if several
    /// cases share the gateway.
    pub async fn start_another(&self) -> Result<Replica, Failure> {
        let starter = self.starter()?;
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

    /// Makes a key of a client of this tenant while the gateway runs. The case has to need
    /// [`Capability::RevocableKeys`].
    ///
    /// # Errors
    /// [`Failure::Target`] if the command fails; [`Failure::NotRun`] if several cases share the
    /// gateway.
    pub async fn add_key(&self, tenant: &str) -> Result<IssuedKey, Failure> {
        let (target, deployment) = self.of_operator()?;
        let added = target.add_key(&deployment, tenant).await;
        let key = added.map_err(of_target)?;
        self.note_of_target(format!("a key of the tenant {tenant} is made"));
        Ok(key)
    }

    /// Revokes a key of [`Ctx::add_key`] while the gateway runs.
    ///
    /// # Errors
    /// As [`Ctx::add_key`].
    pub async fn revoke_key(&self, key: &IssuedKey) -> CaseResult {
        let (target, deployment) = self.of_operator()?;
        let revoked = target.revoke_key(&deployment, key).await;
        revoked.map_err(of_target)?;
        self.note_of_target(format!("the key {} is revoked", key.id));
        Ok(())
    }

    /// The target, and the deployment as an operator sees it: his way to the database does not lead
    /// through the wire, so that he reaches it while the gateway does not.
    fn of_operator(&self) -> Result<(&Arc<dyn Target>, Deployment), Failure> {
        let starter = self.starter()?;
        let mut deployment = starter.deployment.clone();
        if let Some(database) = &self.database {
            deployment.database_url = Some(database.url().to_string());
        }
        Ok((&starter.target, deployment))
    }

    fn note_of_target(&self, what: String) {
        self.tape.record(Side::Target, Event::Target { what });
    }

    fn starter(&self) -> Result<&Starter, Failure> {
        self.starter.as_ref().ok_or_else(|| Failure::NotRun {
            why: "several cases share this gateway, so that a case cannot start another one or \
                  change its keys"
                .into(),
        })
    }

    /// Returns the database of the case.
    ///
    /// # Errors
    /// [`Failure::Harness`] if the specification of the case needs no database.
    pub fn database(&self) -> Result<&CaseDatabase, Failure> {
        self.database.as_ref().ok_or_else(|| Failure::Harness {
            what: "the case uses a database, and its specification needs none".into(),
        })
    }

    /// Returns the wire in front of the database.
    ///
    /// # Errors
    /// [`Failure::Harness`] if the specification of the case does not need Postgres.
    pub fn database_wire(&self) -> Result<&DatabaseWire, Failure> {
        self.database_wire.as_ref().ok_or_else(|| Failure::Harness {
            what: "the case uses the wire of its database, and its specification does not need \
                   Postgres"
                .into(),
        })
    }

    /// Returns the process of the gateway. The case has to need [`Capability::Process`] or
    /// [`Capability::Drain`].
    ///
    /// # Errors
    /// [`Failure::NotRun`] if somebody else started the gateway.
    pub fn process(&self) -> Result<&dyn Process, Failure> {
        self.target
            .process
            .as_deref()
            .ok_or_else(|| Failure::NotRun {
                why: "somebody else started this gateway, so the harness cannot signal it".into(),
            })
    }

    /// Returns whether the target declares this capability, and has the optional aliases that are
    /// about it ([`crate::spec::ModelSpec::optional`]): a gateway at a URL may have no address for
    /// them. A case asks it for what only such a target can be held to, beyond the capabilities
    /// that the case needs.
    pub fn declares(&self, capability: Capability) -> bool {
        let has = match capability {
            Capability::Ollama => {
                let mut providers = self.spec.providers.iter();
                providers.any(|provider| provider.protocol == Protocol::OLLAMA)
            }
            Capability::Fallback => {
                let mut models = self.spec.models.iter();
                models.any(|model| model.candidates.len() > 1)
            }
            _ => true,
        };
        has && self.manifest.capabilities.contains(&capability)
    }

    /// Notes that the gateway, or what is around it, is in this state. A case that has shown it
    /// (the open breaker's provider was not asked) calls this; states that the tape shows need no
    /// call. See [`Case::reaches`].
    pub fn reached(&self, state: State) {
        self.states.note(state);
    }

    /// Notes that the case examines the instance of this name, which [`Case::instances`] lists.
    pub fn instance(&self, name: &str) {
        self.instances.examine(name);
    }

    /// Returns whether the target declares the capability that an instance needs. If it does, the
    /// instance is noted as examined, and otherwise as left out.
    pub fn instance_if(&self, needed: Capability, name: &str) -> bool {
        self.instance_where(self.declares(needed), name)
    }

    /// Returns whether an instance applies to the target, and notes it as examined if it does, and
    /// otherwise as left out. It is for what a target states beside its capabilities.
    pub fn instance_where(&self, applies: bool, name: &str) -> bool {
        if applies {
            self.instances.examine(name);
        } else {
            self.instances.leave_out(name);
        }
        applies
    }

    /// Returns whether the gateway has the alias, which an instance needs. If it has, the instance
    /// is noted as examined, and otherwise as left out; see [`crate::spec::ModelSpec::optional`].
    pub fn instance_at(&self, alias: &str, name: &str) -> bool {
        let has = self.spec.has_model(alias);
        if has {
            self.instances.examine(name);
        } else {
            self.instances.leave_out(name);
        }
        has
    }

    /// Examines an instance of the requirement, which [`Case::instances`] lists. The examination is
    /// boxed, so that a case of many instances stays small on the stack. Cancel safe if
    /// `examination` is.
    ///
    /// # Errors
    /// The failure of the examination; a violation names the instance.
    pub fn examine<'a>(
        &self,
        name: &'a str,
        examination: impl Future<Output = CaseResult> + Send + 'a,
    ) -> BoxFuture<'a, CaseResult> {
        self.instances.examine(name);
        let examination = Box::pin(examination);
        Box::pin(async move {
            let result = examination.await;
            result.map_err(|failure| failure.in_instance(name))
        })
    }

    /// Returns the stub of the provider of that name.
    ///
    /// # Errors
    /// [`Failure::Harness`] if the specification of the case has no such provider.
    pub fn stub(&self, name: &str) -> Result<&Stub, Failure> {
        self.stubs.get(name).ok_or_else(|| Failure::Harness {
            what: format!("the specification of the case has no provider {name}"),
        })
    }

    /// Returns a chat request for the alias, with one user message that holds `text` and the nonce
    /// of the case.
    pub fn prompt(&self, alias: &str, text: &str) -> serde_json::Value {
        let content = format!("{text} [{}]", self.nonce);
        serde_json::json!({
            "model": self.model(alias),
            "messages": [{ "role": "user", "content": content }],
        })
    }

    /// Returns the name under which clients ask for the alias; a gateway that several cases share
    /// has a prefix for each case.
    pub fn model(&self, alias: &str) -> String {
        self.target.model(alias)
    }
}

fn of_target(error: TargetError) -> Failure {
    Failure::Target {
        what: error.to_string(),
    }
}

/// One requirement of the catalogue, and how it is examined.
#[derive(Clone, Copy)]
pub struct Case {
    /// The id of the requirement, which is never used again for another one.
    pub id: &'static str,
    /// The weight of the requirement.
    pub level: Level,
    /// The surfaces that the requirement is about.
    pub profiles: &'static [Profile],
    /// The text of the catalogue.
    pub requirement: &'static str,
    /// Why the requirement matters: a real incident with its link, if there is one.
    pub why: &'static str,
    /// How the case examines it, in the order of time.
    pub shown: &'static str,
    /// What the maintainer of a failing gateway can do.
    pub remedy: &'static str,
    /// The capabilities that the target has to declare; otherwise the case is *not supported*.
    pub needs: &'static [Capability],
    /// The states that an examination must reach; one that passes without is *not exercised*.
    pub reaches: &'static [State],
    /// The ways in which the requirement is shown, such as `streamed, status 503`. A case that
    /// passes without having come to each of them is *not exercised*.
    pub instances: &'static [&'static str],
    /// What the gateway has to be configured with.
    pub spec: fn() -> Spec,
    /// The function that examines the gateway.
    pub run: &'static dyn Examination,
}

/// The function that examines a gateway: any `async fn(&Ctx) -> CaseResult`.
pub trait Examination: Sync {
    /// Examines the gateway of `ctx`. Cancel safe: dropping the future leaves the gateway as it is.
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

/// The bound of [`Examination`] for one lifetime, because an `async fn` returns another type of
/// future for each lifetime.
pub trait Examine<'a> {
    /// The future of the examination.
    type Examining: Future<Output = CaseResult> + Send + 'a;

    /// Starts the examination.
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
