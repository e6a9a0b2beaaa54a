//! ERR: an error has the right status, one shape, an id, and no secret in it.

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds, silent};
use gauntlet_harness::client::{Reply, Transcript};
use gauntlet_harness::gate::{guard, poll_until};
use gauntlet_harness::llm::{Responder, StubRequest, chat, error, raw, reply, with};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::{DatabaseNeed, Protocol, Spec};
use gauntlet_harness::subject::Capability;
use serde_json::{Value, json};

use super::CaseRow;
use super::support::{located, query, until_asked};

const CHAT: &[Capability] = &[Capability::Chat];
const CHAT_PATH: &str = "/v1/chat/completions";
const QUERY_PATH: &str = "/api/v1/queries";

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "ERR-01",
        why: "Client libraries decide by the status whether to try again: they repeat a rate limit \
              that comes as 502 at once, and take a refused connection that comes as 500 for a bug.",
        shown: "One provider fails in each way, and another never answers. Each status must be one \
                that fits (the case's table lists them), in an envelope with message, type, code and \
                param.",
        remedy: "Keep one table from the cause of a failure to status, type and code, and send every \
                 error through it.",
        needs: CHAT,
        instances: &[],
        spec: || {
            let mut spec = Spec::solo()
                .provider("p2", Protocol::OPENAI)
                .model("late", &["p2"]);
            spec.models[1].timeouts.total_ms = Some(300);
            spec
        },
        run: &err_01,
    },
    CaseRow {
        id: "ERR-02",
        why: "Users with valid keys got the answer that theirs were invalid, and made new ones, \
              while the operator's key had expired.",
        shown: "The provider answers 401, then 403, plain and streamed. The client must get 502.",
        remedy: "Map the provider's 401 and 403 to 502: the credentials are the gateway's own.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::OwnProviderKeys,
        ],
        instances: &[],
        spec: Spec::solo,
        run: &err_02,
    },
    CaseRow {
        id: "ERR-03",
        why: "A client library that cannot read the error shows its user a parser's message instead \
              of the cause.",
        shown: "One request of each wrong kind must be refused with a fitting status, in an envelope \
                with message and type. A good request must be served afterwards.",
        remedy: "Check a request before it is sent on, and give the framework's own errors the same \
                 envelope.",
        needs: CHAT,
        instances: &[],
        spec: Spec::solo,
        run: &err_03,
    },
    CaseRow {
        id: "ERR-04",
        why: "Providers' errors repeat the key that they were sent, and gateways passed them on \
              (https://github.com/BerriAI/litellm/issues/6963, \
              https://github.com/BerriAI/litellm/issues/15799).",
        shown: "The providers repeat the key that they were sent in their errors: plain, in band, as \
                HTML and in headers; a query meets them, too. One provider, whose URL holds a \
                password, then refuses its connection. No answer of the gateway and, where the harness \
                sees it, no line of its log may hold that password, that key, the client's key, or a \
                wrong one.",
        remedy: "Take known keys out of providers' messages, never log headers, and pass on only known \
                 headers of a provider.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::OwnProviderKeys,
        ],
        instances: &[],
        spec: with_a_key,
        run: &err_04,
    },
    CaseRow {
        id: "ERR-05",
        why: "Without one id on all sides, nobody finds the request that a user complains about.",
        shown: "A served, a failing and a refused request carry x-request-id. The id must come back \
                each time, be in the log where the harness sees it, and reach the provider. A request \
                without an id must be given one.",
        remedy: "Take x-request-id or make one on arrival, and put it into the answer, the log, and the \
                 provider's request.",
        needs: &[Capability::Chat, Capability::RequestId],
        instances: &[],
        spec: Spec::solo,
        run: &err_05,
    },
];

/// The client's key in [`with_a_key`].
const CLIENT_KEY: &str = "sk-canary-client-a-94e1d07c5b2f4f3e";

/// The password in the base URL of the second provider of [`with_a_key`], where the target takes
/// one there, and user and password as they are sent.
const URL_PASSWORD: &str = "canary-password-3e9a1c7f";
const URL_BASIC: &str = "Y2FuYXJ5LXVzZXI6Y2FuYXJ5LXBhc3N3b3JkLTNlOWExYzdm";

/// A key that is not configured.
const WRONG_KEY: &str = "sk-canary-wrong-2c8e5a7f1b394d60";

/// One provider, one whose URL holds a password, those of the agents, and one client's key.
fn with_a_key() -> Spec {
    let spec = Spec {
        database: DatabaseNeed::None,
        ..query()
    }
    .provider("p1", Protocol::OPENAI)
    .model("solo", &["p1"]);
    let mut spec = spec
        .provider("locked", Protocol::OPENAI)
        .model("locked", &["locked"]);
    spec.providers
        .iter_mut()
        .filter(|provider| provider.name == "locked")
        .for_each(|provider| {
            provider.userinfo = Some(format!("canary-user:{URL_PASSWORD}"));
        });
    spec.key("a", CLIENT_KEY)
}

async fn err_01(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    ctx.stub("p2")?
        .answers(reply("too late").plan(Plan::silent()));
    let mut deviations = Deviations::new();
    for (what, responder, allowed) in failures() {
        let row = async {
            until_asked(ctx, "solo", p1).await?;
            p1.answers(responder);
            // when
            let answer = ctx.client.chat(ctx.prompt("solo", what)).await?;
            // then
            refused("status.provider_failure", what, &answer, allowed)
        };
        deviations.note(row.await)?;
    }
    let late = async {
        let late = ctx.client.chat(ctx.prompt("late", "never")).await?;
        refused("status.timeout", "no answer in time", &late, &[504])
    };
    deviations.note(late.await)?;
    deviations.result()
}

/// The ways in which a provider fails, and the statuses that fit.
fn failures() -> Vec<(&'static str, Responder, &'static [u16])> {
    vec![
        ("400", error(400), &[400]),
        ("404", error(404), &[404, 400, 502]),
        ("413", error(413), &[413, 400]),
        ("422", error(422), &[422, 400]),
        ("429", error(429), &[429]),
        (
            "429 for a quota",
            error(429)
                .kind("insufficient_quota")
                .code("insufficient_quota"),
            &[429],
        ),
        ("500", error(500), &[502, 500, 503]),
        ("502", error(502), &[502, 503]),
        ("503", error(503), &[503, 502]),
        ("504", error(504), &[504, 502]),
        (
            "200 with HTML",
            raw(200, "text/html", "<html></html>"),
            &[502, 503],
        ),
        (
            "an error in a 200",
            raw(
                200,
                "application/json",
                r#"{"error":{"message":"overloaded","type":"server_error"}}"#,
            ),
            &[502, 503],
        ),
        (
            "a cut",
            reply("lost").plan(Plan::of([Step::Head, Step::Bytes(20), Step::Cut])),
            &[502, 503, 504],
        ),
        (
            "a reset",
            reply("lost").plan(Plan::of([Step::Reset])),
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
        format!("OpenAI's error envelope for {what} ({})", answer.status),
        answer.text(),
    )
}

async fn err_02(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let mut deviations = Deviations::new();
    for status in [401, 403] {
        p1.answers(error(status));
        let plain = async {
            until_asked(ctx, "solo", p1).await?;
            // when
            let body = ctx.prompt("solo", &format!("plain {status}"));
            let plain = ctx.client.chat(body).await?;
            // then
            equal(
                "plain.status",
                &format!("the status of a plain request for a provider's {status}"),
                502,
                plain.status,
            )
        };
        deviations.note(plain.await)?;
        let stream = async {
            until_asked(ctx, "solo", p1).await?;
            // when
            let body = ctx.prompt("solo", &format!("streamed {status}"));
            let stream = ctx.client.streamed(body).await?;
            // then
            equal(
                "stream.status",
                &format!("the status of a stream for a provider's {status}"),
                502,
                stream.status,
            )
        };
        deviations.note(stream.await)?;
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
    for Wrong {
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
        deviations.note(row.await)?;
    }
    let right = ctx.client.chat(ctx.prompt("solo", "right")).await?;
    // then
    deviations.note(equal(
        "good.status",
        "the status of a good request",
        200,
        right.status,
    ))?;
    deviations.result()
}

/// A request that must be refused, and the statuses that fit.
struct Wrong {
    what: &'static str,
    method: &'static str,
    path: &'static str,
    media: &'static str,
    body: String,
    allowed: &'static [u16],
}

fn wrong_requests(ctx: &Ctx) -> Vec<Wrong> {
    let good = ctx.prompt("solo", "wrong").to_string();
    let post = |what, path, body, allowed| Wrong {
        what,
        method: "POST",
        path,
        media: "application/json",
        body,
        allowed,
    };
    let chat = |what, name: &str, value: Value, allowed| {
        let mut body = ctx.prompt("solo", "wrong");
        body[name] = value;
        post(what, CHAT_PATH, body.to_string(), allowed)
    };
    let mut wrong = vec![
        post(
            "invalid JSON",
            CHAT_PATH,
            good[..good.len() - 2].to_string(),
            &[400, 422],
        ),
        post("no object", CHAT_PATH, "[1, 2]".into(), &[400, 422]),
        chat("messages as text", "messages", "hello".into(), &[400, 422]),
        chat(
            "a model that is a number",
            "model",
            7.into(),
            &[400, 404, 422],
        ),
        chat("stream as text", "stream", "perhaps".into(), &[400, 422]),
        chat(
            "an unknown model",
            "model",
            "no-such-model".into(),
            &[404, 400],
        ),
        post(
            "an unknown route",
            "/v1/no/such/route",
            good.clone(),
            &[404],
        ),
        Wrong {
            method: "DELETE",
            ..post("an unknown method", CHAT_PATH, String::new(), &[405, 404])
        },
        Wrong {
            media: "text/plain",
            ..post("another media type", CHAT_PATH, good.clone(), &[415, 400])
        },
    ];
    if ctx.declares(Capability::Query) {
        wrong.extend([
            post(
                "a query in invalid JSON",
                QUERY_PATH,
                "{\"question\": ".into(),
                &[400],
            ),
            post(
                "a question that is a number",
                QUERY_PATH,
                "{\"question\": 7}".into(),
                &[400],
            ),
            post("no question", QUERY_PATH, "{}".into(), &[400]),
            post(
                "an unknown route of queries",
                "/api/v1/no/such/route",
                "{}".into(),
                &[404],
            ),
            Wrong {
                method: "DELETE",
                ..post(
                    "an unknown method of queries",
                    QUERY_PATH,
                    String::new(),
                    &[405],
                )
            },
        ]);
    }
    wrong
}

async fn err_04(ctx: &Ctx) -> CaseResult {
    // given
    for stub in ctx.stubs.values() {
        for status in [400, 401, 403, 429, 500, 503] {
            let repeats = with(move |asked| {
                error(status)
                    .message(&repeated(asked))
                    .header("x-sent", &repeated(asked))
            });
            stub.mount(chat().user_says(&format!("status {status}")), repeats)
                .await;
        }
        stub.mount(
            chat().user_says("html"),
            with(|asked| {
                raw(
                    200,
                    "text/html",
                    format!("<html>{}</html>", repeated(asked)),
                )
            }),
        )
        .await;
        stub.answers(with(|asked| {
            reply("").tokens(["Par"]).then_error(500, &repeated(asked))
        }));
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
        let mut leaks: Vec<String> = seen
            .iter()
            .flat_map(|answer| located(secret, &answer.what, &answer.headers, &answer.body))
            .collect();
        let fact = match secret {
            _ if leaks.is_empty() => "secret.in_log",
            URL_PASSWORD | URL_BASIC => "secret.of_url",
            _ => "secret.in_answer",
        };
        leaks.extend(
            log.iter()
                .filter(|log| log.contains(secret))
                .map(|_| "the log".to_owned()),
        );
        deviations.note(
            holds(
                fact,
                leaks.is_empty(),
                "no secret in errors, headers and log",
                format_args!("{name} in {}", few(&leaks)),
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
}

impl Answered {
    fn plain(what: impl Into<String>, reply: Reply) -> Self {
        Self {
            what: what.into(),
            headers: reply.headers,
            body: reply.body.to_vec(),
        }
    }

    fn streamed(what: impl Into<String>, stream: Transcript) -> Self {
        Self {
            what: what.into(),
            headers: stream.headers,
            body: stream.body.to_vec(),
        }
    }
}

/// What a provider answers about the credentials that it was sent.
fn repeated(asked: &StubRequest) -> String {
    format!(
        "not with {}",
        asked.header("authorization").unwrap_or("no key")
    )
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
    for what in [
        "in band",
        "status 400",
        "status 401",
        "status 403",
        "status 429",
        "status 500",
        "status 503",
        "html",
    ] {
        let stream = client.streamed(ctx.prompt("solo", what)).await?;
        let plain = client.chat(ctx.prompt("solo", what)).await?;
        let after = format!("after a provider's error ({what})");
        seen.push(Answered::streamed(
            format!("the streamed answer {after}"),
            stream,
        ));
        seen.push(Answered::plain(format!("the plain answer {after}"), plain));
    }
    if can(Capability::Keys) {
        let refused = ctx
            .client
            .with_bearer(WRONG_KEY)
            .chat(ctx.prompt("solo", "wrong key"))
            .await?;
        seen.push(Answered::plain("the answer to a wrong key", refused));
    }
    if can(Capability::Query) {
        let answer = client
            .post(QUERY_PATH, json!({"question": "status 500"}))
            .await?;
        seen.push(Answered::plain("the answer to a query", answer));
    }
    let locked = client.chat(ctx.prompt("locked", "status 401")).await?;
    seen.push(Answered::plain(
        "the answer for a provider whose URL holds a password",
        locked,
    ));
    // the last request is in the log before the log is read
    ctx.stub("locked")?.listen(Listen::Refuse).await?;
    let id = format!("req-last-{}", ctx.nonce);
    let refused = client
        .with_header("x-request-id", &id)
        .chat(ctx.prompt("locked", "refused connection"))
        .await?;
    seen.push(Answered::plain(
        "the answer after that provider refused the connection",
        refused,
    ));
    if can(Capability::RequestId) {
        logged(ctx, &[id]).await?;
    }
    Ok(seen)
}

async fn err_05(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.mount(chat().user_says("fails"), error(503)).await;
    p1.answers(reply("fine"));
    // when
    let mut ids = Vec::new();
    for (alias, what) in [("solo", "served"), ("solo", "fails"), ("nobody", "refused")] {
        let id = format!("req-{what}-{}", ctx.nonce);
        let answer = ctx
            .client
            .with_header("x-request-id", &id)
            .chat(ctx.prompt(alias, what))
            .await?;
        equal(
            "answer.request_id",
            &format!("the x-request-id of the answer ({what})"),
            Some(id.as_str()),
            answer.header("x-request-id"),
        )?;
        ids.push(id);
    }
    if ctx.declares(Capability::Query) {
        let id = format!("req-query-{}", ctx.nonce);
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
        )?;
        ids.push(id);
    }
    until_asked(ctx, "solo", p1).await?;
    let without = ctx.client.chat(ctx.prompt("solo", "without")).await?;
    // then
    let at_p1 = |what: &str| {
        p1.calls(what)
            .first()
            .and_then(|call| call.header("x-request-id").map(String::from))
    };
    for (what, id) in ["served", "fails"].iter().zip(&ids) {
        equal(
            "provider.request_id",
            &format!("the x-request-id at the provider ({what})"),
            Some(id),
            at_p1(what).as_ref(),
        )?;
    }
    let given = without
        .header("x-request-id")
        .filter(|id| !id.is_empty())
        .map(String::from);
    holds(
        "generated.request_id",
        given.is_some(),
        "an x-request-id for a request without one",
        "no such header",
    )?;
    equal(
        "generated.at_provider",
        "the generated x-request-id at the provider",
        given,
        at_p1("without"),
    )?;
    logged(ctx, &ids).await
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
