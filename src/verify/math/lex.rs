//! Tokens of LaTeX and of plain text, with what only concerns the look of a formula dropped.

use super::words;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// Digits with at most one point; thousands separators are gone. The second text is the repeating part of a decimal.
    Number(String, String),
    Letter(char),
    /// A name that is one symbol: `mathbb{R}`, `hat{y}`.
    Name(String),
    /// A command or a known function's name, without the backslash.
    Command(String),
    /// Words: the content of `\text{}`, or a plain word that is no product of variables.
    Text(String),
    /// `\\` between the rows of a matrix.
    RowBreak,
    /// `\begin{matrix}` and `\end{matrix}` with the environment's name.
    Begin(String),
    End(String),
    Char(char),
}

/// Commands that change only how a formula looks.
const LOOKS: &[&str] = &[
    "big",
    "Big",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "bigg",
    "Bigg",
    "biggl",
    "biggr",
    "Biggl",
    "Biggr",
    "middle",
    "displaystyle",
    "textstyle",
    "scriptstyle",
    "limits",
    "nolimits",
    "quad",
    "qquad",
    "mathstrut",
    "strut",
    "rm",
    "bf",
    "it",
    "boldmath",
    "mleft",
    "mright",
    "hfill",
    "smallskip",
    "medskip",
    "large",
    "Large",
    "small",
    "thinspace",
    "enspace",
    "nobreak",
    "allowbreak",
];
/// Commands whose first argument is a length, a color or what is not shown.
const UNSEEN: &[&str] =
    &["hspace", "vspace", "phantom", "hphantom", "vphantom", "color", "textcolor", "colorbox", "mspace"];
/// Commands whose argument is words.
const WORDS: &[&str] =
    &["text", "mbox", "textbf", "textit", "textrm", "texttt", "textsf", "textnormal", "hbox", "textup", "emph"];
/// Commands whose argument is set in another letter but means the same.
const STYLES: &[&str] = &[
    "mathbf",
    "mathrm",
    "mathit",
    "mathsf",
    "boldsymbol",
    "bm",
    "pmb",
    "operatorname",
    "mathtt",
    "mathop",
    "mathnormal",
];
/// Commands that make another symbol of their argument.
const ACCENTS: &[&str] = &[
    "mathbb",
    "mathcal",
    "mathfrak",
    "mathscr",
    "hat",
    "widehat",
    "bar",
    "tilde",
    "widetilde",
    "vec",
    "dot",
    "ddot",
    "overline",
    "overrightarrow",
    "underline",
    "check",
    "breve",
    "Bbb",
];

/// Splits a text into tokens. `None` if it holds more than `limit` of them or a character that no formula has.
pub fn tokens(text: &str, limit: usize) -> Option<Vec<Token>> {
    let mut lexer = Lexer { rest: text, out: Vec::new(), brackets: 0 };
    while !lexer.rest.is_empty() {
        lexer.step()?;
        if lexer.out.len() > limit {
            return None;
        }
    }
    Some(lexer.out)
}

/// A balanced `{...}` at the start of a text: its content and what follows.
pub fn group(text: &str) -> Option<(&str, &str)> {
    let inner = text.trim_start().strip_prefix('{')?;
    let mut depth = 1usize;
    for (i, b) in inner.bytes().enumerate() {
        match b {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&inner[..i], &inner[i + 1..]));
        }
    }
    None
}

struct Lexer<'a> {
    rest: &'a str,
    out: Vec<Token>,
    /// Open brackets: within them a comma separates coordinates, not thousands.
    brackets: usize,
}

impl Lexer<'_> {
    fn step(&mut self) -> Option<()> {
        let c = self.rest.chars().next()?;
        let starts_number =
            c.is_ascii_digit() || (c == '.' && self.rest[1..].starts_with(|d: char| d.is_ascii_digit()));
        if starts_number {
            self.number();
        } else if c == '\\' {
            self.command()?;
        } else if c.is_ascii_alphabetic() {
            self.letters();
        } else {
            self.rest = &self.rest[c.len_utf8()..];
            self.character(c)?;
        }
        Some(())
    }

    fn digits(&mut self) -> String {
        let n = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.rest.split_at(n);
        self.rest = rest;
        digits.to_string()
    }

    fn number(&mut self) {
        let mut text = self.digits();
        // 1,234,567: groups of three after a comma, and after the spaces that LaTeX users put there.
        let start = self.rest;
        let (mut groups, mut leading_zero, mut typeset) = (String::new(), false, true);
        while (1..=3).contains(&text.len()) && !text.starts_with('0') {
            let Some((rest, sure)) = separator(self.rest) else { break };
            let n = rest.bytes().take_while(u8::is_ascii_digit).count();
            if n != 3 {
                break;
            }
            typeset &= sure;
            leading_zero |= rest.starts_with('0');
            groups.push_str(&rest[..3]);
            self.rest = &rest[3..];
        }
        // (1,234) is a point, (1,000) and 1{,}234 are numbers.
        if self.brackets == 0 || typeset || leading_zero {
            text.push_str(&groups);
        } else {
            self.rest = start;
        }
        let mut repeating = String::new();
        let after = self.rest.strip_prefix('.');
        if let Some(after) = after
            && (after.starts_with(|c: char| c.is_ascii_digit())
                || ["\\overline", "\\bar", "\\dot"].iter().any(|repeats| after.starts_with(repeats)))
        {
            self.rest = after;
            text.push('.');
            text.push_str(&self.digits());
            for command in ["\\overline", "\\bar", "\\dot"] {
                if let Some((digits, rest)) = self.rest.strip_prefix(command).and_then(group)
                    && !digits.is_empty()
                    && digits.bytes().all(|b| b.is_ascii_digit())
                {
                    repeating = digits.to_string();
                    self.rest = rest;
                    break;
                }
            }
        }
        self.out.push(Token::Number(text, repeating));
        // 1.5e-3, where nothing else can be meant: an e right behind the digits and digits right behind it.
        if let Some(exponent) = self.rest.strip_prefix(['e', 'E']) {
            let (negative, digits) = match exponent.strip_prefix('-') {
                Some(digits) => (true, digits),
                None => (false, exponent.strip_prefix('+').unwrap_or(exponent)),
            };
            if digits.starts_with(|c: char| c.is_ascii_digit()) {
                self.rest = digits;
                let digits = self.digits();
                let mut scale =
                    vec![Token::Command("times".into()), Token::Number("10".into(), String::new()), Token::Char('^')];
                scale.push(Token::Char('{'));
                scale.extend(negative.then_some(Token::Char('-')));
                scale.extend([Token::Number(digits, String::new()), Token::Char('}')]);
                self.out.extend(scale);
            }
        }
    }

    fn letters(&mut self) {
        let n = self.rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (run, rest) = self.rest.split_at(n);
        // After a bracket or a number, only the listed words are words: 2abcd is a product.
        let token = match words::kind(run) {
            words::Kind::Function(name) => Some(Token::Command(name.into())),
            words::Kind::Word => Some(Token::Text(run.into())),
            words::Kind::Unknown
                if n >= 4 && words::only_words(self.rest) && self.out.iter().all(|t| matches!(t, Token::Text(_))) =>
            {
                Some(Token::Text(run.into()))
            }
            words::Kind::Unknown => None,
        };
        self.rest = rest;
        match token {
            Some(token) => self.out.push(token),
            None => self.out.extend(run.chars().map(Token::Letter)),
        }
    }

    fn command(&mut self) -> Option<()> {
        let after = &self.rest[1..];
        let Some(c) = after.chars().next() else {
            self.rest = after;
            return Some(());
        };
        if c == '\\' {
            let rest = &after[1..];
            let inside = self.out.iter().rev().find_map(|t| match t {
                Token::Begin(_) => Some(true),
                Token::End(_) => Some(false),
                _ => None,
            });
            // A doubled backslash before a command outside a matrix comes from text that was escaped twice.
            self.rest =
                if inside != Some(true) && rest.starts_with(|c: char| c.is_ascii_alphabetic()) { after } else { rest };
            if inside == Some(true) {
                self.out.push(Token::RowBreak);
            }
            return Some(());
        }
        if !c.is_ascii_alphabetic() {
            self.rest = &after[c.len_utf8()..];
            match c {
                '{' | '}' => {
                    self.bracket(c == '{');
                    self.out.push(Token::Command(c.to_string()));
                }
                '|' => self.out.push(Token::Command("|".into())),
                '%' | '&' | '_' | '#' => self.character(c)?,
                // \, \! \; \: \  \( \) \[ \] \$ and the like
                _ => {}
            }
            return Some(());
        }
        let n = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (name, rest) = after.split_at(n);
        self.rest = rest;
        if UNSEEN.contains(&name) {
            let rest = rest.strip_prefix('*').unwrap_or(rest);
            self.rest = group(rest).map_or(rest, |(_, rest)| rest);
        } else if name == "begin" || name == "end" {
            let (environment, rest) = group(rest)?;
            self.rest = rest;
            if name == "begin" && environment == "array" {
                self.rest = group(rest).map_or(rest, |(_, rest)| rest);
            }
            let environment = environment.to_string();
            self.out.push(if name == "begin" { Token::Begin(environment) } else { Token::End(environment) });
        } else if WORDS.contains(&name) {
            let (content, rest) = group(rest)?;
            self.rest = rest;
            self.words(content);
        } else if STYLES.contains(&name) {
            self.style();
        } else if ACCENTS.contains(&name) {
            let (content, rest) = argument(rest)?;
            self.rest = rest;
            let content: String = content.chars().filter(|c| !c.is_whitespace()).collect();
            let name = if name == "Bbb" { "mathbb" } else { name };
            self.out.push(Token::Name(format!("{name}{{{content}}}")));
        } else if name == "left" || name == "right" {
            // \left. is a bracket that is not shown.
            self.rest = rest.strip_prefix('.').unwrap_or(rest);
        } else if !LOOKS.contains(&name) {
            let name = words::synonym(name);
            self.bracket_command(name);
            self.out.push(Token::Command(name.to_string()));
        }
        Some(())
    }

    /// `\text{...}`: words, unless a formula was put into it.
    fn words(&mut self, content: &str) {
        let text = content.trim();
        let inner = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')).unwrap_or(text);
        if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || "+-./".contains(c)) {
            // \text{12}: digits in an upright letter. What remains is not lost: it is lexed on its own.
            if let Some(tokens) = tokens(text, 64) {
                self.out.extend(tokens);
            }
        } else if inner.len() == 1 && inner.chars().all(|c| c.is_ascii_alphabetic()) {
            self.out.push(Token::Text(inner.to_string()));
        } else if !text.is_empty() {
            self.out.push(Token::Text(text.to_string()));
        }
    }

    fn style(&mut self) {
        self.rest = self.rest.strip_prefix('*').unwrap_or(self.rest);
        let Some((content, rest)) = group(self.rest) else { return };
        // 5 \mathrm{~m}: the space says that it is a unit.
        let spaced = content.starts_with(['~', ' ']) || content.starts_with("\\,") || content.starts_with("\\ ");
        let content = content.trim_matches(|c: char| "~ \\,;".contains(c));
        if content.chars().all(|c| c.is_ascii_alphabetic()) && (content.len() > 1 || (spaced && !content.is_empty())) {
            self.rest = rest;
            match words::kind(content) {
                words::Kind::Function(name) => self.out.push(Token::Command(name.into())),
                _ => self.out.push(Token::Text(content.to_string())),
            }
        }
        // A quotient of units.
        let unit = |c: char| c.is_ascii_alphanumeric() || "/^ ".contains(c);
        if content.contains('/') && content.starts_with(|c: char| c.is_ascii_alphabetic()) && content.chars().all(unit)
        {
            self.rest = rest;
            self.out.push(Token::Text(content.to_string()));
        }
        // Otherwise the braces stay: \mathbf{x} is {x}.
    }

    fn bracket(&mut self, opens: bool) {
        self.brackets = if opens { self.brackets + 1 } else { self.brackets.saturating_sub(1) };
    }

    fn bracket_command(&mut self, name: &str) {
        match name {
            "{" | "langle" => self.bracket(true),
            "}" | "rangle" => self.bracket(false),
            _ => {}
        }
    }

    fn character(&mut self, c: char) -> Option<()> {
        let command = |name: &str| Token::Command(name.to_string());
        match c {
            '(' | '[' => self.bracket(true),
            ')' | ']' => self.bracket(false),
            _ => {}
        }
        match c {
            c if c.is_whitespace() => {}
            // Signs of a formula's borders, of money and of Markdown; spaces of LaTeX; zero-width marks.
            '$' | '~' | '€' | '£' | '`' | '\u{200b}' | '\u{feff}' => {}
            '"' | '“' | '”' => {}
            '−' | '–' | '—' => self.out.push(Token::Char('-')),
            '×' | '∗' => self.out.push(command("times")),
            '·' | '⋅' | '∙' => self.out.push(command("cdot")),
            '÷' => self.out.push(command("div")),
            '’' | '′' => self.out.push(Token::Char('\'')),
            '°' => self.out.extend([Token::Char('^'), command("circ")]),
            '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' => {
                let digit = match c {
                    '¹' => '1',
                    '²' => '2',
                    '³' => '3',
                    _ => char::from_digit(c as u32 - '⁰' as u32, 10)?,
                };
                self.out.extend([Token::Char('^'), Token::Number(digit.to_string(), String::new())]);
            }
            '√' => self.out.push(command("sqrt")),
            '½' | '⅓' | '¼' | '¾' | '⅔' => {
                let (top, bottom) = match c {
                    '½' => ("1", "2"),
                    '⅓' => ("1", "3"),
                    '¼' => ("1", "4"),
                    '¾' => ("3", "4"),
                    _ => ("2", "3"),
                };
                let number = |digits: &str| Token::Number(digits.into(), String::new());
                self.out.extend([command("frac"), number(top), number(bottom)]);
            }
            c if c.is_ascii() => {
                if !"+-*/^_=<>()[]{}|,;:!'%&.?@#".contains(c) {
                    return None;
                }
                self.out.push(Token::Char(c));
            }
            c => match words::unicode(c) {
                Some(name) => self.out.push(command(name)),
                None if c.is_alphabetic() => self.out.push(Token::Letter(c)),
                None => return None,
            },
        }
        Some(())
    }
}

/// A thousands separator at the start of a text: what follows, and whether it can be nothing else.
fn separator(text: &str) -> Option<(&str, bool)> {
    for typeset in ["{,}", ",\\!", "\\,", "{,\\!}", "\\;", "\\ "] {
        if let Some(rest) = text.strip_prefix(typeset) {
            return Some((rest.trim_start_matches(' '), true));
        }
    }
    Some((text.strip_prefix(',')?, false))
}

/// A command's argument: a group, or the next letter or digit.
fn argument(text: &str) -> Option<(&str, &str)> {
    if let Some(found) = group(text) {
        return Some(found);
    }
    let text = text.trim_start();
    let c = text.chars().next().filter(|c| c.is_alphanumeric())?;
    Some(text.split_at(c.len_utf8()))
}
