//! One request on a connection of its own: it is written, and the answer is read as far as the case
//! wants.
//!
//! Bytes that come earlier than the case reads them stay in the buffer; nothing is read beyond the
//! end of an answer. A client leaves by dropping its exchange.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Reply, StreamReply, Transport};
use crate::gate;
use crate::tape::{Data, Event, Side, Tape};
use crate::verdict::Failure;
use crate::wire::http::message::{self, Body, ResponseHead};
use crate::wire::queues::{drain, waiting};

/// A request that has been written, and its connection. Dropping it closes the connection, as a
/// client does that leaves.
#[derive(Debug)]
pub struct Exchange {
    tape: Tape,
    label: String,
    method: String,
    stream: Option<TcpStream>,
    pub(super) buffer: BytesMut,
    /// The largest body, in bytes, that is read.
    pub(super) most: usize,
    finished: bool,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.stream.is_some() && !self.finished {
            self.record(Event::ClientLeft);
        }
    }
}

impl Exchange {
    pub(super) fn new(
        tape: Tape,
        label: String,
        method: &str,
        stream: TcpStream,
        most: usize,
    ) -> Self {
        Self {
            tape,
            label,
            method: method.to_string(),
            stream: Some(stream),
            buffer: BytesMut::new(),
            most,
            finished: false,
        }
    }

    /// The label of the exchange.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Closes the connection, even if the answer is still coming.
    pub fn leave(self) {}

    /// Reads the whole answer.
    ///
    /// # Errors
    /// A violation if there is no whole answer, or none within the hang guard.
    pub async fn reply(self) -> Result<Reply, Failure> {
        Ok(self.try_reply().await??)
    }

    /// Reads the whole answer; a failed transport is a value.
    ///
    /// # Errors
    /// A violation by a hang only.
    pub async fn try_reply(mut self) -> Result<Result<Reply, Transport>, Failure> {
        let what = format!("the whole answer to client {}", self.label);
        let read = gate::guard("hang.answer", &what, self.read_reply()).await?;
        if let Err(error) = &read {
            self.fail(error);
        }
        Ok(read)
    }

    /// Reads the head of the answer. Its events are read when the case asks for them.
    ///
    /// # Errors
    /// A violation if there is no answer, or none within the hang guard.
    pub async fn stream(self) -> Result<StreamReply, Failure> {
        Ok(self.try_stream().await??)
    }

    /// Does what [`Exchange::stream`] does; a failed transport is a value.
    ///
    /// # Errors
    /// A violation by a hang only.
    pub async fn try_stream(mut self) -> Result<Result<StreamReply, Transport>, Failure> {
        let what = format!("the head of the answer to client {}", self.label);
        Ok(
            match gate::guard("hang.head", &what, self.read_head()).await? {
                Ok((head, body)) => Ok(StreamReply::new(self, head, body)),
                Err(error) => {
                    self.fail(&error);
                    Err(error)
                }
            },
        )
    }

    /// Writes further bytes of the request, as much as the gateway takes.
    ///
    /// # Errors
    /// A violation by a hang if the gateway neither takes them nor answers nor closes.
    pub async fn write_more(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        gate::guard(
            "hang.send",
            "the gateway to take the rest of a request",
            self.write(bytes),
        )
        .await
    }

    /// Shuts the sending side of the connection (FIN) and goes on reading.
    pub async fn shut_sending(&mut self) {
        if let Some(stream) = &mut self.stream {
            // a connection that has ended meanwhile is noticed by the next read
            let _ = stream.shutdown().await;
        }
    }

    /// Waits until the gateway has read every byte that was written, as far as the system shows its
    /// queue. Cancel safe.
    ///
    /// # Errors
    /// A violation by a hang if the gateway does not read them.
    pub async fn taken(&self) -> Result<(), Failure> {
        let Some(stream) = &self.stream else {
            return Ok(());
        };
        let what = format!("the gateway to read what client {} has sent", self.label);
        gate::guard("hang.taken", &what, drain(stream)).await?;
        Ok(())
    }

    /// The number of bytes of the answer that lie in the buffers of the operating system; `None`
    /// where the system does not show them.
    pub fn in_buffers(&self) -> Option<u64> {
        waiting(self.stream.as_ref()?)
    }

    /// Reads the next head of an answer without its body, an interim one (1xx) included, and
    /// returns its status. An interim head is taken off; a final one is still there for
    /// [`Exchange::reply`].
    ///
    /// # Errors
    /// A violation if there is no head, or none within the hang guard.
    pub async fn next_status(&mut self) -> Result<u16, Failure> {
        let what = format!("the next status line for client {}", self.label);
        let reading = async {
            loop {
                let head = message::next_status(&mut self.buffer)
                    .map_err(|error| Transport::Malformed(error.to_string()))?;
                if let Some(status) = head {
                    return Ok(status);
                }
                match self.fill().await {
                    Ok(true) => {}
                    Ok(false) => return Err(Transport::NoAnswer("end of the connection".into())),
                    Err(error) => return Err(Transport::NoAnswer(error.to_string())),
                }
            }
        };
        Ok(gate::guard("hang.status_line", &what, reading).await??)
    }

    /// Reads one whole answer and keeps the connection; the next answer on it is read by the next
    /// call.
    ///
    /// # Errors
    /// As [`Exchange::reply`].
    pub async fn next_reply(&mut self) -> Result<Reply, Failure> {
        let what = format!("the next whole answer to client {}", self.label);
        let reply = gate::guard("hang.answer", &what, self.read_whole()).await??;
        self.record(Event::ClientAnswered {
            status: reply.status,
            body: Data::new(reply.body.clone()),
        });
        Ok(reply)
    }

    /// Waits until the gateway has closed the connection, and returns the number of bytes that came
    /// before.
    ///
    /// # Errors
    /// A violation by a hang if it stays open.
    pub async fn until_closed(&mut self) -> Result<usize, Failure> {
        let what = format!("the end of the connection of client {}", self.label);
        let closing = async { while let Ok(true) = self.fill().await {} };
        gate::guard("hang.closed", &what, closing).await?;
        self.finished = true;
        Ok(self.buffer.len())
    }

    async fn read_reply(&mut self) -> Result<Reply, Transport> {
        let reply = self.read_whole().await?;
        self.finish(Event::ClientAnswered {
            status: reply.status,
            body: Data::new(reply.body.clone()),
        });
        Ok(reply)
    }

    async fn read_whole(&mut self) -> Result<Reply, Transport> {
        let (head, mut body) = self.read_head().await?;
        let mut whole = BytesMut::new();
        loop {
            whole.extend_from_slice(
                &body
                    .take(&mut self.buffer)
                    .map_err(|error| Transport::Malformed(error.to_string()))?,
            );
            if body.is_done() {
                break;
            }
            if whole.len() > self.most {
                return Err(Transport::TooLarge {
                    status: head.status,
                    most: format!("{} bytes", self.most),
                });
            }
            match self.fill().await {
                Ok(true) => {}
                Ok(false) if body.may_end_here() => break,
                Ok(false) => {
                    return Err(Transport::Cut {
                        status: head.status,
                        body: whole.freeze(),
                        how: "end of the connection".into(),
                    });
                }
                Err(error) => {
                    return Err(Transport::Cut {
                        status: head.status,
                        body: whole.freeze(),
                        how: error.to_string(),
                    });
                }
            }
        }
        Ok(Reply {
            label: self.label.clone(),
            status: head.status,
            headers: head.headers,
            body: whole.freeze(),
        })
    }

    async fn read_head(&mut self) -> Result<(ResponseHead, Body), Transport> {
        loop {
            if let Some(head) = message::take_response(&mut self.buffer)
                .map_err(|error| Transport::Malformed(error.to_string()))?
            {
                let body = Body::of_response(&self.method, &head)
                    .map_err(|error| Transport::Malformed(error.to_string()))?;
                self.record(Event::ClientStatus {
                    status: head.status,
                    headers: head.headers.clone(),
                });
                return Ok((head, body));
            }
            match self.fill().await {
                Ok(true) => {}
                Ok(false) => return Err(Transport::NoAnswer("end of the connection".into())),
                Err(error) => return Err(Transport::NoAnswer(error.to_string())),
            }
        }
    }

    /// Reads more bytes; gives `false` at the end of the connection.
    pub(super) async fn fill(&mut self) -> std::io::Result<bool> {
        let Some(stream) = &mut self.stream else {
            return Ok(false);
        };
        Ok(stream.read_buf(&mut self.buffer).await? > 0)
    }

    /// Writes as much as the gateway takes. The next read notices a gateway that answers early or
    /// closes.
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let (mut read, mut write) = stream.split();
        let mut writing = std::pin::pin!(write.write_all(bytes));
        // a dropped read has put its bytes into the buffer; once an answer is there, the rest of a
        // refused body is written for a bounded time only
        tokio::select! {
            biased;
            _ = &mut writing => {}
            _ = read.read_buf(&mut self.buffer) => {
                let _ = gate::bounded(Duration::from_millis(500), writing).await;
            }
        }
    }

    pub(super) async fn dribble(&mut self, bytes: &[u8], piece: usize, every: Duration) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let (mut read, mut write) = stream.split();
        let writing = async {
            for piece in bytes.chunks(piece.max(1)) {
                if write.write_all(piece).await.is_err() {
                    return;
                }
                gate::pace(every).await;
            }
        };
        tokio::select! {
            () = writing => {}
            _ = read.read_buf(&mut self.buffer) => {}
        }
    }

    fn fail(&mut self, error: &Transport) {
        let body = match error {
            Transport::Cut { body, .. } => body.clone(),
            _ => Bytes::new(),
        };
        self.finish(Event::ClientFailed {
            error: error.to_string(),
            body: body.into(),
        });
    }

    pub(super) fn finish(&mut self, event: Event) {
        self.finished = true;
        self.stream = None;
        self.record(event);
    }

    pub(super) fn record(&self, event: Event) {
        self.tape.record(Side::Client(self.label.clone()), event);
    }
}
