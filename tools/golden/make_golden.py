"""Golden numbers from PyTorch + transformers for the decoder's tests.

    python tools/golden/make_golden.py [tests/golden [CASE ..]]

Writes one folder a case: `config.json` and `model.safetensors` as `save_pretrained` writes them, `golden.safetensors`
with everything that the decoder must reproduce, and `meta.json` with versions, seed and the batch's shape. The reference
runs in float64 from float32 weights, but for what transformers always computes in float32 (norm statistics, RoPE tables,
softmax of the scores), so its own rounding is next to no part of
the comparison; values are stored in float32. Versions: requirements.txt.
"""
import json
import pathlib
import platform
import sys

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

SEED = 20
LENGTHS, STARTS = [17, 9, 24], [5, 3, 8]
CLIP, DUAL, KL_COEF, ENTROPY_COEF = 0.2, 10.0, 0.05, 0.01
# AdamW's first step is g / (|g| + eps). Some gradients are about 1e-8, and with such an eps that is a quotient of rounding errors, which no
# float32 can be held against; with this one it is still far below most of them.
LR, BETAS, EPS, DECAY, GRAD_CLIP, STEPS = 1e-3, (0.9, 0.999), 1e-5, 0.01, 1.0, 5
# No pad token: torch gives the embedding of a padding index no gradient. All heads are 16 wide, the least that CUDA's kernels take.
COMMON = dict(hidden_size=32, num_hidden_layers=4, intermediate_size=48, vocab_size=96, max_position_embeddings=64, rms_norm_eps=1e-6,
              bos_token_id=1, eos_token_id=2, pad_token_id=None, initializer_range=0.2)
WIDE, NARROW = dict(num_attention_heads=4, num_key_value_heads=2), dict(num_attention_heads=2, num_key_value_heads=1)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16, rope_theta=1e4)
CASES = {
    "qwen3": Qwen3Config(head_dim=16, rope_theta=1e4, tie_word_embeddings=True, **WIDE, **COMMON),
    "qwen2": Qwen2Config(rope_theta=1e4, tie_word_embeddings=False, **NARROW, **COMMON),
    "llama": LlamaConfig(rope_theta=1e4, tie_word_embeddings=False, **NARROW, **COMMON),
    "llama3": LlamaConfig(rope_scaling=LLAMA3, rope_theta=1e4, tie_word_embeddings=True, **NARROW, **COMMON),
}


class Taps:
    """Every hidden state of one forward, by name; `resid_post` is the raw layer output, in the last layer too."""

    def __init__(self, model):
        self.model = model

    def run(self, ids):
        taps, handles = {}, []

        def keep(name, pick):
            def hook(_module, args, kwargs, out):
                x = pick(args, kwargs, out)
                taps[name] = (x[0] if isinstance(x, tuple) else x)[0]
            return hook

        def first(args, kwargs, _out):
            return args[0] if args else kwargs["hidden_states"]

        out = lambda _a, _k, o: o
        for i, layer in enumerate(self.model.model.layers, 1):
            for module, hooks in [(layer.input_layernorm, [(f"resid_pre.{i}", first), (f"attn_in.{i}", out)]),
                                  (layer.self_attn, [(f"attn.{i}", out)]),
                                  (layer.post_attention_layernorm, [(f"resid_mid.{i}", first), (f"ffn_in.{i}", out)]),
                                  (layer.mlp, [(f"ffn.{i}", out)]),
                                  (layer, [(f"resid_post.{i}", out)])]:
                handles += [module.register_forward_hook(keep(n, p), with_kwargs=True) for n, p in hooks]
        handles.append(self.model.model.norm.register_forward_hook(keep("final", out), with_kwargs=True))
        self.model(input_ids=torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        return taps


def tap_of(policy):
    kind, _, layer = policy.partition(":")
    return "final" if kind == "final" else f"{dict(layer='resid_post', attn='attn', ffn='ffn')[kind]}.{layer}"


def statistics(model, sequences, policy, temperature):
    """Log-probs and entropies of all response tokens under a policy, one after the other."""
    log_probs, entropies = [], []
    for ids, start in zip(sequences, STARTS):
        hidden = Taps(model).run(ids)[tap_of(policy)][start - 1:len(ids) - 1]
        logp = torch.log_softmax(hidden @ model.lm_head.weight.T / temperature, dim=-1)
        log_probs.append(logp.gather(-1, torch.tensor(ids[start:])[:, None])[:, 0])
        entropies.append(-(logp.exp() * logp).sum(-1))
    return torch.cat(log_probs), torch.cat(entropies)


def surrogate(logp, old, adv):
    ratio = torch.exp(torch.clamp(logp - old, -20, 20))
    loss = torch.maximum(-adv * ratio, -adv * torch.clamp(ratio, 1 - CLIP, 1 + CLIP))
    return torch.where(adv < 0, torch.minimum(loss, -adv * DUAL), loss).mean()


def k3(logp, ref):
    d = torch.clamp(ref - logp, -20, 20)
    return torch.clamp(d.exp() - d - 1, -10, 10)


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def drawn(config):
    """A model in float32, sequences, advantages, and how far the old log-probs are from the new ones."""
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():  # norms and biases away from 1 and 0, so that a missing one shows
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.1)
    sequences = [torch.randint(3, 96, (n,)).tolist() for n in LENGTHS]
    tokens = sum(LENGTHS) - sum(STARTS)
    adv, noise = torch.randn(tokens).double(), torch.randn(tokens).double() * 0.4
    noise[::9] -= 3.0  # ratios about e^3: some tokens meet the dual clip
    return model, sequences, adv, noise


def stepped(model, sequences, policy, adv, old):
    """AdamW's steps: what each found; the model is trained."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    steps = []
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss = surrogate(statistics(model, sequences, policy, 1.0)[0], old, adv)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        steps.append(dict(loss=loss.item(), grad_norm=norm.item()))
    return steps


def case(name, config, out):
    model, sequences, adv, noise = drawn(config)
    folder = out / name
    model.save_pretrained(folder)
    model = model.double().eval()
    store = {f"input_ids.{s}": torch.tensor(ids) for s, ids in enumerate(sequences)}
    store |= {"advantages": adv}
    with torch.no_grad():
        for s, ids in enumerate(sequences):
            store |= {f"tap.{s}.{k}": v.clone() for k, v in Taps(model).run(ids).items()}
        for policy in ["final", "layer:1", "layer:2", "layer:4", "attn:2", "ffn:2"]:
            for t in [1.0, 0.7]:
                p, h = statistics(model, sequences, policy, t)
                store |= {f"log_probs.{policy}.{t}": p, f"entropy.{policy}.{t}": h}
    losses = {}
    runs = [("final", 1.0, False), ("layer:2", 1.0, False), ("layer:4", 0.7, False), ("attn:2", 0.7, False),
            ("ffn:2", 0.7, False), ("final", 0.7, True)]
    for policy, t, extras in runs:
        key = f"{policy}.{t}" + (".extras" if extras else "")
        p, h = statistics(model, sequences, policy, t)
        old, ref = (p + noise).detach(), (p + noise.flip(0) * 0.5).detach()
        loss = surrogate(p, old, adv)
        if extras:
            loss = loss - ENTROPY_COEF * h.mean() + KL_COEF * k3(p, ref).mean()
            store[f"ref.{key}"] = ref
        losses[key] = loss.item()
        store[f"old.{key}"] = old
        store |= {f"grad.{key}.{n}": g for n, g in gradients(model, loss).items()}
    steps = {}
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    for policy in ["final", "layer:2"]:
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(start[n])
        old = store[f"old.{policy}.1.0"]
        steps[policy] = stepped(model, sequences, policy, adv, old)
        store |= {f"adamw.{policy}.{n}": p.detach().clone() for n, p in model.named_parameters()}
    store = {k: v.contiguous().float() if v.is_floating_point() else v for k, v in store.items()}
    save_file(store, folder / "golden.safetensors")
    meta = dict(command="python tools/golden/make_golden.py", seed=SEED, torch=torch.__version__,
                transformers=transformers.__version__, safetensors=safetensors.__version__, python=platform.python_version(),
                reference="float64 from float32 weights, stored as float32", response_starts=STARTS, losses=losses,
                adamw=dict(lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=DECAY, grad_clip=GRAD_CLIP, steps=steps),
                clip=CLIP, dual_clip=DUAL, kl_coef=KL_COEF, entropy_coef=ENTROPY_COEF)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    print(folder, sum(f.stat().st_size for f in folder.iterdir()) // 1024, "KiB")


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden")
    for name in sys.argv[2:] or CASES:
        case(name, CASES[name], root)
