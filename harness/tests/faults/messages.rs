//! Messages: how requests are read, how an answer is framed, and which answers have no body.

use gauntlet_harness::plan::{Framing, Plan, Step};
use gauntlet_harness::tape::{Entry, Event};
use gauntlet_harness::wire::Answer;
use tokio::io::AsyncWriteExt;

use super::bench::{EVENTS, HEAD, LAST, ONE, THREE, TWO, read_all, read_exactly, says, streams};

#[tokio::test]
async fn the_default_plan_is_the_whole_answer_and_keeps_the_connection() {
    let bench = streams(Plan::default().steps).await;
    let mut stream = bench.ask().await;
    read_exactly(&mut stream, &[HEAD, ONE, TWO, THREE, LAST].concat()).await;
    stream
        .write_all(b"POST /y HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        .await
        .unwrap();
    read_exactly(&mut stream, &[HEAD, ONE, TWO, THREE, LAST].concat()).await;
    assert_eq!(
        bench
            .tape
            .select(|entry| matches!(entry.event, Event::Accepted { .. }))
            .len(),
        1
    );
    assert!(bench.has(|event| matches!(event, Event::RequestRead { path, body, .. } if path == "/y" && body == "hi")));
}

#[tokio::test]
async fn a_whole_body_has_its_length_and_connection_close_is_honoured() {
    let bench = says(Answer::new(404, "application/json", "{}")).await;
    let mut stream = bench.connect().await;
    stream
        .write_all(b"GET /x HTTP/1.1\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let (text, end) = read_all(&mut stream).await;
    assert_eq!(
        text,
        "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
    );
    assert_eq!(end, None);
}

#[tokio::test]
async fn an_expected_continue_is_given() {
    let bench = says(Answer::new(200, "text/plain", "ok")).await;
    let mut stream = bench.connect().await;
    stream
        .write_all(b"POST /x HTTP/1.1\r\ncontent-length: 2\r\nExpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    read_exactly(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n").await;
    stream.write_all(b"hi").await.unwrap();
    read_exactly(&mut stream, "HTTP/1.1 200 OK\r\n").await;
}

#[tokio::test]
async fn a_head_request_gets_no_body() {
    let bench = says(Answer::new(200, "text/plain", "body")).await;
    let mut stream = bench.connect().await;
    stream.write_all(b"HEAD /x HTTP/1.1\r\n\r\n").await.unwrap();
    read_exactly(
        &mut stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\n",
    )
    .await;
    stream.write_all(b"HEAD /x HTTP/1.1\r\n\r\n").await.unwrap();
    read_exactly(&mut stream, "HTTP/1.1 200 OK\r\n").await;
}

#[tokio::test]
async fn a_plan_that_leaves_out_the_head_ends_for_an_answer_without_body() {
    let interlock = || Step::Interlock("i".into());
    for (steps, body) in [
        (vec![interlock()], ""),
        (
            vec![
                Step::DripHead {
                    every_ms: 0,
                    finish: true,
                },
                interlock(),
            ],
            HEAD,
        ),
    ] {
        let bench = streams(steps).await;
        let mut stream = bench.connect().await;
        stream
            .write_all(b"HEAD /x HTTP/1.1\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let (text, end) = read_all(&mut stream).await;
        assert_eq!((text.is_empty(), end), (body.is_empty(), None), "{text}");
        assert!(!text.contains("data:"), "{text}");
    }
}

#[tokio::test]
async fn a_body_without_end_is_refused_and_the_refusal_says_so() {
    let bench = says(Answer::new(200, "text/plain", "ok")).await;
    let announced = b"POST /x HTTP/1.1\r\ncontent-length: 67108865\r\n\r\n".to_vec();
    let mut chunk = b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n8000000\r\n".to_vec();
    chunk.resize(chunk.len() + (64 << 20) + 1, b'x');
    for (n, bytes) in [announced, chunk].into_iter().enumerate() {
        let mut stream = bench.connect().await;
        stream.write_all(&bytes).await.unwrap();
        let (text, end) = read_all(&mut stream).await;
        assert!(
            text.starts_with("HTTP/1.1 599 ") && text.contains("larger than 64 MiB"),
            "{text}"
        );
        assert_eq!(end, None);
        let refused = |entry: &Entry| matches!(&entry.event, Event::Fault { fault, .. } if fault.contains("larger than 64 MiB"));
        assert_eq!(bench.tape.select(refused).len(), n + 1);
    }
    assert!(!bench.has(|event| matches!(event, Event::RequestRead { .. })));
}

#[tokio::test]
async fn wrong_lengths_are_sent_and_the_connection_ends() {
    for (off, length) in [(5, 9), (-1, 3)] {
        let plan = Plan {
            framing: Framing::WrongLength(off),
            ..Plan::default()
        };
        let bench = says(Answer::new(200, "text/plain", "body").with_plan(plan)).await;
        let (text, end) = read_all(&mut bench.ask().await).await;
        assert_eq!(
            text,
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\nbody"
            )
        );
        assert_eq!(end, None);
    }
}

#[tokio::test]
async fn until_close_sends_no_length() {
    let plan = Plan {
        framing: Framing::UntilClose,
        ..Plan::default()
    };
    let bench = says(Answer::new(200, "text/event-stream", EVENTS).with_plan(plan)).await;
    let (text, end) = read_all(&mut bench.ask().await).await;
    assert_eq!(
        text,
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{EVENTS}"
        )
    );
    assert_eq!(end, None);
}
