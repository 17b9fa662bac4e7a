//! Two checkpoints of one architecture compared, tensor by tensor: what moved, how far, and in which layer (`diff.json`).
//!
//! Sums over parameters are f64, over pieces of fixed size that are added in order; memory is bounded by a pair of tensors.

mod table;

pub use table::{summary, table};

use crate::model::{LayerIndex, ParamLayout, TensorSpec};
use anyhow::{Result, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const VERSION: u32 = 1;

/// Parameters that one task sums.
const PIECE: usize = 1 << 16;

/// What moved between two checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diff {
    pub version: u32,
    /// As they were named by whoever asked.
    pub a: String,
    pub b: String,
    pub layers: usize,
    pub embedding: Change,
    /// Null where it is the embedding.
    pub unembedding: Option<Change>,
    pub final_norm: Change,
    pub per_layer: Vec<LayerChange>,
}

/// One layer: its attention with the norm before it, its FFN with the norm before it, both, and every tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerChange {
    pub layer: usize,
    pub attn: Change,
    pub ffn: Change,
    pub all: Change,
    /// By name: `q_proj`, `q_proj.bias`, `input_layernorm`, ...
    pub tensors: BTreeMap<String, Change>,
}

/// From the parameters a of the first checkpoint to those of the second, b.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// `|b - a| / |a|`; null where a is zero and b is not.
    pub relative: Option<f64>,
    /// Root of the mean square of `b - a`.
    pub rms: f64,
    /// `cos(a, b)`; null where one of them is zero.
    pub cosine: Option<f64>,
    /// Share of the parameters that differ.
    pub changed: f64,
    pub parameters: u64,
}

/// Sums over pairs of parameters.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    aa: f64,
    bb: f64,
    ab: f64,
    dd: f64,
    changed: u64,
    n: u64,
}

impl Change {
    /// Equal to the bit, but for the sign of zeros.
    pub fn is_none(&self) -> bool {
        self.changed == 0.0
    }
}

impl Sums {
    fn of(a: &[f32], b: &[f32]) -> Sums {
        let pieces = a.par_chunks(PIECE).zip(b.par_chunks(PIECE)).map(|(a, b)| {
            a.iter().zip(b).fold(Sums::default(), |mut sums, (a, b)| {
                sums.changed += (a != b) as u64;
                let (a, b) = (*a as f64, *b as f64);
                sums.aa += a * a;
                sums.bb += b * b;
                sums.ab += a * b;
                sums.dd += (b - a) * (b - a);
                sums.n += 1;
                sums
            })
        });
        pieces.collect::<Vec<_>>().into_iter().fold(Sums::default(), Sums::plus)
    }

    fn plus(self, other: Sums) -> Sums {
        Sums {
            aa: self.aa + other.aa,
            bb: self.bb + other.bb,
            ab: self.ab + other.ab,
            dd: self.dd + other.dd,
            changed: self.changed + other.changed,
            n: self.n + other.n,
        }
    }

    fn change(self) -> Change {
        let n = self.n.max(1) as f64;
        let relative = if self.dd == 0.0 { Some(0.0) } else { (self.aa > 0.0).then(|| (self.dd / self.aa).sqrt()) };
        // Of equal tensors the root is exact, and the cosine 1.
        let norms = (self.aa * self.bb).sqrt();
        Change {
            relative,
            rms: (self.dd / n).sqrt(),
            cosine: (norms > 0.0).then(|| (self.ab / norms).clamp(-1.0, 1.0)),
            changed: self.changed as f64 / n,
            parameters: self.n,
        }
    }
}

/// Where a tensor of the layout belongs; `name` is short, as in [`LayerChange::tensors`].
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Embedding,
    Unembedding,
    FinalNorm,
    Attention { layer: usize, name: String },
    Ffn { layer: usize, name: String },
}

impl Part {
    /// By HuggingFace's name; `None` for one that no family here has.
    fn of(name: &str) -> Option<Part> {
        match name {
            "model.embed_tokens.weight" => return Some(Part::Embedding),
            "lm_head.weight" => return Some(Part::Unembedding),
            "model.norm.weight" => return Some(Part::FinalNorm),
            _ => {}
        }
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let layer = layer.parse().ok()?;
        let short = |name: &str| name.strip_suffix(".weight").unwrap_or(name).to_string();
        match rest.split_once('.')? {
            ("self_attn", name) => Some(Part::Attention { layer, name: short(name) }),
            ("input_layernorm", _) => Some(Part::Attention { layer, name: short(rest) }),
            ("mlp", name) => Some(Part::Ffn { layer, name: short(name) }),
            ("post_attention_layernorm", _) => Some(Part::Ffn { layer, name: short(rest) }),
            _ => None,
        }
    }
}

/// Sums of one layer under way.
#[derive(Clone, Debug, Default)]
struct LayerSums {
    attn: Sums,
    ffn: Sums,
    tensors: BTreeMap<String, Change>,
}

/// Compares two checkpoints of the layout `layout`. `read` puts the values of a tensor, `[spec.len()]`, of the first and of the
/// second checkpoint into its buffers; it is called once for every tensor.
pub fn diff(
    (a, b): (&str, &str),
    layout: &ParamLayout,
    mut read: impl FnMut(&TensorSpec, &mut Vec<f32>, &mut Vec<f32>) -> Result<()>,
) -> Result<Diff> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let (mut embedding, mut unembedding, mut final_norm) = (Sums::default(), None, Sums::default());
    let mut layers = vec![LayerSums::default(); layout.layers.len()];
    for spec in &layout.tensors {
        read(spec, &mut first, &mut second)?;
        let sums = Sums::of(&first, &second);
        let part = Part::of(&spec.name);
        match part {
            Some(Part::Embedding) => embedding = sums,
            Some(Part::Unembedding) => unembedding = Some(sums.change()),
            Some(Part::FinalNorm) => final_norm = sums,
            Some(Part::Attention { layer, name }) if layer < layers.len() => {
                layers[layer].attn = layers[layer].attn.plus(sums);
                layers[layer].tensors.insert(name, sums.change());
            }
            Some(Part::Ffn { layer, name }) if layer < layers.len() => {
                layers[layer].ffn = layers[layer].ffn.plus(sums);
                layers[layer].tensors.insert(name, sums.change());
            }
            _ => bail!("{} belongs to no part of a decoder that is known here", spec.name),
        }
    }
    let per_layer = LayerIndex::all(layers.len()).zip(layers).map(|(layer, sums)| LayerChange {
        layer: layer.one_based(),
        attn: sums.attn.change(),
        ffn: sums.ffn.change(),
        all: sums.attn.plus(sums.ffn).change(),
        tensors: sums.tensors,
    });
    Ok(Diff {
        version: VERSION,
        a: a.to_string(),
        b: b.to_string(),
        layers: layout.layers.len(),
        embedding: embedding.change(),
        unembedding,
        final_norm: final_norm.change(),
        per_layer: per_layer.collect(),
    })
}

/// Fails unless two checkpoints have the same tensors, and names the first that differs.
pub fn check_alike((a, b): (&str, &str), first: &ParamLayout, second: &ParamLayout) -> Result<()> {
    let shape = |layout: &ParamLayout, name: &str| {
        let found = layout.tensors.iter().find(|spec| spec.name == name);
        found.map(|spec| format!("{:?}", spec.shape))
    };
    let names = first.tensors.iter().chain(&second.tensors).map(|spec| spec.name.as_str());
    for name in names {
        let (ours, theirs) = (shape(first, name), shape(second, name));
        if ours != theirs {
            let said = |shape: Option<String>| shape.unwrap_or_else(|| "not there".into());
            bail!(
                "two architectures cannot be compared: {name} is {} in {a} and {} in {b} ({} and {} layers); expected two \
                 checkpoints of one model, as a run's are",
                said(ours),
                said(theirs),
                first.layers.len(),
                second.layers.len()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::init::InitConfig;
    use proptest::prelude::*;

    fn layout(change: impl Fn(&mut InitConfig)) -> ParamLayout {
        let mut init =
            InitConfig { hidden_size: 16, layers: 2, heads: 2, kv_heads: 1, head_dim: 8, ..InitConfig::default() };
        (init.intermediate_size, init.vocab_size) = (24, Some(50));
        change(&mut init);
        ParamLayout::new(&init.model_config(50).unwrap())
    }

    fn between(layout: &ParamLayout, a: &[f32], b: &[f32]) -> Diff {
        let read = |spec: &TensorSpec, first: &mut Vec<f32>, second: &mut Vec<f32>| {
            (*first, *second) = (a[spec.range()].to_vec(), b[spec.range()].to_vec());
            Ok(())
        };
        diff(("a", "b"), layout, read).unwrap()
    }

    fn near(got: Option<f64>, expected: f64) -> bool {
        got.is_some_and(|got| (got - expected).abs() <= 1e-12 * (1.0 + expected.abs()))
    }

    #[test]
    fn numbers_that_can_be_checked_by_hand() {
        // |a| = 5, b - a = (0, 0, 1): |b| = sqrt(26), a.b = 25.
        let change = Sums::of(&[3.0, 4.0, 0.0], &[3.0, 4.0, 1.0]).change();
        assert!(near(change.relative, 0.2) && near(change.cosine, 25.0 / (5.0 * 26f64.sqrt())));
        assert!((change.rms - (1f64 / 3.0).sqrt()).abs() < 1e-15);
        assert_eq!((change.changed, change.parameters), (1.0 / 3.0, 3));
        let from_zero = Sums::of(&[0.0; 2], &[1.0; 2]).change();
        assert_eq!((from_zero.relative, from_zero.cosine, from_zero.changed), (None, None, 1.0));
        let still = Sums::of(&[0.0; 2], &[0.0; 2]).change();
        assert_eq!((still.relative, still.cosine), (Some(0.0), None));
    }

    /// Two layers: the first layer's FFN and the second's attention moved.
    pub(super) fn example() -> Diff {
        let layout = layout(|init| init.tie_word_embeddings = false);
        let a: Vec<f32> = (0..layout.len()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let mut b = a.clone();
        b[layout.layers[0].ffn_norm.start] += 1.0;
        b[layout.layers[1].o.start + 3] += 1.0;
        between(&layout, &a, &b)
    }

    #[test]
    fn what_moved_is_found_where_it_moved() {
        let d = example();
        let still = |c: &Change| c.relative == Some(0.0) && c.rms == 0.0 && c.changed == 0.0 && c.cosine == Some(1.0);
        assert!(still(&d.embedding) && d.unembedding.as_ref().is_some_and(still) && still(&d.final_norm));
        let [one, two] = &d.per_layer[..] else { panic!("two layers") };
        assert!(still(&one.attn) && !still(&one.ffn) && !still(&one.all));
        assert!(!still(&two.attn) && still(&two.ffn) && !still(&two.all));
        let moved = |layer: &LayerChange| -> Vec<String> {
            layer.tensors.iter().filter(|(_, c)| !still(c)).map(|(name, _)| name.clone()).collect()
        };
        assert_eq!((moved(one), moved(two)), (vec!["post_attention_layernorm".into()], vec!["o_proj".into()]));
        let counted = d.per_layer.iter().map(|l| l.all.parameters).sum::<u64>();
        let rest = d.embedding.parameters + d.final_norm.parameters + d.unembedding.map_or(0, |c| c.parameters);
        assert_eq!((counted + rest) as usize, layout(|init| init.tie_word_embeddings = false).len());
        let read: Diff = serde_json::from_str(&serde_json::to_string(&d).unwrap()).unwrap();
        assert_eq!((moved(&read.per_layer[0]), read.per_layer.len()), (moved(one), 2));
        // Every family's tensors have a place.
        use crate::model::config::Family;
        for family in [Family::Qwen2, Family::Qwen3, Family::Llama] {
            let layout = self::layout(|init| init.family = family);
            assert!(layout.tensors.iter().all(|spec| Part::of(&spec.name).is_some()));
            let zeros = vec![0f32; layout.len()];
            assert_eq!(between(&layout, &zeros, &zeros).unembedding, None);
        }
        assert_eq!(Part::of("model.layers.0.mamba.weight"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Pieces and threads change nothing but the rounding, and both directions agree on what they share.
        #[test]
        fn sums_are_those_of_the_definitions(n in 1usize..200_000, step in 1usize..9, scale in 1e-6f32..10.0) {
            let a: Vec<f32> = (0..n).map(|i| (i * 31 % 97) as f32 - 48.0).collect();
            let b: Vec<f32> = a.iter().enumerate().map(|(i, a)| if i % step == 0 { a + scale } else { *a }).collect();
            let (forth, back) = (Sums::of(&a, &b).change(), Sums::of(&b, &a).change());
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let apart = norm(&mut a.iter().zip(&b).map(|(a, b)| *b as f64 - *a as f64));
            let size = norm(&mut a.iter().map(|a| *a as f64));
            prop_assert!((forth.relative.unwrap() - apart / size).abs() <= 1e-9 * (1.0 + apart / size));
            prop_assert!((forth.rms - apart / (n as f64).sqrt()).abs() <= 1e-9 * (1.0 + forth.rms));
            let changed = a.iter().zip(&b).filter(|(a, b)| a != b).count();
            prop_assert_eq!(forth.changed, changed as f64 / n as f64);
            prop_assert_eq!((forth.rms, forth.cosine, forth.changed), (back.rms, back.cosine, back.changed));
        }
    }

    #[test]
    fn the_first_difference_of_two_architectures_is_named() {
        let one = layout(|_| ());
        let error = |other: &ParamLayout| check_alike(("one", "other"), &one, other).unwrap_err().to_string();
        let wide = error(&layout(|init| init.intermediate_size = 32));
        assert!(wide.contains("layers.0.mlp.gate_proj.weight is [24, 16] in one and [32, 16] in other"), "{wide}");
        let deep = error(&layout(|init| init.layers = 3));
        assert!(deep.contains("layers.2.input_layernorm.weight is not there in one and [16] in other"), "{deep}");
        assert!(deep.contains("2 and 3 layers"), "{deep}");
        let untied = error(&layout(|init| init.tie_word_embeddings = false));
        assert!(untied.contains("lm_head.weight is not there in one"), "{untied}");
        check_alike(("one", "one"), &one, &one).unwrap();
    }
}
