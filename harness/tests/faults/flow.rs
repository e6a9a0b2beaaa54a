//! Flow: what waits, for whom, and how the pieces come.

use gauntlet_harness::gate::guard;
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::tape::Event;
use gauntlet_harness::wire::Answer;
use tokio::io::AsyncReadExt;

use super::bench::{HEAD, LAST, ONE, THREE, TWO, nothing_to_read, read_exactly, says, streams};

#[tokio::test]
async fn hold_sends_nothing_before_the_gate_is_open() {
    let bench = streams([
        Step::Head,
        Step::Events(1),
        Step::Hold("g".into()),
        Step::Rest,
    ])
    .await;
    let mut stream = bench.ask().await;
    read_exactly(&mut stream, &[HEAD, ONE].concat()).await;
    bench
        .wait_for(|event| matches!(event, Event::Held { gate, .. } if gate == "g"))
        .await;
    nothing_to_read(&stream);
    bench.gates.gate("g").open();
    read_exactly(&mut stream, &[TWO, THREE, LAST].concat()).await;
    let opened = bench.wait_for(|event| *event == Event::Opened).await;
    assert!(
        bench
            .wait_for(|event| matches!(event, Event::EventSent { n: 1, .. }))
            .await
            < opened
    );
    assert!(
        opened
            < bench
                .wait_for(|event| matches!(event, Event::EventSent { n: 2, .. }))
                .await
    );
}

#[tokio::test]
async fn meet_lets_all_go_together_and_counts_nobody_who_left() {
    let bench = streams(Plan::met("all", 2).steps).await;
    let rendezvous = bench.gates.rendezvous("all", 2);
    let first = bench.ask().await;
    bench
        .wait_for(|event| matches!(event, Event::Held { .. }))
        .await;
    drop(first);
    let mut second = bench.ask().await;
    guard(
        "hang.test",
        "the second to wait",
        bench
            .tape
            .wait_for(2, |entry| matches!(entry.event, Event::Held { .. })),
    )
    .await
    .unwrap();
    bench
        .wait_for(|event| {
            matches!(
                event,
                Event::PeerClosed {
                    request: Some(_),
                    ..
                }
            )
        })
        .await;
    assert!(
        !bench.has(|event| matches!(event, Event::Met { .. })),
        "one left before the other came"
    );
    nothing_to_read(&second);
    let mut third = bench.ask().await;
    rendezvous.met().await.unwrap();
    read_exactly(&mut second, HEAD).await;
    read_exactly(&mut third, HEAD).await;
    assert_eq!(bench.wire.high_water(), 2);
}

#[tokio::test]
async fn interlock_sends_one_event_for_each_acknowledgement() {
    let bench = streams([Step::Head, Step::Interlock("i".into())]).await;
    let interlock = bench.gates.interlock("i");
    let mut stream = bench.ask().await;
    read_exactly(&mut stream, &[HEAD, ONE].concat()).await;
    nothing_to_read(&stream);
    interlock.ack(1);
    read_exactly(&mut stream, TWO).await;
    assert!(!bench.has(|event| matches!(event, Event::EventSent { n: 3, .. })));
    interlock.ack(2);
    read_exactly(&mut stream, &[THREE, LAST].concat()).await;
}

#[tokio::test]
async fn drip_sends_the_pieces_one_by_one() {
    let bench = streams([
        Step::Head,
        Step::Drip {
            bytes: 20,
            every_ms: 1,
        },
    ])
    .await;
    let mut stream = bench.ask().await;
    read_exactly(
        &mut stream,
        &[
            HEAD,
            ONE,
            "9\r\ndata: two\r\n",
            "2\r\n\n\n\r\n",
            THREE,
            LAST,
        ]
        .concat(),
    )
    .await;
}

#[tokio::test]
async fn drip_head_finishes_or_never_does() {
    let bench = streams([
        Step::DripHead {
            every_ms: 0,
            finish: true,
        },
        Step::Rest,
    ])
    .await;
    read_exactly(&mut bench.ask().await, &[HEAD, ONE].concat()).await;

    let bench = streams([Step::DripHead {
        every_ms: 0,
        finish: false,
    }])
    .await;
    let mut stream = bench.ask().await;
    let unfinished = HEAD.strip_suffix("\r\n").unwrap();
    read_exactly(&mut stream, &[unfinished, "x-drip: ..."].concat()).await;
    drop(stream);
    bench
        .wait_for(|event| {
            matches!(
                event,
                Event::PeerClosed {
                    request: Some(_),
                    ..
                }
            )
        })
        .await;
    assert!(!bench.has(|event| matches!(event, Event::HeadSent { .. })));
}

#[tokio::test]
async fn repeat_forever_repeats_the_last_event_until_the_peer_leaves() {
    let bench = streams([
        Step::Head,
        Step::Events(2),
        Step::RepeatForever { every_ms: 0 },
    ])
    .await;
    let mut stream = bench.ask().await;
    read_exactly(&mut stream, &[HEAD, ONE, TWO, TWO, TWO, TWO].concat()).await;
    drop(stream);
    bench
        .wait_for(|event| {
            matches!(
                event,
                Event::PeerClosed {
                    request: Some(_),
                    ..
                }
            )
        })
        .await;
}

#[tokio::test]
async fn pause_lets_time_pass_between_two_events() {
    let bench = streams([
        Step::Head,
        Step::Events(1),
        Step::Pause { ms: 30 },
        Step::Rest,
    ])
    .await;
    read_exactly(
        &mut bench.ask().await,
        &[HEAD, ONE, TWO, THREE, LAST].concat(),
    )
    .await;
    let at = |n: usize| {
        bench
            .tape
            .first(|entry| matches!(entry.event, Event::EventSent { n: sent, .. } if sent == n))
            .unwrap()
    };
    let gap = gauntlet_harness::gate::gap(&at(1), &at(2));
    gauntlet_harness::gate::at_least(
        "hang.test",
        "the second event",
        gap,
        std::time::Duration::from_millis(30),
    )
    .unwrap();
}

#[tokio::test]
async fn the_high_water_mark_is_exact() {
    let bench = streams(Plan::held("g").steps).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(bench.ask().await);
    }
    bench.wire.in_flight_is(5).await.unwrap();
    drop(streams.pop());
    bench.wire.in_flight_is(4).await.unwrap();
    bench.gates.gate("g").open();
    for stream in &mut streams {
        read_exactly(stream, HEAD).await;
    }
    bench.wire.in_flight_is(0).await.unwrap();
    assert_eq!(bench.wire.high_water(), 5);
}

#[tokio::test]
async fn what_a_peer_does_not_read_is_not_counted_as_taken() {
    const BODY: usize = 64 << 20;
    let bench = says(Answer::new(200, "text/plain", vec![b'x'; BODY])).await;
    let mut stream = bench.ask().await;
    let taken = bench.wire.sent_settles().await.unwrap();
    assert!(
        taken < BODY as u64,
        "the system's buffers are smaller than that"
    );
    assert!(!bench.has(|event| matches!(event, Event::AnswerSent { .. })));
    assert_eq!(bench.wire.in_flight(), 1);
    let mut rest = vec![0; BODY];
    guard("hang.test", "the whole body", stream.read_exact(&mut rest))
        .await
        .unwrap()
        .unwrap();
    bench.wire.in_flight_is(0).await.unwrap();
    assert!(bench.wire.sent_bytes() > BODY as u64);
}
