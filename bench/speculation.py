#!/usr/bin/env python3
"""What guesses gain and cost: the same requests to two servers in turns, one with --speculate off, one with auto.

    bench/speculation.py [MODEL.gguf] [--rounds N] [--only NAME,...] [--threads N]

Prints a table: kind of text, streams at once; steps with guesses as a share of those without; guesses computed, how many
were right; decode time as a share of that without (median of the rounds, lowest and highest). The texts must be the same; the script
fails when they are not. Needs python3 only.
"""
import argparse
import concurrent.futures
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
HELD_OUT = (ROOT / "tests" / "data" / "heldout.txt").read_text()
PASSAGE = [HELD_OUT[i * len(HELD_OUT) // 24:][:400].split(" ", 1)[1].rsplit(" ", 1)[0] for i in range(24)]
QUESTION = ["What is plain language?", "Why is the sky blue?", "How do I write a good web page?", "Who are you?",
            "Tell me a story about a fox.", "What does \"grief\" mean?", "How was your day?", "What should I eat tonight?"]
SCHEMA = {"type": "array", "minItems": 8, "maxItems": 8, "items": {
    "type": "object", "properties": {"animal_name": {"type": "string", "maxLength": 10}, "number_of_legs": {"enum": [0, 2, 4, 6, 8]},
                                     "can_it_fly": {"type": "boolean"}},
    "required": ["animal_name", "number_of_legs", "can_it_fly"], "additionalProperties": False}}


def completion(prompt, n, **more):
    return "/v1/completions", {"model": "m", "prompt": prompt, "max_tokens": n, "seed": 7, "ignore_eos": True, **more}


def chat(text, n, **more):
    return "/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": n, "seed": 7, **more}


# name: (requests, streams at once)
SETS = {
    "fresh prose, sampled": ([completion(p, 200, temperature=0.8) for p in PASSAGE[:8]], 1),
    "chat, sampled": ([chat(q, 200, temperature=0.7) for q in QUESTION], 1),
    "prose, greedy": ([completion(p, 200, temperature=0) for p in PASSAGE[:8]], 1),
    "a text given twice, its third time": ([completion(f"{p}\n\n{p}\n\n{p[:120]}", 150, temperature=0) for p in PASSAGE[:8]], 1),
    "JSON by a schema, greedy": ([chat("List eight animals.", 400, temperature=0, response_format={
        "type": "json_schema", "json_schema": {"name": "animals", "schema": SCHEMA}})] * 2, 1),
    "fresh prose, sampled, 8 at once": ([completion(p, 200, temperature=0.8) for p in PASSAGE[:8]], 8),
    "prose, greedy, 8 at once": ([completion(p, 200, temperature=0) for p in PASSAGE[:8]], 8),
}


class Server:
    def __init__(self, model, mode, folder, threads):
        cmd = [ROOT / "build" / "impetus", "serve", "-m", f"m={model}", "--port", "0", "--speculate", mode, "--json", "--device", "cpu",
               "--database", tempfile.mktemp(dir=folder)] + (["-t", str(threads)] if threads else [])
        self.p = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        text = ""
        for line in self.p.stdout:
            text += line
            try:
                self.url = json.loads(text)["listening"]
                break
            except (ValueError, KeyError):
                continue

    def post(self, path, body):
        q = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        c = json.load(urllib.request.urlopen(q, timeout=300))["choices"][0]
        return c.get("text") or c.get("message", {}).get("content")

    def counters(self):
        lines = urllib.request.urlopen(self.url + "/metrics", timeout=10).read().decode().splitlines()
        return {x.split()[0]: float(x.split()[1]) for x in lines if x[:1] != "#" and "{" not in x}

    def run(self, requests, streams):
        a = self.counters()
        with concurrent.futures.ThreadPoolExecutor(streams) as pool:
            texts = list(pool.map(lambda r: self.post(*r), requests))
        z = self.counters()
        return texts, {k: z[k] - a[k] for k in z if k in a}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model", nargs="?", default=str(ROOT / "models" / "impetus-nano.gguf"))
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--only", default="")
    p.add_argument("--requests", type=int, default=99, help="of each kind at most so many")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--with", dest="mode", default="auto", help="what is compared with off: auto, on, or off (to see the noise)")
    o = p.parse_args()
    folder = tempfile.mkdtemp()
    servers = {m: Server(o.model, "off" if m == "off" else o.mode, folder, o.threads) for m in ("off", "auto")}
    bad = 0
    print("| text | steps with guesses / without | guesses, of them right | decode time with / without | lowest to highest round |")
    print("|---|---|---|---|---|")
    try:
        for name, (requests, streams) in SETS.items():
            if o.only and not any(x in name for x in o.only.split(",")):
                continue
            requests = requests[:o.requests]
            ratio, total = [], {}
            for r in range(o.rounds + 1):  # the first one warms up
                got = {}
                for m in ("off", "auto") if r % 2 else ("auto", "off"):
                    got[m] = servers[m].run(requests, streams)
                if got["off"][0] != got["auto"][0]:
                    bad += 1
                if r == 0:
                    continue
                c, f = got["auto"][1], got["off"][1]
                key = "impetus_decode_seconds_total"
                ratio.append(c[key] / f[key])
                total["steps"] = total.get("steps", 0) + c["impetus_steps_total"]
                total["steps off"] = total.get("steps off", 0) + f["impetus_steps_total"]
                for k in ("impetus_generated_tokens_total", "impetus_drafted_tokens_total", "impetus_accepted_tokens_total"):
                    total[k] = total.get(k, 0) + c[k]
            some, all_, n, d, a = total.values()
            print(f"| {name} | {some / all_:.2f} | {d / o.rounds:.0f} beside {n / o.rounds:.0f} tokens, {100 * a / max(d, 1):.0f} % | "
                  f"{statistics.median(ratio):.3f} | {min(ratio):.3f} to {max(ratio):.3f} |", flush=True)
    finally:
        for s in servers.values():
            s.p.terminate()
            s.p.wait()
    if bad:
        sys.exit(f"{bad} times the texts were not the same")


if __name__ == "__main__":
    main()
