//! The released reference's text comparison: the last `\boxed{}`, normalised as the MATH benchmark's `strip_string`
//! does, against the gold answer normalised likewise. Kept as it is for comparability, its quirks included: where its
//! functions raise an error, the texts are compared as they stand. And the box that the other rules look for.

use super::Status;

/// Answers longer than this are compared without rewriting: nothing a person would write is.
const LONGEST: usize = 10_000;

/// The reference's box: what follows the last `\boxed ` up to the next `$`, if there is one anywhere; else the content of the
/// last `\boxed{...}`, which must be complete. It finds `\fbox{}` too, but then fails on it.
pub fn reference_box(text: &str) -> Option<&str> {
    if let Some((_, bare)) = text.rsplit_once("\\boxed ") {
        return bare.split('$').next();
    }
    let (_, rest) = text.rsplit_once("\\boxed")?;
    balanced(rest.strip_prefix('{')?)
}

/// Content of the last complete `\boxed{...}` or `\fbox{...}` (braces balanced), or what follows a last `\boxed ` up to
/// the next `$` or the end.
pub fn last_boxed(text: &str) -> Option<&str> {
    let (at, command) = ["\\boxed", "\\fbox"].iter().filter_map(|c| text.rfind(c).map(|at| (at, *c))).max()?;
    let rest = &text[at + command.len()..];
    if let Some(bare) = rest.strip_prefix(' ') {
        return Some(bare.split('$').next().unwrap_or(bare));
    }
    balanced(rest.strip_prefix('{')?)
}

/// Up to the brace that closes one before the text.
fn balanced(inner: &str) -> Option<&str> {
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

/// Correct if both texts are the same after [`normalize`], or as they stand if it fails on one of them.
pub fn compare(answer: &str, gold: &str) -> Status {
    let same = if answer.len() > LONGEST || gold.len() > LONGEST {
        answer.trim() == gold.trim()
    } else {
        match (normalize(answer), normalize(gold)) {
            (Some(a), Some(b)) => a == b,
            _ => answer == gold,
        }
    };
    if same { Status::Correct } else { Status::Wrong }
}

/// The MATH benchmark's `strip_string`; `None` where that raises an error.
pub fn normalize(text: &str) -> Option<String> {
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
    s = remove_right_units(&s)?;
    s = s.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if s.is_empty() {
        return Some(s);
    }
    if s.starts_with('.') {
        s.insert(0, '0');
    }
    // "x = 5", "k=3": a short left side is not part of the answer.
    if let Some((left, right)) = s.split_once('=')
        && left.chars().count() <= 2
        && !right.contains('=')
    {
        s = right.to_string();
    }
    s = fix_sqrt(&s)?.replace(' ', "");
    s = fix_fracs(&s)?;
    if s == "0.5" {
        s = "\\frac{1}{2}".to_string();
    }
    fix_slash(s)
}

/// Drops a unit written as text at the end: `5\text{ cm}` is 5. Two of them are an error.
fn remove_right_units(s: &str) -> Option<String> {
    let mut parts = s.split("\\text{ ");
    let number = parts.next()?;
    (parts.count() < 2).then(|| number.to_string())
}

/// `\sqrt3` is `\sqrt{3}`. An error at the end of the text.
fn fix_sqrt(s: &str) -> Option<String> {
    let mut parts = s.split("\\sqrt");
    let mut out = parts.next()?.to_string();
    for part in parts {
        out.push_str("\\sqrt");
        let mut chars = part.chars();
        match chars.next()? {
            '{' => out.push_str(part),
            c => {
                out.extend(['{', c, '}']);
                out.push_str(chars.as_str());
            }
        }
    }
    Some(out)
}

/// `\frac12` is `\frac{1}{2}`, `\frac1{72}` is `\frac{1}{72}`. With one argument only nothing is rewritten, and none is an
/// error.
fn fix_fracs(s: &str) -> Option<String> {
    let mut parts = s.split("\\frac");
    let mut out = parts.next()?.to_string();
    for part in parts {
        out.push_str("\\frac");
        let mut chars = part.chars();
        match (chars.next()?, chars.next()) {
            ('{', _) => out.push_str(part),
            (_, None) => return Some(s.to_string()),
            (a, Some(b)) => {
                out.extend(['{', a, '}']);
                if b == '{' {
                    out.push(b);
                } else {
                    out.extend(['{', b, '}']);
                }
                out.push_str(chars.as_str());
            }
        }
    }
    Some(out)
}

/// `a/b` of two plain integers is `\frac{a}{b}`. Anything but integers around a single slash is an error.
fn fix_slash(s: String) -> Option<String> {
    let Some((a, b)) = s.split_once('/').filter(|(_, b)| !b.contains('/')) else { return Some(s) };
    // Python's int() reads signs, spaces, leading zeros and underscores, but then the text is not the number's own.
    let digits = |t: &str| t.trim().trim_start_matches(['+', '-']).replace('_', "");
    let integer = |t: &str| !digits(t).is_empty() && digits(t).bytes().all(|b| b.is_ascii_digit());
    let plain = |t: &str| {
        let positive = t.strip_prefix('-').unwrap_or(t);
        positive.bytes().all(|b| b.is_ascii_digit()) && (t == "0" || !positive.starts_with('0'))
    };
    if !integer(a) || !integer(b) {
        return None;
    }
    let fraction = (plain(a) && plain(b)).then(|| format!("\\frac{{{a}}}{{{b}}}"));
    Some(fraction.unwrap_or(s))
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
    fn the_references_box_is_the_references() {
        for (text, expected) in [
            ("\\boxed{1} then \\boxed{\\frac{1}{2}}", Some("\\frac{1}{2}")),
            ("\\boxed{1} then \\fbox{2}", Some("1")),
            ("\\fbox{2}", None),
            ("\\boxed 7$ then \\boxed{5}", Some("7")),
            ("\\boxed{5} then \\boxed{6", None),
            ("\\boxed5 {6}", None),
            ("\\boxed {5}", Some("{5}")),
        ] {
            assert_eq!(reference_box(text), expected, "{text}");
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
            assert_eq!(compare(a, b), Status::Correct, "{a} {b}: {:?} {:?}", normalize(a), normalize(b));
        }
        for (a, b) in [
            ("1", "2"),
            ("0.50", "0.5"),
            ("2/4", "1/2"),
            ("x+y=5", "5"),
            ("1,000", "1000"),
            ("50%", "50"),
            ("x  = 5", "5"),
            // On these it raises errors.
            ("5\\text{ a}\\text{ b}", "5"),
            ("\\dfrac{x}{2}/y", "\\frac{x}{2}/y"),
            ("\\left(\\sqrt", "(\\sqrt"),
        ] {
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
