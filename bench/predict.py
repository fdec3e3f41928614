#!/usr/bin/env python3
"""How well predictions meet reality on this machine's CPU: prints a Markdown table.

    bench/predict.py IMPETUS MODEL[,MODEL...] [--calibrate] [--rounds N] [--detail] [--write docs/benchmarks.md] [--state FOLDER]

The machine is calibrated once, then each model is served, and before every request POST /api/plan is asked what it will
take: time to the first token (TTFT), time a token (TPOT, with as many sequences beside it as the row says), time of an
embedding. What it then took comes from the request's receipt. Guesses are off: what they save is the text's doing, not the
machine's. Before a model's first request all its shapes are predicted ("new model": from calibration and other models
alone, held against the median of what they took later). Then every shape comes once ("unseen": what shapes before it
taught helps), then all of them in turn, N rounds ("seen": the median error). Two figures say what can be had: "own noise",
how far the same requests were from their own median, and "oracle", how far the median of the first half of a shape's
rounds, known exactly, was from the second half. The processor time that others took meanwhile is printed too. --state
keeps the database and the rows measured so far, so that a run can be made in several slices. Needs a machine that does
nothing else.
"""
import argparse, json, os, random, statistics, subprocess, tempfile, urllib.request

# prompt, generated, sequences at once
GENERATE = [(16, 24, 1), (128, 24, 1), (512, 12, 1), (48, 24, 2), (300, 12, 1), (64, 24, 4), (1500, 12, 1), (900, 12, 1), (24, 32, 8), (2500, 8, 1)]
EMBED = [(16, 1), (128, 1), (64, 1), (250, 1), (32, 8), (100, 4), (40, 32)]
MARK = ("<!-- bench/predict.py: begin -->", "<!-- bench/predict.py: end -->")


class Server:
    def __init__(self, impetus, model, db):
        self.p = subprocess.Popen([impetus, "serve", "-q", "-m", "m=" + model, "--port", "0", "--json", "--device", "cpu", "--speculate", "off", "--database", db],
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


def plan_of(s, can, shape):
    """Predicted ms: (time to the first token or of the embedding, time a token)."""
    n, gen, batch = shape if can else (shape[0], 1, shape[1])
    plan = s.post("/api/plan", {"prompt": n, "gen": gen, "batch": batch})
    best = plan["candidates"][plan["chosen"]]
    return best["ttft_ms"], best["tpot_ms"]


def generate(s, n_vocab, shape, seed):
    """(predicted, actual) of TTFT and of TPOT, ms. Sequences beside each other come as one request, so that they start together."""
    prompt, gen, batch = shape
    ttft_ms, tpot_ms = plan_of(s, True, shape)
    many = [ids(prompt, n_vocab, seed * 100 + i) for i in range(batch)]
    r = s.post("/v1/completions", {"prompt": many if batch > 1 else many[0], "max_tokens": gen, "temperature": 0, "ignore_eos": True,
                                   "impetus": {"receipt": True}})["impetus"]["receipt"]
    r = r if batch > 1 else [r]
    ttft = (ttft_ms, r[0]["prefill"]["ms"]) if batch == 1 else None
    return ttft, (tpot_ms, statistics.median(x["decode"]["ms"] / x["decode"]["tokens"] for x in r))


def embed(s, n_vocab, shape, seed):
    n, batch = shape
    ms = plan_of(s, False, shape)[0]
    r = s.post("/v1/embeddings", {"input": [ids(n, n_vocab, seed * 100 + i) for i in range(batch)], "impetus": {"receipt": True}})
    return (ms, r["impetus"]["receipt"]["embed"]["ms"]), None


def others():
    """Processor seconds of the machine so far: all, idle, taken by other machines, and those of this process and its children."""
    t = [int(x) / os.sysconf("SC_CLK_TCK") for x in open("/proc/stat").readline().split()[1:9]]
    return sum(t), t[3] + t[4], t[7]


def cpu_of(pid):
    t = open("/proc/%d/stat" % pid).read().rsplit(")", 1)[1].split()
    return (int(t[11]) + int(t[12])) / os.sysconf("SC_CLK_TCK")


def measure(impetus, model, db, rounds, detail):
    show = json.loads(subprocess.run([impetus, "show", model, "--json"], capture_output=True, text=True, check=True).stdout)
    s, rows, can = Server(impetus, model, db), [], show["can_generate"]
    run = generate if can else embed
    try:
        shapes = [x for x in (GENERATE if can else EMBED) if x[0] + (x[1] if can else 0) <= s.ctx]
        got, ahead = {x: [] for x in shapes}, {x: plan_of(s, can, x) for x in shapes}
        before, own = others(), cpu_of(s.p.pid) + cpu_of(os.getpid())
        for k in range(rounds + 1):
            for x in shapes:
                got[x].append(run(s, show["vocab"], x, k))
        after, own = others(), cpu_of(s.p.pid) + cpu_of(os.getpid()) - own
        total = after[0] - before[0]
        rest = total - (after[1] - before[1]) - (after[2] - before[2]) - own
        print("%s: of the processor time others took %.1f %%, other machines %.1f %%" % (
            os.path.basename(model), 100 * max(rest, 0) / total, 100 * (after[2] - before[2]) / total), flush=True)
    finally:
        s.stop()
    for x in shapes:
        for which, name in ((0, "TTFT" if can else "embedding"), (1, "TPOT")):
            pairs = [b[which] for b in got[x] if b[which]]
            if not pairs:
                continue
            err = [p / a - 1 for p, a in pairs]
            actual = [a for _, a in pairs[1:]]
            usual, first = statistics.median(actual), statistics.median(actual[:(len(actual) + 1) // 2])
            r = {"model": os.path.basename(model), "what": name, "shape": list(x), "unseen": err[0],
                 "seen": statistics.median(abs(e) for e in err[1:]), "bias": statistics.median(err[1:]),
                 "noise": statistics.median(abs(a / usual - 1) for a in actual), "ms": usual, "new": ahead[x][which] / usual - 1,
                 "oracle": statistics.median(abs(first / a - 1) for a in actual[(len(actual) + 1) // 2:] or [usual])}
            rows.append(r)
            if detail:
                print("%-24s %-9s %-14s %9.3f ms  new model %+6.1f %%  unseen %+6.1f %%  seen %5.1f %% (%+.1f)  own noise %4.1f %%  oracle %4.1f %%" % (
                    r["model"], name, x, r["ms"], 100 * r["new"], 100 * r["unseen"], 100 * r["seen"], 100 * r["bias"], 100 * r["noise"],
                    100 * r["oracle"]), flush=True)
    return rows


def table(rows):
    out = ["| model | what | shapes | median error, seen | own noise | oracle | unseen shape | new model | worst unseen |",
           "|---|---|---|---|---|---|---|---|---|"]
    groups = {}
    for r in rows:
        groups.setdefault((r["model"], r["what"]), []).append(r)
    for what in ("TTFT", "TPOT", "embedding"):
        groups[("all", what)] = [r for r in rows if r["what"] == what]
    percent = lambda g, f: 100 * statistics.median(f(r) for r in g)
    for (model, what), g in groups.items():
        if g:
            out.append("| %s | %s | %d | %.1f %% | %.1f %% | %.1f %% | %.1f %% | %.1f %% | %.1f %% |" % (
                model, what, len(g), percent(g, lambda r: r["seen"]), percent(g, lambda r: r["noise"]), percent(g, lambda r: r["oracle"]),
                percent(g, lambda r: abs(r["unseen"])), percent(g, lambda r: abs(r["new"])), 100 * max(abs(r["unseen"]) for r in g)))
    return "\n".join(out)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("impetus")
    ap.add_argument("models", nargs="?", default="")
    ap.add_argument("--calibrate", action="store_true", help="calibrate thoroughly, not the quick way")
    ap.add_argument("--rounds", type=int, default=6)
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
        rows = [r for r in rows if r["model"] != os.path.basename(model)] + measure(a.impetus, model, db, a.rounds, a.detail)
        json.dump(rows, open(kept, "w"))
    if not rows:
        return
    text = table(rows)
    print(text)
    if a.write:
        doc = open(a.write).read()
        head, rest = doc.split(MARK[0])
        cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "CPU")
        note = "%s, %d threads; %d requests of each shape." % (cpu, os.cpu_count(), a.rounds + 1)
        open(a.write, "w").write(head + MARK[0] + "\n" + note + "\n\n" + text + "\n" + MARK[1] + rest.split(MARK[1])[1])


main()
