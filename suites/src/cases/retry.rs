//! RETRY: what can pass by itself is tried again, within bounds, and nothing else is.

use std::time::{Duration, SystemTime};

use futures::future::try_join_all;
use gauntlet_harness::case::{
    CaseResult, Ctx, Deviations, Failure, State, equal, holds, json, silent,
};
use gauntlet_harness::gate::{at_least, gap, hang_guard, with_hang_guard};
use gauntlet_harness::llm::{Responder, Stub, chat, error, reply, sequence, with};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::Spec;
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::{Entry, Event};

use super::CaseRow;
use super::support::{repeats_at_once, silent_if, silent_in, statuses};

const RETRY: &[Capability] = &[Capability::Chat, Capability::Retry];

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "RETRY-01",
        why: "A provider's second of overload becomes the users' error where a gateway asks once; a \
              gateway that asks without an end turns it into an outage.",
        shown: "For each failure, the provider fails twice and answers the third attempt; so it does \
                for a stream. Another request always fails and must cost three attempts. No stub sees \
                a refused connection: there the case counts the attempts that the error lists, where \
                the target lists them.",
        remedy: "Retry 429, 500, 502, 503, 504 and broken connections before the first token, and count \
                 the attempts of a request.",
        needs: RETRY,
        instances: &[],
        spec: || attempts(3),
        run: &retry_01,
    },
    CaseRow {
        id: "RETRY-02",
        why: "A wrong request stays wrong; asking again costs the user's time and the provider's \
              capacity (https://github.com/Portkey-AI/gateway/issues/855).",
        shown: "The provider refuses with each status. After a further exchange it must have seen each \
                request once.",
        remedy: "Decide by the status whether a failure can pass by itself.",
        needs: RETRY,
        instances: &[],
        spec: || attempts(3),
        run: &retry_02,
    },
    CaseRow {
        id: "RETRY-03",
        why: "A gateway that asks earlier is limited for longer \
              (https://github.com/BerriAI/litellm/issues/7669); one that waits for any time holds \
              its users (https://github.com/BerriAI/litellm/issues/3274).",
        shown: "The second attempt must not come before the time that the provider asked for. A wait \
                of one hour exceeds the deadline of two minutes: the client must get an error long \
                before either, after one attempt.",
        remedy: "Take Retry-After as the shortest backoff; where it does not fit into the deadline, end \
                 the attempts at this candidate.",
        needs: RETRY,
        instances: &[],
        spec: || {
            let mut spec = attempts(2);
            spec.timeouts.total_ms = Some(120_000);
            spec
        },
        run: &retry_03,
    },
    CaseRow {
        id: "RETRY-04",
        why: "Clients that ask again at once, or all at the same moment, keep a recovering provider \
              down.",
        shown: "24 requests always fail. The mean of their n-th gaps must reach a quarter of the n-th \
                backoff: a backoff that is all jitter passes, and one that never grows does not. Lower \
                bounds cannot show that there is jitter.",
        remedy: "Double the backoff with each attempt, up to its bound, and make a part of it random.",
        needs: RETRY,
        instances: &[],
        spec: || {
            let mut spec = attempts(5);
            (spec.retry.base_ms, spec.retry.max_ms) = (400, 3_200);
            spec
        },
        run: &retry_04,
    },
    CaseRow {
        id: "RETRY-05",
        why: "A stream that was started again gave its beginning twice \
              (https://github.com/BerriAI/litellm/pull/32835).",
        shown: "The provider resets a stream after its first text. The client must get that text once, \
                and after a further exchange the provider must have seen the request once.",
        remedy: "Commit to an attempt with its first token; report a later failure as an error event.",
        needs: &[Capability::Chat, Capability::Stream, Capability::Retry],
        instances: &[],
        spec: || attempts(3),
        run: &retry_05,
    },
    CaseRow {
        id: "RETRY-06",
        why: "Retries multiply the load of a provider exactly when it cannot bear it \
              (https://github.com/BerriAI/litellm/issues/26015).",
        shown: "40 requests with up to four attempts each meet a provider that is down. With a ratio \
                of 0.25 and a floor of 5, it may see at most 55 attempts.",
        remedy: "Give each provider a budget of retries as a share of its requests.",
        needs: &[Capability::Chat, Capability::Retry, Capability::RetryBudget],
        instances: &[],
        spec: || {
            let mut spec = attempts(4);
            (spec.retry.budget_ratio, spec.retry.budget_floor) = (0.25, 5);
            spec
        },
        run: &retry_06,
    },
    CaseRow {
        id: "RETRY-07",
        why: "A provider that knows the key answers a repeated request once and bills it once; a new \
              key for each attempt pays twice.",
        shown: "The provider fails twice. The three attempts that it sees must have equal bodies and, \
                where the client sent an Idempotency-Key, equal headers of that name.",
        remedy: "Take the client's key and encode the body when the request arrives, and not when an \
                 attempt is sent.",
        needs: RETRY,
        instances: &[],
        spec: || attempts(3),
        run: &retry_07,
    },
    CaseRow {
        id: "RETRY-08",
        why: "Work for clients that had left held a proxy's capacity for half an hour \
              (https://github.com/BerriAI/litellm/issues/13774).",
        shown: "The client leaves while the provider holds the first attempt, which then fails. \
                Another request runs through two backoffs, which takes longer than one; afterwards the \
                provider must have seen the first request once.",
        remedy: "Tie the attempts of a request to its client's connection, so that dropping one ends \
                 the other.",
        needs: RETRY,
        instances: &[],
        spec: || {
            let mut spec = attempts(3);
            (spec.retry.base_ms, spec.retry.max_ms) = (300, 2_000);
            spec
        },
        run: &retry_08,
    },
    CaseRow {
        id: "RETRY-11",
        why: "A provider that knows the client's key answers a repeated request once and bills it once; \
              a key that is lost on the way protects nobody.",
        shown: "The client sends an Idempotency-Key, and the provider fails twice. All three attempts \
                must have the client's key.",
        remedy: "Send the client's Idempotency-Key on with every attempt.",
        needs: RETRY,
        instances: &[],
        spec: || attempts(3),
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

async fn retry_01(ctx: &Ctx) -> CaseResult {
    // given
    repeats_at_once(ctx)?;
    let p1 = ctx.stub("p1")?;
    let twice = |failure: Responder| sequence([failure.clone(), failure, reply("Paris")]);
    for status in [429, 500, 502, 503, 504] {
        p1.mount(
            chat().user_says(&format!("status {status}")),
            twice(error(status)),
        )
        .await;
    }
    p1.mount(
        chat().user_says("reset"),
        twice(reply("lost").plan(Plan::of([Step::Reset]))),
    )
    .await;
    p1.mount(chat().user_says("always"), error(503)).await;
    if ctx.declares(Capability::Stream) {
        p1.mount(chat().user_says("streamed"), twice(error(503)))
            .await;
    }
    // when
    let prompts = [
        "status 429",
        "status 500",
        "status 502",
        "status 503",
        "status 504",
        "reset",
    ];
    let answers =
        try_join_all(prompts.map(|prompt| ctx.client.chat(ctx.prompt("solo", prompt)))).await?;
    let hopeless = ctx.client.chat(ctx.prompt("solo", "always")).await?;
    // then
    for (prompt, answer) in prompts.iter().zip(&answers) {
        equal(
            "answer.status",
            &format!("the status after two failures ({prompt})"),
            200,
            answer.status,
        )?;
        equal(
            "provider.attempts",
            &format!("the number of attempts ({prompt})"),
            3,
            p1.calls(prompt).len(),
        )?;
    }
    holds(
        "hopeless.status",
        hopeless.status >= 500,
        "an error once the attempts are used up",
        hopeless.status,
    )?;
    equal(
        "hopeless.attempts",
        "the number of attempts at a provider that always fails",
        3,
        p1.calls("always").len(),
    )?;
    if ctx.declares(Capability::Stream) {
        let stream = ctx.client.streamed(ctx.prompt("solo", "streamed")).await?;
        equal(
            "stream.answer",
            "the status and the text of a stream after two failures",
            (200, "Paris"),
            (stream.status, stream.text.as_str()),
        )?;
    }
    if ctx.declares(Capability::AttemptList) {
        refused_attempts(ctx).await
    } else {
        Ok(())
    }
}

/// No stub sees a refused connection: the case counts the attempts that the error lists.
async fn refused_attempts(ctx: &Ctx) -> CaseResult {
    ctx.stub("p1")?.listen(Listen::Refuse).await?;
    let refused = ctx.client.chat(ctx.prompt("solo", "refused")).await?;
    let listed = refused.json()["error"]["attempts"]
        .as_array()
        .map_or(0, Vec::len);
    equal(
        "refused.attempts",
        "the number of attempts that the error lists for a provider that refuses connections",
        3,
        listed,
    )
}

async fn retry_02(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    const REFUSALS: [u16; 6] = [400, 401, 403, 404, 413, 422];
    for status in REFUSALS {
        p1.mount(chat().user_says(&format!("status {status}")), error(status))
            .await;
    }
    p1.mount(chat().user_says("afterwards"), reply("fine"))
        .await;
    // when
    let mut statuses = Vec::new();
    for status in REFUSALS {
        statuses.push(
            ctx.client
                .chat(ctx.prompt("solo", &format!("status {status}")))
                .await?
                .status,
        );
    }
    let afterwards = ctx.client.chat(ctx.prompt("solo", "afterwards")).await?;
    // then
    holds(
        "refused.statuses",
        statuses.iter().all(|status| *status >= 400),
        "an error for each refusal",
        json(&statuses),
    )
    .map_err(silent)?;
    equal(
        "next.status",
        "the status of the request that follows",
        200,
        afterwards.status,
    )?;
    let mut deviations = Deviations::new();
    for status in REFUSALS {
        deviations.note(equal(
            "provider.attempts",
            &format!("the number of attempts after {status}"),
            1,
            p1.calls(&format!("status {status}")).len(),
        ))?;
    }
    deviations.result()
}

async fn retry_03(ctx: &Ctx) -> CaseResult {
    // given
    repeats_at_once(ctx)?;
    let p1 = ctx.stub("p1")?;
    until_retried(ctx, p1).await?;
    // a date has whole seconds: two from now, rounded down, is more than one away
    let dated = with(|_| {
        error(429).retry_after(httpdate::fmt_http_date(
            SystemTime::now() + Duration::from_secs(2),
        ))
    });
    p1.mount(
        chat().user_says("in a second"),
        sequence([error(429).retry_after(1), reply("Paris")]),
    )
    .await;
    p1.mount(
        chat().user_says("at a time"),
        sequence([dated, reply("Paris")]),
    )
    .await;
    p1.mount(
        chat().user_says("in an hour"),
        error(429).retry_after(3_600),
    )
    .await;
    // when
    let prompts = ["in a second", "at a time", "in an hour"];
    let answers =
        try_join_all(prompts.map(|prompt| ctx.client.chat(ctx.prompt("solo", prompt)))).await?;
    // then
    for (prompt, answer) in prompts.iter().zip(&answers).take(2) {
        equal(
            "answer.status",
            &format!(
                "the status where the wait that was asked for ({prompt}) fits into the deadline"
            ),
            200,
            answer.status,
        )?;
        if let [first, second] = arrivals(p1, prompt).as_slice() {
            at_least(
                "retry_after.gap",
                &format!("the second attempt, asked to come {prompt},"),
                gap(first, second),
                Duration::from_secs(1),
            )?;
        } else {
            equal(
                "provider.attempts",
                &format!("the number of attempts ({prompt})"),
                2,
                arrivals(p1, prompt).len(),
            )?;
        }
    }
    holds(
        "hour.status",
        answers[2].status >= 400,
        "an error where the wait does not fit into the deadline",
        answers[2].status,
    )
    .map_err(silent)?;
    equal(
        "hour.attempts",
        "the number of attempts where the wait does not fit into the deadline",
        1,
        p1.calls("in an hour").len(),
    )
}

async fn retry_04(ctx: &Ctx) -> CaseResult {
    // given
    repeats_at_once(ctx)?;
    const REQUESTS: usize = 24;
    let p1 = ctx.stub("p1")?;
    until_retried(ctx, p1).await?;
    p1.answers(error(503));
    // when
    let prompts: Vec<String> = (0..REQUESTS).map(|n| format!("request <{n}>")).collect();
    let asked = try_join_all(
        prompts
            .iter()
            .map(|prompt| ctx.client.chat(ctx.prompt("solo", prompt))),
    );
    // a gateway may have a longer backoff than the configured one
    with_hang_guard(2 * hang_guard(), asked).await?;
    // then
    let attempts: Vec<Vec<Entry>> = prompts.iter().map(|prompt| arrivals(p1, prompt)).collect();
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
        all / REQUESTS as u32
    };
    // a gap below half of the first backoff shows that there is no backoff at all
    let none = attempts
        .iter()
        .any(|of_one| gap(&of_one[3], &of_one[4]) < Duration::from_millis(100));
    let fact = if none {
        "retry.backoff"
    } else {
        "retry.growth"
    };
    // the longest first, since a busy machine lengthens the short ones
    for (n, backoff) in [400, 800, 1_600, 3_200].into_iter().enumerate().rev() {
        let quarter = Duration::from_millis(backoff / 4);
        at_least(
            fact,
            &format!("retry {} of {REQUESTS} requests, on average,", n + 1),
            mean(n),
            quarter,
        )?;
    }
    Ok(())
}

async fn retry_05(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let broken = reply("")
        .tokens(["Par", "is"])
        .plan(Plan::events_then(2, Step::Reset));
    p1.mount(
        chat().user_says("capital"),
        sequence([broken, reply("").tokens(["Par", "is"])]),
    )
    .await;
    p1.mount(chat().user_says("afterwards"), reply("fine"))
        .await;
    // when
    let stream = ctx.client.streamed(ctx.prompt("solo", "capital")).await?;
    let afterwards = ctx
        .client
        .streamed(ctx.prompt("solo", "afterwards"))
        .await?;
    // then
    equal(
        "stream.text",
        "the text of the stream",
        "Par",
        stream.text.as_str(),
    )
    .map_err(silent_in(&stream))?;
    // whether the stream reports its end is judged by STRM-02
    equal(
        "next.text",
        "the text of the stream that follows",
        "fine",
        afterwards.text.as_str(),
    )?;
    equal(
        "provider.attempts",
        "the number of attempts",
        1,
        p1.calls("capital").len(),
    )
}

async fn retry_06(ctx: &Ctx) -> CaseResult {
    // given
    repeats_at_once(ctx)?;
    const REQUESTS: usize = 40;
    const MOST: usize = REQUESTS + REQUESTS / 4 + 5;
    let p1 = ctx.stub("p1")?;
    p1.answers(error(503));
    // when
    let asked = (0..REQUESTS).map(|n| {
        ctx.client
            .chat(ctx.prompt("solo", &format!("request <{n}>")))
    });
    let answers = try_join_all(asked).await?;
    // then
    holds(
        "answers.statuses",
        answers.iter().all(|answer| answer.status >= 500),
        "an error of 500 or more for each request to a provider that only fails",
        json(&statuses(&answers)),
    )
    .map_err(silent_if(answers.iter().any(|answer| answer.status < 400)))?;
    let seen = p1.requests().len();
    holds(
        "provider.attempts",
        seen <= MOST,
        format!("at most {MOST} attempts for {REQUESTS} requests"),
        format_args!("{seen} attempts"),
    )?;
    if seen > REQUESTS {
        ctx.reached(State::RetryBudgetSpent);
    }
    Ok(())
}

async fn retry_07(ctx: &Ctx) -> CaseResult {
    // given
    repeats_at_once(ctx)?;
    let p1 = ctx.stub("p1")?;
    until_retried(ctx, p1).await?;
    p1.answers(sequence([error(503), error(500), reply("Paris")]));
    // when
    let own = ctx
        .client
        .with_header("idempotency-key", &format!("key-{}", ctx.nonce));
    for (client, prompt) in [(&ctx.client, "without a key"), (&own, "with a key")] {
        equal(
            "answer.status",
            "the status",
            200,
            client.chat(ctx.prompt("solo", prompt)).await?.status,
        )?;
    }
    // then
    for prompt in ["without a key", "with a key"] {
        let attempts = p1.calls(prompt);
        equal(
            "provider.attempts",
            "the number of attempts",
            3,
            attempts.len(),
        )?;
        for attempt in &attempts {
            equal(
                "attempt.body",
                "the body of a later attempt",
                attempts[0].body.as_str(),
                attempt.body.as_str(),
            )?;
            if prompt == "with a key" {
                equal(
                    "idempotency_key.same",
                    "the Idempotency-Key of a later attempt, where the client sent one,",
                    attempts[0].header("idempotency-key"),
                    attempt.header("idempotency-key"),
                )?;
            }
        }
    }
    Ok(())
}

async fn retry_08(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    until_retried(ctx, p1).await?;
    let held = error(503).plan(Plan::held("until the client has gone"));
    p1.mount(
        chat().user_says("left"),
        sequence([held, reply("for nobody")]),
    )
    .await;
    p1.mount(
        chat().user_says("stayed"),
        sequence([error(503), error(503), reply("fine")]),
    )
    .await;
    // when
    let leaving = ctx.client.send_chat(ctx.prompt("solo", "left")).await?;
    p1.held(1).await?;
    leaving.leave();
    ctx.gates.gate("until the client has gone").open();
    let stayed = ctx.client.chat(ctx.prompt("solo", "stayed")).await?;
    // then
    equal(
        "stayed.status",
        "the status of the client that stayed",
        200,
        stayed.status,
    )?;
    equal(
        "left.attempts",
        "the number of attempts for the client that left",
        1,
        p1.calls("left").len(),
    )
}

async fn retry_11(ctx: &Ctx) -> CaseResult {
    // given
    repeats_at_once(ctx)?;
    let p1 = ctx.stub("p1")?;
    until_retried(ctx, p1).await?;
    p1.answers(sequence([error(503), error(500), reply("Paris")]));
    let key = format!("key-{}", ctx.nonce);
    // when
    let client = ctx.client.with_header("idempotency-key", &key);
    client.chat(ctx.prompt("solo", "capital")).await?;
    // then
    p1.seen(1).await?;
    let attempts = p1.calls("capital");
    let keys: Vec<Option<&str>> = attempts
        .iter()
        .map(|attempt| attempt.header("idempotency-key"))
        .collect();
    holds(
        "provider.idempotency_key",
        keys.iter().all(|sent| *sent == Some(key.as_str())),
        format!("the client's Idempotency-Key {key:?} on every attempt"),
        json(&keys),
    )
}

/// The arrivals of the attempts of the request that holds `text`.
fn arrivals(stub: &Stub, text: &str) -> Vec<Entry> {
    let holds_text = |entry: &Entry| matches!(&entry.event, Event::RequestRead { body, .. } if body.contains(text));
    stub.tape().into_iter().filter(holds_text).collect()
}
