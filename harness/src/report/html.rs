//! The page: one file that loads nothing from the network, for a reader who knows the gateway and
//! not this suite.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value};
use serde::Serialize;

use super::messages::{lines, messages};
use super::setup::sentences;
use super::timeline::timeline;
use super::words::{counted, duration, escape};
use super::{RunRecord, cases};
use crate::exercise::State;
use crate::runner::{Outcome, Setup};
use crate::verdict::{Failure, FailureMode};

const TEMPLATE: &str = include_str!("page.html");

/// The data of one case that the template renders.
#[derive(Serialize)]
struct Row<'a> {
    id: &'a str,
    level: &'static str,
    word: &'static str,
    verdict: String,
    requirement: &'a str,
    why: &'a str,
    shown: &'a str,
    instances: String,
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
    setup: Vec<String>,
    /// The index of the gateway's configuration in the page.
    gateway: Option<usize>,
    timeline: String,
    messages: String,
    lines: String,
    entries: String,
}

/// Cases under one heading.
#[derive(Serialize)]
struct Section<'a> {
    name: &'a str,
    rows: Vec<Row<'a>>,
}

/// An area of the catalogue, in the map at the top.
#[derive(Serialize)]
struct Area<'a> {
    name: &'a str,
    cases: Vec<Square<'a>>,
}

#[derive(Serialize)]
struct Square<'a> {
    id: &'a str,
    word: &'static str,
    verdict: String,
    requirement: &'a str,
}

/// How many cases have a verdict.
#[derive(Serialize)]
struct Count {
    word: &'static str,
    label: &'static str,
    n: usize,
}

/// What a gateway was started with.
#[derive(Serialize)]
struct Configuration<'a> {
    number: usize,
    cases: Vec<&'a str>,
    command: String,
    env: Vec<String>,
    files: Vec<(&'a str, &'a str)>,
}

/// The word for a failure that the file of known failures lists.
const KNOWN: &str = "known";

/// Every verdict, the gravest first, and its name.
const VERDICTS: [(&str, &str); 9] = [
    ("failed", "failed"),
    ("harness", "failed in the harness"),
    ("warned", "warnings"),
    ("flaky", "flaky"),
    (KNOWN, "known failures"),
    ("not-exercised", "not exercised"),
    ("not-supported", "not supported"),
    ("not-run", "not run"),
    ("passed", "passed"),
];

/// The verdicts that come first, and their headings; the other cases follow by area.
const FIRST: [(&str, &[&str]); 5] = [
    ("Failed", &["failed", "harness"]),
    ("Warnings", &["warned"]),
    ("Flaky", &["flaky"]),
    ("Known failures", &[KNOWN]),
    ("Not exercised", &["not-exercised"]),
];

/// Renders the run as one HTML page.
pub(super) fn render(record: &RunRecord) -> Result<String, String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("linked", |text: &str| Value::from_safe_string(linked(text)));
    let context = Value::from_pairs([
        ("levels", Value::from(Serde(record.whole_levels()))),
        ("states", Value::from(Serde(states(record)))),
        ("faults", Value::from(Serde(record.faults()))),
        ("run", Value::from(Serde(record_without_tapes(record)))),
        ("counts", Value::from(Serde(counts(record)))),
        ("headline", Value::from(record.headline())),
        ("meaning", Value::from(record.meaning())),
        ("total", Value::from(cases(record.outcomes.len()))),
        ("run_total", Value::from(record.outcomes.len())),
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
        ("areas", Value::from(Serde(areas(record)))),
        ("sections", Value::from(Serde(sections(record)))),
        ("configurations", Value::from(Serde(configurations(record)))),
    ]);
    environment
        .render_named_str("page.html", TEMPLATE, context)
        .map_err(|error| format!("cannot render the report page: {error:#}"))
}

/// Returns the verdict of a case on the page: its word, or that it is a known failure.
fn word(record: &RunRecord, outcome: &Outcome) -> &'static str {
    if record.is_known(outcome) {
        KNOWN
    } else {
        outcome.word()
    }
}

fn verdict(word: &str) -> String {
    match word {
        KNOWN => "known failure".into(),
        word => word.replace('-', " "),
    }
}

fn counts(record: &RunRecord) -> Vec<Count> {
    let words: Vec<&str> = record
        .outcomes
        .iter()
        .map(|outcome| word(record, outcome))
        .collect();
    let count = |(word, label): (&'static str, &'static str)| Count {
        word,
        label,
        n: words.iter().filter(|known| **known == word).count(),
    };
    VERDICTS
        .map(count)
        .into_iter()
        .filter(|count| count.n > 0)
        .collect()
}

/// Returns each state with the number of cases that reached it; nothing if no case was examined.
fn states(record: &RunRecord) -> Vec<(&'static str, usize, &'static str)> {
    let row = |(state, cases): (State, usize)| (state.name(), cases, state.meaning());
    record.states().into_iter().map(row).collect()
}

fn areas(record: &RunRecord) -> Vec<Area<'_>> {
    let mut areas: Vec<Area<'_>> = Vec::new();
    for outcome in &record.outcomes {
        let word = word(record, outcome);
        let square = Square {
            id: &outcome.id,
            word,
            verdict: verdict(word),
            requirement: &outcome.requirement,
        };
        match areas.iter_mut().find(|area| area.name == outcome.area()) {
            Some(area) => area.cases.push(square),
            None => areas.push(Area {
                name: outcome.area(),
                cases: vec![square],
            }),
        }
    }
    areas
}

/// Returns the cases by heading: those that need a reader first, and then the areas.
fn sections(record: &RunRecord) -> Vec<Section<'_>> {
    let heading = |outcome| {
        let word = word(record, outcome);
        FIRST
            .iter()
            .find(|(_, words)| words.contains(&word))
            .map(|(heading, _)| *heading)
    };
    let mut sections: Vec<Section<'_>> = FIRST
        .iter()
        .map(|(name, _)| Section {
            name,
            rows: Vec::new(),
        })
        .collect();
    for outcome in &record.outcomes {
        let name = heading(outcome).unwrap_or(outcome.area());
        let row = row(record, outcome);
        match sections.iter_mut().find(|section| section.name == name) {
            Some(section) => section.rows.push(row),
            None => sections.push(Section {
                name,
                rows: vec![row],
            }),
        }
    }
    sections.retain(|section| !section.rows.is_empty());
    sections
}

fn configurations(record: &RunRecord) -> Vec<Configuration<'_>> {
    record
        .gateways()
        .into_iter()
        .enumerate()
        .filter(|(_, rendered)| !rendered.command.is_empty() || !rendered.files.is_empty())
        .map(|(number, rendered)| Configuration {
            number,
            cases: record
                .outcomes
                .iter()
                .filter(|outcome| {
                    let setup = outcome.setup.as_ref();
                    setup.is_some_and(|setup| setup.gateway == number)
                })
                .map(|outcome| outcome.id.as_str())
                .collect(),
            command: rendered.command.join(" "),
            env: rendered
                .env
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            files: rendered
                .files
                .iter()
                .map(|file| (file.name.as_str(), file.text.as_str()))
                .collect(),
        })
        .collect()
}

/// Returns the record without its outcomes, which the template gets as rows.
fn record_without_tapes(record: &RunRecord) -> RunRecord {
    RunRecord {
        command: record.again(),
        selection: String::new(),
        ..record.head()
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
    let word = word(record, outcome);
    let passed = word == "passed";
    let configured =
        |setup: &&Setup| !setup.rendered.command.is_empty() || !setup.rendered.files.is_empty();
    Row {
        id: &outcome.id,
        level,
        word,
        verdict: verdict(word),
        requirement: &outcome.requirement,
        why: &outcome.why,
        shown: &outcome.shown,
        instances: outcome.instances.join(" · "),
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
        setup: outcome.setup.as_ref().map(sentences).unwrap_or_default(),
        gateway: outcome
            .setup
            .as_ref()
            .filter(configured)
            .map(|setup| setup.gateway),
        timeline: if passed {
            String::new()
        } else {
            timeline(&outcome.tape)
        },
        messages: if passed {
            String::new()
        } else {
            messages(&outcome.tape)
        },
        lines: if passed {
            lines(&outcome.tape)
        } else {
            String::new()
        },
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
        let (failed, passed) = (page.find("id=\"TIME-02\""), page.find("id=\"TIME-03\""));
        assert!(failed < passed, "failed cases come first");
        assert_eq!(page.matches("<svg class=\"tape\"").count(), 1);
        assert!(page.contains("upstream p1 receives request 1: POST /v1/chat/completions"));
        assert!(
            page.contains("gateway → upstream p1: request 1"),
            "the messages"
        );
        assert!(
            page.contains(
                "has the whole answer, status 504: {&quot;error&quot;:&quot;&lt;timeout&gt;&quot;}"
            ),
            "the body of the error"
        );
        for outside in ["src=", "<link", "@import", "url("] {
            assert!(!page.contains(outside), "the page loads {outside}");
        }
    }

    #[test]
    fn a_known_failure_is_no_failure_of_the_page() {
        let mut run = record(vec![
            outcome("TIME-02", Level::Must, violated()),
            outcome("TIME-03", Level::Must, violated()),
        ]);
        run.baseline.known = vec!["TIME-02".into()];
        let page = super::render(&run).unwrap();
        let word = |id: &str| format!("id=\"{id}\" data-word=");
        assert!(page.contains(&format!("{}\"known\"", word("TIME-02"))));
        assert!(page.contains(&format!("{}\"failed\"", word("TIME-03"))));
        assert!(page.contains("known failures<b>1</b>") && page.contains("failed<b>1</b>"));
        assert!(page.find("id=\"TIME-03\"") < page.find("id=\"TIME-02\""));
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
