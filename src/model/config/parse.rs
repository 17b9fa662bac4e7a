//! `config.json`, key by key. Whatever would make transformers compute something else is refused by name.

use super::{Family, Llama3Scaling, ModelConfig};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

/// What transformers assumes for all three families when `config.json` has no `rope_theta`.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
/// What transformers assumes when a Qwen3 `config.json` has no `head_dim`.
const QWEN3_HEAD_DIM: usize = 128;

pub(super) fn model_config(text: &str) -> Result<ModelConfig> {
    let json: Value = serde_json::from_str(text).context("it is not valid JSON")?;
    let Value::Object(map) = &json else {
        bail!("it holds {}, expected a JSON object", brief(&json));
    };
    let fields = Fields { map, prefix: "" };
    let family = family(&fields)?;
    refuse_unsupported(&fields, family)?;

    let hidden_size = fields.required("hidden_size", Fields::size)?;
    let heads = fields.required("num_attention_heads", Fields::size)?;
    let layers = fields.required("num_hidden_layers", Fields::size)?;
    check_layer_types(&fields, layers)?;
    let (rope_theta, rope_scaling) = rope(&fields)?;
    let config = ModelConfig {
        family,
        vocab_size: fields.required("vocab_size", Fields::size)?,
        hidden_size,
        layers,
        heads,
        kv_heads: fields.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim: head_dim(&fields, family, hidden_size, heads)?,
        intermediate_size: fields.required("intermediate_size", Fields::size)?,
        rms_norm_eps: fields.required("rms_norm_eps", Fields::number)? as f32,
        rope_theta,
        rope_scaling,
        // False is transformers' default for all three families.
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        max_position_embeddings: fields.required("max_position_embeddings", Fields::size)?,
        bos_token_id: fields.token_id("bos_token_id")?,
        eos_token_ids: fields.token_ids("eos_token_id")?,
    };
    config.check()?;
    Ok(config)
}

fn family(fields: &Fields) -> Result<Family> {
    match fields.required("model_type", Fields::text)? {
        "qwen2" => Ok(Family::Qwen2),
        "qwen3" => Ok(Family::Qwen3),
        "llama" => Ok(Family::Llama),
        other => bail!("`model_type` is {other:?}, which is not supported; supported are {}", Family::NAMES.join(", ")),
    }
}

fn refuse_unsupported(fields: &Fields, family: Family) -> Result<()> {
    if fields.flag("use_sliding_window")? == Some(true) {
        bail!(
            "`use_sliding_window` is true: attention in a sliding window is not supported. Set it to false if no \
             context will be longer than `sliding_window`; below that length the two are the same"
        );
    }
    if fields.get("quantization_config").is_some() {
        bail!(
            "it has a `quantization_config`: quantised weights are not supported. Use the checkpoint in f32, f16 or \
             bf16 that it was made from"
        );
    }
    if let Some(activation) = fields.text("hidden_act")?
        && activation != "silu"
    {
        bail!("`hidden_act` is {activation:?}, expected \"silu\": another activation is not supported");
    }
    // Qwen2 always has these biases and no key for them.
    if family != Family::Qwen2 && fields.flag("attention_bias")? == Some(true) {
        bail!(
            "`attention_bias` is true, expected false: {} with biases in its attention is not supported",
            family.model_type()
        );
    }
    if fields.flag("mlp_bias")? == Some(true) {
        bail!("`mlp_bias` is true, expected false: biases in the feed-forward network are not supported");
    }
    refuse_partial_rotary(fields)
}

fn refuse_partial_rotary(fields: &Fields) -> Result<()> {
    match fields.number("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => bail!(
            "`{}partial_rotary_factor` is {factor}, expected 1: RoPE on a part of each head is not supported",
            fields.prefix
        ),
        _ => Ok(()),
    }
}

fn check_layer_types(fields: &Fields, layers: usize) -> Result<()> {
    let Some(value) = fields.get("layer_types") else { return Ok(()) };
    let Value::Array(types) = value else {
        return Err(fields.wrong("layer_types", value, "a list of strings"));
    };
    for (i, kind) in types.iter().enumerate() {
        ensure!(
            kind.as_str() == Some("full_attention"),
            "`layer_types` says {} for layer {}, expected \"full_attention\": no other kind is supported",
            brief(kind),
            i + 1
        );
    }
    ensure!(
        types.len() == layers,
        "`layer_types` has {} entries, expected {layers}, one for each of `num_hidden_layers`",
        types.len()
    );
    Ok(())
}

fn head_dim(fields: &Fields, family: Family, hidden_size: usize, heads: usize) -> Result<usize> {
    if let Some(head_dim) = fields.size("head_dim")? {
        return Ok(head_dim);
    }
    if family == Family::Qwen3 && !fields.map.contains_key("head_dim") {
        return Ok(QWEN3_HEAD_DIM);
    }
    ensure!(
        heads > 0 && hidden_size.is_multiple_of(heads),
        "`hidden_size` is {hidden_size} and `num_attention_heads` is {heads}: without `head_dim` the first must be a \
         multiple of the second"
    );
    Ok(hidden_size / heads)
}

/// RoPE's base and scaling from every place that states them; two places that differ are an error, for
/// transformers 4 would follow one and transformers 5 the other.
fn rope(fields: &Fields) -> Result<(f64, Option<Llama3Scaling>)> {
    let mut theta = fields.number("rope_theta")?;
    let mut scaling: Option<(&str, Option<Llama3Scaling>)> = None;
    for (key, prefix) in [("rope_scaling", "rope_scaling."), ("rope_parameters", "rope_parameters.")] {
        let Some(value) = fields.get(key) else { continue };
        let Value::Object(map) = value else {
            return Err(fields.wrong(key, value, "an object or null"));
        };
        if map.is_empty() {
            continue;
        }
        let inner = Fields { map, prefix };
        refuse_partial_rotary(&inner)?;
        if let Some(got) = inner.number("rope_theta")? {
            ensure!(
                theta.is_none_or(|theta| theta == got),
                "RoPE's base is stated twice and differs: {} and `{key}.rope_theta` {got}. Keep the right one",
                theta.unwrap_or_default()
            );
            theta = Some(got);
        }
        let got = rope_scaling(&inner)?;
        if let Some((other, expected)) = &scaling {
            ensure!(*expected == got, "`{other}` and `{key}` state different RoPE scalings. Keep the right one");
        }
        scaling = Some((key, got));
    }
    Ok((theta.unwrap_or(DEFAULT_ROPE_THETA), scaling.and_then(|(_, scaling)| scaling)))
}

fn rope_scaling(fields: &Fields) -> Result<Option<Llama3Scaling>> {
    let kind = match fields.text("rope_type")? {
        Some(kind) => Some(kind),
        None => fields.text("type")?,
    };
    match kind {
        None if fields.map.values().any(Value::is_object) => {
            bail!("`{}*` differs between layers, which is not supported", fields.prefix)
        }
        None | Some("default") => Ok(None),
        Some("llama3") => Ok(Some(Llama3Scaling {
            factor: fields.required("factor", Fields::number)?,
            low_freq_factor: fields.required("low_freq_factor", Fields::number)?,
            high_freq_factor: fields.required("high_freq_factor", Fields::number)?,
            original_max_position_embeddings: fields.required("original_max_position_embeddings", Fields::size)?,
        })),
        Some(other) => bail!(
            "`{}rope_type` is {other:?}, which is not supported; supported are \"default\" and \"llama3\". For \
             contexts within the model's original length the scaling can be removed",
            fields.prefix
        ),
    }
}

/// Typed access to a JSON object; null counts as absent, as in transformers.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// Written before each key in messages: empty, or the parent's key and a dot.
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, got: &Value, expected: &str) -> anyhow::Error {
        anyhow!("`{}{key}` is {}, expected {expected}", self.prefix, brief(got))
    }

    fn required<T>(&self, key: &str, read: impl Fn(&Self, &str) -> Result<Option<T>>) -> Result<T> {
        read(self, key)?.with_context(|| format!("`{}{key}` is missing", self.prefix))
    }

    fn read<T>(&self, key: &str, expected: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| self.wrong(key, value, expected)),
        }
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a whole number", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", Value::as_f64)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", Value::as_bool)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "a string", Value::as_str)
    }

    fn token_id(&self, key: &str) -> Result<Option<u32>> {
        self.read(key, "a token id", as_token_id)
    }

    /// One id, a list of ids, or none.
    fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let ids = self.read(key, "a token id or a list of token ids", |value| match value {
            Value::Array(ids) => ids.iter().map(as_token_id).collect(),
            id => Some(vec![as_token_id(id)?]),
        });
        Ok(ids?.unwrap_or_default())
    }
}

fn as_token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// A value for a message, cut where it is long.
fn brief(value: &Value) -> String {
    const MAX_CHARS: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
