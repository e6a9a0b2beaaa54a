//! How many requests are in flight: a fixed number of permits, none is waited for. A permit is held until the last byte of
//! the response has been taken, or the client has left.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// The permits.
#[derive(Clone, Debug)]
pub struct Admission {
    permits: Arc<Semaphore>,
    limit: u32,
}

/// One request in flight, until it is dropped; clones are the same request.
#[derive(Clone, Debug)]
pub struct InFlight(#[allow(dead_code)] Arc<OwnedSemaphorePermit>);

impl Admission {
    /// `limit` permits.
    pub fn new(limit: u32) -> Self {
        Self { permits: Arc::new(Semaphore::new(limit as usize)), limit }
    }

    /// Takes a permit, or refuses at once.
    ///
    /// # Errors
    /// [`ApiError::Busy`]
    pub fn enter(&self) -> Result<InFlight, ApiError> {
        self.permits.clone().try_acquire_owned().map(|permit| InFlight(Arc::new(permit))).map_err(|_| ApiError::Busy { limit: self.limit })
    }

    /// Requests in flight now.
    pub fn in_flight(&self) -> u64 {
        u64::from(self.limit).saturating_sub(self.permits.available_permits() as u64)
    }

    /// Resolves when nothing is in flight. Only meaningful once nothing new is let in; later entries are refused. Cancel safe.
    pub async fn idle(&self) {
        if let Ok(all) = self.permits.acquire_many(self.limit).await {
            all.forget();
        }
    }
}
