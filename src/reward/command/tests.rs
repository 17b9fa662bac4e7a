//! Against real processes: small shell programs that answer, dawdle, die and babble.

use super::*;
use crate::tasks::Problem;
use crate::text::Message;

fn config(script: &str) -> CommandConfig {
    CommandConfig {
        command: ["sh", "-c", script].map(str::to_string).into(),
        workers: Some(2),
        timeout_seconds: 20.0,
        on_failure: OnFailure::Mask,
        ..CommandConfig::default()
    }
}

fn problem() -> Problem {
    let message = Message { role: "user".into(), content: "1+1=".into() };
    Problem::new("test", vec![message], "2".into(), None).with_extra(json!({"tests": ["a"]}))
}

fn judge(config: &CommandConfig, responses: &[&str]) -> Result<Vec<Outcome>> {
    let problem = problem();
    let item = |response: &&'static str| Item { problem: &problem, response, tokens: 3, truncated: false };
    let leaked: Vec<&'static str> = responses.iter().map(|r| &*Box::leak(r.to_string().into_boxed_str())).collect();
    Pool::new(config)?.judge(&leaked.iter().map(item).collect::<Vec<_>>(), false)
}

fn scored(score: f64, status: Status) -> Outcome {
    Outcome::Scored { score, status, answer: None }
}

fn reason(outcome: &Outcome) -> (Status, &str) {
    match outcome {
        Outcome::Failed { status, reason } => (*status, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn answers_come_back_in_the_order_of_the_rows() {
    let script = r#"while read -r row; do case "$row" in *good*) echo '{"score": 1}';; *half*) echo 0.5;;
        *said*) echo '{"score": 0, "status": "no_answer", "mine": 1}';; *) echo -2;; esac; done"#;
    let responses: Vec<&str> = ["good", "half", "said", "bad"].into_iter().cycle().take(40).collect();
    let outcomes = judge(&config(script), &responses).unwrap();
    let expected = [
        scored(1.0, Status::Correct),
        scored(0.5, Status::Wrong),
        scored(0.0, Status::NoAnswer),
        scored(-2.0, Status::Wrong),
    ];
    for (i, outcome) in outcomes.iter().enumerate() {
        assert_eq!(*outcome, expected[i % 4], "row {i}");
    }
}

#[test]
fn a_row_holds_everything_that_is_known() {
    let problem = problem();
    let row = request(7, &Item { problem: &problem, response: "r\n\"", tokens: 3, truncated: true });
    assert_eq!(
        row,
        json!({
            "id": 7, "prompt": "1+1=", "messages": [{"role": "user", "content": "1+1="}], "response": "r\n\"", "gold": "2",
            "extra": {"tests": ["a"]}, "source": "test", "tokens": 3, "truncated": true
        })
    );
    assert!(!row.to_string().contains('\n'));
}

#[test]
fn a_program_that_dies_is_replaced_and_only_its_row_fails() {
    let script =
        r#"while read -r row; do case "$row" in *die*) echo "out of paper" >&2; exit 3;; *) echo 1;; esac; done"#;
    let outcomes = judge(&config(script), &["a", "die", "b", "c"]).unwrap();
    let (status, why) = reason(&outcomes[1]);
    assert!(status == Status::Failed && why.contains("out of paper") && why.contains('3'), "{why}");
    for i in [0, 2, 3] {
        assert_eq!(outcomes[i], scored(1.0, Status::Correct));
    }
}

#[test]
fn a_row_that_fails_once_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    let script =
        format!("while read -r row; do if [ -e {0} ]; then echo 1; else : > {0}; exit 1; fi; done", mark.display());
    let config = CommandConfig { workers: Some(1), ..config(&script) };
    assert_eq!(judge(&config, &["a"]).unwrap(), [scored(1.0, Status::Correct)]);
}

#[test]
fn a_program_that_hangs_is_ended_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let alive = dir.path().join("alive");
    // The child would leave its mark if it outlived the program.
    let script = format!(
        "while read -r row; do case \"$row\" in *hang*) (sleep 2; : > {}) & wait;; *) echo 1;; esac; done",
        alive.display()
    );
    let config = CommandConfig { timeout_seconds: 0.3, start_seconds: 0.2, retries: 0, ..config(&script) };
    let outcomes = judge(&config, &["hang", "b"]).unwrap();
    let (status, why) = reason(&outcomes[0]);
    assert!(status == Status::Timeout && why.contains("no answer within"), "{why}");
    assert_eq!(outcomes[1], scored(1.0, Status::Correct));
    std::thread::sleep(Duration::from_millis(2500));
    assert!(!alive.exists(), "a child outlived its program");
}

#[test]
fn nonsense_is_a_failure_that_says_what_it_was() {
    for (answer, expected) in [
        ("hello", "no JSON"),
        ("NaN", "no JSON"),
        ("{\\\"points\\\": 1}", "no finite score"),
        ("{\\\"score\\\": \\\"1\\\"}", "expected a number"),
        ("{\\\"score\\\": null}", "no finite score"),
        ("{\\\"score\\\": 1, \\\"id\\\": 99}", "row 99"),
        ("{\\\"score\\\": 1, \\\"status\\\": \\\"fine\\\"}", "unknown variant"),
        ("[1]", "expected a number"),
        ("{\\\"error\\\": \\\"no such test\\\"}", "it says: no such test"),
    ] {
        let script = format!(
            "while read -r row; do case \"$row\" in *odd*) printf '%s\\n' \"{answer}\";; *) echo 1;; esac; done"
        );
        let outcomes = judge(&config(&script), &["odd", "b"]).unwrap();
        let (status, why) = reason(&outcomes[0]);
        assert!(status == Status::Failed && why.contains(expected), "{answer}: {why}");
        assert_eq!(outcomes[1], scored(1.0, Status::Correct), "{answer}");
    }
}

#[test]
fn endless_output_and_an_unread_input_hold_nobody_up() {
    let endless = CommandConfig { retries: 0, ..config("read -r row; yes | tr -d '\\n'") };
    let error = format!("{:#}", judge(&endless, &["a"]).unwrap_err());
    assert!(error.contains("bytes"), "{error}");
    let deaf = CommandConfig { timeout_seconds: 0.2, start_seconds: 0.0, retries: 0, ..config("sleep 30") };
    let long = "x".repeat(1 << 20);
    let error = format!("{:#}", judge(&deaf, &[&long]).unwrap_err());
    assert!(error.contains("no answer within"), "{error}");
}

#[test]
fn a_failure_stops_the_run_unless_it_may_be_masked_and_never_when_all_fail() {
    let script = "while read -r row; do case \"$row\" in *bad*) exit 1;; *) echo 0;; esac; done";
    let stopping = CommandConfig { on_failure: OnFailure::Stop, ..config(script) };
    let error = format!("{:#}", judge(&stopping, &["a", "bad", "c"]).unwrap_err());
    assert!(error.contains("response 2") && error.contains("on_failure"), "{error}");
    let error = format!("{:#}", judge(&config(script), &["bad", "bad"]).unwrap_err());
    assert!(error.contains("every one of 2"), "{error}");
    assert_eq!(judge(&stopping, &["a"]).unwrap(), [scored(0.0, Status::Wrong)]);
}

#[test]
fn what_cannot_run_is_said_at_once() {
    let missing = CommandConfig { command: vec!["/nonexistent/reward".into()], ..CommandConfig::default() };
    let error = format!("{:#}", Pool::new(&missing).err().unwrap());
    assert!(error.contains("/nonexistent/reward"), "{error}");
    for bad in [
        CommandConfig { command: vec![], ..config("") },
        CommandConfig { workers: Some(0), ..config("true") },
        CommandConfig { timeout_seconds: 0.0, ..config("true") },
        CommandConfig { start_seconds: f64::NAN, ..config("true") },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
}

#[test]
fn a_batch_that_failed_is_counted_over_all_of_its_rounds() {
    let script = r#"while read -r row; do case "$row" in *good*) echo 1;; *) echo '{"error": "no"}';; esac; done"#;
    let (pool, problem) = (Pool::new(&config(script)).unwrap(), problem());
    let judge = |responses: &[&str], more| {
        let item = |response| Item { problem: &problem, response, tokens: 3, truncated: false };
        pool.judge(&responses.iter().map(|r| item(*r)).collect::<Vec<_>>(), more)
    };
    // A round of one prompt, whose two responses fail, after one that did not.
    judge(&["good", "bad"], false).unwrap();
    let again = judge(&["bad", "bad"], true).unwrap();
    assert!(again.iter().all(|outcome| reason(outcome).0 == Status::Failed));
    // The next batch is judged by itself.
    let error = judge(&["bad", "bad"], false).unwrap_err().to_string();
    assert!(error.contains("every one of 2"), "{error}");
}
