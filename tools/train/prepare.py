"""prepare.py - corpus to token ids: cleaning, held-out text, both vocabularies, chats, passages and pairs.

Run on any machine (no GPU):   python tools/train/prepare.py CORPUS_DIR OUT_DIR
Needs:   numpy, tokenizers.
Writes:  bpe.json, wordpiece.json      vocabularies (Hugging Face tokenizers files)
         decoder.npz.xz                train/val token streams, chat rows with loss marks
         encoder.npz.xz                passages, pairs and the sets for measuring
         heldout_books.txt, heldout_articles.txt, chat_heldout.jsonl, train_text.bin (ids for the 5-gram model)
         report.json                   what was kept and what was left out
Always:  every choice comes from SEED; books flagged in SOURCES.md as in copyright outside the US are left out;
         paragraphs and records with a word of the list SLURS are left out.
"""
import collections
import functools
import hashlib
import io
import json
import lzma
import random
import re
import sys
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SEED = 20261122
EOT = "\n<|endoftext|>\n"
BPE_SIZE, WP_SIZE = 8192, 10240
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>", "<tool_call>", "</tool_call>"]
ROW = 1024  # tokens in a row of the decoder
LOSS = 0x8000  # set on the ids that the loss of a chat row counts
N_HELD_BOOKS, HELD_ARTICLES, HELD_CHAT, HELD_PAIRS = 6, 0.05, 0.02, 0.02
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")

# The first 12 hex digits of sha256 of each lower-case word: slurs of the books' period, not spelled out here.
SLURS = set("""120f6e5b4ea3 5b3ae48be122 08a841e99678 6122fdf4ae14 6437ea714448 448b303c89be 45cd3e1bb472 619bc82e0d20
0dcc4d336443 a7bf072c97a0 11ee63a73ffe bb87adf8aa78 701033ae2641 ad6cacf3af98 eda887476f1d 9d57436661e1
9ee4d2748732 6939937b0ac6 e7b98c6aa5b9 daec0c235d31 b3cec2f6ece2 565ed74643e0 3175bf063867 171ee4d3a3e3
4c58f5d5fe92 49d3bc147609 d43f4ff13e9e 46505206c396 3af112eacdb7 c1b4ed05397d eea2991640d1 0be9b885f4a3
d0e3cb91d249 1c4bfd100aa9 c709d1a28781 da8843926277 a9ffceafa135 f59e28f8bb64 c22f315f1b33 27a62b68179c
469c0fdb6020 0058beda64c0 ad412adb493d 7dc7079a7cee ee5a869b5ace c70e3e7c47f0 c3de533e9b7f 268651b3ece9
ce20df725915 8f5083e3e5c7 1e02eec4f109 e84dde508a60 dcb85fcf872e 849170b7fb5d f2401d77e0fa 8b6f82db885a
eef3bd091670 98b52c4b6b7d 044eb98b1876 cc02032349c8 82159dd02870 ad64e56f214e 3cb6a563b3b2 16ea09fc78ca
158869a97379 bd331fb1d242""".split())
WORD = re.compile(r"[a-z]+(?:-[a-z]+)?")

# How often a chat record is repeated, by the start of its source.
CHAT_WEIGHT = [("personality-chat", 16), ("chatterbot-psychology", 1), ("chatterbot-trivia", 1),
               ("chatterbot-coding", 2), ("chatterbot", 8), ("self-instruct", 5), ("dolly", 2.5), ("oewn", 0.4),
               ("gsm8k", 0.4), ("opentriviaqa", 0.25)]
SYSTEM = ["You are a helpful assistant.", "You are Impetus Nano, a small and friendly assistant.",
          "You are a kind assistant. Answer in short, clear sentences.", "Answer the user's questions."]


@functools.lru_cache(None)
def is_slur(word):
    return hashlib.sha256(word.encode()).hexdigest()[:12] in SLURS


def is_clean(text):
    """False where a word of SLURS occurs."""
    return not any(is_slur(w) for w in set(WORD.findall(text.lower())))


def read_xz(path):
    return lzma.open(path, "rt", encoding="utf-8").read()


def read_sources(path):
    """Rows of the table of books: (title, author, flagged)."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [c.strip() for c in line.split("|")[1:-1]]
        if len(cells) == 7 and cells[0].isdigit():
            rows.append((cells[1], cells[2], cells[6] != ""))
    return rows


def clean_doc(doc, stat):
    """The document without the paragraphs that hold a slur; None where that is more than a tenth of it."""
    paras = doc.split("\n\n")
    kept = [p for p in paras if is_clean(p)]
    stat["paragraphs"] += len(paras)
    stat["paragraphs dropped"] += len(paras) - len(kept)
    if len(kept) < 0.9 * len(paras):
        stat["documents dropped"] += 1
        return None
    return "\n\n".join(kept).strip("\n")


def load_docs(corpus, rng, stat):
    """(train books, held-out books, train articles, held-out articles), books as (title, author, text)."""
    table = read_sources(corpus / "SOURCES.md")
    raw_books, raw_articles = read_xz(corpus / "books.txt.xz"), read_xz(corpus / "articles.txt.xz")
    books = raw_books.split(EOT)
    assert len(books) == len(table), (len(books), len(table))
    stat["books flagged, left out"] = sum(f for _, _, f in table)
    kept = []
    for (title, author, flagged), text in zip(table, books):
        text = None if flagged else clean_doc(text, stat)
        if text:
            kept.append((title, author, text))
    long = [i for i, b in enumerate(kept) if 150_000 < len(b[2]) < 450_000]
    held = set(rng.sample(long, N_HELD_BOOKS))
    articles = [a for a in (clean_doc(d, stat) for d in raw_articles.split(EOT)) if a and len(a) > 200]
    held_a = set(rng.sample(range(len(articles)), int(len(articles) * HELD_ARTICLES)))
    pick = lambda seq, s, inside: [x for i, x in enumerate(seq) if (i in s) == inside]
    return pick(kept, held, False), pick(kept, held, True), pick(articles, held_a, False), pick(articles, held_a, True)


def turns_of(record):
    """A chat record as [(role, text)...]; a context that is a dialogue becomes earlier turns."""
    turns, context = [], record["context"].strip()
    if re.match(r"(User|Assistant): ", context):
        for part in re.split(r"\n(?=(?:User|Assistant): )", context):
            who, text = part.split(": ", 1)
            turns.append(("user" if who == "User" else "assistant", text.strip()))
        if turns[0][0] == "assistant":
            turns.insert(0, ("user", "Hello."))
        if any(turns[i][0] == turns[i + 1][0] for i in range(len(turns) - 1)) or turns[-1][0] == "user":
            turns = []
        context = ""
    ask = record["instruction"].strip() + ("\n\n" + context if context else "")
    return turns + [("user", ask), ("assistant", record["response"].strip())]


def good_chat(record):
    ask, answer = record["instruction"].strip(), record["response"].strip()
    return len(ask) > 2 and answer and len(ask) + len(answer) + len(record["context"]) < 3000 and \
        is_clean(ask + " " + record["context"] + " " + answer)


def stories(books, rng):
    """Chats made from the tales: the beginning of a titled story, and a whole fable."""
    out = []
    for title, author, text in books:
        fables = title == "Aesop's Fables"
        if not (fables or "Fairy" in title or title in ("Just So Stories", "The Happy Prince & Other Tales")):
            continue
        paras = text.split("\n\n")
        heads = [i for i, p in enumerate(paras) if len(p) < 60 and p[0].isupper() and p[-1].isalpha() and
                 "\n" not in p and i + 1 < len(paras) and len(paras[i + 1]) > 120]
        for n, i in enumerate(heads):
            body = paras[i + 1:heads[n + 1] if n + 1 < len(heads) else len(paras)]
            answer = ""
            for p in body:
                if answer and len(answer) + len(p) > 1100:
                    break
                answer += ("\n\n" if answer else "") + p
            if len(answer) > 1800:
                continue
            name = paras[i].strip()
            ask = rng.choice(["Tell me a story called \"%s\".", "Can you tell me the story of \"%s\"?",
                              "Please write the beginning of a story with the title \"%s\"."] if not fables else
                             ["Tell me the fable of \"%s\".", "Tell me a fable: \"%s\"."]) % name
            for q in {ask, rng.choice(["Tell me a story.", "Tell me a fairy tale.", "Please tell me a short story."])
                      if rng.random() < 0.3 else ask}:
                out.append({"instruction": q, "context": "", "response": answer, "source": "stories"})
    return out


def chatml(turns, encode, rng, system=True):
    """Ids of one conversation with the LOSS mark on every answer and its <|im_end|>."""
    start, end = 1, 2
    ids, nl = [], encode("\n")
    if system and rng.random() < 0.25:
        ids += [start] + encode("system\n" + rng.choice(SYSTEM)) + [end] + nl
    for role, text in turns:
        body = encode(text) + [end]
        ids += [start] + encode(role + "\n") + ([i | LOSS for i in body] if role == "assistant" else body) + nl
    return ids


def chat_rows(records, encode, rng, passes=2):
    """Conversations packed into rows of ROW ids: (n, ROW) uint16, the rest of a row is 0 without LOSS."""
    small = [r for r in records if r["source"].startswith(("personality", "chatterbot"))]
    rows, row = [], []
    for _ in range(passes):
        convs = []
        for r in records:
            w = next((w for s, w in CHAT_WEIGHT if r["source"].startswith(s)), 1)
            for _ in range(int(w) + (rng.random() < w - int(w))):
                turns = turns_of(r)
                while rng.random() < 0.35:  # several exchanges in one conversation
                    turns = turns_of(rng.choice(small if small and rng.random() < 0.7 else records)) + turns
                convs.append(turns)
        rng.shuffle(convs)
        for turns in convs:
            ids = chatml(turns, encode, rng)
            if len(ids) > ROW:
                continue
            if len(row) + len(ids) > ROW:
                rows.append(row + [0] * (ROW - len(row)))
                row = []
            row = row + ids
    return np.array(rows, np.uint16)


def passages_of(doc, wp, target=56):
    """Runs of whole sentences of about `target` WordPiece ids, in order: list of (text, ids)."""
    sent = [s for p in doc.split("\n\n") for s in re.split(r"(?<=[.!?][\"' ])\s*(?=[A-Z\"'])", p.replace("\n", " ")) if
            s.strip()]
    out, text, ids = [], "", []
    for s, e in zip(sent, wp.encode_batch(sent, add_special_tokens=False)):
        if ids and len(ids) + len(e.ids) > target + 8:
            out.append((text.strip(), ids))
            text, ids = "", []
        text, ids = text + " " + s.strip(), ids + e.ids
        if len(ids) >= target - 16:
            out.append((text.strip(), ids[:120]))
            text, ids = "", []
    return out + ([(text.strip(), ids)] if len(ids) > 12 else [])


def ragged(list_of_ids):
    off = np.zeros(len(list_of_ids) + 1, np.int64)
    np.cumsum([len(x) for x in list_of_ids], out=off[1:])
    flat = np.fromiter((t for x in list_of_ids for t in x), np.uint16, int(off[-1]))
    return flat, off.astype(np.int32)


def train_vocabularies(out, text_parts):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(text_parts, trainers.BpeTrainer(
        vocab_size=BPE_SIZE, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    bpe.save(str(out / "bpe.json"))
    wp = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    wp.normalizer = normalizers.BertNormalizer(lowercase=True)
    wp.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wp.decoder = decoders.WordPiece()
    wp.train_from_iterator(text_parts, trainers.WordPieceTrainer(
        vocab_size=WP_SIZE, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], limit_alphabet=200,
        show_progress=False))
    wp.save(str(out / "wordpiece.json"))
    return bpe, wp


def save(path, **arrays):
    """An uncompressed .npz inside .xz: half the size of np.savez_compressed."""
    raw = io.BytesIO()
    np.savez(raw, **arrays)
    path.write_bytes(lzma.compress(raw.getvalue(), preset=4))


def decoder_data(out, bpe, books, held_books, articles, held_articles, chat, rng, report):
    encode = functools.lru_cache(10**6)(lambda s: bpe.encode(s, add_special_tokens=False).ids)

    def stream(docs):
        parts = []
        for i in range(0, len(docs), 64):
            for e in bpe.encode_batch(docs[i:i + 64], add_special_tokens=False):
                parts.append(np.array(e.ids + [0], np.uint16))
        return np.concatenate(parts)

    train = stream([b[2] for b in books] + articles)
    val_b, val_a = stream([b[2] for b in held_books]), stream(held_articles)
    held = [r for r in chat if r["held"]]
    kept = [r for r in chat if not r["held"]]
    rows = chat_rows(kept + stories(books, rng), encode, rng)
    val_rows = chat_rows([dict(r, source="held") for r in held], encode, rng, passes=1)
    once = np.concatenate([np.array(chatml(turns_of(r), encode, rng, system=False) + [0], np.uint16) & (LOSS - 1)
                           for r in kept])
    save(out / "decoder.npz.xz", train=train, val_books=val_b, val_articles=val_a, chat=rows, val_chat=val_rows)
    np.concatenate([train, once]).tofile(out / "ngram_train.u16")
    np.concatenate([val_b, val_a]).tofile(out / "ngram_test.u16")
    val_b.tofile(out / "ngram_test_books.u16")
    val_a.tofile(out / "ngram_test_articles.u16")
    (out / "heldout_books.txt").write_text(EOT.join(b[2] for b in held_books), encoding="utf-8")
    (out / "heldout_articles.txt").write_text(EOT.join(held_articles), encoding="utf-8")
    with open(out / "chat_heldout.jsonl", "w") as f:
        f.writelines(json.dumps(r) + "\n" for r in held)
    report |= {"train tokens": len(train), "held-out tokens, books": len(val_b), "held-out tokens, articles": len(val_a),
               "chat rows": len(rows), "chat tokens": int((rows != 0).sum()), "chat loss tokens": int((rows >= LOSS).sum()),
               "held-out books": [b[0] + ", " + b[1] for b in held_books], "held-out articles": len(held_articles),
               "held-out chats": len(held), "bytes a token": sum(len(b[2].encode()) for b in held_books) / len(val_b)}


def encoder_data(out, wp, books, held_books, articles, held_articles, pairs, rng, report, book_share=0.25):
    ids, doc, titles = [], [], []
    n = 0
    for kind, docs in (("article", articles), ("book", rng.sample([b[2] for b in books], int(len(books) * book_share)))):
        for d in docs:
            p = passages_of(d, wp)
            if kind == "article" and len(p) > 1 and 8 < len(d.split("\n")[0]) < 120:
                titles.append((d.split("\n")[0], len(ids) + 1, len(p) - 1))
            ids += [i for _, i in p]
            doc += [n] * len(p)
            n += 1
    flat, off = ragged(ids)
    t_flat, t_off = ragged([wp.encode(t, add_special_tokens=False).ids[:62] for t, _, _ in titles])
    arrays = {"p_flat": flat, "p_off": off, "p_doc": np.array(doc, np.int32), "t_flat": t_flat, "t_off": t_off,
              "t_first": np.array([[i, c] for _, i, c in titles], np.int32)}
    # pairs of the corpus, one group a type; key: a number for each distinct label, else for each distinct text
    by = collections.defaultdict(list)
    for p in pairs:
        by[p["type"]].append(p)
    names, held = sorted(by), []
    for k, name in enumerate(names):
        group = by[name]
        rng.shuffle(group)
        cut = int(len(group) * HELD_PAIRS)
        held += group[:cut]
        group = group[cut:]
        number = {}
        num = lambda s: number.setdefault(s, len(number))
        arrays[f"k{k}_key"] = np.array([[num(p.get("label") or p["a"].lower()), num(p.get("label") or p["b"].lower())]
                                        for p in group], np.int32)
        for side in "ab":
            enc = wp.encode_batch([p[side] for p in group], add_special_tokens=False)
            arrays[f"k{k}_{side}"], arrays[f"k{k}_{side}off"] = ragged([e.ids[:62] for e in enc])
    arrays["names"] = np.array(names)
    # measuring: neighbouring passages of held-out text, and held-out pairs
    near = []
    for docs in ([b[2] for b in held_books], held_articles):
        cand = []
        for d in docs:
            p = [x for x in passages_of(d, wp) if len(x[1]) >= 24]
            cand += [(p[i][0], p[i + 1][0]) for i in range(0, len(p) - 1, 3)]
        near += rng.sample(cand, min(500, len(cand)))
    (out / "encoder_heldout.json").write_text(json.dumps({"neighbours": near, "pairs": held}))
    for name, texts in (("near", near), ("held", [(p["a"], p["b"]) for p in held])):
        for s in (0, 1):
            enc = wp.encode_batch([t[s] for t in texts], add_special_tokens=False)
            arrays[f"{name}_{'ab'[s]}"], arrays[f"{name}_{'ab'[s]}off"] = ragged([e.ids[:126] for e in enc])
    save(out / "encoder.npz.xz", **arrays)
    report |= {"passages": len(ids), "passage tokens": len(flat), "titles": len(titles), "pairs held out": len(held),
               "neighbours held out": len(near), "pairs": {n: len(by[n]) for n in names}}


def main(corpus, out):
    corpus, out = Path(corpus), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    rng, report, stat = random.Random(SEED), {}, collections.Counter()
    books, held_books, articles, held_articles = load_docs(corpus, rng, stat)
    raw_chat, raw_pairs = read_xz(corpus / "chat.jsonl.xz"), read_xz(corpus / "pairs.jsonl.xz")
    chat = [json.loads(x) for x in raw_chat.splitlines()]
    stat["chats"] = len(chat)
    chat = [r for r in chat if good_chat(r)]
    stat["chats kept"] = len(chat)
    for r in chat:
        r["held"] = rng.random() < HELD_CHAT
    # pairs made from the held-out articles must not be trained on
    held_text = "\n".join(held_articles)
    pairs = [p for p in map(json.loads, raw_pairs.splitlines()) if is_clean(p["a"] + " " + p["b"])]
    pairs = [p for p in pairs if "GSA" not in p["source"] and "18F" not in p["source"] and "python" not in p["source"]
             or p["b"][:60] not in held_text]
    stat["pairs kept"] = len(pairs)
    text = [b[2] for b in books] + articles + [r["instruction"] + "\n" + r["response"] for r in chat if not r["held"]]
    bpe, wp = train_vocabularies(out, text)
    decoder_data(out, bpe, books, held_books, articles, held_articles, chat, rng, report)
    encoder_data(out, wp, books, held_books, articles, held_articles, pairs, rng, report)
    report["cleaning"] = dict(stat)
    (out / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:3])
