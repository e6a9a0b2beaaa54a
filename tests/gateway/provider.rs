//! A provider that the test itself plays: it takes the next request whole, then sends exactly the bytes that the test wants.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub struct Provider {
    pub base_url: String,
    listener: TcpListener,
}

/// A request that was read whole, and the way to answer it.
pub struct Exchange {
    pub head: String,
    stream: TcpStream,
}

impl Provider {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            base_url: format!("http://{}/v1", listener.local_addr().unwrap()),
            listener,
        }
    }

    pub async fn next(&self) -> Exchange {
        let (stream, _) = self.listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        Exchange::read(stream).await
    }
}

impl Exchange {
    /// The next request on the same connection.
    pub async fn again(self) -> Self {
        Self::read(self.stream).await
    }

    async fn read(mut stream: TcpStream) -> Self {
        let mut read = Vec::new();
        loop {
            if let Some(end) = find(&read, b"\r\n\r\n") {
                let head = String::from_utf8(read[..end].to_vec())
                    .unwrap()
                    .to_ascii_lowercase();
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "))
                    .map_or(0, |n| n.parse().unwrap());
                let mut body = read[end + 4..].to_vec();
                while body.len() < length {
                    assert_ne!(
                        stream.read_buf(&mut body).await.unwrap(),
                        0,
                        "the gateway cut its request short"
                    );
                }
                return Self { head, stream };
            }
            assert_ne!(
                stream.read_buf(&mut read).await.unwrap(),
                0,
                "the gateway cut its request short"
            );
        }
    }

    pub async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    pub async fn json(mut self, status: u16, body: &str) {
        let length = body.len();
        self.send(&format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"))
            .await;
    }

    pub async fn stream(&mut self) {
        self.send(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        )
        .await;
    }

    pub async fn says(&mut self, text: &str) {
        self.send(&format!("data: {}\n\n", chunk(text))).await;
    }

    pub async fn try_says(&mut self, text: &str) -> std::io::Result<()> {
        self.stream
            .write_all(format!("data: {}\n\n", chunk(text)).as_bytes())
            .await
    }

    pub async fn ends(mut self) {
        self.send(&format!(
            "data: {}\n\ndata: [DONE]\n\n",
            r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#
        ))
        .await;
    }

    /// Resolves when the gateway has closed the connection.
    pub async fn closed(mut self) {
        let mut rest = [0; 64];
        assert_eq!(
            self.stream.read(&mut rest).await.unwrap_or(0),
            0,
            "the gateway sent more on a connection that it should have closed"
        );
    }
}

pub fn chunk(text: &str) -> String {
    format!(
        r#"{{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}]}}"#
    )
}

pub const COMPLETION: &str = r#"{"id":"c", "object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Paris"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4},"x_unknown":1.50}"#;

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}
