//! Running sums of a study: what is counted for every token, how it is saved, and the means that come of it.

use super::findings::{Effect, Findings, LayerEffects, Replacement, VERSION};
use crate::compute::backend::Comparison;
use crate::model::ModelConfig;
use crate::model::ablation::Module;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Sums over all tokens seen so far. Saved and read back they are the same, bit for bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    pub(super) samples: usize,
    tokens: u64,
    /// Of the whole model.
    entropy: f64,
    log_prob: f64,
    /// One for each module that is left out.
    modules: Vec<ModuleSums>,
}

/// Of the model without one module, beside the whole one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct ModuleSums {
    tokens: u64,
    kl: f64,
    kl_squares: f64,
    /// Differences from the whole model's.
    log_prob: f64,
    entropy: f64,
    agreed: u64,
}

impl Sums {
    pub(super) fn new(modules: usize) -> Sums {
        Sums { samples: 0, tokens: 0, entropy: 0.0, log_prob: 0.0, modules: vec![ModuleSums::default(); modules] }
    }

    /// Samples counted so far.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Response tokens counted so far.
    pub fn tokens(&self) -> usize {
        self.tokens as usize
    }

    /// The modules, by their places, that are yet to be seen without for the latest tokens; all of them where none are.
    pub(super) fn missing(&self) -> Vec<usize> {
        let missing =
            |all: bool| (0..self.modules.len()).filter(move |at| all || self.modules[*at].tokens < self.tokens);
        let some: Vec<usize> = missing(false).collect();
        if some.is_empty() { missing(true).collect() } else { some }
    }

    /// Tokens by which some modules are ahead of others, while samples are under way.
    pub(super) fn under_way(&self) -> Option<usize> {
        let behind = self.modules.iter().map(|module| self.tokens.saturating_sub(module.tokens)).max();
        behind.filter(|tokens| *tokens > 0).map(|tokens| tokens as usize)
    }

    /// Some tokens' statistics: of each first those of the whole model, then those without each of `modules`. They are new, unless samples
    /// are under way.
    pub(super) fn add(&mut self, modules: &[usize], comparison: &Comparison) {
        let Some(without) = comparison.divergences.first() else { return };
        let is_new = self.under_way().is_none();
        for at in (0..comparison.entropy.len()).step_by(1 + modules.len()) {
            let [entropy, log_prob] = [&comparison.entropy, &comparison.log_probs].map(|of| f64::from(of[at]));
            if is_new {
                self.tokens += 1;
                self.entropy += entropy;
                self.log_prob += log_prob;
            }
            for (row, module) in (at + 1..).zip(modules) {
                let sums = &mut self.modules[*module];
                let kl = f64::from(without.from[row]);
                sums.tokens += 1;
                sums.kl += kl;
                sums.kl_squares += kl * kl;
                sums.log_prob += f64::from(comparison.log_probs[row]) - log_prob;
                sums.entropy += f64::from(comparison.entropy[row]) - entropy;
                sums.agreed += u64::from(comparison.top[row] == comparison.top[at]);
            }
        }
    }

    /// Fails if anything that was counted is no number.
    pub(super) fn check_finite(&self) -> Result<()> {
        let numbers = |m: &ModuleSums| [m.kl, m.kl_squares, m.log_prob, m.entropy];
        let all = self.modules.iter().flat_map(numbers).chain([self.entropy, self.log_prob]);
        ensure!(
            all.into_iter().all(f64::is_finite),
            "an entropy, divergence or log-prob is no finite number: the model's weights or its states are broken"
        );
        Ok(())
    }

    /// Fails unless these are sums of so many modules, as they must be when they were read back.
    pub(super) fn check(&self, modules: usize) -> Result<()> {
        ensure!(self.modules.len() == modules, "sums of {} modules, expected {modules}", self.modules.len());
        // What is behind is behind by the same samples.
        let behind = self.modules.iter().map(|module| module.tokens).filter(|tokens| *tokens != self.tokens);
        let behind: BTreeSet<u64> = behind.collect();
        let possible = behind.len() <= 1 && behind.iter().all(|tokens| *tokens < self.tokens);
        ensure!(possible, "tokens that were seen without modules: {behind:?}, of {}", self.tokens);
        let agreed = self.modules.iter().all(|module| module.agreed <= module.tokens);
        ensure!(agreed, "more tokens that are agreed on than tokens");
        self.check_finite()
    }

    pub(super) fn finish(
        &self,
        config: &ModelConfig,
        modules: &[Module],
        name: &str,
        replace: Replacement,
    ) -> Result<Findings> {
        ensure!(self.under_way().is_none(), "some samples were not seen without every module");
        ensure!(self.tokens > 0, "nothing was counted: no sample had response tokens");
        let n = self.tokens as f64;
        let mut per_layer: Vec<LayerEffects> = Vec::new();
        for (module, sums) in modules.iter().zip(&self.modules) {
            let effect = sums.effect(n);
            let layer = module.layer().one_based();
            if per_layer.last().is_none_or(|last| last.layer != layer) {
                per_layer.push(LayerEffects { layer, ..LayerEffects::default() });
            }
            let of = per_layer.last_mut().context("a module without a layer")?;
            match module {
                Module::Attention(_) => of.attn = effect,
                Module::Ffn(_) => of.ffn = effect,
                Module::Layer(_) => of.both = effect,
                Module::Head(..) => of.heads.push(effect),
            }
        }
        Ok(Findings {
            version: VERSION,
            model: name.to_string(),
            replace,
            layers: config.layers,
            tokens: self.tokens(),
            samples: self.samples,
            vocab_size: config.vocab_size,
            entropy: self.entropy / n,
            log_prob: self.log_prob / n,
            per_layer,
        })
    }
}

impl ModuleSums {
    fn effect(&self, n: f64) -> Effect {
        let kl = self.kl / n;
        Effect {
            kl,
            kl_std: (self.kl_squares / n - kl * kl).max(0.0).sqrt(),
            log_prob_change: self.log_prob / n,
            entropy_change: self.entropy / n,
            top1_agreement: self.agreed as f64 / n,
        }
    }
}
