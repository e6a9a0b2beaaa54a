//! The badge of a run: which level the gateway carries, by which requirements, and until when.
//!
//! It is written as SVG, and as JSON in the form of a shields.io endpoint
//! (<https://shields.io/badges/endpoint-badge>).

use jiff::SignedDuration;

use super::RunRecord;
use super::words::escape;

/// How many days a badge counts: gateways and suites change.
const DAYS: i64 = 90;

/// A badge, as text for both forms.
struct Badge {
    label: String,
    message: String,
    colour: &'static str,
    /// All facts in one sentence, for whoever points at it.
    title: String,
}

/// Renders the badge as SVG and as JSON; `None` for a run that is no verdict, or that left cases
/// out.
pub(super) fn render(record: &RunRecord) -> Option<(String, String)> {
    let badge = badge(record)?;
    let json = serde_json::json!({
        "schemaVersion": 1,
        "label": badge.label,
        "message": badge.message,
        "color": badge.colour,
        "cacheSeconds": 3600,
    });
    Some((svg(&badge), format!("{json}\n")))
}

fn badge(record: &RunRecord) -> Option<Badge> {
    let levels = record.whole_levels()?;
    if record.why_invalid().is_some() {
        return None;
    }
    let day = |time: jiff::Timestamp| time.strftime("%Y-%m-%d").to_string();
    let ends = record
        .started_at
        .checked_add(SignedDuration::from_hours(24 * DAYS));
    let (begins, ends) = (day(record.started_at), ends.map(day).ok()?);
    let (level, colour) = match levels.highest().map(|level| level.name.as_str()) {
        Some("complete") => ("complete", "brightgreen"),
        Some("operable") => ("operable", "green"),
        Some(level) => (level, "yellowgreen"),
        None => ("no level", "lightgrey"),
    };
    let version = record
        .target
        .version
        .as_deref()
        .unwrap_or("unknown version");
    let target = format!("{} {version}", record.target.name);
    Some(Badge {
        label: format!("gauntlet {}", levels.set),
        message: format!("{level}, {target}, until {ends}"),
        colour,
        title: format!(
            "{target} carries {level} by the requirements {}, which count from {}; examined by \
             gauntlet {} on {begins}, valid until {ends}",
            levels.set, levels.frozen, record.gauntlet
        ),
    })
}

fn svg(badge: &Badge) -> String {
    let fill = match badge.colour {
        "brightgreen" => "#4c1",
        "green" => "#97ca00",
        "yellowgreen" => "#a4a61d",
        _ => "#9f9f9f",
    };
    // about the width of a character of 11 px, and a margin on both sides
    let width = |text: &str| 10 + 7 * text.chars().count();
    let (label, message) = (width(&badge.label), width(&badge.message));
    let whole = label + message;
    let (at_label, at_message) = (label / 2, label + message / 2);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{whole}\" height=\"20\" role=\"img\" \
         aria-label=\"{title}\"><title>{title}</title>\
         <rect width=\"{label}\" height=\"20\" fill=\"#555\"/>\
         <rect x=\"{label}\" width=\"{message}\" height=\"20\" fill=\"{fill}\"/>\
         <g fill=\"#fff\" text-anchor=\"middle\" font-family=\"Verdana,DejaVu Sans,sans-serif\" \
         font-size=\"11\"><text x=\"{at_label}\" y=\"14\">{left}</text>\
         <text x=\"{at_message}\" y=\"14\">{right}</text></g></svg>\n",
        title = escape(&badge.title),
        left = escape(&badge.label),
        right = escape(&badge.message),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{outcome, record, violated};
    use super::*;
    use crate::levels::{Levels, RequirementSet};
    use crate::verdict::{Level, Verdict};

    fn run(verdict: Verdict) -> RunRecord {
        let mut run = record(vec![outcome("A-01", Level::Must, verdict)]);
        run.target.name = "my <gateway>".into();
        let set = "name = \"2026.12\"\nfrozen = \"2026-12-01\"\n[[requirement]]\nid = \"A-01\"\n\
                   level = \"MUST\"\nprofiles = [\"llm\"]\nwording = \"0\"\n";
        let set = RequirementSet::parse(set, "set").unwrap();
        run.levels = Some(Levels::of(&set, &run.outcomes));
        run
    }

    #[test]
    fn a_badge_names_level_requirements_target_and_expiry() {
        let (svg, json) = render(&run(Verdict::Passed)).unwrap();
        let badge: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&badge["schemaVersion"], &badge["label"], &badge["color"]),
            (&1.into(), &"gauntlet 2026.12".into(), &"brightgreen".into())
        );
        let message = badge["message"].as_str().unwrap();
        // the run began on 2026-01-02
        assert_eq!(
            message,
            "complete, my <gateway> gauntlet 0.1.0, until 2026-04-02"
        );
        assert!(
            svg.contains("valid until 2026-04-02</title>")
                && svg.contains("my &lt;gateway&gt;")
                && svg.contains("on 2026-01-02"),
            "{svg}"
        );
        let (_, json) = render(&run(violated())).unwrap();
        assert!(json.contains("no level, "), "{json}");
    }

    #[test]
    fn a_run_that_is_no_verdict_has_no_badge_and_removes_an_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let badge = folder.path().join("badge.svg");
        run(Verdict::Passed).write(folder.path()).unwrap();
        assert!(badge.is_file() && folder.path().join("badge.json").is_file());
        let mut partial = run(Verdict::Passed);
        partial.outcomes[0].id = "B-01".into();
        let set = partial.levels.take().unwrap();
        partial.levels = Some(Levels {
            levels: Vec::new(),
            ..set
        });
        partial.broken = Some("it was interrupted".into());
        partial.write(folder.path()).unwrap();
        assert!(!badge.exists() && !folder.path().join("badge.json").exists());
    }
}
