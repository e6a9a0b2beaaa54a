//! The harness's client: it sends requests to the gateway, reads the answers, and records both on
//! the tape.
//!
//! It speaks raw HTTP/1.1 with one connection for each exchange, so that the suite sees exactly
//! what came and how it ended, and reads no faster than the case does. Each exchange has a label:
//! `a`, `b`, … in the order of sending, or that of [`Client::labelled`]. Every wait has a hang
//! guard.
//!
//! ```no_run
//! # use gauntlet_harness::{client::Client, verdict::Failure};
//! # use serde_json::json;
//! # async fn case(client: &Client) -> Result<(), Failure> {
//! let hello = json!({"model": "solo", "messages": [{"role": "user", "content": "hello"}]});
//! let reply = client.chat(hello.clone()).await?; // status, headers, body
//! let mut stream = client.stream(hello.clone()).await?; // the head has come
//! while let Some(event) = stream.next().await? { /* event.delta_text, event.json */ }
//! let transcript = client.streamed(hello.clone()).await?; // text, usage, error, end
//! let exchange = client.send_chat(hello).await?; // written, nothing read yet
//! exchange.leave(); // the client closes the connection
//! # Ok(()) }
//! ```

mod exchange;
mod reply;
mod sse;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};

pub use exchange::Exchange;
pub use reply::{Reply, Transport};
pub use stream::{End, StreamEvent, StreamReply, ToolCall, Transcript};

use crate::gate;
#[cfg(feature = "runner")]
use crate::subject::RunningTarget;
use crate::tape::{Data, Dribble, Event, Side, Tape};
use crate::verdict::Failure;
use crate::wire::http::message;

/// A client of the gateway under test. Clones share the labels.
#[derive(Clone, Debug)]
pub struct Client {
    tape: Tape,
    authority: String,
    prefix: String,
    headers: Vec<(String, String)>,
    label: Option<String>,
    exchanges: Arc<AtomicUsize>,
    receive_buffer: Option<u32>,
    most: usize,
}

/// The largest answer, in bytes, that is read: one without end must not take the harness's memory.
const MOST_BYTES: usize = 256 << 20;

impl Client {
    /// A client of the gateway at this root (`http://127.0.0.1:4000`, with or without a path).
    ///
    /// # Errors
    /// A harness failure for anything but plain HTTP.
    pub fn new(
        base_url: &str,
        headers: Vec<(String, String)>,
        tape: Tape,
    ) -> Result<Self, Failure> {
        let Some(rest) = base_url.strip_prefix("http://") else {
            return Err(Failure::Harness {
                what: format!(
                    "the client speaks plain HTTP only, and the gateway is at {base_url}; give an http:// URL"
                ),
            });
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let authority = if host.contains(':') {
            host.to_string()
        } else {
            format!("{host}:80")
        };
        let prefix = if path.is_empty() {
            String::new()
        } else {
            format!("/{}", path.trim_end_matches('/'))
        };
        Ok(Self {
            tape,
            authority,
            prefix,
            headers,
            label: None,
            exchanges: Arc::default(),
            receive_buffer: None,
            most: MOST_BYTES,
        })
    }

    /// A client of the target.
    ///
    /// # Errors
    /// As [`Client::new`].
    #[cfg(feature = "runner")]
    pub fn of(target: &RunningTarget, tape: Tape) -> Result<Self, Failure> {
        Self::new(&target.base_url, target.headers.clone(), tape)
    }

    /// A clone whose exchanges have this label.
    #[must_use]
    pub fn labelled(&self, label: &str) -> Self {
        Self {
            label: Some(label.to_string()),
            ..self.clone()
        }
    }

    /// A clone that presents this key instead of any other.
    #[must_use]
    pub fn with_bearer(&self, token: &str) -> Self {
        self.without_header("authorization")
            .with_header("authorization", &format!("Bearer {token}"))
    }

    /// A clone that sends one more header.
    #[must_use]
    pub fn with_header(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_string(), value.to_string()));
        client
    }

    /// A clone that does not send the header of that name.
    #[must_use]
    pub fn without_header(&self, name: &str) -> Self {
        let mut client = self.clone();
        client
            .headers
            .retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        client
    }

    /// A clone whose sockets have a receive buffer of this many bytes, so that the gateway notices
    /// soon when a case stops reading.
    #[must_use]
    pub fn with_receive_buffer(&self, bytes: u32) -> Self {
        Self {
            receive_buffer: Some(bytes),
            ..self.clone()
        }
    }

    /// Sends `POST /v1/chat/completions` and reads the answer to its end.
    ///
    /// # Errors
    /// A violation if there is no whole answer, or none within the hang guard.
    pub async fn chat(&self, body: Value) -> Result<Reply, Failure> {
        self.post("/v1/chat/completions", body).await
    }

    /// Sends the same with `stream: true` and returns when the head of the answer has come,
    /// whatever its status.
    ///
    /// # Errors
    /// As [`Client::chat`].
    pub async fn stream(&self, body: Value) -> Result<StreamReply, Failure> {
        self.send_stream(body).await?.stream().await
    }

    /// Sends the same with `stream: true` and reads the answer to its end.
    ///
    /// # Errors
    /// As [`Client::chat`].
    pub async fn streamed(&self, body: Value) -> Result<Transcript, Failure> {
        self.stream(body).await?.collect().await
    }

    /// Writes a chat request and reads nothing yet.
    ///
    /// # Errors
    /// A violation if the gateway cannot be reached.
    pub async fn send_chat(&self, body: Value) -> Result<Exchange, Failure> {
        self.send(
            "POST",
            "/v1/chat/completions",
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        )
        .await
    }

    /// Writes a chat request with `stream: true` and reads nothing yet.
    ///
    /// # Errors
    /// As [`Client::send_chat`].
    pub async fn send_stream(&self, mut body: Value) -> Result<Exchange, Failure> {
        body["stream"] = true.into();
        self.send_chat(body).await
    }

    /// Does what [`Client::stream`] does; a transport that failed before the head is a value.
    ///
    /// # Errors
    /// A violation by a hang only.
    pub async fn try_stream(
        &self,
        mut body: Value,
    ) -> Result<Result<StreamReply, Transport>, Failure> {
        body["stream"] = true.into();
        let bytes = body.to_string();
        match self
            .open_and_write(
                "POST",
                "/v1/chat/completions",
                &[("content-type", "application/json")],
                bytes.as_bytes(),
            )
            .await?
        {
            Ok(exchange) => exchange.try_stream().await,
            Err(transport) => Ok(Err(transport)),
        }
    }

    /// Sends `GET` and reads the answer to its end.
    ///
    /// # Errors
    /// As [`Client::chat`].
    pub async fn get(&self, path: &str) -> Result<Reply, Failure> {
        self.request("GET", path, &[], b"").await
    }

    /// Sends `POST` with this JSON and reads the answer to its end.
    ///
    /// # Errors
    /// As [`Client::chat`].
    pub async fn post(&self, path: &str, body: Value) -> Result<Reply, Failure> {
        self.request(
            "POST",
            path,
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        )
        .await
    }

    /// Sends any request and reads the answer to its end.
    ///
    /// # Errors
    /// As [`Client::chat`].
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Reply, Failure> {
        self.send(method, path, headers, body).await?.reply().await
    }

    /// Does what [`Client::request`] does; a failed transport is a value. This is for cases in
    /// which "no answer" is one of the allowed ends.
    ///
    /// # Errors
    /// A violation by a hang only.
    pub async fn try_request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Result<Reply, Transport>, Failure> {
        match self.open_and_write(method, path, headers, body).await? {
            Ok(exchange) => exchange.try_reply().await,
            Err(transport) => Ok(Err(transport)),
        }
    }

    /// Writes any request and reads nothing yet.
    ///
    /// # Errors
    /// A violation if the gateway cannot be reached, or does not take the request within the hang
    /// guard.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Exchange, Failure> {
        Ok(self.open_and_write(method, path, headers, body).await??)
    }

    /// Connects to the gateway and does nothing else, for what no well-behaved client would write.
    ///
    /// # Errors
    /// A violation if the gateway cannot be reached.
    pub async fn raw(&self) -> Result<TcpStream, Failure> {
        let stream = gate::guard(
            "hang.connection",
            "a connection to the gateway",
            self.connect(),
        )
        .await?;
        Ok(stream.map_err(|error| Transport::Connect(error.to_string()))?)
    }

    /// Writes these bytes, whatever they are, and reads nothing yet: for heads that no well-behaved
    /// client would write, several requests at once, or a part of one.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn send_raw(&self, bytes: &[u8]) -> Result<Exchange, Failure> {
        let stream = self.raw().await?;
        let mut exchange = self.exchange(stream, "POST");
        exchange.record(self.raw_event(bytes, None));
        exchange.write_more(bytes).await?;
        Ok(exchange)
    }

    /// The root of the gateway as a request's target in absolute form has it, without a path.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Writes the bytes in pieces of `piece` bytes, one after each `every`, until all are written,
    /// the gateway answers, or it closes. Then reads the answer, if there is one. This is for
    /// clients that dribble their headers or body.
    ///
    /// # Errors
    /// A violation by a hang if the gateway neither answers nor closes.
    pub async fn dribble(
        &self,
        bytes: &[u8],
        piece: usize,
        every: Duration,
    ) -> Result<Result<Reply, Transport>, Failure> {
        let stream = self.raw().await?;
        let mut exchange = self.exchange(stream, "POST");
        let dribble = Dribble {
            piece,
            every_ms: u64::try_from(every.as_millis()).unwrap_or(u64::MAX),
        };
        exchange.record(self.raw_event(bytes, Some(dribble)));
        gate::guard(
            "hang.dribble",
            "an answer to a client that dribbles, or the end of its connection",
            exchange.dribble(bytes, piece, every),
        )
        .await?;
        exchange.try_reply().await
    }

    /// The bytes of a request as [`Client::send`] would write it, for [`Client::raw`] and
    /// [`Client::dribble`].
    pub fn request_bytes(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Vec<u8> {
        self.written(method, path, &self.all_headers(method, headers, body), body)
    }

    /// All headers of a request: the client's own, these, and those that HTTP needs.
    fn all_headers(
        &self,
        method: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let mut all = vec![("host".to_string(), self.authority.clone())];
        all.extend(self.headers.iter().cloned());
        all.extend(headers.iter().map(owned));
        let sized = all.iter().any(|(name, _)| {
            name.eq_ignore_ascii_case("content-length")
                || name.eq_ignore_ascii_case("transfer-encoding")
        });
        if !sized && (!body.is_empty() || method != "GET") {
            all.push(("content-length".into(), body.len().to_string()));
        }
        all
    }

    fn written(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> Vec<u8> {
        let mut head = format!("{method} {}{path} HTTP/1.1\r\n", self.prefix);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    /// What the tape has of bytes that go out as they are, or in pieces. Bytes that are no whole
    /// head are all in the body.
    fn raw_event(&self, bytes: &[u8], dribbled: Option<Dribble>) -> Event {
        let mut rest = bytes.into();
        let (method, path, headers) = match message::take_request(&mut rest) {
            Ok(Some(head)) => {
                let path = head.target.strip_prefix(&self.prefix);
                let path = path.unwrap_or(&head.target).to_string();
                (head.method, path, head.headers)
            }
            _ => ("POST".into(), "(a part of a request)".into(), Vec::new()),
        };
        Event::ClientSent {
            method,
            path,
            headers,
            body: rest.freeze().into(),
            dribbled,
        }
    }

    async fn open_and_write(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Result<Exchange, Transport>, Failure> {
        let headers = self.all_headers(method, headers, body);
        let bytes = self.written(method, path, &headers, body);
        let opening = async {
            let stream = self
                .connect()
                .await
                .map_err(|error| Transport::Connect(error.to_string()))?;
            let mut exchange = self.exchange(stream, method);
            // recorded before the bytes are written, so that their effects come later on the tape
            exchange.record(Event::ClientSent {
                method: method.into(),
                path: path.into(),
                headers,
                body: Data::new(Bytes::copy_from_slice(body)),
                dribbled: None,
            });
            exchange.write(&bytes).await;
            Ok(exchange)
        };
        let opened: Result<Exchange, Transport> =
            gate::guard("hang.send", "the gateway to take the request", opening).await?;
        if let Err(error) = &opened {
            self.tape.record(
                Side::Client(self.next_label()),
                Event::ClientFailed {
                    error: error.to_string(),
                    body: Data::default(),
                },
            );
        }
        Ok(opened)
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let mut last = std::io::Error::new(
            std::io::ErrorKind::NotFound,
            format!("{} has no address", self.authority),
        );
        for addr in tokio::net::lookup_host(&self.authority).await? {
            match self.connect_to(addr).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, addr: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = if addr.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.set_nodelay(true)?;
        socket.connect(addr).await
    }

    fn exchange(&self, stream: TcpStream, method: &str) -> Exchange {
        Exchange::new(
            self.tape.clone(),
            self.next_label(),
            method,
            stream,
            self.most,
        )
    }

    fn next_label(&self) -> String {
        self.label
            .clone()
            .unwrap_or_else(|| letters(self.exchanges.fetch_add(1, Ordering::Relaxed)))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::json;

    use super::{Client, Transport, letters};
    use crate::gate::Gates;
    use crate::llm::{ScriptSource, raw};
    use crate::plan::{Framing, Listen, Plan, Step};
    use crate::spec::Protocol;
    use crate::tape::{Event, Tape};
    use crate::wire::Wire;

    #[test]
    fn labels_go_on_after_z() {
        assert_eq!(
            [0, 25, 26, 701, 702].map(letters),
            ["a", "z", "aa", "zz", "aaa"]
        );
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_read_forever() {
        let (source, tape) = (Arc::new(ScriptSource::new(Protocol::OPENAI)), Tape::new());
        let endless = Plan {
            framing: Framing::UntilClose,
            ..Plan::of([
                Step::Head,
                Step::Bytes(1_000),
                Step::RepeatForever { every_ms: 0 },
            ])
        };
        source.answers(raw(200, "text/event-stream", "data: x".repeat(1_000)).plan(endless));
        let wire = Wire::bind(
            "p1",
            tape.clone(),
            Gates::new(tape.clone()),
            source,
            Listen::Serve,
        )
        .await
        .unwrap();
        let client = Client {
            most: 64 << 10,
            ..Client::new(&wire.root_url(), Vec::new(), tape.clone()).unwrap()
        };
        let too_large = "an answer 200 of more than 65536 bytes";

        let plain = client
            .send_chat(json!({}))
            .await
            .unwrap()
            .try_reply()
            .await
            .unwrap();
        assert_eq!(
            plain.unwrap_err(),
            Transport::TooLarge {
                status: 200,
                most: "65536 bytes".into()
            }
        );
        let streamed = client
            .stream(json!({}))
            .await
            .unwrap()
            .collect()
            .await
            .unwrap_err()
            .to_string();
        assert!(streamed.contains(too_large), "{streamed}");
        let failed = |entry: &crate::tape::Entry| matches!(&entry.event, Event::ClientFailed { error, .. } if error.contains(too_large));
        assert_eq!(tape.select(failed).len(), 2);
    }
}
