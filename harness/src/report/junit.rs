//! The run as JUnit XML: each area of the catalogue is a test suite, and a flaky case is a success
//! with a rerun, as CI systems expect it.

use std::time::Duration;

use indexmap::IndexMap;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestRerun, TestSuite};

use super::RunRecord;

/// Renders the run as JUnit XML.
pub(super) fn render(record: &RunRecord) -> Result<String, String> {
    let mut report = Report::new(legal(&format!("gauntlet {}", record.target.name)));
    report.set_time(Duration::from_millis(record.duration_ms));
    let mut suites: IndexMap<String, TestSuite> = IndexMap::new();
    for outcome in &record.outcomes {
        let mut status = match outcome.word() {
            "passed" | "flaky" => TestCaseStatus::success(),
            _ if record.is_known(outcome) => TestCaseStatus::skipped(),
            "failed" => TestCaseStatus::non_success(NonSuccessKind::Failure),
            "warned" if record.strict => TestCaseStatus::non_success(NonSuccessKind::Failure),
            "harness" => TestCaseStatus::non_success(NonSuccessKind::Error),
            _ => TestCaseStatus::skipped(),
        };
        if outcome.word() == "flaky" {
            let mut rerun = TestRerun::new(NonSuccessKind::Failure);
            rerun.set_message(legal(&outcome.reason()));
            status.add_rerun(rerun);
        } else if outcome.word() != "passed" {
            let warning = match outcome.word() {
                _ if record.is_known(outcome) => "known failure: ",
                "warned" => "SHOULD: ",
                _ => "",
            };
            status.set_message(legal(&format!("{warning}{}", outcome.reason())));
        }
        let mut case = TestCase::new(
            legal(&format!("{}: {}", outcome.id, outcome.requirement)),
            status,
        );
        case.set_classname(legal(&format!("gauntlet.{}", outcome.area())));
        case.set_time(Duration::from_millis(outcome.duration_ms));
        if !outcome.log_tail.is_empty() && outcome.word() != "passed" {
            case.set_system_out(legal(&outcome.log_tail));
        }
        suites
            .entry(outcome.area().to_string())
            .or_insert_with(|| TestSuite::new(legal(outcome.area())))
            .add_test_case(case);
    }
    if let Some(why) = record.why_invalid() {
        // without this error, CI systems show a run without a verdict as a success
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_message(legal(why.lines().next().unwrap_or_default()));
        status.set_description(legal(&why));
        let mut case = TestCase::new("the run", status);
        case.set_classname("gauntlet.run");
        let mut suite = TestSuite::new("run");
        suite.add_test_case(case);
        report.add_test_suite(suite);
    }
    report.add_test_suites(suites.into_values());
    report
        .to_string()
        .map_err(|error| format!("cannot write JUnit XML: {error}"))
}

/// Replaces the characters that XML 1.0 does not allow; a single one makes the file unreadable to
/// every parser.
fn legal(text: &str) -> String {
    text.replace(|c: char| !matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..), "\u{fffd}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{outcome, record, violated};
    use crate::verdict::{Failure, Level, Verdict};

    #[test]
    fn a_warning_is_no_failure_unless_the_run_is_strict() {
        let mut run = record(vec![
            outcome("A-01", Level::Must, Verdict::Passed),
            outcome("A-02", Level::Should, violated()),
        ]);
        assert!(super::render(&run).unwrap().contains("failures=\"0\""));
        run.strict = true;
        assert!(super::render(&run).unwrap().contains("failures=\"1\""));
    }

    #[test]
    fn a_run_without_a_verdict_is_an_error_with_all_lines_of_its_reason() {
        let why = || Verdict::NotRun { why: "w".into() };
        let mut run = record(vec![outcome("A-01", Level::Must, why())]);
        let xml = super::render(&run).unwrap();
        assert!(
            xml.contains("errors=\"1\"") && xml.contains("Nothing was examined"),
            "{xml}"
        );
        run.broken = Some("it exited with code 3:\n  no licence".into());
        let xml = super::render(&run).unwrap();
        assert!(
            xml.contains("errors=\"1\"") && xml.contains("  no licence"),
            "{xml}"
        );
    }

    #[test]
    fn characters_that_xml_does_not_allow_are_replaced() {
        let hostile = "a\u{0}b\u{1b}c\u{fffe}d\u{ffff}e]]>\u{1f600}";
        let failure = || Failure::Target {
            what: hostile.into(),
        };
        let mut flaky = outcome("A-01", Level::Must, Verdict::Flaky { failure: failure() });
        flaky.log_tail = hostile.into();
        let mut run = record(vec![
            flaky,
            outcome(hostile, Level::Must, Verdict::Failed { failure: failure() }),
        ]);
        run.target.name = hostile.into();
        let xml = super::render(&run).unwrap();
        assert!(
            !xml.contains(
                |c: char| matches!(c, '\u{fffe}' | '\u{ffff}') || (c.is_control() && c != '\n')
            ),
            "{xml:?}"
        );
        assert!(xml.contains("c\u{fffd}d\u{fffd}e]]&gt;\u{1f600}"), "{xml}");
    }
}
