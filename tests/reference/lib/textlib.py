"""The tokenizers of src/text as a shared library, called directly: thousands of short calls, no process each."""
import ctypes as c
import os
import shlex
import subprocess

from impetus import BUILD, ROOT

ADD_SPECIAL, PARSE_SPECIAL = 1, 2
BPE, SPM_BPE, UNIGRAM, WORDPIECE = range(4)


class Error(c.Structure):
    _fields_ = [("status", c.c_int), ("text", c.c_char * 480), ("field", c.c_char * 64), ("position", c.c_uint64)]


class Str(c.Structure):
    _fields_ = [("p", c.c_char_p), ("n", c.c_size_t)]


class Vocab(c.Structure):
    _fields_ = [("model", c.c_int), ("pre", c.c_char_p), ("token", c.POINTER(Str)), ("score", c.POINTER(c.c_float)),
                ("kind", c.POINTER(c.c_int32)), ("n_token", c.c_size_t), ("merge", c.POINTER(Str)), ("n_merge", c.c_size_t),
                *[(k, c.c_int64) for k in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")],
                ("add_bos", c.c_int8), ("add_eos", c.c_int8), ("add_space_prefix", c.c_int8), ("remove_extra_whitespaces", c.c_bool),
                ("rstrip_special", c.c_bool), ("charsmap", c.c_char_p), ("n_charsmap", c.c_size_t)]


class Ids(c.Structure):
    _fields_ = [("id", c.POINTER(c.c_int32)), ("n", c.c_size_t), ("cap", c.c_size_t)]


class Buf(c.Structure):
    _fields_ = [("data", c.POINTER(c.c_char)), ("n", c.c_size_t), ("cap", c.c_size_t), ("failed", c.c_bool)]


def _library():
    out = BUILD / "reference" / "libimpetus-text.so"
    out.parent.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(p) for d in ("base", "text") for p in (ROOT / "src" / d).glob("*.c") if not p.name.startswith("chat"))
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libpcre2-8", "libutf8proc", "jansson", "hwloc"],
                           capture_output=True, text=True, check=True).stdout.split()
    newest = max(os.path.getmtime(p) for d in ("base", "text") for p in (ROOT / "src" / d).glob("*.[ch]"))
    if not out.exists() or out.stat().st_mtime < newest:
        cc = shlex.split(os.environ.get("CC", "cc"))
        subprocess.run([*cc, "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC", f"-I{ROOT}/include", f"-I{ROOT}/src",
                        *sources, *flags, "-lm", "-pthread", "-o", str(out)], check=True)
    return c.CDLL(str(out))


_lib = _library()
_lib.imp_tokenizer_describe.restype = c.c_char_p


class Refused(Exception):
    pass


def _check(status, err):
    if status:
        raise Refused(err.text.decode())


def _strs(items):
    items = [x.encode() if isinstance(x, str) else x for x in items]
    return (Str * max(1, len(items)))(*[Str(x, len(x)) for x in items])


class Tokenizer:
    def __init__(self, handle):
        self.h = handle

    def __del__(self):
        _lib.imp_tokenizer_free(self.h)

    @classmethod
    def from_json(cls, text):
        h, err = c.c_void_p(), Error()
        text = text.encode()
        _check(_lib.imp_tokenizer_from_json(text, c.c_size_t(len(text)), None, c.byref(h), c.byref(err)), err)
        return cls(h)

    @classmethod
    def from_vocab(cls, model, tokens, pre=None, scores=None, kinds=None, merges=(), charsmap=None, **kw):
        n = len(tokens)
        v = Vocab(model=model, pre=pre and pre.encode(), token=_strs(tokens), n_token=n, merge=_strs(merges), n_merge=len(merges))
        if scores is not None:
            v.score = (c.c_float * n)(*scores)
        if kinds is not None:
            v.kind = (c.c_int32 * n)(*kinds)
        if charsmap:
            v.charsmap, v.n_charsmap = charsmap, len(charsmap)
        for k in ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "add_bos", "add_eos", "add_space_prefix"):
            setattr(v, k, kw.pop(k, -1))
        for k, x in kw.items():
            setattr(v, k, x)
        h, err = c.c_void_p(), Error()
        _check(_lib.imp_tokenizer_from_vocab(c.byref(v), c.byref(h), c.byref(err)), err)
        return cls(h)

    def encode(self, text, flags=PARSE_SPECIAL):
        if isinstance(text, str):
            text = text.encode()
        ids, err = Ids(), Error()
        status = _lib.imp_tokenizer_encode(self.h, text, c.c_size_t(len(text)), flags, c.byref(ids), c.byref(err))
        out = ids.id[: ids.n] if ids.n else []
        _lib.imp_ids_deinit(c.byref(ids))
        _check(status, err)
        return out

    def decode(self, ids, special=False):
        buf, err = Buf(), Error()
        arr = (c.c_int32 * max(1, len(ids)))(*ids)
        _check(_lib.imp_tokenizer_decode(self.h, arr, c.c_size_t(len(ids)), c.c_bool(special), c.byref(buf), c.byref(err)), err)
        out = c.string_at(buf.data, buf.n) if buf.n else b""
        _lib.imp_buf_deinit(c.byref(buf))
        return out.decode()  # strict: decode promises UTF-8
