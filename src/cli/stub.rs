//! `gauntlet stub`: answers instead of LLM providers on one port, as scripts say.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use gauntlet_harness::gate::Gates;
use gauntlet_harness::llm::{Protocol, fixture};
use gauntlet_harness::plan::{Listen, STEPS};
use gauntlet_harness::tape::Tape;
use gauntlet_harness::wire::{Answer, Controlled, Request, Source, Wire, control_routes};

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
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:11435")]
    listen: SocketAddr,
    /// Answer as this YAML script says. Give it more than once to join scripts: the first rule that
    /// matches a request answers it. Without a script the stub echoes every chat
    #[arg(long = "script", value_name = "FILE")]
    scripts: Vec<PathBuf>,
}

/// Writes a line to the console for each request that no rule answers.
struct Console<S>(S);

#[async_trait]
impl<S: Source> Source for Console<S> {
    async fn answer(&self, request: &Request) -> Answer {
        let answer = self.0.answer(request).await;
        if let Some(reason) = &answer.unmatched {
            // a console that is gone must not end the stub
            let _ = writeln!(std::io::stderr(), "unmatched  {reason}");
        }
        answer
    }

    fn counts(&self, request: &Request) -> bool {
        self.0.counts(request)
    }
}

/// Serves until it is interrupted.
pub(super) fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let (source, gates) =
        fixture::source(&args.scripts).map_err(|error| CommandError(error.to_string()))?;
    super::runtime()?.block_on(async {
        let tape = Tape::keeping(KEPT);
        let case = Gates::new(tape.clone());
        let source = Arc::new(Controlled::new(
            Arc::new(Console(source)),
            tape.clone(),
            case.clone(),
        ));
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
        tokio::signal::ctrl_c().await.map_err(|error| {
            CommandError(format!(
                "cannot wait for the interrupt ({error}); start the stub again"
            ))
        })?;
        Ok(ExitCode::SUCCESS)
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
