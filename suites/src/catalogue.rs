//! The catalogue: every requirement with its level, its profiles, its text, and where it is proven.
//!
//! A case takes its level, profiles and text from its row here. What no case shows is shown by a
//! property or a test of the repository ([`Proof`]), or not yet. `docs/requirements.md` is the same
//! table for readers; a test below keeps the two together.

use std::sync::OnceLock;

use gauntlet_harness::case::{Level, Profile};

use Observer::{Client, Database, Provider};
use Profile::{Llm, Ops, Query, Store};

/// One requirement of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The stable id, such as `TIME-02`; it is never used for another requirement.
    pub id: &'static str,
    /// The word of RFC 2119 that gives its weight.
    pub keyword: Keyword,
    /// The surfaces that it speaks about.
    pub profiles: &'static [Profile],
    /// What must hold.
    pub text: &'static str,
    /// Where it is observed; empty where nothing outside the gateway's code shows it.
    pub seen_at: &'static [Observer],
}

/// The word of RFC 2119 in front of a requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyword {
    /// The requirement holds in every gateway that conforms.
    Must,
    /// What the requirement names never happens in a gateway that conforms.
    MustNot,
    /// A gateway may deviate, and a deviation is a warning.
    Should,
}

/// Who observes whether a requirement holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observer {
    /// The client of the gateway.
    Client,
    /// The stub that stands in for a provider.
    Provider,
    /// The database, or the wire in front of it.
    Database,
}

/// Where a requirement is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The case with the requirement's id examines any gateway.
    Case,
    /// Properties over random schedules examine the repository's own gateway.
    Property(&'static [Function]),
    /// Tests examine the repository's own gateway or tools.
    Test(&'static [Function]),
    /// Nothing proves it yet.
    NotYet,
}

/// A test function of the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// The path of the file from the root of the repository.
    pub file: &'static str,
    /// The name of the function.
    pub name: &'static str,
}

/// Every requirement, area by area.
pub fn all() -> &'static [Requirement] {
    REQUIREMENTS
}

/// The requirement with this id.
pub fn find(id: &str) -> Option<&'static Requirement> {
    REQUIREMENTS.iter().find(|requirement| requirement.id == id)
}

impl Requirement {
    /// The weight of a violation: a MUST NOT weighs as much as a MUST.
    pub const fn level(&self) -> Level {
        match self.keyword {
            Keyword::Must | Keyword::MustNot => Level::Must,
            Keyword::Should => Level::Should,
        }
    }

    /// The area, which is the first part of the id: `TIME` of `TIME-02`.
    pub fn area(&self) -> &'static str {
        self.id.split('-').next().unwrap_or(self.id)
    }

    /// Where the requirement is proven.
    pub fn proof(&self) -> Proof {
        static CASES: OnceLock<Vec<&'static str>> = OnceLock::new();
        let cases = CASES.get_or_init(|| crate::cases::ids().collect());
        if cases.contains(&self.id) {
            return Proof::Case;
        }
        let proven = PROVEN_BY.iter().find(|(id, _)| *id == self.id);
        proven.map_or(Proof::NotYet, |(_, proof)| *proof)
    }
}

impl Keyword {
    /// The word as RFC 2119 writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Must => "MUST",
            Self::MustNot => "MUST NOT",
            Self::Should => "SHOULD",
        }
    }
}

const fn function(file: &'static str, name: &'static str) -> Function {
    Function { file, name }
}

/// The requirements without a case that a property or a test proves.
const PROVEN_BY: &[(&str, Proof)] = &[
    (
        "PARA-12",
        Proof::Test(&[function(
            "tests/orchestrator.rs",
            "para_12_results_stand_in_their_declared_order_whatever_ended_first",
        )]),
    ),
    (
        "DEGR-02",
        Proof::Test(&[
            function("tests/degraded.rs", "one_retriever_of_two_fails"),
            function(
                "tests/orchestrator.rs",
                "degr_02_a_failed_retriever_costs_its_share_of_the_confidence_and_only_its_own_evidence",
            ),
        ]),
    ),
    (
        "DEGR-09",
        Proof::Property(&[
            function(
                "tests/orchestrator_properties.rs",
                "degr_09_one_more_fault_never_improves_status_or_confidence",
            ),
            function(
                "tests/orchestrator_properties.rs",
                "degr_09_one_more_stall_never_improves_status_or_confidence",
            ),
        ]),
    ),
    (
        "DEGR-10",
        Proof::Property(&[function(
            "tests/orchestrator_properties.rs",
            "degr_10_an_answer_comes_by_the_deadline_and_is_recorded_once",
        )]),
    ),
    (
        "DATA-09",
        Proof::Test(&[
            function("tests/store.rs", "a_document_comes_back_as_it_was"),
            function(
                "tests/store.rs",
                "both_databases_find_the_same_in_the_same_order",
            ),
        ]),
    ),
    (
        "PROP-01",
        Proof::Property(&[
            function(
                "tests/router_properties.rs",
                "any_schedule_keeps_all_invariants",
            ),
            function(
                "tests/router_properties.rs",
                "a_router_with_one_bug_is_found",
            ),
        ]),
    ),
    (
        "PROP-02",
        Proof::Property(&[function(
            "tests/breaker_properties.rs",
            "the_breaker_is_its_model",
        )]),
    ),
    (
        "PROP-03",
        Proof::Property(&[
            function(
                "tests/framing_properties.rs",
                "sse_does_not_depend_on_the_split",
            ),
            function(
                "tests/framing_properties.rs",
                "sse_reads_what_the_standard_says",
            ),
            function(
                "tests/framing_properties.rs",
                "ndjson_does_not_depend_on_the_split",
            ),
            function(
                "tests/framing_properties.rs",
                "chunks_do_not_depend_on_the_split",
            ),
        ]),
    ),
    (
        "PROP-04",
        Proof::Property(&[
            function(
                "tests/orchestrator_properties.rs",
                "degr_09_one_more_fault_never_improves_status_or_confidence",
            ),
            function(
                "tests/orchestrator_properties.rs",
                "degr_10_an_answer_comes_by_the_deadline_and_is_recorded_once",
            ),
            function(
                "tests/orchestrator_properties.rs",
                "canc_03_a_client_may_leave_at_any_time",
            ),
        ]),
    ),
    (
        "SNAP-01",
        Proof::Test(&[
            function("tests/gateway/snapshots.rs", "err_01_the_whole_table"),
            function("tests/gateway/snapshots.rs", "snap_01_openapi"),
            function("tests/gateway/snapshots.rs", "snap_01_metric_names"),
            function("tests/gateway/snapshots.rs", "hlth_03_documents"),
            function("tests/gateway/process.rs", "help"),
            function("tests/degraded.rs", "an_agent_fails"),
            function("tests/exchange/main.rs", "snap_01_openai_plain"),
            function("tests/report.rs", "snap_01_the_report_of_a_run_in_markdown"),
        ]),
    ),
];

const ALL: &[Profile] = &[Llm, Query, Store, Ops];

const fn row(
    id: &'static str,
    keyword: Keyword,
    profiles: &'static [Profile],
    text: &'static str,
    seen_at: &'static [Observer],
) -> Requirement {
    Requirement {
        id,
        keyword,
        profiles,
        text,
        seen_at,
    }
}

const fn must(
    id: &'static str,
    profiles: &'static [Profile],
    text: &'static str,
    seen_at: &'static [Observer],
) -> Requirement {
    row(id, Keyword::Must, profiles, text, seen_at)
}

const fn must_not(
    id: &'static str,
    profiles: &'static [Profile],
    text: &'static str,
    seen_at: &'static [Observer],
) -> Requirement {
    row(id, Keyword::MustNot, profiles, text, seen_at)
}

const fn should(
    id: &'static str,
    profiles: &'static [Profile],
    text: &'static str,
    seen_at: &'static [Observer],
) -> Requirement {
    row(id, Keyword::Should, profiles, text, seen_at)
}

const REQUIREMENTS: &[Requirement] = &[
    must(
        "WIRE-01",
        &[Llm],
        "a completion: content, finish_reason, tool calls and usage arrive as the provider \
         sent them",
        &[Client],
    ),
    must(
        "WIRE-02",
        &[Llm],
        "a stream: each chunk reaches the client before the provider sends the next \
         (interlock)",
        &[Client, Provider],
    ),
    must(
        "WIRE-03",
        &[Llm],
        "a stream ends with one finish_reason and exactly one `data: [DONE]`",
        &[Client],
    ),
    should(
        "WIRE-04",
        &[Llm],
        "`stream_options.include_usage` gives one usage chunk, equal to the provider's",
        &[Client],
    ),
    must(
        "WIRE-05",
        &[Llm],
        "streamed tool-call argument fragments join to the same JSON",
        &[Client],
    ),
    must(
        "WIRE-06",
        &[Llm],
        "a multi-byte character split between two TCP segments arrives whole",
        &[Client],
    ),
    must(
        "WIRE-07",
        &[Llm],
        "SSE comments, CRLF, `data:` without a space, multi-line data are read as the SSE \
         standard says",
        &[Client],
    ),
    must(
        "WIRE-08",
        &[Llm],
        "unknown request fields are forwarded or refused with 400, never dropped in silence",
        &[Client, Provider],
    ),
    must(
        "WIRE-09",
        &[Llm],
        "`GET /v1/models` lists the configured models in OpenAI's shape",
        &[Client],
    ),
    must(
        "WIRE-10",
        &[Llm],
        "embeddings: order and number of vectors are kept",
        &[Client],
    ),
    must(
        "WIRE-11",
        &[Llm],
        "the official OpenAI Python and JavaScript clients complete, stream and see typed \
         errors",
        &[Client],
    ),
    must(
        "WIRE-12",
        &[Llm],
        "an Ollama (NDJSON), an Anthropic and a HuggingFace provider behind the same OpenAI \
         request give the same semantics: text, finish_reason, usage, tool calls (several, \
         streamed in several records; the last record may lack its newline; each result goes \
         to its own call)",
        &[Client, Provider],
    ),
    must(
        "WIRE-13",
        &[Llm],
        "the same script streamed and not streamed gives equal text, tool calls, \
         finish_reason and usage",
        &[Client],
    ),
    must(
        "WIRE-14",
        &[Llm],
        "a provider that sends two finish reasons, or text after one: the client sees one, \
         and no text is lost or doubled",
        &[Client],
    ),
    must(
        "WIRE-15",
        &[Llm],
        "a surrogate pair cut over two deltas: the same result streamed and plain, never \
         U+FFFD, never a broken stream",
        &[Client],
    ),
    must(
        "TIME-01",
        &[Llm],
        "a provider that never accepts the connection: error or fallback by the connect \
         timeout",
        &[Client],
    ),
    must(
        "TIME-02",
        &[Llm],
        "a provider that accepts and never answers: an error (any status of 400 or more; \
         which one is ERR-01's) while the stub still holds the request",
        &[Client, Provider],
    ),
    must(
        "TIME-03",
        &[Llm],
        "headers dripped a byte at a time do not extend the first-byte timeout",
        &[Client, Provider],
    ),
    must(
        "TIME-04",
        &[Llm],
        "a stream that stalls after n chunks: in-band error within the idle timeout",
        &[Client, Provider],
    ),
    must(
        "TIME-05",
        &[Llm],
        "a stream that always drips but never ends is cut at the total deadline",
        &[Client, Provider],
    ),
    must(
        "TIME-06",
        &[Llm],
        "the deadline spans all attempts and fallbacks: it is not multiplied by them",
        &[Client, Provider],
    ),
    must(
        "TIME-07",
        &[Llm],
        "a model's or provider's own timeouts override the default",
        &[Client],
    ),
    should(
        "TIME-08",
        &[Llm],
        "a client's shorter deadline (header) is honoured and can't lengthen the configured \
         one",
        &[Client, Provider],
    ),
    must(
        "TIME-09",
        &[Llm],
        "a timed-out attempt closes its connection to the provider",
        &[Provider],
    ),
    must(
        "TIME-10",
        &[Query, Store],
        "a stalled database delays an answer by no more than its own timeouts",
        &[Client, Database],
    ),
    must(
        "TIME-11",
        &[Llm],
        "an answer that comes within its timeout is never cut (lower bound), and each chunk \
         restarts the idle timer",
        &[Client, Provider],
    ),
    must(
        "TIME-12",
        &[Llm],
        "200 and headers at once, then silence, only heartbeats, or only role chunks before \
         the first content: the first-token timeout ends it, and the next candidate answers",
        &[Client, Provider],
    ),
    must(
        "TIME-13",
        &[Llm],
        "two and three candidates, the first silent to a *plain* request, no timeout but the \
         total: the next is asked, and answers, while the first is still silent (the reserve)",
        &[Client, Provider],
    ),
    must(
        "PARA-01",
        &[Llm],
        "64 requests are at the provider at the same time (rendezvous)",
        &[Provider],
    ),
    must(
        "PARA-02",
        &[Llm],
        "with one model's provider stalled, another model's requests all complete first",
        &[Client, Provider],
    ),
    must(
        "PARA-03",
        &[Llm],
        "a client that reads slowly delays nobody else, and memory stays bounded",
        &[Client],
    ),
    must(
        "PARA-04",
        &[Query],
        "entity extraction and every retriever are in flight together (rendezvous over stubs)",
        &[Provider],
    ),
    must(
        "PARA-05",
        &[Query],
        "fact check starts after retrieval ended, synthesis after fact check, citation and \
         review after synthesis",
        &[Provider],
    ),
    must(
        "PARA-06",
        &[Query],
        "a failing parallel step does not cancel its siblings",
        &[Provider],
    ),
    must(
        "PARA-07",
        &[Llm],
        "a provider's concurrency limit is never exceeded (high-water mark) and always \
         reached under load",
        &[Provider],
    ),
    must(
        "PARA-08",
        &[Llm, Ops],
        "health answers while hundreds of requests are stalled",
        &[Client],
    ),
    must(
        "PARA-09",
        &[Llm],
        "N concurrent different prompts each get their own answer, for any interleaving",
        &[Client],
    ),
    should(
        "PARA-10",
        &[Llm],
        "identical concurrent cacheable requests cost one provider call",
        &[Provider],
    ),
    must(
        "PARA-11",
        &[Query],
        "fork-join and scatter-gather plans run their branches together and merge in a stable \
         order",
        &[Client, Provider],
    ),
    must(
        "PARA-12",
        &[Query],
        "branches released in reverse order: the results still stand in their declared order",
        &[Client, Provider],
    ),
    must(
        "RETRY-01",
        &[Llm],
        "429, 500, 502, 503, 504, refused and reset connections are tried again up to the \
         configured attempts",
        &[Provider],
    ),
    must_not(
        "RETRY-02",
        &[Llm],
        "400, 401, 403, 404, 413, 422 are not tried again",
        &[Provider],
    ),
    must(
        "RETRY-03",
        &[Llm],
        "`Retry-After` (seconds and HTTP date; on 429, 503 and 529) is waited for and never \
         undercut, or the request fails or falls back at once where it exceeds the deadline",
        &[Provider, Client],
    ),
    must(
        "RETRY-04",
        &[Llm],
        "gaps grow exponentially with jitter (lower bounds only)",
        &[Provider],
    ),
    must_not(
        "RETRY-05",
        &[Llm],
        "nothing is tried again once a token has reached the client",
        &[Provider],
    ),
    must(
        "RETRY-06",
        &[Llm],
        "a retry budget: a dead provider under N requests sees at most N·(1+ratio)+floor \
         attempts",
        &[Provider],
    ),
    must(
        "RETRY-07",
        &[Llm],
        "every attempt, retry and fallback alike, carries the same body (but for the \
         candidate's model name)",
        &[Provider],
    ),
    must_not(
        "RETRY-08",
        &[Llm],
        "no attempt starts after the client has gone",
        &[Provider],
    ),
    must(
        "RETRY-09",
        &[Llm],
        "a pooled connection that the provider closes (FIN, RST) before a byte of the answer: \
         one replay on a fresh connection, at once, charged to no attempt, budget or \
         breaker; 40 requests of which every reuse dies are 40 × 200",
        &[Client, Provider],
    ),
    should(
        "RETRY-10",
        &[Llm],
        "`x-should-retry: false` is obeyed",
        &[Provider],
    ),
    should(
        "RETRY-11",
        &[Llm],
        "the client's `Idempotency-Key` is sent on, the same with every attempt",
        &[Provider],
    ),
    must(
        "FALL-01",
        &[Llm],
        "a failing candidate is replaced by the next; the response names who served it",
        &[Client, Provider],
    ),
    must(
        "FALL-02",
        &[Llm],
        "a 200 with HTML, broken JSON, an empty body or no choices is a failure and falls \
         back",
        &[Client, Provider],
    ),
    must(
        "FALL-03",
        &[Llm],
        "a stream that fails before its first token falls back and the client sees one clean \
         stream",
        &[Client, Provider],
    ),
    must_not(
        "FALL-04",
        &[Llm],
        "after the first token: never a silent end, never text twice",
        &[Client],
    ),
    must(
        "FALL-05",
        &[Llm],
        "all candidates failed before any token: a real HTTP status, never 200 with an error \
         event",
        &[Client],
    ),
    must_not(
        "FALL-06",
        &[Llm],
        "a client error (400, 422) does not fall back, and does not count against the \
         provider",
        &[Provider],
    ),
    must(
        "FALL-07",
        &[Llm],
        "a fallback to a provider of another protocol keeps the request's meaning",
        &[Client, Provider],
    ),
    must(
        "FALL-08",
        &[Llm],
        "the final error says what was tried, in order, with each cause, and no secret",
        &[Client],
    ),
    must(
        "FALL-09",
        &[Llm],
        "an error in an odd position of a 200 (in a choice, `finish_reason: \"error\"`, alone \
         in a stream) is a failure with its class, before and after the commit point; \
         `\"error\": null` is none",
        &[Client, Provider],
    ),
    should(
        "FALL-10",
        &[Llm],
        "an answer without text, tool call, refusal or content filter is visible as such: \
         fallback before the commit point, or a counter and a mark",
        &[Client, Provider],
    ),
    must(
        "BRKR-01",
        &[Llm],
        "after the threshold the breaker opens, and the provider receives nothing while it is \
         open",
        &[Provider],
    ),
    must(
        "BRKR-02",
        &[Llm],
        "half-open lets through no more than the configured probes, also under 64 concurrent \
         requests",
        &[Provider],
    ),
    must(
        "BRKR-03",
        &[Llm],
        "success closes it, failure opens it again",
        &[Client, Provider],
    ),
    must(
        "BRKR-04",
        &[Llm],
        "open without an alternative: 503 at once with Retry-After",
        &[Client, Provider],
    ),
    must(
        "BRKR-05",
        &[Llm],
        "breakers are per provider and model: a neighbour is not affected",
        &[Client, Provider],
    ),
    must(
        "BRKR-06",
        &[Llm, Ops],
        "its state is visible in health and metrics",
        &[Client],
    ),
    must(
        "BRKR-07",
        &[Llm],
        "whatever a probe meets (success, 400, cut, cancelled by the client), the breaker is \
         never wedged, and a client that left is not the provider's failure",
        &[Client, Provider],
    ),
    must(
        "BRKR-08",
        &[Llm],
        "a provider that fails in part (each third request, bursts of stalls among successes) \
         is not cut off: what succeeds through the gateway is at least what succeeds \
         directly",
        &[Client, Provider],
    ),
    must(
        "STRM-01",
        &[Llm],
        "clean end without finish_reason and `[DONE]`: in-band error",
        &[Client],
    ),
    must(
        "STRM-02",
        &[Llm],
        "connection reset mid-stream: in-band error after all the text received",
        &[Client],
    ),
    must(
        "STRM-03",
        &[Llm],
        "an event cut in the middle is never forwarded in part",
        &[Client],
    ),
    must(
        "STRM-04",
        &[Llm],
        "a malformed event: error in band, no hang, no crash",
        &[Client],
    ),
    must(
        "STRM-05",
        &[Llm],
        "an in-band `{\"error\":…}` (OpenAI, Ollama line, Anthropic event) is an error, not \
         content, with its class kept",
        &[Client],
    ),
    must(
        "STRM-06",
        &[Llm],
        "data after `[DONE]`, or `[DONE]` twice, changes nothing",
        &[Client],
    ),
    must(
        "STRM-07",
        &[Llm],
        "a stream answered with a wrong content type is a failure before the first token",
        &[Client],
    ),
    must(
        "STRM-08",
        &[Llm],
        "an event without end is refused at a bound; memory stays bounded",
        &[Client],
    ),
    must(
        "STRM-09",
        &[Llm],
        "a cut in transit is never reported as the client's own error (4xx)",
        &[Client],
    ),
    must(
        "STRM-10",
        &[Llm],
        "every choice finished, then silence or heartbeats without end: a clean end within a \
         short grace (usage may follow), the provider's connection closed; with one of two \
         choices unfinished it is no end",
        &[Client, Provider],
    ),
    must(
        "STRM-11",
        &[Llm],
        "heartbeats of any kind (comments, empty `data:`, event-only) carry nothing and end \
         nothing: they do not stretch the idle timeout beyond a stated bound, and what \
         follows them arrives",
        &[Client, Provider],
    ),
    should(
        "STRM-12",
        &[Llm],
        "after an in-band error comes no `[DONE]`",
        &[Client],
    ),
    should(
        "STRM-13",
        &[Llm],
        "all chunks of a stream have one id; two streams are never spliced (MUST)",
        &[Client],
    ),
    must(
        "CANC-01",
        &[Llm],
        "the client leaves before the first token: the provider sees its connection close",
        &[Provider],
    ),
    must(
        "CANC-02",
        &[Llm],
        "the client leaves mid-stream: likewise",
        &[Provider],
    ),
    must(
        "CANC-03",
        &[Query],
        "the client leaves during each agent, one after the other: that agent's call ends, no \
         later agent is asked, one record `cancelled`",
        &[Provider, Database],
    ),
    must(
        "CANC-04",
        &[Query],
        "a deadline (configured, in the header, in the body) ends the calls still in flight, \
         whichever agent is silent, with every step cap and model timeout far beyond it",
        &[Provider],
    ),
    must(
        "LOAD-01",
        &[Llm],
        "beyond the limit of requests in flight, streams past their first token counted: 503 \
         or 429 at once with Retry-After, no unbounded queue; one leaves, one is served",
        &[Client],
    ),
    must(
        "LOAD-02",
        &[Llm],
        "after a burst the next requests all succeed",
        &[Client],
    ),
    must(
        "LOAD-03",
        &[Llm],
        "per-key rate limits with the usual headers; another key is not affected",
        &[Client],
    ),
    must(
        "LOAD-04",
        &[Llm],
        "a body over the limit: 413 before it is read whole",
        &[Client],
    ),
    must(
        "LOAD-05",
        &[Llm],
        "a client that dribbles its headers or body is closed by a timeout",
        &[Client],
    ),
    must(
        "LOAD-06",
        &[Llm],
        "10,000 faulted requests later: no socket, task or memory growth",
        &[Client, Provider],
    ),
    must(
        "LOAD-07",
        &[Llm],
        "a client that stops reading: the gateway takes no more from the provider than a \
         bound (default 8 MiB)",
        &[Provider],
    ),
    must(
        "LOAD-08",
        &[Llm],
        "slow or idle clients (headers, bodies, connections) take no permit from others: with \
         as many dribbling bodies as there are permits, a whole request is still served",
        &[Client],
    ),
    must(
        "LOAD-09",
        &[Ops],
        "out of file descriptors or ports: an error of the gateway's own, blamed on no \
         provider, opening no breaker",
        &[Client, Provider],
    ),
    should(
        "LOAD-10",
        &[Llm],
        "large bodies: memory is bounded by a stated budget, and is given back",
        &[Client],
    ),
    should(
        "LOAD-11",
        &[Llm],
        "one tenant's hung requests leave another tenant's share free",
        &[Client, Provider],
    ),
    must(
        "ERR-01",
        &[Llm],
        "each provider failure class maps to the documented status, type and code (snapshot \
         of the whole table)",
        &[Client],
    ),
    must(
        "ERR-02",
        &[Llm],
        "the provider's 401/403 (our key is bad) is not the client's 401: it is 502 (a target \
         that passes the client's own provider key on: not supported)",
        &[Client],
    ),
    must(
        "ERR-03",
        &[Llm, Query],
        "invalid JSON, wrong types, unknown model, route, method, media type: the right 4xx \
         in the same envelope",
        &[Client],
    ),
    must_not(
        "ERR-04",
        &[Llm, Query],
        "no error, in-band error, header or log holds a key of any form (canaries of bare \
         hex, repeated by the provider with and without `Bearer`), a provider's URL with \
         credentials, or a panic's text",
        &[Client],
    ),
    must(
        "ERR-05",
        &[Llm, Query],
        "a request id is accepted, returned, logged, and sent on",
        &[Client, Provider],
    ),
    should(
        "ERR-06",
        &[Llm],
        "the provider's words survive each shape of error body (object, array, `detail`, \
         string, `message`), in one envelope",
        &[Client],
    ),
    must(
        "DEGR-01",
        &[Query],
        "entity extraction failing (error, timeout, invalid output, breaker open): the answer \
         stands, marked degraded with agent and cause",
        &[Client],
    ),
    must(
        "DEGR-02",
        &[Query],
        "some retrievers failing: the others' evidence is used, marked",
        &[Client],
    ),
    must(
        "DEGR-03",
        &[Query],
        "every retriever failing: an answer without sources, marked, with lower confidence",
        &[Client],
    ),
    must(
        "DEGR-04",
        &[Query],
        "fact check failing: the answer is marked unverified",
        &[Client],
    ),
    must(
        "DEGR-05",
        &[Query],
        "synthesis failing on every model: an extractive answer from the evidence, marked",
        &[Client],
    ),
    must(
        "DEGR-06",
        &[Query],
        "citation or review failing: the answer stands, marked",
        &[Client],
    ),
    must(
        "DEGR-07",
        &[Query],
        "everything failing: `failed`, 503, and recorded",
        &[Client, Database],
    ),
    must(
        "DEGR-08",
        &[Query, Store],
        "the database gone: the query is still answered, marked as not recorded; readiness \
         turns 503",
        &[Client, Database],
    ),
    must(
        "DEGR-09",
        &[Query],
        "monotone: one more fault never improves status or confidence (property)",
        &[Client],
    ),
    must(
        "DEGR-10",
        &[Query],
        "for every fault schedule an answer by the budget plus a fixed grace (property)",
        &[Client],
    ),
    must(
        "DEGR-11",
        &[Llm, Query],
        "once a fault is gone the next requests succeed, without a restart",
        &[Client],
    ),
    must(
        "DATA-01",
        &[Query, Store],
        "each accepted query is recorded once, and the record equals the response",
        &[Client, Database],
    ),
    must(
        "DATA-02",
        &[Query, Store],
        "a connection cut in a transaction leaves no half record",
        &[Database],
    ),
    must(
        "DATA-03",
        &[Query, Store],
        "pool exhausted, by locks and by a silent database: bounded wait, then a clear 503; \
         afterwards every connection of the pool serves again",
        &[Client, Database],
    ),
    must(
        "DATA-04",
        &[Query, Store],
        "the database restarted: the gateway recovers without a restart",
        &[Client, Database],
    ),
    must(
        "DATA-05",
        &[Query, Store],
        "`kill -9` with accepted background queries: after a restart each one ends exactly \
         once in the record",
        &[Client, Database],
    ),
    must(
        "DATA-06",
        &[Query, Store],
        "two replicas share the queue: no query runs twice at the same time, a dead replica's \
         work is taken over",
        &[Provider, Database],
    ),
    must(
        "DATA-07",
        &[Store],
        "migrations: idempotent, and safe when two replicas start together",
        &[Database],
    ),
    must(
        "DATA-08",
        &[Query, Store],
        "listing under concurrent inserts: no row twice, none missing; hostile text (quotes, \
         NUL, emoji, 1 MB) comes back or is refused with 4xx",
        &[Client, Database],
    ),
    must(
        "DATA-09",
        &[Store],
        "the embedded store and Postgres give the same results for the same calls",
        &[Client, Database],
    ),
    must(
        "DATA-10",
        &[Llm, Query, Store],
        "(and writes again once the fault is undone) a database that refuses, is read-only, \
         full or denies a right is never shown as the client's 401/403, and leaves no partial \
         rows",
        &[Client, Database],
    ),
    must(
        "DATA-11",
        &[Query, Store],
        "a job taken from a stopped replica (SIGSTOP past its lease, then SIGCONT): the late \
         replica's writes change nothing and its late calls are not made",
        &[Provider, Database],
    ),
    must(
        "HLTH-01",
        &[Ops],
        "liveness stays 200 whatever the dependencies do",
        &[Client],
    ),
    must(
        "HLTH-02",
        &[Ops],
        "readiness turns 503 when the store goes and 200 when it is back",
        &[Client, Database],
    ),
    must(
        "HLTH-03",
        &[Ops],
        "the detailed health probes every dependency, store and providers, at once \
         (rendezvous of all), each with its own timeout, and names each state",
        &[Client, Provider, Database],
    ),
    should(
        "HLTH-04",
        &[Ops],
        "a storm of health calls costs each dependency a bounded number of probes",
        &[Provider],
    ),
    should(
        "HLTH-05",
        &[Ops],
        "readiness shows when the store takes no writes",
        &[Client, Database],
    ),
    must(
        "DRAIN-01",
        &[Ops],
        "SIGTERM: readiness turns first, requests in flight and streams end, exit code 0",
        &[Client, Provider],
    ),
    must(
        "DRAIN-02",
        &[Ops],
        "the drain deadline cuts what is left with an in-band error; nothing accepted is lost",
        &[Client, Database],
    ),
    must(
        "DRAIN-03",
        &[Ops],
        "SIGHUP never cuts what is in flight",
        &[Client],
    ),
    must(
        "AUTH-01",
        &[Llm, Query],
        "no key, wrong key: 401 with WWW-Authenticate, before any provider call",
        &[Client, Provider],
    ),
    must(
        "AUTH-02",
        &[Query],
        "one tenant never sees, lists, cancels or infers another's queries (404)",
        &[Client, Database],
    ),
    must(
        "AUTH-03",
        &[Llm],
        "the client's credentials are not sent to the provider, the provider's never to the \
         client",
        &[Client, Provider],
    ),
    must(
        "AUTH-04",
        &[Llm, Query],
        "nothing in a request can steer where the gateway connects (SSRF), or split a header",
        &[Provider],
    ),
    must(
        "AUTH-05",
        &[Llm, Query],
        "a revoked key is refused after its stated cache time, also while in constant use and \
         while the store is away",
        &[Client],
    ),
    must(
        "OBS-01",
        &[Ops],
        "counters of requests, attempts, retries, fallbacks, timeouts, breaker states and the \
         gauge of requests in flight equal what client and stubs saw; streams, broken \
         streams, clients that left and all-failed requests included",
        &[Client, Provider],
    ),
    should(
        "OBS-02",
        &[Ops],
        "`traceparent` is continued towards the provider; spans carry the GenAI semantic \
         conventions",
        &[Provider],
    ),
    must(
        "OBS-03",
        &[Llm, Query],
        "token usage in the response, the metrics and the record is the provider's",
        &[Client, Provider, Database],
    ),
    must(
        "EDGE-01",
        &[Llm],
        "`Host` missing, doubled or invalid: 400, and no provider is asked (RFC 9112 §3.2)",
        &[Client, Provider],
    ),
    should(
        "EDGE-02",
        &[Llm],
        "a client that shuts its sending side and reads on gets its whole answer, plain and \
         streamed; the control: a client that closes is cancelled (CANC-01, -02)",
        &[Client, Provider],
    ),
    should(
        "EDGE-03",
        &[Llm],
        "a compressed request body (gzip, zstd) is decoded within the limit of the \
         decompressed size, or 415 with `Accept-Encoding`; a bomb: 413; corrupt: 400; never \
         forwarded coded",
        &[Client, Provider],
    ),
    must(
        "EDGE-04",
        &[Llm],
        "answers in a content coding: not invited (`identity` sent) or decoded; what reaches \
         the client agrees with its headers; usage is read; streamed events leave one by one",
        &[Client, Provider],
    ),
    must(
        "EDGE-05",
        &[Llm],
        "hop-by-hop headers are not copied either way; the message is framed anew",
        &[Client, Provider],
    ),
    must(
        "EDGE-06",
        &[Llm],
        "`Expect: 100-continue`, HTTP/1.0, pipelining, absolute-form targets, and of \
         providers 1xx, chunk extensions, trailers are served; contradicting lengths are \
         refused",
        &[Client, Provider],
    ),
    should(
        "EDGE-07",
        &[Llm],
        "an HTTP/2 provider's GOAWAY or REFUSED_STREAM: sent again on another connection; \
         other resets are not",
        &[Provider],
    ),
    must(
        "CITE-01",
        &[Query],
        "a citation of a source that was not retrieved, or of a quote that stands in none, is \
         not in the answer",
        &[Client],
    ),
    must(
        "RETR-01",
        &[Query, Store],
        "what stands only at the end of a long document is found; all agents are shown the \
         same passages",
        &[Client, Provider],
    ),
    must(
        "PROP-01",
        &[Llm],
        "any schedule of faults over any candidates: one terminal outcome, within the \
         deadline, within the attempts, text a prefix of what a provider sent",
        &[Client, Provider],
    ),
    must(
        "PROP-02",
        &[Llm],
        "the breaker behaves as its reference model for any sequence of outcomes and times \
         (state machine)",
        &[Client],
    ),
    must(
        "PROP-03",
        &[Llm],
        "SSE and NDJSON decoders: any bytes never panic; the result does not depend on how \
         the bytes were split",
        &[],
    ),
    must(
        "PROP-04",
        &[Query],
        "any schedule over agents, providers and database: DEGR-09, DEGR-10 and DATA-01 hold \
         together",
        &[Client, Provider, Database],
    ),
    must(
        "SNAP-01",
        ALL,
        "snapshots: error table, degraded answers, the exchange between gateway and \
         providers, OpenAPI document, metric names, health documents, CLI help, report",
        &[Client, Provider],
    ),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use std::path::PathBuf;

    use super::*;

    fn repository() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn read(file: &str) -> String {
        let path = repository().join(file);
        std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
    }

    /// The row as `docs/requirements.md` writes it.
    fn markdown(requirement: &Requirement) -> String {
        let profiles: Vec<String> = requirement
            .profiles
            .iter()
            .map(|profile| format!("{profile:?}").to_lowercase())
            .collect();
        let observers: Vec<&str> = requirement
            .seen_at
            .iter()
            .map(|observer| match observer {
                Client => "C",
                Provider => "S",
                Database => "D",
            })
            .collect();
        let profiles = if requirement.profiles == ALL {
            "all".to_string()
        } else {
            profiles.join(" ")
        };
        let observers = if observers.is_empty() {
            "–".to_string()
        } else {
            observers.join(" ")
        };
        format!(
            "| {} | {} | {profiles} | {} | {observers} |",
            requirement.id,
            requirement.keyword.name(),
            requirement.text
        )
    }

    #[test]
    fn the_document_and_the_catalogue_are_the_same_table() {
        let document = read("docs/requirements.md");
        let written: Vec<&str> = document
            .lines()
            .filter(|line| line.starts_with("| ") && !line.starts_with("| id "))
            .collect();
        let catalogue: Vec<String> = all().iter().map(markdown).collect();
        for (row, line) in catalogue.iter().zip(&written) {
            assert_eq!(
                row, line,
                "docs/requirements.md differs from suites/src/catalogue.rs: change one of them"
            );
        }
        assert_eq!(catalogue.len(), written.len(), "rows of the two tables");
    }

    #[test]
    fn each_id_stands_once_and_has_a_text_and_a_profile() {
        for (n, requirement) in all().iter().enumerate() {
            let id = requirement.id;
            assert!(
                all()[..n].iter().all(|earlier| earlier.id != id),
                "{id} stands twice"
            );
            assert!(!requirement.text.is_empty(), "{id} has no text");
            assert!(!requirement.profiles.is_empty(), "{id} has no profile");
        }
    }

    #[test]
    fn every_test_that_is_named_as_a_proof_exists() {
        for (id, proof) in PROVEN_BY {
            assert!(find(id).is_some(), "{id} is in no row of the catalogue");
            let (Proof::Property(functions) | Proof::Test(functions)) = proof else {
                panic!("{id} needs no row of its own: {proof:?}");
            };
            for function in *functions {
                let defined = read(function.file).contains(&format!("fn {}(", function.name));
                assert!(
                    defined,
                    "{id}: {} has no function {}; name the one that proves it now",
                    function.file, function.name
                );
            }
            assert_ne!(
                find(id).map(Requirement::proof),
                Some(Proof::Case),
                "{id} has a case; remove its row from PROVEN_BY"
            );
        }
    }
}
