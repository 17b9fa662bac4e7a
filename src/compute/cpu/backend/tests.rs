//! Operations on arrays of bf16 against the same on arrays of f32 that hold the same numbers: what is written is rounded, and what
//! products multiply. On a machine without products in bf16 both are the same.

use super::*;
use crate::compute::backend::{Branches, Inspect, LowRank, Placed, sure};

/// Numbers between -1 and 1 that bf16 holds.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    let number = |i: usize| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 7) % 255) as f32 / 128.0 - 1.0;
    (0..n).map(|i| number(i) + 1.0 / 128.0).collect()
}

fn factor(cpu: &Cpu, values: Vec<f32>) -> Array {
    let (x, mut room, mut out) = (Array::from(values), Array::default(), Array::default());
    cpu.copy(cpu.factor(&x, &mut room), &mut out);
    assert_eq!(matches!(out, Array::Bf16(_)), cpu.compute.here() == Compute::Bf16);
    out
}

/// Room for factors, which holds what is no number until it is written.
fn room(cpu: &Cpu, len: usize) -> Array {
    factor(cpu, vec![f32::NAN; len])
}

fn shape(t: usize, inputs: usize, outputs: usize) -> LinearShape {
    LinearShape { t, inputs, outputs }
}

/// Runs operations in both formats. Their results lie no further apart than `bound` of the largest of each.
fn close(bound: f32, run: impl Fn(&Cpu) -> Vec<Array>) {
    let [exact, rounded] = [Compute::F32, Compute::Bf16].map(|compute| run(&Cpu { compute }));
    for (i, (exact, rounded)) in exact.iter().zip(&rounded).enumerate() {
        let (exact, rounded) = (exact.to_f32(), rounded.to_f32());
        assert_eq!(exact.len(), rounded.len());
        let size = exact.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(size > 0.0, "result {i} is nothing, so that nothing was compared");
        for (a, b) in exact.iter().zip(&*rounded) {
            assert!((a - b).abs() <= bound * size, "result {i}: {a} in f32, {b} in bf16, of up to {size}");
        }
    }
}

/// Half a unit of bf16's eight bits, and a little for sums in another order.
const ROUNDED: f32 = 1.0 / 256.0;

#[test]
fn norms_and_sums() {
    let (t, d) = (70, 40);
    close(ROUNDED, |cpu| {
        let (x, w) = (Array::from(numbers(t * d, 1)), numbers(d, 2));
        let branch = factor(cpu, numbers(t * d, 3));
        let [mut y, mut z, mut again] = [0; 3].map(|_| room(cpu, t * d));
        let [mut inv, mut inv_sum, mut sum] = [t, t, t * d].map(|n| Array::from(vec![0.0; n]));
        cpu.rms_norm(&x, &w, 1e-6, &mut y, &mut inv);
        cpu.add_rms_norm(&x, &branch, &w, 1e-6, &mut sum, &mut z, &mut inv_sum);
        cpu.rms_norm_again(&x, &w, &inv, &mut again);
        assert_eq!(y.to_f32(), again.to_f32());
        let mut added = Array::from(vec![0.0; t * d]);
        cpu.add(&x, &branch, &mut added);
        assert_eq!(added.f32(), sum.f32());
        let (mut dx, mut dw, mut left) = (Array::from(numbers(t * d, 4)), vec![0.0; d], Array::default());
        cpu.rms_norm_backward(&x, &w, &inv, &branch, &mut dx, &mut left, Some(&mut dw), true);
        cpu.rms_norm_backward(&x, &w, &inv, &added, &mut dx, &mut left, None, true);
        let mut again = Array::default();
        assert_eq!(cpu.left_factor(&dx, &left).to_f32(), cpu.factor(&dx, &mut again).to_f32());
        let mut filled = factor(cpu, numbers(t * d, 6));
        cpu.fill_columns(&Array::from(numbers(8, 7)), &mut filled, d, 16);
        let mut normed = factor(cpu, numbers(t * d, 5));
        cpu.norm_rows(&mut normed, &w, 1e-6, d);
        vec![y, z, sum, dx, dw.into(), filled, normed]
    });
}

/// Inner dimensions of one block and of several; a result that is replaced, that begins with a bias, that is added to.
#[test]
fn products() {
    for (t, inputs, outputs) in [(37, 70, 50), (70, 2500, 40), (33, 48, 4200), (3, 4500, 2100)] {
        let (w, bias, shape) = (numbers(inputs * outputs, 1), numbers(outputs, 2), shape(t, inputs, outputs));
        close(ROUNDED, |cpu| {
            let (x, dy) = (factor(cpu, numbers(t * inputs, 3)), factor(cpu, numbers(t * outputs, 4)));
            let packed = cpu.pack(&w, outputs, inputs).unwrap();
            let [mut y, mut with_bias, mut by_panels] = [0; 3].map(|_| room(cpu, t * outputs));
            cpu.linear(&x, Weight::AsItLies(&w[..]), None, &mut y, shape);
            cpu.linear(&x, Weight::AsItLies(&w[..]), Some(&bias), &mut with_bias, shape);
            cpu.linear(&x, Weight::Packed(&packed), Some(&bias), &mut by_panels, shape);
            assert_eq!(with_bias.to_f32(), by_panels.to_f32());
            let (mut dx, mut dw, mut d_bias) =
                (room(cpu, t * inputs), numbers(inputs * outputs, 5), vec![0.0; outputs]);
            cpu.linear_backward_input(&dy, &w, &mut dx, shape);
            cpu.linear_backward_weight(&dy, &x, &mut dw, shape);
            cpu.bias_backward(&dy, &mut d_bias);
            vec![y, with_bias, dx, dw.into(), d_bias.into()]
        });
    }
}

#[test]
fn the_path_beside_a_product() {
    let (t, inputs, outputs, rank) = (40, 60, 70, 4);
    let (a, b) = (numbers(rank * inputs, 1), numbers(30 * rank, 2));
    let path = LowRank { inputs, outputs, rank, scale: 0.5, a: &a[..], b: vec![(&b[..], 20..50)] };
    // What lies between A and B is rounded as well.
    close(2.0 * ROUNDED, |cpu| {
        let (x, mut y) = (factor(cpu, numbers(t * inputs, 3)), factor(cpu, numbers(t * outputs, 4)));
        let (dy, mut dx) = (factor(cpu, numbers(t * outputs, 5)), factor(cpu, numbers(t * inputs, 6)));
        let (mut d, mut inner) = (vec![0.0; a.len() + b.len()], Array::default());
        cpu.low_rank(&path, &x, &mut y, t, &mut inner);
        cpu.low_rank_backward_weight(&path, &x, &dy, &mut d, t, &mut inner);
        cpu.low_rank_backward_input(&path, &dy, &mut dx, t, &mut inner);
        vec![y, dx, d.into()]
    });
}

/// A tree, whose prompt's keys get gradients from every segment, and a sequence by itself.
#[test]
fn attention_over_trees() {
    let heads = Heads { heads: 6, kv_heads: 2, head_dim: 20 };
    let (q, mut packing) = (heads.heads * heads.head_dim, Packing::new());
    packing.push(&[0; 50]);
    packing.push_continuation(&[0; 20]);
    packing.push_continuation(&[0; 33]);
    packing.push(&[0; 17]);
    let t = packing.rows();
    let (q_norm, k_norm) = (numbers(heads.head_dim, 1), numbers(heads.head_dim, 2));
    for norms in [None, Some(QkNorms { q: &q_norm[..], k: &k_norm[..] })] {
        // Scores and probabilities are products' operands as well, one after the other.
        close(4.0 * ROUNDED, |cpu| {
            let mut rope = cpu.rope((0..heads.head_dim / 2).map(|i| 0.5f32.powi(i as i32)).collect());
            cpu.reserve(&mut rope, 90);
            let batch = &packing;
            let tokens = Cpu::tokens(&batch);
            let qkv = factor(cpu, numbers(t * heads.qkv_dim(), 3));
            let (mut qk, mut out, mut d_qkv) =
                (room(cpu, t * heads.qk_dim()), room(cpu, t * q), room(cpu, t * heads.qkv_dim()));
            let mut lse = Array::from(vec![0.0; t * heads.heads]);
            cpu.qk_rope(heads, norms, 1e-6, &rope, tokens, &qkv, &mut qk);
            cpu.attention(heads, &&packing, &qk, &qkv, &mut out, &mut lse);
            let forward = AttentionForward { qk: &qk, qkv: &qkv, out: &out, lse: &lse };
            cpu.attention_backward(heads, &&packing, forward, &factor(cpu, numbers(t * q, 4)), &mut d_qkv);
            let (mut raw, mut d_norms) = (Array::default(), vec![0.0; 2 * heads.head_dim]);
            cpu.copy(&d_qkv, &mut raw);
            let part = norms.is_some().then_some(&mut d_norms[..]);
            cpu.qk_rope_backward(heads, norms, 1e-6, &rope, tokens, &qkv, &mut raw, part);
            let mut results = vec![qk, out, lse, d_qkv, raw];
            results.extend(norms.map(|_| d_norms.into()));
            results
        });
    }
}

#[test]
fn activations_rows_and_values() {
    let (t, f, d) = (70, 36, 24);
    close(ROUNDED, |cpu| {
        let (mut gate_up, mut act) = (factor(cpu, numbers(t * 2 * f, 1)), room(cpu, t * f));
        cpu.swiglu(&gate_up, &mut act, f);
        cpu.swiglu_backward(&mut gate_up, &factor(cpu, numbers(t * f, 2)), f);
        let (stream, factors, rows) = (Array::from(numbers(t * d, 3)), factor(cpu, numbers(t * d, 4)), [3, 69, 0, 3]);
        let (mut of_stream, mut of_factors, mut d_state) =
            (Array::default(), Array::default(), Array::from(numbers(t * d, 5)));
        cpu.gather_rows(&stream, &rows, d, &mut of_stream);
        cpu.gather_rows(&factors, &rows, d, &mut of_factors);
        cpu.scatter_rows(&of_factors, &rows, d, &mut d_state);
        let (w, mut d_head) = (numbers(d, 6), vec![0.0; d + 1]);
        let values = cpu.values(&factors, &rows, &w, &[0.5]);
        cpu.values_backward(&factors, &rows, &w, &values, &mut d_state, &mut d_head);
        let (mut placed, at) = (factor(cpu, vec![0.0; 4 * 3 * d]), Placed { first: d, stride: 3 * d, d });
        cpu.place_rows(&stream, &rows, &mut placed, at);
        let cosines = cpu.row_cosines(&placed, 0, &Array::from(numbers(12 * d, 7)), d);
        let cosines: Vec<f32> = cosines.into_iter().map(|x| x as f32).collect();
        vec![gate_up, act, of_stream, of_factors, d_state, values.into(), d_head.into(), placed, cosines.into()]
    });
}

#[test]
fn what_states_say() {
    let (rows, d, vocab) = (40, 32, 700);
    let (embedding, of) = (numbers(vocab * d, 1), Branches { layers: 2 });
    let head = Unembedding { weight: &embedding[..], vocab, hidden_size: d, temperature: 0.8 };
    let targets: Vec<u32> = (0..rows as u32).map(|i| i * 17 % vocab as u32).collect();
    close(ROUNDED, |cpu| {
        let (hidden, mut d_hidden, mut d_unembed) =
            (factor(cpu, numbers(rows * d, 2)), room(cpu, rows * d), vec![0.0; vocab * d]);
        let stats = cpu.head(head, &hidden, Some(&targets), &mut Array::default());
        // Every third row is left out.
        let loss = |part: Range<usize>, _: &HeadStats| {
            let d_log_probs = part.map(|row| if row % 3 == 0 { 0.0 } else { 0.5 }).collect();
            Ok(RowGradients { d_log_probs, d_entropies: Vec::new() })
        };
        let mut logits = Array::default();
        let same =
            sure(cpu.head_backward(head, &hidden, &targets, &mut d_hidden, Some(&mut d_unembed), &mut logits, loss));
        assert_eq!(stats, same);
        let branches = factor(cpu, numbers(rows * of.places() * d, 3));
        let said = cpu.compare_branches(head, &branches, of, &[of.layers], &targets, &mut Array::default());
        let (embedding, mut states) = (Array::from(numbers(rows * d, 4)), Array::default());
        cpu.add_branches(&embedding, &branches, of, d, 3..rows, &mut states);
        let some = cpu.logits(head, &hidden, 5, 7, &mut Array::default());
        let of_stats =
            [stats.lse, stats.entropy, stats.log_probs, said.entropy, said.streams.log_probs].map(Array::from);
        [vec![d_hidden, d_unembed.into(), states, some.into()], of_stats.into()].concat()
    });
}
