//! PARA, of queries: independent steps run together, and a step waits for its input.

use gauntlet_harness::case::{CaseResult, Ctx, Failure, equal, holds, in_order};
use gauntlet_harness::gate::guard;
use gauntlet_harness::llm::{ReceivedRequest, Stub, error};
use gauntlet_harness::plan::Plan;
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::Event;
use gauntlet_harness::wire::postgres::AtStatement;

use crate::cases::CaseRow;
use crate::cases::support::{
    ANSWER, PASSAGE, STORED, ask, complete, does_its_part, healthy, known, lost, on_postgres,
    patient, query,
};

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "PARA-04",
        why: "Steps that do not need each other, run one after the other, add up their times, and \
              nobody sees why a query is slow.",
        shown: "The provider of entity extraction and the database each hold their answer until the \
                other has been asked. Then both answer, and nothing may be missing.",
        remedy: "Start entity extraction and retrieval together, and wait for both.",
        needs: STORED,
        instances: &[],
        spec: || patient(on_postgres()),
        run: &para_04,
    },
    CaseRow {
        id: "PARA-05",
        why: "A step that starts without its input works on nothing: an answer that was written \
              before the facts were checked is unchecked.",
        shown: "The fact check is held at a gate while another exchange passes. On the tape, each step \
                must start after the end of the step before it.",
        remedy: "Wait for the result of a step before the step that reads it.",
        needs: &[Capability::Query, Capability::Store, Capability::Chat],
        instances: &[],
        spec: || patient(query()),
        run: &para_05,
    },
    CaseRow {
        id: "PARA-06",
        why: "A join that gives up at the first error throws away the evidence that another step has \
              found.",
        shown: "Entity extraction fails while the search is held in the database. The search must go \
                on afterwards, and its passage must be used.",
        remedy: "Wait for every parallel step, and take each result by itself (join, not try_join).",
        needs: &[Capability::Query, Capability::Store, Capability::Chat],
        instances: &[],
        spec: || patient(on_postgres()),
        run: &para_06,
    },
];

async fn para_04(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let (entities, wire) = (ctx.stub("entities")?, ctx.database_wire()?);
    entities.answers(does_its_part("entities").plan(Plan::held("entities")));
    wire.at_statement("passages", AtStatement::Hold("search".into()));
    // when
    let together = async {
        entities.held(1).await?;
        wire.held("search").await?;
        ["entities", "search"]
            .iter()
            .for_each(|gate| ctx.gates.gate(gate).open());
        Ok(())
    };
    let (answer, ()) = futures::try_join!(complete(ctx), together)?;
    // then
    equal(
        "answer.sources",
        "the number of sources",
        Some(1),
        answer["sources"].as_array().map(Vec::len),
    )
}

async fn para_05(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    known(ctx).await?;
    ctx.stub("fact_check")?
        .answers(does_its_part("fact_check").plan(Plan::held("checked")));
    // when
    let checking = async {
        ctx.stub("fact_check")?.held(1).await?;
        ctx.client
            .labelled("sentinel")
            .chat(ctx.prompt("synthesis", "sentinel"))
            .await?;
        ctx.gates.gate("checked").open();
        Ok::<_, Failure>(())
    };
    let (_, ()) = futures::try_join!(complete(ctx), checking)?;
    // then
    let [fact_check, synthesis, citation, review] =
        ["fact_check", "synthesis", "citation", "review"].map(|agent| asked(ctx, agent));
    let (fact_check, synthesis, citation, review) = (fact_check?, synthesis?, citation?, review?);
    holds(
        "fact_check.passage",
        fact_check.body.contains(PASSAGE),
        "a fact check that receives the passage",
        &fact_check.body,
    )?;
    let checked = answered(ctx.stub("fact_check")?, &fact_check)?;
    in_order(
        "synthesis.order",
        ("the fact check's answer", checked),
        ("synthesis", synthesis.seq),
    )?;
    let written = answered(ctx.stub("synthesis")?, &synthesis)?;
    for (name, order, content, later) in [
        ("citation", "citation.order", "citation.answer", citation),
        ("review", "review.order", "review.answer", review),
    ] {
        in_order(order, ("synthesis's answer", written), (name, later.seq))?;
        holds(
            content,
            later.body.contains(ANSWER),
            format!("a call of {name} that holds the answer"),
            &later.body,
        )?;
    }
    Ok(())
}

async fn para_06(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    known(ctx).await?;
    ctx.stub("entities")?
        .answers(error(500).plan(Plan::held("failure")));
    ctx.database_wire()?
        .at_statement("passages", AtStatement::Hold("search".into()));
    // when
    let failing = async {
        ctx.database_wire()?.held("search").await?;
        ctx.gates.gate("failure").open();
        let failed = ctx.stub("entities")?.seen(1).await?;
        let over = |event: &Event| matches!(event, Event::AnswerSent { request } if failed.iter().any(|call| call.request == *request));
        guard(
            "hang.failure_sent",
            "the end of the failed answer of entity extraction",
            ctx.tape.wait_for(1, |entry| over(&entry.event)),
        )
        .await?;
        ctx.client
            .labelled("sentinel")
            .chat(ctx.prompt("review", "sentinel"))
            .await?;
        ctx.gates.gate("search").open();
        Ok::<_, Failure>(())
    };
    let (answer, ()) = futures::try_join!(ask(ctx), failing)?;
    // then
    let document = answer.json();
    equal("answer.status", "the status", 200, answer.status)?;
    equal(
        "answer.sources",
        "the number of sources",
        Some(1),
        document["sources"].as_array().map(Vec::len),
    )?;
    let lost = lost(&document);
    holds(
        "degraded.steps",
        matches!(lost.as_slice(), [(step, _)] if step == "entities"),
        "entities as the only missing step",
        format_args!("{lost:?}"),
    )
}

/// The agent's call for the question: the call that is not the sentinel's.
fn asked(ctx: &Ctx, agent: &str) -> Result<ReceivedRequest, Failure> {
    let calls = ctx.stub(agent)?.requests();
    let call = calls
        .into_iter()
        .find(|call| !call.body.contains("sentinel"));
    let none = || Failure::Violated {
        fact: "agent.asked".into(),
        expected: format!("{agent} asked"),
        observed: "it was not".into(),
        mode: gauntlet_harness::case::FailureMode::Visible,
    };
    call.ok_or_else(none)
}

/// The position on the tape at which the answer to the call had been sent.
fn answered(stub: &Stub, call: &ReceivedRequest) -> Result<u64, Failure> {
    let sent = stub.tape().into_iter().find(
        |entry| matches!(entry.event, Event::AnswerSent { request } if request == call.request),
    );
    sent.map(|entry| entry.seq).ok_or_else(|| Failure::Harness {
        what: format!("{} has not answered", stub.name()),
    })
}
