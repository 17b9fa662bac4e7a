//! Tokens of high entropy: where a response could have gone another way, and the policy loss has something to decide.
//!
//! "Beyond the 80/20 rule" trains only on the top share of tokens by entropy. The share is taken of a whole mini-batch, before
//! it is cut into micro-batches, so the entropies must be known before its forward: they are those of the optimized policy
//! before the step's first update, from the pass that scores the old log-probs. Every epoch selects the same tokens.

use super::update::LogProbs;
use std::ops::Range;

/// For every token of `entropies[range]` (nats, `[group][response][token]`) whether it is among the `ceil(share * n)` of the
/// highest entropy. Of equal entropies the earlier token goes first, so the number is exact.
pub fn top_entropy(entropies: &LogProbs, range: Range<usize>, share: f64) -> Vec<Vec<Vec<bool>>> {
    let groups = &entropies[range];
    let flat: Vec<f32> = groups.iter().flatten().flatten().copied().collect();
    let wanted = ((share * flat.len() as f64).ceil() as usize).min(flat.len());
    let mut order: Vec<usize> = (0..flat.len()).collect();
    let highest_first = |a: &usize, b: &usize| flat[*b].total_cmp(&flat[*a]).then(a.cmp(b));
    if wanted > 0 && wanted < order.len() {
        order.select_nth_unstable_by(wanted - 1, highest_first);
    }
    let mut chosen = vec![false; flat.len()];
    order[..wanted].iter().for_each(|i| chosen[*i] = true);
    let mut chosen = chosen.into_iter();
    let response =
        |tokens: &Vec<f32>, chosen: &mut std::vec::IntoIter<bool>| chosen.by_ref().take(tokens.len()).collect();
    groups.iter().map(|g| g.iter().map(|r| response(r, &mut chosen)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_highest_of_the_whole_mini_batch_and_the_first_of_equals() {
        let entropies = vec![vec![vec![9.0]], vec![vec![0.1, 2.0], vec![1.0]], vec![vec![2.0, 0.0]]];
        // The first group belongs to another mini-batch. 2 of 5 tokens, then 3: the tie at 2.0, and 1.0.
        assert_eq!(top_entropy(&entropies, 1..3, 0.4), [vec![vec![false, true], vec![false]], vec![vec![true, false]]]);
        assert_eq!(top_entropy(&entropies, 1..3, 0.41), [vec![vec![false, true], vec![true]], vec![vec![true, false]]]);
        assert_eq!(
            top_entropy(&entropies, 1..3, 0.2),
            [vec![vec![false, true], vec![false]], vec![vec![false, false]]]
        );
    }

    proptest! {
        #[test]
        fn exactly_the_share_is_chosen_and_nothing_left_out_is_higher(
            tokens in prop::collection::vec(prop::collection::vec(0u8..5, 0..6), 1..6), share in 0.01f64..=1.0,
        ) {
            let entropies: LogProbs = vec![tokens.iter().map(|r| r.iter().map(|h| *h as f32).collect()).collect()];
            let chosen = top_entropy(&entropies, 0..1, share);
            let pairs = || entropies[0].iter().flatten().zip(chosen[0].iter().flatten());
            let n = pairs().count();
            prop_assert_eq!(pairs().filter(|(_, c)| **c).count(), (share * n as f64).ceil() as usize);
            let lowest_in = pairs().filter(|(_, c)| **c).map(|(h, _)| *h).fold(f32::INFINITY, f32::min);
            prop_assert!(pairs().filter(|(_, c)| !**c).all(|(h, _)| *h <= lowest_in));
        }
    }
}
