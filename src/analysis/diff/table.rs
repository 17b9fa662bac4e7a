//! A comparison of checkpoints in the terminal: relative changes by part, with bars, and what moved in words.

use super::{Change, Diff};
use crate::analysis::terminal::bar;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

/// Relative changes, bottom layer first; the bars of a column are relative to the largest change of all.
pub fn table(diff: &Diff) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["", "all", "", "attn", "", "ffn", ""]);
    let layers = diff.per_layer.iter().map(|l| (l.layer.to_string(), [Some(l.all), Some(l.attn), Some(l.ffn)]));
    let whole = |name: &str, change: Change| (name.to_string(), [Some(change), None, None]);
    let rows: Vec<(String, [Option<Change>; 3])> = [whole("embedding", diff.embedding)]
        .into_iter()
        .chain(layers)
        .chain([whole("final norm", diff.final_norm)])
        .chain(diff.unembedding.map(|change| whole("unembedding", change)))
        .collect();
    let most = rows.iter().flat_map(|(_, changes)| changes.iter().flatten()).filter_map(|c| c.relative);
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    for (name, changes) in rows {
        let cells = changes.into_iter().flat_map(|change| match change {
            Some(change) => [number(change.relative), bar(change.relative.unwrap_or(1.0) / most)],
            None => [String::new(), String::new()],
        });
        table.add_row([name].into_iter().chain(cells));
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        if i % 2 == 1 || i == 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
        column.set_padding((0, 1));
    }
    table.to_string()
}

fn number(relative: Option<f64>) -> String {
    match relative {
        Some(0.0) => "0".into(),
        Some(x) => format!("{x:.2e}"),
        None => "from 0".into(),
    }
}

/// Which parts moved, which did not, and which layer moved most.
pub fn summary(diff: &Diff) -> String {
    let counted = diff.per_layer.iter().map(|l| l.all).chain([diff.embedding, diff.final_norm]).chain(diff.unembedding);
    let parameters: u64 = counted.map(|c| c.parameters).sum();
    let (moved, still) = (parts(diff, false), parts(diff, true));
    if moved.is_empty() {
        return format!("The same to the bit: all {parameters} parameters.");
    }
    let largest = diff.per_layer.iter().filter_map(|l| Some((l.all.relative?, l.layer)));
    let largest = largest.fold((0.0, 0), |most, this| if this.0 > most.0 { this } else { most });
    let largest = match largest {
        (_, 0) => String::new(),
        (change, layer) => format!("\nThe layer that moved most is {layer} ({change:.2e} of its norm)."),
    };
    let still = if still.is_empty() { String::new() } else { format!("\nThe same to the bit: {}.", still.join(", ")) };
    format!("Moved, of {parameters} parameters: {}.{still}{largest}", moved.join(", "))
}

/// Names of the parts that did not move, or of those that did; neighbouring layers together.
fn parts(diff: &Diff, still: bool) -> Vec<String> {
    let wanted = |change: &Change| change.is_none() == still;
    let mut names: Vec<String> = wanted(&diff.embedding).then(|| "embedding".into()).into_iter().collect();
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for layer in diff.per_layer.iter().filter(|l| wanted(&l.all)).map(|l| l.layer) {
        match spans.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => spans.push((layer, layer)),
        }
    }
    names.extend(spans.into_iter().map(|(first, last)| match first == last {
        true => format!("layer {first}"),
        false => format!("layers {first}-{last}"),
    }));
    names.extend(wanted(&diff.final_norm).then(|| "final norm".into()));
    names.extend(diff.unembedding.filter(wanted).map(|_| "unembedding".into()));
    names
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn what_moved_is_shown_and_said() {
        let mut diff = example();
        let shown = table(&diff);
        let line =
            |name: &str| shown.lines().find(|l| l.trim_matches(['│', ' ']).starts_with(name)).unwrap().to_string();
        assert!(shown.lines().all(|l| l.chars().count() <= 80), "{shown}");
        assert_eq!(line("embedding").matches('█').count(), 0, "{shown}");
        // The first layer's attention stayed: a zero between two changes.
        let first: Vec<String> = line("1 ").split_whitespace().map(str::to_string).collect();
        assert!(first.contains(&"0".to_string()) && first.iter().filter(|w| w.contains("e-")).count() == 2, "{shown}");
        let said = summary(&diff);
        assert!(said.contains(": layers 1-2.") && said.contains("bit: embedding, final norm, unembedding."), "{said}");
        assert!(said.contains("moved most is"), "{said}");
        diff.per_layer[1].all = diff.embedding;
        assert!(summary(&diff).contains(": layer 1.") && summary(&diff).contains("embedding, layer 2, final norm"));
        diff.per_layer[0].all = diff.embedding;
        assert!(summary(&diff).starts_with("The same to the bit: all"), "{}", summary(&diff));
    }
}
