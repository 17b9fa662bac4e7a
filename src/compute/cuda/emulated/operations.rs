//! A decoder's operations as [`Cuda`] does them, against the CPU's: one body for both, whose outputs must be close.

use super::{EMULATED_BYTES, Real, device, gpu, numbers};
use crate::compute::backend::{
    AdamwStep, AttentionForward, Branches, FinalNorm, HeadStats, Heads, Inspect, Kind, LinearShape, LowRank, QkNorms,
    RowGradients, Unembedding, Weight, sure,
};
use crate::compute::cpu::Cpu;
use crate::compute::cuda::backend::Cuda;
use crate::compute::cuda::emulator::{Emulator, Order};
use crate::compute::{Backend, Packing};
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

/// What a body computed, by name.
type Outputs = Vec<(&'static str, Vec<f32>)>;

/// An array's elements.
fn on_host<B: Backend>(b: &B, array: &B::Array) -> Vec<f32> {
    b.host(array).into_owned()
}

fn cuda(real: Real) -> Cuda {
    let runtime = gpu().unwrap_or_else(|| Arc::new(Emulator::new(Order::Shuffled, EMULATED_BYTES)));
    // Blocks of few rows and tiles of few columns, so that a head has several.
    let cuda = Cuda::new(runtime, 64 << 20, real).unwrap_or_else(|error| panic!("{error}"));
    cuda.with_head_rows(64).with_head_tile(64 * 128)
}

/// Outputs of the same body on both; in bf16 of numbers that are bf16 already.
fn check(cpu: impl Fn(&Cpu, Real) -> Outputs, on_device: impl Fn(&Cuda, Real) -> Outputs) {
    for real in Real::BOTH {
        let device = cuda(real);
        let (expected, got) = (cpu(&Cpu::default(), real), on_device(&device, real));
        device.status().unwrap_or_else(|error| panic!("{error}"));
        // Sums in another order; what lies between operations, and results, rounded to eight bits.
        let bound = real.pick(1e-5, 1e-2);
        for ((name, expected), (_, got)) in expected.iter().zip(&got) {
            assert_eq!(got.len(), expected.len(), "{name}");
            let largest = expected.iter().fold(1e-30f32, |m, x| m.max(x.abs()));
            let off = got.iter().zip(expected).fold(0f32, |worst, (a, b)| {
                let off = (a - b).abs() / largest;
                if off.is_nan() { f32::INFINITY } else { worst.max(off) }
            });
            eprintln!("{real:?} {name}: off by {off:.1e} of the largest, {largest:.2e}");
            assert!(off <= bound, "{real:?} {name}: off by {off:e} of the largest, bound {bound:e}");
        }
        assert_eq!(device.arena().usage().0, 0, "memory was kept");
    }
}

/// One body for both.
macro_rules! both {
    ($body:ident) => {
        check($body::<Cpu>, $body::<Cuda>)
    };
}

fn array<B: Backend>(b: &B, values: &[f32]) -> B::Array {
    let mut array = B::Array::default();
    b.upload(values, &mut array);
    array
}

fn factor<B: Backend>(b: &B, values: &[f32]) -> B::Array {
    let (x, mut room, mut out) = (array(b, values), B::Array::default(), B::Array::default());
    b.copy(b.factor(&x, &mut room), &mut out);
    out
}

fn room<B: Backend>(b: &B, len: usize, kind: Kind) -> B::Array {
    let mut array = B::Array::default();
    b.resize(&mut array, len, kind);
    array
}

/// Parameters, each a range of the flat array, behind something else.
fn params<B: Backend>(b: &B, tensors: &[Vec<f32>]) -> (B::Params, Vec<Range<usize>>) {
    let mut flat = vec![9.0; 24];
    let ranges = tensors.iter().map(|tensor| {
        let from = flat.len();
        flat.extend_from_slice(tensor);
        from..flat.len()
    });
    let ranges = ranges.collect();
    (b.load(flat), ranges)
}

fn packing() -> Packing {
    let ids = |n: u32, seed: u32| -> Vec<u32> { (0..n).map(|i| (i * i * 7 + i + seed) % 11).collect() };
    let mut packing = Packing::new();
    packing.push(&ids(35, 1));
    packing.push_continuation(&ids(20, 2));
    packing.push_continuation(&ids(1, 3));
    packing.push(&ids(14, 4));
    packing
}

const HEADS: Heads = Heads { heads: 4, kv_heads: 2, head_dim: 32 };
const EPS: f32 = 1e-6;

fn arrays<B: Backend>(b: &B, _: Real) -> Outputs {
    let (x, y) = (numbers(203, 1), numbers(203, 2));
    let (mut on_x, on_y) = (array(b, &x), array(b, &y));
    b.accumulate(&on_y, &mut on_x);
    let sum = on_host(b, &on_x);
    b.zero_part(B::part(&mut on_x, 16..40));
    b.zero_part(B::part(&mut on_x, 56..80));
    b.zero_part(B::part(&mut on_x, 48..56));
    let mut copied = B::Array::default();
    b.copy(&on_x, &mut copied);
    b.zero(&mut on_x);
    b.resize(&mut copied, 100, Kind::F32);
    let factors = factor(b, &x[..16]);
    let mut sums = room(b, 16, Kind::F32);
    b.add(&array(b, &y[..16]), &factors, &mut sums);
    let flat = b.load(x.clone());
    vec![
        ("accumulate", sum),
        ("copy", on_host(b, &copied)),
        ("zero", on_host(b, &on_x)),
        ("factor", on_host(b, &factors)),
        ("add", on_host(b, &sums)),
        ("parameters", b.store(&flat).into_owned()),
        ("nothing", on_host(b, &B::Array::default())),
    ]
}

#[test]
fn arrays_keep_what_is_put_into_them() {
    both!(arrays);
}

fn embedding<B: Backend>(b: &B, _: Real) -> Outputs {
    let (packing, d) = (packing(), 40);
    let t = packing.rows();
    let (flat, ranges) = params(b, &[numbers(11 * d, 1)]);
    let batch = b.batch(&packing, HEADS);
    let mut out = room(b, t * d, Kind::F32);
    b.embed(Weight::AsItLies(B::params(&flat, &ranges[0])), B::tokens(&batch), &mut out, d);
    let mut grads = array(b, &numbers(16 + 11 * d, 2));
    b.embed_backward(&array(b, &numbers(t * d, 3)), &batch, B::part(&mut grads, 16..16 + 11 * d), d);
    vec![("embed", on_host(b, &out)), ("embed_backward", on_host(b, &grads))]
}

#[test]
fn the_embedding_and_its_gradient() {
    both!(embedding);
}

fn norms<B: Backend>(b: &B, real: Real) -> Outputs {
    let (t, d) = (70, 136);
    let (flat, ranges) = params(b, &[numbers(d, 1)]);
    let w = B::params(&flat, &ranges[0]);
    let x = array(b, &numbers(t * d, 2));
    let branch = factor(b, &real.stored(&numbers(t * d, 3)));
    let (mut y, mut inv_rms) = (room(b, t * d, Kind::Factor), room(b, t, Kind::F32));
    let (mut sum, mut y2, mut inv2) = (room(b, t * d, Kind::F32), room(b, t * d, Kind::Factor), room(b, t, Kind::F32));
    b.rms_norm(&x, w, EPS, &mut y, &mut inv_rms);
    b.add_rms_norm(&x, &branch, w, EPS, &mut sum, &mut y2, &mut inv2);
    let mut again = room(b, t * d, Kind::Factor);
    b.rms_norm_again(&sum, w, &inv2, &mut again);
    let mut outputs = vec![
        ("rms_norm", on_host(b, &y)),
        ("inv_rms", on_host(b, &inv_rms)),
        ("add_rms_norm sum", on_host(b, &sum)),
        ("add_rms_norm", on_host(b, &y2)),
        ("rms_norm_again", on_host(b, &again)),
    ];
    let dy = real.stored(&numbers(t * d, 4));
    for (dy, with_dw, accumulate) in
        [(factor(b, &dy), true, true), (array(b, &dy), true, false), (factor(b, &dy), false, true)]
    {
        let (mut dx, mut grads) = (array(b, &numbers(t * d, 5)), array(b, &numbers(8 + d, 6)));
        let dw = with_dw.then(|| B::part(&mut grads, 8..8 + d));
        let (mut rounded, mut again) = Default::default();
        b.rms_norm_backward(&x, w, &inv_rms, &dy, &mut dx, &mut rounded, dw, accumulate);
        let left = on_host(b, b.left_factor(&dx, &rounded));
        assert_eq!(left, on_host(b, b.factor(&dx, &mut again)), "rounded as it is by itself");
        outputs.extend([("norm dx", on_host(b, &dx)), ("norm dw", on_host(b, &grads))]);
    }
    outputs
}

#[test]
fn norms_and_their_gradients() {
    both!(norms);
}

fn linears<B: Backend>(b: &B, real: Real) -> Outputs {
    let (t, inputs, outputs) = (21, 48, 56);
    let shape = LinearShape { t, inputs, outputs };
    let (flat, ranges) = params(b, &[numbers(8, 9), real.stored(&numbers(outputs * inputs, 1)), numbers(outputs, 2)]);
    let [w, bias] = [1, 2].map(|at| B::params(&flat, &ranges[at]));
    let x = factor(b, &real.stored(&numbers(t * inputs, 3)));
    let dy = factor(b, &real.stored(&numbers(t * outputs, 4)));
    let (mut results, packed) = (vec![], b.pack(w, outputs, inputs));
    for bias in [None, Some(bias)] {
        let (mut y, w) = (room(b, t * outputs, Kind::Factor), B::params(&flat, &ranges[1]));
        b.linear(&x, packed.as_ref().map_or(Weight::AsItLies(w), Weight::Packed), bias, &mut y, shape);
        results.push(("linear", on_host(b, &y)));
    }
    let mut dx = room(b, t * inputs, Kind::Factor);
    b.linear_backward_input(&dy, w, &mut dx, shape);
    let mut grads = array(b, &numbers(40 + outputs * inputs + outputs, 5));
    b.linear_backward_weight(&dy, &x, B::part(&mut grads, 40..40 + outputs * inputs), shape);
    let end = 40 + outputs * inputs + outputs;
    b.bias_backward(&dy, B::part(&mut grads, end - outputs..end));
    results.extend([("linear dx", on_host(b, &dx)), ("linear dw", on_host(b, &grads))]);
    results
}

#[test]
fn linear_layers_and_their_gradients() {
    both!(linears);
}

fn low_rank<B: Backend>(b: &B, real: Real) -> Outputs {
    let (t, inputs, outputs, rank) = (19, 40, 72, 8);
    let columns = [0..32, 32..48, 56..72];
    let mut tensors = vec![numbers(3 * rank * inputs, 1)];
    tensors.extend(columns.iter().map(|c| numbers(c.len() * rank, 2)));
    let tensors: Vec<_> = tensors.iter().map(|x| real.stored(x)).collect();
    let (flat, ranges) = params(b, &tensors);
    let part = |at: usize| B::params(&flat, &ranges[at]);
    let of_b = columns.iter().enumerate().map(|(at, c)| (part(at + 1), c.clone())).collect();
    let path = LowRank { inputs, outputs, rank, scale: 0.25, a: part(0), b: of_b };
    let x = factor(b, &real.stored(&numbers(t * inputs, 3)));
    let dy = factor(b, &real.stored(&numbers(t * outputs, 4)));
    let (mut y, mut dx) = (factor(b, &numbers(t * outputs, 5)), factor(b, &numbers(t * inputs, 6)));
    let mut inner = B::Array::default();
    b.low_rank(&path, &x, &mut y, t, &mut inner);
    let own: usize = tensors.iter().map(Vec::len).sum();
    let mut grads = array(b, &numbers(8 + own, 7));
    b.low_rank_backward_weight(&path, &x, &dy, B::part(&mut grads, 8..8 + own), t, &mut inner);
    b.low_rank_backward_input(&path, &dy, &mut dx, t, &mut inner);
    vec![("low_rank", on_host(b, &y)), ("low_rank dw", on_host(b, &grads)), ("low_rank dx", on_host(b, &dx))]
}

#[test]
fn the_path_beside_a_linear_layer() {
    both!(low_rank);
}

fn attention<B: Backend>(b: &B, real: Real) -> Outputs {
    let packing = packing();
    let (t, hd) = (packing.rows(), HEADS.head_dim);
    let batch = b.batch(&packing, HEADS);
    let mut rope = b.rope((0..hd / 2).map(|i| 100f32.powf(-2.0 * i as f32 / hd as f32)).collect());
    // The table grows.
    b.reserve(&mut rope, 3);
    b.reserve(&mut rope, 60);
    let (flat, ranges) = params(b, &[numbers(hd, 1), numbers(hd, 2)]);
    let norms = QkNorms { q: B::params(&flat, &ranges[0]), k: B::params(&flat, &ranges[1]) };
    let qkv = factor(b, &real.stored(&numbers(t * HEADS.qkv_dim(), 3)));
    let d_out = factor(b, &real.stored(&numbers(t * HEADS.heads * hd, 4)));
    let mut outputs = vec![];
    for (norms, with_gradient) in [(None, false), (Some(norms), true), (Some(norms), false)] {
        let mut qk = room(b, t * HEADS.qk_dim(), Kind::Factor);
        b.qk_rope(HEADS, norms, EPS, &rope, B::tokens(&batch), &qkv, &mut qk);
        // Both go on from the same numbers.
        outputs.push(("qk_rope", on_host(b, &qk)));
        let qk = factor(b, &real.stored(&numbers(t * HEADS.qk_dim(), 5)));
        let (mut out, mut lse) = (room(b, t * HEADS.heads * hd, Kind::Factor), room(b, t * HEADS.heads, Kind::F32));
        b.attention(HEADS, &batch, &qk, &qkv, &mut out, &mut lse);
        let mut d_qkv = room(b, t * HEADS.qkv_dim(), Kind::Factor);
        let forward = AttentionForward { qk: &qk, qkv: &qkv, out: &out, lse: &lse };
        b.attention_backward(HEADS, &batch, forward, &d_out, &mut d_qkv);
        outputs.extend([("attention", on_host(b, &out)), ("lse", on_host(b, &lse))]);
        outputs.push(("attention_backward", on_host(b, &d_qkv)));
        let mut d_qkv = factor(b, &real.stored(&numbers(t * HEADS.qkv_dim(), 6)));
        let mut grads = array(b, &numbers(8 + 2 * hd, 7));
        let d_norms = with_gradient.then(|| B::part(&mut grads, 8..8 + 2 * hd));
        b.qk_rope_backward(HEADS, norms, EPS, &rope, B::tokens(&batch), &qkv, &mut d_qkv, d_norms);
        outputs.extend([("qk_rope_backward", on_host(b, &d_qkv)), ("head norms dw", on_host(b, &grads))]);
    }
    outputs
}

#[test]
fn attention_with_shared_prompts_and_what_comes_before_it() {
    both!(attention);
}

fn activation<B: Backend>(b: &B, real: Real) -> Outputs {
    let (t, f) = (9, 264);
    let mut gate_up = factor(b, &real.stored(&numbers(t * 2 * f, 1)));
    let mut act = room(b, t * f, Kind::Factor);
    b.swiglu(&gate_up, &mut act, f);
    b.swiglu_backward(&mut gate_up, &factor(b, &real.stored(&numbers(t * f, 2))), f);
    vec![("swiglu", on_host(b, &act)), ("swiglu_backward", on_host(b, &gate_up))]
}

#[test]
fn the_gated_activation() {
    both!(activation);
}

fn rows<B: Backend>(b: &B, real: Real) -> Outputs {
    let (t, d, rows) = (9, 40, [4usize, 4, 0, 8, 4]);
    let state = real.stored(&numbers(t * d, 1));
    let mut outputs = vec![];
    for state in [array(b, &state), factor(b, &state)] {
        let mut hidden = B::Array::default();
        b.gather_rows(&state, &rows, d, &mut hidden);
        let mut d_state = array(b, &numbers(t * d, 2));
        b.scatter_rows(&hidden, &rows, d, &mut d_state);
        outputs.extend([("gather_rows", on_host(b, &hidden)), ("scatter_rows", on_host(b, &d_state))]);
    }
    let mut none = B::Array::default();
    b.gather_rows(&array(b, &state), &[], d, &mut none);
    outputs.push(("no rows", on_host(b, &none)));
    outputs
}

#[test]
fn rows_are_gathered_and_brought_back() {
    both!(rows);
}

/// How a loss goes through the head's rows.
#[derive(Clone, Copy)]
enum Loss {
    Everywhere,
    /// A block without any row, and blocks with some.
    Somewhere,
    WithEntropies,
}

fn head<B: Backend>(b: &B, real: Real) -> Outputs {
    let (rows, d, vocab) = (150, 24, 203);
    let (flat, ranges) = params(b, &[real.stored(&numbers(vocab * d, 1))]);
    let weight = B::params(&flat, &ranges[0]);
    let head = Unembedding { weight, vocab, hidden_size: d, temperature: 0.7 };
    let x: Vec<f32> = numbers(rows * d, 2).iter().map(|x| 0.5 * x).collect();
    let hidden = factor(b, &real.stored(&x));
    let targets: Vec<u32> = (0..rows).map(|r| ((r * 397 + 3) % vocab) as u32).collect();
    let mut scratch = B::Array::default();
    let mut outputs = vec![];
    let of = |stats: HeadStats| [("lse", stats.lse), ("entropy", stats.entropy), ("log-probs", stats.log_probs)];
    outputs.extend(of(b.head(head, &hidden, Some(&targets), &mut scratch)));
    outputs.extend(of(b.head(head, &hidden, None, &mut scratch)));
    let (g, h) = (numbers(rows, 3), numbers(rows, 4));
    for (loss, trained) in
        [(Loss::Everywhere, true), (Loss::Somewhere, true), (Loss::WithEntropies, false), (Loss::WithEntropies, true)]
    {
        let gradients = |rows: Range<usize>, stats: &HeadStats| -> Result<RowGradients, Infallible> {
            assert_eq!((stats.lse.len(), stats.log_probs.len()), (rows.len(), rows.len()));
            let alive = |row: usize| !matches!(loss, Loss::Somewhere) || row >= 64 && row.is_multiple_of(3);
            let d_log_probs = rows.clone().map(|row| if alive(row) { g[row] } else { 0.0 }).collect();
            let d_entropies = if matches!(loss, Loss::WithEntropies) { h[rows].to_vec() } else { vec![] };
            Ok(RowGradients { d_log_probs, d_entropies })
        };
        let mut d_hidden = factor(b, &vec![5.0; rows * d]);
        let mut grads = array(b, &numbers(16 + vocab * d, 5));
        let d_unembed = trained.then(|| B::part(&mut grads, 16..16 + vocab * d));
        let stats = sure(b.head_backward(head, &hidden, &targets, &mut d_hidden, d_unembed, &mut scratch, gradients));
        outputs.extend(of(stats));
        outputs.extend([("head d_hidden", on_host(b, &d_hidden)), ("head d_unembed", on_host(b, &grads))]);
    }
    outputs
}

#[test]
fn the_head_and_its_gradient_over_several_blocks() {
    both!(head);
}

#[test]
fn an_error_of_the_loss_ends_the_heads_gradient() {
    let b = cuda(Real::F32);
    let (flat, ranges) = params(&b, &[numbers(16 * 8, 1)]);
    let head = Unembedding { weight: Cuda::params(&flat, &ranges[0]), vocab: 16, hidden_size: 8, temperature: 1.0 };
    let (hidden, mut d_hidden) = (factor(&b, &numbers(80 * 8, 2)), factor(&b, &[0.0; 80 * 8]));
    let (mut room, mut blocks) = (Default::default(), 0);
    let loss = |rows: Range<usize>, _: &HeadStats| {
        blocks += 1;
        if blocks == 2 {
            Err("no")
        } else {
            Ok(RowGradients { d_log_probs: vec![0.0; rows.len()], d_entropies: vec![] })
        }
    };
    assert_eq!(b.head_backward(head, &hidden, &[3; 80], &mut d_hidden, None, &mut room, loss), Err("no"));
    assert_eq!(blocks, 2);
}

fn value_head<B: Backend>(b: &B, real: Real) -> Outputs {
    let (t, d, rows) = (9, 40, [2usize, 7, 2]);
    let (flat, ranges) = params(b, &[numbers(d, 1), vec![0.3]]);
    let (w, bias) = (B::params(&flat, &ranges[0]), B::params(&flat, &ranges[1]));
    let states = factor(b, &real.stored(&numbers(t * d, 2)));
    let values = b.values(&states, &rows, w, bias);
    let (mut d_states, mut grads) = (array(b, &numbers(t * d, 3)), array(b, &numbers(8 + d + 1, 4)));
    let d_values = numbers(3, 5);
    b.values_backward(&states, &rows, w, &d_values, &mut d_states, B::part(&mut grads, 8..8 + d + 1));
    vec![("values", values), ("values d_states", on_host(b, &d_states)), ("values d_head", on_host(b, &grads))]
}

#[test]
fn a_value_head_and_its_gradient() {
    both!(value_head);
}

/// Three states a token, two of them references, over a vocabulary of several tiles.
fn side_by_side<B: Inspect>(b: &B, real: Real) -> Outputs {
    let (tokens, places, d, vocab) = (9, 3, 24, 2100);
    let (flat, ranges) = params(b, &[real.stored(&numbers(vocab * d, 1)), numbers(d, 2)]);
    let head = Unembedding { weight: B::params(&flat, &ranges[0]), vocab, hidden_size: d, temperature: 1.3 };
    let targets: Vec<u32> = (0..tokens).map(|t| ((t * 397 + 3) % vocab) as u32).collect();
    let mut outputs = vec![];
    for normed in 0..places {
        let norm = FinalNorm { weight: B::params(&flat, &ranges[1]), eps: 1e-6, states: normed };
        let mut states = array(b, &real.stored(&numbers(tokens * places * d, 3)));
        let of = b.compare(head, norm, &mut states, places, &[2, 0], &targets, &mut B::Array::default());
        outputs.extend([("compare entropy", of.entropy), ("compare log-probs", of.log_probs)]);
        outputs.push(("compare top", of.top.iter().map(|id| *id as f32).collect()));
        outputs
            .extend(of.divergences.into_iter().flat_map(|of| [("divergence to", of.to), ("divergence from", of.from)]));
    }
    outputs
}

#[test]
fn states_side_by_side_over_several_tiles() {
    both!(side_by_side);
}

/// Branches of three layers over a vocabulary of several tiles, and the states that they add up to.
fn branches_side_by_side<B: Inspect>(b: &B, real: Real) -> Outputs {
    let (tokens, d, vocab, of) = (9, 24, 2100, Branches { layers: 3 });
    let (flat, ranges) = params(b, &[real.stored(&numbers(vocab * d, 1))]);
    let head = Unembedding { weight: B::params(&flat, &ranges[0]), vocab, hidden_size: d, temperature: 1.3 };
    let targets: Vec<u32> = (0..tokens).map(|t| ((t * 397 + 3) % vocab) as u32).collect();
    let branches = factor(b, &real.stored(&numbers(tokens * of.places() * d, 3)));
    let said = b.compare_branches(head, &branches, of, &[3, 1], &targets, &mut B::Array::default());
    let (embedding, mut states) = (array(b, &numbers(tokens * d, 4)), B::Array::default());
    b.add_branches(&embedding, &branches, of, d, 2..7, &mut states);
    let mut outputs = vec![
        ("entropy of branches", said.entropy),
        ("entropy of streams", said.streams.entropy),
        ("log-probs of streams", said.streams.log_probs),
        ("top of streams", said.streams.top.iter().map(|id| *id as f32).collect()),
        ("states of branches", on_host(b, &states)),
    ];
    let divergences = said.streams.divergences.into_iter();
    outputs.extend(divergences.flat_map(|of| [("divergence to", of.to), ("divergence from", of.from)]));
    outputs
}

#[test]
fn branches_and_what_they_add_up_to() {
    both!(branches_side_by_side);
}

#[test]
fn moments_on_the_host_are_the_same_moments() {
    let cuda = |offload: bool| Cuda::new(device(), 1 << 20, Real::F32).unwrap().with_offload(offload);
    let bits = |offload: bool| {
        let b = cuda(offload);
        let (n, mut outputs) = (1000, Vec::new());
        let (mut flat, ranges) = params(&b, &[numbers(n, 1)]);
        let before = b.arena().usage().0;
        let [mut m, mut v] = [(); 2].map(|()| b.moments(n));
        assert_eq!(b.arena().usage().0 == before, offload);
        let grads = array(&b, &numbers(n, 3));
        for step in 1..4 {
            let (lr, beta1, beta2, eps, weight_decay, grad_scale) = (1e-2, 0.9, 0.95, 1e-8, 0.1, 0.7);
            let step = AdamwStep { lr, beta1, beta2, eps, weight_decay, step, grad_scale };
            let (m, v) = (Cuda::part(&mut m, 0..n), Cuda::part(&mut v, 0..n));
            b.adamw(&mut flat, ranges[0].clone(), &grads, 0, m, v, step);
        }
        // As a checkpoint saves them, and a resumed run brings them back.
        let saved = on_host(&b, &m);
        b.upload(&saved, &mut v);
        outputs.extend([b.store(&flat).into_owned(), saved, on_host(&b, &v)]);
        b.status().unwrap();
        outputs
    };
    assert_eq!(bits(false), bits(true));
}

fn optimizer<B: Backend>(b: &B, real: Real) -> Outputs {
    let n = 16 * 40;
    let (mut flat, ranges) = params(b, &[numbers(n, 1), numbers(40, 2)]);
    let (mut m, mut v) = (array(b, &vec![0.0; n + 16]), array(b, &vec![0.0; n + 16]));
    let grads = array(b, &numbers(n + 64, 3));
    let squares = b.sum_of_squares(&grads, &[0..n + 3, 8..8, n + 8..n + 64]);
    for step in 1..4 {
        let (m, v) = (B::part(&mut m, 16..n + 16), B::part(&mut v, 16..n + 16));
        let (lr, beta1, beta2, eps, weight_decay, grad_scale) = (1e-2, 0.9, 0.95, 1e-8, 0.1, 0.7);
        let step = AdamwStep { lr, beta1, beta2, eps, weight_decay, step, grad_scale };
        b.adamw(&mut flat, ranges[0].clone(), &grads, 64, m, v, step);
    }
    // The copy that products read has taken the steps as well.
    let x = factor(b, &real.stored(&numbers(3 * 40, 4)));
    let mut y = room(b, 3 * 16, Kind::Factor);
    let shape = LinearShape { t: 3, inputs: 40, outputs: 16 };
    b.linear(&x, Weight::AsItLies(B::params(&flat, &ranges[0])), None, &mut y, shape);
    vec![
        ("sum_of_squares", vec![squares as f32]),
        ("no squares", vec![b.sum_of_squares(&grads, &[]) as f32]),
        ("adamw params", b.store(&flat).into_owned()),
        ("adamw m", on_host(b, &m)),
        ("adamw v", on_host(b, &v)),
        ("a product after adamw", on_host(b, &y)),
    ]
}

#[test]
fn the_optimizer_and_the_weights_that_products_read() {
    both!(optimizer);
}

#[test]
fn shapes_that_no_kernel_takes_are_refused_and_said() {
    let refused = |work: fn(&Cuda)| {
        let cuda = Cuda::new(device(), 1 << 20, Real::Bf16).unwrap();
        work(&cuda);
        cuda.status().unwrap_err().to_string()
    };
    let message = refused(|cuda| {
        let heads = Heads { heads: 2, kv_heads: 1, head_dim: 24 };
        let batch = cuda.batch(&Packing::single(&[1, 2]), heads);
        let [mut a, mut b] = [(); 2].map(|()| room(cuda, 1000, Kind::Factor));
        let (x, mut lse) = (room(cuda, 1000, Kind::Factor), room(cuda, 4, Kind::F32));
        cuda.attention(heads, &batch, &x, &x, &mut a, &mut lse);
        cuda.swiglu(&x, &mut b, 8);
    });
    assert!(message.contains("head_dim of 24") && message.contains("multiple of 16"), "{message}");
    let message = refused(|cuda| {
        let (flat, x) = (cuda.load(vec![0.0; 100]), room(cuda, 24, Kind::F32));
        let (mut y, mut inv_rms) = (room(cuda, 24, Kind::Factor), room(cuda, 3, Kind::F32));
        cuda.rms_norm(&x, Cuda::params(&flat, &(1..9)), EPS, &mut y, &mut inv_rms);
    });
    assert!(message.contains("rms_norm") && message.contains("multiple of 16 bytes"), "{message}");
    let message = refused(|cuda| {
        let flat = cuda.load(vec![0.0; 16]);
        let states = room(cuda, 16, Kind::F32);
        let view = |range| Cuda::params(&flat, &range);
        assert!(cuda.values(&states, &[1], view(0..8), view(8..9))[0].is_nan());
    });
    assert!(message.contains("values") && message.contains("bf16"), "{message}");
    let message = refused(|cuda| drop(room(cuda, 1 << 20, Kind::F32)));
    assert!(message.contains("4.0 MiB more"), "{message}");
}

#[test]
fn an_array_keeps_its_memory_for_as_long_as_it_fits() {
    let cuda = cuda(Real::Bf16);
    let mut x = room(&cuda, 1000, Kind::F32);
    let used = cuda.arena().usage().0;
    for (len, kind) in [(10, Kind::Factor), (2000, Kind::Factor), (1000, Kind::F32), (0, Kind::F32)] {
        cuda.resize(&mut x, len, kind);
        assert_eq!((Cuda::len(&x), cuda.arena().usage().0), (len, used));
    }
    cuda.resize(&mut x, 1025, Kind::F32);
    assert_eq!(cuda.arena().usage().0, 4352);
    drop(x);
    assert_eq!(cuda.arena().usage().0, 0);
}
