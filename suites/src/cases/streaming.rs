//! STRM: a stream that breaks reports it, and never looks finished.

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds, json};
use gauntlet_harness::client::{StreamReply, Transcript};
use gauntlet_harness::gate::{guard, poll_until};
use gauntlet_harness::llm::{chat, raw, reply};
use gauntlet_harness::plan::{Framing, Plan, Step};
use gauntlet_harness::spec::Timeouts;
use gauntlet_harness::subject::Capability;
use serde_json::json;

use super::CaseRow;
use super::rows::{
    By, Row, each, everywhere, everywhere_within, note_each, one_of_two_finished, ready, row,
    weather,
};
use super::support::{
    DONE, broken, chunk, chunk_of, events, of_choice, record, records, role, silent_in,
    unexercised_if_hung, until_asked, usage_chunk, whole, with_tools, with_usage,
};

const STREAM: &[Capability] = &[Capability::Chat, Capability::Stream];

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "STRM-01",
        why: "A connection that ended in order after half an answer was passed on as a finished one \
              (https://github.com/maximhq/bifrost/issues/5546).",
        shown: "The provider ends its body in order, without finish_reason and without [DONE]: after \
                text, after the role alone, within a tool call, and with one of two choices unfinished.",
        remedy: "Count a stream as finished only after its finish_reason; otherwise send an error event \
                 and no [DONE].",
        needs: STREAM,
        instances: &[
            "after text",
            "after the role",
            "tool calls",
            "two choices, one finished",
            "body until close",
            "body with a length",
            "second candidate",
            "Ollama",
        ],
        spec: everywhere,
        run: &strm_01,
    },
    CaseRow {
        id: "STRM-02",
        why: "A provider's reset became a clean finish_reason \"stop\" and [DONE] \
              (https://github.com/BerriAI/litellm/issues/33404).",
        shown: "The provider sends one text, two or forty, or a part of a tool call. It resets or closes \
                the connection once the gateway has read them.",
        remedy: "Forward what came, then an error event, and never make up a terminator.",
        needs: STREAM,
        instances: &[
            "after two texts",
            "after the first text",
            "after many texts",
            "closed early",
            "short of its length",
            "tool calls",
            "two choices, one finished",
            "second candidate",
            "Ollama",
            "Ollama, closed early",
        ],
        spec: everywhere,
        run: &strm_02,
    },
    CaseRow {
        id: "STRM-03",
        why: "Half an event is half a JSON document: the client's parser fails inside its own loop, \
              far from the cause.",
        shown: "The provider's stream is cut, reset or ended inside an event: in its JSON, its field name, \
                a character, a tool call, and before its blank line.",
        remedy: "Forward an event only when its blank line has come.",
        needs: STREAM,
        instances: &[
            "within its JSON",
            "within its JSON, reset",
            "within its JSON, end in order",
            "within its field name",
            "within a character",
            "before its blank line",
            "tool calls",
            "second candidate",
            "Ollama",
            "Ollama, end in order",
        ],
        spec: everywhere,
        run: &strm_03,
    },
    CaseRow {
        id: "STRM-04",
        why: "What is skipped in silence may have been text, and a crash takes other streams with it \
              (https://github.com/BerriAI/litellm/issues/40404).",
        shown: "The provider sends an event that is not JSON, then ends properly. The next stream, and one \
                that is under way meanwhile, must be served.",
        remedy: "End the stream with an error event when an event cannot be read.",
        needs: STREAM,
        instances: &[
            "half a document",
            "bare text",
            "HTML",
            "before the first text",
            "tool calls",
            "second candidate",
            "Ollama, half a record",
            "Ollama, bare text",
            "another stream meanwhile",
        ],
        spec: everywhere,
        run: &strm_04,
    },
    CaseRow {
        id: "STRM-05",
        why: "510 overload errors inside streams within 80 minutes were logged as successes, without \
              one fallback (https://github.com/BerriAI/litellm/pull/38153).",
        shown: "OpenAI providers send errors in band in all forms that servers use, before and after their \
                text, and Ollama providers an error line. A member `error` that is null is no error.",
        remedy: "Look for an error in every event before it is forwarded, and keep its type and code.",
        needs: STREAM,
        instances: &[
            "status 429",
            "status 500",
            "status 503",
            "event named error",
            "error as a text",
            "finish_reason error",
            "before the first text",
            "tool calls",
            "errors that are null",
            "second candidate",
            "Ollama",
            "Ollama, before the first text",
        ],
        spec: everywhere,
        run: &strm_05,
    },
    CaseRow {
        id: "STRM-06",
        why: "A client that has closed its stream at [DONE] never sees what follows; a client that \
              has not sees two answers.",
        shown: "The provider sends a whole answer and [DONE], and then text, usage, an error, a malformed \
                event, a second [DONE], a reset, or nothing.",
        remedy: "Stop reading at [DONE].",
        needs: STREAM,
        instances: &[
            "text and [DONE] after [DONE]",
            "text after [DONE] in a later read",
            "error after [DONE]",
            "malformed event after [DONE]",
            "usage after [DONE]",
            "silence after [DONE]",
            "reset after [DONE]",
            "second candidate",
            "Ollama, text after the last record",
            "Ollama, silence after the last record",
        ],
        spec: everywhere,
        run: &strm_06,
    },
    CaseRow {
        id: "STRM-07",
        why: "A login page with status 200 became an empty, successful stream \
              (https://github.com/Portkey-AI/gateway/issues/267).",
        shown: "The provider answers a streamed request with 200 and an HTML page, a text, or an error \
                document.",
        remedy: "Look at the content type before the status line is sent to the client, and answer 502.",
        needs: STREAM,
        instances: &[
            "HTML",
            "plain text",
            "JSON error",
            "second candidate",
            "Ollama, HTML",
        ],
        spec: everywhere,
        run: &strm_07,
    },
    CaseRow {
        id: "STRM-08",
        why: "A decoder that waits for a blank line that never comes keeps everything until the \
              process is killed.",
        shown: "The provider begins an event of 64 MiB, in one line or in many, and never ends it. The gateway \
                must stop taking it before it has half of it, and report that the stream broke.",
        remedy: "Bound the size of one event (8 MiB is ample), and end the stream with an error beyond \
                 the bound.",
        needs: STREAM,
        instances: &["one line", "many lines", "Ollama"],
        // a busy machine must not end the stream before the gateway does
        spec: || {
            everywhere_within(Timeouts {
                idle_ms: Some(3_000),
                ..Timeouts::PATIENT
            })
        },
        run: &strm_08,
    },
    CaseRow {
        id: "STRM-09",
        why: "A cut stream came back as 400, so clients never tried again \
              (https://github.com/BerriAI/litellm/issues/41777).",
        shown: "The provider cuts or resets a plain answer, and a stream before and after its first text.",
        remedy: "Map a broken connection to 502 or 504, and in band to a server error.",
        needs: STREAM,
        instances: &[
            "plain, cut within the body",
            "plain, reset within the body",
            "plain, closed without an answer",
            "plain, short of its length",
            "plain, second candidate",
            "plain, Ollama",
            "streamed, cut before the first text",
            "streamed, reset before the first text",
            "streamed, cut after the first text",
            "streamed, reset after the first text",
            "streamed, second candidate",
            "streamed, Ollama",
        ],
        spec: everywhere,
        run: &strm_09,
    },
    CaseRow {
        id: "STRM-12",
        why: "A client that waits for [DONE] and looks at nothing else takes a stream that broke for a \
              whole one.",
        shown: "Providers break their streams in all ways: errors in band, also with [DONE] or text behind \
                them, resets, cuts, a stall, a malformed event. No [DONE] may follow the error event \
                that the client gets.",
        remedy: "End the stream with its error event, and do not pass on what the provider sends after \
                 one.",
        needs: STREAM,
        instances: &[
            "an error in band",
            "an error in band and [DONE]",
            "an error event and text",
            "a reset",
            "a cut",
            "an end in order",
            "a malformed event",
            "a stall",
            "second candidate",
            "Ollama, an error in band",
            "Ollama, a cut",
        ],
        spec: || {
            everywhere_within(Timeouts {
                idle_ms: Some(1_000),
                ..Timeouts::PATIENT
            })
        },
        run: &strm_12,
    },
    CaseRow {
        id: "STRM-13",
        why: "Clients join the chunks of an answer by their id; chunks with other ids are other answers \
              to them.",
        shown: "OpenAI and Ollama providers stream texts and tool calls with usage, one alone and two at \
                once. All chunks of a stream must have one id, and two streams two ids.",
        remedy: "Make the id of a translated stream once, before its first chunk.",
        needs: STREAM,
        instances: &[
            "OpenAI",
            "OpenAI, tool calls",
            "OpenAI, two streams at once",
            "second candidate after a role",
            "Ollama",
            "Ollama, tool calls",
            "Ollama, two streams at once",
        ],
        spec: everywhere,
        run: &strm_13,
    },
];

/// The text, and an error event.
fn has_text_and_breaks(row: &Row, stream: &Transcript) -> CaseResult {
    row.has_text(stream)?;
    broken(stream)
}

async fn strm_01(ctx: &Ctx) -> CaseResult {
    let ends = || reply("").tokens(["Par", "is"]).without_finish();
    let framed = |framing| {
        ends().plan(Plan {
            framing,
            ..Plan::default()
        })
    };
    let rows = vec![
        row("after text", ends(), "Paris"),
        row("after the role", events([role()]), ""),
        row("tool calls", weather().without_finish(), "").tools(),
        row(
            "two choices, one finished",
            events(one_of_two_finished()),
            "Par",
        )
        .two_choices(),
        row("body until close", framed(Framing::UntilClose), "Paris"),
        row(
            "body with a length",
            framed(Framing::WrongLength(0)),
            "Paris",
        ),
        row("second candidate", ends(), "Paris").by(By::Second),
        row("Ollama", ends(), "Paris").by(By::Ollama),
    ];
    each(ctx, rows, has_text_and_breaks).await
}

async fn strm_02(ctx: &Ctx) -> CaseResult {
    let many: Vec<String> = (0..40).map(|n| format!("{n} ")).collect();
    let after = |n, end| {
        reply("")
            .tokens(["Par", "is", "!"])
            .plan(Plan::events_then(n, end))
    };
    // the first record of Ollama has a text, and the first event of OpenAI has none
    let rows = vec![
        row("after two texts", after(3, Step::Reset), "Paris"),
        row("after the first text", after(2, Step::Reset), "Par"),
        row(
            "after many texts",
            reply("")
                .tokens(many.clone())
                .plan(Plan::events_then(41, Step::Reset)),
            &many.concat(),
        ),
        row("closed early", after(3, Step::Cut), "Paris"),
        row(
            "short of its length",
            reply("").tokens(["Par", "is", "!"]).plan(Plan {
                steps: vec![Step::Head, Step::Events(3), Step::Cut],
                framing: Framing::WrongLength(0),
            }),
            "Paris",
        ),
        row(
            "tool calls",
            weather().plan(Plan::events_then(4, Step::Reset)),
            "",
        )
        .tools(),
        row(
            "two choices, one finished",
            events(one_of_two_finished()).plan(Plan::events_then(4, Step::Reset)),
            "Par",
        )
        .two_choices(),
        row("second candidate", after(3, Step::Reset), "Paris").by(By::Second),
        row("Ollama", after(2, Step::Reset), "Paris").by(By::Ollama),
        row("Ollama, closed early", after(2, Step::Cut), "Paris").by(By::Ollama),
    ];
    each(ctx, rows, has_text_and_breaks).await
}

async fn strm_03(ctx: &Ctx) -> CaseResult {
    let whole = [role(), chunk("Par", None)].concat();
    let last = chunk("is é", None);
    let at = |text: &str| last.find(text).unwrap_or_default();
    let body = || events([whole.as_str(), last.as_str()]);
    let cut = |bytes, end| {
        body().plan(Plan::of([
            Step::Head,
            Step::Events(2),
            Step::Bytes(bytes),
            end,
        ]))
    };
    let call = json!({"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
        "function": {"name": "time", "arguments": "{\"zone\": \"UTC\"}"}}]});
    let call = chunk_of(&[of_choice(0, call, None)]);
    let within_call = call.find("UTC").unwrap_or_default();
    let ollama = records([record("Par", false), record("is", false)]);
    let within = |end| {
        ollama.clone().plan(Plan::of([
            Step::Head,
            Step::Events(1),
            Step::Bytes(40),
            end,
        ]))
    };
    let half = record("is", false);
    let in_order = format!("{}{}", record("Par", false), &half[..40]);
    let rows = vec![
        row("within its JSON", cut(70, Step::Cut), "Par"),
        row("within its JSON, reset", cut(70, Step::Reset), "Par"),
        row(
            "within its JSON, end in order",
            events([whole.as_str(), &last[..70]]),
            "Par",
        ),
        row("within its field name", cut(3, Step::Cut), "Par"),
        row("within a character", cut(at("é") + 1, Step::Cut), "Par"),
        row(
            "before its blank line",
            cut(last.len() - 1, Step::Cut),
            "Par",
        ),
        row(
            "tool calls",
            events([whole.as_str(), call.as_str()]).plan(Plan::of([
                Step::Head,
                Step::Events(2),
                Step::Bytes(within_call),
                Step::Cut,
            ])),
            "Par",
        )
        .tools(),
        row("second candidate", cut(70, Step::Cut), "Par").by(By::Second),
        row("Ollama", within(Step::Cut), "Par").by(By::Ollama),
        row(
            "Ollama, end in order",
            raw(200, "application/x-ndjson", in_order),
            "Par",
        )
        .by(By::Ollama),
    ];
    each(ctx, rows, |row, stream| {
        // whether an event has all members of a chunk is judged by WIRE-03
        let torn = stream
            .events
            .iter()
            .find(|event| !event.is_done() && event.json.is_none());
        holds(
            "stream.shape",
            torn.is_none(),
            "every event whole",
            torn.map_or_else(String::new, |event| {
                format!("event {} ({})", event.n, event.data)
            }),
        )?;
        // of an event that lacks nothing but its blank line all is there
        if row.name != "before its blank line" {
            row.has_text(stream)?;
        }
        holds(
            "stream.partial_event",
            !stream.rest.contains("chat.completion.chunk"),
            "nothing of the event that was cut",
            &stream.rest,
        )?;
        broken(stream)
    })
    .await
}

async fn strm_04(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let with = |event: &str| {
        events([
            &role(),
            &chunk("Par", None),
            event,
            &chunk("is", None),
            &chunk("", Some("stop")),
            DONE,
        ])
    };
    let half = "data: {\"choices\": [ {\"delta\"\n\n";
    let call = json!({"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
        "function": {"name": "time", "arguments": "{}"}}]});
    let ollama = |line: &str| {
        let lines = [
            &record("Par", false),
            line,
            &record("is", false),
            &record("", true),
        ];
        raw(
            200,
            "application/x-ndjson",
            lines.map(str::to_owned).concat(),
        )
    };
    let rows = vec![
        row("half a document", with(half), ""),
        row("bare text", with("data: out of memory\n\n"), ""),
        row("HTML", with("data: <html>502</html>\n\n"), ""),
        row(
            "before the first text",
            events([half, &chunk("Paris", None), &chunk("", Some("stop")), DONE]),
            "",
        ),
        row(
            "tool calls",
            events([
                &chunk_of(&[of_choice(0, call, None)]),
                half,
                &chunk("", Some("tool_calls")),
                DONE,
            ]),
            "",
        )
        .tools(),
        row("second candidate", with(half), "").by(By::Second),
        row("Ollama, half a record", ollama("{\"message\": {\n"), "").by(By::Ollama),
        row("Ollama, bare text", ollama("out of memory\n"), "").by(By::Ollama),
    ];
    let beside = reply("").tokens(["Be", "rn"]).plan(Plan::of([
        Step::Head,
        Step::Events(2),
        Step::Hold("beside".into()),
        Step::Rest,
    ]));
    p1.mount(chat().user_says("beside"), beside).await;
    p1.mount(chat().user_says("healthy"), reply("Bern")).await;
    // when
    let mut other = ctx.client.stream(ctx.prompt("solo", "beside")).await?;
    let begun = other.text_of(2).await?;
    let mut deviations = Deviations::new();
    note_each(ctx, rows, &mut deviations, |_, stream| broken(stream)).await?;
    // then
    let next = async {
        until_asked(ctx, "solo", p1).await?;
        let next = ctx.client.streamed(ctx.prompt("solo", "healthy")).await?;
        equal(
            "next.text",
            "the text of the next stream",
            "Bern",
            next.text.as_str(),
        )
    };
    deviations.note(next.await)?;
    let name = "another stream meanwhile";
    let meanwhile = async {
        ctx.gates.gate("beside").open();
        let rest = other.collect().await?;
        equal(
            "other.text",
            "the text of the stream that was under way",
            "Bern",
            &format!("{begun}{}", rest.text),
        )?;
        holds(
            "other.complete",
            rest.looks_complete(),
            "a whole stream",
            format_args!("error {}, end {}", json(&rest.error), rest.end),
        )
    };
    deviations.note(ctx.examine(name, meanwhile).await)?;
    deviations.result()
}

async fn strm_05(ctx: &Ctx) -> CaseResult {
    let in_band = |status, text: &[&str]| {
        reply("")
            .tokens(text.iter().copied())
            .then_error(status, "no more today")
    };
    let spelt = |event: &str| events([&role(), &chunk("Par", None), event, DONE]);
    let limit = json!({"message": "no more today", "type": "requests", "param": null,
        "code": "rate_limit_exceeded"});
    let in_choice = json!({
        "id": "chatcmpl-strm", "object": "chat.completion.chunk", "created": 1, "model": "m-p1",
        "error": {"code": "server_error", "message": "the provider is gone"},
        "choices": [of_choice(0, json!({"content": ""}), Some("error"))],
    });
    let call = json!({"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
        "function": {"name": "time", "arguments": "{\"zo"}}]});
    let none = |event: String| event.replacen("data: {", "data: {\"error\":null,", 1);
    let rows = vec![
        row("status 429", in_band(429, &["Par", "is"]), "Paris"),
        row("status 500", in_band(500, &["Par", "is"]), "Paris"),
        row("status 503", in_band(503, &["Par", "is"]), "Paris"),
        row(
            "event named error",
            spelt(&format!(
                "event: error\ndata: {}\n\n",
                json!({"error": limit})
            )),
            "Par",
        ),
        row(
            "error as a text",
            spelt("data: {\"error\": \"out of memory\"}\n\n"),
            "Par",
        ),
        row(
            "finish_reason error",
            spelt(&format!("data: {in_choice}\n\n")),
            "Par",
        ),
        row("before the first text", in_band(429, &[]), ""),
        row(
            "tool calls",
            events([
                chunk_of(&[of_choice(0, call, None)]),
                format!("data: {}\n\n", json!({"error": limit})),
            ]),
            "",
        )
        .tools(),
        row(
            "errors that are null",
            events([
                none(role()),
                none(chunk("Paris", None)),
                none(chunk("", Some("stop"))),
                DONE.into(),
            ]),
            "Paris",
        ),
        row("second candidate", in_band(429, &["Par", "is"]), "Paris").by(By::Second),
        row("Ollama", in_band(500, &["Be", "rn"]), "Bern").by(By::Ollama),
        row("Ollama, before the first text", in_band(500, &[]), "").by(By::Ollama),
    ];
    each(ctx, rows, |row, stream| {
        if row.name == "errors that are null" {
            return holds(
                "control.complete",
                stream.looks_complete() && stream.text == row.text,
                "a whole stream whose events have a member `error` that is null",
                format_args!(
                    "status {}, text {:?}, error {}",
                    stream.status,
                    stream.text,
                    json(&stream.error)
                ),
            );
        }
        row.has_text(stream)?;
        broken(stream)?;
        let class: &[&str] = match row.name {
            "status 429" | "event named error" | "second candidate" | "tool calls" => {
                &["rate_limit", "429"]
            }
            "status 503" => &["overloaded", "503", "unavailable"],
            "status 500" | "finish_reason error" => &["server_error", "500", "502"],
            _ => return Ok(()),
        };
        let error = stream
            .error
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let seen = format!("{} {error}", stream.status);
        holds(
            "error.class",
            class.iter().any(|word| seen.contains(word)),
            format!("an error that keeps its class ({})", class.join(" or ")),
            error,
        )
    })
    .await
}

async fn strm_06(ctx: &Ctx) -> CaseResult {
    let answer = [
        role(),
        chunk("Paris", None),
        chunk("", Some("stop")),
        DONE.into(),
    ];
    let and = |more: &[&str]| {
        let answer = answer.iter().map(String::as_str);
        events(answer.chain(more.iter().copied()))
    };
    let later = chunk(" and Rome", None);
    // a gateway may close the connection at [DONE], before the rest is sent
    let then = |step| {
        and(&[&later])
            .plan(Plan::of([Step::Head, Step::Events(4), step, Step::Rest]))
            .optional()
    };
    let failed = "data: {\"error\": {\"message\": \"too late\", \"type\": \"server_error\"}}\n\n";
    let ollama = || vec![record("Par", false), record("is", false), record("", true)];
    let mut ollama_more = ollama();
    ollama_more.push(record(" and Rome", false));
    let rows = vec![
        row(
            "text and [DONE] after [DONE]",
            and(&[&later, DONE]),
            "Paris",
        ),
        row(
            "text after [DONE] in a later read",
            then(Step::Drain),
            "Paris",
        ),
        row("error after [DONE]", and(&[failed]), "Paris"),
        row(
            "malformed event after [DONE]",
            and(&["data: {\"choices\": [\n\n"]),
            "Paris",
        ),
        row("usage after [DONE]", and(&[&usage_chunk()]), "Paris"),
        row("silence after [DONE]", then(Step::Stall), "Paris"),
        row("reset after [DONE]", then(Step::Reset), "Paris"),
        row("second candidate", and(&[&later, DONE]), "Paris").by(By::Second),
        row(
            "Ollama, text after the last record",
            records(ollama_more),
            "Paris",
        )
        .by(By::Ollama),
        row(
            "Ollama, silence after the last record",
            records(ollama())
                .plan(Plan::events_then(3, Step::Stall))
                .optional(),
            "Paris",
        )
        .by(By::Ollama),
    ];
    each(ctx, rows, |row, stream| {
        row.has_text(stream)?;
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
        whole(stream, &row.text)
    })
    .await
}

async fn strm_07(ctx: &Ctx) -> CaseResult {
    let html = || raw(200, "text/html", "<html><body>Please log in</body></html>");
    let failed = json!({"error": {"message": "overloaded", "type": "server_error", "code": null}});
    let rows = vec![
        row("HTML", html(), ""),
        row("plain text", raw(200, "text/plain", "come back later"), ""),
        row(
            "JSON error",
            raw(200, "application/json", failed.to_string()),
            "",
        ),
        row("second candidate", html(), "").by(By::Second),
        row("Ollama, HTML", html(), "").by(By::Ollama),
    ];
    each(ctx, rows, |row, stream| {
        // an error of the provider's may have a status of its own
        let least = if row.name == "JSON error" { 400 } else { 500 };
        holds(
            "stream.status",
            stream.status >= least,
            format!("a status of {least} or more"),
            stream.status,
        )
        .map_err(silent_in(stream))?;
        row.has_text(stream)
    })
    .await
}

async fn strm_08(ctx: &Ctx) -> CaseResult {
    let line = |text: &str| {
        let mut body = chunk("Paris", None).into_bytes();
        body.extend_from_slice(text.as_bytes());
        body
    };
    let one = |mut body: Vec<u8>, kind: &str| {
        body.resize(body.len() + ENDLESS, b'x');
        raw(200, kind, body)
    };
    let ollama = [record("Paris", false).as_str(), "{\"message\": \""].concat();
    // the first one that is taken without bound ends the case: each is large
    let first = row(
        "one line",
        one(line("data: {\"choices\": \""), "text/event-stream"),
        "Paris",
    );
    ctx.examine(first.name, endless(ctx, first, 0)).await?;
    let mut many = line("data: {\"choices\":\n");
    let piece = format!("data: {}\n", "1,".repeat(8 << 10));
    while many.len() < ENDLESS {
        many.extend_from_slice(piece.as_bytes());
    }
    let second = row("many lines", raw(200, "text/event-stream", many), "Paris");
    ctx.examine(second.name, endless(ctx, second, 1)).await?;
    let third = row(
        "Ollama",
        one(ollama.into_bytes(), "application/x-ndjson"),
        "Paris",
    )
    .by(By::Ollama);
    if third.is_examined(ctx).await? {
        ctx.examine(third.name, endless(ctx, third, 2)).await?;
    }
    Ok(())
}

/// The length of an event without end, in bytes.
const ENDLESS: usize = 64 << 20;

async fn endless(ctx: &Ctx, row: Row, n: usize) -> CaseResult {
    // given
    ready(ctx, &row, n).await?;
    let stub = ctx.stub(row.by.stub())?;
    let before = stub.wire().sent_bytes();
    // the last chunk is never sent, so that the body does not end
    stub.answers(row.answer.clone().plan(Plan::of([
        Step::Head,
        Step::Events(1),
        Step::Bytes(ENDLESS * 2),
        Step::Stall,
    ])));
    let bounded = |taken: u64| {
        holds(
            "provider.bytes_taken",
            taken.saturating_sub(before) < (ENDLESS / 2) as u64,
            "the event to be refused at a bound, long before all of it has been taken",
            format!("{} bytes taken", taken.saturating_sub(before)),
        )
    };
    // when
    let asked = ctx.prompt(row.by.alias(), &row.prompt());
    let stream = ctx.client.stream(asked).await?;
    // then
    let begun = poll_until(|| Some(()).filter(|()| stub.wire().sent_bytes() > before));
    let begun = guard("hang.answer_begun", "the beginning of the answer", begun).await;
    begun.map_err(unexercised_if_hung(|| {
        format!("{} was never asked for its large answer", stub.name())
    }))?;
    bounded(stub.sent_settles().await?)?;
    let stream = stream.collect().await?;
    bounded(stub.sent_settles().await?)?;
    broken(&stream)?;
    let closed = if row.by == By::Ollama { 1 } else { n + 1 };
    stub.peer_closed(closed).await?;
    stub.answers(reply("ready"));
    Ok(())
}

async fn strm_09(ctx: &Ctx) -> CaseResult {
    let flows = |steps: &[Step]| {
        reply("")
            .tokens(["Par", "is"])
            .plan(Plan::of(steps.iter().cloned()))
    };
    let within = |end| flows(&[Step::Head, Step::Bytes(60), end]);
    let longer = reply("Paris").plan(Plan {
        framing: Framing::WrongLength(500),
        ..Plan::default()
    });
    let early = |end| flows(&[Step::Head, Step::Events(1), end]);
    let late = |end| flows(&[Step::Head, Step::Events(2), end]);
    let plain = [
        row("plain, cut within the body", within(Step::Cut), ""),
        row("plain, reset within the body", within(Step::Reset), ""),
        row("plain, closed without an answer", flows(&[Step::Cut]), ""),
        row("plain, short of its length", longer, ""),
        row("plain, second candidate", within(Step::Cut), "").by(By::Second),
        row("plain, Ollama", within(Step::Cut), "").by(By::Ollama),
    ];
    let streamed = vec![
        row("streamed, cut before the first text", early(Step::Cut), ""),
        row(
            "streamed, reset before the first text",
            early(Step::Reset),
            "",
        ),
        row("streamed, cut after the first text", late(Step::Cut), "Par"),
        row(
            "streamed, reset after the first text",
            late(Step::Reset),
            "Par",
        ),
        row("streamed, second candidate", late(Step::Cut), "Par").by(By::Second),
        row("streamed, Ollama", early(Step::Cut), "Par").by(By::Ollama),
    ];
    let mut deviations = Deviations::new();
    for (n, row) in plain.iter().enumerate() {
        if !row.is_examined(ctx).await? {
            continue;
        }
        let examination = async {
            ready(ctx, row, n).await?;
            row.mount(ctx).await?;
            let asked = ctx.prompt(row.by.alias(), &row.prompt());
            let plain = ctx.client.chat(asked).await?;
            holds(
                "plain.status",
                plain.status >= 500,
                "a status of 500 or more for a plain answer that was cut",
                plain.status,
            )
        };
        deviations.note(ctx.examine(row.name, examination).await)?;
    }
    until_asked(ctx, "solo", ctx.stub("p1")?).await?;
    note_each(ctx, streamed, &mut deviations, |row, stream| {
        if row.text.is_empty() {
            holds(
                "early.status",
                stream.status >= 500 || stream.status == 200,
                "no 4xx for a stream that is cut before its text",
                stream.status,
            )?;
            return blames_nobody(stream, "a stream that was cut before its text");
        }
        blames_nobody(stream, "a stream that was cut after its text")?;
        broken(stream)
    })
    .await?;
    deviations.result()
}

/// The error that the client is given must not say that its own request was wrong.
fn blames_nobody(stream: &Transcript, what: &str) -> CaseResult {
    let error = stream
        .error
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let blames = ["invalid_request", "\"400\"", "\"code\":400", "BadRequest"]
        .iter()
        .any(|word| error.contains(word));
    holds(
        "error.blame",
        !blames,
        format!("an error that does not blame the client for {what}"),
        &error,
    )
}

async fn strm_12(ctx: &Ctx) -> CaseResult {
    let error = json!({"error": {"message": "overloaded", "type": "server_error", "code": null}});
    let event = format!("data: {error}\n\n");
    let and = |more: &[&str]| {
        let parts = [role(), chunk("Par", None)];
        let parts = parts.iter().map(String::as_str);
        events(parts.chain(more.iter().copied()))
    };
    let cut = |n, end| {
        reply("")
            .tokens(["Par", "is"])
            .plan(Plan::events_then(n, end))
    };
    let in_band = || reply("").tokens(["Par"]).then_error(500, "overloaded");
    let mut rows = vec![
        row("an error in band", in_band(), ""),
        row("an error in band and [DONE]", and(&[&event, DONE]), ""),
        row(
            "an error event and text",
            and(&[
                &format!("event: error\n{event}"),
                &chunk("is", None),
                &chunk("", Some("stop")),
                DONE,
            ]),
            "",
        ),
        row("a reset", cut(2, Step::Reset), ""),
        row("a cut", cut(2, Step::Cut), ""),
        row("an end in order", and(&[]), ""),
        row(
            "a malformed event",
            and(&["data: {\"choices\": [\n\n", &chunk("", Some("stop")), DONE]),
            "",
        ),
        row("second candidate", cut(2, Step::Reset), "").by(By::Second),
        row("Ollama, an error in band", in_band(), "").by(By::Ollama),
        row("Ollama, a cut", cut(1, Step::Cut), "").by(By::Ollama),
    ];
    if ctx.declares(Capability::IdleTimeout) {
        rows.push(row("a stall", cut(2, Step::Stall), ""));
    } else {
        ctx.instance_if(Capability::IdleTimeout, "a stall");
    }
    let mut deviations = Deviations::new();
    for (n, row) in rows.iter().enumerate() {
        if !Box::pin(row.is_examined(ctx)).await? {
            continue;
        }
        let examination = async {
            ready(ctx, row, n).await?;
            let Some(stream) = row.streamed(ctx).await? else {
                return Ok(());
            };
            let mut events = stream.events.iter();
            // without an error event nothing can follow one: the instance is not examined
            if !events.any(|event| event.error().is_some()) {
                return Ok(());
            }
            ctx.instance(row.name);
            let after = events.filter(|event| event.is_done()).count();
            holds(
                "stream.done_after_error",
                after == 0,
                "no [DONE] after the error event of a stream that broke",
                format_args!("{after} [DONE] events"),
            )
        };
        let result = examination.await;
        deviations.note(result.map_err(|failure| failure.in_instance(row.name)))?;
    }
    deviations.result()
}

async fn strm_13(ctx: &Ctx) -> CaseResult {
    let says = || reply("Paris is big.");
    let calls = || says().tool_call("weather", json!({"city": "Zürich"}));
    let rows = vec![
        row("OpenAI", says(), "Paris is big."),
        row("OpenAI, tool calls", calls(), "Paris is big.").tools(),
        row("Ollama", says(), "Paris is big.").by(By::Ollama),
        row("Ollama, tool calls", calls(), "Paris is big.")
            .tools()
            .by(By::Ollama),
    ];
    let usual = rows.into_iter().map(|row| Row {
        asked: if row.name.ends_with("calls") {
            |body| with_usage(with_tools(body))
        } else {
            with_usage
        },
        ..row
    });
    let mut deviations = Deviations::new();
    note_each(ctx, usual.collect(), &mut deviations, |row, stream| {
        row.has_text(stream)?;
        one_id(stream.ids())
    })
    .await?;
    let name = "second candidate after a role";
    if ctx.instance_if(Capability::Fallback, name) {
        let examination = async {
            let failing = reply("").then_error(500, "overloaded");
            ctx.stub("p3")?.answers(failing);
            let second = chat().user_says("after a role");
            ctx.stub("p1")?.mount(second, says()).await;
            let asked = ctx.prompt("pair", "after a role");
            let stream = ctx.client.streamed(asked).await?;
            equal(
                "stream.text",
                "the text of the stream",
                "Paris is big.",
                stream.text.as_str(),
            )?;
            one_id(stream.ids())
        };
        deviations.note(ctx.examine(name, examination).await)?;
    }
    let name = "OpenAI, two streams at once";
    let two = ctx.examine(name, two_at_once(ctx, "solo", "p1")).await;
    deviations.note(two)?;
    let name = "Ollama, two streams at once";
    if ctx.instance_if(Capability::Ollama, name) {
        let two = ctx.examine(name, two_at_once(ctx, "local", "p2")).await;
        deviations.note(two)?;
    }
    deviations.result()
}

fn one_id(mut ids: Vec<String>) -> CaseResult {
    ids.dedup();
    holds(
        "stream.ids",
        matches!(ids.as_slice(), [id] if !id.is_empty()),
        "one id on all chunks of the stream",
        json(&ids),
    )
}

/// Two streams that are under way at the same time keep their own texts, and have ids of their own.
async fn two_at_once(ctx: &Ctx, alias: &str, stub: &str) -> CaseResult {
    // given
    let stub = ctx.stub(stub)?;
    let gate = format!("both of {alias}");
    for (prompt, tokens) in [("the first", ["Par", "is"]), ("the second", ["Be", "rn"])] {
        let held = Plan::of([
            Step::Head,
            Step::Events(2),
            Step::Hold(gate.clone()),
            Step::Rest,
        ]);
        stub.mount(
            chat().user_says(prompt),
            reply("").tokens(tokens).plan(held),
        )
        .await;
    }
    // when
    let mut first = ctx.client.stream(ctx.prompt(alias, "the first")).await?;
    let mut second = ctx.client.stream(ctx.prompt(alias, "the second")).await?;
    let (mut ids, mut texts) = (Vec::new(), Vec::new());
    for stream in [&mut first, &mut second] {
        let (text, seen) = until_text(stream).await?;
        texts.push(text);
        ids.push(seen);
    }
    ctx.gates.gate(&gate).open();
    for (n, stream) in [first, second].into_iter().enumerate() {
        let rest = stream.collect().await?;
        texts[n].push_str(&rest.text);
        ids[n].extend(rest.ids());
    }
    // then
    equal(
        "stream.text",
        "the texts of two streams",
        &vec!["Paris".to_string(), "Bern".to_string()],
        &texts,
    )?;
    for ids in &ids {
        one_id(ids.clone())?;
    }
    holds(
        "streams.ids",
        ids[0][0] != ids[1][0],
        "two ids of two streams",
        &ids[0][0],
    )
}

/// Reads until the first text; returns it, and the ids of all chunks that came.
async fn until_text(stream: &mut StreamReply) -> Result<(String, Vec<String>), Failure> {
    let (mut text, mut ids) = (String::new(), Vec::new());
    while text.is_empty() {
        let Some(event) = stream.next().await? else {
            break;
        };
        text = event.delta_text;
        let id = event.json.as_ref().and_then(|json| json["id"].as_str());
        ids.push(id.unwrap_or_default().to_owned());
    }
    Ok((text, ids))
}
