#!/usr/bin/env python3
"""Golden data for tests/unit/tensor_encode.c: how other implementations quantise the same rows.

    tools/gen/encode_golden.py libggml-base.so [tests/data/tensor]        needs the packages gguf, numpy; llama.cpp built

encode.bin  u32 rows, u32 columns; the rows as f32; a weight for each column as f32; then records of
            u32 GGUF type id, u32 bytes (0: none), the bytes by the gguf package's numpy code (types of 32 a block),
            f64 squared error of ggml's quantiser, f64 its weighted squared error with those weights; both as shares of a
            row's (weighted) squares, added up over all rows but the last
"""
import ctypes, struct, sys
import numpy as np
from gguf import GGMLQuantizationType as T, GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

lib = ctypes.CDLL(sys.argv[1])
out = sys.argv[2] if len(sys.argv) > 2 else "tests/data/tensor"
lib.ggml_quantize_chunk.restype = ctypes.c_size_t
lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]

rng = np.random.default_rng(11)
COLS = 512
rows = [rng.normal(0, 0.02, COLS), rng.standard_t(3, COLS) * 0.02, rng.uniform(-1, 1, COLS), rng.normal(0.5, 0.1, COLS),
        rng.normal(0, 1, COLS) * np.repeat(np.exp(rng.normal(0, 2, COLS // 32)), 32), np.abs(rng.normal(0, 3, COLS)),
        -np.abs(rng.normal(0, 0.01, COLS)), np.where(rng.random(COLS) < 0.9, 0, rng.normal(0, 1, COLS))]
edge = rng.normal(0, 1, COLS)
edge[:32], edge[32:64], edge[64:96], edge[96:128] = 0, 0.25, 1e-30, np.linspace(-60000, 60000, 32)
rows.append(edge)
x = np.array(rows, np.float32)
w = np.exp(rng.normal(0, 1.5, COLS)).astype(np.float32)


def ggml(t, weight):
    lib.ggml_quantize_init(int(t))
    elem, size = GGML_QUANT_SIZES[t]
    q = np.zeros((len(x), COLS // elem * size), np.uint8)
    lib.ggml_quantize_chunk(int(t), x.ctypes.data, q.ctypes.data, 0, len(x), COLS, weight.ctypes.data if weight is not None else None)
    c = (weight if weight is not None else np.ones(COLS)).astype(np.float64)
    share = ((dequantize(q, t).astype(np.float64) - x) ** 2 * c).sum(1) / (x.astype(np.float64) ** 2 * c).sum(1)
    return share[:-1].sum()


with open(f"{out}/encode.bin", "wb") as f:
    f.write(struct.pack("<2I", *x.shape) + x.tobytes() + w.tobytes())
    for t in (T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K):
        simple = GGML_QUANT_SIZES[t][0] <= 32
        raw = quantize(x, t).tobytes() if simple else b""
        plain = GGML_QUANT_SIZES[t][0] == 1
        f.write(struct.pack("<2I", int(t), len(raw)) + raw)
        f.write(struct.pack("<2d", 0 if plain else ggml(t, None), 0 if plain else ggml(t, w)))
