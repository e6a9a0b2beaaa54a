//! Who asks: a bearer token, known by its SHA-256 from the file or the store. Keys found in the store are remembered for a
//! short time, so that the usual request costs no database call, and for longer while the store can't be asked: a valid key
//! is never called invalid because the database is gone.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::error::ApiError;
use crate::config;
pub use crate::store::token_hash;
use crate::store::{self, StoreError};

/// Whose request it is. An extension of every request behind the door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant(pub Arc<str>);

/// Keys remembered at most; beyond it the oldest ones are forgotten.
const REMEMBERED: usize = 4_096;
/// How long a key found earlier is trusted while the store can't be asked.
const WITHOUT_STORE: Duration = Duration::from_secs(300);

type Hash = [u8; 32];

/// The known keys.
pub struct Keys {
    required: bool,
    anonymous: Tenant,
    configured: Vec<(Hash, Tenant)>,
    store: Arc<dyn store::Keys>,
    trust: Duration,
    found: Mutex<HashMap<Hash, (Tenant, Instant)>>,
}

impl Keys {
    /// The file's keys, and those of the store; `required` says whether one of them is asked for.
    pub fn new(auth: &config::Auth, required: bool, store: Arc<dyn store::Keys>) -> Self {
        let configured = auth
            .keys
            .iter()
            .filter_map(|key| Some((from_hex(&key.sha256)?, Tenant(key.tenant.as_str().into()))))
            .collect();
        Self {
            required,
            anonymous: Tenant("default".into()),
            configured,
            store,
            trust: auth.cache,
            found: Mutex::default(),
        }
    }

    /// Whose request it is. Cancel safe.
    ///
    /// # Errors
    /// [`ApiError::MissingKey`], [`ApiError::UnknownKey`]; [`ApiError::Store`] where the key is not known and the store can't be asked.
    pub async fn tenant(&self, headers: &HeaderMap) -> Result<Tenant, ApiError> {
        if !self.required {
            return Ok(self.anonymous.clone());
        }
        let hash = hash(bearer(headers).ok_or(ApiError::MissingKey)?);
        // every configured key is compared, whichever matches
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
        let remembered = self.remembered(&hash);
        if let Some((tenant, found_at)) = &remembered
            && found_at.elapsed() < self.trust
        {
            return Ok(tenant.clone());
        }
        match (self.store.key_by_hash(&to_hex(&hash)).await, remembered) {
            (Ok(Some(record)), _) => Ok(self.remember(hash, Tenant(record.tenant.into()))),
            (Ok(None), _) => {
                self.forget(&hash);
                Err(ApiError::UnknownKey)
            }
            (Err(_), Some((tenant, found_at))) if found_at.elapsed() < WITHOUT_STORE => Ok(tenant),
            (Err(error), _) => Err(ApiError::Store(error)),
        }
    }

    fn remembered(&self, hash: &Hash) -> Option<(Tenant, Instant)> {
        self.found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(hash)
            .cloned()
    }

    fn remember(&self, hash: Hash, tenant: Tenant) -> Tenant {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() >= REMEMBERED
            && let Some(oldest) = found
                .iter()
                .min_by_key(|(_, (_, at))| *at)
                .map(|(hash, _)| *hash)
        {
            found.remove(&oldest);
        }
        found.insert(hash, (tenant.clone(), Instant::now()));
        tenant
    }

    fn forget(&self, hash: &Hash) {
        self.found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(hash);
    }
}

/// Whether a gateway asks for keys: as configured, else where a key exists. A revoked key counts: revoking the last one shuts the
/// door, and does not open it.
///
/// # Errors
/// [`StoreError`] where the store has to be asked and can't be.
pub async fn required(auth: &config::Auth, store: &dyn store::Keys) -> Result<bool, StoreError> {
    match auth.required {
        Some(required) => Ok(required),
        None => Ok(!store.keys().await?.is_empty()),
    }
}

/// The token of `Authorization: Bearer …` (RFC 6750 section 2.1; the scheme in any case).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn hash(token: &str) -> Hash {
    Sha256::digest(token.as_bytes()).into()
}

/// Compares without an early end.
fn same(left: &Hash, right: &Hash) -> bool {
    left.iter()
        .zip(right)
        .fold(0, |difference, (left, right)| difference | (left ^ right))
        == 0
}

fn to_hex(hash: &Hash) -> String {
    hash.iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn from_hex(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(hash)
}
