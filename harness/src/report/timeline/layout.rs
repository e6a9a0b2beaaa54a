//! The layout of the picture: its columns, its rows, and the bars of exchanges in flight. All
//! lengths are pixels.

use std::collections::BTreeMap;

use super::super::words::without_namespace;
use crate::tape::{Entry, Event, Side};

/// The height of a row that does not repeat earlier ones.
pub(super) const ROW: f64 = 17.0;
/// The height of a row that repeats earlier ones, in a crowd of requests of one kind.
const REPEATED_ROW: f64 = 4.0;
/// The width of the column of times.
pub(super) const TIME_COLUMN: f64 = 72.0;
/// The least width of a column, and the least width if there are many columns.
const COLUMN: f64 = 104.0;
const NARROW_COLUMN: f64 = 80.0;
const MANY_COLUMNS: usize = 6;
/// The largest width of the bars of a column: a crowd becomes one surface, and the words beside the
/// picture stay visible.
const BARS: f64 = 140.0;
/// The height of the names of the columns.
pub(super) const HEAD: f64 = 34.0;

/// Returns the entries with requests and connections numbered from 1 in this tape, and with times
/// from its first entry on; their own numbers count all requests of the process.
pub(in super::super) fn numbered(entries: &[Entry]) -> Vec<Entry> {
    let (mut requests, mut connections) = (Numbers::default(), Numbers::default());
    let mut entries = entries.to_vec();
    let begin = entries.first().map_or(0, |entry| entry.at_us);
    for entry in &mut entries {
        entry.at_us = entry.at_us.saturating_sub(begin);
        match &mut entry.event {
            Event::Accepted { connection }
            | Event::PeerClosed {
                connection,
                request: None,
                ..
            } => connections.number(connection),
            Event::RequestRead {
                connection,
                request,
                ..
            }
            | Event::PeerClosed {
                connection,
                request: Some(request),
                ..
            } => {
                connections.number(connection);
                requests.number(request);
            }
            Event::Planned { request, .. }
            | Event::Held { request, .. }
            | Event::HeadSent { request, .. }
            | Event::EventSent { request, .. }
            | Event::AnswerSent { request }
            | Event::Unmatched { request, .. }
            | Event::Fault {
                request: Some(request),
                ..
            } => requests.number(request),
            _ => {}
        }
    }
    entries
}

/// New numbers for old ones, in the order of their first appearance.
#[derive(Default)]
struct Numbers(BTreeMap<u64, u64>);

impl Numbers {
    fn number(&mut self, number: &mut u64) {
        let next = u64::try_from(self.0.len())
            .unwrap_or(u64::MAX)
            .saturating_add(1);
        *number = *self.0.entry(*number).or_insert(next);
    }
}

/// A column of the picture: a party of the exchange.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Column {
    Client,
    Gateway,
    Provider(usize, String),
    Database,
    Gates,
}

/// The columns of one picture.
pub(super) struct Columns {
    pub columns: Vec<Column>,
    /// The middle of each column; empty until [`Columns::placed`] knows the bars.
    pub middles: Vec<f64>,
    /// The width of a bar and of the gap beside it.
    pub slot: f64,
    pub width: f64,
}

impl Columns {
    pub fn of(entries: &[Entry]) -> Self {
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
        let mut columns = Vec::new();
        if client {
            columns.push(Column::Client);
        }
        columns.push(Column::Gateway);
        columns.extend(
            providers
                .into_iter()
                .enumerate()
                .map(|(i, name)| Column::Provider(i, name)),
        );
        if database {
            columns.push(Column::Database);
        }
        if gates {
            columns.push(Column::Gates);
        }
        Self {
            columns,
            middles: Vec::new(),
            slot: 0.0,
            width: 0.0,
        }
    }

    /// Gives each column its width, which the largest number of concurrent bars in it decides.
    pub fn placed(mut self, bars: &[Bar]) -> Self {
        let most = bars.iter().map(|bar| bar.slot + 1).max().unwrap_or(1);
        self.slot = if most <= 6 {
            10.0
        } else if most <= 16 {
            6.0
        } else {
            (BARS / count(most)).min(3.0)
        };
        let least = if self.columns.len() > MANY_COLUMNS {
            NARROW_COLUMN
        } else {
            COLUMN
        };
        let mut x = TIME_COLUMN;
        for column in 0..self.columns.len() {
            let slots = bars
                .iter()
                .filter(|bar| bar.column == column)
                .map(|bar| bar.slot + 1)
                .max()
                .unwrap_or(1);
            let width = (count(slots) * self.slot + 44.0).max(least);
            self.middles.push(x + width / 2.0);
            x += width;
        }
        self.width = x + 12.0;
        self
    }

    pub fn index(&self, side: &Side) -> usize {
        let at =
            |wanted: &dyn Fn(&Column) -> bool| self.columns.iter().position(wanted).unwrap_or(0);
        match side {
            Side::Client(_) => at(&|column| *column == Column::Client),
            Side::Provider(name) => {
                at(&|column| matches!(column, Column::Provider(_, known) if known == name))
            }
            Side::Database => at(&|column| *column == Column::Database),
            Side::Gate(_) => at(&|column| *column == Column::Gates),
            Side::Target => at(&|column| *column == Column::Gateway),
        }
    }

    pub fn gateway(&self) -> usize {
        self.index(&Side::Target)
    }
}

/// The bar of one exchange, drawn while it is in flight.
#[derive(Debug)]
pub(super) struct Bar {
    pub column: usize,
    pub slot: usize,
    pub top: f64,
    pub bottom: f64,
    pub class: &'static str,
    pub title: String,
    /// The part of the bar in which the answer was held: its top and its bottom.
    pub held: Option<(f64, f64)>,
}

/// Returns the height of each entry; entries that repeat earlier ones are drawn closer together.
pub(super) fn rows(entries: &[Entry]) -> Vec<f64> {
    let mut y = HEAD + ROW;
    let mut rows = Vec::with_capacity(entries.len());
    for i in 0..entries.len() {
        if i > 0 {
            y += if repeats(entries, i) {
                REPEATED_ROW
            } else {
                ROW
            };
        }
        rows.push(y);
    }
    rows
}

/// Returns whether an entry belongs to a crowd: at least six of the two dozen entries before it
/// have its kind and its column. Fewer entries are drawn one by one, because the third attempt may
/// be what the picture is about.
pub(super) fn repeats(entries: &[Entry], i: usize) -> bool {
    (i.saturating_sub(24)..i)
        .filter(|&j| kind(&entries[j]) == kind(&entries[i]))
        .count()
        >= 6
}

/// The kind of an entry: its event and its column.
pub(super) fn kind(entry: &Entry) -> (std::mem::Discriminant<Event>, String) {
    let column = match &entry.side {
        Side::Client(_) => "client".to_string(),
        Side::Provider(name) => format!("p:{name}"),
        Side::Database => "database".to_string(),
        Side::Gate(_) => "gate".to_string(),
        Side::Target => "target".to_string(),
    };
    (std::mem::discriminant(&entry.event), column)
}

/// Returns the bars of all exchanges; `foot` is where a bar without an end stops.
pub(super) fn bars(entries: &[Entry], rows: &[f64], columns: &Columns, foot: f64) -> Vec<Bar> {
    let mut open: BTreeMap<(usize, String), usize> = BTreeMap::new();
    let mut bars: Vec<Bar> = Vec::new();
    for (entry, &y) in entries.iter().zip(rows) {
        let column = columns.index(&entry.side);
        let key = |exchange: &dyn std::fmt::Display| (column, exchange.to_string());
        match (&entry.side, &entry.event) {
            (Side::Client(label), Event::ClientSent { method, path, .. }) => {
                let bar = begin(
                    &bars,
                    &open,
                    column,
                    y,
                    foot,
                    format!("{label}: {method} {path}"),
                );
                open.insert(key(label), bars.len());
                bars.push(bar);
            }
            (
                _,
                Event::RequestRead {
                    request,
                    method,
                    path,
                    ..
                },
            ) => {
                let bar = begin(
                    &bars,
                    &open,
                    column,
                    y,
                    foot,
                    format!("request {request}: {method} {}", without_namespace(path)),
                );
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
            (_, Event::AnswerSent { request }) => {
                end(&mut bars, &mut open, &key(request), y, "done")
            }
            (
                _,
                Event::PeerClosed {
                    request: Some(request),
                    ..
                },
            ) => end(&mut bars, &mut open, &key(request), y, "left"),
            (
                _,
                Event::Fault {
                    request: Some(request),
                    fault,
                },
            ) if ends_the_exchange(fault) => end(&mut bars, &mut open, &key(request), y, "broken"),
            (Side::Client(label), Event::ClientAnswered { status, .. }) => {
                end(
                    &mut bars,
                    &mut open,
                    &key(label),
                    y,
                    if *status < 400 { "done" } else { "broken" },
                );
            }
            (Side::Client(label), Event::ClientFailed { .. }) => {
                end(&mut bars, &mut open, &key(label), y, "broken")
            }
            (Side::Client(label), Event::ClientLeft) => {
                end(&mut bars, &mut open, &key(label), y, "left")
            }
            _ => {}
        }
    }
    bars
}

fn begin(
    bars: &[Bar],
    open: &BTreeMap<(usize, String), usize>,
    column: usize,
    y: f64,
    foot: f64,
    title: String,
) -> Bar {
    let taken: Vec<usize> = open
        .iter()
        .filter(|((at, _), _)| *at == column)
        .map(|(_, &bar)| bars[bar].slot)
        .collect();
    let slot = (0..).find(|slot| !taken.contains(slot)).unwrap_or_default();
    Bar {
        column,
        slot,
        top: y,
        bottom: foot,
        class: "open",
        title,
        held: None,
    }
}

fn end(
    bars: &mut [Bar],
    open: &mut BTreeMap<(usize, String), usize>,
    key: &(usize, String),
    y: f64,
    class: &'static str,
) {
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
    ["cut", "reset"]
        .iter()
        .any(|word| fault.to_lowercase().contains(word))
}

/// A number as a factor of lengths.
pub(super) fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::MAX, f64::from)
}
