/* app/cmd_embed.c - `impetus embed`: texts to vectors.
 *
 * Idea:    texts go to the engine in groups, so that a file of any length is embedded in bounded memory and its lines
 *          come out in order while it runs.
 * Layout:  without --json one JSON array a line; with it one document {"model","dim","tokens":[...],"embeddings":[...]}. */
#include "app/app.h"

enum { GROUP = 64 };

typedef struct group {
    int32_t *ids; /* owned; all texts' tokens, one after the other */
    size_t n_tok, cap;
    size_t n_ids[GROUP], n;
    float *vec; /* [n][dim], owned */
    size_t dim, n_come;
} group;

typedef struct embedder {
    app *a;
    imp_model *m;
    group g;
    uint64_t n_done;
    imp_buf counts; /* token counts of all texts, for the document's end */
} embedder;

static void take_vector(void *user, size_t index, const float *v, size_t n)
{
    group *g = user;
    if (index >= g->n || n != g->dim) return;
    memcpy(g->vec + index * g->dim, v, n * sizeof *v);
    g->n_come++;
}

static void print_group(embedder *e)
{
    bool json = opt_on(&e->a->opt, OPT_JSON);
    for (size_t i = 0; i < e->g.n; i++) {
        if (json && e->n_done) fputs(",\n", stdout);
        putchar('[');
        for (size_t j = 0; j < e->g.dim; j++) {
            if (j) putchar(',');
            app_print_float(stdout, e->g.vec[i * e->g.dim + j]);
        }
        putchar(']');
        if (!json) putchar('\n');
        imp_buf_fmt(&e->counts, "%s%zu", e->n_done ? "," : "", e->g.n_ids[i]);
        e->n_done++;
    }
}

static imp_status run_group(embedder *e)
{
    group *g = &e->g;
    app_outcome end;
    if (g->n == 0) return IMP_OK;
    imp_request q = {.kind = IMP_REQUEST_EMBED,
                     .ids = g->ids,
                     .n_ids = g->n_ids,
                     .n_input = g->n,
                     .raw_embedding = opt_on(&e->a->opt, OPT_NO_NORM),
                     .dimensions = opt_u32(&e->a->opt, OPT_DIMS)};
    app_sink sink = {.vector = take_vector, .user = g};
    g->n_come = 0;
    IMP_TRY(app_request_run(e->a->engine, e->m, &q, &sink, &end, &e->a->err));
    if (g->n_come != g->n)
        return imp_fail(&e->a->err, IMP_INTERNAL, "only %zu of %zu vectors came back", g->n_come, g->n);
    print_group(e);
    g->n = g->n_tok = 0;
    return app_out_flush(&e->a->err);
}

static imp_status add_text(embedder *e, const char *text, size_t n)
{
    group *g = &e->g;
    int32_t *ids;
    size_t n_ids;
    IMP_TRY(imp_tokenize(e->m, text, n, IMP_TOK_ADD_SPECIAL, &ids, &n_ids, &e->a->err));
    if (g->n_tok + n_ids > g->cap) {
        size_t cap = (g->n_tok + n_ids) * 2;
        int32_t *grown = imp_sys_realloc(g->ids, cap * sizeof *grown);
        if (!grown) {
            imp_free(ids);
            return imp_fail(&e->a->err, IMP_NOMEM, "no memory for the texts");
        }
        g->ids = grown;
        g->cap = cap;
    }
    memcpy(g->ids + g->n_tok, ids, n_ids * sizeof *ids);
    g->n_tok += n_ids;
    g->n_ids[g->n++] = n_ids;
    imp_free(ids);
    return g->n == GROUP ? run_group(e) : IMP_OK;
}

static imp_status add_lines(embedder *e)
{
    imp_buf line = {0};
    imp_status s = IMP_OK;
    while (s == IMP_OK && app_read_line(stdin, &line)) s = add_text(e, line.data ? line.data : "", line.n);
    if (s == IMP_OK && line.failed)
        s = imp_fail(&e->a->err, IMP_NOMEM, "no memory for a line of standard input");
    imp_buf_deinit(&line);
    return s;
}

static imp_status add_all(embedder *e)
{
    app *a = e->a;
    if (a->n_arg < 2) IMP_TRY(add_lines(e));
    for (size_t i = 1; i < a->n_arg; i++) {
        if (!strcmp(a->arg[i], "-"))
            IMP_TRY(add_lines(e));
        else
            IMP_TRY(add_text(e, a->arg[i], strlen(a->arg[i])));
    }
    return run_group(e);
}

app_result cmd_embed(app *a)
{
    embedder e = {.a = a};
    if (app_load(a, a->arg[0], NULL, &e.m) != IMP_OK) return APP_FAILED;
    const imp_model_info *info = imp_model_get_info(e.m);
    if (!info->can_embed) return app_failed(a, "'%.200s' cannot embed; choose an embedding model", a->arg[0]);
    uint32_t dims = opt_u32(&a->opt, OPT_DIMS);
    if (dims > info->embed_dim)
        return app_usage(a, "--dimensions: the model's vectors have %u numbers, %u are asked for",
                         info->embed_dim, dims);
    bool json = opt_on(&a->opt, OPT_JSON);
    e.g.dim = dims ? dims : info->embed_dim;
    e.g.vec = imp_sys_malloc(GROUP * e.g.dim * sizeof(float));
    imp_status s = e.g.vec ? IMP_OK : imp_fail(&a->err, IMP_NOMEM, "no memory for the vectors");
    if (json) {
        json_t *id = app_json_text(info->id, strlen(info->id));
        char *text = id ? json_dumps(id, JSON_ENCODE_ANY) : NULL;
        printf("{\"model\":%s,\"dim\":%zu,\"embeddings\":[\n", text ? text : "null", e.g.dim);
        imp_free(text);
        json_decref(id);
    }
    if (s == IMP_OK) s = add_all(&e);
    if (json && s == IMP_OK) printf("],\"tokens\":[%s]}\n", e.counts.data ? e.counts.data : "");
    imp_buf_deinit(&e.counts);
    imp_sys_free(e.g.ids);
    imp_sys_free(e.g.vec);
    return s == IMP_OK ? APP_OK : APP_FAILED;
}
