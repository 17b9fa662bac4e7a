//! Functions and operators with their arguments: `\sin 2x`, `\log_2 8`, `\sum_{k=1}^n k`.

use super::expr::{Constant, Expr, Function};
use super::lex::Token;
use super::parse::{Failure, Parsed, Parser};
use dashu_ratio::RBig;

impl Parser {
    pub(super) fn function(&mut self, name: &str) -> Parsed<Expr> {
        let base = if self.is_char('_') && name == "log" {
            self.at += 1;
            Some(self.argument()?)
        } else {
            None
        };
        let power = if self.eat_char('^') { Some(self.exponent()?) } else { None };
        let arguments = self.arguments()?;
        let inverse = power == Some(Expr::integer(-1));
        let value = match name {
            "log" => {
                let [x] = one(arguments)?;
                // log without a base is the decimal logarithm, as in math-verify; \ln is the natural one.
                let base = base.unwrap_or(Expr::integer(10));
                Expr::Call(Function::Ln, vec![x]).over(Expr::Call(Function::Ln, vec![base]))
            }
            "ln" => Expr::Call(Function::Ln, arguments),
            "exp" => Expr::Constant(Constant::E).power(one(arguments)?.into_iter().next().ok_or(Failure::Syntax)?),
            "sqrt" => return Err(Failure::Syntax),
            "factorial" => Expr::Call(Function::Factorial, arguments),
            "abs" => Expr::Call(Function::Abs, arguments),
            "floor" => Expr::Call(Function::Floor, arguments),
            "ceil" => Expr::Call(Function::Ceil, arguments),
            "min" => Expr::Call(Function::Min, arguments),
            "max" => Expr::Call(Function::Max, arguments),
            "gcd" => Expr::Call(Function::Gcd, arguments),
            "lcm" => Expr::Call(Function::Lcm, arguments),
            "Re" => Expr::Call(Function::Re, arguments),
            "Im" => Expr::Call(Function::Im, arguments),
            _ => {
                let [x] = one(arguments)?;
                let value = trigonometric(name, radians(x), inverse).ok_or(Failure::Syntax)?;
                if inverse {
                    return Ok(value);
                }
                value
            }
        };
        Ok(match power {
            Some(power) => value.power(power),
            None => value,
        })
    }

    /// `(x)`, `(a, b)`, `\{a, b\}`, or the product that follows: `\sin 2x`.
    fn arguments(&mut self) -> Parsed<Vec<Expr>> {
        self.deeper(|p| {
            let bracket = p.is_char('(') || p.is_char('[') || p.is_char('{') || p.is_command("{");
            if bracket {
                return Ok(match p.atom()? {
                    Expr::Tuple(parts) | Expr::Set(parts) => parts,
                    Expr::Interval(i) => vec![i.low, i.high],
                    value => vec![value],
                });
            }
            let mut factors = vec![if p.eat_char('-') { p.postfix()?.negated() } else { p.postfix()? }];
            while let Some(token) = p.peek() {
                let another = matches!(token, Token::Command(name) if is_function(name));
                let two_numbers =
                    matches!(token, Token::Number(..)) && matches!(p.tokens.get(p.at - 1), Some(Token::Number(..)));
                if another || two_numbers || !p.starts_atom(token) || matches!(token, Token::Char('(')) {
                    break;
                }
                factors.push(p.postfix()?);
            }
            Ok(vec![if factors.len() == 1 { factors.swap_remove(0) } else { Expr::Product(factors) }])
        })
    }

    /// `\sum_{...}^{...} body` and the like: known by name, bounds and body only.
    pub(super) fn operator(&mut self, name: &str) -> Parsed<Expr> {
        let mut name = name.to_string();
        let mut parts = Vec::new();
        loop {
            if self.is_char('_') {
                let subscript = self.subscript()?;
                name.push('_');
                name.push_str(&subscript);
            } else if self.eat_char('^') {
                parts.push(self.exponent()?);
            } else {
                break;
            }
        }
        parts.extend(self.arguments()?);
        Ok(Expr::Apply(name, parts))
    }
}

fn one(arguments: Vec<Expr>) -> Parsed<[Expr; 1]> {
    arguments.try_into().map_err(|_| Failure::Syntax)
}

/// An argument of a trigonometric function, with its degrees as radians.
fn radians(x: Expr) -> Expr {
    x.map(&|e| match e {
        Expr::Degrees(d) => Expr::Product(vec![*d, Expr::Constant(Constant::Pi), Expr::integer(180).inverse()]),
        other => other,
    })
}

/// Functions whose argument may follow without brackets.
pub(super) fn is_function(name: &str) -> bool {
    let known = [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "sinh",
        "cosh",
        "tanh",
        "coth",
        "sech",
        "csch",
        "arcsin",
        "arccos",
        "arctan",
        "arccot",
        "ln",
        "log",
        "exp",
        "abs",
        "floor",
        "ceil",
        "min",
        "max",
        "gcd",
        "lcm",
        "Re",
        "Im",
        "factorial",
    ];
    known.contains(&name)
}

/// Operators that are only known by their name.
pub(super) fn is_operator(name: &str) -> bool {
    let known = [
        "sum", "prod", "int", "iint", "oint", "lim", "limsup", "liminf", "bigcup", "bigcap", "bigoplus", "det", "tr",
        "dim", "ker", "deg", "arg", "sup", "inf", "triangle", "angle", "partial", "nabla", "Pr", "log*",
    ];
    known.contains(&name)
}

/// Trigonometric and hyperbolic functions in sines, cosines and exponentials. `inverse`: of `\sin^{-1} x`.
fn trigonometric(name: &str, x: Expr, inverse: bool) -> Option<Expr> {
    let call = |f, x| Expr::Call(f, vec![x]);
    if inverse {
        return trigonometric(&format!("arc{name}"), x, false);
    }
    let e = |x: Expr| Expr::Constant(Constant::E).power(x);
    let half = |sum: Expr| Expr::Product(vec![Expr::rational(RBig::from_parts(1.into(), 2u8.into())), sum]);
    let sinh = |x: Expr| half(e(x.clone()).minus(e(x.negated())));
    let cosh = |x: Expr| half(Expr::Sum(vec![e(x.clone()), e(x.negated())]));
    Some(match name {
        "sin" => call(Function::Sin, x),
        "cos" => call(Function::Cos, x),
        "tan" => call(Function::Sin, x.clone()).over(call(Function::Cos, x)),
        "cot" => call(Function::Cos, x.clone()).over(call(Function::Sin, x)),
        "sec" => call(Function::Cos, x).inverse(),
        "csc" => call(Function::Sin, x).inverse(),
        "arcsin" => call(Function::Asin, x),
        "arccos" => call(Function::Acos, x),
        "arctan" => call(Function::Atan, x),
        "arccot" => call(Function::Atan, x.inverse()),
        "sinh" => sinh(x),
        "cosh" => cosh(x),
        "tanh" => sinh(x.clone()).over(cosh(x)),
        "coth" => cosh(x.clone()).over(sinh(x)),
        "sech" => cosh(x).inverse(),
        "csch" => sinh(x).inverse(),
        _ => return None,
    })
}
