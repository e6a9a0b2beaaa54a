//! The log of the router. It is a test program of its own, because tracing decides once per process
//! which events are enabled.

#![allow(clippy::unwrap_used, clippy::panic)]

mod providers;

use std::io;
use std::sync::{Arc, Mutex};

use gauntlet_harness::schedule::Action;
use tracing_subscriber::fmt::MakeWriter;

use crate::providers::rules::{doing, sim, status};
use crate::providers::{config_of, context, read, request};

/// ERR-05: a failed attempt and a stream that breaks are logged with the id of the request, the
/// candidate, the number of the attempt, and the cause by its name.
#[tokio::test(start_paused = true)]
async fn failures_are_logged_with_the_id_of_the_request() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_ansi(false)
        .finish();
    let _scope = tracing::subscriber::set_default(subscriber);
    let schedule = doing(&[&[status(500), Action::Cut { events: 3 }]]);
    let sim = sim(&schedule);
    let served = sim
        .router(&config_of(&schedule))
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"));
    read(served).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for (event, attempt, cause) in [
        ("attempt failed", 1, "server_error"),
        ("stream broke", 2, "truncated"),
    ] {
        let parts = [
            event,
            "request_id=\"r-1\"",
            "provider=\"p1\"",
            "model=\"m-p1\"",
            &format!("attempt={attempt}"),
            &format!("cause=\"{cause}\""),
        ];
        assert!(
            text.lines()
                .any(|line| parts.iter().all(|part| line.contains(part))),
            "no line holds all of {parts:?} in\n{text}"
        );
    }
}

/// Collects the log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
