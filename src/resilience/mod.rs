//! Resilience mechanisms, one file a mechanism, on tokio's clock only: deadline, retry (back-off and budget), breaker, bulkhead.
//! They know time, counts and permits, and nothing of HTTP or of models; `llm::router` puts them together.

pub mod backoff;
pub mod breaker;
pub mod bulkhead;
pub mod deadline;
pub mod retry_budget;
