/* engine/model.c - loading a model into an engine: open, fit, compile, register; and the way back.
 *
 * Always:  a registered model is complete; a failed load leaves nothing behind. */
#include <stdio.h>
#include <time.h>

#include "engine/engine_int.h"

static uint32_t queue_of(const imp_engine *e)
{
    return e->config.n_queue != 0 ? e->config.n_queue : 1024;
}

/* Vocabulary, graphs and the scheduler's own memory: part of what a model takes. */
static uint64_t more_memory(const imp_net *net, const imp_limits *generate, const imp_limits *embed,
                            void *user)
{
    imp_sched_config c = {
        .net = net, .generate_limits = *generate, .embed_limits = *embed, .n_queue = queue_of(user)};
    return imp_net_bytes(net) + imp_sched_bytes(&c);
}

imp_fit_want imp_engine_want(imp_engine *e)
{
    uint64_t total, available;
    imp_sys_memory(&total, &available);
    return (imp_fit_want){.n_ctx = e->config.n_ctx,
                          .n_parallel = e->config.n_parallel != 0 ? e->config.n_parallel : 8,
                          .n_batch = e->config.n_batch != 0 ? e->config.n_batch : 512,
                          .kv_dtype = e->kv_dtype,
                          .mem_bytes = e->config.mem_bytes != 0 ? e->config.mem_bytes : available,
                          .process_bytes = e->process_bytes,
                          .more = more_memory,
                          .user = e};
}

imp_fit_want imp_model_want(const imp_model *m)
{
    imp_fit_want want = imp_engine_want(m->engine);
    want.lora_rank = m->lora_rank;
    for (size_t i = 0; i < IMP_MAX_ADAPTER; i++)
        if (m->adapter[i] != NULL) want.lora_bytes += m->adapter[i]->bytes;
    return want;
}

static void fill_info(imp_model *m)
{
    const imp_net_config *c = &m->net->cfg;
    m->info = (imp_model_info){.id = m->id,
                               .path = m->path,
                               .arch = c->arch,
                               .type = c->type,
                               .device = m->inst[m->home].unit->device->name,
                               .template_id = m->template_id[0] != 0 ? m->template_id : NULL,
                               .n_param = c->n_param,
                               .file_bytes = c->file_bytes,
                               .n_vocab = c->n_vocab,
                               .n_layer = c->n_layer,
                               .n_embd = c->n_embd,
                               .n_head = c->n_head,
                               .n_kv_head = c->n_kv_head,
                               .n_ctx_train = c->n_ctx_train,
                               .n_ctx = m->inst[m->home].fit.n_ctx,
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

/* Whether another unit has the model and can generate with it. */
static bool is_elsewhere(const imp_model *m, const imp_unit *u)
{
    for (uint32_t i = 0; i < MAX_UNIT; i++)
        if (m->inst[i].sched != NULL && i != u->index && !m->inst[i].unit->device->ops->prefill_only)
            return true;
    return false;
}

static imp_status compile(imp_instance *x, const imp_fit_want *want, imp_error *err)
{
    imp_unit *u = x->unit;
    const imp_net *net = x->model->net;
    const imp_device_ops *ops = u->device->ops;
    IMP_TRY(imp_fit_compute(u->device, net, want, &x->fit, err));
    IMP_TRY(check_device(u->device, net->generate, err));
    IMP_TRY(check_device(u->device, net->embed, err));
    if (net->generate != NULL && ops->prefill_only && !is_elsewhere(x->model, u))
        return imp_fail(
            err, IMP_UNSUPPORTED,
            "%s only reads prompts, another device has to generate: name it too, as in --device %s,cpu",
            u->device->name, ops->kind);
    imp_status s = IMP_OK;
    imp_mutex_lock(u->device_lock);
    if (net->generate != NULL)
        s = ops->compile(u->device, net->generate, &x->fit.generate, &x->generate, err);
    if (s == IMP_OK && net->embed != NULL)
        s = ops->compile(u->device, net->embed, &x->fit.embed, &x->embed, err);
    imp_mutex_unlock(u->device_lock);
    IMP_TRY(s);
    imp_sched_config c = {.net = net,
                          .generate = x->generate,
                          .embed = x->embed,
                          .generate_limits = x->fit.generate,
                          .embed_limits = x->fit.embed,
                          .n_ctx = x->fit.n_ctx,
                          .n_batch = want->n_batch,
                          .n_queue = queue_of(u->engine),
                          .want_load = u->engine->n_unit > 1,
                          .pace = u->engine->placer.pace,
                          .kv_store = u->engine->kv_store,
                          .model_name = x->model->id,
                          .speculate = u->engine->config.speculate};
    imp_route_hooks(x, &c.hooks);
    return imp_sched_new(&c, &x->sched, err);
}

static imp_status open_instance(imp_model *m, imp_unit *u, imp_error *err)
{
    if (m->inst[u->index].sched != NULL) return IMP_OK;
    imp_fit_want want = imp_model_want(m);
    want.mem_bytes = imp_room(m, u);
    if (m->mem_cap != 0) want.mem_bytes = IMP_MIN(want.mem_bytes, m->mem_cap);
    uint32_t longest = u->device->ops->max_ctx != NULL ? u->device->ops->max_ctx(u->device) : 0;
    if (longest != 0 && IMP_MIN(want.n_ctx - 1, m->net->cfg.n_ctx_train - 1) >= longest) want.n_ctx = longest;
    imp_instance x = {.unit = u, .model = m};
    imp_error why = {0};
    imp_instance *at = &m->inst[u->index];
    imp_status s = compile(&x, &want, &why);
    imp_mutex_lock(u->engine->lock);
    imp_mutex_lock(u->engine->place_lock);
    if (s == IMP_OK && (m->leaving || u->engine->quit)) /* unloaded while it was compiled here */
        s = imp_fail(&why, IMP_NOT_READY, "the model is being unloaded");
    if (s == IMP_OK) {
        *at = x;
    } else {
        *at = (imp_instance){.unit = u, .model = m};
        (void)snprintf(at->why_not, sizeof at->why_not, "%.*s", (int)sizeof at->why_not - 1, why.text);
    }
    imp_mutex_unlock(u->engine->place_lock);
    imp_mutex_unlock(u->engine->lock);
    if (s == IMP_OK) return IMP_OK;
    imp_instance_free(&x);
    if (err != NULL) *err = why;
    return s;
}

imp_status imp_instance_open(imp_model *m, imp_unit *u, imp_error *err)
{
    imp_mutex_lock(u->engine->open_lock);
    imp_status s = open_instance(m, u, err);
    imp_mutex_unlock(u->engine->open_lock);
    return s;
}

/* A unit that runs adapters, when none of those in `worth` does. */
static uint32_t adapter_units(const imp_engine *e, uint32_t worth)
{
    for (uint32_t i = 0; i < e->n_unit; i++)
        if (e->unit[i]->device->ops->adapters && (worth >> i & 1)) return 0;
    for (uint32_t i = 0; i < e->n_unit; i++)
        if (e->unit[i]->device->ops->adapters && !e->unit[i]->only_forced) return 1u << i;
    return 0;
}

/* The unit that serves the model best by prediction gets it first, others that would win something too. */
static imp_status place_model(imp_model *m, imp_error *err)
{
    imp_engine *e = m->engine;
    for (uint32_t i = 0; i < e->n_unit; i++) {
        m->inst[i].unit = e->unit[i];
        m->inst[i].model = m;
    }
    m->mean_gen = 128;
    uint32_t worth = e->n_unit > 1 ? imp_route_worth(m) : 1, together = 0;
    if (m->lora_rank > 0) worth |= adapter_units(e, worth);
    for (uint32_t i = 0; i < e->n_unit; i++) together |= (uint32_t)e->unit[i]->only_large << i;
    imp_status s = IMP_INTERNAL;
    bool there = false;
    /* Second pass: whatever can take it; third: also those for which the user has to wait. */
    for (uint32_t pass = 0; pass < 3 && !there; pass++)
        for (uint32_t i = 0; i < e->n_unit; i++) {
            bool slow = e->unit[i]->device->ops->slow_compile;
            if (slow ? pass < 2 : pass == 2 || ((worth >> i & 1) != 0) == (pass == 1)) continue;
            imp_status one = imp_instance_open(m, e->unit[i], there ? NULL : err);
            if (one == IMP_OK && !there) m->home = i;
            there = there || one == IMP_OK;
            if (!there) s = one;
            if (one != IMP_OK && e->unit[i]->device->ops->mem_free != NULL) worth |= together;
            if (one == IMP_OK && e->unit[i]->only_large) worth &= ~together; /* one of those is enough */
        }
    const imp_instance *home = &m->inst[m->home];
    const imp_device_ops *ops = e->unit[m->home]->device->ops;
    imp_exec *only = home->embed != NULL ? home->embed : home->generate;
    if (there && e->n_unit == 1 && ops->state != NULL &&
        only != NULL) { /* nobody else would answer meanwhile */
        char text[160];
        s = ops->state(only, true, text, sizeof text);
        if (s != IMP_OK) return imp_fail(err, s, "%s: %s", e->unit[m->home]->device->name, text);
    }
    for (uint32_t i = 0; i < e->n_unit; i++)
        m->join[i] =
            there && (worth >> i & 1) && m->inst[i].sched == NULL && e->unit[i]->device->ops->slow_compile;
    return there ? IMP_OK : s;
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
    if (s == IMP_OK && e->quit) s = imp_fail(err, IMP_CANCELLED, "the server is stopping");
    if (s == IMP_OK && e->n_model == MAX_MODEL)
        s = imp_fail(err, IMP_BUSY, "%d models are loaded, no more are possible", MAX_MODEL);
    if (s == IMP_OK) e->model[e->n_model++] = m;
    imp_mutex_unlock(e->lock);
    return s;
}

static imp_status open_model(imp_model *m, imp_error *err)
{
    imp_engine *e = m->engine;
    if (m->path == NULL || m->id == NULL || imp_constraints_new(&m->constraints) != IMP_OK)
        return imp_fail(err, IMP_NOMEM, "not enough memory to load a model");
    IMP_TRY(imp_net_open(m->path, e->config.n_ctx, &m->net, err));
    IMP_TRY(imp_adapters_load(m, err));
    IMP_TRY(imp_model_init_chat(m, err));
    if (m->net->generate != NULL) imp_cost_build(m->net->generate, e->kv_dtype, &m->cost_generate);
    if (m->net->embed != NULL) imp_cost_build(m->net->embed, e->kv_dtype, &m->cost_embed);
    if (m->known != NULL) IMP_TRY(imp_room_make(m, err));
    IMP_TRY(place_model(m, err));
    fill_info(m);
    return register_model(m, err);
}

imp_status imp_model_load(imp_engine *e, const char *path, const char *id, struct imp_known *known,
                          imp_model **out, imp_error *err)
{
    *out = NULL;
    imp_model *m = imp_sys_calloc(1, sizeof *m);
    if (m == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to load a model");
    m->engine = e;
    m->known = known;
    m->pinned = true;
    m->keep_s = -1;
    if (known != NULL) imp_catalog_settings(known, &m->pinned, &m->keep_s);
    m->n_ref = known != NULL; /* the catalog's, until those who wait have theirs */
    m->path = imp_sys_strdup(path);
    m->id = id != NULL ? imp_sys_strdup(id) : imp_model_default_id(path);
    imp_status s = open_model(m, err);
    if (s != IMP_OK) {
        imp_model_free(m);
        return s;
    }
    for (uint32_t i = 0; i < e->n_unit; i++)
        if (m->join[i] && imp_instance_open_later(m, e->unit[i]) != IMP_OK)
            imp_log(IMP_LOG_WARN, "%s goes on without %s", m->id, e->unit[i]->device->name);
    *out = m;
    return IMP_OK;
}

imp_status imp_engine_load(imp_engine *e, const char *path, const char *id, imp_model **out, imp_error *err)
{
    return imp_model_load(e, path, id, NULL, out, err);
}

void imp_instance_free(imp_instance *x)
{
    if (x->sched != NULL) imp_sched_free(x->sched);
    if (x->generate != NULL) x->generate->dev->ops->exec_free(x->generate);
    if (x->embed != NULL) x->embed->dev->ops->exec_free(x->embed);
    x->sched = NULL;
    x->generate = x->embed = NULL;
}

void imp_model_free(imp_model *m)
{
    for (uint32_t i = 0; i < MAX_UNIT; i++) imp_instance_free(&m->inst[i]);
    imp_jinja_free(m->template);
    imp_toolfmt_free(m->toolfmt);
    imp_constraints_free(m->constraints);
    imp_adapters_drop(m);
    imp_net_close(m->net);
    imp_sys_free(m->id);
    imp_sys_free(m->path);
    imp_sys_free(m);
}

void imp_model_unload_locked(imp_model *m)
{
    imp_engine *e = m->engine;
    m->leaving = true;
    for (uint32_t i = 0; i < e->n_unit; i++) imp_unit_wake(e->unit[i]);
    for (bool there = true; there;) { /* only the pointer is compared: the model may be gone already */
        there = false;
        for (size_t i = 0; i < e->n_model; i++) there = there || e->model[i] == m;
        if (there) imp_cond_wait(e->left, e->lock);
    }
}

void imp_model_unload(imp_model *m)
{
    imp_engine *e = m->engine;
    imp_mutex_lock(e->lock);
    if (m->known != NULL) imp_catalog_forget(m);
    imp_model_unload_locked(m);
    imp_mutex_unlock(e->lock);
}

const imp_model_info *imp_model_get_info(const imp_model *m)
{
    return &m->info;
}
void imp_model_get_memory(const imp_model *m, imp_memory *out)
{
    imp_mutex_lock(m->engine->lock); /* adapters come and go */
    *out = m->inst[m->home].fit.memory;
    imp_mutex_unlock(m->engine->lock);
}

imp_status imp_model_plan(imp_model *m, uint32_t n_ctx, imp_memory *out, imp_error *err)
{
    const imp_instance *x = &m->inst[m->home];
    imp_device *d = x->unit->device;
    imp_fit_want want = imp_model_want(m);
    bool own = d->ops->mem_free != NULL;
    want.mem_bytes = m->engine->config.mem_bytes != 0
                         ? imp_room(m, x->unit)
                         : (own ? d->ops->mem_free(d) : want.mem_bytes) + x->fit.memory.total;
    /* A device may hold the weights once for all its executables and then plans none for a further one: they count here. */
    imp_fit fit = {0};
    imp_fit_want again = want;
    again.n_ctx = x->fit.n_ctx;
    again.mem_bytes = UINT64_MAX;
    IMP_TRY(imp_fit_compute(d, m->net, &again, &fit, err));
    uint64_t there = x->fit.memory.weights, planned = fit.memory.weights;
    uint64_t held = there > planned ? IMP_MIN(there - planned, want.mem_bytes) : 0;
    want.n_ctx = n_ctx;
    want.mem_bytes -= held;
    imp_status s = imp_fit_compute(d, m->net, &want, &fit, err);
    *out = fit.memory;
    out->weights += held;
    out->total += held;
    out->available += held;
    return s;
}

static imp_status fit_on(const imp_model *m, const imp_unit *u, imp_memory *out, imp_error *err)
{
    imp_engine *e = m->engine;
    imp_fit_want want = imp_model_want(m);
    imp_device *d = u->device;
    if (d->ops->mem_free != NULL && e->config.mem_bytes == 0) want.mem_bytes = d->ops->mem_free(d);
    imp_fit fit = {0};
    imp_status s = imp_fit_compute(d, m->net, &want, &fit, err);
    *out = fit.memory;
    return s;
}

imp_status imp_engine_plan(imp_engine *e, const char *path, imp_memory *out, imp_error *err)
{
    *out = (imp_memory){0};
    imp_net *net = NULL;
    IMP_TRY(imp_net_open(path, e->config.n_ctx, &net, err));
    imp_model with = {.engine = e, .net = net};
    imp_status s = imp_adapters_load(&with, err);
    bool good = s == IMP_OK;
    if (good) s = IMP_NO_FIT;
    for (uint32_t i = 0; i < e->n_unit && good && s != IMP_OK;
         i++) { /* in the order in which place_model tries them */
        imp_memory m;
        imp_error later;
        if (i > 0 && e->unit[i]->device->ops->slow_compile) continue;
        imp_status one = fit_on(&with, e->unit[i], &m, i == 0 ? err : &later);
        if (i == 0 || one == IMP_OK) s = one, *out = m;
    }
    imp_adapters_drop(&with);
    imp_net_close(net);
    return s;
}

imp_status imp_engine_plan_devices(imp_engine *e, const char *path, imp_device_plan *out, size_t cap,
                                   size_t *n, imp_error *err)
{
    *n = e->n_unit;
    imp_net *net = NULL;
    IMP_TRY(imp_net_open(path, e->config.n_ctx, &net, err));
    imp_model with = {.engine = e, .net = net};
    imp_status s = imp_adapters_load(&with, err);
    for (uint32_t i = 0; i < IMP_MIN((size_t)e->n_unit, cap) && s == IMP_OK; i++) {
        const imp_unit *u = e->unit[i];
        imp_error why = {0};
        out[i] =
            (imp_device_plan){.own_memory = u->device->ops->mem_free != NULL, .only_large = u->only_large};
        (void)snprintf(out[i].device, sizeof out[i].device, "%.63s", u->device->name);
        if (fit_on(&with, u, &out[i].memory, &why) != IMP_OK)
            (void)snprintf(out[i].why, sizeof out[i].why, "%.199s", why.text);
    }
    imp_adapters_drop(&with);
    imp_net_close(net);
    return s;
}
