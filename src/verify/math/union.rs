//! Sets of numbers as their intervals, those that touch or overlap made one.

use super::canonical::{infinite, real};
use super::compare::Work;
use super::expr::{Constant, Expr, Interval};
use super::scalar;
use std::cmp::Ordering;

/// The most parts that are merged.
const MOST: usize = 50;

/// `[1,2] \cup [2,3]` as `[1,3]`; `None` if an end is no number or if there are too many parts.
pub fn merged(parts: &[Expr], work: &mut Work) -> Option<Vec<Expr>> {
    if parts.len() > MOST {
        return None;
    }
    let mut spans = parts.iter().map(Span::of).collect::<Option<Vec<Span>>>()?;
    // Of two that begin together the closed one comes first, since it decides the beginning.
    spans.sort_by(|a, b| a.low.total_cmp(&b.low).then(a.interval.low_open.cmp(&b.interval.low_open)));
    let mut out: Vec<Span> = Vec::new();
    for next in spans {
        match out.last_mut() {
            Some(last) if last.meets(&next, work) => last.extend(next, work),
            _ => out.push(next),
        }
    }
    Some(out.into_iter().map(Span::written).collect())
}

/// An interval with its ends' values; a point is one from itself to itself.
struct Span {
    interval: Interval,
    low: f64,
    high: f64,
}

impl Span {
    fn of(part: &Expr) -> Option<Span> {
        let interval = match part {
            Expr::Interval(interval) => (**interval).clone(),
            point => Interval { low: point.clone(), high: point.clone(), low_open: false, high_open: false },
        };
        let (low, high) = (end(&interval.low)?, end(&interval.high)?);
        (low <= high).then_some(Span { interval, low, high })
    }

    /// Whether the next one begins within this one, or at its end with one of the two ends closed.
    fn meets(&self, next: &Span, work: &mut Work) -> bool {
        match order(&self.interval.high, self.high, &next.interval.low, next.low, work) {
            Ordering::Greater => true,
            Ordering::Equal => !(self.interval.high_open && next.interval.low_open),
            Ordering::Less => false,
        }
    }

    fn extend(&mut self, next: Span, work: &mut Work) {
        match order(&self.interval.high, self.high, &next.interval.high, next.high, work) {
            Ordering::Less => {
                self.interval.high = next.interval.high;
                self.interval.high_open = next.interval.high_open;
                self.high = next.high;
            }
            Ordering::Equal => self.interval.high_open &= next.interval.high_open,
            Ordering::Greater => {}
        }
    }

    fn written(self) -> Expr {
        let point = self.interval.low == self.interval.high && !self.interval.low_open;
        if point { self.interval.low } else { Expr::Interval(Box::new(self.interval)) }
    }
}

fn end(e: &Expr) -> Option<f64> {
    if infinite(e) {
        return Some(if *e == Expr::Constant(Constant::Infinity) { f64::INFINITY } else { f64::NEG_INFINITY });
    }
    real(e).filter(|value| value.is_finite())
}

/// Values that f64 holds to be close are compared as expressions; those it cannot tell apart, but which differ, have a gap.
fn order(a: &Expr, x: f64, b: &Expr, y: f64, work: &mut Work) -> Ordering {
    let close = x == y || (x - y).abs() <= 1e-9 * x.abs().max(y.abs()).max(1.0);
    if close && (a == b || scalar::equal(a, b, work).equal) {
        return Ordering::Equal;
    }
    x.total_cmp(&y).then(Ordering::Less)
}
