#!/usr/bin/env python3
"""The goldens of tests/data/models (made by transformers) against mlx-lm and llama.cpp, which share no code with it.

Where an engine leaves something out on purpose, it is compared with the golden of the model without that part, and
tools/gen/README.md says so. llama.cpp reads GELU from a half-precision table, hence its wider bound on such models.
"""
import json

import numpy as np
from safetensors.numpy import load_file

import peer
from impetus import ROOT
from tap import attempt, done, ok, skip

MODELS = ROOT / "tests" / "data" / "models"
GELU = ("bert", "distilbert", "gemma2", "gemma3", "minilm", "modernbert", "roberta", "xlm-roberta")


class AllSliding(list):
    """Every layer slides; mlx-lm asks where the first full layer is."""

    def index(self, value, *args):
        return super().index(value, *args) if value in self else 0


def with_mlx(name, cfg, golden):
    import mlx.core as mx
    from mlx_lm.models import gemma3_text
    from mlx_lm.utils import load_model

    class ExactScale:  # mlx-lm rounds Gemma 3's embedding scale to bfloat16; in float32 the model's own value is exact
        bfloat16 = mx.float32

        def __getattr__(self, key):
            return getattr(mx, key)

    gemma3_text.mx = ExactScale()
    mx.set_default_device(mx.cpu)
    change = {}
    if "rope_parameters" in cfg:
        rope = dict(cfg["rope_parameters"])
        change = {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    if cfg["model_type"] == "mistral":
        change["layer_types"] = AllSliding(["sliding_attention"] * cfg["num_hidden_layers"])
    model, _ = load_model(MODELS / name, model_config=change)
    model.apply(lambda v: v.astype(mx.float32) if v.dtype == mx.bfloat16 else v)  # bf16 weights, float32 arithmetic
    logits = np.array(model(mx.array(golden["ids"][None])).astype(mx.float32))[0][golden["positions"]]
    want = golden.get("logits_full", golden["logits"])
    if name == "gemma2":  # mlx-lm has no window for this model: compare where the window covers everything
        near = golden["positions"] < cfg["sliding_window"]
        logits, want = logits[near], want[near]
    worst = np.abs(logits - want).max()
    ok(worst < 1e-4, f"mlx-lm {name}", f"largest difference {worst:.1e}")


def with_llama_cpp(name, cfg, golden):
    gguf = MODELS / (name + ".gguf")
    bound = 1e-2 if name in GELU else 1e-4
    if "logits" in golden:
        want = golden.get("logits_full", golden.get("logits_gguf", golden["logits"]))
        y = peer.evaluate(gguf, "logits", [golden["ids"]]).reshape(-1, want.shape[1])
        worst = np.abs(y[golden["positions"]] - want).max()
        ok(worst < bound, f"llama.cpp {name}", f"largest difference {worst:.1e}")
        if "ids_short" in golden:
            y = peer.evaluate(gguf, "logits", [golden["ids_short"]], 256, 256).reshape(-1, want.shape[1])
            worst = np.abs(y[golden["positions_short"]] - golden["logits_short"]).max()
            ok(worst < bound, f"llama.cpp {name}, short", f"largest difference {worst:.1e}")
        return
    rows = [r[r >= 0] for r in golden["ids"]]
    want = golden["embedding"].astype(np.float64)
    y = peer.evaluate(gguf, "embed", rows).reshape(want.shape).astype(np.float64)
    cos = (y * want).sum(1) / np.linalg.norm(y, axis=1) / np.linalg.norm(want, axis=1)
    ok(cos.min() > 0.999999, f"llama.cpp {name}", f"smallest cosine 1 - {1 - cos.min():.1e}")


for folder in sorted(p for p in MODELS.iterdir() if p.is_dir()):
    config = json.loads((folder / "config.json").read_text())
    data = load_file(folder / "golden.safetensors")
    if "logits" in data:
        attempt(f"mlx-lm {folder.name}", with_mlx, folder.name, config, data)
    if (MODELS / (folder.name + ".gguf")).exists():
        if peer.EVAL.exists():
            attempt(f"llama.cpp {folder.name}", with_llama_cpp, folder.name, config, data)
        else:
            skip(f"llama.cpp {folder.name}", "llama.cpp is not built: make peers")
done()
