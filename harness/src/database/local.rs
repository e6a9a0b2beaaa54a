//! Postgres from binaries on this machine: a fresh cluster in a temporary folder, which is removed
//! at the end of the run.
//!
//! Postgres refuses to run as root. In that case the server runs as `postgres` or `nobody`, through
//! `setpriv`, `runuser` or `su`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::process::Command;

use super::postgres::{Owned, Postgres, ready};
use super::url::ServerUrl;
use crate::gate::bounded;
use crate::reaper::Reaper;

/// The longest time to create the cluster.
const INITDB: Duration = Duration::from_secs(60);
/// The longest time from the start of the server to its first answer.
const START: Duration = Duration::from_secs(30);
/// How often the server is started: another program may take its port before it binds.
const ATTEMPTS: u32 = 3;

/// The free bytes of memory that are enough for a cluster with a few hundred databases.
const ROOMY: u64 = 4 << 30;

/// Runs the server until the standard input of the script ends, then stops the server and removes
/// its folder. Nothing else removes the folder, because it holds the file with the server's process
/// id. A server that ends by itself leaves its exit code in the file `exited`; the script waits
/// until a server that is starting has written its process id.
const SCRIPT: &str = r#"
{ "$@" >>"$GAUNTLET_FOLDER/log" 2>&1; echo "$?" >"$GAUNTLET_FOLDER/exited"; } &
cat >/dev/null
while [ -d "$GAUNTLET_FOLDER" ] && [ ! -s "$GAUNTLET_FOLDER/data/postmaster.pid" ] && [ ! -e "$GAUNTLET_FOLDER/exited" ]; do sleep 0.05; done
server=$(head -n 1 "$GAUNTLET_FOLDER/data/postmaster.pid" 2>/dev/null)
[ -n "$server" ] && kill -INT "$server" 2>/dev/null
wait
rm -rf -- "$GAUNTLET_FOLDER"
"#;

/// A server that the harness started.
struct Cluster {
    reaper: Reaper,
}

#[async_trait]
impl Owned for Cluster {
    /// Stops the server and removes its folder.
    async fn stop(self: Box<Self>) {
        self.reaper.stop().await;
    }
}

/// Creates a cluster, starts its server, and returns it with the folder of its binaries. The error
/// is a reason for people.
pub(super) async fn start() -> Result<(Postgres, String), String> {
    let binaries = binaries()?;
    let account = if rustix::process::getuid().is_root() {
        Some(Account::find()?)
    } else {
        None
    };
    let described = match &account {
        Some(account) => format!("{}, as {}", binaries.display(), account.name),
        None => binaries.display().to_string(),
    };
    let mut attempt = 1;
    loop {
        match serve(&binaries, account.as_ref()).await {
            Ok(server) => return Ok((server, described)),
            // another program took the port before the server bound it
            Err(reason) if reason.contains("Address already in use") && attempt < ATTEMPTS => {
                attempt += 1
            }
            Err(reason) => return Err(reason),
        }
    }
}

async fn serve(binaries: &Path, account: Option<&Account>) -> Result<Postgres, String> {
    let parent = parent();
    let folder = tempfile::Builder::new()
        .prefix("gauntlet-pg-")
        .tempdir_in(&parent)
        .map_err(|error| format!("cannot make a folder in {}: {error}", parent.display()))?;
    if let Some(account) = account {
        std::os::unix::fs::chown(folder.path(), Some(account.user), Some(account.group)).map_err(
            |error| {
                format!(
                    "{} cannot be given to {}: {error}",
                    folder.path().display(),
                    account.name
                )
            },
        )?;
    }
    initdb(binaries, folder.path(), account).await?;

    let port = std::net::TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|error| format!("there is no free port on 127.0.0.1: {error}"))?
        .port();
    let path = folder.path().display().to_string();
    let settings = [
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        format!("unix_socket_directories={path}"),
        "fsync=off".into(),
        "synchronous_commit=off".into(),
        "full_page_writes=off".into(),
        "max_connections=300".into(),
        "max_wal_size=128MB".into(),
        "min_wal_size=32MB".into(),
    ];
    let mut command = account.map_or_else(Vec::new, Account::prefix);
    command.extend([
        binaries.join("postgres").display().to_string(),
        "-D".into(),
        format!("{path}/data"),
    ]);
    command.extend(
        settings
            .into_iter()
            .flat_map(|setting| ["-c".to_owned(), setting]),
    );
    let reaper = Reaper::start(SCRIPT, &command, &[("GAUNTLET_FOLDER", path.as_str())])
        .map_err(|error| format!("sh cannot be started: {error}"))?;
    let folder = folder.keep();

    let url = ServerUrl::new("postgres".into(), "127.0.0.1".into(), port);
    let (exited, log) = (folder.join("exited"), folder.join("log"));
    if let Err(reason) = ready(&url, START, || exited.exists().then(|| tail(&log))).await {
        reaper.stop().await;
        return Err(reason);
    }
    Postgres::owned(url, Box::new(Cluster { reaper }))
        .await
        .map_err(|error| error.to_string())
}

/// Finds the folder with `initdb` and `postgres`: `PG_BIN`, then the folders of Debian, Homebrew
/// and Postgres.app (the newest version first), then `PATH`.
fn binaries() -> Result<PathBuf, String> {
    let complete =
        |folder: &PathBuf| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    if let Some(folder) = std::env::var_os("PG_BIN")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
    {
        return if complete(&folder) {
            Ok(folder)
        } else {
            Err(format!(
                "PG_BIN is {}, which does not hold initdb and postgres",
                folder.display()
            ))
        };
    }
    let mut candidates = Vec::new();
    for (parent, below) in [
        ("/usr/lib/postgresql", "bin"),
        ("/opt/homebrew/opt", "bin"),
        ("/usr/local/opt", "bin"),
        ("/Applications/Postgres.app/Contents/Versions", "bin"),
    ] {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        let mut versions: Vec<(u32, PathBuf)> = entries
            .map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                let digits: String = name.chars().filter(char::is_ascii_digit).collect();
                (digits.parse().unwrap_or(0), entry.path().join(below))
            })
            .collect();
        versions.sort_by(|a, b| b.cmp(a));
        candidates.extend(versions.into_iter().map(|(_, folder)| folder));
    }
    candidates.extend(
        std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths),
    );
    candidates.into_iter().find(complete).ok_or_else(|| {
        "initdb and postgres were not found in PG_BIN, /usr/lib/postgresql, Homebrew, Postgres.app \
         and PATH; install the PostgreSQL server"
            .into()
    })
}

/// Returns the parent of the cluster's folder: memory, if there is enough, because a clone takes
/// 15 ms there and up to 200 ms on a busy disk.
fn parent() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let free =
        rustix::fs::statvfs(memory).map_or(0, |shm| shm.f_bavail.saturating_mul(shm.f_frsize));
    if cfg!(target_os = "linux") && free >= ROOMY {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

async fn initdb(binaries: &Path, folder: &Path, account: Option<&Account>) -> Result<(), String> {
    let mut command = account.map_or_else(Vec::new, Account::prefix);
    command.extend([
        binaries.join("initdb").display().to_string(),
        "-D".into(),
        folder.join("data").display().to_string(),
    ]);
    command.extend(
        [
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ]
        .map(String::from),
    );
    let Some((program, arguments)) = command.split_first() else {
        return Err("the command of initdb is empty".into());
    };
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = bounded(INITDB, output)
        .await
        .ok_or_else(|| format!("initdb took longer than {INITDB:?}"))?
        .map_err(|error| format!("{program} cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "initdb failed: {}",
        output.lines().last().unwrap_or("it wrote nothing")
    ))
}

/// Returns a sentence with the last lines of the server's log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(3)..].join(" / ");
    format!("the server ended by itself: {last}")
}

/// An account without special rights, and the program that changes to it.
struct Account {
    name: String,
    user: u32,
    group: u32,
    program: &'static str,
}

impl Account {
    fn find() -> Result<Self, String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = |program: &&str| {
            std::env::split_paths(&path)
                .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
                .any(|folder| folder.join(program).is_file())
        };
        let program = ["setpriv", "runuser", "su"]
            .into_iter()
            .find(on_path)
            .ok_or("Postgres does not run as root, and setpriv, runuser and su are all missing; run as another \
                 user")?;
        let accounts = std::fs::read_to_string("/etc/passwd")
            .map_err(|error| format!("/etc/passwd: {error}"))?;
        ["postgres", "nobody"]
            .into_iter()
            .find_map(|wanted| {
                let fields: Vec<&str> = accounts
                    .lines()
                    .find(|line| line.starts_with(&format!("{wanted}:")))?
                    .split(':')
                    .collect();
                Some(Self {
                    name: wanted.into(),
                    user: fields.get(2)?.parse().ok()?,
                    group: fields.get(3)?.parse().ok()?,
                    program,
                })
            })
            .ok_or_else(|| {
                "Postgres does not run as root, and there is no account `postgres` or `nobody`; run as \
                 another user"
                    .into()
            })
    }

    /// Returns the words before a command that make it run as this account.
    fn prefix(&self) -> Vec<String> {
        match self.program {
            "setpriv" => {
                vec![
                    "setpriv".into(),
                    format!("--reuid={}", self.user),
                    format!("--regid={}", self.group),
                    "--clear-groups".into(),
                    "--".into(),
                ]
            }
            "runuser" => vec![
                "runuser".into(),
                "-u".into(),
                self.name.clone(),
                "--".into(),
            ],
            // su takes one string, whose shell gets the rest as its arguments
            _ => [
                "su",
                &self.name,
                "-s",
                "/bin/sh",
                "-c",
                "exec \"$0\" \"$@\"",
                "--",
            ]
            .map(String::from)
            .into(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::gate::{guard, poll_until};

    #[tokio::test]
    async fn a_server_that_is_dropped_without_a_stop_ends_and_leaves_no_folder() {
        let server = match start().await {
            Ok((server, _)) => server,
            Err(reason) => return println!("not run: {reason}"),
        };
        let mut admin = server.admin().await.unwrap();
        let data: String = sqlx::query_scalar("SHOW data_directory")
            .fetch_one(&mut admin)
            .await
            .unwrap();
        let address = format!("{}:{}", server.address().0, server.address().1);
        drop(server);
        let folder = Path::new(&data).parent().unwrap();
        guard(
            "hang.folder",
            "the end of its folder",
            poll_until(|| (!folder.exists()).then_some(())),
        )
        .await
        .unwrap();
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}
