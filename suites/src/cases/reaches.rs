//! The states that each case must reach: one that passes without has shown nothing, and is *not
//! exercised*. A case without a row is about the faults alone that it plants, which are counted as
//! they are met; a case with neither is about healthy requests.

use gauntlet_harness::case::State::{self, *};

const REACHES: &[(&str, &[State])] = &[
    ("TIME-02", &[Held]),
    ("TIME-04", &[StreamBroken]),
    ("TIME-09", &[Held, CallClosed]),
    ("TIME-10", &[Held, DatabaseFault]),
    ("TIME-13", &[Held]),
    ("PARA-01", &[Together]),
    ("PARA-04", &[Held, DatabaseFault]),
    ("PARA-05", &[Held]),
    ("PARA-06", &[DatabaseFault]),
    ("PARA-07", &[BulkheadFull]),
    ("PARA-09", &[Together]),
    ("RETRY-05", &[StreamBroken]),
    ("RETRY-06", &[RetryBudgetSpent]),
    ("RETRY-08", &[Held, ClientLeft]),
    ("RETRY-09", &[PooledConnection]),
    ("FALL-04", &[StreamBroken]),
    ("BRKR-01", &[BreakerOpen]),
    ("BRKR-02", &[BreakerOpen, HalfOpenWithWaiters]),
    ("BRKR-03", &[BreakerOpen]),
    ("BRKR-04", &[BreakerOpen]),
    ("BRKR-05", &[BreakerOpen]),
    ("BRKR-06", &[BreakerOpen]),
    ("BRKR-07", &[BreakerOpen, Held, ClientLeft]),
    ("STRM-02", &[StreamBroken]),
    ("STRM-03", &[StreamBroken]),
    ("STRM-09", &[StreamBroken]),
    ("STRM-10", &[CallClosed]),
    ("CANC-01", &[Held, ClientLeft, CallClosed]),
    ("CANC-02", &[StreamBroken, ClientLeft, CallClosed]),
    ("CANC-03", &[Held, ClientLeft, CallClosed]),
    ("CANC-04", &[CallClosed]),
    ("LOAD-01", &[AdmissionFull]),
    ("LOAD-02", &[AdmissionFull]),
    ("LOAD-11", &[AdmissionFull]),
    ("DEGR-01", &[BreakerOpen]),
    ("DEGR-03", &[DatabaseFault]),
    ("DEGR-08", &[DatabaseFault]),
    ("DATA-02", &[DatabaseFault]),
    ("DATA-03", &[DatabaseFault]),
    ("DATA-04", &[DatabaseFault]),
    ("DATA-10", &[DatabaseFault]),
    ("HLTH-01", &[DatabaseFault]),
    ("HLTH-02", &[DatabaseFault]),
    ("HLTH-03", &[Together]),
    ("HLTH-05", &[DatabaseFault]),
    ("DRAIN-01", &[Held, DrainBegun]),
    ("DRAIN-02", &[Held, DrainBegun]),
    ("DRAIN-03", &[HungUp]),
    ("AUTH-05", &[DatabaseFault]),
    ("OBS-01", &[Held, StreamBroken, ClientLeft, CallClosed]),
];

/// The states that the case of this id must reach.
pub(super) fn reaches(id: &str) -> &'static [State] {
    let row = REACHES.iter().find(|(case, _)| *case == id);
    row.map_or(&[], |(_, states)| states)
}

#[cfg(test)]
mod tests {
    use super::REACHES;

    #[test]
    fn every_row_belongs_to_one_case() {
        for (n, (id, _)) in REACHES.iter().enumerate() {
            assert!(super::super::ids().any(|case| case == *id), "{id}");
            assert!(
                REACHES[..n].iter().all(|(earlier, _)| earlier != id),
                "{id}"
            );
        }
    }
}
