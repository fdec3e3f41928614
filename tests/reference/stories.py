#!/usr/bin/env python3
"""Logits of decoders: `impetus logits` on the bundled story model and on every tiny GGUF decoder, against llama.cpp."""
import json

import numpy as np

import peer
from impetus import EXE, ROOT, command
from safetensors.numpy import load_file
from tap import attempt, done, ok, skip

STORIES = ROOT / "models" / "stories260K.gguf"
TINY = ROOT / "tests" / "data" / "models"
# an activation that llama.cpp reads from a half-precision table; a window that it leaves out
WIDE, LEAVES_OUT = ("gemma2", "gemma3"), ("phi3",)


def compare(path, ids, bound):
    got = json.loads(command("logits", path, "--ids", ",".join(map(str, ids)), "--kv-type", "f32", "--json"))
    assert got["ids"] == ids
    got = np.asarray(got["logits"])
    want = peer.evaluate(path, "logits", [ids]).reshape(got.shape)
    worst = np.abs(got - want).max()
    ok(worst < bound, f"impetus logits {path.stem}, {len(ids)} tokens", f"largest difference from llama.cpp {worst:.1e}")


if not peer.EVAL.exists():
    skip("impetus logits", "llama.cpp is not built: make peers")
elif not EXE.exists():
    ok(False, "impetus is built")
else:
    rng = np.random.default_rng(3)
    attempt("stories260K", compare, STORIES, [1] + rng.integers(3, 512, 120).tolist(), 1e-3)
    for gguf in sorted(TINY.glob("*.gguf")):
        golden = load_file(TINY / gguf.stem / "golden.safetensors")
        if "logits" in golden and gguf.stem not in LEAVES_OUT:
            attempt(gguf.stem, compare, gguf, golden["ids"].tolist(), 1e-2 if gguf.stem in WIDE else 1e-3)
done()
