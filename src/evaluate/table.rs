//! Results as tables: on the terminal, and the same in Markdown.

use super::result::Evaluation;
use super::statistics::Estimate;
use comfy_table::presets::{ASCII_MARKDOWN, UTF8_BORDERS_ONLY};
use comfy_table::{CellAlignment, ContentArrangement, Table};

/// How a table is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Terminal,
    Markdown,
}

/// A table whose columns but the first are numbers.
pub fn table(style: Style, header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(if style == Style::Terminal { UTF8_BORDERS_ONLY } else { ASCII_MARKDOWN });
    // Results belong into logs and files too: no row is folded to the width of whatever terminal there is.
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|h| h.to_string()));
    for row in rows {
        // A bar would end a cell of Markdown.
        table.add_row(
            row.iter().map(|cell| if style == Style::Markdown { cell.replace('|', "\\|") } else { cell.clone() }),
        );
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// A share as per cent.
pub fn percent(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}

/// `12.50 ± 1.20`, in per cent.
pub fn with_error(e: &Estimate) -> String {
    e.standard_error.map_or_else(|| percent(e.mean), |error| format!("{} ± {}", percent(e.mean), percent(error)))
}

/// `10.10 to 14.90`, in per cent.
pub fn interval(e: &Estimate) -> String {
    e.interval.map_or_else(|| "-".to_string(), |[low, high]| format!("{} to {}", percent(low), percent(high)))
}

/// Scores of several evaluations: Avg@n, Pass@K, and what to know beside them.
pub fn report(evaluations: &[Evaluation], style: Style) -> String {
    let mut rows: Vec<Vec<String>> = evaluations.iter().map(average_row).collect();
    if evaluations.len() > 1 {
        let n = evaluations.len() as f64;
        let mean = evaluations.iter().map(|e| e.scores.avg_at_n.mean).sum::<f64>() / n;
        let mut row = vec![String::new(); HEADER.len()];
        (row[0], row[2]) = ("mean".into(), percent(mean));
        rows.push(row);
    }
    let mut text = table(style, &HEADER, &rows);
    let mut ks: Vec<usize> = evaluations.iter().flat_map(|e| e.scores.pass_at_k.iter().map(|p| p.k)).collect();
    ks.sort_unstable();
    ks.dedup();
    if !ks.is_empty() {
        let names: Vec<&str> =
            std::iter::once("Pass@K (%)").chain(evaluations.iter().map(|e| e.name.as_str())).collect();
        let cell = |e: &Evaluation, k: usize| {
            e.scores.pass_at_k.iter().find(|p| p.k == k).map_or("-".to_string(), |p| with_error(&p.pass))
        };
        let row = |k: &usize| {
            std::iter::once(format!("K = {k}")).chain(evaluations.iter().map(|e| cell(e, *k))).collect::<Vec<_>>()
        };
        let rows: Vec<Vec<String>> = ks.iter().map(row).collect();
        text.push_str(&format!("\n\n{}", table(style, &names, &rows)));
    }
    for e in evaluations {
        text.push_str(&remarks(e, style));
    }
    text.push('\n');
    text
}

/// Everything but the first two columns in per cent.
const HEADER: [&str; 7] = ["%", "responses", "Avg@n", "95 % interval", "truncated", "no answer", "unparsable"];

fn average_row(e: &Evaluation) -> Vec<String> {
    let s = &e.scores;
    vec![
        e.name.clone(),
        format!("{} x {}", s.problems, s.responses_per_problem),
        with_error(&s.avg_at_n),
        interval(&s.avg_at_n),
        percent(s.truncated),
        percent(s.shares.no_answer),
        percent(s.shares.unparsable),
    ]
}

/// What must not be overlooked: lines below the tables.
fn remarks(e: &Evaluation, style: Style) -> String {
    let s = &e.scores.statuses;
    let (name, gap) = (&e.name, if style == Style::Markdown { "\n\n" } else { "\n" });
    let mut text = format!(
        "{gap}{name} (judged by {}): {} correct, {} wrong, {} without an answer, {} unparsable",
        e.reward_name, s.correct, s.wrong, s.no_answer, s.unparsable
    );
    if let Some((over, std)) = e.scores.over_samples.and_then(|o| Some((o, o.std?))) {
        text.push_str(&format!("; accuracy of {} passes {} ± {} (std)", over.runs, percent(over.mean), percent(std)));
    }
    if let Some(reward) = &e.scores.reward {
        let error = reward.standard_error.map_or(String::new(), |error| format!(" ± {error:.4}"));
        text.push_str(&format!("; mean reward {:.4}{error}", reward.mean));
    }
    let unjudged = s.timeout + s.failed;
    if unjudged > 0 {
        let first = e.failures.first().map_or(String::new(), |reason| format!("; first: {reason}"));
        text.push_str(&format!(
            "{gap}{name}: {unjudged} responses could not be judged and count as not correct{first}"
        ));
    }
    if !e.bad_rows.is_empty() {
        text.push_str(&format!("{gap}{name}: rows of the data that could not be used, {}:", e.bad_rows.len()));
        for bad in e.bad_rows.iter().take(10) {
            text.push_str(&format!("{gap}  {bad}"));
        }
    }
    text
}
