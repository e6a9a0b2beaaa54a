//! The tape as a picture: lanes for client, gateway, each provider, database and gates; time runs downward, one row an
//! entry in the order of the tape. Bars are exchanges in flight, so that parallelism, retries and cancellation are seen.

mod layout;

use std::fmt::Write;

use super::words::{clip, detail, escape, is_trouble, milliseconds, words};
use crate::tape::{Entry, Event};
use layout::{
    Bar, HEAD, Lane, Lanes, ROW, TIME_COLUMN, bars, count, kind, numbered, repeats, rows,
};

/// More entries are not drawn; the record has them all.
const MOST_ROWS: usize = 900;
/// The column of words.
const WORDS_COLUMN: f64 = 430.0;

/// The picture as an inline SVG; empty for an empty tape. Every text is escaped.
pub fn timeline(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let shown = &numbered(&entries[..entries.len().min(MOST_ROWS)]);
    let lanes = Lanes::of(shown);
    let rows = rows(shown);
    let foot = rows.last().copied().unwrap_or(HEAD) + ROW;
    let bars = bars(shown, &rows, &lanes, foot);
    let lanes = lanes.placed(&bars);
    let height = foot
        + if entries.len() > shown.len() {
            2.0 * ROW
        } else {
            ROW / 2.0
        };
    let mut svg = String::new();
    let width = lanes.width + WORDS_COLUMN;
    // writing to a String cannot fail
    let _ = write!(
        svg,
        "<svg class=\"tape\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"the tape as a sequence diagram\">"
    );
    draw_lanes(&mut svg, &lanes, foot);
    draw_bars(&mut svg, &lanes, &bars);
    draw_rows(&mut svg, shown, &rows, &lanes);
    if entries.len() > shown.len() {
        let _ = write!(
            svg,
            "<text class=\"dim\" x=\"{:.0}\" y=\"{:.0}\">… and {} more entries in report.json</text>",
            TIME_COLUMN,
            foot + ROW,
            entries.len() - shown.len()
        );
    }
    svg.push_str("</svg>");
    svg
}

fn draw_lanes(svg: &mut String, lanes: &Lanes, foot: f64) {
    for (lane, &x) in lanes.lanes.iter().zip(&lanes.middles) {
        let (name, class) = match lane {
            Lane::Client => ("client", "client"),
            Lane::Gateway => ("gateway", "gateway"),
            Lane::Provider(_, name) => (name.as_str(), "provider"),
            Lane::Database => ("database", "database"),
            Lane::Gates => ("gates", "gates"),
        };
        let _ = write!(
            svg,
            "<text class=\"lane {class}\" x=\"{x:.1}\" y=\"18\" text-anchor=\"middle\">{}</text><line class=\"life\" x1=\"{x:.1}\" y1=\"26\" x2=\"{x:.1}\" y2=\"{foot:.1}\"/>",
            escape(name)
        );
    }
}

fn draw_bars(svg: &mut String, lanes: &Lanes, bars: &[Bar]) {
    for bar in bars {
        let slots = bars
            .iter()
            .filter(|other| other.lane == bar.lane)
            .map(|other| other.slot + 1)
            .max()
            .unwrap_or(1);
        let left = lanes.middles[bar.lane] - count(slots) * lanes.slot / 2.0
            + count(bar.slot) * lanes.slot;
        let width = (lanes.slot - 1.0).max(lanes.slot * 2.0 / 3.0);
        let side = match lanes.lanes[bar.lane] {
            Lane::Client => "client",
            _ => "provider",
        };
        let _ = write!(
            svg,
            "<g><title>{}</title><rect class=\"bar {side} {}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"1.5\"/>",
            escape(&bar.title),
            bar.class,
            bar.top,
            (bar.bottom - bar.top).max(2.0)
        );
        if let Some((from, until)) = bar.held {
            let _ = write!(
                svg,
                "<rect class=\"hold\" x=\"{left:.1}\" y=\"{from:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>",
                (until - from).max(1.0)
            );
        }
        if bar.class != "done" && bar.class != "open" {
            let _ = write!(
                svg,
                "<rect class=\"end {}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"3\"/>",
                bar.class,
                left - 1.5,
                bar.bottom - 2.0,
                width + 3.0
            );
        }
        svg.push_str("</g>");
    }
}

fn draw_rows(svg: &mut String, entries: &[Entry], rows: &[f64], lanes: &Lanes) {
    let (mut last_label, mut last_time) = (0.0, 0.0);
    let mut i = 0;
    while i < entries.len() {
        let (entry, y) = (&entries[i], rows[i]);
        draw_mark(svg, entry, y, lanes);
        let text = words(entry);
        let crowd = (i + 1..entries.len())
            .take_while(|&j| repeats(entries, j))
            .filter(|&j| kind(&entries[j]) == kind(entry))
            .count();
        if !repeats(entries, i) || y - last_label >= ROW {
            let more = if crowd > 1 && !repeats(entries, i) {
                format!("  (and {crowd} like it)")
            } else {
                String::new()
            };
            let class = if is_trouble(&entry.event) {
                "words trouble"
            } else {
                "words"
            };
            let _ = write!(
                svg,
                "<text class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\"><title>{}</title>{}</text>",
                lanes.width,
                y + 4.0,
                escape(&detail(entry)),
                escape(&clip(&format!("{text}{more}"), 78))
            );
            last_label = y;
        }
        if y - last_time >= ROW {
            let _ = write!(
                svg,
                "<text class=\"time\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                TIME_COLUMN - 12.0,
                y + 4.0,
                milliseconds(entry.at_us)
            );
            last_time = y;
        }
        i += 1;
    }
}

/// The mark of one entry: an arrow between lanes, a dot, a cross, a line across.
fn draw_mark(svg: &mut String, entry: &Entry, y: f64, lanes: &Lanes) {
    let own = lanes.middles[lanes.index(&entry.side)];
    let gateway = lanes.middles[lanes.gateway()];
    let mut arrow = |from: f64, to: f64, class: &str| {
        let back = if to > from { -6.0 } else { 6.0 };
        let _ = write!(
            svg,
            "<line class=\"arrow {class}\" x1=\"{from:.1}\" y1=\"{y:.1}\" x2=\"{to:.1}\" y2=\"{y:.1}\"/><path class=\"tip {class}\" d=\"M{to:.1} {y:.1} l{back:.1} -3.5 v7 z\"/>"
        );
    };
    match &entry.event {
        Event::ClientSent { .. } => arrow(own, gateway, "ask"),
        Event::RequestRead { .. } => arrow(gateway, own, "ask"),
        Event::ClientStatus { status } => arrow(
            gateway,
            own,
            if *status < 400 { "answer" } else { "trouble" },
        ),
        Event::ClientAnswered { status } if *status >= 400 => arrow(gateway, own, "trouble"),
        Event::ClientChunk { .. } | Event::ClientAnswered { .. } => arrow(gateway, own, "answer"),
        Event::HeadSent { status, .. } => arrow(
            own,
            gateway,
            if *status < 400 { "answer" } else { "trouble" },
        ),
        Event::EventSent { .. } | Event::AnswerSent { .. } => arrow(own, gateway, "answer"),
        Event::PeerClosed { request, .. } => {
            let class = if request.is_some() { "left" } else { "faint" };
            arrow(gateway, own, class);
            cross(svg, own, y, class);
        }
        Event::ClientLeft => cross(svg, own, y, "left"),
        Event::ClientFailed { .. } | Event::Fault { .. } | Event::Unmatched { .. } => {
            cross(svg, own, y, "trouble")
        }
        Event::Opened | Event::Met { .. } => {
            let _ = write!(
                svg,
                "<line class=\"across\" x1=\"{TIME_COLUMN:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/><path class=\"gate\" d=\"M{own:.1} {:.1} l6 6 l-6 6 l-6 -6 z\"/>",
                lanes.width - 8.0,
                y - 6.0
            );
        }
        Event::Held { .. } => {
            let _ = write!(
                svg,
                "<circle class=\"held\" cx=\"{own:.1}\" cy=\"{y:.1}\" r=\"3\"/>"
            );
        }
        Event::Accepted { .. } => {
            let _ = write!(
                svg,
                "<circle class=\"dot faint\" cx=\"{own:.1}\" cy=\"{y:.1}\" r=\"2\"/>"
            );
        }
        Event::Database { .. } | Event::Target { .. } | Event::Note { .. } => {
            let _ = write!(
                svg,
                "<circle class=\"dot\" cx=\"{own:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"
            );
        }
    }
}

fn cross(svg: &mut String, x: f64, y: f64, class: &str) {
    let _ = write!(
        svg,
        "<path class=\"cross {class}\" d=\"M{:.1} {:.1} l8 8 m0 -8 l-8 8\"/>",
        x - 4.0,
        y - 4.0
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tape::{Side, Tape};

    fn read(tape: &Tape, request: u64) {
        tape.record(
            Side::Provider("p1".into()),
            Event::RequestRead {
                connection: request,
                request,
                method: "POST".into(),
                path: "/".into(),
                headers: vec![("Authorization".into(), "Bearer secret".into())],
                body: "<b>".into(),
            },
        );
    }

    #[test]
    fn requests_in_flight_together_stand_beside_each_other() {
        let tape = Tape::new();
        read(&tape, 1);
        read(&tape, 2);
        tape.record(
            Side::Provider("p1".into()),
            Event::AnswerSent { request: 1 },
        );
        read(&tape, 3);
        let entries = tape.entries();
        let lanes = Lanes::of(&entries);
        let slots: Vec<usize> = bars(&entries, &rows(&entries), &lanes, 500.0)
            .iter()
            .map(|bar| bar.slot)
            .collect();
        assert_eq!(slots, [0, 1, 0]);
    }

    #[test]
    fn neither_markup_nor_keys_get_into_the_picture() {
        let tape = Tape::new();
        read(&tape, 1);
        tape.record(
            Side::Provider("p1".into()),
            Event::Unmatched {
                request: 1,
                reason: "<script>\u{0}".into(),
            },
        );
        let svg = timeline(&tape.entries());
        assert!(
            !svg.contains("<script>") && !svg.contains("Bearer secret") && !svg.contains('\u{0}'),
            "{svg}"
        );
    }

    #[test]
    fn a_crowd_leaves_the_words_in_sight() {
        let tape = Tape::new();
        (1..=300).for_each(|request| read(&tape, request));
        let entries = tape.entries();
        let lanes = Lanes::of(&entries).placed(&bars(
            &entries,
            &rows(&entries),
            &Lanes::of(&entries),
            500.0,
        ));
        assert!(lanes.width < 400.0, "{}", lanes.width);
    }

    #[test]
    fn attempts_are_told_one_by_one_and_a_crowd_is_not() {
        let told = |requests: u64| {
            let tape = Tape::new();
            for request in 1..=requests {
                read(&tape, request);
                tape.record(Side::Provider("p1".into()), Event::AnswerSent { request });
            }
            timeline(&tape.entries()).matches("class=\"words").count()
        };
        assert_eq!(told(4), 8);
        assert!(told(200) < 200, "{}", told(200));
    }

    #[test]
    fn an_empty_tape_has_no_picture() {
        assert_eq!(timeline(&[]), "");
    }
}
