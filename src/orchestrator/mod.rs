//! The query orchestrator: {entity extraction ∥ retrieval} → fact check → synthesis → citation →
//! review → outcome.
//! review → outcome.
//!
//! A step is one row of the table in [`agents`] ([`step::StepDef`] says what is known of it) and
//! one function that runs it. One deadline, an instant made when the request arrived, is split over
//! the steps by [`budget`]. The steps run phase by phase (`pipeline`), the outcome is built in
//! one module by one total function ([`outcome`]), and it is recorded once, before it is sent. The
//! orchestrator never repeats an LLM call: retries and fallbacks live in the LLM path alone.
//! Everything that a query has in flight lives inside the future of [`Orchestrator::answer`]:
//! dropping it drops every call, down to the socket.

pub mod agents;
pub mod budget;
pub mod cause;
pub mod document;
mod engine;
pub mod llm;
pub mod outcome;
mod pipeline;
mod record;
mod retrieval;
pub mod step;

pub use document::QueryDocument;
pub use engine::{Ask, NotConfigured, Orchestrator, Settings};
