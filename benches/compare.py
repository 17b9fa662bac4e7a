"""Ours and PyTorch side by side, in turns, in one run; a Markdown table of medians and ratios.

    python benches/compare.py --peers DIR --models small=DIR medium=DIR [--runs 5] [--bupo target/release/bupo]

DIR of --peers holds analyze_torch.py, update_torch.py and generate_hf.py (plain PyTorch + transformers programs; see
docs/PERFORMANCE.md for what each does) and this script's Python has torch and transformers. Both sides get two threads.
Values are compared too: losses and per-layer entropies must agree to 1e-4, or the script says so and fails.
"""
import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile

ap = argparse.ArgumentParser()
ap.add_argument("--peers", type=pathlib.Path, required=True)
ap.add_argument("--models", nargs="+", required=True, metavar="NAME=DIR")
ap.add_argument("--runs", type=int, default=5)
ap.add_argument("--bupo", default="target/release/bupo")
ap.add_argument("--threads", default="2")
a = ap.parse_args()
ENV = os.environ | {"OMP_NUM_THREADS": a.threads}
failures = []


def measured(command):
    """Last JSON line of a program's output, with its wall-clock peak memory in MiB."""
    done = subprocess.run(["/usr/bin/env", *map(str, command)], env=ENV, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stderr[-2000:]}")
    lines = [l for l in done.stdout.splitlines() if l.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def agree(what, ours, theirs):
    worst = max(abs(x - y) / max(abs(y), 1e-3) for x, y in zip(ours, theirs))
    if worst > 1e-4:
        failures.append(f"{what}: relative difference {worst:.1e}")


def batch(vocab, path, rows=16, length=256, prompt=32):
    rng = random.Random(0)
    # Id 188 is the peers' padding id, whose embedding gradient torch leaves out.
    token = lambda: rng.choice([t for t in (rng.randrange(1, vocab), rng.randrange(1, vocab)) if t != 188] or [1])
    ids = [[token() for _ in range(length)] for _ in range(rows)]
    mask = [[0] * prompt + [1] * (length - prompt) for _ in ids]
    advantages = [[rng.gauss(0, 1)] * length for _ in ids]
    path.write_text(json.dumps(dict(input_ids=ids, response_mask=mask, advantages=advantages, old_log_probs=None)))
    return ids


def in_turns(ours, theirs):
    """Both commands `runs` times, alternating; their results."""
    results = ([], [])
    for _ in range(a.runs):
        results[0].append(measured(ours))
        results[1].append(measured(theirs))
    return results


def row(job, results, rate="tokens_per_second"):
    ours, theirs = ([r for r in side] for side in results)
    mid = lambda side, key: statistics.median(r[key] for r in side)
    speed = lambda side: mid(side, rate) if rate in side[0] else 1 / mid(side, "seconds")
    memory = "-"
    if "peak_rss_mib" in theirs[0] and "peak_rss_mib" in ours[0]:
        memory = f"{mid(ours, 'peak_rss_mib'):.0f} / {mid(theirs, 'peak_rss_mib'):.0f} MiB"
    seconds = f"{mid(ours, 'seconds'):.2f} / {mid(theirs, 'seconds'):.2f}"
    print(f"| {job} | {seconds} | {mid(theirs, 'seconds') / mid(ours, 'seconds'):.2f}x | {memory} |", flush=True)


print("| job | seconds, ours / PyTorch | speed | peak memory, ours / PyTorch |\n|---|---|---|---|")
with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    for name, model in (m.split("=", 1) for m in a.models):
        vocab = json.loads((pathlib.Path(model) / "config.json").read_text())["vocab_size"]
        data, tokens = scratch / f"{name}.json", scratch / f"{name}.jsonl"
        ids = batch(vocab, data)
        tokens.write_text("".join(json.dumps(dict(input_ids=i, response_start=32)) + "\n" for i in ids[:4]))
        threads = ["--threads", a.threads]
        for label, layer in [("final policy", []), ("layer 2", ["--layer", "2"])]:
            ours = [a.bupo, "bench", "update", model, "--batch", data, "--repeat", "3", *layer, *threads]
            theirs = [sys.executable, a.peers / "update_torch.py", model, data, "--repeat", "3", *layer]
            results = in_turns(ours, theirs)
            agree(f"{name} update, {label}", results[0][0]["losses"], results[1][0]["losses"])
            row(f"{name}: update, {label}, 16 x 256 tokens", results)
        ours = [a.bupo, "bench", "rollout", model, "--repeat", "1", *threads]
        theirs = [sys.executable, a.peers / "generate_hf.py", model, "--repeat", "1"]
        row(f"{name}: rollout, 64 x 128 tokens", in_turns(ours, theirs))
        out = scratch / "analysis"
        ours = [a.bupo, "analyze", model, "--data", tokens, "--out", out, "--json", *threads]
        theirs = [sys.executable, a.peers / "analyze_torch.py", model, tokens, "--out", scratch / "torch.json"]
        results = in_turns(ours, theirs)
        mine, torch = json.loads((out / "analysis.json").read_text()), json.loads((scratch / "torch.json").read_text())
        for l in mine["per_layer"]:
            keys = list(l["entropy"])
            agree(f"{name} entropies of layer {l['layer']}", [l["entropy"][k] for k in keys],
                  [torch["mean"][f"{k}.{l['layer']}"] for k in keys])
            agree(f"{name} residual norm of layer {l['layer']}", [l["residual_norm"]], [torch["mean"][f"norm.{l['layer']}"]])
        row(f"{name}: analysis, all taps, 4 x 224 tokens", results)
print("\n".join(["", *failures]) if failures else "\nValues agree to 1e-4.")
sys.exit(bool(failures))
