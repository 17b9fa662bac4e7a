use super::*;
use crate::model::ParamLayout;
use crate::model::init::{InitConfig, random_params};

const D: usize = 16;
const LAYERS: usize = 3;

fn model() -> Model {
    let init =
        InitConfig { hidden_size: D, layers: LAYERS, heads: 2, kv_heads: 1, head_dim: 8, ..InitConfig::default() };
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

fn layer(number: usize) -> LayerIndex {
    LayerIndex::from_one_based(number, LAYERS).unwrap()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum()
}

/// Every response token's state at a tap, one sequence at a time; with the token that came.
fn states(model: &Model, tap: Tap, lens: Lens) -> Vec<(Vec<f32>, u32)> {
    let mut out = Vec::new();
    for sample in samples() {
        let mut ws = Workspace::new(model);
        model.forward_observed(&mut ws, &Packing::single(&sample.ids), Tap::Final, &mut |at, state| {
            if at == tap {
                for row in sample.response_start - 1..sample.ids.len() - 1 {
                    let mut x = state.to_f32()[row * D..(row + 1) * D].to_vec();
                    if lens == Lens::FinalNorm && tap != Tap::Final {
                        let rms = (dot(&x, &x) / D as f64 + model.config.rms_norm_eps as f64).sqrt();
                        let w = model.param(&model.layout.final_norm);
                        x.iter_mut().zip(w).for_each(|(x, w)| *x = (*x as f64 / rms * *w as f64) as f32);
                    }
                    out.push((x, sample.ids[row + 1]));
                }
            }
        });
    }
    out
}

/// The paper's definitions, written out with every logit in f64: log-probs of all tokens of every response position.
fn slow(model: &Model, tap: Tap, lens: Lens) -> Vec<Vec<f64>> {
    let log_softmax = |(x, _): &(Vec<f32>, u32)| {
        let logits: Vec<f64> = model.param(&model.layout.unembed).chunks_exact(D).map(|e| dot(e, x)).collect();
        let lse = logits.iter().map(|z| z.exp()).sum::<f64>().ln();
        logits.iter().map(|z| z - lse).collect()
    };
    states(model, tap, lens).iter().map(log_softmax).collect()
}

fn entropy(p: &[f64]) -> f64 {
    -p.iter().map(|p| p.exp() * p).sum::<f64>()
}

fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn top(p: &[f64]) -> usize {
    (0..p.len()).max_by(|a, b| p[*a].total_cmp(&p[*b])).unwrap()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

fn analysed(reading: Reading, batches: &[&[Sample]]) -> Analysis {
    let model = model();
    let (mut flow, mut ws) = (Flow::new(LAYERS, reading), Workspace::new(&model));
    for batch in batches {
        flow.add(&model, &mut ws, batch, &mut |_| ()).unwrap();
    }
    flow.finish(&model, "m", None).unwrap()
}

const READINGS: [Lens; 2] = [Lens::Raw, Lens::FinalNorm];

#[test]
fn entropies_are_those_of_the_definitions() {
    for lens in READINGS {
        let (model, analysis) = (model(), analysed(Reading { lens, chosen: None }, &[&samples()]));
        assert_eq!((analysis.tokens, analysis.samples, analysis.layers), (5 + 4 + 1, 3, 3));
        for (layer, flow) in LayerIndex::all(LAYERS).zip(&analysis.per_layer) {
            for (tap, got, spread) in [
                (Tap::ResidPre(layer), flow.entropy.resid_pre, flow.spread.entropy.resid_pre),
                (Tap::AttnIn(layer), flow.entropy.attn_in, flow.spread.entropy.attn_in),
                (Tap::Attn(layer), flow.entropy.attn, flow.spread.entropy.attn),
                (Tap::FfnIn(layer), flow.entropy.ffn_in, flow.spread.entropy.ffn_in),
                (Tap::Ffn(layer), flow.entropy.ffn, flow.spread.entropy.ffn),
                (Tap::ResidPost(layer), flow.entropy.resid_post, flow.spread.entropy.resid_post),
            ] {
                let expected: Vec<f64> = slow(&model, tap, lens).iter().map(|p| entropy(p)).collect();
                let average = mean(expected.iter().copied());
                assert!((average - got).abs() < 1e-5, "{lens:?} {tap:?}");
                let std = mean(expected.iter().map(|h| (h - average).powi(2))).sqrt();
                assert!((std - spread.std).abs() < 1e-5, "{lens:?} {tap:?}: {std} {}", spread.std);
            }
        }
        let expected = mean(slow(&model, Tap::Final, lens).iter().map(|p| entropy(p)));
        assert!((expected - analysis.final_entropy).abs() < 1e-5);
    }
}

#[test]
fn divergences_log_probs_and_decisions_are_those_of_the_definitions() {
    for lens in READINGS {
        let model = model();
        let analysis = analysed(Reading { lens, chosen: Some(layer(2)) }, &[&samples()]);
        let last = slow(&model, Tap::Final, lens);
        let layers: Vec<_> = LayerIndex::all(LAYERS).map(|l| slow(&model, Tap::ResidPost(l), lens)).collect();
        let came: Vec<u32> = states(&model, Tap::Final, lens).into_iter().map(|(_, id)| id).collect();
        for (policy, flow) in layers.iter().zip(&analysis.per_layer) {
            let chosen = flow.chosen.unwrap();
            let pairs = |q: &[Vec<f64>], f: fn(&[f64], &[f64]) -> f64| mean(policy.iter().zip(q).map(|(p, q)| f(p, q)));
            let log_prob = mean(policy.iter().zip(&came).map(|(p, id)| p[*id as usize]));
            for (what, got, expected) in [
                ("to final", flow.last.kl_to, pairs(&last, kl)),
                ("from final", flow.last.kl_from, pairs(&last, |p, q| kl(q, p))),
                ("to chosen", chosen.kl_to, pairs(&layers[1], kl)),
                ("from chosen", chosen.kl_from, pairs(&layers[1], |p, q| kl(q, p))),
                ("log-prob", flow.last.log_prob, log_prob),
                ("agreement", flow.last.top1_agreement, pairs(&last, |p, q| (top(p) == top(q)) as u8 as f64)),
            ] {
                assert!((got - expected).abs() < 1e-5, "{lens:?} layer {} {what}: {got} {expected}", flow.layer);
            }
        }
        assert_eq!(
            analysis.per_layer[1].chosen,
            Some(crate::analysis::result::Divergence { kl_to: 0.0, kl_from: 0.0 })
        );
        let decided = |token: usize| {
            let agrees = |l: usize| top(&layers[l][token]) == top(&last[token]);
            (0..LAYERS).find(|l| (*l..LAYERS).all(agrees))
        };
        let of: Vec<Option<usize>> = (0..came.len()).map(decided).collect();
        for (i, flow) in analysis.per_layer.iter().enumerate() {
            let share = of.iter().filter(|d| **d == Some(i)).count() as f64 / of.len() as f64;
            assert_eq!(flow.last.decided, share, "{lens:?} layer {}", flow.layer);
        }
        let decision = analysis.decision;
        assert_eq!(decision.never, of.iter().filter(|d| d.is_none()).count() as f64 / of.len() as f64);
        let at: Vec<f64> = of.iter().flatten().map(|l| (*l + 1) as f64).collect();
        assert_eq!(decision.mean_layer, (!at.is_empty()).then(|| at.iter().sum::<f64>() / at.len() as f64));
    }
}

#[test]
fn similarities_and_norms_are_of_the_raw_states() {
    for lens in READINGS {
        let (model, analysis) = (model(), analysed(Reading { lens, chosen: None }, &[&samples()]));
        let raw: Vec<_> = LayerIndex::all(LAYERS).map(|l| states(&model, Tap::ResidPost(l), Lens::Raw)).collect();
        let cosine = |a: &[f32], b: &[f32]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        for i in 0..LAYERS {
            for j in 0..LAYERS {
                let expected = mean(raw[i].iter().zip(&raw[j]).map(|((a, _), (b, _))| cosine(a, b)));
                assert!((analysis.similarity[i][j] - expected).abs() < 1e-5, "{i} {j}");
            }
            let norm = mean(raw[i].iter().map(|(x, _)| dot(x, x).sqrt()));
            assert!((analysis.per_layer[i].residual_norm - norm).abs() < 1e-5);
        }
    }
}

#[test]
fn the_last_layer_under_the_final_norm_is_the_model_itself() {
    let analysis = analysed(Reading { lens: Lens::FinalNorm, chosen: None }, &[&samples()]);
    let last = analysis.per_layer[LAYERS - 1];
    assert_eq!(
        (last.entropy.resid_post, last.spread.entropy.resid_post),
        (analysis.final_entropy, analysis.final_spread)
    );
    assert_eq!((last.last.kl_to, last.last.kl_from, last.last.top1_agreement), (0.0, 0.0, 1.0));
    assert_eq!(analysis.decision.never, 0.0);
    // Under the raw lens it is not: no norm is applied, in the last layer neither.
    let raw = analysed(Reading::default(), &[&samples()]);
    assert_ne!(raw.per_layer[LAYERS - 1].entropy.resid_post, raw.final_entropy);
}

#[test]
fn packing_does_not_matter() {
    let reading = Reading { lens: Lens::Raw, chosen: Some(layer(1)) };
    let all = samples();
    assert_eq!(analysed(reading, &[&all]), analysed(reading, &[&all[..1], &all[1..]]));
}

#[test]
fn a_response_longer_than_what_is_held_is_read_in_parts() {
    let (model, reading) = (model(), Reading::default());
    let sample = Sample { ids: (0..40).map(|i| (i * 11) % 50).collect(), response_start: 3 };
    let mut flow = Flow::new(LAYERS, reading);
    let mut ws = Workspace::new(&model);
    let mut whole = Flow::new(LAYERS, reading);
    whole.add(&model, &mut ws, std::slice::from_ref(&sample), &mut |_| ()).unwrap();
    flow.add_at_most(&model, &mut ws, &[sample.clone(), sample.clone()], 7, &mut |_| ()).unwrap();
    whole.add(&model, &mut ws, &[sample], &mut |_| ()).unwrap();
    assert_eq!(flow.sums(), whole.sums());
}

#[test]
fn sums_that_were_saved_go_on_bit_for_bit() {
    let (model, all) = (model(), samples());
    let reading = Reading { lens: Lens::Raw, chosen: Some(layer(3)) };
    let mut ws = Workspace::new(&model);
    let mut flow = Flow::new(LAYERS, reading);
    flow.add(&model, &mut ws, &all[..2], &mut |_| ()).unwrap();
    let text = serde_json::to_string(flow.sums()).unwrap();
    let sums: Sums = serde_json::from_str(&text).unwrap();
    assert_eq!(&sums, flow.sums());
    let mut flow = Flow::go_on(LAYERS, reading, sums.clone()).unwrap();
    flow.add(&model, &mut ws, &all[2..], &mut |_| ()).unwrap();
    assert_eq!(flow.finish(&model, "m", None).unwrap(), analysed(reading, &[&all]));
    assert!(Flow::<Cpu>::go_on(LAYERS + 1, reading, sums.clone()).is_err());
    for (from, to) in [("\"tokens\":9", "\"tokens\":8"), ("\"never_decided\":", "\"never_decided\":1")] {
        assert!(text.contains(from), "{text}");
        let broken: Sums = serde_json::from_str(&text.replacen(from, to, 1)).unwrap();
        assert!(Flow::<Cpu>::go_on(LAYERS, reading, broken).is_err(), "{to}");
    }
}

#[test]
fn bad_samples_and_broken_models_are_refused() {
    let mut model = model();
    let mut ws = Workspace::new(&model);
    let mut refused = |model: &Model, sample: Sample| {
        let mut flow = Flow::new(LAYERS, Reading::default());
        format!("{:#}", flow.add(model, &mut ws, &[sample], &mut |_| ()).unwrap_err())
    };
    for (ids, response_start) in [(vec![1, 2], 2), (vec![1, 2], 0), (vec![1, 50], 1), (vec![1; 100_000], 1)] {
        assert!(refused(&model, Sample { ids, response_start }).starts_with("sample 1: "));
    }
    assert!(Flow::new(LAYERS, Reading::default()).finish(&model, "m", None).is_err());
    let norm = model.layout.layers[1].attn_norm.clone();
    model.params[norm][3] = f32::NAN;
    let error = refused(&model, samples().remove(0));
    assert!(error.contains("layer 2") && error.contains("samples 1 to 1"), "{error}");
}

#[test]
fn columns_flatten_every_number_of_a_layer() {
    let with = |chosen| analysed(Reading { lens: Lens::Raw, chosen }, &[&samples()]);
    let (none, chosen) = (with(None).columns(), with(Some(layer(1))).columns());
    let names = |columns: &[(String, Vec<Option<f64>>)]| columns.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(names(&none), names(&chosen));
    for name in ["layer", "entropy_resid_post", "spread_entropy_change_ffn_p90", "final_kl_to", "chosen_kl_from"] {
        assert!(names(&none).iter().any(|n| n == name), "{name}");
    }
    assert!(none.iter().all(|(name, values)| {
        values.len() == LAYERS && values.iter().all(|v| v.is_none() == name.starts_with("chosen"))
    }));
    assert!(chosen.iter().all(|(_, values)| values.iter().all(Option::is_some)));
}
