//! The verdicts of the runner: for each way in which a case may end, what is repeated, and what
//! ends a run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use gauntlet_harness::case::{
    Case, CaseResult, Ctx, Failure, FailureMode, Level, Profile, State, Verdict, holds,
};
use gauntlet_harness::client::Client;
use gauntlet_harness::database::{Choice, Database, Require};
use gauntlet_harness::gate;
use gauntlet_harness::runner::{Outcome, Progress, Run, RunResult};
use gauntlet_harness::spec::{DatabaseNeed, Spec};
use gauntlet_harness::subject::{
    Capability, Deployment, Manifest, Process, RunningTarget, Target, TargetError,
};
use gauntlet_harness::tape::{Event, Side};
use tokio_util::sync::CancellationToken;

/// A target that starts nothing and keeps the deployments that it was given.
struct Remembering {
    manifest: Manifest,
    shared: bool,
    starts: bool,
    /// Does not start for this case alone.
    starts_not_for: &'static str,
    crashes: bool,
    /// Gives the root of the gateway's URLs: a stub that is asked directly is a healthy gateway.
    at: fn(&Deployment) -> String,
    deployments: Mutex<Vec<Deployment>>,
}

/// A process whose sockets are closed, and whose end is known 60 ms later.
struct Dying;

#[async_trait]
impl Process for Dying {
    async fn terminate(&self) -> Result<(), TargetError> {
        Ok(())
    }

    async fn wait(&self) -> Result<Option<i32>, TargetError> {
        gate::pace(Duration::from_millis(60)).await;
        Ok(Some(101))
    }

    fn log_tail(&self) -> String {
        "thread 'main' panicked".into()
    }

    fn log(&self) -> String {
        self.log_tail()
    }

    fn id(&self) -> Option<u32> {
        None
    }
}

impl Remembering {
    fn new() -> Self {
        let manifest = Manifest {
            name: "t".into(),
            version: None,
            capabilities: BTreeSet::from([Capability::Chat]),
            ..Manifest::default()
        };
        Self {
            manifest,
            shared: false,
            starts: true,
            starts_not_for: "nobody",
            crashes: false,
            at: |_| "http://127.0.0.1:9".into(),
            deployments: Mutex::default(),
        }
    }
}

#[async_trait]
impl Target for Remembering {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn shared(&self) -> bool {
        self.shared
    }

    fn why_not(&self, capability: Capability) -> Option<String> {
        (capability == Capability::Tools).then(|| "it has no hands".to_string())
    }

    async fn start(&self, deployment: Deployment) -> Result<RunningTarget, TargetError> {
        let base_url = (self.at)(&deployment);
        let starts = self.starts && !deployment.id.starts_with(self.starts_not_for);
        if !starts {
            std::fs::write(deployment.folder.join("t.conf"), "asleep").unwrap();
        }
        self.deployments.lock().unwrap().push(deployment);
        if !starts {
            return Err(TargetError::NotReady(
                "it sleeps; its last lines:\n  zzz".into(),
            ));
        }
        let process = self.crashes.then(|| Box::new(Dying) as Box<dyn Process>);
        Ok(RunningTarget {
            base_url,
            model_prefix: String::new(),
            headers: Vec::new(),
            rendered: Arc::default(),
            process,
        })
    }
}

fn case(id: &'static str, run: for<'a> fn(&'a Ctx) -> BoxFuture<'a, CaseResult>) -> Case {
    Case {
        id,
        level: Level::Must,
        profiles: &[Profile::Llm],
        requirement: "r",
        why: "w",
        shown: "s",
        remedy: "d",
        needs: &[Capability::Chat],
        reaches: &[],
        instances: &[],
        spec: Spec::solo,
        run: Box::leak(Box::new(run)),
    }
}

fn passes(_: &Ctx) -> BoxFuture<'_, CaseResult> {
    async { Ok(()) }.boxed()
}

fn fails(_: &Ctx) -> BoxFuture<'_, CaseResult> {
    async { holds("hang.test", false, "this", "that") }.boxed()
}

async fn run_on(
    target: &Arc<Remembering>,
    cases: Vec<Case>,
    change: impl FnOnce(&mut Run),
) -> RunResult {
    let target: Arc<dyn Target> = Arc::<Remembering>::clone(target);
    let mut run = Run {
        target,
        cases,
        database: None,
        parallelism: 1,
        repeat: 1,
        fail_fast: false,
        preflight: false,
    };
    change(&mut run);
    run.execute(&|_| {}, &CancellationToken::new()).await
}

async fn one(case: Case) -> Outcome {
    let mut result = run_on(&Arc::new(Remembering::new()), vec![case], |_| {}).await;
    result.outcomes.pop().unwrap()
}

#[tokio::test]
async fn a_case_that_passes_is_examined_once_and_one_that_fails_twice() {
    let passed = one(case("A-01", passes)).await;
    assert_eq!((passed.verdict, passed.attempts), (Verdict::Passed, 1));
    let failed = one(case("A-01", fails)).await;
    assert!(matches!(
        failed.verdict,
        Verdict::Failed {
            failure: Failure::Violated { .. }
        }
    ));
    assert_eq!(failed.attempts, 2);
}

#[tokio::test]
async fn a_case_that_fails_and_then_passes_is_flaky_with_the_first_failure() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    fn at_first(_: &Ctx) -> BoxFuture<'_, CaseResult> {
        async {
            holds(
                "hang.test",
                ASKED.fetch_add(1, Ordering::SeqCst) > 0,
                "calm",
                "nerves",
            )
        }
        .boxed()
    }
    let outcome = one(case("A-01", at_first)).await;
    assert!(
        matches!(&outcome.verdict, Verdict::Flaky { failure: Failure::Violated { observed, .. } } if observed == "nerves"),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_panic_is_a_failure_of_the_harness_and_is_not_repeated() {
    fn panics(_: &Ctx) -> BoxFuture<'_, CaseResult> {
        async { panic!("a hole in the case") }.boxed()
    }
    let outcome = one(case("A-01", panics)).await;
    assert!(
        matches!(&outcome.verdict, Verdict::Failed { failure: Failure::Harness { what } } if what.contains("a hole in the case")),
        "{outcome:?}"
    );
    assert_eq!(outcome.attempts, 1);
}

#[tokio::test]
async fn a_request_that_no_stub_answers_fails_a_case_that_passed() {
    fn strays(ctx: &Ctx) -> BoxFuture<'_, CaseResult> {
        async {
            let provider = Client::new(
                &ctx.stub("p1")?.wire().root_url(),
                Vec::new(),
                ctx.tape.clone(),
            )?;
            provider.get("/nobody/asked").await.map(|_| ())
        }
        .boxed()
    }
    let outcome = one(case("A-01", strays)).await;
    assert!(
        matches!(&outcome.verdict, Verdict::Failed { failure: Failure::Violated { observed, .. } } if observed.contains("/nobody/asked")),
        "{outcome:?}"
    );
}

/// Asks the stub itself, as a gateway would.
async fn ask_provider(ctx: &Ctx, times: usize) -> CaseResult {
    let root = ctx.stub("p1")?.root_url();
    let provider = Client::new(&root, Vec::new(), ctx.tape.clone())?;
    for _ in 0..times {
        provider.chat(ctx.prompt("solo", "hello")).await?;
    }
    Ok(())
}

/// Plants three faults, the last of which need not be met; the provider is asked so many times.
async fn plants_and_asks(ctx: &Ctx, times: usize) -> CaseResult {
    use gauntlet_harness::llm::{error, reply, sequence};
    use gauntlet_harness::plan::{Plan, Step};
    let lost = reply("lost").plan(Plan::of([Step::Head, Step::Bytes(5), Step::Stall]));
    let p1 = ctx.stub("p1")?;
    p1.answers(sequence([
        error(503),
        reply("held").plan(Plan::met("alone", 1)),
        reply("Paris"),
    ]));
    let never = gauntlet_harness::llm::chat().user_says("never");
    p1.mount(never, lost.optional()).await;
    ask_provider(ctx, times).await
}

#[tokio::test]
async fn a_case_whose_fault_is_never_met_is_not_exercised() {
    let all_met = one(case("A-01", |ctx| plants_and_asks(ctx, 2).boxed())).await;
    assert_eq!(all_met.verdict, Verdict::Passed, "{all_met:?}");
    let counts: Vec<(&str, u64, u64)> = all_met
        .faults
        .iter()
        .map(|fault| (fault.fault.as_str(), fault.planted, fault.met))
        .collect();
    assert_eq!(
        counts,
        [
            ("status 503", 1, 1),
            ("answers held until all have come", 1, 1),
            ("a stall", 0, 0)
        ]
    );
    let outcome = one(case("A-01", |ctx| plants_and_asks(ctx, 1).boxed())).await;
    assert_eq!(
        outcome.verdict,
        Verdict::NotExercised {
            why: "nothing was wrong, but the requirement is not shown either: answers held until \
                  all have come at p1 was never met"
                .into()
        }
    );
    // a busy machine may be the cause, and so it is examined once more
    assert_eq!(outcome.attempts, 2);
}

#[tokio::test]
async fn a_case_that_is_exercised_when_it_is_repeated_has_the_verdict_of_that() {
    static ASKED: AtomicUsize = AtomicUsize::new(1);
    let outcome = one(case("A-01", |ctx| {
        plants_and_asks(ctx, ASKED.fetch_add(1, Ordering::SeqCst)).boxed()
    }))
    .await;
    assert_eq!((outcome.verdict, outcome.attempts), (Verdict::Passed, 2));
}

#[tokio::test]
async fn a_fault_counts_as_met_when_the_bytes_come_to_it() {
    fn left_before(ctx: &Ctx) -> BoxFuture<'_, CaseResult> {
        use gauntlet_harness::llm::reply;
        use gauntlet_harness::plan::{Plan, Step};
        async {
            let p1 = ctx.stub("p1")?;
            let held = Step::Hold("first".into());
            p1.answers(reply("lost").plan(Plan::of([Step::Head, held, Step::Reset])));
            let provider = Client::new(&p1.root_url(), Vec::new(), ctx.tape.clone())?;
            let asked = provider.send_chat(ctx.prompt("solo", "hello")).await?;
            p1.held(1).await?;
            asked.leave();
            p1.peer_closed(1).await.map(|_| ())
        }
        .boxed()
    }
    let outcome = one(case("A-01", left_before)).await;
    assert!(
        matches!(&outcome.verdict, Verdict::NotExercised { why } if why.ends_with("an answer held at a gate, then a reset at p1 was never met")),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_case_that_never_reaches_its_state_is_not_exercised() {
    fn reaches_one(ctx: &Ctx) -> BoxFuture<'_, CaseResult> {
        async {
            ctx.stub("p1")?
                .answers(gauntlet_harness::llm::reply("Paris"));
            ask_provider(ctx, 1).await?;
            ctx.reached(State::BulkheadFull);
            Ok(())
        }
        .boxed()
    }
    let needing = |reaches: &'static [State]| Case {
        reaches,
        ..case("A-01", reaches_one)
    };
    let full = one(needing(&[State::BulkheadFull])).await;
    assert_eq!(
        (full.verdict, full.states),
        (Verdict::Passed, vec![State::BulkheadFull])
    );
    let open = one(needing(&[State::BulkheadFull, State::BreakerOpen])).await;
    assert!(
        matches!(&open.verdict, Verdict::NotExercised { why } if why.ends_with("the state \"breaker open\" was never reached")),
        "{open:?}"
    );
}

#[tokio::test]
async fn a_case_passes_only_if_it_came_to_each_of_its_instances() {
    fn comes_to_two(ctx: &Ctx) -> BoxFuture<'_, CaseResult> {
        async {
            ctx.instance("plain");
            assert!(!ctx.instance_if(Capability::Tools, "tool calls"));
            ctx.examine("streamed", async { Ok(()) }).await
        }
        .boxed()
    }
    let listing = |instances: &'static [&'static str]| Case {
        instances,
        ..case("A-01", comes_to_two)
    };
    let whole = one(listing(&["plain", "streamed", "tool calls"])).await;
    assert_eq!(
        (whole.verdict, whole.instances),
        (
            Verdict::Passed,
            vec!["plain".to_string(), "streamed".to_string()]
        )
    );
    let one_is_missing = one(listing(&["plain", "streamed", "tool calls", "Ollama"])).await;
    assert!(
        matches!(&one_is_missing.verdict, Verdict::NotExercised { why } if why.ends_with("the instance \"Ollama\" was not examined")),
        "{one_is_missing:?}"
    );
    let one_is_unlisted = one(listing(&["plain", "tool calls"])).await;
    assert!(
        matches!(&one_is_unlisted.verdict, Verdict::Failed { failure: Failure::Harness { what } } if what.contains("\"streamed\"")),
        "{one_is_unlisted:?}"
    );
}

#[tokio::test]
async fn the_violation_of_an_instance_names_it() {
    fn breaks_streamed(ctx: &Ctx) -> BoxFuture<'_, CaseResult> {
        ctx.examine("streamed", async {
            holds("hang.test", false, "this", "that")
        })
        .boxed()
    }
    let outcome = one(Case {
        instances: &["streamed"],
        ..case("A-01", breaks_streamed)
    })
    .await;
    let failure = outcome.failure().unwrap().to_string();
    assert!(failure.contains("that (instance: streamed)"), "{failure}");
}

#[tokio::test]
async fn a_case_without_its_capability_or_database_is_never_passed() {
    let without_tools = one(Case {
        needs: &[Capability::Chat, Capability::Tools],
        ..case("A-01", passes)
    })
    .await;
    assert_eq!(
        without_tools.verdict,
        Verdict::NotSupported {
            capability: "the target does not declare `tools`: it has no hands".into()
        }
    );
    let without_database = one(Case {
        spec: || Spec {
            database: DatabaseNeed::Postgres,
            ..Spec::solo()
        },
        ..case("A-01", passes)
    })
    .await;
    assert!(matches!(without_database.verdict, Verdict::NotRun { .. }));
}

#[tokio::test]
async fn a_target_that_keeps_nothing_in_its_database_is_not_started_for_a_template() {
    let database = Database::resolve(&Choice::Sqlite, Require::Nothing).await;
    let database = database.unwrap().database;
    let mut target = Remembering::new();
    target.manifest.capabilities.insert(Capability::Process);
    let target = Arc::new(target);
    let with_database = Case {
        spec: || Spec {
            database: DatabaseNeed::Any,
            ..Spec::solo()
        },
        ..case("A-01", passes)
    };
    let result = run_on(&target, vec![with_database], |run| {
        run.database = Some(Arc::clone(&database));
    })
    .await;
    database.stop().await;
    assert_eq!(result.outcomes[0].verdict, Verdict::Passed);
    let deployments = target.deployments.lock().unwrap();
    let ids: Vec<&str> = deployments.iter().map(|one| one.id.as_str()).collect();
    assert!(
        matches!(ids.as_slice(), [id] if id.starts_with("a-01-")),
        "{ids:?}"
    );
    assert!(deployments[0].database_url.is_some());
}

#[tokio::test]
async fn a_target_that_does_not_start_ends_the_run_without_a_verdict() {
    for shared in [false, true] {
        let target = Arc::new(Remembering {
            starts: false,
            shared,
            ..Remembering::new()
        });
        let cases = vec![case("A-01", passes), case("A-02", passes)];
        let result = run_on(&target, cases, |run| run.preflight = true).await;
        let broken = result.broken.unwrap();
        assert!(broken.contains("it sleeps"), "{broken}");
        assert!(
            result
                .outcomes
                .iter()
                .all(|outcome| matches!(outcome.verdict, Verdict::NotRun { .. })),
            "{:?}",
            result.outcomes
        );
        assert_eq!(target.deployments.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_case_whose_gateway_does_not_start_is_not_run_and_the_run_goes_on() {
    let target = Arc::new(Remembering {
        starts_not_for: "a-01",
        ..Remembering::new()
    });
    let cases = vec![case("A-01", passes), case("A-02", passes)];
    let result = run_on(&target, cases, |_| {}).await;
    assert_eq!(result.broken, None);
    let Verdict::NotRun { why } = &result.outcomes[0].verdict else {
        panic!("{:?}", result.outcomes[0])
    };
    let (first, rest) = why.split_once('\n').unwrap();
    let (_, kept) = first.split_once("is kept in ").unwrap();
    let kept = std::path::Path::new(kept.trim_end_matches("):"));
    assert_eq!(
        std::fs::read_to_string(kept.join("t.conf")).unwrap(),
        "asleep"
    );
    std::fs::remove_dir_all(kept).unwrap();
    assert_eq!(rest, "  zzz");
    assert_eq!(result.outcomes[1].verdict, Verdict::Passed);
}

/// Runs one case on a gateway at this URL, after a preflight.
async fn preflight(shared: bool, at: fn(&Deployment) -> String) -> (Arc<Remembering>, RunResult) {
    let mut target = Remembering {
        shared,
        at,
        ..Remembering::new()
    };
    target.manifest.capabilities.insert(Capability::Stream);
    let target = Arc::new(target);
    let result = run_on(&target, vec![case("A-01", fails)], |run| {
        run.preflight = true;
    })
    .await;
    (target, result)
}

/// The root of the stub that the preflight asks.
fn stub(deployment: &Deployment) -> String {
    let (_, url) = deployment.endpoints.last().unwrap();
    url.trim_end_matches("/v1").to_string()
}

#[tokio::test]
async fn a_gateway_that_passes_healthy_requests_on_is_judged() {
    for shared in [false, true] {
        let (_, result) = preflight(shared, stub).await;
        assert_eq!(result.broken, None);
        assert!(result.outcomes[0].failed(), "{:?}", result.outcomes[0]);
    }
}

#[tokio::test]
async fn a_gateway_that_is_not_wired_to_the_stubs_is_accused_of_nothing() {
    let astray = |deployment: &Deployment| {
        let stub = stub(deployment);
        format!("{}/astray", stub.split("/t/").next().unwrap())
    };
    for shared in [false, true] {
        let (target, result) = preflight(shared, astray).await;
        let broken = result.broken.unwrap();
        for words in [
            "to a healthy plain request for the model ",
            "with status 599",
            "a request that no provider answers: POST",
            "/astray/v1/chat/completions",
            "configure the base URL http://127.0.0.1:",
        ] {
            assert!(broken.contains(words), "{words:?} in {broken}");
        }
        let verdict = &result.outcomes[0].verdict;
        assert!(matches!(verdict, Verdict::NotRun { .. }), "{verdict:?}");
        assert_eq!(target.deployments.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn the_preflight_asks_one_alias_of_each_kind_and_no_agent() {
    use gauntlet_harness::spec::Protocol;
    let local = || {
        Spec::solo()
            .provider("p7", Protocol::OLLAMA)
            .model("x", &["p7"])
    };
    let spec = |id, spec| Case {
        spec,
        ..case(id, passes)
    };
    let cases = vec![
        spec("A-01", Spec::pair),
        spec("A-02", local),
        spec("A-03", Spec::solo),
        spec("A-04", || Spec {
            database: DatabaseNeed::None,
            ..Spec::query(&["review"])
        }),
    ];
    let mut target = Remembering {
        at: stub,
        ..Remembering::new()
    };
    target.manifest.capabilities.insert(Capability::Ollama);
    let target = Arc::new(target);
    run_on(&target, cases, |run| run.preflight = true).await;
    let deployments = target.deployments.lock().unwrap();
    let aliases: Vec<&str> = deployments[0]
        .spec
        .models
        .iter()
        .map(|model| model.alias.as_str())
        .collect();
    assert_eq!(aliases, ["pair", "solo", "ollama-solo"]);
    let providers: Vec<&String> = deployments[0].endpoints.keys().collect();
    assert_eq!(providers, ["p1", "p2", "ollama-p1"]);
}

#[tokio::test]
async fn a_case_that_fails_because_its_gateway_crashed_is_no_verdict_on_the_requirement() {
    let target = Arc::new(Remembering {
        crashes: true,
        ..Remembering::new()
    });
    let result = run_on(&target, vec![case("A-01", fails)], |_| {}).await;
    let verdict = &result.outcomes[0].verdict;
    let Verdict::Failed {
        failure: Failure::Target { what },
    } = verdict
    else {
        panic!("{verdict:?}")
    };
    assert!(
        what.contains("exited with code 101 in the middle of A-01") && what.contains("panicked"),
        "{what}"
    );
    assert_eq!(result.outcomes[0].attempts, 1);
}

#[tokio::test]
async fn fail_fast_leaves_the_rest_and_is_no_failure_of_the_run() {
    let cases = vec![case("A-01", fails), case("A-02", passes)];
    let result = run_on(&Arc::new(Remembering::new()), cases, |run| {
        run.fail_fast = true
    })
    .await;
    assert_eq!(result.broken, None);
    assert!(
        matches!(&result.outcomes[1].verdict, Verdict::NotRun { why } if why.contains("A-01")),
        "{:?}",
        result.outcomes[1]
    );
}

#[tokio::test]
async fn an_interrupted_run_keeps_its_verdicts() {
    fn waits(_: &Ctx) -> BoxFuture<'_, CaseResult> {
        std::future::pending().boxed()
    }
    let stop = CancellationToken::new();
    let target: Arc<dyn Target> = Arc::new(Remembering::new());
    let run = Run {
        target,
        cases: vec![case("A-01", passes), case("A-02", waits)],
        database: None,
        parallelism: 1,
        repeat: 1,
        fail_fast: false,
        preflight: false,
    };
    let started = |progress: Progress<'_>| {
        if matches!(progress, Progress::Started("A-02")) {
            stop.cancel();
        }
    };
    let result = run.execute(&started, &stop).await;
    assert_eq!(result.broken.as_deref(), Some("it was interrupted"));
    assert_eq!(result.outcomes[0].verdict, Verdict::Passed);
    assert!(matches!(result.outcomes[1].verdict, Verdict::NotRun { .. }));
}

#[tokio::test]
async fn every_repeat_counts() {
    let mut result = run_on(
        &Arc::new(Remembering::new()),
        vec![case("A-01", passes)],
        |run| run.repeat = 3,
    )
    .await;
    assert_eq!(result.outcomes.pop().unwrap().attempts, 3);
}

#[tokio::test]
async fn a_shared_target_serves_cases_of_equal_settings_from_one_process() {
    fn prefixed(ctx: &Ctx) -> BoxFuture<'_, CaseResult> {
        async {
            holds(
                "hang.test",
                ctx.model("solo").ends_with("-solo"),
                "a prefix",
                ctx.model("solo"),
            )
        }
        .boxed()
    }
    let target = Arc::new(Remembering {
        shared: true,
        ..Remembering::new()
    });
    let other = Case {
        spec: || Spec {
            keys: vec![gauntlet_harness::spec::KeySpec {
                tenant: "t".into(),
                token: "k".into(),
            }],
            ..Spec::solo()
        },
        ..case("A-03", prefixed)
    };
    let result = run_on(
        &target,
        vec![case("A-01", prefixed), case("A-02", prefixed), other],
        |run| run.parallelism = 2,
    )
    .await;
    assert!(
        result
            .outcomes
            .iter()
            .all(|outcome| outcome.verdict == Verdict::Passed),
        "{:?}",
        result.outcomes
    );
    let deployments = target.deployments.lock().unwrap();
    let aliases: Vec<Vec<&str>> = deployments
        .iter()
        .map(|deployment| {
            deployment
                .spec
                .models
                .iter()
                .map(|model| model.alias.as_str())
                .collect()
        })
        .collect();
    assert_eq!(
        aliases,
        [
            vec![
                "a-01-solo",
                "a-01-again-2-solo",
                "a-02-solo",
                "a-02-again-2-solo"
            ],
            vec!["a-03-solo", "a-03-again-2-solo"],
        ]
    );
    assert!(deployments[0].endpoints.contains_key("a-02-p1"));
}

#[tokio::test]
async fn cases_on_a_shared_target_run_in_tasks_of_their_own() {
    static TASKS: Mutex<Vec<tokio::task::Id>> = Mutex::new(Vec::new());
    fn notes_its_task(_: &Ctx) -> BoxFuture<'_, CaseResult> {
        async {
            TASKS.lock().unwrap().extend(tokio::task::try_id());
            Ok(())
        }
        .boxed()
    }
    let target = Arc::new(Remembering {
        shared: true,
        ..Remembering::new()
    });
    run_on(
        &target,
        vec![case("A-01", notes_its_task), case("A-02", notes_its_task)],
        |run| run.parallelism = 2,
    )
    .await;
    let tasks = TASKS.lock().unwrap();
    assert!(tasks.len() == 2 && tasks[0] != tasks[1], "{tasks:?}");
}

#[tokio::test]
async fn what_fails_on_a_shared_target_is_repeated_on_the_same_under_another_alias() {
    static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
    fn fails_under_its_alias(ctx: &Ctx) -> BoxFuture<'_, CaseResult> {
        SEEN.lock().unwrap().push(ctx.model("solo"));
        fails(ctx)
    }
    let target = Arc::new(Remembering {
        shared: true,
        ..Remembering::new()
    });
    let result = run_on(
        &target,
        vec![case("A-01", fails_under_its_alias), case("A-02", passes)],
        |_| {},
    )
    .await;
    assert_eq!(result.outcomes[0].attempts, 2);
    assert_eq!(result.outcomes[1].attempts, 1);
    assert_eq!(
        *SEEN.lock().unwrap(),
        ["a-01-solo", "a-01-again-2-solo"],
        "the second examination has other stubs and another alias"
    );
    assert_eq!(target.deployments.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_shared_target_starts_again_for_more_repetitions_than_it_is_prepared_for() {
    let target = Arc::new(Remembering {
        shared: true,
        ..Remembering::new()
    });
    let result = run_on(&target, vec![case("A-01", passes)], |run| run.repeat = 9).await;
    assert_eq!(result.outcomes[0].attempts, 9);
    assert_eq!(target.deployments.lock().unwrap().len(), 3);
}

/// Fails as a case does that ended at the hang guard.
fn hangs(ctx: &Ctx) -> BoxFuture<'_, CaseResult> {
    async {
        fails(ctx).await.map_err(|failure| match failure {
            Failure::Violated {
                fact,
                expected,
                observed,
                ..
            } => Failure::Violated {
                fact,
                expected,
                observed,
                mode: FailureMode::Hang,
            },
            other => other,
        })
    }
    .boxed()
}

#[tokio::test]
async fn a_hang_in_which_nothing_happened_is_not_repeated_and_a_slow_gateway_is() {
    const GUARD: Duration = Duration::from_secs(2);
    fn waits(ctx: &Ctx) -> BoxFuture<'_, CaseResult> {
        async {
            gate::pace(GUARD).await;
            note(ctx);
            hangs(ctx).await
        }
        .boxed()
    }
    fn proceeds(ctx: &Ctx) -> BoxFuture<'_, CaseResult> {
        async {
            for _ in 0..10 {
                gate::pace(GUARD / 10).await;
                note(ctx);
            }
            hangs(ctx).await
        }
        .boxed()
    }
    fn note(ctx: &Ctx) {
        let what = "a log line".to_string();
        ctx.tape.record(Side::Target, Event::Target { what });
    }
    let examined = [false, true].map(|shared| async move {
        let target = Arc::new(Remembering {
            shared,
            ..Remembering::new()
        });
        let cases = vec![case("A-01", waits), case("A-02", proceeds)];
        let result = run_on(&target, cases, |run| run.parallelism = 2).await;
        result
            .outcomes
            .iter()
            .map(|outcome| outcome.attempts)
            .collect::<Vec<_>>()
    });
    let examined = gate::with_hang_guard(GUARD, futures::future::join_all(examined)).await;
    assert_eq!(examined, [[1, 2], [1, 2]]);
}
