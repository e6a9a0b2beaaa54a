//! Postgres in Docker, through testcontainers; removed at the end, and by a guard process when the run is killed.

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
use crate::reaper::Guard;

/// The image, unless `GAUNTLET_POSTGRES_IMAGE` names another.
const IMAGE: &str = "postgres:17-alpine";
/// A daemon that does not answer a ping by then is not there.
const PING: Duration = Duration::from_secs(2);
/// Any other question to the daemon, the removal of a container included: seconds on a busy machine, for ever where it is stuck.
const ASK: Duration = Duration::from_secs(15);
/// Pulling an image.
const PULL: Duration = Duration::from_secs(300);
/// From the container's creation to the first answer of its server.
const START: Duration = Duration::from_secs(60);
/// The server's port inside its container.
const PORT: u16 = 5432;
/// Throw-away data on a port of this machine alone: everybody who gets there may log in, and logging in is fast.
const ACCESS: &str = "local all all trust\nhost all all all trust\n";

/// A container, and who removes it when we can't.
struct Container {
    daemon: Docker,
    container: ContainerAsync<GenericImage>,
    guard: Option<Guard>,
}

#[async_trait]
impl Owned for Container {
    /// Removes the container, or leaves it behind with a warning: a daemon that is stuck must not cost the report.
    async fn stop(self: Box<Self>) {
        let removed = remove(&self.daemon, self.container.id(), ASK).await;
        if let Err(reason) = &removed {
            tracing::warn!(
                reason,
                container = self.container.id(),
                "the database's container could not be removed"
            );
        }
        // dropping it would ask the daemon once more, and block the thread until the daemon answers
        let Self {
            container, guard, ..
        } = *self;
        std::mem::forget(container);
        match guard {
            Some(guard) if removed.is_ok() => guard.stop().await,
            // has the same daemon to ask: it does so without us
            guard => drop(guard),
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

/// The daemon's answer, if it comes within the bound. The error is the reason, for people.
async fn asked<T, E: Display>(
    bound: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match bounded(bound, answer).await {
        Some(answer) => answer.map_err(|error| error.to_string()),
        None => Err(format!("the daemon did not answer within {bound:?}")),
    }
}

/// Starts a server; with the image's name. The error is the reason, for people.
pub(super) async fn start() -> Result<(Postgres, String), String> {
    let image = std::env::var("GAUNTLET_POSTGRES_IMAGE")
        .ok()
        .filter(|image| !image.is_empty())
        .unwrap_or_else(|| IMAGE.to_owned());
    let daemon = asked(ASK, docker_client_instance())
        .await
        .map_err(|reason| format!("no daemon ({reason})"))?;
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
            format!("the image {image} is not here and cannot be pulled ({reason})")
        })?;
    }

    let container_name = format!("gauntlet-{}", &Uuid::new_v4().simple().to_string()[..12]);
    let guard = guard(&container_name);
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
        .map_err(|reason| format!("the container does not start ({reason})"))?;
    let container = Box::new(Container {
        daemon: daemon.clone(),
        container,
        guard,
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

/// The guard needs the command line of Docker; without it testcontainers' own clean-up has to do.
fn guard(name: &str) -> Option<Guard> {
    let script =
        "cat >/dev/null; command -v docker >/dev/null && docker rm --force --volumes \"$1\"";
    Guard::start(script, &[name.to_owned()], &[]).ok()
}

/// Whether the engine runs on this machine: then its ports are published here and for nobody else.
fn engine_is_here() -> bool {
    std::env::var("DOCKER_HOST").map_or(true, |host| host.is_empty() || host.starts_with("unix:"))
}

/// The addresses of the engine's machine that the port is published on; empty leaves it to the engine (all of them).
///
/// A run inside a container has a loopback of its own, unless the engine runs in there too: it may have to come by the gateway of
/// the engine's bridge, which only that machine and its containers reach.
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

/// Where the server may answer: at its published ports, and, with the engine on this machine, at its container's own addresses.
async fn places(
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
    let mut places = Vec::new();
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
            // published on every address: the one that the engine is known by; `localhost` may mean ::1 first, where nothing may be
            None | Some("" | "0.0.0.0") => {
                let host = asked(ASK, container.get_host()).await?.to_string();
                places.push((
                    if host == "localhost" {
                        "127.0.0.1".to_owned()
                    } else {
                        host
                    },
                    port,
                ));
            }
            Some(host) if host.contains(':') => {}
            Some(host) => places.push((host.to_owned(), port)),
        }
    }
    if engine_is_here() {
        let addresses = network
            .networks
            .unwrap_or_default()
            .into_values()
            .filter_map(|network| network.ip_address);
        places.extend(
            addresses
                .filter(|address| !address.is_empty())
                .map(|address| (address, PORT)),
        );
    }
    Ok(places)
}

/// Waits for the first place where the server answers, as long as the container runs.
async fn connect(
    daemon: &Docker,
    container: &ContainerAsync<GenericImage>,
    password: &str,
) -> Result<ServerUrl, String> {
    let places = places(daemon, container).await?;
    if places.is_empty() {
        return Err("the container's port is not published".into());
    }
    let searches = places.into_iter().map(|(host, port)| {
        Box::pin(async move {
            let url = ServerUrl::new(format!("postgres:{password}"), host, port);
            ready(&url, START, || None).await.map(|()| url)
        })
    });
    // both only look: what is dropped here has changed nothing
    tokio::select! {
        found = select_ok(searches) => found.map(|(url, _)| url),
        reason = ended(daemon, container) => Err(reason),
    }
}

/// Returns when the container has ended, with its last words.
async fn ended(daemon: &Docker, container: &ContainerAsync<GenericImage>) -> String {
    let mut waiting = Box::pin(daemon.wait_container(container.id(), None::<WaitContainerOptions>));
    if waiting.next().await.is_none() {
        // the engine closed the connection without an answer: what it says next decides
        return pending().await;
    }
    let code = asked(ASK, container.exit_code())
        .await
        .ok()
        .flatten()
        .map_or("unknown".to_owned(), |code| code.to_string());
    let said = asked(ASK, container.stderr_to_vec())
        .await
        .unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let last: Vec<&str> = said
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
        // takes connections into its queue and never answers
        let _stuck = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let daemon =
            Docker::connect_with_unix(socket.to_str().unwrap(), 120, API_DEFAULT_VERSION).unwrap();
        let reason = remove(&daemon, "gauntlet-x", Duration::from_millis(20))
            .await
            .unwrap_err();
        assert_eq!(reason, "the daemon did not answer within 20ms");
    }
}
