"""decoder_gguf.py - impetus-nano as GGUF, from what train_decoder.py wrote.

Run:     python tools/train/export/decoder_gguf.py RESULTS_DIR BPE.json OUT.gguf [--f16]
Needs:   numpy, gguf.
Idea:    the matrices were trained on the Q4_K grid, so their codes are packed as they are: nothing is rounded
         again. Embeddings (also the output matrix) become Q8_0. --f16 writes the same values as f16.
"""
import sys
from pathlib import Path

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from kquant import pack_q4k  # noqa: E402
from gguf_common import TYPES, finish, vocabulary, writer  # noqa: E402

Q = gguf.GGMLQuantizationType
NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
         "down": "ffn_down"}


def codes(z, kind):
    """q (n, 8, 32), sc (n, 8), m (n, 8), d (n, 1), dmin (n, 1) of all layers of a kind."""
    nib = z[kind + "_q"]
    q = np.stack([nib & 15, nib >> 4], -1).reshape(-1, 8, 32)
    return q, *(z[f"{kind}_{s}"].reshape(len(q), -1) for s in ("sc", "m", "d", "dmin"))


def values(q, sc, m, d, dmin):
    """The weights that the codes stand for, f32 (n, 256)."""
    step, base = d.astype(np.float32) * sc, dmin.astype(np.float32) * m
    return (step[:, :, None] * q - base[:, :, None]).reshape(len(q), 256)


def main(results, bpe, out, f16=False):
    z, r = np.load(f"{results}/decoder_q4.npz"), np.load(f"{results}/decoder_f16.npz")
    layers, dim = r["norm1"].shape
    ffn, kv_dim = z["gate_shape"][1], z["k_shape"][1]
    heads = dim // 64
    w = writer(out, "llama", "impetus-nano", gguf.LlamaFileType.MOSTLY_F16 if f16 else gguf.LlamaFileType.MOSTLY_Q4_K_S)
    w.add_block_count(layers)
    w.add_context_length(1024)
    w.add_embedding_length(dim)
    w.add_feed_forward_length(int(ffn))
    w.add_head_count(heads)
    w.add_head_count_kv(int(kv_dim) // 64)
    w.add_rope_dimension_count(64)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-5)
    j, tokens = vocabulary(bpe)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    kind = {t: TYPES["user" if "tool_call" in t else "control"] for t in (a["content"] for a in j["added_tokens"])}
    w.add_token_types([kind.get(t, TYPES["normal"]) for t in tokens])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in j["model"]["merges"]])
    w.add_bos_token_id(0)
    w.add_eos_token_id(2)
    w.add_pad_token_id(3)
    w.add_add_bos_token(False)
    w.add_chat_template((Path(__file__).parent / "chatml_tools.jinja").read_text())
    emb = r["emb"]
    w.add_tensor("token_embd.weight", emb if f16 else gguf.quantize(emb.astype(np.float32), Q.Q8_0),
                 raw_dtype=Q.F16 if f16 else Q.Q8_0)
    for k, name in NAMES.items():
        c = codes(z, k)
        _, rows, cols = z[k + "_shape"]
        n = rows * cols // 256
        for i in range(layers):
            mine = [x[i * n:(i + 1) * n] for x in c]
            if f16:
                w.add_tensor(f"blk.{i}.{name}.weight", values(*mine).reshape(rows, cols).astype(np.float16))
            else:
                w.add_tensor(f"blk.{i}.{name}.weight", pack_q4k(*mine).reshape(rows, cols // 256 * 144), raw_dtype=Q.Q4_K)
    for i in range(layers):
        w.add_tensor(f"blk.{i}.attn_norm.weight", r["norm1"][i])
        w.add_tensor(f"blk.{i}.ffn_norm.weight", r["norm2"][i])
    w.add_tensor("output_norm.weight", r["norm"])
    finish(w)


if __name__ == "__main__":
    main(*sys.argv[1:4], f16="--f16" in sys.argv)
