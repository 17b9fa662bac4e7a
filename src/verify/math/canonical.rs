//! One form for what is written in several: signs of plus-minus written out, scaled matrices multiplied, complements as
//! unions, inequalities as intervals.

use super::compare::Work;
use super::expr::{Constant, Expr, Function, Interval, Relation};
use super::number::{self, Limits};
use super::{numeric, scalar, words};

/// Most answers that signs of plus-minus are written out to.
const MOST_SIGNS: usize = 2;

/// An answer in the form that is compared.
pub fn canonical(e: Expr) -> Expr {
    let e = e.map(&|e| match e {
        // A degree sign outside of a function is a unit: 90^\circ is 90.
        Expr::Degrees(x) => *x,
        Expr::List(parts) => without_conditions(parts),
        Expr::Product(parts) => scaled_matrix(parts),
        Expr::Difference(a, b) => complement(*a, *b),
        Expr::Symbol(name) if name == "mathbb{R}" => Expr::Interval(Box::new(Interval {
            low: Expr::Constant(Constant::Infinity).negated(),
            high: Expr::Constant(Constant::Infinity),
            low_open: true,
            high_open: true,
        })),
        // [-\infty, 0] is a slip for (-\infty, 0].
        Expr::Interval(mut i) => {
            i.low_open |= infinite(&i.low);
            i.high_open |= infinite(&i.high);
            Expr::Interval(i)
        }
        Expr::Apply(name, parts) if name == "det" => determinant(parts),
        Expr::Apply(name, mut parts) if name.starts_with("overline") && parts.len() == 1 => {
            Expr::Call(Function::Conjugate, vec![parts.swap_remove(0)])
        }
        other => other,
    });
    spread_signs(e)
}

/// `2\pi k, k \in \mathbb{Z}` as `2\pi k`: what a variable ranges over is said beside the answer.
fn without_conditions(mut parts: Vec<Expr>) -> Expr {
    let numbers = |e: &Expr| match e {
        Expr::Symbol(name) => name.starts_with("mathbb"),
        Expr::Interval(i) => infinite(&i.low) && infinite(&i.high),
        _ => false,
    };
    let condition = |e: &Expr| {
        matches!(e, Expr::Chain(sides, relations)
            if *relations == [Relation::In] && matches!(sides[0], Expr::Symbol(_)) && numbers(&sides[1]))
    };
    let values = parts.iter().filter(|p| !condition(p)).count();
    if values > 0 {
        parts.retain(|p| !condition(p));
    }
    if parts.len() == 1 { parts.swap_remove(0) } else { Expr::List(parts) }
}

/// `1 \pm \sqrt2` as its two values; in a set, as its elements.
fn spread_signs(e: Expr) -> Expr {
    let spread = |parts: Vec<Expr>| parts.into_iter().flat_map(both_signs).collect::<Vec<_>>();
    match e {
        Expr::Set(parts) => Expr::Set(spread(parts)),
        Expr::List(parts) => Expr::List(spread(parts)),
        other if other.any(&mut |e| matches!(e, Expr::PlusMinus(..))) => {
            let mut values = both_signs(other);
            if values.len() == 1 { values.swap_remove(0) } else { Expr::List(values) }
        }
        other => other,
    }
}

fn both_signs(e: Expr) -> Vec<Expr> {
    if !e.any(&mut |e| matches!(e, Expr::PlusMinus(..))) {
        return vec![e];
    }
    let with = |upper: bool| {
        e.clone().map(&|e| match e {
            Expr::PlusMinus(minus_first, x) if minus_first == upper => x.negated(),
            Expr::PlusMinus(_, x) => *x,
            other => other,
        })
    };
    let values: [Expr; MOST_SIGNS] = [with(true), with(false)];
    values.into()
}

pub fn infinite(e: &Expr) -> bool {
    *e == Expr::Constant(Constant::Infinity) || *e == Expr::Constant(Constant::Infinity).negated()
}

fn scaled_matrix(parts: Vec<Expr>) -> Expr {
    let matrices = parts.iter().filter(|p| matches!(p, Expr::Matrix(..))).count();
    if matrices != 1 {
        return Expr::Product(parts);
    }
    let (mut scale, mut matrix) = (Vec::new(), None);
    for part in parts {
        match part {
            Expr::Matrix(columns, elements) => matrix = Some((columns, elements)),
            other => scale.push(other),
        }
    }
    let Some((columns, elements)) = matrix else { return Expr::Product(scale) };
    let times = |element: Expr| Expr::Product(scale.iter().cloned().chain([element]).collect());
    Expr::Matrix(columns, elements.into_iter().map(times).collect())
}

fn determinant(mut parts: Vec<Expr>) -> Expr {
    match parts.as_slice() {
        [Expr::Matrix(2, m)] if m.len() == 4 => {
            let times = |a: &Expr, b: &Expr| Expr::Product(vec![a.clone(), b.clone()]);
            times(&m[0], &m[3]).minus(times(&m[1], &m[2]))
        }
        _ => Expr::Apply("det".into(), std::mem::take(&mut parts)),
    }
}

/// The real numbers without some points, as the intervals between them.
fn complement(a: Expr, b: Expr) -> Expr {
    let line = matches!(&a, Expr::Interval(i) if i.high == Expr::Constant(Constant::Infinity)
        && i.low == Expr::Constant(Constant::Infinity).negated());
    let Expr::Set(points) = &b else { return Expr::Difference(Box::new(a), Box::new(b)) };
    let mut known: Vec<(f64, Expr)> = Vec::new();
    for point in points {
        match real(point) {
            Some(value) if value.is_finite() => known.push((value, point.clone())),
            _ => return Expr::Difference(Box::new(a), Box::new(b)),
        }
    }
    known.sort_by(|x, y| x.0.total_cmp(&y.0));
    // Points too close together to be told apart by this sort, or repeated, are left as they are written.
    if !line || known.is_empty() || known.windows(2).any(|w| w[1].0 - w[0].0 < 1e-9) {
        return Expr::Difference(Box::new(a), Box::new(b));
    }
    let mut low = Expr::Constant(Constant::Infinity).negated();
    let mut parts = Vec::new();
    for (_, point) in known {
        parts.push(open(std::mem::replace(&mut low, point.clone()), point));
    }
    parts.push(open(low, Expr::Constant(Constant::Infinity)));
    Expr::Union(parts)
}

/// A constant's real value, to sort by.
pub fn real(point: &Expr) -> Option<f64> {
    let mut fuel = 2000;
    let (ball, _) = super::numeric::real(point, 128, &mut fuel)?;
    Some(super::precise::float(&ball.re).with_precision(53).value().to_f64().value())
}

fn open(low: Expr, high: Expr) -> Expr {
    Expr::Interval(Box::new(Interval { low, high, low_open: true, high_open: true }))
}

/// A set of numbers as its intervals and points; `None` if it is none.
pub fn union_parts(e: &Expr) -> Option<Vec<Expr>> {
    Some(match e {
        Expr::Union(parts) => parts.iter().map(union_parts).collect::<Option<Vec<_>>>()?.concat(),
        Expr::Tuple(pair) if pair.len() == 2 => vec![open(pair[0].clone(), pair[1].clone())],
        Expr::Interval(_) => vec![e.clone()],
        Expr::Set(points) => points.clone(),
        // x < 2 or x > 3
        Expr::List(parts) => {
            let intervals: Option<Vec<(Expr, Expr)>> = parts.iter().map(interval_of).collect();
            match intervals {
                Some(intervals) if intervals.windows(2).all(|w| w[0].0 == w[1].0) => {
                    intervals.into_iter().map(|(_, set)| union_parts(&set)).collect::<Option<Vec<_>>>()?.concat()
                }
                // Intervals separated by commas or "or".
                _ => parts.iter().map(union_parts).collect::<Option<Vec<_>>>()?.concat(),
            }
        }
        Expr::Chain(..) => union_parts(&interval_of(e)?.1)?,
        // A name of a set.
        Expr::Symbol(_) | Expr::Apply(..) => vec![e.clone()],
        _ => return None,
    })
}

/// The variable of `x > 1`, `1 < x <= 2`, `x \in S`, `x \ne 0` and the set it lies in.
pub fn interval_of(e: &Expr) -> Option<(Expr, Expr)> {
    let Expr::Chain(sides, relations) = e else { return None };
    let infinity = Expr::Constant(Constant::Infinity);
    let interval = |low: Expr, high: Expr, low_open, high_open| {
        Expr::Interval(Box::new(Interval { low, high, low_open, high_open }))
    };
    let name = |e: &Expr| matches!(e, Expr::Symbol(_));
    match (sides.as_slice(), relations.as_slice()) {
        ([x, set], [Relation::In]) if name(x) => Some((x.clone(), set.clone())),
        ([x, value], [Relation::NotEqual]) if name(x) && value.is_scalar() => {
            Some((x.clone(), complement(open(infinity.clone().negated(), infinity), Expr::Set(vec![value.clone()]))))
        }
        // |x| < 2 of a real variable; |z| < 2 is a disc.
        ([Expr::Call(Function::Abs, of), b], [r @ (Relation::Less | Relation::LessEqual)])
            if of.len() == 1
                && matches!(&of[0], Expr::Symbol(x) if ["x", "y", "t"].contains(&x.as_str()))
                && number::rational(b, &Limits::SMALL).is_some_and(|q| q > dashu_ratio::RBig::ZERO) =>
        {
            let open = *r == Relation::Less;
            Some((of[0].clone(), interval(b.clone().negated(), b.clone(), open, open)))
        }
        ([a, b], [r]) => {
            let (x, bound, r) = if name(a) { (a, b, *r) } else { (b, a, r.mirrored()?) };
            if !name(x) || !bound.is_scalar() {
                return None;
            }
            let set = match r {
                Relation::Less => interval(infinity.negated(), bound.clone(), true, true),
                Relation::LessEqual => interval(infinity.negated(), bound.clone(), true, false),
                Relation::Greater => interval(bound.clone(), infinity, true, true),
                Relation::GreaterEqual => interval(bound.clone(), infinity, false, true),
                _ => return None,
            };
            Some((x.clone(), set))
        }
        ([a, x, b], [r, s]) if name(x) => {
            let (low, high, r, s) = match (r, s) {
                (Relation::Less | Relation::LessEqual, Relation::Less | Relation::LessEqual) => (a, b, r, s),
                (Relation::Greater | Relation::GreaterEqual, Relation::Greater | Relation::GreaterEqual) => {
                    (b, a, s, r)
                }
                _ => return None,
            };
            let is_open = |r: &Relation| matches!(r, Relation::Less | Relation::Greater);
            Some((x.clone(), interval(low.clone(), high.clone(), is_open(r), is_open(s))))
        }
        _ => None,
    }
}

/// `x = 5`, `f(x) = 2x`, `AB = 12`, `(x, y) = (1, 2)`, `5 = x`, `x = 2 + 3 = 5`: what is named, and its value.
pub fn assignment(e: &Expr) -> Option<(Expr, Expr)> {
    let Expr::Chain(sides, relations) = e else { return None };
    if relations.iter().any(|r| *r != Relation::Equal && *r != Relation::Other("approx"))
        || relations[0] != Relation::Equal
    {
        return None;
    }
    let (first, last) = (sides.first()?, sides.last()?);
    if is_name(first) {
        // The last exact side: of x = 1/3 \approx 0.33 that is 1/3.
        let exact = relations.iter().take_while(|r| **r == Relation::Equal).count();
        return Some((first.clone(), sides[exact].clone()));
    }
    (is_name(last) && sides.len() == 2).then(|| (last.clone(), first.clone()))
}

/// `m + n = 73`, `\tan\theta = \frac34`, `x \approx 3.14`: the value of what an answer describes by an expression. For a
/// gold answer that is a bare value only: beside one with variables, `x + y = 5` is an equation.
pub fn described(answer: &Expr, gold: &Expr, work: &mut Work) -> Option<Expr> {
    let Expr::Chain(sides, relations) = answer else { return None };
    let approximate = [Relation::Other("approx")];
    let fits = relations.iter().all(|r| *r == Relation::Equal) || *relations == approximate;
    let (first, values) = sides.split_first()?;
    if !fits || !describes(first) || !bare(gold) || !values.iter().all(bare) {
        return None;
    }
    let last = values.last()?;
    values.iter().all(|value| value == last || scalar::equal(value, last, work).equal).then(|| last.clone())
}

/// `x = 5 = 6`: several values without variables that are neither equal nor roundings of one another.
pub fn contradicts(answer: &Expr, work: &mut Work) -> bool {
    let Expr::Chain(sides, relations) = answer else { return false };
    let Some((last, others)) = sides.get(1..).and_then(<[Expr]>::split_last) else { return false };
    if relations.iter().any(|r| *r != Relation::Equal) || !bare(last) || !others.iter().all(bare) {
        return false;
    }
    others.iter().any(|side| {
        let rounded = match last {
            Expr::Number(value, Some(digits)) => numeric::rounds_to(side, value, digits.places, &mut work.fuel),
            _ => false,
        };
        !rounded && !scalar::equal(side, last, work).equal
    })
}

/// `x = 1, y = 2` as the values in the order of their letters; `None` if these are no different letters: x_1 and x_2 are
/// two solutions.
pub fn coordinates(parts: &[Expr]) -> Option<Vec<Expr>> {
    let letter = |part: &Expr| match assignment(part)? {
        (Expr::Symbol(name), value) if name.chars().count() == 1 => Some((name, value)),
        _ => None,
    };
    let mut named = parts.iter().map(letter).collect::<Option<Vec<_>>>()?;
    named.sort_by(|a, b| a.0.cmp(&b.0));
    let different = named.len() > 1 && named.windows(2).all(|pair| pair[0].0 != pair[1].0);
    different.then(|| named.into_iter().map(|(_, value)| value).collect())
}

/// A value without variables, which may have a unit.
fn bare(e: &Expr) -> bool {
    let value = if let Expr::Quantity(value, _) = e { value } else { e };
    value.is_scalar() && !value.any(&mut |e| matches!(e, Expr::Symbol(_) | Expr::Apply(..)))
}

/// Whether an expression may be what is asked for: variables, their sums, products, quotients, integer powers and
/// functions. `2x + 1` holds numbers, so that `2x + 1 = 5` is an equation to be solved.
fn describes(e: &Expr) -> bool {
    let minus_one = |e: &Expr| *e == Expr::integer(-1);
    match e {
        Expr::Sum(parts) | Expr::Call(_, parts) => !parts.is_empty() && parts.iter().all(describes),
        // e and i are letters of a word: `Area = 12`.
        Expr::Product(parts) => {
            let letter = |e: &Expr| parts.len() > 2 && matches!(e, Expr::Constant(Constant::E | Constant::I));
            let letters = parts.iter().filter(|p| !minus_one(p));
            letters.clone().count() > 0 && letters.clone().all(|p| describes(p) || letter(p))
        }
        Expr::Power(base, exponent) => {
            let whole = |e: &Expr| matches!(e, Expr::Number(q, None) if q.is_int());
            let root = matches!(&**exponent, Expr::Power(degree, minus) if whole(degree) && minus_one(minus));
            describes(base) && (whole(exponent) || root)
        }
        other => is_name(other),
    }
}

/// Whether an expression only names something: a symbol, a product of symbols (a segment `AB`), a function of symbols.
fn is_name(e: &Expr) -> bool {
    match e {
        Expr::Symbol(_) | Expr::Text(_) => true,
        Expr::Constant(Constant::I | Constant::E) => false,
        Expr::Product(parts) | Expr::Tuple(parts) => parts.iter().all(is_name),
        Expr::Apply(name, parts) => {
            let operator =
                ["sum", "prod", "int", "lim", "det", "norm", "and", "cap"].iter().any(|o| name.starts_with(o));
            !operator && parts.iter().all(|p| is_name(p) || matches!(p, Expr::Number(..) | Expr::Constant(_)))
        }
        _ => false,
    }
}

/// `2 + 3 = 5`: the value of a calculation without variables whose sides agree.
pub fn calculation(e: &Expr, work: &mut Work) -> Option<Expr> {
    let Expr::Chain(sides, relations) = e else { return None };
    let constant = |e: &Expr| e.is_scalar() && !e.any(&mut |e| matches!(e, Expr::Symbol(_) | Expr::Apply(..)));
    if relations.iter().any(|r| *r != Relation::Equal) || !sides.iter().all(constant) {
        return None;
    }
    let last = sides.last()?;
    sides.iter().all(|side| scalar::equal(side, last, work).equal).then(|| last.clone())
}

/// Whether two units are known and measure different things: centimetres and metres.
pub fn units_differ(a: &str, b: &str) -> bool {
    let split = |unit: &str| {
        let (name, power) = unit.split_once('^').unwrap_or((unit, "1"));
        let (squared, name) = match name.trim().split_once(' ') {
            Some(("square" | "sq", rest)) => ("2", rest),
            Some(("cubic" | "cu", rest)) => ("3", rest),
            _ => (power, name),
        };
        words::unit(name).map(|unit| (unit, squared.to_string()))
    };
    match (split(a), split(b)) {
        (Some(a), Some(b)) => a != b,
        _ => false,
    }
}
