//! What stands at one place of a formula: numbers, names, brackets, functions, matrices, and what is attached behind them.

use super::expr::{Constant, Digits, Expr, Function, Interval};
use super::functions::{is_function, is_operator};
use super::lex::Token;
use super::parse::{Failure, Parsed, Parser};
use super::words;
use dashu_int::{IBig, UBig};
use dashu_ratio::RBig;

/// Letters that name functions when a bracket follows: `f(x)` is no product.
const FUNCTION_LETTERS: &str = "fghFGHOo";

/// Most powers, factorials and percent signs behind one atom.
const MOST_ATTACHED: usize = 12;

impl Parser {
    /// Whether a token can begin a factor that follows another one without a sign.
    pub(super) fn starts_atom(&self, token: &Token) -> bool {
        match token {
            Token::Number(..) | Token::Letter(_) | Token::Name(_) | Token::Begin(_) => true,
            Token::Char('(') => {
                // (\bmod 7) belongs to what stands before the product.
                !matches!(self.peek_at(1), Some(Token::Command(name)) if name == "bmod" || name == "mod")
            }
            Token::Char('[' | '{') => true,
            Token::Char('|') => self.bars == 0,
            Token::Command(name) => match name.as_str() {
                "vert" => self.bars == 0,
                "|" => self.bars == 0,
                "frac" | "sqrt" | "binom" | "pi" | "infty" | "{" | "langle" | "lfloor" | "lceil" | "[" | "i" => true,
                name => is_function(name) || is_operator(name) || is_symbol(name),
            },
            _ => false,
        }
    }

    /// An atom with its powers, factorials, percent signs.
    pub(super) fn postfix(&mut self) -> Parsed<Expr> {
        let capital = matches!(self.peek(), Some(Token::Letter(c)) if c.is_ascii_uppercase())
            || matches!(self.peek(), Some(Token::Char(')')));
        let value = self.deeper(Parser::atom)?;
        self.attached(value, capital)
    }

    /// What is attached behind a value; `capital`: the value may be a matrix.
    pub(super) fn attached(&mut self, mut value: Expr, capital: bool) -> Parsed<Expr> {
        // Each of them nests the value one level deeper: 5%%%%%%%%.
        for _ in 0..MOST_ATTACHED {
            value = match self.peek() {
                Some(Token::Char('^')) => {
                    self.at += 1;
                    if self.ordinal() {
                        value
                    } else if self.degree_sign() {
                        Expr::Degrees(Box::new(value))
                    } else {
                        // A transposed matrix: products do not commute, so the answer is compared as it is written.
                        if matches!(self.peek(), Some(Token::Letter('T'))) && capital {
                            return Err(Failure::Syntax);
                        }
                        value.power(self.exponent()?)
                    }
                }
                Some(Token::Char('*')) if self.peek_at(1) == Some(&Token::Char('*')) => {
                    self.at += 2;
                    value.power(self.factor()?)
                }
                Some(Token::Char('!')) if self.peek_at(1) != Some(&Token::Char('=')) => {
                    self.at += 1;
                    if self.eat_char('!') {
                        Expr::Apply("!!".into(), vec![value])
                    } else {
                        Expr::Call(Function::Factorial, vec![value])
                    }
                }
                Some(Token::Char('%')) => {
                    self.at += 1;
                    Expr::Percent(Box::new(value))
                }
                Some(Token::Text(word)) if word == "percent" => {
                    self.at += 1;
                    Expr::Percent(Box::new(value))
                }
                Some(Token::Command(name)) if name == "degree" => {
                    self.at += 1;
                    Expr::Degrees(Box::new(value))
                }
                _ => return Ok(value),
            };
        }
        Err(Failure::TooDeep)
    }

    /// `\circ` or `{\circ}` behind `^`.
    fn degree_sign(&mut self) -> bool {
        if self.eat_command("circ") || self.eat_command("degree") {
            return true;
        }
        let braces = self.is_char('{')
            && matches!(self.peek_at(1), Some(Token::Command(name)) if name == "circ")
            && self.peek_at(2) == Some(&Token::Char('}'));
        self.at += if braces { 3 } else { 0 };
        braces
    }

    /// `\text{th}` behind `^`: 7^{\text{th}} is 7.
    fn ordinal(&mut self) -> bool {
        let braces = usize::from(self.is_char('{'));
        let ordinal = matches!(self.peek_at(braces), Some(Token::Text(word)) if ["st", "nd", "rd", "th"].contains(&word.as_str()))
            && (braces == 0 || self.peek_at(2) == Some(&Token::Char('}')));
        self.at += if ordinal { 1 + 2 * braces } else { 0 };
        ordinal
    }

    /// What stands behind `^`: a group, or one atom with its sign.
    pub(super) fn exponent(&mut self) -> Parsed<Expr> {
        self.deeper(|p| {
            if p.is_char('{') {
                return p.braces();
            }
            if p.eat_char('-') {
                return Ok(p.exponent()?.negated());
            }
            if p.eat_char('+') {
                return p.exponent();
            }
            p.atom()
        })
    }

    /// `{sum}`
    fn braces(&mut self) -> Parsed<Expr> {
        if !self.eat_char('{') {
            return Err(Failure::Syntax);
        }
        let bars = std::mem::take(&mut self.bars);
        let value = self.sum()?;
        let value = self.over(value)?;
        self.bars = bars;
        if self.eat_char('}') { Ok(value) } else { Err(Failure::Syntax) }
    }

    /// `3 \over 4` and `5 \choose 2` divide all that stands in their braces.
    pub(super) fn over(&mut self, top: Expr) -> Parsed<Expr> {
        if self.eat_command("over") {
            return Ok(top.over(self.sum()?));
        }
        if self.eat_command("choose") {
            return Ok(Expr::Call(Function::Binomial, vec![top, self.sum()?]));
        }
        Ok(top)
    }

    /// A command's argument: a group, or one digit, letter or command.
    pub(super) fn argument(&mut self) -> Parsed<Expr> {
        if self.is_char('{') {
            return self.deeper(Parser::braces);
        }
        if let Some(Token::Number(digits, _)) = self.tokens.get_mut(self.at)
            && digits.len() > 1
            && digits.bytes().all(|b| b.is_ascii_digit())
        {
            // \frac12: TeX takes one digit. The token is split, so that it is read the same when this is tried twice.
            let first = digits.remove(0).to_string();
            let value = number(&first, "");
            self.tokens.insert(self.at, Token::Number(first, String::new()));
            self.at += 1;
            return value;
        }
        self.deeper(Parser::atom)
    }

    pub(super) fn atom(&mut self) -> Parsed<Expr> {
        let token = self.peek().cloned().ok_or(Failure::Syntax)?;
        self.at += 1;
        match token {
            Token::Number(digits, repeating) => self.number(&digits, &repeating),
            Token::Letter(c) => self.letter(c),
            Token::Name(name) => self.symbol(name),
            Token::Text(text) => {
                // A whole answer in words; in the middle of a formula words are not understood.
                let alone = self.at == 1 || matches!(self.tokens.get(self.at - 2), Some(Token::Char(',' | '(' | '=')));
                let ends = matches!(self.peek(), None | Some(Token::Char(',' | ')')));
                // \text{Area} = 12
                let names = self.at == 1 && self.is_char('=') && !words::changes_value(&text.to_lowercase());
                if (alone && ends) || names { Ok(Expr::Text(text)) } else { Err(Failure::Syntax) }
            }
            Token::Char('(') => self.bracketed('('),
            Token::Char('[') => self.bracketed('['),
            Token::Char('{') => {
                let mut parts = self.elements()?;
                if parts.len() == 1
                    && let Some(top) = parts.pop()
                {
                    parts.push(self.over(top)?);
                }
                if !self.eat_char('}') {
                    return Err(Failure::Syntax);
                }
                single(parts).or_else(|parts| Ok(Expr::Set(parts)))
            }
            Token::Char('|') => self.absolute(),
            Token::Begin(environment) => self.matrix(&environment),
            Token::Command(name) => self.named(&name),
            _ => Err(Failure::Syntax),
        }
    }

    fn number(&mut self, digits: &str, repeating: &str) -> Parsed<Expr> {
        // 52_8, 4210_{5}
        if self.is_char('_') {
            let base = self.subscript()?;
            let base = base.trim_start_matches("\\text").trim_matches(|c| "{}() ".contains(c)).to_string();
            if base.is_empty() || !base.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Failure::Syntax);
            }
            return Ok(Expr::Based(digits.to_string(), base));
        }
        number(digits, repeating)
    }

    fn letter(&mut self, c: char) -> Parsed<Expr> {
        let plain = !matches!(self.peek(), Some(Token::Char('_' | '\'')));
        match c {
            'e' if plain => return Ok(Expr::Constant(Constant::E)),
            'i' if plain => return Ok(Expr::Constant(Constant::I)),
            _ => {}
        }
        self.symbol(c.to_string())
    }

    /// A name with its subscripts and primes, applied to arguments if it is a function's.
    fn symbol(&mut self, mut name: String) -> Parsed<Expr> {
        let function = name.len() == 1 && FUNCTION_LETTERS.contains(&name);
        let mut derived = false;
        loop {
            if self.is_char('_') {
                let subscript = self.subscript()?;
                name.push('_');
                name.push_str(&subscript);
            } else if self.eat_char('\'') {
                name.push('\'');
                derived = true;
            } else if self.is_char('^') && matches!(self.peek_at(1), Some(Token::Command(n)) if n == "prime") {
                self.at += 2;
                name.push('\'');
                derived = true;
            } else {
                break;
            }
        }
        // E[X], R[x], C[0,1]: no products.
        if self.is_char('[') && name.len() == 1 && name.bytes().all(|b| b.is_ascii_uppercase()) {
            self.at += 1;
            let arguments = self.elements()?;
            let closed = self.eat_char(']');
            return if closed { Ok(Expr::Apply(format!("{name}[]"), arguments)) } else { Err(Failure::Syntax) };
        }
        if name == "Gamma" && self.is_char('(') && !self.has_comma() {
            let x = self.deeper(Parser::atom)?;
            return Ok(Expr::Call(Function::Factorial, vec![x.minus(Expr::integer(1))]));
        }
        if self.is_char('(') && (function || derived || self.has_comma() || self.value_stated()) {
            self.at += 1;
            let arguments = self.elements()?;
            return if self.eat_char(')') { Ok(Expr::Apply(name, arguments)) } else { Err(Failure::Syntax) };
        }
        Ok(Expr::Symbol(name))
    }

    /// Whether the bracket here is the `(3)` of an answer `S(3) = 10`: no product.
    fn value_stated(&self) -> bool {
        self.at == 1
            && matches!(self.peek_at(1), Some(Token::Number(..)))
            && self.peek_at(2) == Some(&Token::Char(')'))
            && self.peek_at(3) == Some(&Token::Char('='))
    }

    /// Whether the bracket here holds a comma at its own level: then a name before it is a function of several arguments.
    fn has_comma(&self) -> bool {
        let mut depth = 0usize;
        for token in &self.tokens[self.at..] {
            match token {
                Token::Char('(' | '[' | '{') => depth += 1,
                Token::Char(')' | ']' | '}') => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return false;
                    }
                }
                Token::Char(',') if depth == 1 => return true,
                _ => {}
            }
        }
        false
    }

    /// A subscript as text without spaces: part of a name.
    pub(super) fn subscript(&mut self) -> Parsed<String> {
        self.at += 1;
        let mut text = String::new();
        if !self.is_char('{') {
            let token = self.peek().ok_or(Failure::Syntax)?;
            if let Token::Char(')' | ']' | '}' | ',' | '=') = token {
                return Err(Failure::Syntax);
            }
            spell(token, &mut text);
            self.at += 1;
            return Ok(text);
        }
        let mut depth = 0usize;
        while let Some(token) = self.peek() {
            match token {
                Token::Char('{') => depth += 1,
                Token::Char('}') => depth -= 1,
                _ => {}
            }
            let bracket = matches!(token, Token::Char('{' | '}')) && (depth == 0 || text.is_empty());
            if !bracket {
                spell(token, &mut text);
            }
            self.at += 1;
            if depth == 0 {
                return Ok(text);
            }
        }
        Err(Failure::Syntax)
    }

    /// Elements between brackets, up to the closing one, which is left.
    fn elements(&mut self) -> Parsed<Vec<Expr>> {
        let bars = std::mem::take(&mut self.bars);
        let mut parts = Vec::new();
        let closes = |p: &Parser| {
            matches!(p.peek(), Some(Token::Char(')' | ']' | '}')))
                || matches!(p.peek(), Some(Token::Command(n)) if n == "}" || n == "rangle" || n == "]")
        };
        if !closes(self) {
            loop {
                parts.push(self.chain()?);
                if !(self.eat_char(',') || self.eat_char(';')) {
                    break;
                }
            }
        }
        self.bars = bars;
        Ok(parts)
    }

    fn bracketed(&mut self, open: char) -> Parsed<Expr> {
        let mut parts = self.elements()?;
        let close = if self.eat_char(')') {
            ')'
        } else if self.eat_char(']') || self.eat_command("]") {
            ']'
        } else {
            return Err(Failure::Syntax);
        };
        let interval = parts.len() == 2 && (open, close) != ('(', ')');
        if interval && let (Some(high), Some(low)) = (parts.pop(), parts.pop()) {
            let interval = Interval { low, high, low_open: open == '(', high_open: close == ')' };
            return Ok(Expr::Interval(Box::new(interval)));
        }
        if parts.is_empty() || (open == '(') != (close == ')') {
            return Err(Failure::Syntax);
        }
        single(parts).or_else(|parts| Ok(Expr::Tuple(parts)))
    }

    fn absolute(&mut self) -> Parsed<Expr> {
        self.bars += 1;
        let value = self.sum()?;
        self.bars -= 1;
        if self.eat_char('|') || self.eat_command("vert") {
            Ok(Expr::Call(Function::Abs, vec![value]))
        } else {
            Err(Failure::Syntax)
        }
    }

    fn matrix(&mut self, environment: &str) -> Parsed<Expr> {
        let known = [
            "pmatrix",
            "bmatrix",
            "matrix",
            "smallmatrix",
            "vmatrix",
            "Bmatrix",
            "array",
            "psmallmatrix",
            "bsmallmatrix",
        ];
        if !known.contains(&environment) {
            return Err(Failure::Syntax);
        }
        let (mut parts, mut columns, mut in_row) = (Vec::new(), 0usize, 0usize);
        loop {
            parts.push(self.sum()?);
            in_row += 1;
            if self.eat_char('&') {
                continue;
            }
            let row_ends = self.peek() == Some(&Token::RowBreak);
            self.at += usize::from(row_ends);
            let ends = matches!(self.peek(), Some(Token::End(_)));
            if !row_ends && !ends {
                return Err(Failure::Syntax);
            }
            if columns != 0 && columns != in_row {
                return Err(Failure::Syntax);
            }
            (columns, in_row) = (in_row, 0);
            if ends {
                self.at += 1;
                break;
            }
        }
        let matrix = Expr::Matrix(columns, parts);
        Ok(if environment == "vmatrix" { Expr::Apply("det".into(), vec![matrix]) } else { matrix })
    }

    fn named(&mut self, name: &str) -> Parsed<Expr> {
        match name {
            "frac" => {
                let top = self.argument()?;
                Ok(top.over(self.argument()?))
            }
            "sqrt" => self.root(),
            "binom" => {
                let (n, k) = if self.is_char('(') {
                    let Expr::Tuple(mut pair) = self.atom()? else { return Err(Failure::Syntax) };
                    let k = pair.pop().ok_or(Failure::Syntax)?;
                    (pair.pop().ok_or(Failure::Syntax)?, k)
                } else {
                    let n = self.argument()?;
                    (n, self.argument()?)
                };
                Ok(Expr::Call(Function::Binomial, vec![n, k]))
            }
            "pi" if !self.is_char('_') => Ok(Expr::Constant(Constant::Pi)),
            "infty" => Ok(Expr::Constant(Constant::Infinity)),
            "i" => Ok(Expr::Constant(Constant::I)),
            "emptyset" => Ok(Expr::Set(Vec::new())),
            "reals" => Ok(Expr::Symbol("mathbb{R}".into())),
            "vert" => self.absolute(),
            "|" => {
                self.bars += 1;
                let value = self.sum()?;
                self.bars -= 1;
                if self.eat_command("|") { Ok(Expr::Apply("norm".into(), vec![value])) } else { Err(Failure::Syntax) }
            }
            "[" => self.bracketed('['),
            "{" => {
                let parts = self.elements()?;
                if self.eat_command("}") || self.eat_char('}') { Ok(Expr::Set(parts)) } else { Err(Failure::Syntax) }
            }
            "langle" => {
                let parts = self.elements()?;
                if self.eat_command("rangle") { Ok(Expr::Tuple(parts)) } else { Err(Failure::Syntax) }
            }
            "lfloor" => self.closed_by("rfloor", Function::Floor),
            "lceil" => self.closed_by("rceil", Function::Ceil),
            name if is_function(name) => self.function(name),
            name if is_operator(name) => self.operator(name),
            name if is_symbol(name) => self.symbol(name.to_string()),
            _ => Err(Failure::Syntax),
        }
    }

    fn closed_by(&mut self, close: &str, function: Function) -> Parsed<Expr> {
        let bars = std::mem::take(&mut self.bars);
        let value = self.sum()?;
        self.bars = bars;
        if self.eat_command(close) { Ok(Expr::Call(function, vec![value])) } else { Err(Failure::Syntax) }
    }

    fn root(&mut self) -> Parsed<Expr> {
        let mut degree = Expr::integer(2);
        if self.eat_char('[') {
            degree = self.sum()?;
            if !self.eat_char(']') {
                return Err(Failure::Syntax);
            }
        }
        // \sqrt13 is written for the root of 13 by those who write it, whatever TeX makes of it.
        let radicand = if self.is_char('{') { self.deeper(Parser::braces)? } else { self.deeper(Parser::atom)? };
        Ok(radicand.root(degree))
    }
}

/// The element of a list of one; the list back otherwise.
fn single(mut parts: Vec<Expr>) -> Result<Expr, Vec<Expr>> {
    match parts.pop() {
        Some(only) if parts.is_empty() => Ok(only),
        Some(last) => {
            parts.push(last);
            Err(parts)
        }
        None => Err(parts),
    }
}

/// Letters with a name.
fn is_symbol(name: &str) -> bool {
    let known = [
        "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu",
        "xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda",
        "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "ell", "hbar", "aleph", "wp", "pi", "vartheta", "beth",
    ];
    known.contains(&name)
}

/// Digits with at most one point, and the digits that repeat behind them, as an exact value.
pub(super) fn number(digits: &str, repeating: &str) -> Parsed<Expr> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let together = format!("{whole}{fraction}");
    let integer: UBig = if together.is_empty() { UBig::ZERO } else { together.parse().map_err(|_| Failure::Syntax)? };
    let scale = UBig::from(10u8).pow(fraction.len());
    if !repeating.is_empty() {
        // 0.1(6): (16 - 1) / (100 - 10)
        let all: UBig = format!("{together}{repeating}").parse().map_err(|_| Failure::Syntax)?;
        let scaled = &scale * UBig::from(10u8).pow(repeating.len());
        return Ok(Expr::rational(RBig::from_parts(IBig::from(all) - IBig::from(integer), scaled - scale)));
    }
    let value = RBig::from_parts(IBig::from(integer), scale);
    if !digits.contains('.') {
        return Ok(Expr::rational(value));
    }
    let significant = together.trim_start_matches('0').len();
    Ok(Expr::Number(value, Some(Digits { places: fraction.len(), significant })))
}

/// A token as the text of a name.
fn spell(token: &Token, text: &mut String) {
    match token {
        Token::Number(digits, repeating) => {
            text.push_str(digits);
            text.push_str(repeating);
        }
        Token::Letter(c) | Token::Char(c) => text.push(*c),
        Token::Name(name) => text.push_str(name),
        Token::Command(name) => {
            text.push('\\');
            text.push_str(name);
        }
        Token::Text(words) => text.push_str(words),
        Token::RowBreak => text.push_str("\\\\"),
        Token::Begin(name) | Token::End(name) => text.push_str(name),
    }
}
