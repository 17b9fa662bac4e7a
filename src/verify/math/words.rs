//! The vocabulary: functions that are written without a backslash, units, Unicode signs, synonyms of commands.

/// What a run of letters in plain text is.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// The name of a function or a constant: the command it stands for.
    Function(&'static str),
    /// A word: a unit, `and`, `yes`, ...
    Word,
    /// Nothing known: letters of a product, or a name.
    Unknown,
}

const FUNCTIONS: &[&str] = &[
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth", "arcsin", "arccos", "arctan", "arccot",
    "ln", "log", "exp", "sqrt", "lcm", "gcd", "min", "max", "det", "deg", "dim", "ker", "lim", "sup", "arg", "pi",
    "theta", "alpha", "beta", "gamma", "infty", "lambda", "sigma", "omega", "phi", "binom", "floor", "ceil", "abs",
    "mod", "tr",
];

/// Words that are no products of variables.
const WORDS: &[&str] = &[
    "and",
    "or",
    "yes",
    "no",
    "odd",
    "even",
    "all",
    "none",
    "true",
    "false",
    "undefined",
    "is",
    "are",
    "the",
    "if",
    "for",
    "of",
    "to",
    "only",
    "than",
    "less",
    "more",
    "real",
    "numbers",
    "not",
];

/// Units and what they measure, in one spelling. Those without an entry here are only dropped, never compared.
const UNITS: &[(&str, &str)] = &[
    ("mm", "mm"),
    ("millimeter", "mm"),
    ("millimeters", "mm"),
    ("cm", "cm"),
    ("centimeter", "cm"),
    ("centimeters", "cm"),
    ("centimetres", "cm"),
    ("m", "m"),
    ("meter", "m"),
    ("meters", "m"),
    ("metre", "m"),
    ("metres", "m"),
    ("km", "km"),
    ("kilometer", "km"),
    ("kilometers", "km"),
    ("kilometres", "km"),
    ("in", "in"),
    ("inch", "in"),
    ("inches", "in"),
    ("ft", "ft"),
    ("foot", "ft"),
    ("feet", "ft"),
    ("yd", "yd"),
    ("yard", "yd"),
    ("yards", "yd"),
    ("mi", "mi"),
    ("mile", "mi"),
    ("miles", "mi"),
    ("s", "s"),
    ("sec", "s"),
    ("second", "s"),
    ("seconds", "s"),
    ("min", "min"),
    ("minute", "min"),
    ("minutes", "min"),
    ("h", "h"),
    ("hr", "h"),
    ("hrs", "h"),
    ("hour", "h"),
    ("hours", "h"),
    ("day", "day"),
    ("days", "day"),
    ("week", "week"),
    ("weeks", "week"),
    ("month", "month"),
    ("months", "month"),
    ("year", "year"),
    ("years", "year"),
    ("g", "g"),
    ("gram", "g"),
    ("grams", "g"),
    ("kg", "kg"),
    ("kilogram", "kg"),
    ("kilograms", "kg"),
    ("lb", "lb"),
    ("lbs", "lb"),
    ("pound", "lb"),
    ("pounds", "lb"),
    ("oz", "oz"),
    ("ounce", "oz"),
    ("ounces", "oz"),
    ("cent", "cent"),
    ("cents", "cent"),
    ("dollar", "dollar"),
    ("dollars", "dollar"),
    ("usd", "dollar"),
    ("mph", "mph"),
    ("degree", "degree"),
    ("degrees", "degree"),
    ("deg", "degree"),
    ("radian", "radian"),
    ("radians", "radian"),
    ("rad", "radian"),
];

/// Words that may stand behind a number in plain text without being variables.
const PLAIN_UNITS: &[&str] = &[
    "mm",
    "cm",
    "km",
    "inch",
    "inches",
    "ft",
    "feet",
    "foot",
    "yard",
    "yards",
    "mile",
    "miles",
    "meter",
    "meters",
    "metre",
    "metres",
    "centimeters",
    "kilometers",
    "seconds",
    "second",
    "minutes",
    "minute",
    "hours",
    "hour",
    "days",
    "day",
    "weeks",
    "months",
    "years",
    "year",
    "grams",
    "kg",
    "pounds",
    "lbs",
    "cents",
    "cent",
    "dollars",
    "dollar",
    "mph",
    "degrees",
    "degree",
    "radians",
    "square",
    "sq",
    "cubic",
    "units",
    "unit",
    "percent",
    "people",
    "ways",
    "points",
    "students",
    "integers",
    "times",
    "solutions",
    "digits",
];

pub fn kind(run: &str) -> Kind {
    if let Some(name) = FUNCTIONS.iter().find(|name| **name == run) {
        return Kind::Function(name);
    }
    match run {
        "oo" | "inf" | "infinity" | "Infinity" => return Kind::Function("infty"),
        "asin" => return Kind::Function("arcsin"),
        "acos" => return Kind::Function("arccos"),
        "atan" => return Kind::Function("arctan"),
        _ => {}
    }
    let lower = run.to_ascii_lowercase();
    let known = WORDS.contains(&lower.as_str()) && (run.len() > 2 || lower == run || run != lower.to_ascii_uppercase());
    if known || PLAIN_UNITS.contains(&lower.as_str()) { Kind::Word } else { Kind::Unknown }
}

/// Whether the rest of a text is words and their punctuation only.
pub fn only_words(text: &str) -> bool {
    text.chars().all(|c| c.is_alphabetic() || c.is_whitespace() || ".,'’-!?".contains(c))
}

/// A unit in the one spelling it is compared by; `None` if it is not one of those that are compared.
pub fn unit(text: &str) -> Option<&'static str> {
    let word = text.trim().trim_end_matches('.').to_ascii_lowercase();
    UNITS.iter().find(|(name, _)| *name == word).map(|(_, unit)| *unit)
}

/// Commands with several names.
pub fn synonym(name: &str) -> &str {
    match name {
        "dfrac" | "tfrac" | "cfrac" | "nicefrac" | "sfrac" | "Frac" => "frac",
        "dbinom" | "tbinom" | "choose" => "binom",
        "leq" | "leqslant" | "leqq" => "le",
        "geq" | "geqslant" | "geqq" => "ge",
        "neq" => "ne",
        "lbrace" => "{",
        "rbrace" => "}",
        "lvert" | "rvert" | "vert" | "mid" => "vert",
        "Vert" | "lVert" | "rVert" | "parallel" => "|",
        "lbrack" => "[",
        "rbrack" => "]",
        "infin" | "infinity" => "infty",
        "varnothing" => "emptyset",
        "bigcup" | "bigcap" => name,
        "degree" | "degrees" => "degree",
        "backslash" | "smallsetminus" => "setminus",
        "ast" => "times",
        "rightarrow" | "longrightarrow" => "to",
        "tg" => "tan",
        "ctg" => "cot",
        "cosec" => "csc",
        "imath" => "i",
        "land" | "wedge" => "land",
        "lor" | "vee" => "lor",
        "dots" | "cdots" | "ldots" | "dotsc" | "dotsb" => "dots",
        "varphi" => "phi",
        "varepsilon" => "epsilon",
        _ => name,
    }
}

/// The command that a Unicode sign stands for.
pub fn unicode(c: char) -> Option<&'static str> {
    Some(match c {
        'π' => "pi",
        '∞' => "infty",
        '≤' | '⩽' => "le",
        '≥' | '⩾' => "ge",
        '≠' => "ne",
        '≡' => "equiv",
        '≈' => "approx",
        '±' => "pm",
        '∓' => "mp",
        '∪' => "cup",
        '∩' => "cap",
        '∈' => "in",
        '∅' => "emptyset",
        '→' => "to",
        '∖' => "setminus",
        '∠' => "angle",
        '△' => "triangle",
        'α' => "alpha",
        'β' => "beta",
        'γ' => "gamma",
        'δ' => "delta",
        'ε' => "epsilon",
        'θ' => "theta",
        'λ' => "lambda",
        'μ' => "mu",
        'ξ' => "xi",
        'ρ' => "rho",
        'σ' => "sigma",
        'τ' => "tau",
        'φ' | 'ϕ' => "phi",
        'ω' => "omega",
        'Δ' => "Delta",
        'Γ' => "Gamma",
        'Θ' => "Theta",
        'Ω' => "Omega",
        'ℝ' => "reals",
        '∘' => "circ",
        '⟨' => "langle",
        '⟩' => "rangle",
        '⌊' => "lfloor",
        '⌋' => "rfloor",
        '⌈' => "lceil",
        '⌉' => "rceil",
        '…' => "dots",
        _ => return None,
    })
}
