//! The tape of an answer: whoever sends what it lists, sends the bytes that the wire has sent.

use gauntlet_harness::plan::{Framing, Listen, Plan, Step};
use gauntlet_harness::tape::{Action, Data, Event};
use gauntlet_harness::wire::Answer;
use tokio::io::AsyncWriteExt;

use super::bench::{Bench, EVENTS, read_all, read_exactly, says};

/// What is listed for the only answer of the tape.
async fn listed(bench: &Bench) -> Vec<Action> {
    bench
        .wait_for(|event| matches!(event, Event::Planned { .. }))
        .await;
    let entry = bench
        .tape
        .first(|entry| matches!(entry.event, Event::Planned { .. }));
    match entry.unwrap().event {
        Event::Planned { actions, .. } => actions,
        other => panic!("{other:?}"),
    }
}

/// The bytes up to the first action that ends the answer, and that action.
fn sent(actions: &[Action]) -> (String, Option<&Action>) {
    let mut bytes = Vec::new();
    for (n, action) in actions.iter().enumerate() {
        match action {
            Action::Send { bytes: more, .. } => bytes.extend_from_slice(more.bytes()),
            Action::Drip { pieces, .. } => {
                pieces
                    .iter()
                    .for_each(|more| bytes.extend_from_slice(more.bytes()));
            }
            Action::Stall | Action::Cut | Action::Reset | Action::Close | Action::Repeat { .. } => {
                assert_eq!(n + 1, actions.len(), "{actions:?}");
                return (String::from_utf8_lossy(&bytes).into_owned(), Some(action));
            }
            _ => {}
        }
    }
    (String::from_utf8_lossy(&bytes).into_owned(), None)
}

#[tokio::test]
async fn what_is_listed_is_what_is_sent() {
    let plans = [
        vec![Step::Head, Step::Rest],
        vec![
            Step::Hold("g".into()),
            Step::Head,
            Step::Events(1),
            Step::Cut,
        ],
        vec![Step::Head, Step::Events(2), Step::Reset],
        vec![Step::Head, Step::Events(3)],
        vec![
            Step::Head,
            Step::Bytes(15),
            Step::Drain,
            Step::Bytes(3),
            Step::Cut,
        ],
        vec![Step::Head, Step::Bytes(500), Step::Cut],
        vec![
            Step::Head,
            Step::Drip {
                bytes: 7,
                every_ms: 0,
            },
            Step::Rest,
        ],
        vec![Step::Head, Step::Interlock("i".into()), Step::Rest],
        vec![
            Step::DripHead {
                every_ms: 0,
                finish: true,
            },
            Step::Garbage(vec![0xff, 0, b'x']),
            Step::Pause { ms: 0 },
            Step::Cut,
        ],
        vec![Step::Cut],
        vec![Step::Head],
        Vec::new(),
        vec![
            Step::Meet {
                name: "m".into(),
                count: 1,
            },
            Step::Rest,
        ],
    ];
    let answers = [
        Answer::new(200, "text/event-stream", EVENTS),
        Answer::new(200, "text/event-stream", "data: one\n\ndata: half"),
        Answer::new(200, "application/x-ndjson", "{}\n{}\n"),
        Answer::new(500, "application/json", "{\"error\":\"héllo\"}"),
        Answer::new(204, "application/json", ""),
        Answer::new(200, "application/json", ""),
    ];
    for steps in plans {
        for answer in &answers {
            for framing in [
                Framing::Natural,
                Framing::WrongLength(5),
                Framing::UntilClose,
            ] {
                for close in [true, false] {
                    let plan = Plan {
                        steps: steps.clone(),
                        framing,
                    };
                    let what = format!("{} {plan:?}, close: {close}", answer.status);
                    let bench = says(answer.clone().with_plan(plan)).await;
                    bench.gates.gate("g").open();
                    bench.gates.interlock("i").release();
                    let mut stream = bench.connect().await;
                    let head = "GET /x HTTP/1.1\r\n";
                    let close = if close { "connection: close\r\n" } else { "" };
                    let request = format!("{head}{close}\r\n");
                    stream.write_all(request.as_bytes()).await.unwrap();
                    let actions = listed(&bench).await;
                    let (bytes, end) = sent(&actions);
                    if end.is_some() {
                        let (read, reset) = read_all(&mut stream).await;
                        assert_eq!(read, bytes, "{what}");
                        let is_reset = matches!(end, Some(Action::Reset));
                        assert_eq!(reset.is_some(), is_reset, "{what}");
                    } else {
                        read_exactly(&mut stream, &bytes).await;
                        // the connection serves a second request
                        stream.write_all(request.as_bytes()).await.unwrap();
                        read_exactly(&mut stream, &bytes).await;
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn an_answer_without_end_is_listed_by_what_repeats() {
    let event = "data: {\"delta\":{\"content\":\"so\"}}\n\n";
    let plan = Plan::of([Step::Head, Step::Rest, Step::RepeatForever { every_ms: 0 }]);
    let bench = says(Answer::new(200, "text/event-stream", event).with_plan(plan)).await;
    let mut stream = bench.ask().await;
    let actions = listed(&bench).await;
    let (mut bytes, end) = sent(&actions);
    let Some(Action::Repeat {
        before,
        after: Some(after),
        from,
        chunked: true,
        ..
    }) = end
    else {
        panic!("{actions:?}");
    };
    for n in *from..from + 3 {
        let event = format!("{}{n}{}", before.text(), after.text());
        bytes.push_str(&format!("{:x}\r\n{event}\r\n", event.len()));
    }
    read_exactly(&mut stream, &bytes).await;

    let plan = Plan::of([Step::DripHead {
        every_ms: 0,
        finish: false,
    }]);
    let bench = says(Answer::new(200, "text/plain", "x").with_plan(plan)).await;
    let mut stream = bench.ask().await;
    let actions = listed(&bench).await;
    let (bytes, end) = sent(&actions);
    let Some(Action::Repeat {
        before,
        after: None,
        chunked: false,
        ..
    }) = end
    else {
        panic!("{actions:?}");
    };
    read_exactly(&mut stream, &[bytes, before.text().repeat(3)].concat()).await;
}

#[tokio::test]
async fn waits_are_listed_where_they_are() {
    let plan = Plan::of([
        Step::Head,
        Step::Events(1),
        Step::Hold("g".into()),
        Step::Pause { ms: 5 },
        Step::Interlock("i".into()),
        Step::Stall,
    ]);
    let bench = says(Answer::new(200, "text/event-stream", EVENTS).with_plan(plan)).await;
    let stream = bench.ask().await;
    let actions = listed(&bench).await;
    let event = |bytes: &str, n| Action::Send {
        bytes: Data::new(bytes.to_string()),
        event: Some(n),
    };
    let acknowledged = |event| Action::Acknowledged {
        interlock: "i".into(),
        event,
    };
    assert_eq!(
        actions[1..],
        [
            event("b\r\ndata: one\n\n\r\n", 1),
            Action::Hold { gate: "g".into() },
            Action::Pause { ms: 5 },
            acknowledged(1),
            event("b\r\ndata: two\n\n\r\n", 2),
            acknowledged(2),
            event("d\r\ndata: three\n\n\r\n", 3),
            Action::Stall,
        ]
    );
    drop(stream);
}

#[tokio::test]
async fn a_large_answer_is_listed_with_its_true_length() {
    let body = "x".repeat(1 << 20);
    let plan = Plan::of([
        Step::Head,
        Step::Drip {
            bytes: 1 << 10,
            every_ms: 0,
        },
    ]);
    let bench = says(Answer::new(200, "text/plain", body.clone()).with_plan(plan)).await;
    let _stream = bench.ask().await;
    let actions = listed(&bench).await;
    let [Action::Send { .. }, Action::Drip { pieces, .. }] = &actions[..] else {
        panic!("{actions:?}");
    };
    let (length, kept) = pieces.iter().fold((0, 0), |(length, kept), piece| {
        (length + piece.length(), kept + piece.bytes().len())
    });
    assert_eq!(length, 1 << 20);
    assert!(kept <= 256 << 10, "{kept}");
}

#[tokio::test]
async fn a_port_that_changes_is_on_the_tape() {
    let bench = says(Answer::new(200, "text/plain", "x")).await;
    assert!(!bench.has(|event| matches!(event, Event::Listening { .. })));
    for how in [Listen::Refuse, Listen::Silence, Listen::Serve] {
        bench.wire.listen(how.clone()).await.unwrap();
        assert!(bench.has(|event| *event == Event::Listening { how: how.clone() }));
    }
    let stream = bench.ask().await;
    listed(&bench).await;
    drop(stream);
}
