//! An analysis in the terminal: a table by layer with a bar of its entropy, and a few sentences.

use super::result::{Analysis, Lens};
use super::stages::Stage;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

/// Cells of the entropy bar.
const BAR: usize = 7;

/// Beside the boundary layer's stage.
const MARK: &str = " ◀";

/// The table, one row a layer, bottom layer first.
pub fn table(analysis: &Analysis) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    // Two lines of header keep it within the 80 columns of a plain terminal.
    table.set_header([
        "layer",
        "H",
        "",
        "dH\nattn",
        "dH\nffn",
        "dH\nlayer",
        "cos\nattn",
        "cos\nffn",
        "norm",
        "top1\n%",
        "stage",
    ]);
    let most = analysis.per_layer.iter().map(|l| l.entropy.resid_post).fold(1e-9, f64::max);
    for l in &analysis.per_layer {
        let stage = Stage::of(l.entropy_change.ffn, analysis.stage_threshold).name();
        let mark = if analysis.boundary_layer == Some(l.layer) { MARK } else { "" };
        table.add_row([
            l.layer.to_string(),
            format!("{:.3}", l.entropy.resid_post),
            bar(l.entropy.resid_post / most),
            change(l.entropy_change.attn),
            change(l.entropy_change.ffn),
            change(l.entropy_change.layer),
            format!("{:+.2}", l.residual_cosine.attn),
            format!("{:+.2}", l.residual_cosine.ffn),
            norm(l.residual_norm),
            format!("{:.0}", 100.0 * l.last.top1_agreement),
            format!("{stage}{mark}"),
        ]);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        if !matches!(i, 2 | 10) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        column.set_padding((0, 0));
    }
    table.to_string()
}

/// Six characters, whatever the size of an entropy.
fn change(nats: f64) -> String {
    if nats.abs() < 9.9995 { format!("{nats:+.3}") } else { format!("{nats:+.2}") }
}

/// Five characters at most.
fn norm(x: f64) -> String {
    match x {
        x if x < 99.95 => format!("{x:.1}"),
        x if x < 99_999.5 => format!("{x:.0}"),
        x => format!("{x:.0e}"),
    }
}

/// A horizontal bar in eighths of a cell.
pub(super) fn bar(share: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * (8 * BAR) as f64).round() as usize;
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

/// What the table says, in words.
pub fn summary(analysis: &Analysis) -> String {
    let spans: Vec<String> = analysis
        .stages
        .iter()
        .map(|s| match s.first_layer == s.last_layer {
            true => format!("{} {}", s.stage.name(), s.first_layer),
            false => format!("{} {}-{}", s.stage.name(), s.first_layer, s.last_layer),
        })
        .collect();
    let boundary = match analysis.boundary_layer {
        None => "No layer's FFN widens the distribution: there is no boundary layer.".to_string(),
        Some(layer) => {
            let change = analysis.per_layer.get(layer - 1).map_or(f64::NAN, |l| l.entropy_change.ffn);
            let doubt = match Stage::of(change, analysis.stage_threshold) {
                Stage::Exploration => "",
                _ => ", which is within the threshold of no change: read it with care",
            };
            format!(
                "The boundary layer{MARK} is {layer}, the last whose FFN widens the distribution ({change:+.3} nats{doubt})."
            )
        }
    };
    let d = &analysis.decision;
    let decided = match d.mean_layer {
        None => "No token is decided by any layer's policy: none agrees with the final one.".to_string(),
        Some(layer) if d.never == 0.0 => format!("Tokens are decided at layer {layer:.1} of {}.", analysis.layers),
        Some(layer) => format!(
            "Tokens are decided at layer {layer:.1} of {}, but for {:.1} % that only the final policy decides.",
            analysis.layers,
            100.0 * d.never
        ),
    };
    let lens = match analysis.lens {
        Lens::Raw => "",
        Lens::FinalNorm => " Lens: the final norm before the unembedding.",
    };
    format!(
        "Stages by layer: {}. {boundary}\n{decided}{lens}\nFinal policy: {:.3} nats, over {} response tokens of {} samples.",
        spans.join(", "),
        analysis.final_entropy,
        analysis.tokens,
        analysis.samples
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::result::{
        AgainstFinal, Changes, Cosines, Decision, Divergence, Entropies, LayerFlow, Spreads, VERSION,
    };
    use crate::analysis::stages::{RULE, boundary_layer, stage_spans};
    use crate::analysis::tally::Spread;

    fn analysis(ffn: &[f64]) -> Analysis {
        let entropy = Entropies { resid_pre: 2.0, attn_in: 1.0, attn: 1.0, ffn_in: 1.0, ffn: 1.0, resid_post: 2.0 };
        let s = Spread { std: 0.5, p10: 0.1, p50: 0.5, p90: 0.9 };
        let spread = Spreads {
            entropy: Entropies { resid_pre: s, attn_in: s, attn: s, ffn_in: s, ffn: s, resid_post: s },
            entropy_change: Changes { layer: s, attn: s, ffn: s },
            residual_cosine: Cosines { attn: s, ffn: s },
            residual_norm: s,
        };
        let per_layer = ffn.iter().enumerate().map(|(i, ffn)| LayerFlow {
            layer: i + 1,
            entropy,
            entropy_change: Changes { layer: 0.0, attn: 0.1, ffn: *ffn },
            residual_cosine: Cosines { attn: 0.0, ffn: -0.25 },
            residual_norm: 3.0,
            spread,
            last: AgainstFinal { kl_to: 1.0, kl_from: 2.0, top1_agreement: 0.42, decided: 0.25, log_prob: -3.0 },
            chosen: Some(Divergence { kl_to: 0.0, kl_from: 0.5 }),
        });
        Analysis {
            version: VERSION,
            model: "m".into(),
            lens: Lens::Raw,
            layers: ffn.len(),
            tokens: 10,
            samples: 2,
            vocab_size: 100,
            final_entropy: 0.5,
            final_spread: s,
            boundary_layer: boundary_layer(ffn).map(|l| l.one_based()),
            stages: stage_spans(ffn, 0.1).unwrap(),
            stage_rule: RULE.into(),
            stage_threshold: 0.1,
            chosen_layer: Some(1),
            similarity: vec![vec![1.0; ffn.len()]; ffn.len()],
            decision: Decision { mean_layer: Some(1.75), never: 0.125 },
            per_layer: per_layer.collect(),
        }
    }

    #[test]
    fn the_boundary_layer_is_marked_and_doubts_are_spoken() {
        let clear = analysis(&[0.5, 0.4, -0.6]);
        let table = table(&clear);
        let marked: Vec<&str> = table.lines().filter(|l| l.contains(MARK)).collect();
        assert!(marked.len() == 1 && marked[0].contains("+0.400"), "{table}");
        assert!(table.lines().all(|l| l.chars().count() <= 80), "{table}");
        assert!(summary(&clear).contains("exploration 1-2, convergence 3") && !summary(&clear).contains("care"));
        assert!(summary(&analysis(&[0.5, 0.01])).contains("care"));
        assert!(summary(&analysis(&[-0.5, -0.01])).contains("no boundary layer"));
        assert_eq!(
            (bar(0.0), bar(1.0).chars().count(), bar(0.5).chars().count()),
            (String::new(), BAR, BAR.div_ceil(2))
        );
    }

    #[test]
    fn large_numbers_keep_the_table_within_a_terminal() {
        let mut a = analysis(&[11.9, -11.9, 0.0005, 0.5]);
        for l in &mut a.per_layer {
            (l.entropy.resid_post, l.residual_norm, l.last.top1_agreement) = (11.931, 12_345.6, 1.0);
            (l.entropy_change.attn, l.entropy_change.layer) = (-9.9999, 10.0);
        }
        a.boundary_layer = Some(1);
        let widest = |a: &Analysis| table(a).lines().map(|l| l.chars().count()).max();
        assert_eq!(widest(&a), Some(80), "{}", table(&a));
        for (x, expected) in [(0.04, "0.0"), (99.96, "100"), (12_345.6, "12346"), (99_999.6, "1e5")] {
            assert_eq!(norm(x), expected);
        }
    }

    #[test]
    fn where_tokens_are_decided_is_said() {
        let mut a = analysis(&[0.5]);
        assert!(summary(&a).contains("decided at layer 1.8 of 1, but for 12.5 %"), "{}", summary(&a));
        (a.decision.never, a.lens) = (0.0, Lens::FinalNorm);
        assert!(summary(&a).contains("layer 1.8 of 1. Lens: the final norm"));
        a.decision.mean_layer = None;
        assert!(summary(&a).contains("No token is decided"));
    }

    #[test]
    fn it_reads_back() {
        let a = analysis(&[0.5, -0.5]);
        let read: Analysis = serde_json::from_str(&serde_json::to_string(&a).unwrap()).unwrap();
        assert_eq!(read, a);
    }
}
