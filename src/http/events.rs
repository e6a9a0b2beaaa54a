//! A committed stream as server-sent events: the chunks' text as it came, joined when more than one is there already (never
//! waiting for more), `[DONE]` after an orderly end, and one in-band error instead of it after any other.
//!
//! Pulled by the connection: a client that reads slowly slows the provider, and nothing is kept for it but one frame.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::Frame;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::error::{ApiError, in_band, in_band_of};
use crate::llm::chat::{ChatStream, StreamItem};

/// A frame is handed on once it holds this much.
const JOINED: usize = 16 * 1024;

/// The body of a streamed answer.
pub(super) struct Events {
    /// `None` once the stream has ended, or was cut: the provider's connection is closed at that moment, unless the end was in order.
    stream: Option<ChatStream>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    frame: BytesMut,
}

impl Events {
    /// The events of `stream`; `cut` ends them with an error that says so.
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

    /// Takes what is there; whether the stream waits for more.
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
                // a stream that ends without its last item, or panics, is a bug: the client must not take it for an end
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
            self.end(&in_band_of(&ApiError::Draining));
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
