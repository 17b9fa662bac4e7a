// RMS norm of the residual stream, alone or fused with the residual addition before it (cpu/norm.rs).
//
// A block takes a row. The row is read twice; the second time it comes from the first-level cache, which is cheaper than holding
// it in registers, whose number would depend on d. Threads a row: d / 8 rounded up to whole warps, 1024 at most.
#include "common.cuh"

__device__ __forceinline__ float inverse_rms(float squares, int d, float eps) { return 1.0f / sqrtf(squares / (float)d + eps); }

__device__ __forceinline__ float squares8(const float (&v)[8], float sum) {
    for (int i = 0; i < 8; i++) sum = fmaf(v[i], v[i], sum);
    return sum;
}

// y = x inv w, one row.
template <class X, class Y>
__device__ __forceinline__ void scale_row(const X* x, const float* w, float inv, Y* y, int d) {
    for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8], s[8];
        load8(x + c, v);
        load8(w + c, s);
        for (int i = 0; i < 8; i++) v[i] = v[i] * inv * s[i];
        store8(y + c, v);
    }
}

// cpu/norm.rs `rms_norm`. x f32 [T, d], w f32 [d], y REAL [T, d], inv_rms f32 [T]. d: a multiple of 8.
// Grid T; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm(const float* x, const float* w, float eps, real* y, float* inv_rms, int d) {
    size_t row = blockIdx.x;
    x += row * d;
    float sum = 0.0f;
    for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8];
        load8(x + c, v);
        sum = squares8(v, sum);
    }
    float inv = inverse_rms(block_sum(sum), d, eps);
    if (threadIdx.x == 0) inv_rms[row] = inv;
    scale_row(x, w, inv, y + row * d, d);
}

// cpu/norm.rs `add_rms_norm`: sum = x + branch, y = rms_norm(sum). x, sum f32 [T, d] (sum may be x), branch, y REAL [T, d], w f32
// [d], inv_rms f32 [T]. Grid T; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    add_rms_norm(const float* x, const real* branch, const float* w, float eps, float* sum, real* y, float* inv_rms, int d) {
    size_t row = blockIdx.x;
    float squares = 0.0f;
    for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8], b[8];
        load8(x + row * d + c, v);
        load8(branch + row * d + c, b);
        for (int i = 0; i < 8; i++) v[i] += b[i];
        store8(sum + row * d + c, v);
        squares = squares8(v, squares);
    }
    float inv = inverse_rms(block_sum(squares), d, eps);
    if (threadIdx.x == 0) inv_rms[row] = inv;
    // Each thread reads back what it wrote itself.
    scale_row(sum + row * d, w, inv, y + row * d, d);
}

// cpu/norm.rs `rms_norm_again`: y = x inv_rms w. Types as in rms_norm. Grid T; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm_again(const float* x, const float* w, const float* inv_rms, real* y, int d) {
    size_t row = blockIdx.x;
    scale_row(x + row * d, w, inv_rms[row], y + row * d, d);
}

template <class X>
__device__ __forceinline__ void read_row(const X* x, const float* w, float eps, real* out, int d) {
    if (!w) {
        for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
            float v[8];
            load8(x + c, v);
            store8(out + c, v);
        }
        return;
    }
    float squares = 0.0f;
    for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8];
        load8(x + c, v);
        squares = squares8(v, squares);
    }
    scale_row(x, w, inverse_rms(block_sum(squares), d, eps), out, d);
}

// States as an analysis reads them (analysis/flow.rs, its lenses): out[r] = state[rows[r]], under the final norm (the logit lens)
// or as it is (w null), rounded for the product with the unembedding. state f32 [T, d], rows u32 [R], or null for all T; w f32 [d],
// or null; out REAL, a row of d every out_stride elements, so that the states of a token can lie side by side. out may be state
// itself where types, rows and strides are the same. d, out_stride: multiples of 8. Grid R; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    read_states(const float* state, const unsigned* rows, const float* w, float eps, real* out, unsigned long long out_stride,
                int d) {
    size_t row = rows ? rows[blockIdx.x] : blockIdx.x;
    read_row(state + row * d, w, eps, out + blockIdx.x * out_stride, d);
}

// The same for a state in REAL: what a module reads or writes, the final norm's output (without w). Grid R; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    read_states_real(const real* state, const unsigned* rows, const float* w, float eps, real* out, unsigned long long out_stride,
                     int d) {
    size_t row = rows ? rows[blockIdx.x] : blockIdx.x;
    read_row(state + row * d, w, eps, out + blockIdx.x * out_stride, d);
}

// dx = r (w dy) - x r^3 / d sum(w dy x) of `rows` rows a block, the same rounded where that is wanted, and the block's sum of dy x r
// into dw_partial [blocks, d].
template <class Y>
__device__ __forceinline__ void backward_rows(const float* x, const float* w, const float* inv_rms, const Y* dy, float* dx,
                                              real* rounded, float* dw_partial, int t, int d, int rows, int accumulate) {
    DYNAMIC_SHARED(shared);
    float* dw = (float*)shared;  // [d]; every thread has columns of its own, so no barrier guards it
    for (int c = threadIdx.x * 8; c < d && dw_partial; c += blockDim.x * 8) {
        for (int i = 0; i < 8; i++) dw[c + i] = 0.0f;
    }
    int first = blockIdx.x * rows, end = min(first + rows, t);
    for (int row = first; row < end; row++) {
        size_t at = (size_t)row * d;
        float inv = inv_rms[row], sum = 0.0f;
        for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
            float v[8], g[8], s[8];
            load8(x + at + c, v);
            load8(dy + at + c, g);
            load8(w + c, s);
            for (int i = 0; i < 8; i++) sum = fmaf(s[i] * g[i], v[i], sum);
            for (int i = 0; i < 8 && dw_partial; i++) dw[c + i] = fmaf(g[i] * inv, v[i], dw[c + i]);
        }
        float pull = inv * inv * inv * block_sum(sum) / (float)d;
        for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
            float v[8], g[8], s[8], out[8];
            load8(x + at + c, v);
            load8(dy + at + c, g);
            load8(w + c, s);
            if (accumulate) load8(dx + at + c, out);
            for (int i = 0; i < 8; i++) out[i] = (accumulate ? out[i] : 0.0f) + fmaf(inv * s[i], g[i], -(pull * v[i]));
            store8(dx + at + c, out);
            if (rounded) store8(rounded + at + c, out);
        }
    }
    if (!dw_partial) return;
    for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float sum[8];
        for (int i = 0; i < 8; i++) sum[i] = dw[c + i];
        store8(dw_partial + (size_t)blockIdx.x * d + c, sum);
    }
}

// cpu/norm.rs `rms_norm_backward`. x f32 [T, d], w f32 [d], inv_rms f32 [T], dy REAL [T, d], dx f32 [T, d]: added to if
// accumulate, else written. rounded REAL [T, d]: dx as products read it, or null. dw_partial f32 [blocks, d], or null where the norm
// is frozen; add_column_sums adds it up to dw.
// Grid ceil(T / rows), where rows may depend on T alone (that keeps the sums' order); block: whole warps; dynamic shared
// memory: 4 d bytes.
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm_backward(const float* x, const float* w, const float* inv_rms, const real* dy, float* dx, real* rounded,
                      float* dw_partial, int t, int d, int rows, int accumulate) {
    backward_rows(x, w, inv_rms, dy, dx, rounded, dw_partial, t, d, rows, accumulate);
}

// As rms_norm_backward, for a gradient that is f32: that of the final norm's output, gathered from many targets.
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm_backward_f32(const float* x, const float* w, const float* inv_rms, const float* dy, float* dx, real* rounded,
                          float* dw_partial, int t, int d, int rows, int accumulate) {
    backward_rows(x, w, inv_rms, dy, dx, rounded, dw_partial, t, d, rows, accumulate);
}
