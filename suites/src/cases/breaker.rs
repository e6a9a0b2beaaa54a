//! BRKR: a failing provider gets no requests for a while, and its neighbours are not affected.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures::future::{Either, join, join_all, join3, select, try_join_all};
use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, State, equal, holds};
use gauntlet_harness::client::Reply;
use gauntlet_harness::gate::{at_least, converge, gap, guard};
use gauntlet_harness::llm::{ReceivedRequest, Stub, chat, error, reply};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{BreakerSpec, CandidateSpec, ModelSpec, Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::{Entry, Event};

use serde_json::Value;

use super::CaseRow;
use super::modes::{MODES, Mode, possible, prompt};
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
        shown: "The first provider always fails, with a threshold of three: by a status, plain and streamed, and \
                by resets. Of thirteen requests, which the second provider serves, it must see three.",
        remedy: "Count the consecutive failures of each candidate, and skip the candidate once they \
                 reach the threshold.",
        needs: PAIR,
        instances: &["plain, status 500", "streamed, status 503", "plain, reset"],
        spec: || {
            with_breaker(Spec::pair(), 3, LONG_MS)
                .provider("p3", Protocol::OPENAI)
                .optional_model("streams", &["p3", "p2"])
                .provider("p4", Protocol::OPENAI)
                .optional_model("resets", &["p4", "p2"])
        },
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
        instances: &["plain, 64 at once", "streamed, 64 at once"],
        spec: || {
            let mut spec = with_breaker(Spec::pair(), 2, COOL_DOWN_MS)
                .provider("p3", Protocol::OPENAI)
                .optional_model("streams", &["p3", "p2"]);
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
        instances: &["a failed probe", "a probe that succeeds"],
        spec: || with_breaker(Spec::pair(), 2, COOL_DOWN_MS),
        run: &brkr_03,
    },
    CaseRow {
        id: "BRKR-04",
        why: "With all deployments in their cool-down, the answer was an error of the gateway's own, \
              without a time to come again (https://github.com/BerriAI/litellm/issues/3646).",
        shown: "The only provider fails twice, with a threshold of two, or both providers of an alias do. The next \
                requests, plain and streamed, must be answered 503 with Retry-After, without a request to any \
                provider.",
        remedy: "Answer 503 with the time until the first breaker lets a probe through.",
        needs: &[Capability::Chat, Capability::Stream, Capability::Breaker],
        instances: &["plain", "streamed", "plain, both candidates open"],
        spec: || {
            with_breaker(Spec::solo(), 2, LONG_MS)
                .provider("p2", Protocol::OPENAI)
                .provider("p3", Protocol::OPENAI)
                .optional_model("pair", &["p2", "p3"])
        },
        run: &brkr_04,
    },
    CaseRow {
        id: "BRKR-05",
        why: "One overloaded model is no reason to lose all other models of its provider.",
        shown: "One model of a provider fails until its breaker is open. Another model of that provider, another \
                provider, and another provider's model of the same name must serve, plain and streamed.",
        remedy: "Keep a breaker for each pair of provider and model.",
        needs: &[Capability::Chat, Capability::Breaker],
        instances: &[
            "plain, another model",
            "plain, another provider",
            "plain, a model of the same name",
            "streamed, another model",
            "streamed, another provider",
            "streamed, a model of the same name",
        ],
        spec: neighbours,
        run: &brkr_05,
    },
    CaseRow {
        id: "BRKR-06",
        why: "Without it, nobody can distinguish a provider that fails from one that is skipped.",
        shown: "/health and /metrics must show a closed breaker at first, and an open one after two failures, plain \
                or streamed. The breaker of another provider must be shown as closed all the while.",
        remedy: "List each candidate's breaker in the detailed health, and export it as a gauge.",
        needs: &[
            Capability::Chat,
            Capability::Breaker,
            Capability::Health,
            Capability::Metrics,
        ],
        instances: &["plain", "streamed", "another provider"],
        spec: || {
            with_breaker(Spec::solo(), 2, LONG_MS)
                .provider("p2", Protocol::OPENAI)
                .optional_model("streams", &["p2"])
                .provider("p3", Protocol::OPENAI)
                .optional_model("other", &["p3"])
        },
        run: &brkr_06,
    },
    CaseRow {
        id: "BRKR-07",
        why: "One closed browser tab could open the breakers of a whole chain of providers (release \
              notes of https://github.com/vitobotta/llm-proxy, v2.6.4).",
        shown: "Probes meet a 400, a reset, and clients that leave, plain and streamed. Each time another probe must \
                come, until one succeeds. Then as many clients leave as would open the breaker; the first \
                provider must serve the next request.",
        remedy: "Give the permit of a probe back however the probe ends, and count only failures of the \
                 provider.",
        needs: PAIR,
        instances: &[
            "a probe that meets a 400",
            "a probe that meets a reset",
            "a probe whose client leaves",
            "a streamed probe whose client leaves",
            "clients that leave a closed breaker",
        ],
        spec: || with_breaker(Spec::pair(), 2, SHORT_MS),
        run: &brkr_07,
    },
    CaseRow {
        id: "BRKR-08",
        why: "A breaker that counted failures in a row turned a provider that failed three requests of ten \
              into one that failed nine of ten.",
        shown: "With the gateway's own breaker, a provider fails each third request, 12 of 40 in an irregular \
                order, or in bursts; 12 clients wait together for streams that never come, between \
                streams that do; clients leave after the first text. Every request that the provider \
                would serve must be served.",
        remedy: "Judge the share of failures over a window that is long enough, count a request where it \
                 began, and count no client that left.",
        needs: &[Capability::Chat, Capability::Breaker],
        instances: &[
            "plain, each third request fails",
            "streamed, each third request fails",
            "plain, Ollama, each third request fails",
            "plain, 12 of 40 fail",
            "plain, bursts of failures",
            "streamed, bursts of stalls",
            "streamed, clients leave after the first text",
        ],
        spec: || {
            let mut spec = Spec::solo();
            spec.breaker.own_rule = true;
            spec.timeouts.first_token_ms = Some(2_000);
            for (alias, provider) in PARTIAL {
                let protocol = if alias == "local" {
                    Protocol::OLLAMA
                } else {
                    Protocol::OPENAI
                };
                spec = spec
                    .provider(provider, protocol)
                    .optional_model(alias, &[provider]);
            }
            spec
        },
        run: &brkr_08,
    },
];

fn with_breaker(mut spec: Spec, failure_threshold: u32, cool_down_ms: u64) -> Spec {
    spec.breaker = BreakerSpec {
        failure_threshold,
        cool_down_ms,
        half_open_probes: 1,
        own_rule: false,
    };
    spec
}

/// Two models of one provider, `ill` and `well`, and of another provider a neighbour, `other`, and
/// a model of the same name, `namesake`.
fn neighbours() -> Spec {
    let mut spec = with_breaker(Spec::pair(), 2, LONG_MS).model("other", &["p2"]);
    for (alias, provider, model) in [
        ("ill", "p1", "m-ill"),
        ("well", "p1", "m-well"),
        ("namesake", "p2", "m-ill"),
    ] {
        let candidate = CandidateSpec {
            provider: provider.into(),
            model: model.into(),
        };
        spec.models.push(ModelSpec {
            alias: alias.into(),
            candidates: vec![candidate],
            timeouts: Timeouts::default(),
            retry: None,
            breaker: None,
            optional: false,
        });
    }
    spec
}

async fn brkr_01(ctx: &Ctx) -> CaseResult {
    // given
    const REQUESTS: usize = 13;
    ctx.stub("p2")?.answers(reply("Bern"));
    let reset = reply("lost").plan(Plan::of([Step::Reset]));
    let mut deviations = Deviations::new();
    for (name, mode, alias, stub, fact, failure) in [
        (
            "plain, status 500",
            Mode::Plain,
            "pair",
            "p1",
            "first.requests",
            error(500),
        ),
        (
            "streamed, status 503",
            Mode::Streamed,
            "streams",
            "p3",
            "stream.requests",
            error(503),
        ),
        (
            "plain, reset",
            Mode::Plain,
            "resets",
            "p4",
            "reset.requests",
            reset,
        ),
    ] {
        if !possible(ctx, mode, alias, name) {
            continue;
        }
        let judged = async {
            let stub = ctx.stub(stub)?;
            stub.answers(failure);
            // when
            let mut served = 0;
            for n in 0..REQUESTS {
                let body = ctx.prompt(alias, &prompt(&format!("request {n}")));
                let answer = mode.ask(&ctx.client, body).await?;
                served += usize::from(answer.text() == "Bern");
            }
            // then
            equal(
                "second.answers",
                "the number of answers of the second provider",
                REQUESTS,
                served,
            )?;
            seen_at_most(
                ctx,
                fact,
                "the provider whose breaker opens after three failures",
                3,
                &stub.requests(),
            )
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()?;
    ctx.reached(State::BreakerOpen);
    Ok(())
}

async fn brkr_02(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    for (name, mode, alias, stub) in [
        ("plain, 64 at once", Mode::Plain, "pair", "p1"),
        ("streamed, 64 at once", Mode::Streamed, "streams", "p3"),
    ] {
        if possible(ctx, mode, alias, name) {
            let judged = half_open(ctx, mode, alias, ctx.stub(stub)?);
            deviations.note(ctx.examine(name, judged).await)?;
        }
    }
    deviations.result()
}

async fn half_open(ctx: &Ctx, mode: Mode, alias: &str, stub: &Stub) -> CaseResult {
    // given
    stub.mount(chat().user_says("failure"), error(500)).await;
    stub.answers(reply("Paris").plan(Plan::held("probe")));
    ctx.stub("p2")?.answers(reply("Bern"));
    fail(ctx, alias, stub, 2).await?;
    // when
    let burst = || try_join_all((0..64).map(|_| mode.ask(&ctx.client, ctx.prompt(alias, "burst"))));
    let bursts = async {
        loop {
            if let Err(failure) = burst().await {
                return failure;
            }
        }
    };
    let examination = async {
        stub.held(1).await?;
        match select(pin!(stub.held(2)), pin!(burst())).await {
            Either::Left((second, _)) => second.map(drop),
            Either::Right((answers, _)) => {
                let answers = answers?;
                let waiters = answers.iter().any(|answer| answer.text() == "Bern");
                if waiters && stub.in_flight() == 1 {
                    ctx.reached(State::HalfOpenWithWaiters);
                }
                Ok(())
            }
        }
    };
    // the examination is polled first, since bursts are always ready to go on
    match select(Box::pin(examination), Box::pin(bursts)).await {
        Either::Left((examined, _)) => examined?,
        Either::Right((failure, _)) => return Err(failure),
    }
    // then
    equal(
        "probes.at_once",
        "the highest number of probes at once",
        1,
        stub.high_water(),
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
    ctx.instance("a failed probe");
    ctx.instance("a probe that succeeds");
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
    let mut deviations = Deviations::new();
    // a gateway may leave a provider alone for a short time only: nothing comes between
    for mode in MODES {
        let name = mode.of("plain", "streamed");
        let judged = refused_at_once(ctx, mode, "solo", name);
        deviations.note(ctx.examine(name, judged).await)?;
    }
    let name = "plain, both candidates open";
    if possible(ctx, Mode::Plain, "pair", name) {
        let judged = async {
            for stub in ["p2", "p3"] {
                ctx.stub(stub)?.answers(error(500));
            }
            fail(ctx, "pair", ctx.stub("p2")?, 2).await?;
            fail(ctx, "pair", ctx.stub("p3")?, 2).await?;
            if ctx.manifest.behaviour.benches_after_one_failure {
                // the first may be asked again by now
                return Ok(());
            }
            refused_at_once(ctx, Mode::Plain, "pair", name).await
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

async fn refused_at_once(ctx: &Ctx, mode: Mode, alias: &str, name: &str) -> CaseResult {
    let seen = || -> usize { ctx.stubs.values().map(|stub| stub.requests().len()).sum() };
    let failed = seen();
    // when
    let body = ctx.prompt(alias, &prompt(name));
    let answer = mode.ask(&ctx.client, body).await?;
    // then
    equal(
        "provider.requests",
        "the number of requests at the providers after their breakers have opened",
        0,
        seen() - failed,
    )?;
    equal(
        "answer.status",
        "the status while the breaker is open",
        503,
        answer.status(),
    )?;
    let wait = answer.header("retry-after");
    let sane = wait
        .and_then(seconds)
        .is_some_and(|seconds| (1..=LONG_MS / 1_000).contains(&seconds));
    holds(
        "answer.retry_after",
        sane,
        "a Retry-After header of 1 to 60 seconds",
        wait.unwrap_or("none"),
    )
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
    // then
    seen_at_most(
        ctx,
        "ill.requests",
        "the provider for the model whose breaker opens after two failures",
        2,
        &p1.calls("m-ill"),
    )?;
    let mut deviations = Deviations::new();
    for mode in MODES {
        for (whose, alias, fact, text) in [
            ("another model", "well", "neighbour_model.answer", "Paris"),
            (
                "another provider",
                "other",
                "neighbour_provider.answer",
                "Bern",
            ),
            (
                "a model of the same name",
                "namesake",
                "namesake.answer",
                "Bern",
            ),
        ] {
            let name = format!("{mode}, {whose}");
            if !possible(ctx, mode, alias, &name) {
                continue;
            }
            let judged = async {
                let answer = mode.ask(&ctx.client, ctx.prompt(alias, "capital")).await?;
                answer.is(fact, whose, text)
            };
            deviations.note(ctx.examine(&name, judged).await)?;
        }
    }
    deviations.result()
}

async fn brkr_06(ctx: &Ctx) -> CaseResult {
    // given
    const CLOSED: (&str, Option<u32>) = ("closed", Some(0));
    const OPEN: (&str, Option<u32>) = ("open", Some(2));
    let all = [
        ("plain", Mode::Plain, "solo", "p1"),
        ("streamed", Mode::Streamed, "streams", "p2"),
    ];
    let mut rows = Vec::new();
    for (name, mode, alias, provider) in all {
        if possible(ctx, mode, alias, name) {
            ctx.stub(provider)?.answers(error(500));
            rows.push((name, mode, alias, provider));
        }
    }
    let mut deviations = Deviations::new();
    for (name, mode, alias, provider) in &rows {
        let judged = async {
            equal(
                "state.before",
                "the breaker's state in health and in metrics before any failure",
                shown(CLOSED),
                reported(ctx, provider).await?,
            )?;
            // when
            if *mode == Mode::Streamed {
                let body = ctx.prompt(alias, "failure <streamed>");
                ctx.client.streamed(body).await?;
            }
            fail(ctx, alias, ctx.stub(provider)?, 2).await?;
            // then
            equal(
                "state.after",
                "the breaker's state in health and in metrics after two failures",
                shown(OPEN),
                reported(ctx, provider).await?,
            )
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    if ctx.instance_at("other", "another provider") {
        let judged = async {
            equal(
                "state.of_other",
                "the state of the breaker of a provider that has not failed",
                shown(CLOSED),
                reported(ctx, "p3").await?,
            )
        };
        deviations.note(ctx.examine("another provider", judged).await)?;
    }
    deviations.result()
}

fn shown((health, metrics): (&str, Option<u32>)) -> (String, Option<u32>) {
    (health.to_string(), metrics)
}

/// The state of the breaker of this provider: its name in health, and its number in metrics (0
/// closed, 1 half-open, 2 open).
async fn reported(ctx: &Ctx, provider: &str) -> Result<(String, Option<u32>), Failure> {
    let (paths, names) = (&ctx.manifest.paths, &ctx.manifest.metrics);
    let (health, metrics) = join(
        ctx.client.get(&paths.health),
        ctx.client.get(&paths.metrics),
    )
    .await;
    let document = health?.json();
    let breakers = document["breakers"].as_array();
    let of_provider = breakers.and_then(|breakers| {
        let named = |breaker: &&Value| breaker.to_string().contains(provider);
        breakers.iter().find(named)
    });
    let health = of_provider
        .and_then(|breaker| breaker["state"].as_str())
        .unwrap_or("not reported")
        .to_string();
    let metrics = metrics?.text();
    let line = metrics.lines().find(|line| {
        line.split('{').next() == Some(&names.breaker_state) && line.contains(provider)
    });
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
    for name in [
        "a probe that meets a 400",
        "a probe that meets a reset",
        "a probe whose client leaves",
        "clients that leave a closed breaker",
    ] {
        ctx.instance(name);
    }
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
    asked_and_left(ctx, Mode::Plain, p1, 1).await?;
    asked_until(
        ctx,
        "hang.probe_after_left",
        "a probe after one whose client left, which meets a 400 once more",
        |_| !p1.calls("meets a 400 once more").is_empty(),
    )
    .await?;
    let mut left = 1;
    if ctx.instance_if(Capability::Stream, "a streamed probe whose client leaves") {
        left += 1;
        asked_and_left(ctx, Mode::Streamed, p1, left).await?;
    }
    asked_until(
        ctx,
        "hang.served_after_left",
        "an answer after the probes whose clients left",
        |answer| answer.content() == "Paris",
    )
    .await?;
    for n in 1..=2 {
        asked_and_left(ctx, Mode::Plain, p1, left + n).await?;
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

/// The aliases of BRKR-08 beside `solo`, each with a provider of its own.
const PARTIAL: [(&str, &str); 6] = [
    ("streams", "p2"),
    ("share", "p3"),
    ("bursts", "p4"),
    ("stalls", "p5"),
    ("leaves", "p6"),
    ("local", "p7"),
];

/// Prompts that the provider serves, and such that it does not.
const SERVED: &str = "a request that is served";
const FAILS: &str = "a request that fails";

/// 12 of 40 requests, in the irregular order of a linear congruential generator, of which no three
/// in a row fail.
fn irregular() -> Vec<bool> {
    let mut state: u64 = 174;
    let mut next = || {
        state = (state * 1_103_515_245 + 12_345) % (1 << 31);
        (state >> 16) % 10 < 3
    };
    (0..40).map(|_| next()).collect()
}

async fn brkr_08(ctx: &Ctx) -> CaseResult {
    let thirds: Vec<bool> = (0..30).map(|n| n % 3 == 2).collect();
    let burst: Vec<bool> = (0..20).map(|n| n >= 14).collect();
    let rows = [
        (
            "plain, each third request fails",
            Mode::Plain,
            "solo",
            "p1",
            "third.answers",
            thirds.clone(),
        ),
        (
            "streamed, each third request fails",
            Mode::Streamed,
            "streams",
            "p2",
            "third.answers",
            thirds.clone(),
        ),
        (
            "plain, Ollama, each third request fails",
            Mode::Plain,
            "local",
            "p7",
            "third.answers",
            thirds,
        ),
        (
            "plain, 12 of 40 fail",
            Mode::Plain,
            "share",
            "p3",
            "share.answers",
            irregular(),
        ),
        (
            "plain, bursts of failures",
            Mode::Plain,
            "bursts",
            "p4",
            "bursts.answers",
            burst.repeat(2),
        ),
    ];
    let left = async {
        let name = "streamed, clients leave after the first text";
        if !possible(ctx, Mode::Streamed, "leaves", name) {
            return Ok(());
        }
        ctx.examine(name, left_early(ctx)).await
    };
    let mut partly = Vec::new();
    for (name, mode, alias, stub, fact, fails) in rows {
        if possible(ctx, mode, alias, name) {
            let stub = ctx.stub(stub)?;
            partly.push(async move {
                let judged = partly_served(ctx, mode, alias, stub, fact, &fails);
                ctx.examine(name, judged).await
            });
        }
    }
    let beside = async {
        let name = "streamed, bursts of stalls";
        if !possible(ctx, Mode::Streamed, "stalls", name)
            || !ctx.instance_if(Capability::FirstTokenTimeout, name)
        {
            return Ok(());
        }
        ctx.examine(name, stalling(ctx)).await
    };
    let (left, partly, beside) = join3(left, join_all(partly), beside).await;
    let mut deviations = Deviations::new();
    for judged in [left].into_iter().chain(partly).chain([beside]) {
        deviations.note(judged)?;
    }
    deviations.result()
}

/// At least as many requests must be served as the provider serves.
fn as_many(fact: &str, served: usize, directly: usize, of: usize) -> CaseResult {
    holds(
        fact,
        served >= directly,
        format!("at least {directly} of {of} requests served, as many as the provider serves"),
        format_args!("{served} of {of}"),
    )
}

/// Requests come one after the other, and the provider fails those of the list: by a 500, a 503 or
/// a reset.
async fn partly_served(
    ctx: &Ctx,
    mode: Mode,
    alias: &str,
    stub: &Stub,
    fact: &str,
    fails: &[bool],
) -> CaseResult {
    // given
    stub.mount(chat().user_says(SERVED), reply("Paris")).await;
    for (failure, answer) in [
        (0, error(500)),
        (1, error(503)),
        (2, reply("lost").plan(Plan::of([Step::Reset]))),
    ] {
        let asked = chat().user_says(&format!("{FAILS} <{failure}>"));
        stub.mount(asked, answer.optional()).await;
    }
    // when
    let mut served = 0;
    let mut failures = 0;
    for (n, fails) in fails.iter().enumerate() {
        let what = if *fails {
            failures += 1;
            format!("{FAILS} <{}> {n}", failures % 3)
        } else {
            format!("{SERVED} {n}")
        };
        let answer = mode.ask(&ctx.client, ctx.prompt(alias, &what)).await?;
        served += usize::from(answer.status() == 200 && answer.text() == "Paris");
    }
    // then
    as_many(fact, served, fails.len() - failures, fails.len())
}

/// 12 clients ask again and again, and all of them come to wait for a stream that never comes.
async fn stalling(ctx: &Ctx) -> CaseResult {
    const CLIENTS: usize = 12;
    const EACH: usize = 2;
    // given
    let stub = ctx.stub("p5")?;
    let stall = reply("never").plan(Plan::of([Step::Head, Step::Stall]));
    stub.mount(chat().user_says(FAILS), stall).await;
    stub.answers(reply("Paris"));
    let (mut served, mut asked) = (0, 0);
    {
        for (round, stalls) in [false, true, false].into_iter().enumerate() {
            // when
            let one = |client: usize, n: usize| {
                let what = if stalls { FAILS } else { SERVED };
                let body = ctx.prompt("stalls", &format!("{what} {round} {client} {n}"));
                async move { ctx.client.streamed(body).await }
            };
            let most = if stalls { 1 } else { EACH };
            let clients = (0..CLIENTS).map(|client| async move {
                let mut served = 0;
                for n in 0..most {
                    let stream = one(client, n).await?;
                    served += usize::from(stream.status == 200 && stream.text == "Paris");
                }
                Ok::<usize, Failure>(served)
            });
            let of_all: usize = try_join_all(clients).await?.into_iter().sum();
            if !stalls {
                served += of_all;
                asked += CLIENTS * EACH;
            }
        }
    }
    // then
    as_many("stalls.answers", served, asked, asked)
}

/// Clients leave their streams after the first text, one after the other.
async fn left_early(ctx: &Ctx) -> CaseResult {
    const LEAVING: usize = 12;
    // given
    let stub = ctx.stub("p6")?;
    let begun = reply("").tokens(["Par", "is"]).plan(Plan::of([
        Step::Head,
        Step::Events(2),
        Step::Hold("nobody opens this".into()),
    ]));
    stub.mount(chat().user_says("leaves"), begun).await;
    stub.answers(reply("Paris"));
    let (mut served, mut asked) = (0, 0);
    for n in 1..=LEAVING {
        // when
        let body = ctx.prompt("leaves", &format!("leaves <{n}>"));
        let mut stream = ctx.client.stream(body).await?;
        if stream.status == 200 {
            stream.text_of(3).await?;
            stream.leave();
            let closed = stub.peer_closed(n).await;
            closed.map_err(unexercised_if_hung(|| {
                "the gateway reads on for a client that left, which CANC-02 judges".into()
            }))?;
        }
        if n % 6 == 0 {
            let body = ctx.prompt("leaves", &format!("{SERVED} {n}"));
            let answer = ctx.client.chat(body).await?;
            served += usize::from(answer.content() == "Paris");
            asked += 1;
        }
    }
    // then
    as_many("left.answers", served, asked, asked)
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
async fn asked_and_left(ctx: &Ctx, mode: Mode, stub: &Stub, n: usize) -> CaseResult {
    let asking = async {
        loop {
            if let Err(failure) = mode.ask(&ctx.client, ctx.prompt("pair", "leaving")).await {
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
    let open = past_the_bench(ctx, Box::pin(failed)).await;
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
