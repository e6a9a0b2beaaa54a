//! The way to a provider. A connection whose answer was read whole is kept for the next request,
//! and one whose attempt is dropped is closed.
//!
//! A kept connection that ends before a byte of the answer is the end of an idle connection and no
//! failure: the request is sent once more, over a connection that is made for it (RETRY-09).

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::error::{AttemptError, Cause};
use crate::defect::Defect;

/// What is sent to a provider.
pub(super) struct Question {
    pub method: Method,
    pub url: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub connect: Duration,
    /// For [`Defect::HeaderBytesRestartTimer`]: silence after which it gives up.
    pub silence: Duration,
    /// Whether the process has no file descriptor left.
    pub short: bool,
    /// The connections that are kept, if one of them may carry the request.
    pub pool: Option<Arc<Pool>>,
    /// Whether a kept connection that dies is replaced.
    pub replays: bool,
}

/// The connections to one provider that carry no request.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<Line>>);

/// A connection, and what has been read from it.
struct Line {
    sender: http1::SendRequest<Full<Bytes>>,
    bytes: watch::Receiver<u64>,
    _connection: Connection,
}

/// A connection that ended before the head of an answer.
struct Died {
    error: AttemptError,
    /// Whether a byte of the answer had come.
    answered: bool,
}

impl Pool {
    /// A kept connection that still stands, as far as the gateway has noticed.
    async fn take(&self) -> Option<Line> {
        loop {
            let mut line = self.lines().pop()?;
            if line.sender.ready().await.is_ok() {
                return Some(line);
            }
        }
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The head of an answer with its body to come. Dropping it closes the connection.
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
    /// Whether a kept connection had died before.
    pub replayed: bool,
}

/// The body as it comes. Dropping it closes the connection.
pub(super) struct Body {
    incoming: Incoming,
    defect: Option<Defect>,
    line: Option<Line>,
    pool: Option<Arc<Pool>>,
}

/// The task that drives the connection; it ends with its owner.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends the request and waits for the head of the answer. Dropping the future closes the
/// connection.
pub(super) async fn send(
    question: Question,
    defect: Option<Defect>,
) -> Result<Answer, AttemptError> {
    let uri: Uri = question.url.parse().map_err(|error| {
        AttemptError::new(
            Cause::Unsupported,
            format!("the provider's URL is wrong: {error}"),
        )
    })?;
    if question.short {
        return Err(AttemptError::new(
            Cause::Shortage,
            "the gateway has no file descriptor left",
        ));
    }
    let pool = question.pool.clone();
    let kept = match &pool {
        Some(pool) => pool.take().await,
        None => None,
    };
    let mut replayed = false;
    if let Some(line) = kept {
        match ask(line, &uri, &question, defect).await {
            Err(died)
                if question.replays
                    && (!died.answered || defect == Some(Defect::ReplaysPartialHeads)) =>
            {
                replayed = true;
            }
            Err(died) => return Err(died.error),
            Ok(answer) => return Ok(answer),
        }
    }
    let another = match &pool {
        Some(pool) if replayed && defect == Some(Defect::ReplaysOnKeptConnections) => {
            pool.take().await
        }
        _ => None,
    };
    let line = match another {
        Some(line) => line,
        None => fresh(&uri, &question, defect).await?,
    };
    let asked = match ask(line, &uri, &question, defect).await {
        Err(died) if !died.answered && defect == Some(Defect::ReplaysFreshConnections) => {
            let line = fresh(&uri, &question, defect).await?;
            ask(line, &uri, &question, defect).await
        }
        asked => asked,
    };
    let answer = asked.map_err(|died| died.error)?;
    Ok(Answer { replayed, ..answer })
}

/// Makes a connection.
async fn fresh(
    uri: &Uri,
    question: &Question,
    defect: Option<Defect>,
) -> Result<Line, AttemptError> {
    let stream = connect(uri, question, defect).await?;
    let stream = Altered {
        stream,
        changes: changes(defect),
    };
    let (reads, bytes) = watch::channel(0_u64);
    let (sender, connection) = http1::handshake(TokioIo::new(Counted { stream, reads }))
        .await
        .map_err(|error| before_answer(&error))?;
    let connection = Connection(tokio::spawn(async move {
        // the request and the body report its errors
        connection.await.ok();
    }));
    Ok(Line {
        sender,
        bytes,
        _connection: connection,
    })
}

/// Sends the request over this connection and waits for the head of the answer.
async fn ask(
    mut line: Line,
    uri: &Uri,
    question: &Question,
    defect: Option<Defect>,
) -> Result<Answer, Died> {
    let before = *line.bytes.borrow();
    let asked = async {
        let request = request(
            question.method.clone(),
            uri,
            question.headers.clone(),
            question.body.clone(),
        )?;
        let seen = line.bytes.clone();
        let response = line.sender.send_request(request);
        let response: Result<Response<Incoming>, hyper::Error> = if defect
            == Some(Defect::HeaderBytesRestartTimer)
        {
            tokio::select! {
                response = response => response,
                () = silent(seen, question.silence) => return Err(AttemptError::new(Cause::FirstTokenTimeout, "the provider fell silent")),
            }
        } else {
            response.await
        };
        response.map_err(|error| before_answer(&error))
    };
    let asked = asked.await;
    let response = asked.map_err(|error| Died {
        error,
        answered: *line.bytes.borrow() != before,
    })?;
    let (head, incoming) = response.into_parts();
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: Body {
            incoming,
            defect,
            line: Some(line),
            pool: question.pool.clone(),
        },
        replayed: false,
    })
}

impl Body {
    /// The next bytes; `None` at the end that the provider meant.
    pub(super) async fn chunk(&mut self) -> Option<Result<Bytes, AttemptError>> {
        loop {
            let Some(frame) = self.incoming.frame().await else {
                if let (Some(line), Some(pool)) = (self.line.take(), &self.pool) {
                    pool.lines().push(line);
                }
                return None;
            };
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(bytes)) => return Some(Ok(bytes)),
                Ok(Err(_trailers)) if self.defect == Some(Defect::ChokesOnTrailers) => {
                    return Some(Err(AttemptError::new(
                        Cause::BadResponse,
                        "the answer has trailers",
                    )));
                }
                Ok(Err(_trailers)) => {}
                Err(error) => {
                    return Some(Err(AttemptError::new(
                        Cause::Truncated,
                        format!("the answer was cut: {error}"),
                    )));
                }
            }
        }
    }
}

async fn connect(
    uri: &Uri,
    question: &Question,
    defect: Option<Defect>,
) -> Result<TcpStream, AttemptError> {
    let address = (
        uri.host().unwrap_or_default().trim_matches(['[', ']']),
        uri.port_u16().unwrap_or(80),
    );
    let connecting = TcpStream::connect(address);
    let connected = if defect == Some(Defect::NoConnectTimeout) {
        connecting.await
    } else {
        let late = || {
            AttemptError::new(
                Cause::ConnectTimeout,
                format!("no connection within {:?}", question.connect),
            )
        };
        timeout(question.connect, connecting)
            .await
            .map_err(|_| late())?
    };
    connected.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => AttemptError::new(
            Cause::ConnectTimeout,
            "no connection in the system's own time",
        ),
        io::ErrorKind::ConnectionReset => {
            AttemptError::new(Cause::Reset, "the connection was reset")
        }
        _ => AttemptError::new(Cause::Refused, "the provider refuses connections"),
    })
}

fn request(
    method: Method,
    uri: &Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, AttemptError> {
    let authority = uri
        .authority()
        .map(http::uri::Authority::as_str)
        .unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let path = uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, host)
        .body(Full::new(body))
        .map_err(|error| {
            AttemptError::new(
                Cause::Unsupported,
                format!("the request cannot be written: {error}"),
            )
        })?;
    request.headers_mut().extend(headers);
    Ok(request)
}

fn before_answer(error: &hyper::Error) -> AttemptError {
    if error.is_parse() {
        AttemptError::new(Cause::BadResponse, "the provider does not answer in HTTP")
    } else {
        AttemptError::new(Cause::Reset, "the connection was closed before an answer")
    }
}

/// Ends when nothing has been read for so long.
async fn silent(mut seen: watch::Receiver<u64>, silence: Duration) {
    loop {
        tokio::select! {
            () = sleep(silence) => return,
            changed = seen.changed() => if changed.is_err() { return std::future::pending().await },
        }
    }
}

/// What is read on a connection to a provider instead of what came.
fn changes(defect: Option<Defect>) -> Changes {
    match defect {
        Some(Defect::ChokesOnInterimAnswers) => &[(b"HTTP/1.1 1", b"HTTP/9.9 1")],
        Some(Defect::ChokesOnExtensions) => &[(b";gauntlet", b"!gauntlet")],
        Some(Defect::TakesFirstProviderLength) => &[(b"\r\nContent-Length", b"\r\nX-ntent-Length")],
        _ => &[],
    }
}

/// Bytes, and others of the same length.
type Changes = &'static [(&'static [u8], &'static [u8])];

/// A connection that reads other bytes than came, for the defects of which an HTTP library has
/// none.
pub(super) struct Altered {
    pub stream: TcpStream,
    pub changes: Changes,
}

impl AsyncRead for Altered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = &mut buffer.filled_mut()[before..];
        for (from, to) in self.changes {
            while let Some(at) = read.windows(from.len()).position(|bytes| bytes == *from) {
                read[at..at + to.len()].copy_from_slice(to);
            }
        }
        polled
    }
}

impl AsyncWrite for Altered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A connection that counts the bytes that are read from it.
struct Counted {
    stream: Altered,
    reads: watch::Sender<u64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        if read > 0 {
            self.reads.send_modify(|bytes| *bytes += read as u64);
        }
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
