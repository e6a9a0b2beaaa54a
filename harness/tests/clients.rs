//! Clients that behave badly on purpose: their bytes are really on the wire, and the client reports
//! how the exchange ended.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use gauntlet_harness::client::{Client, Transport};
use gauntlet_harness::gate::{self, guard};
use gauntlet_harness::llm::{Protocol, Stub, echo, raw};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::tape::{Event, Side, Tape};
use serde_json::json;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

async fn stub() -> (Stub, Client, Tape) {
    let tape = Tape::new();
    let stub = Stub::builder(Protocol::OPENAI)
        .name("p1")
        .tape(&tape)
        .start()
        .await
        .unwrap();
    let client = Client::new(&stub.root_url(), Vec::new(), tape.clone()).unwrap();
    (stub, client, tape)
}

/// A server that takes `most` bytes, answers `says`, and closes; returns how many bytes had come.
async fn hasty(most: usize, says: &'static str) -> (Client, tokio::task::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let root = format!("http://{}", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut taken = vec![0; most];
        stream.read_exact(&mut taken).await.unwrap();
        stream.write_all(says.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // the client's own end
        let _ = stream.read_to_end(&mut rest).await;
        most + rest.len()
    });
    (Client::new(&root, Vec::new(), Tape::new()).unwrap(), served)
}

#[tokio::test]
async fn a_dribbled_request_comes_in_pieces_and_is_answered() {
    let (stub, client, tape) = stub().await;
    stub.answers(echo());
    let body =
        json!({"model": "m", "messages": [{"role": "user", "content": "slowly"}]}).to_string();
    let bytes = client.request_bytes("POST", "/v1/chat/completions", &[], body.as_bytes());
    let pieces = u32::try_from(bytes.len().div_ceil(40)).unwrap();
    let reply = client
        .dribble(&bytes, 40, Duration::from_millis(2))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(reply.content(), "slowly");
    let position =
        |matching: fn(&Event) -> bool| tape.first(|entry| matching(&entry.event)).unwrap();
    let gap = gate::gap(
        &position(|event| matches!(event, Event::ClientSent { .. })),
        &position(|event| matches!(event, Event::RequestRead { .. })),
    );
    gate::at_least(
        "hang.test",
        "the last piece",
        gap,
        Duration::from_millis(2) * (pieces - 1),
    )
    .unwrap();
}

#[tokio::test]
async fn a_client_that_dribbles_stops_when_it_is_answered_or_closed_on() {
    let bytes = vec![b'x'; 10_000];
    let (client, served) = hasty(
        10,
        "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    assert_eq!(
        client
            .dribble(&bytes, 1, Duration::from_millis(1))
            .await
            .unwrap()
            .unwrap()
            .status,
        408
    );
    let taken = guard("hang.test", "the end of the client", served)
        .await
        .unwrap()
        .unwrap();
    assert!(taken < bytes.len(), "it went on writing");

    let (client, served) = hasty(10, "").await;
    let end = client
        .dribble(&bytes, 1, Duration::from_millis(1))
        .await
        .unwrap();
    assert_eq!(
        end,
        Err(Transport::NoAnswer("end of the connection".into()))
    );
    let taken = guard("hang.test", "the end of the client", served)
        .await
        .unwrap()
        .unwrap();
    assert!(taken < bytes.len(), "it went on writing");
}

#[tokio::test]
async fn a_small_receive_buffer_is_the_systems_and_loses_nothing() {
    const LENGTH: usize = 1 << 20;
    let (stub, client, _) = stub().await;
    stub.answers(raw(200, "text/plain", vec![b'x'; LENGTH]));
    let slow = client.with_receive_buffer(8 << 10);
    let buffer = async |client: &Client| {
        SockRef::from(&client.raw().await.unwrap())
            .recv_buffer_size()
            .unwrap()
    };
    // Linux doubles what it is asked for
    assert!(buffer(&slow).await <= 16 << 10);
    assert!(buffer(&client).await > 16 << 10);
    assert_eq!(slow.chat(json!({})).await.unwrap().body.len(), LENGTH);
}

#[tokio::test]
async fn the_tape_has_what_the_client_sent_and_got() {
    let (stub, client, tape) = stub().await;
    let client = client.with_header("X-Tag", "7");
    stub.answers(raw(
        429,
        "application/json",
        "{\"error\":{\"message\":\"slow down\"}}",
    ));
    let body = json!({"model": "m", "messages": []});
    client.chat(body.clone()).await.unwrap();
    let events = client_events(&tape, "a");
    let [sent, status, answered] = &events[..] else {
        panic!("{events:?}");
    };
    let Event::ClientSent {
        method,
        path,
        headers,
        body: sent_body,
        dribbled: None,
    } = sent
    else {
        panic!("{sent:?}");
    };
    assert_eq!((&method[..], &path[..]), ("POST", "/v1/chat/completions"));
    assert_eq!(sent_body.text(), body.to_string());
    let has = |name: &str, value: &str| headers.contains(&(name.into(), value.into()));
    assert!(
        has("X-Tag", "7") && has("content-length", &body.to_string().len().to_string()),
        "{headers:?}"
    );
    assert!(
        matches!(status, Event::ClientStatus { status: 429, headers }
        if headers.contains(&("content-type".into(), "application/json".into())))
    );
    assert!(
        matches!(answered, Event::ClientAnswered { status: 429, body } if body.text().contains("slow down"))
    );

    // an in-band error is on the tape although it has no text
    stub.answers(raw(
        200,
        "text/event-stream",
        "data: {\"choices\":[]}\n\nevent: error\ndata: {\"error\":1}\n\ndata: [DO",
    ));
    client.streamed(body).await.unwrap();
    let events = client_events(&tape, "b");
    let [_, _, first, second, end] = &events[..] else {
        panic!("{events:?}");
    };
    assert!(
        matches!(first, Event::ClientChunk { n: 1, name: None, data, .. } if data.text() == "{\"choices\":[]}")
    );
    assert!(
        matches!(second, Event::ClientChunk { n: 2, name: Some(name), data, text }
        if name == "error" && data.text() == "{\"error\":1}" && text.is_empty())
    );
    assert!(
        matches!(end, Event::ClientAnswered { status: 200, body } if body.text() == "data: [DO")
    );

    let bytes = client.request_bytes("POST", "/v1/models?x=1", &[], b"{}");
    client
        .dribble(&bytes, 500, Duration::from_millis(1))
        .await
        .unwrap()
        .unwrap();
    let events = client_events(&tape, "c");
    assert!(
        matches!(&events[0], Event::ClientSent { path, body, dribbled: Some(dribbled), .. }
        if path == "/v1/models?x=1" && body.text() == "{}" && dribbled.piece == 500 && dribbled.every_ms == 1)
    );
}

#[tokio::test]
async fn the_tape_has_the_part_of_a_body_that_came_before_the_cut() {
    let (stub, client, tape) = stub().await;
    let half = Plan::of([Step::Head, Step::Bytes(4), Step::Cut]);
    stub.answers(raw(200, "application/json", "{\"a\":1}").plan(half));
    client
        .send_chat(json!({}))
        .await
        .unwrap()
        .try_reply()
        .await
        .unwrap()
        .unwrap_err();
    let events = client_events(&tape, "a");
    assert!(
        matches!(events.last(), Some(Event::ClientFailed { body, .. }) if body.text() == "{\"a\""),
        "{events:?}"
    );
}

fn client_events(tape: &Tape, label: &str) -> Vec<Event> {
    tape.select(|entry| entry.side == Side::Client(label.into()))
        .into_iter()
        .map(|entry| entry.event)
        .collect()
}
