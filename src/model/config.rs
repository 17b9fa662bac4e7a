//! A decoder's shape, read from HuggingFace's `config.json` and written back to it.

mod parse;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// Largest value accepted for each size. Far above any published model, and low enough that no product of sizes
/// (a tensor's elements, all parameters, their bytes) can overflow: all parameters stay below 2^57.
mod limit {
    pub const VOCAB: usize = 1 << 24;
    pub const HIDDEN: usize = 1 << 17;
    pub const LAYERS: usize = 1 << 12;
    pub const HEADS: usize = 1 << 12;
    pub const HEAD_DIM: usize = 1 << 12;
    pub const INTERMEDIATE: usize = 1 << 20;
    pub const POSITIONS: usize = 1 << 30;
}

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

impl Family {
    /// The families' names in `config.json`'s `model_type`.
    pub const NAMES: [&'static str; 3] = ["qwen2", "qwen3", "llama"];

    /// `model_type` of `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Llama => "llama",
        }
    }

    /// The class that transformers opens, `architectures` of `config.json`.
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
            Family::Llama => "LlamaForCausalLM",
        }
    }
}

impl ModelConfig {
    /// Reads `dir/config.json`.
    pub fn from_dir(dir: &Path) -> Result<ModelConfig> {
        ensure!(
            dir.is_dir(),
            "{} is not a folder: give the path of a HuggingFace checkpoint on this machine (a model of the hub must \
             be downloaded first)",
            dir.display()
        );
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!("cannot read {}: a checkpoint folder needs HuggingFace's config.json", path.display())
        })?;
        ModelConfig::from_json(&text, &path)
    }

    /// Reads the text of a `config.json`; `origin` is its path, for messages.
    ///
    /// RoPE is read in both spellings, `rope_theta` + `rope_scaling` and `rope_parameters`; where a file has both
    /// they must agree. Whatever this decoder would compute differently from transformers is refused by name.
    pub fn from_json(text: &str, origin: &Path) -> Result<ModelConfig> {
        parse::model_config(text).with_context(|| format!("cannot use {}", origin.display()))
    }

    /// Checks the invariants that the rest of the program relies on. Keys in messages are those of `config.json`.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, limit::VOCAB),
            ("hidden_size", self.hidden_size, limit::HIDDEN),
            ("num_hidden_layers", self.layers, limit::LAYERS),
            ("num_attention_heads", self.heads, limit::HEADS),
            ("num_key_value_heads", self.kv_heads, limit::HEADS),
            ("head_dim", self.head_dim, limit::HEAD_DIM),
            ("intermediate_size", self.intermediate_size, limit::INTERMEDIATE),
            ("max_position_embeddings", self.max_position_embeddings, limit::POSITIONS),
        ];
        for (key, got, max) in sizes {
            ensure!((1..=max).contains(&got), "`{key}` is {got}, expected 1 to {max}");
        }
        ensure!(
            self.heads.is_multiple_of(self.kv_heads),
            "`num_attention_heads` is {} and `num_key_value_heads` is {}: the first must be a multiple of the second, \
             so that every key-value head serves the same number of query heads",
            self.heads,
            self.kv_heads
        );
        ensure!(
            self.head_dim.is_multiple_of(2),
            "`head_dim` is {}, expected an even number: RoPE rotates pairs of components",
            self.head_dim
        );
        ensure!(
            self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0,
            "`rms_norm_eps` is {}, expected more than 0 and less than 1 (1e-6 is usual)",
            self.rms_norm_eps
        );
        ensure!(
            self.rope_theta.is_finite() && self.rope_theta >= 1.0,
            "`rope_theta` is {}, expected a finite number of at least 1 (10000 is usual)",
            self.rope_theta
        );
        match &self.rope_scaling {
            Some(scaling) => scaling.check(),
            None => Ok(()),
        }
    }

    /// A `config.json` that transformers opens, 5 by `rope_parameters` and 4 by `rope_theta` + `rope_scaling`.
    ///
    /// `dtype` is `float32`. `pad_token_id` is null: transformers gives the embedding row of a pad token no gradient.
    pub fn to_json(&self) -> Value {
        let theta = json!(self.rope_theta);
        let mut rope_parameters = json!({"rope_theta": theta, "rope_type": "default"});
        let mut rope_scaling = Value::Null;
        if let Some(s) = &self.rope_scaling {
            rope_scaling = json!({
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_max_position_embeddings,
            });
            rope_parameters = rope_scaling.clone();
            rope_parameters["rope_theta"] = theta.clone();
        }
        let eos_token_id = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        let mut config = json!({
            "architectures": [self.family.architecture()],
            "model_type": self.family.model_type(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": shortest_f64(self.rms_norm_eps),
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": theta,
            "rope_scaling": rope_scaling,
            "rope_parameters": rope_parameters,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos_token_id,
            "pad_token_id": null,
            "attention_dropout": 0.0,
            "dtype": "float32",
            "torch_dtype": "float32",
            "use_cache": true,
        });
        match self.family {
            Family::Qwen2 | Family::Qwen3 => {
                config["use_sliding_window"] = json!(false);
                config["sliding_window"] = Value::Null;
            }
            Family::Llama => config["mlp_bias"] = json!(false),
        }
        if self.family != Family::Qwen2 {
            config["attention_bias"] = json!(false);
        }
        config
    }

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

impl Llama3Scaling {
    fn check(&self) -> Result<()> {
        ensure!(
            self.factor.is_finite() && self.factor >= 1.0,
            "RoPE scaling `factor` is {}, expected a finite number of at least 1",
            self.factor
        );
        ensure!(
            self.low_freq_factor > 0.0
                && self.high_freq_factor > self.low_freq_factor
                && self.high_freq_factor.is_finite(),
            "RoPE scaling has `low_freq_factor` {} and `high_freq_factor` {}, expected 0 < low < high",
            self.low_freq_factor,
            self.high_freq_factor
        );
        ensure!(
            (1..=limit::POSITIONS).contains(&self.original_max_position_embeddings),
            "RoPE scaling `original_max_position_embeddings` is {}, expected 1 to {}",
            self.original_max_position_embeddings,
            limit::POSITIONS
        );
        Ok(())
    }
}

/// The f64 of the shortest decimal that reads back as `x`: 1e-6, where a cast gives 9.999999974752427e-7.
fn shortest_f64(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
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

#[cfg(test)]
mod tests;
