//! BRKR: a failing provider gets no requests for a while, and its neighbours are not affected.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures::future::{Either, join, select, try_join_all};
use gauntlet_harness::case::{CaseResult, Ctx, Failure, State, equal, holds};
use gauntlet_harness::client::Reply;
use gauntlet_harness::gate::{at_least, converge, gap, guard};
use gauntlet_harness::llm::{ReceivedRequest, Stub, chat, error, reply};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{BreakerSpec, CandidateSpec, ModelSpec, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::{Entry, Event};

use super::CaseRow;
use super::support::{most_attempts, past_the_bench, unexercised_if_hung};

const PAIR: &[Capability] = &[Capability::Chat, Capability::Fallback, Capability::Breaker];

/// A cool-down in milliseconds that is longer than any case.
const LONG_MS: u64 = 60_000;
/// A cool-down in milliseconds that is measured: much longer than an exchange on a busy machine.
const COOL_DOWN_MS: u64 = 600;
/// A cool-down in milliseconds whose end the case sees.
const SHORT_MS: u64 = 250;

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "BRKR-01",
        why: "A gateway sent its traffic to a provider that refused everything for four hours \
              (https://github.com/langwatch/langwatch/issues/7027).",
        shown: "The first provider always fails, with a threshold of three. Of thirteen requests, \
                which the second provider serves, it must see three.",
        remedy: "Count the consecutive failures of each candidate, and skip the candidate once they \
                 reach the threshold.",
        needs: PAIR,
        instances: &[],
        spec: || with_breaker(Spec::pair(), 3, LONG_MS),
        run: &brkr_01,
    },
    CaseRow {
        id: "BRKR-02",
        why: "A provider that recovers falls again under the whole traffic that waited for it.",
        shown: "After the breaker has opened, bursts of 64 requests go on until one request is at the \
                first provider, which holds it. The second provider must serve another burst of 64, \
                and the first must never have two requests at once.",
        remedy: "Count the probes in flight under the same lock that changes the breaker's state.",
        needs: PAIR,
        instances: &[],
        spec: || {
            let mut spec = with_breaker(Spec::pair(), 2, SHORT_MS);
            spec.timeouts.total_ms = Some(15_000);
            spec
        },
        run: &brkr_02,
    },
    CaseRow {
        id: "BRKR-03",
        why: "The first cool-down cut the second one short \
              (https://github.com/BerriAI/litellm/issues/40130); a breaker that never closes costs \
              the provider.",
        shown: "While the first provider fails, bursts of eight requests go on until it has seen two \
                probes. Each must come a whole cool-down after the failure before it. Once the \
                provider serves, it must serve all requests after its first success.",
        remedy: "Open for a whole cool-down after a failed probe, and close on success.",
        needs: PAIR,
        instances: &[],
        spec: || with_breaker(Spec::pair(), 2, COOL_DOWN_MS),
        run: &brkr_03,
    },
    CaseRow {
        id: "BRKR-04",
        why: "With all deployments in their cool-down, the answer was an error of the gateway's own, \
              without a time to come again (https://github.com/BerriAI/litellm/issues/3646).",
        shown: "The only provider fails twice, with a threshold of two. The next requests, plain and \
                streamed, must be answered 503 with Retry-After, without a request to the provider.",
        remedy: "Answer 503 with the time until the first breaker lets a probe through.",
        needs: &[Capability::Chat, Capability::Stream, Capability::Breaker],
        instances: &[],
        spec: || with_breaker(Spec::solo(), 2, LONG_MS),
        run: &brkr_04,
    },
    CaseRow {
        id: "BRKR-05",
        why: "One overloaded model is no reason to lose all other models of its provider.",
        shown: "One model of a provider fails until its breaker is open. Another model of that \
                provider, and another provider, must serve.",
        remedy: "Keep a breaker for each pair of provider and model.",
        needs: &[Capability::Chat, Capability::Breaker],
        instances: &[],
        spec: neighbours,
        run: &brkr_05,
    },
    CaseRow {
        id: "BRKR-06",
        why: "Without it, nobody can distinguish a provider that fails from one that is skipped.",
        shown: "/health and /metrics must show a closed breaker at first, and an open one after two \
                failures.",
        remedy: "List each candidate's breaker in the detailed health, and export it as a gauge.",
        needs: &[
            Capability::Chat,
            Capability::Breaker,
            Capability::Health,
            Capability::Metrics,
        ],
        instances: &[],
        spec: || with_breaker(Spec::solo(), 2, LONG_MS),
        run: &brkr_06,
    },
    CaseRow {
        id: "BRKR-07",
        why: "One closed browser tab could open the breakers of a whole chain of providers (release \
              notes of https://github.com/vitobotta/llm-proxy, v2.6.4).",
        shown: "Probes meet a 400, a reset, and a client that leaves. Each time another probe must come, \
                until one succeeds. Then as many clients leave as would open the breaker; the first \
                provider must serve the next request.",
        remedy: "Give the permit of a probe back however the probe ends, and count only failures of the \
                 provider.",
        needs: PAIR,
        instances: &[],
        spec: || with_breaker(Spec::pair(), 2, SHORT_MS),
        run: &brkr_07,
    },
];

fn with_breaker(mut spec: Spec, failure_threshold: u32, cool_down_ms: u64) -> Spec {
    spec.breaker = BreakerSpec {
        failure_threshold,
        cool_down_ms,
        half_open_probes: 1,
    };
    spec
}

/// Two models of one provider, `ill` and `well`, and a neighbour of another provider, `other`.
fn neighbours() -> Spec {
    let mut spec = with_breaker(Spec::pair(), 2, LONG_MS).model("other", &["p2"]);
    for alias in ["ill", "well"] {
        let candidate = CandidateSpec {
            provider: "p1".into(),
            model: format!("m-{alias}"),
        };
        spec.models.push(ModelSpec {
            alias: alias.into(),
            candidates: vec![candidate],
            timeouts: Timeouts::default(),
            retry: None,
            breaker: None,
        });
    }
    spec
}

async fn brkr_01(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(error(500));
    ctx.stub("p2")?.answers(reply("Bern"));
    // when
    let mut texts = Vec::new();
    for n in 0..13 {
        texts.push(
            ctx.client
                .chat(ctx.prompt("pair", &format!("request <{n}>")))
                .await?
                .content(),
        );
    }
    // then
    equal(
        "second.answers",
        "the number of answers of the second provider",
        13,
        texts.iter().filter(|text| *text == "Bern").count(),
    )?;
    seen_at_most(
        ctx,
        "first.requests",
        "the provider whose breaker opens after three failures",
        3,
        &p1.requests(),
    )?;
    ctx.reached(State::BreakerOpen);
    Ok(())
}

async fn brkr_02(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.mount(chat().user_says("failure"), error(500)).await;
    p1.answers(reply("Paris").plan(Plan::held("probe")));
    ctx.stub("p2")?.answers(reply("Bern"));
    fail(ctx, "pair", p1, 2).await?;
    // when
    let burst = || try_join_all((0..64).map(|_| ctx.client.chat(ctx.prompt("pair", "burst"))));
    let bursts = async {
        loop {
            if let Err(failure) = burst().await {
                return failure;
            }
        }
    };
    let examination = async {
        p1.held(1).await?;
        match select(pin!(p1.held(2)), pin!(burst())).await {
            Either::Left((second, _)) => second.map(drop),
            Either::Right((answers, _)) => {
                let answers = answers?;
                let waiters = answers.iter().any(|answer| answer.content() == "Bern");
                if waiters && p1.in_flight() == 1 {
                    ctx.reached(State::HalfOpenWithWaiters);
                }
                Ok(())
            }
        }
    };
    // the examination is polled first, since bursts are always ready to go on
    match select(pin!(examination), pin!(bursts)).await {
        Either::Left((examined, _)) => examined?,
        Either::Right((failure, _)) => return Err(failure),
    }
    // then
    equal(
        "probes.at_once",
        "the highest number of probes at once",
        1,
        p1.high_water(),
    )
}

async fn brkr_03(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(error(500));
    ctx.stub("p2")?.answers(reply("Bern"));
    fail(ctx, "pair", p1, 2).await?;
    // when
    let sent = AtomicUsize::new(0);
    let burst = || {
        let prompts = (0..8).map(|_| format!("probe <{}>", sent.fetch_add(1, Ordering::Relaxed)));
        try_join_all(prompts.map(|prompt| {
            let body = ctx.prompt("pair", &prompt);
            async move { ctx.client.chat(body).await }
        }))
    };
    let probes = || distinct(&p1.calls("probe <"));
    let two_probes = || async { Ok(Some(burst().await?).filter(|_| probes() >= 2)) };
    converge(
        "hang.two_probes",
        "two probes that the breaker lets through",
        two_probes,
    )
    .await?;
    let failed = arrivals(ctx, p1);
    p1.answers(reply("Paris"));
    asked_until(
        ctx,
        "hang.served_again",
        "the first provider to serve again",
        |answer| answer.content() == "Paris",
    )
    .await?;
    let mut afterwards = Vec::new();
    for _ in 0..5 {
        afterwards.push(
            ctx.client
                .chat(ctx.prompt("pair", "afterwards"))
                .await?
                .content(),
        );
    }
    // then
    for pair in failed[1..].windows(2) {
        at_least(
            "probe.gap",
            "the next probe",
            gap(&pair[0], &pair[1]),
            Duration::from_millis(COOL_DOWN_MS),
        )?;
    }
    equal(
        "answers.after_success",
        "the answers after a success",
        vec!["Paris"; 5],
        afterwards.iter().map(String::as_str).collect(),
    )
}

async fn brkr_04(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(error(500));
    fail(ctx, "solo", p1, 2).await?;
    let failed = p1.requests().len();
    // when
    let plain = ctx.client.chat(ctx.prompt("solo", "plain")).await?;
    let stream = ctx.client.streamed(ctx.prompt("solo", "streamed")).await?;
    // then
    equal(
        "provider.requests",
        "the number of requests at the provider after its breaker has opened",
        0,
        p1.requests().len() - failed,
    )?;
    for (status, wait) in [
        (plain.status, plain.header("retry-after")),
        (stream.status, stream.header("retry-after")),
    ] {
        equal(
            "answer.status",
            "the status while the breaker is open",
            503,
            status,
        )?;
        let sane = wait
            .and_then(seconds)
            .is_some_and(|seconds| (1..=LONG_MS / 1_000).contains(&seconds));
        holds(
            "answer.retry_after",
            sane,
            "a Retry-After header of 1 to 60 seconds",
            wait.unwrap_or("none"),
        )?;
    }
    Ok(())
}

async fn brkr_05(ctx: &Ctx) -> CaseResult {
    // given
    let (p1, p2) = (ctx.stub("p1")?, ctx.stub("p2")?);
    p1.mount(chat().model("m-ill"), error(500)).await;
    p1.mount(chat().model("m-well"), reply("Paris")).await;
    p2.answers(reply("Bern"));
    // when
    fail(ctx, "ill", p1, 2).await?;
    for n in 0..2 {
        let body = ctx.prompt("ill", &format!("afterwards {n}"));
        ctx.client.chat(body).await?;
    }
    let well = ctx.client.chat(ctx.prompt("well", "capital")).await?;
    let other = ctx.client.chat(ctx.prompt("other", "capital")).await?;
    // then
    seen_at_most(
        ctx,
        "ill.requests",
        "the provider for the model whose breaker opens after two failures",
        2,
        &p1.calls("m-ill"),
    )?;
    equal(
        "neighbour_model.answer",
        "the answer of the other model of that provider",
        (200, "Paris".to_string()),
        (well.status, well.content()),
    )?;
    equal(
        "neighbour_provider.answer",
        "the answer of the other provider",
        (200, "Bern".to_string()),
        (other.status, other.content()),
    )
}

async fn brkr_06(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(error(500));
    let before = reported(ctx).await?;
    // when
    fail(ctx, "solo", p1, 2).await?;
    // then
    equal(
        "state.before",
        "the breaker's state in health and in metrics before any failure",
        ("closed".to_string(), Some(0)),
        before,
    )?;
    equal(
        "state.after",
        "the breaker's state in health and in metrics after two failures",
        ("open".to_string(), Some(2)),
        reported(ctx).await?,
    )
}

/// The state of the one breaker: its name in health, and its number in metrics (0 closed, 1
/// half-open, 2 open).
async fn reported(ctx: &Ctx) -> Result<(String, Option<u32>), Failure> {
    let (paths, names) = (&ctx.manifest.paths, &ctx.manifest.metrics);
    let (health, metrics) = join(
        ctx.client.get(&paths.health),
        ctx.client.get(&paths.metrics),
    )
    .await;
    let health = health?.json()["breakers"][0]["state"]
        .as_str()
        .unwrap_or("not reported")
        .to_string();
    let metrics = metrics?.text();
    let line = metrics
        .lines()
        .find(|line| line.split('{').next() == Some(&names.breaker_state) && line.contains("p1"));
    Ok((
        health,
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()),
    ))
}

async fn brkr_07(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    // before its head: whether an answer that was cut is one, is judged by STRM-09
    let reset = reply("lost").plan(Plan::of([Step::Reset]));
    let left = reply("for nobody").plan(Plan::held("nobody opens this"));
    for (text, answer) in [
        ("failure", error(500)),
        ("meets a 400", error(400)),
        ("meets a reset", reset),
        ("leaving", left),
    ] {
        p1.mount(chat().user_says(text), answer).await;
    }
    p1.answers(reply("Paris"));
    ctx.stub("p2")?.answers(reply("Bern"));
    fail(ctx, "pair", p1, 2).await?;
    // when
    asked_until(
        ctx,
        "hang.probe_after_failures",
        "a first probe, which meets a 400",
        |_| !p1.calls("meets a 400").is_empty(),
    )
    .await?;
    asked_until(
        ctx,
        "hang.probe_after_400",
        "a probe after that, which meets a reset",
        |_| !p1.calls("meets a reset").is_empty(),
    )
    .await?;
    asked_and_left(ctx, p1, 1).await?;
    asked_until(
        ctx,
        "hang.probe_after_left",
        "an answer after a probe whose client left",
        |answer| answer.content() == "Paris",
    )
    .await?;
    for n in 2..=3 {
        asked_and_left(ctx, p1, n).await?;
    }
    let next = ctx
        .client
        .chat(ctx.prompt("pair", "after those who left"))
        .await?;
    // then
    equal(
        "next.text",
        "the text of the request after those whose clients left",
        "Paris",
        next.content().as_str(),
    )
}

/// Sends one request after the other until an answer, or what the stubs have seen by then, shows
/// what the case waits for.
async fn asked_until(
    ctx: &Ctx,
    fact: &str,
    what: &str,
    mut shown: impl FnMut(&Reply) -> bool,
) -> CaseResult {
    let asking = async {
        loop {
            let answer = ctx.client.chat(ctx.prompt("pair", what)).await?;
            if shown(&answer) {
                return Ok(());
            }
        }
    };
    guard(fact, what, asking).await?
}

/// Sends one request after the other until the stub holds its n-th answer; then the client leaves,
/// and the gateway notices it.
async fn asked_and_left(ctx: &Ctx, stub: &Stub, n: usize) -> CaseResult {
    let asking = async {
        loop {
            if let Err(failure) = ctx.client.chat(ctx.prompt("pair", "leaving")).await {
                return failure;
            }
        }
    };
    // the held answer is polled first, since asking is always ready to go on
    match select(pin!(stub.held(n)), pin!(asking)).await {
        Either::Left((held, _)) => held?,
        Either::Right((failure, _)) => return Err(failure),
    };
    stub.peer_closed(n).await.map(drop)
}

/// Sends requests to the alias, one after the other, until its provider has failed so many of them
/// and is not asked for the next one: the breaker is open. A gateway may leave a provider alone for
/// a while after each failure, and one with retries built in may count each of its attempts.
///
/// A gateway whose breaker does not open is judged by BRKR-01; no other case is exercised by it.
async fn fail(ctx: &Ctx, alias: &str, stub: &Stub, times: usize) -> CaseResult {
    let sent = AtomicUsize::new(0);
    let what = format!("{times} failures at {}", stub.name());
    let failed = converge("hang.failures", &what, || async {
        let text = format!("failure <{}>", sent.fetch_add(1, Ordering::Relaxed));
        ctx.client.chat(ctx.prompt(alias, &text)).await?;
        let failures = stub.calls("failure <");
        let open = stub.calls(&text).is_empty() && failures.len() >= times;
        Ok(Some(()).filter(|()| open))
    });
    let open = past_the_bench(ctx, failed).await;
    open.map_err(unexercised_if_hung(|| {
        format!(
            "the breaker of {alias} was never open: its threshold is {times} failures, and {} was \
             asked {} times; BRKR-01 judges that",
            stub.name(),
            stub.calls("failure <").len()
        )
    }))?;
    ctx.reached(State::BreakerOpen);
    Ok(())
}

/// How many different requests there are among these attempts.
fn distinct(attempts: &[ReceivedRequest]) -> usize {
    let bodies: HashSet<&str> = attempts.iter().map(|one| one.body.as_str()).collect();
    bodies.len()
}

/// The provider must have seen so many requests: exactly, where the number of attempts was
/// configured; else no more different ones, whatever the number of attempts that are built in, and
/// whether the gateway leaves a provider alone after its first failure.
fn seen_at_most(
    ctx: &Ctx,
    fact: &str,
    whom: &str,
    most: usize,
    attempts: &[ReceivedRequest],
) -> CaseResult {
    let exact = most_attempts(ctx, 1) == Some(1);
    if exact && !ctx.manifest.behaviour.benches_after_one_failure {
        let what = format!("the number of requests at {whom}");
        return equal(fact, &what, most, attempts.len());
    }
    let requests = distinct(attempts);
    holds(
        fact,
        (1..=most).contains(&requests),
        format!("from 1 to {most} different requests at {whom}"),
        requests,
    )
}

/// The first arrival of each of the case's own requests; gateways may probe their providers, too.
fn arrivals(ctx: &Ctx, stub: &Stub) -> Vec<Entry> {
    let mut known = HashSet::new();
    let mut first_of_own = |entry: &Entry| match &entry.event {
        Event::RequestRead { body, .. } => body.contains(&ctx.nonce) && known.insert(body.clone()),
        _ => false,
    };
    stub.tape()
        .into_iter()
        .filter(|entry| first_of_own(entry))
        .collect()
}

/// The wait that Retry-After asks for, in seconds; an HTTP date counts from now.
fn seconds(retry_after: &str) -> Option<u64> {
    let until = || {
        httpdate::parse_http_date(retry_after)
            .ok()?
            .duration_since(SystemTime::now())
            .ok()
    };
    retry_after
        .parse()
        .ok()
        .or_else(|| until().map(|wait| wait.as_secs() + 1))
}
