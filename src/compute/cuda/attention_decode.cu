// Attention of one new token a sequence against cached keys and values (cpu/attention_decode.rs), which are read once for all
// heads that share them.
//
// The cache of a layer is pages of 16 tokens, keys and values each REAL [pages, KV, 16, hd]. A sequence has a list of pages:
// those of its prompt, which others may share (the last one may be part full), then its own. A long sequence is split among
// blocks by a fixed number of pages, so that the result depends on the sequence alone and not on who else is decoded; the parts
// are merged in order.
#include "attention.cuh"

static const int DECODE_WARPS = 4;
// Query heads a warp product holds; a larger group takes several blocks.
static const int HEADS = 16;

// Tokens of the shared prompt and of its own, the newest included, and where its list begins in `pages`.
struct Sequence {
    unsigned prompt, own, first_page;
};

__device__ __forceinline__ unsigned pages_of(unsigned tokens) { return (tokens + PAGE - 1) / PAGE; }

// Writes keys and values of new tokens to their places (cpu/attention_decode.rs `write_key_value`). qk REAL [T, (H + KV) hd],
// qkv REAL [T, (H + 2 KV) hd]; slots u32 [T], NOWHERE for rows that are not kept. Grid T;
// block: any.
extern "C" __global__ void kv_write(const real* qk, const real* qkv, const unsigned* slots, real* keys, real* values, int heads,
                                    int kv_heads, int hd) {
    size_t row = blockIdx.x;
    unsigned slot = slots[row];
    if (slot == NOWHERE) return;
    const real* key = qk + (row * (heads + kv_heads) + heads) * hd;
    const real* value = qkv + (row * (heads + 2 * kv_heads) + heads + kv_heads) * hd;
    for (int i = threadIdx.x * CHUNK; i < kv_heads * hd; i += blockDim.x * CHUNK) {
        size_t to = in_pages(slot, i / hd, kv_heads, hd) + i % hd;
        *(uint4*)(keys + to) = *(const uint4*)(key + i);
        *(uint4*)(values + to) = *(const uint4*)(value + i);
    }
}

template <int HD>
__device__ __forceinline__ void decode(const real* queries, int query_stride, const real* keys, const real* values,
                                       const Sequence* sequences, const unsigned* pages, float* part_out, float* part_sums,
                                       int heads, int kv_heads, int pages_per_split) {
    DYNAMIC_SHARED(shared);
    const int width = padded(HD), chunks = HD / CHUNK, page_size = PAGE * padded(HD);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    real* query = (real*)shared;                                                  // [HEADS]
    real* cached = query + HEADS * width + warp * 4 * page_size;                  // [2] pages of keys, [2] of values; a warp's own
    int group = heads / kv_heads, parts = (group + HEADS - 1) / HEADS, kv_head = blockIdx.y / parts;
    int first_head = kv_head * group + blockIdx.y % parts * HEADS, live = min(HEADS, (kv_head + 1) * group - first_head);
    Sequence s = sequences[blockIdx.z];
    unsigned prompt_pages = pages_of(s.prompt), count = prompt_pages + pages_of(s.own);
    unsigned begin = blockIdx.x * pages_per_split, end = min(begin + pages_per_split, count);
    if (begin >= end) return;

    auto tokens_in = [&](unsigned page) {
        return page < prompt_pages ? min(PAGE + 0u, s.prompt - page * PAGE) : min(PAGE + 0u, s.own - (page - prompt_pages) * PAGE);
    };
    auto load = [&](unsigned page, int stage) {
        unsigned tokens = tokens_in(page);
        size_t from = ((size_t)pages[s.first_page + page] * kv_heads + kv_head) * PAGE * HD;
        for (int i = lane; i < PAGE * chunks; i += 32) {
            int token = i / chunks, at = i % chunks * CHUNK;
            // Places without a token may hold anything, NaN too: they become zeros.
            copy16_async(cached + stage * page_size + token * width + at, keys + from + token * HD + at, token < tokens);
            copy16_async(cached + (2 + stage) * page_size + token * width + at, values + from + token * HD + at, token < tokens);
        }
    };

    for (int i = threadIdx.x; i < HEADS * chunks; i += THREADS) {
        int head = i / chunks, at = i % chunks * CHUNK;
        const real* from = queries + (size_t)blockIdx.z * query_stride + first_head * HD;
        copy16_async(query + head * width + at, head < live ? from + head * HD + at : from, head < live);
    }
    // Both stages are under way before anything is waited for: a warp has few pages, so the first is a good part of all waiting.
    if (begin + warp < end) load(begin + warp, 0);
    copies_commit();
    if (begin + warp + DECODE_WARPS < end) load(begin + warp + DECODE_WARPS, 1);
    copies_commit();
    copies_wait<1>();
    __syncthreads();  // the queries are everyone's

    const float scale = LOG2_E / sqrtf((float)HD);
    float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    float result[HD / 8][4];
    clear(result);
    int stage = 0;
    for (unsigned page = begin + warp; page < end; page += DECODE_WARPS, stage ^= 1) {
        copies_wait<1>();
        __syncwarp();
        unsigned tokens = tokens_in(page);
        float scores[PAGE / 8][4];
        clear(scores);
        multiply_rows<HD>(scores, query, 0, cached + stage * page_size);
        for (int n = 0; n < PAGE / 8; n++) {
            for (int i = 0; i < 4; i++) scores[n][i] = n * 8 + 2 * t + i % 2 < tokens ? scores[n][i] * scale : -INFINITY;
        }
        weigh<HD>(scores, maximum, sum, result);
        multiply_weights<HD>(result, scores, cached + (2 + stage) * page_size);
        __syncwarp();
        if (page + 2 * DECODE_WARPS < end) load(page + 2 * DECODE_WARPS, stage);
        copies_commit();
    }

    // The warps' parts meet in shared memory, where their pages were.
    copies_wait<0>();
    __syncthreads();
    float* results = (float*)shared;                            // [warps][HEADS][HD]
    float* maxima = results + DECODE_WARPS * HEADS * HD;        // [warps][HEADS]
    float* sums = maxima + DECODE_WARPS * HEADS;                // [warps][HEADS]
    for (int i = 0; i < 2; i++) {
        int row = warp * HEADS + g + 8 * i;
        float total = quad_sum(sum[i]);
        if (t == 0) maxima[row] = maximum[i], sums[row] = total;
        for (int n = 0; n < HD / 8; n++) store2(results + row * HD + n * 8 + 2 * t, result[n][2 * i], result[n][2 * i + 1]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < live * HD; i += THREADS) {
        int head = i / HD;
        float highest = maxima[head], total = 0.0f, out = 0.0f;
        // The first warp has a page, so the maximum is finite; warps without one add zeros.
        for (int w = 1; w < DECODE_WARPS; w++) highest = fmaxf(highest, maxima[w * HEADS + head]);
        for (int w = 0; w < DECODE_WARPS; w++) {
            float fade = exp2_fast(maxima[w * HEADS + head] - highest);
            total = fmaf(fade, sums[w * HEADS + head], total);
            out = fmaf(fade, results[(w * HEADS + head) * HD + i % HD], out);
        }
        size_t place = ((size_t)blockIdx.z * heads + first_head + head) * gridDim.x + blockIdx.x;
        part_out[place * HD + i % HD] = out;
        if (i % HD == 0) part_sums[2 * place] = highest, part_sums[2 * place + 1] = total;
    }
}

// Second half of attention_decode: the splits of a sequence, merged in order. part_out f32 [B, H, splits, hd], part_sums f32
// [B, H, splits, 2]; out REAL [B, H hd]. Grid (H, B); block: any multiple of 32 (hd is best).
extern "C" __global__ void attention_decode_merge(const float* part_out, const float* part_sums, const Sequence* sequences, real* out,
                                                  int hd, int splits, int pages_per_split) {
    Sequence s = sequences[blockIdx.y];
    int live = (pages_of(s.prompt) + pages_of(s.own) + pages_per_split - 1) / pages_per_split;
    size_t head = (size_t)blockIdx.y * gridDim.x + blockIdx.x, first = head * splits;
    float highest = -INFINITY, total = 0.0f;
    for (int i = 0; i < live; i++) highest = fmaxf(highest, part_sums[2 * (first + i)]);
    for (int i = 0; i < live; i++) {
        total = fmaf(exp2_fast(part_sums[2 * (first + i)] - highest), part_sums[2 * (first + i) + 1], total);
    }
    for (int c = threadIdx.x; c < hd; c += blockDim.x) {
        float sum = 0.0f;
        for (int i = 0; i < live; i++) {
            sum = fmaf(exp2_fast(part_sums[2 * (first + i)] - highest), part_out[(first + i) * hd + c], sum);
        }
        put(out + head * hd + c, sum / total);
    }
}

// First half of cpu/attention_decode.rs `attention_decode`, for head dimension HD as in attention.cu.
//
// queries REAL: rows of query_stride elements that begin with the sequence's rotated query [H hd] (qk as it lies); keys,
// values: one layer's pages; sequences: Sequence (3 u32 each) [B], none without a token; pages u32, every sequence's list.
// part_out f32 [B, H, splits, hd], part_sums f32 [B, H, splits, 2], where splits = the grid's x: enough for the longest,
// ceil(pages / pages_per_split).
// Grid (splits, KV * ceil(H / KV / 16), B); block 128; dynamic shared memory: the larger of 272 (hd sizeof(REAL) + 16)
// and 256 (hd + 2) bytes.
#define ATTENTION_DECODE(HD)                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_decode_##HD(                                            \
        const real* queries, int query_stride, const real* keys, const real* values, const Sequence* sequences,             \
        const unsigned* pages, float* part_out, float* part_sums, int heads, int kv_heads, int pages_per_split) {           \
        decode<HD>(queries, query_stride, keys, values, sequences, pages, part_out, part_sums, heads, kv_heads,             \
                   pages_per_split);                                                                                        \
    }
#ifdef HEAD_DIM
#define ATTENTION_DECODE_OF(HD) ATTENTION_DECODE(HD)
ATTENTION_DECODE_OF(HEAD_DIM)
#else
ATTENTION_DECODE(32)
ATTENTION_DECODE(64)
ATTENTION_DECODE(128)
#endif
