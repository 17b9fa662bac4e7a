use super::shard::Header;
use super::*;
use crate::compute::cpu::Cpu;
use crate::model::init::{InitConfig, random_params};
use crate::model::{LayerIndex, Model, ModelConfig, ParamLayout, Tap};
use half::{bf16, f16};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const EMBEDDING: &str = "model.embed_tokens.weight";

/// A Qwen3 of 1 layer and 10 tokens, with random parameters.
fn model(tied: bool) -> (ModelConfig, ParamLayout, Vec<f32>) {
    let init = InitConfig {
        hidden_size: 8,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        intermediate_size: 12,
        tie_word_embeddings: tied,
        ..InitConfig::default()
    };
    let mut config = init.model_config(10).unwrap();
    config.eos_token_ids = vec![9, 8];
    let layout = ParamLayout::new(&config);
    let params = random_params(&config, &layout, 0.02, 3);
    (config, layout, params)
}

fn saved(options: &SaveOptions) -> (tempfile::TempDir, ModelConfig, ParamLayout, Vec<f32>) {
    let (config, layout, params) = model(false);
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &config, &layout, &params, options).unwrap();
    (dir, config, layout, params)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A tensor for [`write`]: name, dtype, shape, bytes.
type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

/// Every tensor of the layout, its values encoded by `encode`.
fn tensors(layout: &ParamLayout, params: &[f32], dtype: &'static str, encode: fn(f32) -> Vec<u8>) -> Vec<Tensor> {
    let bytes = |range: std::ops::Range<usize>| params[range].iter().flat_map(|&x| encode(x)).collect();
    layout.tensors.iter().map(|s| (s.name.clone(), dtype, s.shape.clone(), bytes(s.range()))).collect()
}

fn f32_tensors(layout: &ParamLayout, params: &[f32]) -> Vec<Tensor> {
    tensors(layout, params, "F32", |x| x.to_le_bytes().to_vec())
}

/// Writes a safetensors file without help of the code under test.
fn write(path: &Path, tensors: &[Tensor]) {
    let mut header = serde_json::Map::from_iter([("__metadata__".into(), json!({"format": "pt"}))]);
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    // One space: the data is then not aligned to its elements.
    let header = Value::Object(header).to_string() + " ";
    fs::write(path, file_of(&header, &data)).unwrap();
}

/// The message of a failed load of `tensors`, the same when they are read to be sampled from.
fn refusal_of(tensors: &[Tensor], tied: bool) -> String {
    let (config, layout, params) = model(tied);
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &config, &layout, &params, &SaveOptions::default()).unwrap();
    write(&dir.path().join(SINGLE_FILE), tensors);
    let message = format!("{:#}", load(dir.path(), &config, &layout).expect_err("should have been refused"));
    let first = Tap::ResidPost(LayerIndex::from_one_based(1, 1).unwrap());
    for until in [Tap::Final, first] {
        let opened = TensorReader::open(dir.path());
        let read = opened.and_then(|weights| Model::read_for_sampling(weights, Cpu::default(), until, |_, _| ()));
        assert_eq!(format!("{:#}", read.expect_err("should have been refused")), message);
    }
    message
}

fn assert_words(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

#[test]
fn what_was_saved_is_loaded_bit_for_bit() {
    let (dir, config, layout, params) = saved(&SaveOptions::default());
    assert_eq!(names_in(dir.path()), ["config.json", "generation_config.json", "model.safetensors"]);
    assert_eq!(bits(&load(dir.path(), &config, &layout).unwrap()), bits(&params));
    assert_eq!(ModelConfig::from_dir(dir.path()).unwrap(), config);
    let generation = fs::read_to_string(dir.path().join("generation_config.json")).unwrap();
    let generation: Value = serde_json::from_str(&generation).unwrap();
    assert_eq!(generation, json!({"bos_token_id": null, "eos_token_id": [9, 8], "pad_token_id": 9}));
}

#[test]
fn the_safetensors_library_reads_what_was_saved() {
    let (dir, _, layout, params) = saved(&SaveOptions::default());
    let bytes = fs::read(dir.path().join(SINGLE_FILE)).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), layout.tensors.len());
    for spec in &layout.tensors {
        let tensor = file.tensor(&spec.name).unwrap();
        assert_eq!(tensor.shape(), spec.shape);
        assert_eq!(tensor.data(), bytemuck::cast_slice::<f32, u8>(&params[spec.range()]));
    }
}

#[test]
fn shards_are_cut_by_size_and_indexed() {
    // lm_head and the embedding have 320 bytes each, more than a file may have.
    let options = SaveOptions { max_shard_bytes: 300, ..SaveOptions::default() };
    let (dir, config, layout, params) = saved(&options);
    let index: Value = serde_json::from_str(&fs::read_to_string(dir.path().join(INDEX_FILE)).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 4 * params.len());
    let first = index["weight_map"][EMBEDDING].as_str().unwrap();
    assert!(first.starts_with("model-00001-of-000"), "{first}");
    assert_ne!(index["weight_map"]["lm_head.weight"], first);
    assert!(!dir.path().join(SINGLE_FILE).exists());
    assert_eq!(bits(&load(dir.path(), &config, &layout).unwrap()), bits(&params));

    // The other way round, the index must not survive.
    save(dir.path(), &config, &layout, &params, &SaveOptions::default()).unwrap();
    assert!(dir.path().join(SINGLE_FILE).exists() && !dir.path().join(INDEX_FILE).exists());
    save(dir.path(), &config, &layout, &params, &options).unwrap();
    assert!(!dir.path().join(SINGLE_FILE).exists() && dir.path().join(INDEX_FILE).exists());
}

#[test]
fn bf16_rounds_to_nearest() {
    let (dir, config, layout, params) = saved(&SaveOptions { dtype: SaveDtype::Bf16, ..SaveOptions::default() });
    let rounded: Vec<f32> = params.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    assert_eq!(load(dir.path(), &config, &layout).unwrap(), rounded);
    assert!(fs::read_to_string(dir.path().join("config.json")).unwrap().contains("\"dtype\": \"bfloat16\""));
}

#[test]
fn half_precision_is_read_exactly() {
    let (config, layout, mut params) = model(false);
    // Largest f16, smallest f16, one and a third in each: values known by hand.
    params[..4].copy_from_slice(&[65504.0, 5.960_464_5e-8, 1.0, 0.333_251_95]);
    let dir = tempfile::tempdir().unwrap();
    let f16s = tensors(&layout, &params, "F16", |x| f16::from_f32(x).to_le_bytes().to_vec());
    write(&dir.path().join(SINGLE_FILE), &f16s);
    assert_eq!(load(dir.path(), &config, &layout).unwrap()[..4], params[..4]);

    params[..2].copy_from_slice(&[1.0, 3.140_625]);
    let bf16s = tensors(&layout, &params, "BF16", |x| bf16::from_f32(x).to_le_bytes().to_vec());
    write(&dir.path().join(SINGLE_FILE), &bf16s);
    assert_eq!(load(dir.path(), &config, &layout).unwrap()[..2], params[..2]);
}

#[test]
fn tensors_longer_than_a_piece_are_read_whole() {
    let config = InitConfig { layers: 1, ..InitConfig::default() }.model_config(2500).unwrap();
    let layout = ParamLayout::new(&config);
    let mut params = random_params(&config, &layout, 0.02, 3);
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &config, &layout, &params, &SaveOptions::default()).unwrap();
    assert!(layout.embed.len() > 2 << 18);
    assert_eq!(bits(&load(dir.path(), &config, &layout).unwrap()), bits(&params));

    let mut stored = f32_tensors(&layout, &params);
    let (_, dtype, shape, mut unembedding) = stored[0].clone();
    for refused in [false, true] {
        unembedding[4 * 600_000] ^= refused as u8;
        stored.push(("lm_head.weight".into(), dtype, shape.clone(), unembedding.clone()));
        write(&dir.path().join(SINGLE_FILE), &stored);
        assert!(config.tie_word_embeddings && load(dir.path(), &config, &layout).is_err() == refused);
        stored.pop();
    }

    params[600_000] = f32::NAN;
    write(&dir.path().join(SINGLE_FILE), &f32_tensors(&layout, &params));
    let message = format!("{:#}", load(dir.path(), &config, &layout).unwrap_err());
    assert_words(&message, &[EMBEDDING, "NaN", "element 600000", SINGLE_FILE]);
}

#[test]
fn a_tied_checkpoint_may_hold_its_unembedding_if_it_is_the_embedding() {
    let (config, layout, params) = model(true);
    let dir = tempfile::tempdir().unwrap();
    let mut stored = f32_tensors(&layout, &params);
    let embedding = stored[0].clone();
    stored.push(("lm_head.weight".into(), embedding.1, embedding.2.clone(), embedding.3.clone()));
    stored.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), "F32", vec![1], vec![0; 4]));
    write(&dir.path().join(SINGLE_FILE), &stored);
    assert_eq!(bits(&load(dir.path(), &config, &layout).unwrap()), bits(&params));

    let unembedding = stored.len() - 2;
    stored[unembedding].3[3] ^= 0x80;
    assert_words(&refusal_of(&stored, true), &["lm_head.weight", "tie_word_embeddings", "false"]);
    stored[unembedding].2 = vec![8, 10];
    assert_words(&refusal_of(&stored, true), &["lm_head.weight", "[8, 10]", "[10, 8]"]);
}

#[test]
fn tensors_that_do_not_fit_the_config_are_named() {
    let (_, layout, params) = model(false);
    let good = f32_tensors(&layout, &params);
    let q = good.iter().position(|t| t.0.ends_with("q_proj.weight")).unwrap();

    let without_head: Vec<_> = good.iter().filter(|t| t.0 != "lm_head.weight").cloned().collect();
    assert_words(&refusal_of(&without_head, false), &["lacks 1 of", "lm_head.weight", "`tie_word_embeddings`"]);

    let renamed: Vec<_> = good.iter().cloned().map(|t| (t.0.replace("model.", ""), t.1, t.2, t.3)).collect();
    let words = ["lacks 13 of the 14", EMBEDDING, "and 8 more", "13 others", "embed_tokens.weight"];
    assert_words(&refusal_of(&renamed, false), &words);

    let mut biased = good.clone();
    biased.push(("model.layers.0.self_attn.q_proj.bias".into(), "F32", vec![1], vec![0; 4]));
    assert_words(&refusal_of(&biased, false), &["1 tensors", "q_proj.bias"]);

    let mut reshaped = good.clone();
    reshaped[q].2 = vec![4, 16];
    assert_words(&refusal_of(&reshaped, false), &["q_proj.weight", "[4, 16]", "[8, 8]", SINGLE_FILE]);

    let mut quantised = good.clone();
    quantised[q].1 = "I8";
    quantised[q].3.truncate(64);
    assert_words(&refusal_of(&quantised, false), &["q_proj.weight", "I8", "BF16"]);

    let mut infinite = good.clone();
    infinite[q].3[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert_words(&refusal_of(&infinite, false), &["q_proj.weight", "inf", "element 1 "]);
}

#[test]
fn parameters_that_are_not_finite_are_not_saved() {
    let (config, layout, mut params) = model(false);
    params[layout.final_norm.start] = f32::NAN;
    let dir = tempfile::tempdir().unwrap();
    let error = save(dir.path(), &config, &layout, &params, &SaveOptions::default()).unwrap_err();
    assert_words(&format!("{error:#}"), &["model.norm.weight", "not finite"]);
    assert_eq!(names_in(dir.path()), Vec::<String>::new());
    assert!(save(dir.path(), &config, &layout, &params[1..], &SaveOptions::default()).is_err());
}

#[test]
fn a_failed_write_leaves_nothing_behind() {
    let (config, layout, params) = model(false);
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(SINGLE_FILE)).unwrap(); // the rename cannot replace a folder
    let error = save(dir.path(), &config, &layout, &params, &SaveOptions::default()).unwrap_err();
    assert_words(&format!("{error:#}"), &[SINGLE_FILE]);
    assert_eq!(names_in(dir.path()), [SINGLE_FILE]);
}

#[test]
fn folders_without_readable_weights_say_what_to_do() {
    let (config, layout, _) = model(false);
    let dir = tempfile::tempdir().unwrap();
    let refusal = || format!("{:#}", load(dir.path(), &config, &layout).unwrap_err());
    assert_words(&refusal(), &["no weights", SINGLE_FILE, INDEX_FILE]);
    fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    assert_words(&refusal(), &["pytorch_model.bin", "save_pretrained"]);
    for nothing in ["", "1234567"] {
        fs::write(dir.path().join(SINGLE_FILE), nothing).unwrap();
        assert_words(&refusal(), &[SINGLE_FILE, &format!("{} bytes", nothing.len())]);
    }
}

#[test]
fn a_lying_index_is_refused() {
    let (dir, config, layout, _) = saved(&SaveOptions { max_shard_bytes: 300, ..SaveOptions::default() });
    let path = dir.path().join(INDEX_FILE);
    let good: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let first = good["weight_map"][EMBEDDING].as_str().unwrap().to_string();
    let refusal = |index: &str| {
        fs::write(&path, index).unwrap();
        let message = format!("{:#}", load(dir.path(), &config, &layout).expect_err("should have been refused"));
        assert_words(&message, &[INDEX_FILE]);
        message
    };
    for outside in
        ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..\\x.safetensors", "..", "", "config.json"]
    {
        let mut index = good.clone();
        index["weight_map"][EMBEDDING] = json!(outside);
        assert_words(&refusal(&index.to_string()), &[&format!("{outside:?}"), EMBEDDING, "plain name"]);
    }
    let mut index = good.clone();
    index["weight_map"][EMBEDDING] = index["weight_map"]["lm_head.weight"].clone();
    assert_words(&refusal(&index.to_string()), &["differ", EMBEDDING]);
    index["weight_map"].as_object_mut().unwrap().remove(EMBEDDING);
    assert_words(&refusal(&(index.to_string() + "x")), &["damaged"]);
    for nonsense in ["", "[]", "{}", "{\"weight_map\": 3}", "{\"weight_map\": {\"a\": 1}}"] {
        assert_words(&refusal(nonsense), &["damaged"]);
    }
    fs::remove_file(dir.path().join(&first)).unwrap();
    assert_words(&refusal(&good.to_string()), &[&first, "is missing", EMBEDDING]);
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let (dir, config, layout, params) = saved(&SaveOptions { max_shard_bytes: 300, ..SaveOptions::default() });
    let path = dir.path().join(INDEX_FILE);
    let index: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let first = index["weight_map"][EMBEDDING].as_str().unwrap();
    write(&dir.path().join(first), &f32_tensors(&layout, &params)[..2]);
    let message = format!("{:#}", load(dir.path(), &config, &layout).unwrap_err());
    assert_words(&message, &[first, "only the file has [lm_head.weight]"]);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (dir, config, layout, _) = saved(&SaveOptions::default());
    let path = dir.path().join(SINGLE_FILE);
    let whole = fs::read(&path).unwrap();
    assert!(Header::parse(&whole).is_ok());
    for n in 0..whole.len() {
        assert!(Header::parse(&whole[..n]).is_err(), "cut at {n}");
    }
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let message = format!("{:#}", load(dir.path(), &config, &layout).unwrap_err());
    assert_words(&message, &[SINGLE_FILE, "damaged", "model.norm.weight", "ends at byte"]);
    assert!(Header::parse(&[whole, vec![0]].concat()).is_err());
}

#[test]
fn lying_headers_are_refused_with_what_is_wrong() {
    let refusal = |file: &[u8]| format!("{:#}", Header::parse(file).expect_err("should have been refused"));
    for length in [1u64 << 60, u64::MAX, u64::MAX - 7] {
        assert_words(&refusal(&[&length.to_le_bytes()[..], b"{}"].concat()), &[&length.to_string(), "100 MB"]);
    }
    assert_words(&refusal(&[&9u64.to_le_bytes()[..], b"{}"].concat()), &["9 bytes", "only 2 follow"]);
    assert_words(&refusal(&[&2u64.to_le_bytes()[..], b"\xff\xfe"].concat()), &["UTF-8"]);

    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}")
    };
    let a = tensor("F32", "[2]", "[0,8]");
    let ok = file_of(&format!("{{\"a\":{a},\"b\":{}}}", tensor("F16", "[1,2]", "[8,12]")), &[0; 12]);
    assert!(Header::parse(&ok).is_ok());
    let cases: Vec<(String, Vec<&str>)> = vec![
        (format!("{{\"a\":{a},\"b\":{}}}", tensor("F32", "[1]", "[4,8]")), vec!["tensor b", "[4, 8]", "start of 8"]),
        (format!("{{\"a\":{a},\"b\":{}}}", tensor("F32", "[0]", "[9,9]")), vec!["tensor b", "[9, 9]", "start of 8"]),
        (format!("{{\"a\":{a},\"b\":{}}}", tensor("F32", "[2]", "[8,16]")), vec!["tensor b", "byte 16", "12 bytes"]),
        (format!("{{\"a\":{a},\"a\":{a}}}"), vec!["a stands in it twice"]),
        (format!("{{\"a\":{a}}}"), vec!["12 bytes of data", "describes 8"]),
        (format!("{{\"a\":{}}}", tensor("F32", "[4]", "[0,12]")), vec!["tensor a", "[4]", "F32", "12 bytes"]),
        (format!("{{\"a\":{}}}", tensor("F32", "[4]", "[12,0]")), vec!["tensor a", "[12, 0]"]),
        (format!("{{\"a\":{}}}", tensor("F4", "[1]", "[0,1]")), vec!["tensor a", "[1]"]),
        (format!("{{\"a\":{}}}", tensor("F32", "[4294967296,4294967296,4294967296]", "[0,12]")), vec!["tensor a"]),
        (format!("{{\"a\":{}}}", tensor("U8", "[18446744073709551615]", "[0,18446744073709551615]")), vec!["tensor a"]),
        (format!("{{\"a\":{}}}", tensor("F32", "[-1]", "[0,12]")), vec!["tensor a", "-1"]),
        (format!("{{\"a\":{}}}", tensor("INT4", "[3]", "[0,12]")), vec!["tensor a", "INT4"]),
        ("{\"a\":{\"dtype\":\"F32\"}}".into(), vec!["tensor a", "shape"]),
        ("[]".into(), vec!["an object of tensors"]),
        ("".into(), vec!["header"]),
        ("[".repeat(100_000), vec!["header"]),
    ];
    for (header, words) in cases {
        assert_words(&refusal(&file_of(&header, &[0; 12])), &words);
    }
}

proptest! {
    #[test]
    fn random_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 3..200)) {
        prop_assert!(Header::parse(&bytes).is_err());
        prop_assert!(Header::parse(&[&(bytes.len() as u64).to_le_bytes(), bytes.as_slice()].concat()).is_err());
    }

    #[test]
    fn a_changed_byte_never_panics(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let (config, layout, params) = model(false);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SINGLE_FILE);
        write(&path, &f32_tensors(&layout, &params));
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = value;
        fs::write(&path, bytes).unwrap();
        if let Ok(loaded) = load(dir.path(), &config, &layout) {
            prop_assert!(loaded.len() == params.len() && loaded.iter().all(|x| x.is_finite()));
        }
    }
}
