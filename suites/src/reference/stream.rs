//! A provider's stream past its commit point, and how it reaches the client: chunks as they come,
//! then `[DONE]`, or one error and no `[DONE]`.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::protocol::Protocol;
use bytes::Bytes;
use futures::stream::unfold;
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::chat::{self, Answer, Call, Hold};
use super::decode::{Decoder, Item};
use super::error::{AttemptError, Cause, ErrorResponse};
use super::gateway::{Gateway, Permit, set};
use super::route::CandidateState;
use super::upstream::Body;
use crate::defect::Defect;

/// How long a stream waits for usage and `[DONE]` after its last choice is finished (STRM-10).
const GRACE: Duration = Duration::from_millis(900);

/// A stream that is known to be good. Dropping it closes the connection to the provider.
pub(super) struct Committed {
    gateway: Arc<Gateway>,
    candidate: Arc<CandidateState>,
    call: Call,
    body: Option<Body>,
    decoder: Decoder,
    items: VecDeque<Item>,
    deadline: Instant,
    /// Since when the provider is silent.
    idle_from: Instant,
    /// Whether the provider ended its body in order.
    ended_in_order: bool,
    /// Whether a heartbeat has come.
    heartbeat: bool,
    /// When a stream whose choices are finished ends without `[DONE]`.
    grace: Option<Instant>,
    /// The permits of the breaker and of the provider, given back at the end.
    pub hold: Option<Hold>,
    /// For the defects that go on after a failure.
    again: bool,
    /// For the defects that decode a whole stream at its end: what has come of it.
    pub coded: Option<Vec<u8>>,
}

impl Committed {
    pub(super) fn new(
        gateway: Arc<Gateway>,
        candidate: Arc<CandidateState>,
        call: Call,
        body: Body,
        mislabelled: bool,
        deadline: Instant,
    ) -> Self {
        let spec = &candidate.provider.spec;
        let decoder = Decoder::new(
            candidate.provider.protocol,
            &spec.api_key,
            (call.include_usage(), call.choices()),
            mislabelled,
            gateway.defect,
        );
        let items = VecDeque::new();
        Self {
            gateway,
            candidate,
            call,
            body: Some(body),
            decoder,
            items,
            deadline,
            idle_from: Instant::now(),
            ended_in_order: false,
            heartbeat: false,
            grace: None,
            hold: None,
            again: true,
            coded: None,
        }
    }

    /// For [`Defect::StreamsGetDeadlineAnew`].
    pub(super) fn ends_at(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Whether nothing with content has come up to the commit point.
    pub(super) fn is_empty(&self) -> bool {
        !self.decoder.has_content()
    }

    /// Reads until the first real content: until then every failure can still become a fallback or
    /// a real status.
    pub(super) async fn reach_commit_point(&mut self) -> Result<(), AttemptError> {
        loop {
            for (position, item) in self.items.iter().enumerate() {
                match item {
                    Item::Chunk { content: true, .. } => {
                        let early = std::mem::take(&mut *self.call.early());
                        early
                            .into_iter()
                            .rev()
                            .for_each(|item| self.items.push_front(item));
                        return Ok(());
                    }
                    Item::Chunk { .. } => {}
                    Item::Done(_)
                        if self.gateway.has(Defect::IgnoresContentType)
                            || self.gateway.has(Defect::BelievesAny200) =>
                    {
                        return Ok(());
                    }
                    Item::Done(_) => {
                        return Err(AttemptError::new(
                            Cause::BadResponse,
                            "the provider's stream says nothing",
                        ));
                    }
                    Item::Failed(_) if self.gateway.has(Defect::BelievesAny200) => return Ok(()),
                    Item::Failed(error) => {
                        let error = error.clone();
                        let before = self.items.drain(..=position).take(position);
                        if self.gateway.has(Defect::ForwardsRoleEarly) {
                            self.call.early().extend(before);
                        }
                        return Err(error);
                    }
                }
            }
            self.read().await;
        }
    }

    /// The next item, within the idle timeout, the grace and the deadline.
    async fn next(&mut self) -> Item {
        // silence counts from here: a client that reads slowly is not the provider's silence
        self.restart_idle();
        loop {
            if let Some(item) = self.items.pop_front() {
                return self.settle(item);
            }
            if self.gateway.has(Defect::NoIdleTimeout) {
                self.read().await;
                continue;
            }
            let idle = self.idle_from + self.candidate.idle;
            let limit = if self.gateway.has(Defect::ChunksMoveDeadline) {
                idle
            } else {
                idle.min(self.deadline)
            };
            let grace = self.grace();
            let until = grace.map_or(limit, |grace| grace.min(limit));
            if timeout_at(until, self.read()).await.is_ok() {
                let heartbeat = self.items.is_empty() && !self.decoder.is_inside_an_event();
                if heartbeat && self.gateway.has(Defect::HeartbeatsRestartGrace) {
                    self.grace = None;
                }
                self.heartbeat |= heartbeat;
                if !heartbeat || self.gateway.has(Defect::HeartbeatsRestartIdle) {
                    self.restart_idle();
                }
                continue;
            }
            let body = self.body.take();
            if grace == Some(until) {
                if self.gateway.has(Defect::GraceKeepsConnection) {
                    tokio::spawn(async move {
                        let _held = body;
                        std::future::pending::<()>().await;
                    });
                }
                self.decoder.finish(&mut self.items);
                continue;
            }
            let item = if self.gateway.has(Defect::StallIsDone) {
                Item::Done(None)
            } else if limit == idle {
                Item::Failed(AttemptError::new(
                    Cause::IdleTimeout,
                    format!("the provider was silent for {:?}", self.candidate.idle),
                ))
            } else {
                Item::Failed(AttemptError::new(
                    Cause::DeadlineExceeded,
                    "the deadline is over",
                ))
            };
            return self.settle(item);
        }
    }

    fn restart_idle(&mut self) {
        let never = self.gateway.has(Defect::IdleNeverRestarts)
            || (self.heartbeat && self.gateway.has(Defect::HeartbeatEndsIdleRestarts));
        if !never {
            self.idle_from = Instant::now();
        }
    }

    /// When the stream ends, if all of its choices are finished.
    fn grace(&mut self) -> Option<Instant> {
        if !self.decoder.is_complete() || self.gateway.has(Defect::AwaitsDone) {
            self.grace = None;
        } else if self.grace.is_none() {
            let grace = if self.gateway.has(Defect::EndsAtFinish) {
                Duration::ZERO
            } else {
                GRACE
            };
            self.grace = Some(Instant::now() + grace);
        }
        self.grace
    }

    /// Reads once; what it completes stands in `items`. Cancel safe: bytes are decoded in the same
    /// poll that takes them.
    async fn read(&mut self) {
        let Some(body) = &mut self.body else {
            return std::future::pending().await;
        };
        match body.chunk().await {
            Some(Ok(bytes)) if self.gateway.has(Defect::SharesBuffer) => {
                let mut shared = self
                    .gateway
                    .buffer
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                self.decoder.swap_buffer(&mut shared);
                self.decoder.push(&bytes, &mut self.items);
                self.decoder.swap_buffer(&mut shared);
            }
            Some(Ok(bytes)) if self.coded.is_some() => {
                let coded = self.coded.get_or_insert_default();
                coded.extend_from_slice(&bytes);
            }
            Some(Ok(bytes)) => self.decoder.push(&bytes, &mut self.items),
            Some(Err(error)) if self.gateway.has(Defect::ResetEndsSilently) => {
                self.items.push_back(Item::Failed(error))
            }
            Some(Err(_)) if self.gateway.has(Defect::ResetIsDone) => {
                self.items.push_back(Item::Done(None));
            }
            Some(Err(error)) => self.decoder.cut(error, &mut self.items),
            None => {
                self.ended_in_order = true;
                if let Some(coded) = self.coded.take() {
                    self.decoder.push(&chat::gunzipped(&coded), &mut self.items);
                }
                self.decoder.finish(&mut self.items);
            }
        }
    }

    fn is_translated(&self) -> bool {
        self.candidate.provider.protocol == Protocol::Ollama
    }

    /// Ends the stream: reports the result to the breaker and the counters, and closes the
    /// provider's connection.
    fn settle(&mut self, item: Item) -> Item {
        let hold = match &item {
            Item::Chunk { .. } => return item,
            Item::Done(_) | Item::Failed(_) => self.hold.take(),
        };
        match (&item, hold) {
            (Item::Done(_), Some(hold)) if self.gateway.has(Defect::CountsNoTokensOfStreams) => {
                hold.succeeded(None)
            }
            (Item::Done(usage), Some(hold)) => hold.succeeded(*usage),
            (Item::Failed(_), Some(mut hold)) if self.gateway.has(Defect::ForgetsBrokenStreams) => {
                if let Some(admitted) = hold.admitted.take() {
                    admitted.failed();
                }
            }
            (Item::Failed(error), Some(mut hold)) => {
                chat::judge(&self.call, self.deadline, error, &mut hold)
            }
            _ => {}
        }
        if !self.gateway.has(Defect::ReadsPastDone) {
            self.body = None;
        }
        item
    }

    /// For [`Defect::RestartsStream`] and its like, and [`Defect::SplicesStreams`]: a second stream
    /// instead of the one that failed.
    async fn start_again(&mut self) -> bool {
        let first = match self.gateway.defect {
            Some(Defect::RestartsStream) => 0,
            Some(Defect::RestartsToolCalls) if !self.decoder.has_text() => 0,
            Some(Defect::SplicesStreams) => 1,
            _ => return false,
        };
        let gateway = self.gateway.clone();
        let alias = self
            .call
            .fields
            .get("model")
            .and_then(|model| model.as_str())
            .unwrap_or_default();
        let Some(route) = gateway
            .routes
            .find(alias)
            .filter(|_| std::mem::take(&mut self.again))
        else {
            return false;
        };
        match chat::ask(&gateway, route, &self.call.clone(), first).await {
            Ok(chat::Served {
                answer: Answer::Stream(mut stream),
                ..
            }) => {
                stream.again = false;
                *self = *stream;
                true
            }
            _ => false,
        }
    }
}

/// The events for the client. Dropped because the client left, it drops the provider's stream and
/// its connection.
pub(super) fn events(
    stream: Committed,
    permit: Option<Permit>,
) -> impl Stream<Item = Bytes> + Send + 'static {
    let gateway = stream.gateway.clone();
    let cut = gateway.cut.subscribe();
    unfold(Some((stream, permit, cut)), move |state| {
        let gateway = gateway.clone();
        async move {
            let (mut stream, mut permit, mut cut) = state?;
            let item = loop {
                let item = tokio::select! {
                    item = stream.next() => item,
                    () = set(&mut cut) => Item::Failed(AttemptError::new(Cause::Truncated, "the gateway shuts down")),
                };
                let shut = *cut.borrow();
                if !shut && matches!(item, Item::Failed(_)) && stream.start_again().await {
                    continue;
                }
                if shut && matches!(item, Item::Failed(_)) && gateway.has(Defect::DrainCutsSilently)
                {
                    return None;
                }
                break item;
            };
            match &item {
                Item::Chunk { .. } => {}
                Item::Done(_) if gateway.has(Defect::LosesPermitOfStream) => gateway.lose(),
                Item::Failed(_) if gateway.has(Defect::LosesPermitOfBrokenStream) => gateway.lose(),
                Item::Done(_) | Item::Failed(_) => {}
            }
            if let Some(permit) = &mut permit {
                permit.ended = !matches!(item, Item::Chunk { .. });
            }
            match item {
                Item::Chunk { data, .. } => Some((
                    format!("data: {data}\n\n").into(),
                    Some((stream, permit, cut)),
                )),
                Item::Done(_)
                    if gateway.has(Defect::TranslatesWithoutEnd) && stream.is_translated() =>
                {
                    None
                }
                Item::Done(_) => {
                    let done = if gateway.has(Defect::SendsDoneTwice) {
                        "data: [DONE]\n\ndata: [DONE]\n\n"
                    } else {
                        "data: [DONE]\n\n"
                    };
                    Some((Bytes::from_static(done.as_bytes()), None))
                }
                Item::Failed(error)
                    if gateway.has(Defect::ResetEndsSilently)
                        && error.cause == Cause::Truncated =>
                {
                    None
                }
                Item::Failed(_)
                    if gateway.has(Defect::OrderlyEndIsSilent) && stream.ended_in_order =>
                {
                    None
                }
                Item::Failed(error) => {
                    let error = if *cut.borrow() {
                        ErrorResponse::shutting_down()
                    } else {
                        ErrorResponse::from_attempt(&error, gateway.defect)
                    };
                    let done = if gateway.has(Defect::SendsDoneAfterError) {
                        "data: [DONE]\n\n"
                    } else {
                        ""
                    };
                    Some((format!("data: {}\n\n{done}", error.document()).into(), None))
                }
            }
        }
    })
}

/// For the defects that read the provider's stream in a task of its own:
/// [`Defect::BuffersStream`], [`Defect::ReadsAhead`], [`Defect::ReadsForNobody`].
pub(super) fn read_ahead(
    events: impl Stream<Item = Bytes> + Send + 'static,
    gateway: &Arc<Gateway>,
) -> impl Stream<Item = Bytes> + Send + 'static {
    let (sender, receiver) = mpsc::unbounded_channel();
    let gateway = gateway.clone();
    tokio::spawn(async move {
        let mut events = std::pin::pin!(events);
        let mut collected = Vec::new();
        while let Some(event) = events.next().await {
            if gateway.has(Defect::BuffersStream) || gateway.has(Defect::GathersForCodingClients) {
                collected.push(event);
            } else if sender.send(event).is_err() && !gateway.has(Defect::ReadsForNobody) {
                return;
            }
        }
        for event in collected {
            sender.send(event).ok();
        }
    });
    unfold(receiver, |mut receiver| async move {
        Some((receiver.recv().await?, receiver))
    })
}

/// For [`Defect::WritesUnderLock`]: a writer that waits for its client holds the lock that all
/// writers need.
pub(super) fn under_lock(
    events: impl Stream<Item = Bytes> + Send + 'static,
    gateway: &Arc<Gateway>,
) -> impl Stream<Item = Bytes> + Send + 'static {
    let (sender, receiver) = mpsc::channel(1);
    let lock = gateway.line.clone();
    tokio::spawn(async move {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            let _held = lock.acquire().await;
            if sender.send(event).await.is_err() {
                return;
            }
        }
    });
    unfold(receiver, |mut receiver| async move {
        Some((receiver.recv().await?, receiver))
    })
}
