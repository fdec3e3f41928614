#!/usr/bin/env python3
"""Make a random low-rank adapter for a model, in the file form that fits it; or merge one into a folder's weights.

    lora.py BASE.gguf OUT.gguf [--rank 16] [--alpha 32] [--seed 1] [--size 1.0] [--type f32|f16]   as llama.cpp has it
    lora.py FOLDER OUT_FOLDER [...]                                                                as PEFT has it
    lora.py FOLDER OUT_FOLDER --merge ADAPTER_FOLDER [--scale 1.0]       FOLDER with W + scale * alpha / r * B A for W

Needs numpy, safetensors, gguf; no torch, no peft. Every two-dimensional weight of attention and feed-forward gets a pair, and
with --embed also token embedding and output where the model has both.
"""
import argparse
import json
import pathlib
import re
import shutil

import numpy as np

TARGET = re.compile(r"(attn_(q|k|v|qkv|output)|ffn_(gate|up|down))\.weight$|"
                    r"((q|k|v|o|qkv|gate|up|down|gate_up)_proj|Wqkv|Wo|Wi|query|key|value|dense)\.weight$")
EMBED = re.compile(r"^(token_embd|output|model\.embed_tokens|lm_head)\.weight$")


def halves(rng, n, k, rank, size):
    a = rng.standard_normal((rank, k), np.float32) / np.float32(k) ** 0.5
    b = rng.standard_normal((n, rank), np.float32) * np.float32(0.1 * size)
    return a, b


def targets(shapes, embed):
    names = [n for n, s in shapes.items() if len(s) == 2 and TARGET.search(n)]
    both = [n for n, s in shapes.items() if len(s) == 2 and EMBED.search(n)]
    return sorted(names) + (sorted(both) if embed and len(both) == 2 else [])


def is_table(name):
    return name.startswith("token_embd") or "embed_tokens" in name


def gguf_adapter(args):
    import gguf
    r = gguf.GGUFReader(args.base)
    arch = str(bytes(r.fields["general.architecture"].parts[-1]), "utf-8")
    shapes = {t.name: tuple(int(x) for x in reversed(t.shape)) for t in r.tensors}
    rng = np.random.default_rng(args.seed)
    w = gguf.GGUFWriter(args.out, arch)
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    w.add_float32("adapter.lora.alpha", args.alpha)
    dtype = np.float16 if args.type == "f16" else np.float32
    for name in targets(shapes, args.embed):
        n, k = shapes[name]
        a, b = halves(rng, k if is_table(name) else n, n if is_table(name) else k, args.rank, args.size)
        if is_table(name):  # a row a token
            a = np.ascontiguousarray(a.T) * np.float32(n / k) ** 0.5
        w.add_tensor(name + ".lora_a", a.astype(dtype))
        w.add_tensor(name + ".lora_b", b.astype(dtype))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def load_folder(folder):
    from safetensors.numpy import load_file
    out = {}
    for f in sorted(pathlib.Path(folder).glob("model*.safetensors")):
        out.update(load_file(f))
    return out


def peft_adapter(args):
    from safetensors.numpy import save_file
    shapes = {k: v.shape for k, v in load_folder(args.base).items()}
    rng, out = np.random.default_rng(args.seed), pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    tensors, names = {}, targets(shapes, args.embed)
    for name in names:
        n, k = shapes[name]
        table, stem = is_table(name), "base_model.model." + name[:-len(".weight")]
        a, b = halves(rng, k if table else n, n if table else k, args.rank, args.size)
        if table:
            a *= np.float32(n / k) ** 0.5
        tensors[stem + (".lora_embedding_A" if table else ".lora_A.weight")] = a
        tensors[stem + (".lora_embedding_B" if table else ".lora_B.weight")] = b
    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})
    config = {"base_model_name_or_path": "base", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
              "init_lora_weights": True, "lora_alpha": args.alpha, "lora_dropout": 0.0, "modules_to_save": None,
              "peft_type": "LORA", "r": args.rank, "target_modules": sorted({n.split(".")[-2] for n in names}),
              "task_type": "CAUSAL_LM", "use_dora": False, "use_rslora": False}
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def merge(args):
    from safetensors.numpy import load_file, save_file
    base, out, ad = pathlib.Path(args.base), pathlib.Path(args.out), pathlib.Path(args.merge)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("model*.safetensors*", "golden*"))
    config = json.loads((ad / "adapter_config.json").read_text())
    pairs, weights = load_file(ad / "adapter_model.safetensors"), load_folder(base)
    s = args.scale * config["lora_alpha"] / config["r"]
    for key, a in pairs.items():
        for tail_a, tail_b in ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")):
            if not key.endswith(tail_a):
                continue
            name = key[len("base_model.model."):-len(tail_a)] + ".weight"
            delta = pairs[key[:-len(tail_a)] + tail_b].astype(np.float64) @ a.astype(np.float64)
            w = weights[name].astype(np.float64)
            weights[name] = (w + s * (delta.T if "embedding" in tail_a else delta)).astype(np.float32)
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, out / "model.safetensors", {"format": "pt"})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("base")
    p.add_argument("out")
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--alpha", type=float, default=32)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--size", type=float, default=1)
    p.add_argument("--type", default="f32")
    p.add_argument("--embed", action="store_true")
    p.add_argument("--merge")
    p.add_argument("--scale", type=float, default=1)
    args = p.parse_args()
    if args.merge:
        merge(args)
    elif pathlib.Path(args.base).is_dir():
        peft_adapter(args)
    else:
        gguf_adapter(args)


if __name__ == "__main__":
    main()
