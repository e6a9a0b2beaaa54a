//! Health: liveness always, readiness by the store, the detailed document by probes that run together and are not repeated.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::join_all;
use gauntlet::Gateway;
use gauntlet::config::Config;

use super::client::{ask, get};
use super::gateway::{start, toml};
use super::memory::MemoryStore;
use super::provider::Provider;

#[tokio::test]
async fn readiness_follows_the_store_and_liveness_does_not() {
    let gateway = start("[server]\nhealth_cache_ms = 0\n").await;
    assert_eq!(get(gateway.address, "/health/ready").await.status, 200);
    gateway.store.gone(true);
    let ready = get(gateway.address, "/health/ready").await;
    assert_eq!(
        (ready.status, ready.json()["reason"].as_str()),
        (503, Some("store: it cannot be reached"))
    );
    assert_eq!(get(gateway.address, "/health/live").await.status, 200);
    gateway.store.gone(false);
    assert_eq!(get(gateway.address, "/health/ready").await.status, 200);
}

#[tokio::test]
async fn every_dependency_is_probed_together() {
    let (one, two) = (Provider::start().await, Provider::start().await);
    let config = toml(
        &[("p1", &one.base_url), ("p2", &two.base_url)],
        "[server]\nlisten = \"127.0.0.1:0\"\nhealth_timeout_ms = 60000\n",
    );
    let running = Gateway::start_with(
        Config::from_toml(&config).unwrap(),
        Arc::new(MemoryStore::default()),
    )
    .await
    .unwrap();
    let asked = tokio::spawn(get(running.addr, "/health"));
    // a gateway that asks one after the other never comes to the second
    let (first, second) = (one.next().await, two.next().await);
    second.json(200, "{}").await;
    first.json(500, "{}").await;
    let health = asked.await.unwrap();
    let document = health.json();
    assert_eq!(
        (health.status, document["status"].as_str()),
        (200, Some("degraded"))
    );
    let told: Vec<_> = document["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["up"].as_bool().unwrap()))
        .collect();
    assert_eq!(told, [("store", true), ("p1", false), ("p2", true)]);
}

#[tokio::test]
async fn a_dependency_that_never_answers_is_given_up() {
    let gateway = start("[server]\nhealth_timeout_ms = 50\n").await;
    let health = get(gateway.address, "/health").await;
    let dependencies = health.json()["dependencies"].clone();
    assert_eq!(
        dependencies[1]["error"].as_str(),
        Some("no answer within 50 ms")
    );
    assert_eq!(get(gateway.address, "/health/live").await.status, 200);
}

#[tokio::test]
async fn a_storm_of_calls_costs_one_probe() {
    let gateway = start("[server]\nhealth_cache_ms = 60000\n").await;
    let answers = join_all((0..40).map(|_| get(gateway.address, "/health/ready"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(gateway.store.pings.load(Ordering::SeqCst), 1);
}

/// BRKR-06: health and metrics tell one state, also where a breaker has changed by time alone.
#[tokio::test]
async fn health_and_metrics_agree_about_a_breaker() {
    let gateway = start("[server]\nhealth_cache_ms = 0\n[breaker]\nfailure_threshold = 1\ncool_down_ms = 100\n[retry]\nmax_attempts = 1\n").await;
    let mut client = ask(gateway.address, "plain").await;
    gateway.provider.next().await.json(500, "{}").await;
    assert_eq!(client.response().await.status, 502);
    let state = async || {
        let metrics = get(gateway.address, "/metrics").await.body;
        metrics
            .lines()
            .find(|line| line.starts_with("gauntlet_breaker_state{"))
            .and_then(|line| line.rsplit(' ').next())
            .map(str::to_owned)
    };
    // the cool-down passes by itself, without any request
    while state().await.as_deref() == Some("2") {}
    assert_eq!(state().await.as_deref(), Some("1"));
    let asked = tokio::spawn(get(gateway.address, "/health"));
    gateway.provider.next().await.json(200, "{}").await;
    let health = asked.await.unwrap();
    assert!(health.body.contains("half_open"), "{}", health.body);
}

/// Not every provider has a list of models; whoever answers is there.
#[tokio::test]
async fn a_provider_that_answers_is_up_unless_it_tells_of_trouble() {
    let gateway = start("[server]\nhealth_cache_ms = 0\n").await;
    for (status, told) in [
        (200, "ok"),
        (404, "ok"),
        (405, "ok"),
        (429, "ok"),
        (401, "degraded"),
        (403, "degraded"),
        (500, "degraded"),
    ] {
        let asked = tokio::spawn(get(gateway.address, "/health"));
        gateway.provider.next().await.json(status, "{}").await;
        assert_eq!(
            asked.await.unwrap().json()["status"].as_str(),
            Some(told),
            "{status}"
        );
    }
}
