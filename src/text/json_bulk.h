/* text/json_bulk.h - the two large tables of a tokenizer.json, read without a JSON tree. */
#ifndef IMP_TEXT_JSON_BULK_H
#define IMP_TEXT_JSON_BULK_H

#include "text/tokenizer.h"

typedef struct imp_json_bulk {
    imp_vocab_str *piece; /* [n] keys of model.vocab when that is an object */
    uint32_t *id;         /* [n] */
    size_t n, piece_cap, id_cap;
    imp_vocab_str *merge; /* [2 * n_merge] left, right of model.merges */
    size_t n_merge, merge_cap;
    bool has_vocab, has_merges;
    imp_arena *arena; /* strings that had escapes; the others lie in the JSON text, which must stay */
    imp_buf rest;     /* the text with {} and [] in the place of the two tables */
} imp_json_bulk;

/* FORMAT with the position: an entry that is not what belongs there. Text that is no JSON at all is left to the parser
 * of rest. Free with deinit in every case. */
IMP_MUST_USE imp_status imp_json_bulk_read(imp_json_bulk *b, const char *json, size_t n, imp_error *err);
void imp_json_bulk_deinit(imp_json_bulk *b);

#endif
