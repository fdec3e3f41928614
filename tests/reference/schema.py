"""JSON schemas: what our constraint lets through must be valid for the `jsonschema` package.

1. Every schema of the JSON-Schema-Test-Suite (draft 2020-12; it is part of jsonschema's source distribution): either
   refused, or every random answer under it is valid.
2. 2,000 random schemas over the keywords that are supported, 3 random answers each: none refused, all valid.
"""
import importlib.metadata
import io
import json
import os
import pathlib
import random
import subprocess
import sys
import tarfile
import tempfile

import jsonschema
import tap

root = pathlib.Path(__file__).resolve().parents[2]
build = root / os.environ.get("BUILD", "build")
walk = build / "schema_walk"
tokenizer = root / os.environ.get("WALK_TOKENIZER", "tests/data/tokenizer/gpt2.json")


def compile_walk():
    libs = subprocess.run(["sed", "-n", "s/^LIB_LIBS *:= *//p", str(build / "config.mk")], stdout=subprocess.PIPE, text=True).stdout.split()
    subprocess.run([os.environ.get("CC", "cc"), "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-I", str(root / "include"), "-I", str(root / "src"),
                    str(root / "tests/reference/schema_walk.c"), str(build / "libimpetus.a"), *libs, "-lm", "-pthread", "-o", str(walk)], check=True)


def walked(schemas, n):
    text = "\n".join(json.dumps(s) for s in schemas) + "\n"
    r = subprocess.run([str(walk), str(tokenizer), str(n)], input=text, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in r.stdout.rstrip("\n").split("\n")]


def suite():
    with tempfile.TemporaryDirectory() as d:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", d,
                        "jsonschema==" + importlib.metadata.version("jsonschema")], check=True)
        data = next(pathlib.Path(d).glob("*.tar.gz")).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as t:
        for m in t.getmembers():
            if "/json/tests/draft2020-12/" in m.name and m.name.endswith(".json") and "/optional/" not in m.name:
                for case in json.load(t.extractfile(m)):
                    yield pathlib.PurePath(m.name).stem, case["schema"], case["tests"]


def judge(name, schema, texts):
    """The answers that are not valid."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    bad = []
    for text in texts:
        if text is None:
            continue
        try:
            validator.validate(json.loads(text))
        except Exception as e:  # noqa: BLE001
            bad.append(f"{name}: {json.dumps(schema)[:300]} gave {text[:200]!r}: {str(e).splitlines()[0][:120]}")
    return bad


def random_schema(r, depth=0):
    kind = r.choice(["object", "array", "string", "integer", "number", "enum", "bool", "null", "any", "const", "pattern", "format", "types"]
                    if depth < 3 else ["string", "integer", "enum", "bool", "number"])
    if kind == "object":
        names = r.sample(["id", "name", "a b", "\u00e9t\u00e9", "x\"y", "value", "items", "n", "idx", "\\"], r.randint(0, 5))
        s = {"type": "object", "properties": {n: random_schema(r, depth + 1) for n in names}}
        s["required"] = [n for n in names if r.random() < 0.5] + (["more"] if r.random() < 0.1 else [])
        if r.random() < 0.5:
            s["additionalProperties"] = r.choice([False, True, {"type": "integer"}])
        if s.get("additionalProperties") is False and "more" in s["required"]:
            s["required"].remove("more")
        if r.random() < 0.2:
            s["maxProperties"] = max(len(s["required"]), r.randint(1, 5))
        return s
    if kind == "array":
        s = {"type": "array"}
        if r.random() < 0.8:
            s["items"] = random_schema(r, depth + 1)
        if r.random() < 0.3:
            s["prefixItems"] = [random_schema(r, depth + 1) for _ in range(r.randint(1, 2))]
        lo = r.randint(0, 2)
        if r.random() < 0.5:
            s["minItems"] = lo if "items" in s or "prefixItems" not in s else min(lo, len(s["prefixItems"]))
        if r.random() < 0.7:
            s["maxItems"] = lo + r.randint(0, 3)
        return s
    if kind == "string":
        s = {"type": "string"}
        lo = r.randint(0, 4)
        if r.random() < 0.5:
            s["minLength"] = lo
        if r.random() < 0.7:
            s["maxLength"] = lo + r.randint(0, 12)
        return s
    if kind in ("integer", "number"):
        s = {"type": kind}
        q = r.choice([1, 1, 10, 100]) if kind == "number" else 1
        lo = r.randint(-2000, 2000) / q if kind == "number" else r.randint(-2000, 2000)
        if r.random() < 0.6:
            s[r.choice(["minimum", "exclusiveMinimum"])] = lo
        if r.random() < 0.6:
            s[r.choice(["maximum", "exclusiveMaximum"])] = lo + r.choice([2, 5, 17, 1000, 123456])
        if kind == "integer" and len(s) == 1 and r.random() < 0.3:
            s["multipleOf"] = r.randint(1, 40)
        return s
    if kind == "enum":
        return {"enum": r.sample(["red", "green", 1, 2.5, None, True, {"k": [1, "\u20ac"]}, "a\"b"], r.randint(1, 4))}
    if kind == "bool":
        return {"type": "boolean"}
    if kind == "null":
        return {"type": "null"}
    if kind == "const":
        return {"const": r.choice(["x", 3, {"a": 1}, [1, 2], None])}
    if kind == "pattern":
        return {"type": "string", "pattern": r.choice(["^[a-z]{2,5}$", "\\d+-\\w", "^(foo|ba[rz])", "[^\\s,]{3}$", "^\\S+@\\S+\\.com$", "^\\D\\W$", "."])}
    if kind == "format":
        return {"type": "string", "format": r.choice(["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"])}
    if kind == "types":
        return {"type": r.sample(["string", "integer", "null", "boolean", "number"], 2)}
    r2 = r.random()
    if r2 < 0.3:
        return {"anyOf": [random_schema(r, depth + 1) for _ in range(r.randint(1, 3))]}
    if r2 < 0.5:
        return {"oneOf": [{"type": "object", "properties": {"kind": {"const": k}, "v": random_schema(r, depth + 1)}, "required": ["kind"]} for k in ("a", "b")]}
    if r2 < 0.7:
        return {"allOf": [{"type": "object", "properties": {"p": random_schema(r, depth + 1)}, "required": ["p"]},
                          {"type": "object", "properties": {"q": random_schema(r, depth + 1)}}]}
    return r.choice([True, {}, {"type": "object"}, {"type": "array", "maxItems": 3}])


compile_walk()

cases = list(suite())
bad, refused, wrong, finished, keywords = [], 0, [], 0, {}
for (name, schema, tests), got in zip(cases, walked([c[1] for c in cases], 8)):
    seen = keywords.setdefault(name, [0, 0])
    seen[1] += 1
    if got["error"]:
        refused += 1
        # "no text can satisfy" must be true
        if "satisfy" in got["error"] and any(t["valid"] for t in tests):
            wrong.append(f"{name}: {json.dumps(schema)[:200]}: {got['error']}")
        continue
    seen[0] += 1
    finished += sum(t is not None for t in got["text"])
    bad += judge(name, schema, got["text"])
print(f"# test suite: {len(cases)} schemas, {refused} refused by name, {finished} finished answers")
print("# keywords taken: " + ", ".join(f"{k} {a}/{b}" for k, (a, b) in sorted(keywords.items()) if a))
tap.ok(not bad, "test suite: every answer is valid", "" if not bad else str(bad[:5]))
tap.ok(not wrong, "test suite: what is called unsatisfiable is", "" if not wrong else str(wrong[:5]))

r = random.Random(7)
schemas = [random_schema(r) for _ in range(2000)]
bad, refused, finished, times, masks = [], [], 0, [], []
for schema, got in zip(schemas, walked(schemas, 3)):
    times.append(got["ms"])
    if got["error"]:
        if "satisfy" not in got["error"]:
            refused.append(f"{json.dumps(schema)[:300]}: {got['error']}")
        continue
    masks.append(got["mask_us"])
    finished += sum(t is not None for t in got["text"])
    bad += judge("random", schema, got["text"])
times.sort()
masks.sort()
print(f"# random: {finished} finished answers of {3 * len(masks)}; compile median {times[len(times) // 2]:.2f} ms, worst {times[-1]:.1f} ms; "
      f"mask mean over schemas {sum(masks) / len(masks):.1f} us, worst schema {masks[-1]:.0f} us")
tap.ok(not refused, "2,000 random schemas: none refused", "" if not refused else str(refused[:5]))
tap.ok(not bad, "2,000 random schemas: every answer is valid", "" if not bad else str(bad[:5]))
tap.ok(finished > 5500, "2,000 random schemas: nearly all answers come to an end", "" if finished > 5500 else str(finished))
tap.done()
