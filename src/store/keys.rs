//! API keys. The store keeps the hash of a token, never the token.

use async_trait::async_trait;
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Micros, StoreError};

/// A stored API key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyRecord {
    /// The key's id, which listings show and `gauntlet keys revoke` takes.
    pub id: Uuid,
    /// The tenant that requests with this key belong to.
    pub tenant: String,
    /// The token's [`token_hash`].
    #[serde(skip)]
    pub hash: String,
    /// The first characters of the token, by which people recognise it.
    pub prefix: String,
    /// The time at which the key was made.
    pub created_at: Micros,
    /// The time at which the key was revoked, if it was.
    pub revoked_at: Option<Micros>,
}

/// Returns the SHA-256 digest of a token as 64 lower-case hex digits: the form in which the store
/// and the configuration file keep tokens.
#[must_use]
pub fn token_hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

/// API keys of all tenants.
///
/// Every call ends within the acquire and the statement timeouts of the store. Every call is cancel
/// safe: a call whose future is dropped leaves either all of its change or nothing.
#[async_trait]
pub trait Keys: Send + Sync {
    /// Stores a key once: a second key with the same id changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when a text of the key has a NUL character or another key has the
    /// same hash; [`StoreError::NotWritable`] when the database takes no writes; otherwise the
    /// reason why the database gave no answer.
    async fn add_key(&self, key: KeyRecord) -> Result<(), StoreError>;

    /// Returns all keys, revoked ones too, the oldest first.
    ///
    /// # Errors
    /// The reason why the database gave no answer.
    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError>;

    /// Revokes a key and returns whether it existed and was valid until now.
    ///
    /// # Errors
    /// [`StoreError::NotWritable`] when the database takes no writes; otherwise the reason why the
    /// database gave no answer. The call is never repeated: after [`StoreError::Unavailable`] or
    /// [`StoreError::Timeout`] the key may be revoked or not.
    async fn revoke_key(&self, id: Uuid, at: Micros) -> Result<bool, StoreError>;

    /// Returns the valid (not revoked) key whose token has this hash.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when the hash has a NUL character; otherwise the reason why the
    /// database gave no answer.
    async fn key_by_hash(&self, hash: &str) -> Result<Option<KeyRecord>, StoreError>;
}
