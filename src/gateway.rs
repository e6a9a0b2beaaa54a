//! Starts and stops a gateway: opens the store, binds the listener, serves requests, and drains.

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
use crate::http::{App, AppState, routes};
use crate::llm::router::Router;
use crate::llm::transport_http::http_transport;
use crate::server::listener::{self, ConnectionTimeouts, Connections};
use crate::server::{Keys, Shutdown, authentication, descriptors};
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;

/// The most time that clients have to read their last bytes after the cut.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// The entry point of the library. See [`Gateway::start`].
pub struct Gateway;

/// Why a gateway does not start. Each message is one sentence with the value and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The listener cannot be bound.
    #[error("server.listen = {address} cannot be bound ({reason}): {remedy}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The system's reason.
        reason: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The store cannot be opened.
    #[error("store.url = {url} cannot be opened: {reason}; {remedy}")]
    Store {
        /// The configured URL without credentials.
        url: String,
        /// The store's reason.
        reason: StoreError,
        /// What to do.
        remedy: &'static str,
    },
}

/// A gateway that serves requests. [`RunningGateway::drain`] stops it in order; dropping it stops
/// it at once, with requests in flight.
pub struct RunningGateway {
    /// The address on which the gateway listens.
    pub addr: SocketAddr,
    /// The two steps of stopping, for whoever wants to observe or force them.
    pub shutdown: Shutdown,
    app: AppState,
    accepting: JoinHandle<()>,
    stop: CancellationToken,
    finish: CancellationToken,
    tasks: TaskTracker,
}

impl Gateway {
    /// Opens the store, binds the listener, and serves requests until the returned value is drained
    /// or dropped.
    ///
    /// # Errors
    /// [`StartError`] where the listener cannot be bound or the store cannot be opened. Nothing is
    /// left running.
    ///
    /// Cancel safe: a dropped call leaves nothing running either.
    pub async fn start(config: Config) -> Result<RunningGateway, StartError> {
        let listener = bind(config.server.listen).await?;
        // the store bounds the time: it waits longest for another replica that migrates
        let store = crate::store::open(&config.store)
            .await
            .map_err(|reason| not_opened(&config, reason))?;
        Self::serve(config, store, listener).await
    }

    /// Starts a gateway over a store that is open already.
    ///
    /// # Errors
    /// [`StartError`] where the listener cannot be bound, or the store does not answer whether it
    /// holds keys.
    pub async fn start_with(
        config: Config,
        store: Arc<dyn Store>,
    ) -> Result<RunningGateway, StartError> {
        let listener = bind(config.server.listen).await?;
        Self::serve(config, store, listener).await
    }

    async fn serve(
        config: Config,
        store: Arc<dyn Store>,
        listener: TcpListener,
    ) -> Result<RunningGateway, StartError> {
        let addr = listener.local_addr().map_err(|reason| StartError::Listen {
            address: config.server.listen,
            reason,
            remedy: "configure another address",
        })?;
        let required = authentication::required(&config.auth, store.as_ref())
            .await
            .map_err(|reason| not_opened(&config, reason))?;
        if !required {
            tracing::warn!(
                "auth.required is off: every request is accepted without a key, as tenant `default`"
            );
        }
        let keys = Keys::new(&config.auth, required, store.clone());
        let connections = descriptors::raise_limit(config.server.max_in_flight)
            .min(config.server.max_connections);
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::default());
        let router = Router::new(&config, http_transport, &metrics);
        let app = App::new(config.clone(), keys, Arc::new(router), store, metrics);
        let (stop, finish, tasks) = (
            CancellationToken::new(),
            CancellationToken::new(),
            TaskTracker::new(),
        );
        let timeouts = ConnectionTimeouts {
            headers: config.server.header_timeout,
            writes: config.server.write_timeout,
        };
        let accepting = listener::accept(
            listener,
            routes::routes(app.clone()),
            timeouts,
            Connections::new(connections),
            stop.clone(),
            finish.clone(),
            tasks.clone(),
        );
        let accepting = tokio::spawn(accepting);
        Ok(RunningGateway {
            addr,
            shutdown: app.ingress.shutdown.clone(),
            app,
            accepting,
            stop,
            finish,
            tasks,
        })
    }
}

impl RunningGateway {
    /// Stops the gateway in order. Readiness becomes false, new work is refused, and requests in
    /// flight end. Those that are left after `server.drain_ms` are cut with an error that says so.
    /// Health routes answer until the end.
    ///
    /// Not cancel safe: dropping the call stops the gateway at once.
    pub async fn drain(mut self) {
        self.shutdown.drain();
        let admission = &self.app.ingress.admission;
        if timeout(self.app.config.server.drain, admission.idle())
            .await
            .is_err()
        {
            tracing::warn!(
                in_flight = admission.in_flight(),
                "the drain deadline has passed: cutting the requests that are left"
            );
            self.shutdown.cut();
        }
        self.stop.cancel();
        // the listener is closed once its task has ended
        let _ = (&mut self.accepting).await;
        self.finish.cancel();
        self.tasks.close();
        // a client that reads nothing must not delay the end
        let _ = timeout(LAST_BYTES, self.tasks.wait()).await;
        // queries that were cancelled by the cut are still being recorded; the store's timeouts
        // bound each record
        self.app.orchestrator.drained().await;
        self.app.store.close().await;
    }
}

impl Drop for RunningGateway {
    fn drop(&mut self) {
        self.shutdown.cut();
        self.stop.cancel();
        self.finish.cancel();
        self.accepting.abort();
    }
}

fn not_opened(config: &Config, reason: StoreError) -> StartError {
    let url = config.store.url.expose_secret();
    let remedy = if url.starts_with("sqlite:") {
        "check that the file is an intact SQLite database that this user may write, or configure \
         another file"
    } else {
        "start that database, or configure the URL of one that runs"
    };
    StartError::Store {
        url: redact_url(url),
        reason,
        remedy,
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|reason| {
        let remedy = match reason.kind() {
            io::ErrorKind::AddrInUse => {
                "stop the process that listens there, or configure another port (0 takes a free one)"
            }
            io::ErrorKind::PermissionDenied => {
                "configure a port above 1023, or grant the right to bind this one"
            }
            io::ErrorKind::AddrNotAvailable => "configure an address of this machine",
            _ => "configure another address",
        };
        StartError::Listen {
            address,
            reason,
            remedy,
        }
    })
}
