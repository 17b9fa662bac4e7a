//! One token's part of the loss, by kind: its value, its derivative, and what is watched of it.

use super::{KlEstimator, LossConfig, Tokens};
use anyhow::{Context, Result, ensure};

/// Bound on every log-ratio before it is exponentiated, and on the argument of `k3` (the reference's clamps).
pub(super) const LOG_RATIO_BOUND: f64 = 20.0;
/// Bound on the value of `k3` (the reference's clamp): reached at `d = 2.6` and `d = -11`, where its gradient ends.
pub(super) const K3_BOUND: f64 = 10.0;

/// Which bound a token's policy loss stands at; its gradient is zero at any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clip {
    None,
    Low,
    High,
    Dual,
}

/// A token's policy loss, and what is watched of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct PolicyTerm {
    pub loss: f64,
    pub d_log_prob: f64,
    /// Of the token, within +-20.
    pub log_ratio: f64,
    /// The ratio that is clipped: the token's, or its response's.
    pub ratio: f64,
    pub clip: Clip,
}

/// `max(-A r, -A clip(r))`, at most `-A c` where `A < 0`. Derivatives at the bounds themselves are the inner ones, as
/// those of PyTorch's `clamp`.
pub(super) fn policy_term(config: &LossConfig, log_prob: f64, old_log_prob: f64, advantage: f64) -> PolicyTerm {
    clipped(config, log_prob - old_log_prob, advantage, config.dual_clip)
}

fn clipped(config: &LossConfig, unbounded: f64, advantage: f64, dual_clip: Option<f64>) -> PolicyTerm {
    let log_ratio = unbounded.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND);
    let ratio = log_ratio.exp();
    // The larger of the two losses, with A's sign known: comparing instead of f64::max, which would drop a NaN.
    let (bound, clip) = if advantage > 0.0 && ratio > 1.0 + config.clip_high {
        (1.0 + config.clip_high, Clip::High)
    } else if advantage < 0.0 && ratio < 1.0 - config.clip_low {
        (1.0 - config.clip_low, Clip::Low)
    } else {
        match dual_clip {
            Some(c) if advantage < 0.0 && ratio > c => (c, Clip::Dual),
            _ => (ratio, Clip::None),
        }
    };
    let constant = clip != Clip::None || unbounded.abs() > LOG_RATIO_BOUND;
    let d_log_prob = if constant { 0.0 } else { -advantage * ratio };
    PolicyTerm { loss: -advantage * bound, d_log_prob, log_ratio, ratio, clip }
}

/// `-c A log_prob` with the importance weight `c = clip(r, 1 - clip_low, 1 + clip_high)`, which is a constant to the gradient.
/// Every token has one; `clip` says which weights were bounded, whatever the sign of `A`.
pub(super) fn cispo_term(config: &LossConfig, log_prob: f64, old_log_prob: f64, advantage: f64) -> PolicyTerm {
    let log_ratio = (log_prob - old_log_prob).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND);
    let ratio = log_ratio.exp();
    let (low, high) = (1.0 - config.clip_low, 1.0 + config.clip_high);
    let clip = match ratio {
        r if r < low => Clip::Low,
        r if r > high => Clip::High,
        _ => Clip::None,
    };
    let d_log_prob = -ratio.clamp(low, high) * advantage;
    PolicyTerm { loss: d_log_prob * log_prob, d_log_prob, log_ratio, ratio, clip }
}

/// Terms of all tokens under the ratio of their response, `s = exp(1/n sum log r)`. Since `s` is every token's, a token's
/// derivative is `1/n` of that of the whole response: its weight and its tokens' factors are in it, so that
/// `weight_u d_u = 1/n sum_t weight_t factor_t d_t`.
pub(super) fn gspo_terms(config: &LossConfig, tokens: &Tokens) -> Result<Vec<PolicyTerm>> {
    let responses = tokens.responses.context("gspo needs the whole responses: its ratio is that of a response")?;
    let mut terms = Vec::with_capacity(tokens.log_probs.len());
    for range in responses {
        ensure!(
            range.start == terms.len() && range.end <= tokens.log_probs.len(),
            "response {range:?} does not follow {} tokens of {}",
            terms.len(),
            tokens.log_probs.len()
        );
        let log_ratio = |i: usize| tokens.log_probs[i] as f64 - tokens.old_log_probs[i] as f64;
        let n = range.len().max(1) as f64;
        let mean = range.clone().map(log_ratio).sum::<f64>() / n;
        let (mut derivative, mut weights) = (0.0, 0.0);
        for i in range.clone() {
            let term = clipped(config, mean, tokens.advantages[i] as f64, None);
            derivative += tokens.weights[i] * tokens.factors.map_or(1.0, |f| f[i]) * term.d_log_prob;
            weights += tokens.weights[i];
            let log_ratio = log_ratio(i).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND);
            terms.push(PolicyTerm { log_ratio, ..term });
        }
        // Tokens of a response weigh the same, so the mean weight is each one's.
        let shared = if weights == 0.0 { 0.0 } else { derivative / weights };
        terms[range.clone()].iter_mut().for_each(|term| term.d_log_prob = shared);
    }
    ensure!(
        terms.len() == tokens.log_probs.len(),
        "{} of {} tokens are in a response",
        terms.len(),
        tokens.log_probs.len()
    );
    Ok(terms)
}

/// Estimate of KL(policy || reference), and its derivative with respect to `log_prob`: that of the estimate as it is
/// computed, clamps included.
pub(super) fn kl_term(estimator: KlEstimator, log_prob: f64, ref_log_prob: f64) -> (f64, f64) {
    let d = ref_log_prob - log_prob;
    match estimator {
        KlEstimator::K1 => (-d, 1.0),
        KlEstimator::K2 => (0.5 * d * d, -d),
        KlEstimator::K3 => {
            let bounded = d.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND);
            // exp_m1: e^d - 1 - d cancels to nothing for the small d of a policy that has hardly moved.
            let kl = bounded.exp_m1() - bounded;
            let constant = d.abs() > LOG_RATIO_BOUND || kl > K3_BOUND;
            // clamp, not f64::min: a NaN stays one.
            (kl.clamp(-K3_BOUND, K3_BOUND), if constant { 0.0 } else { -bounded.exp_m1() })
        }
    }
}
