//! How many requests are in flight: a fixed number of permits, none is waited for. A permit is held until the last byte of
//! the response has been taken, or the client has left.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// The permits.
#[derive(Clone, Debug)]
pub struct Admission {
    permits: Arc<Semaphore>,
    limit: u32,
    in_flight: Arc<AtomicU64>,
}

/// One request in flight, until it is dropped; clones are the same request.
#[derive(Clone, Debug)]
pub struct InFlight(#[allow(dead_code)] Arc<Held>);

#[derive(Debug)]
struct Held {
    in_flight: Arc<AtomicU64>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    /// `limit` permits.
    pub fn new(limit: u32) -> Self {
        Self { permits: Arc::new(Semaphore::new(limit as usize)), limit, in_flight: Arc::default() }
    }

    /// Takes a permit, or refuses at once.
    ///
    /// # Errors
    /// [`ApiError::Busy`]
    pub fn enter(&self) -> Result<InFlight, ApiError> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| ApiError::Busy { limit: self.limit })?;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(InFlight(Arc::new(Held { in_flight: self.in_flight.clone(), _permit: permit })))
    }

    /// Requests in flight now.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Resolves when nothing is in flight. Only meaningful once nothing new is let in; later entries are refused. Cancel safe.
    pub async fn idle(&self) {
        if let Ok(all) = self.permits.acquire_many(self.limit).await {
            all.forget();
        }
    }
}
