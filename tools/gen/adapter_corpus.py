#!/usr/bin/env python3
"""Writes fuzz/corpus/adapter: low-rank adapters in both file forms for models of tests/data/models, right and wrong."""
import json, pathlib, struct

here = pathlib.Path(__file__).resolve().parents[2] / "fuzz" / "corpus" / "adapter"
here.mkdir(parents=True, exist_ok=True)
LLAMA_GGUF, LLAMA, NOMIC, QWEN3 = range(4)
SIZE = {0: 4, 1: 2, 8: 34 / 32, 30: 2}  # bytes an element of GGUF's f32, f16, q8_0, bf16


def s(text):
    return struct.pack("<Q", len(text)) + text.encode()


def pair(name, n, k, rank=1, kind=0, a=None, b=None, tail=("a", "b")):
    return [(f"{name}.weight.lora_{tail[0]}", *(a or (rank, k)), kind), (f"{name}.weight.lora_{tail[1]}", *(b or (n, rank)), kind)]


def gguf(tensors, model=LLAMA_GGUF, arch="llama", of="adapter", kind="lora", alpha=struct.pack("<If", 6, 2.0), fill=None, more=()):
    kv = [("general.architecture", struct.pack("<I", 8) + s(arch)), ("general.type", struct.pack("<I", 8) + s(of)),
          ("adapter.type", struct.pack("<I", 8) + s(kind)), ("adapter.lora.alpha", alpha), *more]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(kv)) + b"".join(s(k) + v for k, v in kv)
    data = b""
    for name, rows, cols, t in tensors:
        head += s(name) + struct.pack("<IQQIQ", 2, cols, rows, t, len(data))
        n = int(rows * cols * SIZE[t])
        data += (fill or b"\0\0\x80\x3d\0\0\0\xbd") * (n // 8) + bytes(n % 8)
        data += bytes(-len(data) % 32)
    head += bytes(-len(head) % 32)
    return bytes([model << 1]) + head + data


def peft(halves, model=LLAMA, shift=0, dtype="F32", **config):
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "bias": "none", "init_lora_weights": True, **config}
    head, at = {}, 0
    for name, rows, cols in halves:
        n = rows * cols * (4 if dtype == "F32" else 2)
        head["base_model.model." + name] = {"dtype": dtype, "shape": [rows, cols], "data_offsets": [at, at + n]}
        at += n
    head, config = json.dumps(head).encode(), json.dumps(config).encode()
    head += b" " * (-len(head) % 8 + shift)  # shift: tensors that begin at no multiple of their size
    return (bytes([model << 1 | 1]) + struct.pack("<I", len(config)) + config + struct.pack("<Q", len(head)) + head +
            bytes(i * 7 % 61 for i in range(at)))


def module(name, n, k, rank=1):
    return [(name + ".lora_A.weight", rank, k), (name + ".lora_B.weight", n, rank)]


k = pair("blk.0.attn_k", 32, 64)
q = module("model.layers.1.self_attn.q_proj", 64, 64)
table = [("model.embed_tokens.lora_embedding_A", 1, 288), ("model.embed_tokens.lora_embedding_B", 64, 1)]
files = {
    "gguf": gguf(k), "gguf-f16": gguf(pair("blk.0.attn_q", 64, 64, kind=1), fill=b"\0\x3c" * 4),
    "gguf-q8": gguf(pair("blk.1.ffn_down", 64, 96, 32, kind=8), fill=b"\0\x2c" + bytes(6)),
    "gguf-several": gguf(k + pair("blk.1.ffn_up", 96, 64, 2) + pair("output", 288, 64)),
    "gguf-table": gguf(pair("token_embd", 64, 288, a=(288, 1))),
    "gguf-nomic": gguf(pair("blk.0.attn_output", 64, 64), NOMIC, "nomic-bert"),
    "gguf-on-folder": gguf(k, LLAMA), "gguf-arch": gguf(k, arch="qwen3"), "gguf-model": gguf(k, of="model"),
    "gguf-kind": gguf(k, kind="ia3"), "gguf-alpha-inf": gguf(k, alpha=struct.pack("<If", 6, float("inf"))),
    "gguf-alpha-f64": gguf(k, alpha=struct.pack("<Id", 12, 1e300)), "gguf-alpha-text": gguf(k, alpha=struct.pack("<I", 8) + s("2")),
    "gguf-alora": gguf(k, more=[("adapter.alora.invocation_tokens", struct.pack("<IIQI", 9, 4, 1, 5))]),
    "gguf-nan": gguf(k, fill=b"\xff" * 8), "gguf-half": gguf(k[:1]), "gguf-tail": gguf(pair("blk.0.attn_k", 32, 64, tail=("a", "c"))),
    "gguf-wide": gguf(pair("blk.0.attn_k", 32, 64, a=(1, 65))), "gguf-shape": gguf(pair("blk.0.attn_k", 33, 64)), "gguf-rank": gguf(pair("blk.0.attn_k", 32, 64, a=(2, 64))),
    "gguf-layer": gguf(pair("blk.99999999999.attn_k", 32, 64)), "gguf-name": gguf(pair("blk.0.attn\nk\x1b[1m", 32, 64)),
    "gguf-long": gguf(pair("blk.0." + "k" * 150, 32, 64)), "gguf-none": gguf([]), "gguf-cut": gguf(k)[:-40], "gguf-empty": b"\0",
    "peft": peft(q), "peft-f16": peft(q, dtype="F16"), "peft-bf16-shifted": peft(q, dtype="BF16", shift=1), "peft-shifted": peft(q, shift=3),
    "peft-table": peft(table), "peft-on-gguf": peft(q + module("model.layers.0.self_attn.k_proj", 32, 64), LLAMA_GGUF),
    "peft-qwen3": peft(module("model.layers.0.mlp.gate_proj", 64, 32), QWEN3),
    "peft-rslora": peft(module("lm_head", 288, 64, 2), r=2, use_rslora=True),
    "peft-patterns": peft(q, r=8, rank_pattern={"q_proj": 1}, alpha_pattern={"^model.layers.1.self_attn.q_proj": 3}),
    "peft-alpha": peft(q, lora_alpha=1e300), "peft-pattern": peft(q, rank_pattern={"q_.*": 1}), "peft-rank": peft(q, r=2),
    "peft-dora": peft(q, use_dora=True), "peft-magnitude": peft(q + [("model.layers.1.self_attn.q_proj.lora_magnitude_vector", 64, 1)]),
    "peft-kind": peft(q, peft_type="IA3"), "peft-init": peft(q, init_lora_weights="pissa"), "peft-bias": peft(q, bias="all"),
    "peft-saved": peft(q, modules_to_save=["lm_head"]), "peft-name": peft([("z\nz.lora_A.weight", 1, 64)]), "peft-half": peft(q[1:]),
    "peft-cut": peft(q)[:-9], "peft-config": b"\1\2\0\0\0{}", "peft-empty": b"\1\0\0\0\0",
}
for name, data in files.items():
    (here / name).write_bytes(data)
