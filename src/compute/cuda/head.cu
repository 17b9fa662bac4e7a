// The unembedding read as a distribution (cpu/head.rs, cpu/head/gradient.rs): log-sum-exps, entropies and log-probs from tiles of
// logits that a matrix product has made, and the logits' gradient.
//
// For every row the sums are relative to its maximum m so far: s = sum e^(z - m), a = sum e^(z - m) (z - m), with z = logit /
// temperature. Within a tile a thread sums few elements in f32, relative to its own maximum, so that a tile is read once; all else
// is f64, so that peaked distributions keep their small entropies.
#include "common.cuh"

// Applies f(column, element) to a row, four elements a load where the row allows it. Columns of a thread ascend.
template <class F>
__device__ __forceinline__ void each(const float* row, int width, F f) {
    int from = threadIdx.x * 4;
    if ((size_t)row % 16 == 0) {
        for (; from + 4 <= width; from += blockDim.x * 4) {
            float4 v = *(const float4*)(row + from);
            f(from, v.x), f(from + 1, v.y), f(from + 2, v.z), f(from + 3, v.w);
        }
        // The last few: the thread whose turn it would be.
        for (int i = from; i < width && i < from + 4; i++) f(i, row[i]);
        return;
    }
    for (int i = threadIdx.x; i < width; i += blockDim.x) f(i, row[i]);
}

// A thread's sums, relative to the largest z that it has seen.
struct Folded {
    float m, s, a;

    // To a larger maximum. All are sums of one sign: nothing cancels. What has seen nothing stays nothing.
    __device__ __forceinline__ void raise(float higher) {
        if (s > 0.0f) {
            float shift = m - higher, fade = exp_cpu(shift);
            a = fmaf(s, shift, a) * fade;
            s *= fade;
        }
        m = higher;
    }

    __device__ __forceinline__ void add(float z) {
        if (z > m) raise(z);
        z -= m;
        float e = exp_cpu(z);
        s += e;
        a = fmaf(e, z, a);
    }
};

// cpu/head.rs `Head::fold_tile` and `Sums::merge`: folds a tile of logits f32 [R, width], rows `stride` apart, not divided by
// the temperature yet, whose first column is vocabulary entry `first`, into the rows' sums: m f32, s, a f64 [R], target_logit
// f32 [R] (z of the target). With begin, the sums start with this tile; fold tiles in order. targets u32 [R], or null (then
// target_logit is not used).
// Grid R; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    head_fold(const float* logits, unsigned long long stride, int width, float inv_temperature, const unsigned* targets,
              unsigned first, float* m, double* s, double* a, float* target_logit, int begin) {
    size_t row = blockIdx.x;
    const float* z = logits + row * stride;
    Folded own = {-INFINITY, 0.0f, 0.0f};
    each(z, width, [&](int, float x) { own.add(x * inv_temperature); });
    float highest = block_max(own.m);
    own.raise(highest);
    double tile_s = block_sum((double)own.s), tile_a = block_sum((double)own.a);
    if (threadIdx.x != 0) return;
    if (targets) {
        unsigned target = targets[row] - first;
        if (targets[row] >= first && target < (unsigned)width) target_logit[row] = z[target] * inv_temperature;
    }
    if (begin) {
        m[row] = highest, s[row] = tile_s, a[row] = tile_a;
        return;
    }
    // Both relative to the higher maximum.
    float old = m[row], both = old > highest ? old : highest;
    double shift = (double)old - both, tile_shift = (double)highest - both;
    double factor = shift == 0.0 ? 1.0 : exp(shift), tile_factor = tile_shift == 0.0 ? 1.0 : exp(tile_shift);
    m[row] = both;
    a[row] = (a[row] + s[row] * shift) * factor + (tile_a + tile_s * tile_shift) * tile_factor;
    s[row] = s[row] * factor + tile_s * tile_factor;
}

// cpu/head.rs `merged`, its end: lse, entropy (nats) and, where there are targets, log_prob f32 [R] from the rows' sums.
// log_prob and target_logit may be null. Grid ceil(R / block); block: any.
extern "C" __global__ void head_finish(const float* m, const double* s, const double* a, const float* target_logit, float* lse,
                                       float* entropy, float* log_prob, int rows) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    double log_s = log(s[row]);
    lse[row] = (float)((double)m[row] + log_s);
    entropy[row] = (float)(log_s - a[row] / s[row]);
    // Relative to the maximum: a likely token's log-prob keeps its digits.
    if (log_prob) log_prob[row] = (float)((double)(target_logit[row] - m[row]) - log_s);
}

// cpu/head/gradient.rs `d_logits`: a tile's logits to a loss's derivatives for the undivided logits (what the product with the
// unembedding made). With g, h a row's derivatives for its log-prob and entropy H: dz_j = (g (1[j = target] - p_j) - h p_j (log
// p_j + H)) / temperature.
//
// logits f32 [R, width], rows `stride` apart; rows u32 [n]: which of them, or null for 0..n; targets u32, lse, entropy,
// d_log_prob, d_entropy f32: of all R rows (d_entropy may be null); out REAL [n, width], rows out_stride apart, may be logits
// itself in f32 where rows is null. A row with g = h = 0 becomes zeros.
// Grid n; block: any. Rows that begin at multiples of four elements are written four at a time. Two blocks a multiprocessor, so that one has
// numbers to work on while the other waits for some.
extern "C" __global__ void __launch_bounds__(1024, 2)
    head_d_logits(const float* logits, unsigned long long stride, int width, float inv_temperature,
                                         const unsigned* rows, const unsigned* targets, unsigned first, const float* lse,
                                         const float* entropy, const float* d_log_prob, const float* d_entropy, real* out,
                                         unsigned long long out_stride) {
    size_t row = rows ? rows[blockIdx.x] : blockIdx.x;
    const float* z = logits + row * stride;
    real* to = out + blockIdx.x * out_stride;
    float g = d_log_prob[row] * inv_temperature, h = d_entropy ? d_entropy[row] * inv_temperature : 0.0f;
    float of_row = lse[row], spread = entropy[row];
    long long target = (long long)targets[row] - first;
    auto derivative = [&](int column, float x) -> float {
        float log_p = x * inv_temperature - of_row;
        // A row without a gradient has none even where its logits are not finite.
        float d = g == 0.0f && h == 0.0f ? 0.0f : -exp_cpu(log_p) * fmaf(h, log_p + spread, g);
        return column == target ? d + g : d;
    };
    if ((size_t)z % 16 != 0 || (size_t)to % (4 * sizeof(real)) != 0) {
        for (int i = threadIdx.x; i < width; i += blockDim.x) put(to + i, derivative(i, z[i]));
        return;
    }
    int i = threadIdx.x * 4;
    for (; i + 4 <= width; i += blockDim.x * 4) {
        float4 v = *(const float4*)(z + i);
        store4(to + i, derivative(i, v.x), derivative(i + 1, v.y), derivative(i + 2, v.z), derivative(i + 3, v.w));
    }
    for (int end = min(i + 4, width); i < end; i++) put(to + i, derivative(i, z[i]));
}

// The largest logit's place in every row, of equal ones the lowest, over tiles in order: best f32, token u32 [R]; for greedy
// evaluation and top tokens (cpu/head/divergence.rs `Comparison::top`). Grid R; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    head_top(const float* logits, unsigned long long stride, int width, unsigned first, float* best, unsigned* token, int begin) {
    size_t row = blockIdx.x;
    const float* z = logits + row * stride;
    float highest = -INFINITY;
    each(z, width, [&](int, float x) { highest = x > highest ? x : highest; });
    highest = block_max(highest);
    unsigned place = 0xffffffffu;
    each(z, width, [&](int column, float x) {
        if (x == highest) place = min(place, (unsigned)column);
    });
    place = block_min(place);
    if (threadIdx.x != 0) return;
    if (begin || highest > best[row]) best[row] = highest, token[row] = first + (place == 0xffffffffu ? 0 : place);
}
