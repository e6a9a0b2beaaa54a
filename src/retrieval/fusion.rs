//! Reciprocal-rank fusion: the results of retrievers, whose scores cannot be compared, are joined
//! by their ranks.
//!
//! Cormack, Clarke, Büttcher: Reciprocal Rank Fusion outperforms Condorcet and individual Rank
//! Learning Methods, SIGIR 2009.

use std::collections::HashMap;

use uuid::Uuid;

use crate::store::Passage;

/// The constant of the paper; the larger it is, the less the first ranks outweigh the following
/// ones.
const K: f64 = 60.0;

/// Joins what retrievers found, best first. The score of a passage is the sum of `1 / (60 + rank)`
/// over the retrievers that found it; ranks are counted from 1.
///
/// The same text of the same document is one passage. Among equal scores the retriever that is
/// declared first goes first, then the better rank. The order depends on nothing else, so not on
/// which retriever answered first.
pub fn fuse<'a>(results: impl IntoIterator<Item = &'a [Passage]>, limit: u32) -> Vec<Passage> {
    let mut positions: HashMap<(Uuid, &str), usize> = HashMap::new();
    let mut fused: Vec<(&Passage, f64)> = Vec::new();
    for result in results {
        let mut rank = 0.0;
        let mut seen = Vec::new();
        for passage in result {
            let at = *positions
                .entry((passage.document, passage.text.as_str()))
                .or_insert_with(|| {
                    fused.push((passage, 0.0));
                    fused.len() - 1
                });
            // a retriever that returns a passage twice counts once
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
    // the sort is stable: equal scores stay in the order in which they were first found
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

    fn order(results: &[&[u128]], limit: u32) -> Vec<u128> {
        let results: Vec<Vec<Passage>> = results.iter().map(|found| passages(found)).collect();
        fuse(results.iter().map(Vec::as_slice), limit)
            .iter()
            .map(|passage| passage.document.as_u128())
            .collect()
    }

    #[test]
    fn agreement_of_retrievers_outweighs_a_single_first_rank() {
        assert_eq!(order(&[&[1, 2, 3], &[4, 3, 2]], 9), [2, 3, 1, 4]);
        assert_eq!(order(&[&[1, 2, 3], &[4, 3, 2]], 2), [2, 3]);
        assert_eq!(order(&[&[1], &[2], &[]], 9), [1, 2]);
        assert_eq!(order(&[], 9), Vec::<u128>::new());
    }

    #[test]
    fn one_retriever_keeps_its_order_and_a_passage_found_twice_counts_once() {
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
