//! The file of known failures of `gauntlet run --baseline`: an id a line, with a reason after it if
//! its writer likes; `#` begins a comment.

use std::path::Path;

use gauntlet_harness::report::{Baseline, RunRecord};
use gauntlet_suites::catalogue;

/// Reads the ids of the file, in capitals.
///
/// # Errors
/// A sentence with the path, the reason and the remedy.
pub fn read(path: &Path) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        format!(
            "cannot read the baseline {}: {error}; give a text file with the id of a known failure \
             on each line",
            path.display()
        )
    })?;
    let ids = text
        .lines()
        .filter_map(|line| line.split('#').next()?.split_whitespace().next())
        .map(|id| id.trim_end_matches(':').to_uppercase());
    Ok(ids.collect())
}

/// Compares the ids of the file with a finished run.
pub fn compared(path: &Path, ids: &[String], record: &RunRecord) -> Baseline {
    let mut baseline = Baseline::default();
    for id in ids {
        let outcome = record.outcomes.iter().find(|outcome| outcome.id == *id);
        let why = match outcome.map(|outcome| outcome.word()) {
            Some("failed" | "warned" | "flaky") => {
                baseline.known.push(id.clone());
                continue;
            }
            Some("passed") => "passes",
            None if !catalogue::all().iter().any(|known| known.id == id) => {
                "is no id of the catalogue"
            }
            _ => continue,
        };
        let file = path.display();
        baseline
            .stale
            .push(format!("{id} {why}; remove its line from {file}"));
    }
    baseline
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::read;

    proptest! {
        #[test]
        fn any_bytes_are_ids_or_a_sentence_with_the_path(
            bytes in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("known.txt");
            std::fs::write(&path, bytes).unwrap();
            match read(&path) {
                Ok(ids) => prop_assert!(ids.iter().all(|id| !id.contains(char::is_whitespace))),
                Err(error) => prop_assert!(error.contains("known.txt") && error.contains("; give")),
            }
        }
    }
}
