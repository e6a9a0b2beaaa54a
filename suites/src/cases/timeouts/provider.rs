//! TIME, of providers: every wait for a provider has an end, and the gateway itself ends it. That
//! a certain timeout ended it follows from the others, which are a minute, far beyond the hang
//! guard. That it was a timeout and no other failure follows from a lower bound.

use std::time::Duration;

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, silent};
use gauntlet_harness::gate::{at_least, gap};
use gauntlet_harness::llm::{Responder, Stub, chat, error, raw, reply, tool_call};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::Event;
use serde_json::json;

use crate::cases::CaseRow;
use crate::cases::support::{
    DOES_IT_FALL_BACK, all_closed, applies, asked_for, broken, ended, given_up, is_streamed,
    marked, noted, streams_fall_back, together, took, whole, with_tools,
};

/// A short timeout in milliseconds, and the same as a bound: long enough to reach the provider
/// within it.
const SHORT: Option<u64> = Some(1_000);
const SHORT_BOUND: Duration = Duration::from_secs(1);
/// The default connect timeout.
const CONNECT: Duration = Duration::from_secs(1);
/// The idle timeout of a stream that must stay whole.
const IDLE: Duration = Duration::from_millis(1_500);

const STREAM: &[Capability] = &[Capability::Chat, Capability::Stream];

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "TIME-01",
        why: "A host that swallows connections holds a caller for two minutes, which is the timeout \
              of the operating system.",
        shown: "The provider's port never completes a connection, and every other timeout is a \
                minute: of the only provider, of the first of two, and of the second one.",
        remedy: "Give the connection a timeout of its own, of one second or a few.",
        needs: &[Capability::Chat, Capability::ConnectTimeout],
        instances: &[
            "plain",
            "streamed",
            "first candidate, plain",
            "first candidate, streamed",
            "last candidate, plain",
            "last candidate, streamed",
            "Ollama, plain",
            "Ollama, streamed",
        ],
        spec: || with_timeouts(Timeouts::PATIENT),
        run: &time_01,
    },
    CaseRow {
        id: "TIME-02",
        why: "A provider that hangs must not hang its callers: their own timeouts are longer, and \
              their users have left by then.",
        shown: "The provider holds its answer at a gate that opens only after the client has got the \
                gateway's answer, which must be an error of any status. Others are silent after \
                their headers or after a part of a plain answer, or send headers byte by byte.",
        remedy: "Give each attempt a timeout until its first byte, and answer with an error when it \
                 passes.",
        needs: &[Capability::Chat],
        instances: &[
            "plain",
            "streamed",
            "plain, headers byte by byte",
            "plain, silent after its headers",
            "plain, silent within its answer",
            "last candidate, plain",
            "last candidate, streamed",
            "Ollama, plain",
            "Ollama, streamed",
        ],
        spec: short_totals,
        run: &time_02,
    },
    CaseRow {
        id: "TIME-03",
        why: "A timer that every read restarts never fires at a peer that sends a byte each second.",
        shown: "The provider sends its headers byte by byte without an end. The client must get an \
                error while they still drip, or the answer of the second candidate.",
        remedy: "Start the timer once, when the request is sent, and let no read restart it.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::HeadersTimeout,
        ],
        instances: &[
            "streamed",
            "first candidate, streamed",
            "last candidate, streamed",
            "Ollama, streamed",
        ],
        spec: || {
            with_timeouts(Timeouts {
                first_token_ms: SHORT,
                ..Timeouts::PATIENT
            })
        },
        run: &time_03,
    },
    CaseRow {
        id: "TIME-04",
        why: "Streams that stalled after their first token were held for a quarter of an hour, until \
              the pool was empty (https://github.com/tensorzero/tensorzero/issues/6328).",
        shown: "The provider sends a part of its stream and nothing more. Every timeout except the \
                idle timeout is a minute.",
        remedy: "Measure the gap between two events, and end the stream with an error event when it \
                 exceeds the idle timeout.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::IdleTimeout,
        ],
        instances: &[
            "streamed, two pieces of text",
            "streamed, one piece of text",
            "streamed, within an event",
            "streamed, within a tool call",
            "last candidate, streamed",
            "Ollama, streamed",
        ],
        spec: || {
            with_timeouts(Timeouts {
                idle_ms: SHORT,
                ..Timeouts::PATIENT
            })
        },
        run: &time_04,
    },
    CaseRow {
        id: "TIME-05",
        why: "A model in a loop streams forever; each token restarts the idle timer, and somebody \
              pays for every token.",
        shown: "The provider repeats its last event forever, or drips a plain answer that is longer \
                than anybody waits. The answer must end with an error, although nothing was ever \
                late.",
        remedy: "Keep a deadline over the whole request that no event moves.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::TotalDeadline,
        ],
        instances: &[
            "streamed, text",
            "streamed, tool call",
            "streamed, no content",
            "plain",
            "last candidate, streamed",
            "Ollama, streamed",
            "Ollama, plain",
        ],
        spec: short_totals,
        run: &time_05,
    },
    CaseRow {
        id: "TIME-09",
        why: "Attempts that are given up and left running hold the provider's capacity, and are \
              billed (https://github.com/BerriAI/litellm/issues/31499).",
        shown: "The provider holds plain and streamed answers, or is silent in the middle of one. \
                After the client's errors, which may be statuses or events, it must see every \
                connection close on which it still held one, and so must a second candidate.",
        remedy: "Drop the call with its connection when its time is over, and leave it to no task of \
                 its own.",
        needs: STREAM,
        instances: &[
            "plain",
            "streamed",
            "plain, within its answer",
            "streamed, after the first text",
            "two candidates, plain",
            "two candidates, streamed",
            "Ollama, plain",
            "Ollama, streamed",
        ],
        spec: short_totals,
        run: &time_09,
    },
    CaseRow {
        id: "TIME-11",
        why: "A client library's read timeout over the whole body killed healthy streams \
              (https://github.com/maximhq/bifrost/issues/1157).",
        shown: "The provider drips a stream and a plain body for longer than the idle timeout, with \
                gaps of a sixth of it. Both must arrive whole.",
        remedy: "Restart the idle timer with each read, and switch off the whole-body timeouts of client \
                 libraries.",
        needs: STREAM,
        instances: &["streamed", "plain", "Ollama, streamed", "Ollama, plain"],
        spec: || {
            with_timeouts(Timeouts {
                idle_ms: Some(1_500),
                ..Timeouts::PATIENT
            })
        },
        run: &time_11,
    },
    CaseRow {
        id: "TIME-12",
        why: "A timer that ends with the headers waits forever for a provider that sends them first \
              and thinks later (https://github.com/maximhq/bifrost/issues/7034).",
        shown: "The first provider sends its headers and nothing more, or only heartbeats, or only \
                events without content. The client must read one clean stream from the second \
                provider.",
        remedy: "Let the first-token timeout run until the first content, and send the client nothing \
                 before it.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::FirstTokenTimeout,
            Capability::Fallback,
        ],
        instances: &[
            "headers, then silence",
            "only heartbeats",
            "only role chunks",
            "a role chunk, then silence",
            "Ollama, headers, then silence",
            "Ollama, only empty records",
        ],
        spec: || {
            let total = Timeouts {
                total_ms: Some(60_000),
                ..Timeouts::default()
            };
            let slow = Timeouts {
                first_token_ms: SHORT,
                idle_ms: Some(60_000),
                ..total
            };
            Spec::pair()
                .provider("p3", Protocol::OLLAMA)
                .optional_model("local", &["p3", "p2"])
                .provider_timeouts("p1", slow)
                .provider_timeouts("p3", slow)
                .model_timeouts("pair", total)
                .model_timeouts("local", total)
        },
        run: &time_12,
    },
];

/// The aliases `solo`, `pair`, and `local`, whose provider speaks Ollama's API, all with these
/// timeouts.
fn with_timeouts(timeouts: Timeouts) -> Spec {
    let spec = Spec::pair()
        .model("solo", &["p1"])
        .provider("p3", Protocol::OLLAMA)
        .optional_model("local", &["p3"]);
    ["solo", "pair", "local"]
        .iter()
        .fold(spec, |spec, alias| spec.model_timeouts(alias, timeouts))
}

fn short_totals() -> Spec {
    with_timeouts(Timeouts {
        total_ms: SHORT,
        ..Timeouts::default()
    })
}

/// The alias and the provider of an instance, by its name.
fn asked_at(instance: &str) -> (&'static str, &'static str) {
    match instance {
        _ if instance.starts_with("Ollama") => ("local", "p3"),
        _ if instance.starts_with("last candidate") => ("pair", "p2"),
        _ if instance.contains("candidate") => ("pair", "p1"),
        _ => ("solo", "p1"),
    }
}

/// Plants the answer of an instance at its provider. Where that is the last candidate, the first
/// one fails, if it is asked.
async fn plant(ctx: &Ctx, instance: &str, answer: Responder) -> CaseResult {
    let (_, provider) = asked_at(instance);
    let says = || chat().user_says(&marked(instance));
    ctx.stub(provider)?.mount(says(), answer).await;
    if provider == "p2" {
        ctx.stub("p1")?.mount(says(), error(503).optional()).await;
    }
    Ok(())
}

/// The instance's client must get an error, and no earlier than the bound.
async fn given_up_at(ctx: &Ctx, instance: &str, has_begun: bool, bound: Duration) -> CaseResult {
    let (alias, _) = asked_at(instance);
    let body = ctx.prompt(alias, &marked(instance));
    let client = ctx.client.labelled(instance);
    given_up(&client, body, is_streamed(instance), has_begun).await?;
    at_least("error.lower_bound", "the error", took(ctx, instance), bound)
}

async fn time_01(ctx: &Ctx) -> CaseResult {
    // given
    let (p1, p2) = (ctx.stub("p1")?, ctx.stub("p2")?);
    p1.listen(Listen::NeverAccept).await?;
    if ctx.declares(Capability::Ollama) {
        ctx.stub("p3")?.listen(Listen::NeverAccept).await?;
    }
    p2.answers(reply("Paris"));
    let mut deviations = Deviations::new();
    // when
    let alone = ["plain", "streamed", "Ollama, plain", "Ollama, streamed"];
    let alone = alone.into_iter().filter(|name| applies(ctx, name));
    let alone = alone.map(|name| (name, Dead::Alone));
    let first = ["first candidate, plain", "first candidate, streamed"];
    let first = first.into_iter().filter(|name| applies(ctx, name));
    let first = first.map(|name| (name, Dead::First));
    let examined = alone
        .chain(first)
        .map(|(name, which)| (name, without_connection(ctx, name, which)));
    together(ctx, &mut deviations, examined).await?;
    // and then the second provider
    p1.listen(Listen::Serve).await?;
    p1.answers(error(503).optional());
    p2.listen(Listen::NeverAccept).await?;
    let last = ["last candidate, plain", "last candidate, streamed"];
    let last = last.into_iter().filter(|name| applies(ctx, name));
    let examined = last.map(|name| (name, without_connection(ctx, name, Dead::Alone)));
    together(ctx, &mut deviations, examined).await?;
    deviations.result()
}

/// Which provider takes no connection: the only one that is left, or the first of two.
#[derive(Clone, Copy)]
enum Dead {
    Alone,
    First,
}

async fn without_connection(ctx: &Ctx, instance: &str, dead: Dead) -> CaseResult {
    if let Dead::Alone = dead {
        return given_up_at(ctx, instance, false, CONNECT).await;
    }
    let body = ctx.prompt("pair", &marked(instance));
    if is_streamed(instance) {
        return whole(&ctx.client.streamed(body).await?, "Paris");
    }
    let answer = ctx.client.chat(body).await?;
    equal(
        "second.status",
        "the status with a second candidate",
        200,
        answer.status,
    )?;
    equal(
        "second.text",
        "the text of the second candidate",
        "Paris",
        answer.content().as_str(),
    )
}

/// Whether streams fall back from `p1` to `p2`. Nothing is asked before instances that need no
/// second candidate, because a gateway may leave a provider alone after its first failure.
async fn fall_back(ctx: &Ctx, first_instance: &str) -> Result<bool, Failure> {
    let is_late = first_instance.contains("candidate");
    if !is_late || !ctx.declares(Capability::Fallback) {
        return Ok(true);
    }
    streams_fall_back(ctx, "p1", "p2").await
}

/// Whether the instance applies to the target. An answer that has begun is ended by a timeout that
/// bounds more than the answer's headers.
fn applies_here(ctx: &Ctx, instance: &str, fall_back: bool) -> bool {
    let begun = instance.starts_with("plain, silent") || instance == "plain, within its answer";
    let missing = (begun && !ctx.declares(Capability::FirstTokenTimeout))
        || (!fall_back && instance.ends_with("candidate, streamed"));
    match missing {
        true => ctx.instance_where(false, instance),
        false => applies(ctx, instance),
    }
}

async fn time_02(ctx: &Ctx) -> CaseResult {
    // given
    let held = || Plan::held("late");
    let begun = |steps: &[Step]| Plan::of(steps.iter().cloned());
    let dripped = Step::DripHead {
        every_ms: 20,
        finish: false,
    };
    let together_at_first = [
        ("plain", held(), false),
        ("streamed", held(), false),
        ("plain, headers byte by byte", begun(&[dripped]), false),
        (
            "plain, silent after its headers",
            begun(&[Step::Head, Step::Stall]),
            true,
        ),
        (
            "plain, silent within its answer",
            begun(&[Step::Head, Step::Bytes(40), Step::Stall]),
            true,
        ),
        ("Ollama, plain", held(), false),
        ("Ollama, streamed", held(), false),
    ];
    // after its failures a gateway may leave the first candidate alone
    let afterwards = [
        ("last candidate, plain", held(), false),
        ("last candidate, streamed", held(), false),
    ];
    let mut deviations = Deviations::new();
    for instances in [together_at_first.to_vec(), afterwards.to_vec()] {
        let fall_back = fall_back(ctx, instances[0].0).await?;
        let instances: Vec<_> = instances
            .into_iter()
            .filter(|(name, ..)| applies_here(ctx, name, fall_back))
            .collect();
        for (name, plan, _) in &instances {
            plant(ctx, name, reply("too late to be read").plan(plan.clone())).await?;
        }
        // when
        let examined = instances.iter().map(|(name, _, has_begun)| {
            let examined = async {
                given_up_at(ctx, name, *has_begun, SHORT_BOUND).await?;
                let provider = ctx.stub(asked_at(name).1)?;
                asked_for(ctx, "provider.requests", provider, &marked(name))
            };
            (*name, examined)
        });
        together(ctx, &mut deviations, examined).await?;
    }
    // then: the providers still hold their answers
    ctx.gates.gate("late").open();
    deviations.result()
}

async fn time_03(ctx: &Ctx) -> CaseResult {
    // given
    let dripped = || {
        reply("never").plan(Plan::of([Step::DripHead {
            every_ms: 20,
            finish: false,
        }]))
    };
    ctx.stub("p2")?.answers(reply("").tokens(["Par", "is"]));
    let mut deviations = Deviations::new();
    for instances in [
        &["streamed", "Ollama, streamed", "first candidate, streamed"][..],
        &["last candidate, streamed"],
    ] {
        let fall_back = fall_back(ctx, instances[0]).await?;
        let instances = instances
            .iter()
            .filter(|name| applies_here(ctx, name, fall_back));
        let instances: Vec<&str> = instances.copied().collect();
        for name in &instances {
            plant(ctx, name, dripped()).await?;
        }
        // when
        let examined = instances.iter().map(|name| {
            let examined = async {
                if !name.starts_with("first") {
                    return given_up_at(ctx, name, false, SHORT_BOUND).await;
                }
                let client = ctx.client.labelled(name);
                let body = ctx.prompt("pair", &marked(name));
                whole(&client.streamed(body).await?, "Paris")?;
                at_least(
                    "second.lower_bound",
                    "the second candidate's answer",
                    took(ctx, name),
                    SHORT_BOUND,
                )
            };
            (*name, examined)
        });
        together(ctx, &mut deviations, examined).await?;
    }
    deviations.result()?;
    // then
    let p1 = ctx.stub("p1")?;
    let dripped = ["streamed", "first candidate, streamed"].map(|name| p1.calls(&marked(name)));
    p1.peer_closed(dripped.concat().len()).await?;
    Ok(())
}

async fn time_04(ctx: &Ctx) -> CaseResult {
    // given
    let paris = || reply("").tokens(["Par", "is", "!"]);
    let then_silence = |steps: &[Step]| {
        let steps = steps.iter().cloned();
        Plan::of([Step::Head].into_iter().chain(steps).chain([Step::Stall]))
    };
    let two = || then_silence(&[Step::Events(3)]);
    let tool = || tool_call("weather", json!({"city": "Paris"}));
    let together_at_first = vec![
        ("streamed, two pieces of text", paris().plan(two()), "Paris"),
        (
            "streamed, one piece of text",
            paris().plan(then_silence(&[Step::Events(2)])),
            "Par",
        ),
        (
            "streamed, within an event",
            paris().plan(then_silence(&[Step::Events(2), Step::Bytes(30)])),
            "Par",
        ),
        (
            "streamed, within a tool call",
            tool().plan(then_silence(&[Step::Events(3)])),
            "",
        ),
        (
            "Ollama, streamed",
            paris().plan(then_silence(&[Step::Events(2)])),
            "Paris",
        ),
    ];
    let afterwards = vec![("last candidate, streamed", paris().plan(two()), "Paris")];
    let mut deviations = Deviations::new();
    for instances in [together_at_first, afterwards] {
        let instances: Vec<_> = instances
            .into_iter()
            .filter(|(name, ..)| applies(ctx, name))
            .collect();
        for (name, answer, _) in &instances {
            plant(ctx, name, answer.clone()).await?;
        }
        // when
        let examined = instances.iter().map(|(name, _, text)| {
            let examined = async {
                let body = with_tools_if(
                    name.contains("tool"),
                    ctx.prompt(asked_at(name).0, &marked(name)),
                );
                let client = ctx.client.labelled(name);
                let stream = client.streamed(body).await?;
                // then
                equal(
                    "stream.text",
                    "the text of the stream",
                    *text,
                    stream.text.as_str(),
                )?;
                broken(&stream)?;
                at_least(
                    "error.lower_bound",
                    "the error",
                    took(ctx, name),
                    SHORT_BOUND,
                )
            };
            (*name, examined)
        });
        together(ctx, &mut deviations, examined).await?;
    }
    deviations.result()?;
    ctx.stub("p1")?.peer_closed(4).await?;
    Ok(())
}

fn with_tools_if(wanted: bool, body: serde_json::Value) -> serde_json::Value {
    if wanted { with_tools(body) } else { body }
}

async fn time_05(ctx: &Ctx) -> CaseResult {
    // given
    let forever = |events| {
        Plan::of([
            Step::Head,
            Step::Events(events),
            Step::RepeatForever { every_ms: 20 },
        ])
    };
    let text = || reply("").tokens(["and "; 3]).plan(forever(3));
    let dripped = || {
        // at this pace the answer takes minutes
        let drip = Step::Drip {
            bytes: 1,
            every_ms: 20,
        };
        reply(&"and so on ".repeat(1_000)).plan(Plan::of([Step::Head, drip]))
    };
    let tool = tool_call("weather", json!({"city": "Paris", "days": 3}));
    let together_at_first = vec![
        ("streamed, text", text()),
        ("streamed, tool call", tool.plan(forever(3))),
        (
            "streamed, no content",
            reply("").tokens(["never"]).plan(forever(1)),
        ),
        ("plain", dripped()),
        ("Ollama, streamed", text()),
        ("Ollama, plain", dripped()),
    ];
    let afterwards = vec![("last candidate, streamed", text())];
    let mut deviations = Deviations::new();
    for instances in [together_at_first, afterwards] {
        let instances: Vec<_> = instances
            .into_iter()
            .filter(|(name, _)| applies(ctx, name))
            .collect();
        for (name, answer) in &instances {
            plant(ctx, name, answer.clone()).await?;
        }
        // when
        let examined = instances
            .iter()
            .map(|(name, _)| (*name, given_up_at(ctx, name, true, SHORT_BOUND)));
        together(ctx, &mut deviations, examined).await?;
    }
    // then
    deviations.result()?;
    ctx.stub("p1")?.peer_closed(4).await?;
    Ok(())
}

async fn time_09(ctx: &Ctx) -> CaseResult {
    // given
    let held = || reply("never").plan(Plan::held("late"));
    let within = |step| {
        reply("")
            .tokens(["Par", "is"])
            .plan(Plan::of([Step::Head, step, Step::Stall]))
    };
    let together_at_first = vec![
        ("plain", held()),
        ("streamed", held()),
        ("plain, within its answer", within(Step::Bytes(40))),
        ("streamed, after the first text", within(Step::Events(2))),
        ("Ollama, plain", held()),
        ("Ollama, streamed", held()),
    ];
    let afterwards = vec![
        ("two candidates, plain", held()),
        ("two candidates, streamed", held()),
    ];
    // the time may be over before the second candidate is asked, or the first is left alone
    ctx.stub("p2")?.answers(held().optional());
    let mut deviations = Deviations::new();
    for instances in [together_at_first, afterwards] {
        let fall_back = fall_back(ctx, instances[0].0).await?;
        let instances: Vec<_> = instances
            .into_iter()
            .filter(|(name, _)| applies_here(ctx, name, fall_back))
            .collect();
        for (name, answer) in &instances {
            let answer = match asked_at(name).0 {
                "pair" => answer.clone().optional(),
                _ => answer.clone(),
            };
            plant(ctx, name, answer).await?;
        }
        // when
        let examined = instances.iter().map(|(name, _)| {
            let body = ctx.prompt(asked_at(name).0, &marked(name));
            // what the client gets instead of an answer is judged by TIME-02 and ERR-01
            (*name, ended(&ctx.client, body, is_streamed(name)))
        });
        together(ctx, &mut deviations, examined).await?;
        // then
        let stubs = ctx.stubs.values();
        let own = |stub: &Stub| stub.calls(&ctx.nonce).len() - stub.calls(DOES_IT_FALL_BACK).len();
        let asked = stubs.map(|stub| (stub, own(stub)));
        all_closed(&mut deviations, asked).await?;
        for (name, _) in &instances {
            let (alias, provider) = asked_at(name);
            if alias != "pair" {
                let provider = ctx.stub(provider)?;
                noted(
                    &mut deviations,
                    asked_for(ctx, "provider.requests", provider, &marked(name)),
                )?;
            }
        }
    }
    deviations.result()
}

async fn time_11(ctx: &Ctx) -> CaseResult {
    // given
    let drip = |bytes| Step::Drip {
        bytes,
        every_ms: 250,
    };
    let stream = || {
        reply("")
            .tokens(["Par", "is", " is", " big", "."])
            .plan(Plan::of([Step::Head, Step::Events(2), drip(130)]))
    };
    let plain = |bytes| reply("Paris is big.").plan(Plan::of([Step::Head, drip(bytes)]));
    let instances = [
        ("streamed", stream()),
        ("plain", plain(55)),
        ("Ollama, streamed", stream_of_records(drip(60))),
        ("Ollama, plain", plain(30)),
    ];
    let instances: Vec<_> = instances
        .into_iter()
        .filter(|(name, _)| applies(ctx, name))
        .collect();
    for (name, answer) in &instances {
        plant(ctx, name, answer.clone()).await?;
    }
    let mut deviations = Deviations::new();
    // when
    let examined = instances.iter().map(|(name, _)| {
        let examined = async {
            let (alias, provider) = asked_at(name);
            let body = ctx.prompt(alias, &marked(name));
            let provider = ctx.stub(provider)?;
            let paced = || {
                at_least(
                    "provider.pace",
                    "the provider's last byte",
                    sending(provider, &marked(name)),
                    IDLE,
                )
                .map_err(|early| Failure::Harness {
                    what: early.to_string(),
                })
            };
            if is_streamed(name) {
                let stream = ctx.client.streamed(body).await?;
                // then
                paced()?;
                return whole(&stream, "Paris is big.");
            }
            let answer = ctx.client.chat(body).await?;
            paced()?;
            equal(
                "plain.status",
                "the status of the plain answer",
                200,
                answer.status,
            )?;
            equal(
                "plain.text",
                "the text of the plain answer",
                "Paris is big.",
                answer.content().as_str(),
            )
            .map_err(silent)
        };
        (*name, examined)
    });
    together(ctx, &mut deviations, examined).await?;
    deviations.result()
}

/// A stream of NDJSON whose records come in pieces.
fn stream_of_records(drip: Step) -> Responder {
    reply("")
        .tokens(["Par", "is", " is", " big", "."])
        .plan(Plan::of([Step::Head, Step::Events(1), drip]))
}

async fn time_12(ctx: &Ctx) -> CaseResult {
    // given
    let silence = || reply("never").plan(Plan::of([Step::Head, Step::Stall]));
    let again = || {
        Plan::of([
            Step::Head,
            Step::Events(1),
            Step::RepeatForever { every_ms: 20 },
        ])
    };
    let record = json!({
        "model": "m-p3", "created_at": "2026-01-01T00:00:00Z",
        "message": {"role": "assistant", "content": ""}, "done": false,
    });
    let instances = [
        ("headers, then silence", silence()),
        (
            "only heartbeats",
            raw(200, "text/event-stream", ": ping\n\n").plan(again()),
        ),
        ("only role chunks", reply("never").plan(again())),
        (
            "a role chunk, then silence",
            reply("never").plan(Plan::events_then(1, Step::Stall)),
        ),
        ("Ollama, headers, then silence", silence()),
        (
            "Ollama, only empty records",
            raw(200, "application/x-ndjson", format!("{record}\n")).plan(again()),
        ),
    ];
    ctx.stub("p2")?.answers(reply("").tokens(["Par", "is"]));
    let instances: Vec<_> = instances
        .into_iter()
        .filter(|(name, _)| applies(ctx, name))
        .collect();
    for (name, answer) in &instances {
        plant(ctx, name, answer.clone()).await?;
    }
    let mut deviations = Deviations::new();
    // when
    let examined = instances.iter().map(|(name, _)| {
        let examined = async {
            let alias = match asked_at(name).0 {
                "local" => "local",
                _ => "pair",
            };
            let client = ctx.client.labelled(name);
            let body = ctx.prompt(alias, &marked(name));
            let stream = client.streamed(body).await?;
            // then
            whole(&stream, "Paris")?;
            at_least(
                "second.lower_bound",
                "the second candidate's answer",
                took(ctx, name),
                SHORT_BOUND,
            )
        };
        (*name, examined)
    });
    together(ctx, &mut deviations, examined).await?;
    deviations.result()?;
    ctx.stub("p1")?.peer_closed(4).await?;
    Ok(())
}

/// The time from the head of the stub's first answer to this call to its last byte.
fn sending(stub: &Stub, text: &str) -> Duration {
    let tape = stub.tape();
    let call = stub.calls(text).first().map(|received| received.request);
    let head = tape.iter().find(
        |entry| matches!(entry.event, Event::HeadSent { request, .. } if Some(request) == call),
    );
    let last = tape.iter().find(
        |entry| matches!(entry.event, Event::AnswerSent { request } if Some(request) == call),
    );
    // an answer that the gateway cut has no last byte, and the facts show that
    head.zip(last).map_or(IDLE, |(head, last)| gap(head, last))
}
