#!/usr/bin/env python3
"""Make the tiny random models of tests/data/models and their golden outputs.

    models.py OUT [--converter DIR] [--only NAME,...]

Needs torch, transformers, safetensors, numpy, sentencepiece; no network. OUT/NAME/ gets config.json, the
tokenizer, model.safetensors and golden.safetensors; OUT/NAME.gguf is made by llama.cpp's convert_hf_to_gguf.py,
found in DIR (the root of a llama.cpp source tree). A model that fails is reported and the rest go on.

Goldens are computed by transformers in float32 on the CPU with eager attention. All weights are representable in
bfloat16, so that a bf16 copy of a folder has the same values, and the files compress.

golden.safetensors of a decoder:  ids i32 [T], positions i32 [P], logits f32 [P][vocab]
    *_short: the same for a prompt within the original context (longrope chooses its table by length)
    logits_gguf: what the GGUF file stands for, where GGUF cannot carry the whole configuration
    logits_full: without the sliding window, for the comparison with engines that leave it out (tests/reference)
golden.safetensors of an encoder: ids i32 [n_seq][L] padded with -1, embedding f32 [n_seq][dim]
"""
import argparse
import json
import pathlib
import shutil
import sys
import tempfile
import traceback
import zlib

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

LENGTHS = (1, 2, 17, 100)
N_TOKEN = 201
POSITIONS = [0, 1, 127, 200]
N_BPE = 280  # byte-level BPE: ids 0..279 are text, specials follow

# ---- tokenizers -----------------------------------------------------------------------------------------------

MERGES = ["\u0120 t", "h e", "\u0120t he", "i n", "\u0120 a", "e r", "o n", "\u0120 s", "r e", "\u0120 w", "a t", "e n", "\u0120 o",
          "o u", "\u0120 b", "i t", "in g", "\u0120a n", "\u0120an d", "e s", "\u0120 h", "l l", "o r", "\u0120 c"]


def byte_alphabet():
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    out, extra = {}, 0
    for b in range(256):
        if b in keep:
            out[b] = chr(b)
        else:
            out[b] = chr(256 + extra)
            extra += 1
    return [out[b] for b in range(256)]


def added(tokens, first):
    return [{"id": first + i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True} for i, t in enumerate(tokens)]


def template(pre, post, ids):
    def piece(t):
        return {"SpecialToken": {"id": t, "type_id": 0}}
    seq = {"Sequence": {"id": "A", "type_id": 0}}
    seq_b = {"Sequence": {"id": "B", "type_id": 1}}
    one = [piece(t) for t in pre] + [seq] + [piece(t) for t in post]
    pair = one + ([seq_b] + [{"SpecialToken": {"id": t, "type_id": 1}} for t in post] if post else [piece(t) for t in pre] + [seq_b])
    return {"type": "TemplateProcessing", "single": one, "pair": pair,
            "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in pre + post}}


def bpe_tokenizer(specials, pre=(), post=()):
    vocab = {t: i for i, t in enumerate(byte_alphabet())}
    for m in MERGES:
        vocab["".join(m.split(" "))] = len(vocab)
    assert len(vocab) == N_BPE
    ids = {t: N_BPE + i for i, t in enumerate(specials)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added(specials, N_BPE), "normalizer": None,
            "pre_tokenizer": level, "post_processor": template(list(pre), list(post), ids) if pre or post else level,
            "decoder": level, "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                                        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                                        "ignore_merges": False, "vocab": vocab, "merges": MERGES}}


WORDS = ("the of and to in is that it was for on are as with his they at be this have from or one had by not but what all were "
         "we when your can said there use an each which she do how their if will up other about out many then them these so some "
         "her would make like him into time has look two more write go see no way could people my than first water been call who "
         "oil its now find").split()


def wordpiece_tokenizer(size):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab += list("!\"#$%&'()*+,-./0123456789:;<=>?@[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~")
    vocab += ["##" + c for c in "abcdefghijklmnopqrstuvwxyz"] + ["##ing", "##ed", "##er", "##ly"]
    vocab += WORDS[:size - len(vocab)]
    assert len(vocab) == size and len(set(vocab)) == size, len(vocab)
    ids = {t: i for i, t in enumerate(vocab)}
    tok = {"version": "1.0", "truncation": None, "padding": None,
           "added_tokens": added(vocab[:5], 0),
           "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                          "lowercase": True},
           "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": template(["[CLS]"], ["[SEP]"], ids),
           "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
           "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                     "max_input_chars_per_word": 100, "vocab": ids}}
    return tok, vocab


def unigram_files(folder, size):
    """A SentencePiece unigram model trained on a fixed text, and the tokenizer.json that XLM-R makes of it."""
    import sentencepiece as spm
    text = folder / "corpus.txt"
    text.write_text("\n".join(" ".join(WORDS[i:i + 9]) for i in range(len(WORDS) - 9)) + "\n")
    spm.SentencePieceTrainer.train(input=str(text), model_prefix=str(folder / "spm"), vocab_size=size - 2, model_type="unigram",
                                   normalization_rule_name="identity", hard_vocab_limit=False, character_coverage=1.0,
                                   num_threads=1, minloglevel=1)
    text.unlink()
    (folder / "spm.vocab").unlink()
    (folder / "spm.model").rename(folder / "sentencepiece.bpe.model")
    sp = spm.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    vocab = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]
    vocab += [[sp.id_to_piece(i), float(sp.get_score(i))] for i in range(3, sp.vocab_size())]
    while len(vocab) < size - 1:
        vocab.append([f"\u2581unused{len(vocab)}", -30.0])
    vocab.append(["<mask>", 0.0])
    ids = {t[0]: i for i, t in enumerate(vocab)}
    meta = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    special = [a for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>") for a in added([t], ids[t])]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, meta]},
            "post_processor": template(["<s>"], ["</s>"], ids), "decoder": meta,
            "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False}}


# ---- the models -----------------------------------------------------------------------------------------------

LLAMA2 = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "<extra_0>", "<extra_1>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|reserved_0|>",
          "<|reserved_1|>", "<|reserved_2|>"]
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<extra_0>", "<extra_1>", "<extra_2>"]
GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<extra_0>", "<extra_1>"]
PHI3 = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>"]
ROBERTA = ["<mask>", "<extra_0>", "<extra_1>", "<extra_2>"]
MODERN = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "<extra_0>", "<extra_1>", "<extra_2>"]


def decoder(arch, model_type, specials, bos, eos, **kw):
    cfg = {"architectures": [arch], "model_type": model_type, "bos_token_id": N_BPE + specials.index(bos) if bos else None,
           "eos_token_id": N_BPE + specials.index(eos), "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96,
           "initializer_range": 0.02, "max_position_embeddings": 512, "num_attention_heads": 4, "num_hidden_layers": 2,
           "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
           "torch_dtype": "float32", "use_cache": True, "vocab_size": N_BPE + len(specials)}
    cfg.update(kw)
    return cfg


SMALL = dict(hidden_size=32, intermediate_size=64, head_dim=16)


def llama(**kw):
    kw.setdefault("attention_bias", False)
    kw.setdefault("mlp_bias", False)
    return decoder("LlamaForCausalLM", "llama", LLAMA2, "<s>", "</s>", **kw)


def llama3(**kw):
    c = decoder("LlamaForCausalLM", "llama", LLAMA3, "<|begin_of_text|>", "<|end_of_text|>", attention_bias=False, mlp_bias=False, **kw)
    c["eos_token_id"] = [c["eos_token_id"], N_BPE + LLAMA3.index("<|eot_id|>")]
    return c


def qwen(arch, model_type, **kw):
    return decoder(arch, model_type, CHATML, None, "<|im_end|>", **{**dict(rms_norm_eps=1e-6, rope_theta=1000000.0,
                   use_sliding_window=False, attention_dropout=0.0), **kw})


def phi3(**kw):
    return decoder("Phi3ForCausalLM", "phi3", PHI3, "<s>", "<|endoftext|>", intermediate_size=64, attention_bias=False,
                   pad_token_id=N_BPE + 3, original_max_position_embeddings=kw.pop("orig", 512), **kw)


def gemma(arch, model_type, **kw):
    return decoder(arch, model_type, GEMMA, "<bos>", "<eos>", **{**SMALL, **dict(hidden_activation="gelu_pytorch_tanh",
                   hidden_act="gelu_pytorch_tanh", pad_token_id=N_BPE, rms_norm_eps=1e-6, tie_word_embeddings=True,
                   attention_bias=False, sliding_window=16), **kw})


def bert(**kw):
    cfg = {"architectures": ["BertModel"], "model_type": "bert", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
           "hidden_dropout_prob": 0.1, "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 128,
           "layer_norm_eps": 1e-12, "max_position_embeddings": 128, "num_attention_heads": 4, "num_hidden_layers": 2,
           "pad_token_id": 0, "position_embedding_type": "absolute", "torch_dtype": "float32", "type_vocab_size": 2,
           "use_cache": True, "vocab_size": 160}
    cfg.update(kw)
    return cfg


def roberta(arch, model_type, **kw):
    return bert(architectures=[arch], model_type=model_type, max_position_embeddings=130, type_vocab_size=1, pad_token_id=1,
                bos_token_id=0, eos_token_id=2, layer_norm_eps=1e-5, hidden_size=32, intermediate_size=64, **kw)


NOMIC = {"activation_function": "swiglu", "architectures": ["NomicBertModel"], "attn_pdrop": 0.0, "bos_token_id": None,
         "causal": False, "dense_seq_output": True, "embd_pdrop": 0.0, "eos_token_id": None, "fused_bias_fc": True,
         "fused_dropout_add_ln": True, "initializer_range": 0.02, "layer_norm_epsilon": 1e-12, "max_trained_positions": 2048,
         "mlp_fc1_bias": False, "mlp_fc2_bias": False, "model_type": "nomic_bert", "n_embd": 64, "n_head": 4, "n_inner": 96,
         "n_layer": 2, "n_positions": 8192, "pad_vocab_size_multiple": 64, "parallel_block": False,
         "parallel_block_tied_norm": False, "prenorm": False, "qkv_proj_bias": False, "reorder_and_upcast_attn": False,
         "resid_pdrop": 0.0, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
         "rotary_emb_scale_base": None, "rotary_scaling_factor": None, "scale_attn_by_inverse_layer_idx": False,
         "scale_attn_weights": True, "torch_dtype": "float32", "type_vocab_size": 2, "use_cache": True, "use_flash_attn": True,
         "use_rms_norm": False, "use_xentropy": True, "vocab_size": 160}

MODERNBERT = {"architectures": ["ModernBertModel"], "model_type": "modernbert", "attention_bias": False, "attention_dropout": 0.0,
              "bos_token_id": N_BPE + 1, "classifier_pooling": "mean", "cls_token_id": N_BPE + 1, "decoder_bias": True,
              "embedding_dropout": 0.0, "eos_token_id": N_BPE + 2, "global_attn_every_n_layers": 3,
              "global_rope_theta": 160000.0, "hidden_activation": "gelu", "hidden_size": 32, "initializer_cutoff_factor": 2.0,
              "initializer_range": 0.02, "intermediate_size": 64, "layer_norm_eps": 1e-05, "local_attention": 16,
              "local_rope_theta": 10000.0, "max_position_embeddings": 512, "mlp_bias": False, "mlp_dropout": 0.0,
              "norm_bias": False, "norm_eps": 1e-05, "num_attention_heads": 2, "num_hidden_layers": 5, "pad_token_id": N_BPE + 3,
              "position_embedding_type": "absolute", "sep_token_id": N_BPE + 2, "torch_dtype": "float32", "vocab_size": N_BPE + 8}

SHORT8 = [1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.45, 1.6]
LONG8 = [1.0, 1.3, 1.9, 2.6, 3.7, 4.9, 6.3, 8.1]

# name -> (config.json, special tokens, extra). Keys of extra:
#   hf: overrides for the config object that makes the golden; gguf: overrides that describe what the GGUF file keeps;
#   full: the model without its sliding window, for engines that leave it out
#   pool, normalize: an encoder;  shards: files of model.safetensors;  short: a second golden within the original context
MODELS = {
    "llama": (llama(), LLAMA2, {}),
    "llama3-rope": (llama3(**SMALL, tie_word_embeddings=True, rope_theta=10000.0, rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}), LLAMA3, {}),
    # this one has its RoPE description in the newer key rope_parameters
    "llama-linear": ({k: v for k, v in llama(**SMALL, rope_parameters={
        "rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}).items() if k != "rope_theta"}, LLAMA2, {}),
    "llama-yarn": (llama(**SMALL, max_position_embeddings=256, rope_scaling={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}), LLAMA2, {}),
    "smollm": (llama(hidden_size=48, intermediate_size=96, num_attention_heads=3, num_key_value_heads=1,
                     tie_word_embeddings=True, rope_theta=100000.0), LLAMA2, {}),
    "mistral": (decoder("MistralForCausalLM", "mistral", LLAMA2, "<s>", "</s>", **SMALL, sliding_window=16,
                        attention_dropout=0.0), LLAMA2, {"gguf": {"sliding_window": None}}),
    "mixtral": (decoder("MixtralForCausalLM", "mixtral", LLAMA2, "<s>", "</s>", hidden_size=32, intermediate_size=32,
                        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
                        sliding_window=None, output_router_logits=False, router_aux_loss_coef=0.02,
                        rope_theta=1000000.0), LLAMA2, {}),
    "qwen2": (qwen("Qwen2ForCausalLM", "qwen2", intermediate_size=64, max_window_layers=2, sliding_window=512),
              CHATML, {"shards": 2}),
    "qwen3": (qwen("Qwen3ForCausalLM", "qwen3", hidden_size=32, intermediate_size=64, head_dim=32, attention_bias=False,
                   max_window_layers=2, sliding_window=None, tie_word_embeddings=True), CHATML, {}),
    "qwen3-moe": (qwen("Qwen3MoeForCausalLM", "qwen3_moe", head_dim=16, attention_bias=False, decoder_sparse_step=1,
                       max_window_layers=2, mlp_only_layers=[], moe_intermediate_size=32, norm_topk_prob=True,
                       num_experts=4, num_experts_per_tok=2, output_router_logits=False, router_aux_loss_coef=0.001,
                       sliding_window=None), CHATML, {}),
    "qwen3-embedding": (qwen("Qwen3ForCausalLM", "qwen3", hidden_size=32, intermediate_size=64, head_dim=16,
                             attention_bias=False, max_window_layers=2, sliding_window=None, tie_word_embeddings=True),
                        CHATML, {"pool": "lasttoken", "normalize": True, "class": "Qwen3Model"}),
    "gemma2": (gemma("Gemma2ForCausalLM", "gemma2", num_hidden_layers=4, attn_logit_softcapping=5.0,
                     final_logit_softcapping=10.0, query_pre_attn_scalar=24, cache_implementation="hybrid"), GEMMA,
               {"gguf": {"query_pre_attn_scalar": 16}}),
    "gemma3": (gemma("Gemma3ForCausalLM", "gemma3_text", num_hidden_layers=7, num_key_value_heads=1, rope_theta=1000000.0,
                     rope_local_base_freq=10000.0, sliding_window_pattern=6, query_pre_attn_scalar=16,
                     attn_logit_softcapping=None, final_logit_softcapping=None, cache_implementation="hybrid",
                     rope_scaling={"factor": 4.0, "rope_type": "linear"}), GEMMA, {}),
    "phi3": (phi3(sliding_window=32, rope_scaling=None), PHI3, {"full": {"sliding_window": None}}),
    "phi3-longrope": (phi3(orig=64, max_position_embeddings=256, sliding_window=262144, rope_scaling={
        "type": "longrope", "short_factor": SHORT8, "long_factor": LONG8}), PHI3, {"short": 48}),
    "bert": (bert(), "wordpiece", {"pool": "mean"}),
    "minilm": (bert(hidden_size=64, num_attention_heads=2, num_hidden_layers=3, intermediate_size=64,
                    gradient_checkpointing=False), "wordpiece",
               {"pool": "mean", "normalize": True}),
    "distilbert": ({"activation": "gelu", "architectures": ["DistilBertModel"], "attention_dropout": 0.1, "dim": 64, "dropout": 0.1,
                    "hidden_dim": 128, "initializer_range": 0.02, "max_position_embeddings": 128, "model_type": "distilbert",
                    "n_heads": 4, "n_layers": 2, "pad_token_id": 0, "qa_dropout": 0.1, "seq_classif_dropout": 0.2,
                    "sinusoidal_pos_embds": False, "tie_weights_": True, "torch_dtype": "float32", "vocab_size": 160},
                   "wordpiece", {"pool": "mean"}),
    "roberta": (roberta("RobertaModel", "roberta", vocab_size=N_BPE + 8), "roberta", {"pool": "mean"}),
    "xlm-roberta": (roberta("XLMRobertaModel", "xlm-roberta", vocab_size=96), "unigram", {"pool": "cls", "normalize": True}),
    "nomic-bert": (NOMIC, "wordpiece", {"pool": "mean", "hf": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                   "intermediate_size": 96, "layer_norm_eps": 1e-12, "max_position_embeddings": 8192, "vocab_size": 160,
                   "type_vocab_size": 2, "hidden_act": "silu", "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}}),
    "modernbert": (MODERNBERT, MODERN, {"pool": "cls"}),
}

PRE = {"roberta": "roberta-bpe", "modernbert": "modern-bert"}  # tokenizer.ggml.pre; others gpt-2, WordPiece bert-bge


# ---- files of a folder ----------------------------------------------------------------------------------------

def dump(path, obj):
    path.write_text(json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def write_tokenizer(folder, cfg, kind):
    conf = {"clean_up_tokenization_spaces": False, "model_max_length": cfg.get("max_position_embeddings", 512)}
    if kind == "wordpiece":
        tok, vocab = wordpiece_tokenizer(cfg["vocab_size"])
        (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
        conf.update(tokenizer_class="BertTokenizer", do_lower_case=True, unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]",
                    cls_token="[CLS]", mask_token="[MASK]")
    elif kind == "unigram":
        tok = unigram_files(folder, cfg["vocab_size"])
        conf.update(tokenizer_class="XLMRobertaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                    sep_token="</s>", cls_token="<s>", pad_token="<pad>", mask_token="<mask>")
    elif kind == "roberta":
        tok = bpe_tokenizer(ROBERTA)
        first = ["<s>", "<pad>", "</s>", "<unk>"]  # RoBERTa's specials come first, its mask last
        vocab = {t: i for i, t in enumerate(first)}
        vocab.update({t: i + 4 for t, i in tok["model"]["vocab"].items()})
        tok["model"]["vocab"] = vocab
        tok["added_tokens"] = added(first, 0) + added(ROBERTA, N_BPE + 4)
        tok["post_processor"] = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True,
                                 "add_prefix_space": False}
        conf.update(tokenizer_class="RobertaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>", sep_token="</s>",
                    cls_token="<s>", pad_token="<pad>", mask_token="<mask>", add_prefix_space=False)
    else:
        pre, post = [], []
        conf["tokenizer_class"] = "GPT2Tokenizer" if cfg["model_type"] == "phi3" else "PreTrainedTokenizerFast"
        name = {i + N_BPE: t for i, t in enumerate(kind)}
        if cfg["model_type"] == "modernbert":
            pre, post = ["[CLS]"], ["[SEP]"]
            conf.update(cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]")
        else:
            bos, eos = cfg["bos_token_id"], cfg["eos_token_id"]
            eos = eos[0] if isinstance(eos, list) else eos
            conf.update(bos_token=name.get(bos), eos_token=name[eos], add_bos_token=bos is not None, add_eos_token=False)
            if bos is not None:
                pre = [name[bos]]
        tok = bpe_tokenizer(kind, pre, post)
    dump(folder / "tokenizer.json", tok)
    dump(folder / "tokenizer_config.json", conf)


def write_pooling(folder, dim, pool, normalize):
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
               {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    if normalize:
        modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    dump(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    dump(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": dim, "pooling_mode_cls_token": pool == "cls", "pooling_mode_mean_tokens": pool == "mean",
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False, "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": pool == "lasttoken", "include_prompt": True})
    dump(folder / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})


# ---- weights and goldens --------------------------------------------------------------------------------------

def randomise(model, gemma_norm, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            r = torch.randn(p.shape, generator=g, dtype=torch.float32)
            low = name.lower()
            if p.ndim == 1 and name.endswith("bias"):
                v = 0.2 * r
            elif p.ndim == 1 or "norm" in low:
                v = 0.25 * r + (0.0 if gemma_norm else 1.0)
            elif "embed" in low:
                v = r * (0.5 if p.shape[0] > 64 else 0.3)
            else:
                gain = 1.6 if any(s in low for s in ("q_proj", "k_proj", "query", "key", "q_lin", "k_lin")) else 1.2
                v = r * gain / p.shape[-1] ** 0.5
            p.copy_(v.to(torch.bfloat16).float())


NOMIC_NAMES = [("layers.", "encoder.layers."), ("embeddings.LayerNorm", "emb_ln"), ("self_attn.o_proj", "attn.out_proj"),
               ("up_proj", "fc11"), ("gate_proj", "fc12"), ("down_proj", "fc2"), ("post_attention_layernorm", "norm1"),
               ("post_mlp_layernorm", "norm2")]


def published_names(name, model):
    """The tensors of a model under the names that published folders of the architecture use."""
    if name == "nomic-bert":
        out, state = {}, {k: v.numpy() for k, v in model.state_dict().items()}
        for k, v in state.items():
            if k.startswith("pooler."):
                continue
            if "self_attn.q_proj" in k:
                qkv = [state[k.replace("q_proj", x + "_proj")] for x in "qkv"]
                out["encoder." + k.replace("self_attn.q_proj", "attn.Wqkv")] = np.concatenate(qkv, 0)
            elif "self_attn.k_proj" not in k and "self_attn.v_proj" not in k:
                for a, b in NOMIC_NAMES:
                    k = k.replace(a, b) if a != "layers." or k.startswith("layers.") else k
                out[k] = v
        return out
    with tempfile.TemporaryDirectory() as tmp:
        model.save_pretrained(tmp)
        out = {}
        for f in sorted(pathlib.Path(tmp).glob("*.safetensors")):
            out.update(load_file(f))
    return out


def save_weights(folder, tensors, shards):
    tensors = {k: np.ascontiguousarray(v) for k, v in sorted(tensors.items())}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    index, names = {}, list(tensors)
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = names[s * len(names) // shards:(s + 1) * len(names) // shards]
        save_file({k: tensors[k] for k in part}, folder / file, {"format": "pt"})
        index.update({k: file for k in part})
    dump(folder / "model.safetensors.index.json", {"metadata": {"total_size": sum(v.nbytes for v in tensors.values())},
                                                   "weight_map": index})


def run_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids], dtype=torch.long), use_cache=False).logits[0].float().numpy()


def text_ids(rng, n, cfg, kind):
    if kind == "wordpiece":
        return rng.integers(5, cfg["vocab_size"], n)
    if kind == "unigram":
        return rng.integers(4, cfg["vocab_size"] - 1, n)
    if kind == "roberta":
        return rng.integers(4, N_BPE + 4, n)
    return rng.integers(0, N_BPE, n)


def encoder_ids(rng, cfg, kind):
    begin = end = None
    if isinstance(kind, str):
        begin, end = (2, 3) if kind == "wordpiece" else (0, 2)
    elif cfg["model_type"] == "modernbert":
        begin, end = N_BPE + 1, N_BPE + 2
    out = np.full((len(LENGTHS), max(LENGTHS)), -1, np.int32)
    for i, n in enumerate(LENGTHS):
        out[i, :n] = text_ids(rng, n, cfg, kind)
        if begin is not None:
            out[i, 0] = begin
            if n > 1:
                out[i, n - 1] = end
    return out


def embed(model, ids, pool, normalize):
    rows = []
    for row in ids:
        row = row[row >= 0]
        with torch.no_grad():
            h = model(input_ids=torch.tensor(row[None].astype(np.int64))).last_hidden_state[0].double().numpy()
        v = {"mean": h.mean(0), "cls": h[0], "lasttoken": h[-1]}[pool]
        rows.append(v / np.linalg.norm(v) if normalize else v)
    return np.asarray(rows, np.float32)


def open_model(folder, extra, overrides=None):
    import transformers
    over = {**extra.get("hf", {}), **(overrides or {})}
    if "hf" in extra:
        config = transformers.NomicBertConfig(**over)
    else:
        config = transformers.AutoConfig.from_pretrained(folder)
        for k, v in over.items():
            setattr(config, k, v)
        if overrides and "sliding_window" in overrides and getattr(config, "layer_types", None):
            config.layer_types = ["full_attention"] * config.num_hidden_layers
    config._attn_implementation = "eager"
    if extra.get("class"):
        cls = getattr(transformers, extra["class"])
        return cls._from_config(config, attn_implementation="eager", dtype=torch.float32)
    auto = transformers.AutoModel if "pool" in extra else transformers.AutoModelForCausalLM
    return auto.from_config(config, attn_implementation="eager", dtype=torch.float32)


def make(out, name):
    cfg, kind, extra = MODELS[name]
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dump(folder / "config.json", cfg)
    write_tokenizer(folder, cfg, kind)
    dim = cfg.get("hidden_size") or cfg.get("dim") or cfg.get("n_embd")
    if "pool" in extra:
        write_pooling(folder, dim, extra["pool"], extra.get("normalize", False))
    else:
        dump(folder / "generation_config.json", {"_from_model_config": True, "bos_token_id": cfg["bos_token_id"],
                                                 "eos_token_id": cfg["eos_token_id"]})
    seed = zlib.crc32(name.encode())
    model = open_model(folder, extra).eval()
    print("   class", type(model).__name__, "attention", model.config._attn_implementation)
    randomise(model, cfg["model_type"].startswith("gemma"), seed)
    tensors = published_names(name, model)
    if name == "qwen3-embedding":
        tensors = {k.removeprefix("model."): v for k, v in tensors.items()}
    for k, v in tensors.items():
        assert v.dtype == np.float32, (k, v.dtype)
    save_weights(folder, tensors, extra.get("shards", 1))
    rng = np.random.default_rng(seed)
    golden = {}
    if "pool" in extra:
        ids = encoder_ids(rng, cfg, kind)
        golden = {"ids": ids, "embedding": embed(model, ids, extra["pool"], extra.get("normalize", False))}
        print("   |embedding|", np.linalg.norm(golden["embedding"], axis=1))
    else:
        ids = text_ids(rng, N_TOKEN, cfg, kind).astype(np.int32)
        logits = run_logits(model, ids)
        golden = {"ids": ids, "positions": np.asarray(POSITIONS, np.int32), "logits": logits[POSITIONS]}
        print("   logits std", logits.std(), "max", np.abs(logits).max())
        if "short" in extra:
            n = extra["short"]
            pos = [0, 1, n - 1]
            golden.update(ids_short=ids[:n].copy(), positions_short=np.asarray(pos, np.int32),
                          logits_short=run_logits(model, ids[:n])[pos])
        for key in [k for k in ("gguf", "full") if k in extra]:
            other = open_model(folder, extra, extra[key]).eval()
            other.load_state_dict(model.state_dict())
            g = run_logits(other, ids)
            print("  ", key, "differs by", np.abs(g - logits).max(1)[POSITIONS])
            golden["logits_" + key] = g[POSITIONS]
    for k, v in golden.items():
        assert v.dtype != np.float32 or np.isfinite(v).all(), k
    save_file({k: np.ascontiguousarray(v) for k, v in golden.items()}, folder / "golden.safetensors")
    if name != "nomic-bert":
        check_reload(folder, extra, golden)
    return tensors


def check_reload(folder, extra, golden):
    """The written folder, opened as a user would, gives the golden again."""
    import transformers
    auto = transformers.AutoModel if "pool" in extra else transformers.AutoModelForCausalLM
    again = auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    if "pool" in extra:
        worst = np.abs(embed(again, golden["ids"], extra["pool"], extra.get("normalize", False)) - golden["embedding"]).max()
    else:
        worst = np.abs(run_logits(again, golden["ids"])[POSITIONS] - golden["logits"]).max()
    print("   reloaded folder differs by", worst)
    assert worst < 1e-5, worst


# ---- GGUF -----------------------------------------------------------------------------------------------------

def load_converter(root):
    sys.path.insert(0, str(root))
    sys.path.insert(1, str(root / "gguf-py"))
    import conversion
    import convert_hf_to_gguf as script
    from conversion.base import ModelBase, TextModel
    if hasattr(conversion, "load_all_models"):
        conversion.load_all_models()
    raw_hparams = ModelBase.load_hparams

    def pre(self, tokenizer):
        return PRE.get(self.dir_model.name, "bert-bge" if (self.dir_model / "vocab.txt").is_file() else "gpt-2")

    def hparams(dir_model, *args, **kw):
        if pathlib.Path(dir_model).name == "nomic-bert":  # transformers' class would add its own defaults
            return json.loads((pathlib.Path(dir_model) / "config.json").read_text())
        return raw_hparams(dir_model, *args, **kw)

    TextModel.get_vocab_base_pre = pre
    ModelBase.load_hparams = staticmethod(hparams)
    # these classes ask for a SentencePiece model; ours are byte-level BPE
    from conversion.gemma import Gemma2Model
    Gemma2Model.set_vocab = lambda self: self._set_vocab_gpt2()
    return script


def convert(script, folder, target):
    argv = sys.argv
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outfile", str(target), "--outtype", "f32"]
    try:
        script.main()
    finally:
        sys.argv = argv


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--converter", type=pathlib.Path)
    ap.add_argument("--only", default="")
    args = ap.parse_args()
    import transformers
    print("torch", torch.__version__, "transformers", transformers.__version__)
    torch.set_num_threads(4)
    script, result = None, {}
    if args.converter:
        try:
            script = load_converter(args.converter.resolve())
        except Exception:
            traceback.print_exc(file=sys.stdout)
    for name in [n for n in MODELS if not args.only or n in args.only.split(",")]:
        print("==", name, flush=True)
        done = []
        try:
            tensors = make(args.out, name)
            for k in sorted(tensors)[:40]:
                print("     ", k, tensors[k].shape)
            done.append("folder")
            if script:
                convert(script, args.out / name, args.out / (name + ".gguf"))
                done.append("gguf")
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            done.append("FAILED")
        result[name] = done
    print("== summary")
    for name, done in result.items():
        size = sum(f.stat().st_size for f in (args.out / name).rglob("*") if f.is_file())
        gguf = args.out / (name + ".gguf")
        print(f"{name:18} {' '.join(done):24} folder {size:8} gguf {gguf.stat().st_size if gguf.exists() else 0:8}")
    sys.exit(any("FAILED" in d for d in result.values()))


if __name__ == "__main__":
    main()
