//! From TOML text and command-line overrides to a checked [`Recipe`], with errors that name the line and the key.

use super::Recipe;
use super::differences::flat;
use super::explain::explain;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use toml::{Table, Value};

/// The recipes that ship inside the binary.
const SHIPPED: [(&str, &str); 15] = [
    ("arithmetic-bupo", include_str!("../../recipes/arithmetic-bupo.toml")),
    ("arithmetic-grpo", include_str!("../../recipes/arithmetic-grpo.toml")),
    ("arithmetic-dapo", include_str!("../../recipes/arithmetic-dapo.toml")),
    ("arithmetic-ppo", include_str!("../../recipes/arithmetic-ppo.toml")),
    ("arithmetic-lora", include_str!("../../recipes/arithmetic-lora.toml")),
    ("brackets-bupo", include_str!("../../recipes/brackets-bupo.toml")),
    ("brackets-grpo", include_str!("../../recipes/brackets-grpo.toml")),
    ("qwen3-4b-bupo", include_str!("../../recipes/qwen3-4b-bupo.toml")),
    ("qwen3-4b-grpo", include_str!("../../recipes/qwen3-4b-grpo.toml")),
    ("qwen3-8b-bupo", include_str!("../../recipes/qwen3-8b-bupo.toml")),
    ("qwen3-8b-grpo", include_str!("../../recipes/qwen3-8b-grpo.toml")),
    ("octothinker-3b-bupo", include_str!("../../recipes/octothinker-3b-bupo.toml")),
    ("octothinker-3b-grpo", include_str!("../../recipes/octothinker-3b-grpo.toml")),
    ("octothinker-8b-bupo", include_str!("../../recipes/octothinker-8b-bupo.toml")),
    ("octothinker-8b-grpo", include_str!("../../recipes/octothinker-8b-grpo.toml")),
];

impl Recipe {
    /// Names of the recipes inside the binary.
    pub fn shipped() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    /// Loads a recipe file, or a shipped recipe by its name, applies `--set` overrides and checks everything that needs no
    /// model.
    pub fn load(name_or_path: &str, overrides: &[String]) -> Result<Recipe> {
        let path = Path::new(name_or_path);
        let text = match (path.is_file(), shipped(name_or_path)) {
            (true, _) => {
                std::fs::read_to_string(path).with_context(|| format!("cannot read the recipe {}", path.display()))?
            }
            (false, Some(text)) => text.to_string(),
            (false, None) => bail!(
                "no recipe {name_or_path}: expected a TOML file, or one of the shipped recipes {}",
                Recipe::shipped().collect::<Vec<_>>().join(", ")
            ),
        };
        Recipe::parse(&text, name_or_path, overrides)
    }

    /// From TOML text; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Recipe> {
        let written = toml::from_str::<Recipe>(text);
        let located = |e: &toml::de::Error| {
            let (sentence, line) = explain(e, text, &known_keys());
            anyhow!("{sentence} ({origin}, line {line})")
        };
        if overrides.is_empty() {
            let recipe = written.map_err(|e| located(&e))?;
            recipe.check().with_context(|| format!("recipe {origin}"))?;
            return Ok(recipe);
        }
        let mut table: Table = toml::from_str(text).map_err(|e| located(&e))?;
        for assignment in overrides {
            set(&mut table, assignment)?;
        }
        let origin = format!("{origin} with --set {}", overrides.join(" --set "));
        // Through text: only then does an error know the key that it is about.
        let text = toml::to_string(&table).context("the overridden recipe cannot be written as TOML")?;
        let recipe: Recipe = toml::from_str(&text).map_err(|overridden| match &written {
            // A mistake of the file's own, which has a line there.
            Err(own) if own.message() == overridden.message() => located(own),
            _ => anyhow!("{} ({origin})", explain(&overridden, &text, &known_keys()).0),
        })?;
        recipe.check().with_context(|| format!("recipe {origin}"))?;
        Ok(recipe)
    }

    /// As TOML, every default spelled out: what the run's folder keeps.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("the recipe cannot be written as TOML")
    }
}

/// The embedded text of a shipped recipe: `NAME`, or the path that it has in the sources, so that the binary works away
/// from them. No other folder counts: a mistyped path must not train something else.
fn shipped(name_or_path: &str) -> Option<&'static str> {
    let name = name_or_path.strip_prefix("./").unwrap_or(name_or_path);
    let name = name.strip_prefix("recipes/").unwrap_or(name);
    let name = name.strip_suffix(".toml").unwrap_or(name);
    SHIPPED.iter().find(|(shipped, _)| *shipped == name).map(|(_, text)| *text)
}

/// Between them, recipes with every section: a fresh model on arithmetic, with dynamic sampling, with a critic, with adapters, and a
/// checkpoint on files.
const WHOLE: [&str; 5] = ["arithmetic-bupo", "arithmetic-dapo", "arithmetic-ppo", "arithmetic-lora", "qwen3-4b-bupo"];

/// Dotted keys of whole recipes, sorted.
fn known_keys() -> Vec<String> {
    let whole = SHIPPED.iter().filter(|(name, _)| WHOLE.contains(name));
    let recipes = whole.filter_map(|(_, text)| toml::from_str::<Recipe>(text).ok());
    let keys: BTreeSet<String> =
        recipes.filter_map(|recipe| flat(&recipe).ok()).flat_map(BTreeMap::into_keys).collect();
    keys.into_iter().collect()
}

/// `a.b.c=value`: the value as TOML, or as text if it is none.
fn set(table: &mut Table, assignment: &str) -> Result<()> {
    let (key, value) = assignment
        .split_once('=')
        .ok_or_else(|| anyhow!("--set {assignment}: expected KEY=VALUE, e.g. --set rl.lr=1e-5"))?;
    let (key, value) = (key.trim(), value.trim());
    let parsed = value.parse::<Value>().unwrap_or_else(|_| Value::String(value.to_string()));
    let parts: Vec<&str> = key.split('.').collect();
    ensure!(
        parts.iter().all(|part| !part.is_empty()),
        "--set {assignment}: expected a dotted key before =, e.g. rl.lr"
    );
    let (sections, last) = parts.split_at(parts.len() - 1);
    let mut at = table;
    for part in sections {
        let entry = at.entry(*part).or_insert_with(|| Value::Table(Table::new()));
        at = entry.as_table_mut().ok_or_else(|| anyhow!("--set {assignment}: {part} is a value, not a section"))?;
    }
    at.insert(last.concat(), parsed);
    Ok(())
}
