//! `bupo verify` as a person uses it.

use serde_json::Value;
use std::fs;
use std::process::{Command, Output};

fn bupo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bupo")).args(args).output().expect("the binary starts")
}

#[test]
fn one_verdict_a_row_in_order_and_bad_rows_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("answers.jsonl"), dir.path().join("verdicts.jsonl"));
    let rows = [
        r#"{"gold": "\\frac{1}{2}", "answer": "So we get \\boxed{0.5}."}"#,
        r#"{"gold": "The answer is \\boxed{(x+1)^2}", "answer": "x^2+2x+1"}"#,
        r#"{"gold": 7, "answer": "the answer is 8."}"#,
        r#"{"answer": "1"}"#,
        r#"{"gold": "1", "answer": ["1"]}"#,
        "not json",
        r#"{"gold": "1", "answer": "two\nlines"}"#,
        r#"{"gold": "1", "answer": "\\boxed{\\frac{1}}"}"#,
    ];
    fs::write(&data, rows.join("\n")).unwrap();
    let run = bupo(&["verify", "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let (stdout, stderr) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{stderr}");
    let verdicts: Vec<Value> =
        fs::read_to_string(&out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let status: Vec<&str> = verdicts.iter().map(|v| v["status"].as_str().unwrap()).collect();
    let expected = ["correct", "correct", "wrong", "bad_row", "bad_row", "bad_row", "no_answer", "unparsable"];
    assert_eq!(status, expected);
    assert_eq!(verdicts[0]["rule"], "exact");
    assert_eq!(verdicts[0]["answer"], "0.5");
    assert_eq!(verdicts[0]["boxed"], "correct");
    assert_eq!(verdicts[1]["rule"], "algebra");
    assert_eq!(verdicts[1]["boxed"], "no_answer");
    for (line, error) in
        [(4, "no gold"), (5, "answer: expected text or a number"), (6, "expected one JSON object a line")]
    {
        assert!(stderr.contains(&format!("answers.jsonl line {line}: {error}")), "{stderr}");
    }
    assert!(
        stdout.contains("5 answers: 2 correct, 1 wrong, 1 without an answer, 1 unparsable; 3 bad rows"),
        "{stdout}"
    );
}

#[test]
fn places_are_chosen_and_mistakes_explained() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("a.jsonl"), dir.path().join("v.jsonl"));
    fs::write(&data, r#"{"gold": "5", "answer": "the answer is 5"}"#).unwrap();
    let (data, out) = (data.to_str().unwrap(), out.to_str().unwrap());
    assert!(bupo(&["verify", "--data", data, "--out", out, "--places", "boxed"]).status.success());
    assert!(fs::read_to_string(out).unwrap().contains("no_answer"));
    let wrong = bupo(&["verify", "--data", data, "--out", out, "--places", "box"]);
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("boxed"));
    let missing = bupo(&["verify", "--data", "/nonexistent/a.jsonl", "--out", out]);
    assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("/nonexistent/a.jsonl"));
}
