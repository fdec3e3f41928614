"""Token ids through llama.cpp (build/peer, made by `make peers`)."""
import subprocess

import numpy as np

from impetus import BUILD

DIR = BUILD / "peer"
EVAL = DIR / "peer_eval"


def evaluate(gguf, kind, rows, context=512, trained=0):
    """kind: logits or embed; rows: lists of ids. Returns the f32 values of all rows, flat.

    trained: the context that longrope takes for the original one, 0: the file's."""
    text = "".join(" ".join(map(str, r)) + "\n" for r in rows).encode()
    r = subprocess.run([str(EVAL), str(gguf), kind, str(context), str(trained)], input=text, capture_output=True, timeout=600)
    if r.returncode:
        raise RuntimeError(r.stderr.decode()[-300:])
    return np.frombuffer(r.stdout, np.float32)
