//! OBS: what the gateway reports about itself is what happened.

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds, json, silent};
use gauntlet_harness::gate::converge;
use gauntlet_harness::llm::{Stub, chat, error, reply, sequence};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use serde_json::Value;

use super::CaseRow;
use super::support::{
    QUERIES, ask, broken, complete, does_its_part, healthy, known, query, refused, repeats_at_once,
    text, with_usage,
};

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "OBS-01",
        why: "Counters that count requests instead of attempts hide the retries, which are the bill \
              and the outage.",
        shown: "Plain and streamed requests fail twice at the first candidate, whose breaker then is open, \
                and are served by the second; others time out, stall, are reset, fail at all candidates, \
                or are left by their clients; four are held. The gauge and all counters are compared \
                with what clients and stubs saw.",
        remedy: "Count an attempt where it is made, and a retry and a fallback where they are decided.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::Fallback,
            Capability::Retry,
            Capability::Breaker,
            Capability::TimeoutPerModel,
            Capability::TotalDeadline,
            Capability::IdleTimeout,
            Capability::Metrics,
        ],
        instances: &[
            "a retry and a fallback, plain and streamed",
            "an open breaker",
            "a timeout, plain and streamed",
            "a stream that stalls",
            "a stream that is reset",
            "all candidates fail, plain and streamed",
            "clients that leave, before and within their answers",
            "requests in flight, plain and streamed",
        ],
        spec: || {
            let short = Timeouts {
                total_ms: Some(500),
                ..Timeouts::default()
            };
            let soon_idle = Timeouts {
                idle_ms: Some(300),
                ..Timeouts::default()
            };
            let more = ["p3", "p4", "p5", "p6", "p7", "p8", "p9"];
            let mut spec = more
                .iter()
                .fold(Spec::pair(), |spec, name| {
                    spec.provider(name, Protocol::OPENAI)
                })
                .model("late", &["p3"])
                .model_timeouts("late", short)
                .model("stalls", &["p4"])
                .model_timeouts("stalls", soon_idle)
                .model("broken", &["p5"])
                .model("left", &["p6"])
                .model("failed", &["p7", "p8"])
                .model("busy", &["p9"]);
            // nothing else ends while something is held
            spec.timeouts = Timeouts {
                connect_ms: spec.timeouts.connect_ms,
                ..Timeouts::PATIENT
            };
            spec.retry.max_attempts = 2;
            spec.breaker.failure_threshold = 6;
            spec
        },
        run: &obs_01,
    },
    CaseRow {
        id: "OBS-02",
        why: "A trace that ends at the gateway shows that something was slow, and not what.",
        shown: "Requests carry a trace context: plain, streamed, with a second attempt and with a second \
                candidate. Each provider's request must have the same trace id, with a parent in W3C's \
                form. The case does not look at spans.",
        remedy: "Send traceparent on with the trace id of the request.",
        needs: &[Capability::Chat],
        instances: &[
            "plain",
            "streamed",
            "a second attempt",
            "a second candidate",
        ],
        spec: || {
            let mut spec = Spec::pair().model("solo", &["p1"]);
            spec.retry.max_attempts = 2;
            spec
        },
        run: &obs_02,
    },
    CaseRow {
        id: "OBS-03",
        why: "Nobody can check a bill whose usage is guessed from the length of a text.",
        shown: "Each provider sends a usage of its own that no count of words would give. The usage of a \
                chat, of a stream, of a query, of its record, of a query whose last agent fails, and the \
                metrics are compared with it.",
        remedy: "Pass the provider's numbers on, and add nothing to them.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::Query,
            Capability::Store,
            Capability::Metrics,
        ],
        instances: &[
            "a chat",
            "a stream whose client asks for usage",
            "a query",
            "the record of a query",
            "a query without its review",
            "the metrics",
        ],
        spec: query,
        run: &obs_03,
    },
];

const ROUTE: &str = "/v1/chat/completions";

async fn obs_01(ctx: &Ctx) -> CaseResult {
    let stub = |name: &str| ctx.stub(name);
    let chat_of = |alias: &str, text: &str| ctx.client.chat(ctx.prompt(alias, text));
    let stream_of = |alias: &str, text: &str| ctx.client.streamed(ctx.prompt(alias, text));
    let mut statuses = Vec::new();
    // given
    let (p1, p2) = (stub("p1")?, stub("p2")?);
    p1.answers(error(503));
    p2.answers(reply("Paris"));
    // when
    ctx.instance("a retry and a fallback, plain and streamed");
    for n in 0..3 {
        let text = format!("capital {n}");
        statuses.push(match n {
            1 => stream_of("pair", &text).await?.status,
            _ => chat_of("pair", &text).await?.status,
        });
    }
    ctx.instance("an open breaker");
    statuses.push(chat_of("pair", "open").await?.status);
    equal(
        "answer.status",
        "the statuses",
        vec![200; 4],
        statuses.clone(),
    )?;
    equal(
        "provider.attempts",
        "the numbers of attempts at the first and at the second provider",
        (6, 4),
        (p1.requests().len(), p2.requests().len()),
    )?;
    ctx.instance("a timeout, plain and streamed");
    stub("p3")?.answers(reply("late").plan(Plan::silent()));
    let late = chat_of("late", "never").await?.status;
    refused(late)?;
    statuses.push(late);
    let late = stream_of("late", "never, streamed").await?;
    broken(&late)?;
    statuses.push(late.status);
    ctx.instance("a stream that stalls");
    let two = || reply("").tokens(["Par", "is"]);
    stub("p4")?.answers(two().plan(Plan::events_then(2, Step::Stall)));
    let stalled = stream_of("stalls", "stalls").await?;
    broken(&stalled)?;
    statuses.push(stalled.status);
    ctx.instance("a stream that is reset");
    stub("p5")?.answers(two().plan(Plan::events_then(2, Step::Reset)));
    let reset = stream_of("broken", "is reset").await?;
    broken(&reset)?;
    statuses.push(reset.status);
    ctx.instance("all candidates fail, plain and streamed");
    for name in ["p7", "p8"] {
        stub(name)?.answers(error(503));
    }
    let failed = chat_of("failed", "fails").await?.status;
    refused(failed)?;
    statuses.push(failed);
    statuses.push(stream_of("failed", "fails, streamed").await?.status);
    ctx.instance("clients that leave, before and within their answers");
    let p6 = stub("p6")?;
    p6.mount(
        chat().user_says("leaves early"),
        reply("never").plan(Plan::held("never")),
    )
    .await;
    p6.mount(
        chat().user_says("leaves late"),
        two().plan(Plan::events_then(2, Step::Stall)),
    )
    .await;
    let early = ctx
        .client
        .send_chat(ctx.prompt("left", "leaves early"))
        .await?;
    p6.held(1).await?;
    early.leave();
    let mut late = ctx.client.stream(ctx.prompt("left", "leaves late")).await?;
    late.text_of(3).await?;
    late.leave();
    p6.peer_closed(2).await?;
    let none = || Row::of("in_flight_none", &ctx.manifest.metrics.in_flight, &[], 0);
    become_equal(ctx, &[none()]).await?;
    ctx.instance("requests in flight, plain and streamed");
    in_flight(ctx, &mut statuses).await?;
    // then
    let left = 2;
    let rows = || -> Result<Vec<Row>, Failure> {
        let attempts = |fact, name: &'static str| -> Result<Row, Failure> {
            let seen = stub(name)?.requests().len();
            let name = format!("provider=\"{name}\"");
            Ok(Row::of(
                fact,
                &ctx.manifest.metrics.attempts,
                &[&name],
                seen,
            ))
        };
        let names = &ctx.manifest.metrics;
        let route = format!("route=\"{ROUTE}\"");
        let served = statuses.iter().filter(|status| **status == 200).count();
        let mut rows = vec![Row {
            // a client that left had seen the status of its stream
            most: served + 1,
            ..Row::of(
                "requests",
                &names.requests,
                &[&route, "status=\"200\""],
                served,
            )
        }];
        let mut others: Vec<u16> = statuses.clone();
        others.retain(|status| *status != 200);
        others.sort_unstable();
        others.dedup();
        for status in others {
            let seen = statuses.iter().filter(|one| **one == status).count();
            let status = format!("status=\"{status}\"");
            rows.push(Row::of(
                "requests_failed",
                &names.requests,
                &[&route, &status],
                seen,
            ));
        }
        rows.extend([
            Row::of(
                "requests_total",
                &names.requests,
                &[&route],
                statuses.len() + left,
            ),
            attempts("attempts", "p1")?,
            attempts("attempts_of_second", "p2")?,
            attempts("attempts_late", "p3")?,
            attempts("attempts_broken", "p5")?,
            attempts("attempts_stalled", "p4")?,
            attempts("attempts_left", "p6")?,
            attempts("attempts_failed", "p7")?,
            attempts("attempts_failed", "p8")?,
            Row::of("retries", &names.retries, &["provider=\"p1\""], 3),
            Row::of("retries_failed", &names.retries, &["provider=\"p7\""], 2),
            Row::of("retries_failed", &names.retries, &["provider=\"p8\""], 2),
            Row::of("fallbacks", &names.fallbacks, &["model=\"pair\""], 4),
            Row::of(
                "fallbacks_failed",
                &names.fallbacks,
                &["model=\"failed\""],
                2,
            ),
            Row::of("timeouts", &names.timeouts, &["provider=\"p3\""], 2),
            Row::of("timeouts_stalled", &names.timeouts, &["provider=\"p4\""], 1),
            Row::of("timeouts_total", &names.timeouts, &[], 3),
            // 2 is open, 0 is closed
            Row::of(
                "breaker_state",
                &names.breaker_state,
                &["provider=\"p1\""],
                2,
            ),
            Row::of(
                "breaker_closed",
                &names.breaker_state,
                &["provider=\"p2\""],
                0,
            ),
            none(),
        ]);
        Ok(rows)
    };
    become_equal(ctx, &rows()?).await
}

/// Holds two plain requests and two streams, and compares the gauge of requests in flight.
async fn in_flight(ctx: &Ctx, statuses: &mut Vec<u16>) -> CaseResult {
    let p9 = ctx.stub("p9")?;
    let held = || Step::Hold("busy".into());
    p9.mount(
        chat().user_says("streamed"),
        reply("").tokens(["Par", "is"]).plan(Plan::of([
            Step::Head,
            Step::Events(2),
            held(),
            Step::Rest,
        ])),
    )
    .await;
    p9.answers(reply("Bern").plan(Plan::held("busy")));
    let (mut plain, mut streams) = (Vec::new(), Vec::new());
    for n in 0..2 {
        let prompt = |what: &str| ctx.prompt("busy", &format!("{what} {n}"));
        plain.push(ctx.client.send_chat(prompt("plain")).await?);
        let mut stream = ctx.client.stream(prompt("streamed")).await?;
        stream.text_of(3).await?;
        streams.push(stream);
    }
    p9.in_flight_is(4).await?;
    let gauge = Row::of("in_flight", &ctx.manifest.metrics.in_flight, &[], 4);
    become_equal(ctx, &[gauge]).await?;
    ctx.gates.gate("busy").open();
    for plain in plain {
        statuses.push(plain.reply().await?.status);
    }
    for stream in streams {
        statuses.push(stream.collect().await?.status);
    }
    Ok(())
}

/// What a metric has to be.
#[derive(Clone, Debug)]
struct Row {
    fact: &'static str,
    metric: String,
    labels: Vec<String>,
    least: usize,
    most: usize,
}

impl Row {
    fn of(fact: &'static str, metric: &str, labels: &[&str], value: usize) -> Self {
        Self {
            fact,
            metric: metric.into(),
            labels: labels.iter().map(ToString::to_string).collect(),
            least: value,
            most: value,
        }
    }

    fn value(&self, metrics: &str) -> usize {
        sum(metrics, &self.metric, &self.labels)
    }

    fn holds(&self, metrics: &str) -> CaseResult {
        let value = self.value(metrics);
        let expected = match self.most == self.least {
            true => self.least.to_string(),
            false => format!("from {} to {}", self.least, self.most),
        };
        holds(
            &format!("metric.{}", self.fact),
            (self.least..=self.most).contains(&value),
            format!(
                "the metric {}{{{}}} to be {expected}",
                self.metric,
                self.labels.join(",")
            ),
            value,
        )
    }
}

/// All metrics must become so in one reading; the end of an answer is counted a moment later than
/// it is read. Every one that stays otherwise is reported.
async fn become_equal(ctx: &Ctx, rows: &[Row]) -> CaseResult {
    let now =
        || async { Ok::<_, Failure>(ctx.client.get(&ctx.manifest.paths.metrics).await?.text()) };
    let counted = converge("hang.metric", "the metrics to become equal", || async {
        let metrics = now().await?;
        let equal = rows.iter().all(|row| row.holds(&metrics).is_ok());
        Ok(equal.then_some(()))
    });
    match counted.await {
        Err(Failure::Violated { .. }) => {
            let (metrics, mut deviations) = (now().await?, Deviations::new());
            for row in rows {
                deviations.note(row.holds(&metrics))?;
            }
            deviations.result()
        }
        other => other,
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

async fn obs_02(ctx: &Ctx) -> CaseResult {
    // given
    let (p1, p2) = (ctx.stub("p1")?, ctx.stub("p2")?);
    let again = [error(503).optional(), reply("Paris")];
    p1.mount(chat().user_says("again"), sequence(again)).await;
    p1.mount(chat().user_says("next"), error(500).optional())
        .await;
    p1.answers(reply("Paris"));
    p2.answers(reply("Rome"));
    let traced = ctx
        .client
        .with_header("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01"));
    let mut deviations = Deviations::new();
    // when
    let sent = ctx.examine("plain", async {
        let answer = traced.chat(ctx.prompt("solo", "plain")).await?;
        equal("answer.status", "the status", 200, answer.status)?;
        continued("provider.traceparent", p1, "plain", 1)
    });
    deviations.note(sent.await)?;
    if ctx.instance_if(Capability::Stream, "streamed") {
        let sent = ctx.examine("streamed", async {
            traced.streamed(ctx.prompt("solo", "streamed")).await?;
            continued("provider.traceparent_streamed", p1, "streamed", 1)
        });
        deviations.note(sent.await)?;
    }
    if ctx.instance_if(Capability::Retry, "a second attempt") {
        let sent = ctx.examine("a second attempt", async {
            repeats_at_once(ctx)?;
            traced.chat(ctx.prompt("solo", "again")).await?;
            continued("provider.traceparent_again", p1, "again", 2)
        });
        deviations.note(sent.await)?;
    }
    if ctx.instance_if(Capability::Fallback, "a second candidate") {
        let sent = ctx.examine("a second candidate", async {
            traced.chat(ctx.prompt("pair", "next")).await?;
            continued("provider.traceparent_next", p2, "next", 1)
        });
        deviations.note(sent.await)?;
    }
    // then
    deviations.result()
}

/// Each request for this prompt must continue the trace; there have to be so many, or more.
fn continued(fact: &str, stub: &Stub, text: &str, least: usize) -> CaseResult {
    let calls = stub.calls(&format!("{text} ["));
    if calls.len() < least {
        return Err(Failure::NotExercised {
            why: format!(
                "{} had {} requests ({text}), and the requirement is about {least}",
                stub.name(),
                calls.len()
            ),
        });
    }
    for call in calls {
        let sent = call.header("traceparent").unwrap_or_default();
        let parts: Vec<&str> = sent.split('-').collect();
        let continued = matches!(parts.as_slice(), [version, TRACE, parent, flags] if [version.len(), parent.len(), flags.len()] == [2, 16, 2]);
        holds(
            fact,
            continued,
            format!(
                "a traceparent of the trace {TRACE} at {} ({text})",
                stub.name()
            ),
            json(&sent),
        )?;
    }
    Ok(())
}

async fn obs_03(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    known(ctx).await?;
    // no two agents have the same, so that none can stand for another
    let of = |n: usize| (1_013 + 16 * n as u64, 107 + 8 * n as u64);
    for (n, (name, stub)) in ctx.stubs.iter().enumerate() {
        let (prompt, completion) = of(n);
        stub.answers(does_its_part(name).usage(prompt, completion));
    }
    let all = (0..ctx.stubs.len()).map(of);
    let sum = all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let last = of(ctx.stubs.len() - 1);
    let both = |(prompt, completion): (u64, u64)| (Some(prompt), Some(completion));
    let mut deviations = Deviations::new();
    // when, then
    let asked = ctx.examine("a chat", async {
        let chat = ctx.client.chat(ctx.prompt("review", "hello")).await?;
        equal(
            "chat.usage",
            "the usage of a chat",
            both(last),
            usage(&chat.json()),
        )
        .map_err(silent)
    });
    deviations.note(asked.await)?;
    let asked = ctx.examine("a stream whose client asks for usage", async {
        let body = with_usage(ctx.prompt("review", "hello, streamed"));
        let stream = ctx.client.streamed(body).await?;
        let document = serde_json::json!({ "usage": stream.usage });
        equal(
            "stream.usage",
            "the usage of a stream",
            both(last),
            usage(&document),
        )
        .map_err(silent)
    });
    deviations.note(asked.await)?;
    let query = complete(ctx).await?;
    ctx.instance("a query");
    let row = equal(
        "query.usage",
        "the usage of a query",
        both(sum),
        usage(&query),
    );
    deviations.note(row.map_err(silent))?;
    ctx.instance("the record of a query");
    let record = ctx
        .client
        .get(&format!("{QUERIES}/{}", text(&query, "id")))
        .await?
        .json();
    let row = equal(
        "record.usage",
        "the usage of the record",
        usage(&query),
        usage(&record),
    );
    deviations.note(row.map_err(silent))?;
    let asked = ctx.examine("a query without its review", async {
        ctx.stub("review")?.answers(error(400));
        let degraded = ask(ctx).await?.json();
        equal(
            "degraded.usage",
            "the usage of a query whose last agent failed",
            both((sum.0 - last.0, sum.1 - last.1)),
            usage(&degraded),
        )
        .map_err(silent)
    });
    deviations.note(asked.await)?;
    ctx.instance("the metrics");
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    // two chats, a whole query and one without the last agent
    let tokens = |kind: &str, sum: u64, last: u64| {
        Row::of(
            "tokens",
            &ctx.manifest.metrics.tokens,
            &[&format!("kind=\"{kind}\"")],
            number(2 * sum + last),
        )
    };
    let rows = [
        tokens("prompt", sum.0, last.0),
        tokens("completion", sum.1, last.1),
    ];
    deviations.note(become_equal(ctx, &rows).await)?;
    deviations.result()
}

fn usage(document: &Value) -> (Option<u64>, Option<u64>) {
    (
        document["usage"]["prompt_tokens"].as_u64(),
        document["usage"]["completion_tokens"].as_u64(),
    )
}

/// The sum of a counter's series that have these labels, in Prometheus' text format.
fn sum(metrics: &str, name: &str, labels: &[String]) -> usize {
    let series = metrics.lines().filter(|line| {
        line.split(['{', ' ']).next() == Some(name)
            && labels.iter().all(|label| line.contains(label.as_str()))
    });
    series
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .map(|value| value as usize)
        .sum()
}
