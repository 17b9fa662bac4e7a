//! Looking inside through the binary: several policies side by side, samples token by token, two checkpoints compared, and
//! wrong input.

mod common;

use bupo::model::init::{InitConfig, random_params};
use bupo::model::weights::{SaveOptions, save};
use bupo::model::{Model, ParamLayout};
use bupo::text::Tokenizer;
use common::{fails, ok, rows, text};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A random model of three layers that reads bytes.
fn model(change: impl Fn(&mut InitConfig)) -> Model {
    let mut init =
        InitConfig { hidden_size: 32, layers: 3, heads: 2, kv_heads: 1, head_dim: 16, ..InitConfig::default() };
    (init.intermediate_size, init.max_position_embeddings, init.std) = (48, 128, 0.2);
    change(&mut init);
    let config = init.model_config(Tokenizer::byte_level().unwrap().vocab_size()).unwrap();
    let params = random_params(&config, &ParamLayout::new(&config), init.std, 7);
    Model::new(config, params)
}

fn write(model: &Model, dir: &Path) {
    save(dir, &model.config, &model.layout, &model.params, &SaveOptions::default()).unwrap();
    Tokenizer::byte_level().unwrap().save(dir).unwrap();
}

#[test]
fn several_policies_answer_the_same_prompts_from_the_same_seeds() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    write(&model(|_| ()), &at("model"));
    let dir = at("model");
    let ask = |policy: &str, more: &[&str]| {
        let args = ["generate", text(&dir), "--prompt", "2+2=", "--plain", "{problem}", "--max-new-tokens", "12"];
        [&args[..], &["--policy", policy], more].concat().iter().map(|s| s.to_string()).collect::<Vec<_>>()
    };
    let run = |args: Vec<String>| ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let (together, alone) = (at("together.jsonl"), at("alone.jsonl"));
    run(ask("final,layer:2,attn:2", &["-n", "2", "--out", text(&together)]));
    let all = rows(&together);
    let order: Vec<_> = all.iter().map(|r| (r["sample"].as_u64().unwrap(), r["policy"].as_str().unwrap())).collect();
    let expected = [1, 2].map(|s| ["final", "layer:2", "attn:2"].map(|p| (s, p))).concat();
    assert_eq!(order, expected);
    // Each policy's rows are those that it writes by itself: the same prompts, the same seeds.
    for policy in ["final", "layer:2", "attn:2"] {
        run(ask(policy, &["-n", "2", "--out", text(&alone)]));
        let own: Vec<Value> = all.iter().filter(|r| r["policy"] == policy).cloned().collect();
        assert_eq!(rows(&alone), own, "{policy}");
    }
    let first = fs::read(&together).unwrap();
    run(ask("final,layer:2,attn:2", &["-n", "2", "--out", text(&together)]));
    assert!(first == fs::read(&together).unwrap(), "the same bytes twice");
    // Two columns fit where the output is no terminal, four do not.
    let shown = run(ask("final,layer:2", &["-n", "2"]));
    assert!(shown.lines().any(|l| l.contains("final") && l.contains("layer:2")), "{shown}");
    assert!(shown.contains("--- prompt 1, sample 2") && shown.lines().all(|l| l.chars().count() <= 100), "{shown}");
    let blocks = run(ask("final,layer:1,layer:2,ffn:3", &[]));
    assert_eq!(blocks.lines().filter(|l| l.starts_with('[') && l.contains("tokens")).count(), 4, "{blocks}");
    // One policy is shown as its text alone.
    let one = run(ask("final", &[]));
    assert!(!one.contains("---") && one.trim_end() == rows(&together)[0]["text"].as_str().unwrap().trim_end(), "{one}");
    let wrong = |policy: &str, expected: &[&str]| {
        let args = ask(policy, &["--out", text(&at("none.jsonl"))]);
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), expected);
        assert!(!at("none.jsonl").exists(), "a half-written output");
    };
    wrong("final,layer:4", &["layer:4", "1..=3"]);
    wrong("final,", &["\"\"", "final, layer:N"]);
    wrong("final,middle", &["middle"]);
    wrong("attn:1,final,attn:1", &["attn:1 twice"]);
}

#[test]
fn the_first_samples_are_shown_token_by_token() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    write(&model(|_| ()), &at("model"));
    let lines = "{\"prompt\": \"2+2=\", \"response\": \"4 €\"}\n{\"input_ids\": [1, 2, 3], \"response_start\": 1}\n";
    fs::write(at("rows.jsonl"), lines).unwrap();
    let analyze = |out: &Path, more: &[&str]| {
        let (model, data) = (at("model"), at("rows.jsonl"));
        let args = ["analyze", text(&model), "--data", text(&data), "--out", text(out), "--plain", "{problem}"];
        [&args[..], more].concat().iter().map(|s| s.to_string()).collect::<Vec<_>>()
    };
    let run = |args: Vec<String>| ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let read = |dir: &Path| -> Vec<Value> {
        let file = fs::File::open(dir.join("tokens.parquet")).unwrap();
        let reader = parquet::file::reader::SerializedFileReader::new(file).unwrap();
        reader.into_iter().map(|row| row.unwrap().to_json_value()).collect()
    };
    run(analyze(&at("plain"), &[]));
    assert!(!at("plain/tokens.parquet").exists());
    run(analyze(&at("one"), &["--tokens", "1"]));
    // The plain analysis is the same with and without.
    for file in ["analysis.json", "layers.parquet"] {
        assert!(fs::read(at("plain").join(file)).unwrap() == fs::read(at("one").join(file)).unwrap(), "{file}");
    }
    // 4, a space, and the three bytes of the euro sign; three layers' three policies and the final one.
    let table = read(&at("one"));
    assert_eq!(table.len(), 5 * 10);
    let shown: Vec<&str> = table.iter().step_by(10).map(|r| r["token"].as_str().unwrap()).collect();
    assert_eq!(shown, ["4", " ", "<0xE2>", "<0x82>", "<0xAC>"]);
    let state = |r: &Value| (r["state"].as_str().unwrap().to_string(), r["layer"].as_u64().unwrap());
    let expected = [1, 2, 3].map(|l| ["layer", "attn", "ffn"].map(|s| (s.to_string(), l))).concat();
    assert_eq!(table[..10].iter().map(state).collect::<Vec<_>>(), [expected, vec![("final".into(), 3)]].concat());
    for row in &table {
        assert_eq!((&row["sample"], row["top_ids"].as_array().unwrap().len()), (&1.into(), 5));
        let (first, log_prob) = (row["top_probs"][0].as_f64().unwrap(), row["log_prob"].as_f64().unwrap());
        assert_eq!(row["rank"] == 1, row["top_ids"][0] == row["token_id"], "{row}");
        assert!(log_prob.exp() <= first * 1.000_01 && row["kl_to_final"].as_f64().unwrap() >= 0.0, "{row}");
        assert!(row["top_tokens"][0].as_str().is_some_and(|t| !t.is_empty()), "{row}");
    }
    // Scoring the final policy says the same of the tokens that came.
    let (scores, dir, data) = (at("scores.jsonl"), at("model"), at("rows.jsonl"));
    ok(&["score", text(&dir), "--data", text(&data), "--plain", "{problem}", "--out", text(&scores)]);
    let scored = rows(&scores)[0]["log_probs"].as_array().unwrap().clone();
    for (row, scored) in table.iter().skip(9).step_by(10).zip(scored) {
        assert!((row["log_prob"].as_f64().unwrap() - scored.as_f64().unwrap()).abs() < 1e-5, "{row} {scored}");
    }
    run(analyze(&at("all"), &["--tokens", "9", "--top", "1", "--lens", "final_norm"]));
    let all = read(&at("all"));
    assert_eq!((all.len(), all[50]["sample"].as_u64(), all[50]["position"].as_u64()), (7 * 10, Some(2), Some(1)));
    assert_eq!(all[0]["top_probs"].as_array().unwrap().len(), 1);
    run(analyze(&at("again"), &["--tokens", "9", "--top", "1", "--lens", "final_norm"]));
    let bytes = |name: &str| fs::read(at(name).join("tokens.parquet")).unwrap();
    assert!(bytes("all") == bytes("again") && bytes("all") != bytes("one"), "the same bytes twice");
    let wrong = |more: &[&str], expected: &[&str]| {
        let args = analyze(&at("none"), more);
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), expected);
        assert!(!at("none").exists(), "a half-written output");
    };
    wrong(&["--tokens", "1", "--top", "0"], &["--top 0", "1 to 259"]);
    wrong(&["--tokens", "1", "--top", "260"], &["--top 260", "259"]);
    wrong(&["--tokens", "0"], &["--tokens 0"]);
    let here = text(root.path());
    fails(&["analyze", here, "--data", text(&data), "--out", text(&at("none")), "--tokens", "1"], &["config.json"]);
}

#[test]
fn checkpoints_are_compared_layer_by_layer() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let before = model(|_| ());
    write(&before, &at("a"));
    // As an update of layer:1 leaves it: embedding and first layer moved, the rest untouched; a whole FFN tensor by 10 %.
    let mut after = before.clone();
    let first = after.layout.layers[0].clone();
    after.params[after.layout.embed.start] += 0.5;
    after.params[first.down].iter_mut().for_each(|x| *x *= 1.1);
    write(&after, &at("b"));
    let (a, b, out) = (at("a"), at("b"), at("diff"));
    let shown = ok(&["diff", text(&a), text(&b), "--out", text(&out)]);
    assert!(shown.contains("Moved") && shown.contains("layers 2-3") && shown.contains('█'), "{shown}");
    assert!(shown.lines().filter(|l| l.starts_with('│')).all(|l| l.chars().count() <= 80), "{shown}");
    let bytes = fs::read(out.join("diff.json")).unwrap();
    let found: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((&found["version"], &found["layers"], &found["unembedding"]), (&1.into(), &3.into(), &Value::Null));
    let down = &found["per_layer"][0]["tensors"]["down_proj"];
    assert!((down["relative"].as_f64().unwrap() - 0.1).abs() < 1e-6, "{down}");
    assert!((down["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-9 && down["parameters"] == 32 * 48, "{down}");
    assert_eq!(found["per_layer"][0]["tensors"]["gate_proj"]["relative"], 0.0);
    assert_eq!(
        (&found["per_layer"][0]["attn"]["rms"], &found["per_layer"][1]["all"]["changed"]),
        (&0.0.into(), &0.0.into())
    );
    assert_eq!(found["embedding"]["changed"].as_f64().unwrap() * (259.0 * 32.0), 1.0);
    ok(&["diff", text(&a), text(&b), "--out", text(&out)]);
    assert!(bytes == fs::read(out.join("diff.json")).unwrap(), "the same bytes twice");
    // Half the precision, same model: what rounding moved, and nothing more.
    let half =
        SaveOptions { dtype: bupo::model::weights::SaveDtype::Bf16, max_shard_bytes: 20_000, ..SaveOptions::default() };
    save(&at("half"), &before.config, &before.layout, &before.params, &half).unwrap();
    ok(&["diff", text(&a), text(&at("half")), "--out", text(&at("rounded"))]);
    let rounded: Value = serde_json::from_slice(&fs::read(at("rounded/diff.json")).unwrap()).unwrap();
    for layer in rounded["per_layer"].as_array().unwrap() {
        let relative = layer["all"]["relative"].as_f64().unwrap();
        assert!(relative > 1e-4 && relative < 1.0 / 256.0, "{relative}");
    }
    assert!(ok(&["diff", text(&a), text(&a)]).contains("The same to the bit: all"));
}

#[test]
fn models_that_cannot_be_compared_say_why() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    write(&model(|_| ()), &at("a"));
    write(&model(|init| init.intermediate_size = 64), &at("wide"));
    write(&model(|init| init.layers = 4), &at("deep"));
    fs::create_dir(at("empty")).unwrap();
    let (a, out) = (at("a"), at("diff"));
    let wrong = |a: &Path, b: &Path, expected: &[&str]| {
        fails(&["diff", text(a), text(b), "--out", text(&out)], expected);
        assert!(!out.exists(), "a half-written output");
    };
    wrong(&a, &at("wide"), &["mlp.gate_proj.weight", "[48, 32]", "[64, 32]"]);
    wrong(&a, &at("deep"), &["model.layers.3", "3 and 4 layers"]);
    wrong(&a, &at("nowhere/at/all"), &["nowhere"]);
    wrong(&at("empty"), &a, &["config.json"]);
    write(&model(|_| ()), &at("broken"));
    let file = at("broken/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    // The last parameter in the file becomes a NaN.
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    wrong(&a, &at("broken"), &["NaN"]);
    fs::write(&file, b"short").unwrap();
    wrong(&a, &at("broken"), &["model.safetensors"]);
}
