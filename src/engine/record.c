/* engine/record.c - receipts and explanations: what was chosen for a request and what came of it.
 *
 * Idea:    the choice is copied when the request comes, the phases when it ends; the last 256 stay in memory, the last
 *          1000 in the store, written when a unit is idle.
 * Always:  what a simulated unit did is stamped SIMULATED; what was not metered is null. */
#include <stdio.h>
#include <time.h>

#include "engine/engine_int.h"

imp_record *imp_record_new(const imp_model *m, const imp_request *r, uint64_t id, const imp_choice *c)
{
    const imp_engine *e = m->engine;
    imp_record *rec = imp_sys_calloc(1, sizeof *rec + c->n_cand * sizeof rec->cand[0]);
    if (rec == NULL) return NULL;
    rec->id = id;
    rec->engine = e;
    (void)snprintf(rec->model, sizeof rec->model, "%.63s", m->id);
    size_t n_name = strlen(rec->model); /* a cut must not leave part of a character */
    rec->model[n_name - imp_utf8_incomplete_tail(rec->model, n_name)] = '\0';
    rec->kind = r->kind;
    rec->at = (int64_t)time(NULL);
    for (size_t i = 0; i < r->n_input; i++) rec->n_prompt += (uint32_t)r->n_ids[i];
    rec->n_unit = e->n_unit;
    for (uint32_t i = 0; i < e->n_unit; i++) {
        memcpy(rec->unit[i], e->unit[i]->device->name, sizeof rec->unit[i]);
        if (e->unit[i]->learn.machine.simulated) rec->simulated |= (uint8_t)(1u << i);
    }
    rec->n_cand = c->n_cand;
    memcpy(rec->cand, c->cand, c->n_cand * sizeof rec->cand[0]);
    for (uint32_t i = 0; i < rec->n_cand; i++)
        for (uint32_t k = 0; k < e->n_unit; k++) {
            const char *why = rec->cand[i].excluded;
            if (why != m->inst[k].why_not && why != m->inst[k].not_ready) continue;
            (void)snprintf(rec->why[k], sizeof rec->why[k], "%.95s", why);
            rec->cand[i].excluded = rec->why[k];
        }
    rec->chosen = c->chosen;
    rec->runner_up = c->runner_up;
    rec->margin = c->margin;
    rec->kept = c->kept;
    rec->device[0] = rec->device[1] = m->home;
    if (c->chosen < 0) {
        const imp_candidate *own = c->n_cand > 0 ? &rec->cand[m->home * (e->n_unit + 1)] : NULL;
        if (own != NULL && own->excluded != NULL)
            (void)snprintf(rec->fallback, sizeof rec->fallback, "no device was left to choose (%.40s: %.70s)",
                           rec->unit[m->home], own->excluded);
        return rec;
    }
    const imp_candidate *x = &c->cand[c->chosen];
    rec->device[0] = x->prefill;
    rec->device[1] = x->decode;
    rec->predicted_s[0] = x->ttft_s - x->wait_s;
    rec->predicted_s[1] = x->tpot_s;
    for (int p = 0; p < 2; p++) rec->watt[p] = e->unit[rec->device[p]]->learn.machine.f[IMP_F_WATT].v;
    return rec;
}

void imp_record_keep(imp_engine *e, imp_record *r)
{
    imp_mutex_lock(e->record_lock);
    imp_record **at = &e->record[e->n_record++ % MAX_RECORD];
    imp_sys_free(*at);
    *at = r;
    if (e->to_store != NULL) imp_cond_broadcast(e->to_store);
    imp_mutex_unlock(e->record_lock);
}

void imp_records_free(imp_engine *e)
{
    for (size_t i = 0; i < MAX_RECORD; i++) imp_sys_free(e->record[i]);
}

/* ---- text ------------------------------------------------------------------------------------------ */

static const char *finish_name(imp_finish f)
{
    static const char *const name[] = {"stop", "length", "cancelled", "error"};
    return name[f];
}

void imp_text_write(imp_buf *b, const char *s)
{
    imp_buf_str(b, "\"");
    for (; *s != '\0'; s++) {
        if (*s == '"' || *s == '\\')
            imp_buf_fmt(b, "\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            imp_buf_fmt(b, "\\u%04x", (unsigned)(unsigned char)*s);
        else
            imp_buf_add(b, s, 1);
    }
    imp_buf_str(b, "\"");
}

static void write_phase(imp_buf *b, const imp_record *r, int p)
{
    const imp_sched_phase *ph = &r->phase[p];
    uint32_t d = r->device[p];
    bool sim = r->simulated >> d & 1;
    double predicted = p == 0 ? r->predicted_s[0] : r->predicted_s[1] * ph->n_tok;
    imp_buf_str(b, "{\"device\":");
    imp_text_write(b, r->unit[d]);
    imp_buf_fmt(b, ",\"tokens\":%u,\"ms\":%.4f,\"predicted_ms\":", ph->n_tok, ph->s * 1e3);
    if (r->chosen >= 0)
        imp_buf_fmt(b, "%.4f", predicted * 1e3);
    else
        imp_buf_str(b, "null");
    imp_buf_fmt(b, ",\"bytes\":%.0f,\"joules\":", ph->bytes);
    if (sim && r->watt[p] > 0)
        imp_buf_fmt(b, "%.4f,\"joules_from\":\"model\"", ph->s * r->watt[p]);
    else if (!sim && ph->metered_s >= 0.5 * ph->s &&
             ph->s > 0) /* the little that the meter missed is like the rest */
        imp_buf_fmt(b, "%.4f,\"joules_from\":\"meter\"", ph->joules * ph->s / ph->metered_s);
    else
        imp_buf_str(b, "null");
    imp_buf_str(b, ",\"fallback\":");
    if (r->fallback[0] != '\0')
        imp_text_write(b, r->fallback);
    else
        imp_buf_str(b, "null");
    if (p == 0 && r->ran_on[0] != '\0') {
        imp_buf_str(b, ",\"ran_on\":");
        imp_text_write(b, r->ran_on);
    }
    if (sim) imp_buf_str(b, ",\"simulated\":\"SIMULATED\"");
    imp_buf_str(b, "}");
}

static void write_receipt(imp_buf *b, const imp_record *r)
{
    imp_buf_fmt(b, "{\"id\":%llu,\"model\":", (unsigned long long)r->id);
    imp_text_write(b, r->model);
    imp_buf_fmt(b,
                ",\"finish\":\"%s\",\"queue_ms\":%.4f,\"cached_tokens\":%u,\"%s\":", finish_name(r->finish),
                r->queue_ms, r->n_cached, r->kind == IMP_REQUEST_EMBED ? "embed" : "prefill");
    write_phase(b, r, 0);
    if (r->kind == IMP_REQUEST_GENERATE) {
        imp_buf_str(b, ",\"decode\":");
        write_phase(b, r, 1);
    }
    if (r->n_restored > 0)
        imp_buf_fmt(b, ",\"restored\":{\"tokens\":%u,\"ms\":%.4f}", r->n_restored, r->restore_ms);
    if (r->n_drafted > 0)
        imp_buf_fmt(b, ",\"speculation\":{\"drafted\":%u,\"accepted\":%u}", r->n_drafted, r->n_accepted);
    if (r->handover.n_block > 0)
        imp_buf_fmt(b,
                    ",\"kv_moved\":{\"blocks\":%u,\"bytes\":%.0f,\"early_blocks\":%u,\"overlapped_ms\":%.4f,"
                    "\"exposed_ms\":%.4f,\"through\":\"%s\"}",
                    r->handover.n_block, r->handover.bytes, r->handover.n_early,
                    r->handover.overlapped_s * 1e3, r->handover.exposed_s * 1e3,
                    r->handover.direct ? "device memory" : "host memory");
    imp_buf_str(b, "}");
}

static void write_candidate(imp_buf *b, const imp_candidate *c, const char (*unit)[64], uint8_t simulated)
{
    imp_buf_str(b, "{\"prefill\":");
    imp_text_write(b, unit[c->prefill]);
    imp_buf_str(b, ",\"decode\":");
    imp_text_write(b, unit[c->decode]);
    if (c->excluded != NULL) {
        imp_buf_str(b, ",\"ttft_ms\":null,\"tpot_ms\":null,\"interval\":null,\"bound\":null,\"joules\":null,"
                       "\"excluded\":");
        imp_text_write(b, c->excluded);
        imp_buf_str(b, "}");
        return;
    }
    imp_buf_fmt(b,
                ",\"ttft_ms\":%.4f,\"tpot_ms\":%.4f,\"interval\":[%.4f,%.4f],\"bound\":\"%s\",\"decode_"
                "bound\":\"%s\"",
                c->ttft_s * 1e3, c->tpot_s * 1e3, c->lo_s * 1e3, c->hi_s * 1e3,
                imp_bound_name(c->prefill_bound), imp_bound_name(c->decode_bound));
    if (c->metered)
        imp_buf_fmt(b, ",\"joules\":%.4f", c->joules);
    else
        imp_buf_str(b, ",\"joules\":null");
    imp_buf_fmt(b, ",\"price_ms\":%.4f,\"wait_ms\":%.4f,\"bytes\":%.0f,\"flop\":%.0f,\"samples\":%u",
                c->total_s * 1e3, c->wait_s * 1e3, c->bytes, c->flop, c->n_sample);
    imp_buf_fmt(b, ",\"efficiency\":%.4f,\"decode_efficiency\":%.4f", c->reached[0], c->reached[1]);
    if (c->age_s >= 0)
        imp_buf_fmt(b, ",\"age_s\":%.0f", c->age_s);
    else
        imp_buf_str(b, ",\"age_s\":null");
    if (c->prefill != c->decode)
        imp_buf_fmt(b, ",\"kv_moved\":{\"bytes\":%.0f,\"ms\":%.4f,\"exposed_ms\":%.4f}", c->kv_bytes,
                    c->moved_s * 1e3, c->exposed_s * 1e3);
    if ((simulated >> c->prefill | simulated >> c->decode) & 1)
        imp_buf_str(b, ",\"simulated\":\"SIMULATED\"");
    imp_buf_str(b, ",\"excluded\":null}");
}

void imp_candidates_write(imp_buf *b, const imp_candidate *c, uint32_t n, const char (*unit)[64],
                          uint8_t simulated)
{
    imp_buf_str(b, "[");
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0) imp_buf_str(b, ",");
        write_candidate(b, &c[i], unit, simulated);
    }
    imp_buf_str(b, "]");
}

void imp_settings_write(imp_buf *b, const imp_engine *e)
{
    const imp_engine_config *c = &e->config;
    imp_buf_fmt(b, "{\"embeddings_on_npu\":\"%s\",\"max_npu_model_mb\":",
                c->embeddings_on_npu > 0   ? "on"
                : c->embeddings_on_npu < 0 ? "off"
                                           : "as measured");
    if (c->max_npu_model_mb != 0)
        imp_buf_fmt(b, "%u", c->max_npu_model_mb);
    else
        imp_buf_str(b, "\"as measured\"");
    imp_buf_fmt(b, ",\"gpu_matrix_units\":\"%s\"}", c->gpu_matrix_units < 0 ? "off" : "as measured");
}

static void write_explanation(imp_buf *b, const imp_record *r)
{
    imp_buf_fmt(b, "{\"id\":%llu,\"at\":%lld,\"prompt_tokens\":%u,\"decided_in_us\":%.1f,\"candidates\":",
                (unsigned long long)r->id, (long long)r->at, r->n_prompt, (double)r->decide_ns * 1e-3);
    imp_candidates_write(b, r->cand, r->n_cand, r->unit, r->simulated);
    imp_buf_fmt(b, ",\"chosen\":%d,\"runner_up\":%d,\"margin\":%.4f,\"kept\":%s,\"settings\":", r->chosen,
                r->runner_up, r->margin, r->kept ? "true" : "false");
    imp_settings_write(b, r->engine);
    imp_buf_str(b, ",\"receipt\":");
    write_receipt(b, r);
    imp_buf_str(b, "}");
}

/* ---- asking ----------------------------------------------------------------------------------------- */

static char *text_of(imp_engine *e, uint64_t id, void (*write)(imp_buf *, const imp_record *))
{
    imp_buf b = {0};
    imp_mutex_lock(e->record_lock);
    const imp_record *r = NULL;
    for (uint64_t i = 0; i < MAX_RECORD && i < e->n_record && r == NULL; i++) {
        const imp_record *x = e->record[(e->n_record - 1 - i) % MAX_RECORD];
        if (id == 0 || x->id == id) r = x;
    }
    if (r != NULL) write(&b, r);
    imp_mutex_unlock(e->record_lock);
    char *text = r != NULL ? imp_buf_take(&b) : NULL;
    imp_buf_deinit(&b);
    return text;
}

static void write_device(imp_buf *b, const imp_record *r)
{
    imp_buf_str(b, r->unit[r->device[0]]);
    if (r->kind == IMP_REQUEST_GENERATE && r->device[1] != r->device[0] && r->phase[1].n_tok > 0)
        imp_buf_fmt(b, " > %s", r->unit[r->device[1]]);
}

char *imp_receipt_device(imp_engine *e, uint64_t id)
{
    return text_of(e, id, write_device);
}

char *imp_receipt_json(imp_engine *e, uint64_t id)
{
    return text_of(e, id, write_receipt);
}

char *imp_explain_json(imp_engine *e, uint64_t id)
{
    return text_of(e, id, write_explanation);
}

char *imp_candidates_json(imp_engine *e, imp_model *m, uint32_t n_prompt, uint32_t n_gen, uint32_t n_batch)
{
    bool embed = m->net->generate == NULL;
    imp_choice c = {.chosen = -1};
    imp_buf b = {0};
    char unit[MAX_UNIT][64] = {{0}};
    uint8_t simulated = 0;
    imp_mutex_lock(e->place_lock);
    imp_place_unit u[MAX_UNIT];
    imp_place_request r = {.model = 0,
                           .cost = embed ? &m->cost_embed : &m->cost_generate,
                           .embed = embed,
                           .n_prompt = IMP_MAX(n_prompt, 1u) * (embed ? IMP_MAX(n_batch, 1u) : 1),
                           .n_input = n_batch, /* of an embedding */
                           .n_gen = n_gen,
                           .n_need = n_prompt + (embed ? 0 : n_gen),
                           .chunk = IMP_MAX(m->inst[m->home].fit.generate.max_tok, 1u)};
    imp_route_units(m, &r, u);
    for (uint32_t i = 0; i < e->n_unit; i++) {
        memcpy(unit[i], e->unit[i]->device->name, sizeof unit[i]);
        if (e->unit[i]->learn.machine.simulated) simulated |= (uint8_t)(1u << i);
        u[i].n_decode = n_batch > 0 ? n_batch - 1 : 0;
    }
    imp_placer p = e->placer; /* asking leaves no trace */
    imp_place(&p, &r, u, e->n_unit, &c);
    imp_mutex_unlock(e->place_lock);
    imp_buf_str(&b, "{\"candidates\":");
    imp_candidates_write(&b, c.cand, c.n_cand, unit, simulated);
    if (c.chosen >= 0)
        imp_buf_fmt(&b, ",\"chosen\":%d", c.chosen);
    else
        imp_buf_str(&b, ",\"chosen\":null");
    imp_buf_str(&b, ",\"settings\":");
    imp_settings_write(&b, e);
    imp_buf_str(&b, "}");
    char *text = imp_buf_take(&b);
    imp_buf_deinit(&b);
    return text;
}

/* The oldest record that is not stored, taken to be stored now; NULL: there is none. record_lock held. */
static imp_record *next_to_store(imp_engine *e)
{
    uint64_t n = IMP_MIN(e->n_record, (uint64_t)MAX_RECORD);
    for (uint64_t i = 0; i < n; i++) {
        imp_record *r = e->record[(e->n_record - n + i) % MAX_RECORD];
        if (!r->stored) return r;
    }
    return NULL;
}

static void clerk_main(void *arg)
{
    imp_engine *e = arg;
    for (;;) {
        imp_buf b = {0};
        imp_mutex_lock(e->record_lock);
        imp_record *r;
        while ((r = next_to_store(e)) == NULL && !e->last_is_kept) imp_cond_wait(e->to_store, e->record_lock);
        uint64_t id = r != NULL ? r->id : 0;
        if (r != NULL) {
            write_explanation(&b, r);
            r->stored = true;
        }
        imp_mutex_unlock(e->record_lock);
        char *text = imp_buf_take(&b);
        imp_buf_deinit(&b);
        imp_error err;
        if (r != NULL && text != NULL && imp_store_put_explanation(e->store, id, text, &err) != IMP_OK)
            imp_log(IMP_LOG_WARN, "%s", err.text);
        imp_sys_free(text);
        if (r == NULL) return;
    }
}

imp_status imp_records_start(imp_engine *e, imp_error *err)
{
    imp_status s = imp_cond_new(&e->to_store);
    if (s == IMP_OK) s = imp_thread_start(clerk_main, e, &e->clerk);
    return s == IMP_OK ? s : imp_fail(err, s, "cannot start: %s", imp_status_text(s));
}

void imp_records_stop(imp_engine *e)
{
    if (e->clerk != NULL) {
        imp_mutex_lock(e->record_lock);
        e->last_is_kept = true;
        imp_cond_broadcast(e->to_store);
        imp_mutex_unlock(e->record_lock);
        imp_thread_join(e->clerk);
    }
    imp_cond_free(e->to_store);
    e->clerk = NULL;
    e->to_store = NULL;
}
