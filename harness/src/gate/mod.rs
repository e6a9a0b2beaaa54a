//! Gates, rendezvous, interlocks and the hang guard: how a suite proves order without a clock.
//!
//! This is the only module of harness, suites and tests that owns time. Noise can only make things
//! later, so a suite asserts orders of events and lower bounds ([`at_least`]). The one upper bound
//! is the hang guard, which is far away and never the thing asserted. Everything that a case waits
//! for goes through [`guard`].

mod clock;
mod rendezvous;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::tape::{Event, Side, Tape};

pub(crate) use clock::bounded;
pub use clock::{
    at_least, converge, gap, guard, guard_with, hang_guard, pace, poll_until, settled,
    with_hang_guard,
};
pub use rendezvous::Rendezvous;

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
    /// Makes a set without gates that records openings and meetings on `tape`.
    pub fn new(tape: Tape) -> Self {
        Self {
            shared: Arc::new(Registry {
                tape,
                ..Registry::default()
            }),
        }
    }

    /// The gate of that name. It is made, closed, when a case or a plan first names it.
    pub fn gate(&self, name: &str) -> Gate {
        let mut gates = lock(&self.shared.gates);
        gates
            .entry(name.to_string())
            .or_insert_with(|| Gate {
                name: name.into(),
                tape: self.shared.tape.clone(),
                open: Arc::new(watch::Sender::new(false)),
            })
            .clone()
    }

    /// The rendezvous of that name, for as many as were given when it was first named.
    pub fn rendezvous(&self, name: &str, count: usize) -> Rendezvous {
        let mut all = lock(&self.shared.rendezvous);
        all.entry(name.to_string())
            .or_insert_with(|| Rendezvous::new(name, count, self.shared.tape.clone()))
            .clone()
    }

    /// The interlock of that name.
    pub fn interlock(&self, name: &str) -> Interlock {
        let mut all = lock(&self.shared.interlocks);
        all.entry(name.to_string())
            .or_insert_with(|| Interlock {
                acknowledged: Arc::new(watch::Sender::new(0)),
            })
            .clone()
    }

    /// Opens every gate and releases every interlock, as a case does before it waits for the end of
    /// everything.
    pub fn open_all(&self) {
        let gates: Vec<Gate> = lock(&self.shared.gates).values().cloned().collect();
        gates.iter().for_each(Gate::open);
        let interlocks: Vec<Interlock> = lock(&self.shared.interlocks).values().cloned().collect();
        interlocks.iter().for_each(Interlock::release);
    }
}

/// Holds whoever waits until the gate is opened. It stays open until it is closed again.
#[derive(Clone, Debug)]
pub struct Gate {
    name: Arc<str>,
    tape: Tape,
    open: Arc<watch::Sender<bool>>,
}

impl Gate {
    /// Opens the gate. The tape has the opening before anything that the gate lets go.
    pub fn open(&self) {
        if !self.is_open() {
            self.tape
                .record(Side::Gate(self.name.to_string()), Event::Opened);
        }
        self.open.send_replace(true);
    }

    /// Closes the gate for those who come from now on.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Whether the gate is open.
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Waits until the gate is open. Cancel safe.
    pub async fn wait(&self) {
        // the sender lives as long as self, so the only way out is an open gate
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

/// Lets a sender send event n + 1 only after the case has acknowledged event n.
#[derive(Clone, Debug)]
pub struct Interlock {
    acknowledged: Arc<watch::Sender<usize>>,
}

impl Interlock {
    /// Acknowledges the events up to the n-th of the answer, counted from 1 as in
    /// [`Event::EventSent`].
    pub fn ack(&self, n: usize) {
        self.acknowledged
            .send_modify(|acknowledged| *acknowledged = n.max(*acknowledged));
    }

    /// Acknowledges every event to come.
    pub fn release(&self) {
        self.ack(usize::MAX);
    }

    /// Waits until event n has been acknowledged. Cancel safe.
    pub async fn acknowledged(&self, n: usize) {
        let _ = self
            .acknowledged
            .subscribe()
            .wait_for(|acknowledged| *acknowledged >= n)
            .await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates() -> (Gates, Tape) {
        let tape = Tape::new();
        (Gates::new(tape.clone()), tape)
    }

    #[tokio::test]
    async fn the_opening_is_on_the_tape_before_what_it_lets_go_and_once() {
        let (gates, tape) = gates();
        let gate = gates.gate("g");
        let ((), ()) = tokio::join!(
            async {
                gates.gate("g").wait().await;
                tape.record(
                    Side::Target,
                    Event::Note {
                        text: "went".into(),
                    },
                );
            },
            async { gate.open() }
        );
        gate.open();
        let events: Vec<Event> = tape
            .entries()
            .into_iter()
            .map(|entry| entry.event)
            .collect();
        assert_eq!(
            events,
            [
                Event::Opened,
                Event::Note {
                    text: "went".into()
                }
            ]
        );
        gate.close();
        assert!(!gates.gate("g").is_open());
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
