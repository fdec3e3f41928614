#!/usr/bin/env python3
"""Convert a BERT sentence model (Hugging Face folder) to GGUF with llama.cpp's names.

    minilm_gguf.py FOLDER OUT.gguf f32|f16|q8_0

Follows what llama.cpp's converter writes for such models (tensor names, tokenizer.ggml.* keys, tokens in "phantom
space" form: a word begins with U+2581 and a continuation has lost its ##). q8_0: the matrices; position and type
embeddings, norms and biases stay f32, as its quantiser leaves them.
"""
import json
import pathlib
import sys

import gguf
import numpy as np
from gguf.quants import quantize
from safetensors.numpy import load_file

KIND = {"f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
        "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
        "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0)}
LAYER = {"attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
         "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
         "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm"}
TOP = {"embeddings.word_embeddings.weight": "token_embd.weight", "embeddings.position_embeddings.weight": "position_embd.weight",
       "embeddings.token_type_embeddings.weight": "token_types.weight", "embeddings.LayerNorm.weight": "token_embd_norm.weight",
       "embeddings.LayerNorm.bias": "token_embd_norm.bias"}


def gguf_name(name):
    if name in TOP:
        return TOP[name]
    if name.startswith("encoder.layer."):
        _, _, i, rest = name.split(".", 3)
        part, kind = rest.rsplit(".", 1)
        return f"blk.{i}.{LAYER[part]}.{kind}"
    if name.startswith("pooler.") or name == "embeddings.position_ids":
        return None  # not used for sentence vectors
    raise SystemExit(f"unknown tensor {name}")


def add_tokenizer(w, folder, cfg):
    tok = json.loads((folder / "tokenizer.json").read_text())
    vocab = sorted(tok["model"]["vocab"], key=tok["model"]["vocab"].get)
    special = {t["content"] for t in tok["added_tokens"] if t["special"]}
    assert len(vocab) == cfg["vocab_size"]
    w.add_token_type_count(cfg["type_vocab_size"])
    w.add_tokenizer_model("bert")
    w.add_tokenizer_pre("bert-bge")
    w.add_token_list([t if t in special else t[2:] if t.startswith("##") else "\u2581" + t for t in vocab])
    w.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in vocab])
    ids = tok["model"]["vocab"]
    w.add_bos_token_id(ids["[CLS]"])
    w.add_eos_token_id(ids["[SEP]"])
    w.add_unk_token_id(ids["[UNK]"])
    w.add_sep_token_id(ids["[SEP]"])
    w.add_pad_token_id(ids["[PAD]"])
    w.add_mask_token_id(ids["[MASK]"])
    w.add_add_bos_token(True)
    w.add_add_eos_token(True)


def convert(folder, out, kind):
    cfg = json.loads((folder / "config.json").read_text())
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    qtype, ftype = KIND[kind]
    w = gguf.GGUFWriter(out, "bert")
    w.add_name(folder.name)
    w.add_file_type(ftype)
    w.add_block_count(cfg["num_hidden_layers"])
    w.add_context_length(cfg["max_position_embeddings"])
    w.add_embedding_length(cfg["hidden_size"])
    w.add_feed_forward_length(cfg["intermediate_size"])
    w.add_head_count(cfg["num_attention_heads"])
    w.add_layer_norm_eps(cfg["layer_norm_eps"])
    w.add_causal_attention(False)
    w.add_pooling_type(gguf.PoolingType.CLS if pooling["pooling_mode_cls_token"] else gguf.PoolingType.MEAN)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(w, folder, cfg)
    for name, v in load_file(folder / "model.safetensors").items():
        new = gguf_name(name)
        if new is None:
            continue
        v = v.astype(np.float32)
        if v.ndim == 2 and new not in ("position_embd.weight", "token_types.weight") and kind != "f32":
            w.add_tensor(new, quantize(v, qtype), raw_dtype=qtype)
        else:
            w.add_tensor(new, v)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[3] not in KIND:
        sys.exit(__doc__)
    convert(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3])
