/* fmt/hf.h - a model folder as Hugging Face and MLX write it: config files and sharded safetensors.
 *
 * Idea:    config.json, generation_config.json, tokenizer.json, tokenizer_config.json and the pooling description of
 *          sentence-transformers (modules.json, 1_Pooling/config.json) as parsed JSON; all shards as one directory.
 *          MLX-quantised layers (x.weight + x.scales + x.biases) appear as one IMP_AFFINE tensor named x.weight. */
#ifndef IMP_HF_H
#define IMP_HF_H

#include <jansson.h>

#include "tensor/tensor.h"

typedef struct imp_hf imp_hf;

/* path: the folder, or a .safetensors file inside it. NOT_FOUND names the missing file; a shard the index names that
 * is missing, a tensor in no shard or in two, or a shard name with a path in it is refused. model.safetensors comes
 * before the index. Refused by name (UNSUPPORTED): quantisation other than MLX affine, and sentence-transformers modules
 * other than Transformer, Pooling and Normalize. Whole numbers beyond int64 in configs become reals. */
IMP_MUST_USE imp_status imp_hf_open(const char *path, imp_hf **out, imp_error *err);
void imp_hf_close(imp_hf *h);

const json_t *imp_hf_config(const imp_hf *h);            /* never NULL */
const json_t *imp_hf_generation_config(const imp_hf *h); /* NULL: absent, as for those below */
const json_t *imp_hf_tokenizer_config(const imp_hf *h);
const json_t *imp_hf_special_tokens_map(const imp_hf *h);
const json_t *imp_hf_pooling(const imp_hf *h); /* 1_Pooling/config.json */
bool imp_hf_has_normalize(const imp_hf *h);    /* modules.json lists a Normalize module */
const json_t *imp_hf_sbert(const imp_hf *h);   /* sentence_bert_config.json: max_seq_length */
/* tokenizer.json as text; false: absent. vocab.txt (BERT) likewise. */
bool imp_hf_tokenizer_json(const imp_hf *h, const char **p, size_t *n);
bool imp_hf_vocab_txt(const imp_hf *h, const char **p, size_t *n);
/* chat_template.jinja, else tokenizer_config.json's (of several, the one named "default"). */
bool imp_hf_chat_template(const imp_hf *h, const char **p, size_t *n);

uint64_t imp_hf_n_tensor(const imp_hf *h);
const imp_tensor *imp_hf_tensor_at(const imp_hf *h, uint64_t i, const char **name);
const imp_tensor *imp_hf_tensor(const imp_hf *h, const char *name);
uint64_t imp_hf_bytes(const imp_hf *h);      /* memory of the directory, without the files and their JSON */
uint64_t imp_hf_file_bytes(const imp_hf *h); /* all shards */

#endif
