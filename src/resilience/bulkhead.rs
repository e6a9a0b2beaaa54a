//! A provider's concurrency limit, with a bounded queue in front of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::deadline;

/// So many at once; so many more wait, in the order of their coming; others are refused at once.
#[derive(Debug)]
pub struct Bulkhead {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue: usize,
}

/// A place. Given back when dropped.
#[derive(Debug)]
pub struct Permit {
    _permit: OwnedSemaphorePermit,
}

/// No place: the queue is full, or none came free in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkheadError {
    /// The queue is full: refused at once.
    QueueFull,
    /// None came free in time.
    TimedOut,
}

impl Bulkhead {
    /// A bulkhead of `limit` places (at least one), with a queue for so many.
    pub fn new(limit: u32, queue: u32) -> Self {
        let limit = usize::try_from(limit)
            .unwrap_or(Semaphore::MAX_PERMITS)
            .clamp(1, Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(limit)),
            waiting: AtomicUsize::new(0),
            queue: usize::try_from(queue).unwrap_or(usize::MAX),
        }
    }

    /// Waits for a place until `until`. First come, first served.
    ///
    /// Cancel safe: a dropped waiter leaves the queue.
    ///
    /// # Errors
    /// See [`BulkheadError`].
    pub async fn enter(&self, until: Instant) -> Result<Permit, BulkheadError> {
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Permit { _permit: permit });
        }
        let _waiter = Waiter::queue(self)?;
        match deadline::within(until, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Permit { _permit: permit }),
            // the semaphore is never closed
            Ok(Err(_)) | Err(deadline::Elapsed) => Err(BulkheadError::TimedOut),
        }
    }
}

/// One that waits; leaves the count when dropped.
struct Waiter<'a>(&'a Bulkhead);

impl<'a> Waiter<'a> {
    fn queue(bulkhead: &'a Bulkhead) -> Result<Self, BulkheadError> {
        bulkhead
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
                (waiting < bulkhead.queue).then_some(waiting + 1)
            })
            .map(|_| Self(bulkhead))
            .map_err(|_| BulkheadError::QueueFull)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn holds_its_limit_and_gives_places_back() {
        let bulkhead = Bulkhead::new(2, 4);
        let first = bulkhead.enter(soon()).await.unwrap();
        let _second = bulkhead.enter(soon()).await.unwrap();
        assert_eq!(
            bulkhead.enter(soon()).await.unwrap_err(),
            BulkheadError::TimedOut
        );
        drop(first);
        assert!(bulkhead.enter(soon()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn its_queue_is_bounded_and_a_waiter_that_leaves_makes_room() {
        let bulkhead = Bulkhead::new(1, 2);
        let place = bulkhead.enter(soon()).await.unwrap();
        let mut first = Box::pin(bulkhead.enter(soon()));
        let mut second = Box::pin(bulkhead.enter(soon()));
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(
            bulkhead.enter(soon()).await.unwrap_err(),
            BulkheadError::QueueFull
        );
        drop(second);
        let mut third = Box::pin(bulkhead.enter(soon()));
        assert!(
            futures::poll!(&mut third).is_pending(),
            "the second has left: there is room to wait"
        );
        drop(place);
        let place = first.await.unwrap();
        assert!(
            futures::poll!(&mut third).is_pending(),
            "first come, first served"
        );
        drop(place);
        assert!(third.await.is_ok());
    }
}
