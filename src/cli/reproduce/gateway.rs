//! The gateway of a reproduction: its configuration for this case alone, on fixed ports, and how it
//! is started.

use std::path::Path;

use gauntlet_harness::spec::{DatabaseNeed, Spec};
use gauntlet_harness::subject::{
    Capability, CommandTarget, Deployment, Rendered, Statuses, TargetFile,
};
use gauntlet_harness::tape::Tape;
use indexmap::IndexMap;
use serde_json::{Value, json};

use super::Reproduction;

/// How the client finds the gateway, and how it is started.
pub(super) struct Gateway {
    /// Its root URL.
    pub(super) url: String,
    /// Whether the folder has a start script.
    pub(super) is_started: bool,
    /// Whether the target file sends requests to it before the first case, which nobody sends here.
    pub(super) is_prepared: bool,
    /// The names of its configuration files.
    pub(super) files: Vec<String>,
    /// What to do if its program is not installed.
    pub(super) hint: String,
    headers: Vec<(String, String)>,
    ready: Option<(String, Vec<u16>)>,
    ready_ms: u64,
}

impl Gateway {
    /// Renders the configuration into the folder `gateway`, if the target of the run has one.
    /// `target` is another target to take.
    ///
    /// # Errors
    /// A sentence, if a target file is wrong or a file cannot be written.
    pub(super) fn render(
        reproduction: &Reproduction<'_>,
        target: Option<&str>,
        folder: &Path,
    ) -> Result<Self, String> {
        let command = &reproduction.record.command;
        let elsewhere = |url: Option<&str>| Self {
            url: url.map_or_else(
                || format!("http://127.0.0.1:{}", reproduction.ports.gateway),
                |url| url.trim_end_matches('/').to_string(),
            ),
            is_started: false,
            is_prepared: false,
            files: Vec::new(),
            hint: String::new(),
            headers: Vec::new(),
            ready: None,
            ready_ms: 60_000,
        };
        let name = target.or_else(|| after(command, "--target")).unwrap_or("");
        if name.contains("://") {
            return Ok(elsewhere(Some(name)));
        }
        let file = match super::super::run::target_file(name, None) {
            Ok(file) => file,
            Err(error) if target.is_some() => return Err(error),
            // the report may come from another machine
            Err(_) => return Ok(elsewhere(None)),
        };
        if let Some(url) = &file.url {
            return Ok(elsewhere(Some(url)));
        }
        let Some(spec) = &reproduction.spec else {
            return Ok(elsewhere(None));
        };
        Self::rendered(reproduction, file, spec.clone(), folder)
    }

    fn rendered(
        reproduction: &Reproduction<'_>,
        mut file: TargetFile,
        mut spec: Spec,
        folder: &Path,
    ) -> Result<Self, String> {
        // the version is that of the report; nobody has to be asked for it
        let version = reproduction.record.target.version.clone();
        file.version = Some(version.unwrap_or_default());
        if !file.capabilities.contains(&Capability::UrlCredentials) {
            for provider in &mut spec.providers {
                provider.userinfo = None;
            }
        }
        let folder = super::make_folder(&folder.join("gateway"))?;
        let endpoints: IndexMap<String, String> = reproduction
            .providers
            .iter()
            .map(|provider| {
                let user = spec
                    .providers
                    .iter()
                    .find(|known| known.name == provider.name)
                    .and_then(|known| known.userinfo.as_deref());
                let url = match user {
                    Some(user) => provider
                        .base_url()
                        .replacen("://", &format!("://{user}@"), 1),
                    None => provider.base_url(),
                };
                (provider.name.clone(), url)
            })
            .collect();
        let main = reproduction.ports.gateway;
        let mut ports = file
            .start
            .as_ref()
            .map(|start| start.ports.clone())
            .unwrap_or_default();
        ports.entry("main".into()).or_insert(0);
        let mut next = reproduction.ports.provider(reproduction.providers.len());
        for (name, port) in &mut ports {
            match (*port, name.as_str()) {
                (0, "main") => *port = main,
                (0, _) => {
                    *port = next;
                    next = next.saturating_add(1);
                }
                _ => {}
            }
        }
        let main = ports.get("main").copied().unwrap_or(main);
        let database_url = (spec.database != DatabaseNeed::None)
            .then(|| format!("sqlite://{}", folder.join("gateway.db").display()));
        let deployment = Deployment {
            id: reproduction.outcome.id.to_lowercase(),
            spec,
            endpoints,
            database_url,
            folder: folder.clone(),
            tape: Tape::new(),
        };
        let is_prepared = !file.prepare.is_empty();
        let (ready, start, base_path) = (
            file.ready.clone(),
            file.start.clone(),
            file.base_path.trim_end_matches('/').to_string(),
        );
        let target =
            CommandTarget::new(file, "gauntlet".into()).map_err(|error| error.to_string())?;
        let (rendered, headers) = target
            .render(&deployment, &ports)
            .map_err(|error| error.to_string())?;
        // a gateway that announces its address was to choose a port by itself
        let fixed = |text: &str| {
            let text = text.replace(&folder.display().to_string(), ".");
            match ready.announced {
                Some(_) => text.replace("127.0.0.1:0", &format!("127.0.0.1:{main}")),
                None => text,
            }
        };
        let unset = start.as_ref().map_or(&[][..], |start| &start.unset);
        write(&folder, &rendered, unset, &fixed)?;
        let status = match ready.status {
            Statuses::One(one) => vec![one],
            Statuses::Any(any) => any,
        };
        Ok(Self {
            url: format!("http://127.0.0.1:{main}{base_path}"),
            is_started: true,
            is_prepared,
            files: rendered.files.into_iter().map(|file| file.name).collect(),
            hint: start.map(|start| start.hint).unwrap_or_default(),
            headers,
            ready: Some((ready.path, status)),
            ready_ms: ready.timeout_ms.max(60_000),
        })
    }

    /// What the client has to know.
    pub(super) fn as_json(&self) -> Value {
        let headers: Vec<(String, &String)> = self
            .headers
            .iter()
            .map(|(name, value)| (name.to_lowercase(), value))
            .collect();
        let ready = self
            .ready
            .as_ref()
            .map(|(path, status)| json!({"path": path, "status": status}));
        json!({
            "url": self.url,
            "headers": headers,
            "ready": ready,
            "ready_ms": self.ready_ms,
        })
    }
}

/// Returns the word after this one in a command.
fn after<'a>(command: &'a str, option: &str) -> Option<&'a str> {
    let mut words = command.split_whitespace();
    words.find(|word| *word == option)?;
    words.next()
}

/// Writes the configuration files again with what `fixed` changes, and the start script.
fn write(
    folder: &Path,
    rendered: &Rendered,
    unset: &[String],
    fixed: &dyn Fn(&str) -> String,
) -> Result<(), String> {
    let mut script = String::from(
        "#!/bin/sh\n# Starts the gateway with the configuration of the case.\n\
         cd \"$(dirname \"$0\")\" || exit 1\n",
    );
    for name in unset {
        script.push_str(&format!("unset {name}\n"));
    }
    for (name, value) in &rendered.env {
        script.push_str(&format!("export {name}={}\n", quoted(&fixed(value))));
    }
    let words: Vec<String> = rendered
        .command
        .iter()
        .map(|word| quoted(&fixed(word)))
        .collect();
    script.push_str(&format!(
        "echo $$ > gateway.pid\nexec {}\n",
        words.join(" ")
    ));
    let files = rendered
        .files
        .iter()
        .map(|file| (folder.join(&file.name), fixed(&file.text)))
        .chain([(folder.join("start.sh"), script)]);
    for (path, text) in files {
        super::write_file(&path, &text)?;
    }
    Ok(())
}

/// Returns a word as a shell reads it.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::{after, quoted};

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, expected) in [
            ("--port=1", "--port=1"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", "'it'\\''s'"),
            ("$HOME", "'$HOME'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }

    #[test]
    fn the_target_of_a_command_is_found() {
        let command = "gauntlet run --target litellm --strict";
        assert_eq!(after(command, "--target"), Some("litellm"));
        assert_eq!(after(command, "--manifest"), None);
    }
}
