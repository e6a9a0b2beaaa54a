//! RETRY: what can pass by itself is tried again, within bounds, and nothing else is.

use std::time::{Duration, SystemTime};

use futures::future::{join_all, try_join_all};
use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, State, equal, holds, json};
use gauntlet_harness::gate::{at_least, gap, hang_guard, with_hang_guard};
use gauntlet_harness::llm::{
    ReceivedRequest, Responder, Stub, chat, error, reply, sequence, tool_call, with,
};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::{Entry, Event};
use serde_json::{Value, json};

use super::CaseRow;
use super::modes::{Answered, MODES, Mode, possible, prompt};
use super::support::{most_attempts, repeats_at_once, silent_in, with_tools, with_usage};

const RETRY: &[Capability] = &[Capability::Chat, Capability::Retry];

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "RETRY-01",
        why: "A provider's second of overload becomes the users' error where a gateway asks once; a \
              gateway that asks without an end turns it into an outage.",
        shown: "For each failure, plain and streamed, the provider fails twice and answers the third attempt; \
                so do an Ollama provider and a second candidate. Another request always fails and must cost \
                three attempts. No stub sees a refused connection: there the case counts the attempts that \
                the error lists, where the target lists them.",
        remedy: "Retry 429, 500, 502, 503, 504 and broken connections before the first token, and count \
                 the attempts of a request.",
        needs: RETRY,
        instances: &[
            "plain, status 429",
            "plain, status 500",
            "plain, status 502",
            "plain, status 503",
            "plain, status 504",
            "streamed, status 429",
            "streamed, status 500",
            "streamed, status 502",
            "streamed, status 503",
            "streamed, status 504",
            "plain, reset",
            "streamed, reset",
            "plain, Ollama, status 429",
            "plain, Ollama, status 503",
            "streamed, Ollama, status 429",
            "streamed, Ollama, status 503",
            "plain, second candidate",
            "streamed, second candidate",
            "plain, always failing",
            "streamed, always failing",
            "plain, refused connections",
            "streamed, refused connections",
        ],
        spec: || {
            attempts(3)
                .provider("p2", Protocol::OLLAMA)
                .optional_model("local", &["p2"])
                .provider("p3", Protocol::OPENAI)
                .provider("p4", Protocol::OPENAI)
                .optional_model("pair", &["p3", "p4"])
        },
        run: &retry_01,
    },
    CaseRow {
        id: "RETRY-02",
        why: "A wrong request stays wrong; asking again costs the user's time and the provider's \
              capacity (https://github.com/Portkey-AI/gateway/issues/855).",
        shown: "The provider refuses with each status, plain and streamed, also as an Ollama provider. Another \
                request is refused at its second attempt, after a 503. After a further exchange the provider \
                must have seen each request once, and that one no more than twice.",
        remedy: "Decide by the status whether a failure can pass by itself.",
        needs: RETRY,
        instances: &[
            "plain, status 400",
            "plain, status 401",
            "plain, status 403",
            "plain, status 404",
            "plain, status 413",
            "plain, status 422",
            "streamed, status 400",
            "streamed, status 401",
            "streamed, status 403",
            "streamed, status 404",
            "streamed, status 413",
            "streamed, status 422",
            "plain, Ollama, status 400",
            "plain, Ollama, status 404",
            "streamed, Ollama, status 400",
            "streamed, Ollama, status 404",
            "plain, second attempt, status 400",
            "plain, second attempt, status 401",
            "streamed, second attempt, status 400",
            "streamed, second attempt, status 401",
        ],
        spec: || {
            attempts(3)
                .provider("p2", Protocol::OLLAMA)
                .optional_model("local", &["p2"])
        },
        run: &retry_02,
    },
    CaseRow {
        id: "RETRY-03",
        why: "A gateway that asks earlier is limited for longer \
              (https://github.com/BerriAI/litellm/issues/7669); one that waits for any time holds \
              its users (https://github.com/BerriAI/litellm/issues/3274).",
        shown: "The next attempt must not come before the time that the provider asked for: after 429, 503 and \
                529, in seconds and as a date, plain and streamed, and after a second attempt. A wait of one \
                hour exceeds the deadline of two minutes: the answer must come long before either, after one \
                attempt at that candidate.",
        remedy: "Take Retry-After as the shortest backoff; where it does not fit into the deadline, end \
                 the attempts at this candidate.",
        needs: RETRY,
        instances: &[
            "plain, 429 with seconds",
            "plain, 429 with a date",
            "plain, 503 with seconds",
            "plain, 529 with seconds",
            "plain, 503 with a date",
            "streamed, 429 with seconds",
            "streamed, 503 with a date",
            "plain, Ollama, 429 with seconds",
            "plain, second attempt, 429 with seconds",
            "plain, an hour after 429",
            "plain, an hour after 503",
            "plain, a date in an hour",
            "streamed, an hour after 429",
            "plain, an hour with another candidate",
            "streamed, an hour with another candidate",
        ],
        spec: || {
            let mut spec = attempts(3)
                .provider("p2", Protocol::OLLAMA)
                .optional_model("local", &["p2"])
                .provider("p3", Protocol::OPENAI)
                .provider("p4", Protocol::OPENAI)
                .optional_model("pair", &["p3", "p4"]);
            spec.timeouts.total_ms = Some(120_000);
            spec
        },
        run: &retry_03,
    },
    CaseRow {
        id: "RETRY-04",
        why: "Clients that ask again at once, or all at the same moment, keep a recovering provider \
              down.",
        shown: "24 plain requests and 24 streams always fail. The mean of their n-th gaps must reach a quarter of \
                the n-th backoff: a backoff that is all jitter passes, and one that never grows does not. \
                Lower bounds cannot show that there is jitter.",
        remedy: "Double the backoff with each attempt, up to its bound, and make a part of it random.",
        needs: RETRY,
        instances: &["plain", "streamed"],
        spec: || {
            let mut spec = attempts(5);
            (spec.retry.base_ms, spec.retry.max_ms) = (200, 1_600);
            spec
        },
        run: &retry_04,
    },
    CaseRow {
        id: "RETRY-05",
        why: "A stream that was started again gave its beginning twice \
              (https://github.com/BerriAI/litellm/pull/32835).",
        shown: "The provider's stream breaks after its first text, or in the middle of a tool call: by a reset, a \
                cut or an error in band. The client must get that text once, and after a further exchange the \
                provider must have seen each request once.",
        remedy: "Commit to an attempt with its first token; report a later failure as an error event.",
        needs: &[Capability::Chat, Capability::Stream, Capability::Retry],
        instances: &[
            "after the first text, reset",
            "after the first text, cut",
            "after the first text, an error in band",
            "in a tool call, reset",
            "Ollama, after the first text, reset",
            "Ollama, after the first text, an error in band",
        ],
        spec: || {
            attempts(3)
                .provider("p2", Protocol::OLLAMA)
                .optional_model("local", &["p2"])
        },
        run: &retry_05,
    },
    CaseRow {
        id: "RETRY-06",
        why: "Retries multiply the load of a provider exactly when it cannot bear it \
              (https://github.com/BerriAI/litellm/issues/26015).",
        shown: "20 requests with up to four attempts each meet a provider that is down: plain, streamed, and at \
                a second candidate; 8 meet one that resets them. With a ratio of 0.25 and a floor of 5, the \
                providers may see at most 30 and 15 attempts.",
        remedy: "Give each provider a budget of retries as a share of its requests.",
        needs: &[Capability::Chat, Capability::Retry, Capability::RetryBudget],
        instances: &[
            "plain, status 503",
            "streamed, status 503",
            "plain, reset",
            "plain, second candidate",
        ],
        spec: || {
            let mut spec = attempts(4)
                .provider("p2", Protocol::OPENAI)
                .optional_model("streams", &["p2"])
                .provider("p3", Protocol::OPENAI)
                .optional_model("resets", &["p3"])
                .provider("p4", Protocol::OPENAI)
                .provider("p5", Protocol::OPENAI)
                .optional_model("pair", &["p4", "p5"]);
            (spec.retry.budget_ratio, spec.retry.budget_floor) = (0.25, 5);
            spec
        },
        run: &retry_06,
    },
    CaseRow {
        id: "RETRY-07",
        why: "A provider that knows the key answers a repeated request once and bills it once; a new \
              key for each attempt pays twice.",
        shown: "The provider fails twice, or until the next candidate is asked. The attempts must have equal \
                bodies, but for the model's name at another candidate, and where the client sent an \
                Idempotency-Key, equal headers of that name.",
        remedy: "Take the client's key and encode the body when the request arrives, and not when an \
                 attempt is sent.",
        needs: RETRY,
        instances: &[
            "plain, without a key",
            "plain, with a key",
            "streamed, with a key",
            "plain, next candidate",
            "streamed, next candidate",
        ],
        spec: || {
            attempts(3)
                .provider("p3", Protocol::OPENAI)
                .provider("p4", Protocol::OPENAI)
                .optional_model("pair", &["p3", "p4"])
        },
        run: &retry_07,
    },
    CaseRow {
        id: "RETRY-08",
        why: "Work for clients that had left held a proxy's capacity for half an hour \
              (https://github.com/BerriAI/litellm/issues/13774).",
        shown: "Clients leave while the provider holds the first attempt, which then fails, and while the gateway \
                waits for a second before the next one. Another request runs through a longer wait; afterwards \
                each provider must have seen the requests of those who left once, and the next candidate \
                none.",
        remedy: "Tie the attempts of a request to its client's connection, so that dropping one ends \
                 the other.",
        needs: RETRY,
        instances: &[
            "plain, while the first attempt runs",
            "streamed, while the first attempt runs",
            "plain, during a backoff",
            "plain, before the next candidate",
        ],
        spec: || {
            let mut spec = attempts(3)
                .provider("p2", Protocol::OPENAI)
                .provider("p3", Protocol::OPENAI)
                .optional_model("pair", &["p2", "p3"]);
            (spec.retry.base_ms, spec.retry.max_ms) = (300, 5_000);
            spec
        },
        run: &retry_08,
    },
    CaseRow {
        id: "RETRY-09",
        why: "A provider may close an idle connection at any moment (RFC 9112 section 9.3.1). A gateway \
              that takes that for a failure answers every fourth request to a healthy provider with 502.",
        shown: "The provider answers over a new connection, and closes or resets each that carries a second \
                request. 40 requests, of which each may have one attempt, without any budget, and with a \
                breaker that opens at the first failure, must all be answered, and the provider must see \
                none of them more than twice. A part of a head, and a new connection that dies, are \
                ordinary failures.",
        remedy: "Send a request whose kept connection ended before a byte of the answer once more, at once, \
                 over a connection that is made for it, and count nothing.",
        needs: &[Capability::Chat],
        instances: &[
            "plain, every reuse is reset",
            "streamed, every reuse is reset",
            "plain, every reuse is closed",
            "streamed, every reuse is closed",
            "plain, closed while idle",
            "plain, several kept connections",
            "plain, Ollama, every reuse is reset",
            "plain, a part of the head and then closed",
            "plain, a new connection that dies",
            "plain, the replay dies as well",
        ],
        spec: || {
            let mut spec = attempts(1);
            (spec.retry.budget_ratio, spec.retry.budget_floor) = (0.0, 0);
            spec.breaker.failure_threshold = 1;
            for (alias, provider) in REUSES {
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
        run: &retry_09,
    },
    CaseRow {
        id: "RETRY-10",
        why: "OpenAI's and Anthropic's own clients obey this header: the provider knows what a second \
              attempt would meet.",
        shown: "The provider fails with `x-should-retry: false`, at the first attempt or at the second. After \
                a further exchange it must have seen no attempt after that.",
        remedy: "End the attempts at a candidate whose answer has x-should-retry: false.",
        needs: RETRY,
        instances: &[
            "plain, status 429",
            "plain, status 500",
            "plain, status 503",
            "streamed, status 429",
            "streamed, status 500",
            "streamed, status 503",
            "plain, second attempt",
            "streamed, second attempt",
        ],
        spec: || attempts(3),
        run: &retry_10,
    },
    CaseRow {
        id: "RETRY-11",
        why: "A provider that knows the client's key answers a repeated request once and bills it once; \
              a key that is lost on the way protects nobody.",
        shown: "The client sends an Idempotency-Key, and the provider fails twice, or until the next candidate is \
                asked. All attempts must have the client's key, plain and streamed.",
        remedy: "Send the client's Idempotency-Key on with every attempt.",
        needs: RETRY,
        instances: &[
            "plain, each attempt",
            "streamed, each attempt",
            "plain, next candidate",
            "streamed, next candidate",
        ],
        spec: || {
            attempts(3)
                .provider("p3", Protocol::OPENAI)
                .provider("p4", Protocol::OPENAI)
                .optional_model("pair", &["p3", "p4"])
        },
        run: &retry_11,
    },
];

/// One provider with so many attempts at it, and time enough for all of them on a busy machine.
fn attempts(most: u32) -> Spec {
    let mut spec = Spec::solo();
    spec.retry.max_attempts = most;
    spec.timeouts.total_ms = Some(15_000);
    spec
}

/// A case about how a gateway retries examines nothing unless the gateway makes a second attempt at
/// all, which RETRY-01 judges.
async fn until_retried(ctx: &Ctx, p1: &Stub) -> CaseResult {
    const PROMPT: &str = "whether a 503 is tried again";
    p1.mount(
        chat().user_says(PROMPT),
        sequence([error(503), reply("Paris")]),
    )
    .await;
    ctx.client.chat(ctx.prompt("solo", PROMPT)).await?;
    if p1.calls(PROMPT).len() > 1 {
        return Ok(());
    }
    Err(Failure::NotExercised {
        why: "the gateway made no second attempt after a 503, which RETRY-01 judges".into(),
    })
}

/// An instance of RETRY-01.
struct Failing {
    name: String,
    mode: Mode,
    alias: &'static str,
    stub: &'static str,
    fact: &'static str,
    failure: Responder,
}

fn failing() -> Vec<Failing> {
    let reset = || reply("lost").plan(Plan::of([Step::Reset]));
    let mut rows = Vec::new();
    for mode in MODES {
        let mut add = |name: String, alias, stub, fact, failure| {
            rows.push(Failing {
                name: format!("{mode}, {name}"),
                mode,
                alias,
                stub,
                fact: mode.of(fact, "stream.answer"),
                failure,
            });
        };
        for status in [500, 502, 503, 504] {
            let name = format!("status {status}");
            add(name, "solo", "p1", "answer.status", error(status));
        }
        let limited = "limited.answer";
        add("status 429".into(), "solo", "p1", limited, error(429));
        add("reset".into(), "solo", "p1", "reset.answer", reset());
        for status in [429, 503] {
            let name = format!("Ollama, status {status}");
            add(name, "local", "p2", "ollama.answer", error(status));
        }
        let second = "second candidate".into();
        add(second, "pair", "p4", "second.answer", error(503));
    }
    rows
}

async fn retry_01(ctx: &Ctx) -> CaseResult {
    // given
    repeats_at_once(ctx)?;
    let p1 = ctx.stub("p1")?;
    let mut rows = failing();
    rows.retain(|row| possible(ctx, row.mode, row.alias, &row.name));
    for row in &rows {
        let twice = [row.failure.clone(), row.failure.clone(), reply("Paris")];
        let asked = chat();
        let asked = asked.user_says(&prompt(&row.name));
        ctx.stub(row.stub)?.mount(asked, sequence(twice)).await;
    }
    if ctx.spec.has_model("pair") {
        ctx.stub("p3")?.answers(error(503));
    }
    let always = |mode: Mode| format!("{mode}, always failing");
    for mode in MODES {
        let asked = chat().user_says(&prompt(&always(mode)));
        if possible(ctx, mode, "solo", &always(mode)) {
            p1.mount(asked, error(503)).await;
        }
    }
    // when
    let answers = join_all(rows.iter().map(|row| {
        let body = ctx.prompt(row.alias, &prompt(&row.name));
        row.mode.ask(&ctx.client, body)
    }));
    let answers = answers.await;
    // then
    let mut deviations = Deviations::new();
    for (row, answer) in rows.iter().zip(answers) {
        let judged = async {
            let what = "after two failures";
            answer?.is(row.fact, what, "Paris")?;
            let seen = ctx.stub(row.stub)?.calls(&prompt(&row.name)).len();
            equal("provider.attempts", "the number of attempts", 3, seen)
        };
        deviations.note(ctx.examine(&row.name, judged).await)?;
    }
    for mode in MODES {
        if !possible(ctx, mode, "solo", &always(mode)) {
            continue;
        }
        let judged = async {
            let body = ctx.prompt("solo", &prompt(&always(mode)));
            let answer = mode.ask(&ctx.client, body).await?;
            answer.is_error("hopeless.status", "the attempts are used up")?;
            let seen = p1.calls(&prompt(&always(mode))).len();
            equal(
                "hopeless.attempts",
                "the number of attempts at a provider that always fails",
                3,
                seen,
            )
        };
        deviations.note(ctx.examine(&always(mode), judged).await)?;
    }
    p1.listen(Listen::Refuse).await?;
    for mode in MODES {
        let name = format!("{mode}, refused connections");
        if possible(ctx, mode, "solo", &name) && ctx.instance_if(Capability::AttemptList, &name) {
            deviations.note(ctx.examine(&name, refused_attempts(ctx, mode)).await)?;
        }
    }
    deviations.result()
}

/// No stub sees a refused connection: the case counts the attempts that the error lists.
async fn refused_attempts(ctx: &Ctx, mode: Mode) -> CaseResult {
    let refused = mode.ask(&ctx.client, ctx.prompt("solo", "refused")).await?;
    let error = refused.error().unwrap_or_default();
    let listed = error["attempts"].as_array().map_or(0, Vec::len);
    equal(
        "refused.attempts",
        "the number of attempts that the error lists for a provider that refuses connections",
        3,
        listed,
    )
}

async fn retry_02(ctx: &Ctx) -> CaseResult {
    // given
    const REFUSALS: [u16; 6] = [400, 401, 403, 404, 413, 422];
    let mut rows = Vec::new();
    for mode in MODES {
        for status in REFUSALS {
            let name = format!("{mode}, status {status}");
            let own = if matches!(status, 401 | 403) {
                "auth.attempts"
            } else {
                "provider.attempts"
            };
            let fact = mode.of(own, "stream.attempts");
            rows.push((name, mode, "solo", "p1", fact, vec![error(status)]));
        }
        for status in [400, 404] {
            let name = format!("{mode}, Ollama, status {status}");
            let fact = mode.of("provider.attempts", "stream.attempts");
            rows.push((name, mode, "local", "p2", fact, vec![error(status)]));
        }
        for status in [400, 401] {
            let name = format!("{mode}, second attempt, status {status}");
            let answers = vec![error(503), error(status).optional()];
            rows.push((name, mode, "solo", "p1", "second.attempts", answers));
        }
    }
    rows.retain(|(name, mode, alias, ..)| possible(ctx, *mode, alias, name));
    for (name, _, _, stub, _, answers) in &rows {
        let asked = chat();
        let asked = asked.user_says(&prompt(name));
        ctx.stub(stub)?
            .mount(asked, sequence(answers.clone()))
            .await;
    }
    ctx.stub("p1")?.answers(reply("fine"));
    // when
    let answers = join_all(rows.iter().map(|(name, mode, alias, ..)| {
        let body = ctx.prompt(alias, &prompt(name));
        mode.ask(&ctx.client, body)
    }));
    let answers = answers.await;
    let afterwards = ctx.client.chat(ctx.prompt("solo", "afterwards")).await?;
    // then
    equal(
        "next.status",
        "the status of the request that follows",
        200,
        afterwards.status,
    )?;
    let mut deviations = Deviations::new();
    for ((name, _, _, stub, fact, planned), answer) in rows.iter().zip(answers) {
        let judged = async {
            answer?.is_error("refused.statuses", "a refusal")?;
            let seen = ctx.stub(stub)?.calls(&prompt(name)).len();
            holds(
                fact,
                (1..=planned.len()).contains(&seen),
                format!(
                    "no attempt after the refusal, which is answer {}",
                    planned.len()
                ),
                format_args!("{seen} attempts"),
            )
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

/// An instance of RETRY-03: what the provider answers before the attempt that has to wait.
struct Waiting {
    name: &'static str,
    mode: Mode,
    alias: &'static str,
    stub: &'static str,
    fact: &'static str,
    failures: Vec<Responder>,
}

fn waiting() -> Vec<Waiting> {
    use Mode::{Plain, Streamed};
    // a date has whole seconds: two from now, rounded down, is more than one away
    fn dated(status: u16) -> Responder {
        with(move |_| {
            let at = SystemTime::now() + Duration::from_secs(2);
            error(status).retry_after(httpdate::fmt_http_date(at))
        })
    }
    let second = |status: u16| error(status).retry_after(1);
    let rows: [(&str, Mode, &str, &str, Vec<Responder>); 9] = [
        (
            "plain, 429 with seconds",
            Plain,
            "solo",
            "retry_after.gap",
            vec![second(429)],
        ),
        (
            "plain, 429 with a date",
            Plain,
            "solo",
            "date.gap",
            vec![dated(429)],
        ),
        (
            "plain, 503 with seconds",
            Plain,
            "solo",
            "overload.gap",
            vec![second(503)],
        ),
        (
            "plain, 529 with seconds",
            Plain,
            "solo",
            "overload.gap",
            vec![second(529)],
        ),
        (
            "plain, 503 with a date",
            Plain,
            "solo",
            "overload.gap",
            vec![dated(503)],
        ),
        (
            "streamed, 429 with seconds",
            Streamed,
            "solo",
            "retry_after.gap",
            vec![second(429)],
        ),
        (
            "streamed, 503 with a date",
            Streamed,
            "solo",
            "overload.gap",
            vec![dated(503)],
        ),
        (
            "plain, Ollama, 429 with seconds",
            Plain,
            "local",
            "retry_after.gap",
            vec![second(429)],
        ),
        (
            "plain, second attempt, 429 with seconds",
            Plain,
            "solo",
            "second.gap",
            vec![error(503), second(429)],
        ),
    ];
    let row = |(name, mode, alias, fact, failures)| Waiting {
        name,
        mode,
        alias,
        stub: if alias == "local" { "p2" } else { "p1" },
        fact,
        failures,
    };
    rows.into_iter().map(row).collect()
}

async fn retry_03(ctx: &Ctx) -> CaseResult {
    use Mode::{Plain, Streamed};
    // given
    repeats_at_once(ctx)?;
    let p1 = ctx.stub("p1")?;
    until_retried(ctx, p1).await?;
    let mut rows = waiting();
    rows.retain(|row| possible(ctx, row.mode, row.alias, row.name));
    for row in &rows {
        let mut answers = row.failures.clone();
        answers.push(reply("Paris"));
        let asked = chat();
        let asked = asked.user_says(&prompt(row.name));
        ctx.stub(row.stub)?.mount(asked, sequence(answers)).await;
    }
    let hour = |status: u16| error(status).retry_after(3_600);
    let in_an_hour = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3_600));
    let mut long = vec![
        ("plain, an hour after 429", Plain, "solo", "p1", hour(429)),
        ("plain, an hour after 503", Plain, "solo", "p1", hour(503)),
        (
            "plain, a date in an hour",
            Plain,
            "solo",
            "p1",
            error(429).retry_after(in_an_hour),
        ),
        (
            "streamed, an hour after 429",
            Streamed,
            "solo",
            "p1",
            hour(429),
        ),
        (
            "plain, an hour with another candidate",
            Plain,
            "pair",
            "p3",
            hour(429),
        ),
        (
            "streamed, an hour with another candidate",
            Streamed,
            "pair",
            "p3",
            hour(429),
        ),
    ];
    long.retain(|(name, mode, alias, ..)| possible(ctx, *mode, alias, name));
    for (name, _, _, stub, failure) in &long {
        let asked = chat().user_says(&prompt(name));
        ctx.stub(stub)?.mount(asked, failure.clone()).await;
    }
    if ctx.spec.has_model("pair") {
        ctx.stub("p4")?.answers(reply("Bern"));
    }
    // when
    let ask = |mode: Mode, alias: &str, name: &str| {
        let body = ctx.prompt(alias, &prompt(name));
        async move { mode.ask(&ctx.client, body).await }
    };
    let waited = join_all(rows.iter().map(|row| ask(row.mode, row.alias, row.name)));
    let unwaited = join_all(
        long.iter()
            .map(|(name, mode, alias, ..)| ask(*mode, alias, name)),
    );
    let (waited, unwaited) = futures::future::join(waited, unwaited).await;
    // then
    let mut deviations = Deviations::new();
    for (row, answer) in rows.iter().zip(waited) {
        let judged = async { waited_for(ctx, row, &answer?) };
        deviations.note(ctx.examine(row.name, judged).await)?;
    }
    for ((name, _, alias, stub, _), answer) in long.iter().zip(unwaited) {
        let judged = async {
            let answer = answer?;
            if *alias == "solo" {
                answer.is_error("hour.status", "the wait does not fit into the deadline")?;
            }
            equal(
                "retry_after.capped",
                "the number of attempts where the wait does not fit into the deadline",
                1,
                ctx.stub(stub)?.calls(&prompt(name)).len(),
            )
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

/// The attempt after the last failure must come a second later. Whether 529 is tried again is left
/// to the gateway.
fn waited_for(ctx: &Ctx, row: &Waiting, answer: &Answered) -> CaseResult {
    let seen = arrivals(ctx.stub(row.stub)?, &prompt(row.name));
    let last = row.failures.len();
    if row.name.contains("529") && seen.len() == last {
        return answer.is_error("answer.status", "529 is not tried again");
    }
    answer.is(
        "answer.status",
        "the wait that was asked for fits into the deadline",
        "Paris",
    )?;
    equal(
        "provider.attempts",
        "the number of attempts",
        last + 1,
        seen.len(),
    )?;
    at_least(
        row.fact,
        "the attempt that was asked to come in a second",
        gap(&seen[last - 1], &seen[last]),
        Duration::from_secs(1),
    )
}

async fn retry_04(ctx: &Ctx) -> CaseResult {
    // given
    repeats_at_once(ctx)?;
    let p1 = ctx.stub("p1")?;
    until_retried(ctx, p1).await?;
    p1.answers(error(503));
    // when
    let modes = MODES.map(|mode| possible(ctx, mode, "solo", mode.of("plain", "streamed")));
    let asked = MODES.into_iter().zip(modes).filter(|(_, such)| *such);
    let asked = asked.flat_map(|(mode, _)| (0..BACKING_OFF).map(move |n| (mode, n)));
    let asked = asked.map(|(mode, n)| {
        let body = ctx.prompt("solo", &backing_off(mode, n));
        mode.ask(&ctx.client, body)
    });
    // a gateway may have a longer backoff than the configured one
    with_hang_guard(2 * hang_guard(), try_join_all(asked)).await?;
    // then
    let mut deviations = Deviations::new();
    for (mode, such) in MODES.into_iter().zip(modes) {
        if such {
            let judged = async { backed_off(p1, mode) };
            let name = mode.of("plain", "streamed");
            deviations.note(ctx.examine(name, judged).await)?;
        }
    }
    deviations.result()
}

/// How many requests of each mode fail in RETRY-04.
const BACKING_OFF: usize = 24;

fn backing_off(mode: Mode, n: usize) -> String {
    prompt(&format!("{mode} request {n}"))
}

/// The gaps between the attempts of the requests of this mode must grow.
fn backed_off(p1: &Stub, mode: Mode) -> CaseResult {
    let attempts: Vec<Vec<Entry>> = (0..BACKING_OFF)
        .map(|n| arrivals(p1, &backing_off(mode, n)))
        .collect();
    for of_one in &attempts {
        equal(
            "provider.attempts",
            "the number of attempts of a request",
            5,
            of_one.len(),
        )?;
    }
    let mean = |n: usize| {
        let all: Duration = attempts
            .iter()
            .map(|of_one| gap(&of_one[n], &of_one[n + 1]))
            .sum();
        all / BACKING_OFF as u32
    };
    // a gap below half of the first backoff shows that there is no backoff at all
    let none = attempts
        .iter()
        .any(|of_one| gap(&of_one[3], &of_one[4]) < Duration::from_millis(100));
    let fact = if none {
        mode.of("retry.backoff", "stream.backoff")
    } else {
        mode.of("retry.growth", "stream.growth")
    };
    // the longest first, since a busy machine lengthens the short ones
    for (n, backoff) in [200, 400, 800, 1_600].into_iter().enumerate().rev() {
        let quarter = Duration::from_millis(backoff / 4);
        at_least(
            fact,
            &format!("retry {} of {BACKING_OFF} requests, on average,", n + 1),
            mean(n),
            quarter,
        )?;
    }
    Ok(())
}

async fn retry_05(ctx: &Ctx) -> CaseResult {
    // given
    let begun = || reply("").tokens(["Par", "is"]);
    let in_band = || reply("").tokens(["Par"]).then_error(503, "overloaded");
    // Ollama's streams begin with their first text
    let rows = [
        (
            "after the first text, reset",
            begun().plan(Plan::events_then(2, Step::Reset)),
        ),
        (
            "after the first text, cut",
            begun().plan(Plan::events_then(2, Step::Cut)),
        ),
        ("after the first text, an error in band", in_band()),
        (
            "in a tool call, reset",
            weather().plan(Plan::events_then(4, Step::Reset)),
        ),
        (
            "Ollama, after the first text, reset",
            begun().plan(Plan::events_then(1, Step::Reset)),
        ),
        ("Ollama, after the first text, an error in band", in_band()),
    ];
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("fine"));
    let mut deviations = Deviations::new();
    for (name, broken) in rows {
        let (alias, stub) = if name.starts_with("Ollama") {
            ("local", "p2")
        } else {
            ("solo", "p1")
        };
        if !ctx.instance_at(alias, name) {
            continue;
        }
        let tool = name.starts_with("in a tool call");
        let whole = if tool { weather() } else { begun() };
        let asked = chat();
        let asked = asked.user_says(&prompt(name));
        let judged = async {
            let stub = ctx.stub(stub)?;
            stub.mount(asked, sequence([broken, whole])).await;
            // when
            let body = with_tools(ctx.prompt(alias, &prompt(name)));
            let stream = ctx.client.streamed(body).await?;
            let afterwards = prompt(&format!("{name}, afterwards"));
            let afterwards = ctx.client.chat(ctx.prompt("solo", &afterwards)).await?;
            // then
            equal(
                "next.text",
                "the text of the request that follows",
                "fine",
                afterwards.content().as_str(),
            )?;
            let attempts = stub.calls(&prompt(name)).len();
            if tool {
                // a gateway that sends tool calls whole has sent nothing yet
                let arguments = stream.tool_calls.first().map(|call| call.arguments.clone());
                let whole = json!({"city": "Bern in the canton of Bern"}).to_string();
                let once = attempts == 1 || arguments.as_deref() == Some(whole.as_str());
                return holds(
                    "tools.once",
                    once && stream.tool_calls.len() <= 1,
                    "the fragments of one attempt",
                    format_args!("{attempts} attempts, and the arguments {arguments:?}"),
                )
                .map_err(silent_in(&stream));
            }
            equal(
                "stream.text",
                "the text of the stream",
                "Par",
                stream.text.as_str(),
            )
            .map_err(silent_in(&stream))?;
            // whether the stream reports its end is judged by STRM-02
            equal("provider.attempts", "the number of attempts", 1, attempts)
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

/// A tool call whose arguments are streamed in several fragments.
fn weather() -> Responder {
    tool_call("weather", json!({"city": "Bern in the canton of Bern"}))
}

async fn retry_06(ctx: &Ctx) -> CaseResult {
    // given
    repeats_at_once(ctx)?;
    let reset = reply("lost").plan(Plan::of([Step::Reset]));
    let mut rows = vec![
        (
            "plain, status 503",
            Mode::Plain,
            "solo",
            "p1",
            "provider.attempts",
        ),
        (
            "streamed, status 503",
            Mode::Streamed,
            "streams",
            "p2",
            "stream.attempts",
        ),
        (
            "plain, reset",
            Mode::Plain,
            "resets",
            "p3",
            "reset.attempts",
        ),
        (
            "plain, second candidate",
            Mode::Plain,
            "pair",
            "p5",
            "second.attempts",
        ),
    ];
    rows.retain(|(name, mode, alias, ..)| possible(ctx, *mode, alias, name));
    for (name, stub) in ctx.stubs.iter() {
        let failure = if name == "p3" {
            reset.clone()
        } else {
            error(503)
        };
        stub.answers(failure);
    }
    let mut deviations = Deviations::new();
    for (name, mode, alias, stub, fact) in &rows {
        let judged = async {
            // a reset takes a busy machine much longer than an answer
            let requests = if *alias == "resets" { 8 } else { 20 };
            let most = requests + requests / 4 + 5;
            // when
            let asked = (0..requests).map(|n| {
                let body = ctx.prompt(alias, &prompt(&format!("{name}, request {n}")));
                mode.ask(&ctx.client, body)
            });
            let answers = try_join_all(asked).await?;
            // then
            for answer in &answers {
                answer.is_error("answers.statuses", "the provider only fails")?;
            }
            let seen = ctx.stub(stub)?.requests().len();
            holds(
                fact,
                seen <= most,
                format!("at most {most} attempts for {requests} requests"),
                format_args!("{seen} attempts"),
            )?;
            if seen > requests {
                ctx.reached(State::RetryBudgetSpent);
            }
            Ok(())
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

/// The body without the name of the model, which differs between candidates.
fn without_model(attempt: &ReceivedRequest) -> Value {
    let mut body = attempt.json();
    if let Some(fields) = body.as_object_mut() {
        fields.shift_remove("model");
    }
    body
}

async fn retry_07(ctx: &Ctx) -> CaseResult {
    use Mode::{Plain, Streamed};
    // given
    repeats_at_once(ctx)?;
    let p1 = ctx.stub("p1")?;
    until_retried(ctx, p1).await?;
    p1.answers(sequence([error(503), error(500), reply("Paris")]));
    if ctx.spec.has_model("pair") {
        ctx.stub("p3")?.answers(error(503));
        ctx.stub("p4")?.answers(reply("Paris"));
    }
    let own = ctx
        .client
        .with_header("idempotency-key", &format!("key-{}", ctx.nonce));
    let mut deviations = Deviations::new();
    for (name, client, mode, alias) in [
        ("plain, without a key", &ctx.client, Plain, "solo"),
        ("plain, with a key", &own, Plain, "solo"),
        ("streamed, with a key", &own, Streamed, "solo"),
        ("plain, next candidate", &own, Plain, "pair"),
        ("streamed, next candidate", &own, Streamed, "pair"),
    ] {
        if !possible(ctx, mode, alias, name) {
            continue;
        }
        let judged = async {
            // when
            let mut body = with_tools(ctx.prompt(alias, &prompt(name)));
            body["temperature"] = json!(0.25);
            if mode == Streamed {
                body = with_usage(body);
            }
            mode.ask(client, body).await?.is(
                "answer.status",
                "the last attempt succeeds",
                "Paris",
            )?;
            // then
            let first = ctx.stub(if alias == "pair" { "p3" } else { "p1" })?;
            let attempts = first.calls(&prompt(name));
            equal(
                "provider.attempts",
                "the number of attempts",
                3,
                attempts.len(),
            )?;
            let fact = mode.of("attempt.body", "stream.body");
            for attempt in &attempts {
                equal(
                    fact,
                    "the body of a later attempt",
                    attempts[0].body.as_str(),
                    attempt.body.as_str(),
                )?;
            }
            let next = if alias == "pair" {
                ctx.stub("p4")?.calls(&prompt(name))
            } else {
                Vec::new()
            };
            for attempt in &next {
                equal(
                    "fallback.body",
                    "the body without its model at the next candidate",
                    &without_model(&attempts[0]),
                    &without_model(attempt),
                )?;
            }
            let all = attempts.iter().chain(&next);
            for attempt in all.filter(|_| name != "plain, without a key") {
                equal(
                    "idempotency_key.same",
                    "the Idempotency-Key of a later attempt, where the client sent one,",
                    attempts[0].header("idempotency-key"),
                    attempt.header("idempotency-key"),
                )?;
            }
            Ok(())
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

async fn retry_08(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    until_retried(ctx, p1).await?;
    let held = || error(503).plan(Plan::held("until the clients have gone"));
    let mut rows = vec![
        (
            "plain, while the first attempt runs",
            Mode::Plain,
            "solo",
            "p1",
            "left.attempts",
        ),
        (
            "streamed, while the first attempt runs",
            Mode::Streamed,
            "solo",
            "p1",
            "stream.attempts",
        ),
        (
            "plain, during a backoff",
            Mode::Plain,
            "solo",
            "p1",
            "backoff.attempts",
        ),
        (
            "plain, before the next candidate",
            Mode::Plain,
            "pair",
            "p2",
            "second.attempts",
        ),
    ];
    rows.retain(|(name, mode, alias, ..)| possible(ctx, *mode, alias, name));
    for (name, _, _, stub, _) in &rows {
        let first = if name.ends_with("backoff") {
            error(503).retry_after(1)
        } else {
            held()
        };
        let asked = chat().user_says(&prompt(name));
        let answers = sequence([first, reply("for nobody")]);
        ctx.stub(stub)?.mount(asked, answers).await;
    }
    p1.mount(
        chat().user_says("stayed"),
        sequence([error(503).retry_after(2), reply("fine")]),
    )
    .await;
    if ctx.spec.has_model("pair") {
        ctx.stub("p3")?.answers(reply("for nobody"));
    }
    let before = p1.requests().len();
    // when
    let mut leaving = Vec::new();
    for (name, mode, alias, ..) in &rows {
        let body = ctx.prompt(alias, &prompt(name));
        leaving.push(match mode {
            Mode::Plain => ctx.client.send_chat(body).await?,
            Mode::Streamed => ctx.client.send_stream(body).await?,
        });
    }
    let at = |wanted: &str| {
        rows.iter()
            .filter(|(_, _, _, stub, _)| *stub == wanted)
            .count()
    };
    // one of those at the first provider is not held
    p1.held(at("p1") - 1).await?;
    p1.seen(before + at("p1")).await?;
    // the first answer of the one that waits for its backoff is out
    p1.in_flight_is(at("p1") - 1).await?;
    if at("p2") > 0 {
        ctx.stub("p2")?.held(at("p2")).await?;
    }
    drop(leaving);
    ctx.gates.gate("until the clients have gone").open();
    let stayed = ctx.client.chat(ctx.prompt("solo", "stayed")).await?;
    // then
    equal(
        "stayed.status",
        "the status of the client that stayed",
        200,
        stayed.status,
    )?;
    let mut deviations = Deviations::new();
    for (name, _, alias, stub, fact) in &rows {
        let judged = async {
            let mut seen = ctx.stub(stub)?.calls(&prompt(name)).len();
            if *alias == "pair" {
                seen += ctx.stub("p3")?.calls(&prompt(name)).len();
            }
            equal(
                fact,
                "the number of attempts for the client that left",
                1,
                seen,
            )
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

/// The aliases of RETRY-09 beside `solo`, each with a provider of its own.
const REUSES: [(&str, &str); 8] = [
    ("closes", "p2"),
    ("idle", "p3"),
    ("several", "p4"),
    ("local", "p5"),
    ("partial", "p6"),
    ("fresh", "p7"),
    ("lost", "p8"),
    ("streams", "p9"),
];

/// Answers over a connection that carries its first request, and ends every other one like this,
/// before a byte of the answer.
fn dies_on_reuse(step: Step) -> Responder {
    with(move |asked| {
        let answer = reply("Paris");
        if asked.reused {
            answer.plan(Plan::of([step.clone()]))
        } else {
            answer
        }
    })
}

/// The number of this provider's connections that carried a second request.
fn reuses(stub: &Stub) -> usize {
    let requests = stub.requests();
    let earlier = |n: usize| {
        let connection = requests[n].connection;
        requests[..n].iter().any(|one| one.connection == connection)
    };
    (0..requests.len()).filter(|n| earlier(*n)).count()
}

/// A gateway that makes a connection for each request has none that could die on reuse.
fn reused(stub: &Stub) -> CaseResult {
    if reuses(stub) > 0 {
        return Ok(());
    }
    Err(Failure::NotExercised {
        why: format!(
            "no connection to {} carried a second request, so that none died on reuse",
            stub.name()
        ),
    })
}

async fn retry_09(ctx: &Ctx) -> CaseResult {
    // given
    let rows = [
        (
            "plain, every reuse is reset",
            Mode::Plain,
            "solo",
            "p1",
            Step::Reset,
        ),
        (
            "plain, every reuse is closed",
            Mode::Plain,
            "closes",
            "p2",
            Step::Cut,
        ),
        (
            "streamed, every reuse is reset",
            Mode::Streamed,
            "streams",
            "p9",
            Step::Reset,
        ),
        (
            "streamed, every reuse is closed",
            Mode::Streamed,
            "streams",
            "p9",
            Step::Cut,
        ),
        (
            "plain, Ollama, every reuse is reset",
            Mode::Plain,
            "local",
            "p5",
            Step::Reset,
        ),
    ];
    let mut deviations = Deviations::new();
    for (name, mode, alias, stub, step) in rows {
        if !possible(ctx, mode, alias, name) {
            continue;
        }
        let judged = async {
            let stub = ctx.stub(stub)?;
            stub.answers(dies_on_reuse(step));
            // the number of the requirement once, and a few for each other instance
            let requests = if alias == "solo" { 40 } else { 8 };
            all_served(ctx, mode, (alias, stub), name, requests).await?;
            reused(stub)
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    let name = "plain, closed while idle";
    if possible(ctx, Mode::Plain, "idle", name) {
        let judged = async {
            let stub = ctx.stub("p3")?;
            stub.answers(reply("Paris").plan(Plan::of([Step::Head, Step::Rest, Step::Cut])));
            all_served(ctx, Mode::Plain, ("idle", stub), name, 8).await
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    let name = "plain, several kept connections";
    if possible(ctx, Mode::Plain, "several", name) {
        deviations.note(ctx.examine(name, several_kept(ctx)).await)?;
    }
    for (name, alias, stub, fact, most, plan) in [
        (
            "plain, a part of the head and then closed",
            "partial",
            "p6",
            "partial.requests",
            1,
            Plan::of([
                Step::Garbage(b"HTTP/1.1 200 OK\r\nconte".to_vec()),
                Step::Cut,
            ]),
        ),
        (
            "plain, a new connection that dies",
            "fresh",
            "p7",
            "fresh.requests",
            1,
            Plan::of([Step::Reset]),
        ),
        (
            "plain, the replay dies as well",
            "lost",
            "p8",
            "lost.requests",
            2,
            Plan::of([Step::Reset]),
        ),
    ] {
        if !possible(ctx, Mode::Plain, alias, name) {
            continue;
        }
        let judged = async {
            let stub = ctx.stub(stub)?;
            stub.mount(chat().user_says("kept"), reply("ready")).await;
            stub.answers(reply("lost").plan(plan));
            if alias != "fresh" {
                ctx.client.chat(ctx.prompt(alias, "kept")).await?;
            }
            // when
            let answer = ctx.client.chat(ctx.prompt(alias, &prompt(name))).await?;
            // then
            let answer = Answered::Plain(answer);
            answer.is_error("lost.status", "the connection died")?;
            let seen = stub.calls(&prompt(name)).len();
            if most_attempts(ctx, 1) != Some(1) {
                return Ok(());
            }
            holds(
                fact,
                (1..=most).contains(&seen),
                format!("the request {most} times at the most"),
                format_args!("{seen} times"),
            )
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

/// So many requests, one after the other, must all be answered, and the provider must see each of
/// them no more than twice.
async fn all_served(
    ctx: &Ctx,
    mode: Mode,
    (alias, stub): (&str, &Stub),
    name: &str,
    requests: usize,
) -> CaseResult {
    for n in 0..requests {
        // a stream may leave no connection to reuse
        if mode == Mode::Streamed {
            let kept = prompt(&format!("{name}, kept {n}"));
            ctx.client.chat(ctx.prompt(alias, &kept)).await?;
        }
        let text = prompt(&format!("{name}, request {n}"));
        let answer = mode.ask(&ctx.client, ctx.prompt(alias, &text)).await?;
        let seen = stub.calls(&text).len();
        let what = format!("request {} of {requests}", n + 1);
        holds(
            "provider.asked",
            seen > 0,
            format!("{what} at the provider, whatever its connections"),
            format_args!("status {} without asking it", answer.status()),
        )?;
        answer.is(mode.of("plain.status", "stream.status"), &what, "Paris")?;
        if most_attempts(ctx, 1) == Some(1) {
            holds(
                "provider.requests",
                seen <= 2,
                format!("{what} at the provider once, and once more after a dead connection"),
                format_args!("{seen} times"),
            )?;
        }
    }
    Ok(())
}

/// Four connections are kept, and all of them die on reuse.
async fn several_kept(ctx: &Ctx) -> CaseResult {
    const KEPT: usize = 4;
    let stub = ctx.stub("p4")?;
    let first = reply("ready").plan(Plan::met("all are connected", KEPT));
    stub.mount(chat().user_says("kept"), first).await;
    stub.answers(dies_on_reuse(Step::Reset));
    let kept = (0..KEPT).map(|n| {
        ctx.client
            .chat(ctx.prompt("several", &prompt(&format!("kept {n}"))))
    });
    try_join_all(kept).await?;
    for n in 0..KEPT {
        let text = prompt(&format!("several, request {n}"));
        let answer = ctx.client.chat(ctx.prompt("several", &text)).await?;
        Answered::Plain(answer).is(
            "several.status",
            "each kept connection dies on reuse",
            "Paris",
        )?;
    }
    reused(stub)
}

async fn retry_10(ctx: &Ctx) -> CaseResult {
    // given
    repeats_at_once(ctx)?;
    let p1 = ctx.stub("p1")?;
    until_retried(ctx, p1).await?;
    let last = |status: u16| error(status).header("x-should-retry", "false");
    let mut rows = Vec::new();
    for mode in MODES {
        for status in [429, 500, 503] {
            let fact = mode.of("provider.attempts", "stream.attempts");
            let name = format!("{mode}, status {status}");
            rows.push((name, mode, fact, vec![last(status)]));
        }
        let answers = vec![error(503), last(503)];
        rows.push((
            format!("{mode}, second attempt"),
            mode,
            "second.attempts",
            answers,
        ));
    }
    rows.retain(|(name, mode, ..)| possible(ctx, *mode, "solo", name));
    for (name, _, _, answers) in &rows {
        let answers = answers.iter().cloned().chain([reply("too often")]);
        let asked = chat().user_says(&prompt(name));
        p1.mount(asked, sequence(answers)).await;
    }
    p1.answers(reply("fine"));
    let mut deviations = Deviations::new();
    for (name, mode, fact, answers) in &rows {
        let judged = async {
            // when
            let body = ctx.prompt("solo", &prompt(name));
            let answer = mode.ask(&ctx.client, body).await?;
            // then
            let seen = p1.calls(&prompt(name)).len();
            equal(
                fact,
                "the number of attempts up to the one that forbids another",
                answers.len(),
                seen,
            )?;
            answer.is_error("answer.status", "the attempts have ended")
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.result()
}

async fn retry_11(ctx: &Ctx) -> CaseResult {
    // given
    repeats_at_once(ctx)?;
    let p1 = ctx.stub("p1")?;
    until_retried(ctx, p1).await?;
    p1.answers(sequence([error(503), error(500), reply("Paris")]));
    if ctx.spec.has_model("pair") {
        ctx.stub("p3")?.answers(error(503));
        ctx.stub("p4")?.answers(reply("Paris"));
    }
    let key = format!("key-{}", ctx.nonce);
    let client = ctx.client.with_header("idempotency-key", &key);
    let mut deviations = Deviations::new();
    for mode in MODES {
        for alias in ["solo", "pair"] {
            let which = if alias == "solo" {
                "each attempt"
            } else {
                "next candidate"
            };
            let name = format!("{mode}, {which}");
            if !possible(ctx, mode, alias, &name) {
                continue;
            }
            let judged = async {
                // when
                mode.ask(&client, ctx.prompt(alias, &prompt(&name))).await?;
                // then
                let (stub, fact) = match (alias, mode) {
                    ("pair", _) => ("p4", "fallback.idempotency_key"),
                    (_, Mode::Plain) => ("p1", "provider.idempotency_key"),
                    (_, Mode::Streamed) => ("p1", "stream.idempotency_key"),
                };
                let attempts = ctx.stub(stub)?.calls(&prompt(&name));
                if attempts.is_empty() {
                    return Err(Failure::NotExercised {
                        why: format!("{stub} was not asked ({name}), which RETRY-01 judges"),
                    });
                }
                let keys: Vec<Option<&str>> = attempts
                    .iter()
                    .map(|attempt| attempt.header("idempotency-key"))
                    .collect();
                holds(
                    fact,
                    keys.iter().all(|sent| *sent == Some(key.as_str())),
                    format!("the client's Idempotency-Key {key:?} on every attempt"),
                    json(&keys),
                )
            };
            deviations.note(ctx.examine(&name, judged).await)?;
        }
    }
    deviations.result()
}

/// The arrivals of the attempts of the request that holds `text`.
fn arrivals(stub: &Stub, text: &str) -> Vec<Entry> {
    let holds_text = |entry: &Entry| matches!(&entry.event, Event::RequestRead { body, .. } if body.contains(text));
    stub.tape().into_iter().filter(holds_text).collect()
}
