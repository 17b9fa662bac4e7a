// Kernels that are wrong, so that a test can see the emulator say so.
#include "../common.cuh"

// Half of the threads leave before the barrier.
extern "C" __global__ void fault_missing_barrier(float* x) {
    if (threadIdx.x < 32) return;
    x[threadIdx.x] = 1.0f;
    __syncthreads();
}

// Two barriers where there should be one.
extern "C" __global__ void fault_two_barriers(float* x) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        x[0] = 1.0f;
        __syncthreads();
    }
}

// A shuffle that half a warp does not come to.
extern "C" __global__ void fault_half_a_warp(float* x) {
    if (threadIdx.x % 32 < 16) x[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1.0f, 1);
}

// A write one element past the dynamic shared memory.
extern "C" __global__ void fault_past_shared(float* x) {
    DYNAMIC_SHARED(shared);
    ((float*)shared)[threadIdx.x + 1] = x[threadIdx.x];
}

// Neighbours are read without a barrier: right or wrong with the order in which threads run.
extern "C" __global__ void fault_race(float* x) {
    DYNAMIC_SHARED(shared);
    ((float*)shared)[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = ((float*)shared)[(threadIdx.x + 1) % blockDim.x];
}
