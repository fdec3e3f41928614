/* text/from_vocab.c - a vocabulary as GGUF stores it becomes a tokenizer.
 *
 * Place:   model/tokenizer_load.c reads the file's keys into an imp_vocab.
 * Idea:    GGUF names a model kind and a pre-tokenizer where tokenizer.json spells steps out; here each kind is
 *          written as those steps. Control tokens are matched only when asked for, user-defined tokens always.
 * Always:  special ids are in range or absent; duplicate spellings and unknown names are refused.
 * Source:  the GGUF specification, "tokenizer" keys; llama.cpp for what their absence means. */
#include <math.h>

#include "text/internal.h"

static const imp_vocab_str META = {"\xE2\x96\x81", 3}, SPACE = {" ", 1}, NOTHING = {"", 0};

static imp_status check_id(const imp_vocab *v, int64_t id, const char *name, int32_t *out, imp_error *err)
{
    *out = -1;
    if (id < -1 || (id >= 0 && (uint64_t)id >= v->n_token))
        return imp_fail_field(err, IMP_INVALID, name,
                              "the %s token id %lld is outside the vocabulary of %zu tokens", name,
                              (long long)id, v->n_token);
    *out = (int32_t)id;
    return IMP_OK;
}

static imp_status add_pieces(imp_tokenizer *t, const imp_vocab *v, imp_error *err)
{
    size_t n_added = 0;
    for (size_t i = 0; i < v->n_token; i++) {
        int32_t kind = v->kind ? v->kind[i] : IMP_TOKEN_NORMAL;
        if (kind < IMP_TOKEN_NORMAL || kind > IMP_TOKEN_BYTE)
            return imp_fail(err, IMP_INVALID, "token %zu has the unknown kind %d", i, kind);
        t->kind[i] = (uint8_t)kind;
        IMP_TRY(imp_tok_set_piece(t, (uint32_t)i, v->token[i].p, v->token[i].n, err));
        bool special = kind == IMP_TOKEN_CONTROL || kind == IMP_TOKEN_UNKNOWN;
        bool byte = kind == IMP_TOKEN_BYTE;
        if (special) t->flag[i] = TOK_F_SKIP | TOK_F_RAW | TOK_F_WORD | TOK_F_HIDDEN;
        if (kind == IMP_TOKEN_USER) t->flag[i] = TOK_F_RAW | TOK_F_WORD;
        if (byte) t->flag[i] = TOK_F_HIDDEN;
        n_added += special || kind == IMP_TOKEN_USER;
    }
    t->added = imp_arena_array(t->arena, n_added + 1, sizeof *t->added);
    if (!t->added) return imp_tok_nomem(err);
    for (size_t i = 0; i < v->n_token; i++) {
        if (t->kind[i] != IMP_TOKEN_CONTROL && t->kind[i] != IMP_TOKEN_UNKNOWN &&
            t->kind[i] != IMP_TOKEN_USER)
            continue;
        bool special = t->kind[i] != IMP_TOKEN_USER;
        t->added[t->n_added++] = (imp_added){.text = t->piece[i],
                                             .id = (uint32_t)i,
                                             .special = special,
                                             .rstrip = special && v->rstrip_special && (int64_t)i != v->bos &&
                                                       (int64_t)i != v->unk};
    }
    return IMP_OK;
}

static imp_status add_scores(imp_tokenizer *t, const imp_vocab *v, imp_error *err)
{
    if (!v->score) return imp_fail(err, IMP_INVALID, "the vocabulary has no scores, which its model needs");
    t->score = imp_arena_array(t->arena, v->n_token, sizeof *t->score);
    if (!t->score) return imp_tok_nomem(err);
    for (size_t i = 0; i < v->n_token; i++) {
        if (!isfinite(v->score[i]))
            return imp_fail(err, IMP_INVALID, "the score of token %zu is not a number", i);
        t->score[i] = (double)v->score[i];
    }
    return IMP_OK;
}

static imp_status add_merges(imp_tokenizer *t, const imp_vocab *v, imp_error *err)
{
    if (v->n_merge >= UINT32_MAX) return imp_fail(err, IMP_TOO_LARGE, "%zu merges are too many", v->n_merge);
    if (!imp_merges_init(&t->merges, t->arena, v->n_merge)) return imp_tok_nomem(err);
    imp_buf both = {0};
    imp_status status = IMP_OK;
    for (size_t i = 0; status == IMP_OK && i < v->n_merge; i++) {
        imp_vocab_str m = v->merge[i];
        const char *gap = m.n > 1 ? memchr(m.p + 1, ' ', m.n - 1) : NULL;
        size_t left = gap ? (size_t)(gap - m.p) : 0;
        if (!gap || left + 1 >= m.n) {
            status = imp_fail(err, IMP_INVALID, "merge %zu is not two pieces with a space between them", i);
            break;
        }
        both.n = 0;
        imp_buf_add(&both, m.p, left);
        imp_buf_add(&both, gap + 1, m.n - left - 1);
        if (both.failed) {
            status = imp_tok_nomem(err);
            break;
        }
        uint32_t a = imp_tok_lookup(t, m.p, left), b = imp_tok_lookup(t, gap + 1, m.n - left - 1);
        uint32_t c = imp_tok_lookup(t, both.data, both.n);
        /* A merge without a token to its name can never apply; files whose vocabulary was cut down carry such merges. */
        if (a != TOK_NONE && b != TOK_NONE && c != TOK_NONE)
            imp_merges_put(&t->merges, a, b, (uint32_t)i, c, false);
    }
    imp_buf_deinit(&both);
    return status;
}

static imp_status too_many(imp_error *err)
{
    return imp_fail(err, IMP_UNSUPPORTED, "the tokenizer has too many steps");
}

/* ---- the four kinds ------------------------------------------------------------------------------------------- */

static imp_status make_bpe(imp_tokenizer *t, const imp_vocab *v, const imp_pre_def **out_def, imp_error *err)
{
    const imp_pre_def *def = imp_pre_find(v->pre ? v->pre : "");
    if (!def)
        return imp_fail(err, IMP_UNSUPPORTED,
                        "the pre-tokenizer \"%s\" is not known; convert the model again with a known one",
                        v->pre ? v->pre : "(none named)");
    for (size_t i = 0; i < IMP_COUNT(def->pattern) && def->pattern[i]; i++) {
        imp_pre_step *st = imp_tok_add_pre(t, PRE_SPLIT);
        if (!st) return too_many(err);
        IMP_TRY(imp_regex_new(def->pattern[i], strlen(def->pattern[i]), &st->re, err));
    }
    if (!imp_tok_add_pre(t, PRE_BYTE_LEVEL) || !imp_tok_add_dec(t, DEC_BYTE_LEVEL)) return too_many(err);
    t->ignore_merges = def->ignore_merges;
    *out_def = def;
    return add_merges(t, v, err);
}

static imp_status make_spaces(imp_tokenizer *t, const imp_vocab *v, bool prefix, bool collapse,
                              imp_error *err)
{
    if (v->n_charsmap) {
        imp_norm_step *map = imp_tok_add_norm(t, NORM_CHARSMAP_LONGEST);
        if (!map) return too_many(err);
        IMP_TRY(imp_charsmap_init(&map->map, t->arena, v->charsmap, v->n_charsmap, err));
    }
    imp_norm_step *st = imp_tok_add_norm(t, NORM_SPACES);
    imp_dec_step *back = imp_tok_add_dec(t, DEC_REPLACE);
    if (!st || !back || !imp_tok_add_dec(t, DEC_BYTE_FALLBACK)) return too_many(err);
    st->prefix = prefix;
    st->collapse = collapse;
    back->from = META;
    back->to = SPACE;
    t->dec_strip = SPACE;
    t->dec_strip_max = prefix ? 1 : 0;
    t->byte_fallback = true;
    t->fuse_unk = true;
    t->f32_scores = true;
    return add_scores(t, v, err);
}

static imp_status make_wordpiece(imp_tokenizer *t, imp_error *err)
{
    imp_norm_step *norm = imp_tok_add_norm(t, NORM_BERT);
    imp_dec_step *back = imp_tok_add_dec(t, DEC_WORDPIECE);
    if (!norm || !back || !imp_tok_add_pre(t, PRE_BERT)) return too_many(err);
    norm->clean = norm->cjk = norm->accents = norm->lower = true;
    back->to = t->word = META;
    back->from = t->cont = NOTHING;
    back->flag = true;
    t->max_word_chars = 100;
    for (size_t i = 0; i < t->n; i++) { /* "[unused7]" and the like carry no mark of a word's start */
        imp_vocab_str p = t->piece[i];
        if (p.n > 2 && p.p[0] == '[' && p.p[p.n - 1] == ']') t->flag[i] |= TOK_F_WORD;
    }
    return IMP_OK;
}

/* Which ids stand around a text, and in which order. */
static imp_status add_fix(imp_tokenizer *t, const imp_vocab *v, const imp_pre_def *def, imp_error *err)
{
    int32_t cls, sep, mask;
    IMP_TRY(check_id(v, v->bos, "bos", &t->bos, err));
    IMP_TRY(check_id(v, v->eos, "eos", &t->eos, err));
    IMP_TRY(check_id(v, v->unk, "unknown", &t->unk_token, err));
    IMP_TRY(check_id(v, v->pad, "padding", &t->pad, err));
    IMP_TRY(check_id(v, v->sep, "separator", &sep, err));
    IMP_TRY(check_id(v, v->cls, "cls", &cls, err));
    IMP_TRY(check_id(v, v->mask, "mask", &mask, err));
    bool wordpiece = v->model == IMP_VOCAB_WORDPIECE;
    bool bos = v->add_bos >= 0
                   ? v->add_bos > 0
                   : wordpiece || v->model == IMP_VOCAB_SPM_BPE || (def && (def->add_bos || def->add_sep));
    bool eos = v->add_eos >= 0 ? v->add_eos > 0
                               : wordpiece || v->model == IMP_VOCAB_UNIGRAM || (def && def->add_sep);
    int32_t first = t->bos, last = t->eos;
    if (wordpiece || first < 0) first = cls >= 0 ? cls : first;
    if (wordpiece || last < 0 || (def && def->add_sep)) last = sep >= 0 ? sep : last;
    if (wordpiece) eos = v->add_eos != 0;
    if (bos && first >= 0) t->prefix[t->n_prefix++] = (uint32_t)first;
    if (eos && last >= 0) t->suffix[t->n_suffix++] = (uint32_t)last;
    t->adds_bos = t->n_prefix > 0;
    if (t->bos < 0 && wordpiece) t->bos = cls;
    if (t->eos < 0 && wordpiece) t->eos = sep;
    return IMP_OK;
}

static imp_status build(imp_tokenizer *t, const imp_vocab *v, imp_error *err)
{
    const imp_pre_def *def = NULL;
    const char *name = "";
    t->model = v->model;
    IMP_TRY(add_pieces(t, v, err));
    switch (v->model) {
    case IMP_VOCAB_BPE:
        name = "byte-level BPE";
        IMP_TRY(make_bpe(t, v, &def, err));
        break;
    case IMP_VOCAB_SPM_BPE:
        name = "SentencePiece BPE with byte fallback";
        IMP_TRY(make_spaces(t, v, v->add_space_prefix != 0, v->remove_extra_whitespaces, err));
        break;
    case IMP_VOCAB_UNIGRAM:
        name = "SentencePiece unigram";
        IMP_TRY(make_spaces(t, v, v->add_space_prefix != 0, v->remove_extra_whitespaces, err));
        break;
    case IMP_VOCAB_WORDPIECE:
        name = "WordPiece";
        IMP_TRY(make_wordpiece(t, err));
        break;
    default: return imp_fail(err, IMP_UNSUPPORTED, "vocabulary model %d is not known", (int)v->model);
    }
    IMP_TRY(add_fix(t, v, def, err));
    if (t->unk_token >= 0 && v->model != IMP_VOCAB_BPE) t->unk = (uint32_t)t->unk_token;
    IMP_TRY(imp_tok_finish(t, err));
    if (v->model != IMP_VOCAB_BPE && t->unk == TOK_NONE)
        for (size_t b = 0; b < 256; b++)
            if (t->byte_id[b] == TOK_NONE)
                return imp_fail(err, IMP_INVALID,
                                "the vocabulary has neither an unknown token nor one for the byte 0x%02zX",
                                b);
    imp_buf d = {0};
    imp_buf_fmt(&d, "%s%s%s, %zu tokens", name, def ? ", pre-tokenizer " : "", def ? def->name : "", t->n);
    if (d.failed) {
        imp_buf_deinit(&d);
        return imp_tok_nomem(err);
    }
    memcpy(t->describe, d.data, IMP_MIN(d.n, sizeof t->describe - 1));
    imp_buf_deinit(&d);
    return IMP_OK;
}

imp_status imp_tokenizer_from_vocab(const imp_vocab *v, imp_tokenizer **out, imp_error *err)
{
    imp_tokenizer *t;
    *out = NULL;
    IMP_TRY(imp_tok_new(v->n_token, &t, err));
    imp_status status = build(t, v, err);
    if (status != IMP_OK) {
        imp_tokenizer_free(t);
        return status;
    }
    *out = t;
    return IMP_OK;
}
