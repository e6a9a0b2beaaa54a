//! How many requests are in flight: a fixed number of permits, none is waited for. A permit is held until the last byte of
//! the response has been taken, or the client has left. What only reads takes no permit, but is waited for just the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::error::ApiError;

/// The permits.
#[derive(Clone, Debug)]
pub struct Admission {
    permits: Arc<Semaphore>,
    limit: u32,
    in_flight: Arc<AtomicU64>,
    reading: TaskTracker,
}

/// One request in flight, until it is dropped; clones are the same request.
#[derive(Clone, Debug)]
pub struct InFlight(#[allow(dead_code)] Arc<Held>);

#[derive(Debug)]
enum Held {
    Work {
        in_flight: Arc<AtomicU64>,
        _permit: OwnedSemaphorePermit,
    },
    Reading {
        _token: TaskTrackerToken,
    },
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Self::Work { in_flight, .. } = self {
            in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Admission {
    /// `limit` permits.
    pub fn new(limit: u32) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limit as usize)),
            limit,
            in_flight: Arc::default(),
            reading: TaskTracker::new(),
        }
    }

    /// Takes a permit, or refuses at once.
    ///
    /// # Errors
    /// [`ApiError::Busy`]
    pub fn enter(&self) -> Result<InFlight, ApiError> {
        let permit = self
            .permits
            .clone()
            .try_acquire_owned()
            .map_err(|_| ApiError::Busy { limit: self.limit })?;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(InFlight(Arc::new(Held::Work {
            in_flight: self.in_flight.clone(),
            _permit: permit,
        })))
    }

    /// Lets in what only reads: never refused.
    pub fn read(&self) -> InFlight {
        InFlight(Arc::new(Held::Reading {
            _token: self.reading.token(),
        }))
    }

    /// Requests in flight now, reading ones left out.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Resolves when nothing is in flight. Only meaningful once nothing new is let in; later work is refused. Cancel safe.
    pub async fn idle(&self) {
        self.reading.close();
        self.reading.wait().await;
        if let Ok(all) = self.permits.acquire_many(self.limit).await {
            all.forget();
        }
    }
}
