//! The last bytes of a provider's body, behind the end of its stream.
//!
//! No client waits for them, but a connection returns to the pool only after they have been read.
//! They often arrive in a segment of their own.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::stream::Fuse;
use futures::{FutureExt, StreamExt};
use tokio::task::JoinSet;

use crate::llm::transport::UpstreamBody;

/// The maximum amount of time for which the rest of a body is read. A new connection costs less.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(1);
/// The maximum number of bytes that are read behind the end of a stream.
const MAX_DRAIN_BYTES: usize = 64 << 10;

/// The bodies of one provider that are being read to their end. Dropping it closes their
/// connections.
#[derive(Debug, Default)]
pub(super) struct BodyDrainer(Mutex<JoinSet<()>>);

impl BodyDrainer {
    /// Reads the body to its end, in a task if the end has not arrived yet. Beyond
    /// [`MAX_DRAIN_TIME`] or [`MAX_DRAIN_BYTES`] the connection is closed instead.
    pub(super) fn drain(&self, body: Fuse<UpstreamBody>) {
        let mut draining = Box::pin(tokio::time::timeout(MAX_DRAIN_TIME, read_to_end(body)));
        if draining.as_mut().now_or_never().is_some() {
            return;
        }
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(draining.map(drop));
    }
}

async fn read_to_end(mut body: Fuse<UpstreamBody>) {
    let mut read = 0;
    while let Some(Ok(bytes)) = body.next().await {
        read += bytes.len();
        if read > MAX_DRAIN_BYTES {
            return;
        }
    }
}
