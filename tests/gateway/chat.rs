//! `/v1/chat/completions`: bytes, headers, events, ends, and clients that leave.

use gauntlet_harness::client::End;
use gauntlet_harness::llm::raw;
use gauntlet_harness::plan::{Plan, Step};

use super::support::gateway::{
    COMPLETION, TestGateway, chunk, code, completion, question, streamed, streamed_by,
};

#[tokio::test]
async fn a_plain_answer_is_the_providers_bytes_and_names_the_candidate() {
    let gateway = TestGateway::start("").await;
    gateway.stub.answers(completion());
    let reply = gateway.chat().await;
    assert_eq!((reply.status, reply.text().as_str()), (200, COMPLETION));
    assert_eq!(reply.header("x-gauntlet-provider"), Some("p1"));
    assert_eq!(reply.header("x-gauntlet-model"), Some("m-p1"));
    assert_eq!(reply.header("x-gauntlet-attempts"), Some("1"));
    assert_eq!(reply.header("x-gauntlet-fallbacks"), Some("0"));
    assert_eq!(reply.header("x-request-id").map(str::len), Some(32));
    assert!(!format!("{:?}", reply.headers).contains("canary"));
}

#[tokio::test]
async fn each_event_reaches_the_client_before_the_next_is_sent() {
    let gateway = TestGateway::start("").await;
    let words = ["one", "two", "three"];
    let plan = Plan::of([Step::Head, Step::Interlock("client".into())]);
    gateway.stub.answers(streamed_by(&words, plan));
    let interlock = gateway.gates.interlock("client");
    let mut stream = gateway.client.stream(question()).await.unwrap();
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    assert_eq!(stream.header("cache-control"), Some("no-cache"));
    let mut events = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        // the stub sends the next event when this one is acknowledged
        interlock.ack(event.n);
        events.push(event.data);
    }
    assert_eq!(events[..3], words.map(chunk));
    assert_eq!((events.len(), events[4].as_str()), (5, "[DONE]"));
    assert_eq!(stream.end(), Some(&End::Orderly));
}

#[tokio::test]
async fn a_stream_that_breaks_ends_in_order_with_one_error_and_without_done() {
    let gateway = TestGateway::start("").await;
    let plan = Plan::events_then(1, Step::Cut);
    gateway.stub.answers(streamed_by(&["one", "two"], plan));
    let transcript = gateway.client.streamed(question()).await.unwrap();
    assert_eq!((transcript.status, &transcript.end), (200, &End::Orderly));
    assert_eq!((transcript.events.len(), transcript.done_count), (2, 0));
    assert_eq!(transcript.error.unwrap()["code"], "truncated");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_closes_the_providers_connection() {
    let gateway = TestGateway::start("").await;
    gateway.stub.answers(completion().plan(Plan::silent()));
    let plain = gateway.client.send_chat(question()).await.unwrap();
    gateway.stub.seen(1).await.unwrap();
    plain.leave();
    gateway.stub.peer_closed(1).await.unwrap();
    let streamed = gateway.client.send_stream(question()).await.unwrap();
    gateway.stub.seen(2).await.unwrap();
    streamed.leave();
    gateway.stub.peer_closed(2).await.unwrap();

    gateway.stub.answers(completion());
    assert_eq!(gateway.chat().await.status, 200);
    let metrics = gateway.get("/metrics").await.text();
    for line in [
        r#"gauntlet_requests_total{route="/v1/chat/completions",status="499"} 2"#,
        r#"gauntlet_attempts_total{provider="p1",model="m-p1",outcome="cancelled"} 2"#,
        r#"gauntlet_attempts_total{provider="p1",model="m-p1",outcome="success"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_closes_the_providers_connection() {
    let gateway = TestGateway::start("").await;
    let plan = Plan::events_then(1, Step::Stall);
    gateway.stub.answers(streamed_by(&["one", "two"], plan));
    let mut stream = gateway.client.stream(question()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().delta_text, "one");
    stream.leave();
    gateway.stub.peer_closed(1).await.unwrap();
}

#[tokio::test]
async fn a_request_id_is_returned_and_forwarded_and_an_unacceptable_one_is_replaced() {
    let gateway = TestGateway::start("").await;
    gateway.stub.answers(completion());
    let headers = [
        ("x-request-id", "mine-1"),
        ("idempotency-key", "once"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ];
    let reply = gateway.chat_with(&headers).await;
    assert_eq!(reply.header("x-request-id"), Some("mine-1"));
    let request = gateway.stub.requests().remove(0);
    assert_eq!(request.header("x-request-id"), Some("mine-1"));
    assert_eq!(request.header("idempotency-key"), Some("once"));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-";
    assert!(request.header("traceparent").unwrap().starts_with(trace));

    for unacceptable in ["x".repeat(129), "two words".into()] {
        let reply = gateway.chat_with(&[("x-request-id", &unacceptable)]).await;
        assert_eq!(reply.header("x-request-id").map(str::len), Some(32));
        let forwarded = gateway.stub.requests().pop().unwrap();
        assert_eq!(
            forwarded.header("x-request-id"),
            reply.header("x-request-id")
        );
    }
}

#[tokio::test]
async fn a_clients_deadline_has_to_be_a_number() {
    let gateway = TestGateway::start("").await;
    let reply = gateway.chat_with(&[("x-request-timeout-ms", "soon")]).await;
    assert_eq!(
        (reply.status, reply.json()["error"]["param"].as_str()),
        (400, Some("x-request-timeout-ms"))
    );
    assert!(reply.header("x-request-id").is_some());
}

#[tokio::test]
async fn a_clients_own_deadline_ends_the_request_that_a_provider_never_answers() {
    let gateway = TestGateway::start("").await;
    gateway.stub.answers(completion().plan(Plan::silent()));
    let reply = gateway.chat_with(&[("x-request-timeout-ms", "50")]).await;
    assert_eq!(
        (reply.status, code(&reply).as_str()),
        (504, "deadline_exceeded")
    );
}

#[tokio::test]
async fn a_failure_lists_its_attempts_without_secrets() {
    let gateway = TestGateway::start("[retry]\nmax_attempts = 1\n").await;
    let body = r#"{"error":{"message":"Incorrect API key provided: sk-canary-provider"}}"#;
    gateway.stub.answers(raw(401, "application/json", body));
    let reply = gateway.chat().await;
    assert_eq!(reply.status, 502);
    let attempt = &reply.json()["error"]["attempts"][0];
    assert_eq!(
        (
            attempt["provider"].as_str(),
            attempt["cause"].as_str(),
            attempt["status"].as_u64()
        ),
        (Some("p1"), Some("provider_auth"), Some(401))
    );
    assert!(!reply.text().contains("sk-canary"), "{}", reply.text());
}

/// The end of a chunked body often comes in a segment of its own, after `[DONE]`. The client does
/// not wait for it, and the connection is used again.
#[tokio::test]
async fn consecutive_streams_use_one_connection_to_the_provider() {
    let gateway = TestGateway::start("").await;
    for round in 0..2 {
        let gate = format!("end {round}");
        let plan = [Step::Head, Step::Events(3), Step::Hold(gate.clone())];
        let answer = streamed(&["one"]).plan(Plan::of(plan));
        gateway.stub.answers(answer);
        // the whole answer comes while the provider still holds the end of its body
        let transcript = gateway.client.streamed(question()).await.unwrap();
        assert!(transcript.looks_complete(), "{transcript:?}");
        gateway.stub.held(round + 1).await.unwrap();
        gateway.gates.gate(&gate).open();
        gateway.stub.in_flight_is(0).await.unwrap();
        // two whole exchanges of the one thread that runs the gateway, begun after the end was
        // sent: the gateway has read it by then
        for _ in 0..2 {
            assert_eq!(gateway.get("/health/live").await.status, 200);
        }
    }
    let connections = gateway.stub.requests();
    assert_eq!(connections[0].connection, connections[1].connection);
}

/// An answer without any content is passed on, with a mark and a counter.
#[tokio::test]
async fn an_empty_answer_is_marked_and_counted() {
    let gateway = TestGateway::start("").await;
    let answer = |message: &str, reason: &str| {
        let body = format!(
            r#"{{"choices":[{{"index":0,"message":{message},"finish_reason":"{reason}"}}]}}"#
        );
        gauntlet_harness::llm::raw(200, "application/json", body)
    };
    for (message, reason, mark) in [
        (r#"{"content":""}"#, "stop", Some("true")),
        (
            r#"{"content":null,"tool_calls":[]}"#,
            "length",
            Some("true"),
        ),
        (r#"{"content":""}"#, "content_filter", None),
        (
            r#"{"content":null,"tool_calls":[{"id":"c"}]}"#,
            "tool_calls",
            None,
        ),
        (r#"{"content":"","refusal":"no"}"#, "stop", None),
        (r#"{"content":"a"}"#, "stop", None),
    ] {
        gateway.stub.answers(answer(message, reason));
        let reply = gateway.chat().await;
        assert_eq!(
            (reply.status, reply.header("x-gauntlet-empty-answer")),
            (200, mark),
            "{message} {reason}"
        );
    }
    let stop = r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    let events = format!("{stop}\n\ndata: [DONE]\n\n");
    let stream = gauntlet_harness::llm::raw(200, "text/event-stream", events);
    gateway.stub.answers(stream);
    let marked = gateway.client.streamed(question()).await.unwrap();
    assert_eq!(marked.header("x-gauntlet-empty-answer"), Some("true"));
    let metrics = gateway.get("/metrics").await.text();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("gauntlet_empty_answers_total{"))
        .unwrap();
    assert!(line.ends_with(" 3"), "{line}");
}
