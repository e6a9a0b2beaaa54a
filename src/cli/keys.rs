//! `gauntlet keys`: adds, lists and revokes API keys in the store of the configuration. A token is
//! shown once, when it is made; the store keeps its hash.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use gauntlet::config::{Auth, redact_url};
use gauntlet::store::{self, KeyRecord, Keys, Micros, token_hash};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use uuid::Uuid;

use super::{CommandError, configuration, environment, runtime};

/// The number of characters of a token that the store keeps, by which people recognise a key.
const PREFIX: usize = 11;

/// Add, list and revoke API keys.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Use the store that the [store] section of this configuration file (TOML) names
    #[arg(
        long,
        short,
        env = "GAUNTLET_CONFIG",
        hide_env_values = true,
        value_name = "FILE",
        global = true
    )]
    config: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key and show its token, which is shown only once
    Add {
        /// The tenant that requests with this key belong to
        #[arg(long)]
        tenant: String,
    },
    /// List all keys, oldest first
    List,
    /// Revoke a key; a running gateway may remember it for auth.cache_ms and auth.without_store_ms
    Revoke {
        /// The id of the key, as `gauntlet keys list` shows it
        #[arg(value_parser = id)]
        id: Uuid,
    },
}

/// Reads the id of a key.
fn id(text: &str) -> Result<Uuid, &'static str> {
    text.parse()
        .map_err(|_| "it is not the id of a key; `gauntlet keys list` shows the ids")
}

/// Runs one action on the keys.
pub(super) fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let loaded = configuration(args.config.as_ref(), environment())?;
    runtime()?.block_on(async {
        let config = &loaded.config.store;
        let url = redact_url(config.url.expose_secret());
        let store = store::open(config).await.map_err(|error| {
            CommandError(format!(
                "store.url = {url} cannot be opened: {error}; \
                 start that database, or set store.url to a database that runs"
            ))
        })?;
        let output = act(store.as_ref(), &loaded.config.auth, &args.action).await;
        store.close().await;
        writeln!(io::stdout(), "{}", output?).map_err(|error| {
            CommandError(format!(
                "the output cannot be written ({error}): \
                 `gauntlet keys list` shows the keys; revoke a key whose token is lost"
            ))
        })?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn act(store: &dyn Keys, auth: &Auth, action: &Action) -> Result<String, CommandError> {
    let failed = |error: store::StoreError| {
        CommandError(format!(
            "{error}: try again when the store answers; \
             `gauntlet keys list` shows the keys that exist"
        ))
    };
    match action {
        Action::Add { tenant } => {
            let tenant = tenant.trim();
            if tenant.is_empty() || tenant.chars().any(char::is_control) {
                return Err(CommandError(format!(
                    "--tenant {tenant:?} is not a name: \
                     write a name of at least one character, without control characters"
                )));
            }
            let token = new_token();
            let prefix = token.chars().take(PREFIX).collect();
            let key = KeyRecord {
                id: Uuid::now_v7(),
                tenant: tenant.to_owned(),
                hash: token_hash(&token),
                prefix,
                created_at: now(),
                revoked_at: None,
            };
            let id = key.id;
            let first = store.keys().await.map_err(failed)?.is_empty();
            store.add_key(key).await.map_err(failed)?;
            let shown = format!(
                "key    {id}\ntenant {tenant}\ntoken  {token}\n\
                 The token is not shown again. Clients send it as: Authorization: Bearer TOKEN"
            );
            Ok(match auth.required {
                Some(false) => {
                    format!(
                        "{shown}\nThis configuration sets auth.required = false: the gateway \
                         accepts every request without a key and ignores keys. Remove that line to ask \
                         clients for keys."
                    )
                }
                None if first => format!(
                    "{shown}\nThis is the first key: a gateway that is already running asks for \
                     keys after its next start. Restart it now to protect it."
                ),
                None | Some(true) => shown,
            })
        }
        Action::List => {
            let keys = store.keys().await.map_err(failed)?;
            let mut text = format!(
                "{:<36}  {:<14}  {:<20}  {:<20}  tenant",
                "id", "token", "created", "revoked"
            );
            for key in keys {
                let revoked = key.revoked_at.map_or_else(|| "-".to_owned(), time);
                let _ = write!(
                    text,
                    "\n{}  {:<14}  {}  {revoked:<20}  {}",
                    key.id,
                    format!("{}…", key.prefix),
                    time(key.created_at),
                    key.tenant
                );
            }
            Ok(text)
        }
        Action::Revoke { id } => {
            if store.revoke_key(*id, now()).await.map_err(failed)? {
                Ok(format!("revoked {id}"))
            } else {
                Err(CommandError(format!(
                    "no valid key has the id {id}: `gauntlet keys list` shows the ids of all keys"
                )))
            }
        }
    }
}

/// Makes a token: 244 random bits after a prefix that secret scanners can search for.
fn new_token() -> String {
    format!("gk-{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

fn now() -> Micros {
    Timestamp::now().as_microsecond()
}

fn time(micros: Micros) -> String {
    Timestamp::from_microsecond(micros).map_or_else(
        |_| "?".to_owned(),
        |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )
}
