//! Mean, standard deviation and quantiles of a stream of values in bounded memory.
//!
//! The bins are fixed: 256 to every power of two, on both sides of zero, so that a quantile is known to 1/256 of its own
//! size whether it is a milli-nat or a residual norm of thousands. Values are counted in the order that they come in, one by
//! one, so the sums do not depend on how the stream was cut.

use anyhow::{Result, ensure};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Binary places of the smallest value that is told from zero (2^-20, a micro-nat), and of the largest (2^20).
const LOWEST: i32 = -20;
const HIGHEST: i32 = 20;
/// Bins of a power of two, as a power of two: the leading bits of a float's mantissa.
const BITS: u32 = 8;
/// Bins of one sign.
const SIDE: usize = ((HIGHEST - LOWEST) as usize) << BITS;

/// How values spread over response tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Of the tokens as a whole (divided by their number).
    pub std: f64,
    /// Quantiles, to 1/256 of their size.
    pub p10: f64,
    pub p50: f64,
    pub p90: f64,
}

/// A running count of values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    n: u64,
    /// The first value: sums of differences from it lose nothing where values are large and near each other.
    origin: f64,
    sum: f64,
    squares: f64,
    min: f64,
    max: f64,
    bins: Bins,
}

/// Counts of the bins from the lowest that holds a value to the highest, of all bins from the most negative to the most
/// positive; the one in the middle is zero's.
#[derive(Clone, Debug, Default, PartialEq)]
struct Bins {
    first: usize,
    counts: Vec<u64>,
}

impl Bins {
    fn add(&mut self, bin: usize, count: u64) {
        if self.counts.is_empty() {
            self.first = bin;
        }
        if bin < self.first {
            self.counts.splice(0..0, std::iter::repeat_n(0, self.first - bin));
            self.first = bin;
        }
        let at = bin - self.first;
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += count;
    }

    /// Bins that hold values, lowest first, with their counts.
    fn filled(&self) -> impl Iterator<Item = (usize, u64)> {
        (self.first..).zip(self.counts.iter().copied()).filter(|(_, count)| *count > 0)
    }
}

impl Tally {
    pub fn add(&mut self, x: f64) {
        if self.n == 0 {
            (self.origin, self.min, self.max) = (x, x, x);
        }
        let from_origin = x - self.origin;
        self.n += 1;
        self.sum += from_origin;
        self.squares += from_origin * from_origin;
        self.min = if x < self.min { x } else { self.min };
        self.max = if x > self.max { x } else { self.max };
        self.bins.add(bin(x as f32), 1);
    }

    pub fn extend(&mut self, values: impl IntoIterator<Item = f64>) {
        values.into_iter().for_each(|x| self.add(x));
    }

    /// NaN of no values.
    pub fn mean(&self) -> f64 {
        self.origin + self.sum / self.n as f64
    }

    pub fn spread(&self) -> Spread {
        let n = self.n as f64;
        let variance = self.squares / n - (self.sum / n).powi(2);
        Spread {
            std: variance.max(0.0).sqrt(),
            p10: self.quantile(0.1),
            p50: self.quantile(0.5),
            p90: self.quantile(0.9),
        }
    }

    /// The value below which a share `q` of the values lies, taking a bin's values as evenly spread over it.
    fn quantile(&self, q: f64) -> f64 {
        let rank = q * self.n.saturating_sub(1) as f64;
        let mut below = 0.0;
        for (i, count) in self.bins.filled() {
            let count = count as f64;
            // As far as the next bin's first value, so that no rank falls between two bins.
            if rank < below + count {
                let (from, to) = edges(i);
                let (from, to) = (from.max(self.min), to.min(self.max));
                let value = from + (to - from) * ((rank - below + 0.5) / count).min(1.0);
                return value.max(self.min).min(self.max);
            }
            below += count;
        }
        f64::NAN
    }

    /// Every sum is a number: no value was infinite or NaN.
    pub fn is_finite(&self) -> bool {
        self.sum.is_finite() && self.squares.is_finite()
    }

    /// Fails unless it counts `n` values, as one that was read back must.
    pub fn check(&self, n: u64) -> Result<()> {
        let counted = self.bins.filled().fold(0u64, |sum, (_, count)| sum.saturating_add(count));
        ensure!(self.n == n && counted == n, "a count of {} and {counted} values, expected {n}", self.n);
        ensure!(self.is_finite() && self.min <= self.max, "sums that are no numbers");
        Ok(())
    }
}

/// The bin of a value; what lies beyond the ends belongs to the end.
fn bin(x: f32) -> usize {
    let of = |exponent: i32| ((exponent + 127) as u32) << BITS;
    let place = (x.abs().to_bits() >> (23 - BITS)).clamp(of(LOWEST) - 1, of(HIGHEST) - 1);
    let away = (place + 1 - of(LOWEST)) as usize;
    if x < 0.0 { SIDE - away } else { SIDE + away }
}

/// Both ends of a bin, the lower first.
fn edges(bin: usize) -> (f64, f64) {
    let edge = |away: usize| {
        let (octave, part) = (away >> BITS, away & ((1 << BITS) - 1));
        2f64.powi(LOWEST + octave as i32) * (1.0 + part as f64 / (1 << BITS) as f64)
    };
    match bin.cmp(&SIDE) {
        std::cmp::Ordering::Equal => (-edge(0), edge(0)),
        std::cmp::Ordering::Greater => (edge(bin - SIDE - 1), edge(bin - SIDE)),
        std::cmp::Ordering::Less => (-edge(SIDE - bin), -edge(SIDE - bin - 1)),
    }
}

/// Saved without the empty ones: [bin, count].
impl Serialize for Bins {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.filled())
    }
}

impl<'de> Deserialize<'de> for Bins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bins, D::Error> {
        let mut bins = Bins::default();
        for (bin, count) in Vec::<(usize, u64)>::deserialize(deserializer)? {
            let known = bin <= 2 * SIDE && bins.counts.len() <= bin.saturating_sub(bins.first);
            if !known || count == 0 {
                return Err(serde::de::Error::custom(format!(
                    "bin {bin} with {count} values, of {} bins",
                    2 * SIDE + 1
                )));
            }
            bins.add(bin, count);
        }
        Ok(bins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tally(values: &[f64]) -> Tally {
        let mut tally = Tally::default();
        values.iter().for_each(|x| tally.add(*x));
        tally
    }

    #[test]
    fn numbers_that_can_be_checked_by_hand() {
        let t = tally(&[1.0, 2.0, 3.0, 6.0]);
        assert_eq!(t.mean(), 3.0);
        // Squared distances from 3: 4 + 1 + 0 + 9, a mean of 3.5.
        assert!((t.spread().std - 3.5f64.sqrt()).abs() < 1e-12);
        let same = tally(&[0.7; 9]).spread();
        assert_eq!((same.std, same.p10, same.p90), (0.0, 0.7, 0.7));
        // A spread that is lost where squares of the values themselves are summed.
        let far = tally(&[1e9, 1e9 + 1.0]).spread();
        assert_eq!(far.std, 0.5);
        assert!(tally(&[]).mean().is_nan() && tally(&[]).spread().p50.is_nan());
        assert!(!tally(&[1.0, f64::NAN]).is_finite());
        // Values of one bin spread over what they span of it, not over the whole.
        let near: Vec<f64> = (0..=100).map(|i| 11.47 + 0.0001 * i as f64).collect();
        let s = tally(&near).spread();
        assert!(
            (s.p10 - 11.471).abs() < 2e-4 && (s.p50 - 11.475).abs() < 2e-4 && (s.p90 - 11.479).abs() < 2e-4,
            "{s:?}"
        );
    }

    #[test]
    fn bins_meet_and_the_ends_take_what_lies_beyond() {
        for i in 0..2 * SIDE {
            assert_eq!(edges(i).1, edges(i + 1).0, "bin {i}");
        }
        for (x, expected) in
            [(0.0, SIDE), (-0.0, SIDE), (1e-9, SIDE), (f32::MAX, 2 * SIDE), (f32::INFINITY, 2 * SIDE), (-1e30, 0)]
        {
            assert_eq!(bin(x), expected, "{x}");
        }
        for x in [1e-6, -1e-6, 0.1, 1.0, -1.0, 1.999_999, 3.5, 1000.0, -1000.0f32] {
            let (from, to) = edges(bin(x));
            assert!(
                from <= x as f64 && x as f64 <= to && to - from <= x.abs() as f64 / 256.0 + 1e-12,
                "{x}: {from} {to}"
            );
        }
    }

    proptest! {
        /// Quantiles of any values lie within a bin of the exact ones, and what is saved reads back.
        #[test]
        fn quantiles_are_near_the_exact_ones(mut values in prop::collection::vec(-2000f32..2000.0, 1..300), small in prop::bool::ANY) {
            if small {
                values.iter_mut().for_each(|x| *x *= 1e-5);
            }
            let t = tally(&values.iter().map(|x| *x as f64).collect::<Vec<_>>());
            values.sort_by(f32::total_cmp);
            let s = t.spread();
            for (q, got) in [(0.1, s.p10), (0.5, s.p50), (0.9, s.p90)] {
                // The exact quantile lies between two neighbours.
                let rank = q * (values.len() - 1) as f64;
                let (a, b) = (values[rank.floor() as usize] as f64, values[rank.ceil() as usize] as f64);
                let slack = |x: f64| x.abs() / 256.0 + 2e-6;
                prop_assert!(a - slack(a) <= got && got <= b + slack(b), "{q}: {got} not in {a}..{b}");
            }
            let read: Tally = serde_json::from_str(&serde_json::to_string(&t).unwrap()).unwrap();
            prop_assert!(read == t && read.check(values.len() as u64).is_ok() && read.check(0).is_err());
        }
    }

    #[test]
    fn a_bin_that_does_not_exist_is_refused() {
        let text = serde_json::to_string(&tally(&[1.0])).unwrap();
        for broken in [text.replace("[[", "[[99"), text.replace("[[", "[[20000,1],[")] {
            assert!(serde_json::from_str::<Tally>(&broken).is_err(), "{broken}");
        }
    }
}
