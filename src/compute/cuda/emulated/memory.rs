//! Memory, copies, captured work, and failures that stick.

use super::{Real, device, numbers};
use crate::compute::cpu::gemm::Write;
use crate::compute::cuda::arena::{Arena, Growth};
use crate::compute::cuda::array::DeviceArray;
use crate::compute::cuda::runtime::{Arg, CudaError, Launch, Matrix, Product, Runtime};
use std::sync::Arc;

fn arena(bytes: usize) -> Arc<Arena> {
    Arena::new(device(), bytes, Growth::Never).unwrap_or_else(|error| panic!("{error}"))
}

/// y += factor x, on the device.
fn scaled_add(runtime: &dyn Runtime, factor: f32, x: &DeviceArray<f32>, y: &DeviceArray<f32>) {
    let args = [Arg::Float(factor), x.arg(), y.arg(), Arg::Long(x.len() as u64)];
    let launch = Launch { real: Real::F32, kernel: "scaled_add", grid: [2, 1, 1], threads: 32, shared: 0, args: &args };
    // SAFETY: two arrays of x.len() f32.
    unsafe { runtime.launch(launch) };
}

#[test]
fn what_is_uploaded_comes_back_and_the_hosts_bytes_may_change_at_once() {
    let arena = arena(64 << 20);
    // More than both halves of the staging memory, and no multiple of anything.
    let sent: Vec<u32> = (0..5_000_003).collect();
    let mut bytes = sent.clone();
    let array = DeviceArray::from_host(&arena, &bytes);
    bytes.fill(7);
    assert!(array.to_host().unwrap() == sent);
    // Many small ones.
    for at in (0..5000).rev() {
        array.upload(at, &[at as u32 + 1]);
    }
    let other = DeviceArray::<u32>::zeros(&arena, 6000);
    other.copy_from(1000, array.slice(0..5000));
    let mut got = vec![1; 5002];
    other.download(999, &mut got[..5001]).unwrap();
    let expected: Vec<u32> = [0].into_iter().chain(1..=5000).collect();
    assert_eq!(got[..5001], expected);
}

#[test]
fn arrays_move_only_when_they_outgrow_their_piece() {
    let arena = arena(1 << 20);
    let mut array = DeviceArray::from_host(&arena, &[1.0f64, 2.0, 3.0]);
    let before = array.address();
    array.resize(32);
    assert_eq!((array.address(), array.capacity()), (before, 32), "256 bytes");
    array.resize(2);
    assert_eq!(array.to_host().unwrap(), [1.0, 2.0]);
    let neighbour = DeviceArray::<u32>::new(&arena, 1);
    array.resize(40);
    assert_ne!(array.address(), before);
    assert_eq!((array.len(), neighbour.address()), (40, before.offset(256)));
    let empty = DeviceArray::<f32>::from_host(&arena, &[]);
    assert_eq!((empty.to_host().unwrap(), empty.is_empty()), (vec![], true));
}

#[test]
fn captured_work_runs_when_it_is_replayed() {
    let arena = arena(1 << 20);
    let runtime = arena.runtime();
    let (x, y) = (DeviceArray::from_host(&arena, &numbers(100, 1)), DeviceArray::<f32>::zeros(&arena, 100));
    let (w, z) = (DeviceArray::from_host(&arena, &[2.0f32]), DeviceArray::<f32>::zeros(&arena, 100));
    let matrix = |array: &DeviceArray<f32>| Matrix::new(array.address(), Real::F32, 1);
    let work = || {
        scaled_add(runtime.as_ref(), 0.5, &x, &y);
        let product = Product::linear(matrix(&y), matrix(&w), matrix(&z), [100, 1, 1], Write::Add);
        runtime.product(&product);
    };
    // Once without: what is compiled and chosen at first use is so before.
    work();
    y.zero();
    z.zero();
    runtime.begin_capture();
    work();
    let graph = runtime.end_capture().unwrap();
    assert_eq!(y.to_host().unwrap(), vec![0.0; 100], "kept, not done");
    for _ in 0..3 {
        graph.replay();
    }
    let x = numbers(100, 1);
    let y = y.to_host().unwrap();
    assert_eq!(y, x.iter().map(|x| 0.5f32.mul_add(*x, 0.5f32.mul_add(*x, 0.5 * x))).collect::<Vec<_>>());
    let expected: Vec<f32> = x.iter().map(|x| 2.0 * (0.5 + 1.0 + 1.5) * x).collect();
    super::close("products", &z.to_host().unwrap(), &expected, 1e-6);
}

#[test]
fn the_first_failure_sticks_and_what_follows_is_not_done() {
    let arena = arena(1 << 20);
    let runtime = arena.runtime();
    let x = DeviceArray::from_host(&arena, &[1.0f32; 8]);
    let launch = Launch { real: Real::F32, kernel: "no_such", grid: [1; 3], threads: 32, shared: 0, args: &[] };
    // SAFETY: there is no such kernel.
    unsafe { runtime.launch(launch) };
    let first = runtime.status().unwrap_err();
    assert!(first.to_string().contains("no_such"), "{first}");
    runtime.fail(CudaError::Refused { what: "later".into(), got: "1".into(), expected: "2".into() });
    x.zero();
    let mut kept = [5.0f32; 8];
    assert_eq!(x.download(0, &mut kept).unwrap_err(), first);
    assert_eq!(kept, [5.0; 8]);
    assert_eq!(runtime.synchronize().unwrap_err(), first);
}

#[test]
fn an_array_without_room_fails_the_work_and_says_the_sizes() {
    let arena = arena(1 << 20);
    let (_half, large) = (DeviceArray::<u8>::new(&arena, 1 << 19), DeviceArray::<f32>::new(&arena, 3 << 20));
    assert_eq!(large.capacity(), 0);
    large.zero();
    let error = large.to_host().unwrap_err();
    assert!(matches!(error, CudaError::ArenaFull { wanted, size, taken, largest, .. }
        if (wanted, size, taken, largest) == (12 << 20, 1 << 20, 1 << 19, 1 << 19)));
    let text = error.to_string();
    assert!(text.contains("12.0 MiB more") && text.contains("of the 1.0 MiB"), "{text}");
}

#[test]
fn a_device_gives_no_more_than_it_has() {
    let runtime = device();
    let memory = runtime.memory().unwrap();
    let error = runtime.allocate(memory.total + (1 << 30)).unwrap_err();
    assert!(matches!(error, CudaError::OutOfMemory { .. }), "{error}");
    // No failure of work: one may ask for less.
    let at = runtime.allocate(1000).unwrap();
    assert_eq!(at.0 % 256, 0);
    assert!(runtime.memory().unwrap().free < memory.total);
    runtime.free(at);
    assert_eq!(runtime.synchronize(), Ok(()));
}

#[test]
fn uploads_are_refused_while_work_is_captured() {
    let arena = arena(1 << 20);
    let x = DeviceArray::<u32>::zeros(&arena, 4);
    arena.runtime().begin_capture();
    x.upload(0, &[1]);
    let error = arena.runtime().end_capture().unwrap_err();
    assert!(error.to_string().contains("an upload"), "{error}");
}

#[test]
fn threads_share_a_device() {
    let arena = arena(4 << 20);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let arena = &arena;
            scope.spawn(move || {
                for round in 0..20 {
                    let (x, y) = (numbers(1000, thread * 100 + round), numbers(1000, 7));
                    let (on_x, on_y) = (DeviceArray::from_host(arena, &x), DeviceArray::from_host(arena, &y));
                    scaled_add(arena.runtime().as_ref(), 0.5, &on_x, &on_y);
                    let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 0.5f32.mul_add(*x, *y)).collect();
                    assert_eq!(on_y.to_host().unwrap(), expected);
                }
            });
        }
    });
    assert_eq!(arena.usage().0, 0);
}
