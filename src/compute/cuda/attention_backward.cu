// Backward of attention (cpu/attention.rs `attention_backward`): probabilities again from the log-sum-exp, P = e^(s - lse), and
// dS = P (dP - D) with dP = dO V^T and D = out . dO.
//
// Two kernels, so that every gradient is written by one block, in one order, without atomics: d_queries goes through the keys
// that a block of queries sees, d_keys_values through the queries that see a block of keys, those of a prompt's continuations
// among them.
#include "attention.cuh"

// cpu/attention.rs's `out . d_out`: out, d_out REAL [T, H hd], pull f32 [T, H]. Grid ceil(T H / 8); block 256: a warp a head.
extern "C" __global__ void __launch_bounds__(256)
    attention_pull(const real* out, const real* d_out, float* pull, int rows, int hd) {
    int lane = threadIdx.x % 32;
    size_t row = (size_t)blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int i = 2 * lane; i < hd; i += 64) {
        float2 a = load2(out + row * hd + i), b = load2(d_out + row * hd + i);
        sum = fmaf(a.y, b.y, fmaf(a.x, b.x, sum));
    }
    sum = warp_sum(sum);
    if (lane == 0) pull[row] = sum;
}

// What both kernels read. qk, qkv, segments as in attention; d_out REAL [T, H hd]; lse, pull f32 [T, H].
struct Saved {
    const real *qk, *qkv, *d_out;
    const float *lse, *pull;
    const Segment* segments;
    int heads, kv_heads;
};

template <int HD>
__device__ __forceinline__ void queries_backward(const Saved& x, const QueryTile* tiles, real* d_qkv) {
    DYNAMIC_SHARED(shared);
    // Keys a step. Half as many in f32 and for heads of more than 64: two stages fit in the 99 KiB of a GPU that is no
    // server's, for heads of 128 in bf16.
    const int KEYS = REAL_IS_BF16 && HD <= 64 ? 64 : 32;
    const int width = padded(HD);
    real* queries = (real*)shared;           // [ROWS]
    real* d_rows = queries + ROWS * width;   // [ROWS]
    real* keys = d_rows + ROWS * width;      // [2][KEYS]
    real* values = keys + 2 * KEYS * width;  // [2][KEYS]
    QueryTile tile = tiles[blockIdx.x];
    Segment s = x.segments[tile.segment];
    unsigned kv_head = blockIdx.y, group = x.heads / x.kv_heads, stacked = s.count * group;
    size_t q_dim = (size_t)x.heads * HD, qk_dim = q_dim + (size_t)x.kv_heads * HD, qkv_dim = qk_dim + (size_t)x.kv_heads * HD;
    const real* key_columns = x.qk + q_dim + kv_head * HD;
    const real* value_columns = x.qkv + qk_dim + kv_head * HD;

    unsigned visible = s.prefix_count + (min(tile.first + ROWS, stacked) - 1) / group + 1;
    unsigned seen_by_all = s.prefix_count + tile.first / group + 1;
    int steps = (visible + KEYS - 1) / KEYS;
    copy_stacked<HD>(queries, x.qk + kv_head * group * HD, qk_dim, s, tile.first, ROWS, group);
    copy_stacked<HD>(d_rows, x.d_out + kv_head * group * HD, q_dim, s, tile.first, ROWS, group);
    copy_keys<HD>(keys, key_columns, qk_dim, s, 0, KEYS, visible);
    copy_keys<HD>(values, value_columns, qkv_dim, s, 0, KEYS, visible);
    copies_commit();

    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16, g = lane / 4, t = lane % 4;
    const float scale = 1.0f / sqrtf((float)HD);
    unsigned sees[2];
    float lse[2], pull[2];
    for (int i = 0; i < 2; i++) {
        unsigned at = min(tile.first + row + g + 8 * i, stacked - 1);
        size_t place = (s.first + at / group) * (size_t)x.heads + kv_head * group + at % group;
        sees[i] = s.prefix_count + at / group + 1;
        lse[i] = x.lse[place] * LOG2_E;
        pull[i] = x.pull[place];
    }
    float d_queries[HD / 8][4];
    clear(d_queries);
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) {
            int next = (step + 1) % 2 * KEYS * width;
            copy_keys<HD>(keys + next, key_columns, qk_dim, s, (step + 1) * KEYS, KEYS, visible);
            copy_keys<HD>(values + next, value_columns, qkv_dim, s, (step + 1) * KEYS, KEYS, visible);
        }
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        int stage = step % 2 * KEYS * width;
        float scores[KEYS / 8][4], d_scores[KEYS / 8][4];
        clear(scores);
        clear(d_scores);
        multiply_rows<HD>(scores, queries, row, keys + stage);
        multiply_rows<HD>(d_scores, d_rows, row, values + stage);
        unsigned from = step * KEYS;
        bool masked = from + KEYS > seen_by_all;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float p = exp2_fast(fmaf(scores[n][i], scale * LOG2_E, -lse[i / 2]));
                if (masked && from + n * 8 + 2 * t + i % 2 >= sees[i / 2]) p = 0.0f;
                d_scores[n][i] = p * (d_scores[n][i] - pull[i / 2]);
            }
        }
        multiply_weights<HD>(d_queries, d_scores, keys + stage);
        __syncthreads();
    }
    for (int i = 0; i < 2; i++) {
        unsigned at = tile.first + row + g + 8 * i;
        if (at >= stacked) continue;
        real* to = d_qkv + (s.first + at / group) * qkv_dim + (kv_head * group + at % group) * HD;
#pragma unroll
        for (int n = 0; n < HD / 8; n++) store2(to + n * 8 + 2 * t, d_queries[n][2 * i] * scale, d_queries[n][2 * i + 1] * scale);
    }
}

// Queries that see a block of keys, a tile of stacked rows at a time.
struct Readers {
    unsigned segment, first;
};

template <int HD>
__device__ __forceinline__ void keys_values_backward(const Saved& x, const KeyTile* tiles, real* d_qkv) {
    DYNAMIC_SHARED(shared);
    // Two gradients of 16 x HD a warp stand in registers; with 128 dimensions there is room for few queries beside them.
    const int QUERIES = HD > 64 || !REAL_IS_BF16 ? 32 : 64;
    const int width = padded(HD);
    real* keys = (real*)shared;                           // [ROWS]
    real* values = keys + ROWS * width;                   // [ROWS]
    real* queries = values + ROWS * width;                // [2][QUERIES]
    real* d_rows = queries + 2 * QUERIES * width;         // [2][QUERIES]
    float* lses = (float*)(d_rows + 2 * QUERIES * width); // [2][QUERIES], in units of log 2
    float* pulls = lses + 2 * QUERIES;                    // [2][QUERIES]
    KeyTile tile = tiles[blockIdx.x];
    Segment own = x.segments[tile.segment];
    unsigned kv_head = blockIdx.y, group = x.heads / x.kv_heads;
    size_t q_dim = (size_t)x.heads * HD, qk_dim = q_dim + (size_t)x.kv_heads * HD, qkv_dim = qk_dim + (size_t)x.kv_heads * HD;
    const real* query_columns = x.qk + kv_head * group * HD;
    const real* d_columns = x.d_out + kv_head * group * HD;

    auto load = [&](Readers at, int stage) {
        Segment s = x.segments[at.segment];
        copy_stacked<HD>(queries + stage * QUERIES * width, query_columns, qk_dim, s, at.first, QUERIES, group);
        copy_stacked<HD>(d_rows + stage * QUERIES * width, d_columns, q_dim, s, at.first, QUERIES, group);
        for (int i = threadIdx.x; i < QUERIES; i += THREADS) {
            unsigned stacked = at.first + i;
            bool valid = stacked < s.count * group;
            size_t place = valid ? (s.first + stacked / group) * (size_t)x.heads + kv_head * group + stacked % group : 0;
            // Rows past the end have probability e^-inf.
            lses[stage * QUERIES + i] = valid ? x.lse[place] * LOG2_E : INFINITY;
            pulls[stage * QUERIES + i] = valid ? x.pull[place] : 0.0f;
        }
    };
    auto next = [&](Readers at) -> Readers {
        if (at.first + QUERIES < x.segments[at.segment].count * group) return {at.segment, at.first + QUERIES};
        return {at.segment + 1, 0};
    };

    // Keys as their own segment counts them, without its prefix.
    Segment bare = {own.first, own.count, 0, 0};
    copy_keys<HD>(keys, x.qk + q_dim + kv_head * HD, qk_dim, bare, tile.first, ROWS, own.count);
    copy_keys<HD>(values, x.qkv + qk_dim + kv_head * HD, qkv_dim, bare, tile.first, ROWS, own.count);
    // Earlier tokens of the segment do not see the tile.
    Readers at = {tile.segment, tile.first * group / QUERIES * QUERIES};
    load(at, 0);
    copies_commit();

    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16, g = lane / 4, t = lane % 4;
    const float scale = 1.0f / sqrtf((float)HD);
    float d_keys[HD / 8][4], d_values[HD / 8][4];
    clear(d_keys);
    clear(d_values);
    for (int stage = 0; at.segment < tile.readers_end; stage ^= 1) {
        Readers following = next(at);
        if (following.segment < tile.readers_end) load(following, stage ^ 1);
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        // Transposed, keys as rows: probabilities are then the left factor of d_values as they lie.
        float p[QUERIES / 8][4], d_scores[QUERIES / 8][4];
        clear(p);
        clear(d_scores);
        multiply_rows<HD>(p, keys, row, queries + stage * QUERIES * width);
        multiply_rows<HD>(d_scores, values, row, d_rows + stage * QUERIES * width);
        bool causal = at.segment == tile.segment && at.first / group < tile.first + ROWS;
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int query = n * 8 + 2 * t + i % 2;
                float weight = exp2_fast(fmaf(p[n][i], scale * LOG2_E, -lses[stage * QUERIES + query]));
                if (causal && tile.first + row + g + i / 2 * 8 > (at.first + query) / group) weight = 0.0f;
                p[n][i] = weight;
                d_scores[n][i] = weight * (d_scores[n][i] - pulls[stage * QUERIES + query]);
            }
        }
        multiply_weights<HD>(d_values, p, d_rows + stage * QUERIES * width);
        multiply_weights<HD>(d_keys, d_scores, queries + stage * QUERIES * width);
        __syncthreads();
        at = following;
    }
    for (int i = 0; i < 2; i++) {
        unsigned key = tile.first + row + g + 8 * i;
        if (key >= own.count) continue;
        real* to = d_qkv + (own.first + key) * qkv_dim + q_dim + kv_head * HD;
#pragma unroll
        for (int n = 0; n < HD / 8; n++) {
            store2(to + n * 8 + 2 * t, d_keys[n][2 * i] * scale, d_keys[n][2 * i + 1] * scale);
            store2(to + x.kv_heads * HD + n * 8 + 2 * t, d_values[n][2 * i], d_values[n][2 * i + 1]);
        }
    }
}

// cpu/attention.rs `attention_backward`, for head dimension HD as in attention.cu. Together the two write all of d_qkv REAL
// [T, (H + 2 KV) hd]: the gradient of the rotated queries and keys, and of the values; nothing need be cleared before.
//
// attention_backward_queries_<hd>: tiles as in attention. Grid (tiles, KV); block 128; dynamic shared memory: (128 + 4 KEYS)
// (hd sizeof(REAL) + 16) bytes, KEYS 64 in bf16 up to head dimension 64, else 32.
// attention_backward_keys_<hd>: tiles: KeyTile (3 u32 each), those of every segment at first = 0, 64, ... below count; prompts,
// which are read longest, first. Grid (tiles, KV); block 128; dynamic shared memory: (128 + 4 QUERIES) (hd sizeof(REAL) + 16) +
// 16 QUERIES bytes, QUERIES 64 in bf16 up to head dimension 64, else 32.
#define ATTENTION_BACKWARD(HD)                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_queries_##HD(                                   \
        const real* qk, const real* qkv, const real* d_out, const float* lse, const float* pull, const Segment* segments,    \
        const QueryTile* tiles, real* d_qkv, int heads, int kv_heads) {                                                      \
        queries_backward<HD>({qk, qkv, d_out, lse, pull, segments, heads, kv_heads}, tiles, d_qkv);                          \
    }                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_keys_##HD(                                      \
        const real* qk, const real* qkv, const real* d_out, const float* lse, const float* pull, const Segment* segments,    \
        const KeyTile* tiles, real* d_qkv, int heads, int kv_heads) {                                                        \
        keys_values_backward<HD>({qk, qkv, d_out, lse, pull, segments, heads, kv_heads}, tiles, d_qkv);                      \
    }
#ifdef HEAD_DIM
#define ATTENTION_BACKWARD_OF(HD) ATTENTION_BACKWARD(HD)
ATTENTION_BACKWARD_OF(HEAD_DIM)
#else
ATTENTION_BACKWARD(32)
ATTENTION_BACKWARD(64)
ATTENTION_BACKWARD(128)
#endif
