//! A bounded pool of connections, `deadpool`'s, and the one way in which a call uses a connection.
//!
//! A call has one bound for its connection and one for its statements. A connection comes back to
//! the pool only after a call that ended well; otherwise it is closed at once, and the server rolls
//! back. A connection that died is replaced within the call where the call may be repeated. Calls
//! that may take long leave a part of the pool to the others, so that a table that is locked or
//! large keeps no query from being recorded.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use deadpool::managed::{
    Manager, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult,
};
use scopeguard::{ScopeGuard, guard};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::StoreError;
use super::dialect::{Answer, Call, Dialect, Effect};
use super::error::{ConnectionDisposition, classify, disposition};

/// A connection that was idle for longer is closed instead of used: firewalls forget it.
const MAX_IDLE: Duration = Duration::from_secs(300);

/// The bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The number of connections that are open at the same time.
    pub connections: u32,
    /// The longest wait for a connection, which includes making it.
    pub acquire: Duration,
    /// The longest wait for the answer to a call on a connection.
    pub statement: Duration,
}

/// Where a database is and how it is connected to.
pub(super) struct Connector<C: Connection> {
    pub options: C::Options,
    /// Names the database to people, without credentials.
    pub target: String,
    /// The file of the database, where it is one.
    pub file: Option<PathBuf>,
}

/// A connection, and the file to which it was made, where the database is one.
pub(super) struct Connected<C> {
    pub connection: C,
    file: Option<FileId>,
}

/// Device and inode of a file.
type FileId = (u64, u64);

impl<C: Connection> Connector<C> {
    /// Makes a connection. Cancel safe.
    pub async fn connect(&self, by: Instant, bounds: Bounds) -> Result<Connected<C>, StoreError> {
        match timeout_at(by, self.try_connect()).await {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(error)) => Err(self.not_connected(&error, bounds)),
            Err(_) => Err(self.no_connection_within(bounds)),
        }
    }

    async fn try_connect(&self) -> Result<Connected<C>, sqlx::Error> {
        // A file that is replaced meanwhile is thereby not taken for the one of the connection.
        let file = self.file_id();
        let connection = self.options.connect().await?;
        Ok(Connected { connection, file })
    }

    /// Whether the file of the connection is still the one of the database. A connection to a file
    /// that was removed or replaced goes on with a file that nobody else can open: what it writes
    /// is lost.
    fn is_current(&self, connected: &Connected<C>) -> bool {
        self.file.is_none() || (connected.file.is_some() && connected.file == self.file_id())
    }

    fn file_id(&self) -> Option<FileId> {
        let found = std::fs::metadata(self.file.as_ref()?).ok()?;
        Some((found.dev(), found.ino()))
    }

    fn not_connected(&self, error: &sqlx::Error, bounds: Bounds) -> StoreError {
        match classify(error, bounds.acquire) {
            StoreError::Failed(reason) | StoreError::Unavailable(reason) => {
                StoreError::Unavailable(format!("{}: {reason}", self.target))
            }
            other => other,
        }
    }

    fn no_connection_within(&self, bounds: Bounds) -> StoreError {
        let Self { target, .. } = self;
        StoreError::Unavailable(format!(
            "{target}: no connection within {:?}",
            bounds.acquire
        ))
    }
}

impl<C: Connection + 'static> Manager for Connector<C> {
    type Type = Connected<C>;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<Connected<C>, sqlx::Error> {
        self.try_connect().await
    }

    async fn recycle(
        &self,
        connected: &mut Connected<C>,
        metrics: &Metrics,
    ) -> RecycleResult<sqlx::Error> {
        if !self.is_current(connected) {
            Err(RecycleError::message(
                "the file of the database was removed or replaced",
            ))
        } else if metrics.last_used() < MAX_IDLE {
            Ok(())
        } else {
            Err(RecycleError::message(
                "the connection was idle for too long",
            ))
        }
    }
}

type Pooled<D> = Object<Connector<<D as Dialect>::Connection>>;

/// A connection in use. Dropping it closes the connection; [`give_back`] returns it to the pool.
type Lease<D> = ScopeGuard<Pooled<D>, fn(Pooled<D>)>;

fn lease<D: Dialect>(connection: Pooled<D>) -> Lease<D> {
    let close: fn(Pooled<D>) = |connection| drop(Object::take(connection));
    guard(connection, close)
}

fn give_back<D: Dialect>(lease: Lease<D>) {
    drop(ScopeGuard::into_inner(lease));
}

/// A pool of connections to one database.
pub(super) struct Pool<D: Dialect> {
    connections: deadpool::managed::Pool<Connector<D::Connection>>,
    /// The one call that writes holds its permit, where the database takes one writer at a time.
    writer: Option<Semaphore>,
    /// Each call that leaves connections to others holds a permit.
    long: Semaphore,
    bounds: Bounds,
}

impl<D: Dialect> Pool<D> {
    /// Makes an empty pool; nothing is connected yet.
    pub fn new(connector: Connector<D::Connection>, bounds: Bounds) -> Result<Self, StoreError> {
        let size = usize::try_from(bounds.connections.max(1)).unwrap_or(usize::MAX);
        let connections = deadpool::managed::Pool::builder(connector)
            .max_size(size)
            .queue_mode(QueueMode::Lifo)
            .build()
            .map_err(|error| StoreError::Failed(format!("the pool cannot be made: {error}")))?;
        let writer = D::ONE_WRITER.then(|| Semaphore::new(1));
        Ok(Self {
            connections,
            writer,
            long: Semaphore::new(size - kept_free(size)),
            bounds,
        })
    }

    /// Makes one call on one connection.
    ///
    /// The call takes no longer than the acquire and the statement timeouts together. Cancel safe:
    /// when the call is dropped, its connection is closed and what was begun is rolled back.
    pub async fn call(&self, call: &Call<'_>) -> Result<Answer<D::Row>, StoreError> {
        let acquire_by = Instant::now() + self.bounds.acquire;
        let _long = match call.leaves_connections {
            true => Some(self.permit(&self.long, acquire_by).await?),
            false => None,
        };
        let _writer = match self.writer.as_ref().filter(|_| call.effect != Effect::Read) {
            Some(writer) => Some(self.permit(writer, acquire_by).await?),
            None => None,
        };
        let mut lease = self.lease(acquire_by).await?;
        let mut is_reused = Pooled::<D>::metrics(&lease).recycle_count > 0;
        let answer_by = Instant::now() + self.bounds.statement;
        if call.effect == Effect::Write && is_reused {
            let alive = timeout_at(answer_by, lease.connection.ping()).await;
            if !matches!(alive, Ok(Ok(()))) {
                self.reconnect(&mut lease, acquire_by.max(answer_by))
                    .await?;
            }
        }
        let mut repeated = false;
        loop {
            let Ok(result) = timeout_at(answer_by, D::run(&mut lease.connection, call)).await
            else {
                return Err(StoreError::Timeout(self.bounds.statement));
            };
            let error = match result {
                Ok(answer) => {
                    give_back::<D>(lease);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            // an idle connection that had died does not count as the one repetition
            let may_repeat = call.effect != Effect::Write && (is_reused || !repeated);
            if disposition(&error) == ConnectionDisposition::Usable {
                give_back::<D>(lease);
            } else if may_repeat {
                let store = &self.connections.manager().target;
                tracing::debug!(%error, store, "the connection broke: the call is repeated");
                self.reconnect(&mut lease, answer_by).await?;
                repeated |= !is_reused;
                is_reused = false;
                continue;
            }
            return Err(classify(&error, self.bounds.statement));
        }
    }

    /// Lets no call begin any more and closes the idle connections; a connection in use is closed
    /// when its call ends.
    pub async fn close(&self) {
        let idle = self.connections.retain(|_, _| false).removed;
        self.connections.close();
        for Connected { connection, .. } in idle {
            // the goodbye is a courtesy: a server that is gone is no error here
            let _ = tokio::time::timeout(self.bounds.statement, connection.close()).await;
        }
    }

    async fn permit<'s>(
        &self,
        semaphore: &'s Semaphore,
        by: Instant,
    ) -> Result<SemaphorePermit<'s>, StoreError> {
        match timeout_at(by, semaphore.acquire()).await {
            Ok(permit) => permit.map_err(|_| closed()),
            Err(_) => Err(StoreError::PoolExhausted(self.bounds.acquire)),
        }
    }

    async fn lease(&self, by: Instant) -> Result<Lease<D>, StoreError> {
        let connector = self.connections.manager();
        match timeout_at(by, self.connections.get()).await {
            Ok(Ok(connection)) => Ok(lease::<D>(connection)),
            Ok(Err(PoolError::Backend(error))) => Err(connector.not_connected(&error, self.bounds)),
            Ok(Err(_)) => Err(closed()),
            Err(_) => {
                let status = self.connections.status();
                if status.size >= status.max_size {
                    Err(StoreError::PoolExhausted(self.bounds.acquire))
                } else {
                    Err(connector.no_connection_within(self.bounds))
                }
            }
        }
    }

    /// Puts a new connection into the slot of a dead one. The idle connections most likely died
    /// with it, and are closed too.
    async fn reconnect(&self, lease: &mut Lease<D>, by: Instant) -> Result<(), StoreError> {
        drop(self.connections.retain(|_, _| false));
        ***lease = self.connections.manager().connect(by, self.bounds).await?;
        Ok(())
    }
}

/// The number of connections that long calls leave to short ones: a fifth.
const fn kept_free(connections: usize) -> usize {
    connections / 5
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sqlx::ConnectOptions;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;
    use crate::store::sqlite::SqliteDialect;

    /// A connection that is in use while the file is replaced is not used again, although others
    /// have been made to the new file meanwhile.
    #[tokio::test]
    async fn a_connection_to_a_replaced_file_is_not_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let database = async |name: &str, version: u32| {
            let path = folder.path().join(name);
            let options = SqliteConnectOptions::new().filename(&path);
            let options = options.create_if_missing(true);
            let mut connection = options.connect().await.unwrap();
            let version = format!("PRAGMA user_version = {version}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(version))
                .execute(&mut connection)
                .await
                .unwrap();
            connection.close().await.unwrap();
            (path, options)
        };
        let (path, options) = database("old.db", 1).await;
        let connector = Connector {
            options,
            target: "SQLite".into(),
            file: Some(path.clone()),
        };
        let bounds = Bounds {
            connections: 2,
            acquire: Duration::from_secs(60),
            statement: Duration::from_secs(60),
        };
        let pool = Pool::<SqliteDialect>::new(connector, bounds).unwrap();
        let version = async |lease: &mut Lease<SqliteDialect>| {
            sqlx::query_scalar::<_, u32>("PRAGMA user_version")
                .fetch_one(&mut lease.connection)
                .await
                .unwrap()
        };
        let by = Instant::now() + bounds.acquire;
        let mut in_use = pool.lease(by).await.unwrap();
        assert_eq!(version(&mut in_use).await, 1);

        let (new, _) = database("new.db", 2).await;
        std::fs::rename(new, &path).unwrap();
        let mut made = pool.lease(by).await.unwrap();
        assert_eq!(version(&mut made).await, 2);
        give_back::<SqliteDialect>(made);
        give_back::<SqliteDialect>(in_use);
        for _ in 0..2 {
            let mut lease = pool.lease(by).await.unwrap();
            assert_eq!(version(&mut lease).await, 2);
            give_back::<SqliteDialect>(lease);
        }
    }
}
