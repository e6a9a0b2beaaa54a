//! Counters in Prometheus' format and logs. One [`Metrics`] a gateway, so that several can live in one process.

use crate::llm::chat::{Candidate, Cause, Usage};

/// The state of a breaker as metrics and health tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Requests pass.
    Closed,
    /// A few probes pass.
    HalfOpen,
    /// Nothing passes.
    Open,
}

/// The counters of one gateway.
#[derive(Debug, Default)]
pub struct Metrics {}

impl Metrics {
    /// A request has been answered (or left by its client: status 499).
    pub fn request(&self, _route: &'static str, _status: u16) {}
    /// An attempt at a candidate has ended; `None` is success.
    pub fn attempt(&self, _candidate: &Candidate, _error: Option<Cause>) {}
    /// A retry of the same candidate starts.
    pub fn retry(&self, _candidate: &Candidate) {}
    /// The next candidate is asked.
    pub fn fallback(&self, _alias: &str) {}
    /// A breaker changed its state.
    pub fn breaker(&self, _candidate: &Candidate, _state: BreakerState) {}
    /// A provider told its usage.
    pub fn tokens(&self, _candidate: &Candidate, _usage: Usage) {}
    /// A step of a query degraded.
    pub fn degraded(&self, _step: &'static str, _cause: &'static str) {}
    /// A query ended with this status.
    pub fn query(&self, _status: &'static str) {}
    /// All of it, in Prometheus' text format.
    pub fn render(&self) -> String {
        String::new()
    }
}
