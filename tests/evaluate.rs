//! `bupo evaluate` and `bupo compare` as a person uses them: suites, interruption, judging again, programs as judges.

use bupo::model::init::{InitConfig, random_params};
use bupo::model::weights::{self, SaveOptions};
use bupo::model::{Model, ParamLayout};
use bupo::text::Tokenizer;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A small model with random weights and a byte-level tokenizer.
fn make_model(dir: &Path, seed: u64) {
    fs::create_dir_all(dir).unwrap();
    let tokenizer = Tokenizer::byte_level().unwrap();
    let init = InitConfig {
        hidden_size: 16,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        intermediate_size: 24,
        max_position_embeddings: 128,
        ..InitConfig::default()
    };
    let mut config = init.model_config(tokenizer.vocab_size()).unwrap();
    config.eos_token_ids = tokenizer.eos_ids().to_vec();
    let layout = ParamLayout::new(&config);
    let model = Model::new(config.clone(), random_params(&config, &layout, 0.3, seed));
    weights::save(dir, &model.config, &model.layout, &model.params, &SaveOptions::default()).unwrap();
    tokenizer.save(dir).unwrap();
}

struct Place(tempfile::TempDir);

impl Place {
    /// A folder with a model, four problems whose answers are digits, and a suite of them.
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        make_model(&place.0.path().join("model"), 1);
        let problems: String =
            (1..=4).map(|i| format!("{{\"prompt\": \"{i}+{i}=\", \"answer\": {}}}\n", 2 * i)).collect();
        place.write("problems.jsonl", &problems);
        place.write(
            "mine.toml",
            "name = \"mine\"\ndata = [\"problems.jsonl\"]\nn = 4\nmax_new_tokens = 40\nquestion = \"Q: {problem}\"\n\
             [prompt]\ntemplate = \"plain\"\ntext = \"{problem}\"\n[reward]\nrule = \"numeric\"\n",
        );
        place
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    fn rows(&self, name: &str) -> Vec<Value> {
        self.read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn bupo(&self, args: &[&str]) -> Output {
        let places =
            ["model", "mine.toml", "problems.jsonl", "out", "other", "bad.jsonl", "later.toml", "never", "once"];
        // A word in braces is a place.
        let spelled = args.iter().map(|arg| {
            let name = arg.strip_prefix('{').and_then(|a| a.strip_suffix('}'));
            name.filter(|n| places.iter().any(|p| n.starts_with(p))).map_or(arg.to_string(), |n| self.at(n))
        });
        let output = Command::new(env!("CARGO_BIN_EXE_bupo")).args(spelled).args(["--threads", "2"]).output();
        output.expect("the binary runs")
    }

    fn ok(&self, args: &[&str]) -> (String, String) {
        let output = self.bupo(args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "bupo {args:?}\n{out}\n{err}");
        (out, err)
    }

    fn fails(&self, args: &[&str], expected: &[&str]) {
        let output = self.bupo(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "bupo {args:?}: {error}");
        assert!(!error.contains("panicked"), "{error}");
        for part in expected {
            assert!(error.contains(part), "bupo {args:?}: {part:?} is not in: {error}");
        }
    }

    fn evaluate(&self, out: &str) {
        self.ok(&["evaluate", "{model}", "--suite", "{mine.toml}", "--out", out]);
    }
}

#[test]
fn a_suite_leaves_scores_with_their_uncertainty_as_json_and_tables() {
    let place = Place::new();
    let (shown, _) = place.ok(&["evaluate", "{model}", "--suite", "{mine.toml}", "--out", "{out}"]);
    let result = place.json("out/mine/evaluation.json");
    assert_eq!((&result["problems"], &result["responses_per_problem"]), (&json!(4), &json!(4)));
    let rows = place.rows("out/mine/responses.jsonl");
    assert_eq!(rows.len(), 16);
    let right = rows.iter().filter(|r| r["status"] == "correct").count();
    assert_eq!(result["statuses"]["correct"].as_u64().unwrap() as usize, right);
    assert!((result["avg_at_n"]["mean"].as_f64().unwrap() - right as f64 / 16.0).abs() < 1e-12);
    let ks: Vec<u64> = result["pass_at_k"].as_array().unwrap().iter().map(|p| p["k"].as_u64().unwrap()).collect();
    assert_eq!(ks, [1, 2, 4]);
    assert!(result["avg_at_n"]["interval"].is_array() && result["over_samples"]["runs"] == 4);
    // Which responses were cut off is said beside the score, and is true.
    let cut = rows.iter().filter(|r| r["finish"] == "length").count();
    assert!((result["truncated"].as_f64().unwrap() - cut as f64 / 16.0).abs() < 1e-12);
    let problems = place.rows("out/mine/problems.jsonl");
    assert_eq!(problems[0]["messages"][0]["content"], "Q: 1+1=");
    for table in [place.read("out/mine/evaluation.md"), place.read("out/summary.md")] {
        assert!(table.contains("| mine") && table.contains("truncated") && table.contains("K = 4"), "{table}");
    }
    assert!(shown.contains("mine") && shown.contains("judged by numeric"), "{shown}");
    // The same seed, the same bytes.
    place.evaluate("{other}");
    for file in ["responses.jsonl", "evaluation.json", "evaluation.md"] {
        assert_eq!(place.read(&format!("out/mine/{file}")), place.read(&format!("other/mine/{file}")), "{file}");
    }
}

#[test]
fn an_interrupted_evaluation_goes_on_and_more_samples_are_added_to_those_there() {
    let place = Place::new();
    place.evaluate("{out}");
    let whole = place.read("out/mine/responses.jsonl");
    let result = place.read("out/mine/evaluation.json");
    // As a kill leaves it: some rows, not judged yet, out of order, and a torn line.
    let mut rows: Vec<Value> = place.rows("out/mine/responses.jsonl").into_iter().skip(3).step_by(2).collect();
    rows.reverse();
    for row in &mut rows {
        let row = row.as_object_mut().unwrap();
        ["status", "answer", "reward", "gold"].iter().for_each(|key| drop(row.remove(*key)));
    }
    let kept: String = rows.iter().map(|row| format!("{row}\n")).collect();
    place.write("out/mine/responses.jsonl", &format!("{kept}{}", &whole[..30]));
    fs::remove_file(place.at("out/mine/evaluation.json")).unwrap();
    let (_, said) = place.ok(&["evaluate", "{model}", "--suite", "{mine.toml}", "--out", "{out}"]);
    assert!(said.contains(&format!("{} of 16", rows.len())), "{said}");
    assert_eq!(place.read("out/mine/responses.jsonl"), whole);
    assert_eq!(place.read("out/mine/evaluation.json"), result);
    // Six responses: the four that are there, and two more to each problem.
    let (_, said) = place.ok(&["evaluate", "{model}", "--suite", "{mine.toml}", "-n", "6", "--out", "{out}"]);
    assert!(said.contains("16 of 24"), "{said}");
    let rows = place.rows("out/mine/responses.jsonl");
    let first: String = rows.iter().filter(|r| r["sample"].as_u64() < Some(4)).map(|r| format!("{r}\n")).collect();
    assert_eq!((rows.len(), first), (24, whole));
    // Fewer would drop what was sampled; judged elsewhere they are the first ones.
    let fewer = ["evaluate", "{model}", "--suite", "{mine.toml}", "-n", "2", "--out", "{out}"];
    place.fails(&fewer, &["up to 6", "-n 2", "--rescore"]);
    place.ok(&["evaluate", "--rescore", "{out/mine}", "-n", "2", "--out", "{other}"]);
    assert_eq!((place.rows("out/mine/responses.jsonl").len(), place.rows("other/responses.jsonl").len()), (24, 8));
    // Other settings would mix two evaluations.
    for changed in [["--seed", "2"], ["--temperature", "0.5"], ["--policy", "layer:1"], ["--max-new-tokens", "20"]] {
        let args = ["evaluate", "{model}", "--suite", "{mine.toml}", "--out", "{out}", changed[0], changed[1]];
        place.fails(&args, &["other settings", "another --out"]);
    }
    make_model(&place.0.path().join("model"), 2);
    place.fails(&["evaluate", "{model}", "--suite", "{mine.toml}", "--out", "{out}"], &["weights was"]);
}

#[test]
fn judging_again_gives_what_judging_at_once_gave() {
    let place = Place::new();
    place.evaluate("{out}");
    place.ok(&["evaluate", "--rescore", "{out}"]);
    let (live, again) = ("out/mine", "out/rescored-again/mine");
    for file in ["responses.jsonl", "evaluation.json"] {
        assert_eq!(place.read(&format!("{live}/{file}")), place.read(&format!("{again}/{file}")), "{file}");
    }
    // Another rule, as if it had judged at once.
    place.ok(&["evaluate", "--rescore", "{out/mine}", "--rule", "boxed", "--out", "{other}"]);
    place.ok(&["evaluate", "{model}", "--suite", "{mine.toml}", "--rule", "boxed", "--out", "{out-boxed}"]);
    for file in ["responses.jsonl", "evaluation.json"] {
        assert_eq!(place.read(&format!("other/{file}")), place.read(&format!("out-boxed/mine/{file}")), "{file}");
    }
    assert_eq!(place.json("other/evaluation.json")["statuses"]["no_answer"], 16);
    place.fails(&["evaluate", "--rescore", "{out/mine}", "--out", "{out/mine}"], &["another"]);
    place.fails(&["evaluate", "--rescore", "{model}"], &["holds no evaluation"]);
    // A saved row that is not what was written there is named.
    let text = place.read("out/mine/responses.jsonl").replacen("{\"problem\"", "{\"prblem\"", 3);
    place.write("out/mine/responses.jsonl", &text);
    place.fails(&["evaluate", "--rescore", "{out/mine}", "--out", "{other}"], &["responses.jsonl line 1"]);
}

#[test]
fn a_program_judges_and_its_failure_is_no_zero() {
    let place = Place::new();
    let judge = |out: &str, script: &str| {
        let args = ["evaluate", "{model}", "--suite", "{mine.toml}", "--out", out, "--command", script];
        place.bupo(&args.map(str::to_string).each_ref().map(String::as_str))
    };
    let broken = judge("{out}", "echo cannot find my tests >&2; exit 4");
    let error = String::from_utf8_lossy(&broken.stderr).into_owned();
    assert_eq!(broken.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot find my tests") && error.contains("exit status: 4"), "{error}");
    assert!(!Path::new(&place.at("out/mine/evaluation.json")).exists());
    // What was sampled is still there, and is judged by the repaired program without sampling again.
    assert_eq!(place.rows("out/mine/responses.jsonl").len(), 16);
    let repaired =
        judge("{out}", "while read -r row; do case \"$row\" in *'\"gold\":\"4\"'*) echo 1;; *) echo 0.25;; esac; done");
    let said = String::from_utf8_lossy(&repaired.stderr).into_owned();
    assert!(repaired.status.success() && said.contains("16 of 16"), "{said}");
    let result = place.json("out/mine/evaluation.json");
    assert_eq!((&result["avg_at_n"]["mean"], &result["correct"]), (&json!(0.25), &json!([0, 4, 0, 0])));
    assert!((result["reward"]["mean"].as_f64().unwrap() - 0.4375).abs() < 1e-12);
    // In a suite of its own that goes on without the responses that could not be judged.
    let suite = place.read("mine.toml").split("[reward]").next().unwrap().to_string();
    place.write(
        "mine.toml",
        &format!(
            "{suite}[reward.parts.tests]\nkind = \"command\"\nretries = 0\non_failure = \"mask\"\n\
             command = [\"sh\", \"-c\", 'while read -r r; do case \"$r\" in *\"4+4\"*) exit 1;; *) echo 1;; esac; done']\n"
        ),
    );
    let (shown, _) = place.ok(&["evaluate", "{model}", "--suite", "{mine.toml}", "--out", "{out}"]);
    assert!(shown.contains("4 responses could not be judged"), "{shown}");
    let result = place.json("out/mine/evaluation.json");
    assert_eq!((&result["statuses"]["failed"], &result["statuses"]["correct"]), (&json!(4), &json!(12)));
    assert!(result["failures"][0].as_str().unwrap().contains("exit status: 1"));
    let failed: Vec<Value> =
        place.rows("out/mine/responses.jsonl").into_iter().filter(|r| r["status"] == "failed").collect();
    assert!(failed.len() == 4 && failed.iter().all(|r| r["reward"].is_null()));
}

#[test]
fn bad_rows_are_named_and_change_nothing_else() {
    let place = Place::new();
    let evaluate = |data: &str, out: &str| {
        let args = ["evaluate", "{model}", "--data", data, "-n", "2", "--max-new-tokens", "20", "--plain", "{problem}"];
        place.ok(&[&args[..], &["--rule", "numeric", "--out", out]].concat())
    };
    let good = place.read("problems.jsonl");
    let mut lines: Vec<&str> = good.lines().collect();
    lines.insert(1, "{\"prompt\": \"no gold\"}");
    lines.insert(2, "{\"prompt\": \"\", \"answer\": 1}");
    lines.insert(4, "{\"prompt\": [1], \"answer\": {}}");
    lines.push("{\"prompt\": ");
    fs::create_dir_all(place.at("bad")).unwrap();
    place.write("bad/problems.jsonl", &(lines.join("\n") + "\n"));
    evaluate("{problems.jsonl}", "{out}");
    let bad = place.at("bad/problems.jsonl");
    let (shown, said) = evaluate(&bad, "{other}");
    for line in [2, 3, 5, 8] {
        let name = format!("problems.jsonl line {line}:");
        assert!(said.contains(&name) && shown.contains(&name), "{name}\n{said}\n{shown}");
    }
    assert_eq!(place.read("out/responses.jsonl"), place.read("other/responses.jsonl"));
    let (mut clean, mut with_bad) = (place.json("out/evaluation.json"), place.json("other/evaluation.json"));
    assert_eq!(with_bad["bad_rows"].as_array().unwrap().len(), 4);
    for result in [&mut clean, &mut with_bad] {
        result.as_object_mut().unwrap().remove("bad_rows");
    }
    assert_eq!(clean, with_bad);
    place.write("bad.jsonl", "{\"prompt\": \"no gold\"}\n");
    let args = ["evaluate", "{model}", "--data", "{bad.jsonl}", "--plain", "{problem}", "--out", "{out-2}"];
    place.fails(&args, &["bad.jsonl line 1", "gold"]);
    assert!(!Path::new(&place.at("out-2")).exists());
}

#[test]
fn what_is_not_there_or_does_not_fit_is_said_before_the_model_is_read() {
    let place = Place::new();
    let run = |more: &[&str], expected: &[&str]| {
        place.fails(&[&["evaluate", "{nowhere}", "--out", "{out}"], more].concat(), expected);
    };
    run(&["--suite", "no-such"], &["no suite no-such", "math500"]);
    run(&["--suite", "amc23", "--data-dir", "/nonexistent"], &["amc2023.parquet", "--data-dir"]);
    run(&["--suite", "{mine.toml}", "-n", "4", "-k", "8"], &["k holds 8"]);
    run(&["--data", "/nonexistent.jsonl"], &["/nonexistent.jsonl"]);
    run(&["--suite", "{mine.toml}", "--suite", "{mine.toml}"], &["two suites"]);
    run(&["--suite", "{mine.toml}", "--temperature=-1"], &["temperature"]);
    place.write("mine.toml", "name = \"mine\"\ndata = [\"none.jsonl\"]\n");
    run(&["--suite", "{mine.toml}"], &["none.jsonl"]);
    place.write("mine.toml", "name = \"mine\"\ndata = [\"none.jsonl\"]\nrulee = \"x\"\n");
    run(&["--suite", "{mine.toml}"], &["rulee", "mine.toml"]);
}

#[test]
fn two_models_are_compared_on_the_same_problems_over_seeds() {
    let place = Place::new();
    let suite = place.read("mine.toml").replace("n = 4", "n = 8");
    place.write("mine.toml", &suite);
    for seed in ["1", "2", "3"] {
        let out = format!("{{out-{seed}}}");
        place.ok(&["evaluate", "{model}", "--suite", "{mine.toml}", "--seed", seed, "--out", &out]);
    }
    let (shown, _) = place.ok(&["compare", "{out-1}", "{out-1}"]);
    assert!(shown.contains("mine Avg@n") && shown.contains("+0.00") && shown.contains("0/4/0"), "{shown}");
    let both = format!("{},{}", place.at("out-2"), place.at("out-3"));
    place.ok(&["compare", "{out-1}", &both, "--out", "{other}", "-k", "2,8"]);
    let c = &place.json("other/comparison.json")[0];
    let avg = |i: usize| place.json(&format!("out-{i}/mine/evaluation.json"))["avg_at_n"]["mean"].as_f64().unwrap();
    let close = |a: &Value, b: f64| (a.as_f64().unwrap() - b).abs() < 1e-12;
    assert!(close(&c["scores"][0]["first"], avg(1)) && close(&c["scores"][0]["second"], (avg(2) + avg(3)) / 2.0));
    assert!(close(&c["scores"][0]["mean"], (avg(2) + avg(3)) / 2.0 - avg(1)));
    assert!(close(&c["second"]["avg_at_n"]["std"], (avg(2) - avg(3)).abs() / 2f64.sqrt()));
    let names: Vec<&str> = c["scores"].as_array().unwrap().iter().map(|s| s["score"].as_str().unwrap()).collect();
    assert_eq!(names, ["Avg@n", "Pass@2", "Pass@8"]);
    assert!(place.read("other/comparison.md").contains("| mine Pass@8"));
    place.fails(&["compare", "{out-1}", "{out-2}", "-k", "9"], &["-k 9", "1 to 8"]);
    place.fails(&["compare", "{out-1}", "{model}"], &["holds no evaluation"]);
}

#[test]
fn a_run_is_rewarded_by_parts_and_goes_on_without_what_could_not_be_judged() {
    let place = Place::new();
    let recipe = |on_failure: &str| {
        format!(
            r#"
name = "parts"
[model]
path = {model:?}
[data]
train = [{data:?}]
[prompt]
template = "plain"
text = "{{problem}}"
[rollout]
prompts_per_step = 2
group_size = 4
max_prompt_tokens = 16
max_new_tokens = 24
slots = 8
[rl]
steps = 2
lr = 1e-3
mini_batch_prompts = 2
[bupo]
layer = 1
steps = 0
[analysis]
responses = 2
[reward]
verdict = "right"
[reward.parts.right]
kind = "answer"
rule = "numeric"
[reward.parts.length]
kind = "overlong"
weight = 0.5
buffer = 24
[reward.parts.mine]
kind = "command"
weight = 0.25
retries = 0
on_failure = {on_failure:?}
command = ["sh", "-c", 'while read -r r; do case "$r" in *1+1*) echo no idea; exit 1;; *) echo 2;; esac; done']
"#,
            model = place.at("model"),
            data = place.at("problems.jsonl"),
        )
    };
    place.write("out.toml", &recipe("mask"));
    let (_, said) = place.ok(&["train", "{out.toml}", "--dir", "{out}", "--set", "seed=1"]);
    assert!(said.contains("responses have no reward"), "{said}");
    let (metrics, completions) = (place.rows("out/metrics.jsonl"), place.rows("out/completions.jsonl"));
    assert_eq!((metrics.len(), completions.len()), (2, 16));
    let missing: u64 = metrics.iter().map(|m| m["rewards_missing"].as_u64().unwrap()).sum();
    let (without, with): (Vec<&Value>, Vec<&Value>) = completions.iter().partition(|c| c["gold"] == "2");
    assert_eq!((missing as usize, with.is_empty()), (without.len(), false));
    for row in without {
        assert!(row["reward"].is_null() && row["advantage"] == 0.0, "{row}");
        assert!(row["failure"].as_str().unwrap().contains("no idea") && row["parts"]["mine"].is_null(), "{row}");
        assert_ne!(row["status"], "failed", "the verdict is another part's, and stands");
    }
    for row in with {
        let part = |name: &str| row["parts"][name].as_f64().unwrap();
        let length = -(row["tokens"].as_f64().unwrap() / 24.0);
        assert!((part("length") - length).abs() < 1e-12 && part("mine") == 2.0, "{row}");
        let sum = part("right") + 0.5 * part("length") + 0.25 * part("mine");
        assert!((row["reward"].as_f64().unwrap() - sum).abs() < 1e-12, "{row}");
    }
    assert!(metrics.iter().any(|m| m["reward_parts"]["mine"] == 2.0));
    // Without leave to go on, the run stops with the program's answer and the step.
    place.write("out.toml", &recipe("stop"));
    let args = ["train", "{out.toml}", "--dir", "{other}"];
    place.fails(&args, &["rewards of step", "reward.parts.mine", "no idea", "on_failure"]);
    // What was trained before that step is saved, and going on from there is the run that never failed.
    let broken = place.at("broken");
    let program = format!(
        "[reward.parts.mine]\nkind = \"command\"\nworkers = 1\nretries = 0\ncommand = [\"sh\", \"-c\", 'n=0; while read -r r; do \
         n=$((n+1)); if [ -e {broken} ] && [ $n -gt 8 ]; then exit 1; fi; echo 0.5; done']\n"
    );
    let whole = recipe("stop");
    let at = whole.find("[reward.parts.mine]").unwrap();
    place.write("later.toml", &format!("{}{program}", &whole[..at]));
    place.ok(&["train", "{later.toml}", "--dir", "{never}"]);
    place.write("broken", "");
    let said = ["step 2 failed, and step 1 is saved in", "--resume", "reward.parts.mine"];
    place.fails(&["train", "{later.toml}", "--dir", "{once}"], &said);
    std::fs::remove_file(&broken).unwrap();
    place.ok(&["train", "{later.toml}", "--dir", "{once}", "--resume"]);
    for file in ["model.safetensors", "trainer_state.safetensors"] {
        let bytes = |run: &str| std::fs::read(place.at(&format!("{run}/checkpoints/step-000002/{file}"))).unwrap();
        assert!(bytes("never") == bytes("once"), "{file}");
    }
    // Other data under the same name is not what the run began with.
    let data = place.read("problems.jsonl");
    place.write("problems.jsonl", data.lines().next().unwrap());
    let more = ["train", "{later.toml}", "--dir", "{once}", "--resume", "--set", "rl.steps=3"];
    place.fails(&more, &["problems.jsonl holds 1 problems, where the run began with"]);
    place.write("problems.jsonl", &data);
    place.write("out.toml", &recipe("mask").replace("weight = 0.25", "wieght = 0.25"));
    place.fails(&args, &["reward.parts.mine", "wieght", "line"]);
}
