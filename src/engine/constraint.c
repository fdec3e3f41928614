/* engine/constraint.c - constraints of a model's answers: compiled on the caller's thread, kept for the next request.
 *
 * Place:   api compiles one before it submits; sched asks it for a mask every token.
 * Idea:    a constraint is a grammar over the model's vocabulary (text/grammar.h). Those used last are kept, found again by
 *          their text; the vocabulary's tree is made with the first one.
 * Always:  what is kept stays below KEEP constraints of at most MASKER_BYTES each; what requests still hold lives on.
 * Threads: any; the cache has its lock. */
#include "engine/engine_int.h"
#include "text/toolcall.h"

enum { KEEP = 8, MASKER_BYTES = 8 << 20 };

typedef struct kept {
    char *text; /* owned; NULL: free place */
    size_t n;
    imp_constraint_kind kind;
    imp_masker *masker;
    uint64_t used;
} kept;

struct imp_constraints {
    imp_mutex *lock;
    imp_vocab_tree *tree; /* NULL: not made yet */
    uint64_t clock;
    kept kept[KEEP];
};

imp_status imp_constraints_new(struct imp_constraints **out)
{
    struct imp_constraints *c = imp_sys_calloc(1, sizeof *c);
    *out = NULL;
    if (c == NULL || imp_mutex_new(&c->lock) != IMP_OK) {
        imp_sys_free(c);
        return IMP_NOMEM;
    }
    *out = c;
    return IMP_OK;
}

static void drop(kept *k)
{
    imp_sys_free(k->text);
    imp_masker_unref(k->masker);
    *k = (kept){0};
}

void imp_constraints_free(struct imp_constraints *c)
{
    if (c == NULL) return;
    for (size_t i = 0; i < KEEP; i++) drop(&c->kept[i]);
    imp_vocab_tree_free(c->tree);
    imp_mutex_free(c->lock);
    imp_sys_free(c);
}

/* The masker kept for this text, with a reference for the caller; NULL: none. */
static imp_masker *find(struct imp_constraints *c, imp_constraint_kind kind, const char *text, size_t n)
{
    for (size_t i = 0; i < KEEP; i++) {
        kept *k = &c->kept[i];
        if (k->text == NULL || k->kind != kind || k->n != n || memcmp(k->text, text, n) != 0) continue;
        k->used = ++c->clock;
        imp_masker_ref(k->masker);
        return k->masker;
    }
    return NULL;
}

/* Keep it in place of the one not used for longest; without memory for that it is simply not kept. */
static void keep(struct imp_constraints *c, imp_constraint_kind kind, const char *text, size_t n,
                 imp_masker *m)
{
    kept *at = &c->kept[0];
    for (size_t i = 1; i < KEEP; i++)
        if (c->kept[i].used < at->used) at = &c->kept[i];
    char *copy = imp_sys_malloc(n + 1);
    if (copy == NULL) return;
    memcpy(copy, text, n);
    drop(at);
    imp_masker_ref(m);
    *at = (kept){.text = copy, .n = n, .kind = kind, .masker = m, .used = ++c->clock};
}

static imp_status from_choices(const json_t *list, imp_grammar **out, imp_error *err)
{
    size_t n = json_array_size(list);
    const char **choice = imp_sys_malloc((n + 1) * sizeof *choice);
    if (choice == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    imp_status s = n > 0 ? IMP_OK : imp_fail(err, IMP_INVALID, "the choices must be a list of strings");
    for (size_t i = 0; i < n && s == IMP_OK; i++) {
        choice[i] = json_string_value(json_array_get(list, i));
        if (choice[i] == NULL) s = imp_fail(err, IMP_INVALID, "the choices must be a list of strings");
    }
    if (s == IMP_OK) s = imp_grammar_from_choice(choice, n, out, err);
    imp_sys_free(choice);
    return s;
}

static imp_status compile(const imp_model *m, imp_constraint_kind kind, const char *text, size_t n,
                          imp_grammar **out, imp_error *err)
{
    *out = NULL;
    switch (kind) {
    case IMP_CONSTRAINT_JSON: return imp_grammar_json_object(out, err);
    case IMP_CONSTRAINT_GBNF: return imp_grammar_from_gbnf(text, n, out, err);
    case IMP_CONSTRAINT_REGEX: return imp_grammar_from_regex(text, n, out, err);
    case IMP_CONSTRAINT_SCHEMA:
    case IMP_CONSTRAINT_CHOICE:
    case IMP_CONSTRAINT_TOOLS: break;
    }
    json_error_t je;
    json_t *json = json_loadb(text, n, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &je);
    if (json == NULL) return imp_fail_at(err, IMP_INVALID, (uint64_t)je.position, "not JSON: %s", je.text);
    imp_status s;
    if (kind == IMP_CONSTRAINT_TOOLS)
        s = imp_grammar_from_tools(m->toolfmt, json, out, err);
    else
        s = kind == IMP_CONSTRAINT_SCHEMA ? imp_grammar_from_schema(json, out, err)
                                          : from_choices(json, out, err);
    json_decref(json);
    return s;
}

/* The first mask is made now, where it delays nobody else; a constraint that is too ambiguous is refused here. */
static imp_status warm(imp_masker *m, uint32_t n_vocab, imp_error *err)
{
    imp_matcher *x = NULL;
    uint32_t *mask = imp_sys_malloc(((size_t)n_vocab / 32 + 1) * sizeof *mask);
    imp_status s = imp_matcher_new(m, &x);
    if (mask == NULL) s = IMP_NOMEM;
    s = s == IMP_OK ? imp_matcher_mask(x, mask, err) : imp_fail(err, IMP_NOMEM, "out of memory");
    imp_matcher_free(x);
    imp_sys_free(mask);
    return s;
}

imp_status imp_constraint_new(imp_model *m, imp_constraint_kind kind, const char *text, size_t n,
                              imp_constraint **out, imp_error *err)
{
    struct imp_constraints *c = m->constraints;
    const imp_net_config *cfg = &m->net->cfg;
    imp_grammar *g = NULL;
    imp_masker *masker = NULL;
    *out = NULL;
    if (m->net->generate == NULL || m->net->tok == NULL)
        return imp_fail(err, IMP_UNSUPPORTED, "the model generates no text that could be constrained");
    if (kind == IMP_CONSTRAINT_TOOLS && m->toolfmt == NULL)
        return imp_fail_field(err, IMP_UNSUPPORTED, "tools",
                              "this model cannot be given tools: it has no chat template of its own");
    imp_mutex_lock(c->lock);
    masker = find(c, kind, text, n);
    imp_status s = IMP_OK;
    if (masker == NULL && c->tree == NULL)
        s = imp_vocab_tree_new(m->net->tok, cfg->eos, cfg->n_eos, &c->tree, err);
    imp_mutex_unlock(c->lock);
    if (masker != NULL || s != IMP_OK) {
        *out = masker;
        return s;
    }
    IMP_TRY(compile(m, kind, text, n, &g, err));
    s = imp_masker_new(g, c->tree, MASKER_BYTES, &masker);
    imp_grammar_unref(g);
    if (s != IMP_OK) return imp_fail(err, s, "out of memory");
    s = warm(masker, cfg->n_vocab, err);
    if (s != IMP_OK) {
        imp_masker_unref(masker);
        return s;
    }
    imp_mutex_lock(c->lock);
    keep(c, kind, text, n, masker);
    imp_mutex_unlock(c->lock);
    *out = masker;
    return IMP_OK;
}

void imp_constraint_free(imp_constraint *c)
{
    imp_masker_unref(c);
}
