//! What Linux shows of a socket's queues in `/proc/net/tcp`: whether the peer has read everything
//! that was sent, and whether a connection waits to be accepted.
//!
//! A reset destroys what its peer has not read. The drain barrier therefore waits until our send
//! queue is empty (everything is acknowledged), and then until the peer's receive queue is empty.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use crate::gate;

/// What the drain barrier knows about the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// The peer has read everything.
    Read,
    /// The system does not show the peer's queue, so nobody knows whether the peer has read.
    Unseen,
}

/// Waits until the peer has read what was sent; waits forever for a peer that does not read. Cancel
/// safe.
pub(crate) async fn drain(stream: &TcpStream) -> Drained {
    let (Ok(ours), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else {
        return Drained::Unseen;
    };
    let acknowledged = gate::poll_until(|| match queues(ours, peer) {
        Some((0, _)) => Some(true),
        Some(_) => None,
        None => Some(false),
    });
    if !acknowledged.await {
        return Drained::Unseen;
    }
    // the table is no snapshot, so the peer's row is read only after ours was empty
    gate::poll_until(|| match queues(peer, ours) {
        Some((_, 0)) => Some(Drained::Read),
        Some(_) => None,
        None => Some(Drained::Unseen),
    })
    .await
}

/// How many bytes that the peer has written lie in the buffers of the system: in its send queue and
/// in our receive queue. `None` where the system does not show them.
pub(crate) fn waiting(stream: &TcpStream) -> Option<u64> {
    let (ours, peer) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    between(peer, ours)
}

/// How many bytes from the first address to the second lie in the buffers of the system. Bytes that
/// move from the one queue to the other meanwhile may be counted twice, and none is left out.
pub(crate) fn between(from: SocketAddr, to: SocketAddr) -> Option<u64> {
    let (unsent, _) = queues(from, to)?;
    let (_, unread) = queues(to, from)?;
    Some(unsent + unread)
}

/// Whether the system counts a connection that waits to be accepted at `listener`; also true where
/// the system does not show it. A connection is established for its client before it is for the
/// listener: a queue of one is full only once the connection is counted.
pub(super) fn accept_queue_holds_one(listener: SocketAddr) -> bool {
    queues(listener, SocketAddr::new(listener.ip(), 0)).is_none_or(|(_, waiting)| waiting > 0)
}

/// Send and receive queue of the socket with these addresses, if the system shows it.
fn queues(local: SocketAddr, remote: SocketAddr) -> Option<(u64, u64)> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|table| {
            let rows = std::fs::read_to_string(table).ok()?;
            rows.lines()
                .skip(1)
                .find_map(|row| row_queues(row, local.port(), remote.port()))
        })
}

/// `sl local_address rem_address st tx_queue:rx_queue …`; on one machine the two ports identify the
/// connection.
fn row_queues(row: &str, local: u16, remote: u16) -> Option<(u64, u64)> {
    let mut fields = row.split_ascii_whitespace().skip(1);
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    if port(fields.next()?)? != local || port(fields.next()?)? != remote {
        return None;
    }
    let (send, receive) = fields.nth(1)?.split_once(':')?;
    Some((
        u64::from_str_radix(send, 16).ok()?,
        u64::from_str_radix(receive, 16).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::row_queues;

    #[test]
    fn a_row_is_read() {
        let row = "   3: 0100007F:1F90 0100007F:D2F4 01 00000010:0000000A 00:00000000 00000000";
        assert_eq!(row_queues(row, 0x1F90, 0xD2F4), Some((16, 10)));
        assert_eq!(row_queues(row, 0x1F90, 1), None);
    }
}
