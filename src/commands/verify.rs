//! `bupo verify`: verdicts on given answers.

use crate::cli::VerifyArgs;
use crate::run::jsonl::write_jsonl;
use crate::run::progress::say;
use crate::tasks::answers::read_answers;
use crate::verify::math::{Decision, Settings, verify};
use crate::verify::{Rule, Status, StatusCounts};
use anyhow::Result;
use comfy_table::{Table, presets};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
#[serde(untagged)]
enum VerdictRow {
    Judged { line: usize, status: Status, rule: Decision, answer: Option<String>, boxed: Status },
    Bad { line: usize, status: &'static str, error: String },
}

pub fn run(args: &VerifyArgs) -> Result<()> {
    let rows = read_answers(&args.data)?;
    let settings = Settings { places: args.places.clone(), ..Settings::default() };
    let judge = |(line, row): &(usize, Result<_, String>)| match row {
        Err(error) => VerdictRow::Bad { line: *line, status: "bad_row", error: error.clone() },
        Ok(crate::tasks::answers::AnswerRow { gold, answer }) => {
            let verdict = verify(gold, answer, &settings);
            let boxed = Rule::Boxed.judge(answer, gold).status;
            VerdictRow::Judged {
                line: *line,
                status: verdict.status,
                rule: verdict.rule,
                answer: verdict.answer,
                boxed,
            }
        }
    };
    let verdicts: Vec<VerdictRow> = rows.par_iter().map(judge).collect();
    write_jsonl(&args.out, &verdicts)?;

    let (mut counts, mut rules, mut bad) = (StatusCounts::default(), BTreeMap::<Decision, [usize; 2]>::new(), 0);
    let (mut boxes, mut disagreements) = (0, 0);
    for verdict in &verdicts {
        match verdict {
            VerdictRow::Bad { line, error, .. } => {
                bad += 1;
                say(&format!("{} line {line}: {error}", args.data.display()));
            }
            VerdictRow::Judged { status, rule, boxed, .. } => {
                counts.add(*status);
                rules.entry(*rule).or_default()[usize::from(*status != Status::Correct)] += 1;
                if *boxed != Status::NoAnswer {
                    boxes += 1;
                    disagreements += usize::from((*boxed == Status::Correct) != (*status == Status::Correct));
                }
            }
        }
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(["decided by", "correct", "not"]);
    for (rule, [correct, not]) in &rules {
        let name = serde_json::to_value(rule)?.as_str().unwrap_or_default().replace('_', " ");
        table.add_row([name, correct.to_string(), not.to_string()]);
    }
    println!("{table}");
    println!(
        "{} answers: {} correct, {} wrong, {} without an answer, {} unparsable; {bad} bad rows",
        counts.total(),
        counts.correct,
        counts.wrong,
        counts.no_answer,
        counts.unparsable
    );
    println!("The text comparison `boxed` decides otherwise on {disagreements} of {boxes} boxed answers.");
    say(&format!("written to {}", args.out.display()));
    Ok(())
}
