//! What a case plants, and what it reaches: the proof that a case has examined what it is about.
//!
//! A stub knows the faulty answers that it was given, and the wire counts each as *met* when its
//! bytes come to the fault. A case that passes although one of its faults was never met, or that
//! never reached a state which it is about (an open breaker, a limit that is full), has shown
//! nothing: it is *not exercised*. So is a case that leaves out one of its listed instances.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::rows::kinds;
use crate::tape::{Entry, Event};

#[rustfmt::skip] // a row is a name and a sentence
kinds! {
    /// A state of the gateway, or of what is around it, that cases are about.
    State;
    /// How the state is seen from outside, in one sentence.
    meaning;
    PooledConnection "pooled connection reused"
        "A provider read a second request from one connection."
    Together "requests together"
        "As many requests as the case asks for were at the stubs at one moment."
    Held "answer held"
        "A provider held an answer while the client waited."
    StreamBroken "stream broken after its first event"
        "A provider cut, reset or stalled a stream of which it had sent an event."
    ClientLeft "client left"
        "A client closed its connection before its answer was whole."
    CallClosed "call closed by the gateway"
        "The gateway closed the connection of a request that a provider had not answered."
    BreakerOpen "breaker open"
        "A candidate that had failed was not asked for the next request."
    HalfOpenWithWaiters "half-open with waiters"
        "A probe was held at the provider while further requests arrived."
    RetryBudgetSpent "retry budget spent"
        "Attempts were repeated, and then no longer, although they went on failing."
    BulkheadFull "bulkhead full"
        "A provider had as many requests as its limit, and further ones were waiting."
    AdmissionFull "admission full"
        "The gateway had as many requests in flight as its limit, and further ones arrived."
    DrainBegun "drain begun"
        "The process was sent SIGTERM while requests were in flight."
    HungUp "process hung up"
        "The process was sent SIGHUP while requests were in flight."
    DatabaseFault "database taken away"
        "The harness took the database, or a part of it, away: stalled, gone, locked, read-only."
}

/// A fault that a case planted, and how often it was met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlantedFault {
    /// The provider that was given the fault, or `database`.
    pub at: String,
    /// The fault in words: `status 503`, `a reset`.
    pub fault: String,
    /// How often it has to be met; 0 where the case allows that it is not.
    pub planted: u64,
    /// How often it was met.
    pub met: u64,
}

impl PlantedFault {
    /// Returns whether the fault was met as often as it was planted.
    pub fn is_met(&self) -> bool {
        self.met >= self.planted
    }
}

impl fmt::Display for PlantedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.fault, self.at)
    }
}

/// The faults that one stub was given. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Planted(Arc<Mutex<Vec<Row>>>);

#[derive(Debug)]
struct Row {
    id: u64,
    what: String,
    planted: u64,
    met: u64,
}

impl Planted {
    /// Adds a fault; one that is planted again has to be met once more.
    pub(crate) fn plant(&self, id: u64, what: String, times: u64) {
        let mut rows = self.rows();
        match rows.iter_mut().find(|row| row.id == id) {
            Some(row) => row.planted += times,
            None => rows.push(Row {
                id,
                what,
                planted: times,
                met: 0,
            }),
        }
    }

    /// Counts a fault as met. What was never planted is not counted.
    pub(crate) fn met(&self, id: u64) {
        if let Some(row) = self.rows().iter_mut().find(|row| row.id == id) {
            row.met += 1;
        }
    }

    /// The faults, as those of `at`.
    pub(crate) fn faults(&self, at: &str) -> Vec<PlantedFault> {
        let of = |row: &Row| PlantedFault {
            at: at.to_string(),
            fault: row.what.clone(),
            planted: row.planted,
            met: row.met,
        };
        self.rows().iter().map(of).collect()
    }

    fn rows(&self) -> MutexGuard<'_, Vec<Row>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The states that a case has reached by its own account. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Reached(Arc<Mutex<BTreeSet<State>>>);

impl Reached {
    /// Notes that a state was reached.
    pub fn note(&self, state: State) {
        self.states().insert(state);
    }

    /// Returns the states that were noted, and those that the tape shows.
    pub fn with_tape(&self, tape: &[Entry]) -> BTreeSet<State> {
        let mut states = self.states().clone();
        states.extend(seen_on(tape));
        states
    }

    fn states(&self) -> MutexGuard<'_, BTreeSet<State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The instances of a requirement that an examination has come to. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Instances(Arc<Mutex<BTreeMap<String, Instance>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instance {
    Examined,
    /// The target does not declare what the instance needs.
    LeftOut,
}

impl Instances {
    /// Notes that the instance is examined.
    pub fn examine(&self, name: &str) {
        self.rows().insert(name.into(), Instance::Examined);
    }

    /// Notes that the instance is left out, because the target does not declare what it needs.
    pub fn leave_out(&self, name: &str) {
        self.rows().insert(name.into(), Instance::LeftOut);
    }

    /// Returns the instances that were examined, in the order of the list of the case.
    pub fn examined(&self, listed: &[&str]) -> Vec<String> {
        let rows = self.rows();
        let examined = |name: &&&str| rows.get(**name) == Some(&Instance::Examined);
        let names = listed.iter().filter(examined);
        names.map(|name| (*name).to_string()).collect()
    }

    /// Returns the listed instances that were neither examined nor left out; all of them if none
    /// was examined.
    pub fn missing<'a>(&self, listed: &[&'a str]) -> Vec<&'a str> {
        let rows = self.rows();
        let idle = !rows.values().any(|how| *how == Instance::Examined);
        let missing = listed
            .iter()
            .filter(|name| idle || !rows.contains_key(**name));
        missing.copied().collect()
    }

    /// Returns an instance that was noted, and that the case does not list.
    pub fn unlisted(&self, listed: &[&str]) -> Option<String> {
        let rows = self.rows();
        let mut names = rows.keys();
        names.find(|name| !listed.contains(&name.as_str())).cloned()
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<String, Instance>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the tape's sentences about a fault of the database begin.
const DATABASE_FAULTS: [&str; 7] = [
    "stalled",
    "every connection",
    "new connections",
    "the harness makes",
    "the administrator",
    "the statement is held",
    "the table",
];

/// Returns the states that a tape shows by itself.
fn seen_on(tape: &[Entry]) -> BTreeSet<State> {
    let mut states = BTreeSet::new();
    let mut connections = BTreeSet::new();
    let mut begun = BTreeSet::new();
    for entry in tape {
        let state = match &entry.event {
            Event::RequestRead { connection, .. } => {
                (!connections.insert(*connection)).then_some(State::PooledConnection)
            }
            Event::Met { .. } => Some(State::Together),
            Event::Held { .. } => Some(State::Held),
            Event::EventSent { request, .. } => {
                begun.insert(*request);
                None
            }
            Event::Fault {
                request: Some(request),
                fault,
            } => {
                let breaks = ["cut", "reset", "stall"];
                let broken = breaks.iter().any(|way| fault.starts_with(way));
                (broken && begun.contains(request)).then_some(State::StreamBroken)
            }
            Event::ClientLeft => Some(State::ClientLeft),
            Event::PeerClosed {
                request: Some(_), ..
            } => Some(State::CallClosed),
            Event::Target { what } if what == "SIGTERM" => Some(State::DrainBegun),
            Event::Target { what } if what == "SIGHUP" => Some(State::HungUp),
            Event::Database { what } => {
                let taken_away = DATABASE_FAULTS.iter().any(|words| what.starts_with(words))
                    || what.ends_with(" is cut")
                    || what.ends_with(" is reset");
                taken_away.then_some(State::DatabaseFault)
            }
            _ => None,
        };
        states.extend(state);
    }
    states
}

/// Returns why a case that passed was not exercised; `None` if it was.
pub fn lacking(
    faults: &[PlantedFault],
    needed: &[State],
    reached: &BTreeSet<State>,
    missing: &[&str],
) -> Option<String> {
    let mut unmet: Vec<String> = Vec::new();
    for fault in faults.iter().filter(|fault| !fault.is_met()) {
        let sentence = match fault.met {
            0 => format!("{fault} was never met"),
            met => format!("{fault} was met {met} of {} times", fault.planted),
        };
        if !unmet.contains(&sentence) {
            unmet.push(sentence);
        }
    }
    let missed = needed.iter().filter(|state| !reached.contains(state));
    unmet.extend(missed.map(|state| format!("the state \"{state}\" was never reached")));
    let missing = missing.iter();
    unmet.extend(missing.map(|name| format!("the instance \"{name}\" was not examined")));
    if unmet.is_empty() {
        return None;
    }
    Some(format!(
        "nothing was wrong, but the requirement is not shown either: {}",
        unmet.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tape::{Close, Side, Tape};

    #[test]
    fn a_fault_that_was_planted_twice_has_to_be_met_twice() {
        let planted = Planted::default();
        planted.plant(7, "status 503".into(), 2);
        planted.plant(8, "a reset".into(), 0);
        planted.met(7);
        planted.met(9);
        let faults = planted.faults("p1");
        assert_eq!(
            lacking(&faults, &[], &BTreeSet::new(), &[]).unwrap(),
            "nothing was wrong, but the requirement is not shown either: status 503 at p1 was met 1 \
             of 2 times"
        );
        planted.met(7);
        assert_eq!(
            lacking(&planted.faults("p1"), &[], &BTreeSet::new(), &[]),
            None
        );
    }

    #[test]
    fn a_state_is_needed_until_it_is_reached() {
        let reached = Reached::default();
        let needed = [State::BreakerOpen];
        let why = lacking(&[], &needed, &reached.with_tape(&[]), &[]).unwrap();
        assert!(
            why.ends_with("the state \"breaker open\" was never reached"),
            "{why}"
        );
        reached.note(State::BreakerOpen);
        assert_eq!(lacking(&[], &needed, &reached.with_tape(&[]), &[]), None);
    }

    #[test]
    fn an_instance_is_examined_or_left_out_and_nothing_else_is_noted() {
        let listed = ["plain", "streamed", "Ollama"];
        let instances = Instances::default();
        instances.examine("streamed");
        instances.leave_out("Ollama");
        assert_eq!(instances.examined(&listed), ["streamed"]);
        let missing = instances.missing(&listed);
        assert_eq!(missing, ["plain"]);
        let why = lacking(&[], &[], &BTreeSet::new(), &missing).unwrap();
        assert!(
            why.ends_with("the instance \"plain\" was not examined"),
            "{why}"
        );
        assert_eq!(instances.unlisted(&listed), None);
        instances.examine("doubled");
        assert_eq!(instances.unlisted(&listed), Some("doubled".into()));
    }

    #[test]
    fn the_tape_shows_states_by_itself() {
        let tape = Tape::new();
        let p1 = || Side::Provider("p1".into());
        let read = |request| Event::RequestRead {
            connection: 3,
            request,
            method: "POST".into(),
            path: "/v1/chat/completions".into(),
            headers: Vec::new(),
            body: String::new(),
        };
        tape.record(p1(), read(1));
        assert_eq!(seen_on(&tape.entries()), BTreeSet::new());
        tape.record(p1(), read(2));
        tape.record(p1(), Event::EventSent { request: 2, n: 1 });
        for request in [1, 2] {
            let fault = "cut".to_string();
            tape.record(
                p1(),
                Event::Fault {
                    request: Some(request),
                    fault,
                },
            );
        }
        tape.record(
            p1(),
            Event::PeerClosed {
                connection: 3,
                request: Some(2),
                how: Close::Fin,
            },
        );
        let seen = seen_on(&tape.entries());
        let expected = [
            State::PooledConnection,
            State::StreamBroken,
            State::CallClosed,
        ];
        assert_eq!(seen, BTreeSet::from(expected));
    }
}
