//! Framing: decoders that read events out of bytes, for SSE and NDJSON.
//!
//! The decoders are total: no input panics, and no result depends on how the bytes were split.
//! Memory is bounded by one event and one read, and an event that lies inside one read is a slice
//! of that read, not a copy. The decoders of the codecs call them.

use bytes::{Bytes, BytesMut};

pub mod ndjson;
pub mod sse;

/// The maximum size of an event, in bytes: 8 MiB.
pub const DEFAULT_EVENT_LIMIT: usize = 8 * 1024 * 1024;

/// Why bytes are not an event. The decoder yields nothing after such an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// An event is larger than the limit, or has no end within it.
    #[error("an event is larger than {limit} bytes")]
    Oversized {
        /// The limit, in bytes.
        limit: usize,
    },
    /// An event is not UTF-8.
    #[error("an event is not UTF-8")]
    InvalidUtf8,
}

/// Appends bytes to the unread input. Copies only if some input was left.
fn append(unread: &mut Bytes, more: Bytes) {
    if unread.is_empty() {
        *unread = more;
        return;
    }
    let mut joined = BytesMut::from(std::mem::take(unread));
    joined.extend_from_slice(&more);
    *unread = joined.freeze();
}
