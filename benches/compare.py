"""Ours and PyTorch side by side, in turns, in one run; a Markdown table of medians and ratios.

    python benches/compare.py --peers DIR --models small=DIR medium=DIR 0.6b=DIR [--runs 5] [--dtypes f32,bf16]
        [--computes f32,bf16] [--jobs update,update-layer,rollout,analysis,ablation,step] [--seconds N] [--results FILE]

DIR of --peers holds analyze_torch.py, update_torch.py, generate_hf.py and grpo_trl.py (plain PyTorch + transformers
programs and TRL; see docs/PERFORMANCE.md for what each does) and this script's Python has torch, transformers and trl. All
sides get the same number of threads. Values are compared too: losses and per-layer entropies in f32 must agree to 1e-4,
or the script says so and fails. Peak memory is what the kernel counted for each process. A command that fails is said at the end, and the
others go on. --seconds leaves out rounds for which no time is left, judging by the job's last round; --results keeps every measurement
as it comes, and `--runs 0` prints the table of what a file holds.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from batches import write_samples, write_update

ap = argparse.ArgumentParser()
ap.add_argument("--peers", type=pathlib.Path, required=True)
ap.add_argument("--models", nargs="+", required=True, metavar="NAME=DIR")
ap.add_argument("--runs", type=int, default=5)
ap.add_argument("--jobs", default="update,update-layer,rollout,analysis,ablation,step")
ap.add_argument("--dtypes", default="f32,bf16", help="what the peers run in")
ap.add_argument("--computes", default="f32,bf16", help="what ours multiplies in; f32 must be among them, whose values are compared")
ap.add_argument("--seconds", type=float, default=float("inf"), help="starts no round of a job that would end later than that")
ap.add_argument("--results", type=pathlib.Path, help="JSON lines of every measurement; those already there join the medians")
ap.add_argument("--bupo", default="target/release/bupo")
ap.add_argument("--threads", default="2")
a = ap.parse_args()
ENV = os.environ | {"OMP_NUM_THREADS": a.threads}
HERE = pathlib.Path(__file__).parent
START = time.monotonic()
# A job's size by the model's name: what PyTorch survives in 24 GiB. `repeat`: updates timed within one process.
FULL = dict(rows=16, length=256, repeat=3, layer=2, batch=64, new=128, samples=4)
SIZES = {"0.6b": dict(rows=2, length=256, repeat=3, layer=6, batch=16, new=32, samples=1)}
failures, compared = [], []
jobs = a.jobs.split(",")
DTYPES = {"torch": "f32", "torch_bf16": "bf16"}


def measured(command):
    """Last JSON line of a program's output, with its process's peak memory in MiB; nothing if it fails."""
    child = subprocess.Popen([*map(str, command)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    errors = []
    reader = threading.Thread(target=lambda: errors.append(child.stderr.read()))
    reader.start()
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    reader.join()
    if status:
        failures.append(f"{' '.join(map(str, command))} failed:\n{errors[0][-2000:]}")
        return None
    lines = [l for l in output.splitlines() if l.startswith("{")]
    result = json.loads(lines[-1]) if lines else {}
    result.setdefault("seconds", result.get("seconds_per_step"))
    return result | {"peak_rss_mib": usage.ru_maxrss / 1024}


def agree(what, ours, theirs):
    # Below 0.1 the difference itself counts: PyTorch's log_softmax of a nearly certain token carries the rounding of its logits,
    # so that of 0.006893 nats (the same logits in f64; hidden size 1024, vocabulary 151,936) it makes 0.006884.
    compared.append(what)
    worst = max(abs(x - y) / max(abs(y), 0.1) for x, y in zip(ours, theirs))
    if worst > 1e-4:
        failures.append(f"{what}: relative difference {worst:.1e}")


def both(results):
    """Whether there are values of both sides in f32 to compare."""
    return results.get("f32") and results.get("torch")


def in_turns(job, **commands):
    """Every command `runs` times, in turns, as long as there is time; the results of each, which the file of results gets too."""
    results, last = {name: [] for name in commands}, 0
    for _ in range(a.runs):
        start = time.monotonic()
        if start + last > START + a.seconds:
            break
        for name, command in commands.items():
            if (r := measured(command)) is None:
                continue
            results[name].append(r)
            if a.results:
                line = dict(job=job, side=name, seconds=r["seconds"], peak_rss_mib=r["peak_rss_mib"])
                with a.results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
        last = time.monotonic() - start
    return results


def remembered(job, results):
    """All that the file of results holds for a job, or what was measured now."""
    if not a.results or not a.results.exists():
        return results
    together = {}
    for line in map(json.loads, a.results.read_text().splitlines()):
        if line["job"] == job:
            together.setdefault(line["side"], []).append(line)
    return together


def row(job, results):
    """One line: ours in f32 and bf16, PyTorch in f32 (and bf16), ratios to PyTorch's f32 and bf16."""
    results = remembered(job, results)
    middle = lambda key: {name: statistics.median(r[key] for r in runs) for name, runs in results.items() if runs}
    second, peak = middle("seconds"), middle("peak_rss_mib")
    over = lambda ours, theirs: f"{second[theirs] / second[ours]:.2f}x" if theirs in second and ours in second else "-"
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
        size = SIZES.get(name, FULL)
        rows, length, repeat, samples = size["rows"], size["length"], str(size["repeat"]), size["samples"]
        ids = write_update(data, vocab, rows, length)
        write_samples(tokens, ids[:samples])
        ours = lambda *verb: {c: [a.bupo, *verb, "--compute", c, "--threads", a.threads] for c in a.computes.split(",")}
        peer = lambda script, *rest: [sys.executable, a.peers / script, *rest]
        theirs = lambda f32, bf16: {n: c for n, c in [("torch", f32), ("torch_bf16", bf16)] if DTYPES[n] in a.dtypes}
        recompute = ["--recompute"] if name == "0.6b" else []
        updates = [("update", "final policy", []), ("update-layer", f"layer {size['layer']}", ["--layer", str(size["layer"])])]
        for job, label, layer in updates:
            if job not in jobs:
                continue
            verb = ["bench", "update", model, "--batch", data, "--repeat", repeat, *layer]
            bf16 = [sys.executable, HERE / "update_bf16.py", a.peers, model, data, "--repeat", repeat, *layer]
            title = f"{name}: update, {label}, {rows} x {length} tokens"
            results = in_turns(title, **ours(*verb, *recompute),
                               **theirs(peer("update_torch.py", model, data, "--repeat", repeat, *layer), bf16))
            if both(results):
                agree(f"{name} update, {label}", results["f32"][0]["losses"], results["torch"][0]["losses"])
            row(title, results)
        if "rollout" in jobs:
            sizes = ["--batch", str(size["batch"]), "--new", str(size["new"]), "--repeat", "1"]
            command = peer("generate_hf.py", model, *sizes)
            title = f"{name}: rollout, {size['batch']} x {size['new']} tokens"
            row(title, in_turns(title, **ours("bench", "rollout", model, *sizes), **theirs(command, [*command, "--dtype", "bfloat16"])))
        if "analysis" in jobs:
            out, title = scratch / "analysis", f"{name}: analysis, all taps, {samples} x {length - 32} tokens"
            commands = ours("analyze", model, "--data", tokens, "--json")
            commands = {c: [*command, "--out", out / c] for c, command in commands.items()}
            command = ["analyze_torch.py", model, tokens, "--out"]
            results = in_turns(title, **commands, **theirs(peer(*command, scratch / "torch.json"), peer(
                *command, scratch / "torch_bf16.json", "--dtype", "bfloat16")))
            if both(results):
                mine = json.loads((out / "f32" / "analysis.json").read_text())
                torch = json.loads((scratch / "torch.json").read_text())
                for l in mine["per_layer"]:
                    keys = list(l["entropy"])
                    agree(f"{name} entropies of layer {l['layer']}", [l["entropy"][k] for k in keys],
                          [torch["mean"][f"{k}.{l['layer']}"] for k in keys])
                    agree(f"{name} residual norm of layer {l['layer']}", [l["residual_norm"]], [torch["mean"][f"norm.{l['layer']}"]])
            row(title, results)
        if "ablation" in jobs:
            out, title = scratch / "ablation", f"{name}: every module left out, {samples} x {length - 32} tokens"
            commands = ours("ablate", model, "--data", tokens, "--json")
            commands = {c: [*command, "--out", out / c] for c, command in commands.items()}
            command = [sys.executable, HERE / "ablate_torch.py", model, tokens, "--out"]
            results = in_turns(title, **commands, **theirs([*command, scratch / "torch.json"], [
                *command, scratch / "torch_bf16.json", "--dtype", "bfloat16"]))
            if both(results):
                mine = json.loads((out / "f32" / "ablation.json").read_text())
                torch = json.loads((scratch / "torch.json").read_text())
                for l in mine["per_layer"]:
                    for module in ("attn", "ffn", "both"):
                        effect, theirs_of = l[module], torch[f"{module}.{l['layer']}"]
                        agree(f"{name} without {module} of layer {l['layer']}", [effect[k] for k in theirs_of], theirs_of.values())
            row(title, results)
        if "step" in jobs and name == "small":
            command = peer("grpo_trl.py", model, "--prompts", "8", "--group", "8", "--new", "128", "--steps", "3")
            title = f"{name}: one GRPO step, 8 x 8 x 128 tokens (TRL)"
            row(title, in_turns(title, **ours("bench", "step", model), torch=command))
print("\n".join(["", *failures] if failures else ["\nValues agree to 1e-4."] if compared else []))
sys.exit(bool(failures))
