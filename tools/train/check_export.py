"""check_export.py - the exported files compute what the trainers computed.

Run:     python tools/train/check_export.py RESULTS_DIR decoder FILE.gguf  [largest mean difference of logits]
         python tools/train/check_export.py RESULTS_DIR encoder FILE.gguf WORDPIECE.json [least cosine]
Needs:   numpy, build/impetus; for the encoder tokenizers.
Prints:  one line of JSON; exit status 1 when a bound is broken.
"""
import json
import subprocess
import sys

import numpy as np


def decoder(results, path, bound=0.01):
    z = np.load(f"{results}/decoder_logits.npz")
    ids, want = z["ids"].reshape(-1), z["logits"]
    cmd = ["build/impetus", "logits", path, "--ids", ",".join(map(str, ids)), "--json"]
    got = np.array(json.loads(subprocess.run(cmd, capture_output=True, check=True, text=True).stdout)["logits"])
    log_p = lambda x: x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
    a, b = log_p(want.astype(np.float64)), log_p(got)
    out = {"file": path, "positions": len(ids), "mean difference": float(np.abs(a - b).mean()),
           "largest difference": float(np.abs(want - got).max()), "kl": float((np.exp(a) * (a - b)).sum(-1).mean()),
           "top1": float((a.argmax(-1) == b.argmax(-1)).mean())}
    return out, out["mean difference"] <= float(bound)


def encoder(results, path, vocabulary, bound=0.999):
    from tokenizers import Tokenizer
    z, tok = np.load(f"{results}/encoder_check.npz"), Tokenizer.from_file(vocabulary)
    cos = []
    for ids, want in zip(z["ids"], z["vectors"]):
        text = tok.decode([int(i) for i in ids if i > 4])
        assert tok.encode(text, add_special_tokens=False).ids == [int(i) for i in ids if i > 4], "the text does not give its ids back"
        got = json.loads(subprocess.run(["build/impetus", "embed", path, text, "--json"], capture_output=True, check=True,
                                        text=True).stdout)
        got = np.array(got if isinstance(got, list) else got.get("embedding", got.get("embeddings")), np.float64).reshape(-1)
        cos.append(float(got @ want / np.linalg.norm(got) / np.linalg.norm(want)))
    return {"file": path, "texts": len(cos), "least cosine": min(cos)}, min(cos) >= float(bound)


if __name__ == "__main__":
    result, good = {"decoder": decoder, "encoder": encoder}[sys.argv[2]](sys.argv[1], *sys.argv[3:])
    print(json.dumps(result))
    sys.exit(not good)
