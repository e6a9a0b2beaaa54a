//! A summary in Markdown, for job summaries and pull requests.

use std::fmt::Write;

use super::RunRecord;
use crate::runner::Outcome;

/// The run as Markdown.
pub(super) fn render(record: &RunRecord) -> String {
    let summary = record.summary();
    let mut text = String::new();
    let version = record.target.version.as_deref().unwrap_or("version unknown");
    // writing to a String cannot fail
    let _ = write!(
        text,
        "# Gauntlet: {} ({version})\n\n**{}**\n\n\
         | passed | failed | warnings | flaky | not supported | not run |\n|---|---|---|---|---|---|\n\
         | {} | {} | {} | {} | {} | {} |\n\n\
         Database: {} ({}). {} cases in {:.1} s. Again: `{}`\n",
        record.target.name,
        record.headline(),
        summary.passed,
        summary.failed + summary.harness,
        summary.warned,
        summary.flaky,
        summary.not_supported,
        summary.not_run,
        record.database.kind,
        record.database.why,
        summary.total,
        std::time::Duration::from_millis(record.duration_ms).as_secs_f64(),
        record.command,
    );
    if let Some(broken) = &record.broken {
        let _ = write!(text, "\n```\n{broken}\n```\n");
    }
    section(&mut text, record, "Failed", &["failed", "harness"]);
    section(&mut text, record, "Warnings (SHOULD)", &["warned"]);
    section(&mut text, record, "Flaky", &["flaky"]);
    section(&mut text, record, "Not supported", &["not-supported"]);
    section(&mut text, record, "Not run", &["not-run"]);
    section(&mut text, record, "Passed", &["passed"]);
    text
}

fn section(text: &mut String, record: &RunRecord, title: &str, words: &[&str]) {
    let chosen: Vec<&Outcome> = record.outcomes.iter().filter(|outcome| words.contains(&outcome.word())).collect();
    if chosen.is_empty() {
        return;
    }
    let _ = write!(text, "\n## {title}\n\n| case | requirement | why |\n|---|---|---|\n");
    for outcome in chosen {
        let _ = writeln!(text, "| {} | {} | {} |", outcome.id, cell(&outcome.requirement), cell(&outcome.reason()));
    }
}

/// Text that cannot leave its cell.
fn cell(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace('\n', "<br>")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{outcome, record, violated};
    use crate::case::Level;

    #[test]
    fn a_failure_is_listed_with_its_reason() {
        let text = super::render(&record(vec![outcome("TIME-02", Level::Must, violated())]));
        assert!(text.contains("| TIME-02 |") && text.contains("observed 200") && text.contains("&lt;timeout>"), "{text}");
    }
}
