//! `gauntlet report`: writes the page, JUnit, Markdown and JSON of a run again from its
//! report.json, or of several shards as one run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gauntlet_harness::report::RunRecord;

use super::CommandError;

/// Arguments of `gauntlet report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The report.json of a run, or its folder; several: the shards of one run, which become one
    /// report
    #[arg(value_name = "FILE", default_value = "report/report.json")]
    records: Vec<PathBuf>,
    /// Write into this folder [default: the folder of FILE; for several files: report]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Writes the report and prints where it is. The exit code is 0 if it could be written, whatever
/// the result of the run.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let paths: Vec<PathBuf> = args
        .records
        .iter()
        .map(|path| super::diff::record_path(path))
        .collect();
    let is_merge = paths.len() > 1;
    let folder = match (&args.out, paths.first()) {
        (Some(out), _) => out.clone(),
        (None, Some(only)) if !is_merge => only.parent().map(PathBuf::from).unwrap_or_default(),
        (None, _) => PathBuf::from("report"),
    };
    let mut shards = Vec::new();
    for path in &paths {
        shards.push((path.as_path(), RunRecord::read(path).map_err(CommandError)?));
    }
    let record = merged(shards).map_err(CommandError)?;
    if let (true, Some(shard)) = (is_merge, paths.iter().find(|path| is_in(path, &folder))) {
        return Err(CommandError(format!(
            "the merged report would overwrite the shard {}; give another folder with --out",
            shard.display()
        )));
    }
    let page = record.write(&folder).map_err(CommandError)?;
    say!("{}: {}", page.display(), record.headline());
    Ok(ExitCode::SUCCESS)
}

/// Returns whether the file lies directly in the folder, by whatever names both are given.
fn is_in(file: &Path, folder: &Path) -> bool {
    let parent = file
        .canonicalize()
        .ok()
        .and_then(|file| file.parent().map(PathBuf::from));
    parent.is_some_and(|parent| folder.canonicalize().is_ok_and(|folder| folder == parent))
}

/// Makes one record of the shards of one run. The time is the sum of theirs.
fn merged(shards: Vec<(&Path, RunRecord)>) -> Result<RunRecord, String> {
    let mut shards = shards.into_iter();
    let Some((first, mut run)) = shards.next() else {
        return Err("there is no report to write; give the report.json of a run".into());
    };
    let mut seen: HashMap<String, &Path> = HashMap::new();
    for outcome in &run.outcomes {
        seen.insert(outcome.id.clone(), first);
    }
    let is_one = shards.len() == 0;
    let mut selections = vec![without_shard(&run.selection)];
    for (path, shard) in shards {
        let examined = |run: &RunRecord| {
            let version = run.target.version.as_deref().unwrap_or("version unknown");
            format!(
                "{} ({version}) by gauntlet {}",
                run.target.name, run.gauntlet
            )
        };
        if examined(&run) != examined(&shard) {
            return Err(format!(
                "{} examined {} and {} examined {}; merge only shards of one target and one \
                 version of gauntlet",
                first.display(),
                examined(&run),
                path.display(),
                examined(&shard)
            ));
        }
        for outcome in &shard.outcomes {
            if let Some(other) = seen.insert(outcome.id.clone(), path) {
                return Err(format!(
                    "{} is in {} and in {}; merge only shards that share no case",
                    outcome.id,
                    other.display(),
                    path.display()
                ));
            }
        }
        selections.push(without_shard(&shard.selection));
        run.started_at = run.started_at.min(shard.started_at);
        run.duration_ms = run.duration_ms.saturating_add(shard.duration_ms);
        if !run.database.kind.contains(&shard.database.kind) {
            run.database.kind = format!("{} and {}", run.database.kind, shard.database.kind);
            run.database.why = format!("{}; {}", run.database.why, shard.database.why);
        }
        run.strict |= shard.strict;
        run.broken = run.broken.or(shard.broken);
        run.baseline.known.extend(shard.baseline.known);
        for line in shard.baseline.stale {
            if !run.baseline.stale.contains(&line) {
                run.baseline.stale.push(line);
            }
        }
        run.outcomes.extend(shard.outcomes);
    }
    if is_one {
        return Ok(run);
    }
    let known = gauntlet_suites::catalogue::all();
    let position = |id: &str| known.iter().position(|known| known.id == id);
    run.outcomes
        .sort_by_cached_key(|outcome| position(&outcome.id).unwrap_or(usize::MAX));
    run.levels = Some(gauntlet_suites::requirements::levels(&run.outcomes)?);
    selections.dedup();
    run.selection = match selections.as_slice() {
        [same] => same.clone(),
        _ => run
            .outcomes
            .iter()
            .map(|outcome| outcome.id.as_str())
            .collect::<Vec<_>>()
            .join(" "),
    };
    Ok(run)
}

/// Returns the arguments that selected the cases, without the shard.
fn without_shard(selection: &str) -> String {
    let mut words = Vec::new();
    let mut rest = selection.split_whitespace();
    while let Some(word) = rest.next() {
        match word {
            "--shard" => drop(rest.next()),
            word => words.push(word),
        }
    }
    words.join(" ")
}
