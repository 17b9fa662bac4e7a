//! The clipped surrogate and its relatives (GSPO, CISPO), KL penalty and entropy bonus: the loss, and its gradient with
//! respect to every token's log-probability and entropy.

mod config;
mod stats;
mod terms;

pub use config::{Aggregation, KlEstimator, LossConfig, LossKind};
pub use stats::{LossMetrics, LossStats};

use anyhow::{Result, ensure};
use std::ops::Range;
use terms::{PolicyTerm, cispo_term, gspo_terms, kl_term, policy_term};

/// Weight of every token of each response in the loss of a mini-batch, `loss = sum over tokens of weight * token loss`.
/// lengths: response tokens of *all* `S` responses of the mini-batch. Returns `[S]`:
///
/// | aggregation | weight of a token of response i |
/// |---|---|
/// | token-mean | `1 / sum(lengths)` |
/// | seq-mean-token-mean | `1 / (S * lengths[i])` |
/// | seq-mean-token-sum | `1 / S` |
/// | seq-mean-token-sum-norm | `1 / (S * max_new_tokens)` |
///
/// The weights are fixed before the mini-batch is cut into micro-batches, whose losses and gradients then simply add up.
/// The released reference's seq-mean-token-sum-norm lacks the `1 / S`, and divides by the padded length of the batch.
pub fn weights(aggregation: Aggregation, lengths: &[usize], max_new_tokens: usize) -> Vec<f64> {
    // Only a response without tokens, whose weight nothing uses, could divide by zero.
    let inverse = |count: usize| 1.0 / count.max(1) as f64;
    let per_response = inverse(lengths.len());
    let per_token = inverse(lengths.iter().sum());
    let weight = |&length: &usize| match aggregation {
        Aggregation::TokenMean => per_token,
        Aggregation::SeqMeanTokenMean => per_response * inverse(length),
        Aggregation::SeqMeanTokenSum => per_response,
        Aggregation::SeqMeanTokenSumNorm => per_response * inverse(max_new_tokens),
    };
    lengths.iter().map(weight).collect()
}

/// What the loss of a micro-batch is made of: one value a response token, packed, in every slice.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// Under the policy being optimized, as it is now.
    pub log_probs: &'a [f32],
    /// Under the same policy before the first update of this rollout step.
    pub old_log_probs: &'a [f32],
    pub advantages: &'a [f32],
    /// The response's weight ([`weights`]), repeated for each of its tokens.
    pub weights: &'a [f64],
    /// Of the policy being optimized, in nats. Needed for an entropy bonus; otherwise only averaged, where given.
    pub entropies: Option<&'a [f32]>,
    /// Under the frozen reference. Needed for a KL penalty; otherwise only averaged, where given.
    pub ref_log_probs: Option<&'a [f32]>,
    /// Factors on the tokens' policy terms alone, not on KL or entropy: the rollout correction and the selection of tokens.
    pub factors: Option<&'a [f64]>,
    /// The tokens of each response, which must be whole and in order. Needed by `gspo`, whose ratio is the response's.
    pub responses: Option<&'a [Range<usize>]>,
}

/// A micro-batch's share of the mini-batch's loss, and its gradient.
#[derive(Clone, Debug)]
pub struct Surrogate {
    /// `sum of weight * (policy loss + kl_coef * KL - entropy_coef * entropy)`, a share to be added up.
    pub loss: f64,
    /// d loss / d log_prob, `[tokens]`.
    pub d_log_probs: Vec<f32>,
    /// d loss / d entropy, `[tokens]`; `None` without an entropy bonus, so that no backward needs to be run for it.
    pub d_entropies: Option<Vec<f32>>,
    pub stats: LossStats,
}

/// The surrogate of the configured kind, computed in f64.
///
/// A value that is not a number stays one, in the loss and in its token's gradient: the trainer sees it and skips the step.
/// Errors: slices of different lengths, a coefficient other than 0 without what it weighs, `gspo` without whole responses.
pub fn surrogate(config: &LossConfig, tokens: &Tokens) -> Result<Surrogate> {
    let n = tokens.log_probs.len();
    let lengths = [
        ("old_log_probs", Some(tokens.old_log_probs.len())),
        ("advantages", Some(tokens.advantages.len())),
        ("weights", Some(tokens.weights.len())),
        ("entropies", tokens.entropies.map(<[f32]>::len)),
        ("ref_log_probs", tokens.ref_log_probs.map(<[f32]>::len)),
        ("factors", tokens.factors.map(<[f64]>::len)),
    ];
    for (name, length) in lengths {
        ensure!(length.is_none_or(|length| length == n), "{n} log_probs but {} {name}", length.unwrap_or(0));
    }
    ensure!(
        config.kl_coef == 0.0 || tokens.ref_log_probs.is_some(),
        "kl_coef = {} needs the reference's log-probabilities",
        config.kl_coef
    );
    ensure!(
        config.entropy_coef == 0.0 || tokens.entropies.is_some(),
        "entropy_coef = {} needs the entropies",
        config.entropy_coef
    );
    let of_responses = match config.kind {
        LossKind::Gspo => Some(gspo_terms(config, tokens)?),
        LossKind::PpoClip | LossKind::Cispo => None,
    };
    let mut stats = LossStats::default();
    let mut loss = 0.0;
    let mut d_log_probs = Vec::with_capacity(n);
    for i in 0..n {
        let (log_prob, weight) = (tokens.log_probs[i] as f64, tokens.weights[i]);
        let (old_log_prob, advantage) = (tokens.old_log_probs[i] as f64, tokens.advantages[i] as f64);
        let policy = match (&of_responses, config.kind) {
            (Some(terms), _) => terms[i],
            (None, LossKind::Cispo) => cispo_term(config, log_prob, old_log_prob, advantage),
            (None, _) => policy_term(config, log_prob, old_log_prob, advantage),
        };
        stats.add_policy(&policy);
        let PolicyTerm { loss: mut token_loss, mut d_log_prob, .. } = policy;
        if let Some(factors) = tokens.factors {
            token_loss *= factors[i];
            // A response's gradient has its tokens' factors in it already.
            d_log_prob *= if of_responses.is_some() { 1.0 } else { factors[i] };
        }
        if let Some(ref_log_probs) = tokens.ref_log_probs {
            let (kl, d_kl) = kl_term(config.kl_estimator, log_prob, ref_log_probs[i] as f64);
            stats.reference_kl.add(kl);
            if config.kl_coef != 0.0 {
                token_loss += config.kl_coef * kl;
                d_log_prob += config.kl_coef * d_kl;
            }
        }
        if let Some(entropies) = tokens.entropies {
            let entropy = entropies[i] as f64;
            stats.entropy.add(entropy);
            if config.entropy_coef != 0.0 {
                token_loss -= config.entropy_coef * entropy;
            }
        }
        loss += weight * token_loss;
        d_log_probs.push((weight * d_log_prob) as f32);
    }
    let d_entropies = (config.entropy_coef != 0.0)
        .then(|| tokens.weights.iter().map(|weight| (-config.entropy_coef * weight) as f32).collect());
    Ok(Surrogate { loss, d_log_probs, d_entropies, stats })
}

#[cfg(test)]
mod tests;
