//! What is seen from outside while a schedule is played: the client's side and the calls at each
//! provider.

use serde::{Deserialize, Serialize};

/// Everything that was seen while a schedule was played.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// One exchange for each request of the schedule, in order.
    pub exchanges: Vec<Exchange>,
    /// The number of calls that were still open at a provider after everything had ended.
    pub left_open: usize,
    /// How much later than the deadline an end may be seen, in milliseconds: the resolution of the
    /// clock, or the noise of the machine.
    pub grace_ms: u64,
}

/// One request as it was seen from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// The text that reached the client.
    pub text: String,
    /// How it ended for the client: one end, or none if the client left.
    pub ends: Vec<End>,
    /// The time from sending the request to its end, or until the client left, in milliseconds.
    pub elapsed_ms: u64,
    /// The calls at providers for this request, in order.
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
    /// An in-band error, after the stream had begun.
    Broken,
}

/// A call that reached a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The index of the candidate, from 0.
    pub candidate: usize,
    /// The index of the call among all calls of the schedule at this candidate, from 0.
    pub call: usize,
    /// When the call came, in milliseconds since the start of the schedule.
    pub at_ms: u64,
}
