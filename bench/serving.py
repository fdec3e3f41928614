#!/usr/bin/env python3
"""What a server does for its users: a shared beginning computed once, streams that keep their pace.

  bench/serving.py build/impetus MODEL.gguf [--system 1024] [--long 4096] [--seconds 40]

Prints one JSON document: time to the first token of a request with a long system prompt, first and second time (another
question behind it); gaps between the tokens of a running stream, alone and while a long prompt is read beside it."""
import argparse, http.client, json, random, subprocess, sys, threading, time


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


def main():
    p = argparse.ArgumentParser()
    p.add_argument("impetus")
    p.add_argument("model")
    p.add_argument("--system", type=int, default=1024)
    p.add_argument("--long", type=int, default=4096)
    p.add_argument("--seconds", type=float, default=40)
    p.add_argument("--vocab", type=int, default=30000)
    a = p.parse_args()
    rnd = random.Random(1)
    ids = lambda n: [rnd.randrange(10, a.vocab) for _ in range(n)]
    server = subprocess.Popen([a.impetus, "serve", "-m", a.model, "--port", "0", "--ctx", str(a.long + a.system + 512),
                               "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        text = ""
        while True:
            text += server.stdout.readline()
            try:
                port = int(json.loads(text)["listening"].rsplit(":", 1)[1])
                break
            except ValueError:
                pass
        out = {}
        ttft(port, ids(64))  # warm
        system = ids(a.system)
        first, second = ttft(port, system + ids(16)), ttft(port, system + ids(16))
        out["ttft"] = {"system_tokens": a.system, "first_ms": first * 1e3, "second_ms": second * 1e3, "ratio": second / first}
        gaps, state = {"alone": [], "beside": []}, {"now": "alone", "last": None, "end": None}

        def token(t):
            if state["last"]:
                gaps[state["now"]].append(t - state["last"])
            state["last"] = t
            return state["end"] is None

        running = threading.Thread(target=stream, args=(port, ids(32), 4000, token), daemon=True)
        running.start()
        time.sleep(2)
        gaps["alone"].clear()
        time.sleep(a.seconds / 2)
        got = []
        long_one = threading.Thread(target=stream, args=(port, ids(a.long), 4, lambda t: got.append(t) or True), daemon=True)
        state["now"] = "beside"
        t0 = time.monotonic()
        long_one.start()
        long_one.join(a.seconds)
        state["end"] = time.monotonic()
        for k, v in gaps.items():
            out[k] = {"tokens": len(v), "p50_ms": percentile(v, .5) * 1e3, "p99_ms": percentile(v, .99) * 1e3,
                      "max_ms": max(v) * 1e3}
        out["p99_ratio"] = out["beside"]["p99_ms"] / out["alone"]["p50_ms"]
        out["long_prompt_s"] = got[0] - t0 if got else None
        print(json.dumps(out, indent=1))
    finally:
        server.terminate()
        server.wait()


main()
