//! The bound of a tape in a report: cases that poll a gateway see thousands of requests that are
//! all alike, and nobody reads them.

use super::words::is_trouble;
use crate::tape::{Entry, Event, Side};

/// The largest number of entries of a tape that stays whole. It exceeds what a cut tape keeps, so
/// that a report which is written again is not cut again.
const WHOLE: usize = 800;
/// The number of entries at the beginning that a cut tape keeps.
const FIRST: usize = 300;
/// The number of entries at the end that a cut tape keeps.
const LAST: usize = 200;
/// The largest number of failures and faults between them that a cut tape keeps.
const TROUBLE: usize = 200;

/// Returns the tape, or its beginning, its end and the failures, faults and remarks between them,
/// with a remark that counts what is left out.
pub(super) fn bounded(tape: Vec<Entry>) -> Vec<Entry> {
    if tape.len() <= WHOLE {
        return tape;
    }
    let (total, end) = (tape.len(), tape.len() - LAST);
    let mut trouble = 0;
    let mut left_out: Option<(u64, u64)> = None;
    let mut kept = Vec::with_capacity(WHOLE);
    for (n, entry) in tape.into_iter().enumerate() {
        let matters = is_trouble(&entry.event)
            || matches!(entry.event, Event::Note { .. } | Event::Target { .. });
        let is_between = (FIRST..end).contains(&n);
        if is_between && !(matters && trouble < TROUBLE) {
            left_out.get_or_insert((entry.seq, entry.at_us));
            continue;
        }
        trouble += usize::from(is_between);
        kept.push(entry);
    }
    if let Some((seq, at_us)) = left_out {
        let n = total - kept.len();
        let at = kept.partition_point(|entry| entry.seq < seq);
        let text = format!(
            "{n} of {total} entries are left out from here to the last {LAST}; the failures, \
             faults and remarks among them that are shown: {trouble}"
        );
        kept.insert(
            at,
            Entry {
                seq,
                at_us,
                side: Side::Target,
                event: Event::Note { text },
            },
        );
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::Tape;

    fn tape(entries: usize, failing: impl Fn(usize) -> bool) -> Vec<Entry> {
        let tape = Tape::new();
        for n in 0..entries {
            let status = if failing(n) { 503 } else { 200 };
            tape.record(
                Side::Client("a".into()),
                Event::ClientStatus {
                    status,
                    headers: Vec::new(),
                },
            );
        }
        tape.entries()
    }

    #[test]
    fn a_tape_that_people_read_stays_whole() {
        let short = tape(WHOLE, |_| false);
        assert_eq!(bounded(short.clone()), short);
    }

    #[test]
    fn a_crowd_is_left_out_and_counted_and_its_failures_stay() {
        let long = tape(5_000, |n| n == 2_000);
        let cut = bounded(long.clone());
        assert_eq!(cut.len(), FIRST + LAST + 2);
        assert_eq!(cut[..FIRST], long[..FIRST]);
        assert_eq!(cut[FIRST + 2..], long[5_000 - LAST..]);
        assert_eq!(cut[FIRST + 1], long[2_000]);
        assert_eq!(
            cut[FIRST].event,
            Event::Note {
                text: "4499 of 5000 entries are left out from here to the last 200; the \
                       failures, faults and remarks among them that are shown: 1"
                    .into()
            }
        );
        assert!(cut.is_sorted_by_key(|entry| entry.seq));
        assert_eq!(bounded(cut.clone()), cut);
    }

    #[test]
    fn a_crowd_of_failures_is_bounded_too() {
        let cut = bounded(tape(20_000, |_| true));
        assert_eq!(cut.len(), FIRST + TROUBLE + LAST + 1);
        assert_eq!(bounded(cut.clone()), cut);
    }
}
