//! The client's messages (PostgreSQL documentation, "Message Formats"), read from its bytes: which
//! statement each of them makes the server execute. There are no sockets here.

use std::collections::HashMap;

use bytes::{Buf, BytesMut};

/// One message of the client, as it came.
pub(super) struct Message {
    pub(super) bytes: BytesMut,
    pub(super) asks_for_tls: bool,
    /// The text of the statement that it makes the server execute.
    pub(super) statement: Option<String>,
}

/// Takes the client's messages off its bytes.
#[derive(Default)]
pub(super) struct Frontend {
    started: bool,
    prepared: HashMap<String, String>,
}

const TLS_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

impl Frontend {
    /// The next whole message; all bytes there are once they are encrypted.
    pub(super) fn take(&mut self, buffer: &mut BytesMut, opaque: bool) -> Option<Message> {
        let plain = |bytes| {
            Some(Message {
                bytes,
                asks_for_tls: false,
                statement: None,
            })
        };
        if opaque {
            return if buffer.is_empty() {
                None
            } else {
                plain(buffer.split())
            };
        }
        if !self.started {
            let length = length_at(buffer, 0)?;
            if buffer.len() < length.max(8) {
                return None;
            }
            let code = (&buffer[4..8]).get_u32();
            self.started = code != TLS_REQUEST && code != GSS_REQUEST;
            return Some(Message {
                bytes: buffer.split_to(length.max(8)),
                asks_for_tls: !self.started,
                statement: None,
            });
        }
        let length = 1 + length_at(buffer, 1)?;
        if buffer.len() < length {
            return None;
        }
        let bytes = buffer.split_to(length);
        let statement = self.statement(bytes[0], bytes.get(5..).unwrap_or_default());
        Some(Message {
            bytes,
            asks_for_tls: false,
            statement,
        })
    }

    /// Query carries its text, Parse names a statement for later, Bind executes a named one.
    fn statement(&mut self, kind: u8, payload: &[u8]) -> Option<String> {
        let mut texts = payload
            .split(|byte| *byte == 0)
            .map(|text| String::from_utf8_lossy(text).into_owned());
        match kind {
            b'Q' => texts.next(),
            b'P' => {
                let (name, text) = (texts.next()?, texts.next()?);
                self.prepared.insert(name, text);
                None
            }
            b'B' => self.prepared.get(&texts.nth(1)?).cloned(),
            _ => None,
        }
    }
}

fn length_at(buffer: &BytesMut, at: usize) -> Option<usize> {
    let mut bytes = buffer.get(at..at + 4)?;
    usize::try_from(bytes.get_u32()).ok()
}

/// The statement in one line, cut where it gets long.
pub(super) fn first_words(statement: &str) -> String {
    let line = statement.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(160) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&(payload.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn statements_are_seen_when_they_are_executed_however_the_bytes_are_split() {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&8_u32.to_be_bytes());
        bytes.extend_from_slice(&TLS_REQUEST.to_be_bytes());
        bytes.extend_from_slice(&9_u32.to_be_bytes());
        bytes.extend_from_slice(&196_608_u32.to_be_bytes());
        bytes.push(0);
        bytes.extend(message(b'P', b"s1\0select  1\0\0\0"));
        bytes.extend(message(b'S', b""));
        bytes.extend(message(b'B', b"\0s1\0\0\0\0\0\0\0"));
        bytes.extend(message(b'Q', b"COMMIT\0"));
        for step in 1..bytes.len() {
            let mut frontend = Frontend::default();
            let mut buffer = BytesMut::new();
            let (mut relayed, mut statements) = (Vec::new(), Vec::new());
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(message) = frontend.take(&mut buffer, false) {
                    relayed.extend_from_slice(&message.bytes);
                    statements.extend(message.statement);
                }
            }
            assert_eq!(relayed, bytes);
            assert_eq!(statements, ["select  1", "COMMIT"]);
        }
    }
}
