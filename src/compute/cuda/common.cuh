// What every kernel shares: the number formats, vector loads, and reductions in a fixed order.
//
// Compiled by NVRTC alone, without a toolkit's headers, once with -DREAL=float and once with -DREAL=bf16. REAL is the format of
// module activations and their gradients (normed, qkv, qk, attn, gate_up, act, branch, keys and values); the residual stream, its
// gradient, statistics, norm weights, master weights and moments are f32 in both. Do not compile with --use_fast_math: AdamW and
// the sampler are meant to give the CPU's bits, which takes IEEE division, square root and denormals.
//
// Nothing here adds floats atomically: a sum is always taken in the same order, so the same input gives the same bytes.
//
// With BUPO_EMULATED the same source is compiled for the CPU (emulator/emulator.h): what is PTX here is a call there.
#pragma once

// 16 bits of storage; all arithmetic is f32.
struct bf16 {
    unsigned short bits;
};

#ifndef REAL
#error "compile with -DREAL=float or -DREAL=bf16"
#endif
typedef REAL real;

#define BUPO_JOIN_(a, b) a##b
#define BUPO_JOIN(a, b) BUPO_JOIN_(a, b)
#define BUPO_IS_float 0
#define BUPO_IS_bf16 1
#define REAL_IS_BF16 BUPO_JOIN(BUPO_IS_, REAL)

#ifndef INFINITY
#define INFINITY __uint_as_float(0x7f800000u)
#endif

static const unsigned ALL_LANES = 0xffffffffu;
static const float LOG2_E = 1.44269504088896341f;
static const float LN_2 = 0.69314718055994531f;

#ifdef BUPO_EMULATED
#define DYNAMIC_SHARED(name) unsigned char* name = emulator::dynamic_shared()
#else
// __align__(16): cp.async, ldmatrix and float4 need it.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// ---- the cache's pages ----

// Tokens of a page: the columns of two fragments.
static const int PAGE = 16;
// The slot of a token that is not kept; others are page * PAGE + place in the page.
static const unsigned NOWHERE = 0xffffffffu;

// Where a head of a slot begins in a layer's keys or values, pages [KV, PAGE, hd] each.
__device__ __forceinline__ size_t in_pages(unsigned slot, int kv_head, int kv_heads, int hd) {
    return (((size_t)(slot / PAGE) * kv_heads + kv_head) * PAGE + slot % PAGE) * hd;
}

// ---- number formats ----

// Two floats to bf16, round to nearest even; the first in the lower half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
#ifdef BUPO_EMULATED
    return emulator::bf16_bits(low) | (unsigned)emulator::bf16_bits(high) << 16;
#else
    unsigned packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}

__device__ __forceinline__ float low_bf16(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ __forceinline__ void put(float* to, float x) { *to = x; }
__device__ __forceinline__ void put(bf16* to, float x) { to->bits = (unsigned short)pack_bf16(x, 0.0f); }

// Eight neighbours, 16 bytes a load. The address must be a multiple of 16 bytes: rows are multiples of eight elements.
__device__ __forceinline__ void load8(const float* from, float (&v)[8]) {
    float4 a = ((const float4*)from)[0], b = ((const float4*)from)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

__device__ __forceinline__ void load8(const bf16* from, float (&v)[8]) {
    uint4 a = *(const uint4*)from;
    v[0] = low_bf16(a.x), v[1] = high_bf16(a.x), v[2] = low_bf16(a.y), v[3] = high_bf16(a.y);
    v[4] = low_bf16(a.z), v[5] = high_bf16(a.z), v[6] = low_bf16(a.w), v[7] = high_bf16(a.w);
}

__device__ __forceinline__ void store8(float* to, const float (&v)[8]) {
    ((float4*)to)[0] = make_float4(v[0], v[1], v[2], v[3]);
    ((float4*)to)[1] = make_float4(v[4], v[5], v[6], v[7]);
}

__device__ __forceinline__ void store8(bf16* to, const float (&v)[8]) {
    *(uint4*)to = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

// Two neighbours; the address must be a multiple of two elements.
__device__ __forceinline__ float2 load2(const float* from) { return *(const float2*)from; }
__device__ __forceinline__ float2 load2(const bf16* from) {
    unsigned pair = *(const unsigned*)from;
    return make_float2(low_bf16(pair), high_bf16(pair));
}
__device__ __forceinline__ void store2(float* to, float a, float b) { *(float2*)to = make_float2(a, b); }
__device__ __forceinline__ void store2(bf16* to, float a, float b) { *(unsigned*)to = pack_bf16(a, b); }

// Four neighbours; the address must be a multiple of four elements.
__device__ __forceinline__ void store4(float* to, float a, float b, float c, float d) { *(float4*)to = make_float4(a, b, c, d); }
__device__ __forceinline__ void store4(bf16* to, float a, float b, float c, float d) {
    *(uint2*)to = make_uint2(pack_bf16(a, b), pack_bf16(c, d));
}

// ---- arithmetic ----

// e^x to about 2 ulp, saturating at the ends of the normal range: the polynomial of cpu/simd.rs, step for step, so that the
// sampler's weights and the head's sums have the CPU's bits.
__device__ __forceinline__ float exp_cpu(float x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    // Comparisons instead of fminf: a NaN must stay one.
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = fmaf(x, LOG2_E, magic);
    float n = __fadd_rn(shifted, -magic);
    float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, x));
    float p = 1.9875692e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    float e = __fadd_rn(fmaf(p, __fmul_rn(r, r), r), 1.0f);
    float scale = __uint_as_float((__float_as_uint(shifted) << 23) + __float_as_uint(1.0f));
    return __fmul_rn(e, scale);
}

// 2^x by the special function unit, for attention's probabilities: 2 ulp, and 0 for -inf.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef BUPO_EMULATED
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp_cpu(-x)); }

// ---- reductions: butterflies, so that every lane ends with the same bits ----

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

// Like cpu/simd.rs's max it passes over a NaN that is not the first; what is summed afterwards is NaN then, and shows it.
__device__ __forceinline__ float warp_max(float x) {
    for (int offset = 16; offset > 0; offset /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, x, offset);
        x = other > x ? other : x;
    }
    return x;
}

// Sum over a block of whole warps; every thread gets it. All threads of the block must call.
template <class T>
__device__ __forceinline__ T block_sum(T x) {
    __shared__ T parts[32];
    x = warp_sum(x);
    if (blockDim.x <= 32) return x;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();  // the parts of the sum before may still be read
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? parts[lane] : T(0));
}

// Smallest index of a block, as block_sum.
__device__ __forceinline__ unsigned block_min(unsigned x) {
    __shared__ unsigned parts[32];
    for (int offset = 16; offset > 0; offset /= 2) x = min(x, __shfl_xor_sync(ALL_LANES, x, offset));
    if (blockDim.x <= 32) return x;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    x = parts[0];
    for (int w = 1; w < warps; w++) x = min(x, parts[w]);
    return x;
}

// Largest x of a block, as block_sum.
__device__ __forceinline__ float block_max(float x) {
    __shared__ float parts[32];
    x = warp_max(x);
    if (blockDim.x <= 32) return x;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? parts[lane] : parts[0]);
}

// ---- copies that run beside the arithmetic ----

#ifndef BUPO_EMULATED
__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
#endif

// 16 bytes from global to shared memory; zeros if not valid (the address must be readable by type only, it is not read then).
__device__ __forceinline__ void copy16_async(void* to, const void* from, bool valid) {
#ifdef BUPO_EMULATED
    emulator::copy_async(to, from, valid);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
#endif
}

__device__ __forceinline__ void copies_commit() {
#ifdef BUPO_EMULATED
    emulator::copies_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies but those of the last `pending` commits. Others' copies are there after a barrier.
template <int pending>
__device__ __forceinline__ void copies_wait() {
#ifdef BUPO_EMULATED
    emulator::copies_wait(pending);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}
