//! Multiple-choice rows in the spellings of MMLU-Pro, MMLU, ARC and GPQA: one question with lettered options.

use super::seed::{derive_seed, stable_hash};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Most options that have a letter.
const MOST: usize = 26;

/// A question with its options below it, and the letter of the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceQuestion {
    pub text: String,
    pub gold: String,
}

/// `None` if the row holds no options. `options` with `answer` or `answer_index` (MMLU-Pro), `choices` as a list (MMLU) or as
/// `{text, label}` with `answerKey` (ARC), `Correct Answer` with `Incorrect Answer 1` to `3` (GPQA; their order is drawn from
/// a hash of the question, the same in every run).
pub fn choice_question(row: &Value) -> Result<Option<ChoiceQuestion>> {
    if let Some(right) = row.get("Correct Answer") {
        return gpqa(row, right).map(Some);
    }
    let Some((key, options)) = ["options", "choices"].iter().find_map(|k| Some((*k, row.get(*k)?))) else {
        return Ok(None);
    };
    let labels = options.get("label").map(|l| texts(l, "choices.label")).transpose()?;
    let options = texts(options.get("text").unwrap_or(options), key)?;
    ensure!((2..=MOST).contains(&options.len()), "{key} holds {} options: expected 2 to {MOST}", options.len());
    let gold = RIGHT.iter().find_map(|k| row.get(*k));
    let gold = gold.filter(|g| !g.is_null()).context("no right option: expected answer, answer_index or answerKey")?;
    let at = position(gold, labels.as_deref(), &options)?;
    ensure!(at < options.len(), "the right option is number {}, but there are {}", at + 1, options.len());
    Ok(Some(ask(question(row)?, &options, at)))
}

fn gpqa(row: &Value, right: &Value) -> Result<ChoiceQuestion> {
    let question = question(row)?;
    let text = |v: &Value, key: &str| -> Result<String> {
        let text = v.as_str().map(str::trim).filter(|t| !t.is_empty());
        Ok(text.with_context(|| format!("{key}: expected text, got {v}"))?.to_string())
    };
    let mut options = vec![text(right, "Correct Answer")?];
    for i in 1..=3 {
        let key = format!("Incorrect Answer {i}");
        options.push(text(row.get(&key).unwrap_or(&Value::Null), &key)?);
    }
    let mut order: Vec<usize> = (0..options.len()).collect();
    let seed = stable_hash(question.as_bytes());
    order.sort_by_key(|i| derive_seed(seed, 0, *i as u64, 0));
    let at = order.iter().position(|i| *i == 0).unwrap_or(0);
    let shuffled: Vec<String> = order.into_iter().filter_map(|i| options.get(i).cloned()).collect();
    Ok(ask(question, &shuffled, at))
}

/// Keys under which a row may hold its question, in the order they are looked for.
const QUESTION: [&str; 5] = ["question", "Question", "problem", "prompt", "input"];
/// The same of the right option.
const RIGHT: [&str; 5] = ["answer_index", "answerKey", "answer", "gold", "target"];

/// The keys of a row with options that its question and the right one were read from.
pub(super) fn keys_read(row: &Value) -> Vec<&'static str> {
    let question = QUESTION.into_iter().find(|k| row.get(*k).is_some_and(Value::is_string));
    let right = match row.get("Correct Answer") {
        Some(_) => None,
        None => RIGHT.into_iter().find(|k| row.get(*k).is_some()),
    };
    question.into_iter().chain(right).collect()
}

fn question(row: &Value) -> Result<&str> {
    let found = QUESTION.iter().find_map(|k| row.get(*k)?.as_str());
    found.filter(|q| !q.trim().is_empty()).context("options without a question: expected the key question, with text")
}

fn ask(question: &str, options: &[String], right: usize) -> ChoiceQuestion {
    let mut text = question.trim_end().to_string();
    text.push('\n');
    for (i, option) in options.iter().enumerate() {
        text.push_str(&format!("\n{}. {}", letter(i), option.trim()));
    }
    ChoiceQuestion { text, gold: letter(right).to_string() }
}

fn letter(i: usize) -> char {
    (b'A' + (i % MOST) as u8) as char
}

fn texts(list: &Value, key: &str) -> Result<Vec<String>> {
    let Some(list) = list.as_array() else { bail!("{key}: expected a list of texts, got {list}") };
    let text = |v: &Value| match v {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => bail!("{key} holds {other}: expected text"),
    };
    list.iter().map(text).collect()
}

/// Which option is right: its index from 0, its label, its letter, or its text.
fn position(gold: &Value, labels: Option<&[String]>, options: &[String]) -> Result<usize> {
    if let Some(index) = gold.as_u64() {
        return usize::try_from(index).context("the right option's number is too large");
    }
    let text =
        gold.as_str().with_context(|| format!("the right option is {gold}: expected a letter or a number"))?.trim();
    if let Some(at) = labels.and_then(|labels| labels.iter().position(|label| label == text)) {
        return Ok(at);
    }
    let bare = text.trim_start_matches('(').trim_end_matches([')', '.']);
    if let (1, Some(c)) = (bare.len(), bare.bytes().next().filter(u8::is_ascii_alphabetic)) {
        return Ok((c.to_ascii_uppercase() - b'A') as usize);
    }
    options.iter().position(|option| option.trim() == text).with_context(|| format!("{text:?} is none of the options"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn ask(row: Value) -> Result<Option<ChoiceQuestion>> {
        choice_question(&row)
    }

    #[test]
    fn every_spelling_gives_the_same_question() {
        let expected = ChoiceQuestion { text: "2+2?\n\nA. 3\nB. 4\nC. 5".into(), gold: "B".into() };
        for row in [
            json!({"question": "2+2?", "options": ["3", "4", "5"], "answer": "B", "answer_index": 1}),
            json!({"question": "2+2?", "options": ["3", "4", "5"], "answer": "(b)"}),
            json!({"question": "2+2?", "choices": [3, 4, 5], "answer": 1}),
            json!({"question": "2+2?", "choices": {"text": ["3", "4", "5"], "label": ["1", "2", "3"]}, "answerKey": "2"}),
            json!({"problem": "2+2?\n", "options": ["3", " 4", "5"], "answer": " 4"}),
        ] {
            let row_text = row.to_string();
            let got = match ask(row) {
                Ok(Some(got)) => got,
                other => panic!("{row_text}: {other:?}"),
            };
            assert_eq!(got, expected, "{row_text}");
        }
        assert_eq!(ask(json!({"question": "2+2?", "answer": "4"})).unwrap(), None);
    }

    #[test]
    fn gpqas_options_are_shuffled_by_the_question_alone() {
        let row = |q: &str| {
            json!({"Question": q, "Correct Answer": "right", "Incorrect Answer 1": "a", "Incorrect Answer 2": "b",
                "Incorrect Answer 3": "c"})
        };
        let mut letters = std::collections::BTreeSet::new();
        for i in 0..40 {
            let q = ask(row(&format!("q{i}"))).unwrap().unwrap();
            assert_eq!(ask(row(&format!("q{i}"))).unwrap().unwrap(), q);
            assert!(q.text.contains(&format!("\n{}. right", q.gold)), "{q:?}");
            letters.insert(q.gold);
        }
        assert_eq!(letters.len(), 4);
        assert!(
            ask(json!({"Question": "q", "Correct Answer": "r"}))
                .unwrap_err()
                .to_string()
                .contains("Incorrect Answer 1")
        );
    }

    #[test]
    fn bad_rows_say_what_is_wrong() {
        for (row, expected) in [
            (json!({"question": "q", "options": ["a"], "answer": "A"}), "2 to 26"),
            (json!({"question": "q", "options": "a", "answer": "A"}), "list"),
            (json!({"question": "q", "options": ["a", null], "answer": "A"}), "null"),
            (json!({"question": "q", "options": ["a", "b"]}), "no right option"),
            (json!({"question": "q", "options": ["a", "b"], "answer": "C"}), "number 3"),
            (json!({"question": "q", "options": ["a", "b"], "answer": 2}), "number 3"),
            (json!({"question": "q", "options": ["a", "b"], "answer": "neither"}), "none of the options"),
            (json!({"question": "q", "options": ["a", "b"], "answer": [1]}), "a letter"),
            (json!({"options": ["a", "b"], "answer": "A"}), "question"),
        ] {
            let error = format!("{:#}", ask(row.clone()).unwrap_err());
            assert!(error.contains(expected), "{row}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_row_panics(options in proptest::collection::vec("\\PC{0,3}", 0..30), answer in "\\PC{0,3}") {
            drop(ask(json!({"question": "q", "options": options, "answer": answer})));
            drop(ask(json!({"question": answer, "choices": options, "answer": answer})));
        }
    }
}
