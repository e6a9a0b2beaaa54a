//! FALL: when one candidate fails the next one serves, and the client learns when none could.

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds, json};
use gauntlet_harness::client::{End, Transcript};
use gauntlet_harness::llm::{Responder, Stub, chat, error, openai, raw, reply, tool_call, with};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec};
use gauntlet_harness::subject::Capability;
use serde_json::{Value, json};

use super::CaseRow;
use super::modes::{Answered, MODES, Mode, possible, prompt};
use super::support::{asked_for, parsed, reports_error, silent_in, until_asked};

const FALLBACK: &[Capability] = &[Capability::Chat, Capability::Fallback];
const STREAM: &[Capability] = &[Capability::Chat, Capability::Stream, Capability::Fallback];

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "FALL-01",
        why: "Users, and not the gateway, found that fallbacks never ran on 4xx and 429 \
              (https://github.com/maximhq/bifrost/issues/3261).",
        shown: "The first candidate answers with each status, resets the connection or refuses it, plain and \
                streamed; so does an Ollama provider, and the first two of three candidates fail. The answer of \
                the next candidate must come each time. Where the target names who served, it must name that \
                one.",
        remedy: "Ask the next candidate after every failure that is the provider's, and name the \
                 candidate that answered.",
        needs: FALLBACK,
        instances: &[
            "plain, status 503",
            "plain, status 429",
            "plain, status 500",
            "plain, status 401",
            "plain, reset",
            "streamed, status 503",
            "streamed, status 429",
            "streamed, status 500",
            "streamed, reset",
            "plain, third candidate",
            "streamed, third candidate",
            "plain, Ollama fails",
            "streamed, Ollama fails",
            "plain, a refused connection",
            "streamed, a refused connection",
        ],
        spec: wider,
        run: &fall_01,
    },
    CaseRow {
        id: "FALL-02",
        why: "A login page came back as a completion \
              (https://github.com/Portkey-AI/gateway/issues/267).",
        shown: "The first provider answers 200 with each of these bodies, plain and streamed, and as an Ollama \
                provider. The client must get the second provider's answer.",
        remedy: "Read the body before the status is believed.",
        needs: FALLBACK,
        instances: &[
            "plain, HTML",
            "plain, broken JSON",
            "plain, an empty body",
            "plain, no choices",
            "plain, choices null",
            "streamed, HTML",
            "streamed, broken JSON",
            "streamed, an empty body",
            "streamed, no choices",
            "plain, Ollama, HTML",
            "plain, Ollama, broken JSON",
            "plain, Ollama, an empty body",
        ],
        spec: wider,
        run: &fall_02,
    },
    CaseRow {
        id: "FALL-03",
        why: "510 streams of an overloaded provider failed within 80 minutes, and none fell back, \
              since each had begun with 200 (https://github.com/BerriAI/litellm/pull/38153).",
        shown: "The first provider's stream is 200 and then cut or reset, an in-band error, or over before any \
                text; so is an Ollama provider's, and those of two of three candidates. The client must see the \
                next provider's stream and nothing of those before it: each answer has an id of its own, by \
                which a splice is seen.",
        remedy: "Send nothing to the client before the first token of an attempt has come.",
        needs: STREAM,
        instances: &[
            "overloaded",
            "cut after its headers",
            "cut before its first text",
            "reset after its headers",
            "reset before its first text",
            "an error in band",
            "a role and nothing else",
            "over without a word",
            "Ollama, cut after its headers",
            "Ollama, an error in band",
            "Ollama, over without a word",
            "third candidate",
        ],
        spec: wider,
        run: &fall_03,
    },
    CaseRow {
        id: "FALL-04",
        why: "Text came twice (https://github.com/BerriAI/litellm/pull/32835), or the stream just \
              ended (https://github.com/Portkey-AI/gateway/issues/1797).",
        shown: "The first provider's stream is reset or cut after its first text, or goes on with an error in band. \
                The client must get that text once and see that the stream broke. A second provider that is \
                asked to continue the text may do so.",
        remedy: "After the first token, report the failure as an error event, and never begin another \
                 candidate's answer in the same stream.",
        needs: STREAM,
        instances: &[
            "reset",
            "cut",
            "an error in band",
            "Ollama, reset",
            "Ollama, an error in band",
        ],
        spec: wider,
        run: &fall_04,
    },
    CaseRow {
        id: "FALL-05",
        why: "Client libraries retry by the status; behind a 200 they hand an empty answer to the \
              user (https://github.com/BerriAI/litellm/issues/6957).",
        shown: "The first provider is overloaded, and the second fails in each of these ways before its first token. \
                The status must be 500 or more.",
        remedy: "Send the status line only when the outcome is known.",
        needs: FALLBACK,
        instances: &[
            "streamed, cut before its first token",
            "streamed, an error in band",
            "streamed, over without a word",
            "plain, status 500",
            "plain, HTML",
            "plain, Ollama, status 500",
            "streamed, Ollama, an error in band",
        ],
        spec: wider,
        run: &fall_05,
    },
    CaseRow {
        id: "FALL-06",
        why: "Fallbacks on every error sent a wrong request to one provider after the other \
              (https://github.com/Portkey-AI/gateway/issues/855).",
        shown: "The first provider refuses six requests, plain and streamed, with a breaker that opens after two \
                failures. The second provider must see none of them, and the first must serve the next \
                request.",
        remedy: "Pass a refusal of the request on to the client, and count only the provider's own \
                 failures.",
        needs: FALLBACK,
        instances: &[
            "plain, status 400",
            "plain, status 422",
            "streamed, status 400",
            "streamed, status 422",
        ],
        spec: || {
            let mut spec = Spec::pair();
            spec.breaker.failure_threshold = 2;
            spec
        },
        run: &fall_06,
    },
    CaseRow {
        id: "FALL-07",
        why: "A translation that loses a message, a tool or a setting answers another question than \
              the one asked (https://github.com/BerriAI/litellm/issues/37792).",
        shown: "The OpenAI provider is down. The Ollama provider must get every message in order, the arguments of \
                both tool calls and each result at its position, the tools, temperature, length and stop words, \
                and its tool call must come back in OpenAI's shape, plain and streamed.",
        remedy: "Translate the whole request, and refuse what the other protocol cannot express.",
        needs: &[
            Capability::Chat,
            Capability::Fallback,
            Capability::Ollama,
            Capability::Tools,
        ],
        instances: &["plain", "streamed"],
        spec: || {
            Spec::default()
                .provider("p1", Protocol::OPENAI)
                .provider("p2", Protocol::OLLAMA)
                .model("mixed", &["p1", "p2"])
        },
        run: &fall_07,
    },
    CaseRow {
        id: "FALL-08",
        why: "The error of the last candidate alone hid why the first one had failed \
              (https://github.com/BerriAI/litellm/issues/27967).",
        shown: "One provider answers 503, another 500, and the last 200 with HTML. The error must list all in \
                order, with a cause each, and hold no provider's key, although each sends its own.",
        remedy: "Collect the cause of each attempt, and take keys out of providers' messages.",
        needs: &[
            Capability::Chat,
            Capability::Fallback,
            Capability::AttemptList,
        ],
        instances: &["plain, two candidates", "streamed, three candidates"],
        spec: wider,
        run: &fall_08,
    },
    CaseRow {
        id: "FALL-09",
        why: "OpenRouter and its like report errors inside of a choice, with finish_reason error: a gateway \
              that reads only the member error takes them for answers \
              (https://openrouter.ai/docs/api-reference/errors).",
        shown: "The first provider answers 200 with an error in each of these positions, plain and streamed: the \
                second provider's answer must come. After the first text the stream must report it. With no \
                other candidate, the error must keep its class. A member error that is null is none.",
        remedy: "Look for an error in every choice of every document and event, and take finish_reason error \
                 for one.",
        needs: FALLBACK,
        instances: &[
            "plain, an error in a choice",
            "plain, an error in a later choice",
            "plain, the number 429 in a choice",
            "plain, finish_reason error",
            "plain, an error alone",
            "streamed, an error in a choice",
            "streamed, an error in a later choice",
            "streamed, the number 429 in a choice",
            "streamed, finish_reason error",
            "streamed, an error alone",
            "plain, Ollama, an error alone",
            "streamed, Ollama, an error alone",
            "plain, error null",
            "streamed, error null",
            "after the first text, an error in a choice",
            "after the first text, an error in a later choice",
            "after the first text, the number 429 in a choice",
            "after the first text, finish_reason error",
            "after the first text, an error alone",
            "plain, the class of an error in a choice",
            "after the first text, the class of an error in a choice",
        ],
        spec: || wider().optional_model("alone", &["p1"]),
        run: &fall_09,
    },
    CaseRow {
        id: "FALL-10",
        why: "An answer without anything in it looks like a success to every monitor, and like a defect to \
              its reader.",
        shown: "The first provider's answer has no text, plain and streamed. The client must get the second \
                provider's answer or an error, or else a header that no healthy answer has, and where the \
                target has metrics, the counter must grow. A tool call, a refusal and a content filter are \
                answers.",
        remedy: "Ask the next candidate, or mark the answer and count it.",
        needs: FALLBACK,
        instances: &[
            "plain, an answer without anything",
            "streamed, an answer without anything",
            "plain, Ollama, an answer without anything",
            "streamed, Ollama, an answer without anything",
            "plain, a tool call alone",
            "plain, a refusal alone",
            "plain, a content filter alone",
            "streamed, a tool call alone",
        ],
        spec: wider,
        run: &fall_10,
    },
];

/// The alias `pair`, and beside it `three` candidates and, in `local`, an Ollama provider before
/// another one; the last candidate is always `p2`.
fn wider() -> Spec {
    Spec::pair()
        .provider("p3", Protocol::OPENAI)
        .provider("p4", Protocol::OPENAI)
        .optional_model("three", &["p3", "p4", "p2"])
        .provider("p5", Protocol::OLLAMA)
        .optional_model("local", &["p5", "p2"])
}

/// The first candidate of an alias of [`wider`].
fn first_of(alias: &str) -> &'static str {
    match alias {
        "three" => "p3",
        "local" => "p5",
        _ => "p1",
    }
}

/// The answer must be the last candidate's, and name it where the target names who served. `kind`
/// begins the ids of the facts.
fn served_by_second(ctx: &Ctx, answer: &Answered, kind: &str, what: &str) -> CaseResult {
    equal(
        &format!("{kind}.status"),
        &format!("the status ({what})"),
        200,
        answer.status(),
    )?;
    equal(
        &format!("{kind}.text"),
        &format!("the text ({what})"),
        "Bern",
        answer.text().as_str(),
    )
    .map_err(|failure| answer.silent(failure))?;
    if ctx.declares(Capability::ServedBy) {
        equal(
            &format!("{kind}.served_by"),
            &format!("the header x-gauntlet-provider ({what})"),
            Some("p2"),
            answer.header("x-gauntlet-provider"),
        )
        .map_err(|failure| answer.silent(failure))?;
    }
    Ok(())
}

async fn fall_01(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p2")?.answers(reply("Bern"));
    let reset = || reply("lost").plan(Plan::of([Step::Reset]));
    let mut rows = Vec::new();
    for mode in MODES {
        let own = |kind| mode.of(kind, "stream");
        for (status, kind) in [
            (503, "answer"),
            (429, "limited"),
            (500, "answer"),
            (401, "auth"),
        ] {
            if status != 401 || mode == Mode::Plain {
                let name = format!("{mode}, status {status}");
                rows.push((name, mode, "pair", own(kind), Some(error(status))));
            }
        }
        rows.push((
            format!("{mode}, reset"),
            mode,
            "pair",
            own("reset"),
            Some(reset()),
        ));
        let third = format!("{mode}, third candidate");
        rows.push((third, mode, "three", "third", Some(error(503))));
        let ollama = format!("{mode}, Ollama fails");
        rows.push((ollama, mode, "local", own("ollama"), Some(error(503))));
    }
    for mode in MODES {
        let refused = format!("{mode}, a refused connection");
        rows.push((refused, mode, "pair", mode.of("answer", "stream"), None));
    }
    let mut deviations = Deviations::new();
    for (name, mode, alias, kind, failure) in rows {
        if !possible(ctx, mode, alias, &name) {
            continue;
        }
        let judged = async {
            let first = ctx.stub(first_of(alias))?;
            first.listen(Listen::Serve).await?;
            if alias == "three" {
                ctx.stub("p4")?.answers(error(500));
            }
            until_asked(ctx, alias, first).await?;
            match &failure {
                Some(failure) => first.answers(failure.clone()),
                None => first.listen(Listen::Refuse).await?,
            }
            // when
            let answer = mode
                .ask(&ctx.client, ctx.prompt(alias, &prompt(&name)))
                .await?;
            // then
            served_by_second(ctx, &answer, kind, &name)?;
            if failure.is_none() || name.ends_with("reset") {
                return Ok(());
            }
            asked_for(ctx, "first.requests", first, &prompt(&name))
        };
        deviations.note(ctx.examine(&name, judged).await)?;
    }
    deviations.result()
}

async fn fall_02(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p2")?.answers(reply("Bern"));
    const HTML: &str = "<html><body>Please log in</body></html>";
    const BROKEN: &str = "{\"id\": \"chatcmpl-1\", \"choices\": [{\"index\": 0, \"mess";
    let (json, sse, ndjson) = (
        "application/json",
        "text/event-stream",
        "application/x-ndjson",
    );
    let without = |object: &str, choices: Value| {
        json!({"id": "chatcmpl-1", "object": object, "created": 1, "model": "m-p1", "choices": choices})
            .to_string()
    };
    let event = |data: &str| format!("data: {data}\n\n{}", super::support::DONE);
    let no_chunk = event(&without("chat.completion.chunk", json!([])));
    let nothing = [
        ("plain, HTML", "answer", "text/html", HTML.to_string()),
        ("plain, broken JSON", "answer", json, BROKEN.into()),
        ("plain, an empty body", "answer", json, String::new()),
        (
            "plain, no choices",
            "choices",
            json,
            without("chat.completion", json!([])),
        ),
        (
            "plain, choices null",
            "choices",
            json,
            without("chat.completion", Value::Null),
        ),
        ("streamed, HTML", "stream", "text/html", HTML.into()),
        ("streamed, broken JSON", "stream", sse, event(BROKEN)),
        ("streamed, an empty body", "stream", sse, String::new()),
        ("streamed, no choices", "stream", sse, no_chunk),
        ("plain, Ollama, HTML", "ollama", "text/html", HTML.into()),
        (
            "plain, Ollama, broken JSON",
            "ollama",
            json,
            "{\"model\": \"m-p5\", \"mess".into(),
        ),
        (
            "plain, Ollama, an empty body",
            "ollama",
            ndjson,
            String::new(),
        ),
    ];
    let mut deviations = Deviations::new();
    for (name, kind, content_type, body) in nothing {
        let mode = if name.starts_with("plain") {
            Mode::Plain
        } else {
            Mode::Streamed
        };
        let alias = if name.contains("Ollama") {
            "local"
        } else {
            "pair"
        };
        if !possible(ctx, mode, alias, name) {
            continue;
        }
        let judged = async {
            let first = ctx.stub(first_of(alias))?;
            until_asked(ctx, alias, first).await?;
            first.answers(raw(200, content_type, body));
            // when
            let answer = mode
                .ask(&ctx.client, ctx.prompt(alias, &prompt(name)))
                .await?;
            // then
            asked_for(ctx, "first.requests", first, &prompt(name))?;
            served_by_second(ctx, &answer, kind, name)
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

async fn fall_03(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p2")?.answers(reply("").tokens(["Be", "rn"]));
    let lost = || reply("").tokens(["Par", "is"]);
    let after_head = |step: Step| lost().plan(Plan::of([Step::Head, step]));
    let before_text = |step: Step| lost().plan(Plan::events_then(1, step));
    let in_band = || reply("").tokens([""; 0]).then_error(503, "overloaded");
    let empty = |kind: &str| raw(200, kind, "");
    let (sse, ndjson) = ("text/event-stream", "application/x-ndjson");
    let role = format!("{}{}", chunk_of_role(), super::support::DONE);
    let failures: [(&str, &str, Responder); 12] = [
        ("overloaded", "pair", error(503)),
        ("cut after its headers", "pair", after_head(Step::Cut)),
        ("cut before its first text", "pair", before_text(Step::Cut)),
        ("reset after its headers", "pair", after_head(Step::Reset)),
        (
            "reset before its first text",
            "pair",
            before_text(Step::Reset),
        ),
        ("an error in band", "pair", in_band()),
        ("a role and nothing else", "pair", raw(200, sse, role)),
        ("over without a word", "pair", empty(sse)),
        (
            "Ollama, cut after its headers",
            "local",
            after_head(Step::Cut),
        ),
        ("Ollama, an error in band", "local", in_band()),
        ("Ollama, over without a word", "local", empty(ndjson)),
        ("third candidate", "three", before_text(Step::Cut)),
    ];
    let p1 = ctx.stub("p1")?;
    until_asked(ctx, "pair", p1).await?;
    p1.answers(lost());
    let healthy = ctx.client.streamed(ctx.prompt("pair", "healthy")).await?;
    let mut ids = healthy.ids();
    ids.dedup();
    let one_id = ids.len() == 1;
    let mut deviations = Deviations::new();
    for (name, alias, responder) in failures {
        if !ctx.instance_at(alias, name) {
            continue;
        }
        let judged = async {
            let first = ctx.stub(first_of(alias))?;
            let mut before = vec![first];
            until_asked(ctx, alias, first).await?;
            first.answers(responder);
            if alias == "three" {
                before.push(ctx.stub("p4")?);
                ctx.stub("p4")?.answers(in_band());
            }
            // when
            let stream = ctx
                .client
                .streamed(ctx.prompt(alias, &prompt(name)))
                .await?;
            // then
            asked_for(ctx, "first.requests", first, &prompt(name))?;
            clean(ctx, &stream, name)?;
            unspliced(&stream, &before, one_id, &prompt(name))
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

/// An event of OpenAI's stream that begins the answer with a role.
fn chunk_of_role() -> String {
    event_with(
        json!({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}),
    )
}

/// An event of OpenAI's stream with one choice.
fn event_with(choice: Value) -> String {
    let chunk = json!({
        "id": "chatcmpl-odd", "object": "chat.completion.chunk", "created": 1, "model": "m-p1",
        "choices": [choice],
    });
    format!("data: {chunk}\n\n")
}

/// No chunk of the stream may be one of the first candidate's. All must be of one stream, if the
/// gateway gives a healthy stream one id: the others are judged by STRM-13 alone.
fn unspliced(stream: &Transcript, first: &[&Stub], one_id: bool, what: &str) -> CaseResult {
    let of_first: Vec<String> = first
        .iter()
        .flat_map(|stub| stub.calls(what))
        .map(|call| openai::completion_id(call.request))
        .collect();
    let all = stream.ids();
    let mut ids = all;
    ids.dedup();
    let foreign = ids.iter().any(|id| of_first.contains(id));
    let several = one_id && ids.len() > 1;
    holds(
        "stream.spliced",
        !foreign && !several,
        format!("the chunks of one stream, and none of the first candidate's ({what})"),
        format_args!("chunks with the ids {ids:?}; the first candidate's are {of_first:?}"),
    )
    .map_err(silent_in(stream))
}

/// The stream must be one whole stream of the second candidate, and nothing else.
fn clean(ctx: &Ctx, stream: &Transcript, what: &str) -> CaseResult {
    equal(
        "stream.status",
        &format!("the status ({what})"),
        200,
        stream.status,
    )?;
    holds(
        "stream.error_event",
        stream.error.is_none(),
        format!("no error event ({what})"),
        json(&stream.error),
    )?;
    equal(
        "stream.text",
        &format!("the text ({what})"),
        "Bern",
        stream.text.as_str(),
    )
    .map_err(silent_in(stream))?;
    equal(
        "stream.finish_reasons",
        &format!("the list of finish reasons ({what})"),
        vec!["stop".to_string()],
        stream.finish_reasons.clone(),
    )?;
    equal(
        "stream.done_count",
        &format!("the number of [DONE] events ({what})"),
        1,
        stream.done_count,
    )?;
    if ctx.declares(Capability::ServedBy) {
        equal(
            "stream.served_by",
            &format!("the header x-gauntlet-provider ({what})"),
            Some("p2"),
            stream.header("x-gauntlet-provider"),
        )
        .map_err(silent_in(stream))?;
    }
    stream.strict().or_else(|why| {
        holds(
            "stream.shape",
            false,
            format!("events of one stream in OpenAI's shape ({what})"),
            why,
        )
    })
}

async fn fall_04(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p2")?.answers(with(|asked| {
        let last = asked.json["messages"]
            .as_array()
            .and_then(|messages| messages.last())
            .cloned()
            .unwrap_or_default();
        let continues = last["role"] == "assistant" && last["content"] == "Par";
        reply(if continues { "is" } else { "Paris" })
    }));
    let begun = || reply("").tokens(["Par", "is"]);
    let in_band = || reply("").tokens(["Par"]).then_error(503, "overloaded");
    let rows = [
        (
            "reset",
            "pair",
            begun().plan(Plan::events_then(2, Step::Reset)),
        ),
        ("cut", "pair", begun().plan(Plan::events_then(2, Step::Cut))),
        ("an error in band", "pair", in_band()),
        (
            "Ollama, reset",
            "local",
            begun().plan(Plan::events_then(1, Step::Reset)),
        ),
        ("Ollama, an error in band", "local", in_band()),
    ];
    let mut deviations = Deviations::new();
    for (name, alias, broken) in rows {
        if !ctx.instance_at(alias, name) {
            continue;
        }
        let judged = async {
            let first = ctx.stub(first_of(alias))?;
            until_asked(ctx, alias, first).await?;
            first.answers(broken);
            // when
            let stream = ctx
                .client
                .streamed(ctx.prompt(alias, &prompt(name)))
                .await?;
            // then
            once_and_reported(&stream)
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

/// The client must have the text once, and its end or the report that there is none.
fn once_and_reported(stream: &Transcript) -> CaseResult {
    let cut = matches!(stream.end, End::Cut(_)) && stream.done_count == 0;
    let reported = stream.error.is_some() || cut;
    match stream.text.as_str() {
        // no token has reached the client: STRM-02 alone demands those that came
        "" if reports_error(stream) => Ok(()),
        "Par" => holds(
            "stream.error_event",
            reported,
            "an error event where the stream broke",
            format_args!(
                "no error event and {} [DONE] events; the stream ended {}",
                stream.done_count, stream.end
            ),
        )
        .map_err(silent_in(stream)),
        "Paris" => holds(
            "stream.continued_end",
            stream.looks_complete() || reported,
            "a continued stream that ends properly",
            format_args!("the stream ended {}", stream.end),
        )
        .map_err(silent_in(stream)),
        text => holds(
            "stream.text",
            false,
            "the text once",
            format_args!("{text:?}"),
        )
        .map_err(silent_in(stream)),
    }
}

async fn fall_05(ctx: &Ctx) -> CaseResult {
    // given
    let html = || raw(200, "text/html", "<html><body>Please log in</body></html>");
    let cut = reply("Paris").plan(Plan::events_then(1, Step::Cut));
    let in_band = || reply("").tokens([""; 0]).then_error(503, "overloaded");
    let rows = [
        (
            "streamed, cut before its first token",
            Mode::Streamed,
            "pair",
            cut,
        ),
        (
            "streamed, an error in band",
            Mode::Streamed,
            "pair",
            in_band(),
        ),
        (
            "streamed, over without a word",
            Mode::Streamed,
            "pair",
            raw(200, "text/event-stream", ""),
        ),
        ("plain, status 500", Mode::Plain, "pair", error(500)),
        ("plain, HTML", Mode::Plain, "pair", html()),
        (
            "plain, Ollama, status 500",
            Mode::Plain,
            "local",
            error(500),
        ),
        (
            "streamed, Ollama, an error in band",
            Mode::Streamed,
            "local",
            in_band(),
        ),
    ];
    let p2 = ctx.stub("p2")?;
    let mut deviations = Deviations::new();
    for (name, mode, alias, failure) in rows {
        if !possible(ctx, mode, alias, name) {
            continue;
        }
        let judged = async {
            let first = ctx.stub(first_of(alias))?;
            first.answers(error(503));
            until_asked(ctx, alias, p2).await?;
            p2.answers(failure);
            // when
            let answer = mode
                .ask(&ctx.client, ctx.prompt(alias, &prompt(name)))
                .await?;
            // then
            if p2.calls(&prompt(name)).is_empty() {
                return Err(Failure::NotExercised {
                    why: format!(
                        "the second candidate was not asked ({name}), so that not all candidates \
                         failed; FALL-01 and FALL-03 judge that"
                    ),
                });
            }
            holds(
                mode.of("plain.status", "stream.status"),
                answer.status() >= 500,
                "a status of 500 or more",
                answer.status(),
            )
            .map_err(|failure| answer.silent(failure))?;
            holds(
                mode.of("plain.error", "stream.error"),
                answer.error().is_some(),
                "an error in the body",
                "none",
            )
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

async fn fall_06(ctx: &Ctx) -> CaseResult {
    // given
    let (p1, p2) = (ctx.stub("p1")?, ctx.stub("p2")?);
    for status in [400, 422] {
        let asked = chat().user_says(&format!("status {status}>"));
        p1.mount(asked, error(status)).await;
    }
    p1.answers(reply("Paris"));
    p2.answers(reply("Bern"));
    let rows = [
        ("plain, status 400", Mode::Plain),
        ("plain, status 422", Mode::Plain),
        ("streamed, status 400", Mode::Streamed),
        ("streamed, status 422", Mode::Streamed),
    ];
    // when
    let mut statuses = Vec::new();
    let mut fallbacks = 0;
    for (n, (name, mode)) in rows.iter().chain(&rows[..2]).enumerate() {
        if !possible(ctx, *mode, "pair", name) {
            continue;
        }
        let answer = mode
            .ask(&ctx.client, ctx.prompt("pair", &prompt(name)))
            .await?;
        statuses.push((*mode, answer.status()));
        if n == 1 {
            fallbacks = p2.requests().len();
        }
    }
    let next = ctx.client.chat(ctx.prompt("pair", "right")).await?;
    // then
    equal(
        "second.requests",
        "the number of requests at the second candidate after two refusals",
        0,
        fallbacks,
    )?;
    for (mode, fact) in [
        (Mode::Plain, "answer.statuses"),
        (Mode::Streamed, "stream.statuses"),
    ] {
        let of_mode = statuses.iter().filter(|(one, _)| *one == mode);
        let of_mode: Vec<u16> = of_mode.map(|(_, status)| *status).collect();
        holds(
            fact,
            of_mode.iter().all(|status| (400..500).contains(status)),
            format!("the client's own error (4xx) each time ({mode})"),
            json(&of_mode),
        )?;
    }
    equal(
        "next.text",
        "the text of the next request, which the first candidate serves,",
        "Paris",
        next.content().as_str(),
    )
}

async fn fall_07(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p1")?.answers(error(503));
    let p2 = ctx.stub("p2")?;
    p2.answers(tool_call("get_weather", json!({"city": "Bern"})));
    let mut deviations = Deviations::new();
    for mode in MODES {
        let name = mode.of("plain", "streamed");
        if possible(ctx, mode, "mixed", name) {
            deviations.note(ctx.examine(name, translated(ctx, mode, p2)).await)?;
        }
    }
    deviations.result()
}

async fn translated(ctx: &Ctx, mode: Mode, p2: &Stub) -> CaseResult {
    // when
    let before = p2.requests().len();
    let mut request = conversation();
    request["model"] = ctx.model("mixed").into();
    let answer = mode.ask(&ctx.client, request.clone()).await?;
    // then
    equal("answer.status", "the status", 200, answer.status())?;
    let asked = p2.seen(before + 1).await?;
    let translated = asked[before].json();
    for (n, message) in request["messages"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        equal(
            "message.role",
            &format!("the role of message {n}"),
            &message["role"],
            &translated["messages"][n]["role"],
        )?;
        let content = message["content"].as_str().unwrap_or_default();
        equal(
            "message.content",
            &format!("the content of message {n}"),
            content,
            translated["messages"][n]["content"]
                .as_str()
                .unwrap_or_default(),
        )?;
    }
    equal(
        "messages.count",
        "the number of messages",
        6,
        translated["messages"].as_array().map_or(0, Vec::len),
    )?;
    let calls = &translated["messages"][2]["tool_calls"];
    equal(
        "earlier_call.arguments",
        "the arguments of the earlier calls, in order",
        (&json!({"city": "Paris"}), &json!({"city": "Rome"})),
        (
            &calls[0]["function"]["arguments"],
            &calls[1]["function"]["arguments"],
        ),
    )?;
    equal(
        "request.tool",
        "the tools of the request",
        (&json!("get_weather"), &json!("get_time")),
        (
            &translated["tools"][0]["function"]["name"],
            &translated["tools"][1]["function"]["name"],
        ),
    )?;
    let options = &translated["options"];
    equal(
        "request.options",
        "the temperature and the length",
        (&json!(0.25), &json!(32)),
        (&options["temperature"], &options["num_predict"]),
    )?;
    holds(
        "request.stop",
        options["stop"].to_string().contains("END"),
        "the stop word END",
        &options["stop"],
    )?;
    let call = match &answer {
        Answered::Plain(reply) => {
            let call = reply.json()["choices"][0]["message"]["tool_calls"][0]["function"].clone();
            (call["name"].clone(), parsed(&call["arguments"]))
        }
        Answered::Streamed(stream) => stream.tool_calls.first().map_or_else(
            || (Value::Null, Value::Null),
            |call| {
                let arguments = parsed(&call.arguments.clone().into());
                (call.name.clone().into(), arguments)
            },
        ),
    };
    equal(
        "answer.tool_call",
        "the tool call of the answer",
        (json!("get_weather"), json!({"city": "Bern"})),
        call,
    )
}

/// A conversation with two tools, each of which was called once.
fn conversation() -> Value {
    let call = |id: &str, name: &str, city: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": json!({"city": city}).to_string()}});
    let parameters =
        json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "description": "A tool.", "parameters": parameters}});
    json!({
        "messages": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "Weather in Paris, and time in Rome?"},
            {"role": "assistant", "content": "", "tool_calls": [call("call_1", "get_weather", "Paris"), call("call_2", "get_time", "Rome")]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
            {"role": "user", "content": "And the weather in Bern?"},
        ],
        "tools": [tool("get_weather"), tool("get_time")],
        "temperature": 0.25, "max_tokens": 32, "stop": ["END"],
    })
}

async fn fall_08(ctx: &Ctx) -> CaseResult {
    // given
    let keys: Vec<String> = ctx
        .spec
        .providers
        .iter()
        .map(|provider| provider.api_key.clone())
        .collect();
    // a provider knows its own key alone
    let key = |name: &str| {
        let mut providers = ctx.spec.providers.iter();
        let provider = providers.find(|provider| provider.name == name);
        provider.map_or_else(String::new, |provider| provider.api_key.clone())
    };
    for (stub, failure) in [
        (
            "p1",
            error(503).message(&format!("overloaded for key {}", key("p1"))),
        ),
        (
            "p2",
            raw(
                200,
                "text/html",
                format!("<html>not for {}</html>", key("p2")),
            ),
        ),
        (
            "p3",
            error(503).message(&format!("overloaded for key {}", key("p3"))),
        ),
        (
            "p4",
            error(500).message(&format!("broken for key {}", key("p4"))),
        ),
    ] {
        if let Some(stub) = ctx.stubs.get(stub) {
            stub.answers(failure.optional());
        }
    }
    let mut deviations = Deviations::new();
    for (name, mode, alias, expected) in [
        (
            "plain, two candidates",
            Mode::Plain,
            "pair",
            vec!["p1", "p2"],
        ),
        (
            "streamed, three candidates",
            Mode::Streamed,
            "three",
            vec!["p3", "p4", "p2"],
        ),
    ] {
        if !possible(ctx, mode, alias, name) {
            continue;
        }
        let judged = async {
            // when
            let answer = mode
                .ask(&ctx.client, ctx.prompt(alias, &prompt(name)))
                .await?;
            // then
            says_what_was_tried(ctx, &answer, &expected, &keys)
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

fn says_what_was_tried(
    ctx: &Ctx,
    answer: &Answered,
    expected: &[&str],
    keys: &[String],
) -> CaseResult {
    holds(
        "answer.status",
        answer.status() >= 500,
        "a status of 500 or more",
        answer.status(),
    )?;
    let error = answer.error().unwrap_or_default();
    let mut attempts = error["attempts"].as_array().cloned().unwrap_or_default();
    if !ctx.declares(Capability::Retry) {
        // retries that are built in are attempts, too
        attempts.dedup_by(|later, earlier| later["provider"] == earlier["provider"]);
    }
    let providers: Vec<&str> = attempts
        .iter()
        .filter_map(|attempt| attempt["provider"].as_str())
        .collect();
    equal(
        "attempts.providers",
        "the list of providers that were tried, in order,",
        expected.to_vec(),
        providers,
    )?;
    let mut causes: Vec<&str> = attempts
        .iter()
        .filter_map(|attempt| attempt["cause"].as_str())
        .collect();
    let listed = causes.len();
    causes.sort_unstable();
    causes.dedup();
    holds(
        "attempts.causes",
        listed == expected.len() && causes.len() == expected.len(),
        "a cause of each, and no two alike",
        json(&causes),
    )?;
    let shown = match answer {
        Answered::Plain(reply) => reply.text(),
        Answered::Streamed(stream) => String::from_utf8_lossy(&stream.body).into_owned(),
    };
    let leaked = keys.iter().any(|key| shown.contains(key.as_str()));
    holds(
        "error.secret",
        !leaked,
        "no key in the error",
        "a provider's key",
    )
}

/// The errors of FALL-09: each has a name, the ids of its facts, and the choices or the error that
/// a document or an event has.
fn odd_errors() -> [(&'static str, &'static str, Value); 5] {
    let broken = json!({"code": 502, "message": "the model broke"});
    let limited = json!({"code": 429, "message": "too many requests"});
    let choice = |index: u32, finish: Value, error: &Value| {
        let mut choice = json!({"index": index, "finish_reason": finish});
        if !error.is_null() {
            choice["error"] = error.clone();
        }
        choice
    };
    [
        (
            "an error in a choice",
            "choice",
            json!({"choices": [choice(0, Value::Null, &broken)]}),
        ),
        (
            "an error in a later choice",
            "later_choice",
            json!({"choices": [choice(0, Value::Null, &Value::Null), choice(1, "stop".into(), &broken)]}),
        ),
        (
            "the number 429 in a choice",
            "number",
            json!({"choices": [choice(0, "stop".into(), &limited)]}),
        ),
        (
            "finish_reason error",
            "finish",
            json!({"choices": [choice(0, "error".into(), &Value::Null)]}),
        ),
        ("an error alone", "alone", json!({"error": broken})),
    ]
}

/// The parts of an odd error as a whole document, and as the event of a stream.
fn in_mode(mode: Mode, parts: &Value) -> Value {
    let mut document = parts.clone();
    let Some(choices) = document["choices"].as_array_mut() else {
        document
            .as_object_mut()
            .map(|fields| fields.shift_remove("choices"));
        return document;
    };
    for choice in choices {
        match mode {
            Mode::Plain => {
                choice["message"] = json!({"role": "assistant", "content": "Par"});
                if choice["finish_reason"].is_null() {
                    choice["finish_reason"] = "stop".into();
                }
            }
            Mode::Streamed => choice["delta"] = json!({}),
        }
    }
    let object = mode.of("chat.completion", "chat.completion.chunk");
    document["id"] = "chatcmpl-odd".into();
    document["object"] = object.into();
    document["created"] = 1.into();
    document["model"] = "m-p1".into();
    document
}

/// The answer of a provider that reports this error, after this text of its stream.
fn reporting(mode: Mode, text: &str, parts: &Value) -> Responder {
    let document = in_mode(mode, parts);
    match mode {
        Mode::Plain => raw(200, "application/json", document.to_string()),
        Mode::Streamed => {
            let mut stream = chunk_of_role();
            if parts.get("choices").is_none() && text.is_empty() {
                stream.clear();
            }
            if !text.is_empty() {
                stream += &event_with(
                    json!({"index": 0, "delta": {"content": text}, "finish_reason": null}),
                );
            }
            stream += &format!("data: {document}\n\n{}", super::support::DONE);
            raw(200, "text/event-stream", stream)
        }
    }
}

async fn fall_09(ctx: &Ctx) -> CaseResult {
    // given
    let (p1, p2) = (ctx.stub("p1")?, ctx.stub("p2")?);
    p2.answers(reply("Bern"));
    let mut deviations = Deviations::new();
    for mode in MODES {
        for (what, kind, parts) in odd_errors() {
            let name = format!("{mode}, {what}");
            if !possible(ctx, mode, "pair", &name) {
                continue;
            }
            let judged = async {
                until_asked(ctx, "pair", p1).await?;
                p1.answers(reporting(mode, "", &parts));
                // when
                let answer = mode
                    .ask(&ctx.client, ctx.prompt("pair", &prompt(&name)))
                    .await?;
                // then
                asked_for(ctx, "first.requests", p1, &prompt(&name))?;
                answer.is(&format!("{kind}.answer"), &name, "Bern")
            };
            deviations.note(ctx.examine(&name, judged).await)?;
        }
        let name = format!("{mode}, Ollama, an error alone");
        if possible(ctx, mode, "local", &name) {
            let judged = async {
                let first = ctx.stub("p5")?;
                until_asked(ctx, "local", first).await?;
                let error = json!({"error": "the model broke"}).to_string();
                first.answers(raw(
                    200,
                    mode.of("application/json", "application/x-ndjson"),
                    error + "\n",
                ));
                // when
                let answer = mode
                    .ask(&ctx.client, ctx.prompt("local", &prompt(&name)))
                    .await?;
                // then
                answer.is("ollama.answer", &name, "Bern")
            };
            deviations.note(ctx.examine(&name, judged).await)?;
        }
        let name = format!("{mode}, error null");
        if possible(ctx, mode, "pair", &name) {
            let judged = async {
                until_asked(ctx, "pair", p1).await?;
                p1.answers(without_error(mode));
                // when
                let answer = mode
                    .ask(&ctx.client, ctx.prompt("pair", &prompt(&name)))
                    .await?;
                // then
                answer.is("null.answer", &name, "Paris")
            };
            deviations.note(ctx.examine(&name, judged).await)?;
        }
    }
    for (what, _, parts) in odd_errors() {
        let name = format!("after the first text, {what}");
        if !possible(ctx, Mode::Streamed, "pair", &name) {
            continue;
        }
        let judged = async {
            until_asked(ctx, "pair", p1).await?;
            p1.answers(reporting(Mode::Streamed, "Par", &parts));
            // when
            let stream = ctx
                .client
                .streamed(ctx.prompt("pair", &prompt(&name)))
                .await?;
            // then
            reported_late(&stream)
        };
        deviations.note(ctx.examine(&name, judged).await)?;
    }
    let [.., (_, _, limited), _, _] = odd_errors();
    for (name, mode, text) in [
        ("plain, the class of an error in a choice", Mode::Plain, ""),
        (
            "after the first text, the class of an error in a choice",
            Mode::Streamed,
            "Par",
        ),
    ] {
        if !possible(ctx, mode, "alone", name) {
            continue;
        }
        let judged = async {
            until_asked(ctx, "alone", p1).await?;
            p1.answers(reporting(mode, text, &limited));
            // when
            let answer = mode
                .ask(&ctx.client, ctx.prompt("alone", &prompt(name)))
                .await?;
            // then
            let error = answer.error().unwrap_or_default().to_string();
            let kept =
                answer.status() == 429 || error.contains("429") || error.contains("rate_limit");
            holds(
                mode.of("class.plain", "class.stream"),
                answer.failed() && kept,
                "an error that keeps its class (429)",
                format_args!("status {} and the error {error}", answer.status()),
            )
            .map_err(|failure| answer.silent(failure))
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

/// A healthy answer whose members `error` are null.
fn without_error(mode: Mode) -> Responder {
    match mode {
        Mode::Plain => {
            let parts = json!({"error": null, "choices": [{"index": 0, "error": null, "finish_reason": "stop"}]});
            let mut document = in_mode(mode, &parts);
            document["choices"][0]["message"]["content"] = "Paris".into();
            raw(200, "application/json", document.to_string())
        }
        Mode::Streamed => {
            let event = |delta: Value, finish: Value| {
                let choice =
                    json!({"index": 0, "error": null, "delta": delta, "finish_reason": finish});
                event_with(choice).replacen("data: {", "data: {\"error\":null,", 1)
            };
            let stream = [
                event(json!({"role": "assistant", "content": ""}), Value::Null),
                event(json!({"content": "Par"}), Value::Null),
                event(json!({"content": "is"}), Value::Null),
                event(json!({}), "stop".into()),
                super::support::DONE.to_string(),
            ];
            raw(200, "text/event-stream", stream.concat())
        }
    }
}

/// An error that came after the first text must reach the client as an error event, or the stream
/// must be seen to break.
fn reported_late(stream: &Transcript) -> CaseResult {
    let cut = matches!(stream.end, End::Cut(_)) && stream.done_count == 0;
    holds(
        "late.reported",
        reports_error(stream) || cut,
        "an error event where the provider reported an error",
        format_args!(
            "no error event, the finish reasons {:?} and {} [DONE] events",
            stream.finish_reasons, stream.done_count
        ),
    )
    .map_err(silent_in(stream))
}

/// The number of answers without content that the gateway has counted, over all of its labels.
async fn counted_empty(ctx: &Ctx) -> Result<f64, Failure> {
    let metrics = ctx.client.get(&ctx.manifest.paths.metrics).await?.text();
    let name = ctx.manifest.metrics.empty_answers.as_str();
    let lines = metrics
        .lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(name));
    Ok(lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum())
}

async fn fall_10(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p2")?.answers(reply("Bern"));
    let mut deviations = Deviations::new();
    for mode in MODES {
        for (what, alias) in [("", "pair"), ("Ollama, ", "local")] {
            let name = format!("{mode}, {what}an answer without anything");
            if possible(ctx, mode, alias, &name) {
                deviations.note(ctx.examine(&name, empty(ctx, mode, alias, &name)).await)?;
            }
        }
    }
    let p1 = ctx.stub("p1")?;
    let message = |message: Value, finish: &str| {
        let choices = json!([{"index": 0, "message": message, "finish_reason": finish}]);
        let document = json!({"id": "chatcmpl-odd", "object": "chat.completion", "created": 1, "model": "m-p1", "choices": choices});
        raw(200, "application/json", document.to_string())
    };
    let refusal = json!({"role": "assistant", "content": null, "refusal": "No."});
    let filtered = json!({"role": "assistant", "content": ""});
    let call = || tool_call("weather", json!({"city": "Bern"}));
    for (name, mode, answer) in [
        ("plain, a tool call alone", Mode::Plain, call()),
        (
            "plain, a refusal alone",
            Mode::Plain,
            message(refusal, "stop"),
        ),
        (
            "plain, a content filter alone",
            Mode::Plain,
            message(filtered, "content_filter"),
        ),
        ("streamed, a tool call alone", Mode::Streamed, call()),
    ] {
        if !possible(ctx, mode, "pair", name) {
            continue;
        }
        let judged = async {
            until_asked(ctx, "pair", p1).await?;
            p1.answers(answer);
            // when
            let body = super::support::with_tools(ctx.prompt("pair", &prompt(name)));
            let answer = mode.ask(&ctx.client, body).await?;
            // then
            holds(
                "content.kept",
                answer.status() == 200 && answer.error().is_none() && answer.text() != "Bern",
                "the answer of the first candidate, which has content",
                format_args!(
                    "status {} and the text {:?}",
                    answer.status(),
                    answer.text()
                ),
            )
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

/// The names of the headers of an answer.
fn header_names(answer: &Answered) -> Vec<String> {
    let headers = match answer {
        Answered::Plain(reply) => &reply.headers,
        Answered::Streamed(stream) => &stream.headers,
    };
    headers
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect()
}

async fn empty(ctx: &Ctx, mode: Mode, alias: &str, name: &str) -> CaseResult {
    let first = ctx.stub(first_of(alias))?;
    until_asked(ctx, alias, first).await?;
    first.answers(reply("Paris"));
    let text = prompt(&format!("{name}, healthy"));
    let healthy = mode.ask(&ctx.client, ctx.prompt(alias, &text)).await?;
    let has_metrics = ctx.declares(Capability::Metrics);
    let before = if has_metrics {
        counted_empty(ctx).await?
    } else {
        0.0
    };
    first.answers(reply(""));
    // when
    let answer = mode
        .ask(&ctx.client, ctx.prompt(alias, &prompt(name)))
        .await?;
    // then
    asked_for(ctx, "first.requests", first, &prompt(name))?;
    if answer.failed() || answer.text() == "Bern" {
        return Ok(());
    }
    let known = header_names(&healthy);
    let marked = header_names(&answer)
        .iter()
        .any(|name| !known.contains(name));
    holds(
        mode.of("plain.visible", "stream.visible"),
        marked,
        "another candidate's answer, an error, or a header that a healthy answer does not have",
        "an empty answer that looks like every other",
    )
    .map_err(|failure| answer.silent(failure))?;
    if has_metrics {
        let after = counted_empty(ctx).await?;
        holds(
            "empty.counted",
            after > before,
            format!("{} to grow", ctx.manifest.metrics.empty_answers),
            format_args!("{before} before and {after} after an empty answer"),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::support::tests::{read, violation};
    use super::super::support::{DONE, chunk};
    use super::*;

    const ERROR: &str = r#"{"error": {"message": "broken", "type": "server_error"}}"#;

    #[tokio::test]
    async fn an_error_without_any_text_is_no_silent_end() {
        let event = format!("data: {ERROR}\n\n");
        assert_eq!(once_and_reported(&read(502, ERROR).await), Ok(()));
        assert_eq!(once_and_reported(&read(200, &event).await), Ok(()));
        let (fact, _) = violation(once_and_reported(&read(200, DONE).await));
        assert_eq!(fact, "stream.text");
    }

    #[tokio::test]
    async fn a_text_that_comes_twice_is_a_violation_whatever_follows() {
        let event = format!("data: {ERROR}\n\n");
        let twice = [chunk("Par", None), chunk("Paris", None), event].concat();
        let (fact, _) = violation(once_and_reported(&read(200, &twice).await));
        assert_eq!(fact, "stream.text");
    }
}
