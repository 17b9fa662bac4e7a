//! An analysis in the terminal: a table by layer with a bar of its entropy, and two sentences.

use super::result::Analysis;
use super::stages::Stage;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

/// Cells of the entropy bar.
const BAR: usize = 12;

/// Beside the boundary layer's stage.
const MARK: &str = " ◀";

/// The table, one row a layer, bottom layer first.
pub fn table(analysis: &Analysis) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    // Two lines of header keep it within the 80 columns of a plain terminal.
    table.set_header(["layer", "H", "", "dH\nattn", "dH\nffn", "dH\nlayer", "cos\nattn", "cos\nffn", "norm", "stage"]);
    let most = analysis.per_layer.iter().map(|l| l.entropy.resid_post).fold(1e-9, f64::max);
    for l in &analysis.per_layer {
        let stage = Stage::of(l.entropy_change.ffn, analysis.stage_threshold).name();
        let mark = if analysis.boundary_layer == Some(l.layer) { MARK } else { "" };
        table.add_row([
            l.layer.to_string(),
            format!("{:.3}", l.entropy.resid_post),
            bar(l.entropy.resid_post / most),
            format!("{:+.3}", l.entropy_change.attn),
            format!("{:+.3}", l.entropy_change.ffn),
            format!("{:+.3}", l.entropy_change.layer),
            format!("{:+.2}", l.residual_cosine.attn),
            format!("{:+.2}", l.residual_cosine.ffn),
            format!("{:.1}", l.residual_norm),
            format!("{stage}{mark}"),
        ]);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        if !matches!(i, 2 | 9) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        column.set_padding((0, 0));
    }
    table.to_string()
}

/// A horizontal bar in eighths of a cell.
fn bar(share: f64) -> String {
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
    format!(
        "Stages by layer: {}. {boundary}\nFinal policy: {:.3} nats, over {} response tokens of {} samples.",
        spans.join(", "),
        analysis.final_entropy,
        analysis.tokens,
        analysis.samples
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::result::{Changes, Cosines, Entropies, LayerFlow};
    use crate::analysis::stages::{RULE, boundary_layer, stage_spans};

    fn analysis(ffn: &[f64]) -> Analysis {
        let entropy = Entropies { resid_pre: 2.0, attn_in: 1.0, attn: 1.0, ffn_in: 1.0, ffn: 1.0, resid_post: 2.0 };
        let per_layer = ffn.iter().enumerate().map(|(i, ffn)| LayerFlow {
            layer: i + 1,
            entropy,
            entropy_change: Changes { layer: 0.0, attn: 0.1, ffn: *ffn },
            residual_cosine: Cosines { attn: 0.0, ffn: -0.25 },
            residual_norm: 3.0,
        });
        Analysis {
            layers: ffn.len(),
            tokens: 10,
            samples: 2,
            vocab_size: 100,
            final_entropy: 0.5,
            boundary_layer: boundary_layer(ffn).map(|l| l.one_based()),
            stages: stage_spans(ffn, 0.1).unwrap(),
            stage_rule: RULE.into(),
            stage_threshold: 0.1,
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
        assert_eq!((bar(0.0), bar(1.0).chars().count(), bar(0.5).chars().count()), (String::new(), BAR, BAR / 2));
    }

    #[test]
    fn it_reads_back() {
        let a = analysis(&[0.5, -0.5]);
        let read: Analysis = serde_json::from_str(&serde_json::to_string(&a).unwrap()).unwrap();
        assert_eq!(read, a);
    }
}
