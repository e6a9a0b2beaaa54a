//! SQLite: each case has a file of its own, which is a copy of the template.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use futures::future::BoxFuture;
use tempfile::TempDir;
use uuid::Uuid;

use super::DatabaseError;
use crate::reaper::Reaper;

/// The folder with the database files of a run.
pub(super) struct Sqlite {
    folder: Mutex<Option<TempDir>>,
    /// Removes the folder if the run is killed.
    reaper: Mutex<Option<Reaper>>,
}

impl Sqlite {
    /// Makes an empty folder.
    pub fn new() -> Result<Self, DatabaseError> {
        let folder = tempfile::Builder::new()
            .prefix("gauntlet-sqlite-")
            .tempdir()
            .map_err(|error| system("make a temporary folder", &error))?;
        let path = folder.path().display().to_string();
        let reaper = Reaper::start("cat >/dev/null; rm -rf -- \"$1\"", &[path], &[]).ok();
        Ok(Self {
            folder: Mutex::new(Some(folder)),
            reaper: Mutex::new(reaper),
        })
    }

    /// Makes a file and migrates it; see [`super::Database::template`].
    pub async fn template<M>(&self, hash: &str, migrate: M) -> Result<String, DatabaseError>
    where
        M: FnOnce(String) -> BoxFuture<'static, Result<(), String>> + Send,
    {
        let name = format!("template-{hash}.db");
        let path = self.path(&name)?;
        remove(&path).await;
        let migrated = migrate(url(&path)).await;
        if let Err(reason) = migrated {
            remove(&path).await;
            return Err(DatabaseError::Migration(reason));
        }
        Ok(name)
    }

    /// Makes the file of one case.
    pub async fn create(
        &self,
        case: &str,
        template: Option<&str>,
    ) -> Result<PathBuf, DatabaseError> {
        let slug: String = case
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(40)
            .collect();
        let path = self.path(&format!(
            "{slug}-{}.db",
            &Uuid::new_v4().simple().to_string()[..8]
        ))?;
        if let Some(template) = template {
            let source = self.path(template)?;
            // the write-ahead log may hold transactions that the file does not have yet
            for suffix in ["", "-wal"] {
                let (from, to) = (beside(&source, suffix), beside(&path, suffix));
                // a gateway that never opened the database has left no file, which SQLite makes
                if from.exists() {
                    tokio::fs::copy(&from, &to)
                        .await
                        .map_err(|error| system("copy the template database", &error))?;
                }
            }
        }
        Ok(path)
    }

    /// Removes the folder with everything in it.
    pub async fn stop(&self) {
        let folder = self
            .folder
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Err(error)) = folder.map(TempDir::close) {
            tracing::warn!(%error, "the folder of the SQLite databases is left behind");
        }
        let reaper = self
            .reaper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(reaper) = reaper {
            reaper.stop().await;
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, DatabaseError> {
        let folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        match folder.as_ref() {
            Some(folder) => Ok(folder.path().join(name)),
            None => Err(DatabaseError::System(
                "the databases of this run have been removed already".into(),
            )),
        }
    }
}

/// Returns the URL of a file.
pub(super) fn url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

/// Removes the file of a database with its write-ahead log.
pub(super) async fn remove(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        // a file that does not exist needs no removal
        let _ = tokio::fs::remove_file(beside(path, suffix)).await;
    }
}

/// Copies a file to the temporary folder of the machine, so that it outlives the run.
pub(super) async fn keep(path: &Path) -> Result<PathBuf, DatabaseError> {
    let kept = std::env::temp_dir().join(path.file_name().unwrap_or_default());
    for suffix in ["", "-wal"] {
        let from = beside(path, suffix);
        if from.exists() {
            tokio::fs::copy(&from, beside(&kept, suffix))
                .await
                .map_err(|error| system("keep the database", &error))?;
        }
    }
    Ok(kept)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn system(what: &str, error: &std::io::Error) -> DatabaseError {
    DatabaseError::System(format!("cannot {what}: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_gateway_that_never_opens_its_database_leaves_an_empty_template() {
        let sqlite = Sqlite::new().unwrap();
        let name = sqlite
            .template("unused", |_| async { Ok(()) }.boxed())
            .await
            .unwrap();
        let path = sqlite.create("DEGR-11", Some(&name)).await.unwrap();
        assert!(!path.exists());
        sqlite.stop().await;
    }
}
