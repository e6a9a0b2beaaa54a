//! The one table of every key: where it stands, what it takes, its default and what it is for. Reading, environment,
//! bounds, suggestions and `--print-config` all follow from it. A new key is one line here and one where it is read.

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// `address:port`.
    Address,
    /// Whole milliseconds.
    Millis(i64, i64),
    /// Bytes.
    Bytes(i64, i64),
    /// A number of things.
    Count(i64, i64),
    /// A number with a fraction.
    Ratio(f64, f64),
    /// `true` or `false`.
    Switch,
    /// A name: not empty, at most 200 characters, none of them a control character.
    Name,
    /// A secret text; never shown.
    Secret,
    /// The name of an environment variable that holds a secret.
    Variable,
    /// `http://` or `https://`.
    BaseUrl,
    /// `postgres://`, `sqlite://path`, `sqlite::memory:`.
    StoreUrl,
    /// SHA-256 as 64 hex digits.
    Hash,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A filter of log lines.
    Filter,
}

/// What holds where a key is not written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fallback {
    /// It has to be written.
    Required,
    /// Nothing.
    Unset,
    /// A number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// A text.
    Text(&'static str),
    /// A number, or the value of that key if it is less.
    AtMost(i64, &'static str),
    /// A number, or the value of that key if it is more.
    AtLeast(i64, &'static str),
    /// Follows from other keys, told in words.
    Derived(&'static str),
}

/// One key.
#[derive(Debug)]
pub(super) struct Opt {
    /// Its section; `[]` marks an array of tables.
    pub(super) section: &'static str,
    /// Its name there.
    pub(super) key: &'static str,
    /// What it takes.
    pub(super) kind: Kind,
    /// What holds where it is not written.
    pub(super) fallback: Fallback,
    /// What it is for.
    pub(super) help: &'static str,
}

const HOUR: i64 = 3_600_000;
const ANY_TIME: Kind = Kind::Millis(1, 24 * HOUR);
const TIME_OR_NONE: Kind = Kind::Millis(0, 24 * HOUR);

const fn opt(
    section: &'static str,
    key: &'static str,
    kind: Kind,
    fallback: Fallback,
    help: &'static str,
) -> Opt {
    Opt {
        section,
        key,
        kind,
        fallback,
        help,
    }
}

/// The steps of a query that have bounds of their own.
pub(super) const STEPS: [&str; 6] = [
    "entities",
    "retrieval",
    "fact_check",
    "synthesis",
    "citation",
    "review",
];

/// The agents of a query that ask a model.
pub(super) const AGENTS: [&str; 5] = ["entities", "fact_check", "synthesis", "citation", "review"];

use Fallback::{AtLeast, AtMost, Derived, Float, Integer, Required, Text, Unset};
use Kind::{
    Address, BaseUrl, Bytes, Choice, Count, Filter, Hash, Name, Ratio, Secret, StoreUrl, Switch,
    Variable,
};

const CAP: &str = "The step gets no more time than this.";
const MINIMUM: &str = "With less time left the step is skipped, and the answer says so.";
const DEADLINE: &str = "orchestrator.deadline_ms";
const AGENT_MODEL: Fallback = Derived("the first of [[models]]");
const FROM_PROVIDER: Fallback = Derived("the provider's");
const FROM_DEFAULTS: Fallback = Derived("the value of [timeouts]");

/// Every key, in the order in which it is shown.
#[rustfmt::skip]
pub(super) static OPTIONS: &[Opt] = &[
    opt("server", "listen", Address, Text("127.0.0.1:8080"), "Where to listen; port 0 takes a free one."),
    opt("server", "body_limit_bytes", Bytes(64, 1 << 30), Integer(16 << 20), "Largest request body; more gets 413."),
    opt("server", "max_in_flight", Count(1, 1_000_000), Integer(1_024), "Requests in flight; more get 503 at once."),
    opt("server", "header_timeout_ms", ANY_TIME, Integer(30_000), "A client that has not sent its next headers by then is closed."),
    opt("server", "body_timeout_ms", ANY_TIME, Integer(60_000), "A client that has not sent its body by then gets 408 and is closed."),
    opt("server", "write_timeout_ms", ANY_TIME, Integer(60_000), "A client that takes, for so long, neither 64 KiB of its answer nor all that waits for it is closed."),
    opt("server", "drain_ms", TIME_OR_NONE, Integer(30_000), "How long SIGTERM waits for what is in flight."),
    opt("server", "health_timeout_ms", Kind::Millis(1, 60_000), Integer(500), "What each dependency gets to answer a health probe."),
    opt("server", "health_cache_ms", Kind::Millis(0, 60_000), Integer(1_000), "How long the result of a health probe is told again without a new probe."),

    opt("store", "url", StoreUrl, Text("sqlite://gauntlet.db"), "The database: postgres://user:password@host/name, sqlite://path or sqlite::memory:."),
    opt("store", "max_connections", Count(1, 1_000), Integer(10), "Connections in the pool."),
    opt("store", "acquire_timeout_ms", ANY_TIME, AtMost(2_000, DEADLINE), "Until a connection is had: from the pool, or a new one."),
    opt("store", "statement_timeout_ms", ANY_TIME, AtMost(5_000, DEADLINE), "Until a statement has its answer."),

    opt("auth", "required", Switch, Derived("true where a key exists when the gateway starts, in [[auth.keys]] or in the store"), "Whether clients need a key; without it everybody is tenant `default`."),
    opt("auth", "cache_ms", TIME_OR_NONE, Integer(5_000), "How long a key found in the store is remembered; a revoked key may live on for as long."),
    opt("auth.keys[]", "tenant", Name, Required, "Whose key it is."),
    opt("auth.keys[]", "sha256", Hash, Required, "SHA-256 of the bearer token, in hex: `printf %s TOKEN | sha256sum`."),

    opt("providers[]", "name", Name, Required, "Unique; models and metrics name it."),
    opt("providers[]", "protocol", Choice(&["openai", "ollama"]), Required, "What it speaks: OpenAI's chat completions, or Ollama's own API."),
    opt("providers[]", "base_url", BaseUrl, Required, "https://api.openai.com/v1 for openai, http://127.0.0.1:11434 for ollama. With user:password@ before the host each request carries them (HTTP Basic), instead of a key."),
    opt("providers[]", "api_key", Secret, Unset, "The key that is shown to the provider."),
    opt("providers[]", "api_key_env", Variable, Unset, "The environment variable that holds that key, instead of api_key."),
    opt("providers[]", "max_in_flight", Count(1, 100_000), Integer(512), "Requests at it at once; further ones wait within their time, in a queue."),
    opt("providers[]", "queue", Count(0, 100_000), Integer(256), "Requests that wait for it; more go to the next candidate, or get 503. A provider that stalls holds max_in_flight + queue requests: keep that below server.max_in_flight, or it takes every place at the door."),
    opt("providers[].timeouts", "connect_ms", ANY_TIME, FROM_DEFAULTS, "Until the connection stands."),
    opt("providers[].timeouts", "first_token_ms", ANY_TIME, FROM_DEFAULTS, "Until the first content of a stream; a plain answer has none, and may take its whole share of total_ms."),
    opt("providers[].timeouts", "idle_ms", ANY_TIME, FROM_DEFAULTS, "Between two reads."),
    opt("providers[].timeouts", "total_ms", ANY_TIME, FROM_DEFAULTS, "The deadline of a request whose first candidate is at this provider."),

    opt("models[]", "alias", Name, Required, "What clients ask for."),
    opt("models[].candidates[]", "provider", Name, Required, "One of [[providers]]."),
    opt("models[].candidates[]", "model", Name, Required, "The model's name there."),
    opt("models[].timeouts", "connect_ms", ANY_TIME, FROM_PROVIDER, "Until the connection stands."),
    opt("models[].timeouts", "first_token_ms", ANY_TIME, FROM_PROVIDER, "Until the first content of a stream; a plain answer has none, and may take its whole share of total_ms."),
    opt("models[].timeouts", "idle_ms", ANY_TIME, FROM_PROVIDER, "Between two reads."),
    opt("models[].timeouts", "total_ms", ANY_TIME, Derived("the first candidate's provider's"), "The deadline of a request, over all attempts and candidates."),
    opt("models[].timeouts", "reserve_ms", TIME_OR_NONE, Derived("the value of [timeouts]"), "Kept for each later candidate."),

    opt("timeouts", "connect_ms", ANY_TIME, AtMost(5_000, "first_token_ms"), "Until the connection to a provider stands."),
    opt("timeouts", "first_token_ms", ANY_TIME, AtMost(60_000, "total_ms"), "Until the first content of a stream; a plain answer has none, and may take its whole share of total_ms."),
    opt("timeouts", "idle_ms", ANY_TIME, AtMost(60_000, "total_ms"), "Between two reads of an answer."),
    opt("timeouts", "total_ms", ANY_TIME, Integer(600_000), "The deadline of a request, over all attempts and candidates."),
    opt("timeouts", "reserve_ms", TIME_OR_NONE, Derived("total_ms / (2 * candidates)"), "Kept for each later candidate of a model."),

    opt("retry", "max_attempts", Count(1, 20), Integer(3), "Attempts at one candidate, the first included."),
    opt("retry", "base_ms", ANY_TIME, Derived("200, or half of timeouts.total_ms if that is less"), "The first back-off; each further one is twice as long."),
    opt("retry", "max_ms", ANY_TIME, AtLeast(5_000, "base_ms"), "The longest back-off; who asks for more (Retry-After) is waited for only where no later candidate is left."),
    opt("retry", "jitter", Ratio(0.0, 1.0), Float(0.5), "How much of a back-off is random."),
    opt("retry", "budget_ratio", Ratio(0.0, 100.0), Float(0.2), "Retries allowed per request of the last ten seconds, per provider ..."),
    opt("retry", "budget_floor", Count(0, 1_000_000), Integer(10), "... plus this many."),

    opt("breaker", "failure_threshold", Count(1, 1_000_000), Integer(5), "Consecutive failures that open the breaker of a provider and model."),
    opt("breaker", "cool_down_ms", ANY_TIME, Integer(30_000), "How long it stays open."),
    opt("breaker", "half_open_probes", Count(1, 1_000), Integer(1), "Requests that half-open lets through at once."),

    opt("orchestrator", "deadline_ms", ANY_TIME, Integer(60_000), "The deadline of a query."),
    opt("orchestrator", "passages", Count(1, 100), Integer(8), "Passages handed to synthesis."),
    opt("orchestrator.models", "entities", Name, AGENT_MODEL, "The alias that entity extraction asks."),
    opt("orchestrator.models", "fact_check", Name, AGENT_MODEL, "The alias that the fact check asks."),
    opt("orchestrator.models", "synthesis", Name, AGENT_MODEL, "The alias that synthesis asks."),
    opt("orchestrator.models", "citation", Name, AGENT_MODEL, "The alias that citation asks."),
    opt("orchestrator.models", "review", Name, AGENT_MODEL, "The alias that review asks."),
    opt("orchestrator.steps.entities", "cap_ms", ANY_TIME, AtMost(10_000, DEADLINE), CAP),
    opt("orchestrator.steps.entities", "minimum_ms", TIME_OR_NONE, AtMost(100, "cap_ms"), MINIMUM),
    opt("orchestrator.steps.retrieval", "cap_ms", ANY_TIME, AtMost(15_000, DEADLINE), CAP),
    opt("orchestrator.steps.retrieval", "minimum_ms", TIME_OR_NONE, AtMost(20, "cap_ms"), MINIMUM),
    opt("orchestrator.steps.fact_check", "cap_ms", ANY_TIME, AtMost(20_000, DEADLINE), CAP),
    opt("orchestrator.steps.fact_check", "minimum_ms", TIME_OR_NONE, AtMost(200, "cap_ms"), MINIMUM),
    opt("orchestrator.steps.synthesis", "cap_ms", ANY_TIME, AtMost(30_000, DEADLINE), CAP),
    opt("orchestrator.steps.synthesis", "minimum_ms", TIME_OR_NONE, AtMost(200, "cap_ms"), MINIMUM),
    opt("orchestrator.steps.citation", "cap_ms", ANY_TIME, AtMost(15_000, DEADLINE), CAP),
    opt("orchestrator.steps.citation", "minimum_ms", TIME_OR_NONE, AtMost(100, "cap_ms"), MINIMUM),
    opt("orchestrator.steps.review", "cap_ms", ANY_TIME, AtMost(20_000, DEADLINE), CAP),
    opt("orchestrator.steps.review", "minimum_ms", TIME_OR_NONE, AtMost(100, "cap_ms"), MINIMUM),

    opt("telemetry", "log", Filter, Text("info"), "Which log lines are written: a level, or module=level pairs."),
    opt("telemetry", "format", Choice(&["text", "json"]), Text("text"), "How they look."),
];

/// The keys and sub-sections that `section` knows, in the table's order; arrays with their `[]`.
pub(super) fn known(section: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for option in OPTIONS {
        let name = if option.section == section {
            option.key
        } else {
            let below = if section.is_empty() {
                Some(option.section)
            } else {
                option
                    .section
                    .strip_prefix(section)
                    .and_then(|rest| rest.strip_prefix('.'))
            };
            let Some(below) = below else { continue };
            below.split('.').next().unwrap_or(below)
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The option of that section and key.
pub(super) fn find(section: &str, key: &str) -> Option<&'static Opt> {
    OPTIONS
        .iter()
        .find(|option| option.section == section && option.key == key)
}

/// The known name nearest to `name`, if one is near enough to be meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= limit || candidate.starts_with(name) || name.starts_with(*candidate)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}
