//! `gauntlet keys`: API keys in the store of the configuration. A token is shown once, when it is made; only its hash is kept.

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

/// Characters of a token that are kept, so that people can tell keys apart.
const PREFIX: usize = 11;

/// Add, list and revoke API keys.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file (TOML); its [store] holds the keys
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
    /// Make a key and show its token, once
    Add {
        /// Whose key it is
        #[arg(long)]
        tenant: String,
    },
    /// List all keys, oldest first
    List,
    /// Revoke a key; a running gateway may know it for auth.cache_ms longer
    Revoke {
        /// Its id, as `list` shows it
        id: Uuid,
    },
}

/// Does one thing with the keys.
pub(super) fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let loaded = configuration(args.config.as_ref(), environment())?;
    runtime()?.block_on(async {
        let config = &loaded.config.store;
        let place = redact_url(config.url.expose_secret());
        let store = store::open(config).await.map_err(|error| {
            CommandError(format!("store.url = {place} can't be opened: {error}; start that database, or write the URL of one that runs"))
        })?;
        let said = act(store.as_ref(), &loaded.config.auth, &args.action).await;
        store.close().await;
        writeln!(io::stdout(), "{}", said?).map_err(|error| {
            CommandError(format!("nobody reads the output ({error}): `gauntlet keys list` shows what was done; revoke a key whose token is lost"))
        })?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn act(store: &dyn Keys, auth: &Auth, action: &Action) -> Result<String, CommandError> {
    let failed = |error: store::StoreError| {
        CommandError(format!(
            "{error}: nothing was changed; try again when the store answers"
        ))
    };
    match action {
        Action::Add { tenant } => {
            let tenant = tenant.trim();
            if tenant.is_empty() || tenant.chars().any(char::is_control) {
                return Err(CommandError(format!(
                    "--tenant {tenant:?} is no name: write one without control characters"
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
                "key    {id}\ntenant {tenant}\ntoken  {token}\nThe token is not shown again. Clients send it as: Authorization: Bearer TOKEN"
            );
            Ok(match auth.required {
                Some(false) => {
                    format!(
                        "{shown}\nauth.required = false in this configuration: requests are taken without a key, and keys say nothing."
                    )
                }
                None if first => format!(
                    "{shown}\nThis is the first key: a gateway that runs already asks for keys from its next start on."
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
                    "no key with the id {id} can be revoked: `gauntlet keys list` shows those that can"
                )))
            }
        }
    }
}

/// 244 random bits behind a name that secret scanners can look for.
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
