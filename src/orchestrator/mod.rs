//! The query orchestrator: plan → {entity extraction ∥ retrieval} → fact check → synthesis → citation → review → outcome.
//!
//! One deadline, made at the door, is split over the steps by [`budget`]. Every agent declares what its failure means
//! ([`agents`]); the result is built in one place, by one total function ([`outcome::conclude`]), and recorded once, before it is
//! sent. The orchestrator never tries an LLM call again: retries and fallbacks live in the LLM path alone. Everything a query
//! has in flight lives inside the future of [`Orchestrator::answer`]: dropping it drops every call, down to the socket.

pub mod agents;
pub mod budget;
pub mod document;
pub mod llm;
pub mod outcome;
pub mod pipeline;
mod record;
pub mod step;

pub use document::QueryDocument;
pub use pipeline::{Ask, NotConfigured, Orchestrator, Settings};
