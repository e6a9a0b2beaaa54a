//! The question whether a gateway is ready: one request, and what came back.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::gate::bounded;

/// The statuses that mean that a gateway is ready.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "it is neither a status such as 200 nor a list of statuses such as [200, 204]"
)]
pub enum Statuses {
    /// One status.
    One(u16),
    /// Any of several statuses.
    Any(Vec<u16>),
}

impl Statuses {
    pub(super) fn holds(&self, status: u16) -> bool {
        match self {
            Self::One(one) => *one == status,
            Self::Any(any) => any.contains(&status),
        }
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(one) => write!(f, "{one}"),
            Self::Any(any) => {
                let any: Vec<String> = any.iter().map(u16::to_string).collect();
                f.write_str(&any.join(" or "))
            }
        }
    }
}

/// What came back, as the end of a sentence about the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It has not written where it listens.
    Unannounced,
    /// No program listens at the address.
    Nothing(String),
    /// Something listens, and sent no status line of HTTP/1.
    NoStatus(String),
    /// A status.
    Status(u16, String),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unannounced => f.write_str("it has not written where it listens"),
            Self::Nothing(address) => write!(f, "nothing listened at {address}"),
            Self::NoStatus(address) => {
                write!(
                    f,
                    "{address} took the connection and sent no status of HTTP/1"
                )
            }
            Self::Status(status, address) => write!(f, "{address} answered with {status}"),
        }
    }
}

/// Sends `GET path` with these headers to `address` and returns what comes back within the bound.
/// Cancel safe: dropping the future closes the connection.
pub(super) async fn ask(
    address: &str,
    path: &str,
    headers: &[(String, String)],
    bound: Duration,
) -> Seen {
    let connect = bounded(bound, TcpStream::connect(address));
    let Some(Ok(mut stream)) = connect.await else {
        return Seen::Nothing(address.to_string());
    };
    let exchange = async {
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: */*\r\n");
        for (name, value) in headers {
            if !["host", "connection", "accept"].contains(&name.to_ascii_lowercase().as_str()) {
                request.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        request.push_str("connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut head = [0_u8; 12];
        stream.read_exact(&mut head).await.ok()?;
        let head = std::str::from_utf8(&head).ok()?;
        head.strip_prefix("HTTP/1.1 ")
            .or_else(|| head.strip_prefix("HTTP/1.0 "))?
            .parse()
            .ok()
    };
    match bounded(bound, exchange).await.flatten() {
        Some(status) => Seen::Status(status, address.to_string()),
        None => Seen::NoStatus(address.to_string()),
    }
}
