//! The tape as a picture: lanes for client, gateway, each provider, database and gates; time runs downward, one row an
//! entry in the order of the tape. Bars are exchanges in flight, so that parallelism, retries and cancellation are seen.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::words::{clip, detail, escape, is_trouble, milliseconds, without_namespace, words};
use crate::tape::{Entry, Event, Side};

/// The height of a row, unless it repeats the one before.
const ROW: f64 = 17.0;
/// The height of a row that only repeats the one before (many requests of one kind).
const REPEATED_ROW: f64 = 4.0;
/// More entries are not drawn; the record has them all.
const MOST_ROWS: usize = 900;
/// The column of times.
const TIME_COLUMN: f64 = 64.0;
/// The least width of a lane.
const LANE: f64 = 104.0;
/// The column of words.
const WORDS_COLUMN: f64 = 430.0;
const HEAD: f64 = 34.0;

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
    let height = foot + if entries.len() > shown.len() { 2.0 * ROW } else { ROW / 2.0 };
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

/// The entries with requests and connections counted from 1 in this tape: their own numbers are those of the process.
fn numbered(entries: &[Entry]) -> Vec<Entry> {
    let (mut requests, mut connections) = (Numbers::default(), Numbers::default());
    let mut entries = entries.to_vec();
    for entry in &mut entries {
        match &mut entry.event {
            Event::Accepted { connection } | Event::PeerClosed { connection, request: None, .. } => connections.number(connection),
            Event::RequestRead { connection, request, .. } | Event::PeerClosed { connection, request: Some(request), .. } => {
                connections.number(connection);
                requests.number(request);
            }
            Event::Held { request, .. }
            | Event::HeadSent { request, .. }
            | Event::EventSent { request, .. }
            | Event::AnswerSent { request }
            | Event::Unmatched { request, .. }
            | Event::Fault { request: Some(request), .. } => requests.number(request),
            _ => {}
        }
    }
    entries
}

/// Numbers in the order of their first appearance.
#[derive(Default)]
struct Numbers(BTreeMap<u64, u64>);

impl Numbers {
    fn number(&mut self, number: &mut u64) {
        let next = u64::try_from(self.0.len()).unwrap_or(u64::MAX).saturating_add(1);
        *number = *self.0.entry(*number).or_insert(next);
    }
}

/// What a row is about: a lane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Client,
    Gateway,
    Provider(usize, String),
    Database,
    Gates,
}

struct Lanes {
    lanes: Vec<Lane>,
    middles: Vec<f64>,
    slot: f64,
    width: f64,
}

impl Lanes {
    fn of(entries: &[Entry]) -> Self {
        let mut providers: Vec<String> = Vec::new();
        let (mut client, mut database, mut gates) = (false, false, false);
        for entry in entries {
            match &entry.side {
                Side::Client(_) => client = true,
                Side::Provider(name) if !providers.contains(name) => providers.push(name.clone()),
                Side::Database => database = true,
                Side::Gate(_) => gates = true,
                _ => {}
            }
        }
        providers.sort();
        let mut lanes = Vec::new();
        if client {
            lanes.push(Lane::Client);
        }
        lanes.push(Lane::Gateway);
        lanes.extend(providers.into_iter().enumerate().map(|(i, name)| Lane::Provider(i, name)));
        if database {
            lanes.push(Lane::Database);
        }
        if gates {
            lanes.push(Lane::Gates);
        }
        Self { lanes, middles: Vec::new(), slot: 0.0, width: 0.0 }
    }

    /// Gives every lane its width, from the most bars that stand beside each other in it.
    fn placed(mut self, bars: &[Bar]) -> Self {
        let most = bars.iter().map(|bar| bar.slot + 1).max().unwrap_or(1);
        self.slot = if most <= 6 {
            10.0
        } else if most <= 16 {
            6.0
        } else {
            3.0
        };
        let mut x = TIME_COLUMN;
        for lane in 0..self.lanes.len() {
            let slots = bars.iter().filter(|bar| bar.lane == lane).map(|bar| bar.slot + 1).max().unwrap_or(1);
            let width = (count(slots) * self.slot + 44.0).max(LANE);
            self.middles.push(x + width / 2.0);
            x += width;
        }
        self.width = x + 12.0;
        self
    }

    fn index(&self, side: &Side) -> usize {
        let at = |wanted: &dyn Fn(&Lane) -> bool| self.lanes.iter().position(wanted).unwrap_or(0);
        match side {
            Side::Client(_) => at(&|lane| *lane == Lane::Client),
            Side::Provider(name) => at(&|lane| matches!(lane, Lane::Provider(_, known) if known == name)),
            Side::Database => at(&|lane| *lane == Lane::Database),
            Side::Gate(_) => at(&|lane| *lane == Lane::Gates),
            Side::Target => at(&|lane| *lane == Lane::Gateway),
        }
    }

    fn gateway(&self) -> usize {
        self.index(&Side::Target)
    }
}

/// An exchange in flight.
#[derive(Debug)]
struct Bar {
    lane: usize,
    slot: usize,
    top: f64,
    bottom: f64,
    class: &'static str,
    title: String,
    /// From here to there the answer was held.
    held: Option<(f64, f64)>,
}

/// Where each entry stands: entries that repeat the one before are drawn closer.
fn rows(entries: &[Entry]) -> Vec<f64> {
    let mut y = HEAD + ROW;
    let mut rows = Vec::with_capacity(entries.len());
    for (i, entry) in entries.iter().enumerate() {
        if i > 0 {
            y += if repeats(entries, i) { REPEATED_ROW } else { ROW };
        }
        let _ = entry;
        rows.push(y);
    }
    rows
}

/// Whether an entry is one of a crowd: its kind and lane stood at least twice among the eight before it.
fn repeats(entries: &[Entry], i: usize) -> bool {
    i >= 2 && (i.saturating_sub(8)..i).filter(|&j| kind(&entries[j]) == kind(&entries[i])).count() >= 2
}

fn kind(entry: &Entry) -> (std::mem::Discriminant<Event>, String) {
    let lane = match &entry.side {
        Side::Client(_) => "client".to_string(),
        Side::Provider(name) => format!("p:{name}"),
        Side::Database => "database".to_string(),
        Side::Gate(_) => "gate".to_string(),
        Side::Target => "target".to_string(),
    };
    (std::mem::discriminant(&entry.event), lane)
}

fn bars(entries: &[Entry], rows: &[f64], lanes: &Lanes, foot: f64) -> Vec<Bar> {
    let mut open: BTreeMap<(usize, String), usize> = BTreeMap::new();
    let mut bars: Vec<Bar> = Vec::new();
    for (entry, &y) in entries.iter().zip(rows) {
        let lane = lanes.index(&entry.side);
        let key = |exchange: &dyn std::fmt::Display| (lane, exchange.to_string());
        match (&entry.side, &entry.event) {
            (Side::Client(label), Event::ClientSent { method, path }) => {
                let bar = begin(&bars, &open, lane, y, foot, format!("{label}: {method} {path}"));
                open.insert(key(label), bars.len());
                bars.push(bar);
            }
            (_, Event::RequestRead { request, method, path, .. }) => {
                let bar = begin(&bars, &open, lane, y, foot, format!("request {request}: {method} {}", without_namespace(path)));
                open.insert(key(request), bars.len());
                bars.push(bar);
            }
            (_, Event::Held { request, .. }) => {
                if let Some(&bar) = open.get(&key(request)) {
                    bars[bar].held = Some((y, foot));
                }
            }
            (_, Event::HeadSent { request, .. } | Event::EventSent { request, .. }) => {
                if let Some(&bar) = open.get(&key(request)) {
                    end_hold(&mut bars[bar], y);
                }
            }
            (_, Event::AnswerSent { request }) => end(&mut bars, &mut open, &key(request), y, "done"),
            (_, Event::PeerClosed { request: Some(request), .. }) => end(&mut bars, &mut open, &key(request), y, "left"),
            (_, Event::Fault { request: Some(request), fault }) if ends_the_exchange(fault) => end(&mut bars, &mut open, &key(request), y, "broken"),
            (Side::Client(label), Event::ClientAnswered { status }) => {
                end(&mut bars, &mut open, &key(label), y, if *status < 400 { "done" } else { "broken" });
            }
            (Side::Client(label), Event::ClientFailed { .. }) => end(&mut bars, &mut open, &key(label), y, "broken"),
            (Side::Client(label), Event::ClientLeft) => end(&mut bars, &mut open, &key(label), y, "left"),
            _ => {}
        }
    }
    bars
}

fn begin(bars: &[Bar], open: &BTreeMap<(usize, String), usize>, lane: usize, y: f64, foot: f64, title: String) -> Bar {
    let taken: Vec<usize> = open.iter().filter(|((at, _), _)| *at == lane).map(|(_, &bar)| bars[bar].slot).collect();
    let slot = (0..).find(|slot| !taken.contains(slot)).unwrap_or_default();
    Bar { lane, slot, top: y, bottom: foot, class: "open", title, held: None }
}

fn end(bars: &mut [Bar], open: &mut BTreeMap<(usize, String), usize>, key: &(usize, String), y: f64, class: &'static str) {
    if let Some(bar) = open.remove(key) {
        bars[bar].bottom = y;
        bars[bar].class = class;
        end_hold(&mut bars[bar], y);
    }
}

fn end_hold(bar: &mut Bar, y: f64) {
    if let Some((from, until)) = bar.held {
        bar.held = Some((from, until.min(y)));
    }
}

fn ends_the_exchange(fault: &str) -> bool {
    ["cut", "reset"].iter().any(|word| fault.to_lowercase().contains(word))
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
        let slots = bars.iter().filter(|other| other.lane == bar.lane).map(|other| other.slot + 1).max().unwrap_or(1);
        let left = lanes.middles[bar.lane] - count(slots) * lanes.slot / 2.0 + count(bar.slot) * lanes.slot;
        let width = (lanes.slot - 1.0).max(2.0);
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
            let _ =
                write!(svg, "<rect class=\"hold\" x=\"{left:.1}\" y=\"{from:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>", (until - from).max(1.0));
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
        let crowd = (i + 1..entries.len()).take_while(|&j| repeats(entries, j)).filter(|&j| kind(&entries[j]) == kind(entry)).count();
        if !repeats(entries, i) || y - last_label >= ROW {
            let more = if crowd > 1 && !repeats(entries, i) { format!("  (and {crowd} like it)") } else { String::new() };
            let class = if is_trouble(&entry.event) { "words trouble" } else { "words" };
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
        Event::ClientStatus { status } => arrow(gateway, own, if *status < 400 { "answer" } else { "trouble" }),
        Event::ClientAnswered { status } if *status >= 400 => arrow(gateway, own, "trouble"),
        Event::ClientChunk { .. } | Event::ClientAnswered { .. } => arrow(gateway, own, "answer"),
        Event::HeadSent { status, .. } => arrow(own, gateway, if *status < 400 { "answer" } else { "trouble" }),
        Event::EventSent { .. } | Event::AnswerSent { .. } => arrow(own, gateway, "answer"),
        Event::PeerClosed { request, .. } => {
            let class = if request.is_some() { "left" } else { "faint" };
            arrow(gateway, own, class);
            cross(svg, own, y, class);
        }
        Event::ClientLeft => cross(svg, own, y, "left"),
        Event::ClientFailed { .. } | Event::Fault { .. } | Event::Unmatched { .. } => cross(svg, own, y, "trouble"),
        Event::Opened | Event::Met { .. } => {
            let _ = write!(
                svg,
                "<line class=\"across\" x1=\"{TIME_COLUMN:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/><path class=\"gate\" d=\"M{own:.1} {:.1} l6 6 l-6 6 l-6 -6 z\"/>",
                lanes.width - 8.0,
                y - 6.0
            );
        }
        Event::Held { .. } => {
            let _ = write!(svg, "<circle class=\"held\" cx=\"{own:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
        }
        Event::Accepted { .. } => {
            let _ = write!(svg, "<circle class=\"dot faint\" cx=\"{own:.1}\" cy=\"{y:.1}\" r=\"2\"/>");
        }
        Event::Database { .. } | Event::Target { .. } | Event::Note { .. } => {
            let _ = write!(svg, "<circle class=\"dot\" cx=\"{own:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>");
        }
    }
}

fn cross(svg: &mut String, x: f64, y: f64, class: &str) {
    let _ = write!(svg, "<path class=\"cross {class}\" d=\"M{:.1} {:.1} l8 8 m0 -8 l-8 8\"/>", x - 4.0, y - 4.0);
}

fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::MAX, f64::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tape::Tape;

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
        tape.record(Side::Provider("p1".into()), Event::AnswerSent { request: 1 });
        read(&tape, 3);
        let entries = tape.entries();
        let lanes = Lanes::of(&entries);
        let slots: Vec<usize> = bars(&entries, &rows(&entries), &lanes, 500.0).iter().map(|bar| bar.slot).collect();
        assert_eq!(slots, [0, 1, 0]);
    }

    #[test]
    fn neither_markup_nor_keys_get_into_the_picture() {
        let tape = Tape::new();
        read(&tape, 1);
        tape.record(Side::Provider("p1".into()), Event::Unmatched { request: 1, reason: "<script>\u{0}".into() });
        let svg = timeline(&tape.entries());
        assert!(!svg.contains("<script>") && !svg.contains("Bearer secret") && !svg.contains('\u{0}'), "{svg}");
    }

    #[test]
    fn an_empty_tape_has_no_picture() {
        assert_eq!(timeline(&[]), "");
    }
}
