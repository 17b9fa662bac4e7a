//! Exact rational values of constant expressions, within limits on their size.

use super::expr::{Expr, Function};
use dashu_int::ops::{BitTest, Gcd, UnsignedAbs};
use dashu_int::{IBig, UBig};
use dashu_ratio::RBig;

/// How large an exact value may become before it is left to the other comparisons.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bits of a numerator or denominator.
    pub bits: usize,
    /// The largest n whose factorial is written out.
    pub factorial: usize,
}

impl Limits {
    /// Enough for any answer that a person writes out.
    pub const FULL: Limits = Limits { bits: 1 << 13, factorial: 900 };
    /// For exponents and arguments.
    pub const SMALL: Limits = Limits { bits: 1 << 10, factorial: 150 };
}

/// The value of an expression of numbers, exactly; `None` if it is none, has no value or is larger than the limits.
pub fn rational(e: &Expr, limits: &Limits) -> Option<RBig> {
    let value = match e {
        Expr::Number(q, _) => q.clone(),
        Expr::Sum(terms) => terms.iter().try_fold(RBig::ZERO, |sum, t| bounded(sum + rational(t, limits)?, limits))?,
        Expr::Product(factors) => {
            factors.iter().try_fold(RBig::ONE, |product, f| bounded(product * rational(f, limits)?, limits))?
        }
        Expr::Power(base, exponent) => power(&rational(base, limits)?, &rational(exponent, limits)?, limits)?,
        Expr::Percent(x) => rational(x, limits)? / RBig::from(100u8),
        Expr::Degrees(x) => rational(x, limits)?,
        Expr::Call(function, arguments) => call(*function, arguments, limits)?,
        _ => return None,
    };
    bounded(value, limits)
}

fn bounded(q: RBig, limits: &Limits) -> Option<RBig> {
    let fits = q.numerator().unsigned_abs().bit_len() <= limits.bits && q.denominator().bit_len() <= limits.bits;
    fits.then_some(q)
}

fn power(base: &RBig, exponent: &RBig, limits: &Limits) -> Option<RBig> {
    if !exponent.is_int() {
        return root(base, exponent, limits);
    }
    if base.is_zero() {
        // 0^0 and 0^{-1} have no value.
        return (*exponent > RBig::ZERO).then_some(RBig::ZERO);
    }
    let n: i64 = exponent.numerator().try_into().ok()?;
    let size = base.numerator().unsigned_abs().bit_len().max(base.denominator().bit_len());
    let count = usize::try_from(n.unsigned_abs()).ok()?;
    if base.denominator().is_one() && base.numerator().unsigned_abs().is_one() {
        let negative = *base < RBig::ZERO && count % 2 == 1;
        return Some(if negative { -RBig::ONE } else { RBig::ONE });
    }
    if (size - 1).checked_mul(count)? > limits.bits {
        return None;
    }
    let top = base.numerator().pow(count);
    let bottom = base.denominator().pow(count);
    let result = RBig::from_parts(top, bottom);
    Some(if n < 0 { RBig::ONE / result } else { result })
}

/// Roots that are rational: `\sqrt{49}`, `8^{2/3}`.
fn root(base: &RBig, exponent: &RBig, limits: &Limits) -> Option<RBig> {
    let degree: usize = exponent.denominator().try_into().ok()?;
    if degree > 64 {
        return None;
    }
    if *base < RBig::ZERO {
        // The real root of odd degree, as answers mean it.
        let positive = root(&-base.clone(), &RBig::from_parts(IBig::ONE, UBig::from(degree)), limits)?;
        return if degree % 2 == 1 {
            power(&-positive, &RBig::from(exponent.numerator().clone()), limits)
        } else {
            None
        };
    }
    let exact = |n: &UBig| {
        let root = n.nth_root(degree);
        (root.pow(degree) == *n).then_some(root)
    };
    let root = RBig::from_parts(IBig::from(exact(&base.numerator().unsigned_abs())?), exact(base.denominator())?);
    power(&root, &RBig::from(exponent.numerator().clone()), limits)
}

fn call(function: Function, arguments: &[Expr], limits: &Limits) -> Option<RBig> {
    let values = arguments.iter().map(|a| rational(a, limits)).collect::<Option<Vec<RBig>>>()?;
    let integers = || values.iter().map(|v| v.is_int().then(|| v.numerator().clone())).collect::<Option<Vec<IBig>>>();
    match (function, values.as_slice()) {
        (Function::Abs, [x]) => Some(if *x < RBig::ZERO { -x.clone() } else { x.clone() }),
        (Function::Floor, [x]) => Some(RBig::from(x.floor())),
        (Function::Ceil, [x]) => Some(RBig::from(x.ceil())),
        (Function::Re | Function::Conjugate, [x]) => Some(x.clone()),
        (Function::Im, [_]) => Some(RBig::ZERO),
        (Function::Factorial, [x]) if x.is_int() => {
            let n: usize = x.numerator().try_into().ok()?;
            (n <= limits.factorial).then(|| RBig::from(factorial(n)))
        }
        (Function::Binomial, [n, k]) if n.is_int() && k.is_int() => {
            let (n, k): (usize, usize) = (n.numerator().try_into().ok()?, k.numerator().try_into().ok()?);
            if k > n {
                return Some(RBig::ZERO);
            }
            let k = k.min(n - k);
            (k <= limits.factorial && n <= 1_000_000).then(|| RBig::from(binomial(n, k)))
        }
        (Function::Min, [first, rest @ ..]) => {
            Some(rest.iter().fold(first.clone(), |m, x| if *x < m { x.clone() } else { m }))
        }
        (Function::Max, [first, rest @ ..]) => {
            Some(rest.iter().fold(first.clone(), |m, x| if *x > m { x.clone() } else { m }))
        }
        (Function::Gcd | Function::Lcm, [_, ..]) => {
            let integers = integers()?;
            if integers.iter().any(IBig::is_zero) {
                return None;
            }
            let first = integers.first()?.unsigned_abs();
            let result = integers[1..].iter().fold(first, |m, x| {
                let x = x.unsigned_abs();
                let gcd = (&m).gcd(&x);
                if function == Function::Gcd { gcd } else { m / gcd * x }
            });
            Some(RBig::from(result))
        }
        _ => None,
    }
}

fn factorial(n: usize) -> UBig {
    (2..=n).fold(UBig::ONE, |product, k| product * UBig::from(k))
}

fn binomial(n: usize, k: usize) -> UBig {
    (1..=k).fold(UBig::ONE, |c, i| c * UBig::from(n - k + i) / UBig::from(i))
}
