//! The runner of the store's tests: one server for the whole test program, a database for each
//! test.
//!
//! A test that needs Postgres is reported as ignored where there is none, so that the summary
//! counts it; with `GAUNTLET_REQUIRE=postgres` or `=docker` it fails instead.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use gauntlet::config::StoreConfig;
use gauntlet::store::{self, Store};
use gauntlet_harness::database::{
    CaseDatabase, Choice, Database, DatabaseError, End, Kind, Require, Resolved, Template,
};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// The database that a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Sqlite,
    Postgres,
}

impl On {
    const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// A store on a database of its own.
pub struct TestStore {
    pub store: Arc<dyn Store>,
    pub case: CaseDatabase,
}

impl TestStore {
    /// Closes the store and drops its database.
    pub async fn end(self) {
        self.store.close().await;
        self.case
            .finish(End::Drop)
            .await
            .expect("the database of the test is dropped");
    }
}

/// Settings whose timeouts no test reaches by itself.
pub fn config(url: &str) -> StoreConfig {
    StoreConfig {
        url: url.to_owned().into(),
        max_connections: 4,
        acquire_timeout: Duration::from_secs(10),
        statement_timeout: Duration::from_secs(20),
    }
}

/// Gives a test a store that is migrated already.
pub async fn migrated(server: &Server) -> TestStore {
    let case = server
        .database
        .case_database("store", Some(&server.template))
        .await
        .expect("a database for the test");
    let store = store::open(&config(case.url()))
        .await
        .expect("the store opens");
    TestStore { store, case }
}

/// Gives a test a database without a schema.
pub async fn empty(server: &Server) -> CaseDatabase {
    server
        .database
        .case_database("empty", None)
        .await
        .expect("a database for the test")
}

/// The tests of a program.
#[derive(Default)]
pub struct Tests(Vec<Trial>);

impl Tests {
    /// Adds a test that needs no server.
    pub fn plain<F: Future>(&mut self, name: &str, test: impl FnOnce() -> F + Send + 'static) {
        let run = move || {
            block_on(test());
            Ok(Completion::Completed)
        };
        self.0.push(Trial::ignorable_test(name, run));
    }

    /// Adds a test that is given one of the servers.
    pub fn with_server<F: Future>(
        &mut self,
        on: On,
        name: &str,
        test: impl FnOnce(&'static Server) -> F + Send + 'static,
    ) {
        let run = move || match server(on) {
            Ok(server) => {
                block_on(test(server));
                Ok(Completion::Completed)
            }
            Err(missing) => missing.outcome(),
        };
        let name = format!("{name}::{}", on.name());
        self.0.push(Trial::ignorable_test(name, run));
    }

    /// Adds a test that is given both servers, SQLite first.
    pub fn with_servers<F: Future>(
        &mut self,
        name: &str,
        test: impl FnOnce(&'static Server, &'static Server) -> F + Send + 'static,
    ) {
        let run = move || match (server(On::Sqlite), server(On::Postgres)) {
            (Ok(sqlite), Ok(postgres)) => {
                block_on(test(sqlite, postgres));
                Ok(Completion::Completed)
            }
            (Err(missing), _) | (_, Err(missing)) => missing.outcome(),
        };
        self.0.push(Trial::ignorable_test(name, run));
    }

    /// Adds a test that is given a store on one of the databases.
    pub fn on<F: Future>(
        &mut self,
        on: On,
        name: &str,
        test: impl FnOnce(TestStore) -> F + Send + 'static,
    ) {
        self.with_server(on, name, move |server| async move {
            test(migrated(server).await).await;
        });
    }

    /// Adds a test twice, once for each database.
    pub fn both<F: Future>(
        &mut self,
        name: &str,
        test: impl FnOnce(TestStore) -> F + Clone + Send + 'static,
    ) {
        self.on(On::Sqlite, name, test.clone());
        self.on(On::Postgres, name, test);
    }

    /// Runs the tests that the command line selects, and reports each one.
    pub fn run(self) -> ExitCode {
        libtest_mimic::run(&Arguments::from_args(), self.0).exit_code()
    }
}

/// Adds functions as tests under their own names: `add!(tests.both: one, other)`.
macro_rules! add {
    ($tests:ident.$method:ident: $($name:ident),+ $(,)?) => {
        $( $tests.$method(stringify!($name), $name); )+
    };
    ($tests:ident.$method:ident($on:expr): $($name:ident),+ $(,)?) => {
        $( $tests.$method($on, stringify!($name), $name); )+
    };
}
pub(crate) use add;

/// A server with the template that the databases of tests are cloned from.
pub struct Server {
    database: Arc<Database>,
    template: Template,
}

/// Why there is no server.
#[derive(Clone, Debug)]
enum Missing {
    /// The tests that need it are ignored; the reason is printed once.
    Ignored,
    /// `GAUNTLET_REQUIRE` says that it must be there.
    Required(String),
}

impl Missing {
    fn outcome(self) -> Result<Completion, Failed> {
        match self {
            Self::Ignored => Ok(Completion::ignored()),
            Self::Required(error) => Err(Failed::from(error)),
        }
    }
}

/// Returns the server, which the first test that needs it starts. The harness's reaper stops it
/// when the test program ends.
fn server(on: On) -> Result<&'static Server, Missing> {
    static SQLITE: OnceLock<Result<Server, Missing>> = OnceLock::new();
    static POSTGRES: OnceLock<Result<Server, Missing>> = OnceLock::new();
    let server = match on {
        On::Sqlite => SQLITE.get_or_init(|| multi_threaded(start_sqlite())),
        On::Postgres => POSTGRES.get_or_init(|| multi_threaded(start_postgres())),
    };
    server.as_ref().map_err(Clone::clone)
}

async fn start_sqlite() -> Result<Server, Missing> {
    template(resolve(&Choice::Sqlite, Require::Nothing).await?).await
}

/// Starts the Postgres that `GAUNTLET_DATABASE` names: Docker, else local binaries where it is
/// unset.
async fn start_postgres() -> Result<Server, Missing> {
    let require = Require::from_env().map_err(|error| Missing::Required(error.to_string()))?;
    let choice = std::env::var("GAUNTLET_DATABASE").unwrap_or_default();
    let choice = choice
        .parse()
        .map_err(|error: DatabaseError| Missing::Required(error.to_string()))?;
    let resolved = resolve(&choice, require).await?;
    if resolved.database.kind() == Kind::Sqlite {
        print_line(&format!(
            "the tests that need Postgres are ignored, because the harness took {resolved}"
        ));
        return Err(Missing::Ignored);
    }
    template(resolved).await
}

async fn resolve(choice: &Choice, require: Require) -> Result<Resolved, Missing> {
    Database::resolve(choice, require)
        .await
        .map_err(|error| Missing::Required(error.to_string()))
}

async fn template(resolved: Resolved) -> Result<Server, Missing> {
    print_line(&format!("the store's tests run on {}", resolved.taken));
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
    Ok(Server {
        database: resolved.database,
        template,
    })
}

/// Each test has its own runtime.
fn block_on<F: Future>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test);
}

fn multi_threaded<F: Future>(start: F) -> F::Output {
    tokio::runtime::Runtime::new()
        .expect("a runtime")
        .block_on(start)
}

fn print_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
