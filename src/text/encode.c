/* text/encode.c - text to ids: added tokens, normaliser, pre-tokenizer, model, prefix and suffix.
 *
 * Place:   imp_tokenizer_encode, called by engine for every prompt.
 * Idea:    added tokens that are matched as written are cut out of the raw text first; what lies between is
 *          normalised, added tokens that are matched after normalisation are cut out of that, the rest becomes words.
 * Always:  ids already in *out stay; on failure *out has its old length.
 * Threads: any; all state of a call is in imp_tok_work.
 * Source:  Hugging Face tokenizers added_vocabulary.rs. */
#include "text/internal.h"

imp_status imp_tok_nomem(imp_error *err)
{
    return imp_fail(err, IMP_NOMEM, "out of memory in the tokenizer");
}

bool imp_tok_grow(void **p, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap) return true;
    size_t grown = *cap < SIZE_MAX / 4 ? IMP_MAX(*cap * 2, IMP_MAX(need, 64)) : need;
    if (grown > SIZE_MAX / size) return false;
    void *q = imp_sys_realloc(*p, grown * size);
    if (!q) return false;
    *p = q;
    *cap = grown;
    return true;
}

imp_status imp_tok_push(imp_tok_work *w, uint32_t id)
{
    if (!imp_tok_grow((void **)&w->out->id, &w->out->cap, w->out->n + 1, sizeof *w->out->id))
        return imp_tok_nomem(w->err);
    w->out->id[w->out->n++] = (int32_t)id;
    return IMP_OK;
}

imp_status imp_spans_add(imp_tok_work *w, imp_spans *s, size_t off, size_t n)
{
    if (n == 0) return IMP_OK;
    if (!imp_tok_grow((void **)&s->v, &s->cap, s->n + 1, sizeof *s->v)) return imp_tok_nomem(w->err);
    s->v[s->n++] = (imp_span){off, n};
    return IMP_OK;
}

imp_status imp_tok_push_missing(imp_tok_work *w, const char *s, size_t n, bool *fused)
{
    const imp_tokenizer *t = w->t;
    bool spell = t->byte_fallback;
    for (size_t i = 0; spell && i < n; i++) spell = t->byte_id[(uint8_t)s[i]] != TOK_NONE;
    if (spell) {
        for (size_t i = 0; i < n; i++) IMP_TRY(imp_tok_push(w, t->byte_id[(uint8_t)s[i]]));
        *fused = false;
        return IMP_OK;
    }
    if (t->unk == TOK_NONE || (*fused && t->fuse_unk)) return IMP_OK;
    *fused = true;
    return imp_tok_push(w, t->unk);
}

static imp_status encode_words(imp_tok_work *w, const char *s, size_t n, bool first)
{
    const char *text;
    const imp_spans *spans;
    IMP_TRY(imp_pre_run(w, s, n, first, &text, &spans));
    for (size_t i = 0; i < spans->n; i++) {
        const char *p = text + spans->v[i].off;
        size_t len = spans->v[i].n;
        switch (w->t->model) {
        case IMP_VOCAB_BPE:
        case IMP_VOCAB_SPM_BPE: IMP_TRY(imp_bpe_encode(w, p, len)); break;
        case IMP_VOCAB_UNIGRAM: IMP_TRY(imp_unigram_encode(w, p, len)); break;
        case IMP_VOCAB_WORDPIECE: IMP_TRY(imp_wordpiece_encode(w, p, len)); break;
        }
    }
    return IMP_OK;
}

/* ---- added tokens ------------------------------------------------------------------------------------------- */

/* Does the last character of s[0..n-1] satisfy is? *begin: where it starts. */
static bool ends_with(const char *s, size_t n, bool (*is)(int32_t), size_t *begin)
{
    if (n == 0) return false;
    size_t i = n - 1;
    while (i > 0 && n - i < 4 && ((uint8_t)s[i] & 0xC0) == 0x80) i--;
    int32_t cp;
    size_t len = imp_utf8_decode(s + i, n - i, &cp);
    *begin = i;
    return i + len == n && is(cp);
}

static bool starts_with(const char *s, size_t n, bool (*is)(int32_t), size_t *len)
{
    int32_t cp;
    if (n == 0) return false;
    *len = imp_utf8_decode(s, n, &cp);
    return is(cp);
}

/* The longest added token that starts at s[at]; its length, 0 when none. Those not to be matched now are passed over
 * together with the text they cover, as the reference does. */
static size_t added_at(const imp_strset *set, const char *s, size_t n, size_t at, uint32_t *index)
{
    imp_strset_walk walk;
    uint32_t value;
    size_t len = 0;
    imp_strset_begin(set, &walk);
    for (size_t i = at; i < n && imp_strset_next(set, &walk, s[i], &value); i++) {
        if (value == TOK_NONE) continue;
        *index = value;
        len = i + 1 - at;
    }
    return len;
}

static bool added_fits(const imp_tok_work *w, const imp_added *a, const char *s, size_t n, size_t begin,
                       size_t end)
{
    size_t x;
    if (a->special && !(w->flags & IMP_TOK_PARSE_SPECIAL)) return false;
    return !a->single_word ||
           (!ends_with(s, begin, imp_uni_word, &x) && !starts_with(s + end, n - end, imp_uni_word, &x));
}

typedef imp_status (*between_fn)(imp_tok_work *w, const char *s, size_t n, bool first);

/* Cut s at the added tokens of set: their ids are written, what lies between goes to fn. */
static imp_status cut_added(imp_tok_work *w, const imp_strset *set, const char *s, size_t n, bool first,
                            between_fn fn)
{
    size_t done = 0;
    for (size_t i = 0; set->n && i < n;) {
        uint32_t index = 0;
        uint8_t b = (uint8_t)s[i];
        size_t len = set->first[b] < set->first[b + 1] ? added_at(set, s, n, i, &index) : 0;
        if (len == 0) {
            i++;
            continue;
        }
        const imp_added *a = &w->t->added[index];
        size_t begin = i, end = i + len, x;
        i = end;
        if (!added_fits(w, a, s, n, begin, end)) continue;
        if (a->lstrip)
            while (begin > done && ends_with(s + done, begin - done, imp_uni_space, &x)) begin = done + x;
        if (a->rstrip)
            while (starts_with(s + end, n - end, imp_uni_space, &x)) end += x;
        if (begin > done) IMP_TRY(fn(w, s + done, begin - done, first && done == 0));
        IMP_TRY(imp_tok_push(w, a->id));
        done = end;
        if (i < end) i = end;
    }
    return done < n ? fn(w, s + done, n - done, first && done == 0) : IMP_OK;
}

static imp_status normalize_piece(imp_tok_work *w, const char *s, size_t n, bool first)
{
    const char *now = s;
    size_t len = n;
    for (size_t i = 0; i < w->t->n_norm; i++) {
        imp_buf *to = &w->norm[i & 1];
        IMP_TRY(imp_norm_run(w, &w->t->norm[i], now, len, to));
        now = to->data ? to->data : "";
        len = to->n;
    }
    return cut_added(w, &w->t->added_norm, now, len, first, encode_words);
}

/* ---- entry ---------------------------------------------------------------------------------------------------- */

static void work_deinit(imp_tok_work *w)
{
    for (int i = 0; i < 2; i++) {
        imp_buf_deinit(&w->norm[i]);
        imp_buf_deinit(&w->text[i]);
        imp_sys_free(w->span[i].v);
    }
    imp_buf_deinit(&w->spaced);
    imp_buf_deinit(&w->key);
    imp_sys_free(w->words.v);
    imp_sys_free(w->sym);
    imp_sys_free(w->cand);
    imp_sys_free(w->best);
    imp_match_free(w->match);
}

imp_status imp_tokenizer_encode(const imp_tokenizer *t, const char *text, size_t n, unsigned flags,
                                imp_ids *out, imp_error *err)
{
    imp_tok_work w = {.t = t, .out = out, .err = err, .flags = flags};
    size_t before = out->n;
    imp_status status = IMP_OK;
    w.match = imp_match_new();
    if (!w.match) return imp_tok_nomem(err);
    if (flags & IMP_TOK_ADD_SPECIAL)
        for (size_t i = 0; status == IMP_OK && i < t->n_prefix; i++) status = imp_tok_push(&w, t->prefix[i]);
    if (status == IMP_OK) status = cut_added(&w, &t->added_raw, text, n, true, normalize_piece);
    if (flags & IMP_TOK_ADD_SPECIAL)
        for (size_t i = 0; status == IMP_OK && i < t->n_suffix; i++) status = imp_tok_push(&w, t->suffix[i]);
    if (status != IMP_OK) out->n = before;
    work_deinit(&w);
    return status;
}
