//! STRM: a stream that breaks reports it, and never looks finished.

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds, json};
use gauntlet_harness::client::Transcript;
use gauntlet_harness::llm::{Responder, chat, raw, reply};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use serde_json::json;

use super::CaseRow;
use super::support::{
    DONE, broken, chunk, reports_error, silent_in, taken, until_asked, with_usage,
};

const STREAM: &[Capability] = &[Capability::Chat, Capability::Stream];

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "STRM-01",
        why: "A connection that ended in order after half an answer was passed on as a finished one \
              (https://github.com/maximhq/bifrost/issues/5546).",
        shown: "The provider ends its body in order after the text, without finish_reason and without \
                [DONE].",
        remedy: "Count a stream as finished only after its finish_reason; otherwise send an error event \
                 and no [DONE].",
        needs: STREAM,
        instances: &[],
        spec: Spec::solo,
        run: &strm_01,
    },
    CaseRow {
        id: "STRM-02",
        why: "A provider's reset became a clean finish_reason \"stop\" and [DONE] \
              (https://github.com/BerriAI/litellm/issues/33404).",
        shown: "The provider sends two pieces of text, and resets the connection once the gateway has \
                read them.",
        remedy: "Forward what came, then an error event, and never make up a terminator.",
        needs: STREAM,
        instances: &[],
        spec: Spec::solo,
        run: &strm_02,
    },
    CaseRow {
        id: "STRM-03",
        why: "Half an event is half a JSON document: the client's parser fails inside its own loop, \
              far from the cause.",
        shown: "The provider's connection ends inside an event. The client reads each event that it \
                gets by the published types.",
        remedy: "Forward an event only when its blank line has come.",
        needs: STREAM,
        instances: &[],
        spec: Spec::solo,
        run: &strm_03,
    },
    CaseRow {
        id: "STRM-04",
        why: "What is skipped in silence may have been text, and a crash takes other streams with it \
              (https://github.com/BerriAI/litellm/issues/40404).",
        shown: "Between two good events the provider sends one that is not JSON, then ends properly. A \
                second stream must be served afterwards.",
        remedy: "End the stream with an error event when an event cannot be read.",
        needs: STREAM,
        instances: &[],
        spec: Spec::solo,
        run: &strm_04,
    },
    CaseRow {
        id: "STRM-05",
        why: "510 overload errors inside streams within 80 minutes were logged as successes, without \
              one fallback (https://github.com/BerriAI/litellm/pull/38153).",
        shown: "After two pieces of text, an OpenAI provider sends a rate-limit error in band, and an \
                Ollama provider, where the target declares it, an error line.",
        remedy: "Look for an error in every event before it is forwarded, and keep its type and code.",
        needs: STREAM,
        instances: &[],
        spec: with_ollama,
        run: &strm_05,
    },
    CaseRow {
        id: "STRM-06",
        why: "A client that has closed its stream at [DONE] never sees what follows; a client that \
              has not sees two answers.",
        shown: "The provider sends a whole answer, [DONE], one more chunk, and [DONE] again.",
        remedy: "Stop reading at [DONE].",
        needs: STREAM,
        instances: &[],
        spec: Spec::solo,
        run: &strm_06,
    },
    CaseRow {
        id: "STRM-07",
        why: "A login page with status 200 became an empty, successful stream \
              (https://github.com/Portkey-AI/gateway/issues/267).",
        shown: "The provider answers a streamed request with 200 and an HTML page.",
        remedy: "Look at the content type before the status line is sent to the client, and answer 502.",
        needs: STREAM,
        instances: &[],
        spec: Spec::solo,
        run: &strm_07,
    },
    CaseRow {
        id: "STRM-08",
        why: "A decoder that waits for a blank line that never comes keeps everything until the \
              process is killed.",
        shown: "The provider begins an event of 64 MiB in a chunked body, and never ends it. The gateway \
                must stop taking it before it has half of it, and report that the stream broke.",
        remedy: "Bound the size of one event (8 MiB is ample), and end the stream with an error beyond \
                 the bound.",
        needs: STREAM,
        instances: &[],
        // a busy machine must not end the stream before the gateway does
        spec: || {
            Spec::solo().model_timeouts(
                "solo",
                Timeouts {
                    idle_ms: Some(3_000),
                    ..Timeouts::PATIENT
                },
            )
        },
        run: &strm_08,
    },
    CaseRow {
        id: "STRM-09",
        why: "A cut stream came back as 400, so clients never tried again \
              (https://github.com/BerriAI/litellm/issues/41777).",
        shown: "The provider cuts a plain answer in its body, and a stream before and after its first \
                text.",
        remedy: "Map a broken connection to 502 or 504, and in band to a server error.",
        needs: STREAM,
        instances: &[],
        spec: Spec::solo,
        run: &strm_09,
    },
    CaseRow {
        id: "STRM-12",
        why: "A client that waits for [DONE] and looks at nothing else takes a stream that broke for a \
              whole one.",
        shown: "A provider sends an error in band and then ends its body, another sends [DONE] after \
                such an error, and a third resets its connection. No [DONE] may follow the error event \
                that the client gets.",
        remedy: "End the stream with its error event, and do not pass on what the provider sends after \
                 one.",
        needs: STREAM,
        instances: &[],
        spec: Spec::solo,
        run: &strm_12,
    },
    CaseRow {
        id: "STRM-13",
        why: "Clients join the chunks of an answer by their id; chunks with other ids are other answers \
              to them.",
        shown: "An OpenAI provider, and an Ollama provider where the target declares it, stream an \
                answer with its usage. All chunks that the client gets must have one id.",
        remedy: "Make the id of a translated stream once, before its first chunk.",
        needs: STREAM,
        instances: &[],
        spec: with_ollama,
        run: &strm_13,
    },
];

/// A second alias, `local`, whose provider speaks Ollama's protocol.
fn with_ollama() -> Spec {
    Spec::solo()
        .provider("p2", Protocol::OLLAMA)
        .model("local", &["p2"])
}

async fn strm_01(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p1")?
        .answers(reply("").tokens(["Par", "is"]).without_finish());
    // when
    let stream = ctx.client.streamed(ctx.prompt("solo", "capital")).await?;
    // then
    equal(
        "stream.text",
        "the text of the stream",
        "Paris",
        stream.text.as_str(),
    )?;
    broken(&stream)
}

async fn strm_02(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p1")?.answers(
        reply("")
            .tokens(["Par", "is", "!"])
            .plan(Plan::events_then(3, Step::Reset)),
    );
    // when
    let stream = ctx.client.streamed(ctx.prompt("solo", "capital")).await?;
    // then
    equal(
        "stream.text",
        "the text of the stream",
        "Paris",
        stream.text.as_str(),
    )?;
    broken(&stream)
}

async fn strm_03(ctx: &Ctx) -> CaseResult {
    // given
    let cut = Plan::of([Step::Head, Step::Events(2), Step::Bytes(70), Step::Cut]);
    ctx.stub("p1")?
        .answers(reply("").tokens(["Par", "is"]).plan(cut));
    // when
    let stream = ctx.client.streamed(ctx.prompt("solo", "capital")).await?;
    // then
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
    equal(
        "stream.text",
        "the text of the stream",
        "Par",
        stream.text.as_str(),
    )?;
    holds(
        "stream.partial_event",
        !stream.rest.contains("chat.completion.chunk"),
        "nothing of the event that was cut",
        &stream.rest,
    )?;
    broken(&stream)
}

async fn strm_04(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let body = [
        chunk("Par", None),
        "data: {\"choices\": [ {\"delta\"\n\n".into(),
        chunk("is", None),
        chunk("", Some("stop")),
        DONE.into(),
    ]
    .concat();
    p1.mount(
        chat().user_says("malformed"),
        raw(200, "text/event-stream", body),
    )
    .await;
    p1.mount(chat().user_says("healthy"), reply("Bern")).await;
    // when
    let stream = ctx.client.streamed(ctx.prompt("solo", "malformed")).await?;
    until_asked(ctx, "solo", p1).await?;
    let next = ctx.client.streamed(ctx.prompt("solo", "healthy")).await?;
    // then
    broken(&stream)?;
    equal(
        "next.text",
        "the text of the next stream",
        "Bern",
        next.text.as_str(),
    )
}

async fn strm_05(ctx: &Ctx) -> CaseResult {
    // given
    let in_band = |text: [&str; 2]| {
        reply("")
            .tokens(text)
            .then_error(429, "tokens per minute exceeded")
    };
    ctx.stub("p1")?.answers(in_band(["Par", "is"]));
    // when
    let openai = ctx.client.streamed(ctx.prompt("solo", "capital")).await?;
    // then
    equal(
        "stream.text",
        "the text before the error",
        "Paris",
        openai.text.as_str(),
    )?;
    broken(&openai)?;
    let error = openai
        .error
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    holds(
        "error.class",
        error.contains("rate_limit") || error.contains("429"),
        "an error that keeps its class (rate_limit_exceeded)",
        error,
    )?;
    if !ctx.declares(Capability::Ollama) {
        return Ok(());
    }
    ctx.stub("p2")?.answers(in_band(["Be", "rn"]));
    let ollama = ctx.client.streamed(ctx.prompt("local", "capital")).await?;
    equal(
        "ollama.text",
        "the text before the error of the Ollama provider",
        "Bern",
        ollama.text.as_str(),
    )?;
    broken(&ollama)
}

async fn strm_06(ctx: &Ctx) -> CaseResult {
    // given
    let body = [
        &chunk("Paris", None),
        &chunk("", Some("stop")),
        DONE,
        &chunk(" and Rome", None),
        DONE,
    ]
    .concat();
    ctx.stub("p1")?.answers(raw(200, "text/event-stream", body));
    // when
    let stream = ctx.client.streamed(ctx.prompt("solo", "capital")).await?;
    // then
    equal(
        "stream.text",
        "the text of the stream",
        "Paris",
        stream.text.as_str(),
    )
    .map_err(silent_in(&stream))?;
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
    )
}

async fn strm_07(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p1")?.answers(raw(
        200,
        "text/html",
        "<html><body>Please log in</body></html>",
    ));
    // when
    let stream = ctx.client.streamed(ctx.prompt("solo", "capital")).await?;
    // then
    holds(
        "stream.status",
        stream.status >= 500,
        "a status of 500 or more",
        stream.status,
    )
    .map_err(silent_in(&stream))?;
    equal(
        "stream.text",
        "the text of the stream",
        "",
        stream.text.as_str(),
    )
    .map_err(silent_in(&stream))
}

async fn strm_08(ctx: &Ctx) -> CaseResult {
    // given
    const ENDLESS: usize = 64 << 20;
    let mut body = chunk("Paris", None).into_bytes();
    body.extend_from_slice(b"data: {\"choices\": \"");
    body.resize(body.len() + ENDLESS, b'x');
    let length = body.len();
    let p1 = ctx.stub("p1")?;
    // the last chunk is never sent, so that the body does not end
    p1.answers(raw(200, "text/event-stream", body).plan(Plan::of([
        Step::Head,
        Step::Events(1),
        Step::Bytes(length),
        Step::Stall,
    ])));
    let bounded = |taken: u64| {
        holds(
            "provider.bytes_taken",
            taken < (ENDLESS / 2) as u64,
            "the event to be refused at a bound, long before all of it has been taken",
            format!("{taken} bytes taken"),
        )
    };
    // when
    let stream = ctx.client.stream(ctx.prompt("solo", "capital")).await?;
    // then
    bounded(taken(p1).await?)?;
    let stream = stream.collect().await?;
    bounded(p1.sent_settles().await?)?;
    broken(&stream)?;
    p1.peer_closed(1).await.map(|_| ())
}

async fn strm_09(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let cut =
        |steps: [Step; 3]| -> Responder { reply("").tokens(["Par", "is"]).plan(Plan::of(steps)) };
    p1.mount(
        chat().user_says("plain"),
        cut([Step::Head, Step::Bytes(60), Step::Cut]),
    )
    .await;
    p1.mount(
        chat().user_says("early"),
        cut([Step::Head, Step::Events(1), Step::Cut]),
    )
    .await;
    p1.mount(
        chat().user_says("late"),
        cut([Step::Head, Step::Events(2), Step::Cut]),
    )
    .await;
    // when
    let plain = async {
        let plain = ctx.client.chat(ctx.prompt("solo", "plain")).await?;
        // then
        holds(
            "plain.status",
            plain.status >= 500,
            "a status of 500 or more for a plain answer that was cut",
            plain.status,
        )
    };
    let early = async {
        until_asked(ctx, "solo", p1).await?;
        let early = ctx.client.streamed(ctx.prompt("solo", "early")).await?;
        holds(
            "early.status",
            early.status >= 500 || early.status == 200,
            "no 4xx for a stream that is cut before its text",
            early.status,
        )?;
        blames_nobody(&early, "a stream that was cut before its text")
    };
    let late = async {
        until_asked(ctx, "solo", p1).await?;
        let late = ctx.client.streamed(ctx.prompt("solo", "late")).await?;
        blames_nobody(&late, "a stream that was cut after its text")?;
        broken(&late)
    };
    let mut deviations = Deviations::new();
    deviations.note(plain.await)?;
    deviations.note(early.await)?;
    deviations.note(late.await)?;
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
    // given
    let p1 = ctx.stub("p1")?;
    let error = json!({"error": {"message": "overloaded", "type": "server_error", "code": null}});
    let with_done = [
        chunk("Par", None),
        format!("data: {error}\n\n"),
        DONE.into(),
    ]
    .concat();
    let failures: [(&str, Responder); 3] = [
        (
            "an error in band",
            reply("").tokens(["Par"]).then_error(500, "overloaded"),
        ),
        (
            "an error in band and [DONE]",
            raw(200, "text/event-stream", with_done),
        ),
        (
            "a reset",
            reply("")
                .tokens(["Par", "is"])
                .plan(Plan::events_then(2, Step::Reset)),
        ),
    ];
    let mut met = false;
    let mut deviations = Deviations::new();
    for (what, responder) in failures {
        let row = async {
            until_asked(ctx, "solo", p1).await?;
            p1.answers(responder);
            // when
            let stream = ctx.client.streamed(ctx.prompt("solo", what)).await?;
            // then
            met |= reports_error(&stream);
            let after = stream
                .events
                .iter()
                .skip_while(|event| event.error().is_none())
                .filter(|event| event.is_done())
                .count();
            holds(
                "stream.done_after_error",
                after == 0,
                format!("no [DONE] after the error event of a stream that {what} broke"),
                format_args!("{after} [DONE] events"),
            )
        };
        deviations.note(row.await)?;
    }
    deviations.result()?;
    if met {
        return Ok(());
    }
    Err(Failure::NotExercised {
        why: "the gateway sent no error event, so that nothing could follow one".into(),
    })
}

async fn strm_13(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p1")?.answers(reply("Paris is big."));
    ctx.stub("p2")?.answers(reply("Paris is big."));
    let mut aliases = vec!["solo"];
    if ctx.declares(Capability::Ollama) {
        aliases.push("local");
    }
    let mut deviations = Deviations::new();
    for alias in aliases {
        let row = async {
            // when
            let asked = with_usage(ctx.prompt(alias, "capital"));
            let stream = ctx.client.streamed(asked).await?;
            // then
            equal(
                "stream.text",
                &format!("the text of the stream of {alias}"),
                "Paris is big.",
                stream.text.as_str(),
            )?;
            let mut ids = stream.ids();
            ids.dedup();
            holds(
                "stream.ids",
                matches!(ids.as_slice(), [id] if !id.is_empty()),
                format!("one id on all chunks of the stream of {alias}"),
                json(&ids),
            )
        };
        deviations.note(row.await)?;
    }
    deviations.result()
}
