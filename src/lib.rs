//! Gauntlet's gateway: an LLM gateway and query orchestrator. Timeouts bound every step, failed
//! attempts are retried with backoff, circuit breakers guard the providers, and a query degrades
//! gracefully where a part of it fails.
//!
//! [`Gateway::start`] starts one in the present process:
//!
//! ```no_run
//! use gauntlet::Gateway;
//! use gauntlet::config::Config;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let gateway = Gateway::start(Config::from_toml("")?).await?;
//! println!("listening on {}", gateway.addr);
//! gateway.drain().await;
//! # Ok(()) }
//! ```
//!
//! Imports go one way: `http → orchestrator → {retrieval, llm} → resilience`, and
//! `http → server`. `store`, `telemetry` and the types of `config` are below all of them.

pub mod config;
mod gateway;
pub mod http;
mod kinds;
pub mod llm;
pub mod orchestrator;
pub mod resilience;
pub mod retrieval;
pub mod server;
pub mod store;
pub mod telemetry;

pub use gateway::{Gateway, RunningGateway, StartError};
pub use kinds::KINDS;
