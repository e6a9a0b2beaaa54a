//! What only SQLite has: a file in WAL mode or a database in memory, its full-text search, one
//! writer at a time, its driver.
//!
//! Writes of this process queue in the pool, in order and within the acquire timeout; SQLite's own
//! busy timeout waits for another process.

use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use futures::future::BoxFuture;
use secrecy::ExposeSecret;
use sqlx::sqlite::{SqliteConnectOptions, SqliteQueryResult, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection, SqlSafeStr, SqlStr, Sqlite, SqliteConnection};
use tokio::time::{Instant, timeout};

use super::StoreError;
use super::dialect::{self, Answer, Call, Dialect};
use super::migrate;
use super::pool::{Bounds, Connector, Pool};
use super::sql::SqlStore;
use crate::config::StoreConfig;

/// Opens or creates the database and brings its schema up to date.
pub(super) async fn open(config: &StoreConfig) -> Result<SqlStore<SqliteDialect>, StoreError> {
    let url = config.url.expose_secret();
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| StoreError::Failed(format!("store.url is not a SQLite URL: {error}")))?
        .create_if_missing(true)
        .foreign_keys(true)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(config.statement_timeout / 2);
    let in_memory = url.contains(":memory:") || url.contains("mode=memory");
    let target = if in_memory {
        "SQLite in memory".to_owned()
    } else {
        format!("SQLite at {}", options.get_filename().display())
    };
    if !in_memory && let Some(folder) = options.get_filename().parent() {
        tokio::fs::create_dir_all(folder)
            .await
            .map_err(|error| StoreError::Unavailable(format!("{target}: {error}")))?;
    }
    let bounds = Bounds {
        // connections to one memory share a cache, and would lock each other out
        connections: if in_memory { 1 } else { config.max_connections },
        acquire: config.acquire_timeout,
        statement: config.statement_timeout,
    };

    let mut connector = Connector {
        options,
        target,
        file: None,
    };
    let mut connection = connector
        .connect(Instant::now() + bounds.acquire, bounds)
        .await?
        .connection;
    if !in_memory {
        write_ahead(&mut connection)
            .await
            .map_err(|error| super::error::classify(&error, bounds.statement))?;
    }
    let migration = migrate::sqlite(&mut connection);
    migrate::within(migrate::MIGRATION_TIMEOUT, migration).await?;
    let keeper = if in_memory {
        Some(connection)
    } else {
        let _ = timeout(bounds.statement, connection.close()).await;
        // A file that is removed later is an error: an empty database has no tables.
        connector.options = connector.options.create_if_missing(false);
        connector.file = Some(connector.options.get_filename().to_owned());
        None
    };
    Ok(SqlStore {
        pool: Pool::new(connector, bounds)?,
        refuses_writes: AtomicBool::new(false),
        keeper: Mutex::new(keeper),
        close_within: bounds.statement,
    })
}

/// Puts the database into WAL mode. The file keeps the mode, so that this happens once.
///
/// Where another process writes at the same moment, for example because it changes the mode too,
/// the call waits until that process is done; the busy timeout bounds the wait.
async fn write_ahead(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    while !try_write_ahead(connection).await? {
        sqlx::raw_sql("BEGIN EXCLUSIVE; COMMIT")
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Puts the database into WAL mode and returns `true`, or returns `false` where another process
/// writes.
///
/// SQLite begins the change as a reader and then becomes a writer. For that step it does not wait:
/// it fails at once with SQLITE_BUSY where there is another writer, whatever the busy timeout is.
async fn try_write_ahead(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&mut *connection)
        .await?;
    if mode == "wal" {
        return Ok(true);
    }
    match sqlx::raw_sql("PRAGMA journal_mode = WAL")
        .execute(&mut *connection)
        .await
    {
        // a file system without shared memory keeps another mode, which is slower and as safe
        Ok(_) => Ok(true),
        Err(error) if super::error::is_sqlite_busy(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The statements and the driver of SQLite.
pub(super) struct SqliteDialect;

impl Dialect for SqliteDialect {
    const KIND: &'static str = "sqlite";
    const ONE_WRITER: bool = true;
    const PING: &'static str = "SELECT 1";
    const ADD_DOCUMENT: &'static [&'static str] = &[
        "INSERT INTO documents (id, tenant, title, text, created_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (id) DO NOTHING",
        "INSERT INTO passages (document, ordinal, tenant, text, terms)
         SELECT $1, piece.key + 1, $2, piece.value ->> 0, piece.value ->> 1
         FROM json_each($6) AS piece WHERE true ON CONFLICT (document, ordinal) DO NOTHING",
    ];
    const SEARCH: &'static str = "
        SELECT passages.document, passages.ordinal, documents.title, passages.text, passages.terms
        FROM passages_terms
        JOIN passages ON passages.seq = passages_terms.rowid
        JOIN documents ON documents.id = passages.document
        WHERE passages_terms MATCH $2 AND passages.tenant = $1
        ORDER BY bm25(passages_terms), passages.document DESC, passages.ordinal
        LIMIT $3";

    type Connection = SqliteConnection;
    type Row = SqliteRow;

    fn any_word(words: &[String]) -> String {
        let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
        quoted.join(" OR ")
    }

    fn run<'c>(
        connection: &'c mut SqliteConnection,
        call: &'c Call<'_>,
    ) -> BoxFuture<'c, Result<Answer<SqliteRow>, sqlx::Error>> {
        Box::pin(async move {
            let mut answer = Answer::default();
            if let [sql] = call.statements {
                run(connection, sql, call, &mut answer).await?;
                return Ok(answer);
            }
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            for sql in call.statements {
                run(&mut transaction, sql, call, &mut answer).await?;
            }
            transaction.commit().await?;
            Ok(answer)
        })
    }
}

async fn run(
    connection: &mut SqliteConnection,
    sql: &'static str,
    call: &Call<'_>,
    answer: &mut Answer<SqliteRow>,
) -> Result<(), sqlx::Error> {
    let changed = SqliteQueryResult::rows_affected;
    dialect::run::<Sqlite>(
        connection,
        without_casts(sql),
        &call.values,
        changed,
        answer,
    )
    .await
}

/// Removes casts (`::type`), which SQLite does not know and does not need: its ids and JSON are
/// text.
fn without_casts(sql: &'static str) -> SqlStr {
    let mut parts = sql.split("::");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.trim_start_matches(|character: char| character.is_ascii_alphabetic()));
    }
    // every statement is a constant of this program
    AssertSqlSafe(text).into_sql_str()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_change_to_wal_mode_waits_for_another_writer() {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(folder.path().join("x.db"))
            .create_if_missing(true)
            .busy_timeout(Duration::from_secs(60));
        let mut writer = SqliteConnection::connect_with(&options).await.unwrap();
        let mut other = SqliteConnection::connect_with(&options).await.unwrap();
        let begin = sqlx::raw_sql("BEGIN IMMEDIATE; CREATE TABLE t (a)");
        begin.execute(&mut writer).await.unwrap();

        // SQLite refuses at once although it may wait for 60 s; that is no error of the store
        assert!(!try_write_ahead(&mut other).await.unwrap());
        let commit = sqlx::raw_sql("COMMIT").execute(&mut writer);
        let (changed, committed) = tokio::join!(write_ahead(&mut other), commit);
        changed.unwrap();
        committed.unwrap();
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
            .fetch_one(&mut other)
            .await
            .unwrap();
        assert_eq!(mode, "wal");
    }

    #[tokio::test]
    async fn a_file_that_is_removed_is_not_replaced_by_an_empty_database() {
        use crate::store::StoreHealth;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        let text = format!("[store]\nurl = \"sqlite://{}\"\n", path.display());
        let config = crate::config::Config::from_toml(&text).unwrap().store;
        let store = open(&config).await.unwrap();
        store.ping().await.unwrap();

        std::fs::remove_file(&path).unwrap();
        let error = store.ping().await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        assert!(!path.exists());

        let other = open(&config).await.unwrap();
        store.ping().await.unwrap();
        other.ping().await.unwrap();
    }

    #[test]
    fn sqlite_reads_a_statement_without_its_casts() {
        let sql = "SELECT id::text FROM t WHERE id = $2::text::uuid AND n = $10::bigint";
        let plain = "SELECT id FROM t WHERE id = $2 AND n = $10";
        assert_eq!(without_casts(sql).as_str(), plain);
        assert_eq!(without_casts(plain).as_str(), plain);
    }
}
