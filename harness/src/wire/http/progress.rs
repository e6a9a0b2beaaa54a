//! How far an answer has come. The wire that sends the answer and the tape that lists what will be
//! sent both advance by it, so that they cut the body at the same offsets.

use std::ops::Range;

use super::answer::{Answer, Layout};
use crate::plan::Step;

/// The largest part of an event, in bytes, that goes out as one chunk.
const MOST_AT_ONCE: usize = 1 << 20;

#[derive(Clone, Copy)]
pub(super) struct Progress<'a> {
    pub answer: &'a Answer,
    pub layout: Layout,
    /// The offset at which each event of the body ends.
    ends: &'a [usize],
    /// How many bytes of the body have been taken.
    at: usize,
    /// How many events of the body have been taken whole.
    pub events: usize,
    pub head_sent: bool,
    /// Whether the last byte of the answer has been taken.
    pub complete: bool,
}

/// A part of the body.
pub(super) struct Piece {
    pub bytes: Range<usize>,
    /// The number of the event that it ends, if it ends one.
    pub event: Option<usize>,
}

impl<'a> Progress<'a> {
    pub fn new(answer: &'a Answer, layout: Layout, ends: &'a [usize]) -> Self {
        Self {
            answer,
            layout,
            ends,
            // an answer without a body has no byte left to send, whatever its head promises
            at: if layout == Layout::Bodyless {
                answer.body.len()
            } else {
                0
            },
            events: 0,
            head_sent: false,
            complete: false,
        }
    }

    /// Takes the next piece of the body up to the offset `to`; `None` if everything up to there has
    /// been taken. An event is one piece, unless it is so large that gathering it whole would only
    /// cost memory.
    pub fn take(&mut self, to: usize) -> Option<Piece> {
        if self.at >= to {
            return None;
        }
        let event_end = self.ends.get(self.events).copied();
        let from = self.at;
        self.at = event_end
            .unwrap_or(self.answer.body.len())
            .min(to)
            .min(from + MOST_AT_ONCE);
        let ends_event = event_end == Some(self.at);
        self.events += usize::from(ends_event);
        Some(Piece {
            bytes: from..self.at,
            event: ends_event.then_some(self.events),
        })
    }

    /// Whether bytes of the body before this offset have not been taken.
    pub fn is_before(&self, to: usize) -> bool {
        self.at < to
    }

    /// The offset after `n` bytes more, at most `most`.
    pub fn after_bytes(&self, n: usize, most: usize) -> usize {
        self.at.saturating_add(n).min(most)
    }

    /// The offset after `n` events more, at most `most`.
    pub fn after_events(&self, n: usize, most: usize) -> usize {
        let end = match self.events.saturating_add(n) {
            0 => 0,
            n => self.ends.get(n - 1).copied().unwrap_or(self.whole()),
        };
        end.min(most)
    }

    /// The offset at which the body ends.
    pub fn whole(&self) -> usize {
        self.answer.body.len()
    }

    /// Whether head and body have been taken.
    pub fn is_whole(&self) -> bool {
        self.head_sent && self.at == self.whole()
    }

    /// Marks the answer as complete, and returns what is still to be sent of it: the last chunk.
    pub fn finish(&mut self) -> &'static [u8] {
        let was_complete = std::mem::replace(&mut self.complete, true);
        match self.layout {
            Layout::Chunked if !was_complete => b"0\r\n\r\n",
            _ => b"",
        }
    }

    /// Up to which offset of the body the step at this index may send. A cut, reset or stall that
    /// comes before `rest` must not come after a complete answer, where it would hit the next
    /// request of the connection: the last byte of a body with a length is kept back. A chunked
    /// body is incomplete until its last chunk, which only `rest` and the end of the plan send.
    pub fn most(&self, index: usize) -> usize {
        let later = self.answer.plan.steps.iter().skip(index + 1);
        let mut ends = later
            .skip_while(|step| !matches!(step, Step::Rest | Step::Stall | Step::Cut | Step::Reset));
        match ends.next() {
            Some(Step::Stall | Step::Cut | Step::Reset) if self.layout == Layout::Length => {
                self.whole().saturating_sub(1)
            }
            _ => self.whole(),
        }
    }

    /// The body's part that a repetition sends again: the last event that was taken whole, or else
    /// what was taken of the first.
    pub fn repeated(&self) -> Range<usize> {
        match self.events {
            0 => 0..self.at,
            1 => 0..self.ends[0],
            n => self.ends[n - 2]..self.ends[n - 1],
        }
    }
}
