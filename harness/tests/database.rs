//! The databases of cases: every source of a database is tried, and a client outside of the harness
//! meets every fault.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use gauntlet_harness::database::{
    CaseDatabase, Choice, Database, DatabaseError, End, Kind, Require, Resolved,
};
use gauntlet_harness::gate::{Gates, with_hang_guard};
use gauntlet_harness::tape::Tape;
use gauntlet_harness::wire::postgres::{AtStatement, DatabaseWire};
use rstest::rstest;
use sqlx::{Connection, PgConnection};

/// Returns the database, or prints the reason if this machine has none of that kind.
async fn resolve(choice: Choice) -> Option<Resolved> {
    let required = Require::from_env().unwrap();
    match Database::resolve(&choice, Require::Nothing).await {
        Ok(resolved) => {
            println!("{resolved}");
            Some(resolved)
        }
        Err(error @ DatabaseError::Missing { .. })
            if required != Require::Docker || choice == Choice::Local =>
        {
            println!("not run: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

async fn schema(url: String) -> Result<(), String> {
    let sql = "CREATE TABLE things (id integer PRIMARY KEY); INSERT INTO things VALUES (7)";
    if url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(&format!("{url}?mode=rwc"))
            .await
            .map_err(|e| e.to_string())?;
        sqlx::raw_sql(sql)
            .execute(&mut connection)
            .await
            .map_err(|e| e.to_string())?;
        return connection.close().await.map_err(|e| e.to_string());
    }
    let mut connection = PgConnection::connect(&url)
        .await
        .map_err(|e| e.to_string())?;
    sqlx::raw_sql(sql)
        .execute(&mut connection)
        .await
        .map_err(|e| e.to_string())?;
    // it stays open: the template must be usable nevertheless
    std::mem::forget(connection);
    Ok(())
}

#[rstest]
#[case::docker(Choice::Docker)]
#[case::local(Choice::Local)]
#[case::sqlite(Choice::Sqlite)]
#[tokio::test]
async fn each_case_gets_a_clone_of_one_template(#[case] choice: Choice) {
    let Some(resolved) = resolve(choice).await else {
        return;
    };
    let database = resolved.database;
    let (one, other) = tokio::join!(
        database.template("schema 1", |url| Box::pin(schema(url))),
        database.template("schema 1", |url| Box::pin(schema(url)))
    );
    let (template, _) = (one.unwrap(), other.unwrap());
    let first = database
        .case_database("DATA-01", Some(&template))
        .await
        .unwrap();
    let start = tokio::time::Instant::now();
    let second = database
        .case_database("DATA-01", Some(&template))
        .await
        .unwrap();
    // printed for people, and not asserted, because machines differ
    println!("a clone took {:?}", start.elapsed());
    assert_ne!(first.url(), second.url());
    for case in [&first, &second] {
        assert_eq!(case.scalar("SELECT max(id) FROM things").await.unwrap(), 7);
        assert_eq!(case.count("things").await.unwrap(), 1);
    }
    assert_eq!(
        first
            .texts("SELECT CAST(id AS text) FROM things")
            .await
            .unwrap(),
        ["7"]
    );
    let empty = database.case_database("empty", None).await.unwrap();
    assert!(matches!(
        empty.count("things").await,
        Err(DatabaseError::Sql { .. })
    ));
    let failed = database
        .template("wrong", |_| Box::pin(async { Err("no".to_owned()) }))
        .await;
    assert_eq!(failed.unwrap_err(), DatabaseError::Migration("no".into()));
    assert_eq!(first.finish(End::Drop).await.unwrap(), None);
    let kept = second.finish(End::Keep).await.unwrap().unwrap();
    if let Some(file) = kept.strip_prefix("sqlite://") {
        std::fs::remove_file(file).unwrap();
    }
    if database.kind() == Kind::Sqlite {
        assert!(matches!(
            empty.lock("things").await,
            Err(DatabaseError::NotPostgres(_))
        ));
    } else {
        faults(
            &database
                .case_database("faults", Some(&template))
                .await
                .unwrap(),
        )
        .await;
        prepared(
            &database
                .case_database("prepared", Some(&template))
                .await
                .unwrap(),
        )
        .await;
    }
    database.stop().await;
}

async fn faults(case: &CaseDatabase) {
    let url = case.url().to_owned();
    let mut client = PgConnection::connect(&url).await.unwrap();
    assert_eq!(case.backends().await.unwrap(), 1);

    case.revoke_insert().await.unwrap();
    assert_eq!(insert(&mut client).await, "42501");
    case.grant_insert().await.unwrap();
    case.disk_full().await.unwrap();
    assert_eq!(insert(&mut client).await, "53100");
    case.disk_free().await.unwrap();
    assert_eq!(insert(&mut client).await, "");

    let held = case.lock("things").await.unwrap();
    let waiting = tokio::spawn(async move {
        let answer = insert(&mut client).await;
        (client, answer)
    });
    case.until_waiting(1).await.unwrap();
    let waits = with_hang_guard(Duration::from_millis(50), case.until_none_waits()).await;
    assert!(matches!(waits, Err(DatabaseError::Hung(_))), "{waits:?}");
    held.release().await.unwrap();
    case.until_none_waits().await.unwrap();
    let (mut client, answer) = waiting.await.unwrap();
    assert_eq!(answer, "");

    // the lock belongs to a session of the harness, which is not ended
    let held = case.lock("things").await.unwrap();
    assert_eq!(case.terminate_backends().await.unwrap(), 1);
    held.release().await.unwrap();
    assert_eq!(insert(&mut client).await, "57P01");
    case.forbid_connections().await.unwrap();
    assert_eq!(refusal(&url).await, "55000");
    case.allow_connections().await.unwrap();
    case.limit_connections(0).await.unwrap();
    assert_eq!(refusal(&url).await, "53300");
    case.limit_connections(-1).await.unwrap();
    case.read_only().await.unwrap();
    let mut client = PgConnection::connect(&url).await.unwrap();
    assert_eq!(insert(&mut client).await, "25006");
    case.read_write().await.unwrap();
    let mut client = PgConnection::connect(&url).await.unwrap();
    assert_eq!(insert(&mut client).await, "");
}

/// The wire sees a prepared statement when it is executed, and faults apply to it then.
async fn prepared(case: &CaseDatabase) {
    let tape = Tape::new();
    let gates = Gates::new(tape.clone());
    let (host, port) = case.upstream().unwrap();
    let wire = DatabaseWire::bind(&format!("{host}:{port}"), tape.clone(), gates.clone())
        .await
        .unwrap();
    let mut client = PgConnection::connect(&wire.url(case.url())).await.unwrap();
    for n in 1..=2 {
        assert_eq!(insert(&mut client).await, "");
        assert_eq!(
            wire.statements("insert into things", n)
                .await
                .unwrap()
                .len(),
            n,
            "prepared once, executed {n} times"
        );
    }
    wire.at_statement("INSERT", AtStatement::Hold("g".into()));
    let waiting = tokio::spawn(async move { (insert(&mut client).await, client) });
    wire.held("g").await.unwrap();
    assert_eq!(
        case.count("things").await.unwrap(),
        3,
        "it is not executed while it is held"
    );
    gates.gate("g").open();
    let (answer, mut client) = waiting.await.unwrap();
    assert_eq!(
        (answer.as_str(), case.count("things").await.unwrap()),
        ("", 4)
    );
    wire.at_statement("INSERT", AtStatement::LoseReply);
    assert!(insert(&mut client).await.contains("Io"));
    assert_eq!(
        case.count("things").await.unwrap(),
        5,
        "it is executed though its reply is lost"
    );
}

/// Returns the SQLSTATE of an insert, or an empty text if it succeeds.
async fn insert(client: &mut PgConnection) -> String {
    code(
        sqlx::query("INSERT INTO things SELECT max(id) + 1 FROM things")
            .execute(client)
            .await
            .err(),
    )
}

async fn refusal(url: &str) -> String {
    code(PgConnection::connect(url).await.err())
}

fn code(error: Option<sqlx::Error>) -> String {
    match error {
        None => String::new(),
        Some(sqlx::Error::Database(error)) => error.code().unwrap_or_default().into_owned(),
        Some(other) => format!("{other:?}"),
    }
}

#[tokio::test]
async fn a_required_database_that_is_missing_is_an_error() {
    let error = Database::resolve(
        &Choice::Url("postgres://u:secret@127.0.0.1:9/d".into()),
        Require::Docker,
    )
    .await
    .err()
    .unwrap();
    assert!(matches!(&error, DatabaseError::Missing { .. }), "{error}");
    let error = Database::resolve(
        &Choice::Url("postgres://u:secret@127.0.0.1:9/d".into()),
        Require::Nothing,
    )
    .await
    .err()
    .unwrap();
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn a_wrong_choice_is_quoted_without_its_login() {
    for (value, named) in [
        ("mysql", "`mysql`"),
        (
            "mysql://me:se/cr@t:?secret@db.example/d",
            "`mysql://…@db.example/d`",
        ),
        ("me:secret@db.example", "`…@db.example`"),
        (
            "mysql://db.example/d?password=secret",
            "`mysql://db.example/d`",
        ),
        (" auto", "` auto`"),
    ] {
        let error = value.parse::<Choice>().unwrap_err().to_string();
        assert!(
            error.ends_with(&format!("not {named}")) && !error.contains("secret"),
            "{error}"
        );
    }
    assert_eq!("".parse::<Choice>().unwrap(), Choice::Auto);
}
