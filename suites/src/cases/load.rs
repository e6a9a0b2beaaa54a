//! LOAD: what exceeds a limit is refused at once, and forgotten afterwards.

use std::time::Duration;

use futures::future::try_join_all;
use gauntlet_harness::case::{CaseResult, Ctx, Failure, State, equal, holds, json};
use gauntlet_harness::client::{Exchange, Reply, Transport};
use gauntlet_harness::gate::guard;
use gauntlet_harness::llm::{raw, reply};
use gauntlet_harness::plan::Plan;
use gauntlet_harness::spec::{LimitSpec, Spec, Timeouts};
use gauntlet_harness::subject::Capability;

use super::CaseRow;
use super::support::{answers, large_stream, statuses, taken};

/// The limit of requests in flight.
const LIMIT: usize = 4;
/// The limit of a body in bytes.
const BODY: usize = 64 << 10;
/// The default bound in bytes on what a gateway takes from a provider for a client that does not
/// read.
const AHEAD: u64 = 8 << 20;
/// How many bytes the buffers of the operating system may hold on both sides.
const IN_BUFFERS: u64 = 16 << 20;

const ADMISSION: &[Capability] = &[Capability::Chat, Capability::Admission];

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "LOAD-01",
        why: "A queue without a bound turns overload into timeouts for everybody: clients have given \
              up the requests that it answers.",
        shown: "Four requests are held, which is the limit. The next ones must be refused while they \
                still are.",
        remedy: "Count the requests in flight on arrival, and refuse with Retry-After beyond the limit.",
        needs: ADMISSION,
        instances: &[],
        spec: limited,
        run: &load_01,
    },
    CaseRow {
        id: "LOAD-02",
        why: "Permits that were not given back refused healthy requests for up to an hour \
              (https://github.com/BerriAI/litellm/issues/27955).",
        shown: "Four requests are held and sixteen refused. When the four are answered, the next \
                requests must be served again.",
        remedy: "Tie the permit of a request to its task, so that every way out of the task gives it \
                 back.",
        needs: ADMISSION,
        instances: &[],
        spec: limited,
        run: &load_02,
    },
    CaseRow {
        id: "LOAD-04",
        why: "Anybody who can connect can fill up a gateway that reads before it measures.",
        shown: "One client declares a length of 64 MiB and sends 100 bytes; another sends 128 KiB in \
                chunks and no end. Both must get 413 before they send the rest.",
        remedy: "Check Content-Length before reading, count while reading, and answer 413 at the limit.",
        needs: &[Capability::Chat, Capability::BodyLimit],
        instances: &[],
        spec: || Spec {
            limits: LimitSpec {
                body_bytes: BODY as u64,
                body_ms: 60_000,
                ..Spec::default().limits
            },
            ..Spec::solo()
        },
        run: &load_04,
    },
    CaseRow {
        id: "LOAD-05",
        why: "A few hundred clients that send a byte each second hold every connection of a server \
              that waits for them (Slowloris).",
        shown: "One client sends its headers byte by byte, another its body in small pieces. Both must \
                be answered with an error or closed before they end.",
        remedy: "Bound the time of the headers and of the body as a whole; a timer between two reads is \
                 not enough.",
        needs: &[Capability::Chat, Capability::SlowClient],
        instances: &[],
        spec: || Spec {
            limits: LimitSpec {
                header_ms: 400,
                body_ms: 400,
                ..Spec::default().limits
            },
            ..Spec::solo()
        },
        run: &load_05,
    },
    CaseRow {
        id: "LOAD-07",
        why: "One client that pauses in a long answer ends a process that reads streams ahead into \
              memory.",
        shown: "The client of a stream of 48 MiB stops reading. The provider counts what the gateway \
                takes until it takes no more.",
        remedy: "Read the provider's next bytes when the client has taken the last ones, and bound \
                 every buffer between the two.",
        needs: &[Capability::Chat, Capability::Stream],
        instances: &[],
        spec: || Spec::solo().model_timeouts("solo", Timeouts::PATIENT),
        run: &load_07,
    },
];

fn limited() -> Spec {
    let limits = LimitSpec {
        max_in_flight: LIMIT as u32,
        ..Spec::default().limits
    };
    Spec {
        limits,
        ..Spec::solo().model_timeouts("solo", Timeouts::PATIENT)
    }
}

async fn load_01(ctx: &Ctx) -> CaseResult {
    // given
    let full = filled(ctx).await?;
    // when
    let refused =
        try_join_all((0..LIMIT).map(|_| ctx.client.chat(ctx.prompt("solo", "too many")))).await?;
    // then
    let p1 = ctx.stub("p1")?;
    equal(
        "provider.in_flight",
        "the number of requests still in flight",
        LIMIT,
        p1.in_flight(),
    )?;
    ctx.reached(State::AdmissionFull);
    for answer in &refused {
        holds(
            "refused.status",
            matches!(answer.status, 429 | 503),
            "a status of 429 or 503",
            answer.status,
        )?;
        holds(
            "refused.retry_after",
            answer.header("retry-after").is_some(),
            "a Retry-After header",
            "no such header",
        )?;
    }
    ctx.gates.gate("full").open();
    equal(
        "served.statuses",
        "the statuses of the requests within the limit",
        vec![200; LIMIT],
        statuses(&answers(full).await?),
    )?;
    equal(
        "provider.requests",
        "the number of requests at the provider",
        LIMIT,
        p1.requests().len(),
    )
}

async fn load_02(ctx: &Ctx) -> CaseResult {
    // given
    let full = filled(ctx).await?;
    let refused =
        try_join_all((0..4 * LIMIT).map(|_| ctx.client.chat(ctx.prompt("solo", "too many"))))
            .await?;
    holds(
        "refused.statuses",
        refused.iter().all(|answer| answer.status >= 400),
        "errors beyond the limit",
        json(&statuses(&refused)),
    )?;
    ctx.reached(State::AdmissionFull);
    ctx.gates.gate("full").open();
    equal(
        "served.statuses",
        "the statuses of the requests within the limit",
        vec![200; LIMIT],
        statuses(&answers(full).await?),
    )?;
    // when
    // a permit may be given back a moment after its client has read the last byte
    guard(
        "hang.served_again",
        "a request that is served after the burst",
        served_again(ctx),
    )
    .await??;
    let mut after = Vec::new();
    for _ in 0..2 * LIMIT {
        after.push(ctx.client.chat(ctx.prompt("solo", "after")).await?);
    }
    // then
    equal(
        "after.statuses",
        "the statuses after the burst",
        vec![200; 2 * LIMIT],
        statuses(&after),
    )
}

async fn load_04(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("Paris"));
    let json = ("content-type", "application/json");
    let part = ctx.prompt("solo", "hello").to_string();
    let mut chunk = format!("{:x}\r\n{{\"x\": \"", 4 * BODY).into_bytes();
    chunk.resize(2 * BODY, b'x');
    // when
    let declared = ctx
        .client
        .send(
            "POST",
            "/v1/chat/completions",
            &[json, ("content-length", "67108864")],
            part.as_bytes(),
        )
        .await?;
    let declared = declared.reply().await?;
    let chunked = ctx
        .client
        .send(
            "POST",
            "/v1/chat/completions",
            &[json, ("transfer-encoding", "chunked")],
            &chunk,
        )
        .await?;
    let chunked = chunked.reply().await?;
    // then
    equal(
        "declared_length.status",
        "the status of a request whose declared length is over the limit",
        413,
        declared.status,
    )?;
    equal(
        "chunked.status",
        "the status of a request whose chunks are over the limit",
        413,
        chunked.status,
    )?;
    equal(
        "provider.requests",
        "the number of requests at the provider",
        0,
        p1.requests().len(),
    )?;
    equal(
        "small_body.status",
        "the status of a small body that follows",
        200,
        ctx.client.chat(ctx.prompt("solo", "hello")).await?.status,
    )
}

async fn load_05(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("Paris"));
    let json = [("content-type", "application/json")];
    let body = ctx.prompt("solo", &"hello ".repeat(8_000)).to_string();
    let request = ctx
        .client
        .request_bytes("POST", "/v1/chat/completions", &json, body.as_bytes());
    let head = request.len() - body.len();
    // when
    let headers = ctx.client.dribble(&request, 1, Duration::from_millis(50));
    let body = ctx
        .client
        .dribble(&request, head, Duration::from_millis(50));
    let (headers, body) = futures::try_join!(headers, body)?;
    // then
    refused_or_closed("slow_headers.end", "headers", &headers)?;
    refused_or_closed("slow_body.end", "body", &body)?;
    equal(
        "provider.requests",
        "the number of requests at the provider",
        0,
        p1.requests().len(),
    )
}

async fn load_07(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let (large, length) = large_stream();
    p1.answers(raw(200, "text/event-stream", large));
    let mut stream = ctx
        .client
        .with_receive_buffer(8 << 10)
        .stream(ctx.prompt("solo", "much"))
        .await?;
    // when
    stream.next().await?;
    let taken = taken(p1).await?;
    // then
    let expected = format!(
        "at most {AHEAD} of {length} bytes taken ahead, and {IN_BUFFERS} more in the system's buffers"
    );
    holds(
        "provider.bytes_taken",
        taken <= AHEAD + IN_BUFFERS,
        expected,
        format_args!("{taken} bytes"),
    )?;
    equal(
        "provider.in_flight",
        "the number of answers that the provider is still sending",
        1,
        p1.in_flight(),
    )?;
    stream.leave();
    Ok(())
}

/// Sends as many requests as the limit allows; the gate `full` holds them at the provider.
async fn filled(ctx: &Ctx) -> Result<Vec<Exchange>, Failure> {
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("Paris").plan(Plan::held("full")));
    let asked =
        try_join_all((0..LIMIT).map(|_| ctx.client.send_chat(ctx.prompt("solo", "hello")))).await?;
    p1.in_flight_is(LIMIT).await?;
    Ok(asked)
}

async fn served_again(ctx: &Ctx) -> CaseResult {
    while ctx.client.chat(ctx.prompt("solo", "again")).await?.status != 200 {}
    Ok(())
}

/// The client must get an error, or no answer at all.
fn refused_or_closed(fact: &str, what: &str, end: &Result<Reply, Transport>) -> CaseResult {
    let (fair, seen) = match end {
        Ok(answer) => (answer.status >= 400, format!("status {}", answer.status)),
        Err(transport) => (true, transport.to_string()),
    };
    holds(
        fact,
        fair,
        format!(
            "an error or a closed connection for a client that sends its {what} in small pieces"
        ),
        seen,
    )
}
