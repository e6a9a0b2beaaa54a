//! What is seen from outside while a schedule is played: the client's side, and the calls at each provider.

use serde::{Deserialize, Serialize};

/// Everything that was seen while a schedule was played.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// By request of the schedule, in order.
    pub exchanges: Vec<Exchange>,
    /// Calls that were still open at a provider after everything had ended.
    pub left_open: usize,
    /// How much later than the deadline an end may be seen: the clock's grain, or the machine's noise.
    pub grace_ms: u64,
}

/// One request as it was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// The text that reached the client.
    pub text: String,
    /// How it ended for the client: one end, or none where the client left.
    pub ends: Vec<End>,
    /// From asking to the end, or to the client's leaving.
    pub elapsed_ms: u64,
    /// Calls at providers on behalf of this request, in order.
    pub calls: Vec<Call>,
    /// How many of the calls began after the client had left.
    pub calls_after_leaving: usize,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// A whole answer: a document with 200, or a stream up to `[DONE]`.
    Complete,
    /// An error instead of an answer.
    Error,
    /// A stream that told an error, after it had begun.
    Broken,
}

/// A call that reached a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Which, from 0.
    pub candidate: usize,
    /// Its how-manieth at this candidate in the whole schedule, from 0.
    pub call: usize,
    /// When, since the start of the schedule.
    pub at_ms: u64,
}
