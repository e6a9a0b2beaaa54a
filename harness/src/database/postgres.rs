//! The Postgres server of a run: its administrator, the role that gateways log in as, and the
//! databases that the run makes in it.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use uuid::Uuid;

use super::DatabaseError;
use super::url::ServerUrl;
use crate::gate::{self, pace};

/// The longest wait for one connection or statement of the harness itself.
const ADMIN: Duration = Duration::from_secs(30);
/// The time between two checks of a server that is starting.
const LOOK: Duration = Duration::from_millis(20);

/// A server that the harness started and has to stop.
#[async_trait]
pub(super) trait Owned: Send {
    /// Stops the server.
    async fn stop(self: Box<Self>);
}

/// Some of the sessions of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sessions {
    /// The sessions of gateways; those of the harness, which may hold a lock, are not among them.
    Gateways,
    /// Every session.
    All,
}

/// A Postgres server.
pub(super) struct Postgres {
    url: ServerUrl,
    /// The beginning of the names of everything that this run makes in the server.
    prefix: String,
    /// `role:password` of gateways. The role is no superuser, so that a revoked right takes effect.
    role: String,
    own_role: bool,
    /// Whether the harness started it.
    ours: bool,
    version: String,
    databases: Mutex<BTreeSet<String>>,
    owned: tokio::sync::Mutex<Option<Box<dyn Owned>>>,
}

impl Postgres {
    /// Logs in to a server that somebody else runs.
    pub async fn at(url: ServerUrl) -> Result<Self, DatabaseError> {
        Self::prepare(url, None).await
    }

    /// Logs in to a server that the harness started; if that fails, the server is stopped.
    pub async fn owned(url: ServerUrl, owned: Box<dyn Owned>) -> Result<Self, DatabaseError> {
        Self::prepare(url, Some(owned)).await
    }

    async fn prepare(url: ServerUrl, owned: Option<Box<dyn Owned>>) -> Result<Self, DatabaseError> {
        let prepared = async {
            let mut admin = connect(
                &url.admin(&url.database),
                &format!("log in to the database server at {url}"),
            )
            .await?;
            let version: String = bounded(
                "ask for the version",
                sqlx::query_scalar("SHOW server_version").fetch_one(&mut admin),
            )
            .await?;
            let run = Uuid::new_v4().simple().to_string();
            let prefix = format!("gauntlet_{}", &run[..10]);
            let password = Uuid::new_v4().simple().to_string();
            let create = format!(
                "CREATE ROLE {prefix} LOGIN PASSWORD '{password}'; GRANT {prefix} TO CURRENT_USER"
            );
            let own_role = execute(&mut admin, "make a role", create).await.is_ok();
            let role = if own_role {
                format!("{prefix}:{password}")
            } else {
                url.login.clone()
            };
            let _ = gate::bounded(ADMIN, admin.close()).await;
            Ok((version, prefix, role, own_role))
        };
        let (version, prefix, role, own_role) = match prepared.await {
            Ok(prepared) => prepared,
            Err(error) => {
                if let Some(owned) = owned {
                    owned.stop().await;
                }
                return Err(error);
            }
        };
        // "15.13 (Debian 15.13-0+deb12u1)"
        let version = version.split(' ').next().unwrap_or_default().to_owned();
        let (ours, owned) = (owned.is_some(), tokio::sync::Mutex::new(owned));
        Ok(Self {
            url,
            prefix,
            role,
            own_role,
            ours,
            version,
            databases: Mutex::default(),
            owned,
        })
    }

    /// Returns the version of the server.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns host, port and database of the server, for people.
    pub fn location(&self) -> String {
        self.url.to_string()
    }

    /// Returns host and port of the server.
    pub fn address(&self) -> (&str, u16) {
        (&self.url.host, self.url.port)
    }

    /// Returns the name of the role that gateways log in as.
    pub fn role(&self) -> &str {
        if self.own_role {
            &self.prefix
        } else {
            self.url.user()
        }
    }

    /// Returns the URL of a database for a gateway, at the server or at a listener in front of it.
    pub fn url(&self, database: &str, host: &str, port: u16) -> String {
        self.url.render(&self.role, host, port, database)
    }

    /// Makes a database and migrates it; see [`super::Database::template`].
    pub async fn template<M>(&self, hash: &str, migrate: M) -> Result<String, DatabaseError>
    where
        M: FnOnce(String) -> BoxFuture<'static, Result<(), String>> + Send,
    {
        let name = format!("{}_t{hash}", self.prefix);
        self.create(&name, None).await?;
        let (host, port) = self.address();
        let migrated = migrate(self.url(&name, host, port)).await;
        if let Err(reason) = migrated {
            self.drop_database(&name).await?;
            return Err(DatabaseError::Migration(reason));
        }
        // a database with an open connection cannot be cloned: remaining sessions of the migration
        // are ended, and no new one is let in
        let mut admin = self.admin().await?;
        execute(
            &mut admin,
            "close the template",
            format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"),
        )
        .await?;
        self.terminate(&name, Sessions::All).await?;
        Ok(name)
    }

    /// Makes a database that belongs to the role; cloning a template of some tables takes less than
    /// 100 ms.
    pub async fn create(&self, name: &str, template: Option<&str>) -> Result<(), DatabaseError> {
        // copying files needs a checkpoint, which is cheap on a server that does not flush: 15 ms
        // instead of 200 ms; a server of somebody else gets the default, which logs the copy
        let copies_files = self.ours
            && self
                .version
                .split('.')
                .next()
                .and_then(|major| major.parse::<u32>().ok())
                >= Some(15);
        let strategy = if copies_files {
            " STRATEGY file_copy"
        } else {
            ""
        };
        let template =
            template.map_or(String::new(), |template| format!(" TEMPLATE {template}")) + strategy;
        let mut admin = self.admin().await?;
        // noted before it is made: the server makes it even if this future is dropped, and dropping
        // a database that does not exist does no harm
        self.databases().insert(name.to_owned());
        execute(
            &mut admin,
            "make a database",
            format!(
                "CREATE DATABASE {name} OWNER {}{template}",
                quoted(self.role())
            ),
        )
        .await
    }

    /// Drops a database and ends its sessions.
    pub async fn drop_database(&self, name: &str) -> Result<(), DatabaseError> {
        let mut admin = self.admin().await?;
        execute(
            &mut admin,
            "drop a database",
            format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
        )
        .await?;
        self.databases().remove(name);
        Ok(())
    }

    /// Exempts a database from the clean-up, so that it outlives the run if its server does.
    pub fn keep(&self, name: &str) {
        self.databases().remove(name);
    }

    /// Makes a name for the database of a case, of letters, digits and underscores, with at most 63
    /// bytes.
    pub fn name(&self, case: &str) -> String {
        let unique = Uuid::new_v4().simple().to_string();
        let slug: String = case
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '_'
                }
            })
            .take(30)
            .collect();
        format!("{}_{slug}_{}", self.prefix, &unique[..8])
    }

    /// Opens an administrator's connection to the database of the URL, from which other databases
    /// can be closed and dropped.
    pub async fn admin(&self) -> Result<PgConnection, DatabaseError> {
        connect(
            &self.url.admin(&self.url.database),
            &format!("log in to the database server at {}", self.url),
        )
        .await
    }

    /// Opens an administrator's connection to a database.
    pub async fn admin_of(&self, database: &str) -> Result<PgConnection, DatabaseError> {
        connect(
            &self.url.admin(database),
            "log in to the database of the case",
        )
        .await
    }

    /// Ends sessions of a database and returns their number.
    pub async fn terminate(&self, database: &str, which: Sessions) -> Result<u64, DatabaseError> {
        let mut admin = self.admin().await?;
        let spared = match which {
            Sessions::All => "",
            Sessions::Gateways => "AND application_name <> 'gauntlet-harness'",
        };
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid() {spared}"
        );
        let ended = sqlx::query(AssertSqlSafe(sql))
            .bind(database)
            .execute(&mut admin);
        Ok(bounded("end the sessions of the database", ended)
            .await?
            .rows_affected())
    }

    /// Ends the statements of this run that still make a database although their callers were
    /// dropped, until none is left.
    async fn end_making(&self) -> Result<(), DatabaseError> {
        let mut admin = self.admin().await?;
        loop {
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'active' AND starts_with(query, $1)";
            let ended = sqlx::query(sql)
                .bind(format!("CREATE DATABASE {}", self.prefix))
                .execute(&mut admin);
            if bounded("look for statements that make a database", ended)
                .await?
                .rows_affected()
                == 0
            {
                return Ok(());
            }
            pace(LOOK).await;
        }
    }

    /// Stops a server that the harness started; in another server, drops what the run made.
    pub async fn stop(&self) {
        if let Some(owned) = self.owned.lock().await.take() {
            return owned.stop().await;
        }
        if let Some(Err(error)) = gate::bounded(ADMIN, self.end_making()).await {
            tracing::warn!(%error, "a database of the run may be left behind");
        }
        let left: Vec<String> = self.databases().iter().cloned().collect();
        for name in left {
            if let Err(error) = self.drop_database(&name).await {
                tracing::warn!(%error, name, "a database of the run is left behind");
            }
        }
        if self.own_role {
            let dropped = async {
                execute(
                    &mut self.admin().await?,
                    "drop the role",
                    format!("DROP ROLE IF EXISTS {}", self.prefix),
                )
                .await
            };
            if let Err(error) = dropped.await {
                tracing::warn!(%error, role = self.prefix, "the role of the run is left behind");
            }
        }
    }

    fn databases(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.databases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the server answers a statement. `dead` returns a reason as soon as the server is
/// known to have ended. The error is a reason for people. Cancel safe.
pub(super) async fn ready(
    url: &ServerUrl,
    bound: Duration,
    dead: impl Fn() -> Option<String>,
) -> Result<(), String> {
    let mut last = String::new();
    let answer = async {
        loop {
            match connect(&url.admin("postgres"), "log in").await {
                Ok(_) => return Ok(()),
                Err(error) => last = error.to_string(),
            }
            if let Some(reason) = dead() {
                return Err(reason);
            }
            pace(LOOK).await;
        }
    };
    match gate::bounded(bound, answer).await {
        Some(answer) => answer,
        None => Err(format!(
            "the server at {url} gave no answer within {bound:?} ({last})"
        )),
    }
}

/// Runs statements of the harness itself, separated by `; `. `sql` holds names that the harness
/// made, and no text from outside.
pub(super) async fn execute(
    connection: &mut PgConnection,
    what: &str,
    sql: String,
) -> Result<(), DatabaseError> {
    // several statements in one call are a transaction, in which CREATE DATABASE does not run
    for statement in sql.split("; ") {
        bounded(
            what,
            sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *connection),
        )
        .await?;
    }
    Ok(())
}

/// Waits for a statement of the harness itself, for at most 30 s.
pub(super) async fn bounded<T>(
    what: &str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, DatabaseError> {
    match gate::bounded(ADMIN, statement).await {
        Some(result) => result.map_err(|error| DatabaseError::Sql {
            what: format!("cannot {what}"),
            reason: error.to_string(),
        }),
        None => Err(DatabaseError::Hung(format!(
            "cannot {what}: the database gave no answer within {ADMIN:?}"
        ))),
    }
}

/// Quotes an identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

async fn connect(url: &str, what: &str) -> Result<PgConnection, DatabaseError> {
    let options = PgConnectOptions::from_str(url).map_err(|_| {
        DatabaseError::Url(
            "the URL of the database is not valid; give postgres://user:password@host:port/database"
                .into(),
        )
    })?;
    bounded(what, options.application_name("gauntlet-harness").connect()).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::local;
    use super::*;

    #[tokio::test]
    async fn a_database_is_dropped_although_its_creation_was_cancelled() {
        let ours = match local::start().await {
            Ok((server, _)) => server,
            Err(reason) => return println!("not run: {reason}"),
        };
        let run = Postgres::at(ours.url.clone()).await.unwrap();
        let (mut admin, mut looking) = (ours.admin().await.unwrap(), ours.admin().await.unwrap());
        execute(
            &mut admin,
            "lock",
            "BEGIN; LOCK TABLE pg_database IN SHARE MODE".into(),
        )
        .await
        .unwrap();
        let name = run.name("interrupted");
        let mut making = Box::pin(run.create(&name, None));
        let waiting = async {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND starts_with(query, 'CREATE DATABASE')";
            while sqlx::query_scalar::<_, i64>(sql)
                .fetch_one(&mut looking)
                .await
                .unwrap()
                == 0
            {
                pace(LOOK).await;
            }
        };
        tokio::select! {
            made = &mut making => unreachable!("{made:?}"),
            waited = gate::guard("hang.statement", "a statement that waits", waiting) => waited.unwrap(),
        }
        drop(making);
        let (_, unlocked) =
            tokio::join!(run.stop(), execute(&mut admin, "unlock", "ROLLBACK".into()));
        unlocked.unwrap();
        let left =
            sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pg_database WHERE datname = $1")
                .bind(&name)
                .fetch_one(&mut admin);
        assert_eq!(left.await.unwrap(), 0);
        ours.stop().await;
    }
}
