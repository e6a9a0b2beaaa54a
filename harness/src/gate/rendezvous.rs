//! Rendezvous: the proof that things happen together.

use std::sync::Arc;

use tokio::sync::watch;

use super::clock::guard_with;
use crate::tape::{Event, Side, Tape};
use crate::verdict::CaseResult;

/// Lets nobody go until `count` are there together: the proof of "in parallel" on any machine.
///
/// It works in two phases, because a participant may have left without having been noticed. When
/// `count` have come, each checks whether it is still wanted and only then becomes a witness; all
/// meet when there are `count` witnesses of the same gathering. So all of them were there at one
/// moment. Whoever is dropped while waiting no longer counts.
#[derive(Clone, Debug)]
pub struct Rendezvous {
    name: Arc<str>,
    count: usize,
    tape: Tape,
    muster: Arc<watch::Sender<Muster>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Muster {
    waiting: usize,
    most: usize,
    /// Changes whenever a participant comes or leaves: a witness counts for its own gathering only.
    gathering: u64,
    witnesses: usize,
    met: bool,
}

/// A participant; dropping it before the meeting takes it out of the count.
struct Participant<'a>(&'a Rendezvous);

impl Drop for Participant<'_> {
    fn drop(&mut self) {
        self.0.muster.send_modify(|muster| {
            muster.waiting = muster.waiting.saturating_sub(1);
            muster.gathering += 1;
            muster.witnesses = 0;
        });
    }
}

impl Rendezvous {
    pub(super) fn new(name: &str, count: usize, tape: Tape) -> Self {
        Self {
            name: name.into(),
            count,
            tape,
            muster: Arc::new(watch::Sender::new(Muster::default())),
        }
    }

    /// Joins, and waits until everybody is there. Cancel safe: a dropped wait leaves.
    pub async fn arrive(&self) {
        self.arrive_while(|| true).await;
    }

    /// Joins like [`Rendezvous::arrive`]. `still_there` is called when all have come; whoever
    /// answers `false` keeps waiting without being counted.
    pub(crate) async fn arrive_while(&self, still_there: impl Fn() -> bool) {
        let mut muster = self.muster.subscribe();
        let participant = Participant(self);
        self.muster.send_modify(|muster| {
            muster.waiting += 1;
            muster.most = muster.most.max(muster.waiting);
            muster.gathering += 1;
            muster.witnesses = 0;
        });
        let mut witnessed = None;
        loop {
            let seen = *muster.borrow_and_update();
            if seen.met {
                return;
            }
            if seen.waiting >= self.count && witnessed != Some(seen.gathering) {
                if !still_there() {
                    drop(participant);
                    return std::future::pending().await;
                }
                witnessed = Some(seen.gathering);
                self.witness(seen.gathering);
                continue;
            }
            if muster.changed().await.is_err() {
                return;
            }
        }
    }

    fn witness(&self, gathering: u64) {
        self.muster.send_modify(|muster| {
            if muster.gathering == gathering && !muster.met {
                muster.witnesses += 1;
                if muster.witnesses >= self.count {
                    muster.met = true;
                    self.tape.record(
                        Side::Gate(self.name.to_string()),
                        Event::Met {
                            count: muster.witnesses,
                        },
                    );
                }
            }
        });
    }

    /// Waits until everybody has met.
    ///
    /// # Errors
    /// After the hang guard: a violation that states how many were ever there together.
    pub async fn met(&self) -> CaseResult {
        let mut muster = self.muster.subscribe();
        let all = async {
            let _ = muster.wait_for(|muster| muster.met).await;
        };
        let expected = format!("{} together at the rendezvous {}", self.count, self.name);
        guard_with("hang.rendezvous", &expected, all, || {
            format!("{} of {} together", self.most(), self.count)
        })
        .await
    }

    /// The number of participants that wait now.
    pub fn waiting(&self) -> usize {
        self.muster.borrow().waiting
    }

    /// The largest number of participants that ever waited together.
    pub fn most(&self) -> usize {
        self.muster.borrow().most
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::Gates;
    use super::*;

    fn gates() -> (Gates, Tape) {
        let tape = Tape::new();
        (Gates::new(tape.clone()), tape)
    }

    #[tokio::test]
    async fn all_meet_at_once_and_latecomers_pass() {
        let (gates, tape) = gates();
        let rendezvous = gates.rendezvous("all", 3);
        tokio::join!(
            rendezvous.arrive(),
            rendezvous.arrive(),
            rendezvous.arrive(),
            async { rendezvous.met().await.unwrap() }
        );
        rendezvous.arrive().await;
        assert_eq!(
            tape.select(|entry| entry.event == Event::Met { count: 3 })
                .len(),
            1
        );
        assert_eq!(rendezvous.most(), 3);
    }

    #[tokio::test]
    async fn whoever_left_unnoticed_is_no_witness() {
        let (gates, tape) = gates();
        let rendezvous = gates.rendezvous("all", 2);
        let there = AtomicBool::new(true);
        let mut first = Box::pin(rendezvous.arrive_while(|| there.load(Ordering::SeqCst)));
        assert!(futures::poll!(&mut first).is_pending());
        // its peer closes, and nobody has noticed when the second comes
        there.store(false, Ordering::SeqCst);
        let mut second = Box::pin(rendezvous.arrive());
        for _ in 0..3 {
            assert!(futures::poll!(&mut second).is_pending());
            assert!(futures::poll!(&mut first).is_pending());
        }
        assert_eq!((tape.entries().len(), rendezvous.waiting()), (0, 1));
        tokio::join!(second, rendezvous.arrive());
        assert_eq!(tape.entries()[0].event, Event::Met { count: 2 });
    }

    #[tokio::test]
    async fn who_is_dropped_while_waiting_does_not_count() {
        let (gates, _) = gates();
        let rendezvous = gates.rendezvous("all", 2);
        for _ in 0..5 {
            let mut serial = Box::pin(rendezvous.arrive());
            assert!(futures::poll!(&mut serial).is_pending());
        }
        assert_eq!((rendezvous.waiting(), rendezvous.most()), (0, 1));
    }
}
