//! The store on Postgres. Every change is one statement, so that a cut connection leaves everything or nothing.

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::ExposeSecret;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::migrate::{self, MigrateError};
use super::pool::{Bounds, Idempotent, Pool};
use super::row::{document, found, key_record, page, query_record};
use super::text::{CANDIDATES, pieces, query_words, rank};
use super::{
    Document, Documents, KeyRecord, Keys, Listing, NewDocument, Page, Passage, Queries,
    QueryRecord, Store, StoreError, StoreHealth, now,
};
use crate::config::StoreConfig;

/// How long a replica waits for another one that migrates.
const MIGRATION_WAIT: Duration = Duration::from_secs(60);

/// The store on Postgres.
pub(super) struct PostgresStore {
    pool: Pool<PgConnection>,
}

impl PostgresStore {
    /// Connects and migrates.
    pub async fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(config.url.expose_secret()).map_err(|error| {
            StoreError::Failed(format!("store.url is not a Postgres URL: {error}"))
        })?;
        let target = match options.get_socket() {
            Some(folder) => format!(
                "Postgres at {}/{}",
                folder.display(),
                options.get_database().unwrap_or_default()
            ),
            None => format!(
                "Postgres at {}:{}/{}",
                options.get_host(),
                options.get_port(),
                options.get_database().unwrap_or_default()
            ),
        };
        // the server gives up a little earlier than we do, so that the usual time-out costs no connection and nothing is
        // written after its caller has been told that it failed
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

        let mut connection = Pool::<PgConnection>::single(&options, &target, bounds).await?;
        // a silent server is given up soon; a migration, or another replica's, may take its time
        if !bounded(
            bounds.statement,
            migrate::postgres_is_current(&mut connection),
        )
        .await?
        {
            bounded(
                MIGRATION_WAIT * 2,
                migrate::postgres(&mut connection, MIGRATION_WAIT),
            )
            .await?;
        }
        // the pool opens its own when it needs them
        let _ = tokio::time::timeout(bounds.statement, connection.close()).await;
        Ok(Self {
            pool: Pool::new(options, target, bounds),
        })
    }
}

#[async_trait]
impl StoreHealth for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    sqlx::query("SELECT 1")
                        .execute(connection)
                        .await
                        .map(|_| ())
                })
            })
            .await
    }
}

#[async_trait]
impl Documents for PostgresStore {
    async fn add_document(
        &self,
        tenant: &str,
        document: NewDocument,
    ) -> Result<Document, StoreError> {
        let pieces = pieces(&document.title, &document.text);
        let (texts, terms): (Vec<String>, Vec<String>) = pieces
            .into_iter()
            .map(|piece| (piece.text, piece.terms))
            .unzip();
        let document = Document {
            id: Uuid::now_v7(),
            title: document.title,
            text: document.text,
            created_at: now(),
        };
        let stored = &document;
        let (texts, terms) = (&texts, &terms);
        self.pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    sqlx::query(
                        "WITH document AS (
                             INSERT INTO documents (id, tenant, title, text, created_at) VALUES ($1::text::uuid, $2, $3, $4, $5)
                             ON CONFLICT (id) DO NOTHING RETURNING id, tenant)
                         INSERT INTO passages (document, ordinal, tenant, text, terms)
                         SELECT document.id, piece.ordinal, document.tenant, piece.text, piece.terms
                         FROM document, unnest($6::text[], $7::text[]) WITH ORDINALITY AS piece (text, terms, ordinal)",
                    )
                    .bind(stored.id.to_string())
                    .bind(tenant)
                    .bind(&stored.title)
                    .bind(&stored.text)
                    .bind(stored.created_at)
                    .bind(texts)
                    .bind(terms)
                    .execute(connection)
                    .await
                    .map(|_| ())
                })
            })
            .await?;
        Ok(document)
    }

    async fn document(&self, tenant: &str, id: Uuid) -> Result<Option<Document>, StoreError> {
        let row = self
            .pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    sqlx::query("SELECT id::text, title, text, created_at FROM documents WHERE tenant = $1 AND id = $2::text::uuid")
                        .bind(tenant)
                        .bind(id.to_string())
                        .fetch_optional(connection)
                        .await
                })
            })
            .await?;
        row.as_ref().map(document).transpose()
    }

    async fn delete_document(&self, tenant: &str, id: Uuid) -> Result<bool, StoreError> {
        self.pool
            .call(Idempotent::No, |connection, _| {
                Box::pin(async move {
                    sqlx::query("DELETE FROM documents WHERE tenant = $1 AND id = $2::text::uuid")
                        .bind(tenant)
                        .bind(id.to_string())
                        .execute(connection)
                        .await
                        .map(|done| done.rows_affected() > 0)
                })
            })
            .await
    }

    async fn search(
        &self,
        tenant: &str,
        text: &str,
        limit: u32,
    ) -> Result<Vec<Passage>, StoreError> {
        let words = query_words(text);
        if words.is_empty() {
            return Ok(Vec::new());
        }
        let query = &words.join(" | ");
        let rows = self
            .pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    sqlx::query(
                        "SELECT passages.document::text, passages.ordinal::bigint, documents.title, passages.text, passages.terms
                         FROM passages JOIN documents ON documents.id = passages.document
                         WHERE passages.tenant = $1 AND passages.vector @@ $2::text::tsquery
                         ORDER BY ts_rank(passages.vector, $2::text::tsquery) DESC, passages.document DESC, passages.ordinal
                         LIMIT $3",
                    )
                    .bind(tenant)
                    .bind(query)
                    .bind(i64::from(CANDIDATES))
                    .fetch_all(connection)
                    .await
                })
            })
            .await?;
        let found = rows.iter().map(found).collect::<Result<_, _>>()?;
        Ok(rank(&words, found, limit))
    }
}

#[async_trait]
impl Queries for PostgresStore {
    async fn record_query(&self, record: QueryRecord) -> Result<(), StoreError> {
        let document = &record.document.to_string();
        let record = &record;
        self.pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO queries (id, tenant, status, created_at, document)
                         VALUES ($1::text::uuid, $2, $3, $4, $5::text::json) ON CONFLICT (id) DO NOTHING",
                    )
                    .bind(record.id.to_string())
                    .bind(&record.tenant)
                    .bind(&record.status)
                    .bind(record.created_at)
                    .bind(document)
                    .execute(connection)
                    .await
                    .map(|_| ())
                })
            })
            .await
    }

    async fn query(&self, tenant: &str, id: Uuid) -> Result<Option<QueryRecord>, StoreError> {
        let row = self
            .pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    sqlx::query("SELECT id::text, tenant, status, created_at, document::text FROM queries WHERE tenant = $1 AND id = $2::text::uuid")
                        .bind(tenant)
                        .bind(id.to_string())
                        .fetch_optional(connection)
                        .await
                })
            })
            .await?;
        row.as_ref().map(|row| query_record(row, 0)).transpose()
    }

    async fn queries(&self, tenant: &str, listing: Listing) -> Result<Page, StoreError> {
        let listing = &listing;
        let rows = self
            .pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    // one statement: the total and the page are of the same moment, and a page beyond the end still has a total
                    sqlx::query(
                        "WITH matching AS NOT MATERIALIZED (
                             SELECT * FROM queries WHERE tenant = $1 AND ($2::text IS NULL OR status = $2)),
                         page AS (
                             SELECT * FROM matching
                             WHERE $3::text IS NULL OR (created_at, id) < (
                                 SELECT last.created_at, last.id FROM queries AS last WHERE last.tenant = $1 AND last.id = $3::text::uuid)
                             ORDER BY created_at DESC, id DESC LIMIT $4 OFFSET $5)
                         SELECT (SELECT count(*) FROM matching), page.id::text, page.tenant, page.status, page.created_at, page.document::text
                         FROM (SELECT 1) AS always LEFT JOIN page ON true ORDER BY page.created_at DESC, page.id DESC",
                    )
                    .bind(tenant)
                    .bind(listing.status.as_deref())
                    .bind(listing.before.map(|id| id.to_string()))
                    .bind(i64::from(listing.size))
                    .bind(listing.offset())
                    .fetch_all(connection)
                    .await
                })
            })
            .await?;
        page(&rows)
    }
}

#[async_trait]
impl Keys for PostgresStore {
    async fn add_key(&self, key: KeyRecord) -> Result<(), StoreError> {
        let key = &key;
        self.pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO api_keys (id, tenant, hash, prefix, created_at, revoked_at)
                         VALUES ($1::text::uuid, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING",
                    )
                    .bind(key.id.to_string())
                    .bind(&key.tenant)
                    .bind(&key.hash)
                    .bind(&key.prefix)
                    .bind(key.created_at)
                    .bind(key.revoked_at)
                    .execute(connection)
                    .await
                    .map(|_| ())
                })
            })
            .await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let rows = self
            .pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    sqlx::query("SELECT id::text, tenant, hash, prefix, created_at, revoked_at FROM api_keys ORDER BY created_at, id")
                        .fetch_all(connection)
                        .await
                })
            })
            .await?;
        rows.iter().map(key_record).collect()
    }

    async fn revoke_key(&self, id: Uuid, at: i64) -> Result<bool, StoreError> {
        self.pool
            .call(Idempotent::No, |connection, _| {
                Box::pin(async move {
                    sqlx::query("UPDATE api_keys SET revoked_at = $2 WHERE id = $1::text::uuid AND revoked_at IS NULL")
                        .bind(id.to_string())
                        .bind(at)
                        .execute(connection)
                        .await
                        .map(|done| done.rows_affected() > 0)
                })
            })
            .await
    }

    async fn key_by_hash(&self, hash: &str) -> Result<Option<KeyRecord>, StoreError> {
        let row = self
            .pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    sqlx::query("SELECT id::text, tenant, hash, prefix, created_at, revoked_at FROM api_keys WHERE hash = $1 AND revoked_at IS NULL")
                        .bind(hash)
                        .fetch_optional(connection)
                        .await
                })
            })
            .await?;
        row.as_ref().map(key_record).transpose()
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn close(&self) {
        self.pool.close().await;
    }
}

async fn bounded<T>(
    bound: Duration,
    migration: impl Future<Output = Result<T, MigrateError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(bound, migration).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(MigrateError::Sql(error))) => Err(super::error::classify(&error, bound)),
        Ok(Err(error)) => Err(StoreError::Failed(error.to_string())),
        Err(_) => Err(StoreError::Timeout(bound)),
    }
}
