//! The bulkhead of a provider: a limit on concurrent requests, with a bounded queue in front of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::deadline;

/// Limits the requests that are under way at once. A bounded number of further requests wait for a
/// permit in the order of their arrival; others are refused at once.
#[derive(Debug)]
pub struct Bulkhead {
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue: usize,
}

/// The permission for one request. Dropping it returns it.
#[derive(Debug)]
pub struct Permit {
    _permit: OwnedSemaphorePermit,
}

/// Why there is no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkheadError {
    /// The queue is full, so the request was refused at once.
    QueueFull,
    /// No permit became free in time.
    TimedOut,
}

impl Bulkhead {
    /// Creates a bulkhead of `limit` permits (at least one) and a queue for `queue` requests.
    pub fn new(limit: u32, queue: u32) -> Self {
        let limit = usize::try_from(limit)
            .unwrap_or(Semaphore::MAX_PERMITS)
            .clamp(1, Semaphore::MAX_PERMITS);
        Self {
            permits: Arc::new(Semaphore::new(limit)),
            waiting: AtomicUsize::new(0),
            queue: usize::try_from(queue).unwrap_or(usize::MAX),
        }
    }

    /// Waits for a permit until `until`. Requests receive permits in the order of their arrival.
    ///
    /// Cancel safe: a dropped waiter leaves the queue.
    ///
    /// # Errors
    /// See [`BulkheadError`].
    pub async fn enter(&self, until: Instant) -> Result<Permit, BulkheadError> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(Permit { _permit: permit });
        }
        let _waiter = Waiter::queue(self)?;
        match deadline::within(until, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Permit { _permit: permit }),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(deadline::Elapsed) => Err(BulkheadError::TimedOut),
        }
    }
}

/// A request that waits. Dropping it takes it out of the count.
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
    async fn holds_its_limit_and_takes_permits_back() {
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
        let permit = bulkhead.enter(soon()).await.unwrap();
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
            "the second has left the queue, so there is room to wait"
        );
        drop(permit);
        let permit = first.await.unwrap();
        assert!(
            futures::poll!(&mut third).is_pending(),
            "permits are given in the order of arrival"
        );
        drop(permit);
        assert!(third.await.is_ok());
    }
}
