//! Bounds the number of requests in flight by permits. A request that finds no free permit is
//! refused at once; none waits for one. A permit is held until the connection has taken the last
//! frame of the response, or the client has left. Requests that only read need no permit, but a
//! draining gateway waits for them as well.
//!
//! Where clients have keys, a tenant whose requests hang cannot take every permit: the last eighth
//! of them, or the last one, is left to the other tenants.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{Refusal, Tenant};

/// The permits of one gateway. Clones share them.
#[derive(Clone, Debug)]
pub struct Admission {
    permits: Arc<Semaphore>,
    limit: u32,
    in_flight: Arc<AtomicU64>,
    tenants: Arc<Mutex<Tenants>>,
    reading: TaskTracker,
}

/// How many permits each tenant holds.
type Tenants = HashMap<Arc<str>, u32>;

/// One of the permits of a tenant. Dropping it gives it back.
#[derive(Debug)]
struct OfTenant {
    tenant: Arc<str>,
    tenants: Arc<Mutex<Tenants>>,
}

impl Drop for OfTenant {
    fn drop(&mut self) {
        let mut tenants = lock(&self.tenants);
        if let Some(held) = tenants.get_mut(&self.tenant) {
            *held -= 1;
            if *held == 0 {
                tenants.remove(&self.tenant);
            }
        }
    }
}

fn lock(tenants: &Mutex<Tenants>) -> MutexGuard<'_, Tenants> {
    tenants.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request in flight. Clones stand for the same request; the last one that is dropped ends it.
#[derive(Clone, Debug)]
pub struct InFlight(#[allow(dead_code)] Arc<Held>);

#[derive(Debug)]
enum Held {
    Work {
        in_flight: Arc<AtomicU64>,
        _of_tenant: Option<OfTenant>,
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
            tenants: Arc::default(),
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

    /// Takes a permit for the tenant, or refuses at once. A request without a key has no tenant.
    ///
    /// # Errors
    /// [`Refusal::Busy`] where all permits are held; [`Refusal::Share`] where the tenant holds all
    /// that it may.
    pub fn enter(&self, tenant: Option<&Tenant>) -> Result<InFlight, Refusal> {
        let of_tenant = match tenant {
            Some(tenant) => Some(self.share_of(tenant)?),
            None => None,
        };
        let permit = self
            .permits
            .clone()
            .try_acquire_owned()
            .map_err(|_| Refusal::Busy { limit: self.limit })?;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(InFlight(Arc::new(Held::Work {
            in_flight: self.in_flight.clone(),
            _of_tenant: of_tenant,
            _permit: permit,
        })))
    }

    /// Takes one of the permits that the tenant may hold.
    fn share_of(&self, Tenant(tenant): &Tenant) -> Result<OfTenant, Refusal> {
        let share = (self.limit - (self.limit / 8).max(1)).max(1);
        let mut tenants = lock(&self.tenants);
        let held = tenants.entry(tenant.clone()).or_default();
        if *held >= share {
            return Err(Refusal::Share { limit: share });
        }
        *held += 1;
        Ok(OfTenant {
            tenant: tenant.clone(),
            tenants: self.tenants.clone(),
        })
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant(name.into())
    }

    #[test]
    fn one_tenant_leaves_the_last_eighth_to_the_others() {
        for (limit, share) in [(1, 1), (2, 1), (4, 3), (16, 14), (1_024, 896)] {
            let admission = Admission::new(limit);
            let north = tenant("north");
            let held: Vec<_> = (0..share)
                .map(|_| admission.enter(Some(&north)).unwrap())
                .collect();
            assert!(
                matches!(admission.enter(Some(&north)), Err(Refusal::Share { limit }) if limit == share),
                "{limit}"
            );
            let other = admission.enter(Some(&tenant("south")));
            assert_eq!(other.is_ok(), limit > 1, "{limit}");
            drop((held, other));
            assert!(admission.enter(Some(&north)).is_ok());
            assert!(lock(&admission.tenants).is_empty());
        }
    }

    #[test]
    fn without_keys_every_permit_may_be_taken() {
        let admission = Admission::new(4);
        let held: Vec<_> = (0..4).map(|_| admission.enter(None).unwrap()).collect();
        assert!(admission.enter(None).is_err());
        drop(held);
        assert_eq!(admission.in_flight(), 0);
    }

    #[test]
    fn a_refusal_for_want_of_a_permit_keeps_nothing_of_the_share() {
        let admission = Admission::new(2);
        let held: Vec<_> = (0..2).map(|_| admission.enter(None).unwrap()).collect();
        assert!(admission.enter(Some(&tenant("north"))).is_err());
        drop(held);
        assert!(admission.enter(Some(&tenant("north"))).is_ok());
    }
}
