//! A wire that says one thing, and a raw client of it.

use std::io::ErrorKind;
use std::sync::Arc;

use async_trait::async_trait;
use gauntlet_harness::gate::{Gates, guard};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::tape::{Event, Tape};
use gauntlet_harness::wire::{Answer, Request, Source, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const EVENTS: &str = "data: one\n\ndata: two\n\ndata: three\n\n";
pub const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
pub const ONE: &str = "b\r\ndata: one\n\n\r\n";
pub const TWO: &str = "b\r\ndata: two\n\n\r\n";
pub const THREE: &str = "d\r\ndata: three\n\n\r\n";
pub const LAST: &str = "0\r\n\r\n";

/// Says one thing.
struct Says(Answer);

#[async_trait]
impl Source for Says {
    async fn answer(&self, _: &Request) -> Answer {
        self.0.clone()
    }
}

pub struct Bench {
    pub wire: Wire,
    pub tape: Tape,
    pub gates: Gates,
}

pub async fn says(answer: Answer) -> Bench {
    let tape = Tape::new();
    let gates = Gates::new(tape.clone());
    let wire = Wire::bind(
        "p1",
        tape.clone(),
        gates.clone(),
        Arc::new(Says(answer)),
        Listen::Serve,
    )
    .await
    .unwrap();
    Bench { wire, tape, gates }
}

pub async fn streams(steps: impl IntoIterator<Item = Step>) -> Bench {
    says(Answer::new(200, "text/event-stream", EVENTS).with_plan(Plan::of(steps))).await
}

impl Bench {
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.wire.addr()).await.unwrap()
    }

    /// A connection on which one request has been sent.
    pub async fn ask(&self) -> TcpStream {
        let mut stream = self.connect().await;
        stream
            .write_all(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi")
            .await
            .unwrap();
        stream
    }

    pub async fn wait_for(&self, matching: impl Fn(&Event) -> bool) -> u64 {
        guard(
            "hang.test",
            "an event on the tape",
            self.tape.wait_for(1, |entry| matching(&entry.event)),
        )
        .await
        .unwrap()[0]
            .seq
    }

    pub fn has(&self, matching: impl Fn(&Event) -> bool) -> bool {
        self.tape.first(|entry| matching(&entry.event)).is_some()
    }
}

/// Reads until the end: what came, and whether the end was a reset.
pub async fn read_all(stream: &mut TcpStream) -> (String, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let end = guard("hang.test", "the end of the connection", async {
        loop {
            match stream.read_buf(&mut bytes).await {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(error.kind()),
            }
        }
    });
    let end = end.await.unwrap();
    (String::from_utf8_lossy(&bytes).into_owned(), end)
}

pub async fn read_exactly(stream: &mut TcpStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    guard(
        "hang.test",
        "the expected bytes",
        stream.read_exact(&mut bytes),
    )
    .await
    .unwrap()
    .unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

/// Shows without waiting that nothing more is on its way: the next step of the wire is on the tape,
/// and the socket is empty.
pub fn nothing_to_read(stream: &TcpStream) {
    let mut byte = [0];
    assert_eq!(
        stream.try_read(&mut byte).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
}
