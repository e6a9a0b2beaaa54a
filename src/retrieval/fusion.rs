//! Reciprocal-rank fusion: lanes with scores that can't be compared are joined by the ranks they gave.
//!
//! Cormack, Clarke, Büttcher: Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods, SIGIR 2009.

use std::collections::HashMap;

use uuid::Uuid;

use crate::store::Passage;

/// The paper's constant: how little the first ranks outweigh the following ones.
const K: f64 = 60.0;

/// Joins what lanes found, best first: each passage has the sum of `1 / (60 + rank)` over the lanes that found it, ranks from 1.
///
/// The same text of the same document is one passage. Among equals the lane that is declared first goes first, then the better
/// rank: the order depends on nothing else, least of all on which lane answered first.
pub fn fuse<'a>(lanes: impl IntoIterator<Item = &'a [Passage]>, limit: u32) -> Vec<Passage> {
    let mut place: HashMap<(Uuid, &str), usize> = HashMap::new();
    let mut fused: Vec<(&Passage, f64)> = Vec::new();
    for lane in lanes {
        let mut rank = 0.0;
        let mut seen = Vec::new();
        for passage in lane {
            let at = *place
                .entry((passage.document, passage.text.as_str()))
                .or_insert_with(|| {
                    fused.push((passage, 0.0));
                    fused.len() - 1
                });
            // a lane that names a passage twice has one voice for it
            if seen.contains(&at) {
                continue;
            }
            seen.push(at);
            rank += 1.0;
            if let Some((_, score)) = fused.get_mut(at) {
                *score += 1.0 / (K + rank);
            }
        }
    }
    // stable: equals stay in the order in which they were first named
    fused.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    fused
        .into_iter()
        .take(limit)
        .map(|(passage, score)| Passage {
            score,
            ..passage.clone()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passages(documents: &[u128]) -> Vec<Passage> {
        documents
            .iter()
            .map(|document| Passage {
                document: Uuid::from_u128(*document),
                title: String::new(),
                text: "text".into(),
                score: 9.0,
            })
            .collect()
    }

    fn order(lanes: &[&[u128]], limit: u32) -> Vec<u128> {
        let lanes: Vec<Vec<Passage>> = lanes.iter().map(|lane| passages(lane)).collect();
        fuse(lanes.iter().map(Vec::as_slice), limit)
            .iter()
            .map(|passage| passage.document.as_u128())
            .collect()
    }

    #[test]
    fn agreement_of_lanes_outweighs_a_single_first_rank() {
        assert_eq!(order(&[&[1, 2, 3], &[4, 3, 2]], 9), [2, 3, 1, 4]);
        assert_eq!(order(&[&[1, 2, 3], &[4, 3, 2]], 2), [2, 3]);
        assert_eq!(order(&[&[1], &[2], &[]], 9), [1, 2]);
        assert_eq!(order(&[], 9), Vec::<u128>::new());
    }

    #[test]
    fn one_lane_keeps_its_order_and_a_passage_named_twice_counts_once() {
        assert_eq!(order(&[&[3, 1, 3, 2]], 9), [3, 1, 2]);
        let fused = fuse([passages(&[3, 1, 3, 2]).as_slice()], 9);
        assert_eq!(
            fused
                .iter()
                .map(|passage| passage.score)
                .collect::<Vec<_>>(),
            [1.0 / 61.0, 1.0 / 62.0, 1.0 / 63.0]
        );
    }
}
