//! Endings: cut, reset, stalled, spoilt, or none of these.

use std::io::ErrorKind;

use gauntlet_harness::plan::Step;
use gauntlet_harness::tape::{Close, Event};
use tokio::io::AsyncReadExt;

use super::bench::{HEAD, LAST, ONE, THREE, TWO, nothing_to_read, read_all, read_exactly, streams};

#[tokio::test]
async fn events_then_the_end_of_the_plan_is_a_cut() {
    let bench = streams([Step::Head, Step::Events(2)]).await;
    let (text, end) = read_all(&mut bench.ask().await).await;
    assert_eq!((text, end), ([HEAD, ONE, TWO].concat(), None));
    assert!(bench.has(|event| matches!(event, Event::Fault { fault, .. } if fault == "cut")));
}

#[tokio::test]
async fn all_events_then_the_end_of_the_plan_is_a_whole_answer() {
    let bench = streams([Step::Head, Step::Events(3)]).await;
    read_exactly(
        &mut bench.ask().await,
        &[HEAD, ONE, TWO, THREE, LAST].concat(),
    )
    .await;
    assert!(!bench.has(|event| matches!(event, Event::Fault { .. })));
}

#[tokio::test]
async fn bytes_cut_inside_an_event() {
    let bench = streams([Step::Head, Step::Bytes(15), Step::Cut]).await;
    let (text, end) = read_all(&mut bench.ask().await).await;
    assert_eq!((text, end), ([HEAD, ONE, "4\r\ndata\r\n"].concat(), None));
    assert!(!bench.has(|event| matches!(
        event,
        Event::EventSent { n: 2, .. } | Event::AnswerSent { .. }
    )));
}

#[tokio::test]
async fn cut_before_the_head_is_an_empty_answer() {
    let bench = streams([Step::Cut]).await;
    assert_eq!(
        read_all(&mut bench.ask().await).await,
        (String::new(), None)
    );
}

#[tokio::test]
async fn reset_comes_after_every_byte_has_been_read() {
    for _ in 0..20 {
        let bench = streams([Step::Head, Step::Events(2), Step::Reset]).await;
        let mut stream = bench.ask().await;
        bench
            .wait_for(|event| matches!(event, Event::EventSent { n: 2, .. }))
            .await;
        assert!(
            !bench.has(|event| matches!(event, Event::Fault { .. })),
            "the barrier waits for the reader"
        );
        let (text, end) = read_all(&mut stream).await;
        assert_eq!(
            (text, end),
            ([HEAD, ONE, TWO].concat(), Some(ErrorKind::ConnectionReset))
        );
        assert!(bench.has(|event| matches!(event, Event::Fault { fault, .. } if fault == "reset")));
    }
}

#[tokio::test]
async fn reset_before_the_head_is_a_reset() {
    let bench = streams([Step::Reset]).await;
    assert_eq!(
        read_all(&mut bench.ask().await).await,
        (String::new(), Some(ErrorKind::ConnectionReset))
    );
}

#[tokio::test]
async fn garbage_is_not_framed() {
    let bench = streams([Step::Garbage(b"\xff\x00no".to_vec()), Step::Cut]).await;
    let mut stream = bench.ask().await;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"\xff\x00no");
    let bench = streams([
        Step::Head,
        Step::Events(1),
        Step::Garbage(b"zz\r\n".to_vec()),
        Step::Rest,
    ])
    .await;
    read_exactly(&mut bench.ask().await, &[HEAD, ONE, "zz\r\n", TWO].concat()).await;
}

#[tokio::test]
async fn stall_keeps_the_connection_until_the_peer_leaves_in_order_or_by_reset() {
    for (reset, how) in [(false, Close::Fin), (true, Close::Reset)] {
        let bench = streams([Step::Head, Step::Events(1), Step::Stall]).await;
        let mut stream = bench.ask().await;
        read_exactly(&mut stream, &[HEAD, ONE].concat()).await;
        bench
            .wait_for(|event| matches!(event, Event::Fault { fault, .. } if fault == "stall"))
            .await;
        nothing_to_read(&stream);
        assert_eq!(bench.wire.in_flight(), 1);
        if reset {
            stream.set_zero_linger().unwrap();
        }
        drop(stream);
        bench.wait_for(|event| matches!(event, Event::PeerClosed { request: Some(_), how: seen, .. } if *seen == how)).await;
        bench.wire.in_flight_is(0).await.unwrap();
    }
}
