//! HLTH: health answers truly, at once, and at little cost.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Either, select, try_join_all};
use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal, holds};
use gauntlet_harness::client::Reply;
use gauntlet_harness::database::{CaseDatabase, DatabaseError};
use gauntlet_harness::exercise::PlantedFault;
use gauntlet_harness::gate::converge;
use gauntlet_harness::llm::{Responder, Stub, openai, raw, with};
use gauntlet_harness::plan::{Listen, Plan};
use gauntlet_harness::spec::{DatabaseNeed, Protocol, Spec};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::{Entry, Event};
use gauntlet_harness::wire::postgres::AtStatement;
use serde_json::Value;

use super::CaseRow;
use super::support::{DOCUMENTS, document, healthy, on_postgres, text, until_status};

const STORED: &[Capability] = &[Capability::Health, Capability::Store];

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "HLTH-01",
        why: "A liveness probe that asks the database restarts every replica when the database is \
              slow, and makes the outage complete.",
        shown: "The case asks for liveness while the provider refuses connections, is silent and answers \
                500, while the database stalls, is gone, lets nobody in and is read-only, and while \
                both are away.",
        remedy: "Let liveness show that the process answers, and nothing else.",
        needs: &[Capability::Liveness, Capability::Store],
        instances: &[
            "a provider that refuses connections",
            "a provider that accepts and is silent",
            "a provider that answers 500",
            "a stalled database",
            "no database",
            "neither a provider nor a database",
            "a database that lets nobody in",
            "a read-only database",
        ],
        spec: || Spec {
            database: DatabaseNeed::Postgres,
            ..Spec::solo()
        },
        run: &hlth_01,
    },
    CaseRow {
        id: "HLTH-02",
        why: "While its database was gone, a proxy was reported as ready, and it never recovered by \
              itself (https://github.com/BerriAI/litellm/issues/38121).",
        shown: "The database is gone, is back, is gone again, stalls, and lets nobody in. Each time \
                readiness must become 503, and 200 when the fault is over.",
        remedy: "Ask the store in the readiness probe, within a timeout.",
        needs: &[Capability::Readiness, Capability::Store],
        instances: &["gone", "gone a second time", "stalled", "lets nobody in"],
        spec: || Spec {
            database: DatabaseNeed::Postgres,
            ..Spec::solo()
        },
        run: &hlth_02,
    },
    CaseRow {
        id: "HLTH-03",
        why: "Probes one after the other add up their timeouts: the page that shows what hangs, \
              hangs.",
        shown: "Three providers answer their probes only together, and at last only while the probe of \
                the store is held at the database: one document must show all as up. Then a provider is \
                silent, answers 500 and refuses connections, and the store stalls and is gone: the \
                document must show each, and the others as up.",
        remedy: "Probe all dependencies at once, each within its own timeout.",
        needs: STORED,
        instances: &[
            "all up",
            "all providers together",
            "the store and all providers together",
            "a silent provider",
            "up again",
            "a provider that answers 500",
            "a provider that refuses connections",
            "a stalled store and a provider that refuses",
            "no store",
            "the store is back",
        ],
        spec: || Spec {
            database: DatabaseNeed::Postgres,
            ..Spec::pair()
                .provider("p3", Protocol::OPENAI)
                .model("third", &["p3"])
        },
        run: &hlth_03,
    },
    CaseRow {
        id: "HLTH-04",
        why: "Every replica, balancer and dashboard asks for health; if each call is a call of each \
              provider, the watching is the load.",
        shown: "64 calls ask for the detailed health at once, while all is well and while a provider is \
                silent, then one after another while it answers 500, and 64 for readiness. The providers \
                count their probes, and the database its statements.",
        remedy: "Share the probe that is under way, and send its result again for a moment.",
        needs: &[Capability::Health],
        instances: &[
            "at once",
            "at once, a silent provider",
            "one after another, a provider that answers 500",
            "readiness, at once",
        ],
        spec: || Spec {
            database: DatabaseNeed::Postgres,
            ..Spec::pair()
        },
        run: &hlth_04,
    },
    CaseRow {
        id: "HLTH-05",
        why: "A gateway reported itself as ready while its database was read-only, its disk full or its \
              right to write revoked, and nothing was recorded any more.",
        shown: "The database becomes read-only, full, and then one in which the gateway may not insert. \
                Each time a document is handed in, and readiness must differ from that of a healthy \
                gateway, by its status or its words; afterwards it must be as before.",
        remedy: "Show in readiness that the store takes no writes: answer 503, or stay 200 and say so, as \
                 your policy is.",
        needs: &[Capability::Readiness, Capability::Query, Capability::Store],
        instances: &["read-only", "full", "without the right to insert"],
        spec: on_postgres,
        run: &hlth_05,
    },
];

async fn hlth_01(ctx: &Ctx) -> CaseResult {
    let (p1, wire, database) = (ctx.stub("p1")?, ctx.database_wire()?, ctx.database()?);
    let mut deviations = Deviations::new();
    for (name, listen) in [
        ("a provider that refuses connections", Listen::Refuse),
        ("a provider that accepts and is silent", Listen::Silence),
    ] {
        // given
        p1.listen(listen).await?;
        // when, then
        deviations.note(lives(ctx, "liveness.provider", name).await)?;
    }
    p1.listen(Listen::Serve).await?;
    p1.mount(
        openai::models(),
        raw(500, "application/json", "{}").optional(),
    )
    .await;
    let name = "a provider that answers 500";
    deviations.note(lives(ctx, "liveness.provider", name).await)?;
    // given
    wire.stall();
    deviations.note(lives(ctx, "liveness.status", "a stalled database").await)?;
    wire.resume().await?;
    wire.gone().await?;
    deviations.note(lives(ctx, "liveness.status", "no database").await)?;
    p1.listen(Listen::Refuse).await?;
    let name = "neither a provider nor a database";
    deviations.note(lives(ctx, "liveness.status", name).await)?;
    wire.resume().await?;
    database.forbid_connections().await?;
    database.terminate_backends().await?;
    let name = "a database that lets nobody in";
    deviations.note(lives(ctx, "liveness.status", name).await)?;
    database.allow_connections().await?;
    database.read_only().await?;
    let name = "a read-only database";
    deviations.note(lives(ctx, "liveness.status", name).await)?;
    deviations.result()
}

/// Asks for liveness in this state of the dependencies, twice: a result may be kept.
async fn lives(ctx: &Ctx, fact: &str, name: &str) -> CaseResult {
    ctx.examine(name, async {
        for _ in 0..2 {
            let answer = ctx.client.get(&ctx.manifest.paths.live).await?;
            equal(fact, "the status of liveness", 200, answer.status)?;
        }
        Ok(())
    })
    .await
}

async fn hlth_02(ctx: &Ctx) -> CaseResult {
    let (wire, database) = (ctx.database_wire()?, ctx.database()?);
    let ready = &ctx.manifest.paths.ready;
    let becomes = async |fact: &str, status: u16| -> CaseResult {
        until_status(ctx, fact, ready, status).await.map(drop)
    };
    becomes("hang.ready_at_first", 200).await?;
    for (name, unready, ready) in [
        ("gone", "hang.unready_without", "hang.ready_again"),
        (
            "gone a second time",
            "hang.unready_without_again",
            "hang.ready_again_twice",
        ),
    ] {
        ctx.examine(name, async {
            // when
            wire.gone().await?;
            // then
            becomes(unready, 503).await?;
            // when
            wire.resume().await?;
            // then
            becomes(ready, 200).await
        })
        .await?;
    }
    ctx.examine("stalled", async {
        wire.stall();
        becomes("hang.unready_stalled", 503).await?;
        wire.resume().await?;
        becomes("hang.ready_after_stall", 200).await
    })
    .await?;
    ctx.examine("lets nobody in", async {
        database.forbid_connections().await?;
        database.terminate_backends().await?;
        becomes("hang.unready_closed", 503).await?;
        database.allow_connections().await?;
        becomes("hang.ready_after_closed", 200).await
    })
    .await
}

/// What the model list of each provider answers now, which is what a probe asks for.
#[derive(Clone, Default)]
struct Probed(Arc<Mutex<BTreeMap<String, Responder>>>);

impl Probed {
    async fn mounted(ctx: &Ctx) -> Self {
        let this = Self::default();
        for (name, stub) in &ctx.stubs {
            this.answers(name, models());
            let (this, name) = (this.clone(), name.clone());
            stub.mount(openai::models(), with(move |_| this.of(&name)))
                .await;
        }
        this
    }

    fn answers(&self, name: &str, answer: Responder) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.into(), answer);
    }

    fn of(&self, name: &str) -> Responder {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(name).cloned().unwrap_or_else(models)
    }
}

async fn hlth_03(ctx: &Ctx) -> CaseResult {
    let (probed, wire) = (Probed::mounted(ctx).await, ctx.database_wire()?);
    let p3 = ctx.stub("p3")?;
    shown(ctx, "all up", "hang.all_up", [true; 4], (200, "ok")).await?;
    ctx.examine("all providers together", together(ctx, &probed, false))
        .await?;
    let name = "the store and all providers together";
    ctx.examine(name, together(ctx, &probed, true)).await?;
    for stub in ctx.stubs.keys() {
        probed.answers(stub, models());
    }
    // given
    probed.answers("p3", models().plan(Plan::silent()));
    let degraded = (200, "degraded");
    let p3_down = [true, true, true, false];
    shown(
        ctx,
        "a silent provider",
        "hang.silent_provider",
        p3_down,
        degraded,
    )
    .await?;
    probed.answers("p3", models());
    shown(ctx, "up again", "hang.up_again", [true; 4], (200, "ok")).await?;
    probed.answers("p3", raw(500, "application/json", "{}"));
    let name = "a provider that answers 500";
    shown(ctx, name, "hang.failing_provider", p3_down, degraded).await?;
    probed.answers("p3", models());
    p3.listen(Listen::Refuse).await?;
    let name = "a provider that refuses connections";
    shown(ctx, name, "hang.refusing_provider", p3_down, degraded).await?;
    wire.stall();
    let both_down = [false, true, true, false];
    let unavailable = (503, "unavailable");
    let name = "a stalled store and a provider that refuses";
    shown(ctx, name, "hang.stalled_store", both_down, unavailable).await?;
    p3.listen(Listen::Serve).await?;
    wire.resume().await?;
    wire.gone().await?;
    let store_down = [false, true, true, true];
    shown(ctx, "no store", "hang.no_store", store_down, unavailable).await?;
    wire.resume().await?;
    let name = "the store is back";
    shown(ctx, name, "hang.store_back", [true; 4], (200, "ok")).await
}

/// Reads the health document until it shows the store, p1, p2 and p3 so, with this status.
fn shown<'c>(
    ctx: &'c Ctx,
    name: &'c str,
    fact: &'c str,
    up: [bool; 4],
    (code, status): (u16, &'c str),
) -> BoxFuture<'c, CaseResult> {
    let read = async move {
        let [store, p1, p2, p3] = up.map(|up| if up { "up" } else { "down" });
        let what = format!(
            "a health document with the store {store}, p1 {p1}, p2 {p2} and p3 {p3}, and with the \
             status {code} {status:?}"
        );
        converge(fact, &what, || async {
            let health = ctx.client.get(&ctx.manifest.paths.health).await?;
            let document = health.json();
            let states = DEPENDENCIES.map(|name| state(&document, name));
            let so = states == up.map(Some)
                && health.status == code
                && text(&document, "status") == status;
            Ok(so.then_some(()))
        })
        .await
    };
    ctx.examine(name, read).boxed()
}

const DEPENDENCIES: [&str; 4] = ["store", "p1", "p2", "p3"];

/// One call of the health document must find all providers at their probes at one moment, and the
/// store too, and show all of them as up: the probe of the store is held until the others have met.
async fn together(ctx: &Ctx, probed: &Probed, with_store: bool) -> CaseResult {
    const HELD: &str = "the statement is held at store";
    let wire = ctx.database_wire()?;
    let gate = ctx.gates.gate("store");
    let held = |entry: &Entry| matches!(&entry.event, Event::Database { what } if what == HELD);
    let calls = AtomicUsize::new(0);
    let fact = if with_store {
        "hang.together"
    } else {
        "hang.providers_together"
    };
    let what = "one health document whose probes were all under way at one moment, and succeeded";
    converge(fact, what, || async {
        let n = calls.fetch_add(1, Ordering::Relaxed);
        let meeting = format!("probes {with_store} {n}");
        for name in ctx.stubs.keys() {
            probed.answers(name, models().plan(Plan::met(&meeting, ctx.stubs.len())));
        }
        gate.close();
        if with_store && wire.faults().iter().all(PlantedFault::is_met) {
            wire.at_statement("", AtStatement::Hold("store".into()));
        }
        let before = ctx.tape.select(held).len();
        let met = async {
            if with_store {
                ctx.tape.wait_for(before + 1, held).await;
            }
            ctx.gates.rendezvous(&meeting, ctx.stubs.len()).met().await
        };
        let asked = pin!(ctx.client.get(&ctx.manifest.paths.health));
        match select(asked, pin!(met)).await {
            // a result of the call before was used again, or not all came
            Either::Left((health, _)) => {
                gate.open();
                health.map(|_| None)
            }
            Either::Right((met, asked)) => {
                met?;
                gate.open();
                let document = asked.await?.json();
                let up = DEPENDENCIES.map(|name| state(&document, name));
                Ok((up == [Some(true); 4]).then_some(()))
            }
        }
    })
    .await
}

async fn hlth_04(ctx: &Ctx) -> CaseResult {
    const STORM: usize = 64;
    const MOST: usize = STORM / 2;
    let probed = Probed::mounted(ctx).await;
    let (p1, p2) = (ctx.stub("p1")?, ctx.stub("p2")?);
    let health = ctx.manifest.paths.health.as_str();
    let at_once = async |path: &str| try_join_all((0..STORM).map(|_| ctx.client.get(path))).await;
    let costs = |fact: &str, what: &str, cost: usize| {
        holds(
            fact,
            cost <= MOST,
            format!("at most {MOST} {what} for {STORM} calls"),
            cost,
        )
    };
    let statements = || {
        let statement = |entry: &Entry| matches!(&entry.event, Event::Database { what } if what.starts_with("statement: "));
        ctx.tape.select(statement).len()
    };
    let mut deviations = Deviations::new();
    let calls = ctx.examine("at once", async {
        // given
        let (one, two, store) = (
            p1.all_requests().len(),
            p2.all_requests().len(),
            statements(),
        );
        // when
        let answers = at_once(health).await?;
        // then
        equal(
            "health.statuses",
            "the statuses of the health calls",
            vec![200; STORM],
            answers.iter().map(|health| health.status).collect(),
        )?;
        let first = p1.all_requests().len() - one;
        costs("provider.probes", "probes of p1", first)?;
        holds("provider.probed", first > 0, "at least one probe of p1", 0)?;
        costs(
            "other_provider.probes",
            "probes of p2",
            p2.all_requests().len() - two,
        )?;
        costs(
            "store.statements",
            "statements at the database",
            statements() - store,
        )
    });
    deviations.note(calls.await)?;
    let calls = ctx.examine("at once, a silent provider", async {
        probed.answers("p1", models().plan(Plan::silent()));
        until_probed(ctx, p1).await?;
        let before = p1.all_requests().len();
        at_once(health).await?;
        let probes = p1.all_requests().len() - before;
        costs("silent_provider.probes", "probes of p1", probes)
    });
    deviations.note(calls.await)?;
    let calls = ctx.examine("one after another, a provider that answers 500", async {
        probed.answers("p1", raw(500, "application/json", "{}"));
        until_probed(ctx, p1).await?;
        let before = p1.all_requests().len();
        for _ in 0..STORM {
            ctx.client.get(health).await?;
        }
        let probes = p1.all_requests().len() - before;
        costs("failing_provider.probes", "probes of p1", probes)
    });
    deviations.note(calls.await)?;
    let calls = ctx.examine("readiness, at once", async {
        let before = statements();
        at_once(&ctx.manifest.paths.ready).await?;
        costs(
            "store.statements_of_readiness",
            "statements at the database",
            statements() - before,
        )
    });
    deviations.note(calls.await)?;
    deviations.result()
}

/// Reads the health document until the provider was probed once more.
async fn until_probed(ctx: &Ctx, stub: &Stub) -> CaseResult {
    let before = stub.all_requests().len();
    let what = format!("a probe of {}", stub.name());
    converge("hang.probed", &what, || async {
        ctx.client.get(&ctx.manifest.paths.health).await?;
        Ok((stub.all_requests().len() > before).then_some(()))
    })
    .await
}

async fn hlth_05(ctx: &Ctx) -> CaseResult {
    healthy(ctx)?;
    let database = ctx.database()?;
    let steady = until_status(ctx, "hang.ready", &ctx.manifest.paths.ready, 200).await?;
    let steady = in_words(&steady);
    for Fault {
        name,
        id,
        set,
        undo,
    } in FAULTS
    {
        ctx.examine(name, async {
            // given
            set(database).await?;
            // when, then
            let fact = format!("hang.shown.{id}");
            let what = format!(
                "readiness that differs from that of a healthy gateway, since the database is {name}"
            );
            converge(&fact, &what, || async {
                let (status, words) = written(ctx).await?;
                Ok((status != 200 || words != steady).then_some(()))
            })
            .await?;
            // given
            undo(database).await?;
            // when, then
            let fact = format!("hang.cleared.{id}");
            let what = format!(
                "readiness as that of a healthy gateway, since the database is no longer {name}"
            );
            converge(&fact, &what, || async {
                let (status, words) = written(ctx).await?;
                Ok((status == 200 && words == steady).then_some(()))
            })
            .await
        })
        .await?;
    }
    Ok(())
}

/// Why a database takes no writes, and how that is undone.
struct Fault {
    name: &'static str,
    /// The name in ids of facts.
    id: &'static str,
    set: Change,
    undo: Change,
}

type Change = for<'d> fn(&'d CaseDatabase) -> BoxFuture<'d, Result<(), DatabaseError>>;

const FAULTS: [Fault; 3] = [
    Fault {
        name: "read-only",
        id: "read_only",
        set: |database| database.read_only().boxed(),
        undo: |database| {
            // sessions that began before stay read-only
            async {
                database.read_write().await?;
                database.terminate_backends().await.map(drop)
            }
            .boxed()
        },
    },
    Fault {
        name: "full",
        id: "full",
        set: |database| database.disk_full().boxed(),
        undo: |database| database.disk_free().boxed(),
    },
    Fault {
        name: "without the right to insert",
        id: "no_right",
        set: |database| database.revoke_insert().boxed(),
        undo: |database| database.grant_insert().boxed(),
    },
];

/// Hands in a document, whatever becomes of it, and reads readiness: some databases show in a write
/// alone that they take none.
async fn written(ctx: &Ctx) -> Result<(u16, Value), Failure> {
    ctx.client.post(DOCUMENTS, document()).await?;
    let ready = ctx.client.get(&ctx.manifest.paths.ready).await?;
    Ok((ready.status, in_words(&ready)))
}

/// What a document says without numbers, and without texts that hold any: a time, a duration or a
/// count differs each time.
fn in_words(answer: &Reply) -> Value {
    fn without_numbers(value: Value) -> Value {
        match value {
            Value::Number(_) => Value::Null,
            Value::String(text) if text.contains(|c: char| c.is_ascii_digit()) => Value::Null,
            Value::Array(list) => list.into_iter().map(without_numbers).collect(),
            Value::Object(map) => map
                .into_iter()
                .map(|(key, value)| (key, without_numbers(value)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => other,
        }
    }
    let text = || Value::from(answer.text());
    without_numbers(serde_json::from_slice(&answer.body).unwrap_or_else(|_| text()))
}

fn models() -> Responder {
    raw(200, "application/json", r#"{"object":"list","data":[]}"#)
}

/// Whether the document shows the dependency of that name as up.
fn state(health: &Value, name: &str) -> Option<bool> {
    health["dependencies"]
        .as_array()?
        .iter()
        .find(|dependency| dependency["name"] == name)?["up"]
        .as_bool()
}
