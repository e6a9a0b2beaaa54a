//! The commit point, and the stream behind it.
//!
//! [`open`] is the one place where a stream is held back: until its first real content has come, everything is kept in a
//! bounded buffer, and every failure is still an error that leads to a retry, the next candidate, or a real status. From
//! there on [`Committed`] hands out chunks as they come, and a failure is its last item.
//!
//! The stream is pulled: no task, no channel. It reads from the provider only when its client asks for more, so a slow
//! client slows the provider down; dropping it closes the connection. What a body still has behind its stream's orderly end is
//! left to `endings`.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::Fuse;
use futures::{Stream, StreamExt};
use tokio::time::{Instant, Sleep};

use super::attempt::{Admitted, Limit, transport_error};
use super::candidate::Call;
use crate::llm::chat::{AttemptError, Cause, ChatStream, StreamItem, Usage};
use crate::llm::framing::DEFAULT_EVENT_LIMIT;
use crate::llm::provider::{ChunkDecoder, Decoded};
use crate::llm::transport::UpstreamBody;

/// Chunks, and bytes of them, that are held back for the first content, at most.
const MOST_HELD_CHUNKS: usize = 1_024;
const LARGEST_START: usize = 256 << 10;
/// Bytes that are read for the first content, at most: it may be one event of the largest size, in many reads.
const LARGEST_READ: usize = DEFAULT_EVENT_LIMIT + LARGEST_START;

/// A stream at its commit point: known to be good so far, nothing of it handed out.
pub(super) struct Opened {
    body: Fuse<UpstreamBody>,
    decoder: Box<dyn ChunkDecoder>,
    held: VecDeque<Decoded>,
    idle: Duration,
}

/// Reads up to the first real content. Comments, pings and chunks that only name a role do not count, and extend no time-out.
pub(super) async fn open(
    body: UpstreamBody,
    mut decoder: Box<dyn ChunkDecoder>,
    by: Limit,
    idle: Duration,
) -> Result<Opened, AttemptError> {
    // a provider may end its stream without an end marker: the body is then over before its last chunk is handed out
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
        if read > LARGEST_READ || seen_bytes > LARGEST_START || seen > MOST_HELD_CHUNKS {
            return Err(AttemptError::new(
                Cause::Oversized,
                format!("No content came in the first {read} bytes of the provider's stream."),
            ));
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
    pub(super) fn committed(self, mut admitted: Admitted, call: &Call<'_>) -> ChatStream {
        admitted.committed();
        Box::pin(Committed(Some(Streaming {
            body: self.body,
            decoder: self.decoder,
            admitted,
            queue: self.held,
            idle: self.idle,
            request_id: call.context.request_id.as_str().into(),
            deadline: call.deadline,
            silence: None,
            timer: Box::pin(tokio::time::sleep_until(call.deadline)),
        })))
    }
}

/// A stream past its commit point; `None` once its last item has been handed out.
struct Committed(Option<Streaming>);

struct Streaming {
    body: Fuse<UpstreamBody>,
    decoder: Box<dyn ChunkDecoder>,
    admitted: Admitted,
    queue: VecDeque<Decoded>,
    idle: Duration,
    /// For the log of a break.
    request_id: Box<str>,
    deadline: Instant,
    /// The limit of the present wait for the provider, if there is one: it runs only while this stream is asked for more.
    silence: Option<Limit>,
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
        let last = match ready!(streaming.poll_chunk(cx)) {
            Ok(data) => return Poll::Ready(Some(StreamItem::Chunk(data))),
            Err(end) => end,
        };
        let Some(Streaming {
            body,
            admitted,
            request_id,
            ..
        }) = self.0.take()
        else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(match last {
            End::Done(usage) => {
                admitted.succeeded(usage, body);
                StreamItem::Done(usage)
            }
            End::Failed(error) => {
                admitted.broke(&request_id, &error);
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
            if Instant::now() >= self.deadline {
                if self.silence.is_none() {
                    self.admitted.client_was_slow();
                }
                return Poll::Ready(Err(End::Failed(Limit::deadline(self.deadline).passed())));
            }
            match self.body.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(bytes))) => {
                    self.silence = None;
                    self.decoder.push(bytes, &mut self.queue);
                }
                Poll::Ready(Some(Err(broken))) => {
                    return Poll::Ready(Err(End::Failed(transport_error(broken))));
                }
                Poll::Ready(None) => {
                    self.decoder.finish(&mut self.queue);
                    if self.queue.is_empty() {
                        return Poll::Ready(Err(End::Failed(truncated())));
                    }
                }
                Poll::Pending => {
                    let limit = match self.silence {
                        Some(limit) => limit,
                        None => {
                            let limit = Limit::earlier(
                                Instant::now(),
                                self.idle,
                                Cause::IdleTimeout,
                                self.deadline,
                            );
                            self.timer.as_mut().reset(limit.at());
                            *self.silence.insert(limit)
                        }
                    };
                    ready!(self.timer.as_mut().poll(cx));
                    return Poll::Ready(Err(End::Failed(limit.passed())));
                }
            }
        }
    }
}

fn truncated() -> AttemptError {
    AttemptError::new(
        Cause::Truncated,
        "The provider's stream ended in the middle.",
    )
}
