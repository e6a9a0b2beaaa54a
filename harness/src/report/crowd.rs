//! The bounds of a report: cases that poll a gateway see thousands of requests that are all alike,
//! and nobody reads them; of a case that passed, few people read any.

use super::words::{data_mut, is_trouble};
use crate::runner::Outcome;
use crate::tape::{Entry, Event, MOST_KEPT, Side};

/// How much of a tape is kept.
struct Bounds {
    /// The largest number of entries of a tape that stays whole. It exceeds what a cut tape keeps,
    /// so that a report which is written again is not cut again.
    whole: usize,
    /// The number of entries at the beginning that a cut tape keeps.
    first: usize,
    /// The number of entries at the end that a cut tape keeps.
    last: usize,
    /// The largest number of failures and faults between them that a cut tape keeps.
    trouble: usize,
}

const FULL: Bounds = Bounds {
    whole: 800,
    first: 300,
    last: 200,
    trouble: 200,
};
/// The bounds for a case that passed.
const BRIEF: Bounds = Bounds {
    whole: 240,
    first: 110,
    last: 60,
    trouble: 50,
};
/// The number of bytes of a text that are kept for a case that passed.
const BRIEF_TEXT: usize = 240;
/// The number of lines of the gateway's output that are kept for a case that passed.
const BRIEF_LOG: usize = 8;
/// The number of bytes of all messages of a case above which those that a reproduction does not
/// need are shortened …
const MOST_OF_CASE: usize = 160 << 10;
/// … to this number of bytes.
const SHORT_TEXT: usize = 1 << 10;

/// Shortens the evidence of each case to what its readers need. One set-up is kept although all
/// cases passed, as an example.
pub(super) fn bound(outcomes: &mut [Outcome]) {
    let needed = outcomes
        .iter()
        .any(|outcome| outcome.word() != "passed" && outcome.setup.is_some());
    let mut example = !needed;
    for outcome in outcomes {
        let tape = std::mem::take(&mut outcome.tape);
        if outcome.word() != "passed" {
            outcome.tape = bounded(tape, &FULL);
            shorten(&mut outcome.tape);
            continue;
        }
        let tape = tape
            .into_iter()
            .filter(|entry| !matches!(entry.event, Event::Planned { .. }));
        outcome.tape = bounded(tape.collect(), &BRIEF);
        for entry in &mut outcome.tape {
            clip_texts(&mut entry.event, BRIEF_TEXT);
        }
        let lines: Vec<&str> = outcome.log_tail.lines().collect();
        outcome.log_tail = lines[lines.len().saturating_sub(BRIEF_LOG)..].join("\n");
        if !std::mem::take(&mut example) {
            outcome.setup = None;
        }
        example &= outcome.setup.is_none();
    }
}

/// Bounds the texts of a case without a pass.
fn shorten(tape: &mut [Entry]) {
    for entry in &mut *tape {
        clip_texts(&mut entry.event, MOST_KEPT);
    }
    let length = |entry: &mut Entry| -> usize {
        let body = match &entry.event {
            Event::RequestRead { body, .. } => body.len(),
            _ => 0,
        };
        let data = data_mut(&mut entry.event);
        body + data.iter().map(|data| data.bytes().len()).sum::<usize>()
    };
    if tape.iter_mut().map(length).sum::<usize>() <= MOST_OF_CASE {
        return;
    }
    for entry in tape {
        if !matches!(
            entry.event,
            Event::ClientSent { .. } | Event::Planned { .. }
        ) {
            clip_texts(&mut entry.event, SHORT_TEXT);
        }
    }
}

/// Cuts the texts of an event to `most` bytes; each states its true length.
fn clip_texts(event: &mut Event, most: usize) {
    for data in data_mut(event) {
        *data = std::mem::take(data).shortened(most);
    }
    let Event::RequestRead { body, .. } = event else {
        return;
    };
    // the remark must not be cut when the report is written again
    if body.len() > most + 64 {
        let end = (0..=most).rev().find(|end| body.is_char_boundary(*end));
        let length = body.len();
        body.truncate(end.unwrap_or_default());
        body.push_str(&format!("… ({most} of {length} bytes)"));
    }
}

/// Returns the tape, or its beginning, its end and the failures, faults and remarks between them,
/// with a remark that counts what is left out.
fn bounded(tape: Vec<Entry>, bounds: &Bounds) -> Vec<Entry> {
    if tape.len() <= bounds.whole {
        return tape;
    }
    let (total, end) = (tape.len(), tape.len() - bounds.last);
    let mut trouble = 0;
    let mut left_out: Option<(u64, u64)> = None;
    let mut kept = Vec::with_capacity(bounds.whole);
    for (n, entry) in tape.into_iter().enumerate() {
        let matters = is_trouble(&entry.event)
            || matches!(entry.event, Event::Note { .. } | Event::Target { .. });
        let is_between = (bounds.first..end).contains(&n);
        if is_between && !(matters && trouble < bounds.trouble) {
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
            "{n} of {total} entries are left out from here to the last {}; the failures, faults \
             and remarks among them that are shown: {trouble}",
            bounds.last
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
        let short = tape(FULL.whole, |_| false);
        assert_eq!(bounded(short.clone(), &FULL), short);
    }

    #[test]
    fn a_crowd_is_left_out_and_counted_and_its_failures_stay() {
        let long = tape(5_000, |n| n == 2_000);
        let cut = bounded(long.clone(), &FULL);
        let (first, last) = (FULL.first, FULL.last);
        assert_eq!(cut.len(), first + last + 2);
        assert_eq!(cut[..first], long[..first]);
        assert_eq!(cut[first + 2..], long[5_000 - last..]);
        assert_eq!(cut[first + 1], long[2_000]);
        assert_eq!(
            cut[first].event,
            Event::Note {
                text: "4499 of 5000 entries are left out from here to the last 200; the \
                       failures, faults and remarks among them that are shown: 1"
                    .into()
            }
        );
        assert!(cut.is_sorted_by_key(|entry| entry.seq));
        assert_eq!(bounded(cut.clone(), &FULL), cut);
    }

    #[test]
    fn a_crowd_of_failures_is_bounded_too() {
        for bounds in [FULL, BRIEF] {
            let cut = bounded(tape(20_000, |_| true), &bounds);
            assert_eq!(cut.len(), bounds.first + bounds.trouble + bounds.last + 1);
            assert_eq!(bounded(cut.clone(), &bounds), cut);
        }
    }

    #[test]
    fn a_case_that_passed_is_brief_and_a_failed_one_keeps_what_a_reproduction_needs() {
        use super::super::tests::{outcome, violated};
        use crate::tape::{Action, Data};
        use crate::verdict::{Level, Verdict};

        let long = || Data::new("x".repeat(MOST_KEPT));
        let tape = Tape::new();
        let client = || Side::Client("a".into());
        tape.record(
            client(),
            Event::ClientSent {
                method: "POST".into(),
                path: "/".into(),
                headers: Vec::new(),
                body: long(),
                dribbled: None,
            },
        );
        let send = Action::Send {
            bytes: long(),
            event: None,
        };
        tape.record(
            Side::Provider("p1".into()),
            Event::Planned {
                request: 1,
                actions: vec![send; 4],
            },
        );
        for _ in 0..8 {
            tape.record(
                client(),
                Event::ClientAnswered {
                    status: 200,
                    body: long(),
                },
            );
        }
        let mut outcomes = vec![
            outcome("A-01", Level::Must, Verdict::Passed),
            outcome("A-02", Level::Must, violated()),
        ];
        for outcome in &mut outcomes {
            outcome.tape = tape.entries();
        }
        bound(&mut outcomes);
        let bytes = |n: usize, entry: usize| -> usize {
            let mut entry = outcomes[n].tape[entry].clone();
            let data = data_mut(&mut entry.event);
            data.iter().map(|data| data.bytes().len()).sum()
        };
        assert_eq!((outcomes[0].tape.len(), outcomes[1].tape.len()), (9, 10));
        assert_eq!(bytes(0, 0), BRIEF_TEXT);
        assert_eq!((bytes(1, 0), bytes(1, 1)), (MOST_KEPT, 4 * MOST_KEPT));
        assert_eq!(bytes(1, 9), SHORT_TEXT);
        let again = outcomes.clone();
        bound(&mut outcomes);
        assert_eq!(outcomes, again);
    }
}
