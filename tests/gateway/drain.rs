//! Stopping: readiness turns, new work is refused, what is in flight ends or is cut with an error that says so.

use std::sync::atomic::Ordering;

use super::client::{Client, ask, get};
use super::gateway::{Started, start};
use super::provider::COMPLETION;

#[tokio::test]
async fn what_is_in_flight_ends_and_nothing_new_is_taken() {
    let Started {
        running,
        address,
        provider,
        ..
    } = start("").await;
    let mut plain = ask(address, "plain").await;
    let held = provider.next().await;
    let mut streamed = ask(address, "stream").await;
    let mut stream = provider.next().await;
    stream.stream().await;
    stream.says("one").await;
    streamed.until("one").await;

    let shutdown = running.shutdown.clone();
    let drained = tokio::spawn(running.drain());
    shutdown.draining().await;
    let ready = get(address, "/health/ready").await;
    assert_eq!(
        (ready.status, ready.header("connection")),
        (503, Some("close"))
    );
    assert_eq!(get(address, "/health/live").await.status, 200);
    let refused = ask(address, "plain").await.response().await;
    assert_eq!(
        (
            refused.status,
            refused.code().as_str(),
            refused.header("connection")
        ),
        (503, "shutting_down", Some("close"))
    );
    assert!(!drained.is_finished());

    held.json(200, COMPLETION).await;
    assert_eq!(plain.response().await.status, 200);
    stream.says("two").await;
    stream.ends().await;
    assert!(streamed.response().await.body.ends_with("data: [DONE]\n\n"));
    drained.await.unwrap();
}

#[tokio::test]
async fn the_drain_deadline_cuts_what_is_left_with_an_error() {
    let Started {
        running,
        address,
        provider,
        ..
    } = start("[server]\ndrain_ms = 20\n").await;
    let mut plain = ask(address, "plain").await;
    let held = provider.next().await;
    let mut streamed = ask(address, "stream").await;
    let mut stream = provider.next().await;
    stream.stream().await;
    stream.says("one").await;
    streamed.until("one").await;

    running.drain().await;
    let cut = plain.response().await;
    assert_eq!((cut.status, cut.code().as_str()), (503, "shutting_down"));
    let body = streamed.response().await.body;
    assert!(
        body.contains("one")
            && body.contains(r#""code":"shutting_down""#)
            && !body.contains("[DONE]"),
        "{body}"
    );
    held.closed().await;
    stream.closed().await;
}

#[tokio::test]
async fn what_is_being_read_ends_before_the_gateway_does() {
    let Started {
        running,
        address,
        store,
        ..
    } = start("").await;
    store.slow.store(true, Ordering::SeqCst);
    let mut reader = Client::connect(address).await;
    reader
        .send("GET /api/v1/queries HTTP/1.1\r\nhost: gateway\r\n\r\n")
        .await;
    store.listing.notified().await;
    let shutdown = running.shutdown.clone();
    let drained = tokio::spawn(running.drain());
    shutdown.draining().await;
    assert_eq!(
        get(address, "/health/live").await.status,
        200,
        "it still serves"
    );
    store.listed.notify_one();
    assert_eq!(reader.response().await.status, 200);
    drained.await.unwrap();
}
