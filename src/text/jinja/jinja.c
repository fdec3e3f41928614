/* text/jinja/jinja.c - compile and render, the way in from outside. */
#include <time.h>

#include "text/jinja/jinja_int.h"

enum {
    MAX_SOURCE = 1 << 20,
    COMPILE_MEM = 128 << 20,
    RENDER_MEM = 32 << 20,
    RENDER_OUT = 8 << 20,
    RENDER_FUEL = 800000,
    FUEL_A_VALUE = 256,
    RENDER_DEPTH = 600,
    VARS_DEPTH = 200
};

struct imp_jinja {
    imp_arena *arena;
    jj_node *body;
    jj_names *unset;
};

imp_status imp_jinja_compile(const char *src, size_t n, imp_jinja **out, imp_error *err)
{
    *out = NULL;
    if (n > MAX_SOURCE)
        return imp_fail(err, IMP_TOO_LARGE, "the chat template has %zu bytes; %d are allowed", n, MAX_SOURCE);
    if (!imp_utf8_valid(src, n)) return imp_fail(err, IMP_FORMAT, "the chat template is not valid UTF-8");
    imp_jinja *t = imp_sys_calloc(1, sizeof *t);
    if (t != NULL) t->arena = imp_arena_new(n + 4096);
    char *copy = t != NULL && t->arena != NULL ? imp_arena_strndup(t->arena, src, n) : NULL;
    if (copy == NULL) {
        imp_jinja_free(t);
        return imp_fail(err, IMP_NOMEM, "not enough memory for the chat template");
    }
    imp_buf scratch = {0};
    jj j = {.arena = t->arena,
            .mem_cap = COMPILE_MEM,
            .out = &scratch,
            .out_cap = RENDER_OUT,
            .fuel = UINT64_MAX,
            .depth_cap = RENDER_DEPTH,
            .line = 1,
            .err = err};
    bool good = jj_parse(&j, copy, n, &t->body, &t->unset);
    imp_buf_deinit(&scratch);
    if (!good) {
        imp_jinja_free(t);
        return j.status;
    }
    *out = t;
    return IMP_OK;
}

void imp_jinja_free(imp_jinja *t)
{
    if (t == NULL) return;
    imp_arena_free(t->arena);
    imp_sys_free(t);
}

static bool take_vars(jj *j, const json_t *vars)
{
    uint64_t n_value = 0;
    jj_val v;
    j->fuel = UINT64_MAX; /* taking the variables in is not the template's doing */
    j->depth_cap = VARS_DEPTH;
    JJ_TRY(jj_from_json(j, vars, &v, &n_value));
    if (v.kind != JJ_DICT) return jj_fail(j, IMP_INVALID, "the variables of a template are a JSON object");
    j->vars = v.d;
    j->mem_cap += j->mem_used;
    j->fuel = n_value * FUEL_A_VALUE;
    return true;
}

imp_status imp_jinja_render(const imp_jinja *t, const json_t *vars, const imp_jinja_limits *limits,
                            imp_buf *out, imp_error *err)
{
    imp_jinja_limits l = limits != NULL ? *limits : (imp_jinja_limits){0};
    jj j = {.out = out, .out_start = out->n, .err = err, .line = 1};
    j.out_cap = l.out_bytes != 0 ? l.out_bytes : RENDER_OUT;
    j.mem_cap = l.mem_bytes != 0 ? l.mem_bytes : RENDER_MEM;
    j.now = l.now != 0 ? l.now : (int64_t)time(NULL);
    j.arena = imp_arena_new(1 << 16);
    if (j.arena == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the chat template");
    bool good = take_vars(&j, vars);
    if (good) {
        j.fuel = l.fuel != 0 ? l.fuel : j.fuel + RENDER_FUEL;
        j.depth_cap = l.depth != 0 ? l.depth : RENDER_DEPTH;
        j.env = jj_frame_push(&j, NULL, t->unset);
        good = j.env != NULL && jj_exec(&j, t->body);
    }
    imp_arena_free(j.arena);
    if (!good) out->n = j.out_start;
    if (out->data != NULL) out->data[out->n] = 0;
    return good ? IMP_OK : j.status;
}
