//! What happens when a property fails: the shrunk case is written as data, and the message shows
//! how to play it again.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use gauntlet_harness::schedule::Schedule;
use proptest::strategy::Strategy;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngSeed, TestCaseError, TestError, TestRunner,
};

/// A configuration for a property in `tests/`: `cases` of them unless `PROPTEST_CASES` sets
/// another number. Seeds of failures are kept in `regressions` (proptest's default looks for a
/// library beside the test and warns).
pub fn config(cases: u32, regressions: &'static str) -> Config {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    Config {
        cases: asked.unwrap_or(cases),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(regressions))),
        max_shrink_iters: 10_000,
        ..Config::default()
    }
}

/// The same configuration, always with the same cases and nothing kept, for tests that a property
/// finds a defect.
pub fn fixed(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(7),
        max_shrink_iters: 1_500,
        ..Config::default()
    }
}

/// Looks for a case that fails, and returns `None` if it finds none.
///
/// # Errors
/// A sentence if the property could not be run to its end, for example because too many cases were
/// rejected.
pub fn find<S>(
    config: Config,
    strategy: &S,
    property: impl Fn(&S::Value) -> Result<(), String>,
) -> Result<Option<(S::Value, String)>, String>
where
    S: Strategy,
    S::Value: Debug,
{
    match TestRunner::new(config).run(strategy, |case| {
        property(&case).map_err(TestCaseError::fail)
    }) {
        Ok(()) => Ok(None),
        Err(TestError::Fail(why, case)) => Ok(Some((case, why.message().to_owned()))),
        Err(TestError::Abort(why)) => Err(why.message().to_owned()),
    }
}

/// Writes a failing schedule into `folder` and returns the message for the reader: the reason, the
/// schedule, its file, and the command that plays it over real sockets.
///
/// # Errors
/// A message if the file cannot be written.
pub fn report(
    schedule: &Schedule,
    why: &str,
    folder: &Path,
) -> Result<(PathBuf, String), std::io::Error> {
    let json = serde_json::to_string_pretty(schedule)?;
    std::fs::create_dir_all(folder)?;
    let file = folder.join("schedule.json");
    std::fs::write(&file, &json)?;
    let text = format!(
        "{why}\n\nthe smallest schedule that shows it:\n{json}\n\nwritten to {0}; play it over real sockets with\n    gauntlet run --schedule {0}\n",
        file.display()
    );
    Ok((file, text))
}
