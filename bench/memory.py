#!/usr/bin/env python3
"""Peak memory of a serving process beside what `impetus plan` says: prints a Markdown table.

    bench/memory.py IMPETUS MODEL.gguf[,CTX[,PARALLEL]]...

For each model a server is started, every sequence it holds is filled to the last token with tokens from all over the
vocabulary, and the kernel's own peak (VmHWM, so Linux only) is compared with the plan's `resident`: weights, cache, scratch
and the rest of the model (`total`, what the allocator was asked for to the byte) and the program itself (`process`).
Ends with 1 when the two differ by more than 3 % and 1 MB. With --tap the same as test output.
"""
import json, os, random, socket, subprocess, sys, threading, time, urllib.error, urllib.request


def peak(pid):
    for line in open("/proc/%d/status" % pid):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024


def post(port, path, body):
    rq = urllib.request.Request("http://127.0.0.1:%d%s" % (port, path), json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(rq, timeout=600).read())


def fill(port, show, n_ctx, alone, seed, failed):
    rng = random.Random(seed)
    n_gen = 4 if alone else n_ctx // 2 - 1  # several: long enough that all are there at once
    ids = lambda n: [rng.randrange(3, show["vocab"]) for _ in range(n)]
    try:
        if show["can_generate"]:
            post(port, "/v1/completions", {"model": "m", "prompt": ids(n_ctx - n_gen - 1), "max_tokens": n_gen, "temperature": 0, "ignore_eos": True})
        else:
            post(port, "/v1/embeddings", {"model": "m", "input": ids(n_ctx)})
    except urllib.error.HTTPError as e:
        failed.append(e.read().decode()[:200])


def measure(impetus, spec):
    """(plan's memory, measured peak) of one model, filled."""
    path, ctx, parallel = (spec + (",0,1", ",1", "")[spec.count(",")]).split(",")
    options = ["--device", "cpu", "--parallel", parallel] + (["--ctx", ctx] if ctx != "0" else [])
    call = lambda *a: json.loads(subprocess.run([impetus, *a, "--json"], capture_output=True, text=True, check=True).stdout)
    plan = call("plan", path, *options)
    n_ctx = int(ctx) or plan["largest_ctx"]
    show = call("show", path)
    server = subprocess.Popen([impetus, "serve", "-q", "-m", "m=" + path, "--port", "0", "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        text = ""
        while not text.endswith("\n}\n"):
            text += server.stdout.readline()
        port = int(json.loads(text)["listening"].rsplit(":", 1)[1].strip("/"))
        failed = []
        threads = [threading.Thread(target=fill, args=(port, show, n_ctx, parallel == "1", i, failed)) for i in range(int(parallel))]
        [t.start() for t in threads]
        [t.join() for t in threads]
        if failed:
            sys.exit("bench/memory.py: %s: %s" % (path, failed[0]))
        return n_ctx, int(parallel), plan["memory"], peak(server.pid)
    finally:
        server.terminate()
        server.wait()


def main():
    args = [a for a in sys.argv[1:] if a != "--tap"]
    tap, bad = "--tap" in sys.argv, 0
    if not tap:
        print("| model | context | sequences | planned: model | program | together | measured peak | difference |")
        print("|---|---|---|---|---|---|---|---|")
    for k, spec in enumerate(args[1:]):
        n_ctx, parallel, m, rss = measure(args[0], spec)
        name, off = os.path.basename(spec.split(",")[0]), rss / m["resident"] - 1
        ok = abs(off) <= 0.03 or abs(rss - m["resident"]) <= 1 << 20
        bad += not ok
        if tap:
            print("%sok %d - %s: peak %d, planned %d (%+.1f %%)" % ("" if ok else "not ", k + 1, name, rss, m["resident"], 100 * off))
        else:
            mb = lambda v: "%.1f MB" % (v / 1e6)
            print("| %s | %d | %d | %s | %s | %s | %s | %+.1f %% |" % (name, n_ctx, parallel, mb(m["total"]), mb(m["process"]), mb(m["resident"]), mb(rss), 100 * off))
    if tap:
        print("1..%d" % len(args[1:]))
    sys.exit(bad > 0)


main()
