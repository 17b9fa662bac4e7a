//! Complex numbers in high precision, each with a bound on its error: what "equal to 300 bits" rests on.
//!
//! Errors are propagated to first order with the rounding of every operation added; they are bounds for smooth functions
//! away from their singularities, and an operation that meets one (a division by what may be zero, a logarithm on its cut)
//! says so instead of returning a number.

use dashu_float::round::mode::HalfEven;
use dashu_float::{ConstCache, Context, FBig, FpError, Repr};
use dashu_int::IBig;
use dashu_int::ops::BitTest;
use dashu_ratio::RBig;

type Real = Repr<2>;

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No value at this point, or none that this arithmetic can give.
    Singular,
    /// Too large, or too much work.
    TooLarge,
}

pub type Computed<T> = Result<T, Trouble>;

/// A complex number and log2 of a bound on its error (minus infinity: exact).
#[derive(Clone, Debug)]
pub struct Ball {
    pub re: Real,
    pub im: Real,
    pub error: f64,
}

/// Binary orders of magnitude beyond which nothing is computed.
const LARGEST: f64 = 5e6;

/// log2 of an upper bound of |x|, at most one too large; minus infinity for zero.
pub fn size(x: &Real) -> f64 {
    if x.significand().is_zero() {
        return f64::NEG_INFINITY;
    }
    x.exponent() as f64 + dashu_int::ops::UnsignedAbs::unsigned_abs(x.significand()).bit_len() as f64
}

/// A real as a number that knows its precision: as many digits as it has.
pub fn float(x: &Real) -> FBig<HalfEven, 2> {
    FBig::from_repr(x.clone(), Context::new(x.digits().max(1)))
}

/// log2(2^a + 2^b)
fn log_sum(a: f64, b: f64) -> f64 {
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp2().ln_1p() * std::f64::consts::LOG2_E }
}

impl Ball {
    pub fn integer(n: &IBig) -> Ball {
        Ball { re: Repr::new(n.clone(), 0), im: Repr::zero(), error: f64::NEG_INFINITY }
    }

    pub fn size(&self) -> f64 {
        size(&self.re).max(size(&self.im))
    }

    pub fn is_real(&self) -> bool {
        self.im.significand().is_zero()
    }

    pub fn is_negative(&self) -> bool {
        self.re.significand() < &IBig::ZERO
    }

    /// Whether zero is within the error.
    pub fn may_be_zero(&self) -> bool {
        self.size() <= self.error + 1.0 || self.size() == f64::NEG_INFINITY
    }

    pub fn negated(mut self) -> Ball {
        self.re = -self.re;
        self.im = -self.im;
        self
    }

    /// The value if it is an exact integer.
    pub fn exact_integer(&self) -> Option<IBig> {
        if !self.is_real() || self.error != f64::NEG_INFINITY || !(0.0..4096.0).contains(&size(&self.re).max(0.0)) {
            return None;
        }
        let exponent = self.re.exponent();
        if self.re.significand().is_zero() {
            return Some(IBig::ZERO);
        }
        (exponent >= 0).then(|| self.re.significand() << exponent as usize)
    }
}

/// Arithmetic at one precision, with a bound on how much of it is done.
pub struct Arithmetic {
    context: Context<HalfEven>,
    pub bits: usize,
    cache: ConstCache,
    /// Operations left.
    pub fuel: usize,
}

fn value(result: Result<dashu_float::round::Rounded<FBig<HalfEven, 2>>, FpError>) -> Computed<Real> {
    let repr = match result {
        Ok(rounded) => rounded.value().into_repr(),
        Err(FpError::Overflow(_) | FpError::Underflow(_)) => return Err(Trouble::TooLarge),
        Err(_) => return Err(Trouble::Singular),
    };
    if repr.is_infinite() { Err(Trouble::Singular) } else { Ok(repr) }
}

impl Arithmetic {
    pub fn new(bits: usize, fuel: usize) -> Arithmetic {
        Arithmetic { context: Context::new(bits), bits, cache: ConstCache::new(), fuel }
    }

    /// Pays for an operation that costs about as much as `cost` additions.
    fn spend(&mut self, cost: usize) -> Computed<()> {
        self.fuel = self.fuel.checked_sub(cost).ok_or(Trouble::TooLarge)?;
        Ok(())
    }

    fn rounding(&self, size: f64) -> f64 {
        size + 2.0 - self.bits as f64
    }

    fn ball(&self, re: Real, im: Real, error: f64) -> Computed<Ball> {
        let mut ball = Ball { re, im, error };
        let size = ball.size();
        if size > LARGEST || (size < -LARGEST && size != f64::NEG_INFINITY) {
            return Err(Trouble::TooLarge);
        }
        ball.error = log_sum(error, self.rounding(size));
        if ball.error.is_nan() { Err(Trouble::Singular) } else { Ok(ball) }
    }

    pub fn rational(&mut self, q: &RBig) -> Computed<Ball> {
        let top = Repr::new(q.numerator().clone(), 0);
        if q.is_int() {
            return Ok(Ball { re: top, im: Repr::zero(), error: f64::NEG_INFINITY });
        }
        self.spend(1)?;
        let bottom = Repr::new(IBig::from(q.denominator().clone()), 0);
        let re = value(self.context.div(&top, &bottom))?;
        self.ball(re, Repr::zero(), f64::NEG_INFINITY)
    }

    pub fn pi(&mut self) -> Computed<Ball> {
        let pi = self.cache.pi::<2, HalfEven>(self.bits).value().into_repr();
        self.ball(pi, Repr::zero(), f64::NEG_INFINITY)
    }

    pub fn imaginary_unit() -> Ball {
        Ball { re: Repr::zero(), im: Repr::one(), error: f64::NEG_INFINITY }
    }

    pub fn add(&mut self, a: &Ball, b: &Ball) -> Computed<Ball> {
        self.spend(1)?;
        let exact = a.error == f64::NEG_INFINITY && b.error == f64::NEG_INFINITY;
        let integers = a.re.exponent() >= 0 && b.re.exponent() >= 0 && a.size().max(b.size()) < self.bits as f64 - 2.0;
        let re = value(self.context.add(&a.re, &b.re))?;
        let im = if a.is_real() && b.is_real() { Repr::zero() } else { value(self.context.add(&a.im, &b.im))? };
        if exact && integers && a.is_real() && b.is_real() {
            // Small integers stay exact: factorials need to know.
            return Ok(Ball { re, im, error: f64::NEG_INFINITY });
        }
        // The rounding of the sum is relative to the sum, so cancellation shows in the terms' own errors.
        self.ball(re, im, log_sum(a.error, b.error))
    }

    pub fn sub(&mut self, a: &Ball, b: &Ball) -> Computed<Ball> {
        let negated = b.clone().negated();
        self.add(a, &negated)
    }

    pub fn mul(&mut self, a: &Ball, b: &Ball) -> Computed<Ball> {
        self.spend(1)?;
        let (sa, sb) = (a.size() + 1.0, b.size() + 1.0);
        let error = log_sum(log_sum(sa + b.error, sb + a.error), a.error + b.error);
        let error = if error.is_nan() { f64::NEG_INFINITY } else { error };
        let product = |x: &Real, y: &Real| value(self.context.mul(x, y));
        if a.is_real() && b.is_real() {
            let re = product(&a.re, &b.re)?;
            let exact = error == f64::NEG_INFINITY && a.re.exponent() >= 0 && b.re.exponent() >= 0;
            if exact && a.size() + b.size() < self.bits as f64 {
                return Ok(Ball { re, im: Repr::zero(), error });
            }
            return self.ball(re, Repr::zero(), error);
        }
        let (x, y) = (product(&a.re, &b.re)?, product(&a.im, &b.im)?);
        let (u, v) = (product(&a.re, &b.im)?, product(&a.im, &b.re)?);
        let re = value(self.context.sub(&x, &y))?;
        let im = value(self.context.add(&u, &v))?;
        // Rounding of the four products, which the differences may have cancelled.
        let rounding = self.rounding(sa + sb);
        self.ball(re, im, log_sum(error, rounding))
    }

    pub fn inverse(&mut self, a: &Ball) -> Computed<Ball> {
        self.spend(2)?;
        // Real and imaginary part exceed 2^(size-1) in one of them.
        if a.may_be_zero() || a.error >= a.size() - 4.0 {
            return Err(Trouble::Singular);
        }
        let low = a.size() - 1.0;
        let error = a.error - 2.0 * low + 1.0;
        if a.is_real() {
            let re = value(self.context.div(&Repr::one(), &a.re))?;
            return self.ball(re, Repr::zero(), error);
        }
        let norm = self.norm(a)?;
        let re = value(self.context.div(&a.re, &norm))?;
        let im = -value(self.context.div(&a.im, &norm))?;
        let rounding = self.rounding(-low + 2.0);
        self.ball(re, im, log_sum(error, rounding))
    }

    /// |a|^2, rounded
    fn norm(&mut self, a: &Ball) -> Computed<Real> {
        let x = value(self.context.mul(&a.re, &a.re))?;
        let y = value(self.context.mul(&a.im, &a.im))?;
        value(self.context.add(&x, &y))
    }

    pub fn abs(&mut self, a: &Ball) -> Computed<Ball> {
        self.spend(2)?;
        if a.is_real() {
            return Ok(if a.is_negative() { a.clone().negated() } else { a.clone() });
        }
        let norm = self.norm(a)?;
        let re = value(self.context.sqrt(&norm))?;
        self.ball(re, Repr::zero(), a.error + 1.0)
    }

    pub fn integer_power(&mut self, base: &Ball, n: u64) -> Computed<Ball> {
        let mut out = Ball::integer(&IBig::ONE);
        let (mut square, mut rest) = (base.clone(), n);
        while rest > 0 {
            if rest & 1 == 1 {
                out = self.mul(&out, &square)?;
            }
            rest >>= 1;
            if rest > 0 {
                square = self.mul(&square, &square)?;
            }
        }
        Ok(out)
    }

    /// The real root of a real number that is not negative.
    pub fn real_root(&mut self, a: &Ball, degree: usize) -> Computed<Ball> {
        self.spend(4)?;
        if a.may_be_zero() {
            if a.error == f64::NEG_INFINITY {
                return Ok(a.clone());
            }
            // The root of what may be zero is as small as the root of its error.
            return Ok(Ball { re: Repr::zero(), im: Repr::zero(), error: (a.error + 2.0) / degree as f64 });
        }
        let re = value(if degree == 2 { self.context.sqrt(&a.re) } else { self.context.nth_root(degree, &a.re) })?;
        let error = size(&re) + a.error - (a.size() - 1.0);
        self.ball(re, Repr::zero(), error)
    }

    pub fn exp(&mut self, a: &Ball) -> Computed<Ball> {
        self.spend(16)?;
        if size(&a.re) > 22.0 {
            return Err(Trouble::TooLarge);
        }
        if a.error > -4.0 {
            return Err(Trouble::Singular);
        }
        let scale = value(self.context.exp(&a.re, Some(&mut self.cache)))?;
        let error = size(&scale) + a.error + 1.0;
        if a.is_real() {
            return self.ball(scale, Repr::zero(), error);
        }
        let (cos, sin) = (self.cos_of(&a.im)?, self.sin_of(&a.im)?);
        let re = value(self.context.mul(&scale, &cos))?;
        let im = value(self.context.mul(&scale, &sin))?;
        let rounding = self.rounding(size(&scale));
        self.ball(re, im, log_sum(error, rounding))
    }

    fn sin_of(&mut self, x: &Real) -> Computed<Real> {
        self.spend(16)?;
        if size(x) > 512.0 {
            return Err(Trouble::TooLarge);
        }
        value(self.context.sin(x, Some(&mut self.cache)))
    }

    fn cos_of(&mut self, x: &Real) -> Computed<Real> {
        self.spend(16)?;
        if size(x) > 512.0 {
            return Err(Trouble::TooLarge);
        }
        value(self.context.cos(x, Some(&mut self.cache)))
    }

    /// Principal logarithm.
    pub fn ln(&mut self, a: &Ball) -> Computed<Ball> {
        self.spend(16)?;
        if a.may_be_zero() || a.error >= a.size() - 4.0 {
            return Err(Trouble::Singular);
        }
        let error = a.error - (a.size() - 1.0) + 1.0;
        if a.is_real() && !a.is_negative() {
            let re = value(self.context.ln(&a.re, Some(&mut self.cache)))?;
            let rounding = self.rounding(0.0);
            return self.ball(re, Repr::zero(), log_sum(error, rounding));
        }
        // On the cut, an imaginary part that is only an error has no sign.
        if a.is_negative() && !a.is_real() && size(&a.im) <= a.error + 1.0 {
            return Err(Trouble::Singular);
        }
        let modulus = self.abs(a)?;
        let re = value(self.context.ln(&modulus.re, Some(&mut self.cache)))?;
        let im = value(self.context.atan2(&a.im, &a.re, Some(&mut self.cache)))?;
        let rounding = self.rounding(1.0);
        self.ball(re, im, log_sum(error, rounding))
    }

    /// e^(ib ln a) style: the principal power.
    pub fn power(&mut self, base: &Ball, exponent: &Ball) -> Computed<Ball> {
        let log = self.ln(base)?;
        let product = self.mul(&log, exponent)?;
        self.exp(&product)
    }

    pub fn sin_cos(&mut self, a: &Ball, sin: bool) -> Computed<Ball> {
        if a.is_real() {
            let re = if sin { self.sin_of(&a.re)? } else { self.cos_of(&a.re)? };
            return self.ball(re, Repr::zero(), a.error);
        }
        let rotated = self.mul(a, &Arithmetic::imaginary_unit())?;
        let plus = self.exp(&rotated)?;
        let minus = self.exp(&rotated.negated())?;
        let half = Ball { re: Repr::new(IBig::ONE, -1), im: Repr::zero(), error: f64::NEG_INFINITY };
        if sin {
            let difference = self.sub(&plus, &minus)?;
            let turned = self.mul(&difference, &Arithmetic::imaginary_unit().negated())?;
            self.mul(&turned, &half)
        } else {
            let sum = self.add(&plus, &minus)?;
            self.mul(&sum, &half)
        }
    }

    /// Inverse sine or cosine of a real number in [-1, 1].
    pub fn arc(&mut self, a: &Ball, sin: bool) -> Computed<Ball> {
        self.spend(32)?;
        if !a.is_real() || a.size() > 1.0 {
            return Err(Trouble::Singular);
        }
        let square = value(self.context.mul(&a.re, &a.re))?;
        let room = value(self.context.sub(&Repr::one(), &square))?;
        if room.significand() < &IBig::ZERO {
            return Err(Trouble::Singular);
        }
        let error = if a.error == f64::NEG_INFINITY {
            f64::NEG_INFINITY
        } else if size(&room) < a.error + 4.0 {
            a.error / 2.0 + 2.0
        } else {
            a.error - (size(&room) - 1.0) / 2.0 + 1.0
        };
        let cache = Some(&mut self.cache);
        let re = value(if sin { self.context.asin(&a.re, cache) } else { self.context.acos(&a.re, cache) })?;
        let rounding = self.rounding(1.0);
        self.ball(re, Repr::zero(), log_sum(error, rounding))
    }

    pub fn atan(&mut self, a: &Ball) -> Computed<Ball> {
        self.spend(32)?;
        if !a.is_real() {
            return Err(Trouble::Singular);
        }
        let re = value(self.context.atan(&a.re, Some(&mut self.cache)))?;
        self.ball(re, Repr::zero(), a.error)
    }

    /// The integer at or below (above) a real number, unless the error leaves it open.
    pub fn round(&mut self, a: &Ball, up: bool) -> Computed<Ball> {
        self.spend(1)?;
        if !a.is_real() || a.error > -8.0 || a.size() > self.bits as f64 - 16.0 {
            return Err(Trouble::Singular);
        }
        let exact = float(&a.re);
        let nearest = exact.to_int().value();
        let distance = value(self.context.sub(&a.re, &Repr::new(nearest, 0)))?;
        if a.error != f64::NEG_INFINITY && size(&distance) <= a.error + 1.0 {
            return Err(Trouble::Singular);
        }
        let rounded = if up { exact.ceil() } else { exact.floor() };
        Ok(Ball::integer(&rounded.to_int().value()))
    }
}
