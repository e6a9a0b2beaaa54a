//! What protects a provider: a breaker for each provider and model, and a concurrency limit and a
//! retry budget for each provider.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gauntlet_harness::spec::{BreakerSpec, RetrySpec};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::defect::Defect;

/// A circuit breaker: closed until so many failures in a row, then open for the cool-down, then
/// half-open for a few probes.
#[derive(Debug)]
pub(super) struct Breaker {
    spec: BreakerSpec,
    defect: Option<Defect>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    failures: u32,
    /// By the gateway's own rule: the last results, and whether each was a failure.
    recent: VecDeque<bool>,
    /// Grows with each change of state: the result of a request from an earlier state is ignored.
    generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { probes: u32 },
}

/// A request that the breaker let through. Dropped without a result (the client left), it gives
/// its permit back and counts against nobody.
#[derive(Debug)]
pub(super) struct Admitted {
    breaker: Arc<Breaker>,
    generation: u64,
    settled: bool,
}

impl Breaker {
    pub(super) fn new(spec: BreakerSpec, defect: Option<Defect>) -> Arc<Self> {
        Arc::new(Self {
            spec,
            defect,
            inner: Mutex::new(Inner {
                state: State::Closed,
                failures: 0,
                recent: VecDeque::new(),
                generation: 0,
            }),
        })
    }

    /// Lets a request through, or returns how long to wait.
    pub(super) fn admit(self: &Arc<Self>) -> Result<Admitted, Duration> {
        let mut inner = self.lock();
        if let State::Open { until } = inner.state {
            let now = Instant::now();
            if now < until {
                return Err(until - now);
            }
            inner.change(State::HalfOpen { probes: 0 });
        }
        if let State::HalfOpen { probes } = &mut inner.state {
            if *probes >= self.spec.half_open_probes
                && self.defect != Some(Defect::HalfOpenLetsAllThrough)
            {
                return Err(Duration::from_millis(100));
            }
            *probes += 1;
        }
        Ok(Admitted {
            breaker: self.clone(),
            generation: inner.generation,
            settled: false,
        })
    }

    /// The state as health and metrics name it: `closed`, `half_open` or `open`.
    pub(super) fn state(&self) -> &'static str {
        match self.lock().state {
            State::Closed => "closed",
            State::Open { until } if Instant::now() < until => "open",
            State::Open { .. } | State::HalfOpen { .. } => "half_open",
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The gateway's own rule: of so many last results, so many failures open the breaker.
    fn own_rule(&self) -> (usize, usize) {
        match self.defect {
            Some(Defect::OwnRuleCountsAllFailures) => (usize::MAX, 5),
            Some(Defect::OwnRuleCountsTen) => (10, 5),
            Some(Defect::OwnRuleCountsInARow) => (5, 5),
            Some(Defect::OwnRuleCountsAsTheyEnd) => (24, 12),
            Some(Defect::OwnRuleCountsLeaving) => (30, 8),
            _ => (30, 24),
        }
    }

    fn open(&self, inner: &mut Inner) {
        inner.change(State::Open {
            until: Instant::now() + Duration::from_millis(self.spec.cool_down_ms),
        });
    }
}

impl Inner {
    /// Remembers one of the last results.
    fn remember(&mut self, failed: bool, last: usize) {
        self.recent.push_back(failed);
        while self.recent.len() > last {
            self.recent.pop_front();
        }
    }

    fn change(&mut self, state: State) {
        self.state = state;
        self.failures = 0;
        self.recent.clear();
        self.generation += 1;
    }
}

impl Admitted {
    pub(super) fn succeeded(mut self) {
        self.settled = true;
        let mut inner = self.breaker.lock();
        if inner.generation != self.generation {
            return;
        }
        match inner.state {
            State::HalfOpen { .. } if self.breaker.defect == Some(Defect::BreakerNeverCloses) => {
                self.breaker.open(&mut inner)
            }
            State::HalfOpen { .. } => inner.change(State::Closed),
            State::Closed => {
                inner.failures = 0;
                inner.remember(false, self.breaker.own_rule().0);
            }
            State::Open { .. } => {}
        }
    }

    pub(super) fn failed(mut self) {
        self.settled = true;
        let mut inner = self.breaker.lock();
        if inner.generation != self.generation {
            return;
        }
        match inner.state {
            State::HalfOpen { .. } if self.breaker.defect == Some(Defect::FailedProbeCloses) => {
                inner.change(State::Closed)
            }
            State::HalfOpen { .. } => self.breaker.open(&mut inner),
            State::Closed if self.breaker.defect == Some(Defect::BreakerNeverOpens) => {}
            State::Closed => {
                inner.failures += 1;
                let (last, most) = self.breaker.own_rule();
                inner.remember(true, last);
                let opens = if self.breaker.spec.own_rule {
                    inner.recent.iter().filter(|failed| **failed).count() >= most
                } else {
                    inner.failures >= self.breaker.spec.failure_threshold
                };
                if opens {
                    self.breaker.open(&mut inner);
                }
            }
            State::Open { .. } => {}
        }
    }

    /// Records that the attempt shows nothing about the provider (a refused request), and gives
    /// the permit back.
    pub(super) fn says_nothing(mut self) {
        self.settled = true;
        self.give_back();
    }

    fn give_back(&self) {
        let mut inner = self.breaker.lock();
        if inner.generation == self.generation
            && let State::HalfOpen { probes } = &mut inner.state
        {
            *probes = probes.saturating_sub(1);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let own_rule = self.breaker.spec.own_rule;
        match self.breaker.defect {
            Some(Defect::LeftProbeWedges) => {}
            Some(Defect::LeavingIsFailure | Defect::OwnRuleCountsLeaving)
                if own_rule == (self.breaker.defect == Some(Defect::OwnRuleCountsLeaving)) =>
            {
                Self {
                    breaker: self.breaker.clone(),
                    generation: self.generation,
                    settled: true,
                }
                .failed()
            }
            _ => self.give_back(),
        }
    }
}

/// A provider's concurrency limit.
#[derive(Debug)]
pub(super) struct Bulkhead(Option<Arc<Semaphore>>);

impl Bulkhead {
    pub(super) fn new(limit: Option<u32>, defect: Option<Defect>) -> Self {
        let limit = match defect {
            Some(Defect::NoBulkhead) => None,
            Some(Defect::BulkheadOfOne) => limit.map(|_| 1),
            Some(Defect::PoolOfEight) => Some(8),
            _ => limit,
        };
        Self(limit.map(|limit| Arc::new(Semaphore::new(limit as usize))))
    }

    /// Waits for a permit until `until`; dropping the permit gives it back.
    pub(super) async fn enter(&self, until: Instant) -> Result<Option<OwnedSemaphorePermit>, ()> {
        let Some(permits) = &self.0 else {
            return Ok(None);
        };
        match timeout_at(until, permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            _ => Err(()),
        }
    }
}

/// A provider's retry budget: a number of retries for each request of the last ten seconds, and a
/// few in any case.
#[derive(Debug)]
pub(super) struct Budget {
    spec: RetrySpec,
    recent: Mutex<VecDeque<(Instant, Spent)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spent {
    Request,
    Retry,
}

impl Budget {
    pub(super) fn new(spec: RetrySpec) -> Self {
        Self {
            spec,
            recent: Mutex::default(),
        }
    }

    /// Records a request, which makes the budget grow.
    pub(super) fn request(&self) {
        self.recent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back((Instant::now(), Spent::Request));
    }

    /// Takes one retry from the budget, if there is one.
    pub(super) fn take(&self) -> bool {
        let now = Instant::now();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        while recent
            .front()
            .is_some_and(|(at, _)| now - *at > Duration::from_secs(10))
        {
            recent.pop_front();
        }
        let requests = recent
            .iter()
            .filter(|(_, spent)| *spent == Spent::Request)
            .count();
        let retries = recent.len() - requests;
        #[allow(clippy::cast_precision_loss)]
        let allowed = (retries as f64)
            < requests as f64 * self.spec.budget_ratio + f64::from(self.spec.budget_floor);
        if allowed {
            recent.push_back((now, Spent::Retry));
        }
        allowed
    }
}
