//! A configuration for a gateway that nobody has configured: the providers that answer on this
//! machine, the services whose keys are in the environment, and the embedded database. The findings
//! name everything that was looked for.

use std::time::Duration;

use gauntlet::config::redact_url;
use gauntlet::llm::provider::{Discovery, PROTOCOLS, Protocol, probe};
use tokio::time::timeout;
use toml::{Table, Value};

/// The maximum amount of time that a server on this machine has to list its models.
const PROBE: Duration = Duration::from_millis(200);

/// The configuration that was found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Discovered {
    /// The configuration, as the text of a file.
    pub(super) toml: String,
    /// What was found and what was not, one sentence each.
    pub(super) findings: Vec<String>,
}

/// Looks for providers of every known protocol, on this machine first: a local server is asked for
/// its models, and the key of a service is looked for in `environment`.
///
/// Cancel safe: dropping the future closes its connections.
pub(super) async fn discover(environment: &[(String, String)]) -> Discovered {
    let (mut providers, mut models, mut findings) = (Vec::new(), Vec::new(), Vec::new());
    for protocol in PROTOCOLS {
        let settings = protocol.settings();
        let (name, url) = (settings.name, settings.default_base_url);
        if protocol.discovery() != Discovery::Local {
            continue;
        }
        match timeout(PROBE, local_models(*protocol, url)).await {
            Ok(Ok(names)) => {
                findings.push(format!(
                    "A provider of the protocol '{name}' answers at {url}: {}.",
                    match names.as_slice() {
                        [] => "it has no models yet, so it serves no aliases".to_owned(),
                        names => format!("its models become aliases ({})", names.join(", ")),
                    }
                ));
                providers.push(provider(name, name, "base_url", url));
                models.extend(names.iter().map(|model_name| model(model_name, name)));
            }
            Ok(Err(reason)) => findings.push(format!(
                "No provider of the protocol '{name}' answers at {url}: {reason}."
            )),
            Err(_) => findings.push(format!(
                "No provider of the protocol '{name}' answers at {url} within {} ms.",
                PROBE.as_millis()
            )),
        }
    }
    let variable = |name: &str| {
        environment
            .iter()
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    };
    for protocol in PROTOCOLS {
        let settings = protocol.settings();
        let Discovery::Key {
            key,
            base_url,
            models: offered,
        } = protocol.discovery()
        else {
            continue;
        };
        if variable(key).is_none() {
            findings.push(format!(
                "{key} is not set, so '{}' is left out.",
                settings.name
            ));
            continue;
        }
        let base_url = variable(base_url).unwrap_or(settings.default_base_url);
        findings.push(format!(
            "{key} is set: {} become aliases at {}.",
            offered.join(", "),
            redact_url(base_url)
        ));
        let mut found = provider(settings.name, settings.name, "base_url", base_url);
        found.insert("api_key_env".into(), key.into());
        providers.push(found);
        models.extend(offered.iter().map(|name| model(name, settings.name)));
    }
    let mut table = Table::new();
    table.insert(
        "providers".into(),
        Value::Array(providers.into_iter().map(Value::Table).collect()),
    );
    table.insert(
        "models".into(),
        Value::Array(models.into_iter().map(Value::Table).collect()),
    );
    Discovered {
        toml: table.to_string(),
        findings,
    }
}

async fn local_models(protocol: &dyn Protocol, url: &str) -> Result<Vec<String>, String> {
    let base_url = url
        .parse()
        .map_err(|_| "its address is not a usable URL".to_owned())?;
    probe::models(protocol, &base_url).await
}

fn provider(name: &str, protocol: &str, key: &str, value: &str) -> Table {
    Table::from_iter(
        [("name", name), ("protocol", protocol), (key, value)]
            .map(|(key, value)| (key.to_owned(), Value::from(value))),
    )
}

fn model(name: &str, provider: &str) -> Table {
    let candidate = Table::from_iter(
        [("provider", provider), ("model", name)]
            .map(|(key, value)| (key.to_owned(), Value::from(value))),
    );
    Table::from_iter([
        ("alias".to_owned(), Value::from(name)),
        (
            "candidates".to_owned(),
            Value::Array(vec![Value::Table(candidate)]),
        ),
    ])
}
