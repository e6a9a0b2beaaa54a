//! CANC: nothing works any longer for a client that has left.

use gauntlet_harness::case::{CaseResult, Ctx, equal, holds};
use gauntlet_harness::llm::reply;
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{Spec, Timeouts};
use gauntlet_harness::subject::Capability;

use serde_json::json;

use super::CaseRow;
use super::support::{
    QUERIES, STORED, does_its_part, healthy, known, listed, lost, patient, query, text,
};
use crate::agents::AGENTS;

/// The deadline of a query whose agent never answers, in milliseconds.
const DEADLINE_MS: u64 = 2_000;

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "CANC-01",
        why: "Calls whose client had gone ran on for half an hour, and were billed \
              (https://github.com/BerriAI/litellm/issues/37140).",
        shown: "The provider holds a plain and a streamed answer. Both clients leave, and the provider \
                must see both connections close. No timeout is near.",
        remedy: "Watch the client's connection while the provider works, and drop the call when it \
                 closes.",
        needs: &[Capability::Chat, Capability::Stream],
        instances: &[],
        spec: || Spec::solo().model_timeouts("solo", Timeouts::PATIENT),
        run: &canc_01,
    },
    CaseRow {
        id: "CANC-02",
        why: "Streams went on token by token after their client had gone \
              (https://github.com/BerriAI/litellm/issues/13774).",
        shown: "The client reads two pieces of text and leaves: once where the provider then is \
                silent, and once where it repeats an event forever.",
        remedy: "Drop the provider's stream when a write to the client fails or its connection closes, \
                 and never read it to its end.",
        needs: &[Capability::Chat, Capability::Stream],
        instances: &[],
        spec: || Spec::solo().model_timeouts("solo", Timeouts::PATIENT),
        run: &canc_02,
    },
    CaseRow {
        id: "CANC-03",
        why: "A query is many paid calls, and those of a reader who has left are paid for nobody.",
        shown: "The client leaves while one agent is held, for each agent. Its provider must see the \
                connection close, no later agent may be asked, and the query must be listed as \
                cancelled.",
        remedy: "Run a query inside the request's own future, and record it when that future is \
                 dropped.",
        needs: STORED,
        instances: &[],
        spec: || patient(query()),
        run: &canc_03,
    },
    CaseRow {
        id: "CANC-04",
        why: "A timeout that answers the client but leaves the call running frees nothing: the \
              provider goes on, and so does the bill.",
        shown: "For each agent, the agent never answers, with timeouts far beyond the query's deadline \
                (in the body or in the header). The deadline must answer the client and close the \
                connection.",
        remedy: "Drop the future of the call, and with it the connection, when its share of the \
                 deadline is over.",
        needs: STORED,
        instances: &[],
        spec: || patient(query()),
        run: &canc_04,
    },
];

async fn canc_01(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("for nobody").plan(Plan::held("never")));
    let plain = ctx.client.send_chat(ctx.prompt("solo", "plain")).await?;
    let streamed = ctx
        .client
        .send_stream(ctx.prompt("solo", "streamed"))
        .await?;
    p1.held(2).await?;
    // when
    plain.leave();
    streamed.leave();
    // then
    p1.peer_closed(2).await.map(|_| ())
}

async fn canc_02(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let then = |last: Step| {
        reply("")
            .tokens(["Par", "is"])
            .plan(Plan::of([Step::Head, Step::Events(3), last]))
    };
    for (n, last) in [Step::Stall, Step::RepeatForever { every_ms: 20 }]
        .into_iter()
        .enumerate()
    {
        p1.answers(then(last));
        let mut stream = ctx.client.stream(ctx.prompt("solo", "capital")).await?;
        equal(
            "stream.text",
            "the text of the stream",
            "Paris",
            stream.text_of(5).await?.as_str(),
        )?;
        // when
        stream.leave();
        // then
        p1.peer_closed(n + 1).await?;
    }
    Ok(())
}

async fn canc_03(ctx: &Ctx) -> CaseResult {
    // given
    known(ctx).await?;
    for (n, agent) in AGENTS.iter().enumerate() {
        healthy(ctx)?;
        let stub = ctx.stub(agent.name)?;
        stub.answers(does_its_part(agent.name).plan(Plan::held("never")));
        let question = format!("Who discovered radium, left at {}?", agent.name);
        let body = json!({"question": format!("{question} [{}]", ctx.nonce)}).to_string();
        // when
        let json = [("content-type", "application/json")];
        let asked = ctx
            .client
            .send("POST", QUERIES, &json, body.as_bytes())
            .await?;
        stub.held(1).await?;
        asked.leave();
        // then
        stub.peer_closed(1).await?;
        let cancelled = listed(ctx, "&status=cancelled", n + 1).await?;
        holds(
            "record.question",
            text(&cancelled[0], "question").contains(&question),
            format!("the query that was left at {} as cancelled", agent.name),
            &cancelled[0],
        )?;
        for later in AGENTS.iter().filter(|later| later.phase > agent.phase) {
            equal(
                "later.calls",
                &format!(
                    "the number of calls of {} after the client left",
                    later.name
                ),
                0,
                ctx.stub(later.name)?.calls(&question).len(),
            )?;
        }
    }
    Ok(())
}

async fn canc_04(ctx: &Ctx) -> CaseResult {
    // given
    known(ctx).await?;
    for (n, agent) in AGENTS.iter().enumerate() {
        healthy(ctx)?;
        let stub = ctx.stub(agent.name)?;
        stub.answers(does_its_part(agent.name).plan(Plan::silent()));
        let question = format!("Who discovered radium? [{}]", ctx.nonce);
        // when
        let answer = if n % 2 == 0 {
            let body = json!({"question": question, "deadline_ms": DEADLINE_MS});
            ctx.client.post(QUERIES, body).await?
        } else {
            let deadline = DEADLINE_MS.to_string();
            let client = ctx.client.with_header("x-request-timeout-ms", &deadline);
            client.post(QUERIES, json!({"question": question})).await?
        };
        // then
        holds(
            "answer.status",
            [200, 503].contains(&answer.status),
            "a status of 200 or 503",
            answer.status,
        )?;
        let document = answer.json();
        let document = if answer.status == 200 {
            &document
        } else {
            &document["query"]
        };
        let lost = lost(document);
        holds(
            "degraded.cause",
            lost.contains(&(agent.name.to_owned(), "timeout".to_owned())),
            format!("{} among the missing steps, by timeout", agent.name),
            format_args!("{lost:?}"),
        )?;
        stub.peer_closed(1).await?;
    }
    Ok(())
}
