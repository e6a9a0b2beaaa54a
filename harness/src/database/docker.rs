//! Postgres in Docker, through testcontainers; removed at the end, and by a guard process when the run is killed.

use std::collections::HashMap;
use std::time::Duration;

use testcontainers::bollard::models::PortBinding;
use testcontainers::core::client::docker_client_instance;
use testcontainers::core::{IntoContainerPort, Mount};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::time::timeout;
use uuid::Uuid;

use super::guard::Guard;
use super::postgres::{Owned, Postgres, ready};
use super::url::ServerUrl;

/// The image, unless `GAUNTLET_POSTGRES_IMAGE` names another.
const IMAGE: &str = "postgres:17-alpine";
/// A daemon that does not answer a ping by then is not there.
const PING: Duration = Duration::from_secs(2);
/// Pulling an image.
const PULL: Duration = Duration::from_secs(300);
/// From the container's creation to the first answer of its server.
const START: Duration = Duration::from_secs(60);
/// Throw-away data on a port of this machine alone: everybody who gets there may log in, and logging in is fast.
const ACCESS: &str = "local all all trust\nhost all all all trust\n";

/// A container, and who removes it when we can't.
pub(super) struct Container {
    container: ContainerAsync<GenericImage>,
    guard: Option<Guard>,
}

impl Container {
    /// Removes the container.
    pub async fn stop(self) {
        if let Err(error) = self.container.rm().await {
            tracing::warn!(%error, "the database's container could not be removed");
        }
        if let Some(guard) = self.guard {
            guard.stop().await;
        }
    }
}

/// Starts a server; with the image's name. The error is the reason, for people.
pub(super) async fn start() -> Result<(Postgres, String), String> {
    let image = std::env::var("GAUNTLET_POSTGRES_IMAGE").ok().filter(|image| !image.is_empty()).unwrap_or_else(|| IMAGE.to_owned());
    let daemon = docker_client_instance().await.map_err(|error| format!("no daemon ({error})"))?;
    match timeout(PING, daemon.ping()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(format!("no daemon answers ({error})")),
        Err(_) => return Err(format!("the daemon did not answer a ping within {PING:?}")),
    }
    let (name, tag) = match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name.to_owned(), tag.to_owned()),
        _ => (image.clone(), "latest".to_owned()),
    };
    let generic = GenericImage::new(name, tag).with_exposed_port(5432.tcp());
    if daemon.inspect_image(&image).await.is_err() {
        tracing::info!(image, "pulling the image of the database");
        match timeout(PULL, generic.clone().pull_image()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("the image {image} is not here and cannot be pulled ({error})")),
            Err(_) => return Err(format!("the image {image} was not pulled within {PULL:?}")),
        }
    }

    let container_name = format!("gauntlet-{}", &Uuid::new_v4().simple().to_string()[..12]);
    let guard = guard(&container_name);
    let password = Uuid::new_v4().simple().to_string();
    let loopback = std::env::var("DOCKER_HOST").map_or(true, |host| host.is_empty() || host.starts_with("unix:"));
    let settings = ["fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=300", "hba_file=/gauntlet_hba.conf"];
    let mut command = vec!["postgres".to_owned()];
    command.extend(settings.iter().flat_map(|setting| ["-c".to_owned(), (*setting).to_owned()]));
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
            if loopback {
                let binding = PortBinding { host_ip: Some("127.0.0.1".into()), host_port: None };
                config.port_bindings = Some(HashMap::from([("5432/tcp".to_owned(), Some(vec![binding]))]));
            }
        });
    let container = timeout(START, request.start())
        .await
        .map_err(|_| format!("the container did not start within {START:?}"))?
        .map_err(|error| format!("the container does not start ({error})"))?;
    let container = Container { container, guard };
    match connect(&container.container, &password).await {
        Ok(url) => match Postgres::owned(url, Owned::Container(Box::new(container))).await {
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
    let script = "cat >/dev/null; command -v docker >/dev/null && docker rm --force --volumes \"$1\"";
    Guard::start(script, &[name.to_owned()], &[]).ok()
}

async fn connect(container: &ContainerAsync<GenericImage>, password: &str) -> Result<ServerUrl, String> {
    let host = container.get_host().await.map_err(|error| error.to_string())?.to_string();
    // `localhost` may mean ::1 first, where nothing is published
    let host = if host == "localhost" { "127.0.0.1".to_owned() } else { host };
    let port = container.get_host_port_ipv4(5432).await.map_err(|error| error.to_string())?;
    let url = ServerUrl::new(format!("postgres:{password}"), host, port);
    ready(&url, START, || None).await?;
    Ok(url)
}
