//! The store: queries, documents and API keys, on Postgres or embedded SQLite behind one trait. The same calls give the same results.

mod checked;
mod error;
mod migrate;
mod open;
mod pool;
mod postgres;
mod row;
mod sqlite;
mod text;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use open::open;

/// Why a call of the store failed. Never shown as the client's own error, except [`StoreError::Rejected`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached (refused, reset, restarting).
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// No connection of the pool became free in time.
    #[error("no connection to the store became free within {0:?}")]
    PoolExhausted(Duration),
    /// It did not answer in time.
    #[error("the store did not answer within {0:?}")]
    Timeout(Duration),
    /// It takes no writes (read-only, full, a right is missing).
    #[error("the store takes no writes: {0}")]
    NotWritable(String),
    /// The value cannot be stored (a NUL in text, …): the client's error.
    #[error("{0}")]
    Rejected(String),
    /// Anything else: the schema is not ours, a bug.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// Microseconds since the Unix epoch.
pub type Micros = i64;

/// A document as it is handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDocument {
    /// A title for citations.
    pub title: String,
    /// Plain text.
    pub text: String,
}

/// A stored document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Its id (UUID v7, in the order of creation).
    pub id: Uuid,
    /// A title for citations.
    pub title: String,
    /// Plain text.
    pub text: String,
    /// When it was stored.
    pub created_at: Micros,
}

/// A passage found by a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passage {
    /// The document it is from.
    pub document: Uuid,
    /// The document's title.
    pub title: String,
    /// The text found.
    pub text: String,
    /// Rank, larger is better; only the order is the same on both databases.
    pub score: f64,
}

/// A query as it is recorded: the same document that the client got.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryRecord {
    /// Its id (UUID v7).
    pub id: Uuid,
    /// Whose it is.
    pub tenant: String,
    /// `complete`, `degraded`, `failed`, `cancelled`.
    pub status: String,
    /// When it was accepted.
    pub created_at: Micros,
    /// The response document, as sent.
    pub document: serde_json::Value,
}

/// A page of a listing, newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The records of this page.
    pub records: Vec<QueryRecord>,
    /// All that match.
    pub total: u64,
}

/// What a listing asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// From 1.
    pub page: u32,
    /// Records a page.
    pub size: u32,
    /// Only these, if given.
    pub status: Option<String>,
    /// Only what is older than this query: the way through a listing that grows, on which no record comes twice and none that stood
    /// there at the first page is missed. Page numbers alone shift when a query is recorded between two pages.
    pub before: Option<Uuid>,
}

impl Listing {
    /// Records to leave out before the page; a page that no database can reach is an empty one.
    fn offset(&self) -> i64 {
        i64::from(self.page.saturating_sub(1)).saturating_mul(i64::from(self.size))
    }
}

/// A stored API key; the token itself is never stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyRecord {
    /// Its id, for listing and revoking.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: String,
    /// SHA-256 of the token, hex.
    #[serde(skip)]
    pub hash: String,
    /// The first characters, so that people can tell keys apart.
    pub prefix: String,
    /// When it was made.
    pub created_at: Micros,
    /// When it was revoked.
    pub revoked_at: Option<Micros>,
}

/// What the gateway keeps. Every call is bounded by the store's own time-outs and is cancel safe: a dropped call leaves
/// either everything or nothing.
#[async_trait]
pub trait Store: Send + Sync {
    /// `postgres` or `sqlite`.
    fn kind(&self) -> &'static str;
    /// One cheap round trip.
    async fn ping(&self) -> Result<(), StoreError>;
    /// Stores a document for the tenant.
    async fn add_document(
        &self,
        tenant: &str,
        document: NewDocument,
    ) -> Result<Document, StoreError>;
    /// The tenant's document, if it exists.
    async fn document(&self, tenant: &str, id: Uuid) -> Result<Option<Document>, StoreError>;
    /// Deletes the tenant's document; whether it existed.
    async fn delete_document(&self, tenant: &str, id: Uuid) -> Result<bool, StoreError>;
    /// Full-text search, best first. Any text is a valid query.
    async fn search(
        &self,
        tenant: &str,
        text: &str,
        limit: u32,
    ) -> Result<Vec<Passage>, StoreError>;
    /// Records a query, once: a second record of the same id changes nothing.
    async fn record_query(&self, record: QueryRecord) -> Result<(), StoreError>;
    /// The tenant's query, if it exists.
    async fn query(&self, tenant: &str, id: Uuid) -> Result<Option<QueryRecord>, StoreError>;
    /// The tenant's queries, newest first.
    async fn queries(&self, tenant: &str, listing: Listing) -> Result<Page, StoreError>;
    /// Stores a key.
    async fn add_key(&self, key: KeyRecord) -> Result<(), StoreError>;
    /// All keys, oldest first.
    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError>;
    /// Revokes a key; whether it existed and was not revoked.
    async fn revoke_key(&self, id: Uuid, at: Micros) -> Result<bool, StoreError>;
    /// The unrevoked key with that hash.
    async fn key_by_hash(&self, hash: &str) -> Result<Option<KeyRecord>, StoreError>;
    /// Closes the pool.
    async fn close(&self);
}

/// The wall clock, for records only.
fn now() -> Micros {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            Micros::try_from(since.as_micros()).unwrap_or(Micros::MAX)
        })
}
