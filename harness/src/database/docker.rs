//! Postgres in Docker, through testcontainers. The container is removed at the end of the run, or
//! by a reaper process if the run is killed.

use std::collections::HashMap;
use std::fmt::Display;
use std::future::pending;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::select_ok;
use testcontainers::bollard::Docker;
use testcontainers::bollard::models::PortBinding;
use testcontainers::bollard::query_parameters::{
    InspectContainerOptions, InspectNetworkOptions, RemoveContainerOptions, WaitContainerOptions,
};
use testcontainers::core::client::docker_client_instance;
use testcontainers::core::{IntoContainerPort, Mount};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use uuid::Uuid;

use super::postgres::{Owned, Postgres, ready};
use super::url::ServerUrl;
use crate::gate::bounded;
use crate::reaper::Reaper;

/// The image that is started, unless `GAUNTLET_POSTGRES_IMAGE` names another.
const IMAGE: &str = "postgres:17-alpine";
/// The longest wait for the answer to a ping; a daemon that takes longer counts as absent.
const PING: Duration = Duration::from_secs(2);
/// The longest wait for any other answer of the daemon, the removal of a container included. On a
/// busy machine an answer takes seconds; a stuck daemon never answers.
const ASK: Duration = Duration::from_secs(15);
/// The longest time to pull the image.
const PULL: Duration = Duration::from_secs(300);
/// The longest time from the creation of the container to the first answer of its server.
const START: Duration = Duration::from_secs(60);
/// The port of the server inside its container.
const PORT: u16 = 5432;
/// The access rules of the server: every login is trusted, which is fast, because the data is
/// discarded and the port is published on this machine alone.
const ACCESS: &str = "local all all trust\nhost all all all trust\n";

/// A container, and the reaper that removes it if this process cannot.
struct Container {
    daemon: Docker,
    container: ContainerAsync<GenericImage>,
    reaper: Option<Reaper>,
}

#[async_trait]
impl Owned for Container {
    /// Removes the container. If the daemon does not answer, the container is left behind with a
    /// warning, so that the run still writes its report.
    async fn stop(self: Box<Self>) {
        let removed = remove(&self.daemon, self.container.id(), ASK).await;
        if let Err(reason) = &removed {
            tracing::warn!(
                reason,
                container = self.container.id(),
                "the container of the database could not be removed; remove it with `docker rm --force`"
            );
        }
        // dropping it would send the daemon one more request and block the thread until it answers
        let Self {
            container, reaper, ..
        } = *self;
        std::mem::forget(container);
        match reaper {
            Some(reaper) if removed.is_ok() => reaper.stop().await,
            // it depends on the same daemon, and need not be waited for
            reaper => drop(reaper),
        }
    }
}

async fn remove(daemon: &Docker, container: &str, bound: Duration) -> Result<(), String> {
    let how = RemoveContainerOptions {
        force: true,
        v: true,
        ..Default::default()
    };
    asked(bound, daemon.remove_container(container, Some(how))).await
}

/// Returns the answer of the daemon, if it comes within the bound. The error is a reason for
/// people.
async fn asked<T, E: Display>(
    bound: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match bounded(bound, answer).await {
        Some(answer) => answer.map_err(|error| error.to_string()),
        None => Err(format!("the daemon gave no answer within {bound:?}")),
    }
}

/// Starts a server and returns it with the name of its image. The error is a reason for people.
pub(super) async fn start() -> Result<(Postgres, String), String> {
    let image = std::env::var("GAUNTLET_POSTGRES_IMAGE")
        .ok()
        .filter(|image| !image.is_empty())
        .unwrap_or_else(|| IMAGE.to_owned());
    let daemon = asked(ASK, docker_client_instance())
        .await
        .map_err(|reason| format!("no daemon is configured ({reason})"))?;
    asked(PING, daemon.ping())
        .await
        .map_err(|reason| format!("no daemon answers a ping ({reason})"))?;
    let (name, tag) = match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name.to_owned(), tag.to_owned()),
        _ => (image.clone(), "latest".to_owned()),
    };
    let generic = GenericImage::new(name, tag).with_exposed_port(PORT.tcp());
    if asked(ASK, daemon.inspect_image(&image)).await.is_err() {
        tracing::info!(image, "pulling the image of the database");
        let pulled = asked(PULL, generic.clone().pull_image()).await;
        let _request = pulled.map_err(|reason| {
            format!("the image {image} is not on this machine and cannot be pulled ({reason})")
        })?;
    }

    let container_name = format!("gauntlet-{}", &Uuid::new_v4().simple().to_string()[..12]);
    let reaper = reaper(&container_name);
    let password = Uuid::new_v4().simple().to_string();
    let publish = publish(&daemon).await;
    let settings = [
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "max_connections=300",
        "hba_file=/gauntlet_hba.conf",
    ];
    let mut command = vec!["postgres".to_owned()];
    command.extend(
        settings
            .iter()
            .flat_map(|setting| ["-c".to_owned(), (*setting).to_owned()]),
    );
    let request = generic
        .with_cmd(command)
        .with_container_name(&container_name)
        .with_label("org.gauntlet", "database")
        .with_env_var("POSTGRES_PASSWORD", &password)
        .with_env_var("PGDATA", "/var/lib/postgresql/data")
        .with_mount(Mount::tmpfs_mount("/var/lib/postgresql/data"))
        .with_copy_to("/gauntlet_hba.conf", ACCESS.as_bytes().to_vec())
        .with_startup_timeout(START)
        .with_host_config_modifier(move |config| {
            if !publish.is_empty() {
                let bindings = publish
                    .iter()
                    .map(|host| PortBinding {
                        host_ip: Some(host.clone()),
                        host_port: None,
                    })
                    .collect();
                config.port_bindings =
                    Some(HashMap::from([(format!("{PORT}/tcp"), Some(bindings))]));
            }
        });
    let container = asked(START, request.start())
        .await
        .map_err(|reason| format!("the container cannot be started ({reason})"))?;
    let container = Box::new(Container {
        daemon: daemon.clone(),
        container,
        reaper,
    });
    match connect(&daemon, &container.container, &password).await {
        Ok(url) => match Postgres::owned(url, container).await {
            Ok(server) => Ok((server, image)),
            Err(error) => Err(error.to_string()),
        },
        Err(reason) => {
            container.stop().await;
            Err(reason)
        }
    }
}

/// Starts the reaper of the container. It needs the `docker` command; without it, a run that is
/// killed leaves the container to the clean-up of testcontainers.
fn reaper(name: &str) -> Option<Reaper> {
    let script =
        "cat >/dev/null; command -v docker >/dev/null && docker rm --force --volumes \"$1\"";
    Reaper::start(script, &[name.to_owned()], &[]).ok()
}

/// Returns whether the engine runs on this machine, so that its ports are published here alone.
fn engine_is_here() -> bool {
    std::env::var("DOCKER_HOST").map_or(true, |host| host.is_empty() || host.starts_with("unix:"))
}

/// Returns the addresses of the engine's machine on which the port is published; an empty list
/// leaves the choice to the engine, which publishes it on all addresses.
///
/// A run inside a container has a loopback address of its own. If the engine runs outside of that
/// container, the run reaches the server through the gateway address of the engine's bridge, which
/// is reachable from the engine's machine and its containers alone.
async fn publish(daemon: &Docker) -> Vec<String> {
    if !engine_is_here() {
        return Vec::new();
    }
    let mut addresses = vec!["127.0.0.1".to_owned()];
    if Path::new("/.dockerenv").exists() {
        let bridge = asked(
            ASK,
            daemon.inspect_network("bridge", None::<InspectNetworkOptions>),
        )
        .await
        .ok();
        let configured = bridge
            .and_then(|bridge| bridge.ipam)
            .and_then(|ipam| ipam.config)
            .unwrap_or_default();
        addresses.extend(
            configured
                .into_iter()
                .filter_map(|network| network.gateway)
                .find(|gateway| !gateway.is_empty()),
        );
    }
    addresses
}

/// Returns the addresses at which the server may answer: its published ports and, if the engine
/// runs on this machine, the addresses of its container.
async fn addresses(
    daemon: &Docker,
    container: &ContainerAsync<GenericImage>,
) -> Result<Vec<(String, u16)>, String> {
    let inspected = asked(
        ASK,
        daemon.inspect_container(container.id(), None::<InspectContainerOptions>),
    )
    .await;
    let network = inspected?
        .network_settings
        .ok_or("the container has no network")?;
    let mut addresses = Vec::new();
    for binding in network
        .ports
        .and_then(|mut ports| ports.remove(&format!("{PORT}/tcp")).flatten())
        .unwrap_or_default()
    {
        let Some(port) = binding
            .host_port
            .as_deref()
            .and_then(|port| port.parse().ok())
        else {
            continue;
        };
        match binding.host_ip.as_deref() {
            // published on every address: take the one by which the engine is known, but 127.0.0.1
            // for `localhost`, which may be resolved to ::1, where nothing listens
            None | Some("" | "0.0.0.0") => {
                let host = asked(ASK, container.get_host()).await?.to_string();
                addresses.push((
                    if host == "localhost" {
                        "127.0.0.1".to_owned()
                    } else {
                        host
                    },
                    port,
                ));
            }
            Some(host) if host.contains(':') => {}
            Some(host) => addresses.push((host.to_owned(), port)),
        }
    }
    if engine_is_here() {
        let own = network
            .networks
            .unwrap_or_default()
            .into_values()
            .filter_map(|network| network.ip_address);
        addresses.extend(
            own.filter(|address| !address.is_empty())
                .map(|address| (address, PORT)),
        );
    }
    Ok(addresses)
}

/// Waits for the first address at which the server answers, as long as the container runs.
async fn connect(
    daemon: &Docker,
    container: &ContainerAsync<GenericImage>,
    password: &str,
) -> Result<ServerUrl, String> {
    let addresses = addresses(daemon, container).await?;
    if addresses.is_empty() {
        return Err("the container's port is not published".into());
    }
    let searches = addresses.into_iter().map(|(host, port)| {
        Box::pin(async move {
            let url = ServerUrl::new(format!("postgres:{password}"), host, port);
            ready(&url, START, || None).await.map(|()| url)
        })
    });
    // both futures only observe, so that dropping one loses nothing
    tokio::select! {
        found = select_ok(searches) => found.map(|(url, _)| url),
        reason = ended(daemon, container) => Err(reason),
    }
}

/// Waits until the container has ended and returns its last lines of output. Cancel safe.
async fn ended(daemon: &Docker, container: &ContainerAsync<GenericImage>) -> String {
    let mut waiting = Box::pin(daemon.wait_container(container.id(), None::<WaitContainerOptions>));
    if waiting.next().await.is_none() {
        // the engine closed the connection without an answer: the search for the server decides
        return pending().await;
    }
    let code = asked(ASK, container.exit_code())
        .await
        .ok()
        .flatten()
        .map_or("unknown".to_owned(), |code| code.to_string());
    let output = asked(ASK, container.stderr_to_vec())
        .await
        .unwrap_or_default();
    let output = String::from_utf8_lossy(&output);
    let last: Vec<&str> = output
        .lines()
        .rev()
        .filter(|line| !line.trim().is_empty())
        .take(3)
        .collect();
    format!(
        "the container ended with exit code {code}: {}",
        last.into_iter().rev().collect::<Vec<_>>().join(" | ")
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use testcontainers::bollard::API_DEFAULT_VERSION;

    #[tokio::test]
    async fn a_stuck_daemon_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        // the kernel accepts connections into the queue, and nothing answers
        let _stuck = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let daemon =
            Docker::connect_with_unix(socket.to_str().unwrap(), 120, API_DEFAULT_VERSION).unwrap();
        let reason = remove(&daemon, "gauntlet-x", Duration::from_millis(20))
            .await
            .unwrap_err();
        assert_eq!(reason, "the daemon gave no answer within 20ms");
    }
}
