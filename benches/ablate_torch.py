"""Ablations in plain PyTorch, the usual way: a hook for each module, and the whole model again without it. An oracle and a baseline.

    python ablate_torch.py MODEL TOKENS.jsonl [--out result.json] [--dtype float32]

TOKENS.jsonl: one object a line, {"input_ids": [...], "response_start": int}. Of each layer its attention, its FFN and both are replaced
by zeros; means over response tokens. The unembedding is read for those alone.
"""
import argparse
import json
import resource
import time

import torch
from transformers import AutoModelForCausalLM

ap = argparse.ArgumentParser()
ap.add_argument("model")
ap.add_argument("tokens")
ap.add_argument("--out")
ap.add_argument("--dtype", default="float32")
a = ap.parse_args()
model = AutoModelForCausalLM.from_pretrained(a.model, dtype=getattr(torch, a.dtype)).eval()
samples = [json.loads(line) for line in open(a.tokens)]


def policy(ids, start):
    states = model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0, start - 1:len(ids) - 1]
    return torch.log_softmax(model.lm_head(states).float(), dim=-1)


def nothing(_module, _inputs, out):
    return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)


totals, tokens, start_time = {}, 0, time.perf_counter()
with torch.no_grad():
    for sample in samples:
        ids, start = sample["input_ids"], sample["response_start"]
        whole, came = policy(ids, start), torch.tensor(ids[start:])[:, None]
        tokens += len(came)
        entropy = lambda p: -(p.exp() * p).sum(-1)
        for i, layer in enumerate(model.model.layers, 1):
            for name, modules in [("attn", [layer.self_attn]), ("ffn", [layer.mlp]), ("both", [layer.self_attn, layer.mlp])]:
                handles = [module.register_forward_hook(nothing) for module in modules]
                without = policy(ids, start)
                for handle in handles:
                    handle.remove()
                effect = [(whole.exp() * (whole - without)).sum(), (without - whole).gather(-1, came).sum(),
                          (entropy(without) - entropy(whole)).sum(), (whole.argmax(-1) == without.argmax(-1)).sum()]
                sums = totals.setdefault(f"{name}.{i}", [0.0] * 4)
                for j, x in enumerate(effect):
                    sums[j] += x.item()
seconds = time.perf_counter() - start_time
keys = ["kl", "log_prob_change", "entropy_change", "top1_agreement"]
mean = {name: dict(zip(keys, (x / tokens for x in sums))) for name, sums in totals.items()}
if a.out:
    json.dump(mean, open(a.out, "w"))
print(json.dumps(dict(tokens=tokens, seconds=seconds, peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))
