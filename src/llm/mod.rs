//! The LLM path: from a neutral chat request to the candidate that serves it.

pub mod cause;
pub mod chat;
pub(crate) mod content;
pub mod framing;
pub mod provider;
mod request;
pub mod router;
pub mod transport;
pub mod transport_http;
