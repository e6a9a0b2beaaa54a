//! The breaker's reference model for PROP-02, written from its description alone, as slowly and
//! plainly as possible.
//!
//! Time is in whole milliseconds. A list keeps everything that ever happened, and reading it
//! answers each question.

use proptest::prelude::*;

/// The settings under which both breakers run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The least share of a window's attempts that must have failed, in percent.
    pub failure_percent: u32,
    /// The length of the window, in milliseconds: a multiple of ten.
    pub window_ms: u64,
    /// The number of attempts in a window that are enough to open the breaker.
    pub minimum_attempts: u32,
    /// The number of failures in a row that are enough as well.
    pub failure_threshold: u32,
    /// How long the breaker stays open at first, in milliseconds.
    pub cool_down_ms: u64,
    /// How long it stays open at most, in milliseconds.
    pub cool_down_max_ms: u64,
    /// The number of probes of a half-open breaker.
    pub half_open_probes: u32,
    /// The share of the refused requests without another candidate that pass, in percent.
    pub open_percent: u32,
}

/// One step of a run.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// A request asks for an attempt.
    Ask,
    /// A request without another candidate asks for an attempt, and for its share if the breaker
    /// refuses it.
    AskWithoutAlternative,
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
    /// Every attempt passes.
    Closed,
    /// The instant at which it ends, in milliseconds.
    Open { until_ms: u64 },
    /// A few attempts pass.
    HalfOpen,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Well,
    Badly,
    Left,
}

/// An attempt that was let through, or that is counted anew because its stream has begun well.
#[derive(Clone, Debug)]
struct Attempt {
    /// The period in which it was let through.
    period: usize,
    begun_ms: u64,
    /// Whether it passed as a share of the requests without another candidate.
    share: bool,
    /// Whether it has begun well.
    begun_well: bool,
    /// How it ended, and the position of its end among all ends.
    end: Option<(usize, End)>,
}

/// The model of the breaker.
#[derive(Debug)]
pub struct Model {
    settings: Settings,
    longest_asked_ms: u64,
    now_ms: u64,
    periods: Vec<Period>,
    /// Every attempt that ever passed.
    attempts: Vec<Attempt>,
    /// The attempts under way.
    under_way: Vec<usize>,
    /// The number of ends so far.
    ends: usize,
    /// For each refusal of a request without another candidate: the period in which it came, and
    /// whether the request passed nevertheless.
    refusals: Vec<(usize, bool)>,
}

impl Model {
    /// Makes a closed breaker; no Retry-After counts for more than `longest_asked_ms`.
    pub fn new(settings: Settings, longest_asked_ms: u64) -> Self {
        Self {
            settings,
            longest_asked_ms,
            now_ms: 0,
            periods: vec![Period::Closed],
            attempts: Vec::new(),
            under_way: Vec::new(),
            ends: 0,
            refusals: Vec::new(),
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
            Some(Period::Open { .. } | Period::HalfOpen) => Seen::HalfOpen,
            Some(Period::Closed) | None => Seen::Closed,
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
            self.periods.push(Period::HalfOpen);
        }
        if matches!(self.periods.last(), Some(Period::HalfOpen)) {
            let probes = self.of_this_period().filter(|attempt| !attempt.share);
            let in_use = probes.filter(|probe| !matches!(probe.end, Some((_, End::Left))));
            if in_use.count() >= self.settings.half_open_probes as usize {
                return false;
            }
        }
        self.pass(false);
        true
    }

    /// Asks for an attempt of a request without another candidate; true if it is let through.
    pub fn ask_without_alternative(&mut self) -> bool {
        if self.ask() {
            return true;
        }
        let closed = |period: &Period| matches!(period, Period::Closed);
        let last_closed = self.periods.iter().rposition(closed);
        let since = |(period, _): &&(usize, bool)| Some(*period) > last_closed;
        let refused = self.refusals.iter().filter(since).count() + 1;
        let passed = self
            .refusals
            .iter()
            .filter(since)
            .filter(|(_, passed)| *passed);
        let passes = refused * self.settings.open_percent as usize >= (passed.count() + 1) * 100;
        self.refusals.push((self.periods.len() - 1, passes));
        if passes {
            self.pass(true);
        }
        passes
    }

    /// The attempt at that position has begun well. One that was let through while the breaker was
    /// not closed closes it, and counts from now on as one that was let through afterwards.
    pub fn commit(&mut self, at: usize) {
        let current = self.periods.len() - 1;
        let attempt = self.under_way[at];
        if self.attempts[attempt].period == current
            && !matches!(self.periods[current], Period::Closed)
        {
            self.periods.push(Period::Closed);
            self.pass(false);
            if let Some(anew) = self.under_way.pop() {
                self.under_way[at] = anew;
            }
        }
        self.attempts[self.under_way[at]].begun_well = true;
    }

    /// The attempt at that position ends well.
    pub fn succeed(&mut self, at: usize) {
        let period = self.end(at, End::Well).period;
        let current = period + 1 == self.periods.len();
        if current && !matches!(self.periods[period], Period::Closed) {
            self.periods.push(Period::Closed);
        }
    }

    /// The attempt at that position fails.
    pub fn fail(&mut self, at: usize, asked_ms: Option<u64>) {
        let attempt = self.end(at, End::Badly);
        let asked_until = asked_ms.map(|asked| self.now_ms + asked.min(self.longest_asked_ms));
        let current = attempt.period + 1 == self.periods.len();
        let opens = match self.periods.last_mut() {
            Some(Period::Open { until_ms }) => {
                *until_ms = (*until_ms).max(asked_until.unwrap_or(0));
                false
            }
            Some(Period::Closed) => current && self.fails_too_much(&attempt),
            Some(Period::HalfOpen) => {
                let bad = |one: &&Attempt| !one.share && matches!(one.end, Some((_, End::Badly)));
                let failed = self.of_this_period().filter(bad).count();
                current && !attempt.share && failed >= self.settings.half_open_probes as usize
            }
            None => false,
        };
        if opens {
            let until_ms = self.now_ms + self.cool_down_ms();
            self.periods.push(Period::Open {
                until_ms: until_ms.max(asked_until.unwrap_or(0)),
            });
        }
    }

    /// The client of the attempt at that position leaves. The attempt counts for nothing, unless it
    /// had begun well: then it has not failed.
    pub fn leave(&mut self, at: usize) {
        self.end(at, End::Left);
    }

    /// Lets time pass, in milliseconds.
    pub fn advance(&mut self, ms: u64) {
        self.now_ms += ms;
    }

    fn pass(&mut self, share: bool) {
        self.under_way.push(self.attempts.len());
        self.attempts.push(Attempt {
            period: self.periods.len() - 1,
            begun_ms: self.now_ms,
            share,
            begun_well: false,
            end: None,
        });
    }

    fn end(&mut self, at: usize, how: End) -> Attempt {
        let attempt = self.under_way.remove(at);
        self.ends += 1;
        self.attempts[attempt].end = Some((self.ends, how));
        self.attempts[attempt].clone()
    }

    fn of_this_period(&self) -> impl Iterator<Item = &Attempt> {
        let current = self.periods.len() - 1;
        self.attempts
            .iter()
            .filter(move |attempt| attempt.period == current)
    }

    /// The tenth of a window in which an attempt began, counted from the start.
    fn slot(&self, attempt: &Attempt) -> u64 {
        attempt.begun_ms / (self.settings.window_ms / 10)
    }

    /// Whether this failure opens the closed breaker: the failure rate is reached among the
    /// attempts that began in the window up to it, and among those that began later and have
    /// ended; and the window has enough attempts, or enough failures came in a row.
    fn fails_too_much(&self, failure: &Attempt) -> bool {
        let counted: Vec<&Attempt> = self
            .of_this_period()
            .filter(|one| one.begun_well || !matches!(one.end, Some((_, End::Left))))
            .collect();
        let bad = |attempt: &&&Attempt| matches!(attempt.end, Some((_, End::Badly)));
        let last = self.slot(failure);
        let (window, later): (Vec<&Attempt>, Vec<&Attempt>) = counted
            .iter()
            .filter(|attempt| self.slot(attempt) + 10 > last)
            .partition(|attempt| self.slot(attempt) <= last);
        let later: Vec<&Attempt> = later.into_iter().filter(|one| one.end.is_some()).collect();
        let too_many = |attempts: &[&Attempt]| {
            let failed = attempts.iter().filter(bad).count();
            failed * 100 >= attempts.len() * self.settings.failure_percent as usize
        };
        let mut ends: Vec<(usize, End)> = counted.iter().filter_map(|one| one.end).collect();
        ends.retain(|(_, end)| *end != End::Left);
        ends.sort_by_key(|(position, _)| *position);
        let in_a_row = ends.iter().rev().take_while(|(_, end)| *end == End::Badly);
        too_many(&window)
            && too_many(&later)
            && (window.len() >= self.settings.minimum_attempts as usize
                || in_a_row.count() >= self.settings.failure_threshold as usize)
    }

    /// How long the breaker stays open: twice as long each time, until it is closed.
    fn cool_down_ms(&self) -> u64 {
        let since_closed = self
            .periods
            .iter()
            .rev()
            .take_while(|period| !matches!(period, Period::Closed));
        let openings = since_closed.filter(|period| matches!(period, Period::Open { .. }));
        let mut cool_down = self.settings.cool_down_ms;
        for _ in openings {
            cool_down = (2 * cool_down).min(self.settings.cool_down_max_ms);
        }
        cool_down
    }
}

/// Settings that are small enough for runs to pass through all states many times.
pub fn settings() -> impl Strategy<Value = Settings> {
    let of_the_rate = (
        prop_oneof![Just(0u32), Just(50), Just(75), Just(100)],
        prop_oneof![Just(1_000u64), Just(100), Just(20_000)],
        prop_oneof![1..6u32, Just(1_000)],
        prop_oneof![1..4u32, Just(1_000)],
    );
    let of_the_states = (
        prop_oneof![Just(1_000u64), Just(30_000), 1..500u64],
        prop_oneof![Just(1u64), Just(3), Just(8)],
        1..4u32,
        prop_oneof![Just(0u32), Just(25), Just(50), Just(100)],
    );
    (of_the_rate, of_the_states).prop_map(
        |(
            (failure_percent, window_ms, minimum_attempts, failure_threshold),
            (cool_down_ms, longest, half_open_probes, open_percent),
        )| Settings {
            failure_percent,
            window_ms,
            minimum_attempts,
            failure_threshold,
            cool_down_ms,
            cool_down_max_ms: longest * cool_down_ms,
            half_open_probes,
            open_percent,
        },
    )
}

/// Runs of up to 120 steps; time passes in steps that end before, at and after a cool-down and a
/// part of a window.
pub fn actions(settings: Settings) -> impl Strategy<Value = Vec<Action>> {
    let cool_down = settings.cool_down_ms;
    let asked = prop_oneof![3 => Just(None), 1 => (0..3 * cool_down).prop_map(Some), 1 => Just(Some(u64::MAX / 4))];
    let time = prop_oneof![
        Just(cool_down),
        Just(cool_down - 1),
        Just(1u64),
        0..2 * cool_down,
        Just(settings.window_ms / 10),
        0..2 * settings.window_ms,
        Just(700_000u64)
    ];
    let action = prop_oneof![
        6 => Just(Action::Ask),
        2 => Just(Action::AskWithoutAlternative),
        2 => (0usize..6).prop_map(Action::Commit),
        2 => (0usize..6).prop_map(Action::Succeed),
        4 => (0usize..6, asked).prop_map(|(at, asked)| Action::Fail(at, asked)),
        2 => (0usize..6).prop_map(Action::Leave),
        3 => time.prop_map(Action::Advance),
    ];
    proptest::collection::vec(action, 1..120)
}
