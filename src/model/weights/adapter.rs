//! Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! What an adapter changes is read from its tensors' names (`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`), so that it
//! does not matter how the configuration chose them. Whatever PEFT would compute and this decoder would not is refused by name.

use super::load::{Tensors, convert};
use super::name_some;
use super::save::{SaveDtype, write_json, write_shard};
use super::shard::Shard;
use crate::compute::Backend;
use crate::model::lora::{LoraConfig, MAX_RANK, Target};
use crate::model::{Model, ModelConfig, ParamLayout, TensorSpec};
use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// PEFT's wrapping of the model, before the names of the base's own modules.
const PREFIX: &str = "base_model.model.";
const FILE_PREFIX: &str = "base_model.model.model.layers.";

/// Keys that are read here.
const READ: [&str; 9] = [
    "peft_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "layers_to_transform",
    "init_lora_weights",
    "bias",
];
/// Keys that change nothing in a finished adapter.
const HARMLESS: [&str; 17] = [
    "task_type",
    "inference_mode",
    "auto_mapping",
    "revision",
    "peft_version",
    "lora_dropout",
    "layers_pattern",
    "exclude_modules",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "ensure_weight_tying",
];

/// True of a folder that holds an adapter in place of a model.
pub fn is_adapter(dir: &Path) -> bool {
    dir.join(CONFIG).is_file()
}

/// What `adapter_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    pub lora: LoraConfig,
    /// The model that the adapter is of: a folder, or a name on the hub.
    pub base: String,
}

impl AdapterConfig {
    /// Reads the configuration of an adapter's folder. Errors: another kind of adapter, or parts of LoRA that are not supported, by
    /// their keys.
    pub fn from_dir(dir: &Path) -> Result<AdapterConfig> {
        let path = dir.join(CONFIG);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        AdapterConfig::from_json(&text).with_context(|| format!("cannot use {}", path.display()))
    }

    fn from_json(text: &str) -> Result<AdapterConfig> {
        let json: Map<String, Value> = serde_json::from_str(text).context("it is no JSON object")?;
        let text = |key: &str| json.get(key).and_then(Value::as_str);
        let kind = json.get("peft_type").unwrap_or(&Value::Null);
        ensure!(kind == "LORA", "`peft_type` is {kind}, expected \"LORA\": other kinds of adapters are not supported");
        let bias = json.get("bias").unwrap_or(&Value::Null);
        ensure!(
            *bias == Value::Null || bias == "none",
            "`bias` is {bias}, expected \"none\": trained biases are not supported"
        );
        // PiSSA, OLoRA and others begin by changing the base's weights, which the adapter alone does not say.
        let begun = json.get("init_lora_weights").unwrap_or(&Value::Null);
        let plain = matches!(begun, Value::Null | Value::Bool(_))
            || ["gaussian", "eva", "orthogonal"].iter().any(|n| begun == n);
        ensure!(
            plain,
            "`init_lora_weights` is {begun}: such an adapter belongs to base weights that were changed. Convert it with PEFT \
             (save_pretrained with path_initial_model_for_weight_conversion)"
        );
        let empty = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        for (key, value) in json.iter().filter(|(key, _)| ![&READ[..], &HARMLESS].concat().contains(&key.as_str())) {
            ensure!(
                empty(value),
                "`{key}` is {value}: that part of LoRA is not supported. Merge the adapter with PEFT, and use the result"
            );
        }
        let rank = json.get("r").and_then(Value::as_u64).filter(|r| (1..=MAX_RANK as u64).contains(r));
        let rank = rank
            .with_context(|| format!("`r` is {}, expected 1 to {MAX_RANK}", json.get("r").unwrap_or(&Value::Null)))?;
        let alpha = json.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| (*alpha as f32).is_finite());
        let alpha = alpha.with_context(|| {
            format!("`lora_alpha` is {}, expected a number", json.get("lora_alpha").unwrap_or(&Value::Null))
        })?;
        let base = text("base_model_name_or_path").filter(|base| !base.is_empty()).context(
            "`base_model_name_or_path` is missing: write the path of the model that the adapter was trained on, or its name on the hub",
        )?;
        let rslora = json.get("use_rslora").and_then(Value::as_bool).unwrap_or(false);
        let lora = LoraConfig { rank: rank as usize, alpha, rslora, targets: Vec::new(), layers: None };
        Ok(AdapterConfig { lora, base: base.to_string() })
    }
}

/// Puts the adapter of a folder beside the linear layers of its base, which is `model`. Errors: those of [`read_adapter`].
pub fn load_adapter(dir: &Path, model: &mut Model) -> Result<()> {
    let (layout, values) = read_adapter(dir, &model.config, &model.layout)?;
    model.params.reserve_exact(values.len());
    model.params.extend_from_slice(&values);
    model.layout = layout;
    Ok(())
}

/// The adapter of a folder, whose base has the layout `base`: the layout with it, and its values, `[trainable]`.
///
/// Errors: a configuration that is not supported, tensors that are missing, of unknown modules, of another shape, or not finite.
pub(super) fn read_adapter(dir: &Path, config: &ModelConfig, base: &ParamLayout) -> Result<(ParamLayout, Vec<f32>)> {
    ensure!(
        base.adapter.is_none(),
        "the base of {} is an adapter itself: merge that first (bupo merge)",
        dir.display()
    );
    let AdapterConfig { mut lora, base: name } = AdapterConfig::from_dir(dir)?;
    let path = dir.join(WEIGHTS);
    ensure!(
        path.is_file(),
        "{} holds no {WEIGHTS}{}",
        dir.display(),
        if dir.join("adapter_model.bin").is_file() {
            ": convert adapter_model.bin, by loading and saving it with PEFT"
        } else {
            ""
        }
    );
    let shards = [Shard::open(&path)?];
    let places = places(&shards[0], &name, config.layers)?;
    lora.targets = Target::ALL.into_iter().filter(|target| places.iter().any(|(_, at)| at == target)).collect();
    let has = |layer: usize, target: Target| places.contains(&(layer, target));
    let layout = base.clone().with_adapters_at(config, &lora, &name, &has);
    let specs: Vec<(String, &TensorSpec)> =
        layout.trainable_tensors().iter().map(|spec| (format!("{PREFIX}{}", spec.name), spec)).collect();
    for (tensor, spec) in &specs {
        let file = path.display();
        let stored = shards[0].get(tensor);
        let stored = stored.with_context(|| format!("{file} has no {tensor}, but the other factor of that layer"))?;
        ensure!(
            stored.shape == spec.shape,
            "{tensor} has shape {:?} in {file}, expected {:?} by `r` = {} and the base {name}",
            stored.shape,
            spec.shape,
            lora.rank
        );
        ensure!(
            matches!(stored.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16),
            "{tensor} has dtype {} in {file}, expected F32, F16 or BF16",
            stored.dtype
        );
    }
    let mut values = vec![0f32; layout.trainable().len()];
    let (tensors, mut rest, mut pieces) = (Tensors::find(dir, &shards)?, values.as_mut_slice(), Vec::new());
    for (tensor, spec) in &specs {
        let (out, after) = std::mem::take(&mut rest).split_at_mut(spec.len());
        rest = after;
        pieces.extend(tensors.pieces(tensor, out)?);
    }
    convert(pieces)?;
    Ok((layout, values))
}

/// The layers (from 0) and modules that a file's tensors belong to.
fn places(shard: &Shard, base: &str, layers: usize) -> Result<BTreeSet<(usize, Target)>> {
    let modules: BTreeMap<String, Target> = Target::ALL.into_iter().map(|target| (target.module(), target)).collect();
    let parse = |name: &str| {
        let (layer, rest) = name.strip_prefix(FILE_PREFIX)?.split_once('.')?;
        let module = rest.strip_suffix(".lora_A.weight").or_else(|| rest.strip_suffix(".lora_B.weight"))?;
        Some((layer.parse::<usize>().ok()?, *modules.get(module)?))
    };
    let unknown: Vec<&str> = shard.names().filter(|name| parse(name).is_none()).collect();
    ensure!(
        unknown.is_empty(),
        "{} holds tensors of modules that an adapter cannot be beside here: {}. Expected {FILE_PREFIX}N.MODULE.lora_A.weight and \
         lora_B.weight, with MODULE one of {}",
        shard.path.display(),
        name_some(unknown),
        modules.keys().cloned().collect::<Vec<_>>().join(", ")
    );
    let places: BTreeSet<(usize, Target)> = shard.names().filter_map(parse).collect();
    ensure!(!places.is_empty(), "{} holds no tensors", shard.path.display());
    if let Some((layer, _)) = places.iter().find(|(layer, _)| *layer >= layers) {
        bail!(
            "{} has an adapter of model.layers.{layer}, but the base {base} has model.layers.0 to {}: it belongs to another model",
            shard.path.display(),
            layers - 1
        );
    }
    Ok(places)
}

/// Writes a model's adapter to `dir`, which is made if it is not there, as PEFT opens it. Errors: a model without an adapter, values that
/// are not finite; then nothing is written.
pub fn save_adapter<B: Backend>(dir: &Path, model: &Model<B>) -> Result<()> {
    let adapter = model.layout.adapter.as_ref().context("this model has no adapter to save")?;
    let params = model.host_params();
    let values = &params[adapter.range.clone()];
    ensure!(
        values.iter().all(|x| x.is_finite()),
        "the adapter holds values that are not finite: nothing was written to {}",
        dir.display()
    );
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let specs: Vec<TensorSpec> = model
        .layout
        .trainable_tensors()
        .iter()
        .map(|spec| TensorSpec {
            name: format!("{PREFIX}{}", spec.name),
            offset: spec.offset - adapter.range.start,
            ..spec.clone()
        })
        .collect();
    write_shard(dir, WEIGHTS, &specs, values, SaveDtype::F32)?;
    let lora = &adapter.config;
    let chosen: Vec<usize> = (0..adapter.layers.len()).filter(|i| !adapter.layers[*i].range().is_empty()).collect();
    let some = chosen.len() < adapter.layers.len();
    let alpha =
        if lora.alpha.fract() == 0.0 && lora.alpha < 1e15 { json!(lora.alpha as u64) } else { json!(lora.alpha) };
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": lora.rank,
        "lora_alpha": alpha,
        "use_rslora": lora.rslora,
        "use_dora": false,
        "target_modules": lora.targets.iter().map(|target| target.name()).collect::<Vec<_>>(),
        "layers_to_transform": if some { json!(chosen) } else { Value::Null },
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "revision": null,
        "inference_mode": true,
    });
    write_json(dir, CONFIG, &config)
}

/// The folder or name of the base of the adapter in `dir`: as it is written, or, where that leads nowhere, seen from `dir`.
pub fn base_of(dir: &Path) -> Result<PathBuf> {
    let base = PathBuf::from(AdapterConfig::from_dir(dir)?.base);
    let beside = dir.join(&base);
    Ok(if !base.is_dir() && beside.is_dir() { beside } else { base })
}
