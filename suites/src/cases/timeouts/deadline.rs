//! TIME, of deadlines: one deadline covers everything that a request does, and each owner's limit
//! counts. Nothing is measured to show that a timeout is not the default: a stream under the
//! default was begun before, and its client still has no end. It has passed its commit point, so
//! that no gateway makes a second attempt at it and lengthens the default by that. Each alias is
//! asked twice, so that where its own timeout is ignored the second answer comes a whole default
//! after that stream's.

use std::pin::pin;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Either, Shared, select};
use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds};
use gauntlet_harness::gate::{at_least, hang_guard, with_hang_guard};
use gauntlet_harness::llm::{chat, error, reply, sequence};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;

use crate::cases::CaseRow;
use crate::cases::support::{
    applies, given_up, is_streamed, marked, most_attempts, renamed, silent_if, together, took,
};

/// The default of every timeout in milliseconds: less than the short hang guard of defects.
const DEFAULT: Option<u64> = Some(5_000);
/// An alias's own timeout in milliseconds, and the same as a bound.
const OWN: Option<u64> = Some(500);
const OWN_BOUND: Duration = Duration::from_millis(500);
/// A deadline that may pass once before the default does, and not twice, in milliseconds. Two
/// thirds of it and the whole of it are longer than the default, too.
const ONCE: u64 = 3_200;
/// The deadline of an alias whose first candidates are silent, in milliseconds.
const SPLIT: Option<u64> = Some(4_000);

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "TIME-06",
        why: "Three silent providers in a chain took three times the limit: 95 s where 30 s were \
              configured (failoverbench, S06).",
        shown: "Three candidates never answer (where retries are declared, each fails once before, and \
                has four attempts), or the last one streams without an end. The requests must end \
                before an earlier stream whose limit is less than two such limits.",
        remedy: "Compute one deadline when the request arrives, and give each attempt what is left of \
                 it.",
        needs: &[
            Capability::Chat,
            Capability::Fallback,
            Capability::TotalDeadline,
            Capability::TimeoutPerModel,
        ],
        instances: &[
            "candidates, plain",
            "candidates, streamed",
            "attempts, plain",
            "attempts, streamed",
            "last candidate without an end, streamed",
        ],
        spec: chain_of_three,
        run: &time_06,
    },
    CaseRow {
        id: "TIME-07",
        why: "One limit for a small model and a reasoning model is wrong for both, and a limit that \
              is read and never used is worse.",
        shown: "For each kind of timeout that the target declares, a provider is late in that way, \
                behind a model with 500 ms of its own; for others, the 500 ms are the provider's, and \
                the provider is the second candidate. Each is given up no earlier, and before an \
                earlier stream under the default ends.",
        remedy: "Resolve each timeout from the model, then from the provider, then from the default.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::TimeoutPerModel,
        ],
        instances: &[
            "connect timeout, plain",
            "connect timeout, streamed",
            "first-token timeout, streamed",
            "idle timeout, streamed",
            "total timeout, plain",
            "total timeout, streamed",
            "timeout of the provider, plain",
            "idle timeout of the provider, streamed",
            "idle timeout of the last candidate, streamed",
        ],
        spec: late_in_every_way,
        run: &time_07,
    },
    CaseRow {
        id: "TIME-08",
        why: "A client that has a second left gains nothing from a later answer, and the provider is \
              still paid for it.",
        shown: "One client asks with a deadline of 500 ms, another with one minute where 500 ms are \
                configured, plain, streamed, and for a stream without an end. One more gives a \
                deadline to an alias with three silent candidates. All must end before an earlier \
                stream under the default.",
        remedy: "Take the smaller of the client's deadline and the configured one.",
        needs: &[Capability::Chat, Capability::ClientDeadline],
        instances: &[
            "shorter, plain",
            "shorter, streamed",
            "shorter, streamed without an end",
            "longer, plain",
            "longer, streamed",
            "three candidates, plain",
            "three candidates, streamed",
        ],
        spec: || {
            let spec = clocked(Spec::solo().model("quick", &["p1"]));
            let spec = chained(spec, &["c1", "c2", "c3"]);
            spec.model_timeouts("quick", total(OWN))
        },
        run: &time_08,
    },
    CaseRow {
        id: "TIME-13",
        why: "A first provider that is silent used up the whole deadline, and the healthy second one \
              was never asked.",
        shown: "The first of two and of three candidates, and the first two of three, hold their \
                answers to a plain request. No timeout is near but the total. The next candidate \
                must answer while they still hold them.",
        remedy: "Give each candidate a share of the deadline that leaves time for those after it.",
        needs: &[
            Capability::Chat,
            Capability::Fallback,
            Capability::TotalDeadline,
        ],
        instances: &[
            "two candidates",
            "three candidates, the first silent",
            "three candidates, the first two silent",
            "two candidates, headers and then silence",
            "two candidates, Ollama first",
        ],
        spec: || {
            // no timeout is shorter than the total
            let timeouts = Timeouts {
                connect_ms: None,
                first_token_ms: SPLIT,
                idle_ms: SPLIT,
                total_ms: SPLIT,
            };
            let spec = Spec::pair()
                .provider("p3", Protocol::OPENAI)
                .model("three", &["p1", "p3", "p2"])
                .provider("p4", Protocol::OLLAMA)
                .optional_model("local", &["p4", "p2"]);
            ["pair", "three", "local"]
                .iter()
                .fold(spec, |spec, alias| spec.model_timeouts(alias, timeouts))
        },
        run: &time_13,
    },
];

async fn time_06(ctx: &Ctx) -> CaseResult {
    // given
    let held = || reply("never").plan(Plan::held("late"));
    let endless = || {
        let forever = Step::RepeatForever { every_ms: 20 };
        reply("")
            .tokens(["and "; 3])
            .plan(Plan::of([Step::Head, Step::Events(3), forever]))
    };
    let instances = [
        "candidates, plain",
        "candidates, streamed",
        "attempts, plain",
        "attempts, streamed",
        "last candidate without an end, streamed",
    ];
    let instances = instances.into_iter().filter(|name| applies(ctx, name));
    let instances: Vec<&str> = instances.collect();
    for name in ["p1", "p2", "p3"] {
        let stub = ctx.stub(name)?;
        for instance in &instances {
            let answer = match *instance {
                _ if instance.contains("without an end") && name == "p3" => endless(),
                // without a failure before, there is no other attempt
                _ if instance.starts_with("attempts") => sequence([error(503), held()]),
                _ => held(),
            };
            // the deadline may pass before a later candidate is asked
            let answer = match name {
                "p1" => answer,
                _ => answer.optional(),
            };
            let says = chat().user_says(&marked(instance));
            stub.mount(says, answer).await;
        }
    }
    let clock = begun_under_the_default(ctx).await?;
    let mut deviations = Deviations::new();
    // when
    let examined = instances.iter().map(|name| {
        let examined = async {
            let body = ctx.prompt("chain", &marked(name));
            let asked = given_up(&ctx.client, body, is_streamed(name), false);
            // then
            let ended = before(&clock, "deadline.whole", name, asked).await;
            // either a later candidate was asked too late, or the first one too often
            let asked_at = |provider| ctx.stub(provider).map(|one| one.calls(&marked(name)).len());
            let fallbacks = asked_at("p2")? + asked_at("p3")?;
            let over = match *name {
                _ if name.contains("without an end") => "deadline.over_stream",
                _ if fallbacks > 0 => "deadline.over_candidates",
                _ => "deadline.over_attempts",
            };
            ended.map_err(|failure| renamed(failure, "deadline.whole", over))
        };
        (*name, examined)
    });
    together(ctx, &mut deviations, examined).await?;
    deviations.result()
}

async fn time_07(ctx: &Ctx) -> CaseResult {
    // each timeout passes once for every attempt that is built in; a whole case is bounded by four
    // guards
    let attempts = most_attempts(ctx, 1).unwrap_or(1).min(3) as u32;
    with_hang_guard(attempts * hang_guard(), own_timeouts(ctx)).await
}

async fn own_timeouts(ctx: &Ctx) -> CaseResult {
    // given
    let kinds: Vec<&Kind> = KINDS
        .iter()
        .filter(|kind| ctx.instance_if(kind.needs, kind.instance) && applies(ctx, kind.instance))
        .collect();
    for kind in &kinds {
        let stub = ctx.stub(kind.alias)?;
        if kind.late.is_empty() {
            stub.listen(Listen::NeverAccept).await?;
            continue;
        }
        stub.answers(
            reply("")
                .tokens(["Par", "is"])
                .plan(Plan::of(kind.late.iter().cloned())),
        );
    }
    if ctx.declares(Capability::Fallback) {
        // a gateway may leave it alone after its first failure
        ctx.stub("down")?.answers(error(503).optional());
    }
    let clock = begun_under_the_default(ctx).await?;
    let mut deviations = Deviations::new();
    // when
    let examined = kinds.iter().map(|kind| {
        let examined = async {
            let fact = |fact: &str| format!("{fact}.{}", kind.alias.replace('-', "_"));
            for label in ["first", "second"].map(|time| format!("{}, {time}", kind.instance)) {
                let body = ctx.prompt(kind.alias, &marked(&label));
                // then
                let client = ctx.client.labelled(&label);
                let asked = given_up(&client, body, is_streamed(kind.instance), false);
                before(&clock, &fact("own_timeout"), kind.instance, asked).await?;
                // a gateway may answer at once for a provider that it leaves alone after a failure;
                // a stub that accepts no connection cannot see whether it is asked again
                let was_asked = match kind.late {
                    [] => label.ends_with("first"),
                    _ => !ctx.stub(kind.alias)?.calls(&marked(&label)).is_empty(),
                };
                if !was_asked {
                    continue;
                }
                at_least(
                    &fact("lower_bound"),
                    &format!("the answer of {}", kind.alias),
                    took(ctx, &label),
                    OWN_BOUND,
                )?;
            }
            Ok(())
        };
        (kind.instance, examined)
    });
    together(ctx, &mut deviations, examined).await?;
    deviations.result()
}

async fn time_08(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let forever = Step::RepeatForever { every_ms: 20 };
    let endless = Plan::of([Step::Head, Step::Events(3), forever]);
    let instances = [
        ("shorter, plain", "deadline.of_client", "solo", 500),
        ("shorter, streamed", "deadline.of_client", "solo", 500),
        (
            "shorter, streamed without an end",
            "deadline.of_client",
            "solo",
            500,
        ),
        ("longer, plain", "deadline.configured", "quick", 60_000),
        ("longer, streamed", "deadline.configured", "quick", 60_000),
        (
            "three candidates, plain",
            "deadline.over_candidates",
            "chain",
            ONCE,
        ),
        (
            "three candidates, streamed",
            "deadline.over_candidates",
            "chain",
            ONCE,
        ),
    ];
    let declared = |alias: &str, name: &str| match alias {
        "quick" => ctx.instance_if(Capability::TimeoutPerModel, name),
        _ => true,
    };
    let instances: Vec<_> = instances
        .into_iter()
        .filter(|(name, _, alias, _)| declared(alias, name) && applies(ctx, name))
        .collect();
    for (name, _, alias, _) in &instances {
        let answer = match *name {
            _ if name.contains("without an end") => {
                reply("").tokens(["and "; 3]).plan(endless.clone())
            }
            _ => reply("never").plan(Plan::held("late")),
        };
        let says = || chat().user_says(&marked(name));
        if *alias != "chain" {
            p1.mount(says(), answer).await;
            continue;
        }
        ctx.stub("c1")?.mount(says(), answer.clone()).await;
        for later in ["c2", "c3"] {
            let answer = answer.clone().optional();
            ctx.stub(later)?.mount(says(), answer).await;
        }
    }
    let clock = begun_under_the_default(ctx).await?;
    let mut deviations = Deviations::new();
    // when
    let examined = instances.iter().map(|(name, fact, alias, deadline)| {
        let client = ctx
            .client
            .with_header("x-request-timeout-ms", &deadline.to_string());
        let clock = &clock;
        let examined = async move {
            // a deadline that may pass once is asked for once
            let times = if *alias == "chain" { 1 } else { 2 };
            for _ in 0..times {
                let what = format!("{name}, to a client with a deadline of {deadline} ms,");
                let body = ctx.prompt(alias, &marked(name));
                let asked = given_up(&client, body, is_streamed(name), false);
                // then
                before(clock, fact, &what, asked).await?;
            }
            Ok(())
        };
        (*name, examined)
    });
    together(ctx, &mut deviations, examined).await?;
    deviations.result()
}

async fn time_13(ctx: &Ctx) -> CaseResult {
    // given
    let held = || reply("too late").plan(Plan::held("late"));
    let begun = || {
        let steps = [Step::Head, Step::Hold("late".into()), Step::Rest];
        reply("too late").plan(Plan::of(steps))
    };
    ctx.stub("p2")?.answers(reply("Paris"));
    let instances = [
        ("two candidates", "pair", vec!["p1"]),
        ("three candidates, the first silent", "three", vec!["p1"]),
        (
            "three candidates, the first two silent",
            "three",
            vec!["p1", "p3"],
        ),
        (
            "two candidates, headers and then silence",
            "pair",
            vec!["p1"],
        ),
        ("two candidates, Ollama first", "local", vec!["p4"]),
    ];
    let instances: Vec<_> = instances
        .into_iter()
        .filter(|(name, ..)| applies(ctx, name))
        .collect();
    for (name, _, silent) in &instances {
        for provider in ["p1", "p3", "p4"] {
            let answer = match silent.contains(&provider) {
                true if name.contains("headers") => begun(),
                true => held(),
                false if provider == "p3" => reply("Paris"),
                false => continue,
            };
            let says = chat().user_says(&marked(name));
            ctx.stub(provider)?.mount(says, answer).await;
        }
    }
    let mut deviations = Deviations::new();
    // when
    let examined = instances.iter().map(|(name, alias, silent)| {
        let examined = async {
            let body = ctx.prompt(alias, &marked(name));
            let answer = ctx.client.chat(body).await?;
            // then: nobody has opened the gate
            let fact = match silent.len() {
                1 => "second.status",
                _ => "third.status",
            };
            let what = "the status with a candidate left that answers";
            equal(fact, what, 200, answer.status)?;
            equal(
                "answer.text",
                "the text of the candidate that answers",
                "Paris",
                answer.content().as_str(),
            )
            .map_err(silent_if(answer.status < 400))
        };
        (*name, examined)
    });
    together(ctx, &mut deviations, examined).await?;
    ctx.gates.gate("late").open();
    deviations.result()
}

/// A way of being late.
struct Kind {
    instance: &'static str,
    /// The alias with the timeout of its own, and its last provider.
    alias: &'static str,
    /// What the provider does; it never accepts if that is nothing.
    late: &'static [Step],
    /// The capability of a gateway that has a timeout for it.
    needs: Capability,
}

const SILENT: &[Step] = &[Step::Stall];
const STALLED: &[Step] = &[Step::Head, Step::Events(2), Step::Stall];

/// The ways of being late.
const KINDS: [Kind; 9] = [
    Kind {
        instance: "connect timeout, plain",
        alias: "connect",
        late: &[],
        needs: Capability::ConnectTimeout,
    },
    Kind {
        instance: "connect timeout, streamed",
        alias: "connect",
        late: &[],
        needs: Capability::ConnectTimeout,
    },
    Kind {
        instance: "first-token timeout, streamed",
        alias: "first-token",
        late: &[Step::Head, Step::Stall],
        needs: Capability::FirstTokenTimeout,
    },
    Kind {
        instance: "idle timeout, streamed",
        alias: "idle",
        late: STALLED,
        needs: Capability::IdleTimeout,
    },
    Kind {
        instance: "total timeout, plain",
        alias: "total",
        late: SILENT,
        needs: Capability::TimeoutPerModel,
    },
    Kind {
        instance: "total timeout, streamed",
        alias: "total-streamed",
        late: SILENT,
        needs: Capability::TotalDeadline,
    },
    Kind {
        instance: "timeout of the provider, plain",
        alias: "of-provider",
        late: SILENT,
        needs: Capability::TimeoutPerModel,
    },
    Kind {
        instance: "idle timeout of the provider, streamed",
        alias: "idle-of-provider",
        late: STALLED,
        needs: Capability::IdleTimeout,
    },
    Kind {
        instance: "idle timeout of the last candidate, streamed",
        alias: "idle-of-last",
        late: STALLED,
        needs: Capability::IdleTimeout,
    },
];

/// A provider and an alias for each kind of timeout.
fn late_in_every_way() -> Spec {
    let mut spec = Spec::default().provider("down", Protocol::OPENAI);
    for (n, kind) in KINDS.iter().enumerate() {
        let alias = kind.alias;
        if KINDS[..n].iter().any(|earlier| earlier.alias == alias) {
            continue;
        }
        spec = spec.provider(alias, Protocol::OPENAI);
        spec = match alias {
            "idle-of-last" => spec.model(alias, &["down", alias]),
            _ => spec.model(alias, &[alias]),
        };
    }
    let idle = Timeouts {
        idle_ms: OWN,
        ..Timeouts::default()
    };
    clocked(spec)
        .model_timeouts(
            "connect",
            Timeouts {
                connect_ms: OWN,
                ..Timeouts::default()
            },
        )
        .model_timeouts(
            "first-token",
            Timeouts {
                first_token_ms: OWN,
                ..Timeouts::default()
            },
        )
        .model_timeouts("idle", idle)
        .model_timeouts("total", total(OWN))
        .model_timeouts("total-streamed", total(OWN))
        .provider_timeouts("of-provider", total(OWN))
        .provider_timeouts("idle-of-provider", idle)
        .provider_timeouts("idle-of-last", idle)
}

/// Three providers behind one alias with four attempts each: one deadline for each would add up to
/// more than the default.
fn chain_of_three() -> Spec {
    let mut spec = chained(clocked(Spec::default()), &["p1", "p2", "p3"]);
    spec.retry.max_attempts = 4;
    spec.model_timeouts("chain", total(Some(ONCE)))
}

/// The specification with the alias `chain` at these providers.
fn chained(spec: Spec, providers: &[&str]) -> Spec {
    let spec = providers
        .iter()
        .fold(spec, |spec, name| spec.provider(name, Protocol::OPENAI));
    spec.model("chain", providers)
}

fn total(total_ms: Option<u64>) -> Timeouts {
    Timeouts {
        total_ms,
        ..Timeouts::default()
    }
}

/// The specification with equal default timeouts, and with a provider of its own for the stream
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

/// The end of an answer under the default timeouts, whose provider stalls: the clock of the later
/// requests.
type Clock = Shared<BoxFuture<'static, CaseResult>>;

/// Begins an answer that a timeout of the default ends: a stream after its first text, which is
/// never tried again. A gateway that bounds no stream has a plain answer instead.
async fn begun_under_the_default(ctx: &Ctx) -> Result<Clock, Failure> {
    let provider = ctx.stub("clock")?;
    let client = ctx.client.labelled("clock");
    let body = ctx.prompt("clock", "hello");
    let bounds_streams = [Capability::IdleTimeout, Capability::TotalDeadline];
    let bounds_streams = bounds_streams.iter().any(|one| ctx.declares(*one));
    if ctx.declares(Capability::Stream) && bounds_streams {
        let paris = reply("").tokens(["Par", "is"]);
        provider.answers(paris.plan(Plan::events_then(3, Step::Stall)));
        let mut stream = client.stream(body).await?;
        stream.text_of(5).await?;
        let ended = async move { stream.collect().await.map(drop) };
        return Ok(ended.boxed().shared());
    }
    provider.answers(reply("never").plan(Plan::held("clock")));
    let asked = client.send_chat(body).await?;
    provider.held(1).await?;
    let ended = async move { asked.reply().await.map(drop) };
    Ok(ended.boxed().shared())
}

/// The later request must end before the clock's client has its end.
async fn before(
    clock: &Clock,
    fact: &str,
    what: &str,
    asked: impl Future<Output = CaseResult>,
) -> CaseResult {
    match select(pin!(asked), clock.clone()).await {
        Either::Left((result, _)) => result,
        // a clock that shows no time judges nobody
        Either::Right((Err(failure), asked)) => {
            asked.await?;
            Err(Failure::NotExercised {
                why: format!(
                    "the answer under the default timeouts, by which the time was to be read, has \
                     no end: {failure}"
                ),
            })
        }
        Either::Right((Ok(()), _)) => holds(
            fact,
            false,
            format!(
                "the answer of {what} before the end of one that began earlier under the default"
            ),
            "it came after",
        ),
    }
}
