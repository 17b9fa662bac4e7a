"""Golden numbers of a critic from PyTorch + transformers: values, advantages, the clipped value loss and its gradient.

    python tools/golden/make_critic.py [tests/golden/critic]

Writes a folder of `Qwen3ForTokenClassification` with one label, as `save_pretrained` writes it, `golden.safetensors` and
`meta.json`, with the versions. As make_golden.py: float64 from float32 weights, stored in float32.
"""
import json
import pathlib
import platform
import sys

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForTokenClassification, Qwen3Config

SEED = 21
PROMPTS, RESPONSES = [5, 3, 8], [12, 6, 16]
GAMMA, LAMBDA, CLIP = 0.98, 0.9, 0.3
REWARDS = [1.0, 0.0, 0.5]

out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/critic")
torch.manual_seed(SEED)
config = Qwen3Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
                     head_dim=16, vocab_size=64, max_position_embeddings=64, rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2,
                     pad_token_id=None, initializer_range=0.2, rope_theta=1e4, tie_word_embeddings=True, num_labels=1,
                     classifier_dropout=0.0)
model = AutoModelForTokenClassification.from_config(config, attn_implementation="eager").float()
with torch.no_grad():
    for p in model.parameters():
        if p.dim() == 1:
            p.add_(torch.randn_like(p) * 0.1)
model.save_pretrained(out)
model = model.double().eval()
sequences = [torch.randint(3, 64, (p + r,)).tolist() for p, r in zip(PROMPTS, RESPONSES)]
# The state before each response token: from the prompt's last row to the one before the last.
values = torch.cat([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, p - 1:-1, 0]
                    for ids, p in zip(sequences, PROMPTS)])
# Values from before the step: near enough for some tokens to lie within the clip and others to have left it.
old = (values + torch.randn(len(values)).double() * 0.5).detach()

advantages, start = torch.zeros_like(old), 0
for reward, n in zip(REWARDS, RESPONSES):
    running = 0.0
    for t in reversed(range(n)):
        following = old[start + t + 1] if t + 1 < n else 0.0
        delta = (reward if t + 1 == n else 0.0) + GAMMA * following - old[start + t]
        running = delta + GAMMA * LAMBDA * running
        advantages[start + t] = running
    start += n
returns = advantages + old
whitened = (advantages - advantages.mean()) * torch.rsqrt(advantages.var(unbiased=True) + 1e-8)

clipped = torch.clamp(values, old - CLIP, old + CLIP)
losses, clipped_losses = (values - returns) ** 2, (clipped - returns) ** 2
loss = 0.5 * torch.maximum(losses, clipped_losses).mean()
loss.backward()
store = {f"input_ids.{s}": torch.tensor(ids) for s, ids in enumerate(sequences)}
store |= dict(values=values.detach(), old_values=old, returns=returns, advantages=whitened)
store |= {f"grad.{n}": p.grad for n, p in model.named_parameters()}
store = {k: v.contiguous().float() if v.is_floating_point() else v for k, v in store.items()}
save_file(store, out / "golden.safetensors")
meta = dict(command="python tools/golden/make_critic.py", seed=SEED, torch=torch.__version__, transformers=transformers.__version__,
            safetensors=safetensors.__version__, python=platform.python_version(),
            reference="float64 from float32 weights, stored as float32", prompts=PROMPTS, rewards=REWARDS, gamma=GAMMA,
            **{"lambda": LAMBDA}, value_clip=CLIP, loss=loss.item(),
            clip_fraction=(clipped_losses > losses).double().mean().item())
(out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
print(out, meta)
