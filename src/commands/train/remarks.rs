//! What is allowed in a recipe and its data, but is hardly what was meant: said once, as a run begins.

use super::setup::{EvaluationSet, Source};
use crate::recipe::Recipe;
use crate::text::PromptEncoder;
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Errors: data that nothing could be learned or measured on.
pub fn of(recipe: &Recipe, source: &Source, sets: &[EvaluationSet], prompts: &PromptEncoder) -> Result<Vec<String>> {
    let mut remarks: Vec<String> = recipe.loss.remark().into_iter().collect();
    remarks.extend(recipe.rl.advantage.remark(recipe.rollout.group_size));
    if let Source::Files { problems, .. } = source {
        let golds = problems.iter().map(|p| p.gold.as_str());
        let of_golds = recipe.reward.remark_on_golds(golds).context("data.train")?;
        let of_prompts = prompts.remark(problems.iter().map(|p| p.messages.as_slice()));
        remarks.extend([of_golds, of_prompts].into_iter().flatten().map(|remark| format!("data.train: {remark}")));
    }
    for set in sets {
        let name = if set.name.is_empty() { "[evaluate]".to_string() } else { format!("the set {:?}", set.name) };
        let of_golds = set.reward.remark_on_golds(set.problems.iter().map(|p| p.gold.as_str()));
        let of_prompts = prompts.remark(set.problems.iter().map(|p| p.messages.as_slice()));
        let all = [set.left_out.clone(), of_golds.with_context(|| name.clone())?, of_prompts];
        remarks.extend(all.into_iter().flatten().map(|remark| format!("{name}: {remark}")));
    }
    Ok(remarks)
}

/// Of several files, with the number of problems in each: what the limit leaves out.
pub fn left_out(files: &[(PathBuf, usize)], limit: usize) -> Option<String> {
    let all: usize = files.iter().map(|(_, n)| n).sum();
    if all <= limit || files.len() < 2 {
        return None;
    }
    let mut room = limit;
    let parts = files.iter().map(|(file, n)| {
        let taken = room.min(*n);
        room -= taken;
        format!("{taken} of {n} in {}", file.display())
    });
    let parts: Vec<String> = parts.collect();
    Some(format!("problems = {limit} takes the first of {all}: {}", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_a_limit_cuts_are_named() {
        let files = [("a", 150), ("b", 120), ("c", 30)].map(|(file, n)| (PathBuf::from(file), n));
        let expected = "problems = 200 takes the first of 300: 150 of 150 in a, 50 of 120 in b, 0 of 30 in c";
        assert_eq!(left_out(&files, 200).as_deref(), Some(expected));
        assert_eq!(left_out(&files, 300), None);
        // The first problems of one file are what was asked for.
        assert_eq!(left_out(&files[..1], 10), None);
    }
}
