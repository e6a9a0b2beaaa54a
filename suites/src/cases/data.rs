//! DATA: the record is the answer, once and whole, and the database's failures are never the
//! client's.

use std::collections::HashSet;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all, try_join_all};
use gauntlet_harness::case::{CaseResult, Ctx, Failure, equal, holds, silent};
use gauntlet_harness::database::{CaseDatabase, DatabaseError};
use gauntlet_harness::gate::converge;
use gauntlet_harness::llm::error;
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::Event;
use gauntlet_harness::wire::postgres::AtStatement;
use serde_json::{Value, json};

use super::CaseRow;
use super::support::{
    DOCUMENTS, QUERIES, STORED, ask, complete, document, healthy, known, on_postgres, query,
    soon_without_store, text, until_status,
};

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "DATA-01",
        why: "A record that differs from what the reader saw is evidence against the wrong thing.",
        shown: "A complete, a degraded and a failed query are asked. Each must be listed once, and \
                read under its id as it was answered.",
        remedy: "Record the document that is sent, after its last change, under an id that can be \
                 written once.",
        needs: STORED,
        instances: &[],
        spec: query,
        run: &data_01,
    },
    CaseRow {
        id: "DATA-02",
        why: "A document whose passages are missing exists for those who list it, and not for those \
              who search.",
        shown: "The connection is cut at the statement that stores a document's passages; then the \
                statement is carried out and its reply is lost. Each time the case counts the rows in \
                the database.",
        remedy: "Write what belongs together in one transaction, or in one statement.",
        needs: STORED,
        instances: &[],
        spec: on_postgres,
        run: &data_02,
    },
    CaseRow {
        id: "DATA-03",
        why: "A pool without an acquire timeout turns one locked table into a gateway that answers \
              nobody.",
        shown: "A table is locked while more requests than the pool has connections read from it. Each \
                must get 503, and 200 once the lock is gone.",
        remedy: "Bound the wait for a connection and for a statement, and answer 503.",
        needs: STORED,
        instances: &[],
        spec: || soon_without_store(on_postgres()).with_query(|query| query.pool = 2),
        run: &data_03,
    },
    CaseRow {
        id: "DATA-04",
        why: "After its database had restarted, a proxy called valid keys invalid until it was \
              restarted itself (https://github.com/BerriAI/litellm/issues/38121).",
        shown: "The database ends every session, then is gone for a while, then is back. The record \
                must be readable again.",
        remedy: "Throw broken connections away, and make new ones.",
        needs: STORED,
        instances: &[],
        spec: on_postgres,
        run: &data_04,
    },
    CaseRow {
        id: "DATA-08",
        why: "Page numbers shift under inserts, and text that ends up in SQL is somebody else's \
              statement.",
        shown: "Pages are read while queries are recorded between them. Questions and documents hold \
                quotes, SQL, NUL, emoji and a megabyte of text.",
        remedy: "Page by the last row's id, bind every value, and refuse what cannot be stored.",
        needs: STORED,
        instances: &[],
        spec: || query().with_query(|query| query.store_ms = 5_000),
        run: &data_08,
    },
    CaseRow {
        id: "DATA-10",
        why: "While its database was down, a proxy answered clients with valid keys 401, and they \
              rotated their keys (https://github.com/BerriAI/litellm/issues/38121).",
        shown: "The database is made read-only, full, without the right to insert, and closed. Each \
                time a document is handed in, and a chat is asked with the configured key and with one \
                that must be looked up: 401 is right only while the database can answer.",
        remedy: "Map every failure of the database to 503, and write in one transaction.",
        needs: &[Capability::Query, Capability::Store, Capability::Chat],
        instances: &[],
        spec: || on_postgres().key("c", KEY),
        run: &data_10,
    },
];

async fn data_01(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    // when
    ctx.stub("review")?.answers(error(500));
    let degraded = ask(ctx).await?.json();
    ctx.stub("synthesis")?.answers(error(500));
    let failed = ask(ctx).await?.json()["query"].clone();
    healthy(ctx)?;
    known(ctx).await?;
    let complete = complete(ctx).await?;
    // then
    for (status, query) in [
        ("degraded", &degraded),
        ("failed", &failed),
        ("complete", &complete),
    ] {
        equal(
            "query.status",
            "the status of the query",
            status,
            text(query, "status"),
        )?;
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
        equal("record.document", "the record", query, &read.json()).map_err(silent)?;
    }
    let page = ctx.client.get(QUERIES).await?.json();
    equal(
        "records.count",
        "the number of records",
        Some(3),
        page["total"].as_u64(),
    )
    .map_err(silent)?;
    equal(
        "records.listing",
        "the listing",
        &json!([complete, failed, degraded]),
        &page["queries"],
    )
    .map_err(silent)
}

async fn data_02(ctx: &Ctx) -> CaseResult {
    let rows = async || {
        Ok::<_, Failure>([
            ctx.database()?.count("documents").await?,
            ctx.database()?.count("passages").await?,
        ])
    };
    for (fault, end) in [
        (AtStatement::Cut, "is cut"),
        (AtStatement::LoseReply, "is reset"),
    ] {
        // given
        let before = rows().await?;
        ctx.database_wire()?.at_statement("into passages", fault);
        // when
        let stored = ctx.client.post(DOCUMENTS, document()).await?;
        // then
        let ended = ctx
            .tape
            .first(|entry| matches!(&entry.event, Event::Database { what } if what.ends_with(end)));
        holds(
            "fault.met",
            ended.is_some(),
            format!("a statement that stores passages, at which the connection {end}"),
            "no such statement",
        )?;
        holds(
            "answer.status",
            stored.status == 201 || stored.status >= 500,
            "a status of 201, or of 500 or more",
            stored.status,
        )?;
        let after = rows().await?;
        let (documents, passages) = (after[0] - before[0], after[1] - before[1]);
        // a lost reply may be that of a statement that was carried out
        let least = i64::from(stored.status == 201);
        let observed = format_args!(
            "status {}, {documents} documents, {passages} passages",
            stored.status
        );
        holds(
            "rows.whole",
            documents == passages,
            "a document and its passage, or neither of them",
            observed,
        )
        .map_err(silent)?;
        holds(
            "rows.as_answered",
            (least..=1).contains(&documents),
            "one document after a 201, and at most one otherwise",
            observed,
        )
        .map_err(silent)?;
    }
    Ok(())
}

async fn data_03(ctx: &Ctx) -> CaseResult {
    // given
    const READERS: usize = 8;
    let locked = ctx.database()?.lock("queries").await?;
    // when
    let refused = try_join_all((0..READERS).map(|_| ctx.client.get(QUERIES))).await?;
    locked.release().await?;
    // then
    equal(
        "answer.statuses",
        "the statuses while the table is locked",
        vec![503; READERS],
        refused.iter().map(|answer| answer.status).collect(),
    )?;
    holds(
        "answer.envelope",
        refused.iter().all(|answer| answer.error_type().is_some()),
        "errors in the usual envelope",
        refused[0].text(),
    )?;
    until_status(ctx, "hang.recovered", QUERIES, 200).await?;
    Ok(())
}

async fn data_04(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let query = complete(ctx).await?;
    let path = format!("{QUERIES}/{}", text(&query, "id"));
    // when
    ctx.database()?.terminate_backends().await?;
    until_status(ctx, "hang.record_after_sessions", &path, 200).await?;
    ctx.database_wire()?.gone().await?;
    let meanwhile = ctx.client.get(&path).await?;
    ctx.database_wire()?.resume().await?;
    // then
    equal(
        "gone.status",
        "the status while the database is gone",
        503,
        meanwhile.status,
    )?;
    let read = until_status(ctx, "hang.record_after_outage", &path, 200).await?;
    equal("record.document", "the record", &query, &read.json())
}

async fn data_08(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    let hostile = [
        "'); DROP TABLE queries; --",
        "\"double\" and 'single' $1 \\",
        "🦀 \u{202e}right to left\u{202c} e\u{301}",
        "?1 %s {0} ${x}",
        "\u{1}\t\r\n",
    ];
    let mut newest_first = Vec::new();
    for text in hostile {
        newest_first.insert(0, asked(ctx, text).await?);
    }
    // when
    let mut found: Vec<Value> = Vec::new();
    while found.len() < newest_first.len() {
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
            format!("{} queries on all pages together", newest_first.len()),
            format_args!("{} queries, and then an empty page", found.len()),
        )
        .map_err(silent)?;
        found.extend(queries);
        asked(ctx, "recorded between two pages").await?;
    }
    // then
    found.truncate(newest_first.len());
    equal(
        "listing.order",
        "the queries, newest first and each once,",
        &newest_first,
        &found,
    )
    .map_err(silent)?;
    refused_or_kept(ctx).await
}

async fn data_10(ctx: &Ctx) -> CaseResult {
    healthy(ctx)?;
    let (database, client) = (ctx.database()?, ctx.client.with_bearer(KEY));
    for Fault {
        name,
        set,
        undo,
        unknown_key,
    } in FAULTS
    {
        // given
        set(database).await?;
        // when
        let stored = client.post(DOCUMENTS, document()).await?;
        let chat = client.chat(ctx.prompt("review", "hello")).await?;
        let unknown = client
            .with_bearer("sk-canary-nobody-6d8f2b")
            .chat(ctx.prompt("review", "hello"))
            .await?;
        undo(database).await?;
        // then
        equal(
            "document.status",
            &format!("the status of a document while the database is {name}"),
            503,
            stored.status,
        )?;
        equal(
            "chat.status",
            &format!("the status of a chat while the database is {name}"),
            200,
            chat.status,
        )?;
        if ctx.declares(Capability::StoredKeys) {
            equal(
                "unknown_key.status",
                &format!("the status with a key that nobody has while the database is {name}"),
                unknown_key,
                unknown.status,
            )?;
        }
        for table in ["documents", "passages"] {
            equal(
                "rows.count",
                &format!("the number of rows of {table}"),
                0,
                database.count(table).await?,
            )
            .map_err(silent)?;
        }
    }
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
}

type Change = for<'d> fn(&'d CaseDatabase) -> BoxFuture<'d, Result<(), DatabaseError>>;

const FAULTS: [Fault; 4] = [
    Fault {
        name: "read-only",
        set: |database| database.read_only().boxed(),
        undo: |database| database.read_write().boxed(),
        unknown_key: 401,
    },
    Fault {
        name: "full",
        set: |database| database.disk_full().boxed(),
        undo: |database| database.disk_free().boxed(),
        unknown_key: 401,
    },
    Fault {
        name: "without the right to insert",
        set: |database| database.revoke_insert().boxed(),
        undo: |database| database.grant_insert().boxed(),
        unknown_key: 401,
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
