//! The store over either database: one text of SQL for both.
//!
//! Every change is one statement or one transaction, so that a cut connection leaves either all of
//! it or nothing. Statements are written for Postgres; SQLite reads them without the casts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value as Json;
use sqlx::Connection;
use tokio::time::timeout;
use uuid::Uuid;

use super::dialect::{Call, Dialect, Effect};
use super::pool::Pool;
use super::row;
use super::text::{MAX_RERANKED, pieces, query_words, rerank};
use super::{
    Document, Documents, KeyRecord, Keys, Listing, Micros, NewDocument, Page, Passage, Queries,
    QueryRecord, Store, StoreError, StoreHealth, now,
};

/// A store on one database.
pub(super) struct SqlStore<D: Dialect> {
    pub pool: Pool<D>,
    /// Keeps a database in memory alive while the pool has no connection.
    pub keeper: Mutex<Option<D::Connection>>,
    /// The longest wait for the keeper to close.
    pub close_within: Duration,
    /// Whether the last write was refused because the database takes none.
    pub refuses_writes: AtomicBool,
}

const DOCUMENT: &str = "
    SELECT id::text, title, text, created_at FROM documents
    WHERE tenant = $1 AND id = $2::text::uuid";

const DELETE_DOCUMENT: &str = "
    DELETE FROM documents WHERE tenant = $1 AND id = $2::text::uuid";

const RECORD_QUERY: &str = "
    INSERT INTO queries (id, tenant, status, created_at, document)
    VALUES ($1::text::uuid, $2, $3, $4, $5::text::json) ON CONFLICT (id) DO NOTHING";

const QUERY: &str = "
    SELECT id::text, tenant, status, created_at, document::text FROM queries
    WHERE tenant = $1 AND id = $2::text::uuid";

// one statement: the total and the page are of the same moment, and a page past the end has a total
const QUERIES: &str = "
    WITH matching AS NOT MATERIALIZED (
        SELECT * FROM queries WHERE tenant = $1 AND ($2::text IS NULL OR status = $2)),
    page AS (
        SELECT * FROM matching
        WHERE $3::text IS NULL OR (created_at, id) < (
            SELECT last.created_at, last.id FROM queries AS last
            WHERE last.tenant = $1 AND last.id = $3::text::uuid)
        ORDER BY created_at DESC, id DESC LIMIT $4 OFFSET $5)
    SELECT (SELECT count(*) FROM matching),
           page.id::text, page.tenant, page.status, page.created_at, page.document::text
    FROM (SELECT 1) AS always LEFT JOIN page ON true
    ORDER BY page.created_at DESC, page.id DESC";

const ADD_KEY: &str = "
    INSERT INTO api_keys (id, tenant, hash, prefix, created_at, revoked_at)
    VALUES ($1::text::uuid, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING";

const KEYS: &str = "
    SELECT id::text, tenant, hash, prefix, created_at, revoked_at FROM api_keys
    ORDER BY created_at, id";

const REVOKE_KEY: &str = "
    UPDATE api_keys SET revoked_at = $2 WHERE id = $1::text::uuid AND revoked_at IS NULL";

const KEY_BY_HASH: &str = "
    SELECT id::text, tenant, hash, prefix, created_at, revoked_at FROM api_keys
    WHERE hash = $1 AND revoked_at IS NULL";

impl<D: Dialect> SqlStore<D> {
    async fn rows(&self, call: Call<'_>) -> Result<Vec<D::Row>, StoreError> {
        Ok(self.pool.call(&call).await?.rows)
    }

    /// Returns whether the call changed any row, and notes whether the database takes writes.
    async fn change(&self, call: Call<'_>) -> Result<bool, StoreError> {
        let changed = self.pool.call(&call).await;
        match &changed {
            Ok(_) => self.refuses_writes.store(false, Ordering::Relaxed),
            Err(StoreError::NotWritable(_)) => self.refuses_writes.store(true, Ordering::Relaxed),
            Err(_) => {}
        }
        Ok(changed?.changed > 0)
    }
}

/// Refuses text with a NUL character, which Postgres does not store and SQLite would.
fn refuse_nul<'t>(texts: impl IntoIterator<Item = (&'t str, &'t str)>) -> Result<(), StoreError> {
    for (name, text) in texts {
        if let Some(at) = text.find('\0') {
            return Err(StoreError::Rejected(format!(
                "{name} has a NUL character at byte {at}: text with NUL characters cannot be stored"
            )));
        }
    }
    Ok(())
}

#[async_trait]
impl<D: Dialect> Documents for SqlStore<D> {
    async fn add_document(
        &self,
        tenant: &str,
        document: NewDocument,
    ) -> Result<Document, StoreError> {
        let NewDocument { title, text } = document;
        refuse_nul([
            ("the tenant", tenant),
            ("the title", &title),
            ("the text", &text),
        ])?;
        let pieces: Json = pieces(&title, &text)
            .into_iter()
            .map(|piece| Json::from([piece.text, piece.terms]))
            .collect();
        let document = Document {
            id: Uuid::now_v7(),
            title,
            text,
            created_at: now(),
        };
        let call = Call::new(Effect::IdempotentWrite, D::ADD_DOCUMENT)
            .leaving_connections()
            .bind(document.id)
            .bind(tenant)
            .bind(&document.title)
            .bind(&document.text)
            .bind(document.created_at)
            .bind(pieces.to_string());
        self.change(call).await?;
        Ok(document)
    }

    async fn document(&self, tenant: &str, id: Uuid) -> Result<Option<Document>, StoreError> {
        refuse_nul([("the tenant", tenant)])?;
        let call = Call::new(Effect::Read, &[DOCUMENT])
            .leaving_connections()
            .bind(tenant)
            .bind(id);
        let rows = self.rows(call).await?;
        rows.first().map(row::document).transpose()
    }

    async fn delete_document(&self, tenant: &str, id: Uuid) -> Result<bool, StoreError> {
        refuse_nul([("the tenant", tenant)])?;
        self.change(
            Call::new(Effect::Write, &[DELETE_DOCUMENT])
                .leaving_connections()
                .bind(tenant)
                .bind(id),
        )
        .await
    }

    async fn search(
        &self,
        tenant: &str,
        text: &str,
        limit: u32,
    ) -> Result<Vec<Passage>, StoreError> {
        refuse_nul([("the tenant", tenant)])?;
        let words = query_words(text);
        if words.is_empty() {
            return Ok(Vec::new());
        }
        let search = [D::SEARCH];
        let call = Call::new(Effect::Read, &search)
            .leaving_connections()
            .bind(tenant)
            .bind(D::any_word(&words))
            .bind(i64::from(MAX_RERANKED));
        let rows = self.rows(call).await?;
        let found = rows.iter().map(row::found).collect::<Result<_, _>>()?;
        Ok(rerank(&words, found, limit))
    }
}

#[async_trait]
impl<D: Dialect> Queries for SqlStore<D> {
    async fn record_query(&self, record: QueryRecord) -> Result<(), StoreError> {
        refuse_nul([
            ("the tenant", &*record.tenant),
            ("the status", &*record.status),
        ])?;
        let call = Call::new(Effect::IdempotentWrite, &[RECORD_QUERY])
            .bind(record.id)
            .bind(&record.tenant)
            .bind(&record.status)
            .bind(record.created_at)
            .bind(record.document.to_string());
        self.change(call).await.map(drop)
    }

    async fn query(&self, tenant: &str, id: Uuid) -> Result<Option<QueryRecord>, StoreError> {
        refuse_nul([("the tenant", tenant)])?;
        let rows = self
            .rows(Call::new(Effect::Read, &[QUERY]).bind(tenant).bind(id))
            .await?;
        rows.first()
            .map(|row| row::query_record(row, 0))
            .transpose()
    }

    async fn queries(&self, tenant: &str, listing: Listing) -> Result<Page, StoreError> {
        let status = listing.status.as_deref();
        refuse_nul([
            ("the tenant", tenant),
            ("the status", status.unwrap_or_default()),
        ])?;
        let call = Call::new(Effect::Read, &[QUERIES])
            .leaving_connections()
            .bind(tenant)
            .bind(status)
            .bind(listing.before)
            .bind(i64::from(listing.size))
            .bind(listing.offset());
        row::page(&self.rows(call).await?)
    }
}

#[async_trait]
impl<D: Dialect> Keys for SqlStore<D> {
    async fn add_key(&self, key: KeyRecord) -> Result<(), StoreError> {
        let KeyRecord {
            tenant,
            hash,
            prefix,
            ..
        } = &key;
        refuse_nul([
            ("the tenant", &**tenant),
            ("the hash", hash),
            ("the prefix", prefix),
        ])?;
        let call = Call::new(Effect::IdempotentWrite, &[ADD_KEY])
            .bind(key.id)
            .bind(tenant)
            .bind(hash)
            .bind(prefix)
            .bind(key.created_at)
            .bind(key.revoked_at);
        self.change(call).await.map(drop)
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let rows = self.rows(Call::new(Effect::Read, &[KEYS])).await?;
        rows.iter().map(row::key_record).collect()
    }

    async fn revoke_key(&self, id: Uuid, at: Micros) -> Result<bool, StoreError> {
        self.change(Call::new(Effect::Write, &[REVOKE_KEY]).bind(id).bind(at))
            .await
    }

    async fn key_by_hash(&self, hash: &str) -> Result<Option<KeyRecord>, StoreError> {
        refuse_nul([("the hash", hash)])?;
        let rows = self
            .rows(Call::new(Effect::Read, &[KEY_BY_HASH]).bind(hash))
            .await?;
        rows.first().map(row::key_record).transpose()
    }
}

#[async_trait]
impl<D: Dialect> StoreHealth for SqlStore<D> {
    fn kind(&self) -> &'static str {
        D::KIND
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.rows(Call::new(Effect::Read, &[D::PING])).await?;
        // a full disk and a missing right show in a write alone
        if self.refuses_writes.load(Ordering::Relaxed) {
            return Err(StoreError::NotWritable(
                "the database refused the last write".into(),
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl<D: Dialect> Store for SqlStore<D> {
    async fn close(&self) {
        self.pool.close().await;
        let keeper = self
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(keeper) = keeper {
            let _ = timeout(self.close_within, keeper.close()).await;
        }
    }
}
