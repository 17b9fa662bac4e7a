//! Running sums of an analysis: what is counted for every token, how it is saved, and the means that come of it.

use super::Reading;
use crate::analysis::result::{
    AgainstFinal, Analysis, Changes, Cosines, Decision, Divergence, Entropies, LayerFlow, Spreads, VERSION,
};
use crate::analysis::stages::{RULE, boundary_layer, default_threshold, stage_spans};
use crate::analysis::tally::Tally;
use crate::compute::backend::{BranchComparison, Branches};
use crate::compute::cpu::gram::{cosine, pairs};
use crate::model::LayerIndex;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// Sums over all tokens seen so far. Saved and read back they are the same, bit for bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    pub(super) samples: usize,
    tokens: u64,
    pub(super) layers: Vec<LayerSums>,
    /// Entropy of `H^0`, the embeddings themselves.
    embedding: Tally,
    last: Tally,
    /// Cosines of layers i and j, `j <= i`.
    similarity: Vec<f64>,
    never_decided: u64,
}

/// Sums of one layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct LayerSums {
    attn_in: Tally,
    attn: Tally,
    ffn_in: Tally,
    ffn: Tally,
    resid_post: Tally,
    change_attn: Tally,
    change_ffn: Tally,
    change_layer: Tally,
    pub(super) cos_attn: Tally,
    pub(super) cos_ffn: Tally,
    norm: Tally,
    kl_to: f64,
    kl_from: f64,
    log_prob: f64,
    agreed: u64,
    decided: u64,
    chosen_kl_to: f64,
    chosen_kl_from: f64,
}

impl LayerSums {
    /// Entropies of one token.
    fn add_modules(&mut self, attn_in: f64, attn: f64, ffn_in: f64, ffn: f64) {
        self.attn_in.add(attn_in);
        self.attn.add(attn);
        self.ffn_in.add(ffn_in);
        self.ffn.add(ffn);
        self.change_attn.add(attn - attn_in);
        self.change_ffn.add(ffn - ffn_in);
    }

    fn tallies(&self) -> [(&'static str, &Tally); 11] {
        [
            ("entropy of attn_in", &self.attn_in),
            ("entropy of attn", &self.attn),
            ("entropy of ffn_in", &self.ffn_in),
            ("entropy of ffn", &self.ffn),
            ("entropy of resid_post", &self.resid_post),
            ("entropy change of attn", &self.change_attn),
            ("entropy change of ffn", &self.change_ffn),
            ("entropy change of the layer", &self.change_layer),
            ("residual cosine of attn", &self.cos_attn),
            ("residual cosine of ffn", &self.cos_ffn),
            ("residual norm", &self.norm),
        ]
    }

    fn totals(&self) -> [f64; 5] {
        [self.kl_to, self.kl_from, self.log_prob, self.chosen_kl_to, self.chosen_kl_from]
    }
}

impl Sums {
    pub(super) fn new(layers: usize) -> Sums {
        Sums {
            samples: 0,
            tokens: 0,
            layers: vec![LayerSums::default(); layers],
            embedding: Tally::default(),
            last: Tally::default(),
            similarity: vec![0.0; pairs(layers).count()],
            never_decided: 0,
        }
    }

    /// Samples counted so far.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Response tokens counted so far.
    pub fn tokens(&self) -> usize {
        self.tokens as usize
    }

    /// One token's products of its layer states.
    pub(super) fn add_products(&mut self, products: &[f64]) {
        let square = |layer: usize| products[layer * (layer + 3) / 2];
        for (((i, j), sum), product) in pairs(self.layers.len()).zip(&mut self.similarity).zip(products) {
            *sum += cosine(*product, square(i), square(j));
            if i == j {
                self.layers[i].norm.add(product.sqrt());
            }
        }
    }

    /// Some tokens' statistics: the first reference is the final state, the second, if any, the chosen layer's. `of_inputs`: the
    /// entropies of what each layer's attention reads, then of what its FFN reads, `[2, R]`.
    pub(super) fn add_tokens(&mut self, of_inputs: &[Vec<f32>], comparison: &BranchComparison) {
        let (last, of) = (self.layers.len(), Branches { layers: self.layers.len() });
        let c = &comparison.streams;
        let tokens = c.entropy.len() / (last + 1);
        for token in 0..tokens {
            let at = token * (last + 1);
            let entropy = |place: usize| comparison.entropy[token * of.places() + place] as f64;
            let mut below = entropy(of.embedding());
            self.embedding.add(below);
            self.last.add(c.entropy[at + last] as f64);
            for ((layer, sums), inputs) in self.layers.iter_mut().enumerate().zip(of_inputs) {
                let [attn_in, ffn_in] = [0, tokens].map(|from| inputs[from + token] as f64);
                sums.add_modules(attn_in, entropy(of.attn(layer)), ffn_in, entropy(of.ffn(layer)));
            }
            for (layer, sums) in self.layers.iter_mut().enumerate() {
                let row = at + layer;
                let entropy = c.entropy[row] as f64;
                sums.resid_post.add(entropy);
                sums.change_layer.add(entropy - below);
                below = entropy;
                sums.log_prob += c.log_probs[row] as f64;
                sums.agreed += (c.top[row] == c.top[at + last]) as u64;
                if let Some(of_final) = c.divergences.first() {
                    sums.kl_to += of_final.to[row] as f64;
                    sums.kl_from += of_final.from[row] as f64;
                }
                if let Some(of_chosen) = c.divergences.get(1) {
                    sums.chosen_kl_to += of_chosen.to[row] as f64;
                    sums.chosen_kl_from += of_chosen.from[row] as f64;
                }
            }
            match decided_at(&c.top[at..at + last], c.top[at + last]) {
                Some(layer) => self.layers[layer].decided += 1,
                None => self.never_decided += 1,
            }
        }
        self.tokens += tokens as u64;
    }

    /// Fails, and says where, if anything that was counted is no number.
    pub(super) fn check_finite(&self) -> Result<()> {
        const WHY: &str = "the model's weights or its states are broken";
        let layers = || LayerIndex::all(self.layers.len()).zip(&self.layers);
        for (layer, sums) in layers() {
            for (what, tally) in sums.tallies() {
                ensure!(tally.is_finite(), "the {what} of layer {layer} is no finite number: {WHY}");
            }
        }
        // A layer that is broken breaks every divergence, so these say less.
        for (layer, sums) in layers() {
            let finite = sums.totals().iter().all(|total| total.is_finite());
            ensure!(finite, "a divergence or log-prob of layer {layer} is no finite number: {WHY}");
        }
        let ends = self.embedding.is_finite() && self.last.is_finite();
        ensure!(ends, "the entropy of the embedding or of the final policy is no finite number: {WHY}");
        Ok(())
    }

    /// Fails unless these are sums for a model of `layers` layers, as they must be when they were read back.
    pub(super) fn check(&self, layers: usize) -> Result<()> {
        ensure!(self.layers.len() == layers, "sums of {} layers, and the model has {layers}", self.layers.len());
        let expected = pairs(layers).count();
        ensure!(self.similarity.len() == expected, "{} similarities, expected {expected}", self.similarity.len());
        self.check_finite()?;
        let decided = self.layers.iter().fold(self.never_decided, |sum, l| sum.saturating_add(l.decided));
        ensure!(decided == self.tokens, "{decided} tokens decided or never, of {}", self.tokens);
        for tally in self.layers.iter().flat_map(LayerSums::tallies).map(|(_, tally)| tally) {
            tally.check(self.tokens)?;
        }
        self.embedding.check(self.tokens)?;
        self.last.check(self.tokens)
    }

    pub(super) fn finish(
        &self,
        vocab_size: usize,
        name: &str,
        reading: Reading,
        threshold: Option<f64>,
    ) -> Result<Analysis> {
        ensure!(self.tokens > 0, "nothing was analysed: no sample had response tokens");
        let mut below = &self.embedding;
        let mut per_layer = Vec::with_capacity(self.layers.len());
        for (layer, sums) in LayerIndex::all(self.layers.len()).zip(&self.layers) {
            per_layer.push(self.layer(layer, sums, below, reading));
            below = &sums.resid_post;
        }
        let changes: Vec<f64> = per_layer.iter().map(|l| l.entropy_change.ffn).collect();
        let threshold = threshold.unwrap_or_else(|| default_threshold(vocab_size));
        Ok(Analysis {
            version: VERSION,
            model: name.to_string(),
            lens: reading.lens,
            layers: self.layers.len(),
            tokens: self.tokens(),
            samples: self.samples,
            vocab_size,
            final_entropy: self.last.mean(),
            final_spread: self.last.spread(),
            boundary_layer: boundary_layer(&changes).map(LayerIndex::one_based),
            stages: stage_spans(&changes, threshold).context("the stages cannot be read")?,
            stage_rule: RULE.to_string(),
            stage_threshold: threshold,
            chosen_layer: reading.chosen.map(LayerIndex::one_based),
            similarity: self.similarities(),
            decision: self.decision(),
            per_layer,
        })
    }

    fn layer(&self, layer: LayerIndex, s: &LayerSums, below: &Tally, reading: Reading) -> LayerFlow {
        let n = self.tokens as f64;
        let states = [below, &s.attn_in, &s.attn, &s.ffn_in, &s.ffn, &s.resid_post];
        let changes = [&s.change_layer, &s.change_attn, &s.change_ffn];
        let entropy = entropies(states.map(Tally::mean));
        LayerFlow {
            layer: layer.one_based(),
            entropy,
            entropy_change: Changes {
                layer: entropy.resid_post - entropy.resid_pre,
                attn: entropy.attn - entropy.attn_in,
                ffn: entropy.ffn - entropy.ffn_in,
            },
            residual_cosine: Cosines { attn: s.cos_attn.mean(), ffn: s.cos_ffn.mean() },
            residual_norm: s.norm.mean(),
            spread: {
                let [layer, attn, ffn] = changes.map(Tally::spread);
                Spreads {
                    entropy: entropies(states.map(Tally::spread)),
                    entropy_change: Changes { layer, attn, ffn },
                    residual_cosine: Cosines { attn: s.cos_attn.spread(), ffn: s.cos_ffn.spread() },
                    residual_norm: s.norm.spread(),
                }
            },
            last: AgainstFinal {
                kl_to: s.kl_to / n,
                kl_from: s.kl_from / n,
                top1_agreement: s.agreed as f64 / n,
                decided: s.decided as f64 / n,
                log_prob: s.log_prob / n,
            },
            chosen: reading.chosen.map(|_| Divergence { kl_to: s.chosen_kl_to / n, kl_from: s.chosen_kl_from / n }),
        }
    }

    /// `[L, L]`
    fn similarities(&self) -> Vec<Vec<f64>> {
        let mut table = vec![vec![0.0; self.layers.len()]; self.layers.len()];
        for ((i, j), sum) in pairs(self.layers.len()).zip(&self.similarity) {
            (table[i][j], table[j][i]) = (sum / self.tokens as f64, sum / self.tokens as f64);
        }
        table
    }

    fn decision(&self) -> Decision {
        let decided = self.tokens - self.never_decided;
        let weighted: u64 = (1..).zip(&self.layers).map(|(layer, sums)| layer * sums.decided).sum();
        Decision {
            mean_layer: (decided > 0).then(|| weighted as f64 / decided as f64),
            never: self.never_decided as f64 / self.tokens as f64,
        }
    }
}

fn entropies<T>([resid_pre, attn_in, attn, ffn_in, ffn, resid_post]: [T; 6]) -> Entropies<T> {
    Entropies { resid_pre, attn_in, attn, ffn_in, ffn, resid_post }
}

/// The lowest layer (from 0) from which on every layer's top token is the final policy's; none if the last layer's is not.
fn decided_at(top: &[u32], last: u32) -> Option<usize> {
    let agreeing = top.iter().rev().take_while(|t| **t == last).count();
    (agreeing > 0).then(|| top.len() - agreeing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_decided_where_the_last_run_of_agreement_begins() {
        assert_eq!(decided_at(&[7, 7, 7], 7), Some(0));
        assert_eq!(decided_at(&[7, 1, 7], 7), Some(2));
        assert_eq!(decided_at(&[1, 7, 7], 7), Some(1));
        assert_eq!(decided_at(&[7, 7, 1], 7), None);
        assert_eq!(decided_at(&[], 7), None);
    }
}
