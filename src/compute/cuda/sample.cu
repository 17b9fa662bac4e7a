// One token from each row of logits (rollout/sampler.rs), from a uniform number that the host draws with the sample's own
// generator.
//
// The plain draw does the CPU's sums in the CPU's order: the same logits and the same number give the same token. With top_k or
// top_p the CPU sorts; here the border weights are found bit by bit from sums over all weights, which gives the same set and
// the same order (likeliest first, of equal ones the lower id) with sums that are rounded differently, to 1e-16 of them.
#include "common.cuh"

// Weights are summed in blocks, so that finding a token reads the blocks' sums first; and in this many partial sums each
// (cpu/simd.rs).
static const int BLOCK = 256;
static const int LANES = 16;


// f(x[i]) for this thread's share of a row, in order. Eight are asked for before the first is looked at: one at a time, a row would take as
// long as its trips to memory.
template <class F>
__device__ __forceinline__ void each_of(const float* x, int v, F f) {
    const int AHEAD = 8;
    int i = threadIdx.x, step = blockDim.x;
    for (; i + (AHEAD - 1) * step < v; i += AHEAD * step) {
        float y[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) y[k] = x[i + k * step];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) f(y[k]);
    }
    for (; i < v; i += step) f(x[i]);
}

// A logit relative to the largest.
__device__ __forceinline__ float relative(float z, float inv_temperature, float m) {
    return __fadd_rn(inv_temperature == 1.0f ? z : __fmul_rn(z, inv_temperature), -m);
}

// Sums of the weights e^(z - m) by block, and of w (z - m): half a warp takes a block, lane i its elements i, i + 16, ... If `keep`,
// the weights take the logits' places: restricted draws go through them many times, a plain one through a block of them.
__device__ __forceinline__ void weigh(float* z, int v, float inv_temperature, float m, bool keep, double* sums,
                                      double* weighted_sums) {
    int blocks = (v + BLOCK - 1) / BLOCK, halves = blockDim.x / LANES, lane = threadIdx.x % LANES;
    // Both halves of a warp go on for as long as the first has a block: they meet in the shuffles.
    for (int block = threadIdx.x / LANES; block - block % 2 < blocks; block += halves) {
        float sum = 0.0f, weighted = 0.0f;
        for (int i = block * BLOCK + lane; i < min((block + 1) * BLOCK, v); i += LANES) {
            float x = relative(z[i], inv_temperature, m), w = exp_cpu(x);
            if (keep) z[i] = w;
            sum = __fadd_rn(sum, w);
            weighted = fmaf(w, x, weighted);
        }
        for (int width = LANES / 2; width > 0; width /= 2) {
            sum = __fadd_rn(sum, __shfl_xor_sync(ALL_LANES, sum, width));
            weighted = __fadd_rn(weighted, __shfl_xor_sync(ALL_LANES, weighted, width));
        }
        if (lane == 0 && block < blocks) sums[block] = sum, weighted_sums[block] = weighted;
    }
}

// sampler.rs `heaviest`: the first of the largest weights.
template <class Weight>
__device__ __forceinline__ int heaviest(Weight weight, int count) {
    int best = 0;
    float largest = weight(0);
    for (int i = 1; i < count; i++) {
        float w = weight(i);
        if (w > largest) largest = w, best = i;
    }
    return best;
}

// sampler.rs `draw`: the inverse of the cumulative distribution at u. weight(i): that of token i.
template <class Weight>
__device__ __forceinline__ unsigned draw(Weight weight, int v, const double* sums, double total, double u) {
    __shared__ float weights[BLOCK];
    __shared__ double left;
    __shared__ int block, found;
    int blocks = (v + BLOCK - 1) / BLOCK;
    if (threadIdx.x == 0) {
        left = __dmul_rn(u, total), block = 0, found = -1;
        while (block < blocks && left >= sums[block]) left = __dadd_rn(left, -sums[block++]);
    }
    __syncthreads();
    // Rounding used up the last block, which next to no draw sees: every thread looks through all weights.
    if (block >= blocks) return heaviest(weight, v);
    int first = block * BLOCK, count = min(BLOCK, v - first);
    for (int i = threadIdx.x; i < count; i += blockDim.x) weights[i] = weight(first + i);
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 0; i < count && found < 0; i++) {
            if (left < weights[i]) found = first + i;
            else left = __dadd_rn(left, -(double)weights[i]);
        }
        // The block's sum, rounded to f32, was above that of its weights: what is left belongs to no later token.
        if (found < 0) found = first + heaviest([&](int i) { return weights[i]; }, count);
    }
    __syncthreads();
    return found;
}

// Sums of the weights (or, if counting, numbers of them) that are at least each of three borders, given as bits: weights are
// positive, so their bits have their order.
struct Above {
    double of[3];
};

__device__ __forceinline__ Above sums_above(const float* w, int v, const unsigned (&borders)[3], bool counting) {
    Above sum = {{0.0, 0.0, 0.0}};
    each_of(w, v, [&](float weight) {
        unsigned bits = __float_as_uint(weight);
        double x = counting ? 1.0 : (double)weight;
        for (int k = 0; k < 3; k++) sum.of[k] += bits >= borders[k] ? x : 0.0;
    });
    for (int k = 0; k < 3; k++) sum.of[k] = block_sum(sum.of[k]);
    return sum;
}

// The largest border whose sum reaches `target` (or exceeds it, if `beyond`), as bits; 0 if none does.
__device__ __forceinline__ unsigned border(const float* w, int v, double target, bool counting, bool beyond) {
    unsigned found = 0;
    // Weights are 1 at most, 0x3f800000: thirty bits, two at a time.
    for (int shift = 28; shift >= 0; shift -= 2) {
        unsigned borders[3];
        for (int k = 0; k < 3; k++) borders[k] = found | (unsigned)(k + 1) << shift;
        Above sums = sums_above(w, v, borders, counting);
        for (int k = 2; k >= 0; k--) {
            if (beyond ? sums.of[k] > target : sums.of[k] >= target) {
                found = borders[k];
                break;
            }
        }
    }
    return found;
}

// Sum of the weights strictly above a border, and how many weigh just as much as it.
__device__ __forceinline__ double sum_beyond(const float* w, int v, unsigned bits) {
    unsigned borders[3] = {bits + 1, bits + 1, bits + 1};
    return sums_above(w, v, borders, false).of[0];
}

__device__ __forceinline__ double count_from(const float* w, int v, unsigned bits) {
    unsigned borders[3] = {bits, bits, bits};
    return sums_above(w, v, borders, true).of[0];
}

// The n-th (from 0) token that weighs `bits`, or the last one that does.
__device__ __forceinline__ unsigned nth_equal(const float* w, int v, unsigned bits, unsigned n) {
    __shared__ unsigned answer;
    __shared__ unsigned counts[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    int share = (v + warps - 1) / warps, from = warp * share, to = min(from + share, v);
    unsigned mine = 0;
    for (int i = from; i < to; i += 32) {
        mine += __popc(__ballot_sync(ALL_LANES, i + lane < to && __float_as_uint(w[i + lane]) == bits));
    }
    if (lane == 0) counts[warp] = mine;
    if (threadIdx.x == 0) answer = 0;
    __syncthreads();
    unsigned before = 0, all = 0;
    for (int i = 0; i < warps; i++) {
        if (i < warp) before += counts[i];
        all += counts[i];
    }
    n = all > 0 && n >= all ? all - 1 : n;
    if (n >= before && n < before + mine) {
        for (int i = from; i < to; i += 32) {
            bool equal = i + lane < to && __float_as_uint(w[i + lane]) == bits;
            unsigned ballot = __ballot_sync(ALL_LANES, equal);
            if (equal && before + __popc(ballot & ((1u << lane) - 1)) == n) answer = i + lane;
            before += __popc(ballot);
        }
    }
    __syncthreads();
    return answer;
}

// sampler.rs `draw_restricted`.
__device__ __forceinline__ unsigned draw_restricted(const float* w, int v, int top_k, float top_p, double total, double u) {
    double kept = total;
    unsigned lowest = 0;  // the last weight kept, and how many of those that weigh as much
    double equals = v;
    if (top_k > 0 && top_k < v) {
        lowest = border(w, v, (double)top_k, true, false);
        equals = top_k - count_from(w, v, lowest + 1);
        kept = sum_beyond(w, v, lowest) + equals * __uint_as_float(lowest);
    }
    if (top_p < 1.0f) {
        double target = (double)top_p * kept;
        unsigned bits = border(w, v, target, false, false);
        double weight = __uint_as_float(bits), beyond = sum_beyond(w, v, bits), number = 0.0;
        // The CPU adds them one by one and looks after each: at least one.
        number = ceil((target - beyond) / weight);
        number = number < 1.0 ? 1.0 : number;
        if (bits > lowest || (bits == lowest && number < equals)) lowest = bits, equals = number;
        kept = sum_beyond(w, v, lowest) + equals * __uint_as_float(lowest);
    }
    double left = u * kept;
    unsigned bits = border(w, v, left, false, true);
    double weight = __uint_as_float(bits), place = floor((left - sum_beyond(w, v, bits)) / weight);
    place = place > 0.0 ? place : 0.0;
    if (bits < lowest || (bits == lowest && place >= equals)) {
        // Rounding went past the last one that is kept.
        bits = lowest;
        place = equals > 1.0 ? equals - 1.0 : 0.0;
    }
    return nth_equal(w, v, bits, (unsigned)place);
}

// rollout/sampler.rs `sample`. logits f32 [R, V], rows `stride` apart, not divided by the temperature yet; overwritten where a draw is
// restricted.
// uniforms f64 [R], in [0, 1): the sample's generator's next, or anything where greedy. top_k 0 and top_p 1 restrict nothing.
// token u32, log_prob, entropy f32 [R]: of the whole distribution, before top_k and top_p. min-p is not part of the sampler.
// Grid R; block: whole warps, 1024 is best; dynamic shared memory: 16 ceil(V / 256) bytes.
// One block a multiprocessor: so that two could be there, the compiler would keep less in registers than it needs.
extern "C" __global__ void __launch_bounds__(1024, 1)
    sample(float* logits, unsigned long long stride, int v, float inv_temperature, int greedy, int top_k, float top_p,
           const double* uniforms, unsigned* token, float* log_prob, float* entropy) {
    DYNAMIC_SHARED(shared);
    __shared__ double total, weighted;
    size_t row = blockIdx.x;
    float* z = logits + row * stride;
    int blocks = (v + BLOCK - 1) / BLOCK;
    double *sums = (double*)shared, *weighted_sums = sums + blocks;
    float m = -INFINITY;
    each_of(z, v, [&](float x) {
        x = inv_temperature == 1.0f ? x : __fmul_rn(x, inv_temperature);
        m = x > m ? x : m;
    });
    m = block_max(m);
    unsigned chosen = 0xffffffffu;
    if (greedy) {
        for (int i = threadIdx.x; i < v; i += blockDim.x) {
            float x = inv_temperature == 1.0f ? z[i] : __fmul_rn(z[i], inv_temperature);
            if (x == m) chosen = min(chosen, (unsigned)i);
        }
        chosen = block_min(chosen);
        __syncthreads();
    }
    bool restricted = !greedy && ((top_k > 0 && top_k < v) || top_p < 1.0f);
    auto weight = [&](int i) { return exp_cpu(relative(z[i], inv_temperature, m)); };
    weigh(z, v, inv_temperature, m, restricted, sums, weighted_sums);
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0.0, product = 0.0;
        for (int i = 0; i < blocks; i++) sum = __dadd_rn(sum, sums[i]), product = __dadd_rn(product, weighted_sums[i]);
        total = sum, weighted = product;
    }
    __syncthreads();
    if (chosen == 0xffffffffu) {
        chosen = restricted ? draw_restricted(z, v, top_k, top_p, total, uniforms[row])
                            : draw(weight, v, sums, total, uniforms[row]);
    }
    if (threadIdx.x != 0) return;
    double log_total = log(total);
    token[row] = chosen;
    log_prob[row] = (float)(log((double)(restricted ? z[chosen] : weight(chosen))) - log_total);
    entropy[row] = (float)(log_total - weighted / total);
}
