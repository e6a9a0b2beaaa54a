//! Databases for cases: the first of a URL, Docker, local binaries and SQLite; one database a case, cloned from a template.
//!
//! [`Database::resolve`] says which one it took and why, and what is therefore not run. Whatever it starts it stops:
//! [`Database::stop`] in order, a guard process (`crate::guard`) when the run itself is killed.

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
pub use faults::Held;

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
    /// Docker, else local binaries, else SQLite.
    #[default]
    Auto,
    /// A server that runs already; its role must be allowed to create databases.
    Url(String),
    /// Docker only.
    Docker,
    /// Local Postgres binaries only.
    Local,
    /// SQLite only.
    Sqlite,
}

impl FromStr for Choice {
    type Err = DatabaseError;

    /// Reads the value of `--database` or `GAUNTLET_DATABASE`; an empty one is none.
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
                "--database (GAUNTLET_DATABASE) takes `auto`, `docker`, `local`, `sqlite` or postgres://user@host/database, not {}",
                without_login(other)
            ))),
        }
    }
}

/// A value as it may be shown: without what may be a login, which ends at the last @, and without what follows a question mark.
fn without_login(value: &str) -> String {
    let (scheme, rest) = value
        .split_once("://")
        .map_or(("", value), |(scheme, _)| value.split_at(scheme.len() + 3));
    let (login, place) = rest
        .rsplit_once('@')
        .map_or(("", rest), |(_, place)| ("…@", place));
    format!(
        "`{scheme}{login}{}`",
        place.split('?').next().unwrap_or_default()
    )
}

/// What a run cannot do without; a fallback from it is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Require {
    /// Anything serves.
    #[default]
    Nothing,
    /// A Postgres, from wherever.
    Postgres,
    /// A Postgres in Docker.
    Docker,
}

impl Require {
    /// Reads `GAUNTLET_REQUIRE` (`docker`, `postgres`; empty or unset is nothing).
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

/// Which kind of database a case has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A real Postgres.
    Postgres,
    /// A file.
    Sqlite,
}

/// Why there is no database, or why something could not be done with it. Messages never name a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// An option is not understood.
    #[error("{0}")]
    Url(String),
    /// What was asked for is not to be had.
    #[error("{wanted} was asked for and is not to be had: {}", reasons.join("; "))]
    Missing {
        /// What was asked for.
        wanted: &'static str,
        /// What was tried, and why it failed.
        reasons: Vec<String>,
    },
    /// A statement or a connection of the harness failed.
    #[error("{what}: {reason}")]
    Sql {
        /// What the harness was about to do.
        what: String,
        /// The server's answer.
        reason: String,
    },
    /// The template could not be migrated by whoever owns the schema.
    #[error("the template database could not be migrated: {0}")]
    Migration(String),
    /// Only Postgres can do that.
    #[error("{0} needs Postgres, and this run has SQLite")]
    NotPostgres(&'static str),
    /// Nothing happened within the hang guard.
    #[error("{0}")]
    Hung(String),
    /// Files or programs.
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
                what: format!("the database: {other}"),
            },
        }
    }
}

/// The database of a run and how it came to be chosen. [`fmt::Display`] is the line for people.
pub struct Resolved {
    /// The database.
    pub database: Arc<Database>,
    /// What was taken: `Postgres 17.2 in Docker (postgres:17-alpine)`.
    pub taken: String,
    /// What was tried before, and why it was passed over.
    pub passed_over: Vec<String>,
    /// What is not run with this database, for people; `None` when everything is.
    pub not_run: Option<&'static str>,
}

impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.taken)?;
        if !self.passed_over.is_empty() {
            write!(f, ", because {}", self.passed_over.join("; "))?;
        }
        match self.not_run {
            Some(not_run) => write!(f, "; not run: {not_run}"),
            None => Ok(()),
        }
    }
}

/// The database of a run: a server or a folder, with the templates that cases are cloned from.
pub struct Database {
    server: Server,
    templates: Mutex<HashMap<String, Arc<OnceCell<Template>>>>,
}

#[allow(clippy::large_enum_variant, reason = "there is one in a run")]
enum Server {
    Postgres(Arc<Postgres>),
    Sqlite(Sqlite),
}

/// A migrated database from which cases are cloned.
#[derive(Clone, Debug)]
pub struct Template {
    /// The database's or the file's name.
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
    /// Takes the first database that is to be had, in the order of [`Choice`].
    ///
    /// # Errors
    /// [`DatabaseError::Missing`] when the choice or the requirement cannot be met, with everything that was tried.
    pub async fn resolve(choice: &Choice, require: Require) -> Result<Resolved, DatabaseError> {
        let mut passed_over = Vec::new();
        if let Choice::Url(url) = choice {
            if require == Require::Docker {
                let reasons = vec!["a URL was given".to_owned()];
                return Err(DatabaseError::Missing {
                    wanted: "a Postgres in Docker",
                    reasons,
                });
            }
            let server = Postgres::at(ServerUrl::parse(url)?).await?;
            return Ok(Resolved::postgres(
                server,
                |version, place| format!("Postgres {version} at {place}"),
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
                Err(reason) => passed_over.push(format!("Docker: {reason}")),
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
                Err(reason) => passed_over.push(format!("local Postgres: {reason}")),
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
            taken: "SQLite, a file a case".into(),
            passed_over,
            not_run: Some(
                "cases that need Postgres (cuts, locks, refused writes and restarts of the database, several replicas on one)",
            ),
        })
    }

    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match &self.server {
            Server::Postgres(_) => Kind::Postgres,
            Server::Sqlite(_) => Kind::Sqlite,
        }
    }

    /// The template of that label: made and migrated on the first call, once in a run, however many cases ask together.
    /// `migrate` gets the URL of an empty database and must have closed its connections when it returns.
    ///
    /// # Errors
    /// [`DatabaseError::Migration`] with `migrate`'s own words; the next call tries again.
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
        let hash: String = Sha256::digest(label.as_bytes())
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let name = match &self.server {
            Server::Postgres(server) => server.template(&hash, migrate).await?,
            Server::Sqlite(folder) => folder.template(&hash, migrate).await?,
        };
        Ok(Template { name })
    }

    /// A database for one case: a clone of the template, or an empty one.
    ///
    /// # Errors
    /// [`DatabaseError::Sql`] or [`DatabaseError::System`] when it cannot be made.
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

    /// Drops what cases left behind and the templates, and stops what was started. Later calls do nothing.
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
        let taken = taken(server.version(), &server.place());
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
