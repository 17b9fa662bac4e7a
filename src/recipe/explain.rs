//! serde's errors in a person's words: the whole key, its line, the nearest known name.

use std::ops::Range;
use toml::de::{DeTable, DeValue, Error};

/// Edits between what was written and a known name up to which it counts as a slip.
const SLIP: usize = 2;

/// One sentence for an error of `toml::from_str(text)`, and the line that it is about. `known` are the dotted keys of whole
/// recipes: where a key has its home if not in the section where it was written.
pub fn explain(error: &Error, text: &str, known: &[String]) -> (String, usize) {
    let at = error.span().unwrap_or(0..0);
    let message = error.message();
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Ok(document) = DeTable::parse(text) else {
        // Not TOML: the parser's own message knows the place.
        return (message.trim().to_string(), line(text, at.start));
    };
    // What the whole file lacks has no span, or the whole file's.
    let mut path = if at.is_empty() { Vec::new() } else { path_at(document.get_ref(), &at) };
    let mut start = at.start;
    let sentence = match (message.split_once(" `").map(|(kind, _)| kind), names.split_first()) {
        (Some("unknown field"), Some((unknown, expected))) => {
            // Below a table whose kind is chosen by a key, serde knows only the table: find the key in it.
            if path.last().is_none_or(|last| last != unknown) {
                start = key_start(document.get_ref(), &path, unknown).unwrap_or(start);
                path.push(unknown.to_string());
            }
            let section = path[..path.len() - 1].join(".");
            format!("unknown key {}: {}", path.join("."), remedy(unknown, expected, &section, known))
        }
        (Some("missing field"), Some((missing, _))) => {
            path.push(missing.to_string());
            format!("the key {} is missing", path.join("."))
        }
        (Some("unknown variant"), Some((unknown, expected))) => {
            let near = nearest(unknown, expected).map_or(String::new(), |near| format!("did you mean {near:?}? "));
            format!("{} = {unknown:?}: {near}expected {}", path.join("."), quoted(expected))
        }
        _ if path.is_empty() => message.to_string(),
        _ => format!("{}: {message}", path.join(".")),
    };
    (sentence, line(text, start))
}

/// Names of the tables and the key that a span lies in, outermost first.
fn path_at(table: &DeTable<'_>, at: &Range<usize>) -> Vec<String> {
    let covers = |span: Range<usize>| span.start <= at.start && at.end <= span.end;
    for (key, value) in table {
        let below = match value.get_ref() {
            DeValue::Table(inner) => path_at(inner, at),
            _ => Vec::new(),
        };
        // A table that is written in pieces spans only its header, so its inside is asked as well.
        if !below.is_empty() || covers(key.span()) || covers(value.span()) {
            return std::iter::once(key.get_ref().to_string()).chain(below).collect();
        }
    }
    Vec::new()
}

/// Where a key stands in the table at `path`.
fn key_start(table: &DeTable<'_>, path: &[String], key: &str) -> Option<usize> {
    match path.split_first() {
        None => table.keys().find(|k| k.get_ref() == key).map(|k| k.span().start),
        Some((first, rest)) => {
            let (_, value) = table.iter().find(|(k, _)| k.get_ref() == first)?;
            key_start(value.get_ref().as_table()?, rest, key)
        }
    }
}

/// What to write instead of an unknown key: a slip of the pen first, then the same key in its own section, then
/// whatever is near, then all that is known here.
fn remedy(unknown: &str, expected: &[&str], section: &str, known: &[String]) -> String {
    let here = |key: &str| if section.is_empty() { key.to_string() } else { format!("{section}.{key}") };
    let near = nearest(unknown, expected);
    if let Some(key) = near.filter(|key| strsim::damerau_levenshtein(unknown, key) <= SLIP.min(key.len() / 2)) {
        return format!("did you mean {}?", here(key));
    }
    let homes: Vec<&str> = known.iter().map(String::as_str).filter(|k| k.rsplit('.').next() == Some(unknown)).collect();
    match (homes.is_empty(), near) {
        (false, _) => format!("did you mean {}?", homes.join(" or ")),
        (true, Some(key)) => format!("did you mean {}?", here(key)),
        (true, None) if expected.is_empty() => "no key is expected here".to_string(),
        (true, None) => format!("expected one of {}", expected.join(", ")),
    }
}

/// The nearest of the known names, unless half of it would have to be rewritten.
fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &str| strsim::damerau_levenshtein(unknown, name);
    known.iter().copied().min_by_key(|name| distance(name)).filter(|name| distance(name) <= 1 + name.len() / 2)
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ")
}

/// Line of a byte, from 1.
fn line(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|b| **b == b'\n').count() + 1
}
