#!/usr/bin/env python3
"""Golden data for tests/unit/fmt_*.c: files written, and files read, by other implementations.

    tools/gen/fmt_golden.py [--make-gguf SCRIPT]        from the root; needs the packages gguf, mlx, safetensors, numpy

tests/data/fmt/
    writer.gguf          every value type, several tensor types, alignment 64; by the gguf package's writer
    tiny.head            the header (all before the tensor data) of the file `SCRIPT tiny q4_k OUT` writes
    *.gguf.dump          what the gguf package's reader finds in those, in models/stories260K.gguf and in
                         tests/data/vocab; see dump() for the format
    numpy.safetensors    by the safetensors package; mlx.safetensors by mlx;  *.safetensors.dump: what is in them
    mlx/                 a quantised MLX folder with settings of its own for single layers
    mlx.expected         its tensors dequantised by mlx, f32, as a safetensors file
"""
import argparse, json, os, struct, subprocess, sys, tempfile, zlib
import numpy as np
import gguf
from gguf import GGUFReader, GGUFWriter, GGUFValueType as V, GGMLQuantizationType as T
from gguf.quants import dequantize

out = "tests/data/fmt"
rng = np.random.default_rng(11)
INTS = (V.UINT8, V.INT8, V.UINT16, V.INT16, V.UINT32, V.INT32, V.UINT64, V.INT64, V.BOOL)


def crc(b):
    return f"{zlib.crc32(b):08x}"


def dump(path, name, with_data=True):
    """One line a key and a tensor:
        kv KEY TYPE VALUE        integer: decimal; float: its bits as f64; string: bytes and CRC-32; array: element type,
                                 elements, CRC-32 over them as i64, as f32, or as (length u64, bytes)
        tensor NAME TYPE DIMS OFFSET CRC      rows first; absolute offset; CRC-32 of the elements as f32
    """
    r, lines = GGUFReader(path), []
    for f in r.fields.values():
        if f.name.startswith("GGUF."):
            continue
        t, val = f.types[0], f.contents()
        if t == V.STRING:
            b = bytes(f.parts[f.data[0]])
            val = f"{len(b)} {crc(b)}"
        elif t == V.ARRAY:
            e = f.types[1] if len(f.types) > 1 else None
            if e is None:  # the reader forgets the type of an empty array: it stands behind the key and its type
                e, n, body = V(int(f.parts[3][0])), 0, b""
            elif e == V.STRING:
                parts = [bytes(f.parts[i]) for i in f.data]
                n, body = len(parts), b"".join(struct.pack("<Q", len(b)) + b for b in parts)
            else:
                a = np.array([f.parts[i][0] for i in f.data])
                n, body = len(a), a.astype(np.int64 if e in INTS else np.float32).tobytes()
            val = f"{int(e)} {n} {crc(body)}"
        elif t in INTS:
            val = str(int(val))
        else:
            val = struct.pack(">d", float(val)).hex()
        lines.append(f"kv {f.name} {int(t)} {val}")
    for t in r.tensors:
        dims = "x".join(str(int(d)) for d in reversed(t.shape))
        c = "-"
        if with_data:
            raw = t.data
            if t.tensor_type in (T.I8, T.I16, T.I32, T.I64, T.F64):
                val = raw.astype(np.float32)
            else:
                val = dequantize(raw, t.tensor_type).astype(np.float32)
            c = crc(np.ascontiguousarray(val).tobytes())
        lines.append(f"tensor {t.name} {t.tensor_type.name.lower()} {dims} {int(t.data_offset)} {c}")
    open(f"{out}/{name}.dump", "w").write("\n".join(lines) + "\n")


def write_gguf(path):
    w = GGUFWriter(path, "llama")
    w.add_custom_alignment(64)
    w.add_uint8("t.u8", 200); w.add_int8("t.i8", -100)
    w.add_uint16("t.u16", 60000); w.add_int16("t.i16", -30000)
    w.add_uint32("t.u32", 4000000000); w.add_int32("t.i32", -2000000000)
    w.add_uint64("t.u64", 2**64 - 1); w.add_int64("t.i64", -2**63)
    w.add_float32("t.f32", 1.1); w.add_float64("t.f64", 1.1)
    w.add_bool("t.yes", True); w.add_bool("t.no", False)
    w.add_string("t.str", "käse\u0000nul"); w.add_string("t.empty", "x")
    w.add_array("t.a_i32", [-1, 2, -3]); w.add_array("t.a_f32", [0.5, -1.25, 3e38])
    w.add_array("t.a_bool", [True, False, True]); w.add_array("t.a_str", ["a", "", "ß", "long " * 40])
    w.add_array("t.a_one", ["only"])
    w.add_tensor("f32_1d", rng.normal(size=7).astype(np.float32))
    w.add_tensor("f16_2d", rng.normal(size=(3, 5)).astype(np.float16))
    w.add_tensor("f32_4d", rng.normal(size=(2, 3, 4, 5)).astype(np.float32))
    w.add_tensor("i32", rng.integers(-99, 99, (2, 3)).astype(np.int32))
    w.add_tensor("i8", rng.integers(-99, 99, (3, 3)).astype(np.int8))
    for t in (T.BF16, T.Q8_0, T.Q4_0, T.Q5_1, T.MXFP4):
        w.add_tensor(t.name.lower(), gguf.quants.quantize(rng.normal(size=(4, 64)).astype(np.float32), t), raw_dtype=t)
    for t in (T.Q4_K, T.Q6_K, T.IQ4_XS):
        n = gguf.GGML_QUANT_SIZES[t][1]
        raw = rng.integers(0, 256, (2, 2 * n), dtype=np.uint8)
        for b in range(0, 2 * n, n):  # finite scales: the CRC of a NaN would depend on its payload
            at = {T.Q4_K: (0, 2), T.Q6_K: (208,), T.IQ4_XS: (0,)}[t]
            for a in at:
                raw[:, b + a:b + a + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        w.add_tensor(t.name.lower(), raw, raw_dtype=t)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()


def write_safetensors():
    import mlx.core as mx
    from safetensors.numpy import save_file
    t = {"a.f32": rng.normal(size=(3, 4)).astype(np.float32), "b.f16": rng.normal(size=(5,)).astype(np.float16),
         "c.i64": rng.integers(-9, 9, (2, 2)), "d.u8": rng.integers(0, 9, (3,), dtype=np.uint8), "e.bool": np.array([True, False, True]),
         "f.f64": rng.normal(size=(2,)), "scalar": np.array(3.5, np.float32), "empty": np.zeros((0, 4), np.float32),
         "käse 4d": rng.normal(size=(2, 1, 3, 2)).astype(np.float32)}
    save_file(t, f"{out}/numpy.safetensors", metadata={"format": "pt", "note": "gr\u00fcn"})
    lines = [f"{k} {'x'.join(map(str, v.shape)) or '-'} {crc(v.astype(np.float32).tobytes())}" for k, v in sorted(t.items())]
    open(f"{out}/numpy.safetensors.dump", "w").write("\n".join(lines) + "\n")
    m = {"w.bf16": mx.random.normal((4, 6)).astype(mx.bfloat16), "w.u32": mx.arange(10, dtype=mx.uint32), "w.f16": mx.random.normal((3, 3)).astype(mx.float16)}
    mx.save_safetensors(f"{out}/mlx.safetensors", m, metadata={"format": "mlx"})
    lines = [f"{k} {'x'.join(map(str, v.shape))} {crc(np.array(v.astype(mx.float32)).tobytes())}" for k, v in sorted(m.items())]
    open(f"{out}/mlx.safetensors.dump", "w").write("\n".join(lines) + "\n")


def write_mlx_folder():
    import mlx.core as mx
    mx.random.seed(5)
    d = f"{out}/mlx"
    os.makedirs(d, exist_ok=True)
    layers = {"model.embed_tokens": (64, 4, (10, 128), mx.bfloat16), "model.layers.0.up": (32, 8, (6, 64), mx.float16),
              "model.layers.0.down": (128, 3, (4, 256), mx.float32), "model.layers.0.experts": (64, 4, (3, 4, 128), mx.bfloat16)}
    config = {"model_type": "test", "quantization": {"group_size": 64, "bits": 4}}
    w, want = {}, {}
    for k, (group, bits, shape, kind) in layers.items():
        q = mx.quantize(mx.random.normal(shape).astype(kind), group_size=group, bits=bits)
        w[k + ".weight"], w[k + ".scales"], w[k + ".biases"] = q
        f32 = (q[0], q[1].astype(mx.float32), q[2].astype(mx.float32))
        want[k + ".weight"] = mx.dequantize(*f32, group_size=group, bits=bits).astype(mx.float32)
        if (group, bits) != (64, 4):
            config["quantization"][k] = {"group_size": group, "bits": bits}
    w["model.layers.0.gate.weight"] = mx.random.normal((4, 64)).astype(mx.bfloat16)
    config["quantization"]["model.layers.0.gate"] = False
    w["model.norm.weight"] = mx.random.normal((64,)).astype(mx.bfloat16)
    w["model.layers.0.up.bias"] = mx.random.normal((6,)).astype(mx.float16)
    config["quantization_config"] = config["quantization"]
    for k, v in w.items():
        if k not in want and not k.endswith((".scales", ".biases")):
            want[k] = v.astype(mx.float32)
    mx.save_safetensors(f"{d}/model.safetensors", w, metadata={"format": "mlx"})
    mx.save_safetensors(f"{out}/mlx.expected", want)
    os.replace(f"{out}/mlx.expected.safetensors", f"{out}/mlx.expected")
    json.dump(config, open(f"{d}/config.json", "w"), indent=1)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--make-gguf")
    a = p.parse_args()
    write_gguf(f"{out}/writer.gguf")
    dump(f"{out}/writer.gguf", "writer.gguf")
    dump("models/stories260K.gguf", "stories260K.gguf")
    for v in ("bert-bge", "deepseek-llm", "falcon", "gpt-2", "llama-spm", "starcoder"):
        dump(f"tests/data/vocab/{v}.gguf", f"{v}.gguf")
    if a.make_gguf:
        with tempfile.TemporaryDirectory() as tmp:
            path = f"{tmp}/tiny.gguf"
            subprocess.run([sys.executable, a.make_gguf, "tiny", "q4_k", path], check=True)
            dump(path, "tiny.head", with_data=False)
            open(f"{out}/tiny.head", "wb").write(open(path, "rb").read(min(t.data_offset for t in GGUFReader(path).tensors)))
    write_safetensors()
    write_mlx_folder()


main()
