//! What cases share: specifications, queries and their answers, streams, requests and
//! measurements.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use gauntlet_harness::case::{
    CaseResult, Ctx, Deviations, Failure, FailureMode, equal, holds, json, silent,
};
use gauntlet_harness::client::{
    Client, End, Exchange, Reply, StreamEvent, StreamReply, Transcript, Transport,
};
use gauntlet_harness::gate::{converge, gap, guard, hang_guard, poll_until, with_hang_guard};
use gauntlet_harness::llm::{Responder, Stub, chat, error, raw, reply};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{DatabaseNeed, Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::{Entry, Event, Side};
use serde_json::{Value, json};

use crate::agents;
pub(super) use crate::agents::{ANSWER, PASSAGE};
use crate::utf16;

pub(super) const STORED: &[Capability] = &[Capability::Query, Capability::Store];

pub(super) const QUERIES: &str = "/api/v1/queries";
pub(super) const DOCUMENTS: &str = "/api/v1/documents";

/// Whether the target declares what the instance needs, by the words of its name. If it does not,
/// the instance is left out.
pub(super) fn applies(ctx: &Ctx, instance: &str) -> bool {
    let needs = [
        ("Ollama", Capability::Ollama),
        ("streamed", Capability::Stream),
        ("candidate", Capability::Fallback),
        ("attempt", Capability::Retry),
    ];
    let mut needs = needs.iter().filter(|(word, _)| instance.contains(word));
    needs.all(|(_, needed)| ctx.instance_if(*needed, instance))
}

/// The text of a prompt by which a stub knows the instance. No encoder of JSON escapes a character
/// of it.
pub(super) fn marked(instance: &str) -> String {
    format!("({instance})")
}

/// Whether the instance is a streamed request, by its name.
pub(super) fn is_streamed(instance: &str) -> bool {
    instance.contains("streamed")
}

/// Examines the instances at the same time, and notes which of them deviate.
pub(super) async fn together<'a, Examining: Future<Output = CaseResult> + Send + 'a>(
    ctx: &'a Ctx,
    deviations: &mut Deviations,
    instances: impl IntoIterator<Item = (&'a str, Examining)>,
) -> CaseResult {
    let instances = instances.into_iter();
    let rows = instances.map(|(name, examining)| ctx.examine(name, examining));
    let rows = join_all(rows).await;
    let hung = rows.iter().any(is_hang);
    for row in rows {
        deviations.note(row)?;
    }
    end_if(hung, deviations)
}

/// Notes what deviates. A case ends with its first hang, since each of them costs a whole guard.
pub(super) fn noted(deviations: &mut Deviations, row: CaseResult) -> CaseResult {
    let hung = is_hang(&row);
    deviations.note(row)?;
    end_if(hung, deviations)
}

fn is_hang(row: &CaseResult) -> bool {
    let hang = FailureMode::Hang;
    matches!(row, Err(Failure::Violated { mode, .. }) if *mode == hang)
}

fn end_if(hung: bool, deviations: &mut Deviations) -> CaseResult {
    match hung {
        true => std::mem::take(deviations).result(),
        false => Ok(()),
    }
}

/// Waits until the gateway has closed, at each of these stubs, so many connections with a request
/// in flight.
pub(super) async fn all_closed(
    deviations: &mut Deviations,
    stubs: impl IntoIterator<Item = (&Stub, usize)>,
) -> CaseResult {
    let stubs = stubs.into_iter();
    let closed = stubs.map(|(stub, count)| async move {
        let closed = stub.peer_closed(count).await.map(drop);
        closed.map_err(|failure| failure.in_instance(stub.name()))
    });
    for row in join_all(closed).await {
        deviations.note(row)?;
    }
    Ok(())
}

/// Sends the request, streamed or not; the client must get an error: a status or an event. Where
/// the provider has begun a plain answer, the end of the connection is one, too: a gateway may have
/// passed the beginning on.
pub(super) async fn given_up(
    client: &Client,
    body: Value,
    streamed: bool,
    has_begun: bool,
) -> CaseResult {
    if streamed {
        return broken(&client.streamed(body).await?);
    }
    match client.send_chat(body).await?.try_reply().await? {
        Ok(reply) => refused(reply.status),
        Err(Transport::Cut { .. }) if has_begun => Ok(()),
        Err(other) => Err(other.into()),
    }
}

/// Sends the request, streamed or not, and waits for the end of its answer, whatever it is.
pub(super) async fn ended(client: &Client, body: Value, streamed: bool) -> CaseResult {
    if !streamed {
        // whatever the answer is, it has come
        let _answer = client.send_chat(body).await?.try_reply().await?;
        return Ok(());
    }
    match client.try_stream(body).await? {
        Ok(stream) => stream.collect().await.map(drop),
        Err(_) => Ok(()),
    }
}

/// The answer of an agent that does its part.
pub(super) fn does_its_part(agent: &str) -> Responder {
    reply(&agents::healthy(agent).to_string())
}

/// Makes every agent do its part from now on.
pub(super) fn healthy(ctx: &Ctx) -> CaseResult {
    for name in ctx.stubs.keys() {
        ctx.stub(name)?.answers(does_its_part(name));
    }
    Ok(())
}

/// Stores the document that the question finds.
pub(super) async fn known(ctx: &Ctx) -> CaseResult {
    let stored = ctx.client.post(DOCUMENTS, document()).await?;
    equal(
        "document.status",
        "the status of a document that is handed in",
        201,
        stored.status,
    )
}

pub(super) fn document() -> Value {
    json!({"title": "Elements", "text": PASSAGE})
}

pub(super) fn question(ctx: &Ctx) -> Value {
    json!({"question": format!("Who discovered radium? [{}]", ctx.nonce)})
}

/// Asks the question.
pub(super) async fn ask(ctx: &Ctx) -> Result<Reply, Failure> {
    ctx.client.post(QUERIES, question(ctx)).await
}

/// Asks the question; nothing may be missing from the answer.
pub(super) async fn complete(ctx: &Ctx) -> Result<Value, Failure> {
    let answer = ask(ctx).await?;
    equal(
        "answer.status",
        "the status of a query that misses nothing",
        200,
        answer.status,
    )?;
    equal(
        "query.status",
        "the status field of the query",
        "complete",
        text(&answer.json(), "status"),
    )?;
    Ok(answer.json())
}

/// Asks the question; what this step would have given must be missing from the answer, and the
/// answer must report it with one of these causes.
pub(super) async fn degraded(ctx: &Ctx, step: &str, causes: &[&str]) -> Result<Value, Failure> {
    let answer = ask(ctx).await?;
    let document = answer.json();
    equal(
        "answer.status",
        "the status of an answer that stands without one step",
        200,
        answer.status,
    )?;
    equal(
        "query.status",
        "the status field of the query",
        "degraded",
        text(&document, "status"),
    )?;
    holds(
        "answer.text",
        !text(&document, "answer").is_empty(),
        "an answer",
        &document["answer"],
    )?;
    let lost = lost(&document);
    let as_wanted = matches!(lost.as_slice(), [(lost, cause)] if lost == step && causes.contains(&cause.as_str()));
    holds(
        "degraded.steps",
        as_wanted,
        format!(
            "{step} as the only missing step, by {}",
            causes.join(" or ")
        ),
        format_args!("{lost:?}"),
    )?;
    let effect = text(&document["degraded"][0], "effect");
    holds(
        "degraded.effect",
        !effect.is_empty(),
        "a sentence on what the loss costs the reader",
        "no such sentence",
    )?;
    Ok(document)
}

/// The steps that an answer reports as missing, each with its cause.
pub(super) fn lost(document: &Value) -> Vec<(String, String)> {
    let degraded = document["degraded"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    degraded
        .iter()
        .map(|lost| {
            (
                text(lost, "step").to_owned(),
                text(lost, "cause").to_owned(),
            )
        })
        .collect()
}

/// A text in a document; empty where there is none.
pub(super) fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_default()
}

/// A number in a document; below every number where there is none.
pub(super) fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or(f64::NEG_INFINITY)
}

/// Requests this path until the answer has this status.
pub(super) async fn until_status(
    ctx: &Ctx,
    fact: &str,
    path: &str,
    status: u16,
) -> Result<Reply, Failure> {
    let what = format!("the status of GET {path} to become {status}");
    converge(fact, &what, || async {
        Ok(Some(ctx.client.get(path).await?).filter(|reply| reply.status == status))
    })
    .await
}

/// Reads the listing until it holds `count` queries, and returns them, newest first.
pub(super) async fn listed(ctx: &Ctx, filter: &str, count: usize) -> Result<Vec<Value>, Failure> {
    let path = format!("{QUERIES}?size=100{filter}");
    converge(
        "hang.listed",
        &format!("{count} queries at {path}"),
        || async {
            let page = ctx.client.get(&path).await?;
            Ok(page.json()["queries"]
                .as_array()
                .filter(|queries| queries.len() == count)
                .cloned())
        },
    )
    .await
}

/// A query orchestrator with every agent, and a database.
pub(super) fn query() -> Spec {
    Spec::query(&agents::names())
}

/// Queries whose store is a Postgres behind the wire.
pub(super) fn on_postgres() -> Spec {
    Spec {
        database: DatabaseNeed::Postgres,
        ..query()
    }
}

/// The specification with a second for each call of the database, for cases in which it never
/// answers.
pub(super) fn soon_without_store(spec: Spec) -> Spec {
    spec.with_query(|query| query.store_ms = 1_000)
}

/// The specification with every timeout far away, so that only the case ends what is held.
pub(super) fn patient(spec: Spec) -> Spec {
    let timeouts = Timeouts {
        first_token_ms: Some(15_000),
        idle_ms: Some(15_000),
        total_ms: Some(30_000),
        ..spec.timeouts
    };
    Spec { timeouts, ..spec }.with_query(|query| {
        (query.deadline_ms, query.step_ms, query.store_ms) = (40_000, 15_000, 10_000)
    })
}

/// Queries whose synthesis has a second candidate, at the provider `spare`.
pub(super) fn with_spare() -> Spec {
    let mut spec = query()
        .provider("spare", Protocol::OPENAI)
        .model("spare", &["spare"]);
    let spare = spec
        .models
        .last()
        .map(|model| model.candidates.clone())
        .unwrap_or_default();
    if let Some(model) = spec
        .models
        .iter_mut()
        .find(|model| model.alias == "synthesis")
    {
        model.candidates.extend(spare);
    }
    spec
}

pub(super) const DONE: &str = "data: [DONE]\n\n";

/// One event of OpenAI's stream.
pub(super) fn chunk(text: &str, finish: Option<&str>) -> String {
    let delta = if text.is_empty() {
        json!({})
    } else {
        json!({"content": text})
    };
    chunk_of(&[of_choice(0, delta, finish)])
}

/// One event of OpenAI's stream with these choices.
pub(super) fn chunk_of(choices: &[Value]) -> String {
    let chunk = json!({
        "id": "chatcmpl-strm", "object": "chat.completion.chunk", "created": 1, "model": "m-p1",
        "choices": choices,
    });
    format!("data: {chunk}\n\n")
}

/// The event with which a stream of OpenAI's begins: it has a role and no text.
pub(super) fn role() -> String {
    let delta = json!({"role": "assistant", "content": ""});
    chunk_of(&[of_choice(0, delta, None)])
}

/// The part of an event that belongs to the choice of this index.
pub(super) fn of_choice(index: u64, delta: Value, finish: Option<&str>) -> Value {
    json!({"index": index, "delta": delta, "finish_reason": finish})
}

/// The usage event of OpenAI's stream: 12 tokens of the prompt, and 7 of the completion.
pub(super) fn usage_chunk() -> String {
    let usage = json!({"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19});
    let chunk = json!({
        "id": "chatcmpl-strm", "object": "chat.completion.chunk", "created": 1, "model": "m-p1",
        "choices": [], "usage": usage,
    });
    format!("data: {chunk}\n\n")
}

/// One record of Ollama's stream.
pub(super) fn record(text: &str, done: bool) -> String {
    let message = json!({"role": "assistant", "content": text});
    let mut record = json!({"model": "m-p2", "created_at": "2026-01-01T00:00:00Z",
        "message": message, "done": done});
    if done {
        record["done_reason"] = "stop".into();
    }
    format!("{record}\n")
}

/// A streamed answer of Ollama's form in the provider's own bytes.
pub(super) fn records(lines: impl IntoIterator<Item = String>) -> Responder {
    let body: String = lines.into_iter().collect();
    raw(200, "application/x-ndjson", body)
}

/// A streamed answer of OpenAI's form in the provider's own bytes.
pub(super) fn events<T: AsRef<str>>(body: impl IntoIterator<Item = T>) -> Responder {
    let body: String = body
        .into_iter()
        .map(|part| part.as_ref().to_owned())
        .collect();
    raw(200, "text/event-stream", body)
}

/// The request for so many choices.
pub(super) fn with_choices(mut body: Value, n: u64) -> Value {
    body["n"] = n.into();
    body
}

/// What a client reads of one choice of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Choice {
    /// The joined content. The halves of a surrogate pair that was cut over two events are joined,
    /// as a client does whose strings are UTF-16.
    pub text: String,
    /// Every finish_reason that is a text, also an empty one.
    pub finish: Vec<String>,
    /// The tool calls by their index: name and joined arguments.
    pub calls: BTreeMap<u64, (String, String)>,
}

/// What a client reads of each choice of a stream, by the index of the choice.
pub(super) fn choices(stream: &Transcript) -> BTreeMap<u64, Choice> {
    let mut read: BTreeMap<u64, Choice> = BTreeMap::new();
    for event in &stream.events {
        let Ok(chunk) = serde_json::from_str::<Value>(&utf16::readable(&event.data)) else {
            continue;
        };
        for part in chunk["choices"].as_array().into_iter().flatten() {
            let choice = read.entry(part["index"].as_u64().unwrap_or(0)).or_default();
            choice.text.push_str(text(&part["delta"], "content"));
            choice
                .finish
                .extend(part["finish_reason"].as_str().map(str::to_owned));
            for call in part["delta"]["tool_calls"].as_array().into_iter().flatten() {
                let index = call["index"].as_u64().unwrap_or(0);
                let (name, arguments) = choice.calls.entry(index).or_default();
                name.push_str(text(&call["function"], "name"));
                arguments.push_str(text(&call["function"], "arguments"));
            }
        }
    }
    for choice in read.values_mut() {
        choice.text = utf16::joined(&choice.text);
        for (_, arguments) in choice.calls.values_mut() {
            *arguments = utf16::joined(arguments);
        }
    }
    read
}

/// Whether the gateway refused the request by itself: a gateway need not know every field.
pub(super) fn refused_unasked(stream: &Transcript, stub: &Stub, prompt: &str) -> bool {
    (400..500).contains(&stream.status) && stub.calls(prompt).is_empty()
}

/// The stream must look finished to a client, with this text.
pub(super) fn whole(stream: &Transcript, text: &str) -> CaseResult {
    equal(
        "stream.status",
        "the status of the stream",
        200,
        stream.status,
    )?;
    equal(
        "stream.text",
        "the text of the stream",
        text,
        stream.text.as_str(),
    )?;
    holds(
        "stream.complete",
        stream.looks_complete(),
        "a complete stream",
        format_args!(
            "{} [DONE] events, error {}",
            stream.done_count,
            json(&stream.error)
        ),
    )
}

/// The stream must report to its client that it broke: by an error event, or by the status of an
/// error. What follows an error event is judged by STRM-12 alone.
pub(super) fn broken(stream: &Transcript) -> CaseResult {
    if reports_error(stream) {
        return Ok(());
    }
    holds(
        "stream.done_count",
        stream.done_count == 0,
        "an error event in a stream that broke, and no [DONE] instead of it",
        format_args!("no error event and {} [DONE] events", stream.done_count),
    )
    .map_err(silent_in(stream))?;
    holds(
        "stream.finish_reasons",
        stream.finish_reasons.is_empty(),
        "an error event in a stream that broke, and no finish_reason instead of it",
        format_args!(
            "no error event and the finish reasons {:?}",
            stream.finish_reasons
        ),
    )
    .map_err(silent_in(stream))?;
    holds(
        "stream.error_event",
        false,
        "an error event in a stream that broke",
        format_args!("no error event; the stream ended {}", stream.end),
    )
}

/// Whether the client was given an error event, or the status of an error.
pub(super) fn reports_error(stream: &Transcript) -> bool {
    stream.status >= 400 || stream.error.is_some()
}

/// Makes a violation silent where the stream looks right to its client: no error is reported, the
/// body ended in order, and every event can be read.
pub(super) fn silent_in(stream: &Transcript) -> impl FnOnce(Failure) -> Failure + use<> {
    let readable = |event: &StreamEvent| event.is_done() || event.json.is_some();
    let looks_right = !reports_error(stream)
        && stream.end == End::Orderly
        && stream.events.iter().all(readable)
        && !stream.finish_reasons.iter().any(|reason| reason == "error");
    silent_if(looks_right)
}

/// Makes a violation silent where the answer looks right to its client.
pub(super) fn silent_if(looks_right: bool) -> impl FnOnce(Failure) -> Failure {
    move |failure| {
        if looks_right {
            silent(failure)
        } else {
            failure
        }
    }
}

/// The most attempts that a gateway makes at a candidate where `configured` ones are configured:
/// those, and the ones that it declares as built in. `None` where nothing states their number.
pub(super) fn most_attempts(ctx: &Ctx, configured: usize) -> Option<usize> {
    let built_in = ctx.manifest.behaviour.retries_built_in as usize;
    let known = ctx.declares(Capability::Retry) || built_in > 0;
    known.then_some(configured + built_in)
}

/// The provider must have been asked for the request whose prompt holds `text`: once by a gateway
/// whose number of attempts was configured, no more often than it declares by one with retries
/// built in, and at least once by any other.
pub(super) fn asked_for(ctx: &Ctx, fact: &str, stub: &Stub, text: &str) -> CaseResult {
    let asked = stub.calls(text).len();
    let what = format!("requests at {} ({text})", stub.name());
    if let Some(most) = most_attempts(ctx, 1) {
        if most == 1 {
            return equal(fact, &format!("the number of {what}"), 1, asked);
        }
        holds(
            fact,
            (1..=most).contains(&asked),
            format!("from 1 to {most} {what}"),
            asked,
        )
    } else {
        holds(
            fact,
            asked > 0,
            format!("one of the {what}, or more"),
            asked,
        )
    }
}

/// Waits as usual, and as long as the gateway declares that it leaves a provider alone after one
/// failure.
pub(super) async fn past_the_bench<T>(ctx: &Ctx, waiting: impl Future<Output = T>) -> T {
    let behaviour = ctx.manifest.behaviour;
    if !behaviour.benches_after_one_failure {
        return waiting.await;
    }
    let bound = hang_guard() + Duration::from_millis(behaviour.bench_ms);
    with_hang_guard(bound, waiting).await
}

/// A gateway that declares that it leaves a provider alone after one failure never makes another
/// attempt there at once: what a case plants for that attempt is not met.
pub(super) fn repeats_at_once(ctx: &Ctx) -> CaseResult {
    if ctx.manifest.behaviour.benches_after_one_failure {
        return Err(Failure::NotExercised {
            why: "the target declares that the gateway leaves a provider alone after one failure \
                  (benches_after_one_failure), so that no second attempt at it comes"
                .into(),
        });
    }
    Ok(())
}

/// The prompt of [`streams_fall_back`], whose requests are none of a case's own.
pub(super) const DOES_IT_FALL_BACK: &str = "(does a stream fall back)";

/// Whether a healthy stream comes from the second candidate of `pair` when the first one fails.
/// Where it does not, FALL-01 and FALL-03 say so, and no other case.
pub(super) async fn streams_fall_back(
    ctx: &Ctx,
    first: &str,
    second: &str,
) -> Result<bool, Failure> {
    if !ctx.declares(Capability::Stream) {
        return Ok(true);
    }
    let text = DOES_IT_FALL_BACK;
    let failing = error(503).optional();
    ctx.stub(first)?
        .mount(chat().user_says(text), failing)
        .await;
    let served = reply("it falls back").optional();
    ctx.stub(second)?
        .mount(chat().user_says(text), served)
        .await;
    let stream = Box::pin(ctx.client.streamed(ctx.prompt("pair", text))).await?;
    Ok(stream.text == "it falls back")
}

/// Sends requests until the alias asks this provider, which serves them. A gateway may leave a
/// provider alone for a while after one failure; what a case then saw would not follow from what
/// the provider does next.
pub(super) async fn until_asked(ctx: &Ctx, alias: &str, stub: &Stub) -> CaseResult {
    let text = format!("is {} asked", stub.name());
    stub.mount(chat().user_says(&text), reply("ready")).await;
    let before = stub.calls(&text).len();
    let what = format!("a request at {} for {alias}", stub.name());
    let asked = converge("hang.asked", &what, || async {
        ctx.client.chat(ctx.prompt(alias, &text)).await?;
        Ok(Some(()).filter(|()| stub.calls(&text).len() > before))
    });
    let asked = past_the_bench(ctx, Box::pin(asked)).await;
    asked.map_err(unexercised_if_hung(|| {
        format!(
            "the gateway does not ask {} for {alias}, so that its failures were never met",
            stub.name()
        )
    }))
}

/// The same failure; a violation of the fact `from` has the id `to`, which says more of where it
/// was seen.
pub(super) fn renamed(failure: Failure, from: &str, to: &str) -> Failure {
    match failure {
        Failure::Violated {
            fact,
            expected,
            observed,
            mode,
        } if fact == from => Failure::Violated {
            fact: to.into(),
            expected,
            observed,
            mode,
        },
        other => other,
    }
}

/// Makes a hang a case that was not exercised, where a wait only brings the gateway into the state
/// that the case is about.
pub(super) fn unexercised_if_hung(why: impl FnOnce() -> String) -> impl FnOnce(Failure) -> Failure {
    move |failure| match failure {
        Failure::Violated {
            mode: FailureMode::Hang,
            ..
        } => Failure::NotExercised { why: why() },
        other => other,
    }
}

/// Where a text stands in an answer: the name of each header that holds it, and the body.
pub(super) fn located(
    text: &str,
    what: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Vec<String> {
    let mut found: Vec<String> = headers
        .iter()
        .filter(|(_, value)| value.contains(text))
        .map(|(name, _)| format!("the header {name} of {what}"))
        .collect();
    if String::from_utf8_lossy(body).contains(text) {
        found.push(format!("the body of {what}"));
    }
    found
}

/// The status must be that of an error; the cases of ERR demand a certain one.
pub(super) fn refused(status: u16) -> CaseResult {
    holds(
        "answer.error_status",
        status >= 400,
        "a status of 400 or more",
        status,
    )
    .map_err(silent)
}

/// The time from before the request with that label was written to after its answer had come, or
/// had been cut.
pub(super) fn took(ctx: &Ctx, label: &str) -> Duration {
    let of_label = |entry: &Entry| matches!(&entry.side, Side::Client(name) if name == label);
    let sent = ctx
        .tape
        .first(|entry| of_label(entry) && matches!(entry.event, Event::ClientSent { .. }));
    let answered = ctx.tape.first(|entry| {
        let ended = matches!(
            entry.event,
            Event::ClientAnswered { .. } | Event::ClientFailed { .. }
        );
        of_label(entry) && ended
    });
    sent.zip(answered)
        .map_or(Duration::ZERO, |(sent, answered)| gap(&sent, &answered))
}

/// Waits until the stub has sent a part of its answer, and then until the gateway takes no more of
/// it; returns the number of bytes that it took. A gateway may give its client a first event before
/// its provider has sent anything.
pub(super) async fn taken(stub: &Stub) -> Result<u64, Failure> {
    let sent = poll_until(|| Some(()).filter(|()| stub.wire().sent_bytes() > 0));
    let what = format!("the beginning of the answer of {}", stub.name());
    let begun = guard("hang.answer_begun", &what, sent).await;
    begun.map_err(unexercised_if_hung(|| {
        format!("{} was never asked for its large answer", stub.name())
    }))?;
    stub.sent_settles().await
}

/// The number of bytes of an answer that the gateway holds itself once it takes no more, or once it
/// holds `too_many`: without those that its client has read, and those in the buffers of the
/// system on both sides.
pub(super) async fn held_for(
    client: &StreamReply,
    stub: &Stub,
    too_many: u64,
) -> Result<u64, Failure> {
    let held = || {
        // where the system does not show its buffers, they may be full
        let unseen = || buffers_of_the_system() / 2;
        let on_the_way = stub.in_buffers().unwrap_or_else(unseen)
            + client.in_buffers().unwrap_or_else(unseen)
            + client.bytes().len() as u64;
        stub.wire().sent_bytes().saturating_sub(on_the_way)
    };
    // the buffers are looked at when so much more has been sent, since that costs time
    let mut looked_at = 0;
    let exceeded = || {
        let sent = stub.wire().sent_bytes();
        if sent < looked_at + too_many / 4 {
            return None;
        }
        looked_at = sent;
        Some(held()).filter(|held| *held >= too_many)
    };
    // on a busy machine the provider may rest, too: the gateway takes no more when something waits
    let full = async {
        loop {
            taken(stub).await?;
            if stub.in_buffers().is_none_or(|waiting| waiting >= WAITING) {
                return Ok(held());
            }
        }
    };
    let what = format!(
        "{} to be full, or the gateway to hold too much",
        stub.name()
    );
    let ended = async {
        tokio::select! {
            held = full => held,
            held = poll_until(exceeded) => Ok(held),
        }
    };
    guard("hang.full", &what, ended).await?
}

/// Where at least so many bytes wait in the buffers of the system, nobody reads them.
const WAITING: u64 = 8 << 10;

/// How many bytes the buffers of the two connections of a gateway may hold, from the provider to a
/// client that receives little.
fn buffers_of_the_system() -> u64 {
    let most = |name: &str| {
        let limits = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()?;
        limits.split_whitespace().next_back()?.parse::<u64>().ok()
    };
    let (receive, send) = (most("tcp_rmem"), most("tcp_wmem"));
    // the client's own buffer is small
    receive.unwrap_or(6 << 20) + 2 * send.unwrap_or(4 << 20)
}

/// An answer without end, whose event is sent again and again.
pub(super) fn endless(kind: &str, event: String) -> Responder {
    let again = [
        Step::Head,
        Step::Events(1),
        Step::RepeatForever { every_ms: 0 },
    ];
    raw(200, kind, event).plan(Plan::of(again))
}

/// A stream of OpenAI's without end, in events of 64 KiB.
pub(super) fn large_stream() -> Responder {
    endless("text/event-stream", chunk(&"x".repeat(64 << 10), None))
}

/// What no gateway may hold for one client that does not read, in bytes.
pub(super) const TOO_MANY: u64 = 2 * AHEAD;

/// The default bound in bytes on what a gateway takes from a provider for a client that does not
/// read.
pub(super) const AHEAD: u64 = 8 << 20;

/// Reads the answers to requests that were sent.
pub(super) async fn answers(asked: Vec<Exchange>) -> Result<Vec<Reply>, Failure> {
    try_join_all(asked.into_iter().map(Exchange::reply)).await
}

pub(super) fn statuses(answers: &[Reply]) -> Vec<u16> {
    answers.iter().map(|answer| answer.status).collect()
}

/// Arguments as clients read them: JSON in a text. Anything else is returned as it is.
pub(super) fn parsed(arguments: &Value) -> Value {
    let unread = || json!({ "not JSON in a text": arguments });
    arguments
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_else(unread)
}

pub(super) fn with_usage(mut body: Value) -> Value {
    body["stream_options"] = json!({"include_usage": true});
    body
}

pub(super) fn with_tools(mut body: Value) -> Value {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    body["tools"] = json!([tool("weather"), tool("time")]);
    body
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use gauntlet_harness::client::Client;
    use gauntlet_harness::tape::Tape;

    use super::*;

    /// What a client reads of a gateway that answers with this status and body.
    pub(in crate::cases) async fn read(status: u16, body: &str) -> Transcript {
        let stub = Stub::openai().await.unwrap();
        let kind = if status == 200 {
            "text/event-stream"
        } else {
            "application/json"
        };
        stub.answers(raw(status, kind, body.to_owned()));
        let client = Client::new(&stub.root_url(), Vec::new(), Tape::new()).unwrap();
        client.streamed(json!({"model": "m"})).await.unwrap()
    }

    pub(in crate::cases) fn violation(result: CaseResult) -> (String, FailureMode) {
        match result.unwrap_err() {
            Failure::Violated { fact, mode, .. } => (fact, mode),
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn a_stream_with_an_error_event_reports_that_it_broke_whatever_follows() {
        let error = r#"{"error": {"message": "overloaded", "type": "server_error"}}"#;
        let event = format!("data: {error}\n\n");
        for after in [
            "",
            DONE,
            &chunk("", Some("error")),
            &chunk("", Some("stop")),
        ] {
            let body = [&chunk("Par", None), &event, after, DONE].concat();
            assert_eq!(broken(&read(200, &body).await), Ok(()), "{after:?}");
        }
        assert_eq!(broken(&read(503, error).await), Ok(()));
    }

    #[tokio::test]
    async fn a_stream_without_an_error_event_is_silent_only_where_it_looks_right() {
        let silent = [&chunk("Par", None), &chunk("", Some("stop")), DONE].concat();
        let without_done = [chunk("Par", None), chunk("", Some("stop"))].concat();
        let unreadable = [&chunk("Par", None), "data: {\"choices\n\n", DONE].concat();
        let ended = chunk("Par", None);
        for (body, fact, mode) in [
            (silent, "stream.done_count", FailureMode::Silent),
            (without_done, "stream.finish_reasons", FailureMode::Silent),
            (unreadable, "stream.done_count", FailureMode::Visible),
            (ended, "stream.error_event", FailureMode::Visible),
        ] {
            let seen = violation(broken(&read(200, &body).await));
            assert_eq!(seen, (fact.to_owned(), mode), "{body}");
        }
    }
}
