//! A client on a raw socket: what it sends and what it reads is exactly what is on the wire.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap().to_owned()
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            read: Vec::new(),
        }
    }

    pub async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    pub async fn post(&mut self, path: &str, headers: &str, body: &str) {
        let length = body.len();
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
        ))
        .await;
    }

    /// Reads until the text has come; everything read so far, which later reads start from.
    pub async fn until(&mut self, text: &str) -> String {
        loop {
            let so_far = String::from_utf8_lossy(&self.read).into_owned();
            if so_far.contains(text) {
                return so_far;
            }
            assert_ne!(
                self.stream.read_buf(&mut self.read).await.unwrap(),
                0,
                "the connection closed before {text:?}; it said {so_far:?}"
            );
        }
    }

    /// Reads one response; a chunked body is joined, and has to end in order.
    pub async fn response(&mut self) -> Response {
        self.until("\r\n\r\n").await;
        let end = self
            .read
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap();
        let head = String::from_utf8(self.read[..end].to_vec())
            .unwrap()
            .to_ascii_lowercase();
        self.read.drain(..end + 4);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = match head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
        {
            Some(length) => self.take(length.parse().unwrap()).await,
            None if head.contains("transfer-encoding: chunked") => self.chunked().await,
            None => Vec::new(),
        };
        Response {
            status,
            head,
            body: String::from_utf8(body).unwrap(),
        }
    }

    /// Resolves when the gateway has closed the connection; what it had still to say.
    pub async fn closed(mut self) -> String {
        // a reset is a close as well
        while self.stream.read_buf(&mut self.read).await.unwrap_or(0) > 0 {}
        String::from_utf8_lossy(&self.read).into_owned()
    }

    async fn chunked(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            self.until("\r\n").await;
            let end = self
                .read
                .windows(2)
                .position(|window| window == b"\r\n")
                .unwrap();
            let size =
                usize::from_str_radix(std::str::from_utf8(&self.read[..end]).unwrap(), 16).unwrap();
            self.read.drain(..end + 2);
            let data = self.take(size + 2).await;
            body.extend_from_slice(&data[..size]);
            if size == 0 {
                return body;
            }
        }
    }

    async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            assert_ne!(
                self.stream.read_buf(&mut self.read).await.unwrap(),
                0,
                "the body ended before its end"
            );
        }
        self.read.drain(..length).collect()
    }
}

/// One GET on a connection of its own.
pub async fn get(address: SocketAddr, path: &str) -> Response {
    let mut client = Client::connect(address).await;
    client
        .send(&format!("GET {path} HTTP/1.1\r\nhost: gateway\r\n\r\n"))
        .await;
    client.response().await
}

/// One chat request on a connection of its own, not yet answered.
pub async fn ask(address: SocketAddr, mode: &str) -> Client {
    let mut client = Client::connect(address).await;
    client
        .post("/v1/chat/completions", "", &question(mode))
        .await;
    client
}

/// `plain` or `stream`.
pub fn question(mode: &str) -> String {
    format!(
        r#"{{"model":"solo","stream":{},"messages":[{{"role":"user","content":"Capital of France?"}}]}}"#,
        mode == "stream"
    )
}
