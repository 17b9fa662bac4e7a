use super::*;
use crate::text::Message;

fn config(text: &str) -> Result<RewardConfig> {
    let config: RewardConfig = toml::from_str(text)?;
    config.check()?;
    Ok(config)
}

fn judge(reward: &Reward, response: &str, tokens: usize) -> Score {
    let message = Message { role: "user".into(), content: "2+2".into() };
    let problem = Problem::new("t", vec![message], "4".into(), None);
    let item = Item { problem: &problem, response, tokens, truncated: false };
    reward.judge(&[item]).unwrap().remove(0)
}

#[test]
fn parts_are_weighted_and_one_of_them_gives_the_verdict() {
    let text = r#"
        [parts.right]
        kind = "answer"
        rule = "numeric"
        [parts.shape]
        kind = "format"
        weight = 0.5
        [parts.length]
        kind = "overlong"
        weight = 2.0
        buffer = 10
    "#;
    let reward = Reward::new(&config(text).unwrap(), 20).unwrap();
    let score = judge(&reward, "<think>2+2</think><answer>4</answer>", 15);
    // 1 + 0.5 * 1 + 2 * (-0.5)
    assert_eq!((score.reward, score.verdict.status), (Some(0.5), Status::Correct));
    let values: Vec<_> = score.parts.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    assert_eq!(values, [("length", Some(-0.5)), ("right", Some(1.0)), ("shape", Some(1.0))]);
    let score = judge(&reward, "5", 1);
    assert_eq!((score.reward, score.verdict.status), (Some(0.0), Status::Wrong));
}

#[test]
fn one_rule_needs_no_parts_and_none_is_the_boxed_one() {
    let plain = Reward::new(&RewardConfig::default(), 8).unwrap();
    let exact = Reward::new(&config("rule = \"exact\"").unwrap(), 8).unwrap();
    for reward in [plain, exact] {
        let score = judge(&reward, "\\boxed{4}", 1);
        assert_eq!((score.reward, score.verdict.answer.as_deref()), (Some(1.0), Some("4")));
        assert!(score.parts.is_empty() && score.failure.is_none());
    }
}

#[test]
fn a_part_that_breaks_down_leaves_no_reward() {
    let text = r#"
        verdict = "right"
        [parts.right]
        kind = "answer"
        rule = "numeric"
        [parts.style]
        kind = "command"
        command = ["sh", "-c", "while read -r r; do case \"$r\" in *bad*) echo oops;; *) echo 0.25;; esac; done"]
        workers = 1
        on_failure = "mask"
    "#;
    let reward = Reward::new(&config(text).unwrap(), 8).unwrap();
    let message = Message { role: "user".into(), content: "2+2".into() };
    let problem = Problem::new("t", vec![message], "4".into(), None);
    let items = ["4", "bad 4"].map(|response| Item { problem: &problem, response, tokens: 1, truncated: false });
    let scores = reward.judge(&items).unwrap();
    assert_eq!((scores[0].reward, scores[0].parts["style"]), (Some(1.25), Some(0.25)));
    assert_eq!((scores[1].reward, scores[1].parts["style"], scores[1].verdict.status), (None, None, Status::Correct));
    let failure = scores[1].failure.as_deref().unwrap();
    assert!(failure.starts_with("style:") && failure.contains("oops"), "{failure}");
    let saved = serde_json::to_value(&scores[1]).unwrap();
    assert!(saved["reward"].is_null());
    assert_eq!(serde_json::from_value::<Score>(saved).unwrap(), scores[1]);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let answer = "[parts.a]\nkind = \"answer\"\n";
    for (text, expected) in [
        (format!("rule = \"exact\"\n{answer}"), "both"),
        ("[parts.f]\nkind = \"format\"".into(), "compares answers"),
        (format!("{answer}[parts.b]\nkind = \"answer\"\nrule = \"exact\""), "[\"a\", \"b\"]"),
        (format!("verdict = \"f\"\n{answer}[parts.f]\nkind = \"format\""), "[\"a\"]"),
        ("verdict = \"x\"".into(), "no [reward.parts.NAME]"),
        (format!("{answer}weight = inf"), "weight"),
        (format!("{answer}wieght = 1.0"), "wieght"),
        ("[parts.a]\nkind = \"magic\"".into(), "magic"),
        ("[parts.r]\nkind = \"regex\"\npattern = \"(\"".into(), "reward.parts.r"),
        ("[parts.c]\nkind = \"command\"".into(), "command is empty"),
    ] {
        let error = format!("{:#}", config(&text).unwrap_err());
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn gold_answers_that_the_rule_never_matches_are_counted() {
    let exact = RewardConfig::of_rule(Rule::Exact);
    let remark = exact.remark_on_golds(["1", "-07", "1/2", "x"].into_iter()).unwrap().unwrap();
    assert!(remark.starts_with("2 of 4 gold answers are no integers (the first: \"1/2\")"), "{remark}");
    assert!(exact.remark_on_golds(["1.5", "x"].into_iter()).unwrap_err().to_string().contains("2 of 2"));
    assert_eq!(exact.remark_on_golds(["1", "2"].into_iter()).unwrap(), None);
    assert_eq!(exact.remark_on_golds([].into_iter()).unwrap(), None);
    assert_eq!(RewardConfig::of_rule(Rule::Math).remark_on_golds(["1/2"].into_iter()).unwrap(), None);
}
