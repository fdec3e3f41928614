#!/usr/bin/env python3
"""Make the seeds of fuzz/corpus/tokenizer: one small tokenizer of each kind with a text.   python3 tools/gen/fuzz_tokenizer.py OUT"""
import base64
import json
import pathlib
import struct
import sys

TEXT = " Hello, wörld! 12345\n\n  don't 你好 👍🏽 e\u0301 <s>x</s> ab ab\t".encode() + b"\xff\xc3\xe2\x96"
LETTERS = list("▁helowrd,! 12\n")


def steps(kind):
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    fuse = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                                             {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    regex = {"type": "Split", "pattern": {"Regex": r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+"}, "behavior": "Isolated",
             "invert": False}
    charsmap = struct.pack("<II", 8, 0x100) + b"\0\0\0\0x\0"
    return {
        "bytes": (dict(type="NFC"), dict(type="Sequence", pretokenizers=[regex, dict(byte_level, use_regex=False)]), byte_level),
        "words": (dict(type="Sequence", normalizers=[dict(type="NFKD"), dict(type="StripAccents"), dict(type="Lowercase"),
                                                     dict(type="Strip", strip_left=True, strip_right=True)]),
                  dict(type="Sequence", pretokenizers=[dict(type="Whitespace"), dict(type="Punctuation", behavior="MergedWithPrevious"),
                                                       dict(type="Digits", individual_digits=False)]), None),
        "spm": (dict(type="Sequence", normalizers=[dict(type="Prepend", prepend="▁"), dict(type="Replace", pattern={"String": " "}, content="▁")]),
                None, fuse),
        "unigram": (dict(type="Precompiled", precompiled_charsmap=base64.b64encode(charsmap).decode()), meta, meta),
        "wordpiece": (bert, dict(type="BertPreTokenizer"), dict(type="WordPiece", prefix="##", cleanup=True)),
    }[kind]


def tokenizer(kind):
    names = ["<unk>", "<s>", "</s>", *LETTERS, "he", "ll", "hell", "##l", "##o", "h", "e", "Ġ", "Ã", "¶"]
    names = list(dict.fromkeys(names))
    vocab = {p: i for i, p in enumerate(names)}
    model = dict(type="BPE", dropout=None, unk_token="<unk>", continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=True,
                 byte_fallback=kind == "spm", ignore_merges=kind == "bytes", vocab=vocab, merges=["h e", ["l", "l"], "he ll"])
    if kind == "unigram":
        model = dict(type="Unigram", unk_id=0, vocab=[[p, -float(i)] for p, i in vocab.items()], byte_fallback=False)
    if kind == "wordpiece":
        model = dict(type="WordPiece", unk_token="<unk>", continuing_subword_prefix="##", max_input_chars_per_word=100, vocab=vocab)
    norm, pre, dec = steps(kind)
    def added(i, content, **kw):
        return dict(dict(id=i, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True), **kw)

    post = dict(type="TemplateProcessing", single=[{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                pair=[], special_tokens={"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}})
    more = [added(1, "<s>"), added(2, "</s>", lstrip=True, rstrip=True)]
    if kind != "unigram":
        more.append(added(len(names), "ab", special=False, single_word=True, normalized=True))
    return dict(version="1.0", truncation=None, padding=None, added_tokens=more, normalizer=norm, pre_tokenizer=pre, post_processor=post,
                decoder=dec, model=model)


def vocab(model, pre, opt, pieces, merges=(), charsmap=b""):
    head = bytes([model, pre, opt])
    body = b"\x1f".join(bytes([64 | kind]) + p.encode() for p, kind in pieces)
    return b"V" + b"\x1e".join([head, body, b"\x1f".join(m.encode() for m in merges), charsmap, TEXT])


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for kind in ("bytes", "words", "spm", "unigram", "wordpiece"):
        (out / f"json-{kind}").write_bytes(b"J" + json.dumps(tokenizer(kind), ensure_ascii=False, separators=(",", ":")).encode() + b"\xff" + TEXT)
    base = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    for pre in range(7):
        (out / f"vocab-bpe-{pre}").write_bytes(vocab(0, pre, 4, base + [(p, 1) for p in "Helowrd,!Ġ12ÃĊ"] + [("lo", 1), ("low", 1), ("ab", 4)],
                                                     ["l o", "lo w"]))
    bytes_ = [(f"<0x{b:02X}>", 6) for b in range(256)]
    spm = base + bytes_ + [(p, 1) for p in ("▁", "▁H", "el", "l", "e", "lo", "▁w", "12")]
    (out / "vocab-spm").write_bytes(vocab(1, 7, 1 | 4, spm))
    (out / "vocab-unigram").write_bytes(vocab(2, 7, 1 | 2 | 32, spm, charsmap=struct.pack("<II", 4, 0x500) + b"\0"))
    (out / "vocab-wordpiece").write_bytes(vocab(3, 7, 2 | 8, base + [("▁hello", 1), ("▁,", 1), ("▁1", 1), ("2", 1), ("▁w", 1), ("[x]", 1)]))


main()
