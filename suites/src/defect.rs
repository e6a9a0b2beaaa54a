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
    /// Keeps the first choice alone.
    KeepsFirstChoice = "WIRE-01" by "choices.count",
    /// Keeps the counts of usage alone, without their details.
    LosesUsageDetails = "WIRE-01" by "usage.details",
    /// Collects the whole stream before it sends the first chunk.
    BuffersStream = "WIRE-02" by "stream.text_while_held",
    /// Sends `[DONE]` twice: once with the last chunk, once at the end.
    SendsDoneTwice = "WIRE-03" by "stream.done_count",
    /// Leaves out the usage chunk, since its `choices` is empty.
    DropsUsageChunk = "WIRE-04" by "usage.chunks",
    /// Keeps the counts of a stream's usage alone, without their details.
    StreamLosesUsageDetails = "WIRE-04" by "usage.details",
    /// A fragment belongs to the call that began last, whatever its index is.
    FragmentsGoToLastCall = "WIRE-05" by "interleaved.calls",
    /// Forwards a fragment of tool-call arguments only if it is JSON by itself.
    DropsPartialArguments = "WIRE-05" by "tools.calls",
    /// Decodes each TCP read as UTF-8 by itself, replacing what is cut.
    DecodesEachRead = "WIRE-06" by "stream.text",
    /// Decodes each read of a plain answer by itself, replacing what is cut.
    PlainDecodesEachRead = "WIRE-06" by "plain.text",
    /// Reads SSE by `\n\n` and `data: ` alone: CRLF, `data:` without a space and data of many lines
    /// are not understood.
    ReadsSseByPrefix = "WIRE-07" by "stream.status",
    /// Forwards only the request fields that it knows.
    DropsUnknownFields = "WIRE-08" by "provider.field",
    /// Lists the models as a bare array of names.
    ListsBareNames = "WIRE-09" by "list.object",
    /// Lists an alias once for each of its candidates.
    ListsEachCandidate = "WIRE-09" by "list.once",
    /// Passes Ollama's tool arguments on as an object, its `stop` as finish_reason of a tool call,
    /// and no usage.
    CopiesOllamaFields = "WIRE-12" by "plain.meaning",
    /// A stream that was translated ends without `[DONE]`.
    TranslatesWithoutEnd = "WIRE-12" by "stream.done_count",
    /// A tool call that was translated has an empty id.
    TranslatesWithoutId = "WIRE-12" by "plain.tool_ids",
    /// The index of a tool call begins anew with each record.
    IndexRestartsEachRecord = "WIRE-12" by "calls.by_index",
    /// The last record is lost where no newline follows it.
    LosesUnendedRecord = "WIRE-12" by "unended.meaning",
    /// The results of tool calls reach an Ollama provider without the call that they belong to.
    ResultsWithoutCall = "WIRE-12" by "results.calls",
    /// Holds one piece of text back to look ahead, and forgets it at the end of the stream.
    StreamLosesLastText = "WIRE-13" by "stream.meaning",
    /// Streams the first choice alone.
    StreamsFirstChoice = "WIRE-13" by "choices.meaning",
    /// Passes every finish_reason of a choice on.
    PassesSecondFinish = "WIRE-14" by "finish.reasons",
    /// Leaves out what a provider sends after the finish_reason.
    StopsAtFinish = "WIRE-14" by "stream.text",
    /// Passes an empty finish_reason on.
    PassesEmptyFinish = "WIRE-14" by "finish.empty",
    /// One finish_reason ends all choices: those of the others are left out.
    OneFinishForAllChoices = "WIRE-14" by "finish.of_each_choice",
    /// Leaves out an event with a second finish_reason, and the usage in it.
    SecondFinishTakesUsage = "WIRE-14" by "usage.counts",
    /// The text of an Ollama provider's last record is lost.
    DropsTextOfLastRecord = "WIRE-14" by "ollama.text",
    /// Each half of a surrogate pair that is cut becomes U+FFFD.
    ReplacesHalfPairs = "WIRE-15" by "stream.replaced",
    /// A text that ends in the middle of a surrogate pair breaks the stream.
    HalfPairBreaksStream = "WIRE-15" by "stream.complete",
    /// The halves of surrogate pairs are joined whichever choice they belong to.
    JoinsHalvesAcrossChoices = "WIRE-15" by "choices.text",
    /// A backslash before `ud83d` in a text is read as an escape once more.
    UnescapesTwice = "WIRE-15" by "control.text",
    /// Each half of a surrogate pair that is cut in tool arguments becomes U+FFFD.
    ReplacesHalfPairsOfArguments = "WIRE-15" by "tools.arguments",
    /// Surrogate pairs of a plain answer become U+FFFD.
    PlainReplacesPairs = "WIRE-15" by "plain.text",
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
    /// A streamed request waits for its answer without any timeout.
    StreamsWaitForever = "TIME-02" by "hang.head",
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
    /// A stream that has begun gets the whole total anew.
    StreamsGetDeadlineAnew = "TIME-06" by "deadline.over_stream",
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
    /// The client's deadline begins anew with each candidate.
    ClientDeadlinePerCandidate = "TIME-08" by "deadline.over_candidates",
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
    /// A candidate may use up the whole deadline, whoever comes after it.
    KeepsNoReserve = "TIME-13" by "second.status",
    /// The first candidate leaves time for those after it, and no other candidate does.
    KeepsReserveOnce = "TIME-13" by "third.status",
    /// Where the share of a candidate is over, the client is given an apology as its answer.
    ShareIsApology = "TIME-13" by "answer.text",
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
    /// The fact check is not shown the passages.
    ChecksWithoutPassages = "PARA-05" by "fact_check.passage",
    /// Citation starts beside synthesis.
    CitesBesideSynthesis = "PARA-05" by "citation.order",
    /// A failing step of the first phase cancels the other.
    FailureCancelsSiblings = "PARA-06" by "answer.sources",
    /// A search that fails ends entity extraction.
    LostSearchCancelsEntities = "PARA-06" by "entities.used",
    /// A provider's concurrency limit is not kept.
    NoBulkhead = "PARA-07" by "provider.in_flight",
    /// A provider is given one request at a time where it has a concurrency limit.
    BulkheadOfOne = "PARA-07" by "hang.held",
    /// A request that failed keeps its permit at the provider.
    FailureKeepsPermit = "PARA-07" by "hang.held_again",
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
    /// Tries a request that was limited (429) once.
    NeverRetriesLimits = "RETRY-01" by "limited.answer",
    /// A connection that is reset ends the attempts.
    NeverRetriesResets = "RETRY-01" by "reset.answer",
    /// A provider of another protocol is asked once.
    NeverRetriesOllama = "RETRY-01" by "ollama.answer",
    /// Candidates after the first one get one attempt each.
    RetriesFirstCandidateOnly = "RETRY-01" by "second.answer",
    /// Makes one attempt more than is configured.
    TriesOnceMore = "RETRY-01" by "hopeless.attempts",
    /// A connection that is refused ends the attempts.
    NeverRetriesRefused = "RETRY-01" by "refused.attempts",
    /// Tries a refused request (400, 401, 404, 422 and so on) again.
    RetriesRejected = "RETRY-02" by "provider.attempts",
    /// Tries a streamed request again that was refused.
    RetriesRejectedStreams = "RETRY-02" by "stream.attempts",
    /// Tries again where the provider does not take the gateway's key.
    RetriesProviderAuth = "RETRY-02" by "auth.attempts",
    /// Tries a request again that was refused at its second attempt.
    RetriesRejectedLater = "RETRY-02" by "second.attempts",
    /// Retry-After is not read.
    IgnoresRetryAfter = "RETRY-03" by "retry_after.gap",
    /// Retry-After is read in seconds alone, and not as a date.
    IgnoresRetryAfterDates = "RETRY-03" by "date.gap",
    /// Retry-After counts after 429 alone.
    WaitsAfter429Only = "RETRY-03" by "overload.gap",
    /// Retry-After counts after the first attempt alone.
    IgnoresLaterRetryAfter = "RETRY-03" by "second.gap",
    /// Retry-After counts up to two seconds.
    CapsRetryAfter = "RETRY-03" by "retry_after.capped",
    /// Waits as long as the provider asks for, beyond the deadline.
    WaitsPastDeadline = "RETRY-03" by "hang.answer",
    /// Tries again at once, without backoff.
    RetriesAtOnce = "RETRY-04" by "retry.backoff",
    /// Waits as long before each retry as before the first.
    ConstantBackoff = "RETRY-04" by "retry.growth",
    /// Tries a stream again at once, without backoff.
    RetriesStreamsAtOnce = "RETRY-04" by "stream.backoff",
    /// Starts the stream again from its beginning after a failure in its middle.
    RestartsStream = "RETRY-05" by "stream.text",
    /// Starts a stream again after a failure in the middle of a tool call.
    RestartsToolCalls = "RETRY-05" by "tools.once",
    /// Retries have no budget.
    NoRetryBudget = "RETRY-06" by "provider.attempts",
    /// Retries of streams have no budget.
    StreamsHaveNoRetryBudget = "RETRY-06" by "stream.attempts",
    /// Retries after a reset have no budget.
    ResetsHaveNoRetryBudget = "RETRY-06" by "reset.attempts",
    /// Retries at a later candidate have no budget.
    FallbacksHaveNoRetryBudget = "RETRY-06" by "second.attempts",
    /// Every attempt has an idempotency key of its own.
    FreshKeyPerAttempt = "RETRY-07" by "idempotency_key.same",
    /// The body of each attempt holds an id of its own.
    StampsEachAttempt = "RETRY-07" by "attempt.body",
    /// The second attempt of a stream is sent without the options of the stream.
    StripsRetriedStreams = "RETRY-07" by "stream.body",
    /// The next candidate is sent the request without its temperature.
    StripsFallbacks = "RETRY-07" by "fallback.body",
    /// Goes on trying after the client has gone.
    RetriesForNobody = "RETRY-08" by "left.attempts",
    /// Goes on trying a stream after the client has gone.
    RetriesStreamsForNobody = "RETRY-08" by "stream.attempts",
    /// Goes on to the next candidate after the client has gone.
    FallsBackForNobody = "RETRY-08" by "second.attempts",
    /// A kept connection that dies before the answer is a failed attempt.
    NeverReplays = "RETRY-09" by "plain.status",
    /// A kept connection that dies before a stream is a failed attempt.
    NeverReplaysStreams = "RETRY-09" by "stream.status",
    /// A request whose kept connection has died is sent over the next kept one.
    ReplaysOnKeptConnections = "RETRY-09" by "several.status",
    /// A kept connection that has died counts against the breaker, although the answer came.
    ChargesReplays = "RETRY-09" by "provider.asked",
    /// A request is sent again although a part of the answer's head had come.
    ReplaysPartialHeads = "RETRY-09" by "partial.requests",
    /// A new connection that dies is replaced as a kept one is.
    ReplaysFreshConnections = "RETRY-09" by "fresh.requests",
    /// `x-should-retry` is not read.
    IgnoresShouldRetry = "RETRY-10" by "provider.attempts",
    /// `x-should-retry` is obeyed for plain requests alone.
    IgnoresShouldRetryOfStreams = "RETRY-10" by "stream.attempts",
    /// `x-should-retry` is obeyed after the first attempt alone.
    IgnoresLaterShouldRetry = "RETRY-10" by "second.attempts",
    /// The client's idempotency key is not read, and the attempts have one that the gateway made.
    IgnoresIdempotencyKey = "RETRY-11" by "provider.idempotency_key",
    /// A stream has a key that the gateway made, and not the client's.
    DropsKeyOfStreams = "RETRY-11" by "stream.idempotency_key",
    /// Candidates after the first one get a key that the gateway made, and not the client's.
    DropsKeyOfFallbacks = "RETRY-11" by "fallback.idempotency_key",
    /// Only the first candidate is ever asked.
    NoFallback = "FALL-01" by "answer.status",
    /// Names the first candidate as the one who served, whoever it was.
    NamesFirstCandidate = "FALL-01" by "answer.served_by",
    /// A stream names the first candidate as the one who served.
    NamesFirstCandidateOfStreams = "FALL-01" by "stream.served_by",
    /// No other candidate is asked for a stream.
    NoFallbackOfStreams = "FALL-01" by "stream.status",
    /// A provider that is limited (429) has no other candidate.
    NoFallbackAfterLimits = "FALL-01" by "limited.status",
    /// A connection that is reset has no other candidate.
    NoFallbackAfterResets = "FALL-01" by "reset.status",
    /// The third candidate is never asked.
    NoThirdCandidate = "FALL-01" by "third.status",
    /// Any 200 is an answer, whatever is in it.
    BelievesAny200 = "FALL-02" by "answer.text",
    /// A document without any choice is an answer.
    BelievesNoChoices = "FALL-02" by "choices.text",
    /// Any 200 of an Ollama provider is an answer.
    BelievesAnyOllama200 = "FALL-02" by "ollama.text",
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
    /// Asks the next candidate for a stream after a client error.
    FallsBackOnRejectedStreams = "FALL-06" by "stream.statuses",
    /// Client errors count against the provider's breaker.
    RejectedOpensBreaker = "FALL-06" by "answer.statuses",
    /// A provider of another protocol is sent the last message alone.
    TranslatesLastMessageOnly = "FALL-07" by "message.role",
    /// Of several tool calls of one message, the first one alone is translated.
    TranslatesFirstCallAlone = "FALL-07" by "earlier_call.arguments",
    /// The final error names the last cause alone.
    HidesAttempts = "FALL-08" by "attempts.providers",
    /// An error inside of a choice is not looked for.
    IgnoresErrorsInChoices = "FALL-09" by "choice.answer",
    /// An error is looked for in the first choice alone.
    ReadsFirstChoiceAlone = "FALL-09" by "later_choice.answer",
    /// `finish_reason: "error"` is a finish like others.
    IgnoresFinishReasonError = "FALL-09" by "finish.answer",
    /// `"error": null` is an error.
    TakesNullForAnError = "FALL-09" by "null.answer",
    /// An error in a choice is not looked for once a text has come.
    IgnoresLateErrors = "FALL-09" by "late.reported",
    /// The class of an error in a choice is lost where its code is a number.
    NumbersHaveNoClass = "FALL-09" by "class.plain",
    /// An answer without any content is an answer like others.
    KeepsEmptyAnswers = "FALL-10" by "plain.visible",
    /// A stream without any content is an answer like others.
    KeepsEmptyStreams = "FALL-10" by "stream.visible",
    /// An answer without text is no answer, whatever else it has.
    DropsAnswersWithoutText = "FALL-10" by "content.kept",
    /// The breaker never opens.
    BreakerNeverOpens = "BRKR-01" by "first.requests",
    /// Failures of streams do not count.
    BreakerIgnoresStreams = "BRKR-01" by "stream.requests",
    /// Connections that are reset do not count.
    BreakerIgnoresResets = "BRKR-01" by "reset.requests",
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
    /// One breaker for all models of one name, whoever provides them.
    OneBreakerForEachModel = "BRKR-05" by "namesake.answer",
    /// Health and metrics do not know breakers.
    HidesBreakers = "BRKR-06" by "state.before",
    /// A probe that its client left keeps its permit forever.
    LeftProbeWedges = "BRKR-07" by "hang.probe_after_left",
    /// A client that leaves counts as the provider's failure.
    LeavingIsFailure = "BRKR-07" by "next.text",
    /// By default, failures are never forgotten, whatever succeeds between them.
    OwnRuleCountsAllFailures = "BRKR-08" by "third.answers",
    /// By default, five failures among the last ten requests open the breaker.
    OwnRuleCountsTen = "BRKR-08" by "share.answers",
    /// By default, five failures in a row open the breaker.
    OwnRuleCountsInARow = "BRKR-08" by "bursts.answers",
    /// By default, requests count when they end: stalls that end together look like an outage.
    OwnRuleCountsAsTheyEnd = "BRKR-08" by "stalls.answers",
    /// By default, a client that leaves its stream counts as the provider's failure.
    OwnRuleCountsLeaving = "BRKR-08" by "left.answers",
    /// A stream that ends without finish_reason gets one, and `[DONE]`.
    InventsFinish = "STRM-01" by "stream.done_count",
    /// A stream that ends in order without finish_reason ends without a word.
    OrderlyEndIsSilent = "STRM-01" by "stream.error_event",
    /// A stream that is reset ends with `[DONE]`.
    ResetIsDone = "STRM-02" by "stream.done_count",
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
    /// A member `error` that is null is an error.
    NullErrorIsError = "STRM-05" by "control.complete",
    /// Reads on after `[DONE]` and forwards what comes.
    ReadsPastDone = "STRM-06" by "stream.text",
    /// The content type of a stream is not looked at; what is no event is skipped.
    IgnoresContentType = "STRM-07" by "stream.status",
    /// An event may be of any size.
    UnboundedEvent = "STRM-08" by "provider.bytes_taken",
    /// A cut in transit is reported as an invalid request.
    CutIsInvalidRequest = "STRM-09" by "plain.status",
    /// After the last finish_reason waits for `[DONE]` for as long as for a text.
    AwaitsDone = "STRM-10" by "silence.end",
    /// Each heartbeat after the last finish_reason starts the grace anew.
    HeartbeatsRestartGrace = "STRM-10" by "heartbeats.end",
    /// Ends a stream at its last finish_reason, before usage may follow.
    EndsAtFinish = "STRM-10" by "usage.after_finish",
    /// Ends a stream when one of its choices is finished.
    OneFinishIsTheEnd = "STRM-10" by "unfinished.end",
    /// Leaves the provider's connection open after a stream that it ended by itself.
    GraceKeepsConnection = "STRM-10" by "hang.peer_closed",
    /// Heartbeats restart the idle timeout.
    HeartbeatsRestartIdle = "STRM-11" by "hang.stream",
    /// Once a heartbeat has come, no text restarts the idle timeout.
    HeartbeatEndsIdleRestarts = "STRM-11" by "alive.text",
    /// An event with empty data breaks the stream.
    EmptyDataIsMalformed = "STRM-11" by "heartbeat.complete",
    /// A comment before the first text reaches the client as data.
    CommentBecomesData = "STRM-11" by "heartbeat.as_data",
    /// An event without data ends a stream that has a text.
    HeartbeatEndsStream = "STRM-11" by "heartbeat.text",
    /// Ends every stream with `[DONE]`, also after an error event.
    SendsDoneAfterError = "STRM-12" by "stream.done_after_error",
    /// Each chunk that was translated has an id of its own.
    TranslatesWithFreshIds = "STRM-13" by "stream.ids",
    /// All chunks of all streams that were translated have one id.
    TranslatesWithOneId = "STRM-13" by "streams.ids",
    /// The provider's answer is awaited to its end after the client has gone.
    AwaitsForNobody = "CANC-01" by "hang.peer_closed",
    /// The provider's stream is read to its end after the client has gone.
    ReadsForNobody = "CANC-02" by "hang.peer_closed",
    /// A query runs to its end after its client has gone.
    FinishesLeftQuery = "CANC-03" by "hang.peer_closed",
    /// The last agent is asked although the client has gone.
    ReviewsForNobody = "CANC-03" by "later.calls",
    /// A query whose client has gone is recorded twice, under two ids.
    RecordsLeftTwice = "CANC-03" by "hang.listed",
    /// A query's deadline answers the client, but leaves the calls in flight.
    DeadlineLeavesCalls = "CANC-04" by "hang.peer_closed",
    /// A query has no deadline of its own, only its steps have.
    IgnoresConfiguredDeadline = "CANC-04" by "configured.order",
    /// The deadline in the body of a query is not read.
    IgnoresBodyDeadline = "CANC-04" by "body.order",
    /// The deadline in the header of a query is not read.
    IgnoresHeaderDeadline = "CANC-04" by "header.order",
    /// Requests beyond the limit wait in a queue without bound.
    QueuesWithoutBound = "LOAD-01" by "hang.answer",
    /// Nobody counts a stream after its first token.
    StreamsHoldNoPermit = "LOAD-01" by "refused.status",
    /// A refusal has no Retry-After.
    RefusesWithoutWait = "LOAD-01" by "refused.retry_after",
    /// Permits are given back when all requests have ended.
    FreesPermitsTogether = "LOAD-01" by "hang.one_served",
    /// A refused request keeps a permit.
    LeaksPermits = "LOAD-02" by "hang.after_refused",
    /// An answered request keeps its permit.
    LosesPermitOfAnswer = "LOAD-02" by "hang.after_answered",
    /// A stream that came to its end keeps its permit.
    LosesPermitOfStream = "LOAD-02" by "hang.after_streamed",
    /// A request that the provider failed keeps its permit.
    LosesPermitOfFailure = "LOAD-02" by "hang.after_failed",
    /// A stream that failed before its first token keeps its permit.
    LosesPermitOfFailedStream = "LOAD-02" by "hang.after_failed_streams",
    /// A stream that broke keeps its permit.
    LosesPermitOfBrokenStream = "LOAD-02" by "hang.after_broken",
    /// A request whose client left keeps its permit.
    LosesPermitOfLeaver = "LOAD-02" by "hang.after_left",
    /// A stream whose client left keeps its permit.
    LosesPermitOfLeftStream = "LOAD-02" by "hang.after_left_streams",
    /// A request that is not JSON takes a permit and keeps it.
    LosesPermitOfInvalid = "LOAD-02" by "hang.after_invalid",
    /// A request for an unknown model keeps its permit.
    LosesPermitOfUnknownModel = "LOAD-02" by "hang.after_unknown",
    /// A request whose body was not sent whole takes a permit and keeps it.
    LosesPermitOfHalfABody = "LOAD-02" by "hang.after_half",
    /// Each permit is given back twice.
    GivesPermitBackTwice = "LOAD-02" by "after.refused",
    /// The body is read whole before its size is looked at.
    ReadsBeforeMeasuring = "LOAD-04" by "hang.answer",
    /// A body of exactly the limit is refused.
    RefusesAtTheLimit = "LOAD-04" by "at_limit.status",
    /// A body of one byte more than the limit is taken.
    AllowsOneByteMore = "LOAD-04" by "one_more.status",
    /// A client may take any time for its headers.
    WaitsForSlowClient = "LOAD-05" by "hang.stopped_headers",
    /// A client may take any time for the headers of a later request of its connection.
    WaitsOnKeptConnections = "LOAD-05" by "hang.kept_headers",
    /// A client may take any time for its body.
    WaitsForSlowBody = "LOAD-05" by "hang.stopped_body",
    /// Each piece of a body restarts the time of the body.
    BodyTimerRestarts = "LOAD-05" by "hang.slow_body",
    /// A provider's stream is read as fast as it comes, into memory without bound.
    ReadsAhead = "LOAD-07" by "provider.bytes_taken",
    /// Each connection takes a permit, whether it has a request or not.
    PermitForEachConnection = "LOAD-08" by "idle.status",
    /// The first byte of a request takes the permit.
    PermitAtFirstByte = "LOAD-08" by "headers.status",
    /// The permit is taken before the body is read.
    PermitBeforeBody = "LOAD-08" by "bodies.status",
    /// Out of descriptors, the gateway answers that the provider failed.
    ShortageIsProviders = "LOAD-09" by "short.status",
    /// Out of descriptors, the provider's breaker opens.
    ShortageOpensBreaker = "LOAD-09" by "after.answer",
    /// One tenant may take every permit.
    OneTenantTakesAll = "LOAD-11" by "other.status",
    /// Every failure of a provider is a 500.
    EveryErrorIs500 = "ERR-01" by "status.provider_failure",
    /// Every failure of a streamed request is a 500.
    StreamedFailureIs500 = "ERR-01" by "status.streamed_failure",
    /// The provider's 401 and 403 are given to the client.
    PassesProviderAuth = "ERR-02" by "plain.status",
    /// Errors of the client are reported as plain text.
    SendsPlainText = "ERR-03" by "error.envelope",
    /// The final error holds the headers that were sent to the provider.
    ShowsKey = "ERR-04" by "secret.in_body",
    /// The headers of a provider's error are passed on.
    PassesHeaders = "ERR-04" by "secret.in_header",
    /// An error event is passed on as the provider wrote it.
    PassesErrorEvents = "ERR-04" by "secret.in_event",
    /// The error of a provider that cannot be reached holds its URL, credentials included.
    ShowsUrl = "ERR-04" by "secret.of_url",
    /// The log holds the headers that were sent to the provider.
    LogsKey = "ERR-04" by "secret.in_log",
    /// The client's request id is neither returned nor sent on.
    DropsRequestId = "ERR-05" by "answer.request_id",
    /// A streamed answer does not hold the request id.
    DropsRequestIdOfStreams = "ERR-05" by "stream.request_id",
    /// A second attempt has a request id of its own.
    RenamesSecondAttempt = "ERR-05" by "provider.request_id",
    /// The words of a provider are read in OpenAI's form of an error alone.
    ReadsOpenAiErrorsAlone = "ERR-06" by "words.plain",
    /// The words of a provider are lost where a stream was asked for.
    LosesWordsOfStreams = "ERR-06" by "words.streamed",
    /// An error has the type that the provider gave, and an empty one where it gave none.
    PassesEmptyType = "ERR-06" by "error.envelope",
    /// Entity extraction failing fails the query.
    EntitiesRequired = "DEGR-01" by "answer.status",
    /// Every cause for which a step is missing is reported as an error.
    HidesCauses = "DEGR-01" by "degraded.steps",
    /// A failure of retrieval is not reported, and costs no confidence.
    HidesLostRetrieval = "DEGR-03" by "query.status",
    /// The marks of an answer without sources stay in it as citations.
    CitesWithoutSources = "DEGR-03" by "answer.citations",
    /// Fact check failing leaves the answer marked as verified.
    UncheckedIsVerified = "DEGR-04" by "verified.without_check",
    /// An answer is verified by any claim that was checked, also by one that is contradicted.
    ContradictedIsVerified = "DEGR-04" by "verified.not_supported",
    /// Synthesis failing fails the query although there is evidence.
    NoExtract = "DEGR-05" by "answer.status",
    /// An answer that quotes passages cites nothing.
    QuotesWithoutCitations = "DEGR-05" by "answer.citations",
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
    /// Deletes a document and its passages without a transaction.
    DeletesPiecemeal = "DATA-02" by "deletion.whole",
    /// A query whose record was lost with its connection is reported as recorded.
    ReportsLostAsRecorded = "DATA-02" by "record.as_answered",
    /// Waits for a free connection of the pool without a timeout.
    PoolWaitsForever = "DATA-03" by "hang.answer",
    /// The first call that takes too long keeps its connection of the pool forever.
    LeaksConnection = "DATA-03" by "recovered.together",
    /// Keeps the connection that broke, and never makes a new one.
    KeepsDeadConnection = "DATA-04" by "hang.record_after_sessions",
    /// Once the database was gone, nothing is written any more.
    WritesNoMore = "DATA-04" by "hang.written_again",
    /// Makes its tables anew at each start.
    RecreatesTables = "DATA-07" by "restart.document",
    /// Makes the tables that are missing without a lock.
    MigratesWithoutLock = "DATA-07" by "together.ready",
    /// Puts the text of a query into SQL by hand.
    BuildsSqlByHand = "DATA-08" by "question.recorded",
    /// Lists in the order of the text of the question, not of time.
    ListsOutOfOrder = "DATA-08" by "listing.complete",
    /// Keeps the first 64 KiB of a document.
    CutsLongTexts = "DATA-08" by "hostile_document.text",
    /// Any failure of the database is reported as 401.
    StoreFailureIs401 = "DATA-10" by "document.status",
    /// A key that the database cannot be asked about is reported as unknown.
    FailedLookupIs401 = "DATA-10" by "unknown_key.status",
    /// A session that began while the database was read-only is kept.
    StaysReadOnly = "DATA-10" by "hang.written_again",
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
    /// A request without Host is served.
    ServesWithoutHost = "EDGE-01" by "missing.status",
    /// Of two headers Host the first one counts.
    TakesFirstHost = "EDGE-01" by "doubled.status",
    /// Any value of Host will do.
    TakesAnyHost = "EDGE-01" by "invalid.status",
    /// Host is looked at after the provider has been asked.
    ChecksHostLate = "EDGE-01" by "provider.requests",
    /// HTTP/1.0 needs a Host, too.
    OldNeedsHost = "EDGE-01" by "http_1_0.status",
    /// A coded body is read as JSON.
    ReadsCodedAsJson = "EDGE-03" by "coded.status",
    /// 415 comes without Accept-Encoding.
    NoAcceptEncoding = "EDGE-03" by "coded.accept_encoding",
    /// The coded bytes of a request are sent to the provider.
    ForwardsCodedBodies = "EDGE-03" by "provider.body",
    /// A body is decoded without a bound.
    InflatesWithoutBound = "EDGE-03" by "bomb.status",
    /// A body that its coding does not fit is taken as it is.
    BelievesAnyCoding = "EDGE-03" by "corrupt.status",
    /// A coding that is not known is not looked at.
    IgnoresUnknownCodings = "EDGE-03" by "unknown.status",
    /// Codings are asked for, and no answer is decoded.
    InvitesCodings = "EDGE-04" by "coded.served",
    /// Coded bytes reach the client without the header that names their coding.
    StripsContentEncoding = "EDGE-04" by "coded.text",
    /// A decoded answer still has the header of its coding.
    KeepsContentEncoding = "EDGE-04" by "coded.agreement",
    /// The usage of a coded answer is lost.
    LosesCodedUsage = "EDGE-04" by "coded.usage",
    /// A coded stream is decoded at its end.
    InflatesAtEnd = "EDGE-04" by "hang.head",
    /// A stream is gathered where its client accepts codings.
    GathersForCodingClients = "EDGE-04" by "hang.event",
    /// Headers of the client's connection are copied to the provider.
    CopiesHopHeaders = "EDGE-05" by "provider.hop_headers",
    /// A header that the client's Connection names is copied to the provider.
    CopiesNamedHeaders = "EDGE-05" by "provider.named_headers",
    /// Headers of the provider's connection are copied into answers.
    CopiesHopHeadersOfAnswers = "EDGE-05" by "plain.hop_headers",
    /// A header that the provider's Connection names is copied into answers.
    CopiesNamedHeadersOfAnswers = "EDGE-05" by "plain.named_headers",
    /// Headers of the provider's connection are copied into streams.
    CopiesHopHeadersOfStreams = "EDGE-05" by "stream.hop_headers",
    /// A header that the provider's Connection names is copied into streams.
    CopiesNamedHeadersOfStreams = "EDGE-05" by "stream.named_headers",
    /// Headers of the provider's connection are copied into errors.
    CopiesHopHeadersOfErrors = "EDGE-05" by "error.hop_headers",
    /// A header that the provider's Connection names is copied into errors.
    CopiesNamedHeadersOfErrors = "EDGE-05" by "error.named_headers",
    /// A request that awaits 100 is refused.
    RefusesExpect = "EDGE-06" by "expect.status",
    /// A body that is too large is awaited, and refused at its end.
    ReadsWhatIsTooLargeAnyway = "EDGE-06" by "expect.too_large",
    /// HTTP/1.0 is refused.
    RefusesHttp10 = "EDGE-06" by "http_1_0.status",
    /// The second request of a connection is refused.
    ServesOncePerConnection = "EDGE-06" by "pipelining.answers",
    /// A target in absolute form is not known.
    RefusesAbsoluteForm = "EDGE-06" by "absolute_form.status",
    /// A chunked request with trailers is refused.
    ChokesOnTrailersOfClients = "EDGE-06" by "chunks.status",
    /// Of two lengths of a request the first one counts.
    TakesFirstLength = "EDGE-06" by "lengths.refused",
    /// An answer with an interim one before it cannot be read.
    ChokesOnInterimAnswers = "EDGE-06" by "interim.answer",
    /// An answer whose chunks have extensions cannot be read.
    ChokesOnExtensions = "EDGE-06" by "extensions.answer",
    /// An answer with trailers cannot be read.
    ChokesOnTrailers = "EDGE-06" by "trailers.answer",
    /// Of two lengths of an answer the first one counts.
    TakesFirstProviderLength = "EDGE-06" by "provider_lengths.answer",
    /// A citation may name any source.
    KeepsUnknownSources = "CITE-01" by "citations.source",
    /// A citation may quote what stands nowhere.
    KeepsInventedQuotes = "CITE-01" by "citations.quote",
    /// One citation that is wrong costs all the others.
    DropsAllCitations = "CITE-01" by "citations.kept",
    /// The marks in the answer are those of the model.
    KeepsUnknownMarks = "CITE-01" by "answer.marks",
    /// A claim shows the quote that the model gave for it, whether or not it stands anywhere.
    ClaimsKeepQuotes = "CITE-01" by "claims.quote",
    /// The first 64 passages of a document are indexed.
    IndexesBeginning = "RETR-01" by "end.sources",
    /// The fact check is shown the best passage alone.
    ChecksBestPassage = "RETR-01" by "passages.fact_check",
    /// Synthesis is shown the first 200 characters of each passage.
    WritesFromOpenings = "RETR-01" by "passages.synthesis",
    /// Citation is shown the passages in another order, and so under other numbers.
    CitesInOtherOrder = "RETR-01" by "passages.citation",
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
