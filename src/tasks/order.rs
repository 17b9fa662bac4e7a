//! The order of the data: a pure function of the seed and the position, so that a resumed run goes on where it stood.

use super::seed::{derive_seed, mix};

/// Index into `n` items at `position` (from 0, over all epochs): every epoch visits each item once, in an order of its own.
///
/// A four-round Feistel network on the smallest even number of bits that holds `n`, walked until it lands below `n`:
/// a permutation without a table. `n` must not be 0.
pub fn index_at(seed: u64, n: usize, position: u64) -> usize {
    let n = n.max(1) as u64;
    let (epoch, mut x) = (position / n, position % n);
    let half = (64 - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let keys: [u64; 4] = std::array::from_fn(|round| derive_seed(seed, epoch, n, round as u64));
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for key in keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        x = left << half | right;
        if x < n {
            return x as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_epoch_visits_each_item_once(n in 1usize..300, seed in any::<u64>(), epoch in 0u64..5) {
            let mut seen: Vec<usize> = (0..n as u64).map(|i| index_at(seed, n, epoch * n as u64 + i)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let order = |seed, epoch: u64| -> Vec<usize> { (0..50).map(|i| index_at(seed, 50, epoch * 50 + i)).collect() };
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        assert_eq!(order(1, 3), order(1, 3));
    }
}
