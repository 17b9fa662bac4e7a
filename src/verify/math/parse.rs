//! From tokens to an expression: lists, relations, sets, sums and products. What stands at one place is in `atom`.
//!
//! Conventions: `1/2x` is read from the left, `(1/2)x`; `3\frac12` is a mixed number; a trailing unit belongs to the value
//! before it; `a \pm b` is two values.

use super::expr::{Expr, Relation};
use super::lex::Token;
use super::words;

/// Why a text is no expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Not in the grammar: the answer is compared as text.
    Syntax,
    /// Brackets, fractions or powers nested deeper than the limit.
    TooDeep,
}

pub type Parsed<T> = Result<T, Failure>;

pub struct Parser {
    pub(super) tokens: Vec<Token>,
    pub(super) at: usize,
    pub(super) depth: usize,
    pub(super) deepest: usize,
    /// Open `|`: within them a bar closes.
    pub(super) bars: usize,
}

/// Reads a whole answer.
pub fn parse(tokens: Vec<Token>, deepest: usize) -> Parsed<Expr> {
    let mut parser = Parser { tokens, at: 0, depth: 0, deepest, bars: 0 };
    while matches!(parser.tokens.last(), Some(Token::Char('.' | ',' | ';' | ':' | '!')))
        && !(parser.tokens.last() == Some(&Token::Char('!')) && parser.tokens.len() > 1)
    {
        parser.tokens.pop();
    }
    // "= 5" and "\\approx 3.14": the rest of a sentence that began before the box.
    if parser.is_char('=') || parser.is_command("approx") {
        parser.at += 1;
    }
    let expr = parser.list()?;
    let expr = if expr.is_scalar() { parser.over(expr)? } else { expr };
    if parser.at < parser.tokens.len() { Err(Failure::Syntax) } else { Ok(expr) }
}

impl Parser {
    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    pub(super) fn peek_at(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead)
    }

    pub(super) fn is_char(&self, c: char) -> bool {
        self.peek() == Some(&Token::Char(c))
    }

    pub(super) fn is_command(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Command(n)) if n == name)
    }

    pub(super) fn eat_char(&mut self, c: char) -> bool {
        let found = self.is_char(c);
        self.at += usize::from(found);
        found
    }

    pub(super) fn eat_command(&mut self, name: &str) -> bool {
        let found = self.is_command(name);
        self.at += usize::from(found);
        found
    }

    /// One level further down, within the limit.
    pub(super) fn deeper<T>(&mut self, read: impl FnOnce(&mut Parser) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= self.deepest {
            return Err(Failure::TooDeep);
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// `a, b and c`
    fn list(&mut self) -> Parsed<Expr> {
        let mut parts = vec![self.chain()?];
        let mut conjunction = false;
        while let Some(and) = self.separator() {
            conjunction |= and;
            if self.at == self.tokens.len() {
                break;
            }
            parts.push(self.chain()?);
        }
        let inequality = |e: &Expr| matches!(e, Expr::Chain(_, relations) if !relations.contains(&Relation::Equal));
        if parts.len() == 1 {
            return Ok(parts.swap_remove(0));
        }
        if conjunction && parts.iter().any(inequality) {
            return Ok(Expr::Apply("and".into(), parts));
        }
        Ok(Expr::List(parts))
    }

    /// A comma, a semicolon, `and` or `or`, or a comma with one of these: whether it was an `and`.
    fn separator(&mut self) -> Option<bool> {
        let start = self.at;
        let comma = self.eat_char(',') || self.eat_char(';');
        let word = match self.peek() {
            Some(Token::Text(word)) => word.trim_matches(|c: char| c == ',' || c.is_whitespace()).to_ascii_lowercase(),
            Some(Token::Command(word)) if word == "land" => "and".to_string(),
            Some(Token::Command(word)) if word == "lor" => "or".to_string(),
            _ => String::new(),
        };
        if word == "and" || word == "or" {
            self.at += 1;
            return Some(word == "and");
        }
        if !comma {
            self.at = start;
            return None;
        }
        Some(false)
    }

    /// `a < b <= c`, with what may stand behind it: a unit, a modulus.
    pub(super) fn chain(&mut self) -> Parsed<Expr> {
        self.deeper(|p| {
            let mut sides = vec![p.side()?];
            let mut relations = Vec::new();
            while let Some(relation) = p.relation() {
                relations.push(relation);
                sides.push(p.side()?);
            }
            let modulus = p.modulus()?;
            if relations.is_empty() {
                let value = sides.swap_remove(0);
                return Ok(match modulus {
                    Some(modulus) => Expr::Modular(Box::new(value), Box::new(modulus)),
                    None => value,
                });
            }
            if let Some(modulus) = modulus {
                let value = sides.pop().ok_or(Failure::Syntax)?;
                sides.push(Expr::Modular(Box::new(value), Box::new(modulus)));
                // "x congruent 3 (mod 7)" says as an equation what x is.
                relations.iter_mut().filter(|r| **r == Relation::Other("equiv")).for_each(|r| *r = Relation::Equal);
            }
            Ok(Expr::Chain(sides, relations))
        })
    }

    /// `\pmod{7}`, `(\bmod 7)`, `mod 7`
    fn modulus(&mut self) -> Parsed<Option<Expr>> {
        let bracket = self.is_char('(')
            && matches!(self.peek_at(1), Some(Token::Command(name)) if name == "bmod" || name == "mod");
        let command =
            matches!(self.peek(), Some(Token::Command(name)) if ["pmod", "bmod", "mod"].contains(&name.as_str()));
        if !bracket && !command {
            return Ok(None);
        }
        self.at += 1 + usize::from(bracket);
        let modulus = self.sum()?;
        if bracket && !self.eat_char(')') {
            return Err(Failure::Syntax);
        }
        Ok(Some(modulus))
    }

    pub(super) fn relation(&mut self) -> Option<Relation> {
        let two = |p: &Parser, c: char| p.peek_at(1) == Some(&Token::Char(c));
        let (relation, length) = match self.peek()? {
            Token::Char('=') => (Relation::Equal, if two(self, '=') { 2 } else { 1 }),
            Token::Char('<') if two(self, '=') => (Relation::LessEqual, 2),
            Token::Char('>') if two(self, '=') => (Relation::GreaterEqual, 2),
            Token::Char('<') => (Relation::Less, 1),
            Token::Char('>') => (Relation::Greater, 1),
            Token::Char('!') if two(self, '=') => (Relation::NotEqual, 2),
            Token::Char(':') if two(self, '=') => (Relation::Equal, 2),
            Token::Command(name) => match name.as_str() {
                "lt" => (Relation::Less, 1),
                "gt" => (Relation::Greater, 1),
                "le" => (Relation::LessEqual, 1),
                "ge" => (Relation::GreaterEqual, 1),
                "ne" => (Relation::NotEqual, 1),
                "not" if two(self, '=') => (Relation::NotEqual, 2),
                "in" => (Relation::In, 1),
                "equiv" => (Relation::Other("equiv"), 1),
                "approx" => (Relation::Other("approx"), 1),
                "sim" => (Relation::Other("sim"), 1),
                "cong" => (Relation::Other("cong"), 1),
                "simeq" => (Relation::Other("simeq"), 1),
                "propto" => (Relation::Other("propto"), 1),
                "to" => (Relation::Other("to"), 1),
                "mapsto" => (Relation::Other("mapsto"), 1),
                "subset" => (Relation::Other("subset"), 1),
                "subseteq" => (Relation::Other("subseteq"), 1),
                "perp" => (Relation::Other("perp"), 1),
                "notin" => (Relation::Other("notin"), 1),
                "implies" | "Rightarrow" => (Relation::Other("implies"), 1),
                "iff" | "Leftrightarrow" => (Relation::Other("iff"), 1),
                _ => return None,
            },
            _ => return None,
        };
        self.at += length;
        Some(relation)
    }

    /// One side of a relation: sets joined, a ratio, a sum; with its unit.
    fn side(&mut self) -> Parsed<Expr> {
        let mut value = self.ratio()?;
        loop {
            let capital_u = matches!(self.peek(), Some(Token::Letter('U' | 'u')))
                && matches!(value, Expr::Tuple(_) | Expr::Interval(_) | Expr::Union(_));
            if capital_u || self.is_command("cup") {
                self.at += 1;
                let next = self.ratio()?;
                value = match value {
                    Expr::Union(mut parts) => {
                        parts.push(next);
                        Expr::Union(parts)
                    }
                    first => Expr::Union(vec![first, next]),
                };
            } else if self.eat_command("setminus") {
                value = Expr::Difference(Box::new(value), Box::new(self.ratio()?));
            } else if self.eat_command("cap") {
                value = Expr::Apply("cap".into(), vec![value, self.ratio()?]);
            } else {
                return Ok(value);
            }
        }
    }

    /// Words behind a value: its unit, with a power: `\text{ cm}^2`.
    fn unit(&mut self) -> Option<String> {
        let mut unit = String::new();
        while let Some(Token::Text(word)) = self.peek() {
            let plain = word.trim().trim_end_matches('.').to_ascii_lowercase();
            if plain == "and" || plain == "or" {
                break;
            }
            if words::changes_value(&plain) {
                return None;
            }
            unit.push(' ');
            unit.push_str(&plain);
            self.at += 1;
            if self.eat_char('^') {
                unit.push('^');
                let braces = self.eat_char('{');
                match self.peek() {
                    Some(Token::Number(digits, _)) => unit.push_str(digits),
                    _ => return None,
                }
                self.at += 1;
                if braces && !self.eat_char('}') {
                    return None;
                }
            }
            let per = self.is_char('/') && matches!(self.peek_at(1), Some(Token::Text(_)));
            if per {
                unit.push_str(" per");
                self.at += 1;
            }
        }
        (!unit.is_empty()).then(|| unit.trim().to_string())
    }

    fn ratio(&mut self) -> Parsed<Expr> {
        let first = self.sum()?;
        if !self.is_char(':') || self.peek_at(1) == Some(&Token::Char('=')) {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.eat_char(':') {
            parts.push(self.sum()?);
        }
        Ok(Expr::Ratio(parts))
    }

    pub(super) fn sum(&mut self) -> Parsed<Expr> {
        self.deeper(|p| {
            let first = p.signed_term()?;
            let mut terms = vec![first];
            loop {
                match p.peek() {
                    Some(Token::Char('+' | '-')) => {}
                    Some(Token::Command(name)) if name == "pm" || name == "mp" => {}
                    _ => break,
                }
                terms.push(p.signed_term()?);
            }
            let value = if terms.len() == 1 { terms.swap_remove(0) } else { Expr::Sum(terms) };
            let start = p.at;
            if matches!(p.peek(), Some(Token::Text(_))) && !matches!(value, Expr::Text(_)) {
                match p.unit() {
                    Some(unit) => return Ok(Expr::Quantity(Box::new(value), unit)),
                    None => p.at = start,
                }
            }
            Ok(value)
        })
    }

    fn signed_term(&mut self) -> Parsed<Expr> {
        if self.eat_char('+') {
            return self.product();
        }
        if self.eat_char('-') {
            return self
                .deeper(|p| if p.is_char('-') { Ok(p.signed_term()?.negated()) } else { Ok(p.product()?.negated()) });
        }
        for (name, minus_first) in [("pm", false), ("mp", true)] {
            if self.eat_command(name) {
                return Ok(Expr::PlusMinus(minus_first, Box::new(self.product()?)));
            }
        }
        self.product()
    }

    fn product(&mut self) -> Parsed<Expr> {
        let mut factors = vec![self.mixed()?];
        loop {
            let last_is_set =
                matches!(factors.last(), Some(Expr::Tuple(_) | Expr::Interval(_) | Expr::Set(_) | Expr::Text(_)));
            match self.peek() {
                Some(Token::Char('*')) => self.at += 1,
                Some(Token::Command(name)) if ["times", "cdot", "cdotp", "bullet"].contains(&name.as_str()) => {
                    self.at += 1
                }
                Some(Token::Char('/')) => {
                    self.at += 1;
                    let divisor = self.factor()?;
                    factors.push(divisor.inverse());
                    continue;
                }
                Some(Token::Command(name)) if name == "div" => {
                    self.at += 1;
                    let divisor = self.factor()?;
                    factors.push(divisor.inverse());
                    continue;
                }
                // Two numbers side by side are no product.
                Some(Token::Number(..))
                    if matches!(factors.last(), Some(Expr::Number(..)))
                        && matches!(self.tokens.get(self.at.wrapping_sub(1)), Some(Token::Number(..))) =>
                {
                    return Err(Failure::Syntax);
                }
                Some(token) if !last_is_set && self.starts_atom(token) => {
                    factors.push(self.mixed()?);
                    continue;
                }
                _ => break,
            }
            factors.push(self.factor()?);
        }
        Ok(if factors.len() == 1 { factors.swap_remove(0) } else { Expr::Product(factors) })
    }

    /// A factor that may be signed: behind `\cdot`, `/` or `^`.
    pub(super) fn factor(&mut self) -> Parsed<Expr> {
        self.deeper(|p| {
            if p.eat_char('-') {
                return Ok(p.factor()?.negated());
            }
            if p.eat_char('+') {
                return p.factor();
            }
            p.mixed()
        })
    }

    /// `3\frac12` and `3 1/2`, or else a factor.
    fn mixed(&mut self) -> Parsed<Expr> {
        let integer = |t: Option<&Token>| match t {
            Some(Token::Number(digits, repeating)) => !digits.contains('.') && repeating.is_empty(),
            _ => false,
        };
        if integer(self.peek()) {
            let slash = integer(self.peek_at(1))
                && self.peek_at(2) == Some(&Token::Char('/'))
                && integer(self.peek_at(3))
                && !matches!(self.peek_at(4), Some(Token::Number(..)));
            if slash {
                let start = self.at;
                let whole = self.postfix()?;
                let top = self.postfix()?;
                self.at += 1;
                let fraction = top.over(self.deeper(Parser::atom)?);
                if let Some(mixed) = self.mixed_of(whole, fraction)? {
                    return Ok(mixed);
                }
                self.at = start;
            }
            if matches!(self.peek_at(1), Some(Token::Command(name)) if name == "frac") {
                let start = self.at;
                let whole = self.postfix()?;
                let fraction = self.deeper(Parser::atom)?;
                if let Some(mixed) = self.mixed_of(whole, fraction)? {
                    return Ok(mixed);
                }
                self.at = start;
            }
        }
        self.postfix()
    }

    /// A mixed number, which may be one of percent or degrees: `33\frac13\%`. A power of it is a power of its fraction.
    fn mixed_of(&mut self, whole: Expr, fraction: Expr) -> Parsed<Option<Expr>> {
        if !plain_fraction(&fraction) {
            return Ok(None);
        }
        let value = self.attached(Expr::Sum(vec![whole, fraction]), false)?;
        Ok(matches!(value, Expr::Sum(_) | Expr::Percent(_) | Expr::Degrees(_)).then_some(value))
    }
}

/// A fraction of two positive integers.
fn plain_fraction(e: &Expr) -> bool {
    let positive =
        |e: &Expr| matches!(e, Expr::Number(value, None) if value.is_int() && *value > dashu_ratio::RBig::ZERO);
    match e {
        Expr::Product(parts) => match parts.as_slice() {
            [top, Expr::Power(bottom, _)] => positive(top) && positive(bottom),
            _ => false,
        },
        _ => false,
    }
}
