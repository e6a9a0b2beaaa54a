//! Every way in which a connection to a provider ends, against raw listeners.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::HeaderMap;
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::*;

/// A timeout that never passes in a test of something else.
const LONG: Duration = Duration::from_secs(60);

fn transport(scheme: &str, address: SocketAddr) -> Arc<dyn Transport> {
    http_transport(&ProviderConfig {
        name: "p".into(),
        protocol: "openai",
        base_url: format!("{scheme}://{address}/v1").parse().unwrap(),
        api_key: None,
        max_in_flight: 8,
        queue: 16,
        user: None,
    })
}

fn request(scheme: &str, address: SocketAddr, connect_timeout: Duration) -> UpstreamRequest {
    UpstreamRequest {
        url: format!("{scheme}://user:canary@{address}/v1/chat")
            .parse()
            .unwrap(),
        headers: HeaderMap::new(),
        body: Bytes::from_static(b"{}"),
        connect_timeout,
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn send(address: SocketAddr) -> Result<UpstreamResponse, TransportError> {
    transport("http", address)
        .send(request("http", address, LONG))
        .await
}

/// A whole answer, which leaves its connection open.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Sends a request, which is answered, and reads the answer's body.
async fn ask(
    transport: &Arc<dyn Transport>,
    address: SocketAddr,
) -> (Vec<u8>, Result<(), TransportError>) {
    let answer = transport.send(request("http", address, LONG)).await;
    read(answer.unwrap().body).await
}

/// Accepts a connection and reads the whole request.
async fn take(listener: &TcpListener) -> TcpStream {
    let (mut connection, _) = listener.accept().await.unwrap();
    read_request(&mut connection).await;
    connection
}

async fn read_request(connection: &mut TcpStream) {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n{}") {
        assert!(
            connection.read_buf(&mut read).await.unwrap() > 0,
            "the request ends early"
        );
    }
}

/// Reads a body: what came, and how it ended.
async fn read(
    mut body: crate::llm::transport::UpstreamBody,
) -> (Vec<u8>, Result<(), TransportError>) {
    let mut read = Vec::new();
    while let Some(piece) = body.next().await {
        match piece {
            Ok(piece) => read.extend_from_slice(&piece),
            Err(error) => return (read, Err(error)),
        }
    }
    (read, Ok(()))
}

#[tokio::test]
async fn nobody_listens() {
    let (listener, address) = listener().await;
    drop(listener);
    let error = send(address).await.err().unwrap();
    assert!(matches!(error, TransportError::Refused(_)), "{error:?}");
    assert!(!error.to_string().contains("canary"), "{error}");
}

#[derive(Clone, Copy)]
enum Leave {
    AtOnce,
    AfterTheRequest,
    WithAReset,
    InsideTheHead,
}

#[rstest]
#[case(Leave::AtOnce)]
#[case(Leave::AfterTheRequest)]
#[case(Leave::WithAReset)]
#[case(Leave::InsideTheHead)]
#[tokio::test]
async fn the_connection_ends_before_the_answer(#[case] leave: Leave) {
    let (listener, address) = listener().await;
    let provider = async {
        match leave {
            Leave::AtOnce => drop(listener.accept().await.unwrap()),
            Leave::AfterTheRequest => drop(take(&listener).await),
            Leave::WithAReset => take(&listener).await.set_zero_linger().unwrap(),
            Leave::InsideTheHead => take(&listener)
                .await
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-")
                .await
                .unwrap(),
        }
    };
    let (answer, ()) = tokio::join!(send(address), provider);
    let error = answer.err().unwrap();
    assert!(matches!(error, TransportError::Reset(_)), "{error:?}");
    assert!(!error.to_string().contains("canary"), "{error}");
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_a_protocol_error() {
    let (listener, address) = listener().await;
    let provider = async {
        take(&listener)
            .await
            .write_all(b"SSH-2.0-OpenSSH\r\n\r\n")
            .await
            .unwrap()
    };
    let (answer, ()) = tokio::join!(send(address), provider);
    assert!(matches!(answer.err().unwrap(), TransportError::Protocol(_)));
}

#[rstest]
#[case::length("content-length: 10\r\n\r\nabc", Some("Truncated"))]
#[case::inside_a_chunk("transfer-encoding: chunked\r\n\r\nA\r\nabc", Some("Truncated"))]
#[case::between_chunks("transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", Some("Truncated"))]
#[case::inside_the_last_chunk(
    "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    Some("Truncated")
)]
#[case::no_chunk_size(
    "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n",
    Some("Protocol")
)]
#[case::whole_length("content-length: 3\r\n\r\nabc", None)]
#[case::whole_chunks("transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", None)]
#[case::until_the_end("connection: close\r\n\r\nabc", None)]
#[tokio::test]
async fn the_connection_ends_inside_the_answer(#[case] rest: &str, #[case] expected: Option<&str>) {
    let (listener, address) = listener().await;
    let provider = async {
        take(&listener)
            .await
            .write_all(format!("HTTP/1.1 200 OK\r\nx-a: b\r\n{rest}").as_bytes())
            .await
            .unwrap()
    };
    let (answer, ()) = tokio::join!(send(address), provider);
    let answer = answer.unwrap();
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["x-a"]),
        (200, &http::HeaderValue::from_static("b"))
    );
    let (body, end) = read(answer.body).await;
    assert_eq!(body, b"abc");
    match (expected, end) {
        (None, Ok(()))
        | (Some("Truncated"), Err(TransportError::Truncated(_)))
        | (Some("Protocol"), Err(TransportError::Protocol(_))) => {}
        (expected, end) => panic!("expected {expected:?}, got {end:?}"),
    }
}

#[tokio::test]
async fn a_reset_inside_the_answer_comes_after_all_that_was_read() {
    let (listener, address) = listener().await;
    let (seen, was_seen) = oneshot::channel();
    let provider = async {
        let mut connection = take(&listener).await;
        connection
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .await
            .unwrap();
        was_seen.await.unwrap();
        connection.set_zero_linger().unwrap();
    };
    let client = async {
        let mut body = send(address).await.unwrap().body;
        assert_eq!(body.next().await.unwrap().unwrap(), "abc");
        seen.send(()).unwrap();
        let end = body.next().await.unwrap();
        assert!(matches!(end, Err(TransportError::Truncated(_))), "{end:?}");
    };
    tokio::join!(client, provider);
}

#[tokio::test]
async fn a_connection_is_kept_and_a_dead_one_is_replaced() {
    let (listener, address) = listener().await;
    let transport = transport("http", address);
    let ask = async || ask(&transport, address).await;
    let (closed, is_closed) = oneshot::channel();
    let provider = async {
        let mut connection = take(&listener).await;
        connection.write_all(ANSWER).await.unwrap();
        read_request(&mut connection).await;
        connection.write_all(ANSWER).await.unwrap();
        connection.shutdown().await.unwrap();
        // The client has noticed the close and closed its end as well.
        assert_eq!(connection.read(&mut [0; 1]).await.unwrap(), 0);
        closed.send(()).unwrap();
        take(&listener).await.write_all(ANSWER).await.unwrap();
    };
    let client = async {
        assert_eq!(ask().await, (b"ok".to_vec(), Ok(())));
        assert_eq!(ask().await, (b"ok".to_vec(), Ok(())));
        is_closed.await.unwrap();
        assert_eq!(ask().await, (b"ok".to_vec(), Ok(())));
    };
    tokio::join!(client, provider);
}

/// How a provider ends a connection that it has served once, after it has read a second request.
#[derive(Clone, Copy)]
enum End {
    Closes,
    Resets,
    /// It closes after a part of the head.
    InsideTheHead,
}

/// A provider that answers the first request of each connection, and ends the connection at the
/// second. Counts connections and requests.
async fn ends_each_reuse(
    listener: &TcpListener,
    end: End,
    (connections, requests): (&Count, &Count),
) {
    loop {
        let (mut connection, _) = listener.accept().await.unwrap();
        connections.fetch_add(1, Ordering::SeqCst);
        read_request(&mut connection).await;
        requests.fetch_add(1, Ordering::SeqCst);
        connection.write_all(ANSWER).await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n{}") {
            if connection.read_buf(&mut read).await.unwrap() == 0 {
                break;
            }
        }
        requests.fetch_add(usize::from(!read.is_empty()), Ordering::SeqCst);
        match end {
            End::Closes => {}
            End::Resets => connection.set_zero_linger().unwrap(),
            End::InsideTheHead => connection.write_all(b"HTTP/1.1 200 O").await.unwrap(),
        }
    }
}

type Count = std::sync::atomic::AtomicUsize;

#[rstest]
#[case::closes(End::Closes)]
#[case::resets(End::Resets)]
#[tokio::test]
async fn a_call_on_a_dead_pooled_connection_is_sent_once_more_on_a_new_one(#[case] end: End) {
    let (listener, address) = listener().await;
    let transport = transport("http", address);
    let (connections, requests) = (Count::new(0), Count::new(0));
    let client = async {
        for n in 0..40 {
            let answer = transport.send(request("http", address, LONG)).await;
            let answer = answer.unwrap_or_else(|error| panic!("request {n}: {error:?}"));
            assert_eq!(read(answer.body).await, (b"ok".to_vec(), Ok(())));
        }
    };
    tokio::select! {
        () = client => {}
        () = ends_each_reuse(&listener, end, (&connections, &requests)) => {}
    }
    assert_eq!(
        (connections.into_inner(), requests.into_inner()),
        (40, 60),
        "each second request is sent twice, and nobody notices"
    );
}

#[tokio::test]
async fn a_call_that_was_answered_in_part_is_not_sent_again() {
    let (listener, address) = listener().await;
    let transport = transport("http", address);
    let (connections, requests) = (Count::new(0), Count::new(0));
    let client = async {
        ask(&transport, address).await.1.unwrap();
        let error = transport.send(request("http", address, LONG)).await.err();
        assert!(matches!(error, Some(TransportError::Reset(_))), "{error:?}");
    };
    let provider = ends_each_reuse(&listener, End::InsideTheHead, (&connections, &requests));
    tokio::select! {
        () = client => {}
        () = provider => {}
    }
    assert_eq!((connections.into_inner(), requests.into_inner()), (1, 2));
}

#[tokio::test]
async fn a_new_connection_that_dies_as_well_is_a_failure_of_the_provider() {
    let (listener, address) = listener().await;
    let transport = transport("http", address);
    let provider = async {
        let mut connection = take(&listener).await;
        connection.write_all(ANSWER).await.unwrap();
        read_request(&mut connection).await;
        drop(connection);
        drop(take(&listener).await);
        listener.accept().await.map(drop)
    };
    let client = async {
        ask(&transport, address).await.1.unwrap();
        transport.send(request("http", address, LONG)).await.err()
    };
    tokio::select! {
        error = client => assert!(matches!(error, Some(TransportError::Reset(_))), "{error:?}"),
        _ = provider => panic!("a third connection was made"),
    }
}

#[rstest]
#[case::descriptors(rustix::io::Errno::MFILE, true)]
#[case::descriptors_of_the_machine(rustix::io::Errno::NFILE, true)]
#[case::ports(rustix::io::Errno::ADDRNOTAVAIL, true)]
#[case::refused(rustix::io::Errno::CONNREFUSED, false)]
fn a_shortage_of_this_machine_is_known(#[case] errno: rustix::io::Errno, #[case] shortage: bool) {
    assert_eq!(
        is_shortage(&io::Error::from_raw_os_error(errno.raw_os_error())),
        shortage
    );
}

#[tokio::test]
async fn redirects_are_answers() {
    let (listener, address) = listener().await;
    let provider = async {
        let redirect = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
        take(&listener).await.write_all(redirect).await.unwrap();
    };
    let (answer, ()) = tokio::join!(send(address), provider);
    assert_eq!(answer.unwrap().status.as_u16(), 307);
}

#[tokio::test]
async fn dropping_the_call_or_the_body_closes_the_connection() {
    let (listener, address) = listener().await;
    let (asked, was_asked) = oneshot::channel();
    let provider = async {
        let mut connection = take(&listener).await;
        asked.send(()).unwrap();
        assert_eq!(
            connection.read(&mut [0; 1]).await.unwrap(),
            0,
            "closed before the answer"
        );
        let mut connection = take(&listener).await;
        connection
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .await
            .unwrap();
        assert_eq!(
            connection.read(&mut [0; 1]).await.unwrap(),
            0,
            "closed inside the answer"
        );
    };
    let client = async {
        tokio::select! {
            _ = send(address) => panic!("nobody answers"),
            asked = was_asked => asked.unwrap(),
        }
        let mut body = send(address).await.unwrap().body;
        assert_eq!(body.next().await.unwrap().unwrap(), "abc");
        drop(body);
    };
    tokio::join!(client, provider);
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_given_up_while_the_provider_holds_it() {
    let (listener, address) = listener().await;
    let provider = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        // The read ends because the client closes the connection.
        connection.read_to_end(&mut Vec::new()).await.unwrap();
    };
    let timeout = Duration::from_millis(50);
    let client = async {
        transport("https", address)
            .send(request("https", address, timeout))
            .await
    };
    let (answer, ()) = tokio::join!(client, provider);
    assert_eq!(
        answer.err().unwrap(),
        TransportError::ConnectTimeout(timeout)
    );
}

#[rstest]
#[case::closed("", "Reset")]
#[case::no_tls("HTTP/1.1 400 Bad Request\r\n\r\n", "Protocol")]
#[tokio::test]
async fn a_handshake_that_fails(#[case] answer_bytes: &str, #[case] expected: &str) {
    let (listener, address) = listener().await;
    let provider = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let _hello = connection.read(&mut [0; 4096]).await.unwrap();
        connection.write_all(answer_bytes.as_bytes()).await.unwrap();
    };
    let client = async {
        transport("https", address)
            .send(request("https", address, LONG))
            .await
    };
    let (answer, ()) = tokio::join!(client, provider);
    let error = answer.err().unwrap();
    assert!(format!("{error:?}").starts_with(expected), "{error:?}");
}
