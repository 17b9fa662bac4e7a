//! The table of kernels: every operation's source, its headers, and the number formats that it is compiled for.

use super::compile::Source;

/// What kernels include.
pub const HEADERS: &[(&str, &str)] = &[
    ("attention.cuh", include_str!("attention.cuh")),
    ("common.cuh", include_str!("common.cuh")),
    ("mma.cuh", include_str!("mma.cuh")),
];

/// File names and texts, an operation each.
pub const KERNELS: &[(&str, &str)] = &[
    ("adamw.cu", include_str!("adamw.cu")),
    ("attention.cu", include_str!("attention.cu")),
    ("attention_backward.cu", include_str!("attention_backward.cu")),
    ("attention_decode.cu", include_str!("attention_decode.cu")),
    ("divergence.cu", include_str!("divergence.cu")),
    ("embedding.cu", include_str!("embedding.cu")),
    ("gram.cu", include_str!("gram.cu")),
    ("head.cu", include_str!("head.cu")),
    ("norm.cu", include_str!("norm.cu")),
    ("reduce.cu", include_str!("reduce.cu")),
    ("rope.cu", include_str!("rope.cu")),
    ("row.cu", include_str!("row.cu")),
    ("sample.cu", include_str!("sample.cu")),
    ("swiglu.cu", include_str!("swiglu.cu")),
    ("value.cu", include_str!("value.cu")),
];

/// Which file each kernel is in. `_HD` stands for a head dimension.
const FUNCTIONS: &[(&str, &[&str])] = &[
    ("adamw.cu", &["adamw", "sum_of_squares", "sum_f64"]),
    ("attention.cu", &["attention_HD"]),
    ("attention_backward.cu", &["attention_pull", "attention_backward_queries_HD", "attention_backward_keys_HD"]),
    ("attention_decode.cu", &["kv_write", "attention_decode_HD", "attention_decode_merge"]),
    (
        "embedding.cu",
        &[
            "embed",
            "gather_rows",
            "gather_rows_real",
            "hold_rows",
            "hold_rows_real",
            "sum_rows_partial",
            "add_partial_rows",
            "scatter_rows_add",
            "scatter_rows_add_f32",
        ],
    ),
    ("divergence.cu", &["compare_fold", "add_up_logits", "compare_merge", "compare_finish"]),
    ("gram.cu", &["add_branches", "gram", "row_cosines"]),
    ("row.cu", &["row_rank", "row_top"]),
    ("head.cu", &["head_fold", "head_finish", "head_d_logits", "head_top"]),
    (
        "norm.cu",
        &[
            "rms_norm",
            "add_rms_norm",
            "rms_norm_again",
            "rms_norm_backward",
            "rms_norm_backward_f32",
            "read_states",
            "read_states_real",
        ],
    ),
    (
        "reduce.cu",
        &[
            "column_sums_partial",
            "add_column_sums",
            "add_bias",
            "fill_columns",
            "add",
            "scaled_add",
            "scale",
            "round_to_real",
            "widen_to_f32",
        ],
    ),
    ("rope.cu", &["qk_rope", "qk_rope_to_pages", "qk_rope_backward"]),
    ("sample.cu", &["sample"]),
    ("swiglu.cu", &["swiglu", "swiglu_backward"]),
    ("value.cu", &["values", "values_backward", "values_backward_weight"]),
];

/// Head dimensions that every compilation has; each other one is a compilation of its own.
const HEAD_DIMS: [usize; 3] = [32, 64, 128];

/// The format of a module's activations on the device. Streams, statistics, sums and parameters are f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Real {
    F32,
    Bf16,
}

impl Real {
    pub const BOTH: [Real; 2] = [Real::F32, Real::Bf16];

    /// Of one number.
    pub fn bytes(self) -> usize {
        self.pick(4, 2)
    }

    /// `f32` or `bf16`.
    pub fn pick<T>(self, f32: T, bf16: T) -> T {
        match self {
            Real::F32 => f32,
            Real::Bf16 => bf16,
        }
    }
}

/// One compilation: a file, for activations in one format. What a module holds, once it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Compilation {
    pub real: Real,
    /// `norm.cu`.
    pub file: &'static str,
    /// Where attention is not for one of the head dimensions that all have.
    pub head_dim: Option<usize>,
}

impl Compilation {
    /// The one that has a kernel by its name; none if there is no such kernel. Head dimensions are multiples of 16.
    pub fn of(real: Real, kernel: &str) -> Option<Compilation> {
        let head_dim_of = |name: &str| {
            let digits = kernel.strip_prefix(name.strip_suffix("HD")?)?;
            digits.parse().ok().filter(|hd: &usize| hd.is_multiple_of(16) && *hd > 0 && digits == hd.to_string())
        };
        FUNCTIONS.iter().find_map(|(file, names)| {
            if names.contains(&kernel) && !kernel.ends_with("HD") {
                return Some(Compilation { real, file, head_dim: None });
            }
            let head_dim: usize = names.iter().find_map(|name| head_dim_of(name))?;
            Some(Compilation { real, file, head_dim: Some(head_dim).filter(|hd| !HEAD_DIMS.contains(hd)) })
        })
    }

    /// Does this with its source.
    pub fn with_source<T>(self, then: impl FnOnce(&Source<'_>) -> T) -> T {
        let text = KERNELS.iter().find(|(name, _)| *name == self.file).map_or("", |(_, text)| text);
        let head_dim = self.head_dim.map(|hd| hd.to_string());
        let mut defines = vec![("REAL", self.real.pick("float", "bf16"))];
        defines.extend(head_dim.as_ref().map(|hd| ("HEAD_DIM", hd.as_str())));
        then(&Source { name: self.file, text, headers: HEADERS, defines: &defines })
    }
}

/// Every kernel file for activations in `real`.
pub fn compilations(real: Real) -> impl Iterator<Item = Compilation> {
    KERNELS.iter().map(move |(file, _)| Compilation { real, file, head_dim: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cuda::Capability;
    use crate::compute::cuda::compile::compile;
    use crate::compute::cuda::compile::tests::{A100, B200, H100, nvrtc};
    use rayon::prelude::*;
    use std::collections::BTreeSet;

    /// Which of the kernels' files in the source folder are in the table.
    #[test]
    fn the_table_is_whole() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/compute/cuda");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".cu") || name.ends_with(".cuh"))
            .collect();
        names.sort();
        let mut table: Vec<&str> = KERNELS.iter().chain(HEADERS).map(|(name, _)| *name).collect();
        table.sort_unstable();
        assert_eq!(names, table);
    }

    #[test]
    fn every_kernel_compiles_for_every_architecture_without_a_warning() {
        let nvrtc = nvrtc();
        let jobs: Vec<(Compilation, Capability)> = [A100, H100, B200]
            .into_iter()
            .flat_map(|capability| Real::BOTH.map(|real| (real, capability)))
            .flat_map(|(real, capability)| compilations(real).map(move |compilation| (compilation, capability)))
            .collect();
        jobs.par_iter().for_each(|(compilation, capability)| {
            let compiled = compilation.with_source(|source| compile(&nvrtc, source, *capability));
            let compiled = compiled.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(compiled.warnings, "", "{} for {capability}", compilation.file);
            // Sections of code are named by their kernels: .text.rms_norm.
            let text = String::from_utf8_lossy(&compiled.cubin);
            let sections = text.split('\0').filter_map(|name| name.strip_prefix(".text."));
            let got: BTreeSet<String> = sections.map(str::to_string).collect();
            let named = FUNCTIONS.iter().filter(|(file, _)| *file == compilation.file).flat_map(|(_, names)| *names);
            let expected: BTreeSet<String> = named.flat_map(|name| with_head_dims(name)).collect();
            assert_eq!(got, expected, "{}", compilation.file);
        });
    }

    fn with_head_dims(name: &str) -> Vec<String> {
        match name.strip_suffix("HD") {
            Some(stem) => HEAD_DIMS.iter().map(|hd| format!("{stem}{hd}")).collect(),
            None => vec![name.to_string()],
        }
    }

    #[test]
    fn a_kernel_is_found_by_its_name() {
        let of = |kernel| Compilation::of(Real::Bf16, kernel).map(|c| (c.file, c.head_dim));
        assert_eq!(of("rms_norm_again"), Some(("norm.cu", None)));
        assert_eq!(of("attention_64"), Some(("attention.cu", None)));
        assert_eq!(of("attention_96"), Some(("attention.cu", Some(96))));
        assert_eq!(of("attention_backward_keys_80"), Some(("attention_backward.cu", Some(80))));
        assert_eq!(of("attention_decode_merge"), Some(("attention_decode.cu", None)));
        for nothing in ["", "attention", "attention_", "attention_0", "attention_064", "attention_20", "attention_HD"] {
            assert_eq!(of(nothing), None, "{nothing}");
        }
        let define =
            Compilation::of(Real::Bf16, "attention_96").unwrap().with_source(|source| source.defines.to_vec().len());
        assert_eq!(define, 2);
    }
}
