//! Where everything of the picture stands: lanes, rows, and the bars of exchanges in flight.

use std::collections::BTreeMap;

use super::super::words::without_namespace;
use crate::tape::{Entry, Event, Side};

/// The height of a row, unless it repeats the one before.
pub(super) const ROW: f64 = 17.0;
/// The height of a row that only repeats the one before (many requests of one kind).
const REPEATED_ROW: f64 = 4.0;
/// The column of times.
pub(super) const TIME_COLUMN: f64 = 64.0;
/// The least width of a lane, and where there are many.
const LANE: f64 = 104.0;
const NARROW_LANE: f64 = 80.0;
const MANY_LANES: usize = 6;
/// The most that the bars of a lane take: a crowd is a surface, and the words stay in sight.
const BARS: f64 = 140.0;
pub(super) const HEAD: f64 = 34.0;

/// The entries with requests and connections counted from 1 in this tape: their own numbers are those of the process.
pub(super) fn numbered(entries: &[Entry]) -> Vec<Entry> {
    let (mut requests, mut connections) = (Numbers::default(), Numbers::default());
    let mut entries = entries.to_vec();
    for entry in &mut entries {
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
            Event::Held { request, .. }
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

/// Numbers in the order of their first appearance.
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

/// What a row is about: a lane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    Client,
    Gateway,
    Provider(usize, String),
    Database,
    Gates,
}

pub(super) struct Lanes {
    pub lanes: Vec<Lane>,
    /// Where each lane stands; known once the bars are.
    pub middles: Vec<f64>,
    /// The width of a bar with the gap beside it.
    pub slot: f64,
    pub width: f64,
}

impl Lanes {
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
        let mut lanes = Vec::new();
        if client {
            lanes.push(Lane::Client);
        }
        lanes.push(Lane::Gateway);
        lanes.extend(
            providers
                .into_iter()
                .enumerate()
                .map(|(i, name)| Lane::Provider(i, name)),
        );
        if database {
            lanes.push(Lane::Database);
        }
        if gates {
            lanes.push(Lane::Gates);
        }
        Self {
            lanes,
            middles: Vec::new(),
            slot: 0.0,
            width: 0.0,
        }
    }

    /// Gives every lane its width, from the most bars that stand beside each other in it.
    pub fn placed(mut self, bars: &[Bar]) -> Self {
        let most = bars.iter().map(|bar| bar.slot + 1).max().unwrap_or(1);
        self.slot = if most <= 6 {
            10.0
        } else if most <= 16 {
            6.0
        } else {
            (BARS / count(most)).min(3.0)
        };
        let least = if self.lanes.len() > MANY_LANES {
            NARROW_LANE
        } else {
            LANE
        };
        let mut x = TIME_COLUMN;
        for lane in 0..self.lanes.len() {
            let slots = bars
                .iter()
                .filter(|bar| bar.lane == lane)
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
        let at = |wanted: &dyn Fn(&Lane) -> bool| self.lanes.iter().position(wanted).unwrap_or(0);
        match side {
            Side::Client(_) => at(&|lane| *lane == Lane::Client),
            Side::Provider(name) => {
                at(&|lane| matches!(lane, Lane::Provider(_, known) if known == name))
            }
            Side::Database => at(&|lane| *lane == Lane::Database),
            Side::Gate(_) => at(&|lane| *lane == Lane::Gates),
            Side::Target => at(&|lane| *lane == Lane::Gateway),
        }
    }

    pub fn gateway(&self) -> usize {
        self.index(&Side::Target)
    }
}

/// An exchange in flight.
#[derive(Debug)]
pub(super) struct Bar {
    pub lane: usize,
    pub slot: usize,
    pub top: f64,
    pub bottom: f64,
    pub class: &'static str,
    pub title: String,
    /// From here to there the answer was held.
    pub held: Option<(f64, f64)>,
}

/// Where each entry stands: entries that repeat the one before are drawn closer.
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

/// Whether an entry is one of a crowd: its kind and lane stood at least six times among the two dozen before it. Fewer are told one
/// by one: a third attempt may be what the whole picture is about.
pub(super) fn repeats(entries: &[Entry], i: usize) -> bool {
    (i.saturating_sub(24)..i)
        .filter(|&j| kind(&entries[j]) == kind(&entries[i]))
        .count()
        >= 6
}

pub(super) fn kind(entry: &Entry) -> (std::mem::Discriminant<Event>, String) {
    let lane = match &entry.side {
        Side::Client(_) => "client".to_string(),
        Side::Provider(name) => format!("p:{name}"),
        Side::Database => "database".to_string(),
        Side::Gate(_) => "gate".to_string(),
        Side::Target => "target".to_string(),
    };
    (std::mem::discriminant(&entry.event), lane)
}

pub(super) fn bars(entries: &[Entry], rows: &[f64], lanes: &Lanes, foot: f64) -> Vec<Bar> {
    let mut open: BTreeMap<(usize, String), usize> = BTreeMap::new();
    let mut bars: Vec<Bar> = Vec::new();
    for (entry, &y) in entries.iter().zip(rows) {
        let lane = lanes.index(&entry.side);
        let key = |exchange: &dyn std::fmt::Display| (lane, exchange.to_string());
        match (&entry.side, &entry.event) {
            (Side::Client(label), Event::ClientSent { method, path }) => {
                let bar = begin(
                    &bars,
                    &open,
                    lane,
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
                    lane,
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
            (Side::Client(label), Event::ClientAnswered { status }) => {
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
    lane: usize,
    y: f64,
    foot: f64,
    title: String,
) -> Bar {
    let taken: Vec<usize> = open
        .iter()
        .filter(|((at, _), _)| *at == lane)
        .map(|(_, &bar)| bars[bar].slot)
        .collect();
    let slot = (0..).find(|slot| !taken.contains(slot)).unwrap_or_default();
    Bar {
        lane,
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

pub(super) fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::MAX, f64::from)
}
