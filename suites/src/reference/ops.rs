//! For operators: liveness, readiness, health of every dependency, and counters.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Method, Response, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::error::Cause;
use super::gateway::Gateway;
use super::ingress::{Body, json_response};
use super::protocol::{Protocol, Usage};
use super::route::{CandidateState, Provider};
use super::store::StoreError;
use super::upstream::{self, Question};
use crate::defect::Defect;

/// How long a dependency may take to show that it lives.
const PROBE: Duration = Duration::from_millis(1_000);

/// How long a result of the probes is sent again.
const FRESH: Duration = Duration::from_millis(500);

/// Counters by name and labels.
#[derive(Debug, Default)]
pub(super) struct Metrics(Mutex<BTreeMap<String, u64>>);

impl Metrics {
    /// Adds to the counter `name{labels}`.
    pub(super) fn add(&self, name: &str, labels: &[(&str, &str)], by: u64) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}={value:?}"))
            .collect();
        *self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(format!("{name}{{{}}}", labels.join(",")))
            .or_default() += by;
    }

    /// A request has been answered, or left by its client (499).
    pub(super) fn request(&self, path: &str, status: u16) {
        let route = match path
            .trim_matches('/')
            .split('/')
            .collect::<Vec<_>>()
            .as_slice()
        {
            ["api", "v1", kind @ ("queries" | "documents"), _] => format!("/api/v1/{kind}/{{id}}"),
            ["v1", "models", _] => "/v1/models/{id}".to_owned(),
            _ => path.to_owned(),
        };
        self.add(
            "gauntlet_requests_total",
            &[("route", &route), ("status", &status.to_string())],
            1,
        );
    }

    /// Counts an attempt that has ended: as `success`, `cancelled`, or by the cause of its
    /// failure. One that was refused before anything was sent is counted apart, so that attempts
    /// are what the provider saw (OBS-01).
    pub(super) fn attempt(
        &self,
        candidate: &CandidateState,
        outcome: Result<&str, Cause>,
        defect: Option<Defect>,
    ) {
        let candidate = [
            ("provider", candidate.provider.spec.name.as_str()),
            ("model", candidate.model.as_str()),
        ];
        let count = |name: &str, label: (&str, &str)| {
            self.add(name, &[candidate[0], candidate[1], label], 1)
        };
        match outcome {
            Err(cause) if !cause.was_sent() => {
                count("gauntlet_attempts_not_sent_total", ("cause", cause.name()))
            }
            Err(cause) => {
                count("gauntlet_attempts_total", ("outcome", cause.name()));
                let stall = cause == Cause::IdleTimeout && defect == Some(Defect::ForgetsStalls);
                if cause.is_timeout() && defect != Some(Defect::CountsNoTimeouts) && !stall {
                    count("gauntlet_timeouts_total", ("cause", cause.name()));
                }
            }
            Ok(outcome) => count("gauntlet_attempts_total", ("outcome", outcome)),
        }
    }

    /// Adds the usage that a provider sent.
    pub(super) fn tokens(&self, candidate: &CandidateState, usage: Option<Usage>) {
        let Some(usage) = usage else { return };
        for (kind, count) in [("prompt", usage.prompt), ("completion", usage.completion)] {
            self.add(
                "gauntlet_tokens_total",
                &[
                    ("provider", &candidate.provider.spec.name),
                    ("model", &candidate.model),
                    ("kind", kind),
                ],
                count,
            );
        }
    }
}

/// `GET /metrics`.
pub(super) fn metrics(gateway: &Gateway) -> Response<Body> {
    let mut text = String::new();
    for (name, value) in gateway
        .metrics
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        writeln!(text, "{name} {value}").ok();
    }
    writeln!(
        text,
        "gauntlet_requests_in_flight {}",
        *gateway.in_flight.borrow()
    )
    .ok();
    if !gateway.has(Defect::HidesBreakers) {
        for (provider, model, breaker) in &gateway.routes.breakers {
            let state = match breaker.state() {
                _ if gateway.has(Defect::ReportsBreakersClosed) => 0,
                "closed" => 0,
                "half_open" => 1,
                _ => 2,
            };
            writeln!(
                text,
                "gauntlet_breaker_state{{provider={provider:?},model={model:?}}} {state}"
            )
            .ok();
        }
    }
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4"),
    );
    response
}

/// `GET /health/live`: the process lives, whatever its dependencies do (HLTH-01).
pub(super) async fn live(gateway: &Gateway) -> Response<Body> {
    quiet(gateway).await;
    if gateway.has(Defect::LivenessAsksStore)
        && let Err(reason) = store_state(gateway).await
    {
        return json_response(503, &json!({ "status": "dead", "reason": reason }));
    }
    if gateway.has(Defect::LivenessAsksProviders) {
        let providers = gateway.routes.providers.iter();
        let found = join_all(providers.map(|provider| provider_state(gateway, provider))).await;
        if found.iter().any(|finding| finding["up"] == false) {
            return json_response(503, &json!({ "status": "dead" }));
        }
    }
    json_response(200, &json!({ "status": "live" }))
}

/// `GET /health/ready`: 503 while the gateway drains, and while its store is gone or takes no
/// writes (HLTH-02, HLTH-05).
pub(super) async fn ready(gateway: &Gateway) -> Response<Body> {
    quiet(gateway).await;
    if gateway.draining.load(Ordering::SeqCst) && !gateway.has(Defect::ReadyWhileDraining) {
        return json_response(
            503,
            &json!({ "status": "not_ready", "reason": "shutting down" }),
        );
    }
    match store_for_ready(gateway).await {
        Err(reason) if !gateway.has(Defect::AlwaysReady) => json_response(
            503,
            &json!({ "status": "not_ready", "reason": format!("store: {reason}") }),
        ),
        _ => json_response(200, &json!({ "status": "ready" })),
    }
}

/// Asks the store whether it answers and takes writes; the result is sent again for a moment.
async fn store_for_ready(gateway: &Gateway) -> Result<(), String> {
    let Some(store) = &gateway.store else {
        return Ok(());
    };
    let mut last = gateway.store_probed.lock().await;
    match &*last {
        Some((at, found))
            if at.elapsed() < FRESH && !gateway.has(Defect::ReadinessProbesEachCall) =>
        {
            return found.clone();
        }
        _ => {}
    }
    let found = match store.ping().await {
        Ok(()) if gateway.has(Defect::HidesReadOnlyStore) => Ok(()),
        Ok(()) => store.takes_writes().await,
        Err(error) => Err(error),
    };
    let found = match found {
        Err(_) if gateway.has(Defect::ReadyWhileStalled) && store.accepts().await => Ok(()),
        Err(StoreError::NotWritable(why))
            if gateway.has(Defect::HidesFullDisk) && why.contains("space") =>
        {
            Ok(())
        }
        found => found,
    };
    let sticks = match &found {
        Err(StoreError::NotWritable(_)) => gateway.has(Defect::ReadOnlyEver),
        Err(_) => gateway.has(Defect::NeverReadyAgain),
        Ok(()) => false,
    };
    if sticks {
        gateway.was_lost.store(true, Ordering::SeqCst);
    }
    let found = match found {
        Ok(()) if gateway.was_lost.load(Ordering::SeqCst) => Err("it was lost".to_owned()),
        found => found.map_err(|error| error.reason().to_owned()),
    };
    *last = Some((Instant::now(), found.clone()));
    found
}

/// `GET /health`: every dependency is probed at once, each with its own timeout (HLTH-03).
pub(super) async fn health(gateway: &Arc<Gateway>) -> Response<Body> {
    quiet(gateway).await;
    let dependencies = probed(gateway).await;
    let breakers: Vec<Value> = gateway
        .routes
        .breakers
        .iter()
        .filter(|_| !gateway.has(Defect::HidesBreakers))
        .map(|(provider, model, breaker)| json!({ "provider": provider, "model": model, "state": breaker.state() }))
        .collect();
    let draining = gateway.draining.load(Ordering::SeqCst);
    let whole = dependencies.iter().all(|finding| finding["up"] == true)
        && breakers.iter().all(|breaker| breaker["state"] == "closed");
    let (code, status) = match (
        draining
            || dependencies
                .first()
                .is_some_and(|store| store["up"] != true),
        whole,
    ) {
        (true, _) => (503, "unavailable"),
        (false, true) => (200, "ok"),
        (false, false) => (200, "degraded"),
    };
    let in_flight = *gateway.in_flight.borrow();
    let document = json!({ "status": status, "draining": draining, "in_flight": in_flight, "dependencies": dependencies, "breakers": breakers });
    json_response(code, &document)
}

/// Probes the store first, then the providers; requests that come meanwhile get the same result
/// (HLTH-04).
async fn probed(gateway: &Arc<Gateway>) -> Vec<Value> {
    if gateway.has(Defect::ProbesEachCall) {
        return probe(gateway).await;
    }
    let mut last = gateway.probed.lock().await;
    match &*last {
        Some((at, found))
            if at.elapsed() < FRESH
                && !(gateway.has(Defect::ProbesAgainAfterFailure)
                    && found.iter().any(|finding| finding["error"] == "status 500")) =>
        {
            found.clone()
        }
        _ => {
            let found = probe(gateway).await;
            *last = Some((Instant::now(), found.clone()));
            found
        }
    }
}

async fn probe(gateway: &Arc<Gateway>) -> Vec<Value> {
    let store = async {
        let kind = gateway.store.as_ref().map_or("none", |store| store.kind());
        let state = store_state(gateway).await;
        let state = state.or_else(|error| match gateway.has(Defect::HidesLostStore) {
            true => Ok(()),
            false => Err(error),
        });
        finding("store", kind, state)
    };
    let providers: Vec<_> = gateway
        .routes
        .providers
        .iter()
        .map(|provider| provider_state(gateway, provider))
        .collect();
    let (store, providers) = match gateway.defect {
        Some(Defect::ProbesInSequence) => {
            let mut found = Vec::new();
            for provider in providers {
                found.push(provider.await);
            }
            (store.await, found)
        }
        Some(Defect::ProbesStoreFirst) => (store.await, join_all(providers).await),
        Some(Defect::OneTimeoutForAll) => {
            let all = async { tokio::join!(store, join_all(providers)) };
            // a little less than the timeout of each
            timeout(PROBE / 2, all).await.unwrap_or_else(|_| {
                let late = |name: &str| finding(name, "", Err("no answer".into()));
                let all = gateway.routes.providers.iter();
                (
                    late("store"),
                    all.map(|provider| late(&provider.spec.name)).collect(),
                )
            })
        }
        _ => tokio::join!(store, join_all(providers)),
    };
    std::iter::once(store).chain(providers).collect()
}

async fn store_state(gateway: &Gateway) -> Result<(), String> {
    match &gateway.store {
        None => Ok(()),
        Some(store) => store
            .ping()
            .await
            .map_err(|error| error.reason().to_owned()),
    }
}

/// Asks a provider for something that costs nothing: its list of models, or its version.
async fn provider_state(gateway: &Gateway, provider: &Provider) -> Value {
    let base = provider.base_url.trim_end_matches('/');
    let (kind, url) = match provider.protocol {
        Protocol::OpenAi => ("openai", format!("{base}/models")),
        Protocol::Ollama => ("ollama", format!("{base}/api/version")),
    };
    let mut headers = HeaderMap::new();
    if let Ok(key) = HeaderValue::from_str(&format!("Bearer {}", provider.spec.api_key)) {
        headers.insert(header::AUTHORIZATION, key);
    }
    let question = Question {
        short: false,
        method: Method::GET,
        url,
        headers,
        body: Bytes::new(),
        connect: PROBE,
        silence: PROBE,
        pool: None,
        replays: false,
    };
    let state = match timeout(PROBE, upstream::send(question, None)).await {
        Err(_) => Err(format!("no answer within {PROBE:?}")),
        Ok(Err(error)) => Err(error.message),
        Ok(Ok(answer)) if answer.status.is_success() || gateway.has(Defect::ErrorsAreUp) => Ok(()),
        Ok(Ok(answer)) => Err(format!("status {}", answer.status.as_u16())),
    };
    finding(&provider.spec.name, kind, state)
}

fn finding(name: &str, kind: &str, state: Result<(), String>) -> Value {
    let mut finding = json!({ "name": name, "kind": kind, "up": state.is_ok() });
    if let Err(error) = state {
        finding["error"] = error.into();
    }
    finding
}

/// [`Defect::HealthWaitsForRequests`].
async fn quiet(gateway: &Gateway) {
    if gateway.has(Defect::HealthWaitsForRequests) {
        gateway
            .in_flight
            .subscribe()
            .wait_for(|taken| *taken == 0)
            .await
            .ok();
    }
}
