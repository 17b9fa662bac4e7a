use super::*;
use crate::verify::Status;
use proptest::prelude::*;

/// Every task at every level that it has.
fn tasks() -> Vec<TaskConfig> {
    let all = [
        TaskConfig::Brackets(BracketsConfig::default()),
        TaskConfig::Countdown(CountdownConfig::default()),
        TaskConfig::Lists(ListsConfig::default()),
        TaskConfig::Modular(ModularConfig::default()),
    ];
    let arithmetic =
        ArithmeticConfig { operations: [1, 4], max_operand: 12, operators: "+-*".into(), ..Default::default() };
    let levels = all.into_iter().flat_map(|task| (1..=4).map(move |level| task.at_level(level).unwrap()));
    levels.chain([TaskConfig::Arithmetic(arithmetic)]).collect()
}

fn status(task: &TaskConfig, response: &str, gold: &str) -> Status {
    task.rules()[0].judge(response, gold).status
}

#[test]
fn worked_solutions_are_judged_correct_under_every_rule_that_fits() {
    for task in tasks() {
        task.check().unwrap();
        for i in 0..200 {
            let problem = task.problem(Split::Train, 3, i).unwrap();
            let worked = problem.worked.as_deref().unwrap();
            for rule in task.rules() {
                assert_eq!(rule.judge(worked, &problem.gold).status, Status::Correct, "{rule:?} {problem:?}");
            }
        }
    }
}

#[test]
fn splits_share_no_problem_and_no_level_meets_anothers_held_out_ones() {
    // By what makes a problem the same one: for countdown that is not its text, as the numbers stand in any order.
    let same = |p: &Problem| {
        let text = p.question().trim_end_matches([':', '=']);
        let Some((target, numbers)) = text.split_once(" from ") else { return text.to_string() };
        let mut numbers: Vec<u32> = numbers.split(',').map(|n| n.parse().unwrap()).collect();
        numbers.sort_unstable();
        format!("{target} {numbers:?}")
    };
    let (mut train, mut held_out) = (BTreeSet::new(), BTreeSet::new());
    for task in tasks() {
        for seed in [1, 2] {
            train.extend((0..400).map(|i| same(&task.problem(Split::Train, seed, i).unwrap())));
        }
        held_out.extend((0..200).map(|i| same(&task.problem(Split::HeldOut, 0, i).unwrap())));
    }
    assert!(train.len() > 2_000 && held_out.len() > 500, "{} {}", train.len(), held_out.len());
    assert_eq!(train.intersection(&held_out).next(), None);
}

#[test]
fn a_problem_is_a_function_of_its_arguments_and_slips_change_only_the_work() {
    for task in tasks() {
        let (mut right, mut steps) = (0, 0);
        for i in 0..200 {
            let plain = task.problem(Split::Train, 1, i).unwrap();
            assert_eq!(plain, task.problem(Split::Train, 1, i).unwrap());
            let slipped = task.problem_with_slips(Split::Train, 1, i, 0.5).unwrap();
            assert_eq!((plain.id, &plain.gold, &plain.messages), (slipped.id, &slipped.gold, &slipped.messages));
            let work = slipped.worked.as_deref().unwrap();
            right += usize::from(status(&task, work, &plain.gold) == Status::Correct);
            steps += work.matches(';').count();
        }
        // Half of the steps slip: the longer the work, the fewer answers stay right, and never all or none.
        assert!((1..150).contains(&right), "{task:?}: {right} of 200 right, {steps} steps");
        assert_ne!(task.problem(Split::Train, 1, 0).unwrap(), task.problem(Split::Train, 2, 0).unwrap());
    }
}

#[test]
fn levels_are_harder_and_outside_of_them_is_nothing() {
    for task in tasks().into_iter().step_by(4).take(4) {
        let steps = |level: usize| {
            let task = task.at_level(level).unwrap();
            let steps = |i| task.problem(Split::Train, 1, i).unwrap().worked.unwrap().matches(';').count();
            (0..50).map(steps).sum::<usize>()
        };
        let by_level: Vec<usize> = (1..=4).map(steps).collect();
        assert!(by_level.windows(2).all(|w| w[0] <= w[1]) && by_level[0] < by_level[3], "{task:?} {by_level:?}");
        for level in [0, 5, usize::MAX] {
            let error = task.at_level(level).unwrap_err().to_string();
            assert!(error.contains("1 to 4") && error.contains(task.name()), "{error}");
        }
    }
    let error = TaskConfig::Arithmetic(ArithmeticConfig::default()).at_level(2).unwrap_err().to_string();
    assert!(error.contains("no levels"), "{error}");
}

/// A constant answer is right once in `modulus` problems, and no more.
#[test]
fn answers_of_chains_are_spread_evenly() {
    for (modulus, level) in [(3, 1), (7, 2), (11, 3)] {
        let task = TaskConfig::Modular(ModularConfig { level, modulus: Some(modulus), ..Default::default() });
        let n = 400 * u64::from(modulus);
        let mut counts = std::collections::BTreeMap::new();
        for i in 0..n {
            *counts.entry(task.problem(Split::Train, 1, i).unwrap().gold).or_insert(0usize) += 1;
        }
        // Five standard deviations of a binomial around 400.
        assert!(counts.len() == modulus as usize && counts.values().all(|c| (300..500).contains(c)), "{counts:?}");
    }
}

/// What earlier versions made of the same arguments: a recipe's problems do not change under it.
#[test]
fn arithmetic_problems_are_the_same_in_every_version() {
    let config = ArithmeticConfig {
        operations: [2, 3],
        max_operand: 9,
        operators: "+-".into(),
        max_result: 99,
        negative: false,
    };
    let task = TaskConfig::Arithmetic(config);
    for (split, seed, index, slips, question, worked) in PINNED {
        let problem = task.problem_with_slips(*split, *seed, *index, *slips).unwrap();
        assert_eq!((problem.question(), problem.worked.as_deref()), (*question, Some(*worked)));
    }
}

type Pinned = (Split, u64, u64, f64, &'static str, &'static str);

const PINNED: &[Pinned] = &[
    (Split::Train, 1, 0, 0.0, "1+4-5=", "1+4=5;5-5=0;\\boxed{0}"),
    (Split::Train, 1, 1, 0.33, "2+8+6=", "2+8=10;10+6=16;\\boxed{16}"),
    (Split::Train, 1, 2, 0.33, "6-2+9=", "6-2=4;4+9=13;\\boxed{13}"),
    (Split::Train, 2, 1 << 40, 0.33, "2-1+8-9=", "2-1=1;1+8=9;9-9=0;\\boxed{0}"),
    (Split::HeldOut, 0, 0, 0.0, "4+7+1-3=", "4+7=11;11+1=12;12-3=9;\\boxed{9}"),
    (Split::HeldOut, 0, 7, 0.0, "9-6-3=", "9-6=3;3-3=0;\\boxed{0}"),
    (Split::Train, 3, 5, 0.9, "6+7+3+9=", "6+7=9;9+3=9;9+9=23;\\boxed{23}"),
];

/// Value of an expression of digits, `+ - * /` and brackets, by Dijkstra's two stacks: nothing in common with the code that
/// made or judges it. A denominator of 0 anywhere makes the whole one 0.
fn evaluate(text: &str) -> (i64, i64) {
    fn reduce(values: &mut Vec<(i64, i64)>, operator: char) {
        let (b, a) = (values.pop().unwrap(), values.pop().unwrap());
        values.push(match operator {
            '+' => (a.0 * b.1 + b.0 * a.1, a.1 * b.1),
            '-' => (a.0 * b.1 - b.0 * a.1, a.1 * b.1),
            '*' => (a.0 * b.0, a.1 * b.1),
            _ => (a.0 * b.1, if b.1 == 0 { 0 } else { a.1 * b.0 }),
        });
    }
    let weight = |o: char| if "*/".contains(o) { 2 } else { 1 };
    let (mut values, mut operators) = (Vec::new(), Vec::<char>::new());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '0'..='9' => {
                let mut n = i64::from(c as u8 - b'0');
                while let Some(d) = chars.next_if(char::is_ascii_digit) {
                    n = n * 10 + i64::from(d as u8 - b'0');
                }
                values.push((n, 1));
            }
            '(' => operators.push(c),
            ')' => {
                while let Some(o) = operators.pop().filter(|o| *o != '(') {
                    reduce(&mut values, o);
                }
            }
            _ => {
                while let Some(o) = operators.pop_if(|o| *o != '(' && weight(*o) >= weight(c)) {
                    reduce(&mut values, o);
                }
                operators.push(c);
            }
        }
    }
    while let Some(o) = operators.pop() {
        reduce(&mut values, o);
    }
    values[0]
}

#[test]
fn what_divides_by_zero_somewhere_has_no_value() {
    for text in ["1/(9-9)", "1/(1/(9-9))", "1-1/(1/(9-9))", "(9-9)/(9-9)", "2*(1/(9-9))*(9-9)"] {
        assert_eq!(evaluate(text).1, 0, "{text}");
        assert_eq!(
            Rule::Countdown.judge(&format!("\\boxed{{{text}}}"), "1 from 1,1,1,2,9,9,9,9").status,
            Status::Wrong
        );
    }
    assert_eq!(evaluate("(9-9)/9"), (0, 9));
}

proptest! {
    #[test]
    fn bracketed_answers_agree_with_an_independent_evaluation(seed in any::<u64>(), index in any::<u64>(), level in 1usize..5) {
        let task = TaskConfig::Brackets(BracketsConfig { level, ..Default::default() });
        let problem = task.problem(Split::Train, seed, index).unwrap();
        let value = evaluate(problem.question().trim_end_matches('='));
        prop_assert_eq!((value.0.to_string(), value.1), (problem.gold, 1));
    }

    /// Any expression of the given numbers is right exactly if it is worth the target.
    #[test]
    fn countdown_accepts_what_reaches_the_target_and_nothing_else(
        numbers in prop::collection::vec(1i64..10, 2..6), seed in any::<u64>(), target in 1i64..30,
    ) {
        let expression = super::super::expression::Expression::draw(&numbers, &['+', '-', '*', '/'], &mut Draws(seed));
        let text = expression.text();
        let listed = numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let (numerator, denominator) = evaluate(&text);
        let judge = |target: i64| Rule::Countdown.judge(&format!("\\boxed{{{text}}}"), &format!("{target} from {listed}")).status;
        let right = denominator != 0 && numerator == target * denominator;
        prop_assert_eq!(judge(target) == Status::Correct, right, "{} = {}/{}", &text, numerator, denominator);
        if denominator != 0 && numerator % denominator == 0 && numerator / denominator > 0 {
            let value = numerator / denominator;
            prop_assert_eq!(judge(value), Status::Correct);
            prop_assert_eq!(judge(value + 1), Status::Wrong);
            // With a number less than it uses, it is wrong.
            let fewer = numbers[1..].iter().map(i64::to_string).collect::<Vec<_>>().join(",");
            let verdict = Rule::Countdown.judge(&format!("\\boxed{{{text}}}"), &format!("{value} from {fewer}"));
            prop_assert_eq!(verdict.status, Status::Wrong);
        }
    }

    /// The chain's answer, computed from the question's text.
    #[test]
    fn chains_agree_with_an_independent_evaluation(seed in any::<u64>(), level in 1usize..5) {
        let task = TaskConfig::Modular(ModularConfig { level, ..Default::default() });
        let problem = task.problem(Split::HeldOut, seed, 0).unwrap();
        let mut lines = problem.question().trim_end_matches('=').split(';');
        let modulus: i64 = lines.next().unwrap().strip_prefix("mod ").unwrap().parse().unwrap();
        let mut known: Vec<(String, i64)> = Vec::new();
        let mut asked = String::new();
        for line in lines {
            let Some((name, right)) = line.split_once('=') else {
                asked = line.to_string();
                continue;
            };
            let mut right = right.to_string();
            for (name, value) in &known {
                right = right.replace(name.as_str(), &value.to_string());
            }
            known.push((name.into(), evaluate(&right).0.rem_euclid(modulus)));
        }
        let value = known.iter().find(|(name, _)| *name == asked).unwrap().1;
        prop_assert_eq!(value.to_string(), problem.gold);
    }
}
