//! Blocks whose tiles are larger than a device's shared memory: refused by name, before a kernel is launched.

use super::{EMULATED_BYTES, Real, gpu, numbers};
use crate::compute::backend::{AttentionForward, Heads, Kind};
use crate::compute::cuda::backend::Cuda;
use crate::compute::cuda::emulator::{Emulator, Order};
use crate::compute::{Backend, Packing};
use std::sync::Arc;

/// What an RTX 30, 40 or 50 gives a block.
const RTX: usize = 99 << 10;

/// Attention of one head of 128 on a device with so much shared memory: forward, then backward.
fn attend(real: Real, shared: usize) -> [anyhow::Result<()>; 2] {
    let runtime = Emulator::new(Order::Forward, EMULATED_BYTES).with_shared(shared);
    let cuda = Cuda::new(Arc::new(runtime), 8 << 20, real).unwrap();
    let (heads, packing) = (Heads { heads: 1, kv_heads: 1, head_dim: 128 }, Packing::single(&[1, 2, 3]));
    let batch = cuda.batch(&packing, heads);
    let factor = |columns: usize| {
        let (mut host, mut array) = (Default::default(), Default::default());
        cuda.upload(&numbers(3 * columns, columns as u64), &mut host);
        cuda.resize(&mut array, 3 * columns, Kind::Factor);
        let rounded = cuda.factor(&host, &mut array);
        let mut copy = Default::default();
        cuda.copy(rounded, &mut copy);
        copy
    };
    let (qk, qkv, d_out) = (factor(256), factor(384), factor(128));
    let (mut out, mut d_qkv) = (factor(128), factor(384));
    let mut lse = Default::default();
    cuda.resize(&mut lse, 3, Kind::F32);
    cuda.attention(heads, &batch, &qk, &qkv, &mut out, &mut lse);
    let forward = cuda.status();
    let saved = AttentionForward { qk: &qk, qkv: &qkv, out: &out, lse: &lse };
    cuda.attention_backward(heads, &batch, saved, &d_out, &mut d_qkv);
    [forward, cuda.status()]
}

/// A GPU has its own limit, and its machine need not have what the emulator is compiled with.
fn is_emulated() -> bool {
    gpu().is_none()
}

#[test]
fn heads_of_128_train_in_bf16_where_a_block_has_99_kib() {
    if !is_emulated() {
        return;
    }
    for result in attend(Real::Bf16, RTX) {
        result.unwrap();
    }
}

#[test]
fn a_block_that_is_too_large_is_refused_with_what_to_do() {
    if !is_emulated() {
        return;
    }
    let [forward, backward] = attend(Real::F32, RTX);
    forward.unwrap();
    let error = backward.unwrap_err().to_string();
    for part in ["attention_backward_queries", "head_dim of 128 in f32", "135168", "101376", "compute = \"bf16\""] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let [forward, _] = attend(Real::Bf16, 48 << 10);
    let error = forward.unwrap_err().to_string();
    assert!(error.contains("87040 bytes") && error.ends_with("take the CPU"), "{error}");
}

#[test]
fn the_emulated_device_has_its_limit_too() {
    use crate::compute::cuda::runtime::{Launch, Runtime};
    let device = Emulator::new(Order::Forward, EMULATED_BYTES).with_shared(64);
    let launch = |shared| Launch { real: Real::F32, kernel: "no_such", grid: [1; 3], threads: 32, shared, args: &[] };
    // SAFETY: there is no such kernel.
    unsafe { device.launch(launch(65)) };
    let error = device.status().unwrap_err().to_string();
    assert!(error.contains("64 of its 65 bytes"), "{error}");
}
