//! The schema: numbered migrations, each applied once, all in one transaction, under a lock.
//!
//! Replicas that start together wait for each other: on an advisory lock of Postgres, on the write
//! lock of SQLite. A schema that is up to date is only read, so that a read-only database serves.
//! sqlx's own migrator takes no lock on SQLite.

use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use super::StoreError;
use super::error::classify;

/// The longest time that migrating may take, the wait for another replica included.
pub(super) const MIGRATION_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest wait for another replica that migrates.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// One step of the schema.
struct Migration {
    version: i64,
    name: &'static str,
    sql: &'static str,
}

impl Migration {
    /// The statements of the step and the record of it, as both databases read them. Every part of
    /// it is this program's own.
    fn script(&self) -> String {
        let Self { version, name, sql } = self;
        let checksum = checksum(sql);
        format!(
            "{sql};\nINSERT INTO schema_migrations (version, name, checksum)
             VALUES ({version}, '{name}', '{checksum}')"
        )
    }
}

const POSTGRES: &[Migration] = &[Migration {
    version: 1,
    name: "documents_queries_keys",
    sql: include_str!("migrations/postgres/0001_documents_queries_keys.sql"),
}];

const SQLITE: &[Migration] = &[Migration {
    version: 1,
    name: "documents_queries_keys",
    sql: include_str!("migrations/sqlite/0001_documents_queries_keys.sql"),
}];

/// The key of the advisory lock, the same in every replica ("gauntlet" in ASCII).
const LOCK: i64 = 0x6761_756e_746c_6574;

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub(super) enum MigrateError {
    /// The database's own error.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// An applied migration is not the one that this program knows.
    #[error(
        "migration {version} ({name}) in this database differs from the one in this program: \
         another version made it; use another database, or the program that made this one"
    )]
    Changed { version: i64, name: &'static str },
}

/// Runs a part of a migration within a bound.
pub(super) async fn within<T>(
    bound: Duration,
    migration: impl Future<Output = Result<T, MigrateError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(bound, migration).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(MigrateError::Sql(error))) => Err(classify(&error, bound)),
        Ok(Err(error)) => Err(StoreError::Failed(error.to_string())),
        Err(_) => Err(StoreError::Timeout(bound)),
    }
}

/// Returns whether a Postgres database is up to date.
pub(super) async fn postgres_is_current(
    connection: &mut PgConnection,
) -> Result<bool, MigrateError> {
    let known: bool = sqlx::query_scalar("SELECT to_regclass('schema_migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    Ok(known && pending(POSTGRES, &postgres_applied(connection).await?)?.is_empty())
}

/// Brings a Postgres database up to date.
pub(super) async fn postgres(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let mut transaction = connection.begin().await?;
    // a migration may take longer than a request's statement: only the wait for the lock is bounded
    let bounds = format!(
        "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {}",
        LOCK_TIMEOUT.as_millis()
    );
    sqlx::raw_sql(AssertSqlSafe(bounds))
        .execute(&mut *transaction)
        .await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(&mut *transaction)
        .await?;
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS schema_migrations (
             version bigint PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
             applied_at timestamptz NOT NULL DEFAULT now())",
    )
    .execute(&mut *transaction)
    .await?;
    let applied = postgres_applied(&mut transaction).await?;
    for migration in pending(POSTGRES, &applied)? {
        sqlx::raw_sql(AssertSqlSafe(migration.script()))
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Brings a SQLite database up to date. The connection's busy timeout bounds the wait for another
/// process that migrates.
pub(super) async fn sqlite(connection: &mut SqliteConnection) -> Result<(), MigrateError> {
    let known: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'schema_migrations')",
    )
    .fetch_one(&mut *connection)
    .await?;
    if known && pending(SQLITE, &sqlite_applied(connection).await?)?.is_empty() {
        return Ok(());
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS schema_migrations (
             version INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL,
             applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)",
    )
    .execute(&mut *transaction)
    .await?;
    let applied = sqlite_applied(&mut transaction).await?;
    for migration in pending(SQLITE, &applied)? {
        sqlx::raw_sql(AssertSqlSafe(migration.script()))
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// The version and the checksum of each migration that was applied.
type Applied = Vec<(i64, String)>;

const APPLIED: &str = "SELECT version, checksum FROM schema_migrations";

async fn postgres_applied(connection: &mut PgConnection) -> Result<Applied, sqlx::Error> {
    sqlx::query_as(APPLIED).fetch_all(connection).await
}

async fn sqlite_applied(connection: &mut SqliteConnection) -> Result<Applied, sqlx::Error> {
    sqlx::query_as(APPLIED).fetch_all(connection).await
}

/// Returns the migrations that are yet to be applied, in order. A version that this program does
/// not know belongs to a newer replica and is left alone.
fn pending(
    all: &'static [Migration],
    applied: &Applied,
) -> Result<Vec<&'static Migration>, MigrateError> {
    let mut pending = Vec::new();
    for migration in all {
        let found = applied
            .iter()
            .find(|(version, _)| *version == migration.version);
        match found {
            None => pending.push(migration),
            Some((_, sum)) if *sum == checksum(migration.sql) => {}
            Some(_) => {
                return Err(MigrateError::Changed {
                    version: migration.version,
                    name: migration.name,
                });
            }
        }
    }
    Ok(pending)
}

fn checksum(sql: &str) -> String {
    hex::encode(Sha256::digest(sql.as_bytes()))
}
