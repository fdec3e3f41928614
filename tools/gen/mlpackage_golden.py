#!/usr/bin/env python3
"""tests/data/mlpackage: small packages written by coremltools, a listing of each, and its results by numpy.

usage: mlpackage_golden.py OUT FUZZ_CORPUS   (needs coremltools; the files are checked in)

ops.mlpackage holds every op that is evaluated, iOS16 and iOS18 in two files because weights are compressed differently;
two.mlpackage has two functions. X.dump lists ops with types and a CRC of constants; X.npz-like X.bin holds inputs and
outputs as float32: per tensor u32 name length, name, u32 n, n floats."""
import os
import shutil
import struct
import sys
import zlib

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.libmilstoragepython import _BlobStorageReader as Blobs
from coremltools.proto import MIL_pb2 as pb

R = np.random.RandomState(7)
f16 = lambda *s: (R.randn(*s) * 0.3).astype(np.float16)


def encoder_like(s, opset, compressed):
    @mb.program(input_specs=[mb.TensorSpec((1, 16, 1, s), dtype=types.fp16), mb.TensorSpec((1, 1, 1, s), dtype=types.fp16)],
                opset_version=opset)
    def prog(x, mask):
        w = R.randn(16, 16, 1, 1)
        if compressed == 16:
            q = mb.constexpr_affine_dequantize(quantized_data=(w * 40).clip(-127, 127).astype(np.int8), zero_point=np.int8(0),
                                               scale=(np.arange(16) + 1).astype(np.float16) / 800, axis=0)
            lut = mb.constexpr_lut_to_dense(indices=R.randint(0, 256, 16 * 16 * 6 // 8).astype(np.uint8), lut=f16(64),
                                            shape=np.array([16, 16, 1, 1], np.uint32))
        else:
            q = mb.constexpr_blockwise_shift_scale(data=R.randint(-8, 8, (16, 16, 1, 1)).astype(types.np_int4_dtype),
                                                   scale=f16(16, 2, 1, 1) * np.float16(0.1))
            lut = mb.constexpr_lut_to_dense(indices=R.randint(0, 8, (16, 16, 1, 1)).astype(types.np_uint3_dtype),
                                            lut=f16(2, 1, 1, 1, 8, 1))
        y = mb.conv(x=x, weight=q, bias=f16(16), pad_type="valid")
        z = mb.conv(x=y, weight=lut, bias=f16(16))
        z = mb.conv(x=z, weight=f16(24, 16, 1, 1))
        a, b = mb.split(x=z, split_sizes=[16, 8], axis=1)
        h = mb.reshape(x=a, shape=[1, 2, 8, s])
        sc = mb.matmul(x=h, y=h, transpose_x=True)
        sc = mb.add(x=mb.mul(x=sc, y=np.float16(0.3)), y=mask)
        p = mb.softmax(x=sc, axis=-1)
        o = mb.matmul(x=h, y=p, transpose_y=True)
        o = mb.reshape(x=o, shape=[1, 16, 1, s])
        o = mb.clip(x=mb.add(x=o, y=x), alpha=np.float16(-3), beta=np.float16(3))
        d = mb.sub(x=o, y=mb.reduce_mean(x=o, axes=[1], keep_dims=True))
        m = mb.reduce_max(x=mb.abs(x=d), axes=[1], keep_dims=True)
        d = mb.mul(x=d, y=mb.inverse(x=mb.maximum(x=m, y=np.float16(1e-3)), epsilon=np.float16(1e-4)))
        r = mb.rsqrt(x=mb.reduce_mean(x=mb.square(x=d), axes=[1], keep_dims=True), epsilon=np.float16(1e-4))
        o = mb.mul(x=d, y=r)
        e = mb.concat(values=[mb.gelu(x=b), mb.gelu(x=b, mode="TANH_APPROXIMATION"), mb.tanh(x=b), mb.sigmoid(x=b),
                              mb.silu(x=b), mb.relu(x=b), mb.exp(x=b), mb.erf(x=b)], axis=1)
        acts = e
        e = mb.reduce_sum(x=e, axes=[1], keep_dims=True)
        o = mb.real_div(x=mb.add(x=o, y=e), y=np.float16(1.7))
        o = mb.slice_by_index(x=o, begin=[0, 1, 0, 0], end=[1, 16, 1, s], stride=[1, 2, 1, 1])
        o = mb.transpose(x=o, perm=[0, 3, 2, 1])
        o = mb.squeeze(x=o, axes=[2])
        o = mb.layer_norm(x=o, axes=[-1], gamma=f16(8), beta=f16(8), epsilon=np.float16(1e-3))
        o = mb.linear(x=o, weight=f16(12, 8), bias=f16(12))
        o = mb.expand_dims(x=o, axes=[0])
        g = mb.gather(x=o, indices=np.array([3, 0, 2], np.int32), axis=2)
        c = mb.select(cond=mb.cast(x=mask, dtype="bool"), a=mask, b=mb.add(x=mask, y=np.float16(-1)))
        return mb.cast(x=g, dtype="fp32", name="g"), mb.identity(x=mb.add(x=mb.minimum(x=c, y=mask), y=x), name="c"), mb.identity(x=acts, name="acts"), mb.identity(x=z, name="convs"), mb.identity(x=p, name="probs")
    return prog


def list_type(t):
    if t.WhichOneof("type") == "stateType":
        return "state " + list_type(t.stateType.wrappedType)
    t = t.tensorType
    name = {1: "bool", 2: "string", 10: "fp16", 11: "fp32", 21: "int8", 22: "int16", 23: "int32", 25: "int4", 31: "uint8", 32: "uint16",
            33: "uint32", 35: "uint4", 36: "uint2", 37: "uint1", 38: "uint6", 39: "uint3"}[t.dataType]
    return f"{name}[{', '.join(str(d.constant.size) for d in t.dimensions)}]"


def list_value(v, weights):
    if v.WhichOneof("value") == "blobFileValue":
        off = v.blobFileValue.offset
        data = open(weights, "rb").read()
        size, at = struct.unpack_from("<QQ", data, off + 8)
        return f"{list_type(v.type)} {zlib.crc32(data[at:at + size]):08x}"
    t = v.immediateValue.tensor
    kind = t.WhichOneof("value")
    if kind == "strings":
        return f"{list_type(v.type)} '{t.strings.values[0]}'"
    if kind == "bytes":
        raw = t.bytes.values
    else:  # numbers one by one
        vals = getattr(t, kind).values
        form = {"floats": "f", "bools": "?", "ints": {"int32": "i", "uint32": "I", "int16": "h", "uint16": "H"}.get(list_type(v.type).split("[")[0])}[kind]
        raw = struct.pack(f"<{len(vals)}{form}", *vals)
    return f"{list_type(v.type)} {zlib.crc32(raw):08x}"


def dump(path, out):
    spec = ct.utils.load_spec(path)
    weights = os.path.join(path, "Data/com.apple.CoreML/weights/weight.bin")
    lines = [f"spec {spec.specificationVersion}"]
    for name in sorted(spec.mlProgram.functions):
        f = spec.mlProgram.functions[name]
        lines.append(f"func {name} {f.opset} ({', '.join(i.name + ' ' + list_type(i.type) for i in f.inputs)})")
        block = f.block_specializations[f.opset]
        for op in block.operations:
            args = []
            for k in sorted(op.inputs):
                b = op.inputs[k].arguments
                args.append(f"{k}=" + "+".join(x.name if x.WhichOneof("binding") == "name" else list_value(x.value, weights) for x in b))
            for k in sorted(op.attributes):
                if k != "name":
                    args.append(f"{k}={list_value(op.attributes[k], weights)}")
            outs = ", ".join(o.name + " " + list_type(o.type) for o in op.outputs)
            lines.append(f"  {outs} = {op.type}({'; '.join(args)})")
        lines.append(f"  return {', '.join(block.outputs)}")
    open(out, "w").write("\n".join(lines) + "\n")


def conv_value(self):
    """1x1 convolution in numpy: coremltools infers the values of all ops used here but this one and silu."""
    if self.x.val is None:
        return None
    w = self.weight.val if self.weight.val is not None else self.weight.op.materialized_val_inference()
    y = np.einsum("oc,bchw->bohw", w[:, :, 0, 0].astype(np.float32), self.x.val.astype(np.float32))
    if self.bias is not None and self.bias.val is not None:
        y = y + self.bias.val.astype(np.float32)[None, :, None, None]
    return y.astype(self.x.val.dtype)


def evaluate(path, feeds, func="main"):
    """Outputs of a package by coremltools' own value inference: inputs become constants."""
    from coremltools.converters.mil.frontend.milproto import load as milproto
    spec = ct.utils.load_spec(path)
    f = spec.mlProgram.functions[func]
    block = f.block_specializations[f.opset]
    for i in reversed(f.inputs):
        op = pb.Operation(type="const")
        op.outputs.add().CopyFrom(i)
        op.attributes["name"].type.tensorType.dataType = 2
        op.attributes["name"].immediateValue.tensor.strings.values.append(i.name)
        v = op.attributes["val"]
        v.type.CopyFrom(i.type)
        a = feeds[i.name]
        if a.dtype == np.float16:
            v.immediateValue.tensor.bytes.values = a.tobytes()
        else:
            v.immediateValue.tensor.floats.values.extend(a.ravel().tolist())
        block.operations.insert(0, op)
    del f.inputs[:]
    for name in [n for n in spec.mlProgram.functions if n != func]:
        del spec.mlProgram.functions[name]
    patch_values()
    prog = milproto.load(spec, spec.specificationVersion, os.path.join(path, "Data/com.apple.CoreML/weights"))
    return {o.name: o.val for o in prog.functions[func].outputs}


def patch_values():
    from coremltools.converters.mil.mil.ops.defs.iOS15.activation import silu as s15
    from coremltools.converters.mil.mil.ops.defs.iOS15.conv import conv as c15
    from coremltools.converters.mil.mil.ops.defs.iOS17.conv import conv as c17
    for c in (c15, c17):
        c.value_inference = conv_value
    from coremltools.converters.mil.mil.ops.defs.iOS15 import reduction  # these hand numpy a flag it no longer takes
    for name, f in (("reduce_mean", np.mean), ("reduce_sum", np.sum), ("reduce_max", np.max)):
        getattr(reduction, name).get_operator = lambda self, f=f: lambda a, axis, keepdims: f(a, axis=axis, keepdims=bool(keepdims))
    s15.value_inference = lambda self: None if self.x.val is None else (self.x.val.astype(np.float32) / (1 + np.exp(-self.x.val.astype(np.float32)))).astype(self.x.val.dtype)


def save_values(path, tensors):
    with open(path, "wb") as out:
        for name, a in tensors.items():
            a = np.asarray(a, np.float32)
            out.write(struct.pack("<I", len(name)) + name.encode() + struct.pack("<I", a.size) + a.tobytes())


def main(out, corpus):
    os.makedirs(corpus, exist_ok=True)
    for name, opset, target in (("ios16", ct.target.iOS16, 16), ("ios18", ct.target.iOS18, 18)):
        path = f"{out}/{name}.mlpackage"
        shutil.rmtree(path, ignore_errors=True)
        p = ct.PassPipeline.EMPTY
        ct.convert(encoder_like(8, opset, target), minimum_deployment_target=opset, pass_pipeline=p, skip_model_load=True).save(path)
        dump(path, f"{out}/{name}.dump")
        feeds = {"x": f16(1, 16, 1, 8), "mask": np.where(np.arange(8) < 6, 0, -1e4).astype(np.float16).reshape(1, 1, 1, 8)}
        got = evaluate(path, feeds)
        save_values(f"{out}/{name}.bin", {**feeds, **got})
        seed(path, f"{corpus}/{name}")
    for s in (8, 16):
        ct.convert(encoder_like(s, ct.target.iOS18, 18), minimum_deployment_target=ct.target.iOS18, skip_model_load=True).save(f"/tmp/part{s}.mlpackage")
    d = ct.utils.MultiFunctionDescriptor()
    d.add_function("/tmp/part8.mlpackage", "main", "s8")
    d.add_function("/tmp/part16.mlpackage", "main", "s16")
    d.default_function_name = "s8"
    shutil.rmtree(f"{out}/two.mlpackage", ignore_errors=True)
    ct.utils.save_multifunction(d, f"{out}/two.mlpackage")
    dump(f"{out}/two.mlpackage", f"{out}/two.dump")
    seed(f"{out}/two.mlpackage", f"{corpus}/two")


def seed(path, out):
    m = open(f"{path}/Data/com.apple.CoreML/model.mlmodel", "rb").read()
    w = open(f"{path}/Data/com.apple.CoreML/weights/weight.bin", "rb").read()
    open(out, "wb").write(struct.pack("<I", len(m)) + m + w)


if __name__ == "__main__":
    main(*sys.argv[1:])
