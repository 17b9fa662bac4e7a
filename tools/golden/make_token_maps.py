"""Golden token x layer maps from PyTorch + transformers, for tests/token_maps.rs.

    python tools/golden/make_token_maps.py [tests/golden]

Reads the models and sequences that make_golden.py wrote, and writes `token_map.safetensors` beside them: for every response
token and every policy (layer, attention and FFN of each layer, then the final one) entropy, D(policy || final), log-prob and
rank of the token that came, and the five likeliest tokens, under both lenses (`raw`, `final_norm`). float64 from float32
weights, stored as float32; versions in the file's metadata. Versions: requirements.txt.
"""
import pathlib
import sys

import torch
import transformers
from make_golden import CASES, STARTS, Taps
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

TOP = 5


def taps(layers):
    of = lambda l: [f"resid_post.{l}", f"attn.{l}", f"ffn.{l}"]
    return [name for l in range(1, layers + 1) for name in of(l)] + ["final"]


def token_map(model, ids, start, lens):
    """Everything of one sequence's response tokens, [tokens, policies] or [tokens, policies, TOP]."""
    seen, unembed = Taps(model).run(ids), model.lm_head.weight.T
    rows, came = slice(start - 1, len(ids) - 1), torch.tensor(ids[start:])[:, None]
    final = torch.log_softmax(seen["final"][rows] @ unembed, -1)
    found = {}
    for name in taps(model.config.num_hidden_layers):
        state = seen[name][rows]
        if lens == "final_norm" and name != "final":
            # As the module computes it, but without its float32 step in the middle.
            norm = model.model.norm
            state = state * torch.rsqrt(state.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
        logp = torch.log_softmax(state @ unembed, -1)
        mine = logp.gather(-1, came)
        # A stable sort: of equal ones the lower id first.
        ids_down = torch.sort(logp, dim=-1, descending=True, stable=True).indices[:, :TOP]
        for key, value in dict(entropy=-(logp.exp() * logp).sum(-1), kl_to_final=(logp.exp() * (logp - final)).sum(-1),
                               log_prob=mine[:, 0], rank=1 + (logp > mine).sum(-1), top_ids=ids_down,
                               top_probs=logp.exp().gather(-1, ids_down)).items():
            found.setdefault(key, []).append(value)
    return {key: torch.stack(values, 1) for key, values in found.items()}


def case(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    golden, store = load_file(folder / "golden.safetensors"), {}
    for lens in ["raw", "final_norm"]:
        with torch.no_grad():
            maps = [token_map(model, golden[f"input_ids.{s}"].tolist(), start, lens) for s, start in enumerate(STARTS)]
        for key in maps[0]:
            value = torch.cat([m[key] for m in maps]).contiguous()
            store[f"{lens}.{key}"] = value.float() if value.is_floating_point() else value.int()
    metadata = dict(command="python tools/golden/make_token_maps.py", torch=torch.__version__,
                    transformers=transformers.__version__, reference="float64 from float32 weights, stored as float32")
    save_file(store, folder / "token_map.safetensors", metadata=metadata)
    print(folder, (folder / "token_map.safetensors").stat().st_size // 1024, "KiB")


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden")
    for name in CASES:
        case(root / name)
