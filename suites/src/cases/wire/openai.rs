//! WIRE, of OpenAI's protocol: what passes through a gateway arrives as it was sent.

use std::collections::BTreeMap;

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds, silent};
use gauntlet_harness::client::{End, StreamEvent, Transcript};
use gauntlet_harness::llm::{raw, reply, tool_call};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::Timeouts;
use gauntlet_harness::subject::Capability;
use serde_json::{Value, json};

use crate::cases::CaseRow;
use crate::cases::rows::{By, Row, each, everywhere, everywhere_within, note_each, row};
use crate::cases::support::{
    DONE, choices, chunk, chunk_of, events, of_choice, parsed, record, records, role, silent_in,
    text, usage_chunk, with_choices, with_tools, with_usage,
};

const STREAM: &[Capability] = &[Capability::Chat, Capability::Stream];

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "WIRE-01",
        why: "A gateway that rebuilds an answer from parts can lose some of them: tool calls vanish, \
              or the usage becomes zero and nobody is billed.",
        shown: "Providers answer with text, tool calls, both, two choices, and each finish_reason. \
                The client compares every field with what the provider sent.",
        remedy: "Forward the provider's answer instead of building a new one, or map every field of it.",
        needs: &[Capability::Chat, Capability::Tools],
        instances: &[
            "text",
            "two tool calls",
            "text beside a tool call",
            "two choices",
            "length",
            "content filter",
            "long text",
            "usage with details",
            "second candidate",
        ],
        spec: everywhere,
        run: &wire_01,
    },
    CaseRow {
        id: "WIRE-02",
        why: "Streams with usage and tool calls arrived in one burst at the end \
              (https://github.com/BerriAI/litellm/issues/38926).",
        shown: "The provider sends each event only after the client has read the text of the event \
                before.",
        remedy: "Write each event to the client as it comes, and flush. Use no buffer that waits until \
                 it is full, and no compression over a stream.",
        needs: STREAM,
        instances: &[
            "text",
            "tool calls",
            "usage asked for",
            "second candidate",
            "Ollama",
        ],
        // what is held back comes with the error of the idle timeout, at the latest
        spec: || everywhere_within(Timeouts::default()),
        run: &wire_02,
    },
    CaseRow {
        id: "WIRE-03",
        why: "A client stops at the first terminator: it reads a second one as the start of the next \
              answer, and a missing one as a cut.",
        shown: "Providers stream answers with each finish_reason, of one and two choices, with usage, and \
                without [DONE]. The client counts what ends each stream.",
        remedy: "Write the terminator at one point of the code, after the provider's own terminator has \
                 come.",
        needs: STREAM,
        instances: &[
            "stop",
            "length",
            "content_filter",
            "tool calls",
            "two choices",
            "usage asked for",
            "second candidate",
            "Ollama, stop",
            "Ollama, length",
            "Ollama, tool calls",
        ],
        spec: everywhere,
        run: &wire_03,
    },
    CaseRow {
        id: "WIRE-04",
        why: "The usage chunk has no choices; a loop over choices loses it, and with it the bill.",
        shown: "The client asks for usage in a stream and compares the counts of the chunk with what \
                the provider sent.",
        remedy: "Forward chunks whose choices are empty.",
        needs: STREAM,
        instances: &[
            "text",
            "tool calls",
            "length",
            "usage with details",
            "two choices",
            "second candidate",
            "Ollama",
            "Ollama, tool calls",
        ],
        spec: everywhere,
        run: &wire_04,
    },
    CaseRow {
        id: "WIRE-05",
        why: "Fragments of parallel calls were mixed up or lost \
              (https://github.com/BerriAI/litellm/issues/39796).",
        shown: "The provider streams tool calls in fragments: one after the other, interleaved, cut within \
                escapes, whole, and of two choices. The client joins the fragments by index.",
        remedy: "Forward fragments as they are, with their index, and never parse one fragment by \
                 itself.",
        needs: &[Capability::Chat, Capability::Stream, Capability::Tools],
        instances: &[
            "one call after the other",
            "interleaved calls",
            "text before the calls",
            "a call in one event",
            "fragments cut within escapes",
            "calls of two choices",
            "second candidate",
        ],
        spec: everywhere,
        run: &wire_05,
    },
    CaseRow {
        id: "WIRE-06",
        why: "A gateway that decodes each read by itself turns a split character into two \
              replacement characters; only users of other scripts see it.",
        shown: "The provider's answer is cut at each byte within characters of two, three and four bytes. \
                It sends each piece only after the gateway has read the piece before.",
        remedy: "Decode at the end of a line or an event, never at the end of a read.",
        needs: STREAM,
        instances: &[
            "two bytes, after the first",
            "three bytes, after the first",
            "three bytes, after the second",
            "four bytes, after the first",
            "four bytes, after the second",
            "four bytes, after the third",
            "two cuts",
            "every byte by itself",
            "tool arguments",
            "plain",
            "second candidate",
            "Ollama",
        ],
        spec: everywhere,
        run: &wire_06,
    },
    CaseRow {
        id: "WIRE-07",
        why: "Keep-alive comments and other line ends are legal, and a parser made for one provider \
              loses text at the next.",
        shown: "The provider writes the events of an answer in each form that the standard allows.",
        remedy: "Read SSE by the standard's rules (WHATWG HTML, section 9.2.6), not by a prefix and a \
                 pair of line feeds.",
        needs: STREAM,
        instances: &[
            "comments",
            "comments within an event",
            "CRLF",
            "CR",
            "mixed line ends",
            "no space after data:",
            "data of several lines",
            "byte order mark",
            "event, id and retry",
            "unknown fields",
            "CRLF cut between two writes",
            "second candidate",
        ],
        spec: everywhere,
        run: &wire_07,
    },
    CaseRow {
        id: "WIRE-08",
        why: "A field that is dropped changes the answer without a sign: the caller believes in a \
              seed or a bias that the provider never received.",
        shown: "The client sends fields that no gateway can know, and rare ones of OpenAI's. Each must \
                reach the provider, or the answer must be 400.",
        remedy: "Keep the request as a document and change only what must change, or refuse unknown \
                 fields.",
        needs: &[Capability::Chat],
        instances: &[
            "plain",
            "streamed",
            "in a message",
            "second candidate",
            "Ollama, plain",
            "Ollama, streamed",
        ],
        spec: everywhere,
        run: &wire_08,
    },
    CaseRow {
        id: "WIRE-09",
        why: "Clients and editors fill their lists of models from this route, and fail on another \
              shape.",
        shown: "Aliases of one provider, of two, and of an Ollama provider are configured. The client must \
                find each once in the list.",
        remedy: "Answer {\"object\": \"list\", \"data\": [{\"id\", \"object\": \"model\", \"created\", \
                 \"owned_by\"}]}.",
        needs: &[Capability::Models],
        instances: &[
            "two aliases",
            "an alias of two candidates",
            "an Ollama provider",
        ],
        spec: || everywhere().model("other", &["p1"]),
        run: &wire_09,
    },
];

fn called_message(content: Value, calls: &[Value]) -> Value {
    json!({"role": "assistant", "content": content, "tool_calls": calls})
}

/// A completion of these choices, each a message and a finish_reason.
fn completion(choices: &[(Value, &str)], usage: Value) -> Value {
    let choices: Vec<Value> = (0..)
        .zip(choices)
        .map(|(index, (message, finish)): (u64, _)| {
            json!({"index": index, "message": message, "finish_reason": finish})
        })
        .collect();
    json!({
        "id": "chatcmpl-wire", "object": "chat.completion", "created": 1, "model": "m-p1",
        "choices": choices, "usage": usage,
    })
}

async fn wire_01(ctx: &Ctx) -> CaseResult {
    let usage = || json!({"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19});
    let says = |text: &str| json!({"role": "assistant", "content": text});
    let one = |message: Value, finish| completion(&[(message, finish)], usage());
    let calls = [
        called("call_9f2", "weather", r#"{"city": "Zürich", "days": 3}"#),
        called("call_0a7", "time", "{}"),
    ];
    let detailed = json!({
        "prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 3},
    });
    let long = "Zürich 東京 ".repeat(8 << 10);
    let documents = [
        ("text", one(says("Paris, 東京 and \"Bern\"."), "stop")),
        (
            "two tool calls",
            one(called_message(Value::Null, &calls), "tool_calls"),
        ),
        (
            "text beside a tool call",
            one(
                called_message(json!("I look it up."), &calls[..1]),
                "tool_calls",
            ),
        ),
        (
            "two choices",
            completion(
                &[(says("Paris"), "stop"), (says("Rome is"), "length")],
                usage(),
            ),
        ),
        ("length", one(says("Paris is"), "length")),
        ("content filter", one(says("Par"), "content_filter")),
        ("long text", one(says(&long), "stop")),
        (
            "usage with details",
            completion(&[(says("Paris"), "stop")], detailed),
        ),
        ("second candidate", one(says("Paris"), "stop")),
    ];
    let mut deviations = Deviations::new();
    for (name, document) in documents {
        let answer = raw(200, "application/json", document.to_string());
        let mut row = row(name, answer, "");
        row = match name {
            "two choices" => row.two_choices(),
            "second candidate" => row.by(By::Second),
            name if name.contains("tool") => row.tools(),
            _ => row,
        };
        if !Box::pin(row.is_examined(ctx)).await? {
            continue;
        }
        let examination = async {
            match row.plain(ctx).await? {
                Some(answer) => {
                    equal("text.status", "the status", 200, answer.status)?;
                    arrived(&document, &answer.json()).map_err(silent)
                }
                None => Ok(()),
            }
        };
        deviations.note(ctx.examine(name, examination).await)?;
    }
    deviations.result()
}

/// Everything that a client uses of a completion must have arrived as it was sent.
fn arrived(sent: &Value, come: &Value) -> CaseResult {
    let listed = |document: &Value| document["choices"].as_array().cloned().unwrap_or_default();
    let (sent_choices, come_choices) = (listed(sent), listed(come));
    equal(
        "choices.count",
        "the number of choices",
        sent_choices.len(),
        come_choices.len(),
    )?;
    for sent in &sent_choices {
        let index = &sent["index"];
        let come = come_choices.iter().find(|come| come["index"] == *index);
        let come = come.unwrap_or(&Value::Null);
        let (sent_message, got) = (&sent["message"], &come["message"]);
        equal(
            "text.content",
            &format!("the content of choice {index}"),
            text(sent_message, "content"),
            text(got, "content"),
        )?;
        if sent_message["tool_calls"].is_null() {
            equal(
                "text.finish_reason",
                &format!("the finish_reason of choice {index}"),
                &sent["finish_reason"],
                &come["finish_reason"],
            )?;
        }
    }
    for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        equal(
            &format!("usage.{key}"),
            &format!("the field usage.{key}"),
            &sent["usage"][key],
            &come["usage"][key],
        )?;
    }
    for (details, key) in [
        ("prompt_tokens_details", "cached_tokens"),
        ("completion_tokens_details", "reasoning_tokens"),
    ] {
        let sent = &sent["usage"][details][key];
        if !sent.is_null() {
            equal(
                "usage.details",
                &format!("the field usage.{details}.{key}"),
                sent,
                &come["usage"][details][key],
            )?;
        }
    }
    let (sent, come) = (&sent["choices"][0], &come["choices"][0]);
    let calls = |choice: &Value| -> Vec<Value> {
        let calls = choice["message"]["tool_calls"].as_array();
        calls.into_iter().flatten().map(as_called).collect()
    };
    let (sent_calls, come_calls) = (calls(sent), calls(come));
    equal(
        "tools.count",
        "the number of tool calls",
        sent_calls.len(),
        come_calls.len(),
    )?;
    let ids =
        |calls: &[Value]| -> Vec<Value> { calls.iter().map(|call| call["id"].clone()).collect() };
    equal(
        "tools.ids",
        "the ids of the tool calls",
        ids(&sent_calls),
        ids(&come_calls),
    )?;
    equal(
        "tools.calls",
        "the list of tool calls",
        &sent_calls,
        &come_calls,
    )?;
    equal(
        "tools.finish_reason",
        "the finish_reason of the answer",
        &sent["finish_reason"],
        &come["finish_reason"],
    )
}

/// What a client reads of one event: text, names of tools, and arguments.
fn payload(event: &StreamEvent) -> String {
    let mut payload = event.delta_text.clone();
    let json = event.json.as_ref().unwrap_or(&Value::Null);
    let calls = json["choices"][0]["delta"]["tool_calls"].as_array();
    for call in calls.into_iter().flatten() {
        payload.push_str(text(&call["function"], "name"));
        payload.push_str(text(&call["function"], "arguments"));
    }
    payload
}

fn fragment(index: u64, name: Option<&str>, arguments: &str) -> Value {
    let mut call = json!({"index": index, "function": {"arguments": arguments}});
    if let Some(name) = name {
        call["id"] = format!("call_{name}").into();
        call["type"] = "function".into();
        call["function"]["name"] = name.into();
    }
    json!({"tool_calls": [call]})
}

async fn wire_02(ctx: &Ctx) -> CaseResult {
    let words = ["Par", "is", " is", " big"];
    let tools = [
        chunk_of(&[of_choice(0, fragment(0, Some("time"), ""), None)]),
        chunk_of(&[of_choice(0, fragment(0, None, "{\"zo"), None)]),
        chunk_of(&[of_choice(0, fragment(0, None, "ne\": 1}"), None)]),
    ];
    let tools = [role()]
        .into_iter()
        .chain(tools)
        .chain([chunk("", Some("tool_calls")), DONE.into()]);
    let says = || reply("").tokens(words);
    // the first event of OpenAI has no text, and a gateway may wait for text
    let rows = [
        (row("text", says(), ""), &words[..], 1),
        (
            row("tool calls", events(tools), "").tools(),
            &["time", "{\"zo", "ne\": 1}"][..],
            1,
        ),
        (
            Row {
                asked: with_usage,
                ..row("usage asked for", says(), "")
            },
            &words[..],
            1,
        ),
        (
            row("second candidate", says(), "").by(By::Second),
            &words[..],
            1,
        ),
        (row("Ollama", says(), "").by(By::Ollama), &words[..], 0),
    ];
    let mut deviations = Deviations::new();
    for (row, payloads, silent) in rows {
        if Box::pin(row.is_examined(ctx)).await? {
            let examination = each_by_itself(ctx, &row, payloads, silent);
            deviations.note(ctx.examine(row.name, examination).await)?;
        }
    }
    deviations.result()
}

/// Each payload must reach the client while the provider holds the next event.
async fn each_by_itself(ctx: &Ctx, row: &Row, payloads: &[&str], silent: usize) -> CaseResult {
    // given
    let plan = Plan::of([Step::Head, Step::Interlock(row.name.into())]);
    let held = Row {
        answer: row.answer.clone().plan(plan),
        text: String::new(),
        ..*row
    };
    held.mount(ctx).await?;
    let read = ctx.gates.interlock(row.name);
    if silent > 0 {
        read.ack(silent);
    }
    // when
    let asked = (row.asked)(ctx.prompt(row.by.alias(), &row.prompt()));
    let mut stream = ctx.client.stream(asked).await?;
    for (expected, event) in payloads.iter().zip(silent + 1..) {
        let mut come = String::new();
        while come.len() < expected.len() {
            let Some(event) = stream.next().await? else {
                break;
            };
            come.push_str(&payload(&event));
        }
        equal(
            "stream.text_while_held",
            "what the client has while the provider holds the next event",
            *expected,
            come.as_str(),
        )?;
        read.ack(event);
    }
    read.release();
    // then
    equal(
        "stream.done_count",
        "the number of [DONE] events",
        1,
        stream.collect().await?.done_count,
    )
}

async fn wire_03(ctx: &Ctx) -> CaseResult {
    let two = [
        role(),
        chunk_of(&[of_choice(0, json!({"content": "Paris"}), None)]),
        chunk_of(&[of_choice(1, json!({"content": "Rome"}), None)]),
        chunk_of(&[of_choice(1, json!({}), Some("length"))]),
        chunk_of(&[of_choice(0, json!({}), Some("stop"))]),
        DONE.into(),
    ];
    let says = || reply("Paris is big.");
    let calls = || tool_call("time", json!({}));
    let filtered = "content_filter";
    let rows = vec![
        row("stop", says(), ""),
        row("length", says().finish("length"), ""),
        row("content_filter", says().finish(filtered), ""),
        row("tool calls", calls(), "").tools(),
        row("two choices", events(two), "").two_choices(),
        Row {
            asked: with_usage,
            ..row("usage asked for", says(), "")
        },
        row("second candidate", says(), "").by(By::Second),
        row("Ollama, stop", says(), "").by(By::Ollama),
        row("Ollama, length", says().finish("length"), "").by(By::Ollama),
        row("Ollama, tool calls", calls(), "")
            .tools()
            .by(By::Ollama),
    ];
    each(ctx, rows, |row, stream| {
        let finish: &[&str] = match row.name {
            "length" | "Ollama, length" => &["length"],
            "content_filter" => &["content_filter"],
            "tool calls" | "Ollama, tool calls" => &["tool_calls"],
            "two choices" => &["stop", "length"],
            _ => &["stop"],
        };
        ends_once(stream, finish)
    })
    .await
}

/// Each choice has its finish_reason once, and the stream has one end.
fn ends_once(stream: &Transcript, finish: &[&str]) -> CaseResult {
    equal(
        "stream.status",
        "the status of the stream",
        200,
        stream.status,
    )?;
    let seen: Vec<Vec<String>> = choices(stream)
        .into_values()
        .map(|choice| choice.finish)
        .collect();
    let expected: Vec<Vec<String>> = finish
        .iter()
        .map(|finish| vec![(*finish).to_owned()])
        .collect();
    equal(
        "stream.finish_reasons",
        "the list of the finish reasons of each choice",
        &expected,
        &seen,
    )
    .map_err(silent_in(stream))?;
    equal(
        "stream.done_count",
        "the number of [DONE] events",
        1,
        stream.done_count,
    )?;
    equal(
        "stream.after_done",
        "the number of events after [DONE]",
        0,
        stream.after_done,
    )?;
    equal(
        "stream.end",
        "the end of the body",
        &End::Orderly,
        &stream.end,
    )?;
    stream
        .strict()
        .or_else(|why| holds("stream.shape", false, "chunks of OpenAI's shape", why))
}

async fn wire_04(ctx: &Ctx) -> CaseResult {
    let says = || reply("Paris is big.").usage(12, 7);
    let calls = || tool_call("time", json!({})).usage(12, 7);
    let detailed = json!({
        "id": "chatcmpl-strm", "object": "chat.completion.chunk", "created": 1, "model": "m-p1",
        "choices": [], "usage": {
            "prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19,
            "prompt_tokens_details": {"cached_tokens": 5},
            "completion_tokens_details": {"reasoning_tokens": 3},
        },
    });
    let answer = |end: &[String]| {
        let parts = [role(), chunk("Paris", None)];
        events(parts.iter().chain(end))
    };
    let stop = || chunk("", Some("stop"));
    let two = [
        chunk_of(&[of_choice(1, json!({"content": "Rome"}), Some("stop"))]),
        stop(),
        usage_chunk(),
        DONE.into(),
    ];
    let rows = vec![
        row("text", says(), ""),
        row("tool calls", calls(), "").tools(),
        row("length", says().finish("length"), ""),
        row(
            "usage with details",
            answer(&[stop(), format!("data: {detailed}\n\n"), DONE.into()]),
            "",
        ),
        row("two choices", answer(&two), "").two_choices(),
        row("second candidate", says(), "").by(By::Second),
        row("Ollama", says(), "").by(By::Ollama),
        row("Ollama, tool calls", calls(), "")
            .tools()
            .by(By::Ollama),
    ];
    let asked = rows.into_iter().map(|row| Row {
        asked: match row.name {
            "two choices" => |body| with_usage(with_choices(body, 2)),
            name if name.ends_with("calls") => |body| with_usage(with_tools(body)),
            _ => with_usage,
        },
        ..row
    });
    each(ctx, asked.collect(), |row, stream| {
        let chunks: Vec<&Value> = stream
            .events
            .iter()
            .filter_map(|event| event.json.as_ref())
            .map(|json| &json["usage"])
            .filter(|usage| usage.is_object())
            .collect();
        equal(
            "usage.chunks",
            "the number of usage chunks",
            1,
            chunks.len(),
        )?;
        for (key, count) in [
            ("prompt_tokens", 12),
            ("completion_tokens", 7),
            ("total_tokens", 19),
        ] {
            equal(
                "usage.counts",
                &format!("the field usage.{key}"),
                &json!(count),
                &chunks[0][key],
            )
            .map_err(silent)?;
        }
        if row.name != "usage with details" {
            return Ok(());
        }
        let details = [
            &chunks[0]["prompt_tokens_details"]["cached_tokens"],
            &chunks[0]["completion_tokens_details"]["reasoning_tokens"],
        ];
        equal(
            "usage.details",
            "the counts of cached and of reasoning tokens",
            &vec![json!(5), json!(3)],
            &details.map(Value::clone).to_vec(),
        )
        .map_err(silent)
    })
    .await
}

/// The tool calls of each choice: the name, and the arguments as JSON.
type Calls = BTreeMap<u64, Vec<(String, Value)>>;

async fn wire_05(ctx: &Ctx) -> CaseResult {
    let weather = json!({"city": "Zürich \"東\"\n", "days": 3, "units": {"temperature": "°C"}});
    let time = json!({"zone": "Europe/Zurich"});
    let two = || tool_call("weather", weather.clone()).tool_call("time", time.clone());
    let both = vec![
        ("weather".to_owned(), weather.clone()),
        ("time".to_owned(), time.clone()),
    ];
    let alone = vec![("weather".to_owned(), weather.clone())];
    let of = |choice, delta| chunk_of(&[of_choice(choice, delta, None)]);
    let start = |choice, index, name: &str| of(choice, fragment(index, Some(name), ""));
    let part = |choice, index, text: &str| of(choice, fragment(index, None, text));
    let (weather_text, time_text) = (weather.to_string(), time.to_string());
    let pieces = |text: &str, size: usize| -> Vec<String> {
        let characters: Vec<char> = text.chars().collect();
        let pieces = characters.chunks(size);
        pieces.map(|piece| piece.iter().collect()).collect()
    };
    let mut interleaved = vec![start(0, 0, "weather"), start(0, 1, "time")];
    let (mut first, mut second) = (
        pieces(&weather_text, 4).into_iter(),
        pieces(&time_text, 3).into_iter(),
    );
    loop {
        let next = [(0, first.next()), (1, second.next())];
        if next.iter().all(|(_, piece)| piece.is_none()) {
            break;
        }
        for (index, piece) in next {
            interleaved.extend(piece.map(|piece| part(0, index, &piece)));
        }
    }
    let whole = of(0, fragment(0, Some("weather"), &weather_text));
    let characters = pieces(&weather_text, 1);
    let escapes = [start(0, 0, "weather")]
        .into_iter()
        .chain(characters.iter().map(|one| part(0, 0, one)));
    let choices_of_two = vec![
        start(1, 0, "time"),
        start(0, 0, "weather"),
        part(1, 0, &time_text[..4]),
        part(0, 0, &weather_text),
        part(1, 0, &time_text[4..]),
        chunk_of(&[
            of_choice(0, json!({}), Some("tool_calls")),
            of_choice(1, json!({}), Some("tool_calls")),
        ]),
    ];
    let answer = |body: Vec<String>| {
        let mut all = vec![role()];
        all.extend(body);
        all.push(DONE.into());
        events(all)
    };
    let ended = |mut body: Vec<String>| {
        body.push(chunk("", Some("tool_calls")));
        answer(body)
    };
    let one = |calls: &Vec<(String, Value)>| Calls::from([(0, calls.clone())]);
    let rows = vec![
        (row("one call after the other", two(), ""), one(&both)),
        (row("interleaved calls", ended(interleaved), ""), one(&both)),
        (
            row(
                "text before the calls",
                reply("I look it up.").tool_call("weather", weather.clone()),
                "I look it up.",
            ),
            one(&alone),
        ),
        (
            row("a call in one event", ended(vec![whole]), ""),
            one(&alone),
        ),
        (
            row("fragments cut within escapes", ended(escapes.collect()), ""),
            one(&alone),
        ),
        (
            row("calls of two choices", answer(choices_of_two), "").two_choices(),
            Calls::from([(0, alone.clone()), (1, vec![("time".into(), time.clone())])]),
        ),
        (
            row("second candidate", two(), "").by(By::Second),
            one(&both),
        ),
    ];
    let mut deviations = Deviations::new();
    for (row, expected) in rows {
        let row = Row {
            asked: if row.name == "calls of two choices" {
                |body| with_tools(with_choices(body, 2))
            } else {
                with_tools
            },
            ..row
        };
        note_each(ctx, vec![row], &mut deviations, |row, stream| {
            joined(row, stream, &expected)
        })
        .await?;
    }
    deviations.result()
}

/// The fragments must join to the calls of each choice.
fn joined(row: &Row, stream: &Transcript, expected: &Calls) -> CaseResult {
    let read = choices(stream);
    let seen: Calls = read
        .iter()
        .map(|(index, choice)| {
            let calls = choice.calls.values();
            let calls = calls.map(|(name, arguments)| (name.clone(), parsed(&json!(arguments))));
            (*index, calls.collect())
        })
        .collect();
    let fact = match row.name {
        "interleaved calls" => "interleaved.calls",
        "calls of two choices" => "choices.calls",
        _ => "tools.calls",
    };
    equal(
        fact,
        "the list of tool calls of each choice",
        expected,
        &seen,
    )
    .map_err(silent_in(stream))?;
    row.has_text(stream)?;
    let ids: Vec<&str> = stream
        .tool_calls
        .iter()
        .map(|call| call.id.as_str())
        .collect();
    let distinct = ids.iter().collect::<std::collections::BTreeSet<_>>().len() == ids.len();
    // the calls of other choices may have the same index
    let one_choice = expected.len() == 1;
    holds(
        "tools.ids",
        !one_choice || (distinct && ids.iter().all(|id| !id.is_empty())),
        "an id of its own for each tool call",
        format_args!("{ids:?}"),
    )?;
    for (index, choice) in &read {
        equal(
            "stream.finish_reasons",
            &format!("the list of finish reasons of choice {index}"),
            &vec!["tool_calls".to_string()],
            &choice.finish,
        )
        .map_err(silent_in(stream))?;
    }
    Ok(())
}

async fn wire_06(ctx: &Ctx) -> CaseResult {
    const TEXT: &str = "é東🦀ß";
    let body = [&chunk(TEXT, None), &chunk("", Some("stop")), DONE].concat();
    let at = body.find(TEXT).unwrap_or_default();
    let cut = |bytes: usize| Plan::of([Step::Head, Step::Bytes(bytes), Step::Drain, Step::Rest]);
    let split = |plan| events([body.as_str()]).plan(plan);
    let single = |name, offset| row(name, split(cut(at + offset)), TEXT);
    let two = Plan::of([
        Step::Head,
        Step::Bytes(at + 1),
        Step::Drain,
        Step::Bytes(6),
        Step::Drain,
        Step::Rest,
    ]);
    let bytewise = Plan::of([
        Step::Head,
        Step::Drip {
            bytes: 1,
            every_ms: 0,
        },
    ]);
    let arguments = json!({ "city": TEXT }).to_string();
    let call = [
        chunk_of(&[of_choice(0, fragment(0, Some("time"), &arguments), None)]),
        chunk("", Some("tool_calls")),
        DONE.into(),
    ]
    .concat();
    let within_call = call.find('🦀').unwrap_or_default() + 2;
    let ollama = [record(TEXT, false), record("", true)].concat();
    let within_record = ollama.find('東').unwrap_or_default() + 1;
    let rows = vec![
        row("two cuts", split(two), TEXT),
        single("two bytes, after the first", 1),
        single("three bytes, after the first", 3),
        single("three bytes, after the second", 4),
        single("four bytes, after the first", 6),
        single("four bytes, after the second", 7),
        single("four bytes, after the third", 8),
        row("every byte by itself", split(bytewise), TEXT),
        row("tool arguments", events([&call]).plan(cut(within_call)), "").tools(),
        row("second candidate", split(cut(at + 7)), TEXT).by(By::Second),
        row(
            "Ollama",
            records([ollama.clone()]).plan(cut(within_record)),
            TEXT,
        )
        .by(By::Ollama),
    ];
    let mut deviations = Deviations::new();
    note_each(ctx, rows, &mut deviations, |row, stream| {
        row.has_text(stream)?;
        if row.name == "tool arguments" {
            let read = choices(stream).remove(&0).unwrap_or_default();
            let seen = read.calls.get(&0).map(|(_, arguments)| arguments.as_str());
            equal(
                "tools.arguments",
                "the text of the arguments",
                Some(arguments.as_str()),
                seen,
            )
            .map_err(silent_in(stream))?;
        }
        equal(
            "stream.done_count",
            "the number of [DONE] events",
            1,
            stream.done_count,
        )
    })
    .await?;
    let message = json!({"role": "assistant", "content": TEXT});
    let document = completion(&[(message, "stop")], json!({})).to_string();
    let within = document.find('🦀').unwrap_or_default() + 2;
    let plain = row(
        "plain",
        raw(200, "application/json", document).plan(cut(within)),
        TEXT,
    );
    let examination = async {
        let answer = plain.plain(ctx).await?;
        let content = answer.map(|answer| answer.content()).unwrap_or_default();
        equal(
            "plain.text",
            "the text of the plain answer",
            TEXT,
            content.as_str(),
        )
        .map_err(silent)
    };
    deviations.note(ctx.examine(plain.name, examination).await)?;
    deviations.result()
}

async fn wire_07(ctx: &Ctx) -> CaseResult {
    let plain = || {
        vec![
            role(),
            chunk("Par", None),
            chunk("is", None),
            chunk(" is", None),
            chunk(" big.", None),
            chunk("", Some("stop")),
            DONE.to_owned(),
        ]
    };
    let formed = |form: &dyn Fn(&str) -> String| -> String {
        plain().iter().map(|event| form(event)).collect()
    };
    let mixed = || {
        let [first, second, third] = [chunk("Par", None), chunk("is", None), chunk(" is", None)];
        [
            first.replace('\n', "\r\n"),
            second.replace("\n\n", "\r\n\n"),
            third.replace("\n\n", "\r\r"),
            chunk(" big.", None).replace("\n\n", "\n\r\n"),
            chunk("", Some("stop")),
            DONE.to_owned(),
        ]
        .concat()
    };
    let crlf = || formed(&|event| event.replace('\n', "\r\n"));
    let says = |name, body: String| row(name, events([body]), "Paris is big.");
    let cut = crlf();
    let within = cut.find("\r\n\r\n").unwrap_or_default() + 3;
    let rows = vec![
        says(
            "comments",
            formed(&|event| format!(": a comment\n\n{event}:\n")),
        ),
        says(
            "comments within an event",
            formed(&|event| event.replacen("\n\n", "\n: a comment\n\n", 1)),
        ),
        says("CRLF", crlf()),
        says("CR", formed(&|event| event.replace('\n', "\r"))),
        says("mixed line ends", mixed()),
        says(
            "no space after data:",
            formed(&|event| event.replacen("data: ", "data:", 1)),
        ),
        says(
            "data of several lines",
            formed(&|event| {
                event
                    .replacen('{', "{\ndata: ", 1)
                    .replacen(",\"", ",\ndata:\"", 1)
            }),
        ),
        says("byte order mark", format!("\u{feff}{}", plain().concat())),
        says(
            "event, id and retry",
            formed(&|event| format!("event: message\nid: 1\nretry: 10\n{event}")),
        ),
        says(
            "unknown fields",
            formed(&|event| format!("priority: 1\ndata-x: 2\n{event}")),
        ),
        row(
            "CRLF cut between two writes",
            events([cut]).plan(Plan::of([
                Step::Head,
                Step::Bytes(within),
                Step::Drain,
                Step::Rest,
            ])),
            "Paris is big.",
        ),
        says("second candidate", crlf()).by(By::Second),
    ];
    each(ctx, rows, |row, stream| {
        equal(
            "stream.status",
            "the status of the stream",
            200,
            stream.status,
        )?;
        row.has_text(stream)?;
        equal(
            "stream.finish_reasons",
            "the list of finish reasons",
            &vec!["stop".to_string()],
            &stream.finish_reasons,
        )?;
        equal(
            "stream.done_count",
            "the number of [DONE] events",
            1,
            stream.done_count,
        )
    })
    .await
}

/// Fields of a request, each with its value.
type Fields<'a> = &'a [(&'a str, Value)];

async fn wire_08(ctx: &Ctx) -> CaseResult {
    let unknown = json!({"nested": [1, "two", null, 2.5]});
    let usual = [
        ("x_nobody_knows", unknown.clone()),
        ("logit_bias", json!({"50256": -100})),
        ("seed", json!(7_340_189)),
        ("metadata", json!({"ticket": "A-7731"})),
    ];
    let in_message = [("x_nobody_knows", unknown)];
    // another protocol may have no word for what only describes a request
    let meant = &usual[..3];
    let rows: [(&str, By, bool, Fields<'_>); 6] = [
        ("plain", By::Solo, false, &usual),
        ("streamed", By::Solo, true, &usual),
        ("in a message", By::Solo, false, &in_message),
        ("second candidate", By::Second, false, &usual),
        ("Ollama, plain", By::Ollama, false, meant),
        ("Ollama, streamed", By::Ollama, true, meant),
    ];
    let mut deviations = Deviations::new();
    for (name, by, streams, fields) in rows {
        let answer = reply("Paris");
        let row = row(name, answer, "").by(by);
        let possible = !streams || ctx.declares(Capability::Stream);
        if !possible {
            ctx.instance_if(Capability::Stream, name);
        }
        if !possible || !Box::pin(row.is_examined(ctx)).await? {
            continue;
        }
        for (field, value) in fields {
            let examination = arrives(ctx, &row, streams, field, value);
            deviations.note(ctx.examine(name, examination).await)?;
        }
    }
    deviations.result()
}

/// The field must reach the provider, or the gateway must refuse the request.
async fn arrives(
    ctx: &Ctx,
    row: &Row,
    streams: bool,
    field: &str,
    value: &Value,
) -> Result<(), Failure> {
    // given
    let stub = row.mount(ctx).await?;
    let mut body = ctx.prompt(row.by.alias(), &row.prompt());
    if row.name == "in a message" {
        body["messages"][0][field] = value.clone();
    } else {
        body[field] = value.clone();
    }
    // when
    let status = if streams {
        ctx.client.streamed(body).await?.status
    } else {
        ctx.client.chat(body).await?.status
    };
    // then
    if status != 200 {
        return equal(
            "answer.status",
            &format!("the status for the field {field}, which never reached the provider,"),
            400,
            status,
        );
    }
    let sent = stub
        .calls(&row.prompt())
        .pop()
        .map(|request| request.json())
        .unwrap_or_default();
    // another protocol may have another name for it
    let found = match row.by {
        By::Ollama => holds_somewhere(&sent, value),
        _ if row.name == "in a message" => sent["messages"][0][field] == *value,
        _ => sent[field] == *value,
    };
    holds(
        "provider.field",
        found,
        format!("the field {field} at the provider"),
        &sent,
    )
    .map_err(silent)
}

/// Whether the value stands anywhere in the document.
fn holds_somewhere(document: &Value, value: &Value) -> bool {
    document == value
        || match document {
            Value::Array(items) => items.iter().any(|item| holds_somewhere(item, value)),
            Value::Object(members) => members.values().any(|one| holds_somewhere(one, value)),
            _ => false,
        }
}

async fn wire_09(ctx: &Ctx) -> CaseResult {
    // when
    let answer = ctx.client.get("/v1/models").await?;
    // then
    equal("answer.status", "the status", 200, answer.status)?;
    let list = answer.json();
    equal(
        "list.object",
        "the field object of the list",
        &json!("list"),
        &list["object"],
    )?;
    let mut deviations = Deviations::new();
    for (name, alias) in [
        ("two aliases", "solo"),
        ("two aliases", "other"),
        ("an alias of two candidates", "pair"),
        ("an Ollama provider", "local"),
    ] {
        let examined = match alias {
            "pair" => ctx.instance_if(Capability::Fallback, name),
            "local" => ctx.instance_if(Capability::Ollama, name),
            _ => true,
        };
        if examined {
            let listed = async { listed_once(ctx, &list, alias) };
            deviations.note(ctx.examine(name, listed).await)?;
        }
    }
    deviations.result()
}

fn listed_once(ctx: &Ctx, list: &Value, alias: &str) -> CaseResult {
    let id = ctx.model(alias);
    let models = list["data"].as_array();
    let models: Vec<&Value> = models
        .into_iter()
        .flatten()
        .filter(|model| model["id"] == json!(id))
        .collect();
    holds(
        "list.models",
        !models.is_empty(),
        format!("the model {id} in the list"),
        list,
    )?;
    equal(
        "list.once",
        &format!("how often the model {id} is listed"),
        1,
        models.len(),
    )?;
    let model = models[0];
    holds(
        "list.model_shape",
        model["object"] == "model" && model["created"].is_u64() && model["owned_by"].is_string(),
        "the fields object (\"model\"), created and owned_by of a model",
        model,
    )
}

/// A message's tool call as OpenAI's API has it.
fn called(id: &str, name: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// The fields of a tool call that clients use, whatever else a gateway writes beside them.
fn as_called(call: &Value) -> Value {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    called(
        &text(&call["id"]),
        &text(&call["function"]["name"]),
        &text(&call["function"]["arguments"]),
    )
}
