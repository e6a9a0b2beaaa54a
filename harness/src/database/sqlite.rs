//! SQLite for cases: one file each, copied from a template's.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use futures::future::BoxFuture;
use tempfile::TempDir;
use uuid::Uuid;

use super::DatabaseError;
use crate::reaper::Guard;

/// The folder with the files of a run.
pub(super) struct Sqlite {
    folder: Mutex<Option<TempDir>>,
    /// Removes the folder when the run is killed.
    guard: Mutex<Option<Guard>>,
}

impl Sqlite {
    /// An empty folder.
    pub fn new() -> Result<Self, DatabaseError> {
        let folder = tempfile::Builder::new()
            .prefix("gauntlet-sqlite-")
            .tempdir()
            .map_err(|error| system("make a temporary folder", &error))?;
        let path = folder.path().display().to_string();
        let guard = Guard::start("cat >/dev/null; rm -rf -- \"$1\"", &[path], &[]).ok();
        Ok(Self {
            folder: Mutex::new(Some(folder)),
            guard: Mutex::new(guard),
        })
    }

    /// See [`super::Database::template`].
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

    /// A file for a case.
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
            // the log holds what has not yet been written back
            for suffix in ["", "-wal"] {
                let (from, to) = (beside(&source, suffix), beside(&path, suffix));
                if suffix.is_empty() || from.exists() {
                    tokio::fs::copy(&from, &to)
                        .await
                        .map_err(|error| system("copy the template database", &error))?;
                }
            }
        }
        Ok(path)
    }

    /// Removes the folder.
    pub async fn stop(&self) {
        let folder = self
            .folder
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Err(error)) = folder.map(TempDir::close) {
            tracing::warn!(%error, "the folder of the SQLite databases is left behind");
        }
        let guard = self
            .guard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(guard) = guard {
            guard.stop().await;
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, DatabaseError> {
        let folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        match folder.as_ref() {
            Some(folder) => Ok(folder.path().join(name)),
            None => Err(DatabaseError::System(
                "the databases of this run have been stopped".into(),
            )),
        }
    }
}

/// The URL of a file.
pub(super) fn url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

/// Removes a database with its companions.
pub(super) async fn remove(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        // what is not there need not go
        let _ = tokio::fs::remove_file(beside(path, suffix)).await;
    }
}

/// Keeps a file from going with the folder: copies it to a place that stays.
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
