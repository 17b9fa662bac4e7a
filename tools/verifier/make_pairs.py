"""Pairs of gold answers and answers, built from the gold answers of data sets: JSON lines of {gold, answer, kind}.

kind says how the answer was made:
  same      the gold answer itself in a sentence, with white space or \\left and \\right
  rewrite   another spelling of the same value (what makes it equal stands beside each rule below)
  plain     the same in sympy's plain text: 2*pi*sqrt(3)
  near      a value close to it: a sign, a digit, an exponent, an element, an endpoint changed
  wrong     the gold answer of another problem

Equal kinds are equal by construction, the others unequal by construction except where a change happens to change
nothing; such pairs are for the reader of the disagreements to find.
"""

import argparse
import contextlib
import json
import random
import re
import signal
from fractions import Fraction
from pathlib import Path

import math_verify
import pyarrow.parquet as parquet
import sympy

FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
INTEGER = re.compile(r"-?\d+")


def golds(paths):
    found = {}
    for path in paths:
        if path.suffix == ".parquet":
            rows = parquet.read_table(path).to_pylist()
        else:
            rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        for row in rows:
            reward = row.get("reward_model") or {}
            gold = reward.get("ground_truth", row.get("gold", row.get("answer")))
            if isinstance(gold, str) and gold.strip():
                found.setdefault(gold, path.stem)
    return list(found)


def split_top(text, separator):
    """The parts of a text between separators that stand outside of every bracket."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [p.strip() for p in parts + [text[start:]]]


def rewrites(gold):
    """Other spellings of the same answer, each with the rule's name."""
    integer = re.fullmatch(INTEGER, gold)
    if integer:
        n = int(gold)
        yield "decimal", f"{n}.0"
        yield "assignment", f"x = {n}"
        yield "sum", f"{n - 7} + 7"
        if abs(n) >= 1000:
            yield "thousands", f"{n:,}"
        if n > 0:
            yield "fraction", f"\\frac{{{3 * n}}}{{3}}"
            yield "root", f"\\sqrt{{{n * n}}}"
    fraction = re.fullmatch(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", gold)
    if fraction:
        sign, top, bottom = fraction.groups()
        value = Fraction(int(top), int(bottom))
        yield "slash", f"{sign}{top}/{bottom}"
        yield "expanded", f"{sign}\\frac{{{2 * int(top)}}}{{{2 * int(bottom)}}}"
        if sign:
            yield "sign inside", f"\\frac{{-{top}}}{{{bottom}}}"
        if len(top) == 1 and len(bottom) == 1:
            yield "bare", f"{sign}\\frac{top}{bottom}"
        if value > 1 and value.denominator > 1:
            whole, rest = divmod(value.numerator, value.denominator)
            yield "mixed", f"{sign}{whole}\\frac{{{rest}}}{{{value.denominator}}}"
        d = value.denominator
        while d % 2 == 0:
            d //= 2
        while d % 5 == 0:
            d //= 5
        decimal = value.numerator / value.denominator
        yield ("decimal" if d == 1 else "nine places"), f"{sign}{decimal:.9f}"
    else:
        if FRACTION.search(gold) and not re.search(r"\d\s*\\[dt]?frac", gold):
            yield "slash inside", FRACTION.sub(r"(\1/\2)", gold)
            yield "tfrac", gold.replace("\\dfrac", "\\tfrac")
    if "\\sqrt{" in gold:
        yield "power for root", re.sub(r"\\sqrt\{(\w+)\}", r"(\1)^{1/2}", gold)
    if "\\pi" in gold:
        yield "unicode pi", gold.replace("\\pi", "π") if re.search(r"\\pi(?![a-zA-Z])", gold) else gold
    # A sum of two terms turned around: top-level plus outside of relations, lists and brackets.
    simple = not re.search(r"[=<>,:!|]|\\(le|ge|leq|geq|mapsto|in|cup|cap|text|mbox|to|begin|pm|ne|neq|sum|int|lim|max|min|log|ln|sin|cos|tan)\b", gold)
    if simple:
        parts = split_top(gold, "+")
        if len(parts) == 2 and all(parts) and "-" not in split_top(parts[0], " ")[0]:
            yield "commuted", f"{parts[1]} + {parts[0]}" if not parts[0].startswith("-") else f"{parts[1]} {parts[0]}"
        # Of a value only: no word, no set, no number in another base, no product of matrices.
        value = not re.search(r"[A-Za-z]{4,}(?<!frac)(?<!sqrt)|infty|mathbb|mathcal|[{}^_]\\?(ast|top|times)|\^[*T]|^\d+_|\\\{|otimes|emptyset|mapsto|cong", gold)
        value = value and not re.fullmatch(r"(?i)yes|no|true|false|i{2,3}", gold)
        if value and len(parts) == 1 and not gold.startswith("-") and len(split_top(gold, "-")) == 1:
            yield "one half of the double", f"\\frac{{2 \\cdot {gold}}}{{2}}"
    if re.fullmatch(r"\((?!.*\\cup).*,.*\)", gold) and len(split_top(gold[1:-1], ",")) >= 3:
        yield "left right", gold.replace("(", "\\left(").replace(")", "\\right)")
    if re.fullmatch(r"-?\d+(,\s*-?\d+)+", gold) and "," in gold and not re.fullmatch(r"\d{1,3}(,\d{3})+", gold):
        yield "other order", ", ".join(reversed(split_top(gold, ",")))
    if re.fullmatch(r"\\\{[^{}|:]*\\\}", gold) and "mid" not in gold:
        inner = split_top(gold[2:-2], ",")
        yield "other order", "\\{" + ", ".join(reversed(inner)) + "\\}"
    equation = split_top(gold, "=")
    if len(equation) == 2 and not re.search(r"[<>]|\\text|,|\^[*T]|\^\\top|dots", gold):
        yield "sides swapped", f"{equation[1]} = {equation[0]}"
    text = re.fullmatch(r"\\text\{\(?([\w ]+)\)?\}", gold)
    if text:
        yield "plain word", text.group(1)
    elif re.fullmatch(r"[A-Za-z]{3,}", gold):
        yield "text", f"\\text{{{gold}}}"
    if re.fullmatch(r"-?\d+(\.\d+)?\^\{?\\circ\}?", gold):
        yield "no degree sign", gold.split("^")[0]
    if re.search(r"\w_\w", gold) and not re.search(r"^\d+_", gold):
        yield "braced subscript", re.sub(r"_(\w)(?!\w)", r"_{\1}", gold)
    if "\\cup" in gold:
        yield "union turned", " \\cup ".join(reversed(gold.split("\\cup")))


def algebra(gold):
    """Other forms of the same value by sympy, as LaTeX and as plain text; nothing for what math-verify does not read as one
    expression."""
    try:
        parsed = math_verify.parse(f"${gold}$")
        expression = parsed[0] if parsed else None
        if not isinstance(expression, sympy.Expr) or isinstance(expression, sympy.MatrixBase) or sympy.count_ops(expression) > 30:
            return
        if re.fullmatch(r"(?i)yes|no|true|false|i{2,3}", gold):
            return
        # 52_8, matrices, functions and names that the parser takes for products: sympy's form is of something else.
        if re.search(r"_\d|\^\{?[T*]|\\top|\\text|mathbb|mathcal|mathbf|[a-zA-Z]\(|\\pm|[:|'%]|[A-Za-z]{4,}(?<!frac)(?<!sqrt)|\d!", gold):
            return
        expression = expression.doit()
        # The parser drops what looks like a unit and lowers letters: then the form is of something else.
        letters = set(re.sub(r"\\[a-zA-Z]+", " ", gold)) & set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") - {"e", "i"}
        if letters != {s.name for s in expression.free_symbols if len(s.name) == 1}:
            return
        if expression.has(sympy.zoo, sympy.nan, sympy.oo):
            return
        for name, form in (("expand", sympy.expand), ("factor", sympy.factor), ("together", sympy.together), ("simplify", sympy.simplify)):
            with timeout(3):
                value = form(expression)
                yield f"sympy {name}", sympy.latex(value, ln_notation=True)
        yield "sympy plain", str(expression).replace("log(", "ln(").replace("E", "e").replace("I", "i")
    except Exception:  # what sympy cannot rewrite is left out
        return


@contextlib.contextmanager
def timeout(seconds):
    def stop(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def near(gold, chance):
    """Changes that make it another answer."""
    numbers = [m for m in re.finditer(r"\d+", gold) if not gold[max(0, m.start() - 1):m.start()] == "_"]
    # (0:1) and (0:2) are the same ratio.
    if numbers and "0:" not in gold:
        m = chance.choice(numbers)
        yield "digit", gold[:m.start()] + str(int(m.group()) + 1) + gold[m.end():]
    if gold.startswith("-"):
        yield "sign", gold[1:].strip()
    elif not re.search(r"[=<>,:]|\\(in|cup|text|mbox|begin|pm|infty|emptyset)", gold) and not re.fullmatch(r"[A-Za-z ]+|0", gold):
        yield "sign", f"-({gold})"
    # [-\infty is a slip for (-\infty, and no change.
    if re.match(r"[(\[].*,.*[)\]]$", gold) and not gold.startswith("(-\\infty") and len(split_top(gold[1:-1], ",")) == 2:
        yield "endpoint", ("[" if gold[0] == "(" else "(") + gold[1:]
        if "infty" not in gold:
            a, b = split_top(gold[1:-1], ",")
            if a != b:
                yield "turned", f"{gold[0]}{b},{a}{gold[-1]}"
    if "\\sqrt" in gold:
        yield "no root", re.sub(r"\\sqrt\{(\w+)\}", r"\1", gold) if re.search(r"\\sqrt\{(\w+)\}", gold) and not re.search(r"\\sqrt\{1\}", gold) else gold + "+1"
    if re.search(r"\d", gold) and not re.search(r"[=<>,:]|\\(in|cup|text|mbox|begin|pm)", gold):
        yield "plus a millionth", f"{gold} + 0.00001"
    letters = re.fullmatch(r"[A-E]", gold)
    if letters:
        yield "letter", "ABCDE"[("ABCDE".index(gold) + 1) % 5]


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("data", nargs="+", type=Path, help="parquet in verl's row layout, or JSON lines with gold or answer")
    arguments.add_argument("--out", required=True, type=Path)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    chance = random.Random(options.seed)
    found = golds(options.data)
    rows = []
    for i, gold in enumerate(found):
        rows.append((gold, f"Thus the answer is \\boxed{{{gold}}}.", "same", "boxed"))
        for rule, answer in rewrites(gold):
            if answer != gold:
                rows.append((gold, f"\\boxed{{{answer}}}", "rewrite", rule))
        seen = {gold}
        for rule, answer in algebra(gold):
            if answer not in seen:
                seen.add(answer)
                kind = "plain" if rule == "sympy plain" else "rewrite"
                rows.append((gold, f"\\boxed{{{answer}}}", kind, rule))
        for rule, answer in near(gold, chance):
            rows.append((gold, f"\\boxed{{{answer}}}", "near", rule))
        other = found[(i + 1 + chance.randrange(len(found) - 1)) % len(found)]
        rows.append((gold, f"\\boxed{{{other}}}", "wrong", "another problem's"))
    with options.out.open("w") as out:
        for gold, answer, kind, rule in rows:
            out.write(json.dumps({"gold": gold, "answer": answer, "kind": kind, "rule": rule}) + "\n")
    print(f"{len(found)} gold answers, {len(rows)} pairs")


if __name__ == "__main__":
    main()
