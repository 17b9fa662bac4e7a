// Distributions by their whole rows of logits (cpu/head/row.rs): where a token stands, and what is likeliest. Entropies, log-probs
// and divergences of such rows are compare_fold's, which takes them as one tile.
#include "common.cuh"

// cpu/head/row.rs `LogitRow::rank`: 1 and the number of tokens strictly likelier than the target. logits f32 [T S, V], the states
// of a token in rows that follow each other, rows `stride` apart; targets u32 [T]; rank u32 [T S].
// Grid T S; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    row_rank(const float* logits, unsigned long long stride, int v, int states, const unsigned* targets, unsigned* rank) {
    const float* z = logits + blockIdx.x * stride;
    float mine = z[targets[blockIdx.x / states]];
    unsigned likelier = 0;
    for (int i = threadIdx.x; i < v; i += blockDim.x) likelier += z[i] > mine;
    likelier = block_sum(likelier);
    if (threadIdx.x == 0) rank[blockIdx.x] = 1 + likelier;
}

// A logit and its token as one number, larger the likelier; of equal logits the lower token comes first. Never 0.
__device__ __forceinline__ unsigned long long place_of(float z, unsigned token) {
    unsigned bits = __float_as_uint(__fadd_rn(z, 0.0f));  // -0 becomes 0
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    return (unsigned long long)bits << 32 | (0xffffffffu - token);
}

__device__ __forceinline__ unsigned long long block_highest(unsigned long long x) {
    __shared__ unsigned long long parts[32];
    for (int offset = 16; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, offset));
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();  // the parts before may still be read
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    x = parts[0];
    for (int w = 1; w < warps; w++) x = max(x, parts[w]);
    return x;
}

// cpu/head/row.rs `LogitRow::top`: the k likeliest tokens and their probabilities, likeliest first, of equal ones the lower id. A
// pass over the row each: for tens, not thousands. logits f32 [R, V], rows `stride` apart, divided by the temperature already;
// tokens u32, probabilities f32 [R, k]; k: V at most. A NaN has a place as well, and
// makes every probability one.
// Grid R; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    row_top(const float* logits, unsigned long long stride, int v, int k, unsigned* tokens, float* probabilities) {
    const float* z = logits + blockIdx.x * stride;
    size_t at = (size_t)blockIdx.x * k;
    unsigned long long before = 0;
    float m = 0.0f;
    double s = 0.0;
    for (int i = 0; i < k; i++) {
        unsigned long long best = 0;
        for (int t = threadIdx.x; t < v; t += blockDim.x) {
            unsigned long long place = place_of(z[t], t);
            // No bound the first time: a NaN may be as large as a number gets.
            if (i == 0 || place < before) best = max(best, place);
        }
        before = block_highest(best);
        unsigned token = 0xffffffffu - (unsigned)before;
        if (i == 0) {
            m = z[token];
            for (int t = threadIdx.x; t < v; t += blockDim.x) s += (double)exp_cpu(__fadd_rn(z[t], -m));
            s = block_sum(s);
        }
        if (threadIdx.x == 0) {
            tokens[at + i] = token;
            probabilities[at + i] = (float)(exp((double)z[token] - m) / s);
        }
    }
}
