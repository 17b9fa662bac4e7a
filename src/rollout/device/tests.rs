//! Completions of a device against the CPU's: on the emulator, or on the GPU that `BUPO_TEST_DEVICE` names.

use super::*;
use crate::compute::cuda::emulated::device;
use crate::compute::cuda::kernels::Real;
use crate::compute::cuda::profile::Profiler;
use crate::compute::cuda::runtime::Runtime;
use crate::model::LoraConfig;
use crate::model::config::Family;
use crate::model::init::{InitConfig, random_params};
use crate::model::params::ParamLayout;
use crate::policy::InternalPolicy;
use crate::rollout::engine::{Completion, generate, run};
use crate::rollout::sampler::Sampling;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

const VOCAB: usize = 37;

/// One device for these tests, one at a time: nobody else may give it work while some is captured.
fn runtime() -> MutexGuard<'static, Arc<dyn Runtime>> {
    static DEVICE: OnceLock<Mutex<Arc<dyn Runtime>>> = OnceLock::new();
    DEVICE.get_or_init(|| Mutex::new(device())).lock().unwrap_or_else(PoisonError::into_inner)
}

/// A small model, no parameter of which is as it was initialised.
fn model(family: Family, tied: bool) -> Model {
    let init = InitConfig {
        family,
        hidden_size: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        intermediate_size: 96,
        tie_word_embeddings: tied,
        ..InitConfig::default()
    };
    let config = init.model_config(VOCAB).unwrap();
    let layout = ParamLayout::new(&config);
    let mut params = random_params(&config, &layout, 0.25, 5);
    let mut state = 1u64;
    for x in &mut params {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *x += (state >> 40) as f32 / (1u64 << 24) as f32 * 0.2 - 0.1;
    }
    Model::new(config, params)
}

/// Prompts of some lengths, with so many samples each.
fn requests(lens: &[usize], samples: u64) -> Vec<Request> {
    let prompt = |(i, len): (usize, &usize)| Request {
        prompt: (0..*len).map(|t| ((t * t + 7 * i + 3) % VOCAB) as u32).collect(),
        seeds: (0..samples).map(|s| 100 * i as u64 + s).collect(),
    };
    lens.iter().enumerate().map(prompt).collect()
}

const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: 21 };

const BLOCKS: Blocks = Blocks { steps: STEPS, capture: true, pages: None };

fn engine(policy: InternalPolicy, sampling: Sampling, slots: usize) -> Engine<'static> {
    Engine { policy, sampling, eos_ids: &[4, 30], slots }
}

type Completions = Vec<Vec<Completion>>;

fn on_cpu(model: &Model, engine: &Engine<'_>, requests: &[Request]) -> Completions {
    generate(model, &mut Workspace::new(model), engine, requests, &mut |_| ()).unwrap()
}

fn on_device(model: &Model<Cuda>, engine: &Engine<'_>, requests: &[Request], blocks: Blocks) -> Completions {
    let mut ws = Workspace::new(model);
    let mut session = DeviceSession::new(model, &mut ws, engine, requests, blocks).unwrap();
    let free = session.pages.free();
    let completions = run(&mut session, engine, requests, &mut |_, _, _| Ok(())).unwrap();
    assert_eq!(session.pages.free(), free, "pages that nobody gave back");
    completions
}

fn cuda(runtime: &Arc<dyn Runtime>, real: Real) -> Cuda {
    Cuda::new(Arc::clone(runtime), 0, real).unwrap()
}

/// Sums of a device are in another order than the CPU's.
fn same(what: &str, got: &Completions, expected: &Completions) {
    for (request, (got, expected)) in got.iter().zip(expected).enumerate() {
        for (sample, (got, expected)) in got.iter().zip(expected).enumerate() {
            let at = format!("{what}: request {request}, sample {sample}");
            assert_eq!((&got.ids, got.finish), (&expected.ids, expected.finish), "{at}");
            let numbers = |c: &Completion| c.log_probs.iter().chain(&c.entropies).copied().collect::<Vec<f32>>();
            for (a, b) in numbers(got).iter().zip(numbers(expected)) {
                assert!((a - b).abs() < 1e-4, "{at}: {a} {b}");
            }
        }
    }
}

fn check(model: &Model, policy: InternalPolicy, samplings: &[Sampling], lens: &[usize]) {
    let runtime = runtime();
    let on = model.clone().on(cuda(&runtime, Real::F32));
    let requests = requests(lens, 3);
    for sampling in samplings {
        let engine = engine(policy, *sampling, 4);
        let expected = on_cpu(model, &engine, &requests);
        same(&format!("{policy}, {sampling:?}"), &on_device(&on, &engine, &requests, BLOCKS), &expected);
    }
}

#[test]
fn a_device_draws_the_cpus_tokens() {
    let greedy = Sampling { temperature: 0.0, ..PLAIN };
    let restricted = [
        Sampling { temperature: 0.7, top_k: 5, ..PLAIN },
        Sampling { temperature: 1.3, top_p: 0.8, ..PLAIN },
        Sampling { top_k: 9, top_p: 0.9, ..PLAIN },
    ];
    check(&model(Family::Qwen3, true), InternalPolicy::Final, &[PLAIN, greedy], &[1, 16, 33]);
    check(&model(Family::Qwen2, false), InternalPolicy::Final, &[PLAIN, restricted[0]], &[17, 5]);
    check(&model(Family::Llama, true), InternalPolicy::Final, &restricted[1..], &[2, 40]);
}

/// How often each kernel is launched, and the products of a layer's weights, for completions of so many tokens.
fn launches(model: &Model, runtime: &Arc<dyn Runtime>, tokens: usize) -> BTreeMap<String, usize> {
    let profiler: Arc<dyn Runtime> = Arc::new(Profiler::new(Arc::clone(runtime)));
    let on = model.clone().on(cuda(&profiler, Real::F32));
    let sampling = Sampling { max_new_tokens: tokens, ..PLAIN };
    let engine = Engine { eos_ids: &[], ..engine(InternalPolicy::Final, sampling, 4) };
    on_device(&on, &engine, &requests(&[5], 2), BLOCKS);
    let mut calls = BTreeMap::new();
    for entry in profiler.profile().unwrap().entries {
        let name = if entry.name.starts_with("product") { "product" } else { &entry.name };
        *calls.entry(name.to_string()).or_default() += entry.calls;
    }
    calls
}

#[test]
fn a_step_takes_ten_launches_a_layer() {
    let (runtime, model) = (runtime(), model(Family::Qwen3, true));
    let [first, both] = [1, 2].map(|tokens| launches(&model, &runtime, tokens));
    let of_step: BTreeMap<&str, usize> = both
        .iter()
        .map(|(name, calls)| (name.as_str(), calls - first.get(name).unwrap_or(&0)))
        .filter(|(name, calls)| *calls > 0 && !["copy", "upload", "download"].contains(name))
        .collect();
    let of_layers = [
        ("product", 4),
        ("qk_rope_to_pages", 1),
        ("attention_decode_32", 1),
        ("attention_decode_merge", 1),
        ("add_rms_norm", 2),
        ("swiglu", 1),
    ];
    let mut expected: BTreeMap<&str, usize> = of_layers.map(|(name, calls)| (name, 2 * calls)).into();
    // The embedding with its norm, the head and the draw.
    *expected.get_mut("product").unwrap() += 1;
    expected.extend([("embed", 1), ("rms_norm", 1), ("sample", 1)]);
    assert_eq!(of_step, expected);
}

#[test]
fn any_policy_can_be_sampled_from() {
    let model = model(Family::Qwen3, false);
    for policy in ["layer:1", "normed:1", "attn:2", "ffn:2", "layer:2"] {
        let policy = InternalPolicy::parse(policy, 2).unwrap();
        check(&model, policy, &[Sampling { max_new_tokens: 6, ..PLAIN }], &[3, 19]);
    }
}

/// The second sequence passes the 256 tokens of a split on its way.
#[test]
fn long_sequences_are_split() {
    let greedy = Sampling { temperature: 0.0, ..PLAIN };
    check(&model(Family::Qwen3, true), InternalPolicy::Final, &[PLAIN, greedy], &[9, 235, 256]);
}

#[test]
fn neither_slots_nor_blocks_nor_graphs_change_a_token() {
    let (model, runtime) = (model(Family::Qwen3, true), runtime());
    let on = model.clone().on(cuda(&runtime, Real::F32));
    let requests = requests(&[12, 1, 20, 31], 5);
    let expected = on_cpu(&model, &engine(InternalPolicy::Final, PLAIN, 20), &requests);
    let ended_early = expected.iter().flatten().filter(|c| !c.truncated()).count();
    assert!(ended_early > 3 && ended_early < 20, "{ended_early} of 20 completions stop");
    for (slots, steps, capture) in
        [(1, 8, true), (3, 1, true), (3, 5, true), (9, 3, false), (17, 30, true), (64, 8, true)]
    {
        let got = on_device(
            &on,
            &engine(InternalPolicy::Final, PLAIN, slots),
            &requests,
            Blocks { steps, capture, pages: None },
        );
        same(&format!("{slots} slots, {steps} steps, captured: {capture}"), &got, &expected);
    }
}

/// With few pages sequences are given up and taken up again: what they had cached is computed once more, and they go on as if nothing
/// had been.
#[test]
fn a_cache_that_is_too_small_for_all_changes_no_token() {
    let (model, runtime) = (model(Family::Qwen3, true), runtime());
    let on = model.clone().on(cuda(&runtime, Real::F32));
    let requests = requests(&[12, 40, 17], 3);
    let sampling = Sampling { max_new_tokens: 36, ..PLAIN };
    let engine = Engine { eos_ids: &[4], ..engine(InternalPolicy::Final, sampling, 9) };
    let expected = on_cpu(&model, &engine, &requests);
    let all = Demand::of(&requests, 9, 36);
    assert_eq!((all.pages, all.fewest_pages), (1 + 3 + 2 + 9 * 3, 3 + 3 + 1 + 3));
    let (mut ws, mut ended) = (Workspace::new(&on), 0);
    let blocks = Blocks { pages: Some(17), ..BLOCKS };
    let mut session = DeviceSession::new(&on, &mut ws, &engine, &requests, blocks).unwrap();
    assert_eq!((session.pages.free(), session.scarce), (17, true));
    let mut count = |_: usize, _: usize, _: &Completion| {
        ended += 1;
        Ok(())
    };
    let got = run(&mut session, &engine, &requests, &mut count).unwrap();
    assert_eq!((session.pages.free(), ended), (17, 9));
    same("17 pages", &got, &expected);
}

/// The device rounds what products read to bf16, so its log-probs are the CPU's to 2^-8 of logits, and its tokens its own.
#[test]
fn log_probs_in_bf16_are_those_of_the_tokens_drawn() {
    let (model, runtime) = (model(Family::Qwen3, false), runtime());
    let on = model.clone().on(cuda(&runtime, Real::Bf16));
    let requests = requests(&[12, 30], 4);
    let completions = on_device(&on, &engine(InternalPolicy::Final, PLAIN, 6), &requests, BLOCKS);
    for (request, completions) in requests.iter().zip(&completions) {
        for completion in completions {
            let ids = [request.prompt.as_slice(), &completion.ids].concat();
            let (mut ws, packing) = (Workspace::new(&model), Packing::single(&ids));
            model.forward(&mut ws, &packing, crate::model::Tap::Final, Keep::Nothing);
            let rows = request.prompt.len() - 1..ids.len() - 1;
            let states = &ws.state().to_f32()[rows.start * 64..rows.end * 64];
            let stats = model.head(1.0).forward(states, Some(&completion.ids));
            for (got, expected) in completion.log_probs.iter().zip(&stats.log_probs) {
                assert!((got - expected).abs() < 0.15, "{got} {expected}");
            }
        }
    }
}

#[test]
fn an_adapter_is_part_of_the_step() {
    let mut model = model(Family::Qwen3, true);
    model.add_adapter(&LoraConfig { rank: 8, ..LoraConfig::default() }, "base", 3).unwrap();
    // B begins at zero.
    let start = model.layout.trainable().start;
    model.params[start..].iter_mut().enumerate().for_each(|(i, x)| *x += 0.1 * (i as f32 * 0.7).sin());
    check(&model, InternalPolicy::Final, &[Sampling { max_new_tokens: 8, ..PLAIN }], &[7, 16]);
}

#[test]
fn one_token_each_takes_no_step() {
    let sampling = Sampling { max_new_tokens: 1, ..PLAIN };
    check(&model(Family::Qwen3, true), InternalPolicy::Final, &[sampling], &[4, 18]);
}

#[test]
fn what_does_not_fit_is_said_with_its_sizes() {
    let (model, runtime) = (model(Family::Qwen3, true), runtime());
    let on = model.clone().on(Cuda::new(Arc::clone(&runtime), 1 << 20, Real::F32).unwrap());
    let sampling = Sampling { max_new_tokens: 1000, ..PLAIN };
    let (requests, mut ws) = (requests(&[12], 64), Workspace::new(&on));
    let big = engine(InternalPolicy::Final, sampling, 64);
    let error = format!("{:#}", generate(&on, &mut ws, &big, &requests, &mut |_| ()).unwrap_err());
    assert!(
        error.contains("sequences of up to 1012 tokens, up to 64 at once") && error.contains("rollout.slots"),
        "{error}"
    );
    // And it can be tried again.
    let sampling = Sampling { max_new_tokens: 4, ..PLAIN };
    let small = engine(InternalPolicy::Final, sampling, 2);
    let requests = &requests[..1];
    let got = generate(&on, &mut ws, &small, requests, &mut |_| ()).unwrap();
    same("after an error", &got, &on_cpu(&model, &small, requests));
}

#[test]
fn demand_is_what_may_be_there_at_once() {
    let mut requests = requests(&[40, 16, 17], 2);
    let of = |requests: &[Request], slots| Demand::of(requests, slots, 34);
    // 33 tokens of their own are three pages.
    let pages = 3 + 2 + 1 + 6 * 3;
    let all = Demand { sequences: 6, longest: 74, longest_pages: 7, pages, fewest_pages: 7 + 3 };
    assert_eq!(of(&requests, 8), all);
    assert_eq!(of(&requests, 1).pages, 3 + 2 + 3);
    requests[1].seeds.clear();
    assert_eq!(of(&requests, 1).pages, 3 + 2 + 3, "nobody asks for the second");
}
