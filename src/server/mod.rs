//! What every request passes through, whichever resource it asks for: the listener and its
//! connections, the request's id and deadline, the log line, authentication, admission, the body,
//! and the two steps of stopping.
//!
//! Nothing here knows a route or the JSON of an error. Each mechanism has an error type of its own
//! ([`Refusal`], [`BodyError`], [`InvalidTimeout`]), and `http::error` gives each its response.
//! Imports go to `store`, `telemetry`, `resilience` and `config` only.

pub mod admission;
pub mod authentication;
pub mod body;
pub mod listener;
pub mod middleware;
mod record;
pub mod request_context;
pub mod shutdown;
mod write_timeout;

use std::sync::Arc;

pub use admission::Admission;
pub use authentication::{Keys, Tenant};
pub use body::{BodyBounds, BodyError, Json, Payload};
pub use middleware::Refusal;
pub use request_context::{InvalidTimeout, RequestContext};
pub use shutdown::Shutdown;

use crate::telemetry::Metrics;

/// What the middleware shares. Clones are the same ingress.
#[derive(Clone)]
pub struct Ingress {
    /// Who may ask.
    pub keys: Arc<Keys>,
    /// How many requests may be in flight at once.
    pub admission: Admission,
    /// Whether the gateway drains, or cuts what is left.
    pub shutdown: Shutdown,
    /// Where each request is counted.
    pub metrics: Arc<Metrics>,
}
