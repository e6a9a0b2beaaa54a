//! ERR: an error has the right status, one shape, an id, and no secret in it.

use futures::FutureExt;
use gauntlet_harness::case::{Case, CaseResult, Ctx, Level, Profile, equal, holds, lied};
use gauntlet_harness::client::Reply;
use gauntlet_harness::gate::{guard, poll_until};
use gauntlet_harness::llm::{Responder, chat, error, raw, reply, with};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{KeySpec, Protocol, Spec};
use gauntlet_harness::target::Capability;
use serde_json::Value;

const CHAT: &[Capability] = &[Capability::Chat];

pub(super) const CASES: &[Case] = &[
    Case {
        id: "ERR-01",
        level: Level::Must,
        profiles: &[Profile::Llm],
        requirement: "each provider failure class maps to the documented status, type and code (snapshot of the whole table)",
        why: "Client libraries decide by the status whether to try again; a rate limit told as 502 is tried again at once, a refused connection \
              told as 500 is taken for a bug.",
        shown: "One provider fails in each way, another never answers. Each status must be one that says so (the statuses allowed are in the \
                case's table), in an envelope with message, type, code and param.",
        remedy: "Keep one table from the cause of a failure to status, type and code, and send every error through it.",
        needs: CHAT,
        spec: || {
            let mut spec = Spec::solo().provider("p2", Protocol::OpenAi).model("late", &["p2"]);
            spec.models[1].timeouts.total_ms = Some(300);
            spec
        },
        run: |ctx| err_01(ctx).boxed(),
    },
    Case {
        id: "ERR-02",
        level: Level::Must,
        profiles: &[Profile::Llm],
        requirement: "the provider's 401/403 (our key is bad) is not the client's 401: it is 502",
        why: "Users with valid keys were told that theirs were invalid, and made new ones, while the operator's had expired.",
        shown: "The provider answers 401, then 403, plain and streamed; the client must be told 502.",
        remedy: "Map the provider's 401 and 403 to 502: the credentials are the gateway's own.",
        needs: &[Capability::Chat, Capability::Stream, Capability::OwnProviderKeys],
        spec: Spec::solo,
        run: |ctx| err_02(ctx).boxed(),
    },
    Case {
        id: "ERR-03",
        level: Level::Must,
        profiles: &[Profile::Llm],
        requirement: "invalid JSON, wrong types, unknown model, route, method, media type: the right 4xx in the same envelope",
        why: "A client library that cannot read the error shows its user a parser's message instead of what was wrong.",
        shown: "One request of each kind must be refused with its status in an envelope with message and type; a good request follows, and the \
                provider must have seen nothing else.",
        remedy: "Check a request before it is sent on, and give the framework's own errors the same envelope.",
        needs: CHAT,
        spec: Spec::solo,
        run: |ctx| err_03(ctx).boxed(),
    },
    Case {
        id: "ERR-04",
        level: Level::Must,
        profiles: &[Profile::Llm],
        requirement: "no error or log holds a key, a provider's URL with credentials, or a panic's text (canary secrets)",
        why: "Providers' errors repeat the key they were sent, and gateways passed them on (https://github.com/BerriAI/litellm/issues/6963, \
              https://github.com/BerriAI/litellm/issues/15799).",
        shown: "The provider repeats the key that it was sent in its errors, plain, in band, as HTML and in headers. No answer of the gateway and, \
                where the harness sees it, no line of its log may hold that key, the client's, or a wrong one.",
        remedy: "Take known keys out of providers' messages; never log headers; pass on no header of a provider that is not known.",
        needs: &[Capability::Chat, Capability::Stream],
        spec: with_a_key,
        run: |ctx| err_04(ctx).boxed(),
    },
    Case {
        id: "ERR-05",
        level: Level::Must,
        profiles: &[Profile::Llm],
        requirement: "a request id is accepted, returned, logged, and sent on",
        why: "Without one id on all sides nobody finds the request that a user complains about.",
        shown: "A served, a failing and a refused request carry x-request-id; it must come back each time, be in the log where the harness sees it, and \
                have reached the provider. A request without one must be given one.",
        remedy: "Take x-request-id, or make one, at the door; put it into the answer, the log, and the provider's request.",
        needs: &[Capability::Chat, Capability::RequestId],
        spec: Spec::solo,
        run: |ctx| err_05(ctx).boxed(),
    },
];

/// The client's key of [`with_a_key`].
const CLIENT_KEY: &str = "sk-canary-client-a-94e1d07c5b2f4f3e";

/// One provider, and one client's key.
fn with_a_key() -> Spec {
    let mut spec = Spec::solo();
    spec.keys.push(KeySpec { tenant: "a".into(), token: CLIENT_KEY.into() });
    spec
}

/// ERR-01 (MUST): each class of a provider's failure has its status, in the envelope.
async fn err_01(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    ctx.stub("p2")?.answers(reply("too late").plan(Plan::silent()));
    for (what, responder, allowed) in failures() {
        p1.answers(responder);
        // when
        let answer = ctx.client.chat(ctx.prompt("solo", what)).await?;
        // then
        told(what, &answer, allowed)?;
    }
    let late = ctx.client.chat(ctx.prompt("late", "never")).await?;
    told("no answer in time", &late, &[504])
}

/// The ways in which a provider fails, and the statuses that say so.
fn failures() -> Vec<(&'static str, Responder, &'static [u16])> {
    vec![
        ("400", error(400), &[400]),
        ("404", error(404), &[404, 400, 502]),
        ("413", error(413), &[413, 400]),
        ("422", error(422), &[422, 400]),
        ("429", error(429), &[429]),
        ("429 for a quota", error(429).kind("insufficient_quota").code("insufficient_quota"), &[429]),
        ("500", error(500), &[502, 500, 503]),
        ("502", error(502), &[502, 503]),
        ("503", error(503), &[503, 502]),
        ("504", error(504), &[504, 502]),
        ("200 with HTML", raw(200, "text/html", "<html></html>"), &[502, 503]),
        ("an error in a 200", raw(200, "application/json", r#"{"error":{"message":"overloaded","type":"server_error"}}"#), &[502, 503]),
        ("a cut", reply("lost").plan(Plan::of([Step::Head, Step::Bytes(20), Step::Cut])), &[502, 503, 504]),
        ("a reset", reply("lost").plan(Plan::of([Step::Reset])), &[502, 503, 504]),
    ]
}

/// One of the allowed statuses, in OpenAI's envelope.
fn told(what: &str, answer: &Reply, allowed: &[u16]) -> CaseResult {
    let wrong = answer.status < 400;
    let status = holds(allowed.contains(&answer.status), format!("one of {allowed:?} for {what}"), answer.status);
    if wrong {
        status.map_err(lied)?
    } else {
        status?
    }
    enveloped(what, answer)
}

/// `{"error": {"message": …, "type": …, "code": …, "param": …}}`; the last two may be null or left out.
fn enveloped(what: &str, answer: &Reply) -> CaseResult {
    let error = answer.json()["error"].clone();
    let said = |name: &str| error[name].as_str().is_some_and(|text| !text.is_empty());
    let optional = |name: &str| matches!(error[name], Value::Null | Value::String(_) | Value::Number(_));
    let whole = said("message") && said("type") && optional("code") && optional("param");
    holds(whole, format!("OpenAI's error envelope for {what} ({})", answer.status), answer.text())
}

/// ERR-02 (MUST): the provider's 401 and 403 are the client's 502.
async fn err_02(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    for status in [401, 403] {
        p1.answers(error(status));
        // when
        let plain = ctx.client.chat(ctx.prompt("solo", &format!("plain {status}"))).await?;
        let stream = ctx.client.stream(ctx.prompt("solo", &format!("streamed {status}"))).await?.collect().await?;
        // then
        equal(&format!("status for a provider's {status}"), 502, plain.status)?;
        equal(&format!("status of a stream for a provider's {status}"), 502, stream.status)?;
    }
    Ok(())
}

/// ERR-03 (MUST): what is wrong with a request is told by the right 4xx, in the same envelope.
async fn err_03(ctx: &Ctx) -> CaseResult {
    // given
    const CHAT: &str = "/v1/chat/completions";
    const JSON: &str = "application/json";
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("fine"));
    let body = |name: &str, value: Value| {
        let mut body = ctx.prompt("solo", "wrong");
        body[name] = value;
        body.to_string()
    };
    let good = ctx.prompt("solo", "wrong").to_string();
    let wrong: Vec<(&str, &str, &str, &str, String, &[u16])> = vec![
        ("invalid JSON", "POST", CHAT, JSON, good[..good.len() - 2].to_string(), &[400, 422]),
        ("no object", "POST", CHAT, JSON, "[1, 2]".into(), &[400, 422]),
        ("messages as text", "POST", CHAT, JSON, body("messages", "hello".into()), &[400, 422]),
        ("a model that is a number", "POST", CHAT, JSON, body("model", 7.into()), &[400, 404, 422]),
        ("stream as text", "POST", CHAT, JSON, body("stream", "perhaps".into()), &[400, 422]),
        ("an unknown model", "POST", CHAT, JSON, body("model", "no-such-model".into()), &[404, 400]),
        ("an unknown route", "POST", "/v1/no/such/route", JSON, good.clone(), &[404]),
        ("an unknown method", "DELETE", CHAT, JSON, String::new(), &[405, 404]),
        ("another media type", "POST", CHAT, "text/plain", good.clone(), &[415, 400]),
    ];
    // when
    for (what, method, path, media, body, allowed) in wrong {
        let answer = ctx.client.request(method, path, &[("content-type", media)], body.as_bytes()).await?;
        told(what, &answer, allowed)?;
    }
    let right = ctx.client.chat(ctx.prompt("solo", "right")).await?;
    // then
    equal("status of a good request", 200, right.status)?;
    equal("requests at the provider", 1, p1.requests().len())
}

/// ERR-04 (MUST NOT): no error and no log holds a secret.
async fn err_04(ctx: &Ctx) -> CaseResult {
    // given
    const WRONG_KEY: &str = "sk-canary-wrong-2c8e5a7f1b394d60";
    let p1 = ctx.stub("p1")?;
    let keyed = ctx.manifest.capabilities.contains(&Capability::Keys);
    let client = if keyed { ctx.client.with_bearer(CLIENT_KEY) } else { ctx.client.clone() };
    for status in [400, 401, 403, 429, 500, 503] {
        let repeats = with(move |asked| {
            error(status).message(&format!("not with {}", sent(asked.header("authorization")))).header("x-sent", sent(asked.header("authorization")))
        });
        p1.mount(chat().user_says(&format!("status {status}")), repeats).await;
    }
    p1.mount(chat().user_says("html"), with(|asked| raw(200, "text/html", format!("<html>{}</html>", sent(asked.header("authorization")))))).await;
    let in_band = with(|asked| reply("").tokens(["Par"]).then_error(500, &format!("not with {}", sent(asked.header("authorization")))));
    p1.mount(chat().user_says("in band"), in_band).await;
    // when
    let mut seen = Vec::new();
    for what in ["status 400", "status 401", "status 403", "status 429", "status 500", "status 503", "html", "in band"] {
        let plain = client.chat(ctx.prompt("solo", what)).await?;
        let stream = client.stream(ctx.prompt("solo", what)).await?.collect().await?;
        seen.push((what, format!("{:?} {}", plain.headers, plain.text())));
        seen.push((what, format!("{:?} {}", stream.headers, String::from_utf8_lossy(&stream.body))));
    }
    if keyed {
        let refused = ctx.client.with_bearer(WRONG_KEY).chat(ctx.prompt("solo", "wrong key")).await?;
        seen.push(("a wrong key", format!("{:?} {}", refused.headers, refused.text())));
    }
    // then
    if let Some(process) = &ctx.target.process {
        seen.push(("the log", process.log()));
    }
    let secrets = ctx.spec.providers.iter().map(|provider| provider.api_key.as_str()).chain([CLIENT_KEY, WRONG_KEY]);
    for secret in secrets {
        let leak = seen.iter().find(|(_, text)| text.contains(secret)).map(|(what, _)| *what);
        holds(leak.is_none(), "no secret in errors, headers and log", format_args!("a key in the answer to (or in) {leak:?}"))?;
    }
    let panics = seen.iter().find(|(_, text)| text.contains("panicked at")).map(|(what, _)| *what);
    holds(panics.is_none(), "no panic's text", format_args!("one in the answer to (or in) {panics:?}"))
}

/// The credentials as the provider was sent them.
fn sent(authorization: Option<&str>) -> &str {
    authorization.unwrap_or("no key")
}

/// ERR-05 (MUST): a request id is accepted, returned, logged, and sent on.
async fn err_05(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.mount(chat().user_says("fails"), error(503)).await;
    p1.answers(reply("fine"));
    // when
    let mut ids = Vec::new();
    for (alias, what) in [("solo", "served"), ("solo", "fails"), ("nobody", "refused")] {
        let id = format!("req-{what}-{}", ctx.nonce);
        let answer = ctx.client.with_header("x-request-id", &id).chat(ctx.prompt(alias, what)).await?;
        equal(&format!("x-request-id of the answer ({what})"), Some(id.as_str()), answer.header("x-request-id"))?;
        ids.push(id);
    }
    let without = ctx.client.chat(ctx.prompt("solo", "without")).await?;
    // then
    for (what, id) in ["served", "fails"].iter().zip(&ids) {
        let sent_on = p1.calls(what).first().and_then(|call| call.header("x-request-id").map(String::from));
        equal(&format!("x-request-id at the provider ({what})"), Some(id), sent_on.as_ref())?;
    }
    let given = without.header("x-request-id").filter(|id| !id.is_empty()).map(String::from);
    holds(given.is_some(), "an id for a request without one", "none")?;
    equal("the same at the provider", given, p1.calls("without").first().and_then(|call| call.header("x-request-id").map(String::from)))?;
    if let Some(process) = &ctx.target.process {
        let logged = poll_until(|| Some(process.log()).filter(|log| ids.iter().all(|id| log.contains(id.as_str()))));
        guard("every request id in the log", logged).await?;
    }
    Ok(())
}
