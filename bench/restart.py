#!/usr/bin/env python3
"""What a restart costs: time to the first token of a long shared prompt, computed, and brought back from disk.

  bench/restart.py build/impetus MODEL.gguf [--prompt 1024,4096] [--kv-type f16]

A server computes each prompt, is stopped by SIGTERM and started again; then the same beginning comes with another question
behind it. Prints one JSON document; restored_ms, of that, is what reading and checking took, by the server's receipt."""
import argparse, http.client, json, os, random, shutil, signal, subprocess, sys, tempfile, time


class Server:
    def __init__(self, a, folder, ctx):
        self.p = subprocess.Popen([a.impetus, "serve", "-m", a.model, "--port", "0", "--ctx", str(ctx), "--parallel", "3",
                                   "--on-demand=no", "--kv-type", a.kv_type, "--kv-cache", folder, "--kv-cache-max", "8G",
                                   "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        text = ""
        while True:
            line = self.p.stdout.readline()
            if not line:
                sys.exit("the server did not start")
            text += line
            try:
                self.port = int(json.loads(text)["listening"].rsplit(":", 1)[1])
                return
            except ValueError:
                pass

    def ask(self, prompt):
        """Milliseconds to the first token, the receipt, and the text of 4 tokens."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = {"prompt": prompt, "max_tokens": 4, "stream": True, "ignore_eos": True, "temperature": 0,
                "impetus": {"receipt": True}}
        t0, first, receipt, text = time.monotonic(), None, None, ""
        c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        for line in c.getresponse():
            if not line.startswith(b"data: {"):
                continue
            first = first or (time.monotonic() - t0) * 1e3
            chunk = json.loads(line[6:])
            text += chunk["choices"][0]["text"] if chunk.get("choices") else ""
            receipt = chunk.get("impetus", {}).get("receipt") or receipt
        c.close()
        return first, receipt, text

    def stop(self):
        t0 = time.monotonic()
        self.p.send_signal(signal.SIGTERM)
        self.p.wait()
        return time.monotonic() - t0


def main():
    p = argparse.ArgumentParser()
    p.add_argument("impetus")
    p.add_argument("model")
    p.add_argument("--prompt", default="1024,4096")
    p.add_argument("--kv-type", default="f16")
    p.add_argument("--vocab", type=int, default=30000)
    a = p.parse_args()
    lengths = [int(n) for n in a.prompt.split(",")]
    rnd, ctx = random.Random(3), max(lengths) + 128
    ids = lambda n: [rnd.randrange(10, a.vocab) for _ in range(n)]
    shared = {n: ids(n) for n in lengths}
    questions = [ids(16), ids(16)]
    folder = tempfile.mkdtemp(prefix="impetus-restart-")
    out = {"kv_type": a.kv_type, "prompts": []}
    try:
        s = Server(a, folder + "/kv", ctx)
        s.ask(ids(64))
        cold = {n: s.ask(shared[n] + questions[0])[0] for n in lengths}
        warm = {n: s.ask(shared[n] + questions[1]) for n in lengths}
        out["stop_s"] = s.stop()
        files = os.listdir(folder + "/kv")
        out["files"], out["bytes"] = len(files), sum(os.path.getsize(f"{folder}/kv/{f}") for f in files)
        s = Server(a, folder + "/kv", ctx)
        s.ask(ids(64))
        for n in lengths:
            ms, receipt, text = s.ask(shared[n] + questions[1])
            restored = (receipt or {}).get("restored") or {"tokens": 0, "ms": 0}
            out["prompts"].append({"tokens": n + 16, "cold_ms": cold[n], "in_memory_ms": warm[n][0], "after_restart_ms": ms,
                                   "ratio": ms / cold[n], "restored_tokens": restored["tokens"],
                                   "restored_ms": restored["ms"], "same_text": text == warm[n][2]})
        s.stop()
        print(json.dumps(out, indent=1))
    finally:
        s.p.kill()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
