"""encoder_gguf.py - impetus-nano-embed as GGUF, from what train_encoder.py wrote.

Run:     python tools/train/export/encoder_gguf.py RESULTS_DIR WORDPIECE.json OUT.gguf [--f16]
Needs:   numpy, gguf.
Layout:  matrices Q8_0 (--f16: f16); biases, norms, positions and token types f32. Tokens carry the mark U+2581
         where a word begins and nothing where it goes on, as GGUF files of BERT models have them.
"""
import sys
from pathlib import Path

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gguf_common import TYPES, finish, vocabulary, writer  # noqa: E402

Q = gguf.GGMLQuantizationType
NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "ln1": "attn_output_norm", "up": "ffn_up",
         "down": "ffn_down", "ln2": "layer_output_norm"}


def main(results, wordpiece, out, f16=False):
    p = {}
    for part in (0, 1):
        p |= dict(np.load(f"{results}/encoder_{part}.npz"))
    layers, dim = p["q_b"].shape
    w = writer(out, "bert", "impetus-nano-embed", gguf.LlamaFileType.MOSTLY_F16 if f16 else gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_block_count(layers)
    w.add_context_length(len(p["pos"]))
    w.add_embedding_length(dim)
    w.add_feed_forward_length(p["up_b"].shape[1])
    w.add_head_count(dim // 32)
    w.add_layer_norm_eps(1e-12)
    w.add_causal_attention(False)
    w.add_pooling_type(gguf.PoolingType.MEAN)
    _, tokens = vocabulary(wordpiece)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokens[:5] == special
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("bert")
    w.add_tokenizer_pre("default")
    w.add_token_list([t if i < 5 else t[2:] if t.startswith("##") else "\u2581" + t for i, t in enumerate(tokens)])
    w.add_token_types([TYPES["unknown" if t == "[UNK]" else "control" if t in special else "normal"] for t in tokens])
    w.add_token_type_count(2)
    for key, i in (("padding", 0), ("unknown", 1), ("cls", 2), ("bos", 2), ("seperator", 3), ("eos", 3), ("mask", 4)):
        w.add_uint32(f"tokenizer.ggml.{key}_token_id", i)

    def matrix(name, x):
        x = x.astype(np.float32)
        w.add_tensor(name, x.astype(np.float16) if f16 else gguf.quantize(x, Q.Q8_0), raw_dtype=Q.F16 if f16 else Q.Q8_0)

    def plain(name, x):
        w.add_tensor(name, x.astype(np.float32))

    matrix("token_embd.weight", p["word"])
    plain("position_embd.weight", p["pos"])
    plain("token_types.weight", p["type"])
    plain("token_embd_norm.weight", p["ln0_w"])
    plain("token_embd_norm.bias", p["ln0_b"])
    for k, name in NAMES.items():
        for i in range(layers):
            (plain if k.startswith("ln") else matrix)(f"blk.{i}.{name}.weight", p[k + "_w"][i])
            plain(f"blk.{i}.{name}.bias", p[k + "_b"][i])
    finish(w)


if __name__ == "__main__":
    main(*sys.argv[1:4], f16="--f16" in sys.argv)
