"""Golden numbers from PyTorch for the methods beside the clipped surrogate.

    python tools/golden/make_methods.py [tests/golden/qwen3]

Reads the case that make_golden.py wrote and adds `methods.safetensors` and `methods.json`: loss and gradient of every parameter
for a layer read through the final norm, the joint objective, GSPO and CISPO. float64 from float32 weights, stored in float32.
"""
import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from make_golden import CLIP, LENGTHS, STARTS, Taps, gradients, statistics, surrogate

SEED, BETA, TEMPERATURE = 21, 0.7, 0.7


def normed(model, sequences, layer):
    """Log-probs under softmax(LN_final(H^l) E^T)."""
    log_probs = []
    for ids, start in zip(sequences, STARTS):
        hidden = model.model.norm(Taps(model).run(ids)[f"resid_post.{layer}"][start - 1:len(ids) - 1])
        logp = torch.log_softmax(hidden @ model.lm_head.weight.T / TEMPERATURE, dim=-1)
        log_probs.append(logp.gather(-1, torch.tensor(ids[start:])[:, None])[:, 0])
    return torch.cat(log_probs)


def gspo(logp, old, adv):
    """As written down in the paper: one ratio a response, the mean over responses' tokens of the token-mean aggregation."""
    losses = []
    for p, o, a in zip(*(x.split([n - s for n, s in zip(LENGTHS, STARTS)]) for x in (logp, old, adv))):
        s = torch.exp((p - o).mean())
        losses.append(torch.maximum(-a * s, -a * torch.clamp(s, 1 - CLIP, 1 + CLIP)))
    return torch.cat(losses).mean()


def cispo(logp, old, adv):
    weight = torch.clamp(torch.exp(logp - old), 1 - CLIP, 1 + CLIP).detach()
    return (-weight * adv * logp).mean()


def main(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).double().eval()
    golden = load_file(folder / "golden.safetensors")
    sequences = [golden[f"input_ids.{s}"].tolist() for s in range(len(LENGTHS))]
    adv = golden["advantages"].double()
    torch.manual_seed(SEED)
    noise = torch.randn(adv.shape).double() * 0.3
    final = lambda: statistics(model, sequences, "final", TEMPERATURE)[0]
    layer = lambda: statistics(model, sequences, "layer:2", TEMPERATURE)[0]
    store, losses = {}, {}
    for name, policy, loss in [("normed:2", lambda: normed(model, sequences, 2), surrogate), ("gspo", final, gspo),
                               ("cispo", final, cispo)]:
        p = policy()
        old = (p + noise).detach()
        value = loss(p, old, adv)
        store[f"old.{name}"], losses[name] = old, value.item()
        store |= {f"grad.{name}.{n}": g for n, g in gradients(model, value).items()}
    upper, lower = final(), layer()
    old_upper, old_lower = (upper + noise).detach(), (lower + noise.flip(0)).detach()
    value = surrogate(upper, old_upper, adv) + BETA * surrogate(lower, old_lower, adv)
    losses["joint"] = value.item()
    store |= {"old.joint": old_upper, "old_beside.joint": old_lower}
    store |= {f"grad.joint.{n}": g for n, g in gradients(model, value).items()}
    save_file({k: v.contiguous().float() for k, v in store.items()}, folder / "methods.safetensors")
    meta = dict(command="python tools/golden/make_methods.py", seed=SEED, torch=torch.__version__,
                transformers=transformers.__version__, temperature=TEMPERATURE, beta=BETA, clip=CLIP, losses=losses)
    (folder / "methods.json").write_text(json.dumps(meta, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/qwen3"))
