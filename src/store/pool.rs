//! A bounded pool of connections for either database.
//!
//! sqlx's own pool answers a refused connection with its acquire time-out, waits for a stalled server when a connection comes
//! back, and hands out idle connections that died: none of which a gateway can do. Here a call has one bound for the
//! connection and one for the statement; a connection comes back only after a call that ended well, and is otherwise closed
//! at once (the server rolls back). A connection that died, idle or under a call that may be repeated, is replaced within the call.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::{ConnectOptions, Connection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::StoreError;
use super::error::{ConnectionDisposition, classify, fate};

/// A connection that was idle for longer is not used again: firewalls forget it.
const LONGEST_IDLE: Duration = Duration::from_secs(300);

/// Whether a call may be made twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Idempotent {
    /// A second call changes nothing and answers the same: it is repeated when its connection turns out dead, or breaks.
    Yes,
    /// It is made once: an idle connection is asked for a sign of life before.
    No,
}

/// Tells the compiler that what a call borrows (`'a`) outlives its use of the connection (`'c`).
pub(super) type Borrows<'c, 'a> = PhantomData<&'c &'a ()>;

/// The bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub connections: u32,
    pub acquire: Duration,
    pub statement: Duration,
}

/// A pool of connections of one kind.
pub(super) struct Pool<C: Connection> {
    options: C::Options,
    /// Names the database to people, without credentials.
    target: String,
    bounds: Bounds,
    slots: Arc<Semaphore>,
    idle: Mutex<Vec<Idle<C>>>,
}

struct Idle<C> {
    connection: C,
    since: Instant,
}

struct Leased<C> {
    connection: C,
    reused: bool,
    _slot: OwnedSemaphorePermit,
}

impl<C: Connection> Pool<C> {
    /// An empty pool; nothing is connected yet.
    pub fn new(options: C::Options, target: String, bounds: Bounds) -> Self {
        let slots = usize::try_from(bounds.connections.max(1)).unwrap_or(1);
        Self {
            options,
            target,
            bounds,
            slots: Arc::new(Semaphore::new(slots)),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// A connection outside of any pool, for the schema.
    pub async fn single(
        options: &C::Options,
        target: &str,
        bounds: Bounds,
    ) -> Result<C, StoreError> {
        connect::<C>(
            options,
            target,
            Instant::now() + bounds.acquire,
            bounds.acquire,
        )
        .await
    }

    /// Makes one call on one connection.
    ///
    /// It takes no longer than the acquire and the statement time-outs together. Cancel safe: when it is dropped the connection
    /// is closed and what was begun is rolled back.
    pub async fn call<'a, T, F>(&self, repeat: Idempotent, call: F) -> Result<T, StoreError>
    where
        T: Send,
        F: for<'c> Fn(&'c mut C, Borrows<'c, 'a>) -> BoxFuture<'c, Result<T, sqlx::Error>>
            + Send
            + Sync,
    {
        let acquire_by = Instant::now() + self.bounds.acquire;
        let mut leased = self.lease(acquire_by).await?;
        let answer_by = Instant::now() + self.bounds.statement;
        let mut repeated = false;
        loop {
            if repeat == Idempotent::No
                && leased.reused
                && !alive(&mut leased.connection, answer_by).await
            {
                leased = self.replace(leased, acquire_by.max(answer_by)).await?;
            }
            let Ok(result) = timeout_at(answer_by, call(&mut leased.connection, PhantomData)).await
            else {
                return Err(StoreError::Timeout(self.bounds.statement));
            };
            let error = match result {
                Ok(value) => {
                    self.give_back(leased);
                    return Ok(value);
                }
                Err(error) => error,
            };
            match fate(&error) {
                ConnectionDisposition::Usable => {
                    self.give_back(leased);
                    return Err(classify(&error, self.bounds.statement));
                }
                // an idle connection that was dead costs no try; one that broke under the call costs the second and last one
                ConnectionDisposition::Lost | ConnectionDisposition::Stale
                    if repeat == Idempotent::Yes && (leased.reused || !repeated) =>
                {
                    tracing::debug!(%error, store = self.target, "a connection was lost; the call is made on a new one");
                    repeated |= !leased.reused;
                    leased = self.replace(leased, answer_by).await?;
                }
                ConnectionDisposition::Lost | ConnectionDisposition::Stale => {
                    return Err(classify(&error, self.bounds.statement));
                }
            }
        }
    }

    /// Lets nobody in any more and closes the connections that are idle; one in use is closed when its call ends.
    pub async fn close(&self) {
        self.slots.close();
        let idle = std::mem::take(&mut *self.idle());
        for Idle { connection, .. } in idle {
            // an orderly good-bye is a courtesy; a server that is gone is no error here
            let _ = tokio::time::timeout(self.bounds.statement, connection.close()).await;
        }
    }

    async fn lease(&self, by: Instant) -> Result<Leased<C>, StoreError> {
        let slot = match timeout_at(by, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(slot)) => slot,
            Ok(Err(_)) => return Err(StoreError::Unavailable("the store is closed".into())),
            Err(_) => return Err(StoreError::PoolExhausted(self.bounds.acquire)),
        };
        if let Some(connection) = self.take_idle() {
            return Ok(Leased {
                connection,
                reused: true,
                _slot: slot,
            });
        }
        self.connect(slot, by).await
    }

    /// A fresh connection in the place of a dead one. Its idle siblings most likely died with it.
    async fn replace(&self, dead: Leased<C>, by: Instant) -> Result<Leased<C>, StoreError> {
        self.idle().clear();
        self.connect(dead._slot, by).await
    }

    async fn connect(
        &self,
        slot: OwnedSemaphorePermit,
        by: Instant,
    ) -> Result<Leased<C>, StoreError> {
        let connection = connect::<C>(&self.options, &self.target, by, self.bounds.acquire).await?;
        Ok(Leased {
            connection,
            reused: false,
            _slot: slot,
        })
    }

    fn give_back(&self, leased: Leased<C>) {
        if !self.slots.is_closed() {
            self.idle().push(Idle {
                connection: leased.connection,
                since: Instant::now(),
            });
        }
    }

    /// The connection that was used last: those beneath it may grow old and go.
    fn take_idle(&self) -> Option<C> {
        let mut idle = self.idle();
        idle.retain(|entry| entry.since.elapsed() < LONGEST_IDLE);
        idle.pop().map(|entry| entry.connection)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle<C>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn connect<C: Connection>(
    options: &C::Options,
    target: &str,
    by: Instant,
    bound: Duration,
) -> Result<C, StoreError> {
    match timeout_at(by, options.connect()).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(match classify(&error, bound) {
            StoreError::Failed(reason) | StoreError::Unavailable(reason) => {
                StoreError::Unavailable(format!("{target}: {reason}"))
            }
            other => other,
        }),
        Err(_) => Err(StoreError::Unavailable(format!(
            "{target}: no connection within {bound:?}"
        ))),
    }
}

async fn alive<C: Connection>(connection: &mut C, by: Instant) -> bool {
    matches!(timeout_at(by, connection.ping()).await, Ok(Ok(())))
}
