#!/usr/bin/env python3
"""impetus bench beside llama.cpp's llama-bench: same files, same run, taking turns.

    bench/peers.py [--build build] [--rounds 5] [--models 1b:q4_0,1b:q8_0] [--threads N] [-p 512] [-n 128] [--write FILE]

Each round runs both programs once on each file, the one that goes first changing from round to round, so that drift of
the machine hits both alike; a turn during which other programs were busy is repeated. Printed are ratios of medians with the
smallest and largest ratio of a round, each program's share of the ceilings that impetus measures in turns with its own work,
and what steps of 4 and 16 sequences cost; absolute speeds of a shared machine mean little.
--write replaces the part of FILE between the marker lines (docs/benchmarks.md).
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- bench/peers.py: begin -->", "<!-- bench/peers.py: end -->"


def output(cmd):
    r = subprocess.run([str(c) for c in cmd], capture_output=True, text=True)
    if r.returncode:
        sys.exit(f"{cmd[0]} ended with {r.returncode}: {r.stderr.strip()[-400:]}")
    return json.loads(r.stdout)


def cpu_seconds():
    """(busy, all) CPU seconds of the machine so far; None where there is no /proc/stat."""
    try:
        t = [int(x) for x in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    hz = os.sysconf("SC_CLK_TCK")
    return (sum(t) - t[3] - t[4]) / hz, sum(t) / hz


def undisturbed(run, args, *what):
    """run(*what), again while other programs took more than args.foreign of the machine; the quietest try and its share."""
    best = None
    for attempt in range(args.retries + 1):
        if attempt:
            time.sleep(args.pause)
        before, child = cpu_seconds(), resource.getrusage(resource.RUSAGE_CHILDREN)
        result = run(*what)
        after, done = cpu_seconds(), resource.getrusage(resource.RUSAGE_CHILDREN)
        if not before:
            return result, 0.0
        own = done.ru_utime + done.ru_stime - child.ru_utime - child.ru_stime
        foreign = max(0.0, after[0] - before[0] - own) / (after[1] - before[1])
        if best is None or foreign < best[1]:
            best = (result, foreign)
        if best[1] <= args.foreign:
            break
    return best


def model_file(build, spec):
    """A GGUF of the given shape and type with random weights: the bytes moved are those of the real model."""
    shape, kind = spec.split(":")
    path = build / "bench" / f"{shape}-{kind}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"writing {path}", file=sys.stderr)
        part = path.with_suffix(".part")
        subprocess.run([sys.executable, ROOT / "tools" / "gen" / "make_gguf.py", shape, kind, part], check=True)
        part.rename(path)
    return path


def run_impetus(build, path, args):
    r = output([build / "impetus", "bench", path, "-p", args.p, "-n", args.n, "-b", "1,4,16", "-r", 1, "-t", args.threads, "--json"])
    return {"prefill": r["pp"][0]["tok_s"], "decode": r["tg"][0]["tok_s"],
            "share": {"prefill": r["pp"][0]["share_of_int8"], "decode": r["tg"][0]["share_of_read"]},
            "over": {t["batch"]: t["over_one"] for t in r["tg"][1:]}}


def run_peer(build, path, args):
    r = output([build / "peer" / "build" / "bin" / "llama-bench", "-m", path, "-p", args.p, "-n", args.n, "-r", 1, "-t",
                args.threads, "-o", "json"])
    prefill = [t for t in r if t["n_prompt"] == args.p and t["n_gen"] == 0]
    decode = [t for t in r if t["n_gen"] == args.n and t["n_prompt"] == 0]
    return {"prefill": prefill[0]["avg_ts"], "decode": decode[0]["avg_ts"]}


def measure(build, spec, args):
    path, ours, theirs, worst = model_file(build, spec), [], [], 0.0
    for i in range(args.rounds):
        turns = [(ours, run_impetus), (theirs, run_peer)]
        for into, run in turns[::-1] if i % 2 else turns:
            result, foreign = undisturbed(run, args, build, path, args)
            into.append(result)
            worst = max(worst, foreign)
        last = {p: ours[-1][p] / theirs[-1][p] for p in ("prefill", "decode")}
        print(f"{spec} round {i + 1}/{args.rounds}: " + ", ".join(f"{p} {v:.2f}" for p, v in last.items()), file=sys.stderr)
    rows = []
    for phase in ("prefill", "decode"):
        mine, other = (statistics.median(r[phase] for r in side) for side in (ours, theirs))
        each = [a[phase] / b[phase] for a, b in zip(ours, theirs)]
        part = statistics.median(r["share"][phase] for r in ours)
        rows.append({"model": spec, "phase": phase, "ratio": mine / other, "low": min(each), "high": max(each),
                     "share": part, "peer_share": part * other / mine})
    over = {n: [r["over"][n] for r in ours] for n in ours[0]["over"]}
    return rows, over, worst


def cpu_name():
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def table(measured, args):
    rows, worst = [r for m in measured for r in m[0]], max(m[2] for m in measured)
    of = {"prefill": "int8 peak", "decode": "memory read"}
    out = [f"{cpu_name()}, {args.threads} threads; {datetime.date.today()}; prompt {args.p}, generation {args.n}, "
           f"{args.rounds} rounds in turns; other programs took at most {worst:.0%} of the machine meanwhile.", "",
           "| model | phase | impetus / llama.cpp | lowest to highest round | ceiling | impetus | llama.cpp |",
           "|---|---|---|---|---|---|---|"]
    for r in rows:
        out.append(f"| {r['model'].replace(':', ' ')} | {r['phase']} | {r['ratio']:.2f} | {r['low']:.2f} to {r['high']:.2f} | "
                   f"{of[r['phase']]} | {r['share']:.0%} | {r['peer_share']:.0%} |")
    out += ["", "Several sequences in one step of impetus: its time over that of one sequence, medians of the same rounds.", "",
            "| model | 4 sequences | 16 sequences | tokens a second of 16 over one |", "|---|---|---|---|"]
    for spec, (_, over, _) in zip(args.models.split(","), measured):
        four, many = (statistics.median(over[n]) for n in (4, 16))
        out.append(f"| {spec.replace(':', ' ')} | {four:.2f} | {many:.2f} | {16 / many:.1f} |")
    return "\n".join(out)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--models", default="1b:q4_0,1b:q8_0")
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("-p", type=int, default=512)
    ap.add_argument("-n", type=int, default=128)
    ap.add_argument("--foreign", type=float, default=0.03, help="share of the machine that others may take before a turn is repeated")
    ap.add_argument("--retries", type=int, default=5)
    ap.add_argument("--pause", type=float, default=5, help="seconds before a turn is repeated")
    ap.add_argument("--write", type=pathlib.Path)
    args = ap.parse_args()
    build = args.build.resolve()
    measured = [measure(build, spec, args) for spec in args.models.split(",")]
    text = table(measured, args)
    print(text)
    if args.write:
        page = args.write.read_text()
        head, _, rest = page.partition(BEGIN)
        _, mark, tail = rest.partition(END)
        if not mark:
            sys.exit(f"{args.write} has no marker lines")
        args.write.write_text(head + BEGIN + "\n" + text + "\n" + END + tail)


main()
