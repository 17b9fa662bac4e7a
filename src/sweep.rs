//! Sweeps: one recipe in several variants, each with several seeds, side by side in a table.
//!
//! A sweep is a small TOML file. [`Sweep::runs`] spells out its runs; [`result`] reads what they left behind.

pub mod result;
pub mod table;

use crate::recipe::Recipe;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// `SWEEP.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// Names its folder, `runs/NAME`.
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// A recipe beside the sweep's file, as seen from the current folder, or a shipped one by its name.
    pub base: String,
    pub seeds: Vec<u64>,
    /// Changes that hold for every variant, `"rl.steps=50"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
    /// The command line's changes for every variant; they come last, over a variant's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<String>,
    /// Named changes; the first is what the others are compared with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variant: Vec<Variant>,
    /// Values for keys of the recipe: every combination is a variant, of each of the named ones if there are any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub grid: BTreeMap<String, Vec<toml::Value>>,
}

/// The recipe with some keys changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Names its folder.
    pub name: String,
    #[serde(default)]
    pub set: Vec<String>,
}

/// One training run of a sweep.
#[derive(Clone, Debug)]
pub struct PlannedRun {
    pub variant: usize,
    pub seed: u64,
    pub dir: PathBuf,
    /// Everything that `train --set` gets.
    pub set: Vec<String>,
    pub recipe: Recipe,
}

/// Most runs of a sweep: more is a slip of the pen.
const MOST: usize = 10_000;
/// Folder of the models that runs begin with.
const STARTS: &str = "starts";
/// Keys that a sweep decides itself.
const OWN: [(&str, &str); 4] = [
    ("seed", "name them in seeds"),
    ("threads", "give the sweep --threads and --jobs"),
    ("run.dir", "every run has a folder below the sweep's"),
    ("run.starts", "runs that begin alike share a start in the sweep's folder"),
];

impl Sweep {
    /// From TOML text; `origin` names it in errors. `more` are changes for every variant, from the command line.
    pub fn parse(text: &str, origin: &str, more: &[String]) -> Result<Sweep> {
        let mut sweep: Sweep = toml::from_str(text).with_context(|| format!("the sweep {origin}"))?;
        sweep.asked = more.to_vec();
        sweep.check().with_context(|| format!("the sweep {origin}"))?;
        Ok(sweep)
    }

    fn check(&self) -> Result<()> {
        check_name("name", &self.name)?;
        ensure!(!self.seeds.is_empty(), "seeds = []: expected at least one");
        let distinct: BTreeSet<u64> = self.seeds.iter().copied().collect();
        ensure!(distinct.len() == self.seeds.len(), "seeds = {:?}: expected seeds that differ", self.seeds);
        for (key, values) in &self.grid {
            ensure!(!values.is_empty(), "grid.\"{key}\" = []: expected at least one value");
            let asked = self.asked.iter().find(|assignment| key_of(assignment) == key);
            ensure!(asked.is_none(), "--set {}: this sweep's grid varies {key}", asked.map_or("", String::as_str));
        }
        let combinations = self.grid.values().try_fold(self.seeds.len(), |n, values| n.checked_mul(values.len()));
        let runs = combinations.and_then(|n| n.checked_mul(self.variant.len().max(1)));
        ensure!(
            runs.is_some_and(|n| n <= MOST),
            "more than {MOST} runs: expected fewer seeds, variants or grid values"
        );
        let variants = self.variants();
        ensure!(!variants.is_empty(), "nothing varies: expected [[variant]] or [grid]");
        let mut names = BTreeSet::new();
        for variant in &variants {
            check_name("variant.name", &variant.name)?;
            ensure!(variant.name != STARTS, "variant.name = {STARTS:?}: that folder holds what runs begin with");
            ensure!(
                names.insert(&variant.name),
                "two variants are named {:?}: expected names that differ",
                variant.name
            );
            for assignment in self.set.iter().chain(&variant.set).chain(&self.asked) {
                let key = key_of(assignment);
                if let Some((key, remedy)) = OWN.iter().find(|(own, _)| *own == key) {
                    anyhow::bail!(
                        "variant {}: {assignment:?} sets {key}, which the sweep decides: {remedy}",
                        variant.name
                    );
                }
            }
        }
        Ok(())
    }

    /// Every variant, the grid's combinations spelled out, in the order they are written (a grid's last key fastest).
    pub fn variants(&self) -> Vec<Variant> {
        let mut variants = self.variant.clone();
        if variants.is_empty() && !self.grid.is_empty() {
            variants.push(Variant { name: String::new(), set: Vec::new() });
        }
        for (key, values) in &self.grid {
            let short = key.rsplit('.').next().unwrap_or(key);
            let with = |variant: &Variant, value: &toml::Value| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
                let plain: String =
                    text.chars().map(|c| if c.is_alphanumeric() || c == '.' || c == '-' { c } else { '_' }).collect();
                let gap = if variant.name.is_empty() { "" } else { "-" };
                Variant {
                    name: format!("{}{gap}{short}-{plain}", variant.name),
                    set: [&variant.set[..], &[format!("{key}={value}")]].concat(),
                }
            };
            variants =
                variants.iter().flat_map(|variant| values.iter().map(move |value| with(variant, value))).collect();
        }
        variants
    }

    /// Every run, variants within seeds: the first seed of all variants comes first, so that a sweep that is stopped early
    /// has compared what it has. Each recipe is loaded and checked.
    pub fn runs(&self, sweep_file: &Path, dir: &Path) -> Result<Vec<PlannedRun>> {
        let base = self.base_recipe(sweep_file);
        let variants = self.variants();
        let mut runs = Vec::with_capacity(variants.len() * self.seeds.len());
        for &seed in &self.seeds {
            for (i, variant) in variants.iter().enumerate() {
                let own = [format!("seed={seed}"), format!("run.starts={}", dir.join(STARTS).display())];
                // What the command line says comes last: a variant's own value gives way to it.
                let set = [&self.set[..], &variant.set, &self.asked, &own].concat();
                let recipe = Recipe::load(&base, &set).with_context(|| format!("variant {}", variant.name))?;
                recipe.check_data().with_context(|| format!("variant {}", variant.name))?;
                let dir = dir.join(&variant.name).join(format!("seed-{seed}"));
                runs.push(PlannedRun { variant: i, seed, dir, set, recipe });
            }
        }
        Ok(runs)
    }

    /// The base as `train` takes it.
    pub fn base_recipe(&self, sweep_file: &Path) -> String {
        let beside = sweep_file.parent().unwrap_or(Path::new("")).join(&self.base);
        if beside.is_file() { beside.display().to_string() } else { self.base.clone() }
    }
}

impl PlannedRun {
    /// What a recipe that was found in the run's folder has otherwise than this run's; where it writes and on how many threads it
    /// runs is free, and the snapshot that a model's name stood for too.
    pub fn differences(&self, found: &Recipe) -> Result<Vec<String>> {
        let free = |r: &Recipe| Recipe {
            run: self.recipe.run.clone(),
            threads: None,
            model: if r.model.path.is_some() { self.recipe.model.clone() } else { r.model.clone() },
            ..r.clone()
        };
        free(&self.recipe).differences(&free(found))
    }
}

fn key_of(assignment: &str) -> &str {
    assignment.split('=').next().unwrap_or("").trim()
}

fn check_name(key: &str, name: &str) -> Result<()> {
    ensure!(
        name.starts_with(char::is_alphanumeric) && name.chars().all(|c| c.is_alphanumeric() || "-_.+".contains(c)),
        "{key} = {name:?}: expected letters, digits, - _ + and . only, and a letter or digit first (it names a folder)"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: [(&str, &str, usize); 7] = [
        ("first-look", include_str!("../sweeps/first-look.toml"), 3),
        ("table-1-methods", include_str!("../sweeps/table-1-methods.toml"), 15),
        ("table-2-internal-steps", include_str!("../sweeps/table-2-internal-steps.toml"), 12),
        ("table-3-layers", include_str!("../sweeps/table-3-layers.toml"), 12),
        ("table-5-final-norm", include_str!("../sweeps/table-5-final-norm.toml"), 6),
        ("table-10-modules", include_str!("../sweeps/table-10-modules.toml"), 9),
        ("table-11-layer-aware", include_str!("../sweeps/table-11-layer-aware.toml"), 12),
    ];

    #[test]
    fn every_shipped_sweep_is_whole() {
        for (name, text, runs) in SHIPPED {
            let sweep = Sweep::parse(text, name, &[]).unwrap();
            assert_eq!(sweep.name, name);
            let planned = sweep.runs(Path::new("sweeps/x.toml"), Path::new("out")).unwrap();
            assert_eq!(planned.len(), runs, "{name}");
            assert!(planned.iter().all(|run| run.differences(&run.recipe).unwrap().is_empty()));
            assert!(!planned[0].differences(&planned[1].recipe).unwrap().is_empty());
        }
    }

    #[test]
    fn a_grid_is_every_combination_of_every_variant() {
        let text = "name = \"g\"\nbase = \"arithmetic-bupo\"\nseeds = [1, 2]\n[[variant]]\nname = \"a\"\n[[variant]]\n\
                    name = \"b\"\nset = [\"rl.lr=1e-3\"]\n[grid]\n\"bupo.layer\" = [1, \"auto\"]\n\"bupo.steps\" = [2, 4]\n";
        let sweep = Sweep::parse(text, "g", &["rl.steps=9".into()]).unwrap();
        let names: Vec<String> = sweep.variants().into_iter().map(|v| v.name).collect();
        assert_eq!(names.len(), 8);
        assert_eq!(names[..3], ["a-layer-1-steps-2", "a-layer-1-steps-4", "a-layer-auto-steps-2"]);
        let runs = sweep.runs(Path::new("g.toml"), Path::new("out")).unwrap();
        assert_eq!(runs.len(), 16);
        assert_eq!(runs[9].dir, Path::new("out/a-layer-1-steps-4/seed-2"));
        assert_eq!((runs[9].recipe.seed, runs[9].recipe.bupo.steps, runs[9].recipe.rl.steps), (2, 4, 9));
        // The command line's comes after a variant's own, but decides nothing that the grid varies.
        let own = text.replace("set = [", "set = [\"rl.steps=5\", ");
        let sweep = Sweep::parse(&own, "g", &["rl.steps=9".into()]).unwrap();
        let runs = sweep.runs(Path::new("g.toml"), Path::new("out")).unwrap();
        assert!(runs.iter().all(|run| run.recipe.rl.steps == 9));
        let error = Sweep::parse(text, "g", &["bupo.steps=9".into()]).unwrap_err();
        assert!(format!("{error:#}").contains("--set bupo.steps=9: this sweep's grid varies bupo.steps"), "{error:#}");
    }

    #[test]
    fn mistakes_are_named() {
        let good = "name = \"g\"\nbase = \"arithmetic-bupo\"\nseeds = [1]\n";
        for (text, expected) in [
            (good.to_string(), "nothing varies"),
            (good.replace("[1]", "[]"), "seeds = []"),
            (good.replace("[1]", "[1, 1]"), "seeds that differ"),
            (format!("{good}[[variant]]\nname = \"a/b\""), "variant.name = \"a/b\""),
            (format!("{good}[[variant]]\nname = \"a\"\n[[variant]]\nname = \"a\""), "named \"a\""),
            (format!("{good}[[variant]]\nname = \"a\"\nset = [\"seed=3\"]"), "variant a: \"seed=3\" sets seed"),
            (format!("{good}[[variant]]\nname = \"a\"\nsets = []"), "unknown field `sets`"),
            (format!("{good}[grid]\n\"rl.lr\" = []"), "grid.\"rl.lr\" = []"),
        ] {
            let error = format!("{:#}", Sweep::parse(&text, "g.toml", &[]).unwrap_err());
            assert!(error.contains(expected) && error.contains("g.toml"), "{error}\nexpected: {expected}");
        }
        let typo = format!("{good}[[variant]]\nname = \"a\"\nset = [\"rl.stepz=3\"]");
        let error = Sweep::parse(&typo, "g", &[]).unwrap().runs(Path::new("g"), Path::new("out")).unwrap_err();
        assert!(format!("{error:#}").contains("variant a") && format!("{error:#}").contains("rl.steps"), "{error:#}");
    }
}
