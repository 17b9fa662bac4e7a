//! Equality of two answers by what they are: single values, several answers, points, sets, intervals, relations, matrices.

use super::canonical::{self, interval_of};
use super::expr::{Constant, Expr, Interval, Relation};
use super::{numeric, residue, scalar, text, union};
use serde::{Deserialize, Serialize};

/// The rule that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The same text, to spelling.
    Text,
    /// The same multiple choice letter, or another one.
    Choice,
    /// The same expression, or one of another kind: a point is no set.
    Structure,
    /// Rational arithmetic.
    Exact,
    /// Values in a prime field ([`super::residue`]).
    Algebra,
    /// A decimal against a value, to the decimal's own digits.
    Rounding,
    /// Values at points in high precision ([`super::numeric`]).
    Points,
    /// Neither algebra nor points decided: no common point, or a function without values.
    Undecided,
    /// The response states no answer.
    NoAnswer,
    /// The answer is no expression, and not the gold answer's text.
    Unparsable,
    /// Longer than the limit.
    TooLong,
    /// Nested deeper than the limit.
    TooDeep,
    /// The work's limit was reached.
    TooLarge,
}

/// Whether two answers are equal, and by which rule. A compound is decided by the weakest of its parts' rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub equal: bool,
    pub by: Decision,
}

impl Outcome {
    pub fn yes(by: Decision) -> Outcome {
        Outcome { equal: true, by }
    }

    pub fn no(by: Decision) -> Outcome {
        Outcome { equal: false, by }
    }

    pub fn or_else(self, other: impl FnOnce() -> Outcome) -> Outcome {
        if self.equal { self } else { other() }
    }

    fn and_then(self, other: impl FnOnce() -> Outcome) -> Outcome {
        if !self.equal {
            return self;
        }
        let other = other();
        Outcome { equal: other.equal, by: if other.equal { self.by.max(other.by) } else { other.by } }
    }
}

/// What is left of the work that one verdict may cost.
#[derive(Debug)]
pub struct Work {
    /// Operations in high precision, in units of one addition.
    pub fuel: usize,
    /// Comparisons of parts.
    pub comparisons: usize,
}

/// Whether an answer says what the gold answer says.
pub fn equal(gold: &Expr, answer: &Expr, work: &mut Work) -> Outcome {
    if work.comparisons == 0 {
        return Outcome::no(Decision::TooLarge);
    }
    work.comparisons -= 1;
    if gold == answer {
        return Outcome::yes(Decision::Structure);
    }
    let different = Outcome::no(Decision::Structure);
    match (gold, answer) {
        (Expr::Chain(..), Expr::Chain(..)) => chains(gold, answer, work),
        (Expr::Chain(..), _) | (_, Expr::Chain(..)) => chain_and_value(gold, answer, work),
        (Expr::Text(a), Expr::Text(b)) => {
            let equal = text::same_words(&format!("\\text{{{a}}}"), &format!("\\text{{{b}}}"));
            Outcome { equal, by: Decision::Text }
        }
        // \text{C} and C
        (Expr::Text(a), Expr::Symbol(b)) | (Expr::Symbol(b), Expr::Text(a)) => {
            Outcome { equal: a.trim() == b.as_str(), by: Decision::Text }
        }
        (Expr::Text(_), _) | (_, Expr::Text(_)) => Outcome::no(Decision::Text),
        (Expr::Quantity(a, unit_a), Expr::Quantity(b, unit_b)) => {
            if canonical::units_differ(unit_a, unit_b) {
                return different;
            }
            equal(a, b, work)
        }
        (Expr::Quantity(a, _), b) => equal(a, b, work),
        (a, Expr::Quantity(b, _)) => equal(a, b, work),
        (Expr::Based(a, base_a), Expr::Based(b, base_b)) => Outcome {
            equal: a.trim_start_matches('0') == b.trim_start_matches('0') && base_a == base_b,
            by: Decision::Exact,
        },
        // The base is often left out, never converted: 52_8 is asked for in base 8.
        (Expr::Based(digits, _), other) | (other, Expr::Based(digits, _)) => match super::atom::number(digits, "") {
            Ok(value) if other.is_scalar() => scalar::equal(&value, other, work),
            _ => different,
        },
        (Expr::Modular(a, m), Expr::Modular(b, n)) => equal(m, n, work).and_then(|| congruent(a, b, m, work)),
        (Expr::Modular(a, _), b) => equal(a, b, work),
        (a, Expr::Modular(b, _)) => equal(a, b, work),
        (Expr::Ratio(a), Expr::Ratio(b)) if a.len() == b.len() => {
            let (first_a, first_b) = (&a[0], &b[0]);
            let cross = |x: &Expr, y: &Expr| Expr::Product(vec![x.clone(), y.clone()]);
            all(a[1..].iter().zip(&b[1..]), |(x, y)| scalar::equal(&cross(x, first_b), &cross(first_a, y), work))
        }
        (Expr::Ratio(a), b) if a.len() == 2 && b.is_scalar() && !has_zero(a) => {
            equal(&a[0].clone().over(a[1].clone()), b, work)
        }
        (a, Expr::Ratio(b)) if b.len() == 2 && a.is_scalar() && !has_zero(b) => {
            equal(a, &b[0].clone().over(b[1].clone()), work)
        }
        (Expr::Matrix(columns_a, a), Expr::Matrix(columns_b, b)) => {
            if columns_a != columns_b || a.len() != b.len() {
                return different;
            }
            ordered(a, b, work)
        }
        // A vector as a column, as a row, or as a point.
        (Expr::Matrix(columns, a), Expr::Tuple(b)) | (Expr::Tuple(b), Expr::Matrix(columns, a)) => {
            if a.len() != b.len() || (*columns != 1 && *columns != a.len()) {
                return different;
            }
            if matches!(gold, Expr::Matrix(..)) { ordered(a, b, work) } else { ordered(b, a, work) }
        }
        (Expr::Tuple(a), Expr::Tuple(b)) => ordered(a, b, work),
        (Expr::Tuple(a), Expr::List(b)) => ordered(a, &canonical::coordinates(b).unwrap_or_else(|| b.clone()), work),
        (Expr::List(a), Expr::Tuple(b)) => ordered(&canonical::coordinates(a).unwrap_or_else(|| a.clone()), b, work),
        (Expr::List(a) | Expr::Set(a), Expr::List(b) | Expr::Set(b)) => {
            let sets = matches!(gold, Expr::Set(_)) || matches!(answer, Expr::Set(_));
            if !sets && let Some((a, b)) = coordinated(a, b) {
                return ordered(&a, &b, work);
            }
            let outcome = unordered(a, b, sets, work);
            if outcome.equal { outcome } else { outcome.or_else(|| united(gold, answer, work).unwrap_or(outcome)) }
        }
        (Expr::Set(a), b) if a.len() == 1 && b.is_scalar() => equal(&a[0], b, work),
        (a, Expr::Set(b)) if b.len() == 1 && a.is_scalar() => equal(a, &b[0], work),
        (Expr::Interval(a), Expr::Interval(b)) => intervals(a, b, work),
        (Expr::Interval(a), Expr::Tuple(b)) | (Expr::Tuple(b), Expr::Interval(a)) => match open(b) {
            Some(b) if matches!(gold, Expr::Interval(_)) => intervals(a, &b, work),
            Some(b) => intervals(&b, a, work),
            None => different,
        },
        (Expr::Union(_), _) | (_, Expr::Union(_)) => united(gold, answer, work).unwrap_or(different),
        (Expr::Difference(a, b), Expr::Difference(c, d)) => equal(a, c, work).and_then(|| equal(b, d, work)),
        (Expr::Difference(..), _) | (_, Expr::Difference(..)) => different,
        (Expr::Apply(f, a), Expr::Apply(g, b)) if f == g && f == "and" => unordered(a, b, false, work),
        (a, b) if a.is_scalar() && b.is_scalar() => scalars(a, b, work),
        (Expr::Apply(f, a), Expr::Apply(g, b)) if f == g => ordered(a, b, work),
        _ => different,
    }
}

/// Coordinates by name beside values without names, which are in order then: `x = 1, y = 2` is `1, 2` and not `2, 1`.
fn coordinated(a: &[Expr], b: &[Expr]) -> Option<(Vec<Expr>, Vec<Expr>)> {
    let values = |parts: &[Expr]| parts.iter().all(|e| !matches!(e, Expr::Chain(..))).then(|| parts.to_vec());
    match (canonical::coordinates(a), canonical::coordinates(b)) {
        (Some(a), None) => Some((a, values(b)?)),
        (None, Some(b)) => Some((values(a)?, b)),
        _ => None,
    }
}

/// (0:1) is a point of a projective line, no quotient.
fn has_zero(parts: &[Expr]) -> bool {
    parts.contains(&Expr::integer(0))
}

fn scalars(a: &Expr, b: &Expr, work: &mut Work) -> Outcome {
    let infinite = |e: &Expr| e.any(&mut |e| *e == Expr::Constant(Constant::Infinity));
    if infinite(a) || infinite(b) {
        let sign = |e: &Expr| match e {
            Expr::Constant(Constant::Infinity) => Some(1),
            Expr::Product(parts) if *parts == [Expr::integer(-1), Expr::Constant(Constant::Infinity)] => Some(-1),
            _ => None,
        };
        return Outcome { equal: sign(a).is_some() && sign(a) == sign(b), by: Decision::Structure };
    }
    scalar::equal(a, b, work)
}

fn all<T>(parts: impl Iterator<Item = T>, mut same: impl FnMut(T) -> Outcome) -> Outcome {
    let mut outcome = Outcome::yes(Decision::Text);
    for part in parts {
        outcome = outcome.and_then(|| same(part));
        if !outcome.equal {
            break;
        }
    }
    outcome
}

fn ordered(gold: &[Expr], answer: &[Expr], work: &mut Work) -> Outcome {
    if gold.len() != answer.len() {
        return Outcome::no(Decision::Structure);
    }
    all(gold.iter().zip(answer), |(a, b)| equal(a, b, work))
}

/// The same elements in any order; in a set, repetitions do not count.
fn unordered(gold: &[Expr], answer: &[Expr], set: bool, work: &mut Work) -> Outcome {
    if gold.len() != answer.len() && !set {
        return Outcome::no(Decision::Structure);
    }
    let mut taken = vec![false; answer.len()];
    let mut outcome = Outcome::yes(Decision::Structure);
    for element in gold {
        let mut found = None;
        let mut weakest = Decision::Structure;
        for (i, candidate) in answer.iter().enumerate() {
            if taken[i] && !set {
                continue;
            }
            let same = equal(element, candidate, work);
            if same.equal {
                found = Some((i, same.by));
                break;
            }
            weakest = weakest.max(same.by);
        }
        let Some((i, by)) = found else { return Outcome::no(weakest) };
        taken[i] = true;
        outcome.by = outcome.by.max(by);
    }
    if set {
        // Every element of the answer must be one of the gold answer's too.
        for (i, candidate) in answer.iter().enumerate() {
            if !taken[i] && !gold.iter().any(|element| equal(element, candidate, work).equal) {
                return Outcome::no(Decision::Structure);
            }
        }
    }
    outcome
}

fn open(pair: &[Expr]) -> Option<Interval> {
    match pair {
        [low, high] => Some(Interval { low: low.clone(), high: high.clone(), low_open: true, high_open: true }),
        _ => None,
    }
}

fn intervals(a: &Interval, b: &Interval, work: &mut Work) -> Outcome {
    if a.low_open != b.low_open || a.high_open != b.high_open {
        return Outcome::no(Decision::Structure);
    }
    equal(&a.low, &b.low, work).and_then(|| equal(&a.high, &b.high, work))
}

/// Sets of numbers as unions of intervals and points, compared part by part.
fn united(gold: &Expr, answer: &Expr, work: &mut Work) -> Option<Outcome> {
    let (a, b) = (canonical::union_parts(gold)?, canonical::union_parts(answer)?);
    let outcome = unordered(&a, &b, true, work);
    if outcome.equal {
        return Some(outcome);
    }
    match (union::merged(&a, work), union::merged(&b, work)) {
        (Some(a), Some(b)) => Some(unordered(&a, &b, true, work)),
        _ => Some(outcome),
    }
}

fn congruent(a: &Expr, b: &Expr, modulus: &Expr, work: &mut Work) -> Outcome {
    let quotient = a.clone().minus(b.clone()).over(modulus.clone());
    match super::number::rational(&quotient, &super::number::Limits::FULL) {
        Some(q) => Outcome { equal: q.is_int(), by: Decision::Exact },
        None => equal(a, b, work),
    }
}

/// `x = 5` and `5`; `x > 1` and `(1, \infty)`.
fn chain_and_value(gold: &Expr, answer: &Expr, work: &mut Work) -> Outcome {
    let different = Outcome::no(Decision::Structure);
    if let Expr::Chain(..) = gold {
        if let Some((_, value)) = canonical::assignment(gold) {
            return equal(&value, answer, work);
        }
        if let Some(value) = canonical::calculation(gold, work) {
            return equal(&value, answer, work);
        }
        return match interval_of(gold) {
            Some((_, set)) => equal(&set, answer, work),
            None => different,
        };
    }
    if canonical::contradicts(answer, work) {
        return different;
    }
    if let Some((_, value)) = canonical::assignment(answer) {
        return equal(gold, &value, work);
    }
    if let Some(value) = canonical::calculation(answer, work) {
        return equal(gold, &value, work);
    }
    if let Some(value) = canonical::described(answer, gold, work) {
        return equal(gold, &value, work);
    }
    match interval_of(answer) {
        Some((_, set)) => equal(gold, &set, work),
        None => different,
    }
}

fn chains(gold: &Expr, answer: &Expr, work: &mut Work) -> Outcome {
    if let (Some((x, a)), Some((y, b))) = (canonical::assignment(gold), canonical::assignment(answer))
        && equal(&x, &y, work).equal
        && let outcome = equal(&a, &b, work)
        && outcome.equal
    {
        return outcome;
    }
    let (Expr::Chain(a, relations_a), Expr::Chain(b, relations_b)) = (gold, answer) else {
        return Outcome::no(Decision::Structure);
    };
    let sides = same_sides(a, relations_a, b, relations_b, work);
    if sides.equal {
        return sides;
    }
    if let ([a, b], [r], [c, d], [s]) = (a.as_slice(), relations_a.as_slice(), b.as_slice(), relations_b.as_slice())
        && [a, b, c, d].iter().all(|e| e.is_scalar())
        && let outcome = multiples(&a.clone().minus(b.clone()), *r, &c.clone().minus(d.clone()), *s, work)
        && outcome.equal
    {
        return outcome;
    }
    match (interval_of(gold), interval_of(answer)) {
        (Some((x, a)), Some((y, b))) if x == y => equal(&a, &b, work),
        _ => sides,
    }
}

/// The same sides with the same relations, read forwards or backwards.
fn same_sides(a: &[Expr], relations_a: &[Relation], b: &[Expr], relations_b: &[Relation], work: &mut Work) -> Outcome {
    if a.len() != b.len() {
        return Outcome::no(Decision::Structure);
    }
    if relations_a == relations_b {
        let forwards = ordered(a, b, work);
        if forwards.equal {
            return forwards;
        }
    }
    let mirrored: Option<Vec<Relation>> = relations_b.iter().rev().map(|r| r.mirrored()).collect();
    if mirrored.as_deref() == Some(relations_a) {
        let backwards: Vec<Expr> = b.iter().rev().cloned().collect();
        return ordered(a, &backwards, work);
    }
    Outcome::no(Decision::Structure)
}

/// `a R 0` and `b S 0` where b is a multiple of a: the same equation, and the same inequality if the multiple's sign fits.
fn multiples(a: &Expr, r: Relation, b: &Expr, s: Relation, work: &mut Work) -> Outcome {
    let different = Outcome::no(Decision::Structure);
    let same = r == s;
    let flipped = r.mirrored() == Some(s);
    if !same && !flipped {
        return different;
    }
    // An identity (AB = BA, of matrices) says nothing by its difference.
    let identity = |e: &Expr| residue::residues(e).is_none_or(|r| r.is_zero());
    if identity(a) || identity(b) {
        return different;
    }
    let Some(sign) = numeric::proportional(a, b, &mut work.fuel) else { return Outcome::no(Decision::Points) };
    let equal = match r {
        Relation::Equal | Relation::NotEqual => same,
        Relation::Less | Relation::LessEqual | Relation::Greater | Relation::GreaterEqual => {
            (same && sign == 1) || (flipped && sign == -1)
        }
        Relation::In | Relation::Other(_) => false,
    };
    Outcome { equal, by: Decision::Points }
}
