"""Golden numbers of the analysis: what PyTorch + transformers say of every layer's policy on the decoder's cases.

    python tools/golden/make_analysis.py [tests/golden]

Reads each case that make_golden.py wrote (its model, sequences and response starts; nothing there is changed) and writes
`analysis.safetensors` and `analysis.json` beside it: under both lenses, entropies of every state, divergences of every
layer's policy to and from the final policy and layer 2's, log-probs of the tokens that came, likeliest tokens, and where
tokens are decided; cosines between layers. One value a response token, all sequences one after the other, in float64 from
float32 weights (norms in float32, as transformers computes them), stored as float32.
"""
import json
import pathlib
import platform
import sys

import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from make_golden import Taps

CASES = ["qwen3", "qwen2", "llama", "llama3"]
CHOSEN = 2
STATES = ["resid_pre", "attn_in", "attn", "ffn_in", "ffn", "resid_post"]


def kl(p, q):
    """D(p || q) of log-probs `[T, V]`."""
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def states(model, sequences, starts):
    """Every tap's rows that predict response tokens, `[T, d]`, and the tokens that came."""
    rows, came = {}, []
    for ids, start in zip(sequences, starts):
        for name, state in Taps(model).run(ids).items():
            rows.setdefault(name, []).append(state[start - 1:len(ids) - 1])
        came += ids[start:]
    return {name: torch.cat(parts) for name, parts in rows.items()}, torch.tensor(came)


def policies(model, taps, lens):
    """Log-probs `[T, V]` of every state read through a lens; the final state is normed already."""
    norm = (lambda x: model.model.norm(x).double()) if lens == "final_norm" else (lambda x: x)
    return {name: torch.log_softmax((x if name == "final" else norm(x)) @ model.lm_head.weight.T, dim=-1)
            for name, x in taps.items()}


def decided_at(tops, final):
    """Smallest layer from which on every layer's top token is the final policy's; 0: not even the last layer's."""
    agree = torch.stack([t == final for t in tops]).flip(0)
    run = agree.int().cumprod(0).sum(0)
    return torch.where(run > 0, len(tops) + 1 - run, torch.zeros_like(run))


def case(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    golden = load_file(folder / "golden.safetensors")
    starts = json.loads((folder / "meta.json").read_text())["response_starts"]
    sequences = [golden[f"input_ids.{s}"].tolist() for s in range(len(starts))]
    layers = range(1, model.config.num_hidden_layers + 1)
    store, least_gap = {}, 1e9
    with torch.no_grad():
        taps, came = states(model, sequences, starts)
        streams = torch.stack([taps[f"resid_post.{l}"] for l in layers])
        store["similarity"] = torch.nn.functional.cosine_similarity(streams[:, None], streams[None], dim=-1)
        store["norm"] = streams.norm(dim=-1)
        for lens in ["raw", "final_norm"]:
            logp = policies(model, taps, lens)
            for state in STATES:
                entropy = [-(logp[f"{state}.{l}"].exp() * logp[f"{state}.{l}"]).sum(-1) for l in layers]
                store[f"{lens}.entropy.{state}"] = torch.stack(entropy)
            by_layer, final = [logp[f"resid_post.{l}"] for l in layers], logp["final"]
            chosen = by_layer[CHOSEN - 1]
            store |= {f"{lens}.kl_to_final": torch.stack([kl(p, final) for p in by_layer]),
                      f"{lens}.kl_from_final": torch.stack([kl(final, p) for p in by_layer]),
                      f"{lens}.kl_to_chosen": torch.stack([kl(p, chosen) for p in by_layer]),
                      f"{lens}.kl_from_chosen": torch.stack([kl(chosen, p) for p in by_layer]),
                      f"{lens}.log_probs": torch.stack([p.gather(-1, came[:, None])[:, 0] for p in by_layer]),
                      f"{lens}.top": torch.stack([p.argmax(-1) for p in [*by_layer, final]]),
                      f"{lens}.decided_at": decided_at([p.argmax(-1) for p in by_layer], final.argmax(-1))}
            for p in [*by_layer, final]:
                best = p.topk(2, dim=-1).values
                least_gap = min(least_gap, (best[:, 0] - best[:, 1]).min().item())
    store = {k: v.contiguous().float() if v.is_floating_point() else v.contiguous() for k, v in store.items()}
    save_file(store, folder / "analysis.safetensors")
    meta = dict(command="python tools/golden/make_analysis.py", torch=torch.__version__,
                transformers=transformers.__version__, safetensors=safetensors.__version__,
                python=platform.python_version(), chosen=CHOSEN, least_gap_of_the_two_likeliest=least_gap)
    (folder / "analysis.json").write_text(json.dumps(meta, indent=1) + "\n")
    print(folder, (folder / "analysis.safetensors").stat().st_size // 1024, "KiB, least gap", least_gap)


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden")
    for name in CASES:
        case(root / name)
