//! The table of defects: each variant is one bug that a real gateway could have, and the requirement that it breaks.

macro_rules! defects {
    ($($(#[doc = $doc:literal])+ $variant:ident = $id:literal,)+) => {
        /// One bug. Its first line says what the gateway does wrong; [`Defect::requirement`] names what it breaks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Defect {
            $($(#[doc = $doc])+ #[doc = ""] #[doc = concat!("Breaks ", $id, ".")] $variant,)+
        }

        impl Defect {
            /// Every defect, in the order of the catalogue.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The id of the requirement that it breaks.
            pub const fn requirement(self) -> &'static str {
                match self {
                    $(Self::$variant => $id,)+
                }
            }

            /// What the gateway does wrong, for people.
            pub const fn bug(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc,)+).trim_ascii(),)+
                }
            }
        }
    };
}

impl Defect {
    /// The defects that break this requirement.
    pub fn of(requirement: &str) -> Vec<Self> {
        Self::ALL.iter().copied().filter(|defect| defect.requirement() == requirement).collect()
    }
}

defects! {
    /// Rebuilds the answer from its text alone: tool calls are lost, finish_reason is always `stop`, usage is lost.
    KeepsOnlyText = "WIRE-01",
    /// Collects the whole stream before it sends the first chunk.
    BuffersStream = "WIRE-02",
    /// Sends `[DONE]` twice: once with the last chunk, once at the end.
    SendsDoneTwice = "WIRE-03",
    /// Leaves out the usage chunk, since its `choices` is empty.
    DropsUsageChunk = "WIRE-04",
    /// Forwards a fragment of tool-call arguments only if it is JSON by itself.
    DropsPartialArguments = "WIRE-05",
    /// Decodes each TCP read as UTF-8 by itself, replacing what is cut.
    DecodesEachRead = "WIRE-06",
    /// Reads SSE by `\n\n` and `data: ` alone: CRLF, `data:` without a space and data of many lines are not understood.
    ReadsSseByPrefix = "WIRE-07",
    /// Forwards only the request fields that it knows.
    DropsUnknownFields = "WIRE-08",
    /// Lists the models as a bare array of names.
    ListsBareNames = "WIRE-09",
    /// Passes Ollama's tool arguments on as an object, its `stop` as finish_reason of a tool call, and no usage.
    CopiesOllamaFields = "WIRE-12",
    /// Holds one piece of text back to look ahead, and forgets it at the end of the stream.
    StreamLosesLastText = "WIRE-13",
    /// Waits for a connection for as long as the system does.
    NoConnectTimeout = "TIME-01",
    /// Answers 200 with an empty completion when the time is over.
    TimeoutIsEmptyAnswer = "TIME-02",
    /// Waits for an answer without any time-out.
    WaitsForEver = "TIME-02",
    /// Gives up when half of the time is over.
    GivesUpEarly = "TIME-02",
    /// Each byte of the answer's headers starts the time-out anew.
    HeaderBytesRestartTimer = "TIME-03",
    /// A stream that stalls is ended with `[DONE]` when its idle time-out is over.
    StallIsDone = "TIME-04",
    /// A stream has no idle time-out and no deadline.
    NoIdleTimeout = "TIME-04",
    /// Each chunk moves the deadline.
    ChunksMoveDeadline = "TIME-05",
    /// Each candidate gets the whole total anew.
    DeadlinePerCandidate = "TIME-06",
    /// A time-out is tried again, each time with the whole deadline.
    DeadlinePerRetry = "TIME-06",
    /// A model's own connect time-out is read and not used.
    IgnoresOwnConnect = "TIME-07",
    /// A model's own first-token time-out is read and not used.
    IgnoresOwnFirstToken = "TIME-07",
    /// A model's own idle time-out is read and not used.
    IgnoresOwnIdle = "TIME-07",
    /// A model's own total time-out is read and not used.
    IgnoresOwnTotal = "TIME-07",
    /// A provider's own time-outs are read and not used.
    IgnoresProvidersTimeouts = "TIME-07",
    /// The client's deadline replaces the configured one, also where it is longer.
    ClientLengthensDeadline = "TIME-08",
    /// The client's deadline is not read.
    IgnoresClientDeadline = "TIME-08",
    /// A timed-out attempt is left running in a task of its own, its connection open.
    AbandonsTimedOut = "TIME-09",
    /// A call of the database has no time-out.
    WaitsForDatabase = "TIME-10",
    /// The idle time-out counts from the start of the stream; no chunk restarts it.
    IdleNeverRestarts = "TIME-11",
    /// Headers end the first-token time-out; afterwards nothing is timed until content comes.
    HeadersEndFirstToken = "TIME-12",
    /// At most eight requests are at a provider at once, whatever is configured.
    PoolOfEight = "PARA-01",
    /// Calls leave through one queue: a stalled provider holds up all others.
    HeadOfLine = "PARA-02",
    /// Chunks are written to clients under one lock, so that a slow reader stops all streams.
    WritesUnderLock = "PARA-03",
    /// Retrieval starts only after entity extraction has ended.
    RetrievesAfterEntities = "PARA-04",
    /// Synthesis starts beside fact check.
    SynthesisBesideFactCheck = "PARA-05",
    /// A failing step of the first phase cancels the other.
    FailureCancelsSiblings = "PARA-06",
    /// A provider's concurrency limit is not kept.
    NoBulkhead = "PARA-07",
    /// A provider is given one request at a time where it has a concurrency limit.
    BulkheadOfOne = "PARA-07",
    /// Health waits until no request is in flight.
    HealthWaitsForRequests = "PARA-08",
    /// A request that comes while another of its model is in flight is asked with that one's prompt.
    SharesPrompts = "PARA-09",
    /// Tries each candidate once, whatever is configured.
    NeverRetries = "RETRY-01",
    /// Tries a refused request (400, 401, 404, 422 and so on) again.
    RetriesRejected = "RETRY-02",
    /// Retry-After is not read.
    IgnoresRetryAfter = "RETRY-03",
    /// Tries again at once, without back-off.
    RetriesAtOnce = "RETRY-04",
    /// Starts the stream again from its beginning after a failure in its middle.
    RestartsStream = "RETRY-05",
    /// Retries have no budget.
    NoRetryBudget = "RETRY-06",
    /// Every attempt has an idempotency key of its own.
    FreshKeyPerAttempt = "RETRY-07",
    /// Goes on trying after the client has gone.
    RetriesForNobody = "RETRY-08",
    /// Only the first candidate is ever asked.
    NoFallback = "FALL-01",
    /// Names the first candidate as the one who served, whoever it was.
    NamesFirstCandidate = "FALL-01",
    /// Any 200 is an answer, whatever is in it.
    BelievesAny200 = "FALL-02",
    /// Answers the client as soon as the provider's headers have come: no fallback afterwards.
    CommitsOnHeaders = "FALL-03",
    /// Goes on with the next candidate's text in the middle of a stream.
    SplicesStreams = "FALL-04",
    /// A streamed request gets 200 at once; a failure becomes an event in it.
    FailsInside200 = "FALL-05",
    /// Asks the next candidate after a client error.
    FallsBackOnRejected = "FALL-06",
    /// Client errors count against the provider's breaker.
    RejectedOpensBreaker = "FALL-06",
    /// A provider of another protocol is sent the last message alone.
    TranslatesLastMessageOnly = "FALL-07",
    /// The final error tells the last cause alone.
    HidesAttempts = "FALL-08",
    /// The breaker never opens.
    BreakerNeverOpens = "BRKR-01",
    /// Half-open lets everything through.
    HalfOpenLetsAllThrough = "BRKR-02",
    /// A successful probe leaves the breaker open.
    BreakerNeverCloses = "BRKR-03",
    /// A failed probe closes the breaker.
    FailedProbeCloses = "BRKR-03",
    /// An open breaker is told as 502, without Retry-After.
    OpenIsBadGateway = "BRKR-04",
    /// One breaker for all providers and models.
    OneBreakerForAll = "BRKR-05",
    /// Health and metrics do not know breakers.
    HidesBreakers = "BRKR-06",
    /// A probe that its client left keeps its place for ever.
    LeftProbeWedges = "BRKR-07",
    /// A client that leaves counts as the provider's failure.
    LeavingIsFailure = "BRKR-07",
    /// A stream that ends without finish_reason gets one, and `[DONE]`.
    InventsFinish = "STRM-01",
    /// A stream that is reset ends without a word.
    ResetEndsSilently = "STRM-02",
    /// What stands in the buffer when the provider is gone is forwarded as an event.
    ForwardsPartialEvent = "STRM-03",
    /// Events that are not JSON are left out.
    SkipsMalformed = "STRM-04",
    /// An in-band error is left out as an event without choices.
    SkipsInBandError = "STRM-05",
    /// Every in-band error is told as an internal error.
    InBandLosesClass = "STRM-05",
    /// Reads on after `[DONE]` and forwards what comes.
    ReadsPastDone = "STRM-06",
    /// The content type of a stream is not looked at; what is no event is skipped.
    IgnoresContentType = "STRM-07",
    /// An event may be of any size.
    UnboundedEvent = "STRM-08",
    /// A cut in transit is told as an invalid request.
    CutIsInvalidRequest = "STRM-09",
    /// The provider's answer is awaited to its end after the client has gone.
    AwaitsForNobody = "CANC-01",
    /// The provider's stream is read to its end after the client has gone.
    ReadsForNobody = "CANC-02",
    /// A query runs to its end after its client has gone.
    FinishesLeftQuery = "CANC-03",
    /// A query's deadline answers the client, but leaves the calls in flight.
    DeadlineLeavesCalls = "CANC-04",
    /// Requests beyond the limit wait for their turn, without bound.
    QueuesWithoutBound = "LOAD-01",
    /// A refused request keeps a place among those in flight.
    LeaksPlaces = "LOAD-02",
    /// The body is read whole before its size is looked at.
    ReadsBeforeMeasuring = "LOAD-04",
    /// A client may take any time for its headers and body.
    WaitsForSlowClient = "LOAD-05",
    /// A provider's stream is read as fast as it comes, into memory without bound.
    ReadsAhead = "LOAD-07",
    /// Every failure of a provider is a 500.
    EveryErrorIs500 = "ERR-01",
    /// The provider's 401 and 403 are given to the client.
    PassesProviderAuth = "ERR-02",
    /// Errors of the client are told as plain text.
    TellsPlainText = "ERR-03",
    /// The final error holds the headers that were sent to the provider.
    TellsKey = "ERR-04",
    /// The log holds the headers that were sent to the provider.
    LogsKey = "ERR-04",
    /// The client's request id is neither returned nor sent on.
    DropsRequestId = "ERR-05",
    /// Entity extraction failing fails the query.
    EntitiesRequired = "DEGR-01",
    /// Retrieval failing is not told, and costs no confidence.
    HidesLostRetrieval = "DEGR-03",
    /// Fact check failing leaves the answer marked as verified.
    UncheckedIsVerified = "DEGR-04",
    /// Synthesis failing fails the query although there is evidence.
    NoExtract = "DEGR-05",
    /// Citation or review failing fails the query.
    ReviewRequired = "DEGR-06",
    /// Citation or review failing is not told.
    HidesLostReview = "DEGR-06",
    /// A query of which nothing came is a 200.
    FailedIs200 = "DEGR-07",
    /// A failed query is not recorded.
    FailedUnrecorded = "DEGR-07",
    /// A query that cannot be recorded is answered with 500.
    RecordRequired = "DEGR-08",
    /// A query that could not be recorded says that it was.
    ClaimsRecord = "DEGR-08",
    /// A provider that failed once is never asked again.
    NeverForgives = "DEGR-11",
    /// Records the document before the review has changed it.
    RecordsDraft = "DATA-01",
    /// Records each query twice, under two ids.
    RecordsTwice = "DATA-01",
    /// Writes a document and its passages without a transaction.
    WritesPiecemeal = "DATA-02",
    /// Waits for a free connection of the pool without a time-out.
    PoolWaitsForEver = "DATA-03",
    /// Keeps the connection that broke, and never makes a new one.
    KeepsDeadConnection = "DATA-04",
    /// Puts the text of a query into SQL by hand.
    BuildsSqlByHand = "DATA-08",
    /// Lists in the order of the text of the question, not of time.
    ListsOutOfOrder = "DATA-08",
    /// Any failure of the database is told as 401.
    StoreFailureIs401 = "DATA-10",
    /// Liveness asks the database.
    LivenessAsksStore = "HLTH-01",
    /// Readiness does not ask the database.
    AlwaysReady = "HLTH-02",
    /// Health asks one dependency after the other.
    ProbesInTurn = "HLTH-03",
    /// Each call of health probes every dependency anew.
    ProbesEachCall = "HLTH-04",
    /// SIGTERM ends the process at once.
    DropsOnTerm = "DRAIN-01",
    /// Readiness stays 200 while the gateway drains.
    ReadyWhileDraining = "DRAIN-01",
    /// The drain has no deadline.
    DrainsForEver = "DRAIN-02",
    /// What the drain deadline cuts ends without a word.
    DrainCutsSilently = "DRAIN-02",
    /// Any key will do.
    TakesAnyKey = "AUTH-01",
    /// The key is looked at after the provider has been asked.
    ChecksKeyLate = "AUTH-01",
    /// 401 comes without WWW-Authenticate.
    NoChallenge = "AUTH-01",
    /// Queries are found and listed whosever they are.
    ForgetsTenant = "AUTH-02",
    /// The client's Authorization is sent to the provider.
    ForwardsAuthorization = "AUTH-03",
    /// A request's `api_base` decides where the gateway connects.
    ConnectsWhereTold = "AUTH-04",
    /// Attempts are counted once a request, however many there were.
    CountsRequestsAsAttempts = "OBS-01",
    /// `traceparent` is not sent on.
    DropsTraceparent = "OBS-02",
    /// Usage is guessed from the length of the texts.
    GuessesUsage = "OBS-03",
}
