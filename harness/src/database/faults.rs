//! Faults of a case's own database that need no image and no root: each touches that database alone, and can be taken back.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};

use super::DatabaseError;
use super::case::{CaseDatabase, Place};
use super::postgres::{Postgres, Sessions, bounded, execute, quoted};
use crate::gate::{self, hang_guard, pace};

/// Between two looks at the database.
const LOOK: Duration = Duration::from_millis(5);

/// A lock on a table, held by a session of the harness. Dropping it releases the lock.
pub struct Held {
    connection: PgConnection,
    table: String,
    tape: Option<crate::tape::Tape>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl Held {
    /// Releases the lock; when it returns, waiting statements go on.
    ///
    /// # Errors
    /// [`DatabaseError::Sql`] when the session is gone, and the lock with it.
    pub async fn release(mut self) -> Result<(), DatabaseError> {
        note(
            self.tape.as_ref(),
            format!("the lock on {} is released", self.table),
        );
        execute(&mut self.connection, "release a lock", "ROLLBACK".into()).await
    }
}

impl CaseDatabase {
    /// Ends every session of the gateway in this database, as a restart does (57P01, then the connection closes). How many.
    ///
    /// # Errors
    /// [`DatabaseError::NotPostgres`] on SQLite, as for every fault here.
    pub async fn terminate_backends(&self) -> Result<u64, DatabaseError> {
        let server = self.server("ending sessions")?;
        let ended = server.terminate(self.name(), Sessions::Gateways).await?;
        self.note(format!("{ended} sessions ended by the administrator"));
        Ok(ended)
    }

    /// Lets no new session in (55000). Sessions that exist stay: end them with [`Self::terminate_backends`].
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn forbid_connections(&self) -> Result<(), DatabaseError> {
        self.alter("forbidding connections", "ALLOW_CONNECTIONS false")
            .await
    }

    /// Lets sessions in again.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn allow_connections(&self) -> Result<(), DatabaseError> {
        self.alter("allowing connections", "ALLOW_CONNECTIONS true")
            .await
    }

    /// Lets that many sessions in at once (53300); -1 lifts the limit.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn limit_connections(&self, limit: i32) -> Result<(), DatabaseError> {
        self.alter("limiting connections", &format!("CONNECTION LIMIT {limit}"))
            .await
    }

    /// Makes the database read-only, as a fail-over to a replica does (25006 on writes): ends the gateway's sessions so that new
    /// ones feel it.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn read_only(&self) -> Result<(), DatabaseError> {
        self.alter(
            "making it read-only",
            "SET default_transaction_read_only = on",
        )
        .await?;
        self.terminate_backends().await.map(|_| ())
    }

    /// Takes writes again, in sessions that begin from now on: those that began before stay read-only for as long as they are kept.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn read_write(&self) -> Result<(), DatabaseError> {
        self.alter("making it writable", "RESET default_transaction_read_only")
            .await
    }

    /// Takes the right to insert from the gateway's role (42501).
    ///
    /// # Errors
    /// See [`Self::terminate_backends`]; also when the server let us make no role, since a superuser feels no right.
    pub async fn revoke_insert(&self) -> Result<(), DatabaseError> {
        let role = quoted(self.server("revoking a right")?.role());
        self.run(
            "revoking INSERT",
            format!("REVOKE INSERT ON ALL TABLES IN SCHEMA public FROM {role}"),
        )
        .await
    }

    /// Gives the right to insert back.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn grant_insert(&self) -> Result<(), DatabaseError> {
        let role = quoted(self.server("granting a right")?.role());
        self.run(
            "granting INSERT",
            format!("GRANT INSERT ON ALL TABLES IN SCHEMA public TO {role}"),
        )
        .await
    }

    /// Answers each insert and update as a full disk does (53100), by a trigger on every table.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn disk_full(&self) -> Result<(), DatabaseError> {
        self.note("the disk is full (53100)");
        let mut connection = self.server("a full disk")?.admin_of(self.name()).await?;
        let sql = "CREATE OR REPLACE FUNCTION gauntlet_disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
                   BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
                   DO $$ DECLARE name text; BEGIN
                     FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
                       EXECUTE format('CREATE TRIGGER gauntlet_disk_full BEFORE INSERT OR UPDATE ON public.%I FOR EACH STATEMENT EXECUTE FUNCTION gauntlet_disk_full()', name);
                     END LOOP; END $$";
        bounded("fill the disk", sqlx::raw_sql(sql).execute(&mut connection))
            .await
            .map(|_| ())
    }

    /// Makes room again.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn disk_free(&self) -> Result<(), DatabaseError> {
        self.run(
            "making room on the disk",
            "DROP FUNCTION IF EXISTS gauntlet_disk_full() CASCADE".into(),
        )
        .await
    }

    /// Locks a table against everybody: statements on it wait until the lock is released. Also a sync point: see
    /// [`Self::waiting`].
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn lock(&self, table: &str) -> Result<Held, DatabaseError> {
        let mut connection = self
            .server("locking a table")?
            .admin_of(self.name())
            .await?;
        execute(&mut connection, "begin", "BEGIN".into()).await?;
        execute(
            &mut connection,
            "lock a table",
            format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", quoted(table)),
        )
        .await?;
        self.note(format!("{table} is locked"));
        Ok(Held {
            connection,
            table: table.to_owned(),
            tape: self.tape.clone(),
        })
    }

    /// How many of the gateway's sessions wait for a lock in this database now.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn waiting(&self) -> Result<i64, DatabaseError> {
        self.sessions("wait_event_type = 'Lock'").await
    }

    /// How many sessions the gateway has in this database now.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn backends(&self) -> Result<i64, DatabaseError> {
        self.sessions("true").await
    }

    /// Waits until at least that many sessions wait for a lock.
    ///
    /// # Errors
    /// [`DatabaseError::Hung`] when they never do.
    pub async fn until_waiting(&self, count: i64) -> Result<(), DatabaseError> {
        self.until(&format!("{count} sessions wait for a lock"), |waiting| {
            waiting >= count
        })
        .await
    }

    /// Waits until no session waits for a lock: every statement was answered, or given up by the server.
    ///
    /// # Errors
    /// [`DatabaseError::Hung`] when one always does.
    pub async fn until_none_waits(&self) -> Result<(), DatabaseError> {
        self.until("no session waits for a lock", |waiting| waiting == 0)
            .await
    }

    async fn until(&self, wanted: &str, holds: impl Fn(i64) -> bool) -> Result<(), DatabaseError> {
        let mut waiting = 0;
        let so = async {
            loop {
                waiting = self.waiting().await?;
                if holds(waiting) {
                    return Ok(());
                }
                pace(LOOK).await;
            }
        };
        match gate::bounded(hang_guard(), so).await {
            Some(so) => so.map(|()| self.note(wanted)),
            None => Err(DatabaseError::Hung(format!(
                "{waiting} sessions wait for a lock after {:?}; wanted: {wanted}",
                hang_guard()
            ))),
        }
    }

    async fn sessions(&self, which: &str) -> Result<i64, DatabaseError> {
        let mut admin = self.server("looking at sessions")?.admin().await?;
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name <> 'gauntlet-harness' AND backend_type = 'client backend' AND {which}"
        );
        bounded(
            "look at the sessions",
            sqlx::query_scalar(AssertSqlSafe(sql))
                .bind(self.name())
                .fetch_one(&mut admin),
        )
        .await
    }

    /// Changes the database from outside, since it may let nobody in.
    async fn alter(&self, what: &'static str, change: &str) -> Result<(), DatabaseError> {
        let mut admin = self.server(what)?.admin().await?;
        self.note(what);
        execute(
            &mut admin,
            what,
            format!("ALTER DATABASE {} {change}", self.name()),
        )
        .await
    }

    async fn run(&self, what: &'static str, sql: String) -> Result<(), DatabaseError> {
        let mut connection = self.server(what)?.admin_of(self.name()).await?;
        self.note(what);
        execute(&mut connection, what, sql).await
    }

    fn server(&self, what: &'static str) -> Result<&Postgres, DatabaseError> {
        match &self.place {
            Place::Postgres(server) => Ok(server),
            Place::Sqlite(_) => Err(DatabaseError::NotPostgres(what)),
        }
    }
}

fn note(tape: Option<&crate::tape::Tape>, what: String) {
    if let Some(tape) = tape {
        tape.record(
            crate::tape::Side::Database,
            crate::tape::Event::Database { what },
        );
    }
}
