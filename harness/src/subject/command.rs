//! A gateway that the harness starts: its configuration is rendered, its process spawned, and its
//! readiness awaited.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;

use super::keys::{self, IssuedKey, KeyCommands};
use super::prepare;
use super::probe::{Seen, ask};
use super::render::Renderer;
use super::timeouts::Granularity;
use super::version::version;
use super::{
    AliasSetting, Capability, ChildProcess, Deployment, Manifest, Process, Ready, Rendered,
    RenderedFile, RunningTarget, Start, Target, TargetError, TargetFile,
};
use crate::gate::{bounded, pace, poll_until};
use crate::spec::Spec;
use crate::tape::{Event, Side};

/// The time between two checks of a target that is not ready yet.
const POLL: Duration = Duration::from_millis(10);
/// How often a program is started: another program may take its port before it binds.
const ATTEMPTS: u32 = 3;
/// The longest wait for a fixed port, which the gateway of the case before may hold while it dies.
const RELEASE: Duration = Duration::from_secs(5);

/// A target whose file has `[start]`.
#[derive(Debug)]
pub struct CommandTarget {
    file: TargetFile,
    start: Start,
    manifest: Manifest,
    gauntlet: PathBuf,
}

impl CommandTarget {
    /// Makes the target of that file; runs its version command, if it has one.
    ///
    /// # Errors
    /// [`TargetError::Definition`] if the file has no `[start]`, or if the version command is a
    /// broken template.
    pub fn new(file: TargetFile, gauntlet: PathBuf) -> Result<Self, TargetError> {
        let start = file.start.clone().ok_or_else(|| {
            TargetError::Definition(format!(
                "target {}: it has no [start]; add the command that starts it",
                file.name
            ))
        })?;
        let mut manifest = file.manifest();
        if manifest.version.is_none() {
            manifest.version = version(&file, &gauntlet)?;
        }
        Ok(Self {
            file,
            start,
            manifest,
            gauntlet,
        })
    }

    /// Renders everything that the gateway would be given on these ports, `main` among them, and
    /// writes its files into the folder of the deployment. Nothing is started. The headers are
    /// those that every request needs, without any that needs an answer of the running gateway.
    ///
    /// # Errors
    /// [`TargetError::Definition`] for a wrong template; [`TargetError::Start`] if a file cannot be
    /// written.
    pub fn render(
        &self,
        deployment: &Deployment,
        ports: &IndexMap<String, u16>,
    ) -> Result<(Rendered, Vec<(String, String)>), TargetError> {
        let Prepared {
            rendered, headers, ..
        } = self.prepare(deployment, ports)?;
        Ok((rendered, headers))
    }

    /// Makes the renderer of a deployment, and names the files that its templates know.
    fn renderer(
        &self,
        deployment: &Deployment,
        ports: &IndexMap<String, u16>,
    ) -> Result<(Renderer<'_>, Vec<NamedFile<'_>>), TargetError> {
        let mut renderer = Renderer::new(&self.file, &self.gauntlet, deployment, ports)?;
        let mut files = Vec::new();
        for file in &self.start.files {
            for element in renderer.elements(file.each) {
                let name = renderer.render_for(element.as_ref(), "start.files name", &file.name)?;
                let path = deployment.folder.join(&name);
                if !path.starts_with(&deployment.folder) || name.contains("..") {
                    return Err(TargetError::Definition(format!(
                        "target file {}: the file name `{}` becomes `{name}`, which leaves the folder of \
                         the deployment; use names without a slash at the beginning and without `..`",
                        self.file.origin, file.name
                    )));
                }
                renderer.insert_file(&name, &path);
                files.push((name, path, &file.template, element));
            }
        }
        Ok((renderer, files))
    }

    /// Runs a command of `[keys]`, whose templates know one value more.
    async fn key_command(
        &self,
        deployment: &Deployment,
        command: impl Fn(&KeyCommands) -> &[String],
        (name, value): (&str, serde_json::Value),
    ) -> Result<(&KeyCommands, String), TargetError> {
        let Some(keys) = &self.file.keys else {
            return Err(TargetError::NotSupported(format!(
                "target {}: it has no [keys]; add the commands that make and revoke a key",
                self.file.name
            )));
        };
        let (mut renderer, _) = self.renderer(deployment, &IndexMap::new())?;
        renderer.know(name, value);
        let words = command(keys)
            .iter()
            .map(|word| renderer.render("keys", word))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((keys, keys::output(&words).await?))
    }

    /// Renders everything that the gateway is given, and writes its files.
    fn prepare(
        &self,
        deployment: &Deployment,
        ports: &IndexMap<String, u16>,
    ) -> Result<Prepared<'_>, TargetError> {
        let start = &self.start;
        let (renderer, files) = self.renderer(deployment, ports)?;
        let mut rendered = Rendered::default();
        for (name, path, template, element) in files {
            let what = format!("the template of {name}");
            let text = renderer.render_for(element.as_ref(), &what, template)?;
            let made = path
                .parent()
                .map_or(Ok(()), std::fs::create_dir_all)
                .and_then(|()| std::fs::write(&path, &text));
            made.map_err(|error| {
                TargetError::Start(format!(
                    "cannot write {}: {error}; make room in the temporary folder, or set TMPDIR",
                    path.display()
                ))
            })?;
            rendered.files.push(RenderedFile { name, text });
        }
        rendered.command = start
            .command
            .iter()
            .map(|word| renderer.render("start.command", word))
            .collect::<Result<_, _>>()?;
        for (name, value) in &start.env {
            let value = renderer.render(&format!("start.env.{name}"), value)?;
            rendered.env.insert(name.clone(), value);
        }
        let more = renderer.render("start.env_template", &start.env_template)?;
        for line in more.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let Some((name, value)) = line.split_once('=').filter(|(name, _)| !name.is_empty())
            else {
                return Err(TargetError::Definition(format!(
                    "target file {}: start.env_template yields the line `{line}`; write NAME=value in \
                     each line",
                    self.file.origin
                )));
            };
            rendered.env.insert(name.trim().into(), value.into());
        }
        let headers = self.headers(&renderer, |template| !template.contains("captured"))?;
        Ok(Prepared {
            rendered,
            headers,
            renderer,
        })
    }

    /// Renders such headers of the target file.
    fn headers(
        &self,
        renderer: &Renderer<'_>,
        such: impl Fn(&str) -> bool,
    ) -> Result<Vec<(String, String)>, TargetError> {
        let such = self.file.headers.iter().filter(|(_, value)| such(value));
        such.map(|(name, value)| {
            let value = renderer.header(None, &format!("headers.{name}"), value)?;
            Ok((name.clone(), value))
        })
        .collect()
    }

    fn spawn(
        &self,
        rendered: &Rendered,
        deployment: &Deployment,
    ) -> Result<ChildProcess, TargetError> {
        let (program, arguments) = rendered.command.split_first().ok_or_else(|| {
            TargetError::Definition(format!(
                "target {}: start.command is empty; give the program and its arguments",
                self.file.name
            ))
        })?;
        let env: Vec<(String, String)> = rendered
            .env
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        ChildProcess::spawn(
            program,
            arguments,
            &env,
            &self.start.unset,
            &deployment.folder.join("target.log"),
            &deployment.tape,
        )
        .map_err(|error| {
            let hint = if self.start.hint.is_empty() {
                String::new()
            } else {
                format!("; {}", self.start.hint)
            };
            TargetError::Start(format!("cannot start {program}: {error}{hint}"))
        })
    }

    fn granularity(&self) -> Granularity {
        let declared = &self.manifest.capabilities;
        Granularity {
            per_model: declared.contains(&Capability::TimeoutPerModel),
            unit_ms: self.file.behaviour.timeout_unit_ms,
        }
    }

    /// Returns the ports of one start by their names, `main` among them. A fixed port is awaited
    /// for as long as the gateway of the case before may need to die.
    async fn ports(&self) -> Result<IndexMap<String, u16>, TargetError> {
        let mut wanted = self.start.ports.clone();
        wanted.entry("main".into()).or_insert(0);
        // all are held until each has a port, so that they differ
        let mut held = Vec::new();
        for (name, port) in &mut wanted {
            if *port == 0 {
                let (free, listener) = free_port()?;
                *port = free;
                held.push(listener);
                continue;
            }
            let free = poll_until(|| (!occupied(*port)).then_some(()));
            if bounded(RELEASE, free).await.is_none() {
                return Err(TargetError::Start(format!(
                    "another program listens on port {port}, which start.ports.{name} of the target \
                     file fixes; end that program, or give 0 for any free port"
                )));
            }
        }
        Ok(wanted)
    }
}

/// A file that is written before the start: its name, path and template, and the element of the
/// list that it is rendered for.
type NamedFile<'a> = (
    String,
    PathBuf,
    &'a String,
    Option<(super::Each, serde_json::Value)>,
);

/// What a gateway is given, before it is started.
struct Prepared<'a> {
    rendered: Rendered,
    /// The headers that need nothing of `[[prepare]]`.
    headers: Vec<(String, String)>,
    renderer: Renderer<'a>,
}

#[async_trait]
impl Target for CommandTarget {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn shared(&self) -> bool {
        self.file.shared
    }

    fn per_alias(&self) -> BTreeSet<AliasSetting> {
        self.file.per_alias.clone()
    }

    fn one_at_a_time(&self) -> bool {
        self.start.has_fixed_ports()
    }

    fn accepts(&self, spec: &Spec) -> Result<(), String> {
        self.granularity().accepts(spec)
    }

    fn adapted(&self, mut spec: Spec) -> Spec {
        if !self.manifest().capabilities.contains(&Capability::Keys) {
            // its clients present what [headers] says
            spec.keys.clear();
        }
        self.granularity().adapt(&mut spec);
        spec
    }

    fn why_not(&self, capability: Capability) -> Option<String> {
        self.file.not_supported_reason.get(&capability).cloned()
    }

    async fn add_key(
        &self,
        deployment: &Deployment,
        tenant: &str,
    ) -> Result<IssuedKey, TargetError> {
        let tenant = ("tenant", tenant.into());
        let (keys, output) = self
            .key_command(deployment, |keys| &keys.add, tenant)
            .await?;
        keys.issued(&output).map_err(|text| {
            TargetError::Definition(format!(
                "target file {}: keys.add wrote nothing after `{text}`; correct token_after and id_after",
                self.file.origin
            ))
        })
    }

    async fn revoke_key(
        &self,
        deployment: &Deployment,
        key: &IssuedKey,
    ) -> Result<(), TargetError> {
        let known = serde_json::json!({ "id": key.id, "token": key.token });
        self.key_command(deployment, |keys| &keys.revoke, ("key", known))
            .await
            .map(drop)
    }

    async fn start(&self, deployment: Deployment) -> Result<RunningTarget, TargetError> {
        let mut attempt = 1;
        loop {
            let ports = self.ports().await?;
            let Prepared {
                rendered,
                headers,
                mut renderer,
            } = self.prepare(&deployment, &ports)?;
            let process = self.spawn(&rendered, &deployment)?;
            let port = ports.get("main").copied().unwrap_or_default();
            match self.until_ready(&process, port, &headers).await? {
                Started::Ready(address) => {
                    prepare::all(&self.file, &mut renderer, &ports, &address).await?;
                    let headers = self.headers(&renderer, |_| true)?;
                    return Ok(self.running(&address, process, &deployment, rendered, headers));
                }
                Started::Ended(_)
                    if attempt < ATTEMPTS
                        && (ports.values().any(|port| occupied(*port))
                            || process.log().to_lowercase().contains("in use")) =>
                {
                    let ports: Vec<String> = ports.values().map(u16::to_string).collect();
                    let what = format!(
                        "another program took port {}; the gateway is started again",
                        ports.join(" or ")
                    );
                    deployment.tape.record(Side::Target, Event::Target { what });
                    attempt += 1;
                }
                Started::Ended(reason) => return Err(reason),
            }
        }
    }
}

/// How a start ended.
enum Started {
    /// The gateway is ready at this address.
    Ready(String),
    /// The process ended before it was ready.
    Ended(TargetError),
}

impl CommandTarget {
    /// Waits for the readiness or for the end of the process, whichever comes first. Both futures
    /// only observe, so that dropping one loses nothing.
    async fn until_ready(
        &self,
        process: &ChildProcess,
        port: u16,
        headers: &[(String, String)],
    ) -> Result<Started, TargetError> {
        let mut seen = Seen::Unannounced;
        let limit = Duration::from_millis(self.file.ready.timeout_ms);
        let fallback = format!("127.0.0.1:{port}");
        tokio::select! {
            // if the process has ended, whatever answers at the address is another program
            biased;
            how = process.until_ended() => Ok(Started::Ended(TargetError::NotReady(format!(
                "{} {how} before it was ready; its last lines:\n{}",
                self.file.name,
                indented(&process.log_tail())
            )))),
            address = bounded(limit, ready(process, &self.file.ready, &fallback, headers, &mut seen)) => {
                address.map(Started::Ready).ok_or_else(|| self.not_ready(process, &seen))
            }
        }
    }

    fn running(
        &self,
        address: &str,
        process: ChildProcess,
        deployment: &Deployment,
        rendered: Rendered,
        headers: Vec<(String, String)>,
    ) -> RunningTarget {
        deployment.tape.record(
            Side::Target,
            Event::Target {
                what: format!("ready at {address}"),
            },
        );
        RunningTarget {
            base_url: format!(
                "http://{address}{}",
                self.file.base_path.trim_end_matches('/')
            ),
            model_prefix: String::new(),
            headers,
            rendered: Arc::new(rendered),
            process: Some(Box::new(process)),
        }
    }

    fn not_ready(&self, process: &ChildProcess, seen: &Seen) -> TargetError {
        let Ready {
            path,
            status,
            timeout_ms,
            announced,
        } = &self.file.ready;
        let wanted = match announced {
            Some(words) => {
                format!("write \"{words}http://…\" and answer GET {path} with {status}")
            }
            None => format!("answer GET {path} with {status}"),
        };
        TargetError::NotReady(format!(
            "{} is not ready: it has to {wanted} within {timeout_ms} ms (ready.timeout_ms), and {seen}; \
             its last lines:\n{}",
            self.file.name,
            indented(&process.log_tail())
        ))
    }
}

/// Waits until the target has written where it listens and answers there. This may take
/// forever: the caller bounds it. Cancel safe.
async fn ready(
    process: &ChildProcess,
    ready: &Ready,
    fallback: &str,
    headers: &[(String, String)],
    seen: &mut Seen,
) -> String {
    loop {
        let address = match &ready.announced {
            Some(words) => announced(&process.log(), words),
            None => Some(fallback.to_string()),
        };
        if let Some(address) = address {
            *seen = ask(&address, &ready.path, headers, Duration::from_secs(5)).await;
            if matches!(seen, Seen::Status(status, _) if ready.status.holds(*status)) {
                return address;
            }
        }
        pace(POLL).await;
    }
}

/// Returns `host:port` from the first complete line that holds `words` followed by a URL.
fn announced(log: &str, words: &str) -> Option<String> {
    let complete = &log[..log.rfind('\n')?];
    let line = complete.lines().find(|line| line.contains(words))?;
    let url = line.split_once(words)?.1.strip_prefix("http://")?;
    Some(
        url.split(|c: char| c == '/' || c.is_whitespace())
            .next()?
            .to_string(),
    )
}

/// Returns a port that is free while the listener is held.
fn free_port() -> Result<(u16, TcpListener), TargetError> {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| Ok((listener.local_addr()?.port(), listener)));
    free.map_err(|error| {
        TargetError::Start(format!(
            "there is no free port on 127.0.0.1: {error}; end programs that hold many ports"
        ))
    })
}

/// Returns whether a program listens on the port now.
fn occupied(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

fn indented(text: &str) -> String {
    if text.is_empty() {
        "  (it wrote nothing)".to_string()
    } else {
        text.lines()
            .map(|line| format!("  {line}"))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::spec::Spec;
    use crate::tape::Tape;
    use indexmap::IndexMap;

    fn target(command: &str) -> CommandTarget {
        let text = format!(
            "name = \"t\"\n[start]\ncommand = [\"sh\", \"-c\", '''{command}''']\n[ready]\nannounced = \"listening on \"\ntimeout_ms = 400\n"
        );
        CommandTarget::new(
            TargetFile::parse(&text, "t.toml").unwrap(),
            "gauntlet".into(),
        )
        .unwrap()
    }

    async fn start(command: &str) -> Result<RunningTarget, TargetError> {
        let folder = tempfile::tempdir().unwrap();
        target(command).start(deployment(&folder)).await
    }

    fn deployment(folder: &tempfile::TempDir) -> Deployment {
        Deployment {
            id: "t".into(),
            spec: Spec::solo(),
            endpoints: IndexMap::new(),
            database_url: None,
            folder: folder.path().to_path_buf(),
            tape: Tape::new(),
        }
    }

    #[tokio::test]
    async fn a_target_that_ends_early_is_reported_with_its_exit_code_and_last_lines() {
        let error = start("echo no such model >&2; exit 3")
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("exited with code 3") && error.contains("no such model"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_gateway_whose_port_was_taken_is_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let ports = folder.path().join("ports");
        // reports a taken port twice, then stays up without answering
        let script = format!(
            "echo {{{{ port }}}} >>{0}; if [ $(wc -l <{0}) -lt 3 ]; then echo Address already in use >&2; exit 1; fi; echo third; exec tail -f /dev/null",
            ports.display()
        );
        let error = target(&script)
            .start(deployment(&folder))
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("within 400 ms") && error.contains("third"),
            "{error}"
        );
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(occupied(listener.local_addr().unwrap().port()));
    }

    #[tokio::test]
    async fn a_target_that_never_becomes_ready_is_reported_with_what_was_expected() {
        let error = start("echo starting; exec tail -f /dev/null")
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("GET /health/live")
                && error.contains("400 ms")
                && error.contains("starting"),
            "{error}"
        );
    }

    /// Starts a target with these lines of TOML after its name, and reads what it was given.
    async fn prepared(
        toml: &str,
        spec: Spec,
    ) -> Result<(Rendered, Vec<(String, String)>, tempfile::TempDir), String> {
        let file = TargetFile::parse(&format!("name = \"t\"\n{toml}"), "t.toml").unwrap();
        let target = CommandTarget::new(file, "gauntlet".into()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let deployment = Deployment {
            endpoints: spec
                .providers
                .iter()
                .map(|p| (p.name.clone(), format!("http://127.0.0.1:1/{}", p.name)))
                .collect(),
            spec,
            ..deployment(&folder)
        };
        let ports = target.ports().await.map_err(|error| error.to_string())?;
        match target.prepare(&deployment, &ports) {
            Ok(prepared) => Ok((prepared.rendered, prepared.headers, folder)),
            Err(error) => Err(error.to_string()),
        }
    }

    #[tokio::test]
    async fn environment_files_and_headers_loop_over_providers() {
        let toml = r#"
            [headers]
            authorization = "Bearer {{ providers[0].api_key }}"
            x-config = """
              [
              {% for p in providers %}
                "{{ p.base_url }}"{{ "," if not loop.last }}
              {% endfor %}]
            """
            [start]
            command = ["x", "--folder", "{{ folder }}", "--config", "{{ file['p/p2.json'] }}"]
            env = { FIXED = "{{ providers[1].name }}" }
            env_template = """
            {% for p in providers %}
            KEY_{{ p.name | upper }}={{ p.api_key }}=
            {% endfor %}
            """
            [[start.files]]
            name = "p/{{ provider.name }}.json"
            each = "provider"
            template = "{{ provider.base_url }} {{ file['p/p1.json'] }}"
        "#;
        let (rendered, headers, folder) = prepared(toml, Spec::pair()).await.unwrap();
        let Rendered {
            env,
            files,
            command,
        } = rendered;
        let key = |n| format!("sk-canary-provider-p{n}-7f3a91c5e2d84b60");
        assert_eq!(env["FIXED"], "p2");
        assert_eq!(env["KEY_P1"], format!("{}=", key(1)));
        assert_eq!(env["KEY_P2"], format!("{}=", key(2)));
        let first = folder.path().join("p/p1.json").display().to_string();
        assert_eq!(files[1].name, "p/p2.json");
        assert_eq!(files[1].text, format!("http://127.0.0.1:1/p2 {first}"));
        assert_eq!(std::fs::read_to_string(&first).unwrap(), files[0].text);
        assert_eq!(
            command[4],
            folder.path().join("p/p2.json").display().to_string()
        );
        assert_eq!(
            headers,
            [
                ("authorization".to_string(), format!("Bearer {}", key(1))),
                (
                    "x-config".to_string(),
                    r#"["http://127.0.0.1:1/p1","http://127.0.0.1:1/p2"]"#.to_string()
                ),
            ]
        );
    }

    #[tokio::test]
    async fn a_line_of_the_environment_without_a_name_is_refused() {
        let toml = "[start]\ncommand = [\"x\"]\nenv_template = \"A=1\\nnonsuch\"\n";
        let error = prepared(toml, Spec::solo()).await.err().unwrap();
        assert!(
            error.contains("`nonsuch`") && error.contains("NAME=value"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_gateway_has_several_ports_and_may_have_a_fixed_one() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let fixed = listener.local_addr().unwrap().port();
        drop(listener);
        let toml = format!(
            "[start]\ncommand = [\"x\", \"{{{{ port }}}}\", \"{{{{ ports.admin }}}}\"]\n\
             ports = {{ main = {fixed}, admin = 0 }}\n"
        );
        let (first, _, _folder) = prepared(&toml, Spec::solo()).await.unwrap();
        let command = first.command;
        assert_eq!(command[1], fixed.to_string());
        assert!(command[2].parse::<u16>().unwrap() > 0 && command[2] != command[1]);
        let file = TargetFile::parse(&format!("name = \"t\"\n{toml}"), "t.toml").unwrap();
        assert!(
            CommandTarget::new(file, "gauntlet".into())
                .unwrap()
                .one_at_a_time()
        );
    }

    #[tokio::test]
    async fn a_gateway_that_is_not_ready_is_reported_with_the_status_that_it_gave() {
        let program = r#"import http.server as h,sys
class R(h.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers.get('authorization') == 'Bearer k'
        self.send_response(403 if known else 401); self.end_headers()
h.HTTPServer(('127.0.0.1', int(sys.argv[1])), R).serve_forever()"#;
        let with = |status: &str, timeout_ms: u64| {
            let file = TargetFile::parse(
                &format!(
                    "name = \"t\"\n[start]\ncommand = [\"python3\", \"-c\", '''{program}''', \"{{{{ port }}}}\"]\n\
                     [headers]\nauthorization = \"Bearer k\"\n\
                     [ready]\nstatus = {status}\ntimeout_ms = {timeout_ms}\n"
                ),
                "t.toml",
            )
            .unwrap();
            CommandTarget::new(file, "gauntlet".into()).unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        assert!(
            with("[200, 403]", 20_000)
                .start(deployment(&folder))
                .await
                .is_ok()
        );
        let error = with("200", 3_000).start(deployment(&folder)).await;
        let error = error.err().unwrap().to_string();
        assert!(error.contains("answered with 403"), "{error}");
        let error = start("exec tail -f /dev/null")
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("has not written where it listens"),
            "{error}"
        );
    }

    /// A gateway that mints keys at its admin port, and wants one of them at its own.
    const MINT: &str = r#"import http.server as h,json,sys,threading
class Admin(h.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['content-length'])))
        known = self.headers['authorization'] == 'Bearer master'
        answer = json.dumps({'keys': [{'value': 'minted-for-' + body['name']}]}).encode()
        self.send_response(201 if known else 401); self.send_header('content-length', str(len(answer)))
        self.end_headers(); self.wfile.write(answer)
class Main(h.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
serve = lambda port, what: h.HTTPServer(('127.0.0.1', int(port)), what).serve_forever()
threading.Thread(target=serve, args=(sys.argv[2], Admin), daemon=True).start()
serve(sys.argv[1], Main)"#;

    async fn minted(step: &str) -> Result<Vec<(String, String)>, String> {
        let text = format!(
            "name = \"t\"\n[headers]\nx-fixed = \"1\"\nauthorization = \"Bearer {{{{ captured.key }}}}\"\n\
             [start]\ncommand = [\"python3\", \"-c\", '''{MINT}''', \"{{{{ port }}}}\", \
             \"{{{{ ports.admin }}}}\"]\nports = {{ admin = 0 }}\n[ready]\ntimeout_ms = 20000\n\
             [[prepare]]\nport = \"admin\"\npath = \"/keys\"\n\
             body = '''{{{{ {{\"name\": models[0].alias}} | tojson }}}}'''\n{step}"
        );
        let file = TargetFile::parse(&text, "t.toml").unwrap();
        let target = CommandTarget::new(file, "gauntlet".into()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let running = target.start(deployment(&folder)).await;
        running
            .map(|running| running.headers)
            .map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_step_of_preparation_mints_the_key_of_the_clients() {
        let master = "headers = { authorization = \"Bearer master\" }\n";
        let headers = minted(&format!("{master}capture = {{ key = \"/keys/0/value\" }}")).await;
        let expected = [
            ("authorization", "Bearer minted-for-solo"),
            ("x-fixed", "1"),
        ];
        assert_eq!(
            headers.unwrap(),
            expected.map(|(name, value)| (name.to_string(), value.to_string()))
        );
        let error = minted("capture = { key = \"/keys/0/value\" }")
            .await
            .unwrap_err();
        for words in [
            "POST http://127.0.0.1:",
            "/keys",
            "answered with 401",
            "t.toml",
        ] {
            assert!(error.contains(words), "{words}: {error}");
        }
        let error = minted(&format!("{master}capture = {{ key = \"/key\" }}"))
            .await
            .unwrap_err();
        assert!(
            error.contains("nothing at the JSON pointer `/key`"),
            "{error}"
        );
        let error = minted(master).await.unwrap_err();
        assert!(error.contains("`captured.key` is undefined"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let file = TargetFile::parse(
            "name = \"t\"\n[start]\ncommand = [\"no-such-gateway\"]\nhint = \"pip install it\"\n",
            "t.toml",
        )
        .unwrap();
        let target = CommandTarget::new(file, "gauntlet".into()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let error = target
            .start(deployment(&folder))
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("no-such-gateway") && error.contains("pip install it"),
            "{error}"
        );
    }

    #[test]
    fn the_address_is_read_from_a_complete_line_only() {
        assert_eq!(
            announced("x\nlistening on http://127.0.0.1:80", "listening on "),
            None
        );
        assert_eq!(
            announced(
                "x\nlistening on http://127.0.0.1:8080/ now\n",
                "listening on "
            )
            .as_deref(),
            Some("127.0.0.1:8080")
        );
    }
}
