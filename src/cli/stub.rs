//! `gauntlet stub`: answers instead of LLM providers on one port, as scripts say.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use gauntlet_harness::gate::Gates;
use gauntlet_harness::llm::{Protocol, ScriptSource, fixture};
use gauntlet_harness::plan::{Listen, STEPS};
use gauntlet_harness::tape::Tape;
use gauntlet_harness::wire::{Answer, Controlled, Request, Source, Wire, control_routes};
use tokio::signal::unix::{SignalKind, signal};

use super::CommandError;

/// How many entries of the tape a stub keeps for its control routes.
const KEPT: usize = 10_000;

/// The script that `gauntlet stub --help` shows.
const SCRIPT: &str = "\
rules:
  - match: { model: gpt-4o, user_says: capital of France }
    answers:                                  # in order, for each prompt
      - { error: 503, retry_after: \"1\" }
      - reply: Paris.
        usage: { prompt: 12, completion: 2 }
        plan: { steps: [head, { events: 2 }, { hold: later }, rest] }
  - match: { tool_named: get_weather, streaming: true }
    answers:
      - tool_calls: [{ name: get_weather, arguments: { city: Paris } }]
  - match: {}                                 # every other chat
    answers:
      - echo: true
";

/// What `gauntlet stub --help` shows below the options.
fn example() -> String {
    let indented = |text: &str| -> String {
        let lines = text.lines();
        lines.map(|line| format!("  {line}\n")).collect()
    };
    let steps = STEPS.map(|(form, what)| format!("{form:42} {what}\n"));
    format!(
        "A script has rules; the first rule that matches a request answers it:\n\n{}\nThe steps of \
         a plan, in order; one with a value is written in braces, as {{ hold: later }}:\n\n{}\nTests \
         in any language control the stub over HTTP:\n\n{}",
        indented(SCRIPT),
        indented(&steps.concat()),
        indented(&control_routes()).trim_end()
    )
}

/// Arguments of `gauntlet stub`.
#[derive(Debug, clap::Args)]
#[command(after_help = example())]
pub(super) struct Args {
    /// Listen at this address; port 0 takes any free port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:11435", value_parser = address)]
    listen: SocketAddr,
    /// Answer as this YAML script says. Give it more than once to join scripts: the first rule that
    /// matches a request answers it. Without a script the stub echoes every chat. SIGHUP makes the
    /// stub read its scripts again
    #[arg(long = "script", value_name = "FILE")]
    scripts: Vec<PathBuf>,
}

/// Reads an address to listen at.
fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "write an IP address and a port, such as 127.0.0.1:11435")
}

/// Answers as the scripts say that were read last, and writes a line to the console for each
/// request that no rule answers.
struct Console(RwLock<Arc<ScriptSource>>);

impl Console {
    fn source(&self) -> Arc<ScriptSource> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the scripts again. Answers are counted from the first one again; if a script is wrong,
    /// those that were read before stay.
    fn reload(&self, scripts: &[PathBuf]) {
        let line = match fixture::source(scripts) {
            Ok((source, _)) => {
                *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(source);
                "reloaded   the scripts were read again, and their answers begin anew".to_string()
            }
            Err(error) => format!("not reloaded, the scripts from before stay: {error}"),
        };
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

#[async_trait]
impl Source for Console {
    async fn answer(&self, request: &Request) -> Answer {
        let answer = self.source().answer(request).await;
        if let Some(reason) = &answer.unmatched {
            // a console that is gone must not end the stub
            let _ = writeln!(std::io::stderr(), "unmatched  {reason}");
        }
        answer
    }

    fn counts(&self, request: &Request) -> bool {
        self.source().counts(request)
    }
}

/// Serves until it is interrupted or terminated. SIGHUP makes it read its scripts again.
pub(super) fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let (source, gates) =
        fixture::source(&args.scripts).map_err(|error| CommandError(error.to_string()))?;
    super::runtime()?.block_on(async {
        let tape = Tape::keeping(KEPT);
        let case = Gates::new(tape.clone());
        let unheard = |error: std::io::Error| {
            CommandError(format!(
                "cannot wait for signals ({error}); start the stub again"
            ))
        };
        let mut terminated = signal(SignalKind::terminate()).map_err(unheard)?;
        let mut hung_up = signal(SignalKind::hangup()).map_err(unheard)?;
        let console = Arc::new(Console(RwLock::new(Arc::new(source))));
        let source = Arc::new(Controlled::new(console.clone(), tape.clone(), case.clone()));
        let wire = Wire::bind_at(args.listen, "stub", tape, case, source, Listen::Serve);
        let wire = wire.await.map_err(|error| {
            CommandError(format!(
                "cannot listen on {} ({error}): another program may use the address; choose \
                 another one with --listen",
                args.listen
            ))
        })?;
        let root = wire.root_url();
        for protocol in Protocol::all() {
            say!("{:8} {root}{}", protocol.title(), protocol.base_path());
        }
        say!("Control  {root}/_gauntlet");
        for name in gates {
            say!("waits    POST {root}/_gauntlet/gates/{name}/open");
        }
        loop {
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => {
                    return interrupted.map(|()| ExitCode::SUCCESS).map_err(unheard);
                }
                _ = terminated.recv() => return Ok(ExitCode::SUCCESS),
                Some(()) = hung_up.recv() => console.reload(&args.scripts),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use gauntlet_harness::llm::fixture::Script;

    #[test]
    fn the_script_of_the_help_is_a_script() {
        let script = Script::parse(super::SCRIPT, Path::new("help.yaml"));
        assert!(script.is_ok(), "{script:?}");
    }
}
