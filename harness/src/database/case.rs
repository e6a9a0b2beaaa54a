//! A case's own database: what the gateway connects to, and what the case looks at afterwards.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};

use super::postgres::{Postgres, bounded, quoted};
use super::sqlite::{self, Sqlite};
use super::{DatabaseError, Kind};
use crate::tape::{Event, Side, Tape};

/// A case's own database. It goes with [`CaseDatabase::finish`], or at the latest with the run's database.
pub struct CaseDatabase {
    name: String,
    url: String,
    pub(super) place: Place,
    pub(super) tape: Option<Tape>,
}

/// Where the database is.
pub(super) enum Place {
    Postgres(Arc<Postgres>),
    Sqlite(PathBuf),
}

impl fmt::Debug for CaseDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaseDatabase")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl CaseDatabase {
    pub(super) async fn postgres(
        server: Arc<Postgres>,
        case: &str,
        template: Option<&str>,
    ) -> Result<Self, DatabaseError> {
        let name = server.name(case);
        server.create(&name, template).await?;
        let (host, port) = server.address();
        Ok(Self {
            url: server.url(&name, host, port),
            name,
            place: Place::Postgres(server),
            tape: None,
        })
    }

    pub(super) async fn sqlite(
        folder: &Sqlite,
        case: &str,
        template: Option<&str>,
    ) -> Result<Self, DatabaseError> {
        let path = folder.create(case, template).await?;
        Ok(Self {
            name: path.display().to_string(),
            url: sqlite::url(&path),
            place: Place::Sqlite(path),
            tape: None,
        })
    }

    /// Records faults and locks on this tape from now on.
    #[must_use]
    pub fn recorded(mut self, tape: Tape) -> Self {
        self.tape = Some(tape);
        self
    }

    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self.place {
            Place::Postgres(_) => Kind::Postgres,
            Place::Sqlite(_) => Kind::Sqlite,
        }
    }

    /// The URL for the gateway, without the wire between. Holds a password on Postgres.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The database's name, or the file's path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Host and port of the Postgres server, for the wire in front of it; `None` on SQLite.
    pub fn upstream(&self) -> Option<(&str, u16)> {
        match &self.place {
            Place::Postgres(server) => Some(server.address()),
            Place::Sqlite(_) => None,
        }
    }

    /// The URL for a gateway that shall connect to something in front of Postgres, at this port of the loopback address.
    ///
    /// # Errors
    /// [`DatabaseError::NotPostgres`] on SQLite.
    pub fn url_through(&self, port: u16) -> Result<String, DatabaseError> {
        match &self.place {
            Place::Postgres(server) => Ok(server.url(&self.name, "127.0.0.1", port)),
            Place::Sqlite(_) => Err(DatabaseError::NotPostgres(
                "a wire in front of the database",
            )),
        }
    }

    /// How many rows a table has, seen by a session of the harness's own.
    ///
    /// # Errors
    /// [`DatabaseError::Sql`] when there is no such table.
    pub async fn count(&self, table: &str) -> Result<i64, DatabaseError> {
        self.scalar(&format!("SELECT count(*) FROM {}", quoted(table)))
            .await
    }

    /// The number that a statement of the case answers; `sql` is the case's own text, and must run on both databases.
    ///
    /// # Errors
    /// [`DatabaseError::Sql`] with the database's own words.
    pub async fn scalar(&self, sql: &str) -> Result<i64, DatabaseError> {
        let sql = AssertSqlSafe(format!("SELECT CAST(({sql}) AS bigint)"));
        match &self.place {
            Place::Postgres(server) => {
                let mut connection = server.admin_of(&self.name).await?;
                bounded(
                    "read the case's database",
                    sqlx::query_scalar(sql).fetch_one(&mut connection),
                )
                .await
            }
            Place::Sqlite(_) => {
                let mut connection = self.file().await?;
                bounded(
                    "read the case's database",
                    sqlx::query_scalar(sql).fetch_one(&mut connection),
                )
                .await
            }
        }
    }

    /// The first column, as text, of the rows that a statement of the case answers.
    ///
    /// # Errors
    /// [`DatabaseError::Sql`] with the database's own words.
    pub async fn texts(&self, sql: &str) -> Result<Vec<String>, DatabaseError> {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.place {
            Place::Postgres(server) => {
                let mut connection = server.admin_of(&self.name).await?;
                bounded(
                    "read the case's database",
                    sqlx::query_scalar(sql).fetch_all(&mut connection),
                )
                .await
            }
            Place::Sqlite(_) => {
                let mut connection = self.file().await?;
                bounded(
                    "read the case's database",
                    sqlx::query_scalar(sql).fetch_all(&mut connection),
                )
                .await
            }
        }
    }

    /// Ends the case: drops the database, or keeps it for a look and tells its URL.
    ///
    /// # Errors
    /// [`DatabaseError::Sql`] when it cannot be dropped; it then goes with the run.
    pub async fn finish(self, end: End) -> Result<Option<String>, DatabaseError> {
        match (&self.place, end) {
            (Place::Postgres(server), End::Drop) => {
                server.drop_database(&self.name).await.map(|()| None)
            }
            (Place::Postgres(server), End::Keep) => {
                server.keep(&self.name);
                Ok(Some(self.url.clone()))
            }
            (Place::Sqlite(path), End::Drop) => {
                sqlite::remove(path).await;
                Ok(None)
            }
            (Place::Sqlite(path), End::Keep) => Ok(Some(sqlite::url(&sqlite::keep(path).await?))),
        }
    }

    async fn file(&self) -> Result<sqlx::SqliteConnection, DatabaseError> {
        let options = SqliteConnectOptions::from_str(&self.url)
            .map_err(|error| DatabaseError::Url(error.to_string()))?;
        bounded("open the case's database", options.connect()).await
    }

    pub(super) fn note(&self, what: impl Into<String>) {
        if let Some(tape) = &self.tape {
            tape.record(Side::Database, Event::Database { what: what.into() });
        }
    }
}

/// What becomes of a case's database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is dropped.
    Drop,
    /// It is kept, for a look at what went wrong. A server that the harness started goes all the same.
    Keep,
}
