//! The capabilities: what a target may declare that it can do, one row each.
//!
//! A case names the capabilities that it needs; a target that does not declare one of them is
//! *not supported* in that case, never passed. Names in target files, the sentences of `gauntlet
//! list --capabilities`, `gauntlet explain NAME` and the table of `fixtures/targets/README.md` all
//! come from these rows; adding a capability is adding a row (and its line in that table, which a
//! test compares).

use crate::rows::kinds;

#[rustfmt::skip] // a row is a name and a sentence
kinds! {
    /// Something that a gateway may be able to do, as a target file declares it.
    Capability;
    /// What a target that declares the capability claims, in one sentence.
    claim;
    Chat "chat"
        "It answers `POST /v1/chat/completions` in OpenAI's form."
    Stream "stream"
        "It streams the answer to `POST /v1/chat/completions` as server-sent events that end \
         with `data: [DONE]`."
    Tools "tools"
        "It passes tool definitions on to the provider and tool calls back to the client."
    Models "models"
        "`GET /v1/models` lists the configured aliases in OpenAI's form."
    Ollama "ollama"
        "A provider may speak Ollama's own API, which streams NDJSON."
    Fallback "fallback"
        "An alias may have several candidates: when one fails before the first content, the \
         next one serves the request."
    Retry "retry"
        "A failed attempt is repeated at the same candidate, with a configured number of \
         attempts and a configured backoff."
    RetryBudget "retry_budget"
        "Retries are limited to a configured share of the requests made, plus a configured floor."
    ConnectTimeout "connect_timeout"
        "Establishing a connection to a provider has a configured timeout of its own."
    HeadersTimeout "headers_timeout"
        "The wait for the headers of a provider's response has a configured timeout of its own, \
         whatever happens after the headers."
    FirstTokenTimeout "first_token_timeout"
        "The wait for the first content of a stream has a configured timeout of its own, also \
         after the headers; who declares it declares `headers_timeout`, too."
    IdleTimeout "idle_timeout"
        "The wait between two events of a stream has a configured timeout of its own."
    TotalDeadline "total_deadline"
        "One configured deadline covers a whole request, over all its attempts and candidates."
    TimeoutPerModel "timeout_per_model"
        "An alias or a provider may have timeouts of its own, which override the default."
    ClientDeadline "client_deadline"
        "A client may shorten the deadline of its request with the header \
         `x-request-timeout-ms`, in milliseconds."
    Breaker "breaker"
        "Each pair of provider and model has a circuit breaker with a configured failure \
         threshold, cool-down and number of half-open probes."
    Bulkhead "bulkhead"
        "A provider may have a configured limit of requests in flight."
    Admission "admission"
        "The gateway has a configured limit of requests in flight, and refuses a further \
         request at once."
    BodyLimit "body_limit"
        "A request body larger than a configured number of bytes is refused."
    SlowClient "slow_client"
        "The connection of a client that sends its headers or its body too slowly is closed \
         after a configured time."
    Keys "keys"
        "Clients present a bearer key, and each key belongs to a tenant."
    StoredKeys "stored_keys"
        "A client's key that is not in the configuration is looked up in the gateway's database."
    RevocableKeys "revocable_keys"
        "An operator makes and revokes keys of clients while it runs, by the commands of `[keys]`."
    OwnProviderKeys "own_provider_keys"
        "The gateway presents configured keys of its own to providers, so a provider's 401 \
         never concerns the client's key."
    UrlCredentials "url_credentials"
        "The base URL of a provider may hold a user and a password."
    RequestId "request_id"
        "`x-request-id` is accepted from the client, returned in the response, logged and sent \
         to the provider."
    ServedBy "served_by"
        "The response header `x-gauntlet-provider` names the provider that served the request."
    AttemptList "attempt_list"
        "The final error lists every attempt in order, in `error.attempts`, each with its \
         provider and its cause."
    Query "query"
        "It answers queries over stored documents at `/api/v1/queries` and `/api/v1/documents`."
    Liveness "liveness"
        "`GET` of the path `[paths] live` answers with 200 for as long as the process runs."
    Readiness "readiness"
        "`GET` of the path `[paths] ready` answers with 200 while the gateway takes requests, and \
         with 503 while it does not."
    Health "health"
        "`GET` of the path `[paths] health` answers in the form of the bundled gateway; who \
         declares it declares `liveness` and `readiness`, too."
    Metrics "metrics"
        "`GET` of the path `[paths] metrics` serves Prometheus text with the metrics that \
         `[metrics]` names."
    Drain "drain"
        "After SIGTERM it reports itself as not ready, finishes requests in flight within a \
         configured time, and exits with code 0."
    Store "store"
        "It keeps documents and queries in the database that the harness gives it."
    Process "process"
        "Each case has a process of the gateway of its own, which the case may signal, kill and \
         restart."
}

impl Capability {
    /// The capabilities that a target declares by declaring this one.
    #[must_use]
    pub const fn implies(self) -> &'static [Self] {
        match self {
            Self::FirstTokenTimeout => &[Self::HeadersTimeout],
            Self::Health => &[Self::Liveness, Self::Readiness],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Capability;
    use crate::subject::stated::assert_table_of_the_readme;

    #[test]
    fn the_readme_of_the_target_files_lists_exactly_these_rows() {
        let rows = Capability::ALL
            .iter()
            .map(|row| format!("| `{}` | {} |", row.name(), row.claim()));
        assert_table_of_the_readme("| capability |", rows);
    }
}
