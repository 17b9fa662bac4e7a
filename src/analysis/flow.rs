//! Internal entropy flow: what every hidden state of every layer says, read as a policy (paper, section 3).
//!
//! Sums run over response tokens, in f64; nothing grows with the number of samples.

use super::result::{Analysis, Changes, Cosines, Entropies, LayerFlow};
use super::stages::{RULE, boundary_layer, default_threshold, stage_spans};
use crate::compute::Packing;
use crate::model::{LayerIndex, Model, Tap, Workspace};
use crate::policy::gather_rows;
use anyhow::{Context, Result, ensure};

/// Tokens of one packed forward.
const PACK_TOKENS: usize = 2048;
/// `torch.nn.functional.cosine_similarity`'s bound on each norm.
const COSINE_EPS: f64 = 1e-8;

/// Tokens of one sample; the response is what comes from `response_start` (1 or more) on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub ids: Vec<u32>,
    pub response_start: usize,
}

/// Sums of one layer over response tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    attn_in: f64,
    attn: f64,
    ffn_in: f64,
    ffn: f64,
    resid_post: f64,
    cos_attn: f64,
    cos_ffn: f64,
    norm: f64,
}

/// Running sums over all samples seen so far.
#[derive(Clone, Debug)]
pub struct Flow {
    layers: Vec<Sums>,
    /// Entropy of `H^0`, the embeddings themselves.
    embedding: f64,
    final_entropy: f64,
    tokens: usize,
    samples: usize,
}

impl Flow {
    pub fn new(layers: usize) -> Flow {
        let layers = vec![Sums::default(); layers];
        Flow { layers, embedding: 0.0, final_entropy: 0.0, tokens: 0, samples: 0 }
    }

    /// Adds samples, packed several to a forward. `progress` hears of every sample.
    ///
    /// Errors: a sample without response tokens, longer than the context, or with a token outside of the vocabulary.
    pub fn add(
        &mut self,
        model: &Model,
        ws: &mut Workspace,
        samples: &[Sample],
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        for (i, sample) in samples.iter().enumerate() {
            check(model, sample, self.samples + i + 1)?;
        }
        let mut rest = samples;
        while !rest.is_empty() {
            let (mut packing, mut rows, mut taken) = (Packing::new(), Vec::new(), 0);
            for sample in rest {
                // The last token predicts nothing that is known: its state is not needed.
                let ids = &sample.ids[..sample.ids.len() - 1];
                if taken > 0 && packing.rows() + ids.len() > PACK_TOKENS {
                    break;
                }
                let packed = packing.push(ids);
                rows.extend(packed.start + sample.response_start - 1..packed.end);
                taken += 1;
            }
            self.add_pack(model, ws, &packing, &rows);
            self.samples += taken;
            progress(taken as u64);
            rest = &rest[taken..];
        }
        Ok(())
    }

    fn add_pack(&mut self, model: &Model, ws: &mut Workspace, packing: &Packing, rows: &[usize]) {
        let (d, n) = (model.config.hidden_size, rows.len());
        let head = model.head(1.0);
        self.tokens += n;
        // The stream that a module writes to, and the layer's states that wait for their turn at the unembedding.
        let mut stream: Vec<f32> = Vec::new();
        let mut waiting: Vec<f32> = Vec::with_capacity(5 * n * d);
        model.forward_observed(ws, packing, Tap::Final, &mut |tap, state| {
            match tap {
                Tap::ResidPre(layer) if layer.index() == 0 => {
                    stream = gather_rows(state, rows, d);
                    self.embedding += sum(&head.forward(&stream, None).entropy);
                }
                // Every other layer's input is the output of the one below.
                Tap::ResidPre(_) => {}
                Tap::AttnIn(_) | Tap::FfnIn(_) => waiting.extend(gather_rows(state, rows, d)),
                Tap::Attn(layer) => {
                    let written = gather_rows(state, rows, d);
                    self.layers[layer.index()].cos_attn += cosines(&written, &stream, d);
                    waiting.extend(written);
                }
                Tap::ResidMid(_) => stream = gather_rows(state, rows, d),
                Tap::Ffn(layer) => {
                    let written = gather_rows(state, rows, d);
                    self.layers[layer.index()].cos_ffn += cosines(&written, &stream, d);
                    waiting.extend(written);
                }
                Tap::ResidPost(layer) => {
                    stream = gather_rows(state, rows, d);
                    waiting.extend_from_slice(&stream);
                    let sums = &mut self.layers[layer.index()];
                    sums.norm += stream.chunks_exact(d).map(|x| dot(x, x).sqrt()).sum::<f64>();
                    // One pass over the unembedding serves the layer's five states.
                    let entropy = head.forward(&waiting, None).entropy;
                    let mut of = entropy.chunks_exact(n).map(sum);
                    for total in
                        [&mut sums.attn_in, &mut sums.attn, &mut sums.ffn_in, &mut sums.ffn, &mut sums.resid_post]
                    {
                        *total += of.next().unwrap_or(f64::NAN);
                    }
                    waiting.clear();
                }
                Tap::Final => {
                    self.final_entropy += sum(&head.forward(&gather_rows(state, rows, d), None).entropy);
                }
            }
        });
    }

    /// Means over all response tokens. `threshold` in nats; the default share of ln V without it.
    pub fn finish(&self, model: &Model, threshold: Option<f64>) -> Result<Analysis> {
        ensure!(self.tokens > 0, "nothing was analysed: no sample had response tokens");
        let n = self.tokens as f64;
        let mut below = self.embedding / n;
        let mut per_layer = Vec::with_capacity(self.layers.len());
        for (layer, s) in LayerIndex::all(self.layers.len()).zip(&self.layers) {
            let entropy = Entropies {
                resid_pre: below,
                attn_in: s.attn_in / n,
                attn: s.attn / n,
                ffn_in: s.ffn_in / n,
                ffn: s.ffn / n,
                resid_post: s.resid_post / n,
            };
            per_layer.push(LayerFlow {
                layer: layer.one_based(),
                entropy_change: Changes {
                    layer: entropy.resid_post - entropy.resid_pre,
                    attn: entropy.attn - entropy.attn_in,
                    ffn: entropy.ffn - entropy.ffn_in,
                },
                residual_cosine: Cosines { attn: s.cos_attn / n, ffn: s.cos_ffn / n },
                residual_norm: s.norm / n,
                entropy,
            });
            below = entropy.resid_post;
        }
        let changes: Vec<f64> = per_layer.iter().map(|l| l.entropy_change.ffn).collect();
        let threshold = threshold.unwrap_or_else(|| default_threshold(model.config.vocab_size));
        Ok(Analysis {
            layers: self.layers.len(),
            tokens: self.tokens,
            samples: self.samples,
            vocab_size: model.config.vocab_size,
            final_entropy: self.final_entropy / n,
            boundary_layer: boundary_layer(&changes).map(LayerIndex::one_based),
            stages: stage_spans(&changes, threshold)?,
            stage_rule: RULE.to_string(),
            stage_threshold: threshold,
            per_layer,
        })
    }
}

fn check(model: &Model, sample: &Sample, number: usize) -> Result<()> {
    let (n, start) = (sample.ids.len(), sample.response_start);
    ensure!(
        start >= 1 && start < n,
        "sample {number} has {n} tokens and its response starts at {start}: expected 1 to {}, so that a response token has \
         a state that predicts it",
        n.saturating_sub(1)
    );
    model.check_tokens(&sample.ids).with_context(|| format!("sample {number}"))
}

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|x| *x as f64).sum()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum()
}

/// Sum over rows of the cosine between what a module wrote and the stream it wrote to.
fn cosines(written: &[f32], stream: &[f32], d: usize) -> f64 {
    let rows = written.chunks_exact(d).zip(stream.chunks_exact(d));
    rows.map(|(a, b)| dot(a, b) / (dot(a, a).sqrt().max(COSINE_EPS) * dot(b, b).sqrt().max(COSINE_EPS))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ParamLayout;
    use crate::model::init::{InitConfig, random_params};

    fn model() -> Model {
        let init =
            InitConfig { hidden_size: 16, layers: 3, heads: 2, kv_heads: 1, head_dim: 8, ..InitConfig::default() };
        let init = InitConfig { intermediate_size: 24, vocab_size: Some(50), ..init };
        let config = init.model_config(50).unwrap();
        let layout = ParamLayout::new(&config);
        let params = random_params(&config, &layout, 0.3, 1);
        Model::new(config, params)
    }

    fn samples() -> Vec<Sample> {
        let ids = |n: u32, seed: u32| (0..n).map(|i| (i * 7 + seed) % 50).collect();
        vec![
            Sample { ids: ids(9, 1), response_start: 4 },
            Sample { ids: ids(5, 2), response_start: 1 },
            Sample { ids: ids(30, 3), response_start: 29 },
        ]
    }

    /// The paper's definitions, written out for one sequence at a time with every logit in f64.
    fn slow(model: &Model, tap: Tap) -> f64 {
        let (mut total, mut tokens) = (0.0, 0);
        for sample in samples() {
            let mut ws = Workspace::new(model);
            model.forward_observed(&mut ws, &Packing::single(&sample.ids), Tap::Final, &mut |at, state| {
                if at != tap {
                    return;
                }
                for row in sample.response_start - 1..sample.ids.len() - 1 {
                    let h = &state[row * 16..(row + 1) * 16];
                    let logits: Vec<f64> =
                        model.param(&model.layout.unembed).chunks_exact(16).map(|e| dot(e, h)).collect();
                    let sum: f64 = logits.iter().map(|z| z.exp()).sum();
                    total -= logits.iter().map(|z| z.exp() / sum * (z - sum.ln())).sum::<f64>();
                    tokens += 1;
                }
            });
        }
        total / tokens as f64
    }

    fn analysed(batches: &[&[Sample]]) -> Analysis {
        let model = model();
        let (mut flow, mut ws) = (Flow::new(3), Workspace::new(&model));
        for batch in batches {
            flow.add(&model, &mut ws, batch, &mut |_| ()).unwrap();
        }
        flow.finish(&model, None).unwrap()
    }

    #[test]
    fn entropies_are_those_of_the_definitions() {
        let (model, analysis) = (model(), analysed(&[&samples()]));
        assert_eq!((analysis.tokens, analysis.samples, analysis.layers), (5 + 4 + 1, 3, 3));
        for (layer, flow) in LayerIndex::all(3).zip(&analysis.per_layer) {
            for (tap, entropy) in [
                (Tap::ResidPre(layer), flow.entropy.resid_pre),
                (Tap::AttnIn(layer), flow.entropy.attn_in),
                (Tap::Attn(layer), flow.entropy.attn),
                (Tap::FfnIn(layer), flow.entropy.ffn_in),
                (Tap::Ffn(layer), flow.entropy.ffn),
                (Tap::ResidPost(layer), flow.entropy.resid_post),
            ] {
                assert!((slow(&model, tap) - entropy).abs() < 1e-5, "{tap:?}");
            }
        }
        assert!((slow(&model, Tap::Final) - analysis.final_entropy).abs() < 1e-5);
    }

    #[test]
    fn packing_does_not_matter() {
        let all = samples();
        let (together, apart) = (analysed(&[&all]), analysed(&[&all[..1], &all[1..]]));
        for (a, b) in together.per_layer.iter().zip(&apart.per_layer) {
            assert!((a.entropy_change.ffn - b.entropy_change.ffn).abs() < 1e-5);
            assert!((a.residual_cosine.attn - b.residual_cosine.attn).abs() < 1e-5);
            assert!((a.residual_norm - b.residual_norm).abs() < 1e-5);
        }
    }

    #[test]
    fn bad_samples_are_refused() {
        let model = model();
        let mut ws = Workspace::new(&model);
        for (ids, response_start) in [(vec![1, 2], 2), (vec![1, 2], 0), (vec![1, 50], 1), (vec![1; 100_000], 1)] {
            let sample = Sample { ids, response_start };
            assert!(Flow::new(3).add(&model, &mut ws, &[sample], &mut |_| ()).is_err());
        }
        assert!(Flow::new(3).finish(&model, None).is_err());
    }
}
