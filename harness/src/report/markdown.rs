//! The run as a summary in Markdown, for job summaries and pull requests.

use std::fmt::Write;

use super::words::duration;
use super::{RunRecord, cases};
use crate::runner::Outcome;

/// The title of the failures that the baseline lists.
const KNOWN: &str = "Known failures";

/// Renders the run as Markdown.
pub(super) fn render(record: &RunRecord) -> String {
    let summary = record.summary();
    let mut text = String::new();
    let version = inline(
        record
            .target
            .version
            .as_deref()
            .unwrap_or("version unknown"),
    );
    // writing to a String cannot fail
    let _ = write!(
        text,
        "# Gauntlet: {} ({version})\n\n**{}**\n\n\
         | passed | failed | warnings | flaky | not exercised | not supported | not run |\n\
         |---|---|---|---|---|---|---|\n\
         | {} | {} | {} | {} | {} | {} | {} |\n\n\
         Database: {}, {}. The run took {} for {}. Run it again with {}\n",
        inline(&record.target.name),
        inline(&record.headline()),
        summary.passed,
        summary.failed + summary.harness,
        summary.warned,
        summary.flaky,
        summary.not_exercised,
        summary.not_supported,
        summary.not_run,
        inline(&record.database.kind),
        inline(&record.database.why),
        duration(record.duration_ms),
        cases(summary.total),
        code(&record.again()),
    );
    if let Some(broken) = &record.broken {
        let fence = "`".repeat(longest_run(broken).max(2) + 1);
        let lines: Vec<String> = lines(broken).map(printable).collect();
        let _ = write!(text, "\n{fence}\n{}\n{fence}\n", lines.join("\n"));
    }
    for line in &record.baseline.stale {
        let _ = write!(text, "\nStale line of the baseline: {}\n", inline(line));
    }
    levels(&mut text, record);
    section(&mut text, record, "Failed", &["failed", "harness"]);
    section(&mut text, record, "Warnings (SHOULD)", &["warned"]);
    section(&mut text, record, "Flaky", &["flaky"]);
    section(&mut text, record, KNOWN, &["failed", "warned", "flaky"]);
    section(&mut text, record, "Not exercised", &["not-exercised"]);
    section(&mut text, record, "Not supported", &["not-supported"]);
    section(&mut text, record, "Not run", &["not-run"]);
    section(&mut text, record, "Passed", &["passed"]);
    reached(&mut text, record);
    text
}

/// Lists the levels that the gateway carries; a run that left cases out says nothing about them.
fn levels(text: &mut String, record: &RunRecord) {
    let Some(levels) = record.whole_levels() else {
        return;
    };
    let _ = write!(
        text,
        "\n## Levels\n\nBy the requirements {}, which count from {}: a gateway carries a level if each \
         MUST of it was examined and passed.\n\n| level | carried | MUSTs passed | missing |\n\
         |---|---|---|---|\n",
        inline(&levels.set),
        inline(&levels.frozen)
    );
    for level in &levels.levels {
        let _ = writeln!(
            text,
            "| {} | {} | {} of {} | {} |",
            inline(&level.name),
            if level.carried { "yes" } else { "no" },
            level.passed,
            level.musts,
            cell(&level.missing_in_words())
        );
    }
}

/// Lists the states that the run reached, and the faults that it met.
fn reached(text: &mut String, record: &RunRecord) {
    let states = record.states();
    if states.is_empty() {
        return;
    }
    text.push_str("\n## States reached\n\n| state | cases | how it is seen |\n|---|---|---|\n");
    for (state, cases) in states {
        let _ = writeln!(
            text,
            "| {} | {cases} | {} |",
            cell(state.name()),
            cell(state.meaning())
        );
    }
    let faults = record.faults();
    if faults.is_empty() {
        return;
    }
    text.push_str("\n## Faults met\n\n| fault | planted | met |\n|---|---|---|\n");
    for (fault, planted, met) in faults {
        let _ = writeln!(text, "| {} | {planted} | {met} |", cell(&fault));
    }
}

fn section(text: &mut String, record: &RunRecord, title: &str, words: &[&str]) {
    let chosen: Vec<&Outcome> = record
        .outcomes
        .iter()
        .filter(|outcome| words.contains(&outcome.word()))
        .filter(|outcome| record.is_known(outcome) == (title == KNOWN))
        .collect();
    if chosen.is_empty() {
        return;
    }
    let _ = write!(
        text,
        "\n## {title}\n\n| case | requirement | reason |\n|---|---|---|\n"
    );
    for outcome in chosen {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            inline(&outcome.id),
            cell(&outcome.requirement),
            cell(&outcome.reason())
        );
    }
}

/// Renders a text for a cell of a table, which it cannot leave.
fn cell(text: &str) -> String {
    lines(text).map(inline).collect::<Vec<_>>().join("<br>")
}

/// Renders one line of text so that it shows no markup, no picture and no HTML.
fn inline(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '$' => safe.extend(['\\', c]),
            c => safe.push(c),
        }
    }
    safe
}

/// Renders one line of text as code.
fn code(text: &str) -> String {
    let fence = "`".repeat(longest_run(text) + 1);
    let pad = if fence.len() > 1 { " " } else { "" };
    format!("{fence}{pad}{}{pad}{fence}", printable(text))
}

/// Returns the lines of a text, whether they end with LF, CR or both.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n')
        .flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// Replaces characters that control a terminal or the direction of the text by spaces.
fn printable(text: &str) -> String {
    let controls =
        |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.replace(controls, " ")
}

/// Returns the length of the longest run of backticks in a text.
fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`')
        .map(str::len)
        .max()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{outcome, record, violated};
    use crate::verdict::{Failure, Level, Verdict};

    #[test]
    fn a_failure_is_listed_with_its_reason() {
        let text = super::render(&record(vec![outcome("TIME-02", Level::Must, violated())]));
        assert!(
            text.contains("| TIME-02 |")
                && text.contains("observed 200")
                && text.contains("&lt;timeout&gt;"),
            "{text}"
        );
    }

    #[test]
    fn hostile_text_is_shown_as_text() {
        let hostile = "a\rb\r\nc | ![x](https://evil.example/x.png) <img src=x> `code` &#33; **b** \u{1b}[31m \u{202e}";
        let mut run = record(vec![outcome(
            "TIME-02",
            Level::Must,
            Verdict::Failed {
                failure: Failure::Target {
                    what: hostile.into(),
                },
            },
        )]);
        (run.target.name, run.target.version) = (hostile.into(), Some(hostile.into()));
        (run.database.kind, run.database.why, run.command) = (
            hostile.into(),
            hostile.into(),
            format!("gauntlet run '```' {hostile}"),
        );
        run.broken = Some(format!("one\n````\n<script> {hostile}"));
        let text = super::render(&run);
        assert!(
            text.lines()
                .all(|line| !line.contains(|c: char| c.is_control() || c == '\u{202e}')),
            "{text:?}"
        );
        let (head, rest) = text.split_once("\n`````\n").unwrap();
        let (_, table) = rest.split_once("\n`````\n").unwrap();
        // outside code
        for line in head.lines().chain(table.lines()) {
            let line = line.split(" Run it again ").next().unwrap();
            for markup in ["![", "<img", "**b", " `code", "&#", " | !"] {
                assert!(!line.contains(markup), "{markup} in {line}");
            }
        }
        assert!(
            head.contains(" again with ```` gauntlet run '```' a b"),
            "{head}"
        );
        assert!(
            table.lines().any(|line| line.starts_with("| TIME-02 |")
                && line.contains("a<br>b<br>c \\| !\\[x\\](https")),
            "{table}"
        );
    }
}
