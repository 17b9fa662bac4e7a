//! Values of expressions at points, in high precision: the last resort, where algebra does not decide.
//!
//! Constants are compared at 128 bits and, where these agree, at so many that they agree to 256 bits behind the point: two
//! different numbers that people write as answers are not expected to. Expressions of variables are compared at 128 bits at
//! fourteen points (56 if there are cases in them: a minimum, an absolute value, a floor), of which six at least must have
//! values and all that have must agree. Variables are drawn from 2^32 values at each point, of both signs and of sizes from
//! 1/4096 to 70,000: `|x - 3|` is `3 - x` near zero. A difference that is a polynomial of degree d in each variable vanishes at
//! six points with probability at most (d n / 2^32)^6 for n variables: 2e-46 for d n = 100. Functions are principal branches,
//! so `\sqrt{x^2}` is not `x`.

use super::expr::{Constant, Expr, Function};
use super::number::{self, Limits};
use super::precise::{Arithmetic, Ball, Computed, Trouble};
use dashu_int::IBig;
use dashu_ratio::RBig;
use std::collections::BTreeSet;

/// Points at which both expressions must have values.
const POINTS: usize = 6;
/// The size of the variables, as a power of two, at each pair of points.
const SCALES: [i32; 7] = [0, -3, 3, 6, 9, 14, -10];
/// Points that are tried in any case, and where functions have cases: an expression may differ from another in one of them
/// only, which few points meet (`\max(a, b, c, d)` and `\max(a, b, c)`).
const ROUND: usize = 2 * SCALES.len();
const ROUND_OF_CASES: usize = 4 * ROUND;
/// Points near zero that are tried after these, where too many of them had no values: `\arcsin x`, `e^{e^x}`.
const SPARE: usize = 24;
/// The largest constant, in bits, that is compared to 256 bits behind the point.
const LARGEST_CONSTANT: f64 = 4096.0;
/// The longest decimal that is taken for the rounding of another value.
const MOST_PLACES: usize = 300;

/// What the values say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    Different,
    /// No common points, too large, or a function without a value.
    Unknown,
}

pub fn compare(a: &Expr, b: &Expr, fuel: &mut usize) -> Comparison {
    let variables = Variables::of(a, b);
    if variables.all.is_empty() {
        return constants(a, b, &variables, fuel);
    }
    let mut agreed = 0;
    for point in variables.points() {
        if agreed >= POINTS && point >= variables.round {
            break;
        }
        match at_point(a, b, &variables, point, 128, fuel) {
            Ok(Comparison::Equal) => agreed += 1,
            Ok(Comparison::Different) => return Comparison::Different,
            // No value here, or none that can be told from the other: e^{x^2} of large x.
            Ok(Comparison::Unknown) | Err(Trouble::Singular | Trouble::TooLarge) => {}
        }
    }
    if agreed >= POINTS { Comparison::Equal } else { Comparison::Unknown }
}

fn constants(a: &Expr, b: &Expr, variables: &Variables, fuel: &mut usize) -> Comparison {
    match at_point(a, b, variables, 0, 128, fuel) {
        Ok(Comparison::Different) => return Comparison::Different,
        Ok(_) => {}
        Err(_) => return Comparison::Unknown,
    }
    // Half of the digits are what an agreement is sure to have: 256 behind the point, and those before it.
    let size = real(a, 128, fuel).map_or(0.0, |(value, _)| value.size().clamp(0.0, LARGEST_CONSTANT));
    at_point(a, b, variables, 0, 512 + 2 * size as usize, fuel).unwrap_or(Comparison::Unknown)
}

/// Whether b is a constant multiple of a: the constant's sign if it is real, 0 otherwise; `None` if it is none.
pub fn proportional(a: &Expr, b: &Expr, fuel: &mut usize) -> Option<i8> {
    let variables = Variables::of(a, b);
    let ratio = a.clone().over(b.clone());
    let mut first: Option<Ball> = None;
    let mut agreed = 0;
    for point in variables.points() {
        // One side of an equation without variables is a constant already.
        if (agreed >= POINTS && point >= variables.round) || (variables.all.is_empty() && agreed == 1) {
            break;
        }
        let mut arithmetic = Arithmetic::new(128, *fuel);
        let value = Evaluator { arithmetic: &mut arithmetic, variables: &variables, point }.value(&ratio);
        *fuel = arithmetic.fuel;
        let value = match value {
            Ok(value) => value,
            Err(Trouble::Singular | Trouble::TooLarge) => continue,
        };
        match &first {
            None => first = Some(value),
            Some(first) if judge(first, &value, &mut arithmetic) != Ok(Comparison::Equal) => return None,
            Some(_) => {}
        }
        agreed += 1;
    }
    let first = first.filter(|f| !f.may_be_zero() && (agreed >= POINTS || variables.all.is_empty()))?;
    Some(if !first.is_real() {
        0
    } else if first.is_negative() {
        -1
    } else {
        1
    })
}

/// A constant's real value to `bits` bits with its error; `None` if it has none.
pub fn real(e: &Expr, bits: usize, fuel: &mut usize) -> Option<(Ball, Arithmetic)> {
    let variables = Variables::default();
    let mut arithmetic = Arithmetic::new(bits, *fuel);
    let value = Evaluator { arithmetic: &mut arithmetic, variables: &variables, point: 0 }.value(e).ok();
    *fuel = arithmetic.fuel;
    value.filter(Ball::is_real).map(|v| (v, arithmetic))
}

/// Whether a constant rounds to a decimal: |e - decimal| is at most half a unit of its last place.
pub fn rounds_to(e: &Expr, decimal: &RBig, places: usize, fuel: &mut usize) -> bool {
    if places > MOST_PLACES {
        return false;
    }
    // Four bits a digit: the error stays far below the last place.
    let Some((value, mut arithmetic)) = real(e, 128 + 4 * places, fuel) else { return false };
    let half = RBig::from_parts(IBig::ONE, dashu_int::UBig::from(10u8).pow(places) * dashu_int::UBig::from(2u8));
    let within = |arithmetic: &mut Arithmetic| -> Computed<bool> {
        let decimal = arithmetic.rational(decimal)?;
        let half = arithmetic.rational(&half)?;
        let difference = arithmetic.sub(&value, &decimal)?;
        let distance = arithmetic.abs(&difference)?;
        let room = arithmetic.sub(&half, &distance)?;
        Ok(!room.is_negative() || room.may_be_zero())
    };
    within(&mut arithmetic).unwrap_or(false)
}

fn at_point(
    a: &Expr,
    b: &Expr,
    variables: &Variables,
    point: usize,
    bits: usize,
    fuel: &mut usize,
) -> Computed<Comparison> {
    let mut arithmetic = Arithmetic::new(bits, *fuel);
    let mut both = || {
        let a = Evaluator { arithmetic: &mut arithmetic, variables, point }.value(a)?;
        let b = Evaluator { arithmetic: &mut arithmetic, variables, point }.value(b)?;
        judge(&a, &b, &mut arithmetic)
    };
    let result = both();
    *fuel = arithmetic.fuel;
    result
}

fn judge(a: &Ball, b: &Ball, arithmetic: &mut Arithmetic) -> Computed<Comparison> {
    let difference = arithmetic.sub(a, b)?;
    if !difference.may_be_zero() {
        return Ok(Comparison::Different);
    }
    // Equal only if the error is small enough to mean something: half of the digits, relative to the larger value.
    let scale = a.size().max(b.size()).max(0.0);
    let sharp = difference.error < scale - arithmetic.bits as f64 / 2.0;
    Ok(if sharp { Comparison::Equal } else { Comparison::Unknown })
}

/// The names that take values, those among them that count something, and those that are complex.
#[derive(Default)]
struct Variables {
    all: BTreeSet<String>,
    integers: BTreeSet<String>,
    complex: BTreeSet<String>,
    /// Points that are tried in any case.
    round: usize,
}

impl Variables {
    fn of(a: &Expr, b: &Expr) -> Variables {
        let mut variables = Variables { round: ROUND, ..Variables::default() };
        for e in [a, b] {
            variables.collect(e, false);
            let cases = [Function::Abs, Function::Floor, Function::Ceil, Function::Min, Function::Max];
            if e.any(&mut |e| matches!(e, Expr::Call(function, _) if cases.contains(function))) {
                variables.round = ROUND_OF_CASES;
            }
        }
        variables.find_complex(a, b);
        variables
    }

    fn points(&self) -> std::ops::Range<usize> {
        0..self.round + SPARE
    }

    /// z and w where there are complex numbers, and what Re, Im and a conjugate are taken of, unless it is written out in
    /// real ones (`\Re(x + iy)`). |z| alone is of a complex number too, but not beside x and y.
    fn find_complex(&mut self, a: &Expr, b: &Expr) {
        let coordinates = self.all.contains("x") || self.all.contains("y");
        let mut found = false;
        for side in [a, b] {
            side.any(&mut |e| {
                found |= match e {
                    Expr::Constant(Constant::I) => true,
                    Expr::Call(Function::Abs, _) => !coordinates,
                    Expr::Call(Function::Re | Function::Im | Function::Conjugate, arguments) => {
                        let mut of = Variables::default();
                        arguments.iter().for_each(|argument| of.collect(argument, false));
                        if !arguments.iter().any(imaginary) {
                            self.complex.extend(of.all);
                        }
                        true
                    }
                    _ => false,
                };
                false
            });
        }
        if found {
            let named = |name: &&String| ["z", "w", "zeta"].contains(&name.split(['_', '\'']).next().unwrap_or(name));
            self.complex.extend(self.all.iter().filter(named).cloned());
        }
    }

    fn collect(&mut self, e: &Expr, integer: bool) {
        if let Expr::Symbol(name) = e {
            self.all.insert(name.clone());
            if integer {
                self.integers.insert(name.clone());
            }
        }
        let counts =
            matches!(e, Expr::Call(Function::Factorial | Function::Binomial | Function::Gcd | Function::Lcm, _));
        if let Expr::Apply(name, _) = e {
            self.all.insert(format!("apply {name}"));
        }
        for child in e.children() {
            self.collect(child, integer || counts);
        }
    }
}

fn imaginary(e: &Expr) -> bool {
    e.any(&mut |e| *e == Expr::Constant(Constant::I))
}

struct Evaluator<'a> {
    arithmetic: &'a mut Arithmetic,
    variables: &'a Variables,
    point: usize,
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Evaluator<'_> {
    fn value(&mut self, e: &Expr) -> Computed<Ball> {
        match e {
            Expr::Number(q, _) => self.arithmetic.rational(q),
            Expr::Constant(Constant::Pi) => self.arithmetic.pi(),
            Expr::Constant(Constant::E) => self.arithmetic.exp(&Ball::integer(&IBig::ONE)),
            Expr::Constant(Constant::I) => Ok(Arithmetic::imaginary_unit()),
            Expr::Symbol(name) => self.variable(name),
            Expr::Sum(terms) => {
                let mut sum = Ball::integer(&IBig::ZERO);
                for term in terms {
                    let term = self.value(term)?;
                    sum = self.arithmetic.add(&sum, &term)?;
                }
                Ok(sum)
            }
            Expr::Product(factors) => {
                let mut product = Ball::integer(&IBig::ONE);
                for factor in factors {
                    let factor = self.value(factor)?;
                    product = self.arithmetic.mul(&product, &factor)?;
                }
                Ok(product)
            }
            Expr::Power(base, exponent) => self.power(base, exponent),
            Expr::Percent(x) => {
                let (x, hundredth) =
                    (self.value(x)?, self.arithmetic.rational(&RBig::from_parts(1.into(), 100u8.into()))?);
                self.arithmetic.mul(&x, &hundredth)
            }
            Expr::Degrees(x) => self.value(x),
            Expr::Call(function, arguments) => self.call(*function, arguments, e),
            // An unknown function is one number for each list of arguments' values: enough to tell f(x) from f(y).
            Expr::Apply(name, arguments) => self.unknown(name, arguments),
            _ => Err(Trouble::Singular),
        }
    }

    fn variable(&mut self, name: &str) -> Computed<Ball> {
        let seed = self.seed(name);
        if self.variables.integers.contains(name) {
            // Factorials are written out, so that these stay smaller.
            return Ok(Ball::integer(&IBig::from(3 + seed % if self.scale() > 3 { 400 } else { 40 })));
        }
        // All positive at the first point, all negative at the second; at every other pair of points a name's sign is
        // drawn for the first and turned for the second, so that each size is met with both.
        let pair = mix(name.bytes().fold(self.point as u64 / 2, |h, b| mix(h ^ u64::from(b))));
        let turned = self.point % 2 == 1;
        let negative = if self.point < 2 { turned } else { (pair & 1 == 1) != turned };
        let real = self.drawn(seed, negative)?;
        if (self.point / 2).is_multiple_of(2) || !self.variables.complex.contains(name) {
            return Ok(real);
        }
        let seed = mix(seed ^ 1);
        let imaginary = self.drawn(seed, seed & 1 == 1)?;
        let imaginary = self.arithmetic.mul(&imaginary, &Arithmetic::imaginary_unit())?;
        self.arithmetic.add(&real, &imaginary)
    }

    fn seed(&self, name: &str) -> u64 {
        name.bytes().fold(mix(self.point as u64 + 1), |h, b| mix(h ^ u64::from(b)))
    }

    fn scale(&self) -> i32 {
        let near_zero = if self.point < self.variables.round { SCALES.len() } else { 2 };
        SCALES[self.point / 2 % near_zero]
    }

    /// One of 2^32 values in (1/4, 4 1/4), times the point's scale.
    fn drawn(&mut self, seed: u64, negative: bool) -> Computed<Ball> {
        let magnitude = RBig::from_parts(IBig::from((1u64 << 28) + (seed >> 32)), (1u64 << 30).into());
        let power = RBig::from(1u64 << self.scale().unsigned_abs());
        let value = if self.scale() < 0 { magnitude / power } else { magnitude * power };
        self.arithmetic.rational(&if negative { -value } else { value })
    }

    fn unknown(&mut self, name: &str, arguments: &[Expr]) -> Computed<Ball> {
        let mut seed = name.bytes().fold(mix(self.point as u64 + 7), |h, b| mix(h ^ u64::from(b)));
        for argument in arguments {
            let value = match argument {
                scalar if scalar.is_scalar() => self.value(scalar)?,
                _ => return Err(Trouble::Singular),
            };
            // The leading 64 bits, rounded so that two ways of computing one value give the same.
            let rounded = |x: &dashu_float::Repr<2>| {
                let size = super::precise::size(x);
                if size < value.error + 40.0 || size == f64::NEG_INFINITY {
                    return 0;
                }
                super::precise::float(x).with_precision(40).value().to_f64().value().to_bits()
            };
            seed = mix(mix(seed ^ rounded(&value.re)) ^ rounded(&value.im));
        }
        // All positive at the first point, all negative at the second: f(x) is not |f(x)|.
        let negative = if self.point < 2 { self.point == 1 } else { seed & 1 == 1 };
        self.drawn(seed, negative)
    }

    fn power(&mut self, base: &Expr, exponent: &Expr) -> Computed<Ball> {
        let Some(q) = number::rational(exponent, &Limits::SMALL) else {
            let exponent = self.value(exponent)?;
            if *base == Expr::Constant(Constant::E) {
                return self.arithmetic.exp(&exponent);
            }
            let base = self.value(base)?;
            if let Some(n) = exponent.exact_integer().and_then(|n| u64::try_from(n).ok())
                && n < 1 << 20
            {
                return self.arithmetic.integer_power(&base, n);
            }
            return self.arithmetic.power(&base, &exponent);
        };
        if *base == Expr::Constant(Constant::E) {
            let exponent = self.arithmetic.rational(&q)?;
            return self.arithmetic.exp(&exponent);
        }
        let base = self.value(base)?;
        let negative = q < RBig::ZERO;
        let count =
            u64::try_from(dashu_int::ops::UnsignedAbs::unsigned_abs(q.numerator())).map_err(|_| Trouble::TooLarge)?;
        let degree = usize::try_from(q.denominator()).map_err(|_| Trouble::TooLarge)?;
        let root = match degree {
            1 => base,
            2..=64 if base.is_real() && !base.is_negative() => self.arithmetic.real_root(&base, degree)?,
            // The real root of a negative number, as answers mean it.
            3..=63 if base.is_real() && degree % 2 == 1 => {
                self.arithmetic.real_root(&base.negated(), degree)?.negated()
            }
            _ => {
                let exponent = self.arithmetic.rational(&q)?;
                return self.arithmetic.power(&base, &exponent);
            }
        };
        let power = self.arithmetic.integer_power(&root, count)?;
        if negative { self.arithmetic.inverse(&power) } else { Ok(power) }
    }

    fn call(&mut self, function: Function, arguments: &[Expr], whole: &Expr) -> Computed<Ball> {
        if let Some(q) = number::rational(whole, &Limits::FULL) {
            return self.arithmetic.rational(&q);
        }
        let values = arguments.iter().map(|a| self.value(a)).collect::<Computed<Vec<Ball>>>()?;
        match (function, values.as_slice()) {
            (Function::Sin, [x]) => self.arithmetic.sin_cos(x, true),
            (Function::Cos, [x]) => self.arithmetic.sin_cos(x, false),
            (Function::Asin, [x]) => self.arithmetic.arc(x, true),
            (Function::Acos, [x]) => self.arithmetic.arc(x, false),
            (Function::Atan, [x]) => self.arithmetic.atan(x),
            (Function::Ln, [x]) => self.arithmetic.ln(x),
            (Function::Abs, [x]) => self.arithmetic.abs(x),
            (Function::Floor, [x]) => self.arithmetic.round(x, false),
            (Function::Ceil, [x]) => self.arithmetic.round(x, true),
            (Function::Re, [x]) => Ok(Ball { im: dashu_float::Repr::zero(), ..x.clone() }),
            (Function::Im, [x]) => Ok(Ball { re: x.im.clone(), im: dashu_float::Repr::zero(), error: x.error }),
            (Function::Conjugate, [x]) => Ok(Ball { im: -x.im.clone(), ..x.clone() }),
            (Function::Min | Function::Max, [first, rest @ ..]) => {
                let mut best = first.clone();
                for x in rest {
                    if !x.is_real() || !best.is_real() {
                        return Err(Trouble::Singular);
                    }
                    let difference = self.arithmetic.sub(x, &best)?;
                    if difference.is_negative() == (function == Function::Min) {
                        best = x.clone();
                    }
                }
                Ok(best)
            }
            (Function::Factorial | Function::Binomial | Function::Gcd | Function::Lcm, values) => {
                let exact = values.iter().map(|v| v.exact_integer().map(|n| Expr::rational(RBig::from(n))));
                let exact = exact.collect::<Option<Vec<Expr>>>().ok_or(Trouble::Singular)?;
                let value = number::rational(&Expr::Call(function, exact), &Limits::FULL).ok_or(Trouble::Singular)?;
                self.arithmetic.rational(&value)
            }
            _ => Err(Trouble::Singular),
        }
    }
}
