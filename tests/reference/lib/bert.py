"""BERT sentence vectors in numpy, written from the model's definition (Devlin et al. 2018; Reimers & Gurevych 2019).

Independent of the program under test: `tokenizers` splits the text, `safetensors` reads the weights, numpy computes in
float64. One text at a time, so there is no padding and no mask.
"""
import json
import math
import pathlib

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

_erf = np.vectorize(math.erf, otypes=[np.float64])


def layer_norm(x, w, b, eps):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * w + b


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Bert:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.cfg = json.loads((folder / "config.json").read_text())
        self.max_tok = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
        self.w = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items() if v.dtype.kind == "f"}
        self.tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tok.no_padding()
        self.tok.enable_truncation(self.max_tok)

    def ids(self, text):
        return self.tok.encode(text).ids

    def dense(self, name, x):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def norm(self, name, x):
        return layer_norm(x, self.w[name + ".weight"], self.w[name + ".bias"], self.cfg["layer_norm_eps"])

    def hidden(self, ids):
        e = "embeddings."
        x = self.w[e + "word_embeddings.weight"][ids] + self.w[e + "position_embeddings.weight"][:len(ids)]
        x = self.norm(e + "LayerNorm", x + self.w[e + "token_type_embeddings.weight"][0])
        n_head = self.cfg["num_attention_heads"]
        for i in range(self.cfg["num_hidden_layers"]):
            p = f"encoder.layer.{i}."
            q, k, v = (self.dense(p + "attention.self." + n, x).reshape(len(ids), n_head, -1).transpose(1, 0, 2)
                       for n in ("query", "key", "value"))
            a = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])) @ v
            a = a.transpose(1, 0, 2).reshape(len(ids), -1)
            x = self.norm(p + "attention.output.LayerNorm", x + self.dense(p + "attention.output.dense", a))
            h = self.dense(p + "intermediate.dense", x)
            h = 0.5 * h * (1 + _erf(h / math.sqrt(2)))
            x = self.norm(p + "output.LayerNorm", x + self.dense(p + "output.dense", h))
        return x

    def embed(self, text):
        v = self.hidden(self.ids(text)).mean(0)
        return v / np.linalg.norm(v)
