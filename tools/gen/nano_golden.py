"""nano_golden.py - tests/data/nano_golden.h: what the trainers of the bundled models computed.

Run:     python tools/gen/nano_golden.py RESULTS_DIR > tests/data/nano_golden.h
Needs:   numpy, and what train_decoder.py and train_encoder.py wrote (decoder_logits.npz, encoder_check.npz).
"""
import sys

import numpy as np

N, TOP = 24, 8


def row(values, form):
    text, line = [], "   "
    for v in values:
        item = " " + format(v, form) + ","
        if len(line) + len(item) > 108:
            text.append(line)
            line = "   "
        line += item
    return "\n".join(text + [line])


def main(results):
    z, e = np.load(f"{results}/decoder_logits.npz"), np.load(f"{results}/encoder_check.npz")
    ids, logits = z["ids"].reshape(-1)[:N], z["logits"][:N].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    best = np.argsort(-log_p, -1)[:, :TOP]
    words = e["ids"][0]
    words = words[words != 0]
    print("/* Made by tools/gen/nano_golden.py from what the trainers computed: ids of held-out text, the likeliest tokens\n"
          " * after each with their log probabilities, and the encoder's vector of one passage. */")
    print("/* clang-format off */")
    print(f"enum {{ N_NANO = {N}, N_NANO_TOP = {TOP}, N_NANO_WORD = {len(words)}, N_NANO_DIM = {e['vectors'].shape[1]} }};")
    print("static const int32_t nano_ids[N_NANO] = {\n" + row(ids, "d") + "\n};")
    print("static const int32_t nano_best[N_NANO * N_NANO_TOP] = {\n" + row(best.reshape(-1), "d") + "\n};")
    log_p = np.take_along_axis(log_p, best, -1).reshape(-1)
    print("static const float nano_log_p[N_NANO * N_NANO_TOP] = {\n" + row(log_p, ".4f") + "\n};")
    print("static const int32_t nano_words[N_NANO_WORD] = {\n" + row(words, "d") + "\n};")
    print("static const float nano_vector[N_NANO_DIM] = {\n" + row(e["vectors"][0], ".6f") + "\n};")


if __name__ == "__main__":
    main(sys.argv[1])
