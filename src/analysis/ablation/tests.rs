use super::*;
use crate::model::ParamLayout;
use crate::model::init::{InitConfig, random_params};
use crate::policy::InternalPolicy;
use std::cell::Cell;

const LAYERS: usize = 3;

fn model() -> Model {
    let init =
        InitConfig { hidden_size: 32, layers: LAYERS, heads: 4, kv_heads: 2, head_dim: 8, ..InitConfig::default() };
    let config = init.model_config(50).unwrap();
    let params = random_params(&config, &ParamLayout::new(&config), 0.2, 7);
    Model::new(config, params)
}

fn samples() -> Vec<Sample> {
    let sample = |n: usize, start, seed: u32| Sample {
        ids: (0..n as u32).map(|i| (i * 7 + seed * 13) % 50).collect(),
        response_start: start,
    };
    vec![sample(9, 3, 1), sample(5, 4, 2), sample(12, 1, 3)]
}

fn layer(n: usize) -> LayerIndex {
    LayerIndex::from_one_based(n, LAYERS).unwrap()
}

fn all(model: &Model) -> Vec<Module> {
    modules(&model.config, &(layer(1)..=layer(LAYERS)), true)
}

fn study(means: Option<Means>, packs: &[&[Sample]], bytes: usize) -> Sums {
    let mut model = model();
    let (mut ws, mut study) = (Workspace::new(&model), Study::new(all(&model), means));
    for pack in packs {
        assert!(study.add_at_most(&mut model, &mut ws, pack, bytes, &mut to_its_end()).unwrap());
    }
    study.sums
}

/// Nobody follows it.
fn to_its_end() -> Watch<'static> {
    Watch { go_on: &|| true, done: Box::leak(Box::new(|_: &Sums, _| Ok(()))) }
}

fn means(model: &Model) -> Means {
    let mut averages = Averages::new(&model.config);
    averages.add(model, &mut Workspace::new(model), &samples(), &mut |_| ()).unwrap();
    averages.finish()
}

/// Log-probs and entropies of all response tokens under the final policy.
fn scored(model: &Model) -> (Vec<f32>, Vec<f32>) {
    let (packing, targets, taken) = pack(&samples(), usize::MAX);
    assert_eq!(taken, 3);
    let stats = InternalPolicy::Final.score(model, &mut Workspace::new(model), &packing, &targets, 1.0);
    (stats.log_probs, stats.entropy)
}

fn mean(of: impl Iterator<Item = f32>) -> f64 {
    let values: Vec<f64> = of.map(f64::from).collect();
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn effects_are_differences_from_the_whole_model() {
    let mut model = model();
    let (log_probs, entropy) = scored(&model);
    for means in [None, Some(means(&model))] {
        let (names, replace) = (all(&model), if means.is_some() { Replacement::Mean } else { Replacement::Zero });
        let found = study(means.clone(), &[&samples()], HELD_BYTES).finish(&model.config, &names, "m", replace);
        let found = found.unwrap();
        assert_eq!((found.tokens, found.samples, found.per_layer.len()), (18, 3, LAYERS));
        assert!((found.entropy - mean(entropy.iter().copied())).abs() < 1e-5);
        assert!((found.log_prob - mean(log_probs.iter().copied())).abs() < 1e-5);
        assert_eq!(found.modules().len(), names.len());
        for (module, (name, effect)) in names.iter().zip(found.modules()) {
            assert_eq!(module.to_string(), name);
            model.ablate(&[*module], means.as_ref()).unwrap();
            let (without, entropy_without) = scored(&model);
            let change = |a: &[f32], b: &[f32]| mean(a.iter().zip(b).map(|(a, b)| a - b));
            assert!((effect.log_prob_change - change(&without, &log_probs)).abs() < 1e-5, "{name}");
            assert!((effect.entropy_change - change(&entropy_without, &entropy)).abs() < 1e-5, "{name}");
            assert!(effect.kl > 1e-6 && effect.kl_std > 0.0 && effect.top1_agreement <= 1.0, "{name}: {effect:?}");
        }
        model.ablate(&[], None).unwrap();
    }
}

#[test]
fn a_module_that_writes_nothing_is_not_missed() {
    let mut model = model();
    let down = model.layout.layers[1].down.clone();
    model.params[down].fill(0.0);
    let (mut ws, mut study) = (Workspace::new(&model), Study::new(all(&model), None));
    study.add(&mut model, &mut ws, &samples(), &mut to_its_end()).unwrap();
    let found = study.finish(&model.config, "m").unwrap();
    let nothing = Effect { kl: 0.0, kl_std: 0.0, log_prob_change: 0.0, entropy_change: 0.0, top1_agreement: 1.0 };
    assert_eq!(found.per_layer[1].ffn, nothing);
    assert_eq!(found.per_layer[1].both, found.per_layer[1].attn);
    assert_ne!(found.per_layer[1].attn, nothing);
}

/// Neither how samples are packed, nor how many states are compared at a time, nor an interruption changes a bit.
#[test]
fn sums_do_not_depend_on_how_they_were_cut() {
    let (model, all_samples) = (model(), samples());
    for means in [None, Some(means(&model))] {
        let whole = study(means.clone(), &[&all_samples], HELD_BYTES);
        for bytes in [0, 32 * 4 * 18 * 6] {
            assert_eq!(study(means.clone(), &[&all_samples], bytes), whole);
        }
        let first = study(means.clone(), &[&all_samples[..1]], HELD_BYTES);
        let saved: Sums = serde_json::from_str(&serde_json::to_string(&first).unwrap()).unwrap();
        let mut model = self::model();
        let mut study = Study::go_on(all(&model), means, saved).unwrap();
        let mut ws = Workspace::new(&model);
        study.add(&mut model, &mut ws, &all_samples[1..], &mut to_its_end()).unwrap();
        assert_eq!(study.sums, whole);
    }
}

/// What is told when the last group of a pack is done holds all of its samples.
#[test]
fn a_pack_that_is_done_is_counted_once() {
    let (mut model, all_samples) = (model(), samples());
    let (mut ws, mut study) = (Workspace::new(&model), Study::new(all(&model), None));
    let mut last = study.sums().clone();
    let mut done = |sums: &Sums, _| {
        last = sums.clone();
        Ok(())
    };
    let mut watch = Watch { go_on: &|| true, done: &mut done };
    assert!(study.add(&mut model, &mut ws, &all_samples, &mut watch).unwrap());
    assert_eq!((last.samples(), &last), (3, study.sums()));
}

/// Stopped before any module of a pack, or saved after any group of them, a study ends with the same bits.
#[test]
fn a_study_goes_on_within_a_pack() {
    let (all_samples, held) = (samples(), 32 * 4 * 18 * 6);
    let whole = study(None, &[&all_samples], held);
    for modules in [0, 1, 6, 13, 20] {
        let (mut model, asked) = (model(), Cell::new(0));
        let (mut ws, mut first) = (Workspace::new(&model), Study::new(all(&model), None));
        let go_on = || asked.replace(asked.get() + 1) < modules;
        let (mut saved, mut told) = (first.sums().clone(), 0);
        let mut done = |sums: &Sums, n: u64| {
            (saved, told) = (sums.clone(), told + n);
            Ok(())
        };
        let mut watch = Watch { go_on: &go_on, done: &mut done };
        assert!(!first.add_at_most(&mut model, &mut ws, &all_samples, held, &mut watch).unwrap());
        // Groups of five that were whole; what is told last can be gone on with.
        assert_eq!((told, first.sums()), (3 * 5 * (modules as u64 / 5), &saved));
        let saved: Sums = serde_json::from_str(&serde_json::to_string(&saved).unwrap()).unwrap();
        let mut second = Study::go_on(all(&model), None, saved).unwrap();
        assert_eq!(modules < 5, second.finish(&model.config, "m").unwrap_err().to_string().starts_with("nothing"));
        assert!(second.add_at_most(&mut model, &mut ws, &all_samples, held, &mut to_its_end()).unwrap());
        assert_eq!(second.sums, whole, "{modules}");
    }
}

#[test]
fn means_are_over_every_token_that_is_packed() {
    let model = model();
    let (packing, _, _) = pack(&samples(), usize::MAX);
    let means = means(&model);
    for tap in [Tap::Z(layer(2)), Tap::Attn(layer(1)), Tap::Ffn(layer(3))] {
        let (mut ws, width) = (Workspace::new(&model), tap.width(&model.config));
        model.forward(&mut ws, &packing, tap, Keep::Nothing);
        let of = &means.layers[tap.layer().unwrap().index()];
        let got = match tap {
            Tap::Z(_) => &of.z,
            Tap::Attn(_) => &of.attn,
            _ => &of.ffn,
        };
        for (column, got) in got.iter().enumerate() {
            let expected = mean(ws.state().f32().iter().skip(column).step_by(width).copied());
            assert!((f64::from(*got) - expected).abs() < 1e-6, "{tap} {column}: {got}, expected {expected}");
        }
    }
}

#[test]
fn what_cannot_be_gone_on_with_or_is_broken_is_refused() {
    let mut model = model();
    let sums = study(None, &[&samples()], HELD_BYTES);
    let some = modules(&model.config, &(layer(2)..=layer(2)), false);
    assert_eq!(some.len(), 3);
    assert!(Study::<Cpu>::go_on(some.clone(), None, sums.clone()).is_err());
    let text = serde_json::to_string(&sums).unwrap().replacen("\"tokens\":18", "\"tokens\":17", 1);
    assert!(Study::<Cpu>::go_on(all(&model), None, serde_json::from_str(&text).unwrap()).is_err());
    assert!(Study::<Cpu>::new(some.clone(), None).finish(&model.config, "m").is_err());
    let mut ws = Workspace::new(&model);
    let mut refused = |model: &mut Model, sample: Sample| {
        let mut study = Study::new(some.clone(), None);
        format!("{:#}", study.add(model, &mut ws, &[sample], &mut to_its_end()).unwrap_err())
    };
    assert!(refused(&mut model, Sample { ids: vec![1, 2], response_start: 2 }).starts_with("sample 1: "));
    let norm = model.layout.layers[1].attn_norm.clone();
    model.params[norm][3] = f32::NAN;
    assert!(refused(&mut model, samples().remove(0)).contains("samples 1 to 1: an entropy"));
}
