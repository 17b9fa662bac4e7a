"""How cost grows: with the context, the vocabulary, the batch, the layer of an internal update, and the group.

    python benches/scaling.py OUT [--bupo target/release/bupo] [--threads 2] [--repeat 3] [--only context,layer]

Writes OUT/scaling.json (every measurement; studies that --only leaves out stay as they are) and OUT/scaling.svg (the picture). Models are Qwen3-shaped with random weights,
written here; needs numpy, safetensors and matplotlib. Seconds are medians over --repeat within one process.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

import matplotlib
import numpy as np
from batches import write_update
from safetensors.numpy import save_file

matplotlib.use("svg")
import matplotlib.pyplot as plt

ap = argparse.ArgumentParser()
ap.add_argument("out", type=pathlib.Path)
ap.add_argument("--bupo", default="target/release/bupo")
ap.add_argument("--threads", default="2")
ap.add_argument("--repeat", default="3")
ap.add_argument("--only", default="context,vocabulary,batch,layer,group")
a = ap.parse_args()


def model(folder, hidden=256, layers=8, heads=8, kv_heads=4, head_dim=32, ffn=768, vocab=4096):
    """A random checkpoint of this shape."""
    rng = np.random.default_rng(0)
    weight = lambda *shape: (rng.standard_normal(shape, dtype=np.float32) * 0.02)
    ones = lambda n: np.ones(n, dtype=np.float32)
    tensors = {"model.embed_tokens.weight": weight(vocab, hidden), "model.norm.weight": ones(hidden)}
    for i in range(layers):
        p = f"model.layers.{i}"
        tensors |= {
            f"{p}.input_layernorm.weight": ones(hidden), f"{p}.post_attention_layernorm.weight": ones(hidden),
            f"{p}.self_attn.q_norm.weight": ones(head_dim), f"{p}.self_attn.k_norm.weight": ones(head_dim),
            f"{p}.self_attn.q_proj.weight": weight(heads * head_dim, hidden),
            f"{p}.self_attn.k_proj.weight": weight(kv_heads * head_dim, hidden),
            f"{p}.self_attn.v_proj.weight": weight(kv_heads * head_dim, hidden),
            f"{p}.self_attn.o_proj.weight": weight(hidden, heads * head_dim),
            f"{p}.mlp.gate_proj.weight": weight(ffn, hidden), f"{p}.mlp.up_proj.weight": weight(ffn, hidden),
            f"{p}.mlp.down_proj.weight": weight(hidden, ffn),
        }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    config = dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=hidden, num_hidden_layers=layers,
                  num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, intermediate_size=ffn,
                  vocab_size=vocab, max_position_embeddings=16384, rms_norm_eps=1e-6, rope_theta=1e6,
                  tie_word_embeddings=True, hidden_act="silu", attention_bias=False, torch_dtype="float32")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def batch(path, vocab, rows, length):
    write_update(path, vocab, rows, length)
    return path


def bench(*args):
    command = [a.bupo, "bench", *map(str, args), "--threads", a.threads]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(" ".join(map(str, args[:1] + args[2:])), f"{result['seconds']:.3f} s", flush=True)
    return result


def update(folder, data, *rest):
    return bench("update", folder, "--batch", data, "--repeat", a.repeat, *rest)


def study(scratch):
    """Name of each study to (x, what was measured)."""
    small = model(scratch / "small")
    wanted, points = a.only.split(","), {}
    if "context" in wanted:
        points["context"] = [
            (n, update(small, batch(scratch / f"c{n}.json", 4096, 8192 // n, n), "--micro-batch-tokens", 8192))
            for n in (256, 512, 1024, 2048, 4096, 8192)]
    if "vocabulary" in wanted:
        points["vocabulary"] = []
        for v in (4096, 16384, 65536, 151936):
            folder = small if v == 4096 else model(scratch / f"v{v}", vocab=v)
            points["vocabulary"].append((v, update(folder, batch(scratch / f"v{v}.json", v, 8, 256))))
    if "batch" in wanted:
        points["batch"] = [(n, bench("rollout", small, "--batch", n, "--new", 64, "--repeat", a.repeat))
                           for n in (1, 4, 16, 64, 256)]
    if "layer" in wanted:
        deep = model(scratch / "deep", layers=12)
        data = batch(scratch / "deep.json", 4096, 8, 256)
        points["layer"] = [(k, update(deep, data, "--layer", k)) for k in (1, 2, 4, 6, 8, 10, 12)]
        points["final"] = [(12, update(deep, data))]
    if "group" in wanted:
        step = lambda g, *rest: bench("step", small, "--prompts", 4, "--group", g, "--prompt", 256, "--new", 64, "--steps",
                                      int(a.repeat) + 1, *rest)
        points["group"] = [(g, step(g)) for g in (1, 2, 4, 8, 16)]
        points["group, unshared"] = [(g, step(g, "--unshared")) for g in (1, 2, 4, 8, 16)]
    return points


def draw(points, path):
    figure, axes = plt.subplots(1, 5, figsize=(20, 3.6))
    tokens = lambda series: [r["tokens_per_second"] for _, r in series]
    xs = lambda series: [x for x, _ in series]
    for axis, (name, label, unit) in zip(axes, [
            ("context", "context, tokens (8,192 tokens an update)", "update, tokens/s"),
            ("vocabulary", "vocabulary", "update, tokens/s"), ("batch", "sequences decoded at once", "rollout, tokens/s")]):
        if name in points:
            axis.plot(xs(points[name]), tokens(points[name]), "o-")
        axis.set(xscale="log", xlabel=label, ylabel=unit, ylim=(0, None))
        axis.set_xticks(xs(points.get(name, [])), [f"{x:,}" for x in xs(points.get(name, []))])
        axis.minorticks_off()
    if "layer" in points:
        full = points["final"][0][1]["seconds"]
        axes[3].plot([k / 12 for k in xs(points["layer"])], [r["seconds"] / full for _, r in points["layer"]], "o-", label="measured")
        axes[3].plot([0, 1], [0, 1], "--", color="gray", label="k / L")
        axes[3].legend()
    axes[3].set(xlabel="layer k of an internal update, as k / L", ylabel="time, of a full update", ylim=(0, None))
    for name in ("group", "group, unshared"):
        if name in points:
            label = "prompt shared" if name == "group" else "prompt copied"
            axes[4].plot(xs(points[name]), [r["update_seconds"] for _, r in points[name]], "o-", label=label)
            axes[4].legend()
    axes[4].set(xlabel="group size (prompt 256, response 64 tokens)", ylabel="update, s", ylim=(0, None))
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["svg.hashsalt"] = "bupo"
a.out.mkdir(parents=True, exist_ok=True)
with tempfile.TemporaryDirectory() as scratch:
    points = study(pathlib.Path(scratch))
saved = a.out / "scaling.json"
points = (json.loads(saved.read_text()) if saved.exists() else {}) | points
saved.write_text(json.dumps(points, indent=1) + "\n")
draw(points, a.out / "scaling.svg")
