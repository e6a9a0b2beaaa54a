//! The wire: listeners that carry bytes and faults.
//!
//! [`http`] stands in front of a stubbed provider and sends its answers as their plans say;
//! `postgres` (with the feature of that name) stands in front of a database. Both share `port`:
//! what a port does before anything is read.

pub mod http;
mod port;
#[cfg(feature = "postgres")]
pub mod postgres;
pub(crate) mod queues;

pub(crate) use self::http::REUSE_MARK;
pub use self::http::control::{CONTROL_ROUTES, Controlled, control_routes};
pub use self::http::{
    Answer, HARNESS_STATUS, PLAN_HEADER, Request, Source, UNMATCHED_HEADER, WIRE_MARK, Wire,
};
