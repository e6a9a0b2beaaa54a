//! The last bytes of a provider's body, behind the end of its stream: nobody waits for them, and a connection can be used again
//! only once they have been read. They often come in a segment of their own.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::stream::Fuse;
use futures::{FutureExt, StreamExt};
use tokio::task::JoinSet;

use crate::llm::transport::UpstreamBody;

/// As long and as much is read, at most: making a new connection costs less.
const LONGEST: Duration = Duration::from_secs(1);
const LARGEST: usize = 64 << 10;

/// The bodies of one provider that are being read to their end. Dropping it closes their connections.
#[derive(Debug, Default)]
pub(super) struct BodyDrainer(Mutex<JoinSet<()>>);

impl BodyDrainer {
    /// Reads the body to its end, in a task where the end has not come yet; beyond the bounds its connection is closed.
    pub(super) fn read(&self, body: Fuse<UpstreamBody>) {
        let mut ending = Box::pin(tokio::time::timeout(LONGEST, to_its_end(body)));
        if ending.as_mut().now_or_never().is_some() {
            return;
        }
        let mut endings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while endings.try_join_next().is_some() {}
        endings.spawn(ending.map(drop));
    }
}

async fn to_its_end(mut body: Fuse<UpstreamBody>) {
    let mut read = 0;
    while let Some(Ok(bytes)) = body.next().await {
        read += bytes.len();
        if read > LARGEST {
            return;
        }
    }
}
