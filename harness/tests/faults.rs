//! Every fault of the wire, seen by a raw client: what a plan says is really what is on the wire.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::ErrorKind;
use std::sync::Arc;

use async_trait::async_trait;
use gauntlet_harness::gate::{Gates, guard};
use gauntlet_harness::plan::{Framing, Listen, Plan, Step};
use gauntlet_harness::tape::{Close, Entry, Event, Tape};
use gauntlet_harness::wire::{Answer, Request, Source, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const EVENTS: &str = "data: one\n\ndata: two\n\ndata: three\n\n";
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const ONE: &str = "b\r\ndata: one\n\n\r\n";
const TWO: &str = "b\r\ndata: two\n\n\r\n";
const THREE: &str = "d\r\ndata: three\n\n\r\n";
const LAST: &str = "0\r\n\r\n";

/// Says one thing.
struct Says(Answer);

#[async_trait]
impl Source for Says {
    async fn answer(&self, _: &Request) -> Answer {
        self.0.clone()
    }
}

struct Bench {
    wire: Wire,
    tape: Tape,
    gates: Gates,
}

async fn says(answer: Answer) -> Bench {
    let tape = Tape::new();
    let gates = Gates::new(tape.clone());
    let wire = Wire::bind("p1", tape.clone(), gates.clone(), Arc::new(Says(answer)), Listen::Serve).await.unwrap();
    Bench { wire, tape, gates }
}

async fn streams(steps: impl IntoIterator<Item = Step>) -> Bench {
    says(Answer::new(200, "text/event-stream", EVENTS).with_plan(Plan::of(steps))).await
}

impl Bench {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.wire.addr()).await.unwrap()
    }

    /// A connection on which one request has been sent.
    async fn ask(&self) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
        stream
    }

    async fn wait_for(&self, matching: impl Fn(&Event) -> bool) -> u64 {
        guard("an event on the tape", self.tape.wait_for(1, |entry| matching(&entry.event))).await.unwrap()[0].seq
    }

    fn has(&self, matching: impl Fn(&Event) -> bool) -> bool {
        self.tape.first(|entry| matching(&entry.event)).is_some()
    }
}

/// Reads until the end: what came, and whether the end was a reset.
async fn read_all(stream: &mut TcpStream) -> (String, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let end = guard("the end of the connection", async {
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

async fn read_exactly(stream: &mut TcpStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    guard("the expected bytes", stream.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

/// Nothing more is on its way, shown without waiting: what the wire did next is on the tape, and the socket is empty.
fn nothing_to_read(stream: &TcpStream) {
    let mut byte = [0];
    assert_eq!(stream.try_read(&mut byte).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[tokio::test]
async fn the_default_plan_is_the_whole_answer_and_keeps_the_connection() {
    let bench = streams(Plan::default().steps).await;
    let mut stream = bench.ask().await;
    read_exactly(&mut stream, &[HEAD, ONE, TWO, THREE, LAST].concat()).await;
    stream.write_all(b"POST /y HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n").await.unwrap();
    read_exactly(&mut stream, &[HEAD, ONE, TWO, THREE, LAST].concat()).await;
    assert_eq!(bench.tape.select(|entry| matches!(entry.event, Event::Accepted { .. })).len(), 1);
    assert!(bench.has(|event| matches!(event, Event::RequestRead { path, body, .. } if path == "/y" && body == "hi")));
}

#[tokio::test]
async fn a_whole_body_has_its_length_and_connection_close_is_honoured() {
    let bench = says(Answer::new(404, "application/json", "{}")).await;
    let mut stream = bench.connect().await;
    stream.write_all(b"GET /x HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
    let (text, end) = read_all(&mut stream).await;
    assert_eq!(text, "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
    assert_eq!(end, None);
}

#[tokio::test]
async fn an_expected_continue_is_given() {
    let bench = says(Answer::new(200, "text/plain", "ok")).await;
    let mut stream = bench.connect().await;
    stream.write_all(b"POST /x HTTP/1.1\r\ncontent-length: 2\r\nExpect: 100-continue\r\n\r\n").await.unwrap();
    read_exactly(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n").await;
    stream.write_all(b"hi").await.unwrap();
    read_exactly(&mut stream, "HTTP/1.1 200 OK\r\n").await;
}

#[tokio::test]
async fn a_head_request_gets_no_body() {
    let bench = says(Answer::new(200, "text/plain", "body")).await;
    let mut stream = bench.connect().await;
    stream.write_all(b"HEAD /x HTTP/1.1\r\n\r\n").await.unwrap();
    read_exactly(&mut stream, "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\n").await;
    stream.write_all(b"HEAD /x HTTP/1.1\r\n\r\n").await.unwrap();
    read_exactly(&mut stream, "HTTP/1.1 200 OK\r\n").await;
}

#[tokio::test]
async fn a_plan_that_leaves_out_the_head_ends_for_an_answer_without_body() {
    let interlock = || Step::Interlock("i".into());
    for (steps, told) in [(vec![interlock()], ""), (vec![Step::DripHead { every_ms: 0, finish: true }, interlock()], HEAD)] {
        let bench = streams(steps).await;
        let mut stream = bench.connect().await;
        stream.write_all(b"HEAD /x HTTP/1.1\r\nconnection: close\r\n\r\n").await.unwrap();
        let (text, end) = read_all(&mut stream).await;
        assert_eq!((text.is_empty(), end), (told.is_empty(), None), "{text}");
        assert!(!text.contains("data:"), "{text}");
    }
}

#[tokio::test]
async fn a_body_without_end_is_refused_and_the_refusal_says_so() {
    let bench = says(Answer::new(200, "text/plain", "ok")).await;
    let told = b"POST /x HTTP/1.1\r\ncontent-length: 67108865\r\n\r\n".to_vec();
    let mut chunk = b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n8000000\r\n".to_vec();
    chunk.resize(chunk.len() + (64 << 20) + 1, b'x');
    for (n, bytes) in [told, chunk].into_iter().enumerate() {
        let mut stream = bench.connect().await;
        stream.write_all(&bytes).await.unwrap();
        let (text, end) = read_all(&mut stream).await;
        assert!(text.starts_with("HTTP/1.1 599 ") && text.contains("larger than 64 MiB"), "{text}");
        assert_eq!(end, None);
        let refused = |entry: &Entry| matches!(&entry.event, Event::Fault { fault, .. } if fault.contains("larger than 64 MiB"));
        assert_eq!(bench.tape.select(refused).len(), n + 1);
    }
    assert!(!bench.has(|event| matches!(event, Event::RequestRead { .. })));
}

#[tokio::test]
async fn hold_sends_nothing_before_the_gate_is_open() {
    let bench = streams([Step::Head, Step::Events(1), Step::Hold("g".into()), Step::Rest]).await;
    let mut stream = bench.ask().await;
    read_exactly(&mut stream, &[HEAD, ONE].concat()).await;
    bench.wait_for(|event| matches!(event, Event::Held { gate, .. } if gate == "g")).await;
    nothing_to_read(&stream);
    bench.gates.gate("g").open();
    read_exactly(&mut stream, &[TWO, THREE, LAST].concat()).await;
    let opened = bench.wait_for(|event| *event == Event::Opened).await;
    assert!(bench.wait_for(|event| matches!(event, Event::EventSent { n: 1, .. })).await < opened);
    assert!(opened < bench.wait_for(|event| matches!(event, Event::EventSent { n: 2, .. })).await);
}

#[tokio::test]
async fn meet_lets_all_go_together_and_counts_nobody_who_left() {
    let bench = streams(Plan::met("all", 2).steps).await;
    let rendezvous = bench.gates.rendezvous("all", 2);
    let first = bench.ask().await;
    bench.wait_for(|event| matches!(event, Event::Held { .. })).await;
    drop(first);
    let mut second = bench.ask().await;
    guard("the second to wait", bench.tape.wait_for(2, |entry| matches!(entry.event, Event::Held { .. }))).await.unwrap();
    bench.wait_for(|event| matches!(event, Event::PeerClosed { request: Some(_), .. })).await;
    assert!(!bench.has(|event| matches!(event, Event::Met { .. })), "one left before the other came");
    nothing_to_read(&second);
    let mut third = bench.ask().await;
    rendezvous.met().await.unwrap();
    read_exactly(&mut second, HEAD).await;
    read_exactly(&mut third, HEAD).await;
    assert_eq!(bench.wire.high_water(), 2);
}

#[tokio::test]
async fn interlock_sends_one_event_for_each_acknowledgement() {
    let bench = streams([Step::Head, Step::Interlock("i".into())]).await;
    let interlock = bench.gates.interlock("i");
    let mut stream = bench.ask().await;
    read_exactly(&mut stream, &[HEAD, ONE].concat()).await;
    nothing_to_read(&stream);
    interlock.ack(1);
    read_exactly(&mut stream, TWO).await;
    assert!(!bench.has(|event| matches!(event, Event::EventSent { n: 3, .. })));
    interlock.ack(2);
    read_exactly(&mut stream, &[THREE, LAST].concat()).await;
}

#[tokio::test]
async fn events_then_the_end_of_the_plan_is_a_cut() {
    let bench = streams([Step::Head, Step::Events(2)]).await;
    let (text, end) = read_all(&mut bench.ask().await).await;
    assert_eq!((text, end), ([HEAD, ONE, TWO].concat(), None));
    assert!(bench.has(|event| matches!(event, Event::Fault { fault, .. } if fault == "cut")));
}

#[tokio::test]
async fn all_events_then_the_end_of_the_plan_is_a_whole_answer() {
    let bench = streams([Step::Head, Step::Events(3)]).await;
    read_exactly(&mut bench.ask().await, &[HEAD, ONE, TWO, THREE, LAST].concat()).await;
    assert!(!bench.has(|event| matches!(event, Event::Fault { .. })));
}

#[tokio::test]
async fn bytes_cut_inside_an_event() {
    let bench = streams([Step::Head, Step::Bytes(15), Step::Cut]).await;
    let (text, end) = read_all(&mut bench.ask().await).await;
    assert_eq!((text, end), ([HEAD, ONE, "4\r\ndata\r\n"].concat(), None));
    assert!(!bench.has(|event| matches!(event, Event::EventSent { n: 2, .. } | Event::AnswerSent { .. })));
}

#[tokio::test]
async fn cut_before_the_head_is_an_empty_answer() {
    let bench = streams([Step::Cut]).await;
    assert_eq!(read_all(&mut bench.ask().await).await, (String::new(), None));
}

#[tokio::test]
async fn reset_comes_after_every_byte_has_been_read() {
    for _ in 0..20 {
        let bench = streams([Step::Head, Step::Events(2), Step::Reset]).await;
        let mut stream = bench.ask().await;
        bench.wait_for(|event| matches!(event, Event::EventSent { n: 2, .. })).await;
        assert!(!bench.has(|event| matches!(event, Event::Fault { .. })), "the barrier waits for the reader");
        let (text, end) = read_all(&mut stream).await;
        assert_eq!((text, end), ([HEAD, ONE, TWO].concat(), Some(ErrorKind::ConnectionReset)));
        assert!(bench.has(|event| matches!(event, Event::Fault { fault, .. } if fault == "reset")));
    }
}

#[tokio::test]
async fn reset_before_the_head_is_a_reset() {
    let bench = streams([Step::Reset]).await;
    assert_eq!(read_all(&mut bench.ask().await).await, (String::new(), Some(ErrorKind::ConnectionReset)));
}

#[tokio::test]
async fn drip_sends_the_pieces_one_by_one() {
    let bench = streams([Step::Head, Step::Drip { bytes: 20, every_ms: 1 }]).await;
    let mut stream = bench.ask().await;
    read_exactly(&mut stream, &[HEAD, ONE, "9\r\ndata: two\r\n", "2\r\n\n\n\r\n", THREE, LAST].concat()).await;
}

#[tokio::test]
async fn drip_head_finishes_or_never_does() {
    let bench = streams([Step::DripHead { every_ms: 0, finish: true }, Step::Rest]).await;
    read_exactly(&mut bench.ask().await, &[HEAD, ONE].concat()).await;

    let bench = streams([Step::DripHead { every_ms: 0, finish: false }]).await;
    let mut stream = bench.ask().await;
    let unfinished = HEAD.strip_suffix("\r\n").unwrap();
    read_exactly(&mut stream, &[unfinished, "x-drip: ..."].concat()).await;
    drop(stream);
    bench.wait_for(|event| matches!(event, Event::PeerClosed { request: Some(_), .. })).await;
    assert!(!bench.has(|event| matches!(event, Event::HeadSent { .. })));
}

#[tokio::test]
async fn repeat_for_ever_repeats_the_last_event_until_the_peer_leaves() {
    let bench = streams([Step::Head, Step::Events(2), Step::RepeatForever { every_ms: 0 }]).await;
    let mut stream = bench.ask().await;
    read_exactly(&mut stream, &[HEAD, ONE, TWO, TWO, TWO, TWO].concat()).await;
    drop(stream);
    bench.wait_for(|event| matches!(event, Event::PeerClosed { request: Some(_), .. })).await;
}

#[tokio::test]
async fn garbage_is_not_framed() {
    let bench = streams([Step::Garbage(b"\xff\x00no".to_vec()), Step::Cut]).await;
    let mut stream = bench.ask().await;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"\xff\x00no");
    let bench = streams([Step::Head, Step::Events(1), Step::Garbage(b"zz\r\n".to_vec()), Step::Rest]).await;
    read_exactly(&mut bench.ask().await, &[HEAD, ONE, "zz\r\n", TWO].concat()).await;
}

#[tokio::test]
async fn pause_lets_time_pass_between_two_events() {
    let bench = streams([Step::Head, Step::Events(1), Step::Pause { ms: 30 }, Step::Rest]).await;
    read_exactly(&mut bench.ask().await, &[HEAD, ONE, TWO, THREE, LAST].concat()).await;
    let at = |n: usize| bench.tape.first(|entry| matches!(entry.event, Event::EventSent { n: sent, .. } if sent == n)).unwrap();
    let gap = gauntlet_harness::gate::gap(&at(1), &at(2));
    gauntlet_harness::gate::at_least("the second event", gap, std::time::Duration::from_millis(30)).unwrap();
}

#[tokio::test]
async fn stall_keeps_the_connection_until_the_peer_leaves_in_order_or_by_reset() {
    for (reset, how) in [(false, Close::Fin), (true, Close::Reset)] {
        let bench = streams([Step::Head, Step::Events(1), Step::Stall]).await;
        let mut stream = bench.ask().await;
        read_exactly(&mut stream, &[HEAD, ONE].concat()).await;
        bench.wait_for(|event| matches!(event, Event::Fault { fault, .. } if fault == "stall")).await;
        nothing_to_read(&stream);
        assert_eq!(bench.wire.in_flight(), 1);
        if reset {
            stream.set_zero_linger().unwrap();
        }
        drop(stream);
        bench.wait_for(|event| matches!(event, Event::PeerClosed { request: Some(_), how: seen, .. } if *seen == how)).await;
        bench.wire.in_flight_is(0).await.unwrap();
    }
}

#[tokio::test]
async fn wrong_lengths_are_told_and_the_connection_ends() {
    for (off, told) in [(5, 9), (-1, 3)] {
        let plan = Plan { framing: Framing::WrongLength(off), ..Plan::default() };
        let bench = says(Answer::new(200, "text/plain", "body").with_plan(plan)).await;
        let (text, end) = read_all(&mut bench.ask().await).await;
        assert_eq!(text, format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {told}\r\n\r\nbody"));
        assert_eq!(end, None);
    }
}

#[tokio::test]
async fn until_close_tells_no_length() {
    let plan = Plan { framing: Framing::UntilClose, ..Plan::default() };
    let bench = says(Answer::new(200, "text/event-stream", EVENTS).with_plan(plan)).await;
    let (text, end) = read_all(&mut bench.ask().await).await;
    assert_eq!(text, format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{EVENTS}"));
    assert_eq!(end, None);
}

#[tokio::test]
async fn the_high_water_mark_is_exact() {
    let bench = streams(Plan::held("g").steps).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(bench.ask().await);
    }
    bench.wire.in_flight_is(5).await.unwrap();
    drop(streams.pop());
    bench.wire.in_flight_is(4).await.unwrap();
    bench.gates.gate("g").open();
    for stream in &mut streams {
        read_exactly(stream, HEAD).await;
    }
    bench.wire.in_flight_is(0).await.unwrap();
    assert_eq!(bench.wire.high_water(), 5);
}

#[tokio::test]
async fn refuse_is_refused_and_the_port_serves_again() {
    let bench = streams(Plan::default().steps).await;
    let mut idle = bench.ask().await;
    read_exactly(&mut idle, &[HEAD, ONE, TWO, THREE, LAST].concat()).await;
    // a peer that closes as soon as it sees the end, as HTTP clients do with idle connections
    let leaving = tokio::spawn(async move { read_all(&mut idle).await });
    bench.wire.listen(Listen::Refuse).await.unwrap();
    assert_eq!(leaving.await.unwrap(), (String::new(), None), "idle connections end before refusing is done");
    assert_eq!(bench.wire.connections(), 0);
    for _ in 0..3 {
        assert_eq!(TcpStream::connect(bench.wire.addr()).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert_eq!(std::net::TcpListener::bind(bench.wire.addr()).unwrap_err().kind(), ErrorKind::AddrInUse, "nobody else gets the port");
    bench.wire.listen(Listen::Serve).await.unwrap();
    read_exactly(&mut bench.ask().await, HEAD).await;
}

#[tokio::test]
async fn a_request_in_flight_is_answered_though_new_ones_are_refused() {
    let bench = streams(Plan::held("g").steps).await;
    let mut stream = bench.ask().await;
    bench.wire.in_flight_is(1).await.unwrap();
    bench.wire.listen(Listen::Refuse).await.unwrap();
    bench.gates.gate("g").open();
    let (text, end) = read_all(&mut stream).await;
    assert_eq!((text, end), ([HEAD, ONE, TWO, THREE, LAST].concat(), None));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn never_accept_lets_no_connection_stand_until_it_serves_again() {
    let bench = streams(Plan::default().steps).await;
    bench.wire.listen(Listen::NeverAccept).await.unwrap();
    let mut connecting = Box::pin(TcpStream::connect(bench.wire.addr()));
    // the system says that the handshake is under way: a SYN was sent and nobody answers it
    let port = format!(":{:04X} 02 ", bench.wire.addr().port());
    let syn_sent = gauntlet_harness::gate::poll_until(|| std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&port).then_some(()));
    let under_way = guard("a SYN without an answer", async {
        tokio::select! {
            connected = &mut connecting => panic!("connected: {connected:?}"),
            () = syn_sent => {}
        }
    });
    under_way.await.unwrap();
    bench.wire.listen(Listen::Serve).await.unwrap();
    // the system sends the SYN again by itself
    guard("the connection to stand at last", connecting).await.unwrap().unwrap();
}

#[tokio::test]
async fn silence_accepts_and_says_nothing_and_sees_the_peer_leave() {
    let bench = streams(Plan::default().steps).await;
    bench.wire.listen(Listen::Silence).await.unwrap();
    let accepted = async |n| {
        guard("a connection", bench.tape.wait_for(n, |entry| matches!(entry.event, Event::Accepted { .. }))).await.unwrap();
    };
    for (n, reset, how) in [(1, false, Close::Fin), (2, true, Close::Reset)] {
        let stream = bench.ask().await;
        accepted(n).await;
        nothing_to_read(&stream);
        assert_eq!(bench.wire.connections(), 1, "a silent connection stands");
        if reset {
            stream.set_zero_linger().unwrap();
        }
        drop(stream);
        bench.wait_for(|event| matches!(event, Event::PeerClosed { request: None, how: seen, .. } if *seen == how)).await;
    }
    assert!(!bench.has(|event| matches!(event, Event::RequestRead { .. })));
    let mut stream = bench.ask().await;
    accepted(3).await;
    bench.wire.listen(Listen::Refuse).await.unwrap();
    assert_eq!(bench.wire.connections(), 0, "silent connections end before refusing is done");
    let (text, end) = read_all(&mut stream).await;
    assert!(text.is_empty() && end.is_none_or(|end| end == ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn dropping_the_wire_ends_its_connections_and_frees_the_port() {
    let bench = streams(Plan::silent().steps).await;
    let mut stream = bench.ask().await;
    bench.wire.in_flight_is(1).await.unwrap();
    let addr = bench.wire.addr();
    drop(bench.wire);
    let _ = read_all(&mut stream).await;
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn what_a_peer_does_not_read_is_not_counted_as_taken() {
    const BODY: usize = 64 << 20;
    let bench = says(Answer::new(200, "text/plain", vec![b'x'; BODY])).await;
    let mut stream = bench.ask().await;
    let taken = bench.wire.sent_settles().await.unwrap();
    assert!(taken < BODY as u64, "the system's buffers are smaller than that");
    assert!(!bench.has(|event| matches!(event, Event::AnswerSent { .. })));
    assert_eq!(bench.wire.in_flight(), 1);
    let mut rest = vec![0; BODY];
    guard("the whole body", stream.read_exact(&mut rest)).await.unwrap().unwrap();
    bench.wire.in_flight_is(0).await.unwrap();
    assert!(bench.wire.sent_bytes() > BODY as u64);
}
