//! Helpers that several test crates share: the configuration of a gateway, and a gateway over
//! stubs. README.md draws which layer of helpers is for what.
#![allow(dead_code, reason = "no test crate uses all of it")]

pub mod config;
pub mod gateway;
