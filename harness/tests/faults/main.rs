//! Every fault of the wire, seen by a raw client: what a plan says is really what is on the wire.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
mod endings;
mod flow;
mod messages;
mod ports;
mod tape;
