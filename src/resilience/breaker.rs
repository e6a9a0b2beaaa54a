//! The circuit breaker of one provider and model.
//!
//! *Closed*: every attempt passes, and a number of failures in a row opens the breaker. *Open*:
//! nothing passes until the cool-down is over. *Half-open*: a few probes pass at once; the first
//! that succeeds closes the breaker, and the first that fails opens it again. A stream has
//! succeeded as a probe with its first good content ([`Pass::committed`]): nobody waits for its
//! end, and a later break is a failure like any other.
//!
//! The breaker cannot get stuck half-open: a pass that is dropped without a result (its client
//! left, or the request itself was wrong) returns its probe permit and counts neither way. A result
//! that arrives after the state has changed counts neither way as well, except that a later end of
//! the cool-down replaces an earlier one.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The longest cool-down that a provider can ask for by Retry-After: ten minutes.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// The Retry-After while all probe permits are in use, because a result is near: one second.
const PROBES_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Receives each change of state. It is called under the breaker's lock, so it must return quickly
/// and must not call the breaker.
pub type Observer = Box<dyn Fn(BreakerState) + Send + Sync>;

/// The state of a breaker, as health, metrics and logs show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Every attempt passes.
    Closed,
    /// A few probes pass.
    HalfOpen,
    /// Nothing passes.
    Open,
}

impl BreakerState {
    /// The name of the state in logs; JSON documents use the same one.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }

    /// The number of the state in metrics: 0 is closed, 1 half-open, 2 open.
    pub const fn level(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// The settings of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// The number of failures in a row that open the breaker. Zero is treated as one.
    pub failure_threshold: u32,
    /// The amount of time for which the breaker stays open.
    pub cool_down: Duration,
    /// The maximum number of probes that are under way at once. Zero is treated as one.
    pub half_open_probes: u32,
}

/// A breaker. All requests to its provider and model share it.
pub struct Breaker {
    settings: BreakerSettings,
    observer: Observer,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// The number of changes of state so far. The result of a pass of an earlier generation has no
    /// effect.
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { probes: u32 },
}

/// The breaker lets nothing pass now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The time after which an attempt may pass.
    pub retry_after: Duration,
}

/// The permission for one attempt. Report a result, or drop the pass to count neither way.
#[must_use]
pub struct Pass {
    breaker: Arc<Breaker>,
    generation: u64,
}

impl Breaker {
    /// Creates a closed breaker.
    pub fn new(settings: BreakerSettings, observer: Observer) -> Arc<Self> {
        Arc::new(Self {
            settings,
            observer,
            inner: Mutex::new(Inner {
                state: State::Closed { failures: 0 },
                generation: 0,
            }),
        })
    }

    /// Checks whether an attempt would pass now, without taking a pass.
    ///
    /// # Errors
    /// [`Refused`] while the breaker is open, or half-open with all probe permits in use.
    pub fn check(&self) -> Result<(), Refused> {
        match self.lock().state {
            State::Closed { .. } => Ok(()),
            State::Open { until } => match until.saturating_duration_since(Instant::now()) {
                Duration::ZERO => Ok(()),
                retry_after => Err(Refused { retry_after }),
            },
            State::HalfOpen { probes } if probes < self.probes() => Ok(()),
            State::HalfOpen { .. } => Err(Refused {
                retry_after: self.settings.cool_down.min(PROBES_RETRY_AFTER),
            }),
        }
    }

    /// Takes a pass for one attempt.
    ///
    /// # Errors
    /// [`Refused`] while the breaker is open, or half-open with all probe permits in use.
    pub fn try_pass(self: &Arc<Self>) -> Result<Pass, Refused> {
        let mut inner = self.lock();
        if let State::Open { until } = inner.state {
            let retry_after = until.saturating_duration_since(Instant::now());
            if !retry_after.is_zero() {
                return Err(Refused { retry_after });
            }
            self.change(&mut inner, State::HalfOpen { probes: 0 });
        }
        if let State::HalfOpen { probes } = &mut inner.state {
            if *probes >= self.probes() {
                return Err(Refused {
                    retry_after: self.settings.cool_down.min(PROBES_RETRY_AFTER),
                });
            }
            *probes += 1;
        }
        Ok(Pass {
            breaker: Arc::clone(self),
            generation: inner.generation,
        })
    }

    /// The state in which the next attempt would find the breaker: a breaker that is open past its
    /// cool-down is half-open.
    pub fn state(&self) -> BreakerState {
        match self.lock().state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { until } if until > Instant::now() => BreakerState::Open,
            State::Open { .. } | State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    fn succeeded(&self, generation: u64) {
        let mut inner = self.lock();
        if inner.generation != generation {
            return;
        }
        match inner.state {
            State::Closed { ref mut failures } => *failures = 0,
            State::HalfOpen { .. } => self.change(&mut inner, State::Closed { failures: 0 }),
            // Opening starts a new generation, so no pass of this generation exists.
            State::Open { .. } => {}
        }
    }

    /// Closes a half-open breaker, and returns the generation to which the pass belongs from now
    /// on.
    fn committed(&self, generation: u64) -> u64 {
        let mut inner = self.lock();
        if inner.generation == generation && matches!(inner.state, State::HalfOpen { .. }) {
            self.change(&mut inner, State::Closed { failures: 0 });
            return inner.generation;
        }
        generation
    }

    fn failed(&self, generation: u64, retry_after: Option<Duration>) {
        let mut inner = self.lock();
        let requested = retry_after.map(|wait| Instant::now() + wait.min(MAX_RETRY_AFTER));
        if let State::Open { until } = &mut inner.state {
            *until = requested.map_or(*until, |requested| requested.max(*until));
            return;
        }
        if inner.generation != generation {
            return;
        }
        if let State::Closed { failures } = &mut inner.state {
            *failures = failures.saturating_add(1);
            if *failures < self.settings.failure_threshold {
                return;
            }
        }
        let until = super::deadline::saturating_add(Instant::now(), self.settings.cool_down);
        let until = requested.map_or(until, |requested| requested.max(until));
        self.change(&mut inner, State::Open { until });
    }

    fn returned(&self, generation: u64) {
        let mut inner = self.lock();
        if inner.generation == generation
            && let State::HalfOpen { probes } = &mut inner.state
        {
            *probes = probes.saturating_sub(1);
        }
    }

    fn change(&self, inner: &mut Inner, state: State) {
        inner.state = state;
        inner.generation += 1;
        (self.observer)(match state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        });
    }

    fn probes(&self) -> u32 {
        self.settings.half_open_probes.max(1)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("settings", &self.settings)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl Pass {
    /// Reports that the attempt has passed its commit point and continues. A probe has succeeded
    /// with that, and its pass is an ordinary one from now on. For an ordinary pass only the end
    /// counts: otherwise a provider whose streams all break would never fail several times in a
    /// row.
    pub fn committed(&mut self) {
        self.generation = self.breaker.committed(self.generation);
    }

    /// Reports that the attempt succeeded.
    pub fn success(self) {
        self.breaker.succeeded(self.generation);
    }

    /// Reports that the provider failed. `retry_after` is the time for which it asked callers to
    /// wait; at most [`MAX_RETRY_AFTER`] of it counts.
    pub fn failure(self, retry_after: Option<Duration>) {
        self.breaker.failed(self.generation, retry_after);
    }
}

impl Drop for Pass {
    /// Returns the probe permit. After a result there is none, because the result has changed the
    /// state.
    fn drop(&mut self) {
        self.breaker.returned(self.generation);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn breaker(failure_threshold: u32, cool_down: u64, half_open_probes: u32) -> Arc<Breaker> {
        let cool_down = Duration::from_secs(cool_down);
        Breaker::new(
            BreakerSettings {
                failure_threshold,
                cool_down,
                half_open_probes,
            },
            Box::new(|_| {}),
        )
    }

    fn fail(breaker: &Arc<Breaker>) {
        breaker.try_pass().unwrap().failure(None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it() {
        let breaker = breaker(3, 10, 1);
        fail(&breaker);
        fail(&breaker);
        breaker.try_pass().unwrap().success();
        fail(&breaker);
        fail(&breaker);
        assert_eq!(
            breaker.state(),
            BreakerState::Closed,
            "a success in between resets the count"
        );
        fail(&breaker);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(
            breaker.check(),
            Err(Refused {
                retry_after: Duration::from_secs(10)
            })
        );
        assert!(breaker.try_pass().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn half_open_admits_its_probes_and_no_more() {
        let breaker = breaker(1, 10, 2);
        fail(&breaker);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        let first = breaker.try_pass().unwrap();
        let second = breaker.try_pass().unwrap();
        assert!(breaker.check().is_err());
        assert!(breaker.try_pass().is_err());
        drop(first);
        let third = breaker.try_pass().unwrap();
        assert!(
            breaker.try_pass().is_err(),
            "only the permit of the dropped probe is free"
        );
        second.success();
        assert_eq!(breaker.state(), BreakerState::Closed);
        third.failure(None);
        assert_eq!(
            breaker.state(),
            BreakerState::Closed,
            "a late result of a probe has no effect"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_committed_probe_closes_it_and_its_later_break_is_an_ordinary_failure() {
        let breaker = breaker(2, 10, 1);
        (0..2).for_each(|_| fail(&breaker));
        tokio::time::advance(Duration::from_secs(10)).await;
        let mut probe = breaker.try_pass().unwrap();
        probe.committed();
        assert_eq!(breaker.state(), BreakerState::Closed);
        fail(&breaker);
        let mut stream = breaker.try_pass().unwrap();
        stream.committed();
        probe.failure(None);
        assert_eq!(
            breaker.state(),
            BreakerState::Open,
            "the commit of an ordinary pass does not reset the count"
        );
        drop(stream);
        tokio::time::advance(Duration::from_secs(10)).await;
        let late = breaker.try_pass().unwrap();
        assert!(
            breaker.try_pass().is_err(),
            "there is one probe, whose permit is returned once"
        );
        drop(late);
        assert!(breaker.try_pass().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_probe_opens_it_for_a_whole_cool_down() {
        let breaker = breaker(3, 10, 1);
        (0..3).for_each(|_| fail(&breaker));
        tokio::time::advance(Duration::from_secs(11)).await;
        fail(&breaker);
        assert_eq!(
            breaker.check(),
            Err(Refused {
                retry_after: Duration::from_secs(10)
            })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_later_cool_down_replaces_the_earlier_and_is_bounded() {
        let breaker = breaker(1, 10, 1);
        let (early, late) = (breaker.try_pass().unwrap(), breaker.try_pass().unwrap());
        let absurd = breaker.try_pass().unwrap();
        fail(&breaker);
        early.failure(Some(Duration::from_secs(5)));
        assert_eq!(
            breaker.check(),
            Err(Refused {
                retry_after: Duration::from_secs(10)
            }),
            "a shorter wait does not shorten the cool-down"
        );
        late.failure(Some(Duration::from_secs(47)));
        assert_eq!(
            breaker.check(),
            Err(Refused {
                retry_after: Duration::from_secs(47)
            })
        );
        absurd.failure(Some(Duration::MAX));
        assert_eq!(
            breaker.check(),
            Err(Refused {
                retry_after: MAX_RETRY_AFTER
            })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_observer_sees_each_change_once() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let settings = BreakerSettings {
            failure_threshold: 1,
            cool_down: Duration::from_secs(1),
            half_open_probes: 1,
        };
        let breaker = Breaker::new(
            settings,
            Box::new(move |state| log.lock().unwrap().push(state)),
        );
        fail(&breaker);
        tokio::time::advance(Duration::from_secs(1)).await;
        breaker.try_pass().unwrap().success();
        breaker.try_pass().unwrap().success();
        assert_eq!(
            *seen.lock().unwrap(),
            [
                BreakerState::Open,
                BreakerState::HalfOpen,
                BreakerState::Closed
            ]
        );
    }
}
