"""Our jobs in plain PyTorch and transformers on a GPU, with random weights of Qwen3's shapes; one line of JSON a job.

    python benches/cuda_peers.py limits|update|analysis|rollout|step [--shape qwen3-4b] [--device cuda] [...]
    python benches/cuda_peers.py - < JOBS       a job a line, as on the command line; one process, PyTorch loads once

Weights are made on the device, nothing is read or downloaded. A job that fails or outlasts --limit gives a line with `error`, and
the next one follows. Progress goes to stderr. `--device cpu --shape tiny` runs the same code anywhere.

update: one step of the clipped surrogate in micro-batches: gradient checkpointing, sdpa, log-probs of the response from full logits in
f32 (as TRL's selective_log_softmax), clipping, fused AdamW. By default weights, gradients and moments are bf16, the lightest that
people train in; --master keeps weights and moments in f32 and runs under autocast: 16 bytes a parameter, for a 4B model more than 80 GB
hold. --layer K trains layer K's policy as reference code does: all layers run and the last one's logits are made too.
analysis: hooks on every module, every tap through lm_head, softmax and log-softmax. rollout: generate() with its default cache, and the
time of a token at the lengths --at. step: generate(), old log-probs, one update, as TRL's trainer goes.
"""
import argparse
import contextlib
import gc
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import time

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # a cache that grows by a token a step fragments without it
import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList, Qwen3Config, Qwen3ForCausalLM

from batches import token_ids

SHAPES = {  # hidden, layers, heads, KV heads, head_dim, intermediate, vocabulary; embeddings are tied
    "qwen3-0.6b": (1024, 28, 16, 8, 128, 3072, 151936),
    "qwen3-1.7b": (2048, 28, 16, 8, 128, 6144, 151936),
    "qwen3-4b": (2560, 36, 32, 8, 128, 9728, 151936),
    "tiny": (64, 4, 4, 2, 32, 128, 512),
}
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def arguments(words):
    ap = argparse.ArgumentParser(prog="cuda_peers.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("job", choices=["limits", "update", "analysis", "rollout", "step"])
    ap.add_argument("--shape", choices=SHAPES, default="qwen3-4b")
    ap.add_argument("--device", default="cuda")
    ap.add_argument("--dtype", choices=DTYPES, default="bf16")
    ap.add_argument("--tf32", action="store_true", help="f32 products on tensor cores, which PyTorch leaves off")
    ap.add_argument("--repeat", type=int, default=3, help="measured times, after a warm-up")
    ap.add_argument("--limit", type=float, default=120, help="seconds for the whole job")
    ap.add_argument("--rows", type=int, default=32, help="update, analysis: sequences")
    ap.add_argument("--length", type=int, default=1024, help="update, analysis: tokens of a sequence")
    ap.add_argument("--micro", type=int, default=8, help="sequences of one forward and backward; halved if they do not fit")
    ap.add_argument("--layer", type=int, help="update: the layer policy to train, from 1")
    ap.add_argument("--master", action="store_true", help="update, step: f32 weights under bf16 autocast")
    ap.add_argument("--no-checkpointing", action="store_true")
    ap.add_argument("--prompt", type=int, help="tokens of a prompt; default 32, in rollouts and steps 64")
    ap.add_argument("--new", type=int, default=1024, help="rollout, step: new tokens of a sequence")
    ap.add_argument("--batch", type=int, default=256, help="rollout: sequences")
    ap.add_argument("--at", default="", help="rollout: also the time of a token behind so many, e.g. 512,1024")
    ap.add_argument("--prompts", type=int, default=32, help="step")
    ap.add_argument("--group", type=int, default=8, help="step: responses to a prompt")
    ap.add_argument("--size", type=int, default=8192, help="limits: of the matrices")
    a = ap.parse_args(words)
    a.prompt = a.prompt or (64 if a.job in ("rollout", "step") else 32)
    return a


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def build(a):
    hidden, layers, heads, kv_heads, head_dim, ffn, vocab = SHAPES[a.shape]
    config = Qwen3Config(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                         head_dim=head_dim, intermediate_size=ffn, vocab_size=vocab, max_position_embeddings=40960,
                         rms_norm_eps=1e-6, rope_parameters=dict(rope_type="default", rope_theta=1e6), tie_word_embeddings=True)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = a.tf32
    with torch.device(a.device):
        model = Qwen3ForCausalLM._from_config(config, dtype=torch.float32 if a.master else DTYPES[a.dtype], attn_implementation="sdpa")
    say(f"{a.shape}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion parameters, {model.dtype}")
    return model.to(a.device).eval()


def now(a):
    if a.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(a, what, work):
    start = now(a)
    result = work()
    seconds = now(a) - start
    say(f"{what}: {seconds:.3f} s")
    return seconds, result


def autocast(a):
    return torch.autocast(a.device, torch.bfloat16) if a.master else contextlib.nullcontext()


def limits(a):
    """What the device does at best: products, in TFLOP/s, and a copy, counting bytes read and written."""
    result = dict(torch=torch.__version__, transformers=transformers.__version__, gpu="none")
    if a.device != "cpu":
        device = torch.cuda.get_device_properties(0)
        result |= dict(gpu=device.name, memory_gib=device.total_memory / 2**30, multiprocessors=device.multi_processor_count,
                       cuda=torch.version.cuda)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            result["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()

    def best(what, work, times=10):
        work()
        return min(timed(a, what, lambda: [work() for _ in range(times)])[0] for _ in range(3)) / times

    n = a.size
    for name, dtype, tf32 in [("bf16", torch.bfloat16, False), ("tf32", torch.float32, True), ("f32", torch.float32, False)]:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x, y = (torch.randn(n, n, device=a.device).to(dtype) for _ in range(2))
        out = torch.empty_like(x)
        result[f"{name}_tflops"] = 2e-12 * n**3 / best(f"10 products in {name}", lambda: torch.mm(x, y, out=out))
    source = torch.empty(n * n * 16, device=a.device).normal_()
    target = torch.empty_like(source)
    result["copy_tb_per_second"] = 8e-12 * source.numel() / best("10 copies", lambda: target.copy_(source))
    return result


def log_probs(model, ids, start, layer=None):
    """Of the tokens from `start` on, from full logits of their positions in f32."""
    out = model(ids, logits_to_keep=ids.shape[1] - start + 1, output_hidden_states=layer is not None, use_cache=False)
    logits = out.logits[:, :-1] if layer is None else model.lm_head(out.hidden_states[layer][:, start - 1:-1])
    logits = logits.float()
    return logits.gather(-1, ids[:, start:, None])[..., 0] - torch.stack([row.logsumexp(-1) for row in logits])


def surrogate(logp, old, advantages, low=0.2, high=0.2, dual=10.0):
    """The clipped surrogate, summed over tokens."""
    ratio = torch.exp(torch.clamp(logp - old, -20, 20))
    loss = torch.maximum(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - low, 1 + high))
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * dual), loss).sum()


class Trainer:
    def __init__(self, a, model):
        self.a, self.model, self.micro = a, model, a.micro
        if not a.no_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01, fused=a.device != "cpu" or None)

    def parts(self, *tensors):
        return zip(*(t.split(self.micro) for t in tensors))

    def score(self, ids):
        self.model.eval()
        with torch.no_grad(), autocast(self.a):
            return torch.cat([log_probs(self.model, part, self.a.prompt, self.a.layer) for part, in self.parts(ids)])

    def update(self, ids, old, advantages):
        """One optimizer step; the loss, a mean over the response's tokens."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part, before, advantage in self.parts(ids, old, advantages):
            with autocast(self.a):
                loss = surrogate(log_probs(self.model, part, self.a.prompt, self.a.layer), before, advantage) / old.numel()
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return total.item()

    def fitting(self, work):
        """The work, in micro-batches that fit."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if self.micro == 1:
                    raise
            self.micro //= 2
            self.optimizer.zero_grad(set_to_none=True)
            empty(self.a)
            say(f"out of memory: micro-batches of {self.micro} from here")


def update_flop(a):
    """What an update needs, nothing twice: products once forward and twice backward, attention's two forward and four backward."""
    hidden, layers, heads, kv_heads, head_dim, ffn, vocab = SHAPES[a.shape]
    depth, q, kv = a.layer or layers, heads * head_dim, kv_heads * head_dim
    weights = hidden * (2 * q + 2 * kv + 3 * ffn)
    rows, targets = a.length - 1, a.length - a.prompt
    return a.rows * (6 * (depth * weights * rows + vocab * hidden * targets) + 12 * depth * q * rows * (rows + 1) / 2)


def update(a):
    model = build(a)
    trainer = Trainer(a, model)
    rng = random.Random(0)
    ids = torch.tensor(token_ids(model.config.vocab_size, a.rows, a.length, rng), device=a.device)
    advantages = torch.tensor([[rng.gauss(0, 1)] for _ in range(a.rows)], device=a.device)
    old = trainer.fitting(lambda: trainer.score(ids))
    work = lambda: trainer.update(ids, old, advantages)
    warm, first = timed(a, "update, cold", lambda: trainer.fitting(work))
    runs = [timed(a, "update", work) for _ in range(a.repeat)]
    seconds = statistics.median(s for s, _ in runs)
    return dict(seconds=seconds, all_seconds=[s for s, _ in runs], cold_seconds=warm, tokens_per_second=a.rows * a.length / seconds,
                tflops=1e-12 * update_flop(a) / seconds, losses=[first, *(loss for _, loss in runs)], micro=trainer.micro)


def entropy(logits):
    return -(torch.softmax(logits, dim=-1) * torch.log_softmax(logits, dim=-1)).sum(-1)


@torch.no_grad()
def taps(model, ids, start):
    """Entropy of every tap, residual cosines and norms, for the response's tokens; one sequence."""
    kept, hooks = {}, []

    def keep(name, module, pick):
        def hook(_module, args, out):
            x = pick(args, out)
            kept[name] = (x[0] if isinstance(x, tuple) else x)[0]
        hooks.append(module.register_forward_hook(hook))

    given, made = lambda args, out: args[0], lambda args, out: out
    layers = list(enumerate(model.model.layers, 1))
    for i, layer in layers:
        keep(("attn_in", i), layer.input_layernorm, made)
        keep(("resid_pre", i), layer.input_layernorm, given)
        keep(("attn", i), layer.self_attn, made)
        keep(("ffn_in", i), layer.post_attention_layernorm, made)
        keep(("resid_mid", i), layer.post_attention_layernorm, given)
        keep(("ffn", i), layer.mlp, made)
        keep(("resid_post", i), layer, made)
    rows = slice(start - 1, ids.shape[1] - 1)
    result = {"final": entropy(model(ids, use_cache=False).logits[0, rows].float())}
    for hook in hooks:
        hook.remove()
    at = lambda name, i: kept[(name, i)][rows]
    cosine = lambda x, y: torch.nn.functional.cosine_similarity(x.float(), y.float(), dim=-1)
    for i, _ in layers:
        for name in ("resid_pre", "attn_in", "attn", "ffn_in", "ffn", "resid_post"):
            result[f"{name}.{i}"] = entropy(model.lm_head(at(name, i)).float())
        result[f"cos_attn.{i}"] = cosine(at("attn", i), at("resid_pre", i))
        result[f"cos_ffn.{i}"] = cosine(at("ffn", i), at("resid_mid", i))
        result[f"norm.{i}"] = at("resid_post", i).float().norm(dim=-1)
    return {name: values.double().sum().item() for name, values in result.items()}


def analysis(a):
    model = build(a)
    ids = torch.tensor(token_ids(model.config.vocab_size, a.rows, a.length, random.Random(0)), device=a.device)
    timed(a, "one sequence, cold", lambda: taps(model, ids[:1], a.prompt))
    runs = [timed(a, "analysis", lambda: [taps(model, row[None], a.prompt) for row in ids]) for _ in range(a.repeat)]
    seconds, tokens = statistics.median(s for s, _ in runs), a.rows * (a.length - a.prompt)
    hidden, layers, *_, vocab = SHAPES[a.shape]
    return dict(seconds=seconds, all_seconds=[s for s, _ in runs], tokens=tokens, tokens_per_second=tokens / seconds,
                head_tflops=2e-12 * tokens * (6 * layers + 1) * hidden * vocab / seconds,
                final_entropy=sum(r["final"] for r in runs[0][1]) / tokens)


class TokenClock(LogitsProcessor):
    """Marks the time of every token, without waiting for the device."""

    def __init__(self, a):
        self.a, self.marks = a, []

    def __call__(self, input_ids, scores):
        if self.a.device == "cpu":
            self.marks.append(time.perf_counter())
        else:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        return scores

    def milliseconds(self, first, last):
        """Of a token, between two of them."""
        if self.a.device == "cpu":
            return (self.marks[last] - self.marks[first]) * 1e3 / (last - first)
        torch.cuda.synchronize()
        return self.marks[first].elapsed_time(self.marks[last]) / (last - first)


def sample(a, model, ids, new):
    """`new` tokens behind every prompt, and the clock of the tokens."""
    clock = TokenClock(a)
    model.eval()
    with torch.no_grad(), autocast(a):
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                             min_new_tokens=new, max_new_tokens=new, pad_token_id=0, eos_token_id=None,
                             logits_processor=LogitsProcessorList([clock]))
    assert out.shape[1] == ids.shape[1] + new
    return out, clock


def rollout(a):
    model = build(a)
    prompts = lambda length: torch.randint(1, model.config.vocab_size, (a.batch, length), device=a.device)
    timed(a, "rollout, cold", lambda: sample(a, model, prompts(a.prompt), 4))
    runs = [timed(a, f"rollout of {a.new} tokens", lambda: sample(a, model, prompts(a.prompt), a.new)) for _ in range(a.repeat)]
    seconds = statistics.median(s for s, _ in runs)
    window, clock = min(16, a.new - 1), runs[-1][1][1]
    at = {a.prompt + n - window // 2: clock.milliseconds(n - window, n) for n in range(window, a.new, max(window, a.new // 8))}
    for length in filter(None, a.at.split(",")):
        _, (_, clock) = timed(a, f"tokens behind {length}", lambda: sample(a, model, prompts(int(length)), 20))
        at[int(length) + 11] = clock.milliseconds(3, 19)
    return dict(seconds=seconds, all_seconds=[s for s, _ in runs], new_tokens=a.batch * a.new,
                tokens_per_second=a.batch * a.new / seconds, token_milliseconds={str(n): round(ms, 3) for n, ms in sorted(at.items())})


def step(a):
    model = build(a)
    trainer = Trainer(a, model)
    prompts = torch.randint(1, model.config.vocab_size, (a.prompts, a.prompt), device=a.device).repeat_interleave(a.group, 0)

    def one(new):
        rolled, (ids, _) = timed(a, f"rollout of {new} tokens", lambda: sample(a, model, prompts, new))
        rewards = (ids[:, a.prompt:] % 2 == 0).float().mean(-1).view(a.prompts, a.group)
        advantages = ((rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-6)).view(-1, 1)
        scored, old = timed(a, "old log-probs", lambda: trainer.fitting(lambda: trainer.score(ids)))
        updated, loss = timed(a, "update", lambda: trainer.fitting(lambda: trainer.update(ids, old, advantages)))
        return rolled, scored, updated, loss

    timed(a, "step, cold", lambda: one(min(a.new, 16)))
    runs = [timed(a, "step", lambda: one(a.new)) for _ in range(a.repeat)]
    seconds, tokens = statistics.median(s for s, _ in runs), a.prompts * a.group * a.new
    part = lambda i: statistics.median(parts[i] for _, parts in runs)
    return dict(seconds=seconds, all_seconds=[s for s, _ in runs], rollout_seconds=part(0), score_seconds=part(1),
                update_seconds=part(2), tokens_per_step=tokens, tokens_per_second=tokens / seconds, micro=trainer.micro)


def empty(a):
    gc.collect()
    if a.device != "cpu":
        torch.cuda.empty_cache()


def answer(words):
    """Runs one job; the line about it."""
    def over(*_):
        raise TimeoutError(f"took more than {a.limit:g} s")

    a = arguments(words)
    line = dict(job=a.job, shape=a.shape, dtype="master" if a.master else a.dtype, command=shlex.join(words))
    say(f"-- {line['command']}")
    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, a.limit)
    start = time.perf_counter()
    try:
        empty(a)
        if a.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        line |= globals()[a.job](a)
        if a.device != "cpu":
            line |= dict(peak_device_mib=torch.cuda.max_memory_allocated() / 2**20, reserved_mib=torch.cuda.max_memory_reserved() / 2**20)
    except Exception as error:
        line["error"] = f"{type(error).__name__}: {error}"[:600]
        say(line["error"])
    signal.setitimer(signal.ITIMER_REAL, 0)
    return a, line | {"whole_seconds": time.perf_counter() - start}


def main():
    jobs = (shlex.split(line) for line in sys.stdin) if sys.argv[1:] == ["-"] else [sys.argv[1:]]
    failed = False
    for words in filter(None, jobs):
        a, line = answer(words)
        empty(a)
        print(json.dumps(line), flush=True)
        failed |= "error" in line
    sys.exit(failed)


if __name__ == "__main__":
    main()
