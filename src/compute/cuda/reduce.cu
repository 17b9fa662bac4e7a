// Sums over rows in two steps, and what adds arrays to each other.
//
// A sum over rows is cut into chunks of rows; each chunk is summed in order, then the chunks are, in order. How many rows a
// chunk has may depend on the number of rows alone: then the same input gives the same bytes on any GPU.
#include "common.cuh"

// Column sums of `rows` rows a chunk: x REAL [T, n], partial f32 [chunks, n]; for the gradient of a bias (model/backward.rs).
// n: a multiple of 8.
// Grid (ceil(n / 8 / block), ceil(T / rows)); block: any.
extern "C" __global__ void column_sums_partial(const real* x, float* partial, int t, int n, int rows) {
    int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (column >= n) return;
    int first = blockIdx.y * rows, end = min(first + rows, t);
    float sum[8] = {0.0f};
    for (int row = first; row < end; row++) {
        float v[8];
        load8(x + (size_t)row * n + column, v);
        for (int i = 0; i < 8; i++) sum[i] += v[i];
    }
    store8(partial + (size_t)blockIdx.y * n + column, sum);
}

// out[c] += sum over chunks of partial[chunk][c]: partial f32 [chunks, n], out f32 [n]. The second step of every sum over rows. A
// warp's lanes are 32 columns, and the block's warps take neighbouring chunks, as many each, whose sums are added in their order:
// a long way down one column would wait for memory at every step.
// Grid ceil(n / 32); block: whole warps, as many for the same number of chunks.
extern "C" __global__ void __launch_bounds__(1024) add_column_sums(const float* partial, float* out, int chunks, int n) {
    __shared__ float sums[32][33];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    int column = blockIdx.x * 32 + lane, each = (chunks + warps - 1) / warps;
    int first = warp * each, end = min(first + each, chunks);
    float sum = 0.0f;
    if (column < n) {
        const float* from = partial + column;
        // Eight are asked for before the first is added.
        const int AHEAD = 8;
        int chunk = first;
        for (; chunk + AHEAD <= end; chunk += AHEAD) {
            float v[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) v[k] = from[(size_t)(chunk + k) * n];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) sum += v[k];
        }
        for (; chunk < end; chunk++) sum += from[(size_t)chunk * n];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= n) return;
    for (int w = 1; w < warps; w++) sum += sums[w][lane];
    out[column] += sum;
}

// y[t] += bias in every row: y REAL [T, n], bias f32 [n]; the sum is rounded once. n: a multiple of 8. Grid, block: any.
extern "C" __global__ void add_bias(real* y, const float* bias, int t, int n) {
    size_t count = (size_t)t * n / 8, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        float v[8], b[8];
        load8(y + i * 8, v);
        load8(bias + i * 8 % n, b);
        for (int k = 0; k < 8; k++) v[k] += b[k];
        store8(y + i * 8, v);
    }
}

// x[t, first..first + n] = values in every row (cpu/backend.rs `fill_columns`): values f32 [n], x REAL [T, width]; each value is rounded
// once. n, first, width: multiples of 8. Grid, block: any.
extern "C" __global__ void fill_columns(const float* values, real* x, int t, int n, int width, int first) {
    size_t count = (size_t)t * n / 8, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        size_t row = i / (n / 8), column = i % (n / 8) * 8;
        float v[8];
        load8(values + column, v);
        store8(x + row * width + first + column, v);
    }
}

// sum = a + branch: the residual addition (model/decoder.rs `add`). a, sum f32 [n] (may be one), branch REAL [n]. n: a multiple
// of 8. Grid, block: any.
extern "C" __global__ void add(const float* a, const real* branch, float* sum, unsigned long long n) {
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n / 8; i += step) {
        float v[8], b[8];
        load8(a + i * 8, v);
        load8(branch + i * 8, b);
        for (int k = 0; k < 8; k++) v[k] += b[k];
        store8(sum + i * 8, v);
    }
}

// y += scale x (cpu/simd.rs `axpy`): x, y f32 [n]. Grid, block: any.
extern "C" __global__ void scaled_add(float scale, const float* x, float* y, unsigned long long n) {
    size_t step = (size_t)gridDim.x * blockDim.x, thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x, whole = n / 8 * 8;
    for (size_t i = thread * 8; i < whole; i += step * 8) {
        float a[8], b[8];
        load8(x + i, a);
        load8(y + i, b);
        for (int k = 0; k < 8; k++) b[k] = fmaf(scale, a[k], b[k]);
        store8(y + i, b);
    }
    for (size_t i = whole + thread; i < n; i += step) y[i] = fmaf(scale, x[i], y[i]);
}

// x *= scale, in place: x REAL [n], what lies between the factors of an adapter (cpu/low_rank.rs). Grid, block: any.
extern "C" __global__ void scale(float factor, real* x, unsigned long long n) {
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) put(x + i, to_float(x[i]) * factor);
}

// out = x rounded to REAL: x f32 [n], out REAL [n]; a weight's copy for the products, a gradient that enters them. Grid, block:
// any.
extern "C" __global__ void round_to_real(const float* x, real* out, unsigned long long n) {
    size_t step = (size_t)gridDim.x * blockDim.x, thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x, whole = n / 8 * 8;
    for (size_t i = thread * 8; i < whole; i += step * 8) {
        float v[8];
        load8(x + i, v);
        store8(out + i, v);
    }
    for (size_t i = whole + thread; i < n; i += step) put(out + i, x[i]);
}

// out = x widened to f32: x REAL [n], out f32 [n]; a module's gradient that becomes the stream's. Grid, block: any.
extern "C" __global__ void widen_to_f32(const real* x, float* out, unsigned long long n) {
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) out[i] = to_float(x[i]);
}
