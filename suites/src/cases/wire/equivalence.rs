//! WIRE, of meanings: the client understands the same from every protocol, streamed and plain.

use gauntlet_harness::case::{CaseResult, Ctx, equal, holds, json, silent};
use gauntlet_harness::client::{Reply, Transcript};
use gauntlet_harness::llm::{chat, reply, tool_call};
use gauntlet_harness::spec::{Protocol, Spec};
use gauntlet_harness::subject::Capability;
use serde_json::{Value, json};

use crate::cases::CaseRow;
use crate::cases::support::{parsed, silent_if, silent_in, with_tools, with_usage};

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "WIRE-12",
        why: "Ollama's tool calls came through with their arguments as an object and \"stop\" as \
              their end (https://github.com/BerriAI/litellm/issues/37792).",
        shown: "An OpenAI and an Ollama provider give the same three answers, streamed and plain. The \
                client must read the same from both, with an id for each tool call and one end for \
                each stream.",
        remedy: "Translate every field: arguments as text, tool_calls as finish_reason, the evaluation \
                 counts as usage.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::Tools,
            Capability::Ollama,
        ],
        instances: &[],
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
        shown: "The provider gives the same answer twice, once streamed and once plain. The client \
                compares what it understood.",
        remedy: "Derive both forms from one reading of the provider's answer, or forward both \
                 untouched.",
        needs: &[Capability::Chat, Capability::Stream, Capability::Tools],
        instances: &[],
        spec: Spec::solo,
        run: &wire_13,
    },
];

async fn wire_12(ctx: &Ctx) -> CaseResult {
    // given
    let arguments = json!({"city": "Zürich", "days": 3});
    for name in ["p1", "p2"] {
        let provider = ctx.stub(name)?;
        provider
            .mount(
                chat().user_says("capital"),
                reply("Paris is big.").usage(12, 7),
            )
            .await;
        provider
            .mount(
                chat().user_says("long"),
                reply("Paris is").finish("length").usage(12, 2),
            )
            .await;
        provider
            .mount(
                chat().tool_named("weather"),
                tool_call("weather", arguments.clone()).usage(21, 9),
            )
            .await;
    }
    let expected = [
        (
            "capital",
            Meaning::new("Paris is big.", &[], "stop", [12, 7]),
        ),
        ("long", Meaning::new("Paris is", &[], "length", [12, 2])),
        (
            "weather",
            Meaning::new("", &[("weather", arguments)], "tool_calls", [21, 9]),
        ),
    ];
    // when
    for (prompt, expected) in expected {
        for alias in ["solo", "local"] {
            let asked = if prompt == "weather" {
                with_tools(ctx.prompt(alias, prompt))
            } else {
                ctx.prompt(alias, prompt)
            };
            let plain = ctx.client.chat(asked.clone()).await?;
            let streamed = ctx.client.streamed(with_usage(asked)).await?;
            // then
            equal(
                "plain.meaning",
                &format!("the plain answer of {alias} to {prompt}"),
                &expected,
                &Meaning::of_reply(&plain),
            )
            .map_err(silent_if(plain.status < 400))?;
            equal(
                "stream.meaning",
                &format!("the streamed answer of {alias} to {prompt}"),
                &expected,
                &Meaning::of_stream(&streamed),
            )
            .map_err(silent_in(&streamed))?;
            well_formed(&plain, &streamed)?;
        }
    }
    Ok(())
}

async fn wire_13(ctx: &Ctx) -> CaseResult {
    // given
    let arguments = json!({"city": "Zürich", "days": 3});
    let p1 = ctx.stub("p1")?;
    p1.mount(
        chat().user_says("capital"),
        reply("Paris, 東京 and \"Bern\".").usage(12, 7),
    )
    .await;
    p1.mount(
        chat().user_says("weather"),
        reply("I look it up.")
            .tool_call("weather", arguments)
            .usage(21, 9),
    )
    .await;
    // when
    for asked in [
        ctx.prompt("solo", "capital"),
        with_tools(ctx.prompt("solo", "weather")),
    ] {
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
        .map_err(silent)?;
    }
    Ok(())
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
