//! A store in memory that can be taken away, and counts what it is asked.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use gauntlet::store::{
    Document, Documents, KeyRecord, Keys, Listing, Micros, NewDocument, Page, Passage, Queries,
    QueryRecord, Store, StoreError, StoreHealth, token_hash,
};
use tokio::sync::Notify;
use uuid::Uuid;

#[derive(Default)]
pub struct MemoryStore {
    gone: AtomicBool,
    /// A bug in the gateway: looking a key up, or searching, panics.
    pub panics: AtomicBool,
    /// A listing says that it has begun, and waits.
    pub slow: AtomicBool,
    pub listing: Notify,
    pub listed: Notify,
    pub recorded: Mutex<Vec<QueryRecord>>,
    pub pings: AtomicUsize,
    pub lookups: AtomicUsize,
    keys: Mutex<Vec<KeyRecord>>,
}

impl MemoryStore {
    pub fn gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::SeqCst);
    }

    pub fn with_key(self, tenant: &str, token: &str) -> Self {
        let hash = token_hash(token);
        let key = KeyRecord {
            id: Uuid::now_v7(),
            tenant: tenant.into(),
            hash,
            prefix: "gk-".into(),
            created_at: 1,
            revoked_at: None,
        };
        self.keys.lock().unwrap().push(key);
        self
    }

    fn here(&self) -> Result<(), StoreError> {
        if self.gone.load(Ordering::SeqCst) {
            Err(StoreError::Unavailable("canary-database-words".into()))
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl StoreHealth for MemoryStore {
    fn kind(&self) -> &'static str {
        "memory"
    }
    async fn ping(&self) -> Result<(), StoreError> {
        self.pings.fetch_add(1, Ordering::SeqCst);
        self.here()
    }
}

#[async_trait]
impl Documents for MemoryStore {
    async fn add_document(&self, _: &str, _: NewDocument) -> Result<Document, StoreError> {
        Err(StoreError::Failed("not in these tests".into()))
    }
    async fn document(&self, _: &str, _: Uuid) -> Result<Option<Document>, StoreError> {
        self.here().map(|()| None)
    }
    async fn delete_document(&self, _: &str, _: Uuid) -> Result<bool, StoreError> {
        self.here().map(|()| false)
    }
    async fn search(&self, _: &str, _: &str, _: u32) -> Result<Vec<Passage>, StoreError> {
        assert!(!self.panics.load(Ordering::SeqCst), "canary-panic");
        self.here().map(|()| Vec::new())
    }
}

#[async_trait]
impl Queries for MemoryStore {
    async fn record_query(&self, record: QueryRecord) -> Result<(), StoreError> {
        self.here()
            .map(|()| self.recorded.lock().unwrap().push(record))
    }
    async fn query(&self, _: &str, _: Uuid) -> Result<Option<QueryRecord>, StoreError> {
        self.here().map(|()| None)
    }
    async fn queries(&self, _: &str, _: Listing) -> Result<Page, StoreError> {
        if self.slow.load(Ordering::SeqCst) {
            self.listing.notify_one();
            self.listed.notified().await;
        }
        self.here().map(|()| Page {
            records: Vec::new(),
            total: 0,
        })
    }
}

#[async_trait]
impl Keys for MemoryStore {
    async fn add_key(&self, key: KeyRecord) -> Result<(), StoreError> {
        self.here().map(|()| self.keys.lock().unwrap().push(key))
    }
    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.here().map(|()| self.keys.lock().unwrap().clone())
    }
    async fn revoke_key(&self, id: Uuid, at: Micros) -> Result<bool, StoreError> {
        self.here()?;
        let mut keys = self.keys.lock().unwrap();
        let found = keys
            .iter_mut()
            .find(|key| key.id == id && key.revoked_at.is_none());
        Ok(found.map(|key| key.revoked_at = Some(at)).is_some())
    }
    async fn key_by_hash(&self, hash: &str) -> Result<Option<KeyRecord>, StoreError> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics.load(Ordering::SeqCst), "canary-panic-text");
        self.here()?;
        Ok(self
            .keys
            .lock()
            .unwrap()
            .iter()
            .find(|key| key.hash == hash && key.revoked_at.is_none())
            .cloned())
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn close(&self) {}
}
