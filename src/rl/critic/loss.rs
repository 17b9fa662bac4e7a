//! The clipped value loss, and what is watched of the critic.

use serde::{Deserialize, Serialize};

/// Loss of one value and its derivative: `max((V - R)^2, (clip(V) - R)^2) / 2` with `V` clipped to within `clip` of the value
/// that it had before the step (PPO; verl). The gradient ends where the clipped term is the larger one.
pub fn value_term(value: f64, old_value: f64, target: f64, clip: f64) -> ValueTerm {
    let clipped = value.clamp(old_value - clip, old_value + clip);
    let (error, clipped_error) = (value - target, clipped - target);
    if clipped_error.powi(2) > error.powi(2) {
        return ValueTerm { loss: 0.5 * clipped_error.powi(2), d_value: 0.0, clipped: true };
    }
    ValueTerm { loss: 0.5 * error.powi(2), d_value: error, clipped: false }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueTerm {
    pub loss: f64,
    pub d_value: f64,
    pub clipped: bool,
}

/// Sums over the mini-batches of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ValueStats {
    pub tokens: usize,
    pub clipped: usize,
}

/// One step of the critic, under `critic` in `metrics.jsonl`. Means are over response tokens with a reward.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CriticMetrics {
    /// True while the critic learns alone.
    pub warming_up: bool,
    /// Mean over the step's mini-batches of the value loss.
    pub value_loss: f64,
    /// Share of the values whose gradient stopped at `value_clip`.
    pub value_clip_fraction: f64,
    /// Before the step's first update.
    pub value_mean: f64,
    pub return_mean: f64,
    /// `1 - Var(return - value) / Var(return)` with the values from before the step's first update: 1 is a perfect critic, 0
    /// one that knows no more than the mean. Absent where all returns are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explained_variance: Option<f64>,
    /// Mean over the step's mini-batches of the gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step's last mini-batch.
    pub lr: f64,
    pub optimizer_steps: u64,
    pub skipped_steps: u64,
}

/// `1 - Var(target - value) / Var(target)`; none where the targets do not vary.
pub fn explained_variance(pairs: &[(f64, f64)]) -> Option<f64> {
    let variance = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let n = pairs.len() as f64;
        let mean = pairs.iter().map(of).sum::<f64>() / n;
        pairs.iter().map(|pair| (of(pair) - mean).powi(2)).sum::<f64>() / n
    };
    let all_equal = pairs.windows(2).all(|two| two[0].1 == two[1].1);
    (!all_equal && !pairs.is_empty())
        .then(|| 1.0 - variance(&|(value, target)| target - value) / variance(&|pair| pair.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        let term = |value, old, target| value_term(value, old, target, 0.5);
        // Within the clip: (1.25 - 1)^2 / 2.
        assert_eq!(term(1.25, 1.0, 1.0), ValueTerm { loss: 0.03125, d_value: 0.25, clipped: false });
        // Moved from 0 to 0.8 towards the target 1: clipped at 0.5, whose error is the larger one, and no gradient is left.
        assert_eq!(term(0.8, 0.0, 1.0), ValueTerm { loss: 0.125, d_value: 0.0, clipped: true });
        // Moved away from the target: the error itself is the larger one, and the gradient brings it back.
        assert_eq!(term(-2.0, 0.0, 1.0), ValueTerm { loss: 4.5, d_value: -3.0, clipped: false });
        // At the border itself both are equal: the gradient stays, as torch.max gives each one half of it with the same sign.
        assert_eq!(term(0.5, 0.0, 1.0), ValueTerm { loss: 0.125, d_value: -0.5, clipped: false });
    }

    #[test]
    fn explained_variance_of_known_critics() {
        let of = |values: [f64; 4]| {
            explained_variance(&std::array::from_fn::<_, 4, _>(|i| (values[i], [0.0, 1.0, 1.0, 0.0][i])))
        };
        assert_eq!(of([0.0, 1.0, 1.0, 0.0]), Some(1.0));
        assert_eq!(of([0.7; 4]), Some(0.0));
        assert_eq!(of([1.0, 0.0, 0.0, 1.0]), Some(-3.0));
        assert_eq!(explained_variance(&[(0.3, 1.0), (0.4, 1.0)]), None);
        assert_eq!(explained_variance(&[]), None);
    }

    proptest! {
        #[test]
        fn the_derivative_is_the_slope(value in -2f64..2.0, old in -2f64..2.0, target in -2f64..2.0, clip in 0.05f64..1.0) {
            let at = |v| value_term(v, old, target, clip);
            let eps = 1e-6;
            // Not across a kink, where the loss has two slopes.
            prop_assume!(at(value - 2.0 * eps).clipped == at(value + 2.0 * eps).clipped);
            let slope = (at(value + eps).loss - at(value - eps).loss) / (2.0 * eps);
            prop_assert!((slope - at(value).d_value).abs() < 1e-5, "{} {}", slope, at(value).d_value);
        }
    }
}
