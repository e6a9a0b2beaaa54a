//! Health: liveness always, readiness by the store, and the detailed document by probes that run at
//! the same time and are not repeated while their result is fresh.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use futures::future::join_all;
use gauntlet::Gateway;
use gauntlet_harness::gate::Gates;
use gauntlet_harness::llm::{Responder, error, openai, raw, with};
use gauntlet_harness::plan::Plan;
use gauntlet_harness::tape::Tape;

use super::support::gateway::{TestGateway, client_of, config, stub};

const NO_CACHE: &str = "[server]\nhealth_cache_ms = 0\n";

fn probed(status: u16) -> Responder {
    raw(status, "application/json", "{}")
}

#[tokio::test]
async fn readiness_follows_the_store_and_liveness_does_not() {
    let gateway = TestGateway::start(NO_CACHE).await;
    assert_eq!(gateway.get("/health/ready").await.status, 200);
    gateway.store.close().await;
    let ready = gateway.get("/health/ready").await;
    assert_eq!(
        (ready.status, ready.json()["reason"].as_str()),
        (503, Some("store: it cannot be reached"))
    );
    assert_eq!(gateway.get("/health/live").await.status, 200);
}

#[tokio::test]
async fn all_dependencies_are_probed_at_the_same_time() {
    let tape = Tape::new();
    let gates = Gates::new(tape.clone());
    let (one, two) = (
        stub("p1", &tape, &gates).await,
        stub("p2", &tape, &gates).await,
    );
    // each answer waits for the other probe: a gateway that probes one after the other never meets
    // it
    for (stub, status) in [(&one, 500), (&two, 200)] {
        let answer = probed(status).plan(Plan::met("probes", 2));
        stub.mount(openai::models(), answer).await;
    }
    let config = config(&[&one, &two], "[server]\nhealth_timeout_ms = 60000\n");
    let gateway = Gateway::start(config).await.unwrap();
    let health = client_of(&gateway, &tape).get("/health").await.unwrap();
    let document = health.json();
    assert_eq!(
        (health.status, document["status"].as_str()),
        (200, Some("degraded"))
    );
    let up: Vec<_> = document["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["up"].as_bool().unwrap()))
        .collect();
    assert_eq!(up, [("store", true), ("p1", false), ("p2", true)]);
}

#[tokio::test]
async fn a_dependency_that_never_answers_times_out() {
    let gateway = TestGateway::start("[server]\nhealth_timeout_ms = 50\n").await;
    let answer = probed(200).plan(Plan::silent());
    gateway.stub.mount(openai::models(), answer).await;
    let health = gateway.get("/health").await.json();
    assert_eq!(
        health["dependencies"][1]["error"].as_str(),
        Some("no answer within 50 ms")
    );
    assert_eq!(gateway.get("/health/live").await.status, 200);
}

#[tokio::test]
async fn many_calls_cost_one_probe() {
    let gateway = TestGateway::start("[server]\nhealth_cache_ms = 60000\n").await;
    let replies = join_all((0..40).map(|_| gateway.get("/health"))).await;
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert_eq!(gateway.stub.all_requests().len(), 1);
}

/// BRKR-06: health and metrics show one state, also where time alone has changed a breaker.
#[tokio::test]
async fn health_and_metrics_agree_about_a_breaker() {
    let gateway = TestGateway::start(
        "[server]\nhealth_cache_ms = 0\n[breaker]\nfailure_threshold = 1\ncool_down_ms = 100\n\
         [retry]\nmax_attempts = 1\n",
    )
    .await;
    gateway.stub.answers(error(500));
    assert_eq!(gateway.chat().await.status, 502);
    let state = async || {
        let metrics = gateway.get("/metrics").await.text();
        metrics
            .lines()
            .find(|line| line.starts_with("gauntlet_breaker_state{"))
            .and_then(|line| line.rsplit(' ').next())
            .map(str::to_owned)
    };
    // the cool-down passes without any request
    while state().await.as_deref() == Some("2") {}
    assert_eq!(state().await.as_deref(), Some("1"));
    let health = gateway.get("/health").await;
    assert!(health.text().contains("half_open"), "{}", health.text());
}

/// Not every provider has a list of models: one that answers is up.
#[tokio::test]
async fn a_provider_that_answers_is_up_unless_its_status_is_an_error_of_its_own() {
    let gateway = TestGateway::start(NO_CACHE).await;
    let status = Arc::new(AtomicU16::new(0));
    let answered = status.clone();
    let answer = with(move |_| probed(answered.load(Ordering::SeqCst)));
    gateway.stub.mount(openai::models(), answer).await;
    for (answered, expected) in [
        (200, "ok"),
        (404, "ok"),
        (405, "ok"),
        (429, "ok"),
        (401, "degraded"),
        (403, "degraded"),
        (500, "degraded"),
    ] {
        status.store(answered, Ordering::SeqCst);
        let health = gateway.get("/health").await.json();
        assert_eq!(health["status"].as_str(), Some(expected), "{answered}");
    }
}
