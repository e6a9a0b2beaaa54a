//! An answer and its plan as the actions that send them, for the tape: the bytes as they are
//! written, and what is waited for between them.
//!
//! It follows [`play`](super::play) step by step; a test compares the two for each step.

use bytes::Bytes;

use super::Request;
use super::answer::{Layout, head_text};
use super::play::begin_of_text;
use super::progress::Progress;
use crate::plan::Step;
use crate::tape::{Action, Budget, Data, MOST_KEPT};

/// The largest number of writes that are listed one by one; further ones become one.
const MOST_WRITES: usize = 2_000;

/// Everything that will be done to send the answer of which nothing has been sent.
pub(super) fn script(request: &Request, progress: Progress<'_>) -> Vec<Action> {
    let mut script = Script {
        progress,
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
    /// What has been written.
    progress: Progress<'a>,
    writes: usize,
    kept: Budget,
    actions: Vec<Action>,
}

impl Script<'_> {
    /// Whether one of the steps ends the answer.
    fn steps(&mut self, request: &Request) -> bool {
        let Progress { answer, layout, .. } = self.progress;
        for (index, step) in answer.plan.steps.iter().enumerate() {
            let most = self.progress.most(index);
            match step {
                Step::Hold(gate) => self.actions.push(Action::Hold { gate: gate.clone() }),
                Step::Meet { name, count } => self.actions.push(Action::Meet {
                    rendezvous: name.clone(),
                    count: *count,
                }),
                Step::Pause { ms } => self.actions.push(Action::Pause { ms: *ms }),
                Step::Drain => self.actions.push(Action::Drain),
                Step::Head => {
                    self.send(head_text(request, answer, layout), None);
                    self.progress.head_sent = true;
                    if layout == Layout::Bodyless {
                        self.finish();
                    }
                }
                Step::DripHead { every_ms, finish } => {
                    let text = head_text(request, answer, layout);
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
                    self.progress.head_sent = true;
                }
                Step::Events(n) => self.advance(self.progress.after_events(*n, most)),
                Step::Bytes(n) => self.advance(self.progress.after_bytes(*n, most)),
                Step::Interlock(name) => {
                    while self.progress.is_before(most) {
                        if self.progress.events > 0 {
                            self.actions.push(Action::Acknowledged {
                                interlock: name.clone(),
                                event: self.progress.events,
                            });
                        }
                        self.advance(self.progress.after_events(1, most));
                    }
                }
                Step::Drip { bytes, every_ms } => {
                    let mut pieces = Vec::new();
                    while self.progress.is_before(most) {
                        let to = self.progress.after_bytes((*bytes).max(1), most);
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
                    self.advance(self.progress.whole());
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
        if !self.progress.is_whole() {
            return self.actions.push(Action::Cut);
        }
        self.finish();
        if !self.progress.layout.keeps_connection() || request.wants_close() {
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
        let piece = self.progress.take(to)?;
        let bytes = self.progress.answer.body.slice(piece.bytes);
        Some((self.framed(bytes), piece.event))
    }

    fn framed(&self, piece: Bytes) -> Bytes {
        match self.progress.layout {
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
        let last = self.progress.finish();
        self.send(last, None);
    }

    fn repeat(&mut self, every_ms: u64) {
        let event = self.progress.answer.body.slice(self.progress.repeated());
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
            from: self.progress.events + 1,
            every_ms,
            chunked: self.progress.layout == Layout::Chunked,
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
