//! DRAIN: the end of a process causes no error for its clients.

use gauntlet_harness::case::{CaseResult, Ctx, Failure, equal, holds, json, silent};
use gauntlet_harness::gate::guard;
use gauntlet_harness::llm::{chat, reply};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{LimitSpec, Spec};
use gauntlet_harness::subject::Capability;

use super::CaseRow;
use super::support::{
    QUERIES, does_its_part, healthy, patient, query, question, silent_if, silent_in, text,
    until_status,
};

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "DRAIN-01",
        why: "Every deployment cut the streams in flight \
              (https://github.com/BerriAI/litellm/issues/14334).",
        shown: "A stream and a plain request are held at the provider, and the process gets SIGTERM. \
                Readiness must become 503; then the gate opens, both answers must end whole, and the \
                process must exit with 0.",
        remedy: "On SIGTERM fail readiness, take no new requests, and wait for those in flight.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::Readiness,
            Capability::Drain,
        ],
        instances: &[],
        spec: || drained_after(30_000, Spec::solo()),
        run: &drain_01,
    },
    CaseRow {
        id: "DRAIN-02",
        why: "A stream that ends without an error looks finished, and a query that vanishes with its \
              process was never asked.",
        shown: "A stream stalls and a query is held, and the process gets SIGTERM. The stream must end \
                with an error event and the process with 0, and a gateway started on the same database \
                must know the query.",
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
        instances: &[],
        spec: || drained_after(300, query()),
        run: &drain_02,
    },
];

async fn drain_01(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.mount(
        chat().user_says("streamed"),
        reply("").tokens(["Par", "is"]).plan(Plan::of([
            Step::Head,
            Step::Events(2),
            Step::Hold("end".into()),
            Step::Rest,
        ])),
    )
    .await;
    p1.mount(
        chat().user_says("plain"),
        reply("Bern").plan(Plan::held("end")),
    )
    .await;
    let mut streamed = ctx.client.stream(ctx.prompt("solo", "streamed")).await?;
    let begun = streamed.text_of(3).await?;
    let plain = ctx.client.send_chat(ctx.prompt("solo", "plain")).await?;
    p1.held(2).await?;
    // when
    terminate(ctx).await?;
    until_status(ctx, "hang.unready", &ctx.manifest.paths.ready, 503).await?;
    ctx.gates.gate("end").open();
    // then
    let (streamed, plain) = futures::try_join!(streamed.collect(), plain.reply())?;
    holds(
        "stream.complete",
        streamed.looks_complete(),
        "a stream that ends as if nothing had happened",
        format_args!("the stream ended {}", streamed.end),
    )?;
    equal(
        "stream.text",
        "the text of the stream",
        "Paris",
        format!("{begun}{}", streamed.text).as_str(),
    )?;
    equal(
        "plain.answer",
        "the plain answer",
        (200, "Bern".to_owned()),
        (plain.status, plain.content()),
    )?;
    equal(
        "process.exit_code",
        "the exit code",
        Some(0),
        exit(ctx).await?,
    )
}

async fn drain_02(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    let stalls = reply("")
        .tokens(["Par", "is"])
        .plan(Plan::events_then(2, Step::Stall));
    ctx.stub("review")?
        .mount(chat().user_says("streamed"), stalls)
        .await;
    ctx.stub("entities")?
        .answers(does_its_part("entities").plan(Plan::held("never")));
    let mut streamed = ctx.client.stream(ctx.prompt("review", "streamed")).await?;
    streamed.text_of(3).await?;
    let body = question(ctx).to_string();
    let query = ctx
        .client
        .send(
            "POST",
            QUERIES,
            &[("content-type", "application/json")],
            body.as_bytes(),
        )
        .await?;
    ctx.stub("entities")?.held(1).await?;
    // when
    terminate(ctx).await?;
    let (streamed, query) = futures::try_join!(streamed.collect(), query.try_reply())?;
    // then
    holds(
        "stream.error_event",
        streamed.error.is_some(),
        "an error event in the stream that was cut",
        format_args!(
            "no error event and {} [DONE] events; the stream ended {}",
            streamed.done_count, streamed.end
        ),
    )
    .map_err(silent_in(&streamed))?;
    holds(
        "query.status",
        !matches!(&query, Ok(answer) if answer.status < 500),
        "no success for a query that was cut",
        format_args!("{query:?}"),
    )
    .map_err(silent_if(
        matches!(&query, Ok(answer) if answer.status < 400),
    ))?;
    equal(
        "process.exit_code",
        "the exit code",
        Some(0),
        exit(ctx).await?,
    )?;
    let recorded = ctx.start_another().await?.client.get(QUERIES).await?.json();
    let statuses: Vec<&str> = recorded["queries"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .map(|query| text(query, "status"))
        .collect();
    holds(
        "records.statuses",
        matches!(statuses.as_slice(), ["cancelled" | "failed"]),
        "one record, cancelled or failed",
        json(&statuses),
    )
    .map_err(silent)
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

async fn terminate(ctx: &Ctx) -> CaseResult {
    ctx.process()?
        .terminate()
        .await
        .map_err(|error| Failure::Target {
            what: error.to_string(),
        })
}

/// Waits for the end of the process, and returns its exit code.
async fn exit(ctx: &Ctx) -> Result<Option<i32>, Failure> {
    let ended = guard("hang.exit", "the end of the process", ctx.process()?.wait()).await?;
    ended.map_err(|error| Failure::Target {
        what: error.to_string(),
    })
}
