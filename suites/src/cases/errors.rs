//! ERR: an error has the right status, one shape, an id, and no secret in it.

use futures::FutureExt;
use futures::future::{join, join_all};
use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds, silent};
use gauntlet_harness::client::{Client, Reply, Transcript};
use gauntlet_harness::gate::{guard, poll_until};
use gauntlet_harness::llm::{
    Responder, Stub, StubRequest, chat, error, raw, reply, sequence, with,
};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::{DatabaseNeed, Protocol, ProviderSpec, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use serde_json::{Value, json};

use super::CaseRow;
use super::support::{
    DOCUMENTS, applies, broken, chunk, does_its_part, is_streamed, located, marked, noted, query,
    silent_in, together, unexercised_if_hung, until_asked,
};
use crate::agents::AGENTS;

const CHAT: &[Capability] = &[Capability::Chat];
const CHAT_PATH: &str = "/v1/chat/completions";
const QUERY_PATH: &str = "/api/v1/queries";

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "ERR-01",
        why: "Client libraries decide by the status whether to try again: they repeat a rate limit \
              that comes as 502 at once, and take a refused connection that comes as 500 for a bug.",
        shown: "Providers of two protocols fail in each way, plain and streamed, and another never \
                answers. Each status must be one that fits (the case's table lists them), in an \
                envelope with message, type, code and param. A stream may report its failure in band.",
        remedy: "Keep one table from the cause of a failure to status, type and code, and send every \
                 error through it.",
        needs: CHAT,
        instances: &[
            "plain",
            "streamed",
            "Ollama, plain",
            "Ollama, streamed",
            "nobody listens, plain",
            "nobody listens, streamed",
            "no answer in time, plain",
            "no answer in time, streamed",
        ],
        spec: || {
            let late = Timeouts {
                total_ms: Some(300),
                ..Timeouts::default()
            };
            Spec::solo()
                .provider("p2", Protocol::OPENAI)
                .model("late", &["p2"])
                .provider("p3", Protocol::OLLAMA)
                .optional_model("local", &["p3"])
                .model_timeouts("late", late)
        },
        run: &err_01,
    },
    CaseRow {
        id: "ERR-02",
        why: "Users with valid keys got the answer that theirs were invalid, and made new ones, \
              while the operator's key had expired.",
        shown: "The provider answers 401, then 403, plain and streamed, and so do both of two candidates. \
                The client must get 502.",
        remedy: "Map the provider's 401 and 403 to 502: the credentials are the gateway's own.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::OwnProviderKeys,
        ],
        instances: &[
            "plain, 401",
            "streamed, 401",
            "plain, 403",
            "streamed, 403",
            "both candidates, plain, 401",
            "both candidates, streamed, 401",
            "Ollama, plain, 401",
            "Ollama, streamed, 401",
        ],
        spec: || {
            Spec::pair()
                .model("solo", &["p1"])
                .provider("p3", Protocol::OLLAMA)
                .optional_model("local", &["p3"])
        },
        run: &err_02,
    },
    CaseRow {
        id: "ERR-03",
        why: "A client library that cannot read the error shows its user a parser's message instead \
              of the cause.",
        shown: "Requests of each wrong kind, plain and streamed, must be refused with a fitting status, \
                in an envelope with message and type. A good request must be served afterwards.",
        remedy: "Check a request before it is sent on, and give the framework's own errors the same \
                 envelope.",
        needs: CHAT,
        instances: &[
            "invalid JSON",
            "wrong types",
            "missing fields",
            "streamed",
            "unknown model",
            "unknown route",
            "unknown method",
            "another media type",
            "queries",
            "documents",
        ],
        spec: Spec::solo,
        run: &err_03,
    },
    CaseRow {
        id: "ERR-04",
        why: "Providers' errors repeat the key that they were sent, and gateways passed them on \
              (https://github.com/BerriAI/litellm/issues/6963, \
              https://github.com/BerriAI/litellm/issues/15799).",
        shown: "The providers repeat the key that they were sent, with and without Bearer: in errors of \
                every status and shape, in headers, in error events, and in answers that cannot be \
                read; a query meets them, too. One provider, whose URL holds a password, does the \
                same, and then refuses its connection. No answer of the gateway and, where the harness \
                sees it, no line of its log may hold that password, one of the keys, the client's key, \
                or a wrong one.",
        remedy: "Take known keys out of providers' messages, never log headers, and pass on only known \
                 headers of a provider.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::OwnProviderKeys,
        ],
        instances: &[
            "a status, plain",
            "a status, streamed",
            "another shape of error, plain",
            "another shape of error, streamed",
            "a header, plain",
            "a header, streamed",
            "an answer that cannot be read, plain",
            "an answer that cannot be read, streamed",
            "an error event, streamed",
            "an event that cannot be read, streamed",
            "a hexadecimal key",
            "a key in groups",
            "a key in base64",
            "Ollama",
            "a client's wrong key",
            "a query",
            "a URL with a password, plain",
            "a URL with a password, streamed",
        ],
        spec: with_a_key,
        run: &err_04,
    },
    CaseRow {
        id: "ERR-05",
        why: "Without one id on all sides, nobody finds the request that a user complains about.",
        shown: "Requests that are served, fail, are tried again, fall back or are refused carry \
                x-request-id, plain and streamed, and so does a query. The id must come back each \
                time, be in the log where the harness sees it, and reach the provider with each \
                attempt. A request without an id must be given one of its own.",
        remedy: "Take x-request-id or make one on arrival, and put it into the answer, the log, and the \
                 provider's request.",
        needs: &[Capability::Chat, Capability::RequestId],
        instances: &[
            "plain",
            "streamed",
            "a failure, plain",
            "a failure, streamed",
            "a second attempt, plain",
            "a second attempt, streamed",
            "the last candidate, plain",
            "the last candidate, streamed",
            "Ollama, plain",
            "Ollama, streamed",
            "a refused request",
            "a refused query",
            "a query with its agents",
            "without an id, plain",
            "without an id, streamed",
        ],
        spec: || {
            let mut spec = Spec {
                database: DatabaseNeed::None,
                ..query()
            };
            for (provider, protocol) in [
                ("p1", Protocol::OPENAI),
                ("p2", Protocol::OPENAI),
                ("p3", Protocol::OLLAMA),
            ] {
                spec = spec.provider(provider, protocol);
            }
            spec.retry.max_attempts = 2;
            spec.model("solo", &["p1"])
                .model("pair", &["p1", "p2"])
                .optional_model("local", &["p3"])
        },
        run: &err_05,
    },
    CaseRow {
        id: "ERR-06",
        why: "Gateways read one shape of error and lose the words of every other, so that their users \
              learn nothing but a status (agentgateway/agentgateway#1464).",
        shown: "The provider answers with twelve shapes of error body and the statuses 400, 429 and 500, \
                plain and streamed, all at once. Its words must be in the client's error, which must \
                have one shape.",
        remedy: "Look for the words in each known shape (message, detail, msg, error, errors, a text, \
                 and lists of these), and put them into the message of your own envelope.",
        needs: CHAT,
        instances: &[
            "an object, plain",
            "an object, streamed",
            "a number as code, plain",
            "a number as code, streamed",
            "a list as param, plain",
            "a list as param, streamed",
            "a list of objects, plain",
            "a list of objects, streamed",
            "a list of texts, plain",
            "a list of texts, streamed",
            "detail as a text, plain",
            "detail as a text, streamed",
            "detail as a list, plain",
            "detail as a list, streamed",
            "detail as an object, plain",
            "detail as an object, streamed",
            "error as a text, plain",
            "error as a text, streamed",
            "message, plain",
            "message, streamed",
            "errors as a list, plain",
            "errors as a list, streamed",
            "a plain text, plain",
            "a plain text, streamed",
        ],
        spec: Spec::solo,
        run: &err_06,
    },
];

/// The client's key in [`with_a_key`].
const CLIENT_KEY: &str = "c41d07e95b2a4f3e8d6c94e1d07c5b2f";

/// The password in the base URL of the provider `locked` of [`with_a_key`], where the target takes
/// one there, and user and password as they are sent.
const URL_PASSWORD: &str = "canary-password-3e9a1c7f";
const URL_BASIC: &str = "Y2FuYXJ5LXVzZXI6Y2FuYXJ5LXBhc3N3b3JkLTNlOWExYzdm";

/// A key that is not configured.
const WRONG_KEY: &str = "2c8e5a7f1b394d60a3e7c15d9f0b8246";

/// The providers of [`with_a_key`] with the alias of each and the key, in a form by which no mask
/// knows that it is one.
const KEYED: [(&str, &str, &str); 4] = [
    ("p1", "solo", "9f3c1e7a5b2d48604c8e7f1a2b3d5c6e"),
    ("p2", "grouped", "3f2a9c1e-7b4d-4e8a-9c0f-5d6e7f8a9b0c"),
    ("p3", "base64", "b1Nx+Q2FuYXJ5/a2V5LzEyMzQ1Ng=="),
    ("p4", "local", "70b4d2c98e5f4a16b3c7d81e2f90a4c5"),
];

/// Providers with keys of several forms, one whose URL holds a password, those of the agents, and
/// one client's key.
fn with_a_key() -> Spec {
    let mut spec = Spec {
        database: DatabaseNeed::None,
        ..query()
    };
    for (n, provider) in spec.providers.iter_mut().enumerate() {
        provider.api_key = format!("{n}5a8c3e1f7b9d4026e4c8a1f5b3d7{n}90e");
    }
    for (name, alias, _) in KEYED {
        let protocol = match alias {
            "local" => Protocol::OLLAMA,
            _ => Protocol::OPENAI,
        };
        spec = spec.provider(name, protocol).model(alias, &[name]);
    }
    let mut spec = spec
        .provider("locked", Protocol::OPENAI)
        .model("locked", &["locked"]);
    let key_of = |provider: &ProviderSpec| {
        let mut keyed = KEYED.iter();
        keyed
            .find(|(name, ..)| *name == provider.name)
            .map(|(.., key)| (*key).to_owned())
    };
    for provider in &mut spec.providers {
        if let Some(key) = key_of(provider) {
            provider.api_key = key;
        }
        if provider.name == "locked" {
            provider.userinfo = Some(format!("canary-user:{URL_PASSWORD}"));
        }
    }
    spec.key("a", CLIENT_KEY)
}

async fn err_01(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let mut deviations = Deviations::new();
    for (name, alias, provider) in [
        ("plain", "solo", "p1"),
        ("streamed", "solo", "p1"),
        ("Ollama, plain", "local", "p3"),
        ("Ollama, streamed", "local", "p3"),
    ] {
        if !applies(ctx, name) {
            continue;
        }
        let stub = ctx.stub(provider)?;
        let failures = failures();
        // a gateway that leaves a provider alone after one failure has asked for all of them before
        let meet = Step::Meet {
            name: name.into(),
            count: failures.len(),
        };
        for (what, responder, steps, _) in &failures {
            let steps = [meet.clone()].into_iter().chain(steps.iter().cloned());
            let says = chat().user_says(&format!("{what}, {}", marked(name)));
            let responder = responder.clone().plan(Plan::of(steps));
            stub.mount(says, responder).await;
        }
        until_asked(ctx, alias, stub).await?;
        // when
        let rows = failures.iter().map(|(what, .., allowed)| {
            let row = failed(ctx, name, alias, what, allowed);
            ctx.examine(name, row)
        });
        let met = ctx.gates.rendezvous(name, failures.len());
        let (met, rows) = join(met.met(), join_all(rows)).await;
        met.map_err(unexercised_if_hung(not_together))?;
        for row in rows {
            noted(&mut deviations, row)?;
        }
    }
    ctx.stub("p2")?
        .answers(reply("too late").plan(Plan::silent()));
    let late = ["no answer in time, plain", "no answer in time, streamed"];
    let late = late.into_iter().filter(|name| applies(ctx, name));
    let late = late.map(|name| {
        let late = failed(ctx, name, "late", "no answer in time", &[504]);
        (name, late)
    });
    together(ctx, &mut deviations, late).await?;
    until_asked(ctx, "solo", p1).await?;
    p1.listen(Listen::Refuse).await?;
    for name in ["nobody listens, plain", "nobody listens, streamed"] {
        if applies(ctx, name) {
            let refused = failed(ctx, name, "solo", "a refused connection", &[502, 503]);
            noted(&mut deviations, ctx.examine(name, refused).await)?;
        }
    }
    deviations.result()
}

/// Why a provider's failures say nothing about a gateway.
fn not_together() -> String {
    "the provider never had all of the requests at once (PARA-01)".into()
}

/// The request of the instance must be answered with one of the statuses; a stream may report its
/// failure in an event instead (FALL-05 is about that).
async fn failed(ctx: &Ctx, instance: &str, alias: &str, what: &str, allowed: &[u16]) -> CaseResult {
    let body = ctx.prompt(alias, &format!("{what}, {}", marked(instance)));
    let timed = allowed == [504];
    if !is_streamed(instance) {
        let answer = ctx.client.chat(body).await?;
        let fact = match timed {
            true => "status.timeout",
            false => "status.provider_failure",
        };
        return refused(fact, what, &answer, allowed);
    }
    let stream = ctx.client.streamed(body).await?;
    if stream.status == 200 && stream.error.is_some() {
        return Ok(());
    }
    holds(
        "status.streamed_failure",
        allowed.contains(&stream.status),
        format!("one of the statuses {allowed:?} for {what}, or an error event"),
        stream.status,
    )
    .map_err(silent_in(&stream))?;
    enveloped_in(
        what,
        stream.status,
        &stream.error.clone().unwrap_or_default(),
        || String::from_utf8_lossy(&stream.body).into_owned(),
    )
}

/// The ways in which a provider fails, how its bytes flow, and the statuses that fit.
fn failures() -> Vec<(&'static str, Responder, Vec<Step>, &'static [u16])> {
    let whole = || vec![Step::Head, Step::Rest];
    let status = |what, status, fits: &'static [u16]| (what, error(status), whole(), fits);
    let read = |what, kind, body: &'static str, fits: &'static [u16]| {
        (what, raw(200, kind, body), whole(), fits)
    };
    let quota = error(429)
        .kind("insufficient_quota")
        .code("insufficient_quota");
    vec![
        status("status 400", 400, &[400]),
        status("status 404", 404, &[404, 400, 502]),
        status("status 413", 413, &[413, 400]),
        status("status 422", 422, &[422, 400]),
        status("status 429", 429, &[429]),
        ("a quota that is used up", quota, whole(), &[429]),
        status("status 500", 500, &[502, 500, 503]),
        status("status 502", 502, &[502, 503]),
        status("status 503", 503, &[503, 502]),
        status("status 504", 504, &[504, 502]),
        read("HTML in a 200", "text/html", "<html></html>", &[502, 503]),
        read("an empty 200", "application/json", "", &[502, 503]),
        read(
            "an error in a 200",
            "application/json",
            r#"{"error":{"message":"overloaded","type":"server_error"}}"#,
            &[502, 503],
        ),
        (
            "a cut",
            reply("lost"),
            vec![Step::Head, Step::Bytes(20), Step::Cut],
            &[502, 503, 504],
        ),
        (
            "a cut before the headers",
            reply("lost"),
            vec![Step::Cut],
            &[502, 503, 504],
        ),
        (
            "a reset",
            reply("lost"),
            vec![Step::Reset],
            &[502, 503, 504],
        ),
    ]
}

/// The answer has one of the allowed statuses, in OpenAI's envelope.
fn refused(fact: &str, what: &str, answer: &Reply, allowed: &[u16]) -> CaseResult {
    let looks_right = answer.status < 400;
    let status = holds(
        fact,
        allowed.contains(&answer.status),
        format!("one of the statuses {allowed:?} for {what}"),
        answer.status,
    );
    if looks_right {
        status.map_err(silent)?
    } else {
        status?
    }
    enveloped(what, answer)
}

/// The body is `{"error": {"message": …, "type": …, "code": …, "param": …}}`; `code` and `param`
/// may be null or absent.
fn enveloped(what: &str, answer: &Reply) -> CaseResult {
    let error = answer.json()["error"].clone();
    enveloped_in(what, answer.status, &error, || answer.text())
}

/// The error has the members of the envelope.
fn enveloped_in(
    what: &str,
    status: u16,
    error: &Value,
    body: impl FnOnce() -> String,
) -> CaseResult {
    let filled = |name: &str| error[name].as_str().is_some_and(|text| !text.is_empty());
    let optional = |name: &str| {
        matches!(
            error[name],
            Value::Null | Value::String(_) | Value::Number(_)
        )
    };
    let whole = filled("message") && filled("type") && optional("code") && optional("param");
    holds(
        "error.envelope",
        whole,
        format!("OpenAI's error envelope for {what} ({status})"),
        body(),
    )
}

async fn err_02(ctx: &Ctx) -> CaseResult {
    // given
    let mut deviations = Deviations::new();
    for (name, alias, provider, status) in [
        ("plain, 401", "solo", "p1", 401),
        ("streamed, 401", "solo", "p1", 401),
        ("plain, 403", "solo", "p1", 403),
        ("streamed, 403", "solo", "p1", 403),
        ("both candidates, plain, 401", "pair", "p1", 401),
        ("both candidates, streamed, 401", "pair", "p1", 401),
        ("Ollama, plain, 401", "local", "p3", 401),
        ("Ollama, streamed, 401", "local", "p3", 401),
    ] {
        if !applies(ctx, name) {
            continue;
        }
        let row = async {
            let stub = ctx.stub(provider)?;
            until_asked(ctx, alias, stub).await?;
            stub.answers(error(status));
            // the first one alone may decide
            ctx.stub("p2")?.answers(error(status).optional());
            // when
            let body = ctx.prompt(alias, &marked(name));
            if is_streamed(name) {
                let stream = ctx.client.streamed(body).await?;
                // then
                return equal(
                    "stream.status",
                    &format!("the status of a stream for a provider's {status}"),
                    502,
                    stream.status,
                );
            }
            let plain = ctx.client.chat(body).await?;
            equal(
                "plain.status",
                &format!("the status of a plain request for a provider's {status}"),
                502,
                plain.status,
            )
        };
        noted(&mut deviations, ctx.examine(name, row.boxed()).await)?;
    }
    deviations.result()
}

async fn err_03(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.mount(chat().user_says("right"), reply("fine")).await;
    // a gateway may let the provider refuse
    p1.answers(error(400).optional());
    // when
    let mut deviations = Deviations::new();
    for documents_or_queries in ["queries", "documents"] {
        ctx.instance_if(Capability::Query, documents_or_queries);
    }
    ctx.instance_if(Capability::Stream, "streamed");
    for Wrong {
        instance,
        what,
        method,
        path,
        media,
        body,
        allowed,
    } in wrong_requests(ctx)
    {
        let row = async {
            let answer = ctx
                .client
                .request(method, path, &[("content-type", media)], body.as_bytes())
                .await?;
            refused("status.wrong_request", what, &answer, allowed)
        };
        noted(&mut deviations, ctx.examine(instance, row).await)?;
    }
    let right = ctx.client.chat(ctx.prompt("solo", "right")).await?;
    // then
    noted(
        &mut deviations,
        equal(
            "good.status",
            "the status of a good request",
            200,
            right.status,
        ),
    )?;
    deviations.result()
}

/// A request that must be refused, and the statuses that fit.
struct Wrong {
    instance: &'static str,
    what: &'static str,
    method: &'static str,
    path: &'static str,
    media: &'static str,
    body: String,
    allowed: &'static [u16],
}

fn wrong_requests(ctx: &Ctx) -> Vec<Wrong> {
    const UNREADABLE: &[u16] = &[400, 422];
    const JSON: &str = "application/json";
    let good = ctx.prompt("solo", "wrong").to_string();
    let post = |instance, what, path, body, allowed| Wrong {
        instance,
        what,
        method: "POST",
        path,
        media: JSON,
        body,
        allowed,
    };
    let chat = |instance, what, name: &str, value: Option<Value>, allowed| {
        let mut body = ctx.prompt("solo", "wrong");
        match (value, body.as_object_mut()) {
            (Some(value), _) => body[name] = value,
            (None, Some(body)) => drop(body.remove(name)),
            (None, None) => {}
        }
        post(instance, what, CHAT_PATH, body.to_string(), allowed)
    };
    let json = "invalid JSON";
    let types = "wrong types";
    let missing = "missing fields";
    let unknown = "unknown model";
    let method = |instance, what, method, path, allowed| Wrong {
        method,
        ..post(instance, what, path, String::new(), allowed)
    };
    let mut wrong = vec![
        post(
            json,
            "invalid JSON",
            CHAT_PATH,
            good[..good.len() - 2].to_string(),
            UNREADABLE,
        ),
        post(
            json,
            "text after the JSON",
            CHAT_PATH,
            format!("{good}}}"),
            UNREADABLE,
        ),
        post(
            json,
            "no JSON at all",
            CHAT_PATH,
            "hello".into(),
            UNREADABLE,
        ),
        post(json, "an empty body", CHAT_PATH, String::new(), UNREADABLE),
        post(types, "no object", CHAT_PATH, "[1, 2]".into(), UNREADABLE),
        chat(
            types,
            "messages as text",
            "messages",
            Some("hello".into()),
            UNREADABLE,
        ),
        chat(
            types,
            "messages as an object",
            "messages",
            Some(json!({})),
            UNREADABLE,
        ),
        chat(
            types,
            "a message that is a number",
            "messages",
            Some(json!([7])),
            UNREADABLE,
        ),
        chat(
            types,
            "a model that is a number",
            "model",
            Some(7.into()),
            &[400, 404, 422],
        ),
        chat(
            types,
            "stream as text",
            "stream",
            Some("perhaps".into()),
            UNREADABLE,
        ),
        chat(
            types,
            "stream as a number",
            "stream",
            Some(7.into()),
            UNREADABLE,
        ),
        chat(missing, "no messages", "messages", None, UNREADABLE),
        chat(
            missing,
            "an empty list of messages",
            "messages",
            Some(json!([])),
            UNREADABLE,
        ),
        chat(missing, "no model", "model", None, &[400, 404, 422]),
        chat(
            unknown,
            "an unknown model",
            "model",
            Some("no-such-model".into()),
            &[404, 400],
        ),
        chat(
            unknown,
            "an empty model",
            "model",
            Some("".into()),
            &[404, 400, 422],
        ),
        post(
            "unknown route",
            "an unknown route",
            "/v1/no/such/route",
            good.clone(),
            &[404],
        ),
        Wrong {
            method: "GET",
            ..post(
                "unknown route",
                "a GET of an unknown route",
                "/v1/no/such/route",
                String::new(),
                &[404],
            )
        },
        method(
            "unknown method",
            "an unknown method",
            "DELETE",
            CHAT_PATH,
            &[405, 404],
        ),
        method(
            "unknown method",
            "a GET of chats",
            "GET",
            CHAT_PATH,
            &[405, 404],
        ),
        method(
            "unknown method",
            "a PUT of chats",
            "PUT",
            CHAT_PATH,
            &[405, 404],
        ),
        Wrong {
            media: "text/plain",
            ..post(
                "another media type",
                "another media type",
                CHAT_PATH,
                good.clone(),
                &[415, 400],
            )
        },
        Wrong {
            media: "application/x-www-form-urlencoded",
            ..post(
                "another media type",
                "a form",
                CHAT_PATH,
                "model=solo".into(),
                &[415, 400, 422],
            )
        },
    ];
    if ctx.declares(Capability::Stream) {
        let streamed = |what, name: &str, value: Value, allowed| {
            let mut body = ctx.prompt("solo", "wrong");
            body["stream"] = true.into();
            body[name] = value;
            post("streamed", what, CHAT_PATH, body.to_string(), allowed)
        };
        wrong.extend([
            streamed(
                "a stream with messages as text",
                "messages",
                "hello".into(),
                UNREADABLE,
            ),
            streamed(
                "a stream without a message",
                "messages",
                json!([]),
                UNREADABLE,
            ),
            streamed(
                "a stream of an unknown model",
                "model",
                "no-such-model".into(),
                &[404, 400],
            ),
        ]);
    }
    if ctx.declares(Capability::Query) {
        let query = |what, body: &str| post("queries", what, QUERY_PATH, body.into(), &[400]);
        let document = |what, body: &str| post("documents", what, DOCUMENTS, body.into(), &[400]);
        wrong.extend([
            query("a query in invalid JSON", "{\"question\": "),
            query("a question that is a number", "{\"question\": 7}"),
            query("no question", "{}"),
            query("a query that is a list", "[]"),
            query(
                "a deadline as text",
                "{\"question\": \"who?\", \"deadline_ms\": \"soon\"}",
            ),
            query(
                "a deadline of nothing",
                "{\"question\": \"who?\", \"deadline_ms\": 0}",
            ),
            document("a document in invalid JSON", "{\"title\": "),
            document("a document without a text", "{\"title\": \"Elements\"}"),
            document(
                "a text that is a number",
                "{\"title\": \"Elements\", \"text\": 7}",
            ),
            post(
                "queries",
                "an unknown route of queries",
                "/api/v1/no/such/route",
                "{}".into(),
                &[404],
            ),
            method(
                "queries",
                "an unknown method of queries",
                "DELETE",
                QUERY_PATH,
                &[405],
            ),
            method(
                "documents",
                "an unknown method of documents",
                "PUT",
                DOCUMENTS,
                &[405],
            ),
        ]);
    }
    wrong
}

async fn err_04(ctx: &Ctx) -> CaseResult {
    // given
    for stub in ctx.stubs.values() {
        for (_, what, answer) in repeating() {
            stub.mount(chat().user_says(&marked(what)), answer).await;
        }
        stub.answers(reply("fine"));
    }
    // when
    let seen = exchanges(ctx).await?;
    if ctx.stub("p1")?.calls("status ").is_empty() {
        return Err(Failure::NotExercised {
            why: "the gateway does not ask its provider, so that no error with a key in it came"
                .into(),
        });
    }
    let log = ctx.target.process.as_ref().map(|process| process.log());
    // then
    let of_providers = ctx.spec.providers.iter();
    let secrets = of_providers
        .map(|provider| {
            let name = format!("the key of the provider {}", provider.name);
            (name, provider.api_key.as_str())
        })
        .chain(
            [
                ("the password of a provider's URL", URL_PASSWORD),
                ("user and password of a provider's URL", URL_BASIC),
                ("the client's key", CLIENT_KEY),
                ("a client's wrong key", WRONG_KEY),
                ("the text of a panic", "panicked at"),
            ]
            .map(|(name, secret)| (name.to_owned(), secret)),
        );
    let mut deviations = Deviations::new();
    for (name, secret) in secrets {
        let mut leaks: Vec<(&str, String)> = seen
            .iter()
            .flat_map(|answer| answer.leaks(secret))
            .collect();
        leaks.extend(
            log.iter()
                .filter(|log| log.contains(secret))
                .map(|_| ("secret.in_log", "the log".to_owned())),
        );
        let fact = match (secret, leaks.first()) {
            (URL_PASSWORD | URL_BASIC, _) => "secret.of_url",
            (_, Some((fact, _))) => fact,
            (_, None) => "secret.in_body",
        };
        let locations: Vec<String> = leaks.iter().map(|(_, location)| location.clone()).collect();
        noted(
            &mut deviations,
            holds(
                fact,
                leaks.is_empty(),
                "no secret in errors, headers and log",
                format_args!("{name} in {}", few(&locations)),
            )
            .map_err(silent),
        )?;
    }
    deviations.result()
}

/// The first of these locations, and how many more there are.
fn few(locations: &[String]) -> String {
    const MOST: usize = 4;
    let named = locations[..locations.len().min(MOST)].join(", in ");
    match locations.len().saturating_sub(MOST) {
        0 => named,
        more => format!("{named}, and in {more} more"),
    }
}

/// An answer of the gateway, and to what request it came.
struct Answered {
    what: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Whether the body is a stream, or an error in it.
    in_band: bool,
}

impl Answered {
    fn plain(what: impl Into<String>, reply: Reply) -> Self {
        Self {
            what: what.into(),
            headers: reply.headers,
            body: reply.body.to_vec(),
            in_band: false,
        }
    }

    /// Of a stream that is no stream of its own making, the error alone is the gateway's.
    fn streamed(what: impl Into<String>, stream: Transcript, error_alone: bool) -> Self {
        let body = match stream.error.filter(|_| error_alone && stream.status == 200) {
            Some(error) => error.to_string().into_bytes(),
            None if error_alone && stream.status == 200 => Vec::new(),
            None => stream.body.to_vec(),
        };
        Self {
            what: what.into(),
            headers: stream.headers,
            body,
            in_band: stream.status == 200,
        }
    }

    /// Where the secret stands, each with the fact that it breaks.
    fn leaks(&self, secret: &str) -> Vec<(&'static str, String)> {
        let found = located(secret, &self.what, &self.headers, &self.body);
        let fact = |location: &str| match self.in_band {
            _ if location.starts_with("the header") => "secret.in_header",
            true => "secret.in_event",
            false => "secret.in_body",
        };
        let facts = found
            .into_iter()
            .map(|location| (fact(&location), location));
        facts.collect()
    }
}

/// What a provider answers about the credentials that it was sent: in each form in which providers
/// repeat them.
fn repeated(asked: &StubRequest) -> String {
    let sent = asked.header("authorization").unwrap_or("no key");
    let key = sent.rsplit(' ').next().unwrap_or(sent);
    format!(
        "not with {sent}; {key} is wrong; key={key}; '{key}' at https://x.example/v1?api_key={key}"
    )
}

/// What is repeated in a header or in a field with a short value.
fn repeated_alone(asked: &StubRequest) -> String {
    let sent = asked.header("authorization").unwrap_or("no key");
    sent.rsplit(' ').next().unwrap_or(sent).to_owned()
}

/// The answers of providers that repeat what they were sent: the group of each, its name, and the
/// answer.
fn repeating() -> Vec<(&'static str, &'static str, Responder)> {
    const STATUS: &str = "a status";
    const SHAPE: &str = "another shape of error";
    const HEADER: &str = "a header";
    const UNREADABLE: &str = "an answer that cannot be read";
    let status = |code: u16| with(move |asked| error(code).message(&repeated(asked)));
    let shaped = |code: u16, shape: fn(&str) -> Value| {
        with(move |asked| {
            raw(
                code,
                "application/json",
                shape(&repeated(asked)).to_string(),
            )
        })
    };
    let headed = |code: u16, name: &'static str| {
        with(move |asked| error(code).header(name, &repeated_alone(asked)))
    };
    let text = |code: u16, kind: &'static str, around: fn(&str) -> String| {
        with(move |asked| raw(code, kind, around(&repeated(asked))))
    };
    vec![
        (STATUS, "status 400", status(400)),
        (STATUS, "status 401", status(401)),
        (STATUS, "status 403", status(403)),
        (STATUS, "status 404", status(404)),
        (STATUS, "status 422", status(422)),
        (STATUS, "status 429", status(429)),
        (STATUS, "status 500", status(500)),
        (STATUS, "status 503", status(503)),
        (
            STATUS,
            "code, type and param",
            with(|asked| {
                let key = repeated_alone(asked);
                let error = json!({"message": "wrong", "type": key, "code": key, "param": key});
                raw(
                    400,
                    "application/json",
                    json!({ "error": error }).to_string(),
                )
            }),
        ),
        (
            SHAPE,
            "list",
            shaped(400, |sent| json!([{"error": {"message": sent}}])),
        ),
        (
            SHAPE,
            "detail",
            shaped(422, |sent| json!({"detail": [{"msg": sent}]})),
        ),
        (
            SHAPE,
            "text as error",
            shaped(400, |sent| json!({"error": sent})),
        ),
        (
            SHAPE,
            "bare message",
            shaped(401, |sent| json!({"message": sent})),
        ),
        (
            SHAPE,
            "plain text",
            text(400, "text/plain", |sent| format!("refused: {sent}")),
        ),
        (
            SHAPE,
            "HTML with status 500",
            text(500, "text/html", |sent| format!("<html>{sent}</html>")),
        ),
        (HEADER, "header of a 400", headed(400, "x-sent")),
        (HEADER, "header of a 401", headed(401, "www-authenticate")),
        (HEADER, "header of a 429", headed(429, "x-ratelimit-key")),
        (HEADER, "header of a 503", headed(503, "x-sent")),
        (
            HEADER,
            "redirect",
            with(|asked| {
                let location = format!("https://x.example/?key={}", repeated_alone(asked));
                raw(302, "text/plain", "moved").header("location", &location)
            }),
        ),
        (
            HEADER,
            "header of a good answer",
            with(|asked| reply("fine").header("x-sent", &repeated_alone(asked))),
        ),
        (
            UNREADABLE,
            "HTML",
            text(200, "text/html", |sent| format!("<html>{sent}</html>")),
        ),
        (
            UNREADABLE,
            "broken JSON",
            text(200, "application/json", |sent| {
                format!("{{\"choices\": [{{\"message\": \"{sent}")
            }),
        ),
        (
            UNREADABLE,
            "JSON of another shape",
            shaped(200, |sent| json!({"choices": sent, "id": sent})),
        ),
        (
            UNREADABLE,
            "error in a 200",
            shaped(
                200,
                |sent| json!({"error": {"message": sent, "type": "server_error"}}),
            ),
        ),
        (
            UNREADABLE,
            "another media type",
            text(200, "application/octet-stream", str::to_owned),
        ),
        (
            "an error event",
            "in band",
            with(|asked| reply("").tokens(["Par"]).then_error(500, &repeated(asked))),
        ),
        (
            "an event that cannot be read",
            "broken event",
            with(|asked| {
                let broken = format!("data: {{\"choices\": \"{}\n\n", repeated(asked));
                raw(200, "text/event-stream", chunk("Par", None) + &broken)
            }),
        ),
    ]
}

/// Everything that a client gets from providers that repeat their keys: headers and bodies.
async fn exchanges(ctx: &Ctx) -> Result<Vec<Answered>, Failure> {
    let can = |capability| ctx.declares(capability);
    let client = if can(Capability::Keys) {
        ctx.client.with_bearer(CLIENT_KEY)
    } else {
        ctx.client.clone()
    };
    let mut seen = Vec::new();
    for (form, alias) in [
        ("a hexadecimal key", "solo"),
        ("a key in groups", "grouped"),
        ("a key in base64", "base64"),
        ("Ollama", "local"),
    ] {
        if !applies(ctx, form) {
            continue;
        }
        ctx.instance(form);
        for (group, what, _) in repeating() {
            let after = format!("after a provider's error ({what}, {form})");
            let body = || ctx.prompt(alias, &marked(what));
            let in_events = group.contains("event");
            let name = format!("{group}, streamed");
            ctx.instance(&name);
            let stream = client.streamed(body()).await?;
            let error_alone = what == "broken event";
            seen.push(Answered::streamed(
                format!("the streamed answer {after}"),
                stream,
                error_alone,
            ));
            if !in_events {
                ctx.instance(&format!("{group}, plain"));
                let plain = client.chat(body()).await?;
                seen.push(Answered::plain(format!("the plain answer {after}"), plain));
            }
        }
    }
    ctx.instance("a client's wrong key");
    if can(Capability::Keys) {
        for (what, body) in [
            ("the answer to a wrong key", ctx.prompt("solo", "wrong key")),
            (
                "the answer to a stream with a wrong key",
                with_stream(ctx.prompt("solo", "wrong key")),
            ),
        ] {
            let refused = ctx.client.with_bearer(WRONG_KEY).chat(body).await?;
            seen.push(Answered::plain(what, refused));
        }
    }
    if ctx.instance_if(Capability::Query, "a query") {
        for what in ["status 401", "status 500", "detail", "HTML", "broken JSON"] {
            let question = json!({"question": marked(what)});
            let answer = client.post(QUERY_PATH, question).await?;
            seen.push(Answered::plain(
                format!("the answer to a query whose agents meet an error ({what})"),
                answer,
            ));
        }
    }
    for what in ["status 401", "status 404", "status 500", "HTML", "redirect"] {
        let both = both_ways(ctx, &client, "locked", what).await?;
        seen.extend(both);
    }
    // the last request is in the log before the log is read
    ctx.stub("locked")?.listen(Listen::Refuse).await?;
    seen.extend(both_ways(ctx, &client, "locked", "refused connection").await?);
    let id = format!("req-last-{}", ctx.nonce);
    let last = client
        .with_header("x-request-id", &id)
        .chat(ctx.prompt("locked", "refused connection"))
        .await?;
    seen.push(Answered::plain(
        "the answer after a refused connection",
        last,
    ));
    if can(Capability::RequestId) {
        logged(ctx, &[id]).await?;
    }
    Ok(seen)
}

fn with_stream(mut body: Value) -> Value {
    body["stream"] = true.into();
    body
}

/// The plain and the streamed answer for the provider whose URL holds a password.
async fn both_ways(
    ctx: &Ctx,
    client: &Client,
    alias: &str,
    what: &str,
) -> Result<[Answered; 2], Failure> {
    let about = format!("for a provider whose URL holds a password ({what})");
    let body = || ctx.prompt(alias, &marked(what));
    ctx.instance("a URL with a password, plain");
    let plain = client.chat(body()).await?;
    ctx.instance("a URL with a password, streamed");
    let stream = client.streamed(body()).await?;
    Ok([
        Answered::plain(format!("the plain answer {about}"), plain),
        Answered::streamed(format!("the streamed answer {about}"), stream, false),
    ])
}

async fn err_05(ctx: &Ctx) -> CaseResult {
    // given
    let (p1, p2) = (ctx.stub("p1")?, ctx.stub("p2")?);
    for stub in ctx.stubs.values() {
        stub.answers(reply("fine"));
    }
    let mut deviations = Deviations::new();
    let mut ids = Vec::new();
    for (name, alias, stubs) in [
        ("plain", "solo", vec![p1]),
        ("streamed", "solo", vec![p1]),
        ("a failure, plain", "solo", vec![p1]),
        ("a failure, streamed", "solo", vec![p1]),
        ("a second attempt, plain", "solo", vec![p1]),
        ("a second attempt, streamed", "solo", vec![p1]),
        ("the last candidate, plain", "pair", vec![p1, p2]),
        ("the last candidate, streamed", "pair", vec![p1, p2]),
        ("Ollama, plain", "local", vec![]),
        ("Ollama, streamed", "local", vec![]),
        ("a refused request", "nobody", vec![]),
    ] {
        if !applies(ctx, name) {
            continue;
        }
        let says = || chat().user_says(&marked(name));
        match name {
            _ if name.contains("failure") => p1.mount(says(), error(503)).await,
            _ if name.contains("attempt") => {
                p1.mount(says(), sequence([error(503), reply("fine")]))
                    .await;
            }
            _ if name.contains("candidate") => p1.mount(says(), error(503).optional()).await,
            _ => {}
        }
        let stubs = match alias {
            "local" => vec![ctx.stub("p3")?],
            _ => stubs,
        };
        let id = format!("req-{}-{}", name.replace([' ', ','], "-"), ctx.nonce);
        let row = async {
            if alias == "solo" {
                until_asked(ctx, "solo", p1).await?;
            }
            // when
            let client = ctx.client.with_header("x-request-id", &id);
            let body = ctx.prompt(alias, &marked(name));
            let (fact, headers) = match is_streamed(name) {
                true => ("stream.request_id", client.streamed(body).await?.headers),
                false => ("answer.request_id", client.chat(body).await?.headers),
            };
            // then
            equal(
                fact,
                "the x-request-id of the answer",
                Some(id.as_str()),
                header_of(&headers, "x-request-id"),
            )?;
            for stub in stubs {
                sent_on(stub, &marked(name), &id)?;
            }
            Ok(())
        };
        noted(&mut deviations, ctx.examine(name, row.boxed()).await)?;
        ids.push(id);
    }
    if ctx.instance_if(Capability::Query, "a refused query") {
        let id = format!("req-query-{}", ctx.nonce);
        let row = async {
            let answer = ctx
                .client
                .with_header("x-request-id", &id)
                .post(QUERY_PATH, json!({"question": 7}))
                .await?;
            equal(
                "query.request_id",
                "the x-request-id of a query's answer",
                Some(id.as_str()),
                answer.header("x-request-id"),
            )
        };
        noted(
            &mut deviations,
            ctx.examine("a refused query", row.boxed()).await,
        )?;
        ids.push(id);
    }
    let of_agents = "a query with its agents";
    if ctx.instance_if(Capability::Query, of_agents) {
        let id = format!("req-agents-{}", ctx.nonce);
        let row = async {
            let agents = AGENTS.iter().map(|agent| agent.name);
            for agent in agents.clone() {
                ctx.stub(agent)?.answers(does_its_part(agent));
            }
            let question = marked(of_agents);
            let answer = ctx
                .client
                .with_header("x-request-id", &id)
                .post(QUERY_PATH, json!({ "question": question }))
                .await?;
            equal(
                "query.request_id",
                "the x-request-id of a query's answer",
                Some(id.as_str()),
                answer.header("x-request-id"),
            )?;
            for agent in agents {
                sent_on(ctx.stub(agent)?, &question, &id)?;
            }
            Ok(())
        };
        noted(&mut deviations, ctx.examine(of_agents, row.boxed()).await)?;
        ids.push(id);
    }
    until_asked(ctx, "solo", p1).await?;
    let mut given: Vec<String> = Vec::new();
    for name in ["without an id, plain", "without an id, streamed"] {
        if !applies(ctx, name) {
            continue;
        }
        let row = async {
            let body = ctx.prompt("solo", &marked(name));
            let headers = match is_streamed(name) {
                true => ctx.client.streamed(body).await?.headers,
                false => ctx.client.chat(body).await?.headers,
            };
            let id = header_of(&headers, "x-request-id")
                .unwrap_or_default()
                .to_owned();
            holds(
                "generated.request_id",
                !id.is_empty() && !given.contains(&id),
                "an x-request-id of its own for a request without one",
                format_args!("{id:?}"),
            )?;
            let calls = p1.calls(&marked(name));
            let at_provider = calls.first().and_then(|call| call.header("x-request-id"));
            equal(
                "generated.at_provider",
                "the generated x-request-id at the provider",
                Some(id.as_str()),
                at_provider,
            )?;
            given.push(id);
            Ok(())
        };
        noted(&mut deviations, ctx.examine(name, row.boxed()).await)?;
    }
    deviations.result()?;
    logged(ctx, &ids).await
}

/// The first header of that name.
fn header_of<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    let mut headers = headers.iter();
    let found = headers.find(|(one, _)| one.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

/// Each of the provider's calls that hold the text must have this id.
fn sent_on(stub: &Stub, text: &str, id: &str) -> CaseResult {
    for (n, call) in stub.calls(text).iter().enumerate() {
        equal(
            "provider.request_id",
            &format!("the x-request-id of attempt {} at {}", n + 1, stub.name()),
            Some(id),
            call.header("x-request-id"),
        )?;
    }
    Ok(())
}

async fn err_06(ctx: &Ctx) -> CaseResult {
    // given
    const STATUSES: [u16; 3] = [400, 429, 500];
    let p1 = ctx.stub("p1")?;
    let mut deviations = Deviations::new();
    for streams in [false, true] {
        let way = if streams { "streamed" } else { "plain" };
        let named: Vec<(String, Shape)> = SHAPES
            .iter()
            .map(|(name, shape)| (format!("{name}, {way}"), *shape))
            .collect();
        let named: Vec<_> = named
            .iter()
            .filter(|(name, _)| applies(ctx, name))
            .collect();
        if named.is_empty() {
            continue;
        }
        // a gateway that leaves a provider alone after one failure has asked for all of them before
        let meet = Step::Meet {
            name: way.into(),
            count: named.len() * STATUSES.len(),
        };
        for (name, shape) in &named {
            for status in STATUSES {
                let (kind, body) = shape(&words_of(name, status));
                let plan = Plan::of([meet.clone(), Step::Head, Step::Rest]);
                let says = chat().user_says(&marked(&format!("{name}, {status}")));
                p1.mount(says, raw(status, kind, body).plan(plan)).await;
            }
        }
        until_asked(ctx, "solo", p1).await?;
        // when
        let rows = named.iter().flat_map(|(name, _)| {
            STATUSES.map(|status| async move {
                let body = ctx.prompt("solo", &marked(&format!("{name}, {status}")));
                let words = words_of(name, status);
                let kept = kept_words(ctx, body, streams, status, &words).await;
                (name, kept)
            })
        });
        // then
        let met = ctx.gates.rendezvous(way, named.len() * STATUSES.len());
        let (met, rows) = join(met.met(), join_all(rows)).await;
        met.map_err(unexercised_if_hung(not_together))?;
        for (name, kept) in rows {
            noted(&mut deviations, ctx.examine(name, async { kept }).await)?;
        }
    }
    deviations.result()
}

/// The words of a provider, by which the error is known.
fn words_of(name: &str, status: u16) -> String {
    let name = name.replace([' ', ','], "-");
    format!("the tokens of {name} are {status} too many")
}

/// The client's error must have the provider's words, in the envelope.
async fn kept_words(ctx: &Ctx, body: Value, streams: bool, status: u16, words: &str) -> CaseResult {
    let what = format!("a provider's {status}");
    let (fact, seen, error, text) = if streams {
        let stream = ctx.client.streamed(body).await?;
        let text = String::from_utf8_lossy(&stream.body).into_owned();
        broken(&stream)?;
        let error = stream.error.unwrap_or_default();
        ("words.streamed", stream.status, error, text)
    } else {
        let answer = ctx.client.chat(body).await?;
        super::support::refused(answer.status)?;
        let error = answer.json()["error"].clone();
        ("words.plain", answer.status, error, answer.text())
    };
    enveloped_in(&what, seen, &error, || text.clone())?;
    holds(
        fact,
        error.to_string().contains(words),
        format!("the words {words:?} of {what} in the error"),
        text,
    )
}

/// Makes an error body of these words, with its media type.
type Shape = fn(&str) -> (&'static str, String);

/// The shapes in which providers send errors.
const SHAPES: [(&str, Shape); 12] = [
    ("an object", |words| {
        json_body(json!({"error": {"message": words, "type": "some_error", "code": "some"}}))
    }),
    ("a number as code", |words| {
        json_body(json!({"error": {"message": words, "type": "some_error", "code": 7}}))
    }),
    ("a list as param", |words| {
        json_body(json!({"error": {"message": words, "type": "some_error", "param": ["n"]}}))
    }),
    ("a list of objects", |words| {
        json_body(json!([{"error": {"code": 7, "message": words, "status": "SOME_ERROR"}}]))
    }),
    ("a list of texts", |words| json_body(json!([words]))),
    ("detail as a text", |words| {
        json_body(json!({ "detail": words }))
    }),
    ("detail as a list", |words| {
        json_body(json!({"detail": [{"loc": ["body", "n"], "msg": words, "type": "some"}]}))
    }),
    ("detail as an object", |words| {
        json_body(json!({"detail": {"error": words}}))
    }),
    ("error as a text", |words| {
        json_body(json!({ "error": words }))
    }),
    ("message", |words| {
        json_body(json!({"message": words, "code": 7}))
    }),
    ("errors as a list", |words| {
        json_body(json!({"errors": [{"message": words}]}))
    }),
    ("a plain text", |words| ("text/plain", format!("{words}\n"))),
];

fn json_body(body: Value) -> (&'static str, String) {
    ("application/json", body.to_string())
}

/// Waits until all the ids are in the log, where the harness sees it.
async fn logged(ctx: &Ctx, ids: &[String]) -> CaseResult {
    let Some(process) = &ctx.target.process else {
        return Ok(());
    };
    let all = poll_until(|| {
        Some(()).filter(|()| ids.iter().all(|id| process.log().contains(id.as_str())))
    });
    guard("hang.logged_ids", "every request id in the log", all).await
}
