/* app/mixed.c - from a model and a text to a type for every part, and how that is said.
 *
 * Idea:    the text is --calibration's, or the model's own words (sampled with a fixed seed): its first part shows which
 *          columns matter and what each group's types cost, the rest measures the chosen mix. Sensitivities are kept in the
 *          database under hashes of the model's bytes, the text and the CPU's features. */
#include <stdlib.h>

#include "app/mixed.h"
#include "kern/kern.h"
#include "plan/store.h"

enum { WINDOWS = 4, HELD_OUT = 8, SEED = 20240229 };
/* Files up to this size are hashed whole, larger ones in PIECES pieces of PIECE bytes, evenly spread. */
enum { HASH_WHOLE = 1 << 30, PIECES = 4096, PIECE = 1 << 16 };

typedef struct work {
    app *a;
    const char *path;
    imp_net *net;
    app_mixed *m;
    imp_device *d;
    imp_pool *pool;
    imp_sense *s;
    int32_t *ids; /* owned: windows to choose by, then those held out */
    uint32_t window, n_window, n_held_out;
    char key[96];
} work;

/* ---- the text ---------------------------------------------------------------------------------------------- */

static imp_status cut(work *w, const imp_ids *ids, const char *path)
{
    uint32_t n = (uint32_t)IMP_MIN(ids->n / w->window, (size_t)(WINDOWS + HELD_OUT));
    if (n < 2)
        return imp_fail(&w->a->err, IMP_INVALID,
                        "'%.200s' has %zu tokens; at least %u are needed, some thousands are better", path,
                        (size_t)ids->n, 2 * w->window);
    w->n_window = IMP_MAX(n * WINDOWS / (WINDOWS + HELD_OUT), 1u);
    w->n_held_out = n - w->n_window;
    memcpy(w->ids, ids->id, (size_t)n * w->window * sizeof *w->ids);
    for (uint32_t i = 0; i < n && imp_tokenizer_adds_bos(w->net->tok); i++)
        w->ids[(size_t)i * w->window] = imp_tokenizer_bos(w->net->tok);
    return IMP_OK;
}

static imp_status read_text(work *w)
{
    const char *path = w->m->text = opt_str(&w->a->opt, OPT_CALIBRATION);
    imp_error *err = &w->a->err;
    imp_sys_file f;
    imp_ids ids = {0};
    w->window = imp_sense_window(w->s);
    w->ids = imp_sys_malloc((size_t)(WINDOWS + HELD_OUT) * w->window * sizeof *w->ids);
    if (w->ids == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    if (path == NULL) {
        w->n_window = WINDOWS, w->n_held_out = HELD_OUT;
        return imp_sense_own_text(w->d, w->net, SEED, WINDOWS + HELD_OUT, w->window, w->ids, err);
    }
    if (w->net->tok == NULL)
        return imp_fail(err, IMP_UNSUPPORTED, "--calibration needs a tokenizer, the model has none");
    IMP_TRY(imp_sys_file_open(path, true, &f, err));
    imp_status s =
        imp_tokenizer_encode(w->net->tok, f.data != NULL ? (const char *)f.data : "", f.n, 0, &ids, err);
    imp_sys_file_close(&f);
    if (s == IMP_OK) s = cut(w, &ids, path);
    imp_ids_deinit(&ids);
    return s;
}

/* ---- what is remembered ------------------------------------------------------------------------------------- */

static imp_status make_key(work *w)
{
    imp_sys_file f;
    IMP_TRY(imp_sys_file_open(w->path, true, &f, &w->a->err));
    uint64_t model = imp_hash(&f.n, sizeof f.n, 0);
    if (f.n <= HASH_WHOLE)
        model = imp_hash(f.data, f.n, model);
    else
        for (uint64_t i = 0; i < PIECES; i++)
            model = imp_hash(f.data + (f.n - PIECE) / PIECES * i, PIECE, model);
    imp_sys_file_close(&f);
    uint64_t text = imp_hash(w->ids, (size_t)w->n_window * w->window * sizeof *w->ids, w->n_window);
    (void)snprintf(w->key, sizeof w->key, "%016llx %016llx %llx", (unsigned long long)model,
                   (unsigned long long)text, (unsigned long long)imp_cpu_features());
    return IMP_OK;
}

static bool with_store(const work *w,
                       imp_status (*fn)(imp_store *, const char *, void *, size_t, imp_error *), void *data,
                       size_t n)
{
    imp_store *store;
    imp_error ignored;
    const char *path = app_db_path(w->a);
    if (path == NULL || imp_store_open(path, &store, &ignored) != IMP_OK) return false;
    bool ok = fn(store, w->key, data, n, &ignored) == IMP_OK;
    imp_store_close(store);
    return ok;
}

static imp_status put(imp_store *s, const char *key, void *data, size_t n, imp_error *err)
{
    return imp_store_put_mix(s, key, data, n, err);
}

static bool recall(void *user, void *data, size_t n)
{
    return with_store(user, imp_store_get_mix, data, n);
}

/* Not being able to remember only costs time. */
static void remember(void *user, const void *data, size_t n)
{
    (void)with_store(user, put, (void *)(uintptr_t)data, n);
}

static void progress(void *user, uint32_t done, uint32_t total)
{
    (void)user;
    if (done == 1) app_bar_begin("measuring types", total, "runs");
    app_bar_add(1);
}

/* ---- the unit's types ----------------------------------------------------------------------------------------- */

/* A neural engine takes palettes and whole numbers of 8 and 4 bits, no super-blocks; a device of this machine is asked. */
static imp_status types_of_unit(work *w, bool can[IMP_N_DTYPE])
{
    const app_mix_unit *u = &w->m->unit;
    imp_device *d = NULL;
    char kind[32] = "";
    size_t n = strcspn(u->name, "0123456789/");
    if (!u->simulated && n < sizeof kind) {
        memcpy(kind, u->name, n);
        IMP_TRY(imp_dev_open(kind, 1, &d, &w->a->err));
    }
    for (int t = 0; t < IMP_N_DTYPE; t++) {
        can[t] = imp_dtype_get((imp_dtype)t)->from_f32 != NULL;
        if (u->learn->machine.kind == IMP_UNIT_NPU)
            can[t] = can[t] && (t == IMP_F16 || t == IMP_Q8_0 || t == IMP_Q4_0);
        if (!can[t] || d == NULL) continue;
        imp_dtype all[IMP_N_GROUP];
        for (int g = 0; g < IMP_N_GROUP; g++) all[g] = (imp_dtype)t;
        imp_status s = imp_sense_retype(w->s, all, &w->a->err);
        const imp_graph *g = w->net->generate;
        for (imp_val v = 1; s == IMP_OK && v <= imp_graph_n(g); v++)
            if (d->ops->refuses(d, g, v) != NULL) can[t] = false;
        if (s == IMP_OK) s = imp_sense_retype(w->s, NULL, &w->a->err);
        if (s != IMP_OK) return d->ops->close(d), s;
    }
    if (d != NULL) d->ops->close(d);
    return IMP_OK;
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

static imp_status measure(work *w)
{
    app *a = w->a;
    app_mixed *m = w->m;
    bool can[IMP_N_DTYPE];
    imp_mix_goal goal;
    IMP_TRY(imp_sense_open(w->d, w->net, w->pool, NULL, &w->s, &a->err));
    IMP_TRY(read_text(w));
    imp_sense_close(w->s);
    w->s = NULL;
    IMP_TRY(imp_importance_collect(w->d, w->net, w->ids, (size_t)w->n_window * w->window, w->window, NULL,
                                   NULL, &m->importance, &a->err));
    IMP_TRY(imp_sense_open(w->d, w->net, w->pool, m->importance, &w->s, &a->err));
    IMP_TRY(make_key(w));
    IMP_TRY(types_of_unit(w, can));
    (void)imp_mix_goal_from_name(opt_str(&a->opt, OPT_GOAL), &goal);
    imp_mix_want want = {.max_kl = a->opt.v[OPT_MAX_KL].f,
                         .goal = goal,
                         .learn = m->unit.learn,
                         .can = can,
                         .n_prompt = m->unit.n_prompt,
                         .n_gen = m->unit.n_gen,
                         .ids = w->ids,
                         .held_out = w->ids + (size_t)w->n_window * w->window,
                         .n_window = w->n_window,
                         .n_held_out = w->n_held_out,
                         .recall = recall,
                         .remember = remember,
                         .progress = progress,
                         .user = w};
    imp_status s = imp_mix_make(w->s, w->net, &want, &m->mix, &a->err);
    app_bar_end();
    m->n_layer = imp_sense_n_layer(w->s);
    m->n_token = w->n_window * w->window;
    m->n_held_out = w->n_held_out * w->window;
    return s;
}

imp_status app_mixed_make(app *a, const char *path, imp_net *net, const app_mix_unit *unit, app_mixed *out)
{
    work w = {.a = a, .path = path, .net = net, .m = out};
    *out = (app_mixed){.unit = *unit};
    if (imp_sys_is_dir(path) || app_has_suffix(path, ".safetensors"))
        return imp_fail(&a->err, IMP_UNSUPPORTED,
                        "types of parts are planned for GGUF files; '%.200s' is none", path);
    IMP_TRY(imp_dev_cpu_open(opt_u32(&a->opt, OPT_THREADS), &w.d, &a->err));
    imp_status s = imp_pool_new(app_n_thread(a), &w.pool);
    s = s == IMP_OK ? measure(&w) : imp_fail(&a->err, s, "the threads could not be started");
    imp_sense_close(w.s);
    if (w.pool != NULL) imp_pool_free(w.pool);
    w.d->ops->close(w.d);
    imp_sys_free(w.ids);
    if (s != IMP_OK) app_mixed_deinit(out);
    return s;
}

void app_mixed_deinit(app_mixed *m)
{
    imp_importance_free(m->importance);
    m->importance = NULL;
}

/* ---- saying it -------------------------------------------------------------------------------------------------- */

static const char *type_text(imp_dtype t)
{
    return t == IMP_DTYPE_NONE ? "as it is" : imp_dtype_get(t)->name;
}

static json_t *total_json(const imp_mix_total *t, const char *name)
{
    return json_pack("{s:s, s:I, s:o, s:o, s:o, s:b}", "type", name, "bytes", (json_int_t)t->bytes, "ttft_ms",
                     app_json_round(t->ttft_s * 1e3, 6), "tpot_ms", app_json_round(t->tpot_s * 1e3, 6), "kl",
                     app_json_round(t->kl, 6), "measured", t->measured);
}

json_t *app_mixed_json(const app_mixed *m)
{
    static const char *const goal[] = {"balance", "time", "size"};
    json_t *parts = json_array(), *uniform = json_array();
    char text[64];
    for (uint32_t i = 0; i < m->mix.n_group; i++) {
        const imp_mix_group *g = &m->mix.group[i];
        json_t *options = json_array();
        for (uint32_t k = 0; k < g->n_opt; k++)
            json_array_append_new(options,
                                  json_pack("{s:s, s:I, s:o, s:b, s:o}", "type", type_text(g->opt[k].type),
                                            "bytes", (json_int_t)g->opt[k].bytes, "kl",
                                            app_json_round(g->opt[k].kl, 6), "measured", g->opt[k].measured,
                                            "request_ms", app_json_round(g->opt[k].seconds * 1e3, 6)));
        const imp_mix_option *o = &g->opt[g->chosen];
        json_array_append_new(parts, json_pack("{s:s, s:s, s:I, s:o, s:o}", "part",
                                               imp_group_text(g->group, m->n_layer, text, sizeof text),
                                               "type", type_text(o->type), "bytes", (json_int_t)o->bytes,
                                               "kl", app_json_round(o->kl, 6), "options", options));
    }
    for (uint32_t i = 0; i < m->mix.n_uniform; i++)
        json_array_append_new(uniform, total_json(&m->mix.uniform[i], type_text(m->mix.uniform[i].type)));
    json_t *doc =
        json_pack("{s:s, s:b, s:o, s:s, s:s, s:i, s:i, s:b, s:i, s:o, s:o, s:o, s:o}", "device", m->unit.name,
                  "calibrated", m->unit.calibrated, "max_kl", app_json_round(m->mix.max_kl, 6), "goal",
                  goal[m->mix.goal], "text", m->text != NULL ? m->text : "the model's own words", "tokens",
                  (int)m->n_token, "held_out", (int)m->n_held_out, "kept_source", m->mix.kept, "measurements",
                  (int)m->mix.n_measure, "parts", parts, "uniform", uniform, "source",
                  total_json(&m->mix.source, "source"), "mix", total_json(&m->mix.mix, "mix"));
    if (doc != NULL && m->unit.simulated) json_object_set_new(doc, "simulated", json_string("SIMULATED"));
    return doc;
}

static void print_total(const imp_mix_total *t, const char *name)
{
    char size[32];
    printf("  %-30s%-10s%10s%10.2f%10.3f%12.6f%s\n", name, "", app_size_text(t->bytes, size), t->ttft_s * 1e3,
           t->tpot_s * 1e3, t->kl, t->measured ? "" : " ~");
}

void app_mixed_print(const app_mixed *m)
{
    const imp_mix *x = &m->mix;
    char text[64], size[32];
    printf("\n  types for %s%s%s; divergence at most %g, measured on the CPU\n", m->unit.name,
           m->unit.simulated ? " (SIMULATED)" : "",
           m->unit.simulated || m->unit.calibrated ? "" : " (not calibrated)", x->max_kl);
    printf("  %-30s%-10s%10s%10s%10s%12s\n", "part", "type", "size", "ttft ms", "tpot ms", "KL");
    for (uint32_t i = 0; i < x->n_group; i++) {
        const imp_mix_option *o = &x->group[i].opt[x->group[i].chosen];
        printf("  %-30s%-10s%10s%20s%12.6f%s\n",
               imp_group_text(x->group[i].group, m->n_layer, text, sizeof text), type_text(o->type),
               app_size_text(o->bytes, size), "", o->kl, o->measured ? "" : " ~");
    }
    printf("\n");
    print_total(&x->mix, x->kept ? "all as it is" : "the mix, measured");
    print_total(&x->source, "source");
    for (uint32_t i = 0; i < x->n_uniform; i++) {
        (void)snprintf(text, sizeof text, "all %s", type_text(x->uniform[i].type));
        print_total(&x->uniform[i], text);
    }
    printf("  ~ not measured: from two measured types by the rounding error; whole models: the sum of the "
           "parts\n");
    if (x->kept) printf("  no other choice keeps to the budget\n");
    printf("  text: %s, %u tokens to choose by, %u held out for the mix\n",
           m->text != NULL ? m->text : "the model's own words", m->n_token, m->n_held_out);
}
