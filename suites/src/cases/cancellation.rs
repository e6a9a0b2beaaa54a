//! CANC: nothing works any longer for a client that has left.

use futures::FutureExt;
use futures::future::join_all;
use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds, in_order};
use gauntlet_harness::client::Reply;
use gauntlet_harness::llm::{Responder, chat, error, reply, tool_call, with};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::{Event, Side};

use serde_json::json;

use super::CaseRow;
use super::support::{
    QUERIES, STORED, all_closed, applies, does_its_part, healthy, is_streamed, known, large_stream,
    listed, lost, marked as mark_of, noted, patient, query, text, until_asked, with_tools,
};
use crate::agents::{AGENTS, Agent};

/// The deadline that a client sets for a query whose agent never answers, in milliseconds.
const CLIENTS_MS: u64 = 1_500;
/// The configured deadline of such a query, in milliseconds. No step has longer: some gateways
/// refuse such a configuration.
const CONFIGURED_MS: u64 = 2_500;
/// The timeout of a chat beside the queries, in milliseconds: two steps that each took as long as
/// the deadline would end later.
const CLOCK_MS: u64 = 4_000;

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "CANC-01",
        why: "Calls whose client had gone ran on for half an hour, and were billed \
              (https://github.com/BerriAI/litellm/issues/37140).",
        shown: "The provider holds plain and streamed answers, before and after their headers, and so \
                does a second candidate. The clients leave, and the providers must see every \
                connection close. No timeout is near.",
        remedy: "Watch the client's connection while the provider works, and drop the call when it \
                 closes.",
        needs: &[Capability::Chat, Capability::Stream],
        instances: &[
            "plain",
            "streamed",
            "plain, after the headers",
            "streamed, after the headers",
            "plain, within the answer",
            "last candidate, plain",
            "last candidate, streamed",
            "Ollama, plain",
            "Ollama, streamed",
        ],
        spec: two_protocols,
        run: &canc_01,
    },
    CaseRow {
        id: "CANC-02",
        why: "Streams went on token by token after their client had gone \
              (https://github.com/BerriAI/litellm/issues/13774).",
        shown: "The client reads the beginning of a stream and leaves: where the provider then is \
                silent, where it repeats an event forever, and where the client had not read what \
                has come.",
        remedy: "Drop the provider's stream when a write to the client fails or its connection closes, \
                 and never read it to its end.",
        needs: &[Capability::Chat, Capability::Stream],
        instances: &[
            "streamed, then silence",
            "streamed without an end",
            "streamed, within a tool call",
            "streamed, large, and nobody reads",
            "last candidate, streamed",
            "Ollama, streamed without an end",
        ],
        spec: two_protocols,
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
        instances: &[
            "left during entities",
            "left during fact_check",
            "left during synthesis",
            "left during citation",
            "left during review",
        ],
        spec: || patient(query()),
        run: &canc_03,
    },
    CaseRow {
        id: "CANC-04",
        why: "A timeout that answers the client but leaves the call running frees nothing: the \
              provider goes on, and so does the bill.",
        shown: "For each agent, the agent never answers, with timeouts far beyond the query's deadline: \
                the configured one, one in the header, and one in the body, all at once. Each deadline \
                must answer its client and close the connection, the short ones before the configured \
                one. Where two agents are silent, the answer must come before two such times are over.",
        remedy: "Drop the future of the call, and with it the connection, when its share of the \
                 deadline is over.",
        needs: &[
            Capability::Query,
            Capability::Store,
            Capability::Chat,
            Capability::TimeoutPerModel,
        ],
        instances: &[
            "configured, entities",
            "configured, fact_check",
            "configured, synthesis",
            "configured, citation",
            "configured, review",
            "header, entities",
            "header, fact_check",
            "header, synthesis",
            "header, citation",
            "header, review",
            "body, entities",
            "body, fact_check",
            "body, synthesis",
            "body, citation",
            "body, review",
            "configured, two agents",
        ],
        spec: || {
            let total_ms = Some(CLOCK_MS);
            patient(query())
                .with_query(|query| {
                    query.deadline_ms = CONFIGURED_MS;
                    query.step_ms = CONFIGURED_MS;
                    query.store_ms = CONFIGURED_MS;
                })
                .provider("clock", Protocol::OPENAI)
                .model("clock", &["clock"])
                .model_timeouts(
                    "clock",
                    Timeouts {
                        first_token_ms: total_ms,
                        idle_ms: total_ms,
                        total_ms,
                        ..Timeouts::default()
                    },
                )
        },
        run: &canc_04,
    },
];

/// The aliases `solo`, `pair`, and `local`, whose provider speaks Ollama's API, with no timeout
/// near.
fn two_protocols() -> Spec {
    let spec = Spec::pair()
        .model("solo", &["p1"])
        .provider("p3", Protocol::OLLAMA)
        .optional_model("local", &["p3"]);
    ["solo", "pair", "local"].iter().fold(spec, |spec, alias| {
        spec.model_timeouts(alias, Timeouts::PATIENT)
    })
}

/// The alias and the provider of an instance, by its name.
fn asked_at(instance: &str) -> (&'static str, &'static str) {
    match instance {
        _ if instance.starts_with("Ollama") => ("local", "p3"),
        _ if instance.starts_with("last candidate") => ("pair", "p2"),
        _ => ("solo", "p1"),
    }
}

/// Plants the answer of an instance at its provider; where that is the last candidate, the first
/// one fails, if it is asked.
async fn plant(ctx: &Ctx, instance: &str, answer: Responder) -> CaseResult {
    let (_, provider) = asked_at(instance);
    let says = || chat().user_says(&mark_of(instance));
    ctx.stub(provider)?.mount(says(), answer).await;
    if provider == "p2" {
        ctx.stub("p1")?.mount(says(), error(503).optional()).await;
    }
    Ok(())
}

async fn canc_01(ctx: &Ctx) -> CaseResult {
    // given
    let hold = || Step::Hold("never".into());
    let held = |before: &[Step]| {
        let steps = before.iter().cloned().chain([hold(), Step::Rest]);
        reply("for nobody, and for nobody else").plan(Plan::of(steps))
    };
    let at_once = || reply("for nobody").plan(Plan::held("never"));
    let instances = [
        ("plain", at_once()),
        ("streamed", at_once()),
        ("plain, after the headers", held(&[Step::Head])),
        ("streamed, after the headers", held(&[Step::Head])),
        (
            "plain, within the answer",
            held(&[Step::Head, Step::Bytes(40)]),
        ),
        ("Ollama, plain", at_once()),
        ("Ollama, streamed", at_once()),
        ("last candidate, plain", at_once()),
        ("last candidate, streamed", at_once()),
    ];
    let instances: Vec<_> = instances
        .into_iter()
        .filter(|(name, _)| applies(ctx, name))
        .collect();
    let mut clients = Vec::new();
    for (name, answer) in &instances {
        plant(ctx, name, answer.clone()).await?;
        let (alias, provider) = asked_at(name);
        let body = ctx.prompt(alias, &mark_of(name));
        let asked = match is_streamed(name) {
            true => ctx.client.send_stream(body).await?,
            false => ctx.client.send_chat(body).await?,
        };
        clients.push((*name, provider, asked));
    }
    let at = |provider: &str| {
        let at_provider = instances
            .iter()
            .filter(|(name, _)| asked_at(name).1 == provider);
        at_provider.count()
    };
    for (name, stub) in &ctx.stubs {
        stub.held(at(name)).await?;
    }
    // when
    for (name, _, asked) in clients {
        ctx.instance(name);
        asked.leave();
    }
    // then
    let mut deviations = Deviations::new();
    let expected = ctx.stubs.iter().map(|(name, stub)| (stub, at(name)));
    all_closed(&mut deviations, expected).await?;
    deviations.result()
}

async fn canc_02(ctx: &Ctx) -> CaseResult {
    // given
    let then = |last: Step| {
        reply("")
            .tokens(["Par", "is"])
            .plan(Plan::of([Step::Head, Step::Events(3), last]))
    };
    let forever = || Step::RepeatForever { every_ms: 20 };
    let tool = tool_call("weather", json!({"city": "Paris", "days": 3}));
    let instances = [
        ("streamed, then silence", then(Step::Stall)),
        ("streamed without an end", then(forever())),
        (
            "streamed, within a tool call",
            tool.plan(Plan::of([Step::Head, Step::Events(3), forever()])),
        ),
        ("streamed, large, and nobody reads", large_stream()),
        ("Ollama, streamed without an end", then(forever())),
        ("last candidate, streamed", then(forever())),
    ];
    let mut closed = [("p1", 0), ("p2", 0), ("p3", 0)];
    let mut deviations = Deviations::new();
    for (name, answer) in instances {
        if !applies(ctx, name) {
            continue;
        }
        plant(ctx, name, answer).await?;
        let (alias, provider) = asked_at(name);
        let left = async {
            let mut body = ctx.prompt(alias, &mark_of(name));
            let mut client = ctx.client.clone();
            let unread = name.contains("nobody reads");
            if name.contains("tool") {
                body = with_tools(body);
            }
            if unread {
                client = client.with_receive_buffer(8 << 10);
            }
            let mut stream = client.stream(body).await?;
            if unread || name.contains("tool") {
                stream.next().await?;
            } else {
                equal(
                    "stream.text",
                    "the text of the stream",
                    "Paris",
                    stream.text_of(5).await?.as_str(),
                )?;
            }
            if unread {
                ctx.stub(provider)?.sent_settles().await?;
            }
            // when
            stream.leave();
            Ok(())
        };
        noted(&mut deviations, ctx.examine(name, left.boxed()).await)?;
        // then
        for (stub, count) in &mut closed {
            *count += usize::from(*stub == provider);
            if *stub == provider {
                let closed = ctx.stub(stub)?.peer_closed(*count).await.map(drop);
                noted(
                    &mut deviations,
                    closed.map_err(|failure| failure.in_instance(name)),
                )?;
            }
        }
        if provider == "p1" {
            // a gateway may take a client that has left for a failure of its provider
            until_asked(ctx, "solo", ctx.stub("p1")?).await?;
        }
    }
    deviations.result()
}

async fn canc_03(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    // given
    known(ctx).await?;
    for (n, agent) in AGENTS.iter().enumerate() {
        let name = format!("left during {}", agent.name);
        deviations.note(ctx.examine(&name, left_during(ctx, n, agent)).await)?;
    }
    deviations.result()
}

async fn left_during(ctx: &Ctx, n: usize, agent: &Agent) -> CaseResult {
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
    let calls = || -> Result<Vec<(&str, usize)>, Failure> {
        let later = AGENTS.iter().filter(|later| later.phase > agent.phase);
        later
            .map(|later| Ok((later.name, ctx.stub(later.name)?.requests().len())))
            .collect()
    };
    let before = calls()?;
    asked.leave();
    // then
    stub.peer_closed(1).await?;
    let cancelled = listed(ctx, "&status=cancelled", n + 1).await?;
    let record = cancelled
        .iter()
        .find(|query| text(query, "question").contains(&question));
    let Some(record) = record else {
        return holds(
            "record.question",
            false,
            format!("the query that was left at {} as cancelled", agent.name),
            format_args!("{cancelled:?}"),
        );
    };
    let path = format!("{QUERIES}/{}", text(record, "id"));
    let read = ctx.client.get(&path).await?;
    equal(
        "record.document",
        "the record of the query that was left",
        record,
        &read.json(),
    )?;
    equal(
        "later.calls",
        "the numbers of calls of the later agents after the client left",
        before,
        calls()?,
    )
}

async fn canc_04(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    // given
    known(ctx).await?;
    healthy(ctx)?;
    // the mark of a question reaches every agent: by the question, or by the answer
    ctx.stub("synthesis")?.answers(with(|request| {
        let text = request.user_text();
        let mark = text.split(MARK).nth(1).unwrap_or_default();
        let end = mark.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let mark = &mark[..end.unwrap_or(mark.len())];
        reply(&json!({"answer": format!("It is {MARK}{mark}. [1]")}).to_string())
    }));
    let ways = ["configured", "header", "body"];
    for way in ways {
        for agent in AGENTS {
            let never = does_its_part(agent.name).plan(Plan::silent());
            let mark = marked(way, agent);
            ctx.stub(agent.name)?
                .mount(chat().user_says(&mark), never)
                .await;
        }
    }
    let silent = || reply("").plan(Plan::silent());
    ctx.stub("clock")?.answers(silent());
    for agent in ["entities", "fact_check"] {
        ctx.stub(agent)?
            .mount(chat().user_says(TWO_AGENTS), silent().optional())
            .await;
    }
    // when
    let asked = ways.iter().flat_map(|way| {
        AGENTS.iter().map(move |agent| async move {
            let answer = silent_at(ctx, way, agent).await;
            (*way, agent, answer)
        })
    });
    let asked: Vec<_> = asked.collect();
    let clock = ctx.client.labelled("clock");
    let (answers, two_agents, _) = futures::join!(
        join_all(asked),
        two_agents(ctx),
        clock.chat(ctx.prompt("clock", "how late is it?")),
    );
    // then
    for (way, agent, answer) in answers {
        let examined = async {
            timed_out(agent, &answer?)?;
            if way == "configured" {
                return Ok(());
            }
            let answers = [way, "configured"].map(|way| answered(ctx, &marked(way, agent)));
            in_order(
                &format!("{way}.order"),
                (
                    &format!("the answer by the deadline in the {way}"),
                    answers[0],
                ),
                ("the answer by the configured deadline", answers[1]),
            )
        };
        let name = format!("{way}, {}", agent.name);
        deviations.note(ctx.examine(&name, examined).await)?;
    }
    let examined = async {
        let status = two_agents?.status;
        holds(
            "answer.status",
            [200, 503].contains(&status),
            "a status of 200 or 503",
            status,
        )?;
        in_order(
            "configured.order",
            (
                "the answer by the configured deadline",
                answered(ctx, TWO_AGENTS),
            ),
            ("the end of a longer chat", answered(ctx, "clock")),
        )
    };
    deviations.note(ctx.examine("configured, two agents", examined).await)?;
    for agent in AGENTS {
        let closed = ctx.stub(agent.name)?.peer_closed(ways.len()).await;
        deviations.note(closed.map(drop))?;
    }
    deviations.result()
}

/// The mark of the question at which two agents never answer.
const TWO_AGENTS: &str = "both_of_two_agents";

/// Asks a question at which two agents never answer, with the configured deadline.
async fn two_agents(ctx: &Ctx) -> Result<Reply, Failure> {
    let question = format!("Who discovered radium? {TWO_AGENTS} [{}]", ctx.nonce);
    let client = ctx.client.labelled(TWO_AGENTS);
    client.post(QUERIES, json!({ "question": question })).await
}

/// What the mark of a question begins with.
const MARK: &str = "mark_";

/// The mark of the question at which this agent never answers.
fn marked(way: &str, agent: &Agent) -> String {
    format!("{MARK}{way}_{}", agent.name)
}

/// Asks a question at which the agent never answers, with a deadline that is set in this way.
async fn silent_at(ctx: &Ctx, way: &str, agent: &Agent) -> Result<Reply, Failure> {
    let mark = marked(way, agent);
    let question = format!("Who discovered radium? {mark} [{}]", ctx.nonce);
    let client = ctx.client.labelled(&mark);
    match way {
        "header" => {
            let client = client.with_header("x-request-timeout-ms", &CLIENTS_MS.to_string());
            client.post(QUERIES, json!({ "question": question })).await
        }
        "body" => {
            let body = json!({"question": question, "deadline_ms": CLIENTS_MS});
            client.post(QUERIES, body).await
        }
        _ => client.post(QUERIES, json!({ "question": question })).await,
    }
}

/// The position on the tape at which the client of that label had its answer; after everything if
/// it had none.
fn answered(ctx: &Ctx, label: &str) -> u64 {
    let answer = ctx.tape.first(|entry| {
        matches!(&entry.side, Side::Client(name) if name == label)
            && matches!(entry.event, Event::ClientAnswered { .. })
    });
    answer.map_or(u64::MAX, |entry| entry.seq)
}

/// The query must have been answered without the agent, whose time was over.
fn timed_out(agent: &Agent, answer: &Reply) -> CaseResult {
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
    if lost.contains(&(agent.name.to_owned(), "skipped".to_owned())) {
        return Err(Failure::NotExercised {
            why: format!(
                "the agents before {} left it no time, so that it was never asked",
                agent.name
            ),
        });
    }
    holds(
        "degraded.cause",
        lost.contains(&(agent.name.to_owned(), "timeout".to_owned())),
        format!("{} among the missing steps, by timeout", agent.name),
        format_args!("{lost:?}"),
    )
}
