"""Ours and PyTorch side by side, in turns, in one run; a Markdown table of medians and ratios.

    python benches/compare.py --peers DIR --models small=DIR medium=DIR [--runs 5] [--jobs update,analysis,rollout,step]

DIR of --peers holds analyze_torch.py, update_torch.py, generate_hf.py and grpo_trl.py (plain PyTorch + transformers
programs and TRL; see docs/PERFORMANCE.md for what each does) and this script's Python has torch, transformers and trl. All
sides get the same number of threads. Values are compared too: losses and per-layer entropies in f32 must agree to 1e-4,
or the script says so and fails. Peak memory is what the kernel counted for each process.
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
import threading

ap = argparse.ArgumentParser()
ap.add_argument("--peers", type=pathlib.Path, required=True)
ap.add_argument("--models", nargs="+", required=True, metavar="NAME=DIR")
ap.add_argument("--runs", type=int, default=5)
ap.add_argument("--jobs", default="update,analysis,rollout,step")
ap.add_argument("--bupo", default="target/release/bupo")
ap.add_argument("--threads", default="2")
a = ap.parse_args()
ENV = os.environ | {"OMP_NUM_THREADS": a.threads}
HERE = pathlib.Path(__file__).parent
failures = []


def measured(command):
    """Last JSON line of a program's output, with its process's peak memory in MiB."""
    child = subprocess.Popen([*map(str, command)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    errors = []
    reader = threading.Thread(target=lambda: errors.append(child.stderr.read()))
    reader.start()
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    reader.join()
    if status:
        sys.exit(f"{command} failed:\n{errors[0][-2000:]}")
    lines = [l for l in output.splitlines() if l.startswith("{")]
    result = json.loads(lines[-1]) if lines else {}
    result.setdefault("seconds", result.get("seconds_per_step"))
    return result | {"peak_rss_mib": usage.ru_maxrss / 1024}


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


def in_turns(**commands):
    """Every command `runs` times, in turns; the results of each."""
    results = {name: [] for name in commands}
    for _ in range(a.runs):
        for name, command in commands.items():
            results[name].append(measured(command))
    return results


def row(job, results):
    """One line: ours in f32 and bf16, PyTorch in f32 (and bf16), ratios to PyTorch's f32 and bf16."""
    second = {name: statistics.median(r["seconds"] for r in runs) for name, runs in results.items()}
    peak = {name: statistics.median(r["peak_rss_mib"] for r in runs) for name, runs in results.items()}
    over = lambda ours, theirs: f"{second[theirs] / second[ours]:.2f}x" if theirs in second else "-"
    value = lambda table, name, form: form.format(table[name]) if name in table else "-"
    cells = [job, *(value(second, n, "{:.2f}") for n in ("f32", "bf16", "torch", "torch_bf16"))]
    cells += [over("f32", "torch"), over("bf16", "torch"), over("bf16", "torch_bf16")]
    cells += [" / ".join(value(peak, n, "{:.0f}") for n in ("f32", "bf16", "torch"))]
    print("| " + " | ".join(cells) + " |", flush=True)


print("| job | ours f32, s | ours bf16, s | PyTorch f32, s | PyTorch bf16, s | f32 : f32 | bf16 : f32 | bf16 : bf16 | peak MiB: f32 / bf16 / PyTorch f32 |")
print("|---|---|---|---|---|---|---|---|---|")
with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    for name, model in (m.split("=", 1) for m in a.models):
        vocab = json.loads((pathlib.Path(model) / "config.json").read_text())["vocab_size"]
        data, tokens = scratch / f"{name}.json", scratch / f"{name}.jsonl"
        ids = batch(vocab, data)
        tokens.write_text("".join(json.dumps(dict(input_ids=i, response_start=32)) + "\n" for i in ids[:4]))
        ours = lambda *verb: {c: [a.bupo, *verb, "--compute", c, "--threads", a.threads] for c in ("f32", "bf16")}
        peer = lambda script, *rest: [sys.executable, a.peers / script, *rest]
        for label, layer in [("final policy", []), ("layer 2", ["--layer", "2"])] if "update" in a.jobs else []:
            verb = ["bench", "update", model, "--batch", data, "--repeat", "3", *layer]
            bf16 = [sys.executable, HERE / "update_bf16.py", a.peers, model, data, "--repeat", "3", *layer]
            results = in_turns(**ours(*verb), torch=peer("update_torch.py", model, data, "--repeat", "3", *layer), torch_bf16=bf16)
            agree(f"{name} update, {label}", results["f32"][0]["losses"], results["torch"][0]["losses"])
            row(f"{name}: update, {label}, 16 x 256 tokens", results)
        if "rollout" in a.jobs:
            theirs = ["generate_hf.py", model, "--repeat", "1"]
            results = in_turns(**ours("bench", "rollout", model, "--repeat", "1"), torch=peer(*theirs),
                               torch_bf16=peer(*theirs, "--dtype", "bfloat16"))
            row(f"{name}: rollout, 64 x 128 tokens", results)
        if "analysis" in a.jobs:
            out = scratch / "analysis"
            commands = ours("analyze", model, "--data", tokens, "--json")
            commands = {c: [*command, "--out", out / c] for c, command in commands.items()}
            theirs = ["analyze_torch.py", model, tokens, "--out"]
            results = in_turns(**commands, torch=peer(*theirs, scratch / "torch.json"),
                               torch_bf16=peer(*theirs, scratch / "torch_bf16.json", "--dtype", "bfloat16"))
            mine = json.loads((out / "f32" / "analysis.json").read_text())
            torch = json.loads((scratch / "torch.json").read_text())
            for l in mine["per_layer"]:
                keys = list(l["entropy"])
                agree(f"{name} entropies of layer {l['layer']}", [l["entropy"][k] for k in keys],
                      [torch["mean"][f"{k}.{l['layer']}"] for k in keys])
                agree(f"{name} residual norm of layer {l['layer']}", [l["residual_norm"]], [torch["mean"][f"norm.{l['layer']}"]])
            row(f"{name}: analysis, all taps, 4 x 224 tokens", results)
        if "step" in a.jobs and name == "small":
            theirs = ["grpo_trl.py", model, "--prompts", "8", "--group", "8", "--new", "128", "--steps", "3"]
            row(f"{name}: one GRPO step, 8 x 8 x 128 tokens (TRL)", in_turns(**ours("bench", "step", model), torch=peer(*theirs)))
print("\n".join(["", *failures]) if failures else "\nValues agree to 1e-4.")
sys.exit(bool(failures))
