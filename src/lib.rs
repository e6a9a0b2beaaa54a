//! Gauntlet's gateway: an LLM gateway and query orchestrator that is bounded by time-outs, retries with back-off, is guarded
//! by circuit breakers, and degrades gracefully. Imports go one way: `http → orchestrator → retrieval → llm → resilience`,
//! with `store` and `telemetry` below all.

pub mod config;
mod gateway;
pub mod http;
pub mod llm;
pub mod orchestrator;
pub mod resilience;
pub mod retrieval;
pub mod store;
pub mod telemetry;

pub use gateway::{Gateway, Running, StartError};
