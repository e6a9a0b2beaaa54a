//! The table of defects.
//!
//! Each row is a bug that a real gateway can have: the variant by which the
//! [reference](crate::reference) switches it on, the requirement that it breaks, the fact by which
//! the requirement's case must reject it, and one sentence on what the gateway does wrong.

macro_rules! defects {
    ($($(#[doc = $doc:literal])+ $variant:ident = $id:literal by $fact:literal,)+) => {
        /// One bug. Its first line says what the gateway does wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Defect {
            $($(#[doc = $doc])+ #[doc = ""] #[doc = concat!("Breaks ", $id, ".")] $variant,)+
        }

        impl Defect {
            /// Every defect, in the order of the catalogue.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The id of the requirement that the defect breaks.
            pub const fn requirement(self) -> &'static str {
                match self {
                    $(Self::$variant => $id,)+
                }
            }

            /// The id of the fact by which the requirement's case must reject the defect. A
            /// rejection by another fact came from something else.
            pub const fn fact(self) -> &'static str {
                match self {
                    $(Self::$variant => $fact,)+
                }
            }

            /// What the gateway does wrong, in a sentence.
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

    /// Whether the proof is that something never ends.
    pub fn hangs(self) -> bool {
        self.fact().starts_with("hang.")
    }
}

defects! {
    /// Rebuilds the answer from its text alone: tool calls are lost, finish_reason is always
    /// `stop`, usage is lost.
    KeepsOnlyText = "WIRE-01" by "usage.prompt_tokens",
    /// Gives tool calls ids of its own.
    RenamesCalls = "WIRE-01" by "tools.ids",
    /// Keeps the first tool call alone.
    KeepsFirstCall = "WIRE-01" by "tools.count",
    /// Collects the whole stream before it sends the first chunk.
    BuffersStream = "WIRE-02" by "stream.text_while_held",
    /// Sends `[DONE]` twice: once with the last chunk, once at the end.
    SendsDoneTwice = "WIRE-03" by "stream.done_count",
    /// Leaves out the usage chunk, since its `choices` is empty.
    DropsUsageChunk = "WIRE-04" by "usage.chunks",
    /// Forwards a fragment of tool-call arguments only if it is JSON by itself.
    DropsPartialArguments = "WIRE-05" by "tools.calls",
    /// Decodes each TCP read as UTF-8 by itself, replacing what is cut.
    DecodesEachRead = "WIRE-06" by "stream.text",
    /// Reads SSE by `\n\n` and `data: ` alone: CRLF, `data:` without a space and data of many lines
    /// are not understood.
    ReadsSseByPrefix = "WIRE-07" by "stream.status",
    /// Forwards only the request fields that it knows.
    DropsUnknownFields = "WIRE-08" by "provider.field",
    /// Lists the models as a bare array of names.
    ListsBareNames = "WIRE-09" by "list.object",
    /// Passes Ollama's tool arguments on as an object, its `stop` as finish_reason of a tool call,
    /// and no usage.
    CopiesOllamaFields = "WIRE-12" by "plain.meaning",
    /// A stream that was translated ends without `[DONE]`.
    TranslatesWithoutEnd = "WIRE-12" by "stream.done_count",
    /// A tool call that was translated has an empty id.
    TranslatesWithoutId = "WIRE-12" by "plain.tool_ids",
    /// Holds one piece of text back to look ahead, and forgets it at the end of the stream.
    StreamLosesLastText = "WIRE-13" by "stream.meaning",
    /// Waits for a connection for as long as the system does.
    NoConnectTimeout = "TIME-01" by "hang.answer",
    /// Gives a connection up at a tenth of its timeout.
    ConnectTimeoutTooShort = "TIME-01" by "error.lower_bound",
    /// Answers 200 with an empty completion when the time is over.
    TimeoutIsEmptyAnswer = "TIME-02" by "answer.error_status",
    /// Waits for an answer without any timeout.
    WaitsForever = "TIME-02" by "hang.answer",
    /// Gives up when a tenth of the time is over.
    GivesUpEarly = "TIME-02" by "error.lower_bound",
    /// Each byte of the answer's headers starts the timeout anew.
    HeaderBytesRestartTimer = "TIME-03" by "hang.head",
    /// A stream that stalls is ended with `[DONE]` when its idle timeout is over.
    StallIsDone = "TIME-04" by "stream.done_count",
    /// Ends a stream at a tenth of its idle timeout.
    IdleTimeoutTooShort = "TIME-04" by "error.lower_bound",
    /// A stream has no idle timeout and no deadline.
    NoIdleTimeout = "TIME-04" by "hang.stream",
    /// Each chunk moves the deadline.
    ChunksMoveDeadline = "TIME-05" by "hang.stream",
    /// Each candidate gets the whole total anew.
    DeadlinePerCandidate = "TIME-06" by "deadline.over_candidates",
    /// A timeout is tried again, each time with the whole deadline.
    DeadlinePerRetry = "TIME-06" by "deadline.over_attempts",
    /// A model's own connect timeout is read and not used.
    IgnoresOwnConnect = "TIME-07" by "own_timeout.connect",
    /// A model's own first-token timeout is read and not used.
    IgnoresOwnFirstToken = "TIME-07" by "own_timeout.first_token",
    /// A model's own idle timeout is read and not used.
    IgnoresOwnIdle = "TIME-07" by "own_timeout.idle",
    /// A model's own total timeout is read and not used.
    IgnoresOwnTotal = "TIME-07" by "own_timeout.total",
    /// A provider's own timeouts are read and not used.
    IgnoresProvidersTimeouts = "TIME-07" by "own_timeout.of_provider",
    /// The client's deadline replaces the configured one, also where it is longer.
    ClientLengthensDeadline = "TIME-08" by "deadline.configured",
    /// The client's deadline is not read.
    IgnoresClientDeadline = "TIME-08" by "deadline.of_client",
    /// A timed-out attempt is left running in a task of its own, its connection open.
    AbandonsTimedOut = "TIME-09" by "hang.peer_closed",
    /// A call of the database has no timeout.
    WaitsForDatabase = "TIME-10" by "hang.answer",
    /// The idle timeout counts from the start of the stream; no chunk restarts it.
    IdleNeverRestarts = "TIME-11" by "stream.text",
    /// Headers end the first-token timeout; afterwards nothing is timed until content comes.
    HeadersEndFirstToken = "TIME-12" by "hang.head",
    /// Gives a stream up at a tenth of its first-token timeout.
    FirstTokenTimeoutTooShort = "TIME-12" by "second.lower_bound",
    /// At most eight requests are at a provider at once, whatever is configured.
    PoolOfEight = "PARA-01" by "hang.rendezvous",
    /// All providers share one pool of 32 connections: a stalled one takes them all.
    HeadOfLine = "PARA-02" by "hang.answer",
    /// Chunks are written to clients under one lock, so that a slow reader stops all streams.
    WritesUnderLock = "PARA-03" by "hang.stream",
    /// Retrieval starts only after entity extraction has ended.
    RetrievesAfterEntities = "PARA-04" by "hang.answer",
    /// Synthesis starts beside fact check.
    SynthesisBesideFactCheck = "PARA-05" by "synthesis.order",
    /// A failing step of the first phase cancels the other.
    FailureCancelsSiblings = "PARA-06" by "answer.sources",
    /// A provider's concurrency limit is not kept.
    NoBulkhead = "PARA-07" by "provider.in_flight",
    /// A provider is given one request at a time where it has a concurrency limit.
    BulkheadOfOne = "PARA-07" by "hang.held",
    /// Health waits until no request is in flight.
    HealthWaitsForRequests = "PARA-08" by "hang.answer",
    /// A request that comes while another of its model is in flight is asked with that one's
    /// messages.
    SharesPrompts = "PARA-09" by "answer.foreign",
    /// All streams share the buffer of the event that is still to be completed.
    SharesBuffer = "PARA-09" by "answer.own",
    /// Tries each candidate once, whatever is configured.
    NeverRetries = "RETRY-01" by "answer.status",
    /// Tries a streamed request once.
    NeverRetriesStreams = "RETRY-01" by "stream.answer",
    /// Tries a refused request (400, 401, 404, 422 and so on) again.
    RetriesRejected = "RETRY-02" by "provider.attempts",
    /// Retry-After is not read.
    IgnoresRetryAfter = "RETRY-03" by "retry_after.gap",
    /// Tries again at once, without backoff.
    RetriesAtOnce = "RETRY-04" by "retry.backoff",
    /// Waits as long before each retry as before the first.
    ConstantBackoff = "RETRY-04" by "retry.growth",
    /// Starts the stream again from its beginning after a failure in its middle.
    RestartsStream = "RETRY-05" by "stream.text",
    /// Retries have no budget.
    NoRetryBudget = "RETRY-06" by "provider.attempts",
    /// Every attempt has an idempotency key of its own.
    FreshKeyPerAttempt = "RETRY-07" by "idempotency_key.same",
    /// The body of each attempt holds an id of its own.
    StampsEachAttempt = "RETRY-07" by "attempt.body",
    /// Goes on trying after the client has gone.
    RetriesForNobody = "RETRY-08" by "left.attempts",
    /// The client's idempotency key is not read, and the attempts have one that the gateway made.
    IgnoresIdempotencyKey = "RETRY-11" by "provider.idempotency_key",
    /// Only the first candidate is ever asked.
    NoFallback = "FALL-01" by "answer.status",
    /// Names the first candidate as the one who served, whoever it was.
    NamesFirstCandidate = "FALL-01" by "answer.served_by",
    /// Any 200 is an answer, whatever is in it.
    BelievesAny200 = "FALL-02" by "answer.text",
    /// Answers the client as soon as the provider's headers have come: no fallback afterwards.
    CommitsOnHeaders = "FALL-03" by "stream.error_event",
    /// The role with which a stream begins reaches the client although the stream then fails, and
    /// the next candidate's stream follows.
    ForwardsRoleEarly = "FALL-03" by "stream.spliced",
    /// Goes on with the next candidate's text in the middle of a stream.
    SplicesStreams = "FALL-04" by "stream.text",
    /// A streamed request gets 200 at once; a failure becomes an event in it.
    FailsInside200 = "FALL-05" by "stream.status",
    /// Asks the next candidate after a client error.
    FallsBackOnRejected = "FALL-06" by "second.requests",
    /// Client errors count against the provider's breaker.
    RejectedOpensBreaker = "FALL-06" by "answer.statuses",
    /// A provider of another protocol is sent the last message alone.
    TranslatesLastMessageOnly = "FALL-07" by "message.role",
    /// The final error names the last cause alone.
    HidesAttempts = "FALL-08" by "attempts.providers",
    /// The breaker never opens.
    BreakerNeverOpens = "BRKR-01" by "first.requests",
    /// Half-open lets everything through.
    HalfOpenLetsAllThrough = "BRKR-02" by "probes.at_once",
    /// A successful probe leaves the breaker open.
    BreakerNeverCloses = "BRKR-03" by "answers.after_success",
    /// A failed probe closes the breaker.
    FailedProbeCloses = "BRKR-03" by "probe.gap",
    /// An open breaker is reported as 502, without Retry-After.
    OpenIsBadGateway = "BRKR-04" by "answer.status",
    /// One breaker for all providers and models.
    OneBreakerForAll = "BRKR-05" by "neighbour_model.answer",
    /// Health and metrics do not know breakers.
    HidesBreakers = "BRKR-06" by "state.before",
    /// A probe that its client left keeps its permit forever.
    LeftProbeWedges = "BRKR-07" by "hang.probe_after_left",
    /// A client that leaves counts as the provider's failure.
    LeavingIsFailure = "BRKR-07" by "next.text",
    /// A stream that ends without finish_reason gets one, and `[DONE]`.
    InventsFinish = "STRM-01" by "stream.done_count",
    /// A stream that is reset ends without a word.
    ResetEndsSilently = "STRM-02" by "stream.error_event",
    /// What stands in the buffer when the provider is gone is forwarded as an event.
    ForwardsPartialEvent = "STRM-03" by "stream.shape",
    /// Events that are not JSON are left out.
    SkipsMalformed = "STRM-04" by "stream.done_count",
    /// An in-band error is left out as an event without choices.
    SkipsInBandError = "STRM-05" by "stream.done_count",
    /// Every in-band error is reported as an internal error.
    InBandLosesClass = "STRM-05" by "error.class",
    /// Reads on after `[DONE]` and forwards what comes.
    ReadsPastDone = "STRM-06" by "stream.text",
    /// The content type of a stream is not looked at; what is no event is skipped.
    IgnoresContentType = "STRM-07" by "stream.status",
    /// An event may be of any size.
    UnboundedEvent = "STRM-08" by "provider.bytes_taken",
    /// A cut in transit is reported as an invalid request.
    CutIsInvalidRequest = "STRM-09" by "plain.status",
    /// Ends every stream with `[DONE]`, also after an error event.
    SendsDoneAfterError = "STRM-12" by "stream.done_after_error",
    /// Each chunk that was translated has an id of its own.
    TranslatesWithFreshIds = "STRM-13" by "stream.ids",
    /// The provider's answer is awaited to its end after the client has gone.
    AwaitsForNobody = "CANC-01" by "hang.peer_closed",
    /// The provider's stream is read to its end after the client has gone.
    ReadsForNobody = "CANC-02" by "hang.peer_closed",
    /// A query runs to its end after its client has gone.
    FinishesLeftQuery = "CANC-03" by "hang.peer_closed",
    /// A query's deadline answers the client, but leaves the calls in flight.
    DeadlineLeavesCalls = "CANC-04" by "hang.peer_closed",
    /// Requests beyond the limit wait in a queue without bound.
    QueuesWithoutBound = "LOAD-01" by "hang.answer",
    /// A refused request keeps a permit.
    LeaksPermits = "LOAD-02" by "hang.served_again",
    /// The body is read whole before its size is looked at.
    ReadsBeforeMeasuring = "LOAD-04" by "hang.answer",
    /// A client may take any time for its headers and body.
    WaitsForSlowClient = "LOAD-05" by "hang.dribble",
    /// A provider's stream is read as fast as it comes, into memory without bound.
    ReadsAhead = "LOAD-07" by "provider.bytes_taken",
    /// Every failure of a provider is a 500.
    EveryErrorIs500 = "ERR-01" by "status.provider_failure",
    /// The provider's 401 and 403 are given to the client.
    PassesProviderAuth = "ERR-02" by "plain.status",
    /// Errors of the client are reported as plain text.
    SendsPlainText = "ERR-03" by "error.envelope",
    /// The final error holds the headers that were sent to the provider.
    ShowsKey = "ERR-04" by "secret.in_answer",
    /// The error of a provider that cannot be reached holds its URL, credentials included.
    ShowsUrl = "ERR-04" by "secret.of_url",
    /// The log holds the headers that were sent to the provider.
    LogsKey = "ERR-04" by "secret.in_log",
    /// The client's request id is neither returned nor sent on.
    DropsRequestId = "ERR-05" by "answer.request_id",
    /// Entity extraction failing fails the query.
    EntitiesRequired = "DEGR-01" by "answer.status",
    /// A failure of retrieval is not reported, and costs no confidence.
    HidesLostRetrieval = "DEGR-03" by "query.status",
    /// Fact check failing leaves the answer marked as verified.
    UncheckedIsVerified = "DEGR-04" by "verified.without_check",
    /// Synthesis failing fails the query although there is evidence.
    NoExtract = "DEGR-05" by "answer.status",
    /// Citation or review failing fails the query.
    ReviewRequired = "DEGR-06" by "answer.status",
    /// A failure of citation or review is not reported.
    HidesLostReview = "DEGR-06" by "query.status",
    /// A query of which nothing came is a 200.
    FailedIs200 = "DEGR-07" by "answer.status",
    /// A failed query is not recorded.
    FailedUnrecorded = "DEGR-07" by "record.status",
    /// A query that cannot be recorded is answered with 500.
    RecordRequired = "DEGR-08" by "answer.status",
    /// A query that could not be recorded says that it was.
    ClaimsRecord = "DEGR-08" by "query.recorded",
    /// A provider that failed once is never asked again.
    NeverForgives = "DEGR-11" by "query.status",
    /// Sends a request over a kept connection without looking whether it still stands.
    TrustsPooledConnections = "DEGR-11" by "after_restart.statuses",
    /// Records the document before the review has changed it.
    RecordsDraft = "DATA-01" by "record.document",
    /// Records each query twice, under two ids.
    RecordsTwice = "DATA-01" by "records.count",
    /// Writes a document and its passages without a transaction.
    WritesPiecemeal = "DATA-02" by "rows.whole",
    /// A document that was lost with its connection is reported as stored.
    ReportsLostAsStored = "DATA-02" by "rows.as_answered",
    /// Waits for a free connection of the pool without a timeout.
    PoolWaitsForever = "DATA-03" by "hang.answer",
    /// Keeps the connection that broke, and never makes a new one.
    KeepsDeadConnection = "DATA-04" by "hang.record_after_sessions",
    /// Puts the text of a query into SQL by hand.
    BuildsSqlByHand = "DATA-08" by "question.recorded",
    /// Lists in the order of the text of the question, not of time.
    ListsOutOfOrder = "DATA-08" by "listing.complete",
    /// Any failure of the database is reported as 401.
    StoreFailureIs401 = "DATA-10" by "document.status",
    /// A key that the database cannot be asked about is reported as unknown.
    FailedLookupIs401 = "DATA-10" by "unknown_key.status",
    /// Liveness asks the database.
    LivenessAsksStore = "HLTH-01" by "liveness.status",
    /// Liveness asks the providers.
    LivenessAsksProviders = "HLTH-01" by "liveness.provider",
    /// Readiness does not ask the database.
    AlwaysReady = "HLTH-02" by "hang.unready_without",
    /// Readiness that was lost stays lost.
    NeverReadyAgain = "HLTH-02" by "hang.ready_again",
    /// A database that accepts connections counts as there, whether it answers or not.
    ReadyWhileStalled = "HLTH-02" by "hang.unready_stalled",
    /// Health asks one dependency after the other.
    ProbesInSequence = "HLTH-03" by "hang.providers_together",
    /// Health asks the providers once the store has answered.
    ProbesStoreFirst = "HLTH-03" by "hang.together",
    /// All probes share one timeout: if one has no answer, none has.
    OneTimeoutForAll = "HLTH-03" by "hang.silent_provider",
    /// A provider that answers its probe with an error is shown as up.
    ErrorsAreUp = "HLTH-03" by "hang.failing_provider",
    /// The store is always shown as up.
    HidesLostStore = "HLTH-03" by "hang.stalled_store",
    /// Each call of health probes every dependency anew.
    ProbesEachCall = "HLTH-04" by "provider.probes",
    /// The result of a probe that failed is not kept.
    ProbesAgainAfterFailure = "HLTH-04" by "failing_provider.probes",
    /// Each call of readiness asks the database anew.
    ReadinessProbesEachCall = "HLTH-04" by "store.statements_of_readiness",
    /// Readiness does not look whether the database takes writes.
    HidesReadOnlyStore = "HLTH-05" by "hang.shown.read_only",
    /// Readiness takes a full disk for a passing trouble.
    HidesFullDisk = "HLTH-05" by "hang.shown.full",
    /// A database that once took no writes is reported so from then on.
    ReadOnlyEver = "HLTH-05" by "hang.cleared.read_only",
    /// SIGTERM ends the process at once.
    DropsOnTerm = "DRAIN-01" by "answer.whole",
    /// Readiness stays 200 while the gateway drains.
    ReadyWhileDraining = "DRAIN-01" by "hang.unready",
    /// A stream whose first bytes were sent is no longer awaited.
    DrainForgetsStreams = "DRAIN-01" by "waits_for.streamed",
    /// The process ends with the code 1 after an orderly drain.
    ExitsNonZero = "DRAIN-01" by "process.exit_code",
    /// The drain has no deadline.
    DrainsForever = "DRAIN-02" by "hang.stream",
    /// What the drain deadline cuts ends without a word.
    DrainCutsSilently = "DRAIN-02" by "stream.error_event",
    /// What the drain deadline cuts is answered with 200.
    DrainCutIs200 = "DRAIN-02" by "plain.status",
    /// A query that was cut is not recorded.
    CutUnrecorded = "DRAIN-02" by "records.statuses",
    /// SIGHUP ends the process at once.
    HangupEnds = "DRAIN-03" by "once.streamed",
    /// SIGHUP makes the gateway drain, although its target states that it goes on.
    HangupDrains = "DRAIN-03" by "new_request.status",
    /// SIGHUP cuts what has not begun to answer.
    HangupCutsPlain = "DRAIN-03" by "once.late_stream",
    /// A second SIGHUP ends the process at once.
    SecondHangupEnds = "DRAIN-03" by "again.streamed",
    /// SIGHUP ends a drain at once.
    HangupEndsDrain = "DRAIN-03" by "draining.streamed",
    /// A key is compared by its beginning.
    TakesPartOfKey = "AUTH-01" by "status.chat.part_of_key",
    /// The hash of a key is taken for the key.
    TakesHashOfKey = "AUTH-01" by "status.chat.hash_of_key",
    /// Keys are compared without upper and lower case.
    IgnoresCaseOfKey = "AUTH-01" by "status.chat.upper_case",
    /// The key that the gateway has at its provider opens the gateway.
    TakesProvidersKey = "AUTH-01" by "status.chat.providers_key",
    /// The list of models is open to everybody.
    OpenModels = "AUTH-01" by "status.models.no_key",
    /// The listing of queries is open to everybody.
    OpenListing = "AUTH-01" by "status.listing.no_key",
    /// 401 to an unknown key comes without WWW-Authenticate.
    NoChallengeForUnknownKey = "AUTH-01" by "challenge.chat.unknown_key",
    /// Any key will do.
    TakesAnyKey = "AUTH-01" by "status.chat.unknown_key",
    /// Documents are open to whoever knows their ids.
    OpenDocuments = "AUTH-01" by "status.document.no_key",
    /// The key is looked at after the provider has been asked.
    ChecksKeyLate = "AUTH-01" by "provider.requests",
    /// 401 comes without WWW-Authenticate.
    NoChallenge = "AUTH-01" by "challenge.chat.no_key",
    /// Queries are found and listed whosever they are.
    ForgetsTenant = "AUTH-02" by "foreign_query.read",
    /// A listing holds the queries of all tenants.
    ListsForAll = "AUTH-02" by "foreign_query.listed",
    /// The total of a listing counts the queries of all tenants.
    CountsForAll = "AUTH-02" by "foreign_query.counted",
    /// A document is deleted by its id, whosever it is.
    DeletesForeign = "AUTH-02" by "foreign_document.status",
    /// Retrieval searches the passages of all tenants.
    SearchesForAll = "AUTH-02" by "foreign_document.sources",
    /// The answer to a query is found by its idempotency key, whoever asks.
    SharesByIdempotencyKey = "AUTH-02" by "foreign_answer.by_idempotency_key",
    /// The client's Authorization is sent to the provider.
    ForwardsAuthorization = "AUTH-03" by "provider.authorization",
    /// The client's cookies are sent to the provider.
    ForwardsCookies = "AUTH-03" by "client_credentials.at_provider",
    /// Every provider is shown the key of the first one.
    ShowsFirstKeyToAll = "AUTH-03" by "second_candidate.authorization",
    /// The cookies of a provider's answer are passed on to the client.
    PassesCookies = "AUTH-03" by "provider_cookie.at_client",
    /// The cookies of a provider's error are passed on to the client.
    PassesCookiesOfErrors = "AUTH-03" by "provider_cookie.at_client.with_error",
    /// A request's `api_base` decides where the gateway connects.
    ConnectsWhereRequested = "AUTH-04" by "foreign_host.connection",
    /// A streamed request's `api_base` decides where the gateway connects.
    StreamsWhereRequested = "AUTH-04" by "foreign_host.streamed",
    /// The header `x-base-url` decides where the gateway connects.
    ConnectsWhereHeaderSays = "AUTH-04" by "foreign_host.by_header",
    /// The gateway fetches images itself.
    FetchesImages = "AUTH-04" by "foreign_host.by_image",
    /// The gateway connects to the host in the target of a request, as a proxy does.
    ServesAsProxy = "AUTH-04" by "foreign_host.by_target",
    /// Line breaks in the field `user` become headers of the provider's request.
    SplitsHeaders = "AUTH-04" by "provider.smuggled_header",
    /// A request's `api_key` is what the provider is shown.
    TakesKeyFromRequest = "AUTH-04" by "provider.credentials",
    /// Each use of a key that was confirmed starts its cache time anew.
    UseExtendsCache = "AUTH-05" by "hang.refused.chat",
    /// Queries take a key that was once confirmed.
    QueriesTrustCache = "AUTH-05" by "hang.refused.query",
    /// Listings take a key that was once confirmed.
    ListingsTrustCache = "AUTH-05" by "hang.refused.listing",
    /// While the database cannot be reached, a key that was once confirmed goes on.
    CacheOutlivesStore = "AUTH-05" by "hang.refused_without_store.chat",
    /// While the database gives no answer in time, a key that was once confirmed goes on.
    CacheOutlivesSilence = "AUTH-05" by "hang.refused_with_silent_store.chat",
    /// A revoked key is refused as if something had failed.
    RevokedIs503 = "AUTH-05" by "revoked.status.chat",
    /// Keys that were made while the gateway runs are forgotten after their cache time.
    ForgetsIssuedKeys = "AUTH-05" by "kept.status",
    /// Attempts are counted once a request, however many there were.
    CountsRequestsAsAttempts = "OBS-01" by "metric.attempts",
    /// Streams are not counted among the requests.
    CountsNoStreams = "OBS-01" by "metric.requests",
    /// A request whose client left is not counted.
    ForgetsLeftRequests = "OBS-01" by "metric.requests_total",
    /// An attempt whose client left is not counted.
    ForgetsLeftAttempts = "OBS-01" by "metric.attempts_left",
    /// A stream that breaks after its first text is not counted as an attempt.
    ForgetsBrokenStreams = "OBS-01" by "metric.attempts_broken",
    /// Retries are counted for plain requests alone.
    ForgetsRetriesOfStreams = "OBS-01" by "metric.retries",
    /// A fallback is counted only if it helps.
    ForgetsFailedFallbacks = "OBS-01" by "metric.fallbacks_failed",
    /// A stream that stalls is not counted as a timeout.
    ForgetsStalls = "OBS-01" by "metric.timeouts_stalled",
    /// The gauge of requests in flight forgets streams that have begun.
    GaugeForgetsStreams = "OBS-01" by "metric.in_flight",
    /// The gauge of requests in flight keeps a request whose client left.
    GaugeKeepsLeft = "OBS-01" by "metric.in_flight_none",
    /// Time-outs are counted as errors like others.
    CountsNoTimeouts = "OBS-01" by "metric.timeouts",
    /// The metrics tell every breaker as closed.
    ReportsBreakersClosed = "OBS-01" by "metric.breaker_state",
    /// `traceparent` is not sent on.
    DropsTraceparent = "OBS-02" by "provider.traceparent",
    /// `traceparent` is sent on with plain requests alone.
    StreamsWithoutTrace = "OBS-02" by "provider.traceparent_streamed",
    /// `traceparent` is sent on with the first attempt alone.
    RetriesWithoutTrace = "OBS-02" by "provider.traceparent_again",
    /// `traceparent` is sent on to the first candidate alone.
    FallsBackWithoutTrace = "OBS-02" by "provider.traceparent_next",
    /// Usage is guessed from the length of the texts.
    GuessesUsage = "OBS-03" by "chat.usage",
    /// The usage of a stream is guessed from the length of its text.
    GuessesUsageOfStreams = "OBS-03" by "stream.usage",
    /// The usage of a query is that of its first agent.
    ReportsOneAgent = "OBS-03" by "query.usage",
    /// The record of a query has no usage.
    RecordsNoUsage = "OBS-03" by "record.usage",
    /// A query that misses something reports no usage.
    DegradedIsFree = "OBS-03" by "degraded.usage",
    /// The tokens of streams are not counted.
    CountsNoTokensOfStreams = "OBS-03" by "metric.tokens",
}

#[cfg(test)]
mod tests {
    use super::Defect;

    #[test]
    fn two_defects_of_a_requirement_are_seen_by_two_facts() {
        for (n, defect) in Defect::ALL.iter().enumerate() {
            let same = Defect::ALL[..n].iter().find(|earlier| {
                earlier.requirement() == defect.requirement() && earlier.fact() == defect.fact()
            });
            assert!(
                same.is_none(),
                "{defect:?} and {same:?} are both seen by {} of {}",
                defect.fact(),
                defect.requirement()
            );
        }
    }

    #[test]
    fn every_defect_names_a_requirement_with_a_case() {
        for defect in Defect::ALL {
            let requirement = crate::catalogue::find(defect.requirement());
            let proof = requirement.map(crate::catalogue::Requirement::proof);
            assert_eq!(
                proof,
                Some(crate::catalogue::Proof::Case),
                "{defect:?} breaks {}, which has no case",
                defect.requirement()
            );
        }
    }
}
