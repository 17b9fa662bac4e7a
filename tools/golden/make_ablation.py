"""Golden numbers of ablations: what PyTorch + transformers say of the decoder's cases without each of their modules.

    python tools/golden/make_ablation.py [tests/golden]

Reads each case that make_golden.py wrote (its model, sequences and response starts; nothing there is changed) and writes
`ablation.safetensors` and `ablation.json` beside it. Of every layer its attention, its FFN, both, then each head (what it
hands to the output projection), replaced by zeros and by means over all tokens but each sequence's last: divergence of the whole
model's policy from the one without, its standard deviation over tokens, changes of the log-prob of the token that came and of the
entropy, agreement of the likeliest token. Means over response tokens, one value a module, in float64 from float32 weights,
stored as float32. And `z` of each sequence: what the heads of layer 2 hand to their projection.
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

from make_analysis import CASES, kl


def sites(model, layer, module):
    """Where a module's output is: hooks that read or replace columns of it."""
    block = model.model.layers[layer]
    if module == "attn":
        return [(block.self_attn, "out", slice(None))]
    if module == "ffn":
        return [(block.mlp, "out", slice(None))]
    if module == "both":
        return sites(model, layer, "attn") + sites(model, layer, "ffn")
    width = block.self_attn.head_dim
    return [(block.self_attn.o_proj, "in", slice(module * width, (module + 1) * width))]


def hook(site, edit):
    """`edit` is given what a module writes, `[1, T, n]`, and returns what goes on."""
    module, side, columns = site
    def edited(x):
        x = x.clone()
        x[..., columns] = edit(x[..., columns])
        return x
    if side == "in":
        return module.register_forward_pre_hook(lambda _m, args: (edited(args[0]),))
    return module.register_forward_hook(
        lambda _m, _a, out: (edited(out[0]), *out[1:]) if isinstance(out, tuple) else edited(out))


def policy(model, sequences, starts):
    """Log-probs `[T, V]` of the tokens that predict response tokens."""
    rows = [torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0], -1)[start - 1:len(ids) - 1]
            for ids, start in zip(sequences, starts)]
    return torch.cat(rows)


def mean_of(model, site, sequences):
    """Of what a module writes, over all tokens but each sequence's last."""
    seen = []
    handle = hook(site, lambda x: (seen.append(x[0]), x)[1])
    for ids in sequences:
        model(input_ids=torch.tensor([ids[:-1]]), use_cache=False)
    handle.remove()
    return torch.cat(seen).mean(0)


def effects(whole, without, came):
    entropy = lambda p: -(p.exp() * p).sum(-1)
    log_prob = lambda p: p.gather(-1, came[:, None])[:, 0]
    lost = kl(whole, without)
    return [lost.mean(), lost.std(correction=0), (log_prob(without) - log_prob(whole)).mean(),
            (entropy(without) - entropy(whole)).mean(), (whole.argmax(-1) == without.argmax(-1)).double().mean()]


def case(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    golden = load_file(folder / "golden.safetensors")
    starts = json.loads((folder / "meta.json").read_text())["response_starts"]
    sequences = [golden[f"input_ids.{s}"].tolist() for s in range(len(starts))]
    came = torch.tensor(sum([ids[start:] for ids, start in zip(sequences, starts)], []))
    heads, store = range(model.config.num_attention_heads), {}
    with torch.no_grad():
        whole = policy(model, sequences, starts)
        for replace in ["zero", "mean"]:
            rows = []
            for layer in range(model.config.num_hidden_layers):
                for module in ["attn", "ffn", "both", *heads]:
                    at = sites(model, layer, module)
                    means = [mean_of(model, site, sequences) if replace == "mean" else torch.tensor(0.0) for site in at]
                    handles = [hook(site, lambda x, mean=mean: mean.expand_as(x)) for site, mean in zip(at, means)]
                    rows.append(torch.stack(effects(whole, policy(model, sequences, starts), came)))
                    for handle in handles:
                        handle.remove()
            names = ["kl", "kl_std", "log_prob_change", "entropy_change", "top1_agreement"]
            store |= {f"{replace}.{name}": column for name, column in zip(names, torch.stack(rows).T)}
        seen = []
        handle = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
        for ids in sequences:
            model(input_ids=torch.tensor([ids]), use_cache=False)
        handle.remove()
        store |= {f"z.{s}": z for s, z in enumerate(seen)}
        assert torch.equal(policy(model, sequences, starts), whole), "a hook was left"
    store = {k: v.contiguous().float() for k, v in store.items()}
    save_file(store, folder / "ablation.safetensors")
    meta = dict(command="python tools/golden/make_ablation.py", torch=torch.__version__,
                transformers=transformers.__version__, safetensors=safetensors.__version__,
                python=platform.python_version(), modules=len(rows))
    (folder / "ablation.json").write_text(json.dumps(meta, indent=1) + "\n")
    print(folder, (folder / "ablation.safetensors").stat().st_size, "bytes, KL", store["zero.kl"].min().item(), "to",
          store["zero.kl"].max().item())


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden")
    for name in CASES:
        case(root / name)
