//! The breaker's reference model for PROP-02, written from its description alone, as slowly and
//! plainly as possible.
//!
//! Time is in whole milliseconds. A list keeps everything that ever happened, and reading it
//! answers each question.

use proptest::prelude::*;

/// The settings under which both breakers run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The number of failures in a row that open the breaker.
    pub failure_threshold: u32,
    /// How long the breaker stays open, in milliseconds.
    pub cool_down_ms: u64,
    /// The number of probes at once.
    pub half_open_probes: u32,
}

/// One step of a run.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// A request asks for an attempt.
    Ask,
    /// The n-th attempt under way (modulo their number) has begun well: a stream reached its
    /// commit point.
    Commit(usize),
    /// The n-th attempt under way (modulo their number) ends well.
    Succeed(usize),
    /// The n-th attempt under way (modulo their number) fails; the provider may ask for a pause.
    Fail(usize, Option<u64>),
    /// The client of the n-th attempt under way (modulo their number) leaves.
    Leave(usize),
    /// Time passes, in milliseconds.
    Advance(u64),
}

/// The state as callers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Every request passes.
    Closed,
    /// No request passes.
    Open,
    /// Probes pass, and no other request.
    HalfOpen,
}

/// A period between two changes of state.
#[derive(Clone, Debug)]
enum Period {
    /// The results of the attempts that began in it, in order: true is success.
    Closed { verdicts: Vec<bool> },
    /// The instant at which it ends, in milliseconds.
    Open { until_ms: u64 },
    /// The attempts that began in it and have neither a result nor left.
    HalfOpen { probing: u32 },
}

/// The model of the breaker.
#[derive(Debug)]
pub struct Model {
    settings: Settings,
    longest_asked_ms: u64,
    now_ms: u64,
    periods: Vec<Period>,
    /// The period in which each attempt under way was let through.
    under_way: Vec<usize>,
}

impl Model {
    /// Makes a closed breaker; no Retry-After counts for more than `longest_asked_ms`.
    pub fn new(settings: Settings, longest_asked_ms: u64) -> Self {
        Self {
            settings,
            longest_asked_ms,
            now_ms: 0,
            periods: vec![Period::Closed {
                verdicts: Vec::new(),
            }],
            under_way: Vec::new(),
        }
    }

    /// The number of attempts under way.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// The state now.
    pub fn state(&self) -> Seen {
        match self.periods.last() {
            Some(Period::Open { until_ms }) if *until_ms > self.now_ms => Seen::Open,
            Some(Period::Open { .. } | Period::HalfOpen { .. }) => Seen::HalfOpen,
            Some(Period::Closed { .. }) | None => Seen::Closed,
        }
    }

    /// The milliseconds for which no request will pass, if the breaker is open.
    pub fn rests_for_ms(&self) -> Option<u64> {
        match self.periods.last() {
            Some(Period::Open { until_ms }) if *until_ms > self.now_ms => {
                Some(until_ms - self.now_ms)
            }
            _ => None,
        }
    }

    /// Asks for an attempt; true if the breaker lets it through.
    pub fn ask(&mut self) -> bool {
        if let Some(Period::Open { until_ms }) = self.periods.last() {
            if *until_ms > self.now_ms {
                return false;
            }
            self.periods.push(Period::HalfOpen { probing: 0 });
        }
        if let Some(Period::HalfOpen { probing }) = self.periods.last_mut() {
            if *probing == self.settings.half_open_probes {
                return false;
            }
            *probing += 1;
        }
        self.under_way.push(self.periods.len() - 1);
        true
    }

    /// The attempt at that position has begun well. One that was let through half-open closes the
    /// breaker, and counts from now on as one that was let through afterwards.
    pub fn commit(&mut self, at: usize) {
        let current = self.periods.len() - 1;
        if self.under_way[at] == current && matches!(self.periods[current], Period::HalfOpen { .. })
        {
            self.periods.push(Period::Closed {
                verdicts: Vec::new(),
            });
            self.under_way[at] = current + 1;
        }
    }

    /// The attempt at that position ends well.
    pub fn succeed(&mut self, at: usize) {
        let period = self.under_way.remove(at);
        if period + 1 != self.periods.len() {
            return;
        }
        match self.periods.last_mut() {
            Some(Period::Closed { verdicts }) => verdicts.push(true),
            Some(Period::HalfOpen { .. }) => self.periods.push(Period::Closed {
                verdicts: Vec::new(),
            }),
            Some(Period::Open { .. }) | None => {}
        }
    }

    /// The attempt at that position fails.
    pub fn fail(&mut self, at: usize, asked_ms: Option<u64>) {
        let period = self.under_way.remove(at);
        let asked_until = asked_ms.map(|asked| self.now_ms + asked.min(self.longest_asked_ms));
        let opens_until = (self.now_ms + self.settings.cool_down_ms).max(asked_until.unwrap_or(0));
        let current = period + 1 == self.periods.len();
        match self.periods.last_mut() {
            Some(Period::Open { until_ms }) => {
                *until_ms = (*until_ms).max(asked_until.unwrap_or(0))
            }
            Some(Period::Closed { verdicts }) if current => {
                verdicts.push(false);
                let in_a_row = verdicts.iter().rev().take_while(|good| !**good).count();
                if in_a_row >= self.settings.failure_threshold as usize {
                    self.periods.push(Period::Open {
                        until_ms: opens_until,
                    });
                }
            }
            Some(Period::HalfOpen { .. }) if current => self.periods.push(Period::Open {
                until_ms: opens_until,
            }),
            Some(Period::Closed { .. } | Period::HalfOpen { .. }) | None => {}
        }
    }

    /// The client of the attempt at that position leaves, and the attempt counts for nothing.
    pub fn leave(&mut self, at: usize) {
        let period = self.under_way.remove(at);
        if period + 1 == self.periods.len()
            && let Some(Period::HalfOpen { probing }) = self.periods.last_mut()
        {
            *probing -= 1;
        }
    }

    /// Lets time pass, in milliseconds.
    pub fn advance(&mut self, ms: u64) {
        self.now_ms += ms;
    }
}

/// Settings that are small enough for runs to pass through all states many times.
pub fn settings() -> impl Strategy<Value = Settings> {
    (
        1..4u32,
        prop_oneof![Just(1_000u64), Just(30_000), 1..500u64],
        1..4u32,
    )
        .prop_map(
            |(failure_threshold, cool_down_ms, half_open_probes)| Settings {
                failure_threshold,
                cool_down_ms,
                half_open_probes,
            },
        )
}

/// Runs of up to 120 steps; time passes in steps that end before, at and after a cool-down.
pub fn actions(settings: Settings) -> impl Strategy<Value = Vec<Action>> {
    let cool_down = settings.cool_down_ms;
    let asked = prop_oneof![3 => Just(None), 1 => (0..3 * cool_down).prop_map(Some), 1 => Just(Some(u64::MAX / 4))];
    let time = prop_oneof![
        Just(cool_down),
        Just(cool_down - 1),
        Just(1u64),
        0..2 * cool_down,
        Just(700_000u64)
    ];
    let action = prop_oneof![
        6 => Just(Action::Ask),
        2 => (0usize..6).prop_map(Action::Commit),
        2 => (0usize..6).prop_map(Action::Succeed),
        4 => (0usize..6, asked).prop_map(|(at, asked)| Action::Fail(at, asked)),
        2 => (0usize..6).prop_map(Action::Leave),
        3 => time.prop_map(Action::Advance),
    ];
    proptest::collection::vec(action, 1..120)
}
