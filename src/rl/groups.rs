//! Parameter groups: parts of the model that learn at a rate of their own, or not at all.
//!
//! The paper compares BuPO with two of them (its table 11): layers up to `l` frozen, and a tenth of the learning rate above `l`.

use crate::model::{LayerIndex, ParamLayout, TensorSpec};
use anyhow::{Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// `[[optimizer.group]]`: what is in no group learns at the full rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// Layers counted from 1, `"6"`, `"1-6"` or `"7-"` (to the last); or `"embedding"`, `"unembedding"`, `"final_norm"`.
    pub layers: String,
    /// Times the learning rate. 0 freezes: no gradient is computed, no moments are kept, and no weight decays.
    pub lr_scale: f64,
}

impl GroupConfig {
    /// Messages name the key; the caller names its section.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.lr_scale >= 0.0 && self.lr_scale.is_finite(),
            "group.lr_scale = {}: expected 0 (frozen) or a positive number such as 0.1",
            self.lr_scale
        );
        Ok(())
    }

    /// Stretches of the flat array that the group covers: weights, and adapters where there are any.
    fn ranges(&self, layout: &ParamLayout) -> Result<[Range<usize>; 2]> {
        let range = match self.layers.as_str() {
            "embedding" => layout.embed.clone(),
            "unembedding" => layout.unembed.clone(),
            "final_norm" => layout.final_norm.clone(),
            layers => {
                let some = LayerIndex::parse_some(layers, layout.layers.len()).map_err(|reason| {
                    anyhow!("group.layers = {layers:?}: {reason}, \"embedding\", \"unembedding\" or \"final_norm\"")
                })?;
                let (first, last) = (some.start().index(), some.end().index());
                let adapters =
                    layout.adapter.as_ref().map(|a| a.layers[first].range().start..a.layers[last].range().end);
                return Ok([
                    layout.layers[first].attn_norm.start..layout.layers[last].down.end,
                    adapters.unwrap_or_default(),
                ]);
            }
        };
        Ok([range, 0..0])
    }
}

/// Factor on the learning rate of every tensor of the layout, `[tensors]`; with an adapter, 0 for everything else. Errors: a
/// group outside of the model, one without anything to train, a tensor in two groups, nothing left to train.
pub fn lr_scales(groups: &[GroupConfig], layout: &ParamLayout) -> Result<Vec<f64>> {
    let mut scales: Vec<Option<f64>> = vec![None; layout.tensors.len()];
    let trainable = layout.trainable();
    for group in groups {
        let ranges = group.ranges(layout)?;
        let inside = |offset: &usize| ranges.iter().any(|range| range.contains(offset)) && trainable.contains(offset);
        let covered = layout.tensors.iter().zip(&mut scales).filter(|(t, _)| inside(&t.offset));
        let mut count = 0;
        for (tensor, scale) in covered {
            count += 1;
            if scale.is_some() {
                let tied =
                    if layout.embed == layout.unembed { " (this model ties embedding and unembedding)" } else { "" };
                bail!("group.layers = {:?}: {} is in another group already{tied}", group.layers, tensor.name);
            }
            *scale = Some(group.lr_scale);
        }
        ensure!(
            count > 0,
            "group.layers = {:?}: with [lora] only adapters are trained, and there are none: drop the group, or see lora.layers",
            group.layers
        );
    }
    let frozen = |tensor: &TensorSpec| if trainable.contains(&tensor.offset) { 1.0 } else { 0.0 };
    let scales: Vec<f64> = scales.iter().zip(&layout.tensors).map(|(s, t)| s.unwrap_or_else(|| frozen(t))).collect();
    ensure!(scales.iter().any(|s| *s > 0.0), "every group has lr_scale = 0: nothing is left to train");
    Ok(scales)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::init::InitConfig;

    fn layout(tied: bool) -> ParamLayout {
        let init = InitConfig { layers: 3, tie_word_embeddings: tied, ..InitConfig::default() };
        ParamLayout::new(&init.model_config(50).unwrap())
    }

    fn scales(layout: &ParamLayout, groups: &[(&str, f64)]) -> Result<Vec<(String, f64)>> {
        let group = |(layers, lr_scale): &(&str, f64)| GroupConfig { layers: layers.to_string(), lr_scale: *lr_scale };
        let scales = lr_scales(&groups.iter().map(group).collect::<Vec<_>>(), layout)?;
        Ok(layout.tensors.iter().map(|t| t.name.clone()).zip(scales).collect())
    }

    #[test]
    fn groups_name_layers_as_people_count_them() {
        let layout = layout(false);
        for (name, scale) in
            scales(&layout, &[("1-2", 0.0), ("3-", 0.1), ("final_norm", 0.5), ("unembedding", 2.0)]).unwrap()
        {
            let expected = match name.as_str() {
                "model.norm.weight" => 0.5,
                "lm_head.weight" => 2.0,
                "model.embed_tokens.weight" => 1.0,
                name if name.starts_with("model.layers.2.") => 0.1,
                _ => 0.0,
            };
            assert_eq!(scale, expected, "{name}");
        }
        assert!(scales(&layout, &[]).unwrap().iter().all(|(_, s)| *s == 1.0));
    }

    #[test]
    fn groups_that_make_no_sense_are_refused() {
        let error = |tied: bool, groups: &[(&str, f64)]| scales(&layout(tied), groups).unwrap_err().to_string();
        for bad in ["", "0", "4", "2-4", "-2", "a", "1-2-3", "embed", "99999999999999999999"] {
            let message = error(false, &[(bad, 0.1)]);
            assert!(message.contains("from 1 to 3") && message.contains(bad), "{bad}: {message}");
        }
        assert!(error(false, &[("3-1", 0.1)]).contains("above the last"));
        assert!(error(false, &[("1-2", 0.1), ("2", 0.0)]).contains("model.layers.1."));
        assert!(error(true, &[("embedding", 0.1), ("unembedding", 0.0)]).contains("ties embedding"));
        assert!(error(true, &[("1-3", 0.0), ("embedding", 0.0), ("final_norm", 0.0)]).contains("nothing is left"));
        let check = |lr_scale| GroupConfig { layers: "1".into(), lr_scale }.check();
        assert!(check(-0.1).is_err() && check(f64::NAN).is_err() && check(0.0).is_ok());
    }
}
