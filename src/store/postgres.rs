//! What only Postgres has: its URL and session settings, its full-text search, its driver.

use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use futures::future::BoxFuture;
use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgQueryResult, PgRow};
use sqlx::{Connection, PgConnection, Postgres, SqlSafeStr};
use tokio::time::{Instant, timeout};

use super::StoreError;
use super::dialect::{self, Answer, Call, Dialect};
use super::migrate;
use super::pool::{Bounds, Connector, Pool};
use super::sql::SqlStore;
use crate::config::StoreConfig;

/// Connects to the database and brings its schema up to date.
pub(super) async fn open(config: &StoreConfig) -> Result<SqlStore<PostgresDialect>, StoreError> {
    let options = PgConnectOptions::from_str(config.url.expose_secret())
        .map_err(|error| StoreError::Failed(format!("store.url is not a Postgres URL: {error}")))?;
    let database = options.get_database().unwrap_or_default();
    let target = match options.get_socket() {
        Some(folder) => format!("Postgres at {}/{database}", folder.display()),
        None => {
            format!(
                "Postgres at {}:{}/{database}",
                options.get_host(),
                options.get_port()
            )
        }
    };
    // the server gives up a little earlier than this process, so that the usual timeout costs no
    // connection and nothing is written after its caller has had an error
    let statement = (config.statement_timeout * 9 / 10)
        .as_millis()
        .max(1)
        .to_string();
    let options = options
        .application_name("gauntlet")
        .options([("statement_timeout", statement)]);
    let bounds = Bounds {
        connections: config.max_connections,
        acquire: config.acquire_timeout,
        statement: config.statement_timeout,
    };

    let connector = Connector {
        options,
        target,
        file: None,
    };
    let mut connection = connector
        .connect(Instant::now() + bounds.acquire, bounds)
        .await?
        .connection;
    // a silent server is given up soon; a migration, here or in another replica, may take longer
    let current = migrate::postgres_is_current(&mut connection);
    if !migrate::within(bounds.statement, current).await? {
        let migration = migrate::postgres(&mut connection);
        migrate::within(migrate::MIGRATION_TIMEOUT, migration).await?;
    }
    let _ = timeout(bounds.statement, connection.close()).await;
    Ok(SqlStore {
        pool: Pool::new(connector, bounds)?,
        refuses_writes: AtomicBool::new(false),
        keeper: Mutex::new(None),
        close_within: bounds.statement,
    })
}

/// The statements and the driver of Postgres.
pub(super) struct PostgresDialect;

impl Dialect for PostgresDialect {
    const KIND: &'static str = "postgres";
    const ONE_WRITER: bool = false;
    // Postgres refuses to lock rows where it takes no writes, and there is none to lock.
    const PING: &'static str = "SELECT 1 FROM schema_migrations WHERE false FOR SHARE";
    const ADD_DOCUMENT: &'static [&'static str] = &["
        WITH document AS (
            INSERT INTO documents (id, tenant, title, text, created_at)
            VALUES ($1::text::uuid, $2, $3, $4, $5)
            ON CONFLICT (id) DO NOTHING RETURNING id, tenant)
        INSERT INTO passages (document, ordinal, tenant, text, terms)
        SELECT document.id, piece.ordinal, document.tenant, piece.value ->> 0, piece.value ->> 1
        FROM document,
             json_array_elements($6::text::json) WITH ORDINALITY AS piece (value, ordinal)"];
    // `ts_rank` does not know how rare a word is: in a long document the many passages with words
    // such as "the" would come before the one with the word that was asked for. So passages are
    // ordered by the rarity of their words among the passages that were found.
    const SEARCH: &'static str = "
        WITH found AS MATERIALIZED (
            SELECT document, ordinal, vector FROM passages
            WHERE tenant = $1 AND vector @@ $2::text::tsquery),
        asked AS MATERIALIZED (
            SELECT one.word::tsquery AS word,
                   ln(1 + (SELECT count(*) FROM found)::float8
                        / (SELECT 0.5 + count(*) FROM found WHERE vector @@ one.word::tsquery)
                   ) AS rarity
            FROM unnest(string_to_array($2::text, ' | ')) AS one (word)),
        best AS (
            SELECT document, ordinal,
                   (SELECT sum(rarity) FROM asked WHERE found.vector @@ asked.word) AS rarity,
                   ts_rank(vector, $2::text::tsquery) AS rank
            FROM found ORDER BY rarity DESC, rank DESC, document DESC, ordinal LIMIT $3)
        SELECT passages.document::text, passages.ordinal::bigint, documents.title,
               passages.text, passages.terms
        FROM best JOIN passages USING (document, ordinal)
        JOIN documents ON documents.id = passages.document
        ORDER BY best.rarity DESC, best.rank DESC, passages.document DESC, passages.ordinal";

    type Connection = PgConnection;
    type Row = PgRow;

    fn any_word(words: &[String]) -> String {
        words.join(" | ")
    }

    fn run<'c>(
        connection: &'c mut PgConnection,
        call: &'c Call<'_>,
    ) -> BoxFuture<'c, Result<Answer<PgRow>, sqlx::Error>> {
        Box::pin(async move {
            let mut answer = Answer::default();
            for sql in call.statements {
                dialect::run::<Postgres>(
                    connection,
                    sql.into_sql_str(),
                    &call.values,
                    PgQueryResult::rows_affected,
                    &mut answer,
                )
                .await?;
            }
            Ok(answer)
        })
    }
}
