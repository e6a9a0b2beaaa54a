//! TIME, of deadlines: one deadline covers everything that a request does, and each owner's limit
//! counts. Nothing is measured to show that a timeout is not the default: a request under the
//! default was sent before, and its client still has no answer. Each alias is asked twice, so that
//! where its own timeout is ignored the second answer comes a whole default after that request's.

use std::pin::pin;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Either, Shared, select, try_join_all};
use gauntlet_harness::case::{CaseResult, Ctx, Failure, holds};
use gauntlet_harness::client::{Client, Reply};
use gauntlet_harness::gate::{at_least, hang_guard, with_hang_guard};
use gauntlet_harness::llm::{error, reply, sequence};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use serde_json::Value;

use crate::cases::CaseRow;
use crate::cases::support::{broken, most_attempts, refused, took};

/// The default of every timeout in milliseconds: less than the short hang guard of defects.
const DEFAULT: Option<u64> = Some(5_000);
/// An alias's own timeout in milliseconds, and the same as a bound.
const OWN: Option<u64> = Some(500);
const OWN_BOUND: Duration = Duration::from_millis(500);

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "TIME-06",
        why: "Three silent providers in a chain took three times the limit: 95 s where 30 s were \
              configured (failoverbench, S06).",
        shown: "Three candidates never answer (where retries are declared, each fails once before, and \
                has four attempts), with a limit of one second. Two requests, one after the other, must end before an earlier request \
                whose limit is five seconds.",
        remedy: "Compute one deadline when the request arrives, and give each attempt what is left of \
                 it.",
        needs: &[
            Capability::Chat,
            Capability::Fallback,
            Capability::TotalDeadline,
        ],
        instances: &[],
        spec: chain_of_three,
        run: &time_06,
    },
    CaseRow {
        id: "TIME-07",
        why: "One limit for a small model and a reasoning model is wrong for both, and a limit that \
              is read and never used is worse.",
        shown: "For each kind of timeout that the target declares, a provider is late in that way, \
                behind a model with 500 ms of its own; for one more, the 500 ms are the provider's. \
                Each is given up no earlier, and before an earlier request under the default ends.",
        remedy: "Resolve each timeout from the model, then from the provider, then from the default.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::TimeoutPerModel,
        ],
        instances: &[],
        spec: late_in_every_way,
        run: &time_07,
    },
    CaseRow {
        id: "TIME-08",
        why: "A client that has a second left gains nothing from a later answer, and the provider is \
              still paid for it.",
        shown: "One client asks with a deadline of 500 ms, another with one minute where 500 ms are \
                configured. Both requests must end before an earlier request under the default.",
        remedy: "Take the smaller of the client's deadline and the configured one.",
        needs: &[Capability::Chat, Capability::ClientDeadline],
        instances: &[],
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
    let held = || reply("never").plan(Plan::held("late"));
    for name in ["p1", "p2", "p3"] {
        // without retries a failure would be all that a provider has time for
        let answers = if ctx.declares(Capability::Retry) {
            sequence([error(503), held()])
        } else {
            held()
        };
        // the deadline may pass before a later candidate is asked
        ctx.stub(name)?.answers(match name {
            "p1" => answers,
            _ => answers.optional(),
        });
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
        // either a later candidate was asked too late, or the first one too often
        let fallbacks = ctx.stub("p2")?.requests().len() + ctx.stub("p3")?.requests().len();
        ended.map_err(|failure| multiplied_by(failure, fallbacks > 0))?;
    }
    ctx.stub("p1")?.seen(1).await.map(|_| ())
}

async fn time_07(ctx: &Ctx) -> CaseResult {
    // each timeout passes once for every attempt that is built in, that of the clock as well; a
    // whole case is bounded by four guards
    let attempts = most_attempts(ctx, 1).unwrap_or(1).min(3) as u32;
    with_hang_guard(attempts * hang_guard(), own_timeouts(ctx)).await
}

async fn own_timeouts(ctx: &Ctx) -> CaseResult {
    // given
    for (name, late, needs) in KINDS {
        if !ctx.declares(needs) {
            continue;
        }
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
    let declared = KINDS.iter().filter(|(.., needs)| ctx.declares(*needs));
    // when
    let asked = declared.map(|(alias, late, _)| {
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
                // a gateway may answer at once for a provider that it leaves alone after a failure;
                // a stub that accepts no connection cannot see whether it is asked again
                let was_asked = match late {
                    [] => label.ends_with("first"),
                    _ => !ctx.stub(alias)?.calls(&label).is_empty(),
                };
                if !was_asked {
                    continue;
                }
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

/// The same violation, by the fact that names what the deadline was multiplied by.
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

/// The ways of being late: the alias, what its provider does (an empty plan never accepts), and
/// the capability of a gateway that has a timeout for it. The last timeout is the provider's own.
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

/// A provider and an alias for each kind of timeout.
fn late_in_every_way() -> Spec {
    let spec = KINDS.iter().fold(Spec::default(), |spec, (name, ..)| {
        spec.provider(name, Protocol::OPENAI).model(name, &[name])
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

/// Three providers behind one alias with four attempts each: one deadline for each would add up to
/// more than the default.
fn chain_of_three() -> Spec {
    let spec = ["p1", "p2", "p3"]
        .iter()
        .fold(Spec::default(), |spec, name| {
            spec.provider(name, Protocol::OPENAI)
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

/// The specification with equal default timeouts, and with a provider of its own for the request
/// that runs under them.
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
            .provider("clock", Protocol::OPENAI)
            .model("clock", &["clock"])
    }
}

/// The answer to a request under the default timeouts, whose provider never answers: the clock of
/// the later requests.
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

/// The later request must end before the clock's client has its answer.
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

/// Sends the request; the client must get an error, by the status or within the stream.
async fn given_up(client: &Client, body: Value) -> CaseResult {
    if body["stream"] != true {
        return refused(client.chat(body).await?.status);
    }
    broken(&client.streamed(body).await?)
}
