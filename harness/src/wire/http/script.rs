//! An answer and its plan as the actions that send them, for the tape: the bytes as they are
//! written, and what is waited for between them.
//!
//! It follows [`play`](super::play) step by step; a test compares the two for each step.

use bytes::Bytes;

use super::Request;
use super::answer::{Answer, Layout, head_text};
use super::play::{MOST_AT_ONCE, begin_of_text, end_of_event, most, repeated};
use crate::plan::Step;
use crate::tape::{Action, Budget, Data, MOST_KEPT};

/// The largest number of writes that are listed one by one; further ones become one.
const MOST_WRITES: usize = 2_000;

/// Everything that will be done to send the answer.
pub(super) fn script(
    request: &Request,
    answer: &Answer,
    layout: Layout,
    ends: &[usize],
) -> Vec<Action> {
    let mut script = Script {
        answer,
        layout,
        ends,
        at: if layout == Layout::Bodyless {
            answer.body.len()
        } else {
            0
        },
        events: 0,
        head_sent: false,
        complete: false,
        writes: 0,
        kept: Budget::default(),
        actions: Vec::new(),
    };
    if !script.steps(request) {
        script.end(request);
    }
    script.actions
}

struct Script<'a> {
    answer: &'a Answer,
    layout: Layout,
    ends: &'a [usize],
    /// How many bytes of the body have been written.
    at: usize,
    /// How many events of the body have been written whole.
    events: usize,
    head_sent: bool,
    complete: bool,
    writes: usize,
    kept: Budget,
    actions: Vec<Action>,
}

impl Script<'_> {
    /// Whether one of the steps ends the answer.
    fn steps(&mut self, request: &Request) -> bool {
        let answer = self.answer;
        for (index, step) in answer.plan.steps.iter().enumerate() {
            let most = most(answer, self.layout, index);
            match step {
                Step::Hold(gate) => self.actions.push(Action::Hold { gate: gate.clone() }),
                Step::Meet { name, count } => self.actions.push(Action::Meet {
                    rendezvous: name.clone(),
                    count: *count,
                }),
                Step::Pause { ms } => self.actions.push(Action::Pause { ms: *ms }),
                Step::Drain => self.actions.push(Action::Drain),
                Step::Head => {
                    self.send(head_text(request, answer, self.layout), None);
                    self.head_sent = true;
                    if self.layout == Layout::Bodyless {
                        self.finish();
                    }
                }
                Step::DripHead { every_ms, finish } => {
                    let text = head_text(request, answer, self.layout);
                    let whole = if *finish {
                        text.as_str()
                    } else {
                        text.strip_suffix("\r\n").unwrap_or(&text)
                    };
                    let mut bytes = whole.as_bytes().to_vec();
                    if !finish {
                        bytes.extend_from_slice(b"x-drip: ");
                    }
                    let pieces = bytes.iter().map(|byte| vec![*byte]).collect();
                    self.drip(pieces, *every_ms);
                    if !finish {
                        self.actions.push(Action::Repeat {
                            before: ".".into(),
                            after: None,
                            from: 1,
                            every_ms: *every_ms,
                            chunked: false,
                        });
                        return true;
                    }
                    self.head_sent = true;
                }
                Step::Events(n) => {
                    let to = self.events.saturating_add(*n);
                    self.advance(end_of_event(self.ends, answer, to).min(most));
                }
                Step::Bytes(n) => self.advance(self.at.saturating_add(*n).min(most)),
                Step::Interlock(name) => {
                    while self.at < most {
                        if self.events > 0 {
                            self.actions.push(Action::Acknowledged {
                                interlock: name.clone(),
                                event: self.events,
                            });
                        }
                        self.advance(end_of_event(self.ends, answer, self.events + 1).min(most));
                    }
                }
                Step::Drip { bytes, every_ms } => {
                    let mut pieces = Vec::new();
                    while self.at < most {
                        let to = self.at.saturating_add((*bytes).max(1)).min(most);
                        let mut piece = Vec::new();
                        while let Some((bytes, _)) = self.next_piece(to) {
                            piece.extend_from_slice(&bytes);
                        }
                        pieces.push(piece);
                    }
                    self.drip(pieces, *every_ms);
                }
                Step::RepeatForever { every_ms } => {
                    self.repeat(*every_ms);
                    return true;
                }
                Step::Rest => {
                    self.advance(answer.body.len());
                    self.finish();
                }
                Step::Garbage(bytes) => self.send(bytes.clone(), None),
                Step::Stall => {
                    self.actions.push(Action::Stall);
                    return true;
                }
                Step::Cut => {
                    self.actions.push(Action::Cut);
                    return true;
                }
                Step::Reset => {
                    self.actions.push(Action::Reset);
                    return true;
                }
            }
        }
        false
    }

    /// Ends after the last step: a complete answer keeps the connection where its framing and its
    /// head permit it, and an incomplete one is cut.
    fn end(&mut self, request: &Request) {
        if !self.head_sent || self.at < self.answer.body.len() {
            return self.actions.push(Action::Cut);
        }
        self.finish();
        let keeps = matches!(
            self.layout,
            Layout::Chunked | Layout::Length | Layout::Bodyless
        );
        if !keeps || request.wants_close() {
            self.actions.push(Action::Close);
        }
    }

    fn advance(&mut self, to: usize) {
        while let Some((bytes, event)) = self.next_piece(to) {
            self.send(bytes, event);
        }
    }

    /// The next piece of the body up to the offset `to`, framed, and the number of the event that
    /// it ends. It is `None` if everything up to there has been taken.
    fn next_piece(&mut self, to: usize) -> Option<(Bytes, Option<usize>)> {
        if self.at >= to {
            return None;
        }
        let whole = self.answer.body.len();
        let next = self.ends.get(self.events).copied().unwrap_or(whole);
        let end = next.min(to).min(self.at + MOST_AT_ONCE);
        let piece = self.answer.body.slice(self.at..end);
        self.at = end;
        let ends_event = self.ends.get(self.events) == Some(&end);
        self.events += usize::from(ends_event);
        Some((self.framed(piece), ends_event.then_some(self.events)))
    }

    fn framed(&self, piece: Bytes) -> Bytes {
        match self.layout {
            Layout::Bodyless => Bytes::new(),
            Layout::Chunked => {
                let size = format!("{:x}\r\n", piece.len());
                [size.as_bytes(), &piece, b"\r\n"].concat().into()
            }
            // a slice would keep the whole body in memory; a longer piece is cut to a copy
            _ if piece.len() <= MOST_KEPT => Bytes::copy_from_slice(&piece),
            _ => piece,
        }
    }

    fn finish(&mut self) {
        if !std::mem::replace(&mut self.complete, true) && self.layout == Layout::Chunked {
            self.send("0\r\n\r\n", None);
        }
    }

    fn repeat(&mut self, every_ms: u64) {
        let event = self
            .answer
            .body
            .slice(repeated(self.ends, self.events, self.at));
        let text = begin_of_text(&event);
        let (before, after) = event.split_at(text.unwrap_or(event.len()));
        let before = self.kept.keep(Bytes::copy_from_slice(before));
        let after = text.map(|_| {
            let after = [b" ", after].concat();
            self.kept.keep(after)
        });
        self.actions.push(Action::Repeat {
            before,
            after,
            from: self.events + 1,
            every_ms,
            chunked: self.layout == Layout::Chunked,
        });
    }

    fn drip(&mut self, mut pieces: Vec<Vec<u8>>, every_ms: u64) {
        if pieces.len() > MOST_WRITES {
            let rest = pieces.split_off(MOST_WRITES).concat();
            pieces.push(rest);
        }
        let pieces = pieces.into_iter().map(|piece| self.kept.keep(piece));
        let pieces: Vec<Data> = pieces.collect();
        if !pieces.is_empty() {
            self.actions.push(Action::Drip { pieces, every_ms });
        }
    }

    fn send(&mut self, bytes: impl Into<Bytes>, event: Option<usize>) {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return;
        }
        self.writes += 1;
        if self.writes > MOST_WRITES
            && let Some(Action::Send { bytes: last, .. }) = self.actions.last_mut()
        {
            // counted, but neither kept nor listed
            *last = last.clone().followed_by(bytes.len());
            return;
        }
        let bytes = self.kept.keep(bytes);
        self.actions.push(Action::Send { bytes, event });
    }
}
