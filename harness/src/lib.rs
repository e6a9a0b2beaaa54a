//! A library that examines LLM gateways and stubs LLM providers with exact faults. It knows no
//! gateway of ours.
//!
//! Without features it has what a test of your own needs: a stubbed provider ([`llm`]), the wire
//! that carries its bytes and faults ([`wire`]), gates and rendezvous ([`gate`]), and a client that
//! sees how an answer ended ([`client`]).
//!
//! | feature | what it adds |
//! |---|---|
//! | `postgres` | databases for cases (a URL, local binaries, SQLite), and a wire in front of Postgres |
//! | `docker` | Postgres in Docker |
//! | `runner` | cases, the gateway under test, and the runner |
//! | `report` | the record of a run as HTML, Markdown, JUnit and JSON |

pub mod client;
pub mod exercise;
pub mod gate;
pub mod llm;
pub mod plan;
mod problem;
mod rows;
pub mod schedule;
pub mod spec;
pub mod tape;
pub mod verdict;
pub mod wire;
/// The version of wiremock whose traits the matchers and responders of [`llm`] implement.
pub use wiremock;

#[cfg(feature = "runner")]
pub mod case;
#[cfg(feature = "postgres")]
pub mod database;
#[cfg(feature = "runner")]
pub mod levels;
#[cfg(feature = "postgres")]
mod reaper;
#[cfg(feature = "report")]
pub mod report;
#[cfg(feature = "runner")]
pub mod runner;
#[cfg(feature = "runner")]
pub mod subject;
