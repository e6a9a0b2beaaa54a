//! How a gateway was set up for a case, in sentences for a reader who knows the gateway and not
//! this suite.

use super::words::{counted, duration};
use crate::runner::Setup;
use crate::spec::Timeouts;

/// Returns what the case asks of the gateway, one sentence each.
pub(super) fn sentences(setup: &Setup) -> Vec<String> {
    let spec = &setup.spec;
    let mut sentences = Vec::new();
    for model in &spec.models {
        let candidates: Vec<String> = model
            .candidates
            .iter()
            .map(|candidate| {
                let provider = spec
                    .providers
                    .iter()
                    .find(|provider| provider.name == candidate.provider);
                let protocol = provider.map_or("", |provider| provider.protocol.title());
                format!(
                    "upstream {} ({protocol} protocol, model {} there)",
                    candidate.provider, candidate.model
                )
            })
            .collect();
        let own = timeouts(model.timeouts);
        let own = if own.is_empty() {
            own
        } else {
            format!(", with timeouts of its own: {own}")
        };
        sentences.push(format!(
            "Model {}{} is served by {}{own}.",
            setup.model_prefix,
            model.alias,
            candidates.join(", then by ")
        ));
    }
    for provider in &spec.providers {
        let own = timeouts(provider.timeouts);
        if !own.is_empty() {
            sentences.push(format!(
                "Upstream {} has timeouts of its own: {own}.",
                provider.name
            ));
        }
        if let Some(most) = provider.max_in_flight {
            sentences.push(format!(
                "Upstream {} may have {} in flight.",
                provider.name,
                counted(
                    usize::try_from(most).unwrap_or(usize::MAX),
                    "request",
                    "requests"
                )
            ));
        }
    }
    sentences.push(format!(
        "The case asks for these timeouts: {}.",
        timeouts(spec.timeouts)
    ));
    let attempts = usize::try_from(spec.retry.max_attempts).unwrap_or(usize::MAX);
    sentences.push(match attempts {
        0 | 1 => "It asks for one attempt at each upstream.".into(),
        _ => format!(
            "It asks for at most {} at each upstream, and for the first retry after {}.",
            counted(attempts, "attempt", "attempts"),
            duration(spec.retry.base_ms)
        ),
    });
    if spec.breaker.failure_threshold < 1_000 {
        sentences.push(format!(
            "It asks for a circuit breaker that opens after {} in a row, for {}.",
            counted(
                usize::try_from(spec.breaker.failure_threshold).unwrap_or(usize::MAX),
                "failure",
                "failures"
            ),
            duration(spec.breaker.cool_down_ms)
        ));
    }
    if !spec.keys.is_empty() {
        sentences.push(format!(
            "Clients need a key; the gateway knows {}.",
            counted(spec.keys.len(), "key", "keys")
        ));
    }
    sentences
}

/// The timeouts that are set, as a list.
fn timeouts(timeouts: Timeouts) -> String {
    let listed = [
        (timeouts.connect_ms, "to connect"),
        (timeouts.first_token_ms, "to the first content"),
        (timeouts.idle_ms, "between two events"),
        (timeouts.total_ms, "for the whole request"),
    ];
    let listed = listed
        .iter()
        .filter_map(|(ms, what)| ms.map(|ms| format!("{} {what}", duration(ms))));
    listed.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::sentences;
    use crate::runner::Setup;
    use crate::spec::{Spec, Timeouts};

    #[test]
    fn a_set_up_reads_as_sentences() {
        let mut spec = Spec::pair();
        spec.models[0].timeouts = Timeouts {
            idle_ms: Some(500),
            ..Timeouts::default()
        };
        spec.retry.max_attempts = 3;
        let setup = Setup {
            spec,
            base_url: "http://127.0.0.1:4000".into(),
            model_prefix: "time-02-".into(),
            upstreams: Default::default(),
            rendered: Default::default(),
            gateway: 0,
        };
        assert_eq!(
            sentences(&setup),
            [
                "Model time-02-pair is served by upstream p1 (OpenAI protocol, model m-p1 there), \
                 then by upstream p2 (OpenAI protocol, model m-p2 there), with timeouts of its own: \
                 500 ms between two events.",
                "The case asks for these timeouts: 1.0 s to connect, 3.0 s to the first content, \
                 3.0 s between two events, 8.0 s for the whole request.",
                "It asks for at most 3 attempts at each upstream, and for the first retry after 20 ms.",
            ]
        );
    }
}
