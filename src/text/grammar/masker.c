/* text/grammar/masker.c - a grammar over a vocabulary: which tokens may come next.
 *
 * Idea:    a configuration is a set of (state, stack) pairs; configurations and stacks are numbered when they are first met,
 *          and a table keeps where each goes with each byte. Walking a vocabulary is then a table look-up a byte.
 *          The pairs of one stack look at the vocabulary once, whatever the stack is: on top of the stack OPEN, whose end
 *          nobody knows. That gives the tokens allowed under any stack, and the few places where a token leaves what is
 *          known; only those are walked again with the real stacks. So "inside a string" costs one walk a grammar, not one
 *          for every place where a string may stand.
 * Always:  the mask is exactly the set of tokens whose bytes lead to a configuration that is not dead.
 * Threads: every function that is not static takes the masker's lock.
 * Source:  lazy determinisation as in RE2; the split into stack-independent and dependent tokens as in XGrammar (Dong et al.
 *          2024). */
#include <stdlib.h>

#include "base/thread.h"
#include "text/grammar/grammar_int.h"

enum {
    BOTTOM = 0,      /* stack: nothing below; the grammar may end */
    OPEN = 1,        /* stack: what is below is not looked at */
    FRAME = 2,       /* stack FRAME + i is frame i */
    ENDS = 1,        /* configuration: the text may end here */
    LEAVES = 2,      /* configuration: a rule on top of OPEN may end here */
    DEAD = 0,        /* configuration 0 */
    UNKNOWN = -1,    /* not computed yet (as u32) */
    MAX_PAIR = 4096, /* pairs a configuration may have */
    N_SEEN = 1 << 14,
    MAX_WORK = 3000000, /* edges looked at for one mask */
    N_MEMO = 32
};

typedef struct view { /* what one set of states allows on top of OPEN */
    bool done;
    uint32_t n_token; /* allowed whatever is below ... */
    int32_t *token;   /* ... as a list when they are few, else NULL and */
    uint32_t *bits;   /* [n_word] */
    uint32_t *leaf;   /* [n_leaf] nodes whose children leave the rule */
    uint32_t n_leaf;
} view;

typedef struct known { /* of a configuration */
    uint32_t *to;      /* [n_class] where a byte leads; NULL: nothing asked yet */
    view *open;        /* when it was asked as one on top of OPEN */
} known;

struct imp_masker {
    _Atomic uint32_t refs;
    imp_grammar *g;
    const imp_vocab_tree *v;
    imp_mutex *lock;
    size_t max_bytes, bytes; /* bytes: of tables that grow, without the two below */
    uint32_t generation;     /* raised when everything was forgotten */
    uint8_t class_of[256];
    uint32_t n_class, n_word;
    gr_intern frame, config;
    known *known; /* [cap_known] */
    uint32_t cap_known, start;

    uint64_t *pair, *todo; /* [MAX_PAIR] each, scratch */
    uint32_t n_pair, n_todo;
    uint64_t *seen_key; /* [N_SEEN] */
    uint32_t *seen_at, seen_stamp;
    uint32_t *list; /* [2 * MAX_PAIR + 1] */
    uint32_t *path; /* [max_depth + 1] */
    uint64_t work;
    imp_status status; /* of the operation under way */

    uint32_t memo_config[N_MEMO], memo_next;
    uint32_t *memo; /* [N_MEMO][n_word] */
};

struct imp_matcher {
    imp_masker *m;
    uint32_t config, generation;
    imp_buf text; /* what was accepted, to find the place again after the masker forgot */
};

/* ---- configurations --------------------------------------------------------------------------------- */

static uint64_t pack(uint32_t state, uint32_t stack)
{
    return (uint64_t)state << 32 | stack;
}

static void stop(imp_masker *m, imp_status s)
{
    if (m->status == IMP_OK) m->status = s;
}

static void visit(imp_masker *m, uint32_t state, uint32_t stack)
{
    uint64_t key = pack(state, stack);
    uint32_t i = (uint32_t)((key * 0x9e3779b97f4a7c15ULL) >> 40) & (N_SEEN - 1);
    for (; m->seen_at[i] == m->seen_stamp; i = (i + 1) & (N_SEEN - 1))
        if (m->seen_key[i] == key) return;
    if (m->n_todo == MAX_PAIR || m->status != IMP_OK) {
        stop(m, IMP_INVALID);
        return;
    }
    m->seen_at[i] = m->seen_stamp;
    m->seen_key[i] = key;
    m->todo[m->n_todo++] = key;
}

static uint32_t push_frame(imp_masker *m, uint32_t back_to, uint32_t stack)
{
    const imp_grammar *g = m->g;
    if (g->final[back_to] && g->first[back_to] == g->first[back_to + 1])
        return stack; /* nothing left there */
    uint32_t w[2] = {back_to, stack}, id = 0;
    if (!gr_intern_add(&m->frame, w, 2, &id)) stop(m, IMP_NOMEM);
    return FRAME + id;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* The number of a configuration; pairs in m->pair. */
static uint32_t number(imp_masker *m, uint32_t flags)
{
    if (m->status != IMP_OK) return DEAD;
    qsort(m->pair, m->n_pair, sizeof *m->pair, by_value);
    m->list[0] = flags;
    for (uint32_t i = 0; i < m->n_pair; i++) {
        m->list[1 + 2 * i] = (uint32_t)(m->pair[i] >> 32);
        m->list[2 + 2 * i] = (uint32_t)m->pair[i];
    }
    uint32_t id = DEAD;
    if (!gr_intern_add(&m->config, m->list, 1 + 2 * (size_t)m->n_pair, &id)) stop(m, IMP_NOMEM);
    if (m->status != IMP_OK || id < m->cap_known) return id;
    uint32_t cap = IMP_MAX(2 * m->cap_known, 64u);
    known *k = imp_sys_realloc(m->known, cap * sizeof *k);
    if (k == NULL) {
        stop(m, IMP_NOMEM);
        return DEAD;
    }
    memset(k + m->cap_known, 0, (cap - m->cap_known) * sizeof *k);
    m->bytes += (cap - m->cap_known) * sizeof *k;
    m->known = k;
    m->cap_known = cap;
    return id;
}

/* Everything reachable without a byte from what is in todo becomes a configuration. */
static uint32_t close_set(imp_masker *m)
{
    const imp_grammar *g = m->g;
    uint32_t flags = 0;
    m->n_pair = 0;
    for (uint32_t q = 0; q < m->n_todo && m->status == IMP_OK; q++) {
        uint32_t state = (uint32_t)(m->todo[q] >> 32), stack = (uint32_t)m->todo[q];
        if (g->final[state] && stack == BOTTOM) flags |= ENDS;
        if (g->final[state] && stack == OPEN) flags |= LEAVES;
        if (g->final[state] && stack >= FRAME) {
            size_t n;
            const uint32_t *f = gr_intern_get(&m->frame, stack - FRAME, &n);
            visit(m, f[0], f[1]);
        }
        bool takes = false;
        for (uint32_t i = g->first[state]; i < g->first[state + 1]; i++) {
            const gr_edge *e = &g->edge[i];
            m->work++;
            if (e->kind == GR_EDGE_BYTES)
                takes = true;
            else if (e->kind == GR_EDGE_EMPTY)
                visit(m, e->to, stack);
            else
                visit(m, e->call, push_frame(m, e->to, stack));
        }
        if (takes) m->pair[m->n_pair++] = m->todo[q];
    }
    if (m->work > MAX_WORK) stop(m, IMP_INVALID);
    return number(m, flags);
}

static void begin_set(imp_masker *m)
{
    m->n_todo = 0;
    if (++m->seen_stamp == 0) {
        memset(m->seen_at, 0, N_SEEN * sizeof *m->seen_at);
        m->seen_stamp = 1;
    }
}

static uint32_t compute_step(imp_masker *m, uint32_t config, uint8_t byte)
{
    const imp_grammar *g = m->g;
    begin_set(m);
    size_t n;
    const uint32_t *w = gr_intern_get(&m->config, config, &n);
    for (size_t i = 1; i < n; i += 2) {
        for (uint32_t k = g->first[w[i]]; k < g->first[w[i] + 1]; k++) {
            const gr_edge *e = &g->edge[k];
            m->work++;
            if (e->kind == GR_EDGE_BYTES && e->lo <= byte && byte <= e->hi) visit(m, e->to, w[i + 1]);
        }
    }
    return m->n_todo == 0 ? DEAD : close_set(m);
}

/* Where the configuration goes with this byte; DEAD, also when m->status says that something went wrong. */
static uint32_t advance(imp_masker *m, uint32_t config, uint8_t byte)
{
    uint32_t **to = &m->known[config].to;
    if (*to == NULL) {
        if (config == DEAD) return DEAD;
        *to = imp_sys_malloc(m->n_class * sizeof **to);
        if (*to == NULL) {
            stop(m, IMP_NOMEM);
            return DEAD;
        }
        memset(*to, 0xff, m->n_class * sizeof **to);
        m->bytes += m->n_class * sizeof **to;
    }
    uint32_t c = m->class_of[byte], next = (*to)[c];
    if (next != (uint32_t)UNKNOWN) return next;
    next = compute_step(m, config, byte);
    if (m->status == IMP_OK) m->known[config].to[c] = next;
    return next;
}

static uint32_t flags_of(const imp_masker *m, uint32_t config)
{
    return config < m->config.n ? m->config.word[m->config.at[config]] : 0;
}

static bool has_pairs(const imp_masker *m, uint32_t config)
{
    return config < m->config.n && m->config.at[config + 1] - m->config.at[config] > 1;
}

/* ---- walks ---------------------------------------------------------------------------------------------- */

static void set_bit(uint32_t *bits, int32_t id)
{
    bits[id / 32] |= 1u << (id % 32);
}

/* The children of node `root`, which is reached with configuration `config`: allowed tokens into bits. leaf (when not NULL):
 * nodes whose children have to be walked again with the real stack. */
static void walk(imp_masker *m, uint32_t root, uint32_t config, uint32_t *bits, imp_buf *leaf)
{
    const imp_vocab_tree *v = m->v;
    uint32_t end = v->skip[root];
    m->path[v->depth[root]] = config;
    for (uint32_t i = root + 1; i < end;) {
        uint32_t c = advance(m, m->path[v->depth[i] - 1], v->byte[i]);
        if (c == DEAD) {
            if (m->status != IMP_OK) return;
            i = v->skip[i];
            continue;
        }
        for (uint32_t k = v->token_first[i]; k < v->token_first[i + 1]; k++) set_bit(bits, v->token[k]);
        if (leaf != NULL && (flags_of(m, c) & LEAVES) && v->skip[i] > i + 1) imp_buf_add(leaf, &i, sizeof i);
        m->path[v->depth[i]] = c;
        i = has_pairs(m, c) ? i + 1 : v->skip[i];
    }
}

/* Keep the tokens of a walk: as a list when they are few. */
static bool keep_tokens(imp_masker *m, view *o, uint32_t *bits)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n_word; i++) n += (uint32_t)__builtin_popcount(bits[i]);
    o->n_token = n;
    if (n > m->n_word / 2) {
        o->bits = bits;
        m->bytes += m->n_word * sizeof *bits;
        return true;
    }
    o->token = imp_sys_malloc((n + 1) * sizeof *o->token);
    if (o->token != NULL)
        for (uint32_t i = 0, k = 0; i < m->n_word; i++)
            for (uint32_t w = bits[i]; w != 0; w &= w - 1)
                o->token[k++] = (int32_t)(i * 32 + (uint32_t)__builtin_ctz(w));
    m->bytes += (n + 1) * sizeof *o->token;
    imp_sys_free(bits);
    return o->token != NULL;
}

static void free_view(view *o)
{
    if (o == NULL) return;
    imp_sys_free(o->token);
    imp_sys_free(o->bits);
    imp_sys_free(o->leaf);
    imp_sys_free(o);
}

/* What a configuration on top of OPEN allows; NULL: m->status says why. */
static const view *view_of(imp_masker *m, uint32_t config)
{
    if (m->status != IMP_OK) return NULL;
    if (m->known[config].open != NULL) return m->known[config].open;
    view *o = imp_sys_calloc(1, sizeof *o);
    uint32_t *bits = imp_sys_calloc(m->n_word, sizeof *bits);
    imp_buf leaf = {0};
    if (o == NULL || bits == NULL) {
        stop(m, IMP_NOMEM);
    } else {
        walk(m, 0, config, bits, &leaf);
        if (leaf.failed) stop(m, IMP_NOMEM);
    }
    if (m->status != IMP_OK) {
        imp_buf_deinit(&leaf);
        imp_sys_free(bits);
        imp_sys_free(o);
        return NULL;
    }
    o->n_leaf = (uint32_t)(leaf.n / sizeof *o->leaf);
    m->bytes += leaf.n + sizeof *o;
    o->leaf = (uint32_t *)(void *)imp_buf_take(&leaf);
    if (!keep_tokens(m, o, bits)) {
        stop(m, IMP_NOMEM);
        free_view(o);
        return NULL;
    }
    return m->known[config].open = o;
}

/* ---- masks ------------------------------------------------------------------------------------------------ */

static void add_tokens(const imp_masker *m, const view *o, uint32_t *mask)
{
    if (o->bits != NULL)
        for (uint32_t i = 0; i < m->n_word; i++) mask[i] |= o->bits[i];
    else
        for (uint32_t i = 0; i < o->n_token; i++) set_bit(mask, o->token[i]);
}

/* Where `config` is after the bytes of the path to a node. */
static uint32_t follow(imp_masker *m, uint32_t config, uint32_t node)
{
    const imp_vocab_tree *v = m->v;
    uint8_t back[64];
    uint32_t n = v->depth[node];
    if (n <= sizeof back) {
        for (uint32_t i = n, k = node; i > 0; k = v->parent[k]) back[--i] = v->byte[k];
        for (uint32_t i = 0; i < n && config != DEAD; i++) config = advance(m, config, back[i]);
        return config;
    }
    return advance(m, follow(m, config, v->parent[node]), v->byte[node]);
}

/* The pairs of `config` from index i on (in words) that share one stack, as a configuration on top of OPEN. *next: where
 * the following stack's begin. Pairs are looked for over the whole list, each stack at its first pair. */
static uint32_t same_stack(imp_masker *m, uint32_t config, size_t i)
{
    size_t n;
    const uint32_t *w = gr_intern_get(&m->config, config, &n);
    uint32_t stack = w[i + 1];
    for (size_t k = 1; k < i; k += 2)
        if (w[k + 1] == stack) return DEAD; /* done with an earlier pair */
    m->n_pair = 0;
    for (size_t k = i; k < n; k += 2)
        if (w[k + 1] == stack) m->pair[m->n_pair++] = pack(w[k], OPEN);
    return number(m, 0);
}

static void compute_mask(imp_masker *m, uint32_t config, uint32_t *mask)
{
    if (m->status != IMP_OK) return;
    size_t n = m->config.at[config + 1] - m->config.at[config];
    for (size_t i = 1; i < n && m->status == IMP_OK; i += 2) {
        uint32_t part = same_stack(m, config, i);
        if (part == DEAD) continue;
        const view *o = view_of(m, part);
        if (o == NULL) return;
        add_tokens(m, o, mask);
        for (uint32_t k = 0; k < o->n_leaf && m->status == IMP_OK; k++) {
            uint32_t at = follow(m, config, o->leaf[k]);
            if (at != DEAD) walk(m, o->leaf[k], at, mask, NULL);
        }
    }
    if (flags_of(m, config) & ENDS)
        for (size_t i = 0; i < m->v->n_end; i++)
            if (m->v->end[i] >= 0 && (uint32_t)m->v->end[i] < m->v->n_vocab) set_bit(mask, m->v->end[i]);
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

static void find_start(imp_masker *m)
{
    uint32_t dead;
    m->list[0] = 0;
    if (!gr_intern_add(&m->config, m->list, 1, &dead)) stop(m, IMP_NOMEM); /* number 0 */
    begin_set(m);
    visit(m, m->g->start, BOTTOM);
    m->start = close_set(m);
}

static void forget(imp_masker *m)
{
    for (uint32_t i = 0; i < m->cap_known; i++) {
        imp_sys_free(m->known[i].to);
        free_view(m->known[i].open);
    }
    imp_sys_free(m->known);
    m->known = NULL;
    m->cap_known = 0;
    gr_intern_deinit(&m->frame);
    gr_intern_deinit(&m->config);
    m->bytes = 0;
    m->generation++;
    for (size_t i = 0; i < N_MEMO; i++) m->memo_config[i] = (uint32_t)UNKNOWN;
}

static void find_classes(imp_masker *m)
{
    bool cut[257] = {true};
    for (uint32_t i = 0; i < m->g->n_edge; i++)
        if (m->g->edge[i].kind == GR_EDGE_BYTES) {
            cut[m->g->edge[i].lo] = true;
            cut[m->g->edge[i].hi + 1] = true;
        }
    uint32_t c = 0;
    for (uint32_t b = 0; b < 256; b++) {
        c += b > 0 && cut[b];
        m->class_of[b] = (uint8_t)c;
    }
    m->n_class = c + 1;
}

static void free_masker(imp_masker *m)
{
    forget(m);
    imp_mutex_free(m->lock);
    imp_grammar_unref(m->g);
    imp_sys_free(m->pair);
    imp_sys_free(m->todo);
    imp_sys_free(m->seen_key);
    imp_sys_free(m->seen_at);
    imp_sys_free(m->list);
    imp_sys_free(m->path);
    imp_sys_free(m->memo);
    imp_sys_free(m);
}

imp_status imp_masker_new(imp_grammar *g, const imp_vocab_tree *v, size_t max_bytes, imp_masker **out)
{
    *out = NULL;
    imp_masker *m = imp_sys_calloc(1, sizeof *m);
    if (m == NULL) return IMP_NOMEM;
    m->refs = 1;
    m->g = g;
    imp_grammar_ref(g);
    m->v = v;
    m->max_bytes = max_bytes;
    m->n_word = (v->n_vocab + 31) / 32;
    find_classes(m);
    m->pair = imp_sys_malloc((MAX_PAIR + 1) * sizeof *m->pair);
    m->todo = imp_sys_malloc((MAX_PAIR + 1) * sizeof *m->todo);
    m->seen_key = imp_sys_malloc(N_SEEN * sizeof *m->seen_key);
    m->seen_at = imp_sys_calloc(N_SEEN, sizeof *m->seen_at);
    m->list = imp_sys_malloc((2 * MAX_PAIR + 1) * sizeof *m->list);
    m->path = imp_sys_malloc(((size_t)v->max_depth + 1) * sizeof *m->path);
    m->memo = imp_sys_malloc((size_t)N_MEMO * m->n_word * sizeof *m->memo + 1);
    for (size_t i = 0; i < N_MEMO; i++) m->memo_config[i] = (uint32_t)UNKNOWN;
    bool all = m->pair && m->todo && m->seen_key && m->seen_at && m->list && m->path && m->memo &&
               imp_mutex_new(&m->lock) == IMP_OK;
    if (all) find_start(m);
    if (!all || m->status != IMP_OK) {
        imp_status s = all ? m->status : IMP_NOMEM;
        free_masker(m);
        return s;
    }
    *out = m;
    return IMP_OK;
}

void imp_masker_ref(imp_masker *m)
{
    m->refs++;
}

void imp_masker_unref(imp_masker *m)
{
    if (m != NULL && --m->refs == 0) free_masker(m);
}

/* ---- one answer ------------------------------------------------------------------------------------------------ */

imp_status imp_matcher_new(imp_masker *m, imp_matcher **out)
{
    *out = imp_sys_calloc(1, sizeof **out);
    if (*out == NULL) return IMP_NOMEM;
    imp_masker_ref(m);
    (*out)->m = m;
    (*out)->generation = (uint32_t)UNKNOWN;
    return IMP_OK;
}

void imp_matcher_free(imp_matcher *x)
{
    if (x == NULL) return;
    imp_masker_unref(x->m);
    imp_buf_deinit(&x->text);
    imp_sys_free(x);
}

/* The masker, locked, with x->config valid in it. */
static imp_masker *enter(imp_matcher *x)
{
    imp_masker *m = x->m;
    imp_mutex_lock(m->lock);
    m->status = IMP_OK;
    m->work = 0;
    if (m->bytes + gr_intern_bytes(&m->frame) + gr_intern_bytes(&m->config) > m->max_bytes) {
        forget(m);
        find_start(m);
    }
    if (x->generation == m->generation) return m;
    x->config = m->start;
    for (size_t i = 0; i < x->text.n; i++) {
        x->config = advance(m, x->config, (uint8_t)x->text.data[i]);
        m->work = 0;
    }
    x->generation = m->generation;
    return m;
}

static void leave(imp_matcher *x)
{
    if (x->m->status != IMP_OK) x->generation = x->m->generation - 1; /* find the place again next time */
    imp_mutex_unlock(x->m->lock);
}

imp_status imp_matcher_mask(imp_matcher *x, uint32_t *mask, imp_error *err)
{
    imp_masker *m = enter(x);
    uint32_t *have = NULL;
    for (uint32_t i = 0; i < N_MEMO && m->status == IMP_OK; i++)
        if (m->memo_config[i] == x->config) have = m->memo + (size_t)i * m->n_word;
    if (have != NULL) {
        memcpy(mask, have, m->n_word * sizeof *mask);
    } else {
        memset(mask, 0, m->n_word * sizeof *mask);
        compute_mask(m, x->config, mask);
    }
    bool any = false;
    for (uint32_t i = 0; i < m->n_word && !any; i++) any = mask[i] != 0;
    imp_status s = m->status;
    if (s == IMP_OK && any && have == NULL) {
        memcpy(m->memo + (size_t)m->memo_next * m->n_word, mask, m->n_word * sizeof *mask);
        m->memo_config[m->memo_next] = x->config;
        m->memo_next = (m->memo_next + 1) % N_MEMO;
    }
    leave(x);
    if (s == IMP_NOMEM) return imp_fail(err, s, "out of memory");
    if (s != IMP_OK) return imp_fail(err, s, "the constraint is too ambiguous to be followed: simplify it");
    if (!any)
        return imp_fail(err, IMP_INVALID, "no token of this model's vocabulary continues the constraint");
    return IMP_OK;
}

bool imp_matcher_accept(imp_matcher *x, int32_t id)
{
    const imp_vocab_tree *v = x->m->v;
    imp_masker *m = enter(x);
    bool ok = false;
    if (id >= 0 && (uint32_t)id < v->n_vocab && v->node_of[id] != 0) {
        uint32_t to = follow(m, x->config, v->node_of[id]);
        size_t n = v->depth[v->node_of[id]];
        ok = to != DEAD && imp_buf_reserve(&x->text, n);
        if (ok) {
            x->config = to;
            char *p = x->text.data + x->text.n;
            for (uint32_t i = v->depth[v->node_of[id]], k = v->node_of[id]; i > 0; k = v->parent[k])
                p[--i] = (char)v->byte[k];
            x->text.n += n;
        }
    } else if (flags_of(m, x->config) & ENDS) {
        for (size_t i = 0; i < v->n_end; i++) ok = ok || v->end[i] == id;
    }
    leave(x);
    return ok;
}

void imp_matcher_forced(imp_matcher *x, imp_buf *out)
{
    imp_masker *m = enter(x);
    uint32_t config = x->config;
    for (int k = 0; k < 256 && m->status == IMP_OK && !(flags_of(m, config) & ENDS); k++) {
        size_t n;
        const uint32_t *w = gr_intern_get(&m->config, config, &n);
        int only = -1;
        for (size_t i = 1; i < n && only != -2; i += 2)
            for (uint32_t e = m->g->first[w[i]]; e < m->g->first[w[i] + 1]; e++) {
                const gr_edge *x2 = &m->g->edge[e];
                if (x2->kind != GR_EDGE_BYTES) continue;
                if (x2->lo != x2->hi || (only >= 0 && only != x2->lo)) only = -2;
                if (only == -1) only = x2->lo;
            }
        if (only < 0) break;
        char c = (char)only;
        imp_buf_add(out, &c, 1);
        config = advance(m, config, (uint8_t)only);
    }
    leave(x);
}

size_t imp_matcher_prefix(imp_matcher *x, const char *text, size_t n)
{
    imp_masker *m = enter(x);
    uint32_t config = x->config;
    size_t i = 0;
    for (; i < n; i++, m->work = 0) {
        config = advance(m, config, (uint8_t)text[i]);
        if (config == DEAD) break;
    }
    leave(x);
    return i;
}

bool imp_matcher_can_end(imp_matcher *x)
{
    imp_masker *m = enter(x);
    bool ends = (flags_of(m, x->config) & ENDS) != 0;
    leave(x);
    return ends;
}

bool imp_matcher_must_end(imp_matcher *x)
{
    imp_masker *m = enter(x);
    bool ends = (flags_of(m, x->config) & ENDS) != 0 && !has_pairs(m, x->config);
    leave(x);
    return ends;
}
