// Queries and keys made ready for attention: the per-head RMS norm (Qwen3) and the rotary position embedding (cpu/rope.rs).
//
// A warp takes a head of a token. Element i turns with element i + head_dim / 2 (rotate_half), so a lane holds two
// neighbours of the first half and their partners. The table of cosines and sines is the CPU's own, made in f64.
#include "common.cuh"

// Pairs of neighbours a lane holds at most: head_dim up to 256.
static const int PAIRS = 2;
static const int WARPS = 8;

// A head's elements: places 2 j and 2 j + 1 of `first` are elements 2 (lane + 32 j) and the next of its first half, of `second`
// the same of its second.
struct HeadRow {
    float first[2 * PAIRS], second[2 * PAIRS];
};

template <class From>
__device__ __forceinline__ HeadRow load_head(const From* x, int half, int lane) {
    HeadRow row;
    for (int j = 0; j < PAIRS; j++) {
        int i = 2 * (lane + 32 * j);
        float2 a = i < half ? load2(x + i) : make_float2(0.0f, 0.0f);
        float2 b = i < half ? load2(x + half + i) : make_float2(0.0f, 0.0f);
        row.first[2 * j] = a.x, row.first[2 * j + 1] = a.y;
        row.second[2 * j] = b.x, row.second[2 * j + 1] = b.y;
    }
    return row;
}

template <class To>
__device__ __forceinline__ void store_head(To* x, const HeadRow& row, int half, int lane) {
    for (int j = 0; j < PAIRS; j++) {
        int i = 2 * (lane + 32 * j);
        if (i >= half) continue;
        store2(x + i, row.first[2 * j], row.first[2 * j + 1]);
        store2(x + half + i, row.second[2 * j], row.second[2 * j + 1]);
    }
}

__device__ __forceinline__ float head_inverse_rms(const HeadRow& x, int half, float eps) {
    float sum = 0.0f;
    for (int j = 0; j < 2 * PAIRS; j++) sum = fmaf(x.second[j], x.second[j], fmaf(x.first[j], x.first[j], sum));
    return 1.0f / sqrtf(warp_sum(sum) / (float)(2 * half) + eps);
}

// sign -1 turns back.
__device__ __forceinline__ void rotate(HeadRow& x, const float* cos, const float* sin, float sign, int half, int lane) {
    for (int j = 0; j < PAIRS; j++) {
        int i = 2 * (lane + 32 * j);
        if (i >= half) continue;
        float2 c = load2(cos + i), s = load2(sin + i);
        float u0 = x.first[2 * j], v0 = x.second[2 * j], u1 = x.first[2 * j + 1], v1 = x.second[2 * j + 1];
        x.first[2 * j] = u0 * c.x - v0 * (sign * s.x);
        x.second[2 * j] = v0 * c.x + u0 * (sign * s.x);
        x.first[2 * j + 1] = u1 * c.y - v1 * (sign * s.y);
        x.second[2 * j + 1] = v1 * c.y + u1 * (sign * s.y);
    }
}

// A head's norm, if it has weights, and its turn.
__device__ __forceinline__ void make_ready(HeadRow& x, const float* w, float eps, const float* cos, const float* sin, int half,
                                           int lane) {
    if (w) {
        float inv = head_inverse_rms(x, half, eps);
        HeadRow scale = load_head(w, half, lane);
        for (int j = 0; j < 2 * PAIRS; j++) {
            x.first[j] = x.first[j] * inv * scale.first[j];
            x.second[j] = x.second[j] * inv * scale.second[j];
        }
    }
    rotate(x, cos, sin, 1.0f, half, lane);
}

// cpu/rope.rs `QkRope::forward`. qkv REAL [T, (H + 2 KV) hd] to qk REAL [T, (H + KV) hd]; q_norm, k_norm f32 [hd] or null; cos,
// sin f32 [positions, hd / 2]; positions u32 [T]. hd: a multiple of 4, 256 at most.
// Grid ceil(T (H + KV) / 8); block 256: a warp a head.
extern "C" __global__ void __launch_bounds__(256)
    qk_rope(const real* qkv, real* qk, const float* q_norm, const float* k_norm, float eps, const float* cos, const float* sin,
            const unsigned* positions, int t, int heads, int kv_heads, int hd) {
    int lane = threadIdx.x % 32, half = hd / 2, rotated = heads + kv_heads;
    size_t item = (size_t)blockIdx.x * WARPS + threadIdx.x / 32, token = item / rotated;
    int head = item % rotated;
    if (token >= t) return;
    HeadRow x = load_head(qkv + (token * (rotated + kv_heads) + head) * hd, half, lane);
    size_t at = (size_t)positions[token] * half;
    make_ready(x, head < heads ? q_norm : k_norm, eps, cos + at, sin + at, half, lane);
    store_head(qk + item * hd, x, half, lane);
}

// qk_rope for new tokens whose keys are read from the cache alone: queries go to qk as there, whose keys are left as they are; keys,
// and the values beside them, go to their places in a layer's pages, as by attention_decode.cu `kv_write`. slots u32 [T].
// Grid ceil(T (H + 2 KV) / 8); block 256: a warp a head.
extern "C" __global__ void __launch_bounds__(256)
    qk_rope_to_pages(const real* qkv, real* qk, const float* q_norm, const float* k_norm, float eps, const float* cos,
                     const float* sin, const unsigned* positions, const unsigned* slots, real* keys, real* values, int t, int heads,
                     int kv_heads, int hd) {
    int lane = threadIdx.x % 32, half = hd / 2, all = heads + 2 * kv_heads;
    size_t item = (size_t)blockIdx.x * WARPS + threadIdx.x / 32, token = item / all;
    int head = item % all;
    if (token >= t) return;
    bool query = head < heads, rotated = head < heads + kv_heads;
    unsigned slot = slots[token];
    if (!query && slot == NOWHERE) return;
    HeadRow x = load_head(qkv + item * hd, half, lane);
    size_t at = (size_t)positions[token] * half;
    if (rotated) make_ready(x, query ? q_norm : k_norm, eps, cos + at, sin + at, half, lane);
    real* to = query ? qk + (token * (heads + kv_heads) + head) * hd
                     : (rotated ? keys : values) + in_pages(slot, (head - heads) % kv_heads, kv_heads, hd);
    store_head(to, x, half, lane);
}

// cpu/rope.rs `QkRope::backward`. In place on d_qkv REAL [T, (H + 2 KV) hd]: the gradient of the rotated q and k becomes that
// of the raw ones, the v part is left alone. dw_partial f32 [blocks, 2 hd] (q_norm's, then k_norm's), or null where there are
// no norms or they are frozen; add_column_sums adds it up. `rows` tokens a block, a function of T alone.
// Grid ceil(T / rows); block 256: a warp a head; dynamic shared memory: 8 * 2 hd * 4 bytes.
extern "C" __global__ void __launch_bounds__(256)
    qk_rope_backward(const real* qkv, real* d_qkv, const float* q_norm, const float* k_norm, float eps, const float* cos,
                     const float* sin, const unsigned* positions, float* dw_partial, int t, int heads, int kv_heads, int hd,
                     int rows) {
    DYNAMIC_SHARED(shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = hd / 2, rotated = heads + kv_heads;
    int first = blockIdx.x * rows, end = min(first + rows, t);
    HeadRow dw_q = {{0.0f}, {0.0f}}, dw_k = {{0.0f}, {0.0f}};
    for (int item = warp; item < (end - first) * rotated; item += WARPS) {
        int head = item % rotated;
        size_t token = first + item / rotated, place = (token * (rotated + kv_heads) + head) * hd;
        HeadRow d = load_head(d_qkv + place, half, lane);
        size_t at = (size_t)positions[token] * half;
        rotate(d, cos + at, sin + at, -1.0f, half, lane);
        bool query = head < heads;
        const float* weights = query ? q_norm : k_norm;
        if (weights) {
            HeadRow x = load_head(qkv + place, half, lane), w = load_head(weights, half, lane);
            float inv = head_inverse_rms(x, half, eps), sum = 0.0f;
            for (int j = 0; j < 2 * PAIRS; j++) {
                sum = fmaf(w.first[j] * d.first[j], x.first[j], sum);
                sum = fmaf(w.second[j] * d.second[j], x.second[j], sum);
            }
            float pull = inv * inv * inv * warp_sum(sum) / (float)hd;
            for (int j = 0; j < 2 * PAIRS; j++) {
                float a = d.first[j] * inv * x.first[j], b = d.second[j] * inv * x.second[j];
                // A warp's heads alternate between queries and keys: both sums stay in registers.
                dw_q.first[j] += query ? a : 0.0f, dw_k.first[j] += query ? 0.0f : a;
                dw_q.second[j] += query ? b : 0.0f, dw_k.second[j] += query ? 0.0f : b;
                d.first[j] = fmaf(inv * w.first[j], d.first[j], -(pull * x.first[j]));
                d.second[j] = fmaf(inv * w.second[j], d.second[j], -(pull * x.second[j]));
            }
        }
        store_head(d_qkv + place, d, half, lane);
    }
    if (!dw_partial) return;
    float* sums = (float*)shared;  // [warps, 2 hd]
    store_head(sums + warp * 2 * hd, dw_q, half, lane);
    store_head(sums + warp * 2 * hd + hd, dw_k, half, lane);
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * hd; i += blockDim.x) {
        float sum = 0.0f;
        for (int w = 0; w < WARPS; w++) sum += sums[w * 2 * hd + i];
        dw_partial[(size_t)blockIdx.x * 2 * hd + i] = sum;
    }
}
