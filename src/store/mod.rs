//! The store: documents, records of queries and API keys, on Postgres or on embedded SQLite.
//!
//! A part of the gateway takes only the trait that it needs: [`Documents`], [`Queries`], [`Keys`]
//! or [`StoreHealth`]. [`Store`] is all of them and is held by the gateway, which opens and closes
//! it. The same calls give the same results on both databases.

mod dialect;
mod documents;
mod error;
mod keys;
mod migrate;
mod open;
mod pool;
mod postgres;
mod queries;
mod row;
mod sql;
mod sqlite;
mod text;

use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;

pub use documents::{Document, Documents, NewDocument, Passage};
pub use error::StoreError;
pub use keys::{KeyRecord, Keys, token_hash};
pub use open::open;
pub use queries::{Listing, Page, Queries, QueryRecord};

/// Microseconds since the Unix epoch.
pub type Micros = i64;

/// Whether the database answers.
#[async_trait]
pub trait StoreHealth: Send + Sync {
    /// Returns the kind of the database: `postgres` or `sqlite`.
    fn kind(&self) -> &'static str;

    /// Makes one cheap round trip to the database. Cancel safe.
    ///
    /// # Errors
    /// The reason why the database gave no answer within the acquire and the statement timeouts, or
    /// [`StoreError::NotWritable`] where it answers and takes no writes, or refused the last write
    /// for that reason.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// The whole store, for its owner: only who holds all of it can close it.
#[async_trait]
pub trait Store: Documents + Queries + Keys + StoreHealth {
    /// Closes the store: no call begins any more, idle connections are closed, and a connection in
    /// use is closed when its call ends. Cancel safe: a dropped call leaves the store closed.
    async fn close(&self);
}

/// The wall clock, for records only.
fn now() -> Micros {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            Micros::try_from(since.as_micros()).unwrap_or(Micros::MAX)
        })
}
