#!/usr/bin/env python3
"""Makes tests/data/lora/NAME: a small PEFT adapter for tests/data/models/NAME (lora.py) and what mlx-lm's own LoRA layers
make of it.   python3 tools/gen/lora_golden.py

Needs mlx, mlx-lm, numpy, safetensors. golden.safetensors: ids i32 [T], positions i32 [P], logits f32 [P][vocab] with the
adapter at scale 0.75 (times its alpha / r).
"""
import json
import pathlib
import subprocess
import sys

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear
from mlx_lm.utils import load_model
from safetensors.numpy import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = {"llama": ["--embed"], "qwen2": [], "qwen3": [], "phi3": []}
SCALE, N_TOKEN, POSITIONS = 0.75, 30, [0, 1, 17, 29]  # fewer tokens than any sliding window, which mlx-lm leaves out


def with_adapter(model, folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    pairs, layers = load_file(folder / "adapter_model.safetensors"), dict(model.named_modules())
    rank, new = config["r"], []
    for key, a in pairs.items():
        name, _, tail = key.removeprefix("base_model.model.").partition(".lora_")
        if tail not in ("A.weight", "embedding_A"):
            continue
        b = pairs[key.replace(".lora_" + tail, ".lora_" + tail.replace("A", "B"))]
        kind = LoRAEmbedding if tail.startswith("embedding") else LoRALinear
        layer = kind.from_base(layers[name], r=rank, scale=SCALE * config["lora_alpha"] / rank)
        layer.lora_a, layer.lora_b = mx.array(np.ascontiguousarray(a.T)), mx.array(np.ascontiguousarray(b.T))
        new.append((name, layer))
    assert len(new) * 2 == len(pairs)
    model.update_modules(tree_unflatten(new))
    return model


def main():
    mx.set_default_device(mx.cpu)
    for seed, (name, more) in enumerate(MODELS.items()):
        base, out = ROOT / "tests/data/models" / name, ROOT / "tests/data/lora" / name
        subprocess.run([sys.executable, ROOT / "tools/gen/lora.py", base, out, "--rank", "2", "--alpha", "3", "--size", "5",
                        "--seed", str(seed + 1), *more], check=True)
        ids = np.random.default_rng(seed).integers(0, 280, N_TOKEN).astype(np.int32)
        plain = np.array(load_model(base)[0](mx.array(ids)[None]).astype(mx.float32))[0]
        logits = np.array(with_adapter(load_model(base)[0], out)(mx.array(ids)[None]).astype(mx.float32))[0]
        save_file({"ids": ids, "positions": np.array(POSITIONS, np.int32), "logits": np.ascontiguousarray(logits[POSITIONS])},
                  out / "golden.safetensors")
        print(f"{name}: the adapter changes logits by {np.abs(logits - plain).max() / np.abs(logits).max():.2f} of the largest")


if __name__ == "__main__":
    main()
