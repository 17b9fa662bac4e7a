//! `docs/RECIPE.md` against the recipe itself. Nothing here lists keys: serde is asked for them, so a key that is new, renamed or gone
//! makes the page wrong.

use super::*;
use crate::recipe::differences::flat;
use toml::{Table, Value};

const PAGE: &str = include_str!("../../../docs/RECIPE.md");

/// No key and no variant of anything, so that whoever meets it says what it would have taken.
const UNKNOWN: &str = "no such name";

/// The name that the page gives to what a person names.
const NAME: &str = "NAME";

/// A way down into a recipe: into a key of a table, beside what that table cannot do without, or into a list's only entry.
#[derive(Clone)]
enum Step {
    Key(String, Table),
    Entry,
}

/// A key that holds a value.
struct Leaf {
    key: String,
    steps: Vec<Step>,
    required: bool,
    /// The words that it takes, where it takes no others.
    words: Vec<String>,
}

fn table(key: &str, value: impl Into<Value>) -> Table {
    Table::from_iter([(key.to_string(), value.into())])
}

/// The recipe that holds `value` at the end of `steps`, and else only what it cannot do without.
fn recipe(steps: &[Step], value: impl Into<Value>) -> Result<Recipe, String> {
    let whole = steps.iter().rev().fold(value.into(), |inner, step| match step {
        Step::Key(key, beside) => {
            let mut table = beside.clone();
            table.insert(key.clone(), inner);
            table.into()
        }
        Step::Entry => vec![inner].into(),
    });
    whole.try_into().map_err(|e: toml::de::Error| e.message().to_string())
}

/// What serde says of `value` there: what kind of sentence, and the names in it but for the first, which is what was wrong.
fn answer(steps: &[Step], value: impl Into<Value>) -> (String, Vec<String>) {
    let Err(message) = recipe(steps, value) else { return ("accepted".into(), Vec::new()) };
    let (kind, _) = message.split_once(" `").unwrap_or((&message, ""));
    let names = message.split('`').skip(1).step_by(2);
    let names = if kind == "missing field" { names.collect::<Vec<_>>() } else { names.skip(1).collect() };
    (kind.to_string(), names.into_iter().map(str::to_string).collect())
}

fn down(steps: &[Step], step: Step) -> Vec<Step> {
    steps.iter().cloned().chain([step]).collect()
}

fn dotted(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_string() } else { format!("{parent}.{key}") }
}

/// Every key below `steps`, whose name is `name`.
fn walk(steps: &[Step], name: &str, leaves: &mut Vec<Leaf>) {
    let leaf = |key: String, steps: Vec<Step>, words: Vec<String>| {
        let required = matches!(steps.last(), Some(Step::Key(key, beside)) if beside.contains_key(key));
        Leaf { key, steps, required, words }
    };
    let into = |key: &str| down(steps, Step::Key(key.into(), Table::new()));
    let (kind, names) = answer(steps, table(UNKNOWN, 0));
    match (kind.as_str(), names.as_slice()) {
        ("unknown field", fields) => of_table(steps, name, Table::new(), fields, leaves),
        // A word, or a table with one key of several.
        ("unknown variant", [first, ..]) => match answer(steps, first.as_str()).0.as_str() {
            "accepted" => leaves.push(leaf(name.into(), steps.to_vec(), names)),
            _ => names.iter().for_each(|variant| walk(&into(variant), &dotted(name, variant), leaves)),
        },
        // A table whose other keys depend on one of them.
        ("missing field", [tag]) => {
            let (_, variants) = answer(steps, table(tag, UNKNOWN));
            assert!(!variants.is_empty(), "{name}.{tag}");
            let steps_to = down(steps, Step::Key(tag.clone(), table(tag, variants[0].as_str())));
            leaves.push(leaf(dotted(name, tag), steps_to, variants.clone()));
            for variant in variants {
                let beside = table(tag, variant);
                let (_, fields) = answer(steps, merged(&beside, UNKNOWN, 0));
                of_table(steps, name, beside, &fields, leaves);
            }
        }
        ("accepted", _) => leaves.push(leaf(dotted(name, NAME), into(NAME), Vec::new())),
        _ => {
            let (in_list, words) = answer(steps, vec![Value::from(UNKNOWN)]);
            if answer(&down(steps, Step::Entry), table(UNKNOWN, 0)).0 == "unknown field" {
                walk(&down(steps, Step::Entry), &format!("{name}[]"), leaves);
            } else if answer(&into(NAME), table(UNKNOWN, 0)).0 == "missing field" {
                walk(&into(NAME), &dotted(name, NAME), leaves);
            } else {
                let words = if in_list == "unknown variant" { words } else { Vec::new() };
                leaves.push(leaf(name.into(), steps.to_vec(), words));
            }
        }
    }
}

fn merged(beside: &Table, key: &str, value: impl Into<Value>) -> Table {
    let mut table = beside.clone();
    table.insert(key.to_string(), value.into());
    table
}

/// The keys `fields` of a table that holds `beside` and whatever serde misses there besides.
fn of_table(steps: &[Step], name: &str, mut beside: Table, fields: &[String], leaves: &mut Vec<Leaf>) {
    let fillers = [Value::from("x"), Value::from(1), Value::from(Table::new())];
    loop {
        let (kind, names) = answer(steps, beside.clone());
        let ("missing field", [missing]) = (kind.as_str(), names.as_slice()) else { break };
        let fits =
            |filler: &&Value| !answer(steps, merged(&beside, missing, (*filler).clone())).0.starts_with("invalid");
        let filler = fillers.iter().find(fits).unwrap_or_else(|| panic!("nothing fits {name}.{missing}"));
        beside.insert(missing.clone(), filler.clone());
    }
    for field in fields {
        walk(&down(steps, Step::Key(field.clone(), beside.clone())), &dotted(name, field), leaves);
    }
}

fn leaves() -> Vec<Leaf> {
    let mut leaves = Vec::new();
    walk(&[], "", &mut leaves);
    leaves
}

/// A line of one of the page's tables.
#[derive(Clone, Copy)]
struct Row {
    key: &'static str,
    default: &'static str,
    meaning: &'static str,
}

fn rows() -> Vec<Row> {
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect();
        let [key, default, meaning] = cells[..] else { panic!("expected three cells: {line}") };
        let key = key.strip_prefix('`')?.strip_suffix('`')?;
        Some(Row { key, default, meaning })
    };
    PAGE.lines().filter_map(row).collect()
}

/// What the upper-case words of a row's key stand for in `key`; `KEY` is all that is left of it. None if it is another key.
fn stands_for(pattern: &str, key: &str) -> Option<Vec<(String, String)>> {
    let (mut bound, mut rest) = (Vec::new(), Some(key));
    for word in pattern.split('.') {
        let (first, more) = if word == "KEY" {
            (rest?, None)
        } else {
            rest?.split_once('.').map_or((rest?, None), |(f, m)| (f, Some(m)))
        };
        if word.bytes().all(|b| b.is_ascii_uppercase()) {
            bound.push((word.to_string(), first.to_string()));
        } else if word != first {
            return None;
        }
        rest = more;
    }
    rest.is_none().then_some(bound)
}

/// The page's only row for a key. One that says "as `OTHER`" is OTHER's.
fn row_of(rows: &[Row], key: &str) -> Row {
    let found: Vec<(Row, Vec<(String, String)>)> =
        rows.iter().filter_map(|row| Some((*row, stands_for(row.key, key)?))).collect();
    let [(row, bound)] = &found[..] else { panic!("{key} has {} rows in docs/RECIPE.md, expected one", found.len()) };
    let Some(other) = row.default.strip_prefix("as `").and_then(|other| other.strip_suffix('`')) else { return *row };
    let put = |word: &str| bound.iter().find(|(name, _)| name == word).map_or(word, |(_, value)| value).to_string();
    row_of(rows, &other.split('.').map(put).collect::<Vec<_>>().join("."))
}

/// What `--print` writes at the end of `steps`.
fn printed(recipe: &Recipe, steps: &[Step]) -> Option<Value> {
    let whole: Table = toml::from_str(&recipe.to_toml().unwrap()).unwrap();
    steps.iter().try_fold(Value::from(whole), |at, step| match step {
        Step::Key(key, _) => at.get(key).cloned(),
        Step::Entry => at.get(0).cloned(),
    })
}

#[test]
fn the_page_has_every_key_and_no_other() {
    let (leaves, rows) = (leaves(), rows());
    for leaf in &leaves {
        let row = row_of(&rows, &leaf.key);
        for word in &leaf.words {
            assert!(row.meaning.contains(&format!("`\"{word}\"`")), "{}: {word:?} is missing", leaf.key);
        }
    }
    for row in &rows {
        let real = leaves.iter().any(|leaf| stands_for(row.key, &leaf.key).is_some());
        assert!(real, "docs/RECIPE.md has {}, and no recipe has", row.key);
    }
    // That the walk went everywhere: what the shipped recipes resolve to, it knows.
    for name in Recipe::shipped() {
        for key in flat(&Recipe::load(name, &[]).unwrap()).unwrap().keys() {
            let walked =
                |leaf: &Leaf| stands_for(&leaf.key, key).is_some() || leaf.key.starts_with(&format!("{key}[]."));
            assert!(leaves.iter().any(walked), "{key} of {name}");
        }
    }
}

#[test]
fn the_page_has_every_default() {
    let rows = rows();
    for leaf in leaves() {
        let (key, default) = (&leaf.key, row_of(&rows, &leaf.key).default);
        assert_eq!(leaf.required, default == "required", "{key}: {default}");
        let Some((Step::Key(_, beside), above)) = leaf.steps.split_last() else { panic!("{key} is no key of a table") };
        if leaf.required {
            continue;
        }
        let without = recipe(above, beside.clone()).unwrap();
        let found = printed(&without, &leaf.steps);
        if default == "none" {
            assert_eq!(found, None, "{key}");
            // Left out of what is printed though it has a value.
            for plain in [Value::from(false), Value::Array(Vec::new())] {
                assert!(recipe(&leaf.steps, plain.clone()).as_ref() != Ok(&without), "{key} is {plain}, not none");
            }
            continue;
        }
        let text = default.strip_prefix('`').and_then(|text| text.strip_suffix('`'));
        let text =
            text.unwrap_or_else(|| panic!("{key}: expected none, required or a value in backticks, got {default}"));
        let value = toml::from_str::<Table>(&format!("value = {text}")).unwrap()["value"].clone();
        // Not assert_eq: nobody wants to read two whole recipes.
        let given = recipe(&leaf.steps, value.clone());
        assert!(given.as_ref() == Ok(&without), "{key} = {text} is not the default, {found:?}");
        assert!(found.is_none_or(|found| found == value), "{key} = {text} is written otherwise");
    }
}
