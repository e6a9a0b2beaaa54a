//! The faults of a case's database. Each affects that database alone, can be undone, and needs
//! neither a container nor root.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};

use super::DatabaseError;
use super::case::{CaseDatabase, Location};
use super::postgres::{Postgres, Sessions, bounded, execute, quoted};
use crate::gate::{self, hang_guard, pace};

/// The time between two reads of the database.
const LOOK: Duration = Duration::from_millis(5);

/// A lock on a table, held by a session of the harness. Dropping it releases the lock.
pub struct TableLock {
    connection: PgConnection,
    table: String,
    tape: Option<crate::tape::Tape>,
}

impl std::fmt::Debug for TableLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableLock")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl TableLock {
    /// Releases the lock. When this returns, waiting statements go on.
    ///
    /// # Errors
    /// [`DatabaseError::Sql`] if the session has ended, and the lock with it.
    pub async fn release(mut self) -> Result<(), DatabaseError> {
        note(
            self.tape.as_ref(),
            format!("the lock on the table {} is released", self.table),
        );
        execute(&mut self.connection, "release a lock", "ROLLBACK".into()).await
    }
}

impl CaseDatabase {
    /// Ends every session of the gateway in this database, as a restart of the server does
    /// (SQLSTATE 57P01, then the connection closes), and returns their number.
    ///
    /// # Errors
    /// [`DatabaseError::NotPostgres`] on SQLite; [`DatabaseError::Sql`] and [`DatabaseError::Hung`]
    /// if the statement of the harness fails. Every fault here has these errors.
    pub async fn terminate_backends(&self) -> Result<u64, DatabaseError> {
        let server = self.server("end sessions")?;
        let ended = server.terminate(self.name(), Sessions::Gateways).await?;
        self.note(format!("the administrator ends its {ended} sessions"));
        Ok(ended)
    }

    /// Refuses new sessions (SQLSTATE 55000). Open sessions stay; [`Self::terminate_backends`] ends
    /// them.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn forbid_connections(&self) -> Result<(), DatabaseError> {
        self.alter("refuse new connections", "ALLOW_CONNECTIONS false")
            .await
    }

    /// Accepts new sessions again.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn allow_connections(&self) -> Result<(), DatabaseError> {
        self.alter("accept new connections again", "ALLOW_CONNECTIONS true")
            .await
    }

    /// Limits the number of concurrent sessions (SQLSTATE 53300 beyond it); -1 removes the limit.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn limit_connections(&self, limit: i32) -> Result<(), DatabaseError> {
        self.alter(
            "limit its connections",
            &format!("CONNECTION LIMIT {limit}"),
        )
        .await
    }

    /// Makes the database read-only, as a failover to a replica does (SQLSTATE 25006 on writes). It
    /// ends the sessions of the gateway, because new sessions alone are affected.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn read_only(&self) -> Result<(), DatabaseError> {
        self.alter("refuse writes", "SET default_transaction_read_only = on")
            .await?;
        self.terminate_backends().await.map(|_| ())
    }

    /// Accepts writes again in new sessions; sessions that began before stay read-only.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn read_write(&self) -> Result<(), DatabaseError> {
        self.alter("accept writes again", "RESET default_transaction_read_only")
            .await
    }

    /// Revokes the right to insert from the role of the gateway (SQLSTATE 42501).
    ///
    /// # Errors
    /// See [`Self::terminate_backends`]; also if the server let the run make no role, because a
    /// superuser needs no right.
    pub async fn revoke_insert(&self) -> Result<(), DatabaseError> {
        let role = quoted(self.server("revoke the right to insert")?.role());
        self.run(
            "revoke the right to insert",
            format!("REVOKE INSERT ON ALL TABLES IN SCHEMA public FROM {role}"),
        )
        .await
    }

    /// Grants the right to insert again.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn grant_insert(&self) -> Result<(), DatabaseError> {
        let role = quoted(self.server("grant the right to insert again")?.role());
        self.run(
            "grant the right to insert again",
            format!("GRANT INSERT ON ALL TABLES IN SCHEMA public TO {role}"),
        )
        .await
    }

    /// Revokes the right to read a table, or every table, from the role of the gateway (SQLSTATE
    /// 42501).
    ///
    /// # Errors
    /// See [`Self::revoke_insert`].
    pub async fn revoke_select(&self, table: Option<&str>) -> Result<(), DatabaseError> {
        let role = quoted(self.server("revoke the right to read")?.role());
        let tables = tables(table);
        self.run(
            "revoke the right to read",
            format!("REVOKE SELECT ON {tables} FROM {role}"),
        )
        .await
    }

    /// Grants the right to read a table, or every table, again.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn grant_select(&self, table: Option<&str>) -> Result<(), DatabaseError> {
        let role = quoted(self.server("grant the right to read again")?.role());
        let tables = tables(table);
        self.run(
            "grant the right to read again",
            format!("GRANT SELECT ON {tables} TO {role}"),
        )
        .await
    }

    /// Drops every table, so that the database is as empty as a new one.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn empty(&self) -> Result<(), DatabaseError> {
        let server = self.server("drop its tables")?;
        self.note("the harness makes it empty");
        let mut connection = server.admin_of(self.name()).await?;
        let sql = "DO $$ DECLARE name text; BEGIN
                     FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
                       EXECUTE format('DROP TABLE IF EXISTS public.%I CASCADE', name);
                     END LOOP; END $$";
        bounded(
            "drop its tables",
            sqlx::raw_sql(sql).execute(&mut connection),
        )
        .await
        .map(|_| ())
    }

    /// Makes each insert and update fail as on a full disk (SQLSTATE 53100), by a trigger on every
    /// table.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn disk_full(&self) -> Result<(), DatabaseError> {
        self.note("its disk is full from now on (SQLSTATE 53100)");
        let mut connection = self
            .server("report a full disk")?
            .admin_of(self.name())
            .await?;
        let sql = "CREATE OR REPLACE FUNCTION gauntlet_disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
                   BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
                   DO $$ DECLARE name text; BEGIN
                     FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
                       EXECUTE format('CREATE TRIGGER gauntlet_disk_full BEFORE INSERT OR UPDATE ON public.%I FOR EACH STATEMENT EXECUTE FUNCTION gauntlet_disk_full()', name);
                     END LOOP; END $$";
        bounded(
            "report a full disk",
            sqlx::raw_sql(sql).execute(&mut connection),
        )
        .await
        .map(|_| ())
    }

    /// Makes room on the disk again.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn disk_free(&self) -> Result<(), DatabaseError> {
        self.run(
            "report free space again",
            "DROP FUNCTION IF EXISTS gauntlet_disk_full() CASCADE".into(),
        )
        .await
    }

    /// Locks a table exclusively: statements on it wait until the lock is released.
    /// [`Self::until_waiting`] waits for such a statement.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn lock(&self, table: &str) -> Result<TableLock, DatabaseError> {
        let mut connection = self.server("lock a table")?.admin_of(self.name()).await?;
        execute(&mut connection, "begin a transaction", "BEGIN".into()).await?;
        execute(
            &mut connection,
            "lock a table",
            format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", quoted(table)),
        )
        .await?;
        self.note(format!("the table {table} is locked"));
        Ok(TableLock {
            connection,
            table: table.to_owned(),
            tape: self.tape.clone(),
        })
    }

    /// Returns how many sessions of the gateway wait for a lock in this database now.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn waiting(&self) -> Result<i64, DatabaseError> {
        self.sessions("wait_event_type = 'Lock'").await
    }

    /// Returns how many sessions the gateway has in this database now.
    ///
    /// # Errors
    /// See [`Self::terminate_backends`].
    pub async fn backends(&self) -> Result<i64, DatabaseError> {
        self.sessions("true").await
    }

    /// Waits until at least `count` sessions wait for a lock. Cancel safe.
    ///
    /// # Errors
    /// [`DatabaseError::Hung`] if they do not within the hang guard.
    pub async fn until_waiting(&self, count: i64) -> Result<(), DatabaseError> {
        self.until(&format!("{count} sessions wait for a lock"), |waiting| {
            waiting >= count
        })
        .await
    }

    /// Waits until no session waits for a lock, so that the server has answered or cancelled every
    /// statement. Cancel safe.
    ///
    /// # Errors
    /// [`DatabaseError::Hung`] if one still waits after the hang guard.
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
                "after {:?}, {waiting} sessions wait for a lock, instead of: {wanted}",
                hang_guard()
            ))),
        }
    }

    async fn sessions(&self, which: &str) -> Result<i64, DatabaseError> {
        let mut admin = self.server("count sessions")?.admin().await?;
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name <> 'gauntlet-harness' AND backend_type = 'client backend' AND {which}"
        );
        bounded(
            "count sessions",
            sqlx::query_scalar(AssertSqlSafe(sql))
                .bind(self.name())
                .fetch_one(&mut admin),
        )
        .await
    }

    /// Changes the database from another one, because it may refuse sessions.
    async fn alter(&self, what: &'static str, change: &str) -> Result<(), DatabaseError> {
        let mut admin = self.server(what)?.admin().await?;
        self.note(format!("the harness makes it {what}"));
        execute(
            &mut admin,
            what,
            format!("ALTER DATABASE {} {change}", self.name()),
        )
        .await
    }

    async fn run(&self, what: &'static str, sql: String) -> Result<(), DatabaseError> {
        let mut connection = self.server(what)?.admin_of(self.name()).await?;
        self.note(format!("the harness makes it {what}"));
        execute(&mut connection, what, sql).await
    }

    fn server(&self, what: &'static str) -> Result<&Postgres, DatabaseError> {
        match &self.location {
            Location::Postgres(server) => Ok(server),
            Location::Sqlite(_) => Err(DatabaseError::NotPostgres(what)),
        }
    }
}

/// A table, or every table, as SQL names them.
fn tables(table: Option<&str>) -> String {
    table.map_or("ALL TABLES IN SCHEMA public".into(), |table| {
        format!("public.{}", quoted(table))
    })
}

fn note(tape: Option<&crate::tape::Tape>, what: String) {
    if let Some(tape) = tape {
        tape.record(
            crate::tape::Side::Database,
            crate::tape::Event::Database { what },
        );
    }
}
