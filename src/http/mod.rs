//! The HTTP API: one file a resource, one list of routes (`routes`), and one table from error to
//! response ([`error`]). A handler reads as its intent: `server` has read the body, found the
//! tenant and taken a permit before it runs, and every failure is an [`ApiError`].

mod chat;
mod docs;
mod documents;
pub mod error;
mod events;
mod health;
mod metrics;
mod models;
mod queries;
pub(crate) mod routes;
pub(crate) mod state;

pub use error::ApiError;
pub(crate) use state::{App, AppState};
