//! The store on embedded SQLite: a file in WAL mode, or memory for the time of the process.
//!
//! SQLite has one writer: writes of this process queue for it here, fairly and within the acquire time-out; another process is
//! waited for by SQLite's own busy time-out.

use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use secrecy::ExposeSecret;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use uuid::Uuid;

use super::error::classify;
use super::migrate::{self, MigrateError};
use super::pool::{Bounds, Idempotent, Pool};
use super::row::{document, found, key_record, page, query_record};
use super::text::{CANDIDATES, pieces, query_words, rank};
use super::{
    Document, Documents, KeyRecord, Keys, Listing, NewDocument, Page, Passage, Queries,
    QueryRecord, Store, StoreError, StoreHealth, now,
};
use crate::config::StoreConfig;

/// The store on SQLite.
pub(super) struct SqliteStore {
    pool: Pool<SqliteConnection>,
    /// Held by the one call that writes.
    writer: Semaphore,
    bounds: Bounds,
    /// Keeps a database in memory alive while the pool has no connection.
    keeper: Mutex<Option<SqliteConnection>>,
}

impl SqliteStore {
    /// Opens or creates the database and migrates it.
    pub async fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let url = config.url.expose_secret();
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|error| StoreError::Failed(format!("store.url is not a SQLite URL: {error}")))?
            .create_if_missing(true)
            .foreign_keys(true)
            .busy_timeout(config.statement_timeout / 2);
        let in_memory = url.contains(":memory:") || url.contains("mode=memory");
        let (options, connections, target) = if in_memory {
            // connections to one memory share a cache, and would lock each other out
            (options, 1, "SQLite in memory".to_owned())
        } else {
            let target = format!("SQLite at {}", options.get_filename().display());
            if let Some(folder) = options.get_filename().parent() {
                tokio::fs::create_dir_all(folder)
                    .await
                    .map_err(|error| StoreError::Unavailable(format!("{target}: {error}")))?;
            }
            (
                options
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Normal),
                config.max_connections,
                target,
            )
        };
        let bounds = Bounds {
            connections,
            acquire: config.acquire_timeout,
            statement: config.statement_timeout,
        };

        let mut keeper = Pool::<SqliteConnection>::single(&options, &target, bounds).await?;
        match migrate::sqlite(&mut keeper).await {
            Ok(()) => {}
            Err(MigrateError::Sql(error)) => return Err(classify(&error, bounds.statement)),
            Err(error) => return Err(StoreError::Failed(error.to_string())),
        }
        let keeper = if in_memory {
            Some(keeper)
        } else {
            let _ = timeout(bounds.statement, keeper.close()).await;
            None
        };
        Ok(Self {
            pool: Pool::new(options, target, bounds),
            writer: Semaphore::new(1),
            bounds,
            keeper: Mutex::new(keeper),
        })
    }

    /// Waits until no other call of this process writes.
    async fn write(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        match timeout(self.bounds.acquire, self.writer.acquire()).await {
            Ok(permit) => permit.map_err(|_| StoreError::Unavailable("the store is closed".into())),
            Err(_) => Err(StoreError::PoolExhausted(self.bounds.acquire)),
        }
    }
}

#[async_trait]
impl StoreHealth for SqliteStore {
    fn kind(&self) -> &'static str {
        "sqlite"
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
impl Documents for SqliteStore {
    async fn add_document(
        &self,
        tenant: &str,
        document: NewDocument,
    ) -> Result<Document, StoreError> {
        let pieces: Vec<[String; 2]> = pieces(&document.title, &document.text)
            .into_iter()
            .map(|piece| [piece.text, piece.terms])
            .collect();
        let pieces = &serde_json::Value::from(
            pieces
                .into_iter()
                .map(|piece| piece.to_vec())
                .collect::<Vec<_>>(),
        )
        .to_string();
        let document = Document {
            id: Uuid::now_v7(),
            title: document.title,
            text: document.text,
            created_at: now(),
        };
        let stored = &document;
        let _writer = self.write().await?;
        self.pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
                    let inserted = sqlx::query(
                        "INSERT INTO documents (id, tenant, title, text, created_at) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING",
                    )
                    .bind(stored.id.to_string())
                    .bind(tenant)
                    .bind(&stored.title)
                    .bind(&stored.text)
                    .bind(stored.created_at)
                    .execute(&mut *transaction)
                    .await?;
                    if inserted.rows_affected() > 0 {
                        sqlx::query(
                            "INSERT INTO passages (document, ordinal, tenant, text, terms)
                             SELECT ?1, piece.key + 1, ?2, piece.value ->> 0, piece.value ->> 1 FROM json_each(?3) AS piece",
                        )
                        .bind(stored.id.to_string())
                        .bind(tenant)
                        .bind(pieces)
                        .execute(&mut *transaction)
                        .await?;
                    }
                    transaction.commit().await
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
                    sqlx::query("SELECT id, title, text, created_at FROM documents WHERE tenant = ?1 AND id = ?2")
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
        let _writer = self.write().await?;
        self.pool
            .call(Idempotent::No, |connection, _| {
                Box::pin(async move {
                    sqlx::query("DELETE FROM documents WHERE tenant = ?1 AND id = ?2")
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
        let query = &words
            .iter()
            .map(|word| format!("\"{word}\""))
            .collect::<Vec<_>>()
            .join(" OR ");
        let rows = self
            .pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    sqlx::query(
                        "SELECT passages.document, passages.ordinal, documents.title, passages.text, passages.terms
                         FROM passages_terms
                         JOIN passages ON passages.seq = passages_terms.rowid
                         JOIN documents ON documents.id = passages.document
                         WHERE passages_terms MATCH ?2 AND passages.tenant = ?1
                         ORDER BY bm25(passages_terms), passages.document DESC, passages.ordinal
                         LIMIT ?3",
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
impl Queries for SqliteStore {
    async fn record_query(&self, record: QueryRecord) -> Result<(), StoreError> {
        let document = &record.document.to_string();
        let record = &record;
        let _writer = self.write().await?;
        self.pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO queries (id, tenant, status, created_at, document)
                         VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING",
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
                    sqlx::query("SELECT id, tenant, status, created_at, document FROM queries WHERE tenant = ?1 AND id = ?2")
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
                             SELECT * FROM queries WHERE tenant = ?1 AND (?2 IS NULL OR status = ?2)),
                         page AS (
                             SELECT * FROM matching
                             WHERE ?3 IS NULL OR (created_at, id) < (
                                 SELECT last.created_at, last.id FROM queries AS last WHERE last.tenant = ?1 AND last.id = ?3)
                             ORDER BY created_at DESC, id DESC LIMIT ?4 OFFSET ?5)
                         SELECT (SELECT count(*) FROM matching), page.id, page.tenant, page.status, page.created_at, page.document
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
impl Keys for SqliteStore {
    async fn add_key(&self, key: KeyRecord) -> Result<(), StoreError> {
        let key = &key;
        let _writer = self.write().await?;
        self.pool
            .call(Idempotent::Yes, |connection, _| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO api_keys (id, tenant, hash, prefix, created_at, revoked_at)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (id) DO NOTHING",
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
                    sqlx::query("SELECT id, tenant, hash, prefix, created_at, revoked_at FROM api_keys ORDER BY created_at, id")
                        .fetch_all(connection)
                        .await
                })
            })
            .await?;
        rows.iter().map(key_record).collect()
    }

    async fn revoke_key(&self, id: Uuid, at: i64) -> Result<bool, StoreError> {
        let _writer = self.write().await?;
        self.pool
            .call(Idempotent::No, |connection, _| {
                Box::pin(async move {
                    sqlx::query(
                        "UPDATE api_keys SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL",
                    )
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
                    sqlx::query("SELECT id, tenant, hash, prefix, created_at, revoked_at FROM api_keys WHERE hash = ?1 AND revoked_at IS NULL")
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
impl Store for SqliteStore {
    async fn close(&self) {
        self.pool.close().await;
        let keeper = self
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(keeper) = keeper {
            let _ = timeout(self.bounds.statement, keeper.close()).await;
        }
    }
}
