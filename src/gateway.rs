//! A gateway from start to end: the store opened, the listener bound, requests served, drained and stopped.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, redact_url};
use crate::http::auth::{self, Keys};
use crate::http::connection::{self, ConnectionTimeouts};
use crate::http::router;
use crate::http::shutdown::Shutdown;
use crate::http::state::{App, AppState};
use crate::llm::router::Router;
use crate::llm::transport_http::http_transport;
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;

/// After the cut, connections get this long to take their last bytes.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// Starts gateways.
pub struct Gateway;

/// Why a gateway does not start. Each message is one sentence with the value and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nobody can listen there.
    #[error("server.listen = {address} can't be listened on ({reason}): {remedy}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        reason: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The database is missing.
    #[error(
        "store.url = {url} can't be opened: {reason}; start that database, or write the URL of one that runs"
    )]
    Store {
        /// The URL without credentials.
        url: String,
        /// What the store says.
        reason: StoreError,
    },
}

/// A gateway that serves. Dropping it stops it at once; [`Running::drain`] stops it in order.
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its two steps of stopping.
    pub shutdown: Shutdown,
    app: AppState,
    accepting: JoinHandle<()>,
    stop: CancellationToken,
    finish: CancellationToken,
    tasks: TaskTracker,
}

impl Gateway {
    /// Opens the store, binds the listener, and serves.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    pub async fn start(config: Config) -> Result<Running, StartError> {
        let listener = bind(config.server.listen).await?;
        // bounded by the store itself, which waits longer for another replica that migrates than for anything else
        let store = crate::store::open(&config.store)
            .await
            .map_err(|reason| unopened(&config, reason))?;
        Self::serve(config, store, listener).await
    }

    /// The same over a store that is open already.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_with(config: Config, store: Arc<dyn Store>) -> Result<Running, StartError> {
        let listener = bind(config.server.listen).await?;
        Self::serve(config, store, listener).await
    }

    async fn serve(
        config: Config,
        store: Arc<dyn Store>,
        listener: TcpListener,
    ) -> Result<Running, StartError> {
        let addr = listener.local_addr().map_err(|reason| StartError::Listen {
            address: config.server.listen,
            reason,
            remedy: "write another address",
        })?;
        let required = auth::required(&config.auth, store.as_ref())
            .await
            .map_err(|reason| unopened(&config, reason))?;
        if !required {
            tracing::warn!(
                "auth.required is off: requests are taken without a key, and everybody is tenant `default`"
            );
        }
        let keys = Keys::new(&config.auth, required, store.clone());
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::default());
        let router = Router::new(&config, http_transport, &metrics);
        let app = App::new(config.clone(), keys, Arc::new(router), store, metrics);
        let (stop, finish, tasks) = (
            CancellationToken::new(),
            CancellationToken::new(),
            TaskTracker::new(),
        );
        let patience = ConnectionTimeouts {
            headers: config.server.header_timeout,
            writes: config.server.write_timeout,
        };
        let accepting = connection::accept(
            listener,
            router::routes(app.clone()),
            patience,
            stop.clone(),
            finish.clone(),
            tasks.clone(),
        );
        let accepting = tokio::spawn(accepting);
        Ok(Running {
            addr,
            shutdown: app.shutdown.clone(),
            app,
            accepting,
            stop,
            finish,
            tasks,
        })
    }
}

impl Running {
    /// Stops in order: readiness turns, new work is refused, what is in flight ends. What is left at the drain deadline is
    /// cut with an error that says so. Health is told to the end.
    pub async fn drain(mut self) {
        self.shutdown.drain();
        if timeout(self.app.config.server.drain, self.app.admission.idle())
            .await
            .is_err()
        {
            tracing::warn!(
                in_flight = self.app.admission.in_flight(),
                "the drain deadline is over: cutting what is left"
            );
            self.shutdown.cut();
        }
        self.stop.cancel();
        // the listener is closed when its task has ended
        let _ = (&mut self.accepting).await;
        self.finish.cancel();
        self.tasks.close();
        // a client that takes no bytes does not hold the end up
        let _ = timeout(LAST_BYTES, self.tasks.wait()).await;
        // the records of queries that were cancelled just now are still being written; each is bounded by the store's time-outs
        self.app.orchestrator.drained().await;
        self.app.store.close().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cut();
        self.stop.cancel();
        self.finish.cancel();
        self.accepting.abort();
    }
}

fn unopened(config: &Config, reason: StoreError) -> StartError {
    StartError::Store {
        url: redact_url(config.store.url.expose_secret()),
        reason,
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|reason| {
        let remedy = match reason.kind() {
            io::ErrorKind::AddrInUse => {
                "stop what listens there, or write another port (0 takes a free one)"
            }
            io::ErrorKind::PermissionDenied => {
                "write a port above 1023, or grant the right to bind this one"
            }
            io::ErrorKind::AddrNotAvailable => "write an address of this machine",
            _ => "write another address",
        };
        StartError::Listen {
            address,
            reason,
            remedy,
        }
    })
}
