use super::terms::*;
use super::*;
use proptest::prelude::*;

const LN_2: f64 = std::f64::consts::LN_2;

fn term(log_ratio: f64, advantage: f64) -> PolicyTerm {
    policy_term(&LossConfig::default(), log_ratio - 1.0, -1.0, advantage)
}

fn close(got: f64, expected: f64, tolerance: f64) {
    assert!((got - expected).abs() <= tolerance * (1.0 + expected.abs()), "{got} {expected}");
}

#[test]
fn an_unmoved_policy_has_the_policy_gradient() {
    for advantage in [2.0, -2.0, 0.0] {
        let term = term(0.0, advantage);
        assert_eq!((term.loss, term.d_log_prob, term.clip), (-advantage, -advantage, Clip::None));
    }
}

#[test]
fn each_clip_stands_on_its_own_side() {
    // r = 2: the gain is capped at 1.2; a loss is not.
    let up = term(LN_2, 3.0);
    close(up.loss, -3.6, 1e-15);
    assert_eq!((up.d_log_prob, up.clip), (0.0, Clip::High));
    let uncapped = term(LN_2, -3.0);
    close(uncapped.loss, 6.0, 1e-15);
    close(uncapped.d_log_prob, 6.0, 1e-15);
    assert_eq!(uncapped.clip, Clip::None);
    // r = 1/2: a loss cannot shrink below 0.8 of it; a gain can.
    let down = term(-LN_2, -3.0);
    close(down.loss, 2.4, 1e-15);
    assert_eq!((down.d_log_prob, down.clip), (0.0, Clip::Low));
    close(term(-LN_2, 3.0).loss, -1.5, 1e-15);
    close(term(-LN_2, 3.0).d_log_prob, -1.5, 1e-15);
    // r = 16: beyond the dual clip of 10, only where A < 0.
    let dual = term(4.0 * LN_2, -3.0);
    assert_eq!((dual.loss, dual.d_log_prob, dual.clip), (30.0, 0.0, Clip::Dual));
    assert_eq!(term(4.0 * LN_2, 3.0).clip, Clip::High);
    let off = LossConfig { dual_clip: None, ..Default::default() };
    close(policy_term(&off, 4.0 * LN_2, 0.0, -3.0).loss, 48.0, 1e-14);
    // Separate clips: 1 + 0.5 above, 1 - 0.1 below.
    let uneven = LossConfig { clip_low: 0.1, clip_high: 0.5, ..Default::default() };
    close(policy_term(&uneven, LN_2, 0.0, 1.0).loss, -1.5, 1e-15);
    close(policy_term(&uneven, -LN_2, 0.0, -1.0).loss, 0.9, 1e-15);
}

#[test]
fn log_ratios_are_clamped_at_twenty_and_have_no_gradient_beyond() {
    let off = LossConfig { dual_clip: None, ..Default::default() };
    let at = policy_term(&off, 20.0, 0.0, -1.0);
    assert_eq!((at.loss, at.d_log_prob), (20f64.exp(), 20f64.exp()));
    for (log_ratio, ratio) in [(20.5, 20f64.exp()), (1e30, 20f64.exp()), (f64::INFINITY, 20f64.exp())] {
        let beyond = policy_term(&off, log_ratio, 0.0, -1.0);
        assert_eq!((beyond.loss, beyond.d_log_prob), (ratio, 0.0));
    }
    let below = policy_term(&off, -21.0, 0.0, 1.0);
    assert_eq!((below.loss, below.d_log_prob), (-(-20f64).exp(), 0.0));
}

#[test]
fn kl_estimators_and_their_clamps() {
    // d = ln 2: k1 = -ln 2, k2 = ln^2 2 / 2, k3 = 2 - 1 - ln 2.
    assert_eq!(kl_term(KlEstimator::K1, -LN_2, 0.0), (-LN_2, 1.0));
    assert_eq!(kl_term(KlEstimator::K2, -LN_2, 0.0), (LN_2 * LN_2 / 2.0, -LN_2));
    let (kl, d_kl) = kl_term(KlEstimator::K3, -LN_2, 0.0);
    close(kl, 1.0 - LN_2, 1e-15);
    close(d_kl, -1.0, 1e-15);
    // d = -ln 2: k3 = 1/2 - 1 + ln 2.
    close(kl_term(KlEstimator::K3, LN_2, 0.0).0, LN_2 - 0.5, 1e-15);
    // e^3 - 4 = 16.1 is clamped to 10; d = -15: e^-15 + 14 too; d = -5: e^-5 + 4 is not. d = 1e-9: d^2 / 2.
    assert_eq!(kl_term(KlEstimator::K3, -3.0, 0.0), (10.0, 0.0));
    assert_eq!(kl_term(KlEstimator::K3, 15.0, 0.0), (10.0, 0.0));
    close(kl_term(KlEstimator::K3, 5.0, 0.0).0, (-5f64).exp() + 4.0, 1e-15);
    for log_prob in [-20.5, 20.5, -1e30, 1e30, f64::NEG_INFINITY] {
        assert_eq!(kl_term(KlEstimator::K3, log_prob, 0.0), (10.0, 0.0));
    }
    assert!(kl_term(KlEstimator::K3, f64::NAN, 0.0).0.is_nan());
    assert!(kl_term(KlEstimator::K3, 1e-9, 0.0).0 >= 0.0);
}

#[test]
fn weights_name_their_denominators() {
    // Two responses of 1 and 3 tokens, of at most 8.
    let of = |aggregation| weights(aggregation, &[1, 3], 8);
    assert_eq!(of(Aggregation::TokenMean), [0.25, 0.25]);
    assert_eq!(of(Aggregation::SeqMeanTokenMean), [0.5, 1.0 / 6.0]);
    assert_eq!(of(Aggregation::SeqMeanTokenSum), [0.5, 0.5]);
    assert_eq!(of(Aggregation::SeqMeanTokenSumNorm), [0.0625, 0.0625]);
    for aggregation in [Aggregation::TokenMean, Aggregation::SeqMeanTokenMean] {
        assert!(weights(aggregation, &[0, 0], 0).iter().all(|weight| weight.is_finite()));
    }
}

fn tokens<'a>(data: &'a [Vec<f32>; 5], weights: &'a [f64]) -> Tokens<'a> {
    let [log_probs, old_log_probs, advantages, entropies, ref_log_probs] = data;
    Tokens {
        log_probs,
        old_log_probs,
        advantages,
        weights,
        entropies: Some(entropies),
        ref_log_probs: Some(ref_log_probs),
        factors: None,
        responses: None,
    }
}

#[test]
fn loss_gradient_and_statistics_of_two_tokens() {
    // r = 1 and 2, A = 1 and 1, weights 1/4 and 3/4: policy losses -1 and -1.2. k1 to the reference: log_prob + 2.
    let data = [vec![-1.0, -1.0 + LN_2 as f32], vec![-1.0, -1.0], vec![1.0, 1.0], vec![0.5, 1.5], vec![-2.0, -2.0]];
    let config = LossConfig { kl_coef: 0.1, kl_estimator: KlEstimator::K1, entropy_coef: 0.01, ..Default::default() };
    let result = surrogate(&config, &tokens(&data, &[0.25, 0.75])).unwrap();
    let expected = 0.25 * (-1.0 + 0.1 - 0.005) + 0.75 * (-1.2 + 0.1 * (1.0 + LN_2) - 0.015);
    close(result.loss, expected, 1e-7);
    assert_eq!(result.d_log_probs, [0.25 * -0.9, 0.75 * 0.1]);
    assert_eq!(result.d_entropies.unwrap(), [-0.0025, -0.0075]);
    let metrics = result.stats.finish().unwrap();
    assert_eq!((metrics.tokens, metrics.clip_fraction_high, metrics.clip_fraction_low), (2, 0.5, 0.0));
    assert_eq!((metrics.dual_clip_fraction, metrics.entropy), (0.0, Some(1.0)));
    close(metrics.approx_kl_k1, -LN_2 / 2.0, 1e-7);
    close(metrics.approx_kl_k3, (1.0 - LN_2) / 2.0, 1e-7);
    close(metrics.ratio_mean, 1.5, 1e-7);
    close(metrics.ratio_max, 2.0, 1e-7);
    close(metrics.reference_kl.unwrap(), 1.0 + LN_2 / 2.0, 1e-7);
    // Off by default: no entropy gradient, and neither entropies nor a reference is needed.
    let bare = Tokens { entropies: None, ref_log_probs: None, ..tokens(&data, &[0.25, 0.75]) };
    let result = surrogate(&LossConfig::default(), &bare).unwrap();
    close(result.loss, -0.25 - 0.9, 1e-15);
    assert!(result.d_entropies.is_none());
    let metrics = result.stats.finish().unwrap();
    assert_eq!((metrics.entropy, metrics.reference_kl), (None, None));
    assert!(surrogate(&config, &bare).is_err());
    assert!(surrogate(&LossConfig { kl_coef: 0.0, ..config }, &bare).is_err());
    assert_eq!(LossStats::default().finish(), None);
}

#[test]
fn slices_of_different_lengths_are_refused_by_name() {
    let data = [vec![-1.0; 2], vec![-1.0; 2], vec![1.0; 1], vec![0.0; 2], vec![0.0; 2]];
    let error = surrogate(&LossConfig::default(), &tokens(&data, &[0.5; 2])).unwrap_err().to_string();
    assert_eq!(error, "2 log_probs but 1 advantages");
}

#[test]
fn extreme_inputs_give_finite_outputs_and_nan_stays_visible() {
    let config = LossConfig { kl_coef: 0.1, entropy_coef: 0.01, dual_clip: None, ..Default::default() };
    let large = [0.0, -1e30, f32::MIN, 50.0, -100.0];
    for log_prob in large {
        for old in large {
            for advantage in [1e3, -1e3, 0.0] {
                let data = [vec![log_prob], vec![old], vec![advantage], vec![12.0], vec![old]];
                let result = surrogate(&config, &tokens(&data, &[1.0])).unwrap();
                assert!(result.loss.is_finite() && result.d_log_probs[0].is_finite(), "{log_prob} {old} {advantage}");
                let metrics = result.stats.finish().unwrap();
                assert!(metrics.approx_kl_k3.is_finite() && metrics.ratio_max.is_finite());
            }
        }
    }
    for position in 0..3 {
        let mut data = [vec![-1.0; 2], vec![-1.0; 2], vec![1.0; 2], vec![0.5; 2], vec![-1.0; 2]];
        data[position][1] = f32::NAN;
        let result = surrogate(&config, &tokens(&data, &[0.5; 2])).unwrap();
        assert!(result.loss.is_nan() && result.d_log_probs[1].is_nan() && result.d_log_probs[0].is_finite());
    }
}

#[test]
fn gspo_clips_the_responses_ratio_and_shares_its_gradient() {
    let config = LossConfig { kind: LossKind::Gspo, clip_low: 0.1, clip_high: 0.5, ..Default::default() };
    // Log-ratios ln 2 and -ln 2 of the first response cancel: s = 1. The second's one token has r = s = 2 and A > 0: clipped.
    let log_2 = LN_2 as f32;
    let data = [
        vec![-1.0 + log_2, -1.0 - log_2, -1.0 + log_2],
        vec![-1.0; 3],
        vec![2.0, 2.0, 1.0],
        vec![0.5; 3],
        vec![-1.0; 3],
    ];
    let responses = [0..2, 2..3];
    let weights = [0.25, 0.25, 0.5];
    let of = |config: &LossConfig, factors: Option<&[f64]>| {
        let tokens = Tokens { responses: Some(&responses), factors, ..tokens(&data, &weights) };
        surrogate(config, &tokens).unwrap()
    };
    let result = of(&config, None);
    close(result.loss, -0.25 * 2.0 - 0.25 * 2.0 - 0.5 * 1.5, 1e-7);
    // Each token of the first: 1/2 (0.25 * -2 + 0.25 * -2). Nothing for the clipped one.
    for (got, expected) in result.d_log_probs.iter().zip([-0.5, -0.5, 0.0]) {
        close(*got as f64, expected, 1e-7);
    }
    let metrics = result.stats.finish().unwrap();
    close(metrics.clip_fraction_high, 1.0 / 3.0, 1e-15);
    close(metrics.ratio_max, 2.0, 1e-7);
    // The tokens' own ratios are what the KL estimate is made of.
    close(metrics.approx_kl_k1, -LN_2 / 3.0, 1e-7);
    // A factor of 0 takes one token's loss away; the other's gradient still reaches both.
    let halved = of(&config, Some(&[0.0, 1.0, 1.0]));
    close(halved.loss, -0.25 * 2.0 - 0.5 * 1.5, 1e-7);
    close(halved.d_log_probs[0] as f64, -0.25, 1e-7);
    close(halved.d_log_probs[1] as f64, -0.25, 1e-7);
    // A single token's response is a token: PPO without the dual clip.
    let single = [0..1, 1..2, 2..3];
    let alone = surrogate(&config, &Tokens { responses: Some(&single), ..tokens(&data, &weights) }).unwrap();
    let ppo = LossConfig { kind: LossKind::PpoClip, dual_clip: None, ..config.clone() };
    assert_eq!(alone.d_log_probs, of(&ppo, None).d_log_probs);
    let error = surrogate(&config, &tokens(&data, &weights)).unwrap_err().to_string();
    assert!(error.contains("whole responses"), "{error}");
    let torn = Tokens { responses: Some(&single[..2]), ..tokens(&data, &weights) };
    assert!(surrogate(&config, &torn).unwrap_err().to_string().contains("2 of 3"));
}

#[test]
fn cispo_weighs_the_log_prob_and_clips_only_the_weight() {
    let config = LossConfig { kind: LossKind::Cispo, clip_low: 0.2, clip_high: 0.5, ..Default::default() };
    let of = |log_ratio: f64, advantage: f64| cispo_term(&config, log_ratio - 1.0, -1.0, advantage);
    // r = 2, bounded by 1.5, with A = 3: the loss is -1.5 * 3 * log_prob and its slope -4.5, where PPO's would be 0.
    let high = of(LN_2, 3.0);
    close(high.loss, -4.5 * (LN_2 - 1.0), 1e-15);
    assert_eq!((high.d_log_prob, high.clip), (-4.5, Clip::High));
    assert_eq!((of(LN_2, -3.0).d_log_prob, of(LN_2, -3.0).clip), (4.5, Clip::High));
    let low = of(-LN_2, -1.0);
    assert_eq!((low.d_log_prob, low.clip), (0.8, Clip::Low));
    close(of(0.1, 1.0).d_log_prob, -(0.1f64.exp()), 1e-15);
    assert!(cispo_term(&config, f64::NAN, 0.0, 1.0).loss.is_nan());
    assert_eq!(cispo_term(&config, f64::MIN, 0.0, 1.0).d_log_prob, -0.8);
}

#[test]
fn factors_weigh_the_policy_term_alone() {
    let data = [vec![-1.0; 2], vec![-1.0; 2], vec![1.0; 2], vec![0.5; 2], vec![-2.0; 2]];
    let config = LossConfig { kl_coef: 0.1, kl_estimator: KlEstimator::K1, entropy_coef: 0.01, ..Default::default() };
    for kind in [LossKind::PpoClip, LossKind::Cispo, LossKind::Gspo] {
        let (config, responses) = (LossConfig { kind, ..config.clone() }, [0..1, 1..2]);
        let tokens = Tokens { factors: Some(&[0.0, 2.0]), responses: Some(&responses), ..tokens(&data, &[0.5; 2]) };
        let result = surrogate(&config, &tokens).unwrap();
        // The first token keeps its KL gradient of 0.1; the second has twice the policy's.
        assert_eq!(result.d_log_probs, [0.5 * 0.1, 0.5 * (-2.0 + 0.1)], "{kind:?}");
        assert_eq!(result.d_entropies.unwrap(), [-0.005, -0.005]);
    }
    let short = Tokens { factors: Some(&[1.0]), ..tokens(&data, &[0.5; 2]) };
    assert_eq!(surrogate(&config, &short).unwrap_err().to_string(), "2 log_probs but 1 factors");
}

/// Central difference of `f` at `x`.
fn slope(f: impl Fn(f64) -> f64, x: f64) -> f64 {
    const H: f64 = 1e-5;
    (f(x + H) - f(x - H)) / (2.0 * H)
}

/// Values of the micro-batch's slices: log-ratios up to +-3.2 cross every clip.
fn micro_batch() -> impl Strategy<Value = [Vec<f32>; 5]> {
    prop::collection::vec((-4.0f32..-0.8, -4.0f32..-0.8, -3.0f32..3.0, 0.0f32..8.0, -4.0f32..-0.8), 1..24).prop_map(
        |rows| {
            let column = |pick: fn(&(f32, f32, f32, f32, f32)) -> f32| rows.iter().map(pick).collect();
            [column(|row| row.0), column(|row| row.1), column(|row| row.2), column(|row| row.3), column(|row| row.4)]
        },
    )
}

proptest! {
    #[test]
    fn the_policy_terms_gradient_is_its_slope(
        log_ratio in -3.5f64..3.5, advantage in -3.0f64..3.0, old in -5.0f64..0.0,
    ) {
        let config = LossConfig::default();
        // Away from the kinks at 0.8, 1.2 and 10.
        prop_assume!([0.8f64, 1.2, 10.0].iter().all(|kink| (log_ratio - kink.ln()).abs() > 1e-4));
        let term = policy_term(&config, old + log_ratio, old, advantage);
        let slope = slope(|log_prob| policy_term(&config, log_prob, old, advantage).loss, old + log_ratio);
        prop_assert!((term.d_log_prob - slope).abs() < 1e-6 * (1.0 + slope.abs()), "{} {slope}", term.d_log_prob);
    }

    #[test]
    fn the_kl_terms_gradient_is_its_slope(log_prob in -25.0f64..25.0) {
        for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
            // Away from the kinks of k3, where it reaches 10 (e^d - d = 11) and d reaches +-20.
            let kl = (-log_prob).exp_m1() + log_prob;
            prop_assume!((kl - K3_BOUND).abs() > 1e-3 && (log_prob.abs() - LOG_RATIO_BOUND).abs() > 1e-4);
            let slope = slope(|log_prob| kl_term(estimator, log_prob, 0.0).0, log_prob);
            let d_kl = kl_term(estimator, log_prob, 0.0).1;
            prop_assert!((d_kl - slope).abs() < 1e-6 * (1.0 + slope.abs()), "{estimator:?} {d_kl} {slope}");
        }
    }

    #[test]
    fn the_whole_losss_gradient_is_its_slope(data in micro_batch(), position in 0usize..24) {
        let config = LossConfig { kl_coef: 0.3, entropy_coef: 0.2, ..Default::default() };
        let n = data[0].len();
        let position = position % n;
        let weights: Vec<f64> = (1..=n).map(|i| 1.0 / i as f64).collect();
        // A power of two is added to an f32 without rounding, up to the last bits of small numbers.
        const H: f32 = 1.0 / 256.0;
        let log_ratio = (data[0][position] - data[1][position]) as f64;
        prop_assume!([0.8f64, 1.2, 10.0].iter().all(|kink| (log_ratio - kink.ln()).abs() > 2.0 * H as f64));
        let d = (data[4][position] - data[0][position]) as f64;
        prop_assume!((d.exp_m1() - d - K3_BOUND).abs() > 0.2);
        let result = surrogate(&config, &tokens(&data, &weights)).unwrap();
        let d_entropies = result.d_entropies.unwrap();
        for (row, gradient) in [(0, result.d_log_probs[position]), (3, d_entropies[position])] {
            let at = |shift: f32| {
                let mut data = data.clone();
                data[row][position] += shift;
                surrogate(&config, &tokens(&data, &weights)).unwrap().loss
            };
            let slope = (at(H) - at(-H)) / (2.0 * H as f64);
            prop_assert!((gradient as f64 - slope).abs() < 5e-4 * (1.0 + slope.abs()), "{gradient} {slope}");
        }
    }

    #[test]
    fn gspo_gradient_is_its_slope_through_the_responses_mean(
        data in micro_batch(), position in 0usize..24, cut in 1usize..24,
    ) {
        let config = LossConfig { kind: LossKind::Gspo, clip_low: 0.2, clip_high: 0.3, kl_coef: 0.1, ..Default::default() };
        let n = data[0].len();
        let (position, cut) = (position % n, cut.min(n));
        // Two responses: tokens of one weigh the same, and have factors of their own.
        let weights: Vec<f64> = (0..n).map(|i| if i < cut { 0.25 } else { 0.75 }).collect();
        let factors: Vec<f64> = (0..n).map(|i| (i % 3) as f64 / 2.0).collect();
        let responses: Vec<_> = [0..cut, cut..n].into_iter().filter(|r| !r.is_empty()).collect();
        let whole = |data: &[Vec<f32>; 5]| {
            let tokens = Tokens { responses: Some(&responses), factors: Some(&factors), ..tokens(data, &weights) };
            surrogate(&config, &tokens).unwrap()
        };
        const H: f32 = 1.0 / 256.0;
        let range = responses.iter().find(|r| r.contains(&position)).unwrap().clone();
        let mean = range.clone().map(|i| (data[0][i] - data[1][i]) as f64).sum::<f64>() / range.len() as f64;
        prop_assume!([0.8f64, 1.3].iter().all(|kink| (mean - kink.ln()).abs() > 2.0 * H as f64));
        let d = (data[4][position] - data[0][position]) as f64;
        prop_assume!((d.exp_m1() - d - K3_BOUND).abs() > 0.2);
        let gradient = whole(&data).d_log_probs[position] as f64;
        let at = |shift: f32| {
            let mut data = data.clone();
            data[0][position] += shift;
            whole(&data).loss
        };
        let slope = (at(H) - at(-H)) / (2.0 * H as f64);
        prop_assert!((gradient - slope).abs() < 5e-4 * (1.0 + slope.abs()), "{gradient} {slope}");
    }

    #[test]
    fn cispo_gradient_is_its_slope_with_the_weight_held(
        log_ratio in -3.5f64..3.5, advantage in -3.0f64..3.0, old in -5.0f64..0.0,
    ) {
        let config = LossConfig { kind: LossKind::Cispo, ..Default::default() };
        let at = old + log_ratio;
        let term = cispo_term(&config, at, old, advantage);
        let weight = log_ratio.exp().clamp(0.8, 1.2);
        let slope = slope(|log_prob| -weight * advantage * log_prob, at);
        prop_assert!((term.d_log_prob - slope).abs() < 1e-6 * (1.0 + slope.abs()), "{} {slope}", term.d_log_prob);
        prop_assert!((term.loss + weight * advantage * at).abs() < 1e-12 * (1.0 + term.loss.abs()));
    }

    #[test]
    fn any_split_into_micro_batches_adds_up(data in micro_batch(), cut in 0usize..25, aggregation in 0usize..4, kind in 0usize..3) {
        let aggregation = [
            Aggregation::TokenMean,
            Aggregation::SeqMeanTokenMean,
            Aggregation::SeqMeanTokenSum,
            Aggregation::SeqMeanTokenSumNorm,
        ][aggregation];
        let kind = [LossKind::PpoClip, LossKind::Cispo, LossKind::Gspo][kind];
        let config = LossConfig { kind, aggregation, kl_coef: 0.3, entropy_coef: 0.2, ..Default::default() };
        let n = data[0].len();
        // A response stays whole where the loss needs it whole.
        let cut = if kind == LossKind::Gspo { n / 3 } else { cut.min(n) };
        // Two responses, cut anywhere: weights come from the whole mini-batch.
        let lengths = [n / 3, n - n / 3];
        let per_response = weights(aggregation, &lengths, 64);
        let weights: Vec<f64> = (0..n).map(|i| per_response[usize::from(i >= lengths[0])]).collect();
        let factors: Vec<f64> = (0..n).map(|i| (i % 4) as f64 / 2.0).collect();
        let of = |data: &[Vec<f32>; 5], range: Range<usize>, responses: &[Range<usize>]| {
            let (weights, factors) = (&weights[range.clone()], Some(&factors[range]));
            let tokens = Tokens { factors: factors.map(|f| f as &[f64]), responses: Some(responses), ..tokens(data, weights) };
            surrogate(&config, &tokens).unwrap()
        };
        let whole = of(&data, 0..n, &[0..lengths[0], lengths[0]..n]);
        let (head, tail) = (data.clone().map(|v| v[..cut].to_vec()), data.clone().map(|v| v[cut..].to_vec()));
        let (first, second) = (of(&head, 0..cut, std::slice::from_ref(&(0..cut))), of(&tail, cut..n, std::slice::from_ref(&(0..n - cut))));
        prop_assert!((first.loss + second.loss - whole.loss).abs() < 1e-12 * (1.0 + whole.loss.abs()));
        prop_assert_eq!([first.d_log_probs, second.d_log_probs].concat(), whole.d_log_probs);
        let mut merged = first.stats;
        merged.merge(&second.stats);
        let (merged, whole) = (merged.finish().unwrap(), whole.stats.finish().unwrap());
        prop_assert!((merged.approx_kl_k3 - whole.approx_kl_k3).abs() < 1e-12 * (1.0 + whole.approx_kl_k3));
        prop_assert_eq!(merged.clip_fraction_high + merged.clip_fraction_low, whole.clip_fraction_high + whole.clip_fraction_low);
        prop_assert_eq!((merged.tokens, merged.ratio_max), (whole.tokens, whole.ratio_max));
    }
}
