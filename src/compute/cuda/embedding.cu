// Rows of a table (cpu/embedding.rs), and rows of states: gathered for the head, and their gradients brought back.
//
// Rows repeat: a token occurs many times, a prompt's last row predicts the first token of every continuation. Sums over them
// follow lists that the host makes from the ids, so that they have one order and need no atomics.
#include "common.cuh"

template <class From, class To>
__device__ __forceinline__ void copy_row(const From* from, To* to, int d) {
    for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8];
        load8(from + c, v);
        store8(to + c, v);
    }
}

// cpu/embedding.rs `embed`: out[t] = table[ids[t]]. table f32 [V, d], ids u32 [T], out f32 [T, d]. Grid T; block: any.
extern "C" __global__ void embed(const float* table, const unsigned* ids, float* out, int d) {
    copy_row(table + (size_t)ids[blockIdx.x] * d, out + (size_t)blockIdx.x * d, d);
}

// policy.rs `gather_rows`, and rounds: out[r] = state[rows[r]]. state f32 [T, d], rows u32 [R], out REAL [R, d]. Grid R; block:
// any.
extern "C" __global__ void gather_rows(const float* state, const unsigned* rows, real* out, int d) {
    copy_row(state + (size_t)rows[blockIdx.x] * d, out + (size_t)blockIdx.x * d, d);
}

// The same for a state in REAL: the final norm's output, a module's branch. Grid R; block: any.
extern "C" __global__ void gather_rows_real(const real* state, const unsigned* rows, real* out, int d) {
    copy_row(state + (size_t)rows[blockIdx.x] * d, out + (size_t)blockIdx.x * d, d);
}

// The same in f32, a row of d every out_stride elements: one of the states of each token that wait side by side for their products
// (gram.cu). state f32 [T, d], out f32; out_stride: a multiple of 8. Grid R; block: any.
extern "C" __global__ void hold_rows(const float* state, const unsigned* rows, float* out, unsigned long long out_stride, int d) {
    copy_row(state + (size_t)rows[blockIdx.x] * d, out + blockIdx.x * out_stride, d);
}

// The same for a state in REAL. Grid R; block: any.
extern "C" __global__ void hold_rows_real(const real* state, const unsigned* rows, float* out, unsigned long long out_stride, int d) {
    copy_row(state + (size_t)rows[blockIdx.x] * d, out + blockIdx.x * out_stride, d);
}

// out[to] (+)= sum over i in starts[list]..starts[list + 1] of values[rows[i]], with `to` list's destination.
template <class From>
__device__ __forceinline__ void sum_rows(const From* values, const unsigned* rows, const unsigned* starts, const unsigned* to,
                                         float* out, int d, bool add) {
    unsigned list = blockIdx.x, begin = starts[list], end = starts[list + 1];
    size_t destination = (size_t)(to ? to[list] : list) * d;
    for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float sum[8] = {0.0f};
        if (add) load8(out + destination + c, sum);
        for (unsigned i = begin; i < end; i++) {
            float v[8];
            load8(values + (size_t)(rows ? rows[i] : i) * d + c, v);
            for (int k = 0; k < 8; k++) sum[k] += v[k];
        }
        store8(out + destination + c, sum);
    }
}

// First half of cpu/embedding.rs `embed_backward`: partial[l] = sum of values[rows[i]], i in starts[l]..starts[l + 1]. values f32
// [T, d], partial f32 [L, d]. The host sorts the rows by token (rows of a token ascending) and cuts each token's list after a
// fixed number of rows, so that a frequent token has many blocks. Grid L; block: any.
extern "C" __global__ void sum_rows_partial(const float* values, const unsigned* rows, const unsigned* starts, float* partial, int d) {
    sum_rows(values, rows, starts, 0, partial, d, false);
}

// Second half: table[to[u]] += sum of partial[i], i in starts[u]..starts[u + 1]. to u32 [U], no two alike. Grid U; block: any.
extern "C" __global__ void add_partial_rows(const float* partial, const unsigned* starts, const unsigned* to, float* table, int d) {
    sum_rows(partial, 0, starts, to, table, d, true);
}

// The head's gradient brought back to its states (policy/gradient.rs): d_state[to[u]] += sum of d_hidden[rows[i]], i in
// starts[u]..starts[u + 1]. d_hidden REAL [R, d], d_state f32 [T, d], to u32 [U], no two alike. Grid U; block: any.
extern "C" __global__ void scatter_rows_add(const real* d_hidden, const unsigned* rows, const unsigned* starts, const unsigned* to,
                                            float* d_state, int d) {
    sum_rows(d_hidden, rows, starts, to, d_state, d, true);
}

// The same for a gradient in f32. Grid U; block: any.
extern "C" __global__ void scatter_rows_add_f32(const float* d_hidden, const unsigned* rows, const unsigned* starts,
                                                const unsigned* to, float* d_state, int d) {
    sum_rows(d_hidden, rows, starts, to, d_state, d, true);
}
