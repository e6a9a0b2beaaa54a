//! The gateway's door from outside: real sockets, providers that a test scripts step by step, a store that can be taken away.
//! Nothing here waits for time: each step waits for the fact that it needs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod auth;
mod chat;
mod client;
mod config;
mod drain;
mod gateway;
mod health;
mod limits;
mod memory;
mod process;
mod provider;
mod queries;
mod snapshots;
