//! A study in the terminal: a table by layer with bars of what is lost, and a few sentences.

use super::findings::{Effect, Findings, Replacement};
use crate::analysis::terminal::bar;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

/// Modules that the summary names.
const NAMED: usize = 3;

/// The table, one row a layer, bottom layer first.
pub fn table(findings: &Findings) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    // Two lines of header keep it within the 80 columns of a plain terminal.
    table.set_header([
        "layer",
        "KL\nattn",
        "",
        "KL\nffn",
        "",
        "KL\nboth",
        "dlogp\nattn",
        "dlogp\nffn",
        "dH\nattn",
        "dH\nffn",
        "same\nattn",
        "%\nffn",
    ]);
    let most = findings.per_layer.iter().flat_map(|l| [l.attn.kl, l.ffn.kl]).fold(1e-9, f64::max);
    for l in &findings.per_layer {
        let nats = |kl: f64| if kl < 9.9995 { format!("{kl:.3}") } else { format!("{kl:.2}") };
        let change = |x: f64| if x.abs() < 9.995 { format!("{x:+.2}") } else { format!("{x:+.1}") };
        let percent = |effect: &Effect| format!("{:.0}", 100.0 * effect.top1_agreement);
        table.add_row([
            l.layer.to_string(),
            nats(l.attn.kl),
            bar(l.attn.kl / most),
            nats(l.ffn.kl),
            bar(l.ffn.kl / most),
            nats(l.both.kl),
            change(l.attn.log_prob_change),
            change(l.ffn.log_prob_change),
            change(l.attn.entropy_change),
            change(l.ffn.entropy_change),
            percent(&l.attn),
            percent(&l.ffn),
        ]);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        if !matches!(i, 2 | 4) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        column.set_padding((0, 0));
    }
    table.to_string()
}

/// What the table says, in words.
pub fn summary(findings: &Findings) -> String {
    let by = match findings.replace {
        Replacement::Zero => "zeros",
        Replacement::Mean => "its mean",
    };
    let mut lines = vec![format!(
        "What a module writes was replaced by {by}, one module at a time; KL is D(whole || without), in nats."
    )];
    let modules = findings.modules();
    for (what, is) in [("module", ["attn:", "ffn:"].as_slice()), ("head", &["head:"])] {
        let mut some: Vec<_> = modules.iter().filter(|(name, _)| is.iter().any(|is| name.starts_with(is))).collect();
        if some.len() < 2 {
            continue;
        }
        some.sort_by(|(_, a), (_, b)| b.kl.total_cmp(&a.kl));
        let named = |(name, effect): &&(String, Effect)| format!("{name} ({:.3})", effect.kl);
        let shown = NAMED.min(some.len() / 2);
        let [most, least] = [&some[..shown], &some[some.len() - shown..]]
            .map(|some| some.iter().map(named).collect::<Vec<_>>().join(", "));
        lines.push(format!("The {what} that is missed most: {most}; least: {least}."));
    }
    lines.push(format!(
        "The whole model: {:.3} nats of entropy, log-prob {:.3} of the tokens that came, over {} response tokens of {} samples.",
        findings.entropy, findings.log_prob, findings.tokens, findings.samples
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::ablation::LayerEffects;

    fn findings(kl: &[[f64; 2]], heads: &[f64]) -> Findings {
        let effect = |kl| Effect { kl, kl_std: 0.1, log_prob_change: -kl, entropy_change: 0.25, top1_agreement: 0.5 };
        let layer = |(layer, [attn, ffn]): (usize, &[f64; 2])| LayerEffects {
            layer,
            attn: effect(*attn),
            ffn: effect(*ffn),
            both: effect(attn + ffn),
            heads: heads.iter().map(|kl| effect(kl * layer as f64)).collect(),
        };
        Findings {
            version: 1,
            model: "m".into(),
            replace: Replacement::Zero,
            layers: kl.len(),
            tokens: 10,
            samples: 2,
            vocab_size: 100,
            entropy: 0.5,
            log_prob: -0.75,
            per_layer: (1..).zip(kl).map(layer).collect(),
        }
    }

    #[test]
    fn what_is_missed_most_and_least_is_named() {
        let f = findings(&[[0.5, 12.0], [0.01, 0.25], [3.0, 0.02]], &[]);
        let said = summary(&f);
        assert!(said.contains("missed most: ffn:1 (12.000), attn:3 (3.000), attn:1 (0.500);"), "{said}");
        assert!(said.contains("least: ffn:2 (0.250), ffn:3 (0.020), attn:2 (0.010)."), "{said}");
        assert!(said.contains("by zeros") && !said.contains("head") && said.contains("-0.750"), "{said}");
        let f = Findings { replace: Replacement::Mean, ..findings(&[[0.5, 1.0], [0.1, 0.2]], &[0.5, 0.125]) };
        let said = summary(&f);
        assert!(said.contains("The head that is missed most: head:2.1 (1.000), head:1.1 (0.500);"), "{said}");
        assert!(said.contains("by its mean"), "{said}");
        assert_eq!(f.modules().iter().filter(|(name, _)| name == "layer:2").count(), 1);
    }

    #[test]
    fn the_table_fits_a_terminal() {
        let table = table(&findings(&[[11.93, 11.9], [0.0, 10.0]], &[0.1]));
        assert!(table.lines().all(|l| l.chars().count() <= 80), "{table}");
        assert!(table.contains("███████"), "{table}");
    }
}
