//! The gateway from outside: real sockets, stubs whose answers obey a plan, and a store in memory.
//! Nothing here waits for time: each step waits for the fact that it needs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod auth;
mod chat;
mod config;
mod drain;
mod health;
mod limits;
mod process;
mod queries;
mod snapshots;
