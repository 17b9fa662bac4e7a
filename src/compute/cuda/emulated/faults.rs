//! The emulator itself: what it must not let pass.

use super::{Arg, Memory, Real, gpu, kernels, numbers};

#[test]
fn wrong_kernels_are_reported_and_do_not_hang() {
    if gpu().is_some() {
        return; // They are wrong, and only the emulator has them.
    }
    let kernels = kernels(Real::F32);
    for (kernel, threads, says) in [
        ("fault_missing_barrier", 64, "wait at a barrier"),
        ("fault_two_barriers", 64, "different barriers"),
        ("fault_half_a_warp", 64, "wait at a warp collective"),
        ("fault_past_shared", 64, "past the dynamic shared memory"),
        ("fault_race", 64, "the order in which its threads run"),
        ("fault_race", 48, "whole warps"),
        ("no_such_kernel", 64, "no kernel of the name"),
    ] {
        let mut x = Memory::f32(&numbers(64, 1));
        let message = kernels.try_launch(kernel, [1, 1, 1], threads, 256, &mut [Arg::Out(&mut x)]).unwrap_err();
        assert!(message.contains(says), "{message}");
    }
}

#[test]
#[should_panic(expected = "past the end of an array")]
fn a_write_behind_an_array_is_seen() {
    let gpu = kernels(Real::F32);
    let (x, mut short) = (Memory::f32(&numbers(16, 1)), Memory::room(9));
    gpu.launch("round_to_real", [1, 1, 1], 32, 0, &mut [Arg::In(&x), Arg::Out(&mut short), Arg::Long(16)]);
}

#[test]
fn arguments_that_a_kernel_does_not_take_are_refused() {
    if gpu().is_some() {
        return; // One device for all tests: a failure would stick.
    }
    let (x, mut y) = (Memory::f32(&numbers(16, 1)), Memory::room(16));
    for wrong in [Arg::Int(16), Arg::Float(16.0), Arg::Null] {
        let args = &mut [Arg::In(&x), Arg::Out(&mut y), wrong];
        let message = kernels(Real::F32).try_launch("round_to_real", [1, 1, 1], 32, 0, args).unwrap_err();
        assert!(message.contains("round_to_real: arguments pp") && message.contains("expected ppl"), "{message}");
    }
}
