/* text/internal.h - the parts of a tokenizer, shared by the files of this folder only.
 *
 * Idea:    every vocabulary, whatever its source, becomes the same pipeline of data:
 *            added tokens (raw)  ->  normaliser steps  ->  added tokens (normalised)  ->  pre-tokenizer steps
 *            ->  model  ->  prefix and suffix ids;   back: decoder steps and a hold of unfinished characters.
 *          from_vocab.c and from_json.c build it; encode.c and decode.c run it.
 * Always:  every id stored here is < n; a piece of length 0 is never produced by encode.
 * Threads: an imp_tokenizer is read-only once built; an imp_tok_work belongs to one encode call. */
#ifndef IMP_TEXT_INTERNAL_H
#define IMP_TEXT_INTERNAL_H

#include "text/regex.h"
#include "text/tokenizer.h"

#define TOK_NONE UINT32_MAX
enum { TOK_MAX_STEP = 16, TOK_MAX_FIX = 16 };

/* ---- a sorted set of strings, walked byte by byte ------------------------------------------------ */
typedef struct imp_strset_item {
    const char *p;
    size_t n;
    uint32_t value;
} imp_strset_item;

typedef struct imp_strset {
    imp_strset_item *item; /* [n] sorted by bytes; owned by the arena it was built in */
    size_t n;
    size_t first[257]; /* items that start with byte b are first[b] .. first[b + 1] - 1 */
} imp_strset;

typedef struct imp_strset_walk {
    size_t lo, hi, depth; /* the items that share the bytes walked so far */
} imp_strset_walk;

/* Sorts item[] in place; empty strings are dropped, of equal ones the first given stays. */
void imp_strset_build(imp_strset *s, imp_strset_item *item, size_t n);
void imp_strset_begin(const imp_strset *s, imp_strset_walk *w);
/* One byte further: false when no item goes on so; *value is TOK_NONE unless an item ends here. */
bool imp_strset_next(const imp_strset *s, imp_strset_walk *w, char byte, uint32_t *value);

/* ---- normaliser ---------------------------------------------------------------------------------- */
typedef enum imp_norm_kind {
    NORM_NFC,
    NORM_NFD,
    NORM_NFKC,
    NORM_NFKD,
    NORM_LOWER,
    NORM_STRIP_ACCENTS,
    NORM_BERT,
    NORM_REPLACE,
    NORM_PREPEND,
    NORM_STRIP,
    NORM_CHARSMAP,         /* by grapheme, as `tokenizers` does */
    NORM_CHARSMAP_LONGEST, /* longest match at each position, as SentencePiece does */
    NORM_SPACES            /* SentencePiece: collapse, dummy prefix, ' ' to U+2581 */
} imp_norm_kind;

typedef struct
    imp_charsmap { /* a double-array trie and the strings its values point into; borrowed by the step */
    const uint32_t *unit;
    size_t n_unit;
    const char *text;
    size_t n_text;
} imp_charsmap;

typedef struct imp_norm_step {
    imp_norm_kind kind;
    imp_vocab_str from, to;          /* REPLACE: a string (or regex), its replacement; PREPEND: to */
    imp_regex *re;                   /* REPLACE by regex; owned */
    bool left, right;                /* STRIP */
    bool clean, cjk, accents, lower; /* BERT */
    bool collapse, prefix;           /* SPACES */
    imp_charsmap map;
} imp_norm_step;

/* A copy of the bytes goes to the arena; FORMAT when the trie's size is wrong. */
IMP_MUST_USE imp_status imp_charsmap_init(imp_charsmap *m, imp_arena *a, const void *p, size_t n,
                                          imp_error *err);
void imp_charsmap_graphemes(const imp_charsmap *m, const char *s, size_t n, imp_buf *out);
void imp_charsmap_longest(const imp_charsmap *m, const char *s, size_t n, imp_buf *out);

/* ---- Unicode properties (utf8proc); cp -1 (a malformed byte) has none of them --------------------- */
bool imp_uni_space(int32_t cp);  /* White_Space */
bool imp_uni_punct(int32_t cp);  /* ASCII punctuation and symbols, and category P */
bool imp_uni_number(int32_t cp); /* category N */
bool imp_uni_mark(int32_t cp);   /* category M */
bool imp_uni_mark_nonspacing(int32_t cp);
bool imp_uni_control(int32_t cp); /* category C but for tab, line feed, carriage return and unassigned */
bool imp_uni_cjk(int32_t cp);     /* the ideograph blocks that BERT surrounds with spaces */
bool imp_uni_word(int32_t cp);    /* \w: letters, marks, decimal digits, connectors */
size_t imp_uni_lower(int32_t cp, char out[8]); /* the full lower case in UTF-8 */
/* Append the normal form; malformed bytes are copied. */
void imp_uni_normalize(imp_norm_kind form, const char *s, size_t n, imp_buf *out);

/* ---- pre-tokenizer -------------------------------------------------------------------------------- */
typedef enum imp_pre_kind {
    PRE_SPLIT,      /* by regex, or by a string */
    PRE_BYTE_LEVEL, /* optional leading space, optional regex, then bytes to the visible alphabet */
    PRE_DIGITS,
    PRE_PUNCT,
    PRE_SPACE_SPLIT,
    PRE_METASPACE,
    PRE_BERT
} imp_pre_kind;

typedef enum imp_behavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_PREVIOUS,
    SPLIT_NEXT,
    SPLIT_CONTIGUOUS
} imp_behavior;

typedef enum imp_prepend { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } imp_prepend;

typedef struct imp_pre_step {
    imp_pre_kind kind;
    imp_regex *re;      /* owned; NULL: text */
    imp_vocab_str text; /* SPLIT by string; METASPACE: the replacement */
    imp_behavior behavior;
    bool invert;
    bool add_space;      /* BYTE_LEVEL */
    bool split;          /* METASPACE */
    imp_prepend prepend; /* METASPACE */
} imp_pre_step;

typedef struct imp_pre_def { /* pre_table.c: what the name in a GGUF file means */
    const char *name;
    const char *pattern[6]; /* one after the other, each isolating its matches; NULL ends */
    bool ignore_merges, add_bos, add_sep;
} imp_pre_def;
const imp_pre_def *imp_pre_find(const char *name); /* NULL: unknown */
extern const char imp_pre_gpt2[];

/* The visible alphabet of byte-level BPE: U+0021..U+0143 for byte 0..255, and back. */
uint16_t imp_byte_to_cp(uint8_t byte);
int imp_cp_to_byte(int32_t cp); /* -1: not in the alphabet */

/* ---- decoder -------------------------------------------------------------------------------------- */
typedef enum imp_dec_kind {
    DEC_BYTE_LEVEL,
    DEC_REPLACE,
    DEC_BYTE_FALLBACK,
    DEC_STRIP,
    DEC_METASPACE,
    DEC_WORDPIECE
} imp_dec_kind;

typedef struct imp_dec_step {
    imp_dec_kind kind;
    imp_vocab_str from, to; /* REPLACE; STRIP: from is the character; METASPACE: from is the replacement;
                                 WORDPIECE: from is the continuation prefix, to the word prefix */
    size_t start, stop;     /* STRIP: at most so many */
    bool flag;              /* WORDPIECE: clean up; METASPACE: the first token loses its replacements */
} imp_dec_step;

/* ---- added tokens --------------------------------------------------------------------------------- */
typedef struct imp_added {
    imp_vocab_str text;
    uint32_t id;
    bool lstrip, rstrip, single_word, normalized, special;
} imp_added;

/* ---- merges: (left id, right id) -> rank and result ------------------------------------------------ */
typedef struct imp_merge_slot {
    uint64_t key; /* left << 32 | right; UINT64_MAX: empty */
    uint32_t rank, id;
} imp_merge_slot;

typedef struct imp_merges {
    imp_merge_slot *slot; /* [mask + 1] */
    size_t mask;
} imp_merges;
bool imp_merges_init(imp_merges *m, imp_arena *a, size_t n);
void imp_merges_put(imp_merges *m, uint32_t left, uint32_t right, uint32_t rank, uint32_t id, bool replace);

enum {
    TOK_F_SKIP = 1,  /* decode leaves it out unless special tokens are wanted */
    TOK_F_RAW = 2,   /* decode writes the spelling as it is */
    TOK_F_WORD = 4,  /* WORDPIECE decode: starts a word though it has no word prefix */
    TOK_F_HIDDEN = 8 /* the model never writes it for text that spells it */
};

struct imp_tokenizer {
    imp_arena *arena; /* everything below but the map, regexes */
    imp_map *map;     /* spelling -> id */
    imp_vocab_str *piece;
    uint8_t *kind, *flag;
    double *score; /* UNIGRAM, SPM_BPE; else NULL */
    size_t n;
    char describe[96];

    imp_vocab_model model;
    uint32_t unk; /* what the model writes for text it cannot spell; TOK_NONE: nothing */
    bool byte_fallback;
    uint32_t byte_id[256]; /* "<0xNN>"; TOK_NONE: absent */
    bool fuse_unk, ignore_merges;
    uint32_t low_id[1024]; /* BPE: id of the character U+0000..U+03FF; TOK_NONE: absent */
    imp_merges merges;
    bool split_words; /* no piece has U+2581 after another character: words can be merged alone */
    size_t max_piece; /* bytes of the longest piece */
    imp_strset trie;  /* UNIGRAM */
    double unk_score;
    bool f32_scores;          /* path scores are kept as f32; near ties depend on it */
    imp_vocab_str cont, word; /* WORDPIECE: prefix of a continuation, of a word's start */
    size_t max_word_chars;

    imp_norm_step norm[TOK_MAX_STEP];
    size_t n_norm;
    imp_pre_step pre[TOK_MAX_STEP];
    size_t n_pre;
    imp_dec_step dec[TOK_MAX_STEP];
    size_t n_dec;
    bool dec_join;           /* no decoder: tokens are joined by spaces */
    bool dec_fused;          /* a Fuse step was read: what follows sees the whole text */
    imp_vocab_str dec_strip; /* after all steps: up to dec_strip_max of this at the start of the text */
    size_t dec_strip_max;

    imp_added *added;
    size_t n_added;
    imp_strset added_raw, added_norm; /* values index added[] */

    int32_t bos, eos, unk_token, pad;
    bool adds_bos;
    uint32_t prefix[TOK_MAX_FIX], suffix[TOK_MAX_FIX];
    size_t n_prefix, n_suffix;
};

/* ---- building (build.c) ----------------------------------------------------------------------------- */
/* Room for n pieces (all of kind normal, no spelling yet). */
IMP_MUST_USE imp_status imp_tok_new(size_t n, imp_tokenizer **out, imp_error *err);
/* Copies the spelling of id into the arena. INVALID: this spelling or id is taken. */
IMP_MUST_USE imp_status imp_tok_set_piece(imp_tokenizer *t, uint32_t id, const char *p, size_t n,
                                          imp_error *err);
IMP_MUST_USE imp_status imp_tok_copy(imp_tokenizer *t, const char *p, size_t n, imp_vocab_str *out,
                                     imp_error *err);
imp_norm_step *imp_tok_add_norm(imp_tokenizer *t, imp_norm_kind kind); /* NULL: too many steps */
imp_pre_step *imp_tok_add_pre(imp_tokenizer *t, imp_pre_kind kind);
imp_dec_step *imp_tok_add_dec(imp_tokenizer *t, imp_dec_kind kind);
/* Tables that follow from pieces, kinds, scores and added tokens; call last. */
IMP_MUST_USE imp_status imp_tok_finish(imp_tokenizer *t, imp_error *err);
uint32_t imp_tok_lookup(const imp_tokenizer *t, const char *p, size_t n); /* TOK_NONE: absent */

/* ---- one encode call ---------------------------------------------------------------------------------- */
typedef struct imp_span {
    size_t off, n;
} imp_span;

typedef struct imp_spans {
    imp_span *v;
    size_t n, cap;
} imp_spans;

typedef struct imp_merge_sym {
    uint32_t off, n, prev, next, id;
} imp_merge_sym;

typedef struct imp_merge_cand {
    uint64_t key;      /* rank or falling score << 32 | place: the smallest merges first */
    uint32_t id, size; /* what the pair becomes, and its bytes */
} imp_merge_cand;

typedef struct imp_best { /* the best way to cover the bytes before a position */
    double score;
    size_t start; /* of its last piece; SIZE_MAX: no way yet */
    size_t next;  /* on the best path of all: where the piece that starts here ends */
    uint32_t id;
} imp_best;

typedef struct imp_tok_work {
    const imp_tokenizer *t;
    imp_ids *out;
    imp_error *err;
    unsigned flags;
    imp_match *match;
    imp_buf norm[2], text[2]; /* working text: normaliser, pre-tokenizer; used in turns */
    imp_spans span[2], words;
    imp_buf spaced;
    imp_merge_sym *sym;
    size_t sym_cap;
    imp_merge_cand *cand;
    size_t n_cand, cand_cap;
    imp_best *best;
    size_t best_cap;
    imp_buf key;
} imp_tok_work;

IMP_MUST_USE imp_status imp_tok_nomem(imp_error *err);
bool imp_tok_grow(void **p, size_t *cap, size_t need, size_t size);
IMP_MUST_USE imp_status imp_tok_push(imp_tok_work *w, uint32_t id);
IMP_MUST_USE imp_status imp_spans_add(imp_tok_work *w, imp_spans *s, size_t off,
                                      size_t n); /* n == 0: nothing */
/* Run one step: s[0..n-1] -> *out (cleared first). */
IMP_MUST_USE imp_status imp_norm_run(imp_tok_work *w, const imp_norm_step *step, const char *s, size_t n,
                                     imp_buf *out);
/* All pre-tokenizer steps; *text and *spans are the result, borrowed from w. first: s is the start of the input. */
IMP_MUST_USE imp_status imp_pre_run(imp_tok_work *w, const char *s, size_t n, bool first, const char **text,
                                    const imp_spans **spans);
IMP_MUST_USE imp_status imp_bpe_encode(imp_tok_work *w, const char *s, size_t n);
IMP_MUST_USE imp_status imp_unigram_encode(imp_tok_work *w, const char *s, size_t n);
IMP_MUST_USE imp_status imp_wordpiece_encode(imp_tok_work *w, const char *s, size_t n);
/* A character the vocabulary lacks: its bytes, else unknown (*fused: the last id written is that already). */
IMP_MUST_USE imp_status imp_tok_push_missing(imp_tok_work *w, const char *s, size_t n, bool *fused);

#endif
