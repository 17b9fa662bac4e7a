use super::*;
use crate::verify::Status;

fn judge(gold: &str, answer: &str) -> Verdict {
    verify(gold, &format!("So \\boxed{{{answer}}}."), &Settings::default())
}

fn check(pairs: &[(&str, &str)], expected: Status) {
    let wrong: Vec<String> = pairs
        .iter()
        .map(|(gold, answer)| (gold, answer, judge(gold, answer)))
        .filter(|(_, _, verdict)| verdict.status != expected)
        .map(|(gold, answer, verdict)| format!("{gold}   {answer}   {:?} by {:?}", verdict.status, verdict.rule))
        .collect();
    assert!(wrong.is_empty(), "not {expected:?}:\n{}", wrong.join("\n"));
}

fn equal(pairs: &[(&str, &str)]) {
    check(pairs, Status::Correct);
    let turned: Vec<(&str, &str)> = pairs.iter().map(|(a, b)| (*b, *a)).collect();
    check(&turned, Status::Correct);
}

fn different(pairs: &[(&str, &str)]) {
    check(pairs, Status::Wrong);
    let turned: Vec<(&str, &str)> = pairs.iter().map(|(a, b)| (*b, *a)).collect();
    check(&turned, Status::Wrong);
}

#[test]
fn numbers() {
    equal(&[
        ("1", "1.0"),
        ("\\frac12", "0.5"),
        ("\\dfrac{1}{2}", "1/2"),
        ("\\frac 59", "\\tfrac{5}{9}"),
        ("\\frac9{19}", "9/19"),
        ("\\frac{270}7\\text{ degrees}", "\\frac{270}{7}"),
        (".0000672", "6.72\\times10^{-5}"),
        ("1.5e-3", "0.0015"),
        ("10,\\!080", "10080"),
        ("11,\\! 111,\\! 111,\\! 100", "11111111100"),
        ("58,500", "58500"),
        ("335{,}670", "335670"),
        ("\\$32,\\!348", "32348"),
        ("\\$18.90", "18.9"),
        ("1\\frac{4}{5}", "\\frac95"),
        ("137 \\frac{1}{2}", "137.5"),
        ("3 1/2", "\\frac{7}{2}"),
        ("-3\\frac12", "-3.5"),
        ("50\\%", "50"),
        ("50\\%", "0.5"),
        ("5.10\\%", "5.1\\%"),
        ("0.\\overline{3}", "\\frac13"),
        ("0.1\\overline{6}", "1/6"),
        ("0.\\bar{3}", "\\frac13"),
        ("33\\frac{1}{3}\\%", "\\frac{100}{3}\\%"),
        ("12\\frac12\\%", "12.5\\%"),
        ("12 1/2\\%", "\\frac18"),
        ("3\\frac12^2", "\\frac34"),
        ("{3 \\over 4}", "\\frac34"),
        ("3 \\over 4", "0.75"),
        ("{5 \\choose 2}", "10"),
        ("2^{10}", "1024"),
        ("2^10", "1024"),
        ("5!", "120"),
        ("\\binom{6}{2}", "15"),
        ("\\dbinom{63}{16}", "\\frac{63!}{16!47!}"),
        ("\\sqrt{49}", "7"),
        ("\\sqrt[3]{-8}", "-2"),
        ("-\\frac{35}{9}", "\\frac{-35}{9}"),
        ("-\\frac{35}{9}", "\\frac{35}{-9}"),
        ("½", "\\frac12"),
        ("−5", "-5"),
        ("½", "0.5"),
        ("52_8", "52"),
        ("4210_{5}", "4210_5"),
        ("\\gcd(12, 18)", "6"),
        ("\\max\\{3, 7\\}", "7"),
        ("|{-3}|", "3"),
        ("\\lfloor 3.7 \\rfloor", "3"),
        ("1,234,567", "1234567"),
        ("(150!)^{149}", "(150!)^{148}\\cdot 150!"),
        ("10^{10^{100}}", "10^{10^{100}}"),
        ("10^{10^{100}}", "10\\cdot 10^{10^{100}-1}"),
    ]);
    different(&[
        ("1", "2"),
        ("\\frac13", "0.333"),
        ("0.5", "0.05"),
        ("50\\%", "0.05"),
        ("50\\%", "5"),
        ("5\\%\\%", "5"),
        ("1234", "1, 234"),
        ("1,234", "1, 234"),
        ("(1,234)", "1234"),
        ("2^{4033}", "2^{4033}+1"),
        ("10^{10^{100}}", "10^{10^{100}}+1"),
        ("101! - 1", "101!"),
        ("3\\frac12", "\\frac32"),
        ("52_8", "42"),
        ("52_8", "52_7"),
        ("203.9999999", "204"),
        ("0", "10^{-9}"),
        ("1", "1.00000001"),
        ("5\\text{ cm}", "5\\text{ m}"),
        ("15\\mbox{ cm}^2", "15\\text{ cm}"),
        ("-1", "1"),
        ("5\\text{ p.m.}", "5\\text{ a.m.}"),
    ]);
}

#[test]
fn a_decimal_counts_to_its_own_digits() {
    equal(&[
        ("\\frac13", "0.333333"),
        ("\\frac23", "0.6666667"),
        ("\\frac1{30}", "0.033333"),
        ("0.333333", "0.33333333"),
        ("\\pi", "3.141593"),
        ("\\sqrt2", "1.41421356"),
        ("e", "2.718282"),
        ("1000\\pi", "3141.592654"),
        ("\\sqrt2", "1.41421356237309504880168872420969807856967187537694807317667973799"),
        ("(\\frac13, 1)", "(0.333333, 1)"),
    ]);
    different(&[
        ("\\frac13", "0.33333"),
        ("\\frac13", "0.333334"),
        ("\\frac23", "0.666666"),
        ("\\pi", "3.14"),
        ("\\pi", "3.141592"),
        ("\\sqrt2", "1.41421356237309504880168872420969807856967187537694807317667973798"),
        ("\\pi", "22/7"),
        ("3.14", "3.14159"),
        ("0.000001", "\\frac1{1500000}"),
        ("\\frac{1}{1500000}", "0.000001"),
    ]);
}

#[test]
fn roots_logs_and_trigonometry() {
    equal(&[
        ("\\sqrt{3+2\\sqrt2}", "1+\\sqrt2"),
        ("3\\sqrt{13}", "\\sqrt{117}"),
        ("11\\sqrt2", "11 \\sqrt{2}"),
        ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt3}"),
        ("\\frac{\\sqrt[3]{4}}{6}", "\\frac{2^{2/3}}{6}"),
        ("\\sqrt{13}", "\\sqrt13"),
        ("\\frac{\\log 8}{\\log 2}", "3"),
        ("\\log_2 8", "3"),
        ("\\log_{10} 3", "\\log 3"),
        ("\\ln 8", "3\\ln 2"),
        ("\\ln 2 - 1", "\\ln\\frac{2}{e}"),
        ("\\sin\\frac{\\pi}{6}", "\\frac12"),
        ("\\sin 30^\\circ", "0.5"),
        ("\\cos 36^\\circ", "\\frac{1+\\sqrt5}{4}"),
        ("\\tan x", "\\frac{\\sin x}{\\cos x}"),
        ("\\cot x", "\\frac{1}{\\tan x}"),
        ("\\sin^2 x + \\cos^2 x", "1"),
        ("\\sin 2x", "2\\sin x\\cos x"),
        ("\\cosh(1)", "\\frac{e+e^{-1}}{2}"),
        ("\\arctan 1", "\\frac{\\pi}{4}"),
        ("\\sin^{-1}(1)", "\\pi/2"),
        ("e^{\\frac{4}{7}}", "e^{4/7}"),
        ("\\dfrac{1}{4e}", "\\frac{e^{-1}}{4}"),
        ("\\exp(2)", "e^2"),
        ("e^{i\\pi}", "-1"),
        ("2^{-\\frac{1}{3}}", "\\frac{1}{\\sqrt[3]{2}}"),
        ("3^{-243}", "\\frac{1}{3^{243}}"),
        ("\\frac{5}{3}\\pi - 2\\sqrt{3}", "\\frac{5\\pi-6\\sqrt3}{3}"),
        ("\\dfrac{\\sinh(\\pi)}{\\pi}", "\\frac{e^\\pi-e^{-\\pi}}{2\\pi}"),
        ("90^\\circ", "90"),
        ("90^{\\circ}", "90°"),
        ("80^{\\circ}", "80 degrees"),
        ("12\\sqrt 3", "12 * sqrt(3)"),
        ("\\sqrt{2}+\\sqrt{3}", "\\sqrt{5+2\\sqrt{6}}"),
    ]);
    different(&[
        ("\\sqrt2", "\\sqrt3"),
        ("\\ln 3", "\\log 3"),
        ("90^\\circ", "\\frac{\\pi}{2}"),
        ("e^{\\pi\\sqrt{163}}", "262537412640768744"),
        ("\\sin 1", "\\sin 1^\\circ"),
        ("\\sqrt{2}+\\sqrt{3}", "\\sqrt{5}"),
        ("\\sqrt{x^2}", "x"),
        ("\\frac{355}{113}", "\\pi"),
    ]);
}

#[test]
fn expressions_of_variables() {
    equal(&[
        ("(a+5)(b+2)", "ab+2a+5b+10"),
        ("p - q", "-(q-p)"),
        ("x^3+3x-6", "-6+3x+x^3"),
        ("\\frac{11+9a}{20}", "\\frac{11}{20}+\\frac{9a}{20}"),
        ("\\frac1x", "x^{-1}"),
        ("\\frac{x^2-1}{x-1}", "x+1"),
        ("2^{n+1} - 1", "2\\cdot 2^n-1"),
        ("3 \\cdot 4^{n-1}", "\\frac{3}{4}4^n"),
        ("x^{n+1}", "x \\cdot x^n"),
        ("(n-1)!", "\\frac{n!}{n}"),
        ("(n-1)!", "\\Gamma(n)"),
        ("\\mu + \\rho", "rho + mu"),
        ("\\dbinom{2n}{n}", "\\frac{(2n)!}{n!n!}"),
        ("(x+y)^{1000}", "(y+x)^{1000}"),
        ("\\theta", "θ"),
        ("x_1+x_2", "x_{2}+x_{1}"),
        ("e^{-t^2/2}", "\\exp\\left(-\\frac{t^2}{2}\\right)"),
        ("(x + 2)e^x", "xe^x+2e^x"),
        ("6r^2-4r-24", "2(3r^2-2r-12)"),
        ("|x-y|", "|y-x|"),
        ("\\sqrt{p^2}", "|p|"),
        ("f(x)+1", "1+f(x)"),
        ("2\\pi i z_0", "2 z_0 \\pi i"),
        ("\\dfrac{x}{2}", "0.5x"),
        ("2abc", "2cba"),
    ]);
    different(&[
        ("x+1", "y+1"),
        ("x+1", "x+2"),
        ("n", "N"),
        ("f(x+1)", "f(x)+f(1)"),
        ("(x+y)^{1000}", "(x+y)^{999}"),
        ("2^n", "n^2"),
        ("x+C", "x"),
        ("-\\cos x + C", "-\\cos x+K"),
        ("x_1", "x_2"),
        ("QQ^T", "Q^TQ"),
        ("\\sqrt{ab}", "\\sqrt a\\sqrt b"),
        ("\\ln x^2", "2\\ln x"),
        ("x", "-x"),
    ]);
}

#[test]
fn cases_are_told_apart_wherever_they_differ() {
    different(&[
        ("\\left\\lfloor \\frac{n^2}{4} \\right\\rfloor", "0"),
        ("\\left\\lceil \\frac{3n}{2} \\right\\rceil", "\\lceil n \\rceil"),
        ("\\lfloor n/2 \\rfloor", "\\lfloor n/1000 \\rfloor"),
        ("|x-3|", "3-x"),
        ("|x+5|", "x+5"),
        ("|6-2n|", "6-2n"),
        ("|x-10|+|x+10|", "20"),
        ("\\sqrt{(x-2)^2}", "2-x"),
        ("\\ln|x-3|", "\\ln(3-x)"),
        ("\\max\\{2, n\\}", "2"),
        ("\\min(n, 5)", "n"),
        ("\\max(n, 2026)", "2026"),
        ("\\max(a, b, c, d)", "\\max(a, b, c)"),
        ("\\arcsin(\\sin x)", "x"),
        ("\\arctan(\\tan x)", "x"),
        ("f(x)", "|f(x)|"),
        ("e^{-n}", "e^{-n} + 10^{-45}"),
        ("\\tanh(1000x)", "\\tanh(2000x)"),
        ("e^{1000}", "e^{1000}+1"),
    ]);
    // Where large points have no values, those near zero decide.
    equal(&[
        ("|x-3|", "|3-x|"),
        ("\\max(a, b)", "\\frac{a+b+|a-b|}{2}"),
        ("e^{e^x}", "e^{e^{2x}e^{-x}}"),
        ("e^{-x^2}\\cos x", "\\frac{\\cos x}{e^{x^2}}"),
        ("\\sin(\\arcsin x)", "x"),
        ("\\arccos(x+y)", "\\arccos(y+x)"),
        ("2^{2^n}", "2^{4^{n/2}}"),
        ("n^n", "n \\cdot n^{n-1}"),
        ("\\frac{(2n)!}{n!}", "n!\\binom{2n}{n}"),
        ("\\lfloor \\ln x^2 \\rfloor", "\\lfloor 2\\ln|x| \\rfloor"),
    ]);
}

#[test]
fn complex_numbers() {
    equal(&[
        ("6 - 5i", "-5i+6"),
        ("(1+i)^2", "2i"),
        ("\\frac{1}{i}", "-i"),
        ("-\\frac{1}{2} + \\frac{\\sqrt{3}}{2}i", "e^{2\\pi i/3}"),
        ("|3+4i|", "5"),
        ("\\sqrt{-4}", "2i"),
        ("i^{2026}", "-1"),
        ("|z-i| < \\sqrt2", "|i-z| < \\sqrt2"),
        ("\\Re(z) + i\\Im(z)", "z"),
        ("\\Re(x+iy)", "x"),
        ("|a+bi|", "\\sqrt{a^2+b^2}"),
        ("|x|+|y|+|z|", "\\sqrt{z^2} + |x| + |y|"),
    ]);
    different(&[
        ("2+3i", "3+2i"),
        ("i", "-i"),
        ("2i", "2"),
        ("|z-i| < \\sqrt2", "|z+i| < \\sqrt2"),
        ("|z-i| = 1", "|z+i| = 1"),
        ("\\Im(z)", "0"),
        ("\\Re(\\lambda)", "\\lambda"),
        ("|z|^2", "z^2"),
        ("|z|^2 = 1", "z^2 = 1"),
    ]);
}

#[test]
fn equations() {
    equal(&[
        ("x=5", "5"),
        ("x=5", "x = 5.0"),
        ("5", "5 = x"),
        ("y = 2x + 3", "2x - y + 3 = 0"),
        ("y = \\frac{1}{2}x", "x = 2y"),
        ("y = 2x + 3", "2x+3"),
        ("f(x) = x + 1", "x+1"),
        ("f(x) = x + 1", "f(x) = 1 + x"),
        ("5x - 7y + 11z + 4 = 0", "10x-14y+22z+8=0"),
        ("AB=12+12\\sqrt{3}", "12(1+\\sqrt3)"),
        ("5", "2+3=5"),
        ("x = \\frac13", "x=\\frac13\\approx 0.33"),
        ("x^2+y^2=1", "1 = y^2+x^2"),
        ("c \\neq 0", "c \\ne 0"),
    ]);
    different(&[
        ("x=5", "y=5"),
        ("x=5", "6"),
        ("2x+1=5", "5"),
        ("5", "2+4=5"),
        ("AB = BA", "CD = DC"),
        ("y=2x", "y=3x"),
        ("x=0", "x^2=0"),
    ]);
}

#[test]
fn what_an_answer_describes_is_its_value() {
    for (gold, answer) in [
        ("73", "m+n = 73"),
        ("7", "a+b+c=7"),
        ("73", "m + n = 70 + 3 = 73"),
        ("10", "x-y = 10"),
        ("5", "|z| = 5"),
        ("7", "x^2+y^2 = 7"),
        ("\\frac34", "\\tan\\theta = \\frac34"),
        ("\\frac12", "\\frac{AB}{CD} = 0.5"),
        ("5", "\\sqrt{ab} = 5"),
        ("10", "S(3) = 10"),
        ("12", "\\text{Area} = 12 \\text{ cm}^2"),
        ("12", "Area = 12"),
        ("3.14", "x \\approx 3.14"),
    ] {
        assert_eq!(judge(gold, answer).status, Status::Correct, "{gold} {answer}");
    }
    assert_eq!(judge("\\text{Area} = 12", "12").status, Status::Correct);
    for (gold, answer) in [
        ("5", "2x+1 = 5"),
        ("5", "x+1 = 5"),
        ("5", "m+n = 6 = 5"),
        ("6", "x = 5 = 6"),
        ("5", "m+n > 5"),
        ("5", "m+n \\ne 5"),
        ("m", "m+n = m"),
        ("5", "x+y = 6"),
        ("\\pi", "x \\approx 3.14"),
        // A circle is not its right side.
        ("x^2+y^2=7", "7"),
        ("5", "\\text{not} = 5"),
        ("2", "e^x = 2"),
    ] {
        assert_ne!(judge(gold, answer).status, Status::Correct, "{gold} {answer}");
    }
}

#[test]
fn intervals_and_inequalities() {
    equal(&[
        ("(3,4]", "3 < x \\le 4"),
        ("x > 1", "1 < x"),
        ("x > 1", "(1, \\infty)"),
        ("x \\in [-2,7]", "[-2,7]"),
        ("[-2,7]", "-2 \\leq x \\leq 7"),
        ("(0,9) \\cup (9,36)", "(9,36)\\cup(0,9)"),
        ("(-\\infty, 2) \\cup (3, \\infty)", "x<2 \\text{ or } x>3"),
        ("(-\\infty, 2) \\cup (3, \\infty)", "(-inf, 2) U (3, inf)"),
        ("\\mathbb{R} \\setminus \\{0\\}", "(-\\infty,0)\\cup(0,\\infty)"),
        ("(-\\infty,\\infty)", "\\mathbb{R}"),
        ("2x > 4", "x > 2"),
        ("-x < 1", "x > -1"),
        ("a^2 + 4b^2 < 4", "4 > 4b^2 + a^2"),
        ("2 \\leq n \\leq 43", "43 \\ge n \\ge 2"),
        ("\\left[ \\frac{\\pi^2}{8}, \\frac{5 \\pi^2}{4} \\right]", "[\\pi^2/8, 5\\pi^2/4]"),
        ("(-\\infty, 0]", "x \\le 0"),
        ("n \\geq 23", "23 \\le n"),
        ("[1,3]", "[1,2]\\cup[2,3]"),
        ("(1,3)", "(1,2)\\cup[2,3)"),
        ("(-\\infty,\\infty)", "(-\\infty,\\sqrt2]\\cup[1,\\infty)"),
        ("[0,2)", "\\{0\\}\\cup(0,1]\\cup(\\frac12,2)"),
        ("(-\\infty,1]\\cup[3,\\infty)", "x \\le 0 \\text{ or } 0 \\le x \\le 1 \\text{ or } x \\ge 3"),
    ]);
    different(&[
        ("(1,2)", "[1,2]"),
        ("(1,2]", "[1,2)"),
        ("x > 1", "x \\ge 1"),
        ("x > 1", "y > 1"),
        ("-x < 1", "x < -1"),
        ("x > 1", "x < 1"),
        ("(0,9) \\cup (9,36)", "(0,36)"),
        ("[1,3]", "[1,2]\\cup(2,3)"),
        ("[1,3]", "[1,2]\\cup[2.0000000001,3]"),
        ("[1,3]", "[1,2]\\cup[2+10^{-30},3]"),
        ("[1,3]", "[1,1.4142]\\cup[\\sqrt2,3]"),
        ("x>1", "1"),
        ("x>1 \\text{ and } x<3", "x>1 \\text{ or } x<3"),
    ]);
}

#[test]
fn several_values() {
    equal(&[
        ("1,-2", "-2, 1"),
        ("3, 5, 7", "3,5,7"),
        ("3, 5, 7", "7, 5 \\text{ and } 3"),
        ("1 \\pm \\sqrt{19}", "1+\\sqrt{19}, 1-\\sqrt{19}"),
        ("\\{1\\pm\\sqrt{5},-2\\}", "\\{-2, 1+\\sqrt5, 1-\\sqrt5\\}"),
        ("\\pm 1", "1, -1"),
        ("\\{1, -1\\}", "-1, 1"),
        ("\\{0\\}", "0"),
        ("\\{1, 1, 2\\}", "\\{2, 1\\}"),
        ("x = 1 \\text{ or } x = 2", "2, 1"),
        ("0,\\tfrac32, 2i, -2i", "-2i,2i,1.5,0"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, 0.5\\pi)"),
        ("(6,31,-1)", "6, 31, -1"),
        ("(6,31,-1)", "\\langle 6, 31, -1\\rangle"),
        ("(x,y) = (1,2)", "(1,2)"),
        ("(1,2)", "x=1, y=2"),
        ("(1,2)", "y=2, x=1"),
        ("x=1, y=2", "1, 2"),
        ("x_1=1, x_2=2", "2, 1"),
        (
            "\\begin{pmatrix} -1/3 \\\\ 2/3 \\\\ 5/3 \\end{pmatrix}",
            "\\begin{bmatrix} -\\frac13 \\\\ \\frac23 \\\\ \\frac53 \\end{bmatrix}",
        ),
        ("\\begin{pmatrix} -2 \\\\ -14 \\\\ -7 \\end{pmatrix}", "(-2,-14,-7)"),
        (
            "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
            "\\left[\\begin{array}{cc} 1 & 2 \\\\ 3 & 4 \\\\ \\end{array}\\right]",
        ),
        ("\\frac12\\begin{pmatrix} 2 \\\\ 4 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("9:7", "18:14"),
        ("9:7", "\\frac97"),
        ("\\emptyset", "\\{\\}"),
    ]);
    different(&[
        ("(1,2)", "(2,1)"),
        ("(1,2)", "y=1, x=2"),
        ("x=1, y=2", "2, 1"),
        ("\\{1,2\\}", "(1,2)"),
        ("1, 2", "1, 2, 3"),
        ("1, 2", "1"),
        ("1, 2, 2", "1, 1, 2"),
        ("\\{1,2\\}", "\\{1,3\\}"),
        ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\begin{pmatrix} 1 & 3 \\\\ 2 & 4 \\end{pmatrix}"),
        ("\\begin{pmatrix} 1 & 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("9:7", "7:9"),
        ("1 \\pm \\sqrt{19}", "1 + \\sqrt{19}"),
        ("(1,2,3)", "(1,2)"),
    ]);
}

#[test]
fn words_letters_and_modular_answers() {
    equal(&[
        ("\\text{Evelyn}", "Evelyn"),
        ("\\text{Evelyn}", "evelyn"),
        ("\\text{even}", "\\mathrm{Even}"),
        ("Yes", "\\text{yes}"),
        ("\\text{(C)}", "C"),
        ("C", "(C)"),
        ("\\text{(C)}", "\\textbf{(C)}"),
        ("Less than 2", "\\text{less than 2}"),
        ("\\infty", "+\\infty"),
        ("-\\infty", "-\\infty"),
        ("3", "3 \\pmod{7}"),
        ("x \\equiv 3 \\pmod{7}", "x \\equiv 10 \\pmod 7"),
        ("864 \\mbox{ inches}^2", "864"),
        ("5.4 \\text{ cents}", "5.4"),
        ("18 \\text{ integers}", "18"),
        ("164 \\pi \\mbox{ square feet}", "164\\pi"),
        ("15\\mbox{ cm}^2", "15 \\text{ square centimeters}"),
        ("A^T", "A^{T}"),
        ("10", "10 \\mathrm{~cm}"),
        ("9.8", "9.8\\ \\mathrm{m/s^2}"),
        ("7", "7^{\\text{th}}"),
        ("3.14", "\\approx 3.14"),
        ("\\lg 100", "2"),
        ("2\\pi k", "2k\\pi, k \\in \\mathbb{Z}"),
        ("-1 < x < 1", "|x| < 1"),
        ("A", "\\text{Option A}"),
        ("10", "10 \\mathrm{~m}"),
        ("10", "10\\text{ m/s}"),
        ("2^3 3^2", "72"),
    ]);
    check(&[("C", "\\textbf{(C)}\\ 12")], Status::Correct);
    for answer in ["(A), (B), (C), (D)", "(A) or (B)", "A. B. C. D.", "(A)^2", "\\text{(A)}=0"] {
        assert_ne!(judge("A", answer).status, Status::Correct, "{answer}");
    }
    different(&[
        ("\\text{tea}", "\\text{eat}"),
        ("Yes", "No"),
        ("C", "D"),
        ("\\text{(C)}", "B"),
        ("\\infty", "-\\infty"),
        ("\\infty", "5"),
        ("3 \\pmod{7}", "3 \\pmod{8}"),
        ("x \\equiv 3 \\pmod{7}", "x \\equiv 4 \\pmod 7"),
        ("\\text{even}", "\\text{odd}"),
        ("AB", "ab"),
        ("ii", "-1"),
        ("|z| < 1", "(-1, 1)"),
        ("(0:1)", "0"),
        ("E[XY]", "E[X]Y"),
        ("5", "\\text{five}"),
    ]);
}

#[test]
fn words_that_change_a_value_are_no_unit() {
    for answer in [
        "5 \\text{ million}",
        "5 \\text{ or more}",
        "5 \\text{ base } 8",
        "5 \\text{ tenths}",
        "5 \\text{ 6 7}",
        "5 \\text{ millions}",
        "5 \\text{ pi}",
        "5\\text{i}",
        "5\\text{ but it could be 6}",
        "5 \\text{ if } n > 2",
        "5 million",
        "5 or more",
    ] {
        assert_ne!(judge("5", answer).status, Status::Correct, "{answer}");
    }
}

#[test]
fn malformed_latex() {
    equal(&[
        ("\\frac{1}{2}", "\\\\frac{1}{2}"),
        ("\\frac{1}{2}", "\\left(\\frac12\\right)"),
        ("x^2", "x²"),
        ("\\sqrt{2}", "√2"),
        ("\\frac{1}{2}", "$\\frac{1}{2}$"),
        ("2\\pi", "2π"),
        ("5", "5."),
        ("5", "{5}"),
        ("12", "\\text{12}"),
        ("12", "\\mathbf{12}"),
        ("x \\le 3", "x <= 3"),
        ("3", "3\\,"),
        ("12", "12\\hspace{1cm}"),
        ("12", "\\phantom{1}12"),
        ("12", "\\color{red}12"),
        ("12", "\\textcolor{red}{12}"),
    ]);
    assert_ne!(judge("5", "\\phantom{5}").status, Status::Correct);
}

#[test]
fn statuses_and_rules() {
    let settings = Settings::default();
    let verdict = |gold: &str, text: &str| {
        let v = verify(gold, text, &settings);
        (v.status, v.rule)
    };
    assert_eq!(verdict("5", "\\boxed{5}"), (Status::Correct, Decision::Text));
    assert_eq!(verdict("5", "\\boxed{5.0}"), (Status::Correct, Decision::Exact));
    assert_eq!(verdict("x+y", "\\boxed{y+x}"), (Status::Correct, Decision::Algebra));
    assert_eq!(verdict("\\sqrt8", "\\boxed{2\\sqrt2}"), (Status::Correct, Decision::Points));
    assert_eq!(verdict("1/3", "\\boxed{0.333333}"), (Status::Correct, Decision::Rounding));
    assert_eq!(verdict("(C)", "\\boxed{C}"), (Status::Correct, Decision::Choice));
    assert_eq!(verdict("5", "\\boxed{6}"), (Status::Wrong, Decision::Exact));
    assert_eq!(verdict("5", ""), (Status::NoAnswer, Decision::NoAnswer));
    assert_eq!(verdict("5", "\\boxed{}"), (Status::NoAnswer, Decision::NoAnswer));
    assert_eq!(verdict("5", "\\boxed{\\frac{}}"), (Status::Unparsable, Decision::Unparsable));
    assert_eq!(verdict("5", &format!("\\boxed{{{}}}", "1+".repeat(4000))), (Status::Unparsable, Decision::TooLong));
    let nested = format!("\\boxed{{{}1{}}}", "(".repeat(300), ")".repeat(300));
    assert_eq!(verdict("5", &nested), (Status::Unparsable, Decision::TooDeep));
    assert_eq!(verdict("x!", "\\boxed{((((2^{2^{2^{99}}}+x)!)!)!)!}").0, Status::Unparsable);
    // The gold answer may be a whole text too, and the text a bare answer.
    assert_eq!(verdict("Work.\nThe answer is \\boxed{7}.", "7").0, Status::Correct);
    assert_eq!(verdict("7", "After some work,\nthe answer is $7$.").0, Status::Correct);
}
