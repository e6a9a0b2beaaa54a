//! EDGE, of content codings: of the bodies of clients, and of the answers of providers.

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, equal, holds, silent};
use gauntlet_harness::client::{Reply, StreamReply};
use gauntlet_harness::gate::guard;
use gauntlet_harness::llm::{Responder, Stub, chat, echo, raw, reply, with};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{LimitSpec, Spec};
use gauntlet_harness::subject::Capability;
use serde_json::Value;

use super::codings::{Coding, gunzipped};
use super::{CHAT, JSON, both_protocols};
use crate::cases::CaseRow;
use crate::cases::support::{noted, until_asked, with_usage};

/// The limit of a body in bytes.
const BODY: usize = 256 << 10;
const TEXT: &str = "Paris is big.";
const USAGE: (u64, u64) = (417, 31);

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "EDGE-03",
        why: "A widely used client codes its requests by default, and gateways answered that the JSON \
              was wrong or sent the coded bytes on (https://github.com/BYK/loreai/pull/1049).",
        shown: "Clients send the same request in gzip and in zstd, small and large. Each must be \
                decoded, or refused with 415 and Accept-Encoding. A small body that becomes large must \
                get 413, and a damaged one 400.",
        remedy: "Look at Content-Encoding first: decode while counting the decoded bytes, or refuse \
                 every coding that is not identity.",
        needs: &[Capability::Chat],
        instances: &[
            "gzip, 100 bytes",
            "gzip, 40 KiB",
            "gzip, streamed",
            "zstd, 100 bytes",
            "zstd, 40 KiB",
            "zstd, streamed",
            "a bomb in gzip",
            "a bomb in zstd",
            "JSON that is called gzip",
            "JSON that is called zstd",
            "gzip that is cut",
            "a coding that nobody knows",
        ],
        spec: || {
            let spec = both_protocols();
            Spec {
                limits: LimitSpec {
                    body_bytes: BODY as u64,
                    ..spec.limits
                },
                ..spec
            }
        },
        run: &edge_03,
    },
    CaseRow {
        id: "EDGE-04",
        why: "A coded answer that reached clients without its header was rubbish to them, and a coded \
              stream an empty one (https://github.com/epam/ai-dial-core/issues/1643).",
        shown: "The provider answers in gzip, zstd and Brotli, plain and streamed. A gateway that asked \
                for the coding must serve the answer; the client must be able to read what it gets, \
                usage included, and each event before the next one is sent. A client that accepts \
                codings must get its events one by one, too.",
        remedy: "Send Accept-Encoding: identity to providers, or decode what you asked for as it comes \
                 and remove its headers. Leave event streams out of every compression.",
        needs: &[Capability::Chat, Capability::Stream],
        instances: &[
            "gzip, plain",
            "gzip, streamed",
            "zstd, plain",
            "zstd, streamed",
            "br, plain",
            "br, streamed",
            "gzip, Ollama, plain",
            "gzip, Ollama, streamed",
            "a client that accepts codings, plain",
            "a client that accepts codings, streamed",
        ],
        spec: both_protocols,
        run: &edge_04,
    },
];

async fn edge_03(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(echo());
    // a bomb that is served needs no long answer
    p1.mount(chat().user_says("xxxxxxxx"), reply("Paris")).await;
    let mut deviations = Deviations::new();
    for (name, coding, length, stream) in [
        ("gzip, 100 bytes", Coding::Gzip, 0, false),
        ("gzip, 40 KiB", Coding::Gzip, 40 << 10, false),
        ("gzip, streamed", Coding::Gzip, 0, true),
        ("zstd, 100 bytes", Coding::Zstd, 0, false),
        ("zstd, 40 KiB", Coding::Zstd, 40 << 10, false),
        ("zstd, streamed", Coding::Zstd, 0, true),
    ] {
        // when
        let examined = healthy_body(ctx, p1, coding, length, stream);
        noted(&mut deviations, ctx.examine(name, examined).await)?;
    }
    for (name, coding) in [
        ("a bomb in gzip", Coding::Gzip),
        ("a bomb in zstd", Coding::Zstd),
    ] {
        if ctx.instance_if(Capability::BodyLimit, name) {
            noted(&mut deviations, bomb(ctx, coding).await)?;
        }
    }
    let plain = ctx.prompt("solo", "hello").to_string();
    let mut cut = Coding::Gzip.whole(plain.as_bytes());
    cut.truncate(cut.len() - 12);
    for (name, fact, coding, body) in [
        (
            "JSON that is called gzip",
            "corrupt.status",
            "gzip",
            plain.as_bytes(),
        ),
        (
            "JSON that is called zstd",
            "corrupt.status",
            "zstd",
            plain.as_bytes(),
        ),
        ("gzip that is cut", "corrupt.status", "gzip", &cut),
        (
            "a coding that nobody knows",
            "unknown.status",
            "x-gauntlet",
            plain.as_bytes(),
        ),
    ] {
        let examined = async {
            let before = p1.requests().len();
            let answer = coded(ctx, coding, body).await?;
            holds(
                fact,
                matches!(answer.status, 400 | 415),
                "a status of 400, or of 415 where the coding is not known",
                answer.status,
            )?;
            equal(
                "provider.requests",
                "the number of requests at the provider",
                before,
                p1.requests().len(),
            )
        };
        noted(&mut deviations, ctx.examine(name, examined).await)?;
    }
    equal(
        "control.status",
        "the status of the same request without a coding",
        200,
        ctx.client.chat(ctx.prompt("solo", "hello")).await?.status,
    )?;
    deviations.result()
}

/// Sends a body with this `Content-Encoding`.
async fn coded(
    ctx: &Ctx,
    coding: &str,
    body: &[u8],
) -> Result<Reply, gauntlet_harness::case::Failure> {
    let headers = [JSON, ("content-encoding", coding)];
    ctx.client.request("POST", CHAT, &headers, body).await
}

async fn healthy_body(
    ctx: &Ctx,
    p1: &Stub,
    coding: Coding,
    length: usize,
    stream: bool,
) -> CaseResult {
    let before = p1.all_requests().len();
    let words = format!("Bern {}", "is small. ".repeat(length / 10));
    let mut body = ctx.prompt("solo", &words);
    body["stream"] = stream.into();
    let plain = body.to_string();
    let answer = coded(ctx, coding.name(), &coding.whole(plain.as_bytes())).await?;
    // then
    for request in p1.all_requests().iter().skip(before) {
        holds(
            "provider.body",
            request.json()["messages"] == body["messages"],
            "the decoded messages at the provider, or no request",
            format_args!("{} bytes of a body", request.body.len()),
        )
        .map_err(silent)?;
    }
    match answer.status {
        415 => holds(
            "coded.accept_encoding",
            answer.header("accept-encoding").is_some(),
            "Accept-Encoding, which names the codings that are accepted",
            "no such header",
        ),
        200 if stream => Ok(()),
        status => holds(
            "coded.status",
            status == 200 && answer.content() == format!("{words} [{}]", ctx.nonce),
            "status 200 and the answer to the decoded prompt, or status 415",
            format_args!("status {status}"),
        ),
    }
}

async fn bomb(ctx: &Ctx, coding: Coding) -> CaseResult {
    const MARK: &str = "gauntlet-x";
    let body = ctx.prompt("solo", MARK).to_string();
    let (before, after) = body.split_once(MARK).unwrap_or((&body, ""));
    let bomb = coding.bomb(before.as_bytes(), 16 * BODY, after.as_bytes());
    let answer = coded(ctx, coding.name(), &bomb).await?;
    holds(
        "bomb.status",
        matches!(answer.status, 413 | 415),
        format!(
            "a status of 413, or of 415 where the coding is not known, for {} bytes that become {}",
            bomb.len(),
            16 * BODY
        ),
        answer.status,
    )
}

async fn edge_04(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    for (name, alias, coding, stream) in [
        ("gzip, plain", "solo", Coding::Gzip, false),
        ("gzip, streamed", "solo", Coding::Gzip, true),
        ("zstd, plain", "solo", Coding::Zstd, false),
        ("zstd, streamed", "solo", Coding::Zstd, true),
        ("br, plain", "solo", Coding::Brotli, false),
        ("br, streamed", "solo", Coding::Brotli, true),
        ("gzip, Ollama, plain", "ollama", Coding::Gzip, false),
        ("gzip, Ollama, streamed", "ollama", Coding::Gzip, true),
    ] {
        if alias == "ollama" && !ctx.instance_if(Capability::Ollama, name) {
            continue;
        }
        let stub = ctx.stub(if alias == "ollama" { "p2" } else { "p1" })?;
        // a gateway may leave a provider alone after an answer that it refused
        until_asked(ctx, alias, stub).await?;
        stub.mount(chat().user_says(name), in_coding(coding, name))
            .await;
        let asked = Asked {
            ctx,
            stub,
            alias,
            name,
            coding,
        };
        let examined = async {
            match stream {
                true => asked.streamed().await,
                false => asked.plain().await,
            }
        };
        let examined = ctx.examine(name, examined).await;
        ctx.gates.gate(name).open();
        noted(&mut deviations, examined)?;
    }
    until_asked(ctx, "solo", ctx.stub("p1")?).await?;
    let plain = for_coding_clients(ctx, false);
    let name = "a client that accepts codings, plain";
    noted(&mut deviations, ctx.examine(name, plain).await)?;
    let stream = for_coding_clients(ctx, true);
    let name = "a client that accepts codings, streamed";
    noted(&mut deviations, ctx.examine(name, stream).await)?;
    deviations.result()
}

/// A healthy answer in this coding. The gate of that name holds everything after the first event
/// of a stream.
fn in_coding(coding: Coding, gate: &str) -> Responder {
    let gate = gate.to_owned();
    with(move |request| {
        let answer = healthy().render(request);
        let kind = answer
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("content-type"))
            .map_or("application/json", |(_, value)| value.as_str());
        let events = events(kind, &answer.body);
        let pieces = coding.pieces(&events);
        let first = pieces.first().map_or(0, Vec::len);
        let steps = match pieces.len() {
            1 => vec![Step::Head, Step::Rest],
            _ => vec![
                Step::Head,
                Step::Bytes(first),
                Step::Hold(gate.clone()),
                Step::Rest,
            ],
        };
        raw(200, kind, pieces.concat())
            .header("content-encoding", coding.name())
            .plan(Plan::of(steps))
    })
}

fn healthy() -> Responder {
    reply(TEXT).usage(USAGE.0, USAGE.1)
}

/// The events of a body: the first with text and everything before it, then each other one.
fn events<'b>(kind: &str, body: &'b [u8]) -> Vec<&'b [u8]> {
    let end = match kind {
        kind if kind.starts_with("text/event-stream") => "\n\n",
        kind if kind.starts_with("application/x-ndjson") => "\n",
        _ => return vec![body],
    };
    let text = String::from_utf8_lossy(body);
    let first = TEXT.split(' ').next().unwrap_or_default();
    let mut pieces = Vec::new();
    let mut at = 0;
    for event in text.split_inclusive(end) {
        let (from, to) = (at, at + event.len());
        at = to;
        pieces.push((from, to, event.contains(first)));
    }
    // the role goes with the first text, so that the first piece is an event that a client is owed
    let first = pieces.iter().position(|piece| piece.2).unwrap_or_default();
    let mut events = vec![&body[..pieces.get(first).map_or(body.len(), |piece| piece.1)]];
    let rest = pieces.iter().skip(first + 1);
    events.extend(rest.map(|(from, to, _)| &body[*from..*to]));
    events
}

/// A request whose answer comes in a coding.
struct Asked<'c> {
    ctx: &'c Ctx,
    stub: &'c Stub,
    alias: &'c str,
    name: &'c str,
    coding: Coding,
}

impl Asked<'_> {
    /// Whether the gateway asked for this coding: it names it, or asks for nothing, which allows
    /// every coding (RFC 9110 section 12.5.3).
    fn invited(&self) -> bool {
        let calls = self.stub.calls(self.name);
        let accepted = calls.last().map(|call| call.header("accept-encoding"));
        let Some(Some(accepted)) = accepted else {
            return true;
        };
        accepts(accepted, self.coding.name())
    }

    /// An error is allowed only where the coding was not asked for.
    fn error(&self, status: u16) -> CaseResult {
        let accepted = self.stub.calls(self.name);
        let accepted = accepted
            .last()
            .and_then(|call| call.header("accept-encoding"));
        holds(
            "coded.served",
            !self.invited(),
            "an answer in a coding that the gateway asked for to be served",
            format_args!(
                "status {status}, and Accept-Encoding {} in the request to the provider",
                accepted.unwrap_or("is missing")
            ),
        )
    }

    /// A body that is still coded must be the provider's, and of the coding that its header names.
    fn still_coded(&self, named: &str, body: &[u8]) -> CaseResult {
        let decoded = gunzipped(body);
        let intact = match self.coding {
            Coding::Gzip => String::from_utf8_lossy(&decoded).contains("Paris"),
            Coding::Zstd => body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]),
            // without compression, the text stands in the bytes
            Coding::Brotli => String::from_utf8_lossy(body).contains("Paris"),
        };
        holds(
            "coded.agreement",
            named.eq_ignore_ascii_case(self.coding.name()) && intact,
            "a body in the coding that its header names",
            format_args!("{} bytes as {named}", body.len()),
        )
        .map_err(silent)
    }

    async fn plain(&self) -> CaseResult {
        let prompt = self.ctx.prompt(self.alias, self.name);
        let answer = self.ctx.client.chat(prompt).await?;
        if answer.status >= 400 {
            return self.error(answer.status);
        }
        if let Some(named) = answer.header("content-encoding") {
            return self.still_coded(named, &answer.body);
        }
        equal(
            "coded.text",
            "the text of the answer",
            TEXT,
            answer.content().as_str(),
        )
        .map_err(silent)?;
        usage("coded.usage", &answer.json()["usage"])
    }

    async fn streamed(&self) -> CaseResult {
        let prompt = with_usage(self.ctx.prompt(self.alias, self.name));
        let mut answer = self.ctx.client.stream(prompt).await?;
        if answer.status >= 400 {
            return self.error(answer.status);
        }
        if let Some(named) = answer.header("content-encoding").map(str::to_owned) {
            one_by_one_coded(&mut answer).await?;
            self.ctx.gates.gate(self.name).open();
            let answer = answer.collect().await?;
            return self.still_coded(&named, &answer.body);
        }
        // the first text must come while the rest has not been sent
        let first = answer.text_of(5).await?;
        holds(
            "coded.stream_text",
            first.starts_with("Paris"),
            "the first text of the stream before the next event is sent",
            format_args!("{first:?}"),
        )
        .map_err(silent)?;
        self.ctx.gates.gate(self.name).open();
        let rest = answer.collect().await?;
        let text = format!("{first}{}", rest.text);
        equal(
            "coded.stream_text",
            "the text of the stream",
            TEXT,
            text.as_str(),
        )
        .map_err(silent)?;
        usage("coded.usage", rest.usage.as_ref().unwrap_or(&Value::Null))
    }
}

/// Whether an `Accept-Encoding` allows a coding.
fn accepts(accepted: &str, coding: &str) -> bool {
    let weight = |wanted: &str| {
        accepted.split(',').find_map(|one| {
            let mut parts = one.split(';').map(str::trim);
            let named = parts.next()?.eq_ignore_ascii_case(wanted);
            let refused = parts.any(|part| {
                part.strip_prefix("q=")
                    .and_then(|q| q.parse::<f32>().ok())
                    .is_some_and(|q| q <= 0.0)
            });
            named.then_some(!refused)
        })
    };
    weight(coding).or_else(|| weight("*")).unwrap_or(false)
}

fn usage(fact: &str, usage: &Value) -> CaseResult {
    let seen = (
        usage["prompt_tokens"].as_u64(),
        usage["completion_tokens"].as_u64(),
    );
    equal(
        fact,
        "the usage (tokens of the prompt and of the completion)",
        (Some(USAGE.0), Some(USAGE.1)),
        seen,
    )
    .map_err(silent)
}

/// Reads a coded stream until its first text has come. Of codings other than gzip nothing but
/// bytes is waited for.
async fn one_by_one_coded(stream: &mut StreamReply) -> CaseResult {
    let gzip = stream
        .header("content-encoding")
        .is_some_and(|named| named.eq_ignore_ascii_case("gzip"));
    let reading = async {
        while stream.more().await? {
            let plain = gunzipped(stream.bytes());
            if !gzip || String::from_utf8_lossy(&plain).contains("Paris") {
                break;
            }
        }
        Ok(())
    };
    guard(
        "hang.coded_text",
        "the first text of a coded stream",
        reading,
    )
    .await?
}

/// A client that accepts codings gets a healthy answer that it can read, event by event.
async fn for_coding_clients(ctx: &Ctx, stream: bool) -> CaseResult {
    const NAME: &str = "codings are fine";
    let p1 = ctx.stub("p1")?;
    let steps = [
        Step::Head,
        Step::Events(2),
        Step::Hold(NAME.into()),
        Step::Rest,
    ];
    let answer = match stream {
        true => healthy().plan(Plan::of(steps)),
        false => healthy(),
    };
    p1.mount(chat().user_says(NAME).streaming(stream), answer)
        .await;
    let client = ctx
        .client
        .without_header("accept-encoding")
        .with_header("accept-encoding", "gzip, deflate, br, zstd");
    let prompt = ctx.prompt("solo", NAME);
    if !stream {
        let answer = client.chat(prompt).await?;
        let body = match answer.header("content-encoding") {
            None => answer.body.to_vec(),
            Some(named) if named.eq_ignore_ascii_case("gzip") => gunzipped(&answer.body),
            // the harness cannot read the others
            Some(_) => return Ok(()),
        };
        let document: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = document["choices"][0]["message"]["content"].clone();
        return equal(
            "coding_client.text",
            "the text of the answer to a client that accepts codings",
            &Value::from(TEXT),
            &text,
        )
        .map_err(silent);
    }
    let mut answer = client.stream(prompt).await?;
    let coded = answer.header("content-encoding").is_some();
    if coded {
        one_by_one_coded(&mut answer).await?;
    } else {
        let first = answer.next().await?;
        holds(
            "coding_client.event",
            first.is_some_and(|event| event.json.is_some()),
            "an event of the stream before the next one is sent",
            "none",
        )?;
    }
    ctx.gates.gate(NAME).open();
    let rest = answer.collect().await?;
    holds(
        "coding_client.end",
        coded || rest.looks_complete(),
        "a complete stream",
        format_args!("{} [DONE] events", rest.done_count),
    )
}
