//! Training on a CUDA device against the CPU: GRPO, and BuPO on a layer, through the trainer itself. The device is the kernels' emulator,
//! or the GPU that `BUPO_TEST_DEVICE` names (`cuda:0`).
//!
//! In f32 both draw the same tokens, since the sampler's uniform numbers are the host's, and so everything else must be the same to
//! rounding. In bf16 the device draws its own, and what it says of them must fit what it then scores and learns.

#[macro_use]
mod common;

use bupo::compute::cpu::Cpu;
use bupo::compute::cuda::kernels::Real;
use bupo::model::init::{InitConfig, random_params};
use bupo::model::{Model, ParamLayout};
use bupo::reward::RewardConfig;
use bupo::rl::adamw::Optimizer;
use bupo::rl::trainer::{CompletionRow, StepReport, TrainSettings, Trainer};
use bupo::rl::{Advantage, LossConfig, OptimizerConfig, PhaseConfig, Schedule};
use bupo::rollout::{Rollout, Sampling};
use bupo::tasks::Problem;
use bupo::text::{Message, PromptEncoder, PromptTemplate, Tokenizer};
use common::places::{InBf16, Place, device};

const STEPS: usize = 3;

/// A model of heads of 16, of bytes.
fn model() -> Model {
    let init = InitConfig { hidden_size: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, ..InitConfig::default() };
    let init = InitConfig { intermediate_size: 48, max_position_embeddings: 64, ..init };
    let config = init.model_config(Tokenizer::byte_level().unwrap().vocab_size()).unwrap();
    let params = random_params(&config, &ParamLayout::new(&config), 0.3, 7);
    Model::new(config, params)
}

/// Half of all responses are right: those whose last visible character is of the first half.
fn reward() -> RewardConfig {
    toml::from_str("parts.half = { kind = \"regex\", pattern = \"[!-O]()[^!-~]*$\", compare = \"boxed\" }").unwrap()
}

fn settings(phases: &[PhaseConfig]) -> TrainSettings {
    TrainSettings {
        seed: 11,
        steps: STEPS,
        prompts_per_step: 4,
        group_size: 4,
        sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: 10 },
        dynamic_sampling: None,
        slots: 8,
        reward: reward(),
        advantage: Advantage::default(),
        gamma: 1.0,
        critic: None,
        epochs: 2,
        mini_batch_prompts: 2,
        micro_batch_tokens: 64,
        recompute: false,
        loss: LossConfig { kl_coef: 0.01, ..LossConfig::default() },
        lr: 1e-3,
        optimizer: OptimizerConfig::default(),
        schedule: Schedule::new(phases, 2, None).unwrap(),
    }
}

/// What the steps reported, and the parameters after them.
fn trained<B: Rollout>(backend: B, phases: &[PhaseConfig]) -> (Vec<StepReport>, Vec<f32>) {
    let (model, reference) = (model().on(backend.clone()), model().on(backend.clone()));
    let template = PromptTemplate::Plain { text: "{problem}".to_string() };
    let prompts = PromptEncoder::new(Tokenizer::byte_level().unwrap(), None, template, 16).unwrap();
    let optimizer = Optimizer::new_on(&backend, &model.layout);
    let mut trainer = Trainer::new(settings(phases), model, optimizer, None, Some(reference), &prompts).unwrap();
    let mut next = 0;
    let mut draw = |n: usize| {
        next += n;
        let message = |i: usize| Message { role: "user".to_string(), content: format!("{i}+{}=", i * 7 % 10) };
        Ok((next - n..next).map(|i| Problem::new("sums", vec![message(i)], String::new(), None)).collect())
    };
    let reports = (1..=STEPS).map(|step| trainer.step(step, &mut draw, &mut |_| ()).unwrap()).collect();
    backend.status().unwrap();
    let params = trainer.model.host_params().into_owned();
    (reports, params)
}

/// Compared in f32 alone.
const METRICS: InBf16 = InBf16 { kind: "metrics", worst: 0.0, distance: 0.0 };

fn trains_as_the_cpu_does(what: &str, phases: &[PhaseConfig], policies: [&str; STEPS]) {
    let start = model();
    let (expected, theirs) = trained(Cpu::default(), phases);
    let place = Place::device(Real::F32);
    let (got, ours) = trained(place.backend.clone(), phases);
    for ((got, expected), policy) in got.iter().zip(&expected).zip(policies) {
        let (a, b) = (&got.metrics, &expected.metrics);
        let what = format!("{what}, step {}", b.step);
        assert_eq!((a.policy.as_str(), b.policy.as_str()), (policy, policy), "{what}");
        let drawn = |report: &StepReport| {
            let row = |c: &CompletionRow| (c.response.clone(), c.tokens, c.advantage);
            report.completions.iter().map(row).collect::<Vec<_>>()
        };
        assert_eq!(drawn(got), drawn(expected), "{what}: responses and advantages");
        assert!(b.grad_norm > 0.0 && a.skipped_steps == 0, "{what}: nothing was learned");
        place.agree_on_one(&METRICS, &format!("{what}: norm"), a.grad_norm, b.grad_norm, 0.0);
        place.agree_on_one(&METRICS, &format!("{what}: entropy"), a.entropy_policy, b.entropy_policy, 0.0);
        assert!((a.loss - b.loss).abs() < 1e-5, "{what}: loss {} {}", a.loss, b.loss);
        eprintln!("{what}, f32: log-probs {:?}", a.rollout_log_prob_difference);
        assert!(a.rollout_log_prob_difference.max < 1e-4, "{what}: {:?}", a.rollout_log_prob_difference);
    }
    // An element whose gradient is near zero moves by a quotient of rounding errors.
    let mut most = [0.0; 2];
    for tensor in &start.layout.tensors {
        let range = tensor.range();
        let moved = |to: &[f32]| {
            to[range.clone()]
                .iter()
                .zip(&start.params[range.clone()])
                .map(|(a, b)| f64::from(a - b))
                .collect::<Vec<f64>>()
        };
        let [worst, distance] = common::places::apart(&moved(&ours), &moved(&theirs));
        most = [f64::max(most[0], worst), f64::max(most[1], distance)];
    }
    eprintln!("{what}, f32, what moved: worst {:.1e}, distance {:.1e}", most[0], most[1]);
    assert!(most[0] < 1e-2 && most[1] < 1e-3, "{what}: {most:?}");
    // In bf16 its own tokens, whose log-probs are those that an update sees, to eight bits of large logits (0.09 was measured).
    let (own, params) = trained(device(Real::Bf16), phases);
    for StepReport { metrics, .. } in &own {
        let difference = &metrics.rollout_log_prob_difference;
        eprintln!("{what}, bf16, step {}: log-probs {difference:?}, norm {}", metrics.step, metrics.grad_norm);
        assert!(difference.max < 0.2 && metrics.skipped_steps == 0 && metrics.loss.is_finite(), "{metrics:?}");
    }
    assert!(params != start.params && params.iter().all(|x| x.is_finite()));
}

/// One test, as nobody else may give a device work while a rollout's is captured.
#[test]
fn grpo_and_bupo_train_as_on_the_cpu() {
    trains_as_the_cpu_does("GRPO", &[], ["final"; STEPS]);
    let phases = [PhaseConfig::new("layer:1", Some(2)), PhaseConfig::new("final", None)];
    trains_as_the_cpu_does("BuPO", &phases, ["layer:1", "layer:1", "final"]);
}
