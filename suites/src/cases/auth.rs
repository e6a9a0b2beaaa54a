//! AUTH: who may ask, and where credentials may go.

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds, silent};
use gauntlet_harness::client::{Client, Reply};
use gauntlet_harness::llm::{Responder, Stub, chat, error, reply};
use gauntlet_harness::spec::{Protocol, Spec};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::Event;
use serde_json::{Value, json};

use super::CaseRow;
use super::support::{DOCUMENTS, QUERIES, document, healthy, located, query, question, text};

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "AUTH-01",
        why: "A key that is checked too late spends the operator's money on strangers.",
        shown: "Requests without a key, with an unknown key, with a part of one and with another \
                scheme must be answered 401 with WWW-Authenticate. A request with the key follows, and \
                must be the only one that the provider saw.",
        remedy: "Check the key before the body is read, and answer 401 with the challenge of RFC 6750.",
        needs: &[Capability::Chat, Capability::Stream, Capability::Keys],
        instances: &[],
        spec: || Spec::solo().key("b", KEY),
        run: &auth_01,
    },
    CaseRow {
        id: "AUTH-03",
        why: "A proxy that passes headers on hands its users' keys and cookies to third parties, and \
              theirs to its users.",
        shown: "The client sends its key, cookies and other credentials; the provider must get its own \
                key alone. The provider sets a cookie with an answer and with an error, which nothing that the \
                client receives may hold (ERR-04 has errors that repeat a key).",
        remedy: "Build the provider's request with the headers that are meant for it, and pass on only \
                 known headers of its answer.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::OwnProviderKeys,
        ],
        instances: &[],
        spec: || Spec::solo().key("b", KEY),
        run: &auth_03,
    },
    CaseRow {
        id: "AUTH-04",
        why: "A request's api_base made a gateway send its provider's key to an address of the \
              client's choice (https://github.com/BerriAI/litellm/issues/24952).",
        shown: "Fields, headers, a model's name and an image's address name another host, on which the \
                harness listens; an api_key names another key, and other values hold line breaks. After \
                a further exchange, that host must have seen no connection, and the provider neither \
                that key as its credentials nor a smuggled header.",
        remedy: "Connect to configured addresses alone and with configured keys, and refuse line breaks \
                 in what becomes a header.",
        needs: &[Capability::Chat, Capability::OwnProviderKeys],
        instances: &[],
        spec: Spec::solo,
        run: &auth_04,
    },
    CaseRow {
        id: "AUTH-02",
        why: "Ids travel in logs and links; a gateway that checks the key but not the owner shows \
              every customer the questions of all others.",
        shown: "One tenant stores a document and asks. The other reads, lists, deletes and asks the \
                same, and must get the answers that he would get if they were absent.",
        remedy: "Put the tenant into the condition of every statement, and answer 404 for what belongs \
                 to somebody else.",
        needs: &[Capability::Query, Capability::Store, Capability::Keys],
        instances: &[],
        spec: || query().key("curie", HERS).key("bohr", HIS),
        run: &auth_02,
    },
];

/// The one key that clients have.
const KEY: &str = "sk-canary-client-b-51d7c2e80a964fb3";

/// The key that a request's `api_key` names.
const CHOSEN_KEY: &str = "sk-chosen-by-the-client-2f6b8d";

/// The session that the provider gives to the gateway in a cookie.
const SESSION: &str = "canary-session-8e2d6a40";

/// Other credentials that the client sends.
const OTHERS: [(&str, &str); 4] = [
    ("cookie", "session=canary-cookie-4f1b"),
    ("x-api-key", "canary-x-api-key-9d2e"),
    ("api-key", "canary-api-key-7a3c"),
    ("proxy-authorization", "Basic canary-proxy-6e5d"),
];

async fn auth_01(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("Paris"));
    let nobody = ctx.client.without_header("authorization");
    let strangers = [
        ("no_key", "no key", nobody.clone()),
        (
            "unknown_key",
            "an unknown key",
            nobody.with_bearer("sk-canary-nobody-0c6e"),
        ),
        (
            "part_of_key",
            "part of a key",
            nobody.with_bearer(&KEY[..KEY.len() - 1]),
        ),
        (
            "empty_key",
            "an empty key",
            nobody.with_header("authorization", "Bearer "),
        ),
        (
            "other_scheme",
            "another scheme",
            nobody.with_header("authorization", &format!("Basic {KEY}")),
        ),
    ];
    // when
    let mut deviations = Deviations::new();
    for (name, what, client) in &strangers {
        for (route, answer) in answers(ctx, client, what).await? {
            let fact = |fact: &str| format!("{fact}.{route}.{name}");
            let row = equal(
                &fact("status"),
                &format!("the status of {route} with {what}"),
                401,
                answer.status,
            )
            .and_then(|()| {
                holds(
                    &fact("challenge"),
                    answer.header("www-authenticate").is_some(),
                    format!("a WWW-Authenticate header on {route} with {what}"),
                    "no such header",
                )
            })
            .and_then(|()| {
                holds(
                    &fact("envelope"),
                    answer.error_type().is_some(),
                    format!("OpenAI's error envelope on {route} with {what}"),
                    answer.text(),
                )
            });
            deviations.note(row)?;
        }
    }
    deviations.result()?;
    let known = nobody
        .with_bearer(KEY)
        .chat(ctx.prompt("solo", "known"))
        .await?;
    // then
    equal(
        "known_key.status",
        "the status of a request with the configured key",
        200,
        known.status,
    )?;
    let known = p1.calls("known [").len();
    equal(
        "provider.requests",
        "the number of requests at the provider from clients without the key",
        0,
        p1.requests().len() - known,
    )
    .map_err(silent)
}

/// The answers of every route that takes a key, by the route's name: chat, plain and streamed,
/// models, and queries and documents where the target declares them.
async fn answers(
    ctx: &Ctx,
    client: &Client,
    text: &str,
) -> Result<Vec<(&'static str, Reply)>, Failure> {
    let mut streamed = ctx.prompt("solo", text);
    streamed["stream"] = true.into();
    let mut answers = vec![
        ("chat", client.chat(ctx.prompt("solo", text)).await?),
        ("stream", client.chat(streamed).await?),
        ("models", client.get("/v1/models").await?),
    ];
    if ctx.declares(Capability::Query) {
        const ID: &str = "01890000-0000-7000-8000-000000000000";
        let (query, document) = (format!("{QUERIES}/{ID}"), format!("{DOCUMENTS}/{ID}"));
        let question = json!({"question": text});
        let new = json!({"title": "", "text": text});
        answers.extend([
            ("queries", client.post(QUERIES, question).await?),
            ("documents", client.post(DOCUMENTS, new).await?),
            ("queries", client.get(QUERIES).await?),
            ("query", client.get(&query).await?),
            ("document", client.get(&document).await?),
            (
                "document",
                client.request("DELETE", &document, &[], b"").await?,
            ),
        ]);
    }
    Ok(answers)
}

async fn auth_03(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let key = ctx.spec.providers[0].api_key.clone();
    let with_cookie = |responder: Responder| {
        responder.header("set-cookie", &format!("session={SESSION}; HttpOnly"))
    };
    p1.mount(chat().user_says("served"), with_cookie(reply("Paris")))
        .await;
    p1.mount(chat().user_says("fails"), with_cookie(error(400)))
        .await;
    let keyed = ctx.declares(Capability::Keys);
    let client = if keyed {
        ctx.client.with_bearer(KEY)
    } else {
        ctx.client.clone()
    };
    let mut client = OTHERS.iter().fold(client, |client, (name, value)| {
        client.with_header(name, value)
    });
    client.chat(ctx.prompt("solo", "served")).await?;
    if p1.requests().is_empty() {
        // some gateways take these headers for the mark of another protocol
        client = client.without_header("x-api-key").without_header("api-key");
    }
    // when
    for what in ["served", "fails"] {
        let plain = client.chat(ctx.prompt("solo", what)).await?;
        let stream = client.streamed(ctx.prompt("solo", what)).await?;
        // then
        for (name, secret) in [("key", key.as_str()), ("cookie", SESSION)] {
            let mut leaks = located(secret, "the plain answer", &plain.headers, &plain.body);
            leaks.extend(located(
                secret,
                "the streamed answer",
                &stream.headers,
                &stream.body,
            ));
            holds(
                &format!("provider_{name}.at_client"),
                leaks.is_empty(),
                format!("an answer without the provider's {name} ({what})"),
                format_args!("the {name} in {}", leaks.join(", in ")),
            )
            .map_err(silent)?;
        }
        if p1.calls(&format!("{what} [")).is_empty() {
            return Err(Failure::NotExercised {
                why: "the gateway does not ask its provider for a request with other credentials, \
                      so that nobody could see whether they are sent on"
                    .into(),
            });
        }
    }
    for request in p1.requests() {
        equal(
            "provider.authorization",
            "the Authorization header at the provider",
            Some(format!("Bearer {key}").as_str()),
            request.header("authorization"),
        )?;
        let all = format!("{:?} {}", request.headers, request.body);
        let leaked = OTHERS
            .iter()
            .map(|(_, value)| *value)
            .chain([KEY])
            .find(|value| all.contains(value));
        holds(
            "client_credentials.at_provider",
            leaked.is_none(),
            "a provider's request without the client's credentials",
            leaked.unwrap_or_default(),
        )
        .map_err(silent)?;
    }
    Ok(())
}

async fn auth_04(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("fine"));
    // a provider with which no gateway is configured
    let elsewhere = Stub::builder(Protocol::OPENAI)
        .name("elsewhere")
        .namespace("elsewhere")
        .tape(&ctx.tape)
        .gates(&ctx.gates)
        .start()
        .await?;
    elsewhere.answers(reply("whatever the client wants"));
    let (url, host) = (elsewhere.base_url(), elsewhere.wire().addr().to_string());
    // when
    for body in steering(ctx, &url, &host) {
        ctx.client.chat(body).await?;
    }
    for name in [
        "x-portkey-custom-host",
        "x-base-url",
        "x-upstream",
        "x-forwarded-host",
        "x-original-url",
        "forwarded",
    ] {
        ctx.client
            .with_header(name, &url)
            .chat(ctx.prompt("solo", name))
            .await?;
    }
    smuggle(ctx).await?;
    let afterwards = ctx.client.chat(ctx.prompt("solo", "afterwards")).await?;
    // then
    equal(
        "next.status",
        "the status of the plain request that follows",
        200,
        afterwards.status,
    )?;
    let reached = elsewhere.tape().iter().any(|entry| {
        matches!(
            entry.event,
            Event::Accepted { .. } | Event::RequestRead { .. }
        )
    });
    holds(
        "foreign_host.connection",
        !reached,
        "no connection to the host that the requests name",
        format_args!("a connection to {host}"),
    )
    .map_err(silent)?;
    let chosen = p1.all_requests().into_iter().find_map(|request| {
        let mut headers = request.headers.into_iter();
        headers.find(|(_, value)| value.contains(CHOSEN_KEY))
    });
    holds(
        "provider.credentials",
        chosen.is_none(),
        "no key of the client's choice in the headers of a provider's request",
        format_args!(
            "the request's api_key in the header {}",
            chosen.as_ref().map_or("", |(name, _)| name.as_str())
        ),
    )
    .map_err(silent)?;
    let smuggled = p1
        .all_requests()
        .into_iter()
        .find(|request| request.header("x-smuggled").is_some());
    holds(
        "provider.smuggled_header",
        smuggled.is_none(),
        "no header of the client's making in a provider's request",
        "the header x-smuggled at the provider",
    )
    .map_err(silent)
}

/// Sends line breaks in paths and headers: escaped, bare, and folded into a header that is sent on
/// (RFC 9112 section 5.2). The gateway may refuse them or take them as plain text.
async fn smuggle(ctx: &Ctx) -> CaseResult {
    const PATH: &str = "/v1/chat/completions";
    let attempts = [
        (
            "/v1/chat/completions?a=%0d%0ax-smuggled:%201",
            "x-plain",
            "1",
        ),
        (PATH, "x-request-id", "a%0d%0ax-smuggled: 1"),
        (PATH, "x-request-id", "a\r\n x-smuggled: 1"),
        (PATH, "idempotency-key", "b\n x-smuggled: 1"),
        (PATH, "traceparent", "c\rx-smuggled: 1"),
    ];
    for (path, name, value) in attempts {
        let body = ctx.prompt("solo", "smuggled").to_string();
        let headers = [("content-type", "application/json"), (name, value)];
        let _any = ctx
            .client
            .try_request("POST", path, &headers, body.as_bytes())
            .await?;
    }
    Ok(())
}

/// Requests that name another host wherever a gateway might look for one, and that hold line
/// breaks wherever they might reach a header.
fn steering(ctx: &Ctx, url: &str, host: &str) -> Vec<Value> {
    let with_field = |name: &str, value: Value| {
        let mut body = ctx.prompt("solo", name);
        body[name] = value;
        body
    };
    let image = json!([{"role": "user", "content": [
        {"type": "text", "text": format!("what is this [{}]", ctx.nonce)},
        {"type": "image_url", "image_url": {"url": format!("{url}/image.png")}},
    ]}]);
    vec![
        with_field("api_base", url.into()),
        with_field("base_url", url.into()),
        with_field("custom_host", host.into()),
        with_field("api_key", CHOSEN_KEY.into()),
        with_field("extra_headers", json!({"host": host})),
        with_field("metadata", json!({"api_base": url})),
        with_field("user", "me\r\nx-smuggled: 1".into()),
        with_field("model", url.into()),
        with_field(
            "model",
            format!("{}\r\nx-smuggled: 1", ctx.model("solo")).into(),
        ),
        with_field("model", format!("openai/../../{host}").into()),
        with_field("messages", image),
    ]
}

const HERS: &str = "sk-canary-tenant-curie-5d0c7b1e";
const HIS: &str = "sk-canary-tenant-bohr-91aa4f3c";

async fn auth_02(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    let (she, he) = (ctx.client.with_bearer(HERS), ctx.client.with_bearer(HIS));
    let stored = she.post(DOCUMENTS, document()).await?;
    equal(
        "document.status",
        "the status of a document that is handed in",
        201,
        stored.status,
    )?;
    let document = format!("{DOCUMENTS}/{}", text(&stored.json(), "id"));
    let hers = she.post(QUERIES, question(ctx)).await?.json();
    equal(
        "query.status",
        "the status of her query",
        "complete",
        text(&hers, "status"),
    )?;
    let query = format!("{QUERIES}/{}", text(&hers, "id"));
    // when
    let unknown = he
        .get(&format!("{QUERIES}/01890000-0000-7000-8000-000000000000"))
        .await?;
    let seen = he.get(&query).await?;
    let listed = he.get(QUERIES).await?.json();
    let read = he.get(&document).await?;
    let deleted = he.request("DELETE", &document, &[], b"").await?;
    let asked = he.post(QUERIES, question(ctx)).await?.json();
    // then
    equal(
        "foreign_query.read",
        "the status and code that he gets for her query",
        (404, unknown.error_code()),
        (seen.status, seen.error_code()),
    )
    .map_err(silent)?;
    equal(
        "foreign_query.listed",
        "the number of queries that he can list",
        Some(0),
        listed["total"].as_u64(),
    )
    .map_err(silent)?;
    equal(
        "foreign_document.status",
        "the statuses of reading and deleting her document, for him",
        (404, 404),
        (read.status, deleted.status),
    )
    .map_err(silent)?;
    equal(
        "foreign_document.sources",
        "the number of her passages among his sources",
        Some(0),
        asked["sources"].as_array().map(Vec::len),
    )
    .map_err(silent)?;
    equal(
        "own_query.read",
        "her query, read by her,",
        &hers,
        &she.get(&query).await?.json(),
    )?;
    equal(
        "own_document.status",
        "the status of her document, read by her,",
        200,
        she.get(&document).await?.status,
    )
}
