// A value head: a linear layer to one number a row (cpu/value.rs).
#include "common.cuh"

// cpu/value.rs `values`: out[r] = w . states[rows[r]] + b, summed in f64. states REAL [T, d], rows u32 [R], w f32 [d], b f32 [1],
// out f32 [R]. Grid R; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    values(const real* states, const unsigned* rows, const float* w, const float* b, float* out, int d) {
    const real* x = states + (size_t)rows[blockIdx.x] * d;
    double sum = 0.0;
    for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8], s[8];
        load8(x + c, v);
        load8(w + c, s);
        for (int i = 0; i < 8; i++) sum = fma((double)v[i], (double)s[i], sum);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = (float)(sum + (double)b[0]);
}

// cpu/value.rs `values_backward`, the states' part: d_state[to[u]] += w times the sum of d_values[list[i]], i in
// starts[u]..starts[u + 1]: a row may have been asked for more than once. d_values f32 [R], list u32, starts u32 [U + 1], to
// u32 [U], no two alike, d_state f32 [T, d]. Grid U; block: any.
extern "C" __global__ void values_backward(const float* d_values, const unsigned* list, const unsigned* starts, const unsigned* to,
                                           const float* w, float* d_state, int d) {
    float* out = d_state + (size_t)to[blockIdx.x] * d;
    for (int c = threadIdx.x; c < d; c += blockDim.x) {
        float sum = out[c];
        for (unsigned i = starts[blockIdx.x]; i < starts[blockIdx.x + 1]; i++) sum = fmaf(w[c], d_values[list[i]], sum);
        out[c] = sum;
    }
}

// cpu/value.rs `values_backward`, the head's part: d_w[c] += sum over r of d_values[r] states[rows[r]][c], in f64; d_b[0] +=
// sum of d_values. states REAL [T, d], d_w f32 [d], d_b f32 [1]. Grid d / 8, a block eight columns; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    values_backward_weight(const real* states, const unsigned* rows, const float* d_values, float* d_w, float* d_b, int count, int d) {
    double sum[8] = {0.0}, bias = 0.0;
    for (int r = threadIdx.x; r < count; r += blockDim.x) {
        float v[8];
        load8(states + (size_t)rows[r] * d + blockIdx.x * 8, v);
        for (int i = 0; i < 8; i++) sum[i] = fma((double)v[i], (double)d_values[r], sum[i]);
        bias += (double)d_values[r];
    }
    for (int i = 0; i < 8; i++) sum[i] = block_sum(sum[i]);
    bias = block_sum(bias);
    if (threadIdx.x != 0) return;
    for (int i = 0; i < 8; i++) d_w[blockIdx.x * 8 + i] += (float)sum[i];
    if (blockIdx.x == 0) d_b[0] += (float)bias;
}
