/* text/bpe.c - byte pair encoding of one word, by merge ranks or by scores.
 *
 * Place:   encode.c, for each word; both byte-level vocabularies and SentencePiece's.
 * Idea:    a word is a doubly linked list of symbols; every adjacent pair that may merge waits in a heap, best rank
 *          (or score) first, leftmost first among equals. A merge retires two symbols' candidates lazily: a candidate
 *          is stale when the symbols at its place no longer span its size. n symbols cost O(n log n).
 * Always:  symbols in list order cover the word; a merged symbol is a piece of the vocabulary.
 * Source:  Sennrich et al. 2016; SentencePiece bpe_model.cc; Hugging Face tokenizers models/bpe. */
#include "text/internal.h"

#define META "\xE2\x96\x81"
#define END  UINT32_MAX

/* ---- merge table: open addressing, at most half full ----------------------------------------------------- */

static size_t slot_of(uint64_t key, size_t mask)
{
    key *= 0x9E3779B97F4A7C15u;
    return (size_t)(key ^ key >> 32) & mask;
}

bool imp_merges_init(imp_merges *m, imp_arena *a, size_t n)
{
    size_t cap = 16;
    while (cap / 2 < n) {
        if (cap > SIZE_MAX / 64) return false;
        cap *= 2;
    }
    m->slot = imp_arena_array(a, cap, sizeof *m->slot);
    if (!m->slot) return false;
    for (size_t i = 0; i < cap; i++) m->slot[i].key = UINT64_MAX;
    m->mask = cap - 1;
    return true;
}

void imp_merges_put(imp_merges *m, uint32_t left, uint32_t right, uint32_t rank, uint32_t id, bool replace)
{
    uint64_t key = (uint64_t)left << 32 | right;
    size_t i = slot_of(key, m->mask);
    while (m->slot[i].key != UINT64_MAX && m->slot[i].key != key) i = (i + 1) & m->mask;
    if (m->slot[i].key == key && !replace) return;
    m->slot[i] = (imp_merge_slot){key, rank, id};
}

static const imp_merge_slot *merges_get(const imp_merges *m, uint32_t left, uint32_t right)
{
    if (!m->slot) return NULL;
    uint64_t key = (uint64_t)left << 32 | right;
    size_t i = slot_of(key, m->mask);
    while (m->slot[i].key != UINT64_MAX) {
        if (m->slot[i].key == key) return &m->slot[i];
        i = (i + 1) & m->mask;
    }
    return NULL;
}

/* ---- heap of candidates ------------------------------------------------------------------------------------ */

enum { WAYS = 4 }; /* children of a node: four lie in one cache line */

static void sift_down(imp_merge_cand *heap, size_t n, size_t i, imp_merge_cand c)
{
    for (;;) {
        size_t down = WAYS * i + 1, end = IMP_MIN(down + WAYS, n);
        if (down >= n) break;
        for (size_t k = down + 1; k < end; k++)
            if (heap[k].key < heap[down].key) down = k;
        if (heap[down].key >= c.key) break;
        heap[i] = heap[down];
        i = down;
    }
    heap[i] = c;
}

static void sift_up(imp_merge_cand *heap, size_t i, imp_merge_cand c)
{
    while (i > 0) {
        size_t up = (i - 1) / WAYS;
        if (heap[up].key <= c.key) break;
        heap[i] = heap[up];
        i = up;
    }
    heap[i] = c;
}

static imp_merge_cand heap_pop(imp_tok_work *w)
{
    imp_merge_cand top = w->cand[0], last = w->cand[--w->n_cand];
    if (w->n_cand) sift_down(w->cand, w->n_cand, 0, last);
    return top;
}

/* ---- pairs --------------------------------------------------------------------------------------------------- */

/* Grows as the score falls; scores come from files as f32. */
static uint32_t score_rank(double score)
{
    float f = (float)score;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    u = u >> 31 ? ~u : u | 0x80000000u; /* grows with the score */
    return ~u;
}

/* May the symbol at a merge with the next one? How soon, into what? */
static bool pair(const imp_tok_work *w, const char *s, uint32_t a, imp_merge_cand *out)
{
    const imp_tokenizer *t = w->t;
    const imp_merge_sym *x = &w->sym[a];
    if (x->next == END) return false;
    const imp_merge_sym *y = &w->sym[x->next];
    size_t n = (size_t)x->n + y->n;
    uint32_t rank, id;
    if (t->model == IMP_VOCAB_SPM_BPE) {
        if (n > t->max_piece) return false;
        id = imp_tok_lookup(t, s + x->off, n);
        if (id == TOK_NONE || (t->flag[id] & TOK_F_HIDDEN)) return false;
        rank = score_rank(t->score[id]);
    } else {
        if (x->id == TOK_NONE || y->id == TOK_NONE) return false;
        const imp_merge_slot *m = merges_get(&t->merges, x->id, y->id);
        if (!m) return false;
        rank = m->rank;
        id = m->id;
    }
    *out = (imp_merge_cand){(uint64_t)rank << 32 | a, id, (uint32_t)n};
    return true;
}

static imp_status offer(imp_tok_work *w, const char *s, uint32_t a)
{
    imp_merge_cand c;
    if (a == END || !pair(w, s, a, &c)) return IMP_OK;
    if (!imp_tok_grow((void **)&w->cand, &w->cand_cap, w->n_cand + 1, sizeof c)) return imp_tok_nomem(w->err);
    sift_up(w->cand, w->n_cand++, c);
    return IMP_OK;
}

static imp_status merge_all(imp_tok_work *w, const char *s, size_t n_sym)
{
    w->n_cand = 0;
    if (!imp_tok_grow((void **)&w->cand, &w->cand_cap, n_sym, sizeof *w->cand)) return imp_tok_nomem(w->err);
    for (size_t i = 0; i + 1 < n_sym; i++) w->n_cand += pair(w, s, (uint32_t)i, &w->cand[w->n_cand]);
    for (size_t i = w->n_cand / WAYS + 1; i-- > 0;)
        if (i < w->n_cand) sift_down(w->cand, w->n_cand, i, w->cand[i]);
    while (w->n_cand) {
        imp_merge_cand c = heap_pop(w);
        uint32_t at = (uint32_t)c.key;
        imp_merge_sym *x = &w->sym[at];
        if (x->n == 0 || x->next == END || x->n + w->sym[x->next].n != c.size) continue;
        imp_merge_sym *y = &w->sym[x->next];
        x->n += y->n;
        x->id = c.id;
        x->next = y->next;
        y->n = 0;
        if (x->next != END) w->sym[x->next].prev = at;
        IMP_TRY(offer(w, s, at));
        IMP_TRY(offer(w, s, x->prev));
    }
    return IMP_OK;
}

/* ---- symbols --------------------------------------------------------------------------------------------------- */

static imp_status add_sym(imp_tok_work *w, size_t *n, size_t off, size_t len, uint32_t id)
{
    if (!imp_tok_grow((void **)&w->sym, &w->sym_cap, *n + 1, sizeof *w->sym)) return imp_tok_nomem(w->err);
    uint32_t i = (uint32_t)*n;
    w->sym[i] = (imp_merge_sym){(uint32_t)off, (uint32_t)len, i ? i - 1 : END, END, id};
    if (i) w->sym[i - 1].next = i;
    ++*n;
    return IMP_OK;
}

static uint32_t char_id(const imp_tokenizer *t, int32_t cp, const char *s, size_t n)
{
    return cp >= 0 && cp < (int32_t)IMP_COUNT(t->low_id) ? t->low_id[cp] : imp_tok_lookup(t, s, n);
}

/* Characters to symbols. With ranks, a character that is no piece becomes its byte tokens or the unknown token right
 * away; several unknown in a row become one where the vocabulary says so. */
static imp_status split(imp_tok_work *w, const char *s, size_t n, size_t *n_sym)
{
    const imp_tokenizer *t = w->t;
    bool after_unk = false;
    *n_sym = 0;
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t len = imp_utf8_decode(s + i, n - i, &cp);
        uint32_t id = char_id(t, cp, s + i, len);
        bool spell = t->byte_fallback && id == TOK_NONE && t->model == IMP_VOCAB_BPE;
        for (size_t k = 0; spell && k < len; k++) spell = t->byte_id[(uint8_t)s[i + k]] != TOK_NONE;
        if (id != TOK_NONE || t->model == IMP_VOCAB_SPM_BPE) {
            IMP_TRY(add_sym(w, n_sym, i, len, id));
            after_unk = false;
        } else if (spell) {
            for (size_t k = 0; k < len; k++)
                IMP_TRY(add_sym(w, n_sym, i + k, 1, t->byte_id[(uint8_t)s[i + k]]));
            after_unk = false;
        } else if (after_unk && t->fuse_unk) {
            w->sym[*n_sym - 1].n += (uint32_t)len;
        } else if (t->unk != TOK_NONE) {
            IMP_TRY(add_sym(w, n_sym, i, len, t->unk));
            after_unk = true;
        }
        i += len;
    }
    return IMP_OK;
}

static imp_status encode_word(imp_tok_work *w, const char *s, size_t n)
{
    const imp_tokenizer *t = w->t;
    size_t n_sym;
    if (n == 0) return IMP_OK;
    if (t->ignore_merges && n <= t->max_piece) {
        uint32_t id = imp_tok_lookup(t, s, n);
        if (id != TOK_NONE && !(t->flag[id] & TOK_F_HIDDEN)) return imp_tok_push(w, id);
    }
    if (n >= UINT32_MAX)
        return imp_fail(w->err, IMP_TOO_LARGE, "a word of %zu bytes is too long to tokenize", n);
    IMP_TRY(split(w, s, n, &n_sym));
    IMP_TRY(merge_all(w, s, n_sym));
    bool fused = false;
    for (uint32_t i = n_sym ? 0 : END; i != END; i = w->sym[i].next) {
        const imp_merge_sym *x = &w->sym[i];
        if (x->id == TOK_NONE) {
            IMP_TRY(imp_tok_push_missing(w, s + x->off, x->n, &fused));
        } else {
            IMP_TRY(imp_tok_push(w, x->id));
            fused = false;
        }
    }
    return IMP_OK;
}

/* A word as the pre-tokenizer left it. When no piece has U+2581 behind another character, no merge crosses such a
 * border, and a whole text in one word is cut there: same result, small heaps. */
imp_status imp_bpe_encode(imp_tok_work *w, const char *s, size_t n)
{
    if (!w->t->split_words) return encode_word(w, s, n);
    size_t begin = 0;
    bool in_meta = true;
    for (size_t i = 0; i < n;) {
        const char *hit = memchr(s + i, META[0], n - i);
        if (!hit) break;
        size_t at = (size_t)(hit - s);
        if (at > i) in_meta = false;
        if (n - at < 3 || memcmp(hit, META, 3) != 0) {
            in_meta = false;
            i = at + 1;
            continue;
        }
        if (!in_meta && at > begin) {
            IMP_TRY(encode_word(w, s + begin, at - begin));
            begin = at;
        }
        in_meta = true;
        i = at + 3;
    }
    return encode_word(w, s + begin, n - begin);
}
