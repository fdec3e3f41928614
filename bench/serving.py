#!/usr/bin/env python3
"""What a server does for its users: tokens for many streams at once, a shared beginning computed once, an even pace.

  bench/serving.py build/impetus MODEL.gguf [--peer build/peer/build/bin/llama-server] [--streams 1,4,8,16] [--rounds 3]
                   [--shared] [--pace] [--write docs/benchmarks.md]

Streams: so many requests at once, --tokens in and as many out, greedy, other ids each time; both servers run
and take turns, the one that goes first changes; each has as many slots as there are streams. The peer is started with each of --peer-batch (its -b and -ub) and tried
at 8 streams; the fastest stays. Printed are medians over the rounds: tokens a second from the first request to the last
token, time to the first token (TTFT), time between tokens (TPOT); with --write the ratios replace FILE's marked table.
--shared: the first token of a request with a long system prompt, first and second time (another question behind it).
--pace: gaps between the tokens of a running stream, alone and while a long prompt is read beside it.
Without these two and without a peer both are measured. Prints one JSON document."""
import argparse
import http.client
import json
import pathlib
import random
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time

NAME = "bench"  # of the model
BEGIN, END = "<!-- bench/serving.py: begin -->", "<!-- bench/serving.py: end -->"


# ---- servers


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A server process that answers /health; ends with the block."""

    def __init__(self, command, port):
        self.port = port
        self.process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1200):
            time.sleep(0.1)
            if self.process.poll() is not None:
                sys.exit(f"{command[0]} ended with {self.process.returncode}")
            try:
                c = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                c.request("GET", "/health")
                if c.getresponse().status == 200:
                    return
            except OSError:
                pass
        sys.exit(f"{command[0]} does not answer")

    def close(self):
        self.process.terminate()
        self.process.wait()

    __enter__ = lambda self: self
    __exit__ = lambda self, *_: self.close()


def start_impetus(a, ctx, parallel):
    port = free_port()
    return Server([a.impetus, "serve", "-m", f"{NAME}={a.model}", "--port", port, "--ctx", ctx, "--parallel", parallel, "-t", a.threads, *a.flags], port)


def start_peer(a, batch, parallel):
    port = free_port()
    b, ub = batch.split("/")
    ctx = parallel * (2 * a.tokens + 64)
    return Server([a.peer, "-m", a.model, "--port", port, "-c", ctx, "-np", parallel, "-cb", "-t", a.threads, "-tb", a.threads,
                   "-fa", "on", "-b", b, "-ub", ub], port)


# ---- many streams


def request_bytes(port, prompt, n):
    body = json.dumps({"model": NAME, "prompt": prompt, "max_tokens": n, "stream": True, "ignore_eos": True, "temperature": 0,
                       "stream_options": {"include_usage": True}}).encode()
    return (f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n").encode() + body


def load(port, prompts, n):
    """All prompts at once. (tokens/s from the first request to the last token, [TTFT], [TPOT])"""
    sel, streams = selectors.DefaultSelector(), []
    requests = [request_bytes(port, p, n) for p in prompts]
    t0 = time.monotonic()
    for r in requests:
        s = socket.create_connection(("127.0.0.1", port))
        s.sendall(r)
        streams.append({"sock": s, "got": b"", "first": None, "last": None, "tokens": 0})
        sel.register(s, selectors.EVENT_READ, streams[-1])
    left = len(streams)
    while left:
        for key, _ in sel.select(600):
            x, data, now = key.data, key.fileobj.recv(1 << 16), time.monotonic()
            if not data:
                sel.unregister(key.fileobj)
                key.fileobj.close()
                left -= 1
            x["got"] += data
            *lines, x["got"] = x["got"].split(b"\n")
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                d = json.loads(line[6:])
                if d.get("usage"):
                    x["tokens"] = d["usage"]["completion_tokens"]
                if d.get("choices"):
                    x["first"], x["last"] = x["first"] or now, now
    if any(x["tokens"] != n for x in streams):
        sys.exit(f"port {port}: {[x['tokens'] for x in streams]} tokens instead of {n}")
    wall = max(x["last"] for x in streams) - t0
    return len(prompts) * n / wall, [x["first"] - t0 for x in streams], [(x["last"] - x["first"]) / (n - 1) for x in streams]


def best_batch(a, ids):
    """The batch sizes with which the peer serves 8 streams fastest, of two runs each."""
    sizes, tried = a.peer_batch.split(","), {}
    for batch in sizes if len(sizes) > 1 else []:
        with start_peer(a, batch, 8) as s:
            load(s.port, [ids(a.tokens)], 8)
            tried[batch] = max(load(s.port, [ids(a.tokens) for _ in range(8)], a.tokens)[0] for _ in range(2))
    return max(tried, key=tried.get) if tried else sizes[0], tried


def streams(a, ids):
    batch, tried = best_batch(a, ids)
    out = {"tokens": a.tokens, "rounds": a.rounds, "peer_batch": batch, "peer_batch_tok_s": tried, "runs": {}}
    for n in [int(n) for n in a.streams.split(",")]:
        runs = {"impetus": [], "peer": []}
        with start_impetus(a, 2 * a.tokens + 64, n) as me, start_peer(a, batch, n) as peer:
            servers = {"impetus": me, "peer": peer}
            for s in servers.values():
                load(s.port, [ids(a.tokens) for _ in range(min(n, 2))], a.tokens)  # warm
            for k in range(a.rounds):
                for name in sorted(servers, reverse=k % 2 == 1):
                    runs[name].append(load(servers[name].port, [ids(a.tokens) for _ in range(n)], a.tokens))
        out["runs"][n] = {name: {"tok_s": statistics.median(r[0] for r in rs), "each": [r[0] for r in rs],
                                 "ttft_ms": statistics.median(statistics.median(r[1]) for r in rs) * 1e3,
                                 "ttft_last_ms": statistics.median(max(r[1]) for r in rs) * 1e3,
                                 "tpot_ms": statistics.median(statistics.median(r[2]) for r in rs) * 1e3}
                          for name, rs in runs.items()}
    return out


def table(out):
    rows = ["| streams | tokens a second, impetus / peer | lowest to highest round | TTFT, median | TTFT, last | TPOT |", "|--|--|--|--|--|--|"]
    for n, r in out["runs"].items():
        me, peer = r["impetus"], r["peer"]
        each = sorted(x / y for x, y in zip(me["each"], peer["each"]))
        share = lambda k: f"{me[k] / peer[k]:.2f}"
        rows.append(f"| {n} | {me['tok_s'] / peer['tok_s']:.2f} | {each[0]:.2f} to {each[-1]:.2f} | {share('ttft_ms')} | "
                    f"{share('ttft_last_ms')} | {share('tpot_ms')} |")
    return "\n".join(rows)


# ---- one stream beside others


def stream(port, prompt, n, on_token):
    """One streamed completion of token ids; on_token(time) for every chunk with text; ends when it returns False."""
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = {"prompt": prompt, "max_tokens": n, "stream": True, "ignore_eos": True, "temperature": 0, "logprobs": 0}
    c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    r = c.getresponse()
    if r.status != 200:
        sys.exit(f"status {r.status}: {r.read(500)}")
    for line in r:
        if line.startswith(b"data: {") and b'"finish_reason":null' in line and not on_token(time.monotonic()):
            break
    c.close()


def ttft(port, prompt):
    t0, first = time.monotonic(), []
    stream(port, prompt, 4, lambda t: first.append(t) or True)
    return first[0] - t0


def percentile(v, q):
    v = sorted(v)
    return v[min(len(v) - 1, int(q * len(v)))]


def shared(port, a, ids):
    """A system prompt that comes again, --rounds times with other ids."""
    first, second = [], []
    for _ in range(a.rounds):
        system = ids(a.system)
        first.append(ttft(port, system + ids(16)))
        second.append(ttft(port, system + ids(16)))
    ratio = [y / x for x, y in zip(first, second)]
    return {"system_tokens": a.system, "first_ms": statistics.median(first) * 1e3, "second_ms": statistics.median(second) * 1e3,
            "ratio": statistics.median(ratio), "each": ratio}


def pace(port, a, ids):
    """Gaps of a running stream: --seconds alone, then while a long prompt is read."""
    gaps, state = {"alone": [], "beside": []}, {"now": None, "last": None, "end": False}

    def token(t):
        if state["last"] and state["now"]:
            gaps[state["now"]].append(t - state["last"])
        state["last"] = t
        return not state["end"]

    running = threading.Thread(target=stream, args=(port, ids(32), a.long, token), daemon=True)
    running.start()
    time.sleep(1)
    state["now"] = "alone"
    time.sleep(a.seconds)
    got = []
    long_one = threading.Thread(target=stream, args=(port, ids(a.long), 4, lambda t: got.append(t) and False), daemon=True)
    state["now"], t0 = "beside", time.monotonic()
    long_one.start()
    long_one.join(8 * a.seconds)
    state["end"] = True
    running.join(10)
    out = {k: {"tokens": len(v), "p50_ms": percentile(v, .5) * 1e3, "p99_ms": percentile(v, .99) * 1e3, "max_ms": max(v) * 1e3}
           for k, v in gaps.items()}
    out["p99_beside_by_p50_alone"] = out["beside"]["p99_ms"] / out["alone"]["p50_ms"]
    out["p99_beside_by_p99_alone"] = out["beside"]["p99_ms"] / out["alone"]["p99_ms"]
    out["long_prompt_s"] = got[0] - t0 if got else None
    return out


def main():
    p = argparse.ArgumentParser()
    p.add_argument("impetus")
    p.add_argument("model")
    p.add_argument("--peer")
    p.add_argument("--peer-batch", default="2048/512,2048/256,2048/1024")
    p.add_argument("--streams", default="1,4,8,16")
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--shared", action="store_true")
    p.add_argument("--pace", action="store_true")
    p.add_argument("--system", type=int, default=1024)
    p.add_argument("--long", type=int, default=4096)
    p.add_argument("--seconds", type=float, default=10)
    p.add_argument("--vocab", type=int, default=30000)
    p.add_argument("--flags", type=lambda s: s.split(), default=["--speculate", "off"], help="further flags of impetus serve")
    p.add_argument("--write", type=pathlib.Path)
    a = p.parse_args()
    rnd = random.Random(1)
    ids = lambda n: [rnd.randrange(10, a.vocab) for _ in range(n)]
    neither = not (a.shared or a.pace)
    out = {}
    if a.peer:
        out["streams"] = streams(a, ids)
        print(table(out["streams"]), file=sys.stderr)
        if a.write:
            text = a.write.read_text()
            at, end = text.index(BEGIN) + len(BEGIN), text.index(END)
            a.write.write_text(text[:at] + "\n" + table(out["streams"]) + "\n" + text[end:])
    if a.shared or a.pace or not a.peer:
        with start_impetus(a, a.long + a.system + 512, 8) as s:
            ttft(s.port, ids(64))  # warm
            if a.shared or neither:
                out["shared"] = shared(s.port, a, ids)
            if a.pace or neither:
                out["pace"] = pace(s.port, a, ids)
    print(json.dumps(out, indent=1))


main()
