//! The databases of cases: each case has one of its own, cloned from a template. They come from a
//! server at a URL, from Docker, from Postgres binaries on this machine, or from SQLite.
//!
//! [`Database::resolve`] returns which of these it took and why, and which cases are therefore not
//! run. Whatever it starts is stopped by [`Database::stop`], or by a reaper process
//! (`crate::reaper`) if the run itself is killed.

mod case;
#[cfg(feature = "docker")]
mod docker;
mod faults;
mod local;
mod postgres;
mod sqlite;
mod url;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

pub use case::{CaseDatabase, End};
pub use faults::TableLock;

use crate::verdict::Failure;
use postgres::Postgres;
use sqlite::Sqlite;
use url::ServerUrl;

/// Stands for Docker in a build that cannot speak to it.
#[cfg(not(feature = "docker"))]
mod docker {
    pub(super) async fn start() -> Result<(super::Postgres, String), String> {
        Err("this build cannot start containers: build it with the feature `docker`".into())
    }
}

/// Which database a run asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Docker; without it Postgres binaries on this machine; without them SQLite.
    #[default]
    Auto,
    /// A server that runs already, at this URL; its role must be allowed to create databases.
    Url(String),
    /// Postgres in Docker, and nothing else.
    Docker,
    /// Postgres binaries on this machine, and nothing else.
    Local,
    /// SQLite, and nothing else.
    Sqlite,
}

impl FromStr for Choice {
    type Err = DatabaseError;

    /// Reads the value of `--database` or `GAUNTLET_DATABASE`; an empty value means `auto`.
    fn from_str(value: &str) -> Result<Self, DatabaseError> {
        match value {
            "" | "auto" => Ok(Self::Auto),
            "docker" => Ok(Self::Docker),
            "local" => Ok(Self::Local),
            "sqlite" => Ok(Self::Sqlite),
            url if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                Ok(Self::Url(url.to_owned()))
            }
            other => Err(DatabaseError::Url(format!(
                "--database (GAUNTLET_DATABASE) takes `auto`, `docker`, `local`, `sqlite` or \
                 postgres://user@host/database, not {}",
                without_login(other)
            ))),
        }
    }
}

/// Returns a value in a form that may be shown: without a login, which ends at the last `@`, and
/// without whatever follows a question mark.
fn without_login(value: &str) -> String {
    let (scheme, rest) = value
        .split_once("://")
        .map_or(("", value), |(scheme, _)| value.split_at(scheme.len() + 3));
    let (login, address) = rest
        .rsplit_once('@')
        .map_or(("", rest), |(_, address)| ("…@", address));
    format!(
        "`{scheme}{login}{}`",
        address.split('?').next().unwrap_or_default()
    )
}

/// The database that a run requires; if it is missing, that is an error, and no other is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Require {
    /// Any database will do.
    #[default]
    Nothing,
    /// A Postgres, from any source.
    Postgres,
    /// A Postgres in Docker.
    Docker,
}

impl Require {
    /// Reads `GAUNTLET_REQUIRE` (`docker` or `postgres`; empty or unset requires nothing).
    ///
    /// # Errors
    /// [`DatabaseError::Url`] for any other value.
    pub fn from_env() -> Result<Self, DatabaseError> {
        match std::env::var("GAUNTLET_REQUIRE").as_deref() {
            Err(_) | Ok("") => Ok(Self::Nothing),
            Ok(value) => value.parse(),
        }
    }
}

impl FromStr for Require {
    type Err = DatabaseError;

    /// Reads the value of `--require`.
    fn from_str(value: &str) -> Result<Self, DatabaseError> {
        match value {
            "docker" => Ok(Self::Docker),
            "postgres" => Ok(Self::Postgres),
            other => Err(DatabaseError::Url(format!(
                "`{other}` cannot be required: use `docker` or `postgres`"
            ))),
        }
    }
}

/// The kind of database that a case has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Postgres server.
    Postgres,
    /// An SQLite file.
    Sqlite,
}

/// Why there is no database, or why something could not be done with it. No message holds a
/// password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// An option has a value that it does not take.
    #[error("{0}")]
    Url(String),
    /// The database that was asked for is not available.
    #[error("{wanted} was asked for, and there is {}", reasons.join(" and "))]
    Missing {
        /// The database that was asked for.
        wanted: &'static str,
        /// What there is instead, or is not, as the end of a sentence: `no Docker (reason)`.
        reasons: Vec<String>,
    },
    /// A statement or a connection of the harness itself failed.
    #[error("{what}: {reason}")]
    Sql {
        /// What the harness could not do.
        what: String,
        /// The message of the database.
        reason: String,
    },
    /// The gateway, which owns the schema, could not migrate the template.
    #[error("the template database could not be migrated: {0}")]
    Migration(String),
    /// Only Postgres can do this.
    #[error("cannot {0}: this needs Postgres, and the run has SQLite")]
    NotPostgres(&'static str),
    /// Something that was awaited never happened within the hang guard.
    #[error("{0}")]
    Hung(String),
    /// A file or a program of this machine failed.
    #[error("{0}")]
    System(String),
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::NotPostgres(_) => Self::NotRun {
                why: error.to_string(),
            },
            other => Self::Harness {
                what: format!("the database of the case failed: {other}"),
            },
        }
    }
}

/// The database of a run, and how it was chosen. [`fmt::Display`] writes one line for people.
pub struct Resolved {
    /// The database.
    pub database: Arc<Database>,
    /// The database that was taken: `Postgres 17.2 in Docker (postgres:17-alpine)`.
    pub taken: String,
    /// The databases that were tried before it, as the end of a sentence: `no Docker (reason)`.
    pub passed_over: Vec<String>,
    /// The cases that are not run with this database, for people; `None` if all are.
    pub not_run: Option<&'static str>,
}

impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.taken)?;
        if !self.passed_over.is_empty() {
            write!(f, ", because there is {}", self.passed_over.join(" and "))?;
        }
        match self.not_run {
            Some(not_run) => write!(f, "; not run: {not_run}"),
            None => Ok(()),
        }
    }
}

/// The database of a run: a server or a folder, with the templates from which the databases of
/// cases are cloned.
pub struct Database {
    server: Server,
    templates: Mutex<HashMap<String, Arc<OnceCell<Template>>>>,
}

#[allow(clippy::large_enum_variant, reason = "there is one in a run")]
enum Server {
    Postgres(Arc<Postgres>),
    Sqlite(Sqlite),
}

/// A migrated database from which the databases of cases are cloned.
#[derive(Clone, Debug)]
pub struct Template {
    /// The name of the database or of the file.
    name: String,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
}

impl Database {
    /// Takes the first database that is available, in the order of [`Choice`]. Dropping the future
    /// stops what it has started.
    ///
    /// # Errors
    /// [`DatabaseError::Missing`] with everything that was tried, if the choice or the requirement
    /// cannot be met; [`DatabaseError::Url`] and [`DatabaseError::Sql`] for a URL that is wrong or
    /// whose server refuses the login.
    pub async fn resolve(choice: &Choice, require: Require) -> Result<Resolved, DatabaseError> {
        let mut passed_over = Vec::new();
        if let Choice::Url(url) = choice {
            if require == Require::Docker {
                let reasons = vec!["a server at a URL instead".to_owned()];
                return Err(DatabaseError::Missing {
                    wanted: "a Postgres in Docker",
                    reasons,
                });
            }
            let server = Postgres::at(ServerUrl::parse(url)?).await?;
            return Ok(Resolved::postgres(
                server,
                |version, address| format!("Postgres {version} at {address}"),
                passed_over,
            ));
        }
        if matches!(choice, Choice::Auto | Choice::Docker) {
            match docker::start().await {
                Ok((server, image)) => {
                    return Ok(Resolved::postgres(
                        server,
                        |version, _| format!("Postgres {version} in Docker ({image})"),
                        passed_over,
                    ));
                }
                Err(reason) => passed_over.push(format!("no Docker ({reason})")),
            }
        }
        if matches!(choice, Choice::Docker) || require == Require::Docker {
            return Err(DatabaseError::Missing {
                wanted: "a Postgres in Docker",
                reasons: passed_over,
            });
        }
        if matches!(choice, Choice::Auto | Choice::Local) {
            match local::start().await {
                Ok((server, binaries)) => {
                    return Ok(Resolved::postgres(
                        server,
                        |version, _| format!("local Postgres {version} ({binaries})"),
                        passed_over,
                    ));
                }
                Err(reason) => passed_over.push(format!("no local Postgres ({reason})")),
            }
        }
        if matches!(choice, Choice::Local) || require == Require::Postgres {
            return Err(DatabaseError::Missing {
                wanted: "a Postgres",
                reasons: passed_over,
            });
        }
        let database = Self {
            server: Server::Sqlite(Sqlite::new()?),
            templates: Mutex::default(),
        };
        Ok(Resolved {
            database: Arc::new(database),
            taken: "SQLite, one file for each case".into(),
            passed_over,
            not_run: Some(
                "cases that need Postgres (cut connections, locks, refused writes and restarts of the \
                 database, several replicas on one database)",
            ),
        })
    }

    /// Returns the kind of the database.
    pub fn kind(&self) -> Kind {
        match &self.server {
            Server::Postgres(_) => Kind::Postgres,
            Server::Sqlite(_) => Kind::Sqlite,
        }
    }

    /// Returns the template with that label. The first call makes and migrates it; further calls,
    /// also concurrent ones, wait for it. `migrate` gets the URL of an empty database, and must
    /// have closed its connections when it returns. Cancel safe: the next call makes the template.
    ///
    /// # Errors
    /// [`DatabaseError::Migration`] with the error of `migrate`; the next call tries again.
    pub async fn template<M>(&self, label: &str, migrate: M) -> Result<Template, DatabaseError>
    where
        M: FnOnce(String) -> BoxFuture<'static, Result<(), String>> + Send,
    {
        let cell = Arc::clone(
            self.templates
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(label.to_owned())
                .or_default(),
        );
        cell.get_or_try_init(|| self.make_template(label, migrate))
            .await
            .cloned()
    }

    async fn make_template<M>(&self, label: &str, migrate: M) -> Result<Template, DatabaseError>
    where
        M: FnOnce(String) -> BoxFuture<'static, Result<(), String>> + Send,
    {
        let mut hash = hex::encode(Sha256::digest(label));
        hash.truncate(12);
        let name = match &self.server {
            Server::Postgres(server) => server.template(&hash, migrate).await?,
            Server::Sqlite(folder) => folder.template(&hash, migrate).await?,
        };
        Ok(Template { name })
    }

    /// Makes the database of one case: a clone of the template, or an empty database.
    ///
    /// # Errors
    /// [`DatabaseError::Sql`] or [`DatabaseError::System`] if it cannot be made.
    pub async fn case_database(
        &self,
        name: &str,
        template: Option<&Template>,
    ) -> Result<CaseDatabase, DatabaseError> {
        let template = template.map(|template| template.name.as_str());
        match &self.server {
            Server::Postgres(server) => {
                CaseDatabase::postgres(Arc::clone(server), name, template).await
            }
            Server::Sqlite(folder) => CaseDatabase::sqlite(folder, name, template).await,
        }
    }

    /// Drops the templates and whatever cases left behind, and stops what was started. A second
    /// call does nothing.
    pub async fn stop(&self) {
        match &self.server {
            Server::Postgres(server) => server.stop().await,
            Server::Sqlite(folder) => folder.stop().await,
        }
    }
}

impl Resolved {
    fn postgres(
        server: Postgres,
        taken: impl FnOnce(&str, &str) -> String,
        passed_over: Vec<String>,
    ) -> Self {
        let taken = taken(server.version(), &server.location());
        let database = Database {
            server: Server::Postgres(Arc::new(server)),
            templates: Mutex::default(),
        };
        Self {
            database: Arc::new(database),
            taken,
            passed_over,
            not_run: None,
        }
    }
}
