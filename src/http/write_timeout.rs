//! A connection whose writes may not stall: a client that takes next to nothing for so long is given up, and what it held is freed.
//! One byte is not enough: a client that takes one now and then would hold its provider far beyond every deadline.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// So many bytes taken are progress.
const PROGRESS: usize = 64 * 1024;

/// A stream that fails with [`io::ErrorKind::TimedOut`] once a write has waited and, for `limit`, the peer has taken neither
/// everything nor [`PROGRESS`] bytes. Either starts the time anew; a connection with nothing to write is never given up.
pub(super) struct WriteTimeout<S> {
    stream: S,
    limit: Duration,
    /// Runs from the first write that waits to the next progress.
    waiting: Option<Waiting>,
}

struct Waiting {
    time: Pin<Box<Sleep>>,
    /// Bytes since it runs.
    taken: usize,
}

impl<S> WriteTimeout<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            limit,
            waiting: None,
        }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    /// Counts what was written; what waits runs against the time.
    fn written(
        &mut self,
        polled: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(written) = polled else {
            return self.waits(context);
        };
        if let (Some(waiting), Ok(bytes)) = (self.waiting.as_mut(), written.as_ref()) {
            waiting.taken += bytes;
            if waiting.taken >= PROGRESS {
                self.waiting = None;
            }
        }
        Poll::Ready(written)
    }

    /// A flush, asked for once nothing is left to write, is progress as well.
    fn flushed(
        &mut self,
        polled: Poll<io::Result<()>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if polled.is_pending() {
            return self.waits(context);
        }
        self.waiting = None;
        polled
    }

    fn waits<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Waiting {
            time: Box::pin(sleep(limit)),
            taken: 0,
        });
        ready!(waiting.time.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client takes next to nothing of its answer",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.flushed(polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.flushed(polled, context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{Instant, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up_at_the_limit() {
        let (ours, _theirs) = duplex(4);
        let mut ours = WriteTimeout::new(ours, LIMIT);
        let started = Instant::now();
        let error = ours.write_all(b"more than four").await.unwrap_err();
        assert_eq!(
            (error.kind(), started.elapsed()),
            (io::ErrorKind::TimedOut, LIMIT)
        );
    }

    /// Writes `bytes` to a peer that takes `at_once` of them just before each limit; when the writing ended, and how.
    async fn to_a_slow_peer(bytes: usize, at_once: usize) -> (Duration, io::Result<()>) {
        let (ours, mut theirs) = duplex(1024);
        let mut ours = WriteTimeout::new(ours, LIMIT);
        let started = Instant::now();
        let mut writing = tokio::spawn(async move {
            ours.write_all(&vec![b'x'; bytes]).await?;
            ours.flush().await?;
            Ok(started.elapsed())
        });
        loop {
            let taking = async {
                timeout(
                    LIMIT - Duration::from_millis(1),
                    std::future::pending::<()>(),
                )
                .await
                .unwrap_err();
                theirs.read_exact(&mut vec![0; at_once]).await
            };
            tokio::select! {
                ended = &mut writing => return match ended.unwrap() {
                    Ok(elapsed) => (elapsed, Ok(())),
                    Err(error) => (started.elapsed(), Err(error)),
                },
                _ = taking => {}
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_a_little_now_and_then_is_given_up_at_the_limit() {
        let (elapsed, written) = to_a_slow_peer(PROGRESS * 4, 1024).await;
        assert_eq!(
            (elapsed, written.unwrap_err().kind()),
            (LIMIT, io::ErrorKind::TimedOut)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_makes_progress_takes_all_the_time_it_needs() {
        let (elapsed, written) = to_a_slow_peer(PROGRESS * 4, PROGRESS).await;
        written.unwrap();
        assert!(elapsed > LIMIT * 3, "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn everything_taken_is_progress_however_little_it_is() {
        let (ours, mut theirs) = duplex(1);
        let mut ours = WriteTimeout::new(ours, LIMIT);
        for _ in 0..4 {
            let mut taken = [0; 2];
            let (written, read) = tokio::join!(
                async {
                    ours.write_all(b"ab").await?;
                    ours.flush().await
                },
                async {
                    timeout(
                        LIMIT - Duration::from_millis(1),
                        std::future::pending::<()>(),
                    )
                    .await
                    .unwrap_err();
                    theirs.read_exact(&mut taken).await
                }
            );
            written.unwrap();
            read.unwrap();
        }
    }
}
