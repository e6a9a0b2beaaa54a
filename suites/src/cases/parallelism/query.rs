//! PARA, of queries: independent steps run together, and a step waits for its input.

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds, in_order};
use gauntlet_harness::gate::guard;
use gauntlet_harness::llm::{ReceivedRequest, Stub, error, reply};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::{Entry, Event};
use gauntlet_harness::wire::postgres::AtStatement;
use serde_json::Value;

use crate::cases::CaseRow;
use crate::cases::support::{
    ANSWER, PASSAGE, ask, complete, does_its_part, healthy, known, lost, on_postgres, patient,
    query, text,
};

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "PARA-04",
        why: "Steps that do not need each other, run one after the other, add up their times, and \
              nobody sees why a query is slow.",
        shown: "The provider of entity extraction and the database each hold their answer until the \
                other has been asked. Then one answers, and the other after another exchange, in either \
                order. Nothing may be missing.",
        remedy: "Start entity extraction and retrieval together, and wait for both.",
        needs: &[Capability::Query, Capability::Store, Capability::Chat],
        instances: &["entities released first", "search released first"],
        spec: || patient(on_postgres()),
        run: &para_04,
    },
    CaseRow {
        id: "PARA-05",
        why: "A step that starts without its input works on nothing: an answer that was written \
              before the facts were checked is unchecked.",
        shown: "The fact check, also one that fails, and then synthesis are held at a gate while another \
                exchange passes. On the tape, each step must start after the end of the step before it.",
        remedy: "Wait for the result of a step before the step that reads it.",
        needs: &[Capability::Query, Capability::Store, Capability::Chat],
        instances: &["fact check held", "fact check that fails", "synthesis held"],
        spec: || patient(query()),
        run: &para_05,
    },
    CaseRow {
        id: "PARA-06",
        why: "A join that gives up at the first error throws away the evidence that another step has \
              found.",
        shown: "Entity extraction fails while the search is held in the database. The search must go \
                on afterwards, and its passage must be used. Then the search fails while entity \
                extraction is held, and its names must be used.",
        remedy: "Wait for every parallel step, and take each result by itself (join, not try_join).",
        needs: &[Capability::Query, Capability::Store, Capability::Chat],
        instances: &[
            "entities, status 500",
            "entities, status 401",
            "entities, reset",
            "entities, text instead of JSON",
            "search refused",
        ],
        spec: || patient(on_postgres()),
        run: &para_06,
    },
];

async fn para_04(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    // given
    healthy(ctx)?;
    known(ctx).await?;
    for (name, order) in [
        ("entities released first", ["entities", "search"]),
        ("search released first", ["search", "entities"]),
    ] {
        deviations.note(ctx.examine(name, together(ctx, name, order)).await)?;
    }
    deviations.result()
}

/// Entity extraction and the search must be in flight together, and are released in this order.
async fn together(ctx: &Ctx, name: &str, order: [&str; 2]) -> CaseResult {
    let (entities, wire) = (ctx.stub("entities")?, ctx.database_wire()?);
    let gate = |step: &str| format!("{step} ({name})");
    let before = entities.requests().len();
    entities.answers(does_its_part("entities").plan(Plan::held(&gate("entities"))));
    let search = gate("search");
    wire.at_statement("passages", AtStatement::Hold(search.clone()));
    // when
    let releasing = async {
        entities.seen(before + 1).await?;
        wire.held(&search).await?;
        ctx.gates.gate(&gate(order[0])).open();
        sentinel(ctx).await?;
        ctx.gates.gate(&gate(order[1])).open();
        Ok(())
    };
    let (answer, ()) = futures::try_join!(complete(ctx), releasing)?;
    // then
    one_source(&answer)?;
    equal(
        "answer.entities",
        "the first entity of the answer",
        "Marie Curie",
        text(&answer["entities"][0], "name"),
    )
}

/// Another exchange, which comes after whatever has been caused by now.
async fn sentinel(ctx: &Ctx) -> CaseResult {
    let client = ctx.client.labelled("sentinel");
    client.chat(ctx.prompt("review", "sentinel")).await?;
    Ok(())
}

fn one_source(answer: &Value) -> CaseResult {
    equal(
        "answer.sources",
        "the number of sources",
        Some(1),
        answer["sources"].as_array().map(Vec::len),
    )
}

async fn para_05(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let plan = |gate: &str| Plan::held(gate);
    for (name, agent, answer) in [
        (
            "fact check held",
            "fact_check",
            does_its_part("fact_check").plan(plan("fact check held")),
        ),
        (
            "fact check that fails",
            "fact_check",
            error(500).plan(plan("fact check that fails")),
        ),
        (
            "synthesis held",
            "synthesis",
            does_its_part("synthesis").plan(plan("synthesis held")),
        ),
    ] {
        ctx.stub(agent)?.answers(answer);
        let examined = one_after_the_other(ctx, name, agent);
        deviations.note(ctx.examine(name, examined).await)?;
        healthy(ctx)?;
    }
    deviations.result()
}

/// Asks a question of which one agent is held at the gate of that name.
async fn one_after_the_other(ctx: &Ctx, gate: &str, agent: &str) -> CaseResult {
    let since = ctx.tape.entries().last().map_or(0, |entry| entry.seq);
    // when
    let releasing = async {
        let before = ctx.stub(agent)?.requests();
        let before = before.iter().filter(|call| call.seq <= since).count();
        ctx.stub(agent)?.seen(before + 1).await?;
        sentinel(ctx).await?;
        ctx.gates.gate(gate).open();
        Ok::<_, Failure>(())
    };
    let (answer, ()) = futures::try_join!(ask(ctx), releasing)?;
    equal("answer.status", "the status", 200, answer.status)?;
    // then
    let [fact_check, synthesis, citation, review] =
        ["fact_check", "synthesis", "citation", "review"].map(|agent| asked(ctx, agent, since));
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
    let mut deviations = Deviations::new();
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let held = |name: &str| Step::Hold(format!("failure ({name})"));
    let whole = |name: &str| Plan::of([held(name), Step::Head, Step::Rest]);
    for (name, failure) in [
        (
            "entities, status 500",
            error(500).plan(whole("entities, status 500")),
        ),
        (
            "entities, status 401",
            error(401).plan(whole("entities, status 401")),
        ),
        (
            "entities, reset",
            does_its_part("entities").plan(Plan::of([held("entities, reset"), Step::Reset])),
        ),
        (
            "entities, text instead of JSON",
            reply("I found Marie Curie.").plan(whole("entities, text instead of JSON")),
        ),
    ] {
        ctx.stub("entities")?.answers(failure);
        let examined = search_goes_on(ctx, name);
        deviations.note(ctx.examine(name, examined).await)?;
    }
    let examined = entities_go_on(ctx);
    deviations.note(ctx.examine("search refused", examined).await)?;
    deviations.result()
}

/// Entity extraction fails while the search is held.
async fn search_goes_on(ctx: &Ctx, name: &str) -> CaseResult {
    let (entities, wire) = (ctx.stub("entities")?, ctx.database_wire()?);
    let before = entities.requests().len();
    let search = format!("search ({name})");
    wire.at_statement("passages", AtStatement::Hold(search.clone()));
    // when
    let failing = async {
        wire.held(&search).await?;
        let failed = entities.seen(before + 1).await?.split_off(before);
        ctx.gates.gate(&format!("failure ({name})")).open();
        let over = |event: &Event| match event {
            Event::AnswerSent { request } => failed.iter().any(|call| call.request == *request),
            Event::Fault {
                request: Some(request),
                fault,
            } => fault.starts_with("reset") && failed.iter().any(|call| call.request == *request),
            _ => false,
        };
        guard(
            "hang.failure_sent",
            "the end of the failed answer of entity extraction",
            ctx.tape.wait_for(1, |entry| over(&entry.event)),
        )
        .await?;
        sentinel(ctx).await?;
        ctx.gates.gate(&search).open();
        Ok::<_, Failure>(())
    };
    let (answer, ()) = futures::try_join!(ask(ctx), failing)?;
    // then
    let document = answer.json();
    equal("answer.status", "the status", 200, answer.status)?;
    one_source(&document)?;
    lost_alone(&document, "entities")
}

/// The search fails while entity extraction is held.
async fn entities_go_on(ctx: &Ctx) -> CaseResult {
    const GATE: &str = "entities, search refused";
    let (entities, wire) = (ctx.stub("entities")?, ctx.database_wire()?);
    entities.answers(does_its_part("entities").plan(Plan::held(GATE)));
    let before = entities.requests().len();
    let searches = |entry: &Entry| matches!(&entry.event, Event::Database { what } if what.starts_with("statement: ") && what.to_lowercase().contains("from passages"));
    let searched = ctx.tape.select(searches).len();
    ctx.database()?.revoke_select(Some("passages")).await?;
    let failing = async {
        wire.statements("from passages", searched + 1).await?;
        entities.seen(before + 1).await?;
        sentinel(ctx).await?;
        ctx.gates.gate(GATE).open();
        Ok::<_, Failure>(())
    };
    let asked = futures::try_join!(ask(ctx), failing);
    ctx.database()?.grant_select(Some("passages")).await?;
    let (answer, ()) = asked?;
    let document = answer.json();
    equal("answer.status", "the status", 200, answer.status)?;
    // without the agent, names come from rules, which know no kind
    equal(
        "entities.used",
        "the kind of the first entity of the answer",
        "person",
        text(&document["entities"][0], "kind"),
    )?;
    lost_alone(&document, "retrieval")
}

fn lost_alone(document: &Value, step: &str) -> CaseResult {
    let lost = lost(document);
    holds(
        "degraded.steps",
        matches!(lost.as_slice(), [(only, _)] if only == step),
        format!("{step} as the only missing step"),
        format_args!("{lost:?}"),
    )
}

/// The agent's call for the question that was asked after `since`: the call that is not the
/// sentinel's.
fn asked(ctx: &Ctx, agent: &str, since: u64) -> Result<ReceivedRequest, Failure> {
    let calls = ctx.stub(agent)?.requests();
    let call = calls
        .into_iter()
        .find(|call| call.seq > since && !call.body.contains("sentinel"));
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
