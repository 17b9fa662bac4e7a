//! A decoder's shape, read from HuggingFace's `config.json`.

use serde::{Deserialize, Serialize};

/// The model families whose differences are spelled out in [`ModelConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMS norms on each head's query and key, explicit `head_dim`.
    Qwen3,
    /// Llama 2 and 3.x, and models of that architecture.
    Llama,
}

/// `llama3` RoPE scaling: long wavelengths are stretched by `factor`, short ones kept, those between blended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: usize,
}

/// Everything about a decoder that is not a weight. Built by [`ModelConfig::from_json`] and checked there once;
/// the rest of the program relies on its invariants (`heads % kv_heads == 0`, every size positive, even `head_dim`).
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub family: Family,
    /// Rows of the embedding; may exceed the tokenizer's vocabulary.
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    pub rope_scaling: Option<Llama3Scaling>,
    /// The unembedding is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Token ids of `config.json`, if it names them.
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Biases on the q, k and v projections (Qwen2).
    pub fn qkv_bias(&self) -> bool {
        self.family == Family::Qwen2
    }

    /// RMS norm of every query and key head before RoPE (Qwen3).
    pub fn qk_norm(&self) -> bool {
        self.family == Family::Qwen3
    }

    /// Width of the query block: `heads * head_dim`.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the key block, and of the value block: `kv_heads * head_dim`.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Width of the fused projection `[q | k | v]`.
    pub fn qkv_dim(&self) -> usize {
        self.q_dim() + 2 * self.kv_dim()
    }
}

impl ModelConfig {
    /// RoPE's inverse frequencies, `[head_dim / 2]`, scaling applied (the `llama3` rule as transformers computes it).
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let half = self.head_dim / 2;
        let plain = (0..half).map(|i| self.rope_theta.powf(-((2 * i) as f64) / self.head_dim as f64));
        let Some(s) = &self.rope_scaling else {
            return plain.map(|f| f as f32).collect();
        };
        let original = s.original_max_position_embeddings as f64;
        let (long, short) = (original / s.low_freq_factor, original / s.high_freq_factor);
        let scaled = plain.map(|f| {
            let wavelength = 2.0 * std::f64::consts::PI / f;
            if wavelength > long {
                f / s.factor
            } else if wavelength < short {
                f
            } else {
                let smooth = (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
                (1.0 - smooth) * f / s.factor + smooth * f
            }
        });
        scaled.map(|f| f as f32).collect()
    }
}
