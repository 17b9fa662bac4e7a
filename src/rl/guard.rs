//! When to end the internal phase before its last step. Too long a phase destroys the model: on Qwen3-4B the paper's mean
//! score goes from 58.5 after 30 internal steps to 42.1 after 50 and 9.9 after 70, and the perplexity of the final policy
//! rises, and the KL between the optimized layer's policy and later ones gets worse (paper, table 2, figures 5 and 7).
//!
//! The rule is a pure function of the values seen so far, one a probe, the first from step 0. Every probe looks at the same
//! tokens, so a value moves with the weights only, and needs no smoothing.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// What the guard looks at; for both, lower is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantity {
    /// Of the final policy on the held-out references.
    #[default]
    Perplexity,
    /// Mean over the layers above the optimized one, and the final policy, of their divergence from it, in nats.
    Kl,
}

impl Quantity {
    /// A best value below this counts as this much. A divergence may begin at nearly nothing, where doubling it means nothing.
    fn floor(self) -> f64 {
        match self {
            Quantity::Perplexity => 1.0,
            Quantity::Kl => 0.05,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Quantity::Perplexity => "perplexity",
            Quantity::Kl => "kl",
        }
    }
}

/// The guard's settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// What it looks at.
    pub quantity: Quantity,
    /// How far above the lowest value so far a value is worse, as a share of that lowest value.
    pub threshold: f64,
    /// Probes in a row that must be worse.
    pub patience: usize,
}

impl Default for GuardConfig {
    fn default() -> Self {
        GuardConfig { quantity: Quantity::Perplexity, threshold: 0.1, patience: 1 }
    }
}

/// What the guard makes of a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    pub quantity: Quantity,
    pub value: f64,
    /// The lowest value of the probes before this one; at step 0 the value itself.
    pub baseline: f64,
    /// Above this, `value` is worse: the baseline and its share more. In the unit of `value`.
    pub threshold: f64,
    /// Probes in a row, this one included, that were worse.
    pub worse: usize,
    /// Whether the internal phase ends here.
    pub stop: bool,
    pub reason: Option<String>,
}

impl GuardConfig {
    /// Messages name the key; the caller names its section.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.threshold > 0.0 && self.threshold.is_finite(),
            "threshold = {}: expected a positive share of the lowest value so far, such as 0.1",
            self.threshold
        );
        ensure!(self.patience > 0, "patience = 0: expected at least 1 probe");
        Ok(())
    }

    /// Judges the last of `values`, those of all probes since step 0. None without any value.
    ///
    /// A value is worse if it lies more than the threshold above the lowest before it, or is no finite number; the phase ends
    /// with the first probe that is the `patience`-th worse one in a row. The lowest value, not the last and not the first:
    /// a slow rise then adds up, and what the phase has already gained counts as its to lose.
    pub fn judge(&self, values: &[f64]) -> Option<Judgement> {
        let value = *values.last()?;
        let (mut best, mut worse) = (f64::INFINITY, 0);
        let (mut baseline, mut threshold) = (value, self.limit(value));
        for (i, value) in values.iter().enumerate() {
            if i > 0 {
                (baseline, threshold) = (best, self.limit(best));
                // Not `>`: a value that is not a number is worse as well.
                worse = if *value <= threshold && value.is_finite() { 0 } else { worse + 1 };
            }
            best = best.min(*value);
        }
        let stop = worse >= self.patience;
        let name = self.quantity.name();
        let times = if worse == 1 { String::new() } else { format!(", the {worse}th probe in a row above its limit") };
        let reason = stop.then(|| match value.is_finite() {
            true => format!(
                "the {name} is {value:.4}, {:.0} % above its best of {baseline:.4}{times}",
                100.0 * (value / baseline - 1.0)
            ),
            false => format!("the {name} is no finite number{times}"),
        });
        Some(Judgement { quantity: self.quantity, value, baseline, threshold, worse, stop, reason })
    }

    fn limit(&self, best: f64) -> f64 {
        let best = best.max(self.quantity.floor());
        best * (1.0 + self.threshold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(quantity: Quantity, threshold: f64, patience: usize) -> GuardConfig {
        let config = GuardConfig { quantity, threshold, patience };
        config.check().unwrap();
        config
    }

    /// The probe, from 0, at which the phase ends.
    fn stops_at(config: GuardConfig, values: &[f64]) -> Option<usize> {
        (1..=values.len()).find(|n| config.judge(&values[..*n]).unwrap().stop).map(|n| n - 1)
    }

    #[test]
    fn the_phase_ends_when_the_quantity_turns_for_the_worse() {
        let g = guard(Quantity::Perplexity, 0.1, 1);
        // Falling, and then 1.99 against a limit of 1.8 * 1.1 = 1.98.
        assert_eq!(stops_at(g, &[2.0, 1.9, 1.8, 1.97, 1.98]), None);
        assert_eq!(stops_at(g, &[2.0, 1.9, 1.8, 1.99]), Some(3));
        // A slow rise adds up: no step is above 5 %, the third is 12 % above the start.
        assert_eq!(stops_at(g, &[2.0, 2.08, 2.16, 2.24]), Some(3));
        // A start that is never met again is worse from the first probe on.
        assert_eq!(stops_at(g, &[2.0, 2.3, 2.3]), Some(1));
        assert_eq!((stops_at(g, &[2.0]), g.judge(&[])), (None, None));
    }

    #[test]
    fn patience_counts_probes_in_a_row() {
        let values = [2.0, 2.3, 2.0, 2.3, 2.3, 2.0, 2.3, 2.3, 2.3];
        for (patience, at) in [(1, Some(1)), (2, Some(4)), (3, Some(8)), (4, None)] {
            assert_eq!(stops_at(guard(Quantity::Perplexity, 0.1, patience), &values), at, "patience {patience}");
        }
    }

    #[test]
    fn small_divergences_are_measured_against_the_floor() {
        let g = guard(Quantity::Kl, 0.5, 1);
        // From 0.001 to 0.06 nats is nothing yet; the limit is 0.05 * 1.5.
        assert_eq!(stops_at(g, &[0.001, 0.01, 0.06, 0.075]), None);
        assert_eq!(stops_at(g, &[0.001, 0.01, 0.06, 0.08]), Some(3));
        assert_eq!(stops_at(g, &[4.0, 2.0, 2.9, 3.1]), Some(3));
    }

    #[test]
    fn numbers_that_are_none_are_worse() {
        for bad in [f64::NAN, f64::INFINITY] {
            let judgement = guard(Quantity::Perplexity, 0.1, 1).judge(&[2.0, 1.5, bad]).unwrap();
            assert!(judgement.stop && judgement.baseline == 1.5, "{judgement:?}");
            assert!(judgement.reason.unwrap().contains("no finite number"));
            // One that was none before is no best: the next finite one begins.
            assert_eq!(stops_at(guard(Quantity::Perplexity, 0.1, 2), &[2.0, bad, 1.9]), None);
            assert_eq!(stops_at(guard(Quantity::Perplexity, 0.1, 1), &[bad, 3.0, 2.9]), None);
        }
    }

    #[test]
    fn a_judgement_says_what_it_compared() {
        let g = guard(Quantity::Perplexity, 0.25, 2);
        let first = g.judge(&[2.0]).unwrap();
        assert_eq!((first.value, first.baseline, first.threshold, first.worse, first.stop), (2.0, 2.0, 2.5, 0, false));
        let worse = g.judge(&[2.0, 1.6, 2.4]).unwrap();
        assert_eq!((worse.baseline, worse.threshold, worse.worse, worse.stop), (1.6, 2.0, 1, false));
        let last = g.judge(&[2.0, 1.6, 2.4, 3.2]).unwrap();
        assert!(
            last.stop && last.reason.as_deref().is_some_and(|r| r.contains("100 % above its best of 1.6")),
            "{last:?}"
        );
        let json = serde_json::to_value(&first).unwrap();
        assert_eq!(
            (&json["quantity"], &json["stop"], &json["reason"]),
            (&"perplexity".into(), &false.into(), &().into())
        );
    }

    #[test]
    fn settings_without_sense_are_refused_by_name() {
        for (key, config) in [
            ("threshold", GuardConfig { threshold: 0.0, ..Default::default() }),
            ("threshold", GuardConfig { threshold: f64::NAN, ..Default::default() }),
            ("patience", GuardConfig { patience: 0, ..Default::default() }),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key} = ")), "{error}");
        }
        assert!(toml::from_str::<GuardConfig>("quantity = \"loss\"").unwrap_err().to_string().contains("perplexity"));
    }
}
