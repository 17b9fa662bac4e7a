//! What is to be evaluated: suites or a file, with the options' changes, everything checked and read before the model.

use super::{asked_reward, limited, say_bad_rows};
use crate::cli::EvaluateArgs;
use crate::commands::asked_template;
use crate::evaluate::run::distinct_ids;
use crate::evaluate::suite::Suite;
use crate::hub;
use crate::run::atomic::read;
use crate::run::progress::say;
use crate::tasks::Problem;
use crate::tasks::dataset::{BadRow, sort_rows};
use crate::text::PromptTemplate;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};

/// One set of problems, ready to be asked.
pub struct Plan {
    pub suite: Suite,
    pub problems: Vec<Problem>,
    pub bad_rows: Vec<BadRow>,
    /// The options' way of asking, else the suite's; the model's chat template without either.
    pub template: Option<PromptTemplate>,
}

pub fn plans(args: &EvaluateArgs) -> Result<Vec<Plan>> {
    ensure!(args.n != Some(0), "-n 0: expected at least one response to each problem");
    ensure!(args.slots > 0, "--slots 0: expected at least one sequence");
    let suites: Vec<(Suite, Vec<PathBuf>)> = match &args.data {
        Some(data) => {
            let here = || find(data, &[Path::new("")]).map(|file| vec![file]);
            let files = hub::data(data)?.or_else(here);
            let files = files.with_context(|| format!("--data {data}: there is no such file"))?;
            let stem = files.first().and_then(|f| f.file_stem()).map_or("data".into(), |s| s.to_string_lossy());
            let name: String = stem.chars().filter(|c| c.is_alphanumeric() || "-_.".contains(*c)).collect();
            let name = if name.starts_with(char::is_alphanumeric) { name } else { format!("set{name}") };
            vec![(Suite::of_file(&name, data), files)]
        }
        None => args.suite.iter().map(|name| load(name, &args.data_dir)).collect::<Result<_>>()?,
    };
    let mut seen = Vec::new();
    for (suite, _) in &suites {
        ensure!(!seen.contains(&suite.name), "two suites are named {}: each needs a folder of its own", suite.name);
        seen.push(suite.name.clone());
    }
    suites.into_iter().map(|(suite, files)| plan(args, suite, &files)).collect()
}

fn plan(args: &EvaluateArgs, mut suite: Suite, files: &[PathBuf]) -> Result<Plan> {
    suite.n = args.n.unwrap_or(suite.n);
    if args.n.is_some() {
        // The suite's own K may lie beyond.
        suite.k = suite.k.map(|ks| ks.into_iter().filter(|k| *k <= suite.n).collect());
    }
    suite.k = args.k.clone().or(suite.k);
    suite.temperature = args.temperature.unwrap_or(suite.temperature);
    suite.top_p = args.top_p.unwrap_or(suite.top_p);
    suite.top_k = args.top_k.unwrap_or(suite.top_k);
    suite.max_new_tokens = args.max_new_tokens.or(suite.max_new_tokens);
    suite.reward = asked_reward(args).unwrap_or(suite.reward);
    suite.check().with_context(|| format!("{} with the options given", suite.name))?;
    let (mut problems, mut bad_rows) = (Vec::new(), Vec::new());
    for file in files {
        let (good, bad) = sort_rows(file, !suite.reward.works_without_gold())?;
        problems.extend(good);
        bad_rows.extend(bad);
    }
    say_bad_rows(&bad_rows);
    let remark = suite.reward.remark_on_golds(problems.iter().map(|p| p.gold.as_str()));
    remark.with_context(|| suite.name.clone())?.iter().for_each(|remark| say(&format!("{}: {remark}", suite.name)));
    limited(&mut problems, args.limit)?;
    problems.iter_mut().for_each(|problem| suite.ask(problem));
    distinct_ids(&mut problems);
    let template = asked_template(&args.prompt).or(suite.prompt.clone());
    Ok(Plan { suite, problems, bad_rows, template })
}

/// A suite and the files that its data was found in.
fn load(name: &str, data_dir: &Path) -> Result<(Suite, Vec<PathBuf>)> {
    let path = Path::new(name);
    let (suite, beside) = if path.is_file() {
        let bytes = read(path)?;
        let text = String::from_utf8(bytes).with_context(|| format!("the suite {name} is no UTF-8 text"))?;
        (Suite::parse(&text, name)?, path.parent())
    } else if let Some(text) = Suite::shipped_text(name) {
        (Suite::parse(text, name)?, None)
    } else {
        let shipped: Vec<&str> = Suite::shipped().collect();
        bail!("no suite {name}: expected a TOML file, or one of the shipped suites {}", shipped.join(", "));
    };
    let folders: Vec<&Path> = beside.into_iter().chain([data_dir]).collect();
    let found: Vec<Option<PathBuf>> = suite.data.iter().map(|file| find(file, &folders)).collect();
    let missing = suite.data.iter().zip(&found).find(|(_, found)| found.is_none()).map(|(file, _)| file.clone());
    match missing {
        None => Ok((suite, found.into_iter().flatten().collect())),
        Some(missing) if !suite.hub.is_empty() => on_the_hub(suite, &missing, &folders),
        Some(missing) => bail!(
            "the suite {name} needs {missing}, which is not in {}: put it there, or name the folder with --data-dir",
            folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(" or ")
        ),
    }
}

/// Where a suite's files are not here, all of them come from the hub.
fn on_the_hub(suite: Suite, missing: &str, folders: &[&Path]) -> Result<(Suite, Vec<PathBuf>)> {
    let looked = folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(" or ");
    say(&format!("{}: {missing} is not in {looked}; taking {}", suite.name, suite.hub.join(", ")));
    let mut files = Vec::new();
    for address in &suite.hub {
        let found = hub::data(address).with_context(|| {
            format!("the suite {} needs {missing}, which is not in {looked} (--data-dir)", suite.name)
        })?;
        files.extend(found.with_context(|| format!("hub = {address:?}: expected hf://datasets/OWNER/NAME"))?);
    }
    Ok((suite, files))
}

/// A file of problems in one of the folders; an absolute path is its own.
fn find(file: &str, folders: &[&Path]) -> Option<PathBuf> {
    folders.iter().map(|folder| folder.join(file)).find(|path| path.is_file())
}
