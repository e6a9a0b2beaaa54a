//! The circuit breaker of one provider and model.
//!
//! Closed: everything passes; so many failures in a row open it. Open: nothing passes until the cool-down is over. Half-open:
//! a few probes pass at once; the first that succeeds closes it, the first that fails opens it again. A stream has succeeded as
//! a probe with its first good content ([`Pass::committed`]): nobody waits for its end, and a later break is a failure like any other.
//!
//! It cannot be wedged: a pass that is dropped without a verdict (its client left, or the request itself was wrong) gives its
//! probe's place back and counts for nothing. A verdict that comes after the state has changed since its pass was given
//! counts for nothing either, except that a later cool-down which it brings still wins over an earlier one.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config;
use crate::telemetry::BreakerState;

/// The longest cool-down that a provider can ask for by Retry-After.
pub const LONGEST_ASKED: Duration = Duration::from_secs(600);
/// What is told to those who find every probe's place taken: the verdict is near.
const PROBES_BUSY: Duration = Duration::from_secs(1);

/// Told of each change of state. Called under the breaker's lock: must be quick, and must not ask the breaker.
pub type Observer = Box<dyn Fn(BreakerState) + Send + Sync>;

/// A breaker, shared by all requests to its provider and model.
pub struct Breaker {
    settings: config::Breaker,
    observer: Observer,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Counts changes of state: a pass of an earlier generation has no say in this one.
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { probes: u32 },
}

/// Nothing may pass now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// When it is worth asking again.
    pub retry_after: Duration,
}

/// Leave for one attempt. Give a verdict, or drop it to count for nothing.
#[must_use]
pub struct Pass {
    breaker: Arc<Breaker>,
    generation: u64,
}

impl Breaker {
    /// A closed breaker. A threshold or a number of probes of zero is taken as one.
    pub fn new(settings: config::Breaker, observer: Observer) -> Arc<Self> {
        Arc::new(Self {
            settings,
            observer,
            inner: Mutex::new(Inner {
                state: State::Closed { failures: 0 },
                generation: 0,
            }),
        })
    }

    /// Whether an attempt would be let through now; takes nothing.
    ///
    /// # Errors
    /// [`Refused`] while it is open, or half-open with every probe's place taken.
    pub fn check(&self) -> Result<(), Refused> {
        match self.lock().state {
            State::Closed { .. } => Ok(()),
            State::Open { until } => match until.saturating_duration_since(Instant::now()) {
                Duration::ZERO => Ok(()),
                retry_after => Err(Refused { retry_after }),
            },
            State::HalfOpen { probes } if probes < self.probes() => Ok(()),
            State::HalfOpen { .. } => Err(Refused {
                retry_after: self.settings.cool_down.min(PROBES_BUSY),
            }),
        }
    }

    /// Asks leave for one attempt.
    ///
    /// # Errors
    /// [`Refused`] while it is open, or half-open with every probe's place taken.
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
                    retry_after: self.settings.cool_down.min(PROBES_BUSY),
                });
            }
            *probes += 1;
        }
        Ok(Pass {
            breaker: Arc::clone(self),
            generation: inner.generation,
        })
    }

    /// The state as the next attempt would find it: open past its cool-down is half-open.
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
            // opening starts a new generation, so no pass of this one exists
            State::Open { .. } => {}
        }
    }

    /// Closes a half-open breaker; the generation that the pass is of from now on.
    fn proved(&self, generation: u64) -> u64 {
        let mut inner = self.lock();
        if inner.generation == generation && matches!(inner.state, State::HalfOpen { .. }) {
            self.change(&mut inner, State::Closed { failures: 0 });
            return inner.generation;
        }
        generation
    }

    fn failed(&self, generation: u64, asked: Option<Duration>) {
        let mut inner = self.lock();
        let asked = asked.map(|asked| Instant::now() + asked.min(LONGEST_ASKED));
        if let State::Open { until } = &mut inner.state {
            *until = asked.map_or(*until, |asked| asked.max(*until));
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
        let until = asked.map_or(until, |asked| asked.max(until));
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
    /// The attempt has begun well and goes on: a probe has succeeded with that, and its pass is an ordinary one from now on. For
    /// any other pass only the end counts: a provider whose streams all break would else never fail in a row.
    pub fn committed(&mut self) {
        self.generation = self.breaker.proved(self.generation);
    }

    /// The attempt ended well.
    pub fn success(self) {
        self.breaker.succeeded(self.generation);
    }

    /// The provider failed; `asked` is how long it wants to be left alone (at most [`LONGEST_ASKED`]).
    pub fn failure(self, asked: Option<Duration>) {
        self.breaker.failed(self.generation, asked);
    }
}

impl Drop for Pass {
    /// Gives a probe's place back. After a verdict there is none: the verdict has changed the state.
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
            config::Breaker {
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
    async fn so_many_failures_in_a_row_open_it() {
        let breaker = breaker(3, 10, 1);
        fail(&breaker);
        fail(&breaker);
        breaker.try_pass().unwrap().success();
        fail(&breaker);
        fail(&breaker);
        assert_eq!(
            breaker.state(),
            BreakerState::Closed,
            "a success in between starts the count again"
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
    async fn half_open_lets_the_probes_through_and_no_more() {
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
            "the place of the one that left, and not more"
        );
        second.success();
        assert_eq!(breaker.state(), BreakerState::Closed);
        third.failure(None);
        assert_eq!(
            breaker.state(),
            BreakerState::Closed,
            "a late verdict of a probe has no say any more"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_has_begun_well_closes_it_and_its_break_is_an_ordinary_failure() {
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
            "the commit of an ordinary pass does not start the count again"
        );
        drop(stream);
        tokio::time::advance(Duration::from_secs(10)).await;
        let late = breaker.try_pass().unwrap();
        assert!(
            breaker.try_pass().is_err(),
            "one probe, and a place given back once"
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
    async fn the_later_cool_down_wins_and_is_bounded() {
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
            "a shorter one does not shorten"
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
                retry_after: LONGEST_ASKED
            })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_observer_sees_each_change_once() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let settings = config::Breaker {
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
