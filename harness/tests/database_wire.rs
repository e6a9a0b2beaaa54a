//! The wire in front of a database, in front of a server that answers each message with as many
//! bytes as the message has: the peer of the wire really meets each fault.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::ErrorKind;
use std::sync::{Arc, Mutex};

use gauntlet_harness::gate::{Gates, guard};
use gauntlet_harness::tape::{Event, Tape};
use gauntlet_harness::wire::postgres::{AtStatement, DatabaseWire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

struct Bench {
    wire: DatabaseWire,
    /// The bytes that the server received, connection by connection.
    received: Received,
    tape: Tape,
    gates: Gates,
    _server: JoinSet<()>,
}

type Received = Arc<Mutex<Vec<Vec<u8>>>>;

/// Starts a server that answers what it reads with as many `r`, and a wire in front of it.
async fn bench() -> Bench {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap().to_string();
    let mut server = JoinSet::new();
    let received = Received::default();
    let log = Arc::clone(&received);
    server.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let log = Arc::clone(&log);
            connections.spawn(async move {
                let mut bytes = [0; 4096];
                let at = {
                    let mut log = log.lock().unwrap();
                    log.push(Vec::new());
                    log.len() - 1
                };
                while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                    log.lock().unwrap()[at].extend_from_slice(&bytes[..n]);
                    if stream.write_all(&vec![b'r'; n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let tape = Tape::new();
    let gates = Gates::new(tape.clone());
    let wire = DatabaseWire::bind(&upstream, tape.clone(), gates.clone())
        .await
        .unwrap();
    Bench {
        wire,
        received,
        tape,
        gates,
        _server: server,
    }
}

fn query(text: &str) -> Vec<u8> {
    let mut bytes = vec![b'Q'];
    bytes.extend_from_slice(&(text.len() as u32 + 5).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

impl Bench {
    /// Opens a connection and sends its start-up message.
    async fn connect(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.wire.addr()).await.unwrap();
        stream
            .write_all(&[0, 0, 0, 9, 0, 3, 0, 0, 0])
            .await
            .unwrap();
        replies(&mut stream, 9).await;
        stream
    }

    async fn ask(&self, stream: &mut TcpStream, text: &str) {
        let bytes = query(text);
        stream.write_all(&bytes).await.unwrap();
        replies(stream, bytes.len()).await;
    }

    /// Returns whether the server received the statement.
    fn received(&self, text: &str) -> bool {
        let statement = query(text);
        self.received.lock().unwrap().iter().any(|bytes| {
            bytes
                .windows(statement.len())
                .any(|window| window == statement)
        })
    }

    fn noted(&self, text: &str) -> bool {
        self.tape
            .first(|entry| matches!(&entry.event, Event::Database { what } if what.contains(text)))
            .is_some()
    }
}

async fn replies(stream: &mut TcpStream, count: usize) {
    let mut bytes = vec![0; count];
    guard("hang.test", "the reply", stream.read_exact(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    assert!(bytes.iter().all(|byte| *byte == b'r'));
}

/// Reads to the end of the connection; returns the number of bytes, and the error of the end.
async fn end(stream: &mut TcpStream) -> (usize, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let end = guard(
        "hang.test",
        "the end of the connection",
        stream.read_to_end(&mut bytes),
    )
    .await
    .unwrap();
    (bytes.len(), end.err().map(|error| error.kind()))
}

#[tokio::test]
async fn statements_are_relayed_and_noted() {
    let bench = bench().await;
    let mut stream = bench.connect().await;
    bench.ask(&mut stream, "SELECT 1").await;
    assert_eq!(bench.wire.statements("select", 1).await.unwrap().len(), 1);
    assert_eq!(bench.wire.connections(), 1);
}

#[tokio::test]
async fn connections_are_refused_and_reset_until_the_wire_resumes() {
    let bench = bench().await;
    let mut stream = bench.connect().await;
    bench.wire.refuse().await.unwrap();
    assert_eq!(
        TcpStream::connect(bench.wire.addr())
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::ConnectionRefused
    );
    bench.ask(&mut stream, "SELECT 1").await;
    bench.wire.reset().await.unwrap();
    assert_eq!(
        end(&mut stream).await,
        (0, Some(ErrorKind::ConnectionReset))
    );
    bench.wire.resume().await.unwrap();
    let mut stream = bench.connect().await;
    bench.wire.gone().await.unwrap();
    assert_eq!(
        end(&mut stream).await,
        (0, Some(ErrorKind::ConnectionReset))
    );
    assert_eq!(bench.wire.connections(), 0);
}

/// When `reset` returns, its effect has happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_reset_before_reset_returns() {
    use std::io::Read;
    let bench = bench().await;
    for _ in 0..200 {
        let mut stream = bench.connect().await.into_std().unwrap();
        bench.wire.reset().await.unwrap();
        assert_eq!(
            stream.read(&mut [0]).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
    }
}

#[tokio::test]
async fn a_stall_holds_everything_until_the_wire_resumes() {
    let bench = bench().await;
    let mut stream = bench.connect().await;
    bench.wire.stall();
    stream.write_all(&query("SELECT 1")).await.unwrap();
    let mut fresh = TcpStream::connect(bench.wire.addr()).await.unwrap();
    fresh.write_all(&[0, 0, 0, 9, 0, 3, 0, 0, 0]).await.unwrap();
    guard(
        "hang.test",
        "two connections",
        bench.tape.wait_for(
            2,
            |entry| matches!(&entry.event, Event::Database { what } if what.contains("accepted")),
        ),
    )
    .await
    .unwrap();
    assert_eq!(
        stream.try_read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert!(!bench.noted("statement"));
    bench.wire.resume().await.unwrap();
    replies(&mut stream, query("SELECT 1").len()).await;
    replies(&mut fresh, 9).await;
}

#[tokio::test]
async fn a_connection_is_cut_after_a_number_of_bytes() {
    let bench = bench().await;
    let mut stream = bench.connect().await;
    bench.wire.cut_after(5);
    stream.write_all(&query("SELECT 1")).await.unwrap();
    assert_eq!(end(&mut stream).await, (5, None));
    let mut stream = bench.connect().await;
    bench.ask(&mut stream, "once only").await;
}

#[tokio::test]
async fn a_statement_is_held_and_the_others_go_on() {
    let bench = bench().await;
    let mut held = bench.connect().await;
    let mut other = bench.connect().await;
    bench
        .wire
        .at_statement("INSERT into", AtStatement::Hold("g".into()));
    held.write_all(&query("insert INTO t")).await.unwrap();
    bench.wire.statements("insert", 1).await.unwrap();
    bench.ask(&mut other, "INSERT INTO t").await;
    assert_eq!(
        held.try_read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    bench.gates.gate("g").open();
    replies(&mut held, query("insert INTO t").len()).await;
}

#[tokio::test]
async fn a_statement_is_cut_or_reset_before_it_is_executed_or_its_reply_is_lost_after() {
    let reset = Some(ErrorKind::ConnectionReset);
    for (fault, executed, expected) in [
        (AtStatement::Cut, false, None),
        (AtStatement::Reset, false, reset),
        (AtStatement::LoseReply, true, reset),
    ] {
        let bench = bench().await;
        let mut stream = bench.connect().await;
        bench.ask(&mut stream, "BEGIN").await;
        bench.wire.at_statement("commit", fault);
        stream.write_all(&query("COMMIT")).await.unwrap();
        assert_eq!(end(&mut stream).await, (0, expected));
        assert_eq!(
            (bench.received("BEGIN"), bench.received("COMMIT")),
            (true, executed)
        );
    }
}

#[tokio::test]
async fn a_statement_stalls_everything() {
    let bench = bench().await;
    let mut stream = bench.connect().await;
    bench.wire.at_statement("select", AtStatement::Stall);
    stream.write_all(&query("SELECT 1")).await.unwrap();
    guard(
        "hang.test",
        "the stall",
        bench.tape.wait_for(
            1,
            |entry| matches!(&entry.event, Event::Database { what } if what == "stalled"),
        ),
    )
    .await
    .unwrap();
    bench.wire.resume().await.unwrap();
    replies(&mut stream, query("SELECT 1").len()).await;
}

#[tokio::test]
async fn a_gate_that_opens_while_everything_stalls_lets_nothing_through() {
    let bench = bench().await;
    let mut held = bench.connect().await;
    bench
        .wire
        .at_statement("insert", AtStatement::Hold("g".into()));
    held.write_all(&query("INSERT INTO t")).await.unwrap();
    bench.wire.held("g").await.unwrap();
    bench.wire.stall();
    bench.gates.gate("g").open();
    // on one thread, every other task has run by now
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!bench.received("INSERT INTO t"));
    bench.wire.resume().await.unwrap();
    replies(&mut held, query("INSERT INTO t").len()).await;
    assert!(bench.received("INSERT INTO t"));
}

#[tokio::test]
async fn a_held_statement_is_dropped_when_its_client_leaves() {
    let bench = bench().await;
    let mut held = bench.connect().await;
    bench
        .wire
        .at_statement("insert", AtStatement::Hold("g".into()));
    held.write_all(&query("INSERT INTO t")).await.unwrap();
    bench.wire.statements("insert", 1).await.unwrap();
    drop(held);
    let left = |entry: &gauntlet_harness::tape::Entry| matches!(&entry.event, Event::Database { what } if what.contains("left while"));
    guard(
        "hang.test",
        "the end of the statement",
        bench.tape.wait_for(1, left),
    )
    .await
    .unwrap();
}
