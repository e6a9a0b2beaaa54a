//! The database of one case: the gateway connects to it, and the case reads it afterwards.

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

/// The database of one case. [`CaseDatabase::finish`] removes it; otherwise the end of the run
/// does.
pub struct CaseDatabase {
    name: String,
    url: String,
    pub(super) location: Location,
    pub(super) tape: Option<Tape>,
}

/// Where the database is: in a Postgres server, or in a file.
pub(super) enum Location {
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
            location: Location::Postgres(server),
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
            location: Location::Sqlite(path),
            tape: None,
        })
    }

    /// Makes faults and locks appear on this tape from now on.
    #[must_use]
    pub fn recorded(mut self, tape: Tape) -> Self {
        self.tape = Some(tape);
        self
    }

    /// Returns the kind of the database.
    pub fn kind(&self) -> Kind {
        match self.location {
            Location::Postgres(_) => Kind::Postgres,
            Location::Sqlite(_) => Kind::Sqlite,
        }
    }

    /// Returns the URL for the gateway, without the wire in front of it. On Postgres it holds a
    /// password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the name of the database, or the path of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns host and port of the Postgres server, for the wire in front of it; `None` on SQLite.
    pub fn upstream(&self) -> Option<(&str, u16)> {
        match &self.location {
            Location::Postgres(server) => Some(server.address()),
            Location::Sqlite(_) => None,
        }
    }

    /// Returns the URL for a gateway that connects to a listener in front of Postgres, at this port
    /// of 127.0.0.1.
    ///
    /// # Errors
    /// [`DatabaseError::NotPostgres`] on SQLite.
    pub fn url_through(&self, port: u16) -> Result<String, DatabaseError> {
        match &self.location {
            Location::Postgres(server) => Ok(server.url(&self.name, "127.0.0.1", port)),
            Location::Sqlite(_) => Err(DatabaseError::NotPostgres(
                "put a wire in front of the database",
            )),
        }
    }

    /// Counts the rows of a table, in a session of the harness itself.
    ///
    /// # Errors
    /// [`DatabaseError::Sql`] if there is no such table.
    pub async fn count(&self, table: &str) -> Result<i64, DatabaseError> {
        self.scalar(&format!("SELECT count(*) FROM {}", quoted(table)))
            .await
    }

    /// Returns the number that a query of the case yields. `sql` is a constant text of the case
    /// that both kinds of database understand.
    ///
    /// # Errors
    /// [`DatabaseError::Sql`] with the message of the database.
    pub async fn scalar(&self, sql: &str) -> Result<i64, DatabaseError> {
        let sql = AssertSqlSafe(format!("SELECT CAST(({sql}) AS bigint)"));
        match &self.location {
            Location::Postgres(server) => {
                let mut connection = server.admin_of(&self.name).await?;
                bounded(
                    "read the database of the case",
                    sqlx::query_scalar(sql).fetch_one(&mut connection),
                )
                .await
            }
            Location::Sqlite(_) => {
                let mut connection = self.file().await?;
                bounded(
                    "read the database of the case",
                    sqlx::query_scalar(sql).fetch_one(&mut connection),
                )
                .await
            }
        }
    }

    /// Returns the first column, as text, of the rows that a query of the case yields.
    ///
    /// # Errors
    /// [`DatabaseError::Sql`] with the message of the database.
    pub async fn texts(&self, sql: &str) -> Result<Vec<String>, DatabaseError> {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.location {
            Location::Postgres(server) => {
                let mut connection = server.admin_of(&self.name).await?;
                bounded(
                    "read the database of the case",
                    sqlx::query_scalar(sql).fetch_all(&mut connection),
                )
                .await
            }
            Location::Sqlite(_) => {
                let mut connection = self.file().await?;
                bounded(
                    "read the database of the case",
                    sqlx::query_scalar(sql).fetch_all(&mut connection),
                )
                .await
            }
        }
    }

    /// Drops the database, or keeps it and returns its URL.
    ///
    /// # Errors
    /// [`DatabaseError::Sql`] if it cannot be dropped; the end of the run then removes it.
    pub async fn finish(self, end: End) -> Result<Option<String>, DatabaseError> {
        match (&self.location, end) {
            (Location::Postgres(server), End::Drop) => {
                server.drop_database(&self.name).await.map(|()| None)
            }
            (Location::Postgres(server), End::Keep) => {
                server.keep(&self.name);
                Ok(Some(self.url.clone()))
            }
            (Location::Sqlite(path), End::Drop) => {
                sqlite::remove(path).await;
                Ok(None)
            }
            (Location::Sqlite(path), End::Keep) => {
                Ok(Some(sqlite::url(&sqlite::keep(path).await?)))
            }
        }
    }

    async fn file(&self) -> Result<sqlx::SqliteConnection, DatabaseError> {
        let options = SqliteConnectOptions::from_str(&self.url)
            .map_err(|error| DatabaseError::Url(error.to_string()))?;
        bounded("open the database of the case", options.connect()).await
    }

    pub(super) fn note(&self, what: impl Into<String>) {
        if let Some(tape) = &self.tape {
            tape.record(Side::Database, Event::Database { what: what.into() });
        }
    }
}

/// What happens to the database of a case at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The database is dropped.
    Drop,
    /// The database is kept, so that a person can read it. A server that the harness started is
    /// stopped nevertheless, and its databases with it.
    Keep,
}
