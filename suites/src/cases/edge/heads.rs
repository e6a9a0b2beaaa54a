//! EDGE, of heads: `Host`, and the headers that concern one connection alone.

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, equal, holds, silent};
use gauntlet_harness::client::Exchange;
use gauntlet_harness::llm::{ReceivedRequest, Responder, error, reply};
use gauntlet_harness::spec::Spec;
use gauntlet_harness::subject::Capability;

use super::{CHAT, JSON, both_protocols, with_hosts};
use crate::cases::CaseRow;
use crate::cases::support::{noted, whole};

/// What no header of one connection may carry to another.
const CANARY: &str = "gauntlet-417";

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "EDGE-01",
        why: "Who reads another Host than the server in front sends the request where nobody has \
              looked (https://github.com/hyperium/hyper/issues/3777).",
        shown: "Requests of HTTP/1.1 have no Host, two, or one that names no host. Each must get 400, \
                and the provider must not be asked.",
        remedy: "Count the headers Host of every request of HTTP/1.1, and check the value, before the \
                 request is looked at further.",
        needs: &[Capability::Chat],
        instances: &[
            "missing",
            "missing, streamed",
            "doubled, with one value",
            "doubled, with two values",
            "a blank in it",
            "a path in it",
            "a user in it",
            "an open bracket in it",
            "a port that is no number",
            "control: empty",
            "control: HTTP/1.0 without Host",
        ],
        spec: Spec::solo,
        run: &edge_01,
    },
    CaseRow {
        id: "EDGE-05",
        why: "A framing header that is copied from one message to another makes the peer wait for \
              bytes that never come (https://github.com/ggml-org/llama.cpp/issues/20264).",
        shown: "Client and provider send headers that concern their connection alone, some of them \
                named by Connection. None may arrive at the other side, and each message must be \
                framed once.",
        remedy: "Forward a list of known headers, and leave out the rest, instead of removing known \
                 ones.",
        needs: &[Capability::Chat, Capability::Stream],
        instances: &[
            "to the provider, plain",
            "to the provider, streamed",
            "to the provider, a chunked body",
            "to the provider, Ollama",
            "to the client, plain",
            "to the client, streamed",
            "to the client, an error",
            "to the client, Ollama, plain",
            "to the client, Ollama, streamed",
        ],
        spec: both_protocols,
        run: &edge_05,
    },
];

async fn edge_01(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("Paris"));
    let own = format!("host: {}\r\n", ctx.client.authority());
    let hello = ctx.prompt("solo", "hello");
    let mut streamed = hello.clone();
    streamed["stream"] = true.into();
    let healthy = with_hosts(ctx, &hello, 1, &own);
    equal(
        "control.status",
        "the status of a request with one Host",
        200,
        ctx.client.send_raw(&healthy).await?.reply().await?.status,
    )?;
    let twice = [own.as_str(), own.as_str()].concat();
    let two = format!("{own}host: gauntlet.example\r\n");
    let rows = [
        ("missing", "missing.status", &hello, ""),
        ("missing, streamed", "missing.status", &streamed, ""),
        (
            "doubled, with one value",
            "doubled.status",
            &hello,
            twice.as_str(),
        ),
        (
            "doubled, with two values",
            "doubled.status",
            &hello,
            two.as_str(),
        ),
        (
            "a blank in it",
            "invalid.status",
            &hello,
            "host: gaunt let\r\n",
        ),
        (
            "a path in it",
            "invalid.status",
            &hello,
            "host: gaunt/let\r\n",
        ),
        (
            "a user in it",
            "invalid.status",
            &hello,
            "host: user@gauntlet\r\n",
        ),
        (
            "an open bracket in it",
            "invalid.status",
            &hello,
            "host: [::1\r\n",
        ),
        (
            "a port that is no number",
            "invalid.status",
            &hello,
            "host: gauntlet:port\r\n",
        ),
    ];
    // when
    let mut deviations = Deviations::new();
    for (name, fact, body, hosts) in rows {
        let examined = async {
            let sent = ctx
                .client
                .send_raw(&with_hosts(ctx, body, 1, hosts))
                .await?;
            let answer = sent.reply().await?;
            // then
            equal(fact, "the status of the request", 400, answer.status)
        };
        noted(&mut deviations, ctx.examine(name, examined).await)?;
    }
    noted(
        &mut deviations,
        equal(
            "provider.requests",
            "the number of requests at the provider, the control's alone,",
            1,
            p1.requests().len(),
        ),
    )?;
    let empty = async {
        let sent = with_hosts(ctx, &hello, 1, "host:\r\n");
        let answer = ctx.client.send_raw(&sent).await?.reply().await?;
        holds(
            "empty.status",
            matches!(answer.status, 200 | 400),
            "a status of 200, since an empty Host is allowed, or of 400",
            answer.status,
        )
    };
    noted(&mut deviations, ctx.examine("control: empty", empty).await)?;
    let old = async {
        let sent = with_hosts(ctx, &hello, 0, "");
        let answer = ctx.client.send_raw(&sent).await?.reply().await?;
        holds(
            "http_1_0.status",
            answer.status != 400,
            "HTTP/1.0, which needs no Host, not to be refused for it",
            answer.status,
        )
    };
    noted(
        &mut deviations,
        ctx.examine("control: HTTP/1.0 without Host", old).await,
    )?;
    deviations.result()
}

async fn edge_05(ctx: &Ctx) -> CaseResult {
    // given
    for stub in ctx.stubs.values() {
        stub.answers(of_one_connection(reply("Paris is big.")));
    }
    let mut deviations = Deviations::new();
    let ollama = ctx.declares(Capability::Ollama);
    let rows = [
        ("plain", "solo", "p1", false, false),
        ("streamed", "solo", "p1", true, false),
        ("a chunked body", "solo", "p1", false, true),
        ("Ollama", "ollama", "p2", true, false),
    ];
    for (name, alias, provider, stream, chunked) in rows {
        let name = format!("to the provider, {name}");
        if alias == "ollama" && !ctx.instance_if(Capability::Ollama, &name) {
            continue;
        }
        let examined = to_the_provider(ctx, alias, provider, stream, chunked);
        noted(&mut deviations, ctx.examine(&name, examined).await)?;
    }
    let rows = [
        ("to the client, plain", "solo", false),
        ("to the client, streamed", "solo", true),
        ("to the client, Ollama, plain", "ollama", false),
        ("to the client, Ollama, streamed", "ollama", true),
    ];
    for (name, alias, stream) in rows {
        if alias == "ollama" && !ollama {
            ctx.instance_if(Capability::Ollama, name);
            continue;
        }
        let examined = to_the_client(ctx, alias, stream);
        noted(&mut deviations, ctx.examine(name, examined).await)?;
    }
    let failing = async {
        let wrong = error(400).message("the messages are wrong");
        ctx.stub("p1")?.answers(of_one_connection(wrong));
        let answer = ctx.client.chat(ctx.prompt("solo", "wrong")).await?;
        copied("error", &answer.headers)
    };
    noted(
        &mut deviations,
        ctx.examine("to the client, an error", failing).await,
    )?;
    deviations.result()
}

/// The answer with headers that concern the provider's connection alone.
fn of_one_connection(answer: Responder) -> Responder {
    answer
        .header("connection", "x-hop, keep-alive")
        .header("x-hop", CANARY)
        .header("keep-alive", &format!("timeout=5, {CANARY}"))
        .header("proxy-connection", CANARY)
        .header("proxy-authenticate", &format!("Basic realm=\"{CANARY}\""))
        .header("upgrade", &format!("{CANARY}/1"))
}

async fn to_the_provider(
    ctx: &Ctx,
    alias: &str,
    provider: &str,
    stream: bool,
    chunked: bool,
) -> CaseResult {
    // given
    let stub = ctx.stub(provider)?;
    let before = stub.requests().len();
    let mut body = ctx.prompt(alias, "hello");
    body["stream"] = stream.into();
    let body = body.to_string();
    let keep_alive = format!("timeout=5, {CANARY}");
    let credentials = format!("Basic {CANARY}");
    let te = format!("trailers, {CANARY};q=0.5");
    let mut headers = vec![
        JSON,
        ("connection", "keep-alive, x-hop, te"),
        ("x-hop", CANARY),
        ("keep-alive", keep_alive.as_str()),
        ("proxy-connection", CANARY),
        ("proxy-authorization", credentials.as_str()),
        ("te", te.as_str()),
    ];
    let mut bytes = body.as_bytes().to_vec();
    if chunked {
        headers.push(("transfer-encoding", "chunked"));
        let (first, second) = body.split_at(body.len() / 2);
        let chunks = format!(
            "{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
            first.len(),
            second.len()
        );
        bytes = chunks.into_bytes();
    }
    // when
    let sent: Exchange = ctx.client.send("POST", CHAT, &headers, &bytes).await?;
    let status = match stream {
        true => sent.stream().await?.collect().await?.status,
        false => sent.reply().await?.status,
    };
    // then
    equal("answer.status", "the status", 200, status)?;
    let received = stub.requests();
    for request in &received[before.min(received.len())..] {
        let named = located(request, |name| name == "x-hop");
        holds(
            "provider.named_headers",
            named.is_empty(),
            "no header that Connection names",
            format_args!("{named:?}"),
        )
        .map_err(silent)?;
        let copied = located(request, |name| name != "x-hop");
        holds(
            "provider.hop_headers",
            copied.is_empty(),
            "no header that concerns the client's connection alone",
            format_args!("{copied:?}"),
        )
        .map_err(silent)?;
        framed_once("provider.hop_headers", &request.headers)?;
    }
    Ok(())
}

/// The headers of a request that hold the canary.
fn located(request: &ReceivedRequest, such: impl Fn(&str) -> bool) -> Vec<String> {
    with_canary(&request.headers)
        .into_iter()
        .filter(|name| such(name))
        .collect()
}

fn with_canary(headers: &[(String, String)]) -> Vec<String> {
    headers
        .iter()
        .filter(|(_, value)| value.contains(CANARY))
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect()
}

async fn to_the_client(ctx: &Ctx, alias: &str, stream: bool) -> CaseResult {
    let prompt = ctx.prompt(alias, "hello");
    if stream {
        let answer = ctx.client.streamed(prompt).await?;
        copied("stream", &answer.headers)?;
        return whole(&answer, "Paris is big.");
    }
    let answer = ctx.client.chat(prompt).await?;
    copied("plain", &answer.headers)?;
    equal(
        "plain.text",
        "the text of the answer",
        "Paris is big.",
        answer.content().as_str(),
    )
}

/// Nothing of the provider's connection may be among these headers.
fn copied(what: &str, headers: &[(String, String)]) -> CaseResult {
    let found = with_canary(headers);
    let (named, hop): (Vec<_>, Vec<_>) = found.into_iter().partition(|name| name == "x-hop");
    holds(
        &format!("{what}.named_headers"),
        named.is_empty(),
        "no header that the provider's Connection names",
        format_args!("{named:?}"),
    )
    .map_err(silent)?;
    holds(
        &format!("{what}.hop_headers"),
        hop.is_empty(),
        "no header that concerns the provider's connection alone",
        format_args!("{hop:?}"),
    )
    .map_err(silent)?;
    framed_once(&format!("{what}.hop_headers"), headers)
}

/// A message has one length, or is chunked, and never both.
fn framed_once(fact: &str, headers: &[(String, String)]) -> CaseResult {
    let framing: Vec<&str> = headers
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| {
            name.eq_ignore_ascii_case("content-length")
                || name.eq_ignore_ascii_case("transfer-encoding")
        })
        .collect();
    holds(
        fact,
        framing.len() <= 1,
        "one header that frames the message",
        format_args!("{framing:?}"),
    )
}
