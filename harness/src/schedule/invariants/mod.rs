//! What must hold for every schedule and every gateway: PROP-01 of the catalogue.
//!
//! The invariants judge what was seen from outside: the client's side and the calls at each
//! provider. The suites on the paused clock and the replay over real sockets share them.

mod across;

use std::fmt;

use serde::{Deserialize, Serialize};

use across::{breaker_rests, within_budget};

pub use super::observation::{Call, End, Exchange, Observation};
use super::{Action, Leave, Schedule};
use crate::plan::Listen;

/// One thing that must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Invariant {
    /// Every request has one end; only a client that left has none.
    OneEnd,
    /// The end comes by the deadline.
    WithinDeadline,
    /// No candidate is asked more often for one request than the attempts allow.
    WithinAttempts,
    /// Candidates are asked in their order, and none again after the next one.
    InOrder,
    /// The text is the beginning of what one call sent: nothing is doubled, mixed or invented.
    OneText,
    /// After the call whose text reached the client there is no other.
    NothingAfterCommit,
    /// A success is a whole answer of a provider that ended well.
    SuccessIsWhole,
    /// A whole answer, given at once, is served.
    GoodAnswerServed,
    /// 400, 401, 403, 404, 413 and 422 are not tried again at the same candidate.
    NoUselessRetry,
    /// A request that a provider rejects as wrong (400, 413, 422) goes to no other candidate. After
    /// a 404 it may, since URL and model name are the operator's.
    NoFallbackOfRejected,
    /// As long as there is time, every candidate is asked before the client gets an error.
    NobodyForgotten,
    /// Between two calls at the same candidate lie its Retry-After and the backoff.
    Waits,
    /// Nothing starts after the client has left.
    NothingAfterLeaving,
    /// After the end nothing is open at any provider.
    NothingLeftOpen,
    /// A candidate that failed so many times in a row is left alone for the cool-down.
    BreakerRests,
    /// Retries stay within the budget.
    WithinBudget,
}

/// An invariant that does not hold, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The invariant that does not hold.
    pub invariant: Invariant,
    /// The index of the request (from 0) in which it does not hold; `None` if it concerns all of
    /// them.
    pub request: Option<usize>,
    /// What was seen, in words.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.request {
            Some(request) => write!(
                f,
                "{:?} does not hold for request {}: {}",
                self.invariant,
                request + 1,
                self.what
            ),
            None => write!(f, "{:?} does not hold: {}", self.invariant, self.what),
        }
    }
}

impl std::error::Error for Violation {}

impl Invariant {
    /// All of them; first those without which the others mean little.
    pub const ALL: [Self; 16] = [
        Self::NothingAfterLeaving,
        Self::OneEnd,
        Self::WithinDeadline,
        Self::WithinAttempts,
        Self::InOrder,
        Self::OneText,
        Self::NothingAfterCommit,
        Self::SuccessIsWhole,
        Self::GoodAnswerServed,
        Self::NoUselessRetry,
        Self::NoFallbackOfRejected,
        Self::NobodyForgotten,
        Self::Waits,
        Self::NothingLeftOpen,
        Self::BreakerRests,
        Self::WithinBudget,
    ];
}

/// Checks all invariants.
///
/// # Errors
/// The first that does not hold.
pub fn check(schedule: &Schedule, seen: &Observation) -> Result<(), Violation> {
    check_only(&Invariant::ALL, schedule, seen)
}

/// Checks some invariants: a gateway without a breaker, for example, need not let one rest.
///
/// # Errors
/// The first that does not hold.
pub fn check_only(
    invariants: &[Invariant],
    schedule: &Schedule,
    seen: &Observation,
) -> Result<(), Violation> {
    if seen.exchanges.len() != schedule.requests.len() {
        let what = format!(
            "{} requests were asked, {} were seen",
            schedule.requests.len(),
            seen.exchanges.len()
        );
        return Err(Violation {
            invariant: Invariant::OneEnd,
            request: None,
            what,
        });
    }
    for invariant in invariants {
        match invariant {
            Invariant::NothingLeftOpen if seen.left_open > 0 => {
                let what = format!("{} calls are still open at providers", seen.left_open);
                return Err(Violation {
                    invariant: *invariant,
                    request: None,
                    what,
                });
            }
            Invariant::BreakerRests => breaker_rests(schedule, seen).map_err(|what| Violation {
                invariant: *invariant,
                request: None,
                what,
            })?,
            Invariant::WithinBudget => within_budget(schedule, seen).map_err(|what| Violation {
                invariant: *invariant,
                request: None,
                what,
            })?,
            _ => {}
        }
        for (request, exchange) in seen.exchanges.iter().enumerate() {
            let view = View {
                schedule,
                seen,
                request,
                exchange,
            };
            view.holds(*invariant).map_err(|what| Violation {
                invariant: *invariant,
                request: Some(request),
                what,
            })?;
        }
    }
    Ok(())
}

/// One exchange with what belongs to it.
struct View<'a> {
    schedule: &'a Schedule,
    seen: &'a Observation,
    request: usize,
    exchange: &'a Exchange,
}

impl View<'_> {
    fn holds(&self, invariant: Invariant) -> Result<(), String> {
        match invariant {
            Invariant::OneEnd => self.one_end(),
            Invariant::WithinDeadline => self.within_deadline(),
            Invariant::WithinAttempts => self.within_attempts(),
            Invariant::InOrder => self.in_order(),
            Invariant::OneText => self.one_text(),
            Invariant::NothingAfterCommit => self.nothing_after_commit(),
            Invariant::SuccessIsWhole => self.success_is_whole(),
            Invariant::GoodAnswerServed => self.good_answer_served(),
            Invariant::NoUselessRetry => self.no_useless_retry(),
            Invariant::NoFallbackOfRejected => self.no_fallback_of_rejected(),
            Invariant::NobodyForgotten => self.nobody_forgotten(),
            Invariant::Waits => self.waits(),
            Invariant::NothingAfterLeaving => match self.exchange.calls_after_leaving {
                0 => Ok(()),
                late => Err(format!("{late} calls began after the client had left")),
            },
            // these are about all exchanges together
            Invariant::NothingLeftOpen | Invariant::BreakerRests | Invariant::WithinBudget => {
                Ok(())
            }
        }
    }

    fn one_end(&self) -> Result<(), String> {
        let leaves = self.schedule.requests[self.request].leaves;
        match (self.exchange.ends.len(), leaves) {
            (1, _) => Ok(()),
            (0, Some(Leave::AfterMs(ms))) if self.exchange.elapsed_ms >= ms => Ok(()),
            (0, Some(Leave::AfterWords(words)))
                if self.exchange.text.split_whitespace().count() >= words =>
            {
                Ok(())
            }
            (0, _) => Err("the client stayed, and the exchange had no end".to_owned()),
            _ => Err(format!("it ended more than once: {:?}", self.exchange.ends)),
        }
    }

    fn within_deadline(&self) -> Result<(), String> {
        let allowed = self.schedule.settings.total_ms + self.seen.grace_ms;
        if self.exchange.elapsed_ms > allowed {
            return Err(format!(
                "it ended after {} ms, with a deadline of {} ms",
                self.exchange.elapsed_ms, self.schedule.settings.total_ms
            ));
        }
        Ok(())
    }

    fn within_attempts(&self) -> Result<(), String> {
        for candidate in 0..self.schedule.candidates.len() {
            let calls = self
                .exchange
                .calls
                .iter()
                .filter(|call| call.candidate == candidate)
                .count();
            if calls > self.schedule.settings.max_attempts as usize {
                return Err(format!(
                    "p{} was asked {calls} times, {} are allowed",
                    candidate + 1,
                    self.schedule.settings.max_attempts
                ));
            }
        }
        Ok(())
    }

    fn in_order(&self) -> Result<(), String> {
        let order: Vec<usize> = self
            .exchange
            .calls
            .iter()
            .map(|call| call.candidate)
            .collect();
        if order.is_sorted()
            && order
                .iter()
                .all(|candidate| *candidate < self.schedule.candidates.len())
        {
            return Ok(());
        }
        Err(format!("candidates were asked in the order {order:?}"))
    }

    fn one_text(&self) -> Result<(), String> {
        let text = &self.exchange.text;
        if text.is_empty() || self.source().is_some() {
            return Ok(());
        }
        Err(format!(
            "the client got {text:?}, which no single call sent"
        ))
    }

    fn nothing_after_commit(&self) -> Result<(), String> {
        let (false, Some(source)) = (self.exchange.text.is_empty(), self.source()) else {
            return Ok(());
        };
        if self.exchange.calls.last() == Some(&source) {
            return Ok(());
        }
        Err(format!(
            "p{}'s text had reached the client, and others were asked afterwards",
            source.candidate + 1
        ))
    }

    fn success_is_whole(&self) -> Result<(), String> {
        if !self.exchange.ends.contains(&End::Complete) {
            return Ok(());
        }
        let Some(last) = self.exchange.calls.last() else {
            return Err("a success without any call".to_owned());
        };
        let action = self.action(last);
        if !action.ends_well() {
            return Err(format!(
                "the client got a success, and the action of p{} was {action:?}",
                last.candidate + 1
            ));
        }
        let whole = super::full_text(last.candidate, last.call);
        if self.exchange.text != whole {
            return Err(format!(
                "the client got a success with {:?} of {whole:?}",
                self.exchange.text
            ));
        }
        Ok(())
    }

    fn good_answer_served(&self) -> Result<(), String> {
        let Some(last) = self.exchange.calls.last() else {
            return Ok(());
        };
        let settings = &self.schedule.settings;
        // "at once" may take as long as the grace: a shorter timeout may end it, and the deadline
        // too
        let least = settings
            .connect_ms
            .min(settings.first_token_ms)
            .min(settings.idle_ms);
        if least < self.seen.grace_ms
            || self.exchange.elapsed_ms + self.seen.grace_ms >= settings.total_ms
        {
            return Ok(());
        }
        if self.action(last).is_good_at_once()
            && self.exchange.ends.iter().any(|end| *end != End::Complete)
        {
            return Err(format!(
                "p{} answered well and at once, and the client got {:?}",
                last.candidate + 1,
                self.exchange.ends
            ));
        }
        Ok(())
    }

    fn no_useless_retry(&self) -> Result<(), String> {
        for (earlier, later) in self.pairs() {
            if let Action::Status {
                status: status @ (400 | 401 | 403 | 404 | 413 | 422),
                ..
            } = self.action(earlier)
                && earlier.candidate == later.candidate
            {
                return Err(format!(
                    "p{} answered {status} and was asked again",
                    earlier.candidate + 1
                ));
            }
        }
        Ok(())
    }

    fn no_fallback_of_rejected(&self) -> Result<(), String> {
        for (earlier, later) in self.pairs() {
            if is_rejection(self.action(earlier)) && later.candidate != earlier.candidate {
                return Err(format!(
                    "p{} rejected the request, and p{} was asked",
                    earlier.candidate + 1,
                    later.candidate + 1
                ));
            }
        }
        Ok(())
    }

    /// Only the first request is sure to find all breakers closed and the budget unspent.
    fn nobody_forgotten(&self) -> Result<(), String> {
        let in_time =
            self.exchange.elapsed_ms + self.seen.grace_ms < self.schedule.settings.total_ms;
        let rejected = self
            .exchange
            .calls
            .last()
            .is_some_and(|last| is_rejection(self.action(last)));
        if self.request > 0 || !self.exchange.ends.contains(&End::Error) || rejected || !in_time {
            return Ok(());
        }
        for candidate in 0..self.schedule.candidates.len() {
            let reachable = self.schedule.listen(candidate) == Listen::Serve;
            if reachable
                && !self
                    .exchange
                    .calls
                    .iter()
                    .any(|call| call.candidate == candidate)
            {
                return Err(format!(
                    "the client got an error after {} ms, and p{} had not been asked",
                    self.exchange.elapsed_ms,
                    candidate + 1
                ));
            }
        }
        Ok(())
    }

    fn waits(&self) -> Result<(), String> {
        let settings = &self.schedule.settings;
        let mut backoff = settings.base_ms.min(settings.max_ms);
        for (earlier, later) in self.pairs() {
            if earlier.candidate != later.candidate {
                backoff = settings.base_ms.min(settings.max_ms);
                continue;
            }
            let asked = match self.action(earlier) {
                Action::Status {
                    retry_after_s: Some(seconds),
                    ..
                } => seconds.saturating_mul(1_000),
                _ => 0,
            };
            let least =
                (backoff * u64::from(100 - settings.jitter_percent.min(100)) / 100).max(asked);
            let gap = later.at_ms - earlier.at_ms;
            // a millisecond for rounding
            if gap + 1 < least {
                return Err(format!(
                    "p{} was asked again after {gap} ms, {least} ms were due",
                    later.candidate + 1
                ));
            }
            backoff = (backoff * 2).min(settings.max_ms);
        }
        Ok(())
    }

    /// The call whose text begins with what the client got.
    fn source(&self) -> Option<Call> {
        let stream = self.schedule.requests[self.request].stream;
        self.exchange
            .calls
            .iter()
            .copied()
            .find(|call| match self.action(call) {
                Action::DripForever { .. } if stream => {
                    let word = super::word(call.candidate, call.call, 0);
                    repeats(&self.exchange.text, &word)
                }
                _ => self
                    .schedule
                    .text_sent(call.candidate, call.call, stream)
                    .starts_with(&self.exchange.text),
            })
    }

    fn action(&self, call: &Call) -> Action {
        self.schedule.action(call.candidate, call.call)
    }

    fn pairs(&self) -> impl Iterator<Item = (&Call, &Call)> {
        self.exchange
            .calls
            .iter()
            .zip(self.exchange.calls.iter().skip(1))
    }
}

/// Whether the text is this word any number of times, each with or without a number before it.
fn repeats(text: &str, word: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let unnumbered = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let unnumbered = unnumbered.strip_prefix(' ').unwrap_or(unnumbered);
        match rest
            .strip_prefix(word)
            .or_else(|| unnumbered.strip_prefix(word))
        {
            Some(after) => rest = after,
            None => return false,
        }
    }
    true
}

fn is_rejection(action: Action) -> bool {
    matches!(
        action,
        Action::Status {
            status: 400 | 413 | 422,
            ..
        }
    )
}
