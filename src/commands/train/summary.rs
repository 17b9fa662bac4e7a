//! What a person sees of a run: a line a step, remarks on what looks wrong, and a table in the end.

use super::evaluations::{Best, SetScores};
use crate::analysis::Analysis;
use crate::commands::adapter::opens_with;
use crate::evaluate::scores::{PassAtK, Scores};
use crate::model::Compute;
use crate::recipe::Recipe;
use crate::rl::advantage::GroupStats;
use crate::rl::metrics::StepMetrics;
use crate::rl::schedule::Schedule;
use crate::run::progress::say;
use crate::verify::StatusCounts;
use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use serde_json::Value;
use std::path::Path;

/// Beside the progress bar.
pub fn line(m: &StepMetrics) -> String {
    format!(
        "{} reward {:.2} entropy {:.2} length {:.0}",
        m.policy, m.rewards.reward_mean, m.entropy_final, m.response_length.mean
    )
}

/// What it means that in every group all rewards are equal, where they are. It means something only where groups are compared.
fn alike(rewards: &GroupStats, verdicts: &StatusCounts, recipe: &Recipe) -> Option<String> {
    if rewards.frac_reward_zero_std < 1.0 || !recipe.rl.advantage.compares_groups() {
        return None;
    }
    let why = match verdicts.correct {
        0 => ", and no response is right",
        n if n == rewards.responses => ", and every response is right",
        _ => "",
    };
    let rest = recipe.loss.kl_coef != 0.0 || recipe.loss.entropy_coef != 0.0;
    let then =
        if rest { "only KL penalty and entropy bonus are trained" } else { "nothing can be learned from it (loss 0)" };
    Some(format!("in every group all rewards are equal{why}: {then}"))
}

/// Says in plain words what would otherwise be a riddle.
pub fn explain(m: &StepMetrics, recipe: &Recipe) {
    let is_idle = m.dynamic_sampling.is_some_and(|d| d.groups_dropped == d.prompts_sampled);
    if let Some(alike) = alike(&m.rewards, &m.verdicts, recipe).filter(|_| !is_idle) {
        say(&format!("step {}: {alike}", m.step));
    }
    if let Some(d) = m.dynamic_sampling.filter(|d| d.groups_dropped == d.prompts_sampled) {
        say(&format!(
            "step {}: dynamic sampling dropped each of the {} groups that were asked: nothing was updated in this step",
            m.step, d.prompts_sampled
        ));
    } else if let Some(d) = m.dynamic_sampling.filter(|d| d.groups_missing > 0) {
        say(&format!(
            "step {}: {} groups are missing in the batch: of {} prompts asked, {} were dropped with every reward above 0 and {} with none, and no more may \
             be asked (rollout.dynamic_sampling.max_batches)",
            m.step, d.groups_missing, d.prompts_sampled, d.dropped_all_rewarded, d.dropped_none_rewarded
        ));
    }
    if m.rewards_missing > 0 {
        say(&format!(
            "step {}: {} responses have no reward, since a part of it failed (completions.jsonl says why): left out",
            m.step, m.rewards_missing
        ));
    }
    // A single token of thousands: in bf16, whose products have three digits, 1e-2 is ordinary.
    let most = if recipe.compute == Compute::F32 { 1e-3 } else { 0.5 };
    if m.rollout_log_prob_difference.max > most {
        let d = m.rollout_log_prob_difference;
        say(&format!("step {}: log-probs of sampling and training differ by up to {:.1e}", m.step, d.max));
    }
    if !m.grad_norm.is_finite() {
        say(&format!("step {}: a gradient was not finite; {} optimizer steps skipped so far", m.step, m.skipped_steps));
    }
}

/// Everything that the last table tells.
pub struct Ending<'a> {
    pub dir: &'a Path,
    pub checkpoint: &'a Path,
    /// The best one, where it was kept.
    pub best: Option<Best>,
    pub schedule: &'a Schedule,
    pub before: &'a SetScores,
    pub after: &'a SetScores,
    /// The run's rows of `metrics.jsonl`, those before a resumption too.
    pub steps: &'a [Value],
    pub analysis_before: Option<Analysis>,
    pub analysis_after: &'a Analysis,
    pub seconds: f64,
    /// The seconds count from there, not from the run's beginning.
    pub resumed: bool,
    /// Reward and the optimized layer over the steps, drawn.
    pub chart: Option<String>,
}

pub fn print(e: &Ending<'_>) {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(["", "before", "after", "change"]);
    let mut row = |name: String, before: Option<f64>, after: Option<f64>, digits: usize| {
        let show = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.digits$}"));
        let change = before.zip(after).map_or("-".to_string(), |(b, a)| format!("{:+.digits$}", a - b));
        table.add_row([name, show(before), show(after), change]);
    };
    let percent = |scores: Option<&Scores>| scores.map(|s| 100.0 * s.avg_at_n.mean);
    for (name, after) in e.after {
        let before = e.before.iter().find(|(before, _)| before == name).map(|(_, scores)| scores);
        let label = if name.is_empty() { String::new() } else { format!("{name} ") };
        row(format!("{label}Avg@{} (%)", after.responses_per_problem), percent(before), percent(Some(after)), 1);
        for pass in &after.pass_at_k {
            let before = before.and_then(|scores| scores.pass_at_k.iter().find(|before| before.k == pass.k));
            let percent = |p: &PassAtK| 100.0 * p.pass.mean;
            row(format!("{label}Pass@{} (%)", pass.k), before.map(percent), Some(percent(pass)), 1);
        }
    }
    if let (Some(first), Some(last)) = (e.steps.first(), e.steps.last()) {
        for (name, at, digits) in [("reward", "/reward_mean", 3), ("response length", "/response_length/mean", 1)] {
            let number = |step: &Value| step.pointer(at).and_then(Value::as_f64);
            row(name.into(), number(first), number(last), digits);
        }
    }
    let before = e.analysis_before.as_ref();
    row("final entropy (nats)".into(), before.map(|a| a.final_entropy), Some(e.analysis_after.final_entropy), 3);
    let layer = |a: &Analysis| a.boundary_layer.map(|l| l as f64);
    row("boundary layer".into(), before.and_then(layer), layer(e.analysis_after), 0);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    if let Some(chart) = &e.chart {
        println!("{chart}");
    }
    let since = if e.resumed { "since it was resumed" } else { "in all" };
    println!("Optimized: {}. {:.0} s {since}.", e.schedule.describe(), e.seconds);
    println!("Run folder: {}   (metrics.jsonl, completions.jsonl, evaluation-*, analysis-*)", e.dir.display());
    println!("Model:      {}   (opens with {})", e.checkpoint.display(), opens_with(e.checkpoint));
    if let Some(Best { step, checkpoint, avg_at_n, n }) = &e.best {
        let (best, score) = (checkpoint.with_file_name("best"), 100.0 * avg_at_n);
        println!("Best:       {}   (step {step}, Avg@{n} {score:.1} %)", best.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::advantage::Group;

    #[test]
    fn equal_rewards_are_explained_by_verdicts_and_only_where_groups_are_compared() {
        let recipe = |more: &str| {
            let text = format!("name = \"a\"\n[model]\npath = \"m\"\n[data]\ntrain = [\"d.jsonl\"]\n{more}");
            Recipe::parse(&text, "test", &[]).unwrap()
        };
        // All rewards are above 0, and no response is right: a part for the format, say.
        let groups =
            [Group { rewards: &[0.1, 0.1], lengths: &[1, 1] }, Group { rewards: &[0.2, 0.2], lengths: &[1, 1] }];
        let (rewards, plain) = (GroupStats::of(&groups).unwrap(), recipe(""));
        let verdicts = |correct| StatusCounts { correct, wrong: 4 - correct, ..StatusCounts::default() };
        let of = |correct, recipe: &Recipe| alike(&rewards, &verdicts(correct), recipe);
        let nothing = "nothing can be learned from it (loss 0)";
        for (correct, why) in [(0, ", and no response is right"), (2, ""), (4, ", and every response is right")] {
            assert_eq!(of(correct, &plain), Some(format!("in every group all rewards are equal{why}: {nothing}")));
        }
        let more = of(4, &recipe("[loss]\nentropy_coef = 0.1\n")).unwrap();
        assert!(more.ends_with("only KL penalty and entropy bonus are trained"), "{more}");
        assert_eq!(of(4, &recipe("[rl]\nadvantage = \"reinforce++\"\n")), None);
        let differ = GroupStats::of(&[groups[0], Group { rewards: &[0.1, 0.2], lengths: &[1, 1] }]).unwrap();
        assert_eq!(alike(&differ, &verdicts(4), &plain), None);
    }
}
