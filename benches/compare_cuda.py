"""Ours and PyTorch on one GPU, in turns, in one run; a Markdown table of medians and ratios.

    python benches/compare_cuda.py [--bupo target/release/bupo] [--jobs limits,update,...] [--runs 1] [--repeat 3]
        [--new 1024] [--results FILE] [--seconds 600] [--targets update=1.5,rollout=4] [--sides ours,peers] [--profile] [--dry-run]

The peers are cuda_peers.py's jobs, in one process that lets go of the device's memory between turns, under this script's Python, which
has torch and transformers. Both sides make random weights of the same shapes. A measurement is the median of --repeat times within a
process, the table's numbers are medians over --runs. What fails or outlasts --limit is said at the end and leaves a dash; when --seconds
are over nothing more is started. --tiny takes small shapes on the CPU, for trying the script. --profile follows where our time goes, kernel by
kernel: its numbers are for reading, not for comparing. "step" is GRPO, "step-layer" a step of BuPO's internal phase; "step-lean" is
GRPO in as little memory as our settings allow.
"""
import argparse
import json
import pathlib
import queue
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from batches import write_update

# Name, what it says in the table, ours behind `bupo bench`, and the peer's. Braces are filled from the sizes. Ours count their warm-up
# among the repetitions, but for rollouts.
UPDATE = "update --shape {shape} --batch {batch} --micro-batch-tokens {micro_tokens} --recompute --compute bf16 --repeat {warm_repeat}"
PEER_UPDATE = "update --shape {shape} --rows {rows} --length {length} --micro {micro} --repeat {repeat}"
ANALYSIS = "analysis --shape {shape} --rows {analysis_rows} --length {length} --prompt 32"
ROLLOUT = "rollout --shape {rollout_shape} --batch {batch_size} --prompt {prompt} --new {new} --repeat {long_repeat}"
STEP = "step --shape {step_shape} --prompts {prompts} --group {group} --prompt {prompt} --new {step_new}"
OUR_STEP = STEP + " --micro-batch-tokens {step_micro_tokens} --compute bf16 --steps {warm_long_repeat}"
PEER_STEP = STEP + " --micro {micro} --repeat {long_repeat}"
JOBS = {
    "limits": ("what the GPU does at best", "machine", "limits --size {size}"),
    "update": ("{shape}: update, final policy, {rows} x {length} tokens", UPDATE, PEER_UPDATE),
    "update-layer": ("{shape}: update, layer {layer}, {rows} x {length} tokens", UPDATE + " --layer {layer}",
                     PEER_UPDATE + " --layer {layer}"),
    "analysis-bf16": ("{shape}: analysis, all taps, {analysis_rows} x {length} tokens, bf16",
                      ANALYSIS + " --compute bf16 --repeat {warm_repeat}",
                      ANALYSIS + " --dtype bf16 --repeat {repeat}"),
    "analysis-f32": ("{shape}: analysis, all taps, {analysis_rows} x {length} tokens, f32",
                     ANALYSIS + " --compute f32 --repeat {warm_long_repeat}",
                     ANALYSIS + " --dtype f32 --repeat {long_repeat}"),
    "rollout": ("{rollout_shape}: rollout, {batch_size} x {new} tokens", ROLLOUT + " --compute bf16", ROLLOUT + " --at {at}"),
    "step": ("{step_shape}: one GRPO step, {prompts} x {group} x {step_new} tokens",
             OUR_STEP, PEER_STEP),
    "step-layer": ("{step_shape}: one BuPO step, layer {layer}, {prompts} x {group} x {step_new} tokens",
                   OUR_STEP + " --layer {layer}", PEER_STEP + " --layer {layer}"),
    "step-lean": ("{step_shape}: one GRPO step in little memory, {prompts} x {group} x {step_new} tokens",
                  OUR_STEP + " --recompute --offload --slots {slots}", PEER_STEP),
}
SIZES = dict(shape="qwen3-4b", rollout_shape="qwen3-0.6b", step_shape="qwen3-1.7b", rows=32, length=1024, micro=8, layer=6,
             analysis_rows=4, batch_size=256, prompt=64, prompts=32, group=8, slots=96, size=8192, at="512,1024", vocab=151936)
TINY = dict(shape="tiny", rollout_shape="tiny", step_shape="tiny", rows=4, length=48, micro=2, layer=3, analysis_rows=2, batch_size=4,
            prompt=8, prompts=2, group=2, slots=3, size=64, at="20", vocab=512)

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--bupo", default="target/release/bupo")
ap.add_argument("--jobs", default=",".join(job for job in JOBS if job != "step-lean"))
ap.add_argument("--sides", default="ours,peers")
ap.add_argument("--runs", type=int, default=1)
ap.add_argument("--repeat", type=int, default=3, help="times within one process, after a warm-up")
ap.add_argument("--long-repeat", type=int, default=1, help="the same for rollouts, steps and analyses in f32")
ap.add_argument("--new", type=int, default=1024, help="new tokens of a rollout; --step-new of a step")
ap.add_argument("--step-new", type=int, default=1024)
ap.add_argument("--limit", type=float, default=120, help="seconds for one measurement")
ap.add_argument("--seconds", type=float, default=600, help="seconds for everything")
ap.add_argument("--results", type=pathlib.Path, help="JSON lines of every measurement; those already there join the medians")
ap.add_argument("--targets", default="", help="ratios to be reached, shown in the table: update=1.5,...")
ap.add_argument("--device", default="cuda")
ap.add_argument("--tiny", action="store_true")
ap.add_argument("--profile", action="store_true")
ap.add_argument("--dry-run", action="store_true", help="print the commands and stop")
a = ap.parse_args()
START = time.monotonic()
HERE = pathlib.Path(__file__).parent
device = "cpu" if a.tiny else a.device
sizes = (TINY if a.tiny else SIZES) | dict(repeat=a.repeat, long_repeat=a.long_repeat, warm_repeat=a.repeat + 1,
                                           warm_long_repeat=a.long_repeat + 1, new=a.new, step_new=a.step_new)
sizes["micro_tokens"] = sizes["micro"] * sizes["length"]
sizes["step_micro_tokens"] = sizes["micro"] * (sizes["prompt"] + a.step_new)
targets = dict(pair.split("=", 1) for pair in filter(None, a.targets.split(",")))
jobs = a.jobs.split(",")
if unknown := set(jobs) - set(JOBS):
    sys.exit(f"--jobs: no {', '.join(unknown)}; there are {', '.join(JOBS)}")
remaining = lambda: a.seconds - (time.monotonic() - START)


def ours(words, limit):
    """The last line of JSON of `bupo bench`."""
    command = [a.bupo, "bench", *words, *(["--device", device] if words[0] != "machine" else [])]
    command += ["--profile"] if a.profile and words[0] != "machine" else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return dict(error=f"took more than {limit:.0f} s")
    except OSError as error:
        return dict(error=str(error))
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return dict(error=f"exit code {done.returncode}: {done.stderr.strip()[-600:]}")
    if a.profile:
        print(done.stderr, file=sys.stderr, flush=True)
    return json.loads(lines[-1])


class Peers:
    """cuda_peers.py, started when first asked and again after it had to be stopped."""
    child = None

    def ask(self, words, limit):
        if self.child is None:
            self.child = subprocess.Popen([sys.executable, HERE / "cuda_peers.py", "-"], stdin=subprocess.PIPE,
                                          stdout=subprocess.PIPE, text=True)
            self.lines, output = queue.Queue(), self.child.stdout
            reader = lambda lines, output: [lines.put(line) for line in output] + [lines.put(None)]
            threading.Thread(target=reader, args=(self.lines, output), daemon=True).start()
        try:
            self.child.stdin.write(shlex.join([*words, "--device", device, "--limit", f"{limit:.0f}"]) + "\n")
            self.child.stdin.flush()
            line = self.lines.get(timeout=limit + 60)
        except (queue.Empty, BrokenPipeError):
            line = None
        if line is None:
            self.child.kill()
            code = self.child.wait()
            self.child = None
            return dict(error=f"gave no answer, exit code {code}")
        return json.loads(line)

    def stop(self):
        if self.child:
            self.child.stdin.close()
            self.child.wait(timeout=30)


def remembered():
    return [json.loads(line) for line in a.results.read_text().splitlines()] if a.results and a.results.exists() else []


def row(job, measured, peak):
    """One line of the table: tokens/s, their ratio, memory, and how near to the peak of products an update comes."""
    label = JOBS[job][0].format(**sizes)

    def of(side, key):
        values = [m[key] for m in measured if m["job"] == label and m["side"] == side and m.get(key) is not None]
        return statistics.median(values) if values else None

    form = lambda value, text: "-" if value is None else text.format(value)
    rate, theirs = of("ours", "tokens_per_second"), of("peers", "tokens_per_second")
    ratio = rate / theirs if rate and theirs else None
    memory = [of(side, "peak_device_mib") for side in ("ours", "peers")]
    # By the operations that a job needs, nothing twice.
    done = of("ours", "gflops"), of("peers", "tflops")
    shares = [x and peak and x / scale / peak for x, scale in zip(done, (1000, 1))]
    cells = [label, form(rate, "{:.0f}"), form(theirs, "{:.0f}"), form(ratio, "{:.2f}x"), targets.get(job, "-"),
             " / ".join(form(m and m / 1024, "{:.1f}") for m in memory), " / ".join(form(s, "{:.0%}") for s in shares)]
    print("| " + " | ".join(cells) + " |", flush=True)


def table(measured):
    print("| job | ours, tokens/s | PyTorch, tokens/s | ratio | target | peak GiB: ours / PyTorch | of the bf16 peak: ours / PyTorch |")
    print("|---|---|---|---|---|---|---|")
    limits = [m for m in measured if "bf16_tflops" in m]
    for job in jobs:
        if job != "limits":
            row(job, measured, limits[-1]["bf16_tflops"] if limits else None)
    if limits:
        m = limits[-1]
        print(f"\n{m['gpu']}, driver {m.get('driver', '-')}, torch {m['torch']}, transformers {m['transformers']}: products at "
              f"{m['bf16_tflops']:.0f} TFLOP/s in bf16, {m['tf32_tflops']:.0f} in tf32, {m['f32_tflops']:.0f} in f32; "
              f"a copy at {m['copy_tb_per_second']:.2f} TB/s, read and written.")


failures, peers, measured = [], Peers(), remembered()
with tempfile.TemporaryDirectory() as scratch:
    sizes["batch"] = pathlib.Path(scratch) / "batch.json"
    write_update(sizes["batch"], sizes["vocab"], sizes["rows"], sizes["length"])
    for job in jobs:
        commands = dict(zip(("ours", "peers"), (shlex.split(c.format(**sizes)) for c in JOBS[job][1:])))
        for run in range(1 if job == "limits" else a.runs):
            for side in a.sides.split(","):
                if a.dry_run:
                    print(shlex.join(["bupo bench" if side == "ours" else "cuda_peers.py", *commands[side]]).replace("'", ""))
                    continue
                limit = min(a.limit, remaining())
                if limit < 5:
                    failures.append(f"{job}, {side}: no time left")
                    continue
                start = time.monotonic()
                result = (ours if side == "ours" else peers.ask)(commands[side], limit)
                line = result | dict(job=JOBS[job][0].format(**sizes), side=side, whole_seconds=time.monotonic() - start)
                measured.append(line)
                if a.results:
                    with a.results.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                if "error" in line:
                    failures.append(f"{job}, {side}: {line['error']}")
                said = line.get("error") or ", ".join(f"{k} {line[k]:.6g}" for k in ("seconds", "tokens_per_second") if line.get(k))
                print(f"[{time.monotonic() - START:.0f} s] {job}, {side}: {said}", file=sys.stderr, flush=True)
if not a.dry_run:
    peers.stop()
    table(measured)
print("\n".join(["", *failures]) if failures else "")
sys.exit(bool(failures))
