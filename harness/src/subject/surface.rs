//! Where a gateway answers about itself, and under which names: data of the target file, which the
//! cases read instead of knowing one gateway's names.

use super::stated::stated;

stated! {
    /// The paths at which a gateway answers about itself.
    Paths;
    live: String = "/health/live"
        "The path that answers with 200 while the process runs, for `liveness`."
    ready: String = "/health/ready"
        "The path that answers with 200 while the gateway takes requests, and with 503 while it does not, for `readiness`."
    health: String = "/health"
        "The path of the health document, for `health`."
    metrics: String = "/metrics"
        "The path of the metrics, for `metrics`."
}

stated! {
    /// The names of the metrics that cases read, in Prometheus' text format.
    MetricNames;
    requests: String = "gauntlet_requests_total"
        "The counter of requests, with the labels `route` and `status`."
    in_flight: String = "gauntlet_requests_in_flight"
        "The gauge of the requests in flight that make a model work."
    attempts: String = "gauntlet_attempts_total"
        "The counter of attempts, with the label `provider`."
    retries: String = "gauntlet_retries_total"
        "The counter of retries, with the label `provider`."
    fallbacks: String = "gauntlet_fallbacks_total"
        "The counter of fallbacks, with the label `model`, which is the alias."
    timeouts: String = "gauntlet_timeouts_total"
        "The counter of timeouts, with the label `provider`."
    breaker_state: String = "gauntlet_breaker_state"
        "The gauge of a breaker's state (0 closed, 1 half-open, 2 open), with the label `provider`."
    tokens: String = "gauntlet_tokens_total"
        "The counter of tokens, with the label `kind`, which is `prompt` or `completion`."
    empty_answers: String = "gauntlet_empty_answers_total"
        "The counter of answers without content that reached a client, with the label `provider`."
}

#[cfg(test)]
mod tests {
    use super::{MetricNames, Paths};
    use crate::subject::stated::assert_table_of_the_readme;

    #[test]
    fn the_readme_of_the_target_files_lists_exactly_these_rows() {
        let row = |table: &str, (key, default, meaning): &(&str, &str, &str)| {
            format!("| `[{table}] {key}` | `{default}` | {meaning} |")
        };
        let paths = Paths::ROWS.iter().map(|entry| row("paths", entry));
        let metrics = MetricNames::ROWS.iter().map(|entry| row("metrics", entry));
        assert_table_of_the_readme("| path or metric |", paths.chain(metrics));
    }
}
