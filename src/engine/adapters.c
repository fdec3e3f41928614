/* engine/adapters.c - adapters that requests may name: known by a name, loaded with their model or into it.
 *
 * Place:   impetus.h's "adapters"; model.c loads those that are known before it places a model, route.c adds those that
 *          are always used.
 * Idea:    a known adapter is a line of a list, its number the place there; its name is another name of its model (catalog.c),
 *          so that a request for the one loads the other. A model holds a reference to each of its adapters, a job to those
 *          it uses: one that is taken away goes with the last of them.
 * Always:  a name leads to a model only while the model has the adapter, or loads it first; a load that fails fails whole.
 * Threads: any; files are read without the lock. */
#include <math.h>
#include <stdio.h>
#include <time.h>

#include "engine/engine_int.h"
#include "model/adapter.h"

enum {
    RANK_TOGETHER = 256
}; /* columns for several adapters of one request; more when one alone needs more */

typedef struct imp_known_adapter {
    char *name, *path, *base; /* owned; base NULL: every model */
    float scale;
    bool always;
    bool coming; /* being loaded into a model that runs */
    int64_t created;
} known_adapter;

static void known_free(known_adapter *k)
{
    if (k == NULL) return;
    imp_sys_free(k->name);
    imp_sys_free(k->path);
    imp_sys_free(k->base);
    imp_sys_free(k);
}

static known_adapter *known_new(const imp_adapter_source *s)
{
    known_adapter *k = imp_sys_calloc(1, sizeof *k);
    if (k == NULL) return NULL;
    k->name = imp_sys_strdup(s->name);
    k->path = imp_sys_strdup(s->path);
    k->base = s->base != NULL ? imp_sys_strdup(s->base) : NULL;
    k->scale = s->scale;
    k->always = s->always;
    k->created = (int64_t)time(NULL);
    if (k->name != NULL && k->path != NULL && (k->base != NULL || s->base == NULL)) return k;
    known_free(k);
    return NULL;
}

static bool belongs(const known_adapter *k, const imp_model *m)
{
    return k->base == NULL || (m->id != NULL && strcmp(k->base, m->id) == 0);
}

/* Its file, with its name in front of what is wrong. */
static imp_status open_adapter(const imp_net *net, const char *name, const char *path, imp_adapter **out,
                               imp_error *err)
{
    imp_error e = {0};
    imp_status s = imp_adapter_open(net, path, out, &e);
    if (s == IMP_OK) return s;
    return imp_fail_field(err, s, "lora", "adapter %.60s: %.380s", name, e.text);
}

/* ---- with a model ------------------------------------------------------------------------------------- */

/* Adapter i for m, when it is one of its. *path, *name: room. */
static bool is_wanted(imp_model *m, size_t i, char *name, size_t n_name, char *path, size_t n_path)
{
    imp_engine *e = m->engine;
    imp_mutex_lock(e->lock);
    const known_adapter *k = e->adapters[i];
    bool yes = k != NULL && !k->coming && belongs(k, m);
    if (yes) {
        (void)snprintf(name, n_name, "%s", k->name);
        (void)snprintf(path, n_path, "%s", k->path);
    }
    imp_mutex_unlock(e->lock);
    return yes;
}

imp_status imp_adapters_load(imp_model *m, imp_error *err)
{
    imp_engine *e = m->engine;
    uint64_t sum = 0;
    uint32_t most = e->config.max_lora_rank;
    bool runs = false;
    for (size_t i = 0; i < IMP_MAX_ADAPTER; i++) {
        char name[128], path[4096];
        if (!is_wanted(m, i, name, sizeof name, path, sizeof path)) continue;
        IMP_TRY(open_adapter(m->net, name, path, &m->adapter[i], err));
        sum += m->adapter[i]->rank;
        most = IMP_MAX(most, m->adapter[i]->rank);
    }
    m->lora_rank = IMP_MAX(most, (uint32_t)IMP_MIN(sum, (uint64_t)RANK_TOGETHER));
    for (uint32_t i = 0; i < e->n_unit; i++) runs = runs || e->unit[i]->device->ops->adapters;
    if (sum > 0 && !runs)
        return imp_fail_field(
            err, IMP_UNSUPPORTED, "lora",
            "%s: adapters are not run there; add a device that runs them, as in --device %s,cpu",
            e->unit[0]->device->name, e->unit[0]->device->ops->kind);
    if (!runs) m->lora_rank = 0;
    return IMP_OK;
}

void imp_adapters_drop(imp_model *m)
{
    for (size_t i = 0; i < IMP_MAX_ADAPTER; i++) {
        imp_adapter_unref(m->adapter[i]);
        m->adapter[i] = NULL;
    }
}

void imp_adapters_free(imp_engine *e)
{
    for (size_t i = 0; i < IMP_MAX_ADAPTER; i++) {
        known_free(e->adapters[i]);
        e->adapters[i] = NULL;
    }
}

size_t imp_adapters_always(imp_model *m, imp_adapter_use use[IMP_MAX_ADAPTER])
{
    imp_engine *e = m->engine;
    size_t n = 0;
    if (m->lora_rank == 0) return 0;
    imp_mutex_lock(e->lock);
    for (size_t i = 0; i < IMP_MAX_ADAPTER; i++) {
        const known_adapter *k = e->adapters[i];
        if (k == NULL || !k->always || m->adapter[i] == NULL) continue;
        use[n++] = (imp_adapter_use){imp_adapter_ref(m->adapter[i]), k->scale};
    }
    imp_mutex_unlock(e->lock);
    return n;
}

/* ---- adding ---------------------------------------------------------------------------------------------- */

static imp_status check_source(const imp_adapter_source *s, imp_error *err)
{
    if (s->name == NULL || s->name[0] == '\0' || strlen(s->name) > 127)
        return imp_fail_field(err, IMP_INVALID, "lora_name", "an adapter's name has 1 to 127 bytes");
    if (s->path == NULL || s->path[0] == '\0' || strlen(s->path) > 4095)
        return imp_fail_field(err, IMP_INVALID, "lora_path", "an adapter's path has 1 to 4095 bytes");
    if (!isfinite(s->scale))
        return imp_fail_field(err, IMP_INVALID, "scale", "an adapter's scale is no number");
    return IMP_OK;
}

/* engine.lock held. The loaded model that the adapter belongs to; NULL. */
static imp_model *loaded_base(imp_engine *e, const known_adapter *k)
{
    for (size_t i = 0; i < e->n_model; i++)
        if (k->base != NULL && strcmp(e->model[i]->id, k->base) == 0 && !e->model[i]->leaving)
            return e->model[i];
    return NULL;
}

/* A line for k, which is taken; *m: the loaded model that wants it now, with a reference. */
static imp_status enter(imp_engine *e, known_adapter *k, size_t *at, imp_model **m, imp_error *err)
{
    imp_status s = IMP_OK;
    imp_mutex_lock(e->lock);
    for (*at = 0; *at < IMP_MAX_ADAPTER && e->adapters[*at] != NULL; (*at)++) {
    }
    for (size_t i = 0; i < IMP_MAX_ADAPTER && s == IMP_OK; i++)
        if (e->adapters[i] != NULL && strcmp(e->adapters[i]->name, k->name) == 0)
            s = imp_fail_field(err, IMP_INVALID, "lora_name", "an adapter named \"%.100s\" is known already",
                               k->name);
    if (s == IMP_OK && *at == IMP_MAX_ADAPTER)
        s = imp_fail(err, IMP_BUSY, "%d adapters are known, no more are possible", IMP_MAX_ADAPTER);
    *m = s == IMP_OK ? loaded_base(e, k) : NULL;
    k->coming = *m != NULL;
    if (*m != NULL) (*m)->n_ref++;
    if (s == IMP_OK && *m == NULL && k->base != NULL && !imp_catalog_name(e, k->name, k->base))
        s = imp_fail_field(err, IMP_INVALID, "lora_name", "\"%.100s\" is a model's name already", k->name);
    if (s == IMP_OK)
        e->adapters[*at] = k;
    else
        known_free(k);
    imp_mutex_unlock(e->lock);
    return s;
}

/* Bytes that m could still take. */
static uint64_t room_left(imp_model *m)
{
    imp_instance *x = &m->inst[m->home];
    uint64_t room = imp_room(m, x->unit), total, available;
    imp_sys_memory(&total, &available);
    if (m->engine->config.mem_bytes == 0) return available; /* what it has is not counted there */
    imp_memory mem;
    imp_model_get_memory(m, &mem);
    return room > mem.total ? room - mem.total : 0;
}

static imp_status load_into(imp_model *m, known_adapter *k, imp_adapter **out, imp_error *err)
{
    *out = NULL;
    if (m->lora_rank == 0)
        return imp_fail_field(err, IMP_UNSUPPORTED, "lora_name",
                              "the model was loaded without room for adapters: start with --max-lora-rank");
    imp_status s = open_adapter(m->net, k->name, k->path, out, err);
    if (s == IMP_OK && (*out)->rank > m->lora_rank)
        s = imp_fail_field(
            err, IMP_TOO_LARGE, "lora_path",
            "adapter %.60s has rank %u, the model was loaded with room for %u (--max-lora-rank)", k->name,
            (*out)->rank, m->lora_rank);
    if (s == IMP_OK && (*out)->bytes > room_left(m))
        s = imp_fail_field(err, IMP_NO_FIT, "lora_path", "adapter %.60s needs %.2f MB, %.2f MB are available",
                           k->name, (double)(*out)->bytes / 1e6, (double)room_left(m) / 1e6);
    if (s == IMP_OK) return s;
    imp_adapter_unref(*out);
    *out = NULL;
    return s;
}

static void count_bytes(imp_model *m, int64_t n)
{
    imp_memory *mem = &m->inst[m->home].fit.memory;
    mem->weights = (uint64_t)((int64_t)mem->weights + n);
    mem->total = (uint64_t)((int64_t)mem->total + n);
}

imp_status imp_engine_add_adapter(imp_engine *e, const imp_adapter_source *src, imp_error *err)
{
    imp_model *m;
    imp_adapter *a = NULL;
    size_t at;
    IMP_TRY(check_source(src, err));
    known_adapter *k = known_new(src);
    if (k == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for another adapter");
    IMP_TRY(enter(e, k, &at, &m, err));
    if (m == NULL) return IMP_OK;
    imp_status s = load_into(m, k, &a, err);
    imp_mutex_lock(e->lock);
    k->coming = false;
    if (s == IMP_OK && !imp_catalog_name(e, k->name, k->base))
        s = imp_fail_field(err, IMP_INVALID, "lora_name", "\"%.100s\" is a model's name already", k->name);
    if (s == IMP_OK) {
        m->adapter[at] = a;
        a = NULL;
        count_bytes(m, (int64_t)m->adapter[at]->bytes);
    } else {
        e->adapters[at] = NULL;
        known_free(k);
    }
    imp_mutex_unlock(e->lock);
    imp_adapter_unref(a);
    imp_model_release(m);
    return s;
}

imp_status imp_engine_remove_adapter(imp_engine *e, const char *name, imp_error *err)
{
    imp_adapter *gone[MAX_MODEL];
    size_t n_gone = 0, at = 0;
    imp_mutex_lock(e->lock);
    while (at < IMP_MAX_ADAPTER &&
           (e->adapters[at] == NULL || e->adapters[at]->coming || strcmp(e->adapters[at]->name, name) != 0))
        at++;
    if (at < IMP_MAX_ADAPTER) {
        imp_catalog_unname(e, name);
        known_free(e->adapters[at]);
        e->adapters[at] = NULL;
        for (size_t i = 0; i < e->n_model; i++) {
            imp_model *m = e->model[i];
            if (m->adapter[at] == NULL) continue;
            count_bytes(m, -(int64_t)m->adapter[at]->bytes);
            gone[n_gone++] = m->adapter[at];
            m->adapter[at] = NULL;
        }
    }
    imp_mutex_unlock(e->lock);
    for (size_t i = 0; i < n_gone; i++) imp_adapter_unref(gone[i]);
    if (at < IMP_MAX_ADAPTER) return IMP_OK;
    return imp_fail_field(err, IMP_NOT_FOUND, "lora_name", "there is no adapter '%.100s' here", name);
}

/* ---- looking --------------------------------------------------------------------------------------------- */

imp_status imp_engine_adapters(imp_engine *e, imp_adapter_info **out, size_t *n)
{
    *n = 0;
    *out = imp_sys_calloc(IMP_MAX_ADAPTER, sizeof **out);
    if (*out == NULL) return IMP_NOMEM;
    imp_mutex_lock(e->lock);
    for (size_t i = 0; i < IMP_MAX_ADAPTER; i++) {
        const known_adapter *k = e->adapters[i];
        if (k == NULL || k->coming) continue;
        imp_adapter_info *o = &(*out)[(*n)++];
        *o = (imp_adapter_info){.id = (uint32_t)i, .scale = k->scale, .created = k->created};
        (void)snprintf(o->name, sizeof o->name, "%s", k->name);
        (void)snprintf(o->base, sizeof o->base, "%s", k->base != NULL ? k->base : "");
        for (size_t j = 0; j < e->n_model; j++) {
            const imp_adapter *a = e->model[j]->adapter[i];
            if (a == NULL) continue;
            o->rank = a->rank;
            o->bytes += a->bytes;
            o->n_waiting += atomic_load(&a->n_waiting);
            o->n_running += atomic_load(&a->n_running);
        }
    }
    imp_mutex_unlock(e->lock);
    return IMP_OK;
}

imp_status imp_model_adapter(imp_model *m, const char *name, uint32_t id, imp_adapter_use *out)
{
    imp_engine *e = m->engine;
    imp_status s = IMP_NOT_FOUND;
    imp_mutex_lock(e->lock);
    for (size_t i = 0; i < IMP_MAX_ADAPTER && s == IMP_NOT_FOUND; i++) {
        const known_adapter *k = e->adapters[i];
        if (k == NULL || k->coming || (name != NULL ? strcmp(k->name, name) != 0 : i != id)) continue;
        s = m->adapter[i] != NULL ? IMP_OK : IMP_NOT_READY;
        if (s == IMP_OK) *out = (imp_adapter_use){imp_adapter_ref(m->adapter[i]), k->scale};
    }
    imp_mutex_unlock(e->lock);
    return s;
}
