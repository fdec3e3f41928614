"""measure_embed.py - retrieval by an embedding model beside TF-IDF on the same held-out texts.

Run:     python tools/train/measure_embed.py encoder_heldout.json MODEL.gguf [MODEL2.gguf...]
Needs:   numpy, build/impetus.
Prints:  JSON: for each model and for TF-IDF, how often the right text comes first (top-1) among the second texts of
         the set: 1,000 neighbouring passages, 1,000 held-out pairs, and the held-out pairs without a shared content
         word. With several models also how alike their orders are to the first one's (top-1, overlap of top-10).
"""
import collections
import json
import math
import re
import subprocess
import sys

import numpy as np

STOP = set("""a about after all also am an and any are as at be because been before but by can could did do does for from
had has have he her him his how i if in into is it its just like made make may me more most much my no not of on one only
or other our out over s said she should so some such t than that the their them then there these they this to two up us
very was way we were what when where which who why will with would you your""".split())


def words(s):
    return re.findall(r"\w+", s.lower())


def content(s):
    return {w[:5] for w in words(s)} - {w[:5] for w in STOP}


def unit(m):
    return m / np.maximum(np.linalg.norm(m, axis=1, keepdims=True), 1e-9)


def tfidf(a, b):
    counts = [collections.Counter(words(x)) for x in b]
    df = collections.Counter(w for c in counts for w in c)
    at = {w: i for i, w in enumerate(df)}
    idf = np.array([math.log((1 + len(b)) / (1 + n)) + 1 for n in df.values()])

    def matrix(texts):
        m = np.zeros((len(texts), len(at)), np.float32)
        for i, t in enumerate(texts):
            for w, n in collections.Counter(words(t)).items():
                if w in at:
                    m[i, at[w]] = 1 + math.log(n)
        return unit(m * idf)
    return matrix(a) @ matrix(b).T


def embed(model, texts):
    lines = "\n".join(" ".join(t.split()) for t in texts) + "\n"
    out = subprocess.run(["build/impetus", "embed", model, "-"], input=lines, capture_output=True, text=True, check=True)
    v = unit(np.array([json.loads(x) for x in out.stdout.splitlines()], np.float32))
    assert len(v) == len(texts), (len(v), len(texts))
    return v


def top1(s):
    return round(float((s.argmax(1) == np.arange(len(s))).mean()), 4)


def main(path, *models):
    z = json.load(open(path))
    rng = np.random.default_rng(20261122)
    pairs = [(p["a"], p["b"]) for p in z["pairs"] if p["type"] != "same-intent"]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    apart = [p for p in pairs if not content(p[0]) & content(p[1])]
    sets = {"neighbours": z["neighbours"], "pairs": pairs[:1000], "pairs without a shared content word": apart[:1000]}
    result = {}
    for name, s in sets.items():
        a, b = [x[0] for x in s], [x[1] for x in s]
        row = {"texts": len(s), "tf-idf": top1(tfidf(a, b))}
        base = None
        for m in models:
            sim = embed(m, a) @ embed(m, b).T
            row[m] = top1(sim)
            if base is None:
                base = sim
            else:
                o, p = np.argsort(-base, 1)[:, :10], np.argsort(-sim, 1)[:, :10]
                row[m + " beside the first"] = {
                    "same top-1": round(float((o[:, 0] == p[:, 0]).mean()), 4),
                    "overlap of top-10": round(float(np.mean([len(set(x) & set(y)) / 10 for x, y in zip(o, p)])), 4)}
        result[name] = row
        print(name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
