//! The running gateway: what all requests share, the listener, and the end on SIGTERM.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use gauntlet_harness::spec::Spec;
use gauntlet_harness::subject::{Deployment, Process, RunningTarget, TargetError};
use gauntlet_harness::tape::{Event, Side, Tape};
use http::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::error::Cause;
use super::ingress;
use super::ops::Metrics;
use super::route::{CandidateState, Routes};
use super::store::Store;
use super::upstream::Altered;
use crate::defect::Defect;

/// What all requests share.
pub(super) struct Gateway {
    pub spec: Spec,
    pub defect: Option<Defect>,
    pub routes: Routes,
    pub metrics: Metrics,
    pub store: Option<Store>,
    /// Work that ends before the process does: records of queries whose client left, and bodies
    /// that are read to their end.
    tasks: TaskTracker,
    /// Set by a kill: everything stops at once.
    killed: watch::Sender<bool>,
    /// Set by SIGTERM: readiness becomes 503, and new work is refused.
    pub draining: AtomicBool,
    /// Set at the drain deadline: what is left ends now.
    pub cut: watch::Sender<bool>,
    /// Requests in flight.
    pub in_flight: watch::Sender<u32>,
    /// How many of them each tenant has.
    tenants: Mutex<HashMap<String, u32>>,
    /// For [`Defect::FreesPermitsTogether`]: those that have ended while others have not.
    ended: AtomicU32,
    /// Whether the process has no file descriptor left.
    pub short: AtomicBool,
    /// The headers of the last answer of a provider, for the defects that copy them.
    pub copied: Mutex<HeaderMap>,
    /// One pool for all requests, for [`Defect::HeadOfLine`] and [`Defect::WritesUnderLock`].
    pub line: Arc<Semaphore>,
    /// The requests in flight by alias: for [`Defect::SharesPrompts`].
    pub prompts: Mutex<HashMap<String, Vec<Prompt>>>,
    /// For [`Defect::SharesBuffer`].
    pub buffer: Mutex<Vec<u8>>,
    /// What the last probes found, and when. It is sent again for a moment, and the one who probes
    /// holds the lock.
    pub probed: tokio::sync::Mutex<Option<(Instant, Vec<Value>)>>,
    /// What readiness has last found of the store, and when.
    pub store_probed: tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>,
    /// For [`Defect::NeverReadyAgain`] and [`Defect::ReadOnlyEver`].
    pub was_lost: AtomicBool,
    /// How often SIGHUP has come.
    pub hung_up: watch::Sender<usize>,
    /// For the defects that pass cookies on: the last one that a provider has set.
    pub last_cookie: Mutex<Option<http::HeaderValue>>,
    /// For [`Defect::SharesByIdempotencyKey`]: documents by that key.
    pub by_idempotency_key: Mutex<HashMap<String, Value>>,
    /// The keys that the store has confirmed, and when.
    pub confirmed: Mutex<HashMap<String, (String, Instant)>>,
    lines: Mutex<String>,
}

/// A request's id and messages.
type Prompt = (String, Value);

/// A permit among the requests in flight; dropping it gives it back.
pub(super) struct Permit {
    gateway: Arc<Gateway>,
    tenant: String,
    /// Whether the answer is a stream, and whether it has ended: for the defects that lose the
    /// permit of a client that leaves.
    pub streamed: bool,
    pub ended: bool,
}

impl Permit {
    /// Loses the permit, if the gateway has this bug.
    pub(super) fn lost_by(self, defect: Defect) {
        if self.gateway.has(defect) {
            std::mem::forget(self);
        }
    }
}

impl Gateway {
    pub(super) fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    /// The last cookie that a provider has set.
    pub(super) fn cookie(&self) -> Option<http::HeaderValue> {
        let last = self.last_cookie.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes a line to the log.
    pub(super) fn log(&self, line: &str) {
        let mut lines = self.lines();
        lines.push_str(line);
        lines.push('\n');
    }

    /// Runs work that outlives its request: the process waits for it, and only a kill ends it.
    pub(super) fn outlive<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<Option<T>> {
        let mut killed = self.killed.subscribe();
        self.tasks.spawn(async move {
            tokio::select! {
                done = work => Some(done),
                () = set(&mut killed) => None,
            }
        })
    }

    /// Counts an attempt that has ended.
    pub(super) fn attempted(&self, candidate: &CandidateState, outcome: Result<&str, Cause>) {
        if !self.has(Defect::CountsRequestsAsAttempts) {
            self.metrics.attempt(candidate, outcome, self.defect);
        }
    }

    /// Whether all permits are taken.
    pub(super) fn is_full(&self) -> bool {
        *self.in_flight.borrow() >= self.spec.limits.max_in_flight
            && !self.has(Defect::QueuesWithoutBound)
    }

    /// Takes a permit, if the limit is not reached (LOAD-01). An eighth of them is kept for tenants
    /// that hold few (LOAD-11).
    pub(super) async fn enter(self: &Arc<Self>, tenant: &str) -> Option<Permit> {
        let limit = self.spec.limits.max_in_flight;
        if !self.spec.keys.is_empty() && !self.has(Defect::OneTenantTakesAll) {
            let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
            let held = tenants.entry(tenant.to_owned()).or_default();
            if *held >= limit - (limit / 8).max(1) {
                return None;
            }
            *held += 1;
        }
        self.enter_any(tenant, limit).await
    }

    async fn enter_any(self: &Arc<Self>, tenant: &str, limit: u32) -> Option<Permit> {
        let permit = Permit {
            gateway: self.clone(),
            tenant: tenant.to_owned(),
            streamed: false,
            ended: false,
        };
        if self.has(Defect::QueuesWithoutBound) {
            let mut free = self.in_flight.subscribe();
            while !self.take_permit(limit) {
                free.wait_for(|taken| *taken < limit).await.ok();
            }
        } else if !self.take_permit(limit) {
            if self.has(Defect::LeaksPermits) {
                self.in_flight.send_modify(|taken| *taken += 1);
            }
            permit.leave_tenant();
            std::mem::forget(permit);
            return None;
        }
        Some(permit)
    }

    /// Loses a permit.
    pub(super) fn lose(&self) {
        self.in_flight.send_modify(|taken| *taken += 1);
    }

    fn take_permit(&self, limit: u32) -> bool {
        self.in_flight.send_if_modified(|taken| {
            let free = *taken < limit;
            *taken += u32::from(free);
            free
        })
    }

    fn lines(&self) -> MutexGuard<'_, String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    fn leave_tenant(&self) {
        let mut tenants = self
            .gateway
            .tenants
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = tenants.get_mut(&self.tenant) {
            *held = held.saturating_sub(1);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.leave_tenant();
        let left = match self.gateway.defect {
            Some(Defect::LosesPermitOfLeaver) => !self.streamed,
            Some(Defect::LosesPermitOfLeftStream) => self.streamed,
            _ => false,
        };
        if left && !self.ended {
            return;
        }
        let mut given_back = 1;
        if self.gateway.has(Defect::GivesPermitBackTwice) {
            given_back = 2;
        }
        if self.gateway.has(Defect::FreesPermitsTogether) {
            let ended = self.gateway.ended.fetch_add(1, Ordering::SeqCst) + 1;
            if ended < *self.gateway.in_flight.borrow() {
                return;
            }
            given_back = self.gateway.ended.swap(0, Ordering::SeqCst);
        }
        self.gateway
            .in_flight
            .send_modify(|taken| *taken = taken.saturating_sub(given_back));
    }
}

/// Waits until the flag is set, forever if it never is.
pub(super) async fn set(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|set| *set).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Starts the gateway on a free port.
pub(super) async fn start(
    deployment: Deployment,
    defect: Option<Defect>,
) -> Result<RunningTarget, TargetError> {
    let routes = Routes::of(&deployment, defect)?;
    let store = match &deployment.database_url {
        Some(url) => Some(
            Store::open(url, deployment.spec.query.as_ref(), defect)
                .await
                .map_err(|error| TargetError::Start(error.to_string()))?,
        ),
        None => None,
    };
    let failed =
        |error: std::io::Error| TargetError::Start(format!("no port on 127.0.0.1: {error}"));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let gateway = Arc::new(Gateway {
        spec: deployment.spec,
        defect,
        routes,
        metrics: Metrics::default(),
        store,
        tasks: TaskTracker::new(),
        killed: watch::Sender::new(false),
        draining: AtomicBool::new(false),
        cut: watch::Sender::new(false),
        in_flight: watch::Sender::new(0),
        tenants: Mutex::default(),
        ended: AtomicU32::new(0),
        short: AtomicBool::new(false),
        copied: Mutex::default(),
        line: Arc::new(Semaphore::new(if defect == Some(Defect::HeadOfLine) {
            32
        } else {
            1
        })),
        prompts: Mutex::default(),
        buffer: Mutex::default(),
        probed: tokio::sync::Mutex::default(),
        store_probed: tokio::sync::Mutex::default(),
        was_lost: AtomicBool::new(false),
        hung_up: watch::Sender::new(0),
        confirmed: Mutex::default(),
        last_cookie: Mutex::default(),
        by_idempotency_key: Mutex::default(),
        lines: Mutex::default(),
    });
    let stop = watch::Sender::new(false);
    let exit = watch::Sender::new(None);
    let server = tokio::spawn(serve(
        gateway.clone(),
        listener,
        stop.subscribe(),
        exit.clone(),
    ));
    deployment.tape.record(
        Side::Target,
        Event::Target {
            what: format!("ready at {address}"),
        },
    );
    let process = InProcess {
        gateway,
        server: server.abort_handle(),
        drain: Mutex::default(),
        stop,
        exit,
        tape: deployment.tape,
    };
    Ok(RunningTarget {
        base_url: format!("http://{address}"),
        model_prefix: String::new(),
        headers: Vec::new(),
        rendered: Arc::default(),
        process: Some(Box::new(process)),
    })
}

/// Accepts connections until the process is asked to end; then lets every connection end its
/// exchange, and exits with 0.
async fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
    exit: watch::Sender<Option<End>>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(gateway.clone(), stream, stop.clone()));
                }
            }
            () = set(&mut stop) => break,
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let ended = async {
        while connections.join_next().await.is_some() {}
        gateway.tasks.close();
        gateway.tasks.wait().await;
        if let Some(store) = &gateway.store {
            store.close().await;
        }
    };
    timeout(Duration::from_secs(2), ended).await.ok();
    let code = i32::from(gateway.has(Defect::ExitsNonZero));
    exit.send_replace(Some(End::Exited(code)));
}

async fn connection(gateway: Arc<Gateway>, stream: TcpStream, mut stop: watch::Receiver<bool>) {
    if gateway.has(Defect::PermitAtFirstByte) {
        stream.peek(&mut [0]).await.ok();
    }
    let early = [Defect::PermitForEachConnection, Defect::PermitAtFirstByte];
    let permit = match gateway.defect {
        Some(defect) if early.contains(&defect) => gateway.enter("default").await,
        _ => None,
    };
    let early = Mutex::new(permit);
    let requests = AtomicU32::new(0);
    let service = service_fn(|request| {
        if gateway.has(Defect::PermitAtFirstByte) {
            drop(early.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
        let n = requests.fetch_add(1, Ordering::SeqCst);
        ingress::answer(gateway.clone(), request, n)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new());
    let header = Duration::from_millis(gateway.spec.limits.header_ms);
    let untimed = [Defect::WaitsForSlowClient, Defect::WaitsOnKeptConnections];
    if gateway
        .defect
        .is_some_and(|defect| untimed.contains(&defect))
    {
        builder.header_read_timeout(None);
    } else {
        builder.header_read_timeout(header);
    }
    let first = async {
        tokio::time::sleep(header).await;
        let kept = requests.load(Ordering::SeqCst) > 0;
        if kept || !gateway.has(Defect::WaitsOnKeptConnections) {
            std::future::pending::<()>().await;
        }
    };
    let stream = Altered {
        stream,
        changes: match gateway.defect {
            Some(Defect::TakesFirstLength) => &[(b"\r\nContent-Length", b"\r\nX-ntent-Length")],
            _ => &[],
        },
    };
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        () = first => {}
        // a client that left, or does not speak HTTP, needs no line in the log
        _ended = connection.as_mut() => {}
        () = set(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await.ok();
        }
    }
}

/// The gateway as a process that can be signalled.
struct InProcess {
    gateway: Arc<Gateway>,
    server: AbortHandle,
    drain: Mutex<Option<AbortHandle>>,
    stop: watch::Sender<bool>,
    exit: watch::Sender<Option<End>>,
    tape: Tape,
}

impl InProcess {
    fn begin_drain(&self) {
        self.gateway.draining.store(true, Ordering::SeqCst);
        let drain = tokio::spawn(drain(self.gateway.clone(), self.stop.clone()));
        *self.drain.lock().unwrap_or_else(PoisonError::into_inner) = Some(drain.abort_handle());
    }

    fn end(&self) {
        self.server.abort();
        self.exit.send_replace(Some(End::Killed));
    }
}

/// How the process ended.
#[derive(Clone, Copy, Debug)]
enum End {
    Exited(i32),
    Killed,
}

#[async_trait]
impl Process for InProcess {
    async fn terminate(&self) -> Result<(), TargetError> {
        self.tape.record(
            Side::Target,
            Event::Target {
                what: "SIGTERM".into(),
            },
        );
        if self.gateway.has(Defect::DropsOnTerm) {
            self.server.abort();
            self.exit.send_replace(Some(End::Exited(0)));
            return Ok(());
        }
        self.begin_drain();
        Ok(())
    }

    /// Changes nothing (DRAIN-03).
    async fn hang_up(&self) -> Result<(), TargetError> {
        let what = "SIGHUP".into();
        self.tape.record(Side::Target, Event::Target { what });
        self.gateway.hung_up.send_modify(|times| *times += 1);
        let again = *self.gateway.hung_up.borrow() > 1;
        let draining = self.gateway.draining.load(Ordering::SeqCst);
        match self.gateway.defect {
            Some(Defect::HangupDrains) => self.begin_drain(),
            Some(Defect::HangupEnds) => self.end(),
            Some(Defect::SecondHangupEnds) if again => self.end(),
            Some(Defect::HangupEndsDrain) if draining => self.end(),
            _ => {}
        }
        Ok(())
    }

    async fn kill(&self) -> Result<(), TargetError> {
        self.tape.record(
            Side::Target,
            Event::Target {
                what: "SIGKILL".into(),
            },
        );
        self.gateway.killed.send_replace(true);
        self.server.abort();
        self.exit.send_replace(Some(End::Killed));
        Ok(())
    }

    async fn leave_descriptors(&self, spare: Option<u64>) -> Result<(), TargetError> {
        self.gateway.short.store(spare.is_some(), Ordering::SeqCst);
        Ok(())
    }

    async fn wait(&self) -> Result<Option<i32>, TargetError> {
        let mut exit = self.exit.subscribe();
        let end = *exit
            .wait_for(Option::is_some)
            .await
            .map_err(|_| TargetError::Died("the gateway is gone".into()))?;
        Ok(match end {
            Some(End::Exited(code)) => Some(code),
            Some(End::Killed) | None => None,
        })
    }

    fn log_tail(&self) -> String {
        let lines = self.gateway.lines();
        let tail: Vec<&str> = lines.lines().rev().take(20).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn log(&self) -> String {
        self.gateway.lines().clone()
    }

    fn id(&self) -> Option<u32> {
        None
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.server.abort();
        if let Some(drain) = self
            .drain
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            drain.abort();
        }
    }
}

/// Handles SIGTERM: what is in flight ends; at the drain deadline the rest is cut with an error
/// event (DRAIN-01, DRAIN-02).
async fn drain(gateway: Arc<Gateway>, stop: watch::Sender<bool>) {
    let mut in_flight = gateway.in_flight.subscribe();
    let deadline = Duration::from_millis(gateway.spec.limits.drain_ms);
    let ended = in_flight.wait_for(|taken| *taken == 0);
    if gateway.has(Defect::DrainsForever) {
        ended.await.ok();
    } else if timeout(deadline, ended).await.is_err() {
        gateway.cut.send_replace(true);
        timeout(
            Duration::from_secs(1),
            in_flight.wait_for(|taken| *taken == 0),
        )
        .await
        .ok();
    }
    stop.send_replace(true);
}
