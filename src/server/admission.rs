//! Bounds the number of requests in flight by permits. A request that finds no free permit is
//! refused at once; none waits for one. A permit is held until the connection has taken the last
//! frame of the response, or the client has left. Requests that only read need no permit, but a
//! draining gateway waits for them as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Refusal;

/// The permits of one gateway. Clones share them.
#[derive(Clone, Debug)]
pub struct Admission {
    permits: Arc<Semaphore>,
    limit: u32,
    in_flight: Arc<AtomicU64>,
    reading: TaskTracker,
}

/// One request in flight. Clones stand for the same request; the last one that is dropped ends it.
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
    /// Creates an admission with `limit` permits.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limit as usize)),
            limit,
            in_flight: Arc::default(),
            reading: TaskTracker::new(),
        }
    }

    /// Refuses at once where no permit is free, without taking one.
    ///
    /// # Errors
    /// [`Refusal::Busy`] where all permits are held.
    pub fn check(&self) -> Result<(), Refusal> {
        match self.permits.available_permits() {
            0 => Err(Refusal::Busy { limit: self.limit }),
            _ => Ok(()),
        }
    }

    /// Takes a permit, or refuses at once.
    ///
    /// # Errors
    /// [`Refusal::Busy`] where all permits are held.
    pub fn enter(&self) -> Result<InFlight, Refusal> {
        let permit = self
            .permits
            .clone()
            .try_acquire_owned()
            .map_err(|_| Refusal::Busy { limit: self.limit })?;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(InFlight(Arc::new(Held::Work {
            in_flight: self.in_flight.clone(),
            _permit: permit,
        })))
    }

    /// Registers a request that only reads. It needs no permit and is never refused.
    #[must_use]
    pub fn read(&self) -> InFlight {
        InFlight(Arc::new(Held::Reading {
            _token: self.reading.token(),
        }))
    }

    /// Returns the number of requests that hold a permit now.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Resolves when no request is in flight, and lets no further one in afterwards. Callers refuse
    /// new work first, because a steady stream of it would postpone this moment.
    ///
    /// Cancel safe: a dropped call has taken no permit.
    pub async fn idle(&self) {
        self.reading.close();
        self.reading.wait().await;
        if let Ok(all) = self.permits.acquire_many(self.limit).await {
            all.forget();
        }
    }
}
