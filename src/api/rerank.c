/* api/rerank.c - /v1/rerank: which documents belong to a query, by the vectors of an embedding model.
 *
 * Place:   over call.c: query and documents are one engine request.
 * Idea:    the score is the cosine of the query's vector and the document's. Models that read both together
 *          (cross-encoders) are not loaded by this program, so there is nothing to choose.
 * Always:  a text that is longer than the model takes is refused with its number, never cut in silence; equal scores keep
 *          the order of the documents.
 * Source:  the form that Jina's and Cohere's rerank endpoints share. */
#include <math.h>
#include <stdlib.h>

#include "api/internal.h"

enum { MAX_DOCUMENTS = IMP_API_MAX_INPUTS - 1 };

typedef struct rank {
    size_t index;
    double score;
} rank;

typedef struct rerank_call {
    imp_api_call base; /* first */
    json_t *root;      /* owned until the texts are tokens */
    imp_arena *arena;  /* owned */
    const char *model_id;
    const char **text; /* [n] the query, then the documents; in the arena */
    size_t *n_text;    /* [n] bytes */
    imp_api_lora lora; /* until the request is submitted */
    size_t n, top_n, dim, n_tok, n_got;
    bool documents; /* the answer repeats them */
    float *vec;     /* [n][dim], in the arena */
    rank *order;    /* [n - 1] */
} rerank_call;

/* ---- answer ------------------------------------------------------------------------------------------- */

static int best_first(const void *a, const void *b)
{
    const rank *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    return (x->index > y->index) - (x->index < y->index);
}

static bool score_all(rerank_call *r)
{
    for (size_t i = 1; i < r->n; i++) {
        const float *q = r->vec, *d = r->vec + i * r->dim;
        double dot = 0, qq = 0, dd = 0;
        for (size_t k = 0; k < r->dim; k++) {
            dot += (double)q[k] * d[k];
            qq += (double)q[k] * q[k];
            dd += (double)d[k] * d[k];
        }
        double norm = sqrt(qq) * sqrt(dd);
        r->order[i - 1] = (rank){i - 1, norm > 0 ? dot / norm : 0};
        if (!isfinite(r->order[i - 1].score)) return false;
    }
    qsort(r->order, r->n - 1, sizeof *r->order, best_first);
    return true;
}

static void write_answer(const rerank_call *r, imp_buf *b)
{
    imp_buf_str(b, "{\"object\":\"list\",\"model\":");
    imp_json_cstr(b, r->model_id);
    imp_buf_str(b, ",\"results\":[");
    for (size_t i = 0; i < r->top_n; i++) {
        const rank *k = &r->order[i];
        imp_buf_fmt(b, "%s{\"index\":%zu,\"relevance_score\":%.9g", i ? "," : "", k->index, k->score);
        if (r->documents) {
            imp_buf_str(b, ",\"document\":{\"text\":");
            imp_json_str(b, r->text[k->index + 1], r->n_text[k->index + 1]);
            imp_buf_str(b, "}");
        }
        imp_buf_str(b, "}");
    }
    imp_buf_fmt(b, "],\"usage\":{\"prompt_tokens\":%zu,\"total_tokens\":%zu}}", r->n_tok, r->n_tok);
}

static void on_event(imp_api_call *base, imp_call_slot *s, const imp_event *ev)
{
    rerank_call *r = (rerank_call *)base;
    (void)s;
    if (ev->kind != IMP_EVENT_EMBEDDING || ev->index >= r->n || ev->n_vector != r->dim) return;
    memcpy(r->vec + ev->index * r->dim, ev->vector, r->dim * sizeof *r->vec);
    r->n_got++;
}

static void on_finish(imp_api_call *base)
{
    rerank_call *r = (rerank_call *)base;
    if (base->err.status == IMP_OK && (r->n_got != r->n || !score_all(r)))
        imp_fail(&base->err, IMP_INTERNAL, "the model gave %zu of %zu vectors, or values that are no numbers",
                 r->n_got, r->n);
    if (base->err.status != IMP_OK) {
        imp_api_fail(&base->sink, base->dialect, &base->err);
    } else {
        imp_buf b = {0};
        write_answer(r, &b);
        imp_api_answer(&base->sink, 200, &b);
    }
    imp_call_unref(base);
}

static void rerank_deinit(rerank_call *r)
{
    imp_arena_free(r->arena);
    imp_api_json_release(&r->root);
}

static void on_free(imp_api_call *base)
{
    rerank_deinit((rerank_call *)base);
}

/* ---- request ------------------------------------------------------------------------------------------- */

static imp_status take_text(rerank_call *r, size_t i, const json_t *v, const char *field, imp_error *err)
{
    if (json_is_object(v)) v = json_object_get(v, "text");
    if (!json_is_string(v) || json_string_length(v) == 0)
        return imp_fail_field(err, IMP_INVALID, field, "'%s' must hold text: a string that is not empty%s",
                              field, i ? ", or {\"text\": one}" : "");
    r->n_text[i] = json_string_length(v);
    r->text[i] = imp_arena_strndup(r->arena, json_string_value(v), r->n_text[i]);
    return r->text[i] ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
}

static imp_status take_texts(rerank_call *r, const json_t *query, const json_t *docs, imp_error *err)
{
    size_t n = json_array_size(docs);
    if (!json_is_array(docs) || n == 0 || n > MAX_DOCUMENTS)
        return imp_fail_field(err, IMP_INVALID, "documents", "'documents' must be a list of 1 to %d texts",
                              MAX_DOCUMENTS);
    r->n = n + 1;
    r->text = imp_arena_array(r->arena, r->n, sizeof *r->text);
    r->n_text = imp_arena_array(r->arena, r->n, sizeof *r->n_text);
    r->order = imp_arena_array(r->arena, n, sizeof *r->order);
    if (!r->text || !r->n_text || !r->order) return imp_fail(err, IMP_NOMEM, "out of memory");
    if (!json_is_string(query)) query = NULL;
    IMP_TRY(take_text(r, 0, query, "query", err));
    for (size_t i = 0; i < n; i++) IMP_TRY(take_text(r, i + 1, json_array_get(docs, i), "documents", err));
    if (r->top_n == 0 || r->top_n > n) r->top_n = n;
    return IMP_OK;
}

static imp_status read_fields(rerank_call *r, const char **model, imp_error *err)
{
    const char *key;
    json_t *v, *query = NULL, *docs = NULL;
    json_object_foreach(r->root, key, v)
    {
        if (json_is_null(v)) continue;
        if (strcmp(key, "query") == 0)
            query = v;
        else if (strcmp(key, "documents") == 0)
            docs = v;
        else if (strcmp(key, "model") == 0 && json_is_string(v))
            *model = json_string_value(v);
        else if (strcmp(key, "top_n") == 0 && json_is_integer(v) && json_integer_value(v) >= 1)
            r->top_n = (size_t)json_integer_value(v);
        else if (strcmp(key, "return_documents") == 0 && json_is_boolean(v))
            r->documents = json_is_true(v);
        else
            return imp_fail_field(
                err, IMP_INVALID, key,
                "'%.60s' must be one of: model, query (strings), documents (a list of texts), top_n (at "
                "least 1), return_documents (a boolean)",
                key);
    }
    return take_texts(r, query, docs, err);
}

/* ids: in the arena; n_ids: of each text. */
static imp_status tokens_of(rerank_call *r, const imp_model *m, int32_t **ids, size_t *n_ids, imp_error *err)
{
    imp_buf all = {0};
    uint32_t limit = imp_model_get_info(m)->n_ctx;
    imp_status st = IMP_OK;
    for (size_t i = 0; i < r->n && st == IMP_OK; i++) {
        int32_t *one;
        st = imp_tokenize(m, r->text[i], r->n_text[i], IMP_TOK_ADD_SPECIAL, &one, &n_ids[i], err);
        if (st != IMP_OK) break;
        const char *field = i ? "documents" : "query";
        if (n_ids[i] > limit)
            st = imp_fail_field(err, IMP_TOO_LARGE, field,
                                "text %zu of '%s' has %zu tokens; this model takes %u", i ? i - 1 : 0, field,
                                n_ids[i], limit);
        imp_buf_add(&all, one, n_ids[i] * sizeof *one);
        r->n_tok += n_ids[i];
        imp_free(one);
    }
    *ids = st == IMP_OK && !all.failed ? imp_arena_array(r->arena, r->n_tok, sizeof **ids) : NULL;
    if (*ids) memcpy(*ids, all.data, all.n);
    imp_buf_deinit(&all);
    if (st == IMP_OK && !*ids) st = imp_fail(err, IMP_NOMEM, "out of memory");
    return st;
}

static imp_status prepare(rerank_call *r, imp_model *m, int32_t **ids, size_t **n_ids, imp_error *err)
{
    const imp_model_info *info = imp_model_get_info(m);
    r->dim = info->embed_dim;
    const char *id = r->lora.name != NULL ? r->lora.name : info->id;
    r->model_id = imp_arena_strndup(r->arena, id, strlen(id));
    r->vec = imp_arena_array(r->arena, r->n, r->dim * sizeof *r->vec);
    *n_ids = imp_arena_array(r->arena, r->n, sizeof **n_ids);
    if (!r->model_id || !r->vec || !*n_ids) return imp_fail(err, IMP_NOMEM, "out of memory");
    return tokens_of(r, m, ids, *n_ids, err);
}

imp_api_call *imp_api_rerank(imp_api *a, const imp_api_request *rq, const imp_api_sink *s)
{
    imp_error err = {0};
    imp_model *m = NULL;
    const char *model = NULL;
    int32_t *ids = NULL;
    size_t *n_ids = NULL;
    rerank_call *r = imp_sys_calloc(1, sizeof *r);
    imp_status st =
        r && (r->arena = imp_arena_new(4096)) ? IMP_OK : imp_fail(&err, IMP_NOMEM, "out of memory");
    if (st == IMP_OK) st = imp_api_json(rq->body, rq->n_body, &r->root, &err);
    if (st == IMP_OK) st = read_fields(r, &model, &err);
    if (st == IMP_OK && !(m = imp_api_model(a, model, true, IMP_OPENAI, &err))) st = err.status;
    if (st == IMP_OK) st = imp_api_adapters(model, NULL, m, &r->lora, &err);
    if (st == IMP_OK) st = prepare(r, m, &ids, &n_ids, &err);
    if (st == IMP_OK && (st = imp_call_init(&r->base, a, s, IMP_OPENAI, 1)) != IMP_OK)
        (void)imp_fail(&err, st, "out of memory");
    if (st != IMP_OK) {
        imp_model_release(m);
        if (r) imp_api_adapters_release(&r->lora);
        if (r) rerank_deinit(r);
        imp_sys_free(r);
        imp_api_fail(s, IMP_OPENAI, &err);
        return NULL;
    }
    r->base.who = rq->who;
    r->base.on_event = on_event;
    r->base.on_finish = on_finish;
    r->base.on_free = on_free;
    imp_api_json_release(&r->root);
    imp_request q = {.kind = IMP_REQUEST_EMBED,
                     .ids = ids,
                     .n_ids = n_ids,
                     .n_input = r->n,
                     .lora = r->lora.use,
                     .n_lora = r->lora.n};
    imp_sampling_default(&q.sampling);
    st = imp_call_submit(&r->base, 0, m, &q, &err);
    imp_api_adapters_release(&r->lora);
    imp_model_release(m);
    imp_call_go(&r->base, st == IMP_OK ? NULL : &err);
    return &r->base;
}
