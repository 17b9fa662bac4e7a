//! What two recipes differ in, key by key.

use super::Recipe;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use toml::{Table, Value};

impl Recipe {
    /// Every key that `then` had otherwise, with both values.
    pub fn differences(&self, then: &Recipe) -> Result<Vec<String>> {
        let (now, then) = (flat(self)?, flat(then)?);
        let keys: BTreeSet<&String> = now.keys().chain(then.keys()).collect();
        let shown = |value: Option<&Value>| value.map_or("not there".to_string(), Value::to_string);
        let differing = keys.into_iter().filter(|key| now.get(*key) != then.get(*key));
        Ok(differing.map(|key| format!("{key} was {} and is {}", shown(then.get(key)), shown(now.get(key)))).collect())
    }
}

/// Every dotted key of a recipe with its value.
pub(super) fn flat(recipe: &Recipe) -> Result<BTreeMap<String, Value>> {
    let mut keys = BTreeMap::new();
    collect(Table::try_from(recipe).context("a recipe cannot be spelled out")?, "", &mut keys);
    Ok(keys)
}

fn collect(table: Table, prefix: &str, keys: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        let key = format!("{prefix}{key}");
        match value {
            Value::Table(inner) => collect(inner, &format!("{key}."), keys),
            value => drop(keys.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_are_named_with_both_values() {
        let then = Recipe::load("arithmetic-bupo", &[]).unwrap();
        assert!(then.differences(&then).unwrap().is_empty());
        let set = |assignment: &str| Recipe::load("arithmetic-bupo", &[assignment.into()]).unwrap();
        let steps = then.rl.steps;
        assert_eq!(set("rl.steps=77").differences(&then).unwrap(), [format!("rl.steps was {steps} and is 77")]);
    }
}
