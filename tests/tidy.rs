//! The house rules that a compiler does not check: which module may know which, how long a file may be, and what may
//! not stay in the tree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// For every module of the crate's root, those it may use. Arrows point downwards only.
const MAY_USE: &[(&str, &[&str])] = &[
    ("compute", &[]),
    ("model", &["compute"]),
    ("policy", &["model", "compute"]),
    ("text", &[]),
    ("tasks", &["text", "verify"]),
    ("verify", &[]),
    ("reward", &["verify", "tasks", "text"]),
    ("run", &[]),
    ("report", &["run"]),
    ("serve", &["report"]),
    ("hub", &["text", "run"]),
    ("rollout", &["policy", "model", "compute"]),
    ("rl", &["rollout", "reward", "verify", "tasks", "text", "policy", "model", "compute"]),
    ("evaluate", &["rollout", "reward", "verify", "tasks", "text", "policy", "model"]),
    ("analysis", &["policy", "model", "compute"]),
    (
        "recipe",
        &[
            "rl", "evaluate", "analysis", "rollout", "reward", "verify", "tasks", "text", "run", "policy", "model",
            "compute",
        ],
    ),
    ("sweep", &["recipe", "evaluate", "run"]),
    ("cli", &["verify", "analysis", "rl", "model", "text", "compute"]),
    (
        "commands",
        &[
            "cli", "serve", "report", "hub", "sweep", "recipe", "rl", "evaluate", "analysis", "rollout", "reward",
            "verify", "tasks", "text", "run", "policy", "model", "compute",
        ],
    ),
];

/// Modules that may open files. `commands` writes what a verb's `--out` asks for, through `run`.
const MAY_TOUCH_FILES: &[&str] = &["text", "tasks", "run", "hub", "model", "recipe", "report"];

/// Files that only tests have, behind a feature of theirs, and that may open files wherever they are.
const TESTS_ONLY: &[&str] = &["compute/cuda/emulator.rs"];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a readable source folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn crate_sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files.sort();
    let named = |path: PathBuf| {
        let relative = path.strip_prefix(&root).expect("a file below src").to_path_buf();
        let first = relative.components().next().expect("a file name");
        let module = first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_string();
        let text = fs::read_to_string(&path).expect("readable source");
        (module, relative, text)
    };
    files.into_iter().map(named).collect()
}

/// The part of a file that is not tests, without comments.
fn code(text: &str) -> String {
    let body = text.split("#[cfg(test)]").next().unwrap_or(text);
    body.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn arrows_point_downwards() {
    let rules: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut wrong = Vec::new();
    for (module, path, text) in crate_sources() {
        let Some(allowed) = rules.get(module.as_str()) else {
            assert!(
                ["lib", "main"].contains(&module.as_str()),
                "{module} has no place in the house: add it to MAY_USE"
            );
            continue;
        };
        for used in code(&text).split("crate::").skip(1) {
            let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if used != module && rules.contains_key(used.as_str()) && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{} uses {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_the_rooms_at_the_edge_touch_files() {
    let mut wrong = Vec::new();
    for (module, path, text) in crate_sources() {
        let touches = ["std::fs", "File::open", "File::create"].iter().any(|f| code(&text).contains(f));
        let of_tests = TESTS_ONLY.iter().any(|file| path == Path::new(file));
        if touches && !of_tests && !MAY_TOUCH_FILES.contains(&module.as_str()) {
            wrong.push(path.display().to_string());
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_hold_one_subject() {
    let long: Vec<String> = crate_sources()
        .into_iter()
        .filter(|(_, _, text)| text.lines().count() > 600)
        .map(|(_, path, _)| path.display().to_string())
        .collect();
    assert!(long.is_empty(), "over 600 lines, so probably more than one subject: {long:?}");
}

#[test]
fn unsafe_code_stays_where_it_belongs_and_gives_its_reason() {
    for (module, path, text) in crate_sources() {
        let (mut previous, mut uses) = (String::new(), 0);
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let comment = line.starts_with("//");
            if !comment && line.contains("unsafe {") {
                uses += 1;
                assert!(previous.starts_with("//"), "{}: unsafe without a reason above it: {line}", path.display());
            }
            previous = line.to_string();
        }
        let allowed = module == "compute" || (module == "model" && path.to_string_lossy().contains("weights"));
        assert!(uses == 0 || allowed, "{}: unsafe code belongs in compute or around a memory map", path.display());
    }
}

#[test]
fn nothing_unfinished_stays() {
    // Spelled apart, so that this file does not find itself.
    let banned = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("#[ig", "nore"), concat!("FIX", "ME")];
    for (_, path, text) in crate_sources() {
        for word in banned {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}
