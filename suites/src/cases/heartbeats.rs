//! STRM, of silence and heartbeats: they end nothing that goes on, and keep nothing alive that is
//! over.

use std::time::Duration;

use futures::future::join_all;
use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds, json};
use gauntlet_harness::client::Transcript;
use gauntlet_harness::gate::{at_least, gap, guard, poll_until};
use gauntlet_harness::llm::{Responder, Stub, chat, error};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::{Entry, Event};
use serde_json::{Value, json};

use super::CaseRow;
use super::support::{
    DONE, broken, choices, chunk, chunk_of, events, of_choice, record, records, refused_unasked,
    role, silent_in, usage_chunk, with_choices, with_tools, with_usage,
};

const STREAM: &[Capability] = &[Capability::Chat, Capability::Stream];

/// The heartbeats of servers in use: the name, the name of its instance without end, and the bytes.
const HEARTBEATS: [(&str, &str, &str); 7] = [
    ("comments", "comments without end", ": keep-alive\n\n"),
    ("blank lines", "blank lines without end", "\n"),
    ("empty data", "empty data without end", "data:\n\n"),
    (
        "data of a space",
        "data of a space without end",
        "data: \n\n",
    ),
    ("event names", "event names without end", "event: ping\n\n"),
    ("ids", "ids without end", "id: 7\n\n"),
    ("retry times", "retry times without end", "retry: 10\n\n"),
];

/// How long after the finish_reason the usage follows.
const USAGE_AFTER: u64 = 300;
/// A gateway whose grace ends later than this is not examined by a usage that came later still.
const USAGE_BY: Duration = Duration::from_millis(600);
/// The longest time between two texts by which a gateway with an idle timeout is judged.
const TEXT_BY: Duration = Duration::from_millis(1_000);

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "STRM-10",
        why: "A provider that sends no [DONE] and keeps its connection held each answer back for \
              502 seconds (https://github.com/maximhq/bifrost/issues/7108).",
        shown: "The provider finishes its answer and then sends nothing, or heartbeats, without end. \
                The stream must end as a whole one long before its timeouts, with the usage that \
                comes 300 ms later. Where one of two choices is not finished, it must break.",
        remedy: "Once each choice has its finish_reason, wait a second or two for usage and [DONE], \
                 then write [DONE] and close the provider's connection.",
        needs: STREAM,
        instances: &[
            "silence",
            "comments without end",
            "empty data without end",
            "event names without end",
            "tool calls, silence",
            "usage at once, silence",
            "usage after 300 ms, silence",
            "two choices, silence",
            "two choices, the first unfinished",
            "two choices, the second unfinished",
            "two choices, the second not begun",
            "second candidate, silence",
            "Ollama, silence",
        ],
        spec: || {
            let timeouts = Timeouts {
                idle_ms: Some(3_000),
                ..Timeouts::PATIENT
            };
            Spec::solo()
                .provider("p2", Protocol::OLLAMA)
                .provider("p3", Protocol::OPENAI)
                .optional_model("local", &["p2"])
                .optional_model("pair", &["p3", "p1"])
                .model_timeouts("solo", timeouts)
                .model_timeouts("local", timeouts)
                .model_timeouts("pair", timeouts)
        },
        run: &strm_10,
    },
    CaseRow {
        id: "STRM-11",
        why: "Comments kept a stream alive whose model had died, for as long as its client waited \
              (https://github.com/aaif-goose/goose/issues/11679).",
        shown: "The provider sends heartbeats of seven kinds before, between and after its texts, each \
                by itself. Then it sends one text and heartbeats without end, and the idle \
                timeout must end the stream.",
        remedy: "Read heartbeats by the standard's rules and drop them, and let only events with data \
                 restart the idle timeout.",
        needs: STREAM,
        instances: &[
            "comments",
            "blank lines",
            "empty data",
            "data of a space",
            "event names",
            "ids",
            "retry times",
            "comments without end",
            "blank lines without end",
            "empty data without end",
            "data of a space without end",
            "event names without end",
            "ids without end",
            "retry times without end",
            "comments between texts",
        ],
        spec: || {
            let idle = |ms: u64| Timeouts {
                idle_ms: Some(ms),
                ..Timeouts::PATIENT
            };
            Spec::solo()
                .model("short", &["p1"])
                .model_timeouts("solo", idle(10_000))
                .model_timeouts("short", idle(2_500))
        },
        run: &strm_11,
    },
];

/// What must become of an answer whose provider does not end it.
enum Ending {
    /// The client gets a whole stream with this finish_reason.
    Whole(&'static str, &'static str),
    /// The same, with the usage.
    WithUsage,
    /// The client gets an error.
    Broken,
}

/// An answer that its provider does not end.
struct Unended {
    name: &'static str,
    alias: &'static str,
    stub: &'static str,
    /// What the target declares where the answer is examined.
    needed: Capability,
    asked: fn(Value) -> Value,
    answer: Responder,
    ending: Ending,
}

async fn strm_10(ctx: &Ctx) -> CaseResult {
    // given
    let mut table = unended();
    table.retain(|row| row.needed == Capability::Chat || ctx.instance_if(row.needed, row.name));
    for row in &table {
        if row.alias == "pair" {
            ctx.stub("p3")?.answers(error(503));
        }
        let stub = ctx.stub(row.stub)?;
        stub.mount(chat().user_says(&prompt(row.name)), row.answer.clone())
            .await;
    }
    // when
    let rows = table
        .iter()
        .map(|row| ctx.examine(row.name, does_not_end(ctx, row)));
    let rows = join_all(rows).await;
    // then
    let mut deviations = Deviations::new();
    for row in rows {
        deviations.note(row)?;
    }
    deviations.result()
}

fn prompt(name: &str) -> String {
    format!("({name})")
}

fn unended() -> Vec<Unended> {
    let finished = || {
        vec![
            chunk("Par", None),
            chunk("is", None),
            chunk("", Some("stop")),
        ]
    };
    let then = |more: &str| {
        let mut body = finished();
        body.push(more.to_owned());
        events(body)
    };
    let stalls = |n: usize| Plan::events_then(n, Step::Stall);
    let repeats = Plan::of([
        Step::Head,
        Step::Events(4),
        Step::RepeatForever { every_ms: 50 },
    ]);
    let same = |body: Value| body;
    let two = |body: Value| with_choices(body, 2);
    let row = |name, answer: Responder, ending| Unended {
        name,
        alias: "solo",
        stub: "p1",
        needed: Capability::Chat,
        asked: same,
        answer,
        ending,
    };
    let of_two = |name, ends: [Option<Option<&str>>; 2], ending| {
        let texts = ["Par", "Rom"];
        let mut body = vec![role()];
        for ((index, text), end) in (0..).zip(texts).zip(ends) {
            if end.is_some() {
                let delta = json!({"content": text});
                body.push(chunk_of(&[of_choice(index, delta, None)]));
            }
        }
        for (index, end) in (0..).zip(ends) {
            if let Some(finish @ Some(_)) = end {
                body.push(chunk_of(&[of_choice(index, json!({}), finish)]));
            }
        }
        let n = body.len();
        Unended {
            asked: two,
            needed: match ending {
                // without an idle timeout nothing ends it
                Ending::Broken => Capability::IdleTimeout,
                _ => Capability::Chat,
            },
            answer: events(body).plan(stalls(n)).optional(),
            ..row(name, events([""]), ending)
        }
    };
    let call = json!({"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
        "function": {"name": "time", "arguments": "{}"}}]});
    let called = events([
        chunk_of(&[of_choice(0, call, None)]),
        chunk("", Some("tool_calls")),
    ]);
    let ollama = records([record("Par", false), record("is", false), record("", true)]);
    vec![
        row(
            "silence",
            events(finished()).plan(stalls(3)),
            Ending::Whole("silence.end", "stop"),
        ),
        row(
            "comments without end",
            then(": keep-alive\n\n").plan(repeats.clone()),
            Ending::Whole("heartbeats.end", "stop"),
        ),
        row(
            "empty data without end",
            then("data:\n\n").plan(repeats.clone()),
            Ending::Whole("heartbeats.end", "stop"),
        ),
        row(
            "event names without end",
            then("event: ping\n\n").plan(repeats),
            Ending::Whole("heartbeats.end", "stop"),
        ),
        Unended {
            asked: with_tools,
            ..row(
                "tool calls, silence",
                called.plan(stalls(2)),
                Ending::Whole("silence.end", "tool_calls"),
            )
        },
        Unended {
            asked: with_usage,
            ..row(
                "usage at once, silence",
                then(&usage_chunk()).plan(stalls(4)),
                Ending::WithUsage,
            )
        },
        Unended {
            asked: with_usage,
            ..row(
                "usage after 300 ms, silence",
                usage_later(finished()),
                Ending::WithUsage,
            )
        },
        of_two(
            "two choices, silence",
            [Some(Some("stop")), Some(Some("length"))],
            Ending::Whole("silence.end", "stop"),
        ),
        of_two(
            "two choices, the first unfinished",
            [Some(None), Some(Some("stop"))],
            Ending::Broken,
        ),
        of_two(
            "two choices, the second unfinished",
            [Some(Some("stop")), Some(None)],
            Ending::Broken,
        ),
        of_two(
            "two choices, the second not begun",
            [Some(Some("stop")), None],
            Ending::Broken,
        ),
        Unended {
            alias: "pair",
            needed: Capability::Fallback,
            ..row(
                "second candidate, silence",
                events(finished()).plan(stalls(3)),
                Ending::Whole("silence.end", "stop"),
            )
        },
        Unended {
            alias: "local",
            stub: "p2",
            needed: Capability::Ollama,
            ..row(
                "Ollama, silence",
                ollama.plan(stalls(3)),
                Ending::Whole("silence.end", "stop"),
            )
        },
    ]
}

/// A finished answer whose usage comes later, behind a comment of the same length, and whose end
/// never comes.
fn usage_later(mut body: Vec<String>) -> Responder {
    let n = body.len();
    let usage = usage_chunk();
    let bytes = usage.len();
    body.push(comment_of(bytes));
    body.push(usage);
    let pieces = Step::Drip {
        bytes,
        every_ms: USAGE_AFTER,
    };
    events(body).plan(Plan::of([Step::Head, Step::Events(n), pieces, Step::Stall]))
}

/// A comment of so many bytes.
fn comment_of(bytes: usize) -> String {
    format!(": {}\n\n", ".".repeat(bytes.saturating_sub(4)))
}

async fn does_not_end(ctx: &Ctx, row: &Unended) -> CaseResult {
    let stub = ctx.stub(row.stub)?;
    let prompt = prompt(row.name);
    // when
    let asked = (row.asked)(ctx.prompt(row.alias, &prompt));
    let stream = ctx.client.streamed(asked).await?;
    // then
    if refused_unasked(&stream, stub, &prompt) {
        return Ok(());
    }
    let (fact, finish) = match row.ending {
        Ending::Broken => {
            return holds(
                "unfinished.end",
                stream.status >= 400 || stream.error.is_some(),
                "an error event in a stream of which one choice is not finished",
                format_args!("{} [DONE] events and no error", stream.done_count),
            )
            .map_err(silent_in(&stream));
        }
        Ending::Whole(fact, finish) => (fact, finish),
        Ending::WithUsage => ("silence.end", "stop"),
    };
    let first = choices(&stream).remove(&0).unwrap_or_default();
    holds(
        fact,
        stream.looks_complete() && first.finish == [finish],
        format!("a whole stream with one finish_reason ({finish}) and [DONE]"),
        format_args!(
            "status {}, the finish reasons {:?}, {} [DONE] events, error {}",
            stream.status,
            first.finish,
            stream.done_count,
            json(&stream.error)
        ),
    )?;
    let text = match row.name {
        name if name.starts_with("two") => "Par",
        name if name.starts_with("tool") => "",
        _ => "Paris",
    };
    equal(
        "stream.text",
        "the text of the stream",
        text,
        first.text.as_str(),
    )
    .map_err(silent_in(&stream))?;
    if matches!(row.ending, Ending::WithUsage) {
        has_usage(ctx, stub, &prompt, &stream)?;
    }
    closed(ctx, stub, &prompt).await
}

/// The stream must have the usage that followed the finish_reason.
fn has_usage(ctx: &Ctx, stub: &Stub, prompt: &str, stream: &Transcript) -> CaseResult {
    let usage = stream.usage.clone().unwrap_or_default();
    if usage["prompt_tokens"] == 12 && usage["completion_tokens"] == 7 {
        return Ok(());
    }
    in_time(ctx, stub, prompt, 3, USAGE_BY)?;
    holds(
        "usage.after_finish",
        false,
        "the usage that came within 600 ms after the finish_reason",
        usage,
    )
    .map_err(silent_in(stream))
}

/// What a busy machine sent too late judges no gateway: whatever came after the n-th event of the
/// answer must have come within the bound.
fn in_time(ctx: &Ctx, stub: &Stub, prompt: &str, n: usize, bound: Duration) -> CaseResult {
    let entries = of_answer(ctx, stub, prompt);
    let is_nth =
        |entry: &&Entry| matches!(entry.event, Event::EventSent { n: sent, .. } if sent == n);
    // the comment behind it comes at once
    let later = |entry: &&Entry| match entry.event {
        Event::EventSent { n: sent, .. } => sent == n + 2,
        Event::PeerClosed { .. } => true,
        _ => false,
    };
    let (earlier, later) = (entries.iter().find(is_nth), entries.iter().find(later));
    let between = earlier
        .zip(later)
        .map_or(Duration::ZERO, |(earlier, later)| gap(earlier, later));
    at_least("provider.pace", "the bound", bound, between).map_err(|_| Failure::NotExercised {
        why: format!("the machine is too busy to send what follows event {n} in time"),
    })
}

/// The entries of the answer to the request with this prompt, in order.
fn of_answer(ctx: &Ctx, stub: &Stub, prompt: &str) -> Vec<Entry> {
    let asked = stub.calls(prompt).last().map(|call| call.request);
    ctx.tape.select(|entry| match entry.event {
        Event::EventSent { request, .. } => Some(request) == asked,
        Event::PeerClosed { request, .. } => request.is_some() && request == asked,
        _ => false,
    })
}

/// The gateway must close the connection to the provider that never ends its answer.
async fn closed(ctx: &Ctx, stub: &Stub, prompt: &str) -> CaseResult {
    let closing = poll_until(|| {
        let entries = of_answer(ctx, stub, prompt);
        let closed = |entry: &Entry| matches!(entry.event, Event::PeerClosed { .. });
        entries.iter().any(closed).then_some(())
    });
    let what = "the gateway to close the connection to the provider that does not end its answer";
    guard("hang.peer_closed", what, closing).await
}

async fn strm_11(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let ends = ctx.declares(Capability::IdleTimeout);
    // each event is a write of its own
    ctx.gates.interlock("written").release();
    for (name, endless, heartbeat) in HEARTBEATS {
        let body = [
            heartbeat.to_owned(),
            role(),
            heartbeat.to_owned(),
            chunk("Par", None),
            heartbeat.repeat(3),
            chunk("is", None),
            heartbeat.to_owned(),
            chunk("", Some("stop")),
            heartbeat.to_owned(),
            DONE.to_owned(),
        ];
        let plan = Plan::of([Step::Head, Step::Interlock("written".into())]);
        p1.mount(chat().user_says(&prompt(name)), events(body).plan(plan))
            .await;
        if ends {
            let body = [chunk("Par", None), heartbeat.to_owned()];
            let repeats = Plan::of([
                Step::Head,
                Step::Events(2),
                Step::RepeatForever { every_ms: 100 },
            ]);
            p1.mount(
                chat().user_says(&prompt(endless)),
                events(body).plan(repeats),
            )
            .await;
        }
    }
    let event = chunk("a", None);
    let bytes = event.len();
    let pairs = (0..7).map(|_| [comment_of(bytes), event.clone()].concat());
    let slow = events(
        [event.clone()]
            .into_iter()
            .chain(pairs)
            .chain([chunk("", Some("stop")), DONE.to_owned()]),
    )
    .plan(Plan::of([
        Step::Head,
        Step::Events(1),
        Step::Drip {
            bytes,
            every_ms: 250,
        },
    ]));
    p1.mount(chat().user_says(&prompt(BETWEEN)), slow).await;
    // when
    let passed = HEARTBEATS
        .iter()
        .map(|(name, ..)| ctx.examine(name, passes_over(ctx, name)));
    let endless = HEARTBEATS
        .iter()
        .filter(|(_, name, _)| ctx.instance_if(Capability::IdleTimeout, name))
        .map(|(_, name, _)| ctx.examine(name, keeps_nothing_alive(ctx, name)));
    let between = ctx.examine(BETWEEN, between_texts(ctx, p1));
    let (passed, endless, between) = futures::join!(join_all(passed), join_all(endless), between);
    // then
    let mut deviations = Deviations::new();
    for row in passed.into_iter().chain(endless).chain([between]) {
        deviations.note(row)?;
    }
    deviations.result()
}

/// The instance in which the provider is slow, and sends a comment before each text.
const BETWEEN: &str = "comments between texts";

async fn passes_over(ctx: &Ctx, name: &str) -> CaseResult {
    let asked = ctx.prompt("solo", &prompt(name));
    let stream = ctx.client.streamed(asked).await?;
    let carried = stream
        .events
        .iter()
        .find(|event| !event.is_done() && event.json.is_none() && !event.data.trim().is_empty());
    holds(
        "heartbeat.as_data",
        carried.is_none(),
        "no heartbeat that reaches the client as data",
        carried.map_or_else(String::new, |event| event.data.clone()),
    )?;
    holds(
        "heartbeat.complete",
        stream.looks_complete() && stream.done_count == 1,
        "a whole stream with one [DONE]",
        format_args!(
            "status {}, {} [DONE] events, error {}",
            stream.status,
            stream.done_count,
            json(&stream.error)
        ),
    )?;
    equal(
        "heartbeat.text",
        "the text of the stream",
        "Paris",
        stream.text.as_str(),
    )
    .map_err(silent_in(&stream))?;
    equal(
        "heartbeat.finish_reasons",
        "the list of finish reasons",
        &vec!["stop".to_string()],
        &stream.finish_reasons,
    )
    .map_err(silent_in(&stream))
}

async fn keeps_nothing_alive(ctx: &Ctx, name: &str) -> CaseResult {
    let asked = ctx.prompt("short", &prompt(name));
    let stream = ctx.client.streamed(asked).await?;
    broken(&stream)
}

/// A model that is slow but alive, behind heartbeats, is not cut.
async fn between_texts(ctx: &Ctx, stub: &Stub) -> CaseResult {
    let prompt = prompt(BETWEEN);
    let asked = ctx.prompt("short", &prompt);
    let stream = ctx.client.streamed(asked).await?;
    let text = choices(&stream)
        .remove(&0)
        .map(|choice| choice.text)
        .unwrap_or_default();
    if text != "aaaaaaaa" || !stream.looks_complete() {
        for n in [1, 3, 5, 7, 9, 11, 13] {
            in_time(ctx, stub, &prompt, n, TEXT_BY)?;
        }
    }
    equal(
        "alive.text",
        "the text of a stream with a comment between each two of its texts",
        "aaaaaaaa",
        text.as_str(),
    )
    .map_err(silent_in(&stream))?;
    holds(
        "alive.complete",
        stream.looks_complete(),
        "a whole stream",
        json(&stream.error),
    )
}
