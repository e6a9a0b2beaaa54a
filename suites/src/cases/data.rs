//! DATA: the record is the answer, once and whole, and the database's failures are never the
//! client's.

use std::collections::HashSet;

use futures::FutureExt;
use futures::future::{BoxFuture, Either, join, join_all, select, try_join_all};
use gauntlet_harness::case::{
    CaseResult, Ctx, Deviations, Failure, FailureMode, Replica, equal, holds, silent,
};
use gauntlet_harness::client::Reply;
use gauntlet_harness::database::{CaseDatabase, DatabaseError};
use gauntlet_harness::gate::{converge, guard};
use gauntlet_harness::llm::{error, reply};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::{Entry, Event};
use gauntlet_harness::wire::postgres::AtStatement;
use serde_json::{Value, json};

use super::CaseRow;
use super::support::{
    DOCUMENTS, QUERIES, STORED, ask, complete, document, does_its_part, healthy, known,
    on_postgres, query, soon_without_store, text, unexercised_if_hung, until_status,
};
use crate::agents::AGENTS;

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "DATA-01",
        why: "A record that differs from what the reader saw is evidence against the wrong thing.",
        shown: "Queries are asked of which each agent fails once, of which nothing comes, and of which \
                nothing fails; then eight at once. Each must be listed once, and read under its id as \
                it was answered.",
        remedy: "Record the document that is sent, after its last change, under an id that can be \
                 written once.",
        needs: STORED,
        instances: &[
            "each agent fails",
            "no answer",
            "nothing fails",
            "eight at once",
        ],
        spec: query,
        run: &data_01,
    },
    CaseRow {
        id: "DATA-02",
        why: "A document whose passages are missing exists for those who list it, and not for those \
              who search.",
        shown: "The connection is cut or reset at a statement that stores a document's passages, that \
                deletes them, or that records a query; then the statement is carried out and its reply \
                is lost. Each time the case counts the rows in the database.",
        remedy: "Write what belongs together in one transaction, or in one statement.",
        needs: STORED,
        instances: &[
            "document, cut",
            "document, reset",
            "document, lost reply",
            "deletion, cut",
            "deletion, reset",
            "deletion, lost reply",
            "record, cut",
            "record, reset",
            "record, lost reply",
        ],
        spec: on_postgres,
        run: &data_02,
    },
    CaseRow {
        id: "DATA-03",
        why: "A pool without an acquire timeout turns one locked table into a gateway that answers \
              nobody.",
        shown: "Tables are locked, and then the database is silent, while more requests than the pool \
                has connections read and write. Each must get 503. Afterwards as many reads as the pool \
                has connections must be at the database together, and get 200.",
        remedy: "Bound the wait for a connection and for a statement, and answer 503.",
        needs: STORED,
        instances: &[
            "reads and writes, locked tables",
            "every connection after the locks",
            "reads and writes, silent database",
            "every connection after the silence",
        ],
        spec: || soon_without_store(on_postgres()).with_query(|query| query.pool = POOL),
        run: &data_03,
    },
    CaseRow {
        id: "DATA-04",
        why: "After its database had restarted, a proxy called valid keys invalid until it was \
              restarted itself (https://github.com/BerriAI/litellm/issues/38121).",
        shown: "The database ends every session; then it is gone for a while; then it lets nobody in \
                for a while. Each time the record must be readable again, and a document and a query \
                must be written again.",
        remedy: "Throw broken connections away, and make new ones.",
        needs: STORED,
        instances: &[
            "its sessions ended",
            "gone and back",
            "closed and opened again",
        ],
        spec: || soon_without_store(on_postgres()),
        run: &data_04,
    },
    CaseRow {
        id: "DATA-07",
        why: "Every rollout starts replicas together: if they migrate at once, one of them fails, and \
              if a start changes what is there, the next restart loses data.",
        shown: "A second gateway starts on the database of the first. Then the database is emptied, a \
                gateway is held at its first CREATE TABLE, and another starts; then three start at \
                once. All must become ready, and the tables must be the ones that one gateway made.",
        remedy: "Migrate in one transaction under a lock of the database, and look under that lock at \
                 what is still to be done.",
        needs: &[Capability::Query, Capability::Store, Capability::Process],
        instances: &[
            "a second start",
            "two at once, the first is held",
            "three at once",
        ],
        spec: on_postgres,
        run: &data_07,
    },
    CaseRow {
        id: "DATA-08",
        why: "Page numbers shift under inserts, and text that ends up in SQL is somebody else's \
              statement.",
        shown: "Pages are read while queries are recorded between them. Questions, answers, documents, \
                titles and ids hold quotes, SQL, NUL, emoji, half a character and a megabyte of text.",
        remedy: "Page by the last row's id, bind every value, and refuse what cannot be stored.",
        needs: STORED,
        instances: &[
            "inserts between pages",
            "queries of one moment",
            "hostile questions",
            "hostile answer",
            "hostile documents",
            "hostile titles",
            "hostile ids and filters",
            "lone surrogate",
        ],
        spec: || query().with_query(|query| query.store_ms = 5_000),
        run: &data_08,
    },
    CaseRow {
        id: "DATA-10",
        why: "While its database was down, a proxy answered clients with valid keys 401, and they \
              rotated their keys (https://github.com/BerriAI/litellm/issues/38121).",
        shown: "The database is made read-only, full, without a right, and closed to new connections. \
                Each time documents are handed in and deleted, a query is asked, and a chat is asked \
                with the configured key and with one that must be looked up: 401 is right only while \
                the database can answer. Once the fault is undone, documents are stored again.",
        remedy: "Map every failure of the database to 503, and write in one transaction.",
        needs: &[Capability::Query, Capability::Store, Capability::Chat],
        instances: &[
            "read-only",
            "full",
            "without the right to insert",
            "without the right to read",
            "out of connections",
            "closed",
        ],
        spec: || soon_without_store(on_postgres()).key("c", KEY),
        run: &data_10,
    },
];

async fn data_01(ctx: &Ctx) -> CaseResult {
    // given
    known(ctx).await?;
    let mut newest_first: Vec<Value> = Vec::new();
    // when
    let examined = async {
        for agent in AGENTS {
            healthy(ctx)?;
            ctx.stub(agent.name)?.answers(error(500));
            let answer = ask(ctx).await?.json();
            recorded(ctx, "degraded", &answer).await?;
            newest_first.insert(0, answer);
        }
        Ok(())
    };
    ctx.examine("each agent fails", examined).await?;
    for stub in ctx.stubs.values() {
        stub.answers(error(500).optional());
    }
    let examined = async {
        // the question shares no word with the document, so that there is nothing to quote either
        let question = json!({"question": format!("Why? [{}]", ctx.nonce)});
        let answer = ctx.client.post(QUERIES, question).await?.json()["query"].clone();
        recorded(ctx, "failed", &answer).await?;
        newest_first.insert(0, answer);
        Ok(())
    };
    ctx.examine("no answer", examined).await?;
    healthy(ctx)?;
    let examined = async {
        let answer = complete(ctx).await?;
        recorded(ctx, "complete", &answer).await?;
        newest_first.insert(0, answer);
        Ok(())
    };
    ctx.examine("nothing fails", examined).await?;
    // then
    let page = ctx.client.get(&format!("{QUERIES}?size=100")).await?.json();
    equal(
        "records.count",
        "the number of records",
        Some(newest_first.len() as u64),
        page["total"].as_u64(),
    )
    .map_err(silent)?;
    equal(
        "records.listing",
        "the listing",
        &json!(newest_first),
        &page["queries"],
    )
    .map_err(silent)?;
    let examined = async {
        const TOGETHER: usize = 8;
        let answers = try_join_all((0..TOGETHER).map(|_| complete(ctx))).await?;
        let ids: HashSet<&str> = answers.iter().map(|answer| text(answer, "id")).collect();
        equal(
            "together.ids",
            "the number of ids of queries that were asked at once",
            TOGETHER,
            ids.len(),
        )?;
        for answer in &answers {
            recorded(ctx, "complete", answer).await?;
        }
        let page = ctx.client.get(&format!("{QUERIES}?size=100")).await?.json();
        let listed = page["queries"].as_array().cloned().unwrap_or_default();
        let found = listed
            .iter()
            .filter(|query| ids.contains(text(query, "id")));
        equal(
            "together.listed",
            "the number of times that queries which were asked at once are listed",
            TOGETHER,
            found.count(),
        )
        .map_err(silent)
    };
    ctx.examine("eight at once", examined).await
}

/// The query must have this status, and its record must be what was answered.
async fn recorded(ctx: &Ctx, status: &str, query: &Value) -> CaseResult {
    equal(
        "query.status",
        "the status of the query",
        status,
        text(query, "status"),
    )?;
    let path = format!("{QUERIES}/{}", text(query, "id"));
    let read = ctx.client.get(&path).await?;
    equal(
        "record.status",
        "the status of the record",
        200,
        read.status,
    )?;
    equal("record.document", "the record", query, &read.json()).map_err(silent)
}

/// What happens to a connection at a statement, its name, and how the tape reports it.
const BREAKS: [(&str, AtStatement, &str); 3] = [
    ("cut", AtStatement::Cut, "is cut"),
    ("reset", AtStatement::Reset, "is reset"),
    ("lost reply", AtStatement::LoseReply, "is reset"),
];

async fn data_02(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    // given
    healthy(ctx)?;
    let before = rows(ctx).await?;
    let stored = ctx.client.post(DOCUMENTS, long_document()).await?;
    equal(
        "document.status",
        "the status of a document that is handed in",
        201,
        stored.status,
    )?;
    let passages = rows(ctx).await?[1] - before[1];
    holds(
        "rows.passages",
        passages > 0,
        "passages of a document that was stored",
        passages,
    )?;
    for (name, fault, end) in BREAKS {
        let name = format!("document, {name}");
        let examined = half_stored(ctx, fault, end, passages);
        deviations.note(ctx.examine(&name, examined).await)?;
    }
    for (name, fault, end) in BREAKS {
        let name = format!("deletion, {name}");
        let examined = half_deleted(ctx, fault, end, passages);
        deviations.note(ctx.examine(&name, examined).await)?;
    }
    for (name, fault, end) in BREAKS {
        let name = format!("record, {name}");
        let examined = half_recorded(ctx, fault, end);
        deviations.note(ctx.examine(&name, examined).await)?;
    }
    deviations.result()
}

/// The numbers of documents and of passages in the database.
async fn rows(ctx: &Ctx) -> Result<[i64; 2], Failure> {
    Ok([
        ctx.database()?.count("documents").await?,
        ctx.database()?.count("passages").await?,
    ])
}

/// A document of several passages.
fn long_document() -> Value {
    let paragraph = "Radium was discovered by Marie Curie in 1898. ".repeat(24);
    let text = [paragraph.trim(); 3].join("\n\n");
    json!({"title": "Elements", "text": text})
}

/// Arms a fault for a statement, makes the request, and proves that the fault was met.
async fn broken_at(
    ctx: &Ctx,
    statement: &str,
    (fault, end): (AtStatement, &str),
    asking: impl Future<Output = Result<Reply, Failure>>,
) -> Result<Reply, Failure> {
    let ends = |entry: &Entry| matches!(&entry.event, Event::Database { what } if what.starts_with("connection ") && what.ends_with(end));
    let before = ctx.tape.select(ends).len();
    ctx.database_wire()?.at_statement(statement, fault);
    let answer = asking.await?;
    holds(
        "fault.met",
        ctx.tape.select(ends).len() > before,
        format!("a statement with {statement:?}, at which the connection {end}"),
        "no such statement",
    )?;
    Ok(answer)
}

async fn half_stored(ctx: &Ctx, fault: AtStatement, end: &str, whole: i64) -> CaseResult {
    let before = rows(ctx).await?;
    let asking = ctx.client.post(DOCUMENTS, long_document());
    let stored = broken_at(ctx, "into passages", (fault, end), asking).await?;
    holds(
        "answer.status",
        stored.status == 201 || stored.status >= 500,
        "a status of 201, or of 500 or more",
        stored.status,
    )?;
    let after = rows(ctx).await?;
    let (documents, passages) = (after[0] - before[0], after[1] - before[1]);
    // a lost reply may be that of a statement that was carried out
    let least = i64::from(stored.status == 201);
    let observed = format_args!(
        "status {}, {documents} documents, {passages} passages",
        stored.status
    );
    holds(
        "rows.whole",
        documents * whole == passages,
        format!("a document with its {whole} passages, or neither of them"),
        observed,
    )
    .map_err(silent)?;
    holds(
        "rows.as_answered",
        (least..=1).contains(&documents),
        "one document after a 201, and at most one otherwise",
        observed,
    )
    .map_err(silent)
}

async fn half_deleted(ctx: &Ctx, fault: AtStatement, end: &str, whole: i64) -> CaseResult {
    let stored = ctx.client.post(DOCUMENTS, long_document()).await?;
    let path = format!("{DOCUMENTS}/{}", text(&stored.json(), "id"));
    let before = rows(ctx).await?;
    let asking = ctx.client.request("DELETE", &path, &[], b"");
    let deleted = broken_at(ctx, "delete from", (fault, end), asking).await?;
    let after = rows(ctx).await?;
    let (documents, passages) = (before[0] - after[0], before[1] - after[1]);
    let observed = format_args!(
        "status {}, {documents} documents and {passages} passages fewer",
        deleted.status
    );
    // who deletes again after a lost reply finds nothing any more
    let gone = [204, 404].contains(&deleted.status);
    holds(
        "deletion.status",
        gone || deleted.status >= 500,
        "a status of 204, or of 500 or more",
        deleted.status,
    )?;
    holds(
        "deletion.whole",
        documents * whole == passages && (0..=1).contains(&documents),
        "a document and its passages deleted, or neither of them",
        observed,
    )
    .map_err(silent)?;
    holds(
        "deletion.as_answered",
        documents == 1 || !gone,
        "the document deleted after a 204",
        observed,
    )
    .map_err(silent)
}

async fn half_recorded(ctx: &Ctx, fault: AtStatement, end: &str) -> CaseResult {
    let before = ctx.database()?.count("queries").await?;
    let answer = broken_at(ctx, "into queries", (fault, end), ask(ctx)).await?;
    let records = ctx.database()?.count("queries").await? - before;
    equal(
        "record.answer",
        "the status of a query whose record was broken",
        200,
        answer.status,
    )?;
    let query = answer.json();
    let says = query["recorded"].as_bool();
    let least = i64::from(says == Some(true));
    holds(
        "record.as_answered",
        says.is_some() && (least..=1).contains(&records),
        "one record if the answer says so, and at most one otherwise",
        format_args!(
            "{records} records, the field recorded is {}",
            query["recorded"]
        ),
    )
    .map_err(silent)?;
    if says == Some(true) {
        let path = format!("{QUERIES}/{}", text(&query, "id"));
        let read = ctx.client.get(&path).await?.json();
        equal("record.document", "the record", &query, &read).map_err(silent)?;
    }
    Ok(())
}

/// The number of connections in the pool of DATA-03.
const POOL: u32 = 2;

async fn data_03(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    let (database, wire) = (ctx.database()?, ctx.database_wire()?);
    // given
    healthy(ctx)?;
    let record = format!("{QUERIES}/{}", text(&complete(ctx).await?, "id"));
    let locked = [
        database.lock("queries").await?,
        database.lock("documents").await?,
    ];
    // when
    let refused = all_refused(ctx).await;
    for lock in locked {
        lock.release().await?;
    }
    // then
    let name = "reads and writes, locked tables";
    deviations.note(ctx.examine(name, async { refused }).await)?;
    let name = "every connection after the locks";
    deviations.note(
        ctx.examine(name, every_connection(ctx, &record, "after-locks"))
            .await,
    )?;
    wire.stall();
    let refused = all_refused(ctx).await;
    wire.resume().await?;
    let name = "reads and writes, silent database";
    deviations.note(ctx.examine(name, async { refused }).await)?;
    let name = "every connection after the silence";
    deviations.note(
        ctx.examine(name, every_connection(ctx, &record, "after-silence"))
            .await,
    )?;
    deviations.result()
}

/// Reads and writes more than the pool has connections: each must be refused in time.
async fn all_refused(ctx: &Ctx) -> CaseResult {
    const OF_EACH: usize = 4;
    let reads = try_join_all((0..OF_EACH).map(|_| ctx.client.get(QUERIES)));
    let writes = try_join_all((0..OF_EACH).map(|_| ctx.client.post(DOCUMENTS, document())));
    let (reads, writes) = futures::try_join!(reads, writes)?;
    for (fact, what, answers) in [
        ("answer.statuses", "reads", reads),
        ("written.statuses", "writes", writes),
    ] {
        equal(
            fact,
            &format!("the statuses of {what}"),
            vec![503; OF_EACH],
            answers.iter().map(|answer| answer.status).collect(),
        )?;
        let odd = answers.iter().find(|answer| answer.error_type().is_none());
        holds(
            "answer.envelope",
            odd.is_none(),
            "errors in the usual envelope",
            odd.map(Reply::text).unwrap_or_default(),
        )?;
    }
    Ok(())
}

/// As many reads of a record as the pool has connections must be at the database together. A
/// listing would not do: a gateway may keep a part of its pool for calls that are short.
async fn every_connection(ctx: &Ctx, record: &str, gate: &str) -> CaseResult {
    until_status(ctx, "hang.recovered", record, 200).await?;
    let wire = ctx.database_wire()?;
    let mut asked = Vec::new();
    for _ in 0..POOL {
        wire.at_statement("from queries", AtStatement::Hold(gate.into()));
        asked.push(ctx.client.send("GET", record, &[], b"").await?);
    }
    let note = format!("the statement is held at {gate}");
    let held = |entry: &Entry| matches!(&entry.event, Event::Database { what } if *what == note);
    let together = ctx.tape.wait_for(POOL as usize, held);
    let what = format!("{POOL} reads at the database together");
    let together = guard("hang.every_connection", &what, together).boxed();
    let answers = match select(together, super::support::answers(asked).boxed()).await {
        Either::Left((together, answers)) => {
            together?;
            ctx.gates.gate(gate).open();
            answers.await?
        }
        // some were answered before all were held
        Either::Right((answers, _)) => answers?,
    };
    equal(
        "recovered.together",
        "the statuses of reads on every connection of the pool",
        vec![200; POOL as usize],
        answers.iter().map(|answer| answer.status).collect(),
    )
}

async fn data_04(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let query = complete(ctx).await?;
    let (database, wire) = (ctx.database()?, ctx.database_wire()?);
    let path = format!("{QUERIES}/{}", text(&query, "id"));
    let back = async |fact: &str| {
        let read = until_status(ctx, fact, &path, 200).await?;
        equal("record.document", "the record", &query, &read.json())?;
        written_again(ctx, &ctx.client).await
    };
    let meanwhile = async || {
        let (read, stored) = futures::try_join!(
            ctx.client.get(&path),
            ctx.client.post(DOCUMENTS, document())
        )?;
        equal(
            "gone.status",
            "the statuses of a read and a write meanwhile",
            [503, 503],
            [read.status, stored.status],
        )
    };
    // when, then
    let examined = async {
        database.terminate_backends().await?;
        back("hang.record_after_sessions").await
    };
    deviations.note(ctx.examine("its sessions ended", examined).await)?;
    let examined = async {
        wire.gone().await?;
        let refused = meanwhile().await;
        wire.resume().await?;
        refused?;
        back("hang.record_after_outage").await
    };
    deviations.note(ctx.examine("gone and back", examined).await)?;
    let examined = async {
        database.forbid_connections().await?;
        database.terminate_backends().await?;
        let refused = meanwhile().await;
        database.allow_connections().await?;
        refused?;
        back("hang.record_after_closing").await
    };
    deviations.note(ctx.examine("closed and opened again", examined).await)?;
    deviations.result()
}

/// A document must be stored again, and a query must be recorded.
async fn written_again(ctx: &Ctx, client: &gauntlet_harness::client::Client) -> CaseResult {
    let stored = || async {
        let stored = client.post(DOCUMENTS, document()).await?;
        Ok(Some(()).filter(|()| stored.status == 201))
    };
    converge(
        "hang.written_again",
        "a document that is stored again",
        stored,
    )
    .await?;
    let asked = client.post(QUERIES, super::support::question(ctx)).await?;
    holds(
        "query.recorded_again",
        asked.status == 200 && asked.json()["recorded"] == true,
        "a query that is recorded, since documents are stored again",
        asked.text(),
    )
}

async fn data_07(ctx: &Ctx) -> CaseResult {
    // given
    let stored = ctx.client.post(DOCUMENTS, document()).await?.json();
    let path = format!("{DOCUMENTS}/{}", text(&stored, "id"));
    let made = tables(ctx).await?;
    // when, then
    let again = async {
        let replica = ready("restart.ready", ctx.start_another().boxed().await)?;
        let read = replica.client.get(&path).await?;
        equal(
            "restart.document",
            "the document that was stored before",
            &stored,
            &read.json(),
        )
        .map_err(silent)?;
        let after = tables(ctx).await?;
        equal("restart.tables", "the tables", &made, &after)
    };
    ctx.examine("a second start", again).await?;
    let two = async {
        ctx.database()?.empty().await?;
        let wire = ctx.database_wire()?;
        wire.at_statement("create table", AtStatement::Hold("migration".into()));
        let second = async {
            let held = wire.held("migration").await;
            held.map_err(unexercised_if_hung(|| {
                "a gateway on an empty database sent no CREATE TABLE".into()
            }))?;
            let mut starting = ctx.start_another().boxed();
            let waits = Box::pin(ctx.database()?.until_waiting(1));
            let started = match select(&mut starting, waits).await {
                Either::Left((started, _)) => Some(started),
                // whether or not its wait can be seen
                Either::Right(_) => None,
            };
            ctx.gates.gate("migration").open();
            Ok::<_, Failure>(match started {
                Some(started) => started,
                None => starting.await,
            })
        };
        let (first, second) = join(ctx.start_another().boxed(), second.boxed()).await;
        together(ctx, &made, [first, second?]).await
    };
    ctx.examine("two at once, the first is held", two).await?;
    let three = async {
        ctx.database()?.empty().await?;
        let starts = (0..3).map(|_| ctx.start_another().boxed());
        let started = join_all(starts).await;
        together(ctx, &made, started).await
    };
    ctx.examine("three at once", three).await
}

/// Gateways that started together on an empty database must be ready, with the tables that one
/// makes, and each must read what another one wrote.
async fn together(
    ctx: &Ctx,
    made: &[String],
    started: impl IntoIterator<Item = Result<Replica, Failure>>,
) -> CaseResult {
    let replicas: Vec<Replica> = started
        .into_iter()
        .map(|started| ready("together.ready", started))
        .collect::<Result<_, _>>()?;
    let after = tables(ctx).await?;
    equal("together.tables", "the tables", made, after.as_slice())?;
    for writer in &replicas {
        let stored = writer.client.post(DOCUMENTS, document()).await?;
        equal(
            "together.stored",
            "the status of a document",
            201,
            stored.status,
        )?;
        let path = format!("{DOCUMENTS}/{}", text(&stored.json(), "id"));
        for reader in &replicas {
            let read = reader.client.get(&path).await?;
            equal(
                "together.read",
                "the document",
                &stored.json(),
                &read.json(),
            )?;
        }
    }
    Ok(())
}

/// A gateway that does not become ready has not survived the migration.
fn ready(fact: &str, started: Result<Replica, Failure>) -> Result<Replica, Failure> {
    started.map_err(|failure| match failure {
        Failure::Target { what } => Failure::Violated {
            fact: fact.into(),
            expected: "a gateway that becomes ready".into(),
            observed: what,
            mode: FailureMode::Visible,
        },
        other => other,
    })
}

/// Every column and index of the database, in words.
async fn tables(ctx: &Ctx) -> Result<Vec<String>, Failure> {
    let columns =
        "SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable
                   FROM information_schema.columns WHERE table_schema = 'public'
                   ORDER BY table_name, ordinal_position";
    let indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexdef";
    let mut tables = ctx.database()?.texts(columns).await?;
    tables.extend(ctx.database()?.texts(indexes).await?);
    Ok(tables)
}

/// Texts that end a quotation, a statement, a format or a line somewhere.
const HOSTILE: [&str; 5] = [
    "'); DROP TABLE queries; --",
    "\"double\" and 'single' $1 \\",
    "🦀 \u{202e}right to left\u{202c} e\u{301}",
    "?1 %s {0} ${x}",
    "\u{1}\t\r\n",
];

async fn data_08(ctx: &Ctx) -> CaseResult {
    const TOGETHER: usize = 6;
    // given
    healthy(ctx)?;
    let mut newest_first = Vec::new();
    let questions = async {
        for text in HOSTILE {
            newest_first.insert(0, asked(ctx, text).await?);
        }
        Ok(())
    };
    ctx.examine("hostile questions", questions).await?;
    let moment = try_join_all((0..TOGETHER).map(|_| asked(ctx, "at one moment"))).await?;
    let known = newest_first.len() + TOGETHER;
    // when
    let mut found: Vec<Value> = Vec::new();
    while found.len() < known {
        let before = found
            .last()
            .map(|query| format!("&before={}", text(query, "id")))
            .unwrap_or_default();
        let page = ctx
            .client
            .get(&format!("{QUERIES}?size=2{before}"))
            .await?
            .json();
        let queries = page["queries"].as_array().cloned().unwrap_or_default();
        holds(
            "listing.complete",
            !queries.is_empty(),
            format!("{known} queries on all pages together"),
            format_args!("{} queries, and then an empty page", found.len()),
        )
        .map_err(silent)?;
        found.extend(queries);
        asked(ctx, "recorded between two pages").await?;
    }
    // then
    found.truncate(known);
    let older = found.split_off(TOGETHER);
    let ids = |queries: &[Value]| {
        let ids = queries.iter().map(|query| text(query, "id").to_owned());
        let mut ids: Vec<String> = ids.collect();
        ids.sort();
        ids
    };
    let at_once = async {
        equal(
            "listing.moment",
            "the queries that were asked at one moment, each once,",
            ids(&moment),
            ids(&found),
        )
        .map_err(silent)
    };
    ctx.examine("queries of one moment", at_once).await?;
    let in_order = async {
        equal(
            "listing.order",
            "the queries, newest first and each once,",
            &newest_first,
            &older,
        )
        .map_err(silent)
    };
    ctx.examine("inserts between pages", in_order).await?;
    ctx.examine("hostile answer", hostile_answer(ctx)).await?;
    ctx.examine("hostile documents", refused_or_kept(ctx))
        .await?;
    ctx.examine("hostile titles", hostile_titles(ctx)).await?;
    ctx.examine("hostile ids and filters", hostile_paths(ctx))
        .await?;
    ctx.examine("lone surrogate", lone_surrogate(ctx)).await
}

/// A model answers with hostile text: the reader and the record must get the same.
async fn hostile_answer(ctx: &Ctx) -> CaseResult {
    let written = format!("It is so: {} \u{0} \u{feff}.", HOSTILE.concat());
    let given = json!({ "answer": written });
    ctx.stub("synthesis")?.answers(reply(&given.to_string()));
    let answer = complete(ctx).await?;
    ctx.stub("synthesis")?.answers(does_its_part("synthesis"));
    holds(
        "hostile_answer.text",
        text(&answer, "answer").contains(HOSTILE[0]),
        "an answer that holds the text of the model",
        text(&answer, "answer"),
    )
    .map_err(silent)?;
    equal(
        "hostile_answer.recorded",
        "the field recorded of an answer with hostile text",
        Some(true),
        answer["recorded"].as_bool(),
    )?;
    recorded(ctx, "complete", &answer).await
}

/// Titles that are large or hostile: each must come back as it was, or be refused.
async fn hostile_titles(ctx: &Ctx) -> CaseResult {
    let megabyte = "title ".repeat(200_000);
    let titles = HOSTILE.into_iter().chain(["a\u{0}b", &megabyte]);
    for title in titles {
        let stored = ctx
            .client
            .post(DOCUMENTS, json!({"title": title, "text": "radium glows"}))
            .await?;
        if (400..500).contains(&stored.status) {
            continue;
        }
        equal(
            "hostile_title.status",
            "the status of a document with a hostile title",
            201,
            stored.status,
        )?;
        let path = format!("{DOCUMENTS}/{}", text(&stored.json(), "id"));
        let read = ctx.client.get(&path).await?.json();
        equal(
            "hostile_title.text",
            "the title",
            title,
            text(&read, "title"),
        )
        .map_err(silent)?;
    }
    Ok(())
}

/// Ids and filters that no client should send must be refused, and change nothing.
async fn hostile_paths(ctx: &Ctx) -> CaseResult {
    const TEXT: &str = "%27%3B%20DROP%20TABLE%20queries%3B--";
    let before = ctx.database()?.count("queries").await?;
    for path in [
        format!("{QUERIES}/{TEXT}"),
        format!("{QUERIES}/%00"),
        format!("{DOCUMENTS}/{TEXT}"),
        format!("{QUERIES}?before={TEXT}"),
        format!("{QUERIES}?status={TEXT}"),
        format!("{QUERIES}?size={TEXT}"),
    ] {
        let answer = ctx.client.get(&path).await?;
        holds(
            "hostile_path.status",
            (400..500).contains(&answer.status),
            format!("a status of 4xx for {path}"),
            answer.status,
        )?;
    }
    let after = ctx.database()?.count("queries").await?;
    equal("hostile_path.rows", "the number of queries", before, after).map_err(silent)
}

/// JSON can hold one half of a character: it must be refused, or come back as it was.
async fn lone_surrogate(ctx: &Ctx) -> CaseResult {
    let json = [("content-type", "application/json")];
    for (path, body) in [
        (QUERIES, r#"{"question": "who? \ud800"}"#),
        (DOCUMENTS, r#"{"title": "t", "text": "radium \udfff"}"#),
    ] {
        let answer = ctx
            .client
            .request("POST", path, &json, body.as_bytes())
            .await?;
        let refused = (400..500).contains(&answer.status);
        let kept = [200, 201].contains(&answer.status)
            && ["\\ud800", "\\udfff"]
                .iter()
                .any(|half| answer.text().to_lowercase().contains(half));
        holds(
            "surrogate.kept",
            refused || kept,
            "half a character to be refused with 4xx, or returned as it was sent",
            format_args!("status {}: {}", answer.status, answer.text()),
        )?;
    }
    // what was kept must not make the listing unreadable
    let page = ctx.client.get(QUERIES).await?;
    equal(
        "surrogate.listing",
        "the status of the listing",
        200,
        page.status,
    )
}

async fn data_10(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    healthy(ctx)?;
    let client = ctx.client.with_bearer(KEY);
    let stored = client.post(DOCUMENTS, document()).await?;
    equal(
        "before.status",
        "the status of a document before any fault",
        201,
        stored.status,
    )?;
    let path = format!("{DOCUMENTS}/{}", text(&stored.json(), "id"));
    for fault in FAULTS {
        // given
        let before = rows(ctx).await?;
        (fault.set)(ctx.database()?).await?;
        // when
        let seen = under(ctx, &client, &fault, &path).await;
        (fault.undo)(ctx.database()?).await?;
        let after = rows(ctx).await?;
        // then
        let examined = async {
            seen?;
            if !fault.writes {
                equal(
                    "rows.count",
                    "the numbers of documents and passages",
                    before,
                    after,
                )
                .map_err(silent)?;
            }
            written_again(ctx, &client).await?;
            until_listed(&client).await
        };
        deviations.note(ctx.examine(fault.name, examined).await)?;
    }
    deviations.result()
}

/// What clients are answered while the database has this fault.
async fn under(
    ctx: &Ctx,
    client: &gauntlet_harness::client::Client,
    fault: &Fault,
    path: &str,
) -> CaseResult {
    let name = fault.name;
    let stored = client.post(DOCUMENTS, document()).await?;
    holds(
        "document.status",
        stored.status == 503 || (fault.writes && stored.status == 201),
        format!("a document to be refused with 503 while the database is {name}"),
        stored.status,
    )?;
    let chat = client.chat(ctx.prompt("review", "hello")).await?;
    equal(
        "chat.status",
        &format!("the status of a chat while the database is {name}"),
        200,
        chat.status,
    )?;
    if ctx.declares(Capability::Stream) {
        let stream = client.streamed(ctx.prompt("review", "hello")).await?;
        holds(
            "chat.stream",
            stream.looks_complete(),
            format!("a whole stream while the database is {name}"),
            stream.status,
        )?;
    }
    if ctx.declares(Capability::StoredKeys) {
        let unknown = client
            .with_bearer("sk-canary-nobody-6d8f2b")
            .chat(ctx.prompt("review", "hello"))
            .await?;
        equal(
            "unknown_key.status",
            &format!("the status with a key that nobody has while the database is {name}"),
            fault.unknown_key,
            unknown.status,
        )?;
    }
    let asked = client.post(QUERIES, super::support::question(ctx)).await?;
    equal(
        "query.status",
        &format!("the status of a query while the database is {name}"),
        200,
        asked.status,
    )?;
    if !fault.writes {
        equal(
            "query.recorded",
            &format!("the field recorded while the database is {name}"),
            Some(false),
            asked.json()["recorded"].as_bool(),
        )
        .map_err(silent)?;
    }
    let listed = client.get(QUERIES).await?;
    holds(
        "listing.status",
        [200, 503].contains(&listed.status),
        format!("a listing with 200 or 503 while the database is {name}"),
        listed.status,
    )?;
    if fault.deletes {
        return Ok(());
    }
    let deleted = client.request("DELETE", path, &[], b"").await?;
    equal(
        "deletion.status",
        &format!("the status of a deletion while the database is {name}"),
        503,
        deleted.status,
    )
}

async fn until_listed(client: &gauntlet_harness::client::Client) -> CaseResult {
    let back =
        || async { Ok(Some(client.get(QUERIES).await?.status).filter(|status| *status == 200)) };
    converge(
        "hang.recovered",
        "a list of queries once the fault is undone",
        back,
    )
    .await
    .map(drop)
}

/// The one key that is configured.
const KEY: &str = "sk-canary-client-c-8b41f6d09e7a2c53";

/// What an operator can do to a database, and how it is undone.
struct Fault {
    name: &'static str,
    set: Change,
    undo: Change,
    /// The status of a request with a key that is not configured: 401 where the database can
    /// answer, otherwise 503.
    unknown_key: u16,
    /// Whether documents may be deleted all the same.
    deletes: bool,
    /// Whether documents and records may be written all the same.
    writes: bool,
}

type Change = for<'d> fn(&'d CaseDatabase) -> BoxFuture<'d, Result<(), DatabaseError>>;

const FAULTS: [Fault; 6] = [
    Fault {
        name: "read-only",
        set: |database| database.read_only().boxed(),
        undo: |database| database.read_write().boxed(),
        unknown_key: 401,
        deletes: false,
        writes: false,
    },
    Fault {
        name: "full",
        set: |database| database.disk_full().boxed(),
        undo: |database| database.disk_free().boxed(),
        unknown_key: 401,
        deletes: true,
        writes: false,
    },
    Fault {
        name: "without the right to insert",
        set: |database| database.revoke_insert().boxed(),
        undo: |database| database.grant_insert().boxed(),
        unknown_key: 401,
        deletes: true,
        writes: false,
    },
    Fault {
        name: "without the right to read",
        set: |database| database.revoke_select(None).boxed(),
        undo: |database| database.grant_select(None).boxed(),
        unknown_key: 503,
        deletes: true,
        writes: true,
    },
    Fault {
        name: "out of connections",
        set: |database| {
            async {
                database.limit_connections(0).await?;
                database.terminate_backends().await.map(drop)
            }
            .boxed()
        },
        undo: |database| database.limit_connections(-1).boxed(),
        unknown_key: 503,
        deletes: false,
        writes: false,
    },
    Fault {
        name: "closed",
        set: |database| {
            async {
                database
                    .forbid_connections()
                    .await
                    .and(database.terminate_backends().await.map(drop))
            }
            .boxed()
        },
        undo: |database| database.allow_connections().boxed(),
        unknown_key: 503,
        deletes: false,
        writes: false,
    },
];

/// Asks a question of this text, and returns the answer.
async fn asked(ctx: &Ctx, question: &str) -> Result<Value, Failure> {
    let answer = ctx
        .client
        .post(QUERIES, json!({"question": format!("who? {question}")}))
        .await?;
    equal(
        "question.status",
        &format!("the status of the question {question:?}"),
        200,
        answer.status,
    )?;
    equal(
        "question.text",
        "the question in the answer",
        format!("who? {question}").as_str(),
        text(&answer.json(), "question"),
    )?;
    equal(
        "question.recorded",
        "the field recorded of the answer",
        Some(true),
        answer.json()["recorded"].as_bool(),
    )?;
    Ok(answer.json())
}

/// Hands in documents whose text is large or hostile: each must come back as it was, or be
/// refused.
async fn refused_or_kept(ctx: &Ctx) -> CaseResult {
    let megabyte = "radium 🦀 ' ".repeat(80_000);
    let texts = [
        megabyte.as_str(),
        "radium\u{0}glows",
        "'); DELETE FROM documents; --",
        "\u{feff}radium\u{fffd}",
    ];
    let stored = join_all(texts.map(|text| {
        ctx.client
            .post(DOCUMENTS, json!({"title": "'\"🦀", "text": text}))
    }))
    .await;
    let mut ids = HashSet::new();
    for (sent, stored) in texts.iter().zip(stored) {
        let stored = stored?;
        if (400..500).contains(&stored.status) {
            continue;
        }
        equal(
            "hostile_document.status",
            "the status of a hostile document",
            201,
            stored.status,
        )?;
        let id = text(&stored.json(), "id").to_owned();
        let read = ctx.client.get(&format!("{DOCUMENTS}/{id}")).await?;
        let as_sent = text(&read.json(), "text") == *sent && text(&read.json(), "title") == "'\"🦀";
        holds(
            "hostile_document.text",
            as_sent,
            "the text as it was sent",
            read.text().chars().take(200).collect::<String>(),
        )
        .map_err(silent)?;
        holds(
            "hostile_document.id",
            ids.insert(id.clone()),
            "an id that no other document has",
            id,
        )?;
    }
    for question in ["a\u{0}b".to_owned(), "x".repeat(1 << 20)] {
        let answer = ctx
            .client
            .post(QUERIES, json!({"question": question}))
            .await?;
        let kept =
            (400..500).contains(&answer.status) || text(&answer.json(), "question") == question;
        holds(
            "hostile_question.kept",
            kept,
            "a question that cannot be stored to be refused with 4xx, or returned as it was sent",
            answer.status,
        )?;
    }
    Ok(())
}
