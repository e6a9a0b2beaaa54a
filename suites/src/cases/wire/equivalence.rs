//! WIRE, of meanings: the client understands the same from every protocol, streamed and plain.

use std::collections::{BTreeMap, BTreeSet};

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, equal, holds, json, silent};
use gauntlet_harness::client::{Reply, Transcript};
use gauntlet_harness::llm::{Responder, chat, raw, reply, tool_call, with};
use gauntlet_harness::spec::{Protocol, Spec};
use gauntlet_harness::subject::Capability;
use serde_json::{Value, json};

use crate::cases::CaseRow;
use crate::cases::rows::{By, Row, everywhere, row};
use crate::cases::support::{
    DONE, choices, chunk_of, events, of_choice, parsed, role, silent_if, silent_in, text,
    with_choices, with_tools, with_usage,
};

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "WIRE-12",
        why: "Ollama's tool calls came through with their arguments as an object and \"stop\" as \
              their end (https://github.com/BerriAI/litellm/issues/37792).",
        shown: "An OpenAI and an Ollama provider give the same answers, streamed and plain: texts, one \
                tool call, and two in one record and in two. The client must read the same from \
                both. Two results, sent in the other order, must reach the provider with their calls.",
        remedy: "Translate every field: arguments as text, tool_calls as finish_reason, the evaluation \
                 counts as usage.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::Tools,
            Capability::Ollama,
        ],
        instances: &[
            "text",
            "length",
            "one tool call",
            "two tool calls in one record",
            "two tool calls in two records",
            "text beside a tool call",
            "last record without newline",
            "results of two calls",
        ],
        spec: || {
            Spec::solo()
                .provider("p2", Protocol::OLLAMA)
                .model("local", &["p2"])
        },
        run: &wire_12,
    },
    CaseRow {
        id: "WIRE-13",
        why: "Streaming is a second code path in most gateways, and no test of the first path sees \
              what the second loses.",
        shown: "Each provider gives the same answer twice, once streamed and once plain. The client \
                compares what it understood.",
        remedy: "Derive both forms from one reading of the provider's answer, or forward both \
                 untouched.",
        needs: &[Capability::Chat, Capability::Stream, Capability::Tools],
        instances: &[
            "text",
            "text and a tool call",
            "two tool calls",
            "length",
            "two choices",
            "second candidate",
            "Ollama, text",
            "Ollama, two tool calls",
        ],
        spec: everywhere,
        run: &wire_13,
    },
];

async fn wire_12(ctx: &Ctx) -> CaseResult {
    // given
    let arguments = json!({"city": "Zürich", "days": 3});
    let zone = json!({"zone": "Europe/Zurich"});
    let calls = || {
        tool_call("weather", arguments.clone())
            .tool_call("time", zone.clone())
            .usage(21, 9)
    };
    let both = [("weather", arguments.clone()), ("time", zone.clone())];
    let answers = [
        (
            "text",
            reply("Paris is big.").usage(12, 7),
            Meaning::new("Paris is big.", &[], "stop", [12, 7]),
        ),
        (
            "length",
            reply("Paris is").finish("length").usage(12, 2),
            Meaning::new("Paris is", &[], "length", [12, 2]),
        ),
        (
            "one tool call",
            tool_call("weather", arguments.clone()).usage(21, 9),
            Meaning::new("", &both[..1], "tool_calls", [21, 9]),
        ),
        (
            "two tool calls in one record",
            calls(),
            Meaning::new("", &both, "tool_calls", [21, 9]),
        ),
        (
            "text beside a tool call",
            reply("I look it up.")
                .tool_call("weather", arguments.clone())
                .usage(21, 9),
            Meaning::new("I look it up.", &both[..1], "tool_calls", [21, 9]),
        ),
    ];
    // when
    let mut deviations = Deviations::new();
    for (name, answer, expected) in answers {
        let examination = same_from_both(ctx, name, answer, expected);
        deviations.note(ctx.examine(name, examination).await)?;
    }
    let name = "two tool calls in two records";
    let call = |at: usize| {
        let (name, arguments) = &both[at];
        json!({"function": {"name": name, "arguments": arguments}})
    };
    let spoken = |content: &str, calls: Vec<Value>| {
        let mut message = json!({"role": "assistant", "content": content});
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        json!({"model": "m-p2", "created_at": "2026-01-01T00:00:00Z", "message": message,
            "done": false})
    };
    let last = |content: &str| {
        let mut last = spoken(content, Vec::new());
        last["done"] = true.into();
        last["done_reason"] = "stop".into();
        last["prompt_eval_count"] = 21.into();
        last["eval_count"] = 9.into();
        last
    };
    let by_records = format!(
        "{}\n{}\n{}\n",
        spoken("", vec![call(0)]),
        spoken("", vec![call(1)]),
        last("")
    );
    let expected = Meaning::new("", &both, "tool_calls", [21, 9]);
    let examination = from_ollama(ctx, name, "calls.by_index", by_records, expected);
    deviations.note(ctx.examine(name, examination).await)?;
    let name = "last record without newline";
    let unended = format!("{}\n{}", spoken("Par", Vec::new()), last("is"));
    let expected = Meaning::new("Paris", &[], "stop", [21, 9]);
    let examination = from_ollama(ctx, name, "unended.meaning", unended, expected);
    deviations.note(ctx.examine(name, examination).await)?;
    deviations.note(ctx.examine("results of two calls", results(ctx)).await)?;
    deviations.result()
}

/// The client must read the same from both protocols, plain and streamed.
async fn same_from_both(ctx: &Ctx, name: &str, answer: Responder, expected: Meaning) -> CaseResult {
    let prompt = format!("({name})");
    for (alias, stub) in [("solo", "p1"), ("local", "p2")] {
        let stub = ctx.stub(stub)?;
        stub.mount(chat().user_says(&prompt), answer.clone()).await;
        let asked = ctx.prompt(alias, &prompt);
        let asked = if expected.tools.is_empty() {
            asked
        } else {
            with_tools(asked)
        };
        let plain = ctx.client.chat(asked.clone()).await?;
        let streamed = ctx.client.streamed(with_usage(asked)).await?;
        // then
        equal(
            "plain.meaning",
            &format!("the plain answer of {alias}"),
            &expected,
            &Meaning::of_reply(&plain),
        )
        .map_err(silent_if(plain.status < 400))?;
        equal(
            "stream.meaning",
            &format!("the streamed answer of {alias}"),
            &expected,
            &Meaning::of_stream(&streamed),
        )
        .map_err(silent_in(&streamed))?;
        well_formed(&plain, &streamed)?;
    }
    Ok(())
}

/// The client must read this of a stream of Ollama's records.
async fn from_ollama(
    ctx: &Ctx,
    name: &str,
    fact: &str,
    body: String,
    expected: Meaning,
) -> CaseResult {
    let prompt = format!("({name})");
    let answer = raw(200, "application/x-ndjson", body);
    ctx.stub("p2")?
        .mount(chat().user_says(&prompt), answer)
        .await;
    let asked = with_usage(with_tools(ctx.prompt("local", &prompt)));
    let streamed = ctx.client.streamed(asked).await?;
    equal(
        fact,
        "the streamed answer",
        &expected,
        &Meaning::of_stream(&streamed),
    )
    .map_err(silent_in(&streamed))?;
    let ids: Vec<&str> = streamed
        .tool_calls
        .iter()
        .map(|call| call.id.as_str())
        .collect();
    let distinct = ids.iter().collect::<BTreeSet<_>>().len() == ids.len();
    holds(
        "stream.tool_ids",
        distinct && ids.iter().all(|id| !id.is_empty()),
        "an id of its own for each tool call",
        format_args!("{ids:?}"),
    )
}

/// Each result of a tool must reach the Ollama provider with the call that it belongs to: by the
/// id of the call, or by the name of the tool.
async fn results(ctx: &Ctx) -> CaseResult {
    // given
    let p2 = ctx.stub("p2")?;
    p2.answers(reply("It rains, and it is noon."));
    let call = |id: &str, name: &str| {
        json!({"id": id, "type": "function",
            "function": {"name": name, "arguments": "{\"city\": \"Zürich\"}"}})
    };
    let mut asked = with_tools(ctx.prompt("local", "(results)"));
    let mut messages = asked["messages"].as_array().cloned().unwrap_or_default();
    messages.extend([
        json!({"role": "assistant", "content": null,
            "tool_calls": [call("call_a", "weather"), call("call_b", "time")]}),
        json!({"role": "tool", "tool_call_id": "call_b", "content": "noon"}),
        json!({"role": "tool", "tool_call_id": "call_a", "content": "rain"}),
    ]);
    asked["messages"] = messages.into();
    // when
    let answer = ctx.client.chat(asked).await?;
    // then
    equal("results.status", "the status", 200, answer.status)?;
    let sent = p2
        .calls("(results)")
        .pop()
        .map(|request| request.json())
        .unwrap_or_default();
    let messages = sent["messages"].as_array().cloned().unwrap_or_default();
    let with_id = |id: &str, name: &str| {
        let calls = messages
            .iter()
            .filter_map(|message| message["tool_calls"].as_array());
        let mut calls = calls.flatten();
        calls.any(|call| call["id"] == id && call["function"]["name"] == name)
    };
    for (content, id, name) in [("noon", "call_b", "time"), ("rain", "call_a", "weather")] {
        let result = messages
            .iter()
            .find(|message| message["role"] == "tool" && message["content"] == content);
        let belongs = result.is_some_and(|result| {
            let by_name = result["tool_name"] == name || result["name"] == name;
            by_name || (result["tool_call_id"] == id && with_id(id, name))
        });
        holds(
            "results.calls",
            belongs,
            format!("the result {content:?} with its call {id} of {name}"),
            result.unwrap_or(&Value::Null),
        )
        .map_err(silent)?;
    }
    Ok(())
}

async fn wire_13(ctx: &Ctx) -> CaseResult {
    // given
    let arguments = json!({"city": "Zürich", "days": 3});
    let says = || reply("Paris, 東京 and \"Bern\".").usage(12, 7);
    let calls = || {
        tool_call("weather", arguments.clone())
            .tool_call("time", json!({}))
            .usage(21, 9)
    };
    let rows = [
        row("text", says(), ""),
        row(
            "text and a tool call",
            reply("I look it up.")
                .tool_call("weather", arguments.clone())
                .usage(21, 9),
            "",
        )
        .tools(),
        row("two tool calls", calls(), "").tools(),
        row("length", says().finish("length"), ""),
        row("second candidate", says(), "").by(By::Second),
        row("Ollama, text", says(), "").by(By::Ollama),
        row("Ollama, two tool calls", calls(), "")
            .tools()
            .by(By::Ollama),
    ];
    let mut deviations = Deviations::new();
    for row in rows {
        if Box::pin(row.is_examined(ctx)).await? {
            deviations.note(ctx.examine(row.name, same_in_both_forms(ctx, &row)).await)?;
        }
    }
    let examination = two_choices_in_both_forms(ctx);
    deviations.note(ctx.examine("two choices", examination).await)?;
    deviations.result()
}

async fn same_in_both_forms(ctx: &Ctx, row: &Row) -> CaseResult {
    row.mount(ctx).await?;
    let asked = (row.asked)(ctx.prompt(row.by.alias(), &row.prompt()));
    let plain = ctx.client.chat(asked.clone()).await?;
    let streamed = ctx.client.streamed(with_usage(asked)).await?;
    // then
    equal(
        "plain.status",
        "the status of the plain answer",
        200,
        plain.status,
    )?;
    holds(
        "stream.complete",
        streamed.looks_complete(),
        "a complete stream",
        format_args!(
            "status {}, error {}",
            streamed.status,
            json(&streamed.error)
        ),
    )?;
    equal(
        "stream.meaning",
        "the streamed answer, compared with the plain one,",
        &Meaning::of_reply(&plain),
        &Meaning::of_stream(&streamed),
    )
    .map_err(silent)
}

/// The text and the finish_reason of each of two choices are the same in both forms.
async fn two_choices_in_both_forms(ctx: &Ctx) -> CaseResult {
    // given
    let texts = [("Paris", "stop"), ("Rome is", "length")];
    let p1 = ctx.stub("p1")?;
    let answer = with(move |request| {
        if request.streams() {
            let mut body = vec![role()];
            for (index, (text, finish)) in (0..).zip(texts) {
                let delta = json!({ "content": text });
                body.push(chunk_of(&[of_choice(index, delta, None)]));
                body.push(chunk_of(&[of_choice(index, json!({}), Some(finish))]));
            }
            body.push(DONE.into());
            return events(body);
        }
        let choice = |(index, (text, finish)): (u64, (&str, &str))| {
            let message = json!({"role": "assistant", "content": text});
            json!({"index": index, "message": message, "finish_reason": finish})
        };
        let choices: Vec<Value> = (0..).zip(texts).map(choice).collect();
        let document = json!({"id": "chatcmpl-wire", "object": "chat.completion", "created": 1,
            "model": "m-p1", "choices": choices});
        raw(200, "application/json", document.to_string())
    });
    p1.mount(chat().user_says("(two choices)"), answer).await;
    let asked = with_choices(ctx.prompt("solo", "(two choices)"), 2);
    // when
    let plain = ctx.client.chat(asked.clone()).await?;
    if (400..500).contains(&plain.status) && p1.calls("(two choices)").is_empty() {
        return Ok(());
    }
    let streamed = ctx.client.streamed(asked).await?;
    // then
    let document = plain.json();
    let listed = document["choices"].as_array().into_iter().flatten();
    let plain: BTreeMap<u64, (String, String)> = listed
        .map(|choice| {
            let index = choice["index"].as_u64().unwrap_or(0);
            let content = text(&choice["message"], "content").to_owned();
            (index, (content, text(choice, "finish_reason").to_owned()))
        })
        .collect();
    let read: BTreeMap<u64, (String, String)> = choices(&streamed)
        .into_iter()
        .map(|(index, choice)| (index, (choice.text, choice.finish.concat())))
        .collect();
    equal(
        "choices.meaning",
        "the streamed choices, compared with the plain ones,",
        &plain,
        &read,
    )
    .map_err(silent)
}

/// What a client understands of an answer, streamed or plain.
#[derive(Debug, PartialEq, serde::Serialize)]
struct Meaning {
    text: String,
    tools: Vec<(String, Value)>,
    finish: Vec<String>,
    /// The counts of prompt and completion tokens.
    usage: [Value; 2],
}

impl Meaning {
    fn new(text: &str, tools: &[(&str, Value)], finish: &str, usage: [u64; 2]) -> Self {
        let tools = tools
            .iter()
            .map(|(name, arguments)| (name.to_string(), arguments.clone()))
            .collect();
        Self {
            text: text.into(),
            tools,
            finish: vec![finish.into()],
            usage: usage.map(Value::from),
        }
    }

    fn of_reply(reply: &Reply) -> Self {
        let json = reply.json();
        let choice = &json["choices"][0];
        let calls = choice["message"]["tool_calls"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let tools = calls.iter().map(|call| &call["function"]);
        Self {
            text: reply.content(),
            tools: tools
                .map(|tool| {
                    (
                        tool["name"].as_str().unwrap_or_default().to_string(),
                        parsed(&tool["arguments"]),
                    )
                })
                .collect(),
            finish: choice["finish_reason"]
                .as_str()
                .map(str::to_string)
                .into_iter()
                .collect(),
            usage: tokens(&json["usage"]),
        }
    }

    fn of_stream(stream: &Transcript) -> Self {
        Self {
            text: stream.text.clone(),
            tools: stream
                .tool_calls
                .iter()
                .map(|call| (call.name.clone(), parsed(&json!(call.arguments))))
                .collect(),
            finish: stream.finish_reasons.clone(),
            usage: tokens(stream.usage.as_ref().unwrap_or(&Value::Null)),
        }
    }
}

fn tokens(usage: &Value) -> [Value; 2] {
    [
        usage["prompt_tokens"].clone(),
        usage["completion_tokens"].clone(),
    ]
}

/// Both forms of an answer must be as OpenAI's published types have them, with one end of the
/// stream and an id for each tool call.
fn well_formed(plain: &Reply, streamed: &Transcript) -> CaseResult {
    plain
        .strict()
        .or_else(|why| holds("plain.shape", false, "a completion of OpenAI's shape", why))?;
    streamed
        .strict()
        .or_else(|why| holds("stream.shape", false, "chunks of OpenAI's shape", why))?;
    equal(
        "stream.done_count",
        "the number of [DONE] events of a translated stream",
        1,
        streamed.done_count,
    )?;
    holds(
        "stream.complete",
        streamed.looks_complete(),
        "a complete stream",
        format_args!("error {}, end {}", json(&streamed.error), streamed.end),
    )?;
    let message = &plain.json()["choices"][0]["message"];
    let mut ids = message["tool_calls"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|call| call["id"].as_str());
    let mut streamed_ids = streamed.tool_calls.iter().map(|call| call.id.as_str());
    holds(
        "plain.tool_ids",
        ids.all(|id| !id.is_empty()),
        "an id for each tool call",
        message,
    )?;
    holds(
        "stream.tool_ids",
        streamed_ids.all(|id| !id.is_empty()),
        "an id for each streamed tool call",
        format_args!("{:?}", streamed.tool_calls),
    )
}
