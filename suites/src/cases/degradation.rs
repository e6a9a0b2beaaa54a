//! DEGR: a failure costs the answer something, never the answer itself, and the answer reports it.

use futures::future::try_join_all;
use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, State, equal, holds, silent};
use gauntlet_harness::client::Reply;
use gauntlet_harness::gate::converge;
use gauntlet_harness::llm::{Responder, error, reply};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::{Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use serde_json::{Value, json};

use super::CaseRow;
use super::support::{
    ANSWER, PASSAGE, QUERIES, STORED, ask, complete, degraded, does_its_part, healthy, known, lost,
    number, on_postgres, past_the_bench, query, soon_without_store, statuses, text, until_status,
    with_spare,
};
use crate::agents;

/// The causes by which a step of the store may be missing.
const STORE_CAUSES: &[&str] = &["store_unavailable", "store_busy", "timeout", "error"];

/// The specification with little time for each model, for cases in which one never answers.
fn brief(mut spec: Spec) -> Spec {
    for model in &mut spec.models {
        model.timeouts = Timeouts {
            first_token_ms: Some(1_500),
            idle_ms: Some(1_500),
            total_ms: Some(1_500),
            ..Timeouts::default()
        };
    }
    spec
}

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "DEGR-01",
        why: "If a helper's failure fails the whole query, the least important model becomes the \
              weakest link.",
        shown: "Entity extraction fails by every cause, one after the other, and works in between; then \
                its breaker is open. Each query must be answered, and must give the cause for which it \
                lacks entities.",
        remedy: "Replace the step by rules, carry its cause to the outcome, and go on.",
        needs: &[Capability::Query, Capability::Store, Capability::Breaker],
        instances: &[
            "status 500",
            "status 503",
            "status 429",
            "status 401",
            "closed connection",
            "no answer",
            "half an answer",
            "text instead of JSON",
            "JSON without the field",
            "half of the JSON",
            "no text",
            "breaker open",
        ],
        spec: || {
            let mut spec = brief(query());
            spec.breaker.failure_threshold = 2;
            spec
        },
        run: &degr_01,
    },
    CaseRow {
        id: "DEGR-03",
        why: "Readers believe an answer from the model's memory that looks as sure as one from \
              documents.",
        shown: "The table of passages is locked, so that no search ends; then every search is refused. \
                The answer must have no source and cite none, report that, and have a lower confidence \
                than the answer before.",
        remedy: "Bound the search, go on without sources, and take their share out of the confidence.",
        needs: STORED,
        instances: &["statements that wait", "statements that are refused"],
        spec: on_postgres,
        run: &degr_03,
    },
    CaseRow {
        id: "DEGR-04",
        why: "\"Verified\" as a default is worse than no check at all: the reader stops looking.",
        shown: "The client asks the same question with a fact check that works, that fails by every \
                cause, and that does not bear every claim out.",
        remedy: "Mark an answer as verified only if a check was made of every claim.",
        needs: STORED,
        instances: &[
            "status 500",
            "status 503",
            "status 429",
            "status 401",
            "closed connection",
            "no answer",
            "half an answer",
            "text instead of JSON",
            "JSON without the field",
            "half of the JSON",
            "no text",
            "a claim that is contradicted",
            "a claim that is unclear",
            "one claim of two that is contradicted",
            "no claim",
            "a claim whose quote stands nowhere",
        ],
        spec: || brief(query()),
        run: &degr_04,
    },
    CaseRow {
        id: "DEGR-05",
        why: "The evidence was found and paid for; \"try again later\" throws it away.",
        shown: "Both candidates of synthesis fail, in many ways, or answer nothing that can be used. \
                The answer must quote the passage and cite it. Where the first candidate alone fails, \
                the second must write the answer.",
        remedy: "Quote the best passages where no model can write an answer from them.",
        needs: &[Capability::Query, Capability::Store, Capability::Fallback],
        instances: &[
            "status 500, then 503",
            "closed connection, then status 429",
            "no answer, then status 500",
            "status 500, then no answer",
            "text instead of JSON",
            "status 500, then text instead of JSON",
            "an empty answer",
            "first candidate alone",
        ],
        spec: || brief(with_spare()),
        run: &degr_05,
    },
    CaseRow {
        id: "DEGR-06",
        why: "What comes after the answer cannot unmake it, and what was not checked must not pass \
              as checked.",
        shown: "Each agent that runs after the answer fails by every cause; then all of them fail. Each \
                answer must stand and name the steps that it lacks.",
        remedy: "Make these steps optional, and report their loss.",
        needs: STORED,
        instances: &[
            "citation, status 500",
            "citation, status 503",
            "citation, status 429",
            "citation, status 401",
            "citation, closed connection",
            "citation, no answer",
            "citation, half an answer",
            "citation, text instead of JSON",
            "citation, JSON without the field",
            "citation, half of the JSON",
            "citation, no text",
            "review, status 500",
            "review, status 503",
            "review, status 429",
            "review, status 401",
            "review, closed connection",
            "review, no answer",
            "review, half an answer",
            "review, text instead of JSON",
            "review, JSON without the field",
            "review, half of the JSON",
            "review, no text",
            "citation and review",
        ],
        spec: || brief(query()),
        run: &degr_06,
    },
    CaseRow {
        id: "DEGR-07",
        why: "Every dashboard counts a 200 without an answer as a success, and nobody can look into \
              a failure without a record.",
        shown: "No document is stored and every model fails, in many ways. The answer must be 503 in \
                the usual envelope with the query beside it, and the same document must be found under \
                its id and in the listing.",
        remedy: "Answer 503 when there is no answer, and record failures like answers.",
        needs: STORED,
        instances: &[
            "status 500",
            "closed connection",
            "no answer",
            "text instead of JSON",
        ],
        spec: || brief(query()),
        run: &degr_07,
    },
    CaseRow {
        id: "DEGR-08",
        why: "A gateway that needs its database for every answer makes the database's outage \
              everybody's (https://github.com/BerriAI/litellm/issues/38121).",
        shown: "The disk of the database is full; then its connections are reset and new ones refused, \
                during a query and before one. The models alone must answer, and readiness must be 503. \
                Once the database is back, queries must be recorded again.",
        remedy: "Answer without the record, report that there is none, and let readiness show it.",
        needs: &[Capability::Query, Capability::Store, Capability::Health],
        instances: &[
            "the record alone",
            "gone during the query",
            "gone before the query",
            "every model fails too",
            "back again",
        ],
        spec: || soon_without_store(on_postgres()),
        run: &degr_08,
    },
    CaseRow {
        id: "DEGR-11",
        why: "A proxy that had lost its database stayed broken after the database was back, until \
              somebody restarted it (https://github.com/BerriAI/litellm/issues/38121).",
        shown: "Every model fails for queries, where the target declares them, in many ways, and for a \
                chat; then every model answers, and the next query, chat and stream must be answered. A \
                provider restarts after four requests that it had together; the next four must be \
                answered.",
        remedy: "Let no part of the gateway remember a failure for longer than a breaker's cool-down.",
        needs: &[Capability::Chat],
        instances: &[
            "query, status 503",
            "query, status 401",
            "query, closed connection",
            "query, text instead of JSON",
            "chat",
            "streamed chat",
            "provider restarted",
        ],
        spec: query,
        run: &degr_11,
    },
];

/// A way in which the model of an agent fails.
struct AgentFault {
    name: &'static str,
    /// What the model of this agent answers.
    answer: fn(&str) -> Responder,
    /// The causes that a gateway may give for it.
    causes: &'static [&'static str],
}

const AGENT_FAULTS: [AgentFault; 11] = [
    AgentFault {
        name: "status 500",
        answer: |_| error(500),
        causes: &["error"],
    },
    AgentFault {
        name: "status 503",
        answer: |_| error(503),
        causes: &["error"],
    },
    AgentFault {
        name: "status 429",
        answer: |_| error(429),
        causes: &["error"],
    },
    AgentFault {
        name: "status 401",
        answer: |_| error(401),
        causes: &["error"],
    },
    AgentFault {
        name: "closed connection",
        answer: |agent| does_its_part(agent).plan(Plan::of([Step::Cut])),
        causes: &["error"],
    },
    AgentFault {
        name: "no answer",
        answer: |agent| does_its_part(agent).plan(Plan::silent()),
        causes: &["timeout"],
    },
    AgentFault {
        name: "half an answer",
        answer: |agent| {
            does_its_part(agent).plan(Plan::of([Step::Head, Step::Bytes(20), Step::Cut]))
        },
        causes: &["error", "invalid_output"],
    },
    AgentFault {
        name: "text instead of JSON",
        answer: |_| reply("I have done what you asked for."),
        causes: &["invalid_output"],
    },
    AgentFault {
        name: "JSON without the field",
        answer: |_| reply("{}"),
        causes: &["invalid_output"],
    },
    AgentFault {
        name: "half of the JSON",
        answer: |agent| {
            let whole = agents::healthy(agent).to_string();
            reply(&whole[..whole.len() - 1])
        },
        causes: &["invalid_output"],
    },
    AgentFault {
        name: "no text",
        answer: |_| reply(""),
        causes: &["invalid_output", "error"],
    },
];

/// The way to fail of this name.
fn fault(name: &str) -> Result<&'static AgentFault, Failure> {
    const FAULTS: &[AgentFault] = &AGENT_FAULTS;
    let fault = FAULTS.iter().find(|fault| fault.name == name);
    fault.ok_or_else(|| Failure::Harness {
        what: format!("there is no way to fail that is called {name}"),
    })
}

async fn degr_01(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let sure = number(&complete(ctx).await?, "confidence");
    let entities = ctx.stub("entities")?;
    for AgentFault {
        name,
        answer,
        causes,
    } in &AGENT_FAULTS
    {
        // when
        entities.answers(answer("entities"));
        let examined = async {
            let answer = degraded(ctx, "entities", causes).await?;
            // then
            with_evidence(&answer)?;
            no_surer(&answer, sure)
        };
        deviations.note(ctx.examine(name, examined).await)?;
        // a step that works again is not missing, and the breaker counts failures in a row
        entities.answers(does_its_part("entities"));
        deviations.note(complete(ctx).await.map(drop))?;
    }
    let examined = async {
        for status in [500, 503] {
            entities.answers(error(status));
            degraded(ctx, "entities", &["error"]).await?;
        }
        let asked = entities.requests().len();
        entities.answers(does_its_part("entities"));
        with_evidence(&degraded(ctx, "entities", &["breaker_open"]).await?)?;
        equal(
            "provider.calls",
            "the number of calls of the provider whose breaker is open",
            asked,
            entities.requests().len(),
        )?;
        ctx.reached(State::BreakerOpen);
        Ok(())
    };
    deviations.note(ctx.examine("breaker open", examined).await)?;
    deviations.result()
}

/// The answer must hold the text of synthesis and the passage.
fn with_evidence(answer: &Value) -> CaseResult {
    holds(
        "answer.written",
        text(answer, "answer").contains(ANSWER),
        format!("the answer {ANSWER:?}"),
        text(answer, "answer"),
    )?;
    equal(
        "answer.sources",
        "the number of sources",
        Some(1),
        answer["sources"].as_array().map(Vec::len),
    )
    .map_err(silent)
}

/// What is missing must not raise the confidence.
fn no_surer(answer: &Value, sure: f64) -> CaseResult {
    let confidence = number(answer, "confidence");
    holds(
        "answer.confidence",
        confidence <= sure,
        format!("a confidence of {sure} or less"),
        confidence,
    )
    .map_err(silent)
}

async fn degr_03(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let sure = number(&complete(ctx).await?, "confidence");
    // when
    let waits = async {
        let locked = ctx.database()?.lock("passages").await?;
        let answer = without_retrieval(ctx, sure).await;
        locked.release().await?;
        answer
    };
    deviations.note(ctx.examine("statements that wait", waits).await)?;
    let refused = async {
        ctx.database()?.revoke_select(Some("passages")).await?;
        let answer = without_retrieval(ctx, sure).await;
        ctx.database()?.grant_select(Some("passages")).await?;
        answer
    };
    deviations.note(ctx.examine("statements that are refused", refused).await)?;
    deviations.note(complete(ctx).await.map(drop))?;
    deviations.result()
}

/// Asks the question while nothing can be searched.
async fn without_retrieval(ctx: &Ctx, sure: f64) -> CaseResult {
    let answer = degraded(ctx, "retrieval", STORE_CAUSES)
        .await
        .map_err(silent)?;
    for (fact, field) in [
        ("answer.sources", "sources"),
        ("answer.citations", "citations"),
    ] {
        equal(
            fact,
            &format!("the number of {field}"),
            Some(0),
            answer[field].as_array().map(Vec::len),
        )
        .map_err(silent)?;
    }
    equal(
        "answer.verified",
        "the field verified without a passage to check by",
        Some(false),
        answer["verified"].as_bool(),
    )
    .map_err(silent)?;
    let less = number(&answer, "confidence");
    holds(
        "answer.confidence",
        less < sure,
        format!("a confidence below {sure}"),
        less,
    )
    .map_err(silent)
}

async fn degr_04(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let answer = complete(ctx).await?;
    let sure = number(&answer, "confidence");
    equal(
        "verified.with_check",
        "the field verified with a fact check that works",
        Some(true),
        answer["verified"].as_bool(),
    )?;
    let fact_check = ctx.stub("fact_check")?;
    for AgentFault {
        name,
        answer,
        causes,
    } in &AGENT_FAULTS
    {
        // when
        fact_check.answers(answer("fact_check"));
        let examined = async {
            let answer = degraded(ctx, "fact_check", causes).await?;
            // then
            with_evidence(&answer)?;
            no_surer(&answer, sure)?;
            equal(
                "verified.without_check",
                "the field verified without a fact check",
                Some(false),
                answer["verified"].as_bool(),
            )
            .map_err(silent)
        };
        deviations.note(ctx.examine(name, examined).await)?;
    }
    let claim = |verdict: &str, quote: &str| json!({"claim": "Radium", "source": 1, "verdict": verdict, "quote": quote});
    let supported = claim("supported", PASSAGE);
    for (name, claims) in [
        (
            "a claim that is contradicted",
            vec![claim("contradicted", PASSAGE)],
        ),
        ("a claim that is unclear", vec![claim("unclear", PASSAGE)]),
        (
            "one claim of two that is contradicted",
            vec![supported, claim("contradicted", PASSAGE)],
        ),
        ("no claim", Vec::new()),
        (
            "a claim whose quote stands nowhere",
            vec![claim("supported", "Radium glows.")],
        ),
    ] {
        fact_check.answers(reply(&json!({ "claims": claims }).to_string()));
        let examined = async {
            let answer = complete(ctx).await?;
            equal(
                "verified.not_supported",
                "the field verified where the check does not bear every claim out",
                Some(false),
                answer["verified"].as_bool(),
            )
            .map_err(silent)
        };
        deviations.note(ctx.examine(name, examined).await)?;
    }
    fact_check.answers(does_its_part("fact_check"));
    deviations.note(complete(ctx).await.map(drop))?;
    deviations.result()
}

async fn degr_05(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let sure = number(&complete(ctx).await?, "confidence");
    let (synthesis, spare) = (ctx.stub("synthesis")?, ctx.stub("spare")?);
    let well = || does_its_part("synthesis");
    let answers = |name: &str| Ok::<_, Failure>((fault(name)?.answer)("synthesis"));
    let empty = reply(&json!({"answer": "  "}).to_string());
    for (name, first, second, both, causes) in [
        (
            "status 500, then 503",
            error(500),
            error(503),
            true,
            &["error"][..],
        ),
        (
            "closed connection, then status 429",
            answers("closed connection")?,
            error(429),
            true,
            &["error"],
        ),
        (
            "no answer, then status 500",
            answers("no answer")?,
            error(500),
            true,
            &["timeout", "error"],
        ),
        (
            "status 500, then no answer",
            error(500),
            answers("no answer")?,
            true,
            &["timeout", "error"],
        ),
        (
            "text instead of JSON",
            answers("text instead of JSON")?,
            answers("text instead of JSON")?,
            false,
            &["invalid_output"],
        ),
        (
            "status 500, then text instead of JSON",
            error(500),
            answers("text instead of JSON")?,
            true,
            &["invalid_output"],
        ),
        (
            "an empty answer",
            empty.clone(),
            empty,
            false,
            &["invalid_output"],
        ),
    ] {
        let before = [synthesis, spare].map(|stub| stub.requests().len());
        synthesis.answers(first);
        spare.answers(second);
        let examined = async {
            // when
            let answer = degraded(ctx, "synthesis", causes).await?;
            // then
            holds(
                "answer.quotation",
                text(&answer, "answer").contains(PASSAGE),
                format!("an answer that quotes {PASSAGE:?}"),
                text(&answer, "answer"),
            )?;
            let cites = answer["citations"].as_array().into_iter().flatten();
            holds(
                "answer.citations",
                cites
                    .clone()
                    .any(|one| text(one, "quote").contains(PASSAGE)),
                "a citation of the passage that is quoted",
                &answer["citations"],
            )?;
            no_surer(&answer, sure)?;
            for (n, stub) in [synthesis, spare].into_iter().enumerate() {
                let asked = stub.requests().len() - before[n];
                holds(
                    "provider.calls",
                    asked > 0 || (n == 1 && !both),
                    format!("a call of {}", stub.name()),
                    "none",
                )?;
            }
            Ok(())
        };
        deviations.note(ctx.examine(name, examined).await)?;
    }
    synthesis.answers(error(500));
    spare.answers(well());
    let examined = async { with_evidence(&complete(ctx).await?) };
    deviations.note(ctx.examine("first candidate alone", examined).await)?;
    synthesis.answers(well());
    deviations.note(complete(ctx).await.map(drop))?;
    deviations.result()
}

async fn degr_06(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let sure = number(&complete(ctx).await?, "confidence");
    for agent in agents::after_answer() {
        let step = agent.name;
        for AgentFault {
            name,
            answer,
            causes,
        } in &AGENT_FAULTS
        {
            ctx.stub(step)?.answers(answer(step));
            let examined = async {
                // when
                let answer = degraded(ctx, step, causes).await?;
                // then
                with_evidence(&answer)?;
                no_surer(&answer, sure)
            };
            let name = format!("{step}, {name}");
            deviations.note(ctx.examine(&name, examined).await)?;
        }
        ctx.stub(step)?.answers(does_its_part(step));
        deviations.note(complete(ctx).await.map(drop))?;
    }
    for agent in agents::after_answer() {
        ctx.stub(agent.name)?.answers(error(500));
    }
    let examined = async {
        let answer = ask(ctx).await?;
        equal(
            "answer.status",
            "the status of an answer that stands without its last steps",
            200,
            answer.status,
        )?;
        let answer = answer.json();
        let steps: Vec<String> = lost(&answer).into_iter().map(|(step, _)| step).collect();
        equal(
            "degraded.all",
            "the missing steps",
            agents::after_answer()
                .map(|agent| agent.name.to_owned())
                .collect(),
            steps,
        )
        .map_err(silent)?;
        with_evidence(&answer)?;
        no_surer(&answer, sure)
    };
    deviations.note(ctx.examine("citation and review", examined).await)?;
    deviations.result()
}

async fn degr_07(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    for (n, name) in [
        "status 500",
        "closed connection",
        "no answer",
        "text instead of JSON",
    ]
    .into_iter()
    .enumerate()
    {
        let AgentFault { answer, causes, .. } = fault(name)?;
        // given
        for (agent, stub) in &ctx.stubs {
            // what comes after a step that failed need not be asked
            stub.answers(answer(agent).optional());
        }
        let examined = failed(ctx, causes, n + 1);
        deviations.note(ctx.examine(name, examined).await)?;
    }
    deviations.result()
}

/// Asks a question of which nothing must come; it is the `count`-th one.
async fn failed(ctx: &Ctx, causes: &[&str], count: usize) -> CaseResult {
    // when
    let answer = ask(ctx).await?;
    // then
    equal(
        "answer.status",
        "the status of a query of which nothing came",
        503,
        answer.status,
    )
    .map_err(silent)?;
    holds(
        "answer.envelope",
        answer.error_type().is_some(),
        "an error in the usual envelope",
        answer.text(),
    )?;
    let query = &answer.json()["query"];
    equal(
        "query.status",
        "the status of the query",
        "failed",
        text(query, "status"),
    )?;
    equal(
        "query.confidence",
        "the confidence",
        Some(0.0),
        query["confidence"].as_f64(),
    )?;
    let lost = lost(query);
    for step in ["entities", "synthesis"] {
        holds(
            "query.degraded",
            lost.iter()
                .any(|(lost, cause)| lost == step && causes.contains(&cause.as_str())),
            format!("{step} as a missing step, by {}", causes.join(" or ")),
            format_args!("{lost:?}"),
        )?;
    }
    let read = ctx
        .client
        .get(&format!("{QUERIES}/{}", text(query, "id")))
        .await?;
    equal(
        "record.status",
        "the status of the record",
        200,
        read.status,
    )?;
    equal("record.document", "the record", query, &read.json())?;
    let listed = ctx.client.get(&format!("{QUERIES}?status=failed")).await?;
    equal(
        "record.listed",
        "the number of queries that are listed as failed",
        Some(count as u64),
        listed.json()["total"].as_u64(),
    )
}

async fn degr_08(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    let wire = ctx.database_wire()?;
    // given
    healthy(ctx)?;
    known(ctx).await?;
    // when, then
    let record_alone = async {
        ctx.database()?.disk_full().await?;
        let answer = ask(ctx).await;
        ctx.database()?.disk_free().await?;
        let answer = unrecorded(&answer?, &["record"])?;
        with_evidence(&answer)
    };
    deviations.note(ctx.examine("the record alone", record_alone).await)?;
    let during = async {
        let fact_check = ctx.stub("fact_check")?;
        fact_check.answers(does_its_part("fact_check").plan(Plan::held("checked")));
        let going = async {
            fact_check.held(1).await?;
            wire.gone().await?;
            ctx.gates.gate("checked").open();
            Ok(())
        };
        let (answer, ()) = futures::try_join!(ask(ctx), going)?;
        fact_check.answers(does_its_part("fact_check"));
        with_evidence(&unrecorded(&answer, &["record"])?)
    };
    deviations.note(ctx.examine("gone during the query", during).await)?;
    let before = async {
        unrecorded(&ask(ctx).await?, &["retrieval", "record"])?;
        until_status(ctx, "hang.unready", &ctx.manifest.paths.ready, 503).await?;
        Ok(())
    };
    deviations.note(ctx.examine("gone before the query", before).await)?;
    let everything = async {
        for stub in ctx.stubs.values() {
            stub.answers(error(500).optional());
        }
        let answer = ask(ctx).await?;
        equal(
            "failed.status",
            "the status of a query of which nothing came, without the database",
            503,
            answer.status,
        )
        .map_err(silent)?;
        equal(
            "failed.recorded",
            "the field recorded of a query of which nothing came",
            Some(false),
            answer.json()["query"]["recorded"].as_bool(),
        )
        .map_err(silent)
    };
    deviations.note(ctx.examine("every model fails too", everything).await)?;
    healthy(ctx)?;
    let back = async {
        wire.resume().await?;
        until_status(ctx, "hang.ready_again", &ctx.manifest.paths.ready, 200).await?;
        let recorded = || async {
            let answer = ask(ctx).await?.json();
            Ok(Some(answer).filter(|answer| text(answer, "status") == "complete"))
        };
        let what = "a query of which nothing is missing";
        let answer = converge("hang.complete_again", what, recorded).await?;
        equal(
            "query.recorded_again",
            "the field recorded once the database is back",
            Some(true),
            answer["recorded"].as_bool(),
        )
    };
    deviations.note(ctx.examine("back again", back).await)?;
    deviations.result()
}

/// The query must be answered, without these steps, the record among them.
fn unrecorded(answer: &Reply, steps: &[&str]) -> Result<Value, Failure> {
    let query = answer.json();
    equal(
        "answer.status",
        "the status of a query without the database",
        200,
        answer.status,
    )?;
    equal(
        "query.recorded",
        "the field recorded",
        Some(false),
        query["recorded"].as_bool(),
    )
    .map_err(silent)?;
    equal(
        "query.status",
        "the status of the query",
        "degraded",
        text(&query, "status"),
    )
    .map_err(silent)?;
    let missing: Vec<String> = lost(&query).into_iter().map(|(step, _)| step).collect();
    equal(
        "query.degraded",
        "the list of steps that are missing",
        steps.iter().map(|step| (*step).to_owned()).collect(),
        missing,
    )
    .map_err(silent)?;
    Ok(query)
}

async fn degr_11(ctx: &Ctx) -> CaseResult {
    // given
    let queries = STORED.iter().all(|capability| ctx.declares(*capability));
    if queries {
        known(ctx).await?;
    }
    for name in [
        "status 503",
        "status 401",
        "closed connection",
        "text instead of JSON",
    ] {
        let instance = format!("query, {name}");
        let declared = STORED
            .iter()
            .all(|capability| ctx.instance_if(*capability, &instance));
        if declared {
            let examined = query_again(ctx, fault(name)?);
            ctx.examine(&instance, examined).await?;
        }
    }
    let chat = async {
        for (name, stub) in &ctx.stubs {
            // the fact below shows that the chat met the fault
            let fault = error(503);
            stub.answers(match name.as_str() {
                "review" => fault,
                _ => fault.optional(),
            });
        }
        let chat = ctx.client.chat(ctx.prompt("review", "hello")).await?;
        holds(
            "fault.met_by_chat",
            chat.status >= 500,
            "a chat that fails because of the fault",
            chat.status,
        )?;
        // when
        healthy(ctx)?;
        // then
        served(ctx, "hang.chat").await
    };
    ctx.examine("chat", chat).await?;
    if ctx.instance_if(Capability::Stream, "streamed chat") {
        let stream = ctx
            .client
            .streamed(ctx.prompt("review", "hello again"))
            .await?;
        holds(
            "after_fault.stream",
            stream.looks_complete(),
            "a whole stream once a chat has been served again",
            format_args!("status {}, the stream ended {}", stream.status, stream.end),
        )?;
    }
    ctx.examine("provider restarted", restarted(ctx)).await
}

/// Every model fails for one query; the next one must be complete.
async fn query_again(ctx: &Ctx, fault: &AgentFault) -> CaseResult {
    for (agent, stub) in &ctx.stubs {
        // an agent need not be asked: the fact shows that the query met the fault
        stub.answers((fault.answer)(agent).optional());
    }
    let faulted = ask(ctx).await?;
    holds(
        "fault.met_by_query",
        faulted.json()["degraded"] != json!([]),
        "a query that misses something because of the fault",
        faulted.text(),
    )?;
    healthy(ctx)?;
    complete(ctx).await.map(drop)
}

/// Sends chats until one is served: a gateway may leave a provider alone for a while after a
/// failure, but not forever.
async fn served(ctx: &Ctx, fact: &str) -> CaseResult {
    let served = converge(fact, "a chat that is served again", || async {
        let answer = ctx.client.chat(ctx.prompt("review", "hello again")).await?;
        Ok(Some(()).filter(|()| answer.status == 200))
    });
    past_the_bench(ctx, served).await
}

/// Restarts a provider that has answered four requests together, so that each connection that a
/// gateway has pooled is dead.
async fn restarted(ctx: &Ctx) -> CaseResult {
    const TOGETHER: usize = 4;
    // given
    let review = ctx.stub("review")?;
    let together = async || {
        try_join_all((0..TOGETHER).map(|_| ctx.client.chat(ctx.prompt("review", "hello")))).await
    };
    review.answers(reply("hello").plan(Plan::met("together", TOGETHER)));
    equal(
        "before_restart.statuses",
        "the statuses before the provider's restart",
        vec![200; TOGETHER],
        statuses(&together().await?),
    )?;
    // nobody asks meanwhile: a gateway may leave a provider alone for a while after a failure
    review.listen(Listen::Refuse).await?;
    // when
    review.listen(Listen::Serve).await?;
    // then
    equal(
        "after_restart.statuses",
        "the statuses after the provider's restart",
        vec![200; TOGETHER],
        statuses(&together().await?),
    )
}
