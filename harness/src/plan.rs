//! How the bytes of an answer flow: a plan is plain data that the wire obeys.
//!
//! Written in fixtures and cases, generated and shrunk by proptest, printed in reports, replayed by `gauntlet run --plan FILE`.

use serde::{Deserialize, Serialize};

/// What the wire does with a connection before anything is read from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Listen {
    /// Accepts and serves.
    #[default]
    Serve,
    /// Nobody listens on the port: connections are refused.
    Refuse,
    /// The port exists but connections never stand (backlog full).
    NeverAccept,
    /// Accepts, then neither reads nor writes.
    Silence,
}

#[allow(missing_docs)]
/// One step of sending an answer. Steps run in order; what the steps leave unsent is not sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Waits until the case opens the gate of that name.
    Hold(String),
    /// Waits until `count` answers (of any stub of the case) wait at the rendezvous of that name.
    Meet { name: String, count: usize },
    /// Waits that long; for pacing in benches and fixtures, never in a case.
    Pause { ms: u64 },
    /// Sends status line and headers.
    Head,
    /// Sends status line and headers one byte at a time, a gap between them, for ever if `finish` is false.
    DripHead { every_ms: u64, finish: bool },
    /// Sends the next n events of the body (an SSE event, an NDJSON line; a body that is neither is one event).
    Events(usize),
    /// Sends the next event only after the case acknowledged the one before (interlock); to the end of the body.
    Interlock(String),
    /// Sends the next n bytes of the body, whatever they cut.
    Bytes(usize),
    /// Sends the rest of the body in pieces of that many bytes, a gap between them.
    Drip { bytes: usize, every_ms: u64 },
    /// Repeats the last event sent, a gap between, until the peer leaves.
    RepeatForever { every_ms: u64 },
    /// Waits until the peer has read everything that was sent, so that what comes next is a read of its own (as far as the system tells).
    Drain,
    /// Sends all that is left of the body.
    Rest,
    /// Sends these bytes, which are not part of the answer.
    Garbage(Vec<u8>),
    /// Sends nothing more and keeps the connection open until the peer closes it.
    Stall,
    /// Closes in order (FIN), whatever has been promised.
    Cut,
    /// Resets the connection (RST) after the peer has read what was sent.
    Reset,
}

/// How the length of the body is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Framing {
    /// Chunked for streams, `Content-Length` for the rest.
    #[default]
    Natural,
    /// `Content-Length` that is off by so many bytes.
    WrongLength(i64),
    /// Neither: the end of the connection is the end of the body.
    UntilClose,
}

/// How one answer flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The steps, in order. After the last one a complete answer keeps the connection, an incomplete one is cut.
    pub steps: Vec<Step>,
    /// How the body's length is told.
    #[serde(default)]
    pub framing: Framing,
}

impl Default for Plan {
    /// The whole answer at once.
    fn default() -> Self {
        Self {
            steps: vec![Step::Head, Step::Rest],
            framing: Framing::Natural,
        }
    }
}

impl Plan {
    /// A plan of these steps.
    pub fn of(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            framing: Framing::Natural,
        }
    }

    /// The whole answer, once the gate is open.
    pub fn held(gate: &str) -> Self {
        Self::of([Step::Hold(gate.into()), Step::Head, Step::Rest])
    }

    /// The whole answer, once `count` have come.
    pub fn met(name: &str, count: usize) -> Self {
        Self::of([
            Step::Meet {
                name: name.into(),
                count,
            },
            Step::Head,
            Step::Rest,
        ])
    }

    /// Reads the request and never answers.
    pub fn silent() -> Self {
        Self::of([Step::Stall])
    }

    /// n events, then `then`.
    pub fn events_then(n: usize, then: Step) -> Self {
        Self::of([Step::Head, Step::Events(n), then])
    }

    /// Whether the bytes flow otherwise than all at once, so that only the wire can obey it.
    pub fn needs_the_wire(&self) -> bool {
        *self != Self::default()
    }
}
