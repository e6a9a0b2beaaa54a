//! Stopping: readiness becomes false, new work is refused, and requests in flight end or are cut
//! with an error that says so.

use futures::poll;
use gauntlet_harness::client::{End, Exchange, StreamReply};
use gauntlet_harness::llm::with;
use gauntlet_harness::plan::{Plan, Step};

use super::support::gateway::{TestGateway, code, completion, question, streamed};

/// A plain request whose answer is held, and a stream that is held after its first event.
async fn two_in_flight(gateway: &TestGateway) -> (Exchange, StreamReply) {
    gateway.stub.answers(with(|request| {
        if request.streams() {
            let hold = Step::Hold("stream".into());
            let plan = [Step::Head, Step::Events(1), hold, Step::Rest];
            streamed(&["one", "two"]).plan(Plan::of(plan))
        } else {
            completion().plan(Plan::held("plain"))
        }
    }));
    let plain = gateway.client.send_chat(question()).await.unwrap();
    let mut stream = gateway.client.stream(question()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().delta_text, "one");
    gateway.stub.held(2).await.unwrap();
    (plain, stream)
}

#[tokio::test]
async fn requests_in_flight_end_and_no_new_one_is_accepted() {
    let gateway = TestGateway::start("").await;
    let (plain, stream) = two_in_flight(&gateway).await;
    let TestGateway {
        running,
        client,
        gates,
        ..
    } = gateway;
    let shutdown = running.shutdown.clone();
    let drained = tokio::spawn(running.drain());
    shutdown.draining().await;

    let ready = client.get("/health/ready").await.unwrap();
    assert_eq!(
        (ready.status, ready.header("connection")),
        (503, Some("close"))
    );
    assert_eq!(client.get("/health/live").await.unwrap().status, 200);
    let refused = client.chat(question()).await.unwrap();
    assert_eq!(
        (
            refused.status,
            code(&refused).as_str(),
            refused.header("connection")
        ),
        (503, "shutting_down", Some("close"))
    );
    assert!(!drained.is_finished());

    gates.gate("plain").open();
    assert_eq!(plain.reply().await.unwrap().status, 200);
    gates.gate("stream").open();
    let transcript = stream.collect().await.unwrap();
    assert_eq!(
        (transcript.text.as_str(), transcript.done_count),
        ("two", 1)
    );
    drained.await.unwrap();
}

#[tokio::test]
async fn the_drain_deadline_cuts_what_is_left_with_an_error() {
    let gateway = TestGateway::start("[server]\ndrain_ms = 20\n").await;
    let (plain, stream) = two_in_flight(&gateway).await;
    gateway.running.drain().await;
    let cut = plain.reply().await.unwrap();
    assert_eq!((cut.status, code(&cut).as_str()), (503, "shutting_down"));
    let transcript = stream.collect().await.unwrap();
    assert_eq!((&transcript.end, transcript.done_count), (&End::Orderly, 0));
    assert_eq!(transcript.error.unwrap()["code"], "shutting_down");
    gateway.stub.peer_closed(2).await.unwrap();
}

#[tokio::test]
async fn a_listing_that_is_being_read_ends_before_the_gateway_does() {
    let gateway = TestGateway::start("").await;
    // a store in memory has one connection, and a call that is waiting has it until it goes on
    let busy = loop {
        let store = gateway.store.clone();
        let mut call = Box::pin(async move { store.ping().await });
        if poll!(call.as_mut()).is_pending() {
            break call;
        }
    };
    let reading = gateway
        .client
        .send("GET", "/api/v1/queries", &[], b"")
        .await;
    // an exchange that began after it has ended: the gateway has read the request by then
    assert_eq!(gateway.get("/health/live").await.status, 200);

    let TestGateway {
        running, client, ..
    } = gateway;
    let shutdown = running.shutdown.clone();
    let drained = tokio::spawn(running.drain());
    shutdown.draining().await;
    assert_eq!(client.get("/health/live").await.unwrap().status, 200);
    assert!(!drained.is_finished());
    busy.await.unwrap();
    assert_eq!(reading.unwrap().reply().await.unwrap().status, 200);
    drained.await.unwrap();
}
