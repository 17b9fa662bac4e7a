//! The released reference's text comparison: the last `\boxed{}`, normalised as the MATH benchmark's `strip_string`
//! does, against the gold answer normalised likewise. Kept as it is for comparability, its quirks included.

use super::Status;

/// Answers longer than this are compared without rewriting: nothing a person would write is.
const LONGEST: usize = 10_000;

/// Content of the last complete `\boxed{...}` or `\fbox{...}` (braces balanced), or what follows a last `\boxed ` up to
/// the next `$` or the end.
pub fn last_boxed(text: &str) -> Option<&str> {
    let (at, command) = ["\\boxed", "\\fbox"].iter().filter_map(|c| text.rfind(c).map(|at| (at, *c))).max()?;
    let rest = &text[at + command.len()..];
    if let Some(bare) = rest.strip_prefix(' ') {
        return Some(bare.split('$').next().unwrap_or(bare));
    }
    let inner = rest.strip_prefix('{')?;
    let mut depth = 1usize;
    for (i, b) in inner.bytes().enumerate() {
        match b {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return Some(&inner[..i]);
        }
    }
    None
}

/// Correct if both texts are the same after [`normalize`].
pub fn compare(answer: &str, gold: &str) -> Status {
    let same = if answer.len() > LONGEST || gold.len() > LONGEST {
        answer.trim() == gold.trim()
    } else {
        normalize(answer) == normalize(gold)
    };
    if same { Status::Correct } else { Status::Wrong }
}

/// The MATH benchmark's `strip_string`.
pub fn normalize(text: &str) -> String {
    let mut s = text.replace('\n', "").replace("\\!", "").replace("\\\\", "\\");
    for (from, to) in [
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ] {
        s = s.replace(from, to);
    }
    s = remove_right_units(&s);
    s = s.replace("\\%", "").replace('%', "").replace(" .", " 0.").replace("{.", "{0.");
    if s.is_empty() {
        return s;
    }
    if s.starts_with('.') {
        s.insert(0, '0');
    }
    // "x = 5", "k=3": a short left side is not part of the answer.
    if let Some((left, right)) = s.split_once('=')
        && left.trim_end().chars().count() <= 2
        && !right.contains('=')
    {
        s = right.to_string();
    }
    s = fix_sqrt(&s).replace(' ', "");
    s = fix_fracs(&s);
    if s == "0.5" {
        s = "\\frac{1}{2}".to_string();
    }
    fix_slash(&s)
}

/// Drops a unit written as text at the end: `5\text{ cm}` is 5.
fn remove_right_units(s: &str) -> String {
    s.split_once("\\text{ ").map_or(s, |(number, _)| number).to_string()
}

/// `\sqrt3` is `\sqrt{3}`.
fn fix_sqrt(s: &str) -> String {
    let mut parts = s.split("\\sqrt");
    let mut out = parts.next().unwrap_or("").to_string();
    for part in parts {
        out.push_str("\\sqrt");
        let mut chars = part.chars();
        match chars.next() {
            Some(c) if c != '{' => {
                out.extend(['{', c, '}']);
                out.push_str(chars.as_str());
            }
            _ => out.push_str(part),
        }
    }
    out
}

/// `\frac12` is `\frac{1}{2}`, `\frac1{72}` is `\frac{1}{72}`.
fn fix_fracs(s: &str) -> String {
    let mut parts = s.split("\\frac");
    let mut out = parts.next().unwrap_or("").to_string();
    for part in parts {
        out.push_str("\\frac");
        let mut chars = part.chars();
        match (chars.next(), chars.next()) {
            (Some(a), Some(b)) if a != '{' => {
                out.extend(['{', a, '}']);
                if b == '{' {
                    out.push(b);
                } else {
                    out.extend(['{', b, '}']);
                }
                out.push_str(chars.as_str());
            }
            _ => out.push_str(part),
        }
    }
    out
}

/// `a/b` of two plain integers is `\frac{a}{b}`.
fn fix_slash(s: &str) -> String {
    let Some((a, b)) = s.split_once('/') else { return s.to_string() };
    let integer = |t: &str| t.parse::<i64>().is_ok_and(|n| n.to_string() == t);
    if integer(a) && integer(b) { format!("\\frac{{{a}}}{{{b}}}") } else { s.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_balanced_box_is_found() {
        for (text, expected) in [
            ("\\boxed{1} then \\boxed{\\frac{1}{2}}", Some("\\frac{1}{2}")),
            ("\\fbox{a}", Some("a")),
            ("$\\boxed 5$ done", Some("5")),
            ("\\boxed{}", Some("")),
            ("\\boxed{1", None),
            ("\\boxed", None),
            ("none", None),
            ("\\boxed{é{ü}}", Some("é{ü}")),
        ] {
            assert_eq!(last_boxed(text), expected, "{text}");
        }
    }

    #[test]
    fn what_the_benchmark_takes_for_equal() {
        for (a, b) in [
            ("\\dfrac{1}{2}", "\\frac12"),
            ("0.5", "\\frac{1}{2}"),
            ("1/2", "\\frac{1}{2}"),
            ("\\sqrt3", "\\sqrt{3}"),
            ("x = 5", "5"),
            ("90^{\\circ}", "90"),
            ("\\$12", "12"),
            ("50\\%", "50"),
            ("5\\text{ cm}", "5"),
            ("\\left( 1, 2 \\right)", "(1,2)"),
            (".25", "0.25"),
            ("\\frac1{72}", "\\frac{1}{72}"),
        ] {
            assert_eq!(compare(a, b), Status::Correct, "{a} {b}: {} {}", normalize(a), normalize(b));
        }
        for (a, b) in [("1", "2"), ("0.50", "0.5"), ("2/4", "1/2"), ("x+y=5", "5"), ("1,000", "1000")] {
            assert_eq!(compare(a, b), Status::Wrong, "{a} {b}");
        }
    }

    #[test]
    fn odd_fragments_stay_whole() {
        for text in ["\\frac", "\\frac1", "\\sqrt", "/", "a/b/c", "=", "1=", "\\frac{", "\\text{ "] {
            assert_eq!(compare(text, text), Status::Correct, "{text}");
        }
    }
}
