/* app/cmd_plan.c - `impetus plan`: what a model would take, and which device would run what, without loading it.
 *
 * Idea:    memory comes from the engine's own fit, times from the placer over the machine as it was calibrated - or,
 *          with --assume, as it was published. What stems from a profile is stamped SIMULATED. */
#include <math.h>

#include "app/app.h"
#include "app/mixed.h"
#include "dev/dev.h"
#include "dev/split/split.h"
#include "dev/tensor/tensor.h"
#include "model/net.h"
#include "plan/host.h"
#include "plan/place.h"
#include "plan/store.h"

enum { DEFAULT_PROMPT = 512, DEFAULT_GEN = 128, CHUNK = 512 };

typedef struct plan {
    imp_memory memory;
    imp_device_plan on[IMP_PLACE_UNITS]; /* memory by device, of those that --device names */
    size_t n_on;
    imp_place_unit unit[IMP_PLACE_UNITS];
    imp_learn *learn; /* [IMP_PLACE_UNITS + 1], in the arena; the last for looking something up */
    char excluded[IMP_PLACE_UNITS][160];
    bool simulated[IMP_PLACE_UNITS];
    uint32_t n_unit;
    imp_cost cost;
    bool embed, calibrated;
    uint32_t prompt, gen, batch;
    imp_choice choice;
    imp_host host;
    const char *assume;
    imp_place_rules rules;
} plan;

static const char *first_refusal(const imp_device *d, const imp_graph *g)
{
    for (imp_val v = 1; g && v <= imp_graph_n(g); v++) {
        const char *why = d->ops->refuses(d, g, v);
        if (why) return why;
    }
    return NULL;
}

static imp_place_unit *add_unit(plan *p, const imp_machine *m)
{
    if (p->n_unit == IMP_PLACE_UNITS) return NULL;
    uint32_t i = p->n_unit++;
    imp_machine ruled = *m;
    imp_place_rule_machine(&p->rules, &ruled);
    imp_learn_init(&p->learn[i], &ruled);
    p->simulated[i] = m->simulated;
    p->unit[i] = (imp_place_unit){.name = p->learn[i].machine.name,
                                  .learn = &p->learn[i],
                                  .n_ctx = p->memory.largest_ctx,
                                  .n_decode = p->batch - 1,
                                  .can_export = true,
                                  .can_import = true,
                                  .loaded = true};
    return &p->unit[i];
}

static void exclude(plan *p, imp_place_unit *u, const char *fmt, ...) IMP_PRINTF(3, 4);
static void exclude(plan *p, imp_place_unit *u, const char *fmt, ...)
{
    char *text = p->excluded[u - p->unit];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof p->excluded[0], fmt, ap);
    va_end(ap);
    u->excluded = text;
}

/* ---- this machine ------------------------------------------------------------------------------------- */

/* What is kept of the device into l, which was just made. */
static bool recall(app *a, imp_learn *l, const char *name)
{
    imp_store *s;
    imp_error ignored;
    imp_calibration c;
    char print[128];
    const char *path = app_db_path(a);
    if (!path || !imp_sys_is_file(path) || imp_store_open(path, &s, &ignored) != IMP_OK) return false;
    imp_store_fingerprint(name, print);
    bool known = imp_store_get_calibration(s, name, print, &c, &ignored) == IMP_OK;
    if (known) imp_learn_init(l, &c.machine);
    (void)!imp_store_get_learned(s, name, print, l, &ignored);
    imp_store_close(s);
    return known;
}

static imp_unit_kind kind_of(const imp_device *d)
{
    bool gpu = !strcmp(d->ops->kind, "cuda") || !strcmp(d->ops->kind, "mlx");
    return gpu ? IMP_UNIT_GPU : !strcmp(d->ops->kind, "coreml") ? IMP_UNIT_NPU : IMP_UNIT_CPU;
}

/* What is known of one device before anything was learned about it. */
static void known_of(app *a, const imp_device *d, imp_learn *scratch, imp_machine *out)
{
    imp_machine_default(kind_of(d), d->name, out);
    imp_learn_init(scratch, out);
    if (recall(a, scratch, d->name)) *out = scratch->machine;
}

/* What is assumed of a device; of several together, what is known of each, joined. */
static void describe(app *a, const imp_device *d, imp_learn *scratch, imp_machine *out)
{
    imp_machine known[IMP_SPLIT_PARTS];
    uint32_t n_part, n_member;
    const imp_split_part *part = imp_dev_split_parts(d, &n_part);
    imp_device *const *member = imp_dev_tensor_members(d, &n_member);
    imp_machine_default(kind_of(d), d->name, out);
    for (uint32_t i = 0; part && i < n_part; i++) known_of(a, part[i].device, scratch, &known[i]);
    if (part) imp_machine_join(known, n_part, d->name, out);
    if (member) known_of(a, member[0], scratch, &known[0]);
    if (member) imp_machine_divide(&known[0], n_member, d->name, out);
}

static const imp_device_plan *memory_on(const plan *p, const char *device)
{
    for (size_t i = 0; i < p->n_on; i++)
        if (!strcmp(p->on[i].device, device)) return &p->on[i];
    return NULL;
}

/* Is there a device with memory of its own that does not hold the model? */
static bool one_is_too_small(const plan *p)
{
    bool any = false;
    for (size_t i = 0; i < p->n_on; i++)
        any = any || (p->on[i].own_memory && !p->on[i].only_large && p->on[i].why[0]);
    return any;
}

/* A device of this machine, with the reason when it would not run this net. */
static imp_status judge(app *a, plan *p, const imp_net *net, const char *name)
{
    imp_device *d;
    imp_machine m;
    const char *asked = opt_str(&a->opt, OPT_DEVICE);
    bool wanted = app_device_asked(asked, name);
    IMP_TRY(imp_dev_open(name, opt_u32(&a->opt, OPT_THREADS), &d, &a->err));
    describe(a, d, &p->learn[IMP_PLACE_UNITS], &m);
    imp_place_unit *u = add_unit(p, &m);
    if (u) {
        const imp_device_plan *on = memory_on(p, d->name);
        if (recall(a, u->learn, d->name)) p->calibrated = true;
        const char *why = first_refusal(d, net->generate);
        if (!why) why = first_refusal(d, net->embed);
        u->can_export = d->ops->kv_export != NULL;
        u->can_import = d->ops->kv_import != NULL;
        u->prefill_only = d->ops->prefill_only;
        if (d->ops->max_ctx) u->n_ctx = IMP_MIN(u->n_ctx, d->ops->max_ctx(d));
        if (d->ops->padded && p->prompt > 0) u->pad = (double)d->ops->padded(d, p->prompt) / p->prompt;
        if (on) u->n_ctx = IMP_MIN(u->n_ctx, on->memory.largest_ctx);
        if (why)
            exclude(p, u, "%s", why);
        else if (!wanted)
            exclude(p, u, "--device %.60s was asked for", asked);
        else if (!strcmp(name, "ref0") && (!asked || !strcmp(asked, "auto")))
            exclude(p, u, "the slow reference, used only with --device ref");
        else if (on && on->only_large && !one_is_too_small(p))
            exclude(p, u, "a single device holds the whole model");
        else if (on && on->why[0])
            exclude(p, u, "%s", on->why);
    }
    d->ops->close(d);
    return IMP_OK;
}

/* Of --device: units of published profiles ("sim:NAME") and devices together ("cuda0+cpu0", "cuda0/cuda1"). */
static imp_status judge_named(app *a, plan *p, const imp_net *net, const char *asked)
{
    char name[96];
    for (const char *s = asked; s && *s;) {
        size_t n = strcspn(s, ",");
        snprintf(name, sizeof name, "%.*s", (int)IMP_MIN(n, sizeof name - 1), s);
        s += n + (s[n] == ',');
        if (!strncmp(name, "sim:", 4)) {
            imp_machine m[IMP_PLACE_UNITS];
            size_t n_unit = imp_profile_machines(name + 4, m, IMP_PLACE_UNITS);
            for (size_t i = 0; i < IMP_MIN(n_unit, (size_t)IMP_PLACE_UNITS); i++) (void)add_unit(p, &m[i]);
        } else if (strpbrk(name, "+/")) {
            IMP_TRY(judge(a, p, net, name));
        }
    }
    return IMP_OK;
}

static imp_status this_machine(app *a, plan *p, const imp_net *net)
{
    const char *asked = opt_str(&a->opt, OPT_DEVICE);
    IMP_TRY(judge(a, p, net, "cpu0"));
    for (size_t i = 1; i <= APP_DEVICES; i++) {
        imp_error before = a->err;
        if (judge(a, p, net, i < APP_DEVICES ? app_device_name(i) : "coreml0") != IMP_OK)
            a->err = before; /* not here */
    }
    IMP_TRY(judge(a, p, net, "ref0"));
    for (size_t i = 0; i < p->n_on; i++) /* several together, of the engine's own accord */
        if (p->on[i].only_large) IMP_TRY(judge(a, p, net, p->on[i].device));
    IMP_TRY(judge_named(a, p, net, asked));
    return imp_host_read(&p->host, &a->err);
}

static imp_status assumed_machine(app *a, plan *p)
{
    imp_machine m[IMP_PLACE_UNITS];
    size_t n = imp_profile_machines(p->assume, m, IMP_PLACE_UNITS);
    if (n == 0)
        return imp_fail_field(&a->err, IMP_NOT_FOUND, "assume",
                              "there is no profile '%.60s'; 'impetus devices --profiles' lists them",
                              p->assume);
    for (size_t i = 0; i < IMP_MIN(n, (size_t)IMP_PLACE_UNITS); i++) {
        imp_place_unit *u = add_unit(p, &m[i]);
        double mem = m[i].f[IMP_F_MEM].v * 1e9;
        if (u) u->n_ctx = UINT32_MAX; /* the assumed machine's memory, not this one's */
        if (u && mem > 0 && (double)p->memory.weights > mem)
            exclude(p, u, "the weights take %.1f GB, it has %.1f GB", (double)p->memory.weights * 1e-9,
                    mem * 1e-9);
    }
    return IMP_OK;
}

/* What the settings rule out. */
static void apply_rules(plan *p)
{
    bool npu = false;
    for (uint32_t i = 0; i < p->n_unit; i++) npu = npu || p->learn[i].machine.kind == IMP_UNIT_NPU;
    for (uint32_t i = 0; i < p->n_unit && p->n_unit > 1; i++) {
        const char *why = imp_place_ruled_out(&p->rules, p->learn[i].machine.kind, npu, &p->cost, p->embed);
        if (why && !p->unit[i].excluded) exclude(p, &p->unit[i], "%s", why);
    }
}

static imp_status make_plan(app *a, const char *path, const imp_net *net, plan *p)
{
    imp_placer placer;
    imp_status s = imp_engine_plan(a->engine, path, &p->memory, &a->err);
    if (s != IMP_OK && s != IMP_NO_FIT) return s;
    if (!p->assume)
        IMP_TRY(imp_engine_plan_devices(a->engine, path, p->on, IMP_PLACE_UNITS, &p->n_on, &a->err));
    p->n_on = IMP_MIN(p->n_on, (size_t)IMP_PLACE_UNITS);
    p->embed = net->generate == NULL;
    imp_cost_build(p->embed ? net->embed : net->generate, IMP_F16, &p->cost);
    IMP_TRY(p->assume ? assumed_machine(a, p) : this_machine(a, p, net));
    apply_rules(p);
    for (uint32_t i = 0; i < p->n_unit && !p->assume; i++) {
        imp_place_unit *u = &p->unit[i];
        if (u->excluded) continue;
        if (!p->memory.fits)
            exclude(p, u, "does not fit: it takes %llu of %llu bytes available",
                    (unsigned long long)p->memory.total, (unsigned long long)p->memory.available);
        else if (p->prompt + p->gen > p->memory.largest_ctx &&
                 (opt_set(&a->opt, OPT_PLAN_PROMPT) || opt_set(&a->opt, OPT_PLAN_GEN)))
            exclude(p, u, "prompt and answer need %u tokens, the largest context that fits is %u",
                    p->prompt + p->gen, p->memory.largest_ctx);
    }
    if (!p->assume && p->prompt + p->gen > p->memory.largest_ctx) { /* nobody asked for that much */
        p->prompt = IMP_MAX(p->memory.largest_ctx / 2, 1u);
        p->gen = IMP_MAX(p->memory.largest_ctx / 4, 1u);
    }
    imp_placer_init(&placer);
    const char *policy = opt_str(&a->opt, OPT_POLICY);
    if (policy) (void)imp_policy_from_name(policy, &placer.policy);
    if (opt_set(&a->opt, OPT_WATT_CAP)) placer.watt_cap = a->opt.v[OPT_WATT_CAP].f;
    if (opt_set(&a->opt, OPT_JOULE_CAP)) placer.joule_cap = a->opt.v[OPT_JOULE_CAP].f;
    imp_place_request r = {.cost = &p->cost,
                           .embed = p->embed,
                           .n_prompt = p->prompt,
                           .n_gen = p->gen,
                           .n_need = p->prompt + p->gen,
                           .chunk = CHUNK};
    imp_place(&placer, &r, p->unit, p->n_unit, &p->choice);
    return IMP_OK;
}

/* ---- output ------------------------------------------------------------------------------------------- */

static bool is_sim(const plan *p, const imp_candidate *c)
{
    return p->simulated[c->prefill] || p->simulated[c->decode];
}

/* Pairs with a unit that is out anyway say nothing new. */
static bool worth_printing(const plan *p, const imp_candidate *c)
{
    return c->prefill == c->decode ||
           (!p->unit[c->prefill].excluded && !p->unit[c->decode].excluded && !p->embed);
}

static json_t *number(const imp_candidate *c, double v)
{
    return c->excluded ? json_null() : app_json_round(v, 6);
}

static json_t *candidate_json(const plan *p, const imp_candidate *c)
{
    json_t *interval =
        c->excluded ? json_null()
                    : json_pack("[o, o]", app_json_round(c->lo_s * 1e3, 6), app_json_round(c->hi_s * 1e3, 6));
    json_t *o =
        json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "prefill", p->unit[c->prefill].name,
                  "decode", p->unit[c->decode].name, "ttft_ms", number(c, c->ttft_s * 1e3), "tpot_ms",
                  number(c, c->tpot_s * 1e3), "interval", interval, "bound",
                  c->excluded ? json_null() : json_string(imp_bound_name(c->prefill_bound)), "decode_bound",
                  c->excluded ? json_null() : json_string(imp_bound_name(c->decode_bound)), "joules",
                  c->excluded || !c->metered ? json_null() : app_json_round(c->joules, 4), "excluded",
                  c->excluded ? json_string(c->excluded) : json_null());
    if (is_sim(p, c)) json_object_set_new(o, "simulated", json_string("SIMULATED"));
    if (!c->excluded &&
        c->metered) /* the power they follow from: measured here; of a simulated unit published or assumed */
        json_object_set_new(o, "joules_from",
                            json_string(imp_mark_name(p->unit[c->decode].learn->machine.f[IMP_F_WATT].mark)));
    return o;
}

static json_t *memory_json(const plan *p)
{
    json_t *list = json_array();
    for (size_t i = 0; i < p->n_on; i++) {
        const imp_device_plan *d = &p->on[i];
        const imp_memory *m = &d->memory;
        json_array_append_new(list,
                              json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:I, s:o}", "device",
                                        d->device, "weights", (json_int_t)m->weights, "kv", (json_int_t)m->kv,
                                        "scratch", (json_int_t)m->scratch, "other", (json_int_t)m->other,
                                        "total", (json_int_t)m->total, "available", (json_int_t)m->available,
                                        "fits", (int)m->fits, "largest_ctx", (json_int_t)m->largest_ctx,
                                        "reason", d->why[0] ? json_string(d->why) : json_null()));
    }
    return list;
}

static json_t *plan_json(const app *a, const plan *p, const char *path)
{
    const imp_memory *m = &p->memory;
    json_t *list = json_array();
    int chosen = -1;
    for (uint32_t i = 0; i < p->choice.n_cand; i++) {
        const imp_candidate *c = &p->choice.cand[i];
        if (!worth_printing(p, c)) continue;
        if ((int)i == p->choice.chosen) chosen = (int)json_array_size(list);
        json_array_append_new(list, candidate_json(p, c));
    }
    for (uint32_t i = 0; i < p->host.n_other; i++)
        json_array_append_new(list, json_pack("{s:s, s:s, s:n, s:n, s:n, s:n, s:n, s:s}", "prefill",
                                              p->host.other[i].name, "decode", p->host.other[i].name,
                                              "ttft_ms", "tpot_ms", "interval", "bound", "joules", "excluded",
                                              p->host.other[i].reason));
    json_t *doc = json_pack(
        "{s:s, s:{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}, s:b, s:I, s:{s:i, s:i, s:i}, s:b, s:o, s:o}",
        "model", path, "memory", "weights", (json_int_t)m->weights, "kv", (json_int_t)m->kv, "scratch",
        (json_int_t)m->scratch, "other", (json_int_t)m->other, "total", (json_int_t)m->total, "process",
        (json_int_t)m->process, "resident", (json_int_t)(m->total + m->process), "available",
        (json_int_t)m->available, "fits", m->fits, "largest_ctx", (json_int_t)m->largest_ctx, "request",
        "prompt", (int)p->prompt, "gen", (int)p->gen, "batch", (int)p->batch, "calibrated", p->calibrated,
        "candidates", list, "chosen", chosen >= 0 ? json_integer(chosen) : json_null());
    if (doc) json_object_set_new(doc, "memory_by_device", memory_json(p));
    if (p->assume && doc) json_object_set_new(doc, "assume", json_string(p->assume));
    if (doc) json_object_set_new(doc, "settings", app_rules_json(a));
    return doc;
}

static void candidate_human(const plan *p, const imp_candidate *c, bool chosen)
{
    char pair[140];
    if (c->prefill == c->decode)
        snprintf(pair, sizeof pair, "%s", p->unit[c->prefill].name);
    else
        snprintf(pair, sizeof pair, "%s > %s", p->unit[c->prefill].name, p->unit[c->decode].name);
    if (c->excluded) {
        printf("  %-44s%s\n", pair, c->excluded);
        return;
    }
    printf("  %-44s%10.2f%10.3f  %9.1f - %-9.1f %-8s%-8s", pair, c->ttft_s * 1e3, c->tpot_s * 1e3,
           c->lo_s * 1e3, c->hi_s * 1e3, imp_bound_name(c->prefill_bound), imp_bound_name(c->decode_bound));
    if (c->metered)
        printf("%8.2f", c->joules);
    else
        printf("%8s", "-");
    printf("%s%s\n", is_sim(p, c) ? "  SIMULATED" : "", chosen ? "  chosen" : "");
}

/* With one device the table above says it all. */
static void memory_human(const plan *p)
{
    char w[32], kv[32], s[32], t[32], free[32];
    if (p->n_on < 2) return;
    printf("  %-24s%12s%12s%12s%12s%12s%12s\n", "memory by device", "weights", "kv cache", "scratch", "total",
           "available", "largest ctx");
    for (size_t i = 0; i < p->n_on; i++) {
        const imp_memory *m = &p->on[i].memory;
        if (m->total == 0) {
            printf("  %-24s%s\n", p->on[i].device, p->on[i].why);
            continue;
        }
        printf("  %-24s%12s%12s%12s%12s%12s%12u%s\n", p->on[i].device, app_size_text(m->weights, w),
               app_size_text(m->kv, kv), app_size_text(m->scratch, s), app_size_text(m->total, t),
               app_size_text(m->available, free), m->largest_ctx, m->fits ? "" : "  does not fit");
    }
    putchar('\n');
}

static void plan_human(const plan *p, const char *path)
{
    const imp_memory *m = &p->memory;
    const uint64_t v[] = {
        m->weights, m->kv, m->scratch, m->other, m->total, m->process, m->total + m->process, m->available};
    static const char *const name[] = {"weights", "kv cache",       "scratch",       "other",
                                       "total",   "program itself", "resident then", "available"};
    char text[32];
    printf("%s\n\n", path);
    for (size_t i = 0; i < IMP_COUNT(v); i++)
        printf("  %-16s%16llu bytes  %10s\n", name[i], (unsigned long long)v[i], app_size_text(v[i], text));
    printf("\n  %s; the largest context that fits is %u tokens\n\n", m->fits ? "fits" : "does NOT fit",
           m->largest_ctx);
    memory_human(p);
    printf("  prompt %u, generated %u, %u at once%s\n", p->prompt, p->gen, p->batch,
           p->assume        ? "; SIMULATED from published numbers, give or take the range"
           : !p->calibrated ? "; not calibrated, so only a rough guess: run 'impetus calibrate'"
                            : "");
    printf("  %-44s%10s%10s  %-21s %-16s%8s\n", "device (prefill > decode)", "ttft ms", "tpot ms",
           "whole, 90 % interval", "bound by", "joules");
    for (uint32_t i = 0; i < p->choice.n_cand; i++)
        if (worth_printing(p, &p->choice.cand[i]))
            candidate_human(p, &p->choice.cand[i], (int)i == p->choice.chosen);
    for (uint32_t i = 0; i < p->host.n_other; i++)
        printf("  %-44s%s\n", p->host.other[i].name, p->host.other[i].reason);
}

/* A plan as the options ask for it, not made yet. */
static imp_status plan_new(app *a, plan **out)
{
    plan *p = *out = imp_arena_alloc(a->arena, sizeof *p);
    if (!p || !(p->learn = imp_arena_array(a->arena, IMP_PLACE_UNITS + 1, sizeof *p->learn)))
        return imp_fail(&a->err, IMP_NOMEM, "out of memory");
    p->assume = opt_str(&a->opt, OPT_ASSUME);
    p->rules = app_rules(a);
    p->prompt = opt_set(&a->opt, OPT_PLAN_PROMPT) ? opt_u32(&a->opt, OPT_PLAN_PROMPT) : DEFAULT_PROMPT;
    p->gen = opt_set(&a->opt, OPT_PLAN_GEN) ? opt_u32(&a->opt, OPT_PLAN_GEN) : DEFAULT_GEN;
    p->batch = opt_set(&a->opt, OPT_PLAN_BATCH) ? opt_u32(&a->opt, OPT_PLAN_BATCH) : 1;
    return IMP_OK;
}

static imp_status deciding_unit(app *a, const plan *p, app_mix_unit *out)
{
    if (p->choice.chosen < 0)
        return imp_fail(&a->err, IMP_UNSUPPORTED,
                        "no device can run the model, so nothing can be planned for one");
    uint8_t i = p->choice.cand[p->choice.chosen].decode;
    *out = (app_mix_unit){.learn = &p->learn[i],
                          .name = p->unit[i].name,
                          .simulated = p->simulated[i],
                          .calibrated = p->calibrated,
                          .n_prompt = p->prompt,
                          .n_gen = p->gen};
    return IMP_OK;
}

imp_status app_plan_unit(app *a, const char *path, const imp_net *net, app_mix_unit *out)
{
    plan *p;
    IMP_TRY(app_engine(a)); /* first: what the process holds then counts as the program's own */
    IMP_TRY(plan_new(a, &p));
    IMP_TRY(make_plan(a, path, net, p));
    return deciding_unit(a, p, out);
}

/* mixed: the plan of types, printed behind the plan of devices; NULL: none. */
static app_result plan_print(app *a, const plan *p, const char *path, const app_mixed *mixed)
{
    if (opt_on(&a->opt, OPT_JSON)) {
        json_t *doc = plan_json(a, p, path);
        if (doc && mixed) json_object_set_new(doc, "mixed", app_mixed_json(mixed));
        return app_print_json(a, doc);
    }
    plan_human(p, path);
    app_rules_print(a);
    if (mixed) app_mixed_print(mixed);
    return APP_OK;
}

static app_result plan_mixed(app *a, const plan *p, const char *path, imp_net *net)
{
    app_mix_unit unit;
    app_mixed mixed;
    if (deciding_unit(a, p, &unit) != IMP_OK || app_mixed_make(a, path, net, &unit, &mixed) != IMP_OK)
        return APP_FAILED;
    app_result r = plan_print(a, p, path, &mixed);
    app_mixed_deinit(&mixed);
    return r;
}

app_result cmd_plan(app *a)
{
    const char *path;
    imp_net *net = NULL;
    plan *p;
    if (opt_set(&a->opt, OPT_PLAN_BATCH)) {
        if (a->opt.v[OPT_PARALLEL].explicit_ &&
            opt_u32(&a->opt, OPT_PARALLEL) != opt_u32(&a->opt, OPT_PLAN_BATCH))
            return app_usage(a, "--batch and --parallel mean the same here; give one of them");
        a->opt.v[OPT_PARALLEL] = a->opt.v[OPT_PLAN_BATCH];
    }
    if (app_model_path(a, a->arg[0], &path, &a->err) != IMP_OK) return APP_FAILED;
    if (app_engine(a) != IMP_OK || plan_new(a, &p) != IMP_OK) return APP_FAILED;
    if (imp_net_open(path, opt_u32(&a->opt, OPT_CTX), &net, &a->err) != IMP_OK) return APP_FAILED;
    app_result r = APP_FAILED;
    if (make_plan(a, path, net, p) == IMP_OK)
        r = opt_on(&a->opt, OPT_MIXED) ? plan_mixed(a, p, path, net) : plan_print(a, p, path, NULL);
    imp_net_close(net);
    if (r != APP_OK) return r;
    a->err = (imp_error){0};
    if (p->choice.chosen >= 0 || p->assume || p->memory.fits) return APP_OK;
    if (p->memory.largest_ctx == 0) return app_failed(a, "%s does not fit, however small the context", path);
    return app_failed(a, "%s does not fit; --ctx %u does", path, p->memory.largest_ctx);
}
