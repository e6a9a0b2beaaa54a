//! Resilience mechanisms, one file each, on tokio's clock only: deadline, backoff, retry budget,
//! breaker and bulkhead.
//!
//! They know time, counts and permits, and nothing of HTTP, of models or of the rest of this crate;
//! `llm::router` combines them.

pub mod backoff;
pub mod breaker;
pub mod bulkhead;
pub mod deadline;
pub mod retry_budget;
