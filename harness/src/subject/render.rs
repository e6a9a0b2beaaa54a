//! The templates of target files: one environment, in which an undefined name is an error.
//!
//! A template knows the fields of the specification (`providers` with `base_url`, `models`,
//! `timeouts`, `retry`, `breaker`, `limits`, `keys`, `query`), `database_url`, `port`, `host`,
//! `folder`, `gauntlet`, `file["name"]`, the function `env(name, default)`, and the filters
//! `sha256`, `seconds` and `tojson`.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use super::{Deployment, TargetError};

/// Renders the templates of one target file for one deployment.
pub(super) struct Renderer {
    environment: Environment<'static>,
    context: Value,
    origin: String,
}

impl Renderer {
    /// Makes a renderer that knows the path of this program alone, for version commands.
    pub(super) fn bare(origin: &str, gauntlet: &Path) -> Self {
        let context = json!({ "gauntlet": gauntlet.to_string_lossy() });
        Self {
            environment: environment(),
            context: Value::from(Serde(&context)),
            origin: origin.to_string(),
        }
    }

    /// Makes a renderer that knows everything that a deployment holds.
    pub(super) fn new(
        origin: &str,
        gauntlet: &Path,
        deployment: &Deployment,
        port: u16,
        files: &[String],
    ) -> Result<Self, TargetError> {
        let wrong =
            |error: serde_json::Error| TargetError::Definition(format!("target {origin}: {error}"));
        let mut context = match serde_json::to_value(&deployment.spec).map_err(wrong)? {
            serde_json::Value::Object(map) => map,
            _ => Map::new(),
        };
        if let Some(providers) = context
            .get_mut("providers")
            .and_then(|value| value.as_array_mut())
        {
            for provider in providers {
                let url = provider["name"]
                    .as_str()
                    .and_then(|name| deployment.endpoints.get(name))
                    .cloned();
                provider["base_url"] = json!(url);
            }
        }
        for setting in ["retry", "breaker"] {
            let default = context.get(setting).cloned().unwrap_or_default();
            let models = context
                .get_mut("models")
                .and_then(|value| value.as_array_mut());
            for model in models.into_iter().flatten() {
                if model[setting].is_null() {
                    model[setting] = default.clone();
                }
            }
        }
        let paths: Map<String, serde_json::Value> = files
            .iter()
            .map(|name| {
                (
                    name.clone(),
                    json!(deployment.folder.join(name).to_string_lossy()),
                )
            })
            .collect();
        context.insert("file".into(), json!(paths));
        context.insert("database_url".into(), json!(deployment.database_url));
        context.insert("id".into(), json!(deployment.id));
        context.insert("folder".into(), json!(deployment.folder.to_string_lossy()));
        context.insert("gauntlet".into(), json!(gauntlet.to_string_lossy()));
        context.insert("host".into(), json!("127.0.0.1"));
        context.insert("port".into(), json!(port));
        Ok(Self {
            environment: environment(),
            context: Value::from(Serde(&context)),
            origin: origin.to_string(),
        })
    }

    /// Renders one template; `what` names the template in errors.
    pub(super) fn render(&self, what: &str, template: &str) -> Result<String, TargetError> {
        self.environment
            .render_str(template, &self.context)
            .map_err(|error| {
                let line = error
                    .line()
                    .map(|line| format!(" (line {line} of the template)"))
                    .unwrap_or_default();
                TargetError::Definition(format!(
                    "target {}: {what}{line}: {}",
                    self.origin,
                    error
                        .detail()
                        .map_or_else(|| error.kind().to_string(), str::to_string)
                ))
            })
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    // the default delimiters are kept, so that building cannot fail
    if let Ok(syntax) = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true)
        .build()
    {
        environment.set_syntax(syntax);
    }
    environment.add_filter("sha256", |text: &str| hex::encode(Sha256::digest(text)));
    environment.add_filter("seconds", seconds);
    environment.add_function(
        "env",
        |name: &str, default: Option<String>| -> Result<String, Error> {
            match (
                std::env::var(name).ok().filter(|value| !value.is_empty()),
                default,
            ) {
                (Some(value), _) | (None, Some(value)) => Ok(value),
                (None, None) => Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("the environment variable {name} is not set; set it"),
                )),
            }
        },
    );
    environment
}

/// Converts milliseconds to seconds, for configurations that count in seconds.
fn seconds(milliseconds: Value) -> Result<f64, Error> {
    let whole = u64::try_from(milliseconds.clone()).map_err(|_| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!(
                "the filter `seconds` needs a whole number of milliseconds, and {milliseconds} is none"
            ),
        )
    })?;
    Ok(std::time::Duration::from_millis(whole).as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::spec::Spec;
    use crate::tape::Tape;

    fn renderer() -> Renderer {
        let deployment = Deployment {
            id: "t".into(),
            spec: Spec::solo(),
            endpoints: [("p1".to_string(), "http://127.0.0.1:1/v1".to_string())]
                .into_iter()
                .collect(),
            database_url: None,
            folder: "/tmp/x".into(),
            tape: Tape::new(),
        };
        Renderer::new(
            "t.toml",
            Path::new("gauntlet"),
            &deployment,
            4000,
            &["a.toml".into()],
        )
        .unwrap()
    }

    #[test]
    fn a_template_sees_specification_endpoints_and_files() {
        let text = "{{ providers[0].base_url }} {{ models[0].alias }} {{ timeouts.total_ms | seconds }} {{ file['a.toml'] }} {{ port }}";
        assert_eq!(
            renderer().render("x", text).unwrap(),
            "http://127.0.0.1:1/v1 solo 8.0 /tmp/x/a.toml 4000"
        );
    }

    #[test]
    fn a_misspelt_name_is_an_error_that_names_the_line() {
        let error = renderer()
            .render("files.gateway", "ok\n{{ timeots.total_ms }}")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("t.toml") && error.contains("files.gateway") && error.contains("line 2"),
            "{error}"
        );
    }

    #[test]
    fn sha256_is_the_hash_of_the_text() {
        assert_eq!(
            renderer().render("x", "{{ 'abc' | sha256 }}").unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    fn rendered(target_file: &str, name: &str, spec: Spec) -> String {
        let file = super::super::TargetFile::parse(target_file, name).unwrap();
        let endpoints = spec
            .providers
            .iter()
            .map(|provider| {
                (
                    provider.name.clone(),
                    format!("http://127.0.0.1:1/{}", provider.name),
                )
            })
            .collect();
        let deployment = Deployment {
            id: "t".into(),
            spec,
            endpoints,
            database_url: None,
            folder: "/tmp/x".into(),
            tape: Tape::new(),
        };
        let renderer = Renderer::new(name, Path::new("gauntlet"), &deployment, 4000, &[]).unwrap();
        renderer
            .render("configuration", &file.start.unwrap().files[0].template)
            .unwrap()
    }

    #[test]
    fn the_bundled_gateway_is_given_toml() {
        let mut spec = Spec::query(&["reader", "writer"]);
        spec.keys.push(crate::spec::KeySpec {
            tenant: "a".into(),
            token: "abc".into(),
        });
        spec.models[0].timeouts.total_ms = Some(77);
        let text = rendered(
            include_str!("../../../fixtures/targets/bundled.toml"),
            "bundled",
            spec,
        );
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["providers"].as_array().unwrap().len(), 2, "{text}");
        assert_eq!(
            table["providers"][0]["protocol"].as_str(),
            Some("openai"),
            "{text}"
        );
        assert_eq!(
            table["models"][0]["timeouts"]["total_ms"].as_integer(),
            Some(77),
            "{text}"
        );
        assert_eq!(
            table["auth"]["keys"][0]["sha256"].as_str().unwrap().len(),
            64,
            "{text}"
        );
        assert_eq!(
            table["orchestrator"]["models"]["writer"].as_str(),
            Some("writer"),
            "{text}"
        );
    }

    #[test]
    fn litellm_is_given_yaml_with_fallbacks_in_order() {
        let spec = Spec::pair()
            .provider("p3", crate::spec::Protocol::OLLAMA)
            .model("trio", &["p1", "p2", "p3"]);
        let text = rendered(
            include_str!("../../../fixtures/targets/litellm.toml"),
            "litellm",
            spec,
        );
        let config: serde_json::Value = yaml_serde::from_str(&text).unwrap();
        assert_eq!(config["model_list"].as_array().unwrap().len(), 5, "{text}");
        assert_eq!(
            config["model_list"][4]["litellm_params"]["model"], "ollama_chat/m-p3",
            "{text}"
        );
        assert_eq!(
            config["router_settings"]["fallbacks"][1],
            serde_json::json!({"trio": ["trio--2", "trio--3"]}),
            "{text}"
        );
        let alone = rendered(
            include_str!("../../../fixtures/targets/litellm.toml"),
            "litellm",
            Spec::solo(),
        );
        let config: serde_json::Value = yaml_serde::from_str(&alone).unwrap();
        assert_eq!(
            config["router_settings"]["fallbacks"],
            serde_json::json!([]),
            "{alone}"
        );
    }
}
