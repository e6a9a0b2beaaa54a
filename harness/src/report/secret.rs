//! The redaction of reports: credentials in headers, their values wherever else they occur, and
//! passwords in URLs.
//!
//! A value becomes `[secret 1]`, `[secret 2]`, … so that a reader still sees which of two keys was
//! sent. The numbers are those of the gateway: its configuration and all cases that it served have
//! the same ones.

use std::sync::Arc;

use serde_json::Value;

use super::RunRecord;
use crate::runner::{Outcome, Setup};
use crate::subject::Rendered;
use crate::tape::{Action, Data, Entry, Event};

/// The headers whose values are credentials.
const HEADERS: [&str; 8] = [
    "authorization",
    "proxy-authorization",
    "api-key",
    "x-api-key",
    "x-goog-api-key",
    "x-amz-security-token",
    "cookie",
    "set-cookie",
];
/// The least length of a key, in bytes; a shorter word may occur in any text.
const SHORTEST: usize = 8;

/// Returns whether the value of this header is a credential. Nothing else decides this.
fn is_secret(header: &str) -> bool {
    HEADERS
        .iter()
        .any(|secret| header.eq_ignore_ascii_case(secret))
}

/// Returns the record without credentials.
///
/// # Errors
/// An error of JSON, if the record cannot be written as JSON.
pub(super) fn redacted(record: &RunRecord) -> Result<RunRecord, serde_json::Error> {
    let mut groups: Vec<(Arc<Rendered>, Secrets)> = Vec::new();
    for outcome in &record.outcomes {
        if let Some(setup) = &outcome.setup {
            match groups
                .iter_mut()
                .find(|(known, _)| *known == setup.rendered)
            {
                Some((_, secrets)) => secrets.add_outcome(outcome),
                None => groups.push((Arc::clone(&setup.rendered), Secrets::of(outcome))),
            }
        }
    }
    for (rendered, secrets) in &mut groups {
        secrets.add_rendered(rendered);
    }
    let mut masked: Vec<Arc<Rendered>> = Vec::with_capacity(groups.len());
    for (rendered, secrets) in &groups {
        let mut form = serde_json::to_value(rendered.as_ref())?;
        rewrite(&mut form, &|text| without_passwords(&secrets.hidden(text)));
        masked.push(Arc::new(serde_json::from_value(form)?));
    }
    let mut outcomes = Vec::with_capacity(record.outcomes.len());
    for outcome in &record.outcomes {
        let group = outcome.setup.as_ref().and_then(|setup| {
            groups
                .iter()
                .position(|(known, _)| *known == setup.rendered)
        });
        let mut safe = match group {
            Some(group) => without_secrets(outcome, &groups[group].1)?,
            None => without_secrets(outcome, &Secrets::of(outcome))?,
        };
        if let (Some(setup), Some(group)) = (&mut safe.setup, group) {
            setup.rendered = Arc::clone(&masked[group]);
        }
        outcomes.push(safe);
    }
    let mut head = serde_json::to_value(record.head())?;
    rewrite(&mut head, &without_passwords);
    Ok(RunRecord {
        outcomes,
        ..serde_json::from_value(head)?
    })
}

/// Returns whether a header shows a credential; in a record that was redacted before it shows none.
fn is_open(name: &str, value: &str) -> bool {
    is_secret(name) && !value.contains("[secret")
}

fn without_secrets(outcome: &Outcome, secrets: &Secrets) -> Result<Outcome, serde_json::Error> {
    let mut outcome = outcome.clone();
    for entry in &mut outcome.tape {
        if let Event::RequestRead { headers, .. }
        | Event::ClientSent { headers, .. }
        | Event::ClientStatus { headers, .. } = &mut entry.event
        {
            for (_, value) in headers
                .iter_mut()
                .filter(|(name, value)| is_open(name, value))
            {
                *value = secrets.masked(value);
            }
        }
        match &mut entry.event {
            Event::ClientSent { body: data, .. }
            | Event::ClientChunk { data, .. }
            | Event::ClientAnswered { body: data, .. }
            | Event::ClientFailed { body: data, .. } => secrets.hide(data),
            Event::Planned { actions, .. } => secrets.hide_in_answer(actions),
            _ => {}
        }
    }
    // as JSON, so that every text is redacted, also one that is added to an event later
    let mut form = serde_json::to_value(&outcome)?;
    rewrite(&mut form, &|text| without_passwords(&secrets.hidden(text)));
    serde_json::from_value(form)
}

/// The credentials of the cases of one gateway, word by word, each with its number in the order of
/// their appearance. The longest are first, so that none is masked as a part of another.
#[derive(Default)]
struct Secrets(Vec<(usize, String)>);

impl Secrets {
    fn of(outcome: &Outcome) -> Self {
        let mut secrets = Self::default();
        secrets.add_outcome(outcome);
        secrets
    }

    fn add_outcome(&mut self, outcome: &Outcome) {
        self.add_tape(&outcome.tape);
        if let Some(setup) = &outcome.setup {
            self.add_setup(setup);
        }
    }

    fn add_setup(&mut self, setup: &Setup) {
        for provider in &setup.spec.providers {
            self.add(&provider.api_key);
            let login = provider.userinfo.as_deref().unwrap_or_default();
            let password = login.split_once(':').map_or("", |(_, password)| password);
            self.add(password);
        }
        setup.spec.keys.iter().for_each(|key| self.add(&key.token));
    }

    /// Adds the values in a gateway's environment and files whose names are those of credentials.
    fn add_rendered(&mut self, rendered: &Rendered) {
        for (name, value) in &rendered.env {
            if names_a_credential(name) {
                self.add_setting(value);
            }
        }
        for line in rendered.files.iter().flat_map(|file| file.text.lines()) {
            let Some((name, value)) = line.split_once([':', '=']) else {
                continue;
            };
            if names_a_credential(name) {
                self.add_setting(value);
            }
        }
    }

    /// Adds a value of a configuration, unless it is a number, a URL, or names something else that
    /// holds the value.
    fn add_setting(&mut self, value: &str) {
        let value = value.trim().trim_end_matches(',').trim_matches(['"', '\'']);
        let is_one_word = !value.contains(|c: char| c.is_whitespace() || "[]{}\"'$/".contains(c));
        if is_one_word && !value.bytes().all(|byte| byte.is_ascii_digit()) {
            self.add(value);
        }
    }

    fn add(&mut self, secret: &str) {
        if is_key(secret) && !secret.contains("[secret") && self.number(secret).is_none() {
            let number = self.0.len() + 1;
            let at = self
                .0
                .partition_point(|(_, known)| known.len() >= secret.len());
            self.0.insert(at, (number, secret.to_owned()));
        }
    }

    fn number(&self, secret: &str) -> Option<usize> {
        let (number, _) = self.0.iter().find(|(_, known)| known == secret)?;
        Some(*number)
    }

    fn add_tape(&mut self, tape: &[Entry]) {
        let mut add = |name: &str, value: &str| {
            if is_open(name, value) {
                words(value).for_each(|(_, secret)| self.add(secret));
            }
        };
        for entry in tape {
            match &entry.event {
                Event::RequestRead { headers, .. }
                | Event::ClientSent { headers, .. }
                | Event::ClientStatus { headers, .. } => {
                    headers.iter().for_each(|(name, value)| add(name, value));
                }
                Event::Planned { actions, .. } => {
                    let answer = joined(actions);
                    for (from, to, name) in fields(&answer) {
                        add(&name, &String::from_utf8_lossy(&answer[from..to]));
                    }
                }
                _ => {}
            }
        }
    }

    /// Masks these words in bytes that the tape has kept, and the beginning of one at which they
    /// were cut.
    fn hide(&self, data: &mut Data) {
        let text = data.bytes();
        let cut = (!data.is_whole()).then(|| {
            let begun = |(_, secret): &(usize, String)| {
                (4..secret.len())
                    .rev()
                    .find(|length| text.ends_with(&secret.as_bytes()[..*length]))
            };
            self.0.iter().filter_map(begun).max().unwrap_or_default()
        });
        let mut bytes = text[..text.len() - cut.unwrap_or_default()].to_vec();
        for (n, secret) in &self.0 {
            bytes = replaced(
                &bytes,
                secret.as_bytes(),
                format!("[secret {n}]").as_bytes(),
            );
        }
        if bytes != text {
            *data = std::mem::take(data).with_bytes(bytes);
        }
    }

    /// Masks these words in the bytes of an answer, however they are split, and the values of its
    /// secret headers. No length changes, so that the framing stays right.
    fn hide_in_answer(&self, actions: &mut [Action]) {
        let mut answer = joined(actions);
        let before = answer.clone();
        for (from, to, name) in fields(&before) {
            if is_open(&name, &String::from_utf8_lossy(&before[from..to])) {
                let mask = self.masked(&String::from_utf8_lossy(&before[from..to]));
                answer[from..to].copy_from_slice(&of_length(&mask, to - from));
            }
        }
        for (n, secret) in &self.0 {
            let mask = of_length(&format!("[secret {n}]"), secret.len());
            answer = replaced(&answer, secret.as_bytes(), &mask);
        }
        if answer == before {
            return;
        }
        let mut at = 0;
        for data in actions.iter_mut().flat_map(Action::texts_mut) {
            let to = at + data.bytes().len();
            *data = std::mem::take(data).with_bytes(answer[at..to].to_vec());
            at = to;
        }
    }

    /// Returns the value of a secret header without its credentials.
    fn masked(&self, value: &str) -> String {
        let words = words(value).map(|(name, secret)| match self.number(secret) {
            Some(n) => format!("{name}[secret {n}]"),
            None if is_scheme(secret) => format!("{name}{secret}"),
            None => format!("{name}[secret]"),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Returns a text without these words.
    fn hidden(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (n, secret)| {
            match text.contains(secret.as_str()) {
                true => text.replace(secret.as_str(), &format!("[secret {n}]")),
                false => text,
            }
        })
    }
}

/// The bytes of an answer that the tape has kept.
fn joined(actions: &[Action]) -> Vec<u8> {
    let texts: Vec<&[u8]> = actions
        .iter()
        .flat_map(Action::texts)
        .map(Data::bytes)
        .collect();
    texts.concat()
}

/// The fields of an answer's head: where each value begins and ends, and the name.
fn fields(answer: &[u8]) -> Vec<(usize, usize, String)> {
    let mut fields = Vec::new();
    let mut at = 0;
    if !answer.starts_with(b"HTTP/1.") {
        return fields;
    }
    for line in answer.split_inclusive(|byte| *byte == b'\n') {
        let end = at + line.len();
        let value_end = end - (line.len() - line.trim_ascii_end().len());
        if value_end <= at {
            break;
        }
        if let Some(colon) = line.iter().position(|byte| *byte == b':') {
            let name = String::from_utf8_lossy(&line[..colon]).into_owned();
            let begin = line[colon + 1..].trim_ascii_start();
            let from = end - begin.len();
            fields.push((from.min(value_end), value_end, name));
        }
        at = end;
    }
    fields
}

/// A mask of exactly this many bytes.
fn of_length(mask: &str, length: usize) -> Vec<u8> {
    let mut mask = mask.as_bytes().to_vec();
    mask.resize(length, b'.');
    mask
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut safe = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        safe.extend_from_slice(&rest[..at]);
        safe.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    safe.extend_from_slice(rest);
    safe
}

/// Returns the words of a header's value, each with the name of its cookie: `session=` and `abc`.
fn words(value: &str) -> impl Iterator<Item = (&str, &str)> {
    value
        .split([' ', ';', ','])
        .filter(|word| !word.is_empty())
        .map(|word| match word.split_once('=') {
            // a `=` at the end is padding of base64
            Some((name, rest)) if !rest.trim_matches('=').is_empty() => {
                word.split_at(name.len() + 1)
            }
            _ => ("", word),
        })
}

/// Whether a setting of this name holds a credential.
fn names_a_credential(name: &str) -> bool {
    let name = name
        .trim()
        .trim_matches(['"', '\'', '-', ' '])
        .to_lowercase();
    [
        "api_key", "api-key", "apikey", "_key", "token", "secret", "password",
    ]
    .iter()
    .any(|word| name.ends_with(word))
}

fn is_key(word: &str) -> bool {
    word.len() >= SHORTEST && !is_scheme(word)
}

fn is_scheme(word: &str) -> bool {
    ["bearer", "basic", "digest", "negotiate"]
        .iter()
        .any(|scheme| word.eq_ignore_ascii_case(scheme))
}

/// Returns a text without the passwords of its URLs: `postgres://user:…@host`.
fn without_passwords(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        safe.push_str(before);
        let authority = &after[..after
            .find(|c: char| c.is_whitespace() || "/?#\"'`<>".contains(c))
            .unwrap_or(after.len())];
        rest = after;
        if let Some((login, _)) = authority.rsplit_once('@')
            && let Some((user, _)) = login.split_once(':')
        {
            safe.push_str(user);
            safe.push_str(":…");
            rest = &after[login.len()..];
        }
    }
    safe + rest
}

fn rewrite(form: &mut Value, change: &dyn Fn(&str) -> String) {
    match form {
        Value::String(text) => *text = change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| rewrite(item, change)),
        Value::Object(fields) => fields.values_mut().for_each(|field| rewrite(field, change)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::super::tests::{outcome, record, violated};
    use super::*;
    use crate::verdict::{Failure, FailureMode, Level, Verdict};

    #[test]
    fn no_report_holds_a_credential() {
        let mut failed = outcome("AUTH-02", Level::Must, violated());
        let canaries: Vec<String> = HEADERS
            .iter()
            .map(|name| format!("canary-of-{name}"))
            .collect();
        for entry in &mut failed.tape {
            if let Event::RequestRead { headers, body, .. } = &mut entry.event {
                *headers = HEADERS
                    .iter()
                    .zip(&canaries)
                    .map(|(name, canary)| (name.to_uppercase(), canary.clone()))
                    .collect();
                headers[0].1 = format!("Bearer {}", canaries[0]);
                headers[6].1 = format!("a=b; session={}", canaries[6]);
                *body = format!("{{\"key\":\"{}\"}}", canaries[1]);
            }
        }
        failed.log_tail = format!(
            "sent {} to postgres://me:canary-password@db.example/x",
            canaries[2]
        );
        let (expected, observed) = (
            format!("the key {}", canaries[0]),
            format!("the key {}", canaries[1]),
        );
        failed.verdict = Verdict::Failed {
            failure: Failure::Violated {
                fact: "answer.status".into(),
                expected,
                observed,
                mode: FailureMode::Silent,
            },
        };
        let mut run = record(vec![failed]);
        run.command = "gauntlet run --target http://me:canary-password@127.0.0.1:1".into();
        run.broken = Some("no http://me:canary-password@127.0.0.1:1".into());

        let folder = tempfile::tempdir().unwrap();
        run.write(folder.path()).unwrap();
        for file in ["report.json", "junit.xml", "report.md", "index.html"] {
            let text = std::fs::read_to_string(folder.path().join(file)).unwrap();
            assert!(!text.contains("canary"), "{file}: {text}");
            assert!(
                text.contains("[secret 1]") || text.contains("\\[secret 1\\]"),
                "two keys still differ in {file}: {text}"
            );
        }
        let again = RunRecord::read(&folder.path().join("report.json")).unwrap();
        assert!(again.outcomes[0].tape.iter().any(|entry| matches!(&entry.event, Event::RequestRead { headers, .. }
            if headers[0] == ("AUTHORIZATION".into(), "Bearer [secret 1]".into()) && headers[6].1 == "a=[secret] session=[secret 7]")));
        assert_eq!(redacted(&again).unwrap().outcomes, again.outcomes);
    }

    #[test]
    fn keys_are_masked_in_all_that_was_sent_and_no_answer_changes_its_length() {
        let key = "canary-key-0123456789";
        let mut failed = outcome("AUTH-02", Level::Must, violated());
        let tape = crate::tape::Tape::new();
        let client = || crate::tape::Side::Client("a".into());
        tape.record(
            client(),
            Event::ClientSent {
                method: "POST".into(),
                path: "/x".into(),
                headers: vec![("Authorization".into(), format!("Bearer {key}"))],
                body: format!("{{\"k\":\"{key}\"}}").into(),
                dribbled: None,
            },
        );
        let answer = format!(
            "HTTP/1.1 401 Unauthorized\r\nset-cookie: s=canary-cookie-9\r\nx-api-key: canary\r\n\r\n{key}"
        );
        let (first, second) = answer.split_at(answer.len() - 10);
        let send = |text: &str| Action::Send {
            bytes: text.to_string().into(),
            event: None,
        };
        let actions = vec![send(first), Action::Drain, send(second)];
        tape.record(
            crate::tape::Side::Provider("p1".into()),
            Event::Planned {
                request: 1,
                actions,
            },
        );
        tape.record(
            client(),
            Event::ClientStatus {
                status: 401,
                headers: vec![("set-cookie".into(), "t=canary-of-the-gateway".into())],
            },
        );
        let cut = format!("{}{key}", "x".repeat(crate::tape::MOST_KEPT - 15));
        for body in [
            Data::new(cut),
            Data::new([key.as_bytes(), &[0xff]].concat()),
        ] {
            tape.record(client(), Event::ClientAnswered { status: 401, body });
        }
        failed.tape = tape.entries();
        let safe = without_secrets(&failed, &Secrets::of(&failed)).unwrap();
        let text = serde_json::to_string(&safe.tape).unwrap();
        assert!(!text.contains("canary"), "{text}");
        assert!(text.contains("Bearer [secret 1]"), "{text}");
        let Event::Planned { actions, .. } = &safe.tape[1].event else {
            panic!("{text}");
        };
        let [
            Action::Send { bytes: head, .. },
            Action::Drain,
            Action::Send { bytes: rest, .. },
        ] = &actions[..]
        else {
            panic!("{actions:?}");
        };
        assert_eq!(
            (head.bytes().len(), rest.bytes().len()),
            (first.len(), second.len())
        );
        assert!(
            rest.is_whole()
                && head
                    .text()
                    .starts_with("HTTP/1.1 401 Unauthorized\r\nset-cookie: s=[secret 2]")
        );
        assert_eq!(without_secrets(&safe, &Secrets::of(&safe)).unwrap(), safe);
    }

    #[test]
    fn the_configuration_of_a_gateway_shows_no_credential_and_the_numbers_of_its_cases() {
        let rendered = Arc::new(Rendered {
            command: vec!["gw".into(), "--key=canary-client-0001".into()],
            env: [
                ("GW_MASTER_KEY".to_string(), "canary-master-1".to_string()),
                ("PATH_OF_KEY".to_string(), "/etc/key".to_string()),
            ]
            .into_iter()
            .collect(),
            files: vec![crate::subject::RenderedFile {
                name: "gw.yaml".into(),
                text: "max_tokens: 123456789\n  - api_key: \"canary-unused-1\"\n\
                    key_of_client: canary-client-0001\nurl: postgres://u:canary-password@h/d\n"
                    .into(),
            }],
        });
        let with = |id: &str, key: &str| {
            let mut failed = outcome(id, Level::Must, violated());
            for entry in &mut failed.tape {
                if let Event::ClientSent { headers, .. } = &mut entry.event {
                    *headers = vec![("x-api-key".into(), key.into())];
                }
            }
            failed.setup = Some(Setup {
                spec: crate::spec::Spec::solo(),
                base_url: "http://127.0.0.1:1".into(),
                model_prefix: String::new(),
                upstreams: Default::default(),
                rendered: Arc::clone(&rendered),
                gateway: 0,
            });
            failed
        };
        let run = record(vec![
            with("AUTH-01", "canary-client-0001"),
            with("AUTH-02", "canary-client-0002"),
        ]);
        let folder = tempfile::tempdir().unwrap();
        run.write(folder.path()).unwrap();
        for file in ["report.json", "index.html"] {
            let text = std::fs::read_to_string(folder.path().join(file)).unwrap();
            assert!(!text.contains("canary"), "{file}: {text}");
            assert_eq!(text.matches("max_tokens: 123456789").count(), 1, "{file}");
        }
        let again = RunRecord::read(&folder.path().join("report.json")).unwrap();
        let setup = |n: usize| again.outcomes[n].setup.clone().unwrap();
        assert_eq!(setup(0).rendered.command[1], "--key=[secret 1]");
        assert!(
            setup(0).rendered.files[0]
                .text
                .contains("max_tokens: 123456789")
        );
        assert_eq!(setup(0).rendered.env["PATH_OF_KEY"], "/etc/key");
        assert_eq!(setup(0).rendered, setup(1).rendered);
        assert_eq!(again.gateways().len(), 1);
        let sent = |n: usize| serde_json::to_string(&again.outcomes[n].tape).unwrap();
        assert!(sent(0).contains("[secret 1]") && !sent(0).contains("[secret 2]"));
        assert!(!sent(1).contains("[secret 1]"), "{}", sent(1));
        assert_eq!(redacted(&again).unwrap().outcomes, again.outcomes);
    }

    #[test]
    fn nothing_but_passwords_is_removed_from_urls() {
        for (text, safe) in [
            (
                "see https://example.com:80/a@b.",
                "see https://example.com:80/a@b.",
            ),
            (
                "'postgres://u:p:@q@h/d' and http://u:p@h",
                "'postgres://u:…@h/d' and http://u:…@h",
            ),
            ("://", "://"),
            ("postgres://u@h/d", "postgres://u@h/d"),
        ] {
            assert_eq!(without_passwords(text), safe);
        }
    }

    #[test]
    fn padding_is_part_of_a_key() {
        let found: Vec<_> = words("Basic dXNlcjpwYXNz==; a=b=c").collect();
        assert_eq!(
            found,
            [("", "Basic"), ("", "dXNlcjpwYXNz=="), ("a=", "b=c")]
        );
    }
}
