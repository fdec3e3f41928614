#!/usr/bin/env python3
"""How well predictions meet reality on this machine's CPU: prints a Markdown table.

    bench/predict.py IMPETUS MODEL[,MODEL...] [--calibrate] [--runs N] [--detail] [--write docs/benchmarks.md] [--state FOLDER]

The machine is calibrated once, then each model is served, and before every request POST /api/plan is asked what it will
take: time to the first token (TTFT), time a token (TPOT, with as many sequences beside it as the row says), time of an
embedding. What it then took comes from the request's receipt. "unseen" is the first request of its shape: predicted from
the calibration and whatever other shapes taught; "seen" the median of those after it. --state keeps the database and the
rows measured so far, so that a run can be made in several slices. Needs a machine that does nothing else.
"""
import argparse, json, os, random, statistics, subprocess, sys, tempfile, threading, urllib.request

# prompt, generated, sequences at once; in this order, so that unseen ones come between seen ones
GENERATE = [(16, 24, 1), (128, 24, 1), (512, 12, 1), (48, 24, 2), (300, 12, 1), (64, 24, 4), (1500, 12, 1), (900, 12, 1), (24, 24, 8), (2500, 8, 1)]
EMBED = [(16, 1), (128, 1), (64, 1), (250, 1), (32, 8), (100, 4), (40, 32)]
MARK = ("<!-- bench/predict.py: begin -->", "<!-- bench/predict.py: end -->")


class Server:
    def __init__(self, impetus, model, db):
        self.p = subprocess.Popen([impetus, "serve", "-q", "-m", "m=" + model, "--port", "0", "--json", "--device", "cpu", "--database", db],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        text = ""
        while not text.endswith("\n}\n"):
            text += self.p.stdout.readline()
        self.url = json.loads(text)["listening"].rstrip("/")
        self.ctx = json.loads(text)["models"][0]["ctx"]

    def post(self, path, body):
        rq = urllib.request.Request(self.url + path, json.dumps({"model": "m", **body}).encode(), {"Content-Type": "application/json"})
        return json.loads(urllib.request.urlopen(rq, timeout=600).read())

    def stop(self):
        self.p.terminate()
        self.p.wait()


def ids(n, n_vocab, seed):
    rng = random.Random("%d of %d" % (seed, n))  # no prompt begins as another one did: that would be computed once
    return [rng.randrange(3, n_vocab) for _ in range(n)]


def generate(s, n_vocab, shape, seed):
    """(predicted, actual) of TTFT and of TPOT, ms."""
    prompt, gen, batch = shape
    plan = s.post("/api/plan", {"prompt": prompt, "gen": gen, "batch": batch})
    alone = s.post("/api/plan", {"prompt": prompt, "gen": gen})
    receipts = [None] * batch

    def one(i):
        r = s.post("/v1/completions", {"prompt": ids(prompt, n_vocab, seed * 100 + i), "max_tokens": gen, "temperature": 0, "ignore_eos": True,
                                       "impetus": {"receipt": True}})
        receipts[i] = r["impetus"]["receipt"]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(batch)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    d = [r["decode"]["ms"] / r["decode"]["tokens"] for r in receipts]
    ttft = (alone["candidates"][alone["chosen"]]["ttft_ms"], receipts[0]["prefill"]["ms"]) if batch == 1 else None
    return ttft, (plan["candidates"][plan["chosen"]]["tpot_ms"], statistics.median(d))


def embed(s, n_vocab, shape, seed):
    n, batch = shape
    plan = s.post("/api/plan", {"prompt": n, "gen": 1, "batch": batch})
    r = s.post("/v1/embeddings", {"input": [ids(n, n_vocab, seed * 100 + i) for i in range(batch)], "impetus": {"receipt": True}})
    return (plan["candidates"][plan["chosen"]]["ttft_ms"], r["impetus"]["receipt"]["embed"]["ms"]), None


def measure(impetus, model, db, runs, detail):
    show = json.loads(subprocess.run([impetus, "show", model, "--json"], capture_output=True, text=True, check=True).stdout)
    s, rows = Server(impetus, model, db), []
    run = generate if show["can_generate"] else embed
    try:
        for shape in GENERATE if show["can_generate"] else EMBED:
            if shape[0] + (shape[1] if show["can_generate"] else 0) > s.ctx:
                continue
            both = [run(s, show["vocab"], shape, k) for k in range(runs + 1)]
            for which, name in ((0, "TTFT" if show["can_generate"] else "embedding"), (1, "TPOT")):
                pairs = [b[which] for b in both if b[which]]
                if not pairs:
                    continue
                err = [p / a - 1 for p, a in pairs]
                rows.append({"model": os.path.basename(model), "what": name, "shape": list(shape), "unseen": err[0],
                             "seen": statistics.median(abs(e) for e in err[1:]), "bias": statistics.median(err[1:]),
                             "ms": statistics.median(a for _, a in pairs)})
                if detail:
                    r = rows[-1]
                    print("%-24s %-9s %-14s %9.3f ms  unseen %+6.1f %%  seen %5.1f %% (%+.1f)  spread %.1f %%" % (
                        r["model"], name, shape, r["ms"], 100 * r["unseen"], 100 * r["seen"], 100 * r["bias"],
                        100 * (max(a for _, a in pairs) / min(a for _, a in pairs) - 1)), flush=True)
    finally:
        s.stop()
    return rows


def table(rows):
    out = ["| model | what | shapes | median error, seen | median error, unseen | worst unseen |", "|---|---|---|---|---|---|"]
    groups = {}
    for r in rows:
        groups.setdefault((r["model"], r["what"]), []).append(r)
    for what in ("TTFT", "TPOT", "embedding"):
        groups[("all", what)] = [r for r in rows if r["what"] == what]
    for (model, what), g in groups.items():
        if g:
            out.append("| %s | %s | %d | %.1f %% | %.1f %% | %.1f %% |" % (model, what, len(g), 100 * statistics.median(r["seen"] for r in g),
                       100 * statistics.median(abs(r["unseen"]) for r in g), 100 * max(abs(r["unseen"]) for r in g)))
    return "\n".join(out)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("impetus")
    ap.add_argument("models", nargs="?", default="")
    ap.add_argument("--calibrate", action="store_true", help="calibrate thoroughly, not the quick way")
    ap.add_argument("--runs", type=int, default=5)
    ap.add_argument("--detail", action="store_true")
    ap.add_argument("--state")
    ap.add_argument("--write")
    a = ap.parse_args()
    state = a.state or tempfile.mkdtemp()
    os.makedirs(state, exist_ok=True)
    db, kept = os.path.join(state, "impetus.db"), os.path.join(state, "rows.json")
    if not os.path.exists(db):
        subprocess.run([a.impetus, "calibrate", "--device", "cpu", "--database", db] + ([] if a.calibrate else ["--quick"]), check=True, stdout=subprocess.DEVNULL)
    rows = json.load(open(kept)) if os.path.exists(kept) else []
    for model in filter(None, a.models.split(",")):
        rows = [r for r in rows if r["model"] != os.path.basename(model)] + measure(a.impetus, model, db, a.runs, a.detail)
        json.dump(rows, open(kept, "w"))
    if not rows:
        return
    text = table(rows)
    print(text)
    if a.write:
        doc = open(a.write).read()
        head, rest = doc.split(MARK[0])
        cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "CPU")
        note = "%s, %d threads; %d requests of each shape." % (cpu, os.cpu_count(), a.runs + 1)
        open(a.write, "w").write(head + MARK[0] + "\n" + note + "\n\n" + text + "\n" + MARK[1] + rest.split(MARK[1])[1])


main()
