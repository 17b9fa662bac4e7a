// Causal attention over packed sequences with grouped query heads (cpu/attention.rs): blocks of stacked queries against blocks of
// keys, softmax as it goes, so that scores exist only in registers.
#include "attention.cuh"

template <int HD>
__device__ __forceinline__ void forward(const real* qk, const real* qkv, const Segment* segments, const QueryTile* tiles,
                                        real* out, float* lse, int heads, int kv_heads) {
    DYNAMIC_SHARED(shared);
    // Keys a step. Half as many in f32 and for large heads, so that two stages fit.
    const int KEYS = REAL_IS_BF16 && HD <= 128 ? 64 : 32;
    const int width = padded(HD);
    real* queries = (real*)shared;             // [ROWS]
    real* keys = queries + ROWS * width;       // [2][KEYS]
    real* values = keys + 2 * KEYS * width;    // [2][KEYS]
    QueryTile tile = tiles[blockIdx.x];
    Segment s = segments[tile.segment];
    unsigned kv_head = blockIdx.y, group = heads / kv_heads, stacked = s.count * group;
    size_t qk_dim = (size_t)(heads + kv_heads) * HD, qkv_dim = qk_dim + (size_t)kv_heads * HD;
    const real* key_columns = qk + (heads + kv_head) * HD;
    const real* value_columns = qkv + qk_dim + kv_head * HD;

    unsigned visible = s.prefix_count + (min(tile.first + ROWS, stacked) - 1) / group + 1;  // by the tile's last row
    unsigned seen_by_all = s.prefix_count + tile.first / group + 1;
    int steps = (visible + KEYS - 1) / KEYS;
    copy_stacked<HD>(queries, qk + kv_head * group * HD, qk_dim, s, tile.first, ROWS, group);
    copy_keys<HD>(keys, key_columns, qk_dim, s, 0, KEYS, visible);
    copy_keys<HD>(values, value_columns, qkv_dim, s, 0, KEYS, visible);
    copies_commit();

    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16, g = lane / 4, t = lane % 4;
    unsigned sees[2];
    for (int i = 0; i < 2; i++) sees[i] = s.prefix_count + min((tile.first + row + g + 8 * i) / group, s.count - 1) + 1;
    // In units of log 2, so that a probability is one exp2.
    const float scale = LOG2_E / sqrtf((float)HD);
    float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    float result[HD / 8][4];
    clear(result);

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
        float scores[KEYS / 8][4];
        clear(scores);
        multiply_rows<HD>(scores, queries, row, keys + stage);
        unsigned from = step * KEYS;
        bool masked = from + KEYS > seen_by_all;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool seen = !masked || from + n * 8 + 2 * t + i % 2 < sees[i / 2];
                scores[n][i] = seen ? scores[n][i] * scale : -INFINITY;
            }
        }
        // Every row sees the first key.
        weigh<HD>(scores, maximum, sum, result);
        multiply_weights<HD>(result, scores, values + stage);
        __syncthreads();  // the next step's copies overwrite this stage
    }

    for (int i = 0; i < 2; i++) {
        float total = quad_sum(sum[i]), inverse = 1.0f / total;
        unsigned at = tile.first + row + g + 8 * i;
        if (at >= stacked) continue;
        size_t token = s.first + at / group, head = kv_head * group + at % group;
        real* to = out + (token * heads + head) * HD;
#pragma unroll
        for (int n = 0; n < HD / 8; n++) store2(to + n * 8 + 2 * t, result[n][2 * i] * inverse, result[n][2 * i + 1] * inverse);
        if (t == 0) lse[token * heads + head] = maximum[i] * LN_2 + logf(total);
    }
}

// cpu/attention.rs `attention`, for head dimension HD: attention_32, attention_64, attention_128, and attention_<n> with
// -DHEAD_DIM=n, n a multiple of 16.
//
// qk REAL [T, (H + KV) hd] rotated queries and keys, qkv REAL [T, (H + 2 KV) hd] for the values; segments: Segment (4 u32
// each); tiles: QueryTile (2 u32 each), those of every segment at first = 0, 64, 128, ... below count * H / KV, in any order
// (long ones first end together). out REAL [T, H hd]; lse f32 [T, H], of the scores scaled by 1 / sqrt(hd).
// Grid (tiles, KV); block 128; dynamic shared memory: (64 + 4 KEYS) (hd sizeof(REAL) + 16) bytes, KEYS 64 in bf16 up to head
// dimension 128, else 32.
#define ATTENTION(HD)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                 \
        attention_##HD(const real* qk, const real* qkv, const Segment* segments, const QueryTile* tiles, real* out,       \
                       float* lse, int heads, int kv_heads) {                                                             \
        forward<HD>(qk, qkv, segments, tiles, out, lse, heads, kv_heads);                                                 \
    }
#ifdef HEAD_DIM
#define ATTENTION_OF(HD) ATTENTION(HD)
ATTENTION_OF(HEAD_DIM)
#else
ATTENTION(32)
ATTENTION(64)
ATTENTION(128)
#endif
