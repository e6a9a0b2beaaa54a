//! AUTH: who may ask, and where credentials may go.

use std::time::Duration;

use futures::future::try_join_all;
use gauntlet_harness::case::{
    CaseResult, Ctx, Deviations, Failure, equal, holds, json as shown, silent,
};
use gauntlet_harness::client::{Client, Reply};
use gauntlet_harness::gate::{converge, hang_guard, with_hang_guard};
use gauntlet_harness::llm::{Responder, Stub, chat, error, reply, sequence};
use gauntlet_harness::spec::{Protocol, Spec};
use gauntlet_harness::subject::{Capability, IssuedKey};
use gauntlet_harness::tape::Event;
use serde_json::{Value, json};

use super::CaseRow;
use super::support::{
    DOCUMENTS, PASSAGE, QUERIES, document, healthy, located, on_postgres, query, question,
    soon_without_store, text, unexercised_if_hung,
};

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "AUTH-01",
        why: "A key that is checked too late spends the operator's money on strangers.",
        shown: "Requests without a key, with an unknown key, with a part of one, with more than one, with \
                its hash, with the provider's key and with another scheme, at every route, must be \
                answered 401 with WWW-Authenticate. A request with the key follows, and must be the \
                only one that the provider saw.",
        remedy: "Check the key before the body is read, and answer 401 with the challenge of RFC 6750.",
        needs: &[Capability::Chat, Capability::Stream, Capability::Keys],
        instances: &[
            "no key",
            "an unknown key",
            "part of a key",
            "a key and more",
            "a key in upper case",
            "the hash of a key",
            "an empty key",
            "another scheme",
            PROVIDERS_KEY,
            ROUTES[0].1,
            ROUTES[1].1,
            ROUTES[2].1,
            QUERY_ROUTES[0].1,
            QUERY_ROUTES[1].1,
            QUERY_ROUTES[2].1,
            QUERY_ROUTES[3].1,
            QUERY_ROUTES[4].1,
            QUERY_ROUTES[5].1,
        ],
        spec: || Spec::solo().key("b", KEY),
        run: &auth_01,
    },
    CaseRow {
        id: "AUTH-03",
        why: "A proxy that passes headers on hands its users' keys and cookies to third parties, and \
              theirs to its users.",
        shown: "The client sends its key, cookies and other credentials; each provider must get its own \
                key alone, at a second attempt and as a second candidate, too. The providers set a cookie \
                with answers, errors and streams that break, which nothing that the client receives may \
                hold (ERR-04 has errors that repeat a key).",
        remedy: "Build the provider's request with the headers that are meant for it, and pass on only \
                 known headers of its answer.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::OwnProviderKeys,
        ],
        instances: &[
            ANSWERED[0].1,
            ANSWERED[1].1,
            ANSWERED[2].1,
            ANSWERED[3].1,
            ANSWERED[4].1,
            ANSWERED[5].1,
            "a second attempt",
            "a second candidate",
        ],
        spec: || {
            let mut spec = Spec::pair().model("solo", &["p1"]).key("b", KEY);
            spec.retry.max_attempts = 2;
            spec
        },
        run: &auth_03,
    },
    CaseRow {
        id: "AUTH-04",
        why: "A request's api_base made a gateway send its provider's key to an address of the \
              client's choice (https://github.com/BerriAI/litellm/issues/24952).",
        shown: "Fields of plain and streamed requests, headers, a model's name, an image's address and the \
                target of a request name another host, on which the harness listens; an api_key names \
                another key, and other values hold line breaks. After each kind and a further exchange, \
                that host must have seen no connection, and the provider neither that key as its \
                credentials nor a smuggled header.",
        remedy: "Connect to configured addresses alone and with configured keys, and refuse line breaks \
                 in what becomes a header.",
        needs: &[Capability::Chat, Capability::OwnProviderKeys],
        instances: &[
            "a field of the request",
            "a field of a streamed request",
            "a header",
            "the address of an image",
            "the target of the request",
            "line breaks in what becomes a header",
            "a key in the request",
        ],
        spec: Spec::solo,
        run: &auth_04,
    },
    CaseRow {
        id: "AUTH-02",
        why: "Ids travel in logs and links; a gateway that checks the key but not the owner shows \
              every customer the questions of all others.",
        shown: "One tenant stores a document, asks, and asks once more while every agent fails. The other \
                reads, lists with every filter, deletes, and asks the same with the same idempotency key, \
                and must get the answers that he would get if they were absent; her passages reach no \
                model for him.",
        remedy: "Put the tenant into the condition of every statement, and answer 404 for what belongs \
                 to somebody else.",
        needs: &[Capability::Query, Capability::Store, Capability::Keys],
        instances: &[
            "a complete query",
            "a failed query",
            "a listing, with every filter",
            "a document",
            "a search",
            "the same idempotency key",
            "as long as they exist",
        ],
        spec: || query().key("curie", HERS).key("bohr", HIS),
        run: &auth_02,
    },
    CaseRow {
        id: "AUTH-05",
        why: "A revoked key went on for as long as it was in use, and for five minutes while the database \
              was away: whoever holds a leaked key needs only to keep using it.",
        shown: "Keys are made and used for chats, streams, queries and listings. They are revoked while \
                they are in constant use: with the database there, with the database gone, and with a \
                database that is silent. Each use must be refused at last, and a key that was not \
                revoked must go on while the database is there.",
        remedy: "Count the cache time of a key from its last confirmation by the store, not from its last \
                 use, and refuse a key that nobody confirms after a stated time.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::Keys,
            Capability::StoredKeys,
            Capability::RevocableKeys,
            Capability::Store,
        ],
        instances: &[
            "chat, store there",
            "stream, store there",
            "query, store there",
            "listing, store there",
            "chat, store gone",
            "stream, store gone",
            "query, store gone",
            "listing, store gone",
            "chat, store silent",
            "stream, store silent",
            "query, store silent",
            "listing, store silent",
            "a key that was not revoked",
            "the store is back",
        ],
        spec: || soon_without_store(on_postgres()).key("configured", KEY),
        run: &auth_05,
    },
];

/// The one key that clients have.
const KEY: &str = "sk-canary-client-b-51d7c2e80a964fb3";

/// The SHA-256 of [`KEY`], as a gateway may store it.
const HASH_OF_KEY: &str = "af9ce260e6db0aefcf66cd5ae4cec105ae2ffe7dcd5972cd7d8b872492f0de2d";

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
    let with = |token: &str| nobody.with_bearer(token);
    let mut strangers = vec![
        ("no_key", "no key", nobody.clone()),
        (
            "unknown_key",
            "an unknown key",
            with("sk-canary-nobody-0c6e"),
        ),
        ("part_of_key", "part of a key", with(&KEY[..KEY.len() - 1])),
        ("more_than_key", "a key and more", with(&format!("{KEY}0"))),
        (
            "upper_case",
            "a key in upper case",
            with(&KEY.to_uppercase()),
        ),
        ("hash_of_key", "the hash of a key", with(HASH_OF_KEY)),
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
    if ctx.instance_if(Capability::OwnProviderKeys, PROVIDERS_KEY) {
        let own = with(&ctx.spec.providers[0].api_key);
        strangers.push(("providers_key", PROVIDERS_KEY, own));
    }
    for (_, what, _) in &strangers {
        ctx.instance(what);
    }
    for (_, route) in ROUTES {
        ctx.instance(route);
    }
    for (_, route) in QUERY_ROUTES {
        ctx.instance_if(Capability::Query, route);
    }
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

const PROVIDERS_KEY: &str = "the key that the gateway has at its provider";

/// The routes that take a key, by their names in facts and among the instances.
const ROUTES: [(&str, &str); 3] = [
    ("chat", "POST /v1/chat/completions"),
    ("stream", "POST /v1/chat/completions, streamed"),
    ("models", "GET /v1/models"),
];

/// The routes of a query orchestrator that take a key.
const QUERY_ROUTES: [(&str, &str); 6] = [
    ("queries", "POST /api/v1/queries"),
    ("documents", "POST /api/v1/documents"),
    ("listing", "GET /api/v1/queries"),
    ("query", "GET /api/v1/queries/{id}"),
    ("document", "GET /api/v1/documents/{id}"),
    ("deletion", "DELETE /api/v1/documents/{id}"),
];

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
        client.chat(ctx.prompt("solo", text)).await?,
        client.chat(streamed).await?,
        client.get("/v1/models").await?,
    ];
    if ctx.declares(Capability::Query) {
        const ID: &str = "01890000-0000-7000-8000-000000000000";
        let (query, document) = (format!("{QUERIES}/{ID}"), format!("{DOCUMENTS}/{ID}"));
        let question = json!({"question": text});
        let new = json!({"title": "", "text": text});
        answers.extend([
            client.post(QUERIES, question).await?,
            client.post(DOCUMENTS, new).await?,
            client.get(QUERIES).await?,
            client.get(&query).await?,
            client.get(&document).await?,
            client.request("DELETE", &document, &[], b"").await?,
        ]);
    }
    let names = ROUTES.iter().chain(&QUERY_ROUTES).map(|(name, _)| *name);
    Ok(names.zip(answers).collect())
}

async fn auth_03(ctx: &Ctx) -> CaseResult {
    // given
    let (p1, p2) = (ctx.stub("p1")?, ctx.stub("p2")?);
    let with_cookie = |responder: Responder| {
        responder.header("set-cookie", &format!("session={SESSION}; HttpOnly"))
    };
    let answer = |what: &str| match what {
        "served" => reply("Paris"),
        "breaks" => reply("Par").then_error(503, "overloaded"),
        _ => error(what[what.len() - 3..].parse().unwrap_or(500)),
    };
    for (what, _) in ANSWERED {
        p1.mount(chat().user_says(what), with_cookie(answer(what)))
            .await;
    }
    let again = sequence([
        with_cookie(error(503)).optional(),
        with_cookie(reply("Paris")),
    ]);
    p1.mount(chat().user_says("again"), again).await;
    p1.mount(chat().user_says("next"), with_cookie(error(500)).optional())
        .await;
    p2.answers(with_cookie(reply("Rome")));
    let client = if ctx.declares(Capability::Keys) {
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
    let mut deviations = Deviations::new();
    for (what, instance) in ANSWERED {
        let seen = ctx.examine(instance, nothing_leaks(ctx, &client, "solo", what));
        deviations.note(seen.await)?;
        if p1.calls(&format!("{what} [")).is_empty() {
            deviations.note(Err(Failure::NotExercised {
                why: "the gateway does not ask its provider for a request with other credentials, \
                      so that nobody could see whether they are sent on"
                    .into(),
            }))?;
            return deviations.result();
        }
    }
    let instance = "a second attempt";
    if ctx.instance_if(Capability::Retry, instance) {
        let seen = ctx.examine(instance, nothing_leaks(ctx, &client, "solo", "again"));
        deviations.note(seen.await)?;
    }
    let instance = "a second candidate";
    if ctx.instance_if(Capability::Fallback, instance) {
        let seen = ctx.examine(instance, nothing_leaks(ctx, &client, "pair", "next"));
        deviations.note(seen.await)?;
    }
    // then
    for (stub, of, provider) in [
        (p1, "provider", &ctx.spec.providers[0]),
        (p2, "second_candidate", &ctx.spec.providers[1]),
    ] {
        for request in stub.requests() {
            let row = equal(
                &format!("{of}.authorization"),
                &format!("the Authorization header at {}", provider.name),
                Some(format!("Bearer {}", provider.api_key).as_str()),
                request.header("authorization"),
            )
            .and_then(|()| {
                let all = format!("{:?} {}", request.headers, request.body);
                let leaked = OTHERS
                    .iter()
                    .map(|(_, value)| *value)
                    .chain([KEY])
                    .find(|value| all.contains(value));
                holds(
                    &format!("client_credentials.at_{of}"),
                    leaked.is_none(),
                    "a provider's request without the client's credentials",
                    leaked.unwrap_or_default(),
                )
                .map_err(silent)
            });
            deviations.note(row)?;
        }
    }
    deviations.result()
}

/// What the provider answers, by the prompt, and the instance.
const ANSWERED: [(&str, &str); 6] = [
    ("served", "an answer"),
    ("fails with 400", "an error 400"),
    ("fails with 401", "an error 401"),
    ("fails with 429", "an error 429"),
    ("fails with 500", "an error 500"),
    ("breaks", "a stream that breaks"),
];

/// Neither a plain nor a streamed answer to this prompt holds a key or a cookie of a provider.
async fn nothing_leaks(ctx: &Ctx, client: &Client, alias: &str, what: &str) -> CaseResult {
    let plain = client.chat(ctx.prompt(alias, what)).await?;
    let stream = client.streamed(ctx.prompt(alias, what)).await?;
    let keys = ctx
        .spec
        .providers
        .iter()
        .map(|one| ("key", one.api_key.as_str()));
    for (name, secret) in keys.chain([("cookie", SESSION)]) {
        let mut leaks = located(secret, "the plain answer", &plain.headers, &plain.body);
        leaks.extend(located(
            secret,
            "the streamed answer",
            &stream.headers,
            &stream.body,
        ));
        let failed = if plain.status < 400 {
            ""
        } else {
            ".with_error"
        };
        holds(
            &format!("provider_{name}.at_client{failed}"),
            leaks.is_empty(),
            format!("an answer without the provider's {name} ({what})"),
            format_args!("the {name} in {}", leaks.join(", in ")),
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
    let mut deviations = Deviations::new();
    // when, then
    let mut seen = 0;
    let steered = ctx.examine("a field of the request", async {
        for body in steering(ctx, &url, &host) {
            ctx.client.chat(body).await?;
        }
        nobody_came(ctx, &elsewhere, "foreign_host.connection", &mut seen).await
    });
    deviations.note(steered.await)?;
    let steered = ctx.examine("a field of a streamed request", async {
        for body in steering(ctx, &url, &host) {
            ctx.client.streamed(body).await?;
        }
        nobody_came(ctx, &elsewhere, "foreign_host.streamed", &mut seen).await
    });
    deviations.note(steered.await)?;
    let steered = ctx.examine("a header", async {
        for name in STEERING_HEADERS {
            ctx.client
                .with_header(name, &url)
                .chat(ctx.prompt("solo", name))
                .await?;
        }
        nobody_came(ctx, &elsewhere, "foreign_host.by_header", &mut seen).await
    });
    deviations.note(steered.await)?;
    let steered = ctx.examine("the address of an image", async {
        let image = format!("{url}/image.png");
        let mut body = ctx.prompt("solo", "image");
        body["messages"] = json!([{"role": "user", "content": [
            {"type": "text", "text": format!("what is this [{}]", ctx.nonce)},
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "file", "file": {"file_url": image}},
        ]}]);
        ctx.client.chat(body).await?;
        nobody_came(ctx, &elsewhere, "foreign_host.by_image", &mut seen).await
    });
    deviations.note(steered.await)?;
    let steered = ctx.examine("the target of the request", async {
        let body = ctx.prompt("solo", "target").to_string();
        for target in [
            format!("http://{host}/v1/chat/completions"),
            format!("{url}/chat/completions"),
            format!("//{host}/v1/chat/completions"),
        ] {
            let headers = [("content-type", "application/json")];
            let _any = ctx
                .client
                .try_request("POST", &target, &headers, body.as_bytes())
                .await?;
        }
        nobody_came(ctx, &elsewhere, "foreign_host.by_target", &mut seen).await
    });
    deviations.note(steered.await)?;
    ctx.instance("line breaks in what becomes a header");
    smuggle(ctx).await?;
    let afterwards = ctx.client.chat(ctx.prompt("solo", "afterwards")).await?;
    // then
    deviations.note(equal(
        "next.status",
        "the status of the plain request that follows",
        200,
        afterwards.status,
    ))?;
    ctx.instance("a key in the request");
    let chosen = p1.all_requests().into_iter().find_map(|request| {
        let mut headers = request.headers.into_iter();
        headers.find(|(_, value)| value.contains(CHOSEN_KEY))
    });
    let row = holds(
        "provider.credentials",
        chosen.is_none(),
        "no key of the client's choice in the headers of a provider's request",
        format_args!(
            "the request's api_key in the header {}",
            chosen.as_ref().map_or("", |(name, _)| name.as_str())
        ),
    );
    deviations.note(row.map_err(silent))?;
    let smuggled = p1
        .all_requests()
        .into_iter()
        .find(|request| request.header("x-smuggled").is_some());
    let row = holds(
        "provider.smuggled_header",
        smuggled.is_none(),
        "no header of the client's making in a provider's request",
        "the header x-smuggled at the provider",
    );
    deviations.note(row.map_err(silent))?;
    deviations.result()
}

/// Headers in which a gateway might look for the address of a provider.
const STEERING_HEADERS: [&str; 12] = [
    "x-portkey-custom-host",
    "x-base-url",
    "x-api-base",
    "x-upstream",
    "x-target-url",
    "x-host",
    "x-forwarded-host",
    "x-forwarded-server",
    "x-original-url",
    "helicone-target-url",
    "forwarded",
    "referer",
];

/// After one more plain exchange, nobody has connected to the foreign host since `seen`.
async fn nobody_came(ctx: &Ctx, elsewhere: &Stub, fact: &str, seen: &mut usize) -> CaseResult {
    ctx.client.chat(ctx.prompt("solo", "next")).await?;
    let came = elsewhere
        .tape()
        .iter()
        .filter(|entry| {
            matches!(
                entry.event,
                Event::Accepted { .. } | Event::RequestRead { .. }
            )
        })
        .count();
    let before = std::mem::replace(seen, came);
    holds(
        fact,
        came == before,
        "no connection to the host that the requests name",
        format_args!("a connection to {}", elsewhere.wire().addr()),
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
    vec![
        with_field("api_base", url.into()),
        with_field("base_url", url.into()),
        with_field("custom_host", host.into()),
        with_field("api_url", url.into()),
        with_field("endpoint", url.into()),
        with_field("proxy", url.into()),
        with_field("extra_body", json!({"api_base": url, "base_url": url})),
        with_field("litellm_params", json!({"api_base": url})),
        with_field("provider", json!({"base_url": url, "api_key": CHOSEN_KEY})),
        with_field("extra_headers", json!({"authorization": CHOSEN_KEY})),
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
    let same_key = [
        ("content-type", "application/json"),
        ("idempotency-key", "the-same-for-both"),
    ];
    let body = question(ctx).to_string();
    let hers = she.request("POST", QUERIES, &same_key, body.as_bytes());
    let hers = hers.await?.json();
    equal(
        "query.status",
        "the status of her query",
        "complete",
        text(&hers, "status"),
    )?;
    let query = format!("{QUERIES}/{}", text(&hers, "id"));
    for stub in ctx.stubs.values() {
        stub.answers(error(400).optional());
    }
    let about_nothing = json!({"question": format!("Zxqv? [{}]", ctx.nonce)});
    let failed = she.post(QUERIES, about_nothing).await?.json();
    let failed = text(&failed["query"], "id");
    healthy(ctx)?;
    let mut deviations = Deviations::new();
    // when, then
    let unknown = he
        .get(&format!("{QUERIES}/01890000-0000-7000-8000-000000000000"))
        .await?;
    let seen = he.get(&query).await?;
    let row = equal(
        "foreign_query.read",
        "the status and code that he gets for her query",
        (404, unknown.error_code()),
        (seen.status, seen.error_code()),
    );
    ctx.instance("a complete query");
    deviations.note(row.map_err(silent))?;
    ctx.instance("a failed query");
    if !failed.is_empty() {
        let seen = he.get(&format!("{QUERIES}/{failed}")).await?;
        let row = equal(
            "foreign_failed_query.read",
            "the status and code that he gets for her failed query",
            (404, unknown.error_code()),
            (seen.status, seen.error_code()),
        );
        deviations.note(row.map_err(silent))?;
    }
    ctx.instance("a listing, with every filter");
    for filter in [
        String::new(),
        "?status=complete".into(),
        "?status=failed".into(),
        "?page=1&size=100".into(),
        "?before=ffffffff-ffff-7fff-bfff-ffffffffffff".into(),
        format!("?before={}", text(&hers, "id")),
    ] {
        let listed = he.get(&format!("{QUERIES}{filter}")).await?;
        if listed.status >= 400 {
            continue;
        }
        let listed = listed.json();
        let row = equal(
            "foreign_query.listed",
            &format!("the number of queries that he can list ({filter:?})"),
            Some(0),
            listed["queries"].as_array().map(Vec::len),
        )
        .and_then(|()| {
            equal(
                "foreign_query.counted",
                &format!("the total of his listing ({filter:?})"),
                Some(0),
                listed["total"].as_u64(),
            )
        });
        deviations.note(row.map_err(silent))?;
    }
    ctx.instance("a document");
    let read = he.get(&document).await?;
    let deleted = he.request("DELETE", &document, &[], b"").await?;
    let row = equal(
        "foreign_document.status",
        "the statuses of reading and deleting her document, for him",
        (404, 404),
        (read.status, deleted.status),
    );
    deviations.note(row.map_err(silent))?;
    ctx.instance("a search");
    let asked = "Who discovered radium, asks he?";
    let his = json!({"question": format!("{asked} [{}]", ctx.nonce)});
    let asked_by_him = he.post(QUERIES, his).await?.json();
    let passages = ctx.stubs.values().flat_map(Stub::requests);
    let leaked = passages
        .filter(|request| request.body.contains(asked))
        .any(|request| request.body.contains(PASSAGE));
    let row = equal(
        "foreign_document.sources",
        "the number of her passages among his sources",
        Some(0),
        asked_by_him["sources"].as_array().map(Vec::len),
    )
    .and_then(|()| {
        holds(
            "foreign_document.at_model",
            !leaked,
            "no passage of hers in what a model is asked for him",
            "her passage in a prompt for him",
        )
    });
    deviations.note(row.map_err(silent))?;
    ctx.instance("the same idempotency key");
    let his = he.request("POST", QUERIES, &same_key, body.as_bytes());
    let his = his.await?.json();
    let row = holds(
        "foreign_answer.by_idempotency_key",
        text(&his, "id") != text(&hers, "id")
            && his["sources"].as_array().is_none_or(Vec::is_empty),
        "an answer of his own to a query with her idempotency key",
        format_args!(
            "the answer with the id of hers, or with {}",
            shown(&his["sources"])
        ),
    );
    deviations.note(row.map_err(silent))?;
    deviations.result()?;
    ctx.examine("as long as they exist", async {
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
        )?;
        let listed = she.get(QUERIES).await?.json();
        let number = if failed.is_empty() { 1 } else { 2 };
        equal(
            "own_query.listed",
            "the number of queries that she can list",
            Some(number),
            listed["queries"].as_array().map(Vec::len),
        )
    })
    .await
}

/// What a key is used for.
#[derive(Clone, Copy, Debug)]
enum Use {
    Chat,
    Stream,
    Query,
    Listing,
}

impl Use {
    const ALL: [Self; 4] = [Self::Chat, Self::Stream, Self::Query, Self::Listing];

    const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Stream => "stream",
            Self::Query => "query",
            Self::Listing => "listing",
        }
    }

    /// The status of one use of the key.
    async fn status(self, ctx: &Ctx, key: &IssuedKey) -> Result<u16, Failure> {
        let client = ctx.client.with_bearer(&key.token);
        let prompt = || ctx.prompt("review", "hello");
        Ok(match self {
            Self::Chat => client.chat(prompt()).await?.status,
            Self::Stream => client.streamed(prompt()).await?.status,
            Self::Query => client.post(QUERIES, question(ctx)).await?.status,
            Self::Listing => client.get(QUERIES).await?.status,
        })
    }
}

async fn auth_05(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    let wire = ctx.database_wire()?;
    let uses: Vec<Use> = Use::ALL
        .into_iter()
        .filter(|one| matches!(one, Use::Chat | Use::Stream) || ctx.declares(Capability::Query))
        .collect();
    let uses = uses.as_slice();
    for one in Use::ALL {
        for store in ["there", "gone", "silent"] {
            let name = format!("{}, store {store}", one.name());
            let needed = match one {
                Use::Chat | Use::Stream => Capability::Chat,
                Use::Query | Use::Listing => Capability::Query,
            };
            ctx.instance_if(needed, &name);
        }
    }
    let kept = ctx.add_key("kept").await?;
    Use::Chat.status(ctx, &kept).await?;
    // when, then
    let keys = issued(ctx, uses, false).await?;
    refused(ctx, "hang.refused", &keys).await?;
    for (one, key) in &keys {
        equal(
            &format!("revoked.status.{}", one.name()),
            "the status with a revoked key while the store answers",
            401,
            one.status(ctx, key).await?,
        )?;
    }
    ctx.examine("a key that was not revoked", async {
        for one in uses {
            equal(
                "kept.status",
                &format!(
                    "the status of a {} with a key that was not revoked",
                    one.name()
                ),
                200,
                one.status(ctx, &kept).await?,
            )?;
        }
        Ok(())
    })
    .await?;
    // given
    let keys = issued(ctx, uses, true).await?;
    wire.gone().await?;
    // when, then
    refused(ctx, "hang.refused_without_store", &keys).await?;
    wire.resume().await?;
    ctx.examine("the store is back", async {
        for (one, key) in &keys {
            let what = format!(
                "the status of a {} with a revoked key to be 401",
                one.name()
            );
            converge("hang.refused_again", &what, || async {
                let status = one.status(ctx, key).await?;
                holds(
                    "revoked.comes_back",
                    status >= 400,
                    "a revoked key to stay refused once the store is back",
                    status,
                )?;
                Ok((status == 401).then_some(()))
            })
            .await?;
        }
        Ok(())
    })
    .await?;
    // given
    let keys = issued(ctx, uses, true).await?;
    wire.stall();
    // when, then
    refused(ctx, "hang.refused_with_silent_store", &keys).await?;
    wire.resume().await
}

/// Makes a key for each use, or one for all of them, and uses it once, so that the gateway may
/// remember it.
async fn issued(
    ctx: &Ctx,
    uses: &[Use],
    one_for_all: bool,
) -> Result<Vec<(Use, IssuedKey)>, Failure> {
    let number = if one_for_all { 1 } else { uses.len() };
    let made = uses.iter().take(number).map(|one| ctx.add_key(one.name()));
    let made = try_join_all(made).await?;
    let keys: Vec<_> = uses
        .iter()
        .copied()
        .zip(made.iter().cycle().cloned())
        .collect();
    for (one, key) in &keys {
        let what = format!(
            "the status of a {} with a new key to become 200",
            one.name()
        );
        let accepted = converge("hang.accepted", &what, || async {
            Ok((one.status(ctx, key).await? == 200).then_some(()))
        });
        accepted.await.map_err(unexercised_if_hung(|| {
            "the gateway does not accept a key that was made while it runs".into()
        }))?;
    }
    Ok(keys)
}

/// Revokes the keys while each is in constant use, until each is refused.
async fn refused(ctx: &Ctx, fact: &str, keys: &[(Use, IssuedKey)]) -> CaseResult {
    let stated = Duration::from_millis(ctx.manifest.behaviour.revoked_key_ms);
    let used = keys.iter().map(|(one, key)| async move {
        let fact = format!("{fact}.{}", one.name());
        let what = format!(
            "a {} with a revoked key to be refused, {} ms after the revocation as the target states, \
             although the key is in constant use",
            one.name(),
            stated.as_millis()
        );
        converge(&fact, &what, || async {
            Ok((one.status(ctx, key).await? >= 400).then_some(()))
        })
        .await
    });
    let mut each: Vec<&IssuedKey> = keys.iter().map(|(_, key)| key).collect();
    each.dedup();
    let revoked = try_join_all(each.into_iter().map(|key| ctx.revoke_key(key)));
    let all = async { futures::try_join!(revoked, try_join_all(used)) };
    with_hang_guard(hang_guard() + stated, all).await.map(drop)
}
