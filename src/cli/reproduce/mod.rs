//! `gauntlet reproduce`: makes files of a failed case of a report, with which a stranger sees the
//! failure: the gateway's configuration, upstreams and a client in Python, and what to expect.
//!
//! The tape of the case holds every byte that client and upstreams sent. The programs are the same
//! for all cases; `case.json` has the tape.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gauntlet_harness::case::Case;
use gauntlet_harness::llm::without_namespace;
use gauntlet_harness::report::RunRecord;
use gauntlet_harness::runner::Outcome;
use gauntlet_harness::spec::{Protocol, Spec};
use gauntlet_harness::tape::{Action, Event};
use gauntlet_harness::verdict::{Failure, FailureMode};
use indexmap::IndexMap;
use serde_json::{Value, json};

use self::gateway::Gateway;
use super::CommandError;

mod gateway;
mod readme;

const UPSTREAM: &str = include_str!("upstream.py");
const CLIENT: &str = include_str!("client.py");

const AFTER_HELP: &str = "\
The folder holds README.md (what to do and what one sees), upstream.py (the providers, byte for
byte), client.py (the requests, and the comparison with the report), case.json (the recorded bytes)
and, where gauntlet starts the gateway, gateway/ (its configuration and start.sh). It needs Python
3.8 or later; neither Rust nor gauntlet is needed to see the failure. `sh run.sh` does everything at
once; its exit code is 1 if the failure is reproduced, and 0 if it is not. With --all the folder has
such a folder for each failed case, and its run.sh plays one after the other.";

/// Arguments of `gauntlet reproduce`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The report.json of a run, or the folder that holds it
    #[arg(value_name = "REPORT")]
    report: PathBuf,
    /// The id of a case that failed, such as TIME-02
    #[arg(value_name = "ID", required_unless_present = "all")]
    id: Option<String>,
    /// Write a folder for each case that failed
    #[arg(long, conflicts_with = "id")]
    all: bool,
    /// Write into this folder [default: reproduce-ID, or reproduce with --all]
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Let the gateway listen on this port, and the upstreams on those that follow
    #[arg(long, value_name = "PORT", default_value = "18080", value_parser = port)]
    port: u16,
    /// Take the gateway's configuration from this target file instead of the one of the run
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
}

/// Reads the first port; some ports follow it.
fn port(text: &str) -> Result<u16, &'static str> {
    match text.parse() {
        Ok(port) if (1_024..=65_000).contains(&port) => Ok(port),
        _ => Err("write a port from 1024 to 65000"),
    }
}

/// The ports of a reproduction.
#[derive(Clone, Copy)]
struct Ports {
    gateway: u16,
}

impl Ports {
    /// The port at which gates are opened and the journal is read.
    fn control(self) -> u16 {
        self.gateway + 1
    }

    /// The port of the n-th provider, from 0.
    fn provider(self, n: usize) -> u16 {
        self.gateway
            .saturating_add(2)
            .saturating_add(u16::try_from(n).unwrap_or(u16::MAX))
    }
}

/// A failed case, as it is written into the folder.
struct Reproduction<'a> {
    record: &'a RunRecord,
    outcome: &'a Outcome,
    /// What the case needs of a gateway, if this version of the suites has the case.
    spec: Option<Spec>,
    ports: Ports,
    providers: Vec<ProviderPort>,
    tape: Vec<Value>,
    /// What the programs cannot play, in sentences; with it they decide nothing.
    missing: Vec<String>,
    /// What differs from the examination and changes nothing that is compared.
    notes: Vec<String>,
}

/// A provider and where it listens.
struct ProviderPort {
    name: String,
    protocol: Protocol,
    port: u16,
    /// What the port does with connections at first.
    listen: String,
}

impl ProviderPort {
    fn base_url(&self) -> String {
        format!(
            "http://127.0.0.1:{}{}",
            self.port,
            self.protocol.base_path()
        )
    }
}

/// Writes the folder, and prints what to do next.
pub(super) fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let path = super::diff::record_path(&args.report);
    let record = RunRecord::read(&path).map_err(CommandError)?;
    let Some(id) = &args.id else {
        return every(args, &record, &path).map_err(CommandError);
    };
    let outcome = failed(&record, id, &path).map_err(CommandError)?;
    let folder = match &args.out {
        Some(folder) => folder.clone(),
        None => PathBuf::from(format!("reproduce-{}", outcome.id)),
    };
    let (folder, is_started) = one(args, &record, outcome, &folder).map_err(CommandError)?;
    match is_started {
        true => say!("next: sh {}", folder.join("run.sh").display()),
        false => say!("next: configure the gateway as README.md says, and follow it from there"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the folder of one case. Returns its path, and whether its run.sh starts the gateway.
fn one(
    args: &Args,
    record: &RunRecord,
    outcome: &Outcome,
    folder: &Path,
) -> Result<(PathBuf, bool), String> {
    let reproduction = Reproduction::of(record, outcome, Ports { gateway: args.port })?;
    let folder = make_folder(folder)?;
    let gateway = Gateway::render(&reproduction, args.target.as_deref(), &folder)?;
    reproduction.write(&folder, &gateway)?;
    say!("{}", folder.join("README.md").display());
    for missing in reproduction.missing.iter().chain(&reproduction.notes) {
        say!("note: {missing}");
    }
    Ok((folder, gateway.is_started))
}

/// Writes a folder for each case that failed, and one program that plays them all.
fn every(args: &Args, record: &RunRecord, path: &Path) -> Result<ExitCode, String> {
    let root = args.out.clone().unwrap_or_else(|| "reproduce".into());
    let mut are_started = true;
    let failures = record.outcomes.iter().filter(|one| one.failure().is_some());
    let mut written = 0;
    for outcome in failures {
        match failed(record, &outcome.id, path) {
            Ok(outcome) => {
                let (_, is_started) = one(args, record, outcome, &root.join(&outcome.id))?;
                are_started &= is_started;
                written += 1;
            }
            Err(why) => say!("note: {why}"),
        }
    }
    if written == 0 {
        return Err(format!(
            "the report {} has no failure of the gateway to reproduce",
            path.display()
        ));
    }
    if are_started {
        write_file(&root.join("run.sh"), RUN_ALL)?;
        say!("next: sh {}", root.join("run.sh").display());
    } else {
        say!("next: configure the gateway as each README.md says, and follow it from there");
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes a folder, and returns its path from the root.
fn make_folder(folder: &Path) -> Result<PathBuf, String> {
    let made = std::fs::create_dir_all(folder).and_then(|()| folder.canonicalize());
    made.map_err(|error| {
        format!(
            "cannot make the folder {}: {error}; give another one with --out",
            folder.display()
        )
    })
}

/// Writes a file of the folder.
fn write_file(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| {
        format!(
            "cannot write {}: {error}; give another folder with --out",
            path.display()
        )
    })
}

/// Returns the outcome of that id.
///
/// # Errors
/// A sentence, if the report has no such case, or if the case has not failed.
fn failed<'a>(record: &'a RunRecord, id: &str, path: &Path) -> Result<&'a Outcome, String> {
    let failures = || {
        let ids: Vec<&str> = record
            .outcomes
            .iter()
            .filter(|outcome| outcome.failure().is_some())
            .map(|outcome| outcome.id.as_str())
            .collect();
        match ids.as_slice() {
            [] => "no case of this report failed".to_string(),
            ids => format!("the cases that failed are {}", ids.join(", ")),
        }
    };
    let outcome = record
        .outcomes
        .iter()
        .find(|outcome| outcome.id.eq_ignore_ascii_case(id))
        .ok_or_else(|| {
            format!(
                "the report {} has no case {id}; {}",
                path.display(),
                failures()
            )
        })?;
    match outcome.failure() {
        Some(Failure::Violated { .. }) if !outcome.tape.is_empty() => Ok(outcome),
        Some(Failure::Violated { .. }) => Err(format!(
            "the report {} holds no tape of {}; run the case again with this version of gauntlet",
            path.display(),
            outcome.id
        )),
        Some(failure) => Err(format!(
            "{} was not examined to its end ({failure}), so that there is no failure of the \
             gateway to reproduce; run the case again",
            outcome.id
        )),
        None => Err(format!(
            "{} is {} in this report, so that there is nothing to reproduce; {}",
            outcome.id,
            outcome.word().replace('-', " "),
            failures()
        )),
    }
}

impl<'a> Reproduction<'a> {
    fn of(record: &'a RunRecord, outcome: &'a Outcome, ports: Ports) -> Result<Self, String> {
        let case: Option<Case> = gauntlet_suites::cases::all()
            .into_iter()
            .find(|case| case.id == outcome.id);
        let spec = case.map(|case| (case.spec)());
        let value = serde_json::to_value(&outcome.tape)
            .map_err(|error| format!("cannot write the tape of {}: {error}", outcome.id))?;
        let mut tape = match value {
            Value::Array(entries) => entries,
            _ => Vec::new(),
        };
        let prefix = format!("{}-", outcome.id.to_lowercase());
        tape.iter_mut().for_each(|entry| alone(entry, &prefix));
        let listen = initial(&mut tape);
        let mut providers: Vec<(String, Protocol)> = spec
            .iter()
            .flat_map(|spec| &spec.providers)
            .map(|provider| (provider.name.clone(), provider.protocol))
            .collect();
        for name in tape.iter().filter_map(provider_of) {
            if !providers.iter().any(|(known, _)| known == name) {
                providers.push((name.to_string(), Protocol::OPENAI));
            }
        }
        let providers: Vec<ProviderPort> = providers
            .into_iter()
            .enumerate()
            .map(|(n, (name, protocol))| ProviderPort {
                listen: listen
                    .iter()
                    .rev()
                    .find(|(of, _)| *of == name)
                    .map_or_else(|| "serve".to_string(), |(_, how)| how.clone()),
                port: ports.provider(n),
                protocol,
                name,
            })
            .collect();
        let (missing, notes) = missing(outcome);
        Ok(Self {
            record,
            outcome,
            spec,
            ports,
            providers,
            tape,
            missing,
            notes,
        })
    }

    /// The fact, what was expected, what was observed, and whether something never ended.
    fn violated(&self) -> (&str, &str, &str, bool) {
        match self.outcome.failure() {
            Some(Failure::Violated {
                fact,
                expected,
                observed,
                mode,
            }) => (fact, expected, observed, *mode == FailureMode::Hang),
            _ => ("", "", "", false),
        }
    }

    /// The keys of clients that the report masks: a masked key that the gateway accepted is the
    /// next one of the case's own, and any other is unknown to the gateway.
    fn keys(&self) -> IndexMap<String, String> {
        let mut own = self
            .spec
            .iter()
            .flat_map(|spec| &spec.keys)
            .map(|key| key.token.clone());
        let mut keys = IndexMap::new();
        for (n, entry) in self.tape.iter().enumerate() {
            if entry["event"] != "client_sent" {
                continue;
            }
            let rest = self.tape.get(n + 1..).unwrap_or_default();
            let status = rest
                .iter()
                .find(|later| later["event"] == "client_status" && later["side"] == entry["side"])
                .and_then(|status| status["status"].as_u64());
            let values = entry["headers"].as_array().into_iter().flatten();
            for mask in values.filter_map(|header| mask(header[1].as_str()?)) {
                if !keys.contains_key(mask) {
                    let unknown = || format!("sk-unknown-{}", keys.len() + 1);
                    let key = match status {
                        Some(401 | 403) => unknown(),
                        _ => own.next().unwrap_or_else(unknown),
                    };
                    keys.insert(mask.to_string(), key);
                }
            }
        }
        keys
    }

    fn write(&self, folder: &Path, gateway: &Gateway) -> Result<(), String> {
        let (fact, expected, observed, hangs) = self.violated();
        let providers: Vec<Value> = self
            .providers
            .iter()
            .map(|one| json!({"name": one.name, "port": one.port, "listen": one.listen}))
            .collect();
        let case = json!({
            "id": self.outcome.id,
            "requirement": self.outcome.requirement,
            "fact": fact,
            "expected": expected,
            "observed": observed,
            // what never came is waited for longer than any timeout of the cases
            "settle_ms": if hangs && !has_waited(&self.tape) { 10_000 } else { 1_500 },
            "control_port": self.ports.control(),
            "gateway": gateway.as_json(),
            "keys": self.keys(),
            "missing": self.missing,
            "providers": providers,
            "tape": self.tape,
        });
        let case = serde_json::to_string_pretty(&case)
            .map_err(|error| format!("cannot write the case {}: {error}", self.outcome.id))?;
        let mut files = vec![
            ("case.json", case),
            ("upstream.py", UPSTREAM.to_string()),
            ("client.py", CLIENT.to_string()),
            ("README.md", readme::readme(self, gateway)),
        ];
        if gateway.is_started {
            files.push(("run.sh", RUN.to_string()));
        }
        for (name, text) in files {
            write_file(&folder.join(name), &text)?;
        }
        Ok(())
    }
}

/// The mask of a key in the value of a header: `[secret 1]`.
fn mask(value: &str) -> Option<&str> {
    let from = value.find("[secret")?;
    let length = value.get(from..)?.find(']')? + 1;
    value.get(from..from + length)
}

/// Whether the last client left after it had waited in vain: then nothing else has to be awaited.
fn has_waited(tape: &[Value]) -> bool {
    let at = |entry: &Value| entry["at_us"].as_u64().unwrap_or_default();
    match tape {
        [.., before, last] => last["event"] == "client_left" && at(last) > at(before) + 3_000_000,
        _ => false,
    }
}

/// Starts upstreams and gateway, plays the case, and ends both.
const RUN: &str = "\
#!/bin/sh
# Starts the upstreams and the gateway, plays the case, and ends both. Exit code 1: the failure is
# reproduced; 0: it is not; 2: the case could not be played whole.
cd \"$(dirname \"$0\")\" || exit 2
python3 client.py --ports-are-free || exit 2
python3 upstream.py > upstream.log 2>&1 &
upstream=$!
sh gateway/start.sh > gateway.log 2>&1 &
gateway=$!
# a gateway that does not end within 5 s is killed
finish() {
  kill $upstream $gateway 2> /dev/null
  (sleep 5; kill -9 $gateway) > /dev/null 2>&1 &
  impatient=$!
  wait $upstream $gateway 2> /dev/null
  kill $impatient 2> /dev/null
}
trap finish EXIT
trap 'exit 2' INT TERM
python3 client.py \"$@\"
code=$?
echo \"what the upstreams saw is in upstream.log, what the gateway wrote in gateway.log\"
exit $code
";

/// Plays the cases of all folders.
const RUN_ALL: &str = "\
#!/bin/sh
# Plays each case, one after the other, and writes results.tsv. Exit code 1: a failure is reproduced;
# 2: none is, and a case could not be played whole; 0: none is reproduced.
cd \"$(dirname \"$0\")\" || exit 2
trap 'exit 2' INT TERM
code=0
: > results.tsv
for run in */run.sh; do
  id=$(dirname \"$run\")
  sh \"$run\" > \"$id/output.txt\" 2>&1
  case $? in
    0) word='not reproduced' ;;
    1) word=reproduced code=1 ;;
    *) word=undecided; [ $code = 1 ] || code=2 ;;
  esac
  printf '%s\\t%s\\n' \"$id\" \"$word\" | tee -a results.tsv
done
exit $code
";

/// Writes an entry as it would be if the case had the gateway for itself: aliases have no prefix,
/// and upstreams no namespace.
fn alone(entry: &mut Value, prefix: &str) {
    if entry["event"] == "request_read"
        && let Some(path) = entry["path"].as_str()
    {
        entry["path"] = without_namespace(path).into();
    }
    // the bytes of an answer have a length, and no alias
    if entry["event"] == "planned" {
        return;
    }
    let length = |entry: &Value| {
        let body = &entry["body"];
        let length = match body["latin1"].as_str() {
            Some(bytes) => bytes.chars().count(),
            None => body.as_str()?.len(),
        };
        Some(length.to_string())
    };
    let before = length(entry);
    without(entry, prefix);
    let (Some(before), Some(after)) = (before, length(entry)) else {
        return;
    };
    for header in entry["headers"].as_array_mut().into_iter().flatten() {
        let is_length = header[0]
            .as_str()
            .is_some_and(|name| name.eq_ignore_ascii_case("content-length"));
        if is_length && header[1] == before.as_str() {
            header[1] = after.as_str().into();
        }
    }
}

/// Takes the prefix of the case off each name, in every text.
fn without(value: &mut Value, prefix: &str) {
    match value {
        Value::String(text) if text.contains(prefix) => *text = text.replace(prefix, ""),
        Value::Array(items) => items.iter_mut().for_each(|item| without(item, prefix)),
        Value::Object(fields) => fields.values_mut().for_each(|field| without(field, prefix)),
        _ => {}
    }
}

/// Returns what each port does before the first request, and marks every later change.
fn initial(tape: &mut [Value]) -> Vec<(String, String)> {
    let mut initial = Vec::new();
    let mut began = false;
    for entry in tape {
        began |= entry["event"] == "client_sent";
        if entry["event"] != "listening" {
            continue;
        }
        if began {
            entry["later"] = true.into();
        } else if let (Some(name), Some(how)) = (provider_of(entry), entry["how"].as_str()) {
            initial.push((name.to_string(), how.to_string()));
        }
    }
    initial
}

fn provider_of(entry: &Value) -> Option<&str> {
    match entry["side"]["who"].as_str() {
        Some("provider") => entry["side"]["name"].as_str(),
        _ => None,
    }
}

/// Returns a sentence for each thing in the tape that the programs cannot play, and one for each
/// that does not matter.
fn missing(outcome: &Outcome) -> (Vec<String>, Vec<String>) {
    let mut missing: Vec<String> = Vec::new();
    let mut notes = Vec::new();
    let of_database = matches!(outcome.failure(), Some(Failure::Violated { fact, .. })
        if ["record", "row", "session", "database"].iter().any(|word| fact.contains(word)));
    let mut add = |text: &str| {
        if !missing.iter().any(|known| known == text) {
            missing.push(text.to_string());
        }
    };
    let is_cut = |action: &Action| action.texts().iter().any(|text| !text.is_whole());
    let mut sends = false;
    for entry in &outcome.tape {
        sends |= matches!(entry.event, Event::ClientSent { .. });
        match &entry.event {
            Event::Note { text } if text.contains("left out") => add(
                "The report keeps only the beginning and the end of this case's many requests; \
                 those between them are not sent.",
            ),
            Event::ClientSent { body, .. } if !body.is_whole() => add(
                "The report keeps only the beginning of a large request, which is sent as it is \
                 there; its content-length promises more.",
            ),
            Event::Planned { actions, .. } if actions.iter().any(is_cut) => {
                add("The report keeps only the beginning of a large answer of an upstream.");
            }
            Event::Database { .. } if of_database => {
                add(
                    "What failed was seen in the gateway's database, which the programs do not read.",
                );
            }
            Event::Database { .. } if notes.is_empty() => notes.push(
                "The case also looked into the gateway's database, or disturbed it; the programs \
                 do neither."
                    .to_string(),
            ),
            _ => {}
        }
    }
    if !sends {
        add("The report has no request of this case, so that there is nothing to send.");
    }
    (missing, notes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{alone, mask};

    #[test]
    fn an_entry_of_a_shared_gateway_becomes_one_of_a_gateway_of_its_own() {
        let mut sent = json!({
            "event": "client_sent",
            "headers": [["content-length", "24"], ["x-other", "24"]],
            "body": "{\"model\":\"time-02-solo\"}",
        });
        let body = sent["body"].as_str().unwrap_or_default();
        assert_eq!(body.len(), 24);
        alone(&mut sent, "time-02-");
        assert_eq!(sent["body"], "{\"model\":\"solo\"}");
        assert_eq!(
            sent["headers"],
            json!([["content-length", "16"], ["x-other", "24"]])
        );

        let mut sent = json!({
            "event": "client_sent",
            "headers": [["content-length", "10"]],
            "body": {"latin1": "time-02-a\u{ff}", "length": 10},
        });
        alone(&mut sent, "time-02-");
        assert_eq!(sent["body"]["latin1"], "a\u{ff}");
        assert_eq!(sent["headers"], json!([["content-length", "2"]]));

        let mut read = json!({"event": "request_read", "path": "/t/time-02-abc/v1/models"});
        alone(&mut read, "time-02-");
        assert_eq!(read["path"], "/v1/models");
    }

    #[test]
    fn masks_are_found() {
        assert_eq!(mask("Bearer [secret 12]."), Some("[secret 12]"));
        assert_eq!(mask("Bearer x"), None);
    }
}
