/* model/tokenizer_load.h - the tokenizer of an opened model file or folder. */
#ifndef IMP_TOKENIZER_LOAD_H
#define IMP_TOKENIZER_LOAD_H

#include "fmt/gguf.h"
#include "fmt/hf.h"
#include "text/tokenizer.h"

/* From the "tokenizer.ggml" keys. NOT_FOUND: the file holds no vocabulary; UNSUPPORTED names the model or pre-tokenizer
 * that is not understood; INVALID / FORMAT name the key at fault. */
IMP_MUST_USE imp_status imp_tokenizer_from_gguf(const imp_gguf *g, imp_tokenizer **out, imp_error *err);
/* From tokenizer.json (with tokenizer_config.json), or BERT's vocab.txt. NOT_FOUND: the folder has neither. */
IMP_MUST_USE imp_status imp_tokenizer_from_hf(const imp_hf *h, imp_tokenizer **out, imp_error *err);

#endif
