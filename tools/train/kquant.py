"""kquant.py - rounding of weights to the grid of Q4_K blocks, for training with it and for writing it.

Place:   round_q4k by train_decoder.py (PyTorch), pack_q4k by export/decoder_gguf.py (numpy).
Idea:    256 weights of a row share an f16 scale and an f16 minimum scale; each 32 of them have a 6-bit scale and a
         6-bit minimum; weight = d*sc*q - dmin*m with q in 0..15. The scales come from the extremes of the 32.
Layout:  a block of 144 bytes: d, dmin, 12 bytes of sixteen 6-bit numbers, 128 bytes of nibbles.
"""
import numpy as np


def round_q4k(torch, w):
    """w: f32, last dimension a multiple of 256. Returns (rounded w, q u8, sc u8, m u8, d f16, dmin f16)."""
    g = w.reshape(-1, 8, 32)
    low = g.amin(-1).clamp(max=0)
    scale = (g.amax(-1).clamp(min=0) - low) / 15
    d = (scale.amax(-1, keepdim=True) / 63).clamp(min=1e-7).half().float()
    dmin = ((-low).amax(-1, keepdim=True) / 63).clamp(min=1e-7).half().float()
    sc = (scale / d).round().clamp(0, 63)
    m = (-low / dmin).round().clamp(0, 63)
    step, base = (d * sc).unsqueeze(-1), (dmin * m).unsqueeze(-1)
    q = ((g + base) / step.clamp(min=1e-12)).round().clamp(0, 15)
    return (step * q - base).reshape(w.shape), q, sc, m, d, dmin


def pack_q4k(q, sc, m, d, dmin):
    """Blocks as bytes. q: (n, 8, 32) u8; sc, m: (n, 8) u8; d, dmin: (n, 1) f16. Returns (n, 144) u8."""
    n = len(q)
    out = np.zeros((n, 144), np.uint8)
    out[:, 0:2] = np.ascontiguousarray(d.reshape(n, 1), np.float16).view(np.uint8)
    out[:, 2:4] = np.ascontiguousarray(dmin.reshape(n, 1), np.float16).view(np.uint8)
    out[:, 4:8] = sc[:, :4] | (sc[:, 4:] >> 4 << 6)
    out[:, 8:12] = m[:, :4] | (m[:, 4:] >> 4 << 6)
    out[:, 12:16] = (sc[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    pair = q.reshape(n, 4, 2, 32)  # 64 weights: the low nibbles, then the high ones
    out[:, 16:] = (pair[:, :, 0] | pair[:, :, 1] << 4).reshape(n, 128)
    return out
