/* text/grammar/nfa.c - expressions to an automaton over bytes with calls.
 *
 * Idea:    each rule becomes a piece with one first and one last state. Rules that are small and call nothing recursive
 *          are written out where they are called: what a masker finds out about a state then reaches further.
 *          Characters become their UTF-8 bytes.
 * Always:  from every state the end can be reached, so an answer never runs into a dead end; no rule can call itself
 *          without taking a byte first, so following calls ends.
 * Source:  Thompson 1968; the UTF-8 split of ranges after Cox, "Regular expression matching in the wild". */
#include "text/grammar/grammar_int.h"

enum { INLINE_MAX = 300, WORK_MAX = 8000000 };

typedef struct raw_edge {
    uint32_t from, next; /* next: the one before it of the same state; UINT32_MAX: none */
    gr_edge e;
} raw_edge;

typedef struct nfa {
    gr *g;
    raw_edge *edge;
    uint32_t n_edge, cap_edge, n_state;
    uint32_t *size;  /* [n_node] edges an expression will make; 0: not known */
    uint32_t *first; /* [n_rule] first state; 0: not written yet. State 0 is never used */
    uint32_t *last;  /* [n_rule] */
    bool *is_inline; /* [n_rule] */
    uint32_t *todo;  /* [n_rule] rules to write */
    uint32_t n_todo;
    uint64_t work;
} nfa;

static bool ok(const nfa *n)
{
    return n->g->status == IMP_OK;
}

static bool work(nfa *n, uint64_t k)
{
    n->work += k;
    if (n->work > WORK_MAX) (void)gr_fail(n->g, IMP_TOO_LARGE, "the grammar is too large");
    return ok(n);
}

/* ---- which rules are written out where they are called ------------------------------------------ */

static uint32_t saturate(uint64_t a)
{
    return (uint32_t)IMP_MIN(a, (uint64_t)UINT32_MAX);
}

/* Size of x when those of its parts are known; 0: not yet, *want is the part that is missing. */
static uint32_t size_of(const nfa *n, gr_expr x, gr_expr *want)
{
    const gr_node *e = &n->g->node[x];
    switch (e->kind) {
    case GR_EMPTY:
    case GR_NEVER: return 1;
    case GR_TEXT: return e->b;
    case GR_CLASS: return saturate(8 * (uint64_t)e->b);
    case GR_CALL: return n->is_inline[e->a] ? n->size[n->g->rule[e->a].body] : 1;
    case GR_SEQ:
    case GR_ALT:
        *want = n->size[e->a] == 0 ? e->a : e->b;
        if (n->size[*want] == 0) return 0;
        return saturate((uint64_t)n->size[e->a] + n->size[e->b]);
    case GR_REPEAT: {
        *want = e->a;
        if (n->size[e->a] == 0) return 0;
        uint64_t times = e->max == GR_UNLIMITED ? (uint64_t)e->min + 1 : e->max;
        return saturate(times * (n->size[e->a] + 2));
    }
    }
    return 1;
}

/* n->size of everything under x; the callees' are known. */
static void measure(nfa *n, gr_expr x, gr_list *stack)
{
    gr_push(n->g, stack, x);
    while (ok(n) && gr_count(stack) > 0) {
        gr_expr top = ((gr_expr *)(void *)stack->b.data)[gr_count(stack) - 1], want = 0;
        uint32_t s = n->size[top] ? n->size[top] : size_of(n, top, &want);
        if (s == 0) {
            gr_push(n->g, stack, want);
            continue;
        }
        n->size[top] = s;
        stack->b.n -= sizeof(gr_expr);
    }
}

/* The rules that the body of `rule` calls, each once, as caller/callee pairs into calls. */
static void find_calls(nfa *n, uint32_t rule, uint32_t *seen, gr_list *stack, gr_list *calls)
{
    gr *g = n->g;
    gr_push(g, stack, g->rule[rule].body);
    while (ok(n) && gr_count(stack) > 0) {
        gr_expr x = ((gr_expr *)(void *)stack->b.data)[gr_count(stack) - 1];
        stack->b.n -= sizeof(gr_expr);
        if (seen[x] == rule + 1 || !work(n, 1)) continue;
        seen[x] = rule + 1;
        const gr_node e = g->node[x];
        if (e.kind == GR_CALL) {
            gr_push(g, calls, rule);
            gr_push(g, calls, e.a);
        }
        if (e.kind == GR_SEQ || e.kind == GR_ALT || e.kind == GR_REPEAT) gr_push(g, stack, e.a);
        if (e.kind == GR_SEQ || e.kind == GR_ALT) gr_push(g, stack, e.b);
    }
    stack->b.n = 0;
}

/* Leaves first: a rule all of whose callees are settled is settled, and written out where called when it is small. */
static void settle(nfa *n, const uint32_t *call, size_t n_call, uint32_t *left, uint32_t *by_callee,
                   uint32_t *queue, gr_list *stack)
{
    gr *g = n->g;
    /* by_callee: [n_rule + 1] offsets, then [n_call] callers, in the order of their callees */
    for (size_t i = 0; i < n_call; i++) left[call[2 * i]]++, by_callee[call[2 * i + 1] + 1]++;
    for (uint32_t r = 0; r < g->n_rule; r++) by_callee[r + 1] += by_callee[r];
    uint32_t *caller = by_callee + g->n_rule + 1;
    uint32_t *at = queue + g->n_rule; /* [n_rule] */
    memcpy(at, by_callee, g->n_rule * sizeof *at);
    for (size_t i = 0; i < n_call; i++) caller[at[call[2 * i + 1]]++] = call[2 * i];
    uint32_t n_queue = 0;
    for (uint32_t r = 0; r < g->n_rule; r++)
        if (left[r] == 0) queue[n_queue++] = r;
    for (uint32_t q = 0; q < n_queue && ok(n); q++) {
        uint32_t r = queue[q];
        measure(n, g->rule[r].body, stack);
        n->is_inline[r] = n->size[g->rule[r].body] <= INLINE_MAX;
        for (uint32_t i = by_callee[r]; i < by_callee[r + 1]; i++)
            if (--left[caller[i]] == 0) queue[n_queue++] = caller[i];
    }
}

static void choose_inline(nfa *n)
{
    gr *g = n->g;
    gr_list stack = {0}, calls = {0};
    uint32_t *seen = imp_arena_array(g->memory, g->n_node, sizeof *seen);
    if (seen == NULL) gr_fail(g, IMP_NOMEM, "out of memory");
    for (uint32_t r = 0; r < g->n_rule && ok(n); r++) find_calls(n, r, seen, &stack, &calls);
    size_t n_call = gr_count(&calls) / 2;
    uint32_t *left = imp_arena_array(g->memory, g->n_rule + 1, sizeof *left);
    uint32_t *by_callee = imp_arena_array(g->memory, g->n_rule + 1 + n_call, sizeof *by_callee);
    uint32_t *queue = imp_arena_array(g->memory, 2 * ((size_t)g->n_rule + 1), sizeof *queue);
    if (ok(n) && (left == NULL || by_callee == NULL || queue == NULL)) gr_fail(g, IMP_NOMEM, "out of memory");
    if (ok(n))
        settle(n, (const uint32_t *)(const void *)calls.b.data, n_call, left, by_callee, queue, &stack);
    imp_buf_deinit(&stack.b);
    imp_buf_deinit(&calls.b);
}

/* ---- states and edges ------------------------------------------------------------------------------ */

static uint32_t state(nfa *n)
{
    return n->n_state++;
}

static void edge(nfa *n, uint32_t from, gr_edge e)
{
    if (!ok(n)) return;
    if (n->n_edge == GR_MAX_EDGE) {
        gr_fail(n->g, IMP_TOO_LARGE, "the grammar is too large: make it or its repeat counts smaller");
        return;
    }
    if (n->n_edge == n->cap_edge) {
        uint32_t cap = n->cap_edge ? 2 * n->cap_edge : 1024;
        raw_edge *p = imp_sys_realloc(n->edge, cap * sizeof *p);
        if (p == NULL) {
            gr_fail(n->g, IMP_NOMEM, "out of memory");
            return;
        }
        n->edge = p;
        n->cap_edge = cap;
    }
    n->edge[n->n_edge++] = (raw_edge){.from = from, .e = e};
}

static void bytes(nfa *n, uint32_t from, uint32_t lo, uint32_t hi, uint32_t to)
{
    edge(n, from, (gr_edge){.kind = GR_EDGE_BYTES, .lo = (uint8_t)lo, .hi = (uint8_t)hi, .to = to});
}

static void empty(nfa *n, uint32_t from, uint32_t to)
{
    if (from != to) edge(n, from, (gr_edge){.kind = GR_EDGE_EMPTY, .to = to});
}

/* Any k continuation bytes, then to; shared within one class. */
static uint32_t rest(nfa *n, uint32_t *shared, uint32_t k, uint32_t to)
{
    if (k == 0) return to;
    if (shared[k] == 0) {
        uint32_t next = rest(n, shared, k - 1, to);
        shared[k] = state(n);
        bytes(n, shared[k], 0x80, 0xbf, next);
    }
    return shared[k];
}

/* Sequences of n_byte bytes from lo to hi, which agree before byte i. */
static void byte_range(nfa *n, uint32_t *shared, const uint8_t *lo, const uint8_t *hi, uint32_t n_byte,
                       uint32_t from, uint32_t to)
{
    if (n_byte == 1) {
        bytes(n, from, lo[0], hi[0], to);
        return;
    }
    if (lo[0] == hi[0]) {
        bool low = true, high = true;
        for (uint32_t i = 1; i < n_byte; i++) low = low && lo[i] == 0x80, high = high && hi[i] == 0xbf;
        uint32_t mid = low && high ? rest(n, shared, n_byte - 1, to) : state(n);
        bytes(n, from, lo[0], lo[0], mid);
        if (!(low && high)) byte_range(n, shared, lo + 1, hi + 1, n_byte - 1, mid, to);
        return;
    }
    static const uint8_t least[3] = {0x80, 0x80, 0x80}, most[3] = {0xbf, 0xbf, 0xbf};
    uint32_t first = lo[0], last = hi[0];
    if (memcmp(lo + 1, least, n_byte - 1) != 0) {
        uint32_t mid = state(n);
        bytes(n, from, first, first, mid);
        byte_range(n, shared, lo + 1, most, n_byte - 1, mid, to);
        first++;
    }
    if (memcmp(hi + 1, most, n_byte - 1) != 0) {
        uint32_t mid = state(n);
        bytes(n, from, last, last, mid);
        byte_range(n, shared, least, hi + 1, n_byte - 1, mid, to);
        last--;
    }
    if (first <= last) bytes(n, from, first, last, rest(n, shared, n_byte - 1, to));
}

static void class_edges(nfa *n, const gr_range *r, uint32_t n_range, uint32_t from, uint32_t to)
{
    static const gr_range part[] = {/* of one length each, without surrogates */
                                    {0, 0x7f},
                                    {0x80, 0x7ff},
                                    {0x800, 0xd7ff},
                                    {0xe000, 0xffff},
                                    {0x10000, 0x10ffff}};
    uint32_t shared[4] = {0};
    for (uint32_t i = 0; i < n_range && ok(n); i++)
        for (size_t k = 0; k < IMP_COUNT(part); k++) {
            int32_t lo = IMP_MAX(r[i].lo, part[k].lo), hi = IMP_MIN(r[i].hi, part[k].hi);
            if (lo > hi) continue;
            char a[4], b[4];
            size_t len = imp_utf8_encode(lo, a);
            (void)imp_utf8_encode(hi, b);
            byte_range(n, shared, (const uint8_t *)a, (const uint8_t *)b, (uint32_t)len, from, to);
        }
}

/* ---- expressions ------------------------------------------------------------------------------------ */

static void emit(nfa *n, gr_expr x, uint32_t from, uint32_t to);

static void emit_repeat(nfa *n, const gr_node *e, uint32_t from, uint32_t to)
{
    uint32_t cur = from;
    for (uint32_t i = 0; i < e->min && ok(n); i++) {
        bool last = e->max == e->min && i + 1 == e->min;
        uint32_t next = last ? to : state(n);
        emit(n, e->a, cur, next);
        cur = next;
    }
    if (e->max == GR_UNLIMITED) {
        uint32_t loop = state(n);
        empty(n, cur, loop);
        emit(n, e->a, loop, loop);
        empty(n, loop, to);
        return;
    }
    for (uint32_t i = e->min; i < e->max && ok(n); i++) {
        uint32_t next = i + 1 == e->max ? to : state(n);
        empty(n, cur, to);
        emit(n, e->a, cur, next);
        cur = next;
    }
}

static void emit_call(nfa *n, uint32_t rule, uint32_t from, uint32_t to)
{
    if (n->first[rule] == 0) {
        n->first[rule] = state(n);
        n->last[rule] = state(n);
        n->todo[n->n_todo++] = rule;
    }
    edge(n, from, (gr_edge){.kind = GR_EDGE_CALL, .to = to, .call = n->first[rule]});
}

static void emit_text(nfa *n, const gr_node *e, uint32_t from, uint32_t to)
{
    const uint8_t *p = (const uint8_t *)n->g->text.data + e->a;
    for (uint32_t i = 0; i < e->b && ok(n); i++) {
        uint32_t next = i + 1 == e->b ? to : state(n);
        bytes(n, from, p[i], p[i], next);
        from = next;
    }
}

/* Everything that x matches, between the two states. Recursion follows real nesting only (gr_node.depth). */
static void emit(nfa *n, gr_expr x, uint32_t from, uint32_t to)
{
    while (work(n, 1)) {
        const gr_node e = n->g->node[x];
        switch (e.kind) {
        case GR_EMPTY: empty(n, from, to); return;
        case GR_NEVER: return;
        case GR_TEXT: emit_text(n, &e, from, to); return;
        case GR_CLASS:
            class_edges(n, (const gr_range *)(const void *)n->g->range.data + e.a, e.b, from, to);
            return;
        case GR_REPEAT: emit_repeat(n, &e, from, to); return;
        case GR_CALL:
            if (!n->is_inline[e.a]) {
                emit_call(n, e.a, from, to);
                return;
            }
            x = n->g->rule[e.a].body;
            break;
        case GR_SEQ: {
            uint32_t mid = state(n);
            emit(n, e.a, from, mid);
            from = mid;
            x = e.b;
            break;
        }
        case GR_ALT:
            emit(n, e.a, from, to);
            x = e.b;
            break;
        }
    }
}

/* ---- what must hold of the whole ----------------------------------------------------------------------- */

/* productive[s]: the end of its rule can be reached from s. */
static bool find_productive(nfa *n, uint8_t *productive, const uint8_t *final)
{
    uint32_t *head = imp_sys_malloc((size_t)n->n_state * sizeof *head);
    uint32_t *link = imp_sys_malloc(2 * ((size_t)n->n_edge + 1) * sizeof *link);
    uint32_t *queue = imp_sys_malloc((size_t)n->n_state * sizeof *queue);
    bool all = head != NULL && link != NULL && queue != NULL;
    if (all) {
        memset(head, 0xff, n->n_state * sizeof *head);
        for (uint32_t i = 0; i < n->n_edge; i++) {
            const gr_edge *e = &n->edge[i].e;
            link[2 * i] = head[e->to];
            head[e->to] = 2 * i;
            if (e->kind != GR_EDGE_CALL) continue;
            link[2 * i + 1] = head[e->call];
            head[e->call] = 2 * i + 1;
        }
        uint32_t n_queue = 0;
        for (uint32_t s = 0; s < n->n_state; s++)
            if ((productive[s] = final[s]) != 0) queue[n_queue++] = s;
        for (uint32_t q = 0; q < n_queue; q++)
            for (uint32_t l = head[queue[q]]; l != UINT32_MAX; l = link[l]) {
                const raw_edge *r = &n->edge[l / 2];
                if (productive[r->from] || !productive[r->e.to]) continue;
                if (r->e.kind == GR_EDGE_CALL && !productive[r->e.call]) continue;
                productive[r->from] = 1;
                queue[n_queue++] = r->from;
            }
    } else {
        gr_fail(n->g, IMP_NOMEM, "out of memory");
    }
    imp_sys_free(head);
    imp_sys_free(link);
    imp_sys_free(queue);
    return all;
}

/* The finished automaton: edges in the order of their states, those that lead nowhere left out. */
static imp_grammar *pack(nfa *n, const uint8_t *productive, const uint8_t *final, uint32_t start)
{
    size_t bytes_state = ((size_t)n->n_state + 1) * (sizeof(uint32_t) + 1);
    imp_grammar *x = imp_sys_calloc(1, sizeof *x);
    if (x != NULL) {
        x->refs = 1;
        x->first = imp_sys_calloc(1, bytes_state);
        x->edge = imp_sys_malloc(((size_t)n->n_edge + 1) * sizeof *x->edge);
    }
    if (x == NULL || x->first == NULL || x->edge == NULL) {
        gr_fail(n->g, IMP_NOMEM, "out of memory");
        imp_grammar_unref(x);
        return NULL;
    }
    x->n_state = n->n_state;
    x->start = start;
    x->final = (uint8_t *)(x->first + n->n_state + 1);
    memcpy(x->final, final, n->n_state);
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < n->n_edge; i++) {
            const raw_edge *r = &n->edge[i];
            if (!productive[r->e.to] || (r->e.kind == GR_EDGE_CALL && !productive[r->e.call])) continue;
            if (pass == 0)
                x->first[r->from + 1]++;
            else
                x->edge[x->first[r->from]++] = r->e;
        }
        if (pass == 0)
            for (uint32_t s = 0; s < n->n_state; s++) x->first[s + 1] += x->first[s];
    }
    for (uint32_t s = n->n_state; s > 0; s--) x->first[s] = x->first[s - 1];
    x->first[0] = 0;
    x->n_edge = x->first[n->n_state];
    return x;
}

/* Follow what can be reached from `from` without a byte; mark[s] = stamp. Calls that can be empty are passed over. Returns
 * how many are in queue; *calls gets the first states of the rules called. */
static uint32_t reach(nfa *n, const imp_grammar *x, uint32_t from, const uint8_t *nullable, uint32_t *mark,
                      uint32_t stamp, uint32_t *queue, gr_list *calls)
{
    uint32_t n_queue = 0;
    queue[n_queue++] = from;
    mark[from] = stamp;
    for (uint32_t q = 0; q < n_queue && work(n, 1); q++)
        for (uint32_t i = x->first[queue[q]]; i < x->first[queue[q] + 1]; i++) {
            const gr_edge *e = &x->edge[i];
            if (!work(n, 1)) break;
            if (e->kind == GR_EDGE_BYTES) continue;
            if (e->kind == GR_EDGE_CALL) {
                if (calls != NULL) gr_push(n->g, calls, e->call);
                if (!nullable[e->call]) continue;
            }
            if (mark[e->to] == stamp) continue;
            mark[e->to] = stamp;
            queue[n_queue++] = e->to;
        }
    return n_queue;
}

/* Refuse rules that call themselves before they took a byte. */
static void check_left_recursion(nfa *n, const imp_grammar *x)
{
    gr *g = n->g;
    uint32_t *mark = imp_arena_array(g->memory, n->n_state, sizeof *mark);
    uint32_t *queue = imp_arena_array(g->memory, n->n_state, sizeof *queue);
    uint8_t *nullable = imp_arena_array(g->memory, n->n_state, 1); /* by a rule's first state */
    uint32_t *rule_of = imp_arena_array(g->memory, n->n_state, sizeof *rule_of);
    uint32_t *left = imp_arena_array(g->memory, g->n_rule + 1, sizeof *left);
    if (mark == NULL || queue == NULL || nullable == NULL || rule_of == NULL || left == NULL) {
        gr_fail(g, IMP_NOMEM, "out of memory");
        return;
    }
    uint32_t stamp = 0;
    for (bool changed = true; changed && ok(n);) {
        changed = false;
        for (uint32_t k = 0; k < g->n_rule && ok(n); k++) {
            uint32_t r = g->n_rule - 1 - k;
            if (n->first[r] == 0 || nullable[n->first[r]]) continue;
            (void)reach(n, x, n->first[r], nullable, mark, ++stamp, queue, NULL);
            if (mark[n->last[r]] == stamp) nullable[n->first[r]] = 1, changed = true;
        }
    }
    gr_list calls = {0};
    gr_list *of = &calls;
    uint32_t *from = imp_arena_array(g->memory, g->n_rule + 2, sizeof *from);
    if (from == NULL) gr_fail(g, IMP_NOMEM, "out of memory");
    for (uint32_t r = 0; r < g->n_rule && ok(n); r++) {
        rule_of[n->first[r]] = r;
        from[r] = (uint32_t)gr_count(of);
        if (n->first[r] != 0) (void)reach(n, x, n->first[r], nullable, mark, ++stamp, queue, of);
    }
    if (ok(n)) from[g->n_rule] = (uint32_t)gr_count(of);
    /* A rule is settled when all it calls first are; what never settles calls itself. */
    for (bool changed = true; changed && ok(n);) {
        changed = false;
        for (uint32_t k = 0; k < g->n_rule && work(n, 1); k++) {
            uint32_t r = g->n_rule - 1 - k; /* rules mostly call later ones */
            if (left[r]) continue;
            bool settled = true;
            for (uint32_t i = from[r]; i < from[r + 1] && settled && work(n, 1); i++)
                settled = left[rule_of[((gr_expr *)(void *)of->b.data)[i]]] != 0;
            if (settled) left[r] = 1, changed = true;
        }
    }
    for (uint32_t r = 0; r < g->n_rule && ok(n); r++)
        if (!left[r])
            gr_fail(g, IMP_INVALID,
                    "rule \"%s\" can begin with itself: write the repetition to the right or with *",
                    g->rule[r].name);
    imp_buf_deinit(&calls.b);
}

static void compile(nfa *n, gr_expr start, imp_grammar **out)
{
    gr *g = n->g;
    for (uint32_t r = 0; r < g->n_rule && ok(n); r++)
        if (!g->rule[r].defined)
            gr_fail(g, IMP_INVALID, "rule \"%s\" is used but not defined", g->rule[r].name);
    if (ok(n)) choose_inline(n);
    uint32_t first = 1, last = 2;
    n->n_state = 3;
    if (ok(n)) emit(n, start, first, last);
    for (uint32_t i = 0; i < n->n_todo && ok(n); i++) {
        uint32_t r = n->todo[i];
        emit(n, g->rule[r].body, n->first[r], n->last[r]);
    }
    if (!ok(n)) return;
    uint8_t *final = imp_arena_alloc(g->memory, n->n_state),
            *productive = imp_arena_alloc(g->memory, n->n_state);
    if (final == NULL || productive == NULL) {
        gr_fail(g, IMP_NOMEM, "out of memory");
        return;
    }
    final[last] = 1;
    for (uint32_t r = 0; r < g->n_rule; r++)
        if (n->first[r] != 0) final[n->last[r]] = 1;
    if (!find_productive(n, productive, final)) return;
    if (!productive[first]) {
        gr_fail(g, IMP_INVALID, "no text can satisfy the constraint");
        return;
    }
    imp_grammar *x = pack(n, productive, final, first);
    if (x != NULL) check_left_recursion(n, x);
    if (ok(n))
        *out = x;
    else
        imp_grammar_unref(x);
}

imp_status gr_compile(gr *g, gr_expr start, imp_grammar **out)
{
    *out = NULL;
    if (g->status != IMP_OK) return g->status;
    nfa n = {.g = g};
    size_t n_rule = (size_t)g->n_rule + 1;
    n.size = imp_arena_array(g->memory, g->n_node, sizeof *n.size);
    n.first = imp_arena_array(g->memory, n_rule, sizeof *n.first);
    n.last = imp_arena_array(g->memory, n_rule, sizeof *n.last);
    n.todo = imp_arena_array(g->memory, n_rule, sizeof *n.todo);
    n.is_inline = imp_arena_array(g->memory, n_rule, sizeof *n.is_inline);
    if (n.size == NULL || n.first == NULL || n.last == NULL || n.todo == NULL || n.is_inline == NULL)
        (void)gr_fail(g, IMP_NOMEM, "out of memory");
    else
        compile(&n, start, out);
    imp_sys_free(n.edge);
    return g->status;
}

void imp_grammar_ref(imp_grammar *g)
{
    g->refs++;
}

void imp_grammar_unref(imp_grammar *g)
{
    if (g == NULL || --g->refs > 0) return;
    imp_sys_free(g->first);
    imp_sys_free(g->edge);
    imp_sys_free(g);
}

size_t imp_grammar_bytes(const imp_grammar *g)
{
    return sizeof *g + ((size_t)g->n_state + 1) * 5 + (size_t)g->n_edge * sizeof *g->edge;
}
