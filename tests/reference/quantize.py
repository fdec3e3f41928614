#!/usr/bin/env python3
"""`impetus quantize` against the gguf package (bytes of the simple types) and llama.cpp's quantiser (error, divergence)."""
import ctypes
import json
import pathlib
import subprocess
import tempfile

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, GGUFReader
from gguf.quants import dequantize, quantize

import peer
from impetus import ROOT, command
from tap import attempt, done, ok, skip

NANO = ROOT / "models" / "impetus-nano.gguf"
TEXT = ROOT / "tests" / "data" / "heldout.txt"
BIN = peer.DIR / "build" / "bin"


def tensors(path):
    return {t.name: t for t in GGUFReader(path).tensors}


def bytes_of(source, out, name):
    command("quantize", source, out, "--type", name)
    kind = T[name.upper()]
    bad = [n for n, t in tensors(out).items() if t.tensor_type == kind and
           quantize(np.array(tensors_f16[n].data, np.float32), kind).tobytes() != t.data.tobytes()]
    ok(not bad, f"{name}: every matrix equals the gguf package's", ", ".join(bad[:3]))


def errors(out, name, lib):
    command("quantize", F16, out, "--type", name)
    kind = T[name.upper()]
    elem, size = GGML_QUANT_SIZES[kind]
    lib.ggml_quantize_init(int(kind))
    ours = theirs = 0.0
    for n, t in tensors(out).items():
        if t.tensor_type != kind:
            continue
        x = np.ascontiguousarray(tensors_f16[n].data, np.float32)
        q = np.zeros((x.shape[0], x.shape[1] // elem * size), np.uint8)
        lib.ggml_quantize_chunk(int(kind), x.ctypes.data, q.ctypes.data, 0, *x.shape, None)
        for who in (0, 1):
            d = dequantize(q if who else t.data, kind).astype(np.float64) - x
            e = (d * d).sum() / (x.astype(np.float64) ** 2).sum()
            ours, theirs = (ours, theirs + e) if who else (ours + e, theirs)
    ok(ours <= theirs * 1.0001, f"{name}: squared error beside ggml's", f"{ours / theirs:.3f}")


def divergence(folder, name):
    theirs = folder / f"peer-{name}.gguf"
    subprocess.run([BIN / "llama-quantize", "--pure", "--token-embedding-type", name, F16, theirs, name],
                   capture_output=True, check=True)
    kl = [json.loads(command("perplexity", m, TEXT, "--ctx", 512, "--windows", 4, "--against", F16, "--json"))["against"]["kl_mean"]
          for m in (folder / f"{name}.gguf", theirs)]
    ok(kl[0] <= kl[1], f"{name}: KL divergence from f16 beside llama-quantize's", f"{kl[0]:.6f}, {kl[1]:.6f}")


with tempfile.TemporaryDirectory() as t:
    folder = pathlib.Path(t)
    F16 = folder / "f16.gguf"
    command("quantize", NANO, F16, "--type", "f16")
    tensors_f16 = tensors(F16)
    for name in ("bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"):
        attempt(name, bytes_of, F16, folder / f"{name}.gguf", name)
    lib_path = BIN / "libggml-base.so"
    if not lib_path.exists():
        skip("errors beside llama.cpp's", "llama.cpp is not built: make peers")
    else:
        lib = ctypes.CDLL(str(lib_path))
        lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
        for name in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k"):
            attempt(name, errors, folder / f"{name}.gguf", name, lib)
        for name in ("q2_k", "q3_k", "q4_k", "q6_k"):
            attempt(name, divergence, folder, name)
done()
