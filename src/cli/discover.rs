//! A configuration where nobody wrote one: a local Ollama if it answers, OpenAI if its key is in the environment, and the
//! embedded database. Says what it found.

use std::time::Duration;

use gauntlet::config::redact_url;
use gauntlet::http::probe::Prober;
use serde::Deserialize;
use tokio::time::timeout;
use toml::{Table, Value};

/// Where Ollama listens by default.
const OLLAMA: &str = "http://127.0.0.1:11434";
/// A local service answers at once, or it is not there.
const PROBE: Duration = Duration::from_millis(200);
/// The aliases that are offered with an OpenAI key.
const OPENAI_MODELS: [&str; 2] = ["gpt-4o-mini", "gpt-4o"];

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Discovery {
    /// The configuration, as the text of a file.
    pub(super) toml: String,
    /// What was found and what was not, a line each.
    pub(super) findings: Vec<String>,
}

#[derive(Deserialize)]
struct Tags {
    models: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    name: String,
}

/// Looks around: asks the local Ollama for its models (200 ms at most) and looks for `OPENAI_API_KEY` in `environment`.
/// Cancel safe.
pub(super) async fn discover(environment: &[(String, String)]) -> Discovery {
    discover_at(OLLAMA, environment).await
}

async fn discover_at(ollama: &str, environment: &[(String, String)]) -> Discovery {
    let (mut providers, mut models, mut findings) = (Vec::new(), Vec::new(), Vec::new());
    match timeout(PROBE, ollama_models(ollama)).await {
        Ok(Ok(names)) => {
            findings.push(format!(
                "a local Ollama answers at {ollama}: {} become aliases",
                if names.is_empty() {
                    "none of its models".into()
                } else {
                    names.join(", ")
                }
            ));
            providers.push(provider("ollama", "ollama", "base_url", ollama));
            models.extend(names.iter().map(|name| model(name, "ollama")));
        }
        Ok(Err(reason)) => findings.push(format!("no local Ollama at {ollama} ({reason})")),
        Err(_) => findings.push(format!(
            "no local Ollama at {ollama} (no answer within {} ms)",
            PROBE.as_millis()
        )),
    }
    let variable = |name: &str| {
        environment
            .iter()
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    };
    if variable("OPENAI_API_KEY").is_some() {
        let base_url = variable("OPENAI_BASE_URL").unwrap_or("https://api.openai.com/v1");
        findings.push(format!(
            "OPENAI_API_KEY is set: {} become aliases at {}",
            OPENAI_MODELS.join(", "),
            redact_url(base_url)
        ));
        let mut openai = provider("openai", "openai", "base_url", base_url);
        openai.insert("api_key_env".into(), "OPENAI_API_KEY".into());
        providers.push(openai);
        models.extend(OPENAI_MODELS.iter().map(|name| model(name, "openai")));
    } else {
        findings.push("OPENAI_API_KEY is not set".into());
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
    Discovery {
        toml: table.to_string(),
        findings,
    }
}

async fn ollama_models(ollama: &str) -> Result<Vec<String>, String> {
    let base = ollama
        .parse()
        .map_err(|_| "the address can't be used".to_owned())?;
    let response = Prober::new(&base)?.get("/api/tags", None).await?;
    let tags: Tags = serde_json::from_slice(&response)
        .map_err(|_| "what answers there is no Ollama".to_owned())?;
    Ok(tags.models.into_iter().map(|tag| tag.name).collect())
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
