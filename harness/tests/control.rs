//! The control routes of a stub that stays up, used over HTTP as a test in another language does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use gauntlet_harness::client::{Client, StreamReply};
use gauntlet_harness::gate::{Gates, guard};
use gauntlet_harness::llm::{Responder, ScriptSource, reply};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::Protocol;
use gauntlet_harness::tape::{Event, Tape};
use gauntlet_harness::wire::Wire;
use gauntlet_harness::wire::{CONTROL_ROUTES, Controlled, control_routes};
use serde_json::{Value, json};

struct Bench {
    wire: Wire,
    tape: Tape,
    client: Client,
}

async fn bench(answer: Responder) -> Bench {
    let tape = Tape::new();
    let gates = Gates::new(tape.clone());
    let source = Arc::new(ScriptSource::new(Protocol::OPENAI));
    source.answers(answer);
    let controlled = Arc::new(Controlled::new(source, tape.clone(), gates.clone()));
    let wire = Wire::bind("stub", tape.clone(), gates, controlled, Listen::Serve)
        .await
        .unwrap();
    let client = Client::new(&wire.root_url(), Vec::new(), Tape::new()).unwrap();
    Bench { wire, tape, client }
}

impl Bench {
    async fn control(&self, route: &str) -> (u16, Value) {
        let reply = self
            .client
            .post(&format!("/_gauntlet/{route}"), json!({}))
            .await
            .unwrap();
        (reply.status, reply.json())
    }

    async fn stream(&self) -> StreamReply {
        self.client
            .stream(json!({"model": "m", "messages": []}))
            .await
            .unwrap()
    }

    /// How many events of the first chat have been sent; an answer of a control route is one event
    /// as well.
    fn sent(&self) -> usize {
        let chat = |event: &Event| match event {
            Event::RequestRead { request, path, .. } if !path.starts_with("/_gauntlet/") => {
                Some(*request)
            }
            _ => None,
        };
        let entries = self.tape.entries();
        let chat = entries.iter().find_map(|entry| chat(&entry.event)).unwrap();
        entries
            .iter()
            .filter(
                |entry| matches!(entry.event, Event::EventSent { request, .. } if request == chat),
            )
            .count()
    }
}

#[tokio::test]
async fn a_gate_that_was_opened_can_be_closed_again() {
    let bench = bench(reply("late").plan(Plan::held("g"))).await;
    assert_eq!(
        bench.control("gates/g/open").await,
        (200, json!({"gate": "g", "open": true}))
    );
    assert_eq!(
        bench
            .client
            .chat(json!({"model": "m", "messages": []}))
            .await
            .unwrap()
            .content(),
        "late"
    );
    assert_eq!(
        bench.control("gates/g/close").await,
        (200, json!({"gate": "g", "open": false}))
    );
    let held = bench
        .client
        .send_chat(json!({"model": "m", "messages": []}))
        .await
        .unwrap();
    guard(
        "hang.test",
        "the answer to be held",
        bench.tape.wait_for(
            1,
            |entry| matches!(&entry.event, Event::Held { gate, .. } if gate == "g"),
        ),
    )
    .await
    .unwrap();
    assert_eq!(bench.wire.in_flight(), 1);
    bench.control("gates/g/open").await;
    assert_eq!(held.reply().await.unwrap().content(), "late");
}

#[tokio::test]
async fn an_interlock_lets_one_event_through_for_each_acknowledgement() {
    let bench =
        bench(reply("one two").plan(Plan::of([Step::Head, Step::Interlock("i".into())]))).await;
    let mut stream = bench.stream().await;
    for n in 1..=3 {
        assert_eq!(stream.next().await.unwrap().unwrap().n, n);
        assert_eq!(bench.sent(), n, "the next one waits");
        assert_eq!(
            bench.control(&format!("interlocks/i/ack/{n}")).await,
            (200, json!({"interlock": "i", "acknowledged": n}))
        );
    }
    assert_eq!(bench.control("interlocks/i/ack/many").await.0, 400);
}

#[tokio::test]
async fn the_tape_and_the_requests_are_shown_and_control_is_no_call() {
    let bench = bench(reply("hi")).await;
    bench
        .client
        .chat(json!({"model": "m", "messages": []}))
        .await
        .unwrap();
    let tape = bench.client.get("/_gauntlet/tape").await.unwrap().json();
    let events: Vec<&str> = tape
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|entry| entry["event"].as_str())
        .collect();
    assert!(
        events.starts_with(&["accepted", "request_read", "planned", "head_sent"]),
        "{events:?}"
    );
    let requests = bench
        .client
        .get("/_gauntlet/requests")
        .await
        .unwrap()
        .json();
    let paths: Vec<&str> = requests
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|entry| entry["path"].as_str())
        .collect();
    assert_eq!(paths, ["/v1/chat/completions"]);
    assert_eq!(bench.wire.high_water(), 1);
    assert_eq!(bench.control("gates/g/lift").await.0, 404);
}

#[tokio::test]
async fn every_route_of_the_list_exists_and_the_list_is_shown() {
    let bench = bench(reply("hi")).await;
    for (method, path, _) in CONTROL_ROUTES {
        let path = path.replace("NAME", "g").replace("/N", "/1");
        let reply = match method {
            "GET" => bench.client.get(&path).await,
            _ => bench.client.post(&path, json!({})).await,
        };
        assert_eq!(reply.unwrap().status, 200, "{method} {path}");
    }
    let list = bench.client.get("/_gauntlet").await.unwrap();
    assert_eq!((list.status, list.text()), (200, control_routes()));
}
