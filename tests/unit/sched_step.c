/* The scheduler over a device that only remembers tokens.
 *
 * The fake device stores each token in the block its table names and derives the next token from everything it reads
 * back through that table: one wrong block, position or mixed-up sequence changes the answer. The expected answer is
 * computed here from the prompt alone. */
#include "test.h"

#include "base/thread.h"
#include "sched/sched_int.h"

enum { VOCAB = 101, EMBED_DIM = 3, MAX_BLOCK = 64, MAX_OUT = 64 };

typedef struct fake {
    imp_exec exec;
    imp_device dev;
    int32_t cell[MAX_BLOCK][IMP_KV_BLOCK];
    float logits[MAX_OUT * VOCAB];
    float vectors[256 * EMBED_DIM];
    bool fail;
    uint32_t most_seq, most_tok;
} fake;

static uint64_t mix(uint64_t h, int32_t id)
{
    return (h ^ (uint64_t)(uint32_t)id) * 0x9e3779b97f4a7c15ull + (h >> 29);
}
static int32_t next_token(uint64_t h)
{
    return (int32_t)((h >> 33) % VOCAB);
}

static imp_status fake_run(imp_exec *x, const imp_batch *b, const float **out, imp_error *err)
{
    fake *f = (fake *)x;
    if (f->fail) return imp_fail(err, IMP_DEVICE, "the device is gone");
    f->most_seq = IMP_MAX(f->most_seq, b->n_seq);
    f->most_tok = IMP_MAX(f->most_tok, b->n_tok);
    uint32_t o = 0, at = 0;
    for (uint32_t i = 0; i < b->n_seq; i++) {
        const imp_batch_seq *s = &b->seq[i];
        assert_int_equal(s->first_tok, at);
        at += s->n_tok;
        if (s->block == NULL) { /* embedding */
            float sum = 0;
            for (uint32_t k = 0; k < s->n_tok; k++) sum += (float)b->token[s->first_tok + k];
            for (int k = 0; k < EMBED_DIM; k++) f->vectors[i * EMBED_DIM + (uint32_t)k] = sum + (float)k;
            continue;
        }
        for (uint32_t k = 0; k < s->n_tok; k++) {
            uint32_t pos = s->n_past + k;
            assert_int_equal(b->pos[s->first_tok + k], pos);
            f->cell[s->block[pos / IMP_KV_BLOCK]][pos % IMP_KV_BLOCK] = b->token[s->first_tok + k];
        }
        for (; o < b->n_out && b->out_row[o] < at; o++) {
            uint64_t h = 1;
            for (uint32_t p = 0; p <= s->n_past + b->out_row[o] - s->first_tok; p++)
                h = mix(h, f->cell[s->block[p / IMP_KV_BLOCK]][p % IMP_KV_BLOCK]);
            for (int32_t v = 0; v < VOCAB; v++)
                f->logits[o * VOCAB + (uint32_t)v] = v == next_token(h) ? 5 : 0;
        }
    }
    assert_int_equal(at, b->n_tok);
    assert_int_equal(o, b->n_out);
    *out = b->n_out > 0 ? f->logits : f->vectors;
    return IMP_OK;
}

static void fake_copy(imp_exec *x, uint32_t dst, uint32_t src)
{
    fake *f = (fake *)x;
    memcpy(f->cell[dst], f->cell[src], sizeof f->cell[dst]);
}

static const imp_device_ops fake_ops = {.kind = "fake", .run = fake_run, .kv_copy = fake_copy};

typedef struct client {
    int32_t got[512];
    size_t n_got;
    int n_done;
    imp_finish finish;
    imp_usage usage;
    float vector[EMBED_DIM];
    size_t n_vector;
} client;

static void on_event(void *user, uint64_t id, const imp_event *ev)
{
    (void)id;
    client *c = user;
    assert_true(c->n_done <= 0);
    if (ev->kind == IMP_EVENT_TEXT)
        for (size_t i = 0; i < ev->n_tokens; i++) c->got[c->n_got++] = ev->tokens[i].id;
    if (ev->kind == IMP_EVENT_LOGITS) {
        assert_int_equal(ev->index, c->n_got);
        int32_t best = 0;
        for (int32_t v = 1; v < VOCAB; v++)
            if (ev->vector[v] > ev->vector[best]) best = v;
        c->got[c->n_got++] = best;
    }
    if (ev->kind == IMP_EVENT_EMBEDDING) {
        memcpy(c->vector, ev->vector, ev->n_vector * sizeof(float));
        c->n_vector = ev->n_vector;
        c->n_got++;
    }
    if (ev->kind == IMP_EVENT_DONE) {
        c->n_done++;
        c->finish = ev->finish;
        c->usage = ev->usage;
    }
}

typedef struct rig {
    fake *f;
    imp_net net;
    imp_sched *s;
} rig;

static rig rig_new(uint32_t n_block, uint32_t n_parallel, uint32_t n_batch, uint32_t n_ctx)
{
    rig r = {.f = calloc(1, sizeof(fake))};
    r.f->dev.ops = &fake_ops;
    r.f->exec.dev = &r.f->dev;
    static imp_net net;
    net = (imp_net){.cfg = {.n_vocab = VOCAB, .embed_dim = EMBED_DIM}};
    imp_sched_config c = {.net = &net,
                          .generate = &r.f->exec,
                          .embed = &r.f->exec,
                          .generate_limits = {.max_tok = n_batch,
                                              .max_seq = n_parallel,
                                              .max_out = 16,
                                              .max_ctx = n_ctx,
                                              .n_kv_block = n_block},
                          .embed_limits = {.max_tok = n_ctx, .max_seq = 4},
                          .n_ctx = n_ctx,
                          .n_queue = 100};
    imp_error e;
    assert_int_equal(imp_sched_new(&c, &r.s, &e), IMP_OK);
    return r;
}

static void rig_free(rig *r)
{
    imp_sched_free(r->s);
    free(r->f);
}

static imp_request generate(const int32_t *ids, const size_t *n, uint32_t max_tok, client *c)
{
    imp_request q = {.kind = IMP_REQUEST_GENERATE,
                     .ids = ids,
                     .n_ids = n,
                     .n_input = 1,
                     .max_tok = max_tok,
                     .want_logprobs = true,
                     .on_event = on_event,
                     .user = c};
    q.sampling = (imp_sampling){.top_p = 1, .repeat_penalty = 1};
    return q;
}

static void check_answer(const int32_t *ids, size_t n, uint32_t max_tok, const client *c)
{
    uint64_t h = 1;
    for (size_t i = 0; i < n; i++) h = mix(h, ids[i]);
    assert_int_equal(c->n_done, 1);
    assert_int_equal(c->n_got, max_tok);
    for (uint32_t i = 0; i < max_tok; i++) {
        assert_int_equal(c->got[i], next_token(h));
        h = mix(h, c->got[i]);
    }
    assert_int_equal(c->finish, IMP_FINISH_LENGTH);
    assert_int_equal(c->usage.n_prompt, n);
    assert_int_equal(c->usage.n_generated, max_tok);
}

enum { N = 60 };
static int32_t prompt[N][400];

/* Many requests of all lengths; a pool that holds them all, and one that has to take memory back again and again. */
static void answers_do_not_depend_on_neighbours(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_block, n_parallel, n_batch;
    } c[] = {{64, 8, 128}, {9, 8, 37}, {8, 16, 16}, {8, 1, 512}};
    for (size_t k = 0; k < IMP_COUNT(c); k++) {
        rng r = {k + 1};
        rig g = rig_new(c[k].n_block, c[k].n_parallel, c[k].n_batch, 512);
        static client cl[N];
        memset(cl, 0, sizeof cl);
        size_t n[N];
        uint32_t max_tok[N];
        imp_error e;
        for (int i = 0; i < N; i++) {
            n[i] = 1 + rng_below(&r, rng_below(&r, 4) == 0 ? 300 : 20);
            max_tok[i] = 1 + rng_below(&r, 150);
            for (size_t p = 0; p < n[i]; p++) prompt[i][p] = (int32_t)rng_below(&r, VOCAB);
            imp_request q = generate(prompt[i], &n[i], max_tok[i], &cl[i]);
            assert_int_equal(imp_sched_submit(g.s, &q, (uint64_t)i + 1, &e), IMP_OK);
            if (rng_below(&r, 3) == 0) (void)imp_sched_step(g.s);
        }
        int steps = 0;
        while (imp_sched_has_work(g.s)) {
            assert_true(imp_sched_step(g.s));
            assert_true(++steps < 100000);
        }
        for (int i = 0; i < N; i++) check_answer(prompt[i], n[i], max_tok[i], &cl[i]);
        assert_true(g.f->most_tok <= c[k].n_batch && g.f->most_seq <= c[k].n_parallel);
        if (c[k].n_parallel > 1) assert_true(g.f->most_seq > 1);
        imp_sched_drop_cache(g.s);
        assert_int_equal(g.s->kv.n_free, g.s->kv.n_block); /* every block came back */
        rig_free(&g);
    }
}

static void cancel_frees_within_one_step(void **state)
{
    (void)state;
    rig g = rig_new(16, 4, 64, 512);
    static client cl[4];
    memset(cl, 0, sizeof cl);
    size_t n = 5;
    imp_error e;
    for (int i = 0; i < 4; i++) {
        imp_request q = generate((int32_t[]){1, 2, 3, 4, 5}, &n, 300, &cl[i]);
        assert_int_equal(imp_sched_submit(g.s, &q, (uint64_t)i + 1, &e), IMP_OK);
    }
    for (int i = 0; i < 10; i++) imp_sched_step(g.s);
    assert_true(imp_sched_cancel(g.s, 2));
    assert_false(imp_sched_cancel(g.s, 99));
    imp_sched_step(g.s);
    assert_int_equal(cl[1].n_done, 1);
    assert_int_equal(cl[1].finish, IMP_FINISH_CANCELLED);
    assert_int_equal(cl[0].n_done, 0);
    assert_int_equal(g.s->running.n, 3);
    rig_free(&g); /* the others get their final event here */
    for (int i = 0; i < 4; i++) assert_int_equal(cl[i].n_done, 1);
}

static void scoring_gives_every_position_in_order(void **state)
{
    (void)state;
    rig g = rig_new(16, 4, 64, 512);
    static client cl;
    memset(&cl, 0, sizeof cl);
    size_t n = 200;
    int32_t ids[200];
    for (int i = 0; i < 200; i++) ids[i] = (i * 7) % VOCAB;
    imp_request q = generate(ids, &n, 0, &cl);
    q.kind = IMP_REQUEST_SCORE;
    imp_error e;
    assert_int_equal(imp_sched_submit(g.s, &q, 1, &e), IMP_OK);
    while (imp_sched_has_work(g.s)) imp_sched_step(g.s);
    assert_int_equal(cl.n_got, 200);
    uint64_t h = 1;
    for (int i = 0; i < 200; i++) {
        h = mix(h, ids[i]);
        assert_int_equal(cl.got[i], next_token(h));
    }
    rig_free(&g);
}

static void embeddings_are_batched_cut_and_normalised(void **state)
{
    (void)state;
    rig g = rig_new(16, 4, 64, 512);
    static client cl;
    memset(&cl, 0, sizeof cl);
    int32_t ids[100];
    size_t n[10];
    for (int i = 0; i < 100; i++) ids[i] = 1;
    for (int i = 0; i < 10; i++) n[i] = 10;
    imp_request q = {.kind = IMP_REQUEST_EMBED,
                     .ids = ids,
                     .n_ids = n,
                     .n_input = 10,
                     .dimensions = 2,
                     .on_event = on_event,
                     .user = &cl};
    imp_error e;
    assert_int_equal(imp_sched_submit(g.s, &q, 1, &e), IMP_OK);
    int steps = 0;
    while (imp_sched_has_work(g.s)) steps += imp_sched_step(g.s);
    assert_int_equal(steps, 3); /* 4 + 4 + 2 */
    assert_int_equal(cl.n_got, 10);
    assert_int_equal(cl.n_vector, 2);
    assert_float_equal(cl.vector[0], 10 / 14.8660687f, 1e-6);
    assert_float_equal(cl.vector[1], 11 / 14.8660687f, 1e-6);
    rig_free(&g);
}

static void bad_requests_are_refused_without_a_callback(void **state)
{
    (void)state;
    rig g = rig_new(16, 2, 64, 128);
    static client cl;
    memset(&cl, 0, sizeof cl);
    imp_error e;
    static int32_t ids[200];
    size_t n = 128;
    imp_request q = generate(ids, &n, 1, &cl);
    assert_int_equal(imp_sched_submit(g.s, &q, 1, &e), IMP_TOO_LARGE);
    assert_non_null(strstr(e.text, "128"));
    n = 0;
    assert_int_equal(imp_sched_submit(g.s, &q, 1, &e), IMP_INVALID);
    n = 2;
    ids[1] = VOCAB;
    assert_int_equal(imp_sched_submit(g.s, &q, 1, &e), IMP_INVALID);
    ids[1] = -1;
    assert_int_equal(imp_sched_submit(g.s, &q, 1, &e), IMP_INVALID);
    ids[1] = 0;
    q.sampling.top_p = 2;
    assert_int_equal(imp_sched_submit(g.s, &q, 1, &e), IMP_INVALID);
    assert_string_equal(e.field, "top_p");
    q.sampling.top_p = 1;
    const char *stop[] = {""};
    q.stop = stop;
    q.n_stop = 1;
    assert_int_equal(imp_sched_submit(g.s, &q, 1, &e), IMP_INVALID);
    q.n_stop = 0;
    for (uint64_t i = 0; i < 102; i++) assert_int_equal(imp_sched_submit(g.s, &q, i + 1, &e), IMP_OK);
    assert_int_equal(imp_sched_submit(g.s, &q, 500, &e), IMP_BUSY);
    assert_int_equal(cl.n_done, 0);
    imp_stats st = {0};
    imp_sched_add_stats(g.s, &st);
    assert_int_equal(st.n_refused, 7);
    assert_int_equal(st.n_waiting, 102);
    cl.n_done = -200; /* all 102 end at once below */
    imp_sched_free(g.s);
    free(g.f);
}

static void a_failed_step_ends_its_requests_and_the_next_works(void **state)
{
    (void)state;
    rig g = rig_new(16, 2, 64, 128);
    static client a, b;
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    size_t n = 2;
    imp_request q = generate((int32_t[]){1, 2}, &n, 5, &a);
    imp_error e;
    assert_int_equal(imp_sched_submit(g.s, &q, 1, &e), IMP_OK);
    g.f->fail = true;
    imp_sched_step(g.s);
    g.f->fail = false;
    assert_int_equal(a.n_done, 1);
    assert_int_equal(a.finish, IMP_FINISH_ERROR);
    q.user = &b;
    assert_int_equal(imp_sched_submit(g.s, &q, 2, &e), IMP_OK);
    while (imp_sched_has_work(g.s)) imp_sched_step(g.s);
    check_answer((int32_t[]){1, 2}, 2, 5, &b);
    rig_free(&g);
}

static void nothing_left_to_choose_is_an_error(void **state)
{
    (void)state;
    rig g = rig_new(16, 2, 64, 128);
    static client a, b;
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    imp_logit_bias ban[VOCAB];
    for (int32_t v = 0; v < VOCAB; v++) ban[v] = (imp_logit_bias){v, -100};
    size_t n = 2;
    imp_request q = generate((int32_t[]){1, 2}, &n, 5, &a);
    q.sampling.bias = ban;
    q.sampling.n_bias = VOCAB;
    imp_error e;
    assert_int_equal(imp_sched_submit(g.s, &q, 1, &e), IMP_OK);
    q = generate((int32_t[]){1, 2}, &n, 5, &b);
    assert_int_equal(imp_sched_submit(g.s, &q, 2, &e), IMP_OK);
    while (imp_sched_has_work(g.s)) imp_sched_step(g.s);
    assert_int_equal(a.n_done, 1);
    assert_int_equal(a.finish, IMP_FINISH_ERROR);
    assert_int_equal(a.n_got, 0);
    check_answer((int32_t[]){1, 2}, 2, 5, &b); /* in the same step */
    imp_sched_drop_cache(g.s);
    assert_int_equal(g.s->kv.n_free, g.s->kv.n_block);
    rig_free(&g);
}

static void decoding_calls_no_heap(void **state)
{
    (void)state;
    rig g = rig_new(32, 4, 64, 512);
    static client cl[4];
    memset(cl, 0, sizeof cl);
    size_t n = 3;
    imp_error e;
    for (int i = 0; i < 4; i++) {
        imp_request q = generate((int32_t[]){1, 2, 3}, &n, 300, &cl[i]);
        assert_int_equal(imp_sched_submit(g.s, &q, (uint64_t)i + 1, &e), IMP_OK);
    }
    imp_sched_step(g.s);
    uint64_t before = imp_sys_n_alloc();
    for (int i = 0; i < 200; i++) imp_sched_step(g.s);
    assert_int_equal(imp_sys_n_alloc(), before);
    rig_free(&g);
}

static void every_failed_allocation_is_clean(void **state)
{
    (void)state;
    rig g = rig_new(16, 2, 64, 128);
    static client cl;
    size_t n = 2;
    imp_error e;
    for (uint64_t k = 1;; k++) {
        memset(&cl, 0, sizeof cl);
        imp_request q = generate((int32_t[]){1, 2}, &n, 5, &cl);
        imp_sys_fail_at(k);
        imp_status s = imp_sched_submit(g.s, &q, k, &e);
        imp_sys_fail_at(0);
        if (s == IMP_OK) break;
        assert_int_equal(s, IMP_NOMEM);
        assert_int_equal(cl.n_done, 0);
    }
    while (imp_sched_has_work(g.s)) imp_sched_step(g.s);
    check_answer((int32_t[]){1, 2}, 2, 5, &cl);
    imp_sched_config c = g.s->c;
    for (uint64_t k = 1;; k++) {
        imp_sched *s;
        imp_sys_fail_at(k);
        imp_status st = imp_sched_new(&c, &s, &e);
        imp_sys_fail_at(0);
        if (st == IMP_OK) {
            imp_sched_free(s);
            break;
        }
        assert_true(st == IMP_NOMEM || st == IMP_IO); /* IO: no random numbers */
        assert_null(s);
    }
    rig_free(&g);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(answers_do_not_depend_on_neighbours),
        cmocka_unit_test(cancel_frees_within_one_step),
        cmocka_unit_test(scoring_gives_every_position_in_order),
        cmocka_unit_test(embeddings_are_batched_cut_and_normalised),
        cmocka_unit_test(bad_requests_are_refused_without_a_callback),
        cmocka_unit_test(a_failed_step_ends_its_requests_and_the_next_works),
        cmocka_unit_test(nothing_left_to_choose_is_an_error),
        cmocka_unit_test(decoding_calls_no_heap),
        cmocka_unit_test(every_failed_allocation_is_clean),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
