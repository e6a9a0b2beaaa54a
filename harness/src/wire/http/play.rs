//! Obeys a plan: turns an answer into bytes, step by step.
//!
//! Bytes are gathered, and written at the next point where the plan waits or ends. An event is
//! recorded on the tape before its bytes are written.

use std::borrow::Cow;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::WriteHalf;

use super::answer::{Answer, Layout, event_ends, head_text};
use super::connection::{InFlight, still_there};
use super::progress::Progress;
use super::script::script;
use super::{Request, Shared};
use crate::gate;
use crate::plan::{Framing, Step};
use crate::tape::Event;
use crate::wire::queues::drain;

/// How playing ended.
pub(super) enum Ended {
    /// The answer is complete; the connection may serve another request.
    Complete,
    /// The connection has to be closed in order.
    Cut,
    /// The connection has to be reset.
    Reset,
    /// The peer is gone.
    Broken(io::Error),
}

/// Gathered bytes are written at the latest when there are this many.
const MOST_GATHERED: usize = 64 * 1024;

struct Player<'a, 'w, 'f> {
    shared: &'a Shared,
    request: &'a Request,
    answer: &'a Answer,
    /// What has been gathered.
    progress: Progress<'a>,
    pending: Vec<u8>,
    write: &'a mut WriteHalf<'w>,
    flight: &'a mut InFlight<'f>,
}

/// Sends the answer as its plan says. The future is dropped when the peer leaves.
pub(super) async fn play(
    shared: &Shared,
    request: &Request,
    answer: &Answer,
    write: &mut WriteHalf<'_>,
    flight: &mut InFlight<'_>,
) -> Ended {
    let ends = event_ends(answer);
    let progress = Progress::new(answer, Layout::of(request, answer), &ends);
    if !shared.tape.is_off() && !request.path.starts_with(super::control::PREFIX) {
        shared.record(Event::Planned {
            request: request.id,
            actions: script(request, progress),
        });
    }
    let player = Player {
        shared,
        request,
        answer,
        progress,
        pending: Vec::with_capacity(answer.body.len().min(MOST_GATHERED) + 512),
        write,
        flight,
    };
    match player.run().await {
        Ok(ended) => ended,
        Err(error) => Ended::Broken(error),
    }
}

impl Player<'_, '_, '_> {
    async fn run(mut self) -> io::Result<Ended> {
        if self.answer.plan.framing != Framing::Natural {
            self.fault(match self.answer.plan.framing {
                Framing::WrongLength(_) => "wrong content-length",
                _ => "no length: the end of the connection is the end of the body",
            });
        }
        let answer = self.answer;
        let fault = self.fault_at();
        for (index, step) in answer.plan.steps.iter().enumerate() {
            let most = self.progress.most(index);
            if fault == Some(index) {
                self.met();
            }
            match step {
                Step::Hold(name) => self.hold(name).await?,
                Step::Meet { name, count } => self.meet(name, *count).await?,
                Step::Pause { ms } => {
                    self.flush().await?;
                    gate::pace(Duration::from_millis(*ms)).await;
                }
                Step::Head => self.head(),
                Step::DripHead { every_ms, finish } => self.drip_head(*every_ms, *finish).await?,
                Step::Events(n) => {
                    self.advance(self.progress.after_events(*n, most)).await?;
                }
                Step::Interlock(name) => self.interlock(name, most).await?,
                Step::Bytes(n) => {
                    self.advance(self.progress.after_bytes(*n, most)).await?;
                }
                Step::Drip { bytes, every_ms } => self.drip(*bytes, *every_ms, most).await?,
                Step::RepeatForever { every_ms } => self.repeat(*every_ms).await?,
                Step::Drain => {
                    self.flush().await?;
                    drain(self.write.as_ref()).await;
                }
                Step::Rest => {
                    self.advance(self.progress.whole()).await?;
                    self.finish();
                }
                Step::Garbage(bytes) => {
                    self.fault("garbage");
                    self.pending.extend_from_slice(bytes);
                }
                Step::Stall => {
                    self.flush().await?;
                    self.fault("stall");
                    return std::future::pending().await;
                }
                Step::Cut => {
                    self.fault("cut");
                    self.flush().await?;
                    self.flight.end();
                    return Ok(Ended::Cut);
                }
                Step::Reset => {
                    self.flush().await?;
                    self.flight.end();
                    return Ok(Ended::Reset);
                }
            }
        }
        self.end().await
    }

    /// Ends after the last step: a complete answer keeps the connection, an incomplete one is cut.
    async fn end(mut self) -> io::Result<Ended> {
        if self.fault_at().is_none() {
            self.met();
        }
        let whole = self.progress.is_whole();
        if whole {
            self.finish();
        } else {
            self.fault("cut");
        }
        self.flush().await?;
        self.flight.end();
        Ok(if whole && self.progress.layout.keeps_connection() {
            Ended::Complete
        } else {
            Ended::Cut
        })
    }

    async fn hold(&mut self, name: &str) -> io::Result<()> {
        self.flush().await?;
        let gate = self.shared.gates.gate(name);
        if !gate.is_open() {
            self.shared.record(Event::Held {
                request: self.request.id,
                gate: name.into(),
            });
            gate.wait().await;
        }
        Ok(())
    }

    async fn meet(&mut self, name: &str, count: usize) -> io::Result<()> {
        self.flush().await?;
        self.shared.record(Event::Held {
            request: self.request.id,
            gate: name.into(),
        });
        let stream = self.write.as_ref();
        self.shared
            .gates
            .rendezvous(name, count)
            .arrive_while(|| still_there(stream))
            .await;
        Ok(())
    }

    fn head(&mut self) {
        self.shared.record(Event::HeadSent {
            request: self.request.id,
            status: self.answer.status,
        });
        let text = head_text(self.request, self.answer, self.progress.layout);
        self.pending.extend_from_slice(text.as_bytes());
        self.progress.head_sent = true;
        if self.progress.layout == Layout::Bodyless {
            self.finish();
        }
    }

    /// The index of the step at which the fault of the answer is met: the last one that does more
    /// than send, and of a body that a gateway need not take whole the head. Without such a step it
    /// is met with the end of the answer.
    fn fault_at(&self) -> Option<usize> {
        let steps = &self.answer.plan.steps;
        let head = steps.iter().position(|step| *step == Step::Head);
        match self.answer.body.len() > MOST_GATHERED {
            true if head.is_some() => head,
            _ => self.answer.plan.last_fault(),
        }
    }

    /// Counts the fault that the answer is as met.
    fn met(&self) {
        if let Some(fault) = self.answer.fault {
            self.shared.source.met(fault);
        }
    }

    async fn drip_head(&mut self, every_ms: u64, finish: bool) -> io::Result<()> {
        let every = Duration::from_millis(every_ms);
        let text = head_text(self.request, self.answer, self.progress.layout);
        self.fault("drip head");
        let whole = if finish {
            text.as_str()
        } else {
            text.strip_suffix("\r\n").unwrap_or(&text)
        };
        for (at, byte) in whole.bytes().enumerate() {
            if at > 0 {
                gate::pace(every).await;
            }
            self.pending.push(byte);
            if finish && at + 1 == whole.len() {
                break;
            }
            self.flush().await?;
        }
        if finish {
            self.shared.record(Event::HeadSent {
                request: self.request.id,
                status: self.answer.status,
            });
            self.progress.head_sent = true;
            return self.flush().await;
        }
        // one header without end
        for byte in b"x-drip: ".iter().chain(std::iter::repeat(&b'.')) {
            gate::pace(every).await;
            self.pending.push(*byte);
            self.flush().await?;
        }
        Ok(())
    }

    async fn interlock(&mut self, name: &str, most: usize) -> io::Result<()> {
        let interlock = self.shared.gates.interlock(name);
        while self.progress.is_before(most) {
            if self.progress.events > 0 {
                self.flush().await?;
                interlock.acknowledged(self.progress.events).await;
            }
            self.advance(self.progress.after_events(1, most)).await?;
        }
        Ok(())
    }

    async fn drip(&mut self, bytes: usize, every_ms: u64, most: usize) -> io::Result<()> {
        while self.progress.is_before(most) {
            self.advance(self.progress.after_bytes(bytes.max(1), most))
                .await?;
            self.flush().await?;
            if self.progress.is_before(most) {
                gate::pace(Duration::from_millis(every_ms)).await;
            }
        }
        Ok(())
    }

    async fn repeat(&mut self, every_ms: u64) -> io::Result<()> {
        let last = self.progress.repeated();
        self.fault("repeat forever");
        let mut n = self.progress.events;
        loop {
            self.flush().await?;
            gate::pace(Duration::from_millis(every_ms)).await;
            n += 1;
            self.shared.record(Event::EventSent {
                request: self.request.id,
                n,
            });
            let event = numbered(&self.answer.body[last.clone()], n);
            self.lay(&event);
        }
    }

    /// Gathers the body up to the offset `to`, one chunk an event.
    async fn advance(&mut self, to: usize) -> io::Result<()> {
        while let Some(piece) = self.progress.take(to) {
            if let Some(n) = piece.event {
                self.shared.record(Event::EventSent {
                    request: self.request.id,
                    n,
                });
            }
            if self.progress.is_whole() && self.progress.layout != Layout::Chunked {
                self.finish();
            }
            let answer = self.answer;
            self.lay(&answer.body[piece.bytes]);
            if self.pending.len() >= MOST_GATHERED && self.progress.is_before(to) {
                self.flush().await?;
            }
        }
        Ok(())
    }

    fn lay(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.progress.layout == Layout::Bodyless {
            return;
        }
        if self.progress.layout == Layout::Chunked {
            self.pending
                .extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
            self.pending.extend_from_slice(bytes);
            self.pending.extend_from_slice(b"\r\n");
        } else {
            self.pending.extend_from_slice(bytes);
        }
    }

    /// Marks the answer as complete: its last byte is among those gathered.
    fn finish(&mut self) {
        self.pending.extend_from_slice(self.progress.finish());
    }

    async fn flush(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.pending);
        if !self.progress.complete || self.flight.is_over() {
            return self.send(&bytes).await;
        }
        // everything before the last bytes goes first: a slow reader is still being answered
        let (before, last) = bytes.split_at(bytes.len().saturating_sub(MOST_GATHERED));
        self.send(before).await?;
        self.shared.record(Event::AnswerSent {
            request: self.request.id,
        });
        self.flight.end();
        self.send(last).await
    }

    async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write.write(bytes).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.shared
                .sent
                .fetch_add(written as u64, Ordering::Relaxed);
            bytes = &bytes[written..];
        }
        Ok(())
    }

    fn fault(&self, name: &str) {
        self.shared.record(Event::Fault {
            request: Some(self.request.id),
            fault: name.into(),
        });
    }
}

/// The event with the number before its text, as the protocols of the stubs write a text that is
/// not empty; any other event as it is.
fn numbered(event: &[u8], n: usize) -> Cow<'_, [u8]> {
    match begin_of_text(event) {
        Some(at) => Cow::Owned([&event[..at], format!("{n} ").as_bytes(), &event[at..]].concat()),
        None => Cow::Borrowed(event),
    }
}

/// The offset at which the text of an event begins, if it has one that is not empty.
pub(super) fn begin_of_text(event: &[u8]) -> Option<usize> {
    const TEXTS: [&[u8]; 2] = [b"\"content\":\"", b"\"response\":\""];
    TEXTS.into_iter().find_map(|text| {
        let at = event
            .windows(text.len())
            .position(|window| window == text)?
            + text.len();
        (event.get(at) != Some(&b'"')).then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn a_text_is_numbered_and_nothing_else_is_changed() {
        for (event, expected) in [
            (
                r#"data: {"delta":{"content":"and "}}"#,
                r#"data: {"delta":{"content":"7 and "}}"#,
            ),
            (r#"{"response":"so"}"#, r#"{"response":"7 so"}"#),
            (
                r#"data: {"delta":{"role":"assistant","content":""}}"#,
                r#"data: {"delta":{"role":"assistant","content":""}}"#,
            ),
            (": ping", ": ping"),
        ] {
            assert_eq!(*numbered(event.as_bytes(), 7), *expected.as_bytes());
        }
    }
}
