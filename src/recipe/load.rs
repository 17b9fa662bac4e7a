//! From TOML text and command-line overrides to a checked [`Recipe`], with errors that name the line and the key.

use super::Recipe;
use anyhow::{Context, Result, anyhow, bail};
use std::path::Path;
use toml::{Table, Value};

/// The recipes that ship inside the binary.
const SHIPPED: [(&str, &str); 10] = [
    ("arithmetic-bupo", include_str!("../../recipes/arithmetic-bupo.toml")),
    ("arithmetic-grpo", include_str!("../../recipes/arithmetic-grpo.toml")),
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
        // A shipped file's path names the embedded copy too, so that the binary works away from its sources.
        let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let shipped = SHIPPED.iter().find(|(shipped, _)| *shipped == name);
        let text = match (path.is_file(), shipped) {
            (true, _) => {
                std::fs::read_to_string(path).with_context(|| format!("cannot read the recipe {}", path.display()))?
            }
            (false, Some((_, text))) => text.to_string(),
            (false, None) => bail!(
                "no recipe {name_or_path}: expected a TOML file, or one of the shipped recipes {}",
                Recipe::shipped().collect::<Vec<_>>().join(", ")
            ),
        };
        Recipe::parse(&text, name_or_path, overrides)
    }

    /// From TOML text; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Recipe> {
        let mut table: Table = toml::from_str(text).map_err(|e| located(&e, text, origin))?;
        if overrides.is_empty() {
            // From the text itself: only then do errors know their line.
            let recipe: Recipe = toml::from_str(text).map_err(|e| located(&e, text, origin))?;
            recipe.check().with_context(|| format!("recipe {origin}"))?;
            return Ok(recipe);
        }
        for assignment in overrides {
            set(&mut table, assignment)?;
        }
        let recipe = Recipe::deserialize_table(table)
            .with_context(|| format!("recipe {origin} with --set {}", overrides.join(" --set ")))?;
        recipe.check().with_context(|| format!("recipe {origin} with --set {}", overrides.join(" --set ")))?;
        Ok(recipe)
    }

    fn deserialize_table(table: Table) -> Result<Recipe> {
        // Through text: then an error has a span, and with it the section that it lies in.
        let text = toml::to_string(&table).context("the overridden recipe cannot be written as TOML")?;
        toml::from_str(&text).map_err(|e| {
            let at = e.span().map_or(0, |s| s.start);
            anyhow!("{}", explain(e.message(), &section_at(&text, at)))
        })
    }

    /// As TOML, every default spelled out: what the run's folder keeps.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("the recipe cannot be written as TOML")
    }
}

/// `a.b.c=value`: the value as TOML, or as text if it is none.
fn set(table: &mut Table, assignment: &str) -> Result<()> {
    let (key, value) = assignment
        .split_once('=')
        .ok_or_else(|| anyhow!("--set {assignment}: expected KEY=VALUE, e.g. --set optimizer.lr=1e-5"))?;
    let (key, value) = (key.trim(), value.trim());
    let parsed = toml::from_str::<Table>(&format!("x = {value}")).ok().and_then(|mut t| t.remove("x"));
    let parsed = parsed.unwrap_or_else(|| Value::String(value.to_string()));
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().filter(|l| !l.is_empty()).ok_or_else(|| anyhow!("--set {assignment}: the key is empty"))?;
    let mut at = table;
    for part in parts {
        let entry = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = entry.as_table_mut().ok_or_else(|| anyhow!("--set {assignment}: {part} is a value, not a section"))?;
    }
    at.insert(last.to_string(), parsed);
    Ok(())
}

/// A TOML error with file, line and, for an unknown key, the nearest known one.
fn located(error: &toml::de::Error, text: &str, origin: &str) -> anyhow::Error {
    let at = error.span().map_or(0, |s| s.start).min(text.len());
    let line = text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
    anyhow!("{} ({origin}, line {line})", explain(error.message(), &section_at(text, at)))
}

/// The header that byte `at` lies under.
fn section_at(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let header = before.lines().rev().find_map(|l| l.trim().strip_prefix('[')?.split(']').next().map(str::to_string));
    header.unwrap_or_default()
}

/// serde's words into ours: ``unknown field `x`, expected one of `a`, `b` `` names the nearest.
fn explain(message: &str, section: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let full = |key: &str| if section.is_empty() { key.to_string() } else { format!("{section}.{key}") };
    match (message.starts_with("unknown field"), quoted.split_first()) {
        (true, Some((unknown, known))) => {
            let distance = |k: &&&str| strsim::damerau_levenshtein(unknown, k);
            match known.iter().min_by_key(distance).filter(|k| distance(k) <= 1 + k.len() / 2) {
                Some(near) => format!("unknown key {}: did you mean {}?", full(unknown), full(near)),
                None => format!("unknown key {}: expected one of {}", full(unknown), known.join(", ")),
            }
        }
        _ if section.is_empty() => message.to_string(),
        _ => format!("[{section}] {message}"),
    }
}
