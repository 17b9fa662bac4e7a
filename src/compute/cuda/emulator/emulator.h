// CUDA's words for a C++ compiler: the kernels' own source, run on the CPU, to check its numbers without a GPU.
//
// Every thread of a block is a fiber on one OS thread. A fiber runs until it waits at a barrier or a warp collective, and the
// scheduler goes round: with all warps in step, or with one ahead of the others as far as barriers let it, so that a kernel
// that lacks a barrier gives different bytes. What it refuses, with a message instead of a hang: a barrier that some threads do
// not reach or reach elsewhere, a collective that not all lanes of a warp reach, a block that is not made of whole warps, a
// write past the dynamic shared memory.
// Dynamic shared memory begins as NaN in every block, and asynchronous copies happen as late as they may or as early, so that reading
// too early or too late shows.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

// The libraries for f32 and for bf16 live in one process. Of a visible inline function's statics, which shared memory is here,
// the loader would keep one copy for both.
#pragma GCC visibility push(hidden)

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
// Blocks run one after the other, so one copy is a block's own.
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {
// Bytes that a lane gives to a collective at most.
constexpr int SLOT = 64;
typedef unsigned char Slots[32][SLOT];

const dim3& thread_index();
extern dim3 block_index, block_size, grid_size;
unsigned char* dynamic_shared();
void barrier(const char* file, int line);
// Waits until all lanes of the warp are here; returns what they brought, until this lane's next collective but one.
const Slots& collect(const void* mine, int bytes, const char* file, int line);
void copy_async(void* to, const void* from, bool valid);
void copies_commit();
void copies_wait(int pending);

template <class T>
inline T lane_value(T mine, unsigned mask, int lane, const char* file, int line) {
    (void)mask;  // always all lanes here
    const Slots& slots = collect(&mine, sizeof(T), file, line);
    T out;
    memcpy(&out, slots[lane & 31], sizeof(T));
    return out;
}

inline unsigned ballot(bool mine, const char* file, int line) {
    unsigned char yes = mine;
    const Slots& slots = collect(&yes, 1, file, line);
    unsigned bits = 0;
    for (int i = 0; i < 32; i++) bits |= (unsigned)slots[i][0] << i;
    return bits;
}

inline int lane() { return thread_index().x % 32; }

// Round to nearest even; a NaN becomes the one that the hardware gives.
inline unsigned short bf16_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return 0x7fff;
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float bf16_value(unsigned short bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32, and ldmatrix.x4 (PTX ISA, "Matrix fragments").
void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line);
void load_matrices(unsigned (&to)[4], const void* row, bool transposed, int line);
}  // namespace emulator

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
#define __syncthreads() emulator::barrier(__FILE__, __LINE__)
#define __syncwarp() emulator::collect("", 0, __FILE__, __LINE__)
#define __ballot_sync(mask, yes) emulator::ballot(yes, __FILE__, __LINE__)
#define __popc(bits) __builtin_popcount(bits)
#define __shfl_sync(mask, x, from) emulator::lane_value(x, mask, from, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, x, bits) emulator::lane_value(x, mask, emulator::lane() ^ (bits), __FILE__, __LINE__)

inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
// The emulator is compiled with -ffp-contract=off, so plain operators round once each.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
template <class T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
    return a < b ? b : a;
}
