//! What the router logs. A program of its own: which lines are written is decided once for a whole process.

#![allow(clippy::unwrap_used, clippy::panic)]

mod providers;

use std::io;
use std::sync::{Arc, Mutex};

use gauntlet_harness::schedule::Action;
use tracing_subscriber::fmt::MakeWriter;

use crate::providers::rules::{doing, status, world};
use crate::providers::{config_of, context, read, request};

/// ERR-05: a failed attempt, and a stream that breaks, are logged with the id of their request.
#[tokio::test(start_paused = true)]
async fn failures_are_logged_with_the_id_of_the_request() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_ansi(false)
        .finish();
    let _scope = tracing::subscriber::set_default(subscriber);
    let schedule = doing(&[&[status(500), Action::Cut { events: 3 }]]);
    let world = world(&schedule);
    let served = world
        .router(&config_of(&schedule))
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"));
    read(served).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for event in ["attempt failed", "stream broke"] {
        assert!(
            text.lines()
                .any(|line| line.contains(event) && line.contains("request_id=\"r-1\"")),
            "{event} in\n{text}"
        );
    }
}

/// What is logged.
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
