/* text/jinja/scope.c - which variables a scope holds as undefined until they are set.
 *
 * Idea:    jinja2 decides at compile time where a name lives. When the first thing that a scope does with a name is to
 *          set it, and no scope around knows the name, it is the scope's own from the start: reading it too early (in a
 *          loop further up) gives undefined, even when a variable of that name was given. A name set within an if is
 *          looked up outside instead, as every name is that is read first.
 * Source:  observed behaviour of jinja2 3.1; tests/data/templates/snippets.json holds it down. */
#include "text/jinja/jinja_int.h"

typedef struct scope {
    jj *j;
    const struct scope *parent;
    jj_dict *known;
    jj_names *unset;
    uint32_t branch; /* ifs around */
} scope;

static bool scope_of(jj *j, const scope *parent, jj_node *body, scope *s, jj_names **unset);

static bool knows(const scope *s, const jj_str *name)
{
    for (; s != NULL; s = s->parent)
        if (jj_dict_find_str(s->known, name) != NULL) return true;
    return false;
}

static bool learn(scope *s, const jj_str *name)
{
    return jj_dict_put(s->j, s->known, (jj_val){.kind = JJ_STR, .s = name}, jj_none());
}

static bool store(scope *s, const jj_str *name)
{
    if (jj_dict_find_str(s->known, name) != NULL) return true;
    if (s->branch == 0 && !knows(s->parent, name)) {
        jj_names *u = jj_alloc(s->j, sizeof *u);
        if (u == NULL) return false;
        *u = (jj_names){name, s->unset};
        s->unset = u;
    }
    return learn(s, name);
}

static bool load(scope *s, const jj_node *e)
{
    for (; e != NULL; e = e->next) {
        if (e->kind == JJ_N_NAME && !knows(s, e->name)) JJ_TRY(learn(s, e->name));
        JJ_TRY(load(s, e->a) && load(s, e->b) && load(s, e->c) && load(s, e->d));
        if (e->kind != JJ_N_CALL && e->kind != JJ_N_FILTER && e->kind != JJ_N_TEST) continue;
        for (const jj_arg *a = e->args; a != NULL; a = a->next) JJ_TRY(load(s, a->value));
    }
    return true;
}

static bool store_target(scope *s, const jj_node *t)
{
    if (t->kind == JJ_N_NAME) return store(s, t->name);
    if (t->kind == JJ_N_NSREF) return knows(s, t->name) || learn(s, t->name);
    for (const jj_node *c = t->a; c != NULL; c = c->next) JJ_TRY(store_target(s, c));
    return true;
}

static bool learn_target(scope *s, const jj_node *t)
{
    if (t->kind == JJ_N_NAME) return learn(s, t->name);
    for (const jj_node *c = t->a; c != NULL; c = c->next) JJ_TRY(learn_target(s, c));
    return true;
}

/* What the statements of one scope do with names; bodies that are scopes of their own are left out. */
static bool walk(scope *s, const jj_node *n)
{
    for (; n != NULL; n = n->next) {
        switch (n->kind) {
        case JJ_N_PRINT:
        case JJ_N_FOR:
        case JJ_N_CALL_BLOCK:
        case JJ_N_FILTER_BLOCK:
        case JJ_N_WITH: JJ_TRY(load(s, n->a)); break;
        case JJ_N_SET: JJ_TRY(load(s, n->a) && store_target(s, n->target)); break;
        case JJ_N_SET_BLOCK: JJ_TRY(store_target(s, n->target)); break;
        case JJ_N_MACRO: JJ_TRY(store(s, n->name)); break;
        case JJ_N_IF:
            s->branch++;
            for (const jj_node *arm = n; arm != NULL; arm = arm->other) {
                if (arm->kind != JJ_N_IF || (arm != n && arm->next != NULL)) {
                    JJ_TRY(walk(s, arm));
                    break;
                }
                JJ_TRY(load(s, arm->a) && walk(s, arm->body));
            }
            s->branch--;
            break;
        default: break;
        }
    }
    return true;
}

static bool params(scope *s, const jj_node *n)
{
    for (const jj_param *a = n->params; a != NULL; a = a->next) JJ_TRY(learn(s, a->name));
    for (const jj_param *a = n->params; a != NULL; a = a->next) JJ_TRY(load(s, a->fallback));
    return true;
}

/* The scopes below the statements of s. */
static bool inner(scope *s, jj_node *n)
{
    for (; n != NULL; n = n->next) {
        scope in = {.j = s->j, .parent = s}, other = in;
        if (n->kind == JJ_N_IF) {
            JJ_TRY(inner(s, n->body));
            jj_node *arm = n->other;
            for (; arm != NULL && arm->kind == JJ_N_IF && arm->next == NULL; arm = arm->other)
                JJ_TRY(inner(s, arm->body));
            JJ_TRY(inner(s, arm));
            continue;
        }
        if (n->body == NULL) continue;
        JJ_TRY(jj_dict_new(s->j, &in.known) && jj_dict_new(s->j, &other.known));
        if (n->kind == JJ_N_FOR) {
            jj_names *none;
            JJ_TRY(learn_target(&in, n->target) && scope_of(s->j, s, n->other, &other, &none));
        } else if (n->kind == JJ_N_WITH) {
            for (const jj_node *t = n->target; t != NULL; t = t->next) JJ_TRY(learn_target(&in, t));
        } else if (n->kind == JJ_N_MACRO || n->kind == JJ_N_CALL_BLOCK) {
            JJ_TRY(params(&in, n));
        }
        JJ_TRY(scope_of(s->j, s, n->body, &in, &n->unset));
    }
    return true;
}

static bool scope_of(jj *j, const scope *parent, jj_node *body, scope *s, jj_names **unset)
{
    (void)j;
    s->parent = parent;
    JJ_TRY(walk(s, body));
    *unset = s->unset;
    return inner(s, body);
}

bool jj_scopes(jj *j, jj_node *body, jj_names **unset)
{
    scope s = {.j = j};
    return jj_dict_new(j, &s.known) && scope_of(j, NULL, body, &s, unset);
}
