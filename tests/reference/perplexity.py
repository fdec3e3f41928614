#!/usr/bin/env python3
"""`impetus perplexity` against llama.cpp's perplexity tool: the same file, the same windows, alone and against a second model."""
import json
import pathlib
import re
import subprocess
import tempfile

import peer
from impetus import EXE, ROOT, command
from tap import attempt, done, ok, skip

STORIES = ROOT / "models" / "stories260K.gguf"
BIN = peer.DIR / "build" / "bin"


def tool(name, last, *args):
    """What the tool prints, up to its last words: it sometimes ends before its log is written out, then it runs again."""
    for _ in range(20):
        r = subprocess.run(["stdbuf", "-oL", str(BIN / name), *map(str, args)], capture_output=True, text=True, timeout=600)
        if r.returncode:
            raise RuntimeError(f"{name} ended with {r.returncode}: {r.stderr[-300:]}")
        if last in r.stdout + r.stderr:
            return r.stdout + r.stderr
    raise RuntimeError(f"{name} never printed '{last}'")


def number(pattern, text):
    return float(re.search(pattern + r"\s*[:=]\s*(-?[0-9.]+)", text).group(1))


def compare(folder, ctx):
    text, q8, base = folder / "story.txt", folder / "q8_0.gguf", folder / "base.bin"
    text.write_text("\n".join(command("run", STORIES, "Once upon", "--raw", "--seed", s) for s in range(6)))
    tool("llama-quantize", "", STORIES, q8, "q8_0")
    tool("llama-perplexity", "", "-m", STORIES, "-f", text, "-c", ctx, "-t", 1, "--kl-divergence-base", base)
    ours = json.loads(command("perplexity", STORIES, text, "--ctx", ctx, "--json"))
    alone = tool("llama-perplexity", "Final estimate", "-m", STORIES, "-f", text, "-c", ctx, "-t", 1)
    want = number("Final estimate: PPL", alone)
    ok(abs(ours["ppl"] / want - 1) < 1e-3, f"perplexity, windows of {ctx}", f"{ours['ppl']:.4f}, llama.cpp {want:.4f}")
    theirs = tool("llama-perplexity", "Same top p:", "-m", q8, "-f", text, "-c", ctx, "-t", 1, "--kl-divergence-base", base,
                  "--kl-divergence")
    ours = json.loads(command("perplexity", q8, text, "--ctx", ctx, "--against", STORIES, "--json"))["against"]
    kl, same = number(r"Mean\s+KLD", theirs), number("Same top p", theirs) / 100
    ok(abs(ours["kl_mean"] / kl - 1) < 0.1, "KL divergence of q8_0 from f32", f"{ours['kl_mean']:.6f}, llama.cpp {kl:.6f}")
    ok(abs(ours["top1_agreement"] - same) < 0.01, "top-1 agreement", f"{ours['top1_agreement']:.4f}, llama.cpp {same:.4f}")


if not (BIN / "llama-perplexity").exists():
    skip("impetus perplexity", "llama.cpp is not built: make peers")
elif not EXE.exists():
    ok(False, "impetus is built")
else:
    with tempfile.TemporaryDirectory() as d:
        attempt("perplexity", compare, pathlib.Path(d), 256)
done()
