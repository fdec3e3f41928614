#!/usr/bin/env python3
"""Full-size encoders with random weights, for converting and checking shapes.

    encoder_shapes.py SHAPE OUT      SHAPE: distilbert, bert-base, bge-small, nomic; OUT: the folder to make

The configuration is the published model's, the numbers are normal with the deviation its initialiser has; the tokenizer is
the small one of tests/data/models.
"""
import json
import pathlib
import shutil
import sys

import numpy as np
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BERT = dict(vocab_size=30522, max_position_embeddings=512, type_vocab_size=2, hidden_act="gelu", layer_norm_eps=1e-12, model_type="bert",
            architectures=["BertModel"])
SHAPES = {
    "bert-base": ("bert", dict(BERT, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)),
    "bge-small": ("bert", dict(BERT, hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536)),
    "distilbert": ("distilbert", dict(dim=768, n_layers=6, n_heads=12, hidden_dim=3072, vocab_size=30522, max_position_embeddings=512)),
    "nomic": ("nomic-bert", dict(n_embd=768, n_layer=12, n_head=12, n_inner=3072, vocab_size=30528)),
}


def main():
    name, out = sys.argv[1], pathlib.Path(sys.argv[2])
    small, change = SHAPES[name]
    src = ROOT / "tests" / "data" / "models" / small
    shutil.copytree(src, out, dirs_exist_ok=True)
    old = json.loads((src / "config.json").read_text())
    cfg = dict(old, **change)
    (out / "config.json").write_text(json.dumps(cfg))
    from safetensors import safe_open

    key = lambda *ks: next(k for k in ks if k in old)
    size = {old[k]: cfg[k] for k in (key("hidden_size", "dim", "n_embd"), key("intermediate_size", "hidden_dim", "n_inner"), "vocab_size")}
    size |= {3 * old[k]: 3 * cfg[k] for k in (key("hidden_size", "dim", "n_embd"),)}
    pos = next((k for k in ("max_position_embeddings", "n_positions") if k in old), None)
    n_old, n_new = old[key("num_hidden_layers", "n_layers", "n_layer")], cfg[key("num_hidden_layers", "n_layers", "n_layer")]
    rng, tensors = np.random.default_rng(1), {}
    with safe_open(src / "model.safetensors", "np") as f:
        for k in f.keys():
            shape = [cfg[pos] if pos and "position" in k and i == 0 else size.get(d, d) for i, d in enumerate(f.get_slice(k).get_shape())]
            layers = [k]
            for mark in (".layer.", ".layers."):
                if f"{mark}0." in k:
                    layers = [k.replace(f"{mark}0.", f"{mark}{i}.") for i in range(n_new)]
                elif mark in k:
                    layers = []
            for name_ in layers:
                if len(shape) == 1:
                    tensors[name_] = (np.ones if name_.endswith("weight") else np.zeros)(shape, np.float16)
                else:
                    tensors[name_] = (rng.standard_normal(shape, np.float32) * 0.02).astype(np.float16)
    save_file(tensors, out / "model.safetensors")
    print(f"{name}: {sum(t.size for t in tensors.values()) / 1e6:.0f} M numbers, {n_old} layers became {n_new}")


main()
