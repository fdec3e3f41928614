#!/usr/bin/env python3
"""Make tests/data/tokenizer: small trained tokenizer.json files of every kind we read, and what Hugging Face's
`tokenizers` library makes of hard strings with them.

usage: python3 tools/gen/tokenizer_golden.py CORPUS.txt OUT_FOLDER

CORPUS.txt is any text of a few MB (English); other scripts come from the sentences below. Each NAME.json is a complete
tokenizer; NAME.cases.json is {"cases": [{"t": text, "ids": ids with special tokens, "raw": ids without,
"d": decoded without special tokens, "ds": with them}...], "lists": [{"ids", "d", "ds"}...]} where "d" and "ds" of a case
belong to "ids", null means "the same as t", and "raw" null means "the same as ids". Needs: tokenizers, sentencepiece.
"""
import base64
import json
import pathlib
import random
import sys
import tempfile
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "Ein größerer Bär läuft über die Straße. L'été dernier, où êtes-vous allés? Señor, ¿qué pasó? Ça va très bien.",
    "Быстрая коричневая лиса прыгает через ленивую собаку. Привет, как дела? Нещо на български.",
    "Ο γρήγορος καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί. Ἐν ἀρχῇ ἦν ὁ λόγος.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول. مرحبا كيف حالك؟ السَّلَامُ عَلَيْكُمْ",
    "השועל החום המהיר קופץ מעל הכלב העצלן. שָׁלוֹם עֲלֵיכֶם",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर से कूदती है। नमस्ते दुनिया १२३४५",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ สวัสดีชาวโลก", "កាន់តែពិសេសអាចខលចេញ", "Cửa Việt Nam xin chào thế giới",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다. 안녕하세요 세계", "素早い茶色の狐がのろまな犬を飛び越える。こんにちは世界。カタカナ ｶﾞｷﾞｸﾞ",
    "敏捷的棕色狐狸跳过了懒狗。我想在apple工作1314151天～ 你好世界", "ქართული ენა აბგდ Հայերեն լեզու ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ 𐐀𐐁𐐨 𝒜𝓫 𝟘𝟙𝟚",
    "🚀 (normal) 😶‍🌫️ 👩‍👩‍👧‍👦 🇩🇪🇫🇷 👍🏽 ✅ ❤️ 🦙🦙 1️⃣", "def f(x):\n\treturn x**2  # code\n\n\nif __name__ == '__main__':\r\n    print(f(3.14e-10))",
    "I've we'll they're he'd I'm don't it's I'VE WE'LL 'tis rock'n'roll O'Neill's ’s “quoted” — dash… ",
    "in 2024 and 1999 about 100,000 of 1000000 or 12345678, 3000 and 250 000 000, 100% of 123 and 1234 and 999999",
    "3 33 333 3333 33333 333333 1,234,567.89 ½ ² ③ Ⅳ ٣٤٥ 一二三 $5 +1 <= >= == != ~ ^ | ` \\ @ # % & *",
]

# ---- strings that are hard for tokenizers ---------------------------------------------------------------------------

SPACES = [" ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", " \n", "\n ", "\u00a0", "\u1680", "\u2003", "\u2009", "\u2028",
          "\u2029", "\u202f", "\u205f", "\u3000", "\x0b", "\x0c", "\x85", "\u200b", "\u180e", "\ufeff", "\u2060"]
ODD = ["\x00", "\x01", "\x1f", "\x7f", "\u00ad", "\u200d", "\u200c", "\u200e", "\ufffd", "\ufffe", "\ue000", "\U000f0000", "\U0010ffff",
       "▁", "▁▁", "Ġ", "Ċ", "<0x41>", "<0xE4>", "##", "##s", "�", "İ", "ı", "ſ", "ß", "ẞ", "Σς", "ǅ", "ﬁ", "ﬃ", "Ω", "K", "Å", "ﷺ", "㍿", "ｶﾞ",
       "e\u0301", "a\u0323\u0302", "q\u0307\u0323", "\u0344", "\u0f73", "가", "각", "각", "e\u0315\u0300\u05ae\u0062", "\u09be", "ே\u0bbe",
       "'s", "'S", "'ſ", "'re", "'LL", "’ve", "''", "``", "...", "!!!", "?!", "----", "====", "\\", "\"", "https://example.org/a?b=c&d=%20e#f",
       "x\u20e3", "①", "Ⓐ", "²³", "¼", "٠١٢", "०१", "𝟗", "Ⅻ", "〇", "_", "‿", "⁀"]
SPECIALS = ["<s>", "</s>", "<unk>", "<pad>", "<mask>", "[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]", "<|endoftext|>", "<|im_start|>",
            "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<｜begin▁of▁sentence｜>", "<|user|>", "<|assistant|>", "word", "<|im_", "|>",
            "<start_of_turn>", "ab ab"]
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪", "🇩", "❤️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "1️⃣", "🦙", "☃", "\u200d", "\ufe0f", "🏽"]
BLOCKS = [(0x20, 0x7f), (0xa0, 0x180), (0x180, 0x250), (0x300, 0x370), (0x370, 0x400), (0x400, 0x530), (0x530, 0x600), (0x600, 0x700),
          (0x900, 0x980), (0x980, 0xa00), (0xe00, 0xe80), (0xf00, 0x1000), (0x1100, 0x1200), (0x1780, 0x1800), (0x1e00, 0x2000),
          (0x2000, 0x2070), (0x2070, 0x2200), (0x2460, 0x2500), (0x3000, 0x3100), (0x3400, 0x3420), (0x4e00, 0x4f00), (0xac00, 0xad00),
          (0xf900, 0xfb10), (0xfe00, 0xfe70), (0xff00, 0xfff0), (0x10400, 0x10450), (0x1d100, 0x1d180), (0x1d400, 0x1d500), (0x1f100, 0x1f200),
          (0x1f300, 0x1f700), (0x20000, 0x20020), (0x2b740, 0x2b760), (0x2b920, 0x2b940), (0x2f800, 0x2f820), (0xe0000, 0xe0080)]


# Characters of the blocks above that are younger than the tables of some part of `tokenizers` (Unicode 8 for categories in
# BERT's steps, 12 for normal forms): there it treats them as unassigned.
YOUNGER = set("\u061d\u09fd\u09fe") | set(map(chr, [*range(0x1f10d, 0x1f110), 0x1f12f, *range(0x1f16c, 0x1f170), 0x1f1ad]))


def assigned(c):
    """In the Unicode version of Python 3.11 (14.0), no surrogate, and known to `tokenizers`."""
    return unicodedata.category(c) not in ("Cn", "Cs") and c not in YOUNGER


class Strings:
    def __init__(self, seed):
        self.r = random.Random(seed)
        self.words = [w for s in SENTENCES for w in s.split()]
        self.words += "the of and to in is that was he for it with as his on be at by I this had not are but from or have an they".split()
        self.words += "Hello World hello world tokenization unbelievable internationalization GPT NASA iPhone camelCase snake_case".split()

    def part(self):
        r, k = self.r, self.r.random()
        if k < 0.30:
            return r.choice(self.words)
        if k < 0.45:
            return r.choice(SPACES) * r.choice([1, 1, 1, 2, 3, 7])
        if k < 0.55:
            return r.choice(ODD)
        if k < 0.60:
            return r.choice(EMOJI) * r.choice([1, 1, 2])
        if k < 0.67:
            return r.choice(SPECIALS)
        if k < 0.75:
            return "".join(r.choice("0123456789") for _ in range(r.randint(1, 9)))
        if k < 0.78:
            return r.choice(self.words)[:3] * r.randint(2, 12)
        if k < 0.80:
            return "".join(chr(r.randint(0x300, 0x362)) for _ in range(r.randint(1, 8)))
        lo, hi = r.choice(BLOCKS)
        return "".join(c for c in (chr(r.randrange(lo, hi)) for _ in range(r.randint(1, 6))) if assigned(c))

    def one(self, parts=None):
        sep = self.r.choice(["", "", " "])
        return sep.join(self.part() for _ in range(parts or self.r.randint(1, 12)))


# ---- the tokenizers ---------------------------------------------------------------------------------------------------

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UP, LOW = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
GPT4O = (rf"[^\r\n\p{{L}}\p{{N}}]?[{UP}]*[{LOW}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{{L}}\p{{N}}]?[{UP}]+[{LOW}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?[{UP}]*[{LOW}]+|[^\r\n\p{{L}}\p{{N}}]?[{UP}]+[{LOW}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CASED = ("A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386"
         "\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
         "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
         "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
         "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
         "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
         "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
         "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943")
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_LLM = ["[\r\n]", rf"\s?[{CASED}]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$", CJK]
DEEPSEEK_CODER = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK]
DEEPSEEK_V3 = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
               r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
               r"""|\s*[\r\n]+|\s+(?!\S)|\s+"""]


def split(*patterns, behavior="isolated"):
    return [pre_tokenizers.Split(Regex(p), behavior) for p in patterns]


def raw_bytes(regex=False, space=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=regex)


def special(*texts, **kw):
    return [AddedToken(t, special=True, normalized=False, **kw) for t in texts]


def byte_bpe(corpus, pre, n, specials=(), added=(), normalizer=None, post=None, ignore_merges=False):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.pre_tokenizer = pre[0] if len(pre) == 1 else pre_tokenizers.Sequence(pre)
    if normalizer:
        t.normalizer = normalizer
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=n, show_progress=False, special_tokens=list(specials),
                                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.add_tokens(list(added))
    t.post_processor = post(t) if post else processors.ByteLevel(trim_offsets=False)
    t.decoder = decoders.ByteLevel()
    return t


def template(text, *names):
    return lambda t: processors.TemplateProcessing(single=text, special_tokens=[(n, t.token_to_id(n)) for n in names])


def spm_bpe(corpus, n, normalizer, pre, decoder, added=(), unk=True):
    """BPE with byte fallback as it is shipped for SentencePiece models."""
    base = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    base.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=n, show_progress=False, limit_alphabet=120,
        special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]))
    j = json.loads(base.to_str())
    j["added_tokens"] = [a for a in j["added_tokens"] if a["id"] < 3]
    t = Tokenizer.from_str(json.dumps(j))
    t.normalizer, t.decoder = normalizer, decoder
    t.pre_tokenizer = pre
    t.post_processor = template("<s> $A", "<s>")(t)
    t.add_tokens(list(added))
    return t


CHARSMAP_RULES = ([(chr(c), chr(c - 0xfee0)) for c in range(0xff01, 0xff5f)] + [(c, " ") for c in "\u00a0\u3000\u2003\t\n\r"] +
                  [("ﬁ", "fi"), ("ﬃ", "ffi"), ("½", "1\u20442"), ("㍿", "株式会社"), ("①", "1"), ("e\u0301", "é"), ("か\u3099", "が"),
                   ("ｶﾞ", "ガ"), ("ｶ", "カ"), ("İ", "i\u0307"), ("\u00ad", ""), ("\u200b", ""), ("ﷺ", "صلى الله عليه وسلم"), ("…", "..."),
                   ("\u1112\u1161\u11ab", "한"), ("❤\ufe0f", "♥")])


def sentencepiece_model(corpus, n, kind, rules=True, byte_fallback=False, **kw):
    """(model bytes, parsed proto) of a SentencePiece model."""
    import sentencepiece as spm
    from sentencepiece import sentencepiece_model_pb2 as pb
    with tempfile.TemporaryDirectory() as d:
        tsv, text = pathlib.Path(d) / "rules.tsv", pathlib.Path(d) / "text"
        hexes = lambda s: " ".join(f"{ord(c):X}" for c in s)  # noqa: E731
        tsv.write_text("".join(f"{hexes(a)}\t{hexes(b)}\n" for a, b in CHARSMAP_RULES))
        text.write_text("\n".join(corpus))
        norm = dict(normalization_rule_tsv=str(tsv)) if rules else dict(normalization_rule_name="identity")
        spm.SentencePieceTrainer.train(input=str(text), model_prefix=d + "/m", vocab_size=n, model_type=kind, hard_vocab_limit=False,
                                       byte_fallback=byte_fallback, character_coverage=0.995, minloglevel=2, num_threads=1, **norm, **kw)
        raw = (pathlib.Path(d) / "m.model").read_bytes()
    m = pb.ModelProto()
    m.ParseFromString(raw)
    return raw, m


def with_charsmap(t, proto, before=(), after=()):
    """Set the normalizer to before + the model's precompiled map + after."""
    j = json.loads(t.to_str())
    parts = [json.loads(n.__getstate__()) for n in before]
    parts.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()})
    parts += [json.loads(n.__getstate__()) for n in after]
    j["normalizer"] = {"type": "Sequence", "normalizers": parts}
    return Tokenizer.from_str(json.dumps(j))


def unigram(corpus, n, kind_kw, byte_fallback=False):
    _, proto = sentencepiece_model(corpus, n, "unigram", byte_fallback=byte_fallback, **kind_kw)
    t = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], unk_id=proto.trainer_spec.unk_id, byte_fallback=byte_fallback))
    t.add_special_tokens(special(*[p.piece for p in proto.pieces if p.type == 3]))
    return t, proto


def wordpiece(corpus, n, lower):
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=lower)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.train_from_iterator(corpus, trainers.WordPieceTrainer(vocab_size=n, show_progress=False, limit_alphabet=250,
                                                            special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    t.decoder = decoders.WordPiece()
    return t


def spm_decoder(strip):
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))


def build(corpus):
    """name -> Tokenizer"""
    out = {}
    bos = template("<|begin_of_text|> $A", "<|begin_of_text|>")
    out["gpt2"] = byte_bpe(corpus, [raw_bytes(True)], 500, special("<|endoftext|>"))
    out["roberta"] = byte_bpe(corpus, [raw_bytes(True, True)], 450, special("<s>", "<pad>", "</s>", "<unk>"), special("<mask>", lstrip=True),
                              post=lambda t: processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True))
    out["llama3"] = byte_bpe(corpus, split(LLAMA3) + [raw_bytes()], 500, (), special("<|begin_of_text|>", "<|eot_id|>"), post=bos,
                             ignore_merges=True)
    out["qwen2"] = byte_bpe(corpus, split(QWEN2) + [raw_bytes()], 500, (),
                            special("<|endoftext|>", "<|im_start|>", "<|im_end|>") + [AddedToken("<tool_call>", normalized=False)],
                            normalizer=normalizers.NFC())
    digits = pre_tokenizers.Digits(individual_digits=True)
    out["deepseek-llm"] = byte_bpe(corpus, split(*DEEPSEEK_LLM) + [digits, raw_bytes()], 450, (),
                                   special("<｜begin▁of▁sentence｜>") + [AddedToken("ø", normalized=True)])
    out["deepseek-coder"] = byte_bpe(corpus, split(*DEEPSEEK_CODER) + [digits, raw_bytes()], 420)
    out["deepseek-v3"] = byte_bpe(corpus, split(*DEEPSEEK_V3) + [raw_bytes()], 450)
    out["starcoder"] = byte_bpe(corpus, [digits, raw_bytes(True)], 420, special("<|endoftext|>"))
    out["falcon"] = byte_bpe(corpus, [pre_tokenizers.Punctuation("contiguous"), raw_bytes(True), pre_tokenizers.Digits(False)] +
                             split("[0-9][0-9][0-9]"), 420, special("<|endoftext|>"))
    out["gpt-4o"] = byte_bpe(corpus, split(GPT4O) + [raw_bytes()], 420, (), special("<|user|>", "<|assistant|>"))
    out["tekken"] = byte_bpe(corpus, split(TEKKEN) + [raw_bytes()], 420, special("<unk>", "<s>", "</s>"), post=template("<s> $A", "<s>"),
                             ignore_merges=True)
    out["neox"] = byte_bpe(corpus, [raw_bytes(True)], 420, special("<|endoftext|>"),
                           [AddedToken(" " * k, normalized=True) for k in range(2, 8)] + [AddedToken("word", single_word=True)],
                           normalizer=normalizers.NFC())
    llama = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    out["llama2"] = spm_bpe(corpus, 700, llama, None, spm_decoder(True))
    out["phi3"] = spm_bpe(corpus, 600, llama, None, spm_decoder(True), special("<|user|>", "<|assistant|>", rstrip=True))
    out["gemma"] = spm_bpe(corpus, 650, normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), spm_decoder(False),
                           special("<start_of_turn>") + [AddedToken("\n" * k, normalized=False) for k in (1, 2, 3)] +
                           [AddedToken("▁" * k, normalized=False) for k in (2, 3, 4)])
    out["mistral"] = spm_bpe(corpus, 600, None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), spm_decoder(True))
    t, proto = unigram(corpus, 600, dict(bos_id=-1, pad_id=0, eos_id=1, unk_id=2))
    t = with_charsmap(t, proto, after=[normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "▁")])
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    t.post_processor = template("$A </s>", "</s>")(t)
    out["t5"] = t
    t, proto = unigram(corpus, 600, dict(bos_id=0, pad_id=1, eos_id=2, unk_id=3))
    t = with_charsmap(t, proto, after=[normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    t.decoder = decoders.Metaspace()
    t.post_processor = template("<s> $A </s>", "<s>", "</s>")(t)
    t.add_special_tokens(special("<mask>", lstrip=True))
    out["xlm-roberta"] = t
    t, proto = unigram(corpus, 700, dict(unk_id=0), byte_fallback=True)
    t.normalizer = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    t.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme="never"), decoders.ByteFallback(), decoders.Fuse()])
    out["unigram-bytes"] = t
    t = wordpiece(corpus, 800, True)
    t.post_processor = template("[CLS] $A [SEP]", "[CLS]", "[SEP]")(t)
    out["bert"] = t
    t = wordpiece(corpus, 700, False)
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    out["bert-cased"] = t
    t = Tokenizer(models.BPE(unk_token="[UNK]"))
    t.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC(), normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("merged_with_previous"),
                                               pre_tokenizers.Split("ab", "merged_with_next"),
                                               pre_tokenizers.Split(Regex("[0-9]"), "contiguous"), pre_tokenizers.Split("x", "removed")])
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=500, show_progress=False, limit_alphabet=150, special_tokens=["[UNK]"]))
    out["words"] = t
    return out


def null_if(value, other):
    return None if value == other else value


def cases(t, name, n):
    s, out = Strings(name), []
    fixed = ["", " ", "  leading and trailing  ", "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～", "a\tb\nc\r\nd  e\n\n f",
             "<s>x</s> <|endoftext|>[CLS] word words sword", "a" * 150 + " " + "ab" * 40, "e\u0301\u0301 ﬁ ½ İ ẞ", "x\x0cy죄\u11a7 é<unk>é dash..."]
    for text in fixed + SENTENCES[:3] + SENTENCES[-3:] + [s.one() for _ in range(n)]:
        ids = t.encode(text).ids
        out.append(dict(t=text, ids=ids, raw=null_if(t.encode(text, add_special_tokens=False).ids, ids),
                        d=null_if(t.decode(ids), text), ds=null_if(t.decode(ids, skip_special_tokens=False), text)))
    return out


def byte_ids(t):
    return {t.token_to_id(f"<0x{b:02X}>") for b in range(256)} - {None} if '"ByteFallback"' in t.to_str() else set()


def id_lists(t, name, n):
    """Random ids. Byte-fallback tokens are left out: for a run of them that is no UTF-8, `tokenizers` loses good characters."""
    r, skip = random.Random(name), byte_ids(t)
    usable = [i for i in range(t.get_vocab_size()) if i not in skip]
    out = []
    for _ in range(n):
        ids = [r.choice(usable) for _ in range(r.randint(1, 12))]
        out.append(dict(ids=ids, d=t.decode(ids), ds=t.decode(ids, skip_special_tokens=False)))
    return out


def main():
    source, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    text = pathlib.Path(source).read_text(errors="replace")[:1500000]
    corpus = [p for p in text.split("\n") if p.strip()] + SENTENCES * 30 + SENTENCES[-2:] * 300
    folder.mkdir(parents=True, exist_ok=True)
    for name, t in build(corpus).items():
        dump = lambda o: json.dumps(o, ensure_ascii=False, separators=(",", ":"))  # noqa: E731
        j = json.loads(t.to_str())
        (folder / f"{name}.json").write_text(dump(j))
        t = Tokenizer.from_str(dump(j))
        (folder / f"{name}.cases.json").write_text(dump(dict(cases=cases(t, name, 20), lists=id_lists(t, name, 8))))


if __name__ == "__main__":
    main()
