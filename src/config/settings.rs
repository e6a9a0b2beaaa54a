//! Every key of the gateway: one row holds its documentation, field, type, unit, bounds and
//! default. A new key is one row here, and the code that uses its field.

use std::net::SocketAddr;
use std::time::Duration;

use indexmap::IndexMap;
use secrecy::SecretString;

use super::schema::Bound::{AtLeast, AtMost, Below, Free};
use super::schema::Default::{Derived, Fraction, Is, Or, Required, Text, Unique, Unset};
use super::schema::Takes::{Millis, NameOf, Protocol, Ratio, Switch};
use super::schema::{
    ADDRESS, BASE_URL, DAY, FILTER, FORMAT, HASH, NAME, SECRET, STORE_URL, Settings, TIME,
    TIME_OR_NONE, VARIABLE, bytes, count, settings, time,
};

const DEADLINE: &str = "orchestrator.deadline_ms";
const INHERITED: super::schema::Default =
    Derived("inherited: a model's from the provider, a provider's from [timeouts]");

settings! {
    /// Everything that can be configured, as it is written; `resolve` makes a `Config` of it.
    pub(super) struct Written {
        table server: Server;
        table store: StoreConfig;
        table auth: Auth;
        array providers: Provider;
        array models: Model;
        table timeouts: DefaultTimeouts;
        table retry: Retry;
        table breaker: Breaker;
        table orchestrator: OrchestratorConfig;
        table telemetry: Telemetry;
    }

    /// The listener, and the limits of what clients send.
    pub struct Server {
        /// The gateway listens on this address; port 0 takes a free port.
        "listen" => listen: SocketAddr, ADDRESS, Text("127.0.0.1:8080");
        /// A request whose body is longer is answered with 413.
        "body_limit_bytes" => body_limit_bytes: u64, bytes(64, 1 << 30), Is(16 << 20);
        /// The gateway serves this many requests at a time and answers each further one with 503.
        /// Where clients have keys, the last eighth of them is left to tenants that hold few.
        "max_in_flight" => max_in_flight: u32, count(1, 1_000_000), Is(1_024);
        /// The gateway holds this many connections of clients, and no more than half of the limit
        /// of open files. For a further one it ends the oldest connection without a request.
        "max_connections" => max_connections: u32, count(8, 1_000_000), Is(16_384);
        /// A client that does not send the headers of its next request within this time is
        /// disconnected.
        "header_timeout_ms" => header_timeout: Duration, TIME, Is(30_000);
        /// A client that does not send the whole body within this time is answered with 408 and
        /// disconnected.
        "body_timeout_ms" => body_timeout: Duration, TIME, Is(60_000);
        /// A client that takes neither 64 KiB of its answer nor the rest of it within this time is
        /// disconnected.
        "write_timeout_ms" => write_timeout: Duration, TIME, Is(60_000);
        /// After SIGTERM the gateway waits this long for the requests in flight, then cuts them.
        "drain_ms" => drain: Duration, TIME_OR_NONE, Is(30_000);
        /// A dependency that does not answer a health probe within this time is unhealthy.
        "health_timeout_ms" => health_timeout: Duration, Millis(1, 60_000, Free), Is(500);
        /// The result of a health probe is used again for this time.
        "health_cache_ms" => health_cache: Duration, Millis(0, 60_000, Free), Is(1_000);
    }

    /// The database that holds documents, queries and keys.
    pub struct StoreConfig {
        /// The URL of the database. SQLite creates a missing file and its folders.
        "url" => url: SecretString, STORE_URL, Text("sqlite://gauntlet.db");
        /// The pool holds at most this many connections.
        "max_connections" => max_connections: u32, count(1, 1_000), Is(10);
        /// A connection, from the pool or new, must be available within this time.
        "acquire_timeout_ms" => acquire_timeout: Duration, time(AtMost(DEADLINE)), Is(2_000);
        /// A statement must be answered within this time.
        "statement_timeout_ms" => statement_timeout: Duration, time(AtMost(DEADLINE)), Is(5_000);
    }

    /// The API keys of clients.
    pub struct Auth {
        /// Whether a request needs a key; without keys every client is the tenant `default`.
        "required" => required: Option<bool>, Switch,
            Derived("true if a key exists when the gateway starts, in [[auth.keys]] or the store");
        /// A key that was found in the store is remembered for this time, even if it is revoked.
        "cache_ms" => cache: Duration, TIME_OR_NONE, Is(5_000);
        /// While the store does not answer, such a key is remembered for this time instead.
        "without_store_ms" => without_store: Duration, TIME_OR_NONE, Is(300_000);
        array keys: ConfiguredKey;
    }

    /// A key that this file knows, besides those in the store.
    pub struct ConfiguredKey {
        /// The tenant to which the key belongs.
        "tenant" => tenant: String, NAME, Required;
        /// The SHA-256 of the bearer token, which `printf %s TOKEN | sha256sum` computes.
        "sha256" => sha256: String, HASH, Unique;
    }

    /// A provider: a server that runs models.
    pub(super) struct Provider {
        /// The provider's own name, which [[models]], logs and metrics use.
        "name" => name: String, NAME, Unique;
        /// The protocol that the provider speaks.
        "protocol" => protocol: String, Protocol(&[]), Required;
        /// The URL before the protocol's paths. A user and password in it (http://user:password@host)
        /// are sent with each request instead of a key (HTTP Basic).
        "base_url" => base_url: Option<String>, BASE_URL, Derived("the default of the protocol");
        /// The key that is sent to the provider.
        "api_key" => api_key: Option<SecretString>, SECRET, Unset;
        /// The environment variable that holds the key; it is written instead of api_key.
        "api_key_env" => api_key_env: Option<String>, VARIABLE, Unset;
        /// The provider gets this many requests at a time; further ones wait in a queue, within
        /// their deadlines.
        "max_in_flight" => max_in_flight: u32, count(1, 100_000), Is(512);
        /// This many requests wait for the provider; a further one goes to the next candidate or
        /// is answered with 503. A provider that stalls holds max_in_flight + queue requests: keep
        /// the sum below server.max_in_flight, so that requests to other providers are admitted.
        "queue" => queue: u32, count(0, 100_000), Is(256);
        table timeouts: OwnTimeouts;
    }

    /// An alias that clients can use as a model, and the candidates that answer for it.
    pub(super) struct Model {
        /// The model's name for clients.
        "alias" => alias: String, NAME, Unique;
        array candidates: Candidate;
        table timeouts: OwnTimeouts;
    }

    /// A model at a provider. The first candidate is asked first; each later one is a fallback.
    pub(super) struct Candidate {
        /// The provider that runs the model.
        "provider" => provider: String, NameOf("providers", "name"), Required;
        /// The model's name at that provider.
        "model" => model: String, NAME, Required;
    }

    /// The timeouts of this model or provider alone.
    pub(super) struct OwnTimeouts {
        /// The connection to the provider must be open within this time.
        "connect_ms" => connect: Option<Duration>, TIME, INHERITED;
        /// The first content of a stream must arrive within this time. A plain answer has no first
        /// token and may take its whole share of total_ms.
        "first_token_ms" => first_token: Option<Duration>, TIME, INHERITED;
        /// No more than this time may pass between two reads of an answer.
        "idle_ms" => idle: Option<Duration>, TIME, INHERITED;
        /// A request must end within this time, over all attempts and candidates. The provider of
        /// the first candidate counts.
        "total_ms" => total: Option<Duration>, TIME, INHERITED;
        /// Each candidate leaves this much of total_ms to each later one.
        "reserve_ms" => reserve: Option<Duration>, TIME_OR_NONE, INHERITED;
    }

    /// The timeouts of every model and provider that has none of its own.
    pub(super) struct DefaultTimeouts {
        /// The connection to a provider must be open within this time.
        "connect_ms" => connect: Duration, time(AtMost("first_token_ms")), Is(5_000);
        /// The first content of a stream must arrive within this time. A plain answer has no first
        /// token and may take its whole share of total_ms.
        "first_token_ms" => first_token: Duration, time(AtMost("total_ms")), Is(60_000);
        /// No more than this time may pass between two reads of an answer.
        "idle_ms" => idle: Duration, time(AtMost("total_ms")), Is(60_000);
        /// A request must end within this time, over all attempts and candidates.
        "total_ms" => total: Duration, TIME, Is(600_000);
        /// Each candidate of a model leaves this much of total_ms to each later one.
        "reserve_ms" => reserve: Option<Duration>, TIME_OR_NONE,
            Derived("half of total_ms, divided by the number of candidates");
    }

    /// The retries at one candidate.
    #[derive(Copy, PartialEq)]
    pub struct Retry {
        /// A candidate gets at most this many attempts, the first included.
        "max_attempts" => max_attempts: u32, count(1, 20), Is(3);
        /// The backoff before the first retry; before each further retry it is twice as long.
        "base_ms" => base: Duration, time(Below("timeouts.total_ms")), Is(200);
        /// The longest backoff. If a provider asks for more (Retry-After), the gateway waits for it
        /// only where no later candidate is left.
        "max_ms" => max: Duration, time(AtLeast("base_ms")), Is(5_000);
        /// The random part of a backoff: a pause lies in `[backoff * (1 - jitter), backoff]`.
        "jitter" => jitter: f64, Ratio(0.0, 1.0), Fraction(0.5);
        /// A provider gets at most this many retries for each request of the last ten seconds ...
        "budget_ratio" => budget_ratio: f64, Ratio(0.0, 100.0), Fraction(0.2);
        /// ... and this many more.
        "budget_floor" => budget_floor: u32, count(0, 1_000_000), Is(10);
    }

    /// The circuit breakers, one for each model of each provider.
    #[derive(Copy, PartialEq)]
    pub struct Breaker {
        /// The breaker opens if at least this share of the attempts of a window failed, and they
        /// are enough: minimum_attempts of them, or failure_threshold failures in a row. With 0
        /// the failures in a row alone decide, whatever else succeeds.
        "failure_rate" => failure_rate: f64, Ratio(0.0, 1.0), Fraction(0.6);
        /// The length of the window. An attempt counts where it began, however long it takes.
        "window_ms" => window: Duration, Millis(1_000, DAY, Free), Is(10_000);
        /// A window with this many attempts is enough to open the breaker by the rate alone.
        "minimum_attempts" => minimum_attempts: u32, count(1, 1_000_000), Is(20);
        /// This many failures without a success between them are enough as well.
        "failure_threshold" => failure_threshold: u32, count(1, 1_000_000), Is(5);
        /// The breaker stays open for this time, then it is half-open. Each time that all its
        /// probes have failed, it stays open twice as long as before.
        "cool_down_ms" => cool_down: Duration, TIME, Is(1_000);
        /// The longest time for which the breaker stays open, unless the provider asks for more.
        "cool_down_max_ms" => cool_down_max: Duration, time(AtLeast("cool_down_ms")), Is(30_000);
        /// A half-open breaker lets this many requests through. The first that succeeds closes it;
        /// it opens again when all of them have failed.
        "half_open_probes" => half_open_probes: u32, count(1, 1_000), Is(3);
        /// This share of the requests that have no other candidate passes a breaker that is open,
        /// so that a provider that fails in part is never cut off as a whole. 0 lets none pass.
        "open_share" => open_share: f64, Ratio(0.0, 1.0), Fraction(0.1);
    }

    /// Queries: their deadline, and what their steps may use.
    pub struct OrchestratorConfig {
        /// A query must end within this time.
        "deadline_ms" => deadline: Duration, TIME, Is(60_000);
        /// The synthesis step gets at most this many passages.
        "passages" => passages: u32, count(1, 100), Is(8);
        /// The cap_ms of each step that writes none; without it, each step has its own default.
        "step_cap_ms" => step_cap: Option<Duration>, time(AtMost(DEADLINE)), Unset;
        table models: IndexMap<String, String>;
        table steps: IndexMap<String, StepConfig>;
    }

    /// The bounds of one step of a query.
    #[derive(Copy, PartialEq, Eq)]
    pub struct StepConfig {
        /// The step must end within this time.
        "cap_ms" => cap: Duration, time(AtMost(DEADLINE)),
            Or("orchestrator.step_cap_ms", 0);
        /// A step with less time left than this is skipped, and the query's outcome lists it.
        "minimum_ms" => minimum: Duration, Millis(0, DAY, AtMost("cap_ms")), Is(0);
    }

    /// The log lines on stderr.
    pub struct Telemetry {
        /// The filter of log lines.
        "log" => log: String, FILTER, Text("info");
        /// The format of log lines: text for people, JSON for programs.
        "format" => format: LogFormat, FORMAT, Text("text");
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One line of text for each event.
    Text,
    /// One JSON object for each event.
    Json,
}
