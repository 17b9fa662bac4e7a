//! A kernel's source into machine code for one architecture.
//!
//! Options are fixed: the same source, compiler and architecture give the same bytes.

use super::nvrtc::Nvrtc;
use super::{Capability, Version};
use std::ffi::CString;

/// One kernel file as it is compiled. `#include` finds its headers by their names and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    /// The file's name, which the compiler's messages give: `adamw.cu`.
    pub name: &'a str,
    pub text: &'a str,
    /// Names and texts.
    pub headers: &'a [(&'a str, &'a str)],
    /// Names and values, defined before the first line: what makes one source a kernel of one number format.
    pub defines: &'a [(&'a str, &'a str)],
}

/// Machine code for one architecture (a cubin), and what the compiler said about its source, which is nothing as a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    pub cubin: Vec<u8>,
    pub warnings: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// `reason` is NVRTC's name for it, `log` its messages with file names and lines.
    #[error("cannot compile {name} for {architecture} with NVRTC {version}: {reason}{}", below(.log))]
    Refused { name: String, architecture: String, version: Version, reason: String, log: String },
    #[error("{name} cannot be compiled: expected text without a NUL character, in headers and defines too")]
    Nul { name: String },
}

fn below(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("\n{log}") }
}

/// How everything is compiled: IEEE division, square root and small numbers, and products and sums in one rounding where the source
/// has both. All but the first are what NVRTC does unasked, said so that no version changes them.
const OPTIONS: [&str; 5] = ["--std=c++17", "--fmad=true", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"];

/// Every option of a compilation, in the order in which the compiler gets them.
pub fn options(source: &Source, capability: Capability) -> Vec<String> {
    let architecture = format!("--gpu-architecture={}", capability.architecture());
    let fixed = OPTIONS.iter().map(|option| option.to_string());
    let defines = source.defines.iter().map(|(name, value)| format!("--define-macro={name}={value}"));
    std::iter::once(architecture).chain(fixed).chain(defines).collect()
}

/// Compiles for a device of `capability`; takes from 0.1 s to seconds.
pub fn compile(nvrtc: &Nvrtc, source: &Source, capability: Capability) -> Result<Compiled, CompileError> {
    let with_end = |text: &str| CString::new(text).map_err(|_| CompileError::Nul { name: source.name.to_string() });
    let refused = |reason, log| CompileError::Refused {
        name: source.name.to_string(),
        architecture: capability.architecture(),
        version: nvrtc.version,
        reason,
        log,
    };
    let headers = source.headers.iter().map(|(name, text)| Ok((with_end(name)?, with_end(text)?)));
    let headers: Vec<(CString, CString)> = headers.collect::<Result<_, _>>()?;
    let options = options(source, capability).iter().map(|option| with_end(option)).collect::<Result<Vec<_>, _>>()?;
    let outcome = nvrtc
        .run(&with_end(source.name)?, &with_end(source.text)?, &headers, &options)
        .map_err(|reason| refused(reason, String::new()))?;
    match outcome.code {
        Ok(cubin) => Ok(Compiled { cubin, warnings: outcome.log }),
        Err(reason) => Err(refused(reason, outcome.log)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::compute::cuda::libraries::Search;

    pub const A100: Capability = Capability { major: 8, minor: 0 };
    pub const H100: Capability = Capability { major: 9, minor: 0 };
    pub const B200: Capability = Capability { major: 10, minor: 0 };

    const SCALE: &str = r#"#include "common.cuh"
extern "C" __global__ void scale(NUMBER* x, float by, int n) {
    int i = row();
    if (i < n) x[i] = (NUMBER)(powf((float)x[i], 2.f) * by);
}
"#;
    const COMMON: &str = "__device__ inline int row() { return blockIdx.x * blockDim.x + threadIdx.x; }\n";

    pub fn scale(format: &'static [(&'static str, &'static str)]) -> Source<'static> {
        Source { name: "scale.cu", text: SCALE, headers: &[("common.cuh", COMMON)], defines: format }
    }

    pub const F32: &[(&str, &str)] = &[("NUMBER", "float")];
    pub const F64: &[(&str, &str)] = &[("NUMBER", "double")];

    /// The compiler, without which these tests fail: what they would show is not known then.
    pub fn nvrtc() -> Nvrtc {
        Nvrtc::open(&Search::from_env(), None).unwrap_or_else(|error| panic!("this test compiles: {error}"))
    }

    fn is_cubin(bytes: &[u8], capability: Capability) {
        assert_eq!(&bytes[..4], b"\x7fELF");
        // e_machine of an ELF header: EM_CUDA.
        assert_eq!(u16::from_le_bytes([bytes[18], bytes[19]]), 190, "{capability}");
        assert!(bytes.windows(5).any(|w| w == b"scale"), "{capability}: it names its kernel");
    }

    #[test]
    fn one_source_compiles_for_every_architecture_and_number_format() {
        let nvrtc = nvrtc();
        assert!(nvrtc.version >= Version { major: 12, minor: 8 }, "{}: it knows no sm_100", nvrtc.version);
        let mut codes = Vec::new();
        for capability in [A100, H100, B200] {
            for format in [F32, F64] {
                let compiled = compile(&nvrtc, &scale(format), capability).unwrap();
                is_cubin(&compiled.cubin, capability);
                assert_eq!(compiled.warnings, "");
                assert!(!codes.contains(&compiled.cubin), "{capability}: another code for another purpose");
                codes.push(compiled.cubin);
            }
        }
        assert_eq!(compile(&nvrtc, &scale(F32), A100).unwrap().cubin, codes[0], "the same bytes again");
    }

    #[test]
    fn a_mistake_is_shown_with_file_and_line() {
        let text = "extern \"C\" __global__ void f(float* x) {\n    x[0] = y;\n}\n";
        let source = Source { name: "mistake.cu", text, headers: &[], defines: &[] };
        let error = compile(&nvrtc(), &source, H100).unwrap_err();
        let CompileError::Refused { log, .. } = &error else { panic!("{error}") };
        assert!(log.contains("mistake.cu(2): error") && log.contains("\"y\""), "{log}");
        let said = error.to_string();
        assert!(said.starts_with("cannot compile mistake.cu for sm_90 with NVRTC") && said.contains(log), "{said}");
        let text = "#include \"common.cuh\"\n";
        let headers = [("common.cuh", "int good;\nint bad bad;\n")];
        let source = Source { name: "uses.cu", text, headers: &headers, defines: &[] };
        let error = compile(&nvrtc(), &source, H100).unwrap_err().to_string();
        assert!(error.contains("common.cuh(2): error"), "{error}");
    }

    #[test]
    fn an_unknown_architecture_and_a_text_with_nul_are_errors() {
        let nvrtc = nvrtc();
        let error = compile(&nvrtc, &scale(F32), Capability { major: 99, minor: 9 }).unwrap_err().to_string();
        assert!(error.contains("sm_999"), "{error}");
        let source = Source { text: "int x;\0", ..scale(F32) };
        assert!(matches!(compile(&nvrtc, &source, H100), Err(CompileError::Nul { .. })));
    }

    #[test]
    fn a_kernel_without_a_header_that_it_includes_is_an_error() {
        let source = Source { headers: &[], ..scale(F32) };
        let error = compile(&nvrtc(), &source, H100).unwrap_err().to_string();
        assert!(error.contains("common.cuh"), "{error}");
    }
}
