#!/usr/bin/env python3
"""Make the bf16 and MLX-quantised forms of two models of tests/data/models, with goldens computed by MLX.

    mlx_models.py tests/data/models

Needs mlx, mlx-lm, numpy. llama-bf16: the same values as llama, so the same golden. NAME-mlx4: mlx_lm's own conversion
to 4 bits in groups of 32, as its users publish models (bf16 scales); the golden is what MLX computes in float32 on the
CPU from the weights that MLX dequantises, so that it does not depend on the precision of activations.
"""
import json
import pathlib
import shutil
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.convert import convert
from mlx_lm.utils import load_model
from safetensors.numpy import load_file, save_file

KEEP = ("config.json", "generation_config.json", "golden.safetensors", "tokenizer.json", "tokenizer_config.json")


def bf16(root):
    src, out = root / "llama", root / "llama-bf16"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for f in KEEP:
        shutil.copy(src / f, out / f)
    cfg = json.loads((out / "config.json").read_text())
    cfg["torch_dtype"] = "bfloat16"
    (out / "config.json").write_text(json.dumps(cfg, indent=2) + "\n")
    weights = mx.load(str(src / "model.safetensors"))
    small = {k: v.astype(mx.bfloat16) for k, v in weights.items()}
    assert all(mx.all(small[k].astype(mx.float32) == weights[k]).item() for k in weights)
    mx.save_safetensors(str(out / "model.safetensors"), small, {"format": "pt"})


def dequantised(model):
    """Replace each quantised layer's weights by their f32 values, in place."""
    for name, m in model.named_modules():
        if isinstance(m, (nn.QuantizedLinear, nn.QuantizedEmbedding)) or hasattr(m, "scales"):
            yield name, mx.dequantize(m.weight, m.scales.astype(mx.float32), m.biases.astype(mx.float32), m.group_size, m.bits)


def quantised(root, name):
    src, out = root / name, root / (name + "-mlx4")
    shutil.rmtree(out, ignore_errors=True)
    convert(str(src), str(out), quantize=True, q_group_size=32, q_bits=4, dtype="bfloat16")
    for f in ("README.md", "model.safetensors.index.json"):
        (out / f).unlink(missing_ok=True)
    q, _ = load_model(out)
    plain, _ = load_model(src)
    values = dict(dequantised(q))
    plain.load_weights([(k + ".weight", v) for k, v in values.items()], strict=False)
    norms = [(k, v.astype(mx.float32)) for k, v in mx.load(str(out / "model.safetensors")).items() if "norm" in k]
    plain.load_weights(norms, strict=False)
    golden = load_file(src / "golden.safetensors")
    y = np.array(plain(mx.array(golden["ids"][None])).astype(mx.float32))[0]
    logits = np.ascontiguousarray(y[golden["positions"]])
    print(name, "quantised layers", len(values), "logits moved by", np.abs(logits - golden["logits"]).max(1))
    save_file({"ids": golden["ids"], "positions": golden["positions"], "logits": logits}, out / "golden.safetensors")


def main():
    root = pathlib.Path(sys.argv[1])
    mx.set_default_device(mx.cpu)
    bf16(root)
    quantised(root, "llama")
    quantised(root, "qwen3-moe")


main()
