//! The tape as text, which shows who sent what to whom.
//!
//! Names replace everything that differs from run to run: addresses, ids (equal ones get the same
//! letter), dates, and the version. A secret is replaced only in the messages of its owner, so that
//! a secret in any other message remains visible.

use std::collections::HashMap;

use gauntlet_harness::spec::Protocol;
use gauntlet_harness::tape::{Event, Side};
use gauntlet_harness::wire::Answer;

use super::scene::{CLIENT_COOKIE, CLIENT_KEY, Provider, Scene, key_of};

pub fn of(scene: &Scene) -> String {
    let mut text = Text::default();
    text.to("the gateway has", &candidates(scene));
    let mut answers_sent: HashMap<u64, Answer> = HashMap::new();
    let mut asked: HashMap<String, usize> = HashMap::new();
    for entry in scene.tape.entries() {
        match (entry.side, entry.event) {
            (Side::Client(_), event) => client(scene, event, &mut text),
            (Side::Provider(name), event) => {
                let provider = scene
                    .providers
                    .iter()
                    .find(|provider| provider.stub.name() == name)
                    .unwrap();
                if let Event::RequestRead { request, .. } = &event {
                    let count = asked.entry(name).or_default();
                    answers_sent.insert(
                        *request,
                        provider
                            .answers_sent
                            .lock()
                            .unwrap()
                            .get(*count)
                            .expect("the scenario has an answer for each request")
                            .clone(),
                    );
                    *count += 1;
                }
                of_provider(provider, event, &answers_sent, &mut text);
            }
            _ => {}
        }
    }
    text.named(scene)
}

/// The lines so far, under headings that name sender and receiver.
#[derive(Default)]
struct Text {
    lines: String,
    heading: String,
}

impl Text {
    fn to(&mut self, heading: &str, lines: &str) {
        if self.heading != heading {
            let gap = if self.lines.is_empty() { "" } else { "\n" };
            self.lines.push_str(&format!("{gap}{heading}\n"));
            self.heading = heading.into();
        }
        for line in lines.lines() {
            self.lines.push_str(&format!("  {line}\n"));
        }
    }

    /// Replaces everything that differs from run to run by a name.
    fn named(self, scene: &Scene) -> String {
        let mut text = self
            .lines
            .replace(&scene.gateway.addr.to_string(), "[address of the gateway]");
        for provider in &scene.providers {
            text = text.replace(
                &provider.stub.wire().addr().to_string(),
                &format!("[address of {}]", provider.stub.name()),
            );
        }
        let text = text.replace(
            concat!("gauntlet/", env!("CARGO_PKG_VERSION")),
            "gauntlet/[version]",
        );
        lettered(&renumbered(&text))
    }
}

fn candidates(scene: &Scene) -> String {
    let line = |provider: &Provider| {
        let (name, protocol) = (
            provider.stub.name(),
            if provider.protocol == Protocol::OLLAMA {
                "ollama"
            } else {
                "openai"
            },
        );
        let how = if provider.listens {
            ""
        } else {
            ", refuses connections"
        };
        format!("{name}: {protocol}, model m-{name}{how}\n")
    };
    scene.providers.iter().map(line).collect()
}

fn client(scene: &Scene, event: Event, text: &mut Text) {
    const ASKS: &str = "client → gateway";
    const GETS: &str = "gateway → client";
    match event {
        Event::ClientSent { .. } => {
            let sent = String::from_utf8(scene.seen.sent.clone()).unwrap();
            let (head, body) = sent.split_once("\r\n\r\n").unwrap();
            let (start, fields) = head.split_once("\r\n").unwrap();
            let fields = fields
                .lines()
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.into(), value.into()));
            let sent_text = format!(
                "{}\n{}{body}",
                start.trim_end_matches(" HTTP/1.1"),
                headers(&fields.collect::<Vec<_>>())
            );
            text.to(
                ASKS,
                &sent_text
                    .replace(CLIENT_KEY, "[key of the client]")
                    .replace(CLIENT_COOKIE, "[cookie of the client]"),
            );
        }
        Event::ClientStatus { status, .. } => {
            text.to(GETS, &format!("{status}\n{}", headers(&scene.seen.headers)))
        }
        Event::ClientChunk { n, .. } => {
            let event = &scene.seen.events[n - 1];
            let name = event
                .name
                .as_ref()
                .map(|name| format!("event: {name}\n"))
                .unwrap_or_default();
            text.to(GETS, &format!("{name}data: {}", event.data));
        }
        Event::ClientAnswered { .. } => text.to(
            GETS,
            format!(
                "{}\n(the end)",
                scene.seen.body.as_deref().unwrap_or_default()
            )
            .trim_start(),
        ),
        Event::ClientFailed { error, .. } => text.to(GETS, &format!("({error})")),
        Event::ClientLeft => text.to(ASKS, "(closes the connection)"),
        other => panic!("this event is not the client's: {other:?}"),
    }
}

fn of_provider(
    provider: &Provider,
    event: Event,
    answers_sent: &HashMap<u64, Answer>,
    text: &mut Text,
) {
    let name = provider.stub.name();
    let (asks, says) = (format!("gateway → {name}"), format!("{name} → gateway"));
    let (key, named) = (key_of(name), format!("[key of {name}]"));
    match event {
        Event::RequestRead {
            method,
            path,
            headers: fields,
            body,
            ..
        } => {
            let fields: Vec<_> = fields
                .into_iter()
                .map(|(field, value)| {
                    let own = field.eq_ignore_ascii_case("authorization");
                    let value = if own {
                        value.replace(&key, &named)
                    } else {
                        value
                    };
                    (field, value)
                })
                .collect();
            text.to(
                &asks,
                &format!("{method} {path}\n{}{body}", headers(&fields)),
            );
        }
        Event::HeadSent { request, status } => {
            text.to(
                &says,
                &format!("{status}\n{}", headers(&answers_sent[&request].headers))
                    .replace(&key, &named),
            );
        }
        Event::EventSent { request, n } => text.to(
            &says,
            &piece(&answers_sent[&request], n).replace(&key, &named),
        ),
        Event::AnswerSent { .. } => text.to(&says, "(the end)"),
        // A platform on which the fault is less exact adds a remark in parentheses.
        Event::Fault { fault, .. } => {
            text.to(&says, &format!("({})", fault.split(" (").next().unwrap()))
        }
        Event::PeerClosed {
            request: Some(_), ..
        } => text.to(&asks, "(closes the connection)"),
        Event::Unmatched { reason, .. } => {
            panic!("the scenario has no answer for this request: {reason}")
        }
        // The pool decides when connections are opened, kept and closed, so that the order varies.
        Event::Planned { .. }
        | Event::Listening { .. }
        | Event::Accepted { .. }
        | Event::Held { .. }
        | Event::PeerClosed { request: None, .. } => {}
        other => panic!("this event is not a provider's: {other:?}"),
    }
}

/// The headers, one line each and sorted, without the date.
fn headers(fields: &[(String, String)]) -> String {
    let fields = fields
        .iter()
        .filter(|(name, _)| !name.eq_ignore_ascii_case("date"));
    let mut lines: Vec<String> = fields
        .map(|(name, value)| format!("{name}: {value}\n"))
        .collect();
    lines.sort_unstable();
    lines.concat()
}

/// The n-th event of the answer's body, from 1.
fn piece(answer: &Answer, n: usize) -> String {
    let body = std::str::from_utf8(&answer.body).unwrap();
    let kind = answer
        .headers
        .iter()
        .find(|(name, _)| name == "content-type")
        .map(|(_, value)| value.as_str())
        .unwrap_or_default();
    let pieces: Vec<&str> = match kind.split(';').next().unwrap() {
        "text/event-stream" => body.split_inclusive("\n\n").collect(),
        "application/x-ndjson" => body.split_inclusive('\n').collect(),
        _ => vec![body],
    };
    pieces[n - 1].trim_end().to_owned()
}

/// Numbers the providers' answers in the order in which they appear: their ids count all requests
/// of the process.
fn renumbered(text: &str) -> String {
    const ID: &str = "chatcmpl-gauntlet-";
    let mut known: Vec<&str> = Vec::new();
    let mut pieces = text.split(ID);
    let mut renumbered = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(piece.len());
        let at = known.iter().position(|number| *number == &piece[..end]);
        let at = at.unwrap_or_else(|| {
            known.push(&piece[..end]);
            known.len() - 1
        });
        renumbered.push_str(&format!("{ID}{}{}", at + 1, &piece[end..]));
    }
    renumbered
}

/// Replaces the ids that the gateway makes, which are 32 hexadecimal digits, by letters.
fn lettered(text: &str) -> String {
    let mut letters: Vec<&str> = Vec::new();
    let mut lettered = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_hex) {
        let end = rest[start..]
            .find(|c| !is_hex(c))
            .map_or(rest.len(), |length| start + length);
        let run = &rest[start..end];
        lettered.push_str(&rest[..start]);
        if run.len() == 32 {
            let at = letters
                .iter()
                .position(|known| *known == run)
                .unwrap_or_else(|| {
                    letters.push(run);
                    letters.len() - 1
                });
            lettered.push_str(&format!(
                "[id {}]",
                char::from(b'A' + u8::try_from(at).unwrap())
            ));
        } else {
            lettered.push_str(run);
        }
        rest = &rest[end..];
    }
    lettered + rest
}

fn is_hex(c: char) -> bool {
    matches!(c, '0'..='9' | 'a'..='f')
}
