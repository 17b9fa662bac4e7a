//! Weights between HuggingFace's safetensors files and the flat parameter array.

mod adapter;
mod load;
mod reader;
mod save;
mod shard;

pub use adapter::{base_of, is_adapter, load_adapter, save_adapter};
pub use load::load;
pub use reader::TensorReader;
pub use save::{SaveDtype, SaveOptions, save, save_tensors};

/// The weights of a checkpoint in one file.
const SINGLE_FILE: &str = "model.safetensors";
/// Which of several files holds which tensor.
const INDEX_FILE: &str = "model.safetensors.index.json";

// Safetensors data is little-endian and is copied between files and arrays without swapping bytes.
const _: () = assert!(cfg!(target_endian = "little"), "bupo supports little-endian machines only");

/// Names for a message: the first few, and how many more there are.
fn name_some<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 5;
    let names: Vec<&str> = names.into_iter().collect();
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
