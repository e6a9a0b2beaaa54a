//! Ports: what happens before anything is read, and what a switch does to connections that stand.

use std::io::ErrorKind;

use gauntlet_harness::gate::guard;
use gauntlet_harness::plan::{Listen, Plan};
use gauntlet_harness::tape::{Close, Event};
use tokio::net::TcpStream;

use super::bench::{HEAD, LAST, ONE, THREE, TWO, nothing_to_read, read_all, read_exactly, streams};

#[tokio::test]
async fn refuse_is_refused_and_the_port_serves_again() {
    let bench = streams(Plan::default().steps).await;
    let mut idle = bench.ask().await;
    read_exactly(&mut idle, &[HEAD, ONE, TWO, THREE, LAST].concat()).await;
    // a peer that closes as soon as it sees the end, as HTTP clients do with idle connections
    let leaving = tokio::spawn(async move { read_all(&mut idle).await });
    bench.wire.listen(Listen::Refuse).await.unwrap();
    assert_eq!(
        leaving.await.unwrap(),
        (String::new(), None),
        "idle connections end before refusing is done"
    );
    assert_eq!(bench.wire.connections(), 0);
    for _ in 0..3 {
        assert_eq!(
            TcpStream::connect(bench.wire.addr())
                .await
                .unwrap_err()
                .kind(),
            ErrorKind::ConnectionRefused
        );
    }
    assert_eq!(
        std::net::TcpListener::bind(bench.wire.addr())
            .unwrap_err()
            .kind(),
        ErrorKind::AddrInUse,
        "nobody else gets the port"
    );
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
    let syn_sent = gauntlet_harness::gate::poll_until(|| {
        std::fs::read_to_string("/proc/net/tcp")
            .unwrap()
            .contains(&port)
            .then_some(())
    });
    let under_way = guard("hang.test", "a SYN without an answer", async {
        tokio::select! {
            connected = &mut connecting => panic!("connected: {connected:?}"),
            () = syn_sent => {}
        }
    });
    under_way.await.unwrap();
    bench.wire.listen(Listen::Serve).await.unwrap();
    // the system sends the SYN again by itself
    guard("hang.test", "the connection to stand at last", connecting)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn silence_accepts_and_says_nothing_and_sees_the_peer_leave() {
    let bench = streams(Plan::default().steps).await;
    bench.wire.listen(Listen::Silence).await.unwrap();
    let accepted = async |n| {
        guard(
            "hang.test",
            "a connection",
            bench
                .tape
                .wait_for(n, |entry| matches!(entry.event, Event::Accepted { .. })),
        )
        .await
        .unwrap();
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
    assert_eq!(
        bench.wire.connections(),
        0,
        "silent connections end before refusing is done"
    );
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
