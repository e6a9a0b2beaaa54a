//! `gauntlet stub`: stands in for OpenAI and Ollama on one port, from files with rules.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use gauntlet_harness::gate::Gates;
use gauntlet_harness::llm::fixture;
use gauntlet_harness::plan::Listen;
use gauntlet_harness::tape::Tape;
use gauntlet_harness::wire::Controlled;
use gauntlet_harness::wire::Wire;

use super::CommandError;

/// Entries of the tape that a stub keeps for its control routes.
const KEPT: usize = 10_000;

/// What `gauntlet stub` is asked for.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to listen; port 0 takes any free port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:11435")]
    listen: SocketAddr,
    /// YAML file with rules; may be given more than once, the first rule that matches answers. Without one, every chat is echoed
    #[arg(long = "script", value_name = "FILE")]
    scripts: Vec<PathBuf>,
}

/// Serves until it is interrupted.
pub(super) fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let (source, gates) =
        fixture::source(&args.scripts).map_err(|error| CommandError(error.to_string()))?;
    super::runtime()?.block_on(async {
        let tape = Tape::keeping(KEPT);
        let case = Gates::new(tape.clone());
        let source = Arc::new(Controlled::new(Arc::new(source), tape.clone(), case.clone()));
        let wire = Wire::bind_at(args.listen, "stub", tape, case, source, Listen::Serve).await.map_err(|error| {
            CommandError(format!("can't listen on {} ({error}): another program may be there; choose another --listen address", args.listen))
        })?;
        let root = wire.root_url();
        say!("OpenAI   {root}/v1");
        say!("Ollama   {root}");
        say!("Control  {root}/_gauntlet");
        for name in gates {
            say!("waits    POST {root}/_gauntlet/gates/{name}/open");
        }
        tokio::signal::ctrl_c().await.map_err(|error| CommandError(format!("can't wait for the interrupt ({error})")))?;
        Ok(ExitCode::SUCCESS)
    })
}
