//! A sweep as a table: terminal, Markdown, CSV.

use super::result::{RunStatus, SetResult, SweepResult, VariantResult};
use crate::evaluate::statistics::Spread;
use crate::evaluate::table::{Style, interval, percent, table};

/// A row a variant, two columns a set: mean and standard deviation over seeds, and the difference to the first variant
/// with its interval. The best mean is bold in Markdown and has a star on the terminal.
pub fn report(result: &SweepResult, style: Style) -> String {
    let first = result.variants.first().map_or("", |v| v.name.as_str());
    let mut header = vec!["%".to_string(), "runs".into()];
    for set in &result.sets {
        let n = result.variants.iter().flat_map(|v| &v.scores).find(|s| s.set == *set).map_or(0, |s| s.n);
        header.extend([format!("{set} Avg@{n}"), format!("minus {first} [95 %]")]);
    }
    let row = |variant: &VariantResult| {
        let done = variant.runs.iter().filter(|r| r.status == RunStatus::Finished).count();
        let mut row = vec![variant.name.clone(), format!("{done}/{}", variant.runs.len())];
        for set in &result.sets {
            let found = variant.scores.iter().find(|s| s.set == *set);
            row.push(found.map_or("-".into(), |s| score(s, style)));
            row.push(found.map_or("-".into(), difference));
        }
        row
    };
    let rows: Vec<Vec<String>> = result.variants.iter().map(row).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut text = table(style, &header, &rows);
    let gap = if style == Style::Markdown { "\n\n" } else { "\n" };
    text.push_str(&format!(
        "{gap}Mean ± standard deviation over seeds. Differences are paired by problem and seed; their intervals are over problems."
    ));
    for (variant, run) in result.variants.iter().flat_map(|v| v.runs.iter().map(move |r| (v, r))) {
        if let Some(error) = &run.error {
            text.push_str(&format!("{gap}{} seed {} failed: {error}", variant.name, run.seed));
        }
    }
    text.push('\n');
    text
}

fn score(s: &SetResult, style: Style) -> String {
    let text = with_spread(&s.after);
    match (s.best, style) {
        (true, Style::Markdown) => format!("**{text}**"),
        (true, Style::Terminal) => format!("{text} *"),
        (false, _) => text,
    }
}

fn with_spread(s: &Spread) -> String {
    s.std.map_or_else(|| percent(s.mean), |std| format!("{} ± {}", percent(s.mean), percent(std)))
}

fn difference(s: &SetResult) -> String {
    s.difference.map_or("-".into(), |d| format!("{:+.2} [{}]", 100.0 * d.difference.mean, interval(&d.difference)))
}

/// One line for each variant and set; shares from 0 to 1, empty where there is no number.
pub fn csv(result: &SweepResult) -> String {
    let mut text = String::from(
        "variant,set,n,runs,before_mean,before_std,after_mean,after_std,difference,difference_low,difference_high,p_value,best\n",
    );
    for (variant, s) in result.variants.iter().flat_map(|v| v.scores.iter().map(move |s| (v, s))) {
        let number = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
        let interval = s.difference.and_then(|d| d.difference.interval);
        let cells = [
            variant.name.clone(),
            s.set.clone(),
            s.n.to_string(),
            s.after.runs.to_string(),
            number(s.before.map(|b| b.mean)),
            number(s.before.and_then(|b| b.std)),
            number(Some(s.after.mean)),
            number(s.after.std),
            number(s.difference.map(|d| d.difference.mean)),
            number(interval.map(|i| i[0])),
            number(interval.map(|i| i[1])),
            number(s.difference.map(|d| d.p_value)),
            s.best.to_string(),
        ];
        // Names hold letters, digits and - _ + . only: nothing to quote.
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::result::tests::example;
    use super::*;

    #[test]
    fn the_best_is_bold_and_failures_are_said() {
        let markdown = report(&example(), Style::Markdown);
        for part in ["| grpo |", "2/2", "50.00 ± 17.68", "**100.00**", "+62.50 [", "bupo seed 2 failed: it broke"] {
            assert!(markdown.contains(part), "{part} is not in\n{markdown}");
        }
        assert!(report(&example(), Style::Terminal).contains("100.00 *"));
        let csv = csv(&example());
        let lines: Vec<&str> = csv.lines().collect();
        assert!(lines.len() == 3 && lines.iter().all(|l| l.split(',').count() == 13), "{csv}");
        assert!(lines[2].starts_with("bupo,held-out,4,1,,,1,,0.625,"), "{csv}");
    }
}
