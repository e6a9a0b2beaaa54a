//! Finds the tenant of a request by its bearer token. Tokens are known by their SHA-256, from the
//! configuration or from the store.
//!
//! A key that the store has confirmed is cached for `auth.cache_ms`, so that most requests cost no
//! database call. While the store does not answer, a cached key stays valid for
//! `auth.without_store_ms` since the store confirmed it, however often it is used: a valid key is
//! never refused as unknown because the database is gone, and a revoked one does not outlive that
//! time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, header};
use tokio::time::Instant;

use super::Refusal;
use crate::config;
use crate::store::{self, StoreError, token_hash};

/// The tenant on whose behalf a request is served. Authentication adds it to the request's
/// extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant(pub Arc<str>);

/// The cache holds at most this many keys; beyond it the oldest entry is removed.
const CACHED_KEYS: usize = 4_096;

/// The keys of one gateway.
pub struct Keys {
    required: bool,
    anonymous: Tenant,
    configured: Vec<(String, Tenant)>,
    store: Arc<dyn store::Keys>,
    cache_time: Duration,
    without_store: Duration,
    cache: Mutex<HashMap<String, (Tenant, Instant)>>,
}

impl Keys {
    /// Joins the keys of the configuration with those of the store. Where `required` is false,
    /// every request belongs to the tenant `default`.
    #[must_use]
    pub fn new(auth: &config::Auth, required: bool, store: Arc<dyn store::Keys>) -> Self {
        let configured = auth
            .keys
            .iter()
            .map(|key| {
                (
                    key.sha256.to_ascii_lowercase(),
                    Tenant(key.tenant.as_str().into()),
                )
            })
            .collect();
        Self {
            required,
            anonymous: Tenant("default".into()),
            configured,
            store,
            cache_time: auth.cache,
            without_store: auth.without_store,
            cache: Mutex::default(),
        }
    }

    /// Returns whether clients need a key.
    #[must_use]
    pub fn are_required(&self) -> bool {
        self.required
    }

    /// Returns the tenant to whom the request's key belongs. Cancel safe.
    ///
    /// # Errors
    /// [`Refusal::MissingKey`] and [`Refusal::UnknownKey`]; [`Refusal::Store`] where the key is not
    /// cached and the store does not answer.
    pub async fn tenant(&self, headers: &HeaderMap) -> Result<Tenant, Refusal> {
        if !self.required {
            return Ok(self.anonymous.clone());
        }
        let hash = token_hash(bearer(headers).ok_or(Refusal::MissingKey)?);
        // every configured key is compared, so that the time does not show which one matches
        let configured = self.configured.iter().fold(None, |found, (known, tenant)| {
            if same(known, &hash) {
                Some(tenant)
            } else {
                found
            }
        });
        if let Some(tenant) = configured {
            return Ok(tenant.clone());
        }
        let cached = self.cached(&hash);
        if let Some((tenant, confirmed_at)) = &cached
            && confirmed_at.elapsed() < self.cache_time
        {
            return Ok(tenant.clone());
        }
        match (self.store.key_by_hash(&hash).await, cached) {
            (Ok(Some(record)), _) => Ok(self.insert(hash, Tenant(record.tenant.into()))),
            (Ok(None), _) => {
                self.remove(&hash);
                Err(Refusal::UnknownKey)
            }
            (Err(_), Some((tenant, confirmed_at)))
                if confirmed_at.elapsed() < self.without_store =>
            {
                Ok(tenant)
            }
            (Err(error), _) => Err(Refusal::Store(error)),
        }
    }

    fn cached(&self, hash: &str) -> Option<(Tenant, Instant)> {
        self.cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(hash)
            .cloned()
    }

    fn insert(&self, hash: String, tenant: Tenant) -> Tenant {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHED_KEYS
            && let Some(oldest) = cache
                .iter()
                .min_by_key(|(_, (_, at))| *at)
                .map(|(hash, _)| hash.clone())
        {
            cache.remove(&oldest);
        }
        cache.insert(hash, (tenant.clone(), Instant::now()));
        tenant
    }

    fn remove(&self, hash: &str) {
        self.cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(hash);
    }
}

/// Returns whether a gateway asks for keys: as `auth.required` says, else where the store holds a
/// key. A revoked key counts, so that revoking the last one does not open the gateway to everybody.
///
/// # Errors
/// [`StoreError`] where the store has to be asked and does not answer.
pub async fn required(auth: &config::Auth, store: &dyn store::Keys) -> Result<bool, StoreError> {
    match auth.required {
        Some(required) => Ok(required),
        None => Ok(!store.keys().await?.is_empty()),
    }
}

/// Returns the token of `Authorization: Bearer …` (RFC 6750 section 2.1). The scheme may be written
/// in upper or lower case.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Compares two hashes of equal length in a time that does not depend on where they differ.
fn same(left: &str, right: &str) -> bool {
    left.len() == right.len()
        && left
            .bytes()
            .zip(right.bytes())
            .fold(0, |difference, (left, right)| difference | (left ^ right))
            == 0
}
