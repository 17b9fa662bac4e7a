// What attention's kernels share: how queries are stacked, which keys a segment sees, and the copies of both to shared memory.
//
// The query heads that share a key/value head are stacked, as on the CPU: row s of a segment under key/value head j is token
// s / group, head j group + s % group. A tile of stacked rows meets each key once for all of these heads, whatever the group,
// and the last tokens of short segments fill a tile with their heads.
#pragma once
#include "mma.cuh"

// packing.rs `Segment`: rows that attend causally to themselves and wholly to their prefix.
struct Segment {
    unsigned first, count;
    unsigned prefix_first, prefix_count;  // count 0: none
};

// Stacked rows of one segment, ROWS of them from `first` on.
struct QueryTile {
    unsigned segment, first;
};

// Keys of one segment's own rows, from its row `first` on. They are read by the queries of segments `segment`..`readers_end`:
// of the segment itself, and, where it is a prompt, of its continuations, which follow it (the end of its tree). Else segment +
// 1.
struct KeyTile {
    unsigned segment, first, readers_end;
};

// Four warps of sixteen rows.
static const int ROWS = 64;
static const int THREADS = 128;
// Elements of 16 bytes.
static const int CHUNK = 16 / (int)sizeof(real);

// Row of the batch that holds key `key` of what a segment sees: its prefix, then its own rows.
__device__ __forceinline__ unsigned key_row(const Segment& s, unsigned key) {
    return key < s.prefix_count ? s.prefix_first + key : s.first + (key - s.prefix_count);
}

// Keys from..from + count of what a segment sees, those from `end` on as zeros. x: the matrix at the head's column.
template <int HD>
__device__ __forceinline__ void copy_keys(real* tile, const real* x, size_t stride, const Segment& s, unsigned from,
                                          unsigned count, unsigned end) {
    const unsigned chunks = HD / CHUNK;
    for (unsigned i = threadIdx.x; i < count * chunks; i += THREADS) {
        unsigned row = i / chunks, chunk = i % chunks, key = from + row;
        const real* at = key < end ? x + key_row(s, key) * stride + chunk * CHUNK : x;
        copy16_async(tile + row * padded(HD) + chunk * CHUNK, at, key < end);
    }
}

// Stacked rows from..from + count of a segment, those past its end as zeros. x: the matrix at the group's first column.
template <int HD>
__device__ __forceinline__ void copy_stacked(real* tile, const real* x, size_t stride, const Segment& s, unsigned from,
                                             unsigned count, unsigned group) {
    const unsigned chunks = HD / CHUNK;
    for (unsigned i = threadIdx.x; i < count * chunks; i += THREADS) {
        unsigned row = i / chunks, chunk = i % chunks, stacked = from + row;
        bool valid = stacked < s.count * group;
        const real* at = valid ? x + (s.first + stacked / group) * stride + stacked % group * HD + chunk * CHUNK : x;
        copy16_async(tile + row * padded(HD) + chunk * CHUNK, at, valid);
    }
}

// c += a row tile (16 x HD, from `row` on) times columns of rows of another: C[m][n] = sum_k left[row + m][k] right[n][k].
template <int HD, int N>
__device__ __forceinline__ void multiply_rows(float (&c)[N][4], const real* left, int row, const real* right) {
#pragma unroll
    for (int k = 0; k < HD; k += 16) {
        FragmentA a = load_a(left, padded(HD), row, k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            FragmentB b[2];
            load_b(b, right, padded(HD), n * 8, k);
            multiply_add(c[n], a, b[0]);
            multiply_add(c[n + 1], a, b[1]);
        }
    }
}

// c += weights (16 x 8 K) times rows of a tile: C[m][n] = sum_k weights[m][k] tile[k][n], n below HD.
template <int HD, int K>
__device__ __forceinline__ void multiply_weights(float (&c)[HD / 8][4], const float (&weights)[K][4], const real* tile) {
#pragma unroll
    for (int k = 0; k < K; k += 2) {
        FragmentA a = as_a(weights[k], weights[k + 1]);
#pragma unroll
        for (int n = 0; n < HD / 8; n += 2) {
            FragmentB b[2];
            load_b_transposed(b, tile, padded(HD), k * 8, n * 8);
            multiply_add(c[n], a, b[0]);
            multiply_add(c[n + 1], a, b[1]);
        }
    }
}

template <int N>
__device__ __forceinline__ void clear(float (&c)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
}

// A step of the softmax as it goes: scores (16 x 8 N, scaled to units of log 2, -INFINITY where masked) become weights relative to each
// row's largest score so far, and what was summed before is brought to it. Every row has seen a finite score by the end of its first step.
template <int HD, int N>
__device__ __forceinline__ void weigh(float (&scores)[N][4], float (&maximum)[2], float (&sum)[2], float (&result)[HD / 8][4]) {
    float highest[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) highest[i / 2] = scores[n][i] > highest[i / 2] ? scores[n][i] : highest[i / 2];
    }
    for (int i = 0; i < 2; i++) {
        highest[i] = quad_max(highest[i]);
        float fade = exp2_fast(maximum[i] - highest[i]);
        maximum[i] = highest[i];
        sum[i] *= fade;
#pragma unroll
        for (int n = 0; n < HD / 8; n++) result[n][2 * i] *= fade, result[n][2 * i + 1] *= fade;
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            scores[n][i] = exp2_fast(scores[n][i] - maximum[i / 2]);
            sum[i / 2] += scores[n][i];
        }
    }
}
