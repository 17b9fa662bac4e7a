// All kernels as one translation unit, and their names. Each file's helpers are in a namespace of their own; the entry points
// are extern "C" and keep their names.
#include "emulator.h"
#include "launch.h"

#include "../mma.cuh"

#include "../attention.cuh"

namespace norm {
#include "../norm.cu"
}
namespace rope {
#include "../rope.cu"
}
namespace swiglu_ {
#include "../swiglu.cu"
}
namespace embedding {
#include "../embedding.cu"
}
namespace attention_forward {
#include "../attention.cu"
}
namespace attention_gradient {
#include "../attention_backward.cu"
}
namespace attention_of_one {
#include "../attention_decode.cu"
}
namespace head {
#include "../head.cu"
}
namespace divergence {
#include "../divergence.cu"
}
namespace products {
#include "../gram.cu"
}
namespace whole_rows {
#include "../row.cu"
}
namespace sampler {
#include "../sample.cu"
}
namespace optimizer {
#include "../adamw.cu"
}
namespace reduction {
#include "../reduce.cu"
}
namespace value_head {
#include "../value.cu"
}
namespace faults {
#include "faults.cu"
}

// Heads of 16 are a compilation of their own, as they are on a GPU. What else those files have is here already.
#define HEAD_DIM 16
#define attention_pull attention_pull_again
#define kv_write kv_write_again
#define attention_decode_merge attention_decode_merge_again
namespace forward_of_16 {
#include "../attention.cu"
}
namespace gradient_of_16 {
#include "../attention_backward.cu"
}
namespace one_of_16 {
#include "../attention_decode.cu"
}
#undef HEAD_DIM
#undef attention_pull
#undef kv_write
#undef attention_decode_merge

#define KERNEL(space, name) {#name, Unpack<space::name>::call, Unpack<space::name>::kinds},
#define HEAD_DIMS(space, name) KERNEL(space, name##_32) KERNEL(space, name##_64) KERNEL(space, name##_128)

static const Kernel KERNELS[] = {
    KERNEL(norm, rms_norm)
    KERNEL(norm, add_rms_norm)
    KERNEL(norm, rms_norm_again)
    KERNEL(norm, read_states)
    KERNEL(norm, read_states_real)
    KERNEL(norm, rms_norm_backward)
    KERNEL(norm, rms_norm_backward_f32)
    KERNEL(rope, qk_rope)
    KERNEL(rope, qk_rope_to_pages)
    KERNEL(rope, qk_rope_backward)
    KERNEL(swiglu_, swiglu)
    KERNEL(swiglu_, swiglu_backward)
    KERNEL(embedding, embed)
    KERNEL(embedding, gather_rows)
    KERNEL(embedding, gather_rows_real)
    KERNEL(embedding, hold_rows)
    KERNEL(embedding, hold_rows_real)
    KERNEL(embedding, sum_rows_partial)
    KERNEL(embedding, add_partial_rows)
    KERNEL(embedding, scatter_rows_add)
    KERNEL(embedding, scatter_rows_add_f32)
    HEAD_DIMS(attention_forward, attention)
    KERNEL(forward_of_16, attention_16)
    KERNEL(attention_gradient, attention_pull)
    HEAD_DIMS(attention_gradient, attention_backward_queries)
    HEAD_DIMS(attention_gradient, attention_backward_keys)
    KERNEL(gradient_of_16, attention_backward_queries_16)
    KERNEL(gradient_of_16, attention_backward_keys_16)
    KERNEL(attention_of_one, kv_write)
    HEAD_DIMS(attention_of_one, attention_decode)
    KERNEL(one_of_16, attention_decode_16)
    KERNEL(attention_of_one, attention_decode_merge)
    KERNEL(head, head_fold)
    KERNEL(head, head_finish)
    KERNEL(head, head_d_logits)
    KERNEL(head, head_top)
    KERNEL(divergence, compare_fold)
    KERNEL(divergence, add_up_logits)
    KERNEL(divergence, compare_merge)
    KERNEL(divergence, compare_finish)
    KERNEL(products, add_branches)
    KERNEL(products, gram)
    KERNEL(products, row_cosines)
    KERNEL(whole_rows, row_rank)
    KERNEL(whole_rows, row_top)
    KERNEL(sampler, sample)
    KERNEL(optimizer, adamw)
    KERNEL(optimizer, sum_of_squares)
    KERNEL(optimizer, sum_f64)
    KERNEL(reduction, column_sums_partial)
    KERNEL(reduction, add_column_sums)
    KERNEL(reduction, add_bias)
    KERNEL(reduction, fill_columns)
    KERNEL(reduction, add)
    KERNEL(reduction, scaled_add)
    KERNEL(reduction, scale)
    KERNEL(reduction, round_to_real)
    KERNEL(reduction, widen_to_f32)
    KERNEL(value_head, values)
    KERNEL(value_head, values_backward)
    KERNEL(value_head, values_backward_weight)
    KERNEL(faults, fault_missing_barrier)
    KERNEL(faults, fault_two_barriers)
    KERNEL(faults, fault_half_a_warp)
    KERNEL(faults, fault_past_shared)
    KERNEL(faults, fault_race)
};

const Kernel* find_kernel(const char* name) {
    for (const Kernel& kernel : KERNELS) {
        if (!strcmp(kernel.name, name)) return &kernel;
    }
    return nullptr;
}
