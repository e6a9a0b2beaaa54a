//! Bytes to events: total functions for SSE and NDJSON. No input panics, no result depends on how the bytes were split, memory
//! is bounded by one event and one read, and an event that lies inside one read is a slice of it, not a copy. Called by the codecs' decoders.

use bytes::{Bytes, BytesMut};

pub mod ndjson;
pub mod sse;

/// The largest event that is taken, in bytes: 8 MiB.
pub const DEFAULT_EVENT_LIMIT: usize = 8 * 1024 * 1024;

/// Why bytes are not an event. The decoder yields nothing after one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// An event has grown beyond the bound, or never ends.
    #[error("an event is larger than {limit} bytes")]
    Oversized {
        /// The bound, in bytes.
        limit: usize,
    },
    /// An event that is not UTF-8.
    #[error("an event is not UTF-8")]
    InvalidUtf8,
}

/// Adds bytes to what has not been looked at; copies only where something was left.
fn append(unread: &mut Bytes, more: Bytes) {
    if unread.is_empty() {
        *unread = more;
        return;
    }
    let mut joined = BytesMut::from(std::mem::take(unread));
    joined.extend_from_slice(&more);
    *unread = joined.freeze();
}
