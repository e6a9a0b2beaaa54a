//! The portable fault schedule: what every provider does on every call, as plain data.
//!
//! Generated and shrunk by the property suites, written as JSON, and played in two worlds: in process under a paused clock, and
//! over real sockets by `gauntlet run --plan FILE` against any gateway. Both read the same [`Schedule::play`], and both are
//! judged by the same [`invariants`].

pub mod invariants;
mod observation;
mod play;

use serde::{Deserialize, Serialize};

pub use self::play::{Played, Response};
use crate::plan::Listen;
use crate::spec::{BreakerSpec, Protocol, RetrySpec, Spec, Timeouts};

/// The alias that every request of a schedule asks for.
pub const ALIAS: &str = "schedule";

/// Content events of a whole answer; with the role before them, and the finish and the end marker after them.
pub const WORDS: usize = 4;

/// A schedule of faults for one alias.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Time-outs, retries, breaker.
    pub settings: Settings,
    /// What each candidate does, in the order in which they are to be tried. Provider `p1` is the first.
    pub candidates: Vec<Script>,
    /// What the client asks, one after the other.
    pub requests: Vec<Request>,
}

/// How the gateway is configured. All times in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Connect time-out.
    pub connect_ms: u64,
    /// First-token time-out of streams.
    pub first_token_ms: u64,
    /// Idle time-out.
    pub idle_ms: u64,
    /// The deadline over everything.
    pub total_ms: u64,
    /// Kept for each later candidate, by gateways that know such a thing.
    pub reserve_ms: u64,
    /// Attempts at one candidate, the first included.
    pub max_attempts: u32,
    /// First back-off.
    pub base_ms: u64,
    /// Largest back-off.
    pub max_ms: u64,
    /// Per cent of a back-off that may be random.
    pub jitter_percent: u32,
    /// Retries for a hundred requests …
    pub budget_percent: u32,
    /// … plus this many, in any ten seconds.
    pub budget_floor: u32,
    /// Failures in a row that open a breaker.
    pub failure_threshold: u32,
    /// How long it stays open.
    pub cool_down_ms: u64,
    /// Requests that half-open lets through at once.
    pub half_open_probes: u32,
}

/// What a candidate does: call after call; later calls are answered well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Script {
    /// By call, from the first.
    pub calls: Vec<Action>,
}

/// One request of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// StubRequest this long after the one before has ended.
    pub after_ms: u64,
    /// Streamed or plain.
    pub stream: bool,
    /// Whether the client leaves before it has everything.
    pub leaves: Option<Leave>,
}

/// When the client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leave {
    /// So long after it has asked, unless it has its answer by then.
    AfterMs(u64),
    /// When it has read so many pieces of text of a stream, unless the stream is over by then.
    AfterWords(usize),
}

/// What a provider does on one call. Where `events` is counted, a stream's first event is the role, and the next are its words;
/// of a plain answer the same part of its bytes is meant. At most the last word is sent: never the finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A whole and right answer, at once.
    Answer,
    /// A stream without `[DONE]`, otherwise right.
    NoDone,
    /// The whole answer, a gap between its pieces.
    Drip {
        /// The gap.
        every_ms: u64,
    },
    /// An answer that never ends, a gap between its pieces.
    DripForever {
        /// The gap.
        every_ms: u64,
    },
    /// A status that is not 200, with an error in OpenAI's envelope.
    Status {
        /// The status.
        status: u16,
        /// `Retry-After`, in seconds.
        retry_after_s: Option<u64>,
    },
    /// 429 `insufficient_quota`.
    Quota,
    /// The connection is refused. On a real socket only where all calls of the candidate are refused; else it is reset.
    Refuse,
    /// The connection never stands. On a real socket only where it holds for all calls of the candidate; else it is silence.
    NeverAccept,
    /// The connection is reset before the answer begins.
    Reset,
    /// The request is read and never answered.
    Silent,
    /// So many events, then silence.
    Stall {
        /// How many.
        events: usize,
    },
    /// So many events, then the connection is closed.
    Cut {
        /// How many.
        events: usize,
    },
    /// So many events and a part of the next, then the connection is closed.
    CutInside {
        /// How many.
        events: usize,
    },
    /// So many events, then the connection is reset.
    ResetAfter {
        /// How many.
        events: usize,
    },
    /// So many events, then an orderly end without finish and end marker. Plain: an answer without choices.
    NoFinish {
        /// How many.
        events: usize,
    },
    /// So many events, then an error event, and the end. Plain: an error document with status 200.
    InBandError {
        /// How many.
        events: usize,
    },
    /// So many events, then one that is not JSON, then the rest. Plain: a document that is not JSON.
    Malformed {
        /// How many.
        events: usize,
    },
    /// 200 with an HTML page.
    Html,
    /// 200 with an empty body.
    Empty,
}

impl Schedule {
    /// Reads a schedule as it is written by a failing property, or by hand.
    ///
    /// # Errors
    /// A sentence with what is wrong and where.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let schedule: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let s = &schedule.settings;
        let longest = |name: &str, inner: u64| match inner {
            0 => Err(format!("settings.{name} is 0: write at least 1")),
            inner if inner > s.total_ms => Err(format!(
                "settings.{name} is {inner}, longer than settings.total_ms, {}",
                s.total_ms
            )),
            _ => Ok(()),
        };
        longest("connect_ms", s.connect_ms)?;
        longest("first_token_ms", s.first_token_ms)?;
        longest("idle_ms", s.idle_ms)?;
        if schedule.candidates.is_empty() {
            return Err("candidates is empty: write one script at least, [] for a provider that always answers well".into());
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
                "status {status} is no failure: write 400 to 599, or another action"
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

    /// How that call is answered, for a streamed or a plain request.
    pub fn play(&self, candidate: usize, call: usize, stream: bool) -> Played {
        play::play(
            self.action(candidate, call),
            &full_text(candidate, call),
            stream,
        )
    }

    /// What the candidate's port does on a real socket: refusing and never accepting are a port's, not a call's.
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

    /// The text that reaches the wire on that call: all of it, or what stands before the fault.
    pub fn text_sent(&self, candidate: usize, call: usize, stream: bool) -> String {
        let words = self.action(candidate, call).words_sent(stream);
        (0..words).map(|n| word(candidate, call, n)).collect()
    }

    /// The configuration that it asks of a gateway under test.
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
    /// Whether an answer played to its end is whole and right.
    pub fn ends_well(self) -> bool {
        matches!(self, Self::Answer | Self::NoDone | Self::Drip { .. })
    }

    /// Whether it is so at once, so that no time-out can come in between.
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
            // its first word, again and again
            Self::DripForever { .. } => 1,
            _ => 0,
        }
    }
}

/// The n-th word of a call; no other call sends it.
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
    fn a_plan_written_by_hand_is_read() {
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
            "what is not said is answered well"
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
    fn a_wrong_plan_is_refused_with_what_is_wrong() {
        for (from, to, says) in [
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
                "status 200 is no failure",
            ),
            ("\"answer\"", "\"answers\"", "unknown variant `answers`"),
            ("\"stream\"", "\"streams\"", "unknown field `streams`"),
        ] {
            let error = Schedule::from_json(&PLAN.replace(from, to)).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
