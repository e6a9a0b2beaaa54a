//! `gauntlet run --schedule FILE`: plays one fault schedule against the target and prints the
//! result.

use std::path::Path;
use std::sync::Arc;

use console::style;
use gauntlet_harness::report::counted;
use gauntlet_harness::runner::{Replay, replay};
use gauntlet_harness::schedule::Schedule;
use gauntlet_harness::subject::Target;

use super::CommandError;

/// Plays the schedule in `path`, and prints each request and each invariant.
pub async fn play(target: &Arc<dyn Target>, path: &Path) -> Result<Replay, CommandError> {
    let schedule = read(path)?;
    say!(
        "{} against {}: {}, {}\n",
        path.display(),
        target.manifest().name,
        counted(schedule.candidates.len(), "candidate", "candidates"),
        counted(schedule.requests.len(), "request", "requests")
    );
    let replay = replay(target, &schedule, &path.display().to_string())
        .await
        .map_err(|failure| CommandError(failure.to_string()))?;
    for (n, exchange) in replay.observation.exchanges.iter().enumerate() {
        let calls: Vec<String> = exchange
            .calls
            .iter()
            .map(|call| format!("p{} at {} ms", call.candidate + 1, call.at_ms))
            .collect();
        let ends: Vec<String> = exchange
            .ends
            .iter()
            .map(|end| format!("{end:?}").to_lowercase())
            .collect();
        let end = if ends.is_empty() {
            "no end".to_string()
        } else {
            ends.join(", ")
        };
        say!(
            "  request {}: {end} after {} ms, text {:?}, calls of providers: {}",
            n + 1,
            exchange.elapsed_ms,
            exchange.text,
            if calls.is_empty() {
                "none".into()
            } else {
                calls.join(", ")
            }
        );
    }
    say!();
    for (invariant, violation) in &replay.verdicts {
        match violation {
            None => say!("  {} {invariant:?}", style("✓").green()),
            Some(violation) => say!("  {} {violation}", style("✗").red()),
        }
    }
    for (invariant, capability) in &replay.not_supported {
        say!(
            "  {} {invariant:?}: not supported, because the target does not declare {}",
            style("-").dim(),
            capability.name()
        );
    }
    Ok(replay)
}

fn read(path: &Path) -> Result<Schedule, CommandError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        CommandError(format!(
            "cannot read the fault schedule {}: {error}; give a JSON file as a failing property writes it",
            path.display()
        ))
    })?;
    Schedule::from_json(&text).map_err(|error| {
        CommandError(format!(
            "{} is not a fault schedule: {error}",
            path.display()
        ))
    })
}
