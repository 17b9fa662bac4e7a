//! Properties that hold for every answer, on generated ones.

use super::*;
use proptest::prelude::*;

fn status(gold: &str, answer: &str) -> Status {
    verify(gold, &format!("\\boxed{{{answer}}}"), &Settings::default()).status
}

/// Expressions of x, y, integers and roots, as LaTeX.
fn expressions() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        (1u32..40).prop_map(|n| n.to_string()),
        Just("x".to_string()),
        Just("y_{1}".to_string()),
        Just("\\pi".to_string()),
        (2u32..30).prop_map(|n| format!("\\sqrt{{{n}}}")),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) + ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) - ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) \\cdot ({b})")),
            (inner.clone(), 1u32..4).prop_map(|(a, n)| format!("({a})^{{{n}}}")),
            (inner.clone(), 2u32..9).prop_map(|(a, n)| format!("\\frac{{{a}}}{{{n}}}")),
        ]
    })
}

/// Pieces that answers are made of, put together at random.
fn soup() -> impl Strategy<Value = String> {
    let pieces = [
        "\\frac",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "\\{",
        "\\}",
        "^",
        "_",
        "1",
        "2",
        "99999999999",
        "x",
        "y",
        "e",
        "i",
        "\\pi",
        "\\infty",
        "+",
        "-",
        "\\pm",
        "*",
        "/",
        "!",
        "%",
        "=",
        "<",
        "\\le",
        ",",
        ";",
        ":",
        "|",
        "\\|",
        "\\sqrt",
        "\\sqrt[3]",
        "\\sin",
        "\\log_2",
        "\\ln",
        "\\binom",
        "\\text{cm}",
        "\\text{ and }",
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "&",
        "\\\\",
        "\\cup",
        "\\in",
        "\\setminus",
        "\\mathbb{R}",
        "\\circ",
        "\\pmod",
        ".",
        "0.5",
        "1,000",
        "'",
        "f",
        "\\sum",
        "\\lfloor",
        "\\rfloor",
        "$",
        " ",
        "\\left",
        "\\boxed",
        "\\overline{3}",
        "é",
        "²",
        "√",
        "\\",
        "10^{10^{10}}",
        "\\arcsin",
        "\\cos^{-1}",
        "\\gcd",
        "\\max",
        "0",
        "^{-1}",
        "\\mid",
    ];
    prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn an_expression_equals_itself_however_it_is_written(a in expressions(), b in expressions()) {
        for other in [a.clone(), format!("\\left( {a} \\right)"), format!("0 + {a}"), format!("\\frac{{3 ({a})}}{{3}}"), format!("-(-({a}))")] {
            prop_assert_eq!(status(&a, &other), Status::Correct, "{} {}", a, other);
        }
        let (sum, turned) = (format!("({a}) + ({b})"), format!("({b}) + ({a})"));
        prop_assert_eq!(status(&sum, &turned), Status::Correct, "{} {}", sum, turned);
        let (product, expanded) = (format!("({a}) ({b} - 7)"), format!("({a}) ({b}) - 7 ({a})"));
        prop_assert_eq!(status(&product, &expanded), Status::Correct, "{} {}", product, expanded);
    }

    #[test]
    fn a_changed_expression_is_another(a in expressions(), n in 1u32..1000) {
        let changed = format!("{a} + \\frac{{{n}}}{{1000000}}");
        prop_assert_eq!(status(&a, &changed), Status::Wrong, "{} {}", a, changed);
    }

    #[test]
    fn equality_is_symmetric(a in expressions(), b in expressions()) {
        prop_assert_eq!(status(&a, &b), status(&b, &a));
    }

    #[test]
    fn fractions_equal_their_values_only(top in -5000i64..5000, bottom in 1i64..400, k in 1i64..9) {
        let gold = format!("\\frac{{{top}}}{{{bottom}}}");
        prop_assert_eq!(status(&gold, &format!("{}/{}", top * k, bottom * k)), Status::Correct);
        prop_assert_eq!(status(&gold, &format!("{:.9}", top as f64 / bottom as f64)), Status::Correct);
        prop_assert_eq!(status(&gold, &format!("{}/{}", top + 1, bottom)), Status::Wrong);
        prop_assert_eq!(status(&gold, &format!("{:.9}", (top as f64 + 1e-3) / bottom as f64)), Status::Wrong);
    }

    #[test]
    fn sets_have_no_order_and_points_have(mut numbers in prop::collection::vec(-50i64..50, 2..6)) {
        let joined = |n: &[i64]| n.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        let given = joined(&numbers);
        let original = numbers.clone();
        numbers.reverse();
        let turned = joined(&numbers);
        prop_assert_eq!(status(&format!("\\{{{given}\\}}"), &format!("\\{{{turned}\\}}")), Status::Correct);
        prop_assert_eq!(status(&given, &turned), Status::Correct);
        let expected = if original == numbers { Status::Correct } else { Status::Wrong };
        prop_assert_eq!(status(&format!("({given})"), &format!("({turned})")), expected);
    }

    #[test]
    fn nothing_panics_on_soup(a in soup(), b in soup()) {
        verify(&a, &b, &Settings::default());
        verify(&a, &format!("\\boxed{{{b}}}"), &Settings::default());
    }

    #[test]
    fn nothing_panics_on_any_text(a in "\\PC{0,80}", b in "\\PC{0,80}") {
        verify(&a, &b, &Settings::default());
        verify(&a, &format!("\\boxed{{{b}}} the answer is {a}"), &Settings::default());
    }

    #[test]
    fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let text = String::from_utf8_lossy(&bytes);
        verify("\\frac{1}{2}", &text, &Settings::default());
        verify(&text, "\\boxed{1}", &Settings::default());
    }
}
