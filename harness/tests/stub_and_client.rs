//! The stub and the client of the harness against each other, without a gateway between them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::time::Duration;

use gauntlet_harness::client::{Client, End};
use gauntlet_harness::gate::{Gates, with_hang_guard};
use gauntlet_harness::llm::{
    Protocol, Stub, anything, call_sequence, chat, echo, embeddings, error, openai, raw, reply,
    sequence,
};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::tape::{Event, Tape};
use gauntlet_harness::verdict::{Failure, FailureMode};
use rstest::rstest;
use serde_json::{Value, json};

struct Bench {
    tape: Tape,
    gates: Gates,
    stub: Stub,
    client: Client,
}

#[derive(Clone, Copy, Debug)]
enum AnswerSource {
    Wiremock,
    InProcess,
}

async fn bench(protocol: Protocol, source: AnswerSource) -> Bench {
    let tape = Tape::new();
    let gates = Gates::new(tape.clone());
    let stub = Stub::builder(protocol)
        .name("p1")
        .namespace("case")
        .tape(&tape)
        .gates(&gates);
    let stub = match source {
        AnswerSource::Wiremock => stub.wiremock(),
        AnswerSource::InProcess => stub,
    };
    let stub = stub.start().await.unwrap();
    let client = Client::new(&stub.root_url(), Vec::new(), tape.clone()).unwrap();
    Bench {
        tape,
        gates,
        stub,
        client,
    }
}

fn hello(text: &str) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": text}], "stream_options": {"include_usage": true}})
}

#[rstest]
#[tokio::test]
async fn a_reply_is_read_strictly_streamed_and_not(
    #[values(AnswerSource::Wiremock, AnswerSource::InProcess)] source: AnswerSource,
) {
    let bench = bench(Protocol::OPENAI, source).await;
    bench.stub.answers(
        reply("")
            .tokens(["Par", "is"])
            .tool_call("look_up", json!({"city": "Paris"}))
            .usage(12, 3),
    );

    let whole = bench.client.chat(hello("capital?")).await.unwrap();
    whole.strict().unwrap();
    assert_eq!((whole.status, whole.content().as_str()), (200, "Paris"));

    let streamed = bench
        .client
        .stream(hello("capital?"))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    streamed.strict().unwrap();
    assert_eq!(streamed.text, "Paris");
    assert_eq!(streamed.finish_reasons, ["tool_calls"]);
    assert_eq!(
        streamed.tool_calls[0].arguments,
        whole.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    );
    assert_eq!(streamed.usage.as_ref().unwrap()["total_tokens"], 15);
    assert_eq!(
        (streamed.done_count, streamed.after_done, &streamed.end),
        (1, 0, &End::Orderly)
    );
    assert!(streamed.looks_complete());
    assert_eq!(bench.stub.requests().len(), 2);
    assert_eq!(bench.stub.calls("capital?")[0].path, "/v1/chat/completions");
}

#[rstest]
#[tokio::test]
async fn each_answer_has_an_id_of_its_own(
    #[values(AnswerSource::Wiremock, AnswerSource::InProcess)] source: AnswerSource,
) {
    let bench = bench(Protocol::OPENAI, source).await;
    bench.stub.answers(reply("Paris"));
    let mut ids = Vec::new();
    for n in 0..2 {
        let plain = bench.client.chat(hello(&format!("plain {n}"))).await;
        ids.push(plain.unwrap().json()["id"].clone());
        let stream = bench.client.stream(hello(&format!("streamed {n}"))).await;
        let transcript = stream.unwrap().collect().await.unwrap();
        transcript.strict().unwrap();
        ids.push(transcript.events[0].json.as_ref().unwrap()["id"].clone());
    }
    let requests = bench.stub.requests();
    let sent: Vec<String> = requests
        .iter()
        .map(|request| openai::completion_id(request.request))
        .collect();
    assert_eq!(ids, sent);
    assert_eq!(sent.iter().collect::<HashSet<_>>().len(), 4);
}

#[rstest]
#[tokio::test]
async fn rules_win_over_the_default_and_what_none_matches_is_no_404(
    #[values(AnswerSource::Wiremock, AnswerSource::InProcess)] source: AnswerSource,
) {
    let bench = bench(Protocol::OPENAI, source).await;
    bench
        .stub
        .mount(chat().model("other").streaming(false), reply("other"))
        .await;

    let unmatched = bench.client.chat(hello("x")).await.unwrap();
    assert_eq!(unmatched.status, 599);
    assert!(
        unmatched
            .text()
            .contains("it wants model \"other\", the request has model \"m\""),
        "{}",
        unmatched.text()
    );
    assert!(
        bench
            .tape
            .first(|entry| matches!(&entry.event, Event::Unmatched { .. }))
            .is_some()
    );

    bench.stub.answers(reply("default"));
    assert_eq!(
        bench.client.chat(hello("x")).await.unwrap().content(),
        "default"
    );
    let mut other = hello("x");
    other["model"] = "other".into();
    assert_eq!(bench.client.chat(other).await.unwrap().content(), "other");
    bench.stub.answers(echo());
    assert_eq!(
        bench
            .client
            .chat(hello("say this"))
            .await
            .unwrap()
            .content(),
        "say this"
    );
    assert_eq!(
        bench.client.get("/v1/models").await.unwrap().json()["object"],
        "list"
    );
    assert_eq!(bench.client.get("/v1/files").await.unwrap().status, 599);
}

#[rstest]
#[tokio::test]
async fn sequences_are_counted_for_each_prompt_or_over_all(
    #[values(AnswerSource::Wiremock, AnswerSource::InProcess)] source: AnswerSource,
) {
    let bench = bench(Protocol::OPENAI, source).await;
    let status = async |text: &str| bench.client.chat(hello(text)).await.unwrap().status;
    bench.stub.answers(sequence([
        error(503),
        error(429).retry_after(2),
        reply("ok"),
    ]));
    assert_eq!(
        [
            status("a").await,
            status("b").await,
            status("a").await,
            status("a").await,
            status("a").await
        ],
        [503, 503, 429, 200, 200]
    );
    bench.stub.answers(call_sequence([error(503), reply("ok")]));
    assert_eq!([status("a").await, status("b").await], [503, 200]);
}

#[tokio::test]
async fn errors_have_the_providers_own_form() {
    let bench = bench(Protocol::OPENAI, AnswerSource::InProcess).await;
    bench.stub.answers(
        error(429)
            .code("insufficient_quota")
            .kind("insufficient_quota")
            .message("no money")
            .retry_after(7),
    );
    let reply = bench.client.chat(hello("x")).await.unwrap();
    assert_eq!(reply.header("retry-after"), Some("7"));
    assert_eq!(
        reply.json(),
        json!({"error": {"message": "no money", "type": "insufficient_quota", "param": null, "code": "insufficient_quota"}})
    );
}

#[tokio::test]
async fn a_responder_built_wrongly_names_the_mistake() {
    let bench = bench(Protocol::OPENAI, AnswerSource::InProcess).await;
    bench.stub.answers(error(500).tokens(["a"]));
    let reply = bench.client.chat(hello("x")).await.unwrap();
    assert_eq!(reply.status, 599);
    let mistake = "the responder was built wrongly: tokens() changes a reply, and this is none";
    assert!(reply.text().contains(mistake), "{}", reply.text());
}

#[rstest]
#[tokio::test]
async fn a_path_of_no_protocol_is_never_answered_in_openais(
    #[values(AnswerSource::Wiremock, AnswerSource::InProcess)] source: AnswerSource,
) {
    let bench = bench(Protocol::OPENAI, source).await;
    bench.stub.mount(anything(), reply("Paris")).await;
    let reply = bench.client.post("/v9/talk", hello("x")).await.unwrap();
    let reason = format!(
        "POST /v9/talk belongs to no protocol of a stub ({}); answer it with raw()",
        Protocol::all()
            .iter()
            .map(|protocol| protocol.name())
            .collect::<Vec<_>>()
            .join(", ")
    );
    assert_eq!(reply.status, 599);
    assert!(reply.text().contains(&reason), "{}", reply.text());
}

#[tokio::test]
async fn a_stub_needs_nothing_but_its_protocol() {
    let (openai, ollama) = (Stub::openai().await.unwrap(), Stub::ollama().await.unwrap());
    assert!(openai.base_url().ends_with("/v1"));
    assert!(!ollama.base_url().contains("/t/"));
    for (stub, path) in [(openai, "/v1/chat/completions"), (ollama, "/api/chat")] {
        stub.answers(reply("Paris").plan(Plan::held("g")));
        let client = Client::new(&stub.root_url(), Vec::new(), Tape::new()).unwrap();
        let (reply, ()) = tokio::join!(client.post(path, hello("x")), async {
            stub.held(1).await.unwrap();
            stub.gates().gate("g").open();
        });
        assert!(reply.unwrap().text().contains("Paris"));
        assert_eq!(stub.requests().len(), 1);
    }
}

#[rstest]
#[tokio::test]
async fn ollama_speaks_ndjson_and_whole(
    #[values(AnswerSource::Wiremock, AnswerSource::InProcess)] source: AnswerSource,
) {
    let bench = bench(Protocol::OLLAMA, source).await;
    bench
        .stub
        .answers(reply("Paris is big").finish("length").usage(5, 0));
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
    let streamed = bench.client.post("/api/chat", body.clone()).await.unwrap();
    assert_eq!(
        streamed.header("content-type"),
        Some("application/x-ndjson")
    );
    let lines: Vec<Value> = streamed
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines
            .iter()
            .filter_map(|line| line["message"]["content"].as_str())
            .collect::<String>(),
        "Paris is big"
    );
    let last = lines.last().unwrap();
    assert_eq!(
        (
            &last["done"],
            &last["done_reason"],
            &last["prompt_eval_count"]
        ),
        (&json!(true), &json!("length"), &json!(5))
    );
    assert!(last.get("eval_count").is_none(), "a zero is absent");

    let mut whole = body;
    whole["stream"] = false.into();
    assert_eq!(
        bench.client.post("/api/chat", whole).await.unwrap().json()["message"]["content"],
        "Paris is big"
    );
    assert_eq!(
        bench.client.get("/api/version").await.unwrap().json()["version"],
        "0.33.0"
    );
    assert_eq!(bench.client.get("/api/tags").await.unwrap().status, 200);
    bench.stub.answers(error(404));
    assert_eq!(
        bench
            .client
            .post("/api/chat", json!({"model": "m"}))
            .await
            .unwrap()
            .json(),
        json!({"error": "model 'm-gauntlet' not found"})
    );
}

#[tokio::test]
async fn streams_can_end_wrongly_in_good_order() {
    let bench = bench(Protocol::OPENAI, AnswerSource::InProcess).await;
    let ask = async || {
        bench
            .client
            .stream(hello("x"))
            .await
            .unwrap()
            .collect()
            .await
            .unwrap()
    };
    bench.stub.answers(reply("a b").without_done());
    let transcript = ask().await;
    assert_eq!(
        (
            transcript.done_count,
            transcript.finish_reasons.len(),
            &transcript.end
        ),
        (0, 1, &End::Orderly)
    );
    bench.stub.answers(reply("a b").without_finish());
    let transcript = ask().await;
    assert_eq!(
        (
            transcript.done_count,
            transcript.finish_reasons.len(),
            &transcript.end
        ),
        (0, 0, &End::Orderly)
    );
    bench
        .stub
        .answers(reply("a b").then_error(503, "overloaded"));
    let transcript = ask().await;
    assert_eq!(
        (transcript.text.as_str(), transcript.done_count),
        ("a b", 0)
    );
    assert_eq!(transcript.error.unwrap()["message"], "overloaded");
}

#[tokio::test]
async fn embeddings_keep_the_order_of_their_inputs() {
    let bench = bench(Protocol::OPENAI, AnswerSource::Wiremock).await;
    bench.stub.mount(openai::embeddings(), embeddings()).await;
    let reply = bench
        .client
        .post("/v1/embeddings", json!({"model": "m", "input": ["a", "b"]}))
        .await
        .unwrap();
    assert_eq!(reply.json()["data"][1]["embedding"][0], 1.0);
}

#[rstest]
#[tokio::test]
async fn a_plan_goes_from_the_responder_to_the_wire(
    #[values(AnswerSource::Wiremock, AnswerSource::InProcess)] source: AnswerSource,
) {
    let bench = bench(Protocol::OPENAI, source).await;
    bench
        .stub
        .answers(reply("one two three").plan(Plan::events_then(3, Step::Reset)));
    let transcript = bench
        .client
        .stream(hello("x"))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(transcript.text, "one two");
    assert!(
        matches!(&transcript.end, End::Cut(how) if how.contains("reset")),
        "{:?}",
        transcript.end
    );
}

#[tokio::test]
async fn a_stream_without_end_is_the_gateways_violation_within_one_guard() {
    let bench = bench(Protocol::OPENAI, AnswerSource::InProcess).await;
    bench.stub.answers(reply("one two").plan(Plan::of([
        Step::Head,
        Step::Events(3),
        Step::RepeatForever { every_ms: 1 },
    ])));
    let stream = bench.client.stream(hello("x")).await.unwrap();
    let ended = with_hang_guard(Duration::from_millis(300), stream.collect()).await;
    let Err(Failure::Violated {
        expected,
        observed,
        mode: FailureMode::Hang,
        ..
    }) = ended
    else {
        panic!("{ended:?}")
    };
    assert_eq!(expected, "the end of the stream to client a");
    assert!(observed.contains("events came and no end"), "{observed}");
}

#[tokio::test]
async fn a_plan_is_refused_where_nobody_obeys_it() {
    let server = wiremock::MockServer::start().await;
    wiremock::Mock::given(chat())
        .respond_with(reply("hi").plan(Plan::held("g")))
        .mount(&server)
        .await;
    let client = Client::new(&server.uri(), Vec::new(), Tape::new()).unwrap();
    let reply = client.chat(hello("x")).await.unwrap();
    assert_eq!(reply.status, 599);
    assert!(
        reply
            .text()
            .contains("mount it on a stub, or remove the plan")
    );
}

#[tokio::test]
async fn the_client_leaves_and_the_stub_sees_it_before_its_gate_opens() {
    let bench = bench(Protocol::OPENAI, AnswerSource::Wiremock).await;
    bench.stub.answers(reply("late").plan(Plan::held("g")));
    let asked = bench.client.send_chat(hello("x")).await.unwrap();
    bench.stub.held(1).await.unwrap();
    asked.leave();
    bench.stub.peer_closed(1).await.unwrap();
    bench.stub.in_flight_is(0).await.unwrap();
    bench.gates.gate("g").open();
    let position = |matching: fn(&Event) -> bool| {
        bench
            .tape
            .first(|entry| matching(&entry.event))
            .unwrap()
            .seq
    };
    assert!(
        position(|event| *event == Event::ClientLeft)
            < position(|event| matches!(
                event,
                Event::PeerClosed {
                    request: Some(_),
                    ..
                }
            ))
    );
    assert!(
        bench
            .tape
            .first(|entry| matches!(entry.event, Event::AnswerSent { .. }))
            .is_none()
    );
}

#[tokio::test]
async fn many_meet_at_a_rendezvous_behind_one_wiremock_server() {
    let bench = bench(Protocol::OPENAI, AnswerSource::Wiremock).await;
    bench
        .stub
        .answers(reply("together").plan(Plan::met("all", 64)));
    let replies =
        futures::future::join_all((0..64).map(|n| bench.client.chat(hello(&n.to_string())))).await;
    assert!(
        replies
            .iter()
            .all(|reply| reply.as_ref().unwrap().content() == "together")
    );
    assert_eq!((bench.stub.high_water(), bench.stub.in_flight()), (64, 0));
}

#[tokio::test]
async fn raw_bytes_come_as_they_were_given() {
    let bench = bench(Protocol::OPENAI, AnswerSource::Wiremock).await;
    bench.stub.answers(raw(200, "text/html", "<h1>no</h1>"));
    let reply = bench.client.chat(hello("x")).await.unwrap();
    assert_eq!(
        (reply.header("content-type"), reply.text().as_str()),
        (Some("text/html"), "<h1>no</h1>")
    );
}
