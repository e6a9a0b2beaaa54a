//! The commit point, and the stream behind it.
//!
//! [`open`] is the one place where a stream is held back: until its first real content has come, everything is kept in a
//! bounded buffer, and every failure is still an error that leads to a retry, the next candidate, or a real status. From
//! there on [`Committed`] hands out chunks as they come, and a failure is its last item.
//!
//! The stream is pulled: no task, no channel. It reads from the provider only when its client asks for more, so a slow
//! client slows the provider down; dropping it closes the connection.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::Fuse;
use futures::{Stream, StreamExt};
use tokio::time::{Instant, Sleep};

use super::attempt::{Admitted, Limit, transport_error};
use crate::llm::chat::{AttemptError, Cause, ChatStream, StreamItem, Usage};
use crate::llm::provider::{ChunkDecoder, Decoded};
use crate::llm::transport::{TransportError, UpstreamBody};

/// Bytes that are read for the first content, at most.
const LARGEST_START: usize = 256 << 10;
/// Chunks that are held back for the first content, at most.
const MOST_HELD_CHUNKS: usize = 1_024;

/// A stream at its commit point: known to be good so far, nothing of it handed out.
pub(super) struct Opened {
    body: Fuse<UpstreamBody>,
    decoder: Box<dyn ChunkDecoder>,
    held: VecDeque<Decoded>,
    idle: Duration,
}

/// Reads up to the first real content. Comments, pings and chunks that only name a role do not count, and extend no time-out.
pub(super) async fn open(body: UpstreamBody, mut decoder: Box<dyn ChunkDecoder>, by: Limit, idle: Duration) -> Result<Opened, AttemptError> {
    // a provider may end its stream without an end marker: the body is then over before its last chunk is handed out
    let mut body = body.fuse();
    let mut held = VecDeque::new();
    let (mut read, mut seen) = (0, 0);
    loop {
        while let Some(decoded) = held.get(seen) {
            match decoded {
                Decoded::Chunk { content: true, .. } => return Ok(Opened { body, decoder, held, idle }),
                Decoded::Chunk { content: false, .. } => seen += 1,
                Decoded::Failed(error) => return Err(error.clone()),
                Decoded::Done(_) => return Err(AttemptError::new(Cause::BadResponse, "The provider's stream ended without any content.")),
            }
        }
        if read > LARGEST_START || seen > MOST_HELD_CHUNKS {
            return Err(AttemptError::new(Cause::Oversized, format!("No content came in the first {read} bytes of the provider's stream.")));
        }
        match by.keep(body.next()).await? {
            Some(Ok(bytes)) => {
                read += bytes.len();
                decoder.push(bytes, &mut held);
                // a body that is always ready must not outlive the limit
                if held.len() == seen && Instant::now() >= by.at() {
                    return Err(by.passed());
                }
            }
            Some(Err(broken)) => return Err(transport_error(broken)),
            None => {
                decoder.finish(&mut held);
                if held.len() == seen {
                    return Err(truncated());
                }
            }
        }
    }
}

impl Opened {
    /// Commits: from here on the client sees what comes.
    pub(super) fn committed(self, mut admitted: Admitted, deadline: Instant) -> ChatStream {
        admitted.committed();
        Box::pin(Committed {
            running: Some(Running { body: self.body, decoder: self.decoder, admitted }),
            ended: None,
            queue: self.held,
            idle: self.idle,
            deadline,
            silence: None,
            timer: Box::pin(tokio::time::sleep_until(deadline)),
        })
    }
}

/// A stream past its commit point.
struct Committed {
    /// `None` once the last item has been handed out.
    running: Option<Running>,
    /// A body whose stream is done: asked once more for its end, so that the connection can be used again.
    ended: Option<Fuse<UpstreamBody>>,
    queue: VecDeque<Decoded>,
    idle: Duration,
    deadline: Instant,
    /// The limit of the present wait for the provider, if there is one: it runs only while this stream is asked for more.
    silence: Option<Limit>,
    timer: Pin<Box<Sleep>>,
}

struct Running {
    body: Fuse<UpstreamBody>,
    decoder: Box<dyn ChunkDecoder>,
    admitted: Admitted,
}

impl Stream for Committed {
    type Item = StreamItem;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<StreamItem>> {
        let this = self.get_mut();
        loop {
            let Some(running) = this.running.as_mut() else {
                if let Some(mut body) = this.ended.take() {
                    // either it is over, and the connection is free, or it is closed by the drop
                    let _over: Poll<Option<Result<Bytes, TransportError>>> = body.poll_next_unpin(cx);
                }
                return Poll::Ready(None);
            };
            match this.queue.pop_front() {
                Some(Decoded::Chunk { data, .. }) => return Poll::Ready(Some(StreamItem::Chunk(data))),
                Some(Decoded::Done(usage)) => return Poll::Ready(Some(this.done(usage))),
                Some(Decoded::Failed(error)) => return Poll::Ready(Some(this.failed(error))),
                None => {}
            }
            if Instant::now() >= this.deadline {
                return Poll::Ready(Some(this.failed(this.deadline_limit().passed())));
            }
            match running.body.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(bytes))) => {
                    this.silence = None;
                    running.decoder.push(bytes, &mut this.queue);
                }
                Poll::Ready(Some(Err(broken))) => return Poll::Ready(Some(this.failed(transport_error(broken)))),
                Poll::Ready(None) => {
                    running.decoder.finish(&mut this.queue);
                    if this.queue.is_empty() {
                        return Poll::Ready(Some(this.failed(truncated())));
                    }
                }
                Poll::Pending => {
                    let limit = match this.silence {
                        Some(limit) => limit,
                        None => {
                            let limit = Limit::earlier(Instant::now(), this.idle, Cause::IdleTimeout, this.deadline);
                            this.timer.as_mut().reset(limit.at());
                            *this.silence.insert(limit)
                        }
                    };
                    match this.timer.as_mut().poll(cx) {
                        Poll::Ready(()) => return Poll::Ready(Some(this.failed(limit.passed()))),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }
        }
    }
}

impl Committed {
    fn done(&mut self, usage: Option<Usage>) -> StreamItem {
        self.queue.clear();
        if let Some(running) = self.running.take() {
            running.admitted.succeeded(usage);
            self.ended = Some(running.body);
        }
        StreamItem::Done(usage)
    }

    fn failed(&mut self, error: AttemptError) -> StreamItem {
        self.queue.clear();
        if let Some(running) = self.running.take() {
            running.admitted.broke(&error);
        }
        StreamItem::Failed(error)
    }

    fn deadline_limit(&self) -> Limit {
        Limit::deadline(self.deadline)
    }
}

fn truncated() -> AttemptError {
    AttemptError::new(Cause::Truncated, "The provider's stream ended in the middle.")
}
