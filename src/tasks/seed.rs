//! Randomness is derived, never drawn from the surroundings: a seed is a function of where it is used.

/// SplitMix64's output function: a bijection of u64 in which every input bit changes about half of the output's.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The seed of one sample: a pure function of the run's seed, the step, the problem and the sample's number.
pub fn derive_seed(run_seed: u64, step: u64, problem: u64, sample: u64) -> u64 {
    [run_seed, step, problem, sample]
        .iter()
        .fold(0x6275_706F, |state: u64, part| mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15) ^ mix(*part)))
}

/// FNV-1a, then [`mix`]: a hash that is the same on every machine and in every version.
pub fn stable_hash(bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ *byte as u64).wrapping_mul(0x0000_0100_0000_01B3);
    mix(bytes.iter().fold(0xCBF2_9CE4_8422_2325, fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_matters_and_their_order_too() {
        let seeds = [
            derive_seed(1, 2, 3, 4),
            derive_seed(2, 2, 3, 4),
            derive_seed(1, 3, 3, 4),
            derive_seed(1, 2, 4, 4),
            derive_seed(1, 2, 3, 5),
            derive_seed(2, 1, 3, 4),
        ];
        for (i, a) in seeds.iter().enumerate() {
            assert!(seeds[i + 1..].iter().all(|b| a != b));
        }
        assert_eq!(derive_seed(1, 2, 3, 4), derive_seed(1, 2, 3, 4));
        assert_ne!(stable_hash(b"12+7="), stable_hash(b"12+8="));
    }
}
