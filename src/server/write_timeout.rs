//! A connection whose writes may not stall. A client that reads next to nothing for the write
//! timeout is disconnected, and its permit and its provider's connection are released. A single
//! byte is not progress: a client that reads one now and then would hold its provider beyond every
//! deadline.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A client that has taken this many bytes since a write had to wait has made progress.
const PROGRESS: usize = 64 * 1024;

/// A stream whose writes fail with [`io::ErrorKind::TimedOut`] when, for `limit` after a write had
/// to wait, the peer has taken neither everything nor [`PROGRESS`] bytes. Either of the two ends
/// the wait. A connection with nothing to write never times out.
pub(super) struct WriteTimeout<S> {
    stream: S,
    limit: Duration,
    /// Set from the first write that has to wait until the next progress.
    waiting: Option<Waiting>,
}

struct Waiting {
    timer: Pin<Box<Sleep>>,
    /// The bytes that the peer has taken since the timer started.
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

    /// Counts the bytes of a write, or polls the timer where the write has to wait.
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

    /// A flush succeeds when nothing is left to write, which is progress as well.
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
            timer: Box::pin(sleep(limit)),
            taken: 0,
        });
        ready!(waiting.timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client reads next to nothing of its response",
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
    async fn a_peer_that_takes_nothing_times_out_at_the_limit() {
        let (ours, _theirs) = duplex(4);
        let mut ours = WriteTimeout::new(ours, LIMIT);
        let started = Instant::now();
        let error = ours.write_all(b"more than four").await.unwrap_err();
        assert_eq!(
            (error.kind(), started.elapsed()),
            (io::ErrorKind::TimedOut, LIMIT)
        );
    }

    /// Writes `bytes` to a peer that takes `at_once` of them just before each limit. Returns when
    /// the write ended, and how.
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
    async fn a_peer_that_takes_a_little_now_and_then_times_out_at_the_limit() {
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
