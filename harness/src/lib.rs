//! Everything needed to examine an LLM gateway: stubs of the providers with exact faults, a database for each case, targets,
//! the tape, the runner and the report. Knows no gateway of ours.

pub mod case;
pub mod client;
pub mod database;
pub mod gate;
pub mod llm;
pub mod plan;
mod reaper;
pub mod report;
pub mod runner;
pub mod schedule;
pub mod spec;
pub mod subject;
pub mod tape;
pub mod verdict;
pub mod wire;
