//! DRAIN: the end of a process causes no error for its clients, and SIGHUP is not its end.

use gauntlet_harness::case::{CaseResult, Ctx, Failure, equal, holds, json, silent};
use gauntlet_harness::client::{Client, Exchange, Reply, StreamReply, Transcript, Transport};
use gauntlet_harness::gate::{converge, guard};
use gauntlet_harness::llm::{chat, reply};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{LimitSpec, Spec};
use gauntlet_harness::subject::{Capability, Process, TargetError};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::CaseRow;
use super::support::{
    DOCUMENTS, QUERIES, broken, complete, document, does_its_part, healthy, patient, query,
    silent_if, silent_in, text,
};

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "DRAIN-01",
        why: "Every deployment cut the streams in flight \
              (https://github.com/BerriAI/litellm/issues/14334).",
        shown: "A plain request, a stream with its first text and one without any are held at the \
                provider, and the process gets SIGTERM. Readiness must become 503, and stay so while \
                the three end one after another, each whole; then the process must exit with 0. A second \
                process is drained with another one of them as the last.",
        remedy: "On SIGTERM fail readiness, take no new requests, and wait for those in flight, streams \
                 to their end.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::Readiness,
            Capability::Drain,
        ],
        instances: &[
            "a stream with its first text as the last one",
            "a plain request as the last one",
            "a stream without a text as the last one",
        ],
        spec: || drained_after(30_000, Spec::solo()),
        run: &drain_01,
    },
    CaseRow {
        id: "DRAIN-02",
        why: "A stream that ends without an error looks finished, and a query that vanishes with its \
              process was never asked.",
        shown: "A document and a query are complete; a stream stalls, a plain request is held, and two \
                queries are held at their first and at a later agent. The process gets SIGTERM. The \
                stream must end with an error event, nothing that was cut may look right, the process \
                must exit with 0, and a gateway started on the same database must know the document and \
                all three queries.",
        remedy: "At the drain deadline end what is left with an error event, and write the records \
                 before the process ends.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::Drain,
            Capability::Query,
            Capability::Store,
            Capability::Process,
        ],
        instances: &[
            "streamed, after the first text",
            "streamed, before any text",
            "plain",
            "a query at its first agent",
            "a query at a later agent",
            "a query and a document from before",
        ],
        spec: || drained_after(300, query()),
        run: &drain_02,
    },
    CaseRow {
        id: "DRAIN-03",
        why: "A service manager that sent SIGHUP, to have a configuration read again, tore every \
              stream: the default of the signal is the end of the process.",
        shown: "A plain request and two streams are held at the provider, and the process gets SIGHUP, \
                once and then three times, with requests between. All must end whole. Where the target \
                states that the gateway goes on, a request between and one on an idle connection must \
                be served, too. At last SIGHUP comes while the gateway drains.",
        remedy: "Handle SIGHUP: read the configuration again, ignore the signal, or drain.",
        needs: &[Capability::Chat, Capability::Stream, Capability::Process],
        instances: &["once", "three times", IDLE, "while it drains"],
        spec: || drained_after(30_000, Spec::solo()),
        run: &drain_03,
    },
];

const IDLE: &str = "an idle connection";

/// What is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    /// A stream whose client has its first text.
    Begun,
    /// A stream of which nothing was sent.
    Silent,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Begun, Self::Silent, Self::Plain];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Begun => "streamed",
            Self::Silent => "late_stream",
        }
    }
}

/// A request of each kind, held at the provider, with the name that prompts and gates have.
struct InFlight<'c> {
    ctx: &'c Ctx,
    id: &'static str,
    plain: Option<Exchange>,
    begun: Option<(StreamReply, String)>,
    silent: Option<Exchange>,
}

impl<'c> InFlight<'c> {
    async fn sent(ctx: &'c Ctx, client: &Client, id: &'static str) -> Result<Self, Failure> {
        let p1 = ctx.stub("p1")?;
        let prompt = |kind: Kind| format!("{id} {}", kind.name());
        for kind in Kind::ALL {
            let hold = Step::Hold(prompt(kind));
            let plan = match kind {
                Kind::Begun => Plan::of([Step::Head, Step::Events(2), hold, Step::Rest]),
                _ => Plan::of([hold, Step::Head, Step::Rest]),
            };
            let answer = reply("").tokens(["Par", "is"]).plan(plan);
            p1.mount(chat().user_says(&prompt(kind)), answer).await;
        }
        let before = p1.requests().len();
        let body = |kind: Kind| ctx.prompt("solo", &prompt(kind));
        let mut begun = client.stream(body(Kind::Begun)).await?;
        let text = begun.text_of(3).await?;
        let plain = client.send_chat(body(Kind::Plain)).await?;
        let silent = client.send_stream(body(Kind::Silent)).await?;
        p1.seen(before + 3).await?;
        p1.in_flight_is(3).await?;
        Ok(Self {
            ctx,
            id,
            plain: Some(plain),
            begun: Some((begun, text)),
            silent: Some(silent),
        })
    }

    /// Lets the answer of this kind go; it must come whole.
    async fn ends(&mut self, kind: Kind) -> CaseResult {
        let (id, name) = (self.id, kind.name());
        self.ctx.gates.gate(&format!("{id} {name}")).open();
        let fact = format!("{id}.{name}");
        let what = format!("the whole answer to a request in flight ({name})");
        let (text, finished) = match kind {
            Kind::Plain => {
                let Some(plain) = self.plain.take() else {
                    return Ok(());
                };
                match plain.try_reply().await? {
                    Ok(answer) => (answer.content(), format!("status {}", answer.status)),
                    Err(transport) => (String::new(), transport.to_string()),
                }
            }
            Kind::Begun => {
                let Some((stream, text)) = self.begun.take() else {
                    return Ok(());
                };
                let stream = stream.collect().await?;
                let finished = finished(&stream);
                (format!("{text}{}", stream.text), finished)
            }
            Kind::Silent => {
                let Some(silent) = self.silent.take() else {
                    return Ok(());
                };
                match silent.try_stream().await? {
                    Ok(stream) => {
                        let stream = stream.collect().await?;
                        (stream.text.clone(), finished(&stream))
                    }
                    Err(transport) => (String::new(), transport.to_string()),
                }
            }
        };
        holds(
            &fact,
            text == "Paris" && finished == "status 200",
            what,
            format_args!("the text {} and {finished}", json(&text)),
        )
    }
}

/// How a stream ended, as `status 200` where it looks complete.
fn finished(stream: &Transcript) -> String {
    if stream.looks_complete() {
        return format!("status {}", stream.status);
    }
    format!(
        "status {}, {} [DONE] events, the error {}, and an end {}",
        stream.status,
        stream.done_count,
        json(&stream.error),
        stream.end
    )
}

async fn drain_01(ctx: &Ctx) -> CaseResult {
    let order = [Kind::Plain, Kind::Silent, Kind::Begun];
    let name = "a stream with its first text as the last one";
    let process = ctx.process()?;
    ctx.examine(name, drained(ctx, &ctx.client, process, "first", order))
        .await?;
    for (name, id, order) in [
        (
            "a plain request as the last one",
            "second",
            [Kind::Begun, Kind::Silent, Kind::Plain],
        ),
        (
            "a stream without a text as the last one",
            "third",
            [Kind::Begun, Kind::Plain, Kind::Silent],
        ),
    ] {
        if !ctx.instance_if(Capability::Process, name) {
            continue;
        }
        let another = ctx.start_another().await?;
        let process = another.target.process.as_deref();
        let process = process.ok_or_else(no_process)?;
        ctx.examine(name, drained(ctx, &another.client, process, id, order))
            .await?;
    }
    Ok(())
}

/// Sends SIGTERM while a request of each kind is in flight, and lets them end in this order. While
/// one is left, the gateway must answer that it is not ready.
async fn drained(
    ctx: &Ctx,
    client: &Client,
    process: &dyn Process,
    id: &'static str,
    order: [Kind; 3],
) -> CaseResult {
    // given
    let mut in_flight = InFlight::sent(ctx, client, id).await?;
    // when
    process.terminate().await.map_err(of_target)?;
    let ready = &ctx.manifest.paths.ready;
    let what = format!("the status of GET {ready} to become 503");
    converge("hang.unready", &what, || async {
        let answer = client.get(ready).await?;
        Ok((answer.status == 503).then_some(()))
    })
    .await?;
    for (n, kind) in order.into_iter().enumerate() {
        // then
        in_flight.ends(kind).await?;
        let Some(left) = order.get(n + 1) else { break };
        for _ in 0..10 {
            let answer = client.try_request("GET", ready, &[], b"").await?;
            holds(
                &format!("waits_for.{}", left.name()),
                matches!(&answer, Ok(answer) if answer.status == 503),
                format!(
                    "readiness to be answered with 503 while a request is in flight ({})",
                    left.name()
                ),
                in_short(&answer),
            )?;
        }
    }
    equal(
        "process.exit_code",
        "the exit code",
        Some(0),
        exit(process).await?,
    )
}

fn in_short(answer: &Result<Reply, Transport>) -> String {
    match answer {
        Ok(answer) => format!("status {}", answer.status),
        Err(transport) => transport.to_string(),
    }
}

async fn drain_02(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    let stored = ctx.client.post(DOCUMENTS, document()).await?;
    equal(
        "document.status",
        "the status of a document that is handed in",
        201,
        stored.status,
    )?;
    let stored = format!("{DOCUMENTS}/{}", text(&stored.json(), "id"));
    complete(ctx).await?;
    let review = ctx.stub("review")?;
    let stalls = reply("")
        .tokens(["Par", "is"])
        .plan(Plan::events_then(2, Step::Stall));
    review.mount(chat().user_says("begun"), stalls).await;
    let never = || reply("never").plan(Plan::held("never"));
    review.mount(chat().user_says("silent"), never()).await;
    review.mount(chat().user_says("plain"), never()).await;
    let mut begun = ctx.client.stream(ctx.prompt("review", "begun")).await?;
    begun.text_of(3).await?;
    let silent_stream = ctx
        .client
        .send_stream(ctx.prompt("review", "silent"))
        .await?;
    let plain = ctx.client.send_chat(ctx.prompt("review", "plain")).await?;
    review.held(2).await?;
    let mut queries = Vec::new();
    for (agent, question) in [("entities", "the first"), ("synthesis", "a later")] {
        let stub = ctx.stub(agent)?;
        let question = format!(
            "Who discovered radium, asks {question} agent? [{}]",
            ctx.nonce
        );
        stub.mount(
            chat().body_contains(&question),
            does_its_part(agent).plan(Plan::held("never")),
        )
        .await;
        let body = json!({ "question": question }).to_string();
        let headers = [("content-type", "application/json")];
        let sent = ctx
            .client
            .send("POST", QUERIES, &headers, body.as_bytes())
            .await?;
        queries.push(sent);
        stub.held(1).await?;
    }
    // when
    let process = ctx.process()?;
    process.terminate().await.map_err(of_target)?;
    // then
    ctx.examine("streamed, after the first text", async {
        let begun = begun.collect().await?;
        holds(
            "stream.error_event",
            begun.error.is_some(),
            "an error event in the stream that was cut",
            format_args!(
                "no error event and {} [DONE] events; the stream ended {}",
                begun.done_count, begun.end
            ),
        )
        .map_err(silent_in(&begun))
    })
    .await?;
    let plain = plain.try_reply().await?;
    let cut = failed_visibly("plain.status", "a plain request", &plain);
    ctx.examine("plain", async { cut }).await?;
    ctx.examine("streamed, before any text", async {
        match silent_stream.try_stream().await? {
            Ok(stream) => broken(&stream.collect().await?),
            Err(_) => Ok(()),
        }
    })
    .await?;
    for (name, query) in ["a query at its first agent", "a query at a later agent"]
        .into_iter()
        .zip(queries)
    {
        ctx.examine(name, async {
            failed_visibly("query.status", "a query", &query.try_reply().await?)
        })
        .await?;
    }
    equal(
        "process.exit_code",
        "the exit code",
        Some(0),
        exit(process).await?,
    )?;
    ctx.examine("a query and a document from before", async {
        let another = ctx.start_another().await?;
        let recorded = another.client.get(QUERIES).await?.json();
        let mut statuses: Vec<&str> = recorded["queries"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .map(|query| text(query, "status"))
            .collect();
        statuses.sort_unstable();
        let is_cut = |status: &&str| matches!(*status, "cancelled" | "failed");
        holds(
            "records.statuses",
            statuses.len() == 3
                && statuses.contains(&"complete")
                && statuses.iter().filter(|status| is_cut(status)).count() == 2,
            "the records of three queries, one complete and two cancelled or failed",
            json(&statuses),
        )
        .map_err(silent)?;
        equal(
            "document.kept",
            "the status of the document that was stored before, read from the next gateway,",
            200,
            another.client.get(&stored).await?.status,
        )
        .map_err(silent)
    })
    .await
}

/// What the drain deadline cut must not look like a success.
fn failed_visibly(fact: &str, what: &str, answer: &Result<Reply, Transport>) -> CaseResult {
    holds(
        fact,
        !matches!(answer, Ok(answer) if answer.status < 500),
        format!("no success for {what} that was cut"),
        in_short(answer),
    )
    .map_err(silent_if(
        matches!(answer, Ok(answer) if answer.status < 400),
    ))
}

async fn drain_03(ctx: &Ctx) -> CaseResult {
    ctx.stub("p1")?
        .mount(chat().user_says("between"), reply("Bern"))
        .await;
    let goes_on = ctx.manifest.behaviour.goes_on_after_sighup;
    let process = ctx.process()?;
    let idle = match goes_on {
        true => Some(Idle::served(ctx).await?),
        false => None,
    };
    ctx.examine("once", hung_up(ctx, &ctx.client, process, "once", 1))
        .await?;
    if goes_on {
        let often = hung_up(ctx, &ctx.client, process, "again", 3);
        ctx.examine("three times", often).await?;
    } else {
        // the signal before may have ended the gateway in order
        let another = ctx.start_another().await?;
        let process = another.target.process.as_deref().ok_or_else(no_process)?;
        let often = hung_up(ctx, &another.client, process, "again", 3);
        ctx.examine("three times", often).await?;
    }
    if let (true, Some(mut idle)) = (ctx.instance_where(goes_on, IDLE), idle) {
        let served = idle.is_served(ctx, "idle.answer");
        ctx.examine(IDLE, served).await?;
    }
    let name = "while it drains";
    if !ctx.instance_if(Capability::Drain, name) {
        return Ok(());
    }
    let another = match goes_on {
        true => None,
        false => Some(ctx.start_another().await?),
    };
    let (client, process) = match &another {
        Some(another) => (
            &another.client,
            another.target.process.as_deref().ok_or_else(no_process)?,
        ),
        None => (&ctx.client, process),
    };
    ctx.examine(name, async {
        let mut in_flight = InFlight::sent(ctx, client, "draining").await?;
        process.terminate().await.map_err(of_target)?;
        between(ctx, client).await?;
        process
            .hang_up()
            .await
            .map_err(ended("draining.streamed"))?;
        between(ctx, client).await?;
        for kind in Kind::ALL {
            in_flight.ends(kind).await?;
        }
        equal(
            "process.exit_code",
            "the exit code",
            Some(0),
            exit(process).await?,
        )
    })
    .await
}

/// Sends SIGHUP so many times while a request of each kind is in flight; each must end whole.
async fn hung_up(
    ctx: &Ctx,
    client: &Client,
    process: &dyn Process,
    id: &'static str,
    times: usize,
) -> CaseResult {
    let mut in_flight = InFlight::sent(ctx, client, id).await?;
    let mut served = Vec::new();
    for _ in 0..times {
        process
            .hang_up()
            .await
            .map_err(ended(&format!("{id}.streamed")))?;
        served.push(between(ctx, client).await?);
    }
    for kind in Kind::ALL {
        in_flight.ends(kind).await?;
    }
    if !ctx.manifest.behaviour.goes_on_after_sighup {
        return Ok(());
    }
    equal(
        "new_request.status",
        "how a new request after each SIGHUP ended, since the target states that it ends nothing,",
        vec!["status 200".to_owned(); times],
        served,
    )
}

/// Makes a few exchanges, so that the signal has done what it does, and returns how the last one
/// ended.
async fn between(ctx: &Ctx, client: &Client) -> Result<String, Failure> {
    let mut last = String::new();
    for _ in 0..5 {
        let body = ctx.prompt("solo", "between").to_string();
        let headers = [("content-type", "application/json")];
        let answer = client
            .try_request("POST", "/v1/chat/completions", &headers, body.as_bytes())
            .await?;
        last = in_short(&answer);
    }
    Ok(last)
}

/// A process that has ended while requests were in flight is a violation.
fn ended(fact: &str) -> impl FnOnce(TargetError) -> Failure + use<> {
    let fact = fact.to_owned();
    move |error| match error {
        TargetError::Died(how) => match holds(
            &fact,
            false,
            "a process that goes on while requests are in flight",
            how,
        ) {
            Err(violated) => violated,
            Ok(()) => no_process(),
        },
        other => of_target(other),
    }
}

/// A connection that has served a request, and waits for the next one.
struct Idle(TcpStream);

impl Idle {
    async fn served(ctx: &Ctx) -> Result<Self, Failure> {
        let mut this = Self(ctx.client.raw().await?);
        this.is_served(ctx, "idle.answer_before").await?;
        Ok(this)
    }

    /// Sends one request more, whose answer must come.
    async fn is_served(&mut self, ctx: &Ctx, fact: &str) -> CaseResult {
        let body = ctx.prompt("solo", "between").to_string();
        let request = ctx.client.request_bytes(
            "POST",
            "/v1/chat/completions",
            &[("content-type", "application/json")],
            body.as_bytes(),
        );
        let exchange = async {
            let mut seen = Vec::new();
            if self.0.write_all(&request).await.is_err() {
                return seen;
            }
            while !String::from_utf8_lossy(&seen).contains("Bern") {
                match self.0.read_buf(&mut seen).await {
                    Ok(read) if read > 0 => {}
                    _ => break,
                }
            }
            seen
        };
        let seen = guard("hang.idle", "an answer on an idle connection", exchange).await?;
        let seen = String::from_utf8_lossy(&seen);
        holds(
            fact,
            seen.contains("Bern"),
            "an answer on a connection that had served a request before",
            json(&seen.lines().next().unwrap_or("the end of the connection")),
        )
    }
}

/// The specification with this drain deadline in milliseconds, and with every other timeout far
/// beyond it.
fn drained_after(drain_ms: u64, spec: Spec) -> Spec {
    let spec = patient(spec);
    Spec {
        limits: LimitSpec {
            drain_ms,
            ..spec.limits
        },
        ..spec
    }
}

fn of_target(error: TargetError) -> Failure {
    Failure::Target {
        what: error.to_string(),
    }
}

fn no_process() -> Failure {
    Failure::NotRun {
        why: "somebody else started this gateway, so the harness cannot signal it".into(),
    }
}

/// Waits for the end of the process, and returns its exit code.
async fn exit(process: &dyn Process) -> Result<Option<i32>, Failure> {
    let ended = guard("hang.exit", "the end of the process", process.wait()).await?;
    ended.map_err(of_target)
}
