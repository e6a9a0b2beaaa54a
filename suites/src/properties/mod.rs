//! Generators and reference models of the property suites. The invariants of schedules are the
//! harness's, because the replay over real sockets judges by them, too.

pub mod breaker_model;
pub mod counterexample;
pub mod schedules;
