//! Where each parameter lies in the flat array.
//!
//! All parameters are one `[n]` array of f32, as are their gradients and the optimizer's moments, so that AdamW,
//! clipping and checkpoints are one loop each. The order is chosen so that what a policy of depth `k` trains is a
//! **prefix**: embedding, unembedding, layers `1..=k`, and only then the layers above and the final norm. q, k, v
//! (and gate, up) are neighbours, so that their products are one GEMM each. An adapter lies behind all that, and is then all that is
//! trained: gradients are arrays of [`ParamLayout::trainable`] only.

use super::ModelConfig;
use super::lora::Adapter;
use std::ops::Range;

/// One named tensor of the flat array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// HuggingFace's name, e.g. `model.layers.0.self_attn.q_proj.weight` (layers count from 0 in file names).
    pub name: String,
    /// Row-major shape; `[out, in]` for linear layers.
    pub shape: Vec<usize>,
    pub offset: usize,
}

impl TensorSpec {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// Ranges of one layer's parameters in the flat array.
#[derive(Clone, Debug)]
pub struct LayerParams {
    /// `[d]`
    pub attn_norm: Range<usize>,
    /// `[q_dim + 2 kv_dim, d]`
    pub qkv: Range<usize>,
    /// `[q_dim + 2 kv_dim]`, Qwen2 only
    pub qkv_bias: Option<Range<usize>>,
    /// `[head_dim]` each, Qwen3 only
    pub q_norm: Option<Range<usize>>,
    pub k_norm: Option<Range<usize>>,
    /// `[d, q_dim]`
    pub o: Range<usize>,
    /// `[d]`
    pub ffn_norm: Range<usize>,
    /// `[2 * intermediate, d]`: gate, then up
    pub gate_up: Range<usize>,
    /// `[d, intermediate]`
    pub down: Range<usize>,
}

impl LayerParams {
    /// All of the layer's, which are neighbours.
    pub fn range(&self) -> Range<usize> {
        self.attn_norm.start..self.down.end
    }
}

/// The whole flat array's map.
#[derive(Clone, Debug)]
pub struct ParamLayout {
    pub tensors: Vec<TensorSpec>,
    /// `[V, d]`
    pub embed: Range<usize>,
    /// `[V, d]`; the same range as `embed` when tied.
    pub unembed: Range<usize>,
    pub layers: Vec<LayerParams>,
    /// `[d]`
    pub final_norm: Range<usize>,
    /// Of a critic; none in a policy.
    pub value_head: Option<ValueHead>,
    /// Low-rank adapters beside the linear layers ([`super::lora`]).
    pub adapter: Option<Adapter>,
}

/// A linear layer from `LN_final(H^L)` to a number, under the names that transformers' `...ForTokenClassification` of one label has.
#[derive(Clone, Debug)]
pub struct ValueHead {
    /// `[1, d]`
    pub weight: Range<usize>,
    /// `[1]`
    pub bias: Range<usize>,
}

impl ParamLayout {
    pub fn new(c: &ModelConfig) -> ParamLayout {
        ParamLayout::build(c, false)
    }

    /// A decoder with a value head in the end.
    pub fn with_value_head(c: &ModelConfig) -> ParamLayout {
        ParamLayout::build(c, true)
    }

    fn build(c: &ModelConfig, value_head: bool) -> ParamLayout {
        let mut b = Builder { tensors: Vec::new(), next: 0 };
        let d = c.hidden_size;
        let embed = b.push("model.embed_tokens.weight".into(), &[c.vocab_size, d]);
        let unembed = match c.tie_word_embeddings {
            true => embed.clone(),
            false => b.push("lm_head.weight".into(), &[c.vocab_size, d]),
        };
        let layers = (0..c.layers).map(|i| b.layer(c, &format!("model.layers.{i}"))).collect();
        let final_norm = b.push("model.norm.weight".into(), &[d]);
        let value_head = value_head.then(|| ValueHead {
            weight: b.push("score.weight".into(), &[1, d]),
            bias: b.push("score.bias".into(), &[1]),
        });
        ParamLayout { tensors: b.tensors, embed, unembed, layers, final_norm, value_head, adapter: None }
    }

    /// The part of the flat array that can get a gradient, which is as long: the adapter where there is one, else all of it.
    pub fn trainable(&self) -> Range<usize> {
        self.adapter.as_ref().map_or(0..self.len(), |adapter| adapter.range.clone())
    }

    /// The tensors of [`ParamLayout::trainable`].
    pub fn trainable_tensors(&self) -> &[TensorSpec] {
        let from = self.trainable().start;
        &self.tensors[self.tensors.partition_point(|tensor| tensor.offset < from)..]
    }

    /// Number of f32 in the flat array.
    pub fn len(&self) -> usize {
        self.tensors.last().map_or(0, |last| last.range().end)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

struct Builder {
    tensors: Vec<TensorSpec>,
    next: usize,
}

impl Builder {
    fn push(&mut self, name: String, shape: &[usize]) -> Range<usize> {
        let spec = TensorSpec { name, shape: shape.to_vec(), offset: self.next };
        self.next += spec.len();
        let range = spec.range();
        self.tensors.push(spec);
        range
    }

    fn layer(&mut self, c: &ModelConfig, p: &str) -> LayerParams {
        let (d, q, kv, ff) = (c.hidden_size, c.q_dim(), c.kv_dim(), c.intermediate_size);
        let attn_norm = self.push(format!("{p}.input_layernorm.weight"), &[d]);
        let q_w = self.push(format!("{p}.self_attn.q_proj.weight"), &[q, d]);
        self.push(format!("{p}.self_attn.k_proj.weight"), &[kv, d]);
        let v_w = self.push(format!("{p}.self_attn.v_proj.weight"), &[kv, d]);
        let qkv_bias = c.qkv_bias().then(|| {
            let start = self.push(format!("{p}.self_attn.q_proj.bias"), &[q]).start;
            self.push(format!("{p}.self_attn.k_proj.bias"), &[kv]);
            start..self.push(format!("{p}.self_attn.v_proj.bias"), &[kv]).end
        });
        let q_norm = c.qk_norm().then(|| self.push(format!("{p}.self_attn.q_norm.weight"), &[c.head_dim]));
        let k_norm = c.qk_norm().then(|| self.push(format!("{p}.self_attn.k_norm.weight"), &[c.head_dim]));
        let o = self.push(format!("{p}.self_attn.o_proj.weight"), &[d, q]);
        let ffn_norm = self.push(format!("{p}.post_attention_layernorm.weight"), &[d]);
        let gate = self.push(format!("{p}.mlp.gate_proj.weight"), &[ff, d]);
        let up = self.push(format!("{p}.mlp.up_proj.weight"), &[ff, d]);
        let down = self.push(format!("{p}.mlp.down_proj.weight"), &[d, ff]);
        LayerParams {
            attn_norm,
            qkv: q_w.start..v_w.end,
            qkv_bias,
            q_norm,
            k_norm,
            o,
            ffn_norm,
            gate_up: gate.start..up.end,
            down,
        }
    }
}
