//! OBS: what the gateway reports about itself is what happened.

use gauntlet_harness::case::{CaseResult, Ctx, Failure, equal, holds, json, silent};
use gauntlet_harness::gate::converge;
use gauntlet_harness::llm::{error, reply};
use gauntlet_harness::plan::Plan;
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use serde_json::Value;

use super::CaseRow;
use super::support::{QUERIES, complete, does_its_part, healthy, known, query, refused, text};

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "OBS-01",
        why: "Counters that count requests instead of attempts hide the retries, which are the bill \
              and the outage.",
        shown: "Three requests fail twice at the first candidate, whose breaker then is open, and are \
                served by the second; another request times out. The counters are compared with what \
                the stubs saw.",
        remedy: "Count an attempt where it is made, and a retry and a fallback where they are decided.",
        needs: &[
            Capability::Chat,
            Capability::Fallback,
            Capability::Retry,
            Capability::Breaker,
            Capability::TimeoutPerModel,
            Capability::Metrics,
        ],
        instances: &[],
        spec: || {
            let short = Timeouts {
                total_ms: Some(500),
                ..Timeouts::default()
            };
            let mut spec = Spec::pair()
                .provider("p3", Protocol::OPENAI)
                .model("late", &["p3"])
                .model_timeouts("late", short);
            spec.retry.max_attempts = 2;
            spec.breaker.failure_threshold = 6;
            spec
        },
        run: &obs_01,
    },
    CaseRow {
        id: "OBS-02",
        why: "A trace that ends at the gateway shows that something was slow, and not what.",
        shown: "A request carries a trace context. The provider's request must have the same trace id, \
                with a parent in W3C's form. The case does not look at spans.",
        remedy: "Send traceparent on with the trace id of the request.",
        needs: &[Capability::Chat],
        instances: &[],
        spec: Spec::solo,
        run: &obs_02,
    },
    CaseRow {
        id: "OBS-03",
        why: "Nobody can check a bill whose usage is guessed from the length of a text.",
        shown: "Each provider sends a usage that no count of words would give. A chat's usage, a \
                query's sum, its record and the metrics are compared with it.",
        remedy: "Pass the provider's numbers on, and add nothing to them.",
        needs: &[
            Capability::Chat,
            Capability::Query,
            Capability::Store,
            Capability::Metrics,
        ],
        instances: &[],
        spec: query,
        run: &obs_03,
    },
];

async fn obs_01(ctx: &Ctx) -> CaseResult {
    // given
    const REQUESTS: usize = 3;
    let (p1, p2) = (ctx.stub("p1")?, ctx.stub("p2")?);
    p1.answers(error(503));
    p2.answers(reply("Paris"));
    ctx.stub("p3")?.answers(reply("late").plan(Plan::silent()));
    // when
    for n in 0..REQUESTS {
        let answer = ctx
            .client
            .chat(ctx.prompt("pair", &format!("capital {n}")))
            .await?;
        equal("answer.status", "the status", 200, answer.status)?;
    }
    refused(ctx.client.chat(ctx.prompt("late", "never")).await?.status)?;
    // then
    let (first, second) = (p1.requests().len(), p2.requests().len());
    equal(
        "provider.attempts",
        "the numbers of attempts at the first and at the second provider",
        (2 * REQUESTS, REQUESTS),
        (first, second),
    )?;
    let names = &ctx.manifest.metrics;
    counted(
        ctx,
        ("requests", &names.requests),
        &["route=\"/v1/chat/completions\"", "status=\"200\""],
        REQUESTS,
    )
    .await?;
    counted(
        ctx,
        ("attempts", &names.attempts),
        &["provider=\"p1\""],
        first,
    )
    .await?;
    counted(
        ctx,
        ("attempts", &names.attempts),
        &["provider=\"p2\""],
        second,
    )
    .await?;
    counted(
        ctx,
        ("retries", &names.retries),
        &["provider=\"p1\""],
        first - REQUESTS,
    )
    .await?;
    counted(
        ctx,
        ("fallbacks", &names.fallbacks),
        &["model=\"pair\""],
        REQUESTS,
    )
    .await?;
    counted(ctx, ("timeouts", &names.timeouts), &[], 1).await?;
    counted(ctx, ("timeouts", &names.timeouts), &["provider=\"p3\""], 1).await?;
    // 2 is open, 0 is closed
    counted(
        ctx,
        ("breaker_state", &names.breaker_state),
        &["provider=\"p1\""],
        2,
    )
    .await?;
    counted(
        ctx,
        ("breaker_state", &names.breaker_state),
        &["provider=\"p2\""],
        0,
    )
    .await
}

async fn obs_02(ctx: &Ctx) -> CaseResult {
    // given
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    ctx.stub("p1")?.answers(reply("Paris"));
    // when
    let traced = ctx
        .client
        .with_header("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01"));
    equal(
        "answer.status",
        "the status",
        200,
        traced.chat(ctx.prompt("solo", "capital")).await?.status,
    )?;
    // then
    let calls = ctx.stub("p1")?.calls(&ctx.nonce);
    let sent = calls
        .first()
        .and_then(|call| call.header("traceparent"))
        .unwrap_or_default();
    let parts: Vec<&str> = sent.split('-').collect();
    let continued = matches!(parts.as_slice(), [version, TRACE, parent, flags] if [version.len(), parent.len(), flags.len()] == [2, 16, 2]);
    holds(
        "provider.traceparent",
        continued,
        format!("a traceparent of the trace {TRACE}"),
        json(&sent),
    )
}

async fn obs_03(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    known(ctx).await?;
    for (name, stub) in &ctx.stubs {
        stub.answers(does_its_part(name).usage(1_013, 107));
    }
    let agents = ctx.stubs.len() as u64;
    // when
    let chat = ctx.client.chat(ctx.prompt("review", "hello")).await?;
    let query = complete(ctx).await?;
    // then
    equal(
        "chat.usage",
        "the usage of a chat",
        (Some(1_013), Some(107)),
        usage(&chat.json()),
    )
    .map_err(silent)?;
    equal(
        "query.usage",
        "the usage of a query",
        (Some(agents * 1_013), Some(agents * 107)),
        usage(&query),
    )
    .map_err(silent)?;
    let record = ctx
        .client
        .get(&format!("{QUERIES}/{}", text(&query, "id")))
        .await?
        .json();
    equal(
        "record.usage",
        "the usage of the record",
        usage(&query),
        usage(&record),
    )
    .map_err(silent)?;
    let calls = agents as usize + 1;
    counted(
        ctx,
        ("tokens", &ctx.manifest.metrics.tokens),
        &["kind=\"prompt\""],
        calls * 1_013,
    )
    .await?;
    counted(
        ctx,
        ("tokens", &ctx.manifest.metrics.tokens),
        &["kind=\"completion\""],
        calls * 107,
    )
    .await
}

fn usage(document: &Value) -> (Option<u64>, Option<u64>) {
    (
        document["usage"]["prompt_tokens"].as_u64(),
        document["usage"]["completion_tokens"].as_u64(),
    )
}

/// The sum of the counter's series with these labels must become this number; the end of an answer
/// is counted a moment later than it is read.
async fn counted(
    ctx: &Ctx,
    (fact, name): (&str, &str),
    labels: &[&str],
    expected: usize,
) -> CaseResult {
    let now = || async {
        Ok::<_, Failure>(sum(
            &ctx.client.get(&ctx.manifest.paths.metrics).await?.text(),
            name,
            labels,
        ))
    };
    let fact = &format!("metric.{fact}");
    let what = format!("the metric {name} to become {expected}");
    let counted = converge("hang.metric", &what, || async {
        Ok(Some(now().await?)
            .filter(|value| *value == expected)
            .map(drop))
    });
    match counted.await {
        Err(Failure::Violated { .. }) => equal(
            fact,
            &format!("the metric {name}{{{}}}", labels.join(",")),
            expected,
            now().await?,
        ),
        other => other,
    }
}

/// The sum of a counter's series that have these labels, in Prometheus' text format.
fn sum(metrics: &str, name: &str, labels: &[&str]) -> usize {
    let series = metrics.lines().filter(|line| {
        line.split(['{', ' ']).next() == Some(name)
            && labels.iter().all(|label| line.contains(label))
    });
    series
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .map(|value| value as usize)
        .sum()
}
