//! WIRE, of OpenAI's protocol: what passes through a gateway arrives as it was sent.

use gauntlet_harness::case::{CaseResult, Ctx, equal, holds, silent};
use gauntlet_harness::client::End;
use gauntlet_harness::llm::{chat, raw, reply, tool_call};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::Spec;
use gauntlet_harness::subject::Capability;
use serde_json::{Value, json};

use crate::cases::CaseRow;
use crate::cases::support::{DONE, chunk, parsed, silent_in, with_tools, with_usage};

const STREAM: &[Capability] = &[Capability::Chat, Capability::Stream];

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "WIRE-01",
        why: "A gateway that rebuilds an answer from parts can lose some of them: tool calls vanish, \
              or the usage becomes zero and nobody is billed.",
        shown: "The provider answers one prompt with text and another with two tool calls. The client \
                compares every field with what the provider sent.",
        remedy: "Forward the provider's answer instead of building a new one, or map every field of it.",
        needs: &[Capability::Chat, Capability::Tools],
        instances: &[],
        spec: Spec::solo,
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
        instances: &[],
        spec: Spec::solo,
        run: &wire_02,
    },
    CaseRow {
        id: "WIRE-03",
        why: "A client stops at the first terminator: it reads a second one as the start of the next \
              answer, and a missing one as a cut.",
        shown: "The provider streams one answer that stops by itself and one that reaches its length \
                limit. The client counts what ends each stream.",
        remedy: "Write the terminator at one point of the code, after the provider's own terminator has \
                 come.",
        needs: STREAM,
        instances: &[],
        spec: Spec::solo,
        run: &wire_03,
    },
    CaseRow {
        id: "WIRE-04",
        why: "The usage chunk has no choices; a loop over choices loses it, and with it the bill.",
        shown: "The client asks for usage in a stream and compares the counts of the chunk with what \
                the provider sent.",
        remedy: "Forward chunks whose choices are empty.",
        needs: STREAM,
        instances: &[],
        spec: Spec::solo,
        run: &wire_04,
    },
    CaseRow {
        id: "WIRE-05",
        why: "Fragments of parallel calls were mixed up or lost \
              (https://github.com/BerriAI/litellm/issues/39796).",
        shown: "The provider streams two tool calls in fragments of five characters. The client joins \
                the fragments by index.",
        remedy: "Forward fragments as they are, with their index, and never parse one fragment by \
                 itself.",
        needs: &[Capability::Chat, Capability::Stream, Capability::Tools],
        instances: &[],
        spec: Spec::solo,
        run: &wire_05,
    },
    CaseRow {
        id: "WIRE-06",
        why: "A gateway that decodes each read by itself turns a split character into two \
              replacement characters; only users of other scripts see it.",
        shown: "The provider sends the first byte of a character, then six bytes that end within \
                another character, then the rest. It sends each piece only after the gateway has read \
                the piece before.",
        remedy: "Decode at the end of a line or an event, never at the end of a read.",
        needs: STREAM,
        instances: &[],
        spec: Spec::solo,
        run: &wire_06,
    },
    CaseRow {
        id: "WIRE-07",
        why: "Keep-alive comments and other line ends are legal, and a parser made for one provider \
              loses text at the next.",
        shown: "The provider writes the events of one answer in five forms that the standard allows, \
                with comments between them.",
        remedy: "Read SSE by the standard's rules (WHATWG HTML, section 9.2.6), not by a prefix and a \
                 pair of line feeds.",
        needs: STREAM,
        instances: &[],
        spec: Spec::solo,
        run: &wire_07,
    },
    CaseRow {
        id: "WIRE-08",
        why: "A field that is dropped changes the answer without a sign: the caller believes in a \
              seed or a bias that the provider never received.",
        shown: "The client sends a field that no gateway can know, and a rare field of OpenAI's. Each \
                must reach the provider, or the answer must be 400.",
        remedy: "Keep the request as a document and change only what must change, or refuse unknown \
                 fields.",
        needs: &[Capability::Chat],
        instances: &[],
        spec: Spec::solo,
        run: &wire_08,
    },
    CaseRow {
        id: "WIRE-09",
        why: "Clients and editors fill their lists of models from this route, and fail on another \
              shape.",
        shown: "Two aliases are configured. The client must find both in the list.",
        remedy: "Answer {\"object\": \"list\", \"data\": [{\"id\", \"object\": \"model\", \"created\", \
                 \"owned_by\"}]}.",
        needs: &[Capability::Models],
        instances: &[],
        spec: || Spec::solo().model("other", &["p1"]),
        run: &wire_09,
    },
];

async fn wire_01(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.mount(
        chat().user_says("capital"),
        reply("Paris, 東京 and \"Bern\".").usage(12, 7),
    )
    .await;
    let two_calls = vec![
        called("call_9f2", "weather", r#"{"city": "Zürich", "days": 3}"#),
        called("call_0a7", "time", "{}"),
    ];
    p1.mount(
        chat().user_says("weather"),
        raw(200, "application/json", completion(&two_calls).to_string()),
    )
    .await;
    // when
    let text = ctx.client.chat(ctx.prompt("solo", "capital")).await?;
    let tool = ctx
        .client
        .chat(with_tools(ctx.prompt("solo", "weather")))
        .await?;
    // then
    equal(
        "text.status",
        "the status of the answer with text",
        200,
        text.status,
    )?;
    equal(
        "text.content",
        "the content",
        "Paris, 東京 and \"Bern\".",
        &text.content(),
    )
    .map_err(silent)?;
    equal(
        "text.finish_reason",
        "the finish_reason of the answer with text",
        &json!("stop"),
        &text.json()["choices"][0]["finish_reason"],
    )
    .map_err(silent)?;
    equal(
        "usage.prompt_tokens",
        "the field usage.prompt_tokens",
        &json!(12),
        &text.json()["usage"]["prompt_tokens"],
    )
    .map_err(silent)?;
    equal(
        "usage.completion_tokens",
        "the field usage.completion_tokens",
        &json!(7),
        &text.json()["usage"]["completion_tokens"],
    )
    .map_err(silent)?;
    equal(
        "tools.status",
        "the status of the answer with tool calls",
        200,
        tool.status,
    )?;
    let choice = &tool.json()["choices"][0];
    equal(
        "tools.finish_reason",
        "the finish_reason of the answer with tool calls",
        &json!("tool_calls"),
        &choice["finish_reason"],
    )
    .map_err(silent)?;
    let calls: Vec<Value> = choice["message"]["tool_calls"]
        .as_array()
        .into_iter()
        .flatten()
        .map(as_called)
        .collect();
    equal("tools.count", "the number of tool calls", 2, calls.len()).map_err(silent)?;
    let ids = |calls: &[Value]| {
        calls
            .iter()
            .map(|call| call["id"].clone())
            .collect::<Vec<_>>()
    };
    equal(
        "tools.ids",
        "the ids of the tool calls",
        ids(&two_calls),
        ids(&calls),
    )
    .map_err(silent)?;
    equal("tools.calls", "the list of tool calls", &two_calls, &calls).map_err(silent)
}

async fn wire_02(ctx: &Ctx) -> CaseResult {
    // given
    let tokens = ["Par", "is", " is", " big"];
    let plan = Plan::of([Step::Head, Step::Interlock("read".into())]);
    ctx.stub("p1")?.answers(reply("").tokens(tokens).plan(plan));
    let read = ctx.gates.interlock("read");
    // the first event has no text, and a gateway may wait for text
    read.ack(1);
    // when
    let mut stream = ctx.client.stream(ctx.prompt("solo", "capital")).await?;
    for (token, event) in tokens.into_iter().zip(2..) {
        let come = stream.text_of(token.len()).await?;
        equal(
            "stream.text_while_held",
            "the text while the provider holds the next event",
            token,
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
    // given
    let p1 = ctx.stub("p1")?;
    p1.mount(chat().user_says("short"), reply("Paris is big."))
        .await;
    p1.mount(chat().user_says("long"), reply("Paris is").finish("length"))
        .await;
    // when
    for (prompt, finish) in [("short", "stop"), ("long", "length")] {
        let stream = ctx.client.streamed(ctx.prompt("solo", prompt)).await?;
        // then
        equal(
            "stream.status",
            "the status of the stream",
            200,
            stream.status,
        )?;
        equal(
            "stream.finish_reasons",
            "the list of finish reasons",
            &vec![finish.to_string()],
            &stream.finish_reasons,
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
        )?;
        equal(
            "stream.end",
            "the end of the body",
            &End::Orderly,
            &stream.end,
        )?;
        stream
            .strict()
            .or_else(|why| holds("stream.shape", false, "chunks of OpenAI's shape", why))?;
    }
    Ok(())
}

async fn wire_04(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p1")?.answers(reply("Paris is big.").usage(12, 7));
    // when
    let stream = ctx
        .client
        .streamed(with_usage(ctx.prompt("solo", "capital")))
        .await?;
    // then
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
    Ok(())
}

async fn wire_05(ctx: &Ctx) -> CaseResult {
    // given
    let weather = json!({"city": "Zürich", "days": 3, "units": {"temperature": "°C"}});
    let time = json!({"zone": "Europe/Zurich"});
    ctx.stub("p1")?
        .answers(tool_call("weather", weather.clone()).tool_call("time", time.clone()));
    // when
    let stream = ctx
        .client
        .streamed(with_tools(ctx.prompt("solo", "weather")))
        .await?;
    // then
    let calls: Vec<(String, Value)> = stream
        .tool_calls
        .iter()
        .map(|call| (call.name.clone(), parsed(&json!(call.arguments))))
        .collect();
    equal(
        "tools.calls",
        "the list of tool calls",
        &vec![("weather".to_string(), weather), ("time".to_string(), time)],
        &calls,
    )
    .map_err(silent_in(&stream))?;
    let ids: Vec<&str> = stream
        .tool_calls
        .iter()
        .map(|call| call.id.as_str())
        .collect();
    holds(
        "tools.ids",
        !ids[0].is_empty() && !ids[1].is_empty() && ids[0] != ids[1],
        "an id of its own for each tool call",
        format_args!("{ids:?}"),
    )?;
    equal(
        "stream.finish_reasons",
        "the list of finish reasons",
        &vec!["tool_calls".to_string()],
        &stream.finish_reasons,
    )
    .map_err(silent_in(&stream))
}

async fn wire_06(ctx: &Ctx) -> CaseResult {
    // given
    let text = "é東🦀ß";
    let body = [&chunk(text, None), &chunk("", Some("stop")), DONE].concat();
    let inside = body.find(text).unwrap_or_default() + 1;
    let split = Plan::of([
        Step::Head,
        Step::Bytes(inside),
        Step::Drain,
        Step::Bytes(6),
        Step::Drain,
        Step::Rest,
    ]);
    ctx.stub("p1")?
        .answers(raw(200, "text/event-stream", body).plan(split));
    // when
    let stream = ctx.client.streamed(ctx.prompt("solo", "capital")).await?;
    // then
    equal(
        "stream.text",
        "the text of the stream",
        text,
        stream.text.as_str(),
    )
    .map_err(silent_in(&stream))?;
    equal(
        "stream.done_count",
        "the number of [DONE] events",
        1,
        stream.done_count,
    )
}

async fn wire_07(ctx: &Ctx) -> CaseResult {
    // given
    let body = [
        ": a comment\n\n".to_string(),
        format!("event: message\nid: 1\nretry: 10\n{}", chunk("Par", None)),
        chunk("is", None).replace('\n', "\r\n"),
        ": another one, within an event\n".to_string(),
        chunk(" is", None).replacen("data: ", "data:", 1),
        chunk(" big", None).replacen('{', "{\ndata: ", 1),
        chunk(".", None).replace("\n\n", "\r\n\n"),
        chunk("", Some("stop")),
        DONE.replacen("data: ", "data:", 1),
    ];
    ctx.stub("p1")?
        .answers(raw(200, "text/event-stream", body.concat()));
    // when
    let stream = ctx.client.streamed(ctx.prompt("solo", "capital")).await?;
    // then
    equal(
        "stream.status",
        "the status of the stream",
        200,
        stream.status,
    )?;
    equal(
        "stream.text",
        "the text of the stream",
        "Paris is big.",
        stream.text.as_str(),
    )
    .map_err(silent_in(&stream))?;
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
}

async fn wire_08(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("Paris"));
    let fields = [
        ("x_nobody_knows", json!({"nested": [1, "two", null]})),
        ("logit_bias", json!({"50256": -100})),
    ];
    // when
    for (name, value) in fields {
        let mut body = ctx.prompt("solo", "capital");
        body[name] = value.clone();
        let answer = ctx.client.chat(body).await?;
        // then
        if answer.status == 200 {
            let sent = p1
                .requests()
                .pop()
                .map(|request| request.json())
                .unwrap_or_default();
            equal(
                "provider.field",
                &format!("the field {name} at the provider"),
                &value,
                &sent[name],
            )
            .map_err(silent)?;
        } else {
            equal(
                "answer.status",
                &format!("the status for the field {name}, which never reached the provider,"),
                400,
                answer.status,
            )?;
        }
    }
    Ok(())
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
    let models = list["data"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for alias in ["solo", "other"] {
        let id = ctx.model(alias);
        let model = models.iter().find(|model| model["id"] == json!(id));
        holds(
            "list.models",
            model.is_some(),
            format!("the model {id} in the list"),
            &list,
        )?;
        let model = model.unwrap_or(&Value::Null);
        holds(
            "list.model_shape",
            model["object"] == "model"
                && model["created"].is_u64()
                && model["owned_by"].is_string(),
            "the fields object (\"model\"), created and owned_by of a model",
            model,
        )?;
    }
    Ok(())
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

fn completion(calls: &[Value]) -> Value {
    let message = json!({"role": "assistant", "content": null, "tool_calls": calls});
    json!({
        "id": "chatcmpl-wire", "object": "chat.completion", "created": 1, "model": "m-p1",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
    })
}
