#!/usr/bin/env python3
"""Choose the 200 lines of tests/data/sentences.txt from a text corpus, and 1200 others for tests/data/calibration.txt.

    sentences.py CORPUS OUT [CALIBRATION]      CORPUS/pairs.jsonl.xz and CORPUS/articles.txt.xz

Only texts that their authors gave to the public domain are taken: pages of US government sites (digitalgov.gov, 18F,
plainlanguage.gov, CC0 or works of the US government) and the Python developer's guide (CC0). Lengths are spread from
one word to a paragraph of about 240 BERT tokens, and lines with letters outside ASCII are preferred for a part.
"""
import json
import lzma
import pathlib
import random
import sys

FREE = ("GSA/digitalgov.gov", "GSA/plainlanguage.gov", "18F/18f.gsa.gov", "18F/handbook", "18F/guides", "18F/methods", "python/devguide")
# (fewest words, most words, how many)
SPREAD = ((1, 2, 10), (3, 6, 30), (7, 14, 50), (15, 30, 50), (31, 60, 30), (61, 100, 14), (101, 150, 6))
N_FOREIGN = 10


def main():
    corpus, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    lines = set()
    with lzma.open(corpus / "pairs.jsonl.xz", "rt") as f:
        for line in f:
            r = json.loads(line)
            if r["source"].split(":")[0] in FREE:
                lines.update((r["a"], r["b"]))
    with lzma.open(corpus / "articles.txt.xz", "rt") as f:
        for line in f:
            lines.add(line)
    lines = {" ".join(t.split()) for t in lines}
    # no tables, code, addresses, lists of links
    lines = sorted(t for t in lines if t and not any(c in t for c in "|<>{}[]\\@=") and "http" not in t)
    rng = random.Random(1)
    chosen = rng.sample([t for t in lines if not t.isascii() and 4 <= len(t.split()) <= 60], N_FOREIGN)
    for low, high, n in SPREAD:
        chosen += rng.sample([t for t in lines if low <= len(t.split()) <= high and len(t) < 8 * high + 12], n)
    assert len(set(chosen)) == 200, len(set(chosen))
    out.write_text("\n".join(chosen) + "\n")
    if len(sys.argv) > 3:
        rest = [t for t in lines if t not in set(chosen) and 3 <= len(t.split()) <= 60]
        random.Random(2).shuffle(rest)
        pathlib.Path(sys.argv[3]).write_text("\n".join(rest[:1200]) + "\n")


main()
