/* text/tokenizer.h - text to token ids and back, for every vocabulary we load.
 *
 * Place:   layer 2, beside fmt: it knows vocabularies as arrays or tokenizer.json, not files. model/tokenizer_load.c
 *          brings the two together.
 * Idea:    one imp_tokenizer = normaliser -> split at special/added tokens -> pre-tokenizer -> model (byte-level BPE,
 *          SentencePiece BPE or unigram, WordPiece) -> post-processor (BOS, EOS, CLS, SEP).
 * Threads: a loaded tokenizer is read-only; encode from any thread. */
#ifndef IMP_TOKENIZER_H
#define IMP_TOKENIZER_H

#include <jansson.h>

#include "base/base.h"

typedef struct imp_tokenizer imp_tokenizer;

typedef enum imp_vocab_model {
    IMP_VOCAB_BPE,      /* byte-level BPE: merges in rank order, a pre-tokenizer by name */
    IMP_VOCAB_SPM_BPE,  /* SentencePiece BPE by scores, byte fallback (GGUF "llama") */
    IMP_VOCAB_UNIGRAM,  /* SentencePiece unigram, Viterbi (GGUF "t5") */
    IMP_VOCAB_WORDPIECE /* BERT (GGUF "bert") */
} imp_vocab_model;

typedef enum imp_token_kind { /* the numbers GGUF uses */
                              IMP_TOKEN_NORMAL = 1,
                              IMP_TOKEN_UNKNOWN = 2,
                              IMP_TOKEN_CONTROL = 3,
                              IMP_TOKEN_USER = 4,
                              IMP_TOKEN_UNUSED = 5,
                              IMP_TOKEN_BYTE = 6
} imp_token_kind;

typedef struct imp_vocab_str {
    const char *p;
    size_t n;
} imp_vocab_str;

/* A vocabulary as GGUF stores it; everything is borrowed during the call. */
typedef struct imp_vocab {
    imp_vocab_model model;
    const char *pre;            /* BPE: "gpt-2", "llama-bpe", ...; an unknown one is refused */
    const imp_vocab_str *token; /* [n_token] */
    const float *score;         /* [n_token] or NULL */
    const int32_t *kind;        /* [n_token] imp_token_kind or NULL: all normal */
    size_t n_token;
    const imp_vocab_str *merge; /* [n_merge] "a b" */
    size_t n_merge;
    int64_t bos, eos, unk, sep, pad, cls, mask; /* -1: absent */
    int8_t add_bos, add_eos, add_space_prefix;  /* -1: the model kind's default */
    bool remove_extra_whitespaces;
    bool rstrip_special;  /* control tokens take the white space behind them (Phi-3) */
    const void *charsmap; /* SentencePiece precompiled_charsmap or NULL */
    size_t n_charsmap;
} imp_vocab;

/* INVALID / UNSUPPORTED name what is wrong: special id out of range, duplicate token, unknown pre-tokenizer, ... */
IMP_MUST_USE imp_status imp_tokenizer_from_vocab(const imp_vocab *v, imp_tokenizer **out, imp_error *err);
/* From the text of a tokenizer.json, with tokenizer_config.json (add_bos_token, bos_token, ...; may be NULL). A
 * normaliser, pre-tokenizer, model, decoder or post-processor that is not understood is refused by name. */
IMP_MUST_USE imp_status imp_tokenizer_from_json(const char *json, size_t n, const json_t *tokenizer_config,
                                                imp_tokenizer **out, imp_error *err);
void imp_tokenizer_free(imp_tokenizer *t);

typedef struct imp_ids { /* {0} is empty; owned */
    int32_t *id;
    size_t n, cap;
} imp_ids;
void imp_ids_deinit(imp_ids *v);

/* Append the ids of text[0..n-1] to *out. flags: IMP_TOK_ADD_SPECIAL (BOS, CLS, ... as the model wants them),
 * IMP_TOK_PARSE_SPECIAL (control tokens spelled in the text become those tokens; without it they are plain text).
 * Invalid UTF-8 bytes are encoded like any bytes where the vocabulary can, else as the unknown token. */
IMP_MUST_USE imp_status imp_tokenizer_encode(const imp_tokenizer *t, const char *text, size_t n,
                                             unsigned flags, imp_ids *out, imp_error *err);
/* The text of a whole id list, as the model's decoder makes it. special: spell control tokens too. */
IMP_MUST_USE imp_status imp_tokenizer_decode(const imp_tokenizer *t, const int32_t *ids, size_t n,
                                             bool special, imp_buf *out, imp_error *err);

/* Streaming: push ids, get bytes; only whole UTF-8 characters come out. Concatenated output == decode(all). */
typedef struct imp_detok {
    const imp_tokenizer *t;
    bool special, started;
    uint8_t n_hold;
    char hold[8];   /* start of a character whose rest has not come */
    bool stripped;  /* the start of the text is over: nothing more to strip there */
    size_t n_strip; /* spaces stripped there so far */
} imp_detok;
void imp_detok_init(imp_detok *d, const imp_tokenizer *t, bool special);
/* After init: the ids continue a text (a prompt's answer), so the first one keeps its leading space. */
void imp_detok_continue(imp_detok *d);
void imp_detok_push(imp_detok *d, int32_t id, imp_buf *out); /* appends; id out of range: nothing */
void imp_detok_flush(imp_detok *d, imp_buf *out);            /* an unfinished character becomes U+FFFD */

size_t imp_tokenizer_bytes(const imp_tokenizer *t); /* memory it holds but for compiled patterns; NULL: 0 */
/* From now on decoding shows this control token, as one of the text's own; before any other thread uses t. */
void imp_tokenizer_show(imp_tokenizer *t, int32_t id);
/* Append the bytes that id adds inside a text (they need not be whole characters); nothing for control tokens. */
void imp_token_spell(const imp_tokenizer *t, int32_t id, imp_buf *out);

size_t imp_tokenizer_n(const imp_tokenizer *t);
/* The vocabulary's own spelling, borrowed; NULL out of range. */
const char *imp_tokenizer_piece(const imp_tokenizer *t, int32_t id, size_t *n);
imp_token_kind imp_tokenizer_kind(const imp_tokenizer *t, int32_t id);
int32_t imp_tokenizer_find(const imp_tokenizer *t, const char *piece, size_t n); /* -1: absent */
int32_t imp_tokenizer_bos(const imp_tokenizer *t); /* -1: absent, as all of these */
int32_t imp_tokenizer_eos(const imp_tokenizer *t);
int32_t imp_tokenizer_unk(const imp_tokenizer *t);
int32_t imp_tokenizer_pad(const imp_tokenizer *t);
bool imp_tokenizer_adds_bos(const imp_tokenizer *t);
const char *imp_tokenizer_describe(const imp_tokenizer *t); /* "byte-level BPE, pre-tokenizer llama-bpe" */

#endif
