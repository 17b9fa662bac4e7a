//! `bupo compare`: saved evaluations of two models, or of several seeds of them, on the same problems.

use super::evaluate::{PROBLEMS, RESULT, write_json};
use crate::cli::CompareArgs;
use crate::evaluate::compare::{Comparison, Counted, compare};
use crate::evaluate::result::{Evaluation, shares};
use crate::evaluate::scores::usual_ks;
use crate::evaluate::statistics::Spread;
use crate::evaluate::table::{Style, interval, percent, table};
use crate::run::atomic::{read, write_file_atomic};
use crate::run::jsonl::read_jsonl;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The evaluations of one side, by the name of their set.
type Sets = BTreeMap<String, Vec<(String, Counted)>>;

pub fn run(args: &CompareArgs) -> Result<()> {
    let (first, second) = (side(&args.first)?, side(&args.second)?);
    // A folder of a single set stands for it, whatever it is called.
    let single = first.len() == 1 && second.len() == 1;
    let mut comparisons = Vec::new();
    for (name, a) in &first {
        let b = if single { second.values().next() } else { second.get(name) };
        let Some(b) = b else { continue };
        let n = a.iter().chain(b).map(|(_, c)| c.n).min().unwrap_or(1);
        let ks = args.k.clone().unwrap_or_else(|| usual_ks(n).into_iter().filter(|k| *k > 1).collect());
        if let Some(k) = ks.iter().find(|k| !(1..=n).contains(*k)) {
            bail!("-k {k}: expected 1 to {n}, the fewest responses to a problem of {name}");
        }
        comparisons.push(compare(name, a, b, &ks, args.seed)?);
    }
    ensure!(
        !comparisons.is_empty(),
        "the two sides have no set in common: {:?} and {:?}",
        first.keys().collect::<Vec<_>>(),
        second.keys().collect::<Vec<_>>()
    );
    print!("{}", text(&comparisons, Style::Terminal));
    if let Some(out) = &args.out {
        write_file_atomic(&out.join("comparison.md"), text(&comparisons, Style::Markdown).as_bytes())?;
        write_json(&out.join("comparison.json"), &comparisons)?;
        println!("Written to {}", out.display());
    }
    Ok(())
}

fn side(folders: &[PathBuf]) -> Result<Sets> {
    let mut sets = Sets::new();
    for folder in folders {
        for (name, dir) in evaluation_folders(folder)? {
            let evaluation = read_evaluation(&dir)?;
            let correct = shares(&evaluation, &read_jsonl(&dir.join(PROBLEMS))?)
                .with_context(|| dir.display().to_string())?
                .into_iter()
                .collect();
            let counted = Counted { n: evaluation.scores.responses_per_problem, correct };
            sets.entry(name).or_default().push((dir.display().to_string(), counted));
        }
    }
    Ok(sets)
}

/// Folders of single evaluations: the folder itself, or those right below it, with the names of their sets.
pub fn evaluation_folders(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    ensure!(dir.is_dir(), "{} is no folder: expected one that bupo evaluate wrote", dir.display());
    let name = |dir: &Path| dir.file_name().map_or("evaluation".into(), |n| n.to_string_lossy().into_owned());
    if dir.join(PROBLEMS).is_file() {
        let named = read_evaluation(dir).map(|e| e.name).unwrap_or_else(|_| name(dir));
        return Ok(vec![(named, dir.to_path_buf())]);
    }
    let below = crate::run::atomic::folders(dir)?;
    let found: Vec<_> = below.into_iter().filter(|d| d.join(PROBLEMS).is_file()).map(|d| (name(&d), d)).collect();
    ensure!(!found.is_empty(), "{} holds no evaluation: expected a folder that bupo evaluate wrote", dir.display());
    Ok(found)
}

pub fn read_evaluation(dir: &Path) -> Result<Evaluation> {
    let path = dir.join(RESULT);
    let bytes = read(&path).context("the evaluation is not finished, or was not made by bupo evaluate")?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not what bupo evaluate writes there", path.display()))
}

fn text(comparisons: &[Comparison], style: Style) -> String {
    let mut rows = Vec::new();
    for c in comparisons {
        for s in &c.scores {
            let d = &s.paired.difference;
            let error = d.standard_error.map_or(String::new(), |e| format!(" ± {}", percent(e)));
            rows.push(vec![
                format!("{} {}", c.name, s.score),
                percent(s.first),
                percent(s.second),
                format!("{:+.2}{error}", 100.0 * d.mean),
                interval(d),
                format!("{:.4}", s.paired.p_value),
                format!("{}/{}/{}", s.paired.better, s.paired.same, s.paired.worse),
            ]);
        }
    }
    let header = ["%", "first", "second", "difference", "95 % interval", "p", "better/same/worse"];
    let mut text = table(style, &header, &rows);
    let gap = if style == Style::Markdown { "\n\n" } else { "\n" };
    let spread = |s: &Spread| {
        let std = s.std.map_or(String::new(), |std| format!(" ± {}", percent(std)));
        format!("{}{std} over {} {}", percent(s.mean), s.runs, if s.runs == 1 { "evaluation" } else { "evaluations" })
    };
    for c in comparisons {
        let left_out =
            if c.left_out > 0 { format!(", {} left out that not all have", c.left_out) } else { String::new() };
        text.push_str(&format!(
            "{gap}{}: {} problems{left_out}; Avg@n (mean ± std over seeds) {} against {}",
            c.name,
            c.problems,
            spread(&c.first.avg_at_n),
            spread(&c.second.avg_at_n)
        ));
    }
    text.push('\n');
    text
}
