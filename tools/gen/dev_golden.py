#!/usr/bin/env python3
"""Golden data for tests/dev/golden.c: single ops computed by other implementations (mlx, mlx-lm, numpy).

    tools/gen/dev_golden.py [tests/data/dev]        needs the packages mlx, mlx-lm, numpy

Each NAME.f32 is a row of little-endian f32 arrays, inputs first, the result last; shapes stand in golden.c.
"""
import math, sys
import numpy as np
import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import mixtral, qwen3_moe

out = sys.argv[1] if len(sys.argv) > 1 else "tests/data/dev"
mx.set_default_device(mx.cpu)
rng = np.random.default_rng(11)


def rand(*shape, size=1.0):
    return (rng.uniform(-1, 1, shape) * size).astype(np.float32)


def save(name, *arrays):
    with open(f"{out}/{name}.f32", "wb") as f:
        for a in arrays:
            f.write(np.ascontiguousarray(np.array(a, dtype="<f4")).tobytes())


def norms():
    x, w, b = rand(5, 48, size=3), rand(48), rand(48)
    save("rms_norm", x, w, mx.fast.rms_norm(mx.array(x), mx.array(w), 1e-5))
    save("rms_norm_plus_one", x, w, mx.fast.rms_norm(mx.array(x), 1 + mx.array(w), 1e-6))
    heads = mx.fast.rms_norm(mx.array(x).reshape(5, 6, 8), mx.array(w[:8]), 1e-6).reshape(5, 48)
    save("rms_norm_heads", x, w[:8], heads)
    save("layer_norm", x, w, b, mx.fast.layer_norm(mx.array(x), mx.array(w), mx.array(b), 1e-12))
    save("l2_norm", x, x / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True))


def activations():
    x = np.concatenate([np.linspace(-12, 12, 97), [0.0, -0.0, 1e-6, -1e-6, 30, -30, 80]]).astype(np.float32).reshape(1, -1)
    u = rand(*x.shape)
    fns = [nn.silu, nn.gelu, nn.gelu_approx, nn.relu, mx.tanh, mx.sigmoid]
    for name, fn in zip(["silu", "gelu", "gelu_tanh", "relu", "tanh", "sigmoid"], fns):
        save(f"act_{name}", x, fn(mx.array(x)))
        save(f"glu_{name}", x, u, fn(mx.array(x)) * mx.array(u))
    save("softcap", x, 30 * mx.tanh(mx.array(x) / 30))


def rope():
    """3 heads of 32 for 6 tokens at positions 0..5 and 1000..1005; all columns or the first 12."""
    for name, dims, traditional, offset in [
        ("rope_halves", 32, False, 0), ("rope_halves_far", 32, False, 1000), ("rope_halves_partial", 12, False, 3),
        ("rope_interleaved", 32, True, 0), ("rope_interleaved_far", 32, True, 1000), ("rope_interleaved_partial", 12, True, 3),
    ]:
        x = rand(6, 3, 32)
        y = mx.fast.rope(mx.array(x).transpose(1, 0, 2)[None], dims, traditional=traditional, base=10000.0, scale=1.0,
                         offset=offset)
        save(name, x, y[0].transpose(1, 0, 2))


def attention():
    """70 tokens, head width 16."""
    n, d = 70, 16
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    for name, heads, kv, mask, cap, sink in [
        ("attn_causal", 4, 4, "causal", 0, False),
        ("attn_gqa", 6, 2, "causal", 0, False),
        ("attn_window", 4, 2, (j <= i) & (i - j < 9), 0, False),
        ("attn_full", 3, 3, np.ones((n, n), bool), 0, False),
        ("attn_full_window", 2, 2, abs(i - j) <= 8, 0, False),
        ("attn_sink", 4, 1, "causal", 0, True),
        ("attn_softcap", 2, 1, "causal", 5.0, False),
    ]:
        q, k, v = rand(n, heads, d, size=3), rand(n, kv, d, size=3), rand(n, kv, d)
        s = rand(heads, size=2)
        tq, tk, tv = (mx.array(a).transpose(1, 0, 2)[None] for a in (q, k, v))
        if cap:  # spelt out: the fused call has no cap
            score = (tq / math.sqrt(d)) @ mx.repeat(tk, heads // kv, axis=1).transpose(0, 1, 3, 2)
            score = cap * mx.tanh(score / cap)
            score = mx.where(mx.array(j <= i), score, -mx.inf)
            y = mx.softmax(score, axis=-1, precise=True) @ mx.repeat(tv, heads // kv, axis=1)
        else:
            m = mask if isinstance(mask, str) else mx.array(mask)
            y = mx.fast.scaled_dot_product_attention(tq, tk, tv, scale=1 / math.sqrt(d), mask=m,
                                                     sinks=mx.array(s) if sink else None)
        save(name, q, k, v, *([s] if sink else []), y[0].transpose(1, 0, 2))


def experts():
    """9 rows of 24, hidden 20, 6 experts; 2 are used."""
    class Args:
        hidden_size, moe_intermediate_size, intermediate_size = 24, 20, 20
        num_experts = num_local_experts = 6
        num_experts_per_tok = 2
        norm_topk_prob = False

    for name, block, normed in [("moe_plain", qwen3_moe.Qwen3MoeSparseMoeBlock, False),
                                ("moe_normed", qwen3_moe.Qwen3MoeSparseMoeBlock, True),
                                ("moe_mixtral", mixtral.MixtralSparseMoeBlock, True)]:
        Args.norm_topk_prob = normed
        b = block(Args)
        x, r = rand(9, 24, size=2), rand(6, 24)
        gate, up, down = rand(6, 20, 24), rand(6, 20, 24), rand(6, 24, 20)
        b.gate.weight = mx.array(r)
        for layer, w in [("gate_proj", gate), ("up_proj", up), ("down_proj", down)]:
            getattr(b.switch_mlp, layer).weight = mx.array(w)
        save(name, x, r, gate, up, down, b(mx.array(x)))


def linear():
    x, w, b = rand(7, 40), rand(13, 40), rand(13)
    save("linear", x, w, b, x.astype(np.float64) @ w.astype(np.float64).T + b)


norms()
activations()
rope()
attention()
experts()
linear()
