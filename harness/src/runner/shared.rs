//! Targets that start slowly: one gateway serves all cases whose settings are equal.
//!
//! A case that fails is examined once more by the same gateway, under an alias and with stubs that
//! are prepared for that, after all other cases have begun. While one group of cases is examined,
//! the gateway of the next one starts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use futures::future::join;
use futures::stream::FuturesUnordered;
use indexmap::IndexMap;
use tokio::time::Instant;

use super::examine::failed;
use super::fixture::CaseFixture;
use super::preflight::Preflight;
use super::scratch;
use super::{Board, Outcome, Progress, Run, in_a_task, judged, not_started};
use crate::case::Case;
use crate::spec::{DatabaseNeed, Spec};
use crate::subject::{
    Deployment, Process, Rendered, RunningTarget, Target, TargetError, fitted, merge, settings,
    share,
};
use crate::tape::Tape;
use crate::verdict::Failure;

/// The prefix of the aliases that the preflight asks.
const PREFLIGHT: &str = "preflight-";
/// The most examinations of a case for which one gateway is prepared.
const ROUNDS: usize = 4;

/// Examines the cases in groups of equal settings.
pub(super) async fn examine_groups(run: &Run, waiting: &[(usize, Case)], board: &Board<'_>) {
    let mut attempts: IndexMap<usize, Vec<Outcome>> = waiting
        .iter()
        .map(|(index, _)| (*index, Vec::new()))
        .collect();
    let mut pending = VecDeque::from(groups(waiting, run.target.as_ref()));
    let mut next = started(run, pending.pop_front()).await;
    while let Some(group) = next.take() {
        // two gateways cannot have one fixed port
        let ahead = match run.target.one_at_a_time() {
            true => None,
            false => pending.pop_front(),
        };
        let (left, following) = join(
            examine_group(run, group, board, &mut attempts),
            started(run, ahead),
        )
        .await;
        if board.ended.is_cancelled() {
            break;
        }
        if !left.is_empty() {
            pending.push_back(left);
        }
        next = match following {
            Some(following) => Some(following),
            None => started(run, pending.pop_front()).await,
        };
    }
}

/// Groups the cases by equal settings, in the order of their first case; a case that needs a
/// database has a group of its own.
fn groups(waiting: &[(usize, Case)], target: &dyn Target) -> Vec<Vec<(usize, Case)>> {
    let per_alias = &target.per_alias();
    let mut groups: Vec<(Spec, Vec<(usize, Case)>)> = Vec::new();
    for (index, case) in waiting {
        let settings = settings(&target.adapted(fitted(target, (case.spec)())), per_alias);
        match groups
            .iter_mut()
            .find(|(known, _)| *known == settings && settings.database == DatabaseNeed::None)
        {
            Some((_, group)) => group.push((*index, *case)),
            None => groups.push((settings, vec![(*index, *case)])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Cases that one gateway serves, and that gateway.
struct Group {
    cases: Vec<Prepared>,
    /// The cases whose fixtures could not be made.
    unprepared: Vec<(usize, Case, Failure)>,
    gateway: Result<Gateway, Failure>,
    began: Instant,
}

/// A case with a fixture for each examination, and the prefix of its aliases there.
struct Prepared {
    index: usize,
    case: Case,
    rounds: VecDeque<(String, CaseFixture)>,
}

impl Prepared {
    async fn close(self) {
        for (_, fixture) in self.rounds {
            fixture.close().await;
        }
    }
}

/// Prepares the cases and starts their gateway. Dropping the future stops everything.
async fn started(run: &Run, cases: Option<Vec<(usize, Case)>>) -> Option<Group> {
    let began = Instant::now();
    let (mut ready, mut unprepared) = (Vec::new(), Vec::new());
    for (index, case) in cases? {
        match prepared(run, index, case).await {
            Ok(case) => ready.push(case),
            Err(failure) => unprepared.push((index, case, failure)),
        }
    }
    let gateway = wired(run, &ready).await;
    Some(Group {
        cases: ready,
        unprepared,
        gateway,
        began,
    })
}

async fn prepared(run: &Run, index: usize, case: Case) -> Result<Prepared, Failure> {
    // a gateway has one database, which the second examination must not find used
    let count = match (case.spec)().database {
        DatabaseNeed::None => usize::try_from(run.repeat)
            .unwrap_or(ROUNDS)
            .clamp(2, ROUNDS),
        _ => 1,
    };
    let mut rounds = VecDeque::new();
    for round in 1..=count {
        let prefix = prefix(&case, round);
        let fixture =
            CaseFixture::prepare(&run.target, case.id, (case.spec)(), run.database.as_deref())
                .await?;
        rounds.push_back((prefix, fixture));
    }
    Ok(Prepared {
        index,
        case,
        rounds,
    })
}

/// Examines the cases of a group on its gateway, and returns those that need another examination
/// for which the gateway is not prepared.
async fn examine_group(
    run: &Run,
    group: Group,
    board: &Board<'_>,
    attempts: &mut IndexMap<usize, Vec<Outcome>>,
) -> Vec<(usize, Case)> {
    let mut left = Vec::new();
    let mut queue = VecDeque::from(group.cases);
    for (index, case, failure) in group.unprepared {
        let outcome = failed(&case, failure, group.began, &Tape::new());
        keep(run, board, attempts, index, outcome);
    }
    let gateway = match group.gateway {
        Ok(gateway) => {
            board.wired.store(true, Ordering::Relaxed);
            gateway
        }
        Err(failure) => {
            if let Failure::Target { what } = &failure {
                board.end_unless_wired(what);
            }
            for prepared in queue {
                let tape = prepared
                    .rounds
                    .front()
                    .map_or_else(Tape::new, |(_, fixture)| fixture.tape.clone());
                let outcome = failed(&prepared.case, failure.clone(), group.began, &tape);
                keep(run, board, attempts, prepared.index, outcome);
                prepared.close().await;
            }
            return left;
        }
    };
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < run.parallelism.max(1)
            && let Some(mut prepared) = queue.pop_front()
        {
            if board.ended.is_cancelled() {
                prepared.close().await;
                continue;
            }
            match prepared.rounds.pop_front() {
                Some((prefix, fixture)) => {
                    (board.observer)(Progress::Started(prepared.case.id));
                    let outcome = examine_once(run, &prepared.case, fixture, &prefix, &gateway);
                    running.push(async move { (prepared, outcome.await) });
                }
                None => left.push((prepared.index, prepared.case)),
            }
        }
        let Some((prepared, outcome)) = running.next().await else {
            return left;
        };
        match keep(run, board, attempts, prepared.index, outcome) {
            Next::Examine => queue.push_back(prepared),
            Next::Close => prepared.close().await,
        }
    }
}

/// What happens to a case after an examination.
enum Next {
    /// It is examined once more.
    Examine,
    /// It is judged.
    Close,
}

/// Keeps the outcome of an examination; a case that needs no other one is judged.
fn keep(
    run: &Run,
    board: &Board<'_>,
    attempts: &mut IndexMap<usize, Vec<Outcome>>,
    index: usize,
    outcome: Outcome,
) -> Next {
    let of_case = attempts.entry(index).or_default();
    of_case.push(outcome);
    if run.wants_another(of_case) {
        return Next::Examine;
    }
    if let Some(outcome) = judged(std::mem::take(of_case)) {
        board.judge(index, outcome);
    }
    Next::Close
}

fn examine_once(
    run: &Run,
    case: &Case,
    mut fixture: CaseFixture,
    prefix: &str,
    gateway: &Gateway,
) -> impl Future<Output = Outcome> + use<> {
    let handle = gateway.handle(prefix);
    let (target, case) = (Arc::clone(&run.target), *case);
    async move {
        let examination = async move {
            let outcome = super::examine::run(
                &mut fixture,
                &case,
                target.manifest(),
                handle,
                None,
                Instant::now(),
            )
            .await;
            fixture.close().await;
            outcome
        };
        in_a_task(&case, examination).await
    }
}

/// A gateway that several cases share.
struct Gateway {
    base_url: String,
    headers: Vec<(String, String)>,
    rendered: Arc<Rendered>,
    process: Option<Arc<dyn Process>>,
    _folder: tempfile::TempDir,
}

impl Gateway {
    /// Returns the gateway as a case with this prefix has it.
    fn handle(&self, prefix: &str) -> RunningTarget {
        share(
            &self.base_url,
            &self.headers,
            &self.rendered,
            self.process.as_ref(),
            prefix,
        )
    }
}

/// Starts the gateway, and sends healthy requests through it to stubs of their own.
async fn wired(run: &Run, cases: &[Prepared]) -> Result<Gateway, Failure> {
    let asked = cases.iter().map(|prepared| &prepared.case);
    let preflight = match run.preflight {
        true => Preflight::prepare(&run.target, asked).await?,
        false => None,
    };
    let gateway = start(run, cases, preflight.as_ref()).await?;
    let Some(preflight) = preflight else {
        return Ok(gateway);
    };
    let handle = gateway.handle(PREFLIGHT);
    let first = cases.first().and_then(|prepared| prepared.rounds.front());
    let keys = first.map(|(_, fixture)| &fixture.spec.keys);
    let keys = keys.map(Vec::as_slice).unwrap_or_default();
    let checked = preflight.check(&handle, run.target.manifest(), keys).await;
    preflight.close().await;
    checked
        .map(|()| gateway)
        .map_err(|what| Failure::Target { what })
}

async fn start(
    run: &Run,
    cases: &[Prepared],
    preflight: Option<&Preflight>,
) -> Result<Gateway, Failure> {
    let folder = scratch::folder()?;
    let rounds = || cases.iter().flat_map(|prepared| &prepared.rounds);
    let parts = || {
        let rounds = rounds().map(|(prefix, fixture)| (prefix.as_str(), fixture));
        // the settings are those of the first part
        rounds.chain(preflight.map(|preflight| (PREFLIGHT, preflight.fixture())))
    };
    let spec = merge(
        parts().map(|(prefix, fixture)| (prefix, &fixture.spec)),
        &run.target.per_alias(),
    );
    let endpoints = parts()
        .flat_map(|(prefix, fixture)| fixture.endpoints(prefix))
        .collect();
    let database_url = rounds().find_map(|(_, fixture)| fixture.database_url.clone());
    let id = rounds().next().map_or_else(
        || "shared".to_string(),
        |(_, fixture)| format!("shared-{}", fixture.id),
    );
    let deployment = Deployment {
        id,
        spec,
        endpoints,
        database_url,
        folder: folder.path().to_path_buf(),
        tape: Tape::new(),
    };
    match run.target.start(deployment).await {
        Ok(RunningTarget {
            base_url,
            headers,
            rendered,
            process,
            ..
        }) => Ok(Gateway {
            base_url,
            headers,
            rendered,
            process: process.map(Arc::from),
            _folder: folder,
        }),
        Err(TargetError::NotSupported(why)) => Err(Failure::NotRun { why }),
        Err(error) => {
            let what = not_started(&error.to_string(), &scratch::keep(folder));
            Err(Failure::Target { what })
        }
    }
}

/// Returns the prefix of the aliases of a case in that examination.
fn prefix(case: &Case, round: usize) -> String {
    match round {
        1 => format!("{}-", case.id.to_lowercase()),
        _ => format!("{}-again-{round}-", case.id.to_lowercase()),
    }
}
