/* plan/place.c - pricing the candidates and choosing among them. */
#include "plan/place.h"

#include <math.h>
#include <time.h>

static const char *const POLICY[] = {"latency", "throughput", "energy"};

bool imp_policy_from_name(const char *name, imp_policy *out)
{
    for (size_t i = 0; i < IMP_COUNT(POLICY); i++)
        if (strcmp(name, POLICY[i]) == 0) {
            *out = (imp_policy)i;
            return true;
        }
    return false;
}

const char *imp_policy_name(imp_policy p)
{
    return POLICY[p];
}

bool imp_place_meant(const char *only, const char *prefill, const char *decode)
{
    const char *cut = strchr(only, '>');
    size_t n = cut != NULL ? (size_t)(cut - only) : strlen(only);
    if (prefill != NULL && (strlen(prefill) != n || memcmp(prefill, only, n) != 0)) return false;
    return decode == NULL || strcmp(cut != NULL ? cut + 1 : only, decode) == 0;
}

const char *imp_place_ruled_out(const imp_place_rules *s, imp_unit_kind kind, bool has_npu, const imp_cost *c,
                                bool embed)
{
    bool npu = kind == IMP_UNIT_NPU;
    if (npu && s->max_npu_model_mb != 0 && c->weight_bytes > 1e6 * s->max_npu_model_mb)
        return "the model is larger than max_npu_model_mb allows";
    if (embed && npu && s->embeddings_on_npu < 0) return "embeddings_on_npu is off";
    if (embed && !npu && s->embeddings_on_npu > 0 && has_npu) return "embeddings_on_npu is on";
    return NULL;
}

void imp_place_rule_machine(const imp_place_rules *s, imp_machine *m)
{
    if (s->gpu_matrix_units < 0 && m->kind == IMP_UNIT_GPU && m->f[IMP_F_F16].mark != IMP_MARK_MEASURED)
        m->f[IMP_F_F16] = m->f[IMP_F_F32];
}

void imp_placer_init(imp_placer *p)
{
    *p = (imp_placer){.hysteresis = 0.02, .explore = 0.015};
}

double imp_place_prefill_s(const imp_learn *l, const imp_cost *c, uint32_t n_prompt, uint32_t chunk,
                           bool cold, imp_cost_time *out)
{
    uint32_t n_full = n_prompt / chunk, rest = n_prompt % chunk;
    imp_cost_time last = {0};
    double s = 0, bytes = 0, flop = 0;
    *out = (imp_cost_time){0};
    if (n_full >
        0) { /* chunks grow dearer linearly with what lies before them: the middle one stands for all */
        imp_cost_shape sh = imp_cost_shape_chunk(chunk, (n_full - 1) * chunk / 2, rest == 0);
        sh.cold = cold && n_full == 1;
        imp_learn_predict(l, c, &sh, true, out);
        s = out->s * n_full;
        bytes = out->bytes * n_full;
        flop = out->flop * n_full;
    }
    if (rest > 0) {
        imp_cost_shape sh = imp_cost_shape_chunk(rest, n_full * chunk, 1);
        sh.cold = cold && n_full == 0;
        imp_learn_predict(l, c, &sh, n_full == 0, &last);
        if (n_full == 0) *out = last;
        s += last.s;
        bytes += last.bytes;
        flop += last.flop;
    }
    double f = out->s > 0 ? s / out->s : 1;
    out->memory_s *= f;
    out->compute_s *= f;
    out->launch_s *= f;
    out->s = s;
    out->bytes = bytes;
    out->flop = flop;
    return s;
}

/* What one unit would take for the request's phases. */
typedef struct unit_price {
    const char *excluded;
    imp_cost_time prefill, decode; /* decode: one step with the request in the batch */
    double alone_s;                /* the same step without it */
    double added_s;                /* what the prefill adds to the steps of those that generate there */
    double n_chunk;
    double wait_s;
    double first_s; /* prefill of the first chunk */
    double n_seq;   /* sequences that generate at a time, as long as requests keep coming */
    double rho;     /* share of its time that prompts yet to come are thought to take */
} unit_price;

static const char *why_not(const imp_placer *p, const imp_place_request *r, const imp_place_unit *u)
{
    if (u->excluded != NULL) return u->excluded;
    if (r->adapters && !u->adapters) return "adapters are not run there";
    if (u->prefill_only && !r->embed) {
        if (r->n_prompt < 2) return "the prompt has nothing to read ahead";
        if (r->n_prompt >= u->n_ctx) return "the prompt is longer than it reads in one piece";
    } else if (r->n_need > u->n_ctx) {
        return "its context is too small for prompt and answer";
    }
    if (p->watt_cap > 0 && u->learn->machine.f[IMP_F_WATT].v > p->watt_cap)
        return "it draws more power than the cap allows";
    return NULL;
}

/* A chunk shares its step, and so the weights that are read, with the sequences that generate: what it adds is less than
 * what it takes alone. */
static void price_sharing(const imp_place_request *r, const imp_place_unit *u, double past, unit_price *out)
{
    const imp_learn *l = u->learn;
    imp_cost_shape alone = imp_cost_shape_decode(out->n_seq, past);
    uint32_t n = IMP_MIN(r->n_prompt, r->chunk);
    imp_cost_shape chunk = imp_cost_shape_chunk(n, r->n_prompt / 2 - n / 2, 1), both = chunk;
    both.n_tok += alone.n_tok, both.n_out += alone.n_out, both.n_seq += alone.n_seq;
    both.keys += alone.keys, both.kv_tok += alone.kv_tok;
    imp_cost_time t_alone, t_chunk, t_both;
    imp_learn_predict(l, r->cost, &alone, false, &t_alone);
    imp_learn_predict(l, r->cost, &chunk, false, &t_chunk);
    imp_learn_predict(l, r->cost, &both, false, &t_both);
    out->alone_s = t_alone.s;
    double ratio = t_chunk.s > 0 ? (t_both.s - t_alone.s) / t_chunk.s : 1;
    out->added_s = out->prefill.s * IMP_MIN(IMP_MAX(ratio, 0.02), 1.0);
}

/* Beside sequences that generate prompts get only a share of each step, so that theirs and those before them take longer. */
static void price_pace(double pace, const imp_place_unit *u, unit_price *out)
{
    double generating = u->n_decode - u->n_coming;
    if (pace <= 1 || generating < 1 || out->alone_s <= 0) return;
    double more =
        (pace - 1) * IMP_MAX(1.0, (u->n_prefill + 1) / generating); /* as a share of the step alone */
    double share = out->prefill.s > 0 ? out->added_s / out->prefill.s : 1;
    out->n_chunk = IMP_MAX(out->n_chunk, out->added_s / (more * out->alone_s));
    out->wait_s *= IMP_MAX(1.0, share * (1 + more) / more);
}

/* Until what queues on the unit is computed. Short prompts share a step: a queue that fits one does not wait for each other. */
static double queue_s(const imp_place_request *r, const imp_place_unit *u)
{
    return u->queued_s * (r->chunk > 0 ? IMP_MIN(1.0, u->queued_tok / r->chunk) : 1);
}

/* A step of the request among those that generate beside it. Of those still to come not all do so at once: each waits for
 * its prompt first, and while it generates others wait. */
static void price_decode(const imp_place_request *r, const imp_place_unit *u, double past, double wait_s,
                         unit_price *out)
{
    const imp_learn *l = u->learn;
    imp_cost_shape with = imp_cost_shape_decode(u->n_decode + 1, past);
    imp_learn_predict(l, r->cost, &with, true, &out->decode);
    double span = r->n_gen * out->decode.s;
    if (u->n_coming > 0 && span > 0) {
        out->n_seq -= u->n_coming * wait_s / (wait_s + span);
        with = imp_cost_shape_decode(out->n_seq + 1, past);
        imp_learn_predict(l, r->cost, &with, true, &out->decode);
    }
    if (r->n_gen > 1 &&
        u->n_decode <= 0) { /* the first behind the prompt take longer; n_gen - 1 steps in all */
        imp_cost_time first;
        with = imp_cost_shape_decode(1, r->n_prompt);
        with.after = true;
        imp_learn_predict(l, r->cost, &with, false, &first);
        double n_step = r->n_gen - 1, n_after = IMP_MIN(n_step, (double)IMP_COST_AFTER);
        out->decode.s += (first.s - out->decode.s) * n_after / n_step;
    }
}

static void price_unit(double pace, const imp_place_request *r, const imp_place_unit *u, double wait_s,
                       unit_price *out)
{
    const imp_learn *l = u->learn;
    out->wait_s = queue_s(r, u) + (u->loaded ? 0 : u->load_s);
    out->n_chunk = 1;
    out->n_seq = u->n_decode;
    bool idle = u->queued_tok <= 0 && u->n_prefill <= 0 && u->n_decode <= 0;
    if (r->embed) {
        uint32_t n = u->pad > 1 ? (uint32_t)IMP_MIN(r->n_prompt * u->pad, 1e9) : r->n_prompt;
        imp_cost_shape sh = imp_cost_shape_embed(n, IMP_MAX(r->n_input, 1u));
        sh.cold = idle;
        imp_learn_predict(l, r->cost, &sh, true, &out->prefill);
        out->added_s = out->first_s = out->prefill.s;
        out->decode = (imp_cost_time){.bound = out->prefill.bound};
        return;
    }
    if (u->prefill_only) { /* at once, padded, and nobody generates there */
        uint32_t n = (uint32_t)(r->n_prompt * IMP_MAX(u->pad, 1.0));
        out->first_s = out->added_s = imp_place_prefill_s(l, r->cost, n, n, idle, &out->prefill);
        out->decode = (imp_cost_time){.bound = out->prefill.bound};
        return;
    }
    out->n_chunk = (double)((r->n_prompt + r->chunk - 1) / r->chunk);
    out->first_s = imp_place_prefill_s(l, r->cost, r->n_prompt, r->chunk, idle, &out->prefill) / out->n_chunk;
    out->added_s = out->prefill.s;
    double past = r->n_prompt + r->n_gen / 2.0;
    price_decode(r, u, past, wait_s, out);
    if (u->n_decode > 0) price_sharing(r, u, past, out);
    price_pace(pace, u, out);
}

static double joules_of(const imp_place_unit *u, double s)
{
    double w = u->learn->machine.f[IMP_F_WATT].v;
    return w > 0 ? w * s : -1;
}

/* What is only assumed of a unit's power does for comparing, not for telling. */
static bool knows_power(const imp_place_unit *u)
{
    const imp_machine *m = &u->learn->machine;
    return m->simulated || m->f[IMP_F_WATT].mark == IMP_MARK_MEASURED;
}

/* The efficiency a prediction stands on: of the unit's best rates, what the binding part reaches. Above 1: from caches. */
static double reached(const imp_machine *m, const imp_cost_time *t)
{
    double peak = fmax(fmax(m->f[IMP_F_F32].v, m->f[IMP_F_F16].v), m->f[IMP_F_INT8].v);
    double s = t->bound == IMP_BOUND_MEMORY ? t->memory_s : t->bound == IMP_BOUND_COMPUTE ? t->compute_s : 0;
    double best =
        t->bound == IMP_BOUND_MEMORY ? t->bytes / (m->f[IMP_F_BW].v * 1e9) : t->flop / (peak * 1e12);
    return s > 0 ? best / s : 0;
}

static double age_of(const imp_place_unit *a, const imp_place_unit *b)
{
    int64_t at = IMP_MIN(a->learn->at, b->learn->at);
    return at > 0 ? fmax((double)((int64_t)time(NULL) - at), 0) : -1;
}

/* The hand-over: all blocks, but only those of the last chunk are not behind the prefill. */
static void price_move(const imp_place_request *r, const imp_place_unit *a, const imp_place_unit *b,
                       const unit_price *pa, imp_candidate *c)
{
    bool measured;
    double n_block = (r->n_prompt + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK;
    c->kv_bytes = r->cost->kv_bytes_tok * r->n_prompt;
    c->moved_s =
        imp_machine_transfer_s(&a->learn->machine, &b->learn->machine, c->kv_bytes, n_block, &measured);
    double last = c->moved_s * IMP_MIN(1.0, (double)r->chunk / IMP_MAX(r->n_prompt, 1u));
    c->exposed_s = IMP_MAX(last, c->moved_s - pa->prefill.s);
}

static const char *pair_excluded(const imp_place_request *r, const imp_place_unit *a, const imp_place_unit *b)
{
    if (r->only != NULL && !imp_place_meant(r->only, a->name, b->name)) return "another device is asked for";
    if (b->prefill_only && !r->embed) return "it only reads prompts, another device has to generate";
    if (a == b) return NULL;
    if (r->embed) return "an embedding has one phase";
    if (r->n_gen <= (a->prefill_only ? 0 : 1)) return "there is nothing to decode elsewhere";
    if (!a->can_export) return "the first unit cannot hand its cache over";
    if (!b->can_import) return "the second unit cannot take over a cache";
    return NULL;
}

static void price_pair(const imp_placer *p, const imp_place_request *r, const imp_place_unit *u,
                       const unit_price *price, imp_candidate *c)
{
    const imp_place_unit *a = &u[c->prefill], *b = &u[c->decode];
    const unit_price *pa = &price[c->prefill], *pb = &price[c->decode];
    double n_step = r->embed ? 0 : IMP_MAX((double)r->n_gen - 1, 0);
    if (a != b) price_move(r, a, b, pa, c);
    c->wait_s = pa->wait_s;
    c->ttft_s = c->wait_s + pa->added_s + pa->n_chunk * pa->alone_s;
    c->tpot_s = r->embed ? 0 : pb->decode.s;
    double stall = a != b ? IMP_MAX(0.0, pb->wait_s - c->ttft_s) : 0;
    if (a->prefill_only && a != b) c->ttft_s += pb->decode.s; /* the prompt's last token */
    double service = c->ttft_s + c->exposed_s + stall + n_step * c->tpot_s;
    /* Delay to others: those that generate wait for what this prefill adds, as many as queue now will queue behind it,
     * and the steps of those that generate grow dearer. Prompts that come while it generates hold it up, or it them. */
    double fill = r->chunk > 0 ? IMP_MIN(1.0, (double)r->n_prompt / r->chunk) : 1;
    double harm = (pa->n_seq + a->n_prefill * fill) * pa->added_s;
    harm += n_step * c->tpot_s * pb->rho / (1 - pb->rho);
    if (b->n_decode > 0) harm += pb->n_seq * IMP_MAX(0.0, pb->decode.s - pb->alone_s) * n_step * 0.75;
    double sd = sqrt(pow(pa->prefill.sd * pa->prefill.s, 2) + pow(pb->decode.sd * pb->decode.s * n_step, 2));
    double own = pa->prefill.s + n_step * c->tpot_s;
    c->sd = own > 0 ? sd / own : 0;
    c->lo_s = service * exp(-1.645 * c->sd);
    c->hi_s = service * exp(1.645 * c->sd);
    c->prefill_bound = pa->prefill.bound;
    c->decode_bound = r->embed ? pa->prefill.bound : pb->decode.bound;
    c->n_sample = IMP_MIN(pa->prefill.n_sample, r->embed ? UINT32_MAX : pb->decode.n_sample);
    c->reached[0] = reached(&a->learn->machine, &pa->prefill);
    c->reached[1] = r->embed ? 0 : reached(&b->learn->machine, &pb->decode);
    c->age_s = age_of(a, b);
    c->bytes = pa->prefill.bytes + pb->decode.bytes * n_step;
    c->flop = pa->prefill.flop + pb->decode.flop * n_step;
    double share = 1 / (pb->n_seq + 1); /* a step's energy is shared by its batch */
    double ja = joules_of(a, pa->prefill.s), jb = joules_of(b, n_step * c->tpot_s * share);
    c->joules = ja < 0 || jb < 0 ? -1 : ja + jb;
    c->metered = c->joules >= 0 && knows_power(a) && knows_power(b);
    double device = pa->added_s + n_step * (pb->decode.s - pb->alone_s);
    switch (p->policy) {
    case IMP_POLICY_LATENCY: c->total_s = service + harm; break;
    case IMP_POLICY_THROUGHPUT: c->total_s = IMP_MAX(pa->wait_s, pb->wait_s) + device; break;
    case IMP_POLICY_ENERGY: c->total_s = c->joules < 0 ? 1e6 + service : c->joules; break;
    }
}

/* Requests that are much alike: the model, the kind, and the power of two of the prompt's length. */
static uint64_t class_of(const imp_place_request *r)
{
    uint32_t size = 0;
    for (uint32_t n = r->n_prompt; n > 1; n /= 2) size++;
    uint64_t k[2] = {r->model, (uint64_t)size << 1 | (r->embed ? 1u : 0u)};
    return imp_hash(k, sizeof k, 1) | 1;
}

static imp_place_class *recall(imp_placer *p, uint64_t key)
{
    imp_place_class *oldest = &p->last[0];
    for (size_t i = 0; i < IMP_PLACE_CLASSES; i++) {
        if (p->last[i].key == key) return &p->last[i];
        if (p->last[i].used < oldest->used) oldest = &p->last[i];
    }
    *oldest = (imp_place_class){.key = key, .prefill = 255};
    return oldest;
}

/* A unit that stands idle, is not known well, and might win a phase: worth a copy of this request on the side. */
static int find_shadow(const imp_placer *p, const imp_place_unit *u, const unit_price *price, imp_choice *c)
{
    const imp_candidate *best = &c->cand[c->chosen];
    for (uint32_t i = 0; i < c->n_cand; i++) {
        const imp_candidate *x = &c->cand[i];
        if (x->excluded != NULL || x->lo_s > best->hi_s || (x->n_sample >= 16 && x->sd < 0.08)) continue;
        uint8_t unit = x->decode != best->decode ? x->decode : x->prefill;
        if (u[unit].prefill_only && x->prefill != x->decode) continue; /* it cannot run a copy alone */
        if (unit == best->prefill || unit == best->decode || !u[unit].loaded) continue;
        if (u[unit].n_decode > 0 || u[unit].n_prefill > 0) continue;
        c->shadow_s = price[unit].first_s + IMP_PLACE_SHADOW_GEN * price[unit].decode.s;
        if (p->explored_s + c->shadow_s <= p->explore * (p->spent_s + 60)) return unit;
    }
    return -1;
}

/* What requests take of the units, in the mean of the last ten or so. */
static void note_use(imp_placer *p, const imp_place_request *r, const imp_candidate *c, double prefill_s)
{
    static const double NEW = 0.1;
    for (uint32_t i = 0; i < IMP_PLACE_UNITS; i++)
        p->prefill_s[i] += NEW * ((i == c->prefill ? prefill_s : 0) - p->prefill_s[i]);
    double service = c->ttft_s + c->exposed_s + IMP_MAX(r->n_gen - 1.0, 0) * c->tpot_s;
    p->service_s += NEW * (service - p->service_s);
}

static void choose(imp_placer *p, const imp_place_request *r, const imp_place_unit *u,
                   const unit_price *price, imp_choice *out)
{
    for (uint32_t i = 0; i < out->n_cand; i++) {
        const imp_candidate *c = &out->cand[i];
        if (c->excluded == NULL && (out->chosen < 0 || c->total_s < out->cand[out->chosen].total_s))
            out->chosen = (int)i;
    }
    if (out->chosen < 0) return;
    imp_place_class *last = recall(p, class_of(r));
    for (uint32_t i = 0; i < out->n_cand; i++) {
        const imp_candidate *c = &out->cand[i];
        if (c->excluded != NULL || c->prefill != last->prefill || c->decode != last->decode) continue;
        if ((int)i != out->chosen && c->total_s <= out->cand[out->chosen].total_s * (1 + p->hysteresis)) {
            out->chosen = (int)i;
            out->kept = true;
        }
    }
    for (uint32_t i = 0; i < out->n_cand; i++) {
        const imp_candidate *c = &out->cand[i];
        if ((int)i == out->chosen || c->excluded != NULL) continue;
        if (out->runner_up < 0 || c->total_s < out->cand[out->runner_up].total_s) out->runner_up = (int)i;
    }
    const imp_candidate *c = &out->cand[out->chosen];
    if (out->runner_up >= 0 && c->total_s > 0)
        out->margin = out->cand[out->runner_up].total_s / c->total_s - 1;
    last->prefill = c->prefill;
    last->decode = c->decode;
    last->used = ++p->n_choice;
    p->spent_s += c->total_s;
    if (!r->embed) note_use(p, r, c, price[c->prefill].added_s);
    out->shadow = find_shadow(p, u, price, out);
}

void imp_place(imp_placer *p, const imp_place_request *r, const imp_place_unit *u, uint32_t n_unit,
               imp_choice *out)
{
    unit_price price[IMP_PLACE_UNITS];
    n_unit = IMP_MIN(n_unit, (uint32_t)IMP_PLACE_UNITS);
    out->n_cand = 0;
    out->chosen = out->runner_up = out->shadow = -1;
    out->margin = out->shadow_s = 0;
    out->kept = false;
    double n_other = 0, n_wait = 0, wait_s = 0; /* wait_s: of those in prefill, their mean wait */
    for (uint32_t i = 0; i < n_unit; i++) {
        n_other += u[i].n_decode;
        n_wait += u[i].n_prefill;
        wait_s += u[i].n_prefill * queue_s(r, &u[i]);
    }
    if (n_wait > 0) wait_s /= n_wait;
    for (uint32_t i = 0; i < n_unit; i++) {
        price[i] = (unit_price){.excluded = why_not(p, r, &u[i])};
        if (price[i].excluded == NULL) price_unit(p->pace, r, &u[i], wait_s, &price[i]);
        /* as many come while a request is served as are served beside it */
        price[i].rho = p->service_s > 0 ? IMP_MIN(0.9, n_other * p->prefill_s[i] / p->service_s) : 0;
    }
    for (uint32_t a = 0; a < n_unit; a++)
        for (uint32_t b = 0; b < n_unit; b++) {
            imp_candidate *c = &out->cand[out->n_cand++];
            *c = (imp_candidate){.prefill = (uint8_t)a, .decode = (uint8_t)b, .joules = -1};
            c->excluded = price[a].excluded != NULL ? price[a].excluded : price[b].excluded;
            if (c->excluded == NULL) c->excluded = pair_excluded(r, &u[a], &u[b]);
            if (c->excluded == NULL) price_pair(p, r, u, price, c);
            if (c->excluded == NULL && p->joule_cap > 0 && c->joules > p->joule_cap)
                c->excluded = "it takes more energy than the cap allows";
        }
    choose(p, r, u, price, out);
}

void imp_place_explored(imp_placer *p, double s)
{
    p->explored_s += s;
}
