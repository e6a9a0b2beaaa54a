//! The breaker and a provider that fails in part: what succeeds through the router is at least what
//! succeeds directly. The clock is paused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod providers;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use gauntlet::config::{Breaker, Config};
use gauntlet::llm::router::Router;
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::schedule::{Action, Played};
use rstest::rstest;

use crate::providers::rules::{doing, status};
use crate::providers::{RouterSim, config_of, context, request};

/// The breaker as it was before it judged a rate: five failures in a row, thirty seconds, and one
/// probe.
fn in_a_row(breaker: Breaker) -> Breaker {
    Breaker {
        failure_rate: 0.0,
        minimum_attempts: 1_000_000,
        cool_down: Duration::from_secs(30),
        half_open_probes: 1,
        open_share: 0.0,
        ..breaker
    }
}

/// The defaults of the product, with timeouts that are short enough for a run of a minute.
fn defaults() -> Config {
    let mut schedule = doing(&[&[]]);
    schedule.settings.total_ms = 60_000;
    let product = Config::from_toml("").unwrap();
    let mut config = Config {
        retry: product.retry,
        breaker: product.breaker,
        ..config_of(&schedule)
    };
    config.providers["p1"].max_in_flight = 10_000;
    config
}

/// A number from 0 to 99 that depends on nothing but the call.
fn dice(call: usize) -> u64 {
    let mut mixed = (call as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) % 100
}

/// A provider that takes `take_ms` for an answer, and fails the calls that `fails` chooses.
fn provider(
    failure: Action,
    take_ms: u64,
    fails: impl Fn(usize) -> bool + Send + Sync + 'static,
) -> Arc<RouterSim> {
    RouterSim::new(move |_, call, stream| {
        if fails(call) {
            return doing(&[&[failure]]).play(0, 0, stream);
        }
        Played::flowing(
            doing(&[&[]]).play(0, 0, stream).response,
            Plan::of([Step::Pause { ms: take_ms }, Step::Head, Step::Rest]),
        )
    })
}

/// The percentage of requests that succeed if `requests` of them come at this interval.
async fn open_loop(router: &Router, requests: u64, every: Duration, stream: bool) -> f64 {
    let asked = (0..requests).map(|n| async move {
        tokio::time::sleep(every * u32::try_from(n).unwrap()).await;
        match router.chat(request(stream), context(None)).await {
            Ok(served) => providers::read(served).await.failed.is_empty(),
            Err(_) => false,
        }
    });
    let succeeded = join_all(asked).await.into_iter().filter(|ok| *ok).count();
    succeeded as f64 * 100.0 / requests as f64
}

/// The percentage of requests that succeed if each of `clients` sends one after the other.
async fn closed_loop(router: &Router, clients: usize, each: usize) -> f64 {
    let asked = (0..clients).map(|client| async move {
        let mut succeeded = 0;
        for _ in 0..each {
            let Ok(served) = router.chat(request(true), context(None)).await else {
                continue;
            };
            // Every second client leaves as soon as it has the first words.
            if client % 2 == 0 {
                providers::read(served).await;
            }
            succeeded += 1;
        }
        succeeded
    });
    let succeeded: usize = join_all(asked).await.into_iter().sum();
    succeeded as f64 * 100.0 / (clients * each) as f64
}

/// How many requests come, ten milliseconds after one another.
const REQUESTS: u64 = 3_000;
const EVERY: Duration = Duration::from_millis(10);

#[rstest]
#[case::thirty_percent(|call| dice(call) < 30, 70.0, false)]
#[case::thirty_percent_streamed(|call| dice(call) < 30, 70.0, true)]
#[case::twenty_percent(|call| dice(call) < 20, 80.0, false)]
#[case::each_third(|call| call % 3 == 0, 66.7, false)]
#[case::bursts(|call| call % 100 < 10, 90.0, true)]
#[tokio::test(start_paused = true)]
async fn a_provider_that_fails_in_part_is_not_cut_off(
    #[case] fails: fn(usize) -> bool,
    #[case] directly: f64,
    #[case] stream: bool,
) {
    let router = provider(status(500), 2, fails).router(&defaults());
    let succeeded = open_loop(&router, REQUESTS, EVERY, stream).await;
    assert!(
        succeeded >= directly,
        "{succeeded:.1} % succeed through the router, {directly} % directly"
    );
}

/// The failures in a row alone would cut such a provider off: this is what the rate is for.
#[tokio::test(start_paused = true)]
async fn failures_in_a_row_alone_would_cut_it_off() {
    let mut config = defaults();
    config.breaker = in_a_row(config.breaker);
    let router = provider(status(500), 2, |call| dice(call) < 30).router(&config);
    let succeeded = open_loop(&router, REQUESTS, EVERY, false).await;
    assert!(succeeded < 30.0, "{succeeded:.1} %");
}

/// Clients that wait for the few answers that never come do not make the provider look as if it
/// answered nobody.
#[tokio::test(start_paused = true)]
async fn stalls_among_answers_do_not_cut_a_provider_off() {
    let config = defaults();
    let router = provider(Action::Silent, 20, |call| dice(call) < 10).router(&config);
    let now = closed_loop(&router, 64, 100).await;
    assert!(now >= 88.0, "{now:.1} % succeed through the router");
}

/// A provider that fails altogether is cut off: it receives a small part of what is asked, and
/// serves again soon after it has recovered.
#[tokio::test(start_paused = true)]
async fn a_provider_that_fails_altogether_is_spared_and_soon_asked_again() {
    let sim = provider(status(500), 50, |call| call < 1_000);
    let config = defaults();
    let router = sim.router(&config);
    let asked = open_loop(&router, REQUESTS, EVERY, false).await;
    assert_eq!(asked, 0.0);
    let calls = sim.calls().len();
    assert!(
        (300..=450).contains(&calls),
        "{calls} calls for {REQUESTS} requests"
    );

    let recovered = provider(status(500), 50, |call| call < 60);
    let router = recovered.router(&config);
    let succeeded = open_loop(&router, REQUESTS, EVERY, false).await;
    assert!(succeeded > 80.0, "{succeeded:.1} % of half a minute");
}
