/* text/from_json.c - a tokenizer.json, with its tokenizer_config.json, becomes a tokenizer.
 *
 * Place:   model/tokenizer_load.c hands over the text of the file.
 * Idea:    ids are collected from the model's vocabulary and the added tokens first, so that every table has its size;
 *          then pieces, model, steps (json_steps.c), and the special tokens that the configuration names.
 * Always:  a field or value that is not understood is refused by name; every id is in range and has one spelling.
 *          "truncation" and "padding" are requests to a batch encoder, not part of the text's ids: they are not read.
 * Source:  the serialised form of Hugging Face tokenizers 0.2x. */
#include <math.h>

#include "text/json_bulk.h"
#include "text/json_steps.h"

typedef struct reader {
    imp_tokenizer *t;
    const json_t *root, *model, *vocab, *added, *config;
    const imp_json_bulk *bulk; /* vocab as an object, and merges: the tree has them empty */
    imp_vocab_model kind;
    imp_error *err;
} reader;

static imp_status bad(const reader *r, const char *what)
{
    return imp_fail_field(r->err, IMP_FORMAT, what, "the tokenizer's \"%s\" is missing or has the wrong form",
                          what);
}

/* ---- which model, how many ids ------------------------------------------------------------------------------------ */

static imp_status find_model(reader *r)
{
    r->model = json_object_get(r->root, "model");
    if (!json_is_object(r->model)) return bad(r, "model");
    r->vocab = json_object_get(r->model, "vocab");
    const json_t *v = json_object_get(r->model, "type");
    const char *type = json_is_string(v) ? json_string_value(v) : ""; /* early files leave it out */
    if (!v && json_object_get(r->model, "merges")) type = "BPE";
    if (!v && json_is_array(r->vocab)) type = "Unigram";
    if (!v && json_object_get(r->model, "max_input_chars_per_word")) type = "WordPiece";
    if (strcmp(type, "BPE") == 0)
        r->kind = IMP_VOCAB_BPE;
    else if (strcmp(type, "Unigram") == 0)
        r->kind = IMP_VOCAB_UNIGRAM;
    else if (strcmp(type, "WordPiece") == 0)
        r->kind = IMP_VOCAB_WORDPIECE;
    else
        return imp_fail_field(r->err, IMP_UNSUPPORTED, "model",
                              "the tokenizer model \"%.60s\" is not supported", type);
    bool form = r->kind == IMP_VOCAB_UNIGRAM ? json_is_array(r->vocab) : r->bulk->has_vocab;
    return form ? IMP_OK : bad(r, "vocab");
}

static imp_status read_id(const reader *r, const json_t *v, const char *what, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= INT32_MAX)
        return imp_fail_field(r->err, IMP_INVALID, what,
                              "a token of the tokenizer's %s has an id that is no token id", what);
    *out = (uint64_t)json_integer_value(v);
    return IMP_OK;
}

static imp_status count_ids(reader *r, size_t *out)
{
    uint64_t top = 0, id = 0;
    size_t n = 0;
    if (r->kind == IMP_VOCAB_UNIGRAM) {
        top = n = json_array_size(r->vocab);
    } else {
        n = r->bulk->n;
        for (size_t i = 0; i < n; i++) top = IMP_MAX(top, (uint64_t)r->bulk->id[i] + 1);
    }
    r->added = json_object_get(r->root, "added_tokens");
    if (r->added && !json_is_null(r->added) && !json_is_array(r->added)) return bad(r, "added_tokens");
    for (size_t i = 0; i < json_array_size(r->added); i++, n++) {
        IMP_TRY(read_id(r, json_object_get(json_array_get(r->added, i), "id"), "added_tokens", &id));
        top = IMP_MAX(top, id + 1);
    }
    if (top > 4 * (uint64_t)n + 65536)
        return imp_fail(r->err, IMP_INVALID, "the tokenizer has %zu tokens but an id of %llu", n,
                        (unsigned long long)top - 1);
    *out = (size_t)top;
    return IMP_OK;
}

/* ---- pieces ---------------------------------------------------------------------------------------------------------- */

static imp_status read_vocab(reader *r)
{
    imp_tokenizer *t = r->t;
    json_t *value;
    const imp_json_bulk *b = r->bulk;
    if (r->kind != IMP_VOCAB_UNIGRAM) {
        for (size_t i = 0; i < b->n; i++)
            IMP_TRY(imp_tok_set_piece(t, b->id[i], b->piece[i].p, b->piece[i].n, r->err));
        return IMP_OK;
    }
    t->score = imp_arena_array(t->arena, t->n, sizeof *t->score);
    if (!t->score) return imp_tok_nomem(r->err);
    size_t i;
    json_array_foreach(r->vocab, i, value)
    {
        const json_t *piece = json_array_get(value, 0), *score = json_array_get(value, 1);
        if (!json_is_string(piece) || !json_is_number(score) || json_array_size(value) != 2)
            return bad(r, "vocab");
        t->score[i] = json_number_value(score);
        if (!isfinite(t->score[i])) return bad(r, "vocab");
        IMP_TRY(
            imp_tok_set_piece(t, (uint32_t)i, json_string_value(piece), json_string_length(piece), r->err));
    }
    return IMP_OK;
}

static imp_status read_added(reader *r)
{
    imp_tokenizer *t = r->t;
    t->added = imp_arena_array(t->arena, json_array_size(r->added) + 1, sizeof *t->added);
    if (!t->added) return imp_tok_nomem(r->err);
    for (size_t i = 0; i < json_array_size(r->added); i++) {
        const json_t *j = json_array_get(r->added, i);
        const char *what = "added_tokens";
        imp_added a = {0};
        imp_vocab_str text;
        IMP_TRY(imp_json_only(j, what, "id content single_word lstrip rstrip normalized special", r->err));
        IMP_TRY(imp_json_string(j, what, "content", &text, r->err));
        IMP_TRY(imp_json_bool_or(j, what, "single_word", false, &a.single_word, r->err));
        IMP_TRY(imp_json_bool_or(j, what, "lstrip", false, &a.lstrip, r->err));
        IMP_TRY(imp_json_bool_or(j, what, "rstrip", false, &a.rstrip, r->err));
        IMP_TRY(imp_json_bool_or(j, what, "special", false, &a.special, r->err));
        IMP_TRY(imp_json_bool_or(j, what, "normalized", !a.special, &a.normalized, r->err));
        a.id = (uint32_t)json_integer_value(json_object_get(j, "id"));
        if (text.n == 0) continue;
        bool same = t->piece[a.id].n == text.n && memcmp(t->piece[a.id].p, text.p, text.n) == 0;
        if (!same) IMP_TRY(imp_tok_set_piece(t, a.id, text.p, text.n, r->err));
        a.text = t->piece[a.id];
        t->kind[a.id] = a.special ? IMP_TOKEN_CONTROL : IMP_TOKEN_USER;
        t->flag[a.id] = a.special ? TOK_F_SKIP | TOK_F_HIDDEN : 0;
        t->added[t->n_added++] = a;
    }
    for (size_t i = 0; i < t->n; i++)
        if (!t->piece[i].p) t->kind[i] = IMP_TOKEN_UNUSED;
    return IMP_OK;
}

/* ---- models ------------------------------------------------------------------------------------------------------------ */

static imp_status read_unk(reader *r, bool needed)
{
    const json_t *v = json_object_get(r->model, "unk_token");
    if (!needed && (!v || json_is_null(v))) return IMP_OK;
    if (!json_is_string(v)) return bad(r, "unk_token");
    r->t->unk = imp_tok_lookup(r->t, json_string_value(v), json_string_length(v));
    if (r->t->unk == TOK_NONE)
        return imp_fail_field(r->err, IMP_INVALID, "unk_token",
                              "the unknown token \"%.60s\" is not in the vocabulary", json_string_value(v));
    return IMP_OK;
}

/* A field that is understood only when absent, null, false, 0 or "". */
static imp_status must_be_empty(const reader *r, const char *key)
{
    const json_t *v = json_object_get(r->model, key);
    if (!v || json_is_null(v) || json_is_false(v) || (json_is_string(v) && json_string_length(v) == 0) ||
        (json_is_number(v) && json_number_value(v) == 0))
        return IMP_OK;
    return imp_fail_field(r->err, IMP_UNSUPPORTED, key, "a BPE tokenizer with %s is not supported", key);
}

static imp_status read_merges(reader *r)
{
    if (!r->bulk->has_merges) return bad(r, "merges");
    size_t n = r->bulk->n_merge;
    if (n >= UINT32_MAX || !imp_merges_init(&r->t->merges, r->t->arena, n)) return imp_tok_nomem(r->err);
    imp_buf both = {0};
    imp_status status = IMP_OK;
    for (size_t i = 0; status == IMP_OK && i < n; i++) {
        imp_vocab_str a = r->bulk->merge[2 * i], b = r->bulk->merge[2 * i + 1];
        both.n = 0;
        imp_buf_add(&both, a.p, a.n);
        imp_buf_add(&both, b.p, b.n);
        uint32_t x = imp_tok_lookup(r->t, a.p, a.n), y = imp_tok_lookup(r->t, b.p, b.n);
        uint32_t z = both.failed || !both.data ? TOK_NONE : imp_tok_lookup(r->t, both.data, both.n);
        if (both.failed)
            status = imp_tok_nomem(r->err);
        else if (x == TOK_NONE || y == TOK_NONE || z == TOK_NONE)
            status = imp_fail_field(
                r->err, IMP_INVALID, "merges",
                "merge %zu of the tokenizer is about pieces that are not in the vocabulary", i);
        else
            imp_merges_put(&r->t->merges, x, y, (uint32_t)i, z, true);
    }
    imp_buf_deinit(&both);
    return status;
}

static imp_status read_bpe(reader *r)
{
    imp_tokenizer *t = r->t;
    IMP_TRY(imp_json_only(
        r->model, "model",
        "type dropout unk_token continuing_subword_prefix end_of_word_suffix fuse_unk byte_fallback "
        "ignore_merges vocab merges",
        r->err));
    IMP_TRY(must_be_empty(r, "dropout"));
    IMP_TRY(must_be_empty(r, "continuing_subword_prefix"));
    IMP_TRY(must_be_empty(r, "end_of_word_suffix"));
    IMP_TRY(imp_json_bool_or(r->model, "model", "fuse_unk", false, &t->fuse_unk, r->err));
    IMP_TRY(imp_json_bool_or(r->model, "model", "byte_fallback", false, &t->byte_fallback, r->err));
    IMP_TRY(imp_json_bool_or(r->model, "model", "ignore_merges", false, &t->ignore_merges, r->err));
    IMP_TRY(read_unk(r, false));
    return read_merges(r);
}

static imp_status read_unigram(reader *r)
{
    imp_tokenizer *t = r->t;
    IMP_TRY(imp_json_only(r->model, "model", "type unk_id vocab byte_fallback", r->err));
    IMP_TRY(imp_json_bool_or(r->model, "model", "byte_fallback", false, &t->byte_fallback, r->err));
    t->fuse_unk = true;
    const json_t *unk = json_object_get(r->model, "unk_id");
    if (!unk || json_is_null(unk)) {
        if (t->byte_fallback) return IMP_OK;
        return imp_fail_field(r->err, IMP_UNSUPPORTED, "unk_id",
                              "a unigram tokenizer without unk_id is not supported");
    }
    if (!json_is_integer(unk) || json_integer_value(unk) < 0 ||
        (uint64_t)json_integer_value(unk) >= json_array_size(r->vocab))
        return imp_fail_field(r->err, IMP_INVALID, "unk_id", "unk_id is outside the vocabulary");
    t->unk = (uint32_t)json_integer_value(unk);
    return IMP_OK;
}

static imp_status read_wordpiece(reader *r)
{
    imp_tokenizer *t = r->t;
    imp_vocab_str prefix;
    IMP_TRY(imp_json_only(r->model, "model",
                          "type unk_token continuing_subword_prefix max_input_chars_per_word vocab", r->err));
    IMP_TRY(imp_json_string(r->model, "model", "continuing_subword_prefix", &prefix, r->err));
    IMP_TRY(imp_tok_copy(t, prefix.p, prefix.n, &t->cont, r->err));
    t->word = (imp_vocab_str){"", 0};
    const json_t *max = json_object_get(r->model, "max_input_chars_per_word");
    if (max && (!json_is_integer(max) || json_integer_value(max) < 0 || json_integer_value(max) > 100000))
        return bad(r, "max_input_chars_per_word");
    t->max_word_chars = max ? (size_t)json_integer_value(max) : 100;
    return read_unk(r, true);
}

/* ---- special tokens of the configuration ----------------------------------------------------------------------------------- */

/* "text" or {"content": "text"}; -1: not given, or not in the vocabulary. */
static int32_t config_token(const reader *r, const char *key)
{
    const json_t *v = json_object_get(r->config, key);
    if (json_is_object(v)) v = json_object_get(v, "content");
    if (!json_is_string(v)) return -1;
    return imp_tokenizer_find(r->t, json_string_value(v), json_string_length(v));
}

static void set_edge(uint32_t *ids, size_t *n, size_t at, int32_t id, bool want)
{
    bool there = *n > 0 && ids[at ? *n - 1 : 0] == (uint32_t)id;
    if (there == want || (want && *n == TOK_MAX_FIX)) return;
    if (want) {
        if (!at) memmove(ids + 1, ids, *n * sizeof *ids);
        ids[at ? *n : 0] = (uint32_t)id;
        ++*n;
    } else {
        --*n;
        if (!at) memmove(ids, ids + 1, *n * sizeof *ids);
    }
}

/* Tokenizer classes that build their post-processor from add_bos_token and add_eos_token; others ignore the two. */
static void apply_config(reader *r)
{
    static const char *const classes[] = {"Llama", "Gemma", "Cohere"};
    imp_tokenizer *t = r->t;
    const char *cls = json_string_value(json_object_get(r->config, "tokenizer_class"));
    const json_t *bos = json_object_get(r->config, "add_bos_token"),
                 *eos = json_object_get(r->config, "add_eos_token");
    bool applies = false;
    for (size_t i = 0; cls && i < IMP_COUNT(classes); i++) applies |= strstr(cls, classes[i]) != NULL;
    t->bos = config_token(r, "bos_token");
    t->eos = config_token(r, "eos_token");
    t->pad = config_token(r, "pad_token");
    t->unk_token = config_token(r, "unk_token");
    if (t->unk_token < 0 && t->unk != TOK_NONE) t->unk_token = (int32_t)t->unk;
    if (t->bos < 0) t->bos = config_token(r, "cls_token");
    if (t->eos < 0) t->eos = config_token(r, "sep_token");
    if (applies && json_is_boolean(bos) && t->bos >= 0)
        set_edge(t->prefix, &t->n_prefix, 0, t->bos, json_is_true(bos));
    if (applies && json_is_boolean(eos) && t->eos >= 0)
        set_edge(t->suffix, &t->n_suffix, 1, t->eos, json_is_true(eos));
    t->adds_bos = t->n_prefix > 0;
}

/* ---- whole file -------------------------------------------------------------------------------------------------------- */

static imp_status read_model(reader *r)
{
    switch (r->kind) {
    case IMP_VOCAB_UNIGRAM: return read_unigram(r);
    case IMP_VOCAB_WORDPIECE: return read_wordpiece(r);
    case IMP_VOCAB_BPE:
    case IMP_VOCAB_SPM_BPE: break;
    }
    return read_bpe(r);
}

static void describe(imp_tokenizer *t)
{
    const char *name = t->model == IMP_VOCAB_UNIGRAM     ? "unigram"
                       : t->model == IMP_VOCAB_WORDPIECE ? "WordPiece"
                       : t->byte_fallback                ? "BPE with byte fallback"
                                                         : "BPE";
    imp_buf d = {0};
    imp_buf_fmt(&d, "%s from tokenizer.json, %zu tokens", name, t->n);
    if (!d.failed) memcpy(t->describe, d.data, IMP_MIN(d.n, sizeof t->describe - 1));
    imp_buf_deinit(&d);
}

static imp_status read_all(reader *r)
{
    size_t n = 0;
    IMP_TRY(imp_json_only(
        r->root, "the file",
        "version truncation padding added_tokens normalizer pre_tokenizer post_processor decoder model",
        r->err));
    IMP_TRY(find_model(r));
    IMP_TRY(count_ids(r, &n));
    IMP_TRY(imp_tok_new(n, &r->t, r->err));
    r->t->model = r->kind;
    IMP_TRY(read_vocab(r));
    IMP_TRY(read_added(r));
    IMP_TRY(read_model(r));
    IMP_TRY(imp_json_normalizer(r->t, json_object_get(r->root, "normalizer"), r->err));
    IMP_TRY(imp_json_pre_tokenizer(r->t, json_object_get(r->root, "pre_tokenizer"), r->err));
    IMP_TRY(imp_json_post_processor(r->t, json_object_get(r->root, "post_processor"), r->err));
    IMP_TRY(imp_json_decoder(r->t, json_object_get(r->root, "decoder"), r->err));
    apply_config(r);
    if (r->t->unk != TOK_NONE && r->t->kind[r->t->unk] == IMP_TOKEN_NORMAL)
        r->t->kind[r->t->unk] = IMP_TOKEN_UNKNOWN;
    describe(r->t);
    return imp_tok_finish(r->t, r->err);
}

static imp_status parse(reader *r, const char *json, size_t n, imp_json_bulk *bulk, json_t **root)
{
    json_error_t where;
    IMP_TRY(imp_json_bulk_read(bulk, json, n, r->err));
    *root = json_loadb(bulk->rest.data ? bulk->rest.data : "", bulk->rest.n,
                       JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (!*root) return imp_fail(r->err, IMP_FORMAT, "tokenizer.json is not valid JSON: %s", where.text);
    r->root = *root;
    r->bulk = bulk;
    return IMP_OK;
}

imp_status imp_tokenizer_from_json(const char *json, size_t n, const json_t *tokenizer_config,
                                   imp_tokenizer **out, imp_error *err)
{
    *out = NULL;
    imp_json_bulk bulk;
    json_t *root = NULL;
    reader r = {.config = tokenizer_config, .err = err};
    imp_status status = parse(&r, json, n, &bulk, &root);
    if (status == IMP_OK) status = read_all(&r);
    json_decref(root);
    imp_json_bulk_deinit(&bulk);
    if (status != IMP_OK) {
        imp_tokenizer_free(r.t);
        return status;
    }
    *out = r.t;
    return IMP_OK;
}
