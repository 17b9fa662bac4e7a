// The states of each token from what they are the sum of, and inner products between them, for norms and cosines (cpu/gram.rs), in
// f64.
#include "common.cuh"

// A warp takes a square of so many states by so many.
static const int BAND = 4;

// cpu/inspect.rs `add_branches`: states f32 [R, L + 1, d], L `layers`: H^1..H^L, added up in the decoder's order from H^0, and the
// final state. embedding f32 [R, d] is H^0; branches REAL [R, 2 L + 2, d]: A^1, F^1, A^2 .. F^L, H^0 rounded, the final state.
// d: a multiple of 8. Grid R; block: any.
extern "C" __global__ void __launch_bounds__(1024)
    add_branches(const float* embedding, const real* branches, int layers, int d, float* states) {
    embedding += (size_t)blockIdx.x * d;
    branches += (size_t)blockIdx.x * (2 * layers + 2) * d;
    states += (size_t)blockIdx.x * (layers + 1) * d;
    for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float sum[8], v[8];
        load8(embedding + c, sum);
        for (int place = 0; place < 2 * layers; place++) {
            load8(branches + (size_t)place * d + c, v);
            for (int i = 0; i < 8; i++) sum[i] = __fadd_rn(sum[i], v[i]);
            if (place % 2) store8(states + (size_t)(place / 2) * d + c, sum);
        }
        load8(branches + (size_t)(2 * layers + 1) * d + c, v);
        store8(states + (size_t)layers * d + c, v);
    }
}

// cpu/gram.rs `gram`: products x_i . x_j, j <= i, of the first n states of each token, in the order (0, 0), (1, 0), (1, 1), (2, 0)
// and so on. states f32 [R, S, d], out f64 [R, n (n + 1) / 2]. d: a multiple of 8.
// Grid R; block: whole warps, 256 threads at most.
extern "C" __global__ void __launch_bounds__(256) gram(const float* states, int s, int d, int n, double* out) {
    const float* x = states + (size_t)blockIdx.x * s * d;
    out += (size_t)blockIdx.x * ((size_t)n * (n + 1) / 2);
    int lane = threadIdx.x % 32, bands = (n + BAND - 1) / BAND, squares = bands * (bands + 1) / 2;
    for (int square = threadIdx.x / 32; square < squares; square += blockDim.x / 32) {
        int upper = 0;
        while ((upper + 1) * (upper + 2) / 2 <= square) upper++;
        int i = upper * BAND, j = (square - upper * (upper + 1) / 2) * BAND;
        // A state past the last is the last once more, and its products are left out.
        const float *a[BAND], *b[BAND];
        for (int k = 0; k < BAND; k++) a[k] = x + (size_t)min(i + k, n - 1) * d, b[k] = x + (size_t)min(j + k, n - 1) * d;
        double sum[BAND][BAND] = {{0.0}};
        for (int c = lane * 4; c < d; c += 128) {
            float4 u[BAND], v[BAND];
            for (int k = 0; k < BAND; k++) u[k] = *(const float4*)(a[k] + c), v[k] = *(const float4*)(b[k] + c);
            for (int k = 0; k < BAND; k++) {
                for (int l = 0; l < BAND; l++) {
                    double products = sum[k][l];
                    products = fma((double)u[k].x, (double)v[l].x, products);
                    products = fma((double)u[k].y, (double)v[l].y, products);
                    products = fma((double)u[k].z, (double)v[l].z, products);
                    sum[k][l] = fma((double)u[k].w, (double)v[l].w, products);
                }
            }
        }
        for (int k = 0; k < BAND; k++) {
            for (int l = 0; l < BAND; l++) {
                double product = warp_sum(sum[k][l]);
                int row = i + k, column = j + l;
                if (lane == k * BAND + l && row < n && column <= row) out[(size_t)row * (row + 1) / 2 + column] = product;
            }
        }
    }
}

// cpu/gram.rs `row_cosines`: cos(a, b) of every row: what a module writes against the stream that it is added to. a REAL, b f32
// [T, d], rows u32 [R]: which of them, or null for all T; out f64 [R]. d: a multiple of 8.
// Grid R; block: whole warps.
extern "C" __global__ void __launch_bounds__(1024)
    row_cosines(const real* a, const float* b, const unsigned* rows, double* out, int d) {
    size_t at = (size_t)(rows ? rows[blockIdx.x] : blockIdx.x) * d;
    double ab = 0.0, aa = 0.0, bb = 0.0;
    for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8], w[8];
        load8(a + at + c, v);
        load8(b + at + c, w);
        for (int i = 0; i < 8; i++) {
            double x = v[i], y = w[i];
            ab = fma(x, y, ab), aa = fma(x, x, aa), bb = fma(y, y, bb);
        }
    }
    ab = block_sum(ab), aa = block_sum(aa), bb = block_sum(bb);
    // torch.nn.functional.cosine_similarity's bound on each norm.
    if (threadIdx.x == 0) out[blockIdx.x] = ab / (fmax(sqrt(aa), 1e-8) * fmax(sqrt(bb), 1e-8));
}
