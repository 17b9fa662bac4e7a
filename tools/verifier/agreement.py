"""Agreement of `bupo verify` with math-verify on pairs of gold answer and answer: a table and every disagreement.

Runs math-verify on the pairs (its defaults, gold as a LaTeX formula), `bupo verify` on the same file, and prints Markdown.
"""

import argparse
import json
import logging
import subprocess
import time
from collections import Counter
from pathlib import Path

import math_verify


def theirs(rows, cache):
    """math-verify's verdict on every row and the seconds it took; kept in a file, since it takes long."""
    if cache and cache.exists():
        return json.loads(cache.read_text())
    logging.disable(logging.CRITICAL)
    verdicts = []
    start = time.perf_counter()
    for row in rows:
        try:
            gold = math_verify.parse(f"${row['gold']}$")
            answer = math_verify.parse(row["answer"])
            verdicts.append(bool(math_verify.verify(gold, answer)))
        except Exception:  # an error is a verdict too: not accepted
            verdicts.append(False)
    result = {"verdicts": verdicts, "seconds": time.perf_counter() - start}
    if cache:
        cache.write_text(json.dumps(result))
    return result


def ours(pairs, bupo):
    out = pairs.with_suffix(".verdicts.jsonl")
    start = time.perf_counter()
    subprocess.run([bupo, "--quiet", "verify", "--data", pairs, "--out", out], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    return [json.loads(line) for line in out.read_text().splitlines()], seconds


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("pairs", type=Path, help="what make_pairs.py wrote")
    arguments.add_argument("--bupo", default="target/release/bupo")
    arguments.add_argument("--cache", type=Path, help="keep math-verify's verdicts here and take them from here")
    arguments.add_argument("--show", action="store_true", help="print every disagreement")
    options = arguments.parse_args()
    rows = [json.loads(line) for line in options.pairs.read_text().splitlines()]
    reference = theirs(rows, options.cache)
    verdicts, seconds = ours(options.pairs, options.bupo)
    table = Counter()
    differing = []
    for row, they, we in zip(rows, reference["verdicts"], verdicts, strict=True):
        correct = we["status"] == "correct"
        table[row["kind"], correct, they] += 1
        if correct != they:
            differing.append((row, correct, we))
    print("| pairs | both accept | both reject | only bupo accepts | only math-verify accepts | agreement |")
    print("|---|---|---|---|---|---|")
    for kind in ("same", "rewrite", "plain", "near", "wrong"):
        yes, no, mine, its = (table[kind, a, b] for a, b in ((True, True), (False, False), (True, False), (False, True)))
        total = yes + no + mine + its
        if total:
            print(f"| {kind} ({total}) | {yes} | {no} | {mine} | {its} | {100 * (yes + no) / total:.1f} % |")
    equal = [row["kind"] in ("same", "rewrite", "plain") for row in rows]
    accepted = sum(e and v["status"] == "correct" for e, v in zip(equal, verdicts))
    their_accepted = sum(e and v for e, v in zip(equal, reference["verdicts"]))
    print(f"\nof {sum(equal)} equal pairs bupo accepts {accepted} ({100 * accepted / sum(equal):.2f} %), "
          f"math-verify {their_accepted} ({100 * their_accepted / sum(equal):.2f} %)")
    print(f"math-verify: {len(rows) / reference['seconds']:.0f} verdicts a second; "
          f"bupo with reading and writing the files: {len(rows) / seconds:.0f}")
    if options.show:
        for row, correct, we in differing:
            who = "bupo" if correct else "math-verify"
            print(f"{row['kind']}, {row['rule']}: only {who} accepts: {row['gold']}   {row['answer']}   ({we['status']} by {we['rule']})")


if __name__ == "__main__":
    main()
