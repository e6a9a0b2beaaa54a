//! The fixture of a case: the stubs, the database and the folder that exist before its gateway
//! starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt;
use indexmap::IndexMap;
use tempfile::TempDir;

use super::scratch;
use crate::database::{CaseDatabase, Database, End};
use crate::gate::{Gates, bounded, hang_guard};
use crate::llm::Stub;
use crate::spec::{DatabaseNeed, Spec};
use crate::subject::{Capability, Deployment, Target, fitted};
use crate::tape::Tape;
use crate::verdict::Failure;
use crate::wire::postgres::DatabaseWire;

/// Everything that a case needs before its gateway starts.
pub(super) struct CaseFixture {
    pub(super) id: String,
    pub(super) spec: Spec,
    pub(super) tape: Tape,
    pub(super) gates: Gates,
    pub(super) stubs: IndexMap<String, Stub>,
    pub(super) database: Option<CaseDatabase>,
    pub(super) wire: Option<DatabaseWire>,
    pub(super) database_url: Option<String>,
    pub(super) nonce: String,
    folder: TempDir,
}

impl CaseFixture {
    /// Binds the stubs and makes the database; all names begin with `name`.
    pub(super) async fn prepare(
        target: &Arc<dyn Target>,
        name: &str,
        spec: Spec,
        database: Option<&Database>,
    ) -> Result<Self, Failure> {
        let mut spec = target.adapted(fitted(target.as_ref(), spec));
        if !target
            .manifest()
            .capabilities
            .contains(&Capability::UrlCredentials)
        {
            spec.providers
                .iter_mut()
                .for_each(|provider| provider.userinfo = None);
        }
        let nonce = uuid::Uuid::new_v4().simple().to_string()[..12].to_string();
        let id = format!("{}-{nonce}", name.to_lowercase());
        let tape = Tape::new();
        let gates = Gates::new(tape.clone());
        let mut stubs = IndexMap::new();
        for provider in &spec.providers {
            let stub = Stub::builder(provider.protocol)
                .name(&provider.name)
                .tape(&tape)
                .gates(&gates)
                .wiremock();
            let stub = match target.listen(&provider.name) {
                Some(at) => stub
                    .at(at)
                    .start()
                    .await
                    .map_err(|error| occupied(at, error))?,
                None => stub.namespace(&id).start().await?,
            };
            stubs.insert(provider.name.clone(), stub);
        }
        let database = match (spec.database, database) {
            (DatabaseNeed::None, _) | (_, None) => None,
            (_, Some(database)) => Some(
                clone_of_template(target, &spec, database, &id)
                    .await?
                    .recorded(tape.clone()),
            ),
        };
        let wire = match (
            spec.database,
            database.as_ref().and_then(CaseDatabase::upstream),
        ) {
            (DatabaseNeed::Postgres, Some((host, port))) => {
                let bound =
                    DatabaseWire::bind(&format!("{host}:{port}"), tape.clone(), gates.clone())
                        .await;
                Some(bound.map_err(|error| Failure::Harness {
                    what: format!("the wire in front of Postgres finds no free port: {error}"),
                })?)
            }
            _ => None,
        };
        let url = database.as_ref().map(CaseDatabase::url);
        let database_url = url.map(|url| {
            wire.as_ref()
                .map_or_else(|| url.to_string(), |wire| wire.url(url))
        });
        let folder = scratch::folder()?;
        Ok(Self {
            id,
            spec,
            tape,
            gates,
            stubs,
            database,
            wire,
            database_url,
            nonce,
            folder,
        })
    }

    /// Returns the base URL of each provider, whose name gets the prefix.
    pub(super) fn endpoints(&self, prefix: &str) -> IndexMap<String, String> {
        let userinfo = |name: &str| {
            self.spec
                .providers
                .iter()
                .find(|provider| provider.name == name)?
                .userinfo
                .as_deref()
        };
        let base_url = |name: &str, stub: &Stub| match userinfo(name) {
            Some(user) => stub.base_url().replacen("://", &format!("://{user}@"), 1),
            None => stub.base_url(),
        };
        self.stubs
            .iter()
            .map(|(name, stub)| (format!("{prefix}{name}"), base_url(name, stub)))
            .collect()
    }

    /// Returns what a gateway of this case alone is started with.
    pub(super) fn deployment(&self) -> Deployment {
        Deployment {
            id: self.id.clone(),
            spec: self.spec.clone(),
            endpoints: self.endpoints(""),
            database_url: self.database_url.clone(),
            folder: self.folder.path().to_path_buf(),
            tape: self.tape.clone(),
        }
    }

    /// Opens all gates and drops the database.
    pub(super) async fn close(self) {
        self.into_folder().await;
    }

    /// Does what [`Self::close`] does, but keeps the folder with what was rendered for the gateway,
    /// whose path is returned.
    pub(super) async fn keep(self) -> PathBuf {
        scratch::keep(self.into_folder().await)
    }

    async fn into_folder(self) -> TempDir {
        self.gates.open_all();
        if let Some(database) = self.database {
            // a database that cannot be dropped now is removed at the end of the run
            let _ = database.finish(End::Drop).await;
        }
        self.folder
    }
}

fn occupied(at: SocketAddr, failure: Failure) -> Failure {
    match failure {
        Failure::Harness { what } => Failure::Target {
            what: format!(
                "{what}: {at} is not free; end the program that listens there, or give another \
                 address in [listen] of the target file"
            ),
        },
        other => other,
    }
}

/// Clones the database that the target has migrated once in this run; a target that keeps nothing
/// in it, or that is not a process, gets an empty database.
async fn clone_of_template(
    target: &Arc<dyn Target>,
    spec: &Spec,
    database: &Database,
    id: &str,
) -> Result<CaseDatabase, Failure> {
    let manifest = target.manifest();
    let migrates = [Capability::Process, Capability::Store];
    if !migrates
        .iter()
        .all(|need| manifest.capabilities.contains(need))
    {
        return Ok(database.case_database(id, None).await?);
    }
    let label = format!(
        "{} {}",
        manifest.name,
        manifest.version.as_deref().unwrap_or_default()
    );
    let (migrator, spec) = (Arc::clone(target), spec.clone());
    let template = database
        .template(&label, |url| {
            async move { migrate(migrator.as_ref(), spec, url).await }.boxed()
        })
        .await?;
    Ok(database.case_database(id, Some(&template)).await?)
}

/// Starts the target once on an empty database and ends it with SIGTERM: the database that it
/// leaves is the template. The gateway has the models of the first case that needs a database, and
/// default settings.
async fn migrate(target: &dyn Target, spec: Spec, url: String) -> Result<(), String> {
    let folder = scratch::folder().map_err(|failure| failure.to_string())?;
    let spec = Spec {
        providers: spec.providers,
        models: spec.models,
        query: spec.query,
        database: DatabaseNeed::Any,
        ..Spec::default()
    };
    let endpoints = spec
        .providers
        .iter()
        .map(|provider| (provider.name.clone(), "http://127.0.0.1:9/v1".to_string()))
        .collect();
    let deployment = Deployment {
        id: "template".into(),
        spec,
        endpoints,
        database_url: Some(url),
        folder: folder.path().to_path_buf(),
        tape: Tape::new(),
    };
    let running = target
        .start(deployment)
        .await
        .map_err(|error| error.to_string())?;
    let Some(process) = &running.process else {
        return Ok(());
    };
    process
        .terminate()
        .await
        .map_err(|error| error.to_string())?;
    match bounded(hang_guard(), process.wait()).await {
        Some(ended) => ended.map(|_| ()).map_err(|error| error.to_string()),
        None => Err(format!(
            "{} still runs {} s after SIGTERM",
            target.manifest().name,
            hang_guard().as_secs()
        )),
    }
}
