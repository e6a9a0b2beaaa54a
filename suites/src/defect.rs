//! The table of defects: each variant is one bug that a real gateway could have, the requirement that it breaks, and words of the
//! rejection by which the requirement's case has to see it.

macro_rules! defects {
    ($($(#[doc = $doc:literal])+ $variant:ident = $id:literal seen $seen:literal,)+) => {
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

            /// What a case says of it when it sees it, in part: a rejection in other words came of something else.
            pub const fn seen(self) -> &'static str {
                match self {
                    $(Self::$variant => $seen,)+
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
        Self::ALL
            .iter()
            .copied()
            .filter(|defect| defect.requirement() == requirement)
            .collect()
    }
}

defects! {
    /// Rebuilds the answer from its text alone: tool calls are lost, finish_reason is always `stop`, usage is lost.
    KeepsOnlyText = "WIRE-01" seen "usage.prompt_tokens Number(12); observed",
    /// Gives tool calls ids of its own.
    RenamesCalls = "WIRE-01" seen "observed the tool calls Array [Object {\"id\": String(\"call_1\")",
    /// Keeps the first tool call alone.
    KeepsFirstCall = "WIRE-01" seen "the tool calls Array",
    /// Collects the whole stream before it sends the first chunk.
    BuffersStream = "WIRE-02" seen "the text while the provider holds the next event",
    /// Sends `[DONE]` twice: once with the last chunk, once at the end.
    SendsDoneTwice = "WIRE-03" seen "how often [DONE] came 1; observed how often [DONE] came 2",
    /// Leaves out the usage chunk, since its `choices` is empty.
    DropsUsageChunk = "WIRE-04" seen "usage chunks 1; observed usage chunks 0",
    /// Forwards a fragment of tool-call arguments only if it is JSON by itself.
    DropsPartialArguments = "WIRE-05" seen "expected tool calls [(\"weather\"",
    /// Decodes each TCP read as UTF-8 by itself, replacing what is cut.
    DecodesEachRead = "WIRE-06" seen "observed text \"\u{fffd}",
    /// Reads SSE by `\n\n` and `data: ` alone: CRLF, `data:` without a space and data of many lines are not understood.
    ReadsSseByPrefix = "WIRE-07" seen "status 200; observed status 502",
    /// Forwards only the request fields that it knows.
    DropsUnknownFields = "WIRE-08" seen "observed x_nobody_knows at the provider Null",
    /// Lists the models as a bare array of names.
    ListsBareNames = "WIRE-09" seen "object String(\"list\"); observed object Null",
    /// Passes Ollama's tool arguments on as an object, its `stop` as finish_reason of a tool call, and no usage.
    CopiesOllamaFields = "WIRE-12" seen "the answer to capital of local:",
    /// A stream that was translated ends without `[DONE]`.
    TranslatesWithoutEnd = "WIRE-12" seen "[DONE] of a translated stream 1; observed [DONE] of a translated stream 0",
    /// Each chunk that was translated has an id of its own.
    TranslatesWithFreshIds = "WIRE-12" seen "chunks of OpenAI's shape; observed event",
    /// A tool call that was translated has an empty id.
    TranslatesWithoutId = "WIRE-12" seen "an id for each tool call",
    /// Holds one piece of text back to look ahead, and forgets it at the end of the stream.
    StreamLosesLastText = "WIRE-13" seen "the answer, not streamed and streamed:",
    /// Waits for a connection for as long as the system does.
    NoConnectTimeout = "TIME-01" seen "the whole answer to client a; observed nothing came",
    /// Gives a connection up at a tenth of its time-out.
    ConnectTimeoutTooShort = "TIME-01" seen "the error after 1000 ms at the earliest",
    /// Answers 200 with an empty completion when the time is over.
    TimeoutIsEmptyAnswer = "TIME-02" seen "status 504; observed status 200",
    /// Waits for an answer without any time-out.
    WaitsForEver = "TIME-02" seen "the whole answer to client a; observed nothing came",
    /// Gives up when a tenth of the time is over.
    GivesUpEarly = "TIME-02" seen "the error after 1000 ms at the earliest",
    /// Each byte of the answer's headers starts the time-out anew.
    HeaderBytesRestartTimer = "TIME-03" seen "the head of the answer to client dripped; observed nothing came",
    /// A stream that stalls is ended with `[DONE]` when its idle time-out is over.
    StallIsDone = "TIME-04" seen "no [DONE] after a broken stream",
    /// Ends a stream at a tenth of its idle time-out.
    IdleTimeoutTooShort = "TIME-04" seen "the error after 1000 ms at the earliest",
    /// A stream has no idle time-out and no deadline.
    NoIdleTimeout = "TIME-04" seen "observed 3 events came and no end within the hang guard",
    /// Each chunk moves the deadline.
    ChunksMoveDeadline = "TIME-05" seen "events came and no end within the hang guard",
    /// Each candidate gets the whole total anew.
    DeadlinePerCandidate = "TIME-06" seen "the answer of chain before",
    /// A time-out is tried again, each time with the whole deadline.
    DeadlinePerRetry = "TIME-06" seen "the answer of chain before",
    /// A model's own connect time-out is read and not used.
    IgnoresOwnConnect = "TIME-07" seen "the answer of connect before",
    /// A model's own first-token time-out is read and not used.
    IgnoresOwnFirstToken = "TIME-07" seen "the answer of first-token before",
    /// A model's own idle time-out is read and not used.
    IgnoresOwnIdle = "TIME-07" seen "the answer of idle before",
    /// A model's own total time-out is read and not used.
    IgnoresOwnTotal = "TIME-07" seen "the answer of total before",
    /// A provider's own time-outs are read and not used.
    IgnoresProvidersTimeouts = "TIME-07" seen "the answer of of-provider before",
    /// The client's deadline replaces the configured one, also where it is longer.
    ClientLengthensDeadline = "TIME-08" seen "the answer of quick, to a client with a deadline of 60000 ms, before",
    /// The client's deadline is not read.
    IgnoresClientDeadline = "TIME-08" seen "the answer of solo, to a client with a deadline of 500 ms, before",
    /// A timed-out attempt is left running in a task of its own, its connection open.
    AbandonsTimedOut = "TIME-09" seen "the gateway closes 2 connections to p1 with a request in flight; observed saw 0 of 2",
    /// A call of the database has no time-out.
    WaitsForDatabase = "TIME-10" seen "the whole answer to client a; observed nothing came",
    /// The idle time-out counts from the start of the stream; no chunk restarts it.
    IdleNeverRestarts = "TIME-11" seen "the stream's text \"Paris is big.\"",
    /// Headers end the first-token time-out; afterwards nothing is timed until content comes.
    HeadersEndFirstToken = "TIME-12" seen "the head of the answer to client waiting; observed nothing came",
    /// Gives a stream up at a tenth of its first-token time-out.
    FirstTokenTimeoutTooShort = "TIME-12" seen "the second candidate's answer after 1000 ms at the earliest",
    /// At most eight requests are at a provider at once, whatever is configured.
    PoolOfEight = "PARA-01" seen "observed saw 8 of 64 together",
    /// All providers share one pool of 32 connections: a stalled one takes them all.
    HeadOfLine = "PARA-02" seen "the whole answer to client",
    /// Chunks are written to clients under one lock, so that a slow reader stops all streams.
    WritesUnderLock = "PARA-03" seen "of the stream to client",
    /// Retrieval starts only after entity extraction has ended.
    RetrievesAfterEntities = "PARA-04" seen "the whole answer to client b; observed nothing came",
    /// Synthesis starts beside fact check.
    SynthesisBesideFactCheck = "PARA-05" seen "observed synthesis before the fact check's answer",
    /// A failing step of the first phase cancels the other.
    FailureCancelsSiblings = "PARA-06" seen "sources Some(1); observed sources Some(0)",
    /// A provider's concurrency limit is not kept.
    NoBulkhead = "PARA-07" seen "observed requests at the provider while it is full 12",
    /// A provider is given one request at a time where it has a concurrency limit.
    BulkheadOfOne = "PARA-07" seen "4 answers held at p1; observed saw 1 of 4",
    /// Health waits until no request is in flight.
    HealthWaitsForRequests = "PARA-08" seen "the whole answer to client gs; observed nothing came",
    /// A request that comes while another of its model is in flight is asked with that one's messages.
    SharesPrompts = "PARA-09" seen "observed the answer to somebody else's prompt",
    /// All streams share the buffer of the event that is still to be completed.
    SharesBuffer = "PARA-09" seen "observed the answer to a prompt",
    /// Tries each candidate once, whatever is configured.
    NeverRetries = "RETRY-01" seen "status after two failures (status 429) 200",
    /// Tries a streamed request once.
    NeverRetriesStreams = "RETRY-01" seen "a stream after two failures (200, \"Paris\"); observed a stream after two failures (503",
    /// Tries a refused request (400, 401, 404, 422 and so on) again.
    RetriesRejected = "RETRY-02" seen "attempts after 400 1; observed attempts after 400 3",
    /// Retry-After is not read.
    IgnoresRetryAfter = "RETRY-03" seen "the attempt that was asked to come in a second after 1000 ms",
    /// Tries again at once, without back-off.
    RetriesAtOnce = "RETRY-04" seen "retry 4 of 24 requests, on average, after 800 ms",
    /// Waits as long before each retry as before the first.
    ConstantBackoff = "RETRY-04" seen "retry 4 of 24 requests, on average, after 800 ms",
    /// Starts the stream again from its beginning after a failure in its middle.
    RestartsStream = "RETRY-05" seen "text \"Par\"; observed text \"ParParis\"",
    /// Retries have no budget.
    NoRetryBudget = "RETRY-06" seen "at most 55 attempts for 40 requests; observed 160",
    /// Every attempt has an idempotency key of its own.
    FreshKeyPerAttempt = "RETRY-07" seen "observed idempotency key Some",
    /// Goes on trying after the client has gone.
    RetriesForNobody = "RETRY-08" seen "attempts for the one who left 1; observed attempts for the one who left 2",
    /// Only the first candidate is ever asked.
    NoFallback = "FALL-01" seen "status 200; observed status 503",
    /// Names the first candidate as the one who served, whoever it was.
    NamesFirstCandidate = "FALL-01" seen "observed who served it (x-gauntlet-provider) Some(\"p1\")",
    /// Any 200 is an answer, whatever is in it.
    BelievesAny200 = "FALL-02" seen "text after 200 with HTML \"Bern\"",
    /// Answers the client as soon as the provider's headers have come: no fallback afterwards.
    CommitsOnHeaders = "FALL-03" seen "no error event (cut after its headers)",
    /// Goes on with the next candidate's text in the middle of a stream.
    SplicesStreams = "FALL-04" seen "the text once; observed \"ParParis\"",
    /// A streamed request gets 200 at once; a failure becomes an event in it.
    FailsInside200 = "FALL-05" seen "a status of 500 or more for the stream; observed 200",
    /// Asks the next candidate after a client error.
    FallsBackOnRejected = "FALL-06" seen "requests at the second candidate 0; observed requests at the second candidate 4",
    /// Client errors count against the provider's breaker.
    RejectedOpensBreaker = "FALL-06" seen "requests at the second candidate 0; observed requests at the second candidate",
    /// A provider of another protocol is sent the last message alone.
    TranslatesLastMessageOnly = "FALL-07" seen "role of message 0 String(\"system\")",
    /// The final error tells the last cause alone.
    HidesAttempts = "FALL-08" seen "observed providers tried, in order []",
    /// The breaker never opens.
    BreakerNeverOpens = "BRKR-01" seen "opens after three failures 13",
    /// Half-open lets everything through.
    HalfOpenLetsAllThrough = "BRKR-02" seen "most probes at once 1; observed most probes at once",
    /// A successful probe leaves the breaker open.
    BreakerNeverCloses = "BRKR-03" seen "observed answers after a success [\"Bern\"",
    /// A failed probe closes the breaker.
    FailedProbeCloses = "BRKR-03" seen "the next probe after 600 ms at the earliest",
    /// An open breaker is told as 502, without Retry-After.
    OpenIsBadGateway = "BRKR-04" seen "status 503; observed status 502",
    /// One breaker for all providers and models.
    OneBreakerForAll = "BRKR-05" seen "the other model of that provider (200, \"Paris\"); observed the other model of that provider (503",
    /// Health and metrics do not know breakers.
    HidesBreakers = "BRKR-06" seen "observed health and metrics before any failure (\"not told\", None)",
    /// A probe that its client left keeps its place for ever.
    LeftProbeWedges = "BRKR-07" seen "success after a probe whose client left",
    /// A client that leaves counts as the provider's failure.
    LeavingIsFailure = "BRKR-07" seen "observed text of the request after those who left \"Bern\"",
    /// A stream that ends without finish_reason gets one, and `[DONE]`.
    InventsFinish = "STRM-01" seen "no [DONE] after a broken stream",
    /// A stream that is reset ends without a word.
    ResetEndsSilently = "STRM-02" seen "an error event; observed no error",
    /// What stands in the buffer when the provider is gone is forwarded as an event.
    ForwardsPartialEvent = "STRM-03" seen "every event whole; observed event 3",
    /// Events that are not JSON are left out.
    SkipsMalformed = "STRM-04" seen "no [DONE] after a broken stream",
    /// An in-band error is left out as an event without choices.
    SkipsInBandError = "STRM-05" seen "no [DONE] after a broken stream",
    /// Every in-band error is told as an internal error.
    InBandLosesClass = "STRM-05" seen "the class of the error kept",
    /// Reads on after `[DONE]` and forwards what comes.
    ReadsPastDone = "STRM-06" seen "observed text \"Paris and Rome\"",
    /// The content type of a stream is not looked at; what is no event is skipped.
    IgnoresContentType = "STRM-07" seen "a status of 500 or more; observed 200",
    /// An event may be of any size.
    UnboundedEvent = "STRM-08" seen "the event refused at a bound",
    /// A cut in transit is told as an invalid request.
    CutIsInvalidRequest = "STRM-09" seen "a status of 500 or more for a plain answer that was cut; observed 400",
    /// The provider's answer is awaited to its end after the client has gone.
    AwaitsForNobody = "CANC-01" seen "the gateway closes 2 connections to p1 with a request in flight; observed saw 0 of 2",
    /// The provider's stream is read to its end after the client has gone.
    ReadsForNobody = "CANC-02" seen "the gateway closes 1 connections to p1 with a request in flight; observed saw 0 of 1",
    /// A query runs to its end after its client has gone.
    FinishesLeftQuery = "CANC-03" seen "the gateway closes 1 connections to entities with a request in flight; observed saw 0 of 1",
    /// A query's deadline answers the client, but leaves the calls in flight.
    DeadlineLeavesCalls = "CANC-04" seen "the gateway closes 1 connections to entities with a request in flight; observed saw 0 of 1",
    /// Requests beyond the limit wait for their turn, without bound.
    QueuesWithoutBound = "LOAD-01" seen "the whole answer to client e; observed nothing came",
    /// A refused request keeps a place among those in flight.
    LeaksPlaces = "LOAD-02" seen "a request to be served after the burst; observed nothing came",
    /// The body is read whole before its size is looked at.
    ReadsBeforeMeasuring = "LOAD-04" seen "the whole answer to client a; observed nothing came",
    /// A client may take any time for its headers and body.
    WaitsForSlowClient = "LOAD-05" seen "an answer to a client that dribbles, or the end of its connection; observed nothing came",
    /// A provider's stream is read as fast as it comes, into memory without bound.
    ReadsAhead = "LOAD-07" seen "bytes taken ahead",
    /// Every failure of a provider is a 500.
    EveryErrorIs500 = "ERR-01" seen "one of [400] for 400; observed 500",
    /// The provider's 401 and 403 are given to the client.
    PassesProviderAuth = "ERR-02" seen "observed status for a provider's 401 401",
    /// Errors of the client are told as plain text.
    TellsPlainText = "ERR-03" seen "OpenAI's error envelope for invalid JSON (400)",
    /// The final error holds the headers that were sent to the provider.
    TellsKey = "ERR-04" seen "in status 400",
    /// The error of a provider that cannot be reached holds its URL, credentials included.
    TellsUrl = "ERR-04" seen "\"canary-password-3e9a1c7f\" in a refused connection",
    /// The log holds the headers that were sent to the provider.
    LogsKey = "ERR-04" seen "in the log",
    /// The client's request id is neither returned nor sent on.
    DropsRequestId = "ERR-05" seen "observed x-request-id of the answer (served) None",
    /// Entity extraction failing fails the query.
    EntitiesRequired = "DEGR-01" seen "status of an answer that stands without one step 200; observed status of an answer that stands without one step 503",
    /// Retrieval failing is not told, and costs no confidence.
    HidesLostRetrieval = "DEGR-03" seen "the query's status \"degraded\"; observed the query's status \"complete\"",
    /// Fact check failing leaves the answer marked as verified.
    UncheckedIsVerified = "DEGR-04" seen "observed verified, without a fact check Some(true)",
    /// Synthesis failing fails the query although there is evidence.
    NoExtract = "DEGR-05" seen "observed status of an answer that stands without one step 503",
    /// Citation or review failing fails the query.
    ReviewRequired = "DEGR-06" seen "observed status of an answer that stands without one step 503",
    /// Citation or review failing is not told.
    HidesLostReview = "DEGR-06" seen "the query's status \"degraded\"; observed the query's status \"complete\"",
    /// A query of which nothing came is a 200.
    FailedIs200 = "DEGR-07" seen "status 503; observed status 200",
    /// A failed query is not recorded.
    FailedUnrecorded = "DEGR-07" seen "observed status of the record 404",
    /// A query that cannot be recorded is answered with 500.
    RecordRequired = "DEGR-08" seen "status 200; observed status 500",
    /// A query that could not be recorded says that it was.
    ClaimsRecord = "DEGR-08" seen "recorded Some(false); observed recorded Some(true)",
    /// A provider that failed once is never asked again.
    NeverForgives = "DEGR-11" seen "the query's status \"complete\"; observed the query's status \"degraded\"",
    /// Sends a request over a kept connection without looking whether it still stands.
    TrustsKeptConnections = "DEGR-11" seen "observed statuses after the provider's restart [502",
    /// Records the document before the review has changed it.
    RecordsDraft = "DATA-01" seen "expected the record Object",
    /// Records each query twice, under two ids.
    RecordsTwice = "DATA-01" seen "records Some(3); observed records Some(6)",
    /// Writes a document and its passages without a transaction.
    WritesPiecemeal = "DATA-02" seen ", 1 documents, 0 passages",
    /// A document that was lost with its connection is told as stored.
    TellsLostAsStored = "DATA-02" seen "observed status 201, 0 documents, 0 passages",
    /// Waits for a free connection of the pool without a time-out.
    PoolWaitsForEver = "DATA-03" seen "the whole answer to client a; observed nothing came",
    /// Keeps the connection that broke, and never makes a new one.
    KeepsDeadConnection = "DATA-04" seen "answers 200; observed it never was so",
    /// Puts the text of a query into SQL by hand.
    BuildsSqlByHand = "DATA-08" seen "5 queries; observed",
    /// Lists in the order of the text of the question, not of time.
    ListsOutOfOrder = "DATA-08" seen "5 queries; observed 3 on all pages",
    /// Any failure of the database is told as 401.
    StoreFailureIs401 = "DATA-10" seen "observed status of a document, the database being read-only 401",
    /// A key that the database cannot be asked about is told as unknown.
    FailedLookupIs401 = "DATA-10" seen "the database being closed 503; observed status with a key that nobody has, the database being closed 401",
    /// Liveness asks the database.
    LivenessAsksStore = "HLTH-01" seen "observed liveness with a stalled database 503",
    /// Readiness does not ask the database.
    AlwaysReady = "HLTH-02" seen "GET /health/ready answers 503; observed it never was so",
    /// Health asks one dependency after the other.
    ProbesInTurn = "HLTH-03" seen "p1, p2 and the store told as up, p3 as down; observed it never was so",
    /// Each call of health probes every dependency anew.
    ProbesEachCall = "HLTH-04" seen "probes of the provider for 64 calls; observed 64",
    /// SIGTERM ends the process at once.
    DropsOnTerm = "DRAIN-01" seen "a whole HTTP answer; observed",
    /// Readiness stays 200 while the gateway drains.
    ReadyWhileDraining = "DRAIN-01" seen "GET /health/ready answers 503; observed it never was so",
    /// The drain has no deadline.
    DrainsForEver = "DRAIN-02" seen "the end of the stream to client a; observed 0 events came and no end",
    /// What the drain deadline cuts ends without a word.
    DrainCutsSilently = "DRAIN-02" seen "an error event; observed no error",
    /// Any key will do.
    TakesAnyKey = "AUTH-01" seen "observed status with an unknown key 200",
    /// Documents are open to whoever knows their ids.
    OpenDocuments = "AUTH-01" seen "status with no key 401; observed status with no key 503",
    /// The key is looked at after the provider has been asked.
    ChecksKeyLate = "AUTH-01" seen "observed status with no key 200",
    /// 401 comes without WWW-Authenticate.
    NoChallenge = "AUTH-01" seen "WWW-Authenticate with no key; observed none",
    /// Queries are found and listed whosever they are.
    ForgetsTenant = "AUTH-02" seen "observed what her query is to him (200",
    /// The client's Authorization is sent to the provider.
    ForwardsAuthorization = "AUTH-03" seen "authorization at the provider Some",
    /// A request's `api_base` decides where the gateway connects.
    ConnectsWhereTold = "AUTH-04" seen "no connection to the host that requests named",
    /// Attempts are counted once a request, however many there were.
    CountsRequestsAsAttempts = "OBS-01" seen "observed gauntlet_attempts_total{provider=\"p1\"} 3",
    /// Time-outs are counted as errors like others.
    CountsNoTimeouts = "OBS-01" seen "gauntlet_timeouts_total{} 1; observed gauntlet_timeouts_total{} 0",
    /// The metrics tell every breaker as closed.
    TellsBreakersClosed = "OBS-01" seen "observed gauntlet_breaker_state{provider=\"p1\"} 0",
    /// `traceparent` is not sent on.
    DropsTraceparent = "OBS-02" seen "observed \"\"",
    /// Usage is guessed from the length of the texts.
    GuessesUsage = "OBS-03" seen "observed a chat's usage (Some(1), Some(12))",
}
