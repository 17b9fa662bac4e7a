//! Perplexity of a policy on given responses: how well it still speaks what it was not trained on (paper, section 8).

use super::flow::{PACK_TOKENS, Sample, check};
use crate::compute::{Backend, Packing};
use crate::model::{Model, Workspace};
use crate::policy::{InternalPolicy, Targets};
use anyhow::{Context, Result, ensure};

/// `exp` of the mean negative log-prob (nats) of all response tokens together, at temperature 1: a long response counts as
/// many times as it has tokens. A model that gives a token no probability at all has an infinite one.
///
/// Errors: no samples, or a sample that [`Flow::add`](super::Flow::add) would refuse.
pub fn perplexity<B: Backend>(
    policy: InternalPolicy,
    model: &Model<B>,
    ws: &mut Workspace<B>,
    samples: &[Sample],
) -> Result<f64> {
    ensure!(!samples.is_empty(), "no responses whose perplexity could be taken");
    for (i, sample) in samples.iter().enumerate() {
        check(model, sample).with_context(|| format!("sample {}", i + 1))?;
    }
    let (mut sum, mut tokens, mut rest) = (0f64, 0, samples);
    while !rest.is_empty() {
        let (mut packing, mut targets, mut taken) = (Packing::new(), Targets::default(), 0);
        for sample in rest {
            let ids = &sample.ids[..sample.ids.len() - 1];
            if taken > 0 && packing.rows() + ids.len() > PACK_TOKENS {
                break;
            }
            let first = packing.push(ids).start;
            targets.push_response(&sample.ids, first, sample.response_start);
            taken += 1;
        }
        let stats = policy.score(model, ws, &packing, &targets, 1.0);
        sum -= stats.log_probs.iter().map(|p| *p as f64).sum::<f64>();
        tokens += targets.len();
        rest = &rest[taken..];
    }
    model.backend.status()?;
    Ok((sum / tokens as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ParamLayout;
    use crate::model::init::{InitConfig, random_params};

    fn model(std: f32) -> Model {
        let init =
            InitConfig { hidden_size: 16, layers: 2, heads: 2, kv_heads: 1, head_dim: 8, ..InitConfig::default() };
        let init = InitConfig { intermediate_size: 24, vocab_size: Some(50), ..init };
        let config = init.model_config(50).unwrap();
        let layout = ParamLayout::new(&config);
        let params = random_params(&config, &layout, std, 1);
        Model::new(config, params)
    }

    fn samples() -> Vec<Sample> {
        let ids = |n: u32, seed: u32| (0..n).map(|i| (i * 7 + seed) % 50).collect();
        vec![Sample { ids: ids(9, 1), response_start: 4 }, Sample { ids: ids(5, 2), response_start: 1 }]
    }

    #[test]
    fn it_is_the_exponential_of_the_mean_negative_log_prob_of_every_response_token() {
        let model = model(0.3);
        let mut ws = Workspace::new(&model);
        let (mut sum, mut tokens) = (0.0, 0.0);
        for sample in samples() {
            let mut targets = Targets::default();
            targets.push_response(&sample.ids, 0, sample.response_start);
            let packing = Packing::single(&sample.ids[..sample.ids.len() - 1]);
            let stats = InternalPolicy::Final.score(&model, &mut ws, &packing, &targets, 1.0);
            stats.log_probs.iter().for_each(|p| sum -= *p as f64);
            tokens += stats.log_probs.len() as f64;
        }
        let got = perplexity(InternalPolicy::Final, &model, &mut ws, &samples()).unwrap();
        assert_eq!(tokens, 9.0);
        assert!((got - (sum / tokens).exp()).abs() < 1e-4 * got, "{got}");
    }

    #[test]
    fn a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large() {
        // Parameters near 0: every logit is.
        let model = model(1e-6);
        let got = perplexity(InternalPolicy::Final, &model, &mut Workspace::new(&model), &samples()).unwrap();
        assert!((got - 50.0).abs() < 1e-2, "{got}");
    }

    #[test]
    fn samples_without_a_response_are_refused() {
        let model = model(0.3);
        let mut ws = Workspace::new(&model);
        let mut error =
            |samples: &[Sample]| perplexity(InternalPolicy::Final, &model, &mut ws, samples).unwrap_err().to_string();
        assert!(error(&[]).contains("no responses"));
        assert!(error(&[Sample { ids: vec![1, 2], response_start: 2 }]).contains("sample 1"));
    }
}
