//! Generalised advantage estimation: what a token was worth beside what the critic expected.

use super::advantage::whiten;
use anyhow::{Result, ensure};

/// Advantages of one response's tokens, before whitening, in f64.
///
/// values `[n]`: of the state before each token. The reward arrives with the last token and nothing follows it:
/// `delta_t = r_t + gamma V_{t+1} - V_t` with `V_n = 0`, and `A_t = delta_t + gamma lambda A_{t+1}`.
pub fn gae(values: &[f32], reward: f64, gamma: f64, lambda: f64) -> Vec<f64> {
    let mut advantages = vec![0.0; values.len()];
    let (mut next_value, mut next_advantage, mut token_reward) = (0.0, 0.0, reward);
    for (advantage, value) in advantages.iter_mut().zip(values).rev() {
        let delta = token_reward + gamma * next_value - *value as f64;
        *advantage = delta + gamma * lambda * next_advantage;
        (next_value, next_advantage, token_reward) = (*value as f64, *advantage, 0.0);
    }
    advantages
}

/// What the values of a batch say of its responses, `[responses][tokens]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Estimated {
    /// Whitened over the batch's response tokens, as Reinforce++'s; 0 where there is no reward.
    pub advantages: Vec<Vec<f32>>,
    /// What the values should have been: advantage before whitening, plus value. A response without a reward has none.
    pub returns: Vec<Option<Vec<f32>>>,
}

/// [`gae`] of every response, then whitening: `(A - mean) / sqrt(var + 1e-8)` over all response tokens that have a reward, var
/// with ddof = 1 (verl). values `[responses][tokens]`, rewards `[responses]`; a reward that is not known is `None`. Errors: a
/// reward or a value that is not finite.
pub fn estimate(values: &[&[f32]], rewards: &[Option<f64>], gamma: f64, lambda: f64) -> Result<Estimated> {
    ensure!(values.len() == rewards.len(), "{} responses have values, but {} rewards", values.len(), rewards.len());
    let (mut raw, mut estimated) = (Vec::new(), Estimated::default());
    for (values, reward) in values.iter().zip(rewards) {
        let Some(reward) = reward else {
            estimated.returns.push(None);
            continue;
        };
        ensure!(reward.is_finite(), "a reward of {reward}: rewards must be finite");
        ensure!(
            values.iter().all(|v| v.is_finite()),
            "the critic's values are not finite: lower critic.lr, or raise critic.warmup_steps"
        );
        let advantages = gae(values, *reward, gamma, lambda);
        let returns = advantages.iter().zip(*values).map(|(a, v)| (a + *v as f64) as f32);
        estimated.returns.push(Some(returns.collect()));
        raw.extend(advantages);
    }
    whiten(&mut raw);
    let mut raw = raw.into_iter();
    for (values, returns) in values.iter().zip(&estimated.returns) {
        let advantages = match returns {
            Some(_) => raw.by_ref().take(values.len()).map(|a| a as f32).collect(),
            None => vec![0.0; values.len()],
        };
        estimated.advantages.push(advantages);
    }
    Ok(estimated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(got: &[f64], expected: &[f64]) {
        assert!(got.len() == expected.len() && got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-9), "{got:?}");
    }

    #[test]
    fn by_hand() {
        // delta = [0.9 * 0.25 - 0.5, 0.9 * 0.75 - 0.25, 1 - 0.75] = [-0.275, 0.425, 0.25], and gamma lambda = 0.45:
        // A_2 = 0.25, A_1 = 0.425 + 0.45 * 0.25 = 0.5375, A_0 = -0.275 + 0.45 * 0.5375 = -0.033125.
        close(&gae(&[0.5, 0.25, 0.75], 1.0, 0.9, 0.5), &[-0.033_125, 0.537_5, 0.25]);
        // lambda = 1, gamma = 1: the reward less the value. lambda = 0: the deltas.
        close(&gae(&[0.5, 0.25, 0.75], 1.0, 1.0, 1.0), &[0.5, 0.75, 0.25]);
        close(&gae(&[0.5, 0.25, 0.75], 1.0, 1.0, 0.0), &[-0.25, 0.5, 0.25]);
        assert!(gae(&[], 1.0, 1.0, 1.0).is_empty());
    }

    #[test]
    fn returns_whitening_and_what_has_no_reward() {
        let values: [&[f32]; 3] = [&[0.5, 0.25], &[9.0], &[0.25]];
        let e = estimate(&values, &[Some(1.0), None, Some(0.0)], 1.0, 1.0).unwrap();
        assert_eq!(e.returns, [Some(vec![1.0, 1.0]), None, Some(vec![0.0])]);
        // Raw 0.5, 0.75, -0.25: mean 1/3, variance (1/36 + 25/144 + 49/144) / 2 = 13/48.
        let scale = (13f64 / 48.0 + 1e-8).sqrt();
        let expected = [1.0 / 6.0, 5.0 / 12.0, -7.0 / 12.0].map(|a| (a / scale) as f32);
        assert_eq!(e.advantages, [vec![expected[0], expected[1]], vec![0.0], vec![expected[2]]]);
        assert!(
            estimate(&values, &[None, None, None], 1.0, 1.0).unwrap().advantages.iter().flatten().all(|a| *a == 0.0)
        );
        let error = estimate(&[&[f32::NAN]], &[Some(1.0)], 1.0, 1.0).unwrap_err().to_string();
        assert!(error.contains("critic.lr"), "{error}");
        assert!(estimate(&[&[0.0]], &[Some(f64::INFINITY)], 1.0, 1.0).is_err());
    }

    proptest! {
        /// The definition, written out: `A_t = sum_k (gamma lambda)^k delta_{t+k}`.
        #[test]
        fn the_recursion_is_the_sum(
            values in prop::collection::vec(-3f32..3.0, 1..40), reward in -2f64..2.0, gamma in 0f64..=1.0, lambda in 0f64..=1.0,
        ) {
            let n = values.len();
            let value = |t: usize| if t < n { values[t] as f64 } else { 0.0 };
            let delta = |t: usize| (if t + 1 == n { reward } else { 0.0 }) + gamma * value(t + 1) - value(t);
            let expected: Vec<f64> = (0..n)
                .map(|t| (t..n).map(|u| (gamma * lambda).powi((u - t) as i32) * delta(u)).sum())
                .collect();
            for (a, b) in gae(&values, reward, gamma, lambda).iter().zip(&expected) {
                prop_assert!((a - b).abs() < 1e-9, "{} {}", a, b);
            }
            // With lambda = 1 the values cancel: returns are the discounted reward, whatever the critic says.
            for (t, a) in gae(&values, reward, gamma, 1.0).iter().enumerate() {
                prop_assert!((a + value(t) - gamma.powi((n - 1 - t) as i32) * reward).abs() < 1e-9);
            }
        }

        #[test]
        fn advantages_are_white(responses in prop::collection::vec((prop::collection::vec(-3f32..3.0, 1..9), 0f64..1.0), 2..9)) {
            let values: Vec<&[f32]> = responses.iter().map(|(v, _)| v.as_slice()).collect();
            let rewards: Vec<Option<f64>> = responses.iter().map(|(_, r)| Some(*r)).collect();
            let e = estimate(&values, &rewards, 0.99, 0.9).unwrap();
            let all: Vec<f64> = e.advantages.iter().flatten().map(|a| *a as f64).collect();
            let n = all.len() as f64;
            let mean = all.iter().sum::<f64>() / n;
            let variance = all.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / (n - 1.0);
            prop_assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-3, "{} {}", mean, variance);
        }
    }
}
