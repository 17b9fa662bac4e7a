//! Token x layer maps against PyTorch + transformers (fixtures: tools/golden/make_token_maps.py): entropies, divergences
//! from the final policy, log-probs, ranks and likeliest tokens of every policy, under both lenses, on every device that there is
//! (`common::places`).

#[macro_use]
mod common;

use bupo::analysis::token_map::{TokenRow, map_tokens, policies};
use bupo::analysis::{Lens, Sample};
use bupo::compute::backend::Inspect;
use bupo::model::{Model, Workspace};
use bupo::policy::InternalPolicy;
use common::golden::{CASES, Tensors, folder, sequences};
use common::places::{InBf16, Place};

everywhere!(every_token_under_every_policy_of_every_layer);

const TOP: usize = 5;

/// bf16, about twice what was measured (a run says it, with --nocapture): states of eight bits, in logits that are large.
const TOKENS: InBf16 = InBf16 { kind: "of tokens", worst: 1.6e-1, distance: 5e-2 };

fn samples(case: &str) -> Vec<Sample> {
    sequences(case).into_iter().map(|(ids, response_start)| Sample { ids, response_start }).collect()
}

fn mapped<B: Inspect>(model: &Model<B>, samples: &[Sample], lens: Lens, top: usize) -> Vec<TokenRow> {
    let mut all = Vec::new();
    let mut keep = |rows: Vec<TokenRow>| {
        all.extend(rows);
        Ok(())
    };
    map_tokens(model, &mut Workspace::new(model), samples, lens, top, &mut keep).unwrap();
    all
}

fn every_token_under_every_policy_of_every_layer<B: Inspect>(place: &Place<B>) {
    for case in CASES {
        let model = Model::open(&folder(case)).unwrap().on(place.backend.clone());
        let golden = Tensors::open(&folder(case).join("token_map.safetensors"));
        for (lens, key) in [(Lens::Raw, "raw"), (Lens::FinalNorm, "final_norm")] {
            let rows = mapped(&model, &samples(case), lens, TOP);
            let tokens: usize = samples(case).iter().map(|s| s.ids.len() - s.response_start).sum();
            assert_eq!((tokens, rows.len()), (34, 34 * (3 * 4 + 1)));
            // In bf16 tokens that are about as likely change places.
            if !place.bf16 {
                let ranks: Vec<u32> = rows.iter().map(|r| r.rank).collect();
                assert_eq!(ranks, golden.counts(&format!("{key}.rank")), "{case} {key}");
                let top_ids: Vec<u32> = rows.iter().flat_map(|r| r.top.iter().map(|t| t.0)).collect();
                assert_eq!(top_ids, golden.counts(&format!("{key}.top_ids")), "{case} {key}");
            }
            let top_probs: Vec<f32> = rows.iter().flat_map(|r| r.top.iter().map(|t| t.1)).collect();
            let of = |value: fn(&TokenRow) -> f32| rows.iter().map(value).collect::<Vec<_>>();
            for (name, ours) in [
                ("entropy", of(|r| r.entropy)),
                ("kl_to_final", of(|r| r.kl_to_final)),
                ("log_prob", of(|r| r.log_prob)),
                ("top_probs", top_probs),
            ] {
                place.agree(&TOKENS, &format!("{case} {key} {name}"), &ours, &golden.values(&format!("{key}.{name}")));
            }
            let last: Vec<&TokenRow> = rows.iter().filter(|r| r.policy == InternalPolicy::Final).collect();
            assert!(last.len() == tokens && last.iter().all(|r| r.kl_to_final == 0.0));
        }
    }
}

#[test]
fn rows_come_in_the_order_of_tokens_and_policies_and_samples_do_not_touch_each_other() {
    let model = Model::open(&folder("qwen3")).unwrap();
    let all = samples("qwen3");
    let rows = mapped(&model, &all, Lens::Raw, 3);
    let order = policies(4);
    assert_eq!(
        order.iter().take(4).map(|p| p.to_string()).collect::<Vec<_>>(),
        ["layer:1", "attn:1", "ffn:1", "layer:2"]
    );
    for (i, row) in rows.iter().enumerate() {
        assert_eq!((row.policy, row.top.len()), (order[i % order.len()], 3));
        assert_eq!(row.token, all[row.sample - 1].ids[row.position]);
        let top = &row.top;
        assert!(top.windows(2).all(|t| t[0].1 >= t[1].1) && (row.rank == 1) == (top[0].0 == row.token));
    }
    let places: Vec<(usize, usize)> = rows.iter().step_by(order.len()).map(|r| (r.sample, r.position)).collect();
    assert!(places.is_sorted() && places[0] == (1, all[0].response_start));
    // A sample by itself says the same, bit for bit; under the lens of the final norm the last layer is the final policy.
    let second = mapped(&model, &all[1..2], Lens::Raw, 3);
    let within: Vec<TokenRow> =
        rows.iter().filter(|r| r.sample == 2).map(|r| TokenRow { sample: 1, ..r.clone() }).collect();
    assert_eq!(second, within);
    for token in mapped(&model, &all, Lens::FinalNorm, 3).chunks(order.len()) {
        let (top, last) = (&token[order.len() - 4], &token[order.len() - 1]);
        assert_eq!((top.policy.to_string().as_str(), top.rank), ("layer:4", last.rank));
        assert!(top.kl_to_final < 1e-6, "{}", top.kl_to_final);
    }
}

#[test]
fn samples_that_cannot_be_mapped_are_named() {
    let model = Model::open(&folder("qwen3")).unwrap();
    let good = samples("qwen3").remove(0);
    for (ids, response_start) in [(vec![1, 2], 2), (vec![1, 2], 0), (vec![1, 500], 1)] {
        let samples = [good.clone(), Sample { ids, response_start }];
        let mut told = 0;
        let mut count = |_: Vec<TokenRow>| {
            told += 1;
            Ok(())
        };
        let error = map_tokens(&model, &mut Workspace::new(&model), &samples, Lens::Raw, 1, &mut count).unwrap_err();
        assert!(error.to_string().contains("sample 2") && told == 0, "{error:#}");
    }
}
