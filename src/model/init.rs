//! A new model with random weights.

use super::config::Family;
use super::{ModelConfig, ParamLayout};
use anyhow::{Context, Result, ensure};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The shape of a model to initialise; keys as in a recipe. The defaults make a Qwen3 of 6 layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InitConfig {
    pub family: Family,
    /// Rows of the embedding; the tokenizer's vocabulary if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
    /// Width of the residual stream.
    pub hidden_size: usize,
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key and value heads of a layer; divides `heads`.
    pub kv_heads: usize,
    /// Even.
    pub head_dim: usize,
    /// Width of the FFN's inside.
    pub intermediate_size: usize,
    /// The context, in tokens.
    pub max_position_embeddings: usize,
    /// Base of the rotary embedding's wavelengths.
    pub rope_theta: f64,
    pub rms_norm_eps: f32,
    /// Embedding and unembedding are one tensor.
    pub tie_word_embeddings: bool,
    /// Standard deviation of matrices and embeddings (`initializer_range`).
    pub std: f32,
}

impl Default for InitConfig {
    fn default() -> InitConfig {
        InitConfig {
            family: Family::Qwen3,
            vocab_size: None,
            hidden_size: 256,
            layers: 6,
            heads: 8,
            kv_heads: 4,
            head_dim: 32,
            intermediate_size: 768,
            max_position_embeddings: 2048,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            std: 0.02,
        }
    }
}

impl InitConfig {
    /// The model's configuration for a tokenizer of `tokenizer_vocab` tokens. Token ids are left for the caller.
    pub fn model_config(&self, tokenizer_vocab: usize) -> Result<ModelConfig> {
        let vocab_size = self.vocab_size.unwrap_or(tokenizer_vocab);
        ensure!(
            vocab_size >= tokenizer_vocab,
            "`vocab_size` of the new model is {vocab_size}, but the tokenizer has {tokenizer_vocab} tokens: leave it out, \
             or make it at least as large"
        );
        ensure!(
            self.std.is_finite() && self.std > 0.0,
            "`std` of the new model is {}, expected a finite number above 0 (0.02 is usual)",
            self.std
        );
        let config = ModelConfig {
            family: self.family,
            vocab_size,
            hidden_size: self.hidden_size,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            intermediate_size: self.intermediate_size,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta: self.rope_theta,
            rope_scaling: None,
            tie_word_embeddings: self.tie_word_embeddings,
            max_position_embeddings: self.max_position_embeddings,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        };
        config.check().context("the new model's shape is impossible (named as in config.json)")?;
        Ok(config)
    }
}

/// Random parameters, `[layout.len()]`, as GPT-2 does: matrices and embeddings are normal(0, `std`), those that
/// write to the residual stream (`o_proj`, `down_proj`) normal(0, `std / sqrt(2 layers)`), so that the stream's
/// variance does not grow with depth; norms are 1, biases 0.
///
/// A parameter depends on `seed`, its tensor's place in the layout and its own place in the tensor alone: not on
/// the number of threads.
pub fn random_params(config: &ModelConfig, layout: &ParamLayout, std: f32, seed: u64) -> Vec<f32> {
    /// Elements of one task; even, for normals come in pairs.
    const PIECE: usize = 1 << 16;
    let residual_std = std / (2.0 * config.layers as f32).sqrt();
    let mut params = vec![0.0; layout.len()];
    for (i, spec) in layout.tensors.iter().enumerate() {
        let tensor = &mut params[spec.range()];
        if spec.name.ends_with(".bias") {
            continue;
        }
        if spec.name.ends_with("norm.weight") {
            tensor.fill(1.0);
            continue;
        }
        let writes_to_stream = spec.name.ends_with(".o_proj.weight") || spec.name.ends_with(".down_proj.weight");
        let std = if writes_to_stream { residual_std } else { std };
        tensor.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(i as u64);
            rng.set_word_pos((piece * PIECE) as u128 * WORDS_PER_NORMAL);
            fill_normal(out, std, &mut rng);
        });
    }
    params
}

/// 32-bit words of the generator that [`fill_normal`] uses for each element.
const WORDS_PER_NORMAL: u128 = 2;

/// Box-Muller: two uniform numbers of 53 bits make two independent normal ones. Exact to f64 before rounding.
fn fill_normal(out: &mut [f32], std: f32, rng: &mut ChaCha8Rng) {
    for pair in out.chunks_mut(2) {
        // (0, 1], for the logarithm of 0 is infinite.
        let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * uniform(rng)).sin_cos();
        for (x, direction) in pair.iter_mut().zip([cos, sin]) {
            *x = (f64::from(std) * radius * direction) as f32;
        }
    }
}

/// Uniform in [0, 1), a multiple of 2^-53.
pub(super) fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> InitConfig {
        InitConfig { family: Family::Qwen2, hidden_size: 64, layers: 2, head_dim: 8, ..InitConfig::default() }
    }

    fn mean_and_std(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt())
    }

    #[test]
    fn each_kind_of_tensor_has_its_distribution() {
        let config = small().model_config(1000).unwrap();
        let layout = ParamLayout::new(&config);
        let params = random_params(&config, &layout, 0.02, 7);
        for spec in &layout.tensors {
            let values = &params[spec.range()];
            let expected = match spec.name.rsplit('.').nth(1).unwrap() {
                _ if spec.name.ends_with(".bias") => (0.0, 0.0),
                "o_proj" | "down_proj" => (0.0, 0.01), // 0.02 / sqrt(2 * 2)
                name if name.ends_with("norm") => (1.0, 0.0),
                _ => (0.0, 0.02),
            };
            let (mean, std) = mean_and_std(values);
            // Five standard errors of a mean, of a standard deviation at most.
            let tolerance = 5.0 * expected.1 / (values.len() as f64).sqrt();
            assert!((mean - expected.0).abs() <= tolerance, "{}: mean {mean}", spec.name);
            assert!((std - expected.1).abs() <= tolerance, "{}: std {std}", spec.name);
        }
    }

    #[test]
    fn a_third_of_a_normals_values_lies_beyond_one_standard_deviation() {
        let mut values = vec![0.0; 100_000];
        fill_normal(&mut values, 1.0, &mut ChaCha8Rng::seed_from_u64(1));
        let beyond = |x: f32| values.iter().filter(|v| v.abs() > x).count() as f64 / values.len() as f64;
        assert!((beyond(1.0) - 0.3173).abs() < 0.01 && (beyond(2.0) - 0.0455).abs() < 0.005);
        let products: f64 = values.chunks(2).map(|pair| f64::from(pair[0] * pair[1])).sum();
        assert!((products / 50_000.0).abs() < 0.03, "the two of a pair are independent");
    }

    #[test]
    fn parameters_depend_on_the_seed_and_not_on_threads() {
        let config = small().model_config(3000).unwrap();
        let layout = ParamLayout::new(&config);
        let with_threads = |n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| random_params(&config, &layout, 0.02, 7))
        };
        let one = with_threads(1);
        assert_eq!(one, with_threads(3));
        assert_ne!(one, random_params(&config, &layout, 0.02, 8));
        // The embedding takes several pieces: their numbers are those of one long stream.
        let embedding = &one[layout.embed.clone()];
        let mut stream = vec![0.0; embedding.len()];
        fill_normal(&mut stream, 0.02, &mut ChaCha8Rng::seed_from_u64(7));
        assert!(embedding.len() > 1 << 17 && embedding == stream);
    }

    #[test]
    fn impossible_shapes_are_refused_by_key() {
        let error = |init: InitConfig| format!("{:#}", init.model_config(256).unwrap_err());
        assert!(error(InitConfig { vocab_size: Some(100), ..small() }).contains("256 tokens"));
        assert!(error(InitConfig { head_dim: 7, ..small() }).contains("head_dim"));
        assert!(error(InitConfig { kv_heads: 3, ..small() }).contains("num_key_value_heads"));
        assert!(error(InitConfig { layers: 0, ..small() }).contains("num_hidden_layers"));
        assert!(error(InitConfig { std: f32::NAN, ..small() }).contains("std"));
        assert_eq!(InitConfig { vocab_size: Some(300), ..small() }.model_config(256).unwrap().vocab_size, 300);
    }

    #[test]
    fn a_recipes_keys_are_checked() {
        let init: InitConfig = toml::from_str("family = \"llama\"\nlayers = 3").unwrap();
        assert_eq!((init.family, init.layers, init.heads), (Family::Llama, 3, 8));
        assert!(toml::from_str::<InitConfig>("layer = 3").unwrap_err().to_string().contains("layer"));
    }
}
