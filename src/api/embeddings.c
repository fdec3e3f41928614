/* api/embeddings.c - /v1/embeddings, /api/embed and /api/embeddings.
 *
 * Place:   over call.c: all texts of a request are one engine request.
 * Idea:    vectors are copied as they come and written as JSON when the last is there; a large answer is written
 *          on a thread that may take its time (sink.later), not on the scheduler's.
 * Always:  a vector with NaN or infinity is an error, never `null` in an answer.
 * Source:  OpenAI API reference (embeddings), Ollama API reference (/api/embed, /api/embeddings). */
#include "api/internal.h"

#include <math.h>

typedef struct embed_call {
    imp_api_call base; /* first */
    imp_api_params p;
    imp_model *model;
    const char *model_id; /* in the arena */
    imp_api_lora lora;    /* until the request is submitted */
    bool base64, legacy;  /* legacy: {"embedding":[...]}, one text */
    size_t n_input, dim, n_got, n_tok;
    float *vec;     /* [n_input][dim]; owned */
    uint8_t *got;   /* [n_input], in the arena */
    int32_t *ids;   /* all inputs' tokens; owned */
    size_t *n_ids;  /* [n_input], in the arena */
    size_t cap_ids; /* of ids */
} embed_call;

/* ---- answers --------------------------------------------------------------------------------------- */

static void write_vector(const embed_call *e, size_t i, imp_buf *b)
{
    const float *v = e->vec + i * e->dim;
    if (e->base64) {
        imp_json_base64(b, v, e->dim * sizeof *v); /* little endian on every machine we build for */
        return;
    }
    imp_buf_str(b, "[");
    for (size_t k = 0; k < e->dim; k++) {
        if (k) imp_buf_add(b, ",", 1);
        imp_json_f32(b, v[k]);
    }
    imp_buf_str(b, "]");
}

static void write_openai(const embed_call *e, imp_buf *b)
{
    imp_buf_str(b, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < e->n_input; i++) {
        imp_buf_fmt(b, "%s{\"object\":\"embedding\",\"index\":%zu,\"embedding\":", i ? "," : "", i);
        write_vector(e, i, b);
        imp_buf_str(b, "}");
    }
    imp_buf_str(b, "],\"model\":");
    imp_json_cstr(b, e->model_id);
    imp_buf_fmt(b, ",\"usage\":{\"prompt_tokens\":%zu,\"total_tokens\":%zu}", e->n_tok, e->n_tok);
    if (e->p.want_receipt) imp_api_write_receipts(&e->base, b);
    imp_buf_str(b, "}");
}

static void write_ollama(const embed_call *e, imp_buf *b)
{
    if (e->legacy) {
        imp_buf_str(b, "{\"embedding\":");
        if (e->n_input)
            write_vector(e, 0, b);
        else
            imp_buf_str(b, "[]");
        imp_buf_str(b, "}");
        return;
    }
    imp_buf_str(b, "{\"model\":");
    imp_json_cstr(b, e->model_id);
    imp_buf_str(b, ",\"embeddings\":[");
    for (size_t i = 0; i < e->n_input; i++) {
        if (i) imp_buf_str(b, ",");
        write_vector(e, i, b);
    }
    imp_buf_fmt(b, "],\"total_duration\":%llu,\"load_duration\":%llu,\"prompt_eval_count\":%zu}",
                (unsigned long long)(imp_now_ns() - e->base.t0_ns), (unsigned long long)e->base.waited_ns,
                e->n_tok);
}

static bool all_finite(const embed_call *e)
{
    for (size_t i = 0; i < e->n_input * e->dim; i++)
        if (!isfinite(e->vec[i])) return false;
    return true;
}

static void answer(void *arg)
{
    embed_call *e = arg;
    imp_error *err = &e->base.err;
    if (err->status == IMP_OK && (e->n_got != e->n_input || !all_finite(e)))
        imp_fail(err, IMP_INTERNAL, "the model gave %zu of %zu vectors, or values that are no numbers",
                 e->n_got, e->n_input);
    if (err->status != IMP_OK) {
        imp_api_fail(&e->base.sink, e->base.dialect, err);
    } else {
        imp_buf b = {0};
        imp_buf_reserve(&b, e->n_input * e->dim * (e->base64 ? 6 : 13) + 1024);
        if (e->base.dialect == IMP_OLLAMA)
            write_ollama(e, &b);
        else
            write_openai(e, &b);
        imp_api_answer(&e->base.sink, 200, &b);
    }
    imp_call_unref(&e->base);
}

/* ---- events ---------------------------------------------------------------------------------------- */

static void on_event(imp_api_call *base, imp_call_slot *s, const imp_event *ev)
{
    embed_call *e = (embed_call *)base;
    (void)s;
    if (ev->kind != IMP_EVENT_EMBEDDING || ev->index >= e->n_input || ev->n_vector != e->dim) return;
    memcpy(e->vec + ev->index * e->dim, ev->vector, e->dim * sizeof *e->vec);
    e->n_got += !e->got[ev->index];
    e->got[ev->index] = 1;
}

static void on_finish(imp_api_call *base)
{
    embed_call *e = (embed_call *)base;
    bool large = e->n_input * e->dim > 8192;
    if (large && base->sink.later && base->sink.later(base->sink.user, answer, e)) return;
    answer(e);
}

static void embed_deinit(embed_call *e)
{
    imp_sys_free(e->vec);
    imp_sys_free(e->ids);
    imp_api_params_deinit(&e->p);
}

static void on_free(imp_api_call *base)
{
    embed_deinit((embed_call *)base);
}

/* ---- inputs to tokens -------------------------------------------------------------------------------- */

static imp_status add_ids(embed_call *e, const int32_t *ids, size_t n, imp_error *err)
{
    if (n > e->cap_ids - e->n_tok) {
        size_t cap = IMP_MAX(e->cap_ids * 2, e->n_tok + n);
        int32_t *p = imp_sys_realloc(e->ids, cap * sizeof *p);
        if (!p) return imp_fail(err, IMP_NOMEM, "out of memory");
        e->ids = p;
        e->cap_ids = cap;
    }
    memcpy(e->ids + e->n_tok, ids, n * sizeof *ids);
    e->n_tok += n;
    return IMP_OK;
}

/* Ollama cuts a text that is too long: n tokens to `limit`, keeping the special tokens at the end. Those are what the
 * empty text has beyond the common start. */
static imp_status cut(const embed_call *e, int32_t *ids, size_t *n, size_t limit, imp_error *err)
{
    int32_t *empty;
    size_t n_empty, head = 0;
    IMP_TRY(imp_tokenize(e->model, "", 0, IMP_TOK_ADD_SPECIAL, &empty, &n_empty, err));
    while (head < n_empty && head < *n && empty[head] == ids[head]) head++;
    size_t tail = n_empty - head;
    if (tail >= limit || memcmp(ids + *n - tail, empty + head, tail * sizeof *ids) != 0) tail = 0;
    memmove(ids + limit - tail, ids + *n - tail, tail * sizeof *ids);
    *n = limit;
    imp_free(empty);
    return IMP_OK;
}

static imp_status add_text(embed_call *e, size_t i, const json_t *v, imp_error *err)
{
    const char *field = e->p.prompt ? "prompt" : "input";
    int32_t *ids;
    size_t n, limit = imp_model_get_info(e->model)->n_ctx;
    IMP_TRY(imp_tokenize(e->model, json_string_value(v), json_string_length(v), IMP_TOK_ADD_SPECIAL, &ids, &n,
                         err));
    imp_status st = IMP_OK;
    if (e->p.num_ctx > 0) limit = IMP_MIN(limit, (size_t)e->p.num_ctx);
    if (n > limit && limit > 0 && e->base.dialect == IMP_OLLAMA) {
        if (e->p.truncate)
            st = cut(e, ids, &n, limit, err);
        else
            st = imp_fail_field(err, IMP_TOO_LARGE, field,
                                "text %zu of '%s' has %zu tokens; this model takes %zu", i, field, n, limit);
    }
    if (st == IMP_OK && n == 0)
        st = imp_fail_field(err, IMP_INVALID, field, "text %zu of '%s' holds no token", i, field);
    if (st == IMP_OK) st = add_ids(e, ids, n, err);
    e->n_ids[i] = n;
    imp_free(ids);
    return st;
}

static imp_status add_tokens(embed_call *e, size_t i, const json_t *list, imp_error *err)
{
    uint32_t n_vocab = imp_model_get_info(e->model)->n_vocab;
    size_t k;
    json_t *v;
    json_array_foreach(list, k, v)
    {
        json_int_t id = json_integer_value(v);
        if (id < 0 || id >= (json_int_t)n_vocab)
            return imp_fail_field(err, IMP_INVALID, "input",
                                  "'input' holds the token id %lld; this model has %u", (long long)id,
                                  n_vocab);
        int32_t x = (int32_t)id;
        IMP_TRY(add_ids(e, &x, 1, err));
    }
    e->n_ids[i] = json_array_size(list);
    return IMP_OK;
}

static imp_status collect(embed_call *e, imp_error *err)
{
    const json_t *in = e->p.prompt ? e->p.prompt : e->p.input;
    bool many = json_is_array(in) && !json_is_integer(json_array_get(in, 0));
    e->n_ids = imp_arena_array(e->p.arena, e->n_input, sizeof *e->n_ids);
    e->got = imp_arena_array(e->p.arena, e->n_input, 1);
    if (!e->n_ids || !e->got) return imp_fail(err, IMP_NOMEM, "out of memory");
    for (size_t i = 0; i < e->n_input; i++) {
        const json_t *v = many ? json_array_get(in, i) : in;
        if (json_is_string(v))
            IMP_TRY(add_text(e, i, v, err));
        else
            IMP_TRY(add_tokens(e, i, v, err));
    }
    return IMP_OK;
}

static imp_status prepare(embed_call *e, imp_error *err)
{
    const imp_model_info *info = imp_model_get_info(e->model);
    IMP_TRY(imp_api_adapters(e->p.model, e->p.lora, e->model, &e->lora, err));
    const char *id = e->lora.name != NULL ? e->lora.name : info->id;
    e->model_id = imp_arena_strndup(e->p.arena, id, strlen(id));
    if (!e->model_id) return imp_fail(err, IMP_NOMEM, "out of memory");
    e->dim = info->embed_dim;
    if (e->p.dimensions != IMP_UNSET) {
        if (e->p.dimensions > (int64_t)info->embed_dim)
            return imp_fail_field(err, IMP_INVALID, "dimensions",
                                  "'dimensions' must be between 1 and %u, not %lld", info->embed_dim,
                                  (long long)e->p.dimensions);
        e->dim = (size_t)e->p.dimensions;
    }
    if (e->n_input == 0) return IMP_OK;
    IMP_TRY(collect(e, err));
    uint64_t n;
    if (!imp_mul_u64(e->n_input, e->dim, &n) || n > SIZE_MAX / sizeof(float)) n = 0;
    e->vec = n ? imp_sys_calloc((size_t)n, sizeof(float)) : NULL;
    return e->vec ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
}

static size_t count_input(const imp_api_params *p)
{
    if (p->prompt) return json_string_length(p->prompt) > 0;
    if (!p->input || (json_is_array(p->input) && json_array_size(p->input) == 0)) return 0;
    return imp_api_n_input(p->input);
}

static imp_status submit(embed_call *e, imp_error *err)
{
    imp_request rq = {.kind = IMP_REQUEST_EMBED, .ids = e->ids, .n_ids = e->n_ids, .n_input = e->n_input};
    imp_sampling_default(&rq.sampling);
    rq.require = e->p.require;
    rq.lora = e->lora.use;
    rq.n_lora = e->lora.n;
    if (e->p.priority != IMP_UNSET) rq.priority = (int32_t)e->p.priority;
    rq.dimensions = e->p.dimensions == IMP_UNSET ? 0 : (uint32_t)e->p.dimensions;
    if (e->n_input == 0) return IMP_OK; /* nothing to compute: the answer is empty */
    return imp_call_submit(&e->base, 0, e->model, &rq, err);
}

imp_api_call *imp_api_embed(imp_api *a, const imp_api_request *rq, imp_endpoint ep, const imp_api_sink *s)
{
    imp_dialect dialect = ep != EP_EMBED ? IMP_OLLAMA : IMP_OPENAI;
    imp_error err = {0};
    embed_call *e = imp_sys_calloc(1, sizeof *e);
    imp_status st = e ? imp_api_parse(ep, rq->body, rq->n_body, &e->p, &err) : IMP_NOMEM;
    if (st == IMP_OK) {
        e->base.dialect = dialect;
        e->base64 = e->p.encoding && strcmp(e->p.encoding, "base64") == 0;
        e->legacy = ep == EP_OLLAMA_EMBEDDINGS && !e->p.input;
        e->n_input = count_input(&e->p);
        e->model = imp_api_model(a, e->p.model, true, dialect, &err);
        st = e->model ? prepare(e, &err) : err.status;
    }
    if (st == IMP_OK) st = imp_call_init(&e->base, a, s, dialect, 1);
    if (st != IMP_OK) {
        if (err.status == IMP_OK) imp_fail(&err, st, "out of memory");
        if (e) {
            imp_api_adapters_release(&e->lora);
            imp_model_release(e->model);
            embed_deinit(e);
        }
        imp_sys_free(e);
        imp_api_fail(s, dialect, &err);
        return NULL;
    }
    e->base.who = rq->who;
    imp_call_waited(&e->base, rq->waited_ns);
    if (!isnan(e->p.keep_s)) (void)imp_model_keep(e->model, e->p.keep_s); /* a pinned one stays longer */
    e->base.on_event = on_event;
    e->base.on_finish = on_finish;
    e->base.on_free = on_free;
    st = submit(e, &err);
    imp_sys_free(e->ids); /* the engine has its copy */
    e->ids = NULL;
    imp_api_adapters_release(&e->lora);
    imp_model_release(e->model);
    e->model = NULL;
    imp_api_json_release(&e->p.root);
    imp_call_go(&e->base, st == IMP_OK ? NULL : &err);
    return &e->base;
}
