//! The portable fault schedule: what every provider does on every call, as plain data.
//!
//! The property suites generate and shrink schedules and write them as JSON. A schedule is played
//! in process under a paused clock, and over real sockets by `gauntlet run --schedule FILE` against
//! any gateway. Both use [`Schedule::play`], and the same [`invariants`] judge both.

pub mod invariants;
mod observation;
mod play;

use serde::{Deserialize, Serialize};

pub use self::play::{Played, Response};
use crate::plan::Listen;
use crate::problem;
use crate::spec::{BreakerSpec, Protocol, RetrySpec, Spec, Timeouts};

/// The alias that every request of a schedule asks for.
pub const ALIAS: &str = "schedule";

/// The number of content events of a whole stream. The role comes before them, and the finish
/// reason and `[DONE]` come after them.
pub const WORDS: usize = 4;

/// A schedule of faults for one alias.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// How the gateway is configured.
    pub settings: Settings,
    /// What each candidate does, in the order in which the gateway has to try them. The first one
    /// is provider `p1`.
    pub candidates: Vec<Script>,
    /// The requests of the client, one after the other.
    pub requests: Vec<Request>,
}

/// How the gateway is configured; all times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The connect timeout.
    pub connect_ms: u64,
    /// The first-token timeout of streams.
    pub first_token_ms: u64,
    /// The idle timeout.
    pub idle_ms: u64,
    /// The deadline of a request, over all attempts and candidates.
    pub total_ms: u64,
    /// The time that is kept for each later candidate, by gateways with a reserve.
    pub reserve_ms: u64,
    /// The number of attempts at one candidate, the first one included.
    pub max_attempts: u32,
    /// The first backoff.
    pub base_ms: u64,
    /// The largest backoff.
    pub max_ms: u64,
    /// The part of a backoff that may be random, in per cent.
    pub jitter_percent: u32,
    /// The retry budget: the number of retries for a hundred requests.
    pub budget_percent: u32,
    /// The number of retries in any ten seconds that the budget allows besides.
    pub budget_floor: u32,
    /// The number of failures in a row that open a breaker.
    pub failure_threshold: u32,
    /// How long a breaker stays open.
    pub cool_down_ms: u64,
    /// The number of requests that a half-open breaker lets through at once.
    pub half_open_probes: u32,
}

/// What a candidate does, call by call. Calls after the last one are answered well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Script {
    /// The actions, from the first call on.
    pub calls: Vec<Action>,
}

/// One request of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// How long after the end of the request before it the client sends it.
    pub after_ms: u64,
    /// Whether the client asks for a stream.
    pub stream: bool,
    /// When the client leaves before it has everything; `None` if it stays.
    pub leaves: Option<Leave>,
}

/// When the client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leave {
    /// It leaves this many milliseconds after it has sent the request, unless it has its answer.
    AfterMs(u64),
    /// It leaves when it has read this many pieces of text of a stream, unless the stream has
    /// ended.
    AfterWords(usize),
}

/// What a provider does on one call. `events` counts a stream's events: the first one is the role,
/// and the next ones are its words. For a plain answer it means the same part of its bytes. The
/// last word is the last event that is sent, never the finish reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The whole, correct answer comes at once.
    Answer,
    /// The stream is correct but for a missing `[DONE]`.
    NoDone,
    /// The whole answer comes in pieces.
    Drip {
        /// The time between two pieces, in milliseconds.
        every_ms: u64,
    },
    /// The answer comes in pieces and never ends.
    DripForever {
        /// The time between two pieces, in milliseconds.
        every_ms: u64,
    },
    /// The answer is an error of this status, in OpenAI's form.
    Status {
        /// The status, from 400 to 599.
        status: u16,
        /// The value of `Retry-After`, in seconds.
        retry_after_s: Option<u64>,
    },
    /// The answer is 429 `insufficient_quota`.
    Quota,
    /// The connection is refused. On a real socket this holds only where all calls of the candidate
    /// are refused; otherwise the connection is reset.
    Refuse,
    /// The connection is never established. On a real socket this holds only where it is so for all
    /// calls of the candidate; otherwise the call is read and never answered.
    NeverAccept,
    /// The connection is reset before the answer begins.
    Reset,
    /// The request is read and never answered.
    Silent,
    /// The events come, and then nothing more.
    Stall {
        /// How many events come.
        events: usize,
    },
    /// The events come, and then the connection is closed.
    Cut {
        /// How many events come.
        events: usize,
    },
    /// The events and a part of the next one come, and then the connection is closed.
    CutInside {
        /// How many events come.
        events: usize,
    },
    /// The events come, and then the connection is reset.
    ResetAfter {
        /// How many events come.
        events: usize,
    },
    /// The events come, and then an orderly end without finish reason and `[DONE]`. A plain answer
    /// has no choices.
    NoFinish {
        /// How many events come.
        events: usize,
    },
    /// The events come, then an in-band error, and then the end. A plain answer is an error
    /// document with status 200.
    InBandError {
        /// How many events come.
        events: usize,
    },
    /// The events come, then one that is not JSON, and then the rest. A plain answer is not JSON.
    Malformed {
        /// How many events come.
        events: usize,
    },
    /// The answer is 200 with an HTML page.
    Html,
    /// The answer is 200 with an empty body.
    Empty,
}

impl Schedule {
    /// Reads a schedule as it is written by a failing property, or by hand.
    ///
    /// # Errors
    /// A sentence that names the position, or the key with its value, and the remedy.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let schedule: Self =
            serde_json::from_str(text).map_err(|error| problem::json(&error, problem::SCHEDULE))?;
        let s = &schedule.settings;
        let longest = |name: &str, inner: u64| match inner {
            0 => Err(format!("settings.{name} is 0: write at least 1")),
            inner if inner > s.total_ms => Err(format!(
                "settings.{name} is {inner}, longer than settings.total_ms, {}; write at most that",
                s.total_ms
            )),
            _ => Ok(()),
        };
        longest("connect_ms", s.connect_ms)?;
        longest("first_token_ms", s.first_token_ms)?;
        longest("idle_ms", s.idle_ms)?;
        if schedule.candidates.is_empty() {
            return Err("candidates is empty: write at least one script, [] for a provider that always answers well".into());
        }
        if schedule.requests.is_empty() {
            return Err("requests is empty: write at least one".into());
        }
        let statuses = schedule
            .candidates
            .iter()
            .flat_map(|script| &script.calls)
            .filter_map(|action| match action {
                Action::Status { status, .. } => Some(*status),
                _ => None,
            });
        match statuses
            .into_iter()
            .find(|status| !(400..=599).contains(status))
        {
            Some(status) => Err(format!(
                "status {status} is not a failure: write 400 to 599, or another action"
            )),
            None => Ok(schedule),
        }
    }

    /// What candidate `candidate` does on its call `call` (both from 0).
    pub fn action(&self, candidate: usize, call: usize) -> Action {
        self.candidates
            .get(candidate)
            .and_then(|script| script.calls.get(call))
            .copied()
            .unwrap_or(Action::Answer)
    }

    /// How that call is answered, by a stream or plainly.
    pub fn play(&self, candidate: usize, call: usize, stream: bool) -> Played {
        play::play(
            self.action(candidate, call),
            &full_text(candidate, call),
            stream,
        )
    }

    /// What the candidate's port does on a real socket: refusing and never accepting belong to a
    /// port, not to a call.
    pub fn listen(&self, candidate: usize) -> Listen {
        let calls = self
            .candidates
            .get(candidate)
            .map_or(&[][..], |script| &script.calls);
        let all =
            |wanted: Action| !calls.is_empty() && calls.iter().all(|action| *action == wanted);
        if all(Action::Refuse) {
            Listen::Refuse
        } else if all(Action::NeverAccept) {
            Listen::NeverAccept
        } else {
            Listen::Serve
        }
    }

    /// The text that is sent on that call: all of it, or what comes before the fault.
    pub fn text_sent(&self, candidate: usize, call: usize, stream: bool) -> String {
        let words = self.action(candidate, call).words_sent(stream);
        (0..words).map(|n| word(candidate, call, n)).collect()
    }

    /// The specification for a gateway under test.
    pub fn spec(&self) -> Spec {
        let s = &self.settings;
        let names: Vec<String> = (1..=self.candidates.len())
            .map(|n| format!("p{n}"))
            .collect();
        let mut spec = Spec {
            timeouts: Timeouts {
                connect_ms: Some(s.connect_ms),
                first_token_ms: Some(s.first_token_ms),
                idle_ms: Some(s.idle_ms),
                total_ms: Some(s.total_ms),
            },
            retry: RetrySpec {
                max_attempts: s.max_attempts,
                base_ms: s.base_ms,
                max_ms: s.max_ms,
                budget_ratio: f64::from(s.budget_percent) / 100.0,
                budget_floor: s.budget_floor,
            },
            breaker: BreakerSpec {
                failure_threshold: s.failure_threshold,
                cool_down_ms: s.cool_down_ms,
                half_open_probes: s.half_open_probes,
                own_rule: false,
            },
            ..Spec::default()
        };
        for name in &names {
            spec = spec.provider(name, Protocol::OPENAI);
        }
        spec.model(ALIAS, &names.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Action {
    /// Whether an answer that is sent to its end is whole and correct.
    pub fn ends_well(self) -> bool {
        matches!(self, Self::Answer | Self::NoDone | Self::Drip { .. })
    }

    /// Whether it is whole and correct at once, so that no timeout can end it.
    pub fn is_good_at_once(self) -> bool {
        matches!(self, Self::Answer | Self::NoDone)
    }

    fn words_sent(self, stream: bool) -> usize {
        match self {
            Self::Answer | Self::NoDone | Self::Drip { .. } => WORDS,
            _ if !stream => 0,
            Self::Stall { events }
            | Self::Cut { events }
            | Self::CutInside { events }
            | Self::ResetAfter { events }
            | Self::NoFinish { events }
            | Self::InBandError { events }
            | Self::Malformed { events } => events.saturating_sub(1).min(WORDS),
            // the first word, over and over
            Self::DripForever { .. } => 1,
            _ => 0,
        }
    }
}

/// The n-th word of a call, which no other call sends.
pub fn word(candidate: usize, call: usize, n: usize) -> String {
    format!("c{candidate}k{call}w{n} ")
}

/// The whole text of a call.
pub fn full_text(candidate: usize, call: usize) -> String {
    (0..WORDS).map(|n| word(candidate, call, n)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const PLAN: &str = r#"{
        "settings": {"connect_ms": 1000, "first_token_ms": 1000, "idle_ms": 1000, "total_ms": 4000, "reserve_ms": 500, "max_attempts": 2,
            "base_ms": 10, "max_ms": 100, "jitter_percent": 50, "budget_percent": 100, "budget_floor": 10, "failure_threshold": 3,
            "cool_down_ms": 1000, "half_open_probes": 1},
        "candidates": [["refuse", "refuse"], [{"cut": {"events": 3}}, {"status": {"status": 429, "retry_after_s": 1}}, "answer"]],
        "requests": [{"after_ms": 0, "stream": true, "leaves": {"after_words": 2}}]
    }"#;

    #[test]
    fn a_schedule_written_by_hand_is_read() {
        let schedule = Schedule::from_json(PLAN).unwrap();
        assert_eq!(
            schedule.action(1, 1),
            Action::Status {
                status: 429,
                retry_after_s: Some(1)
            }
        );
        assert_eq!(
            schedule.action(1, 3),
            Action::Answer,
            "calls after the last action are answered well"
        );
        assert_eq!(
            (schedule.listen(0), schedule.listen(1)),
            (Listen::Refuse, Listen::Serve)
        );
        assert_eq!(
            Schedule::from_json(&serde_json::to_string(&schedule).unwrap()).unwrap(),
            schedule
        );
    }

    #[test]
    fn a_wrong_schedule_is_refused_with_what_is_wrong() {
        for (from, to, message) in [
            (
                "\"idle_ms\": 1000",
                "\"idle_ms\": 5000",
                "settings.idle_ms is 5000",
            ),
            (
                "\"connect_ms\": 1000",
                "\"connect_ms\": 0",
                "settings.connect_ms is 0",
            ),
            (
                "\"status\": 429",
                "\"status\": 200",
                "status 200 is not a failure",
            ),
            (
                "\"answer\"",
                "\"answers\"",
                "unknown word `answers`; write `answer`",
            ),
            (
                "\"stream\"",
                "\"streams\"",
                "unknown key `streams`; write `stream`",
            ),
        ] {
            let error = Schedule::from_json(&PLAN.replace(from, to)).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
