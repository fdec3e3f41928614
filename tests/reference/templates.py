#!/usr/bin/env python3
"""Chat templates against Python's jinja2, live: the golden files are what jinja2 gives today; every template of the folder
with random conversations; random expressions and random white space. CASES in the environment: how many (default 3000)."""
import ctypes as c
import json
import os
import pathlib
import random
import shlex
import subprocess
import sys
import tempfile

from impetus import BUILD, ROOT
from tap import attempt, done, ok

sys.path.insert(0, str(ROOT / "tools" / "gen"))
import templates_golden as gen  # noqa: E402

os.environ["TZ"] = "UTC"
N = int(os.environ.get("CASES", 3000))
DATA = ROOT / "tests" / "data" / "templates"
TEMPLATES = sorted(DATA.glob("*.jinja"))
ROLES = ["user", "assistant", "system", "tool"]
WORDS = ["", "a", " b ", "<think>\nx\n</think>\n\ny", "日本", "/no_think", "/think go", "\n", "it's \"q\"", "</think>", "<tool_response>z</tool_response>", "🦊 \u00a0"]


def library():
    """The interpreter as a shared library: thousands of short calls, no process each."""
    out = BUILD / "reference" / "libimpetus-jinja.so"
    out.parent.mkdir(parents=True, exist_ok=True)
    sources = [str(p) for d in ("base", "text/jinja") for p in sorted((ROOT / "src" / d).glob("*.c"))]
    newest = max(os.path.getmtime(p) for p in [*sources, *map(str, (ROOT / "src" / "text" / "jinja").glob("*.h"))])
    if not out.exists() or out.stat().st_mtime < newest:
        flags = subprocess.run(["pkg-config", "--cflags", "--libs", "jansson", "libutf8proc", "hwloc"], capture_output=True, text=True, check=True)
        subprocess.run([*shlex.split(os.environ.get("CC", "cc")), "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC", f"-I{ROOT}/include",
                        f"-I{ROOT}/src", *sources, *flags.stdout.split(), "-lm", "-pthread", "-o", str(out)], check=True)
    return c.CDLL(str(out))


class Limits(c.Structure):
    _fields_ = [("fuel", c.c_uint64), ("out_bytes", c.c_size_t), ("mem_bytes", c.c_size_t), ("depth", c.c_uint32), ("now", c.c_int64)]


class Buf(c.Structure):
    _fields_ = [("data", c.POINTER(c.c_char)), ("n", c.c_size_t), ("cap", c.c_size_t), ("failed", c.c_bool)]


class Error(c.Structure):
    _fields_ = [("status", c.c_int), ("text", c.c_char * 480), ("field", c.c_char * 64), ("position", c.c_uint64)]


LIB = library()
LIB.json_loadb.restype = c.c_void_p
NOW = 1772636767  # gen.NOW in UTC
UNSUPPORTED = 5


def ours(template, variables):
    """(text or None, status, message)"""
    t, err, buf = c.c_void_p(), Error(), Buf()
    src, doc = template.encode(), json.dumps(variables).encode()
    vars_ = c.c_void_p(LIB.json_loadb(doc, c.c_size_t(len(doc)), c.c_size_t(0x10), None))
    status = LIB.imp_jinja_compile(src, c.c_size_t(len(src)), c.byref(t), c.byref(err))
    if status == 0:
        status = LIB.imp_jinja_render(t, vars_, c.byref(Limits(now=NOW)), c.byref(buf), c.byref(err))
    text = None if status else (c.string_at(buf.data, buf.n).decode() if buf.n else "")
    LIB.imp_jinja_free(t)
    LIB.imp_buf_deinit(c.byref(buf))
    LIB.json_delete(vars_)  # its one reference
    return text, status, err.text.decode()


def compare(name, cases):
    n = bad = refused = unsupported = 0
    shown = ""
    for template, variables in cases:
        fresh = json.loads(json.dumps(variables))  # jinja2 itself changes a list that goes through indent
        want, (got, status, message) = gen.render(template, fresh), ours(template, variables)
        if want is not None and " at 0x" in want:  # the address of a Python object
            continue
        if "cannot be sliced" in message:  # jinja2 makes some slices of constants undefined when it compiles them
            continue
        n += 1
        refused += want is None
        if got != want and status == UNSUPPORTED:  # said to be missing, by name
            unsupported += 1
        elif got != want:
            bad += 1
            shown = shown or f"; {template[:300]!r} gives {got if got is not None else message!r:.200}, jinja2 {want!r:.200}"
    ok(bad == 0, name, f"{n} compared, {refused} are errors in both, {unsupported} not supported here" + (f", {bad} differ{shown}" if bad else ""))


def goldens_are_current():
    with tempfile.TemporaryDirectory() as d:
        gen.DATA = pathlib.Path(d)
        for p in TEMPLATES:
            (gen.DATA / p.name).write_bytes(p.read_bytes())
        stdout, sys.stdout = sys.stdout, open(os.devnull, "w")
        try:
            gen.main()
        finally:
            sys.stdout = stdout
        stale = [p.name for p in sorted(gen.DATA.glob("*.json")) if p.read_bytes() != (DATA / p.name).read_bytes()]
    ok(not stale, "golden files are what jinja2 gives", " ".join(stale))


def random_message(r):
    content = r.choice(WORDS) + r.choice(WORDS)
    m = {"role": r.choice(ROLES), "content": r.choice([content, content, content, None, [{"type": "text", "text": content}]])}
    if m["role"] == "assistant":
        if r.random() < 0.3:
            m["reasoning_content"] = r.choice([None, *WORDS])
        if r.random() < 0.3:
            args = r.choice([{}, {"city": "Köln", "n": [1, 2.5, None]}, '{"a": 1}'])
            m["tool_calls"] = gen.calls(*[("f", args)] * r.randint(1, 2))
    if m["role"] == "tool" and r.random() < 0.8:
        m["tool_call_id"] = "call00000"
    return m


def conversations(seed):
    r = random.Random(seed)
    for _ in range(N):
        v = {"messages": [random_message(r) for _ in range(r.randint(0, 6))], "tools": r.choice([None, [gen.WEATHER], [gen.WEATHER, gen.CALC]]),
             "documents": r.choice([None, None, gen.DOCS]), "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": r.random() < 0.5}
        if r.random() < 0.5:
            v[r.choice(["enable_thinking", "thinking"])] = r.random() < 0.5
        yield r.choice(TEMPLATES).read_text(), v


ATOMS = ["x", "f", "s", "e", "n", "t", "l", "d", "words", "users", "uni", "nope", "1", "-2", "0", "2.5", "'a'", "\"b c\"", "[1, 'a']", "{'k': 1}", "(1, 2)", "none", "true", "[]", "d.a", "users[0]", "s[1:3]"]
BINARY = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "and", "or", "in", "not in"]
FILTERS = ["length", "first", "last", "list", "sort", "unique|list", "reverse|list", "string", "upper", "trim", "int", "float", "abs", "round", "sum", "min", "max", "join", "join(',')", "default('z')",
           "default('z', true)", "tojson", "map('string')|list", "select|list", "reject|list", "title", "capitalize", "replace('a', 'o')", "items|list", "dictsort", "indent(2)", "wordcount", "map(attribute='name')|list",
           "selectattr('on')|list", "batch(2)|list", "e", "center(9)", "truncate(6)", "tojson(indent=1)", "unique(true)|list", "sort(reverse=true)", "slice(2)|list", "last|string"]
TESTS = ["defined", "none", "string", "number", "mapping", "sequence", "iterable", "true", "odd", "even", "integer", "float", "boolean", "lower", "upper", "eq 1", "in l", "divisibleby 2", "sameas x", "ne 'a'", "gt 1", "undefined", "callable", "escaped"]
METHODS = [".upper()", ".split()", ".split(' ')", ".strip()", ".get('a')", ".items()|list", ".startswith('a')", ".replace('l', '')", ".a", ".name", "[0]", "[-1]", "['a']", "[1:]", "[::-1]", "[:2]", ".title()", ".count('l')", ".find('l')", ".rsplit('l', 1)", ".splitlines()", ".partition('l')", ".zfill(4)", ".index(1)", ".keys()|list", ".join(words)", "[::2]", "[-2::-1]"]


def expression(r, depth):
    if depth == 0 or r.random() < 0.15:
        return r.choice(ATOMS)
    e = lambda: expression(r, depth - 1)  # noqa: E731
    k = r.randint(0, 8)
    return (f"({e()} {r.choice(BINARY)} {e()})" if k <= 1 else f"({e()})|{r.choice(FILTERS)}" if k <= 3 else f"({e()}) is {r.choice(['', 'not '])}{r.choice(TESTS)}" if k == 4
            else f"({e()}){r.choice(METHODS)}" if k <= 6 else f"({e()} if {e()} else {e()})" if k == 7 else f"[{e()}, {e()}]|{r.choice(FILTERS)}" if r.random() < 0.5 else f"{{'q': {e()}}}")


def expressions(seed):
    r = random.Random(seed)
    for _ in range(N * 3):
        yield "{{ " + expression(r, r.randint(1, 4)) + " }}", gen.VARS


def spaces(seed):
    r = random.Random(seed)
    space = lambda: "".join(r.choice([" ", "\n", "\t", "", "", "\r\n", "a", "\u00a0"]) for _ in range(r.randint(0, 4)))  # noqa: E731
    sign = lambda plus=True: r.choice(["", "", "-", "+" if plus else ""])  # noqa: E731
    for _ in range(N * 2):
        out = space()
        for _ in range(r.randint(1, 5)):
            k = r.randint(0, 5)
            tag = lambda body: "{%" + sign() + r.choice([" ", "", "\n"]) + body + r.choice([" ", ""]) + sign() + "%}"  # noqa: E731
            if k == 0:
                out += "{{" + r.choice(["", "-"]) + " x " + r.choice(["", "-"]) + "}}"
            elif k == 1:
                out += "{#" + sign() + space() + " c " + sign() + "#}"
            elif k == 2:
                out += tag("if t") + space() + tag("endif")
            elif k == 3:
                out += tag("set z = 1")
            elif k == 4:
                out += tag("for i in [1, 2]") + space() + "{{ i }}" + space() + tag("endfor")
            else:
                out += "{%" + sign() + " raw " + sign(False) + "%}" + space() + "{{ y }}" + space() + "{%" + sign() + " endraw " + sign() + "%}"
            out += space()
        yield out, gen.VARS


attempt("golden files", goldens_are_current)
compare("random conversations", conversations(1))
compare("random expressions", expressions(2))
compare("random white space", spaces(3))
done()
