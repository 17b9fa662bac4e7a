//! Equality up to algebra, by evaluation in a prime field: a polynomial identity holds there at a random point, and one that
//! does not hold fails there with overwhelming probability (Schwartz 1980, Zippel 1979). Nothing is expanded, so
//! `(x+y)^{1000}` costs as much as `x+y`.
//!
//! Variables become random residues. What is no rational function (`\sin x`, `\ln 2`, `x^n`) becomes a residue drawn by
//! hashing the function's name with its arguments' residues: equal arguments give equal values, so sums and products of
//! such terms are compared up to algebra too. Equal residues mean equal expressions; different ones mean different
//! expressions only where nothing was hashed, since `\sqrt8` and `2\sqrt2` are two hashes.
//!
//! Error: two points in a field of 2^61 elements. Different expressions of degree d agree with probability at most
//! (d / 2^61)^2, 4e-32 for d = 1000 (hashes taken for random).

use super::expr::{Constant, Expr, Function};
use super::number::{self, Limits};
use dashu_int::ops::UnsignedAbs;
use dashu_int::{IBig, Sign};
use dashu_ratio::RBig;

/// The largest prime below 2^61 that is 1 modulo 4, so that -1 has a root: the imaginary unit.
const P: u64 = (1 << 61) - 31;
/// Its square is -1.
const I: u64 = 583_529_827_753_931_384;

/// An expression's values at two random points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residues {
    values: [u64; 2],
    /// Whether nothing was hashed: the values are those of a rational function over the Gaussian rationals.
    pub pure: bool,
}

impl Residues {
    pub fn same(&self, other: &Residues) -> bool {
        self.values == other.values
    }

    pub fn is_zero(&self) -> bool {
        self.values == [0, 0]
    }
}

/// `None` where it has no value: a division by zero, a structure, an infinity.
pub fn residues(e: &Expr) -> Option<Residues> {
    let mut values = [0; 2];
    let mut pure = true;
    for (value, seed) in values.iter_mut().zip([0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03]) {
        let mut field = Field { seed, pure: true };
        *value = field.value(e)?;
        pure &= field.pure;
    }
    Some(Residues { values, pure })
}

struct Field {
    seed: u64,
    pure: bool,
}

fn mul(a: u64, b: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(P)) as u64
}

fn add(a: u64, b: u64) -> u64 {
    (a + b) % P
}

fn pow(mut base: u64, mut exponent: u64) -> u64 {
    let mut out = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            out = mul(out, base);
        }
        base = mul(base, base);
        exponent >>= 1;
    }
    out
}

fn inverse(a: u64) -> Option<u64> {
    (a != 0).then(|| pow(a, P - 2))
}

/// A signed integer modulo m.
fn reduce(n: &IBig, m: u64) -> u64 {
    let rest: u64 = n.unsigned_abs() % m;
    if n.sign() == Sign::Negative && rest != 0 { m - rest } else { rest }
}

fn rational(q: &RBig) -> Option<u64> {
    let top = reduce(q.numerator(), P);
    if q.is_int() {
        return Some(top);
    }
    let bottom: u64 = q.denominator() % P;
    Some(mul(top, inverse(bottom)?))
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Field {
    /// A residue that only a name and arguments decide.
    fn hash(&self, name: &str, arguments: &[u64]) -> u64 {
        let bytes = name.bytes().fold(mix(self.seed), |h, b| mix(h ^ u64::from(b)).wrapping_add(0x9e37_79b9_7f4a_7c15));
        arguments.iter().fold(bytes, |h, a| mix(h ^ *a).wrapping_mul(0xff51_afd7_ed55_8ccd)) % P
    }

    fn hashed(&mut self, name: &str, arguments: &[&Expr]) -> Option<u64> {
        self.pure = false;
        let values = arguments.iter().map(|a| self.value(a)).collect::<Option<Vec<u64>>>()?;
        Some(self.hash(name, &values))
    }

    fn value(&mut self, e: &Expr) -> Option<u64> {
        match e {
            Expr::Number(q, _) => rational(q),
            Expr::Constant(Constant::I) => Some(I),
            Expr::Constant(Constant::Pi) => {
                self.pure = false;
                Some(self.hash("constant pi", &[]))
            }
            Expr::Constant(Constant::E) => {
                self.pure = false;
                Some(self.hash("constant e", &[]))
            }
            Expr::Constant(Constant::Infinity) => None,
            Expr::Symbol(name) => Some(self.hash(name, &[])),
            Expr::Sum(terms) => terms.iter().try_fold(0, |sum, t| Some(add(sum, self.value(t)?))),
            Expr::Product(factors) => factors.iter().try_fold(1, |product, f| Some(mul(product, self.value(f)?))),
            Expr::Power(base, exponent) => {
                // Once: the exponent's terms share it.
                let base = self.value(base)?;
                self.power(base, exponent)
            }
            Expr::Percent(x) => Some(mul(self.value(x)?, inverse(100)?)),
            Expr::Degrees(x) => self.value(x),
            Expr::Call(function, arguments) => {
                if let Some(q) = number::rational(e, &Limits::SMALL) {
                    return rational(&q);
                }
                if let Some(value) = counted(*function, arguments) {
                    return Some(value);
                }
                let arguments: Vec<&Expr> = arguments.iter().collect();
                let symmetric = matches!(function, Function::Gcd | Function::Lcm | Function::Min | Function::Max);
                if symmetric {
                    self.pure = false;
                    let mut values = arguments.iter().map(|a| self.value(a)).collect::<Option<Vec<u64>>>()?;
                    values.sort_unstable();
                    return Some(self.hash(&format!("{function:?}"), &values));
                }
                self.hashed(&format!("{function:?}"), &arguments)
            }
            Expr::Apply(name, arguments) => {
                self.hashed(&format!("apply {name}"), &arguments.iter().collect::<Vec<_>>())
            }
            // Structures within an unknown function's arguments.
            Expr::Tuple(parts) | Expr::List(parts) | Expr::Set(parts) | Expr::Matrix(_, parts) | Expr::Ratio(parts) => {
                let name = match e {
                    Expr::Matrix(columns, _) => format!("matrix {columns}"),
                    Expr::Set(_) => "set".into(),
                    _ => "tuple".into(),
                };
                self.hashed(&name, &parts.iter().collect::<Vec<_>>())
            }
            Expr::Chain(sides, relations) => self.hashed(&format!("{relations:?}"), &sides.iter().collect::<Vec<_>>()),
            Expr::Text(text) => {
                self.pure = false;
                Some(self.hash(&format!("text {text}"), &[]))
            }
            Expr::Quantity(..)
            | Expr::Based(..)
            | Expr::PlusMinus(..)
            | Expr::Interval(_)
            | Expr::Union(_)
            | Expr::Difference(..)
            | Expr::Modular(..) => None,
        }
    }

    fn power(&mut self, base: u64, exponent: &Expr) -> Option<u64> {
        if let Some(q) = number::rational(exponent, &Limits::SMALL) {
            return self.rational_power(base, &q);
        }
        // x^{a+b} = x^a x^b and x^{2a} = (x^a)^2 hold for every base with a logarithm.
        match exponent {
            Expr::Sum(terms) => {
                return terms.iter().try_fold(1, |product, t| Some(mul(product, self.power(base, t)?)));
            }
            Expr::Product(factors) => {
                let mut count = RBig::ONE;
                let mut rest: Vec<&Expr> = Vec::new();
                for factor in factors {
                    match number::rational(factor, &Limits::SMALL) {
                        Some(q) => count *= q,
                        None => rest.push(factor),
                    }
                }
                self.pure = false;
                if count.is_zero() {
                    return Some(1);
                }
                let rest = rest.iter().try_fold(1, |product, f| Some(mul(product, self.value(f)?)))?;
                let unit = mul(rest, inverse(count.denominator() % P)?);
                return times(self.hash("power", &[base, unit]), count.numerator());
            }
            _ => {}
        }
        self.pure = false;
        let exponent = self.value(exponent)?;
        Some(self.hash("power", &[base, exponent]))
    }

    fn rational_power(&mut self, base: u64, q: &RBig) -> Option<u64> {
        if q.is_int() {
            return times(base, q.numerator());
        }
        self.pure = false;
        // x^{3/2} = (x^{1/2})^3
        let unit = inverse(q.denominator() % P)?;
        times(self.hash("power", &[base, unit]), q.numerator())
    }
}

/// Factorials and binomials of integers too large to write out: products of at most this many residues.
const FACTORS: usize = 20_000;

fn counted(function: Function, arguments: &[Expr]) -> Option<u64> {
    let integer = |e: &Expr| {
        let q = number::rational(e, &Limits::SMALL).filter(RBig::is_int)?;
        usize::try_from(q.numerator()).ok()
    };
    let product = |from: usize, to: usize| (from..=to).fold(1, |product, k| mul(product, k as u64 % P));
    match (function, arguments) {
        (Function::Factorial, [n]) => integer(n).filter(|n| *n <= FACTORS).map(|n| product(2, n)),
        (Function::Binomial, [n, k]) => {
            let (n, k) = (integer(n)?, integer(k)?);
            let k = k.min(n.checked_sub(k)?);
            if k > FACTORS || n as u64 >= P {
                return None;
            }
            Some(mul(product(n - k + 1, n), inverse(product(2, k))?))
        }
        _ => None,
    }
}

/// A residue to an integer power; zero has none that is negative.
fn times(base: u64, n: &IBig) -> Option<u64> {
    if base == 0 {
        // Zero only where the base is zero, to the stated probability.
        return match n.sign() {
            Sign::Positive if n.is_zero() => Some(1),
            Sign::Positive => Some(0),
            Sign::Negative => None,
        };
    }
    // Fermat: exponents count modulo P - 1.
    Some(pow(base, reduce(n, P - 1)))
}
