"""Opens a checkpoint that bupo wrote with transformers, and compares log-probs and entropies with `bupo score`.

    python tools/golden/check_checkpoint.py MODEL [--bupo target/release/bupo]

Exits with 1 if keys are missing or unexpected, or if any value differs by more than 1e-4.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ap = argparse.ArgumentParser()
ap.add_argument("model")
ap.add_argument("--bupo", default="target/release/bupo")
a = ap.parse_args()

model, info = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, output_loading_info=True)
problems = {k: v for k, v in info.items() if v}
tokenizer = AutoTokenizer.from_pretrained(a.model)
text = "12+7-5=12+7=19;19-5=14;"
if tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) != text:
    problems["tokenizer"] = "text does not round-trip"
rng = random.Random(0)
length = min(48, model.config.max_position_embeddings)
rows = [dict(input_ids=[rng.randrange(model.config.vocab_size) for _ in range(length)], response_start=s) for s in (1, 7, 30)]
worst = 0.0
with tempfile.TemporaryDirectory() as scratch:
    data, out = pathlib.Path(scratch, "rows.jsonl"), pathlib.Path(scratch, "scores.jsonl")
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    subprocess.run([a.bupo, "score", a.model, "--data", data, "--out", out, "--quiet"], check=True)
    for row, score in zip(rows, map(json.loads, out.read_text().splitlines())):
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([row["input_ids"]])).logits[0].double(), -1)
        states = logp[row["response_start"] - 1:-1]
        ids = torch.tensor(row["input_ids"][row["response_start"]:])
        for ours, theirs in [(score["log_probs"], states.gather(-1, ids[:, None])[:, 0]),
                             (score["entropy"], -(states.exp() * states).sum(-1))]:
            worst = max(worst, (torch.tensor(ours).double() - theirs).abs().max().item())
print(json.dumps(dict(largest_difference=worst, problems=problems)))
sys.exit(bool(problems) or worst > 1e-4)
