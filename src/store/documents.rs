//! Documents of tenants, and the full-text search over their passages.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Micros, StoreError};

/// A document as a client sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDocument {
    /// The title that citations show.
    pub title: String,
    /// The document's plain text.
    pub text: String,
}

/// A stored document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// The document's id, a UUID v7: ids sort in the order of creation.
    pub id: Uuid,
    /// The title that citations show.
    pub title: String,
    /// The document's plain text.
    pub text: String,
    /// The time at which the document was stored.
    pub created_at: Micros,
}

/// A passage that a search found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passage {
    /// The id of the document that the passage is part of.
    pub document: Uuid,
    /// The document's title.
    pub title: String,
    /// The passage's text, at most 1,200 bytes.
    pub text: String,
    /// The passage's rank: a larger score is a better match. A score can be compared with the
    /// scores of the same search only.
    pub score: f64,
}

/// Documents of tenants. No tenant sees the documents of another one.
///
/// Every call ends within the acquire and the statement timeouts of the store. Every call is cancel
/// safe: a call whose future is dropped leaves either all of its change or nothing.
#[async_trait]
pub trait Documents: Send + Sync {
    /// Stores a document with its passages.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when the tenant, the title or the text has a NUL character;
    /// [`StoreError::NotWritable`] when the database takes no writes; otherwise the reason why the
    /// database gave no answer.
    async fn add_document(
        &self,
        tenant: &str,
        document: NewDocument,
    ) -> Result<Document, StoreError>;

    /// Returns the tenant's document, or `None` when the tenant has no document with that id.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when the tenant has a NUL character; otherwise the reason why the
    /// database gave no answer.
    async fn document(&self, tenant: &str, id: Uuid) -> Result<Option<Document>, StoreError>;

    /// Deletes the tenant's document with its passages and returns whether it existed.
    ///
    /// # Errors
    /// As [`Documents::add_document`]. The call is never repeated: after
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`] the document may be deleted or not.
    async fn delete_document(&self, tenant: &str, id: Uuid) -> Result<bool, StoreError>;

    /// Searches the tenant's documents for the words of `text` and returns at most `limit`
    /// passages, one a document, the best match first. Any text is a valid query.
    ///
    /// # Errors
    /// As [`Documents::document`].
    async fn search(
        &self,
        tenant: &str,
        text: &str,
        limit: u32,
    ) -> Result<Vec<Passage>, StoreError>;
}
