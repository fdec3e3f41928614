/* text/build.c - the life of a tokenizer: room for pieces, the tables that follow from them, access, end.
 *
 * Place:   from_vocab.c and from_json.c fill a tokenizer through this file; everything else reads it.
 * Always:  a finished tokenizer has no two pieces of one spelling, and all its ids are in range. */
#include "text/internal.h"

#define META "\xE2\x96\x81"

imp_status imp_tok_new(size_t n, imp_tokenizer **out, imp_error *err)
{
    *out = NULL;
    if (n == 0) return imp_fail(err, IMP_INVALID, "the vocabulary is empty");
    if (n > INT32_MAX) return imp_fail(err, IMP_TOO_LARGE, "a vocabulary of %zu tokens is too large", n);
    imp_tokenizer *t = imp_sys_calloc(1, sizeof *t);
    if (!t) return imp_tok_nomem(err);
    t->arena = imp_arena_new(IMP_MAX((size_t)65536, n * 40));
    t->map = imp_map_new(n);
    if (t->arena) {
        t->piece = imp_arena_array(t->arena, n, sizeof *t->piece);
        t->kind = imp_arena_array(t->arena, n, 1);
        t->flag = imp_arena_array(t->arena, n, 1);
    }
    if (!t->map || !t->piece || !t->kind || !t->flag) {
        imp_tokenizer_free(t);
        return imp_tok_nomem(err);
    }
    memset(t->kind, IMP_TOKEN_NORMAL, n);
    t->n = n;
    t->unk = TOK_NONE;
    t->bos = t->eos = t->unk_token = t->pad = -1;
    for (size_t i = 0; i < 256; i++) t->byte_id[i] = TOK_NONE;
    *out = t;
    return IMP_OK;
}

void imp_tokenizer_free(imp_tokenizer *t)
{
    if (!t) return;
    for (size_t i = 0; i < t->n_norm; i++) imp_regex_free(t->norm[i].re);
    for (size_t i = 0; i < t->n_pre; i++) imp_regex_free(t->pre[i].re);
    imp_map_free(t->map);
    imp_arena_free(t->arena);
    imp_sys_free(t);
}

imp_status imp_tok_copy(imp_tokenizer *t, const char *p, size_t n, imp_vocab_str *out, imp_error *err)
{
    char *copy = imp_arena_strndup(t->arena, p, n);
    if (!copy) return imp_tok_nomem(err);
    *out = (imp_vocab_str){copy, n};
    return IMP_OK;
}

imp_status imp_tok_set_piece(imp_tokenizer *t, uint32_t id, const char *p, size_t n, imp_error *err)
{
    if (t->piece[id].p) return imp_fail(err, IMP_INVALID, "two tokens of the vocabulary have the id %u", id);
    IMP_TRY(imp_tok_copy(t, p, n, &t->piece[id], err));
    if (n == 0) {
        t->kind[id] = IMP_TOKEN_UNUSED;
        return IMP_OK;
    }
    imp_status status = imp_map_put(t->map, t->piece[id].p, n, id);
    if (status == IMP_INVALID) {
        uint32_t other = imp_tok_lookup(t, p, n);
        return imp_fail(err, IMP_INVALID, "tokens %u and %u of the vocabulary have the same spelling", other,
                        id);
    }
    if (status != IMP_OK) return imp_tok_nomem(err);
    if (n > t->max_piece) t->max_piece = n;
    return IMP_OK;
}

uint32_t imp_tok_lookup(const imp_tokenizer *t, const char *p, size_t n)
{
    uint32_t id;
    return imp_map_get(t->map, p, n, &id) ? id : TOK_NONE;
}

imp_norm_step *imp_tok_add_norm(imp_tokenizer *t, imp_norm_kind kind)
{
    if (t->n_norm == TOK_MAX_STEP) return NULL;
    imp_norm_step *s = &t->norm[t->n_norm++];
    s->kind = kind;
    return s;
}

imp_pre_step *imp_tok_add_pre(imp_tokenizer *t, imp_pre_kind kind)
{
    if (t->n_pre == TOK_MAX_STEP) return NULL;
    imp_pre_step *s = &t->pre[t->n_pre++];
    s->kind = kind;
    s->behavior = SPLIT_ISOLATED;
    return s;
}

imp_dec_step *imp_tok_add_dec(imp_tokenizer *t, imp_dec_kind kind)
{
    if (t->n_dec == TOK_MAX_STEP) return NULL;
    imp_dec_step *s = &t->dec[t->n_dec++];
    s->kind = kind;
    return s;
}

/* ---- tables -------------------------------------------------------------------------------------------------- */

static void find_bytes(imp_tokenizer *t)
{
    for (unsigned b = 0; b < 256; b++) {
        static const char hex[] = "0123456789ABCDEF";
        char name[6] = {'<', '0', 'x', hex[b >> 4], hex[b & 15], '>'};
        t->byte_id[b] = imp_tok_lookup(t, name, sizeof name);
    }
}

static void find_low(imp_tokenizer *t)
{
    for (int32_t cp = 0; cp < (int32_t)IMP_COUNT(t->low_id); cp++) {
        char u[4];
        t->low_id[cp] = imp_tok_lookup(t, u, imp_utf8_encode(cp, u));
    }
}

/* True when no piece has U+2581 behind another character. */
static bool words_stand_alone(const imp_tokenizer *t)
{
    for (size_t i = 0; i < t->n; i++) {
        const char *p = t->piece[i].p;
        size_t n = t->piece[i].n, at = 0;
        while (n - at >= 3 && memcmp(p + at, META, 3) == 0) at += 3;
        for (; n - at >= 3; at++)
            if (p[at] == META[0] && memcmp(p + at, META, 3) == 0) return false;
    }
    return true;
}

static imp_status build_trie(imp_tokenizer *t, imp_error *err)
{
    imp_strset_item *item = imp_arena_array(t->arena, t->n, sizeof *item);
    if (!item) return imp_tok_nomem(err);
    double low = 0;
    size_t n = 0;
    for (size_t i = 0; i < t->n; i++) {
        if (t->score[i] < low) low = t->score[i];
        if (t->piece[i].n && !(t->flag[i] & TOK_F_HIDDEN))
            item[n++] = (imp_strset_item){t->piece[i].p, t->piece[i].n, (uint32_t)i};
    }
    t->unk_score = t->f32_scores ? (double)(float)(low - 10) : low - 10;
    imp_strset_build(&t->trie, item, n);
    return IMP_OK;
}

static imp_status normalized_text(imp_tokenizer *t, imp_vocab_str in, imp_vocab_str *out, imp_error *err)
{
    imp_tok_work w = {.t = t, .err = err};
    w.match = imp_match_new();
    imp_status status = w.match ? IMP_OK : imp_tok_nomem(err);
    const char *now = in.p;
    size_t n = in.n;
    for (size_t i = 0; status == IMP_OK && i < t->n_norm; i++) {
        imp_buf *to = &w.norm[i & 1];
        status = imp_norm_run(&w, &t->norm[i], now, n, to);
        now = to->data ? to->data : "";
        n = to->n;
    }
    if (status == IMP_OK) status = imp_tok_copy(t, now, n, out, err);
    imp_buf_deinit(&w.norm[0]);
    imp_buf_deinit(&w.norm[1]);
    imp_match_free(w.match);
    return status;
}

static imp_status build_added(imp_tokenizer *t, imp_error *err)
{
    imp_strset_item *raw = imp_arena_array(t->arena, t->n_added + 1, sizeof *raw);
    imp_strset_item *norm = imp_arena_array(t->arena, t->n_added + 1, sizeof *norm);
    size_t n_raw = 0, n_norm = 0;
    if (!raw || !norm) return imp_tok_nomem(err);
    for (size_t i = 0; i < t->n_added; i++) {
        imp_vocab_str text = t->added[i].text;
        if (t->added[i].normalized) {
            if (t->n_norm) IMP_TRY(normalized_text(t, text, &text, err));
            norm[n_norm++] = (imp_strset_item){text.p, text.n, (uint32_t)i};
        } else {
            raw[n_raw++] = (imp_strset_item){text.p, text.n, (uint32_t)i};
        }
    }
    imp_strset_build(&t->added_raw, raw, n_raw);
    imp_strset_build(&t->added_norm, norm, n_norm);
    return IMP_OK;
}

imp_status imp_tok_finish(imp_tokenizer *t, imp_error *err)
{
    if (t->byte_fallback) find_bytes(t);
    find_low(t);
    bool bpe = t->model == IMP_VOCAB_BPE || t->model == IMP_VOCAB_SPM_BPE;
    t->split_words = bpe && !t->ignore_merges && words_stand_alone(t);
    if (t->model == IMP_VOCAB_UNIGRAM) IMP_TRY(build_trie(t, err));
    return build_added(t, err);
}

/* ---- access -------------------------------------------------------------------------------------------------- */

static bool in_range(const imp_tokenizer *t, int32_t id)
{
    return id >= 0 && (size_t)id < t->n;
}

size_t imp_tokenizer_bytes(const imp_tokenizer *t)
{
    return t == NULL ? 0 : sizeof *t + imp_arena_bytes(t->arena) + imp_map_bytes(t->map);
}

size_t imp_tokenizer_n(const imp_tokenizer *t)
{
    return t->n;
}

const char *imp_tokenizer_piece(const imp_tokenizer *t, int32_t id, size_t *n)
{
    if (n) *n = in_range(t, id) ? t->piece[id].n : 0;
    return in_range(t, id) ? t->piece[id].p : NULL;
}

imp_token_kind imp_tokenizer_kind(const imp_tokenizer *t, int32_t id)
{
    return in_range(t, id) ? (imp_token_kind)t->kind[id] : IMP_TOKEN_UNUSED;
}

int32_t imp_tokenizer_find(const imp_tokenizer *t, const char *piece, size_t n)
{
    uint32_t id = imp_tok_lookup(t, piece, n);
    return id == TOK_NONE ? -1 : (int32_t)id;
}

int32_t imp_tokenizer_bos(const imp_tokenizer *t)
{
    return t->bos;
}
int32_t imp_tokenizer_eos(const imp_tokenizer *t)
{
    return t->eos;
}
int32_t imp_tokenizer_unk(const imp_tokenizer *t)
{
    return t->unk_token;
}
int32_t imp_tokenizer_pad(const imp_tokenizer *t)
{
    return t->pad;
}
bool imp_tokenizer_adds_bos(const imp_tokenizer *t)
{
    return t->adds_bos;
}
const char *imp_tokenizer_describe(const imp_tokenizer *t)
{
    return t->describe;
}

void imp_ids_deinit(imp_ids *v)
{
    imp_sys_free(v->id);
    *v = (imp_ids){0};
}
