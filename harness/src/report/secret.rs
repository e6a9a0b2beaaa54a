//! The redaction of reports: credentials in headers, their values wherever else they occur, and
//! passwords in URLs.
//!
//! A value becomes `[secret 1]`, `[secret 2]`, … in its case, so that a reader still sees which of
//! two keys was sent.

use serde_json::Value;

use super::RunRecord;
use crate::runner::Outcome;
use crate::tape::{Entry, Event};

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
pub(super) fn is_secret(header: &str) -> bool {
    HEADERS
        .iter()
        .any(|secret| header.eq_ignore_ascii_case(secret))
}

/// Returns the record without credentials.
///
/// # Errors
/// An error of JSON, if the record cannot be written as JSON.
pub(super) fn redacted(record: &RunRecord) -> Result<RunRecord, serde_json::Error> {
    let outcomes = record
        .outcomes
        .iter()
        .map(without_secrets)
        .collect::<Result<_, _>>()?;
    let mut head = serde_json::to_value(RunRecord {
        outcomes: Vec::new(),
        ..record.clone()
    })?;
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

fn without_secrets(outcome: &Outcome) -> Result<Outcome, serde_json::Error> {
    let secrets = Secrets::of(&outcome.tape);
    let mut outcome = outcome.clone();
    for entry in &mut outcome.tape {
        if let Event::RequestRead { headers, .. } = &mut entry.event {
            for (_, value) in headers
                .iter_mut()
                .filter(|(name, value)| is_open(name, value))
            {
                *value = secrets.masked(value);
            }
        }
    }
    // as JSON, so that every text is redacted, also one that is added to an event later
    let mut form = serde_json::to_value(&outcome)?;
    rewrite(&mut form, &|text| without_passwords(&secrets.hidden(text)));
    serde_json::from_value(form)
}

/// The credentials of one tape, word by word, in the order of their appearance.
struct Secrets(Vec<String>);

impl Secrets {
    fn of(tape: &[Entry]) -> Self {
        let mut secrets = Vec::new();
        for entry in tape {
            let Event::RequestRead { headers, .. } = &entry.event else {
                continue;
            };
            for (_, value) in headers.iter().filter(|(name, value)| is_open(name, value)) {
                for secret in words(value)
                    .map(|(_, secret)| secret)
                    .filter(|secret| is_key(secret))
                {
                    if !secrets.iter().any(|known| known == secret) {
                        secrets.push(secret.to_owned());
                    }
                }
            }
        }
        Self(secrets)
    }

    /// Returns the value of a secret header without its credentials.
    fn masked(&self, value: &str) -> String {
        let words = words(value).map(|(name, secret)| {
            match self.0.iter().position(|known| known == secret) {
                Some(n) => format!("{name}[secret {}]", n + 1),
                None if is_scheme(secret) => format!("{name}{secret}"),
                None => format!("{name}[secret]"),
            }
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Returns a text without these words.
    fn hidden(&self, text: &str) -> String {
        let mut longest_first: Vec<(usize, &String)> = self.0.iter().enumerate().collect();
        longest_first.sort_by_key(|(_, secret)| std::cmp::Reverse(secret.len()));
        longest_first
            .into_iter()
            .fold(text.to_owned(), |text, (n, secret)| {
                match text.contains(secret.as_str()) {
                    true => text.replace(secret.as_str(), &format!("[secret {}]", n + 1)),
                    false => text,
                }
            })
    }
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
    #![allow(clippy::unwrap_used)]
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
