#!/usr/bin/env python3
"""Adapters beside llama.cpp: the same GGUF adapter on the same GGUF base, logits of 30 tokens compared (fewer than any sliding window).

    lora.py [--peer build/peer/peer_eval] [--impetus build/impetus]     (make peers builds the first)
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

MODELS = ["llama", "llama3-rope", "smollm", "qwen2", "qwen3", "gemma3", "phi3"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", default="build/peer/peer_eval")
    p.add_argument("--impetus", default="build/impetus")
    args = p.parse_args()
    bad, root = 0, pathlib.Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as tmp:
        for seed, name in enumerate(MODELS):
            base, adapter = root / f"tests/data/models/{name}.gguf", f"{tmp}/{name}.gguf"
            embed = ["--embed"] if seed % 2 == 0 else []
            subprocess.run([sys.executable, root / "tools/gen/lora.py", base, adapter, "--rank", "4", "--alpha", "6",
                            "--size", "3", "--seed", str(seed + 1), *embed], check=True)
            ids = [int(i) for i in np.random.default_rng(seed).integers(0, 280, 30)]
            out = subprocess.run([args.peer, base, "logits", "128", "0", adapter, "0.8"], check=True, capture_output=True,
                                 input=" ".join(map(str, ids)).encode() + b"\n").stdout
            want = np.frombuffer(out, np.float32).reshape(len(ids), -1)
            got = {}
            for key, lora in (("with", ["--lora", f"{adapter}:0.8"]), ("without", [])):
                r = subprocess.run([args.impetus, "logits", base, "--ids", ",".join(map(str, ids)), "--kv-type", "f32",
                                    "--json", *lora], check=True, capture_output=True)
                got[key] = np.asarray(json.loads(r.stdout)["logits"], np.float32)
            off, change = (float(np.abs(got[k] - want).max() / np.abs(want).max()) for k in ("with", "without"))
            ok = off < 1e-3 < 20e-3 < change
            bad += not ok
            print(f"{'ok  ' if ok else 'FAIL'} {name}: off by {off:.1e} of the largest logit; without the adapter {change:.2f}")
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
