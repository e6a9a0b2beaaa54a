//! The page: one file that loads nothing from the network, for a reader who knows the gateway and
//! not this suite.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value};
use serde::Serialize;

use super::timeline::timeline;
use super::words::{counted, duration, escape};
use super::{RunRecord, cases};
use crate::runner::Outcome;
use crate::verdict::{Failure, FailureMode};

const TEMPLATE: &str = include_str!("page.html");

/// The data of one case that the template renders.
#[derive(Serialize)]
struct Row<'a> {
    id: &'a str,
    area: &'a str,
    level: &'static str,
    word: &'static str,
    verdict: String,
    requirement: &'a str,
    why: &'a str,
    shown: &'a str,
    remedy: &'a str,
    reason: String,
    expected: Option<&'a str>,
    observed: Option<&'a str>,
    mode: Option<&'static str>,
    fact: Option<&'a str>,
    duration: String,
    attempts: u32,
    replay: String,
    log_tail: &'a str,
    timeline: String,
    entries: String,
}

#[derive(Serialize)]
struct Area<'a> {
    name: &'a str,
    rows: Vec<Row<'a>>,
}

/// Renders the run as one HTML page.
pub(super) fn render(record: &RunRecord) -> Result<String, String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("linked", |text: &str| Value::from_safe_string(linked(text)));
    let mut areas: Vec<Area<'_>> = Vec::new();
    for outcome in &record.outcomes {
        let row = row(record, outcome);
        match areas.iter_mut().find(|area| area.name == outcome.area()) {
            Some(area) => area.rows.push(row),
            None => areas.push(Area {
                name: outcome.area(),
                rows: vec![row],
            }),
        }
    }
    let levels = record.levels.as_ref();
    let levels = levels.filter(|levels| !levels.is_partial());
    let context = Value::from_pairs([
        ("run", Value::from(Serde(record_without_tapes(record)))),
        ("summary", Value::from(Serde(record.summary()))),
        ("levels", Value::from(Serde(levels))),
        ("headline", Value::from(record.headline())),
        ("meaning", Value::from(record.meaning())),
        ("total", Value::from(cases(record.outcomes.len()))),
        ("exit_code", Value::from(record.exit_code())),
        ("duration", Value::from(duration(record.duration_ms))),
        (
            "started",
            Value::from(
                record
                    .started_at
                    .strftime("%Y-%m-%d %H:%M:%S UTC")
                    .to_string(),
            ),
        ),
        ("areas", Value::from(Serde(areas))),
    ]);
    environment
        .render_named_str("page.html", TEMPLATE, context)
        .map_err(|error| format!("cannot render the report page: {error:#}"))
}

/// Returns the record without its outcomes, which the template gets as rows.
fn record_without_tapes(record: &RunRecord) -> RunRecord {
    RunRecord {
        outcomes: Vec::new(),
        target: record.target.clone(),
        database: record.database.clone(),
        command: record.again(),
        selection: String::new(),
        broken: record.broken.clone(),
        baseline: record.baseline.clone(),
        levels: record.levels.clone(),
        gauntlet: record.gauntlet.clone(),
        ..*record
    }
}

fn row<'a>(record: &RunRecord, outcome: &'a Outcome) -> Row<'a> {
    let violated = match outcome.failure() {
        Some(Failure::Violated {
            fact,
            expected,
            observed,
            mode,
        }) => Some((fact.as_str(), expected.as_str(), observed.as_str(), *mode)),
        _ => None,
    };
    let level = match outcome.level {
        crate::verdict::Level::Must => "MUST",
        crate::verdict::Level::Should => "SHOULD",
    };
    Row {
        id: &outcome.id,
        area: outcome.area(),
        level,
        word: outcome.word(),
        verdict: outcome.word().replace('-', " "),
        requirement: &outcome.requirement,
        why: &outcome.why,
        shown: &outcome.shown,
        remedy: &outcome.remedy,
        reason: outcome.reason(),
        expected: violated.map(|(_, expected, ..)| expected),
        observed: violated.map(|(_, _, observed, _)| observed),
        fact: violated.map(|(fact, ..)| fact),
        mode: violated.map(|(.., mode)| match mode {
            FailureMode::Visible => {
                "visible: a client or an operator can see that something is wrong"
            }
            FailureMode::Silent => "silent: the wrong result looks right",
            FailureMode::Hang => "hang: what the case waited for never happened",
        }),
        duration: if outcome.attempts == 0 {
            String::new()
        } else {
            duration(outcome.duration_ms)
        },
        attempts: outcome.attempts,
        replay: format!("{} {}", record.command, outcome.id),
        log_tail: &outcome.log_tail,
        timeline: timeline(&outcome.tape),
        entries: counted(outcome.tape.len(), "event", "events"),
    }
}

/// Escapes a text and makes links of its web addresses.
fn linked(text: &str) -> String {
    text.split_inclusive(|c: char| c.is_whitespace() || "()<>\"',;".contains(c))
        .map(|word| {
            let address =
                word.trim_end_matches(|c: char| c.is_whitespace() || "()<>\"',;.".contains(c));
            let (address, rest) = (escape(address), escape(&word[address.len()..]));
            if address.starts_with("https://") {
                format!("<a href=\"{address}\" rel=\"noreferrer\">{address}</a>{rest}")
            } else {
                format!("{address}{rest}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{outcome, record, violated};
    use crate::verdict::{Level, Verdict};

    #[test]
    fn the_page_is_self_contained_and_escapes_what_it_shows() {
        let page = super::render(&record(vec![
            outcome("TIME-02", Level::Must, violated()),
            outcome("TIME-03", Level::Must, Verdict::Passed),
        ]))
        .unwrap();
        assert!(page.contains("504 &amp; &lt;timeout&gt;"), "escaped");
        assert!(page.contains("<svg class=\"tape\""), "the picture");
        assert!(
            page.contains("gauntlet run --target bundled TIME-02"),
            "the replay command"
        );
        for outside in ["src=", "<link", "@import", "url("] {
            assert!(!page.contains(outside), "the page loads {outside}");
        }
    }

    #[test]
    fn addresses_become_links_and_markup_does_not() {
        let text = super::linked("lost (https://example.com/a?b=1&c=2). <b>");
        assert_eq!(
            text,
            "lost (<a href=\"https://example.com/a?b=1&amp;c=2\" rel=\"noreferrer\">https://example.com/a?b=1&amp;c=2</a>). &lt;b&gt;"
        );
    }
}
