"""The peers' update with the model's forward under bf16 autocast: f32 master weights, as mixed-precision training does it.

    python benches/update_bf16.py PEERS MODEL BATCH.json [--layer K] [--repeat N]
"""
import runpy
import sys

import torch

peers = sys.argv.pop(1)
sys.argv[0] = f"{peers}/update_torch.py"
with torch.autocast("cpu", dtype=torch.bfloat16):
    runpy.run_path(sys.argv[0], run_name="__main__")
