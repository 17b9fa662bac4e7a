//! Models that need no checkpoint: published shapes, with random weights that are made fast.

use crate::cli::Shape;
use crate::model::init::InitConfig;
use crate::model::{Model, ModelConfig, ParamLayout};
use crate::tasks::seed::mix;
use anyhow::Result;
use rayon::prelude::*;

/// Of matrices and embeddings.
const STD: f32 = 0.02;
const SEED: u64 = 1;

/// A model of this shape, on the host; the same one every time.
pub fn random_model(shape: Shape) -> Result<Model> {
    let config = config(shape)?;
    let params = random_params(&ParamLayout::new(&config), SEED);
    Ok(Model::new(config, params))
}

/// As on the hub, `tiny` of our own; benches/cuda_peers.py has the same.
pub fn config(shape: Shape) -> Result<ModelConfig> {
    let (vocab, hidden_size, layers, heads, kv_heads, head_dim, intermediate_size) = match shape {
        Shape::Qwen3_0_6b => (151936, 1024, 28, 16, 8, 128, 3072),
        Shape::Qwen3_1_7b => (151936, 2048, 28, 16, 8, 128, 6144),
        Shape::Qwen3_4b => (151936, 2560, 36, 32, 8, 128, 9728),
        Shape::Qwen3_8b => (151936, 4096, 36, 32, 8, 128, 12288),
        Shape::Tiny => (512, 64, 4, 4, 2, 32, 128),
    };
    let init = InitConfig {
        hidden_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate_size,
        max_position_embeddings: 40960,
        rope_theta: 1e6,
        tie_word_embeddings: shape != Shape::Qwen3_8b,
        ..InitConfig::default()
    };
    init.model_config(vocab)
}

/// Norms of 1, and everything else nearly normal(0, [`STD`]): a parameter is a function of the seed and of its place alone, which costs
/// a hash where [`crate::model::init::random_params`] takes logarithms and a stream: billions in seconds.
fn random_params(layout: &ParamLayout, seed: u64) -> Vec<f32> {
    /// Elements of one task.
    const PIECE: usize = 1 << 16;
    let (seed, mut params) = (mix(seed), vec![0.0; layout.len()]);
    for spec in &layout.tensors {
        let tensor = &mut params[spec.range()];
        if spec.name.ends_with("norm.weight") {
            tensor.fill(1.0);
            continue;
        }
        tensor.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| {
            let first = spec.offset + piece * PIECE;
            out.iter_mut().enumerate().for_each(|(i, x)| *x = STD * nearly_normal(seed, (first + i) as u64));
        });
    }
    params
}

/// Mean 0 and variance 1: the sum of four uniform numbers, the 16-bit parts of SplitMix64's number at this place of its sequence.
fn nearly_normal(seed: u64, place: u64) -> f32 {
    // A uniform number of n values, n large, has the variance n^2 / 12.
    const UNIT: f32 = 1.0 / (65536.0 * 0.577_350_3);
    let bits = mix(seed.wrapping_add((place + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let sum = (0..4).map(|part| (bits >> (16 * part)) as i32 & 0xFFFF).sum::<i32>();
    (sum - 2 * 65535) as f32 * UNIT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_shapes_have_their_number_of_parameters() {
        let parameters = |shape| ParamLayout::new(&config(shape).unwrap()).len();
        assert_eq!(parameters(Shape::Qwen3_0_6b), 596_049_920);
        assert_eq!(parameters(Shape::Qwen3_1_7b), 1_720_574_976);
        assert_eq!(parameters(Shape::Qwen3_4b), 4_022_468_096);
    }

    #[test]
    fn weights_are_nearly_normal_and_the_same_with_any_number_of_threads() {
        let with_threads = |n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| random_model(Shape::Tiny)).unwrap()
        };
        let model = with_threads(1);
        assert_eq!(model.params, with_threads(3).params);
        for spec in &model.layout.tensors {
            let (values, n) = (&model.params[spec.range()], spec.len() as f64);
            if spec.name.ends_with("norm.weight") {
                assert!(values.iter().all(|x| *x == 1.0), "{}", spec.name);
                continue;
            }
            let moment = |power: i32| values.iter().map(|x| f64::from(x / STD).powi(power)).sum::<f64>() / n;
            // Five standard errors at least; the fourth moment is a normal's 3 less 1.2 / 4.
            let tolerance = 5.0 / n.sqrt();
            assert!(moment(1).abs() < tolerance, "{}: mean {}", spec.name, moment(1));
            assert!((moment(2) - 1.0).abs() < 1.5 * tolerance, "{}: variance {}", spec.name, moment(2));
            assert!((moment(4) - 2.7).abs() < 6.0 * tolerance, "{}: fourth moment {}", spec.name, moment(4));
        }
        let neighbours = model.params.windows(2).map(|w| f64::from(w[0] * w[1])).take(32768).sum::<f64>() / 32768.0;
        assert!(neighbours.abs() < 5.0 / 32768f64.sqrt() * f64::from(STD * STD), "{neighbours}");
    }
}
