//! What no database may be asked to keep is refused here, once for both: Postgres stores no NUL in text, SQLite would.

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    Document, Documents, KeyRecord, Keys, Listing, Micros, NewDocument, Page, Passage, Queries,
    QueryRecord, Store, StoreError, StoreHealth,
};

/// A store behind the checks.
pub(super) struct Checked<S>(pub S);

/// Refuses text with a NUL.
fn check(what: &str, text: &str) -> Result<(), StoreError> {
    match text.find('\0') {
        Some(at) => Err(StoreError::Rejected(format!(
            "{what} has a NUL character at byte {at}: text with NUL characters cannot be stored"
        ))),
        None => Ok(()),
    }
}

#[async_trait]
impl<S: Store> StoreHealth for Checked<S> {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.0.ping().await
    }
}

#[async_trait]
impl<S: Store> Documents for Checked<S> {
    async fn add_document(
        &self,
        tenant: &str,
        document: NewDocument,
    ) -> Result<Document, StoreError> {
        check("the tenant", tenant)?;
        check("the title", &document.title)?;
        check("the text", &document.text)?;
        self.0.add_document(tenant, document).await
    }

    async fn document(&self, tenant: &str, id: Uuid) -> Result<Option<Document>, StoreError> {
        check("the tenant", tenant)?;
        self.0.document(tenant, id).await
    }

    async fn delete_document(&self, tenant: &str, id: Uuid) -> Result<bool, StoreError> {
        check("the tenant", tenant)?;
        self.0.delete_document(tenant, id).await
    }

    async fn search(
        &self,
        tenant: &str,
        text: &str,
        limit: u32,
    ) -> Result<Vec<Passage>, StoreError> {
        check("the tenant", tenant)?;
        self.0.search(tenant, text, limit).await
    }
}

#[async_trait]
impl<S: Store> Queries for Checked<S> {
    async fn record_query(&self, record: QueryRecord) -> Result<(), StoreError> {
        check("the tenant", &record.tenant)?;
        check("the status", &record.status)?;
        self.0.record_query(record).await
    }

    async fn query(&self, tenant: &str, id: Uuid) -> Result<Option<QueryRecord>, StoreError> {
        check("the tenant", tenant)?;
        self.0.query(tenant, id).await
    }

    async fn queries(&self, tenant: &str, listing: Listing) -> Result<Page, StoreError> {
        check("the tenant", tenant)?;
        check("the status", listing.status.as_deref().unwrap_or_default())?;
        self.0.queries(tenant, listing).await
    }
}

#[async_trait]
impl<S: Store> Keys for Checked<S> {
    async fn add_key(&self, key: KeyRecord) -> Result<(), StoreError> {
        check("the tenant", &key.tenant)?;
        check("the hash", &key.hash)?;
        check("the prefix", &key.prefix)?;
        self.0.add_key(key).await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.0.keys().await
    }

    async fn revoke_key(&self, id: Uuid, at: Micros) -> Result<bool, StoreError> {
        self.0.revoke_key(id, at).await
    }

    async fn key_by_hash(&self, hash: &str) -> Result<Option<KeyRecord>, StoreError> {
        check("the hash", hash)?;
        self.0.key_by_hash(hash).await
    }
}

#[async_trait]
impl<S: Store> Store for Checked<S> {
    async fn close(&self) {
        self.0.close().await;
    }
}
