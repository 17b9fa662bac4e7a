//! `bupo memory`: what a recipe takes of a GPU's memory, where there is none.

mod common;

use common::fails;

#[cfg(feature = "cuda")]
#[test]
fn a_recipe_is_rehearsed_without_a_gpu() {
    use common::text;
    use serde_json::Value;

    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("memory.json");
    let rows = |args: &[&str]| -> Vec<Value> {
        let command = ["memory", "qwen3-4b-bupo", "--shape", "qwen3-4b", "--out", text(&out)];
        let said = common::ok(&[&command[..], args].concat());
        for part in ["weights", "moments", "sampling", "updates", "recompute yes, offload no *"] {
            assert!(said.contains(part), "{said}");
        }
        serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap()
    };
    let gib = |row: &Value, key: &str| row[key].as_f64().unwrap() / f64::from(1 << 30);
    let standing = |row: &Value, what: &str| -> f64 {
        let parts = row["standing"].as_array().unwrap();
        let part = parts.iter().find(|part| part[0] == what).unwrap();
        part[1].as_f64().unwrap() / f64::from(1 << 30)
    };
    let bf16 = rows(&["--set", "compute=bf16", "--prompt", "100"]);
    // 4.022 billion parameters: f32 and a copy in bf16, moments of 8 bytes each.
    assert_eq!(bf16.len(), 4);
    for row in &bf16 {
        assert!((standing(row, "weights") - 22.48).abs() < 0.02, "{row}");
        let moments = if row["offload"] == true { 0.0 } else { 29.97 };
        assert!((standing(row, "moments") - moments).abs() < 0.02, "{row}");
        // 256 sequences of 100 and 8,192 tokens, 36 layers of 8 heads of 128 twice, in bf16.
        let cache = 256.0 * (7.0 + 512.0) * 16.0 * 36.0 * 2.0 * 1024.0 * 2.0 / f64::from(1 << 30);
        let sampling = gib(row, "sampling");
        assert!(sampling > 0.98 * cache && sampling < 1.02 * cache + 1.5, "{sampling} of {cache}");
        assert!(gib(row, "least") < gib(row, "most"), "{row}");
    }
    assert!(gib(&bf16[1], "updates") < 0.7 * gib(&bf16[0], "updates"), "recompute saves activations");
    let f32 = rows(&["--set", "rollout.slots=8"]);
    assert!((standing(&f32[0], "weights") - 14.98).abs() < 0.02 && gib(&f32[0], "sampling") < 25.0, "{}", f32[0]);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn without_cuda_it_says_what_to_build() {
    fails(&["memory", "arithmetic-bupo"], &["without CUDA", "--features cuda"]);
}

#[test]
fn what_cannot_be_is_said() {
    fails(&["memory", "no-such-recipe"], &["no-such-recipe"]);
    fails(&["memory", "arithmetic-bupo", "--set", "rollout.slotz=3"], &["rollout.slots"]);
}
