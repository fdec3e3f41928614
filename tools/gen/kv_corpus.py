#!/usr/bin/env python3
"""Writes fuzz/corpus/kv_file: saved blocks of a KV cache, right (but for the sums, which the target puts right) and wrong."""
import pathlib, struct

here = pathlib.Path(__file__).resolve().parents[2] / "fuzz" / "corpus" / "kv_file"
here.mkdir(parents=True, exist_ok=True)


def block(magic=b"IMPKVBLK", version=1, size=None, content=1, layout=1, scope=11, depth=12, token=0, data=96):
    model = struct.pack("<7Q4I", content, 2, 3, 4, 5, 6, 96, 1, 2, 64, layout)
    link = struct.pack("<6Q64i", 7, 8, 9, 10, scope, depth, *[i + token for i in range(64)])
    body = b"a model".ljust(64, b"\0") + model + link + bytes(24)
    return magic + struct.pack("<II", version, size or 16 + len(body)) + body + bytes(range(data))


files = {"right": block(), "magic": block(magic=b"IMPKVBLO"), "version": block(version=2), "header": block(size=8),
         "model": block(content=9), "layout": block(layout=2), "scope": block(scope=1), "depth": block(depth=1),
         "tokens": block(token=1), "short": block(data=95), "long": block(data=97), "no-data": block(data=0),
         "cut": block()[:100], "empty": b"", "name": b"0123456789abcdef0123456789abcdef.kv"}
for name, data in files.items():
    (here / name).write_bytes(data)
