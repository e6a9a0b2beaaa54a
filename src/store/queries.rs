//! Records of answered queries.

use async_trait::async_trait;
use uuid::Uuid;

use super::{Micros, StoreError};

/// A recorded query: the document that the client received, and what a listing filters by.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryRecord {
    /// The query's id, a UUID v7.
    pub id: Uuid,
    /// The tenant that sent the query.
    pub tenant: String,
    /// The query's outcome: `complete`, `degraded`, `failed` or `cancelled`.
    pub status: String,
    /// The time at which the query was accepted.
    pub created_at: Micros,
    /// The response document; its bytes are kept as they were sent.
    pub document: serde_json::Value,
}

/// One page of a listing, the newest query first.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The records of this page.
    pub records: Vec<QueryRecord>,
    /// The number of records that match the listing, over all pages.
    pub total: u64,
}

/// The page of queries that a listing asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The number of the page; the first page is 1.
    pub page: u32,
    /// The number of records on a page.
    pub size: u32,
    /// When set, only records with this status are listed.
    pub status: Option<String>,
    /// When set, only queries older than the query with this id are listed.
    ///
    /// A client that passes the id of the last record of a page reads a growing listing without
    /// gaps and without repetitions. Page numbers alone shift when a query is recorded between two
    /// pages.
    pub before: Option<Uuid>,
}

impl Listing {
    /// The number of records before the page. A page number that no database can reach gives an
    /// offset past the end.
    pub(super) fn offset(&self) -> i64 {
        i64::from(self.page.saturating_sub(1)).saturating_mul(i64::from(self.size))
    }
}

/// Records of queries. No tenant sees the records of another one.
///
/// Every call ends within the acquire and the statement timeouts of the store. Every call is cancel
/// safe: a call whose future is dropped leaves either all of its change or nothing.
#[async_trait]
pub trait Queries: Send + Sync {
    /// Records a query once: a second record with the same id changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when the tenant or the status has a NUL character;
    /// [`StoreError::NotWritable`] when the database takes no writes; otherwise the reason why the
    /// database gave no answer.
    async fn record_query(&self, record: QueryRecord) -> Result<(), StoreError>;

    /// Returns the tenant's query, or `None` when the tenant has no query with that id.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when the tenant has a NUL character; otherwise the reason why the
    /// database gave no answer.
    async fn query(&self, tenant: &str, id: Uuid) -> Result<Option<QueryRecord>, StoreError>;

    /// Returns one page of the tenant's queries, the newest first. The page and its total are of
    /// the same moment.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when the tenant or the status has a NUL character; otherwise the
    /// reason why the database gave no answer.
    async fn queries(&self, tenant: &str, listing: Listing) -> Result<Page, StoreError>;
}
