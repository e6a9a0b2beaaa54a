//! File descriptors: each connection takes one, and each request at a provider another.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The descriptors that the process needs besides those of requests: the listener, the database,
/// the log.
const BESIDES: u64 = 64;

/// The fewest connections of clients that the gateway holds, however low the limit is.
const FEWEST: u32 = 8;

/// Raises the limit of open files of this process as far as it may, and warns if the requests in
/// flight can exceed it. A shell or a service manager usually sets a low limit, which any process
/// may raise, so that programs that cannot use high descriptors are safe; this one can.
///
/// Returns the number of connections of clients for which there are descriptors, if each may need
/// one more at a provider.
pub(crate) fn raise_limit(max_in_flight: u32) -> u32 {
    let found = getrlimit(Resource::Nofile);
    if found.current != found.maximum
        && let Err(error) = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: found.maximum,
                maximum: found.maximum,
            },
        )
    {
        tracing::debug!(%error, "the limit of open files cannot be raised");
    }
    let needed = 2 * u64::from(max_in_flight) + BESIDES;
    let limit = getrlimit(Resource::Nofile).current;
    if let Some(limit) = limit.filter(|limit| *limit < needed) {
        tracing::warn!(
            limit,
            needed,
            "the limit of open files is lower than server.max_in_flight needs: raise it (ulimit -Hn)"
        );
    }
    connections(limit)
}

fn connections(limit: Option<u64>) -> u32 {
    let half = limit.map_or(u64::MAX, |limit| limit.saturating_sub(BESIDES) / 2);
    u32::try_from(half).unwrap_or(u32::MAX).max(FEWEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_descriptors_are_for_clients() {
        assert_eq!(connections(Some(1_024)), 480);
        assert_eq!(connections(Some(10)), FEWEST);
        assert_eq!(connections(None), u32::MAX);
    }

    #[test]
    fn the_limit_is_raised_to_the_highest_that_is_allowed() {
        raise_limit(1);
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
