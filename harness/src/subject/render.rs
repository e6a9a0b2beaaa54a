//! The templates of target files: one environment, in which an undefined name is an error.
//!
//! A template knows the fields of the specification (`providers` with `base_url`, `models` whose
//! candidates have `base_url`, `api_key`, `protocol`, `max_in_flight` and `timeouts`, `timeouts`,
//! `retry`, `breaker`, `limits`, `keys`, `query`), `database_url`, `port`, `ports["name"]`, `host`,
//! `folder`, `gauntlet`, `file["name"]`, `captured["name"]`, the function `env(name, default)`, and
//! the filters `sha256`, `seconds`, `ceil_seconds` and `tojson`.

use std::collections::BTreeSet;
use std::path::Path;

use indexmap::IndexMap;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use super::file::Each;
use super::words::line_of;
use super::{Capability, Deployment, TargetError, TargetFile};
use crate::problem::nearest;
use crate::spec::Timeouts;

/// Renders the templates of one target file for one deployment.
pub(super) struct Renderer<'a> {
    environment: Environment<'static>,
    context: Map<String, serde_json::Value>,
    file: &'a TargetFile,
}

impl<'a> Renderer<'a> {
    /// Makes a renderer that knows the path of this program alone, for version commands.
    pub(super) fn bare(file: &'a TargetFile, gauntlet: &Path) -> Self {
        let mut context = Map::new();
        context.insert("gauntlet".into(), json!(gauntlet.to_string_lossy()));
        Self {
            environment: environment(),
            context,
            file,
        }
    }

    /// Makes a renderer that knows everything that a deployment holds; `ports` has the port
    /// `main`.
    pub(super) fn new(
        file: &'a TargetFile,
        gauntlet: &Path,
        deployment: &Deployment,
        ports: &IndexMap<String, u16>,
    ) -> Result<Self, TargetError> {
        let mut context = specification(file, deployment)
            .map_err(|error| TargetError::Definition(format!("target {}: {error}", file.name)))?;
        context.insert("file".into(), json!({}));
        context.insert("captured".into(), json!({}));
        context.insert("database_url".into(), json!(deployment.database_url));
        context.insert("id".into(), json!(deployment.id));
        context.insert("folder".into(), json!(deployment.folder.to_string_lossy()));
        context.insert("gauntlet".into(), json!(gauntlet.to_string_lossy()));
        context.insert("host".into(), json!("127.0.0.1"));
        context.insert("port".into(), json!(ports.get("main")));
        context.insert("ports".into(), json!(ports));
        Ok(Self {
            environment: environment(),
            context,
            file,
        })
    }

    /// Adds `file[name]`, the path of a rendered file.
    pub(super) fn insert_file(&mut self, name: &str, path: &Path) {
        self.insert("file", name, json!(path.to_string_lossy()));
    }

    /// Adds `captured[name]`, a value that the gateway gave in `[[prepare]]`.
    pub(super) fn capture(&mut self, name: &str, value: serde_json::Value) {
        self.insert("captured", name, value);
    }

    /// Adds one name that the templates to come know.
    pub(super) fn know(&mut self, name: &str, value: serde_json::Value) {
        self.context.insert(name.into(), value);
    }

    fn insert(&mut self, map: &str, name: &str, value: serde_json::Value) {
        let map = self.context.get_mut(map);
        if let Some(map) = map.and_then(serde_json::Value::as_object_mut) {
            map.insert(name.into(), value);
        }
    }

    /// Returns what a file is rendered for: nothing in particular, or each provider, model or key.
    pub(super) fn elements(&self, each: Option<Each>) -> Vec<Option<(Each, serde_json::Value)>> {
        let Some(each) = each else {
            return vec![None];
        };
        let list = self
            .context
            .get(each.list())
            .and_then(|list| list.as_array());
        list.into_iter()
            .flatten()
            .map(|element| Some((each, element.clone())))
            .collect()
    }

    /// Renders one template; `what` names the template in errors.
    pub(super) fn render(&self, what: &str, template: &str) -> Result<String, TargetError> {
        self.render_for(None, what, template)
    }

    /// Renders one template for one element of a list, which the template knows by its name.
    pub(super) fn render_for(
        &self,
        element: Option<&(Each, serde_json::Value)>,
        what: &str,
        template: &str,
    ) -> Result<String, TargetError> {
        let mut own;
        let context = match element {
            None => &self.context,
            Some((each, value)) => {
                own = self.context.clone();
                own.insert(each.name().into(), value.clone());
                &own
            }
        };
        self.environment
            .render_str(template, Value::from(Serde(context)))
            .map_err(|error| self.wrong(what, template, &error, context))
    }

    /// Renders the value of a header. Line breaks are removed, with the blanks around them: no
    /// header holds one, and templates that loop are easier to read with them.
    pub(super) fn header(
        &self,
        element: Option<&(Each, serde_json::Value)>,
        what: &str,
        template: &str,
    ) -> Result<String, TargetError> {
        let value = self.render_for(element, what, template)?;
        Ok(value.lines().map(str::trim).collect())
    }

    /// Says where the template is wrong, and what name was meant.
    fn wrong(
        &self,
        what: &str,
        template: &str,
        error: &Error,
        context: &Map<String, serde_json::Value>,
    ) -> TargetError {
        // the text of a template stands in the file as it is, unless it holds escapes
        let line = error
            .line()
            .map(|line| match self.file.offset_of(template) {
                Some(offset) => format!("line {}", line_of(&self.file.source, offset) + line - 1),
                None => format!("line {line} of the template"),
            });
        let origin = [Some(self.file.origin.clone()), line, Some(what.to_string())];
        let origin: Vec<String> = origin.into_iter().flatten().collect();
        let detail = error
            .detail()
            .map_or_else(|| error.kind().to_string(), str::to_string);
        let remedy = undefined(&detail)
            .and_then(|name| {
                let files = context.get("file").and_then(serde_json::Value::as_object);
                if let (true, Some(files)) = (name.starts_with("file["), files) {
                    let files: Vec<String> = files.keys().map(|name| format!("`{name}`")).collect();
                    let files = if files.is_empty() {
                        "no file".to_string()
                    } else {
                        files.join(", ")
                    };
                    return Some(format!("; [[start.files]] names {files}"));
                }
                let last = name.rsplit(['.', '[']).next().unwrap_or(name);
                let last = last.trim_matches(['\'', '"', ']']);
                let mut known = BTreeSet::new();
                names(context, &mut known);
                let others = known
                    .iter()
                    .map(String::as_str)
                    .filter(|known| *known != last);
                nearest(last, others)
                    .map(|nearest| format!("; the nearest known name is `{nearest}`"))
            })
            .unwrap_or_else(|| {
                "; fixtures/targets/README.md lists the names and filters that templates know"
                    .into()
            });
        TargetError::Definition(format!(
            "target file {}: {detail}{remedy}",
            origin.join(", ")
        ))
    }
}

/// Returns the name in minijinja's "`name` is undefined".
fn undefined(detail: &str) -> Option<&str> {
    let (before, _) = detail.split_once("` is undefined")?;
    before.rsplit('`').next()
}

/// Adds every key of the value, at any depth.
fn names(map: &Map<String, serde_json::Value>, into: &mut BTreeSet<String>) {
    for (key, value) in map {
        into.insert(key.clone());
        match value {
            serde_json::Value::Object(map) => names(map, into),
            serde_json::Value::Array(list) => list
                .iter()
                .filter_map(|element| element.as_object())
                .for_each(|map| names(map, into)),
            _ => {}
        }
    }
}

/// Returns the specification as templates know it: providers have their `base_url`, and each
/// candidate of a model has what it needs of its provider, with the timeouts that are in force.
fn specification(
    file: &TargetFile,
    deployment: &Deployment,
) -> Result<Map<String, serde_json::Value>, serde_json::Error> {
    let spec = &deployment.spec;
    let mut context = match serde_json::to_value(spec)? {
        serde_json::Value::Object(map) => map,
        _ => Map::new(),
    };
    let base_url = |name: &str| json!(deployment.endpoints.get(name));
    let list = |context: &mut Map<String, serde_json::Value>, name: &str| {
        context
            .get_mut(name)
            .and_then(serde_json::Value::as_array_mut)
            .map(std::mem::take)
            .unwrap_or_default()
    };
    let mut providers = list(&mut context, "providers");
    for (value, provider) in providers.iter_mut().zip(&spec.providers) {
        value["base_url"] = base_url(&provider.name);
    }
    let mut in_force = spec.timeouts_in_force();
    let mut models = list(&mut context, "models");
    for (value, model) in models.iter_mut().zip(&spec.models) {
        let candidates = value["candidates"].as_array_mut();
        for (value, candidate) in candidates.into_iter().flatten().zip(&model.candidates) {
            let provider = spec.provider_of(candidate);
            let own = in_force.next().map_or(spec.timeouts, |(_, own)| own);
            value["base_url"] = base_url(&candidate.provider);
            value["protocol"] = json!(provider.map(|provider| provider.protocol));
            value["api_key"] = json!(provider.map(|provider| &provider.api_key));
            value["max_in_flight"] = json!(provider.and_then(|provider| provider.max_in_flight));
            value["timeouts"] = timeouts(file, &own);
        }
        if value["retry"].is_null() {
            value["retry"] = json!(spec.retry);
        }
        if value["breaker"].is_null() {
            value["breaker"] = json!(spec.breaker);
        }
    }
    context.insert("providers".into(), json!(providers));
    context.insert("models".into(), json!(models));
    context.insert("timeouts".into(), timeouts(file, &spec.timeouts));
    Ok(context)
}

/// Returns the timeouts with `one_ms`: the one of a gateway that has a single timeout, which is the
/// shortest of those that its capabilities claim.
fn timeouts(file: &TargetFile, timeouts: &Timeouts) -> serde_json::Value {
    let claims = |capability| file.capabilities.contains(&capability);
    let claimed = [
        (
            claims(Capability::HeadersTimeout) || claims(Capability::FirstTokenTimeout),
            timeouts.first_token_ms,
        ),
        (claims(Capability::IdleTimeout), timeouts.idle_ms),
        (claims(Capability::TotalDeadline), timeouts.total_ms),
    ];
    let one = claimed
        .into_iter()
        .filter_map(|(claimed, value)| value.filter(|_| claimed))
        .min()
        .or(timeouts.total_ms);
    let mut value = json!(timeouts);
    value["one_ms"] = json!(one);
    value
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    // so that an error names the undefined expression
    environment.set_debug(true);
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
    environment.add_filter("seconds", |value: Value| {
        milliseconds("seconds", &value).map(|time| time.as_secs_f64())
    });
    environment.add_filter("ceil_seconds", |value: Value| {
        milliseconds("ceil_seconds", &value).map(|time| time.as_millis().div_ceil(1_000).max(1))
    });
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

/// Reads the whole number of milliseconds that a filter is given.
fn milliseconds(filter: &str, value: &Value) -> Result<std::time::Duration, Error> {
    let whole = u64::try_from(value.clone()).map_err(|_| {
        let found = match value.is_undefined() || value.is_none() {
            true => "it has no value".to_string(),
            false => format!("{value} is none"),
        };
        Error::new(
            ErrorKind::InvalidOperation,
            format!("the filter `{filter}` needs a whole number of milliseconds, and {found}"),
        )
    })?;
    Ok(std::time::Duration::from_millis(whole))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::spec::Spec;
    use crate::tape::Tape;

    fn deployment(spec: Spec) -> Deployment {
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
        Deployment {
            id: "t".into(),
            spec,
            endpoints,
            database_url: None,
            folder: "/tmp/x".into(),
            tape: Tape::new(),
        }
    }

    /// A target file with these capabilities, and with the template as its only file.
    fn file(capabilities: &str, template: &str) -> TargetFile {
        let text = format!(
            "name = \"t\"\ncapabilities = [{capabilities}]\n[start]\ncommand = [\"x\"]\n\
             [[start.files]]\nname = \"a.toml\"\ntemplate = '''\n{template}'''\n"
        );
        TargetFile::parse(&text, "t.toml").unwrap()
    }

    fn of_file(file: &TargetFile, spec: Spec, template: &str) -> Result<String, TargetError> {
        let ports = IndexMap::from([("main".to_string(), 4000), ("admin".to_string(), 4001)]);
        let mut renderer =
            Renderer::new(file, Path::new("gauntlet"), &deployment(spec), &ports).unwrap();
        renderer.insert_file("a.toml", Path::new("/tmp/x/a.toml"));
        renderer.render("start.files a.toml", template)
    }

    fn with(template: &str) -> Result<String, TargetError> {
        of_file(&file("", template), Spec::solo(), template)
    }

    #[test]
    fn a_template_sees_specification_endpoints_ports_and_files() {
        let text = "{{ providers[0].base_url }} {{ models[0].alias }} {{ timeouts.total_ms | seconds }} {{ file['a.toml'] }} {{ port }} {{ ports.admin }}";
        assert_eq!(
            with(text).unwrap(),
            "http://127.0.0.1:1/p1 solo 8.0 /tmp/x/a.toml 4000 4001"
        );
    }

    #[test]
    fn a_candidate_has_what_its_provider_has_and_the_timeouts_in_force() {
        let spec = Spec::pair()
            .provider_timeouts(
                "p2",
                Timeouts {
                    idle_ms: Some(70),
                    total_ms: Some(90),
                    ..Timeouts::default()
                },
            )
            .model_timeouts(
                "pair",
                Timeouts {
                    idle_ms: Some(60),
                    ..Timeouts::default()
                },
            );
        let text = "{% for c in models[0].candidates %}{{ c.base_url }} {{ c.protocol }} {{ c.timeouts.idle_ms }} {{ c.timeouts.total_ms }} {{ c.timeouts.connect_ms }};{% endfor %}";
        assert_eq!(
            of_file(&file("", text), spec, text).unwrap(),
            "http://127.0.0.1:1/p1 openai 60 8000 1000;http://127.0.0.1:1/p2 openai 60 90 1000;"
        );
    }

    #[test]
    fn one_timeout_is_the_shortest_of_those_that_the_target_claims() {
        let spec = || {
            let mut spec = Spec::solo();
            spec.timeouts.first_token_ms = Some(1_500);
            spec.timeouts.idle_ms = Some(600);
            spec
        };
        let text = "{{ timeouts.one_ms }} {{ models[0].candidates[0].timeouts.one_ms }}";
        for (capabilities, expected) in [
            ("", "8000 8000"),
            ("\"total_deadline\"", "8000 8000"),
            ("\"headers_timeout\"", "1500 1500"),
            ("\"first_token_timeout\", \"total_deadline\"", "1500 1500"),
            ("\"headers_timeout\", \"idle_timeout\"", "600 600"),
        ] {
            let rendered = of_file(&file(capabilities, text), spec(), text);
            assert_eq!(rendered.unwrap(), expected, "{capabilities}");
        }
    }

    #[test]
    fn seconds_are_exact_or_whole_and_at_least_one() {
        let text = "{{ 1500 | seconds }} {{ 1500 | ceil_seconds }} {{ 2000 | ceil_seconds }} {{ 0 | ceil_seconds }}";
        assert_eq!(with(text).unwrap(), "1.5 2 2 1");
        let error = with("{{ models[0].timeouts.total_ms | ceil_seconds }}").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("`ceil_seconds` needs a whole number"),
            "{error}"
        );
    }

    #[test]
    fn a_misspelt_name_is_an_error_with_the_line_of_the_file_and_the_nearest_name() {
        for (template, name, nearest) in [
            ("ok\n{{ timeots.total_ms }}", "`timeots` is", "`timeouts`"),
            ("ok\n{{ prot }}", "`prot` is", "`port`"),
            (
                "ok\n{{ file['b.toml'] }}",
                "`file['b.toml']` is",
                "names `a.toml`",
            ),
            (
                "ok\n{% for p in providers %}{{ p.base_ulr }}{% endfor %}",
                "`p.base_ulr` is",
                "`base_url`",
            ),
        ] {
            let error = with(template).unwrap_err().to_string();
            // the template begins in line 8, after the line of its quotes
            for words in ["t.toml, line 9, start.files a.toml", name, nearest] {
                assert!(error.contains(words), "{words}: {error}");
            }
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn sha256_is_the_hash_of_the_text() {
        assert_eq!(
            with("{{ 'abc' | sha256 }}").unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    fn rendered(target_file: &str, name: &str, spec: Spec) -> String {
        let file = TargetFile::parse(target_file, name).unwrap();
        let template = file.start.as_ref().unwrap().files[0].template.clone();
        of_file(&file, spec, &template).unwrap()
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

    /// A specification with everything that the cases of chat differ in.
    fn varied() -> Spec {
        let own = Timeouts {
            total_ms: Some(700),
            ..Timeouts::default()
        };
        let mut spec = Spec::pair()
            .model("solo", &["p1"])
            .model_timeouts("solo", own)
            .key("curie", "sk-hers")
            .key("bohr", "sk-his");
        spec.providers[1].max_in_flight = Some(3);
        spec.retry.max_attempts = 4;
        spec
    }

    #[test]
    fn portkey_is_given_a_header_of_json_that_chooses_by_the_model() {
        let text = include_str!("../../../fixtures/targets/portkey.toml");
        let file = TargetFile::parse(text, "portkey").unwrap();
        let header = of_file(&file, varied(), &file.headers["x-portkey-config"]).unwrap();
        let config: serde_json::Value = serde_json::from_str(&header).unwrap();
        assert_eq!(
            config["strategy"]["conditions"][1]["query"]["params.model"]["$eq"], "solo",
            "{header}"
        );
        assert_eq!(
            config["targets"][0]["strategy"]["mode"], "fallback",
            "{header}"
        );
        assert_eq!(
            config["targets"][0]["targets"][1]["custom_host"],
            "http://127.0.0.1:1/p2"
        );
        assert_eq!(config["targets"][1]["request_timeout"], 700, "{header}");
        assert_eq!(config["targets"][1]["retry"]["attempts"], 3, "{header}");
    }

    #[test]
    fn lm_proxy_is_given_toml_with_a_connection_for_each_alias() {
        let text = include_str!("../../../fixtures/targets/lm-proxy.toml");
        let table: toml::Table = rendered(text, "lm-proxy", varied()).parse().unwrap();
        assert_eq!(table["routing"]["solo"].as_str(), Some("solo.m-p1"));
        let timeout = &table["connections"]["solo"]["init_params"]["timeout"];
        assert_eq!(timeout.as_float(), Some(0.7));
        assert_eq!(
            table["groups"]["bohr"]["api_keys"][0].as_str(),
            Some("sk-his")
        );
        assert!(!table.contains_key("api_key_check"), "clients have keys");
    }

    #[test]
    fn modelswitch_is_given_yaml_with_priorities_and_whole_seconds() {
        let text = include_str!("../../../fixtures/targets/modelswitch.toml");
        let config: serde_json::Value =
            yaml_serde::from_str(&rendered(text, "modelswitch", varied())).unwrap();
        assert_eq!(config["models"]["pair"]["adapters"][1]["priority"], 2);
        assert_eq!(config["models"]["solo"]["adapters"][0]["timeout"], 1);
        assert_eq!(config["providers"][1]["max_concurrent"], 3);
    }

    #[test]
    fn crabllm_is_given_toml_with_all_the_weight_on_the_first_candidate() {
        let text = include_str!("../../../fixtures/targets/crabllm.toml");
        let table: toml::Table = rendered(text, "crabllm", varied()).parse().unwrap();
        let weight = |name: &str| table["providers"][name]["weight"].as_integer();
        assert_eq!((weight("pair-1"), weight("pair-2")), (Some(1), Some(0)));
        assert_eq!(
            table["providers"]["solo-1"]["timeout"].as_integer(),
            Some(1)
        );
        assert_eq!(
            table["providers"]["solo-1"]["max_retries"].as_integer(),
            Some(3)
        );
        assert_eq!(table["keys"].as_array().unwrap().len(), 2);
    }
}
