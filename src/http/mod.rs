//! The door: routes, authentication, admission, the table from error to response, and the connections that carry them.
//! A handler reads as its intent: parsing and checks are extractors and middleware, failures are [`error::ApiError`].

pub mod admission;
pub mod auth;
pub mod body;
mod chat;
pub mod connection;
pub mod context;
mod docs;
mod documents;
pub mod error;
mod events;
mod health;
mod metrics;
mod models;
mod queries;
pub mod router;
pub mod shutdown;
pub mod state;
mod write_timeout;

pub use context::RequestContext;
pub use error::ApiError;
pub use state::{App, AppState};
