//! `gauntlet serve`: the gateway as a process. It writes one line to stdout when it listens, and
//! logs to stderr. SIGTERM or SIGINT drains it; a second signal ends it at once. SIGHUP drains it
//! where it runs in a terminal, which is then gone, and changes nothing elsewhere.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use gauntlet::config::{Loaded, LogFormat, Telemetry};
use gauntlet::{Gateway, RunningGateway};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{CommandError, configuration, environment, runtime};

/// The exit code after a second signal: 128 plus the number of SIGINT, as in a shell.
const INTERRUPTED: i32 = 130;
/// The variable that `--listen` replaces.
const LISTEN: &str = "GAUNTLET_SERVER__LISTEN";

/// Run the gateway.
///
/// Without --config the gateway uses the embedded database, a local Ollama if one answers, and
/// OpenAI if OPENAI_API_KEY is set. The environment overrides each key: GAUNTLET_SECTION__KEY.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file (TOML)
    #[arg(
        long,
        short,
        env = "GAUNTLET_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    config: Option<PathBuf>,
    /// Listen on this address instead of server.listen
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Show every key with its effective value, default, unit and bound, and exit
    #[arg(long)]
    print_config: bool,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let remedy = "write an IP address with a port, such as 127.0.0.1:8080";
    text.parse().map_err(|_| remedy.to_owned())
}

/// Serves until a signal.
pub(super) fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let runtime = runtime()?;
    let mut environment = environment();
    if let Some(listen) = args.listen {
        // the command line goes over the environment, and the environment over the file
        environment.retain(|(name, _)| !name.eq_ignore_ascii_case(LISTEN));
        environment.push((LISTEN.to_owned(), listen.to_string()));
    }
    let (loaded, findings) = match &args.config {
        Some(_) => (
            configuration(args.config.as_ref(), environment)?,
            Vec::new(),
        ),
        None => runtime.block_on(discovered(environment))?,
    };
    if args.print_config {
        // a reader that has closed the pipe wants no more
        let _ = write!(io::stdout(), "{}", loaded.print());
        return Ok(ExitCode::SUCCESS);
    }
    logging(&loaded.config.telemetry);
    for finding in findings {
        eprintln!("{finding}");
    }
    runtime.block_on(serve(loaded))
}

/// The configuration of the services that answer, with the environment over it.
async fn discovered(
    environment: Vec<(String, String)>,
) -> Result<(Loaded, Vec<String>), CommandError> {
    let found = super::discover::discover(&environment).await;
    Ok((
        Loaded::from_text(&found.toml, "the discovered configuration", environment)?,
        found.findings,
    ))
}

async fn serve(loaded: Loaded) -> Result<ExitCode, CommandError> {
    let mut signals = Signals::new()?;
    // a dropped start leaves nothing behind, so a signal need not wait for a silent database
    let running = tokio::select! {
        running = Gateway::start(loaded.config) => running.map_err(|error| CommandError(error.to_string()))?,
        () = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    // the parent process may have closed our stdout
    let _ = writeln!(io::stdout(), "listening on http://{}", running.addr)
        .and_then(|()| io::stdout().flush());
    signals.next().await;
    drain(running, signals).await;
    Ok(ExitCode::SUCCESS)
}

async fn drain(running: RunningGateway, mut signals: Signals) {
    tracing::info!(
        "draining: requests in flight are finished; a second signal ends the process at once"
    );
    // a second signal asks for the drain to be dropped
    tokio::select! {
        () = running.drain() => tracing::info!("drained"),
        () = signals.next() => std::process::exit(INTERRUPTED),
    }
}

/// SIGTERM, SIGINT and SIGHUP.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Whether the process began in a terminal, which it can lose.
    in_terminal: bool,
}

impl Signals {
    fn new() -> Result<Self, CommandError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| CommandError(format!("signals cannot be received: {error}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            in_terminal: io::stderr().is_terminal(),
        })
    }

    async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    // The kernel sends it when a terminal is lost. A service manager sends it to
                    // have the configuration read again.
                    if !self.in_terminal {
                        tracing::warn!(
                            "SIGHUP changes nothing: restart the gateway to read its configuration \
                             again"
                        );
                        continue;
                    }
                    return;
                }
            }
        }
    }
}

/// Logs to stderr. The text of a panic may hold parts of a request, so only its location is logged.
fn logging(telemetry: &Telemetry) {
    let filter = EnvFilter::try_new(&telemetry.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // fails only if a logger is set already, which then stays
    let _ = match telemetry.format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    std::panic::set_hook(Box::new(|panic| {
        let location = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::error!(location, "the gateway has panicked: report this bug");
    }));
}
