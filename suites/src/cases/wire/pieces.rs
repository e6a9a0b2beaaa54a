//! WIRE, of pieces that do not fit: several finish reasons, text behind one, and characters that
//! are cut between two events.

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, equal, holds, json};
use gauntlet_harness::client::Transcript;
use gauntlet_harness::llm::{Responder, chat, raw};
use gauntlet_harness::spec::{Protocol, Spec};
use gauntlet_harness::subject::Capability;
use serde_json::{Value, json};

use crate::cases::CaseRow;
use crate::cases::support::{
    Choice, DONE, choices, chunk, chunk_of, events, of_choice, record, records, refused_unasked,
    role, silent_if, silent_in, with_choices, with_tools, with_usage,
};

const STREAM: &[Capability] = &[Capability::Chat, Capability::Stream];

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "WIRE-14",
        why: "A provider repeated its finish_reason, or wrote an empty one into every event; clients \
              stopped at the first and lost the rest (https://github.com/ollama/ollama/issues/4357).",
        shown: "Providers send two finish reasons, a text behind one, an empty one, and a text in their \
                last record. The client counts the finish reasons of each choice, and compares the \
                text.",
        remedy: "Keep, for each choice, whether its finish_reason has been passed on: replace a further \
                 or empty one by null, and pass the text on.",
        needs: STREAM,
        instances: &[
            "two finish reasons",
            "two different finish reasons",
            "text after the finish_reason",
            "text with each finish_reason",
            "empty finish reasons",
            "usage with the second finish_reason",
            "tool calls, two finish reasons",
            "two choices, two finish reasons each",
            "two choices, text of the second after the end of the first",
            "Ollama, text in the last record",
        ],
        spec: || {
            Spec::solo()
                .provider("p2", Protocol::OLLAMA)
                .optional_model("local", &["p2"])
        },
        run: &wire_14,
    },
    CaseRow {
        id: "WIRE-15",
        why: "A server whose strings are UTF-16 cut an emoji between two events, and each half became \
              a replacement character (https://github.com/elizaOS/eliza/issues/30904).",
        shown: "The provider streams the two halves of surrogate pairs in two events, as JSON allows: \
                of one choice, of two choices interleaved, in tool arguments, and with other events \
                between them. The client joins the texts of each choice.",
        remedy: "Pass the escapes on as they are, or keep a first half back until the next text of its \
                 choice.",
        needs: STREAM,
        instances: &[
            "one choice",
            "upper-case digits",
            "two pairs over three events",
            "an event between the halves",
            "the second half with the finish_reason",
            "two choices interleaved",
            "two choices in one event",
            "tool arguments",
            "a backslash before ud83d",
            "plain",
        ],
        spec: Spec::solo,
        run: &wire_15,
    },
];

/// An answer in pieces, and what a client must read of each of its choices.
struct Pieces {
    name: &'static str,
    asked: fn(Value) -> Value,
    body: Vec<String>,
    /// The text and the finish reasons that each choice may have.
    read: Vec<(&'static str, &'static [&'static str])>,
}

fn content(index: u64, text: &str, finish: Option<&str>) -> Value {
    of_choice(index, json!({ "content": text }), finish)
}

fn same(body: Value) -> Value {
    body
}

fn two(body: Value) -> Value {
    with_choices(body, 2)
}

fn finishes() -> Vec<Pieces> {
    let end = |index, finish| chunk_of(&[of_choice(index, json!({}), Some(finish))]);
    let text = |index, text: &str, finish| chunk_of(&[content(index, text, finish)]);
    let again = json!({
        "id": "chatcmpl-strm", "object": "chat.completion.chunk", "created": 1, "model": "m-p1",
        "choices": [of_choice(0, json!({}), Some("stop"))],
        "usage": {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19},
    });
    let call = json!({"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
        "function": {"name": "time", "arguments": "{}"}}]});
    let row = |name, body, read| Pieces {
        name,
        asked: same,
        body,
        read: vec![read],
    };
    vec![
        row(
            "two finish reasons",
            vec![chunk("Paris", None), end(0, "stop"), end(0, "stop")],
            ("Paris", &["stop"]),
        ),
        row(
            "two different finish reasons",
            vec![chunk("Paris", None), end(0, "length"), end(0, "stop")],
            ("Paris", &["length", "stop"]),
        ),
        row(
            "text after the finish_reason",
            vec![
                chunk("Par", None),
                end(0, "stop"),
                chunk("is", None),
                chunk("!", None),
            ],
            ("Paris!", &["stop"]),
        ),
        row(
            "text with each finish_reason",
            vec![text(0, "Par", Some("stop")), text(0, "is", Some("stop"))],
            ("Paris", &["stop"]),
        ),
        row(
            "empty finish reasons",
            vec![
                text(0, "Par", Some("")),
                text(0, "is", Some("")),
                end(0, "stop"),
            ],
            ("Paris", &["stop"]),
        ),
        Pieces {
            asked: with_usage,
            ..row(
                "usage with the second finish_reason",
                vec![
                    chunk("Paris", None),
                    end(0, "stop"),
                    format!("data: {again}\n\n"),
                ],
                ("Paris", &["stop"]),
            )
        },
        Pieces {
            asked: with_tools,
            ..row(
                "tool calls, two finish reasons",
                vec![
                    chunk_of(&[of_choice(0, call, None)]),
                    end(0, "tool_calls"),
                    end(0, "tool_calls"),
                ],
                ("", &["tool_calls"]),
            )
        },
        Pieces {
            asked: two,
            read: vec![("Paris", &["stop"]), ("Rome", &["stop"])],
            ..row(
                "two choices, two finish reasons each",
                vec![
                    text(0, "Paris", None),
                    text(1, "Rome", None),
                    end(0, "stop"),
                    end(1, "stop"),
                    end(1, "stop"),
                    end(0, "stop"),
                ],
                ("", &[]),
            )
        },
        Pieces {
            asked: two,
            read: vec![("Paris", &["stop"]), ("Rome", &["length"])],
            ..row(
                "two choices, text of the second after the end of the first",
                vec![
                    text(0, "Paris", Some("stop")),
                    text(1, "Ro", None),
                    text(1, "me", Some("length")),
                ],
                ("", &[]),
            )
        },
    ]
}

async fn wire_14(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    for row in finishes() {
        deviations.note(ctx.examine(row.name, one_finish(ctx, &row)).await)?;
    }
    let name = "Ollama, text in the last record";
    if ctx.instance_if(Capability::Ollama, name) {
        deviations.note(ctx.examine(name, text_in_the_last_record(ctx)).await)?;
    }
    deviations.result()
}

/// Streams the pieces; returns what a client reads, or `None` if the gateway refused the request.
async fn streamed(
    ctx: &Ctx,
    row: &Pieces,
) -> Result<Option<Transcript>, gauntlet_harness::case::Failure> {
    // given
    let p1 = ctx.stub("p1")?;
    let prompt = format!("({})", row.name);
    let mut body = vec![role()];
    body.extend(row.body.iter().cloned());
    body.push(DONE.into());
    let answer = events(body);
    let several = row.read.len() > 1;
    let answer = if several { answer.optional() } else { answer };
    p1.mount(chat().user_says(&prompt), answer).await;
    // when
    let asked = (row.asked)(ctx.prompt("solo", &prompt));
    let stream = ctx.client.streamed(asked).await?;
    let refused = several && refused_unasked(&stream, p1, &prompt);
    Ok(Some(stream).filter(|_| !refused))
}

async fn one_finish(ctx: &Ctx, row: &Pieces) -> CaseResult {
    let Some(stream) = streamed(ctx, row).await? else {
        return Ok(());
    };
    // then
    let read = choices(&stream);
    let empty = Choice::default();
    for (index, (text, may)) in (0..).zip(&row.read) {
        let choice = read.get(&index).unwrap_or(&empty);
        equal(
            "stream.text",
            &format!("the text of choice {index}"),
            *text,
            choice.text.as_str(),
        )
        .map_err(silent_in(&stream))?;
        let (empty, finish): (Vec<&str>, Vec<&str>) = choice
            .finish
            .iter()
            .map(String::as_str)
            .partition(|reason| reason.is_empty());
        holds(
            "finish.empty",
            empty.is_empty(),
            format!("no empty finish_reason of choice {index}"),
            format_args!("{} of them", empty.len()),
        )
        .map_err(silent_in(&stream))?;
        let fact = if row.read.len() > 1 && finish.len() < 2 {
            "finish.of_each_choice"
        } else {
            "finish.reasons"
        };
        holds(
            fact,
            matches!(finish.as_slice(), [one] if may.contains(one)),
            format!("one finish_reason of choice {index} ({})", may.join(" or ")),
            format_args!("{finish:?}"),
        )
        .map_err(silent_in(&stream))?;
    }
    if row.name.starts_with("usage") {
        let usage = stream.usage.clone().unwrap_or_default();
        holds(
            "usage.counts",
            usage["prompt_tokens"] == 12 && usage["completion_tokens"] == 7,
            "the usage of the event with the second finish_reason",
            usage,
        )
        .map_err(silent_in(&stream))?;
    }
    holds(
        "stream.complete",
        stream.looks_complete() && stream.done_count == 1,
        "a whole stream with one [DONE]",
        format_args!(
            "status {}, {} [DONE] events, error {}",
            stream.status,
            stream.done_count,
            json(&stream.error)
        ),
    )
}

async fn text_in_the_last_record(ctx: &Ctx) -> CaseResult {
    // given
    let answer = records([record("Par", false), record("is", true)]);
    ctx.stub("p2")?.answers(answer);
    // when
    let stream = ctx.client.streamed(ctx.prompt("local", "capital")).await?;
    // then
    equal(
        "ollama.text",
        "the text of the stream",
        "Paris",
        stream.text.as_str(),
    )
    .map_err(silent_in(&stream))?;
    equal(
        "ollama.finish_reasons",
        "the list of finish reasons",
        &vec!["stop".to_string()],
        &stream.finish_reasons,
    )
    .map_err(silent_in(&stream))
}

/// The event with this content as JSON of its own spelling, with escapes.
fn spelt(index: u64, content: &str, finish: Option<&str>) -> String {
    chunk_of(&[self::content(index, "?", finish)]).replace("\"?\"", &format!("\"{content}\""))
}

fn halves() -> Vec<Pieces> {
    let row = |name, body, read| Pieces {
        name,
        asked: same,
        body,
        read: vec![(read, &["stop"])],
    };
    let stop = || chunk("", Some("stop"));
    let both = |first: &str, second: &str| {
        chunk_of(&[content(0, "?0", None), content(1, "?1", None)])
            .replace("?0", first)
            .replace("?1", second)
    };
    let ends = || {
        let end = |index| of_choice(index, json!({}), Some("stop"));
        chunk_of(&[end(0), end(1)])
    };
    let fragment = |text: &str, begins: bool| {
        let mut call = json!({"index": 0, "function": {"arguments": "?"}});
        if begins {
            call["id"] = "call_1".into();
            call["type"] = "function".into();
            call["function"]["name"] = "time".into();
        }
        chunk_of(&[of_choice(0, json!({"tool_calls": [call]}), None)])
            .replace("\"?\"", &format!("\"{text}\""))
    };
    let two_choices = |name, body| Pieces {
        asked: two,
        read: vec![("a😀!", &["stop"]), ("b🦀!", &["stop"])],
        ..row(name, body, "")
    };
    vec![
        row(
            "one choice",
            vec![
                spelt(0, r"Hi \ud83d", None),
                spelt(0, r"\ude00!", None),
                stop(),
            ],
            "Hi 😀!",
        ),
        row(
            "upper-case digits",
            vec![
                spelt(0, r"Hi \uD83D", None),
                spelt(0, r"\uDE00!", None),
                stop(),
            ],
            "Hi 😀!",
        ),
        row(
            "two pairs over three events",
            vec![
                spelt(0, r"\ud83d", None),
                spelt(0, r"\ude00\ud83e", None),
                spelt(0, r"\udd80", None),
                stop(),
            ],
            "😀🦀",
        ),
        row(
            "an event between the halves",
            vec![
                spelt(0, r"Hi \ud83d", None),
                ": keep-alive\n\n".into(),
                chunk("", None),
                spelt(0, "", None),
                spelt(0, r"\ude00", None),
                stop(),
            ],
            "Hi 😀",
        ),
        row(
            "the second half with the finish_reason",
            vec![
                spelt(0, r"Hi \ud83d", None),
                spelt(0, r"\ude00", Some("stop")),
            ],
            "Hi 😀",
        ),
        two_choices(
            "two choices interleaved",
            vec![
                spelt(0, r"a\ud83d", None),
                spelt(1, r"b\ud83e", None),
                spelt(0, r"\ude00!", None),
                spelt(1, r"\udd80!", None),
                ends(),
            ],
        ),
        two_choices(
            "two choices in one event",
            vec![
                both(r"a\ud83d", r"b\ud83e"),
                both(r"\ude00!", r"\udd80!"),
                ends(),
            ],
        ),
        Pieces {
            asked: with_tools,
            read: vec![("", &["tool_calls"])],
            ..row(
                "tool arguments",
                vec![
                    fragment(r#"{\"city\": \"\ud83d"#, true),
                    fragment(r#"\ude00\"}"#, false),
                    chunk("", Some("tool_calls")),
                ],
                "",
            )
        },
        row(
            "a backslash before ud83d",
            vec![
                spelt(0, r"write \\ud83d", None),
                spelt(0, r"\\ude00!", None),
                stop(),
            ],
            r"write \ud83d\ude00!",
        ),
    ]
}

async fn wire_15(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    for row in halves() {
        deviations.note(ctx.examine(row.name, whole_characters(ctx, &row)).await)?;
    }
    deviations.note(ctx.examine("plain", plain_pairs(ctx)).await)?;
    deviations.result()
}

async fn whole_characters(ctx: &Ctx, row: &Pieces) -> CaseResult {
    let Some(stream) = streamed(ctx, row).await? else {
        return Ok(());
    };
    // then
    holds(
        "stream.complete",
        stream.looks_complete(),
        "a whole stream",
        format_args!("status {}, error {}", stream.status, json(&stream.error)),
    )?;
    let read = choices(&stream);
    let empty = Choice::default();
    let fact = match row.name {
        name if name.starts_with("two choices") => "choices.text",
        "a backslash before ud83d" => "control.text",
        _ => "stream.replaced",
    };
    for (index, (text, _)) in (0..).zip(&row.read) {
        let choice = read.get(&index).unwrap_or(&empty);
        equal(
            fact,
            &format!("the text of choice {index}"),
            *text,
            choice.text.as_str(),
        )
        .map_err(silent_in(&stream))?;
    }
    if row.name == "tool arguments" {
        let call = read.get(&0).and_then(|choice| choice.calls.get(&0));
        let arguments = call.map_or("", |(_, arguments)| arguments.as_str());
        equal(
            "tools.arguments",
            "the text of the arguments",
            r#"{"city": "😀"}"#,
            arguments,
        )
        .map_err(silent_in(&stream))?;
    }
    Ok(())
}

async fn plain_pairs(ctx: &Ctx) -> CaseResult {
    // given
    let message = json!({"role": "assistant", "content": "?"});
    let body = json!({
        "id": "chatcmpl-wire", "object": "chat.completion", "created": 1, "model": "m-p1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    });
    let body = body
        .to_string()
        .replace("\"?\"", r#""Hi \ud83d\ude00! \\ud83d""#);
    let answer: Responder = raw(200, "application/json", body);
    ctx.stub("p1")?
        .mount(chat().user_says("(plain)"), answer)
        .await;
    // when
    let plain = ctx.client.chat(ctx.prompt("solo", "(plain)")).await?;
    // then
    equal(
        "plain.text",
        "the text of the plain answer",
        r"Hi 😀! \ud83d",
        plain.content().as_str(),
    )
    .map_err(silent_if(plain.status == 200))
}
