//! The folders of a run: for each gateway that it starts, what was rendered for it and its log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::{Builder, TempDir};

use crate::subject::reaped::removed_at_the_end;
use crate::verdict::Failure;

/// Makes an empty folder, which is removed with the value, or when the run dies.
///
/// # Errors
/// [`Failure::Harness`] if the folder for temporary files cannot be written.
pub(super) fn folder() -> Result<TempDir, Failure> {
    let made = of_the_run().and_then(|run| Builder::new().tempdir_in(run));
    made.map_err(|error| Failure::Harness {
        what: format!(
            "cannot make a folder in {}: {error}",
            std::env::temp_dir().display()
        ),
    })
}

/// Moves a folder to where it outlives the run, and returns its path.
pub(super) fn keep(folder: TempDir) -> PathBuf {
    let made = Builder::new().prefix("gauntlet-kept-").tempdir();
    let moved = made.and_then(|kept| {
        std::fs::rename(folder.path(), kept.path())?;
        Ok(kept.keep())
    });
    // what cannot be moved is shown where it is, until the run ends
    moved.unwrap_or_else(|_| folder.keep())
}

/// The folder that holds all others of this process.
fn of_the_run() -> io::Result<&'static Path> {
    static RUN: OnceLock<Result<PathBuf, (io::ErrorKind, String)>> = OnceLock::new();
    let made = RUN.get_or_init(|| {
        let made = Builder::new().prefix("gauntlet-").tempdir();
        let folder = made.map_err(|error| (error.kind(), error.to_string()))?;
        removed_at_the_end(folder.path());
        Ok(folder.keep())
    });
    match made {
        Ok(folder) => Ok(folder),
        Err((kind, what)) => Err(io::Error::new(*kind, what.clone())),
    }
}
