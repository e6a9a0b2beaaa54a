//! The circuit breaker of one provider and model.
//!
//! *Closed*: every attempt passes. The breaker opens when the provider fails too large a share of
//! its attempts ([`BreakerSettings::failure_rate`]), and enough of them to be sure: a number of
//! attempts in a window, or a number of failures in a row. *Open*: nothing passes until the
//! cool-down is over, except a share of the requests that have no other candidate
//! ([`Breaker::try_share`]). *Half-open*: a few probes pass. The first that succeeds closes the
//! breaker, and it opens again when all of them have failed, for twice the cool-down. A stream has
//! succeeded as a probe with its first good content ([`Pass::committed`]): nobody waits for its
//! end, and a later break is a failure like any other.
//!
//! An attempt counts in the window in which it *began*, whenever it ends. A failure that took long
//! is thereby compared with the attempts that began around it, which have ended long ago or are
//! still under way: clients that all wait for the few answers that hang do not make a provider look
//! as if nothing worked. Attempts that began later and have ended speak as well: a provider that
//! has recovered is not cut off for its earlier failures.
//!
//! The breaker cannot get stuck half-open: a pass that is dropped without a result (its client
//! left, or the request itself was wrong) returns its probe permit and counts neither way, except
//! that a stream whose client left after the commit point is no failure among the others. A result
//! that arrives after the state has changed counts neither way as well, except that a later end of
//! the cool-down replaces an earlier one.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The longest cool-down that a provider can ask for by Retry-After: ten minutes.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// The number of slots of the window. An attempt is known by the slot in which it began.
const WINDOW_SLOTS: u64 = 10;
/// The number of slots that are remembered, of those in which an attempt began. They reach further
/// back than the window, because a failure may take as long as a request's deadline.
const REMEMBERED_SLOTS: usize = 1_000;
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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerSettings {
    /// The least share of the attempts of a window that must have failed before the breaker opens.
    /// With zero the failures in a row alone decide.
    pub failure_rate: f64,
    /// The length of the window.
    pub window: Duration,
    /// The number of attempts that a window must have for the failure rate alone to open the
    /// breaker.
    pub minimum_attempts: u32,
    /// The number of failures in a row that stand in for these attempts. Zero is treated as one.
    pub failure_threshold: u32,
    /// The amount of time for which the breaker stays open at first.
    pub cool_down: Duration,
    /// The longest cool-down. Each time that all probes have failed, the cool-down is twice as
    /// long as before.
    pub cool_down_max: Duration,
    /// The number of probes of a half-open breaker. Zero is treated as one.
    pub half_open_probes: u32,
    /// The share of the refused requests without another candidate that pass nevertheless.
    pub open_share: f64,
}

/// A breaker. All requests to its provider and model share it.
pub struct Breaker {
    settings: BreakerSettings,
    observer: Observer,
    created: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// The number of changes of state so far. The result of a pass of an earlier generation has no
    /// effect.
    generation: u64,
    /// The number of times that the breaker has opened since it was closed.
    openings: u32,
    /// The attempts since the breaker was closed.
    attempts: Attempts,
    share: Share,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { probes: u32, failed: u32 },
}

/// The attempts that began since the breaker was closed, by the slot in which they began.
#[derive(Debug, Default)]
struct Attempts {
    slots: VecDeque<Slot>,
    failures_in_a_row: u32,
}

#[derive(Debug, Default)]
struct Slot {
    number: u64,
    /// The attempts that began, except those that were dropped without a result.
    begun: u64,
    succeeded: u64,
    failed: u64,
}

impl Attempts {
    /// Counts an attempt that begins.
    fn begin(&mut self, slot: u64) {
        match self.slots.back_mut() {
            Some(last) if last.number >= slot => last.begun += 1,
            _ => self.slots.push_back(Slot {
                number: slot,
                begun: 1,
                ..Slot::default()
            }),
        }
        if self.slots.len() > REMEMBERED_SLOTS {
            self.slots.pop_front();
        }
    }

    /// The slot, unless it is forgotten.
    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        let position = self
            .slots
            .binary_search_by_key(&number, |slot| slot.number)
            .ok()?;
        self.slots.get_mut(position)
    }

    fn succeed(&mut self, slot: u64) {
        self.failures_in_a_row = 0;
        if let Some(slot) = self.slot(slot) {
            slot.succeeded += 1;
        }
    }

    /// Counts a failure, and decides whether the breaker opens.
    fn fail(&mut self, number: u64, settings: &BreakerSettings) -> bool {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        let in_a_row = self.failures_in_a_row >= settings.failure_threshold.max(1);
        let Some(slot) = self.slot(number) else {
            return in_a_row && settings.failure_rate <= 0.0;
        };
        slot.failed += 1;
        let (mut begun, mut failed, mut later, mut later_failed) = (0, 0, 0, 0);
        for slot in &self.slots {
            if slot.number > number {
                later += slot.succeeded + slot.failed;
                later_failed += slot.failed;
            } else if slot.number + WINDOW_SLOTS > number {
                begun += slot.begun;
                failed += slot.failed;
            }
        }
        let too_many = |failed: u64, of: u64| failed as f64 >= settings.failure_rate * of as f64;
        too_many(failed, begun)
            && too_many(later_failed, later)
            && (in_a_row || begun >= u64::from(settings.minimum_attempts.max(1)))
    }

    /// Forgets an attempt that was dropped without a result, unless it had begun well: then the
    /// provider has served it as far as its client wanted.
    fn left(&mut self, slot: u64, begun_well: bool) {
        match self.slot(slot) {
            Some(slot) if begun_well => slot.succeeded += 1,
            Some(slot) => slot.begun = slot.begun.saturating_sub(1),
            None => {}
        }
    }
}

/// The requests without another candidate that the breaker refused since it was closed.
#[derive(Debug, Default)]
struct Share {
    refused: u64,
    passed: u64,
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
    kind: Kind,
    /// The slot in which the attempt began.
    slot: u64,
    /// Whether the attempt has passed its commit point.
    begun_well: bool,
    reported: bool,
}

/// What a pass occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The attempt of a closed breaker, or a probe.
    Ordinary,
    /// One of the share of requests that pass an open breaker.
    Share,
}

impl Breaker {
    /// Creates a closed breaker.
    pub fn new(settings: BreakerSettings, observer: Observer) -> Arc<Self> {
        Arc::new(Self {
            settings,
            observer,
            created: Instant::now(),
            inner: Mutex::new(Inner {
                state: State::Closed,
                generation: 0,
                openings: 0,
                attempts: Attempts::default(),
                share: Share::default(),
            }),
        })
    }

    /// Checks whether an attempt would pass now, without taking a pass.
    ///
    /// # Errors
    /// [`Refused`] while the breaker is open, or half-open with all probe permits in use.
    pub fn check(&self) -> Result<(), Refused> {
        match self.lock().state {
            State::Closed => Ok(()),
            State::Open { until } => match until.saturating_duration_since(Instant::now()) {
                Duration::ZERO => Ok(()),
                retry_after => Err(Refused { retry_after }),
            },
            State::HalfOpen { probes, failed } if probes + failed < self.probes() => Ok(()),
            State::HalfOpen { .. } => Err(self.wait_for_probes()),
        }
    }

    /// Takes a pass for one attempt.
    ///
    /// # Errors
    /// [`Refused`] while the breaker is open, or half-open with all probe permits in use.
    pub fn try_pass(self: &Arc<Self>) -> Result<Pass, Refused> {
        let mut inner = self.lock();
        let slot = self.slot_now();
        if let State::Open { until } = inner.state {
            let retry_after = until.saturating_duration_since(Instant::now());
            if !retry_after.is_zero() {
                return Err(Refused { retry_after });
            }
            let state = State::HalfOpen {
                probes: 0,
                failed: 0,
            };
            self.change(&mut inner, state);
        }
        match &mut inner.state {
            State::HalfOpen { probes, failed } => {
                if *probes + *failed >= self.probes() {
                    return Err(self.wait_for_probes());
                }
                *probes += 1;
            }
            State::Closed | State::Open { .. } => inner.attempts.begin(slot),
        }
        Ok(self.pass(&inner, Kind::Ordinary, slot))
    }

    /// Takes a pass for a request that the breaker has refused and that no other candidate can
    /// serve: for [`BreakerSettings::open_share`] of them. A provider that fails in part thereby
    /// serves a part of such requests, and the first that succeeds closes the breaker.
    pub fn try_share(self: &Arc<Self>) -> Option<Pass> {
        let mut inner = self.lock();
        let slot = self.slot_now();
        if matches!(inner.state, State::Closed) {
            inner.attempts.begin(slot);
            return Some(self.pass(&inner, Kind::Ordinary, slot));
        }
        let share = &mut inner.share;
        share.refused += 1;
        // A whole number of requests is not missed by the rounding of its fractions.
        let may_pass = share.refused as f64 * self.settings.open_share + 1e-9;
        if may_pass < (share.passed + 1) as f64 {
            return None;
        }
        share.passed += 1;
        Some(self.pass(&inner, Kind::Share, slot))
    }

    /// The state in which the next attempt would find the breaker: a breaker that is open past its
    /// cool-down is half-open.
    pub fn state(&self) -> BreakerState {
        match self.lock().state {
            State::Closed => BreakerState::Closed,
            State::Open { until } if until > Instant::now() => BreakerState::Open,
            State::Open { .. } | State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    fn pass(self: &Arc<Self>, inner: &Inner, kind: Kind, slot: u64) -> Pass {
        Pass {
            breaker: Arc::clone(self),
            generation: inner.generation,
            kind,
            slot,
            begun_well: false,
            reported: false,
        }
    }

    fn succeeded(&self, pass: &Pass) {
        let mut inner = self.lock();
        if inner.generation != pass.generation {
            return;
        }
        match inner.state {
            State::Closed => inner.attempts.succeed(pass.slot),
            State::HalfOpen { .. } | State::Open { .. } => self.change(&mut inner, State::Closed),
        }
    }

    /// Closes a breaker that is not closed. The pass is an ordinary one of the closed breaker from
    /// now on.
    fn committed(&self, pass: &mut Pass) {
        pass.begun_well = true;
        let mut inner = self.lock();
        if inner.generation == pass.generation && !matches!(inner.state, State::Closed) {
            self.change(&mut inner, State::Closed);
            (pass.generation, pass.kind, pass.slot) =
                (inner.generation, Kind::Ordinary, self.slot_now());
            inner.attempts.begin(pass.slot);
        }
    }

    fn failed(&self, pass: &Pass, retry_after: Option<Duration>) {
        let mut inner = self.lock();
        let requested = retry_after.map(|wait| Instant::now() + wait.min(MAX_RETRY_AFTER));
        let is_late = inner.generation != pass.generation;
        let probes_allowed = self.probes();
        let opens = match &mut inner.state {
            State::Open { until } => {
                *until = requested.map_or(*until, |requested| requested.max(*until));
                false
            }
            _ if is_late => false,
            State::Closed => inner.attempts.fail(pass.slot, &self.settings),
            State::HalfOpen { .. } if pass.kind == Kind::Share => false,
            State::HalfOpen { probes, failed } => {
                (*probes, *failed) = (probes.saturating_sub(1), *failed + 1);
                *failed >= probes_allowed
            }
        };
        if opens {
            let until = super::deadline::saturating_add(Instant::now(), self.cool_down(&inner));
            let until = requested.map_or(until, |requested| requested.max(until));
            self.change(&mut inner, State::Open { until });
        }
    }

    fn returned(&self, pass: &Pass) {
        let mut inner = self.lock();
        if inner.generation != pass.generation || pass.kind == Kind::Share {
            return;
        }
        match &mut inner.state {
            State::HalfOpen { probes, .. } => *probes = probes.saturating_sub(1),
            State::Closed => inner.attempts.left(pass.slot, pass.begun_well),
            State::Open { .. } => {}
        }
    }

    fn change(&self, inner: &mut Inner, state: State) {
        match state {
            State::Closed => {
                inner.openings = 0;
                (inner.attempts, inner.share) = (Attempts::default(), Share::default());
            }
            State::Open { .. } => inner.openings = inner.openings.saturating_add(1),
            State::HalfOpen { .. } => {}
        }
        inner.state = state;
        inner.generation += 1;
        (self.observer)(match state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        });
    }

    /// The cool-down of an opening: the first one, doubled for each opening before it since the
    /// breaker was closed.
    fn cool_down(&self, inner: &Inner) -> Duration {
        let doubled = 2_u32.checked_pow(inner.openings).unwrap_or(u32::MAX);
        let longest = self.settings.cool_down_max.max(self.settings.cool_down);
        self.settings.cool_down.saturating_mul(doubled).min(longest)
    }

    fn wait_for_probes(&self) -> Refused {
        Refused {
            retry_after: self.settings.cool_down.min(PROBES_RETRY_AFTER),
        }
    }

    fn probes(&self) -> u32 {
        self.settings.half_open_probes.max(1)
    }

    /// The number of the slot of this instant.
    fn slot_now(&self) -> u64 {
        let slot = (self.settings.window.as_nanos() / u128::from(WINDOW_SLOTS)).max(1);
        u64::try_from(self.created.elapsed().as_nanos() / slot).unwrap_or(u64::MAX)
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
        let breaker = Arc::clone(&self.breaker);
        breaker.committed(self);
    }

    /// Reports that the attempt succeeded.
    pub fn success(mut self) {
        self.reported = true;
        self.breaker.succeeded(&self);
    }

    /// Reports that the provider failed. `retry_after` is the time for which it asked callers to
    /// wait; at most [`MAX_RETRY_AFTER`] of it counts.
    pub fn failure(mut self, retry_after: Option<Duration>) {
        self.reported = true;
        self.breaker.failed(&self, retry_after);
    }
}

impl Drop for Pass {
    /// Returns the probe permit, or forgets the attempt, if no result was reported.
    fn drop(&mut self) {
        if !self.reported {
            self.breaker.returned(self);
        }
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
                cool_down_max: cool_down,
                half_open_probes,
                ..IN_A_ROW
            },
            Box::new(|_| {}),
        )
    }

    /// Failures in a row alone decide, and nothing passes an open breaker.
    const IN_A_ROW: BreakerSettings = BreakerSettings {
        failure_rate: 0.0,
        window: Duration::from_secs(10),
        minimum_attempts: u32::MAX,
        failure_threshold: u32::MAX,
        cool_down: Duration::from_secs(10),
        cool_down_max: Duration::from_secs(10),
        half_open_probes: 1,
        open_share: 0.0,
    };

    /// Three in five attempts must fail, of ten or more, or four in a row.
    fn by_rate(open_share: f64) -> Arc<Breaker> {
        Breaker::new(
            BreakerSettings {
                failure_rate: 0.6,
                minimum_attempts: 10,
                failure_threshold: 4,
                cool_down: Duration::from_secs(1),
                cool_down_max: Duration::from_secs(5),
                half_open_probes: 3,
                open_share,
                ..IN_A_ROW
            },
            Box::new(|_| {}),
        )
    }

    fn fail(breaker: &Arc<Breaker>) {
        breaker.try_pass().unwrap().failure(None);
    }

    fn succeed(breaker: &Arc<Breaker>) {
        breaker.try_pass().unwrap().success();
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_of_failures_in_a_window_opens_it() {
        let breaker = by_rate(0.0);
        for _ in 0..20 {
            succeed(&breaker);
            fail(&breaker);
        }
        assert_eq!(breaker.state(), BreakerState::Closed, "half of them failed");
        tokio::time::advance(Duration::from_secs(11)).await;
        for outcome in [true, false, false, true, false, false, false, true, false] {
            if outcome {
                succeed(&breaker);
            } else {
                fail(&breaker);
            }
        }
        assert_eq!(
            breaker.state(),
            BreakerState::Closed,
            "six of nine failed: too few attempts, and the earlier window is over"
        );
        fail(&breaker);
        assert_eq!(breaker.state(), BreakerState::Open, "seven of ten failed");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_that_took_long_count_among_those_that_began_with_them() {
        let breaker = by_rate(0.0);
        let mut hanging = Vec::new();
        for _ in 0..10 {
            hanging.push(breaker.try_pass().unwrap());
            (0..9).for_each(|_| succeed(&breaker));
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        for pass in hanging {
            pass.failure(None);
        }
        assert_eq!(breaker.state(), BreakerState::Closed, "one in ten failed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_hangs_for_all_is_cut_off_by_the_first_failures() {
        let breaker = by_rate(0.0);
        (0..100).for_each(|_| succeed(&breaker));
        tokio::time::advance(Duration::from_secs(11)).await;
        let mut hanging: Vec<Pass> = (0..20).map(|_| breaker.try_pass().unwrap()).collect();
        tokio::time::advance(Duration::from_secs(60)).await;
        let _waiting: Vec<Pass> = (0..100).map(|_| breaker.try_pass().unwrap()).collect();
        for pass in hanging.drain(..12) {
            assert_eq!(breaker.state(), BreakerState::Closed);
            pass.failure(None);
        }
        assert_eq!(
            breaker.state(),
            BreakerState::Open,
            "twelve of the twenty that began together failed; those that wait say nothing"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_has_recovered_is_not_cut_off_for_earlier_failures() {
        let breaker = by_rate(0.0);
        let hanging: Vec<Pass> = (0..20).map(|_| breaker.try_pass().unwrap()).collect();
        tokio::time::advance(Duration::from_secs(30)).await;
        (0..10).for_each(|_| succeed(&breaker));
        for pass in hanging {
            pass.failure(None);
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_was_left_after_its_commit_point_is_no_failure() {
        let breaker = by_rate(0.0);
        for _ in 0..10 {
            breaker.try_pass().unwrap().committed();
            fail(&breaker);
        }
        assert_eq!(breaker.state(), BreakerState::Closed, "half of them failed");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_was_left_counts_neither_way() {
        let breaker = by_rate(0.0);
        (0..90).for_each(|_| drop(breaker.try_pass().unwrap()));
        (0..3).for_each(|_| fail(&breaker));
        assert_eq!(breaker.state(), BreakerState::Closed);
        fail(&breaker);
        assert_eq!(
            breaker.state(),
            BreakerState::Open,
            "all with a result failed"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_again_when_all_probes_have_failed_and_each_time_for_longer() {
        let breaker = by_rate(0.0);
        (0..4).for_each(|_| fail(&breaker));
        for seconds in [1, 2, 4, 5, 5] {
            let retry_after = Duration::from_secs(seconds);
            assert_eq!(breaker.check(), Err(Refused { retry_after }));
            tokio::time::advance(retry_after).await;
            for _ in 0..3 {
                assert_eq!(breaker.state(), BreakerState::HalfOpen);
                fail(&breaker);
            }
        }
        tokio::time::advance(Duration::from_secs(5)).await;
        fail(&breaker);
        succeed(&breaker);
        assert_eq!(breaker.state(), BreakerState::Closed);
        (0..4).for_each(|_| fail(&breaker));
        let retry_after = Duration::from_secs(1);
        assert_eq!(breaker.check(), Err(Refused { retry_after }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_of_the_requests_without_another_candidate_passes_while_it_is_open() {
        let breaker = by_rate(0.25);
        (0..4).for_each(|_| fail(&breaker));
        let passed = |breaker: &Arc<Breaker>| (0..8).filter_map(|_| breaker.try_share()).count();
        assert_eq!(passed(&breaker), 2);
        (0..3).for_each(|_| assert!(breaker.try_share().is_none()));
        breaker.try_share().unwrap().failure(None);
        assert_eq!(
            breaker.state(),
            BreakerState::Open,
            "a failure changes nothing"
        );
        (0..3).for_each(|_| assert!(breaker.try_share().is_none()));
        breaker.try_share().unwrap().success();
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert_eq!(passed(&by_rate(0.0)), 8, "a closed breaker lets all pass");
    }

    #[tokio::test(start_paused = true)]
    async fn the_share_takes_no_probe_permits() {
        let breaker = by_rate(1.0);
        (0..4).for_each(|_| fail(&breaker));
        tokio::time::advance(Duration::from_secs(1)).await;
        let probes: Vec<Pass> = (0..3).map(|_| breaker.try_pass().unwrap()).collect();
        let share = breaker.try_share().unwrap();
        drop(breaker.try_share().unwrap());
        share.failure(None);
        assert!(breaker.check().is_err(), "the three permits are in use");
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        drop(probes);
        breaker.try_share().unwrap().success();
        assert_eq!(breaker.state(), BreakerState::Closed);
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
            ..IN_A_ROW
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
