//! The analysis against PyTorch + transformers, under both lenses: entropies, divergences, log-probs, likeliest tokens,
//! decision depth, similarities (fixtures: tools/golden/make_analysis.py).
//!
//! Agreement is as in tests/golden.rs: 1e-4 of the value, or of the rms of its kind where a value nearly cancels. Likeliest
//! tokens must be the same: the two likeliest lie further apart than our rounding (`analysis.json` has the least gap).

use bupo::analysis::{Analysis, Flow, Lens, Reading, Sample};
use bupo::compute::Packing;
use bupo::compute::cpu::norm::rms_norm_in_place;
use bupo::model::{LayerIndex, Model, Tap, Workspace};
use bupo::policy::{Targets, gather_rows};
use safetensors::SafeTensors;
use std::path::PathBuf;

const CASES: [&str; 4] = ["qwen3", "qwen2", "llama", "llama3"];
const LENSES: [(Lens, &str); 2] = [(Lens::Raw, "raw"), (Lens::FinalNorm, "final_norm")];
const TOLERANCE: f64 = 1e-4;
const STATES: [&str; 6] = ["resid_pre", "attn_in", "attn", "ffn_in", "ffn", "resid_post"];

struct Case {
    name: &'static str,
    model: Model,
    samples: Vec<Sample>,
    bytes: Vec<u8>,
}

fn json(path: PathBuf) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn integers(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}

impl Case {
    fn open(name: &'static str) -> Case {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let inputs = std::fs::read(dir.join("golden.safetensors")).unwrap();
        let inputs = SafeTensors::deserialize(&inputs).unwrap();
        let starts = json(dir.join("meta.json"))["response_starts"].as_array().unwrap().clone();
        let sample = |(s, start): (usize, &serde_json::Value)| Sample {
            ids: integers(inputs.tensor(&format!("input_ids.{s}")).unwrap().data()),
            response_start: start.as_u64().unwrap() as usize,
        };
        let samples = starts.iter().enumerate().map(sample).collect();
        assert_eq!(json(dir.join("analysis.json"))["chosen"], 2);
        let bytes = std::fs::read(dir.join("analysis.safetensors")).unwrap();
        Case { name, model: Model::open(&dir).unwrap(), samples, bytes }
    }

    /// `[L, T]` or `[L, L, T]`, flat.
    fn values(&self, name: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).unwrap_or_else(|_| panic!("{} has no {name}", self.name));
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect()
    }

    fn whole(&self, name: &str) -> Vec<u32> {
        integers(SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).unwrap().data())
    }

    fn layers(&self) -> usize {
        self.model.config.layers
    }

    fn tokens(&self) -> usize {
        self.samples.iter().map(|s| s.ids.len() - s.response_start).sum()
    }

    /// The mean over tokens of each row of `[.., T]`.
    fn means(&self, name: &str) -> Vec<f64> {
        self.values(name).chunks_exact(self.tokens()).map(|row| row.iter().sum::<f64>() / row.len() as f64).collect()
    }

    fn analysis(&self, lens: Lens) -> Analysis {
        let reading = Reading { lens, chosen: Some(LayerIndex::from_one_based(2, self.layers()).unwrap()) };
        let (mut flow, mut ws) = (Flow::new(self.layers(), reading), Workspace::new(&self.model));
        flow.add(&self.model, &mut ws, &self.samples, &mut |_| ()).unwrap();
        flow.finish(&self.model, self.name, None).unwrap()
    }
}

fn agree(what: &str, ours: &[f64], theirs: &[f64]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let rms = (theirs.iter().map(|x| x * x).sum::<f64>() / theirs.len() as f64).sqrt();
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= TOLERANCE * b.abs().max(rms), "{what} [{i}]: {a}, PyTorch {b}");
    }
}

#[test]
fn every_token_of_every_layer() {
    for case in CASES.map(Case::open) {
        let (layers, d) = (case.layers(), case.model.config.hidden_size);
        let (mut packing, mut targets) = (Packing::new(), Targets::default());
        for sample in &case.samples {
            let rows = packing.push(&sample.ids);
            targets.push_response(&sample.ids, rows.start, sample.response_start);
        }
        for (lens, name) in LENSES {
            // The states of a token side by side, the final one last.
            let mut states = vec![0f32; targets.len() * (layers + 1) * d];
            let mut ws = Workspace::new(&case.model);
            case.model.forward_observed(&mut ws, &packing, Tap::Final, &mut |tap, state| {
                let place = match tap {
                    Tap::ResidPost(layer) => layer.index(),
                    Tap::Final => layers,
                    _ => return,
                };
                let mut rows = gather_rows(state, &targets.rows, d);
                if lens == Lens::FinalNorm && tap != Tap::Final {
                    let w = case.model.param(&case.model.layout.final_norm);
                    rms_norm_in_place(&mut rows, w, case.model.config.rms_norm_eps);
                }
                for (to, from) in states.chunks_exact_mut((layers + 1) * d).zip(rows.chunks_exact(d)) {
                    to[place * d..(place + 1) * d].copy_from_slice(from);
                }
            });
            let got = case.model.head(1.0).compare(&states, layers + 1, &[layers, 1], Some(&targets.ids));
            let by_layer = |values: &[f32]| -> Vec<f64> {
                (0..layers)
                    .flat_map(|layer| values.chunks_exact(layers + 1).map(move |token| token[layer] as f64))
                    .collect()
            };
            for (what, ours, theirs) in [
                ("entropies", &got.entropy, "entropy.resid_post"),
                ("log-probs", &got.log_probs, "log_probs"),
                ("D(layer || final)", &got.divergences[0].to, "kl_to_final"),
                ("D(final || layer)", &got.divergences[0].from, "kl_from_final"),
                ("D(layer || layer 2)", &got.divergences[1].to, "kl_to_chosen"),
                ("D(layer 2 || layer)", &got.divergences[1].from, "kl_from_chosen"),
            ] {
                let theirs = case.values(&format!("{name}.{theirs}"));
                agree(&format!("{} {name} {what}", case.name), &by_layer(ours), &theirs);
            }
            let top: Vec<u32> =
                (0..=layers).flat_map(|l| got.top.chunks_exact(layers + 1).map(move |token| token[l])).collect();
            assert_eq!(top, case.whole(&format!("{name}.top")), "{} {name}", case.name);
        }
    }
}

#[test]
fn means_shares_and_similarities() {
    for case in CASES.map(Case::open) {
        let layers = case.layers();
        for (lens, name) in LENSES {
            let analysis = case.analysis(lens);
            let column = |f: &dyn Fn(usize) -> f64| (0..layers).map(f).collect::<Vec<f64>>();
            let l = |i: usize| &analysis.per_layer[i];
            for (s, state) in STATES.iter().enumerate() {
                let of = |i: usize| {
                    let e = l(i).entropy;
                    [e.resid_pre, e.attn_in, e.attn, e.ffn_in, e.ffn, e.resid_post][s]
                };
                let theirs = case.means(&format!("{name}.entropy.{state}"));
                agree(&format!("{} {name} entropy of {state}", case.name), &column(&of), &theirs);
                // Standard deviations too, of each layer's tokens.
                let spread = |i: usize| {
                    let e = l(i).spread.entropy;
                    [e.resid_pre, e.attn_in, e.attn, e.ffn_in, e.ffn, e.resid_post][s].std
                };
                let all = case.values(&format!("{name}.entropy.{state}"));
                let std = |(row, mean): (&[f64], &f64)| {
                    (row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64).sqrt()
                };
                let theirs: Vec<f64> = all.chunks_exact(case.tokens()).zip(&theirs).map(std).collect();
                agree(&format!("{} {name} std of {state}", case.name), &column(&spread), &theirs);
            }
            let chosen = |i: usize| l(i).chosen.unwrap();
            for (key, ours) in [
                ("kl_to_final", column(&|i| l(i).last.kl_to)),
                ("kl_from_final", column(&|i| l(i).last.kl_from)),
                ("kl_to_chosen", column(&|i| chosen(i).kl_to)),
                ("kl_from_chosen", column(&|i| chosen(i).kl_from)),
                ("log_probs", column(&|i| l(i).last.log_prob)),
            ] {
                agree(&format!("{} {name} {key}", case.name), &ours, &case.means(&format!("{name}.{key}")));
            }
            agree("residual norms", &column(&|i| l(i).residual_norm), &case.means("norm"));
            agree("similarities", &analysis.similarity.concat(), &case.means("similarity"));
            let (top, at) = (case.whole(&format!("{name}.top")), case.whole(&format!("{name}.decided_at")));
            let (n, last) = (case.tokens(), layers * case.tokens());
            let share = |of: &dyn Fn(usize) -> bool| (0..n).filter(|t| of(*t)).count() as f64 / n as f64;
            for i in 0..layers {
                assert_eq!(l(i).last.top1_agreement, share(&|t| top[i * n + t] == top[last + t]));
                assert_eq!(l(i).last.decided, share(&|t| at[t] as usize == i + 1));
            }
            assert_eq!(analysis.decision.never, share(&|t| at[t] == 0));
            let decided: Vec<f64> = at.iter().filter(|l| **l > 0).map(|l| *l as f64).collect();
            let mean = decided.iter().sum::<f64>() / decided.len() as f64;
            assert_eq!(analysis.decision.mean_layer, (!decided.is_empty()).then_some(mean));
        }
    }
}

#[test]
fn the_last_layer_under_the_final_norm_is_the_models_own_policy() {
    for case in CASES.map(Case::open) {
        let analysis = case.analysis(Lens::FinalNorm);
        let last = analysis.per_layer[case.layers() - 1];
        assert_eq!(last.entropy.resid_post, analysis.final_entropy);
        assert_eq!((last.last.kl_to, last.last.kl_from, last.last.top1_agreement), (0.0, 0.0, 1.0));
        let (mut packing, mut targets) = (Packing::new(), Targets::default());
        for sample in &case.samples {
            let rows = packing.push(&sample.ids);
            targets.push_response(&sample.ids, rows.start, sample.response_start);
        }
        let mut ws = Workspace::new(&case.model);
        let own = bupo::policy::InternalPolicy::Final.score(&case.model, &mut ws, &packing, &targets, 1.0);
        let mean = own.log_probs.iter().map(|p| *p as f64).sum::<f64>() / targets.len() as f64;
        assert!((last.last.log_prob - mean).abs() < 1e-9, "{} {mean}", last.last.log_prob);
    }
}
