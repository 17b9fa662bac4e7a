// Warp products on fragments: 16 x 8 += (16 x 16) (16 x 8), in REAL, with sums in f32.
//
// In bf16 they are the tensor cores' mma.sync.m16n8k16, fed by ldmatrix. In f32 the same fragments hold floats and the lanes
// show each other what they need: slow, but it is the same kernel around it, so that what a test in f32 proves (tiles, masks,
// prefixes, groups) holds for bf16 too.
//
// Where a fragment's elements are, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16"):
//   A  elements 0, 1: row g, k 2t, 2t+1;  2, 3: row g+8, same k;  4, 5: row g, k 2t+8, 2t+9;  6, 7: row g+8, k 2t+8, 2t+9
//   B  elements 0, 1: k 2t, 2t+1, column g;  2, 3: k 2t+8, 2t+9, column g
//   C  elements 0, 1: row g, columns 2t, 2t+1;  2, 3: row g+8, same columns
// So two neighbouring C tiles are an A fragment as they lie: probabilities need no way through shared memory.
//
// Tiles lie in shared memory with a stride of `width + 16 bytes`: rows then begin 4 banks apart, so that eight rows of 16 bytes
// (an ldmatrix) meet every bank once, for any width that is a multiple of 16.
#pragma once
#include "common.cuh"

__device__ __forceinline__ constexpr int padded(int width) { return width + 16 / (int)sizeof(real); }

#if REAL_IS_BF16

struct FragmentA {
    unsigned r[4];
};
struct FragmentB {
    unsigned r[2];
};

__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const bf16* row) {
#ifdef BUPO_EMULATED
    emulator::load_matrices(r, row, false, __LINE__);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], const bf16* row) {
#ifdef BUPO_EMULATED
    emulator::load_matrices(r, row, true, __LINE__);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// A[m][k] = tile[row + m][column + k].
__device__ __forceinline__ FragmentA load_a(const bf16* tile, int stride, int row, int column) {
    int lane = threadIdx.x % 32;
    FragmentA a;
    load_matrices(a.r, tile + (row + lane % 16) * stride + column + lane / 16 * 8);
    return a;
}

// Two fragments side by side: B[k][n] = tile[row + n][column + k], n in 0..8 and 8..16.
__device__ __forceinline__ void load_b(FragmentB (&b)[2], const bf16* tile, int stride, int row, int column) {
    int lane = threadIdx.x % 32;
    unsigned r[4];
    load_matrices(r, tile + (row + lane % 8 + lane / 16 * 8) * stride + column + lane / 8 % 2 * 8);
    b[0].r[0] = r[0], b[0].r[1] = r[1], b[1].r[0] = r[2], b[1].r[1] = r[3];
}

// Two fragments side by side: B[k][n] = tile[row + k][column + n], n in 0..8 and 8..16.
__device__ __forceinline__ void load_b_transposed(FragmentB (&b)[2], const bf16* tile, int stride, int row, int column) {
    int lane = threadIdx.x % 32;
    unsigned r[4];
    load_matrices_transposed(r, tile + (row + lane % 16) * stride + column + lane / 16 * 8);
    b[0].r[0] = r[0], b[0].r[1] = r[1], b[1].r[0] = r[2], b[1].r[1] = r[3];
}

// Two C tiles, columns 0..8 and 8..16, rounded, as the A of a product over those columns.
__device__ __forceinline__ FragmentA as_a(const float (&left)[4], const float (&right)[4]) {
    return {{pack_bf16(left[0], left[1]), pack_bf16(left[2], left[3]), pack_bf16(right[0], right[1]), pack_bf16(right[2], right[3])}};
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const FragmentA& a, const FragmentB& b) {
#ifdef BUPO_EMULATED
    emulator::mma_bf16(c, a.r, b.r, __LINE__);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
#endif
}

#else

struct FragmentA {
    float v[8];
};
struct FragmentB {
    float v[4];
};

__device__ __forceinline__ FragmentA load_a(const float* tile, int stride, int row, int column) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    FragmentA a;
    for (int i = 0; i < 8; i++) a.v[i] = tile[(row + g + i / 2 % 2 * 8) * stride + column + 2 * t + i % 2 + i / 4 * 8];
    return a;
}

__device__ __forceinline__ void load_b(FragmentB (&b)[2], const float* tile, int stride, int row, int column) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int j = 0; j < 2; j++) {
        for (int i = 0; i < 4; i++) b[j].v[i] = tile[(row + g + 8 * j) * stride + column + 2 * t + i % 2 + i / 2 * 8];
    }
}

__device__ __forceinline__ void load_b_transposed(FragmentB (&b)[2], const float* tile, int stride, int row, int column) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int j = 0; j < 2; j++) {
        for (int i = 0; i < 4; i++) b[j].v[i] = tile[(row + 2 * t + i % 2 + i / 2 * 8) * stride + column + g + 8 * j];
    }
}

__device__ __forceinline__ FragmentA as_a(const float (&left)[4], const float (&right)[4]) {
    return {{left[0], left[1], left[2], left[3], right[0], right[1], right[2], right[3]}};
}

// A call, not inlined: a product is 64 shuffles, and kernels with hundreds of them take the compiler minutes.
#ifdef BUPO_EMULATED
__attribute__((noinline))
#else
__noinline__
#endif
static __device__ float4 multiply_add_shuffled(float4 c, float4 a_left, float4 a_right, float4 b) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const float as[8] = {a_left.x, a_left.y, a_left.z, a_left.w, a_right.x, a_right.y, a_right.z, a_right.w};
    const float bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int k = 0; k < 16; k++) {
        int from = k % 8 / 2;
        float low = __shfl_sync(ALL_LANES, as[k % 2 + k / 8 * 4], 4 * g + from);
        float high = __shfl_sync(ALL_LANES, as[k % 2 + k / 8 * 4 + 2], 4 * g + from);
        float left = __shfl_sync(ALL_LANES, bs[k % 2 + k / 8 * 2], 4 * (2 * t) + from);
        float right = __shfl_sync(ALL_LANES, bs[k % 2 + k / 8 * 2], 4 * (2 * t + 1) + from);
        c.x = fmaf(low, left, c.x);
        c.y = fmaf(low, right, c.y);
        c.z = fmaf(high, left, c.z);
        c.w = fmaf(high, right, c.w);
    }
    return c;
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const FragmentA& a, const FragmentB& b) {
    float4 sum = multiply_add_shuffled(make_float4(c[0], c[1], c[2], c[3]), make_float4(a.v[0], a.v[1], a.v[2], a.v[3]),
                                       make_float4(a.v[4], a.v[5], a.v[6], a.v[7]), make_float4(b.v[0], b.v[1], b.v[2], b.v[3]));
    c[0] = sum.x, c[1] = sum.y, c[2] = sum.z, c[3] = sum.w;
}

#endif

// Sum, and largest, over the four lanes that share a fragment's row.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
    float other = __shfl_xor_sync(ALL_LANES, x, 1);
    x = other > x ? other : x;
    other = __shfl_xor_sync(ALL_LANES, x, 2);
    return other > x ? other : x;
}
