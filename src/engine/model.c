/* engine/model.c - loading a model into an engine: open, fit, compile, register; and the way back.
 *
 * Always:  a registered model is complete; a failed load leaves nothing behind. */
#include <stdio.h>
#include <time.h>

#include "engine/engine_int.h"

imp_fit_want imp_engine_want(const imp_engine *e)
{
    uint64_t total, available;
    imp_sys_memory(&total, &available);
    return (imp_fit_want){.n_ctx = e->config.n_ctx,
                          .n_parallel = e->config.n_parallel != 0 ? e->config.n_parallel : 8,
                          .n_batch = e->config.n_batch != 0 ? e->config.n_batch : 512,
                          .kv_dtype = e->kv_dtype,
                          .mem_bytes = e->config.mem_bytes != 0 ? e->config.mem_bytes : available};
}

/* The file's or folder's own name without directories and the suffix of a model file. */
static char *default_id(const char *path)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    size_t begin = n;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    static const char *const suffix[] = {".gguf", ".safetensors"};
    for (size_t i = 0; i < IMP_COUNT(suffix); i++) {
        size_t k = strlen(suffix[i]);
        if (n - begin > k && memcmp(path + n - k, suffix[i], k) == 0) n -= k;
    }
    char *id = imp_sys_malloc(n - begin + 1);
    if (id == NULL) return NULL;
    memcpy(id, path + begin, n - begin);
    id[n - begin] = '\0';
    return id;
}

static void fill_info(imp_model *m)
{
    const imp_net_config *c = &m->net->cfg;
    m->info = (imp_model_info){.id = m->id,
                               .path = m->path,
                               .arch = c->arch,
                               .type = c->type,
                               .device = m->engine->device->name,
                               .template_id = m->template_id[0] != 0 ? m->template_id : NULL,
                               .n_param = c->n_param,
                               .file_bytes = c->file_bytes,
                               .n_vocab = c->n_vocab,
                               .n_layer = c->n_layer,
                               .n_embd = c->n_embd,
                               .n_head = c->n_head,
                               .n_kv_head = c->n_kv_head,
                               .n_ctx_train = c->n_ctx_train,
                               .n_ctx = m->fit.n_ctx,
                               .can_generate = m->net->generate != NULL,
                               .can_embed = m->net->embed != NULL,
                               .embed_dim = m->net->embed != NULL ? c->embed_dim : 0,
                               .matryoshka = c->matryoshka,
                               .created = (int64_t)time(NULL)};
}

static imp_status check_device(imp_device *d, const imp_graph *g, imp_error *err)
{
    for (imp_val v = 1; g != NULL && v <= imp_graph_n(g); v++) {
        const char *why = d->ops->refuses(d, g, v);
        if (why != NULL)
            return imp_fail(err, IMP_UNSUPPORTED, "%s cannot run %s (%s): %s", d->name,
                            imp_op_name(imp_graph_node(g, v)->op), imp_graph_node(g, v)->name, why);
    }
    return IMP_OK;
}

static imp_status compile(imp_model *m, imp_error *err)
{
    imp_engine *e = m->engine;
    const imp_device_ops *ops = e->device->ops;
    imp_fit_want want = imp_engine_want(e);
    IMP_TRY(imp_fit_compute(e->device, m->net, &want, &m->fit, err));
    IMP_TRY(check_device(e->device, m->net->generate, err));
    IMP_TRY(check_device(e->device, m->net->embed, err));
    imp_status s = IMP_OK;
    imp_mutex_lock(e->device_lock);
    if (m->net->generate != NULL)
        s = ops->compile(e->device, m->net->generate, &m->fit.generate, &m->generate, err);
    if (s == IMP_OK && m->net->embed != NULL)
        s = ops->compile(e->device, m->net->embed, &m->fit.embed, &m->embed, err);
    imp_mutex_unlock(e->device_lock);
    IMP_TRY(s);
    imp_sched_config c = {.net = m->net,
                          .generate = m->generate,
                          .embed = m->embed,
                          .generate_limits = m->fit.generate,
                          .embed_limits = m->fit.embed,
                          .n_ctx = m->fit.n_ctx,
                          .n_batch = want.n_batch,
                          .n_queue = e->config.n_queue != 0 ? e->config.n_queue : 1024};
    return imp_sched_new(&c, &m->sched, err);
}

static imp_status register_model(imp_model *m, imp_error *err)
{
    imp_engine *e = m->engine;
    imp_status s = IMP_OK;
    imp_mutex_lock(e->lock);
    for (size_t i = 0; i < e->n_model && s == IMP_OK; i++)
        if (strcmp(e->model[i]->id, m->id) == 0)
            s = imp_fail(err, IMP_INVALID,
                         "a model named \"%.100s\" is loaded already; give this one another name (NAME=PATH)",
                         m->id);
    if (s == IMP_OK && e->n_model == MAX_MODEL)
        s = imp_fail(err, IMP_BUSY, "%d models are loaded, no more are possible", MAX_MODEL);
    if (s == IMP_OK) e->model[e->n_model++] = m;
    imp_mutex_unlock(e->lock);
    return s;
}

imp_status imp_engine_load(imp_engine *e, const char *path, const char *id, imp_model **out, imp_error *err)
{
    *out = NULL;
    imp_model *m = imp_sys_calloc(1, sizeof *m);
    if (m == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to load a model");
    m->engine = e;
    m->path = imp_sys_strdup(path);
    m->id = id != NULL ? imp_sys_strdup(id) : default_id(path);
    imp_status s = m->path == NULL || m->id == NULL
                       ? imp_fail(err, IMP_NOMEM, "not enough memory to load a model")
                       : IMP_OK;
    if (s == IMP_OK) s = imp_net_open(path, e->config.n_ctx, &m->net, err);
    if (s == IMP_OK) s = imp_model_init_chat(m, err);
    if (s == IMP_OK) s = compile(m, err);
    if (s == IMP_OK) {
        fill_info(m);
        s = register_model(m, err);
    }
    if (s != IMP_OK) {
        imp_model_free(m);
        return s;
    }
    *out = m;
    return IMP_OK;
}

void imp_model_free(imp_model *m)
{
    if (m->sched != NULL) {
        imp_sched_free(m->sched);
        m->sched = NULL;
    }
    if (m->generate != NULL) m->generate->dev->ops->exec_free(m->generate);
    if (m->embed != NULL) m->embed->dev->ops->exec_free(m->embed);
    imp_jinja_free(m->template);
    imp_net_close(m->net);
    imp_sys_free(m->id);
    imp_sys_free(m->path);
    imp_sys_free(m);
}

void imp_model_unload(imp_model *m)
{
    imp_engine *e = m->engine;
    imp_mutex_lock(e->lock);
    m->leaving = true;
    imp_cond_broadcast(e->work);
    for (bool there = true; there;) {
        there = false;
        for (size_t i = 0; i < e->n_model; i++) there = there || e->model[i] == m;
        if (there) imp_cond_wait(e->left, e->lock);
    }
    imp_mutex_unlock(e->lock);
}

const imp_model_info *imp_model_get_info(const imp_model *m)
{
    return &m->info;
}
void imp_model_get_memory(const imp_model *m, imp_memory *out)
{
    *out = m->fit.memory;
}

imp_status imp_engine_plan(imp_engine *e, const char *path, imp_memory *out, imp_error *err)
{
    *out = (imp_memory){0};
    imp_net *net = NULL;
    IMP_TRY(imp_net_open(path, e->config.n_ctx, &net, err));
    imp_fit_want want = imp_engine_want(e);
    imp_fit fit = {0};
    imp_status s = imp_fit_compute(e->device, net, &want, &fit, err);
    *out = fit.memory;
    imp_net_close(net);
    return s;
}
