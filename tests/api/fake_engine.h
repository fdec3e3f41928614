/* tests/api/fake_engine.h - an engine without a model, for tests of the API and HTTP layers.
 *
 * Place:   included by exactly one file of a test program; it defines every function of impetus.h that the engine
 *          has, so that the linker takes none of the real one.
 * Idea:    a byte is a token, 256 and 257 are the special tokens before and after a text. One thread makes a step
 *          every g_fake.step_us: each request gets one token. What comes out depends on the prompt alone. */
#ifndef IMP_FAKE_ENGINE_H
#define IMP_FAKE_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "impetus.h"

enum { FAKE_VOCAB = 258, FAKE_CTX = 4096, FAKE_DIM = 8 };

struct imp_model {
    imp_model_info info;
};

typedef struct fake_request {
    struct fake_request *next;
    uint64_t id;
    imp_request rq; /* ids, n_ids are copies */
    const imp_model *m;
    uint32_t n_out, limit, n_wait;
    uint64_t state;
    bool cancel;
} fake_request;

struct imp_engine {
    pthread_mutex_t mu;
    pthread_cond_t cond;
    pthread_t thread;
    fake_request *list;
    uint64_t next_id;
    bool stop;
    imp_stats stats;
    imp_model model[2];
};

/* What a test sets and looks at. */
static struct {
    _Atomic unsigned step_us;       /* between steps */
    _Atomic int submit_status;      /* not OK: every submit is refused with it */
    _Atomic unsigned fail_after;    /* n tokens, then an error that names a file; 0: never */
    _Atomic unsigned n_piece;       /* bytes of a token's text; 0: 1 */
    _Atomic unsigned prefill_steps; /* steps before the first token */
    _Atomic uint64_t n_step, n_cancel_call;
    _Atomic unsigned n_running, peak_running;
    pthread_mutex_t mu;
    imp_request last; /* of the last submit; pointers are dead */
    float last_bias;
    size_t last_n_ids;
    char last_stop[64];
    const imp_toolfmt *toolfmt; /* the model's; NULL: none */
    const char *script;         /* what is answered, a byte a token, then it stops; NULL: letters */
    char prompt[4096];          /* the last chat's */
    int constraint_kind;
    char constraint[4096];
} g_fake = {.mu = PTHREAD_MUTEX_INITIALIZER};

static uint64_t fake_mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    return x ^ x >> 29;
}

static uint64_t fake_hash(const int32_t *ids, size_t n)
{
    uint64_t h = 1;
    for (size_t i = 0; i < n; i++) h = fake_mix(h * 31 + (uint64_t)ids[i]);
    return h;
}

/* ---- the scheduler's thread ---- */

static void fake_embed(fake_request *r)
{
    const int32_t *ids = r->rq.ids;
    size_t dim = r->rq.dimensions ? r->rq.dimensions : FAKE_DIM;
    for (size_t i = 0; i < r->rq.n_input; i++) {
        float v[FAKE_DIM];
        uint64_t h = fake_hash(ids, r->rq.n_ids[i]);
        for (size_t k = 0; k < FAKE_DIM; k++) v[k] = (float)((double)(fake_mix(h + k) >> 11) * 0x1p-53 - 0.5);
        imp_event ev = {.kind = IMP_EVENT_EMBEDDING, .index = i, .vector = v, .n_vector = dim};
        r->rq.on_event(r->rq.user, r->id, &ev);
        ids += r->rq.n_ids[i];
    }
}

static void fake_token(fake_request *r)
{
    char text[65536];
    unsigned n = g_fake.n_piece ? g_fake.n_piece : 1;
    r->state = fake_mix(r->state + r->n_out);
    char c = (char)('a' + r->state % 26);
    memset(text, c, n);
    if (g_fake.script) { /* a character a token, which counts as many as it has bytes */
        int32_t cp;
        const char *at = g_fake.script + r->n_out;
        n = (unsigned)imp_utf8_decode(at, strlen(at), &cp);
        memcpy(text, at, n);
        r->n_out += n - 1;
    }
    imp_token_prob tok = {c, -0.5f}, top[32];
    for (int j = 0; j < 32; j++) top[j] = (imp_token_prob){'a' + j % 26, -0.5f - (float)j};
    imp_event ev = {.kind = IMP_EVENT_TEXT, .text = text, .n_text = n};
    if (r->rq.want_logprobs) {
        ev.tokens = &tok;
        ev.n_tokens = 1;
        ev.top = top;
        ev.n_top = r->rq.n_logprobs;
    }
    r->n_out++;
    r->rq.on_event(r->rq.user, r->id, &ev);
}

/* One step of one request; true: it has ended. */
static bool fake_step(fake_request *r, bool cancel)
{
    imp_error err = {0};
    imp_event done = {.kind = IMP_EVENT_DONE, .error = &err};
    bool end = true;
    if (cancel) {
        done.finish = IMP_FINISH_CANCELLED;
        err.status = IMP_CANCELLED;
    } else if (r->rq.kind == IMP_REQUEST_EMBED) {
        fake_embed(r);
        done.finish = IMP_FINISH_STOP;
    } else if (g_fake.fail_after && r->n_out >= g_fake.fail_after) {
        done.finish = IMP_FINISH_ERROR;
        err.status = IMP_IO;
        strcpy(err.text, "reading /secret/path/model.gguf failed at 0x7ffdeadbeef0 in kv_pool.c");
    } else if (g_fake.script && !g_fake.script[r->n_out]) {
        done.finish = IMP_FINISH_STOP;
    } else if (r->n_out >= r->limit) {
        done.finish = IMP_FINISH_LENGTH;
    } else {
        if (r->n_wait >= g_fake.prefill_steps)
            fake_token(r);
        else
            r->n_wait++;
        end = false;
    }
    if (!end) return false;
    if (done.finish == IMP_FINISH_STOP || done.finish == IMP_FINISH_LENGTH) done.error = NULL;
    done.usage = (imp_usage){.n_prompt = (uint32_t)r->rq.n_ids[0], .n_generated = r->n_out};
    r->rq.on_event(r->rq.user, r->id, &done);
    return true;
}

static void fake_free(fake_request *r)
{
    free((void *)r->rq.ids);
    free((void *)r->rq.n_ids);
    free(r);
}

static void *fake_run(void *arg)
{
    imp_engine *e = arg;
    for (;;) {
        pthread_mutex_lock(&e->mu);
        while (!e->list && !e->stop) pthread_cond_wait(&e->cond, &e->mu);
        if (!e->list && e->stop) break;
        if (g_fake.n_running > g_fake.peak_running) atomic_store(&g_fake.peak_running, g_fake.n_running);
        fake_request *r = e->list;
        pthread_mutex_unlock(&e->mu);
        /* only this thread removes, and new ones come at the head */
        while (r) {
            pthread_mutex_lock(&e->mu);
            bool cancel = r->cancel || e->stop;
            pthread_mutex_unlock(&e->mu);
            bool end = fake_step(r, cancel);
            pthread_mutex_lock(&e->mu);
            fake_request *next = r->next;
            if (end) {
                fake_request **at = &e->list;
                while (*at != r) at = &(*at)->next;
                *at = next;
                if (cancel)
                    e->stats.n_cancelled++;
                else
                    e->stats.n_done++;
                e->stats.n_generated_tok += r->n_out;
                atomic_fetch_sub(&g_fake.n_running, 1);
            }
            pthread_mutex_unlock(&e->mu);
            if (end) fake_free(r);
            r = next;
        }
        atomic_fetch_add(&g_fake.n_step, 1);
        unsigned us = g_fake.step_us;
        if (us) usleep(us);
    }
    pthread_mutex_unlock(&e->mu);
    return NULL;
}

/* ---- impetus.h ---- */

imp_status imp_engine_new(const imp_engine_config *config, imp_engine **out, imp_error *err)
{
    (void)config;
    (void)err;
    imp_engine *e = calloc(1, sizeof *e);
    pthread_mutex_init(&e->mu, NULL);
    pthread_cond_init(&e->cond, NULL);
    e->model[0].info = (imp_model_info){.id = "fake",
                                        .path = "/secret/path/fake.gguf",
                                        .arch = "llama",
                                        .type = "q4_0",
                                        .device = "cpu",
                                        .template_id = "plain",
                                        .n_param = 1100000000,
                                        .n_vocab = FAKE_VOCAB,
                                        .n_ctx = FAKE_CTX,
                                        .can_generate = true,
                                        .created = 1700000000};
    e->model[1].info = (imp_model_info){.id = "emb",
                                        .path = "/secret/path/emb",
                                        .arch = "bert",
                                        .type = "f32",
                                        .device = "cpu",
                                        .n_vocab = FAKE_VOCAB,
                                        .n_ctx = 64,
                                        .can_embed = true,
                                        .embed_dim = FAKE_DIM,
                                        .created = 1700000000};
    pthread_create(&e->thread, NULL, fake_run, e);
    *out = e;
    return IMP_OK;
}

void imp_engine_free(imp_engine *e)
{
    pthread_mutex_lock(&e->mu);
    e->stop = true;
    pthread_cond_broadcast(&e->cond);
    pthread_mutex_unlock(&e->mu);
    pthread_join(e->thread, NULL);
    pthread_mutex_destroy(&e->mu);
    pthread_cond_destroy(&e->cond);
    free(e);
}

size_t imp_engine_models(imp_engine *e, imp_model **out, size_t cap)
{
    for (size_t i = 0; i < 2 && i < cap; i++) out[i] = &e->model[i];
    return 2;
}

imp_model *imp_engine_find(imp_engine *e, const char *id)
{
    for (size_t i = 0; i < 2; i++)
        if (strcmp(e->model[i].info.id, id) == 0) return &e->model[i];
    return NULL;
}

void imp_model_release(imp_model *m)
{
    (void)m;
}

imp_status imp_engine_acquire(imp_engine *e, const char *id, imp_model **now, imp_ready_fn fn, void *user,
                              imp_error *err)
{
    (void)fn, (void)user;
    *now = imp_engine_find(e, id);
    return *now != NULL ? IMP_OK : imp_fail_field(err, IMP_NOT_FOUND, "model", "there is no such model");
}

bool imp_engine_give_up(imp_engine *e, imp_ready_fn fn, void *user)
{
    (void)e, (void)fn, (void)user;
    return false;
}

bool imp_model_keep(imp_model *m, double keep_s)
{
    (void)m, (void)keep_s;
    return false;
}

imp_status imp_engine_known(imp_engine *e, imp_known_model **out, size_t *n)
{
    *n = 2;
    *out = calloc(*n, sizeof **out);
    for (size_t i = 0; i < *n; i++) {
        const imp_model_info *m = &e->model[i].info;
        imp_known_model *k = &(*out)[i];
        *k = (imp_known_model){.n_param = m->n_param,
                               .file_bytes = m->file_bytes,
                               .n_vocab = m->n_vocab,
                               .n_layer = m->n_layer,
                               .n_embd = m->n_embd,
                               .n_head = m->n_head,
                               .n_kv_head = m->n_kv_head,
                               .n_ctx_train = m->n_ctx_train,
                               .can_generate = m->can_generate,
                               .can_embed = m->can_embed,
                               .pinned = true,
                               .modified = m->created,
                               .state = IMP_MODEL_LOADED,
                               .expires_s = -1};
        snprintf(k->id, sizeof k->id, "%s", m->id);
        snprintf(k->path, sizeof k->path, "%s", m->path);
        snprintf(k->arch, sizeof k->arch, "%s", m->arch);
        snprintf(k->type, sizeof k->type, "%s", m->type);
    }
    return IMP_OK;
}

const imp_model_info *imp_model_get_info(const imp_model *m)
{
    return &m->info;
}

imp_status imp_model_plan(imp_model *m, uint32_t n_ctx, imp_memory *out, imp_error *err)
{
    imp_model_get_memory(m, out);
    return n_ctx <= 64 ? IMP_OK
                       : imp_fail_field(err, IMP_NO_FIT, "ctx", "the largest context that fits is 64");
}
void imp_model_get_memory(const imp_model *m, imp_memory *out)
{
    (void)m;
    *out =
        (imp_memory){.weights = 100, .kv = 20, .scratch = 3, .total = 123, .fits = true, .largest_ctx = 64};
}
static char *fake_json(uint64_t id, const char *fmt)
{
    char text[200];
    if (id == UINT64_MAX || id == 999999) return NULL;
    snprintf(text, sizeof text, fmt, (unsigned long long)id);
    return imp_sys_strdup(text);
}
char *imp_receipt_json(imp_engine *e, uint64_t id)
{
    (void)e;
    return fake_json(id, "{\"id\":%llu,\"prefill\":{\"device\":\"fake0\"}}");
}
char *imp_failed_units_json(imp_engine *e)
{
    (void)e;
    return imp_sys_strdup("[]");
}
char *imp_receipt_device(imp_engine *e, uint64_t id)
{
    (void)e;
    return fake_json(id, "fake0");
}
char *imp_explain_json(imp_engine *e, uint64_t id)
{
    (void)e;
    return fake_json(id, "{\"id\":%llu,\"candidates\":[]}");
}
char *imp_candidates_json(imp_engine *e, imp_model *m, uint32_t n_prompt, uint32_t n_gen, uint32_t n_batch)
{
    (void)e, (void)m, (void)n_gen, (void)n_batch;
    return fake_json(n_prompt, "{\"candidates\":[{\"prompt\":%llu}],\"chosen\":0}");
}

imp_status imp_tokenize(const imp_model *m, const char *text, size_t n, unsigned flags, int32_t **out,
                        size_t *out_n, imp_error *err)
{
    (void)err;
    bool special = flags & IMP_TOK_ADD_SPECIAL, both = special && m->info.can_embed;
    int32_t *ids = malloc((n + 3) * sizeof *ids);
    size_t k = 0;
    if (special) ids[k++] = 256;
    for (size_t i = 0; i < n; i++) ids[k++] = (unsigned char)text[i];
    if (both) ids[k++] = 257;
    *out = ids;
    *out_n = k;
    return IMP_OK;
}

imp_status imp_detokenize(const imp_model *m, const int32_t *ids, size_t n, bool special, char **out,
                          size_t *out_n, imp_error *err)
{
    (void)m;
    (void)special;
    (void)err;
    char *s = malloc(n + 1);
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 256) s[k++] = (char)ids[i];
    s[k] = 0;
    *out = s;
    *out_n = k;
    return IMP_OK;
}

const char *imp_token_piece(const imp_model *m, int32_t id, size_t *n)
{
    (void)m;
    static const char one[] = "x";
    *n = id < 256;
    return id < FAKE_VOCAB ? one : NULL;
}

/* "role: content" a line; calls and declared tools as their JSON. */
imp_status imp_chat_prompt(const imp_model *m, const imp_chat *c, char **out, imp_error *err)
{
    (void)m;
    imp_buf b = {0};
    if (c->tools) imp_buf_fmt(&b, "tools: %s\n", c->tools);
    for (size_t i = 0; i < c->n_msg; i++) {
        const imp_message *x = &c->msg[i];
        imp_buf_fmt(&b, "%s: %s\n", x->role, x->content);
        if (x->thought) imp_buf_fmt(&b, "thought: %s\n", x->thought);
        for (size_t k = 0; k < x->n_calls; k++)
            imp_buf_fmt(&b, "call %s: %s %s\n", x->calls[k].id ? x->calls[k].id : "", x->calls[k].name,
                        x->calls[k].arguments);
        if (x->call_id) imp_buf_fmt(&b, "to %s\n", x->call_id);
    }
    pthread_mutex_lock(&g_fake.mu);
    snprintf(g_fake.prompt, sizeof g_fake.prompt, "%s", b.data ? b.data : "");
    pthread_mutex_unlock(&g_fake.mu);
    *out = imp_buf_take(&b);
    return *out ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
}

imp_status imp_chat_render(const imp_model *m, const imp_message *msgs, size_t n, char **out, imp_error *err)
{
    imp_chat c = {.msg = msgs, .n_msg = n, .think = -1};
    return imp_chat_prompt(m, &c, out, err);
}

const imp_toolfmt *imp_model_toolfmt(const imp_model *m)
{
    (void)m;
    return g_fake.toolfmt;
}

/* Nothing is kept to here; what was asked for can be looked at. */
imp_status imp_constraint_new(imp_model *m, imp_constraint_kind kind, const char *text, size_t n,
                              imp_constraint **out, imp_error *err)
{
    (void)m, (void)err;
    pthread_mutex_lock(&g_fake.mu);
    g_fake.constraint_kind = kind;
    snprintf(g_fake.constraint, sizeof g_fake.constraint, "%.*s", (int)n, text);
    pthread_mutex_unlock(&g_fake.mu);
    *out = NULL;
    return IMP_OK;
}

void imp_constraint_free(imp_constraint *c)
{
    (void)c;
}

/* It has no adapters. */
imp_status imp_engine_add_adapter(imp_engine *e, const imp_adapter_source *s, imp_error *err)
{
    (void)e, (void)s;
    return imp_fail(err, IMP_UNSUPPORTED, "no adapters here");
}

imp_status imp_engine_remove_adapter(imp_engine *e, const char *name, imp_error *err)
{
    (void)e, (void)name;
    return imp_fail(err, IMP_NOT_FOUND, "no adapters here");
}

imp_status imp_engine_adapters(imp_engine *e, imp_adapter_info **out, size_t *n)
{
    (void)e;
    *out = NULL;
    *n = 0;
    return IMP_OK;
}

imp_status imp_model_adapter(imp_model *m, const char *name, uint32_t id, imp_adapter_use *out)
{
    (void)m, (void)name, (void)id, (void)out;
    return IMP_NOT_FOUND;
}

void imp_sampling_default(imp_sampling *s)
{
    *s = (imp_sampling){.temperature = 0.8f,
                        .top_k = 40,
                        .top_p = 0.95f,
                        .min_p = 0.05f,
                        .repeat_penalty = 1,
                        .repeat_last_n = 64,
                        .seed = UINT64_MAX};
}

static imp_status fake_refuse(int status, imp_error *err)
{
    if (err) {
        err->status = status;
        strcpy(err->text, status == IMP_TOO_LARGE ? "the prompt has 5000 tokens; the context holds 4096"
                                                  : "open /secret/path failed");
        strcpy(err->field, "");
    }
    return status;
}

imp_status imp_submit(imp_model *m, const imp_request *rq, uint64_t *out_id, imp_error *err)
{
    imp_engine *e = m->info.can_generate ? (imp_engine *)((char *)m - offsetof(imp_engine, model))
                                         : (imp_engine *)((char *)(m - 1) - offsetof(imp_engine, model));
    size_t n = 0;
    for (size_t i = 0; i < rq->n_input; i++) n += rq->n_ids[i];
    pthread_mutex_lock(&g_fake.mu);
    g_fake.last = *rq;
    g_fake.last_bias = rq->sampling.n_bias ? rq->sampling.bias[0].bias : 0;
    g_fake.last_n_ids = n;
    strncpy(g_fake.last_stop, rq->n_stop ? rq->stop[rq->n_stop - 1] : "", sizeof g_fake.last_stop - 1);
    pthread_mutex_unlock(&g_fake.mu);
    if (g_fake.submit_status) return fake_refuse(g_fake.submit_status, err);
    for (size_t i = 0; i < rq->n_input; i++)
        if (rq->n_ids[i] > m->info.n_ctx) return fake_refuse(IMP_TOO_LARGE, err);
    fake_request *r = calloc(1, sizeof *r);
    r->rq = *rq;
    r->rq.ids = memcpy(malloc(n * 4 + 1), rq->ids, n * 4);
    r->rq.n_ids = memcpy(malloc(rq->n_input * sizeof(size_t)), rq->n_ids, rq->n_input * sizeof(size_t));
    r->m = m;
    r->state = fake_hash(rq->ids, n);
    r->limit = rq->max_tok ? rq->max_tok : 8;
    pthread_mutex_lock(&e->mu);
    *out_id = r->id = ++e->next_id;
    r->next = e->list;
    e->list = r;
    e->stats.n_request++;
    atomic_fetch_add(&g_fake.n_running, 1);
    pthread_cond_broadcast(&e->cond);
    pthread_mutex_unlock(&e->mu);
    return IMP_OK;
}

void imp_cancel(imp_engine *e, uint64_t id)
{
    atomic_fetch_add(&g_fake.n_cancel_call, 1);
    pthread_mutex_lock(&e->mu);
    for (fake_request *r = e->list; r; r = r->next)
        if (r->id == id) r->cancel = true;
    pthread_mutex_unlock(&e->mu);
}

bool imp_engine_save_caches(imp_engine *e)
{
    (void)e;
    return false;
}

void imp_engine_get_stats(imp_engine *e, imp_stats *out)
{
    pthread_mutex_lock(&e->mu);
    *out = e->stats;
    pthread_mutex_unlock(&e->mu);
}

#endif
