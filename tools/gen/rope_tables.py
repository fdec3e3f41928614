#!/usr/bin/env python3
"""RoPE frequency tables of published models, computed by mlx-lm: tests/data/rope/tables.json.

    rope_tables.py tests/data/rope/tables.json        needs mlx, mlx-lm

Each case: the parameters as the model's config.json gives them, n_rot, n_ctx, inv_freq and the factor of cos and sin.
"""
import json
import sys

import mlx.core as mx
from mlx_lm.models.rope_utils import Llama3RoPE, SuScaledRoPE, YarnRoPE

CASES = [
    ("Llama 2", "default", 128, 10000.0, {}),
    ("Gemma 3 global", "linear", 256, 1000000.0, {"factor": 8.0}),
    ("Llama 3.1 8B", "llama3", 128, 500000.0,
     {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    ("Llama 3.2 1B", "llama3", 64, 500000.0,
     {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    ("Qwen2.5 7B", "yarn", 128, 1000000.0, {"factor": 4.0, "original_max_position_embeddings": 32768}),
    ("yarn with both mscales", "yarn", 64, 10000.0,
     {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.7}),
    ("yarn with betas", "yarn", 128, 150000.0,
     {"factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0, "beta_slow": 2.0}),
    ("Phi-3 mini 128k", "longrope", 96, 10000.0,
     {"original_max_position_embeddings": 4096, "max_position_embeddings": 131072,
      "long_factor": [1.0 + 0.02 * i * i for i in range(48)], "short_factor": [1.0 + 0.01 * i for i in range(48)]}),
]


def table(kind, dims, base, p):
    if kind == "llama3":
        return 1 / Llama3RoPE(dims, base=base, scaling_config=p)._freqs, 1.0
    if kind == "yarn":
        r = YarnRoPE(dims, base=base, scaling_factor=p["factor"], **{k: v for k, v in p.items() if k != "factor"})
        return 1 / r._freqs, r.mscale
    if kind == "longrope":
        r = SuScaledRoPE(dims, base, **p)
        return 1 / r._freqs, r._scale
    freqs = base ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)
    return 1 / freqs / p.get("factor", 1.0), 1.0


out = []
for name, kind, dims, base, p in CASES:
    f, m = table(kind, dims, base, p)
    out.append({"name": name, "type": kind, "n_rot": dims, "theta": base, "parameters": p, "mscale": m,
                "inv_freq": [float(f"{x:.9g}") for x in f.tolist()]})
with open(sys.argv[1], "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(c) for c in out) + "\n]\n")
