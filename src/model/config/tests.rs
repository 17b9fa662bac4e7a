use super::*;
use proptest::prelude::*;

/// A Llama-3-shaped config in the old spelling.
fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "hidden_act": "silu", "pretraining_tp": 1,
        "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
        "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "bos_token_id": 250, "eos_token_id": [251, 252],
    })
}

fn with(mut config: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn without(mut config: Value, key: &str) -> Value {
    config.as_object_mut().unwrap().remove(key);
    config
}

fn read(config: &Value) -> Result<ModelConfig> {
    ModelConfig::from_json(&config.to_string(), Path::new("some/config.json"))
}

/// The message of a refusal; it always names the file.
fn refusal(config: &Value) -> String {
    let message = format!("{:#}", read(config).expect_err("should have been refused"));
    assert!(message.contains("some/config.json"), "{message}");
    message
}

#[test]
fn the_old_spelling_is_read() {
    let c = read(&llama()).unwrap();
    let scaling = Llama3Scaling {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!((c.family, c.layers, c.heads, c.kv_heads, c.head_dim), (Family::Llama, 2, 4, 2, 16));
    assert_eq!((c.rope_theta, c.rope_scaling, c.rms_norm_eps), (500000.0, Some(scaling), 1e-5));
    assert_eq!((c.bos_token_id, c.eos_token_ids, c.tie_word_embeddings), (Some(250), vec![251, 252], true));
}

#[test]
fn the_new_spelling_says_the_same() {
    let mut parameters = llama()["rope_scaling"].clone();
    parameters["rope_theta"] = json!(500000.0);
    let new = without(without(llama(), "rope_theta"), "rope_scaling");
    let new = with(new, json!({"rope_parameters": parameters, "dtype": "bfloat16"}));
    assert_eq!(read(&new).unwrap(), read(&llama()).unwrap());
}

#[test]
fn the_older_key_type_is_read_as_rope_type() {
    let mut scaling = without(llama()["rope_scaling"].clone(), "rope_type");
    scaling["type"] = json!("llama3");
    assert_eq!(read(&with(llama(), json!({"rope_scaling": scaling}))).unwrap(), read(&llama()).unwrap());
}

#[test]
fn absent_keys_take_transformers_defaults() {
    let mut config = llama();
    for key in ["num_key_value_heads", "rope_theta", "rope_scaling", "tie_word_embeddings", "eos_token_id"] {
        config = without(config, key);
    }
    let c = read(&with(config.clone(), json!({"bos_token_id": null}))).unwrap();
    assert_eq!((c.kv_heads, c.rope_theta, c.rope_scaling, c.tie_word_embeddings), (4, 10_000.0, None, false));
    assert_eq!((c.bos_token_id, c.eos_token_ids), (None, vec![]));
    // Qwen3 has a head_dim of its own where the others divide.
    assert_eq!(read(&with(config, json!({"model_type": "qwen3"}))).unwrap().head_dim, 128);
}

#[test]
fn qwen2_configs_of_the_hub_are_read() {
    let qwen = json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
        "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151936
    });
    let c = read(&qwen).unwrap();
    assert_eq!((c.family, c.head_dim, c.eos_token_ids.as_slice()), (Family::Qwen2, 64, &[151645][..]));
}

#[test]
fn to_json_reads_back_equal() {
    for family in ["qwen2", "qwen3", "llama"] {
        let mut c = read(&with(llama(), json!({"model_type": family, "head_dim": 32}))).unwrap();
        for scaling in [c.rope_scaling, None] {
            c.rope_scaling = scaling;
            assert_eq!(read(&c.to_json()).unwrap(), c);
        }
        c.eos_token_ids = vec![];
        assert_eq!(read(&c.to_json()).unwrap(), c);
    }
    let text = read(&with(llama(), json!({"rms_norm_eps": 1e-6}))).unwrap().to_json().to_string();
    assert!(text.contains("\"rms_norm_eps\":1e-6"), "{text}");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        (json!({"model_type": "gemma2"}), vec!["gemma2", "qwen2, qwen3, llama"]),
        (json!({"use_sliding_window": true}), vec!["use_sliding_window", "false"]),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), vec!["sliding_attention", "layer 2"]),
        (json!({"layer_types": ["full_attention"]}), vec!["1 entries", "2"]),
        (json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), vec!["yarn", "llama3"]),
        (json!({"rope_scaling": {"type": "linear", "factor": 4.0}}), vec!["linear"]),
        (json!({"rope_parameters": {"rope_type": "longrope"}}), vec!["rope_parameters.rope_type", "longrope"]),
        (json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}), vec!["between layers"]),
        (json!({"rope_parameters": {"rope_type": "default"}}), vec!["rope_scaling", "rope_parameters"]),
        (json!({"rope_scaling": null, "rope_parameters": {"rope_theta": 1e6}}), vec!["500000", "1000000"]),
        (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), vec!["partial_rotary_factor", "0.5"]),
        (json!({"partial_rotary_factor": 0.25}), vec!["partial_rotary_factor", "0.25"]),
        (json!({"quantization_config": {"quant_method": "gptq"}}), vec!["quantization_config", "bf16"]),
        (json!({"hidden_act": "gelu"}), vec!["hidden_act", "gelu", "silu"]),
        (json!({"attention_bias": true}), vec!["attention_bias", "llama"]),
        (json!({"mlp_bias": true}), vec!["mlp_bias"]),
    ];
    for (change, words) in cases {
        let message = refusal(&with(llama(), change));
        for word in words {
            assert!(message.contains(word), "{word:?} is not in {message:?}");
        }
    }
}

#[test]
fn impossible_values_are_refused_with_key_and_value() {
    let cases = [
        (json!({"vocab_size": 0}), "`vocab_size` is 0"),
        (json!({"hidden_size": 1u64 << 40, "head_dim": 16}), "`hidden_size` is 1099511627776"),
        (json!({"num_hidden_layers": 1.5}), "`num_hidden_layers` is 1.5"),
        (json!({"num_hidden_layers": -1}), "`num_hidden_layers` is -1"),
        (json!({"num_attention_heads": 0}), "`num_attention_heads` is 0"),
        (json!({"num_key_value_heads": 3}), "`num_key_value_heads` is 3"),
        (json!({"hidden_size": 66}), "`hidden_size` is 66"),
        (json!({"head_dim": 15}), "`head_dim` is 15"),
        (json!({"rms_norm_eps": 0}), "`rms_norm_eps` is 0"),
        (json!({"rms_norm_eps": 1e-60}), "`rms_norm_eps` is 0"),
        (json!({"rope_theta": -1.0}), "`rope_theta` is -1"),
        (json!({"rope_theta": "10000"}), "`rope_theta` is \"10000\""),
        (json!({"rope_scaling": 4}), "`rope_scaling` is 4"),
        (json!({"tie_word_embeddings": "yes"}), "`tie_word_embeddings` is \"yes\""),
        (json!({"eos_token_id": [2, -1]}), "`eos_token_id` is [2,-1]"),
        (json!({"bos_token_id": 4294967296u64}), "`bos_token_id` is 4294967296"),
    ];
    for (change, words) in cases {
        let message = refusal(&with(llama(), change));
        assert!(message.contains(words), "{words:?} is not in {message:?}");
    }
    let mut scaling = llama()["rope_scaling"].clone();
    scaling["high_freq_factor"] = json!(1.0);
    assert!(refusal(&with(llama(), json!({"rope_scaling": scaling}))).contains("`high_freq_factor` 1"));
}

#[test]
fn a_missing_key_is_named() {
    for key in ["model_type", "hidden_size", "num_hidden_layers", "vocab_size", "rms_norm_eps", "intermediate_size"] {
        let message = refusal(&without(llama(), key));
        assert!(message.contains(&format!("`{key}` is missing")), "{message}");
    }
    let scaling = without(llama()["rope_scaling"].clone(), "factor");
    let message = refusal(&with(llama(), json!({"rope_scaling": scaling})));
    assert!(message.contains("`rope_scaling.factor` is missing"), "{message}");
}

#[test]
fn a_folder_without_a_config_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = format!("{:#}", ModelConfig::from_dir(dir.path()).unwrap_err());
    assert!(message.contains("config.json"), "{message}");
    let message = format!("{:#}", ModelConfig::from_dir(Path::new("Qwen/Qwen3-4B")).unwrap_err());
    assert!(message.contains("Qwen/Qwen3-4B is not a folder"), "{message}");
}

/// Any JSON value up to a small depth.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,80}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("rope_type|factor|rope_theta|type", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn random_text_is_refused_without_a_panic(text in ".{0,200}") {
        prop_assert!(ModelConfig::from_json(&text, Path::new("c")).is_err());
    }

    #[test]
    fn any_value_under_any_key_is_refused_or_keeps_the_invariants(which in any::<prop::sample::Index>(), value in any_json()) {
        let mut config = with(llama(), json!({"rope_parameters": null, "layer_types": null, "head_dim": null}));
        let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        config[which.get(&keys).as_str()] = value;
        if let Ok(c) = read(&config) {
            prop_assert!(c.check().is_ok() && c.qkv_dim() > 0);
        }
    }
}
