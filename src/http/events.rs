//! A committed stream as the body of a response: server-sent events with the chunks' own text, then
//! `[DONE]` after an orderly end, or one in-band error after any other. Chunks that are available
//! together are sent as one frame; no chunk waits for the next.
//!
//! The connection pulls the body. A client that reads slowly therefore slows the provider down, and
//! the gateway buffers one frame for it.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::Frame;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::error::{ApiError, in_band, in_band_of};
use crate::llm::chat::{ChatStream, StreamItem};
use crate::server::Refusal;

/// A frame of this many bytes is sent even where more chunks are available.
const JOINED: usize = 16 * 1024;

/// The body of a streamed answer.
pub(super) struct Events {
    /// `None` once the stream has ended or was cut. The provider's connection is closed at that
    /// moment, unless the stream ended in order.
    stream: Option<ChatStream>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    frame: BytesMut,
}

impl Events {
    /// Sends the events of `stream`. Once `cut` is cancelled, an error that says so ends them.
    pub(super) fn new(stream: ChatStream, cut: CancellationToken) -> Self {
        Self {
            stream: Some(stream),
            cut: Box::pin(cut.cancelled_owned()),
            frame: BytesMut::new(),
        }
    }

    fn push(&mut self, data: &[u8]) {
        self.frame.reserve(data.len() + 8);
        self.frame.put_slice(b"data: ");
        self.frame.put_slice(data);
        self.frame.put_slice(b"\n\n");
    }

    fn end(&mut self, data: &[u8]) {
        self.push(data);
        self.stream = None;
    }

    /// Takes the chunks that are available. Returns whether the stream waits for more.
    fn fill(&mut self, context: &mut Context<'_>) -> bool {
        while self.frame.len() < JOINED {
            let Some(stream) = self.stream.as_mut() else {
                return false;
            };
            let polled =
                std::panic::catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll_next(context)));
            match polled {
                Ok(Poll::Pending) => return true,
                Ok(Poll::Ready(Some(StreamItem::Chunk(data)))) => self.push(&data),
                Ok(Poll::Ready(Some(StreamItem::Done(_)))) => self.end(b"[DONE]"),
                Ok(Poll::Ready(Some(StreamItem::Failed(error)))) => self.end(&in_band(&error)),
                // a stream that panics or ends without its last item is a bug, and the client must
                // not take it for an orderly end
                Ok(Poll::Ready(None)) | Err(_) => self.end(&in_band_of(&ApiError::Internal)),
            }
        }
        false
    }
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.stream.is_some() && self.cut.as_mut().poll(context).is_ready() {
            self.end(&in_band_of(&ApiError::Refused(Refusal::Draining)));
        }
        let waits = self.fill(context);
        if !self.frame.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(self.frame.split().freeze()))));
        }
        if waits {
            Poll::Pending
        } else {
            Poll::Ready(None)
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_none() && self.frame.is_empty()
    }
}
