//! EDGE, of messages: what HTTP/1.1 allows a client and a provider to write, and what it forbids.

use gauntlet_harness::case::{
    CaseResult, Ctx, Deviations, Failure, FailureMode, equal, holds, silent,
};
use gauntlet_harness::client::{Reply, Transport};
use gauntlet_harness::llm::{StubRequest, chat, echo, raw, reply, with};
use gauntlet_harness::plan::{Framing, Plan, Step};
use gauntlet_harness::spec::{LimitSpec, Spec};
use gauntlet_harness::subject::Capability;

use super::{CHAT, JSON, both_protocols, with_hosts};
use crate::cases::CaseRow;
use crate::cases::support::{noted, until_asked, whole};

/// The limit of a body in bytes.
const BODY: u64 = 64 << 10;
const TEXT: &str = "Paris is big.";

pub(in crate::cases) const CASES: &[CaseRow] = &[CaseRow {
    id: "EDGE-06",
    why: "Clients and providers are written in twenty languages, and each of them uses another corner \
          of HTTP/1.1; a gateway that knows one of them hangs with the next \
          (https://github.com/NVIDIA/NemoClaw/issues/10243).",
    shown: "A client awaits 100 (Continue), speaks HTTP/1.0, writes three requests at once, uses the \
            absolute form, and sends chunks with extensions and trailers. A provider sends interim \
            answers, chunk extensions and trailers. All must be served. Messages whose lengths \
            contradict each other must be refused.",
    remedy: "Use an HTTP library that knows RFC 9112 whole, on both sides, and refuse what it calls an \
             error.",
    needs: &[Capability::Chat, Capability::Stream],
    instances: &[
        "Expect: 100-continue",
        "Expect: 100-continue, streamed",
        "Expect: 100-continue, a body over the limit",
        "HTTP/1.0",
        "HTTP/1.0, streamed",
        "pipelining",
        "absolute form",
        "chunk extensions and trailers of a client",
        "two lengths of a client",
        "a list of two lengths of a client",
        "length and chunks of a client",
        "a last coding that is not chunked",
        "100 before the answer",
        "102 before the answer",
        "103 before the answer, streamed",
        "three interim answers",
        "100 before the answer, Ollama",
        "chunk extensions of a provider",
        "chunk extensions of a provider, streamed",
        "trailers of a provider",
        "trailers of a provider, streamed",
        "two lengths of a provider",
        "a list of two lengths of a provider",
        "a length of a provider that is no number",
        "a length of a provider that is too small",
        "length and chunks of a provider",
    ],
    spec: || {
        let spec = both_protocols();
        Spec {
            limits: LimitSpec {
                body_bytes: BODY,
                ..spec.limits
            },
            ..spec
        }
    },
    run: &edge_06,
}];

async fn edge_06(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    of_clients(ctx, &mut deviations).await?;
    contradicting_clients(ctx, &mut deviations).await?;
    interim_answers(ctx, &mut deviations).await?;
    chunks_of_providers(ctx, &mut deviations).await?;
    contradicting_providers(ctx, &mut deviations).await?;
    deviations.result()
}

/// What clients may write, and is served.
async fn of_clients(ctx: &Ctx, deviations: &mut Deviations) -> CaseResult {
    ctx.stub("p1")?.answers(echo());
    for (name, stream) in [
        ("Expect: 100-continue", false),
        ("Expect: 100-continue, streamed", true),
    ] {
        noted(deviations, ctx.examine(name, continued(ctx, stream)).await)?;
    }
    if ctx.instance_if(
        Capability::BodyLimit,
        "Expect: 100-continue, a body over the limit",
    ) {
        noted(deviations, expected_too_much(ctx).await)?;
    }
    noted(deviations, ctx.examine("HTTP/1.0", old_plain(ctx)).await)?;
    noted(
        deviations,
        ctx.examine("HTTP/1.0, streamed", old_stream(ctx)).await,
    )?;
    noted(deviations, ctx.examine("pipelining", pipelined(ctx)).await)?;
    noted(
        deviations,
        ctx.examine("absolute form", absolute(ctx)).await,
    )?;
    let chunks = chunked_client(ctx);
    let name = "chunk extensions and trailers of a client";
    noted(deviations, ctx.examine(name, chunks).await)
}

async fn continued(ctx: &Ctx, stream: bool) -> CaseResult {
    let mut body = ctx.prompt("solo", "after 100");
    body["stream"] = stream.into();
    let body = body.to_string();
    let length = body.len().to_string();
    let headers = [
        JSON,
        ("expect", "100-continue"),
        ("content-length", length.as_str()),
    ];
    let head = ctx.client.request_bytes("POST", CHAT, &headers, b"");
    let mut sent = ctx.client.send_raw(&head).await?;
    // a gateway that wants the body sends 100; one that wants none sends a final status
    let status = sent.next_status().await?;
    equal(
        "expect.status",
        "the interim status of a request that awaits it",
        100,
        status,
    )?;
    sent.write_more(body.as_bytes()).await?;
    if stream {
        let answer = sent.stream().await?.collect().await?;
        return whole(&answer, &asked(ctx, "after 100"));
    }
    served(ctx, "expect.status", &sent.reply().await?, "after 100")
}

async fn expected_too_much(ctx: &Ctx) -> CaseResult {
    let length = (4 * BODY).to_string();
    let headers = [
        JSON,
        ("expect", "100-continue"),
        ("content-length", length.as_str()),
    ];
    let head = ctx.client.request_bytes("POST", CHAT, &headers, b"");
    let mut sent = ctx.client.send_raw(&head).await?;
    let status = sent.next_status().await?;
    holds(
        "expect.too_large",
        status >= 400,
        "a final status of an error without a byte of a body that is over the limit",
        status,
    )
}

async fn old_plain(ctx: &Ctx) -> CaseResult {
    let own = format!("host: {}\r\n", ctx.client.authority());
    let body = ctx.prompt("solo", "old");
    let mut sent = ctx
        .client
        .send_raw(&with_hosts(ctx, &body, 0, &own))
        .await?;
    let answer = sent.next_reply().await?;
    served(ctx, "http_1_0.status", &answer, "old")?;
    unchunked(&answer.headers)?;
    // a client of HTTP/1.0 knows no connection that stays
    sent.until_closed().await?;
    Ok(())
}

async fn old_stream(ctx: &Ctx) -> CaseResult {
    let own = format!("host: {}\r\n", ctx.client.authority());
    let mut body = ctx.prompt("solo", "old");
    body["stream"] = true.into();
    let sent = ctx
        .client
        .send_raw(&with_hosts(ctx, &body, 0, &own))
        .await?;
    let answer = sent.stream().await?.collect().await?;
    equal(
        "http_1_0.status",
        "the status of a request of HTTP/1.0",
        200,
        answer.status,
    )?;
    unchunked(&answer.headers)?;
    whole(&answer, &asked(ctx, "old"))
}

fn unchunked(headers: &[(String, String)]) -> CaseResult {
    holds(
        "http_1_0.status",
        !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding")),
        "no Transfer-Encoding for a client of HTTP/1.0, which does not know it",
        format_args!("{headers:?}"),
    )
}

/// Three requests are written at once. Their answers must come in order; a gateway that states that
/// it closes the connection owes no more of them.
async fn pipelined(ctx: &Ctx) -> CaseResult {
    const WORDS: [&str; 3] = ["first", "second", "third"];
    let one = |words: &&str| {
        let body = ctx.prompt("solo", words).to_string();
        ctx.client
            .request_bytes("POST", CHAT, &[JSON], body.as_bytes())
    };
    let all: Vec<u8> = WORDS.iter().flat_map(one).collect();
    let mut sent = ctx.client.send_raw(&all).await?;
    for words in WORDS {
        let answer = sent.next_reply().await?;
        served(ctx, "pipelining.answers", &answer, words)?;
        let closes = answer
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if closes {
            break;
        }
    }
    sent.leave();
    Ok(())
}

async fn absolute(ctx: &Ctx) -> CaseResult {
    let body = ctx.prompt("solo", "absolute").to_string();
    let bytes = ctx
        .client
        .request_bytes("POST", CHAT, &[JSON], body.as_bytes());
    let absolute = format!("POST http://{}/", ctx.client.authority());
    let text = String::from_utf8_lossy(&bytes).replacen("POST /", &absolute, 1);
    let answer = ctx.client.send_raw(text.as_bytes()).await?.reply().await?;
    served(ctx, "absolute_form.status", &answer, "absolute")
}

async fn chunked_client(ctx: &Ctx) -> CaseResult {
    let body = ctx.prompt("solo", "chunks").to_string();
    let (first, second) = body.split_at(body.len() / 2);
    let chunks = format!(
        "{:x};gauntlet=1\r\n{first}\r\n{:X} ; gauntlet=\"two\"\r\n{second}\r\n0;last\r\nx-gauntlet: 417\r\n\r\n",
        first.len(),
        second.len()
    );
    let headers = [JSON, ("transfer-encoding", "chunked")];
    let sent = ctx.client.send("POST", CHAT, &headers, chunks.as_bytes());
    let answer = sent.await?.reply().await?;
    served(ctx, "chunks.status", &answer, "chunks")
}

/// An instance, its two headers, and its body.
type Contradiction<'a> = (&'a str, [(&'a str, &'a str); 2], &'a str);

/// What clients must not write, and is refused: nobody knows where the next request begins.
async fn contradicting_clients(ctx: &Ctx, deviations: &mut Deviations) -> CaseResult {
    let p1 = ctx.stub("p1")?;
    let body = ctx.prompt("solo", "contradicting").to_string();
    let (length, other) = (body.len().to_string(), (body.len() + 7).to_string());
    let list = format!("{length}, {other}");
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let before = p1.requests().len();
    let rows: [Contradiction<'_>; 3] = [
        (
            "two lengths of a client",
            [("content-length", &length), ("Content-Length", &other)],
            &body,
        ),
        (
            "a list of two lengths of a client",
            [("content-length", &list), ("x-gauntlet", "417")],
            &body,
        ),
        (
            "a last coding that is not chunked",
            [
                ("transfer-encoding", "chunked, gzip"),
                ("x-gauntlet", "417"),
            ],
            &chunks,
        ),
    ];
    for (name, [first, second], body) in rows {
        let examined = async {
            let headers = [JSON, first, second];
            let sent = ctx
                .client
                .try_request("POST", CHAT, &headers, body.as_bytes());
            refused("lengths.refused", sent.await?)?;
            equal(
                "lengths.refused",
                "the number of requests at the provider",
                before,
                p1.requests().len(),
            )
        };
        noted(deviations, ctx.examine(name, examined).await)?;
    }
    let both = both_framings(ctx, &chunks);
    let name = "length and chunks of a client";
    noted(deviations, ctx.examine(name, both).await)
}

fn refused(fact: &str, end: Result<Reply, Transport>) -> CaseResult {
    let (fair, seen) = match end {
        Ok(answer) => (answer.status >= 400, format!("status {}", answer.status)),
        Err(transport) => (true, transport.to_string()),
    };
    holds(
        fact,
        fair,
        "an error, or the end of the connection, for a message that contradicts itself",
        seen,
    )
}

/// A request with a length and with chunks is refused, or read by its chunks; the connection is
/// closed in both cases (RFC 9112 section 6.1).
async fn both_framings(ctx: &Ctx, chunks: &str) -> CaseResult {
    // by its length, the request ends before the second one begins
    let second = ctx.prompt("solo", "smuggled").to_string();
    let second = ctx
        .client
        .request_bytes("POST", CHAT, &[JSON], second.as_bytes());
    let length = chunks.len().to_string();
    let headers = [
        JSON,
        ("content-length", length.as_str()),
        ("transfer-encoding", "chunked"),
    ];
    let first = ctx
        .client
        .request_bytes("POST", CHAT, &headers, chunks.as_bytes());
    let mut sent = ctx.client.send_raw(&[first, second].concat()).await?;
    let status = sent.next_status().await;
    if let Ok(status) = status {
        let answer = sent.next_reply().await?;
        if status < 400 {
            served(ctx, "lengths.refused", &answer, "contradicting")?;
        }
    } else if let Err(
        failure @ Failure::Violated {
            mode: FailureMode::Hang,
            ..
        },
    ) = status
    {
        return Err(failure);
    }
    let after = sent.until_closed().await?;
    holds(
        "lengths.closed",
        after == 0,
        "no second answer on a connection whose request had a length and chunks",
        format_args!("{after} bytes of one"),
    )
}

/// Interim answers of providers are no answers.
async fn interim_answers(ctx: &Ctx, deviations: &mut Deviations) -> CaseResult {
    let hundred = "HTTP/1.1 100 Continue\r\n\r\n";
    let processing = "HTTP/1.1 102 Processing\r\nx-gauntlet: 417\r\n\r\n";
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </style>; rel=preload\r\n\r\n";
    let three = [hundred, processing, hints].concat();
    let rows = [
        ("100 before the answer", "solo", false, hundred),
        ("102 before the answer", "solo", false, processing),
        ("103 before the answer, streamed", "solo", true, hints),
        ("three interim answers", "solo", false, three.as_str()),
        ("100 before the answer, Ollama", "ollama", false, hundred),
    ];
    for (name, alias, stream, interim) in rows {
        if alias == "ollama" && !ctx.instance_if(Capability::Ollama, name) {
            continue;
        }
        let provider = if alias == "ollama" { "p2" } else { "p1" };
        let steps = [
            Step::Garbage(interim.as_bytes().to_vec()),
            Step::Head,
            Step::Rest,
        ];
        ctx.stub(provider)?
            .answers(reply(TEXT).plan(Plan::of(steps)));
        let examined = right_answer(ctx, "interim.answer", alias, stream);
        noted(deviations, ctx.examine(name, examined).await)?;
    }
    Ok(())
}

/// The provider's answer must arrive whole.
async fn right_answer(ctx: &Ctx, fact: &str, alias: &str, stream: bool) -> CaseResult {
    let prompt = ctx.prompt(alias, "hello");
    let (status, text, complete) = if stream {
        let answer = ctx.client.streamed(prompt).await?;
        let complete = answer.looks_complete();
        (answer.status, answer.text, complete)
    } else {
        let answer = ctx.client.chat(prompt).await?;
        (answer.status, answer.content(), true)
    };
    holds(
        fact,
        (status, text.as_str(), complete) == (200, TEXT, true),
        format!("status 200 and the whole text {TEXT:?}"),
        format_args!("status {status} and the text {text:?}"),
    )
}

/// The whole bytes of an answer in chunks: what follows each size, and what follows the last chunk.
fn in_chunks(request: &StubRequest, extension: &str, trailers: &str) -> Vec<u8> {
    let answer = reply(TEXT).render(request);
    let kind = answer
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-type"))
        .map_or("application/json", |(_, value)| value.as_str());
    let mut bytes =
        format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n")
            .into_bytes();
    for piece in answer.body.chunks(50) {
        bytes.extend(format!("{:x}{extension}\r\n", piece.len()).bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend(format!("0{extension}\r\n{trailers}\r\n").bytes());
    bytes
}

async fn chunks_of_providers(ctx: &Ctx, deviations: &mut Deviations) -> CaseResult {
    let p1 = ctx.stub("p1")?;
    let extension = ";gauntlet=\"417\"";
    let trailers = "x-gauntlet: 417\r\nx-more: 418\r\n";
    for (n, (name, fact, stream, extension, trailers)) in [
        (
            "chunk extensions of a provider",
            "extensions.answer",
            false,
            extension,
            "",
        ),
        (
            "chunk extensions of a provider, streamed",
            "extensions.answer",
            true,
            extension,
            "",
        ),
        (
            "trailers of a provider",
            "trailers.answer",
            false,
            "",
            trailers,
        ),
        (
            "trailers of a provider, streamed",
            "trailers.answer",
            true,
            "",
            trailers,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        // the connection stays open until the client has its answer: the chunks alone end it
        let gate = format!("answered {n}");
        let (held, at) = (gate.clone(), stream);
        p1.mount(
            chat().streaming(at).user_says(name),
            with(move |request| {
                let bytes = in_chunks(request, extension, trailers);
                let steps = [Step::Garbage(bytes), Step::Hold(held.clone()), Step::Cut];
                raw(200, "application/json", "").plan(Plan::of(steps))
            }),
        )
        .await;
        let examined = async {
            let prompt = ctx.prompt("solo", name);
            let (status, text) = if stream {
                let answer = ctx.client.streamed(prompt).await?;
                (answer.status, answer.text)
            } else {
                let answer = ctx.client.chat(prompt).await?;
                (answer.status, answer.content())
            };
            holds(
                fact,
                (status, text.as_str()) == (200, TEXT),
                format!("status 200 and the whole text {TEXT:?}"),
                format_args!("status {status} and the text {text:?}"),
            )
        };
        let examined = ctx.examine(name, examined).await;
        ctx.gates.gate(&gate).open();
        noted(deviations, examined)?;
    }
    Ok(())
}

/// An answer whose lengths contradict each other has no end that anybody knows: it is a failure,
/// and nothing of it is the beginning of the next answer.
async fn contradicting_providers(ctx: &Ctx, deviations: &mut Deviations) -> CaseResult {
    let p1 = ctx.stub("p1")?;
    for (n, (name, lengths)) in [
        (
            "two lengths of a provider",
            "content-length: {n}\r\nContent-Length: 7\r\n",
        ),
        (
            "a list of two lengths of a provider",
            "content-length: {n}, 7\r\n",
        ),
        (
            "a length of a provider that is no number",
            "content-length: many\r\n",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let words = format!("wrong lengths {n}");
        p1.mount(
            chat().user_says(&words),
            with(move |request| {
                let body = reply(TEXT).render(request).body;
                let lengths = lengths.replace("{n}", &body.len().to_string());
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{lengths}\r\n");
                let bytes = [head.as_bytes(), &body].concat();
                raw(200, "application/json", "").plan(Plan::of([Step::Garbage(bytes), Step::Cut]))
            }),
        )
        .await;
        // a gateway may leave a provider alone after an answer that it refused
        until_asked(ctx, "solo", p1).await?;
        let examined = async {
            let answer = ctx.client.chat(ctx.prompt("solo", &words)).await?;
            holds(
                "provider_lengths.answer",
                answer.status >= 400,
                "an error for an answer whose length nobody knows",
                format_args!("status {} and {:?}", answer.status, answer.text()),
            )
        };
        noted(deviations, ctx.examine(name, examined).await)?;
    }
    until_asked(ctx, "solo", p1).await?;
    let small = async {
        let name = "a length that is too small";
        let framing = Framing::WrongLength(-20);
        let plan = Plan {
            framing,
            ..Plan::default()
        };
        p1.mount(chat().user_says(name), reply(TEXT).plan(plan))
            .await;
        let answer = ctx.client.chat(ctx.prompt("solo", name)).await?;
        holds(
            "provider_lengths.answer",
            answer.status >= 400,
            "an error for an answer that ends within its JSON",
            format_args!("status {} and {:?}", answer.status, answer.text()),
        )?;
        // nothing that was left over may be read as the next answer
        until_asked(ctx, "solo", p1).await?;
        p1.answers(echo());
        for n in 0..3 {
            let words = format!("after the leftover {n}");
            let answer = ctx.client.chat(ctx.prompt("solo", &words)).await?;
            served(ctx, "leftover.answer", &answer, &words)?;
        }
        Ok(())
    };
    let name = "a length of a provider that is too small";
    noted(deviations, ctx.examine(name, small).await)?;
    let both = async {
        let name = "length and chunks of a provider";
        let chunks = |request: &StubRequest| {
            let bytes = in_chunks(request, "", "");
            let text = String::from_utf8_lossy(&bytes).replacen(
                "transfer-encoding",
                "content-length: 30\r\ntransfer-encoding",
                1,
            );
            text.into_bytes()
        };
        p1.mount(
            chat().user_says(name),
            with(move |request| {
                let steps = [Step::Garbage(chunks(request)), Step::Cut];
                raw(200, "application/json", "").plan(Plan::of(steps))
            }),
        )
        .await;
        let answer = ctx.client.chat(ctx.prompt("solo", name)).await?;
        holds(
            "provider_lengths.both",
            answer.status >= 400 || answer.content() == TEXT,
            "an error, or the text as the chunks hold it",
            format_args!("status {} and {:?}", answer.status, answer.text()),
        )
        .map_err(silent)
    };
    let name = "length and chunks of a provider";
    noted(deviations, ctx.examine(name, both).await)
}

/// What the provider answers to the prompt with these words.
fn asked(ctx: &Ctx, words: &str) -> String {
    format!("{words} [{}]", ctx.nonce)
}

/// The answer must be the one to this prompt.
fn served(ctx: &Ctx, fact: &str, answer: &Reply, words: &str) -> CaseResult {
    let text = answer.content();
    holds(
        fact,
        answer.status == 200 && text == asked(ctx, words),
        format!("status 200 and the answer to {words:?}"),
        format_args!("status {} and the text {text:?}", answer.status),
    )
}
