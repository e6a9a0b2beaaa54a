//! What every request passes through, whichever resource it asks for: the listener and its
//! connections, the request's id and deadline, the log line, authentication, admission, the body,
//! and the two steps of stopping.
//!
//! Nothing here knows a route or the JSON of an error. Each mechanism has an error type of its own
//! ([`Refusal`], [`BodyError`], `InvalidHead`), and `http::error` gives each its response.
//! Imports go to `store`, `telemetry`, `resilience` and `config` only.

mod admission;
pub(crate) mod authentication;
mod body;
pub(crate) mod descriptors;
pub(crate) mod listener;
pub(crate) mod middleware;
mod record;
mod request_context;
mod shutdown;
mod write_timeout;

use std::sync::Arc;

pub(crate) use admission::Admission;
pub(crate) use authentication::{Keys, Tenant};
pub use body::BodyError;
pub(crate) use body::{Bodies, BodyBounds, Json, Payload};
pub use middleware::Refusal;
pub(crate) use request_context::{InvalidHead, RequestContext};
pub use shutdown::Shutdown;

use crate::telemetry::Metrics;

/// What the middleware shares. Clones are the same ingress.
#[derive(Clone)]
pub(crate) struct Ingress {
    /// Who may ask.
    pub keys: Arc<Keys>,
    /// What the bodies of requests may cost before they are admitted.
    pub bodies: Bodies,
    /// How many requests may be in flight at once.
    pub admission: Admission,
    /// Whether the gateway drains, or cuts what is left.
    pub shutdown: Shutdown,
    /// Where each request is counted.
    pub metrics: Arc<Metrics>,
}
