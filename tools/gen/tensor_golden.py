#!/usr/bin/env python3
"""Golden data for tests/unit/tensor_decode.c: random bytes decoded by other implementations.

    tools/gen/tensor_golden.py [tests/data/tensor]        needs the packages gguf, mlx, numpy

gguf.bin    records of: u32 GGUF type id, u32 blocks, u32 elements a block, u32 bytes a block, the bytes, the
            elements as f32 by the gguf package's numpy code
affine.bin  records of: u32 bits, u32 group, u32 scale type (0 f32, 1 f16, 2 bf16), u32 rows, u32 columns, words, scales,
            biases, the elements by mlx.core.dequantize (computed in the scale type) as f32
"""
import struct, sys
import numpy as np
import mlx.core as mx
from gguf import GGMLQuantizationType as T, GGML_QUANT_SIZES
from gguf.quants import dequantize

out = sys.argv[1] if len(sys.argv) > 1 else "tests/data/tensor"
rng = np.random.default_rng(7)

with open(f"{out}/gguf.bin", "wb") as f:
    for t in (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS, T.MXFP4,
              T.BF16, T.F16):
        elem, size = GGML_QUANT_SIZES[t]
        n = {1: 512, 32: 24, 256: 5}[elem]
        raw = rng.integers(0, 256, (n, size), dtype=np.uint8)
        if t == T.MXFP4:
            raw[:4, 0] = [0, 1, 2, 255]  # the exponents at both ends
        with np.errstate(all="ignore"):
            val = dequantize(raw.reshape(1, -1), t).astype(np.float32).reshape(-1)
        assert val.size == n * elem
        f.write(struct.pack("<4I", int(t), n, elem, size) + raw.tobytes() + val.tobytes())

with open(f"{out}/affine.bin", "wb") as f:
    rows, cols = 2, 256
    for bits in (2, 3, 4, 5, 6, 8):
        for group in (32, 64, 128):
            for st, kind in enumerate((mx.float32, mx.float16, mx.bfloat16)):
                w = rng.integers(0, 2**32, (rows, cols * bits // 32), dtype=np.uint32)
                make = lambda: mx.array(rng.normal(0, 0.1, (rows, cols // group)).astype(np.float32)).astype(kind)
                s, b = make(), make()
                raw = lambda a: np.array(a).tobytes() if kind != mx.bfloat16 else np.array(a.view(mx.uint16)).tobytes()
                v = mx.dequantize(mx.array(w), s, b, group_size=group, bits=bits).astype(mx.float32)
                f.write(struct.pack("<5I", bits, group, st, rows, cols) + w.tobytes() + raw(s) + raw(b) + np.array(v).tobytes())
