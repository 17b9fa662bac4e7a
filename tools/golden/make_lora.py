"""Golden numbers from PEFT for adapters (LoRA).

    python tools/golden/make_lora.py [tests/golden]

Reads the cases that make_golden.py wrote, puts an adapter with PEFT beside their linear layers, saves it with PEFT (`lora/NAME`), and adds
`golden.safetensors` and `golden.json`: log-probs, the loss and the gradient of every A and B for the final policy (with the KL to the base,
which is the model with the adapter off) and for a layer's, and what AdamW makes of the adapter. float64 from float32 weights, stored in
float32. Run it from the root of the sources: the adapters name their base from there.
"""
import json
import pathlib
import sys

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from make_golden import BETAS, CLIP, DECAY, EPS, GRAD_CLIP, KL_COEF, LENGTHS, LR, k3, statistics, surrogate

SEED, TEMPERATURE, STEPS = 22, 0.7, 3
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "qwen3": dict(r=4, lora_alpha=6, target_modules=ALL),
    "qwen2": dict(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "v_proj", "up_proj"], layers_to_transform=[0, 1, 3]),
}


def case(name, settings, root):
    base, folder = root / name, root / "lora" / name
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():  # B begins at zero, where A has no gradient
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.copy_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    model = model.double().eval()
    plain = model.base_model.model
    golden = load_file(base / "golden.safetensors")
    sequences = [golden[f"input_ids.{s}"].tolist() for s in range(len(LENGTHS))]
    adv = golden["advantages"].double()
    noise = torch.randn(adv.shape).double() * 0.3
    adapter = {n.removeprefix("base_model.model.").replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    with model.disable_adapter(), torch.no_grad():
        ref = statistics(plain, sequences, "final", TEMPERATURE)[0]
    store, losses, steps = {"ref": ref}, {}, {}
    start = {n: p.detach().clone() for n, p in adapter.items()}
    for policy in ["final", "layer:2"]:
        old = (statistics(plain, sequences, policy, TEMPERATURE)[0] + noise).detach()

        def loss():
            p = statistics(plain, sequences, policy, TEMPERATURE)[0]
            return p, surrogate(p, old, adv) + (KL_COEF * k3(p, ref).mean() if policy == "final" else 0.0)

        p, value = loss()
        model.zero_grad(set_to_none=True)
        value.backward()
        losses[policy] = value.item()
        store |= {f"log_probs.{policy}": p.detach(), f"old.{policy}": old}
        store |= {f"grad.{policy}.{n}": p.grad.clone() for n, p in adapter.items() if p.grad is not None}
        optimizer = torch.optim.AdamW(adapter.values(), lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
        steps[policy] = []
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            value = loss()[1]
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(adapter.values(), GRAD_CLIP)
            optimizer.step()
            steps[policy].append(dict(loss=value.item(), grad_norm=norm.item()))
        store |= {f"adamw.{policy}.{n}": p.detach().clone() for n, p in adapter.items()}
        with torch.no_grad():
            for n, p in adapter.items():
                p.copy_(start[n])
    merged = model.merge_and_unload()
    for i, layer in enumerate(merged.model.layers):
        for part in [layer.self_attn.q_proj, layer.mlp.down_proj]:
            kind = "self_attn.q_proj" if part is layer.self_attn.q_proj else "mlp.down_proj"
            store[f"merged.model.layers.{i}.{kind}.weight"] = part.weight.detach()
    save_file({k: v.contiguous().float() for k, v in store.items()}, folder / "golden.safetensors")
    meta = dict(command="python tools/golden/make_lora.py", seed=SEED, torch=torch.__version__, transformers=transformers.__version__,
                peft=peft.__version__, temperature=TEMPERATURE, kl_coef=KL_COEF, clip=CLIP, losses=losses,
                adamw=dict(lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=DECAY, grad_clip=GRAD_CLIP, steps=steps))
    (folder / "golden.json").write_text(json.dumps(meta, indent=1) + "\n")


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden")
    for name, settings in CASES.items():
        case(name, settings, root)
