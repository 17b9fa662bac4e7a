// Policies side by side (cpu/head/divergence.rs): what several states of the same tokens say, and how far their distributions lie
// apart, from tiles of logits that a matrix product has made.
//
// A tile has S rows for every token, the states' logits for the same vocabulary entries. It is cut into segments of columns; a
// block takes a segment of a token, so that the references' rows are in shared memory, relative to their maxima and exponentiated,
// while a warp holds a state's row in registers: every logit is read once, a reference's once more. What a segment adds up to is
// relative to the rows' maxima there; segments, and tiles with what came before, are merged relative to the maxima of all.
//
// With z = logit / temperature, a state's maximum m, a reference's m_q, e = e^(z - m), apart = (z - m) - (z_q - m_q):
// s = sum e, a = sum e (z - m), to = sum e apart, from = - sum e_q apart. Then D(state || reference) = to / s + ln s_q - ln s, and
// D(reference || state) = from / s_q + ln s - ln s_q. The differences are taken before the sums: equal rows are exactly 0 apart.
// A lane sums a segment's elements in f32, few enough; all else is f64.
#include "common.cuh"

// Columns of a segment, in fours of a lane: it has columns 4 lane + 128 i to + 3.
static const int SEGMENT = 1024;
static const int FOURS = SEGMENT / 128;
static const int REFERENCES = 2;

// What a row, or a segment of it, adds up to: 64 bytes. target is the target's z, or 0 if the target lies elsewhere. to and from
// of a reference that was not asked for mean nothing.
struct alignas(16) Sums {
    double s, a, to[REFERENCES], from[REFERENCES];
    float m;
    unsigned top;
    float target;
    unsigned unused;
};

// A reference's segment, the fours as the lanes take them.
struct Reference {
    float4 z[SEGMENT / 4], e[SEGMENT / 4];
};

__device__ __forceinline__ unsigned warp_min(unsigned x) {
    for (int offset = 16; offset > 0; offset /= 2) x = min(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// A lane's part of a segment, divided by the temperature; -inf past its end. WHOLE: all columns are there, and aligned.
template <bool WHOLE>
__device__ __forceinline__ void load_segment(const float* row, int columns, float inv_temperature, float (&z)[FOURS][4]) {
    int lane = threadIdx.x % 32;
    for (int i = 0; i < FOURS; i++) {
        int column = 4 * lane + 128 * i;
        if (WHOLE) {
            float4 v = *(const float4*)(row + column);
            z[i][0] = v.x, z[i][1] = v.y, z[i][2] = v.z, z[i][3] = v.w;
        } else {
            for (int j = 0; j < 4; j++) z[i][j] = column + j < columns ? row[column + j] : -INFINITY;
        }
    }
    for (int i = 0; i < FOURS; i++) {
        for (int j = 0; j < 4; j++) z[i][j] = __fmul_rn(z[i][j], inv_temperature);
    }
}

// The largest of each four. fmaxf passes over a NaN; what is summed afterwards is NaN then.
__device__ __forceinline__ float largest(const float (&z)[FOURS][4], float (&of_four)[FOURS]) {
    float highest = -INFINITY;
    for (int i = 0; i < FOURS; i++) {
        of_four[i] = fmaxf(fmaxf(fmaxf(fmaxf(-INFINITY, z[i][0]), z[i][1]), z[i][2]), z[i][3]);
        highest = fmaxf(highest, of_four[i]);
    }
    return highest;
}

// x = z - m and e = e^x of a lane's element; a column past the end adds nothing to any sum.
template <bool WHOLE>
__device__ __forceinline__ void relative(float z, float m, bool there, float& x, float& e) {
    x = __fadd_rn(z, -m);
    e = exp_cpu(x);
    if (!WHOLE && !there) x = 0.0f, e = 0.0f;
}

// The states of one token on one segment. rows: the first state's, at the segment; target: a column of it, or negative.
// parts: the first state's, a state's segments_of_row behind the one before.
template <int N, bool WHOLE>
__device__ __forceinline__ void fold_segment(const float* rows, size_t stride, int columns, float inv_temperature, int states,
                                             const int (&references)[REFERENCES], int target, Reference* shared, Sums* parts,
                                             int segments_of_row) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float z[FOURS][4], of_four[FOURS];
    for (int k = warp; k < N; k += warps) {
        load_segment<WHOLE>(rows + references[k] * stride, columns, inv_temperature, z);
        float m = warp_max(largest(z, of_four));
        for (int i = 0; i < FOURS; i++) {
            float x[4], e[4];
            for (int j = 0; j < 4; j++) relative<WHOLE>(z[i][j], m, 4 * lane + 128 * i + j < columns, x[j], e[j]);
            shared[k].z[lane + 32 * i] = make_float4(x[0], x[1], x[2], x[3]);
            shared[k].e[lane + 32 * i] = make_float4(e[0], e[1], e[2], e[3]);
        }
    }
    __syncthreads();
    for (int state = warp; state < states; state += warps) {
        const float* row = rows + state * stride;
        load_segment<WHOLE>(row, columns, inv_temperature, z);
        float mine = largest(z, of_four), m = warp_max(mine);
        // The first column that has the maximum: a lane's first four that has it is read again.
        unsigned place = 0xffffffffu;
        if (mine == m) {
            int four = 0;
            for (int i = FOURS - 1; i >= 0; i--) four = of_four[i] == m ? i : four;
            for (int column = 4 * lane + 128 * four + 3, n = 0; n < 4; n++, column--) {
                if (column < columns && __fmul_rn(row[column], inv_temperature) == m) place = column;
            }
        }
        place = warp_min(place);
        if (place == 0xffffffffu) place = 0;  // nothing but NaNs
        float s = 0.0f, a = 0.0f, to[REFERENCES] = {0.0f, 0.0f}, from[REFERENCES] = {0.0f, 0.0f};
        for (int i = 0; i < FOURS; i++) {
            float other_z[REFERENCES][4], other_e[REFERENCES][4];
            for (int k = 0; k < N; k++) {
                float4 x = shared[k].z[lane + 32 * i], e = shared[k].e[lane + 32 * i];
                other_z[k][0] = x.x, other_z[k][1] = x.y, other_z[k][2] = x.z, other_z[k][3] = x.w;
                other_e[k][0] = e.x, other_e[k][1] = e.y, other_e[k][2] = e.z, other_e[k][3] = e.w;
            }
            for (int j = 0; j < 4; j++) {
                float x, e;
                relative<WHOLE>(z[i][j], m, 4 * lane + 128 * i + j < columns, x, e);
                s += e;
                a = fmaf(e, x, a);
                for (int k = 0; k < N; k++) {
                    float apart = __fadd_rn(x, -other_z[k][j]);
                    to[k] = fmaf(e, apart, to[k]);
                    from[k] = fmaf(other_e[k][j], -apart, from[k]);
                }
            }
        }
        Sums sums = {warp_sum((double)s), warp_sum((double)a), {0.0, 0.0}, {0.0, 0.0}, m, place, 0.0f, 0};
        for (int k = 0; k < N; k++) sums.to[k] = warp_sum((double)to[k]), sums.from[k] = warp_sum((double)from[k]);
        if (lane == 0) {
            if (target >= 0) sums.target = __fmul_rn(row[target], inv_temperature);
            parts[(size_t)state * segments_of_row] = sums;
        }
    }
}

// First step of cpu/head/divergence.rs `Head::compare` for a tile: what every row adds up to in every segment of 1024 columns.
// logits f32 [T S, width], the states of a token in rows that follow each other, rows `stride` apart, not divided by the
// temperature yet; the first column is vocabulary entry `first`. references: how many (0 to 2) of reference_a and reference_b are
// asked for; both are places (0 to S - 1) of states in any case, and may be one. targets u32 [T], or null. parts Sums
// [T S, ceil(width / 1024)].
// Grid (T, ceil(width / 1024)); block: whole warps, 256 threads at most; a warp for every state is enough.
extern "C" __global__ void __launch_bounds__(256)
    compare_fold(const float* logits, unsigned long long stride, int width, float inv_temperature, int states, int references,
                 int reference_a, int reference_b, const unsigned* targets, unsigned first, Sums* parts) {
    __shared__ Reference shared[REFERENCES];
    size_t token = blockIdx.x;
    int segments = gridDim.y, from = blockIdx.y * SEGMENT, columns = min(SEGMENT, width - from);
    const float* rows = logits + token * states * stride + from;
    long long beyond = targets ? (long long)targets[token] - first - from : -1;
    int target = beyond >= 0 && beyond < columns ? (int)beyond : -1;
    const int places[REFERENCES] = {reference_a, reference_b};
    Sums* to = parts + token * states * segments + blockIdx.y;
    bool whole = columns == SEGMENT && (size_t)rows % 16 == 0 && stride % 4 == 0;
    // A segment at the edge takes two references always, and the one that nobody asked for is not read: less code.
    if (whole && references == 0)
        fold_segment<0, true>(rows, stride, columns, inv_temperature, states, places, target, shared, to, segments);
    else if (whole && references == 1)
        fold_segment<1, true>(rows, stride, columns, inv_temperature, states, places, target, shared, to, segments);
    else if (whole)
        fold_segment<2, true>(rows, stride, columns, inv_temperature, states, places, target, shared, to, segments);
    else
        fold_segment<2, false>(rows, stride, columns, inv_temperature, states, places, target, shared, to, segments);
}

// cpu/head/branches.rs `add_up` of a tile: where logits f32 [T (2 L + 2), width], rows `stride` apart, had those of F^l they have
// those of H^l = H^(l-1) + A^l + F^l. The rows of a token, L `layers`: A^1, F^1, A^2 .. F^L, H^0, the final state. stride: a
// multiple of 4, and what lies between width and the next multiple of 4 means nothing, before and after.
// Grid (T, ceil(width / 4 / block)); block: any.
extern "C" __global__ void __launch_bounds__(1024) add_up_logits(float* logits, unsigned long long stride, int width, int layers) {
    int column = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (column >= width) return;
    float* z = logits + (size_t)blockIdx.x * (2 * layers + 2) * stride + column;
    float4 sum = *(const float4*)(z + 2 * layers * stride);
    auto add = [&](float4 attn, float4 ffn) {
        sum.x = __fadd_rn(__fadd_rn(sum.x, attn.x), ffn.x), sum.y = __fadd_rn(__fadd_rn(sum.y, attn.y), ffn.y);
        sum.z = __fadd_rn(__fadd_rn(sum.z, attn.z), ffn.z), sum.w = __fadd_rn(__fadd_rn(sum.w, attn.w), ffn.w);
        *(float4*)(z + stride) = sum;
        z += 2 * stride;
    };
    // Four layers are asked for before the first is written: the compiler cannot know that a later one's logits are not that one's sums.
    const int AHEAD = 4;
    int layer = 0;
    for (; layer + AHEAD <= layers; layer += AHEAD) {
        float4 attn[AHEAD], ffn[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) attn[k] = *(const float4*)(z + 2 * k * stride), ffn[k] = *(const float4*)(z + (2 * k + 1) * stride);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) add(attn[k], ffn[k]);
    }
    for (; layer < layers; layer++) add(*(const float4*)z, *(const float4*)(z + stride));
}

// The parts of one row: its sums before, unless it begins, then those of a tile's segments, which a warp's lanes share.
struct Parts {
    const Sums* before;
    const Sums* segments;
    __device__ __forceinline__ const Sums& operator[](int i) const {
        return before && i == 0 ? *before : segments[before ? i - 1 : i];
    }
};

__device__ __forceinline__ float highest_of(const Parts& parts, int count) {
    float m = -INFINITY;
    for (int i = threadIdx.x % 32; i < count; i += 32) m = fmaxf(m, parts[i].m);
    return warp_max(m);
}

// Second step, `merged` there: a tile's parts into the rows' sums, in order of the tiles. parts as compare_fold wrote them,
// `segments` a row, whose tops count from vocabulary entry `first`; sums Sums [T S], which with begin are those of this tile.
// Grid T; block: whole warps, 512 threads at most; dynamic shared memory: 64 S bytes.
extern "C" __global__ void __launch_bounds__(512)
    compare_merge(const Sums* parts, int segments, int states, int references, int reference_a, int reference_b, unsigned first,
                  Sums* sums, int begin) {
    DYNAMIC_SHARED(shared);
    Sums* merged = (Sums*)shared;  // [S]: references are read by every state before they are replaced
    int lane = threadIdx.x % 32, warps = blockDim.x / 32, count = segments + (begin ? 0 : 1);
    size_t token = (size_t)blockIdx.x * states;
    auto of_row = [&](size_t row) { return Parts{begin ? nullptr : sums + row, parts + row * segments}; };
    const int places[REFERENCES] = {reference_a, reference_b};
    for (int state = threadIdx.x / 32; state < states; state += warps) {
        Parts mine = of_row(token + state), others[REFERENCES];
        float m = highest_of(mine, count), m_other[REFERENCES];
        for (int k = 0; k < REFERENCES; k++) {
            if (k >= references) break;
            others[k] = of_row(token + places[k]);
            m_other[k] = highest_of(others[k], count);
        }
        double s = 0.0, a = 0.0, to[REFERENCES] = {0.0, 0.0}, from[REFERENCES] = {0.0, 0.0};
        float target = 0.0f;
        unsigned top = 0xffffffffu;
        for (int i = lane; i < count; i += 32) {
            const Sums& t = mine[i];
            double shift = (double)t.m - m, factor = exp(shift);
            s = fma(t.s, factor, s);
            a = fma(fma(t.s, shift, t.a), factor, a);
            target += t.target;
            // Parts follow the vocabulary, so of equal maxima the lower id is the first; the sums' own counts from 0 already.
            if (t.m == m) {
                bool before = !begin && i == 0;
                top = min(top, before ? t.top : first + (unsigned)(i - !begin) * SEGMENT + t.top);
            }
            for (int k = 0; k < REFERENCES; k++) {
                if (k >= references) break;
                const Sums& q = others[k][i];
                double shift_other = (double)q.m - m_other[k];
                // Relative to the rows' maxima every difference of this part is larger by as much as the shifts differ.
                to[k] = fma(fma(t.s, shift - shift_other, t.to[k]), factor, to[k]);
                from[k] = fma(fma(q.s, shift_other - shift, t.from[k]), exp(shift_other), from[k]);
            }
        }
        Sums all = {warp_sum(s), warp_sum(a), {0.0, 0.0}, {0.0, 0.0}, m, warp_min(top), warp_sum(target), 0};
        for (int k = 0; k < REFERENCES; k++) all.to[k] = warp_sum(to[k]), all.from[k] = warp_sum(from[k]);
        if (lane == 0) merged[state] = all;
    }
    __syncthreads();
    for (int state = threadIdx.x; state < states; state += blockDim.x) sums[token + state] = merged[state];
}

// The end of `merged`: sums Sums [T S] to entropy f32 (nats), log_prob f32 (or null), top u32 [T S], and for each reference, in
// order, to = D(state || reference) and from = D(reference || state), f32 [references, T S], in nats, never negative.
// Grid ceil(T S / block); block: any.
extern "C" __global__ void compare_finish(const Sums* sums, int rows, int states, int references, int reference_a, int reference_b,
                                          float* entropy, float* log_prob, unsigned* top, float* to, float* from) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const Sums& r = sums[row];
    double log_s = log(r.s);
    entropy[row] = (float)(log_s - r.a / r.s);
    // Relative to the maximum: a likely token's log-prob keeps its digits.
    if (log_prob) log_prob[row] = (float)((double)(r.target - r.m) - log_s);
    top[row] = r.top;
    const int places[REFERENCES] = {reference_a, reference_b};
    for (int k = 0; k < REFERENCES; k++) {
        if (k >= references) break;
        double s_other = sums[row - row % states + places[k]].s, log_other = log(s_other);
        double forth = r.to[k] / r.s + (log_other - log_s), back = r.from[k] / s_other + (log_s - log_other);
        // Rounding may leave a hair below 0; not fmax, which would hide a NaN.
        to[(size_t)k * rows + row] = forth < 0.0 ? 0.0f : (float)forth;
        from[(size_t)k * rows + row] = back < 0.0 ? 0.0f : (float)back;
    }
}
