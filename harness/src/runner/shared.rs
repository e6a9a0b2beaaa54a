//! Targets that start slowly: one gateway serves all cases whose settings are equal.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use indexmap::IndexMap;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::examine::{failed, of_target};
use super::fixture::CaseFixture;
use super::{Board, Outcome, Progress, Run, in_a_task, judged};
use crate::case::Case;
use crate::spec::{DatabaseNeed, Spec};
use crate::subject::{Deployment, Process, RunningTarget, TargetError, merge, share};
use crate::tape::Tape;
use crate::verdict::Failure;

/// Examines the cases in groups of equal settings; the cases of a group that fail are examined once
/// more, together, on a fresh gateway.
pub(super) async fn examine_groups(run: &Run, waiting: &[(usize, Case)], board: &Board<'_>) {
    for group in groups(waiting) {
        let mut attempts: IndexMap<usize, Vec<Outcome>> = group
            .iter()
            .map(|(index, _)| (*index, Vec::new()))
            .collect();
        loop {
            let again: Vec<(usize, Case)> = group
                .iter()
                .filter(|(index, _)| {
                    attempts
                        .get(index)
                        .is_some_and(|attempts| run.wants_another(attempts))
                })
                .copied()
                .collect();
            if again.is_empty() || board.ended.is_cancelled() {
                break;
            }
            examine_group(run, &again, board, &mut attempts).await;
        }
    }
}

/// Groups the cases by equal settings, in the order of their first case; a case that needs a
/// database has a group of its own.
fn groups(waiting: &[(usize, Case)]) -> Vec<Vec<(usize, Case)>> {
    let mut groups: Vec<(Spec, Vec<(usize, Case)>)> = Vec::new();
    for (index, case) in waiting {
        let settings = Spec {
            providers: Vec::new(),
            models: Vec::new(),
            ..(case.spec)()
        };
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

/// Examines several cases on one gateway. An outcome that needs no repetition goes to the board at
/// once.
async fn examine_group(
    run: &Run,
    group: &[(usize, Case)],
    board: &Board<'_>,
    attempts: &mut IndexMap<usize, Vec<Outcome>>,
) {
    let began = Instant::now();
    let attempts = Mutex::new(attempts);
    let done = async |index: usize, outcome: Outcome| {
        let mut attempts = attempts.lock().await;
        let Some(of_case) = attempts.get_mut(&index) else {
            return;
        };
        of_case.push(outcome);
        if !run.wants_another(of_case)
            && let Some(outcome) = judged(std::mem::take(of_case))
        {
            board.judge(index, outcome);
            attempts.shift_remove(&index);
        }
    };
    let mut prepared = Vec::new();
    for (index, case) in group {
        match CaseFixture::prepare(&run.target, case.id, (case.spec)(), run.database.as_deref())
            .await
        {
            Ok(fixture) => prepared.push((*index, *case, fixture)),
            Err(failure) => {
                done(
                    *index,
                    failed(case, failure, began, &Tape::new(), String::new()),
                )
                .await
            }
        }
    }
    let gateway = match start(run, &prepared).await {
        Ok(gateway) => gateway,
        Err(failure) => {
            for (index, case, fixture) in prepared {
                done(
                    index,
                    failed(&case, failure.clone(), began, &fixture.tape, String::new()),
                )
                .await;
                fixture.close().await;
            }
            return;
        }
    };
    stream::iter(prepared)
        .map(|(index, case, mut fixture)| {
            let (gateway, done) = (&gateway, &done);
            async move {
                if board.ended.is_cancelled() {
                    return fixture.close().await;
                }
                (board.observer)(Progress::Started(case.id));
                let handle = share(
                    &gateway.base_url,
                    &gateway.headers,
                    gateway.process.as_ref(),
                    &prefix(&case),
                );
                let target = Arc::clone(&run.target);
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
                done(index, in_a_task(&case, examination).await).await;
            }
        })
        .buffer_unordered(run.parallelism.max(1))
        .collect::<()>()
        .await;
}

/// A gateway that several cases share.
struct Gateway {
    base_url: String,
    headers: Vec<(String, String)>,
    process: Option<Arc<dyn Process>>,
    _folder: tempfile::TempDir,
}

async fn start(run: &Run, prepared: &[(usize, Case, CaseFixture)]) -> Result<Gateway, Failure> {
    let folder = tempfile::Builder::new().prefix("gauntlet-").tempdir();
    let folder = folder.map_err(|error| Failure::Harness {
        what: format!(
            "cannot make a folder in {}: {error}",
            std::env::temp_dir().display()
        ),
    })?;
    let prefixes: Vec<String> = prepared.iter().map(|(_, case, _)| prefix(case)).collect();
    let spec = merge(
        prefixes
            .iter()
            .map(String::as_str)
            .zip(prepared.iter().map(|(_, _, fixture)| &fixture.spec)),
    );
    let endpoints = prefixes
        .iter()
        .zip(prepared)
        .flat_map(|(prefix, (_, _, fixture))| fixture.endpoints(prefix))
        .collect();
    let database_url = prepared
        .iter()
        .find_map(|(_, _, fixture)| fixture.database_url.clone());
    let id = prepared.first().map_or_else(
        || "shared".to_string(),
        |(_, _, fixture)| format!("shared-{}", fixture.id),
    );
    let deployment = Deployment {
        id,
        spec,
        endpoints,
        database_url,
        folder: folder.path().to_path_buf(),
        tape: Tape::new(),
    };
    let RunningTarget {
        base_url,
        headers,
        process,
        ..
    } = run
        .target
        .start(deployment)
        .await
        .map_err(|error: TargetError| of_target(error))?;
    Ok(Gateway {
        base_url,
        headers,
        process: process.map(Arc::from),
        _folder: folder,
    })
}

fn prefix(case: &Case) -> String {
    format!("{}-", case.id.to_lowercase())
}
