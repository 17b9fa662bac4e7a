//! Values of expressions at points, in high precision: the last resort, where algebra does not decide.
//!
//! Constants are compared at 128 bits and, where these agree, at 512: two different numbers that people write as answers
//! are not expected to agree to 150 digits. Expressions of variables are compared at 128 bits at six points, with variables drawn
//! from 2^32 real values of both signs. A difference that is a polynomial of degree d in each variable vanishes at all six
//! with probability at most (d n / 2^32)^6 for n variables: 2e-46 for d n = 100. Functions are principal branches, so
//! `\sqrt{x^2}` is not `x`.

use super::expr::{Constant, Expr, Function};
use super::number::{self, Limits};
use super::precise::{Arithmetic, Ball, Computed, Trouble};
use dashu_int::IBig;
use dashu_ratio::RBig;
use std::collections::BTreeSet;

/// Points at which expressions of variables are compared, and how many may fall on singularities in finding them.
const POINTS: usize = 6;
const ATTEMPTS: usize = 14;
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
    let mut variables = Variables::default();
    variables.collect(a, false);
    variables.collect(b, false);
    if variables.all.is_empty() {
        let first = at_point(a, b, &variables, 0, 128, fuel);
        return match first {
            Ok(Comparison::Different) => Comparison::Different,
            Ok(_) => at_point(a, b, &variables, 0, 512, fuel).unwrap_or(Comparison::Unknown),
            Err(_) => Comparison::Unknown,
        };
    }
    let mut agreed = 0;
    for point in 0..ATTEMPTS {
        match at_point(a, b, &variables, point, 128, fuel) {
            Ok(Comparison::Equal) => agreed += 1,
            Ok(Comparison::Different) => return Comparison::Different,
            Ok(Comparison::Unknown) | Err(Trouble::Singular) => {}
            Err(Trouble::TooLarge) => return Comparison::Unknown,
        }
        if agreed == POINTS {
            return Comparison::Equal;
        }
    }
    Comparison::Unknown
}

/// Whether b is a constant multiple of a: the constant's sign if it is real, 0 otherwise; `None` if it is none.
pub fn proportional(a: &Expr, b: &Expr, fuel: &mut usize) -> Option<i8> {
    let mut variables = Variables::default();
    variables.collect(a, false);
    variables.collect(b, false);
    let ratio = a.clone().over(b.clone());
    let mut first: Option<Ball> = None;
    let mut agreed = 0;
    for point in 0..ATTEMPTS {
        let mut arithmetic = Arithmetic::new(128, *fuel);
        let value = Evaluator { arithmetic: &mut arithmetic, variables: &variables, point }.value(&ratio);
        *fuel = arithmetic.fuel;
        let value = match value {
            Ok(value) => value,
            Err(Trouble::Singular) => continue,
            Err(Trouble::TooLarge) => return None,
        };
        match &first {
            None => first = Some(value),
            Some(first) if judge(first, &value, &mut arithmetic) != Ok(Comparison::Equal) => return None,
            Some(_) => {}
        }
        agreed += 1;
        // One side of an equation without variables is a constant already.
        if agreed == POINTS || (variables.all.is_empty() && agreed == 1) {
            break;
        }
    }
    let first = first.filter(|f| !f.may_be_zero() && (agreed == POINTS || variables.all.is_empty()))?;
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

/// The names that take values, and those among them that count something.
#[derive(Default)]
struct Variables {
    all: BTreeSet<String>,
    integers: BTreeSet<String>,
}

impl Variables {
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
        let seed = name.bytes().fold(mix(self.point as u64 + 1), |h, b| mix(h ^ u64::from(b)));
        if self.variables.integers.contains(name) {
            return Ok(Ball::integer(&IBig::from(3 + seed % 40)));
        }
        // 2^32 values in (1/4, 4 1/4), all positive at the first point, all negative at the second.
        let magnitude = IBig::from((1u64 << 30) + (seed >> 32));
        let negative = match self.point {
            0 => false,
            1 => true,
            _ => seed & 1 == 1,
        };
        let value = RBig::from_parts(if negative { -magnitude } else { magnitude }, (1u64 << 32).into());
        self.arithmetic.rational(&value)
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
        self.arithmetic.rational(&RBig::from_parts(IBig::from((1u64 << 30) + (seed >> 32)), (1u64 << 32).into()))
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
