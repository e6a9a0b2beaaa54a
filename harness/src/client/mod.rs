//! The harness's client: asks the gateway, reads what comes, and writes both to the tape.
//!
//! Raw HTTP/1.1, one connection an exchange, so that the suite sees exactly what came and how it ended, and reads no faster than
//! the case does. Each exchange has a label: `a`, `b`, … in the order of asking, or [`Client::labelled`]. Every wait is guarded.
//!
//! ```no_run
//! # use gauntlet_harness::{case::Failure, client::Client};
//! # use serde_json::json;
//! # async fn case(client: &Client) -> Result<(), Failure> {
//! let hello = json!({"model": "solo", "messages": [{"role": "user", "content": "hello"}]});
//! let reply = client.chat(hello.clone()).await?; // status, headers, body
//! let mut stream = client.stream(hello.clone()).await?; // the head has come
//! while let Some(event) = stream.next().await? { /* event.delta_text, event.json */ }
//! let transcript = client.stream(hello.clone()).await?.collect().await?; // text, usage, done_count, error, end
//! let asked = client.send_chat(hello).await?; // written, nothing read yet
//! asked.leave(); // the client closes the connection
//! # Ok(()) }
//! ```

mod sse;
mod stream;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

pub use stream::{End, StreamEvent, StreamReply, ToolCall, Transcript};

use crate::case::{Failure, Honesty};
use crate::gate;
use crate::tape::{Event, Side, Tape};
use crate::target::RunningTarget;
use crate::wire::http1::{self, Body, ResponseHead};

/// A client of the gateway under test. Clones share the labels.
#[derive(Clone, Debug)]
pub struct Client {
    tape: Tape,
    authority: String,
    prefix: String,
    headers: Vec<(String, String)>,
    label: Option<String>,
    asked: Arc<AtomicUsize>,
    receive_buffer: Option<u32>,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The label of the exchange.
    pub label: String,
    /// The status code.
    pub status: u16,
    /// In the order and spelling of the gateway.
    pub headers: Vec<(String, String)>,
    /// Unchunked.
    pub body: Bytes,
}

/// Why there is no answer: the transport failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The connection could not be made.
    Connect(String),
    /// It ended (or was reset) before the head of an answer.
    NoAnswer(String),
    /// It ended (or was reset) within the body of this answer.
    Cut {
        /// The status that had come.
        status: u16,
        /// What had come of the body.
        body: Bytes,
        /// How it ended.
        how: String,
    },
    /// What came is not HTTP/1.1.
    Malformed(String),
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(how) => write!(f, "no connection: {how}"),
            Self::NoAnswer(how) => write!(f, "no answer: {how}"),
            Self::Cut { status, body, how } => write!(f, "an answer {status} that ended after {} bytes of its body: {how}", body.len()),
            Self::Malformed(how) => f.write_str(how),
        }
    }
}

impl From<Transport> for Failure {
    /// A gateway owes an HTTP answer, and a client sees that there was none.
    fn from(transport: Transport) -> Self {
        Self::Violated { expected: "a whole HTTP answer".into(), observed: transport.to_string(), honesty: Honesty::Honest }
    }
}

impl Reply {
    /// The body; null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first header of that name, whatever its spelling.
    pub fn header(&self, name: &str) -> Option<&str> {
        http1::header(&self.headers, name)
    }

    /// The text of a completion's first choice; empty if there is none.
    pub fn content(&self) -> String {
        self.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_string()
    }

    /// `error.type` of OpenAI's envelope.
    pub fn error_type(&self) -> Option<String> {
        self.json()["error"]["type"].as_str().map(String::from)
    }

    /// `error.code` of OpenAI's envelope.
    pub fn error_code(&self) -> Option<String> {
        self.json()["error"]["code"].as_str().map(String::from)
    }

    /// Reads a completion strictly, by the published types of OpenAI's API.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn strict(&self) -> Result<(), String> {
        let read: async_openai::types::chat::CreateChatCompletionResponse =
            serde_json::from_slice(&self.body).map_err(|error| format!("not a completion: {error}"))?;
        if read.object != "chat.completion" {
            return Err(format!("object is {:?}, not \"chat.completion\"", read.object));
        }
        match read.choices.iter().find(|choice| choice.finish_reason.is_none()) {
            Some(choice) => Err(format!("choice {} has no finish_reason", choice.index)),
            None if read.choices.is_empty() => Err("no choices".into()),
            None => Ok(()),
        }
    }
}

impl Client {
    /// A client of the gateway at this root (`http://127.0.0.1:4000`, with or without a path).
    ///
    /// # Errors
    /// A harness failure for anything but plain HTTP.
    pub fn new(base_url: &str, headers: Vec<(String, String)>, tape: Tape) -> Result<Self, Failure> {
        let Some(rest) = base_url.strip_prefix("http://") else {
            return Err(Failure::Harness { what: format!("the client speaks plain HTTP only, and the gateway is at {base_url}") });
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let authority = if host.contains(':') { host.to_string() } else { format!("{host}:80") };
        let prefix = if path.is_empty() { String::new() } else { format!("/{}", path.trim_end_matches('/')) };
        Ok(Self { tape, authority, prefix, headers, label: None, asked: Arc::default(), receive_buffer: None })
    }

    /// A client of the target.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn of(target: &RunningTarget, tape: Tape) -> Result<Self, Failure> {
        Self::new(&target.base_url, target.headers.clone(), tape)
    }

    /// The same with this label for its exchanges.
    #[must_use]
    pub fn labelled(&self, label: &str) -> Self {
        Self { label: Some(label.to_string()), ..self.clone() }
    }

    /// The same with this key instead of any other.
    #[must_use]
    pub fn with_bearer(&self, token: &str) -> Self {
        self.without_header("authorization").with_header("authorization", &format!("Bearer {token}"))
    }

    /// The same with one more header.
    #[must_use]
    pub fn with_header(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_string(), value.to_string()));
        client
    }

    /// The same without that header.
    #[must_use]
    pub fn without_header(&self, name: &str) -> Self {
        let mut client = self.clone();
        client.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        client
    }

    /// The same with a small receive buffer, so that a case that stops reading is felt at once.
    #[must_use]
    pub fn with_receive_buffer(&self, bytes: u32) -> Self {
        Self { receive_buffer: Some(bytes), ..self.clone() }
    }

    /// `POST /v1/chat/completions`, read to its end.
    ///
    /// # Errors
    /// A violation if there is no whole answer, or none within the hang guard.
    pub async fn chat(&self, body: Value) -> Result<Reply, Failure> {
        self.post("/v1/chat/completions", body).await
    }

    /// The same with `stream: true`; returns when the head has come. Statuses other than 200 come as well.
    ///
    /// # Errors
    /// As [`Client::chat`].
    pub async fn stream(&self, body: Value) -> Result<StreamReply, Failure> {
        self.send_stream(body).await?.stream().await
    }

    /// The same, read to its end.
    ///
    /// # Errors
    /// As [`Client::chat`].
    pub async fn streamed(&self, body: Value) -> Result<Transcript, Failure> {
        self.stream(body).await?.collect().await
    }

    /// Writes a chat request and reads nothing yet.
    ///
    /// # Errors
    /// A violation if the gateway can't be reached.
    pub async fn send_chat(&self, body: Value) -> Result<Exchange, Failure> {
        self.send("POST", "/v1/chat/completions", &[("content-type", "application/json")], body.to_string().as_bytes()).await
    }

    /// The same with `stream: true`.
    ///
    /// # Errors
    /// As [`Client::send_chat`].
    pub async fn send_stream(&self, mut body: Value) -> Result<Exchange, Failure> {
        body["stream"] = true.into();
        self.send_chat(body).await
    }

    /// [`Client::stream`], with a transport that failed before the head as a value.
    ///
    /// # Errors
    /// A violation by a hang only.
    pub async fn try_stream(&self, mut body: Value) -> Result<Result<StreamReply, Transport>, Failure> {
        body["stream"] = true.into();
        let bytes = body.to_string();
        match self.open_and_write("POST", "/v1/chat/completions", &[("content-type", "application/json")], bytes.as_bytes()).await? {
            Ok(exchange) => exchange.try_stream().await,
            Err(transport) => Ok(Err(transport)),
        }
    }

    /// `GET`, read to its end.
    ///
    /// # Errors
    /// As [`Client::chat`].
    pub async fn get(&self, path: &str) -> Result<Reply, Failure> {
        self.request("GET", path, &[], b"").await
    }

    /// `POST` of JSON, read to its end.
    ///
    /// # Errors
    /// As [`Client::chat`].
    pub async fn post(&self, path: &str, body: Value) -> Result<Reply, Failure> {
        self.request("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes()).await
    }

    /// Any request, read to its end.
    ///
    /// # Errors
    /// As [`Client::chat`].
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, Failure> {
        self.send(method, path, headers, body).await?.reply().await
    }

    /// The same, with a failed transport as a value: for cases where "no answer" is one of the allowed ends.
    ///
    /// # Errors
    /// A violation by a hang only.
    pub async fn try_request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Result<Reply, Transport>, Failure> {
        match self.open_and_write(method, path, headers, body).await? {
            Ok(exchange) => exchange.try_reply().await,
            Err(transport) => Ok(Err(transport)),
        }
    }

    /// Writes any request and reads nothing yet.
    ///
    /// # Errors
    /// A violation if the gateway can't be reached, or does not take the request within the hang guard.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Exchange, Failure> {
        Ok(self.open_and_write(method, path, headers, body).await??)
    }

    /// A connection to the gateway and nothing else: for what no well-behaved client would write.
    ///
    /// # Errors
    /// A violation if the gateway can't be reached.
    pub async fn raw(&self) -> Result<TcpStream, Failure> {
        let stream = gate::guard("a connection to the gateway", self.connect()).await?;
        Ok(stream.map_err(|error| Transport::Connect(error.to_string()))?)
    }

    /// Writes the bytes in pieces, `every` between them, until all are written, the gateway answers, or it closes; then reads
    /// the answer, if there is one. For clients that dribble their headers or body.
    ///
    /// # Errors
    /// A violation by a hang: neither answered nor closed.
    pub async fn dribble(&self, bytes: &[u8], piece: usize, every: Duration) -> Result<Result<Reply, Transport>, Failure> {
        let stream = self.raw().await?;
        let mut exchange = self.exchange(stream, "POST");
        exchange.record(Event::ClientSent { method: "POST".into(), path: "(dribbled)".into() });
        gate::guard("an answer to a client that dribbles, or the end of its connection", exchange.dribble(bytes, piece, every)).await?;
        exchange.try_reply().await
    }

    /// The bytes of a request as [`Client::send`] would write it: for [`Client::raw`] and [`Client::dribble`].
    pub fn request_bytes(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut head = format!("{method} {}{path} HTTP/1.1\r\nhost: {}\r\n", self.prefix, self.authority);
        let own = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut sized = false;
        for (name, value) in own.chain(headers.iter().copied()) {
            sized |= name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding");
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !sized && (!body.is_empty() || method != "GET") {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    async fn open_and_write(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Result<Exchange, Transport>, Failure> {
        let bytes = self.request_bytes(method, path, headers, body);
        let opening = async {
            let stream = self.connect().await.map_err(|error| Transport::Connect(error.to_string()))?;
            let mut exchange = self.exchange(stream, method);
            // before the bytes, so that whatever they cause comes later on the tape
            exchange.record(Event::ClientSent { method: method.into(), path: path.into() });
            exchange.write(&bytes).await;
            Ok(exchange)
        };
        let opened: Result<Exchange, Transport> = gate::guard("the gateway to take the request", opening).await?;
        if let Err(error) = &opened {
            self.tape.record(Side::Client(self.next_label()), Event::ClientFailed { error: error.to_string() });
        }
        Ok(opened)
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, format!("{} has no address", self.authority));
        for addr in tokio::net::lookup_host(&self.authority).await? {
            match self.connect_to(addr).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, addr: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.set_nodelay(true)?;
        socket.connect(addr).await
    }

    fn exchange(&self, stream: TcpStream, method: &str) -> Exchange {
        let label = self.next_label();
        Exchange { tape: self.tape.clone(), label, method: method.to_string(), stream: Some(stream), buffer: BytesMut::new(), finished: false }
    }
}

impl Client {
    fn next_label(&self) -> String {
        self.label.clone().unwrap_or_else(|| letters(self.asked.fetch_add(1, Ordering::Relaxed)))
    }
}

/// `a`, `b`, …, `z`, `aa`, …
fn letters(mut n: usize) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(b'a' + (n % 26) as u8);
        if n < 26 {
            break;
        }
        n = n / 26 - 1;
    }
    letters.reverse();
    String::from_utf8_lossy(&letters).into_owned()
}

/// A request that has been written, and its connection. Dropping it closes the connection: the client has left.
#[derive(Debug)]
pub struct Exchange {
    tape: Tape,
    label: String,
    method: String,
    stream: Option<TcpStream>,
    buffer: BytesMut,
    finished: bool,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.stream.is_some() && !self.finished {
            self.record(Event::ClientLeft);
        }
    }
}

impl Exchange {
    /// The label of the exchange.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Closes the connection, whatever is still to come.
    pub fn leave(self) {}

    /// Reads the whole answer.
    ///
    /// # Errors
    /// A violation if there is no whole answer, or none within the hang guard.
    pub async fn reply(self) -> Result<Reply, Failure> {
        Ok(self.try_reply().await??)
    }

    /// Reads the whole answer, with a failed transport as a value.
    ///
    /// # Errors
    /// A violation by a hang only.
    pub async fn try_reply(mut self) -> Result<Result<Reply, Transport>, Failure> {
        let what = format!("the whole answer to client {}", self.label);
        let read = gate::guard(&what, self.read_reply()).await?;
        if let Err(error) = &read {
            self.fail(error);
        }
        Ok(read)
    }

    /// Reads the head of the answer; the events are read as the case asks for them.
    ///
    /// # Errors
    /// A violation if there is no answer, or none within the hang guard.
    pub async fn stream(self) -> Result<StreamReply, Failure> {
        Ok(self.try_stream().await??)
    }

    /// The same, with a failed transport as a value.
    ///
    /// # Errors
    /// A violation by a hang only.
    pub async fn try_stream(mut self) -> Result<Result<StreamReply, Transport>, Failure> {
        let what = format!("the head of the answer to client {}", self.label);
        Ok(match gate::guard(&what, self.read_head()).await? {
            Ok((head, body)) => Ok(StreamReply::new(self, head, body)),
            Err(error) => {
                self.fail(&error);
                Err(error)
            }
        })
    }

    async fn read_reply(&mut self) -> Result<Reply, Transport> {
        let (head, mut body) = self.read_head().await?;
        let mut whole = BytesMut::new();
        loop {
            whole.extend_from_slice(&body.take(&mut self.buffer).map_err(|error| Transport::Malformed(error.to_string()))?);
            if body.is_done() {
                break;
            }
            match self.fill().await {
                Ok(true) => {}
                Ok(false) if body.may_end_here() => break,
                Ok(false) => return Err(Transport::Cut { status: head.status, body: whole.freeze(), how: "end of the connection".into() }),
                Err(error) => return Err(Transport::Cut { status: head.status, body: whole.freeze(), how: error.to_string() }),
            }
        }
        self.finish(Event::ClientAnswered { status: head.status });
        Ok(Reply { label: self.label.clone(), status: head.status, headers: head.headers, body: whole.freeze() })
    }

    async fn read_head(&mut self) -> Result<(ResponseHead, Body), Transport> {
        loop {
            if let Some(head) = http1::take_response(&mut self.buffer).map_err(|error| Transport::Malformed(error.to_string()))? {
                let body = Body::of_response(&self.method, &head).map_err(|error| Transport::Malformed(error.to_string()))?;
                self.record(Event::ClientStatus { status: head.status });
                return Ok((head, body));
            }
            match self.fill().await {
                Ok(true) => {}
                Ok(false) => return Err(Transport::NoAnswer("end of the connection".into())),
                Err(error) => return Err(Transport::NoAnswer(error.to_string())),
            }
        }
    }

    /// Reads more; false at the end of the connection.
    async fn fill(&mut self) -> std::io::Result<bool> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        Ok(stream.read_buf(&mut self.buffer).await? > 0)
    }

    /// Writes as much as the gateway takes; a gateway that answers early or closes is met by the next read.
    async fn write(&mut self, bytes: &[u8]) {
        let Some(stream) = &mut self.stream else { return };
        let (mut read, mut write) = stream.split();
        let mut writing = std::pin::pin!(write.write_all(bytes));
        // what the read branch drops has been put into the buffer; a refused body stops being written when the answer is there
        tokio::select! {
            biased;
            _ = &mut writing => {}
            _ = read.read_buf(&mut self.buffer) => {
                let _ = gate::bounded(Duration::from_millis(500), writing).await;
            }
        }
    }

    async fn dribble(&mut self, bytes: &[u8], piece: usize, every: Duration) {
        let Some(stream) = &mut self.stream else { return };
        let (mut read, mut write) = stream.split();
        let writing = async {
            for piece in bytes.chunks(piece.max(1)) {
                if write.write_all(piece).await.is_err() {
                    return;
                }
                gate::pace(every).await;
            }
        };
        tokio::select! {
            () = writing => {}
            _ = read.read_buf(&mut self.buffer) => {}
        }
    }

    fn fail(&mut self, error: &Transport) {
        self.finish(Event::ClientFailed { error: error.to_string() });
    }

    fn finish(&mut self, event: Event) {
        self.finished = true;
        self.stream = None;
        self.record(event);
    }

    fn record(&self, event: Event) {
        self.tape.record(Side::Client(self.label.clone()), event);
    }
}

#[cfg(test)]
mod tests {
    use super::letters;

    #[test]
    fn labels_go_on_after_z() {
        assert_eq!([0, 25, 26, 701, 702].map(letters), ["a", "z", "aa", "zz", "aaa"]);
    }
}
