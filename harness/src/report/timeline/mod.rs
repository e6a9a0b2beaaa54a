//! The tape as a picture. Client, gateway, each provider, database and gates have a column; each
//! entry of the tape has a row, in the order of the tape, so that time runs downward but not to
//! scale, which the picture states. Bars are exchanges in flight: they show parallelism, retries
//! and cancellation.

mod layout;

use std::fmt::Write;

use super::words::{Sent, clip, counted, escape, is_trouble, milliseconds, party, words};
use crate::tape::{Entry, Event, Side};
pub(super) use layout::numbered;
use layout::{Bar, Column, Columns, HEAD, ROW, TIME_COLUMN, bars, count, kind, repeats, rows};

/// The largest number of entries that are drawn; it exceeds what a report holds of one tape.
const MOST_ROWS: usize = 900;
/// The width of the column of words.
const WORDS_COLUMN: f64 = 600.0;
/// The largest number of characters in it.
const MOST_WORDS: usize = 105;

/// Draws the tape as an inline SVG; an empty tape gives an empty text. Every text in it is escaped.
pub fn timeline(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let (entries, sent) = story(entries);
    let entries = entries.as_slice();
    let shown = &entries[..entries.len().min(MOST_ROWS)];
    let columns = Columns::of(shown);
    let rows = rows(shown);
    let foot = rows.last().copied().unwrap_or(HEAD) + ROW;
    let bars = bars(shown, &rows, &columns, foot);
    let columns = columns.placed(&bars);
    let height = foot
        + if entries.len() > shown.len() {
            2.0 * ROW
        } else {
            ROW / 2.0
        };
    let mut svg = String::new();
    let width = columns.width + WORDS_COLUMN;
    // writing to a String cannot fail
    let _ = write!(
        svg,
        "<svg class=\"tape\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"the tape as a sequence diagram\">"
    );
    svg.push_str("<text class=\"dim\" x=\"0\" y=\"18\">not to scale</text>");
    draw_columns(&mut svg, &columns, foot);
    draw_bars(&mut svg, &columns, &bars);
    draw_rows(&mut svg, shown, &sent, &rows, &columns);
    if entries.len() > shown.len() {
        let _ = write!(
            svg,
            "<text class=\"dim\" x=\"{:.0}\" y=\"{:.0}\">report.json holds {} more</text>",
            TIME_COLUMN,
            foot + ROW,
            counted(entries.len() - shown.len(), "entry", "entries")
        );
    }
    svg.push_str("</svg>");
    svg
}

/// Returns the entries that make rows, with their own numbers, and what the stubs planned to send.
pub(super) fn story(entries: &[Entry]) -> (Vec<Entry>, Sent) {
    let entries = numbered(entries);
    let sent = Sent::of(&entries);
    // the rows show what came of a plan
    let drawn = |entry: &Entry| !matches!(entry.event, Event::Planned { .. });
    (entries.into_iter().filter(drawn).collect(), sent)
}

fn draw_columns(svg: &mut String, columns: &Columns, foot: f64) {
    for (column, &x) in columns.columns.iter().zip(&columns.middles) {
        let (name, class) = match column {
            Column::Client => ("client".to_string(), "client"),
            Column::Gateway => ("gateway".to_string(), "gateway"),
            Column::Provider(_, name) => (party(&Side::Provider(name.clone())), "provider"),
            Column::Database => ("database".to_string(), "database"),
            Column::Gates => ("gates".to_string(), "gates"),
        };
        let _ = write!(
            svg,
            "<text class=\"column {class}\" x=\"{x:.1}\" y=\"18\" text-anchor=\"middle\">{}</text><line class=\"life\" x1=\"{x:.1}\" y1=\"26\" x2=\"{x:.1}\" y2=\"{foot:.1}\"/>",
            escape(&name)
        );
    }
}

fn draw_bars(svg: &mut String, columns: &Columns, bars: &[Bar]) {
    for bar in bars {
        let slots = bars
            .iter()
            .filter(|other| other.column == bar.column)
            .map(|other| other.slot + 1)
            .max()
            .unwrap_or(1);
        let left = columns.middles[bar.column] - count(slots) * columns.slot / 2.0
            + count(bar.slot) * columns.slot;
        let width = (columns.slot - 1.0).max(columns.slot * 2.0 / 3.0);
        let side = match columns.columns[bar.column] {
            Column::Client => "client",
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

fn draw_rows(svg: &mut String, entries: &[Entry], sent: &Sent, rows: &[f64], columns: &Columns) {
    let (mut last_label, mut last_time) = (0.0, 0.0);
    let mut i = 0;
    while i < entries.len() {
        let (entry, y) = (&entries[i], rows[i]);
        draw_mark(svg, entry, y, columns);
        let text = words(entry, sent);
        let crowd = (i + 1..entries.len())
            .take_while(|&j| repeats(entries, j))
            .filter(|&j| kind(&entries[j]) == kind(entry))
            .count();
        if !repeats(entries, i) || y - last_label >= ROW {
            let more = if crowd > 1 && !repeats(entries, i) {
                format!("  (and {crowd} more of this kind)")
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
                "<text class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                columns.width,
                y + 4.0,
                escape(&clip(&format!("{text}{more}"), MOST_WORDS))
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

/// Draws the mark of one entry: an arrow between columns, a dot, a cross, or a line across all
/// columns.
fn draw_mark(svg: &mut String, entry: &Entry, y: f64, columns: &Columns) {
    let own = columns.middles[columns.index(&entry.side)];
    let gateway = columns.middles[columns.gateway()];
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
        Event::ClientStatus { status, .. } => arrow(
            gateway,
            own,
            if *status < 400 { "answer" } else { "trouble" },
        ),
        Event::ClientAnswered { status, .. } if *status >= 400 => arrow(gateway, own, "trouble"),
        event @ Event::ClientChunk { .. } if is_trouble(event) => arrow(gateway, own, "trouble"),
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
                columns.width - 8.0,
                y - 6.0
            );
        }
        Event::Held { .. } => {
            let _ = write!(
                svg,
                "<circle class=\"held\" cx=\"{own:.1}\" cy=\"{y:.1}\" r=\"3\"/>"
            );
        }
        Event::Listening { .. } | Event::Planned { .. } | Event::Accepted { .. } => {
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
    fn bars_of_concurrent_requests_are_drawn_beside_each_other() {
        let tape = Tape::new();
        read(&tape, 1);
        read(&tape, 2);
        tape.record(
            Side::Provider("p1".into()),
            Event::AnswerSent { request: 1 },
        );
        read(&tape, 3);
        let entries = tape.entries();
        let columns = Columns::of(&entries);
        let slots: Vec<usize> = bars(&entries, &rows(&entries), &columns, 500.0)
            .iter()
            .map(|bar| bar.slot)
            .collect();
        assert_eq!(slots, [0, 1, 0]);
    }

    #[test]
    fn the_picture_holds_neither_markup_nor_keys() {
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
    fn a_crowd_leaves_room_for_the_words() {
        let tape = Tape::new();
        (1..=300).for_each(|request| read(&tape, request));
        let entries = tape.entries();
        let columns = Columns::of(&entries).placed(&bars(
            &entries,
            &rows(&entries),
            &Columns::of(&entries),
            500.0,
        ));
        assert!(columns.width < 400.0, "{}", columns.width);
    }

    #[test]
    fn a_few_attempts_have_a_line_each_and_a_crowd_has_not() {
        let lines = |requests: u64| {
            let tape = Tape::new();
            for request in 1..=requests {
                read(&tape, request);
                tape.record(Side::Provider("p1".into()), Event::AnswerSent { request });
            }
            timeline(&tape.entries()).matches("class=\"words").count()
        };
        assert_eq!(lines(4), 8);
        assert!(lines(200) < 200, "{}", lines(200));
    }

    #[test]
    fn an_empty_tape_has_no_picture() {
        assert_eq!(timeline(&[]), "");
    }
}
