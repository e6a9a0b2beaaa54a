//! Databases for the store's tests: one server for the whole test program, a database for each test.

#![allow(dead_code)]

use std::io::Write;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use gauntlet::config::StoreConfig;
use gauntlet::store::{self, Store};
use gauntlet_harness::database::{CaseDatabase, Choice, Database, End, Kind, Require, Template};

/// On which database a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Sqlite,
    Postgres,
}

/// A store on a database of its own.
pub struct Bed {
    pub store: Arc<dyn Store>,
    pub case: CaseDatabase,
}

impl Bed {
    pub async fn end(self) {
        self.store.close().await;
        self.case
            .finish(End::Drop)
            .await
            .expect("the database of the test is dropped");
    }
}

/// Bounds that no test reaches by itself.
pub fn config(url: &str) -> StoreConfig {
    StoreConfig {
        url: url.to_owned().into(),
        max_connections: 4,
        acquire_timeout: Duration::from_secs(10),
        statement_timeout: Duration::from_secs(20),
    }
}

/// A migrated store; `None`, with the reason printed, where there is no such database.
pub async fn store(on: On) -> Option<Bed> {
    let (database, template) = server(on)?;
    let case = database
        .case_database("store", Some(template))
        .await
        .expect("a database for the test");
    let store = store::open(&config(case.url()))
        .await
        .expect("the store opens");
    Some(Bed { store, case })
}

/// A database without a schema.
pub async fn empty(on: On) -> Option<CaseDatabase> {
    let (database, _) = server(on)?;
    Some(
        database
            .case_database("empty", None)
            .await
            .expect("a database for the test"),
    )
}

type Server = Option<(Arc<Database>, Template)>;

/// Started by the first test that asks, on a thread of its own, since every test has its own runtime. The guard process of the
/// database stops it when the test program ends.
fn server(on: On) -> Option<&'static (Arc<Database>, Template)> {
    static SQLITE: OnceLock<Server> = OnceLock::new();
    static POSTGRES: OnceLock<Server> = OnceLock::new();
    let (cell, choice) = match on {
        On::Sqlite => (&SQLITE, Choice::Sqlite),
        On::Postgres => (&POSTGRES, Choice::Auto),
    };
    cell.get_or_init(|| {
        std::thread::spawn(move || start(&choice))
            .join()
            .expect("the database starts")
    })
    .as_ref()
}

fn start(choice: &Choice) -> Server {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let require = if *choice == Choice::Sqlite {
            Require::Nothing
        } else {
            Require::from_env().expect("GAUNTLET_REQUIRE")
        };
        let resolved = Database::resolve(choice, require)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        say(&format!("the store's tests run on {resolved}"));
        if resolved.database.kind() == Kind::Sqlite && *choice != Choice::Sqlite {
            say("NOT RUN: the half of the store's tests that needs Postgres");
            return None;
        }
        let template = resolved.database.template("store", |url| {
            Box::pin(async move {
                let store = store::open(&config(&url))
                    .await
                    .map_err(|error| error.to_string())?;
                store.close().await;
                Ok(())
            })
        });
        let template = template.await.expect("the template is migrated");
        Some((resolved.database, template))
    })
}

/// Past the test runner's capture, which shows the output of failing tests alone.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
