//! Where a gateway answers about itself, and under which names: data of the target file, which the
//! cases read instead of knowing one gateway's names.

use serde::{Deserialize, Serialize};

macro_rules! surface {
    (
        $(#[$about:meta])*
        $name:ident { $($key:ident = $default:literal $meaning:literal)* }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $(
                #[doc = $meaning]
                pub $key: String,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default.into(),)* }
            }
        }

        impl $name {
            /// Every key with its default and its meaning.
            pub const ROWS: &'static [(&'static str, &'static str, &'static str)] =
                &[$((stringify!($key), $default, $meaning)),*];
        }
    };
}

surface! {
    /// The paths at which a gateway answers about itself.
    Paths {
        live = "/health/live"
            "The path that answers with 200 while the process runs, for `liveness`."
        ready = "/health/ready"
            "The path that answers with 200 while the gateway takes requests, and with 503 while it does not, for `readiness`."
        health = "/health"
            "The path of the health document, for `health`."
        metrics = "/metrics"
            "The path of the metrics, for `metrics`."
    }
}

surface! {
    /// The names of the metrics that cases read, in Prometheus' text format.
    MetricNames {
        requests = "gauntlet_requests_total"
            "The counter of requests, with the labels `route` and `status`."
        attempts = "gauntlet_attempts_total"
            "The counter of attempts, with the label `provider`."
        retries = "gauntlet_retries_total"
            "The counter of retries, with the label `provider`."
        fallbacks = "gauntlet_fallbacks_total"
            "The counter of fallbacks, with the label `model`, which is the alias."
        timeouts = "gauntlet_timeouts_total"
            "The counter of timeouts, with the label `provider`."
        breaker_state = "gauntlet_breaker_state"
            "The gauge of a breaker's state (0 closed, 1 half-open, 2 open), with the label `provider`."
        tokens = "gauntlet_tokens_total"
            "The counter of tokens, with the label `kind`, which is `prompt` or `completion`."
    }
}

#[cfg(test)]
mod tests {
    use super::{MetricNames, Paths};

    #[test]
    fn the_readme_of_the_target_files_lists_exactly_these_rows() {
        let readme = include_str!("../../../fixtures/targets/README.md");
        let listed: Vec<&str> = readme
            .lines()
            .skip_while(|line| !line.starts_with("| path or metric |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        let row = |table: &str, (key, default, meaning): &(&str, &str, &str)| {
            format!("| `[{table}] {key}` | `{default}` | {meaning} |")
        };
        let rows: Vec<String> = Paths::ROWS
            .iter()
            .map(|entry| row("paths", entry))
            .chain(MetricNames::ROWS.iter().map(|entry| row("metrics", entry)))
            .collect();
        assert_eq!(
            listed,
            rows,
            "the table of fixtures/targets/README.md has to be:\n{}",
            rows.join("\n")
        );
    }
}
