//! FALL: when one candidate fails the next one serves, and the client learns when none could.

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds, json, silent};
use gauntlet_harness::client::{End, Reply, Transcript};
use gauntlet_harness::llm::{Responder, Stub, chat, error, openai, raw, reply, tool_call, with};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec};
use gauntlet_harness::subject::Capability;
use serde_json::{Value, json};

use super::CaseRow;
use super::support::{asked_for, reports_error, silent_if, silent_in, until_asked};

const FALLBACK: &[Capability] = &[Capability::Chat, Capability::Fallback];
const STREAM: &[Capability] = &[Capability::Chat, Capability::Stream, Capability::Fallback];

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "FALL-01",
        why: "Users, and not the gateway, found that fallbacks never ran on 4xx and 429 \
              (https://github.com/maximhq/bifrost/issues/3261).",
        shown: "The first provider answers 503, then 429, then refuses connections. The second \
                provider's answer must come each time. Where the target names who served, it must name \
                the second provider.",
        remedy: "Ask the next candidate after every failure that is the provider's, and name the \
                 candidate that answered.",
        needs: FALLBACK,
        instances: &[],
        spec: Spec::pair,
        run: &fall_01,
    },
    CaseRow {
        id: "FALL-02",
        why: "A login page came back as a completion \
              (https://github.com/Portkey-AI/gateway/issues/267).",
        shown: "The first provider answers 200 with each of these bodies. The client must get the \
                second provider's answer.",
        remedy: "Read the body before the status is believed.",
        needs: FALLBACK,
        instances: &[],
        spec: Spec::pair,
        run: &fall_02,
    },
    CaseRow {
        id: "FALL-03",
        why: "510 streams of an overloaded provider failed within 80 minutes, and none fell back, \
              since each had begun with 200 (https://github.com/BerriAI/litellm/pull/38153).",
        shown: "The first provider's stream is 200 and then cut, an in-band error, or over before any \
                text. The client must see the second provider's stream and nothing of the first: each \
                answer has an id of its own, by which a splice is seen.",
        remedy: "Send nothing to the client before the first token of an attempt has come.",
        needs: STREAM,
        instances: &[],
        spec: Spec::pair,
        run: &fall_03,
    },
    CaseRow {
        id: "FALL-04",
        why: "Text came twice (https://github.com/BerriAI/litellm/pull/32835), or the stream just \
              ended (https://github.com/Portkey-AI/gateway/issues/1797).",
        shown: "The first provider's stream is reset after its first text. The client must get that \
                text once and see that the stream broke. A second provider that is asked to continue \
                the text may do so.",
        remedy: "After the first token, report the failure as an error event, and never begin another \
                 candidate's answer in the same stream.",
        needs: STREAM,
        instances: &[],
        spec: Spec::pair,
        run: &fall_04,
    },
    CaseRow {
        id: "FALL-05",
        why: "Client libraries retry by the status; behind a 200 they hand an empty answer to the \
              user (https://github.com/BerriAI/litellm/issues/6957).",
        shown: "One provider is overloaded, and the other's stream is cut before its first token. The \
                status must be 500 or more.",
        remedy: "Send the status line only when the outcome is known.",
        needs: STREAM,
        instances: &[],
        spec: Spec::pair,
        run: &fall_05,
    },
    CaseRow {
        id: "FALL-06",
        why: "Fallbacks on every error sent a wrong request to one provider after the other \
              (https://github.com/Portkey-AI/gateway/issues/855).",
        shown: "The first provider refuses four requests, with a breaker that opens after two \
                failures. The second provider must see none of them, and the first must serve the next \
                request.",
        remedy: "Pass a refusal of the request on to the client, and count only the provider's own \
                 failures.",
        needs: FALLBACK,
        instances: &[],
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
        shown: "The OpenAI provider is down. The Ollama provider must get every message in order, the \
                arguments of the tool call, the tools, temperature, length and stop words, and its \
                tool call must come back in OpenAI's shape.",
        remedy: "Translate the whole request, and refuse what the other protocol cannot express.",
        needs: &[
            Capability::Chat,
            Capability::Fallback,
            Capability::Ollama,
            Capability::Tools,
        ],
        instances: &[],
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
        shown: "One provider answers 503, the other 200 with HTML. The error must list both in order, \
                with a cause each, and hold neither provider's key, although both send it.",
        remedy: "Collect the cause of each attempt, and take keys out of providers' messages.",
        needs: &[
            Capability::Chat,
            Capability::Fallback,
            Capability::AttemptList,
        ],
        instances: &[],
        spec: Spec::pair,
        run: &fall_08,
    },
];

async fn fall_01(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    ctx.stub("p2")?.answers(reply("Bern"));
    let mut deviations = Deviations::new();
    for what in ["status 503", "status 429", "a refused connection"] {
        let row = async {
            until_asked(ctx, "pair", p1).await?;
            match what {
                "status 503" => p1.answers(error(503)),
                "status 429" => p1.answers(error(429)),
                _ => p1.listen(Listen::Refuse).await?,
            }
            // when
            let answer = ctx.client.chat(ctx.prompt("pair", what)).await?;
            // then
            served_by_second(ctx, &answer, what)?;
            if what == "a refused connection" {
                return Ok(());
            }
            asked_for(ctx, "first.requests", p1, what)
        };
        deviations.note(row.await)?;
    }
    deviations.result()
}

/// The answer must be the second candidate's, and name it where the target names who served.
fn served_by_second(ctx: &Ctx, answer: &Reply, what: &str) -> CaseResult {
    equal(
        "answer.status",
        &format!("the status ({what})"),
        200,
        answer.status,
    )?;
    equal(
        "answer.text",
        &format!("the text ({what})"),
        "Bern",
        answer.content().as_str(),
    )
    .map_err(silent)?;
    if ctx.declares(Capability::ServedBy) {
        equal(
            "answer.served_by",
            &format!("the header x-gauntlet-provider ({what})"),
            Some("p2"),
            answer.header("x-gauntlet-provider"),
        )
        .map_err(silent)?;
    }
    Ok(())
}

async fn fall_02(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    ctx.stub("p2")?.answers(reply("Bern"));
    let nothing = [
        (
            "HTML",
            raw(200, "text/html", "<html><body>Please log in</body></html>"),
        ),
        (
            "broken JSON",
            raw(
                200,
                "application/json",
                "{\"id\": \"chatcmpl-1\", \"choices\": [{\"index\": 0, \"mess",
            ),
        ),
        ("an empty body", raw(200, "application/json", "")),
        (
            "no choices",
            raw(
                200,
                "application/json",
                json!({"id": "chatcmpl-1", "object": "chat.completion", "choices": []}).to_string(),
            ),
        ),
    ];
    let mut deviations = Deviations::new();
    for (what, responder) in nothing {
        let row = async {
            until_asked(ctx, "pair", p1).await?;
            p1.answers(responder);
            // when
            let answer = ctx.client.chat(ctx.prompt("pair", what)).await?;
            // then
            asked_for(ctx, "first.requests", p1, what)?;
            served_by_second(ctx, &answer, what)
        };
        deviations.note(row.await)?;
    }
    deviations.result()
}

async fn fall_03(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    ctx.stub("p2")?.answers(reply("").tokens(["Be", "rn"]));
    let lost = || reply("").tokens(["Par", "is"]);
    let failures: [(&str, Responder); 5] = [
        ("overloaded", error(503)),
        (
            "cut after its headers",
            lost().plan(Plan::of([Step::Head, Step::Cut])),
        ),
        (
            "cut before its first text",
            lost().plan(Plan::events_then(1, Step::Cut)),
        ),
        (
            "an error in band",
            reply("").tokens([""; 0]).then_error(503, "overloaded"),
        ),
        ("over without a word", raw(200, "text/event-stream", "")),
    ];
    let mut deviations = Deviations::new();
    for (what, responder) in failures {
        let row = async {
            until_asked(ctx, "pair", p1).await?;
            p1.answers(responder);
            // when
            let stream = ctx.client.streamed(ctx.prompt("pair", what)).await?;
            // then
            asked_for(ctx, "first.requests", p1, what)?;
            clean(ctx, &stream, what)?;
            unspliced(&stream, p1, what)
        };
        deviations.note(row.await)?;
    }
    deviations.result()
}

/// No chunk of the stream may be one of the first candidate's, and all must be of one stream. A
/// gateway that gives each chunk an id of its own is judged by STRM-13 alone.
fn unspliced(stream: &Transcript, first: &Stub, what: &str) -> CaseResult {
    let of_first: Vec<String> = first
        .calls(what)
        .iter()
        .map(|call| openai::completion_id(call.request))
        .collect();
    let all = stream.ids();
    let mut ids = all.clone();
    ids.dedup();
    let foreign = ids.iter().any(|id| of_first.contains(id));
    let several = ids.len() > 1 && ids.len() < all.len();
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
    ctx.stub("p1")?.answers(
        reply("")
            .tokens(["Par", "is"])
            .plan(Plan::events_then(2, Step::Reset)),
    );
    ctx.stub("p2")?.answers(with(|asked| {
        let last = asked.json["messages"]
            .as_array()
            .and_then(|messages| messages.last())
            .cloned()
            .unwrap_or_default();
        let continues = last["role"] == "assistant" && last["content"] == "Par";
        reply(if continues { "is" } else { "Paris" })
    }));
    // when
    let stream = ctx.client.streamed(ctx.prompt("pair", "capital")).await?;
    // then
    once_and_reported(&stream)
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
    ctx.stub("p1")?.answers(error(503));
    let p2 = ctx.stub("p2")?;
    p2.mount(
        chat().streaming(true),
        reply("Paris").plan(Plan::events_then(1, Step::Cut)),
    )
    .await;
    p2.mount(chat().streaming(false).user_says("plain"), error(500))
        .await;
    // when
    let stream = ctx.client.streamed(ctx.prompt("pair", "streamed")).await?;
    until_asked(ctx, "pair", p2).await?;
    let plain = ctx.client.chat(ctx.prompt("pair", "plain")).await?;
    // then
    for what in ["streamed", "plain"] {
        if p2.calls(what).is_empty() {
            return Err(Failure::NotExercised {
                why: format!(
                    "the second candidate was not asked ({what}), so that not all candidates failed; \
                     FALL-01 and FALL-03 judge that"
                ),
            });
        }
    }
    holds(
        "stream.status",
        stream.status >= 500,
        "a status of 500 or more for the stream",
        stream.status,
    )
    .map_err(silent_in(&stream))?;
    holds(
        "plain.status",
        plain.status >= 500,
        "a status of 500 or more for the plain request",
        plain.status,
    )
    .map_err(silent_if(plain.status < 400))?;
    holds(
        "stream.error",
        stream.error.is_some(),
        "an error in the body",
        String::from_utf8_lossy(&stream.body),
    )
}

async fn fall_06(ctx: &Ctx) -> CaseResult {
    // given
    let (p1, p2) = (ctx.stub("p1")?, ctx.stub("p2")?);
    p1.mount(chat().user_says("wrong 400"), error(400)).await;
    p1.mount(chat().user_says("wrong 422"), error(422)).await;
    p1.answers(reply("Paris"));
    p2.answers(reply("Bern"));
    // when
    let refused = async |text: &str| {
        Ok::<_, Failure>(ctx.client.chat(ctx.prompt("pair", text)).await?.status)
    };
    let mut statuses = vec![refused("wrong 400").await?, refused("wrong 422").await?];
    let fallbacks = p2.requests().len();
    statuses.extend([refused("wrong 400").await?, refused("wrong 422").await?]);
    let next = ctx.client.chat(ctx.prompt("pair", "right")).await?;
    // then
    equal(
        "second.requests",
        "the number of requests at the second candidate after two refusals",
        0,
        fallbacks,
    )?;
    holds(
        "answer.statuses",
        statuses.iter().all(|status| (400..500).contains(status)),
        "the client's own error (4xx) each time",
        json(&statuses),
    )?;
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
    // when
    let mut request = conversation();
    request["model"] = ctx.model("mixed").into();
    let answer = ctx.client.chat(request.clone()).await?;
    // then
    equal("answer.status", "the status", 200, answer.status)?;
    let asked = p2.seen(1).await?;
    let translated = asked[0].json();
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
        5,
        translated["messages"].as_array().map_or(0, Vec::len),
    )?;
    equal(
        "earlier_call.arguments",
        "the arguments of the earlier call",
        &json!({"city": "Paris"}),
        &translated["messages"][2]["tool_calls"][0]["function"]["arguments"],
    )?;
    equal(
        "request.tool",
        "the tool of the request",
        &json!("get_weather"),
        &translated["tools"][0]["function"]["name"],
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
    let call = answer.json()["choices"][0]["message"]["tool_calls"][0]["function"].clone();
    let arguments: Value =
        serde_json::from_str(call["arguments"].as_str().unwrap_or_default()).unwrap_or_default();
    equal(
        "answer.tool_call",
        "the tool call of the answer",
        (&json!("get_weather"), json!({"city": "Bern"})),
        (&call["name"], arguments),
    )
}

/// A conversation with a tool that was called once.
fn conversation() -> Value {
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\":\"Paris\"}"}});
    let parameters =
        json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    json!({
        "messages": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "Weather in Paris?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            {"role": "user", "content": "And in Bern?"},
        ],
        "tools": [{"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": parameters}}],
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
    ctx.stub("p1")?
        .answers(error(503).message(&format!("overloaded for key {}", keys[0])));
    ctx.stub("p2")?.answers(raw(
        200,
        "text/html",
        format!("<html>not for {}</html>", keys[1]),
    ));
    // when
    let answer = ctx.client.chat(ctx.prompt("pair", "capital")).await?;
    // then
    holds(
        "answer.status",
        answer.status >= 500,
        "a status of 500 or more",
        answer.status,
    )?;
    let mut attempts = answer.json()["error"]["attempts"]
        .as_array()
        .cloned()
        .unwrap_or_default();
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
        vec!["p1", "p2"],
        providers,
    )?;
    let causes: Vec<&str> = attempts
        .iter()
        .filter_map(|attempt| attempt["cause"].as_str())
        .collect();
    holds(
        "attempts.causes",
        causes.len() == 2 && causes[0] != causes[1],
        "two causes that differ",
        json(&causes),
    )?;
    let leaked = keys.iter().any(|key| answer.text().contains(key.as_str()));
    holds(
        "error.secret",
        !leaked,
        "no key in the error",
        "a provider's key",
    )
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
