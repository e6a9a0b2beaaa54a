//! TIME, of deadlines: one over everything that a request does, and whose own it is.
//!
//! That a time-out is not the default is shown without measuring: a request under the default was asked before, and its client is still
//! without an answer. Each alias is asked twice in turn, so that where its own time-out is ignored the second answer comes a whole default
//! behind the clock's.

use std::pin::pin;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Either, Shared, select, try_join_all};
use gauntlet_harness::case::{CaseResult, Ctx, Failure, holds};
use gauntlet_harness::client::{Client, Reply};
use gauntlet_harness::gate::at_least;
use gauntlet_harness::llm::{error, reply, sequence};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use serde_json::Value;

use crate::cases::CaseRow;
use crate::cases::support::{broken, refused, took};

/// The default of every time-out, which is the clock's: less than the short hang guard of defects.
const DEFAULT: Option<u64> = Some(5_000);
/// An alias's own, as told to the gateway and as a bound.
const OWN: Option<u64> = Some(500);
const OWN_BOUND: Duration = Duration::from_millis(500);

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "TIME-06",
        why: "Three silent providers in a chain took three times the limit: 95 s where 30 s were configured (failoverbench, S06).",
        shown: "Three candidates fail at once and then never answer, with four attempts each and a limit of a second. Two requests in turn must end \
                before one asked earlier whose limit is five.",
        remedy: "Compute one deadline when the request comes, and give each attempt what is left of it.",
        needs: &[
            Capability::Chat,
            Capability::Fallback,
            Capability::TotalDeadline,
        ],
        spec: chain_of_three,
        run: &time_06,
    },
    CaseRow {
        id: "TIME-07",
        why: "One limit for a small model and for a reasoning one is wrong for both; a limit that is read and not used is worse.",
        shown: "For each kind of time-out that the gateway declares a provider that is late in this way, behind a model with half a second of its \
                own; another whose own it is. Each is given up no earlier, and before a request asked earlier under the default.",
        remedy: "Resolve each time-out from the model, then the provider, then the default.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::TimeoutPerModel,
        ],
        spec: late_in_every_way,
        run: &time_07,
    },
    CaseRow {
        id: "TIME-08",
        why: "Who has a second left for an answer gains nothing from one that comes later, and the provider is paid for it.",
        shown: "A client asks with a deadline of 500 ms, another with a minute where 500 ms are configured; both end before a request asked earlier \
                under the default.",
        remedy: "Take the smaller of the client's deadline and the configured one.",
        needs: &[Capability::Chat, Capability::ClientDeadline],
        spec: || {
            clocked(Spec::solo().model("quick", &["p1"])).model_timeouts(
                "quick",
                Timeouts {
                    total_ms: OWN,
                    ..Timeouts::default()
                },
            )
        },
        run: &time_08,
    },
];

async fn time_06(ctx: &Ctx) -> CaseResult {
    // given
    for name in ["p1", "p2", "p3"] {
        ctx.stub(name)?.answers(sequence([
            error(503),
            reply("never").plan(Plan::held("late")),
        ]));
    }
    let clock = asked_under_the_default(ctx).await?;
    for n in 1..=2 {
        // when
        let body = ctx.prompt("chain", &format!("hello <{n}>"));
        // then
        let ended = before(
            &clock,
            "deadline.whole",
            "chain",
            given_up(&ctx.client, body),
        )
        .await;
        // a later candidate that was asked too late, or the first one too often
        let fallbacks = ctx.stub("p2")?.requests().len() + ctx.stub("p3")?.requests().len();
        ended.map_err(|failure| multiplied_by(failure, fallbacks > 0))?;
        ctx.stub("p1")?.seen(n).await?;
    }
    Ok(())
}

async fn time_07(ctx: &Ctx) -> CaseResult {
    // given
    for (name, late, ..) in KINDS {
        match late {
            [] => ctx.stub(name)?.listen(Listen::NeverAccept).await?,
            steps => ctx.stub(name)?.answers(
                reply("")
                    .tokens(["Par", "is"])
                    .plan(Plan::of(steps.iter().cloned())),
            ),
        }
    }
    let clock = asked_under_the_default(ctx).await?;
    let declared = KINDS
        .iter()
        .filter(|(.., needs)| ctx.manifest.capabilities.contains(needs));
    // when
    let asked = declared.map(|(alias, ..)| {
        let clock = &clock;
        async move {
            let fact = |fact: &str| format!("{fact}.{}", alias.replace('-', "_"));
            for label in ["first", "second"].map(|time| format!("{alias}, {time}")) {
                let mut body = ctx.prompt(alias, &label);
                body["stream"] = matches!(*alias, "first-token" | "idle").into();
                // then
                let client = ctx.client.labelled(&label);
                let asked = given_up(&client, body);
                before(clock, &fact("own_timeout"), alias, asked).await?;
                at_least(
                    &fact("lower_bound"),
                    &format!("the answer of {alias}"),
                    took(ctx, &label),
                    OWN_BOUND,
                )?;
            }
            Ok(())
        }
    });
    try_join_all(asked).await.map(drop)
}

async fn time_08(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p1")?
        .answers(reply("never").plan(Plan::held("late")));
    let clock = asked_under_the_default(ctx).await?;
    for (fact, alias, deadline) in [
        ("deadline.of_client", "solo", "500"),
        ("deadline.configured", "quick", "60000"),
    ]
    .into_iter()
    .flat_map(|each| [each; 2])
    {
        // when
        let client = ctx.client.with_header("x-request-timeout-ms", deadline);
        let what = format!("{alias}, to a client with a deadline of {deadline} ms,");
        // then
        before(
            &clock,
            fact,
            &what,
            given_up(&client, ctx.prompt(alias, "hello")),
        )
        .await?;
    }
    Ok(())
}

/// The same violation, with the fact that says what the deadline was multiplied by.
fn multiplied_by(failure: Failure, candidates: bool) -> Failure {
    match failure {
        Failure::Violated {
            fact,
            expected,
            observed,
            mode,
        } if fact == "deadline.whole" => Failure::Violated {
            fact: if candidates {
                "deadline.over_candidates"
            } else {
                "deadline.over_attempts"
            }
            .into(),
            expected,
            observed,
            mode,
        },
        other => other,
    }
}

/// The ways of being late: the alias, what its provider does (nothing: it never accepts), and what a gateway declares that has a time-out
/// for it. The last one's time-out is the provider's own.
const KINDS: [(&str, &[Step], Capability); 5] = [
    ("connect", &[], Capability::ConnectTimeout),
    (
        "first-token",
        &[Step::Head, Step::Stall],
        Capability::FirstTokenTimeout,
    ),
    (
        "idle",
        &[Step::Head, Step::Events(2), Step::Stall],
        Capability::IdleTimeout,
    ),
    ("total", &[Step::Stall], Capability::TimeoutPerModel),
    ("of-provider", &[Step::Stall], Capability::TimeoutPerModel),
];

/// A provider and an alias for each kind of time-out.
fn late_in_every_way() -> Spec {
    let spec = KINDS.iter().fold(Spec::default(), |spec, (name, ..)| {
        spec.provider(name, Protocol::OpenAi).model(name, &[name])
    });
    let none = Timeouts::default();
    clocked(spec)
        .model_timeouts(
            "connect",
            Timeouts {
                connect_ms: OWN,
                ..none
            },
        )
        .model_timeouts(
            "first-token",
            Timeouts {
                first_token_ms: OWN,
                ..none
            },
        )
        .model_timeouts(
            "idle",
            Timeouts {
                idle_ms: OWN,
                ..none
            },
        )
        .model_timeouts(
            "total",
            Timeouts {
                total_ms: OWN,
                ..none
            },
        )
        .provider_timeouts(
            "of-provider",
            Timeouts {
                total_ms: OWN,
                ..none
            },
        )
}

/// Three providers behind one alias, four attempts each: a deadline for each of them would come to more than the default.
fn chain_of_three() -> Spec {
    let spec = ["p1", "p2", "p3"]
        .iter()
        .fold(Spec::default(), |spec, name| {
            spec.provider(name, Protocol::OpenAi)
        });
    let mut spec = clocked(spec.model("chain", &["p1", "p2", "p3"]));
    spec.retry.max_attempts = 4;
    spec.model_timeouts(
        "chain",
        Timeouts {
            total_ms: Some(1_000),
            ..Timeouts::default()
        },
    )
}

/// With every default time-out alike, and a provider of its own for the request that runs under them.
fn clocked(spec: Spec) -> Spec {
    let timeouts = Timeouts {
        connect_ms: DEFAULT,
        first_token_ms: DEFAULT,
        idle_ms: DEFAULT,
        total_ms: DEFAULT,
    };
    Spec {
        timeouts,
        ..spec
            .provider("clock", Protocol::OpenAi)
            .model("clock", &["clock"])
    }
}

/// The answer to a request under the default time-outs, whose provider never answers: the clock of what is asked later.
type Clock = Shared<BoxFuture<'static, Result<Reply, Failure>>>;

async fn asked_under_the_default(ctx: &Ctx) -> Result<Clock, Failure> {
    let provider = ctx.stub("clock")?;
    provider.answers(reply("never").plan(Plan::held("clock")));
    let asked = ctx
        .client
        .labelled("clock")
        .send_chat(ctx.prompt("clock", "hello"))
        .await?;
    provider.held(1).await?;
    Ok(asked.reply().boxed().shared())
}

/// What is asked ends before the clock's client has its answer.
async fn before(
    clock: &Clock,
    fact: &str,
    alias: &str,
    asked: impl Future<Output = CaseResult>,
) -> CaseResult {
    match select(pin!(asked), clock.clone()).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => holds(
            fact,
            false,
            format!(
                "the answer of {alias} before that of a request asked earlier under the default"
            ),
            "it came after",
        ),
    }
}

/// Asks, and wants to be told that there is no answer: by the status, or within the stream.
async fn given_up(client: &Client, body: Value) -> CaseResult {
    if body["stream"] != true {
        return refused(client.chat(body).await?.status);
    }
    let stream = client.streamed(body).await?;
    if stream.status == 200 {
        broken(&stream)
    } else {
        refused(stream.status)
    }
}
