//! The listener of a wire: accepts connections and owns them, and changes its behaviour on command.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Shared;
use super::connection::{self, OpenConnection};
use crate::plan::Listen;
use crate::tape::Event;
use crate::wire::port::{ListenerState, Port, accept, left};

static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// A change of behaviour, and where its result is sent.
pub(super) type Switch = (Listen, oneshot::Sender<io::Result<()>>);

/// Accepts until it is aborted; owns every connection, so that they end with it.
pub(super) async fn run(
    shared: Arc<Shared>,
    port: Port,
    mut state: ListenerState,
    mut switches: mpsc::Receiver<Switch>,
) {
    let mut connections = JoinSet::new();
    loop {
        // accept and recv are cancel safe: what one branch drops is still there the next time
        tokio::select! {
            biased;
            switch = switches.recv() => {
                let Some((listen, done)) = switch else { return };
                // two listeners at one port would share the connections: the old one goes first
                drop(std::mem::replace(&mut state, ListenerState::Refusing));
                retire_idle(&shared);
                let how = listen.clone();
                shared.record(Event::Listening { how });
                let opened = port.open(listen).await.map(|opened| state = opened);
                let _ = done.send(opened);
            }
            stream = accept(&state) => {
                let id = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
                let open = OpenConnection::new(Arc::clone(&shared));
                shared.record(Event::Accepted { connection: id });
                if matches!(state, ListenerState::Silent(_)) {
                    connections.spawn(leave_alone(open, stream, id));
                } else {
                    connections.spawn(connection::serve(open, stream, id));
                }
            }
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    let fault = format!("the wire itself failed: {error}");
                    shared.record(Event::Fault { request: None, fault });
                }
            }
        }
    }
}

/// Makes every connection that has been accepted until now close as soon as it is idle.
fn retire_idle(shared: &Shared) {
    shared.load.send_modify(|load| {
        load.generation += 1;
        load.fresh = 0;
    });
    shared.retire.send_replace(());
}

/// Neither reads nor writes; ends when the peer leaves or the behaviour changes.
async fn leave_alone(mut open: OpenConnection, stream: TcpStream, id: u64) {
    let how = tokio::select! {
        how = left(&stream) => Some(how),
        () = open.retired() => None,
    };
    if let Some(how) = how {
        open.shared().record(Event::PeerClosed {
            connection: id,
            request: None,
            how,
        });
    }
    // the count goes last: whoever waits for it must find the connection ended
    drop(stream);
    drop(open);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use async_trait::async_trait;

    use tokio::net::TcpListener;

    use super::*;
    use crate::gate::{Gates, guard};
    use crate::tape::Tape;
    use crate::wire::{Answer, Request, Source};

    struct Nothing;

    #[async_trait]
    impl Source for Nothing {
        async fn answer(&self, _: &Request) -> Answer {
            Answer::new(200, "text/plain", "")
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_just_accepted_does_not_escape_a_switch() {
        let shared = Shared::new("p1", Tape::new(), Gates::default(), Arc::new(Nothing));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let accepted = leave_alone(OpenConnection::new(Arc::clone(&shared)), stream, 1);
        assert_eq!(
            (shared.load.borrow().open, shared.load.borrow().fresh),
            (1, 1)
        );
        retire_idle(&shared);
        assert_eq!(
            (shared.load.borrow().open, shared.load.borrow().fresh),
            (1, 0)
        );
        // polled for the first time only now
        guard("hang.connection", "the end of the connection", accepted)
            .await
            .unwrap();
        assert_eq!(shared.load.borrow().open, 0);
    }
}
