//! README.md of a reproduction: what fails, how to see it, and what one sees.

use gauntlet_harness::spec::{Spec, Timeouts};
use serde_json::Value;

use super::Reproduction;
use super::gateway::{Gateway, quoted};

/// How many lines of the recorded order are shown.
const LINES: usize = 40;

pub(super) fn readme(reproduction: &Reproduction<'_>, gateway: &Gateway) -> String {
    let (record, outcome) = (reproduction.record, reproduction.outcome);
    let (fact, expected, observed, _) = reproduction.violated();
    let version = record
        .target
        .version
        .as_deref()
        .map(|version| format!(" {version}"))
        .unwrap_or_default();
    let mut text = format!(
        "# {}: {}\n\n\
         {} of the conformance suite for LLM gateways does not hold for {}{version}. Examined by \
         gauntlet {} on {}.\n\n\
         * **expected**: {expected}\n\
         * **observed**: {observed}\n\
         * the fact that is broken: `{fact}`\n\n\
         {}\n\nWhat can be done: {}\n",
        outcome.id,
        outcome.requirement,
        match outcome.level {
            gauntlet_harness::case::Level::Must => "A MUST",
            gauntlet_harness::case::Level::Should => "A SHOULD",
        },
        record.target.name,
        record.gauntlet,
        record.started_at.strftime("%Y-%m-%d"),
        outcome.why,
        outcome.remedy,
    );
    if gateway.is_started {
        text.push_str(&started(reproduction, gateway));
    } else {
        text.push_str(&by_hand(reproduction, gateway));
    }
    text.push_str(&curl(reproduction, gateway));
    text.push_str(
        "\n## What the report recorded\n\n\
         Times are since the beginning of the case; client.py shows the same order.\n\n```text\n",
    );
    let lines: Vec<String> = reproduction.tape.iter().filter_map(line).collect();
    for line in lines.iter().take(LINES) {
        text.push_str(line);
        text.push('\n');
    }
    if lines.len() > LINES {
        text.push_str(&format!(
            "… and {} more lines, which case.json has\n",
            lines.len() - LINES
        ));
    }
    text.push_str("```\n");
    let differing: Vec<&String> = reproduction
        .missing
        .iter()
        .chain(&reproduction.notes)
        .collect();
    if !differing.is_empty() {
        text.push_str("\n## What differs from the examination\n\n");
        for sentence in differing {
            text.push_str(&format!("* {sentence}\n"));
        }
        text.push_str(&format!(
            "\nWith gauntlet itself the whole case runs again: `{} {}`\n",
            record.command, outcome.id
        ));
    }
    text
}

fn upstreams(reproduction: &Reproduction<'_>) -> String {
    let upstreams: Vec<String> = reproduction
        .providers
        .iter()
        .map(|one| match one.listen.as_str() {
            "refuse" => format!("{} at {} refuses connections", one.name, one.base_url()),
            "never_accept" => {
                format!(
                    "{} at {} never accepts a connection",
                    one.name,
                    one.base_url()
                )
            }
            "silence" => format!("{} at {} never answers", one.name, one.base_url()),
            _ => format!("{} at {}", one.name, one.base_url()),
        })
        .collect();
    upstreams.join(", ")
}

fn verdict(reproduction: &Reproduction<'_>) -> String {
    let clients = reproduction
        .tape
        .iter()
        .filter(|entry| entry["event"] == "client_sent")
        .count();
    format!(
        "`python3 client.py` sends the recorded {} in their order, shows what comes back with times, \
         and compares it with the report. The last lines are `REPRODUCED` (exit code 1: the gateway \
         does what the report recorded) or `NOT REPRODUCED` with what differs (exit code 0){}.",
        gauntlet_harness::report::counted(clients, "request", "requests"),
        match reproduction.missing.is_empty() {
            true => "",
            false =>
                "; here they will be `UNDECIDED` (exit code 2), since a part of the case is missing",
        }
    )
}

fn started(reproduction: &Reproduction<'_>, gateway: &Gateway) -> String {
    let hint = match gateway.hint.as_str() {
        "" => String::new(),
        hint => format!(" If the program is missing: {hint}."),
    };
    let files: Vec<String> = gateway
        .files
        .iter()
        .map(|name| format!("`gateway/{name}`"))
        .collect();
    let files = match files.is_empty() {
        true => "the variables in it".to_string(),
        false => files.join(", "),
    };
    let prepare = match gateway.is_prepared {
        true => {
            " Then send the requests of [[prepare]] in the target file by hand, and give a key that \
             they mint to client.py with `--header 'authorization: Bearer KEY'`."
        }
        false => "",
    };
    format!(
        "\n## See it\n\n\
         It takes Python 3.8 or later and the gateway. In this folder:\n\n    sh run.sh\n\n\
         Or step by step, each in a terminal of its own:\n\n\
         1. `python3 upstream.py` stands in for the providers: {}. It shows what it is asked, and \
         what it sends.\n\
         2. `sh gateway/start.sh` starts the gateway at {} with {files}.{hint}{prepare}\n\
         3. {}\n",
        upstreams(reproduction),
        gateway.url,
        verdict(reproduction)
    )
}

fn by_hand(reproduction: &Reproduction<'_>, gateway: &Gateway) -> String {
    let settings = reproduction
        .spec
        .as_ref()
        .map(|spec| configuration(reproduction, spec))
        .unwrap_or_default();
    format!(
        "\n## See it\n\n\
         It takes Python 3.8 or later and the gateway, each step in a terminal of its own:\n\n\
         1. `python3 upstream.py` stands in for the providers: {}. It shows what it is asked, and \
         what it sends.\n\
         2. Start the gateway at {} (or give its address to client.py with `--gateway`), configured \
         like this:\n\n{settings}\n\
         3. {}\n",
        upstreams(reproduction),
        gateway.url,
        verdict(reproduction)
    )
}

/// What the case needs of a gateway, as a list.
fn configuration(reproduction: &Reproduction<'_>, spec: &Spec) -> String {
    let url = |name: &str| {
        reproduction
            .providers
            .iter()
            .find(|one| one.name == name)
            .map(super::ProviderPort::base_url)
            .unwrap_or_default()
    };
    let mut text = String::new();
    for model in &spec.models {
        let candidates: Vec<String> = model
            .candidates
            .iter()
            .map(|one| format!("model `{}` at {}", one.model, url(&one.provider)))
            .collect();
        text.push_str(&format!(
            "   * the alias `{}`: {}{}\n",
            model.alias,
            candidates.join(", and if that fails "),
            timeouts(&model.timeouts)
        ));
    }
    for provider in &spec.providers {
        let own = timeouts(&provider.timeouts);
        let most = provider
            .max_in_flight
            .map(|most| format!(", at most {most} requests in flight"))
            .unwrap_or_default();
        text.push_str(&format!(
            "   * the provider {} speaks {} and gets the key `{}`{most}{own}\n",
            url(&provider.name),
            provider.protocol.title(),
            provider.api_key
        ));
    }
    text.push_str(&format!("   * all others{}\n", timeouts(&spec.timeouts)));
    text.push_str(&format!(
        "   * at most {} at a candidate, the first backoff {} ms; a breaker opens after {} failures \
         in a row for {} ms\n",
        gauntlet_harness::report::counted(
            usize::try_from(spec.retry.max_attempts).unwrap_or(usize::MAX),
            "attempt",
            "attempts"
        ),
        spec.retry.base_ms,
        spec.breaker.failure_threshold,
        spec.breaker.cool_down_ms
    ));
    for key in &spec.keys {
        text.push_str(&format!(
            "   * clients of the tenant `{}` present the key `{}`\n",
            key.tenant, key.token
        ));
    }
    text
}

fn timeouts(timeouts: &Timeouts) -> String {
    let set: Vec<String> = [
        ("connect", timeouts.connect_ms),
        ("first token", timeouts.first_token_ms),
        ("idle", timeouts.idle_ms),
        ("total", timeouts.total_ms),
    ]
    .into_iter()
    .filter_map(|(name, ms)| Some(format!("{name} {} ms", ms?)))
    .collect();
    match set.is_empty() {
        true => String::new(),
        false => format!(", timeouts: {}", set.join(", ")),
    }
}

/// The first request as a command, where it can be written on a command line.
fn curl(reproduction: &Reproduction<'_>, gateway: &Gateway) -> String {
    let sent = reproduction
        .tape
        .iter()
        .find(|entry| entry["event"] == "client_sent" && !entry["dribbled"].is_object());
    let Some(sent) = sent else {
        return String::new();
    };
    // bytes that are cut, or no text, are no plain string
    let (Some(path), Some(body)) = (sent["path"].as_str(), sent["body"].as_str()) else {
        return String::new();
    };
    if body.len() > 4_096 {
        return String::new();
    }
    let of_gateway = gateway.as_json();
    let mut headers = String::new();
    for header in sent["headers"].as_array().into_iter().flatten() {
        let (Some(name), Some(value)) = (header[0].as_str(), header[1].as_str()) else {
            continue;
        };
        if ["host", "content-length"].contains(&name.to_lowercase().as_str()) {
            continue;
        }
        let own = of_gateway["headers"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|own| own[0] == name.to_lowercase())
            .and_then(|own| own[1].as_str());
        let value = match own {
            Some(own) if value.contains("[secret") => own,
            _ => value,
        };
        headers.push_str(&format!(
            " \\\n        -H {}",
            quoted(&format!("{name}: {value}"))
        ));
    }
    let body = match body {
        "" => String::new(),
        body => format!(" \\\n        -d {}", quoted(body)),
    };
    format!(
        "\nThe first request by hand, while upstream.py runs (an answer that waits at a gate comes \
         after `curl -X POST http://127.0.0.1:{}/open/GATE`):\n\n    \
         curl -i -N -X {} {}{path}{headers}{body}\n",
        reproduction.ports.control(),
        sent["method"].as_str().unwrap_or("POST"),
        gateway.url
    )
}

/// An entry of the tape as a line; `None` for one that says nothing to a reader.
fn line(entry: &Value) -> Option<String> {
    let name = entry["side"]["name"].as_str().unwrap_or_default();
    let of = |key: &str| entry[key].as_u64().unwrap_or_default();
    let what = match entry["event"].as_str()? {
        "client_sent" => format!(
            "client {name} sends {} {}",
            entry["method"].as_str()?,
            entry["path"].as_str()?
        ),
        "client_status" => format!("client {name} gets status {}", of("status")),
        "client_chunk" => format!(
            "client {name} gets event {}: {}",
            of("n"),
            short(&entry["data"])
        ),
        "client_answered" => format!(
            "client {name} has the whole answer: {}",
            short(&entry["body"])
        ),
        "client_failed" => format!(
            "client {name}: the answer fails: {}",
            entry["error"].as_str()?
        ),
        "client_left" => format!("client {name} closes its connection"),
        "request_read" => format!(
            "upstream {name} reads a request for {}",
            entry["path"].as_str()?
        ),
        "held" => format!("upstream {name} waits at gate {}", entry["gate"].as_str()?),
        "head_sent" => format!("upstream {name} sends status {}", of("status")),
        "event_sent" => format!("upstream {name} sends event {}", of("n")),
        "answer_sent" => format!("upstream {name} has sent its whole answer"),
        "fault" => format!("upstream {name}: {}", entry["fault"].as_str()?),
        "listening" => format!(
            "upstream {name} does this with new connections: {}",
            entry["how"].as_str()?.replace('_', " ")
        ),
        "peer_closed" if entry["request"].is_u64() => {
            format!("upstream {name} sees the gateway close the connection of its request")
        }
        "opened" => format!("gate {name} is opened"),
        "met" => format!("all {} answers have met at {name}", of("count")),
        "target" => format!("the gateway: {}", entry["what"].as_str()?),
        "note" => entry["text"].as_str()?.to_string(),
        _ => return None,
    };
    Some(format!("{:>9} ms  {what}", of("at_us") / 1_000))
}

/// The beginning of a text of the tape, in one line.
fn short(data: &Value) -> String {
    let text = data
        .as_str()
        .or_else(|| data["text"].as_str())
        .or_else(|| data["latin1"].as_str())
        .unwrap_or_default();
    let line: String = text
        .chars()
        .take(160)
        .collect::<String>()
        .replace(['\n', '\r'], " ");
    match text.chars().count() > 160 {
        true => format!("{line}…"),
        false => line,
    }
}
