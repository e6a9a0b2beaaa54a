//! The live table of a run: a header, one line for each finished case, and a summary. Without a
//! terminal it prints plain lines.

use std::path::Path;
use std::time::Duration;

use console::{Style, style};
use gauntlet_harness::case::Level;
use gauntlet_harness::report::{DatabaseRecord, RunRecord, TargetRecord, cases, duration};
use gauntlet_harness::runner::{Outcome, Progress};
use indexmap::IndexMap;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The title of the failures that the baseline lists.
const KNOWN: &str = "Known failures (baseline)";

/// The table of one run.
pub struct Table {
    bar: ProgressBar,
    is_terminal: bool,
    width: usize,
    running: std::sync::Mutex<Vec<&'static str>>,
}

impl Table {
    /// Prints the header and starts the line of progress.
    pub fn new(
        target: &TargetRecord,
        database: &DatabaseRecord,
        cases: usize,
        jobs: usize,
    ) -> Self {
        if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
            console::set_colors_enabled(false);
        }
        let term = console::Term::stdout();
        let is_terminal = term.is_term();
        let width = if is_terminal {
            usize::from(term.size().1).max(60)
        } else {
            160
        };
        let version = target
            .version
            .as_deref()
            .map(|version| format!(" ({version})"))
            .unwrap_or_default();
        let dim = Style::new().dim();
        say!("{} {}", style("Gauntlet").bold(), env!("CARGO_PKG_VERSION"));
        say!("  {}    {}{version}", dim.apply_to("target"), target.name);
        say!(
            "  {}  {}, {}",
            dim.apply_to("database"),
            database.kind,
            database.why
        );
        say!(
            "  {}     on 127.0.0.1; each case has its own, with exact faults",
            dim.apply_to("stubs")
        );
        say!(
            "  {}     {cases}, up to {jobs} at the same time\n",
            dim.apply_to("cases")
        );
        let bar = ProgressBar::with_draw_target(
            Some(u64::try_from(cases).unwrap_or(u64::MAX)),
            if is_terminal {
                ProgressDrawTarget::stdout()
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        if let Ok(look) =
            ProgressStyle::with_template("  {spinner} {pos}/{len} {bar:24} {elapsed}  {wide_msg}")
        {
            bar.set_style(look.progress_chars("━╸─"));
        }
        if is_terminal {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        Self {
            bar,
            is_terminal,
            width,
            running: std::sync::Mutex::default(),
        }
    }

    /// Shows the progress of the run.
    pub fn show(&self, progress: Progress<'_>) {
        let mut running = self
            .running
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match progress {
            Progress::Started(id) => running.push(id),
            Progress::Finished(outcome) => {
                running.retain(|id| *id != outcome.id);
                self.line(&self.row(outcome));
                self.bar.inc(1);
            }
        }
        self.bar.set_message(running.join(" "));
    }

    /// Prints the summary. `page` is the path of the report, if it could be written.
    pub fn finish(&self, record: &RunRecord, page: Option<&Path>) {
        self.bar.finish_and_clear();
        let summary = record.summary();
        let counts = [
            (summary.passed, "passed", "passed"),
            (summary.failed, "failed", "failed"),
            (summary.harness, "harness", "failed in the harness"),
            (summary.warned, "warned", "warnings (SHOULD)"),
            (summary.flaky, "flaky", "flaky"),
            (summary.not_exercised, "not-exercised", "not exercised"),
            (summary.not_supported, "not-supported", "not supported"),
            (summary.not_run, "not-run", "not run"),
        ];
        let counts: Vec<String> = counts
            .iter()
            .filter(|(n, ..)| *n > 0)
            .map(|(n, word, label)| look(word).0.apply_to(format!("{n} {label}")).to_string())
            .collect();
        say!(
            "\n{} in {}: {}",
            cases(summary.total),
            duration(record.duration_ms),
            counts.join(", ")
        );
        self.group(record, "Failed", &["failed", "harness"]);
        self.group(record, "Warnings", &["warned"]);
        self.group(record, "Flaky", &["flaky"]);
        self.group(record, KNOWN, &["failed", "warned", "flaky"]);
        self.group(record, "Not exercised", &["not-exercised"]);
        self.group(record, "Not run", &["not-run"]);
        reached(record);
        levels(record);
        for line in &record.baseline.stale {
            say!("\n{} {line}", style("Stale line of the baseline:").red());
        }
        if let Some(why) = record.why_invalid() {
            say!("\n{}", style(why).red());
        }
        if let Some(page) = page {
            say!("\nReport: {}", page.display());
        }
        let colour = match record.exit_code() {
            0 => Style::new().green(),
            _ => Style::new().red(),
        };
        say!(
            "Exit code {}: {}",
            record.exit_code(),
            colour.apply_to(record.meaning())
        );
    }

    fn group(&self, record: &RunRecord, title: &str, words: &[&str]) {
        let chosen: Vec<&Outcome> = record
            .outcomes
            .iter()
            .filter(|outcome| words.contains(&outcome.word()))
            .filter(|outcome| record.is_known(outcome) == (title == KNOWN))
            .collect();
        if chosen.is_empty() {
            return;
        }
        say!("\n{}", style(title).bold());
        let mut by_reason: IndexMap<String, Vec<&str>> = IndexMap::new();
        for outcome in chosen {
            by_reason
                .entry(first_line(&outcome.reason()).to_string())
                .or_default()
                .push(&outcome.id);
        }
        for (reason, ids) in by_reason {
            say!("  {:<9} {reason}", ids.join(" "));
        }
    }

    fn row(&self, outcome: &Outcome) -> String {
        let (look, sign) = look(outcome.word());
        let level = if outcome.level == Level::Must {
            "MUST  "
        } else {
            "SHOULD"
        };
        let took = if outcome.attempts == 0 {
            String::new()
        } else {
            duration(outcome.duration_ms)
        };
        let room = self.width.saturating_sub(2 + 16 + 10 + 8 + 9);
        let verdict = format!("{sign} {}", outcome.word().replace('-', " "));
        let mut row = format!(
            "  {} {:<9} {level}  {:<room$} {took:>8}",
            look.apply_to(format!("{verdict:<15}")),
            outcome.id,
            clip(&outcome.requirement, room)
        );
        let reason = outcome.reason();
        if !reason.is_empty() {
            let reason = first_line(&reason);
            let reason = if self.is_terminal {
                clip(reason, self.width.saturating_sub(20))
            } else {
                reason.to_string()
            };
            row.push_str(&format!(
                "\n                    {}",
                Style::new().dim().apply_to(reason)
            ));
        }
        row
    }

    fn line(&self, text: &str) {
        if self.is_terminal {
            self.bar.println(text);
        } else {
            say!("{text}");
        }
    }
}

/// Prints the levels that the gateway carries, and what it lacks of the others; a run that left
/// cases out says nothing about them.
fn levels(record: &RunRecord) {
    let Some(levels) = record.whole_levels() else {
        return;
    };
    say!("\n{} {}", style("Levels").bold(), levels.set);
    for level in &levels.levels {
        let verdict = match level.carried {
            true => style("carried".to_string()).green(),
            false => style(format!(
                "not carried, {} of {} MUSTs passed; {}",
                level.passed,
                level.musts,
                level.missing_in_words()
            ))
            .dim(),
        };
        say!("  {:<9} {verdict}", level.name);
    }
}

/// Prints the states that the run reached, each with the number of cases, and the other ones.
fn reached(record: &RunRecord) {
    let states = record.states();
    let (seen, never): (Vec<_>, Vec<_>) = states.iter().partition(|(_, cases)| *cases > 0);
    if seen.is_empty() {
        return;
    }
    let dim = Style::new().dim();
    let seen = seen.iter().map(|(state, cases)| format!("{state} {cases}"));
    let line = seen.collect::<Vec<_>>().join(", ");
    say!("\n{} {line}", dim.apply_to("States reached (cases):"));
    let never: Vec<String> = never.iter().map(|(state, _)| state.to_string()).collect();
    if !never.is_empty() {
        say!(
            "{} {}",
            dim.apply_to("States never reached:"),
            never.join(", ")
        );
    }
}

/// The colour and the sign of a verdict.
fn look(word: &str) -> (Style, &'static str) {
    match word {
        "passed" => (Style::new().green(), "✓"),
        "failed" => (Style::new().red().bold(), "✗"),
        "warned" => (Style::new().yellow(), "!"),
        "flaky" => (Style::new().magenta(), "~"),
        "harness" => (Style::new().magenta().bold(), "✗"),
        _ => (Style::new().dim(), "-"),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn clip(text: &str, most: usize) -> String {
    console::truncate_str(text, most, "…").into_owned()
}
