#!/usr/bin/env python3
"""How well predictions meet reality on this machine's CPU: prints a Markdown table.

    bench/predict.py IMPETUS MODEL.gguf [--calibrate]

Each row is a prompt length and an answer length. "unseen" is the first run of that shape, predicted from the calibration
and whatever other shapes taught; "learned" is the median of the runs after it. Predicted and actual times come from the
explanation that each run leaves (`impetus explain last --json`), so the prediction was made before the run.
"""
import json, os, statistics, subprocess, sys, tempfile

SHAPES = [(16, 32), (128, 32), (384, 32), (48, 64), (256, 16), (500, 8)]
RUNS = 7


def main():
    impetus, model = sys.argv[1:3]
    db = os.path.join(tempfile.mkdtemp(), "impetus.db")
    call = lambda *a: subprocess.run([impetus, *a, "--database", db], capture_output=True, text=True, check=True).stdout
    call("calibrate", *([] if "--calibrate" in sys.argv else ["--quick"]))
    rows = []
    for n_prompt, n_gen in SHAPES:
        ids = tokens(impetus, model, n_prompt)
        ttft, tpot = [], []
        for _ in range(RUNS):
            call("run", model, ids, "--raw", "--ignore-eos", "-n", str(n_gen), "--temp", "0")
            r = json.loads(call("explain", "last", "--json"))["receipt"]
            ttft.append(abs(r["prefill"]["predicted_ms"] / r["prefill"]["ms"] - 1))
            tpot.append(abs(r["decode"]["predicted_ms"] / r["decode"]["ms"] - 1))
        rows.append((n_prompt, n_gen, ttft[0], statistics.median(ttft[1:]), tpot[0], statistics.median(tpot[1:])))
    print("| prompt | generated | TTFT unseen | TTFT learned | TPOT unseen | TPOT learned |\n|--|--|--|--|--|--|")
    for r in rows:
        print("| %d | %d | %.0f %% | %.0f %% | %.0f %% | %.0f %% |" % (r[0], r[1], *[100 * x for x in r[2:]]))
    med = [statistics.median(r[i] for r in rows) for i in range(2, 6)]
    print("| median | | %.0f %% | %.0f %% | %.0f %% | %.0f %% |" % tuple(100 * x for x in med))
    print("\nload while measuring: %.1f on %d cores" % (os.getloadavg()[0], os.cpu_count()))


def tokens(impetus, model, n):
    """A text of about n tokens."""
    text = "Once upon a time there was a little dog who liked to run. " * (n // 8 + 2)
    while True:
        out = subprocess.run([impetus, "tokenize", model, text, "--ids"], capture_output=True, text=True, check=True).stdout
        k = len(out.split())
        if k <= n:
            return text
        text = text[: max(1, len(text) * n // k)]


main()
