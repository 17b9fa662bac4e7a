// AdamW on flat arrays, and the gradient norm that clips it (cpu/adamw.rs).
#include "common.cuh"

// cpu/adamw.rs `AdamwStep`, worked out: step_size = lr / (1 - beta1^step), inv_sqrt2 = 1 / sqrt(1 - beta2^step), both taken in
// f64; decay = 1 - lr weight_decay.
struct AdamwScalars {
    float step_size, inv_sqrt2, decay, beta1, beta2, eps, grad_scale;
};

// Rounded as written, without the compiler's own fusing: the CPU's bits.
__device__ __forceinline__ float adamw_element(float p, float g, float* m, float* v, const AdamwScalars& s) {
    float grad = __fmul_rn(g, s.grad_scale);
    *m = fmaf(s.beta1, *m, __fmul_rn(1.0f - s.beta1, grad));
    *v = fmaf(s.beta2, *v, __fmul_rn(__fmul_rn(1.0f - s.beta2, grad), grad));
    float denominator = fmaf(sqrtf(*v), s.inv_sqrt2, s.eps);
    return fmaf(p, s.decay, -(__fmul_rn(s.step_size, *m) / denominator));
}

// cpu/adamw.rs `adamw`. params, m, v f32 [n], in place; grads f32 [n]; copy bf16 or f32 (REAL) [n], what the products read, or
// null. Scalars as AdamwScalars. All arrays begin at multiples of 16 bytes. Grid, block: any.
extern "C" __global__ void adamw(float* params, const float* grads, float* m, float* v, real* copy, unsigned long long n,
                                 float step_size, float inv_sqrt2, float decay, float beta1, float beta2, float eps,
                                 float grad_scale) {
    AdamwScalars s = {step_size, inv_sqrt2, decay, beta1, beta2, eps, grad_scale};
    size_t step = (size_t)gridDim.x * blockDim.x, thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x, whole = n / 8 * 8;
    for (size_t i = thread * 8; i < whole; i += step * 8) {
        float p[8], g[8], first[8], second[8];
        load8(params + i, p);
        load8(grads + i, g);
        load8(m + i, first);
        load8(v + i, second);
        for (int k = 0; k < 8; k++) p[k] = adamw_element(p[k], g[k], &first[k], &second[k], s);
        store8(params + i, p);
        store8(m + i, first);
        store8(v + i, second);
        if (copy) store8(copy + i, p);
    }
    for (size_t i = whole + thread; i < n; i += step) {
        params[i] = adamw_element(params[i], grads[i], &m[i], &v[i], s);
        if (copy) put(copy + i, params[i]);
    }
}

// First half of cpu/adamw.rs `sum_of_squares`: each block's sum of g^2, f64. g f32 [n], partial f64 [blocks].
// Grid: a function of n alone; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024) sum_of_squares(const float* g, unsigned long long n, double* partial) {
    size_t step = (size_t)gridDim.x * blockDim.x, thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x, whole = n / 8 * 8;
    double sum = 0.0;
    for (size_t i = thread * 8; i < whole; i += step * 8) {
        float v[8];
        load8(g + i, v);
        for (int k = 0; k < 8; k++) sum = fma((double)v[k], (double)v[k], sum);
    }
    for (size_t i = whole + thread; i < n; i += step) sum = fma((double)g[i], (double)g[i], sum);
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Second half: out[0] (+)= the partial sums [n], added up in f64; added to out if add, as the runs of a gradient are. Grid 1;
// block: whole warps.
extern "C" __global__ void __launch_bounds__(1024) sum_f64(const double* partial, int n, double* out, int add) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[0] = add ? out[0] + sum : sum;
}
