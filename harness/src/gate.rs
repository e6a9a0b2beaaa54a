//! Gates, rendezvous, interlocks and the hang guard: how a suite proves order without a clock.
//!
//! This is the only module of harness, suites and tests that owns time. Noise can only make things later, so a suite asserts
//! orders of events and lower bounds ([`at_least`]); the one upper bound is the hang guard, which is far away and never the
//! thing asserted. Everything that a case waits for goes through [`guard`].

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{Either, select};
use tokio::sync::watch;
use tokio::task::unconstrained;

use crate::case::{CaseResult, Failure, Honesty};
use crate::tape::{Entry, Event, Side, Tape};

/// How long anything may take before it counts as hung, unless `GAUNTLET_HANG_GUARD_MS` says otherwise.
const HANG_GUARD: Duration = Duration::from_secs(20);

/// The slack of a lower bound: timers and the tape round by about this much.
const TICK: Duration = Duration::from_millis(2);

tokio::task_local! {
    static OWN_GUARD: Duration;
}

/// Runs `future` with a hang guard of its own; what it spawns has the usual one. For examinations that are expected to hang:
/// a defective gateway that never answers. Cancel safe if `future` is.
pub async fn with_hang_guard<T>(bound: Duration, future: impl Future<Output = T>) -> T {
    OWN_GUARD.scope(bound, future).await
}

/// The bound after which a wait counts as hung: that of [`with_hang_guard`], else `GAUNTLET_HANG_GUARD_MS`, else 20 s.
pub fn hang_guard() -> Duration {
    if let Ok(bound) = OWN_GUARD.try_with(|bound| *bound) {
        return bound;
    }
    std::env::var("GAUNTLET_HANG_GUARD_MS").ok().and_then(|ms| ms.parse().ok()).map_or(HANG_GUARD, Duration::from_millis)
}

/// Waits for `future`; `what` says what is waited for, in the words of the requirement ("the client's answer").
///
/// # Errors
/// After the hang guard: the requirement is violated by a hang, and `future` is dropped.
pub async fn guard<T>(what: &str, future: impl Future<Output = T>) -> Result<T, Failure> {
    guard_with(what, future, || "nothing came".to_string()).await
}

/// The same; `observed` is asked, when the guard fires, what has been seen until then ("saw 2 of 4").
///
/// # Errors
/// As [`guard`].
pub async fn guard_with<T>(what: &str, future: impl Future<Output = T>, observed: impl FnOnce() -> String) -> Result<T, Failure> {
    guard_for(hang_guard(), what, future, observed).await
}

async fn guard_for<T>(bound: Duration, what: &str, future: impl Future<Output = T>, observed: impl FnOnce() -> String) -> Result<T, Failure> {
    // not `tokio::time::timeout`: its timer waits for a share of the task's budget, which a busy neighbour can use up for ever
    let end = pin!(unconstrained(tokio::time::sleep(bound)));
    match select(pin!(future), end).await {
        Either::Left((value, _)) => Ok(value),
        Either::Right(_) => Err(Failure::Violated {
            expected: what.to_string(),
            observed: format!("{} within the hang guard of {} ms", observed(), bound.as_millis()),
            honesty: Honesty::Hung,
        }),
    }
}

/// The time between two entries of a tape; zero if `later` is the earlier one.
pub fn gap(earlier: &Entry, later: &Entry) -> Duration {
    later.at().saturating_sub(earlier.at())
}

/// A lower bound: `gap` is at least `bound`, but for the rounding of timers.
///
/// Safe under any load if the gap begins at a cause and ends at its effect: [`Event::ClientSent`] and [`Event::AnswerSent`] are
/// recorded before the bytes are written, [`Event::ClientAnswered`], [`Event::RequestRead`] and [`Event::PeerClosed`] after they came.
///
/// # Errors
/// A violation that names both values.
pub fn at_least(what: &str, gap: Duration, bound: Duration) -> CaseResult {
    if gap + TICK >= bound {
        return Ok(());
    }
    Err(Failure::Violated {
        expected: format!("{what} after {} ms at the earliest", bound.as_millis()),
        observed: format!("{:.1} ms", gap.as_secs_f64() * 1_000.0),
        honesty: Honesty::Honest,
    })
}

/// Lets `every` pass: the pace of a plan, a dribbling client, a slow reader. Never a way to wait for something. Cancel safe.
pub async fn pace(every: Duration) {
    tokio::time::sleep(every).await;
}

/// Asks again and again, a few milliseconds apart, until `probe` has a value; for facts of the system that notify nobody
/// (a socket's queue). Waits for ever: callers put a guard or a bound round it. Cancel safe.
pub async fn poll_until<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(value) = probe() {
            return value;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// Makes an exchange again and again, a few milliseconds apart, until it shows the fact that is waited for (`Some`): for facts that
/// nobody tells, such as a dependency that is back. `what` says the fact, in the words of the requirement.
///
/// # Errors
/// The first failure of an exchange; after the hang guard, a violation by a hang.
pub async fn converge<T, F>(what: &str, mut exchange: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<Option<T>, Failure>>,
{
    let again = async {
        loop {
            if let Some(fact) = exchange().await? {
                return Ok(fact);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    guard_with(what, again, || "it never was so".to_string()).await?
}

/// Waits until `probe` has given the same value for a third of a second, and returns it: for "takes no more". Safe where more load
/// can only make the value smaller, as with bytes taken. Cancel safe.
pub async fn settled<T: PartialEq>(mut probe: impl FnMut() -> T) -> T {
    let mut value = probe();
    let mut same = 0;
    while same < 33 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = probe();
        same = if now == value { same + 1 } else { 0 };
        value = now;
    }
    value
}

/// What comes of `future` within `bound`, if anything does; for the harness's own machinery (stubs, faults, databases, clean-up),
/// whose failure is not a verdict. Drops `future` at the bound.
pub(crate) async fn bounded<T>(bound: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(bound, future).await.ok()
}

/// The gates of one case, by name. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Gates {
    shared: Arc<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    tape: Tape,
    gates: Mutex<HashMap<String, Gate>>,
    rendezvous: Mutex<HashMap<String, Rendezvous>>,
    interlocks: Mutex<HashMap<String, Interlock>>,
}

impl Gates {
    /// No gates yet; openings and meetings are recorded on `tape`.
    pub fn new(tape: Tape) -> Self {
        Self { shared: Arc::new(Registry { tape, ..Registry::default() }) }
    }

    /// The gate of that name, made closed when it is first named (by the case or by a plan).
    pub fn gate(&self, name: &str) -> Gate {
        let mut gates = lock(&self.shared.gates);
        gates
            .entry(name.to_string())
            .or_insert_with(|| Gate { name: name.into(), tape: self.shared.tape.clone(), open: Arc::new(watch::Sender::new(false)) })
            .clone()
    }

    /// The rendezvous of that name. The count is the one first named.
    pub fn rendezvous(&self, name: &str, count: usize) -> Rendezvous {
        let mut all = lock(&self.shared.rendezvous);
        all.entry(name.to_string())
            .or_insert_with(|| Rendezvous {
                name: name.into(),
                count,
                tape: self.shared.tape.clone(),
                muster: Arc::new(watch::Sender::new(Muster::default())),
            })
            .clone()
    }

    /// The interlock of that name.
    pub fn interlock(&self, name: &str) -> Interlock {
        let mut all = lock(&self.shared.interlocks);
        all.entry(name.to_string()).or_insert_with(|| Interlock { acknowledged: Arc::new(watch::Sender::new(0)) }).clone()
    }

    /// Opens every gate, releases every interlock: what a case does before it waits for the end of everything.
    pub fn open_all(&self) {
        let gates: Vec<Gate> = lock(&self.shared.gates).values().cloned().collect();
        gates.iter().for_each(Gate::open);
        let interlocks: Vec<Interlock> = lock(&self.shared.interlocks).values().cloned().collect();
        interlocks.iter().for_each(Interlock::release);
    }
}

/// Holds whoever waits until it is opened; stays open until it is closed again.
#[derive(Clone, Debug)]
pub struct Gate {
    name: Arc<str>,
    tape: Tape,
    open: Arc<watch::Sender<bool>>,
}

impl Gate {
    /// Opens it. The tape has the opening before anything that it lets go.
    pub fn open(&self) {
        if !self.is_open() {
            self.tape.record(Side::Gate(self.name.to_string()), Event::Opened);
        }
        self.open.send_replace(true);
    }

    /// Closes it for those who come from now on.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Waits until it is open. Cancel safe.
    pub async fn wait(&self) {
        // the sender lives as long as self, so the only way out is an open gate
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

/// Lets nobody go until `count` are there together: the proof of "in parallel" on any machine.
///
/// In two phases, because a participant may have left without having been noticed yet: when `count` have come, each looks
/// whether it is still wanted and only then witnesses; all meet when `count` have witnessed the same gathering. So all of
/// them were there at one moment. Whoever is dropped while waiting is not counted any more.
#[derive(Clone, Debug)]
pub struct Rendezvous {
    name: Arc<str>,
    count: usize,
    tape: Tape,
    muster: Arc<watch::Sender<Muster>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Muster {
    waiting: usize,
    most: usize,
    /// Changes whenever somebody comes or goes: a witness counts for its own gathering only.
    gathering: u64,
    witnesses: usize,
    met: bool,
}

/// A place at a rendezvous; leaving it (drop) before the meeting takes the participant out of the count.
struct Place<'a>(&'a Rendezvous);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.muster.send_modify(|muster| {
            muster.waiting = muster.waiting.saturating_sub(1);
            muster.gathering += 1;
            muster.witnesses = 0;
        });
    }
}

impl Rendezvous {
    /// Comes, and waits until everybody is there. Cancel safe: a dropped wait leaves.
    pub async fn arrive(&self) {
        self.arrive_while(|| true).await;
    }

    /// The same; `still_there` is asked when all have come, and whoever says no waits on without being counted.
    pub(crate) async fn arrive_while(&self, still_there: impl Fn() -> bool) {
        let mut muster = self.muster.subscribe();
        let place = Place(self);
        self.muster.send_modify(|muster| {
            muster.waiting += 1;
            muster.most = muster.most.max(muster.waiting);
            muster.gathering += 1;
            muster.witnesses = 0;
        });
        let mut witnessed = None;
        loop {
            let seen = *muster.borrow_and_update();
            if seen.met {
                return;
            }
            if seen.waiting >= self.count && witnessed != Some(seen.gathering) {
                if !still_there() {
                    drop(place);
                    return std::future::pending().await;
                }
                witnessed = Some(seen.gathering);
                self.witness(seen.gathering);
                continue;
            }
            if muster.changed().await.is_err() {
                return;
            }
        }
    }

    fn witness(&self, gathering: u64) {
        self.muster.send_modify(|muster| {
            if muster.gathering == gathering && !muster.met {
                muster.witnesses += 1;
                if muster.witnesses >= self.count {
                    muster.met = true;
                    self.tape.record(Side::Gate(self.name.to_string()), Event::Met { count: muster.witnesses });
                }
            }
        });
    }

    /// Waits until everybody has met.
    ///
    /// # Errors
    /// After the hang guard: a violation that says how many were ever there together.
    pub async fn met(&self) -> CaseResult {
        let mut muster = self.muster.subscribe();
        let all = async {
            let _ = muster.wait_for(|muster| muster.met).await;
        };
        let expected = format!("{} together at the rendezvous {}", self.count, self.name);
        guard_with(&expected, all, || format!("saw {} of {} together", self.most(), self.count)).await
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.muster.borrow().waiting
    }

    /// The most that ever waited together.
    pub fn most(&self) -> usize {
        self.muster.borrow().most
    }
}

/// Lets the sender send event n + 1 only after the case acknowledged event n.
#[derive(Clone, Debug)]
pub struct Interlock {
    acknowledged: Arc<watch::Sender<usize>>,
}

impl Interlock {
    /// Acknowledges the events up to the n-th of the answer (from 1, as [`Event::EventSent`] counts them).
    pub fn ack(&self, n: usize) {
        self.acknowledged.send_modify(|acknowledged| *acknowledged = n.max(*acknowledged));
    }

    /// Acknowledges everything to come.
    pub fn release(&self) {
        self.ack(usize::MAX);
    }

    /// Waits until event n has been acknowledged. Cancel safe.
    pub async fn acknowledged(&self, n: usize) {
        let _ = self.acknowledged.subscribe().wait_for(|acknowledged| *acknowledged >= n).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn gates() -> (Gates, Tape) {
        let tape = Tape::new();
        (Gates::new(tape.clone()), tape)
    }

    #[tokio::test]
    async fn the_guard_says_what_was_awaited_and_what_was_seen() {
        let hung = guard_for(Duration::from_millis(1), "four requests", std::future::pending::<()>(), || "saw 2 of 4".into()).await;
        let Err(Failure::Violated { expected, observed, honesty }) = hung else { unreachable!("{hung:?}") };
        assert_eq!((expected.as_str(), honesty), ("four requests", Honesty::Hung));
        assert_eq!(observed, "saw 2 of 4 within the hang guard of 1 ms");
    }

    #[test]
    fn a_lower_bound_allows_for_the_rounding_of_timers_only() {
        let ms = Duration::from_millis;
        assert!(at_least("the retry", ms(99), ms(100)).is_ok());
        assert!(at_least("the retry", ms(500), ms(100)).is_ok());
        let early = at_least("the retry", ms(90), ms(100)).unwrap_err();
        assert_eq!(early.to_string(), "expected the retry after 100 ms at the earliest; observed 90.0 ms");
    }

    #[tokio::test]
    async fn the_opening_is_on_the_tape_before_what_it_lets_go_and_once() {
        let (gates, tape) = gates();
        let gate = gates.gate("g");
        let ((), ()) = tokio::join!(
            async {
                gates.gate("g").wait().await;
                tape.record(Side::Target, Event::Note { text: "went".into() });
            },
            async { gate.open() }
        );
        gate.open();
        let events: Vec<Event> = tape.entries().into_iter().map(|entry| entry.event).collect();
        assert_eq!(events, [Event::Opened, Event::Note { text: "went".into() }]);
        gate.close();
        assert!(!gates.gate("g").is_open());
    }

    #[tokio::test]
    async fn all_meet_at_once_and_latecomers_pass() {
        let (gates, tape) = gates();
        let rendezvous = gates.rendezvous("all", 3);
        tokio::join!(rendezvous.arrive(), rendezvous.arrive(), rendezvous.arrive(), async { rendezvous.met().await.unwrap() });
        rendezvous.arrive().await;
        assert_eq!(tape.select(|entry| entry.event == Event::Met { count: 3 }).len(), 1);
        assert_eq!(rendezvous.most(), 3);
    }

    #[tokio::test]
    async fn whoever_left_unnoticed_is_no_witness() {
        let (gates, tape) = gates();
        let rendezvous = gates.rendezvous("all", 2);
        let there = AtomicBool::new(true);
        let mut first = Box::pin(rendezvous.arrive_while(|| there.load(Ordering::SeqCst)));
        assert!(futures::poll!(&mut first).is_pending());
        // its peer closes, and nobody has noticed when the second comes
        there.store(false, Ordering::SeqCst);
        let mut second = Box::pin(rendezvous.arrive());
        for _ in 0..3 {
            assert!(futures::poll!(&mut second).is_pending());
            assert!(futures::poll!(&mut first).is_pending());
        }
        assert_eq!((tape.entries().len(), rendezvous.waiting()), (0, 1));
        tokio::join!(second, rendezvous.arrive());
        assert_eq!(tape.entries()[0].event, Event::Met { count: 2 });
    }

    #[tokio::test]
    async fn who_is_dropped_while_waiting_does_not_count() {
        let (gates, _) = gates();
        let rendezvous = gates.rendezvous("all", 2);
        for _ in 0..5 {
            let mut serial = Box::pin(rendezvous.arrive());
            assert!(futures::poll!(&mut serial).is_pending());
        }
        assert_eq!((rendezvous.waiting(), rendezvous.most()), (0, 1));
    }

    #[tokio::test]
    async fn an_interlock_is_cumulative() {
        let (gates, _) = gates();
        let interlock = gates.interlock("i");
        interlock.ack(3);
        interlock.ack(1);
        interlock.acknowledged(3).await;
        assert!(futures::poll!(Box::pin(interlock.acknowledged(4))).is_pending());
        gates.open_all();
        interlock.acknowledged(1_000).await;
    }
}
