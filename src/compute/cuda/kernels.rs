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

/// The format of a module's activations on the device. Streams, statistics, sums and parameters are f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Real {
    F32,
    Bf16,
}

/// Every kernel file as it is compiled for activations in `real`.
pub fn sources(real: Real) -> impl Iterator<Item = Source<'static>> {
    let defines: &[(&str, &str)] = match real {
        Real::F32 => &[("REAL", "float")],
        Real::Bf16 => &[("REAL", "bf16")],
    };
    KERNELS.iter().map(move |(name, text)| Source { name, text, headers: HEADERS, defines })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cuda::Capability;
    use crate::compute::cuda::compile::compile;
    use crate::compute::cuda::compile::tests::{A100, B200, H100, nvrtc};
    use rayon::prelude::*;

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
        let jobs: Vec<(Source, Capability)> = [A100, H100, B200]
            .into_iter()
            .flat_map(|capability| [Real::F32, Real::Bf16].map(|real| (real, capability)))
            .flat_map(|(real, capability)| sources(real).map(move |source| (source, capability)))
            .collect();
        jobs.par_iter().for_each(|(source, capability)| {
            let compiled = compile(&nvrtc, source, *capability).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(compiled.warnings, "", "{} for {capability}", source.name);
        });
    }
}
