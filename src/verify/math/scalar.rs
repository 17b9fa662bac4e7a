//! Two single values: numbers, or expressions of variables.

use super::compare::{Decision, Outcome, Work};
use super::expr::{Digits, Expr};
use super::number::{self, Limits};
use super::numeric::{self, Comparison};
use super::residue;
use dashu_int::UBig;
use dashu_ratio::RBig;

/// A decimal stands for an exact value that it is not equal to only if it has so many places, as in math-verify, which
/// rounds to six; and so many significant digits, since 0.000001 is no statement about 1/1500000.
pub const ROUNDING_PLACES: usize = 6;
pub const ROUNDING_DIGITS: usize = 4;

pub fn equal(a: &Expr, b: &Expr, work: &mut Work) -> Outcome {
    // 50\% is 0.5, and it is the 50 that was asked for in percent; math-verify takes both.
    match (percent(a), percent(b)) {
        (Some(x), Some(y)) => return plain(&x, &y, work),
        (Some(x), None) if percent_free(b) => return plain(&x, b, work).or_else(|| plain(a, b, work)),
        (None, Some(y)) if percent_free(a) => return plain(a, &y, work).or_else(|| plain(a, b, work)),
        _ => {}
    }
    plain(a, b, work)
}

/// What stands before a percent sign, if the whole value is a percentage.
fn percent(e: &Expr) -> Option<Expr> {
    match e {
        Expr::Percent(x) => Some((**x).clone()),
        Expr::Product(parts) => match parts.as_slice() {
            [sign @ Expr::Number(..), Expr::Percent(x)] => Some(Expr::Product(vec![sign.clone(), (**x).clone()])),
            _ => None,
        },
        _ => None,
    }
}

fn percent_free(e: &Expr) -> bool {
    !e.any(&mut |e| matches!(e, Expr::Percent(_)))
}

fn plain(a: &Expr, b: &Expr, work: &mut Work) -> Outcome {
    if let (Some(x), Some(y)) = (number::rational(a, &Limits::FULL), number::rational(b, &Limits::FULL)) {
        if x == y {
            return Outcome::yes(Decision::Exact);
        }
        return match (decimal(a), decimal(b)) {
            (None, None) => Outcome::no(Decision::Exact),
            (digits_a, digits_b) => Outcome { equal: rounded(&x, digits_a, &y, digits_b), by: Decision::Rounding },
        };
    }
    let (ra, rb) = (residue::residues(a), residue::residues(b));
    if let (Some(ra), Some(rb)) = (&ra, &rb) {
        if ra.same(rb) {
            return Outcome::yes(Decision::Algebra);
        }
        if ra.pure && rb.pure {
            return Outcome::no(Decision::Algebra);
        }
    }
    for (decimal_side, exact_side) in [(a, b), (b, a)] {
        if let Some(digits) = decimal(decimal_side)
            && enough(digits)
            && let Some(value) = number::rational(decimal_side, &Limits::SMALL)
            && numeric::rounds_to(exact_side, &value, digits.places, &mut work.fuel)
        {
            return Outcome::yes(Decision::Rounding);
        }
    }
    match numeric::compare(a, b, &mut work.fuel) {
        Comparison::Equal => Outcome::yes(Decision::Points),
        Comparison::Different => Outcome::no(Decision::Points),
        Comparison::Unknown => Outcome::no(Decision::Undecided),
    }
}

/// The digits of a value that is a decimal and nothing else.
fn decimal(e: &Expr) -> Option<Digits> {
    match e {
        Expr::Number(_, digits) => *digits,
        _ => None,
    }
}

fn enough(digits: Digits) -> bool {
    digits.places >= ROUNDING_PLACES && digits.significant >= ROUNDING_DIGITS
}

/// Whether one of two different values is the other, rounded to its own digits. Of two decimals the shorter one is the
/// rounding.
fn rounded(x: &RBig, digits_x: Option<Digits>, y: &RBig, digits_y: Option<Digits>) -> bool {
    let (rounding, exact, digits) = match (digits_x, digits_y) {
        (Some(dx), Some(dy)) if dx.places <= dy.places => (x, y, dx),
        (_, Some(dy)) => (y, x, dy),
        (Some(dx), None) => (x, y, dx),
        (None, None) => return false,
    };
    let difference = if rounding > exact { rounding - exact } else { exact - rounding };
    enough(digits) && difference * RBig::from(UBig::from(10u8).pow(digits.places) * UBig::from(2u8)) <= RBig::ONE
}
