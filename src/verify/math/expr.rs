//! Mathematical answers as trees. Subtraction, division and roots are written with sums, products and powers, so that the
//! comparisons meet few kinds of node.

use dashu_int::IBig;
use dashu_ratio::RBig;

/// Digits that a decimal was written with: what it promises about the value it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digits {
    /// Digits after the decimal point.
    pub places: usize,
    /// Digits from the first that is not zero to the last.
    pub significant: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Constant {
    Pi,
    E,
    /// The imaginary unit.
    I,
    Infinity,
}

/// Functions with a known value. Others (`\tan`, `\sec`, `\log_b`, `\sqrt`) are written with these when they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    Sin,
    Cos,
    Asin,
    Acos,
    Atan,
    Ln,
    Abs,
    Floor,
    Ceil,
    Factorial,
    Binomial,
    Gcd,
    Lcm,
    Min,
    Max,
    Re,
    Im,
    Conjugate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    /// Congruence, approximation, maps to, ...: compared by name only.
    Other(&'static str),
}

impl Relation {
    /// `a R b` as `b R' a`.
    pub fn mirrored(self) -> Option<Relation> {
        Some(match self {
            Relation::Equal => Relation::Equal,
            Relation::NotEqual => Relation::NotEqual,
            Relation::Less => Relation::Greater,
            Relation::LessEqual => Relation::GreaterEqual,
            Relation::Greater => Relation::Less,
            Relation::GreaterEqual => Relation::LessEqual,
            Relation::In | Relation::Other(_) => return None,
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Interval {
    pub low: Expr,
    pub high: Expr,
    pub low_open: bool,
    pub high_open: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    Number(RBig, Option<Digits>),
    Constant(Constant),
    /// A variable or any name without a known value, its subscripts and accents included.
    Symbol(String),
    Sum(Vec<Expr>),
    Product(Vec<Expr>),
    Power(Box<Expr>, Box<Expr>),
    Call(Function, Vec<Expr>),
    /// An unknown function or operator of these arguments.
    Apply(String, Vec<Expr>),
    Percent(Box<Expr>),
    Degrees(Box<Expr>),
    /// A value with a unit as it was written.
    Quantity(Box<Expr>, String),
    /// Digits in a stated base.
    Based(String, String),
    /// `\pm x`; `\mp x` if `true`.
    PlusMinus(bool, Box<Expr>),
    /// Something in words.
    Text(String),
    /// `(a, b)`, ordered. With two elements it may also be an open interval.
    Tuple(Vec<Expr>),
    /// `a, b` without brackets: several answers.
    List(Vec<Expr>),
    /// `\{a, b\}`, unordered.
    Set(Vec<Expr>),
    Interval(Box<Interval>),
    Union(Vec<Expr>),
    /// `A \setminus B`
    Difference(Box<Expr>, Box<Expr>),
    /// Columns, and the elements row by row.
    Matrix(usize, Vec<Expr>),
    /// `a < b = c`: one more side than relations.
    Chain(Vec<Expr>, Vec<Relation>),
    /// `a : b : c`
    Ratio(Vec<Expr>),
    /// A residue and its modulus.
    Modular(Box<Expr>, Box<Expr>),
}

impl Expr {
    pub fn integer(n: i64) -> Expr {
        Expr::Number(RBig::from(IBig::from(n)), None)
    }

    pub fn rational(value: RBig) -> Expr {
        Expr::Number(value, None)
    }

    pub fn negated(self) -> Expr {
        match self {
            // A negative decimal is still a decimal.
            Expr::Number(value, digits) => Expr::Number(-value, digits),
            other => Expr::Product(vec![Expr::integer(-1), other]),
        }
    }

    pub fn over(self, denominator: Expr) -> Expr {
        Expr::Product(vec![self, denominator.inverse()])
    }

    pub fn inverse(self) -> Expr {
        Expr::Power(Box::new(self), Box::new(Expr::integer(-1)))
    }

    pub fn root(self, degree: Expr) -> Expr {
        Expr::Power(Box::new(self), Box::new(degree.inverse()))
    }

    pub fn minus(self, other: Expr) -> Expr {
        Expr::Sum(vec![self, other.negated()])
    }

    pub fn power(self, exponent: Expr) -> Expr {
        Expr::Power(Box::new(self), Box::new(exponent))
    }

    /// The node's direct parts.
    pub fn children(&self) -> Vec<&Expr> {
        match self {
            Expr::Number(..) | Expr::Constant(_) | Expr::Symbol(_) | Expr::Text(_) | Expr::Based(..) => Vec::new(),
            Expr::Sum(parts)
            | Expr::Product(parts)
            | Expr::Call(_, parts)
            | Expr::Apply(_, parts)
            | Expr::Tuple(parts)
            | Expr::List(parts)
            | Expr::Set(parts)
            | Expr::Union(parts)
            | Expr::Matrix(_, parts)
            | Expr::Chain(parts, _)
            | Expr::Ratio(parts) => parts.iter().collect(),
            Expr::Power(a, b) | Expr::Difference(a, b) | Expr::Modular(a, b) => vec![a, b],
            Expr::Percent(a) | Expr::Degrees(a) | Expr::Quantity(a, _) | Expr::PlusMinus(_, a) => vec![a],
            Expr::Interval(interval) => vec![&interval.low, &interval.high],
        }
    }

    /// Whether any node of the tree is such.
    pub fn any(&self, is: &mut dyn FnMut(&Expr) -> bool) -> bool {
        is(self) || self.children().into_iter().any(|child| child.any(is))
    }

    /// The tree with every node made again from the bottom up.
    pub fn map(self, f: &dyn Fn(Expr) -> Expr) -> Expr {
        let all = |parts: Vec<Expr>| parts.into_iter().map(|p| p.map(f)).collect::<Vec<_>>();
        let one = |part: Box<Expr>| Box::new(part.map(f));
        let mapped = match self {
            leaf @ (Expr::Number(..) | Expr::Constant(_) | Expr::Symbol(_) | Expr::Text(_) | Expr::Based(..)) => leaf,
            Expr::Sum(parts) => Expr::Sum(all(parts)),
            Expr::Product(parts) => Expr::Product(all(parts)),
            Expr::Call(function, parts) => Expr::Call(function, all(parts)),
            Expr::Apply(name, parts) => Expr::Apply(name, all(parts)),
            Expr::Tuple(parts) => Expr::Tuple(all(parts)),
            Expr::List(parts) => Expr::List(all(parts)),
            Expr::Set(parts) => Expr::Set(all(parts)),
            Expr::Union(parts) => Expr::Union(all(parts)),
            Expr::Matrix(columns, parts) => Expr::Matrix(columns, all(parts)),
            Expr::Chain(parts, relations) => Expr::Chain(all(parts), relations),
            Expr::Ratio(parts) => Expr::Ratio(all(parts)),
            Expr::Power(a, b) => Expr::Power(one(a), one(b)),
            Expr::Difference(a, b) => Expr::Difference(one(a), one(b)),
            Expr::Modular(a, b) => Expr::Modular(one(a), one(b)),
            Expr::Percent(a) => Expr::Percent(one(a)),
            Expr::Degrees(a) => Expr::Degrees(one(a)),
            Expr::Quantity(a, unit) => Expr::Quantity(one(a), unit),
            Expr::PlusMinus(minus, a) => Expr::PlusMinus(minus, one(a)),
            Expr::Interval(i) => Expr::Interval(Box::new(Interval {
                low: i.low.map(f),
                high: i.high.map(f),
                low_open: i.low_open,
                high_open: i.high_open,
            })),
        };
        f(mapped)
    }

    /// Whether this is one value: a number or an expression of variables, nothing with a structure around it.
    pub fn is_scalar(&self) -> bool {
        !self.any(&mut |e| {
            matches!(
                e,
                Expr::Text(_)
                    | Expr::Tuple(_)
                    | Expr::List(_)
                    | Expr::Set(_)
                    | Expr::Interval(_)
                    | Expr::Union(_)
                    | Expr::Difference(..)
                    | Expr::Matrix(..)
                    | Expr::Chain(..)
                    | Expr::Ratio(_)
                    | Expr::Modular(..)
                    | Expr::Based(..)
                    | Expr::Quantity(..)
                    | Expr::PlusMinus(..)
            )
        })
    }
}
