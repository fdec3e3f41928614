#!/usr/bin/env python3
"""Writes fuzz/corpus/coreml_worker: whole and broken conversations with the Core ML worker, laid out as
src/dev/coreml/wire.h says (x86-64 and arm64: little-endian, natural alignment)."""
import os
import struct

MAGIC, VERSION = 0x504D4943, 2
LENS, CHUNKS, PACKAGES, FUNCS, KV, PATH, TEXT = 16, 16, 16, 64, 256, 1024, 400
OUT = os.path.join(os.path.dirname(__file__), "../../fuzz/corpus/coreml_worker")


def text(s, n):
    return s.encode().ljust(n, b"\0")


def msg(kind, body, magic=MAGIC, version=VERSION, n=None):
    return struct.pack("<IHHI", magic, version, kind, len(body) if n is None else n) + body


def hello(runtime=""):
    return text(runtime, PATH)


def u32s(values, n):
    return struct.pack(f"<{n}I", *(list(values) + [0] * (n - len(values))))


def load(package="/p.mlpackage", compiled="/c.mlmodelc", n_package=1, lengths=(16, 32), name="embed", width=8, dim=8,
         kv=(), n_kv=None, chunks=1, first_kv=None, takes=3, slots=4, units=3):
    b = struct.pack("<I", len(lengths)) + u32s(lengths, LENS) + struct.pack("<III", width, dim, len(kv) if n_kv is None else n_kv)
    b += u32s(kv, KV) + struct.pack("<I", slots)
    b += b"".join(text(package, PATH) for _ in range(PACKAGES)) + b"".join(text(compiled, PATH) for _ in range(PACKAGES))
    b += struct.pack("<II", n_package, chunks)
    b += b"".join(text(f"{name}_{i}" if name else "", 32) for i in range(LENS))
    b += u32s([takes] * min(chunks, CHUNKS), CHUNKS)
    b += u32s([0] * min(chunks, CHUNKS) + [len(kv)] if first_kv is None else first_kv, CHUNKS + 1)
    return b + struct.pack("<I", units)


def loaded(known=2, cost=0.9, n_op=10):
    w = struct.pack("<IIIIddd", known, n_op, 0, 1, cost, 0, 0.1)
    return struct.pack("<IIQQ", 1, 0, 5, 6) + w * FUNCS


def run(f, n):
    return struct.pack("<II", f, n)


def welcome(os_name="Version 15.3", functions=1):
    return text(os_name, 128) + struct.pack("<III", functions, 1, 16)


def failed(status=12, why="no"):
    return struct.pack("<I", status) + text(why, TEXT)


H, L = msg(1, hello()), msg(3, load())
CASES = {
    "good": b"\0" + H + L + msg(5, run(0, 1)) + msg(5, run(1, 4)),
    "run_first": b"\0" + msg(5, run(0, 1)),
    "load_first": b"\0" + L,
    "hello_twice": b"\0" + H + H,
    "load_twice": b"\0" + H + L + L,
    "no_runtime": b"\0" + msg(1, hello("nowhere")) + H + L,
    "too_many": b"\0" + H + L + msg(5, run(0, 5)),
    "no_texts": b"\0" + H + L + msg(5, run(0, 0)),
    "no_function": b"\0" + H + L + msg(5, run(2, 1)),
    "function_far": b"\0" + H + L + msg(5, run(1 << 31, 1)),
    "too_large": b"\0" + H + msg(3, load(width=4096, lengths=(512,))),
    "overflow": b"\0" + H + msg(3, load(width=0xFFFFFFFF, lengths=(32768,), slots=64)),
    "slots_0": b"\0" + H + msg(3, load(slots=0)),
    "dim_0": b"\0" + H + msg(3, load(dim=0)),
    "both": b"\0" + H + msg(3, load(kv=(8,))),
    "keys": b"\0" + H + msg(3, load(dim=0, kv=(4, 8, 4), takes=0)) + msg(5, run(1, 4)) + msg(5, run(0, 2)),
    "chunks": b"\0" + H + msg(3, load(dim=0, kv=(4, 8, 4), takes=0, chunks=2, n_package=2, first_kv=(0, 1, 3))) + msg(5, run(1, 3)),
    "chunks_far": b"\0" + H + msg(3, load(dim=0, kv=(4,), chunks=17, n_package=17)),
    "chunks_none": b"\0" + H + msg(3, load(dim=0, kv=(4,), chunks=0, n_package=0)),
    "layers_back": b"\0" + H + msg(3, load(dim=0, kv=(4, 4), chunks=2, n_package=2, first_kv=(0, 3, 2))),
    "layers_less": b"\0" + H + msg(3, load(dim=0, kv=(4, 4), first_kv=(0, 1))),
    "layers_far": b"\0" + H + msg(3, load(dim=0, kv=(4,), n_kv=257)),
    "key_0": b"\0" + H + msg(3, load(dim=0, kv=(4, 0))),
    "key_wide": b"\0" + H + msg(3, load(dim=0, kv=(1 << 31,))),
    "takes": b"\0" + H + msg(3, load(takes=9)),
    "descend": b"\0" + H + msg(3, load(lengths=(32, 16))),
    "no_functions": b"\0" + H + msg(3, load(lengths=())),
    "packages_far": b"\0" + H + msg(3, load(lengths=(8, 16, 24), chunks=8, n_package=24, dim=0, kv=(4,))),
    "packages": b"\0" + H + msg(3, load(n_package=3)),
    "packages_2": b"\0" + H + msg(3, load(n_package=2)) + msg(5, run(1, 2)),
    "no_name": b"\0" + H + msg(3, load(name="")),
    "relative": b"\0" + H + msg(3, load(compiled="c")),
    "endless_path": b"\0" + H + msg(3, load(package="x" * PATH)),
    "units": b"\0" + H + msg(3, load(units=9)),
    "endless_runtime": b"\0" + msg(1, b"x" * PATH),
    "magic": b"\0" + msg(1, hello(), magic=7),
    "version": b"\0" + msg(1, hello(), version=3),
    "kind_0": b"\0" + msg(0, b""),
    "kind_99": b"\0" + msg(99, b"1234"),
    "huge": b"\0" + msg(1, hello(), n=0xFFFFFFFF),
    "short": b"\0" + msg(1, hello(), n=4),
    "cut": b"\0" + H + L[:1000],
    "answers": b"\1" + msg(2, welcome()) + msg(4, loaded()) + msg(6, struct.pack("<Q", 5)) + msg(7, failed()),
    "answer_text": b"\1" + msg(2, b"x" * 140),
    "answer_cost": b"\1" + msg(4, loaded(cost=float("nan"))),
    "answer_ops": b"\1" + msg(4, loaded(n_op=0xFFFFFFFF)),
    "answer_ok": b"\1" + msg(7, failed(status=0)),
    "answer_status": b"\1" + msg(7, failed(status=99)),
}

os.makedirs(OUT, exist_ok=True)
for name, data in CASES.items():
    with open(os.path.join(OUT, name), "wb") as f:
        f.write(data)
