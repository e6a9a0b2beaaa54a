//! The commit point, and the stream behind it.
//!
//! [`open`] is the only function that holds a stream back. Until the first real content has
//! arrived, everything is kept in a bounded buffer, and every failure is still an error that leads
//! to a retry, to the next candidate, or to a real status. From the commit point on, [`Committed`]
//! yields chunks as they arrive, and a failure is its last item.
//!
//! A stream ends with its end marker, with its body, or a short time after the answer is complete
//! ([`GRACE`]): some providers then send nothing more and keep the connection open.
//!
//! The stream is pulled: it has no task and no channel. It reads from the provider only when its
//! client asks for more, so a slow client slows the provider down. Dropping it closes the
//! connection. What a body carries behind the end of its stream is left to `body_drainer`.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::Fuse;
use futures::{Stream, StreamExt};
use tokio::time::{Instant, Sleep};
use tracing::Span;

use super::attempt::{Admitted, Limit, transport_error};
use crate::llm::cause::Cause;
use crate::llm::chat::{AttemptError, CommittedStream, StreamItem, Usage};
use crate::llm::framing::DEFAULT_EVENT_LIMIT;
use crate::llm::provider::{ChunkDecoder, Decoded};
use crate::llm::transport::UpstreamBody;
use crate::resilience::deadline;

/// The maximum number of chunks that are held back before the first content.
const MAX_HELD_CHUNKS: usize = 1_024;
/// The maximum size of the chunks that are held back before the first content, in bytes.
const MAX_HELD_BYTES: usize = 256 << 10;
/// The maximum number of bytes that are read before the first content, which may be one event of
/// the largest size in many reads.
const MAX_READ_BYTES: usize = DEFAULT_EVENT_LIMIT + MAX_HELD_BYTES;

/// The maximum amount of time for which a stream waits after its answer is complete, for token
/// counts and an end marker. Some providers send neither and keep the connection open.
const GRACE: Duration = Duration::from_secs(2);

/// A stream at its commit point: it is known to be good so far, and nothing of it has been handed
/// out.
pub(super) struct Opened {
    body: Fuse<UpstreamBody>,
    decoder: Box<dyn ChunkDecoder>,
    held: VecDeque<Decoded>,
    idle: Duration,
}

/// Reads up to the first real content. Comments, pings and chunks that only name a role do not
/// count as content and do not extend the limit.
///
/// Cancel safe in the sense that dropping the future closes the connection; what was read is lost.
pub(super) async fn open(
    body: UpstreamBody,
    mut decoder: Box<dyn ChunkDecoder>,
    limit: Limit,
    idle: Duration,
) -> Result<Opened, AttemptError> {
    // A provider may end its stream without an end marker: the body is then over before its last
    // chunk has been handed out.
    let mut body = body.fuse();
    let mut held = VecDeque::new();
    let (mut read, mut seen, mut seen_bytes) = (0, 0, 0);
    loop {
        while let Some(decoded) = held.get(seen) {
            match decoded {
                Decoded::Chunk { content: true, .. } => {
                    return Ok(Opened {
                        body,
                        decoder,
                        held,
                        idle,
                    });
                }
                Decoded::Chunk {
                    content: false,
                    data,
                } => (seen, seen_bytes) = (seen + 1, seen_bytes + data.len()),
                Decoded::Failed(error) => return Err(error.clone()),
                Decoded::Done(_) => {
                    return Err(AttemptError::new(
                        Cause::BadResponse,
                        "The provider's stream ended without any content.",
                    ));
                }
            }
        }
        if read > MAX_READ_BYTES || seen_bytes > MAX_HELD_BYTES || seen > MAX_HELD_CHUNKS {
            return Err(AttemptError::new(
                Cause::Oversized,
                format!("The first {read} bytes of the provider's stream hold no content."),
            ));
        }
        match limit.bound(body.next()).await? {
            Some(Ok(bytes)) => {
                read += bytes.len();
                decoder.push(bytes, &mut held);
                // A body that is always ready must not outlive the limit.
                if held.len() == seen && Instant::now() >= limit.at() {
                    return Err(limit.error());
                }
            }
            Some(Err(error)) => return Err(transport_error(error)),
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
    /// Passes the commit point: from here on the client receives what arrives.
    pub(super) fn committed(self, mut admitted: Admitted, deadline: Instant) -> CommittedStream {
        admitted.committed();
        let is_over = |decoded: &Decoded| matches!(decoded, Decoded::Done(_));
        let is_complete = self.decoder.is_complete() || self.held.iter().any(is_over);
        let is_empty = is_complete && self.decoder.is_empty();
        let items = Box::pin(Committed(Some(Streaming {
            body: Some(self.body),
            decoder: self.decoder,
            admitted,
            queue: self.held,
            idle: self.idle,
            span: Span::current(),
            deadline,
            silence: None,
            complete_until: None,
            timer: Box::pin(tokio::time::sleep_until(deadline)),
        })));
        CommittedStream { items, is_empty }
    }
}

/// A stream past its commit point; `None` after its last item.
struct Committed(Option<Streaming>);

struct Streaming {
    /// `None` once a complete answer was not followed by the end of its stream in time: the
    /// connection is then closed, because such a provider may never end it.
    body: Option<Fuse<UpstreamBody>>,
    decoder: Box<dyn ChunkDecoder>,
    admitted: Admitted,
    queue: VecDeque<Decoded>,
    idle: Duration,
    /// The span of the attempt, for the log of a stream that breaks.
    span: Span,
    deadline: Instant,
    /// The limit of the present wait for the provider. It exists only while the client asks for
    /// more and the provider has sent nothing but heartbeats: comments, blank lines, events without
    /// data.
    silence: Option<Limit>,
    /// When a complete answer ends without the end of its stream.
    complete_until: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

/// How a stream ends.
enum End {
    Done(Option<Usage>),
    Failed(AttemptError),
}

impl Stream for Committed {
    type Item = StreamItem;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<StreamItem>> {
        let Some(streaming) = self.0.as_mut() else {
            return Poll::Ready(None);
        };
        let end = match ready!(streaming.poll_chunk(cx)) {
            Ok(data) => return Poll::Ready(Some(StreamItem::Chunk(data))),
            Err(end) => end,
        };
        let Some(Streaming {
            body,
            decoder,
            admitted,
            span,
            ..
        }) = self.0.take()
        else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(match end {
            End::Done(usage) => {
                admitted.stream_succeeded(usage, decoder.is_empty(), body);
                StreamItem::Done(usage)
            }
            End::Failed(error) => {
                span.in_scope(|| admitted.stream_failed(&error));
                StreamItem::Failed(error)
            }
        }))
    }
}

impl Streaming {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, End>> {
        loop {
            match self.queue.pop_front() {
                Some(Decoded::Chunk { data, .. }) => return Poll::Ready(Ok(data)),
                Some(Decoded::Done(usage)) => return Poll::Ready(Err(End::Done(usage))),
                Some(Decoded::Failed(error)) => return Poll::Ready(Err(End::Failed(error))),
                None => {}
            }
            let now = Instant::now();
            self.complete_until = self.decoder.is_complete().then(|| {
                let until = deadline::saturating_add(now, GRACE).min(self.deadline);
                self.complete_until.unwrap_or(until)
            });
            if self.complete_until.is_some_and(|until| now >= until) {
                self.body = None;
            } else if now >= self.deadline {
                if self.silence.is_none() {
                    self.admitted.client_was_slow();
                }
                return Poll::Ready(Err(End::Failed(Limit::deadline(self.deadline).error())));
            }
            let read = match &mut self.body {
                Some(body) => body.poll_next_unpin(cx),
                None => Poll::Ready(None),
            };
            match read {
                Poll::Ready(Some(Ok(bytes))) => {
                    self.decoder.push(bytes, &mut self.queue);
                    if !self.queue.is_empty() || self.decoder.is_inside_an_event() {
                        self.silence = None;
                    } else {
                        let limit = self.silence_since(now);
                        if now >= limit.at() {
                            return Poll::Ready(Err(End::Failed(limit.error())));
                        }
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(End::Failed(transport_error(error))));
                }
                Poll::Ready(None) => {
                    self.decoder.finish(&mut self.queue);
                    if self.queue.is_empty() {
                        return Poll::Ready(Err(End::Failed(truncated())));
                    }
                }
                Poll::Pending => {
                    let limit = self.silence_since(now);
                    let at = self
                        .complete_until
                        .map_or(limit.at(), |until| until.min(limit.at()));
                    if self.timer.deadline() != at {
                        self.timer.as_mut().reset(at);
                    }
                    ready!(self.timer.as_mut().poll(cx));
                    if self.complete_until.is_none() {
                        return Poll::Ready(Err(End::Failed(limit.error())));
                    }
                    self.body = None;
                }
            }
        }
    }

    /// The limit of the wait that is under way, or of one that begins now.
    fn silence_since(&mut self, now: Instant) -> Limit {
        *self.silence.get_or_insert_with(|| {
            Limit::earlier(now, self.idle, Cause::IdleTimeout, self.deadline)
        })
    }
}

fn truncated() -> AttemptError {
    AttemptError::new(
        Cause::Truncated,
        "The provider's stream ended before its answer was complete.",
    )
}
